"""Texts that any output holds, of what comes from outside: a file's name may be bytes that are no UTF-8."""

from __future__ import annotations

import os


def shown_name(path: str | os.PathLike[str]) -> str:
    """The last part of path, with U+FFFD for bytes that are no UTF-8: for cards, titles and reports."""
    return os.fsencode(os.path.basename(os.fspath(path))).decode("utf-8", "replace")
