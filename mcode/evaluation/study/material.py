"""The folder of a study as raters see it: each method's pictures beside the originals."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mcode.errors import InputError
from mcode.text import is_text
from mcode.video import read_picture

ORIGINAL = "original"
"""The name of the folder with the uncoded pictures."""


@dataclass(frozen=True)
class Material:
    """The pictures of a study. methods: without the original. sizes: (width, height) of each picture by its name."""

    folder: Path
    methods: tuple[str, ...]
    pictures: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    files: dict[tuple[str, str], Path]

    def read(self, method: str, picture: str) -> np.ndarray:
        """uint8 (H, W, 3), as `video.read_picture` shows it; InputError where the file has changed since and is none now, or
        one of another size."""
        rgb = read_picture(self.files[method, picture])
        _check_size(self.files[method, picture], rgb, self.sizes[picture])
        return rgb


def open_material(folder: str | os.PathLike[str], *, progress: Callable[[int, int | None], None] | None = None) -> Material:
    """DIR/METHOD/PICTURE.*, one METHOD being `original`. Raises InputError where methods or pictures do not match.

    Every picture is read once, so that a damaged one is named before a rater begins. progress(pictures read, of how many).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `mcode study prepare` makes one")
    places = [place for place in sorted(folder.iterdir()) if place.is_dir() and place.name[:1] != "."]
    found = {_name(place): pictures_in(place) for place in places}
    if ORIGINAL not in found:
        raise InputError(f"{folder}: no folder named {ORIGINAL} in it; one folder for each method, and that one, are needed")
    originals = found.pop(ORIGINAL)
    if len(found) < 2:
        raise InputError(f"{folder}: {len(found)} method{'' if len(found) == 1 else 's'} beside {ORIGINAL}; two at least")
    if not originals:
        raise InputError(f"{folder / ORIGINAL}: no pictures in it")
    files = {(ORIGINAL, name): path for name, path in originals.items()}
    for method, pictures in found.items():
        if pictures.keys() != originals.keys():
            name = min(pictures.keys() ^ originals.keys())
            lacking, other = (ORIGINAL, method) if name in pictures else (method, ORIGINAL)
            raise InputError(f"{folder / lacking}: no picture named {name}, which {other} has; all methods need the same ones")
        files |= {(method, name): path for name, path in pictures.items()}
    sizes: dict[str, tuple[int, int]] = {}
    for done, ((_, name), path) in enumerate(files.items(), start=1):
        rgb = read_picture(path)
        _check_size(path, rgb, sizes.setdefault(name, (rgb.shape[1], rgb.shape[0])))
        if progress:
            progress(done, len(files))
    return Material(folder, tuple(found), tuple(originals), sizes, files)


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, in order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix.lower() not in Image.registered_extensions() or path.name[:1] == ".":
            continue
        _name(path)
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; keep one of them")
        found[path.stem] = path
    return found


def _name(path: Path) -> str:
    """The last part of a path, which is to be noted as UTF-8."""
    if not is_text(path.name):
        raise InputError(f"{path}: its name is not UTF-8; rename it")
    return path.name


def _check_size(path: Path, rgb: np.ndarray, wanted: tuple[int, int]) -> None:
    height, width, _ = rgb.shape
    if (width, height) != wanted:
        raise InputError(f"{path}: {width}x{height}, but the original is {wanted[0]}x{wanted[1]}")
