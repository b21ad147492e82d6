"""LPIPS 0.1 with AlexNet (Zhang et al. 2018), where its two weight files are at hand."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mcode.errors import InputError
from mcode.evaluation.features import load_standard, to_batch

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"
ALEXNET_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
LINEAR_FILE = "alex.pth"
LINEAR_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth"
LINEAR_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"

_LAYERS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
"""Channels in and out, kernel, stride, padding."""
_IN_STATE_DICT = (0, 3, 6, 8, 10)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # the authors' input normalisation, of [-1, 1]


class Lpips:
    """Call it on two pictures. alexnet: torchvision's weights (ALEXNET_FILE); linear: LPIPS's own (LINEAR_FILE). InputError."""

    def __init__(self, alexnet: str | os.PathLike[str], linear: str | os.PathLike[str], device: str = "cpu") -> None:
        self.device = torch.device(device)
        features, weights = load_standard(alexnet), load_standard(linear)
        self._convolutions = []
        self._linear = []
        for number, (place, (inputs, outputs, size, stride, padding)) in enumerate(zip(_IN_STATE_DICT, _LAYERS, strict=True)):
            convolution = nn.Conv2d(inputs, outputs, size, stride, padding)
            try:
                convolution.load_state_dict({k: features[f"features.{place}.{k}"] for k in ("weight", "bias")})
            except (KeyError, RuntimeError) as error:
                raise InputError(f"{os.fspath(alexnet)}: not the weights of torchvision's AlexNet ({ALEXNET_URL})") from error
            try:
                self._linear.append(weights[f"lin{number}.model.1.weight"].float().reshape(1, outputs, 1, 1).to(self.device))
            except (KeyError, RuntimeError) as error:
                raise InputError(f"{os.fspath(linear)}: not LPIPS's weights for AlexNet ({LINEAR_URL})") from error
            self._convolutions.append(convolution.to(self.device).requires_grad_(False).eval())
        self._shift, self._scale = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        self._reference: tuple[np.ndarray, list[Tensor]] | None = None

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """a, b: uint8 (H, W, 3), sides at least 64. 0 for equals, about 1 at most. Keeps the features of `a`."""
        if self._reference is None or self._reference[0] is not a:
            self._reference = a, self._features(a)
        return self._between(self._reference[1], self._features(b)).item()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] both, on the device. (B,), differentiable: the loss d_P of HiFiC."""
        return self._between(self.features(a), self.features(b))

    def _between(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        parts = zip(a, b, self._linear, strict=True)
        return torch.stack([((x.float() - y.float()).square() * weight).sum(1).mean((1, 2)) for x, y, weight in parts]).sum(0)

    def _features(self, rgb: np.ndarray) -> list[Tensor]:
        return self.features(to_batch(rgb).to(self.device))

    def features(self, rgb: Tensor) -> list[Tensor]:
        """Of (B, 3, H, W) in [0, 1]: outputs of the five convolutions after ReLU, of unit length at every position."""
        x = (rgb * 2 - 1 - self._shift) / self._scale
        found = []
        for number, convolution in enumerate(self._convolutions):
            if number in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(convolution(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found
