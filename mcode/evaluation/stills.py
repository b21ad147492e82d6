"""Still-picture codecs on a folder of images: bits per pixel, PSNR, SSIM and feature distances, as one table.

Bytes are counted as files are, headers included; for H.265 and AV1, which need a container to be a file, as raw packets.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from mcode.baseline import CODERS, BaselineDecoder, BaselineEncoder, check_size
from mcode.codec import Decoder, Encoder
from mcode.errors import InputError
from mcode.evaluation.metrics import psnr, ssim
from mcode.frame import Frame
from mcode.manifold import Manifold
from mcode.video import check_picture_size, open_image, picture_size, read_picture

if TYPE_CHECKING:
    from mcode.refine import Refiner

Code = Callable[[np.ndarray], tuple[int, np.ndarray]]
"""rgb uint8 (H, W, 3) -> (bytes of the coded picture, decoded rgb of the same shape)."""
Distances = Callable[[np.ndarray, np.ndarray], Mapping[str, float | None]]
"""Two pictures -> {"vgg", "vgg_relu3_4", "mobilenet"}, or None where too small: `features.FeatureDistances`, or a stand-in."""


@dataclass(frozen=True)
class StillCodec:
    """A picture codec at one setting. check(width, height): InputError for a size that it does not take, where it is known."""

    name: str
    setting: str
    code: Code
    check: Callable[[int, int], None] = lambda width, height: None


@dataclass(frozen=True)
class StillRow:
    """Means over the images: bits per pixel, PSNR in dB, SSIM of RGB (None in results that are older than it), feature
    distances (None where no weights were given, or a picture is too small for one)."""

    codec: str
    setting: str
    images: int
    bpp: float
    psnr_db: float
    ssim: float | None = None
    vgg: float | None = None
    vgg_relu3_4: float | None = None
    mobilenet: float | None = None

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def rd_table(
    images: Iterable[np.ndarray],
    codecs: Sequence[StillCodec],
    distances: Distances | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[StillRow]:
    """One row for each codec and setting, over all images (uint8 (H, W, 3), taken one at a time).

    progress(pictures_coded, total or None).
    """
    found: list[dict[str, list[float | None]]] = [{} for _ in codecs]
    count = done = 0
    total = len(images) * len(codecs) if isinstance(images, Sequence) else None
    for rgb in images:
        count += 1
        for codec, row in zip(codecs, found, strict=True):
            size, decoded = codec.code(rgb)
            bpp = size * 8 / (rgb.shape[0] * rgb.shape[1])
            scores: dict[str, float | None] = {"bpp": bpp, "psnr_db": psnr(rgb, decoded), "ssim": ssim(rgb, decoded)}
            if distances:
                scores |= distances(rgb, decoded)
            for key, score in scores.items():
                row.setdefault(key, []).append(score)
            done += 1
            if progress:
                progress(done, total)
    if not count:
        raise InputError("no images to measure")
    means: list[dict[str, Any]] = [{key: mean(values) for key, values in row.items()} for row in found]
    return [StillRow(codec.name, codec.setting, count, **row) for codec, row in zip(codecs, means, strict=True)]


def mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing: a mean over some of the pictures would be another number."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


class Pictures(Sequence[np.ndarray]):
    """Pictures as uint8 (H, W, 3), each read from its file when it is asked for. sizes: (height, width) of each.

    Reads all once, one at a time, so that one that cannot be read is told before anything is measured: InputError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.sizes = {path: (rgb.shape[0], rgb.shape[1]) for path in paths for rgb in [read_picture(path)]}
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        chosen = self._paths[index]
        return read_picture(chosen) if isinstance(chosen, Path) else [read_picture(path) for path in chosen]


def check_sizes(pictures: Pictures, codecs: Iterable[StillCodec]) -> None:
    """InputError for the first picture that one of the codecs does not take."""
    for codec in codecs:
        for path, (height, width) in pictures.sizes.items():
            try:
                codec.check(width, height)
            except InputError as error:
                raise InputError(f"{path}: {error}; take it out of the folder") from error


def read_images(folder: str | Path) -> Pictures:
    """Every picture in a folder (or the one file given), by name. InputError where there is none, or one is damaged."""
    return Pictures(image_paths(folder))


def image_paths(folder: str | Path) -> list[Path]:
    """The pictures in a folder (or the one file given), by name; other files are passed over.

    InputError where none is, and for one of too many pixels.
    """
    place = Path(folder)
    if not place.exists():
        raise InputError(f"{place}: no such file or folder")
    paths = []
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        if size := picture_size(path):
            check_picture_size(path, *size)
            paths.append(path)
    if not paths:
        raise InputError(f"{place}: no pictures in it")
    return paths


def standard_codecs() -> list[StillCodec]:
    """The codecs and settings of the published table."""
    return [
        *(jpeg(q) for q in (5, 10, 20, 35)),
        *(jpeg2000(ratio) for ratio in (167, 83, 50)),
        *(webp(q) for q in (3, 15, 40)),
        *(intra("h265", crf, "medium") for crf in (46, 40, 36, 33)),
        *(intra("av1", crf, "4") for crf in (60, 50, 40)),
    ]


REFINED = ", refined"
"""What the name of a codec ends in whose symbols are refined."""


def mcode_still(model: Manifold, quality: int, coder: str = "huffman", refine: Refiner | None = None) -> StillCodec:
    """MCode as a picture codec: one refresh keyframe, n = 1, counted as a whole sample of a file."""

    def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
        encoder = Encoder(model, rgb.shape[1], rgb.shape[0], n=1, quality=quality, coder=coder, refine=refine)
        packets = [*encoder.push(Frame(rgb, 0)), *encoder.flush()]
        (decoded,) = [frame for decoder in [Decoder(model)] for packet in packets for frame in decoder.push(packet)]
        return sum(len(packet.to_sample(1)) for packet in packets), decoded.rgb

    options = ([coder] if coder != "huffman" else []) + ([f"refined {refine.steps} by {refine.judge}"] if refine else [])
    return StillCodec(f"MCode {model.name}" + (REFINED if refine else ""), ", ".join([f"quality {quality}", *options]), code)


def jpeg(quality: int) -> StillCodec:
    """Baseline JPEG, 4:2:0, libjpeg's standard tables at `quality` 1..95."""
    return StillCodec("JPEG", f"q{quality}", lambda rgb: _by_pillow(rgb, "JPEG", quality=quality, subsampling="4:2:0"))


def jpeg2000(ratio: float) -> StillCodec:
    """JPEG 2000 (OpenJPEG), irreversible wavelet and colour transform, one layer at 24/ratio bits per pixel."""
    return StillCodec(
        "JPEG 2000", f"{ratio:g}:1", lambda rgb: _by_pillow(rgb, "JPEG2000", quality_layers=[ratio], irreversible=True)
    )


def webp(quality: int) -> StillCodec:
    """Lossy WebP (VP8 intra), 4:2:0, `quality` 0..100, slowest method."""
    return StillCodec("WebP", f"q{quality}", lambda rgb: _by_pillow(rgb, "WEBP", quality=quality, method=6))


def intra(codec: str, crf: float, preset: str) -> StillCodec:
    """One keyframe of a video codec: x265 in 4:4:4, SVT-AV1 in 4:2:0 (it has no other)."""
    pixel_format = "yuv420p" if codec == "av1" else "yuv444p"

    def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
        height, width = rgb.shape[:2]
        encoder = BaselineEncoder(codec, width, height, crf=crf, preset=preset, pixel_format=pixel_format)
        packets = encoder.push(Frame(rgb, 0)) + encoder.flush()
        decoder = BaselineDecoder(codec, width, height)
        frames = [frame for packet in packets for frame in decoder.push(packet)] + decoder.flush()
        return encoder.payload_bytes, frames[0].rgb

    kind = "4:2:0" if codec == "av1" else "4:4:4"
    return StillCodec(f"{CODERS[codec].label} intra {kind}", f"{preset} CRF {crf:g}", code, partial(check_size, codec))


def _by_pillow(rgb: np.ndarray, kind: str, **options: object) -> tuple[int, np.ndarray]:
    file = io.BytesIO()
    try:
        Image.fromarray(rgb).save(file, kind, **options)
    except (OSError, ValueError) as error:  # WebP has sides of 16,383 pixels at most, JPEG of 65,500
        raise InputError(f"{kind} cannot code a picture of {rgb.shape[1]}x{rgb.shape[0]}: {error}") from error
    with open_image(file) as image:
        return len(file.getvalue()), np.array(image.convert("RGB"))
