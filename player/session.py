"""What the window shows: a session has lanes, a clock and settings. Its kinds: playback, compare, remote. No Qt."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mcode.manifold
from mcode.errors import ManifoldError, McodeError

from .clock import Clock
from .counters import SAMPLE_S, History
from .lanes import Lane
from .networks import Networks

Rows = list[tuple[str, str]]
"""Names and values of the stats overlay."""

N_MOST = 32
RATE_LEAST, RATE_MOST = 0.1, 1000.0
"""Kbit/s, of the panel's slider."""
BER_LEAST, BER_MOST = 1e-5, 1e-1
LOSS_MOST = 0.5


@dataclass(frozen=True)
class Settings:
    """What the controls set. manifold: name or path, None for the source's own; quality: see `quality_with`; adaptive: see
    `mcode.Encoder`; rate_kbps: of RTP packets, as a lane's caption counts them, see there, too."""

    n: int = 4
    adaptive: bool = False
    rate_kbps: float | None = None
    coder: str = "huffman"
    manifold: str | None = None
    quality: int | None = None
    bit_error_rate: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    seed: int = 0


def every(n: int, sooner: bool = False) -> str:
    """A keyframe interval in words. sooner: n is the most."""
    return "every frame" if n == 1 else f"every {n} frames" + (" or sooner" if sooner else "")


def qualities(model: Any) -> int:
    """How many qualities a manifold has."""
    return getattr(model, "qualities", model.default_quality)  # which `Model` alone does not promise


def quality_with(model: Any, wanted: int | None) -> int:
    """What a wanted quality is with a manifold: its default for None, its best where it has fewer."""
    return model.default_quality if wanted is None else min(wanted, qualities(model))


CHANNEL_FIELDS = ("bit_error_rate", "loss", "burst", "delay_ms", "jitter_ms", "seed")


class Session:
    """One thing being played. Threads work in the background; tick(), called by the window, shows what is due.

    failed: why it cannot go on, one line, else None. notices: news for the user, one line each, oldest first.
    adjustable: the names of Settings that act here. live: it has no end and no way back. still: it is one picture, of which
    nothing changes that a chart could show.
    """

    live = still = False
    loop = False
    channel_note = ""  # what the simulated channel does here, for the panel
    adjustable: frozenset[str] = frozenset()

    def __init__(self, title: str, lanes: list[Lane], settings: Settings, clock: Clock | None = None) -> None:
        self.title, self.lanes, self.clock = title, lanes, clock or Clock()
        self.history = History()
        self.failed: str | None = None
        self.busy: str | None = None  # what one waits for before the first picture
        self.notices: deque[str] = deque(maxlen=8)
        self.ended = False
        self.duration_s: float | None = None
        self.refreshes_s: tuple[float, ...] = ()
        self.audio_path: str | None = None
        self.sound: deque[Any] | None = None  # pieces of a live stream's: mcode.receive.AudioChunk
        self.model: Any = None  # the manifold in use, once loaded
        self.networks = Networks(self.notices.append)
        self._settings = settings
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sampled_s = -math.inf

    # What the window does with it

    def start(self) -> None:
        """Begin; returns at once."""

    def close(self, wait_s: float = 5.0) -> None:
        """Stop all threads and the networks' process; the lanes keep their last frames."""
        self._closing.set()
        self.networks.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(wait_s)

    def tick(self) -> bool:
        """Show what is due. Whether a picture changed."""
        due_s = self.due_s
        changed = [lane.show(due_s) for lane in self.lanes]
        return any(changed)

    @property
    def due_s(self) -> float:
        """Frames up to this time are shown."""
        return self.clock.time_s

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def position_s(self) -> float:
        """Where in the source the picture on the screen is."""
        return self.clock.time_s

    @property
    def place_s(self) -> float:
        """As position_s, but where a seek or a step that is under way leads."""
        return self.position_s

    @property
    def jump(self) -> int:
        """Another number whenever the picture on the screen does not go on from the one before: after a seek or a loop."""
        return 0

    def seek(self, position_s: float) -> None:
        """Go to a place in the source, at once."""

    def step(self, frames: int) -> None:
        """Pause and show the next (1) or the previous (-1) frame."""

    def pause(self, paused: bool) -> None:
        if not paused and self.ended:
            self.seek(0.0)
        self.clock.paused = paused

    def follow_sound(self, heard_s: float) -> None:
        """Sound is the master clock: heard_s of the source is in the ear now."""
        self.clock.follow(heard_s)

    def stats(self) -> Rows:
        return []

    def sample(self, wall_s: float) -> bool:
        """Add to the history, at most every SAMPLE_S; whether it was time."""
        if wall_s - self._sampled_s < SAMPLE_S * 0.9:
            return False
        self._sampled_s = wall_s
        values: dict[str, float] = {}
        for lane in self.lanes:
            c = lane.counters
            values[f"rate {lane.name}"] = c.rate_kbps or math.nan
            values[f"psnr {lane.name}"] = c.psnr_db
            values[f"ssim {lane.name}"] = c.ssim
            values[f"lost {lane.name}"] = c.packets_lost
            values[f"damaged {lane.name}"] = c.packets_damaged
            values[f"sent {lane.name}"] = c.packets_sent
        self.history.add(**values)
        return True

    def lane(self, name: str) -> Lane | None:
        return next((lane for lane in self.lanes if lane.name == name), None)

    # For the kinds of sessions

    def _find(self, manifold_id: bytes) -> str | os.PathLike[str]:
        """Where the manifold that a stream names lies: the one the user named, where it is that, else an installed one.
        Raises ManifoldError."""
        named = self._settings.manifold
        if named is not None:
            with contextlib.suppress(ManifoldError):
                if mcode.manifold.read_info(named).id == manifold_id.hex():
                    return named
        return mcode.manifold.find_id(manifold_id)

    def _fail(self, problem: str) -> None:
        if not self._closing.is_set():
            self.failed = problem

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        """A thread whose outermost frame shows what went wrong instead of dying in silence."""

        def run() -> None:
            try:
                work()
            except (McodeError, OSError) as error:
                self._fail(" ".join(str(error).split()))
            except Exception as error:
                self._fail(f"{type(error).__name__} in {name}: {' '.join(str(error).split())}")

        thread = threading.Thread(target=run, name=f"player {name}", daemon=True)
        self._threads.append(thread)
        thread.start()
