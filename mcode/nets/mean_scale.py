"""The shallow autoencoder of the mean and scale hyperprior (Minnen et al. 2018, without its context model).

Made for squared error; what HiFiC is held against (Mentzer et al. 2020, section 5, figure 6b). P is `paper.Hyperprior`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import at_least

_LEAST_BETA = 1e-6
_PEDESTAL = 2.0**-18  # keeps a gradient at 0 (Balle 2018, section 2)


class Gdn(nn.Module):
    """Generalised divisive normalisation, x / sqrt(beta + gamma x^2), each channel by all at its position, or its inverse, with
    sqrt as a factor (Balle et al. 2016, equation 4). beta and gamma are squares of what is trained. (B, C, h, w) to the same.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + _PEDESTAL**2).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        beta = at_least(self.beta, _LEAST_BETA**0.5).square()
        gamma = at_least(self.gamma, _PEDESTAL).square() - _PEDESTAL**2
        norm = F.conv2d(x.square(), gamma[:, :, None, None], beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class MeanScaleEncoder(nn.Sequential):
    """E: pictures (B, 3, H, W) in [-1, 1], H and W multiples of 16, to y (B, C, H/16, W/16)."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for width_in in (3, width, width):
            layers += [nn.Conv2d(width_in, width, 5, stride=2, padding=2), Gdn(width)]
        super().__init__(*layers, nn.Conv2d(width, channels, 5, stride=2, padding=2))


class MeanScaleGenerator(nn.Sequential):
    """G: y_hat (B, C, h, w) to pictures (B, 3, 16 h, 16 w), about [-1, 1], not clipped."""

    def __init__(self, channels: int, width: int) -> None:
        def up(channels_in: int, channels_out: int) -> nn.Module:
            return nn.ConvTranspose2d(channels_in, channels_out, 5, stride=2, padding=2, output_padding=1)

        layers: list[nn.Module] = []
        for width_in in (channels, width, width):
            layers += [up(width_in, width), Gdn(width, inverse=True)]
        super().__init__(*layers, up(width, 3))
