"""Whole pictures at one size, from folders, archives and videos: what fixed-size manifolds learn from."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ..errors import InputError
from ..video import FrameReader, centre_crop, resize
from .crops import read_picture
from .footage import PICTURES, VIDEOS, footage_below


@dataclass(frozen=True)
class Squares:
    """pixels: uint8 (N, size, size, channels), RGB or luma. clips: how many of them each still (1) or video has. folders:
    the name of the folder each of those lay in, where it is known: its class, in sets that are sorted so."""

    pixels: np.ndarray
    clips: tuple[int, ...]
    folders: tuple[str, ...] = ()

    def batch(self, size: int, seed: int, step: int, *, mirror: bool) -> np.ndarray:
        """uint8 (size, ...), drawn with replacement; depends on (seed, step) alone. mirror: half of them flipped."""
        rng = np.random.default_rng((seed, step))
        drawn = self.pixels[rng.integers(len(self.pixels), size=size)]
        flips = rng.random(size) < 0.5
        if mirror:
            drawn[flips] = drawn[flips, :, ::-1]
        return drawn


def load_squares(
    places: list[Path], *, size: int | tuple[int, int], channels: int, every: int, without: tuple[str, ...] = ()
) -> Squares:
    """The centres of all pictures and of every `every`-th video frame under `places`, sorted by path.

    size: of the square, or (width, height). A place is a folder, a video or picture, a .tar archive (compressed or not)
    of pictures, or a folder inside an archive: "faces.tar/train". "clip.avi@0:0.5" is a video's first half.
    without: names of files in folders to pass over, as damaged ones are. Raises InputError where a place is missing or holds
    nothing that can be read.
    """
    squares: list[np.ndarray] = []
    clips: list[int] = []
    folders: list[str] = []
    width, height = (size, size) if isinstance(size, int) else size
    for place in places:
        before = len(clips)
        for folder, clip in _clips(place, (width, height), every, without):
            folders.append(folder)
            clips.append(len(clip))
            squares += [_channels(rgb, channels) for rgb in clip]
        if len(clips) == before:
            raise InputError(f"{place}: no pictures or videos there that can be read")
    return Squares(np.stack(squares), tuple(clips), tuple(folders))


def _clips(place: Path, size: tuple[int, int], every: int, without: tuple[str, ...]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name of the folder, and frames, of each picture and video."""
    archive = next((p for p in (place, *place.parents) if ".tar" in p.suffixes and p.is_file()), None)
    if archive is not None:
        for folder, data in _archived(archive, place.relative_to(archive).as_posix()):
            picture = read_picture(data)
            if picture is not None:
                yield folder, [_cut(picture, size)]
        return
    name, _, part = place.name.partition("@")
    since, until = _share(place, part)
    if "@" in place.name:
        place = place.with_name(name)
    if place.is_file():
        paths = [place]
    elif place.is_dir() and not part:
        paths = [path for path in footage_below(place) if path.name not in without]
    else:
        raise InputError(f"{place}: no such folder of pictures or videos")
    for path in paths:
        if path.suffix.lower() in PICTURES:
            picture = read_picture(path)
            if picture is not None:
                yield path.parent.name, [_cut(picture, size)]
        elif path.suffix.lower() in VIDEOS:
            frames = []
            with suppress(InputError) if path is not place else nullcontext():  # damaged: passed over among others
                frames += [frame.rgb for frame in FrameReader(path, size=size, crop_to=size)]
            clip = frames[round(since * len(frames)) : round(until * len(frames)) : every]
            if clip:
                yield path.parent.name, clip


def _share(place: Path, text: str) -> tuple[float, float]:
    """From "0:0.5" the part of a video, as shares of its frames; all of it from ""."""
    if not text:
        return 0.0, 1.0
    try:
        since, until = (float(number) for number in text.split(":"))
    except ValueError:
        since = until = 0.0
    if not 0 <= since < until <= 1:
        raise InputError(f"{place}: a part of a video is @FROM:UNTIL with both from 0 to 1, as @0:0.5")
    return since, until


def _archived(archive: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    """Each picture's folder and bytes, in the archive's order: compressed ones cannot be read in another."""
    try:
        with tarfile.open(archive) as file:
            for member in file:
                name = PurePosixPath(member.name)
                if member.isfile() and name.suffix.lower() in PICTURES and name.is_relative_to(inside):
                    stored = file.extractfile(member)
                    assert stored is not None  # as for every file
                    yield name.parent.name, stored.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{archive}: cannot be read as an archive ({error})") from error


def _cut(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize(centre_crop(rgb, size), *size)


def _channels(rgb: np.ndarray, channels: int) -> np.ndarray:
    return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
