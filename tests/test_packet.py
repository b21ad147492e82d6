"""The byte layout of formats 1 and 2: literal bytes both ways, every truncation, round trips and seeded damage."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode.errors import FormatError, WireError
from mcode.packet import CODERS, LAYOUT, Packet, StreamHeader

HEADER = StreamHeader(b"\x01\x02\x03\x04\x05\x06\x07\x08", 640, 368, 640, 360, 4, "huffman", 3, 1)
REFRESH = Packet(0, 1, None, HEADER, (b"\xaa\xbb",))

GOLDEN = {
    "steady state": (Packet(900, 4, None, None, (b"\xaa\xbb",)), HEADER, "00aabb"),
    "empty slice": (Packet(900, 4, None, None, (b"",)), HEADER, "00"),
    "first": (REFRESH, None, "0301130102030405060708 8005 f002 8005 e802 04 01 01 aabb"),
    "refresh": (Packet(0, 4, None, HEADER, (b"",)), None, "0101130102030405060708 8005 f002 8005 e802 04 01"),
    "fewer steps at the end": (Packet(900, 2, None, None, (b"\xcc",)), HEADER, "0202cc"),
    "uneven times": (Packet(9000, 4, (7000, 6999, 300), None, (b"\xcc",)), HEADER, "04 01 ab34 ac02 cc"),
    "three slices": (
        Packet(0, 300, None, StreamHeader(bytes(8), 1, 65535, 17, 23, 300, "range", 15, 3), (b"\x01", b"", b"\x02\x03")),
        None,
        "01 01 2f 0000000000000000 01 ffff03 11 17 ac02 03 01 01 00 0203",
    ),
    "grey": (Packet(0, 4, None, replace(HEADER, grey=True), (b"",)), None, "0102130102030405060708 8005 f002 8005 e802 04 01"),
    "fixed, steps and times": (
        Packet(5, 2, (3,), StreamHeader(b"\xff" * 8, 9, 9, 9, 9, 1, "fixed", 0, 1), (b"\x07",)),
        None,
        "07 01 00 ffffffffffffffff 09 09 09 09 01 01 02 03 07",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_both_ways(name):
    packet, stream, text = GOLDEN[name]
    n = (packet.header or stream).n
    assert packet.to_sample(n) == bytes.fromhex(text)
    assert Packet.parse_sample(bytes.fromhex(text), packet.pts, stream) == packet


@pytest.mark.parametrize("name", GOLDEN)
def test_trailing_bytes_belong_to_the_last_slice(name):
    packet, stream, text = GOLDEN[name]
    longer = Packet.parse_sample(bytes.fromhex(text) + b"\xfe\xff", packet.pts, stream)
    assert longer.slices == (*packet.slices[:-1], packet.slices[-1] + b"\xfe\xff")


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_is_a_shorter_last_slice_or_the_wires_error(name):
    packet, stream, text = GOLDEN[name]
    data = bytes.fromhex(text)
    fixed_part = len(data) - len(packet.slices[-1])
    for size in range(len(data)):
        if size < fixed_part:
            with pytest.raises(WireError):
                Packet.parse_sample(data[:size], packet.pts, stream)
        else:
            assert Packet.parse_sample(data[:size], packet.pts, stream).slices[-1] == data[fixed_part:size]


def test_a_steady_keyframe_costs_one_byte_over_its_slice():
    assert len(Packet(0, 8, None, None, (bytes(14),)).to_sample(8)) == 15


def test_a_newer_format_is_named_to_commands_and_to_receive_loops():
    newer = bytes.fromhex("01 03") + bytes(20)
    with pytest.raises(FormatError, match=r"^stream format 3, this is mcode .*, which reads stream formats 1 and 2; install"):
        Packet.parse_sample(newer, 0, None)
    with pytest.raises(WireError, match="format above 2"):
        Packet.parse_sample(b"\x08", 0, HEADER)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("01 00 00", "no stream format 0"),
        ("01 01 30" + "00" * 20, "no coder 3"),
        ("01 01 10 0000000000000000 00 01 01 01 01 01", "size is 1 to 65535, not 0"),
        ("01 01 10 0000000000000000 808004 01 01 01 01 01", "size is 1 to 65535, not 65536"),
        ("01 01 10 0000000000000000 01 01 01 01 00 01", "n is 1 to"),
        ("01 01 10 0000000000000000 01 01 01 01 01 00", "slices is 1 to"),
        ("01 01 10 0000000000000000 01 01 01 01 01 8002", "slices is 1 to 255, not 256"),
        ("02 00", "steps is 1 to"),
        ("02 8080808080 01", "more than 5 bytes"),
        ("04 00 01 01", "time is 1 to"),
        ("", "ends 1 bytes early"),
    ],
)
def test_bad_fields_are_the_wires_error_and_say_which(text, says):
    with pytest.raises(WireError, match=says):
        Packet.parse_sample(bytes.fromhex(text), 0, HEADER)


def test_a_slice_longer_than_the_sample_is_refused():
    stream = StreamHeader(bytes(8), 1, 1, 1, 1, 1, "fixed", 1, 2)
    with pytest.raises(WireError, match="4294967293 bytes early"):
        Packet.parse_sample(bytes.fromhex("00 ffffffff0f 0102"), 0, stream)


def test_a_keyframe_before_the_first_refresh_is_refused():
    with pytest.raises(WireError, match="before the first refresh"):
        Packet.parse_sample(b"\x00\x01", 0, None)


def test_misuse_raises_at_once():
    with pytest.raises(ValueError, match="slice 1 is missing"):
        Packet(0, 4, None, None, (b"", None)).to_sample(4)
    with pytest.raises(ValueError, match="steps is 1 to 65535, not 0"):
        Packet(0, 0, None, None, (b"",))
    with pytest.raises(ValueError, match="4 steps have 3 times"):
        Packet(0, 4, (1,), None, (b"",))
    with pytest.raises(ValueError, match="must fall strictly"):
        Packet(0, 3, (5, 5), None, (b"",)).to_sample(3)
    with pytest.raises(ValueError, match="the header says 1 slices"):
        Packet(0, 4, None, HEADER, (b"", b"")).to_sample(4)
    with pytest.raises(ValueError, match="width is 1 to 65535, not 65536"):
        StreamHeader(bytes(8), 65536, 1, 1, 1, 1, "fixed", 1, 1)
    for height in (0, 65_536):
        with pytest.raises(ValueError, match=f"display_height is 1 to 65535, not {height}"):
            StreamHeader(bytes(8), 1, 1, 1, height, 1, "fixed", 1, 1)
    with pytest.raises(ValueError, match="quality is 0 to 15, not 16"):
        StreamHeader(bytes(8), 1, 1, 1, 1, 1, "fixed", 16, 1)
    with pytest.raises(ValueError, match="coder is one of fixed, huffman, range, not 'lzw'"):
        StreamHeader(bytes(8), 1, 1, 1, 1, 1, "lzw", 1, 1)
    with pytest.raises(ValueError, match="manifold_id has 8 bytes, not 7"):
        StreamHeader(bytes(7), 1, 1, 1, 1, 1, "fixed", 1, 1)


SIZES = st.integers(1, 65535)


@st.composite
def packets(draw):
    count = draw(st.sampled_from([1, 1, 2, 3, 255]))
    header = StreamHeader(
        draw(st.binary(min_size=8, max_size=8)),
        *(draw(SIZES) for _ in range(5)),
        draw(st.sampled_from(CODERS)),
        draw(st.integers(0, 15)),
        count,
        draw(st.booleans()),
    )
    steps = draw(st.one_of(st.just(header.n), st.integers(1, 20)))
    times = None
    if steps <= 20 and draw(st.booleans()):
        gaps = draw(st.lists(st.integers(1, 10**6), min_size=steps - 1, max_size=steps - 1))
        times = tuple(sum(gaps[i:]) for i in range(steps - 1))
    slices = tuple(draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count)))
    return header, Packet(draw(st.integers(0, 2**40)), steps, times, draw(st.sampled_from([None, header])), slices)


@given(packets())
@settings(deadline=None)
def test_round_trip(drawn):
    header, packet = drawn
    assert Packet.parse_sample(packet.to_sample(header.n), packet.pts, header) == packet


@given(st.binary(max_size=200), st.sampled_from([None, HEADER]))
@settings(deadline=None)
def test_any_bytes_parse_or_are_the_wires_error(data, stream):
    try:
        packet = Packet.parse_sample(data, 0, stream)
    except WireError:
        return
    again = Packet.parse_sample(packet.to_sample((packet.header or stream).n), 0, stream)
    assert again == packet


def test_damaged_samples_parse_or_are_the_wires_error():
    rng = random.Random(2)
    parsed = 0
    for packet, stream, text in GOLDEN.values():
        for _ in range(300):
            data = bytearray(bytes.fromhex(text) + bytes(30))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                Packet.parse_sample(bytes(data), packet.pts, stream)
                parsed += 1
            except WireError:
                pass
    assert 300 < parsed < 2600  # both happen


def test_the_layout_names_every_coder_and_field():
    assert all(f"{number} {name}" in LAYOUT for number, name in enumerate(CODERS))
