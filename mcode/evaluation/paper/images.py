"""Figures 3, 4a, 4b and 7: small pictures at given (M, bits), beside JPEG and JPEG 2000."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..features import FeatureDistances, unit_distance
from ..metrics import psnr, ssim
from . import classifier, sets
from .codecs import (
    Coded,
    Components,
    Coordinates,
    at_least_bits,
    code_all,
    decoded,
    encoded,
    jpeg,
    jpeg2000,
    jpeg_scan,
)

if TYPE_CHECKING:
    from ...manifold import Manifold

POINTS = ((100, 5), (25, 4), (25, 2))
"""(M, bits) of figure 3 and 4a."""
STRIP = ((100, 6), (100, 5), (100, 4), (100, 2), (25, 4), (25, 2))
"""(M, bits) of figure 7's way down, 0.146 to 0.012 bit/pixel at 64x64."""
ERROR_RATES = (0.0, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 4e-2, 5e-2)
JPEG_QUALITIES = [float(q) for q in range(95, 0, -1)]
JPEG2000_RATIOS = [1.15**k for k in range(4, 45)]
PAPER_ACCURACY = {
    "original": 0.7053,
    "NCode (100, 5)": 0.5496,
    "NCode (25, 4)": 0.3946,
    "NCode (25, 2)": 0.1895,
    "JPEG": 0.3261,
    "JPEG 2000": 0.3748,
}
"""Figure 4a of the paper: shares of CIFAR-10's test pictures put into the right class."""

Manifolds = Mapping[str, "Manifold"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Scores:
    """Means over a set's test pictures. bpp: bits per pixel; factor: by how much that is fewer than 8 bits a value."""

    codec: str
    setting: str
    bpp: float
    factor: float
    psnr_db: float
    ssim: float
    vgg: float | None = None
    mobilenet: float | None = None


def judge(name: str, setting: str, rgb: np.ndarray, coded: Coded, channels: int, features: Features | None) -> Scores:
    """coded against rgb, uint8 (N, H, W, 3) both."""
    pixels = rgb.shape[1] * rgb.shape[2]
    bpp = float(coded.bits.mean()) / pixels
    pairs = list(zip(rgb[..., :channels], coded.pictures[..., :channels], strict=True))
    distances = features(rgb, coded.pictures) if features else (None, None)
    return Scores(
        name,
        setting,
        bpp,
        8 * channels / bpp,
        float(np.mean([psnr(a, b) for a, b in pairs])),
        float(np.mean([ssim(a, b) for a, b in pairs])),
        *distances,
    )


class Features:
    """VGG19 and MobileNet distances of many small pictures at once."""

    def __init__(self, weights: str | None) -> None:
        self.networks = FeatureDistances(weights)

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        """Means over uint8 (N, H, W, 3)."""
        sums = np.zeros(2)
        for start in range(0, len(a), 50):
            x, y = (torch.from_numpy(t[start : start + 50]).permute(0, 3, 1, 2).float().div(255).contiguous() for t in (a, b))
            for k, network in enumerate((self.networks.vgg_features, self.networks.mobilenet_features)):
                sums[k] += unit_distance(network(x), network(y)).sum().item()
        return float(sums[0] / len(a)), float(sums[1] / len(a))


def codecs_of(which: sets.PictureSet, manifolds: Manifolds) -> list[tuple[str, str, Callable[[np.ndarray], Coded]]]:
    """(name, "(M, b)", codec) for NCode as in the paper, its residual relative and their linear parts, as far as there."""
    found: list[tuple[str, str, Callable[[np.ndarray], Coded]]] = []
    for m, bits in POINTS:
        for label, key in (("NCode", f"{which.name}-{m}"), ("NCode residual", f"{which.name}-residual-{m}")):
            if key in manifolds:
                found.append((label, f"({m}, {bits})", Coordinates(manifolds[key], bits)))
        widest = manifolds.get(f"{which.name}-residual-100")
        if widest is not None:
            found.append(("linear", f"{m * bits} bits", Components(widest, m * bits)))
    return found


def figure3(
    which: sets.PictureSet, pixels: np.ndarray, manifolds: Manifolds, features: Features | None, say: Progress
) -> tuple[list[Scores], dict[str, np.ndarray]]:
    """The rows of one set, and each codec's pictures by "name setting". pixels: uint8 (N, H, W, channels)."""
    rgb = sets.as_rgb(pixels)
    grey = which.channels == 1
    rows, pictures = [], {"original": rgb}

    def add(name: str, setting: str, coded: Coded) -> None:
        say(f"{which.title}: {name} {setting}")
        rows.append(judge(name, setting, rgb, coded, which.channels, features))
        pictures[f"{name} {setting}"] = coded.pictures

    for name, setting, codec in codecs_of(which, manifolds):
        add(name, setting, codec(rgb))
    first = POINTS[0][0] * POINTS[0][1]
    for times in (4, 1):  # at a quarter of NCode's compression, as the paper's figure; then with no more bits than it
        for name, make, settings in (
            ("JPEG", lambda q: jpeg(int(q), grey), JPEG_QUALITIES),
            ("JPEG 2000", lambda r: jpeg2000(r, grey), JPEG2000_RATIOS),
        ):
            chosen, coded = at_least_bits(make, settings, rgb, times * first)
            label = f"q{chosen:g}" if name == "JPEG" else f"{chosen:.3g}:1"
            if f"{name} {label}" not in pictures:
                add(name, label, coded)
    return rows, pictures


def figure4a(
    net: classifier.Classifier, pixels: np.ndarray, labels: np.ndarray, manifolds: Manifolds, say: Progress
) -> list[dict[str, Any]]:
    """Accuracy on CIFAR-10's test pictures from each codec, and the share of the clean accuracy kept."""
    clean = classifier.accuracy(net, pixels, labels)
    rows: list[dict[str, Any]] = [{"codec": "original", "setting": "", "bpp": 24.0, "accuracy": clean, "kept": 1.0}]
    codecs = [*codecs_of(sets.CIFAR10, manifolds)]
    codecs += [("JPEG", f"q{q}", partial(code_all, jpeg(q, False))) for q in (1, 5, 10)]
    codecs += [("JPEG 2000", f"{r}:1", partial(code_all, jpeg2000(r, False))) for r in (14, 24)]
    for name, setting, codec in codecs:
        say(f"classifier: {name} {setting}")
        coded = codec(pixels)
        share = classifier.accuracy(net, coded.pictures, labels)
        bpp = float(coded.bits.mean()) / (pixels.shape[1] * pixels.shape[2])
        rows.append({"codec": name, "setting": setting, "bpp": bpp, "accuracy": share, "kept": share / clean})
    return rows


# Figure 4b: bit errors.

CODES = ("folded", "natural", "gray")
"""Ways to write a level in b bits: the coder `fixed`'s (a sign and a distance), binary, and reflected binary."""


def to_code(levels: np.ndarray, bits: int, code: str) -> np.ndarray:
    """Levels 0 .. 2^bits - 1 as bit patterns."""
    if code == "natural":
        return levels
    if code == "gray":
        return levels ^ (levels >> 1)
    half = 1 << bits >> 1
    return np.where(levels < half, half | (half - 1 - levels), levels - half)


def from_code(patterns: np.ndarray, bits: int, code: str) -> np.ndarray:
    """The inverse of `to_code`."""
    everything = np.arange(1 << bits)
    back = np.empty_like(everything)
    back[to_code(everything, bits, code)] = everything
    return back[patterns]


def flip(patterns: np.ndarray, bits: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Each of the lowest `bits` bits flipped with probability `rate`."""
    for bit in range(bits):
        patterns = patterns ^ ((rng.random(patterns.shape) < rate).astype(patterns.dtype) << bit)
    return patterns


def figure4b(
    which: sets.PictureSet, pixels: np.ndarray, manifolds: Manifolds, say: Progress, seeds: int = 3
) -> list[dict[str, Any]]:
    """PSNR over bit error rate at (100, 5), for every way to write a level, and of JPEG at its lowest quality above."""
    rgb = sets.as_rgb(pixels)
    m, bits = POINTS[0]
    rows = []
    for label, key in (("NCode", f"{which.name}-{m}"), ("NCode residual", f"{which.name}-residual-{m}")):
        if key not in manifolds:
            continue
        codec = Coordinates(manifolds[key], bits)
        symbols = codec.symbols(rgb)
        low = (codec.tables.centres.astype(np.int64) - (1 << bits >> 1))[:, None]
        for code in CODES:
            say(f"{which.title}: bit errors, {label}, {code} code")
            patterns = to_code(symbols - low, bits, code)
            for rate in ERROR_RATES:
                found = []
                for seed in range(seeds if rate else 1):
                    rng = np.random.default_rng((seed, int(rate * 1e6)))
                    received = (from_code(flip(patterns, bits, rate, rng), bits, code) + low).astype(np.int16)
                    back = codec.pictures(received)
                    found += [psnr(a, b) for a, b in zip(rgb, back, strict=True)]
                rows.append({"codec": label, "code": code, "bit_error_rate": rate, "psnr_db": float(np.mean(found))})
    say(f"{which.title}: bit errors, JPEG")
    rows += _jpeg_errors(rgb, which.channels == 1, seeds)
    return rows


def _jpeg_errors(rgb: np.ndarray, grey: bool, seeds: int) -> list[dict[str, Any]]:
    """JPEG with bit errors in its scan only; what no longer decodes counts as mid-grey."""
    files = [encoded(picture, grey, "JPEG", quality=10, optimize=True) for picture in rgb]
    rows = []
    for rate in ERROR_RATES:
        found = []
        for seed in range(seeds if rate else 1):
            rng = np.random.default_rng((seed, int(rate * 1e6)))
            for data, picture in zip(files, rgb, strict=True):
                start = jpeg_scan(data)
                scan = np.frombuffer(data[start:-2], np.uint8)
                errors = np.packbits(rng.random(8 * len(scan)) < rate)
                found.append(psnr(picture, _decode_or_grey(data[:start] + (scan ^ errors).tobytes() + data[-2:], picture)))
        rows.append({"codec": "JPEG", "code": "q10", "bit_error_rate": rate, "psnr_db": float(np.mean(found))})
    return rows


def _decode_or_grey(data: bytes, like: np.ndarray) -> np.ndarray:
    try:
        back = decoded(data)
    except (OSError, ValueError, SyntaxError):
        back = np.zeros(0)
    return back if back.shape == like.shape else np.full_like(like, 128)


def strip(which: sets.PictureSet, pixels: np.ndarray, manifolds: Manifolds, count: int = 8) -> list[tuple[str, np.ndarray]]:
    """Figure 7: (title, uint8 (count, H, W, 3)) from the original down to the fewest bits."""
    rgb = sets.as_rgb(pixels)[:: max(1, len(pixels) // count)][:count]
    rows = [("original", rgb)]
    for label, middle in (("NCode", ""), ("NCode residual", "residual-")):
        for m, bits in STRIP:
            if (model := manifolds.get(f"{which.name}-{middle}{m}")) is not None:
                title = f"{label} ({m}, {bits})\n{m * bits / which.size**2:.3f} bit/pixel"
                rows.append((title, Coordinates(model, bits)(rgb).pictures))
    return rows


def as_dicts(rows: Sequence[Scores]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
