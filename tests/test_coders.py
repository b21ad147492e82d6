"""Coders: codes computable by hand, frozen streams, round trips, damage, and how near the entropy they come."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode.coders import CodeTables, bits, entropy_bits, fixed, huffman
from mcode.coders.code import MAX_LENGTH, Code
from mcode.coders.tables import Group, code_lengths
from mcode.errors import FormatError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "coders_format_1.json").read_text())


def one_code(code: Code, channels: int = 1, width: int = 4) -> CodeTables:
    group = Group(tuple(range(channels)), (), (0,), (code,))
    return CodeTables(np.zeros(channels, np.int16), np.full(channels, width, np.uint8), (group,), (group,))


#                                         REST ESC SKIP  -1  0  1
PLAIN = one_code(Code(0, 0, 0, 1, bytes([1, 3, 0, 3, 0, 2])))  # REST 0, +1 10, ESCAPE 110, -1 111
#                                        REST ESC SKIP 0:-1  0:1  1:-1   1:1
RUNS = one_code(Code(0, 0, 2, 1, bytes([2, 4, 4, 3, 0, 2, 3, 0, 3])))  # 00, 1110, 1111, 100, 01, 101, 110
APART = (RUNS.whole[0], replace(RUNS.whole[0], channels=(1,)))  # two channels, each a group
TWO_RUNS = CodeTables(np.zeros(2, np.int16), np.full(2, 4, np.uint8), APART, APART)


def row(*values: int) -> np.ndarray:
    return np.array([values], np.int16)


@pytest.mark.parametrize(
    ("tables", "symbols", "binary"),
    [
        (PLAIN, row(0, 1, -1), "0 0 10 111"),
        (PLAIN, row(0, 0, 0, 0), ""),
        (PLAIN, row(-3), "0 110 00011 101"),  # zigzag 5 in 3 bits
        (PLAIN, row(-32768), "0 110 10000 1111111111111111"),
        (RUNS, row(0, 1, 0, 0, 0, -1, 5, 0, 0), "0 110 1111 00010 11 100 1110 00100 1010 00"),
        (RUNS, row(1, -1), "0 01 100"),
        (RUNS, row(*[0] * 100), ""),
        (TWO_RUNS, np.array([[0, 1], [1, 0]], np.int16), "0 110 01 00"),  # the end of a group is told by its size alone
    ],
)
def test_codes_computed_by_hand(tables, symbols, binary):
    expected = binary.replace(" ", "")
    expected += "0" * (-len(expected) % 8)
    data = bytes(int(expected[i : i + 8], 2) for i in range(0, len(expected), 8)).rstrip(b"\0")
    assert huffman.encode(symbols, None, tables) == data
    assert np.array_equal(huffman.decode(data, None, symbols.shape[1], tables).symbols, symbols)


@pytest.mark.parametrize("tables", [PLAIN, RUNS], ids=["plain", "runs"])
def test_a_slice_costs_memory_by_its_symbols_and_not_by_its_bytes(tables, monkeypatch):
    seen = []
    monkeypatch.setattr(bits, "windows", lambda data, windows=bits.windows: seen.append(len(data)) or windows(data))
    longest = row(*[32_767, -32_768] * 50)
    data = huffman.encode(longest, None, tables)
    assert np.array_equal(huffman.decode(data + bytes(9000), None, 100, tables).symbols, longest)
    clipped = fixed.clip(longest, tables)
    assert np.array_equal(fixed.decode(fixed.encode(clipped, tables) + bytes(9000), 100, tables), clipped)
    assert len(seen) == 2 and max(seen) <= 16 * 100 + 1


def test_of_whole_symbols_and_deltas_the_shorter_are_sent_with_their_raw_bits_and_skips():
    skipping = huffman.encode(row(0, 0, 0, 1), row(-1, -1, -1, 1), RUNS)  # 4 + 7 + 2 bits, and 3 + 3 + 3 + 2
    assert skipping[0] >> 7 == 1
    raw = one_code(Code(2, 0, 0, 1, bytes([1, 3, 0, 3, 0, 2])))
    mixed = CodeTables(raw.centres, raw.bits, raw.whole, PLAIN.delta)
    assert huffman.encode(row(0, 0, 0), row(1, 1, 1), mixed)[0] >> 7 == 1  # 3 * (1 + 2) bits, and 3 * 2
    assert huffman.encode(row(0, 0, 0), row(1, 1, -1), PLAIN) == b""


def test_raw_low_bits_follow_the_tokens_and_are_zero_for_zero():
    tables = one_code(Code(2, 0, 0, 1, bytes([1, 3, 0, 3, 0, 2])))  # -2..1 is bucket 0, 2..5 bucket 1
    data = bytes([0b0_0_10_0_00_0, 0b1_10_00000])
    assert huffman.encode(row(0, 5, -2), None, tables) == data
    assert np.array_equal(huffman.decode(data, None, 3, tables).symbols, row(0, 5, -2))


def test_rest_is_all_zeros_even_where_it_is_no_short_code():
    code = Code(0, 0, 2, 1, bytes([4, 4, 3, 2, 0, 3, 3, 0, 2]))
    codes, lengths = code.canonical
    assert codes[0] == 0
    words = [format(c, f"0{n}b") for c, n in zip(codes.tolist(), lengths.tolist(), strict=True) if n]
    assert not any(a != b and b.startswith(a) for a in words for b in words)


def test_code_lengths_are_huffmans_and_never_too_long():
    assert code_lengths(np.array([5, 1, 0, 1, 2])).tolist() == [1, 3, 0, 3, 2]
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert code_lengths(np.array(fibonacci[: MAX_LENGTH + 2])).max() <= MAX_LENGTH  # a bit too long
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == MAX_LENGTH
    assert np.sum(2.0 ** -lengths.astype(float)) == 1


# Frozen streams of format 1: tests read them and never write them.


@pytest.fixture(scope="module")
def golden():
    arrays = {name: np.array(GOLDEN[name], np.int16) for name in ("symbols", "previous", "clipped")}
    streams = {name: bytes.fromhex(GOLDEN[name]) for name in ("tables", "whole", "delta", "fixed")}
    return arrays | streams | {"codes": CodeTables.from_bytes(streams["tables"])}


def test_golden_streams_decode(golden):
    tables, count = golden["codes"], golden["symbols"].shape[1]
    whole = huffman.decode(golden["whole"], golden["previous"], count, tables)
    assert np.array_equal(whole.symbols, golden["symbols"]) and not whole.needs_previous
    delta = huffman.decode(golden["delta"], golden["previous"], count, tables)
    assert np.array_equal(delta.symbols, golden["symbols"]) and not delta.needs_previous
    assert np.array_equal(fixed.decode(golden["fixed"], count, tables), golden["clipped"])


def test_same_symbols_same_bytes(golden):
    symbols, previous, tables = golden["symbols"], golden["previous"], golden["codes"]
    assert huffman.encode(symbols, None, tables) == golden["whole"]
    assert huffman.encode(symbols, symbols - previous, tables) == golden["delta"]
    assert fixed.encode(symbols, tables) == golden["fixed"]


def test_a_delta_without_its_previous_keyframe_says_so(golden):
    symbols, previous, tables = golden["symbols"], golden["previous"], golden["codes"]
    alone = huffman.decode(golden["delta"], None, symbols.shape[1], tables)
    assert alone.needs_previous
    assert np.array_equal(alone.symbols, symbols - previous + tables.centres[:, None])


# Behaviour on seeded data.


def laplacian(rng: np.random.Generator, spread: np.ndarray, samples: int, h: int = 1, w: int = 1) -> list[np.ndarray]:
    """int16 (C, h, w) of the standard deviations `spread` (C,) or (C, h, w)."""
    spread = np.broadcast_to(spread.reshape(len(spread), *(spread.shape[1:] or (1, 1))), (len(spread), h, w))
    drawn = rng.laplace(size=(samples, *spread.shape)) * spread / np.sqrt(2)
    return list(np.rint(drawn).astype(np.int16))


@pytest.fixture(scope="module")
def tables() -> CodeTables:
    rng = np.random.default_rng(1)
    spread = np.array([30, 4, 1, 0.4, 0.1, 0])
    shift = np.array([100, 0, -5, 0, 3, 9], np.int16)[:, None, None]
    whole = [sample + shift for sample in laplacian(rng, spread, 60, 5, 7)]
    return CodeTables.fit(whole, laplacian(rng, spread / 2, 60, 5, 7))


INT16 = st.integers(-32768, 32767)
SYMBOLS = st.integers(0, 12).flatmap(
    lambda count: st.lists(
        st.lists(st.one_of(st.just(0), st.integers(-9, 9), INT16), min_size=count, max_size=count),
        min_size=6,
        max_size=6,
    ).map(lambda rows: np.array(rows, np.int16).reshape(6, count))
)


@given(SYMBOLS, st.integers(-3, 3))
@settings(deadline=None)
def test_huffman_round_trip_of_any_int16(tables, symbols, change):
    count = symbols.shape[1]
    previous = symbols[:, ::-1] + np.int16(change)
    whole = huffman.encode(symbols, None, tables)
    assert np.array_equal(huffman.decode(whole, None, count, tables).symbols, symbols)
    either = huffman.encode(symbols, symbols - previous, tables)
    assert np.array_equal(huffman.decode(either, previous, count, tables).symbols, symbols)
    assert len(either) <= len(whole) + 1  # shorter in bits; zero bytes at the end are luck


@given(SYMBOLS)
@settings(deadline=None)
def test_fixed_round_trip_of_any_int16_is_its_clipping(tables, symbols):
    data = fixed.encode(symbols, tables)
    assert len(data) == -(-int(tables.bits.sum()) * symbols.shape[1] // 8)
    decoded = fixed.decode(data, symbols.shape[1], tables)
    assert np.array_equal(decoded, fixed.clip(symbols, tables))
    half = np.maximum(1 << tables.bits.astype(int) >> 1, 1)[:, None]
    error = np.abs(decoded.astype(int) - symbols)
    inside = np.abs(symbols.astype(int) - tables.centres[:, None]) < half
    assert not error[inside].any()


def test_missing_bytes_read_as_no_change_or_the_centres(tables):
    centres = np.repeat(tables.centres[:, None], 7, axis=1)
    assert np.array_equal(huffman.decode(b"", None, 7, tables).symbols, centres)
    assert np.array_equal(fixed.decode(b"", 7, tables), centres)
    previous = np.arange(42, dtype=np.int16).reshape(6, 7)
    assert huffman.encode(centres, previous, tables) == b""
    only_mode = b"\x80"
    assert np.array_equal(huffman.decode(only_mode, previous, 7, tables).symbols, previous)


def test_every_truncation_keeps_what_came_first(tables):
    symbols = laplacian(np.random.default_rng(5), np.array([30, 4, 1, 0.4, 0.1, 0]), 1, 1, 30)[0][:, 0]
    data = huffman.encode(symbols, None, tables)
    errors = []
    for size in range(len(data) + 1):
        decoded = huffman.decode(data[:size], None, 30, tables).symbols
        assert decoded.shape == symbols.shape and decoded.dtype == np.int16
        errors.append(int(np.count_nonzero(decoded != symbols)))
    assert errors[-1] == 0 and errors[len(data) // 2] < errors[0] / 1.5


@given(st.binary(max_size=80), st.integers(0, 40))
@settings(deadline=None)
def test_any_bytes_decode_to_the_right_shape(tables, data, count):
    for symbols in (huffman.decode(data, None, count, tables).symbols, fixed.decode(data, count, tables)):
        assert symbols.shape == (6, count) and symbols.dtype == np.int16


def test_damaged_slices_decode_to_the_right_shape(tables):
    rng = np.random.default_rng(3)
    symbols = laplacian(rng, np.array([30, 4, 1, 0.4, 0.1, 0]), 1, 8, 8)[0].reshape(6, 64)
    data = np.frombuffer(huffman.encode(symbols, None, tables), np.uint8)
    for _ in range(300):
        broken = data.copy()
        broken[rng.integers(0, len(data), 3)] ^= (1 << rng.integers(0, 8, 3)).astype(np.uint8)
        assert huffman.decode(broken.tobytes(), None, 64, tables).symbols.shape == (6, 64)


def test_a_flipped_bit_in_fixed_hurts_one_symbol_and_less_than_in_natural_binary():
    rng = np.random.default_rng(4)
    tables = CodeTables.fit(laplacian(rng, np.array([8.0]), 400))
    symbols = np.concatenate(laplacian(rng, np.array([8.0]), 100), axis=1)[:, :, 0]
    symbols = fixed.clip(symbols, tables)
    width = int(tables.bits[0])
    data = np.unpackbits(np.frombuffer(fixed.encode(symbols, tables), np.uint8))
    squares = []
    for at in range(100 * width):
        flipped = data.copy()
        flipped[at] ^= 1
        error = fixed.decode(np.packbits(flipped).tobytes(), 100, tables).astype(int) - symbols
        assert np.count_nonzero(error) <= 1
        squares.append(int(np.sum(error**2)))
    natural = np.mean([4**bit for bit in range(width)])
    assert np.mean(squares) < 0.6 * natural


def test_shapes_that_do_not_fit_are_refused_at_once(tables):
    with pytest.raises(ValueError, match="expected"):
        huffman.encode(np.zeros((5, 3), np.int16), None, tables)
    with pytest.raises(ValueError, match="expected"):
        huffman.encode(np.zeros((6, 3), np.int16), np.zeros((6, 4), np.int16), tables)
    with pytest.raises(ValueError, match="expected"):
        fixed.encode(np.zeros((5, 3), np.int16), tables)


# Bits.


@given(st.lists(st.integers(0, 31).flatmap(lambda n: st.tuples(st.integers(0, (1 << n) - 1), st.just(n))), max_size=60))
@settings(deadline=None)
def test_pack_puts_fields_one_behind_the_other(drawn):
    text = "".join(format(code, f"0{length}b") for code, length in drawn if length)
    text += "0" * (-len(text) % 8)
    codes = np.array([code for code, _ in drawn], np.int32)
    lengths = np.array([length for _, length in drawn], np.int32)
    data = bits.pack(codes, lengths)
    assert data == bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    windows = bits.windows(data)
    padded = text + "0" * 200
    assert [format(w, "016b") for w in windows.tolist()] == [padded[i : i + 16] for i in range(len(windows))]
    far = bits.fields(windows, np.array([0, len(windows), 10**6]), np.array([5, 16, 3]))
    assert far.tolist() == [int(padded[:5], 2), 0, 0]


# Tables.


def test_tables_survive_bytes_and_fits_are_deterministic(tables):
    data = tables.to_bytes()
    again = CodeTables.from_bytes(data)
    assert again == tables and again.to_bytes() == data
    rng = np.random.default_rng(9)
    samples = laplacian(rng, np.array([3, 1, 0.3]), 20, 3, 3)
    assert CodeTables.fit(samples, samples[1:]).to_bytes() == CodeTables.fit(samples, samples[1:]).to_bytes()


def test_centres_and_widths_of_a_known_quantiser_are_taken_as_told():
    sample = np.arange(-20, 16, dtype=np.int16).reshape(4, 3, 3)
    told, measured = CodeTables.fit([sample], centre=3, bits=5), CodeTables.fit([sample])
    assert told.centres.tolist() == [3] * 4 and told.bits.tolist() == [5] * 4
    assert measured.centres.tolist() == [-16, -7, 2, 11] and len(set(measured.bits.tolist()) - {5}) > 0
    assert np.array_equal(huffman.decode(huffman.encode(sample[:, 0], None, told), None, 3, told).symbols, sample[:, 0])


def test_truncated_tables_are_refused(tables):
    data = tables.to_bytes()
    for size in range(len(data)):
        with pytest.raises(FormatError):
            CodeTables.from_bytes(data[:size])


def test_damaged_tables_are_refused_or_usable(tables):
    import zlib

    rng = np.random.default_rng(6)
    plain = np.frombuffer(zlib.decompress(tables.to_bytes()), np.uint8)
    refused = 0
    for _ in range(400):
        broken = plain.copy()
        broken[rng.integers(0, len(plain), 2)] ^= (1 << rng.integers(0, 8, 2)).astype(np.uint8)
        try:
            codes = CodeTables.from_bytes(zlib.compress(broken.tobytes()))
        except FormatError:
            refused += 1
            continue
        symbols = rng.integers(-300, 300, (6, 5)).astype(np.int16)
        data = huffman.encode(symbols, None, codes)
        assert np.array_equal(huffman.decode(data, None, 5, codes).symbols, symbols)
    assert refused > 200


def banded(*floors):
    return (Group((0,), (), floors, PLAIN.whole[0].codes * len(floors)),)


def coded(shift, max_run, *lengths):
    return (Group((0,), (), (0,), (Code(shift, 0, max_run, 1, bytes(lengths)),)),)


@pytest.mark.parametrize(
    "groups",
    [
        banded(1),
        banded(0, 0),
        banded(0, 2, 1),
        APART[:1] * 2,  # one channel twice
        coded(0, 0, 0, 1, 0, 2, 0, 2),  # no REST
        coded(0, 0, 1, 0, 0, 2, 0, 2),  # no ESCAPE
        coded(0, 2, 2, 3, 0, 3, 0, 2, 3, 0, 3),  # no SKIP
        coded(0, 0, 1, 3, 3, 0, 0, 2),  # SKIP without runs
        coded(1, 2, 2, 4, 4, 3, 0, 2, 3, 0, 3),  # runs with raw bits
        coded(0, 0, 1, 3, 0, 3, 0, 3),  # bits that mean nothing
    ],
)
def test_groups_that_make_no_code_are_refused(groups):
    broken = CodeTables(PLAIN.centres, PLAIN.bits, groups, groups)
    with pytest.raises(FormatError, match="damaged"):
        CodeTables.from_bytes(broken.to_bytes())


def test_symbols_of_more_than_16_bits_and_bytes_behind_the_tables_are_refused():
    widest = CodeTables(PLAIN.centres, np.full(1, 16, np.uint8), PLAIN.whole, PLAIN.delta)
    assert CodeTables.from_bytes(widest.to_bytes()) == widest
    with pytest.raises(FormatError, match="damaged"):
        CodeTables.from_bytes(CodeTables(PLAIN.centres, np.full(1, 17, np.uint8), PLAIN.whole, PLAIN.delta).to_bytes())
    with pytest.raises(FormatError, match="too long"):
        CodeTables.from_bytes(widest.to_bytes() + b"\0")


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100)])
def test_other_bytes_are_no_tables(data):
    with pytest.raises(FormatError):
        CodeTables.from_bytes(data)


def test_newer_tables_are_named_and_bombs_stay_small():
    import zlib

    with pytest.raises(FormatError, match="format 2; this version reads 1"):
        CodeTables.from_bytes(zlib.compress(b"\x02\x01\x00"))
    bomb = zlib.compress(b"\x01\xff\xff" + bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(FormatError):
        CodeTables.from_bytes(bomb)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 25


def test_fits_of_few_samples_code_anything():
    one = [np.zeros((3, 1, 1), np.int16)]
    tables = CodeTables.fit(one)
    symbols = np.array([[5, -32768], [0, 1], [32767, 0]], np.int16)
    assert np.array_equal(huffman.decode(huffman.encode(symbols, None, tables), None, 2, tables).symbols, symbols)
    with pytest.raises(ValueError, match="at least one sample"):
        CodeTables.fit([])
    with pytest.raises(ValueError, match="same channels"):
        CodeTables.fit(one, [np.zeros((4, 1, 1), np.int16)])


def test_entropy_of_known_distributions():
    coin = np.array([0, 1] * 8, np.int16).reshape(1, 4, 4)
    die = np.arange(16, dtype=np.int16).reshape(1, 4, 4)
    assert entropy_bits([coin]) == pytest.approx(16)
    assert entropy_bits([np.concatenate([coin, die])]) == pytest.approx(16 + 64)
    assert entropy_bits([coin, coin]) == pytest.approx(16)


# How near the entropy.


def laplacian_entropy(spread: float) -> float:
    """Bits of a rounded Laplacian of standard deviation `spread`."""
    k = np.arange(1, 2000)
    decay = np.sqrt(2) / spread
    zero = 1 - np.exp(-decay / 2)
    tail = np.exp(-decay * (k - 0.5)) * (1 - np.exp(-decay)) / 2
    tail = tail[tail > 0]
    return float(-zero * np.log2(zero) - 2 * tail @ np.log2(tail))


@pytest.mark.parametrize("fitted_on", [100, 500])
def test_a_talking_head_keyframe_costs_its_entropy_and_a_byte(fitted_on, record_property):
    """50 coordinates whose deltas have standard deviations from 15 to 0.5 and some 109 bits of entropy."""
    spread = np.maximum(15 * np.arange(1, 51) ** -0.88, 0.5)
    ideal = sum(laplacian_entropy(s) for s in spread)
    assert 107 < ideal < 111
    rng = np.random.default_rng(1)
    tables = CodeTables.fit(laplacian(rng, 2.5 * spread, fitted_on), laplacian(rng, spread, fitted_on))
    keyframes = zip(laplacian(rng, 2.5 * spread, 300), laplacian(rng, spread, 300), strict=True)
    mean = np.mean([8 * len(huffman.encode(whole[:, :, 0], delta[:, :, 0], tables)) for whole, delta in keyframes])
    record_property("bits_over_entropy", round(mean / ideal, 4))
    assert mean < (1.06 if fitted_on < 500 else 1.02) * ideal + 8


def test_a_feature_map_costs_its_entropy(record_property):
    """24 x 23 x 40, most symbols zero; where activity varies over the map, less than the entropy of each channel."""
    rng = np.random.default_rng(2)
    even = np.repeat(3 * np.exp(-np.arange(24) / 5)[:, None, None] + 0.05, 23, axis=1) * np.ones(40)
    busy = even * np.exp(np.sin(np.arange(40) / 6)) * (1 + (np.arange(23) % 9 > 5)[:, None])
    for spread, most in ((even, 1.035), (busy, 0.98)):
        tables = CodeTables.fit(laplacian(rng, spread, 12, 23, 40))
        fresh = laplacian(rng, spread, 6, 23, 40)
        coded = np.mean([8 * len(huffman.encode(sample.reshape(24, -1), None, tables)) for sample in fresh])
        record_property("bits_over_entropy", round(coded / entropy_bits(fresh), 4))
        assert coded < most * entropy_bits(fresh)


def test_channels_that_hardly_ever_hold_anything_cost_next_to_nothing():
    rng = np.random.default_rng(8)
    samples = [(rng.random((40, 30, 40)) < 1e-5).astype(np.int16) for _ in range(40)]
    tables = CodeTables.fit(samples, samples)
    empty = np.zeros((40, 1200), np.int16)
    one = empty.copy()
    one[17, 600] = 1
    assert len(huffman.encode(one, None, tables)) * 8 < 0.01 * one.size
    assert np.array_equal(huffman.decode(huffman.encode(one, None, tables), None, 1200, tables).symbols, one)
