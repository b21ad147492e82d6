"""The hyperprior of the coder `range` as it is trained: an exact double, in torch, of the integers that code (coders/range.py).

Mean and scale of every symbol are predicted from a small hyper-latent and from the symbols coded before, in passes over
groups of channels (Ballé et al. 2018; Minnen, Ballé, Toderici 2018; checkerboard passes: He et al. 2021). Weights are
rounded to integers in the forward pass from the first step on (straight-through gradients), so nothing is lost when
they are exported (integer networks: Ballé, Johnston, Minnen 2019). Values are integers over a power of two: exact.

    symbols - A1 - A2 - A3 - z                                 hyper-analysis, 1/64 of the picture's sides
    z - S1 (3x3) - S2 (4x4 depth to space) --+
    previous keyframe, where it is the base ---+
    quality, kind -----------------------------+-- sum -- L2 - head -- scale index and mean of the next pass
    symbols of the passes before (3x3) --------+
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..coders.range import DELTA, HEAD_SHIFT, LOG_TABLE, SHIFT, TOP, WITH_Z, Z_MAX, Z_MIN, HyperConfig, RangeModel

UNIT = 32
"""Integer steps of an activation, a feature or an output in one unit of the training's numbers."""
WEIGHT_UNIT = 1 << SHIFT
SCALE_LOW, SCALE_STEP = 0.03, 0.153
"""Scale index i is a Laplace distribution of mean size SCALE_LOW * exp(SCALE_STEP * i), in quantiser steps."""
HEAD_UNIT = UNIT * WEIGHT_UNIT >> HEAD_SHIFT


def _rounded(x: Tensor, unit: float) -> Tensor:
    """x to the nearest multiple of 1/unit, halves upwards; the gradient passes."""
    return x + (torch.floor(x * unit + 0.5) / unit - x).detach()


class IntegerWeight(nn.Module):
    """A convolution's weight, (out, in, k, k), with integers from -127 to 127 over WEIGHT_UNIT in the forward pass."""

    def __init__(self, out: int, inside: int, kernel: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, inside, kernel, kernel) * scale / math.sqrt(inside * kernel**2))

    def value(self) -> Tensor:
        limit = 127 / WEIGHT_UNIT
        return _rounded(self.weight.clamp(-limit, limit), WEIGHT_UNIT)

    def forward(self, x: Tensor, centre: bool = False) -> Tensor:
        w = self.value()
        if centre:
            middle = w.shape[2] // 2
            w = w[:, :, middle : middle + 1, middle : middle + 1]
        return F.conv2d(x, w, padding=w.shape[2] // 2)

    def integers(self) -> np.ndarray:
        return np.rint(self.value().detach().double().numpy() * WEIGHT_UNIT).astype(np.int8)


class IntegerBias(nn.Module):
    """Offsets added to a convolution's sums, any shape, one set for each leading index."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(*shape))

    def value(self) -> Tensor:
        return _rounded(self.bias, UNIT * WEIGHT_UNIT)

    def integers(self) -> np.ndarray:
        return np.rint(self.value().detach().double().numpy() * UNIT * WEIGHT_UNIT).astype(np.int32)


def activate(x: Tensor) -> Tensor:
    return _rounded(x, UNIT).clamp(0, TOP / UNIT)


def features(symbols: Tensor, signed: int) -> Tensor:
    """(B, C, h, w) integers to (B, C + signed, h, w): a logarithm of their size; for the first `signed` channels also with
    the sign."""
    table = torch.from_numpy(LOG_TABLE).to(symbols.device, symbols.dtype) / UNIT
    size = table[symbols.abs().clamp_max(len(LOG_TABLE) - 1).long()]
    return torch.cat([size, size[:, :signed] * symbols[:, :signed].sign()], 1)


class Hyper(nn.Module):
    """Bits of symbols under the hyperprior, differentiable in its weights. The symbols are given and fixed."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        c, q, wide, hidden, z = config.channels, config.qualities, config.wide, config.hidden, config.latents
        self.a1, self.a1_bias = IntegerWeight(wide, c + config.signed), IntegerBias(q, wide)
        self.a2, self.a2_bias = IntegerWeight(wide, 4 * wide), IntegerBias(1, wide)
        self.a3, self.a3_bias = IntegerWeight(z, 4 * wide), IntegerBias(1, z)
        self.s1, self.s1_bias = IntegerWeight(wide, z, 3), IntegerBias(1, wide)
        self.s2 = IntegerWeight(16 * hidden, wide)
        self.before = IntegerWeight(hidden, c + config.signed)
        self.start = IntegerBias(2 * config.kinds * q, hidden)
        sizes = [p.stop - p.start for p in config.passes]
        self.inner = nn.ModuleList(IntegerWeight(hidden, hidden, scale=1.4) for _ in sizes)
        self.inner_bias = nn.ModuleList(IntegerBias(1, hidden) for _ in sizes)
        self.head = nn.ModuleList(IntegerWeight(2 * n, hidden, scale=0.5) for n in sizes)
        self.head_bias = nn.ModuleList(IntegerBias(2 * q, 2 * n) for n in sizes)
        known = [n + config.signed_of(p) for n, p in zip(sizes, config.passes, strict=True)]
        self.context = nn.ModuleList(IntegerWeight(hidden, n, 3, scale=0.5) for n in known[:-1])
        self.z_mean = nn.Parameter(torch.zeros(q, z))
        self.z_log_scale = nn.Parameter(torch.zeros(q, z))
        with torch.no_grad():
            self.start.bias.fill_(0.5)

    @classmethod
    def from_integers(cls, config: HyperConfig, weights: Mapping[str, np.ndarray]) -> Hyper:
        """The network of these integers (see `integers`), without densities of z: what codes, on any device and in batches."""
        net = cls(config)
        state = {}
        for name, module in net.named_modules():
            if isinstance(module, IntegerWeight):
                state[f"{name}.weight"] = torch.from_numpy(weights[name].astype(np.float32)) / WEIGHT_UNIT
            elif isinstance(module, IntegerBias):
                state[f"{name}.bias"] = torch.from_numpy(weights[name].astype(np.float32)) / (UNIT * WEIGHT_UNIT)
        net.load_state_dict(state | {"z_mean": net.z_mean.detach(), "z_log_scale": net.z_log_scale.detach()})
        return net

    @classmethod
    def thaw(cls, model: RangeModel, levels: int | None = None) -> Hyper:
        """The network of a finished hyperprior, to be trained on: densities of z are taken from its tables. levels: another
        number than its own, all of which begin as its first."""
        config, weights = model.config, dict(model.weights)
        if levels is not None and levels != config.levels:
            rows = weights["start"].reshape(2 * config.qualities, config.kinds, -1)
            wanted = np.minimum(np.arange(DELTA + levels), DELTA)
            config, weights["start"] = replace(config, levels=levels), rows[:, wanted].reshape(-1, rows.shape[2])
        net = cls.from_integers(config, weights)
        values = np.arange(Z_MIN, Z_MAX + 1)
        share = model.z_tables / model.z_tables.sum(axis=2, keepdims=True)
        mean = (share * values).sum(axis=2)
        variance = (share * (values - mean[..., None]) ** 2).sum(axis=2)
        with torch.no_grad():
            net.z_mean.copy_(torch.from_numpy(mean))
            net.z_log_scale.copy_(torch.from_numpy(0.5 * np.log(3 * (variance + 0.05) / np.pi**2)))
        return net

    def prepare(self, spread: Tensor, middle: Tensor | None = None) -> None:
        """Starts the scales from each channel's mean size of symbol and of delta, and the means of whole symbols from its
        middle. spread: (2, qualities, C), of symbols around `middle`; middle: (qualities, C)."""
        index = (spread.clamp_min(SCALE_LOW).log() - math.log(SCALE_LOW)) / SCALE_STEP
        index = index.clamp_max(self.config.scales - 1).transpose(0, 1).flatten(0, 1) / HEAD_UNIT
        with torch.no_grad():
            for p, bias in zip(self.config.passes, self.head_bias, strict=True):
                assert isinstance(bias, IntegerBias)
                bias.bias[:, : p.stop - p.start] = index[:, p.start : p.stop]
                if middle is not None:  # rows of whole symbols are the even ones; means are in quarters
                    bias.bias[::2, p.stop - p.start :] = middle[:, p.start : p.stop] * (4 / HEAD_UNIT)

    def analysis(self, symbols: Tensor, quality: Tensor) -> Tensor:
        """(B, C, h, w) and int64 (B,) from 0 to z, integers, (B, Z, ceil(h / 4), ceil(w / 4))."""
        h, w = symbols.shape[2:]
        x = F.pad(features(symbols, self.config.signed), (0, -w % 4, 0, -h % 4))
        x = activate(self.a1(x) + self.a1_bias.value()[quality][..., None, None])
        x = activate(self.a2(F.pixel_unshuffle(x, 2)) + self.a2_bias.value()[..., None, None])
        x = self.a3(F.pixel_unshuffle(x, 2)) + self.a3_bias.value()[..., None, None]
        return _rounded(x * HEAD_UNIT, 1).clamp(Z_MIN, Z_MAX)

    def synthesis(self, z: Tensor) -> Tensor:
        """z to what it adds to the sums, (B, hidden, 4 hz, 4 wz)."""
        x = activate(self.s1(z * (16 / UNIT)) + self.s1_bias.value()[..., None, None])
        return F.pixel_shuffle(self.s2(x), 4)

    def indices(
        self, symbols: Tensor, previous: Tensor, z: Tensor, quality: Tensor, kind: Tensor, joined: bool
    ) -> tuple[Tensor, Tensor]:
        """(scale index, mean in quarters), both (B, C, h, w), each from what is coded before it.

        previous: what the symbols are coded against, where kind is DELTA or more. kind: int64 (B,). joined: whether neighbours
        are known, as in a keyframe of one slice.
        """
        config = self.config
        h, w = symbols.shape[2:]
        mode = config.kinds * int(joined) + kind
        start = self.start.value().view(config.qualities, 2 * config.kinds, -1)
        total = start[quality, mode][..., None, None].expand(-1, -1, h, w)
        delta = (kind >= DELTA).view(-1, 1, 1, 1)
        total = total + self.synthesis(z)[:, :, :h, :w] * (kind == WITH_Z).view(-1, 1, 1, 1)
        total = total + self.before(features(previous * delta, config.signed))
        residual = symbols - previous * delta
        even = ((torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0).to(symbols.device)
        scales: list[Tensor] = []
        means: list[Tensor] = []
        for i, p in enumerate(config.passes):
            inner_bias, head_bias = self.inner_bias[i], self.head_bias[i]
            assert isinstance(inner_bias, IntegerBias) and isinstance(head_bias, IntegerBias)
            x = activate(self.inner[i](activate(total)) + inner_bias.value()[..., None, None])
            offset = head_bias.value()[2 * quality + (kind >= DELTA).long()][..., None, None]
            scale, mean = _rounded((self.head[i](x) + offset) * HEAD_UNIT, 1).chunk(2, 1)
            part = residual[:, p.start : p.stop]
            if p.parity is not None:
                part = part * (even if p.parity == 0 else ~even)
            if i < len(self.context):
                total = total + self.context[i](features(part, config.signed_of(p)), centre=not joined)
            scale = scale.clamp(0, config.scales - 1)
            mean = mean.clamp(-config.mean_limit, config.mean_limit)
            if p.parity == 1:  # the two passes over the same channels
                scales[-1], means[-1] = torch.where(even, scales[-1], scale), torch.where(even, means[-1], mean)
            else:
                scales.append(scale)
                means.append(mean)
        return torch.cat(scales, 1), torch.cat(means, 1)

    def z_bits(self, z: Tensor, quality: Tensor) -> Tensor:
        """(B,): bits of z, logistic for each quality and channel."""
        mean, scale = self.z_mean[quality][..., None, None], self.z_log_scale[quality].exp()[..., None, None]
        probability = torch.sigmoid((z + 0.5 - mean) / scale) - torch.sigmoid((z - 0.5 - mean) / scale)
        return -probability.clamp_min(1e-6).log2().sum((1, 2, 3))

    def forward(self, symbols: Tensor, previous: Tensor, quality: Tensor, kind: Tensor, joined: bool) -> tuple[Tensor, Tensor]:
        """(bits of the symbols, bits of z), both (B,). symbols, previous: integers as float (B, C, h, w); see `indices`."""
        z = self.analysis(symbols, quality)
        index, mean = self.indices(symbols, previous, z, quality, kind, joined)
        against = symbols - previous * (kind >= DELTA).view(-1, 1, 1, 1)
        return _bits(against, index, mean), self.z_bits(z, quality) * (kind == WITH_Z)

    def whole_bits(self, noisy: Tensor, symbols: Tensor, quality: Tensor) -> Tensor:
        """(B,): bits of whole symbols in one slice with their z. noisy: the latents in quantiser steps, with noise or
        rounded by chance, which gradients reach; symbols: the integers that everything is predicted from. Both (B, C, h, w).
        """
        z = self.analysis(symbols, quality)
        kind = torch.full_like(quality, WITH_Z)
        index, mean = self.indices(symbols, torch.zeros_like(symbols), z, quality, kind, joined=True)
        return _bits(noisy, index, mean) + self.z_bits(z, quality)

    @torch.no_grad()
    def integers(self) -> dict[str, np.ndarray]:
        """The weights as `coders.range` has them."""
        self = self.cpu()
        found = {}
        for name, module in self.named_modules():
            if isinstance(module, IntegerWeight | IntegerBias):
                found[name] = module.integers()
        return found


def _bits(values: Tensor, index: Tensor, mean: Tensor) -> Tensor:
    """(B,): of values around means in quarters, scales by their index, (B, C, h, w) all three."""
    return LaplaceBits.apply((values - mean / 4).abs(), SCALE_LOW * torch.exp(SCALE_STEP * index)).sum((1, 2, 3))


class LaplaceBits(torch.autograd.Function):
    """-log2 P(distance - 1/2 < X < distance + 1/2) for Laplace X of mean size `scale`, with its derivatives in closed form:
    a third of the time that autograd takes over the formula. A floor under P keeps outliers from ruling the training."""

    FLOOR = 1e-6

    @staticmethod
    def forward(ctx: Any, distance: Tensor, scale: Tensor) -> Tensor:
        """distance: of the symbol from the mean, 0 or more. scale: above 0. Both of one shape, which is the result's."""
        inverse, outside = 1 / scale, distance >= 0.5
        far, near = distance + 0.5, (distance - 0.5).abs()
        e_far = torch.exp(-far * inverse).mul_(0.5)
        e_near = torch.exp(-near * inverse).mul_(0.5)
        e_near = torch.where(outside, e_near, -e_near)
        probability = (e_near - e_far).add_(~outside).add_(LaplaceBits.FLOOR)
        per_bit = inverse / probability / -math.log(2)
        ctx.save_for_backward(
            (e_far - torch.where(outside, e_near, -e_near)) * per_bit, (e_near * near - e_far * far) * inverse * per_bit
        )
        return -probability.log2()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        of_distance, of_scale = ctx.saved_tensors
        return gradient * of_distance, gradient * of_scale
