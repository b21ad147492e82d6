"""Writes a compact `hific` manifold whose synthesis lies between those of two that share all else. Not needed to use MCode.

    python scripts/mix_synthesis.py START TRAINED --share 0.6 --data DIR --output mixed.safetensors

TRAINED is what a training of the synthesis alone (`part = "synthesis"`) has made of START; share: of its weights.
Weights between two such are often better than either, or as good as one in what the other has lost (docs/log.md). What is sent
stays; the ranges for integers are measured anew on pictures of DIR's --folders. The card is START's, with TRAINED's training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mcode import manifold
from mcode.cli.options import whole
from mcode.errors import InputError, McodeError
from mcode.nets.int8 import RANGES
from mcode.training.crops import load_pictures
from mcode.training.export import ranges_of

SYNTHESIS = "synthesis_net."


def mixed(start: dict[str, np.ndarray], trained: dict[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """The synthesis' tensors, `share` of the way from start to trained. Raises ValueError where anything else differs."""
    if start.keys() != trained.keys():
        raise ValueError(f"tensors differ: {', '.join(sorted(start.keys() ^ trained.keys())[:3])}")
    found = {}
    for name, before in start.items():
        after = trained[name]
        if name.startswith(SYNTHESIS) and before.shape == after.shape:
            between = before.astype(np.float32) + share * (after.astype(np.float32) - before.astype(np.float32))
            found[name] = between.astype(before.dtype)
        elif not np.array_equal(before, after):
            raise ValueError(f"{name} differs: only the synthesis may")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start")
    parser.add_argument("trained")
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folders", nargs="+", default=["stills/train"])
    parser.add_argument("--pictures", type=whole("--pictures", "the number of pictures", 1, 1_000_000), default=128)
    parser.add_argument("--output", type=Path, required=True)
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        if not 0 <= given.share <= 1:
            raise InputError(f"--share {given.share:g}: a share is from 0 to 1")
        mix(given)
    except McodeError as error:
        parser.error(str(error))


def mix(given: argparse.Namespace) -> None:
    start, trained = (manifold.read_info(name) for name in (given.start, given.trained))
    try:
        tensors = mixed(load_file(start.path), load_file(trained.path), given.share)
    except ValueError as error:
        raise InputError(f"{given.start} and {given.trained}: {error}") from error
    card = {name: trained.card[name] for name in ("training_config", "steps", "made") if name in trained.card}
    card["mixed"] = f"{given.share:g} of the training's weights, {1 - given.share:g} of {start.id}'s"
    draft = given.output.with_suffix(".draft.safetensors")
    try:
        manifold.rewrite(start.path, draft, card=card, tensors=tensors)
        model = manifold.load(draft, "cpu", precision="float32")
        pictures = load_pictures([given.data / folder for folder in given.folders], longest=1024, frames_per_video=1)
        if not pictures:
            raise InputError(f"{given.data}: no pictures or videos that can be read in {', '.join(given.folders)}")
        some = pictures[:: max(1, len(pictures) // given.pictures)]
        card[RANGES] = ranges_of(model, [model.analyse(rgb[None])[0] for rgb in some])
    finally:
        draft.unlink(missing_ok=True)
    print(manifold.rewrite(start.path, given.output, card=card, tensors=tensors))


if __name__ == "__main__":
    main()
