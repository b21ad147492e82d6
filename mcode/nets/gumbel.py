"""Rounding by chance, with a gradient: what training and refinement see in place of the encoder's rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_rounded(at: Tensor, temperature: float, noise: torch.Generator | None = None) -> Tensor:
    """Each value between its neighbouring integers and near one of them, by chance by how near it lies: the colder, the surer
    and the nearer (stochastic Gumbel annealing; Yang, Bamler, Mandt 2020, section 3.2, with two neighbours).

    at: any shape. temperature: above 0. noise: of the device of `at`; torch's own where there is none.
    """
    low = torch.floor(at.detach())
    above = (at - low).clamp(1e-4, 1 - 1e-4)
    odds = (torch.atanh(above) - torch.atanh(1 - above)) / temperature
    chance = torch.rand(at.shape, generator=noise, device=at.device).clamp(1e-7, 1 - 1e-7)
    return low + torch.sigmoid((odds + torch.logit(chance)) / temperature)
