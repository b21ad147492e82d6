"""The pictures and videos of the paper's experiments, or what stands in for them here."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import InputError
from ...training.crops import read_picture
from ...training.squares import load_squares


@dataclass(frozen=True)
class PictureSet:
    """name: what manifolds are named after. stands_for: the paper's set. paper: what the paper gives for it."""

    name: str
    title: str
    stands_for: str
    test: str
    size: int
    channels: int


CIFAR10 = PictureSet(
    "cifar10", "CIFAR-10", "CIFAR-10 (here saved as JPEG by its uploader)", "small/cifar10_jpeg.tar.xz/test", 32, 3
)
FACES = PictureSet("faces64", "faces64", "CelebA", "small/faces64_test.tar", 64, 3)
OUTDOOR = PictureSet("outdoor64", "outdoor64", "MIT Places, outdoor (here grey)", "small/outdoor64_gray_test.tar", 64, 1)
SETS = (CIFAR10, FACES, OUTDOOR)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

KTH_TEST = ("kth/person01_handwaving_d1_uncomp.avi@0.5:1", "kth/person04_boxing_d1_uncomp.avi@0.5:1")
HEAD_TEST = "grid_s1/dev"


def load(data: Path, wanted: PictureSet, most: int | None = None) -> np.ndarray:
    """The set's test pictures, uint8 (N, size, size, channels); evenly spaced ones where `most` is fewer. InputError."""
    pixels = load_squares([data / wanted.test], size=wanted.size, channels=wanted.channels, every=1).pixels
    if most is None or len(pixels) <= most:
        return pixels
    return pixels[np.linspace(0, len(pixels) - 1, most).round().astype(int)]


def load_cifar10(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """part "train" or "test": uint8 (N, 32, 32, 3) and class numbers (N,), in the archive's order. Raises InputError."""
    path = data / "small/cifar10_jpeg.tar.xz"
    pixels, labels = [], []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isfile() and name.is_relative_to(part) and name.parent.name in CLASSES:
                    stored = archive.extractfile(member)
                    assert stored is not None  # as for every file
                    picture = read_picture(stored.read())
                    if picture is None:
                        raise InputError(f"{path}: {member.name} is no picture that can be read")
                    pixels.append(picture)
                    labels.append(CLASSES.index(name.parent.name))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an archive ({error})") from error
    if not pixels:
        raise InputError(f"{path}: no pictures in {part}/")
    return np.stack(pixels), np.array(labels)


def load_clips(data: Path, places: Sequence[str], size: tuple[int, int], channels: int) -> list[np.ndarray]:
    """Each video under `places`, uint8 (frames, H, W, channels)."""
    squares = load_squares([data / place for place in places], size=size, channels=channels, every=1)
    ends = np.cumsum(squares.clips)
    return [squares.pixels[end - count : end] for count, end in zip(squares.clips, ends, strict=True)]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """(..., channels) to (..., 3)."""
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


def check(data: Path) -> None:
    """Raises InputError where `data` is no folder of the sets."""
    if not data.is_dir():
        raise InputError(f"{data}: no such folder of data; it holds small/, kth/ and grid_s1/")
