"""The coder `huffman`: one bit for the mode, then the tokens of each group in turn. The default; dense, not robust.

A bit error garbles the rest of its slice at worst, never more: the number of symbols is known, not coded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcode.coders import bits
from mcode.coders.code import MOST_BYTES, Code, Events
from mcode.coders.tables import CodeTables, Group


class Decoded(NamedTuple):
    """symbols: int16 (C, P). needs_previous: it is a delta, and there was nothing to add it to but the centres."""

    symbols: np.ndarray
    needs_previous: bool


def encode(whole: np.ndarray, delta: np.ndarray | None, tables: CodeTables) -> bytes:
    """The shorter of the whole symbols and the delta, both int16 (C, P); whole where delta is None, or where they tie.

    Zero bytes at the end are left out: a slice in which nothing happens is empty. Raises ValueError for other shapes.
    """
    symbols = [np.asarray(array, np.int16) for array in (whole, delta) if array is not None]
    if any(array.ndim != 2 or array.shape != (tables.channels, symbols[0].shape[1]) for array in symbols):
        raise ValueError(f"expected ({tables.channels}, P) symbols, not {[array.shape for array in symbols]}")
    symbols[0] = symbols[0] - tables.centres[:, None]
    coded = [_events(residual, groups) for residual, groups in zip(symbols, (tables.whole, tables.delta), strict=False)]
    mode = int(np.argmin([sum(part.cost for part in parts) for parts in coded]))
    fields = [part.code.fields(part.events, part.residual) for part in coded[mode]]
    codes = np.concatenate([np.array([mode], np.int32), *(codes for codes, _ in fields)])
    lengths = np.concatenate([np.ones(1, np.int32), *(lengths for _, lengths in fields)])
    return bits.pack(codes, lengths).rstrip(b"\0")


class _Part(NamedTuple):
    """One code's share of a slice."""

    code: Code
    residual: np.ndarray
    events: Events
    cost: int


def _events(residual: np.ndarray, groups: tuple[Group, ...]) -> list[_Part]:
    parts = []
    for group in groups:
        members = residual[group.index]
        for code, positions in group.bands(residual):
            part = members[:, positions].reshape(-1)
            events = code.events(part, [part.size])
            parts.append(_Part(code, part, events, code.cost(events) + code.shift * part.size))
    return parts


def decode(data: bytes, previous: np.ndarray | None, count: int, tables: CodeTables) -> Decoded:
    """The whole symbols, int16 (C, count), of one slice; previous: its symbols in the previous keyframe, if known.

    Never raises on `data`. What is missing at its end reads as the previous symbols or the centres.
    """
    windows = bits.windows(data[: 1 + count * tables.channels * MOST_BYTES])
    is_delta = bool(windows[0] >> 15)
    residual = np.zeros((tables.channels, count), np.int16)
    position = 1
    for group in tables.delta if is_delta else tables.whole:
        for code, positions in group.bands(residual):
            part, position = code.decode(windows, position, len(group.channels) * len(positions))
            residual[group.index[:, None], positions] = part.reshape(len(group.channels), len(positions))
    base = previous if is_delta and previous is not None else tables.centres[:, None]
    return Decoded(base + residual, is_delta and previous is None)
