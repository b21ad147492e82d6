"""Likeness of two pictures by their pixels: PSNR, SSIM, MS-SSIM, on uint8 arrays (H, W) or (H, W, C)."""

from __future__ import annotations

import math

import cv2
import numpy as np

_PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, section 3.2
PSNR_MAX_DB = 100.0
"""What equal pictures score, so that means over frames stay finite (one level off in one of 10^10 values)."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all values, at most PSNR_MAX_DB."""
    _check(a, b)
    error = cv2.norm(a, b, cv2.NORM_L2SQR) / a.size
    return min(PSNR_MAX_DB, 10 * math.log10(_PEAK**2 / error)) if error else PSNR_MAX_DB


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity: 11x11 Gaussian window, sigma 1.5, mean over positions and channels. -1 to 1.

    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13. Windows lie wholly inside the picture, except in pictures smaller
    than the window, which are mirrored at the edge.
    """
    _check(a, b)
    luminance, structure = _ssim_maps(a.astype(np.float64), b.astype(np.float64))
    return float((luminance * structure).mean())


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale SSIM over five scales, each a 2x2 mean of the one before. Both sides must be at least 176.

    Wang, Simoncelli, Bovik 2003, equation 7; negative structure terms count as 0. Mean over channels.
    """
    _check(a, b)
    shortest = _WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)
    if min(a.shape[:2]) < shortest:
        raise ValueError(f"MS-SSIM needs sides of at least {shortest}, not {a.shape[1]}x{a.shape[0]}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    product: np.ndarray | float = 1.0
    for scale, weight in enumerate(_SCALE_WEIGHTS, start=1):
        luminance, structure = _ssim_maps(x, y)
        last = scale == len(_SCALE_WEIGHTS)
        similarity = (luminance * structure if last else structure).mean((0, 1))
        product = product * np.maximum(similarity, 0) ** weight
        x, y = _halve(x), _halve(y)
    return float(np.mean(product))


def luma(rgb: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (H, W), BT.601 weights: what SSIM of a video is measured on here, as in the paper."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _ssim_maps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The luminance term and the contrast-structure term of SSIM, per window position (and channel)."""
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a * mean_a
    variance_b = _window_mean(b * b) - mean_b * mean_b
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return luminance, structure


def _window_mean(x: np.ndarray) -> np.ndarray:
    blurred = cv2.GaussianBlur(x, (_WINDOW, _WINDOW), _SIGMA, borderType=cv2.BORDER_REFLECT)
    edge = _WINDOW // 2
    return blurred[edge:-edge, edge:-edge] if min(x.shape[:2]) >= _WINDOW else blurred


def _halve(x: np.ndarray) -> np.ndarray:
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    return (x[0:h:2, 0:w:2] + x[1:h:2, 0:w:2] + x[0:h:2, 1:w:2] + x[1:h:2, 1:w:2]) / 4


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"need two uint8 pictures of one shape, not {a.dtype} {a.shape} and {b.dtype} {b.shape}")
