"""The coder `range`: symbols under a hyperprior, by asymmetric numeral systems. The densest; not robust.

What a symbol costs depends on the quality, on a small hyper-latent z sent with the slice or on the previous keyframe,
and on the symbols coded before it. All of it is integers: weights, activations, and the frequency tables looked up. The
sums are computed in float32, whose integers below 2^24 are exact in any order, so every machine comes to the same
tables (Ballé, Johnston, Minnen 2019). The training's double is mcode.nets.hyper; entropy coding is constriction's
(Bamler 2022).

A slice, in the order of decoding:

    1 symbol           0: whole symbols, 1: the same, the hyper-latent follows, 2 and more: a delta to the previous keyframe,
                       2 the stillest, the last one that in which most moves
    Z x hz x wz        hyper-latent (after 1), channel by channel, hz = ceil(h / 4), wz = ceil(w / 4)
    for each pass      its symbols, sorted by table, then by channel, then by position; then what escaped, 16 bits each

The alphabet of a table begins with the likeliest value, which is also what is read behind the end of a slice: one that was
cut goes on with predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import constriction
import numpy as np

from mcode.coders import slices as slicing
from mcode.errors import FormatError

AnsCoder = constriction.stream.stack.AnsCoder
Categorical, Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform

SHIFT, HEAD_SHIFT = 6, 8
"""Sums are divided by 2^6 for an activation, by 2^8 for a scale, a mean or a hyper-latent; halves round upwards."""
TOP = 255
"""Activations are 0..TOP."""
Z_MIN, Z_MAX = -8, 7
Z_VALUES = Z_MAX - Z_MIN + 1
Z_FACTOR = 16
LOG_TABLE = np.rint(16 * np.log2(1 + np.arange(4096))).astype(np.int16)
"""A symbol's size as the network sees it."""
PRECISION = 24
"""Frequencies of a table sum to 2^24."""
WHOLE, WITH_Z, DELTA = 0, 1, 2
"""Kinds of slice, as its first symbol tells. A delta is coded around the previous keyframe's symbols and knows them; DELTA + i
is one of level i, see `level_of`."""
MOST_LEVELS = 16
FRACTIONS = 3
"""Means are in quarters: tables for a mean at 0, 1/4 and 1/2 of a step; 3/4 is 1/4 mirrored."""
Z_RATIO = 4
"""Positions of the map, along a side, to one of the hyper-latent."""
BOTH_WAYS = 512
"""Whole slices of fewer positions are tried with and without the hyper-latent; larger ones always have it."""
_DENSE = 8
"""Symbols a position that are not zero, from which on a large slice is not coded in ways that are clearly worse."""

_SIZES = ("hidden", "wide", "latents", "scales", "signed", "mean_limit")
_BUSIEST = 4.0
"""Changed symbols a position, from which a delta is of the last level; each level below begins at half of that."""
_EXACT = 1 << 24
_ESCAPE_BITS = 16
_PIECE = 500_000
"""Multiplications of a product that OpenBLAS (2^18 for each thread) does not part among threads."""
_SHARP = 180
"""Where the first entry has more than this many 256ths, constriction's lazy models, which look from the start on, read a symbol
in 3 to 5 ns and the others, which halve intervals, in 12; below it is the other way round. Both read the same."""


class Pass(NamedTuple):
    """Channels start..stop-1 at all positions, or at those where (x + y) % 2 is `parity`."""

    start: int
    stop: int
    parity: int | None = None


@dataclass(frozen=True)
class HyperConfig:
    """passes: in coding order; together they hold each channel and position once, a pass of parity 1 right after that of
    parity 0. hidden, wide: channels of the networks. latents: channels of z. scales: number of scale indices.
    signed: the first channels, whose signs the network sees. levels: kinds of delta, by how much moves."""

    channels: int
    qualities: int
    passes: tuple[Pass, ...]
    hidden: int = 48
    wide: int = 32
    latents: int = 6
    scales: int = 48
    signed: int = 4
    mean_limit: int = 1023
    levels: int = 1

    @property
    def kinds(self) -> int:
        return DELTA + self.levels

    def signed_of(self, p: Pass) -> int:
        """How many of the pass's channels the network sees with their sign."""
        return min(p.stop, self.signed) - min(p.start, self.signed)

    def to_dict(self) -> dict[str, Any]:
        """What the manifold's config holds; channels and qualities stand there already."""
        sizes = {name: getattr(self, name) for name in _SIZES}
        levels = {"levels": self.levels} if self.levels > 1 else {}
        return {"format": 1, "passes": [list(p) for p in self.passes]} | sizes | levels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], channels: int, qualities: int) -> HyperConfig:
        """Raises FormatError where the values are not those of a hyperprior for so many channels."""
        if values.get("format") != 1:
            raise FormatError(f"the hyperprior is of format {values.get('format')}; this version reads 1")
        try:
            passes = tuple(Pass(*p) for p in values["passes"])
            sizes = {k: values[k] for k in _SIZES} | {"levels": values.get("levels", 1)}
            for number in (*sizes.values(), *(n for p in passes for n in p[:2])):
                if type(number) is not int:
                    raise TypeError(f"{number!r:.40} is no whole number")
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the hyperprior's config is damaged ({error})") from None
        at, parity, last = 0, None, (0, 0)
        for p in passes:
            at, good = (p.stop, p.start == at) if p.parity != 1 else (at, parity == 0 and (p.start, p.stop) == last)
            if not good or p.stop <= p.start or p.parity not in (None, 0, 1) or (parity == 0 and p.parity != 1):
                raise FormatError("the hyperprior's passes are not in order")
            parity, last = p.parity, (p.start, p.stop)
        if at != channels or parity == 0 or min(sizes.values()) < 1 or max(sizes.values()) > 4096 or sizes["signed"] > channels:
            raise FormatError(f"the hyperprior does not fit {channels} channels")
        if sizes["levels"] > MOST_LEVELS:
            raise FormatError(f"the hyperprior has {sizes['levels']} levels; there are at most {MOST_LEVELS}")
        return cls(channels, qualities, passes, **sizes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights (int8; out, in, k, k) and offsets (int32; one row for each quality or one for all)."""
        c, q, wide, hidden, z = self.channels, self.qualities, self.wide, self.hidden, self.latents
        found: dict[str, tuple[int, ...]] = {
            "a1": (wide, c + self.signed, 1, 1),
            "a1_bias": (q, wide),
            "a2": (wide, 4 * wide, 1, 1),
            "a2_bias": (1, wide),
            "a3": (z, 4 * wide, 1, 1),
            "a3_bias": (1, z),
            "s1": (wide, z, 3, 3),
            "s1_bias": (1, wide),
            "s2": (Z_RATIO**2 * hidden, wide, 1, 1),
            "before": (hidden, c + self.signed, 1, 1),
            "start": (2 * self.kinds * q, hidden),
        }
        for i, p in enumerate(self.passes):
            n = p.stop - p.start
            found |= {f"inner.{i}": (hidden, hidden, 1, 1), f"inner_bias.{i}": (1, hidden)}
            found |= {f"head.{i}": (2 * n, hidden, 1, 1), f"head_bias.{i}": (2 * q, 2 * n)}
            if i < len(self.passes) - 1:
                found[f"context.{i}"] = (hidden, n + self.signed_of(p), 3, 3)
        return found


class Decoded(NamedTuple):
    """symbols: int16 (C, P). needs_previous: it is a delta, and the previous keyframe is not known. damaged: bytes were
    changed, cut off or added, or `previous` was not what the encoder had: a stack that was read right ends empty. Damage to
    the last few bytes and to escaped symbols goes unseen."""

    symbols: np.ndarray
    needs_previous: bool
    damaged: bool


class Estimate(NamedTuple):
    """Bits of a keyframe by the tables' frequencies: all of them, and those of the hyper-latent among them."""

    bits: float
    z_bits: float


@dataclass(frozen=True, eq=False)
class RangeModel:
    """The hyperprior of a manifold: weights as HyperConfig.shapes has them, and frequency tables.

    sizes: uint16 (scales * FRACTIONS,), entries of each table: 2 L + 2 for the values 0, -1, 1 .. -L, L and the escape.
    tables: uint32, all tables end to end. z_tables: uint32 (qualities, Z, Z_VALUES), by value from Z_MIN. Frequencies are
    1 or more and sum to 2^PRECISION in each table. Raises FormatError for anything else, and where a sum could reach 2^24.
    """

    config: HyperConfig
    weights: Mapping[str, np.ndarray]
    sizes: np.ndarray
    tables: np.ndarray
    z_tables: np.ndarray

    def __post_init__(self) -> None:
        for name, shape in self.config.shapes().items():
            found = self.weights.get(name)
            kind = np.int32 if "bias" in name or name == "start" else np.int8
            if found is None or found.shape != shape or found.dtype != kind:
                raise FormatError(f"the hyperprior's {name} is missing or not {np.dtype(kind)} {shape}")
        if self.sizes.dtype.kind not in "iu":
            raise FormatError("the hyperprior's tables are damaged")
        sizes = self.sizes.astype(np.int64)
        good = sizes.shape == (self.config.scales * FRACTIONS,) and self.tables.dtype == self.z_tables.dtype == np.uint32
        good = good and bool((sizes % 2 == 0).all() and sizes.min() >= 4 and sizes.sum() == self.tables.size)
        good = good and self.z_tables.shape == (self.config.qualities, self.config.latents, Z_VALUES)
        if not good or not self.tables.all() or not self.z_tables.all():
            raise FormatError("the hyperprior's tables are damaged")
        sums = np.add.reduceat(self.tables.astype(np.uint64), self._starts)
        if (sums != 1 << PRECISION).any() or (self.z_tables.sum(axis=2, dtype=np.uint64) != 1 << PRECISION).any():
            raise FormatError("the hyperprior's tables do not sum to 2^24")
        if self._largest_sum() >= _EXACT:
            raise FormatError("the hyperprior's weights are too large: sums could reach 2^24 and be rounded")

    def __repr__(self) -> str:
        count = sum(w.size for w in self.weights.values())
        return f"RangeModel({self.config.channels} channels, {count:,} weights, {len(self.sizes)} tables)"

    @classmethod
    def from_tensors(
        cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], channels: int, qualities: int
    ) -> RangeModel:
        """From a manifold's config["hyper"] and its tensors `hyper.*`. Raises FormatError."""
        own = {name.removeprefix("hyper."): array for name, array in tensors.items() if name.startswith("hyper.")}
        try:
            sizes, tables, z_tables = (own.pop(f"tables.{name}") for name in ("sizes", "symbols", "z"))
        except KeyError as error:
            raise FormatError(f"the hyperprior has no {error}") from None
        return cls(HyperConfig.from_dict(config, channels, qualities), own, sizes, tables, z_tables)

    def to_tensors(self) -> dict[str, np.ndarray]:
        found = {f"hyper.{name}": array for name, array in self.weights.items()}
        return found | {
            "hyper.tables.sizes": self.sizes,
            "hyper.tables.symbols": self.tables,
            "hyper.tables.z": self.z_tables,
        }

    def count(
        self,
        symbols: np.ndarray,
        previous: np.ndarray | None,
        quality: int,
        joined: bool,
        counts: np.ndarray,
        z_counts: np.ndarray,
    ) -> None:
        """Adds to `counts` and `z_counts` (int64, as tables and z_tables) what int16 (C, h, w) would use of them, as a delta
        where there is a previous keyframe."""
        size = symbols.shape[1], symbols.shape[2]
        flat, from_z, base = symbols.reshape(len(symbols), -1), None, None
        if previous is None:
            z = _analysis(symbols, quality, self)
            from_z = _synthesis(z, size, self)
            rows = z.reshape(len(z), -1).astype(np.int64) - Z_MIN
            np.add.at(z_counts[quality - 1], (np.arange(len(z))[:, None], rows), 1)
        else:
            base = previous.reshape(len(previous), -1)
        level = 0 if base is None else level_of(flat, base, self.config.levels)
        walk = _Walk(self, quality, size, np.arange(size[0] * size[1]), joined, from_z, base, level)
        for i, p in enumerate(self.config.passes):
            plan = walk.plan(i)
            wanted = np.ascontiguousarray(flat[p.start : p.stop, plan.columns])
            index = np.minimum(_indices(wanted, plan), self._last[plan.table])
            counts += np.bincount(self._starts[plan.table] + index, minlength=len(counts))
            walk.tell(i, wanted, plan.columns)

    def _largest_sum(self) -> float:
        """The largest magnitude that any sum can have, whatever the symbols."""
        w = {name: np.abs(array.astype(np.int64)) for name, array in self.weights.items()}

        def reach(name: str, largest: int) -> np.ndarray:
            return largest * w[name].reshape(len(w[name]), -1).sum(axis=1)

        def offset(name: str) -> np.ndarray:
            return w[name].max(axis=0)

        feature = int(LOG_TABLE.max())
        found = [reach("a1", feature) + offset("a1_bias"), reach("a2", TOP) + offset("a2_bias")]
        found += [reach("a3", TOP) + offset("a3_bias"), reach("s1", Z_FACTOR * -Z_MIN) + offset("s1_bias")]
        total = offset("start") + np.maximum(reach("s2", TOP).reshape(-1, Z_RATIO**2).max(axis=1), reach("before", feature))
        for i in range(len(self.config.passes)):
            if f"context.{i}" in w:
                total = total + reach(f"context.{i}", feature)
            found += [reach(f"inner.{i}", TOP) + offset(f"inner_bias.{i}")]
            found += [reach(f"head.{i}", TOP) + offset(f"head_bias.{i}")]
        return float(max(map(np.max, [*found, total]))) + (1 << HEAD_SHIFT)

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where each table begins in `tables`."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        return ends - self.sizes

    @cached_property
    def _last(self) -> np.ndarray:
        """int32 by table: its last entry, the escape."""
        return self.sizes.astype(np.int32) - 1

    @cached_property
    def _alphabets(self) -> list[_Alphabet]:
        return [_alphabet(table) for table in np.split(self.tables, self._starts[1:])]

    @cached_property
    def _z_alphabets(self) -> list[list[tuple[int, _Alphabet]]]:
        """By quality - 1 and channel: the likeliest value, counted from Z_MIN, with which the alphabet begins, and that."""
        return [[(int(row.argmax()), _alphabet(np.roll(row, -row.argmax()))) for row in rows] for rows in self.z_tables]

    @cached_property
    def _floats(self) -> dict[str, np.ndarray]:
        """Weights as float32 (out, in), of 3x3 as (out, 9 in), the position fastest; `start` as columns (rows, out, 1).

        All are divided by what their sums are divided by, a power of two, which rounds nothing; offsets stand in the last
        column, for an input of ones, with the half that rounds. One row of them is taken, see _heads and _first.
        """
        found = {}
        for name, array in self.weights.items():
            unit = np.float32(2.0 ** -(HEAD_SHIFT if name.startswith(("head", "a3")) else SHIFT))
            if name == "start":
                found[name] = array.astype(np.float32)[..., None] * unit + np.float32(0.5)
            elif array.ndim == 4:
                found[name] = array.reshape(len(array), -1).astype(np.float32) * unit
                if array.shape[2] == 3:
                    found[f"{name}.centre"] = np.ascontiguousarray(found[name][:, 4::9])
        for name in ("a2", "a3", "s1", *(f"inner.{i}" for i in range(len(self.config.passes)))):
            found[name] = self._with_offset(found[name], name, 0)
        return found

    def _with_offset(self, weight: np.ndarray, name: str, row: int) -> np.ndarray:
        """weight (out, in) with its offset, a row of `name`'s, as the last column."""
        bias_name = name.replace(".", "_bias.") if "." in name else f"{name}_bias"
        unit = np.float32(2.0 ** -(HEAD_SHIFT if name.startswith(("head", "a3")) else SHIFT))
        offset = self.weights[bias_name][row].astype(np.float32) * unit + np.float32(0.5)
        return np.concatenate([weight, offset[:, None]], axis=1)

    @cached_property
    def _kind(self) -> _Alphabet:
        """Of a slice's first symbol: 5, 5 and 6 of 16 where all deltas are of one level, else 2, 2, and 12 for all levels."""
        levels = self.config.levels
        if levels == 1:
            return _alphabet(np.array([5 << 20, 5 << 20, 6 << 20]))
        each, more = divmod(12 << 20, levels)
        return _alphabet(np.array([2 << 20, 2 << 20, each + more, *[each] * (levels - 1)]))

    @cached_property
    def _rows(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    def _of_row(self, name: str, row: int) -> np.ndarray:
        """A weight whose offset depends on the quality, with that of `row`."""
        if (name, row) not in self._rows:
            self._rows[name, row] = self._with_offset(self._floats[name], name, row)
        return self._rows[name, row]


def encode(symbols: np.ndarray, previous: np.ndarray | None, slices: int, quality: int, model: RangeModel) -> list[bytes]:
    """The slices of int16 (C, h, w), in order. previous: the last keyframe's symbols, or None for a refresh. quality: 1 to
    the model's qualities.

    A slice decodes alone: what it tells of the hyper-latent it tells itself, and neighbours in other slices are unknown.
    Up to three zero bytes at its end are left out. Raises ValueError for another number of channels or another quality.
    """
    return [_code(told) for told in _choose(symbols, previous, slices, quality, model)]


def estimate(symbols: np.ndarray, previous: np.ndarray | None, slices: int, quality: int, model: RangeModel) -> Estimate:
    """What `encode` should take by the tables' frequencies, before whole words and bytes."""
    chosen = _choose(symbols, previous, slices, quality, model)
    z_bits = [_price(told[1 : 1 + model.config.latents]) for told in chosen if told[0].places[0] == WITH_Z]
    return Estimate(sum(map(_price, chosen)) / 1024, sum(z_bits) / 1024)


def decode(
    data: bytes,
    previous: np.ndarray | None,
    slice_index: int,
    slices: int,
    size: tuple[int, int],
    quality: int,
    model: RangeModel,
) -> Decoded:
    """The symbols of a slice, int16 (C, P), of a map of `size` (h, w). previous: the slice's symbols in the previous
    keyframe, (C, P), where they are what the encoder had.

    Never raises on `data`: what is damaged gives symbols of the right number, what is missing reads as predicted. The
    work is bounded by the size alone. A delta without `previous` cannot be read: the symbols are then those predicted
    from nothing.
    """
    _check(model, model.config.channels, quality)
    h, w = size
    coder = _stack(data)
    kind = int(coder.decode(model._kind.model, 1)[0])
    needs_previous = kind >= DELTA and previous is None
    if needs_previous:
        coder, kind = AnsCoder(), WHOLE  # an empty stack: what is predicted from nothing
    from_z = None
    if kind == WITH_Z:
        from_z = _synthesis(_read_latent(coder, quality, size, model), size, model)
    positions = slicing.positions(slice_index, slices, h, w)
    base = previous if kind >= DELTA else None
    walk = _Walk(model, quality, size, positions, slices == 1, from_z, base, max(0, kind - DELTA))
    symbols = _read(coder, walk)
    return Decoded(symbols, needs_previous, not coder.is_empty())


def _stack(data: bytes) -> Any:
    """What `_code` wrote, or any other bytes, as a stack to read from."""
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)[::-1]
    if len(words) and not words[-1]:
        words = np.append(words[:-1], np.uint32(1))  # constriction takes no zero there, nor does it write one
    return AnsCoder(np.ascontiguousarray(words)) if len(words) else AnsCoder()


def _read_latent(coder: Any, quality: int, size: tuple[int, int], model: RangeModel) -> np.ndarray:
    """z, float32 (Z, hz, wz) of integers, of a map of `size`."""
    hz, wz = _z_size(*size)
    channels = [coder.decode(a.model, hz * wz) + first for first, a in model._z_alphabets[quality - 1]]
    return (np.stack(channels) % Z_VALUES + Z_MIN).astype(np.float32).reshape(-1, hz, wz)


def _read(coder: Any, walk: _Walk) -> np.ndarray:
    """The passes of a slice, int16 (C, P), from a stack: `_tell` turned round."""
    model = walk.model
    symbols = np.zeros((model.config.channels, walk.count), np.int16)
    for i, p in enumerate(model.config.passes):
        plan = walk.plan(i)
        used = plan.used
        parts = [coder.decode(model._alphabets[table].reader, count) for table, count in used]
        ordered = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        value = np.empty(ordered.size, np.int16)
        value[plan.order] = unzigzag(ordered)
        np.negative(value, out=value, where=plan.mirrored)
        value += plan.mean.astype(np.int16, copy=False)  # sums of 16 bits wrap
        escapes = ordered == _repeated(model._last, used)
        if escapes.any():
            places = np.sort(plan.order[escapes])
            value[places] = coder.decode(_RAW.model, len(places)).astype(np.uint16).view(np.int16)
        part = value.reshape(p.stop - p.start, -1)
        symbols[p.start : p.stop, plan.columns] = part
        walk.tell(i, part, plan.columns)
    return symbols


class _Alphabet(NamedTuple):
    """A model of constriction's, the same for reading, and what each symbol costs, int64 in 1024ths of a bit."""

    model: Any
    reader: Any
    costs: np.ndarray


class _Told(NamedTuple):
    """Symbols to be coded, int32, by their places in one alphabet."""

    places: np.ndarray
    alphabet: _Alphabet


class _Plan(NamedTuple):
    """A pass, flat over (channels, columns): each symbol's table, its whole mean and whether it is mirrored; the symbols
    in coding order; (table, symbols) of the tables in use, ascending; the columns of the slice which the pass covers."""

    table: np.ndarray
    mean: np.ndarray
    mirrored: np.ndarray
    order: np.ndarray
    used: list[tuple[int, int]]
    columns: np.ndarray | slice


class _Walk:
    """The passes of one slice, one after the other: what is predicted from what is known so far."""

    def __init__(
        self,
        model: RangeModel,
        quality: int,
        size: tuple[int, int],
        positions: np.ndarray,
        joined: bool,
        from_z: np.ndarray | None,
        previous: np.ndarray | None,
        level: int = 0,
    ) -> None:
        """from_z: of _synthesis, for the whole map; previous: int16 (C, P), of the slice; at most one of the two. level: of a
        delta."""
        self.model, self.size, self.joined, self.previous = model, size, joined, previous
        kind = DELTA + level if previous is not None else WHOLE if from_z is None else WITH_Z
        self.row = 2 * (quality - 1) + (kind >= DELTA)
        self.count = len(positions)
        w = model._floats
        start = w["start"][model.config.kinds * (2 * (quality - 1) + joined) + kind]
        if previous is not None:
            self.total = _product(w["before"], _features(previous, model.config.signed)) + start
        elif from_z is not None:
            self.total = from_z.reshape(len(start), -1)[:, positions] + start
        else:
            self.total = np.repeat(start, self.count, axis=1)
        y, x = np.divmod(positions, size[1])
        self.odd = (x + y) % 2 == 1
        self.hidden = np.ones((len(start) + 1, self.count), np.float32)

    def plan(self, i: int) -> _Plan:
        config, w = self.model.config, self.model._floats
        p = config.passes[i]
        columns: np.ndarray | slice = slice(None)
        total, hidden = self.total, self.hidden
        if p.parity is not None:
            columns = np.flatnonzero(self.odd == bool(p.parity))
            total, hidden = total[:, columns], hidden[:, : len(columns)]
        own = hidden[:-1]
        _activate(total, out=own)
        _activate(_product(w[f"inner.{i}"], hidden), out=own)
        x = _product(self.model._of_row(f"head.{i}", self.row), hidden)
        half = p.stop - p.start
        quarters = np.floor(x[half:], out=x[half:])
        base = None if self.previous is None else self.previous[p.start : p.stop, columns]
        return _planned(self.model, x[:half], quarters, base, columns)

    def tell(self, i: int, part: np.ndarray, columns: np.ndarray | slice) -> None:
        """The symbols of pass i, int16 (channels, columns), for the passes behind it."""
        w, p = self.model._floats, self.model.config.passes[i]
        name = f"context.{i}"
        if name not in w:
            return
        if self.previous is not None:
            part = part.astype(np.int32) - self.previous[p.start : p.stop, columns]
        found = _features(part, self.model.config.signed_of(p))
        if not self.joined:
            self.total[:, columns] += _product(w[f"{name}.centre"], found)
            return
        every = found
        if not isinstance(columns, slice):
            every = np.zeros((len(found), self.count), np.float32)
            every[:, columns] = found
        _add_convolved(w[name], every.reshape(-1, *self.size), self.total)


def _planned(
    model: RangeModel, scale: np.ndarray, quarters: np.ndarray, base: np.ndarray | None, columns: np.ndarray | slice
) -> _Plan:
    """The plan of a pass. scale, not rounded or clipped, and quarters, whole, not clipped: float32 (channels, columns), which
    this may change. base: previous symbols of the same shape."""
    config = model.config
    small = np.uint8 if config.scales * FRACTIONS <= 256 else np.uint16
    limit = np.float32(config.mean_limit)
    np.clip(scale, np.float32(0), np.float32(config.scales - 1), out=scale)
    table: np.ndarray = scale.astype(small)  # cut off, which is rounding downwards here
    table *= FRACTIONS
    np.clip(quarters, -limit, limit, out=quarters)
    mean = quarters.astype(np.int16)
    mean += 1
    fraction = mean & 3  # one more than the fraction
    mean >>= 2
    mirrored = fraction == 0
    table += np.abs(fraction - 1).astype(small)
    if base is not None:
        mean = mean + base if _narrow(base) else mean.astype(np.int32) + base
    table = table.reshape(-1)
    return _Plan(table, mean.reshape(-1), mirrored.reshape(-1), *_order(table, config.scales * FRACTIONS), columns)


def _order(table: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Places by table, then as they stand, and (table, symbols) of the tables in use, of `count`.

    Table and place in one number and sorted: beyond the processor's cache numpy's stable argsort takes four times as long.
    """
    bits = table.size.bit_length()
    kind = np.dtype(np.uint32 if bits + count.bit_length() <= 32 else np.uint64).type
    key = table.astype(kind)
    key <<= kind(bits)
    key |= np.arange(table.size, dtype=kind)
    key.sort()
    ends = np.searchsorted(key, np.arange(count + 1, dtype=kind) << kind(bits))
    sizes = np.diff(ends)
    used = np.flatnonzero(sizes)
    key &= kind((1 << bits) - 1)
    return key.astype(np.intp), list(zip(used.tolist(), sizes[used].tolist(), strict=True))


def _choose(
    symbols: np.ndarray, previous: np.ndarray | None, slices: int, quality: int, model: RangeModel
) -> list[list[_Told]]:
    """What to tell of each slice, in the order of decoding: of the kinds tried, the cheapest."""
    _check(model, len(symbols), quality)
    size = symbols.shape[1], symbols.shape[2]
    before = slicing.split(previous, slices) if previous is not None else [None] * slices
    latent: tuple[list[_Told], np.ndarray] | None = None
    chosen = []
    for index, (part, base) in enumerate(zip(slicing.split(symbols, slices), before, strict=True)):
        tried = []
        for kind in _kinds(part, base):
            told: list[_Told] = []
            from_z, known, level = None, None, 0
            if kind == WITH_Z:
                latent = latent or _latent(symbols, quality, model)
                told, from_z = latent
            elif kind == DELTA and base is not None:
                known, level = base, level_of(part, base, model.config.levels)
            first = _Told(np.array([kind + level], np.int32), model._kind)
            positions = slicing.positions(index, slices, *size)
            walk = _Walk(model, quality, size, positions, slices == 1, from_z, known, level)
            tried.append([first, *told, *_tell(part, walk)])
        chosen.append(min(tried, key=_price) if len(tried) > 1 else tried[0])
    return chosen


def _kinds(part: np.ndarray, base: np.ndarray | None) -> tuple[int, ...]:
    """Which kinds of slice to try, for their cost: what is clearly worse is not. Of large and dense ones, which take the time,
    sizes tell (docs/log.md). Of a flat picture they do not: many symbols alike are cheap."""
    whole = (WITH_Z, WHOLE) if part.shape[1] < BOTH_WAYS else (WITH_Z,)
    if base is None:
        return whole
    size, change = _size_of(part), _size_of(part.astype(np.int32) - base)
    if part.shape[1] < BOTH_WAYS or np.count_nonzero(part) < _DENSE * part.shape[1]:
        return whole if 7 * change > 8 * size else (DELTA, *whole)
    return (DELTA,) if change < 0.9 * size else whole if change > 0.95 * size else (DELTA, *whole)


def level_of(symbols: np.ndarray, previous: np.ndarray, levels: int) -> int:
    """How much moves between two keyframes, 0 to levels - 1, by the changed symbols a position. Both (C, P)."""
    density = np.count_nonzero(symbols != previous) / max(1, symbols.shape[-1])
    below = math.ceil(math.log2(_BUSIEST / density)) if density else levels
    return min(max(levels - 1 - max(below, 0), 0), levels - 1)


def _size_of(values: np.ndarray) -> int:
    """A guess at what values cost: the sum of their logarithms."""
    return int(np.take(LOG_TABLE, np.abs(values.astype(np.int32)), mode="clip").sum(dtype=np.int64))


def _latent(symbols: np.ndarray, quality: int, model: RangeModel) -> tuple[list[_Told], np.ndarray]:
    """The hyper-latent to be told, and what it adds to the sums."""
    z = _analysis(symbols, quality, model)
    return _tell_latent(z, quality, model), _synthesis(z, (symbols.shape[1], symbols.shape[2]), model)


def _tell_latent(z: np.ndarray, quality: int, model: RangeModel) -> list[_Told]:
    rows = z.reshape(len(z), -1).astype(np.int32) - Z_MIN
    alphabets = model._z_alphabets[quality - 1]
    return [_Told((row - first) % Z_VALUES, alphabet) for row, (first, alphabet) in zip(rows, alphabets, strict=True)]


def _tell(part: np.ndarray, walk: _Walk) -> list[_Told]:
    """The passes of a slice, int16 (C, P), to be told."""
    model, told = walk.model, []
    for i, p in enumerate(model.config.passes):
        plan = walk.plan(i)
        wanted = np.ascontiguousarray(part[p.start : p.stop, plan.columns])
        index = _indices(wanted, plan)
        ordered, used, at = index.take(plan.order).astype(np.int32), plan.used, 0
        last = _repeated(model._last, used)
        escapes = ordered >= last
        escaped = bool(escapes.any())
        if escaped:
            np.minimum(ordered, last, out=ordered)
        for table, count in used:
            told.append(_Told(ordered[at : at + count], model._alphabets[table]))
            at += count
        if escaped:
            places = np.sort(plan.order[escapes])
            told.append(_Told(wanted.reshape(-1)[places].view(np.uint16).astype(np.int32), _RAW))
        walk.tell(i, wanted, plan.columns)
    return told


def _price(told: Sequence[_Told]) -> int:
    """Its cost in 1024ths of a bit."""
    return sum(int(alphabet.costs[index].sum()) for index, alphabet in told)


def _indices(wanted: np.ndarray, plan: _Plan) -> np.ndarray:
    """int16 or int32, flat: each symbol's place in an alphabet without end."""
    value = wanted.reshape(-1)
    value = value - plan.mean if plan.mean.dtype == np.int16 and _narrow(value) else value.astype(np.int32) - plan.mean
    np.negative(value, out=value, where=plan.mirrored)
    return _zigzag(value)


def _narrow(values: np.ndarray) -> bool:
    """Whether sums and differences of two of such int16, and those doubled, stay within int16."""
    return not values.size or bool(values.min() >= -4096 and values.max() <= 4096)


def _repeated(values: np.ndarray, used: list[tuple[int, int]]) -> np.ndarray:
    """values[table] of each symbol in coding order. used: of _Plan."""
    tables, counts = zip(*used, strict=True) if used else ((), ())
    return np.repeat(values[list(tables)], counts)


def _code(told: Sequence[_Told]) -> bytes:
    """The words of a stack on which all is put, the last of it first; the top word first, so that a cut takes the end."""
    coder = AnsCoder()
    for index, alphabet in reversed(told):
        coder.encode_reverse(index, alphabet.model)
    data = coder.get_compressed()[::-1].astype(">u4").tobytes()
    return data[:-3] + data[-3:].rstrip(b"\0")  # a whole word of zeros stays: without it the stack would be another


def _alphabet(frequencies: np.ndarray) -> _Alphabet:
    """A model whose intervals are `frequencies`, exactly: constriction gives every symbol 1 of 2^24 and shares the rest by
    weights, and weights which are whole numbers with that very sum need no rounding."""
    weights = (frequencies.astype(np.int64) - 1).astype(np.float64)
    model = reader = Categorical(weights, perfect=False)
    if frequencies[0] > _SHARP << PRECISION - 8:
        reader = Categorical(weights, perfect=False, lazy=True)
    return _Alphabet(model, reader, np.rint(1024 * (PRECISION - np.log2(frequencies.astype(np.float64)))).astype(np.int64))


_RAW = _Alphabet(*2 * (Uniform(1 << _ESCAPE_BITS),), np.full(1 << _ESCAPE_BITS, 1024 * _ESCAPE_BITS))
_LOG_FLOATS = LOG_TABLE.astype(np.float32)


def _check(model: RangeModel, channels: int, quality: int) -> None:
    if channels != model.config.channels:
        raise ValueError(f"expected {model.config.channels} channels of symbols, not {channels}")
    if not 1 <= quality <= model.config.qualities:
        raise ValueError(f"quality {quality} is outside 1..{model.config.qualities}")


def _z_size(h: int, w: int) -> tuple[int, int]:
    return -(-h // Z_RATIO), -(-w // Z_RATIO)


def _analysis(symbols: np.ndarray, quality: int, model: RangeModel) -> np.ndarray:
    """z, float32 (Z, hz, wz) of integers, from int16 (C, h, w)."""
    w = model._floats
    high, wide = symbols.shape[1:]
    padded = np.pad(symbols, ((0, 0), (0, -high % Z_RATIO), (0, -wide % Z_RATIO)))
    hz, wz = _z_size(high, wide)
    x = _features(padded.reshape(len(symbols), -1), model.config.signed)
    x = _activate(_sums(model._of_row("a1", quality - 1), x)).reshape(-1, 4 * hz, 4 * wz)
    x = _activate(_sums(w["a2"], _unshuffled(x))).reshape(-1, 2 * hz, 2 * wz)
    z = np.floor(_sums(w["a3"], _unshuffled(x)))
    return np.clip(z, Z_MIN, Z_MAX).reshape(-1, hz, wz)


def _synthesis(z: np.ndarray, size: tuple[int, int], model: RangeModel) -> np.ndarray:
    """What z adds to the sums, float32 (hidden, h, w)."""
    w = model._floats
    _, hz, wz = z.shape
    x = _product(w["s2"], _activate(_sums(w["s1"], _columns(z * np.float32(Z_FACTOR)))))
    x = x.reshape(-1, Z_RATIO, Z_RATIO, hz, wz).transpose(0, 3, 1, 4, 2).reshape(-1, Z_RATIO * hz, Z_RATIO * wz)
    return x[:, : size[0], : size[1]]


def _features(symbols: np.ndarray, signed: int) -> np.ndarray:
    """Integers (C, P) to float32 (C + signed, P): LOG_TABLE of their size; of the first `signed` also with the sign."""
    size = np.empty((len(symbols) + signed, symbols.shape[1]), np.float32)
    np.take(_LOG_FLOATS, np.abs(symbols.astype(np.int32)), out=size[: len(symbols)], mode="clip")
    np.multiply(size[:signed], np.sign(symbols[:signed]), out=size[len(symbols) :])
    return size


def _sums(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight (out, in + 1), offsets last; x (in, P)."""
    found = _product(weight[:, :-1], x)
    found += weight[:, -1:]
    return found


def _product(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight @ x, float32 (out, P), in pieces so small that the BLAS keeps them on this thread. With two threads the idle
    machine is a third faster, and a busy one now and then waits 20 to 90 ms for a product that takes 30 us."""
    found = np.empty((len(weight), x.shape[1]), np.float32)
    step = max(16, _PIECE // weight.size)
    for start in range(0, x.shape[1], step):
        np.matmul(weight, x[:, start : start + step], out=found[:, start : start + step])
    return found


def _add_convolved(weight: np.ndarray, x: np.ndarray, total: np.ndarray) -> None:
    """Adds to total (out, h * w) the 3x3 convolution of x (in, h, w), zeros around it; weight: (out, 9 in). Channels
    without a symbol are left out, and positions without one around them: at low rates most of the work."""
    heard = np.flatnonzero(x.any(axis=(1, 2)))
    if len(heard) < len(x):
        if not len(heard):
            return
        weight = weight.reshape(len(weight), -1, 9)[:, heard].reshape(len(weight), -1)
        x = x[heard]
    near = _near(np.any(x, axis=0))
    if 2 * len(near) > total.shape[1]:
        total += _product(weight, _columns(x))
    else:
        total[:, near] += _product(weight, _columns(x)[:, near])


def _near(marked: np.ndarray) -> np.ndarray:
    """Flat places of (h, w) with a mark in their 3x3 neighbourhood."""
    wide = np.pad(marked, 1)
    wide[1:-1] |= wide[:-2] | wide[2:]
    wide[:, 1:-1] |= wide[:, :-2] | wide[:, 2:]
    return np.flatnonzero(wide[1:-1, 1:-1])


def _activate(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Sums, divided and with a half added already, to 0..TOP."""
    out = np.floor(x, out=out)
    return np.clip(out, np.float32(0), np.float32(TOP), out=out)


def _unshuffled(x: np.ndarray) -> np.ndarray:
    """(C, 2 h, 2 w) to (4 C, h * w): space to depth."""
    c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3).reshape(4 * c, -1))


def _columns(x: np.ndarray) -> np.ndarray:
    """(9 n, h * w): the 3x3 neighbourhoods of x (n, h, w), zeros around it, the position within them fastest."""
    n, h, w = x.shape
    padded = np.zeros((n, h + 2, w + 2), np.float32)
    padded[:, 1:-1, 1:-1] = x
    columns = np.empty((n, 3, 3, h, w), np.float32)
    for row in range(3):
        for column in range(3):
            columns[:, row, column] = padded[:, row : row + h, column : column + w]
    return columns.reshape(9 * n, h * w)


def _zigzag(value: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..."""
    return value << 1 ^ value >> 8 * value.itemsize - 1


def unzigzag(index: np.ndarray) -> np.ndarray:
    """0, 1, 2, 3, 4 ... to 0, -1, 1, -2, 2 ..."""
    return index >> 1 ^ -(index & 1)
