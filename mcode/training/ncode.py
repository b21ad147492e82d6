"""Trains an `ncode` manifold: g against d, then f against the frozen g (Santurkar et al. 2017, section 3).

What leaves the paper: WGAN as its section 5 proposes, smoothed weights, optional quantisation-aware encoding. g is
frozen as the average of its weights, with batch norm's statistics measured anew for them.
"""

from __future__ import annotations

import copy
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import manifold
from ..config import from_dict, to_dict
from ..errors import InputError
from ..nets.layers import channels_last
from ..nets.ncode import BITS, Discriminator, Encoder, Generator, NCode, NCodeConfig, levels, quantise
from . import loop
from .deltas import coordinate_tables, first_clips
from .footage import data_entry
from .squares import Squares, load_squares

DEFAULT_BITS = 5
STAGES = ("adversarial.steps", "encoding.steps")
STATISTICS_BATCHES = 50
"""Over which batch norm's statistics are measured for the weights that are kept."""
_PERCEPTUAL = Literal["none", "vgg19", "alexnet"]


@dataclass(frozen=True)
class NCodeData:
    """Folders or archives, relative to --data. every: of a video, take every so many frames. batch: of each process.
    without: names of files that are left out."""

    folders: tuple[str, ...]
    batch: int = 64
    every: int = 1
    mirror: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.folders or self.batch < 2 or self.every < 1:
            raise ValueError("folders must name one place at least, batch is 2 or more, every 1 or more")


@dataclass(frozen=True)
class AdversarialConfig:
    """Stage 1. loss "wgan" clips the critic's weights to +-clip, or with gradient_penalty > 0 (10 in the literature)
    penalises its gradient instead and has no batch norm in the critic (Gulrajani et al. 2017). critic_steps: of d for
    each of g. augment: d sees real and generated pictures shifted and changed in brightness and contrast, which keeps it
    from learning a small set by heart (Zhao et al. 2020, DiffAugment); not in the paper."""

    steps: int
    loss: Literal["dcgan", "wgan"] = "dcgan"
    gradient_penalty: float = 0.0
    clip: float = 0.01
    critic_steps: int = 1
    prior: Literal["uniform", "truncated-normal"] = "uniform"
    learning_rate: float = 2e-4
    momentum: float = 0.5
    ema: float = 0.999
    augment: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.critic_steps < 1:
            raise ValueError("steps and critic_steps are 1 or more")
        loop.check_numbers(self)
        if self.gradient_penalty < 0 or (self.gradient_penalty and self.loss != "wgan"):
            raise ValueError('gradient_penalty is 0 or more, and 0 unless loss = "wgan"')


@dataclass(frozen=True)
class EncodingConfig:
    """Stage 2: l1 ||x - x_hat||^2 + l2 ||features(x) - features(x_hat)||^2, summed over a picture in [-1, 1].

    perceptual: "alexnet" is the paper's conv4; "vgg19" the distance of relu3_4's unit vectors, summed over positions;
    their weights come from perceptual_file or the usual places, and a perceptual_file ending in .pt2 is a feature network
    by itself (see load_network), compared as the paper compares conv4. aware_bits: the quantiser takes part, at one of these
    depths for each picture.
    """

    steps: int
    l1: float = 1.0
    l2: float = 0.002
    perceptual: _PERCEPTUAL = "none"
    perceptual_file: str | None = None
    aware_bits: tuple[int, ...] = ()
    learning_rate: float = 2e-4
    momentum: float = 0.5
    ema: float = 0.999

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps is 1 or more")
        loop.check_numbers(self)
        loop.check_not_negative(self, "l1", "l2")
        if not set(self.aware_bits) <= set(BITS):
            raise ValueError(f"aware_bits are of {BITS[0]}..{BITS[-1]}")


@dataclass(frozen=True)
class NCodeTraining:
    """What configs/ncode.toml holds. bfloat16: compute in it where it is fast."""

    kind: Literal["ncode"]
    name: str
    data: NCodeData
    adversarial: AdversarialConfig
    encoding: EncodingConfig
    network: NCodeConfig = field(default_factory=NCodeConfig)
    checkpoint_every: int = 500
    bfloat16: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError("checkpoint_every is 1 or more")
        loop.check_numbers(self)


class Networks(nn.Module):
    """g, d and f of one training."""

    def __init__(self, config: NCodeTraining) -> None:
        super().__init__()
        self.g = Generator(config.network)
        self.d = Discriminator(config.network, norm=config.adversarial.gradient_penalty == 0)
        self.f = Encoder(config.network)


def draw_prior(config: NCodeTraining, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """z (count, M, 1, 1): uniform in [-1, 1], or normal with deviation 0.5 cut off there."""
    z = torch.empty(count, config.network.m, 1, 1)
    if config.adversarial.prior == "uniform":
        z.uniform_(-1, 1, generator=generator)
    else:
        nn.init.trunc_normal_(z, std=0.5, a=-1, b=1, generator=generator)
    return z.to(device)


def train(
    config: NCodeTraining,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: loop.Report | None = None,
) -> Path:
    """Runs both stages, writing checkpoint.safetensors, log.jsonl and samples in `out`; returns the checkpoint's path.

    With resume it goes on from the checkpoint as if it had not stopped. Raises McodeError when a loss is not finite.
    """
    workers, worker = loop.join_workers(device)
    torch.manual_seed(config.seed)
    model = Networks(config)
    first, saved = loop.begin(out, resume, model, config, STAGES)
    stage1, total = config.adversarial.steps, config.adversarial.steps + config.encoding.steps
    going_on = out / loop.CHECKPOINT if 0 < first < total else None
    of_data = data_entry(data, config.data.folders, going_on, config.data.without)
    squares = _load(config, data)
    features = _feature_distance(config.encoding, torch.device(device))
    channels_last(model, device)
    steps = Steps(config, model, squares, torch.device(device), workers, worker, features)
    loop.load_moments(steps.optimisers, model, saved, first)
    parameters = dict(model.named_parameters())
    ema = loop.averages({k: v for k, v in parameters.items() if not k.startswith("d.")}, saved)
    of_g = {k: v for k, v in ema.items() if k.startswith("g.")}
    of_f = {k: v for k, v in ema.items() if k.startswith("f.")}
    log, started = loop.Log(out, first, worker, report), time.monotonic()
    fixed_z = draw_prior(config, 64, steps.device, torch.Generator().manual_seed(config.seed))

    def finish(step: int, losses: Mapping[str, float], samples: Callable[[], np.ndarray]) -> None:
        log.add(**losses)
        done = step + 1
        if worker == 0 and (done % config.checkpoint_every == 0 or done in (stage1, total)):
            speed = (done - first) * config.data.batch * workers / (time.monotonic() - started)
            loop.save_checkpoint(out / loop.CHECKPOINT, model, ema, steps.optimisers, done, config, **of_data)
            log.write(done, pictures_per_s=round(speed, 1))
            log.picture(done, samples())

    for step in range(first, stage1):
        losses = steps.adversarial_step(step)
        loop.smooth(of_g, parameters, config.adversarial.ema, step)
        finish(step, losses, lambda: grid(_averaged(model.g, of_g, "g.")(fixed_z)))
    if first <= stage1:
        with torch.no_grad():
            for key, average in of_g.items():
                parameters[key].copy_(average)
        loop.seed_step(config.seed, stage1, 0)  # not the worker: g stays the same everywhere
        measure_statistics(model.g, (draw_prior(config, config.data.batch, steps.device) for _ in range(STATISTICS_BATCHES)))
    model.g.eval().requires_grad_(False)
    shown = steps.pictures(squares.pixels[:: max(1, len(squares.pixels) // 32)][:32])

    def reconstructions() -> np.ndarray:
        back = model.g(_averaged(model.f, of_f, "f.")(shown))
        return grid(torch.stack([shown, back], 1).flatten(0, 1))

    for step in range(max(first, stage1), total):
        losses = steps.encoding_step(step)
        loop.smooth(of_f, parameters, config.encoding.ema, step - stage1)
        finish(step, losses, reconstructions)
    return out / loop.CHECKPOINT


class Steps:
    """The steps of both stages; what they hold does not change during a training, except through the optimisers."""

    def __init__(
        self,
        config: NCodeTraining,
        model: Networks,
        squares: Squares,
        device: torch.device,
        workers: int,
        worker: int,
        features: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self.config, self.model, self.squares, self.device = config, model, squares, device
        self.workers, self.worker, self.features = workers, worker, features
        first, second = config.adversarial, config.encoding
        self.of_g = torch.optim.Adam(model.g.parameters(), first.learning_rate, (first.momentum, 0.999))
        self.of_d = torch.optim.Adam(model.d.parameters(), first.learning_rate, (first.momentum, 0.999))
        self.of_f = torch.optim.Adam(model.f.parameters(), second.learning_rate, (second.momentum, 0.999))
        self.optimisers = (self.of_g, self.of_d, self.of_f)

    def pictures(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, H, W, channels) to (B, channels, H, W) in [-1, 1] on the device."""
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        return x.contiguous(memory_format=torch.channels_last)

    def batch(self, index: int) -> Tensor:
        data = self.config.data
        return self.pictures(self.squares.batch(data.batch, self.config.seed * 1000 + self.worker, index, mirror=data.mirror))

    def autocast(self) -> torch.autocast:
        return loop.autocast(self.device, self.config.bfloat16)

    def adversarial_step(self, step: int) -> dict[str, float]:
        """critic_steps of d, then one of g. Non-saturating loss (Goodfellow et al. 2014) or Wasserstein."""
        config, model = self.config.adversarial, self.model
        loop.seed_step(self.config.seed, step, self.worker)
        wasserstein = config.loss == "wgan"
        model.d.requires_grad_(True)
        for k in range(config.critic_steps):
            x = self.batch(step * config.critic_steps + k)
            with self.autocast():
                with torch.no_grad():
                    fake = model.g(draw_prior(self.config, len(x), self.device))
                if config.augment:
                    x, fake = augment(x), augment(fake)
                on_real, on_fake = model.d(x), model.d(fake)
            if wasserstein:
                loss_d = on_fake.mean() - on_real.mean()
            else:
                loss_d = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            if config.gradient_penalty:
                loss_d = loss_d + config.gradient_penalty * gradient_penalty(model.d, x, fake)
            loop.update(self.of_d, loss_d, step=step, workers=self.workers)
            if wasserstein and not config.gradient_penalty:
                with torch.no_grad():
                    for p in model.d.parameters():
                        p.clamp_(-config.clip, config.clip)
        model.d.requires_grad_(False)
        with self.autocast():
            fake = model.g(draw_prior(self.config, self.config.data.batch, self.device))
            judged = model.d(augment(fake) if config.augment else fake)
        loss_g = -judged.mean() if wasserstein else F.softplus(-judged).mean()
        loop.update(self.of_g, loss_g, step=step, workers=self.workers)
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item()}

    def encoding_step(self, step: int) -> dict[str, float]:
        """One of f against the frozen g."""
        config, model = self.config.encoding, self.model
        loop.seed_step(self.config.seed, step, self.worker)
        stage1 = self.config.adversarial
        x = self.batch(stage1.steps * stage1.critic_steps + step - stage1.steps)
        with self.autocast():
            z = model.f(x)
            if config.aware_bits:
                drawn = torch.randint(len(config.aware_bits), (len(x),))
                z = quantise(z, torch.tensor(config.aware_bits)[drawn].to(self.device))
            x_hat = model.g(z)
        squared = (x_hat - x).square().sum((1, 2, 3)).mean()
        loss, losses = config.l1 * squared, {"psnr": 10 * math.log10(4 * x[0].numel() / max(squared.item(), 1e-9))}
        if self.features is not None:
            with self.autocast():
                distance = self.features(x.expand(-1, 3, -1, -1) / 2 + 0.5, x_hat.expand(-1, 3, -1, -1) / 2 + 0.5).mean()
            loss = loss + config.l2 * distance
            losses["feature"] = distance.item()
        loop.update(self.of_f, loss, step=step, workers=self.workers)
        return losses | {"loss_f": loss.item()}


def augment(x: Tensor) -> Tensor:
    """Pictures (B, channels, H, W) each shifted by up to an eighth of its side (beyond its edge it is mirrored), with another
    brightness and contrast, by up to a tenth of the range; differentiable. Draws from torch's generator."""
    count, _, height, width = x.shape
    brightness, contrast = (torch.rand(count, 1, 1, 1, device=x.device) * 0.4 - 0.2 for _ in range(2))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + contrast) + mean + brightness
    reach = [height // 8, width // 8]
    top, left = (torch.randint(0, 2 * r + 1, (count, 1), device=x.device) for r in reach)
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="reflect").permute(0, 2, 3, 1)
    rows = (top + torch.arange(height, device=x.device)).unsqueeze(2)
    columns = (left + torch.arange(width, device=x.device)).unsqueeze(1)
    shifted = padded[torch.arange(count, device=x.device).view(-1, 1, 1), rows, columns]
    return shifted.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def gradient_penalty(d: nn.Module, x: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|gradient of d| - 1)^2 at points between real and generated ones (Gulrajani et al. 2017, equation 3)."""
    between = torch.lerp(x.float(), fake.float(), torch.rand(len(x), 1, 1, 1, device=x.device)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(d(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def measure_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of net's batch norms by the means over `batches`; leaves net in eval mode."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean over batches
    net.train()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    net.eval()


def grid(pictures: Tensor, columns: int = 8) -> np.ndarray:
    """(B, channels, H, W) in [-1, 1] as one uint8 picture (rows H, columns W, 3)."""
    x = pictures.detach().float().expand(-1, 3, -1, -1).add(1).mul(127.5).round().clamp(0, 255)
    tiles = x.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(tiles[i : i + columns]), 1) for i in range(0, len(tiles) // columns * columns, columns)]
    return np.concatenate(rows or [tiles[0]])


def _averaged(net: nn.Module, ema: Mapping[str, Tensor], prefix: str) -> Callable[[Tensor], Tensor]:
    """net with its averaged weights, normalising over the batch as in training; the net itself stays untouched."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(ema[prefix + name])
    twin.train()

    @torch.no_grad()
    def forward(x: Tensor) -> Tensor:
        return twin(x)

    return forward


def _load(config: NCodeTraining, data: Path) -> Squares:
    return load_squares(
        [data / f for f in config.data.folders],
        size=config.network.size,
        channels=config.network.channels,
        every=config.data.every,
        without=config.data.without,
    )


def _feature_distance(config: EncodingConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """From RGB pictures in [0, 1] to their distances (B,); None for perceptual = "none" or l2 = 0."""
    if config.perceptual == "none" or config.l2 == 0:
        return None
    if config.perceptual_file is not None and config.perceptual_file.endswith(".pt2"):
        network = load_network(config.perceptual_file).to(device)
        return lambda a, b: (network(a) - network(b)).float().square().flatten(1).sum(1)
    if config.perceptual == "alexnet":
        from .alexnet import AlexNetConv4

        conv4 = AlexNetConv4(config.perceptual_file).to(device)
        return lambda a, b: (conv4(a) - conv4(b)).float().square().sum((1, 2, 3))
    from ..evaluation.features import VggFeatures

    vgg = channels_last(VggFeatures(config.perceptual_file, layers=("relu3_4",)), device)
    return lambda a, b: vgg.distance(a, b) * (a.shape[2] // 4) * (a.shape[3] // 4)


def load_network(path: str) -> nn.Module:
    """A feature network of torch.export (.pt2): rgb (B, 3, H, W) in [0, 1] to features (B, ...). Raises InputError."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a .pt2 archive")
        network = torch.export.load(path).module()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no network of torch.export that can be read ({error})") from error
    return network.requires_grad_(False)


def export(
    checkpoint: Path,
    data: Path,
    output: Path,
    *,
    card: Mapping[str, Any] | None = None,
    config: NCodeTraining | None = None,
) -> str:
    """A finished training as a manifold file; returns its id. data: the folder of the training's `data.folders`, to
    whose latents the code tables are fitted. config: in place of the checkpoint's, for the name. Raises InputError for
    checkpoints of other kinds or before stage 2.
    """
    step, values, tensors = loop.read_checkpoint(checkpoint)
    if values.get("kind") != "ncode":
        raise InputError(f"{checkpoint}: a checkpoint of kind {values.get('kind')}, not ncode")
    config = config or from_dict(values, NCodeTraining, source=str(checkpoint))
    if step <= config.adversarial.steps:
        raise InputError(f"{checkpoint}: stopped at step {step}, before f is trained; go on from it with --resume")
    net = NCode(config.network)
    averaged = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.f.")}
    kept = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith(("model.f.", "model.g."))}
    net.load_state_dict(kept | averaged)
    # Convolutions in half precision; batch norm's few numbers as they are, variances do not fit float16's range.
    halves = loop.halved({k: v for k, v in net.state_dict().items() if v.dim() > 1})
    squares = _load(config, data)
    batches = (squares.batch(config.data.batch, config.seed, i, mirror=False) for i in range(STATISTICS_BATCHES))
    measure_statistics(net.f, (_tensor(pixels) for pixels in batches))
    clips, z, squared = _encode(net.eval(), squares)
    psnr_db = 10 * math.log10(4 / max(squared, 1e-9))
    steps = zip(BITS, levels().tolist(), strict=True)
    tables = [coordinate_tables((z + 1) * gain, clips, centre=1 << b - 1, bits=b) for b, gain in steps]
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    facts = {
        "title": f"NCode of {config.network.m} coordinates from {', '.join(config.data.folders)}",
        "data": f"{len(squares.clips)} pictures and videos, {len(squares.pixels)} frames",
        "made": date.today().isoformat(),
        "training_config": to_dict(config),
        "steps": step,
        "scores": {"training_psnr_db": round(psnr_db, 2)},
        "not_for": "pictures of another kind than those it learned from",
    }
    return manifold.save(
        output,
        kind="ncode",
        name=config.name,
        config={
            "frame_size": [config.network.size] * 2,
            "stride": None,
            "qualities": len(BITS),
            "default_quality": DEFAULT_BITS,
            "network": to_dict(config.network),
        },
        tables=tables,
        tensors={k: v.contiguous().numpy() for k, v in (state | halves).items()},
        card=facts | dict(card or {}),
    )


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _encode(net: NCode, squares: Squares) -> tuple[list[int], np.ndarray, float]:
    """Frames of each clip used, their z (frames, M), and the mean squared error of pixels in [-1, 1] at 5 bits."""
    clips = first_clips(squares.clips)
    total = sum(clips)
    latents, squared = [], 0.0
    with torch.inference_mode():
        for start in range(0, total, 64):
            x = _tensor(squares.pixels[start : min(start + 64, total)])
            z = net.f(x)
            back = net.g(quantise(z, torch.full((len(z),), DEFAULT_BITS)))
            squared += (back - x).square().mean((1, 2, 3)).sum().item()
            latents.append(z.flatten(1).numpy())
    return clips, np.concatenate(latents), squared / total
