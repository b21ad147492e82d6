"""Codecs of small pictures: a manifold's symbols in a fixed number of bits, principal components, JPEG and JPEG 2000.

JPEG and JPEG 2000 are counted without their headers, as in the paper (Santurkar et al. 2017, section 4.1): of JPEG the scan
and the Huffman and quantisation tables, of JPEG 2000 the tile parts' data.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ...coders import fixed
from ...latents import dequantise, quantise
from ...nets.residual import Residual

if TYPE_CHECKING:
    from ...manifold import Manifold

BATCH = 64
_TABLES = (0xC4, 0xDB)
"""Markers of JPEG's Huffman and quantisation tables."""


@dataclass(frozen=True)
class Coded:
    """pictures: uint8 (N, H, W, 3), decoded. bits: of each picture, (N,)."""

    pictures: np.ndarray
    bits: np.ndarray


class Coordinates:
    """A manifold of M coordinates at b bits each: the paper's (M, b) without entropy coding."""

    def __init__(self, model: Manifold, bits: int) -> None:
        self.model, self.bits = model, bits
        self.tables = model.tables(bits)
        self.name = f"({model.channels}, {bits})"

    @cached_property
    def bits_a_picture(self) -> int:
        """By the code tables: M times b."""
        return int(self.tables.bits.sum())

    def symbols(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) to int16 (M, N), as the receiver has them."""
        gain = self.model.gain(self.bits)
        latents = torch.cat([self.model.analyse(rgb[i : i + BATCH]) for i in range(0, len(rgb), BATCH)])
        return fixed.clip(quantise(latents[..., 0].permute(1, 0, 2), gain)[..., 0], self.tables)

    def pictures(self, symbols: np.ndarray) -> np.ndarray:
        """int16 (M, N) to uint8 (N, H, W, 3)."""
        width, height = self.model.frame_size or (0, 0)
        latents = dequantise(symbols[:, :, None], self.model.inverse(self.bits)).permute(1, 0, 2)[..., None]
        parts = [self.model.synthesise(latents[i : i + BATCH], width, height) for i in range(0, len(latents), BATCH)]
        return np.concatenate(parts)

    def __call__(self, rgb: np.ndarray) -> Coded:
        return Coded(self.pictures(self.symbols(rgb)), np.full(len(rgb), self.bits_a_picture))


class Components:
    """The principal components inside a residual manifold, in `bits` for a picture, each coordinate as many as its
    spread deserves: reverse water-filling, what `linear` does best with those bits."""

    def __init__(self, model: Manifold, bits: int) -> None:
        assert isinstance(model.net, Residual)
        self.net, self.total = model.net, bits
        deviation = self.net.component_deviation.double().cpu().numpy()
        low, high = 1e-6, 100 * float(deviation.max())
        for _ in range(60):
            self.step = (low * high) ** 0.5
            low, high = (self.step, high) if _allot(deviation, self.step).sum() > bits else (low, self.step)
        self.step = high
        self.widths = _allot(deviation, self.step)

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray) -> Coded:
        device = self.net.component_deviation.device
        half = torch.from_numpy(2.0 ** (self.widths - 1)).float().to(device)
        used = torch.from_numpy(self.widths > 0).to(device)
        out = []
        for i in range(0, len(rgb), BATCH):
            x = torch.from_numpy(rgb[i : i + BATCH]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            y = self.net.linear_analysis(x[:, : self.net.config.channels])
            symbols = (y / self.step + 0.5).round().clamp(1 - half, half)  # an even number of levels, centred
            y = torch.where(used, (symbols - 0.5) * self.step, 0.0)
            out.append(_to_rgb(self.net.linear_synthesis(y)))
        return Coded(np.concatenate(out), np.full(len(rgb), int(self.widths.sum())))


def _allot(deviation: np.ndarray, step: float) -> np.ndarray:
    """Bits for each coordinate: enough levels of `step` for five deviations; none below one and a half levels."""
    levels = 5 * deviation / step
    return np.where(levels < 1.5, 0, np.ceil(np.log2(np.maximum(levels, 2)))).astype(np.int64)


def _to_rgb(x: torch.Tensor) -> np.ndarray:
    grey = x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return np.array(np.broadcast_to(grey.numpy(), (*grey.shape[:-1], 3)))


Still = Callable[[np.ndarray], tuple[int, np.ndarray]]
"""uint8 (H, W, 3) to the bits counted and the picture decoded."""


def jpeg(quality: int, grey: bool) -> Still:
    """Baseline JPEG with optimised Huffman tables, quality 1 to 95."""

    def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
        data = encoded(rgb, grey, "JPEG", quality=quality, optimize=True)
        return 8 * jpeg_bytes(data), decoded(data)

    return code


def jpeg2000(ratio: float, grey: bool) -> Still:
    """JPEG 2000, irreversible, one layer at so many times fewer bits than 8 a value."""

    def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
        data = encoded(rgb, grey, "JPEG2000", quality_layers=[ratio], irreversible=True, num_resolutions=4, no_jp2=True)
        return 8 * jpeg2000_bytes(data), decoded(data)

    return code


def code_all(codec: Still, rgb: np.ndarray) -> Coded:
    """Each picture of uint8 (N, H, W, 3) by itself."""
    found = [codec(picture) for picture in rgb]
    return Coded(np.stack([picture for _, picture in found]), np.array([bits for bits, _ in found]))


def at_least_bits(make: Callable[[float], Still], settings: list[float], rgb: np.ndarray, bits: float) -> tuple[float, Coded]:
    """The first of `settings`, which fall in quality, that takes at most `bits` a picture on average, and what it gives;
    the last one where none does."""
    low, high = 0, len(settings) - 1
    some = rgb[:: max(1, len(rgb) // 100)]
    while low < high:
        middle = (low + high) // 2
        if code_all(make(settings[middle]), some).bits.mean() <= bits:
            high = middle
        else:
            low = middle + 1
    return settings[low], code_all(make(settings[low]), rgb)


def jpeg_bytes(data: bytes) -> int:
    """Bytes of a JPEG file's scan and of its Huffman and quantisation tables; the other headers left out."""
    tables = sum(len(segment) for segment in jpeg_segments(data) if segment[1] in _TABLES)
    return tables + len(data) - jpeg_scan(data) - 2


def jpeg_scan(data: bytes) -> int:
    """Where the scan's data start."""
    return 2 + sum(len(segment) for segment in jpeg_segments(data))


def jpeg_segments(data: bytes) -> Iterator[bytes]:
    """A JPEG file's marker segments up to the scan's header, which is the last."""
    at, marker = 2, 0
    while marker != 0xDA:
        length, marker = 2 + int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 1]
        yield data[at : at + length]
        at += length


def jpeg2000_bytes(data: bytes) -> int:
    """Bytes of a JPEG 2000 codestream's tile parts after their headers."""
    at, counted = 2, 0
    while data[at : at + 2] != b"\xff\xd9" and at < len(data):
        if data[at : at + 2] != b"\xff\x90":  # not a tile part: a segment of the main header
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            continue
        end = at + (int.from_bytes(data[at + 6 : at + 10], "big") or len(data) - 2 - at)
        counted += end - (data.index(b"\xff\x93", at) + 2)
        at = end
    return counted


def encoded(rgb: np.ndarray, grey: bool, kind: str, **options: object) -> bytes:
    """uint8 (H, W, 3) as a file of Pillow's format `kind`."""
    out = io.BytesIO()
    Image.fromarray(rgb[..., 0] if grey else rgb).save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """A picture file as uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))
