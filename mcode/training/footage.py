"""The files that a training learns from: which they are, and whether they are still those it began with. Reads none of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from . import loop

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mkv", ".avi", ".mpg", ".mov", ".webm"}
DATA = "data"
"""Entry of checkpoints: how many files the training learns from, and a hash of their names and sizes."""


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


def data_entry(data: Path, folders: Iterable[str], going_on: Path | None, without: Collection[str] = ()) -> dict[str, str]:
    """DATA of a training's checkpoints. folders: relative to `data`, as its configuration names them; without: names of files.

    going_on: the checkpoint from which steps are yet to be made, or None. Raises InputError where it has another entry, as the
    training would not end as if uninterrupted then; checkpoints of before have none.
    """
    files = [entry for number, folder in enumerate(folders) for entry in _entries(number, data / folder, without)]
    now = f"{len(files)} files, {hashlib.sha256(b'/'.join(sorted(files))).hexdigest()[:16]}"
    before = now if going_on is None else loop.read_metadata(going_on).get(DATA, now)
    if before != now and files:  # of a folder without any, reading tells more
        count = before.partition(",")[0]
        given = f"{going_on}: began with other pictures and videos ({count}) than {data} has now ({len(files)})"
        raise InputError(f"{given}; put them back, or choose another --out")
    return {DATA: now}


def _entries(number: int, place: Path, without: Collection[str]) -> Iterator[bytes]:
    """Of each file of a place, which may lie in an archive or be a part of a video (`squares.load_squares`)."""
    video = place.with_name(place.name.partition("@")[0]) if "@" in place.name else place
    single = next((path for path in (video, *place.parents) if path.is_file()), None)
    for path in footage_below(place) if single is None else [single]:
        if path.name not in without and path.is_file():
            name = path.relative_to(place).as_posix() if single is None else path.name
            yield b"%d:%s:%d" % (number, os.fsencode(name), path.stat().st_size)
