"""The small networks of the `hific` kind: for real time on two processor cores, trainable in hours without a GPU.

They keep HiFiC's shapes (picture to a C x H/16 x W/16 map and back, any size) and change what a processor pays dearly for:
no full-resolution convolutions, no normalisation, and a fixed linear transform beside the network, from which training
starts.

    x --+-- patch transform (16x16, principal components) --+-- y
        +-- s2d 4 - blocks - down - blocks - down - blocks -+

    y --+-- patch transform, transposed --------------------------------+-- x_hat
        +-- blocks 1/16 - up - blocks 1/8 - up - blocks 1/4 - up - d2s -+
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import STRIDE
from .layers import Down, ResidualBlock, Up, zero


class PatchTransform(nn.Module):
    """Orthonormal transform of 16x16x3 patches, scaled so that each coefficient suits a quantiser step of 1.

    basis: (C, 3, 16, 16), rows orthonormal. scale: (C,), mean: (3,) of the pixels. A part of the model that is
    computed from data, not trained (see `mcode.training.patches`).
    """

    basis: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(channels, 3, STRIDE, STRIDE))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.mean.view(1, 3, 1, 1)
        return F.conv2d(centred, (self.basis * self.scale.view(-1, 1, 1, 1)).to(x.dtype), stride=STRIDE)

    def inverse(self, y: Tensor) -> Tensor:
        """y (B, C, h, w) to (B, 3, 16 h, 16 w), in channels_last. A transposed convolution whose patches do not overlap is a
        matrix product, which takes a fifth of its time; with the colours of a pixel side by side, rows of 16 pixels are
        copied whole."""
        count, _, h, w = y.shape
        weight = (self.basis / self.scale.view(-1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(1).to(y.dtype)
        patches = (y.permute(0, 2, 3, 1) @ weight).view(count, h, w, STRIDE, STRIDE * 3).transpose(2, 3)
        return patches.reshape(count, h * STRIDE, w * STRIDE, 3).add(self.mean).permute(0, 3, 1, 2)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class CompactAnalysis(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1], H and W multiples of 16, to y (B, C, H/16, W/16). widths, blocks: three each."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.net = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            _blocks(quarter, blocks[0]),
            Down(quarter, eighth),
            _blocks(eighth, blocks[1]),
            Down(eighth, sixteenth),
            _blocks(sixteenth, blocks[2]),
        )
        self.last = nn.Conv2d(sixteenth, channels, 1)
        zero(self.last)

    def forward(self, x: Tensor, patches: PatchTransform) -> Tensor:
        return patches(x) + self.last(self.net(x))


class CompactSynthesis(nn.Module):
    """y (B, C, h, w) to the picture (B, 3, 16 h, 16 w), around [-1, 1], not clipped. widths, blocks: four each."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        sixteenth, eighth, quarter, half = widths
        self.net = nn.Sequential(
            nn.Conv2d(channels, sixteenth, 1),
            _blocks(sixteenth, blocks[0]),
            Up(sixteenth, eighth),
            _blocks(eighth, blocks[1]),
            Up(eighth, quarter),
            _blocks(quarter, blocks[2]),
            Up(quarter, half),
            _blocks(half, blocks[3]),
        )
        self.last = nn.Conv2d(half, 12, 3, padding=1)
        zero(self.last)

    def forward(self, y: Tensor, patches: PatchTransform) -> Tensor:
        return patches.inverse(y) + F.pixel_shuffle(self.last(self.net(y)), 2)


class Compact(nn.Module):
    """Both halves and the patch transform between them."""

    def __init__(
        self,
        channels: int,
        analysis_widths: tuple[int, ...],
        analysis_blocks: tuple[int, ...],
        synthesis_widths: tuple[int, ...],
        synthesis_blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.patches = PatchTransform(channels)
        self.analysis_net = CompactAnalysis(channels, analysis_widths, analysis_blocks)
        self.synthesis_net = CompactSynthesis(channels, synthesis_widths, synthesis_blocks)

    def analysis(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to y (B, C, H/16, W/16)."""
        return self.analysis_net(x, self.patches)

    def synthesis(self, y: Tensor) -> Tensor:
        """y (B, C, h, w) to (B, 3, 16 h, 16 w), about [-1, 1]."""
        return self.synthesis_net(y, self.patches)
