"""A tiny hyperprior for tests: seeded integers, so that its streams can be frozen. Not a good one."""

from __future__ import annotations

import numpy as np

from mcode.coders.range import FRACTIONS, PRECISION, Z_VALUES, HyperConfig, Pass, RangeModel

CONFIG = HyperConfig(
    channels=6,
    qualities=2,
    passes=(Pass(0, 2, 0), Pass(0, 2, 1), Pass(2, 3), Pass(3, 6)),
    hidden=8,
    wide=4,
    latents=2,
    scales=12,
    signed=2,
    mean_limit=63,
)


def tiny(seed: int = 1, config: HyperConfig = CONFIG) -> RangeModel:
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in config.shapes().items():
        if "bias" in name or name == "start":
            weights[name] = rng.integers(-400, 1600, shape).astype(np.int32)
        else:
            weights[name] = rng.integers(-24, 25, shape).astype(np.int8)
    sizes = np.repeat(2 * np.arange(1, config.scales + 1) + 2, FRACTIONS).astype(np.uint16)
    rows = [1 << 20 >> np.minimum(np.arange(n) * 8 // (1 + i // FRACTIONS), 20) for i, n in enumerate(sizes)]
    z_row = frequencies(1 << 12 >> np.abs(np.arange(Z_VALUES) - 8))
    z_tables = np.broadcast_to(z_row, (config.qualities, config.latents, Z_VALUES)).copy()
    return RangeModel(config, weights, sizes, np.concatenate([frequencies(row) for row in rows]), z_tables)


def frequencies(weights: np.ndarray) -> np.ndarray:
    """In integers alone."""
    free = (1 << PRECISION) - len(weights)
    found = weights.astype(np.int64) * free // int(weights.sum())
    found[0] += free - found.sum()
    return (found + 1).astype(np.uint32)


def sample(seed: int, h: int, w: int, channels: int = 6) -> np.ndarray:
    """int16 (channels, h, w): smaller ones behind larger ones, as in a manifold, and one outlier."""
    rng = np.random.default_rng(seed)
    spread = 8 / (1 + np.arange(channels))
    found = np.trunc((rng.random((channels, h, w)) - 0.5) * 2 * spread[:, None, None]).astype(np.int16)
    found[-1, -1, -1] = 3000
    return found
