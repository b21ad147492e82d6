"""The synthesis of the small networks (mcode.nets.compact) in 8-bit integers, and a manifold's networks with such a part.

    y --+-- patch transform, transposed, float32, at half the size: 2x2 pixels side by side ------+-- uint8
        +-- 1x1 - blocks 1/16 - up - blocks 1/8 - up - blocks 1/4 - up - blocks 1/2 - last -------+
                  float32 maps, blocks in integers  |  everything in bytes

On small maps the products take the time, on large ones the memory: there the map that blocks add to is bytes, too. Pictures
leave as bytes, and are put in their places as such.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import STRIDE
from .compact import CompactSynthesis, PatchTransform
from .int8 import ByteBlock, Int8Block, Int8Conv, checked, quantised, step_of, to_bytes
from .layers import ResidualBlock

_FLOAT_STAGES = 2
"""Sizes, from the smallest on, at which the map that blocks add to is float32."""
_HALF = STRIDE // 2


def in_integers(net: nn.Module, name: str, ranges: Sequence[Sequence[float]]) -> Any:
    """`net` with the part of that name in integers as far as its ranges reach; all else is shared. Raises ValueError where they
    do not fit."""
    part = net.get_submodule(name)
    found: nn.Module
    if isinstance(part, CompactSynthesis) and _whole(part, ranges):
        found = Int8Synthesis(part, cast(PatchTransform, net.get_submodule("patches")), ranges)
    else:
        found = quantised(part, ranges)
    twin = copy.copy(net)
    twin._modules = net._modules | {name: found}
    return twin


def _whole(net: CompactSynthesis, ranges: Sequence[Sequence[float]]) -> bool:
    """Whether what leaves the last block of each size is known."""
    return all(len(stage) for stage in _stages(net)) and all(len(sizes) == 3 for sizes in ranges)


def _stages(net: CompactSynthesis) -> list[nn.Sequential]:
    return cast("list[nn.Sequential]", list(net.net)[1::2])


class Int8Synthesis(nn.Module):
    """`CompactSynthesis` with all but its first layer in integers. ranges: three for each block, of `int8.measure`. Raises
    ValueError where they do not fit."""

    def __init__(self, net: CompactSynthesis, patches: PatchTransform, ranges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        stages = _stages(net)
        each = iter(checked(ranges, sum(map(len, stages))))
        sizes = [[next(each) for _ in stage] for stage in stages]
        self._first = cast(nn.Conv2d, net.net[0])
        self._blocks = nn.ModuleList()
        self._ups: list[_Up] = []
        left = 0.0
        for number, (stage, known) in enumerate(zip(stages, sizes, strict=True)):
            blocks = nn.Sequential()
            given = known[0][0]
            for block, (own, hidden, left) in zip(cast("list[ResidualBlock]", list(stage)), known, strict=True):
                if number < _FLOAT_STAGES:
                    blocks.append(Int8Block(block, own, hidden))
                else:
                    blocks.append(ByteBlock(block, given, hidden, left))
                    given = left
            self._blocks.append(blocks)
            if number + 1 < len(stages):
                up = cast(nn.Sequential, net.net[2 * number + 2])
                next_given = sizes[number + 1][0][0] if number + 1 >= _FLOAT_STAGES else None
                self._ups.append(_Up(cast(nn.Conv2d, up[0]), left, next_given, takes_floats=number < _FLOAT_STAGES))
        self._last = Int8Conv(net.last, step_of(left), order=_side_by_side(net.last.out_channels))
        basis = patches.basis.float() / patches.scale.float().view(-1, 1, 1, 1)
        # (C, 3, 16, 16) to rows of patches of half the size, of 2x2 pixels with their colours each.
        pixels = basis.view(-1, 3, _HALF, 2, _HALF, 2).permute(0, 2, 4, 3, 5, 1).reshape(len(basis), -1)
        self._patches = pixels * 127.5
        self._mean = (patches.mean.float() + 1).mul(127.5).repeat(4) + 0.5

    def pictures(self, y: Tensor) -> Tensor:
        """y (B, C, h, w) to uint8 (B, 16 h, 16 w, 3)."""
        with torch.autocast("cpu", enabled=False):  # bfloat16's 8 bits are too few for a picture's sums
            y = y.float()
            count, channels, h, w = y.shape
            linear = (y.permute(0, 2, 3, 1).reshape(-1, channels) @ self._patches).view(count, h, w, _HALF, -1)
            x = linear.transpose(2, 3).reshape(count, h * _HALF, w * _HALF, -1)
            added = self._last(self._features(y)).permute(0, 2, 3, 1)
            # Casting cuts off decimals, after half a level was added.
            levels = x.add_(added, alpha=127.5).add_(self._mean).clamp_(0, 255).to(torch.uint8)
            rows = levels.view(count, h * _HALF, w * _HALF, 2, -1).transpose(2, 3)
            return rows.reshape(count, h * STRIDE, w * STRIDE, -1)

    def _features(self, y: Tensor) -> Tensor:
        x = self._blocks[0](self._first(y.contiguous(memory_format=torch.channels_last)))
        for up, blocks in zip(self._ups, list(self._blocks)[1:], strict=True):
            x = blocks(up(x))
        return x

    def forward(self, y: Tensor, patches: PatchTransform) -> Tensor:
        """As of `CompactSynthesis`, but rounded to levels of a picture and cut at [-1, 1]. patches: those it was made with."""
        return self.pictures(y).permute(0, 3, 1, 2).float() / 127.5 - 1


class _Up:
    """`layers.Up` in integers. given: the range of what it takes; left: of the bytes it gives, None for float32."""

    def __init__(self, conv: nn.Conv2d, given: float, left: float | None, *, takes_floats: bool) -> None:
        self._given, self._takes_floats = step_of(given), takes_floats
        self._left = None if left is None else step_of(left)
        self._conv = Int8Conv(conv, self._given, order=_side_by_side(conv.out_channels))

    def __call__(self, x: Tensor) -> Tensor:
        if self._takes_floats:
            x = to_bytes(x, self._given)
        x = self._conv(x) if self._left is None else self._conv.bytes(x, self._left)
        count, _, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).view(count, h, w, 2, -1).transpose(2, 3)
        return rows.reshape(count, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _side_by_side(channels: int) -> Tensor:
    """The order of output channels in which a map twice the size lies in rows: of the upper left place all channels, then of
    the upper right one, the lower left and the lower right one. PixelShuffle has the four places of each channel together."""
    return torch.arange(channels).view(-1, 4).T.reshape(-1)
