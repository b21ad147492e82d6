"""RTP: literal bytes both ways, every truncation, damage that is only counted, and order out of disorder."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode.errors import FormatError, InputError, WireError
from mcode.packet import Packet, StreamHeader
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import MTU, RtpPacket, is_rtcp, unwrap
from mcode.rtp.payload import Depacketiser, Packetiser, WireHeader, crc16
from mcode.rtp.reception import Reception

STREAM = StreamHeader(bytes.fromhex("00112233445566ff"), 64, 48, 128, 96, 4, "huffman", 3, 2)
RTP = RtpPacket(96, 0x1234, 0x01020304, 0xAABBCCDD, b"hi", True)
RTP_BYTES = bytes.fromhex("80e01234 01020304 aabbccdd 6869")


def keyframe(index, *, header=None, slices=(b"abc", b"defg"), steps=4, times=None):
    return Packet(index * 14_400, steps, times, header, slices)


def stream(count, refresh_every=100, **options):
    return [keyframe(i, header=STREAM if i % refresh_every == 0 else None, **options) for i in range(count)]


def datagrams(packets, **options):
    packetiser = Packetiser(0xAABBCCDD, first_sequence=65_530, first_timestamp=2**32 - 5, **options)
    return [[bytes(p) for p in packetiser.push(packet)] for packet in packets]


def receive(groups, depacketiser=None):
    """Keyframes 160 ms apart, each's datagrams at once; then a second of silence."""
    depacketiser = depacketiser or Depacketiser()
    found = [r for i, group in enumerate(groups) for d in group for r in depacketiser.push(d, 0.16 * i)]
    return found + depacketiser.poll(0.16 * len(groups) + 1)


# the RTP packet


def test_rtp_packet_is_these_bytes_both_ways():
    assert bytes(RTP) == RTP_BYTES and RtpPacket.parse(RTP_BYTES) == RTP


def test_rtp_padding_sources_and_extensions_are_taken_off():
    dressed = bytes.fromhex("b2e01234 01020304 aabbccdd 00000001 00000002 beef0001 00000000") + b"hi" + b"\0\0\3"
    assert RtpPacket.parse(dressed) == RTP


def test_every_truncation_of_an_rtp_header_is_the_wires_fault():
    dressed = bytes.fromhex("92e01234 01020304 aabbccdd 00000001 00000002 beef0001 00000000")
    for size in range(len(dressed)):
        with pytest.raises(WireError):
            RtpPacket.parse(dressed[:size])
    for bad in ("40", "00", "c0"):
        with pytest.raises(WireError):
            RtpPacket.parse(bytes.fromhex(bad) + RTP_BYTES[1:])


@pytest.mark.parametrize(("padding", "payload"), [(1, b"hi"), (3, b""), (0, None), (4, None)])
def test_padding_counts_itself_and_takes_no_more_than_there_is(padding, payload):
    padded = bytes([0xA0]) + RTP_BYTES[1:] + bytes([padding])
    if payload is None:
        with pytest.raises(WireError, match="padding"):
            RtpPacket.parse(padded)
    else:
        assert RtpPacket.parse(padded).payload == payload
    control = bytes([0xA0, 201, 0, 2]) + bytes(7) + bytes([padding])
    if padding == 0:
        with pytest.raises(WireError, match="padding"):
            rtcp.parse_compound(control)


def test_control_packets_are_told_by_their_type():
    assert [kind for kind in range(256) if is_rtcp(bytes([0x80, kind]))] == list(range(192, 224))


@given(st.integers(-(2**40), 2**40), st.integers(-30_000, 30_000))
def test_numbers_unwrap_across_their_ends(near, step):
    assert unwrap((near + step) & 0xFFFF, near, 16) == near + step


# MCode in RTP


def test_payload_header_is_these_bytes():
    (packet,) = Packetiser(1, first_sequence=7).push(keyframe(0, header=STREAM))
    raw = bytes.fromhex("11") + bytes([crc16(b"abcdefg") & 255]) + bytes.fromhex("0000 00 02 04")
    raw += bytes.fromhex("01 13 00112233445566ff 40 30 8001 60 04 02") + b"\x03"
    assert packet.payload == raw + crc16(packet.header + raw).to_bytes(2) + b"abcdefg"
    assert packet.marker and crc16(b"123456789") == 0x29B1


def test_a_steady_keyframe_costs_ten_bytes_of_header():
    later = Packetiser(1)
    later.push(keyframe(0, header=replace(STREAM, slices=1), slices=(b"x",)))
    (packet,) = later.push(keyframe(1, slices=(b"0123456789",)))
    assert len(packet.payload) == 10 + 9


@pytest.mark.parametrize("twice", [False, True])
def test_keyframes_come_back_as_sent(twice):
    packets = stream(40, refresh_every=10)
    packets[3] = replace(packets[3], times=(9000, 6000, 100))
    packets[4] = replace(packets[4], slices=(b"", b""))
    found = receive(datagrams(packets, twice=twice))
    first = found[0].packet.pts
    assert [replace(r.packet, pts=r.packet.pts - first) for r in found] == packets
    assert [r.after_loss for r in found] == [True] + [False] * 39
    assert not any(any(r.damaged) for r in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12), st.booleans())
def test_slices_of_any_size_fit_the_mtu_and_come_back(sizes, twice):
    header = replace(STREAM, slices=len(sizes))
    packet = keyframe(0, header=header, slices=tuple(random.Random(i).randbytes(s) for i, s in enumerate(sizes)))
    groups = datagrams([packet], twice=twice)
    assert max(map(len, groups[0])) <= MTU
    (found,) = receive(groups)
    assert found.packet.slices == packet.slices and not any(found.damaged)


@pytest.mark.parametrize(
    ("size", "positions", "mtu", "slices"), [(0, 9, 1200, 1), (840, 9, 1200, 1), (841, 9, 1200, 2), (841, 1, 1200, 1),
    (10_000, 9, 1200, 9), (10**6, 10**6, 1200, 64), (1000, 99, 300, 7)]
)  # fmt: skip
def test_a_refresh_has_as_many_slices_as_fit_one_packet_each_and_as_there_are_positions(size, positions, mtu, slices):
    assert payload.fitting_slices(size, positions, mtu) == slices


def test_small_slices_share_a_packet():
    header = replace(STREAM, slices=6)
    (group,) = datagrams([keyframe(0, header=header, slices=tuple(bytes([i]) * 300 for i in range(6)))])
    assert len(group) == 2


def test_lengths_of_many_slices_fit_the_mtu_in_both_copies_of_the_header():
    slices = tuple(random.Random(i).randbytes(130) for i in range(255))
    groups = datagrams([keyframe(0, header=replace(STREAM, slices=255), slices=slices)], twice=True, mtu=9000)
    assert max(map(len, groups[0])) <= 9000
    assert receive(groups)[0].packet.slices == slices


def test_epochs_count_changes_of_the_stream_header_and_come_back_to_one():
    packetiser, epochs = Packetiser(1), []
    for number, quality in enumerate((1, 1, 2, 3, 4, 5)):
        (packet,) = packetiser.push(keyframe(number, header=replace(STREAM, quality=quality)))
        epochs.append(payload.parse(packet)[0].header.epoch)
    assert epochs == [0, 0, 1, 2, 3, 1]


@pytest.mark.parametrize(("time", "fits"), [((1 << 32) - 1, True), (1 << 32, False)])
def test_a_time_is_below_two_to_the_32_as_in_a_sample(time, fits):
    (group,) = datagrams([keyframe(1, header=STREAM, steps=2, times=(time,))])
    assert [r.packet.times for r in receive([group])] == [(time,)] * fits


def test_hundreds_of_uneven_times_are_left_out_rather_than_larger_than_a_packet():
    times = tuple(200 * i + i % 2 for i in range(399, 0, -1))
    (group,) = datagrams([keyframe(1, header=replace(STREAM, n=400), steps=400, times=times)])
    (found,) = receive([group])
    assert max(map(len, group)) <= MTU and (found.packet.steps, found.packet.times) == (400, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"first": 254, "count": 2, "lengths": (3,)},
        {"count": 2, "lengths": (3,), "fragment": (0, True)},
        {"first": 1, "count": 2, "lengths": (3,), "header": STREAM},
    ],
)
def test_headers_of_slices_that_cannot_be_are_damage(fields):
    rtp = RtpPacket(96, 1, 0, 5, b"")
    wire = WireHeader(**{"epoch": 0, "keyframe": 0, "first": 0, "count": 1, "steps": 1} | fields)
    with pytest.raises(WireError):
        payload.parse(replace(rtp, payload=wire.to_bytes(rtp.header, b"abcdef") + b"abcdef"))


def test_a_lost_packet_is_a_missing_slice():
    header = replace(STREAM, slices=4)
    slices = tuple(bytes([i]) * 900 for i in range(4))
    groups = datagrams([keyframe(0, header=header, slices=slices), keyframe(1, slices=slices)])
    del groups[1][2]
    found = receive(groups)
    assert found[1].packet.slices == (slices[0], slices[1], None, slices[3]) and not found[1].after_loss


def test_a_lost_fragment_cuts_its_slice_and_marks_it():
    header = replace(STREAM, slices=1)
    data = random.Random(1).randbytes(5000)
    groups = datagrams([keyframe(0, header=header, slices=(data,))])
    del groups[0][2]
    (found,) = receive(groups)
    cut = found.packet.slices[0]
    assert 2000 < len(cut) < 2400 and data.startswith(cut) and found.damaged == (True,)


def test_a_keyframe_whose_last_fragment_is_lost_comes_at_its_deadline_and_is_marked():
    data = random.Random(1).randbytes(5000)
    (group,) = datagrams([keyframe(0, header=replace(STREAM, slices=1), slices=(data,))])
    depacketiser = Depacketiser()
    assert not [r for d in group[:-1] for r in depacketiser.push(d, 1.0)]
    due_s = depacketiser.deadline_s
    assert 1.0 < due_s < 1.1 and depacketiser.poll(due_s - 0.001) == []
    (found,) = depacketiser.poll(due_s)
    assert data.startswith(found.packet.slices[0]) and found.damaged == (True,)


def test_what_comes_of_a_keyframe_that_was_given_is_late():
    packetiser, depacketiser = Packetiser(1), Depacketiser()
    for late in (0, 1):
        packetiser.keyframe = 0
        (packet,) = packetiser.push(keyframe(0, header=STREAM))
        assert len(depacketiser.push(bytes(packet), 0.1)) == 1 - late
        assert depacketiser.reception.counters.late == late


def test_a_lost_keyframe_is_told_and_the_next_goes_on():
    groups = datagrams(stream(6))
    del groups[3]
    assert [r.after_loss for r in receive(groups)] == [True, False, False, True, False]


def test_reordered_and_duplicated_packets_make_no_difference():
    groups = datagrams(stream(60))
    for seed in range(5):
        rng = random.Random(seed)
        depacketiser, found = Depacketiser(), []
        arrivals = [(0.16 * i + rng.uniform(0, 0.14), d) for i, g in enumerate(groups) for d in g * rng.choice([1, 1, 2])]
        for at, datagram in sorted(arrivals):
            found += depacketiser.push(datagram, at)
        found += depacketiser.poll(99)
        assert len(found) == 60 and not any(r.after_loss for r in found[1:])
        assert depacketiser.reception.counters.duplicate == len(arrivals) - 60


def test_overtaking_is_learnt_from_the_first_late_packet():
    groups = datagrams(stream(100), mtu=MTU)
    depacketiser, found = Depacketiser(), []
    arrivals = sorted((0.02 * i + (0.03 if i % 5 == 0 and i else 0), d) for i, g in enumerate(groups) for d in g)
    for at, datagram in arrivals:
        for moment in (at, at + 0.008):
            found += depacketiser.push(datagram, at) if moment == at else depacketiser.poll(moment)
    found += depacketiser.poll(99)
    assert sum(r.after_loss for r in found[30:]) == 0
    assert depacketiser.reception.counters.late < 10


def test_damaged_slices_come_with_a_mark_and_damaged_headers_do_not_come():
    groups = datagrams(stream(5))
    body = bytearray(groups[2][0])
    body[-1] ^= 1
    groups[2][0] = bytes(body)
    head = bytearray(groups[3][0])
    head[14] ^= 1
    groups[3][0] = bytes(head)
    depacketiser = Depacketiser()
    found = receive(groups, depacketiser)
    assert [r.damaged for r in found] == [(False,) * 2] * 2 + [(True,) * 2] + [(False,) * 2]
    assert (depacketiser.damaged_headers, depacketiser.damaged_packets) == (1, 1)


def test_a_header_sent_twice_survives_any_one_bit_error():
    packetiser = Packetiser(9, twice=True)
    for number, header in enumerate((STREAM, None)):
        (packet,) = packetiser.push(keyframe(number, header=header))
        header_bytes = len(packet.payload) - 7
        for bit in range(8 * header_bytes):
            raw = bytearray(packet.payload)
            raw[bit // 8] ^= 0x80 >> bit % 8
            (parsed,) = payload.parse(replace(packet, payload=bytes(raw)))
            assert parsed.slices == b"abcdefg" and parsed.header.header == header


def test_every_single_bit_error_in_a_header_is_noticed():
    (packet,) = Packetiser(9).push(keyframe(0, header=STREAM))
    raw = bytes(packet)
    for bit in range(8 * payload.protected_bytes(packet)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        if bit // 8 in (0, 1):  # version, padding, type, marker: of RTP itself
            continue
        with pytest.raises(WireError):
            payload.parse(RtpPacket.parse(bytes(damaged)))


def test_protected_bytes_end_where_the_slices_start():
    for twice in (False, True):
        (packet,) = Packetiser(9, twice=twice).push(keyframe(0, header=STREAM))
        assert bytes(packet)[payload.protected_bytes(packet) :] == b"abcdefg"


# Several keyframes in a packet


def bundles(packets, **options):
    packetiser = Packetiser(0xAABBCCDD, first_sequence=65_530, first_timestamp=2**32 - 5, **options)
    return [[bytes(p) for p in made] for made in [*map(packetiser.push, packets), packetiser.flush()]]


def test_a_bundle_is_these_bytes():
    packetiser = Packetiser(1, first_sequence=7, bundle=2)
    assert len(packetiser.push(keyframe(0, header=STREAM))) == 1  # a refresh goes alone
    assert packetiser.push(keyframe(1)) == []
    (packet,) = packetiser.push(keyframe(2, slices=(b"", b"xyz"), steps=200))
    raw = bytes.fromhex("20 0001 02 02") + bytes([crc16(b"abcdefg") & 255]) + bytes.fromhex("08 03 04")
    raw += bytes([crc16(b"xyz") & 255]) + bytes.fromhex("9003 c070 00 03")
    assert packet.payload == raw + crc16(packet.header + raw).to_bytes(2) + b"abcdefgxyz"
    assert (packet.sequence, packet.timestamp, packet.marker) == (8, 14_400, True)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("bundle", [2, 5, 64])
def test_bundled_keyframes_come_back_as_sent_in_fewer_packets(bundle, twice):
    packets = stream(200, refresh_every=70)
    packets[13] = replace(packets[13], times=(9000, 6000, 100))
    packets[14] = replace(packets[14], slices=(b"", b""))
    groups = bundles(packets, bundle=bundle, twice=twice)
    found = receive(groups)
    first = found[0].packet.pts
    assert [replace(r.packet, pts=r.packet.pts - first) for r in found] == packets
    assert [r.after_loss for r in found] == [True] + [False] * 199 and not any(any(r.damaged) for r in found)
    runs = (69, 69, 59)  # whole bundles between three refreshes, which go alone
    most = min(bundle, 17) if twice else bundle  # whose headers take 108 bytes
    assert sum(map(len, groups)) == 3 + sum(-(-run // most) for run in runs)
    assert max(len(d) for g in groups for d in g) <= MTU


def test_frames_nearly_even_are_sent_as_even_in_bundles_and_others_keep_their_times():
    even, camera, left_out = (10_800, 7200, 3600), (11_900, 6000, 4100), (10_800, 7200, 100)
    packets = [keyframe(0, header=STREAM), *(keyframe(i + 1, times=times) for i, times in enumerate((even, camera, left_out)))]
    given = [r.packet.times for r in receive(bundles(packets, bundle=3))]
    assert given == [None, None, None, left_out]
    alone = [r.packet.times for r in receive(datagrams(packets))]
    assert alone == [None, even, camera, left_out]


def test_slides_keep_their_times_in_bundles():
    times_s = [(0,), (6, 15, 28), (28.9, 29.9, 30.99), (32, 33.03, 34)]
    packets = []
    for at_s in times_s:
        ticks = [round(90_000 * each) for each in at_s]
        between = tuple(ticks[-1] - each for each in ticks[:-1]) or None
        packets.append(Packet(ticks[-1], len(ticks), between, None if packets else STREAM, (b"abcd", b"efg")))
    found = [r.packet for r in receive(bundles(packets, bundle=3))]
    assert [p.times for p in found] == [None, packets[1].times, packets[2].times, None]


def test_four_keyframes_of_ten_bytes_take_half_the_bytes_of_four_packets():
    header = replace(STREAM, slices=1)
    packets = [keyframe(0, header=header, slices=(b"x",))] + [keyframe(i, slices=(b"0123456789",)) for i in range(1, 5)]
    sizes = [[28 + len(d) for g in bundles(packets, bundle=n)[1:] for d in g] for n in (1, 4)]
    assert list(map(len, sizes)) == [4, 1] and 2 * sum(sizes[1]) < sum(sizes[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=30), st.integers(2, 9))
def test_bundles_of_any_sizes_fit_the_mtu_and_come_back(sizes, bundle):
    slices = [(random.Random(i).randbytes(size), b"") for i, size in enumerate(sizes)]
    packets = [keyframe(0, header=STREAM)] + [keyframe(i + 1, slices=each) for i, each in enumerate(slices)]
    groups = bundles(packets, bundle=bundle)
    assert max(len(d) for g in groups for d in g) <= MTU
    assert [r.packet.slices for r in receive(groups)[1:]] == slices


def test_keyframes_of_several_packets_end_the_bundle_before_them():
    large = (bytes(2000), bytes(3000))
    packets = [keyframe(0, header=STREAM), keyframe(1), keyframe(2, slices=large), keyframe(3)]
    groups = bundles(packets, bundle=4)
    assert list(map(len, groups)) == [1, 0, 1 + 5, 0, 1]
    assert [r.packet.slices for r in receive(groups)] == [p.slices for p in packets]


def test_a_lost_bundle_is_one_gap():
    groups = bundles(stream(13), bundle=4)
    assert [index for index, group in enumerate(groups) if group] == [0, 4, 8, 12]
    groups[8] = []
    found = receive(groups)
    assert [r.after_loss for r in found] == [True] + [False] * 4 + [True] + [False] * 3
    assert [r.lost for r in found] == [1] + [0] * 4 + [4] + [0] * 3


def test_a_bundle_is_one_packet_to_those_who_count_packets():
    groups = bundles(stream(13), bundle=4)
    raw = bytearray(groups[4][0])
    for at in (-25, -15, -5):  # in three of four times seven bytes
        raw[at] ^= 4
    depacketiser = Depacketiser()
    anew = Packetiser(0xAABBCCDD, first_sequence=65_532, first_timestamp=2**32 - 5, bundle=4)
    (again,) = [bytes(rtp) for packet in stream(5) for rtp in anew.push(packet)][1:]  # the keyframes of before
    found = receive([groups[0], [bytes(raw)], groups[8], [again]], depacketiser)
    assert sum(any(r.damaged) for r in found) == 3 and len(found) == 9
    assert (depacketiser.damaged_packets, depacketiser.reception.counters.late) == (1, 1)
    depacketiser = Depacketiser()
    receive(groups[1:], depacketiser)  # without the first header
    assert depacketiser.waiting == 3 and not depacketiser.header


def test_damage_in_a_bundle_is_told_of_the_keyframe_that_it_hit():
    groups = bundles(stream(4), bundle=3)
    raw = bytearray(groups[3][0])
    raw[-10] ^= 4  # of the second of three times seven bytes
    depacketiser = Depacketiser()
    found = receive([groups[0], [bytes(raw)]], depacketiser)
    assert [any(r.damaged) for r in found] == [False, False, True, False]
    assert (depacketiser.damaged_packets, depacketiser.damaged_headers) == (1, 0)
    cut = receive([groups[0], [groups[3][0][:-9]]])  # as only a link could that has no checksum
    assert [any(r.damaged) for r in cut] == [False, False, True, True]


def test_every_single_bit_error_in_a_bundles_header_is_noticed_and_mended_where_it_comes_twice():
    for twice in (False, True):
        packet = RtpPacket.parse(bundles(stream(4), bundle=3, twice=twice)[3][0])
        spared = payload.protected_bytes(packet)
        assert bytes(packet)[spared:] == 3 * b"abcdefg"
        for bit in range(8 * (spared - 12)):
            damaged = bytearray(packet.payload)
            damaged[bit // 8] ^= 0x80 >> bit % 8
            if not twice:
                with pytest.raises(WireError):
                    payload.parse(replace(packet, payload=bytes(damaged)))
                continue
            parsed = payload.parse(replace(packet, payload=bytes(damaged)))
            assert [each.slices for each in parsed] == 3 * [b"abcdefg"]
            assert [each.after_ticks for each in parsed] == [0, 14_400, 28_800]


def test_the_second_header_of_a_full_bundle_of_uneven_frames_is_found():
    # Ticks of 3072 to 4095 and 24 to 31 bytes look like the flags of a header sent twice.
    times = tuple(8300 + 3100 * left for left in range(6, -1, -1))
    packets = [keyframe(0, header=replace(STREAM, slices=1), slices=(b"x",))]
    packets += [Packet(30_000 * i, 8, times, None, (bytes(28),)) for i in range(1, 91)]
    groups = bundles(packets, bundle=64, twice=True)
    assert 1 < sum(map(len, groups)) < 30
    for data in [d for group in groups[1:] for d in group]:
        packet = RtpPacket.parse(data)
        length = (payload.protected_bytes(packet) - 12) // 2
        assert length <= 108 and packet.payload[:length] == packet.payload[length : 2 * length]
        for at in range(length):
            damaged = bytearray(packet.payload)
            damaged[at] ^= 0x10
            assert payload.parse(replace(packet, payload=bytes(damaged))) == payload.parse(packet)


def test_bundle_headers_that_cannot_be_are_damage():
    rtp = RtpPacket(96, 1, 0, 5, b"")
    one = WireHeader(0, 0, 0, 2, 4, lengths=(3, 4))
    good = payload.BundleHeader((one, one), (0, 0), (0, 3600))
    bad = [
        replace(good, keyframes=(one,), checks=(0,), after_ticks=(0,)),
        replace(good, after_ticks=(0, 0)),
        replace(good, keyframes=(one, replace(one, steps=0))),
        replace(good, keyframes=65 * (one,), checks=65 * (0,), after_ticks=tuple(range(65))),
        replace(good, keyframes=2 * (replace(one, count=0, lengths=()),)),
    ]
    assert len(payload.parse(replace(rtp, payload=good.to_bytes(rtp.header) + bytes(14)))) == 2
    for header in bad:
        with pytest.raises(WireError):
            payload.parse(replace(rtp, payload=header.to_bytes(rtp.header) + bytes(14)))
    with pytest.raises(ValueError, match="65"):
        Packetiser(1, bundle=65)


def test_a_late_joiner_takes_the_description_and_understands_bundles():
    groups = bundles(stream(30, refresh_every=15), bundle=4)
    joined = receive(groups[3:], Depacketiser(header=STREAM, header_ssrc=0xAABBCCDD))
    assert len(joined) == 29 and joined[0].after_loss
    depacketiser = Depacketiser()
    assert len(receive(groups[3:], depacketiser)) == 15 and depacketiser.waiting == 4


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 40))
def test_hostile_datagrams_are_counted_and_change_nothing(data, cut):
    good = datagrams(stream(3))
    depacketiser = Depacketiser()
    bundle = bundles(stream(4), bundle=3)[3][0]
    hostile = [
        bundle[: min(cut, payload.protected_bytes(RtpPacket.parse(bundle)) - 1)],
        bundle[:12] + b"\x20" + data,
        data,
        RTP_BYTES[:12] + data,
        good[1][0][:cut],
        good[1][0][:12] + data,
        bytes(1200),
        b"",
    ]
    found = list(depacketiser.push(good[0][0], 0.0))
    for datagram in hostile:
        found += depacketiser.push(datagram, 0.1)
    found += receive([[], *good[1:]], depacketiser)
    assert len(found) == 3
    counted = depacketiser.not_rtp + depacketiser.damaged_headers + depacketiser.reception.counters.foreign
    assert counted >= 3


def test_a_datagram_of_many_headers_is_little_work(monkeypatch):
    """Every ninth byte may begin a second header, and each such header has 60,000 times."""
    parse, parsed = payload._parse_varint, []
    monkeypatch.setattr(payload, "_parse_varint", lambda *arguments: parsed.append(1) or parse(*arguments))
    depacketiser = Depacketiser()
    for epoch in (0, 2):
        unit = bytes([epoch << 6 | 0x1A, 1, 1, 1, 1, 1, 0xE0, 0xD4, 3])
        depacketiser.push(bytes(RtpPacket(96, 1, 1, 1234, unit * 7000)), 100.0)
    assert depacketiser.damaged_headers == 2 and len(parsed) < 1000


def test_a_datagram_of_many_bundle_headers_is_little_work(monkeypatch):
    """Wherever a second header may begin, one of thousands of lengths does, and its CRC fits."""

    class Fitting(int):
        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

        __hash__ = int.__hash__

    parse, parsed = payload._parse_varint, []
    monkeypatch.setattr(payload, "_parse_varint", lambda *arguments: parsed.append(1) or parse(*arguments))
    monkeypatch.setattr(payload, "crc16", lambda data: Fitting(0))
    unit = b"\x28\2\2\x40\x7e\2\2\2"
    depacketiser = Depacketiser()
    depacketiser.push(bytes(RtpPacket(96, 1, 1, 1234, b"\x38" + unit * 8000)), 0.0)
    assert depacketiser.damaged_headers == 1 and 1000 < len(parsed) < 100 * 512


@pytest.mark.parametrize("filling", [b"\x18", None])
def test_the_search_for_a_second_header_is_bounded_and_strangers_are_not_searched(filling, monkeypatch):
    crc, taken = payload.crc16, []
    monkeypatch.setattr(payload, "crc16", lambda data: taken.append(1) or crc(data))
    data = filling * 1188 if filling else random.Random(1).randbytes(1188)
    depacketiser = Depacketiser()
    depacketiser.push(bytes(RtpPacket(96, 1, 1, 1234, data)), 0.0)
    assert len(taken) <= 101 and depacketiser.damaged_headers == 1
    receive(datagrams(stream(1)), depacketiser)
    taken.clear()
    depacketiser.push(bytes(RtpPacket(96, 1, 1, 1234, data)), 0.1)
    assert len(taken) <= 1 and depacketiser.damaged_headers == 2


def test_memory_is_bounded_whatever_comes():
    depacketiser = Depacketiser()
    packetiser = Packetiser(5)
    first = packetiser.push(keyframe(0, header=replace(STREAM, slices=1), slices=(b"x",)))[0]
    depacketiser.push(bytes(first), 0.0)
    piece = bytes(1100)
    for i in range(5000):
        rtp = RtpPacket(96, i + 1, 0, 5, b"")
        wire = WireHeader(0, 1, 0, 1, 1, fragment=(i * len(piece), True))
        depacketiser.push(bytes(replace(rtp, payload=wire.to_bytes(rtp.header, piece) + piece)), 0.0)
    assert depacketiser._open is not None and sum(map(len, depacketiser._open.slices.values())) <= 4 << 20
    reception = Reception(90_000)
    for i in range(0, 60_000, 2):
        reception.push(RtpPacket(96, i & 0xFFFF, 0, 1, b"x" * 100), 0.0)
    assert len(reception._pending) <= 512 and len(reception._recent) <= 1024


def test_late_joiner_waits_for_a_refresh_or_takes_the_description():
    groups = datagrams(stream(30, refresh_every=10))
    depacketiser = Depacketiser()
    found = receive(groups[5:], depacketiser)
    assert found[0].packet.header == STREAM and depacketiser.waiting == 5 and len(found) == 20
    assert len(receive(groups[5:], Depacketiser(header=STREAM, header_ssrc=0xAABBCCDD))) == 25
    assert len(receive(groups[5:], Depacketiser(header=STREAM, header_ssrc=1))) == 20


def test_a_change_of_coder_whose_refresh_is_lost_is_waited_out():
    other = replace(STREAM, coder="fixed")
    packets = [*stream(3), keyframe(3, header=other), keyframe(4), keyframe(5, header=other), keyframe(6)]
    groups = datagrams(packets)
    del groups[3]
    depacketiser = Depacketiser()
    found = receive(groups, depacketiser)
    assert len(found) == 5
    assert depacketiser.waiting == 1 and depacketiser.header == other


def test_a_sender_that_comes_back_is_followed_and_strangers_are_not():
    first, second, third = Packetiser(1), Packetiser(2), Packetiser(3)
    depacketiser = Depacketiser()
    one = [bytes(p) for k in stream(10) for p in first.push(k)]
    two = [bytes(p) for k in stream(10) for p in second.push(k)]
    found = []
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        found += depacketiser.push(a, 0.1 * i) + depacketiser.push(b, 0.1 * i)
    assert {r.ssrc for r in found} == {1} and len(found) == 10
    assert depacketiser.reception.counters.foreign == 10
    again = [bytes(p) for k in stream(10) for p in third.push(k)]
    back = [r for i, d in enumerate(again) for r in depacketiser.push(d, 1.1 + 0.1 * i)]
    assert {r.ssrc for r in back} == {3} and len(back) == 10
    assert depacketiser.reception.counters.foreign == 10 and depacketiser.reception.switches == 1
    after_silence = Depacketiser()
    for i, d in enumerate(one[:3]):
        after_silence.push(d, 0.1 * i)
    assert [r.ssrc for r in after_silence.push(again[0], 5.0)] == [3]


def test_a_source_whose_packets_come_rarely_is_not_taken_for_gone_between_them():
    reception, given = Reception(90_000), []
    for i in range(20):
        given += reception.push(RtpPacket(96, i, 230_400 * i, 1, b"bundle"), 2.56 * i)
        if i > 1:  # of the first two pauses nothing could be known
            given += [r for j in range(6) for r in reception.push(RtpPacket(96, j, 0, 2, b"x"), 2.56 * i + 2.3 + 0.01 * j)]
    assert {packet.ssrc for packet, _ in given} == {1} and reception.switches == 0
    assert reception.patience_s == pytest.approx(5.12)
    assert {r.packet.ssrc for r in reception.push(RtpPacket(96, 9, 0, 2, b"x"), 2.56 * 19 + 5.2)} == {2}


def test_an_outage_is_no_pause():
    reception = Reception(90_000)
    for i in [*range(50), *range(350, 400)]:  # twelve seconds of it
        reception.push(RtpPacket(96, i, 3600 * i, 1, b"x"), 0.04 * i)
    assert reception.patience_s == 2.0
    for j in range(5):
        given = reception.push(RtpPacket(96, j, 0, 2, b"x"), 16.6 + 0.04 * j)
    assert {packet.ssrc for packet, _ in given} == {2}


def test_jitter_is_that_of_the_network_whatever_share_a_packet():
    packetiser, depacketiser = Packetiser(1, bundle=16), Depacketiser()
    for i, packet in enumerate(stream(300, refresh_every=50)):
        for rtp in packetiser.push(packet):
            depacketiser.push(bytes(rtp), 0.16 * i)
    assert depacketiser.reception.jitter_s < 0.1  # what a refresh cuts short is up to a keyframe late


def test_of_two_live_senders_the_first_is_followed_however_their_packets_come():
    reception, given = Reception(90_000), []
    for i in range(100):
        for ssrc in (1, 2):
            for k in range(8):  # more in a row than make a challenge
                given += reception.push(RtpPacket(96, 8 * i + k, 3600 * i, ssrc, b"x"), 0.04 * i + 0.02 * (ssrc - 1))
    assert reception.switches == 0 and {each.packet.ssrc for each in given} == {1} and len(given) == 800


@pytest.mark.parametrize(("sequences", "keyframes"), [(20_000, 40_000), (65_536, 40_000), (20_000, -50), (65_636, 65_436)])
def test_keyframes_come_again_after_an_outage_in_which_half_of_their_indices_went_by(sequences, keyframes):
    groups = datagrams(stream(100))
    depacketiser = Depacketiser()
    assert len(receive(groups, depacketiser)) == 100
    later = Packetiser(0xAABBCCDD, first_sequence=65_530 + 100 + sequences, first_timestamp=2**32 - 5)
    later.keyframe = 100 + keyframes
    found = []
    for i in range(10):
        for packet in later.push(replace(keyframe(0, header=STREAM if i == 0 else None), pts=14_400 * (10_000 + i))):
            found += depacketiser.push(bytes(packet), 0.16 * (10_000 + i))
    assert len(found) >= 9 and found[0].after_loss and not any(each.after_loss for each in found[1:])


def test_timestamps_go_on_after_a_pause_longer_than_half_their_range():
    hours = 3600 * 90_000
    for pause in (7 * hours, 20 * hours):
        moments = [(0, 0.0), (14_400, 0.16), (14_400 + pause, 0.16 + pause / 90_000)]
        packetiser, depacketiser = Packetiser(9), Depacketiser()
        baseline, unpacked = h264.H264Packetiser(9), h264.H264Depacketiser()
        for pts, at_s in moments:
            (packet,) = packetiser.push(replace(keyframe(0, header=STREAM), pts=pts))
            assert [each.packet.pts for each in depacketiser.push(bytes(packet), at_s)] == [pts]
            (packet,) = baseline.push(annex_b([unit(9, 1), unit(1, 9)]), pts)
            assert [each.pts for each in unpacked.push(bytes(packet), at_s)] == [pts]
    sound, heard = opus.OpusPacketiser(9), opus.OpusDepacketiser()
    for pts, at_s in ((0, 0.0), (48_000 * 3600 * 14, 3600.0 * 14)):
        (packet,) = sound.push(b"x", pts)
        assert [each.pts for each in heard.push(bytes(packet), at_s)] == [pts]


def test_one_late_packet_is_forgotten_in_time():
    reception = Reception(90_000)
    for i in range(8000):
        for number in [i] if i != 105 else [105, 100]:
            if (i, number) != (100, 100):
                reception.push(RtpPacket(96, number & 0xFFFF, 3600 * number, 1, b"x"), 0.04 * i)
        if i == 110:
            assert reception.counters.late == 1 and reception.hold_s > 0.1
    assert reception.hold_s == pytest.approx(0.005)


def test_a_switch_is_to_another_source_with_a_goodbye_before_it_too():
    reception = Reception(90_000)
    for at_s, (sequence, ssrc, switches) in enumerate(((1, 7, 0), (2, 7, 0), (1, 8, 1), (2, 8, 1))):
        reception.push(RtpPacket(96, sequence, 0, ssrc, b"x"), at_s)
        assert (reception.ssrc, reception.switches) == (ssrc, switches)
        reception.bye(ssrc, at_s)
    for sequence in (3, 9000, 9001):  # the same anew
        reception.push(RtpPacket(96, sequence, 0, 8, b"x"), 4.0)
    assert reception.switches == 2


def numbers(arrived):
    return [each.packet.sequence for each in arrived]


def test_packets_that_overtake_the_first_one_are_put_in_order_and_later_ones_are_late():
    reception, given = Reception(90_000), []
    for sequence in (1, 65_535, 0, 2):
        given += reception.push(RtpPacket(96, sequence, 0, 7, b"x"), 0.0, opens=False)
    assert given == [] and reception.poll(0.09) == []
    given = reception.poll(0.11)
    assert numbers(given) == [65_535, 0, 1, 2] and not any(each.lost_before for each in given)
    assert reception.push(RtpPacket(96, 65_534, 0, 7, b"x"), 0.2) == []
    assert reception.push(RtpPacket(96, 0, 0, 7, b"x"), 0.2) == []
    counters = reception.counters
    assert (counters.received, counters.late, counters.duplicate, counters.lost) == (4, 1, 1, 0)
    assert reception.interval() == (0.0, 0)


def test_what_a_source_begins_with_is_given_at_once():
    reception = Reception(90_000)
    assert reception.push(RtpPacket(96, 5, 0, 7, b"x"), 0.0, opens=False) == []
    assert numbers(reception.push(RtpPacket(96, 4, 0, 7, b"x"), 0.01, opens=True)) == [4, 5]
    groups = datagrams(stream(2, slices=tuple(bytes([i]) * 1100 for i in range(2))))
    depacketiser = Depacketiser()
    assert len(groups[0]) == 2 and depacketiser.push(groups[0][1], 0.0) == []
    assert [each.packet.slices for each in depacketiser.push(groups[0][0], 0.02)] == [
        keyframe(0).slices and (bytes(1100), b"\1" * 1100)
    ]
    for codec, opening in (("h264", (7, 9)), ("h265", (32, 35))):
        for kind in range(24):
            packet = h264.H264Packetiser(7, codec=codec).push(annex_b([unit(kind, 9, codec), unit(8, 9, codec)]), 0)[0]
            assert h264.LAYOUTS[codec].opens(packet.payload) == (kind in opening)


def test_packets_that_a_goodbye_overtook_are_put_in_order_and_ones_long_after_it_undo_it():
    reception, given = Reception(90_000), []
    for sequence in (1, 2, 3, 5):
        given += reception.push(RtpPacket(96, sequence, 0, 7, b"x"), 0.0)
    reception.bye(7, 0.0)
    given += reception.push(RtpPacket(96, 4, 0, 7, b"x"), 0.01)
    assert numbers(given) == [1, 2, 3, 4, 5] and reception.counters.lost == 0 and reception.ssrc is None
    assert numbers(reception.push(RtpPacket(96, 6, 0, 7, b"x"), 0.7)) == [6] and reception.ssrc == 7
    reception.bye(7, 0.8)
    reception.push(RtpPacket(96, 7, 0, 7, b"x"), 0.81)
    assert numbers(reception.push(RtpPacket(96, 90, 0, 8, b"x"), 0.82)) == [90] and reception.switches == 1


def test_what_repair_brings_is_no_jitter_and_stays_lost_to_reports():
    reception, given = Reception(90_000), []
    for i in range(20):
        if i % 5 != 1:
            given += reception.push(RtpPacket(96, i, 3600 * i, 7, b"x"), 0.04 * i)
            reception.extra_hold_s = 1.0
        if i % 5 == 4:
            given += reception.push(RtpPacket(96, i - 3, 3600 * (i - 3), 7, b"x"), 0.04 * i, rebuilt=True)
    assert numbers(given) == list(range(20)) and reception.counters.lost == 0
    assert reception.jitter_s == pytest.approx(0, abs=1e-9)
    assert reception.interval() == (pytest.approx(0.2), 4) and reception.rebuilt == 4
    assert reception.push(RtpPacket(96, 6, 0, 7, b"x"), 1.0, rebuilt=True) == []
    assert reception.rebuilt == 4 and reception.counters.late == reception.counters.duplicate == 0
    reception.push(RtpPacket(96, 16, 3600 * 16, 7, b"x"), 1.0)  # it did come, later than its repair
    assert reception.interval() == (0.0, 3)


@pytest.mark.parametrize(("before", "anew"), [(10_000, 5000), (30_000, 65_535)])
def test_a_source_that_starts_anew_is_followed_from_its_second_packet_on(before, anew):
    reception = Reception(90_000)
    given = [reception.push(RtpPacket(96, (anew + i) & 0xFFFF, 0, 8, b"x"), 0.0) for i in (before - anew, 0, 1, 2)]
    followed = [[(anew + i) & 0xFFFF] for i in (1, 2)]
    assert [[a.packet.sequence for a in arrived] for arrived in given] == [[before], [], *followed]
    assert (reception.switches, reception.counters.foreign) == (1, 1)


def test_a_gap_is_waited_for_longer_where_repair_may_come():
    reception = Reception(90_000)
    reception.extra_hold_s = 0.5
    for sequence in (0, 2):
        reception.push(RtpPacket(96, sequence, 0, 8, b"x"), 0.0)
    assert reception.poll(0.3) == []
    assert [(a.packet.sequence, a.lost_before) for a in reception.poll(0.51)] == [(2, 1)]


def test_gaps_are_waited_for_as_long_as_the_latest_packet_came_late():
    reception = Reception(90_000)
    for sequence, at_s in ((0, 0.0), (2, 0.0), (3, 0.01), (1, 0.04)):
        reception.push(RtpPacket(96, sequence, round(90_000 * at_s), 8, b"x"), at_s)
    assert reception.counters.late == 1 and 0.04 < reception.hold_s < 0.06
    reception.jitter_s = 5.0
    assert reception.hold_s == 0.25


def test_timestamps_that_begin_anew_are_no_jitter():
    reception = Reception(90_000)
    for i in range(20):
        reception.push(RtpPacket(96, i, 2**32 - 9000 + 900 * i & 0xFFFFFFFF, 8, b"x"), 0.01 * i)
    assert reception.jitter_s < 0.001


def of_a_newer_format(ssrc, sequence=0):
    (packet,) = Packetiser(ssrc, first_sequence=sequence).push(keyframe(0, header=STREAM))
    end = payload.protected_bytes(packet) - 12 - 2
    raw = bytearray(packet.payload[:end])
    raw[7] = 3  # the stream header's format
    whole = bytes(raw) + crc16(packet.header + bytes(raw)).to_bytes(2) + b"abcdefg"
    return bytes(replace(packet, payload=whole))


def test_a_newer_format_is_named():
    with pytest.raises(FormatError, match="format 3"):
        Depacketiser().push(of_a_newer_format(1), 0.0)


def test_a_newer_format_amid_a_stream_or_from_a_stranger_is_damage():
    groups = datagrams(stream(6))
    (first,) = groups[0]
    ours = int.from_bytes(first[8:12])
    depacketiser = Depacketiser()
    found = receive(groups[:3], depacketiser)
    for ssrc in (ours, ours + 1):
        depacketiser.push(of_a_newer_format(ssrc, 3), 0.2)
    found += receive(groups[3:], depacketiser)
    assert len(found) == 6 and depacketiser.damaged_headers == 2
    waiting = Depacketiser()  # follows the stream, but has nothing of it yet
    waiting.push(groups[1][0], 0.0)
    waiting.push(of_a_newer_format(ours + 1), 0.1)
    assert waiting.damaged_headers == 1


def test_report_of_what_was_lost():
    reception = Reception(90_000)
    for i in (0, 1, 2, 4, 5, 6, 7, 9):
        reception.push(RtpPacket(96, i, i * 900, 1, b"x"), 0.01 * i)
    assert reception.interval() == (pytest.approx(0.2), 2)
    assert reception.interval() == (0.0, 2)
    assert reception.highest == 9 and reception.jitter_s == pytest.approx(0, abs=1e-9)


def test_late_packets_are_no_losses_to_a_report():
    reception = Reception(90_000)
    for i, number in enumerate([0, 1, 3, 4, 2, 5, 6, 7, 9]):  # 2 comes too late, 8 not at all
        reception.push(RtpPacket(96, number, number * 900, 1, b"x"), 0.01 * i)
    reception.poll(9.0)
    assert reception.counters.late == 1 and reception.counters.lost == 2
    assert reception.interval() == (pytest.approx(0.1), 1)


# H.264, H.265, Opus


def unit(kind, size, codec="h264", seed=0):
    head = bytes([0x60 | kind]) if codec == "h264" else bytes([kind << 1, 1])
    return head + bytes(b or 7 for b in random.Random(seed).randbytes(size))


def annex_b(units):
    return b"".join(b"\0\0\0\1" + u for u in units)


def test_annex_b_splits_into_units():
    assert h264.nal_units(b"\0\0\0\1\x67ab\0\0\1\x68c\0\0\0\0\1\x65d") == [b"\x67ab", b"\x68c", b"\x65d"]


@pytest.mark.parametrize(("codec", "sets", "idr", "other"), [("h264", (7, 8), 5, 1), ("h265", (32, 33, 34), 19, 1)])
def test_access_units_come_back(codec, sets, idr, other):
    first = annex_b([unit(kind, 20, codec, kind) for kind in sets] + [unit(idr, 5000, codec)])
    units = [first, *(annex_b([unit(other, size, codec)] * 2) for size in (1, 30, 1180, 1200, 1300))]
    packetiser = h264.H264Packetiser(7, codec=codec, first_sequence=65_534)
    packets = [p for i, data in enumerate(units) for p in packetiser.push(data, 3600 * i)]
    assert max(len(bytes(p)) for p in packets) <= MTU
    depacketiser = h264.H264Depacketiser(codec=codec)
    found = [a for p in packets for a in depacketiser.push(bytes(p), 0.0)]
    assert [a.data for a in found] == units and [a.pts for a in found] == [3600 * i for i in range(6)]
    assert [a.keyframe for a in found] == [True] + [False] * 5
    assert sum(p.marker for p in packets) == 6


def test_an_aggregate_is_as_important_as_its_most_important_unit():
    low, high = bytes([0x21]) + b"abc", bytes([0x61]) + b"def"
    (packet,) = h264.H264Packetiser(7).push(annex_b([low, high]), 0)
    assert packet.payload[0] == 0x60 | 24


@pytest.mark.parametrize("kind", range(32))
def test_every_kind_of_h265_that_decoding_can_start_at_is_a_keyframe(kind):
    packets = h264.H264Packetiser(7, codec="h265").push(annex_b([unit(kind, 40, "h265")]), 0)
    depacketiser = h264.H264Depacketiser(codec="h265")
    (found,) = [a for p in packets for a in depacketiser.push(bytes(p), 0.0) + depacketiser.poll(1)]
    assert found.keyframe == (16 <= kind < 24)


def test_parameter_sets_travel_apart_and_are_protected_whole():
    packets = h264.H264Packetiser(7).push(annex_b([unit(7, 20), unit(8, 5), unit(5, 50)]), 0)
    assert [h264.protected_bytes(p) for p in packets] == [len(bytes(packets[0])), 13]
    fragments = h264.H264Packetiser(7).push(annex_b([unit(5, 3000)]), 0)
    assert [h264.protected_bytes(p) for p in fragments] == [14, 14, 14]


def test_a_unit_lost_between_two_is_told_with_the_next():
    packetiser = h264.H264Packetiser(7)
    packets = [p for i in range(4) for p in packetiser.push(annex_b([unit(1, 50, seed=i)]), 3600 * i)]
    depacketiser = h264.H264Depacketiser()
    found = [a for i in (0, 1, 3) for a in depacketiser.push(bytes(packets[i]), 0.2 * i)] + depacketiser.poll(1)
    assert [(a.pts, a.after_loss) for a in found] == [(0, True), (3600, False), (10_800, True)]


def test_a_fragmented_unit_without_end_is_given_up():
    depacketiser = h264.H264Depacketiser()
    for i in range(200):
        fragment = bytes([0x7C, 0x05 | 0x80 * (i == 0)]) + bytes(60_000)
        depacketiser.push(bytes(RtpPacket(97, i, 7, 5, fragment)), 0.001 * i)
    assert depacketiser.malformed == 1 and not depacketiser._fragment
    (found,) = depacketiser.push(bytes(RtpPacket(97, 200, 8, 5, b"\x65abc", marker=True)), 0.5)
    assert found.data == b"\0\0\0\1\x65abc"


def test_a_lost_fragment_costs_its_unit_alone():
    packets = h264.H264Packetiser(7).push(annex_b([unit(1, 3000), unit(1, 1190)]), 0)
    del packets[1]
    depacketiser = h264.H264Depacketiser()
    found = [a for p in packets for a in depacketiser.push(bytes(p), 0.0)] + depacketiser.poll(1)
    assert h264.nal_units(found[0].data) == [unit(1, 1190)] and found[0].after_loss


def after_losses(access_units, lost):
    """(after_loss, partial) of what comes of access units whose packets (access unit, packet) are lost."""
    packetiser, depacketiser, found = h264.H264Packetiser(7, mtu=200), h264.H264Depacketiser(), []
    for number, data in enumerate(access_units):
        for index, packet in enumerate(packetiser.push(data, 3600 * number)):
            found += depacketiser.push(bytes(packet), 0.04 * number) if (number, index) not in lost else []
    return [(each.after_loss, each.partial) for each in found + depacketiser.poll(9)]


IDR = annex_b([unit(7, 20), unit(8, 5), *[unit(5, 150)] * 4])
PICTURE = annex_b([unit(1, 150)] * 3)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ({(0, 2)}, [(True, True), (False, False), (False, False), (False, False)]),  # within an IDR
        ({(0, 4)}, [(True, True), (True, True), (False, False), (False, False)]),  # its end, or the next one's beginning
        ({(1, 2), (2, 0)}, [(True, False), (True, True), (True, True), (False, False)]),  # a gap over two
        ({(1, 1)}, [(True, False), (True, True), (False, False), (False, False)]),
    ],
)
def test_a_gap_marks_each_picture_that_it_may_reach_into(lost, expected):
    assert after_losses([IDR, PICTURE, PICTURE, PICTURE], lost) == expected


def test_an_idr_that_has_its_parameter_sets_lost_nothing_to_the_gap_before_it():
    assert after_losses([IDR, PICTURE, IDR], {(1, 2)})[-1] == (True, False)
    assert after_losses([IDR, PICTURE, IDR], {(1, 2), (2, 0)})[-1] == (True, True)
    delimited = annex_b([unit(9, 2), *[unit(5, 150)] * 2])
    assert after_losses([IDR, PICTURE, delimited], {(1, 2)})[-1] == (True, False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from(["h264", "h265"]))
def test_hostile_h264_payloads_are_only_counted(payloads, codec):
    depacketiser = h264.H264Depacketiser(codec=codec)
    for i, data in enumerate(payloads):
        depacketiser.push(bytes(RtpPacket(depacketiser.payload_type, i, 0, 1, data)), 0.0)
        depacketiser.push(data, 0.0)
    depacketiser.poll(9)


def test_an_access_unit_without_end_is_given_up_and_the_next_one_comes():
    piece = bytes([1]) + bytes(60_000)
    many = bytes([24]) + b"\0\1\1" * 20_000  # an aggregate of units of one byte
    for flood in (piece, many):
        depacketiser = h264.H264Depacketiser()
        for i in range(300):
            depacketiser.push(bytes(RtpPacket(97, i, 7, 5, flood)), 0.001 * i)
        assert sum(len(held) + 64 for held in depacketiser._units) <= 8 << 20
        assert depacketiser.malformed > 100
        assert depacketiser.push(bytes(RtpPacket(97, 300, 7, 5, piece, marker=True)), 0.4) == []
        (unit,) = depacketiser.push(bytes(RtpPacket(97, 301, 8, 5, b"\x65abc", marker=True)), 0.5)
        assert unit.data == b"\0\0\0\1\x65abc" and unit.after_loss


def test_an_opus_packet_is_no_longer_than_opus_makes_them():
    depacketiser = opus.OpusDepacketiser()
    assert depacketiser.push(bytes(RtpPacket(99, 0, 0, 5, bytes(60_000))), 0.0) == []
    assert len(depacketiser.push(bytes(RtpPacket(99, 0, 0, 5, bytes(1275))), 0.0)) == 1
    assert depacketiser.reception.counters.foreign == 1


def test_the_highest_port_leaves_room_for_the_lanes_behind_it():
    assert sdp.parse_url("rtp://127.0.0.1:65531") == ("127.0.0.1", 65_531)
    with pytest.raises(InputError, match="from 1 to 65531"):
        sdp.parse_url("rtp://127.0.0.1:65532")


@pytest.mark.parametrize("port", ["9" * 5000, "99999", "٣٣"])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(InputError, match="rtp://|from 1 to"):
        sdp.parse_url(f"rtp://127.0.0.1:{port}")


def test_the_time_of_another_sender_of_opus_is_its_own():
    depacketiser = opus.OpusDepacketiser()
    found = depacketiser.push(bytes(RtpPacket(99, 0, 3_000_000_000, 5, b"x")), 0.0)
    found += depacketiser.push(bytes(RtpPacket(99, 0, 960, 6, b"x")), 5.0)
    assert [(o.ssrc, o.pts) for o in found] == [(5, 3_000_000_000), (6, 960)]


def test_opus_packets_come_back_with_their_losses():
    packetiser = opus.OpusPacketiser(3, first_timestamp=2**32 - 960)
    packets = [p for i in range(5) for p in packetiser.push(bytes([i]), 960 * i)]
    depacketiser = opus.OpusDepacketiser()
    found = [o for i, p in enumerate(packets) if i != 2 for o in depacketiser.push(bytes(p), 0.02 * i)]
    found += depacketiser.poll(9)
    assert [o.data for o in found] == [b"\0", b"\1", b"\3", b"\4"]
    assert [o.lost_before for o in found] == [0, 0, 1, 0]
    assert [o.pts - found[0].pts for o in found] == [0, 960, 2880, 3840]


def test_no_opus_packet_bears_the_marker_as_silence_is_sent_too():
    packetiser = opus.OpusPacketiser(3)
    assert not any(p.marker for pts in (-312, 648, 0) for p in packetiser.push(b"x", pts))


@pytest.mark.parametrize(
    ("start", "ms"),
    [
        ("00", 10), ("18", 60), ("60", 10), ("68", 20), ("80", 2.5), ("88", 5), ("f8", 20),
        ("f9", 40), ("fa", 40), ("fb06", 120), ("fb07", None), ("fb00", None), ("fb", None), ("", None),
    ],
)  # fmt: skip
def test_an_opus_packets_first_bytes_tell_its_duration(start, ms):
    assert opus.duration(bytes.fromhex(start)) == (None if ms is None else 48 * ms)


# RTCP and SDP

BLOCK = rtcp.ReportBlock(0xAABBCCDD, 0.25, 7, 65_537, 90, 5, 6)
CONTROLS = [
    rtcp.SenderReport(1, rtcp.ntp(1_700_000_000.5), 90_000, 10, 1000, (BLOCK,)),
    rtcp.ReceiverReport(2, (BLOCK,)),
    rtcp.Description(1, "mcode"),
    rtcp.Pli(2, 1),
    rtcp.Bye((1, 2)),
]


def test_control_packets_come_back():
    data = rtcp.compound(CONTROLS)
    assert rtcp.parse_compound(data) == CONTROLS and len(data) % 4 == 0 and is_rtcp(data)


def test_pli_and_report_are_these_bytes():
    assert bytes(rtcp.Pli(2, 1)) == bytes.fromhex("81ce0002 00000002 00000001")
    expected = "81c90007 00000002 aabbccdd 40000007 00010001 0000005a 00000005 00000006"
    assert bytes(rtcp.ReceiverReport(2, (BLOCK,))) == bytes.fromhex(expected)
    assert rtcp.ntp(0) >> 32 == 2_208_988_800 and rtcp.unix_s(rtcp.ntp(12.25)) == 12.25


def test_every_truncation_of_control_packets_parses_or_is_the_wires_fault():
    data = rtcp.compound(CONTROLS)
    for size in range(len(data)):
        with contextlib.suppress(WireError):
            assert len(rtcp.parse_compound(data[:size])) < len(CONTROLS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([200, 201, 202, 203, 206, 207]))
def test_hostile_control_packets(data, kind):
    for raw in (data, bytes([0x81, kind]) + data, bytes([0xA1, kind, 0, len(data) // 4]) + data):
        with contextlib.suppress(WireError):
            rtcp.parse_compound(raw)


def test_packets_that_came_twice_are_a_negative_loss():
    block = replace(BLOCK, lost=-3)
    assert rtcp.parse_compound(bytes(rtcp.ReceiverReport(2, (block,)))) == [rtcp.ReceiverReport(2, (block,))]


def test_a_name_too_long_is_cut():
    (found,) = rtcp.parse_compound(bytes(rtcp.Description(1, "n" * 300)))
    assert found == rtcp.Description(1, "n" * 255)


def test_a_lane_is_no_parity_and_a_name_is_one_line():
    media = sdp.Media("MCODE", 5004, 96, None, {}, 100)
    text = str(sdp.Session("127.0.0.1", (media,), "two\r\nlines"))
    assert "s=two lines\r\n" in text and sdp.Session.parse(text).media == (media,)
    assert "s=-\r\n" in str(sdp.Session("127.0.0.1", (media,), " "))
    assert sdp.Session.parse(text.replace("RTP/AVP 96 100", "RTP/AVP 100 96")).media == (media,)


def test_session_description_comes_back():
    sets = [b"\x67\x42\xc0\x1eab", b"\x68c"]
    media = (
        sdp.Media("MCODE", 5004, 96, 11, {"header": "AAAA"}, 100),
        sdp.Media("H264", 5006, 97, 12, sdp.sprop(sets, "h264")),
        sdp.Media("OPUS", 5008, 99, 13),
    )
    session = sdp.Session("127.0.0.1", media)
    assert sdp.Session.parse(str(session)) == session
    assert session.of("H264", "H265") == media[1] and session.of("H265") is None
    assert "packetization-mode=1; profile-level-id=42c01e; sprop-parameter-sets=Z0LAHmFi,aGM=" in str(session)
    assert sdp.Session.parse(str(sdp.Session("::1", media))).address == "::1"


def test_a_lane_goes_to_its_own_address_where_it_has_one():
    text = "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\nc=IN IP4 10.0.0.1\na=rtpmap:96 H264/90000\n"
    session = sdp.Session.parse(text)
    assert (session.address, session.media[0].address) == ("127.0.0.1", "10.0.0.1")
    assert sdp.Session.parse(str(session)) == session
    session = sdp.Session.parse(text.replace("c=IN IP4 127.0.0.1\n", ""))
    assert (session.address, session.media[0].address) == ("10.0.0.1", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a session description"),
        ("hello", "not a session description"),
        ("v=0\nc=IN IP4 127.0.0.1\n", "no lane"),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 VP8/90000\n", "no lane"),
        ("v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n", "no address"),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video 99999 RTP/AVP 96\na=rtpmap:96 H264/90000\n", "port 99999"),
        ("v=0\nc=IN IP4 nonsense\n", "c=IN IP4 nonsense"),
        ("v=0\nc=IN IP4 127.0.0.999\n", "c=IN IP4 127.0.0.999"),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/48000\n", "H264/48000 is not supported"),
        (
            "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=2\n",
            "packetization-mode=2 is not supported",
        ),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\n", "no lane"),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video x RTP/AVP 96\n", "m=video x"),
        ("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/SAVP 96\na=rtpmap:96 H264/90000\n", "RTP/SAVP is not supported"),
        (
            "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 UDP/TLS/RTP/SAVPF 96\na=rtpmap:96 H264/90000\n",
            "UDP/TLS/RTP/SAVPF is not supported",
        ),
    ],
)
def test_a_wrong_session_description_is_named_in_one_line(text, words):
    with pytest.raises(InputError, match=words) as error:
        sdp.Session.parse(text, "out.sdp")
    assert "\n" not in str(error.value) and "out.sdp" in str(error.value)


H264_LANE = "m=video 5006 RTP/AVP 97\na=rtpmap:97 H264/90000\n"


@pytest.mark.parametrize(
    "text",
    [
        "v=0\nc=IN IP4 127.0.0.1\nm=audio 0 RTP/AVP 96\na=rtpmap:96 opus/48000/2\n" + H264_LANE,
        "v=0\nc=IN IP4 127.0.0.1\nm=message - TCP/MSRP *\nc=TN RFC2543 +1\na=rtpmap:x\n" + H264_LANE,
        "\ufeffv=0\nc=IN IP4 127.0.0.1\n" + H264_LANE,
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5008 RTP/SAVPF 98\na=rtpmap:98 H264/90000\n" + H264_LANE,
        "v=0\nc=IN IP4 127.0.0.1\n" + H264_LANE.replace("RTP/AVP", "RTP/AVPF"),
        "v=0\nm=audio 0 RTP/AVP 96\nc=IN IP4 1.2.3.4\na=rtpmap:96 opus/48000/2\n"
        + H264_LANE.replace("\n", "\nc=IN IP4 127.0.0.1\n", 1),
        "v=0\nc=IN IP4 127.0.0.1\n" + H264_LANE.replace("/90000", ""),
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5006 RTP/AVP 96 97\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=2\n"
        + H264_LANE.partition("\n")[2],
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5008 RTP/AVP 98\na=rtpmap:98 H264/48000\n" + H264_LANE,
        "v=0\nc=IN IP4 127.0.0.1\n" + (H264_LANE + "a=fmtp:97 packetization-mode=2\n").replace("5006", "5008") + H264_LANE,
    ],
)
def test_lanes_that_cannot_be_received_are_left_out_of_a_description(text):
    assert sdp.Session.parse(text) == sdp.Session("127.0.0.1", (sdp.Media("H264", 5006, 97),))


def test_a_description_may_name_its_host():
    for host in ("media.example.com", "localhost"):
        assert sdp.Session.parse(f"v=0\nc=IN IP4 {host}\n{H264_LANE}").address == host


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_hostile_session_descriptions(text):
    lines = "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na="
    for candidate in (text, "v=0\n" + text, lines + text, lines + "rtpmap:" + text):
        with contextlib.suppress(InputError):
            sdp.Session.parse(candidate)
