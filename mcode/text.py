"""Names of files, whose bytes may be no UTF-8: which a manifold may have, and how one from outside is shown."""

from __future__ import annotations

import os

_LONGEST_NAME = 200
"""Bytes: file systems take 255, and what is written beside a file has a longer name for a while."""


def is_text(name: str) -> bool:
    """Whether it has a spelling in UTF-8: names of files may have none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(text: str) -> bool:
    """Whether a file in any folder may be called so, with a suffix."""
    return (
        is_text(text)
        and 0 < len(text.encode()) <= _LONGEST_NAME
        and text.isprintable()
        and text[0] != "."
        and not set(text) & set("/\\")
    )


def shown_name(path: str | os.PathLike[str]) -> str:
    """The last part of path, with U+FFFD for bytes that are no UTF-8: for cards, titles and reports."""
    return os.fsencode(os.path.basename(os.fspath(path))).decode("utf-8", "replace")
