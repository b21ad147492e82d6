"""Trains the full-size `hific` networks: lambda' r + d, then with the GAN (Mentzer et al. 2020, equations 3 and 4)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import from_dict, to_dict
from ..errors import InputError
from ..nets.layers import channels_last
from ..nets.paper import Discriminator, Hific, MeanHific, PaperConfig
from . import loop
from .crops import CropStream, check_crops, load_pictures
from .footage import data_entry
from .paper import fit_tables, save

EXPORT_PICTURES, EXPORT_LONGEST = 100, 1024
STAGES = ("optimiser.steps", "optimiser.adversarial_steps")


@dataclass(frozen=True)
class HificData:
    """Folders are relative to --data. batch: of each process. longest: larger pictures are scaled down to this side."""

    folders: tuple[str, ...]
    longest: int = 1000
    frames_per_video: int = 12
    crop: int = 256
    batch: int = 8

    def __post_init__(self) -> None:
        check_crops(self.folders, self.batch, self.crop, self.longest)


@dataclass(frozen=True)
class HificLoss:
    """lambda' * bits per pixel + k_mse * squared error (0..255 scale) + k_perceptual * d_P - beta log D (section 3.2),
    where lambda' is lambda_a while rounded latents take more than rate_target bits per pixel, else lambda_b.

    perceptual: d_P, "lpips" as in the paper, where AlexNet's and LPIPS's weights are at hand, "vgg19", the VGG19 feature
    distance, or "vgg19-l1", the absolute difference of VGG19's features (section 5.4). In the first `easy_steps` lambda' is
    halved and the target 0.2/0.14 times as high, as in the authors' code, where lambda, by which the rate is divided, is
    doubled. The paper's "no GAN" is adversarial_steps = 0, its "M&S hyperprior" also perceptual = "none" and
    network.autoencoder = "mean-scale"; `conditional` and `norm` are its ablations of D. See configs/hific.
    """

    rate_target: float = 0.14
    lambda_a: float = 2.0
    lambda_b: float = 0.0625
    k_mse: float = 0.075 / 32
    k_perceptual: float = 1.0
    perceptual: Literal["none", "vgg19", "vgg19-l1", "lpips"] = "vgg19"
    beta: float = 0.15
    easy_steps: int = 50_000
    conditional: bool = True
    norm: Literal["spectral", "instance"] = "spectral"

    def __post_init__(self) -> None:
        if self.rate_target <= 0 or self.lambda_a < self.lambda_b:
            raise ValueError("rate_target is above 0, and lambda_a at least lambda_b")
        loop.check_not_negative(self, "lambda_b", "k_mse", "k_perceptual", "beta", "easy_steps")

    def rate_weight(self, bpp: float, step: int) -> float:
        """lambda' (section 3.2). bpp: of rounded latents; with noise a picture that needs no bits is near the target."""
        easy = step < self.easy_steps
        target = self.rate_target * (0.2 / 0.14 if easy else 1.0)
        return (self.lambda_a if bpp > target else self.lambda_b) * (0.5 if easy else 1.0)


@dataclass(frozen=True)
class HificOptimiser:
    """Adam. steps: without D; adversarial_steps: with D, after them. In the second half of each the rate is a tenth."""

    steps: int
    adversarial_steps: int = 0
    learning_rate: float = 1e-4
    clip: float | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 0 or self.adversarial_steps < 0 or self.steps + self.adversarial_steps < 1:
            raise ValueError("steps and adversarial_steps are not negative, and not both 0")
        if self.checkpoint_every < 1:
            raise ValueError("checkpoint_every is 1 or more")
        loop.check_numbers(self)

    def rate(self, step: int) -> float:
        into, length = (step, self.steps) if step < self.steps else (step - self.steps, self.adversarial_steps)
        return self.learning_rate * (1.0 if into < length / 2 else 0.1)


@dataclass(frozen=True)
class HificTraining:
    """What configs/hific.toml holds.

    initial: the checkpoint of another training whose E, G and P this one starts from, relative to --out: GAN models start
    from one trained for rate and distortion alone (section 4), which several can share. D starts afresh.
    freeze: "encoder" keeps E, and P with it, as they are when the GAN sets in: what is sent stays, G and D learn (figure 9).
    bfloat16: compute in it where it is fast.
    """

    kind: Literal["hific"]
    name: str
    network: PaperConfig
    data: HificData
    optimiser: HificOptimiser
    loss: HificLoss = field(default_factory=HificLoss)
    bfloat16: bool = True
    seed: int = 1
    initial: str | None = None
    freeze: Literal["encoder"] | None = None

    def __post_init__(self) -> None:
        loop.check_numbers(self)
        if self.initial is not None and os.path.normpath(self.initial) == loop.CHECKPOINT:
            given = f'initial = "{self.initial}" is its own checkpoint'
            raise ValueError(f"{given}; name that of another training, as ../mse/{loop.CHECKPOINT}")
        if self.network.qualities != 1:
            given = f'network.qualities = {self.network.qualities}: family = "paper" learns one rate, with qualities = 1'
            raise ValueError(f'{given}; for several train family = "compact", as configs/general.toml does')
        if self.freeze is not None and not self.optimiser.adversarial_steps:
            raise ValueError("freeze holds in the steps with the GAN, of which there are none; set adversarial_steps")


class Networks(nn.Module):
    """E, G, P and D of one training."""

    def __init__(self, config: HificTraining) -> None:
        super().__init__()
        self.hific = Hific(config.network)
        self.d = Discriminator(config.network.channels, norm=config.loss.norm, conditional=config.loss.conditional)


def train(
    config: HificTraining,
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
    if config.initial is not None and saved is None:
        _start_from(model.hific, Path(os.path.normpath(out / config.initial)))  # out may not exist yet
    total = config.optimiser.steps + config.optimiser.adversarial_steps
    of_data = data_entry(data, config.data.folders, out / loop.CHECKPOINT if 0 < first < total else None)
    distance_of = perceptual_distance(config.loss, device)
    pictures = load_pictures(
        [data / f for f in config.data.folders],
        longest=config.data.longest,
        frames_per_video=config.data.frames_per_video,
    )
    if not pictures:
        raise InputError(f"{data}: no pictures or videos that can be read in {', '.join(config.data.folders)}")
    channels_last(model, device)
    of_coder = torch.optim.Adam(model.hific.parameters(), config.optimiser.learning_rate)
    of_d = torch.optim.Adam(model.d.parameters(), config.optimiser.learning_rate)
    loop.load_moments([of_coder, of_d], model, saved, first)
    crops = CropStream(pictures, config.data.batch, config.data.crop, config.seed * 1000 + worker, first)
    log, started = loop.Log(out, first, worker, report), time.monotonic()
    for step in range(first, total):
        adversarial = step >= config.optimiser.steps
        for group in (*of_coder.param_groups, *of_d.param_groups):
            group["lr"] = config.optimiser.rate(step)
        loop.seed_step(config.seed, step, worker)
        x = torch.from_numpy(next(crops)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        x = x.contiguous(memory_format=torch.channels_last)
        made = coder_loss(model, x, config, distance_of, step)
        norm = loop.update(of_coder, made.loss, step=step, workers=workers, clip=config.optimiser.clip)
        log.add(loss=made.loss.item(), bpp=made.bpp.item(), bpp_rounded=made.bpp_rounded.item())
        log.add(mse=made.error.item(), feature=made.distance.item())
        if adversarial:
            loss_d = discriminator_loss(model.d, x, made.x_hat, made.y_hat, bfloat16=config.bfloat16)
            loop.update(of_d, loss_d, step=step, workers=workers, clip=config.optimiser.clip)
            log.add(loss_d=loss_d.item(), loss_g=made.disagreement.item())
        done = step + 1
        if worker == 0 and (done % config.optimiser.checkpoint_every == 0 or done in (config.optimiser.steps, total)):
            speed = (done - first) * config.data.batch * workers / (time.monotonic() - started)
            loop.save_checkpoint(out / loop.CHECKPOINT, model, {}, [of_coder, of_d], done, config, **of_data)
            log.write(done, norm=norm, pictures_per_s=round(speed, 2))
            log.picture(done, loop.beside(x[:4], made.x_hat[:4]))
    return out / loop.CHECKPOINT


class Coded(NamedTuple):
    """What E, P and G make of a batch x, and its loss (equation 3) with its terms, each a mean over the batch: bpp with noise,
    which the loss weighs, and of rounded latents, which chooses the weight; error: squared, of values 0..255; distance: d_P;
    disagreement: -log D, 0 before the GAN. y_hat has no gradient."""

    x_hat: Tensor
    y_hat: Tensor
    loss: Tensor
    bpp: Tensor
    bpp_rounded: Tensor
    error: Tensor
    distance: Tensor
    disagreement: Tensor


def coder_loss(
    model: Networks, x: Tensor, config: HificTraining, distance_of: Callable[[Tensor, Tensor], Tensor] | None, step: int
) -> Coded:
    """One pass of x (B, 3, H, W) in [-1, 1] at this step of the training. Leaves gradients to all that learns in it but D."""
    weights, adversarial = config.loss, step >= config.optimiser.steps
    model.d.requires_grad_(False)
    for part in (model.hific.encoder, model.hific.hyperprior):
        part.requires_grad_(not (adversarial and config.freeze == "encoder"))
    distance = disagreement = torch.zeros(())
    with loop.autocast(x.device, config.bfloat16):
        x_hat, y_hat, bits = model.hific(x)
        x_hat, y_hat = x_hat.float(), y_hat.detach()
        if distance_of is not None:
            distance = distance_of(x / 2 + 0.5, x_hat / 2 + 0.5).mean()
        if adversarial:
            disagreement = F.softplus(-model.d(x_hat, y_hat).float()).mean()
    bpp, bpp_rounded = (each.mean() / (x.shape[2] * x.shape[3]) for each in bits)
    error = (x_hat - x).square().mean() * 127.5**2
    loss = weights.rate_weight(bpp_rounded.item(), step) * bpp + weights.k_mse * error
    loss = loss + weights.k_perceptual * distance + weights.beta * disagreement
    return Coded(x_hat, y_hat, loss, bpp, bpp_rounded, error, distance, disagreement)


def discriminator_loss(d: Discriminator, x: Tensor, x_hat: Tensor, y_hat: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Equation 4, on logits: 2 log 2 where D cannot tell. Gradients reach D alone."""
    d.requires_grad_(True)
    with loop.autocast(x.device, bfloat16):
        judged = d(torch.cat([x, x_hat.detach()]), torch.cat([y_hat, y_hat])).float()
    on_real, on_coded = judged.chunk(2)
    return F.softplus(-on_real).mean() + F.softplus(on_coded).mean()


def perceptual_distance(loss: HificLoss, device: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """d_P of pictures (B, 3, H, W) in [0, 1], (B,); None where there is none. Raises InputError without its weights."""
    if loss.perceptual == "none" or not loss.k_perceptual:
        return None
    if loss.perceptual == "lpips":
        from ..evaluation import lpips
        from ..evaluation.features import weights_path

        try:
            alexnet, linear = weights_path(lpips.ALEXNET_FILE), weights_path(lpips.LINEAR_FILE)
        except InputError as error:
            fetching = "mcode evaluate images PICTURES -o OUT --perceptual DIR --fetch-weights"
            raise InputError(f'{error}; "{fetching}" downloads it') from error
        return lpips.Lpips(alexnet, linear, device).distance
    from ..evaluation.features import VGG_LAYERS, VggFeatures

    vgg = channels_last(VggFeatures(layers=VGG_LAYERS), device)
    return vgg.absolute_distance if loss.perceptual == "vgg19-l1" else vgg.distance


def _start_from(net: Hific, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"initial: {path} is not there; train that configuration first, into this folder's neighbour")
    _, _, tensors = loop.read_checkpoint(path)
    prefix = "model.hific."
    try:
        net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        raise InputError(f"initial: {path} is of other networks than this configuration's") from error


def _steps_before(initial: str | None, folder: Path, behind: tuple[Path, ...] = ()) -> int | None:
    """Of what a training in `folder` starts from, and of what that starts from; None where its checkpoint is not there, or
    where they start from each other, as after one was trained anew."""
    if initial is None:
        return 0
    path = Path(os.path.normpath(folder / initial))
    if not path.is_file() or path in behind:
        return None
    step, values, _ = loop.read_checkpoint(path)
    before = _steps_before(values.get("initial"), path.parent, (*behind, path))
    return None if before is None else step + before


def export(
    checkpoint: Path,
    data: Path,
    output: Path,
    *,
    card: Mapping[str, Any] | None = None,
    config: HificTraining | None = None,
) -> str:
    """A checkpoint as a manifold file of one quality, in half precision; returns its id. Raises InputError.

    config: in place of the checkpoint's, for the name.

    The code tables are fitted to pictures and video frames of the training's folders, and to deltas of rendered scenes. The
    card's `steps` are those of all stages; `start_steps`, those of `initial`, is left out where its checkpoint is not there.
    """
    step, values, tensors = loop.read_checkpoint(checkpoint)
    if values.get("kind") != "hific" or values.get("network", {}).get("family") != "paper":
        raise InputError(f"{checkpoint}: not a checkpoint of the full-size hific networks")
    config = config or from_dict(values, HificTraining, source=str(checkpoint))
    net = MeanHific(config.network).eval()
    net.load_state_dict({k.removeprefix("model.hific."): v for k, v in tensors.items() if k.startswith("model.hific.")})
    halves = loop.halved(net.state_dict())
    pictures = load_pictures([data / f for f in config.data.folders], longest=EXPORT_LONGEST, frames_per_video=1)
    if not pictures:
        raise InputError(f"{data}: no pictures or videos that can be read in {', '.join(config.data.folders)}")
    before = _steps_before(config.initial, checkpoint.parent)
    fitted = fit_tables(net, pictures[:: max(1, len(pictures) // EXPORT_PICTURES)])
    return save(
        output,
        net,
        halves,
        fitted.tables,
        name=config.name,
        card={
            "title": f"HiFiC, {config.network.channels} channels, {config.network.blocks} residual blocks",
            "data": f"{', '.join(config.data.folders)}: {len(pictures)} pictures and frames",
            "made": date.today().isoformat(),
            "training_config": to_dict(config),
            "steps": step + (before or 0),
        }
        | ({} if before is None else {"start_steps": before})
        | dict(card or {}),
    )
