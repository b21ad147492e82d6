r"""Trains a small network that `mcode encode --refine` judges pictures by, and writes it. Not needed to use MCode.

    python scripts/train_eye.py --data DIR --output first.safetensors --seconds 1800
    python scripts/train_eye.py --data DIR --start first.safetensors --seed 5 --seconds 1800 \
        --beside first.safetensors --shares 0.6,0.8 --output mcode/nets/eye.safetensors

DIR holds stills/train, video/train and perceptual (VGG19's and SqueezeNet's weights). Two networks see more than one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from mcode import manifold
from mcode.cli.options import seconds_of, whole
from mcode.errors import InputError, McodeError
from mcode.nets.eye import read
from mcode.training.eye import EyeTraining, save, train


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifold", default="general", help="whose reconstructions it learns on")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=whole("--steps", "the number of steps", 1, 10_000_000), default=EyeTraining.steps)
    parser.add_argument("--seconds", type=seconds_of("--seconds", "the training's length"), help="end by the clock")
    parser.add_argument("--start", type=Path, help="a file of this script to go on from")
    parser.add_argument("--seed", type=int, default=EyeTraining.seed, help="another one where it goes on, for other crops")
    parser.add_argument("--beside", type=Path, help="a file of this script whose networks are written before the new one")
    parser.add_argument(
        "--shares", type=numbers, help="by what to multiply each network's distance, the new one's last: 0.6,0.8"
    )
    parser.add_argument("--threads", type=whole("--threads", "the number of threads", 1, 1024), default=2)
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        make(given)
    except McodeError as error:
        parser.error(str(error))


def make(given: argparse.Namespace) -> None:
    before = [] if given.beside is None else read(given.beside)
    shares = given.shares or [1.0] * (len(before) + 1)
    if len(shares) != len(before) + 1:
        raise InputError(f"--shares has {len(shares)} numbers for {len(before) + 1} networks")
    torch.set_num_threads(given.threads)
    model = manifold.load(given.manifold, "cpu")
    training = replace(EyeTraining(), steps=given.steps, seconds=given.seconds, seed=given.seed)
    last: dict[str, object] = {}

    def report(numbers: object) -> None:
        last.update(numbers)  # type: ignore[call-overload]
        print(json.dumps(numbers), flush=True)

    folders = [given.data / "stills/train", given.data / "video/train"]
    trained = train(model, folders, training, weights=str(given.data / "perceptual"), start=given.start, report=report)
    card = {
        "title": "features to compare pictures by, after VGG19 and SqueezeNet",
        "data": "reconstructions by general of 674 photographs and 58 clips (see general's card), no labels",
        "teachers": "VGG19, Simonyan and Zisserman, CC BY 4.0; SqueezeNet 1.0, BSD; their weights are not in it",
        "licence": "CC BY-SA 4.0",
        "training_command": "see scripts/train_eye.py",
        "trained": dict(last),
        "shares": shares,
    }
    eyes = [(net, share * scale) for (net, scale), share in zip([*before, trained], shares, strict=True)]
    save(eyes, given.output, card=card)


if __name__ == "__main__":
    main()
