"""Trains the hyperprior of the coder `range` for a manifold, and writes the manifold with it. Not needed to use MCode.

    python scripts/train_hyper.py general --data DIR --output general-range.safetensors
    python scripts/train_hyper.py general --data DIR --output general-range.safetensors --go-on --rate 1e-3 --deltas 6

With --go-on training starts from the hyperprior that the manifold has. DIR holds the folders --stills and --videos name.
Latents are drawn once (some minutes), training takes about ten minutes of one core; OUT.checkpoint keeps the newest
weights, for --start. Pixels stay what they were; the manifold's id changes.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mcode import manifold
from mcode.cli.options import whole
from mcode.coders.range import DELTA, MOST_LEVELS, HyperConfig
from mcode.errors import InputError, McodeError
from mcode.nets.hyper import Hyper
from mcode.training.hyper import LEVELS, HyperTraining, attach, draw_latents, draw_moves, fit, passes, train
from mcode.training.loop import read_checkpoint
from mcode.whole import whole_tensors

PREFIX = "ema.hyper."
"""Of the hyperprior's averaged weights in a checkpoint of `mcode train`."""


def joint(checkpoint: Path, config: HyperConfig) -> Hyper:
    """The averaged weights of the hyperprior in a checkpoint of a training with `hyper` in its loss, of as many levels as it
    has there. Raises InputError."""
    tensors = {k.removeprefix(PREFIX): v for k, v in read_checkpoint(checkpoint)[2].items() if k.startswith(PREFIX)}
    if not tensors:
        raise InputError(f"--start {checkpoint}: no hyperprior learned along there; leave --start out")
    kinds = len(tensors["start.bias"]) // (2 * config.qualities)
    net = Hyper(replace(config, levels=kinds - DELTA))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"--start {checkpoint}: its hyperprior is of another manifold than this") from error
    return net


def keep(net: Hyper, path: Path) -> None:
    """Writes a checkpoint that --start reads."""
    with whole_tensors(path) as part:
        tensors = {PREFIX + k: v.detach().contiguous() for k, v in net.state_dict().items()}
        save_file(tensors, part, {"step": "0", "config": "{}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifold")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stills", nargs="+", default=["stills/train", "video/train"])
    parser.add_argument("--videos", nargs="+", default=["video/train"])
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--start", type=Path, help="a checkpoint of `mcode train` whose hyperprior learned along, or of this script"
    )
    origin.add_argument("--go-on", action="store_true", help="from the manifold's own hyperprior")
    levels = whole("--levels", "the number of kinds of delta", 1, MOST_LEVELS)
    parser.add_argument("--levels", type=levels, default=LEVELS, help="kinds of delta; with --start as many as there")
    deltas = whole("--deltas", "the number of deltas in a batch", 1, HyperTraining.batch - 1)
    parser.add_argument("--deltas", type=deltas, default=HyperTraining.deltas, help="deltas in each batch of 12")
    parser.add_argument("--rate", type=float, default=HyperTraining.learning_rate, help="the learning rate")
    parser.add_argument("--crops", type=whole("--crops", "the number of crops", 1, 1_000_000), default=3200)
    parser.add_argument("--steps", type=whole("--steps", "the number of steps", 1, 10_000_000), default=HyperTraining.steps)
    parser.add_argument("--seed", type=int, default=HyperTraining.seed)
    parser.add_argument("--device", default="cpu")
    try:
        given = parser.parse_args()
        manifold.check_new(given.output)
        if not 0 < given.rate < math.inf:
            raise InputError(f"--rate {given.rate:g}: a learning rate is above 0")
        make(given)
    except McodeError as error:
        parser.error(str(error))


def make(given: argparse.Namespace) -> None:
    model = manifold.load(given.manifold, given.device)
    if given.go_on and model.hyper is None:
        raise InputError(f"--go-on: manifold {given.manifold} has no hyperprior; leave --go-on out")
    config = HyperConfig(model.channels, model.qualities, passes(model.channels), levels=given.levels)
    start = None if given.start is None else joint(given.start, config)
    if given.go_on:
        start = Hyper.thaw(model.hyper, given.levels).requires_grad_(True)
    if start is not None:
        config = start.config
    qualities = range(1, model.qualities + 1)
    gain = torch.stack([model.gain(q).float().cpu() for q in qualities])
    margins = [model.zero_margin(q) for q in qualities]
    margin = None if margins[0] is None else torch.stack(margins).float().cpu()
    latents = draw_latents(model, [given.data / f for f in given.stills], given.crops, seed=given.seed)
    moves = draw_moves(model, [given.data / f for f in given.videos], seed=given.seed)
    print(f"{len(latents)} crops, {len(moves)} places of videos", flush=True)
    checkpoint = given.output.with_suffix(".checkpoint")
    training = replace(HyperTraining(), steps=given.steps, seed=given.seed, learning_rate=given.rate, deltas=given.deltas)
    net = train(
        latents,
        moves,
        gain,
        config,
        training,
        zero_margin=margin,
        start=start,
        report=lambda numbers: print(json.dumps(dict(numbers)), flush=True),
        save=lambda net: keep(net, checkpoint),
    )
    every = np.linspace(0, len(latents) - 1, min(400, len(latents))).astype(int)
    ready = fit(net, latents[every], moves, gain, zero_margin=margin, limit=400)
    note = f"{sum(w.size for w in ready.weights.values()):,} integer weights, {given.steps} steps on {len(latents)} crops"
    print(attach(model.info.path, ready, given.output, note=note))
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
