"""One Huffman code over runs and values: residuals to bit fields, and back. Not the choice of codes (tables.py).

A token covers one symbol ("plain") or a run of zeros and the symbol that ends it ("runs", as in JPEG, ITU-T T.81
F.1.2.2): a Huffman code costs at least one bit a token, so where most symbols are zero a token must cover several.

    plain: token [number]                                 one per symbol; then `shift` raw bits of every symbol
    runs:  [SKIP number] token [number] [run_shift bits]  one per symbol that is not zero; REST where zeros end it all
    number: 5 bits n, n bits                              behind ESCAPE: the zigzag value; behind SKIP: run >> run_shift
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mcode.coders import bits

MAX_LENGTH = 12
"""Longest code in bits: the decoder looks every token up in one table of 4096 entries. What is rarer is escaped."""

MOST_BYTES = 16
"""A symbol takes at most a skip and a token, each with its number, and raw bits: 105 bits by tables.py's limits."""

REST, ESCAPE, SKIP, FIRST = 0, 1, 2, 3
"""Tokens. REST: zeros to the end (plain: one zero). ESCAPE: one symbol, its number follows. SKIP: zeros, their number
follows (runs only). From FIRST on the grid of (run, value), the value running fastest, from -max_value."""

_NUMBER_BITS = 5
_ALL = 1 << 40


class Events(NamedTuple):
    """What is to be sent, int32, by token: the token, its skip and number (-1 = none), the low bits of its run."""

    token: np.ndarray
    skip: np.ndarray
    number: np.ndarray
    run_low: np.ndarray


@dataclass(frozen=True)
class Code:
    """shift: low bits of each residual sent raw (plain only).

    max_run: 0 = plain; else tokens hold runs r with r >> run_shift < max_run. max_value: tokens hold values from
    -max_value to max_value. lengths: each token's code length in bits, 0 = there is no such token; together a complete
    prefix code.
    """

    shift: int
    run_shift: int
    max_run: int
    max_value: int
    lengths: bytes

    @property
    def token_count(self) -> int:
        return FIRST + max(self.max_run, 1) * (2 * self.max_value + 1)

    @cached_property
    def canonical(self) -> tuple[np.ndarray, np.ndarray]:
        """(codes, lengths), int32 by token: the canonical code, relabelled so that REST is all zeros.

        Bits behind the end of a slice read as zeros: so they mean "nothing more", and zero bytes there may be dropped.
        """
        lengths = np.frombuffer(self.lengths, np.uint8).astype(np.int32)
        present = np.flatnonzero(lengths)
        order = present[np.argsort(lengths[present], kind="stable")]
        width = 1 << (MAX_LENGTH - lengths[order])
        left = np.zeros(len(lengths), np.int32)  # codes, aligned left in MAX_LENGTH bits
        left[order] = np.cumsum(width) - width
        left ^= left[REST]  # swaps the two branches at some levels of the tree: still a prefix code
        return left >> (MAX_LENGTH - lengths), lengths

    @cached_property
    def lookup(self) -> list[tuple[int, int, int | None]]:
        """By the next MAX_LENGTH bits: (code length, symbols covered, value). SKIP covers 0; None: a number follows."""
        codes, lengths = self.canonical
        table: list[tuple[int, int, int | None]] = [(1, _ALL, 0)] * (1 << MAX_LENGTH)
        for token in np.flatnonzero(lengths).tolist():
            free = MAX_LENGTH - int(lengths[token])
            at = int(codes[token]) << free
            table[at : at + (1 << free)] = [(int(lengths[token]), *self._meaning(token))] * (1 << free)
        return table

    def _meaning(self, token: int) -> tuple[int, int | None]:
        if token == REST:
            return (_ALL if self.max_run else 1), 0
        if token < FIRST:
            return (1 if token == ESCAPE else 0), None
        run, value = divmod(token - FIRST, 2 * self.max_value + 1)
        return (run << self.run_shift) + 1, value - self.max_value

    def events(self, residual: np.ndarray, ends: Sequence[int] | np.ndarray) -> Events:
        """The tokens for int16 (L,): one sequence or several, each coded alone; `ends`: their ends, ascending to L."""
        value = residual.astype(np.int32)
        if self.max_run:
            return self._run_events(value, np.asarray(ends))
        value = (value + self._half) >> self.shift
        token = self._grid(0, value)
        token[value == 0] = REST
        number = np.where(token == ESCAPE, _zigzag(value), -1)
        return Events(token, np.full_like(token, -1), number, np.zeros_like(token))

    def _run_events(self, value: np.ndarray, ends: np.ndarray) -> Events:
        at = np.flatnonzero(value)
        value = value[at]
        stops = np.searchsorted(at, ends)  # how many of `at` lie before each end
        before = _after(-1, at)[:-1]
        starts, begins = _after(0, stops)[:-1], _after(0, ends)[:-1]
        before[starts[starts < stops]] = begins[starts < stops] - 1
        run = (at - before - 1).astype(np.int32)
        skip = run >> self.run_shift
        token = np.where(skip < self.max_run, self._grid(np.minimum(skip, self.max_run - 1), value), ESCAPE)
        indirect = (token == ESCAPE) & (skip > 0)  # no such token: skip the run, then code the value behind a run of 0
        token[indirect] = self._grid(0, value[indirect])
        skip[~indirect] = -1
        events = Events(token, skip, np.where(token == ESCAPE, _zigzag(value), -1), run & ((1 << self.run_shift) - 1))
        rests = stops[_after(-1, at)[stops] < ends - 1]  # none where the last symbol is not zero
        return Events(*(_insert(column, rests, rest) for column, rest in zip(events, (REST, -1, -1, 0), strict=True)))

    def _grid(self, run: np.ndarray | int, value: np.ndarray) -> np.ndarray:
        """The grid's tokens for (run, value), ESCAPE where there are none."""
        width = 2 * self.max_value + 1
        inside = np.abs(value) <= self.max_value
        token = np.where(inside, FIRST + self.max_value + run * width + value, ESCAPE)
        token[self.canonical[1][token] == 0] = ESCAPE
        return token

    def cost(self, events: Events) -> int:
        """Bits that the events take, the raw bits behind them aside."""
        lengths = self.canonical[1]
        numbers = np.concatenate([events.skip[events.skip >= 0], events.number[events.number >= 0]])
        total = int(lengths[events.token].sum()) + int(lengths[SKIP]) * int(np.count_nonzero(events.skip >= 0))
        total += self.run_shift * int(np.count_nonzero(events.token != REST))
        return total + _NUMBER_BITS * len(numbers) + int(_size(numbers).sum())

    def fields(self, events: Events, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes, lengths), int32: the bit fields for the events of int16 (L,), for bits.pack."""
        codes, lengths = self.canonical
        numbered = events.number >= 0
        low_bits = self.run_shift * (events.token != REST)
        early = np.where(numbered, 0, low_bits)  # the run's low bits follow the token, or its number where there is one
        columns = [(codes[events.token] << early | np.where(numbered, 0, events.run_low), lengths[events.token] + early)]
        if (skipped := events.skip >= 0).any():
            columns[:0] = [(np.full_like(events.skip, codes[SKIP]), skipped * lengths[SKIP]), _number(events.skip)]
        if numbered.any():
            number, size = _number(events.number)
            late = low_bits - early
            columns.append((number << late | np.where(numbered, events.run_low, 0), size + late))
        found = columns[0]
        if len(columns) > 1:
            all_codes, all_lengths = zip(*columns, strict=True)
            found = np.stack(all_codes, axis=1).reshape(-1), np.stack(all_lengths, axis=1).reshape(-1)
        if self.shift:
            low = ((residual.astype(np.int32) + self._half) & (2 * self._half - 1)) ^ self._half
            widths = np.full(len(low), self.shift, np.int32)
            found = np.concatenate([found[0], low]), np.concatenate([found[1], widths])
        return found

    def decode(self, windows: np.ndarray, start: int, count: int) -> tuple[np.ndarray, int]:
        """The next `count` residuals, int16, from bit `start` on, and the bit behind them.

        windows: of bits.windows. Never raises, whatever the bits; the work is bounded by `count` and by the bits.
        """
        found = array("h", bytes(2 * count))
        try:
            position = self._decode_tokens(windows.data, start, found)
        except IndexError:  # behind the end: zeros
            position = len(windows)
        values = np.frombuffer(found, np.int16)
        if not self.shift:
            return values, position
        low = bits.fields(windows, position + self.shift * np.arange(count), self.shift)
        restored = (values.astype(np.int32) << self.shift) + (low ^ self._half) - self._half
        return restored.astype(np.int16), position + self.shift * count

    def _decode_tokens(self, windows: memoryview, position: int, found: array[int]) -> int:
        lookup, run_shift, last = self.lookup, self.run_shift, len(found) - 1
        peek, low = 16 - MAX_LENGTH, 16 - run_shift
        at = -1
        while at < last:
            length, covered, value = lookup[windows[position] >> peek]
            position += length
            if value is None:
                size = windows[position] >> (16 - _NUMBER_BITS)
                position += _NUMBER_BITS
                number = (windows[position] << 16 | windows[position + 16]) >> (32 - size)
                position += size
                if not covered:
                    at += number << run_shift
                    continue
                value = (((number >> 1 ^ -(number & 1)) + 0x8000) & 0xFFFF) - 0x8000
            at += covered
            if at > last:
                break
            if run_shift:
                at += windows[position] >> low
                position += run_shift
                if at > last:
                    break
            found[at] = value
        return position

    @property
    def _half(self) -> int:
        return (1 << self.shift) >> 1


def _after(first: int, values: np.ndarray) -> np.ndarray:
    return np.concatenate([[first], values])


def _insert(values: np.ndarray, where: np.ndarray, value: int) -> np.ndarray:
    """np.insert, which takes longer than all the rest for the usual one at the end."""
    if len(where) == 1 and where[0] == len(values):
        return np.concatenate([values, np.array([value], values.dtype)])
    return np.insert(values, where, value) if len(where) else values


def _zigzag(value: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..."""
    return value << 1 ^ value >> 31


def _size(number: np.ndarray) -> np.ndarray:
    """Bits of numbers, 0 for 0."""
    return np.frexp(number)[1]


def _number(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields of numbers below 2^27: their size in 5 bits, then themselves; none for -1."""
    size = _size(np.maximum(number, 0))
    return np.where(number >= 0, size << size | number, 0), np.where(number >= 0, _NUMBER_BITS + size, 0)
