"""Tiny `hific` manifolds with random weights, with and without a hyperprior, for tests. Pictures come out as noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mcode import manifold
from mcode.coders import CodeTables
from mcode.nets.hific import CompactConfig, CompactHific
from mcode.training.hyper import attach

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
