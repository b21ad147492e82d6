"""The `ncode` kind: DCGAN decoder g, discriminator d and encoder f of square frames (Santurkar et al. 2017, section 3).

z (M) -- g: project to 4x4, then double until the size, batch norm and ReLU between, tanh last -- x_hat
x -- d or f: halve until 4x4, batch norm and leaky ReLU between -- a logit, or z
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

SIZES = (32, 64, 128, 256)
BITS = tuple(range(1, 9))
"""Quality q quantises each coordinate to q bits."""
_SMALLEST = 4
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class NCodeConfig:
    """size: of the square frame in pixels. channels: 1 (grey) or 3. m: coordinates. width: channels at half the size,
    which double with each halving up to `widest` (Radford, Metz, Chintala 2016 have width 128 at 64 pixels)."""

    size: Literal[32, 64, 128, 256] = 64
    channels: Literal[1, 3] = 3
    m: int = 100
    width: int = 64
    widest: int = 1024

    def __post_init__(self) -> None:
        for name in ("m", "width", "widest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not 1 or more")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels from half the size down to 4x4."""
        return tuple(min(self.width << i, self.widest) for i in range(int(math.log2(self.size // _SMALLEST))))


class Generator(nn.Module):
    """g: z (B, M, 1, 1) in [-1, 1] to pictures (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: NCodeConfig) -> None:
        super().__init__()
        *outer, inner = config.widths
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(config.m, inner, _SMALLEST, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
        ]
        for width in reversed(outer):
            up = nn.ConvTranspose2d(inner, width, 4, stride=2, padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(width), nn.ReLU()]
            inner = width
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(inner, config.channels, 4, stride=2, padding=1))
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.net(z).float())


class Discriminator(nn.Module):
    """d: pictures (B, channels, size, size) in [-1, 1] to (B, outputs, 1, 1), float32.

    norm = False leaves batch norm out: the gradient penalty needs each picture's gradient by itself (Gulrajani et al.
    2017, section 4).
    """

    def __init__(self, config: NCodeConfig, *, outputs: int = 1, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner: int = config.channels
        for i, width in enumerate(config.widths):
            normed = norm and i > 0
            layers.append(nn.Conv2d(inner, width, 4, stride=2, padding=1, bias=not normed))
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)] if normed else [nn.LeakyReLU(0.2)]
            inner = width
        self.net = nn.Sequential(*layers)
        self.last = nn.Conv2d(inner, outputs, _SMALLEST)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 holds 8 bits: too few for a coordinate of 8
            return self.last(features.float())


class Encoder(Discriminator):
    """f: d with M outputs, brought into [-1, 1]: pictures (B, channels, size, size) to z (B, M, 1, 1)."""

    def __init__(self, config: NCodeConfig) -> None:
        super().__init__(config, outputs=config.m)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class NCode(nn.Module):
    """f and g as a manifold uses them: RGB on both sides, latents z + 1 in [0, 2].

    With b bits a coordinate has the 2^b symbols 0 .. 2^b - 1, evenly spaced from z = -1 to z = 1.
    """

    def __init__(self, config: NCodeConfig) -> None:
        super().__init__()
        self.config = config
        self.f, self.g = Encoder(config), Generator(config)

    def analysis(self, x: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] to y (B, M, 1, 1) in [0, 2]."""
        if self.config.channels == 1:
            x = (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return self.f(x) + 1

    def synthesis(self, y: Tensor) -> Tensor:
        """y (B, M, 1, 1) to (B, 3, size, size) in [-1, 1]."""
        return self.g(y - 1).repeat(1, 3 // self.config.channels, 1, 1)


def levels() -> Tensor:
    """Quantiser steps per unit of latent at each quality, (qualities,): 2^b - 1 steps across [0, 2]."""
    return (2 ** torch.tensor(BITS) - 1) / 2


def quantise(z: Tensor, bits: Tensor) -> Tensor:
    """z in [-1, 1] (B, M, 1, 1) at bits (B,), rounded straight-through: what the other end will hold."""
    gain = ((2**bits - 1) / 2).view(-1, 1, 1, 1)
    return z + (((z + 1) * gain).round() / gain - 1 - z).detach()


def _initialise(net: nn.Module) -> None:
    """Radford, Metz, Chintala 2016, section 4: normal, standard deviation 0.02."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
