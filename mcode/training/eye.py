"""Trains the networks of features that ship for refinement (`nets.eye`) after VGG19 and SqueezeNet.

What refinement asks of a judge is in which direction to move symbols. So that is what it learns: on reconstructions of a
manifold the gradient of its distance in the symbols is to point where that of VGG19's plus SqueezeNet's distance points
(1 - cosine), and distances are to be in proportion.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..evaluation.features import VGG_LAYERS, SqueezeNetFeatures, VggFeatures, unit_distance
from ..manifold import Manifold
from ..nets.eye import WIDTHS, Eye, read
from ..nets.layers import channels_last
from ..whole import whole_tensors
from .crops import CropStream, load_pictures

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class EyeTraining:
    """squeezenet: its distance's share beside VGG19's. value: weight of the distances beside the gradients' direction."""

    steps: int = 3000
    batch: int = 8
    crop: int = 128
    learning_rate: float = 1e-3
    warmup: int = 50
    squeezenet: float = 1.0
    value: float = 0.3
    seconds: float | None = None
    seed: int = 1


def train(
    model: Manifold,
    folders: list[Path],
    training: EyeTraining,
    *,
    weights: str | None = None,
    start: Path | None = None,
    report: Report | None = None,
) -> tuple[Eye, float]:
    """(the network, the factor for its distances). With `seconds` training follows the clock, and ends by
    it. start: a file of `save`, from whose last network to go on."""
    torch.manual_seed(training.seed)
    pictures = load_pictures(folders, longest=1024, frames_per_video=2)
    if not pictures:
        raise InputError(f"no pictures or videos that can be read in {', '.join(map(str, folders))}")
    crops = CropStream(pictures, training.batch, training.crop, training.seed)
    vgg, squeeze = VggFeatures(weights, VGG_LAYERS), SqueezeNetFeatures(weights)
    for network in (vgg, squeeze, model.net):
        channels_last(network.requires_grad_(False))
    net, scale = (Eye(), 1.0) if start is None else read(start)[-1]
    net = channels_last(net.requires_grad_(True))
    log_scale = torch.nn.Parameter(torch.tensor(scale).log())
    optimiser = torch.optim.Adam([*net.parameters(), log_scale], lr=training.learning_rate, betas=(0.9, 0.99))
    gains = torch.stack([model.gain(q) for q in range(1, model.qualities + 1)])
    inverses = torch.stack([model.inverse(q) for q in range(1, model.qualities + 1)])
    averages = {"cosine": 0.0, "value": 0.0}
    started = time.monotonic()
    for step in range(training.steps):
        done = step / training.steps if training.seconds is None else (time.monotonic() - started) / training.seconds
        if done >= 1:
            break
        rate = training.learning_rate * min(1, (step + 1) / training.warmup) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rgb = next(crops)
        quality = torch.randint(model.qualities, (len(rgb),))
        with torch.no_grad():
            y = model.analyse(rgb).clone()
        gain, inverse = (v[quality][..., None, None] for v in (gains, inverses))
        symbols = (y * gain).round() + 0.3 * (torch.rand_like(y) - 0.5)
        symbols.requires_grad_(True)
        x = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", model.dtype, enabled=model.dtype != torch.float32):
            x_hat = (model.net.synthesis(symbols * inverse).float() / 2 + 0.5).clamp(-0.1, 1.1)
            leaf = x_hat.detach().requires_grad_(True)
            with torch.no_grad():
                wanted = vgg(x), squeeze.maps(x)
            distance = unit_distance(wanted[0], vgg(leaf)) + training.squeezenet * unit_distance(wanted[1], squeeze.maps(leaf))
        (teacher,) = torch.autograd.grad(distance.sum(), leaf)
        own = _distance(net(x), net(leaf))
        (student,) = torch.autograd.grad(own.sum(), leaf, create_graph=True)
        (there,) = torch.autograd.grad(x_hat, symbols, teacher, retain_graph=True)
        (here,) = torch.autograd.grad(x_hat, symbols, student, create_graph=True)
        cosine = F.cosine_similarity(here.flatten(1), there.flatten(1)).mean()
        apart = (own.log() + log_scale - distance.detach().log()).square().mean()
        loss = 1 - cosine + training.value * apart
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        for name, value in (("cosine", cosine), ("value", apart)):
            averages[name] += (value.item() - averages[name]) / min(step + 1, 50)
        if report is not None and (step + 1) % 25 == 0:
            report(
                {
                    "step": step + 1,
                    "seconds": round(time.monotonic() - started),
                    **{k: round(v, 4) for k, v in averages.items()},
                }
            )
    return net, float(log_scale.detach().exp())


def _distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """`unit_distance`, differentiable twice."""
    layers = []
    for u, v in zip(a, b, strict=True):
        u, v = (f / (f.square().sum(1, keepdim=True) + 1e-4).sqrt() for f in (u, v))
        layers.append((u - v).square().sum(1).mean((1, 2)))
    return torch.stack(layers).mean(0)


def save(eyes: Sequence[tuple[Eye, float]], path: Path, *, card: Mapping[str, Any]) -> None:
    """Networks and the factors of their distances, float16, with the card in the file's metadata."""
    tensors = {
        f"{i}.{name}": tensor.detach().half().contiguous()
        for i, (net, _) in enumerate(eyes)
        for name, tensor in net.state_dict().items()
    }
    scales = [scale for _, scale in eyes]
    with whole_tensors(path) as part:
        save_file(tensors, part, {"card": json.dumps({"widths": list(WIDTHS), "scales": scales} | dict(card))})
