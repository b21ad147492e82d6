"""A lane: the frames of one codec on their way to the screen, the newest one shown, and its counters. No Qt.

A worker thread offers frames; the window's tick shows those that are due. Only the newest due frame is kept, so a
window that is slow skips frames and never lags.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from mcode.frame import TICKS_PER_S, Frame

from .counters import LaneCounters

MOST_WAITING_BYTES = 96 << 20
MOST_WAITING = 256
WAITING = "Waiting for a picture"


class Lane:
    """name: "mcode", "baseline" or "original"; title: what the window calls it. Threads offer, one thread shows."""

    def __init__(self, name: str, title: str) -> None:
        self.name, self.title = name, title
        self.waiting = WAITING  # what stands where its first picture will be: also why none comes
        self.note = ""  # a word on its rate, for the caption
        self.rate_text: str | None = None  # for the caption in place of what the counters say, which of a still is nothing
        self.has_original = True  # to measure against; where it is elsewhere, quality is unknown
        self.counters = LaneCounters()
        self.newest: Frame | None = None
        self.serial = 0  # counts the frames shown
        self.recent: deque[tuple[int, int]] = deque(maxlen=256)  # of the frames shown one after another: pts, dropped so far
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()

    def offer(self, frame: Frame) -> None:
        """A frame to show when its time comes. A lane that is full loses its oldest waiting frame."""
        with self._changed:
            while self._is_full(frame):
                self._waiting.popleft()
                self.counters.dropped += 1
            self._put(frame)

    def offer_waiting(self, frame: Frame, give_up: Callable[[], bool], room: int = MOST_WAITING) -> bool:
        """As offer, but waits while `room` frames wait, until give_up(); returns whether the frame was taken."""
        with self._changed:
            while len(self._waiting) >= room or self._is_full(frame):
                if give_up():
                    return False
                self._changed.wait(0.1)
            if give_up():
                return False
            self._put(frame)
            return True

    def show(self, until_s: float) -> bool:
        """Make the last frame due by until_s the newest; whether there was one."""
        until = round(until_s * TICKS_PER_S)
        with self._changed:
            due: list[Frame] = []
            while self._waiting and self._waiting[0].pts <= until:
                due.append(self._waiting.popleft())
            if not due:
                return False
            self.newest = due[-1]
            self._changed.notify_all()
        self.counters.dropped += len(due) - 1
        self.counters.shown.add()
        self.serial += 1
        self.recent.append((due[-1].pts, self.counters.dropped))
        return True

    def present(self, frame: Frame) -> None:
        """Make it the newest at once, for frames that others have timed."""
        self.newest = frame
        self.counters.shown.add()
        self.serial += 1

    def next_s(self) -> float | None:
        """The time of the first waiting frame."""
        with self._changed:
            return self._waiting[0].pts_s if self._waiting else None

    def previous_s(self, at: int | None = None) -> float | None:
        """The time of the frame shown before the newest, or before the one of pts `at`."""
        at = self.newest.pts if at is None and self.newest is not None else at
        before = [pts for pts, _ in self.recent if at is not None and pts < at]
        return max(before) / TICKS_PER_S if before else None

    def skipped_before(self, at: int) -> bool:
        """Whether frames were dropped between the one of pts `at`, or that one itself, and the one shown before it."""
        first: dict[int, int] = {}
        for pts, dropped in self.recent:
            first.setdefault(pts, dropped)  # as it was when it was played, not when it was gone back to
        before = max((pts for pts in first if pts < at), default=at)
        return first.get(at) != first.get(before)

    def clear(self, shown: bool = True) -> None:
        """Forget the frames that wait, and which were shown; the newest one stays on the screen."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        if shown:
            self.recent.clear()

    def _put(self, frame: Frame) -> None:
        self._waiting.append(frame)
        self.counters.decoded.add()

    def _is_full(self, frame: Frame) -> bool:
        most = min(MOST_WAITING, max(4, MOST_WAITING_BYTES // max(1, frame.rgb.nbytes)))
        return len(self._waiting) >= most
