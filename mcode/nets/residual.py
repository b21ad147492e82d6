"""The `ncode` kind's family "residual": principal components, and a network that adds to their picture what they miss.

    x - linear analysis (- code) (+ encoder) - y - (code back -) linear synthesis - base --+------------ + - x_hat
                                                                                           +- U-Net ---- |

The U-Net's last layer starts at zero, so training starts from the linear solution. It sees the base alone, which holds
all that y does: a picture from components learned without it looks as one of an unseen scene will (see
mcode/training/residual.py).

The code, where there is one, lays more components into y's few symbols than there are, and so that a wrong bit hurts little:
a joint source and channel code (Farvardin, Vaishampayan 1987), learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Down, ResidualBlock, Up, zero

LUMA = (0.299, 0.587, 0.114)
_HALVINGS = 2


@dataclass(frozen=True)
class ResidualConfig:
    """frame_size: (width, height). channels: 1 (grey) or 3. m: coordinates. patch: pixels along one side of the
    outermost positions. width: channels there, which double with each of two halvings. blocks: at every size. encoder:
    a network adds to the coordinates. components: of the linear part, m where 0. code: neurons of the networks between
    components and coordinates; 0 for none, which needs as many of either. direct: the coordinates themselves reach the
    smallest size of the U-Net, too, place by place."""

    frame_size: tuple[int, ...]
    family: Literal["residual"] = "residual"
    channels: Literal[1, 3] = 3
    m: int = 100
    patch: Literal[1, 2, 4] = 2
    width: int = 64
    blocks: int = 2
    encoder: bool = False
    components: int = 0
    code: int = 0
    direct: bool = False

    def __post_init__(self) -> None:
        if len(self.frame_size) != 2 or min(self.frame_size) < 1:
            raise ValueError(f"frame_size = {list(self.frame_size)} is not a width and a height")
        for name in ("m", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not 1 or more")
        if self.blocks < 0:
            raise ValueError(f"blocks = {self.blocks} is negative")
        if min(self.components, self.code) < 0 or 0 < self.components < self.m:
            raise ValueError(f"components are m = {self.m} or more (0: m), code is 0 or more")
        if self.components > self.m and not self.code:
            raise ValueError(f"components = {self.components} in m = {self.m} coordinates need a code")

    @property
    def rows(self) -> int:
        """Components of the linear part."""
        return self.components or self.m

    @property
    def smallest(self) -> tuple[int, int]:
        """Rows and columns of the U-Net's smallest size."""
        stride = self.patch << _HALVINGS
        columns, rows = (-(-side // stride) for side in self.frame_size)
        return rows, columns

    @property
    def pixels(self) -> int:
        """Values in a picture."""
        return self.frame_size[0] * self.frame_size[1] * self.channels


class UNet(nn.Module):
    """(B, channels, H, W), about [-1, 1], to what is to be added to it, the same shape. y (B, M), in units of its
    deviation: read where config.direct, for whole pictures only."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        width, blocks = config.width, config.blocks
        values = config.channels * config.patch**2
        self.patch, self.stride = config.patch, config.patch << _HALVINGS
        self.first = nn.Conv2d(values, width, 3, padding=1)
        widths = [width << i for i in range(_HALVINGS + 1)]
        self.before = nn.ModuleList(_blocks(w, blocks) for w in widths[:-1])
        self.down = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.middle = _blocks(widths[-1], 2 * blocks)
        self.places = (widths[-1], *config.smallest)
        self.direct = nn.Linear(config.m, math.prod(self.places)) if config.direct else None
        self.up = nn.ModuleList(Up(b, a) for a, b in pairwise(widths))
        self.after = nn.ModuleList(_blocks(w, blocks) for w in widths[:-1])
        self.last = nn.Conv2d(width, values, 3, padding=1)
        zero(self.last)

    def forward(self, base: Tensor, y: Tensor | None = None) -> Tensor:
        _, _, height, width = base.shape
        x = F.pad(base, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        x = self.first(F.pixel_unshuffle(x, self.patch))
        kept = []
        for before, down in zip(self.before, self.down, strict=True):
            x = before(x)
            kept.append(x)
            x = down(x)
        if self.direct is not None and y is not None:
            x = x + self.direct(y).view(len(y), *self.places)
        x = self.middle(x)
        for up, after, skipped in zip(reversed(self.up), reversed(self.after), reversed(kept), strict=True):
            x = after(up(x) + skipped)
        return F.pixel_shuffle(self.last(torch.relu(x)), self.patch)[..., :height, :width]


class LatentEncoder(nn.Module):
    """(B, channels, H, W) in [-1, 1] to (B, M), to be added to the coordinates in units of their deviation."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.patch, self.stride = config.patch, config.patch << _HALVINGS
        widths = [config.width << i for i in range(_HALVINGS + 1)]
        layers: list[nn.Module] = [nn.Conv2d(config.channels * config.patch**2, widths[0], 3, padding=1)]
        for a, b in pairwise(widths):
            layers += [*_blocks(a, config.blocks), Down(a, b)]
        self.net = nn.Sequential(*layers, *_blocks(widths[-1], config.blocks), nn.Conv2d(widths[-1], 32, 1))
        self.last = nn.Linear(32 * math.prod(config.smallest), config.m)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        features = self.net(F.pixel_unshuffle(x, self.patch)).flatten(1)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's 8 bits are too few for coordinates
            return self.last(features.float())


class Code(nn.Module):
    """Components (B, K) in units of their deviation to coordinates (B, M), and back; starts as the first M of them."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.encode = Perceptron(config.rows, config.m, config.code)
        self.decode = Perceptron(config.m, config.rows, config.code)


class Perceptron(nn.Module):
    """x W + two hidden layers' part; W starts as the identity, the part at zero. float32 whatever autocast says."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.straight = nn.Linear(inputs, outputs, bias=False)
        last = nn.Linear(hidden, outputs)
        self.bent = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)
        nn.init.eye_(self.straight.weight)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.straight(x.float()) + self.bent(x.float())


class Residual(nn.Module):
    """As a manifold uses it: RGB on both sides, latents y + offset.

    basis: int8 (K, D) times basis_scale (K,) are the rows, D values of a picture, channel by channel; mean: (D,); spread:
    (K,), deviations of the components, with a code only; deviation: (M,), of the coordinates, one and all 1 with a code;
    offset: (M,), which centres a quantiser of an even number of levels. K is M without a code.
    """

    basis: Tensor
    basis_scale: Tensor
    mean: Tensor
    spread: Tensor
    deviation: Tensor
    offset: Tensor

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("basis", torch.zeros(config.rows, config.pixels, dtype=torch.int8))
        self.register_buffer("basis_scale", torch.ones(config.rows))
        self.register_buffer("mean", torch.zeros(config.pixels))
        self.register_buffer("deviation", torch.ones(config.m))
        self.register_buffer("offset", torch.zeros(config.m))
        self.unet = UNet(config)
        self.code = Code(config) if config.code else None
        if self.code is not None:
            self.register_buffer("spread", torch.ones(config.rows))
        self.encoder = LatentEncoder(config) if config.encoder else None
        self._rows: Tensor | None = None  # until `prepare`
        self._solve: Tensor | None = None

    @property
    def component_deviation(self) -> Tensor:
        """(K,)."""
        return self.deviation if self.code is None else self.spread

    def set_basis(self, rows: Tensor, mean: Tensor) -> None:
        """rows: orthonormal (K, D); mean: (D,), of pictures in [-1, 1]. Keeps them rounded, as the file will."""
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-9)
        self.basis.copy_((rows / scale.unsqueeze(1)).round().to(torch.int8))
        self.basis_scale.copy_(scale)
        self.mean.copy_(mean.half().float())
        self.prepare()

    def prepare(self) -> None:
        """Computes the rows and the least squares solver from the buffers; call after loading or moving."""
        rows = self.basis.float() * self.basis_scale.float().unsqueeze(1)
        gram = (rows.double() @ rows.double().T).cpu()
        self._rows, self._solve = rows, torch.linalg.pinv(gram, hermitian=True).float().to(rows.device)

    def linear_analysis(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to components (B, K)."""
        assert self._rows is not None and self._solve is not None
        return (x.reshape(len(x), -1).float() - self.mean) @ self._rows.T @ self._solve

    def linear_synthesis(self, y: Tensor) -> Tensor:
        """Components (B, K) to (B, channels, H, W)."""
        assert self._rows is not None
        width, height = self.config.frame_size
        return (y.float() @ self._rows + self.mean).view(len(y), self.config.channels, height, width)

    def encode(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to y (B, M), the encoder's part included."""
        with torch.autocast(x.device.type, enabled=False):
            y = self.coordinates(self.linear_analysis(x))
        return y if self.encoder is None else y + self.encoder(x).float() * self.deviation

    def coordinates(self, components: Tensor) -> Tensor:
        """(B, K) to y (B, M)."""
        return components if self.code is None else self.code.encode(components / self.spread)

    def components(self, y: Tensor) -> Tensor:
        """y (B, M) to (B, K)."""
        return y if self.code is None else self.code.decode(y) * self.spread

    def base(self, y: Tensor) -> Tensor:
        """y (B, M) to the linear part's picture (B, channels, H, W), float32."""
        with torch.autocast(y.device.type, enabled=False):
            return self.linear_synthesis(self.components(y))

    def add(self, base: Tensor, y: Tensor) -> Tensor:
        """The linear part's picture (B, channels, H, W) of y (B, M) and what the U-Net adds to it, float32."""
        return base + self.unet(base.contiguous(memory_format=torch.channels_last), y / self.deviation).float()

    def decode(self, y: Tensor) -> Tensor:
        """y (B, M) to (B, channels, H, W), float32."""
        return self.add(self.base(y), y)

    def analysis(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to y + offset (B, M, 1, 1)."""
        if self.config.channels == 1:
            x = (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return (self.encode(x) + self.offset)[..., None, None]

    def synthesis(self, y: Tensor) -> Tensor:
        """y + offset (B, M, 1, 1) to (B, 3, H, W), about [-1, 1]."""
        return self.decode(y.flatten(1).float() - self.offset).repeat(1, 3 // self.config.channels, 1, 1)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))
