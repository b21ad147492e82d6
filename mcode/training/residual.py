"""Trains an `ncode` manifold of family "residual": principal components first, then the network that adds to them.

Components fit the pictures they were learned from better than any others, so a network that learns from those sees too
little of what it is for. The training pictures are therefore parted into folds, by clips, and each is seen through
components learned from the other folds; the manifold gets components learned from all.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import manifold
from ..config import from_dict, to_dict
from ..errors import InputError
from ..evaluation.features import VGG_MAPS
from ..nets.int8 import RANGES, ranges_of
from ..nets.layers import channels_last
from ..nets.residual import Residual, ResidualConfig
from . import classes, loop
from .adapt import BLOCK, principal_components
from .classes import ClassDistance
from .deltas import coordinate_tables, first_clips
from .footage import data_entry
from .ncode import NCodeData, grid
from .squares import Squares, load_squares

QUALITIES = 8
DEFAULT_QUALITY = 5
LEVELS_PER_DEVIATION = (0.6, 1.0, 5 / 3, 3.0, 5.0, 9.0, 17.0, 33.0)
"""Quantiser steps per standard deviation for 1 to 8 bits: close to what is best for normal values (Max 1960, table 1),
and odd from 4 bits up and for 2, so that one offset of half a deviation centres them all between two levels."""
OFFSET = 0.5
WARM_UP = 100
CODE_BATCH = 512
MIXED = 0.1
"""Share of a picture's components that are another's when the code learns: it must not learn a small set by heart."""
LEAST_ERROR = 4e-4
"""Pictures whose linear part is better than this (40 dB) count no more in the loss."""


@dataclass(frozen=True)
class ResidualTraining:
    """What configs/talking-head.toml holds.

    steps, batch: updates, and pictures in each. quantiser "bits": each coordinate in 1 to 8 bits, one of `bits` drawn
    for each picture; "step": `step` grey levels at quality 5, a factor of sqrt(2) from one quality to the next.
    intervals: the network sees frames interpolated between keyframes so far apart (videos and "step" only; 1: keyframes alone).

    folds: 1 uses the same components in training as later. held_out: every so many clips one is kept from the network,
    and tells in the log what it does for unseen ones; 0 for none.

    crop: the network sees random squares of at most this side, 0 for whole pictures; mirror_pairs: half of them
    mirrored, after the linear part; colour: their values are scaled and shifted by up to this share, channel by channel.

    l1: weight of each picture's squared error, as a share of the linear part's; l2: of the VGG19 distance of vgg_layers,
    on one random square of at most `feature_crop`; l3: of the distance in the features of `class_networks` classifiers trained
    first on the same pictures for `class_epochs`, by the folders they lie in.

    bit_error_rate: of half the pictures the quantiser's bits are flipped with this probability, as the coder `fixed` would
    have them flipped. The code learns from components alone, unless there is an encoder, with which it learns from
    pictures.

    bfloat16: compute in it where it is fast.
    """

    kind: Literal["ncode"]
    name: str
    data: NCodeData
    network: ResidualConfig
    steps: int
    quantiser: Literal["bits", "step"] = "bits"
    bits: tuple[int, ...] = (2, 4, 5)
    step: float = 160.0
    intervals: tuple[int, ...] = (1,)
    folds: int = 1
    held_out: int = 0
    crop: int = 0
    mirror_pairs: bool = False
    colour: float = 0.0
    l1: float = 1.0
    l2: float = 0.0
    l3: float = 0.0
    class_networks: int = 2
    class_epochs: float = classes.EPOCHS
    bit_error_rate: float = 0.0
    vgg_layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_4")
    feature_crop: int = 64
    perceptual_file: str | None = None
    default_quality: int = DEFAULT_QUALITY
    learning_rate: float = 4e-4
    clip: float = 1.0
    ema: float = 0.998
    checkpoint_every: int = 500
    bfloat16: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.folds, self.checkpoint_every, *(self.intervals or (0,))) < 1:
            raise ValueError("steps, folds, checkpoint_every and intervals are 1 or more")
        loop.check_numbers(self)
        loop.check_not_negative(self, "l1", "l2", "l3", "colour", "crop")
        if (network := self.network).rows > network.pixels:
            name = "components" if network.components else "m"
            given = f"{name} = {network.rows} of frame_size = {list(network.frame_size)}"
            raise ValueError(f"{given}: a picture has {network.pixels} values, and no more components than those")
        if not self.vgg_layers or not set(self.vgg_layers) <= set(VGG_MAPS):
            raise ValueError(f"vgg_layers = {list(self.vgg_layers)} are some of {', '.join(VGG_MAPS)}")
        if self.step <= 0:
            raise ValueError(f"step is {self.step}; it is above 0")
        if self.l2 > 0 and self.feature_crop < 16:
            raise ValueError(f"feature_crop is {self.feature_crop}; VGG19's features need squares of 16 pixels or more")
        if self.held_out < 0 or self.held_out == 1:
            raise ValueError(f"held_out is {self.held_out}; it is 0, or 2 or more: 1 would keep every clip from the network")
        if not 1 <= self.default_quality <= QUALITIES:
            raise ValueError(f"default_quality is 1..{QUALITIES}")
        if not self.bits or not set(self.bits) <= set(range(1, QUALITIES + 1)):
            raise ValueError(f"bits are some of 1..{QUALITIES}")
        if self.folds > 1 and self.network.encoder:
            raise ValueError("encoder = true needs folds = 1: its coordinates belong to one set of components")
        if self.quantiser == "step" and (self.network.code or self.bit_error_rate):
            raise ValueError('code and bit_error_rate need quantiser = "bits"')
        if self.quantiser == "step" and self.data.mirror:
            raise ValueError('data.mirror = true needs quantiser = "bits": keyframes have no mirror image; set mirror_pairs')
        if self.intervals != (1,) and (self.quantiser == "bits" or self.network.encoder):
            given = f"intervals = {list(self.intervals)}"
            raise ValueError(f'{given} need quantiser = "step" and encoder = false: all else sees keyframes alone, as [1]')
        if self.network.direct and (self.crop or self.mirror_pairs):
            raise ValueError("direct = true needs whole pictures: crop = 0 and mirror_pairs = false")
        if not 0 <= self.bit_error_rate < 0.5 or self.class_networks < 1 or self.class_epochs <= 0:
            raise ValueError("bit_error_rate is from 0 to 0.5, class_networks 1 or more, class_epochs more than 0")


def train(
    config: ResidualTraining,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: loop.Report | None = None,
) -> Path:
    """Writes checkpoint.safetensors, log.jsonl and samples in `out`; returns the checkpoint's path.

    With resume it goes on from the checkpoint as if it had not stopped. Raises McodeError when a loss is not finite.
    """
    workers, worker = loop.join_workers(device)
    torch.manual_seed(config.seed)
    model = Residual(config.network)
    first, saved = loop.begin(out, resume, model, config, ("steps",))
    going_on = out / loop.CHECKPOINT if 0 < first < config.steps else None
    of_data = data_entry(data, config.data.folders, going_on, config.data.without)
    squares = load(config, data)
    if (folds := config.folds) > (clips := len(squares.clips)):
        raise InputError(f"folds = {folds} needs {folds} videos or pictures, not {clips}; set folds = 1")
    where = torch.device(device)
    if saved is None:
        learn_components(model, squares.pixels)
    model.prepare()
    channels_last(model, where).prepare()
    samples = Samples(config, model, squares, where)
    features, judged = _features(config, where), _classes(config, squares, out, where)
    parameters = dict(model.named_parameters())
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate, (0.9, 0.99))
    loop.load_moments([optimiser], model, saved, first)
    ema = loop.averages(parameters, saved)
    log, started = loop.Log(out, first, worker, report), time.monotonic()
    for step in range(first, config.steps):
        loop.seed_step(config.seed, step, worker)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        x, base, y = samples.batch(step, worker)
        x, base = augment(x, base, config)
        with loop.autocast(where, config.bfloat16):
            back = base + model.unet(base.contiguous(memory_format=torch.channels_last), y).float()
        squared = (back - x).square().mean((1, 2, 3))
        linear = _plain(model, x, base).sub(x).square().mean((1, 2, 3)).clamp_min(LEAST_ERROR)
        loss = config.l1 * (squared / linear).mean()
        losses = {"psnr": _mean_db(squared.detach()), "psnr_linear": _mean_db(linear)}
        if features is not None:
            with loop.autocast(where, config.bfloat16):
                distance = features(*_same_crop(x, back, config.feature_crop)).mean()
            loss = loss + config.l2 * distance
            losses["feature"] = distance.item()
        if judged is not None:
            with loop.autocast(where, config.bfloat16):
                distance = judged(x, back).mean()
            loss = loss + config.l3 * distance
            losses["classes"] = distance.item()
        if samples.pool is not None:
            of_code = samples.code_loss()
            loss = loss + of_code
            losses["code_db"] = -10 / math.log(10) * of_code.item() + 10 * math.log10(4)
        loop.update(optimiser, loss, step=step, workers=workers, clip=config.clip)
        loop.smooth(ema, parameters, config.ema, step)
        log.add(**losses, loss=loss.item())
        done = step + 1
        if worker == 0 and (done % config.checkpoint_every == 0 or done == config.steps):
            speed = (done - first) * config.data.batch * workers / (time.monotonic() - started)
            loop.save_checkpoint(out / loop.CHECKPOINT, model, ema, [optimiser], done, config, **of_data)
            unseen, shown = _unseen(model, ema, samples, features, config)
            log.write(done, pictures_per_s=round(speed, 1), **unseen)
            shown = shown or (x[:16], base[:16], back[:16])
            log.picture(done, grid(torch.stack(shown, 1).flatten(0, 1), columns=6))
    return out / loop.CHECKPOINT


@torch.no_grad()
def _plain(model: Residual, x: Tensor, base: Tensor) -> Tensor:
    """What the loss is measured by: the base, or with an encoder the components alone, as it may spoil the base for more."""
    return base.detach() if model.encoder is None else model.linear_synthesis(model.linear_analysis(x))


def augment(x: Tensor, base: Tensor, config: ResidualTraining) -> tuple[Tensor, Tensor]:
    """The same random square of both, and the same change of colour. Drawn from torch's generator."""
    if config.crop:
        stride = config.network.patch << 2
        sides = [min(config.crop, side) for side in x.shape[2:]]
        top, left = (
            int(torch.randint(0, (full - side) // stride + 1, ()).item()) * stride
            for full, side in zip(x.shape[2:], sides, strict=True)
        )
        x, base = (t[:, :, top : top + sides[0], left : left + sides[1]] for t in (x, base))
    if config.colour:
        scale, shift = (torch.empty(len(x), x.shape[1], 1, 1, device=x.device).uniform_(-1, 1) for _ in range(2))
        x, base = (t * (1 + config.colour * scale) + config.colour * shift for t in (x, base))
    return x.contiguous(), base.contiguous()


@torch.no_grad()
def _unseen(
    model: Residual, ema: Mapping[str, Tensor], samples: Samples, features: Any, config: ResidualTraining
) -> tuple[dict[str, float], tuple[Tensor, Tensor, Tensor] | None]:
    """Scores of the averaged network on frames of the clips held out, and some of them; nothing where none is."""
    at = samples.held_out
    if not len(at):
        return {}, None
    at = at[np.linspace(0, len(at) - 1, min(len(at), 48)).round().astype(int)]
    twin = copy.deepcopy(model.unet)
    for name, parameter in twin.named_parameters():
        parameter.copy_(ema[f"unet.{name}"])
    x, base, y = samples.at(at, np.random.default_rng(0), mirror=False)
    with loop.autocast(samples.device, config.bfloat16):
        back = base + twin(base.contiguous(memory_format=torch.channels_last), y).float()
    scores = {}
    for key, picture in (("linear", base), ("network", back)):
        scores[f"unseen_psnr_{key}"] = round(_mean_db((picture.clamp(-1, 1) - x).square().mean((1, 2, 3))), 3)
        if features is not None:
            with loop.autocast(samples.device, config.bfloat16):
                distances = features(*(t.expand(-1, 3, -1, -1) / 2 + 0.5 for t in (x, picture)))
            scores[f"unseen_feature_{key}"] = round(float(distances.mean()), 5)
    return scores, (x[:16], base[:16], back[:16])


class Samples:
    """Pictures, and what the linear part makes of them as a receiver would have it."""

    def __init__(self, config: ResidualTraining, model: Residual, squares: Squares, device: torch.device) -> None:
        self.config, self.model, self.squares, self.device = config, model, squares, device
        count = len(squares.clips)
        owner = np.repeat(np.arange(count), squares.clips)
        self.starts = np.repeat(np.cumsum(squares.clips) - squares.clips, squares.clips)
        self.ends = self.starts + np.repeat(squares.clips, squares.clips)
        self.fold = owner % config.folds
        kept_out = owner % config.held_out == config.held_out - 1 if config.held_out else np.zeros(len(owner), bool)
        self.held_out, self.seen = np.flatnonzero(kept_out), np.flatnonzero(~kept_out)
        self.parts: list[Residual] = []
        if config.folds > 1:
            for f in range(config.folds):
                part = Residual(_without_network(config.network))
                learn_components(part, squares.pixels[self.fold != f])
                self.parts.append(part.to(device))
                self.parts[-1].prepare()
        else:
            self.parts.append(model)
        starts = range(0, len(squares.pixels), BLOCK)
        self.y = torch.cat([self._coordinates(start) for start in starts])
        self.pool: Tensor | None = None
        if model.code is not None and model.encoder is None:
            self._fill_pool([self._coordinates(start, mirrored=True) for start in starts])

    @torch.no_grad()
    def _fill_pool(self, mirrored: list[Tensor]) -> None:
        """Components of all pictures and their mirror images, which the code learns from, and what those leave out."""
        deviations = torch.stack([part.component_deviation for part in self.parts])[torch.from_numpy(self.fold).to(self.device)]
        seen = torch.from_numpy(self.seen).to(self.device)
        self.pool = torch.cat([y[seen] for y in (self.y, torch.cat(mirrored))])
        self.pool_deviation = torch.cat([deviations[seen]] * 2)
        some = self.seen[np.linspace(0, len(self.seen) - 1, min(len(self.seen), 512)).round().astype(int)]
        x = pictures(self.squares.pixels[some], self.device)
        left = torch.empty(len(x), device=self.device)
        for f, part in enumerate(self.parts):
            mine = torch.from_numpy(self.fold[some] == f).to(self.device)
            left[mine] = (part.linear_synthesis(self.y[torch.from_numpy(some)][mine]) - x[mine]).square().mean((1, 2, 3))
        self.left_out = float(left.log().mean().exp())

    def code_loss(self) -> Tensor:
        """Mean logarithm of the squared error of values, of components coded with and without bit errors; what is beyond the
        components is added as it is on average. Draws from torch's generator."""
        assert self.pool is not None and self.model.code is not None
        config = self.config
        at, other = torch.randint(len(self.pool), (2, CODE_BATCH), device=self.device)
        deviation = self.pool_deviation[at]
        y = self.pool[at] / deviation
        mixed = torch.rand_like(y) < MIXED
        y = torch.where(mixed, self.pool[other] / self.pool_deviation[other], y)
        y = y * (1 + 0.2 * torch.randn(len(y), 1, device=self.device))
        bits = torch.tensor(config.bits, device=self.device)[torch.randint(len(config.bits), (len(y),), device=self.device)]
        rates = config.bit_error_rate * (torch.rand(len(y), device=self.device) < 0.5).float()
        coded = quantise_bits(self.model.code.encode(y), self.model.deviation, bits, rates if config.bit_error_rate else None)
        error = ((self.model.code.decode(coded) - y) * deviation).square().sum(1) / config.network.pixels
        return (error + self.left_out).log().mean()

    @torch.no_grad()
    def _coordinates(self, start: int, *, mirrored: bool = False) -> Tensor:
        pixels = self.squares.pixels[start : start + BLOCK]
        x = pictures(pixels[:, :, ::-1] if mirrored else pixels, self.device)
        y = torch.zeros(len(x), self.config.network.rows, device=self.device)
        for f, part in enumerate(self.parts):
            mine = torch.from_numpy(self.fold[start : start + BLOCK] == f).to(self.device)
            if mine.any():
                y[mine] = part.linear_analysis(x[mine])
        return y

    def batch(self, step: int, worker: int) -> tuple[Tensor, Tensor, Tensor]:
        """x and base, (batch, channels, H, W) each, and y (batch, M) in units of its deviation; depends on (seed, step,
        worker) and torch's generator alone."""
        config = self.config
        rng = np.random.default_rng((config.seed * 1000 + worker, step))
        at = self.seen[rng.integers(len(self.seen), size=config.data.batch)]
        x, base, y = self.at(at, rng, mirror=config.data.mirror)
        if config.mirror_pairs:
            flips = torch.from_numpy(rng.random(len(at)) < 0.5).to(self.device)
            x, base = (torch.where(flips.view(-1, 1, 1, 1), t.flip(3), t) for t in (x, base))
        return x, base, y

    def at(self, at: np.ndarray, rng: np.random.Generator, *, mirror: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x, base and y of the frames numbered `at`. mirror: half of them seen in a mirror by the linear part, too."""
        config = self.config
        flips = rng.random(len(at)) < (0.5 if mirror else 0)
        pixels = self.squares.pixels[at]
        pixels[flips] = pixels[flips, :, ::-1]
        x = pictures(pixels, self.device)
        if self.model.encoder is not None:
            with loop.autocast(self.device, config.bfloat16):
                y = self.model.encode(x)
            y = self._rounded(y, self.model.deviation, rng)
            return x, self.model.base(y), y / self.model.deviation
        base = torch.empty_like(x)
        found = self._received(at, rng, x if flips.any() else None)
        coordinates = torch.empty(len(x), config.network.m, device=self.device)
        code = self.model.code
        for f, part in enumerate(self.parts):
            mine = torch.from_numpy(self.fold[at] == f).to(self.device)
            if not mine.any():
                continue
            deviation = part.component_deviation
            if code is None:
                y = self._rounded(found[mine], deviation, rng)
                base[mine], coordinates[mine] = part.linear_synthesis(y), y / deviation
            else:
                with torch.no_grad():
                    y = self._rounded(code.encode(found[mine] / deviation), self.model.deviation, rng)
                    base[mine], coordinates[mine] = part.linear_synthesis(code.decode(y) * deviation), y
        return x, base, coordinates

    def _received(self, at: np.ndarray, rng: np.random.Generator, x: Tensor | None) -> Tensor:
        """Coordinates as interpolated between keyframes, in `step` rounded at those."""
        config = self.config
        if config.quantiser == "bits":
            if x is None:
                return self.y[torch.from_numpy(at)]
            y = torch.empty(len(x), config.network.rows, device=self.device)
            for f, part in enumerate(self.parts):
                mine = torch.from_numpy(self.fold[at] == f).to(self.device)
                if mine.any():
                    y[mine] = part.linear_analysis(x[mine])
            return y
        gap = rng.choice(config.intervals, size=len(at))
        before = np.maximum(at - rng.integers(0, gap), self.starts[at])
        after = np.minimum(before + gap, self.ends[at] - 1)
        share = np.where(after > before, (at - before) / np.maximum(after - before, 1), 0.0)
        size = config.step * 2.0 ** ((DEFAULT_QUALITY - rng.integers(4, 8, size=len(at))) / 2) / 127.5
        step = torch.from_numpy(size).float().to(self.device).unsqueeze(1)
        a, b = (torch.round(self.y[torch.from_numpy(i)] / step) * step for i in (before, after))
        return torch.lerp(a, b, torch.from_numpy(share).float().to(self.device).unsqueeze(1))

    def _rounded(self, y: Tensor, deviation: Tensor, rng: np.random.Generator) -> Tensor:
        config = self.config
        if config.quantiser == "step":
            return y
        bits = torch.from_numpy(rng.choice(config.bits, size=len(y))).to(self.device)
        if not config.bit_error_rate:
            return quantise_bits(y, deviation, bits)
        rates = config.bit_error_rate * torch.from_numpy(rng.random(len(y)) < 0.5).float().to(self.device)
        return quantise_bits(y, deviation, bits, rates)


def quantise_bits(y: Tensor, deviation: Tensor, bits: Tensor, error_rates: Tensor | None = None) -> Tensor:
    """y (B, M) at bits (B,), rounded straight-through to what the other end will hold; no gradient beyond the last level.

    error_rates: (B,), with which each bit of the coder `fixed` is flipped, drawn from torch's generator.
    """
    gain = _levels_per_deviation(y.device)[bits - 1].unsqueeze(1) / deviation
    half = (2 ** (bits - 1)).unsqueeze(1).float()
    offset = OFFSET * deviation
    symbols = ((y + offset) * gain).round().clamp(1 - half, half)
    if error_rates is not None:
        symbols = _flipped(symbols, bits, error_rates)
    within = torch.maximum(torch.minimum(y, half / gain - offset), (1 - half) / gain - offset)
    return within + (symbols / gain - offset - within).detach()


@functools.cache
def _levels_per_deviation(device: torch.device) -> Tensor:
    """Once for each device: a copy in every step would wait for a GPU."""
    return torch.tensor(LEVELS_PER_DEVIATION, device=device)


def _flipped(symbols: Tensor, bits: Tensor, error_rates: Tensor) -> Tensor:
    """Symbols 1 - 2^(b-1) .. 2^(b-1) (B, M) after bit errors in a sign and b - 1 bits of distance, as `fixed` writes them."""
    above = symbols.long() - 1  # 0 and up, or -1 and down
    positive = above >= 0
    distance = torch.where(positive, above, -1 - above)
    for bit in range(QUALITIES - 1):
        hit = (torch.rand_like(symbols) < error_rates.unsqueeze(1)) & (bit < bits - 1).unsqueeze(1)
        distance = distance ^ (hit.long() << bit)
    positive = positive ^ (torch.rand_like(symbols) < error_rates.unsqueeze(1))
    return (torch.where(positive, distance, -1 - distance) + 1).to(symbols.dtype)


def learn_components(model: Residual, pixels: np.ndarray) -> None:
    """Principal components of uint8 (N, H, W, channels), their mean and deviations, into the model's buffers."""
    wanted = model.config.rows
    if len(pixels) <= wanted:
        raise InputError(f"{len(pixels)} pictures are too few for {wanted} coordinates; give more or a smaller m")
    mean, rows, _ = principal_components((x.flatten(1) for x in _blocks(pixels)), wanted)
    model.set_basis(rows, mean)
    with torch.no_grad():
        y = torch.cat([model.linear_analysis(x) for x in _blocks(pixels)])
    model.component_deviation.copy_(y.std(0).clamp_min(1e-6))


def pictures(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, channels) to (B, channels, H, W) in [-1, 1]."""
    return (
        torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
    )


def load(config: ResidualTraining, data: Path) -> Squares:
    """The training's pictures."""
    network = config.network
    size = (network.frame_size[0], network.frame_size[1])
    folders, every = [data / f for f in config.data.folders], config.data.every
    return load_squares(folders, size=size, channels=network.channels, every=every, without=config.data.without)


def _blocks(pixels: np.ndarray) -> Iterator[Tensor]:
    return (pictures(pixels[start : start + BLOCK]) for start in range(0, len(pixels), BLOCK))


def _mean_db(squared: Tensor) -> float:
    """Mean PSNR from mean squared errors (B,) of values in [-1, 1]."""
    return float((10 * torch.log10(4 / squared.clamp_min(1e-9))).mean())


def _schedule(step: int, steps: int) -> float:
    """Warm-up, then half a cosine down to a twentieth."""
    share = step / max(steps, 1)
    return min(1.0, (step + 1) / WARM_UP) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * share)))


def _same_crop(a: Tensor, b: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same random square of both, as RGB in [0, 1]."""
    height, width = a.shape[2:]
    h, w = min(size, height), min(size, width)
    top, left = (int(torch.randint(0, (full - part) // 4 + 1, ()).item()) * 4 for full, part in ((height, h), (width, w)))
    crops = (t[:, :, top : top + h, left : left + w].expand(-1, 3, -1, -1) / 2 + 0.5 for t in (a, b))
    first, second = (c.contiguous(memory_format=torch.channels_last) for c in crops)
    return first, second


def _features(config: ResidualTraining, device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    if config.l2 == 0:
        return None
    from ..evaluation.features import VggFeatures

    vgg = channels_last(VggFeatures(config.perceptual_file, layers=config.vgg_layers), device)
    return vgg.distance


def _classes(config: ResidualTraining, squares: Squares, out: Path, device: torch.device) -> ClassDistance | None:
    if config.l3 == 0:
        return None
    networks = classes.learn(
        squares,
        config.class_networks,
        out / classes.FILE,
        seed=config.seed,
        device=device,
        epochs=config.class_epochs,
        bfloat16=config.bfloat16,
    )
    return ClassDistance(networks)


def _without_network(config: ResidualConfig) -> ResidualConfig:
    """The same linear part with the smallest of networks: only the former is used."""
    return replace(config, m=config.rows, components=0, width=1, blocks=0, encoder=False, code=0, direct=False)


def export(
    checkpoint: Path,
    data: Path,
    output: Path,
    *,
    card: Mapping[str, Any] | None = None,
    config: ResidualTraining | None = None,
) -> str:
    """A training's checkpoint as a manifold file; returns its id. data: as in `train`, for the code tables. config: in place of
    the checkpoint's, for the name and default_quality."""
    step, values, tensors = loop.read_checkpoint(checkpoint)
    config = config or from_dict(values, ResidualTraining, source=str(checkpoint))
    net = Residual(config.network)
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    net.load_state_dict(state | {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
    squares = load(config, data)
    return save(net.eval(), config, squares, output, card={"steps": step} | dict(card or {}))


@torch.inference_mode()
def save(
    net: Residual,
    config: ResidualTraining,
    squares: Squares,
    output: Path,
    *,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Writes net as a manifold, with code tables for the symbols of `squares`; returns its id."""
    net = copy.deepcopy(net).float()
    if config.quantiser == "bits":
        net.offset.copy_(OFFSET * net.deviation)
        gains = [g / net.deviation for g in LEVELS_PER_DEVIATION]
    else:
        steps = [config.step * 2 ** ((DEFAULT_QUALITY - q) / 2) / 127.5 for q in range(1, QUALITIES + 1)]
        gains = [torch.full((config.network.m,), 1 / s) for s in steps]
    net.prepare()
    exact = {"basis", "basis_scale", "deviation", "spread", "offset"}
    halves = loop.halved({k: v for k, v in net.state_dict().items() if k not in exact})
    clips, y, squared = _encode(net, squares, gains[config.default_quality - 1])
    tables = []
    for bits, gain in enumerate(gains, start=1):
        levels = {"centre": 1, "bits": bits} if config.quantiser == "bits" else {}
        tables.append(coordinate_tables(y * gain.numpy(), clips, **levels))
    facts = {
        "title": f"{config.network.m} principal components and a residual network, from {', '.join(config.data.folders)}",
        "data": f"{len(squares.clips)} pictures and videos, {len(squares.pixels)} frames",
        "made": date.today().isoformat(),
        "training_config": to_dict(config),
        "scores": {"training_psnr_db": round(10 * math.log10(4 / max(squared, 1e-9)), 2)},
        "not_for": "pictures of another kind than those it learned from",
        RANGES: ranges_of(net, list(torch.from_numpy(y)[..., None, None]), [(gain, 1 / gain) for gain in gains]),
    }
    return manifold.save(
        output,
        kind="ncode",
        name=config.name,
        config={
            "frame_size": list(config.network.frame_size),
            "stride": None,
            "qualities": QUALITIES,
            "default_quality": config.default_quality,
            "network": to_dict(config.network),
        },
        tables=tables,
        tensors={k: v.contiguous().numpy() for k, v in (net.state_dict() | halves).items()}
        | {"gain": torch.stack(gains).numpy()},
        card=facts | dict(card or {}),
    )


def _encode(net: Residual, squares: Squares, gain: Tensor) -> tuple[list[int], np.ndarray, float]:
    """Frames of each clip used, their latents (frames, M), and the mean squared error of values at the default quality."""
    clips = first_clips(squares.clips)
    total = sum(clips)
    latents, squared = [], 0.0
    for start in range(0, total, 64):
        x = pictures(squares.pixels[start : min(start + 64, total)])
        y = net.encode(x) + net.offset
        back = net.decode((y * gain).round() / gain - net.offset)
        squared += (back.clamp(-1, 1) - x).square().mean((1, 2, 3)).sum().item()
        latents.append(y.numpy())
    return clips, np.concatenate(latents), squared / total
