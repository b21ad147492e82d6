"""Repair of symbols that bit errors hit, for the coder `fixed`: the likeliest symbols, given what came and what came
before.

Coordinates move little from one keyframe to the next, and a flipped high bit moves one far. So of the symbol as it
came and those one bit away from it the likeliest is taken: a flip costs log((1 - p) / p), a step away from the
keyframe before costs in proportion (a Laplace distribution, its spread learned from the stream for each channel).
This is soft-decision source decoding (Fingscheidt and Vary 2001) with one candidate per bit. Sans-IO, numpy only.
"""

from __future__ import annotations

import math

import numpy as np

from mcode.coders import CodeTables, fixed

_FLIP_WEIGHT = 0.8
"""Chosen on three clips of grid_s1/dev (bgan7a, pbac1s, swbv5a; linear, M = 50, N = 4), so those are no test of it.
At bit errors 1e-2, weight 1: 0.67, 0.38, 0.31 dB below clean. 0.8: 0.57 dB on bgan7a, the others not measured.
Without the growing doubt below, repaired symbols could stay where they were: pbac1s lost 1.7 dB at weight 1."""
_LEARNING = 0.15
_LEAST_SPREAD = 0.7


class Repair:
    """One slice's history: `slice` takes its bytes of each keyframe and gives them back, repaired where they are
    damaged."""

    def __init__(self, tables: CodeTables, positions: int) -> None:
        self.tables, self.positions = tables, positions
        self.repaired = 0
        self._previous: np.ndarray | None = None
        widths = tables.bits.astype(np.int64)[:, None]
        self._widths, self._half = widths, 1 << widths >> 1
        self._centres = tables.centres.astype(np.int64)[:, None]
        self._spread = np.maximum(self._half / 8.0, 1.0)  # mean step from keyframe to keyframe, (C, 1)
        self._doubt = np.zeros((len(widths), positions))  # keyframes since each symbol came undamaged
        self._seen = self._damaged = 0

    def lost(self) -> None:
        """The slice did not come: what was known of it is older by a keyframe."""
        self._doubt += 1

    def slice(self, data: bytes, damaged: bool) -> bytes:
        symbols = fixed.decode(data, self.positions, self.tables).astype(np.int64)
        self._seen += 1
        self._damaged += damaged
        previous, self._previous = self._previous, symbols
        if previous is None:
            return data
        likeliest = self._likeliest(symbols, previous) if damaged else symbols
        changed = likeliest != symbols
        self._doubt = np.where(changed, self._doubt + 1, 0.0)
        step = np.abs(likeliest - previous).mean(axis=1, keepdims=True)
        self._spread = np.maximum((1 - _LEARNING) * self._spread + _LEARNING * step, _LEAST_SPREAD)
        self._previous = likeliest
        if not changed.any():
            return data
        self.repaired += int(changed.sum())
        return fixed.encode(likeliest.astype(np.int16), self.tables)

    @property
    def bit_error_rate(self) -> float:
        """As the share of damaged slices tells it; a low estimate where nearly all are."""
        share = min((self._damaged + 0.5) / (self._seen + 1), 0.995)
        bits = max(1, int(self._widths.sum()) * self.positions)
        return min(0.2, -math.log1p(-share) / bits)

    def _likeliest(self, symbols: np.ndarray, previous: np.ndarray) -> np.ndarray:
        rate = self.bit_error_rate
        flip = _FLIP_WEIGHT * math.log((1 - rate) / rate)
        spread = self._spread * (1 + self._doubt)
        half = self._half
        residual = symbols - self._centres
        word = np.where(residual < 0, half | ~residual, residual)  # the bits as sent, see fixed.py
        best, best_cost = symbols, np.abs(symbols - previous) / spread
        for bit in range(int(self._widths.max(initial=0))):
            other = word ^ 1 << bit
            candidate = np.where(other & half, ~(other & (half - 1)), other) + self._centres
            cost = np.where(bit < self._widths, np.abs(candidate - previous) / spread + flip, np.inf)
            better = cost < best_cost
            best, best_cost = np.where(better, candidate, best), np.where(better, cost, best_cost)
        return best
