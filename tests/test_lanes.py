"""The receiving end of each lane, without sockets: what is shown of datagrams that are lost, late, damaged or hostile."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mcode.baseline import live_encoder
from mcode.codec import Encoder
from mcode.errors import ManifoldError
from mcode.fec import FecSettings, Protector
from mcode.frame import Frame
from mcode.lanes import BaselineLane, McodeLane, finder
from mcode.rtp import h264, payload, sdp
from mcode.rtp.packets import RtpPacket
from mcode.rtp.payload import LARGEST_LIVE
from mcode.send import read_stamp, test_picture

from .block_means import TICKS, BlockMeans
from .loopback import MODEL, OtherModel, baseline_datagrams, keyframes, waves


def through(packets, lane, *, lose=(), damage=None, gap_s=0.04):
    """Each keyframe's frames, as levels of grey; None where nothing of it came."""
    packetiser = payload.Packetiser(7)
    shown = []
    for index, packet in enumerate(packets):
        found = []
        for rtp in packetiser.push(packet):
            data = bytes(rtp)
            if damage and index in damage:
                data = data[:-1] + bytes([data[-1] ^ damage[index]])
            if index not in lose:
                found += lane.push(data, gap_s * index)
            found += lane.poll(gap_s * index + 0.03)
        shown.append([int(f.rgb.mean()) for r in found for f in lane.decode(r)] or None)
    return shown


def test_frames_come_through_as_from_the_decoder():
    lane = McodeLane(finder(MODEL))
    assert through(keyframes(waves(8)), lane) == [[100 + 8 * (i % 4)] for i in range(8)]
    assert not lane.wants_refresh


@pytest.mark.parametrize("coder", ["fixed", "huffman"])
def test_a_lost_keyframe_freezes_neither_picture_nor_clock(coder):
    lane = McodeLane(finder(MODEL))
    shown = through(keyframes(waves(12), coder=coder), lane, lose={4})
    assert shown[4] is None and all(shown[5:]) and len(shown[5]) == 2
    assert lane.lost_keyframes == 1
    lane = McodeLane(finder(MODEL))
    through(keyframes(waves(12), coder=coder), lane, lose={2, 4, 5, 6})
    assert lane.lost_keyframes == 4


def test_fixed_needs_no_refresh_after_a_loss_and_huffman_does():
    for coder, wanted in (("fixed", False), ("huffman", True)):
        lane = McodeLane(finder(MODEL))
        through(keyframes(waves(8), coder=coder), lane, lose={4})
        assert lane.wants_refresh == wanted


def test_a_refresh_heals_a_broken_chain_of_deltas_at_once():
    encoder = Encoder(MODEL, 16, 8, n=1, cuts=False, refresh_s=99)
    lane, packetiser, shown = McodeLane(finder(MODEL)), payload.Packetiser(7), []
    asked = False
    for index, frame in enumerate(waves(16)):
        if lane.wants_refresh and not asked:
            encoder.request_refresh()
            asked = True
        for packet in encoder.push(frame):
            datagrams = [] if index == 5 else map(bytes, packetiser.push(packet))
            if index == 5:
                packetiser.push(packet)
            units = [r for d in datagrams for r in lane.push(d, 0.04 * index)] + lane.poll(0.04 * index + 0.03)
            shown += [int(f.rgb.mean()) for r in units for f in lane.decode(r)][-1:]
    assert asked and not lane.wants_refresh
    assert shown[6:] == [100 + 8 * (i % 4) for i in range(7, 16)]  # healed one keyframe after the request


def test_damage_of_huffman_slices_keeps_the_picture_before_and_fixed_shows_what_came():
    for coder in ("huffman", "fixed"):
        lane = McodeLane(finder(MODEL))
        shown = through(keyframes(waves(6), coder=coder), lane, damage={3: 1})
        assert all(shown)
        assert lane.concealed_slices == (coder == "huffman") and lane.counters()["damaged"] == 1
        if coder == "huffman":
            assert shown[3] == shown[2] and lane.wants_refresh


def test_before_its_header_a_lane_shows_nothing_and_asks():
    lane = McodeLane(finder(MODEL))
    packets = keyframes(waves(6))
    assert through(packets, lane, lose={0})[1:] == [None] * 5
    assert lane.wants_refresh and lane.counters()["waiting"] == 5


def pushed(lane, packets, ssrc=7, first=0):
    """The frames of keyframes through a lane, one datagram each, from sequence number `first` on."""
    packetiser = payload.Packetiser(ssrc, first_sequence=first)
    found = [unit for packet in packets for rtp in packetiser.push(packet) for unit in lane.push(bytes(rtp), 0.01 * first)]
    return [frame for unit in found for frame in lane.decode(unit)]


@pytest.mark.parametrize("change", [{"quality": 15}, {"width": 65_535, "height": 65_535}])
def test_a_header_that_does_not_fit_is_damage_amid_a_stream_and_an_error_before(change):
    class Picky(BlockMeans):
        def tables(self, quality):
            if quality > 8:
                raise ManifoldError(f"quality {quality} is outside 1..8")
            return super().tables(quality)

    whole = keyframes(waves(3), coder="fixed")
    bad = replace(whole[0], header=replace(whole[0].header, **change), pts=3 * TICKS)
    lane, packetiser = McodeLane(finder(Picky())), payload.Packetiser(7)
    datagrams = [bytes(rtp) for packet in (*whole, bad) for rtp in packetiser.push(packet)]
    shown = [[f for unit in lane.push(d, 0.0) for f in lane.decode(unit)] for d in datagrams]
    assert [len(frames) for frames in shown] == [1, 1, 1, 0]
    assert lane.error is None and lane.wants_refresh
    fresh = McodeLane(finder(Picky()))
    assert pushed(fresh, [bad]) == [] and "\n" not in str(fresh.error)
    fresh.reception.bye(7, 0.0)
    assert len(pushed(fresh, whole, ssrc=8)) == 3 and fresh.error is None


def test_a_live_lane_refuses_pictures_larger_than_it_can_make_in_time():
    first = keyframes(waves(1))[0]
    for name in ({"width": 16_384, "height": 8192}, {"display_width": 30_000, "display_height": 30_000}):
        lane = McodeLane(finder(MODEL), most_pixels=LARGEST_LIVE)
        assert pushed(lane, [replace(first, header=replace(first.header, **name))]) == []
        assert "more than 16 million pixels" in str(lane.error)


def test_three_datagrams_make_no_filler_without_end():
    packets = keyframes(waves(3), n=1, coder="fixed")
    packets = [packets[0], replace(packets[1], pts=100, steps=1), replace(packets[2], pts=20 * 90_000)]
    lane, packetiser = McodeLane(finder(MODEL)), payload.Packetiser(7)
    groups = [packetiser.push(packet) for packet in (packets[0], packets[1], packets[1], packets[2])]
    units = [u for i in (0, 1, 3) for rtp in groups[i] for u in lane.push(bytes(rtp), 0.01 * i) + lane.poll(0.01 * i + 0.5)]
    assert [unit.after_loss for unit in units] == [True, False, True]
    assert [len(list(lane.decode(unit))) for unit in units] == [1, 1, 1]


def test_a_description_that_is_not_ascii_tells_no_header():
    media = sdp.Media("MCODE", 5004, 96, parameters={"header": "é"})
    assert McodeLane(finder(MODEL), media).depacketiser.header is None
    baseline = BaselineLane(sdp.Media("H264", 5006, 97, parameters={"sprop-parameter-sets": "é,AA=="}))
    baseline.push(bytes(RtpPacket(97, 0, 0, 1, b"\x65" + bytes(30), marker=True)), 0.0)
    (unit,) = baseline.poll(1.0)
    assert list(baseline.decode(unit)) == []


def test_a_stream_of_another_manifold_says_which():
    lane = McodeLane(finder(OtherModel()))
    through(keyframes(waves(3)), lane)
    assert isinstance(lane.error, ManifoldError)
    assert MODEL.id in str(lane.error) and OtherModel.id in str(lane.error) and "\n" not in str(lane.error)


def test_repair_brings_back_lost_packets_in_time():
    packets = keyframes(waves(24), coder="huffman")
    packetiser, protector, lane = payload.Packetiser(7), Protector(FecSettings(4, 1)), McodeLane(finder(MODEL))
    found = []
    for index, packet in enumerate(packets):
        for rtp in packetiser.push(packet):
            datagrams = [bytes(rtp), *map(bytes, protector.push(rtp))]
            for data in datagrams[index % 4 == 2 and index > 8 :]:
                found += lane.push(data, 0.04 * index)
            found += lane.poll(0.04 * index + 0.01)
    found += lane.poll(9)
    levels = [int(f.rgb.mean()) for r in found for f in lane.decode(r)]
    assert lane.counters()["fec_recovered"] == 4 and lane.lost_keyframes == 0
    assert levels == [100 + 8 * (i % 4) for i in range(24)]


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_repair_of_a_slow_stream_is_waited_for_as_long_as_its_groups_take(at, described):
    """Packets 0.64 s apart in groups of 8: a recording loses none, and without a description the first group alone."""
    media = sdp.Media("MCODE", 5004, 96, fec_payload_type=100) if described else None
    packetiser, protector = payload.Packetiser(7), Protector(FecSettings(8, 2))
    lane, found = McodeLane(finder(MODEL), media, most_repair_s=20), []
    viewed, seen = McodeLane(finder(MODEL), media), []
    for index, packet in enumerate(keyframes(waves(40), coder="fixed")):
        (rtp,) = packetiser.push(packet)
        for data in [bytes(rtp), *map(bytes, protector.push(rtp))][index % 8 == at and index > 0 :]:
            found += lane.push(data, 0.64 * index)
            seen += viewed.push(data, 0.64 * index)
        for tick in range(6):
            found += lane.poll(0.64 * index + 0.1 * tick)
            seen += viewed.poll(0.64 * index + 0.1 * tick)
    found += lane.poll(99)
    lost = 0 if described or at != 3 else 1
    assert (len(found), lane.reception.counters.lost) == (40 - lost, lost)
    assert lane.counters()["fec_recovered"] == 5 - (at == 0) - lost
    assert viewed.reception.hold_s < 2.5  # a viewer waits no longer, and nothing that comes later counts as rebuilt
    if at == 0:
        assert viewed.counters()["fec_recovered"] == 0


def test_h264_lane_comes_through_and_heals_at_an_idr():
    encoder = live_encoder("h264", 64, 48, rate_kbps=100, fps=25, gop_s=0.4)
    packetiser, lane, shown = h264.H264Packetiser(5), BaselineLane(), []
    for index in range(30):
        frame = Frame(test_picture(index, 64, 48), index * TICKS)
        for unit in encoder.push(frame):
            for packet in packetiser.push(unit.data, unit.pts):
                if index == 13:
                    continue
                for received in lane.push(bytes(packet), 0.04 * index):
                    shown += [(f.pts // TICKS, read_stamp(f.rgb)) for f in lane.decode(received)]
        for received in lane.poll(0.04 * index + 0.03):
            shown += [(f.pts // TICKS, read_stamp(f.rgb)) for f in lane.decode(received)]
    times = [at for at, _ in shown]
    assert times == sorted(set(times)) and times[-1] == 29 and 13 not in times
    assert all(stamp == at for at, stamp in shown if at < 13 or at > 20)
    assert not lane.wants_refresh


def test_an_idr_that_lost_a_slice_is_asked_for_again_and_a_whole_one_is_not():
    packetiser, lane = h264.H264Packetiser(5, mtu=200), BaselineLane()
    encoder = live_encoder("h264", 64, 48, crf=20, fps=25, gop_s=0.04, slice_bytes=120)  # each picture an IDR
    wants = []
    for index in range(4):
        (unit,) = encoder.push(Frame(test_picture(index, 64, 48), index * TICKS))
        packets = packetiser.push(unit.data, unit.pts)
        assert len(packets) > 4
        for number, packet in enumerate(packets):
            found = lane.push(bytes(packet), 0.04 * index) if (index, number) != (1, 3) else []
            for received in found + lane.poll(0.04 * index + 0.03):
                list(lane.decode(received))
        wants.append(lane.wants_refresh)
    assert wants == [False, True, False, False]


def shown_of_baseline(lane, groups, first_s=0.0):
    units = [u for i, group in enumerate(groups) for d in group for u in lane.push(d, first_s + 0.04 * i)]
    return [frame for unit in units for frame in lane.decode(unit)]


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_lane_without_description_takes_its_codec_from_a_picture(codec):
    groups = baseline_datagrams(codec, 20)
    parity = next(d for group in groups for d in group if d[1] & 127 == 100)
    for first in (parity, bytes(RtpPacket(0, 1, 1, 99, b"x")), b"\x80\xc8" + bytes(20)):
        lane = BaselineLane()
        lane.push(first, 0.0)
        assert len(shown_of_baseline(lane, groups)) == 20 and lane.codec == codec


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_baseline_of_pictures_too_large_is_an_error_and_amid_a_stream_damage(codec):
    small, large = baseline_datagrams(codec, 3), baseline_datagrams(codec, 3, 128, 96, ssrc=6)
    lane = BaselineLane(most_pixels=64 * 48)
    assert shown_of_baseline(lane, large) == [] and "128x96 is more than" in str(lane.error)
    lane.reception.bye(6, 0.0)
    assert len(shown_of_baseline(lane, small, 1.0)) == 3 and lane.error is None
    after = lane.reception.highest + 1
    turned = [replace(p, ssrc=5) for group in large for d in group if (p := RtpPacket.parse(d)).payload_type != 100]
    groups = [[bytes(replace(packet, sequence=after + i))] for i, packet in enumerate(turned)]
    assert shown_of_baseline(lane, groups, 2.0) == [] and lane.error is None
    assert lane._decoder is not None and lane._decoder.size == (128, 96)


def test_hostile_datagrams_do_not_stop_a_lane():
    rng = random.Random(5)
    packets = keyframes(waves(200))
    packetiser, lane, baseline, frames = payload.Packetiser(7), McodeLane(finder(MODEL)), BaselineLane(), 0
    for index, packet in enumerate(packets):
        (rtp,) = packetiser.push(packet)
        good = bytes(rtp)
        for _ in range(3):
            bad = bytearray(rng.choice([good, rng.randbytes(rng.randrange(60)), bytes([0x80, 100]) + good[2:]]))
            for _ in range(rng.randrange(1, 9)):
                if bad:
                    bad[rng.randrange(len(bad))] = rng.randrange(256)
            hostile = bytes(bad[: rng.randrange(len(bad) + 1)]) if rng.random() < 0.3 else bytes(bad)
            for each in (lane, baseline):
                for unit in each.push(hostile, 0.04 * index):
                    list(each.decode(unit))
        for unit in lane.push(good, 0.04 * index) + lane.poll(0.04 * index + 0.03):
            frames += sum(1 for _ in lane.decode(unit))
    assert frames >= 150
