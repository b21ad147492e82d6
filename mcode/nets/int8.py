"""Residual blocks in 8-bit integers: processors with VNNI or AMX multiply those twice as fast as bfloat16, others with AVX2
1.7 times as fast as float32.

Only what a block adds is rounded to integers; the map that it is added to stays float32, so errors do not pile up (static
quantisation, one scale for a map's values and one for each output channel's weights; Jacob et al. 2018, section 2). The
products are oneDNN's, by the operators behind PyTorch's own quantisation for x86. Without VNNI they add two neighbouring
products, of a byte and a signed byte each, in 16 bits that saturate; weights of 7 bits never reach that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .layers import ResidualBlock, watched

RANGES, ANALYSIS_RANGES = "ranges", "analysis_ranges"
"""Keys of a manifold's card: `measure` of its synthesis and of its analysis."""
ANALYSIS = "analysis_net"
"""Name of the part of a manifold's networks that ANALYSIS_RANGES are of."""
MOST_MEASURED = 128
"""About so many pictures are measured."""
_LEVELS, _ZERO = 127, 128
"""Levels on either side of zero, and the unsigned byte that stands for zero."""
_WEIGHT_LEVELS = (127, 63)
"""Levels of weights on either side of zero: where sums do not saturate, and where they do (2 x 255 x 63 < 2 ** 15)."""
_ONCE = [1, 1]
_TOLERANCE = 0.1


def supported(device: torch.device) -> bool:
    """Whether integers are worth it here: a processor that multiplies them fast, and a PyTorch that asks it to."""
    return device.type == "cpu" and _weight_levels() > 0


@cache
def _weight_levels() -> int:
    """The finest of _WEIGHT_LEVELS with which this processor's sums are right; 0 where integers are not worth it."""
    fast = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("avx2", "vnni", "amx_tile"))
    return next((levels for levels in _WEIGHT_LEVELS if _right(levels)), 0) if any(is_there() for is_there in fast) else 0


def _right(levels: int) -> bool:
    """Whether a block of noise comes out as it should, and one whose sums are as large as they get."""
    # These operators are not PyTorch's public interface: one that is missing, or means something else, is not used.
    noise = torch.Generator().manual_seed(0)
    random, even = ResidualBlock(32), ResidualBlock(32)
    with torch.inference_mode():
        x = torch.randn(1, 32, 8, 8, generator=noise).contiguous(memory_format=torch.channels_last)
        for conv in (random.conv1, random.conv2):
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=noise) / 17)
        for conv in (even.conv1, even.conv2):
            conv.weight.fill_(0.01)
        try:
            return _close(random, x, levels) and _close(even, torch.ones_like(x), levels)
        except (AttributeError, RuntimeError, TypeError):
            return False


def _close(block: ResidualBlock, x: Tensor, levels: int) -> bool:
    added = block(x) - x
    found = Int8Block(block, float(x.abs().max()), float(torch.relu(block.conv1(x)).max()), levels)(x.clone()) - x
    return bool((found - added).norm() < _TOLERANCE * added.norm())


class Int8Block(nn.Module):
    """`ResidualBlock` without normalisation. given, hidden: the largest size of its input's values, and of the values between
    its two convolutions; what is larger is taken for that large. weight_levels: of _WEIGHT_LEVELS, None for what suits this
    processor."""

    def __init__(self, block: ResidualBlock, given: float, hidden: float, weight_levels: int | None = None) -> None:
        super().__init__()
        levels = weight_levels or _weight_levels() or _WEIGHT_LEVELS[-1]
        if not isinstance(block.norm1, nn.Identity):
            raise ValueError("a block with normalisation has no 8-bit form")
        self._given, self._hidden = max(given, 1e-6) / _LEVELS, max(hidden, 1e-6) / (2 * _LEVELS + 1)
        self._half = torch.tensor(_ZERO + 0.5)
        self._first = _packed(block.conv1, self._given, _ZERO, levels)
        self._second = _packed(block.conv2, self._hidden, 0, levels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to float32 of that shape. An x of float32 is overwritten."""
        x = x.float()
        # Casting cuts off decimals, after half a step was added.
        levels = torch.add(self._half, x, alpha=1 / self._given).clamp_(0, 2 * _LEVELS + 1).to(torch.uint8)
        operators = torch.ops.onednn.qconv2d_pointwise
        weight, scale, zero, bias = self._first
        hidden = operators(
            *(levels, self._given, _ZERO, weight, scale, zero, bias, _ONCE, _ONCE, _ONCE, 1),
            *(self._hidden, 0, torch.uint8, "relu", [], ""),
        )
        weight, scale, zero, bias = self._second
        return operators.binary(
            *(hidden, self._hidden, 0, weight, scale, zero, x, bias, _ONCE, _ONCE, _ONCE, 1),
            *(1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""),
        )


def _packed(conv: nn.Conv2d, step: float, zero: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights as oneDNN wants them, their steps, their zeros, biases) for inputs in steps of `step` from `zero`."""
    weight = conv.weight.detach().float()
    scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-8) / levels
    whole = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(whole, scale, step, zero, _ONCE, _ONCE, _ONCE, 1, None)
    assert conv.bias is not None
    return packed, scale, torch.zeros(len(scale), dtype=torch.int64), conv.bias.detach().float()


def _blocks(net: nn.Module) -> list[str]:
    """Names of all residual blocks, in the order in which they were made."""
    return [name for name, module in net.named_modules() if isinstance(module, ResidualBlock)]


def measure(net: nn.Module, run: Callable[[Any], object], samples: Iterable[Any]) -> list[list[float]]:
    """For each residual block of `net`, [the largest size of its input, of the values between its convolutions] while
    `run` takes the samples, one after the other."""
    with measured(net) as found, torch.inference_mode():
        for sample in samples:
            run(sample)
    return found


@contextmanager
def measured(net: nn.Module) -> Iterator[list[list[float]]]:
    """What `measure` says, of all that `net` is given within the context: known at its end."""
    sizes = {name: [0.0, 0.0] for name in _blocks(net)}  # skips make them run in another order
    found: list[list[float]] = []

    def note(name: str, given: Tensor, second: bool) -> None:
        sizes[name][second] = max(sizes[name][second], float(given.abs().max()))

    with watched(net, note):
        yield found
    found += [[float(f"{size:.4g}") for size in both] for both in sizes.values()]


def ranges_of(net: Any, latents: Sequence[Tensor], steps: Sequence[tuple[Tensor, Tensor]]) -> list[list[float]]:
    """What a manifold's networks need to be computed in integers: `measure` of their `part` over at most MOST_MEASURED of the
    latents (C, h, w), quantised at all qualities in turn. steps: gain and inverse of each, (C,)."""

    def show(numbered: tuple[int, Tensor]) -> None:
        number, latent = numbered
        gain, inverse = (factor.view(-1, 1, 1) for factor in steps[number % len(steps)])
        net.synthesis(((latent * gain).round() * inverse)[None])

    chosen = latents[:: max(1, len(latents) // MOST_MEASURED)]
    return measure(net.get_submodule(part(net)), show, enumerate(chosen))


def part(net: nn.Module) -> str:
    """Name of the part of a manifold's networks that RANGES are of: what a synthesis spends its time on. Raises ValueError for
    networks that have none."""
    for name in ("synthesis_net", "unet"):
        if isinstance(getattr(net, name, None), nn.Module):
            return name
    raise ValueError(f"{type(net).__name__} has no synthesis in integers")


def in_integers(net: nn.Module, name: str, ranges: Sequence[Sequence[float]]) -> Any:
    """`net` with the blocks of the part of that name in integers; all else is shared. Raises ValueError where the ranges do not
    fit."""
    twin = copy.copy(net)
    twin._modules = net._modules | {name: quantised(net.get_submodule(name), ranges)}
    return twin


def quantised(net: nn.Module, ranges: Sequence[Sequence[float]]) -> nn.Module:
    """A copy of `net` with its residual blocks in integers. ranges: of `measure`. Raises ValueError where they do not fit."""
    net = copy.deepcopy(net)
    names = _blocks(net)
    if len(ranges) != len(names):
        raise ValueError(f"ranges are for {len(ranges)} blocks, and there are {len(names)}")
    for name, sizes in zip(names, ranges, strict=True):
        given, hidden = (float(size) for size in sizes)
        if not (0 <= given < math.inf and 0 <= hidden < math.inf):
            raise ValueError(f"ranges are {given} and {hidden}; they are numbers from 0")
        above, _, last = name.rpartition(".")
        block = net.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        setattr(net.get_submodule(above), last, Int8Block(block, given, hidden))
    return net
