"""Fits the code tables of `huffman` for deltas to a `general` manifold anew, and writes the manifold with them.

    python scripts/fit_tables.py general --data DIR --output general-tables.safetensors

DIR holds the folders that --folders name. Takes some minutes. Tables for whole keyframes, pixels and symbols stay what they
were; the manifold's id changes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mcode import manifold
from mcode.errors import McodeError
from mcode.training.export import tables_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folders", nargs="+", default=["stills/train", "video/train"])
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        fit(given)
    except McodeError as error:
        parser.error(str(error))


def fit(given: argparse.Namespace) -> None:
    model = manifold.load(given.manifold)
    fitted = tables_of(model, given.data, given.folders)
    tables = [replace(model.tables(q), delta=t.delta) for q, t in enumerate(fitted, 1)]
    print(manifold.rewrite(model.info.path, given.output, card={}, tables=tables))


if __name__ == "__main__":
    main()
