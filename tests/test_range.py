"""The coder `range`: frozen streams, round trips, damage, slices, exactness, and how near its estimate it comes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode.codec import Decoder, Encoder
from mcode.coders import range as ranges
from mcode.coders import slices as slicing
from mcode.errors import FormatError, InputError, WireError

from .block_means import BlockMeans, grey
from .range_model import CONFIG, frequencies, sample, tiny

MODEL = tiny()
LEVELLED = tiny(config=replace(CONFIG, levels=5))


def decode(parts, previous, h, w, quality=1, model=MODEL):
    count = len(parts)
    before = slicing.split(previous, count) if previous is not None else [None] * count
    found = [
        ranges.decode(data, last, index, count, (h, w), quality, model)
        for index, (data, last) in enumerate(zip(parts, before, strict=True))
    ]
    assert not any(part.needs_previous or part.damaged for part in found)
    return slicing.join([part.symbols for part in found], h, w)


# Frozen streams of format 1: tests read them and never write them.
FROZEN = {
    (False, 1): "002ac73ebb89f22adeaa1fa8fffffffecefffff201e23e0088f7ff2345fffaacf7ffff3800fff93603fffffffefffdfc3bff"
    "fff253fd52f533feac7fc1fdf5e7bbf9b775173f85f4edcb48bdebffffe50a92fd65fad55749d8ff2550fff3f94083e5030f"
    "9f84713c",
    (False, 2): "0000023dac3ffffd5dff5cef13a95311f3ffffdf1bff1a7ce1ffffe53757700542ff0287fdfffafffd00033ddbfffe100877"
    "b50b8effffd877ffff40c0e9972110f1701e 04ade57bef4ff58429ffc1a38efee58d63fff9e027d23826785de7f992ffffc"
    "871ffff4c676bef2b",
    (True, 1): "02a8900405bfffd7ca02692dc5ff41bceeff5350073e158d5b60fd3246199c71c0051fb3",
}


@pytest.mark.parametrize(("with_previous", "slices"), FROZEN)
def test_frozen_streams(with_previous, slices):
    symbols = sample(3, 4, 5)
    previous = symbols - (np.arange(symbols.size).reshape(symbols.shape) % 7 == 0).astype(np.int16) if with_previous else None
    frozen = [bytes.fromhex(part) for part in FROZEN[with_previous, slices].split()]
    assert ranges.encode(symbols, previous, slices, 2, MODEL) == frozen
    assert np.array_equal(decode(frozen, previous, 4, 5, quality=2), symbols)


def test_a_frozen_stream_with_a_hyper_latent():
    symbols = sample(3, 24, 25)
    (data,) = ranges.encode(symbols, None, 1, 1, MODEL)
    assert hashlib.sha256(data).hexdigest() == "20d3d4d5902f34c559eb7a151a675fe648d82d48afdcb65e3031b332fea0c8a0"
    assert ranges.estimate(symbols, None, 1, 1, MODEL).z_bits > 0
    assert np.array_equal(decode([data], None, 24, 25), symbols)


def far(seed):
    """Symbols at both ends of int16, and what lies near them but for a few, whose difference leaves int16."""
    symbols = sample(seed, 6, 7)
    symbols[0], symbols[3, 2], symbols[5, 0] = 32767, -32767, 4097
    before = symbols - (np.arange(symbols.size).reshape(symbols.shape) % 5 == 0).astype(np.int16)
    before[0, 0, :3], before[3, 2, 1], before[5, 0, 0] = -32767, 32766, -4096
    return symbols, before


def sparse():
    symbols = np.zeros((6, 40, 50), np.int16)
    symbols[:, 3, 4], symbols[1, 20:24, 30:33], symbols[4, 39, 49] = 5, -2, 1
    return symbols, np.roll(symbols, 1, 2)


def large():
    symbols = sample(8, 120, 90)
    return symbols, symbols - (np.arange(symbols.size).reshape(symbols.shape) % 7 == 0).astype(np.int16)


# Made by the coder as it was first released; hashes, since the streams are long.
FROZEN_HASHES = {
    ("far", False, 1): "5ab9ec2ac67bbb11",
    ("far", False, 3): "b38f7ab3d03403b6",
    ("far", True, 1): "df03d7dcb0fd7559",
    ("far", True, 3): "b5a53e323694e028",
    ("sparse", False, 1): "7ab5b32deec34e5c",
    ("sparse", False, 3): "a255d934602909e1",
    ("sparse", True, 1): "7ab5b32deec34e5c",
    ("sparse", True, 3): "6bf9573b51c2c028",
    ("large", False, 1): "4404dd61090246e9",
    ("large", False, 3): "233e6f4929b14993",
    ("large", True, 1): "fb562968007e7f52",
    ("large", True, 3): "029cdce6bd323c6a",
}


@pytest.mark.parametrize(("make", "with_previous", "slices"), FROZEN_HASHES)
def test_frozen_hashes_of_far_sparse_and_large_maps(make, with_previous, slices):
    symbols, previous = {"far": lambda: far(5), "sparse": sparse, "large": large}[make]()
    parts = ranges.encode(symbols, previous if with_previous else None, slices, 2, MODEL)
    assert hashlib.sha256(b"".join(parts)).hexdigest()[:16] == FROZEN_HASHES[make, with_previous, slices]
    back = decode(parts, previous if with_previous else None, *symbols.shape[1:], quality=2)
    assert np.array_equal(back, symbols)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 20, 32767]),
)
@settings(max_examples=60)
def test_every_symbol_comes_back(seed, h, w, slices, with_previous, size):
    rng = np.random.default_rng(seed)
    symbols = rng.integers(-size - 1, size + 1, (6, h, w)).astype(np.int16)
    previous = (symbols + rng.integers(-1, 2, symbols.shape)).astype(np.int16) if with_previous else None
    parts = ranges.encode(symbols, previous, slices, 2, MODEL)
    assert np.array_equal(decode(parts, previous, h, w, quality=2), symbols)


def test_an_empty_slice_takes_no_byte_and_reads_as_predicted():
    parts = ranges.encode(sample(1, 1, 1), None, 3, 1, MODEL)
    assert parts[1:] == [b"", b""]
    assert ranges.decode(b"", None, 0, 1, (3, 4), 1, MODEL).symbols.shape == (6, 12)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("with_previous", [False, True])
def test_a_stream_cut_anywhere_decodes_and_what_came_before_the_cut_is_right(slices, with_previous):
    symbols = sample(5, 8, 9)
    previous = np.roll(symbols, 1, axis=2) if with_previous else None
    parts = ranges.encode(symbols, previous, slices, 1, MODEL)
    whole = slicing.split(symbols, slices)[0]
    before = slicing.split(previous, slices)[0] if previous is not None else None
    right = []
    for length in range(len(parts[0]) + 1):
        found = ranges.decode(parts[0][:length], before, 0, slices, (8, 9), 1, MODEL).symbols
        assert found.shape == whole.shape and found.dtype == np.int16
        right.append(float((found == whole).mean()))
    assert right[-1] == 1
    assert right[-8] > 0.9  # the end of the stream is the end of the last pass
    assert right[len(right) // 2] > right[4]


@given(st.binary(max_size=200), st.integers(1, 3), st.booleans())
def test_any_bytes_decode_to_symbols_of_the_right_number(data, slices, with_previous):
    positions = len(slicing.positions(0, slices, 5, 7))
    previous = np.zeros((6, positions), np.int16) if with_previous else None
    found = ranges.decode(data, previous, 0, slices, (5, 7), 1, MODEL)
    assert found.symbols.shape == (6, positions) and found.symbols.dtype == np.int16


def test_a_damaged_hyper_latent_costs_no_more_work_than_a_sound_one():
    symbols = sample(6, 40, 40)
    (data,) = ranges.encode(symbols, None, 1, 1, MODEL)
    rng = np.random.default_rng(0)
    for _ in range(20):
        flipped = bytearray(data)
        flipped[rng.integers(8)] ^= 1 << int(rng.integers(8))  # kind and hyper-latent come first
        found = ranges.decode(bytes(flipped), None, 0, 1, (40, 40), 1, MODEL)
        assert found.symbols.shape == (6, 1600)


def test_slices_decode_alone():
    symbols = sample(7, 9, 11)
    parts = ranges.encode(symbols, None, 4, 1, MODEL)
    for index, data in enumerate(parts):
        found = ranges.decode(data, None, index, 4, (9, 11), 1, MODEL)
        assert np.array_equal(found.symbols, slicing.split(symbols, 4)[index])


def test_a_delta_without_the_previous_keyframe_says_so_and_a_whole_slice_needs_none():
    symbols = sample(8, 6, 6)
    (delta,) = ranges.encode(symbols, symbols, 1, 1, MODEL)
    (whole,) = ranges.encode(symbols, None, 1, 1, MODEL)
    assert len(delta) < len(whole)
    assert ranges.decode(delta, None, 0, 1, (6, 6), 1, MODEL).needs_previous
    found = ranges.decode(whole, symbols.reshape(6, -1), 0, 1, (6, 6), 1, MODEL)
    assert not found.needs_previous and np.array_equal(found.symbols, symbols.reshape(6, -1))


@pytest.mark.parametrize("quality", [1, 2])
@pytest.mark.parametrize("slices", [1, 3])
def test_bytes_come_within_one_percent_of_the_estimate(quality, slices):
    symbols = sample(9, 40, 50)
    size = sum(map(len, ranges.encode(symbols, None, slices, quality, MODEL)))
    assert size * 8 == pytest.approx(ranges.estimate(symbols, None, slices, quality, MODEL).bits, rel=0.01)


@pytest.mark.parametrize("size", [2, 5, 100, 511])
def test_constriction_codes_with_these_very_frequencies(size):
    """Against an independent stack in Python's integers (Duda et al. 2015): no rounding of the tables anywhere."""
    rng = np.random.default_rng(size)
    table = frequencies(rng.integers(0, 1000, size)).astype(np.int64)
    below = np.cumsum(table) - table
    symbols = rng.integers(0, size, 300).astype(np.int32)
    state, words = 0, []
    for symbol in symbols[::-1]:
        share = int(table[symbol])
        if state >= share << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // share << 24) + state % share + int(below[symbol])
    words += [state & 0xFFFFFFFF, state >> 32]
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, ranges._alphabet(table).model)
    assert coder.get_compressed().tolist() == words


def test_every_table_is_read_as_it_was_written():
    """The lazy models that read sharp tables are others than those that write."""
    sharp = 0
    for alphabet, size in zip(MODEL._alphabets, MODEL.sizes, strict=True):
        sharp += alphabet.reader is not alphabet.model
        symbols = np.tile(np.arange(size, dtype=np.int32), 3)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, alphabet.model)
        assert np.array_equal(coder.decode(alphabet.reader, len(symbols)), symbols)
        assert coder.is_empty()
    assert 0 < sharp < len(MODEL.sizes)


@pytest.mark.parametrize("quality", [0, 3])
def test_a_quality_there_is_not_is_refused(quality):
    with pytest.raises(ValueError, match=rf"quality {quality} is outside 1\.\.2"):
        ranges.encode(sample(1, 6, 7), None, 1, quality, MODEL)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.3))
@settings(max_examples=40)
def test_a_sparse_map_is_convolved_as_a_full_one(seed, h, w, share):
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, 193, (5, h, w)) * (rng.random((5, h, w)) < share)).astype(np.float32)
    weight = rng.integers(-127, 128, (4, 45)).astype(np.float32)
    total = rng.integers(-500, 500, (4, h * w)).astype(np.float32)
    expected = total.astype(np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1))).astype(np.float64)
    for k in range(9):
        part = padded[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w].reshape(5, -1)
        expected = expected + weight[:, k::9].astype(np.float64) @ part
    ranges._add_convolved(weight, x, total)
    assert np.array_equal(total, expected)


PROGRAM = """
import sys, hashlib
import numpy as np
from mcode.coders import range as ranges
from tests.range_model import sample, tiny
symbols, model = sample(11, 100, 100), tiny()
parts = [*ranges.encode(symbols, None, 1, 1, model), *ranges.encode(symbols, np.roll(symbols, 1, 1), 3, 2, model)]
if len(sys.argv) > 1:
    data = bytes.fromhex(open(sys.argv[1]).read())
    assert np.array_equal(ranges.decode(data, None, 0, 1, (100, 100), 1, model).symbols, symbols.reshape(6, -1))
print(parts[0].hex())
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


def test_ten_thousand_latents_give_the_same_bytes_whatever_the_number_of_threads(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    said, arguments = [], []
    for threads in ("1", "2"):
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        command = [sys.executable, str(tmp_path / "program.py"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert result.returncode == 0, result.stderr
        said.append(result.stdout)
        (tmp_path / "data").write_text(result.stdout.split()[0])
        arguments = [str(tmp_path / "data")]  # the second decodes what the first encoded
    assert said[0] == said[1]


def test_sums_are_exact_in_any_order():
    """Every sum of the network, with the order of its terms reversed and in float64: the same integers."""
    rng = np.random.default_rng(4)
    for name, weight in MODEL._floats.items():
        if weight.ndim == 2:
            x = rng.integers(0, ranges.TOP + 1, (weight.shape[1], 10_000)).astype(np.float32)
            forward = weight @ x
            assert np.array_equal(forward, weight[:, ::-1].copy() @ x[::-1].copy()), name
            assert np.array_equal(forward, weight.astype(np.float64) @ x.astype(np.float64)), name


# What a manifold may hold.


def test_tensors_and_config_bring_the_model_back():
    again = ranges.RangeModel.from_tensors(CONFIG.to_dict(), MODEL.to_tensors(), 6, 2)
    symbols = sample(12, 6, 7)
    assert ranges.encode(symbols, None, 1, 1, again) == ranges.encode(symbols, None, 1, 1, MODEL)


def test_weights_whose_sums_could_be_rounded_are_refused():
    large = MODEL.weights["head_bias.0"].copy()
    large[0, 0] = 1 << 24
    with pytest.raises(FormatError, match="2\\^24"):
        replace(MODEL, weights={**MODEL.weights, "head_bias.0": large})


def broken_tables(tables):
    tables = tables.copy()
    tables[0] += 1
    return tables


def odd_tables():
    """A value less in the last table, one more in the one before: as many in all, and each table's sum as it was."""
    rows = np.split(MODEL.tables, np.cumsum(MODEL.sizes, dtype=np.int64)[:-1])
    rows[-1] = np.r_[rows[-1][:-2], rows[-1][-2:].sum(dtype=np.uint32)]
    rows[-2] = np.r_[rows[-2][0] - 1, rows[-2][1:], 1].astype(np.uint32)
    return {"sizes": np.array([len(row) for row in rows], np.uint16), "tables": np.concatenate(rows)}


@pytest.mark.parametrize(
    "change",
    [
        odd_tables(),
        {"tables": MODEL.tables[:-1]},
        {"tables": broken_tables(MODEL.tables)},
        {"z_tables": np.zeros_like(MODEL.z_tables)},
        {"sizes": MODEL.sizes + np.uint16(1)},
        {"weights": {name: array for name, array in MODEL.weights.items() if name != "s2"}},
    ],
)
def test_damaged_models_are_refused(change):
    with pytest.raises(FormatError, match="hyperprior"):
        replace(MODEL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"passes": [[0, 2, 0], [2, 6, None]]},
        {"passes": [[0, 2], [3, 6]]},
        {"passes": [[0, 2, 1], [2, 6]]},
        {"passes": [[0, 6, 0]]},
        {"passes": [[0, 2, 0], [0, 3, 1], [2, 6]]},
        {"passes": "none"},
        {"hidden": -1},
        {"signed": 7},
    ],
)
def test_damaged_configs_are_refused(change):
    with pytest.raises(FormatError, match="hyperprior"):
        ranges.HyperConfig.from_dict(CONFIG.to_dict() | change, 6, 2)


# In the codec.


class WithHyper(BlockMeans):
    hyper = tiny(
        2,
        replace(CONFIG, channels=3, qualities=1, passes=(ranges.Pass(0, 1, 0), ranges.Pass(0, 1, 1), ranges.Pass(1, 3))),
    )


def stream(frames, **options):
    encoder = Encoder(WithHyper(), 16, 8, coder="range", **options)
    return [p for frame in frames for p in encoder.push(frame)] + encoder.flush()


def levels(decoder, packets):
    return [int(frame.rgb.mean()) for packet in packets for frame in decoder.push(packet)]


@pytest.mark.parametrize("slices", [1, 3])
def test_the_codec_gives_the_pictures_back(slices):
    frames = [grey(100 + 2 * i, i) for i in range(9)]
    assert levels(Decoder(WithHyper()), stream(frames, n=2, slices=slices)) == [100 + 2 * i for i in range(9)]


def test_a_manifold_without_a_hyperprior_is_refused_and_told_what_it_has():
    with pytest.raises(InputError, match="--coder range: .* huffman and fixed"):
        Encoder(BlockMeans(), 16, 8, coder="range")
    (packet,) = stream([grey(100, 0)], n=1)
    with pytest.raises(WireError, match="no hyperprior"):
        Decoder(BlockMeans()).push(packet)


def test_after_a_loss_the_picture_stays_until_a_slice_comes_whole():
    frames = [grey(100 + 4 * (i % 3), i) for i in range(60)]
    packets = stream(frames, n=1, refresh_s=1.0, cuts=False)
    decoder = Decoder(WithHyper())
    shown = levels(decoder, packets[:4])
    del packets[4]
    for packet in packets[4:]:
        shown.append([int(f.rgb.mean()) for f in decoder.push(packet, after_loss=packet is packets[4])][-1])
    refresh = next(i for i, p in enumerate(packets) if p.header and i)
    assert decoder.broken_deltas > 0
    assert set(shown[4 : 4 + decoder.broken_deltas]) == {shown[3]}
    assert shown[refresh:] == [100 + 4 * ((i + 1) % 3) for i in range(refresh, 59)]


def test_a_damaged_slice_keeps_what_was_there():
    packets = stream([grey(100, 0), grey(150, 1)], n=1, slices=2, cuts=False)
    decoder = Decoder(WithHyper())
    list(decoder.push(packets[0]))
    flipped = bytes([packets[1].slices[1][0] ^ 4]) + packets[1].slices[1][1:]
    (frame,) = decoder.push(replace(packets[1], slices=(packets[1].slices[0], flipped)))
    assert set(np.unique(frame.rgb)) == {100, 150}
    assert decoder.damaged_slices + decoder.broken_deltas == 1


def test_a_missing_slice_keeps_what_was_there():
    packets = stream([grey(100, 0), grey(150, 1)], n=1, slices=2, cuts=False)
    decoder = Decoder(WithHyper())
    list(decoder.push(packets[0]))
    (frame,) = decoder.push(replace(packets[1], slices=(packets[1].slices[0], None)))
    assert set(np.unique(frame.rgb)) == {100, 150}


@pytest.mark.parametrize("lost", ["a slice", "a keyframe"])
def test_a_delta_around_symbols_that_never_came_changes_nothing_and_is_counted(lost):
    packets = stream([grey(100, 0), grey(104, 1), grey(108, 2)], n=1, slices=2, cuts=False)
    decoder = Decoder(WithHyper())
    list(decoder.push(packets[0]))
    if lost == "a slice":
        list(decoder.push(replace(packets[1], slices=(packets[1].slices[0], None))))
    frame = list(decoder.push(packets[2], after_loss=lost == "a keyframe"))[-1]
    assert set(np.unique(frame.rgb)) == ({100, 108} if lost == "a slice" else {100})
    assert decoder.broken_deltas == (1 if lost == "a slice" else 2) and decoder.damaged_slices == 0


def moved(symbols, share, seed=0):
    """The keyframe before: `share` of its symbols are others."""
    rng = np.random.default_rng(seed)
    return symbols - (rng.random(symbols.shape) < share).astype(np.int16)


@pytest.mark.parametrize(
    ("changed", "levels", "expected"),
    [
        (0, 8, 0),
        (6, 8, 0),  # of 100 positions: less than 1/16
        (7, 8, 1),
        (49, 8, 3),
        (50, 8, 4),
        (399, 8, 6),
        (400, 8, 7),
        (600, 8, 7),
        (600, 1, 0),
        (0, 1, 0),
        (399, 2, 0),
        (400, 2, 1),
    ],
)
def test_the_level_of_a_delta_is_how_many_symbols_a_position_change(changed, levels, expected):
    before = np.zeros((6, 100), np.int16)
    after = before.copy()
    after.reshape(-1)[:changed] = -3
    assert ranges.level_of(after, before, levels) == expected


@pytest.mark.parametrize("share", [0.0, 0.004, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("slices", [1, 3])
def test_deltas_of_every_level_come_back(share, slices):
    symbols = sample(5, 12, 17)
    before = moved(symbols, share)
    parts = ranges.encode(symbols, before, slices, 2, LEVELLED)
    assert np.array_equal(decode(parts, before, 12, 17, quality=2, model=LEVELLED), symbols)


def test_a_level_is_told_in_the_first_symbol_and_changes_what_is_predicted():
    found = {}
    for share in (0.0, 0.1, 0.2, 0.4):
        symbols = sample(5, 12, 17)
        before = moved(symbols, share)
        (data,) = ranges.encode(symbols, before, 1, 2, LEVELLED)
        kind = int(ranges._stack(data).decode(LEVELLED._kind.model, 1)[0])
        found[share] = kind - ranges.DELTA
        assert found[share] == ranges.level_of(symbols.reshape(6, -1), before.reshape(6, -1), 5)
        assert ranges.decode(data, None, 0, 1, (12, 17), 2, LEVELLED).needs_previous
    assert len(set(found.values())) >= 3
    flat = before.reshape(6, -1)
    walks = [ranges._Walk(LEVELLED, 2, (12, 17), np.arange(204), True, None, flat, level) for level in (0, 4)]
    assert not np.array_equal(*(walk.plan(0).table for walk in walks))


@pytest.mark.parametrize("levels", [1, 2, 5, 7, 16])
def test_the_kinds_frequencies_are_those_of_the_format(levels):
    costs = tiny(config=replace(CONFIG, levels=levels))._kind.costs / 1024
    assert len(costs) == 2 + levels
    assert (2.0**-costs).sum() == pytest.approx(1, abs=1e-3)
    expected = [5 / 16, 5 / 16, 6 / 16] if levels == 1 else [1 / 8, 1 / 8, *[3 / 4 / levels] * levels]
    assert 2.0**-costs == pytest.approx(expected, rel=1e-3)


@given(st.binary(max_size=60), st.sampled_from([1, 3]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_bytes_decode_with_levels_too(data, slices, with_previous):
    positions = len(slicing.positions(0, slices, 4, 5))
    previous = slicing.split(sample(1, 4, 5), slices)[0] if with_previous else None
    found = ranges.decode(data, previous, 0, slices, (4, 5), 1, LEVELLED)
    assert found.symbols.shape == (6, positions)


def test_levels_are_named_in_the_config_only_where_there_are_some():
    assert "levels" not in CONFIG.to_dict()
    config = LEVELLED.config
    assert config.to_dict()["levels"] == 5
    assert ranges.HyperConfig.from_dict(config.to_dict(), 6, 2) == config
    for bad in (0, 17, "many"):
        with pytest.raises(FormatError):
            ranges.HyperConfig.from_dict(config.to_dict() | {"levels": bad}, 6, 2)
