"""A frame: pixels at a time. The one currency between video files, codec, baselines, network and player."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

TICKS_PER_S = 90_000
"""The clock of streams and of RTP video (RFC 3551): all times inside MCode are whole ticks of 1/90,000 s."""


@dataclass(frozen=True, eq=False)
class Frame:
    """rgb: uint8 (H, W, 3). pts: presentation time in whole ticks of 1/90,000 s from the start of the video.

    The array is not copied: whoever makes a frame must not change it while others hold the frame. `Encoder.push` holds none
    once it returns, so a buffer may be used again then; frames that a decoder gives are the caller's own. Raises ValueError
    for another shape or type of array, TypeError for a time that is no whole number.
    """

    rgb: np.ndarray
    pts: int

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise ValueError(f"a frame is uint8 (H, W, 3), not {self.rgb.dtype} {self.rgb.shape}")
        try:
            object.__setattr__(self, "pts", operator.index(self.pts))  # numpy's integers overflow
        except TypeError:
            raise TypeError(f"pts is {self.pts!r}; a time is whole ticks: round(seconds * {TICKS_PER_S})") from None

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
