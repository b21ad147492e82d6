"""The live stream: real datagrams on loopback, and what may go wrong between a sender and a receiver."""

from __future__ import annotations

import base64
import errno
import math
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

import mcode.send
from mcode import fec
from mcode.baseline import live_encoder
from mcode.channel import ChannelSettings
from mcode.codec import Encoder
from mcode.coders import CodeTables, fixed
from mcode.conceal import Repair
from mcode.errors import FormatError, InputError, ManifoldError
from mcode.fec import FecSettings, Protector
from mcode.frame import Frame
from mcode.lanes import BaselineLane, McodeLane, finder
from mcode.receive import (
    AudioChunk,
    LaneView,
    PlayoutClock,
    Receiver,
    _Network,
    _protected,
    _receive,
    _Recorder,
    _Spool,
    read_session,
    receive_to_file,
)
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import RtpPacket, is_rtcp
from mcode.rtp.payload import LARGEST_LIVE
from mcode.send import SendConfig, Sender, read_stamp, send, test_picture
from mcode.video import FrameReader, FrameWriter, probe

from .block_means import TICKS, BlockMeans, grey
from .test_rtp import of_a_newer_format

MODEL = BlockMeans()
PATIENCE_S = 60


class OtherModel(BlockMeans):
    id = "ffffffffffffffff"


@pytest.fixture
def port() -> int:
    """A port with the four behind it free."""
    while True:
        first = random.randrange(20_000, 60_000, 2)
        held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        try:
            for lane, each in enumerate(held):
                each.bind(("127.0.0.1", first + 2 * lane))
            return first
        except OSError:
            continue
        finally:
            for each in held:
                each.close()


@pytest.fixture(autouse=True)
def nothing_is_left_running(monkeypatch):
    """Senders of a test that failed are ended, and none may leave a thread behind."""
    made = []
    start = Sender.start

    def noted(sender):
        made.append(sender)
        start(sender)

    monkeypatch.setattr(Sender, "start", noted)
    yield
    for sender in made:
        sender.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("mcode-")]
    assert left == [], left


def config(port, **options):
    wanted = {"size": (64, 48), "duration_s": 2.0, "baseline": "none", "realtime": True}
    return SendConfig("testsrc", to=f"rtp://127.0.0.1:{port}", **{**wanted, **options})


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def in_thread(function):
    """Its result, or what it raised, when joined."""
    box = {}

    def run():
        try:
            box["result"] = function()
        except Exception as error:
            box["error"] = error

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        if "error" in box:
            raise box["error"]
        return box["result"]

    return join


# Lanes, without sockets


def keyframes(frames, **options):
    encoder = Encoder(MODEL, 16, 8, **{"n": 1, "cuts": False, **options})
    return [p for frame in frames for p in encoder.push(frame)] + encoder.flush()


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


def waves(count):
    return [grey(100 + 8 * (i % 4), i) for i in range(count)]


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


def test_repair_undoes_the_flip_of_a_high_bit_and_leaves_what_came_whole():
    rng = np.random.default_rng(1)
    tables = MODEL.tables(1)
    repair = Repair(tables, 8)
    symbols = rng.integers(-40, 40, (3, 8)).astype(np.int16)
    wrong_before = wrong_after = 0
    for _ in range(60):
        symbols = (symbols + rng.integers(-1, 2, symbols.shape)).clip(-50, 50).astype(np.int16)
        data = fixed.encode(symbols, tables)
        damaged = bytearray(data)
        for bit in np.flatnonzero(rng.random(8 * len(data)) < 0.01):
            damaged[bit // 8] ^= 0x80 >> bit % 8
        got = repair.slice(bytes(damaged), bytes(damaged) != data)
        if bytes(damaged) == data:
            assert got == data
        wrong_before += int(np.abs(fixed.decode(bytes(damaged), 8, tables) - symbols).sum())
        wrong_after += int(np.abs(fixed.decode(got, 8, tables) - symbols).sum())
    assert repair.repaired > 5 and wrong_after < 0.4 * wrong_before


def test_repair_believes_a_real_jump():
    tables = MODEL.tables(1)
    repair = Repair(tables, 1)
    for _ in range(20):
        repair.slice(fixed.encode(np.full((3, 1), 2, np.int16), tables), False)
    jump = fixed.encode(np.full((3, 1), 50, np.int16), tables)
    shown = [int(fixed.decode(repair.slice(jump, True), 1, tables)[0, 0]) for _ in range(12)]
    assert shown[0] != 50 and shown[-1] == 50


def test_repair_believes_a_jump_at_once_after_slices_that_did_not_come():
    tables = MODEL.tables(1)
    jump = fixed.encode(np.full((3, 1), 50, np.int16), tables)
    for lost in (0, 40):
        repair = Repair(tables, 1)
        for _ in range(20):
            repair.slice(fixed.encode(np.full((3, 1), 2, np.int16), tables), False)
        for _ in range(lost):
            repair.lost()
        assert (repair.slice(jump, True) == jump) == (lost > 0)


def test_the_bit_error_rate_is_told_by_the_share_of_damaged_slices():
    rng, tables = np.random.default_rng(2), MODEL.tables(1)
    repair = Repair(tables, 8)
    data = fixed.encode(np.zeros((3, 8), np.int16), tables)
    for _ in range(400):
        repair.slice(data, bool((rng.random(8 * len(data)) < 1e-3).any()))
    assert 0.5e-3 < repair.bit_error_rate < 2e-3


def test_repair_knows_each_channels_width():
    fitted = MODEL.tables(1)
    tables = CodeTables(np.array([0, 5, 9], np.int16), np.array([8, 3, 0], np.uint8), fitted.whole, fitted.delta)
    repair = Repair(tables, 2)
    symbols = np.array([[20, -20], [6, 3], [9, 9]], np.int16)
    whole = fixed.encode(symbols, tables)
    for _ in range(20):
        assert repair.slice(whole, False) == whole
    for bit in (0, 8, 16, 19):  # the highest of each symbol of 8 and of 3 bits
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        assert np.array_equal(fixed.decode(repair.slice(bytes(damaged), True), 2, tables), symbols), bit


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


def test_a_sender_refuses_pictures_that_receivers_refuse(port):
    with pytest.raises(InputError, match="16 million pixels.*--size"):
        Sender(config(port, size=(8192, 4096)), model=MODEL)


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


def baseline_datagrams(codec, count, width=64, height=48, ssrc=5):
    """Each picture's RTP packets and the parity packets after it."""
    encoder = live_encoder(codec, width, height, crf=40, fps=25, gop_s=0.4)
    packetiser, protector = h264.H264Packetiser(ssrc, codec=codec), Protector(FecSettings(4, 1))
    made = []
    for index in range(count):
        (unit,) = encoder.push(grey(60 + index, index, width, height))
        made.append([bytes(each) for rtp in packetiser.push(unit.data, unit.pts) for each in (rtp, *protector.push(rtp))])
    return made


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


def test_playout_clock_waits_for_the_slowest_lane_and_forgives_one_stall():
    clock = PlayoutClock()
    for i in range(60):
        clock.observe("baseline", i * 0.04, i * 0.04 + 0.02)
        clock.observe("mcode", i * 0.04, i * 0.04 + (0.16 if i != 30 else 0.9))
    assert clock.due_s(10.0) == pytest.approx(10.168, abs=0.002)
    for i in range(60, 400):
        clock.observe("mcode", i * 0.04, i * 0.04 + 0.05)
    assert clock.due_s(10.0) == pytest.approx(10.058, abs=0.002)


def test_the_playout_clock_moves_along_with_a_senders_clock():
    clock = PlayoutClock()
    for i in range(20):
        clock.observe("mcode", 100 + i * 0.04, i * 0.04 + 0.16)
        clock.observe("audio", 100 + i * 0.04, i * 0.04 + 0.02)
    due = clock.due_s(100.0)
    sound = AudioChunk(np.zeros((960, 2), np.int16), 100.0, clock)
    for ahead_s in (60.0, -120.0):
        for lane in ("mcode", "audio"):
            clock.shift(lane, ahead_s)
        assert clock.due_s(100.0 + clock.shifts_s["mcode"]) == pytest.approx(due)
        assert sound.due_s == pytest.approx(due)


def test_the_stamp_reads_back_through_scaling():
    for index in (0, 1, 2, 499, 12_345, 65_535):
        assert read_stamp(test_picture(index, 64, 48)) == index
        assert read_stamp(test_picture(index, 640, 360)) == index
    between = (test_picture(3, 64, 48) // 2 + test_picture(4, 64, 48) // 2).astype(np.uint8)
    assert read_stamp(between) is None


@pytest.fixture
def network(port):
    made = _Network(f"rtp://127.0.0.1:{port}", finder(MODEL), lanes=("mcode", "baseline"))
    yield made
    made.close()


def test_each_senders_time_is_its_own_with_a_goodbye_before_it_and_without(network):
    link, peer = network.links[0], ("127.0.0.1", 9)

    def sent_s(ssrc, first_timestamp):
        """When the frames of a sender whose first report is lost were sent, by the units that come, from now."""
        packetiser, ages = payload.Packetiser(ssrc, first_timestamp=first_timestamp), []
        for packet in keyframes(waves(8)):
            for rtp in packetiser.push(packet):
                for _, unit in network._take(link, bytes(rtp), peer):
                    sent = link.sent_unix_s(unit.packet.pts)
                    ages.append(None if sent is None else time.time() - sent)
        return ages

    def all_are_of_now(ages):
        return ages and all(age is not None and abs(age) < PATIENCE_S for age in ages)

    network._take(link, rtcp.compound([rtcp.SenderReport(1, rtcp.ntp(time.time()), 1000, 0, 0)]), peer)
    assert all_are_of_now(sent_s(1, 1000)) and link.reception.switches == 0
    link.reception.last_arrival_s -= 0.6  # the first one's silence
    assert all_are_of_now(sent_s(2, 2_000_000_000)) and link.reception.switches == 1
    network._take(link, rtcp.compound([rtcp.ReceiverReport(2), rtcp.Bye((2,))]), peer)
    assert link.said_goodbye
    assert all_are_of_now(sent_s(3, 1000)) and link.reception.switches == 2 and not link.said_goodbye


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_a_report_on_one_lane_corrects_what_is_guessed_of_the_others(network, ahead_s):
    peer, now = ("127.0.0.1", 9), time.time()
    mcode, baseline = network.links
    for packet in payload.Packetiser(1).push(keyframes(waves(1))[0]):
        network._take(mcode, bytes(packet), peer)
    for datagram in baseline_datagrams("h264", 2)[0]:
        network._take(baseline, datagram, peer)
    assert [link.sent_unix_s(0) for link in network.links] == pytest.approx([now, now], abs=PATIENCE_S / 2 - 1)
    before = baseline.sent_unix_s(0)
    network._take(baseline, rtcp.compound([rtcp.SenderReport(5, rtcp.ntp(time.time() + ahead_s), 0, 0, 0)]), peer)
    for link in network.links:
        assert link.sent_unix_s(0) == pytest.approx(now + ahead_s, abs=PATIENCE_S / 2 - 1)
    assert baseline.moved_s == pytest.approx(baseline.sent_unix_s(0) - before)


def test_the_channel_here_spares_of_parity_packets_what_the_senders_does(network):
    mcode, baseline = network.links
    for link in network.links:
        link.channel.settings = ChannelSettings(bit_error_rate=1e-3)
    packetiser, protector = payload.Packetiser(7), Protector(FecSettings(4, 1))
    checked = 0
    for packet in keyframes(waves(8)):
        for rtp in packetiser.push(packet):
            spared = _protected(mcode, bytes(rtp))
            assert spared == payload.protected_bytes(rtp)
            for repair in protector.push(rtp):
                assert _protected(mcode, bytes(repair)) == fec.protected_bytes(spared)
                checked += 1
    assert checked == 2
    for group in baseline_datagrams("h264", 8):
        for datagram in group:
            if datagram[1] & 127 == 100:
                assert _protected(baseline, datagram) == fec.protected_bytes(spared)
            else:
                spared = _protected(baseline, datagram)


def test_a_recording_goes_on_after_a_decode_longer_than_the_silence_that_ends_it(monkeypatch):
    now_s, stop, decoded = 0.0, threading.Event(), []

    def decode(unit):
        nonlocal now_s
        now_s += 0.04 if decoded else 30.0  # a manifold is loaded
        decoded.append(unit)
        return []

    def wait(timeout_s):
        if len(decoded) == 4:
            stop.set()
        return [(link, len(decoded))]

    link = SimpleNamespace(
        name="mcode", lane=SimpleNamespace(decode=decode, error=None, deadline_s=None), said_goodbye=False, heard=1
    )
    recorder = SimpleNamespace(frames=1, length_s=0.0, warnings=[])
    monkeypatch.setattr("mcode.receive.time", SimpleNamespace(monotonic=lambda: now_s))
    network = SimpleNamespace(links=[link], wait=wait, flush=list)
    _receive(network, recorder, "rtp://127.0.0.1:5004", None, 30.0, 10.0, stop, None)
    assert decoded == [0, 1, 2, 3, 4] and recorder.warnings == []


@pytest.mark.parametrize("end", ["stop", "goodbye"])
def test_what_waits_behind_a_gap_at_the_end_is_written(network, monkeypatch, end):
    """Packets waited for as long as repair may take: 2 s."""
    now_s, written, stop = 100.0, [], threading.Event()
    link = network.links[0]
    link.lane.recoverer.is_announced = True
    packetiser = payload.Packetiser(7)
    coming = [bytes(rtp) for packet in keyframes(waves(12), coder="fixed") for rtp in packetiser.push(packet)]
    del coming[9], coming[4]

    def wait(timeout_s):
        nonlocal now_s
        now_s += 0.04 if coming else timeout_s
        assert now_s < 101.5
        if coming:
            return network._take(link, coming.pop(0), ("127.0.0.1", 9))
        if end == "stop":
            stop.set()
        link.said_goodbye = end == "goodbye"
        return []

    monkeypatch.setattr("mcode.receive.time", SimpleNamespace(monotonic=lambda: now_s, time=lambda: now_s))
    recorder = SimpleNamespace(frames=1, length_s=0.0, warnings=[], push=lambda frame, *_: written.append(frame.pts // TICKS))
    followed = SimpleNamespace(links=[link], wait=wait, flush=network.flush)
    _receive(followed, recorder, "rtp://127.0.0.1:5004", None, 30.0, 10.0, stop, None)
    assert written == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] and link.reception.counters.lost == 2


# Real datagrams


def test_a_stream_arrives_in_a_file_with_every_frame_at_its_time(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    sent = send(config(port, n=4), model=MODEL)
    report = join()
    frames = list(FrameReader(tmp_path / "a.mp4"))
    assert report.frames == sent.frames == len(frames) and sent.frames + sent.dropped == 50
    assert (report.width, report.height, report.coder, report.n) == (64, 48, "huffman", 4)
    assert report.counters.lost == 0 and report.counters.received == sent.lanes["mcode"].packets
    stamps = [read_stamp(f.rgb) for f in frames]
    clear = [(f.pts // TICKS, stamp) for f, stamp in zip(frames, stamps, strict=True) if stamp is not None]
    assert len(clear) >= 10 and all(abs(at - stamp) < 4 for at, stamp in clear)
    assert sum(at == stamp for at, stamp in clear) >= 8


def test_the_channel_at_the_sender_loses_and_damages_and_the_file_is_whole(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    channel = ChannelSettings(loss=0.2, bit_error_rate=1e-3, delay_ms=20, jitter_ms=10, seed=3)
    sent = send(config(port, n=2, coder="fixed", channel=channel, duration_s=4.0), model=MODEL)
    report = join()
    lane = sent.lanes["mcode"]
    assert lane.channel_lost > 0 and lane.channel_damaged > 0
    assert report.counters.damaged > 0 and report.counters.lost_keyframes > 0
    assert report.frames >= 80 and sent.lanes["mcode"].packets - lane.channel_lost == report.counters.received


def test_both_lanes_and_their_counters_reach_a_player(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: all(lane.shown > 12 for lane in receiver.lanes.values()))
        wait_for(lambda: sender.status().lanes["mcode"].round_trip_ms is not None)
        seen = {name: lane.newest for name, lane in receiver.lanes.items()}
        for name, (frame, sent_unix_s, _) in seen.items():
            assert frame.rgb.shape == (48, 64, 3) and frame.rgb.std() > 20, name
            assert 0 <= time.time() - sent_unix_s < PATIENCE_S
        assert receiver.error is None and receiver.is_receiving
        # N frames, where the machine is not so busy that those between keyframes are left out
        wait_for(lambda: receiver.lanes["mcode"].delay.wait_ms == pytest.approx(120, abs=85))
        report = sender.stop()
        assert report.lanes["h264"].target_kbps is not None
        wait_for(lambda: not receiver.is_receiving)
        lane = receiver.lanes["mcode"]
        # the picture stays when the sender goes
        wait_for(lambda: (last := lane.frame) is not None and not time.sleep(0.3) and lane.frame is last)


def test_the_clock_leaves_time_for_the_frames_between_keyframes(port):
    """H.264's frames come first and set the clock; set by what is synthesised alone it would then settle on keyframes."""
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: len(receiver.lanes) == 2 and all(lane.shown > 4 for lane in receiver.lanes.values()))
        view = receiver.lanes["mcode"]

        def most_are_shown() -> bool:
            shown, skipped = view.shown, view.skipped
            time.sleep(1)
            return view.shown - shown > view.skipped - skipped

        wait_for(most_are_shown)
        sender.stop()


def test_frames_are_shown_while_the_next_ones_are_synthesised(port):
    class Gated(BlockMeans):
        """Its synthesis waits while the gate is closed."""

        def __init__(self):
            super().__init__()
            self.gate, self.waits = threading.Event(), threading.Event()
            self.gate.set()

        def synthesise(self, latents, width, height):
            if not self.gate.is_set():
                self.waits.set()
                self.gate.wait(PATIENCE_S)
            return super().synthesise(latents, width, height)

    model = Gated()
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=model, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, n=12, baseline="none", duration_s=None), model=MODEL)
        sender.start()
        view = receiver.lanes["mcode"]
        wait_for(lambda: view.shown > 12 and view.frames - view.shown - view.skipped > 4)
        model.gate.clear()
        try:
            wait_for(model.waits.is_set)
            held = view.frames
            wait_for(lambda: view.shown + view.skipped >= held)  # all that was ready, and not one frame synthesised since
            assert view.frames == held
        finally:
            model.gate.set()
        sender.stop()


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_a_late_joiner_goes_on_where_a_report_tells_that_the_senders_clock_is_another(port, ahead_s):
    sender = Sender(config(port, duration_s=None), model=MODEL)
    media_time = sender._media_time
    sender._media_time = lambda lane: (media_time(lane)[0] + (round(ahead_s) << 32), media_time(lane)[1])
    sender.start()
    wait_for(lambda: sender.status().frames > 3)  # its first report is gone
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        view = receiver.lanes["mcode"]
        wait_for(lambda: (newest := view.newest) is not None and abs(newest[1] - ahead_s - time.time()) < 20)
        shown = view.shown
        wait_for(lambda: view.shown > shown + 15)
        sender.stop()


def test_no_frame_waits_longer_than_it_may_whatever_the_clock_says(monkeypatch):
    monkeypatch.setattr("mcode.receive._LONGEST_WAIT_S", 0.2)
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: math.inf
    view = LaneView(SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: 0.0), clock)
    try:
        view._hold(grey(100, 0))
        wait_for(lambda: view.shown == 1)
    finally:
        view.close()


def test_a_frame_of_a_wild_time_holds_up_none_behind_it():
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: sent_unix_s
    now_s = time.monotonic()
    due_s = {0: now_s + 3600, 1: now_s, 2: now_s + 3600}
    view = LaneView(SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: due_s[pts // TICKS]), clock)
    try:
        with view._changed:  # before any is shown
            for index in range(3):
                view._hold(grey(100, index))
        wait_for(lambda: view.shown == 1)
        assert view.frame.pts == TICKS and view.skipped == 1 and len(view._ready) == 1
    finally:
        view.close()


def test_frames_that_wait_until_they_are_due_are_bounded_in_bytes():
    link = SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: 0.0)
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: math.inf
    view = LaneView(link, clock)
    large = Frame(np.zeros((1440, 2560, 3), np.uint8), 0)
    join = in_thread(lambda: [view._hold(large) for _ in range(20)])
    try:
        wait_for(lambda: len(view._ready) >= 9)
        time.sleep(0.2)
        assert len(view._ready) == 9  # of 11 MB
    finally:
        view.close()
        join()


def test_n_coder_and_channel_change_while_it_runs(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, duration_s=None), model=MODEL)
        sender.start()
        lane = receiver.lanes["mcode"]
        wait_for(lambda: lane.stream is not None and lane.shown > 3)
        sender.update(n=2, coder="fixed")
        wait_for(lambda: (lane.stream.n, lane.stream.coder) == (2, "fixed"))
        sender.update(channel=ChannelSettings(loss=0.4, bit_error_rate=1e-2))
        wait_for(lambda: lane.counters().lost > 3 and lane.counters().damaged > 3)
        shown = lane.shown
        wait_for(lambda: lane.shown > shown + 5)
        with pytest.raises(InputError, match="morse"):
            sender.update(coder="morse")
        sender.stop()


def test_the_players_own_channel_damages_both_lanes_and_nothing_at_the_sender(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: all(lane.shown > 5 for lane in receiver.lanes.values()))
        receiver.set_channel(ChannelSettings(loss=0.3, seed=5))
        channels = receiver.channel_counters()
        wait_for(lambda: channels["mcode"].lost > 3 and channels["baseline"].lost > 3)
        assert sender.stop().lanes["mcode"].channel_lost == 0


def test_a_late_joiner_asks_and_is_served_at_once(port):
    sender = Sender(config(port, refresh_s=1000, duration_s=None), model=MODEL)
    sender.start()
    wait_for(lambda: sender.status().keyframes > 6)
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        wait_for(lambda: receiver.lanes["mcode"].shown > 5)
        assert receiver.lanes["mcode"].counters().refresh_requests >= 1
        assert sender.stop().lanes["mcode"].refresh_requests >= 1


def test_a_broken_delta_chain_heals_by_a_request(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, refresh_s=1000, duration_s=None, n=1), model=MODEL)
        sender.start()
        lane = receiver.lanes["mcode"]
        wait_for(lambda: lane.shown > 5)
        receiver.set_channel(ChannelSettings(loss=1.0))
        channel = receiver.channel_counters()["mcode"]
        wait_for(lambda: channel.lost > 2)
        receiver.set_channel(ChannelSettings())
        wait_for(lambda: lane.counters().broken > 0 and not receiver._network.links[0].lane.wants_refresh)
        wait_for(lambda: read_stamp(lane.frame.rgb) is not None)
        assert lane.counters().refresh_requests >= 1 and lane.counters().lost >= 3
        sender.stop()


def test_a_request_is_answered_with_the_next_frame_not_with_the_next_keyframe(port):
    with Sender(config(port, n=25, refresh_s=1000, duration_s=None), model=MODEL) as sender:
        sent = []
        sender._send_mcode = lambda packets: sent.extend(packets)
        frames = iter(sender.source)
        for _ in range(5):
            sender._push(next(frames))
        sender.mcode.hear(rtcp.Pli(1, sender.mcode.ssrc))
        frame = next(frames)
        sender._push(frame)
        assert [packet.pts for packet in sent] == [0, frame.pts]
        assert sent[-1].header is not None and sent[-1].steps == 5
        sender._push(next(frames))
        assert len(sent) == 2


def test_a_broken_chain_freezes_neither_picture_nor_clock(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, refresh_s=1000, duration_s=None), model=MODEL)
        sender.mcode.take_refresh_request = lambda: False  # a sender that hears nobody: the chain stays broken
        sender.start()
        lane = receiver.lanes["mcode"]
        # without a description the first refresh must come: until then there is nothing to break
        wait_for(lambda: lane.shown > 5)
        receiver.set_channel(ChannelSettings(loss=1.0))
        lost = receiver.channel_counters()["mcode"]
        wait_for(lambda: lost.lost > 2)
        receiver.set_channel(ChannelSettings())
        wait_for(lambda: lane.counters().broken > 3)
        shown, picture, pts = lane.shown, lane.frame.rgb.copy(), lane.frame.pts
        wait_for(lambda: lane.shown > shown + 20)
        assert lane.frame.pts > pts and np.any(lane.frame.rgb != picture)
        assert lane.counters().refresh_requests >= 1


def test_a_sender_that_dies_and_comes_back_is_shown_again(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        lane = receiver.lanes["mcode"]
        for goodbye in (False, True):
            shown = lane.shown
            sender = Sender(config(port, duration_s=None), model=MODEL)
            if not goodbye:
                sender._wire.goodbye = lambda: None
            sender.start()
            wait_for(lambda shown=shown: lane.shown > shown + 10)
            sender.stop()
        assert receiver.error is None


def test_manifold_mismatch_is_one_line_and_ends_receiving_to_a_file(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=OtherModel()))
    time.sleep(0.3)
    send(config(port, duration_s=1.0), model=MODEL)
    with pytest.raises(ManifoldError, match=MODEL.id) as error:
        join()
    assert "\n" not in str(error.value) and not (tmp_path / "a.mp4").exists()


def test_an_error_amid_a_recording_keeps_what_came_and_warns(tmp_path, port):
    out = tmp_path / "a.mp4"
    done = []
    join = in_thread(
        lambda: receive_to_file(
            f"rtp://127.0.0.1:{port}", out, manifold=MODEL, audio=False, progress=lambda frames, _: done.append(frames)
        )
    )
    packets = keyframes(waves(8))
    other = replace(packets[0].header, manifold_id=bytes(8))
    packetiser = payload.Packetiser(7)
    groups = [packetiser.push(p) for p in (*packets, replace(packets[0], header=other, pts=8 * TICKS))]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sending = time.monotonic() + PATIENCE_S
        while not done and time.monotonic() < sending:  # until it listens
            sender.sendto(bytes(groups[0][0]), ("127.0.0.1", port))
            time.sleep(0.05)
        for group in groups[1:]:
            sender.sendto(bytes(group[0]), ("127.0.0.1", port))
            time.sleep(0.05)
        report = join()
    assert report.frames == 8 and len(list(FrameReader(out))) == 8
    assert len(report.warnings) == 1 and bytes(8).hex() in report.warnings[0]


def test_sound_waits_in_a_file_and_a_flood_of_it_is_cut(tmp_path):
    spool = _Spool(tmp_path, 0.0)
    for i in range(1000):
        spool.put(bytes([i % 256]) * (i % 7), 1, 480 * i, now_s=1.0)
    starts_s = (99.0, 0.5)
    assert list(spool.between(starts_s, 3.495, 3.515)) == [(bytes([44]) * (300 % 7), 3.5), (bytes([45]) * (301 % 7), 3.51)]
    assert spool.count(starts_s, 8.485, 8.5) == 1 and spool.count(starts_s, 8.5, 100.0) == 0
    assert list(tmp_path.iterdir()) == []
    spool.close()


def recorded(tmp_path, frames):
    """(the report's warnings, pts and pictures) of (frame, ssrc) written as they come."""
    recorder = _Recorder(tmp_path / "a.mp4", None, False)
    link = SimpleNamespace(base_unix_s=None, base_ssrc=None, clock_hz=90_000, sent_unix_s=lambda pts: None)
    for frame, ssrc in frames:
        recorder.push(frame, SimpleNamespace(ssrc=ssrc), link)
    recorder.close()
    recorder.release()
    return recorder.warnings, list(FrameReader(tmp_path / "a.mp4"))


@pytest.mark.parametrize(("wild", "leaps"), [(range(10, 11), 2), (range(10, 14), 2), (range(10, 25), 1)])
@pytest.mark.parametrize("by", [1 << 30, -(1 << 30)])
def test_pictures_of_a_wild_time_are_written_as_they_come_and_told(tmp_path, monkeypatch, wild, leaps, by):
    now_s = iter(np.arange(0, 99, 0.04))
    monkeypatch.setattr("mcode.receive.time", SimpleNamespace(monotonic=lambda: float(next(now_s))))
    frames = [replace(grey(100, i, 64, 48), pts=5_000_000_000 + i * TICKS + by * (i in wild)) for i in range(25)]
    warnings, written = recorded(tmp_path, [(frame, 7) for frame in frames])
    assert [frame.pts for frame in written] == [i * TICKS for i in range(25)]
    assert len(warnings) == 1 and f"leapt {leaps} times" in warnings[0]


def test_a_sender_faster_than_time_and_a_long_silence_are_no_leaps(tmp_path, monkeypatch):
    now_s = iter([0.0, 0.01, 0.02, 0.03, 7200.03, 7200.04])
    monkeypatch.setattr("mcode.receive.time", SimpleNamespace(monotonic=lambda: next(now_s)))
    times_s = [0, 4, 30, 1830, 9030, 9031]
    warnings, written = recorded(tmp_path, [(Frame(grey(9, 0, 64, 48).rgb, at_s * 90_000), 7) for at_s in times_s])
    assert [frame.pts / 90_000 for frame in written] == times_s and not warnings


@pytest.mark.parametrize(
    ("wild", "by_s", "is_sound_wild", "longer_s"),
    [
        ([10], 30, False, 30),
        ([10], 7200, False, 0),
        ([10], -5, False, 0),
        (range(10, 25), -5, True, 0),
        (range(10, 25), 7200, True, 0),
        (range(10, 25), 300, True, 300),
    ],
)
def test_sound_keeps_its_place_before_and_after_a_leap(tmp_path, monkeypatch, wild, by_s, is_sound_wild, longer_s):
    now_s = 0.0
    monkeypatch.setattr("mcode.receive.time", SimpleNamespace(monotonic=lambda: now_s))
    recorder = _Recorder(tmp_path / "a.mp4", None, False)
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    for i in range(25):
        now_s = 0.04 * i
        off_s = 100 + by_s * (i in wild)
        for pts in (0, 960):
            at = 48_000 * (off_s if is_sound_wild else 100) + 1920 * i + pts
            recorder.hear(sound, opus.OpusPacket(b"\xfc\xff\xfe", at, 0, 7))
        recorder.push(grey(100, 25 * off_s + i, 64, 48), SimpleNamespace(ssrc=7), picture)
    recorder.close()
    recorder.release()
    wanted = [i * TICKS + 90_000 * longer_s * (i >= 10) for i in range(25)]
    assert [frame.pts for frame in FrameReader(tmp_path / "a.mp4")] == wanted
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        heard = {round(100 * float(packet.pts * packet.time_base)) for packet in container.demux(audio=0) if packet.size}
    # What came just before the leap was known may be missing.
    assert {pts // 900 + more for i, pts in enumerate(wanted) if i not in (10, 11) for more in (0, 2)} <= heard


def test_a_second_sender_of_another_shape_stands_within_black(tmp_path):
    frames = [(grey(200, i, 64, 48), 7) for i in range(3)] + [(grey(200, i, 96, 32), 8) for i in range(3)]
    warnings, written = recorded(tmp_path, [*frames, *((grey(200, i, 128, 96), 9) for i in range(3))])
    assert len(warnings) == 1 and "96x32" in warnings[0] and "64x48" in warnings[0]
    rows = [frame.rgb[:, 32].mean(axis=1) for frame in written]
    for index, row in enumerate(rows):
        assert abs(row[24] - 200) < 6 and (row[4] < 20 and row[-4] < 20) == (3 <= index < 6), index
    assert len(rows) == 9


def test_a_goodbye_of_somebody_else_is_not_heard_and_a_stream_that_goes_on_said_none(network, monkeypatch):
    link, peer = network.links[0], ("127.0.0.1", 9)
    packetiser = payload.Packetiser(7)
    datagrams = [bytes(rtp) for packet in keyframes(waves(4)) for rtp in packetiser.push(packet)]
    goodbye = rtcp.compound([rtcp.ReceiverReport(7), rtcp.Bye((7,))])
    network._take(link, datagrams[0], peer)
    network._take(link, goodbye, ("127.0.0.2", 9))
    assert not link.said_goodbye and link.reception.ssrc == 7 and link.reception.counters.foreign == 1
    network._take(link, goodbye, ("127.0.0.1", 10))  # a port of its own for RTCP
    assert link.said_goodbye and network._take(link, datagrams[1], peer) and link.said_goodbye
    link.reception._bye_s -= 1  # a second ago
    assert network._take(link, datagrams[2], peer)
    assert not link.said_goodbye and link.reception.ssrc == 7 and link.reception.switches == 0


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_sound_keeps_its_place_where_reports_move_the_senders_clock_amid_a_recording(tmp_path, ahead_s):
    recorder = _Recorder(tmp_path / "a.mkv", None, False)
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    picture.sent_unix_s = lambda pts: picture.base_unix_s + pts / 90_000
    for index in range(25):
        if index == 10:
            picture.base_unix_s += ahead_s
        if index == 12:
            sound.base_unix_s += ahead_s
        recorder.push(grey(100, 100 + index, 64, 48), SimpleNamespace(ssrc=7), picture)
        for pts in (0, 960):
            recorder.hear(sound, opus.OpusPacket(b"\xfc\xff\xfe", 48_000 * 4 + 1920 * index + pts, 0, 7))
    recorder.close()
    recorder.release()
    assert recorder.audio_packets == 50


@pytest.mark.parametrize(("start", "length"), [(b"\xe0", 120), (b"\xf0", 480), (b"\xf8", 960), (b"\xfb\x03\xfe\xfe", 2880)])
def test_sound_in_packets_of_any_length_is_written_whole(tmp_path, start, length):
    recorder = _Recorder(tmp_path / "a.mkv", None, False)
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    picture.sent_unix_s = lambda pts: picture.base_unix_s + pts / 90_000
    for index in range(25):
        recorder.push(grey(100, index, 64, 48), SimpleNamespace(ssrc=7), picture)
    for pts in range(0, 48_000, length):
        recorder.hear(sound, opus.OpusPacket(start + b"\xfe", pts + min(length // 4, 100) * (pts % 7 == 0), 0, 7))
    recorder.close()
    recorder.release()
    with av.open(os.fspath(tmp_path / "a.mkv")) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.pts is not None]
    assert len(times) == recorder.audio_packets == -(-48_000 // length)
    assert np.diff(times) == pytest.approx(length / 48_000, abs=0.0015)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("count", [1, 6, 7, 8])
def test_a_short_recording_with_sound_has_all_its_pictures(tmp_path, suffix, count):
    path = tmp_path / f"a{suffix}"
    recorder = _Recorder(path, None, False)
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    for index in range(count):
        recorder.push(Frame(test_picture(index, 64, 48), index * TICKS), SimpleNamespace(ssrc=7), picture)
        recorder.hear(sound, opus.OpusPacket(b"\xfc\xff\xfe", 1920 * index, 0, 7))
    recorder.close()
    recorder.release()
    assert [frame.pts for frame in FrameReader(path)] == [index * TICKS for index in range(count)]
    assert probe(path).audio_codec in ("opus", "libopus")


def test_an_uninstalled_manifold_is_shown_and_the_player_goes_on(port):
    with Receiver(f"rtp://127.0.0.1:{port}") as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: receiver.error is not None and receiver.lanes["baseline"].shown > 3)
        assert MODEL.id in str(receiver.error) and isinstance(receiver.error, ManifoldError)
        sender.stop()


def test_a_newer_format_is_told_until_a_stream_of_this_one_comes(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(of_a_newer_format(99), ("127.0.0.1", port))
        wait_for(lambda: isinstance(receiver.error, FormatError))
        with Sender(config(port, duration_s=None), model=MODEL) as sender:
            sender.start()
            wait_for(lambda: receiver.lanes["mcode"].shown > 3)
            assert receiver.error is None


def test_garbage_on_the_port_is_counted_and_dropped(port):
    rng = random.Random(1)
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for i in range(400):
            junk = [
                rng.randbytes(rng.randrange(1400)),
                bytes(RtpPacket(96, i, 0, 99, rng.randbytes(40))),
                bytes(RtpPacket(97, i, 0, 99, rng.randbytes(40)))[: rng.randrange(20)],
                b"\x80\xc8\0\x06" + rng.randbytes(24),
                b"",
            ]
            for offset in (0, 2, 4):
                stranger.sendto(rng.choice(junk), ("127.0.0.1", port + offset))
            time.sleep(0.001)
        stranger.close()
        before = {name: lane.shown for name, lane in receiver.lanes.items()}
        wait_for(lambda: all(lane.shown > before[name] + 5 for name, lane in receiver.lanes.items()))
        counters = receiver.lanes["mcode"].counters()
        assert counters.not_rtp + counters.damaged_headers + counters.foreign > 50
        assert receiver.error is None
        sender.stop()


def test_a_strangers_requests_do_not_reach_the_encoder_more_than_three_times_a_second(port):
    sender = Sender(config(port), model=MODEL)
    for _ in range(100):
        sender.mcode._refresh_wanted = True
        sender.mcode.take_refresh_request()
    assert sender.mcode._last_refresh_s > 0 and sender.mcode._refresh_wanted
    sender.close()


def test_sender_reports_count_the_payloads_octets(port):
    with Sender(config(port, fec="2+1"), model=MODEL) as sender:
        sent, reports = [], []
        sender._wire._send = lambda lane, data: (reports if is_rtcp(data) else sent).append(data)
        for frame, _ in zip(sender.source, range(20), strict=False):
            sender._push(frame)
        sender._wire._next_report_s = -math.inf
        sender._wire.report(sender._media_time)
    report = rtcp.parse_compound(reports[-1])[0]
    assert report.packets == len(sent) and report.octets == sum(len(data) - 12 for data in sent)


def test_the_round_trip_is_measured_from_when_a_report_was_sent_whatever_time_it_bears(port, monkeypatch):
    now_s = 50.0
    with Sender(config(port, realtime=False), model=MODEL) as sender:
        monkeypatch.setattr("mcode.send.time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
        sender._start_unix_s, sender._newest_pts = 1000.0, 90 * 90_000  # media that runs ahead of the clock
        lane, asked = sender.mcode, rtcp.ntp(1090.0) >> 16 & 0xFFFFFFFF
        sender._wire.report(sender._media_time)
        now_s = 50.75
        block = rtcp.ReportBlock(lane.ssrc, 0.0, 0, 0, 0, asked, 32_768)
        for stranger in (replace(block, last_report=0), replace(block, last_report=asked + 1)):
            lane.hear(rtcp.ReceiverReport(5, (stranger,)))
            assert sender.status().lanes["mcode"].round_trip_ms is None
        lane.hear(rtcp.ReceiverReport(5, (block,)))
        assert sender.status().lanes["mcode"].round_trip_ms == pytest.approx(250, abs=0.1)


def test_a_report_may_go_out_while_an_answer_is_heard(port):
    with Sender(config(port), model=MODEL) as sender:
        lane = sender.mcode

        class Asked(int):
            def __eq__(self, other):
                lane.note_report(0, 0.0)
                return False

            __hash__ = int.__hash__

        lane.note_report(1 << 16, 0.0)
        lane.note_report(2 << 16, 0.0)
        lane.hear(rtcp.ReceiverReport(5, (rtcp.ReportBlock(lane.ssrc, 0.0, 0, 0, 0, Asked(1), 0),)))
        assert len(lane._reported) == 4 and lane.round_trip_s is None


def test_packets_that_the_system_does_not_take_are_told_and_a_receiver_not_there_yet_is_none(port):
    class Refusing:
        def __init__(self, socket, error):
            self._socket, self._error = socket, error

        def sendto(self, data, address):
            raise self._error

        def __getattr__(self, name):
            return getattr(self._socket, name)

    for error, words in (
        (OSError(errno.EACCES, "Permission denied"), r"\d+ packets could not be sent \(Permission denied\)"),
        (BlockingIOError(errno.EAGAIN, "Try again"), "Try again"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), None),
    ):
        with Sender(config(port, realtime=False, duration_s=0.2), model=MODEL) as sender:
            sender.mcode.socket = Refusing(sender.mcode.socket, error)
            warnings = sender.run(threading.Event()).warnings
        assert len(warnings) == (words is not None) and (words is None or re.search(words, warnings[0]))


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "255.255.255.255"])
def test_an_address_of_no_one_machine_is_not_sent_to(host, port):
    with pytest.raises(InputError, match="no one machine"):
        Sender(SendConfig("testsrc", to=f"rtp://{host}:{port}"), model=MODEL)


def test_sender_reports_thin_out_and_a_new_receiver_need_not_wait_for_one(port, monkeypatch):
    with Sender(config(port), model=MODEL) as sender:
        now_s, at_s = 100.0, []
        sender._wire._send = lambda lane, data: at_s.append(now_s)
        monkeypatch.setattr(mcode.send, "time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))

        def run(until_s):
            nonlocal now_s
            while now_s < until_s:
                sender._wire.report(sender._media_time)
                now_s += 0.25

        run(150)
        gaps = np.diff(at_s)
        assert gaps[0] == 1 and gaps[1:].min() >= 2.5 and gaps[1:].max() <= 7.75
        reports = len(at_s)
        sender._wire._next_report_s = now_s + 7
        for _ in range(2):
            sender.mcode.hear(rtcp.ReceiverReport(77, (rtcp.ReportBlock(sender.mcode.ssrc, 0.0, 0, 0, 0),)))
        run(now_s + 2)
        assert len(at_s) == reports + 1


def test_a_receiver_reports_at_once_and_then_thins_out(network):
    link, at_s = network.links[0], []
    link.socket.close()
    link.socket = SimpleNamespace(sendto=lambda data, peer: at_s.append(now_s), close=lambda: None)
    link.peer, link.reception.ssrc = ("127.0.0.1", 9), 7
    link.lane.depacketiser.header = keyframes(waves(1))[0].header
    for i in range(400):
        now_s = 100 + i / 4
        link.answer(now_s)
    gaps = np.diff(at_s)
    assert at_s[0] == 100 and gaps[0] == 1 and gaps[1:].min() >= 2.5 and gaps[1:].max() <= 7.75


def test_a_goodbye_bears_the_senders_own_name_as_its_reports_and_description_do(port):
    names = []
    for _ in range(2):
        with Sender(config(port, baseline="h264"), model=MODEL) as sender:
            sent = []
            sender._wire._send = lambda lane, data, sent=sent: sent.append(rtcp.parse_compound(data))
            sender._wire.report(sender._media_time)
            sender._wire.goodbye()
            text = str(sender.session(sender._new_encoder(sender.config).header))
        found = {control.cname for controls in sent for control in controls if isinstance(control, rtcp.Description)}
        assert len(sent) == 4 and all(isinstance(controls[1], rtcp.Description) for controls in sent) and len(found) == 1
        names += found
        assert text.count(f"cname:{names[-1]}") == 2 and "o=- 0 " not in text
    assert names[0] != names[1]


# Standard H.264 for other players, SDP, sound


def test_other_players_open_the_h264_lane(tmp_path, port):
    path = tmp_path / "out.sdp"
    sender = Sender(config(port, baseline="h264", duration_s=None, sdp=path, refresh_s=1.0), model=MODEL)
    sender.start()
    try:
        alone = wait_for(lambda: (p := tmp_path / "out.h264.sdp").exists() and p.stat().st_size and p)
        options = {"protocol_whitelist": "file,udp,rtp", "analyzeduration": "2000000", "max_delay": "100000"}
        stamps = []
        with av.open(os.fspath(alone), format="sdp", options=options, timeout=PATIENCE_S) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 48)
            for frame in container.decode(video=0):
                stamps.append(read_stamp(frame.to_ndarray(format="rgb24")))
                if len(stamps) == 10:
                    break
        assert sum(stamp is not None for stamp in stamps) >= 8
        assert [s for s in stamps if s is not None] == sorted(s for s in stamps if s is not None)
    finally:
        sender.stop()


def test_the_description_for_other_players_says_nothing_of_repair(tmp_path, port):
    path = tmp_path / "out.sdp"
    with Sender(config(port, baseline="h264", sdp=path, fec="4+1"), model=MODEL) as sender:
        sender._push(next(iter(sender.source)))
    assert path.read_text().count("MCODE-FEC") == 2
    alone = (tmp_path / "out.h264.sdp").read_text()
    assert "MCODE-FEC" not in alone and f"m=video {port + 2} RTP/AVP 97\n" in alone


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg command to receive with")
@pytest.mark.parametrize(("codec", "repair"), [("h264", None), ("h265", None), ("h264", "4+1")])
def test_the_ffmpeg_command_decodes_five_seconds_of_the_baseline_from_its_description(tmp_path, port, codec, repair):
    path = tmp_path / "out.sdp"
    wanted = config(port, baseline=codec, duration_s=None, sdp=path, refresh_s=1.0, fec=repair)
    with Sender(wanted, model=MODEL) as sender:
        sender.start()
        alone = wait_for(lambda: (p := tmp_path / f"out.{codec}.sdp").exists() and p.stat().st_size and p)
        command = ["ffmpeg", "-v", "error", "-nostdin", "-protocol_whitelist", "file,udp,rtp", "-i", os.fspath(alone)]
        command += ["-t", "5", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        run = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr
    frames = np.frombuffer(run.stdout, np.uint8).reshape(-1, 48, 64, 3)
    stamps = [read_stamp(frame) for frame in frames]
    clear = [stamp for stamp in stamps if stamp is not None]
    assert len(frames) > 60 and len(clear) > 0.8 * len(frames)
    assert clear == sorted(set(clear)) and clear[-1] - clear[0] <= 130
    assert all(
        np.abs(frame.astype(int) - test_picture(stamp, 64, 48)).mean() < 25
        for stamp, frame in zip(stamps, frames, strict=True)
        if stamp
    )


def test_a_session_description_opens_all_lanes_and_tells_the_header(tmp_path, port):
    path = tmp_path / "out.sdp"
    sender = Sender(config(port, baseline="h265", duration_s=None, sdp=path, refresh_s=1000, fec="4+1"), model=MODEL)
    sender.start()
    wait_for(lambda: path.exists() and path.stat().st_size and sender.status().keyframes > 5)
    with Receiver(path, manifold=MODEL) as receiver:
        assert receiver.lanes["baseline"].codec == "h265"
        wait_for(lambda: receiver.lanes["mcode"].shown > 5 and receiver.lanes["baseline"].shown > 0)
        wait_for(lambda: receiver.lanes["mcode"].counters().fec_packets > 0)
        report = sender.stop()
        assert report.lanes["mcode"].fec_bytes > 0


@pytest.mark.parametrize("colour", [0, 90])
def test_the_description_tells_the_first_packets_header_before_it_is_sent(tmp_path, port, colour, monkeypatch):
    with FrameWriter(tmp_path / "a.mkv", width=64, height=48) as writer:
        for i in range(3):
            writer.push(Frame(np.full((48, 64, 3), (100, 100, 100 + colour), np.uint8), 3600 * i))
    path, sent = tmp_path / "a.sdp", []
    wanted = SendConfig(os.fspath(tmp_path / "a.mkv"), to=f"rtp://127.0.0.1:{port}", baseline="none", sdp=path)
    with Sender(wanted, model=MODEL) as sender:
        monkeypatch.setattr(sender._wire, "transmit", lambda lane, data, *rest, **more: sent.append((data, path.exists())))
        sender._push(next(iter(sender.source)))
    described = base64.b64decode(sdp.Session.parse(path.read_text()).of("MCODE").parameters["header"])
    header = payload.parse_header(described)[0]
    assert header.grey == (not colour)
    assert payload.parse(RtpPacket.parse(sent[0][0]))[0].header.header == header and sent[0][1]


def test_a_refresh_that_is_asked_for_before_the_first_is_the_first(port, monkeypatch):
    with Sender(config(port, refresh_s=1000), model=MODEL) as sender:
        packets = []
        monkeypatch.setattr(sender, "_send_mcode", packets.extend)
        asked = iter([True])
        monkeypatch.setattr(sender.mcode, "take_refresh_request", lambda: next(asked, False))
        for frame, _ in zip(sender.source, range(10), strict=False):
            sender._push(frame)
    assert [packet.header is not None for packet in packets] == [True] + [False] * (len(packets) - 1) and len(packets) > 1


@pytest.fixture(scope="module")
def clip_with_sound(tmp_path_factory):
    """Three seconds, 64x48, a 440 Hz tone."""
    path = tmp_path_factory.mktemp("clip") / "tone.mp4"
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("aac", rate=44_100, layout="mono")
        for index in range(75):
            out.mux(video.encode(av.VideoFrame.from_ndarray(test_picture(index, 64, 48), "rgb24")))
        out.mux(video.encode(None))
        t = np.arange(3 * 44_100) / 44_100
        tone = (0.4 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
        for at in range(0, len(tone), 1024):
            piece = av.AudioFrame.from_ndarray(tone[None, at : at + 1024], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 44_100, at
            out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return path


def test_sound_is_written_beside_the_picture_in_its_time(tmp_path, port, clip_with_sound):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", baseline="none")
    sent = send(wanted, model=MODEL)
    report = join()
    assert sent.lanes["opus"].packets >= 145 and report.audio_packets >= 140
    info = probe(tmp_path / "a.mp4")
    assert info.audio_codec in ("opus", "libopus") and report.frames >= 50
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        audio = list(container.decode(audio=0))
        samples = np.concatenate([f.to_ndarray()[0] for f in audio])
        spectrum = np.abs(np.fft.rfft(samples[48_000:96_000]))
        assert abs(int(spectrum.argmax()) - 440) <= 2
        assert float(audio[0].pts * audio[0].time_base) < 0.1


def slides(path, times, sound_s):
    """A video of pictures at these times in s, and sound."""
    with av.open(os.fspath(path), "w") as out:
        video, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=48_000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for at_s in times:
            frame = av.VideoFrame.from_ndarray(test_picture(round(25 * at_s), 64, 48), "rgb24")
            frame.pts, frame.time_base = round(1000 * at_s), Fraction(1, 1000)
            out.mux(video.encode(frame))
        for start in range(0, round(48_000 * sound_s), 1024):
            wave = np.sin(np.arange(start, start + 1024) * 2 * np.pi * 440 / 48_000).astype(np.float32)[None] / 2
            piece = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 48_000, start
            out.mux(sound.encode(piece))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("realtime", "duration_s", "wanted_s"), [(True, None, 2.0), (False, None, 2.0), (False, 1.8, 1.8)])
def test_sound_after_the_last_picture_is_sent_and_written(tmp_path, port, realtime, duration_s, wanted_s):
    clip = slides(tmp_path / "slides.mkv", [0, 0.04, 0.8], 2.0)
    join = in_thread(
        lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mkv", manifold=MODEL, duration_s=duration_s)
    )
    time.sleep(0.3)
    wanted = SendConfig(os.fspath(clip), to=f"rtp://127.0.0.1:{port}", baseline="none", n=1, realtime=realtime)
    sent, report = send(wanted, model=MODEL), join()
    assert sent.lanes["opus"].packets == pytest.approx(101, abs=3) and report.frames == 3 and not report.warnings
    assert sent.lanes["opus"].rate_kbps < 60
    with av.open(os.fspath(tmp_path / "a.mkv")) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.pts is not None]
    assert times[-1] == pytest.approx(wanted_s, abs=0.1)


def test_sound_of_a_wild_time_makes_no_long_recording(tmp_path):
    recorder = _Recorder(tmp_path / "a.mkv", None, False)
    recorder.most_sound_s = math.inf
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    picture.sent_unix_s = lambda pts: picture.base_unix_s + pts / 90_000
    for index in range(25):
        recorder.push(grey(100, index, 64, 48), SimpleNamespace(ssrc=7), picture)
    for pts in [*range(0, 72_000, 960), 1 << 30]:
        recorder.hear(sound, opus.OpusPacket(b"\xfc\xff\xfe", pts, 0, 7))
    recorder.close()
    recorder.release()
    assert recorder.audio_packets == 75


def test_sound_goes_out_while_the_next_picture_is_waited_for(port, clip_with_sound, monkeypatch):
    wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", baseline="none", sdp=None)
    now_s, sounds = 100.0, []

    def wait(seconds):
        nonlocal now_s
        now_s += seconds

    with Sender(wanted, model=MODEL) as sender:
        sender._push(next(iter(sender.source)))
        monkeypatch.setattr("mcode.send.time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
        sender._wire.transmit = lambda lane, *_: sounds.append((lane.name, round(now_s - sender._start_s, 2)))
        sender._start_s = 100.0
        sender._wait_until(1.0, SimpleNamespace(wait=wait, is_set=lambda: False))
    assert {name for name, _ in sounds} == {"opus"}
    assert [at_s for _, at_s in sounds] == pytest.approx([0.02 * i for i in range(len(sounds))], abs=0.021)
    assert 48 <= len(sounds) <= 51


@pytest.mark.parametrize("sound_s", [0.3, 0.8, 2.0])
def test_the_sound_of_the_last_pictures_time_is_sent_in_each_round(tmp_path, port, sound_s):
    clip = slides(tmp_path / "slides.mkv", [0, 0.2, 0.5], sound_s)  # rounds of 0.8 s
    wanted = SendConfig(os.fspath(clip), to=f"rtp://127.0.0.1:{port}", baseline="none", loop=True)
    with Sender(wanted, model=MODEL) as sender:
        sent_s = []
        for index, frame in zip(range(9), sender.source, strict=False):
            sent_s += [pts / 48_000 for _, pts in sender.source.audio_until(frame.pts_s)]
            assert frame.pts_s == pytest.approx([0, 0.2, 0.5][index % 3] + 0.8 * (index // 3), abs=0.002)
    rounds = [[at_s - 0.8 * k for at_s in sent_s if 0.8 * k - 0.02 <= at_s < 0.8 * k + 0.78] for k in range(2)]
    for each in rounds:
        assert each[-1] == pytest.approx(min(sound_s, 0.77), abs=0.05) and np.diff(each).max() < 0.021
    assert np.diff(sent_s).min() > 0


def test_sound_comes_to_the_player_with_its_time(port, clip_with_sound):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", baseline="none", loop=True)
        sender = Sender(wanted, model=MODEL)
        sender.start()
        wait_for(lambda: len(receiver.audio) > 60 and receiver.lanes["mcode"].shown > 10)
        chunks = list(receiver.audio)[-30:]
        assert all(c.samples.dtype == np.int16 and c.samples.shape[1] == 2 for c in chunks)
        gaps = np.diff([c.due_s for c in chunks])
        assert abs(np.median(gaps) - 0.02) < 0.005
        sender.stop()


@pytest.mark.parametrize(("layout", "said"), [("stereo", True), ("mono", False)])
def test_a_description_tells_whether_the_sound_is_stereo(tmp_path, port, layout, said):
    with av.open(os.fspath(tmp_path / "a.mkv"), "w") as out:
        video, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=48_000, layout=layout)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            out.mux(video.encode(av.VideoFrame.from_ndarray(test_picture(index, 64, 48), "rgb24")))
        silence = np.zeros((2 if layout == "stereo" else 1, 1024), np.float32)
        piece = av.AudioFrame.from_ndarray(silence, format="fltp", layout=layout)
        piece.sample_rate, piece.pts = 48_000, 0
        out.mux(sound.encode(piece))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    path = tmp_path / "a.sdp"
    wanted = SendConfig(os.fspath(tmp_path / "a.mkv"), to=f"rtp://127.0.0.1:{port}", baseline="none", sdp=path)
    with Sender(wanted, model=MODEL) as sender:
        sender._push(next(iter(sender.source)))
    assert ("a=fmtp:99 sprop-stereo=1" in path.read_text()) == said and "opus/48000/2" in path.read_text()


# What the user can mend


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "udp://127.0.0.1:5004"}, "rtp://HOST:PORT"),
        ({"to": "rtp://127.0.0.1"}, "rtp://HOST:PORT"),
        ({"to": "rtp://127.0.0.1:99999"}, "port"),
        ({"coder": "morse"}, "huffman or fixed"),
        ({"n": 0}, "1 to 65535"),
        ({"baseline": "mpeg2"}, "h264, h265 or none"),
        ({"baseline_rate": "fast"}, "kbit/s, or equal"),
        ({"fec": "many"}, "8\\+2"),
    ],
)
def test_unusable_options_are_named(options, words):
    with pytest.raises(InputError, match=words) as error:
        SendConfig("testsrc", **options)
    assert "\n" not in str(error.value)


class OneQuality(BlockMeans):
    def tables(self, quality):
        if quality != 1:
            raise ManifoldError(f"quality {quality} is outside 1..1")
        return super().tables(quality)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quality": 9}, "quality 9 is outside"),
        ({"coder": "range"}, "no hyperprior"),
        ({"sdp": "missing/a.sdp"}, "missing/a.sdp: cannot write it.*no such folder"),
        ({"sdp": "."}, "cannot write it.*is a folder"),
        ({"sdp": __file__}, "cannot write it.*no description; choose another name"),
        ({"baseline": "h265", "size": (8, 8)}, "H.265 cannot encode 8x8"),
    ],
)
def test_what_a_manifold_or_the_disk_refuses_is_named_before_it_runs(port, options, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, ManifoldError), match=words) as error:
        Sender(config(port, **options), model=OneQuality())
    assert "\n" not in str(error.value)


def test_a_coder_that_the_manifold_has_not_is_refused_while_it_runs(port):
    with Sender(config(port), model=MODEL) as sender:
        with pytest.raises(InputError, match="no hyperprior"):
            sender.update(coder="range")
        assert sender.config.coder == "huffman" and not sender._changes


class FakeCamera:
    """A capture device: grey pictures, and none while it is unplugged."""

    def __init__(self):
        self.plugged, self.opened, self.reads = True, 0, 0

    def isOpened(self):
        return self.plugged

    def read(self):
        time.sleep(0.01)
        self.reads += 1
        return (True, np.full((48, 64, 3), self.reads % 200, np.uint8)) if self.plugged else (False, None)

    def get(self, what):
        return 25.0

    def open(self, number):
        self.opened += 1
        return self.plugged

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    made = FakeCamera()
    monkeypatch.setattr(mcode.send.cv2, "VideoCapture", lambda number: made)
    monkeypatch.setattr(mcode.send, "CAMERA_PATIENCE_S", 0.3)
    return made


def camera_sender(port, **options):
    said = []
    wanted = SendConfig("camera:0", to=f"rtp://127.0.0.1:{port}", baseline="none", **options)
    return Sender(wanted, model=MODEL, notify=said.append), said


def test_a_camera_that_is_unplugged_is_one_line_and_the_stream_goes_on_when_it_is_back(port, camera):
    sender, said = camera_sender(port)
    sender.start()
    wait_for(lambda: sender.status().frames > 5)
    camera.plugged = False
    wait_for(lambda: said)
    wait_for(lambda: camera.opened > 3)
    assert len(said) == 1 and "camera:0" in said[0] and "unplugged" in said[0] and "\n" not in said[0]
    assert sender.is_running
    frames = sender.status().frames
    camera.plugged = True
    wait_for(lambda: sender.status().frames > frames + 5)
    assert said[1:] == ["camera:0 is back"]
    assert sender.stop().frames > frames


def test_a_sender_waiting_for_its_camera_stops_promptly_and_at_its_end(port, camera):
    sender, said = camera_sender(port)
    sender.start()
    wait_for(lambda: sender.status().frames > 2)
    camera.plugged = False
    wait_for(lambda: said)
    assert sender.stop(timeout_s=5.0) is not None and not sender.is_running
    camera.plugged = True
    sender, said = camera_sender(port, duration_s=1.0)
    sender.start()
    wait_for(lambda: sender.status().frames > 2)
    camera.plugged = False
    wait_for(lambda: not sender.is_running)
    assert sender.stop().frames > 2


def test_a_block_that_fails_leaves_no_thread(port):
    with pytest.raises(ZeroDivisionError), Sender(config(port, duration_s=None), model=MODEL) as sender:
        sender.start()
        wait_for(lambda: sender.status().frames > 1)
        _ = 1 / 0
    assert not sender.is_running


def test_repair_is_counted_in_the_rate_and_covers_the_end(port):
    plain = send(config(port, realtime=False, duration_s=4.0), model=MODEL).lanes["mcode"]
    sent = send(config(port, realtime=False, duration_s=4.0, fec="8+2"), model=MODEL).lanes["mcode"]
    groups = -(-plain.packets // 8)
    assert plain.packets % 8, "the last group is to be a short one"
    assert sent.packets == plain.packets + 2 * groups and plain.fec_bytes == 0
    assert sent.wire_bytes == plain.wire_bytes + sent.fec_bytes
    assert sent.rate_kbps == pytest.approx(plain.rate_kbps * sent.wire_bytes / plain.wire_bytes, rel=0.01)


def test_headers_sent_twice_survive_damage_to_one_copy_and_are_counted(port):
    plain = send(config(port, realtime=False, duration_s=2.0), model=MODEL).lanes["mcode"]
    twice = send(config(port, realtime=False, duration_s=2.0, fec_header=True), model=MODEL).lanes["mcode"]
    assert plain.packets == twice.packets and plain.wire_bytes < twice.wire_bytes < 2 * plain.wire_bytes
    shown = {}
    for copies in (False, True):
        lane, packetiser = McodeLane(finder(MODEL)), payload.Packetiser(7, twice=copies)
        units = []
        for index, packet in enumerate(keyframes(waves(6))):
            for rtp in packetiser.push(packet):
                data = bytearray(bytes(rtp))
                data[13] ^= 0x10 * (index == 3)  # in the first copy
                units += lane.push(bytes(data), 0.04 * index)
        shown[copies] = len(units) + len(lane.poll(9))
    assert shown == {False: 5, True: 6}


def test_an_unresolvable_host_is_named():
    with pytest.raises(InputError, match=r"no-such-host\.invalid"):
        Sender(SendConfig("testsrc", to="rtp://no-such-host.invalid:5004"), model=MODEL)


@pytest.mark.parametrize("host", ["239.1.1.1", "[ff02::1]"])
def test_multicast_is_refused_at_both_ends(tmp_path, host, port):
    with pytest.raises(InputError, match="multicast address, which is not supported"):
        Sender(SendConfig("testsrc", to=f"rtp://{host}:{port}"), model=MODEL)
    path = tmp_path / "a.sdp"
    path.write_text(str(sdp.Session(host.strip("[]"), (sdp.Media("MCODE", port, 96),))))
    for source in (path, f"rtp://{host}:{port}"):
        for bind_to in (None, "0.0.0.0"):
            with pytest.raises(InputError, match="multicast address, which is not supported"):
                receive_to_file(source, tmp_path / "a.mp4", manifold=MODEL, bind_to=bind_to, wait_s=0.3)


def test_a_port_in_use_is_named(port):
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.bind(("127.0.0.1", port + 2))
    try:
        with pytest.raises(InputError, match=f"port {port + 2}.*using it"):
            Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL)
    finally:
        held.close()
    Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL).close()  # nothing was left bound


def test_an_address_of_another_machine_is_named(port):
    with pytest.raises(InputError, match="not an address of this machine"):
        Receiver(f"rtp://192.0.2.1:{port}", manifold=MODEL)


@pytest.mark.parametrize("input", ["camera:97", "camera:x", "no-such-file.mp4"])
def test_a_source_that_is_not_there_is_named(input):
    with pytest.raises(InputError, match=input) as error:
        Sender(SendConfig(input), model=MODEL)
    assert "\n" not in str(error.value)


def test_lanes_are_listened_to_where_each_goes(tmp_path, port):
    media = (
        sdp.Media("MCODE", port, 96, address="127.0.0.2"),
        sdp.Media("H264", port + 2, 97),
    )
    (tmp_path / "a.sdp").write_text(str(sdp.Session("127.0.0.1", media)))
    for bind_to, expected in ((None, ["127.0.0.2", "127.0.0.1"]), ("127.0.0.1", ["127.0.0.1"] * 2)):
        network = _Network(tmp_path / "a.sdp", finder(MODEL), bind_to=bind_to)
        assert [link.socket.getsockname()[0] for link in network.links] == expected
        network.close()
    media = (replace(media[0], address="239.1.1.1"), media[1])
    (tmp_path / "a.sdp").write_text(str(sdp.Session("127.0.0.1", media)))
    with pytest.raises(InputError, match="multicast"):
        _Network(tmp_path / "a.sdp", finder(MODEL))


def test_a_large_file_is_no_description(tmp_path):
    (tmp_path / "film.sdp").write_bytes(b"v=0\n" + bytes(1 << 20))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_session(tmp_path / "film.sdp")


def test_wrong_descriptions_are_named(tmp_path):
    wrong = tmp_path / "x.sdp"
    wrong.write_text("no description")
    with pytest.raises(InputError, match=r"x\.sdp"):
        Receiver(wrong)
    with pytest.raises(InputError, match=r"missing\.sdp"):
        Receiver(tmp_path / "missing.sdp")


def test_a_lane_that_is_not_described_is_named_with_the_one_that_is(tmp_path, port):
    path = tmp_path / "a.sdp"
    path.write_text(str(sdp.Session("127.0.0.1", (sdp.Media("H264", port + 2, 97), sdp.Media("OPUS", port + 4, 99)))))
    with pytest.raises(InputError, match=r"a\.sdp: no lane mcode in it; use --lane baseline"):
        receive_to_file(path, tmp_path / "a.mp4", manifold=MODEL, wait_s=0.3)
    path.write_text(str(sdp.Session("127.0.0.1", (sdp.Media("OPUS", port + 4, 99),))))
    for lane in ("mcode", "baseline"):
        with pytest.raises(InputError, match=f"no lane {lane} in it; it has sound alone"):
            receive_to_file(path, tmp_path / "a.mp4", manifold=MODEL, lane=lane, wait_s=0.3)


def test_a_description_names_a_file_whose_name_is_not_utf8(tmp_path, port):
    path = tmp_path / "a.sdp"
    with Sender(config(port, sdp=path), model=MODEL) as sender:
        sender.config = replace(sender.config, input=os.fsdecode(b"dir/b\xe9.mp4"))
        sender._push(next(iter(sender.source)))
    assert read_session(path).name == "MCode b\ufffd.mp4"
    assert [each.name for each in tmp_path.iterdir()] == ["a.sdp"]


def test_a_description_that_cannot_be_written_leaves_the_one_before(tmp_path, port, monkeypatch):
    path = tmp_path / "a.sdp"
    path.write_text("v=0\nbefore")

    def full(self, data):
        raise OSError(28, "No space left on device")

    with Sender(config(port, sdp=path), model=MODEL) as sender:
        monkeypatch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(InputError, match="a.sdp: cannot write it.*No space"):
            sender._push(next(iter(sender.source)))
    assert path.read_text() == "v=0\nbefore" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_description_goes_to_a_pipe(tmp_path, port):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    join = in_thread(path.read_bytes)
    with Sender(config(port, sdp=path), model=MODEL) as sender:
        sender._push(next(iter(sender.source)))
    assert join().startswith(b"v=0") and path.is_fifo()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.xyz", r"cannot write \.xyz: use \.mp4"),
        ("a", "cannot write a file without extension"),
        ("there.mp4", "exists: use --force"),
        ("none/a.mp4", "no such folder"),
        ("a-%s.png", "a pattern holds one %d"),
        ("f-%03d.png", "exists: use --force"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_listening(tmp_path, monkeypatch, name, said):
    (tmp_path / "there.mp4").write_text("mine")
    (tmp_path / "f-001.png").write_text("mine")
    monkeypatch.setattr("mcode.receive._Network", lambda *arguments, **options: pytest.fail("it listens"))
    with pytest.raises(InputError, match=said):
        receive_to_file("rtp://127.0.0.1:5004", tmp_path / name, manifold=MODEL, wait_s=0.3)


def test_nothing_coming_is_said(tmp_path, port):
    with pytest.raises(InputError, match="nothing came"):
        receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL, wait_s=0.3)
    assert list(tmp_path.iterdir()) == []


def test_stopping_is_prompt_and_leaves_a_report(port):
    stop = threading.Event()
    join = in_thread(lambda: send(config(port, duration_s=None), stop=stop, model=MODEL))
    time.sleep(0.5)
    stop.set()
    assert join().duration_s > 0


def test_not_realtime_sends_as_fast_as_it_can(port):
    report = send(config(port, realtime=False, duration_s=8.0, sdp=None), model=MODEL)
    assert report.frames == 200 and report.dropped == 0


def test_channels_of_both_lanes_damage_alike(port):
    sender = Sender(config(port, baseline="h264", channel=ChannelSettings(loss=0.3, seed=8)), model=MODEL)
    patterns = [[not lane.channel.transmit(b"x") for _ in range(50)] for lane in (sender.mcode, sender.baseline)]
    assert patterns[0] == patterns[1] and any(patterns[0])
    sender.close()


def test_the_baseline_comes_to_the_rate_of_the_mcode_lane(port):
    with Sender(config(port, baseline="h264", realtime=False, duration_s=12.0, refresh_s=1.0), model=MODEL) as sender:
        report = sender.run(threading.Event())
        lane, follower = report.lanes["h264"], sender._baseline.follower
    assert lane.target_kbps == pytest.approx(report.lanes["mcode"].rate_kbps, rel=0.15)
    assert not lane.at_floor and not report.warnings
    assert follower.sent_kbps == pytest.approx(lane.target_kbps, rel=0.25)


def test_a_baseline_that_cannot_go_so_low_says_its_floor(port):
    wanted = config(port, baseline="h264", realtime=False, duration_s=8.0, refresh_s=1.0, n=25)
    with Sender(wanted, model=MODEL) as sender:
        report = sender.run(threading.Event())
    lane = report.lanes["h264"]
    assert lane.at_floor and sender._baseline.follower.crf == 51 and lane.rate_kbps > lane.target_kbps
    assert any("its floor" in warning and "H.264" in warning for warning in report.warnings)


def test_repair_rebuilds_lost_packets_on_the_way_to_a_file(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    channel = ChannelSettings(loss=0.15, seed=4)
    sent = send(config(port, n=1, fec="4+2", channel=channel, duration_s=3.0), model=MODEL).lanes["mcode"]
    counters = join().counters
    assert sent.channel_lost > 3 and counters.fec_recovered > 3
    assert counters.lost < sent.channel_lost and counters.fec_packets > 10


def test_repair_and_headers_sent_twice_are_options_of_the_command(monkeypatch):
    from typer.testing import CliRunner

    from mcode.cli import app

    asked = []

    def capture(config, **_):
        asked.append(config)
        raise InputError("enough")

    monkeypatch.setattr(mcode.send, "send", capture)
    CliRunner().invoke(app, ["send", "testsrc", "--fec", "8+2", "--header-twice"])
    CliRunner().invoke(app, ["send", "testsrc"])
    assert [(c.fec, c.fec_header) for c in asked] == [("8+2", True), (None, False)]
