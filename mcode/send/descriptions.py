"""The session descriptions that a sender writes: of the whole, and of the baseline's lane for players that know nothing of
MCode."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mcode.errors import InputError
from mcode.rtp import sdp
from mcode.send.config import SendConfig
from mcode.whole import write_whole


def check_descriptions(config: SendConfig) -> None:
    """Raises InputError where one cannot be written, or would take the place of something else."""
    for path in _paths(config):
        _check(path)


def write_descriptions(config: SendConfig, session: sdp.Session) -> None:
    """Raises InputError. session: its first lane is MCode's."""
    alone = replace(session, media=tuple(replace(each, fec_payload_type=None) for each in session.media[1:]))
    try:
        for path, text in zip(_paths(config), (session, alone), strict=False):
            _write(path, str(text))
    except OSError as error:
        raise InputError(f"--sdp {path}: cannot write it ({error.strerror})") from error


def _paths(config: SendConfig) -> list[Path]:
    """Of the whole session, and of the baseline's lane alone, for players that know nothing of MCode."""
    if config.sdp is None:
        return []
    whole = Path(config.sdp)
    return [whole] if config.baseline == "none" else [whole, whole.with_suffix(f".{config.baseline}{whole.suffix}")]


def _check(path: Path) -> None:
    folder = path.absolute().parent
    if path.is_dir():
        reason = "it is a folder"
    elif path.is_file() and not _begins_with(path, b"v=0"):
        reason = "the file there is no description; choose another name"
    elif not folder.is_dir():
        reason = "no such folder"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "not allowed"
    else:
        return
    raise InputError(f"--sdp {path}: cannot write it ({reason})")


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return True  # not to be read: what else is wrong with it is told apart


def _write(path: Path, text: str) -> None:
    """Whole or not at all, where it is a file, no pipe or device, in a folder that may be written to."""
    if path.exists() and (not path.is_file() or not os.access(path.resolve().parent, os.W_OK)):
        path.write_bytes(text.encode())
    else:
        write_whole(path.resolve(), text)
