"""A frame: pixels at a time. The one currency between video files, codec, baselines, network and player."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TICKS_PER_S = 90_000
"""The clock of streams and of RTP video (RFC 3551): all times inside MCode are whole ticks of 1/90,000 s."""


@dataclass(frozen=True, eq=False)
class Frame:
    """rgb: uint8 (H, W, 3), contiguous. pts: presentation time in ticks of 1/90,000 s from the start of the video."""

    rgb: np.ndarray
    pts: int

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise ValueError(f"a frame is uint8 (H, W, 3), not {self.rgb.dtype} {self.rgb.shape}")

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds."""
        return self.pts / TICKS_PER_S

    @property
    def height(self) -> int:
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        return self.rgb.shape[1]

    def __repr__(self) -> str:
        return f"Frame({self.width}x{self.height} at {self.pts_s:.3f} s)"
