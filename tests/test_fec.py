"""Forward error correction: any `data` packets of a group give back the group; hostile ones give nothing."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import reedsolo
from hypothesis import given, settings
from hypothesis import strategies as st

import mcode.fec
from mcode.errors import InputError
from mcode.fec import OVERHEAD_BYTES, FecSettings, Protector, Recoverer, _inverse, _parity_matrix, protected_bytes
from mcode.rtp.packets import RtpPacket
from mcode.rtp.payload import crc16


def packets(count, seed=0, longest=200):
    rng = random.Random(seed)
    return [
        RtpPacket(96, (65_530 + i) & 0xFFFF, 3600 * i, 77, rng.randbytes(rng.randint(1, longest)), i % 2 == 0)
        for i in range(count)
    ]


def protect(group, data, parity):
    protector = Protector(FecSettings(data, parity))
    repair = [bytes(p) for packet in group for p in protector.push(packet)]
    return [bytes(p) for p in group], repair + [bytes(p) for p in protector.flush()]


def recover(datagrams):
    recoverer = Recoverer()
    return [d for i, datagram in enumerate(datagrams) for d in recoverer.push(datagram, 0.01 * i)], recoverer


def test_any_two_lost_of_six_and_two_come_back():
    sent, repair = protect(packets(6), 6, 2)
    assert len(repair) == 2
    for lost in itertools.combinations(range(8), 2):
        arrived = [d for i, d in enumerate(sent + repair) if i not in lost]
        found, recoverer = recover(arrived)
        assert set(found) == set(sent)
        assert recoverer.recovered == sum(i < 6 for i in lost)


def test_three_lost_of_two_parities_stay_lost():
    sent, repair = protect(packets(6), 6, 2)
    found, recoverer = recover(sent[3:] + repair)
    assert found == sent[3:] and recoverer.recovered == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_order_any_size(data, parity, rng):
    sent, repair = protect(packets(data, rng.randint(0, 99)), data, parity)
    arrived = sent + repair
    rng.shuffle(arrived)
    found, _ = recover(arrived[: data + rng.randint(0, parity)])
    assert set(found) == set(sent)


def test_an_unfinished_group_is_protected_by_flush():
    sent, repair = protect(packets(3), 8, 1)
    assert len(repair) == 1
    assert set(recover(sent[1:] + repair)[0]) == set(sent)


def test_a_hole_in_the_numbers_ends_a_group():
    numbered = [replace(p, sequence=s) for p, s in zip(packets(5), (0, 1, 5, 6, 7), strict=True)]
    sent, repair = protect(numbered, 3, 1)
    found, recoverer = recover([*sent[:3], *sent[4:], *repair])
    assert sorted(found) == sorted(sent) and recoverer.recovered == 1


@pytest.mark.parametrize("last", [4, 6])
def test_two_groups_in_flight_across_the_end_of_the_numbers(last):
    sent, repair = protect(packets(8), 4, 1)  # 65530 to 65533, and 65534 to 1
    early = [datagram for i, datagram in enumerate(sent) if i in {0, 1, 4, 5, 6} - {last}]
    found, recoverer = recover([*early, *repair, sent[last], sent[3]])
    assert set(found) == set(sent) and recoverer.recovered == 2


def test_parity_is_what_reedsolo_says():
    row = bytes(random.Random(3).randbytes(5))
    expected = reedsolo.RSCodec(3).encode(row)[5:]
    matrix = _parity_matrix(5, 3)
    got = [0, 0, 0]
    for i in range(3):
        for a, b in zip(matrix[i], row, strict=True):
            got[i] ^= reedsolo.gf_mul(int(a), b)
    assert bytes(got) == bytes(expected)


def test_parity_fits_its_room():
    sent, repair = protect(packets(8), 8, 2)
    assert max(map(len, repair)) <= 12 + OVERHEAD_BYTES + max(map(len, sent))


def test_repair_is_no_gap_to_who_goes_by_sequence_numbers_alone():
    protector, sequences = Protector(FecSettings(4, 2)), []
    for packet in packets(10):
        sequences += [each.sequence for each in (packet, *protector.push(packet))]
    sequences += [each.sequence for each in protector.flush()]
    assert len(sequences) == 16 and {(b - a) & 0xFFFF for a, b in itertools.pairwise(sequences)} == {0, 1}


def test_a_repair_does_not_stretch_the_time_that_groups_take():
    recoverer, up_s = Recoverer(), 50_000.0
    sent, repair = protect(packets(8), 8, 2)
    for i, datagram in enumerate([*sent[:3], *sent[4:], *repair]):
        recoverer.push(datagram, up_s + 0.01 * i)
    assert recoverer.recovered == 1 and recoverer.span_s == pytest.approx(0.08)


def test_a_slow_group_is_forgotten():
    recoverer = Recoverer()
    sent, repair = protect(packets(82), 2, 1)
    for i, datagram in enumerate([*sent[:2], repair[0]]):
        recoverer.push(datagram, 0.5 * i)
    assert recoverer.span_s == pytest.approx(1)
    for group in range(1, 41):
        for datagram in (*sent[2 * group : 2 * group + 2], repair[group]):
            recoverer.push(datagram, 1 + 0.01 * group)
    assert recoverer.span_s < 0.2


def test_what_bit_errors_spare_of_a_parity_packet_gives_the_headers_back():
    sent, repair = protect(packets(4), 4, 1)
    spared = protected_bytes(12)
    damaged = repair[0][:spared] + bytes(b ^ 0xFF for b in repair[0][spared:])
    found, recoverer = recover([sent[0], *sent[2:], damaged])
    assert (recoverer.recovered, recoverer.malformed) == (1, 0)
    assert found[-1][:12] == sent[1][:12] and len(found[-1]) == len(sent[1])


def renumbered(parity, *numbers):
    """The parity packet with other numbers of data, parity and index, and a CRC that fits them."""
    packet = RtpPacket.parse(parity)
    held = packet.payload[:2] + bytes(numbers)
    return bytes(replace(packet, payload=held + crc16(packet.header + held).to_bytes(2) + packet.payload[7:]))


@pytest.mark.parametrize("numbers", [(3, 1, 1), (2, 2, 1), (65, 1, 0), (0, 1, 0), (3, 0, 0), (3, 65, 0)])
def test_parity_whose_numbers_are_none_or_those_of_another_group_is_malformed(numbers):
    sent, (repair,) = protect(packets(3), 3, 1)
    recoverer = recover([sent[0], repair, renumbered(repair, *numbers)])[1]
    assert recoverer.malformed == 1 and recoverer.recovered == 0
    assert recoverer.push(sent[1], 1.0) == [sent[1], sent[2]]


def test_parity_rows_of_other_lengths_are_malformed():
    sent, repair = protect(packets(3), 3, 2)
    found, recoverer = recover([sent[0], repair[0], repair[1][:-1]])
    assert found == [sent[0]] and (recoverer.malformed, recoverer.recovered) == (1, 0)


def hostile_group(size, width):
    """Parity packets of a group that is rebuilt from them alone, to what is no RTP packet."""
    made = []
    for index in range(size):
        rtp = RtpPacket(100, index, 0, 77, b"")
        numbers = bytes([0, 0, size, size, index])
        row = bytes([0, width - 2]) + bytes(width - 2)
        made.append(bytes(replace(rtp, payload=numbers + crc16(rtp.header + numbers).to_bytes(2) + row)))
    return made


def test_a_group_that_gives_no_packets_is_worked_on_once(monkeypatch):
    inverted = []
    monkeypatch.setattr(mcode.fec, "_inverse", lambda matrix: inverted.append(1) or _inverse(matrix))
    monkeypatch.setattr(mcode.fec, "_parity_matrix", lambda data, parity: np.eye(data, dtype=np.uint8))
    recoverer = Recoverer()
    for datagram in hostile_group(8, 40):
        recoverer.push(datagram, 1.0)
    assert len(inverted) == 1 and recoverer.malformed == 1
    for _ in range(5):
        recoverer.push(bytes(RtpPacket(96, 0, 0, 77, b"")), 1.0)
    assert len(inverted) == 1


def test_damage_in_the_payload_stays_in_its_column():
    sent, repair = protect(packets(4, longest=50), 4, 1)
    damaged = bytearray(sent[1])
    damaged[12] ^= 1
    found, _ = recover([bytes(damaged), *sent[2:], *repair])
    rebuilt = next(d for d in found if d[:4] == sent[0][:4])
    assert len(rebuilt) == len(sent[0]) and [i for i, (a, b) in enumerate(zip(rebuilt, sent[0], strict=True)) if a != b] in (
        [12],
        [],
    )


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.data())
def test_hostile_parity_gives_nothing_new(raw, data):
    sent, repair = protect(packets(3), 3, 1)
    bit = data.draw(st.integers(0, 8 * 18 - 1))
    flipped = bytearray(repair[0])
    flipped[bit // 8] ^= 0x80 >> bit % 8
    cut = repair[0][: data.draw(st.integers(0, len(repair[0]) - 1))]
    parity_header = bytes(RtpPacket(100, 0, 0, 77, raw))
    for hostile in (raw, bytes(flipped), cut, parity_header):
        found, _ = recover([sent[0], hostile, sent[1]])
        assert {d for d in found if d[:2] == sent[0][:2]} <= set(sent)


def test_parity_that_was_of_no_use_makes_no_false_packets_when_the_numbers_come_round():
    def group(first, seed):
        rng = random.Random(seed)
        return protect([RtpPacket(96, (first + i) & 0xFFFF, 0, 77, rng.randbytes(100)) for i in range(4)], 4, 1)

    (old, repair), (new, _) = group(65_534, 1), group(65_534, 2)
    between, its_repair = group(2000, 3)
    arrived = [*old[2:], *repair, *between, *its_repair, *new[:3]]
    found, recoverer = recover(arrived)
    assert found == [*old[2:], *between, *new[:3]] and recoverer.recovered == 0


def test_memory_is_bounded():
    recoverer = Recoverer()
    for i in range(5000):
        recoverer.push(bytes(RtpPacket(96, i & 0xFFFF, 0, i, b"x")), 0.0)
        _, repair = protect([RtpPacket(96, i, 0, i, b"x")], 1, 1)
        recoverer.push(repair[0], 0.0)
    for i in range(100):  # parity alone: all that it protects is rebuilt
        for datagram in protect([RtpPacket(96, 100 * i + k, 0, 7, b"x") for k in range(20)], 20, 20)[1]:
            recoverer.push(datagram, 0.0)
    assert recoverer.recovered >= 2000
    assert len(recoverer._recent) <= 1024 and not recoverer._groups and not recoverer._parity_bytes
    for i in range(400):  # of packets that never come
        for index in range(3):
            parity = RtpPacket.parse(protect([RtpPacket(96, 9, 0, i, bytes(20_000))] * 1, 1, 3)[1][index])
            recoverer.push(renumbered(bytes(parity), 8, 3, index), 0.0)
    held = [row for group in recoverer._groups.values() for row in group.rows.values()]
    assert 3 << 20 < sum(map(len, held)) == recoverer._parity_bytes <= 4 << 20


@pytest.mark.parametrize("jitter_s", [0.0, 0.05])
def test_a_large_picture_whose_packets_overtake_each_other_is_repaired(jitter_s):
    rng, (sent, repair) = random.Random(1), protect(packets(304), 8, 2)
    lost = set(rng.sample(range(38), 19))  # the first packet of every other group
    moments = [(0.0001 * i, datagram) for i, datagram in enumerate(sent) if i % 8 or i // 8 not in lost]
    moments += [(0.0001 * (i // 2 * 8 + 7), datagram) for i, datagram in enumerate(repair)]
    recoverer = Recoverer()
    arrivals = sorted((at_s + jitter_s * rng.random(), datagram) for at_s, datagram in moments)
    found = [each for at_s, datagram in arrivals for each in recoverer.push(datagram, at_s)]
    assert set(found) == set(sent) and recoverer.recovered >= 19 and not recoverer._groups


def test_until_parity_tells_how_long_groups_take_a_gap_is_waited_for_where_parity_is_announced():
    assert Recoverer().hold_s == 0 and Recoverer(is_announced=True, most_hold_s=2.0).hold_s == 2.0
    recoverer = Recoverer(is_announced=True, most_hold_s=2.0)
    sent, repair = protect(packets(4), 4, 1)
    for i, datagram in enumerate([*sent, *repair]):
        recoverer.push(datagram, 0.1 * i)
    assert recoverer.hold_s == pytest.approx(0.48)


@pytest.mark.parametrize("bad", ["8", "8+", "0+1", "8+0", "x+2", "65+1", "-1+2"])
def test_bad_settings_are_named(bad):
    with pytest.raises(InputError, match="8\\+2"):
        FecSettings.parse(bad)
    assert FecSettings.parse("8+2") == FecSettings(8, 2)
