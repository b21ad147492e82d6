"""Small classifiers of labelled pictures, whose features say what a picture shows: a loss for codecs that keep it.

In the spirit of NCode's conv4 of AlexNet (Santurkar et al. 2017, equation 2), where no weights fit so small pictures. They are
of two kinds, and neither is the classifier that judges in mcode/evaluation/paper: a judge that was trained on judges no more.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.features import unit_distance
from ..nets.layers import channels_last
from ..whole import whole_tensors
from . import loop
from .squares import Squares

FILE = "classes.safetensors"
_MADE_OF = "made_of"
EPOCHS, BATCH, PEAK_RATE, WEIGHT_DECAY = 12.0, 256, 3e-3, 2e-2
SHIFT = 2
"""Pixels by which both pictures of a pair are moved, at random: a difference must not hang on a position."""


class ClassNetwork(nn.Module):
    """(B, channels, H, W) in [-1, 1] to logits (B, classes). kind 0: pairs of 3x3 convolutions and maxima, as VGG; 1: strided
    convolutions of 5x5 and 3x3 with leaky units, no pooling."""

    def __init__(self, kind: int, channels: int, classes: int, width: int = 48) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stages = nn.ModuleList()
        inner = channels
        for w in widths:
            if kind % 2 == 0:
                layers = [*_unit(inner, w, 3, 1, nn.ReLU()), *_unit(w, w, 3, 1, nn.ReLU()), nn.MaxPool2d(2)]
            else:
                layers = [*_unit(inner, w, 5, 2, nn.LeakyReLU(0.1)), *_unit(w, w, 3, 1, nn.LeakyReLU(0.1))]
            self.stages.append(nn.Sequential(*layers))
            inner = w
        self.last = nn.Linear(inner, classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """Of the second and third stage, and the mean of the latter (B, C, 1, 1)."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[1:], x.mean((2, 3), keepdim=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x)[-1].flatten(1).float())


def _unit(channels_in: int, channels_out: int, size: int, stride: int, active: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), active]


class ClassDistance:
    """Mean over the networks of the distance of two pictures' unit features."""

    def __init__(self, networks: list[ClassNetwork]) -> None:
        self.networks = [n.eval().requires_grad_(False) for n in networks]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (B, channels, H, W) in [-1, 1]. Returns (B,). Draws from torch's generator."""
        height, width = a.shape[2:]
        top, left = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
        both = F.pad(torch.cat([a, b]), (SHIFT,) * 4, mode="reflect")[:, :, top : top + height, left : left + width]
        both = both.contiguous(memory_format=torch.channels_last)
        found = []
        for network in self.networks:
            x, y = zip(*(layer.chunk(2) for layer in network.features(both)), strict=True)
            found.append(unit_distance(x, y))
        return torch.stack(found).mean(0)


def numbers(squares: Squares) -> tuple[np.ndarray, int]:
    """Class number of each picture (N,), by the folder it came from, and how many classes there are. Raises InputError."""
    names = sorted(set(squares.folders))
    if len(names) < 2:
        raise InputError("a loss of classes needs pictures in a folder for each class, two at least")
    of_clips = np.array([names.index(f) for f in squares.folders])
    return np.repeat(of_clips, squares.clips), len(names)


def learn(
    squares: Squares, count: int, path: Path, *, seed: int, device: torch.device, epochs: float = EPOCHS, bfloat16: bool = True
) -> list[ClassNetwork]:
    """`count` networks trained on the squares, one kind after the other, or those that an earlier run has learned from the same
    squares with the same seed and epochs, from `path`, where they are kept. Raises InputError where the squares have no classes
    or the file is damaged."""
    labels, classes = numbers(squares)
    channels = squares.pixels.shape[3]
    networks = []
    for k in range(count):
        torch.manual_seed(seed * 101 + k)  # whatever was drawn before: where the file is gone they are to become the same
        networks.append(channels_last(ClassNetwork(k, channels, classes), device))
    together = nn.ModuleList(networks)
    content = zlib.crc32(labels.tobytes(), zlib.crc32(np.ascontiguousarray(squares.pixels).data))
    made_of = json.dumps({"networks": count, "seed": seed, "epochs": epochs, "pixels": squares.pixels.shape, "crc": content})
    if path.is_file():
        try:
            with safe_open(str(path), "pt") as file:
                same = (file.metadata() or {}).get(_MADE_OF, made_of) == made_of  # files of before do not say
            if same:
                together.load_state_dict(load_file(path))
                return networks
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{path}: not the class networks of this training ({error}); remove it") from error
    pixels = torch.from_numpy(squares.pixels)
    pixels, where = (t.to(device) for t in (pixels, torch.from_numpy(labels)))
    for k, network in enumerate(networks):
        torch.manual_seed(seed * 101 + k)
        _train(network, pixels, where, epochs, bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_tensors(path) as part:  # each process of a training learns the same and writes it
        save_file({k: v.detach().cpu().contiguous() for k, v in together.state_dict().items()}, part, {_MADE_OF: made_of})
    return networks


def _train(network: ClassNetwork, pixels: Tensor, labels: Tensor, epochs: float, bfloat16: bool) -> None:
    """AdamW, one cycle of the rate, shifted and mirrored pictures."""
    batch = min(BATCH, len(pixels))
    steps = math.ceil(epochs * len(pixels) / batch)
    optimiser = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps + 10, pct_start=0.2)
    network.train()
    for _ in range(steps):
        at = torch.randint(len(pixels), (batch,), device=pixels.device)
        x = pixels[at].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        shift = 2 * SHIFT
        top, left, mirrored = torch.randint(0, 2 * shift + 1, (3,)).tolist()
        x = F.pad(x, (shift,) * 4, mode="reflect")[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = (x.flip(3) if mirrored % 2 else x).contiguous(memory_format=torch.channels_last)
        with loop.autocast(x.device, bfloat16):
            logits = network(x)
        loss = F.cross_entropy(logits, labels[at], label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cycle.step()
