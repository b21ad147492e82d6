"""A checkpoint of a compact `hific` training into a manifold: smoothed weights in float16, code tables fitted to footage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import manifold
from ..coders import CodeTables
from ..config import from_dict, to_dict
from ..errors import InputError
from ..latents import quantise, symbols
from ..nets import STRIDE, int8
from ..nets.hific import Gains
from ..nets.int8 import ANALYSIS, ANALYSIS_RANGES, RANGES
from . import loop
from .compact import START_ID, CompactTraining, check_start, lambdas
from .crops import frame_runs, load_pictures
from .deltas import RUN, chained, chains
from .footage import PICTURES, VIDEOS, footage_below

LAGS = (1, 4, 8)
"""Keyframe intervals, in frames, whose deltas the code tables are fitted to."""
LONGEST = 1024
DEFAULT_QUALITY = 5


def export_compact(
    checkpoint: Path,
    data: Path,
    output: Path,
    *,
    card: dict[str, Any],
    pictures: int = 100,
    config: CompactTraining | None = None,
) -> str:
    """Writes the manifold file; returns its id.

    data: the folder of the training's `data.folders`, whose pictures (at most `pictures` of them, evenly spaced) and
    videos (three places in each) the code tables are fitted to. config: in place of the checkpoint's, for the name and
    zero_margin. A training of the synthesis alone keeps its start's tables, gains, margin and hyperprior. Raises InputError
    for a file that is no checkpoint, and where that start is another by now.
    """
    step, values, state = loop.read_checkpoint(checkpoint)
    config = config or from_dict(values, CompactTraining, source=str(checkpoint))
    weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    weights |= {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    network = config.network
    if (start_id := loop.read_metadata(checkpoint).get(START_ID)) is not None:
        card = card | {START_ID: start_id}
    if config.part == "synthesis":
        return _with_synthesis(config, weights, data, output, card | {"steps": step})
    gains = Gains(network.qualities, network.channels)
    gains.load_state_dict({k.removeprefix("gains."): v for k, v in weights.items() if k.startswith("gains.")})
    with torch.no_grad():
        gain, inverse = gains.gain(), gains.inverse()
    tensors = loop.halved({k.removeprefix("net."): v for k, v in weights.items() if k.startswith("net.")})
    tensors |= {"gain": gain, "inverse": inverse}
    arrays = {k: v.contiguous().numpy() for k, v in tensors.items()}
    described = {
        "frame_size": None,
        "stride": STRIDE,
        "qualities": network.qualities,
        "default_quality": DEFAULT_QUALITY,
        "network": to_dict(network) | {"family": "compact"},
    }
    card = card | {"training_config": to_dict(config), "steps": step, manifold.PRICES: _prices(config)}
    # A file with empty tables first, so that the very manifold that will be used computes the symbols.
    blank = [CodeTables.fit([np.zeros((network.channels, 1, 1), np.int16)])] * network.qualities
    options: dict[str, Any] = {"kind": "hific", "name": config.name, "config": described, "tensors": arrays, "card": card}
    draft = output.with_suffix(".draft.safetensors")
    try:
        manifold.save(draft, tables=blank, **options)
        model = manifold.load(draft)
        with int8.measured(model.net.get_submodule(ANALYSIS)) as card[ANALYSIS_RANGES]:
            stills, runs = _latents(model, data, config.data.folders, pictures)
    finally:
        draft.unlink(missing_ok=True)
    margin = torch.stack([_zero_margin(stills, g, config.zero_margin) for g in gain])
    if config.zero_margin:
        arrays[manifold.ZERO_MARGIN] = margin.numpy()
    tables = [_fit(stills, runs, g, m) for g, m in zip(gain, margin, strict=True)]
    card[RANGES] = ranges_of(model, stills)
    return manifold.save(output, tables=tables, **options)


def ranges_of(model: manifold.Manifold, latents: Sequence[Tensor]) -> list[list[float]]:
    """`nets.int8.ranges_of` for a manifold, from latents (C, h, w)."""
    steps = [(model.gain(q), model.inverse(q)) for q in range(1, model.qualities + 1)]
    return int8.ranges_of(model.net, [latent.to(model.device) for latent in latents], steps)


def _with_synthesis(config: CompactTraining, weights: dict[str, Tensor], data: Path, output: Path, card: dict[str, Any]) -> str:
    """The start with this synthesis: what is sent, how it is coded and what bits are worth stay to the last bit."""
    assert config.start is not None
    check_start(config.start, card.get(START_ID))
    trained = loop.halved({k.removeprefix("net."): v for k, v in weights.items() if k.startswith("net.synthesis_net.")})
    card = (
        {manifold.PRICES: _prices(config)} | manifold.read_info(config.start).card | card | {"training_config": to_dict(config)}
    )
    options: dict[str, Any] = {
        "tensors": {k: v.contiguous().numpy() for k, v in trained.items()},
        "network": to_dict(config.network) | {"family": "compact"},
        "name": config.name,
    }
    draft = output.with_suffix(".draft.safetensors")
    try:
        manifold.rewrite(config.start, draft, card=card, **options)
        model = manifold.load(draft, precision="float32")
        pictures = load_pictures([data / f for f in config.data.folders], longest=LONGEST, frames_per_video=1)
    finally:
        draft.unlink(missing_ok=True)
    some = pictures[:: max(1, len(pictures) // int8.MOST_MEASURED)]
    with int8.measured(model.net.get_submodule(ANALYSIS)) as card[ANALYSIS_RANGES]:
        latents = [model.analyse(rgb[None])[0] for rgb in some]
    card[RANGES] = ranges_of(model, latents)
    return manifold.rewrite(config.start, output, card=card, **options)


def _prices(config: CompactTraining) -> dict[str, Any]:
    """What `mcode.refine` weighs bits with."""
    paid = [float(f"{v:.4g}") for v in lambdas(config.loss, config.network.qualities).tolist()]
    return {"lambdas": paid, "perceptual": config.loss.perceptual, "squeezenet": config.loss.squeezenet}


def _zero_margin(stills: list[Tensor], gain: Tensor, strength: float) -> Tensor:
    """(C,): `strength` steps for each bit that a symbol of 1 costs more than one of 0 where a channel is counted by itself."""
    sizes = torch.cat([symbols(y, gain).abs().flatten(1) for y in stills], 1)
    zeros, ones = ((sizes == value).float().mean(1).clamp_min(1e-4) for value in (0, 1))
    return (strength * torch.log2(2 * zeros / ones)).clamp(0, 0.4)


def tables_of(model: manifold.Manifold, data: Path, folders: Sequence[str], *, pictures: int = 100) -> list[CodeTables]:
    """Code tables of each quality, fitted to the symbols of pictures (at most so many) and to the deltas of videos."""
    stills, runs = _latents(model, data, folders, pictures)
    return [_fit(stills, runs, model.gain(q), model.zero_margin(q)) for q in range(1, model.qualities + 1)]


def _latents(model: manifold.Manifold, data: Path, folders: Sequence[str], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents (C, h, w) of pictures, and (T, C, h, w) of runs of video, three in each, in half precision. Where there are
    neither pictures nor videos so long, latents of the videos' first frames. Raises InputError where there are none."""
    stills, runs = [], []
    for folder in folders:
        files = list(footage_below(data / folder))
        if any(f.suffix.lower() in PICTURES for f in files):
            every = load_pictures([data / folder], longest=LONGEST, frames_per_video=0)
            for rgb in every[:: max(1, len(every) // count)]:
                stills.append(model.analyse(rgb[None])[0].cpu())
        for video in (f for f in files if f.suffix.lower() in VIDEOS):
            for frames in frame_runs(video, 3, RUN[-1] + 1):
                runs.append(torch.cat([model.analyse(frames[i][None]).half().cpu() for i in RUN]))
                stills.append(runs[-1][0].float())
    if not stills:
        firsts = load_pictures([data / folder for folder in folders], longest=LONGEST, frames_per_video=1)
        stills = [model.analyse(rgb[None])[0].cpu() for rgb in firsts[:: max(1, len(firsts) // count)]]
    if not stills:
        raise InputError(f"{data}: no pictures or videos that can be read in {', '.join(folders)}")
    return stills, runs


def _fit(stills: list[Tensor], runs: list[Tensor], gain: Tensor, margin: Tensor | None) -> CodeTables:
    whole = [quantise(y, gain, margin) for y in stills]
    last = [list(chained(run, places, gain, margin))[-2:] for run in runs for places in chains(lags=LAGS)]
    return CodeTables.fit(whole, [(after - before).to(torch.int16).numpy() for before, after in last])
