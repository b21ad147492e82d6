"""Manifold files of the full-size `hific` networks, trained here or elsewhere: what they send, and code tables fitted to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import manifold
from ..coders import CodeTables
from ..coders.tables import entropy_bits
from ..config import to_dict
from ..latents import quantise
from ..nets import STRIDE
from ..nets.paper import MeanHific, reflected
from ..testclip import render_frames
from .deltas import chained

CLIP_SIZE, CLIP_SEEDS = (384, 256), 3
_CLIP_FPS, _CLIP_FRAMES = 6, 3  # deltas over 1/6 and 1/3 s: 4 and 8 frames of a usual video
_CHAINS = ([0, 1, 2], [0, 2])
_LEAST_Z_BITS = 4


@dataclass(frozen=True)
class Fitted:
    """bits_per_pixel: of the whole symbols that the tables were fitted to, by their entropy."""

    tables: CodeTables
    bits_per_pixel: float


def fit_tables(
    net: MeanHific, pictures: Sequence[np.ndarray], progress: Callable[[int, int | None], None] | None = None
) -> Fitted:
    """Tables for whole symbols of pictures, uint8 (H, W, 3), and for deltas of rendered scenes, as the encoder sends them.

    Without pictures, whole symbols are those of the scenes. z gets a bit more than the coder `fixed` would need here: the mean
    hangs on it.
    """
    scenes = [(name, seed) for name in ("arms", "face", "pan") for seed in range(CLIP_SEEDS)]
    whole, deltas, pixels = [], [], 0
    total = len(pictures) + len(scenes)
    ones = torch.ones(net.sent_channels)
    for index, rgb in enumerate(pictures, start=1):
        whole.append(quantise(_sent(net, rgb), ones))
        pixels += rgb.shape[0] * rgb.shape[1]
        if progress:
            progress(index, total)
    for index, (scene, seed) in enumerate(scenes, start=len(pictures) + 1):
        frames = render_frames(scene, _CLIP_FRAMES / _CLIP_FPS, _CLIP_FPS, CLIP_SIZE, seed)
        run = torch.stack([_sent(net, frame.rgb) for frame in frames])
        for places in _CHAINS:
            *_, before, after = chained(run, places, ones, None)
            deltas.append((after - before).to(torch.int16).numpy())
        if not pictures:
            whole.append(quantise(run[0], ones))
            pixels += CLIP_SIZE[0] * CLIP_SIZE[1]
        if progress:
            progress(index, total)
    tables = CodeTables.fit(whole, deltas)
    bits = tables.bits.copy()
    of_z = bits[net.config.channels :]
    of_z[:] = np.clip(of_z + 1, _LEAST_Z_BITS, 16)
    return Fitted(replace(tables, bits=bits), entropy_bits(whole) * len(whole) / pixels)


@torch.inference_mode()
def _sent(net: MeanHific, rgb: np.ndarray) -> Tensor:
    """(C + Z, h, w), as `Manifold.analyse` gives it but for the limits of z."""
    x = torch.from_numpy(np.ascontiguousarray(rgb[None])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return net.sent(net.analysis(reflected(x, STRIDE)))[0]


def save(
    path: str | os.PathLike[str],
    net: MeanHific,
    weights: Mapping[str, Tensor],
    tables: CodeTables,
    *,
    name: str,
    card: Mapping[str, Any],
) -> str:
    """Writes the manifold file; returns its id. weights: of `net`, in the precision in which they are kept."""
    ones = np.ones((net.config.qualities, net.sent_channels), np.float32)
    return manifold.save(
        path,
        kind="hific",
        name=name,
        config={
            "frame_size": None,
            "stride": STRIDE,
            "qualities": net.config.qualities,
            "quantiser": "mean",
            "network": to_dict(net.config),
        },
        tables=[tables] * net.config.qualities,
        tensors={k: v.contiguous().numpy() for k, v in weights.items()} | {"gain": ones, "inverse": ones},
        card=card,
    )
