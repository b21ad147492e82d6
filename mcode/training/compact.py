"""Trains a compact `hific` manifold: rate against distortion at all qualities at once, in one process or by torchrun."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..nets.hific import CompactConfig, CompactHific
from . import loop
from .crops import CropStream, draw_crop, load_pictures
from .patches import fit_patches


@dataclass(frozen=True)
class DataConfig:
    """Folders are relative to --data."""

    folders: tuple[str, ...]
    longest: int = 1600
    frames_per_video: int = 12
    crop: int = 256
    batch: int = 8


@dataclass(frozen=True)
class LossConfig:
    """bits per pixel + lambda * (squared error on 0..255 + perceptual * feature distance); lambda rises by equal factors
    from quality 1 (low) to the highest. The feature distance comes in at step `perceptual_from`, rising to its weight over
    `perceptual_ramp` steps: all at once it threw Adam off (docs/log.md)."""

    lambda_low: float = 0.0006
    lambda_high: float = 0.0175
    perceptual: float = 0.0
    perceptual_crops: int = 4
    perceptual_size: int = 128
    perceptual_from: int = 0
    perceptual_ramp: int = 600


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam; the rate warms up linearly, stays, and falls by a cosine over the last `decay_steps`."""

    steps: int
    learning_rate: float = 4e-4
    final_rate: float = 2e-5
    warmup: int = 300
    decay_steps: int = 4000
    clip: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 250


@dataclass(frozen=True)
class CompactTraining:
    """What configs/general.toml holds."""

    kind: Literal["hific"]
    name: str
    data: DataConfig
    optimiser: OptimiserConfig
    network: CompactConfig = field(default_factory=CompactConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 1


def lambdas(config: LossConfig, qualities: int) -> Tensor:
    """(qualities,): the price of a squared error of 1 (0..255 scale) in bits per pixel."""
    return torch.logspace(math.log10(config.lambda_low), math.log10(config.lambda_high), qualities)


def start_step(lam: Tensor) -> Tensor:
    """The quantiser step, in orthonormal 16x16x3 patch coefficients of [-1, 1] pixels, that balances rate and distortion
    at price `lam` when quantisation is fine: d(bits)/d(step) = -256 lam d(error)/d(step)."""
    return torch.sqrt(12 * 768 / (2 * 256 * math.log(2) * lam)) / 127.5


def learning_rate(step: int, config: OptimiserConfig) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    into = (step - (config.steps - config.decay_steps)) / max(1, config.decay_steps)
    if into <= 0:
        return config.learning_rate
    return config.final_rate + (config.learning_rate - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1, into)))


def train(
    config: CompactTraining,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: loop.Report | None = None,
) -> Path:
    """Trains until `optimiser.steps`, writing OUT/checkpoint.safetensors and OUT/log.jsonl; returns the checkpoint's path.

    With resume it goes on from the checkpoint: same crops, same noise, same optimiser state, as if it had not stopped.
    Raises McodeError when the loss is not finite, naming the step.
    """
    workers, worker = loop.join_workers(device)
    torch.manual_seed(config.seed)
    model = CompactHific(config.network)
    first, saved = loop.begin(out, resume, model)
    checkpoint = out / loop.CHECKPOINT
    pictures = load_pictures(
        [data / f for f in config.data.folders], longest=config.data.longest, frames_per_video=config.data.frames_per_video
    )
    if not pictures:
        raise InputError(f"{data}: no pictures or videos in {', '.join(config.data.folders)}")
    lam = lambdas(config.loss, config.network.qualities)
    if saved is None:
        rng = np.random.default_rng(config.seed)
        sample = np.stack([draw_crop(pictures, 256, rng) for _ in range(256)])
        middle = float(start_step(lam)[config.network.qualities // 2])
        fit_patches(model.net.patches, sample, middle)
        with torch.no_grad():
            model.gains.log_gain.copy_((middle / start_step(lam)).log().unsqueeze(1).expand_as(model.gains.log_gain))
            spread = torch.tensor([-1.5, -0.3, 0.8]).view(1, 3, 1)
            x = torch.from_numpy(sample[:32]).permute(0, 3, 1, 2).float() / 127.5 - 1
            size = model.net.patches(x).abs().mean((0, 2, 3))
            model.rate.log_scale.copy_((model.gains.gain() * size).log().unsqueeze(1) + spread)
    model.to(device, memory_format=torch.channels_last)
    parameters = dict(model.named_parameters())
    ema = loop.averages(parameters, saved)
    optimiser = torch.optim.Adam(
        [
            {"params": list(model.net.parameters()), "speed": 1.0},
            {"params": list(model.gains.parameters()), "speed": 2.0},
            {"params": list(model.rate.parameters()), "speed": 10.0},
        ],
        lr=config.optimiser.learning_rate,
    )
    loop.load_moments([optimiser], model, saved, first)
    features = None
    if config.loss.perceptual > 0:
        from ..evaluation.features import VggFeatures

        features = VggFeatures(layers=("relu1_2", "relu2_2", "relu3_4")).to(device, memory_format=torch.channels_last)
    crops = CropStream(pictures, config.data.batch, config.data.crop, config.seed * 1000 + worker, first)
    lam = lam.to(device)
    log, started = loop.Log(out, first, worker, report), time.monotonic()
    for step in range(first, config.optimiser.steps):
        rate = learning_rate(step, config.optimiser)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["speed"]
        loop.seed_step(config.seed, step, worker)
        x = torch.from_numpy(next(crops)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        x = x.contiguous(memory_format=torch.channels_last)
        quality = torch.randint(config.network.qualities, (len(x),)).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            x_hat, bits = model(x, quality)
        x_hat = x_hat.float()
        error = (x_hat - x).square().mean((1, 2, 3)) * 127.5**2
        bpp = bits / (x.shape[2] * x.shape[3])
        loss = (bpp + lam[quality] * error).mean()
        distance = torch.zeros(())
        if features is not None and step >= config.loss.perceptual_from:
            distance = _feature_distance(features, x, x_hat, config.loss, step)
            k = distance.numel()
            risen = min(1.0, (step - config.loss.perceptual_from + 1) / max(1, config.loss.perceptual_ramp))
            loss = loss + (lam[quality[:k]] * config.loss.perceptual * risen * distance).mean()
        norm = loop.update(optimiser, loss, step=step, workers=workers, clip=config.optimiser.clip)
        loop.smooth(ema, parameters, config.optimiser.ema, step)
        log.add(loss=loss.item(), bpp=bpp.mean().item(), mse=error.mean().item(), feature=distance.mean().item())
        done = step + 1
        if worker == 0 and (done % config.optimiser.checkpoint_every == 0 or done == config.optimiser.steps):
            rate_of_pictures = (done - first) * config.data.batch * workers / (time.monotonic() - started)
            loop.save_checkpoint(checkpoint, model, ema, [optimiser], done, config)
            log.write(done, lr=rate, norm=norm, pictures_per_s=rate_of_pictures)
    return checkpoint


def _feature_distance(features: Any, x: Tensor, x_hat: Tensor, config: LossConfig, step: int) -> Tensor:
    side, count = config.perceptual_size, config.perceptual_crops
    free = x.shape[2] - side
    top, left = (step * 37) % (free + 1), (step * 53) % (free + 1)
    window = (slice(0, count), slice(None), slice(top, top + side), slice(left, left + side))
    with torch.autocast(x.device.type, torch.bfloat16):
        return features.distance(x[window] / 2 + 0.5, x_hat[window].clamp(-1.2, 1.2) / 2 + 0.5)
