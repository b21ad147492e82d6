"""Layers which several networks share: channel normalisation, residual blocks, sub-pixel resampling, a lower bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


class ChannelNorm(nn.Module):
    """Normalises each position over its channels, with a scale and offset per channel (Mentzer et al. 2020, section 3.3).

    The variance is divided by C - 1 and has eps added, as in the authors' code and its PyTorch port; equation 5 has 1/C.
    Unlike instance normalisation its statistics do not depend on the picture's size, so a network trained on crops does
    not darken larger pictures. (B, C, h, w) to (B, C, h, w).
    """

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        return self.gamma * (x - mean) * torch.rsqrt(variance + self.eps) + self.beta


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), with ChannelNorm after each convolution when `norm`. The second starts small, so that a
    deep stack without normalisation starts near the identity (Zhang, Dauphin, Ma 2019, Fixup).
    """

    def __init__(self, channels: int, *, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = ChannelNorm(channels) if norm else nn.Identity()
        self.norm2 = ChannelNorm(channels) if norm else nn.Identity()
        if not norm:
            nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")
            for conv in (self.conv1, self.conv2):
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
            with torch.no_grad():
                self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def zero(conv: nn.Conv2d) -> None:
    """Weights and biases of 0: a network that ends in this convolution adds nothing at first."""
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def channels_last(net: Net, device: torch.device | str | None = None) -> Net:
    """`net` itself, moved there, with weights laid out as convolutions are fastest."""
    # PyTorch documents memory_format, and its stubs leave it out.
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def watched(net: nn.Module, see: Callable[[str, Tensor, bool], None]) -> Iterator[None]:
    """While it lasts, `see` is called for each residual block of `net` that runs: its name, what one of its convolutions is
    given, and whether that is the second one, behind the ReLU."""

    def look(name: str, second: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: see(name, given[0], second)

    blocks = [(name, m) for name, m in net.named_modules() if isinstance(m, ResidualBlock)]
    hooks = [b.conv1.register_forward_pre_hook(look(name, False)) for name, b in blocks]
    hooks += [b.conv2.register_forward_pre_hook(look(name, True)) for name, b in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Down(nn.Sequential):
    """Halves height and width: space to depth, then a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, factor: int = 2) -> None:
        super().__init__(nn.PixelUnshuffle(factor), nn.Conv2d(channels_in * factor**2, channels_out, 1))


class Up(nn.Sequential):
    """Doubles height and width: a 1x1 convolution, then depth to space (Shi et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, factor: int = 2) -> None:
        super().__init__(nn.Conv2d(channels_in, channels_out * factor**2, 1), nn.PixelShuffle(factor))


class _AtLeast(torch.autograd.Function):
    """max(x, bound), whose gradient also reaches x below the bound where it would raise it (Balle et al. 2018)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def at_least(x: Tensor, bound: float) -> Tensor:
    return _AtLeast.apply(x, bound)
