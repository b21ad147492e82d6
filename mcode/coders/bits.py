"""Bit fields to bytes and back, most significant bit first, in whole arrays. Knows nothing of codes or symbols."""

from __future__ import annotations

import numpy as np

PADDING_BYTES = 16
"""Zero bytes readable behind the data: more than the longest token with what belongs to it."""


def pack(codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """Fields of `lengths` bits (0..31), one behind the other; the last byte is filled up with zeros.

    codes, lengths: int32, each code below 2^length.
    """
    if not lengths.all():
        codes, lengths = codes[lengths > 0], lengths[lengths > 0]
    if not codes.size:
        return b""
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    word = starts >> 5  # a field lies in this 32-bit word and at most the next
    wide = codes.astype(np.uint64) << (64 - lengths - (starts & 31)).astype(np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    together = np.bitwise_or.reduceat(wide, first)
    words = np.zeros(int(word[-1]) + 2, np.uint64)
    words[word[first]] |= together >> np.uint64(32)
    words[word[first] + 1] |= together & np.uint64(0xFFFFFFFF)
    return words.astype(">u4").tobytes()[: (int(ends[-1]) + 7) // 8]


def windows(data: bytes) -> np.ndarray:
    """uint16 (8 * (len(data) + 16),): the 16 bits that begin at each bit of `data`, zeros behind its end."""
    padded = np.frombuffer(data + bytes(PADDING_BYTES + 2), np.uint8).astype(np.uint32)
    three = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    found = np.empty((len(three), 8), np.uint16)
    for bit in range(8):  # one after the other: all at once take twice the memory
        found[:, bit] = three >> (8 - bit)
    return found.reshape(-1)


def fields(windows: np.ndarray, starts: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    """int32: the fields of `lengths` bits (0..16) that begin at bits `starts`; zeros where they lie behind the end."""
    inside = starts < len(windows)
    found = np.where(inside, windows[np.where(inside, starts, 0)], 0).astype(np.int32)
    return found >> (16 - np.asarray(lengths))
