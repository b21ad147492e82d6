"""Tiny `hific` manifolds with random weights, of both families, for tests. Pictures come out as noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mcode import manifold
from mcode.coders import CodeTables
from mcode.coders.range import HyperConfig, Pass
from mcode.nets.hific import CompactConfig, CompactHific
from mcode.nets.paper import MeanHific, PaperConfig
from mcode.training.hyper import attach
from mcode.training.paper import save

from .range_model import sample, tiny


def small_manifolds(folder: Path) -> tuple[Path, Path]:
    """(manifold without, manifold with a hyperprior): six channels, two qualities."""
    torch.manual_seed(3)
    config = CompactConfig(6, (8, 8, 8), (0, 0, 0), (8, 8, 8, 8), (0, 0, 0, 0), (0, 2, 6), 2)
    net = CompactHific(config).net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tensors = {k: v.numpy() for k, v in net.state_dict().items()}
    tensors |= {"gain": np.full((2, 6), 9, np.float32), "inverse": np.full((2, 6), 1 / 9, np.float32)}
    tables = [CodeTables.fit([sample(i, 8, 8) for i in range(4)])] * 2
    values = {
        "frame_size": None,
        "stride": 16,
        "qualities": 2,
        "network": {
            "family": "compact",
            "channels": 6,
            "analysis_widths": [8, 8, 8],
            "analysis_blocks": [0, 0, 0],
            "synthesis_widths": [8, 8, 8, 8],
            "synthesis_blocks": [0, 0, 0, 0],
            "stages": [0, 2, 6],
            "qualities": 2,
        },
    }
    plain, dense = folder / "plain.safetensors", folder / "dense.safetensors"
    manifold.save(plain, kind="hific", name="plain", config=values, tables=tables, tensors=tensors, card={"title": "tiny"})
    attach(plain, tiny(), dense, note="random")
    return plain, dense


def small_mean_manifold(folder: Path, *, bits: int = 12) -> tuple[Path, MeanHific]:
    """One of the family `paper`, for all coders, and its networks: six channels and two of z, whose 20 do not fill them.

    bits: of each channel in the coder `fixed`. Latents, z and means reach over several steps.
    """
    torch.manual_seed(4)
    net = MeanHific(PaperConfig(channels=6, width=4, blocks=1, hyper=20)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        net.encoder[-1].weight *= 8
        net.hyperprior.analysis[-1].weight *= 4
    plain, dense = folder / "mean.safetensors", folder / "mean_dense.safetensors"
    tables = CodeTables.fit([sample(i, 8, 8, 8) for i in range(4)], bits=bits)
    save(plain, net, net.state_dict(), tables, name="mean", card={"title": "tiny"})
    passes = (Pass(0, 2, 0), Pass(0, 2, 1), Pass(2, 6), Pass(6, 8))
    config = HyperConfig(8, 1, passes, hidden=8, wide=4, latents=2, scales=12, signed=2, mean_limit=63)
    attach(plain, tiny(config=config), dense, note="random")
    return dense, net
