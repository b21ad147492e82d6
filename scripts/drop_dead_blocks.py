"""Writes a compact `hific` manifold without the analysis' dead residual blocks: those whose hidden channels are 0 nearly
everywhere. Not needed to use MCode.

    python scripts/drop_dead_blocks.py general --data DIR --output lighter.safetensors

DIR holds --folders. What such a block still adds, the bias of its second convolution, goes into the convolution before it, so
what is sent hardly changes; codes, gains and hyperprior stay. The manifold's id changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from mcode import manifold
from mcode.cli.options import whole
from mcode.errors import InputError, McodeError
from mcode.nets.layers import Down, watched
from mcode.training.crops import load_pictures

FEW = 0.001
"""Share of positions at which a dead channel may be above 0."""


def dead_blocks(model: manifold.Manifold, pictures: list[np.ndarray]) -> list[str]:
    """Names of the analysis' blocks in which every hidden channel is above 0 in at most FEW of all positions."""
    opened: dict[str, list[torch.Tensor]] = {}

    def note(name: str, given: torch.Tensor, second: bool) -> None:
        if second:
            opened.setdefault(name, []).append((given > 0).float().mean((2, 3)))

    with watched(model.net.analysis_net, note):
        for rgb in pictures:
            model.analyse(rgb[None])
    return [name for name, seen in opened.items() if bool((torch.cat(seen).mean(0) <= FEW).all())]


def without(
    net: nn.Module, dead: list[str], tensors: Mapping[str, np.ndarray], blocks: list[int]
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Tensors and number of blocks in each stage of the analysis `net`, without the `dead` ones."""
    kept, left = dict(tensors), list(blocks)
    stages = [i for i, m in enumerate(net.net) if isinstance(m, nn.Sequential) and not isinstance(m, Down)]
    for which, stage in enumerate(stages):
        before = f"net.{stage - 1}" + (".1" if isinstance(net.net[stage - 1], Down) else "")
        alive = 0
        for i in range(left[which]):
            name, own = f"net.{stage}.{i}", f"analysis_net.net.{stage}.{i}."
            old = {k.removeprefix(own): kept.pop(k) for k in list(kept) if k.startswith(own)}
            if name in dead:
                bias = kept[f"analysis_net.{before}.bias"]
                kept[f"analysis_net.{before}.bias"] = (bias + old["conv2.bias"].astype(np.float32)).astype(bias.dtype)
                continue
            kept |= {f"analysis_net.net.{stage}.{alive}.{k}": v for k, v in old.items()}
            before = f"net.{stage}.{alive}.conv2"
            alive += 1
        left[which] = alive
    return kept, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folders", nargs="+", default=["stills/train"])
    parser.add_argument("--pictures", type=whole("--pictures", "the number of pictures", 1, 1_000_000), default=64)
    parser.add_argument("--output", type=Path, required=True)
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        drop(given)
    except McodeError as error:
        parser.error(str(error))


def drop(given: argparse.Namespace) -> None:
    model = manifold.load(given.manifold, "cpu", precision="float32")
    if model.config.get("network", {}).get("family", "compact") != "compact" or model.kind != "hific":
        raise InputError(f"{given.manifold} is no compact hific manifold")
    pictures = load_pictures([given.data / folder for folder in given.folders], longest=1024, frames_per_video=1)
    if not pictures:
        raise InputError(f"{given.data}: no pictures or videos that can be read in {', '.join(given.folders)}")
    dead = dead_blocks(model, pictures[:: max(1, len(pictures) // given.pictures)])
    network = dict(model.config["network"])
    tensors, blocks = without(model.net.analysis_net, dead, load_file(model.info.path), network["analysis_blocks"])
    network["analysis_blocks"] = blocks
    print(f"dropped {', '.join(dead) or 'nothing'}; blocks are {blocks} now")
    print(manifold.rewrite(model.info.path, given.output, card={}, tensors=tensors, network=network, replace=True))


if __name__ == "__main__":
    main()
