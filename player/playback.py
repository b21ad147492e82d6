"""Playing an .mcode file: seek, step, speed, loop, and a simulated channel between the file and the decoder. No Qt."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import av

import mcode.manifold
from mcode.codec import Model
from mcode.container import McodeReader
from mcode.errors import ManifoldError
from mcode.frame import TICKS_PER_S

from .clock import Clock
from .counters import RateMeter, smoothed
from .lanes import Lane
from .link import MCodeLink
from .session import CHANNEL_FIELDS, Rows, Session, Settings, every

LATE_S = 0.1
AHEAD_S = 0.3
"""Decoded beforehand: enough to play evenly, little enough that a slider acts at once."""


class Playback(Session):
    """One lane. manifold: a model, a name or a path; None takes the one that the file names: that of the settings, or
    an installed one."""

    adjustable = frozenset({"bit_error_rate", "loss"})
    channel_note = "Simulated between the file and the decoder. Headers are protected."

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        manifold: Model | str | os.PathLike[str] | None = None,
        device: str = "auto",
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.reader = reader = McodeReader(path)
        header = reader.header
        settings = settings or Settings()
        settings = replace(settings, n=header.n, adaptive=False, rate_kbps=None, coder=header.coder, quality=header.quality)
        super().__init__(Path(path).name, [Lane("mcode", "MCode")], settings, clock)
        lane = self.lanes[0]
        lane.counters.bits = RateMeter(now=lambda: self.clock.time_s)
        self.still = reader.keyframes == 1
        if self.still:
            lane.rate_text = f"{8 * reader.payload_bytes / (header.width * header.height):.3f} bit/pixel"
        self.path = os.fspath(path)
        self.display = header.display_width, header.display_height
        self.duration_s = reader.duration_s
        self.refreshes_s = tuple(reader.refresh_times())
        self.audio_path = self.path if _has_sound(self.path) else None
        self.busy = "Loading the manifold"
        self._wanted, self._device = manifold, device
        self._target_s: float | None = 0.0  # where the decoder shall go on; None once it is there
        self._work = threading.Condition()
        self._steps = self._jumps = 0
        self._place_s, self._filling, self._decoded_to_end = 0.0, True, False
        self.link = MCodeLink(settings, lambda _: self.model, header)
        self._unshown = _unshown()
        if reader.truncated:
            self.notices.append(f"The file is cut off: {reader.truncated} can be played")

    def start(self) -> None:
        self._spawn("decoder", self._decode_all)
        self.clock.paused = False

    def close(self, wait_s: float = 5.0) -> None:
        self._closing.set()
        with self._work:
            self._work.notify_all()
        super().close(wait_s)

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        if any(getattr(settings, f) != getattr(self._settings, f) for f in CHANNEL_FIELDS):
            self.link.configure(settings)
            if self.clock.paused and self.lanes[0].newest is not None:
                self._go(self.position_s, keep=True)  # show at once what the channel does to this picture
        self._settings = settings

    @property
    def position_s(self) -> float:
        return min(self.clock.time_s, self.duration_s or 0.0)

    @property
    def jump(self) -> int:
        return self._jumps

    def tick(self) -> bool:
        if self._filling:
            if self.lanes[0].next_s() is None and not (self._decoded_to_end and self._target_s is None):
                self.clock.time_s = self._place_s  # time stands still until there is something to show
                return False
            self._filling, self.busy = False, None
            first_s = self.lanes[0].next_s()
            if first_s is not None and first_s > self.clock.time_s:
                self.clock.time_s = first_s + 1e-6  # between two frames, or in a gap: the one after
        following = self.lanes[0].next_s()
        if self._steps and following is not None and self.clock.paused and following > self.clock.time_s:
            self._steps -= 1
            self.clock.time_s = following + 1e-6
        elif self._decoded_to_end and following is None:
            self._steps = 0
        changed = super().tick()
        unshown = self._unshown  # after a seek the decoder begins another
        while unshown and unshown[0][0] <= self.clock.time_s * TICKS_PER_S:
            pts, bits = unshown.popleft()
            self.lanes[0].counters.bits.add(bits, pts / TICKS_PER_S)
        at_end = self.clock.time_s >= (self.duration_s or 0.0)
        if at_end and not self.clock.paused and self._target_s is None:
            if self.loop:
                self.seek(0.0)
            else:
                self.ended = True
                self.clock.paused = True
                self.clock.time_s = self.duration_s or 0.0
        return changed

    def seek(self, position_s: float) -> None:
        self._go(position_s)

    def _go(self, position_s: float, *, keep: bool = False) -> None:
        """keep: it is not far, so that the frames shown before may still be gone back to."""
        position_s = min(max(0.0, position_s), max(0.0, self._last_s()))
        with self._work:
            self._target_s = self._place_s = position_s
            self._filling, self._decoded_to_end, self.ended = True, False, False
            self._work.notify_all()
        self._steps = 0
        self._jumps += 1
        self.lanes[0].clear(shown=not keep)
        self.lanes[0].counters.bits.clear()
        self.clock.time_s = position_s

    def step(self, frames: int) -> None:
        lane = self.lanes[0]
        self.clock.paused = True
        if lane.newest is None:
            return
        if frames > 0:
            self._steps += 1  # taken by tick() as soon as there is a frame to step to
        elif self._steps:
            self._steps -= 1
        else:
            at = round(self._place_s * TICKS_PER_S) if self._filling else lane.newest.pts  # on the way there, or there
            before, usual = lane.previous_s(at), at / TICKS_PER_S - self._period_s()
            if before is None or (before < usual - self._period_s() / 2 and lane.skipped_before(at)):
                before = usual
            self._go(before, keep=True)

    def stats(self) -> Rows:
        header, c = self.reader.header, self.lanes[0].counters
        model = self.model
        kbps = 8 / 1000 * self.reader.payload_bytes / max(self.reader.duration_s, 1e-9)
        return [
            ("Picture", f"{header.width} × {header.height}"),
            ("Manifold", f"{getattr(model, 'name', '')} {header.manifold_id.hex()[:8]}".strip()),
            ("Keyframes", f"{every(header.n)}, {header.coder}, quality {header.quality}"),
            ("Rate", self.lanes[0].rate_text or f"{kbps:.2f} kbit/s"),
            ("Decoded", f"{c.decoded.per_s:.1f} frames/s"),
            ("Shown", f"{c.shown.per_s:.1f} frames/s"),
            ("Dropped", f"{c.dropped:,} frames"),
            ("Packets", f"{c.packets_lost:,} lost, {c.packets_damaged:,} damaged of {c.packets_sent:,}"),
            ("Decoding", f"{c.decode_ms:.1f} ms a keyframe"),
        ]

    def _last_s(self) -> float:
        return (self.duration_s or 0.0) - self._period_s() / 2

    def _period_s(self) -> float:
        steps = max(1, self.reader.header.n * (self.reader.keyframes - 1))
        return max(1e-3, min(1.0, self.reader.duration_s / (steps + 1)))

    def _decode_all(self) -> None:
        self.model = self.networks.wrap(self._load())
        while not self._closing.is_set():
            with self._work:
                while self._target_s is None and not self._closing.is_set():
                    self._work.wait()
                target = self._target_s
                self._target_s = None
            if target is not None:
                self._decode_from(target)

    def _load(self) -> Model:
        wanted = self._wanted
        if wanted is None:
            wanted = self._find(self.reader.header.manifold_id)
        if isinstance(wanted, str | os.PathLike):
            wanted = mcode.manifold.load(wanted, self._device)
        if wanted.id != self.reader.header.manifold_id.hex():
            raise ManifoldError(f"this stream needs manifold {self.reader.header.manifold_id.hex()}, not {wanted.id}")
        return wanted

    def _interrupted(self) -> bool:
        return self._target_s is not None or self._closing.is_set()

    def _decode_from(self, target_s: float) -> None:
        """Offers the frames from target_s on, until the end, another seek or close; the channel goes on."""
        lane, link = self.lanes[0], self.link
        counters = lane.counters
        self.reader.seek(target_s)
        link.restart(self.reader.header)
        self._unshown = _unshown()
        first = round((target_s - self._period_s() * 0.999) * TICKS_PER_S)
        room = max(2, round(AHEAD_S / self._period_s()))
        for sent in self.reader:
            if self._interrupted():
                return
            self._unshown.append((sent.pts, 8 * sum(len(part or b"") for part in sent.slices)))
            for unit in link.pass_on(sent):
                started = time.perf_counter()
                frames = link.lane.decode(unit)
                if unit.packet.pts < first:
                    continue  # only the state is wanted
                if self._is_late(unit.packet.pts):
                    counters.dropped += unit.packet.steps
                    continue
                waited = 0.0
                for frame in frames:
                    offered = time.perf_counter()
                    if frame.pts >= first and not lane.offer_waiting(frame, self._interrupted, room):
                        return
                    waited += time.perf_counter() - offered
                took_s = time.perf_counter() - started - waited
                counters.decode_ms = smoothed(counters.decode_ms, 1000 * took_s)
            link.count(counters)
        self._decoded_to_end = True

    def _is_late(self, pts: int) -> bool:
        """Whether a keyframe's time has passed, so that synthesising its frames would only make the next late."""
        return not self.clock.paused and not self._filling and pts / TICKS_PER_S < self.clock.time_s - LATE_S


def _unshown() -> deque[tuple[int, int]]:
    """For the pts and bits of keyframes decoded, not yet shown."""
    return deque(maxlen=4096)


def _has_sound(path: str) -> bool:
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        return bool(container.streams.audio)
