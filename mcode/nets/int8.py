"""Residual blocks in 8-bit integers: processors with VNNI or AMX multiply those twice as fast as bfloat16, others with AVX2
1.7 times as fast as float32.

Static quantisation, one scale for a map's values and one for each output channel's weights (Jacob et al. 2018, section 2). In
`Int8Block` only what a block adds is rounded; the map that it is added to stays float32, so errors do not pile up. In
`ByteBlock` the map is bytes, too, a quarter of what memory has to move: for large maps of few channels.

The products are oneDNN's, by the operators behind PyTorch's own quantisation for x86. Without VNNI they add two neighbouring
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
LEVELS, ZERO = 127, 128
"""Levels on either side of zero, and the unsigned byte that stands for zero."""
_WEIGHT_LEVELS = (127, 63)
"""Levels of weights on either side of zero: where sums do not saturate, and where they do (2 x 255 x 63 < 2 ** 15)."""
_ONCE = [1, 1]
_TOLERANCE = 0.1
_PIECE = 1 << 17
"""Values turned into bytes at a time, few enough to stay in a core's own memory between the steps."""
_HALF_UP = torch.tensor(ZERO + 0.5)
_SIZES = 2 ** torch.arange(-20, 20 + 1 / 64, 1 / 32)
"""Ranges to choose from."""
_LOOKED_AT = 100_000
"""About so many of a map's values are counted."""


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
    wanted = block(x)
    given, hidden, left = (float(v.abs().max()) for v in (x, torch.relu(block.conv1(x)), wanted))
    found = Int8Block(block, given, hidden, levels)(x.clone())
    in_bytes = ByteBlock(block, given, hidden, left, levels)(to_bytes(x, given / LEVELS))
    off = (found - wanted, from_bytes(in_bytes, left / LEVELS) - wanted)
    return all(bool(error.norm() < _TOLERANCE * (wanted - x).norm()) for error in off)


def step_of(size: float, levels: int = LEVELS) -> float:
    """What lies between two bytes where so many levels reach from 0 to `size`."""
    return max(size, 1e-6) / levels


def to_bytes(x: Tensor, step: float) -> Tensor:
    """Values (B, C, h, w) of any kind of float as bytes, `step` apart, ZERO standing for 0; in channels_last."""
    values = x.permute(0, 2, 3, 1).contiguous()
    if values.numel() <= _PIECE:
        return _levels(values, step).to(torch.uint8).permute(0, 3, 1, 2)
    found = torch.empty(values.shape, dtype=torch.uint8)
    flat, into = values.view(-1), found.view(-1)
    buffer = torch.empty(_PIECE)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        into[start : start + _PIECE] = _levels(piece, step, buffer[: len(piece)])
    return found.permute(0, 3, 1, 2)


def _levels(values: Tensor, step: float, out: Tensor | None = None) -> Tensor:
    """What is to be cast to bytes, which cuts off decimals: half a level is added."""
    return torch.add(_HALF_UP, values.float(), alpha=1 / step, out=out).clamp_(0, 2 * LEVELS + 1)


def from_bytes(x: Tensor, step: float) -> Tensor:
    """What `to_bytes` was given, rounded and cut: float32."""
    return (x.float() - ZERO) * step


class Int8Conv:
    """A convolution of bytes that are `step` apart, `zero` standing for 0; of 1x1, or of 3x3 with zeros around the map.

    weight_levels: of _WEIGHT_LEVELS, None for what suits this processor. order: its output channels anew, None as they are.
    """

    def __init__(
        self, conv: nn.Conv2d, step: float, zero: int = ZERO, weight_levels: int | None = None, order: Tensor | None = None
    ) -> None:
        assert conv.bias is not None
        weight, bias = conv.weight.detach().float(), conv.bias.detach().float()
        if order is not None:
            weight, bias = weight[order], bias[order]
        levels = weight_levels or _weight_levels() or _WEIGHT_LEVELS[-1]
        scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-8) / levels
        whole = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        padding = [side // 2 for side in conv.kernel_size]
        packed = torch.ops.onednn.qconv_prepack(whole, scale, step, zero, _ONCE, padding, _ONCE, 1, None)
        self._given = (step, zero)
        self._weights = (packed, scale, torch.zeros(len(scale), dtype=torch.int64))
        self._bias, self._shape = bias, (_ONCE, padding, _ONCE, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """float32."""
        return self._run(x, 1.0, 0, torch.float32, "none")

    def bytes(self, x: Tensor, step: float, zero: int = ZERO, *, relu: bool = False) -> Tensor:
        """Bytes that are `step` apart, `zero` standing for 0; what lies outside is cut."""
        return self._run(x, step, zero, torch.uint8, "relu" if relu else "none")

    def _run(self, x: Tensor, step: float, zero: int, kind: torch.dtype, then: str) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            x, *self._given, *self._weights, self._bias, *self._shape, step, zero, kind, then, [], ""
        )

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """The sum with `to`, float32, which is overwritten."""
        return self._sum(x, to, (1.0, 0, torch.float32), (1.0, 0))

    def added_bytes(self, x: Tensor, to: Tensor, step_to: float, step: float) -> Tensor:
        """The sum with bytes that are `step_to` apart, which are overwritten, in bytes that are `step` apart."""
        return self._sum(x, to, (step, ZERO, torch.uint8), (step_to, ZERO))

    def _sum(self, x: Tensor, to: Tensor, left: tuple[float, int, torch.dtype], given: tuple[float, int]) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise.binary(
            x, *self._given, *self._weights, to, self._bias, *self._shape, *left, *given, "sum", 1.0, "none", [], ""
        )


class _Block(nn.Module):
    """`ResidualBlock` without normalisation. given, hidden: the largest size of its input's values, and of the values between
    its two convolutions; what is larger is taken for that large."""

    def __init__(self, block: ResidualBlock, given: float, hidden: float, weight_levels: int | None = None) -> None:
        super().__init__()
        if not isinstance(block.norm1, nn.Identity):
            raise ValueError("a block with normalisation has no 8-bit form")
        self._given, self._hidden = step_of(given), step_of(hidden, 2 * LEVELS + 1)
        self._first = Int8Conv(block.conv1, self._given, ZERO, weight_levels)
        self._second = Int8Conv(block.conv2, self._hidden, 0, weight_levels)

    def _between(self, x: Tensor) -> Tensor:
        return self._first.bytes(x, self._hidden, 0, relu=True)


class Int8Block(_Block):
    """(B, C, h, w) of floats to float32 of that shape. An x of float32 is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float().contiguous(memory_format=torch.channels_last)  # after a convolution of one channel it may not be
        return self._second.added(self._between(to_bytes(x, self._given)), x)


class ByteBlock(_Block):
    """Bytes (B, C, h, w), `given` / LEVELS apart, which are overwritten, to bytes of that shape, `left` / LEVELS apart."""

    def __init__(
        self, block: ResidualBlock, given: float, hidden: float, left: float, weight_levels: int | None = None
    ) -> None:
        super().__init__(block, given, hidden, weight_levels)
        self._left = step_of(left)

    def forward(self, x: Tensor) -> Tensor:
        return self._second.added_bytes(self._between(x), x, self._given, self._left)


def _blocks(net: nn.Module) -> list[str]:
    """Names of all residual blocks, in the order in which they were made."""
    return [name for name, module in net.named_modules() if isinstance(module, ResidualBlock)]


def measure(net: nn.Module, run: Callable[[Any], object], samples: Iterable[Any]) -> list[list[float]]:
    """For each residual block of `net`, the ranges of [its input, the values between its convolutions, what leaves it] while
    `run` takes the samples, one after the other."""
    with measured(net) as found, torch.inference_mode():
        for sample in samples:
            run(sample)
    return found


@contextmanager
def measured(net: nn.Module) -> Iterator[list[list[float]]]:
    """What `measure` says, of all that `net` is given within the context: known at its end."""
    sizes = {name: [_Sizes(LEVELS), _Sizes(2 * LEVELS + 1), _Sizes(LEVELS)] for name in _blocks(net)}
    found: list[list[float]] = []  # in the order of the blocks; skips make them run in another
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, given, left, of=of: of[2].note(left))
        for name, of in sizes.items()
    ]
    try:
        with watched(net, lambda name, given, second: sizes[name][second].note(given)):
            yield found
    finally:
        for hook in hooks:
            hook.remove()
    found += [[float(f"{size.best():.4g}") for size in each] for each in sizes.values()]


class _Sizes:
    """How large values are, and the range for them that loses least in `levels` steps on either side of zero: rounding and
    cutting together, in the mean of squares. The largest value of all would make the steps half as large again."""

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._counts = torch.zeros(len(_SIZES) + 1, dtype=torch.int64)

    def note(self, values: Tensor) -> None:
        some = values.detach().flatten()[:: max(1, values.numel() // _LOOKED_AT)].abs().float().cpu()
        self._counts += torch.bincount(torch.bucketize(some, _SIZES), minlength=len(self._counts))

    def best(self) -> float:
        """0 where nothing but zeros was seen."""
        counts = self._counts.double()
        if not counts[1:].any():
            return 0.0
        sizes = torch.cat([_SIZES[:1], (_SIZES[1:] * _SIZES[:-1]).sqrt(), _SIZES[-1:]]).double()
        cut = ((sizes[None] - _SIZES[:, None]).clamp_min(0) ** 2 * counts).sum(1)
        rounded = (_SIZES.double() / self._levels) ** 2 / 12 * counts[1:].sum()
        return float(_SIZES[(cut + rounded).argmin()])


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


def quantised(net: nn.Module, ranges: Sequence[Sequence[float]]) -> nn.Module:
    """A copy of `net` with its residual blocks in integers. ranges: of `measure`, of which what leaves a block does not matter
    and may lack. Raises ValueError where they do not fit."""
    net = copy.deepcopy(net)
    names = _blocks(net)
    for name, (given, hidden, *_) in zip(names, checked(ranges, len(names)), strict=True):
        above, _, last = name.rpartition(".")
        block = net.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        setattr(net.get_submodule(above), last, Int8Block(block, given, hidden))
    return net


def checked(ranges: Sequence[Sequence[float]], blocks: int) -> list[list[float]]:
    """The ranges as numbers. Raises ValueError where they are not of so many blocks."""
    if len(ranges) != blocks:
        raise ValueError(f"ranges are for {len(ranges)} blocks, and there are {blocks}")
    found = [[float(size) for size in sizes] for sizes in ranges]
    for sizes in found:
        if len(sizes) not in (2, 3) or not all(0 <= size < math.inf for size in sizes):
            raise ValueError(f"ranges of a block are {sizes}; they are two or three numbers from 0")
    return found
