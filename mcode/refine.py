"""Refinement of symbols while encoding: gradient steps on what is sent, by the very networks that will decode it.

The analysis network guesses a picture's latents in one pass; for this one picture better ones exist. They are looked for
with stochastic Gumbel annealing (Yang, Bamler, Mandt 2020, "Improving Inference for Neural Image Compression"): every
latent is drawn between its two nearest integers, ever more surely, so that the loss sees what rounding will do. The loss
is the training's, with less of squared error: bits of the hyperprior + lambda * (squared error + weight * feature
distance). The stream's format and its decoders know nothing of it.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coders.range import DELTA, WITH_Z, level_of
from .errors import InputError
from .evaluation.features import VGG_LAYERS, SqueezeNetFeatures, VggFeatures, unit_distance
from .manifold import PRICES, Manifold
from .nets.eye import EYE_FILE, load_eyes
from .nets.gumbel import gumbel_rounded
from .nets.hyper import SCALE_LOW, SCALE_STEP, Hyper, LaplaceBits
from .nets.layers import channels_last
from .nets.tiled import parts

JUDGES = ("eye", "vgg19")
"""What sees the difference: the small networks that ship, or VGG19 and SqueezeNet, whose weights do not."""
MOST_STEPS = 10_000
LARGEST = 1 << 20
"""Pixels that are refined at once, margins included: some 4 GB in VGG19's features."""
MARGIN = 4
"""Latent positions around a part that are computed with it and thrown away."""
_SHARE = 0.8
"""Of the training's lambda. Refined symbols show more for every bit, so more bits are worth spending at the same quality; at a
little over half of this a quarter of what refinement saves is lost (docs/log.md)."""
_ERROR = 0.5
"""Of the training's weight of squared error: with less of it pictures show more at equal bits, down to about here."""
_SMALLEST = 32
_RATE = 0.015
_WARM, _COLD = 0.3, 0.05
_INDEX_EVERY = 4
"""Steps for which scale and mean of every symbol stay as they were predicted: they hardly move."""


@dataclass(frozen=True)
class Prices:
    """lambdas: of each quality, bits per pixel for a squared error of 1 (0..255 scale). perceptual: weight of the feature
    distance beside it, VGG19's plus `squeezenet` times SqueezeNet's, as in `training.compact.LossConfig`."""

    lambdas: tuple[float, ...]
    perceptual: float
    squeezenet: float

    @classmethod
    def of(cls, model: Manifold) -> Prices:
        """From the card. Raises InputError for a manifold that names none, or has no hyperprior or fixed size."""
        found = model.card.get(PRICES)
        try:
            if found is None or model.hyper is None or model.frame_size is not None:
                raise ValueError
            lambdas = tuple(float(v) for v in found["lambdas"])
            weights = float(found["perceptual"]), float(found["squeezenet"])
            if len(lambdas) != model.qualities or not all(0 < v < math.inf for v in lambdas):
                raise ValueError
            if not all(0 <= v < math.inf for v in weights):
                raise ValueError
            return cls(lambdas, *weights)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"--refine: manifold {model.name} does not say what bits are worth in it; use --manifold general, or leave "
                "--refine out"
            ) from None


def fingerprint(judge: str) -> str:
    """Of all that decides, beside manifold, steps and pictures, what refinement by a judge of JUDGES comes to."""
    settings = [_SHARE, _ERROR, _RATE, _WARM, _COLD, _INDEX_EVERY, MARGIN, LARGEST]
    eyes = EYE_FILE.read_bytes() if judge == "eye" else b""
    return hashlib.sha256(repr(settings).encode() + eyes).hexdigest()[:16]


class Refiner:
    """Better symbols for a keyframe; see the module. Called by `codec.Encoder`, once for each keyframe.

    steps: 1 to MOST_STEPS. judge: of JUDGES. weights: for "vgg19", the folder with VGG19's and SqueezeNet's weights, else
    MCODE_PERCEPTUAL. The same seed, machine and threads give the same symbols. Raises InputError where the weights or the
    manifold's prices are missing.
    """

    def __init__(
        self,
        model: Manifold,
        steps: int,
        *,
        judge: str = "eye",
        weights: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"steps is {steps}; it is 1 to {MOST_STEPS}")
        if judge not in JUDGES:
            raise ValueError(f"judge {judge!r} is not one of {', '.join(JUDGES)}")
        self.model, self.steps, self.judge, self.seed = model, steps, judge, seed
        self.prices = Prices.of(model)
        assert model.hyper is not None
        self._hyper = Hyper.from_integers(model.hyper.config, model.hyper.weights).to(model.device).requires_grad_(False)
        model.net.requires_grad_(False)
        if judge == "vgg19":
            judges: list[Any] = [VggFeatures(weights, VGG_LAYERS)]
            self._shares = [1.0]
            if self.prices.squeezenet > 0:
                judges.append(SqueezeNetFeatures(weights))
                self._shares.append(self.prices.squeezenet)
        else:
            judges = [copy.deepcopy(eye) for eye, _ in load_eyes()]
            self._shares = [scale for _, scale in load_eyes()]
        self._judges = channels_last(nn.ModuleList(judges), model.device)

    def __call__(
        self, rgb: np.ndarray, latent: Tensor, symbols: np.ndarray, previous: np.ndarray | None, quality: int
    ) -> np.ndarray:
        """int16 (C, h, w), of lower loss than `symbols` or equal to them.

        rgb: uint8 (H, W, 3). latent: what the analysis says of it, (C, h, w). previous: the symbols that these are coded
        against, None where they are sent whole. Large pictures are refined part by part.
        """
        found = symbols.copy()
        _, h, w = symbols.shape
        step = self.model.stride or 1
        scaled = (latent.float() * self.model.gain(quality).view(-1, 1, 1)).cpu().numpy()
        for number, (rows, columns) in enumerate(parts(h, w, MARGIN, LARGEST // step**2)):
            at = (slice(None), slice(rows.low, rows.high), slice(columns.low, columns.high))
            pixels = rgb[rows.low * step : rows.high * step, columns.low * step : columns.high * step]
            before = None if previous is None else previous[at]
            better = self._part(pixels, scaled[at], found[at], before, quality, self.seed + number)
            found[:, rows.start : rows.stop, columns.start : columns.stop] = better[:, rows.kept, columns.kept]
        return found

    def _part(
        self, rgb: np.ndarray, scaled: np.ndarray, symbols: np.ndarray, previous: np.ndarray | None, quality: int, seed: int
    ) -> np.ndarray:
        device = self.model.device
        noise = torch.Generator(device).manual_seed(seed)
        task = _Task(self, rgb, previous, quality)
        start = torch.from_numpy(symbols.astype(np.float32))[None].to(device)
        # A latent that was rounded to something else than its nearest integer (a dead zone) starts at the edge to it.
        at = torch.from_numpy(scaled)[None].to(device)
        moving = (start + (at - start).clamp(-0.49, 0.49)).requires_grad_(True)
        optimiser = torch.optim.Adam([moving], lr=_RATE)
        for step in range(self.steps):
            share = step / self.steps
            for group in optimiser.param_groups:
                group["lr"] = _RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
            if step % _INDEX_EVERY == 0:
                task.predict(moving.detach().round())
            loss = task.loss(gumbel_rounded(moving, _WARM * (_COLD / _WARM) ** share, noise), judge=step % len(self._judges))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        better = moving.detach().round()
        with torch.no_grad():
            losses = [task.predict(found).loss(found).item() for found in (start, better)]
        if not losses[1] < losses[0]:
            return symbols
        return better[0].to(torch.int16).cpu().numpy()


class _Task:
    """The loss of symbols for one picture."""

    def __init__(self, refiner: Refiner, rgb: np.ndarray, previous: np.ndarray | None, quality: int) -> None:
        self.refiner, self.model = refiner, refiner.model
        device = self.model.device
        self.height, self.width = rgb.shape[:2]
        x = (
            torch.from_numpy(np.require(rgb, requirements=["C", "W"]))
            .to(device)
            .permute(2, 0, 1)[None]
            .float()
            .div_(127.5)
            .sub_(1)
        )
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.inverse = self.model.inverse(quality).view(-1, 1, 1)
        self.price = _SHARE * refiner.prices.lambdas[quality - 1]
        self.quality = torch.tensor([quality - 1], device=device)
        self.previous = None if previous is None else torch.from_numpy(previous.astype(np.float32))[None].to(device)
        self.mean = self.scale = torch.empty(0)
        with torch.no_grad(), self._autocast():
            self.wanted = [_maps(judge, _seen(self.x)) for judge in refiner._judges]

    def predict(self, symbols: Tensor) -> _Task:
        """What the hyperprior expects of each symbol, around these."""
        hyper = self.refiner._hyper
        previous = torch.zeros_like(symbols) if self.previous is None else self.previous
        with torch.no_grad():
            z = hyper.analysis(symbols, self.quality)
            index, mean = hyper.indices(symbols, previous, z, self.quality, self._kind(symbols), joined=True)
        self.scale = SCALE_LOW * torch.exp(SCALE_STEP * index)
        self.mean = mean / 4 if self.previous is None else mean / 4 + self.previous
        return self

    def _kind(self, symbols: Tensor) -> Tensor:
        if self.previous is None:
            return torch.full_like(self.quality, WITH_Z)
        this, last = (part[0].flatten(1).cpu().numpy() for part in (symbols, self.previous))
        return torch.full_like(self.quality, DELTA + level_of(this, last, self.refiner._hyper.config.levels))

    def loss(self, symbols: Tensor, judge: int | None = None) -> Tensor:
        """bits per pixel + lambda * distortion, of symbols (1, C, h, w), whole or between. judge: that one alone stands for
        all, as steps take them in turn; None: all are asked."""
        bits = LaplaceBits.apply((symbols - self.mean).abs(), self.scale).sum()
        with self._autocast():
            x_hat = self.model.net.synthesis(symbols * self.inverse)[..., : self.height, : self.width].float()
            error = (x_hat - self.x).square().mean() * 127.5**2
            seen = _seen(x_hat)
            every = list(zip(self.refiner._shares, self.wanted, self.refiner._judges, strict=True))
            asked = every if judge is None else [every[judge]]
            distances = sum(share * unit_distance(maps, _maps(j, seen))[0] for share, maps, j in asked)
            distance = distances * (len(every) / len(asked))
        prices = self.refiner.prices
        return bits / (self.height * self.width) + self.price * (_ERROR * error + prices.perceptual * distance)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype != torch.float32)


def _seen(x: Tensor) -> Tensor:
    """Pixels around [-1, 1] as the judges take them: in [0, 1], and no smaller than SqueezeNet can look at."""
    rgb = x.clamp(-1.2, 1.2) / 2 + 0.5
    below, beside = (max(0, _SMALLEST - side) for side in x.shape[2:])
    return F.pad(rgb, (0, beside, 0, below), mode="replicate") if below or beside else rgb


def _maps(judge: nn.Module, rgb: Tensor) -> list[Tensor]:
    return judge.maps(rgb) if isinstance(judge, SqueezeNetFeatures) else judge(rgb)
