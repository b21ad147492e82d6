"""The files that a training learns from: which they are. Reads none of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import InputError
from . import loop

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mkv", ".avi", ".mpg", ".mov", ".webm"}


def find_footage(folder: Path, suffixes: Collection[str] = PICTURES | VIDEOS) -> list[Path]:
    """Files below a folder by their names' ends, sorted. Raises InputError where it is no folder or holds neither pictures nor
    videos."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures or videos")
    found = list(footage_below(folder))
    if not found:
        raise InputError(f"{folder}: no pictures or videos there")
    return [path for path in found if path.suffix.lower() in suffixes]


def footage_below(folder: Path) -> Iterator[Path]:
    """Pictures and videos by their names' ends, sorted by path, without the samples of trainings whose --out lies there."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES | VIDEOS and not _is_sample(path):
            yield path


def _is_sample(path: Path) -> bool:
    """Whether `loop.Log.picture` drew it: a training must not learn from what it made of its pictures."""
    drawn = path.parent.name == loop.SAMPLES and re.fullmatch(r"\d{8,}\.png", path.name) is not None
    return drawn and (path.parent.parent / loop.LOG).is_file()
