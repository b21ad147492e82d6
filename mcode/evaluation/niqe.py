"""NIQE: how far a picture's local statistics lie from those of natural pictures, without a reference. Smaller is better.

Mittal, Soundararajan, Bovik 2013, with the authors' parameters (a 7x7 Gaussian window, blocks of 96 pixels, 36 features).
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from mcode.errors import InputError
from mcode.evaluation.metrics import luma

NIQE_FILE = "niqe_pris_params.npz"
"""The authors' model of natural pictures: mu_pris_param (1, 36), cov_pris_param (36, 36), gaussian_window (7, 7)."""
DAMAGED = (
    *(OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
"""What numpy raises of .npz files that are damaged."""
BLOCK = 96
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10, 0.001)  # of generalised Gaussians, as in the authors' code


class Niqe:
    """Call it on a picture. parameters: NIQE_FILE. Raises InputError for a file that holds something else."""

    def __init__(self, parameters: str | os.PathLike[str]) -> None:
        try:
            with np.load(parameters) as file:
                self.mean = file["mu_pris_param"].astype(np.float64).reshape(36)
                self.covariance = file["cov_pris_param"].astype(np.float64).reshape(36, 36)
                self.window = file["gaussian_window"].astype(np.float64).reshape(7, 7)
        except DAMAGED as error:
            raise InputError(f"{Path(parameters)}: not the parameters of NIQE ({error})") from error

    def __call__(self, rgb: np.ndarray) -> float | None:
        """uint8 (H, W, 3), or (H, W) grey, to the distance; None without two blocks of 96x96 that are not flat."""
        grey = (luma(rgb) if rgb.ndim == 3 else rgb).astype(np.float64)
        rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
        if rows * columns < 2:
            return None
        features = block_features(grey[: rows * BLOCK, : columns * BLOCK], self.window)
        whole = features[~np.isnan(features).any(axis=1)]
        if len(whole) < 2:
            return None  # flat: there is nothing to judge
        mean = np.nanmean(features, axis=0)
        difference = self.mean - mean
        spread = np.linalg.pinv((self.covariance + np.cov(whole, rowvar=False)) / 2)
        return float(np.sqrt(max(difference @ spread @ difference, 0)))


def block_features(grey: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The 36 features of each 96x96 block, (blocks, 36): 18 at full size, 18 at half size.

    grey: float64 (H, W) in 0..255, both sides multiples of 96.
    """
    found = []
    for size in (BLOCK, BLOCK // 2):
        mean = cv2.filter2D(grey, -1, window, borderType=cv2.BORDER_REPLICATE)
        square = cv2.filter2D(grey * grey, -1, window, borderType=cv2.BORDER_REPLICATE)
        normalised = (grey - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
        rows, columns = grey.shape[0] // size, grey.shape[1] // size
        blocks = normalised.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)
        shape, _, left, right = _asymmetric(blocks)
        features = [shape, (left + right) / 2]
        for shift in _SHIFTS:
            features += _asymmetric(blocks * np.roll(blocks, shift, axis=(1, 2)))
        found.append(np.stack(features, axis=1))
        grey = _halve(grey)
    return np.concatenate(found, axis=1)


def _asymmetric(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shape, mean, left and right scale of an asymmetric generalised Gaussian fitted to each block, by moments.

    Lasmar, Stitou, Berthoumieu 2009. blocks: (n, h, w); each result (n,), NaN for a block with values of one sign only.
    """
    x = blocks.reshape(len(blocks), -1)
    below, above = np.where(x < 0, x, 0), np.where(x > 0, x, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt((below**2).sum(1) / (x < 0).sum(1))
        right = np.sqrt((above**2).sum(1) / (x > 0).sum(1))
        skew = left / right
        ratio = np.abs(x).mean(1) ** 2 / (x**2).mean(1)
        wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    bad = ~np.isfinite(wanted)
    ratios, by_shape = _tables()
    nearest = np.abs(ratios[None] - np.where(bad, 0, wanted)[:, None]).argmin(1)
    scale, mean = by_shape[nearest].T
    left, right = np.where(bad, np.nan, left * scale), np.where(bad, np.nan, right * scale)
    return np.where(bad, np.nan, _SHAPES[nearest]), (right - left) * mean, left, right


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For each shape a: G(2/a)^2 / G(1/a) / G(3/a); and (sqrt(G(1/a) / G(3/a)), G(2/a) / G(1/a))."""
    one, two, three = (np.array([math.gamma(k / a) for a in _SHAPES]) for k in (1, 2, 3))
    return two**2 / (one * three), np.stack([np.sqrt(one / three), two / one], axis=1)


def _halve(grey: np.ndarray) -> np.ndarray:
    """Half the size by the cubic kernel stretched to twice its width, edges mirrored (MATLAB's imresize; Keys 1981)."""
    at = np.abs((np.arange(8) - 3.5) / 2)
    near, far = 1.5 * at**3 - 2.5 * at**2 + 1, -0.5 * at**3 + 2.5 * at**2 - 4 * at + 2
    kernel = np.where(at <= 1, near, far)
    kernel /= kernel.sum()
    small = cv2.sepFilter2D(grey, -1, kernel, kernel, anchor=(3, 3), borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(small[::2, ::2])
