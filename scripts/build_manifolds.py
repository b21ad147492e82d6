r"""Makes the manifolds that ship in the package, from the training data. Not needed to use MCode.

    mcode train configs/talking-head.toml --data DIR --out runs/talking-head
    python scripts/build_manifolds.py talking-head --data DIR --checkpoint runs/talking-head/checkpoint.safetensors
    mcode train configs/general.toml --data DIR --out runs/general              # the second of five, see there
    python scripts/build_manifolds.py general --data DIR --checkpoint runs/general/checkpoint.safetensors \
        --output second.safetensors
    python scripts/train_hyper.py second.safetensors --data DIR --output second-range.safetensors
    python scripts/drop_dead_blocks.py second-range.safetensors --data DIR --output general-light.safetensors
    mcode train configs/general-synthesis.toml --data DIR --out runs/synthesis  # the third
    python scripts/build_manifolds.py general --data DIR --checkpoint runs/synthesis/checkpoint.safetensors \
        --output general-synthesis.safetensors
    mcode train configs/general-finish.toml --data DIR --out runs/finish        # the fourth
    python scripts/build_manifolds.py general --data DIR --checkpoint runs/finish/checkpoint.safetensors \
        --output fourth.safetensors
    python scripts/fit_tables.py fourth.safetensors --data DIR --output tables.safetensors
    python scripts/train_hyper.py tables.safetensors --data DIR --output general-finish.safetensors --go-on --steps 9200 \
        --deltas 6 --rate 1e-3                                                  # the same symbols in fewer bits
    mcode train configs/general-graphics.toml --data DIR --out runs/graphics    # the fifth
    python scripts/mix_synthesis.py general-finish.safetensors runs/graphics/general.safetensors --share 0.6 \
        --data DIR --output general.safetensors
    python scripts/build_manifolds.py paper --trained results/manifolds     # as scripts/reproduce.sh leaves them

The second train_hyper.py stands for three goes, of 2,500, 2,200 and 4,500 steps, the first without levels (docs/log.md).
DIR holds the folders that the cards name (grid_s1/train, stills/train, video/train). The scores in a card come from
docs/results.md and are given by --scores as JSON.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from mcode.errors import InputError, McodeError

SHIPPED = Path(__file__).parent.parent / "mcode" / "manifolds"

TALKING_HEAD = {
    "title": "one speaker before a plain background, head and shoulders, 128x128",
    "data": "GRID audiovisual sentence corpus, speaker s1, 59 clips of 3 s, centred 288x288 scaled to 128x128",
    "data_licence": "CC BY 4.0 (Cooke, Barker, Cunningham, Shao 2006)",
    "licence": "CC BY 4.0",
    "training_command": "mcode train configs/talking-head.toml --data DIR --out runs/talking-head",
    "not_for": "any other speaker, scene or camera position: it holds this speaker alone. Learn yours with mcode adapt",
}
GENERAL = {
    "title": "natural pictures and video of any size",
    "data": "674 photographs and 58 video clips: CC0, Unsplash, Pexels, CC BY 3.0/4.0, CC BY-SA 4.0 (CID22), BSDS and urban "
    "scenes free for research",
    "data_licence": "mixed, see data",
    "licence": "CC BY-SA 4.0",
    "training_command": "mcode train configs/general.toml, then configs/general-synthesis.toml, then "
    "configs/general-finish.toml, then configs/general-graphics.toml --data DIR --out runs/general",
    "not_for": "small text and screens, whose edges it blurs; moving cameras at n over 2, where what lies between two "
    "keyframes is not on the line between their latents",
}

REPRODUCTION = {
    "cifar10": ("CIFAR-10, training pictures, saved as JPEG by their uploader", "for research (Krizhevsky 2009)"),
    "faces64": ("1,736 loosely cropped faces, 64x64", "MIT"),
    "outdoor64": ("900 outdoor scenes of the 15-scene set, 64x64, grey", "for research"),
    "kth": ("KTH actions: five videos, two of them halves, 64x64, grey", "for research (Schuldt, Laptev, Caputo 2004)"),
    "head": ("GRID audiovisual sentence corpus, speaker s1, 60 clips", "CC BY 4.0 (Cooke, Barker, Cunningham, Shao 2006)"),
}
LARGEST_REPRODUCTION = 6_000_000


def build_paper(trained: Path) -> None:
    """The small manifolds of the paper's experiments, with cards that say what they are for."""
    from mcode import manifold

    if not trained.is_dir():
        raise InputError(f"--trained {trained}: no such folder")
    (SHIPPED / "paper").mkdir(parents=True, exist_ok=True)
    for path in sorted(trained.glob("*/*.safetensors")):
        name = path.stem
        data, licence = REPRODUCTION.get(name.partition("-")[0].removesuffix("-residual"), ("", ""))
        if not data or path.name == "checkpoint.safetensors" or path.stat().st_size > LARGEST_REPRODUCTION:
            continue
        card = dict(manifold.read_info(path).card) | {
            "title": f"reproduction of Santurkar, Budden, Shavit 2017: {name}",
            "data": data,
            "data_licence": licence,
            "licence": licence,
            "training_command": f"mcode train configs/paper/{name}.toml --data DIR --out runs/{name}",
            "not_for": "anything but remaking the paper's tables and figures (mcode evaluate paper)",
        }
        print(name, manifold.rewrite(path, SHIPPED / "paper" / path.name, card=card))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold", choices=["talking-head", "general", "paper"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--scores", type=json.loads, default={})
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    for name in ("trained",) if given.manifold == "paper" else ("data", "checkpoint"):
        if getattr(given, name) is None:
            parser.error(f"{given.manifold} needs --{name}")
    try:
        build(given)
    except McodeError as error:
        parser.error(str(error))


def build(given: argparse.Namespace) -> None:
    if given.manifold == "paper":
        build_paper(given.trained)
        return
    output = given.output or SHIPPED / f"{given.manifold}.safetensors"
    output.parent.mkdir(parents=True, exist_ok=True)
    if given.manifold == "talking-head":
        from mcode.training.residual import export

        card = TALKING_HEAD | {"made": date.today().isoformat()} | ({"scores": given.scores} if given.scores else {})
        print(export(given.checkpoint, given.data, output, card=card))
    else:
        from mcode.training.export import export_compact

        card = GENERAL | {"made": date.today().isoformat(), "scores": given.scores}
        print(export_compact(given.checkpoint, given.data, output, card=card))


if __name__ == "__main__":
    main()
