"""The test picture, drawn: waves, a disc, and a number that can be read back from what a receiver shows."""

from __future__ import annotations

import math

import cv2
import numpy as np

STAMP_BITS = 16


def test_picture(index: int, width: int, height: int, stamp: int | None = None) -> np.ndarray:
    """uint8 (height, width, 3): waves of colour, a disc that circles once in four seconds, and a stamp: `index`, or another
    number below 65536."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    phase = index / 25
    waves = [np.sin(6 * x + k + phase) + np.cos(5 * y - 2 * k + 0.7 * phase) for k in range(3)]
    rgb = np.clip(128 + 45 * np.stack(waves, axis=2), 0, 255).astype(np.uint8)
    centre = (
        int(width * (0.5 + 0.3 * math.cos(phase * math.pi / 2))),
        int(height * (0.6 + 0.2 * math.sin(phase * math.pi / 2))),
    )
    cv2.circle(rgb, centre, max(2, min(width, height) // 8), (250, 220, 60), -1, cv2.LINE_AA)
    rows = _stamp_rows(height)
    number = index if stamp is None else stamp
    gray = number ^ number >> 1
    for bit in range(STAMP_BITS):
        left, right = bit * width // STAMP_BITS, (bit + 1) * width // STAMP_BITS
        rgb[:rows, left:right] = 255 * (gray >> (STAMP_BITS - 1 - bit) & 1)
    return rgb


test_picture.__test__ = False  # type: ignore[attr-defined]


def read_stamp(rgb: np.ndarray) -> int | None:
    """The stamp, modulo 65536, in a decoded test picture; None where it is not clear (between two keyframes)."""
    height, width = rgb.shape[:2]
    rows = _stamp_rows(height)
    gray = 0
    for bit in range(STAMP_BITS):
        left, right = bit * width // STAMP_BITS, (bit + 1) * width // STAMP_BITS
        margin = (right - left) // 4
        level = float(rgb[rows // 4 : max(1, rows * 3 // 4), left + margin : max(left + margin + 1, right - margin)].mean())
        if 64 < level < 192:
            return None
        gray = gray << 1 | (level >= 192)
    index = 0
    while gray:
        index ^= gray
        gray >>= 1
    return index


def _stamp_rows(height: int) -> int:
    return max(4, height // 12)
