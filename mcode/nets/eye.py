"""Small networks whose features compare two pictures much as VGG19's do, at a twelfth of the work each: they ship with MCode.

Trained by `mcode.training.eye` so that moving a latent changes its distance as it changes VGG19's and SqueezeNet's.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError

EYE_FILE = Path(__file__).with_name("eye.safetensors")
WIDTHS = (48, 96, 128)


class Eye(nn.Module):
    """rgb (B, 3, H, W) in [0, 1] to features at 1/2, 1/4 and 1/8 of its sides, (B, WIDTHS[i], ., .)."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        inside = [3, *widths[:-1]]
        kernels = [6, *(4 for _ in widths[1:])]
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=2, padding=k // 2 - 1) for i, o, k in zip(inside, widths, kernels, strict=True)
        )
        self.same = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in widths)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = rgb * 4 - 2
        found = []
        for down, same in zip(self.down, self.same, strict=True):
            x = torch.relu(same(torch.relu(down(x))))
            found.append(x)
        return found


def read(path: Path) -> list[tuple[Eye, float]]:
    """The networks in a file of `mcode.training.eye.save`, each with the factor of its distance in their sum. Raises
    InputError."""
    try:
        with safe_open(str(path), "pt") as file:
            card = json.loads(file.metadata()["card"])
        tensors, found = load_file(path), []
        for i, scale in enumerate(card["scales"]):
            net, prefix = Eye(tuple(card["widths"])), f"{i}."
            net.load_state_dict({k.removeprefix(prefix): t.float() for k, t in tensors.items() if k.startswith(prefix)})
            found.append((net.requires_grad_(False).eval(), float(scale)))
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as networks of scripts/train_eye.py ({type(error).__name__})") from error
    return found


@cache
def load_eyes() -> list[tuple[Eye, float]]:
    """Those that ship; see `read`. The sum of their distances is about VGG19's plus SqueezeNet's."""
    return read(EYE_FILE)
