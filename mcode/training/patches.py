"""The principal components of 16x16 patches, from which the compact networks start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..nets import STRIDE
from ..nets.compact import PatchTransform


def fit_patches(transform: PatchTransform, crops: np.ndarray, step: float) -> float:
    """Fills `transform` from crops: uint8 (B, H, W, 3), H and W multiples of 16.

    step: quantiser step in pixel units of [-1, 1] that a latent of 1 stands for. Returns the PSNR in dB that the kept
    components reach on these crops, unquantised. Signs are fixed: each component's largest weight is positive.
    """
    channels = transform.scale.numel()
    batch, height, width, _ = crops.shape
    x = crops.astype(np.float32) / 127.5 - 1
    mean = x.mean((0, 1, 2))
    x = (x - mean).reshape(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE, 3)
    x = x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3 * STRIDE * STRIDE)
    covariance = (x.T @ x).astype(np.float64) / len(x)
    values, vectors = np.linalg.eigh(covariance)
    basis = vectors[:, ::-1][:, :channels].T.copy()
    basis *= np.sign(basis[np.arange(channels), np.abs(basis).argmax(1)])[:, None]
    transform.basis.copy_(_tensor(basis.reshape(channels, 3, STRIDE, STRIDE)))
    transform.scale.fill_(1 / step)
    transform.mean.copy_(_tensor(mean))
    lost = max(values.sum() - values[::-1][:channels].sum(), 1e-12) / (3 * STRIDE * STRIDE)
    return float(10 * np.log10(4 / lost))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
