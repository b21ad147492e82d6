"""The `linear` kind: coordinates of a principal-component basis at one frame size. The baseline that NCode must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """x = mean + y B, with y the coordinates in grey levels (0..255 scale) and B nearly orthonormal.

    basis: int8 (M, 3 H W) times basis_scale: (M,) is B, its rows in falling order of variance; mean: (3 H W,) in grey
    levels; step: (qualities,) quantiser step in grey levels. Since rounding to 8 bits leaves B's rows a little off
    orthonormal, analysis solves the least squares problem with the rounded rows: the coordinates are the best there are.
    """

    basis: Tensor
    basis_scale: Tensor
    mean: Tensor
    step: Tensor

    def __init__(self, m: int, width: int, height: int, qualities: int) -> None:
        super().__init__()
        pixels = 3 * width * height
        self.width, self.height = width, height
        self.register_buffer("basis", torch.zeros(m, pixels, dtype=torch.int8))
        self.register_buffer("basis_scale", torch.ones(m))
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("step", torch.ones(qualities))
        self._rows: Tensor | None = None  # until `prepare`
        self._solve: Tensor | None = None

    def prepare(self) -> None:
        """Computes the rows and the least squares solver from the buffers; call after loading or moving."""
        rows = self.basis.float() * self.basis_scale.float().unsqueeze(1)
        exact = rows.double()
        gram = (exact @ exact.T).cpu()
        self._rows, self._solve = rows, torch.linalg.pinv(gram, hermitian=True).float().to(rows.device)

    def analysis(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to y (B, M, 1, 1)."""
        assert self._rows is not None and self._solve is not None
        grey = (x.reshape(len(x), -1).float() + 1) * 127.5 - self.mean.float()
        return (grey @ self._rows.T @ self._solve)[..., None, None]

    def synthesis(self, y: Tensor) -> Tensor:
        """y (B, M, 1, 1) to (B, 3, H, W), about [-1, 1]."""
        assert self._rows is not None
        grey = y.flatten(1).float() @ self._rows + self.mean.float()
        return (grey / 127.5 - 1).view(len(y), 3, self.height, self.width)
