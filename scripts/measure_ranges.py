"""Measures what a residual manifold needs to be computed in 8-bit integers, and writes the manifold with it on its card.

    python scripts/measure_ranges.py talking-head --data DIR --output talking-head.safetensors

DIR holds the folders that the manifold was trained on, by its card. New trainings end with these ranges; older manifolds
lack them. Weights, symbols and the manifold's id stay what they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcode import manifold
from mcode.config import from_dict
from mcode.errors import InputError, McodeError
from mcode.nets.int8 import MOST_MEASURED, RANGES
from mcode.training.export import ranges_of
from mcode.training.residual import ResidualTraining, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.output.exists():
        parser.error(f"{given.output} exists; name another file")
    try:
        measure(given)
    except McodeError as error:
        parser.error(str(error))


def measure(given: argparse.Namespace) -> None:
    model = manifold.load(given.manifold, "cpu", precision="float32")
    trained = model.card.get("training_config")
    if not isinstance(trained, dict) or model.config["network"].get("family") != "residual":
        raise InputError(f"{given.manifold}: no residual manifold with its training on the card; train it, or name another")
    pixels = load(from_dict(trained, ResidualTraining, source=f"{given.manifold}'s card"), given.data).pixels
    some = pixels[:: max(1, len(pixels) // MOST_MEASURED)]
    if some.shape[3] == 1:
        some = some.repeat(3, axis=3)
    ranges = ranges_of(model, [model.analyse(rgb[None])[0] for rgb in some])
    print(manifold.rewrite(model.info.path, given.output, card={RANGES: ranges}))


if __name__ == "__main__":
    main()
