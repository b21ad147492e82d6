"""Code tables: what both ends of a stream share to code symbols. Fitted once to samples, then integers for ever.

Channels of similar spread form a group, for whole symbols and for deltas separately. Within a group, positions are told
apart by their activity, the sum of the sizes of the channels coded just before there: each band of activity has a code
of its own (code.py), so that quiet and busy places or frames do not share one. dahuffman builds the code
lengths; the canonical codes are made from the lengths, which are all that is stored.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from dahuffman import HuffmanCodec

from mcode.coders.code import ESCAPE, FIRST, MAX_LENGTH, REST, SKIP, Code
from mcode.errors import FormatError

TABLES_FORMAT = 1

_HEAD = struct.Struct("<BH")  # tables format, channels C; then C times int16 centre, C times uint8 bits; then the two modes:
_MODE = struct.Struct("<H")  # groups of this mode; then for each group:
_GROUP = struct.Struct("<HB")  # channels, bands; uint16 channels; then for each band:
_BAND = struct.Struct("<IBBBB")  # activity floor, shift, run_shift, max_run, max_value; uint8 lengths by token
_LIMITS = {"shift": 12, "run_shift": 9, "max_run": 16, "max_value": 63}
_MAX_BYTES = 1 << 22  # of tables before compression
_CONTEXT = 16  # channels that make up the activity

_FIT_SYMBOLS = 4_000_000  # more only cost time; with 1 M, Kodak cost 2-6 % more
_PRIOR_TOKENS = 64  # weight of the smooth distribution against the counts
_RAREST = 2.0**-13  # a token rarer than this is escaped: its code could not be as long as it should be
_BAND_QUANTILES = (0.3, 0.55, 0.75, 0.88, 0.96)  # floors to try
_TOKEN_BITS = 1.5  # what each token of a code must save on the samples to save on others (Akaike 1974: 1.44)


@dataclass(frozen=True)
class Group:
    """channels: coded together, in this order; the widest spread first. context: the channels coded just before them.

    Positions whose activity, the sum of |residual| over `context`, lies in floors[i] .. floors[i + 1] - 1 use codes[i];
    floors[0] is 0.
    """

    channels: tuple[int, ...]
    context: tuple[int, ...]
    floors: tuple[int, ...]
    codes: tuple[Code, ...]

    @cached_property
    def index(self) -> np.ndarray:
        """int64 (channels,)."""
        return np.array(self.channels, np.int64)

    def activity(self, residual: np.ndarray) -> np.ndarray:
        """int64 (..., P), from int16 (..., C, P) of which the context's channels are known."""
        return np.abs(residual[..., list(self.context), :].astype(np.int32)).sum(axis=-2)

    def bands(self, residual: np.ndarray) -> Iterator[tuple[Code, np.ndarray]]:
        """Each band's code and positions (never none), from int16 (C, P) of which the context's channels are known."""
        if len(self.codes) == 1:
            yield self.codes[0], np.arange(residual.shape[1])
            return
        band = np.searchsorted(self.floors, self.activity(residual), side="right") - 1
        for i, code in enumerate(self.codes):
            positions = np.flatnonzero(band == i)
            if len(positions):
                yield code, positions


@dataclass(frozen=True)
class CodeTables:
    """centres: int16 (C,), around which whole symbols lie. bits: uint8 (C,), 0..16, for the coder `fixed`.

    whole, delta: the groups of each mode, in coding order, the widest spread first; each channel is in exactly one.
    """

    centres: np.ndarray
    bits: np.ndarray
    whole: tuple[Group, ...]
    delta: tuple[Group, ...]

    @property
    def channels(self) -> int:
        return len(self.centres)

    @classmethod
    def fit(
        cls,
        whole: Sequence[np.ndarray],
        delta: Sequence[np.ndarray] = (),
        *,
        centre: int | None = None,
        bits: int | None = None,
    ) -> CodeTables:
        """Tables for symbols like these: int16 (C, h, w) each, sizes may differ. Few samples give smooth, wide tables.

        Without deltas theirs are those for whole symbols. centre, bits: of every channel, for a quantiser whose levels are
        known; measured on the samples if left out. Raises ValueError without whole samples or where C differs.
        """
        if not whole or len({len(sample) for sample in (*whole, *delta)}) != 1:
            raise ValueError("code tables need at least one sample of whole symbols, and all samples with the same channels")
        flat = [np.ascontiguousarray(sample, np.int16).reshape(len(sample), -1) for sample in whole]
        joined = np.concatenate(flat, axis=1)
        middle = joined.shape[1] // 2
        centres = np.partition(joined, middle, axis=1)[:, middle]
        if centre is not None:
            centres = np.full_like(centres, centre)
        residuals = [sample - centres[:, None] for sample in flat]
        deltas = [np.ascontiguousarray(sample, np.int16).reshape(len(sample), -1) for sample in delta]
        widths = _fixed_bits(np.concatenate(residuals, axis=1))
        if bits is not None:
            widths = np.full_like(widths, bits)
        groups = _fit_mode(_stacks(residuals))
        return cls(centres, widths, groups, _fit_mode(_stacks(deltas)) if deltas else groups)

    def to_bytes(self) -> bytes:
        """Compact and the same for the same tables; `from_bytes` reads it."""
        parts = [_HEAD.pack(TABLES_FORMAT, self.channels), self.centres.astype("<i2").tobytes(), self.bits.tobytes()]
        for groups in (self.whole, self.delta):
            parts.append(_MODE.pack(len(groups)))
            for g in groups:
                parts += [_GROUP.pack(len(g.channels), len(g.codes)), np.array(g.channels, "<u2").tobytes()]
                for floor, c in zip(g.floors, g.codes, strict=True):
                    parts += [_BAND.pack(floor, c.shift, c.run_shift, c.max_run, c.max_value), c.lengths]
        return zlib.compress(b"".join(parts), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> CodeTables:
        """Raises FormatError where `data` is not what `to_bytes` wrote. Memory is bounded whatever it is."""
        try:
            inflate = zlib.decompressobj()
            plain = inflate.decompress(data, _MAX_BYTES)
            if not inflate.eof or inflate.unused_data:
                raise FormatError("the code tables are cut short or too long")
            return cls._parse(plain)
        except (zlib.error, struct.error) as error:
            raise FormatError(f"the code tables are damaged: {error}") from None

    @classmethod
    def _parse(cls, plain: bytes) -> CodeTables:
        version, channels = _HEAD.unpack_from(plain)
        if version != TABLES_FORMAT:
            raise FormatError(f"the code tables are of format {version}; this version reads {TABLES_FORMAT}")
        reader = _Reader(plain, _HEAD.size)
        centres = np.frombuffer(reader.take(2 * channels), "<i2").astype(np.int16)
        bits = np.frombuffer(reader.take(channels), np.uint8).copy()
        modes = [_parse_mode(reader, channels) for _ in range(2)]
        if reader.at != len(plain) or not channels or bits.max() > 16:
            raise FormatError("the code tables are damaged")
        return cls(centres, bits, *modes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodeTables) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"CodeTables({self.channels} channels, {len(self.whole)} + {len(self.delta)} groups)"


def entropy_bits(samples: Sequence[np.ndarray]) -> float:
    """Bits per sample, ideally: each channel's symbols independent, with the frequencies they have in `samples`.

    samples: int16 (C, h, w) each. With few samples the figure is too low: the frequencies are fitted to them.
    """
    joined = np.concatenate([np.asarray(sample).reshape(len(sample), -1) for sample in samples], axis=1)
    total = 0.0
    for channel in joined:
        counts = np.unique(channel, return_counts=True)[1]
        total += float(counts @ -np.log2(counts / len(channel)))
    return total / len(samples)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise FormatError("the code tables are cut short")
        self.at += size
        return self.data[self.at - size : self.at]


def _parse_mode(reader: _Reader, channels: int) -> tuple[Group, ...]:
    groups: list[Group] = []
    order: list[int] = []
    for _ in range(*_MODE.unpack(reader.take(_MODE.size))):
        size, bands = _GROUP.unpack(reader.take(_GROUP.size))
        members = np.frombuffer(reader.take(2 * size), "<u2").tolist()
        floors, codes = zip(*(_parse_band(reader) for _ in range(bands)), strict=True) if bands else ((), ())
        if not size or not bands or floors[0] != 0 or any(a >= b for a, b in pairwise(floors)):
            raise FormatError("the code tables are damaged")
        groups.append(Group(tuple(members), tuple(order[-_CONTEXT:]), floors, codes))
        order += members
    if sorted(order) != list(range(channels)):
        raise FormatError("the code tables are damaged")
    return tuple(groups)


def _parse_band(reader: _Reader) -> tuple[int, Code]:
    floor, *shape = _BAND.unpack(reader.take(_BAND.size))
    if any(value > limit for value, limit in zip(shape, _LIMITS.values(), strict=True)):
        raise FormatError("the code tables are damaged")
    shift, run_shift, max_run, max_value = shape
    code = Code(shift, run_shift, max_run, max_value, b"")
    code = replace(code, lengths=reader.take(code.token_count))
    lengths = np.frombuffer(code.lengths, np.uint8).astype(np.int64)
    needed = lengths[[REST, ESCAPE, SKIP]] if code.max_run else lengths[[REST, ESCAPE]]
    # A complete code: every bit pattern means something.
    complete = lengths.max() <= MAX_LENGTH and np.sum((1 << MAX_LENGTH >> lengths)[lengths > 0]) == 1 << MAX_LENGTH
    if not complete or not needed.all() or (code.max_run and code.shift) or (not code.max_run and lengths[SKIP]):
        raise FormatError("the code tables are damaged")
    return floor, code


def _fixed_bits(residuals: np.ndarray) -> np.ndarray:
    """uint8 (C,): the fewest bits whose clipping adds less than a tenth to the error of rounding, 1/12 square step."""
    bits = np.full(len(residuals), 16, np.uint8)
    for b in range(15, -1, -1):
        low, high = (-(1 << b >> 1), (1 << b >> 1) - 1) if b else (0, 0)
        clipped = residuals - np.clip(residuals, low, high).astype(np.float64)
        bits[np.mean(clipped**2, axis=1) < 1 / 120] = b
    return bits


def _stacks(samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(N, C, P) per size P, of at most _FIT_SYMBOLS symbols or so, evenly spaced."""
    step = -(-sum(sample.size for sample in samples) // _FIT_SYMBOLS)
    sizes: dict[int, list[np.ndarray]] = {}
    for sample in samples[::step]:
        sizes.setdefault(sample.shape[1], []).append(sample)
    return [np.stack(same) for same in sizes.values()]


class _Fitted(NamedTuple):
    """A code and what samples cost in it, in bits, estimated from those it was fitted to."""

    cost: float
    code: Code


def _fit_mode(stacks: Sequence[np.ndarray]) -> tuple[Group, ...]:
    """Groups of channels within half an octave of spread, then neighbours merged where that saves bits."""
    count = sum(len(stack) * stack.shape[2] for stack in stacks)
    spread = (sum(np.abs(stack.astype(np.int32)).sum(axis=(0, 2)) for stack in stacks) + 0.25) / (count + 1)
    order = np.argsort(-spread, kind="stable")
    octave = np.floor(2 * np.log2(spread[order]))
    edges = [0, *(np.flatnonzero(np.diff(octave)) + 1).tolist(), len(order)]

    def fit(start: int, stop: int) -> _Fitted:
        members = [stack[:, order[start:stop]] for stack in stacks]
        ends = np.cumsum([member[0].size for member in members for _ in member])
        return _fit_code(np.concatenate([member.reshape(-1) for member in members]), ends)

    _merge([fit(*edge) for edge in pairwise(edges)], edges, fit)
    return tuple(_fit_group(order[a:b], order[max(0, a - _CONTEXT) : a], stacks) for a, b in pairwise(edges))


def _merge(parts: list[_Fitted], edges: list[int], fit: Callable[[int, int], _Fitted]) -> list[_Fitted]:
    """Neighbours joined while that is cheaper; part i is fit(edges[i], edges[i + 1])."""
    at = 0
    while at + 1 < len(parts):
        joined = fit(edges[at], edges[at + 2])
        if joined.cost <= parts[at].cost + parts[at + 1].cost:
            parts[at : at + 2] = [joined]
            del edges[at + 1]
            at = max(at - 1, 0)
        else:
            at += 1
    return parts


def _fit_group(channels: np.ndarray, context: np.ndarray, stacks: Sequence[np.ndarray]) -> Group:
    """The group, with as many bands of activity as save bits."""
    group = Group(tuple(channels.tolist()), tuple(context.tolist()), (0,), ())
    activities = [group.activity(stack) for stack in stacks]
    everywhere = np.concatenate([activity.reshape(-1) for activity in activities])
    tried = np.quantile(everywhere, _BAND_QUANTILES).astype(np.int64) + 1
    floors = [0, *np.unique(tried[tried <= everywhere.max()]).tolist(), int(everywhere.max()) + 1]
    members = [stack[:, channels] for stack in stacks]

    def fit(low: int, high: int) -> _Fitted:
        parts, ends, at = [], [], 0
        for stack, activity in zip(members, activities, strict=True):
            inside = (activity >= low) & (activity < high)
            parts.append(stack[np.broadcast_to(inside[:, None], stack.shape)])
            sizes = inside.sum(axis=1) * len(channels)
            ends.append(at + np.cumsum(sizes[sizes > 0]))
            at += int(sizes.sum())
        return _fit_code(np.concatenate(parts), np.concatenate(ends))

    codes = _merge([fit(*edge) for edge in pairwise(floors)], floors, fit)
    return replace(group, floors=tuple(floors[:-1]), codes=tuple(found.code for found in codes))


def _fit_code(residual: np.ndarray, ends: np.ndarray) -> _Fitted:
    """The cheapest of the plain code and runs of several shifts, for int16 (L,) in sequences as for Code.events."""
    size = np.abs(residual.astype(np.int32))
    nonzero = size[size > 0]
    zero = (len(size) - len(nonzero) + 0.5) / (len(size) + 1)  # probability of a zero
    excess = (float(np.sum(nonzero - 1)) + 0.5) / (len(nonzero) + 1)  # mean |value| - 1 of the others
    shift = min(12, max(0, int(np.log2(excess / 4 + 1e-9))))
    shapes = [Code(shift, 0, 0, min(63, 4 + int(8 * excess / (1 << shift))), b"")]
    if zero > 0.25:
        longest = min(9, max(0, int(np.log2(zero / (1 - zero)))))  # the longest runs are as rare as they are cheap
        top = min(63, 3 + int(8 * excess))
        shapes += [Code(0, k, 16, top, b"") for k in range(max(0, longest - 1), min(longest + 1, 9) + 1)]
    fitted = []
    for shape in shapes:
        code = _fit_lengths(shape, residual, ends, _prior(shape, zero, excess))
        events = code.events(residual, ends)
        cost = code.cost(events) + code.shift * len(residual) + _TOKEN_BITS * len(np.unique(events.token))
        fitted.append(_Fitted(cost, code))
    return min(fitted, key=lambda found: found.cost)


def _fit_lengths(shape: Code, residual: np.ndarray, ends: np.ndarray, prior: np.ndarray) -> Code:
    """`shape` with code lengths for its tokens' frequencies, smoothed by `prior`, without those too rare for a code."""
    every = replace(shape, lengths=b"\1" * shape.token_count)
    expected = _count(every, residual, ends) + _PRIOR_TOKENS * prior
    kept = expected >= _RAREST * expected.sum()
    kept[[REST, ESCAPE]] = True
    kept[SKIP] = bool(shape.max_run)
    alphabet = replace(shape, lengths=kept.astype(np.uint8).tobytes())
    counts = _count(alphabet, residual, ends) + np.maximum(_PRIOR_TOKENS * prior, 0.25)
    return replace(shape, lengths=code_lengths(np.where(kept, counts, 0)).tobytes())


def _count(code: Code, residual: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How often each token occurs."""
    events = code.events(residual, ends)
    counts = np.bincount(events.token, minlength=code.token_count)
    counts[SKIP] += np.count_nonzero(events.skip >= 0)
    return counts


def _prior(shape: Code, zero: float, excess: float) -> np.ndarray:
    """Probabilities by token where zeros have probability `zero`, and |value| - 1 else is geometric, mean `excess`."""
    value = np.abs(np.arange(-shape.max_value, shape.max_value + 1))
    excess /= 1 << shape.shift
    ratio = excess / (1 + excess)
    values = np.where(value > 0, (1 - ratio) / 2 * ratio ** np.maximum(value - 1, 0), 0)
    probabilities = np.zeros(shape.token_count)
    if shape.max_run:
        ends = zero ** (1 << shape.run_shift)
        runs = (1 - ends) * ends ** np.arange(shape.max_run)
        probabilities[FIRST:] = (runs[:, None] * values).reshape(-1)
    else:
        probabilities[FIRST:] = (1 - zero) * values
        probabilities[REST] = zero
    return probabilities


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """uint8 by token: Huffman code lengths of at most MAX_LENGTH bits, 0 where the count is 0. Two must not be.

    Rare tokens are counted as often as it takes to keep to the limit.
    """
    present = np.flatnonzero(counts).tolist()
    floor = float(counts.sum()) * 2.0 ** -(MAX_LENGTH + 2)
    while True:
        codec = HuffmanCodec.from_frequencies({t: max(float(counts[t]), floor) for t in present}, eof=present[0])
        lengths = np.zeros(len(counts), np.uint8)
        for token, (length, _) in codec.get_code_table().items():
            lengths[token] = length
        if lengths.max() <= MAX_LENGTH:
            return lengths
        floor *= 1.25
