"""Files that are there whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name beside `path`, with this process's number and without its suffix, to be written to. What was written takes
    the place of `path`, also of a file there, when the block ends; where the block fails it is removed."""
    target = Path(path)
    part = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """content: text is written as UTF-8."""
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
