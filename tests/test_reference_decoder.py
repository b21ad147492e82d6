"""mcode against the decoder that is written from docs/format.md alone: the same symbols, times and greyness of every stream."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import mcode
from mcode import manifold
from mcode.codec import Decoder, Encoder
from mcode.coders import range as ranges
from mcode.container import McodeReader, McodeWriter
from mcode.fec import FecSettings, Protector
from mcode.frame import Frame
from mcode.packet import Packet, StreamHeader
from mcode.rtp.payload import Packetiser, header_bytes
from mcode.video import FrameReader

from . import reference_decoder as reference
from .range_model import CONFIG, sample, tiny
from .test_coders import GOLDEN
from .test_range import FROZEN

CODERS = ("fixed", "huffman", "range")
SHIPPED = Path(mcode.__file__).parent / "manifolds"


def both(name):
    """As mcode and as the document have it. Pictures are analysed once."""
    model, known = manifold.load(name, "cpu"), {}
    analyse = model.analyse

    def remembered(rgb):
        key = rgb.shape, rgb.tobytes()
        if key not in known:
            known[key] = analyse(rgb)
        return known[key]

    model.analyse = remembered
    return model, reference.Manifold(SHIPPED / f"{name}.safetensors")


@pytest.fixture(scope="module")
def general():
    return both("general")


@pytest.fixture(scope="module")
def head():
    return both("talking-head")


@pytest.fixture(scope="module")
def pictures(clip):
    """Ten of 64x48 and, as the fixed size of talking-head, of 128x128."""
    return {size: [frame.rgb for frame in FrameReader(clip, size=size, duration_s=0.38)] for size in ((64, 48), (128, 128))}


def even(i):
    return 3600 * i


def uneven(i):
    return 3600 * i + (1234 * i * i) % 2999


def encoded(model, rgbs, pts=even, n=3, **options):
    encoder = Encoder(model, rgbs[0].shape[1], rgbs[0].shape[0], n=n, **options)
    frames = [Frame(rgb, pts(i)) for i, rgb in enumerate(rgbs)]
    return [packet for frame in frames for packet in encoder.push(frame)] + encoder.flush()


class Listening(Decoder):
    """Symbols, times and greyness of each keyframe; no pictures."""

    def __init__(self, model):
        super().__init__(model)
        self.heard = []

    def _synthesise(self, header, a, b, times, positions, wanted):
        self.heard.append(reference.Decoded(self._symbols, times, header.grey))
        return iter(())


def mcodes(model, packets):
    decoder = Listening(model)
    for packet in packets:
        decoder.push(packet)
    return decoder.heard


def assert_alike(found, expected):
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.symbols, theirs.symbols)
        assert (ours.times, ours.grey) == (theirs.times, theirs.grey)


def assert_file_alike(tmp_path, manifolds, packets):
    """As a file, by the reference decoder, and by mcode's reader and decoder."""
    model, document = manifolds
    path = tmp_path / "a.mcode"
    with McodeWriter(path, force=True) as writer:
        for packet in packets:
            writer.write(packet, packets[0].header.n)
    found = reference.decode_file(path, document)
    assert_alike(found, mcodes(model, McodeReader(path)))
    return found


def assert_wire_alike(manifolds, packets, **options):
    model, document = manifolds
    packetiser = Packetiser(7, first_sequence=65_530, first_timestamp=2**32 - 9, **options)
    sent = [bytes(rtp) for packet in packets for rtp in packetiser.push(packet)] + [bytes(rtp) for rtp in packetiser.flush()]
    assert "bundle" not in options or len(sent) < len(packets)
    assert_alike(reference.decode_wire(sent, document), mcodes(model, packets))
    return [part for each in sent for part in reference.parse_bundle(each)]


# Frozen streams


def test_frozen_streams_of_fixed_and_huffman():
    tables = reference.Tables(bytes.fromhex(GOLDEN["tables"]))
    symbols, previous, clipped = (np.array(GOLDEN[name]) for name in ("symbols", "previous", "clipped"))
    streams = {name: bytes.fromhex(GOLDEN[name]) for name in ("fixed", "whole", "delta")}
    count = symbols.shape[1]
    assert np.array_equal(reference.decode_fixed(streams["fixed"], count, tables), clipped)
    assert np.array_equal(reference.decode_huffman(streams["whole"], None, count, tables), symbols)
    assert np.array_equal(reference.decode_huffman(streams["delta"], previous, count, tables), symbols)


def hyperprior(model):
    return reference.Hyperprior(model.config.to_dict(), model.to_tensors(), model.config.channels)


def decode_range(model, parts, previous, h, w, quality):
    found, document = np.zeros((6, h * w), int), hyperprior(model)
    for index, data in enumerate(parts):
        where = reference.positions(index, len(parts), h, w)
        before = None if previous is None else previous.reshape(6, -1)[:, where].astype(int)
        found[:, where], damaged = document.decode(data, before, where, len(parts), (h, w), quality)
        assert not damaged
    return found.reshape(6, h, w)


@pytest.mark.parametrize(("with_previous", "slices"), FROZEN)
def test_frozen_streams_of_range(with_previous, slices):
    symbols = sample(3, 4, 5)
    previous = symbols - (np.arange(symbols.size).reshape(symbols.shape) % 7 == 0) if with_previous else None
    frozen = [bytes.fromhex(part) for part in FROZEN[with_previous, slices].split()]
    assert np.array_equal(decode_range(tiny(), frozen, previous, 4, 5, 2), symbols)


@pytest.mark.parametrize("levels", [1, 5])
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_range_with_a_hyper_latent_levels_escapes_and_sums_that_wrap(levels, slices):
    model = tiny(config=replace(CONFIG, levels=levels))
    symbols = sample(4, 22, 25)
    symbols[0, 3], symbols[3, 2], symbols[5, 0] = 32_767, -32_768, 4097
    for quality, changed in ((1, None), (2, 997), (1, 41), (2, 5), (1, 2)):
        previous = None
        if changed:
            previous = symbols - (np.arange(symbols.size).reshape(symbols.shape) % changed == 0).astype(np.int16)
        parts = ranges.encode(symbols, previous, slices, quality, model)
        assert np.array_equal(decode_range(model, parts, previous, 22, 25, quality), symbols)


def test_damage_that_range_tells_is_told_alike():
    symbols = sample(3, 9, 8)
    (data,) = ranges.encode(symbols, None, 1, 1, tiny())
    where = reference.positions(0, 1, 9, 8)
    for spoilt in (b"", data[:-5], data + b"\1", bytes([data[0] ^ 64]) + data[1:], b"\0" * 4 + data, data[:9] + data[10:]):
        theirs = ranges.decode(spoilt, None, 0, 1, (9, 8), 1, tiny())
        ours, damaged = hyperprior(tiny()).decode(spoilt, None, where, 1, (9, 8), 1)
        assert damaged == (theirs.damaged or theirs.needs_previous)
        assert np.array_equal(ours, theirs.symbols)


# Files


def header_of(manifolds, n=4):
    return StreamHeader(bytes.fromhex(manifolds[0].id), 16, 16, 16, 16, n, "huffman", 3, 1)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("slices", "pts", "quality"), [(1, even, 5), (3, uneven, 8), (16, uneven, 1)])
def test_files_of_any_coder_slices_and_times(general, pictures, tmp_path, coder, slices, pts, quality):
    packets = encoded(
        general[0], pictures[64, 48], pts, coder=coder, slices=slices, quality=quality, refresh_s=0.3, dead_zone=0.5
    )
    assert 1 < sum(packet.header is not None for packet in packets) < len(packets)
    assert any(packet.times is not None for packet in packets) == (pts is uneven)
    found = assert_file_alike(tmp_path, general, packets)
    assert list(chain.from_iterable(each.times for each in found)) == [pts(i) for i in range(10)]


@pytest.mark.parametrize("coder", ["fixed", "huffman"])
def test_files_of_a_manifold_of_one_size(head, pictures, tmp_path, coder):
    assert_file_alike(tmp_path, head, encoded(head[0], pictures[128, 128], uneven, n=4, coder=coder))


@pytest.mark.parametrize("coder", CODERS)
def test_grey_comes_and_goes(general, pictures, tmp_path, coder):
    rgbs = [rgb if 4 <= i < 8 else rgb[..., :1].repeat(3, axis=2) for i, rgb in enumerate(pictures[64, 48])]
    found = assert_file_alike(tmp_path, general, encoded(general[0], rgbs, n=2, coder=coder, refresh_s=0.1))
    assert {each.grey for each in found} == {False, True}


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("size", [(1, 1), (17, 65), (64, 48)])
def test_pictures(general, pictures, tmp_path, coder, size):
    rgb = np.ascontiguousarray(np.resize(pictures[64, 48][0], (size[1], size[0], 3)))
    (found,) = assert_file_alike(tmp_path, general, encoded(general[0], [rgb], n=1, coder=coder))
    assert found.times == [0]


def test_a_size_that_changes_begins_anew(general, pictures, tmp_path):
    packets = encoded(general[0], pictures[64, 48][:4], n=1)
    later = encoded(general[0], [rgb[:40, :40].copy() for rgb in pictures[64, 48][4:8]], lambda i: even(4 + i), n=1)
    assert_file_alike(tmp_path, general, packets + later)


@pytest.mark.parametrize(
    ("n", "steps", "times", "gap"),
    [
        (4, 9, None, 14_400),
        (9, 9, None, 5),
        (4, 3, (9000, 1), 9001),
        (4, 3, (9000, 1), 9000),
        (4, 3, (9000, 1), 7),
        (4, 6, (6, 5, 4, 3, 1), 99),
        (300, 250, None, 999),
        (4, 4, None, 1),
    ],
)
def test_times_that_fit_and_that_do_not(general, tmp_path, n, steps, times, gap):
    packets = [Packet(0, 1, None, header_of(general, n), (b"",)), Packet(gap, steps, times, None, (b"",))]
    assert_file_alike(tmp_path, general, packets)


def test_samples_lie_where_the_document_says_beside_sound(clip, general, tmp_path):
    with McodeWriter(tmp_path / "a.mcode", audio_from=clip) as writer:
        packets = [
            Packet(54_000 * i, 1 if i == 0 else 4, None, header_of(general) if i % 5 == 0 else None, (bytes([i]) * i,))
            for i in range(40)
        ]
        for packet in packets:
            writer.write(packet, 4)
    assert reference.samples(tmp_path / "a.mcode") == [(packet.pts, packet.to_sample(4)) for packet in packets]


def test_the_ids_of_shipped_manifolds_are_the_hash_that_is_written_down(general, head):
    for model, document in (general, head):
        assert document.content_id == document.id == model.id


# The wire


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    ("options", "slices"), [({}, 4), ({"mtu": 200}, 1), ({"twice": True, "mtu": 300}, 3)], ids=["whole", "fragments", "twice"]
)
def test_packets_of_any_coder(general, pictures, coder, options, slices):
    packets = encoded(general[0], pictures[64, 48], uneven, coder=coder, slices=slices, quality=8, refresh_s=0.3)
    sent = assert_wire_alike(general, packets, **options)
    assert not any(packet.damaged for packet in sent)
    assert any(packet.fragment for packet in sent) == (slices == 1)


def test_epochs_are_followed_and_the_description_serves_until_the_first(general, pictures):
    packets = [
        packet
        for start, quality in enumerate((3, 4, 4, 5, 6, 7))
        for packet in encoded(general[0], pictures[64, 48][:2], lambda i, at=2 * start: even(at + i), n=1, quality=quality)
    ]
    assert [packet.epoch for packet in assert_wire_alike(general, packets)[::2]] == [0, 1, 1, 2, 3, 1]
    packets, packetiser = encoded(general[0], pictures[64, 48][:3], n=1, coder="fixed"), Packetiser(7)
    sent = [bytes(rtp) for packet in packets for rtp in packetiser.push(packet)]
    described, _ = reference.stream_header(header_bytes(packets[0].header), 0)
    assert len(reference.decode_wire(sent[1:], general[1])) == 0
    assert len(reference.decode_wire(sent[1:], general[1], described)) == 2


@pytest.mark.parametrize("twice", [False, True])
def test_bundles(general, pictures, twice):
    for slices in (1, 3):
        uneven = [3600 * i + 3599 * (i % 3 == 1) for i in range(len(pictures[64, 48]))]  # nearly two frames at a time
        packets = encoded(general[0], pictures[64, 48], uneven.__getitem__, n=3, slices=slices, refresh_s=0.3, cuts=False)
        found = assert_wire_alike(general, packets, bundle=4, twice=twice)
        assert any(packet.times for packet in found)
        assert len(found) == len(packets) and not any(packet.damaged for packet in found)


def test_parity_packets(general):
    packetiser, protector = Packetiser(7), Protector(FecSettings(5, 3))
    packets = [Packet(3600 * i, 4, None, None if i else header_of(general), (bytes([7 * i]) * (20 + i),)) for i in range(5)]
    media = [rtp for packet in packets for rtp in packetiser.push(packet)]
    repairs = [repair for packet in media for repair in protector.push(packet)]
    rows = [len(bytes(packet)).to_bytes(2) + bytes(packet) for packet in media]
    longest = max(map(len, rows))
    columns = zip(*(row.ljust(longest, b"\0") for row in rows), strict=True)
    parity = [reference.parity_bytes(bytes(column), 3) for column in columns]
    assert len(repairs) == 3
    for index, repair in enumerate(repairs):
        datagram = bytes(repair)
        assert datagram[2:12] == bytes(media[-1])[2:12] and datagram[12:17] == bytes([0, 0, 5, 3, index])
        assert int.from_bytes(datagram[17:19]) == reference.crc16(datagram[:17])
        assert datagram[19:] == bytes(each[index] for each in parity)


# What damage is


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({0: 0x09}, reference.Newer),
        ({1: 3}, reference.Newer),
        ({1: 0}, reference.Damage),
        ({2: 0x33}, reference.Damage),
        ({11: 0}, reference.Damage),
    ],
)
def test_newer_formats_and_damage_of_a_first_sample_are_told_alike(general, change, outcome):
    data = bytearray(Packet(0, 1, None, header_of(general), (b"",)).to_sample(4))
    for at, value in change.items():
        data[at] = value
    with pytest.raises(outcome):
        reference.parse_sample(bytes(data), None)
    expected = mcode.errors.FormatError if outcome is reference.Newer else mcode.errors.WireError
    with pytest.raises(expected):
        Packet.parse_sample(bytes(data), 0, None)
    later = Packet(0, 1, None, header_of(general), (b"",)).to_sample(4)
    stream = reference.parse_sample(later, None).header
    with pytest.raises(reference.Damage):
        reference.parse_sample(bytes(data), stream)


def test_the_decoder_shares_the_documents_headings_and_nothing_with_the_package():
    text = Path(reference.__file__).read_text(encoding="utf-8")
    document = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)", document, re.M)
    assert [name for name in headings if name != "Damage and loss"] == re.findall(r"^# (.*)", text, re.M)
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not any(word in line for line in lines for word in ("mcode", "constriction", "from ."))
