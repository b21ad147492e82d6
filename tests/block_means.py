"""A model a reader computes by hand: a latent is the mean of a 4x4 block of each colour, minus 128; a step is 2."""

from __future__ import annotations

import numpy as np
import torch

from mcode.coders import CodeTables
from mcode.frame import TICKS_PER_S, Frame

SIDE, STEP, FPS = 4, 2, 25
TICKS = TICKS_PER_S // FPS


class BlockMeans:
    """Any size; odd edges repeat their last pixels. Symbol = round((mean - 128) / 2)."""

    id = "00112233445566ff"
    default_quality = 1
    hyper = None

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        samples = [rng.integers(-64, 64, (3, 8, 8)).astype(np.int16) for _ in range(8)]
        self._tables = CodeTables.fit(samples, [rng.integers(-8, 9, (3, 8, 8)).astype(np.int16) for _ in range(8)])

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return 3, -(-height // SIDE), -(-width // SIDE)

    def analyse(self, rgb: np.ndarray) -> torch.Tensor:
        _, h, w = self.latent_shape(rgb.shape[2], rgb.shape[1])
        padded = np.pad(rgb, ((0, 0), (0, h * SIDE - rgb.shape[1]), (0, w * SIDE - rgb.shape[2]), (0, 0)), mode="edge")
        blocks = padded.reshape(len(rgb), h, SIDE, w, SIDE, 3).astype(np.float32).mean((2, 4)) - 128
        return torch.from_numpy(blocks.transpose(0, 3, 1, 2).copy())

    def synthesise(self, latents: torch.Tensor, width: int, height: int) -> np.ndarray:
        blocks = np.clip(np.rint(latents.numpy() + 128), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(blocks.repeat(SIDE, 1).repeat(SIDE, 2)[:, :height, :width])

    def gain(self, quality: int) -> torch.Tensor:
        return torch.full((3,), 1 / STEP)

    def inverse(self, quality: int) -> torch.Tensor:
        return torch.full((3,), float(STEP))

    def zero_margin(self, quality: int) -> None:
        return None

    def tables(self, quality: int) -> CodeTables:
        return self._tables


def grey(value: int, index: int, width: int = 16, height: int = 8) -> Frame:
    """A frame of one grey level at frame number `index` of a 25 Hz video."""
    return Frame(np.full((height, width, 3), value, np.uint8), index * TICKS)
