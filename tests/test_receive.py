"""The receiving end of a stream: where it listens, whose time is whose, and when a frame is shown."""

from __future__ import annotations

import math
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mcode import fec
from mcode.channel import ChannelSettings
from mcode.errors import InputError
from mcode.fec import FecSettings, Protector
from mcode.frame import Frame
from mcode.lanes import finder
from mcode.receive import AudioChunk, LaneView, PlayoutClock, Receiver
from mcode.receive.network import Network
from mcode.receive.recording import _receive
from mcode.rtp import payload, rtcp
from mcode.rtp.packets import RtpPacket

from .block_means import TICKS, grey
from .loopback import MODEL, PATIENCE_S, baseline_datagrams, in_thread, keyframes, wait_for, waves

pytestmark = pytest.mark.usefixtures("nothing_is_left_running")


def test_playout_clock_waits_for_the_slowest_lane_and_forgives_one_stall():
    clock = PlayoutClock()
    for i in range(60):
        clock.observe("baseline", i * 0.04, i * 0.04 + 0.02)
        clock.observe("mcode", i * 0.04, i * 0.04 + (0.16 if i != 30 else 0.9))
    assert clock.due_s(10.0) == pytest.approx(10.168, abs=0.002)
    for i in range(60, 400):
        clock.observe("mcode", i * 0.04, i * 0.04 + 0.05)
    assert clock.due_s(10.0) == pytest.approx(10.058, abs=0.002)


def test_the_playout_clock_remembers_bundles_that_come_rarely():
    clock = PlayoutClock()
    delays = []
    for i in range(2000):
        at_s = i * 0.02
        clock.observe("audio", at_s, at_s + 0.02)
        if i % 300 == 299:  # every six seconds eight keyframes, the first of which has waited longest
            for _ in range(8):
                clock.observe("mcode", at_s - 6.0, at_s)
        if i > 700:
            delays.append(clock.due_s(0.0))
    assert min(delays) == max(delays) == pytest.approx(6.008)
    for i in range(2000, 3200):  # one keyframe in a packet again: what is rare no more is forgotten
        clock.observe("mcode", i * 0.02 - 0.1, i * 0.02)
    assert clock.due_s(0.0) == pytest.approx(0.108)


def test_the_playout_clock_forgets_a_stall_when_its_time_is_over():
    clock = PlayoutClock()
    for i in range(100):
        clock.observe("mcode", i * 0.2, i * 0.2 + 0.05)
    for i in range(100, 140):  # eight seconds of nothing, then all of it at once
        clock.observe("mcode", i * 0.2, 28.05)
    for i in range(141, 400):
        clock.observe("mcode", i * 0.2, i * 0.2 + 0.05)
        if i * 0.2 > 28.05 + 20:
            break
        if i * 0.2 > 28.05 + 5:
            assert clock.due_s(0.0) < 6
    assert clock.due_s(0.0) == pytest.approx(0.058)


def test_keyframes_released_together_are_no_bundle_and_a_stall_does_not_last():
    """After a stall what came late is left out, and the delay is what it was before: as before bundles."""
    clock = PlayoutClock()
    link = SimpleNamespace(name="mcode", clock_hz=90_000, sent_unix_s=lambda pts: pts / 90_000, lane=None)
    view = LaneView(link, clock)
    try:
        for bundle in (None, 7):
            clock.restart()
            for i in range(5):
                unit = SimpleNamespace(arrival_s=10.0, after_loss=False)
                view._note(unit, bundle, i * 90_000, 10.0 - i)
            needs = sorted(round(need, 1) for _, need in clock._needed["mcode"])
            assert needs == ([6.0, 7.0, 8.0, 9.0, 10.0] if bundle is None else [10.0] * 5)
    finally:
        view.close()


def test_frames_of_wild_times_do_not_wait_one_behind_the_other(monkeypatch):
    monkeypatch.setattr("mcode.receive.view._LONGEST_WAIT_S", 0.3)
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: math.inf
    view = LaneView(SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: 0.0), clock)
    try:
        for index in range(8):
            view._hold(grey(100, index))
        wait_for(lambda: view.shown + view.skipped == 8)
        assert view.shown <= 3  # all at once
    finally:
        view.close()


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


@pytest.fixture
def network(port):
    made = Network(f"rtp://127.0.0.1:{port}", finder(MODEL), lanes=("mcode", "baseline"))
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
            spared = mcode.protected_bytes(bytes(rtp))
            assert spared == payload.protected_bytes(rtp)
            for repair in protector.push(rtp):
                assert mcode.protected_bytes(bytes(repair)) == fec.protected_bytes(spared)
                checked += 1
    assert checked == 2
    for group in baseline_datagrams("h264", 8):
        for datagram in group:
            if datagram[1] & 127 == 100:
                assert baseline.protected_bytes(datagram) == fec.protected_bytes(spared)
            else:
                spared = baseline.protected_bytes(datagram)


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


def test_a_sender_that_reports_and_sends_nothing_is_asked_for_a_refresh(network, monkeypatch):
    link, peer, now_s, asked = network.links[0], ("127.0.0.1", 9), 100.0, []

    def note(data, to):
        asked.extend((round(now_s, 1), to, c.media_ssrc) for c in rtcp.parse_compound(data) if isinstance(c, rtcp.Pli))

    link.socket.close()
    link.socket = SimpleNamespace(sendto=note, close=lambda: None)

    def report(ssrc):
        data = rtcp.compound([rtcp.SenderReport(ssrc, rtcp.ntp(1000.0), 5, 1, 1), rtcp.Description(ssrc, "a")])
        link.hear(data, peer, now_s)

    def run(until_s):
        nonlocal now_s
        while now_s < until_s:
            link.answer(now_s)
            now_s += 0.1

    run(101)
    report(7)
    run(101.9)
    assert asked == []  # its first packet may be under way
    run(125)
    assert {each[1:] for each in asked} == {(peer, 7)} and 102 <= asked[0][0] <= 102.5
    assert 3 <= len(asked) <= 6 and asked[-1][0] < 111.5  # less and less often; and not one that is gone
    assert link.heard_s == pytest.approx(101, abs=0.2), "that it is there is known by its report"
    asked.clear()
    report(8)
    packet = bytes(payload.Packetiser(8).push(keyframes(waves(1))[0])[0])
    network._take(link, packet, peer)
    run(130)
    assert asked == []


def test_reports_beside_packets_of_another_lane_are_no_sender_of_this_one(network):
    link, peer = network.links[0], ("127.0.0.1", 9)
    data = rtcp.compound([rtcp.SenderReport(7, rtcp.ntp(1000.0), 5, 1, 1), rtcp.Description(7, "a")])
    link.hear(data, peer, 100.0)
    assert link.heard_s == 100 and link._joins(104.0) == 7
    for stray in (
        b"x",
        bytes(RtpPacket(link.lane.recoverer.payload_type, 1, 2, 7, b"repair")),
        bytes(RtpPacket(99, 1, 2, 8, b"x")),
    ):
        network._take(link, stray, peer)
        assert link.heard_s == 100 and link._joins(104.0) == 7
    network._take(link, bytes(RtpPacket(99, 1, 2, 7, b"another lane's")), peer)
    assert link.reception.ssrc is None and link.heard_s == 0 and link._joins(104.0) is None


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

    for module in ("network", "recording"):
        clock = SimpleNamespace(monotonic=lambda: now_s, time=lambda: now_s)
        monkeypatch.setattr(f"mcode.receive.{module}.time", clock)
    recorder = SimpleNamespace(frames=1, length_s=0.0, warnings=[], push=lambda frame, *_: written.append(frame.pts // TICKS))
    followed = SimpleNamespace(links=[link], wait=wait, flush=network.flush)
    _receive(followed, recorder, "rtp://127.0.0.1:5004", None, 30.0, 10.0, stop, None)
    assert written == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] and link.reception.counters.lost == 2


def test_no_frame_waits_longer_than_it_may_whatever_the_clock_says(monkeypatch):
    monkeypatch.setattr("mcode.receive.view._LONGEST_WAIT_S", 0.2)
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: math.inf
    view = LaneView(SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: 0.0), clock)
    try:
        view._hold(grey(100, 0))
        wait_for(lambda: view.shown == 1)
    finally:
        view.close()


def test_frames_of_a_slow_stream_may_wait_longer_than_one_may_behind_another(monkeypatch):
    """A bundle of a clip of 2 frames/s is seconds long: all of it comes at once, and each frame is shown when it is due."""
    monkeypatch.setattr("mcode.receive.view._LONGEST_WAIT_S", 0.4)
    clock = PlayoutClock()
    clock.due_s = lambda sent_unix_s: sent_unix_s
    now_s = time.monotonic()
    view = LaneView(SimpleNamespace(name="mcode", lane=None, sent_unix_s=lambda pts: now_s + 0.25 * pts / TICKS), clock)
    try:
        for index in range(8):
            view._hold(grey(100, index))
        wait_for(lambda: view.shown + view.skipped == 8)
        assert time.monotonic() - now_s >= 1.75
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
