"""The time that pictures are shown by: it runs, pauses, jumps, changes its pace and follows the sound. No Qt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SNAP_S = 0.2
"""Sound further off than this moves the clock at once; nearer, it is drawn over gently, so that motion stays even."""
PULL = 0.1
"""The share of a small difference to the sound that one call of follow() takes away."""


class Clock:
    """Media seconds. Starts paused at 0. Threads may read and set it. now: the wall clock, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._media_s, self._wall_s = 0.0, now()
        self._speed, self._paused = 1.0, True

    @property
    def time_s(self) -> float:
        with self._lock:
            return self._read()

    @time_s.setter
    def time_s(self, media_s: float) -> None:
        with self._lock:
            self._media_s, self._wall_s = media_s, self._now()

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        with self._lock:
            self._media_s, self._wall_s = self._read(), self._now()
            self._paused = paused

    @property
    def speed(self) -> float:
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        if speed <= 0:
            raise ValueError(f"speed is {speed}; it must be above 0")
        with self._lock:
            self._media_s, self._wall_s = self._read(), self._now()
            self._speed = speed

    def follow(self, sound_s: float) -> None:
        """Draw the clock over to what is heard now: the ear notices a gap that the eye does not."""
        with self._lock:
            off = sound_s - self._read()
            self._media_s, self._wall_s = self._read() + (off if abs(off) > SNAP_S else off * PULL), self._now()

    def wall_until(self, media_s: float) -> float:
        """Wall seconds until the clock shows media_s, 0 if it has; infinite while paused before it."""
        with self._lock:
            left = media_s - self._read()
            return max(0.0, left / self._speed) if left <= 0 or not self._paused else float("inf")

    def _read(self) -> float:
        return self._media_s if self._paused else self._media_s + (self._now() - self._wall_s) * self._speed
