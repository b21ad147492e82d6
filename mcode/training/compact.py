"""Trains a compact `hific` manifold: rate against distortion at all qualities at once, in one process or by torchrun.

The distortion is squared error, feature distances and, from a step on, the conditional discriminator of Mentzer et al. 2020.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation import features
from ..manifold import PRICES, ZERO_MARGIN, find, load, read_info
from ..nets import STRIDE
from ..nets.eye import load_eyes
from ..nets.hific import CompactConfig, CompactHific
from ..nets.hyper import Hyper
from ..nets.layers import ResidualBlock, channels_last, watched
from ..nets.paper import Discriminator
from . import loop
from .crops import CropStream, check_crops, draw_crop, load_pictures
from .footage import data_entry
from .patches import fit_patches

PATCH_VALUES = 3 * STRIDE * STRIDE
_SMALLEST_WINDOW = 32
"""Pixels a side that SqueezeNet needs."""
START_ID = "start_id"
"""Entry of checkpoints and cards: the id of the manifold that `start` was."""
_ALIVE = 0.1
"""Of pictures in which a hidden channel is to open at all; see `_revive`."""


@dataclass(frozen=True)
class DataConfig:
    """Folders are relative to --data. graphics: the share of crops that are drawn (`training.graphics`), 0 to 1."""

    folders: tuple[str, ...]
    longest: int = 1600
    frames_per_video: int = 12
    crop: int = 256
    batch: int = 8
    graphics: float = 0.0

    def __post_init__(self) -> None:
        check_crops(self.folders, self.batch, self.crop, self.longest)
        if not 0 <= self.graphics <= 1:
            raise ValueError(f"graphics is {self.graphics}; it is a share of the crops, 0 to 1")


@dataclass(frozen=True)
class LossConfig:
    """bits per pixel + lambda * (squared error on 0..255 + grid * `grid_error` + perceptual * feature distance + adversarial
    * -log D); lambda rises by equal factors from quality 1 (low) to the highest, or is listed in `lambdas`.

    The feature distance is VGG19's plus `squeezenet` times SqueezeNet's plus, for each of `maps`, its share times the distance
    in that map alone (("relu1_1", 1.7), ("fire6", 0.3)), over `perceptual_crops` pictures of each batch, plus `eyes` times that
    of the networks which ship for refinement (`nets.eye`), over all of them, in a window of perceptual_size
    pixels that moves from step to step. It comes in at step `perceptual_from` and D at
    `adversarial_from`, each rising to its weight over `ramp` steps: all at once it threw Adam off (docs/log.md). D itself
    learns for `ramp` steps before that. D looks at such a window of `adversarial_size` pixels, a multiple of 16, or at the
    whole crop (0). conditional and norm: of D, see `nets.paper.Discriminator`.

    temperature: of the rounding that training sees, 0 for noise and straight-through (`nets.hific.CompactHific.forward`).
    hyper: the share of bits that the hyperprior of `start` counts, which learns along, beside the tables' count.
    emphasis: what each quality's loss is multiplied by, 1 where it is empty; the low qualities have a small part of the loss.
    """

    lambda_low: float = 0.0006
    lambda_high: float = 0.0175
    perceptual: float = 0.0
    squeezenet: float = 0.0
    maps: tuple[tuple[str, float], ...] = ()
    grid: float = 0.0
    eyes: float = 0.0
    perceptual_crops: int = 4
    perceptual_size: int = 128
    perceptual_from: int = 0
    adversarial: float = 0.0
    adversarial_from: int = 0
    adversarial_size: int = 0
    conditional: bool = True
    norm: Literal["spectral", "instance"] = "spectral"
    ramp: int = 600
    temperature: float = 0.0
    hyper: float = 0.0
    lambdas: tuple[float, ...] = ()
    emphasis: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.lambda_low, self.lambda_high) <= 0:
            raise ValueError(f"lambda_low = {self.lambda_low} and lambda_high = {self.lambda_high} are both above 0")
        if self.perceptual_crops < 1 or self.perceptual_size < _SMALLEST_WINDOW:
            raise ValueError(f"perceptual_crops is 1 or more, perceptual_size {_SMALLEST_WINDOW} or more")
        if not 0 <= self.temperature <= 1:
            raise ValueError(f"temperature is {self.temperature}; it is 0 to 1")
        if not 0 <= self.hyper <= 1:
            raise ValueError(f"hyper is {self.hyper}; it is a share of the bits, 0 to 1")
        if self.adversarial_size % STRIDE or self.adversarial_size < 0:
            raise ValueError(f"adversarial_size is {self.adversarial_size}; it is 0 or a multiple of {STRIDE}")
        if self.adversarial and self.adversarial_from < self.ramp:
            raise ValueError("adversarial_from is at least ramp: D learns for so long before")
        weights = ("perceptual", "squeezenet", "grid", "eyes", "adversarial")
        loop.check_not_negative(self, *weights, "perceptual_from", "adversarial_from", "ramp")
        if negative := [name for name, share in self.maps if share < 0]:
            raise ValueError(f"the share of {negative[0]} in maps is negative")
        for name in ("squeezenet", "maps", "eyes"):
            if getattr(self, name) and not self.perceptual:
                raise ValueError(f"{name} is a share of perceptual, which is 0")
        if unknown := [name for name, _ in self.maps if name not in (*features.VGG_MAPS, *features.SQUEEZENET_MAPS)]:
            known = ", ".join((*features.VGG_MAPS, *features.SQUEEZENET_MAPS))
            raise ValueError(f"no map {unknown[0]} in maps; they are {known}")


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam; the rate warms up linearly, stays, and falls by a cosine over the last `decay_steps`. discriminator_rate: D's,
    which falls with it. revive_every: in the first two thirds of training, each so many steps, hidden channels that have
    died start afresh, 0: never."""

    steps: int
    learning_rate: float = 4e-4
    discriminator_rate: float = 1e-4
    final_rate: float = 2e-5
    warmup: int = 300
    decay_steps: int = 4000
    clip: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 250
    revive_every: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checkpoint_every < 1 or self.revive_every < 0:
            raise ValueError("steps and checkpoint_every are 1 or more, revive_every 0 or more")
        loop.check_numbers(self)


@dataclass(frozen=True)
class CompactTraining:
    """What configs/general.toml holds. start: a manifold, by name or file, whose networks this training starts from; blocks
    that it lacks start as identities. part: "synthesis" leaves all else as it starts, and so what is sent: it sees the symbols
    that the start's encoder sends, with its margin around zero. zero_margin: of the manifold, in steps for each bit that
    leaving zero costs (see `export`); with "synthesis" it is the start's."""

    kind: Literal["hific"]
    name: str
    data: DataConfig
    optimiser: OptimiserConfig
    network: CompactConfig = field(default_factory=CompactConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    start: str | None = None
    part: Literal["all", "synthesis"] = "all"
    zero_margin: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        loop.check_numbers(self)
        loop.check_not_negative(self, "zero_margin")
        if self.part != "all" and self.start is None:
            raise ValueError('part = "synthesis" needs a start, whose analysis it keeps')
        stages, channels = self.network.stages, self.network.channels
        if channels > PATCH_VALUES:
            raise ValueError(f"network.channels = {channels}; a patch of 16x16 pixels has {PATCH_VALUES} components at most")
        if stages[:1] != (0,) or stages[-1] != channels or any(a >= b for a, b in pairwise(stages)):
            given = f"network.stages = {list(stages)}"
            raise ValueError(f"{given}; they rise from 0 to network.channels = {channels}")
        for name, used in (("perceptual_size", self.loss.perceptual), ("adversarial_size", self.loss.adversarial)):
            if used and getattr(self.loss, name) > self.data.crop:
                given = f"{name} = {getattr(self.loss, name)}"
                raise ValueError(f"{given} is a window of the crop, at most data.crop = {self.data.crop}")
        if self.loss.adversarial and self.loss.norm == "instance" and self.loss.adversarial_size == STRIDE:
            given = f'adversarial_size = {STRIDE}: norm = "instance" would see a single place'
            raise ValueError(f"{given}; give {2 * STRIDE} or more")
        for name in ("lambdas", "emphasis"):
            values = getattr(self.loss, name)
            if values and (len(values) != self.network.qualities or min(values) <= 0):
                raise ValueError(f"{name} are {values}; they are {self.network.qualities} numbers above 0")
        if self.loss.hyper and self.start is None:
            raise ValueError("hyper needs a start, whose hyperprior counts the bits")


def lambdas(config: LossConfig, qualities: int) -> Tensor:
    """(qualities,): the price of a squared error of 1 (0..255 scale) in bits per pixel."""
    if config.lambdas:
        return torch.tensor(config.lambdas)
    return torch.logspace(math.log10(config.lambda_low), math.log10(config.lambda_high), qualities)


def grid_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """(B,): of x and x_hat, (B, 3, H, W) in [-1, 1] with H and W multiples of 8, the squared error on 0..255 that alternates
    from pixel to pixel: from column to column, row to row, or both, averaged with its signs over 8x8 pixels. Feature
    distances hardly see it, squared error only its size, and in an even surface it is a visible pattern."""
    a, b, c, d = F.pixel_unshuffle(x_hat - x, 2).unflatten(1, (3, 4)).unbind(2)
    patterns = torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) * (127.5 / 4)
    return F.avg_pool2d(patterns, 4).square().mean((1, 2, 3))


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

    The log's `dead` counts hidden channels that are 0 all over the last batch, `dead_share` of all: they learn nothing, and a
    training that goes on from the manifold starts them afresh. With resume it goes on from the checkpoint: same crops, same
    noise, same optimiser state, as if it had not stopped.
    Raises McodeError when the loss is not finite, naming the step, and InputError where `start` is another by then.
    """
    workers, worker = loop.join_workers(device)
    torch.manual_seed(config.seed)
    model = CompactHific(config.network, _hyper_of(config), config.loss.hyper, config.loss.temperature)
    d = None
    if config.loss.adversarial:
        d = model.d = Discriminator(config.network.channels, norm=config.loss.norm, conditional=config.loss.conditional)
    first, saved = loop.begin(out, resume, model, config)
    checkpoint = out / loop.CHECKPOINT
    lam = lambdas(config.loss, config.network.qualities)
    begun = None
    if saved is None and config.start is not None:
        begun = _start_from(model, config.start, lam, as_it_is=config.part == "synthesis")
    start_id = _start_id(config, None if saved is None else checkpoint)
    of_data = data_entry(data, config.data.folders, checkpoint if 0 < first < config.optimiser.steps else None)
    margin = _margin_of(config) if config.part == "synthesis" else None
    pictures = load_pictures(
        [data / f for f in config.data.folders], longest=config.data.longest, frames_per_video=config.data.frames_per_video
    )
    if not pictures:
        raise InputError(f"{data}: no pictures or videos that can be read in {', '.join(config.data.folders)}")
    if saved is None:
        _initialise(model, config, pictures, lam, begun)
    if margin is not None:
        model.keep_what_is_sent(margin)
    channels_last(model, device)
    parameters = {k: v for k, v in model.named_parameters() if not k.startswith("d.")}
    ema = loop.averages(parameters, saved)
    optimiser = torch.optim.Adam(
        [
            {"params": list(model.net.parameters()), "speed": 1.0},
            {"params": list(model.gains.parameters()), "speed": 2.0},
            {"params": list(model.rate.parameters()), "speed": 10.0},
        ],
        lr=config.optimiser.learning_rate,
    )
    if model.hyper is not None:
        optimiser.add_param_group({"params": list(model.hyper.parameters()), "speed": 5.0})
    optimisers, judge = [optimiser], None
    if d is not None:
        judge = Judge(d, config.optimiser.discriminator_rate)
        optimisers.append(judge.optimiser)
    loop.load_moments(optimisers, model, saved, first)
    feature_distance = None
    if config.loss.perceptual > 0:
        feature_distance = channels_last(_Features(config.loss), device)
    crops = CropStream(
        pictures, config.data.batch, config.data.crop, config.seed * 1000 + worker, first, graphics=config.data.graphics
    )
    lam = lam.to(device)
    emphasis = torch.tensor(config.loss.emphasis or (1.0,) * len(lam), device=device)
    log, started = loop.Log(out, first, worker, report), time.monotonic()
    for step in range(first, config.optimiser.steps):
        rate = learning_rate(step, config.optimiser)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["speed"]
        loop.seed_step(config.seed, step, worker)
        x = torch.from_numpy(next(crops)).to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        x = x.contiguous(memory_format=torch.channels_last)
        quality = torch.randint(config.network.qualities, (len(x),)).to(device)
        with loop.autocast(x.device):
            x_hat, bits, y_hat = model(x, quality)
        x_hat, y_hat = x_hat.float(), y_hat.detach()
        error = (x_hat - x).square().mean((1, 2, 3)) * 127.5**2
        bpp = bits / (x.shape[2] * x.shape[3])
        price = emphasis[quality] * lam[quality]
        loss = (emphasis[quality] * bpp + price * error).mean()
        if config.loss.grid > 0:
            loss = loss + (price * config.loss.grid * grid_error(x, x_hat)).mean()
        distance = opinion = torch.zeros(())
        if feature_distance is not None and step >= config.loss.perceptual_from:
            distance = feature_distance(x, x_hat, step)
            weight = config.loss.perceptual * _risen(step, config.loss.perceptual_from, config.loss.ramp)
            loss = loss + (price * weight * distance).mean()
        if judge is not None and step >= config.loss.adversarial_from:
            opinion = judge.opinion(*_windows(step, config.loss.adversarial_size, x_hat, y_hat))
            weight = config.loss.adversarial * _risen(step, config.loss.adversarial_from, config.loss.ramp)
            loss = loss + (price * weight * opinion).mean()
        norm = loop.update(optimiser, loss, step=step, workers=workers, clip=config.optimiser.clip)
        loop.smooth(ema, parameters, config.optimiser.ema, step)
        log.add(loss=loss.item(), bpp=bpp.mean().item(), mse=error.mean().item(), feature=distance.mean().item())
        if judge is not None and step >= config.loss.adversarial_from - config.loss.ramp:
            judge.rate(config.optimiser.discriminator_rate * rate / config.optimiser.learning_rate)
            seen = _windows(step, config.loss.adversarial_size, x, x_hat.detach(), y_hat)
            loss_d = judge.learn(*seen, step=step, workers=workers)
            log.add(loss_d=loss_d, loss_g=opinion.mean().item())
        done = step + 1
        if (
            config.optimiser.revive_every
            and done % config.optimiser.revive_every == 0
            and done <= 2 / 3 * config.optimiser.steps
        ):
            loop.seed_step(config.seed, step, workers)  # all processes alike
            _revive(model, _probe(config, pictures).to(device), _trained(model, config), ema, optimiser)
        if worker == 0 and (done % config.optimiser.checkpoint_every == 0 or done == config.optimiser.steps):
            rate_of_pictures = (done - first) * config.data.batch * workers / (time.monotonic() - started)
            loop.save_checkpoint(checkpoint, model, ema, optimisers, done, config, **start_id, **of_data)
            with loop.autocast(x.device):
                shut = [share == 0 for share in _opened(model, x, quality, model.net).values()]
            dead = sum(int(each.sum()) for each in shut)
            dead_share = dead / max(1, sum(map(len, shut)))
            log.write(done, lr=rate, norm=norm, dead=dead, dead_share=dead_share, pictures_per_s=rate_of_pictures)
            log.picture(done, loop.beside(x[:8], x_hat[:8]))
    return checkpoint


class Judge:
    """The discriminator D with its optimiser: D learns to tell pictures from reconstructions, given what was sent (Mentzer
    et al. 2020, equations 3 and 4, in softplus form)."""

    def __init__(self, d: Discriminator, learning_rate: float) -> None:
        self.d = d
        self.optimiser = torch.optim.Adam(d.parameters(), learning_rate)

    def rate(self, learning_rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate

    def opinion(self, x_hat: Tensor, y_hat: Tensor) -> Tensor:
        """-log D of reconstructions (B, 3, H, W) given y_hat, (B,); gradients reach x_hat alone."""
        self.d.requires_grad_(False)
        with loop.autocast(x_hat.device):
            logits = self.d(x_hat, y_hat)
        self.d.requires_grad_(True)
        return F.softplus(-logits.float()).mean((1, 2, 3))

    def learn(self, x: Tensor, x_hat: Tensor, y_hat: Tensor, *, step: int, workers: int) -> float:
        """One step of D; returns its loss, which is 2 log 2 where it cannot tell."""
        with loop.autocast(x.device):
            logits = self.d(torch.cat([x, x_hat]), torch.cat([y_hat, y_hat])).float()
        on_real, on_coded = logits.chunk(2)
        loss = F.softplus(-on_real).mean() + F.softplus(on_coded).mean()
        loop.update(self.optimiser, loss, step=step, workers=workers)
        return loss.item()


def _start_id(config: CompactTraining, checkpoint: Path | None) -> dict[str, str]:
    """The start's id under START_ID, as the checkpoint has it if there is one; nothing without a start. Raises InputError where
    the start, of which the training takes something still, is another by now."""
    known = {} if checkpoint is None else loop.read_metadata(checkpoint)
    kept = {key: value for key, value in known.items() if key == START_ID}
    if config.start is None or not (checkpoint is None or config.part == "synthesis" or config.loss.hyper):
        return kept
    check_start(config.start, kept.get(START_ID))
    return {START_ID: read_info(config.start).id}


def check_start(start: str, wanted: str | None) -> None:
    """Raises InputError where the manifold `start` is not the one with this id; None: any."""
    found = read_info(start).id
    if wanted not in (None, found):
        given = f"{start}: is manifold {found} now, and the training started from {wanted}"
        raise InputError(f"{given}; put that one back, or train anew into another --out")


def _place(step: int, free: int, of: int) -> tuple[int, int]:
    """Row and column of a window, 0..free - 1 each: by chance, and always the same for a step and `of`, the kind of window."""
    row, column = np.random.default_rng((step, of)).integers(free, size=2).tolist()
    return row, column


def _windows(step: int, size: int, *maps: Tensor) -> tuple[Tensor, ...]:
    """A window of `size` pixels, which moves from step to step by whole latents, out of pictures and what belongs to them, the
    last of them latents; all of them where size is 0."""
    if not size:
        return maps
    free = maps[-1].shape[2] - size // STRIDE + 1
    top, left = _place(step, free, 0)
    found = []
    for part in maps:
        unit = part.shape[2] // maps[-1].shape[2]
        high, wide = (slice(at * unit, at * unit + size * unit // STRIDE) for at in (top, left))
        found.append(part[..., high, wide])
    return tuple(found)


def _margin_of(config: CompactTraining) -> Tensor:
    """(qualities, C): of the start, 0 where it has none."""
    from safetensors.torch import load_file

    assert config.start is not None
    nothing = torch.zeros(config.network.qualities, config.network.channels)
    return load_file(find(config.start)).get(ZERO_MARGIN, nothing).float()


def _hyper_of(config: CompactTraining) -> Hyper | None:
    if not config.loss.hyper or config.start is None:
        return None
    model = load(config.start)
    if model.hyper is None:
        raise InputError(f"hyper = {config.loss.hyper}, and manifold {config.start} has no hyperprior; leave hyper out")
    if (model.channels, model.qualities) != (config.network.channels, config.network.qualities):
        raise InputError(f"the hyperprior of {config.start} is for {model.channels} channels and {model.qualities} qualities")
    return Hyper.thaw(model.hyper)


def _initialise(
    model: CompactHific,
    config: CompactTraining,
    pictures: list[np.ndarray],
    lam: Tensor,
    begun: tuple[Tensor, Tensor] | None,
) -> None:
    """Patch transform, gains and rate model, from the data. begun: what `_start_from` gives, whose networks stay; or None."""
    rng = np.random.default_rng(config.seed)
    sample = np.stack([draw_crop(pictures, 256, rng) for _ in range(256)])
    middle = float(start_step(lam)[config.network.qualities // 2])
    if begun is None:
        fit_patches(model.net.patches, sample, middle)
        log_gain = (middle / start_step(lam)).log().unsqueeze(1).expand_as(model.gains.log_gain)
    else:
        log_gain, log_shrink = begun
        with torch.no_grad():
            model.gains.log_shrink.copy_(log_shrink)
    with torch.no_grad():
        model.gains.log_gain.copy_(log_gain)
        spread = torch.tensor([-1.5, -0.3, 0.8]).view(1, 3, 1)
        x = torch.from_numpy(sample[:32]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if begun is not None:
            _revive(model, x, _trained(model, config))
        y = model.net.patches(x) if begun is None else model.net.analysis(x)
        model.rate.log_scale.copy_((model.gains.gain() * y.abs().mean((0, 2, 3))).log().unsqueeze(1) + spread)


def _start_from(model: CompactHific, start: str, lam: Tensor, *, as_it_is: bool = False) -> tuple[Tensor, Tensor]:
    """Loads the manifold's networks; returns the logarithms of its gains and of what reconstruction shrinks by, (qualities, C).

    Both are the manifold's with `as_it_is`, and where its prices rise from quality to quality as `lam` does. Elsewhere its
    highest quality gives the gains of the highest, and the others follow its line of gain over lambda: gains adapt quickly,
    they only must not start far off. Raises InputError where the networks do not fit.
    """
    from safetensors.torch import load_file

    load(start, "cpu")  # raises ManifoldError where the file is damaged
    path = find(start)
    tensors = {k: v.float() for k, v in load_file(path).items() if not k.startswith("hyper.")}
    if not {"gain", "inverse"} <= set(tensors):
        raise InputError(f"{path}: is of another kind; start from a manifold that `general` is like")
    gain = tensors.pop("gain")
    shrink = (gain * tensors.pop("inverse")).log()
    tensors.pop(ZERO_MARGIN, None)
    own = model.net.state_dict()
    if unknown := sorted(k for k, v in tensors.items() if k not in own or own[k].shape != v.shape):
        raise InputError(f"{path}: its networks are not these: {unknown[0]} does not fit; start from another manifold")
    model.net.load_state_dict(own | tensors)
    for name, module in model.net.named_modules():
        if isinstance(module, ResidualBlock) and f"{name}.conv2.weight" not in tensors:
            nn.init.zeros_(module.conv2.weight)
    if as_it_is:
        if len(gain) != len(lam):
            given = f"network.qualities = {len(lam)}, and {path} has {len(gain)}"
            raise InputError(f"{given}; a training of the synthesis alone keeps them: set qualities = {len(gain)}")
        return gain.log(), shrink
    card = read_info(path).card
    listed = _prices_on(card, (PRICES, "lambdas"))
    paid = torch.tensor(listed)
    if paid.shape == lam.shape and torch.allclose(lam / paid, lam[0] / paid[0], rtol=1e-2):
        return gain.log(), shrink
    ends = _prices_on(card, *(("training_config", "loss", name) for name in ("lambda_low", "lambda_high")))
    usual = [LossConfig.lambda_low, LossConfig.lambda_high]
    line = next(prices for prices in (listed, ends, usual) if prices and prices[0] != prices[-1])
    slope = (gain[-1].log() - gain[0].log()) / (math.log(line[-1]) - math.log(line[0]))
    log_gain = gain[-1].log() + (lam.log() - lam[-1].log()).unsqueeze(1) * slope
    return log_gain, torch.zeros_like(log_gain)


def _prices_on(card: Any, *entries: tuple[str, ...]) -> list[float]:
    """The price, or list of them, at each of these paths in a manifold's card; nothing where one is missing or is no price."""
    found: list[float] = []
    for path in entries:
        value = card
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        try:
            found += [float(price) for price in (value if isinstance(value, list) else [value])]
        except (TypeError, ValueError, OverflowError):
            return []
    return found if all(0 < price < math.inf for price in found) else []


class _Features(nn.Module):
    """The feature distance of LossConfig."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        shares = dict.fromkeys(features.VGG_LAYERS, 1 / len(features.VGG_LAYERS))
        if config.squeezenet > 0:
            theirs = ("conv1", *(f"fire{number}" for number in features.SQUEEZENET_FIRES))
            shares |= dict.fromkeys(theirs, config.squeezenet / len(theirs))
        for name, share in config.maps:
            shares[name] = shares.get(name, 0.0) + share
        self.vgg_shares = {name: shares[name] for name in features.VGG_MAPS if name in shares}
        self.squeezenet_shares = {name: shares[name] for name in features.SQUEEZENET_MAPS if name in shares}
        self.vgg = features.VggFeatures(layers=tuple(self.vgg_shares))
        self.squeezenet = features.SqueezeNetFeatures() if self.squeezenet_shares else None
        eyes = load_eyes() if config.eyes > 0 else []
        self.eyes = nn.ModuleList(copy.deepcopy(eye) for eye, _ in eyes)
        self.eye_shares = [config.eyes * scale for _, scale in eyes]

    def forward(self, x: Tensor, x_hat: Tensor, step: int) -> Tensor:
        """(B,), whose mean is the loss: what is seen of some pictures alone counts the more there."""
        side, few = self.config.perceptual_size, min(self.config.perceptual_crops, len(x))
        top, left = _place(step, x.shape[2] - side + 1, 1)
        window = (..., slice(top, top + side), slice(left, left + side))
        with loop.autocast(x.device):
            a, b = x[window] / 2 + 0.5, x_hat[window].clamp(-1.2, 1.2) / 2 + 0.5
            distance = _shared(self.vgg(a[:few]), self.vgg(b[:few]), self.vgg_shares.values())
            if self.squeezenet is not None:
                of_a, of_b = (self.squeezenet.chosen(each[:few], tuple(self.squeezenet_shares)) for each in (a, b))
                distance = distance + _shared(of_a, of_b, self.squeezenet_shares.values())
            distance = F.pad(distance * (len(x) / few), (0, len(x) - few))
            for share, eye in zip(self.eye_shares, self.eyes, strict=True):
                distance = distance + share * features.unit_distance(eye(a), eye(b))
        return distance


def _shared(a: list[Tensor], b: list[Tensor], shares: Iterable[float]) -> Tensor:
    """(B,): the sum of each map's distance times its share."""
    return torch.stack([s * features.unit_distance([x], [y]) for x, y, s in zip(a, b, shares, strict=True)]).sum(0)


def _opened(model: CompactHific, x: Tensor, quality: Tensor, part: nn.Module) -> dict[str, Tensor]:
    """For each residual block of `part`, in what share of the pictures x, (B, 3, H, W) in [-1, 1], each of its hidden channels
    is anywhere above 0, float32 (channels,)."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, given: Tensor, second: bool) -> None:
        if second:
            seen.setdefault(name, []).append(given.amax((2, 3)) > 0)

    with watched(part, note), torch.no_grad():
        gain, inverse = (each[quality][..., None, None] for each in (model.gains.gain(), model.gains.inverse()))
        for picture, its_gain, its_inverse in zip(x.split(4), gain.split(4), inverse.split(4), strict=True):
            model.net.synthesis((model.net.analysis(picture) * its_gain).round() * its_inverse)
    return {name: torch.cat(opened).float().mean(0) for name, opened in seen.items()}


def _trained(model: CompactHific, config: CompactTraining) -> nn.Module:
    return model.net.synthesis_net if config.part == "synthesis" else model.net


def _probe(config: CompactTraining, pictures: list[np.ndarray]) -> Tensor:
    """Crops in [-1, 1], (32, 3, 256, 256), to see by what has died: always the same."""
    rng = np.random.default_rng(config.seed)
    x = torch.from_numpy(np.stack([draw_crop(pictures, 256, rng) for _ in range(32)]))
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _revive(
    model: CompactHific,
    x: Tensor,
    part: nn.Module,
    ema: Mapping[str, Tensor] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> None:
    """Starts afresh, and unheard, what has died in the residual blocks of `part`: hidden channels which are 0 everywhere in
    all but a few of the pictures x, (B, 3, H, W) in [-1, 1]. A ReLU that never opens has no gradient and learns nothing.
    Their averages start with them, and Adam's moments as those of the channels that live."""
    quality = torch.arange(len(x), device=x.device) % len(model.gains.log_gain)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, share in _opened(model, x, quality, part).items():
        block, dead = part.get_submodule(name), share < _ALIVE
        if not dead.any():
            continue
        assert isinstance(block, ResidualBlock) and block.conv1.bias is not None
        fresh = torch.empty_like(block.conv1.weight)
        nn.init.kaiming_normal_(fresh, nonlinearity="relu")
        block.conv1.weight[dead] = fresh[dead]
        block.conv1.bias[dead] = 0
        block.conv2.weight[:, dead] = 0
        for parameter, axis in ((block.conv1.weight, 0), (block.conv1.bias, 0), (block.conv2.weight, 1)):
            if ema is not None:
                ema[names[id(parameter)]].transpose(0, axis)[dead] = parameter.transpose(0, axis)[dead]
            moments = {} if optimiser is None else optimiser.state.get(parameter, {})
            if moments and not dead.all():
                moments["exp_avg"].transpose(0, axis)[dead] = 0
                squares = moments["exp_avg_sq"].transpose(0, axis)
                squares[dead] = squares[~dead].mean(0)


def _risen(step: int, since: int, ramp: int) -> float:
    return min(1.0, (step - since + 1) / max(1, ramp))
