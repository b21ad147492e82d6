"""What symbols will cost, differentiable: the training's stand-in for the table coders. Not used when coding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TableRate(nn.Module):
    """Bits of a feature map under tables chosen by quality, channel and context.

    A mixture of zero-mean Laplace distributions for each quality and channel. Its weights move with a context that the
    decoder knows before the channel: how much the earlier stages of channels hold at the same position, as
    log2(1 + sum |symbol|), the first channel (brightness) left out. The table coders know much the same: the sum of |symbol|
    over the channels coded just before a group, 16 at most, whichever they are.

    stages: first channel of each stage, ascending, from 0; the last entry is the number of channels.
    """

    def __init__(self, qualities: int, stages: tuple[int, ...], parts: int = 3) -> None:
        super().__init__()
        channels = stages[-1]
        self.stages = stages
        self.logits = nn.Parameter(torch.zeros(qualities, parts, channels))
        spread = torch.linspace(-1.5, 1.5, parts).view(1, parts, 1)
        decay = torch.linspace(1.5, -1.0, channels).view(1, 1, channels)
        self.log_scale = nn.Parameter((spread + decay).repeat(qualities, 1, 1))
        self.slope = nn.Parameter(torch.zeros(qualities, parts, channels))

    def context(self, symbols: Tensor) -> Tensor:
        """(B, C, h, w) to the context of every channel, same shape."""
        magnitude = symbols.detach().abs()
        context = torch.zeros_like(magnitude)
        for start, stop in zip(self.stages[1:-1], self.stages[2:], strict=True):
            known = magnitude[:, 1:start].sum(1, keepdim=True)
            context[:, start:stop] = torch.log2(1 + known)
        return context

    def forward(self, noisy: Tensor, symbols: Tensor, quality: Tensor) -> Tensor:
        """Bits of each picture, (B,). noisy: latents in quantiser steps plus uniform noise, (B, C, h, w); quality: (B,)."""
        context = self.context(symbols).flatten(2)
        v = noisy.flatten(2).abs()
        log_weights = self.logits[quality].unsqueeze(-1) + self.slope[quality].unsqueeze(-1) * context.unsqueeze(1)
        log_weights = F.log_softmax(log_weights, dim=1)
        scale = self.log_scale[quality].clamp(-5, 6).exp().unsqueeze(-1)
        v = v.unsqueeze(1)
        # P(v - 1/2 < X < v + 1/2) of a Laplace distribution, for v >= 0, written without cancellation.
        inside = 1 - 0.5 * torch.exp((-0.5 - v) / scale) - 0.5 * torch.exp(-(0.5 - v).clamp_min(0) / scale)
        outside = 0.5 * torch.exp(-(v - 0.5).clamp_min(0) / scale) * -torch.expm1(-1 / scale)
        probability = torch.where(v < 0.5, inside, outside).clamp_min(1e-9)
        log_probability = torch.logsumexp(log_weights + probability.log(), dim=1)
        return -log_probability.sum((1, 2)) / 0.6931471805599453
