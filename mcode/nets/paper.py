"""The full-size networks of the `hific` kind (Mentzer et al. 2020, figure 2): E, G, the hyperprior P and D.

    x -- E -- y -- round -- y_hat -- G -- x_hat          x or x_hat --+
              |      |                                                +-- D -- real or not, for each 16x16 patch
              +- hyper-analysis - z - hyper-synthesis - mean, scale   y_hat - conv - nearest up 16

Edges, strides and shapes are those of the public PyTorch port (Justin-Tan/high-fidelity-generative-compression), in its
order of layers, so that importing its weights is renaming (and ChannelNorm divides by C - 1, as there, not by C).
Rounding is around the mean, so manifolds send y - mean, rounded, and z (`MeanHific`).
Parameters at full size: E 7,423,420; G 156,774,683; P 17,277,560 with the density of z; 181,475,663 together. D, in
training only: 2,793,117.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from . import STRIDE
from .layers import ChannelNorm, at_least
from .mean_scale import MeanScaleEncoder, MeanScaleGenerator

SMALLEST_SCALE = 0.11
LEAST_PROBABILITY = 1e-9
HYPER_STRIDE = 4
"""Positions of y, along a side, to one of z."""
_IN_ONE = HYPER_STRIDE**2

Norm = Literal["channel", "instance"]


@dataclass(frozen=True)
class PaperConfig:
    """channels: C of y. width: of the outermost convolutions, which four halvings double to 960. blocks: n_R. hyper:
    channels of z. qualities: quantisers which the manifold holds; trainings take 1 alone. tanh: G ends in one, as in weights
    of the port that were trained on pictures in [-1, 1]. norm: of E and G; "instance" is the ablation that darkens pictures
    of other sizes than the training's crops (section 5.4). autoencoder: E and G; "mean-scale" are those of Minnen et al.
    2018, with `width` channels everywhere and neither blocks nor norm (figure 6b)."""

    family: Literal["paper"] = "paper"
    channels: int = 220
    width: int = 60
    blocks: int = 9
    hyper: int = 320
    qualities: int = 1
    tanh: bool = False
    norm: Norm = "channel"
    autoencoder: Literal["hific", "mean-scale"] = "hific"

    def __post_init__(self) -> None:
        for name in ("channels", "width", "blocks", "hyper", "qualities"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not 1 or more")
        for name in ("channels", "width"):
            if getattr(self, name) < 2 and self.autoencoder == "hific" and self.norm == "channel":
                raise ValueError(f"{name} = {getattr(self, name)} is not 2 or more: one channel cannot be normalised by itself")
        if self.autoencoder == "mean-scale" and self.norm != "channel":
            raise ValueError(f'norm = "{self.norm}": the mean-scale autoencoder has none; leave it out')


def pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """(B, C, h, w) with reflected edges of these widths; with repeated ones where h or w is too small to reflect."""
    fits = max(left, right) < x.shape[3] and max(top, bottom) < x.shape[2]
    return F.pad(x, (left, right, top, bottom), mode="reflect" if fits else "replicate")


class Conv(nn.Conv2d):
    """A convolution with reflected edges: as many positions out as in, divided by the stride."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        *,
        edges: tuple[int, int, int, int] | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__(channels_in, channels_out, size, stride)
        self.edges = edges or (size // 2,) * 4

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, *self.edges))


class FusedChannelNorm(ChannelNorm):
    """ChannelNorm in one kernel: layer normalisation divides by C where ChannelNorm divides by C - 1, which a factor and
    another eps make up for. On a processor 6 to 17 times as fast (60 to 960 channels)."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        share = (channels - 1) / channels
        gamma, beta = self.gamma.flatten() * math.sqrt(share), self.beta.flatten()
        return F.layer_norm(x.permute(0, 2, 3, 1), (channels,), gamma, beta, self.eps * share).permute(0, 3, 1, 2)


def _norm(channels: int, kind: Norm) -> nn.Module:
    return FusedChannelNorm(channels) if kind == "channel" else nn.InstanceNorm2d(channels, affine=True)


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, channels: int, norm: Norm = "channel") -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.norm1, self.norm2 = _norm(channels, norm), _norm(channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class Encoder(nn.Sequential):
    """E: pictures (B, 3, H, W) in [-1, 1], H and W multiples of 16, to y (B, C, H/16, W/16)."""

    def __init__(self, channels: int, width: int, norm: Norm = "channel") -> None:
        layers: list[nn.Module] = [Conv(3, width, 7), _norm(width, norm), nn.ReLU()]
        for _ in range(4):
            layers += [Conv(width, 2 * width, 3, edges=(0, 1, 1, 0), stride=2), _norm(2 * width, norm), nn.ReLU()]
            width *= 2
        super().__init__(*layers, Conv(width, channels, 3))


class Generator(nn.Module):
    """G: y_hat (B, C, h, w) to pictures (B, 3, 16 h, 16 w), about [-1, 1], not clipped."""

    def __init__(self, channels: int, width: int, blocks: int, norm: Norm = "channel") -> None:
        super().__init__()
        wide = 16 * width
        self.first = nn.Sequential(_norm(channels, norm), Conv(channels, wide, 3), _norm(wide, norm))
        self.blocks = nn.Sequential(*(Block(wide, norm) for _ in range(blocks)))
        layers: list[nn.Module] = []
        for _ in range(4):
            up = nn.ConvTranspose2d(wide, wide // 2, 3, stride=2, padding=1, output_padding=1)
            layers += [up, _norm(wide // 2, norm), nn.ReLU()]
            wide //= 2
        self.up = nn.Sequential(*layers)
        self.last = Conv(wide, 3, 7)

    def forward(self, y: Tensor) -> Tensor:
        head = self.first(y)
        return self.last(self.up(self.blocks(head) + head))


def gaussian_probability(v: Tensor, scale: Tensor) -> Tensor:
    """P(v - 1/2 < X < v + 1/2) of a normal distribution with mean 0 and standard deviation `scale`, from 1e-9 up."""
    v = v.abs()  # the lower tails: no cancellation
    return at_least(_below((0.5 - v) / scale) - _below((-0.5 - v) / scale), LEAST_PROBABILITY)


def _below(x: Tensor) -> Tensor:
    """P(X < x) of a standard normal. In float32 torch.special.ndtr is (1 + erf) / 2, which is 0 from 5.4 deviations down."""
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


class FactorisedDensity(nn.Module):
    """One trained density for each channel of z, by its cumulative function (Balle et al. 2018, section 6.1)."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (1, 3, 3, 3, 1), spread: float = 10.0) -> None:
        super().__init__()
        self.stages = len(widths) - 1
        scale = spread ** (1 / self.stages)
        for k, (inner, outer) in enumerate(itertools.pairwise(widths)):
            start = math.log(math.expm1(1 / scale / outer))
            self.register_parameter(f"H_{k}", nn.Parameter(torch.full((channels, outer, inner), start)))
            self.register_parameter(f"a_{k}", nn.Parameter(torch.zeros(channels, outer, 1)))
            self.register_parameter(f"b_{k}", nn.Parameter(torch.rand(channels, outer, 1) - 0.5))

    def logits(self, z: Tensor) -> Tensor:
        """Of the cumulative function at z: (C, 1, n) to (C, 1, n)."""
        for k in range(self.stages):
            matrix, factor, bias = (getattr(self, f"{name}_{k}") for name in "Hab")
            z = torch.bmm(F.softplus(matrix), z) + bias
            z = z + torch.tanh(factor) * torch.tanh(z)
        return z

    def forward(self, z: Tensor) -> Tensor:
        """P(z - 1/2 < Z < z + 1/2), from 1e-9 up: (B, C, h, w) to the same."""
        flat = z.transpose(0, 1).flatten(1).unsqueeze(1)
        upper, lower = self.logits(flat + 0.5), self.logits(flat - 0.5)
        sign = -torch.sign(upper + lower).detach()  # towards the tail in which sigmoids do not cancel
        probability = at_least((torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs(), LEAST_PROBABILITY)
        return probability.view(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)


def _hyper_synthesis(channels: int, hyper: int) -> nn.Sequential:
    def up() -> nn.Module:
        return nn.ConvTranspose2d(hyper, hyper, 5, stride=2, padding=2, output_padding=1)

    return nn.Sequential(up(), nn.ReLU(), up(), nn.ReLU(), nn.ConvTranspose2d(hyper, channels, 3, padding=1))


class Bits(NamedTuple):
    """What y and z of each picture cost under P, each (B,). noisy: rounding simulated by uniform noise, which gradients go
    through; rounded: of integers, without gradient. Noise costs bits even where nothing is sent: see `Hyperprior.forward`."""

    noisy: Tensor
    rounded: Tensor


class Hyperprior(nn.Module):
    """P: side information z (B, N, h/4, w/4) of y, and from it a normal distribution for each element of y."""

    def __init__(self, channels: int, hyper: int) -> None:
        super().__init__()
        self.analysis = nn.Sequential(
            nn.Conv2d(channels, hyper, 3, padding=1),
            nn.ReLU(),
            Conv(hyper, hyper, 5, stride=2),
            nn.ReLU(),
            Conv(hyper, hyper, 5, stride=2),
        )
        self.synthesis_mean = _hyper_synthesis(channels, hyper)
        self.synthesis_scale = _hyper_synthesis(channels, hyper)
        self.density = FactorisedDensity(hyper)

    def side(self, y: Tensor) -> Tensor:
        """z of y (B, C, h, w), whose edges are repeated up to a multiple of 4."""
        bottom, right = -y.shape[2] % HYPER_STRIDE, -y.shape[3] % HYPER_STRIDE
        return self.analysis(F.pad(y, (0, right, 0, bottom), mode="replicate"))

    def distribution(self, z: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Mean and scale of y, each float32 (B, C, height, width)."""
        mean, scale = self.synthesis_mean(z).float(), self.synthesis_scale(z).float()
        return mean[..., :height, :width], at_least(scale[..., :height, :width], SMALLEST_SCALE)

    def forward(self, y: Tensor) -> tuple[Tensor, Bits]:
        """One training pass: y_hat (B, C, h, w), rounded straight-through around the means, and bits (section 3.3).

        Both rates of y are under the distribution that z with noise gives. 220 channels at the smallest scale cost 0.13
        bit/pixel by noise alone where y lies at its means, and 0 rounded: only the latter can be held against a target.
        """
        y = y.float()
        z = self.side(y).float()
        noisy_z = z + torch.rand_like(z) - 0.5
        mean, scale = self.distribution(noisy_z, *y.shape[2:])
        centred = y - mean
        y_hat = mean + centred + (centred.round() - centred).detach()
        with torch.autocast(y.device.type, enabled=False):
            noisy = _bits(gaussian_probability(centred + torch.rand_like(y) - 0.5, scale), self.density(noisy_z))
            with torch.no_grad():
                rounded = _bits(gaussian_probability(centred.round(), scale), self.density(z.round()))
        return y_hat, Bits(noisy, rounded)


def _bits(p_y: Tensor, p_z: Tensor) -> Tensor:
    return -(p_y.log2().sum((1, 2, 3)) + p_z.log2().sum((1, 2, 3)))


class Discriminator(nn.Module):
    """D: pictures (B, 3, 16 h, 16 w) and y_hat (B, C, h, w) to a logit for each patch, (B, 1, h, w).

    Depth and strides are the PyTorch port's: four convolutions of stride 2, patches of 1/16. The authors' own has three of
    stride 2 and one of stride 1, and judges at 1/8. norm: "spectral", of every convolution, as in the authors' code (the port
    leaves out the first and the last), or "instance", behind those of stride 2, as in the ablation (section 5.4).
    conditional = False leaves y_hat out.
    """

    def __init__(self, channels: int, *, norm: Literal["spectral", "instance"] = "spectral", conditional: bool = True) -> None:
        super().__init__()
        normed: Callable[[nn.Module], nn.Module] = spectral_norm if norm == "spectral" else lambda conv: conv
        self.condition = normed(Conv(channels, 12, 3)) if conditional else None
        layers: list[nn.Module] = []
        width_in = 3 + 12 * conditional
        for width in (64, 128, 256, 512):
            layers.append(normed(Conv(width_in, width, 4, edges=(1, 1, 1, 1), stride=2)))
            layers += [nn.InstanceNorm2d(width, affine=True)] if norm == "instance" else []
            layers.append(nn.LeakyReLU(0.2))
            width_in = width
        self.net = nn.Sequential(*layers, normed(nn.Conv2d(512, 1, 1)))

    def forward(self, x: Tensor, y_hat: Tensor) -> Tensor:
        if self.condition is not None:
            condition = F.leaky_relu(self.condition(y_hat), 0.2)
            x = torch.cat([x, F.interpolate(condition, scale_factor=STRIDE, mode="nearest")], dim=1)
        return self.net(x)


class Hific(nn.Module):
    """E, G and P: what a manifold holds. pixels_at_once: see mcode.nets.tiled; G takes about 1 kB for each."""

    pixels_at_once = 1 << 22

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module
        self.generator: nn.Module
        if config.autoencoder == "mean-scale":
            self.encoder = MeanScaleEncoder(config.channels, config.width)
            self.generator = MeanScaleGenerator(config.channels, config.width)
        else:
            self.encoder = Encoder(config.channels, config.width, config.norm)
            self.generator = Generator(config.channels, config.width, config.blocks, config.norm)
        if config.norm == "instance":
            self.pixels_at_once = sys.maxsize  # each position depends on the whole picture: no parts
        self.hyperprior = Hyperprior(config.channels, config.hyper)

    def analysis(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to y (B, C, H/16, W/16)."""
        return self.encoder(x)

    def synthesis(self, y: Tensor) -> Tensor:
        """y (B, C, h, w) to (B, 3, 16 h, 16 w), about [-1, 1]."""
        x_hat = self.generator(y)
        return torch.tanh(x_hat) if self.config.tanh else x_hat

    @torch.inference_mode()
    def bits(self, symbols: Tensor) -> float:
        """What integers y (1, C, h, w) cost under P, with z rounded, z included: what a coder of P would need."""
        z = self.hyperprior.side(symbols.float()).float().round()
        mean, scale = self.hyperprior.distribution(z, *symbols.shape[2:])
        return self._bits(symbols - mean, scale, z)

    def _bits(self, centred: Tensor, scale: Tensor, z: Tensor) -> float:
        p_y, p_z = gaussian_probability(centred, scale), self.hyperprior.density(z)
        return float(-(p_y.log2().sum() + p_z.log2().sum()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Bits]:
        """One training pass: x_hat, y_hat and bits."""
        y_hat, bits = self.hyperprior(self.encoder(x))
        return self.synthesis(y_hat), y_hat, bits


def sent_channels(config: PaperConfig) -> int:
    """Channels of what MeanHific sends."""
    return config.channels + -(-config.hyper // _IN_ONE)


class MeanHific(Hific):
    """As manifolds with `quantiser = "mean"` run it (section 3.3): s = round(y - mean) and z are sent, y_hat = s + mean(z).

    Both are one map (B, C + Z, h, w), h and w multiples of 4: s in the first C channels; then z (B, N, h/4, w/4) in
    Z = ceil(N / 16) channels, 16 of its channels in the 4x4 positions of one (the last filled up with zeros). y is reflected
    to such sides, and G makes a picture of all of it, as in the PyTorch port. The mean touches pixels alone, so it may be
    floating point. P is computed in float32: its share of the work is small.
    """

    @property
    def sent_channels(self) -> int:
        """C + Z."""
        return sent_channels(self.config)

    def sent(self, y: Tensor, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What stands for y (B, C, h, w): y - mean, not rounded, and z, rounded: float32 (B, C + Z, h, w), with h and w rounded
        up to multiples of 4.

        limits: least and largest z that can be sent, (Z, 1, 1) each.
        """
        with torch.autocast(y.device.type, enabled=False):
            y = reflected(y.float(), HYPER_STRIDE)
            z = F.pad(self.hyperprior.side(y).round(), (0, 0, 0, 0, 0, -self.config.hyper % _IN_ONE))
            z = F.pixel_shuffle(z, HYPER_STRIDE)
            if limits is not None:
                z = z.clamp(*limits)
            return torch.cat([y - self._mean(z), z], 1)

    def y_hat(self, sent: Tensor) -> Tensor:
        """y_hat (B, C, h, w) of a map as `sent` gives, rounded or between two keyframes."""
        centred, z = sent.float().split([self.config.channels, self.sent_channels - self.config.channels], 1)
        with torch.autocast(sent.device.type, enabled=False):
            return centred + self._mean(z)

    def _mean(self, z: Tensor) -> Tensor:
        return self.hyperprior.synthesis_mean(self._unfolded(z))

    def _unfolded(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) to (B, N, h/4, w/4)."""
        return F.pixel_unshuffle(z, HYPER_STRIDE)[:, : self.config.hyper]

    @torch.inference_mode()
    def bits(self, symbols: Tensor) -> float:
        """What s and z, rounded, as `sent` gives them, (1, C + Z, h, w), cost under P."""
        centred, z = symbols.float().split([self.config.channels, self.sent_channels - self.config.channels], 1)
        z = self._unfolded(z)
        _, scale = self.hyperprior.distribution(z, *symbols.shape[2:])
        return self._bits(centred, scale, z)


def reflected(maps: Tensor, factor: int) -> Tensor:
    """(B, C, h, w) to sides that are multiples of `factor`, reflected at the right and the bottom as in the PyTorch port.

    Where it is too small for that, which the port refuses, its edges are repeated.
    """
    height, width = maps.shape[2:]
    below, beside = -height % factor, -width % factor
    mode = "reflect" if below < height and beside < width else "replicate"
    return F.pad(maps, (0, beside, 0, below), mode=mode)
