"""Large pictures in parts: which parts, and how far a network looks, so that the parts fit together without a seam.

A part is computed with a margin as wide as the network looks (its reach), and the margin is thrown away. At the picture's
own edges there is none: there the network pads as it does for a whole picture. What comes out is what the whole picture
would have given, up to the rounding of sums in another order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 3840 * 2160
"""Pixels that are computed at once, margins included, unless a network says otherwise by its `pixels_at_once`."""


class Part(NamedTuple):
    """Along one axis, in latent positions: start..stop is kept of low..high, which is computed."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def kept(self) -> slice:
        """Of what was computed."""
        return slice(self.start - self.low, self.stop - self.low)


def parts(height: int, width: int, reach: int, positions: int) -> Iterator[tuple[Part, Part]]:
    """(rows, columns) of the parts of a map, row by row. positions: of a part, margins included; more where margins leave
    next to nothing."""
    if height * width <= positions:
        yield Part(0, height, 0, height), Part(0, width, 0, width)
        return
    side = max(math.isqrt(positions), 3 * reach, 1)
    wide = width if width <= side else max(side, positions // height)
    high = max(positions // wide, 3 * reach, 1)
    for rows in _cut(height, high, reach):
        for columns in _cut(width, wide, reach):
            yield rows, columns


def _cut(length: int, size: int, reach: int) -> list[Part]:
    """As few parts as fit, of nearly one length. size: with margins, at least 3 reach where it is below length."""
    count = 1 if length <= size else -(-length // max(1, size - 2 * reach))
    edges = [length * i // count for i in range(count + 1)]
    return [Part(a, b, max(0, a - reach), min(length, b + reach)) for a, b in itertools.pairwise(edges)]


def reach(network: nn.Module, call: Callable[[Tensor], Any], sample: Tensor, positions: int, *, inwards: bool) -> int:
    """How many latent positions away what `call` computes depends on, an upper bound: the sum over all convolutions that
    run. sample: what call takes, `positions` latent positions high. inwards: from pictures to latents, else outwards.

    Counts modules of `network` alone; functional convolutions must not look beyond their own stride.
    """
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    seen = 0.0

    def look(module: nn.Module, given: tuple[Tensor, ...], _: Any) -> None:
        nonlocal seen
        assert isinstance(module, kinds)
        kernel, stride = module.kernel_size[0], module.stride[0]
        if kernel > stride:
            away = -(-(kernel - stride) // stride) if isinstance(module, nn.ConvTranspose2d) else kernel // 2
            seen += away * positions / given[0].shape[2]

    hooks = [m.register_forward_hook(look) for m in network.modules() if isinstance(m, kinds)]
    try:
        with torch.inference_mode():
            call(sample)
    finally:
        for hook in hooks:
            hook.remove()
    # What is padded to the stride, or cut at odd places, moves by less than one position.
    return math.ceil(seen) + (1 if inwards else 0)
