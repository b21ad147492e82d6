"""The `hific` kind: a feature map of C x H/16 x W/16 for any picture size, with several qualities from one set of weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..latents import symbols as symbols_of
from ..packet import MOST_QUALITIES
from .compact import Compact
from .gumbel import gumbel_rounded
from .hyper import Hyper
from .rate import TableRate


@dataclass(frozen=True)
class CompactConfig:
    """Widths and residual blocks from the picture inwards (analysis) and outwards (synthesis); see `mcode.nets.compact`."""

    channels: int = 128
    analysis_widths: tuple[int, ...] = (64, 128, 192)
    analysis_blocks: tuple[int, ...] = (1, 2, 3)
    synthesis_widths: tuple[int, ...] = (256, 128, 64, 32)
    synthesis_blocks: tuple[int, ...] = (4, 2, 1, 1)
    stages: tuple[int, ...] = (0, 8, 24, 56, 128)
    qualities: int = 8

    def __post_init__(self) -> None:
        for name, least in (("analysis_widths", 1), ("analysis_blocks", 0), ("synthesis_widths", 1), ("synthesis_blocks", 0)):
            given, count = getattr(self, name), 3 if name.startswith("analysis") else 4
            if len(given) != count or min(given) < least:
                raise ValueError(f"{name} = {list(given)} is not {count} numbers of {least} or more")
        if self.channels < 1:
            raise ValueError(f"channels = {self.channels} is not 1 or more")
        if not 1 <= self.qualities <= MOST_QUALITIES:
            raise ValueError(f"qualities = {self.qualities} is not from 1 to {MOST_QUALITIES}, which a packet can name")


class Gains(nn.Module):
    """One vector of quantiser gains for each quality: symbols = round(gain * y), y_hat = symbols * inverse
    (gain units, Cui et al. 2021). The inverse is learnt apart, since the best reconstruction is not the middle of a step.
    """

    def __init__(self, qualities: int, channels: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(qualities, channels))
        self.log_shrink = nn.Parameter(torch.zeros(qualities, channels))

    def gain(self) -> Tensor:
        """(qualities, C)."""
        return self.log_gain.exp()

    def inverse(self) -> Tensor:
        """(qualities, C)."""
        return (self.log_shrink - self.log_gain).exp()


class CompactHific(nn.Module):
    """Networks, gains and the training's rate model of a compact `hific` manifold.

    hyper, hyper_share: a hyperprior whose bits are that share of the rate, beside those of the tables. temperature: see
    `forward`.
    """

    def __init__(
        self, config: CompactConfig, hyper: Hyper | None = None, hyper_share: float = 0.0, temperature: float = 0.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.config, self.hyper_share = config, hyper_share if hyper is not None else 0.0
        self.hyper = hyper
        self.net = Compact(
            config.channels,
            config.analysis_widths,
            config.analysis_blocks,
            config.synthesis_widths,
            config.synthesis_blocks,
        )
        self.gains = Gains(config.qualities, config.channels)
        self.rate = TableRate(config.qualities, config.stages)
        self._margin: Tensor | None = None

    def keep_what_is_sent(self, margin: Tensor) -> None:
        """From here on the synthesis alone is trained, on the symbols that an encoder sends: rounded, with the margin around
        zero of each quality, (qualities, C) in steps."""
        for kept in (self.net.analysis_net, self.gains, self.rate, *([] if self.hyper is None else [self.hyper])):
            kept.requires_grad_(False)
        self._margin = margin

    def forward(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One training pass. x: (B, 3, H, W) in [-1, 1]; quality: int64 (B,) from 0. Returns x_hat, bits (B,) and y_hat.

        Rounding is straight-through for the reconstruction and additive noise for the rate (Mentzer et al. 2020, 3.3); with a
        temperature both see `gumbel_rounded` latents. Where most symbols are 0, noise counts up to twice their bits. After
        `keep_what_is_sent` there is neither: symbols are those sent, and their bits have no gradient.
        """
        if self._margin is not None:
            y_hat, bits = self._sent(x, quality, self._margin)
            return self.net.synthesis(y_hat), bits, y_hat
        y = self.net.analysis(x).float()
        gain = self.gains.gain()[quality][..., None, None]
        inverse = self.gains.inverse()[quality][..., None, None]
        scaled = y * gain
        if self.temperature > 0:
            symbols = noisy = gumbel_rounded(scaled, self.temperature)
        else:
            symbols = scaled + (scaled.round() - scaled).detach()
            noisy = scaled + torch.rand_like(scaled) - 0.5
        near = symbols.detach().round()
        bits = self.rate(noisy, near, quality)
        if self.hyper is not None:
            with torch.autocast(x.device.type, enabled=False):  # its integers need float32
                bits = torch.lerp(bits, self.hyper.whole_bits(noisy, near, quality), self.hyper_share)
        y_hat = symbols * inverse
        return self.net.synthesis(y_hat), bits, y_hat

    @torch.no_grad()
    def _sent(self, x: Tensor, quality: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        symbols = symbols_of(self.net.analysis(x), self.gains.gain()[quality], margin.to(x.device)[quality])
        return symbols * self.gains.inverse()[quality][..., None, None], self.rate(symbols, symbols, quality)
