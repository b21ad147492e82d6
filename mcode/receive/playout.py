"""When what came is shown and heard: one clock for all lanes of a stream, and sound that knows it."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np


class PlayoutClock:
    """When a moment of the sender's is shown here: the same for all lanes, so that they and the sound run together.

    The delay is what nine tenths of the slowest lane's pictures of the last four seconds needed and a little more; it
    rises at once and falls by a tenth of real time. What comes more rarely, as bundles of keyframes may, is remembered for
    twice the time between, 20 seconds at most. Sans-IO; the methods may be called from several threads.
    """

    MARGIN_S = 0.008
    WINDOW_S, LONGEST_WINDOW_S = 4.0, 20.0
    SHARE = 0.9

    def __init__(self) -> None:
        self._needed: dict[str, deque[tuple[float, float]]] = {}  # until when it is remembered, and what was needed
        self._latest_s: dict[str, float] = {}
        self._offset_s: float | None = None
        self._moved_s = 0.0
        self._lock = threading.Lock()
        self.shifts_s: dict[str, float] = {}

    def observe(self, lane: str, sent_unix_s: float, ready_s: float) -> None:
        """A picture or sound of sent_unix_s was ready at ready_s (monotonic)."""
        with self._lock:
            gap_s = ready_s - self._latest_s.get(lane, ready_s)
            self._latest_s[lane] = ready_s
            until_s = ready_s + min(max(self.WINDOW_S, 2 * gap_s), self.LONGEST_WINDOW_S)
            self._needed.setdefault(lane, deque()).append((until_s, ready_s - sent_unix_s))
            for name, window in self._needed.items():
                if any(until_s < ready_s for until_s, _ in window):
                    self._needed[name] = deque(entry for entry in window if entry[0] >= ready_s)
            wanted = self._wanted_s()
            before = self._offset_s
            if before is None or wanted >= before or before - wanted > 0.5:
                self._offset_s = wanted
            else:
                self._offset_s = max(wanted, before - 0.1 * max(0.0, ready_s - self._moved_s))
            self._moved_s = ready_s

    def shift(self, lane: str, by_s: float) -> None:
        """The sender's times of a lane turn out to be later by this much than was thought; shifts_s has the sums. What was seen
        of it so far needed so much less."""
        with self._lock:
            self.shifts_s[lane] = self.shifts_s.get(lane, 0.0) + by_s
            if window := self._needed.get(lane):
                self._needed[lane] = deque((until_s, need - by_s) for until_s, need in window)
                self._offset_s = self._wanted_s()

    def _wanted_s(self) -> float:
        return max(self._usual(window) for window in self._needed.values() if window) + self.MARGIN_S

    def _usual(self, window: deque[tuple[float, float]]) -> float:
        ranked = sorted(need for _, need in window)
        return ranked[int(self.SHARE * (len(ranked) - 1))]

    def restart(self) -> None:
        """Another sender: its clock may be another."""
        with self._lock:
            self._needed, self._latest_s, self._offset_s = {}, {}, None

    def due_s(self, sent_unix_s: float) -> float | None:
        return None if self._offset_s is None else sent_unix_s + self._offset_s


@dataclass(frozen=True)
class AudioChunk:
    """samples: int16 (n, channels), 48 kHz. sent_unix_s: the sender's time of the first. pts: its RTP timestamp in 1/48,000 s,
    unwrapped."""

    samples: np.ndarray
    sent_unix_s: float
    clock: PlayoutClock
    pts: int = 0
    shift_s: float = 0.0  # of the clock's for sound, when it came

    @property
    def due_s(self) -> float:
        """When the first is to be heard, on time.monotonic's clock. It moves with the clock, as the pictures' times do; long
        past where the sender it came from is gone."""
        due = self.clock.due_s(self.sent_unix_s + self.clock.shifts_s.get("audio", 0.0) - self.shift_s)
        return -math.inf if due is None else due
