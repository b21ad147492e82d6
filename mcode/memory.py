"""Memory that a process keeps between frames, for programs that make pictures all the time; and what tells that it ran out.

glibc gives freed memory back to the kernel as soon as enough of it is in one piece, and asks for it again, page by page, at the
next frame: thousands of page faults, a tenth of a frame's time and more at 1080p. And it keeps a heap for each thread.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
"""Parameters of mallopt (malloc.h)."""
_KEPT, _ASKED = 1 << 30, 64 << 20
"""Bytes that may lie unused, and that are asked for at once."""

_SAID = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""Environment variables by which a user chooses how memory is given out."""


_TORCH_SAYS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an error is that memory did not suffice, of the processor or a GPU: torch has RuntimeErrors for it."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _TORCH_SAYS)
    return isinstance(error, MemoryError)


def keep_freed_memory() -> bool:
    """Keeps up to 1 GiB that was freed, in one heap for all threads; returns whether it does. Before threads are started.

    For this process alone, with glibc alone, and not where the environment says what malloc is to do.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SAID):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = (_ARENA_MAX, 1), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _ASKED), (_MMAP_THRESHOLD, _KEPT)
    refused = [name for name, value in settings if not mallopt(ctypes.c_int(name), ctypes.c_int(value))]
    return not refused
