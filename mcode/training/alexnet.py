"""conv4 of ImageNet's AlexNet: the feature network of NCode's perceptual loss (Santurkar et al. 2017, equation 2)."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.features import WEIGHTS_VARIABLE, load_standard, weights_path

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""Torchvision's weights; the file name ends in the start of its SHA-256, which the download is checked against."""


class AlexNetConv4(nn.Module):
    """rgb (B, 3, H, W) in [0, 1], H and W at least 32, to conv4's outputs before their ReLU (B, 256, h, w). Frozen.

    weights: a file of torchvision's layout, .pth or .safetensors, or a folder with it under torchvision's name; without it the
    folder in MCODE_PERCEPTUAL, torch.hub's cache or a download, in this order. Raises InputError.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
        )
        state = _weights(weights)
        try:
            self.load_state_dict({k: state[k] for k in self.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{weights or URL}: not the weights of torchvision's AlexNet") from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> Tensor:
        return self.features((rgb - self.mean) / self.deviation)


def _weights(path: str | os.PathLike[str] | None) -> dict[str, Tensor]:
    name = PurePosixPath(URL).name
    if path is not None:
        return load_standard(weights_path(name, path))
    kept = Path(os.environ.get(WEIGHTS_VARIABLE, "")) / name
    if os.environ.get(WEIGHTS_VARIABLE) and kept.is_file():
        return load_standard(kept)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(cached), cached.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            raise InputError(
                f"AlexNet's weights cannot be had from {URL} ({error}); give a file with perceptual_file, "
                'or set perceptual = "vgg19" or "none"'
            ) from error
    return load_standard(cached)
