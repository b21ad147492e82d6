"""The sending end of a stream: what goes out, when, and what is refused before."""

from __future__ import annotations

import errno
import math
import os
import re
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mcode.send
import mcode.send.sources
from mcode.channel import ChannelSettings
from mcode.errors import InputError, ManifoldError
from mcode.lanes import McodeLane, finder
from mcode.rtp import payload, rtcp
from mcode.rtp.packets import is_rtcp
from mcode.send import SendConfig, Sender, read_stamp, send, test_picture

from .block_means import BlockMeans
from .loopback import MODEL, config, in_thread, keyframes, slides, wait_for, waves

pytestmark = pytest.mark.usefixtures("nothing_is_left_running")


def test_the_stamp_reads_back_through_scaling():
    for index in (0, 1, 2, 499, 12_345, 65_535):
        assert read_stamp(test_picture(index, 64, 48)) == index
        assert read_stamp(test_picture(index, 640, 360)) == index
    between = (test_picture(3, 64, 48) // 2 + test_picture(4, 64, 48) // 2).astype(np.uint8)
    assert read_stamp(between) is None


def test_a_sender_refuses_pictures_that_receivers_refuse(port):
    with pytest.raises(InputError, match="16 million pixels.*--size"):
        Sender(config(port, size=(8192, 4096)), model=MODEL)


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


def test_a_refresh_that_is_asked_for_before_the_first_is_the_first(port, monkeypatch):
    with Sender(config(port, refresh_s=1000), model=MODEL) as sender:
        packets = []
        monkeypatch.setattr(sender, "_send_mcode", packets.extend)
        asked = iter([True])
        monkeypatch.setattr(sender.mcode, "take_refresh_request", lambda: next(asked, False))
        for frame, _ in zip(sender.source, range(10), strict=False):
            sender._push(frame)
    assert [packet.header is not None for packet in packets] == [True] + [False] * (len(packets) - 1) and len(packets) > 1


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
        monkeypatch.setattr("mcode.send.wire.time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
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
        monkeypatch.setattr("mcode.send.wire.time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))

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


def test_sound_goes_out_while_the_next_picture_is_waited_for(port, clip_with_sound, monkeypatch):
    wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", baseline="none", sdp=None)
    now_s, sounds = 100.0, []

    def wait(seconds):
        nonlocal now_s
        now_s += seconds

    with Sender(wanted, model=MODEL) as sender:
        sender._push(next(iter(sender.source)))
        for module in ("sender", "wire"):
            monkeypatch.setattr(f"mcode.send.{module}.time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
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
        ({"audio_kbps": 5}, "--audio-rate 5: from 6 to 256 kbit/s"),
        ({"audio_packet_ms": 30}, "--audio-packet 30: choose one of 20, 40"),
        ({"audio_kbps": 64, "audio_packet_ms": 120}, "--audio-rate 64 with --audio-packet 120.*choose 53 kbit/s or less"),
        ({"rate_kbps": 0}, "--rate 0: from 0.01"),
        ({"bundle": 0}, "--bundle 0: from 1 to 64"),
        ({"bundle": 65}, "--bundle 65: from 1 to 64"),
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
    monkeypatch.setattr(mcode.send.sources.cv2, "VideoCapture", lambda number: made)
    monkeypatch.setattr(mcode.send.sources, "CAMERA_PATIENCE_S", 0.3)
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


def test_bundles_send_every_keyframe_in_fewer_packets_and_bytes(port):
    options = {"realtime": False, "duration_s": 4.0, "n": 4, "refresh_s": 100, "size": (32, 24)}
    plain = send(config(port, **options), model=MODEL)
    sent = send(config(port, **options, bundle=4), model=MODEL)
    alone, together = plain.lanes["mcode"], sent.lanes["mcode"]
    assert plain.keyframes == sent.keyframes == alone.packets
    assert together.packets == 1 + -(-(sent.keyframes - 1) // 4)  # the refresh alone, the others by four, none left behind
    assert together.payload_bytes == alone.payload_bytes and together.wire_bytes < alone.wire_bytes
    for lane in (alone, together):
        assert lane.link_kbps == pytest.approx(lane.rate_kbps + lane.packets * 28 * 8 / 1000 / sent.duration_s)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"bundle": 4},
        {"bundle": 32},
        {"fec_header": True},
        {"fec": "4+4"},
        {"fec": "8+2", "bundle": 3},
        {"mtu": 300, "size": (256, 192), "rate_kbps": 40.0},  # keyframes of several packets
    ],
)
def test_a_rate_counts_what_the_link_carries(port, more):
    options = {"realtime": False, "duration_s": 30.0, "n": 250, "size": (32, 24), "rate_kbps": 6.0} | more
    sent = send(config(port, **options), model=MODEL)
    assert sent.lanes["mcode"].link_kbps == pytest.approx(options["rate_kbps"], rel=0.05) and not sent.warnings


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_a_rate_counts_the_longer_headers_of_ipv6(port):
    options = {"realtime": False, "duration_s": 30.0, "n": 250, "size": (32, 24), "rate_kbps": 6.0}
    try:
        sender = Sender(replace(config(port, **options), to=f"rtp://[::1]:{port}"), model=MODEL)
    except OSError:
        pytest.skip("no IPv6")
    with sender:
        lane = sender.run(threading.Event()).lanes["mcode"]
    assert lane.link_kbps == pytest.approx(6.0, rel=0.05)
    assert lane.link_kbps == pytest.approx(lane.rate_kbps + lane.packets * 48 * 8 / 1000 / 30)


def test_a_rate_that_n_does_not_allow_is_told(port):
    options = {"realtime": False, "duration_s": 20.0, "n": 50, "size": (32, 24), "rate_kbps": 6.0}
    over = send(config(port, **options | {"n": 1}), model=MODEL)
    assert over.lanes["mcode"].link_kbps > 12 and "--rate 6: it took" in over.warnings[0]
    assert "use a larger --n than 1, a lower --quality" in over.warnings[0]
    over = send(config(port, **options | {"rate_kbps": 0.01, "n": 65_535}), model=MODEL)
    assert "--rate 0.01: it took" in over.warnings[0] and "kbit/s; use a lower --quality" in over.warnings[0]


def test_a_refresh_that_is_asked_for_goes_out_at_once_and_what_was_held_before_it(port):
    with Sender(config(port, n=1, bundle=50, refresh_s=1000, duration_s=None, size=(32, 24)), model=MODEL) as sender:
        sent = []
        sender._transmit_mcode = sent.extend
        frames = iter(sender.source)
        for _ in range(9):
            sender._push(next(frames))
        assert len(sent) == 1
        sender.mcode.hear(rtcp.Pli(1, sender.mcode.ssrc))
        sender._push(next(frames))
        first, held, asked = (payload.parse(packet) for packet in sent)
        assert [len(each) for each in (first, held, asked)] == [1, 8, 1] and asked[0].header.header is not None


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


def test_rates_are_over_the_last_frames_time_too(port):
    report = send(config(port, realtime=False, duration_s=0.4), model=MODEL)
    assert report.frames == 10 and report.duration_s == pytest.approx(0.4)
    lane = report.lanes["mcode"]
    assert lane.rate_kbps == pytest.approx(lane.wire_bytes * 8 / 1000 / 0.4)


def test_of_slides_the_last_one_is_taken_to_stand_no_longer_than_the_usual_one(tmp_path, port):
    video = tmp_path / "slides.mkv"
    slides(video, [0, 1, 2, 12], 0.1)
    wanted = SendConfig(os.fspath(video), f"rtp://127.0.0.1:{port}", realtime=False, baseline="none", audio=False)
    report = send(wanted, model=MODEL)
    assert report.frames == 4 and report.duration_s == pytest.approx(16)


def test_a_still_that_is_to_start_over_is_refused(tmp_path):
    name = os.fspath(tmp_path / "still.png")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(name)
    with pytest.raises(InputError, match="still.png: one picture.*without --loop"):
        Sender(SendConfig(name, loop=True), model=MODEL)
    with Sender(SendConfig(name), model=MODEL) as sender:
        assert len(list(sender.source)) == 1
    video = tmp_path / "one.mkv"
    slides(video, [0], 0.1)
    looped = SendConfig(os.fspath(video), loop=True, audio=False)
    with Sender(looped, model=MODEL) as sender, pytest.raises(InputError, match=r"one\.mkv: one picture.*without --loop"):
        list(sender.source)


def test_an_unresolvable_host_is_named():
    with pytest.raises(InputError, match=r"no-such-host\.invalid"):
        Sender(SendConfig("testsrc", to="rtp://no-such-host.invalid:5004"), model=MODEL)


@pytest.mark.parametrize("input", ["camera:97", "camera:x", "no-such-file.mp4"])
def test_a_source_that_is_not_there_is_named(input):
    with pytest.raises(InputError, match=input) as error:
        Sender(SendConfig(input), model=MODEL)
    assert "\n" not in str(error.value)


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
