"""Files that are there whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

LONGEST_NAME = 255  # bytes, of the usual file systems


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name beside `path`, with this process's number and without its suffix, to be written to. What was written takes
    the place of `path`, also of a file there, whose permissions it keeps, when the block ends; where the block fails it is
    removed. Errors of the operating system name `path`."""
    target = Path(path)
    part = target.with_name(partial_name(f".{target.name}"))
    try:
        yield part
        if target.is_file():
            part.chmod(target.stat().st_mode & 0o777)
        os.replace(part, target)
    except OSError as error:
        if error.errno is None or str(error.filename) != str(part):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        part.unlink(missing_ok=True)


def refuse_existing(
    paths: Iterable[Path], force: bool, remedy: str = "add --force to replace it or choose another name"
) -> None:
    """Before the work that makes them: raises InputError for a folder, and without force for a file, where one is to stand."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; choose another name")
        if os.path.lexists(path) and not force:
            raise InputError(f"{path}: exists; {remedy}")


def refuse_unwritable(path: Path) -> None:
    """Before the work that makes it, folders included: raises InputError where no file can be made at `path`."""
    folder = next(one for one in path.absolute().parents if os.path.lexists(one))
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "a link to nothing"
        raise InputError(f"{path}: {folder} is {what}; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: not allowed to write into {folder}; choose another place")


def give_name(part: Path, target: Path, *, replace: bool) -> None:
    """Renames `part`. Without `replace` a file there is a FileExistsError, however late it came, on file systems that have hard
    links."""
    if not replace:
        try:
            os.link(part, target)
        except FileExistsError:
            raise
        except OSError:
            pass
        else:
            part.unlink()
            return
    os.replace(part, target)


@contextmanager
def whole_tensors(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`whole` for safetensors' save_file, which makes files private and has errors of its own: what is written is as readable
    as any new file, and a full disk is an OSError with its number and `path`."""
    from safetensors import SafetensorError

    try:
        with whole(path) as part:
            part.touch()
            mode = part.stat().st_mode & 0o777  # as the umask has it
            yield part
            part.chmod(mode)
    except (SafetensorError, OSError) as error:
        number = re.search(r"os error (\d+)", str(error))  # as safetensors tells a full disk
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def partial_name(name: str, suffix: str = "") -> str:
    """`name`, this process's number and `suffix`. A name too long for that is cut, and ends in its checksum instead."""
    end = f".partial-{os.getpid()}{suffix}"
    raw, most = os.fsencode(name), LONGEST_NAME - len(os.fsencode(end))
    if len(raw) > most:
        mark = f"{zlib.crc32(raw):08x}"
        name = raw[: most - len(mark)].decode("utf-8", "ignore") + mark
    return name + end


def remove_partials(path: Path) -> None:
    """Removes what killed processes have left of `whole(path)`, for a path that no other process writes to now."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.partial-"):
            left.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """content: text is written as UTF-8."""
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
