"""The deltas that an encoder of coordinates sends: what code tables are fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..codec import DEAD_ZONE

LAGS = (1, 2, 4, 8, 16)
"""Keyframe intervals, in frames."""
_PHASES = 8
"""At most so many first keyframes of each clip, at each interval."""


def keyframe_deltas(
    scaled: np.ndarray, clips: Sequence[int], *, low: int = -32767, high: int = 32767, dead_zone: float = DEAD_ZONE
) -> list[np.ndarray]:
    """int16 (M, n, 1) for each clip and interval, with symbols held within the dead zone as the encoder does.

    scaled: coordinates in quantiser steps, (frames, M), clip after clip; clips: frames of each; low, high: of the symbols.
    """
    found, start = [], 0
    for frames in clips:
        clip = scaled[start : start + frames]
        start += frames
        for lag in LAGS:
            deltas = [d for phase in range(min(lag, _PHASES)) for d in _chain(clip[phase::lag], low, high, dead_zone)]
            if deltas:
                found.append(np.stack(deltas, 1)[:, :, None])
    return found


def _chain(keyframes: np.ndarray, low: int, high: int, dead_zone: float) -> Iterator[np.ndarray]:
    """Deltas (M,) of one stream's keyframes (n, M)."""
    before: np.ndarray | None = None
    for wanted in keyframes:
        symbols = np.clip(np.rint(wanted), low, high)
        if before is not None:
            symbols = np.where(np.abs(wanted - before) < dead_zone, before, symbols)
            yield (symbols - before).astype(np.int16)
        before = symbols
