"""The deltas that an encoder sends: what code tables and hyperpriors are fitted to.

Each keyframe's symbols are held within the dead zone around those of the keyframe before, as `codec.Encoder` holds them;
so chains of keyframes are followed, since the difference of two latents that were rounded by themselves is another thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..codec import DEAD_ZONE
from ..coders import CodeTables
from ..latents import hold
from ..latents import symbols as symbols_of

LAGS = (1, 2, 4, 8, 16)
"""Keyframe intervals, in frames."""
RUN = (0, 1, 2, 4, 8, 12, 16, 24, 32)
"""Frames of a run of video whose latents are kept: the first ones of chains at all LAGS."""
_PHASES = 8
"""At most so many first keyframes of each clip, at each interval."""
MOST_FITTED = 10_000
"""Frames whose coordinates code tables are fitted to."""
MOST_CLIPS = 60
"""Clips whose deltas they are fitted to."""


def first_clips(clips: Sequence[int]) -> list[int]:
    """Frames of the first of these clips, of at most MOST_FITTED frames together, but of one clip at least."""
    found, total = [], 0
    for clip in clips:
        if total and total + clip > MOST_FITTED:
            break
        found.append(clip)
        total += clip
    return found


def coordinate_tables(
    scaled: np.ndarray, clips: Sequence[int], *, centre: int | None = None, bits: int | None = None
) -> CodeTables:
    """scaled: coordinates in quantiser steps, (frames, M), clip after clip. centre, bits: of each with the coder `fixed`,
    where its levels are known: there are 2^bits, and centre is the first of their upper half."""
    low, high = -32767, 32767
    if centre is not None and bits is not None:
        low, high = centre - 2 ** (bits - 1), centre + 2 ** (bits - 1) - 1
    whole = np.clip(np.rint(scaled), low, high).astype(np.int16).T[:, :, None]
    deltas = keyframe_deltas(scaled, clips[:MOST_CLIPS], low=low, high=high) if max(clips) > 1 else []
    return CodeTables.fit([whole], deltas, centre=centre, bits=bits)


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


def chains(run: Sequence[int] = RUN, lags: Sequence[int] = LAGS) -> list[list[int]]:
    """Places in `run`, rising frames from 0, of the keyframes at each interval that it holds two or more of."""
    found = []
    for lag in lags:
        places = [run.index(0)]
        while len(places) * lag in run:
            places.append(run.index(len(places) * lag))
        if len(places) > 1:
            found.append(places)
    return found


def chained(run: Tensor, places: Sequence[int], gain: Tensor, margin: Tensor | None) -> Iterator[Tensor]:
    """Symbols (C, h, w) of the keyframes at `places` of a run, latents (T, C, h, w), one after the other. gain, margin: (C,),
    see `latents.symbols`."""
    before: Tensor | None = None
    for place in places:
        latent = run[place].float()
        symbols = symbols_of(latent, gain, margin)
        if before is not None:
            symbols = hold(latent * gain[:, None, None], before, symbols, DEAD_ZONE)
        before = symbols
        yield symbols


def draw_pairs(runs: Tensor, gain: Tensor, margin: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Symbols of two keyframes that follow each other, both (B, C, h, w), somewhere in a chain of a random run and interval.

    runs: latents (N, T, C, h, w) of frames RUN[:T]. gain, margin: (B, C), of each pair.
    """
    every, before, after = chains(RUN[: runs.shape[1]]), [], []
    for g, m in zip(gain, margin, strict=True):
        places = every[rng.integers(len(every))]
        *_, first, second = chained(runs[rng.integers(len(runs))], places[: rng.integers(2, len(places) + 1)], g, m)
        before.append(first)
        after.append(second)
    return torch.stack(before), torch.stack(after)
