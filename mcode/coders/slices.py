"""Slices: which positions of a keyframe's map travel together. Interleaved: a lost slice thins the map evenly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def _owners(slices: int, h: int, w: int) -> np.ndarray:
    """(h, w): the slice of each position, (x + step * y) % slices, so that rows are alike but for a shift.

    step is the number nearest the golden section of `slices` for which neighbours above, beside and (from 4 slices on)
    diagonally belong to other slices.
    """
    wanted = [step for step in range(slices) if {step, step - 1, step + 1}.isdisjoint({0, slices})] or [slices // 2 or 1]
    step = min(wanted, key=lambda step: abs(step - 0.382 * slices))
    owners = (np.arange(w) + step * np.arange(h)[:, None]) % slices
    owners.setflags(write=False)
    return owners


@lru_cache(maxsize=256)
def positions(slice_index: int, slices: int, h: int, w: int) -> np.ndarray:
    """int64: the flat positions (y * w + x) of a slice, ascending; none where there are more slices than positions."""
    if not 0 <= slice_index < slices:
        raise ValueError(f"there is no slice {slice_index} of {slices}")
    found = np.flatnonzero(_owners(slices, h, w) == slice_index)
    found.setflags(write=False)
    return found


def split(symbols: np.ndarray, slices: int) -> list[np.ndarray]:
    """The slices of int16 (C, h, w): (C, P_s) each."""
    channels, h, w = symbols.shape
    flat = symbols.reshape(channels, h * w)
    return [flat[:, positions(s, slices, h, w)] for s in range(slices)]


def join(parts: Sequence[np.ndarray], h: int, w: int) -> np.ndarray:
    """int16 (C, h, w) from all its slices: the inverse of `split`."""
    flat = np.empty((len(parts[0]), h * w), np.int16)
    for s, part in enumerate(parts):
        flat[:, positions(s, len(parts), h, w)] = part
    return flat.reshape(-1, h, w)
