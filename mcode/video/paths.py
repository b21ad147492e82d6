"""The paths that users name: what cannot be read or written is told in one line before anything is opened."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mcode.errors import InputError

StrPath = str | os.PathLike[str]


def check_input(path: StrPath, what: str = "a video") -> None:
    """Raises InputError, in one line, for a path that is no file that can be read again and again. Opens nothing."""
    file = Path(path)
    if not os.fspath(path):
        raise InputError(f"no input given: its name is empty, name {what}")
    if file.is_dir():
        raise InputError(f"{path} is a folder, not {what}")
    if not file.exists():
        raise InputError(f"{path}: no such file")
    if file.is_fifo():
        raise InputError(f"{path} is a pipe; save it to a file first")
    if not file.is_file():
        raise InputError(f"{path} is a device, not {what}; save what it gives to a file first")


def check_output(path: StrPath, force: bool) -> None:
    """Raises InputError for a path that no file can be written to, or where one is (without force). Opens nothing."""
    if not os.fspath(path):
        raise InputError("no output given: its name is empty, name a file")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    if path.is_file() and not force:
        raise InputError(f"{path} exists: use --force to replace it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent}: no such folder to write to")


def output_error(path: StrPath, error: OSError) -> InputError:
    """What to raise where writing to `path` has failed."""
    if error.errno == errno.EEXIST:
        return InputError(f"{path} exists: use --force to replace it")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"no space left on {Path(path).absolute().parent} for {Path(path).name}")
    return InputError(f"cannot write {path}: {error.strerror}")
