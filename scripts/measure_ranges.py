"""Measures what a manifold needs to be computed in 8-bit integers, and writes the manifold with it on its card.

    python scripts/measure_ranges.py talking-head --data DIR --output talking-head.safetensors

DIR holds the folders that the manifold was trained on, by its card. New trainings end with these ranges; older manifolds
lack some. Weights, symbols and the manifold's id stay what they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcode import manifold
from mcode.config import from_dict
from mcode.errors import InputError, McodeError
from mcode.nets import int8
from mcode.training.crops import load_pictures
from mcode.training.export import LONGEST, ranges_of
from mcode.training.residual import ResidualTraining, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        measure(given)
    except McodeError as error:
        parser.error(str(error))


def measure(given: argparse.Namespace) -> None:
    model = manifold.load(given.manifold, "cpu", precision="float32")
    trained, family = model.card.get("training_config"), model.config["network"].get("family")
    if not isinstance(trained, Mapping) or family not in ("compact", "residual"):
        raise InputError(f"{given.manifold}: no compact or residual manifold with its training on the card; name another")
    card: dict[str, Any] = {}
    if family == "residual":
        pixels = load(from_dict(trained, ResidualTraining, source=f"{given.manifold}'s card"), given.data).pixels
        pictures = list(pixels if pixels.shape[3] == 3 else np.repeat(pixels, 3, axis=3))
    else:
        pictures = load_pictures([given.data / f for f in trained["data"]["folders"]], longest=LONGEST, frames_per_video=1)
    some = pictures[:: max(1, len(pictures) // int8.MOST_MEASURED)]
    if family == "compact":
        with int8.measured(model.net.get_submodule(int8.ANALYSIS)) as card[int8.ANALYSIS_RANGES]:
            latents = [model.analyse(rgb[None])[0] for rgb in some]
    else:
        latents = [model.analyse(rgb[None])[0] for rgb in some]
    if family == "compact" or not model.card.get(int8.RANGES):
        card[int8.RANGES] = ranges_of(model, latents)
    print(manifold.rewrite(model.info.path, given.output, card=card))


if __name__ == "__main__":
    main()
