"""What is counted and measured while pictures play: rates over the last seconds, picture quality, history. No Qt."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

WINDOW_S = 3.0
"""Rates are means over this long: about what the eye calls now, and several keyframes long."""
HISTORY_S = 60.0
SAMPLE_S = 0.25


class RateMeter:
    """A sum of amounts over the last `window_s`, per second. Memory: one pair for each amount within the window.

    now: a clock, the wall's or that of the pictures: then the rate is per second of them, at any speed and while paused.
    """

    def __init__(self, window_s: float = WINDOW_S, now: Callable[[], float] = time.monotonic) -> None:
        self.window_s, self._now = window_s, now
        self._amounts: deque[tuple[float, float]] = deque()
        self._sum, self._lock = 0.0, threading.Lock()
        self._since: float | None = None
        self._stands = 0.0

    def add(self, amount: float = 1.0, at: float | None = None) -> None:
        """at: when, by the same clock, if not now; never before an earlier amount."""
        with self._lock:
            at = self._now() if at is None else at
            self._since = at if self._since is None else self._since
            self._amounts.append((at, amount))
            self._sum += amount
            self._forget(at)

    @property
    def per_s(self) -> float:
        """0 before the first amount; in the first window the mean since the first one, over at least half a second."""
        with self._lock:
            return self._read()

    def clear(self) -> None:
        """Begin anew, where the clock jumps. The rate stands until the next amount."""
        with self._lock:
            self._stands = self._read()
            self._amounts.clear()
            self._sum, self._since = 0.0, None

    def _read(self) -> float:
        at = self._now()
        self._forget(at)
        if self._since is None:
            return self._stands
        return self._sum / min(self.window_s, max(0.5, at - self._since))

    def _forget(self, at: float) -> None:
        while self._amounts and self._amounts[0][0] < at - self.window_s:
            self._sum -= self._amounts.popleft()[1]
        if not self._amounts:
            self._sum = 0.0


class LaneCounters:
    """One lane's figures. Each is written by one thread and read by the window."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.bits = RateMeter(now=now)
        self.decoded = RateMeter(1.5, now)
        self.shown = RateMeter(1.5, now)
        self.dropped = 0  # frames decoded, but too late to be shown
        self.packets_sent = self.packets_lost = self.packets_damaged = 0
        self.decode_ms = self.network_ms = self.wait_ms = 0.0
        self.psnr_db = self.ssim = math.nan

    @property
    def rate_kbps(self) -> float:
        return self.bits.per_s / 1000


def smoothed(before: float, new: float, share: float = 0.1) -> float:
    """An exponential mean; the first value counts whole."""
    return new if before == 0 else before + share * (new - before)


@dataclass
class Series:
    """One curve of a strip chart: values at the times of its History; NaN where nothing was known."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=round(HISTORY_S / SAMPLE_S)))


class History:
    """The last minute of named values, for the charts."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._count = 0

    def add(self, **values: float) -> None:
        for name in values.keys() - self._series.keys():
            self._series[name] = series = Series()
            series.values.extend([math.nan] * min(self._count, series.values.maxlen or 0))
        for name, series in self._series.items():
            series.values.append(values.get(name, math.nan))
        self._count += 1

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(seconds before now, negative; values), both float (K,)."""
        values = np.array(self._series[name].values if name in self._series else (), dtype=float)
        return (np.arange(len(values)) - len(values) + 1) * SAMPLE_S, values

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)
