"""A picture lane for a window: two threads, one that decodes and one that shows each frame when it is due."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mcode.frame import Frame
from mcode.lanes import LaneCounters, McodeLane
from mcode.packet import StreamHeader
from mcode.receive.link import Link
from mcode.receive.playout import PlayoutClock
from mcode.rtp.payload import MOST_BUNDLED, Received

_MOST_UNITS = 2 * MOST_BUNDLED
_MOST_READY = 64
_MOST_READY_BYTES = 96 << 20
_LATE_S = 0.02
_LONGEST_WAIT_S = 10.0
"""Behind the frame before."""


class Delay(NamedTuple):
    """From capture to screen, in ms: frames in between waiting for their keyframe, the way here, decoding."""

    wait_ms: float
    network_ms: float
    decode_ms: float


class LaneView:
    """What a window sees of a lane: the newest frame due, and counters. Held are the frames up to the newest
    keyframe, which are not due yet; nothing waits for a window. One thread decodes, another shows each frame when it is
    due."""

    def __init__(self, link: Link, clock: PlayoutClock) -> None:
        self.name = link.name
        self._link, self._clock = link, clock
        self._units: queue.Queue[tuple[Any, float]] = queue.Queue(maxsize=_MOST_UNITS)  # and _held_s when they came
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._ready: deque[tuple[Frame, float]] = deque()  # decoded, not yet due; the latest time to show it
        self._changed = threading.Condition()
        self._sent_unix_s: float | None = None
        self.frames = self.shown = self.skipped = 0
        self.delay = Delay(0.0, 0.0, 0.0)
        self._bound_s = -math.inf  # when the last of them is to be shown
        self._bundle: tuple[int, float, float] | None = None  # the latest bundle: its number, arrival, and what it needed most
        self._first_pts = 0  # of the frames that came in the latest packet
        self._held_s = 0.0  # that decoding waited for room among those ready
        self.error: Exception | None = None
        self.stream: StreamHeader | None = None
        self._threads = [
            threading.Thread(target=self._run_quietly, args=(self._decode_all,), name=f"mcode-{link.name}", daemon=True),
            threading.Thread(target=self._run_quietly, args=(self._show_all,), name=f"mcode-{link.name}-show", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def frame(self) -> Frame | None:
        """The newest frame due, None before the first; the last one stays when nothing comes. pts: RTP ticks."""
        return self._frame

    @property
    def newest(self) -> tuple[Frame, float | None, int] | None:
        """(frame, the sender's Unix time of it, count of frames shown), read together."""
        with self._lock:
            return None if self._frame is None else (self._frame, self._sent_unix_s, self.shown)

    @property
    def codec(self) -> str:
        lane = self._link.lane
        return "mcode" if isinstance(lane, McodeLane) else getattr(lane, "codec", None) or "h264"

    def counters(self) -> LaneCounters:
        return self._link.counters(time.monotonic(), frames=self.frames, shown=self.shown, skipped=self.skipped)

    def put(self, unit: Any) -> None:
        if self._units.full():  # far behind: what is oldest gives way, and what refers to it is broken
            with contextlib.suppress(queue.Empty):
                self._units.get_nowait()
            self._link.lane.note_gap()
            self.skipped += 1
        self._units.put_nowait((unit, self._held_s))

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5)

    def _run_quietly(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            self.error = error

    def _decode_all(self) -> None:
        """Decodes what comes as soon as it comes."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._decode(*self._units.get(timeout=0.1))

    def _show_all(self) -> None:
        """Shows each frame when it is due; of several the last."""
        while not self._stop.is_set():
            shown = None
            with self._changed:
                wait_s = self._ready_s() - time.monotonic() if self._ready else 0.1
                if wait_s > 0:
                    self._changed.wait(min(wait_s, 0.1))  # no longer: when it is due may change
                while self._ready and self._ready_s() <= time.monotonic():
                    self.skipped += shown is not None
                    shown, _ = self._ready.popleft()
                if shown is not None:
                    self._changed.notify_all()
            if shown is not None:
                with self._lock:
                    self._frame, self._sent_unix_s, self.shown = (
                        shown,
                        self._link.sent_unix_s(shown.pts),
                        self.shown + 1,
                    )

    def _due_s(self, pts: int) -> float:
        sent = self._link.sent_unix_s(pts)
        due = self._clock.due_s(sent) if sent is not None else None
        return time.monotonic() if due is None else due

    def _ready_s(self) -> float:
        """When the next of those that wait is to be shown: one of a wild time holds up none behind it."""
        return min(min(self._due_s(frame.pts), latest_s) for frame, latest_s in self._ready)

    def _wanted(self, pts: int) -> bool:
        """Whether a frame not yet synthesised can still be shown."""
        in_time = self._frame is None or self._due_s(pts) >= time.monotonic() - _LATE_S
        self.skipped += not in_time
        return in_time

    def _hold(self, frame: Frame) -> None:
        """Until it is due. Where many wait already, this one waits, too."""
        with self._changed:
            began_s = time.monotonic()
            while len(self._ready) >= _most_ready(frame) and not self._stop.is_set():
                self._changed.wait(0.1)
            self._held_s += time.monotonic() - began_s
            latest_s = max(time.monotonic(), self._bound_s) + _LONGEST_WAIT_S
            due_s = self._due_s(frame.pts)
            if due_s <= latest_s:  # one of a wild time moves no bound
                self._bound_s = due_s
            self._ready.append((frame, latest_s))
            self.frames += 1
            self._changed.notify_all()

    def _decode(self, unit: Any, held_s: float) -> None:
        link, lane = self._link, self._link.lane
        is_mcode = isinstance(unit, Received)
        last, steps = (unit.packet.pts, unit.packet.steps) if is_mcode else (unit.pts, 1)
        self.stream = unit.stream if is_mcode else None
        first, needed_s = last, -math.inf

        def wanted(pts: int) -> bool:
            nonlocal first, needed_s
            first = min(first, pts)
            # Left out or not, it could not have been here before its keyframe: a clock that only saw what was made would
            # settle on keyframes alone.
            needed_s = max(needed_s, unit.arrival_s - pts / link.clock_hz)
            return self._wanted(pts)

        frames = lane.decode(unit, wanted) if is_mcode else lane.decode(unit)
        self.error = lane.error
        if lane.error is not None:
            return
        sent = link.sent_unix_s(last)
        due = self._clock.due_s(sent) if sent is not None else None
        bundle = unit.bundle if is_mcode else None
        if due is not None and time.monotonic() - due > 0.25 and not self._units.empty() and self._frame is not None:
            self.skipped += steps  # too late to be seen: decoded, as the next one needs it, but not synthesised
            if bundle is not None:  # all of them will come so late, the last one excepted
                self._note(unit, bundle, last, unit.arrival_s - last / link.clock_hz)
            return
        for count, frame in enumerate(frames):
            first = min(first, frame.pts)
            needed_s = max(needed_s, time.monotonic() - frame.pts / link.clock_hz)
            self._hold(frame)
            if count + 1 >= _most_ready(frame) or self._stop.is_set():
                break
        if self._bundle is None or self._bundle[:2] != (bundle, unit.arrival_s):
            self._first_pts = first
        self._note(unit, bundle, last, needed_s)
        if sent is not None:
            ready_s = time.monotonic()
            self.delay = Delay(
                wait_ms=(last - self._first_pts) * 1000 / link.clock_hz,
                network_ms=(unit.arrival_s + time.time() - ready_s - sent) * 1000,
                decode_ms=max(0.0, ready_s - unit.arrival_s - (self._held_s - held_s)) * 1000,
            )
        for frame in frames:
            self._hold(frame)
            if self._stop.is_set():
                return

    def _note(self, unit: Any, bundle: int | None, last: int, needed_s: float) -> None:
        """What a keyframe's frames needed from the sender's picture until they were here. last: pts of the keyframe. needed_s:
        by time.monotonic, from 0 of their pts."""
        sent = self._link.sent_unix_s(last)
        if unit.after_loss or math.isinf(needed_s) or sent is None:
            return
        hz = self._link.clock_hz
        if bundle is not None:
            if self._bundle is not None and self._bundle[:2] == (bundle, unit.arrival_s):
                needed_s = max(needed_s, self._bundle[2])  # of the one before, which had to wait longer
            self._bundle = bundle, unit.arrival_s, needed_s
        ready_s = time.monotonic()
        self._clock.observe(self.name, ready_s - needed_s + sent - last / hz, ready_s)


def _most_ready(frame: Frame) -> int:
    """Frames of that size which may wait until they are due."""
    return min(_MOST_READY, max(4, _MOST_READY_BYTES // frame.rgb.nbytes))
