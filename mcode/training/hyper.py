"""Trains the hyperprior of the coder `range` on the symbols of a finished manifold, and fits its tables.

Training does not touch the manifold: pixels stay what they were, only bytes become fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..coders.range import (
    DELTA,
    FRACTIONS,
    PRECISION,
    WHOLE,
    WITH_Z,
    Z_MAX,
    Z_MIN,
    HyperConfig,
    Pass,
    RangeModel,
    level_of,
    unzigzag,
)
from ..errors import InputError, McodeError
from ..latents import symbols as symbols_of
from ..manifold import Manifold, rewrite
from ..nets.hyper import SCALE_LOW, SCALE_STEP, Hyper
from .crops import draw_crop, frame_runs, load_pictures
from .deltas import RUN, draw_pairs
from .footage import VIDEOS, find_footage

Report = Callable[[Mapping[str, Any]], None]
GROUPS = (4, 12, 28, 60)
"""Channels 0-3 go in two checkerboard passes, the others in groups that about double."""
LEVELS = 8
"""Kinds of delta of a hyperprior trained from nothing."""
PRIOR_SYMBOLS = 30
"""Weight of the trained distribution against what was counted for a table."""


@dataclass(frozen=True)
class HyperTraining:
    """deltas: pictures of each batch that are coded against an earlier one, the others whole. joined: share of batches coded
    as one slice, the others without neighbours. with_z: share of whole pictures whose hyper-latent is sent, in joined
    batches and in others. The learning rate stays, then falls by a cosine over the last `decay` of the steps."""

    steps: int = 4400
    batch: int = 12
    deltas: int = 4
    learning_rate: float = 3e-3
    warmup: int = 50
    decay: float = 0.6
    clip: float = 0.5
    joined: float = 0.7
    with_z: tuple[float, float] = (0.85, 0.5)
    seed: int = 1


def passes(channels: int) -> tuple[Pass, ...]:
    """The order in which a map of so many channels is coded."""
    edges = [c for c in (0, *GROUPS) if c < channels] + [channels]
    first = edges[1]
    found = [Pass(0, first, 0), Pass(0, first, 1)]
    return (*found, *(Pass(a, b) for a, b in pairwise(edges[1:])))


def draw_latents(model: Manifold, folders: list[Path], crops: int, *, size: int = 256, seed: int = 1) -> np.ndarray:
    """float16 (crops, C, h, w): latents of random crops of the pictures and videos in `folders`."""
    pictures = load_pictures(folders, longest=1600, frames_per_video=8)
    if not pictures:
        raise InputError(f"no pictures or videos in {', '.join(map(str, folders))}")
    rng = np.random.default_rng(seed)
    batches = [np.stack([draw_crop(pictures, size, rng) for _ in range(8)]) for _ in range(-(-crops // 8))]
    return np.concatenate([model.analyse(batch).half().cpu().numpy() for batch in batches])[:crops]


def draw_moves(
    model: Manifold, folders: list[Path], *, size: int = 256, places: int = 4, crops: int = 3, seed: int = 1
) -> np.ndarray:
    """float16 (N, len(RUN), C, h, w): latents of crops that stay in place over frames RUN of the videos, `crops` of them at
    each of `places` places of a video."""
    rng = np.random.default_rng(seed)
    found = []
    for path in (path for folder in folders for path in find_footage(folder, VIDEOS)):
        for frames in frame_runs(path, places, RUN[-1] + 1):
            h, w = frames[0].shape[:2]
            for _ in range(crops):
                side = int(min(h, w, rng.uniform(size, 2 * size)))
                top, left = rng.integers(h - side + 1), rng.integers(w - side + 1)
                parts = [frames[i][top : top + side, left : left + side] for i in RUN]
                how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
                scaled = np.stack([cv2.resize(part, (size, size), interpolation=how) for part in parts])
                found.append(model.analyse(scaled).half().cpu().numpy())
    if not found:
        raise InputError(f"no videos of {RUN[-1] + 1} frames or more in {', '.join(map(str, folders))}")
    return np.stack(found)


def train(
    latents: np.ndarray,
    moves: np.ndarray,
    gain: Tensor,
    config: HyperConfig,
    training: HyperTraining,
    *,
    zero_margin: Tensor | None = None,
    start: Hyper | None = None,
    report: Report | None = None,
    save: Callable[[Hyper], None] | None = None,
) -> Hyper:
    """The hyperprior for symbols at all qualities. gain, zero_margin: (qualities, C), see `latents.symbols`.

    latents: float16 (N, C, h, w), coded whole; moves: (M, T, C, h, w) of the same sizes, frames deltas.RUN[:T] of videos,
    coded as chains of keyframes. start: a network of this config to go on from. Each picture's bits are weighed by the usual
    number at its quality and level, so that low ones count as much as high ones. report: called with numbers every 100 steps;
    save: with the network every 250. Raises McodeError where the loss is not finite.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    pictures, sequences = torch.from_numpy(latents), torch.from_numpy(moves)
    margin = torch.zeros_like(gain) if zero_margin is None else zero_margin
    net = start
    if net is None:
        net = Hyper(config)
        middle = _middles(pictures, gain, margin)
        net.prepare(_spreads(pictures, sequences, gain, margin, middle, rng), middle)
    optimiser = torch.optim.Adam(net.parameters(), lr=training.learning_rate)
    usual = torch.zeros(config.kinds - 1, config.qualities)  # of whole pictures, and of deltas of each level
    pixels = 256 * latents.shape[2] * latents.shape[3]
    whole = training.batch - training.deltas
    for step in range(training.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, training)
        quality = torch.from_numpy(rng.integers(0, config.qualities, training.batch))
        stills = pictures[torch.from_numpy(rng.integers(0, len(pictures), whole))]
        of_stills, of_moves = quality[:whole], quality[whole:]
        before, after = draw_pairs(sequences, gain[of_moves], margin[of_moves], rng)
        symbols = torch.cat([symbols_of(stills, gain[of_stills], margin[of_stills]), after])
        previous = torch.cat([torch.zeros_like(stills, dtype=torch.float32), before])
        joined = bool(rng.random() < training.joined)
        with_z = rng.random(whole) < training.with_z[0 if joined else 1]
        kind = torch.from_numpy(
            np.concatenate([np.where(with_z, WITH_Z, WHOLE), DELTA + _levels(before, after, config.levels)])
        )
        bits, z_bits = net(symbols, previous, quality, kind, joined)
        total, group_of = bits + z_bits, (kind - 1).clamp_min(0)
        for d, q, b in zip(group_of.tolist(), quality.tolist(), total.detach(), strict=True):
            usual[d, q] = 0.98 * usual[d, q] + 0.02 * b if usual[d, q] else b
        loss = (total / usual[group_of, quality]).mean()
        if not torch.isfinite(loss):
            raise McodeError(f"step {step}: the loss is {loss.item()}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip)
        optimiser.step()
        if report is not None and (step + 1) % 100 == 0:
            whole_bpp, *delta_bpp = ([round(b, 4) for b in row] for row in (usual / pixels).tolist())
            report({"step": step + 1, "whole": whole_bpp, "deltas": delta_bpp, "z": z_bits.detach().mean().item() / pixels})
        if save is not None and (step + 1) % 250 == 0:
            save(net)
    return net


def _levels(before: Tensor, after: Tensor, levels: int) -> np.ndarray:
    """Of each of these deltas, (B,)."""
    this, last = (part.flatten(2).numpy() for part in (after, before))
    return np.array([level_of(a, b, levels) for a, b in zip(this, last, strict=True)])


def _middles(pictures: Tensor, gain: Tensor, margin: Tensor) -> Tensor:
    """(qualities, C): medians of symbols, 0 in most manifolds, but not in all that come from elsewhere."""
    every = torch.linspace(0, len(pictures) - 1, min(200, len(pictures))).long()
    found = [symbols_of(pictures[every], g, m).transpose(0, 1).flatten(1) for g, m in zip(gain, margin, strict=True)]
    return torch.stack([symbols.median(dim=1).values for symbols in found])


def _spreads(
    pictures: Tensor, sequences: Tensor, gain: Tensor, margin: Tensor, middle: Tensor, rng: np.random.Generator
) -> Tensor:
    """(2, qualities, C): mean size of symbols around `middle`, and of deltas."""
    sample = pictures[torch.from_numpy(rng.permutation(len(pictures))[:200])]
    each = list(zip(gain, margin, strict=True))
    centres = (c.view(-1, 1, 1) for c in middle)
    whole = [(symbols_of(sample, g, m) - c).abs().mean((0, 2, 3)) for (g, m), c in zip(each, centres, strict=True)]
    pairs = (draw_pairs(sequences, g.expand(100, -1), m.expand(100, -1), rng) for g, m in each)
    delta = [(after - before).abs().mean((0, 2, 3)) for before, after in pairs]
    return torch.stack([torch.stack(whole), torch.stack(delta)])


def learning_rate(step: int, training: HyperTraining) -> float:
    into = max(0.0, (step / training.steps - 1 + training.decay) / training.decay) if training.decay else 0.0
    return (
        training.learning_rate * min(1, (step + 1) / training.warmup) * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * into)))
    )


def fit(
    net: Hyper,
    latents: np.ndarray,
    moves: np.ndarray,
    gain: Tensor,
    *,
    zero_margin: Tensor | None = None,
    limit: int = 200,
) -> RangeModel:
    """The model that codes: the network's integers, with tables counted on symbols of at most `limit` of the latents and as
    many pairs of the moves.

    Each table is the count of what was really met at its index, smoothed by the Laplace distribution it was trained as.
    """
    config, weights = net.config, net.integers()
    margin = torch.zeros_like(gain) if zero_margin is None else zero_margin
    model = RangeModel(config, weights, *_first_tables(net))
    counts = np.zeros(model.tables.shape, np.int64)
    z_counts: np.ndarray = np.zeros(model.z_tables.shape, np.int64)
    rng = np.random.default_rng(0)
    for i in np.linspace(0, len(latents) - 1, min(limit, len(latents))).astype(int):
        picture = torch.from_numpy(latents[i : i + 1])
        befores, afters = draw_pairs(torch.from_numpy(moves[rng.integers(len(moves))][None]), gain, margin, rng)
        for quality, (g, m, before, after) in enumerate(zip(gain, margin, befores, afters, strict=True), 1):
            whole, last, this = (y.numpy().astype(np.int16) for y in (symbols_of(picture, g, m)[0], before, after))
            joined = bool((i + quality) % 2)
            model.count(whole, None, quality, joined, counts, z_counts)
            model.count(this, last, quality, joined, counts, z_counts)
    tables = _frequencies(counts + PRIOR_SYMBOLS * model.tables / (1 << PRECISION), model.sizes)
    z_weights = z_counts + (1 + z_counts.sum(axis=2, keepdims=True) * 0.001) * model.z_tables / (1 << PRECISION)
    z_sizes = np.full(z_counts[..., 0].size, z_counts.shape[2])
    z_tables = _frequencies(z_weights.reshape(-1), z_sizes)
    return RangeModel(config, weights, model.sizes, tables, z_tables.reshape(z_counts.shape))


def _first_tables(net: Hyper) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sizes, tables, z_tables) of the distributions that the network was trained with."""
    sizes, parts = [], []
    for index in range(net.config.scales):
        scale = SCALE_LOW * math.exp(SCALE_STEP * index)
        limit = 4 + math.ceil(16 * scale)  # so wide that noise, of a damaged slice, hardly ever meets an escape
        for fraction in range(FRACTIONS):
            value = unzigzag(np.arange(2 * limit + 1)) - fraction / 4
            upper, lower = _laplace(value + 0.5, scale), _laplace(value - 0.5, scale)
            probability = np.maximum(upper - lower, 0)
            parts.append(np.append(probability, max(1 - probability.sum(), 1e-7)))
            sizes.append(2 * limit + 2)
    with torch.no_grad():
        edge = torch.arange(Z_MIN, Z_MAX + 2).double() - 0.5
        inside = torch.sigmoid((edge - net.z_mean.double()[..., None]) / net.z_log_scale.double().exp()[..., None])
        z = inside.diff(dim=2).numpy()
    z_sizes = np.full(z[..., 0].size, z.shape[2])
    widths = np.array(sizes, np.uint16)
    return widths, _frequencies(np.concatenate(parts), widths), _frequencies(z.reshape(-1), z_sizes).reshape(z.shape)


def _laplace(x: np.ndarray, scale: float) -> np.ndarray:
    return np.where(x < 0, 0.5 * np.exp(np.minimum(x, 0) / scale), 1 - 0.5 * np.exp(-np.maximum(x, 0) / scale))


def _frequencies(weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """uint32: weights in tables of `sizes`, end to end, as frequencies of 1 or more that sum to 2^PRECISION in each."""
    found = []
    for part in np.split(np.maximum(weights, 0.0), np.cumsum(sizes)[:-1].astype(int)):
        free = (1 << PRECISION) - len(part)
        share = np.floor(part / part.sum() * free).astype(np.int64)
        share[np.argmax(share)] += free - share.sum()
        found.append(share + 1)
    return np.concatenate(found).astype(np.uint32)


def attach(manifold: Path, model: RangeModel, output: Path, *, note: str) -> str:
    """Writes the manifold with the hyperprior in it; returns the new id. The networks and code tables stay as they are.

    note: goes into the card as `hyperprior`. An earlier hyperprior is replaced.
    """
    card = {"hyperprior": note}
    return rewrite(manifold, output, hyper=model.config.to_dict(), tensors=model.to_tensors(), card=card)
