"""Inception-v3 as the original FID uses it (Heusel et al. 2017): the features of FID and KID proper.

The network is TensorFlow's of 2015-12-05, its weights as torch-fidelity publishes them for PyTorch. It differs from
torchvision's in its average pooling, in its last block and in its resizing.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcode.errors import InputError
from mcode.evaluation.features import load_standard

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299

Size = tuple[int, int]
Unit = tuple[str, int, Size]
"""Name, channels out, kernel (height, width)."""
Branch = tuple[Unit | tuple[Unit, ...], ...]
"""Units one after the other; a tuple of units stands for some side by side, whose outputs are joined."""


class InceptionFeatures(nn.Module):
    """rgb uint8 or float (B, 3, H, W) in 0..255 to features (B, 2048). Frozen. weights: INCEPTION_FILE. InputError."""

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Unit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Unit(80, 192, (3, 3), padded=False)
        for name, block in _blocks().items():
            self.add_module(name, block)
        state = {k: v for k, v in load_standard(weights).items() if not k.startswith("fc.")}
        counters = {k: v for k, v in self.state_dict().items() if k.endswith("num_batches_tracked")}
        try:
            self.load_state_dict(counters | state)
        except RuntimeError as error:
            raise InputError(f"{os.fspath(weights)}: not the weights of FID's Inception ({INCEPTION_URL})") from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> Tensor:
        x = (resize_as_tensorflow(rgb.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, 2)
        for name in _blocks_in_order():
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resize_as_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear to side x side as TensorFlow 1 did: output i lies at i * size / side, corners not aligned, no half pixel."""
    for axis in (2, 3):
        size = x.shape[axis]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = at.long().clamp_max(size - 1)
        share = (at - low).view(-1, 1) if axis == 2 else at - low
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(size - 1)), share)
    return x


class _Unit(nn.Module):
    """Convolution, batch normalisation, ReLU. Padded to keep the size where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side and a pooled one. halve: the last unit of each branch, and the pooling, have stride 2."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...], pool: str, pooled: int | None) -> None:
        super().__init__()
        self.branches, self.pool, self.halve = branches, pool, pooled is None
        for branch in branches:
            width = inputs
            for index, step in enumerate(branch):
                last = self.halve and index == len(branch) - 1
                for name, outputs, kernel in _side_by_side(step):
                    self.add_module(name, _Unit(width, outputs, kernel, 2 if last else 1))
                width = outputs
        if pooled is not None:
            self.branch_pool = _Unit(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, *_ in _side_by_side(step)], 1)
            found.append(y)
        if self.halve:
            return torch.cat([*found, functional.max_pool2d(x, 3, 2)], 1)
        if self.pool == "mean":
            y = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            y = functional.max_pool2d(x, 3, 1, 1)
        return torch.cat([*found, self.branch_pool(y)], 1)


def _side_by_side(step: Unit | tuple[Unit, ...]) -> tuple[Unit, ...]:
    return (step,) if isinstance(step[0], str) else step


def _chain(name: str, *units: tuple[int, Size]) -> Branch:
    return tuple((f"{name}_{i}", outputs, kernel) for i, (outputs, kernel) in enumerate(units, start=1))


_ONE, _THREE, _FIVE, _FLAT, _TALL = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _blocks_in_order() -> tuple[str, ...]:
    return tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"))


def _blocks() -> dict[str, nn.Module]:
    """Szegedy et al. 2016, table 1."""

    def at_35(inputs: int, pooled: int) -> nn.Module:
        double = _chain("branch3x3dbl", (64, _ONE), (96, _THREE), (96, _THREE))
        first: Branch = (("branch1x1", 64, _ONE),)
        return _Mixed(inputs, (first, _chain("branch5x5", (48, _ONE), (64, _FIVE)), double), "mean", pooled)

    def at_17(c: int) -> nn.Module:
        single = _chain("branch7x7", (c, _ONE), (c, _FLAT), (192, _TALL))
        double = _chain("branch7x7dbl", (c, _ONE), (c, _TALL), (c, _FLAT), (c, _TALL), (192, _FLAT))
        return _Mixed(768, ((("branch1x1", 192, _ONE),), single, double), "mean", 192)

    def at_8(inputs: int, pool: str) -> nn.Module:
        def split(name: str) -> tuple[Unit, ...]:
            return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

        single: Branch = (("branch3x3_1", 384, _ONE), split("branch3x3_2"))
        double: Branch = (("branch3x3dbl_1", 448, _ONE), ("branch3x3dbl_2", 384, _THREE), split("branch3x3dbl_3"))
        return _Mixed(inputs, ((("branch1x1", 320, _ONE),), single, double), pool, 192)

    to_17 = ((("branch3x3", 384, _THREE),), _chain("branch3x3dbl", (64, _ONE), (96, _THREE), (96, _THREE)))
    to_8 = (
        _chain("branch3x3", (192, _ONE), (320, _THREE)),
        _chain("branch7x7x3", (192, _ONE), (192, _FLAT), (192, _TALL), (192, _THREE)),
    )
    blocks = (
        at_35(192, 32),
        at_35(256, 64),
        at_35(288, 64),
        _Mixed(288, to_17, "max", None),
        *(at_17(c) for c in (128, 160, 160, 192)),
        _Mixed(768, to_8, "max", None),
        at_8(1280, "mean"),
        at_8(2048, "max"),
    )
    return dict(zip(_blocks_in_order(), blocks, strict=True))
