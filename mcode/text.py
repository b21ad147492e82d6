"""Names of files: which a manifold may have, and how one from outside is shown, whose bytes may be no UTF-8."""

from __future__ import annotations

import os

_LONGEST_NAME = 200
"""Bytes: file systems take 255, and what is written beside a file has a longer name for a while."""


def is_name(text: str) -> bool:
    """Whether a file in any folder may be called so, with a suffix."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= _LONGEST_NAME and text.isprintable() and text[0] != "." and not set(text) & set("/\\")


def shown_name(path: str | os.PathLike[str]) -> str:
    """The last part of path, with U+FFFD for bytes that are no UTF-8: for cards, titles and reports."""
    return os.fsencode(os.path.basename(os.fspath(path))).decode("utf-8", "replace")
