"""What a stream leaves in a file: pictures and sound in their time, whatever the sender's clock does."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mcode.errors import InputError
from mcode.frame import Frame
from mcode.receive import receive_to_file
from mcode.receive.recorder import Recorder, Spool
from mcode.receive.recording import _receive
from mcode.rtp import opus, payload
from mcode.send import test_picture
from mcode.video import FrameReader, probe

from .block_means import TICKS, grey
from .loopback import MODEL, PATIENCE_S, in_thread, keyframes, waves

pytestmark = pytest.mark.usefixtures("nothing_is_left_running")


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

    lane = SimpleNamespace(decode=decode, error=None, deadline_s=None)
    link = SimpleNamespace(name="mcode", lane=lane, said_goodbye=False, heard=1, heard_s=0.0)
    recorder = SimpleNamespace(frames=1, length_s=0.0, warnings=[])
    monkeypatch.setattr("mcode.receive.recording.time", SimpleNamespace(monotonic=lambda: now_s))
    network = SimpleNamespace(links=[link], wait=wait, flush=list)
    _receive(network, recorder, "rtp://127.0.0.1:5004", None, 30.0, 10.0, stop, None)
    assert decoded == [0, 1, 2, 3, 4] and recorder.warnings == []


def receive_reports(monkeypatch, until_s, frames):
    """Receives nothing but reports, until `until_s`, after so many frames; the recorder's warnings, and the time at the end, or
    the error and that."""
    now_s = 0.0

    def wait(timeout_s):
        nonlocal now_s
        now_s += timeout_s
        link.heard_s = min(now_s, until_s)
        return []

    lane, reception = SimpleNamespace(deadline_s=None), SimpleNamespace(last_arrival_s=0.0)
    link = SimpleNamespace(name="mcode", lane=lane, reception=reception, said_goodbye=False, heard_s=0.0)
    link.heard = int(until_s > 0)
    recorder = SimpleNamespace(frames=frames, length_s=0.0, warnings=[])
    monkeypatch.setattr("mcode.receive.recording.time", SimpleNamespace(monotonic=lambda: now_s))
    network = SimpleNamespace(links=[link], wait=wait, flush=list)
    try:
        _receive(network, recorder, "rtp://127.0.0.1:5004", None, 30.0, 10.0, threading.Event(), None)
    except InputError as error:
        return [str(error)], now_s
    return recorder.warnings, now_s


@pytest.mark.parametrize(("reports_until_s", "ended_s"), [(0, 10), (25, 35), (1000, 70)])
def test_a_recording_waits_for_a_rare_bundle_while_reports_come_and_not_for_ever(monkeypatch, reports_until_s, ended_s):
    told, now_s = receive_reports(monkeypatch, reports_until_s, frames=1)
    assert now_s == pytest.approx(ended_s, abs=0.2) and "fell silent" in told[0]


@pytest.mark.parametrize(
    ("reports_until_s", "ended_s", "said"), [(0, 30, "nothing came"), (50, 80, "reports"), (1000, 90, "reports")]
)
def test_the_first_picture_is_waited_for_while_reports_come_and_not_for_ever(monkeypatch, reports_until_s, ended_s, said):
    told, now_s = receive_reports(monkeypatch, reports_until_s, frames=0)
    assert now_s == pytest.approx(ended_s, abs=0.3) and said in told[0]


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
    spool = Spool(tmp_path, 0.0)
    for i in range(1000):
        spool.put(bytes([i % 256]) * (i % 7), 1, 480 * i, now_s=1.0)
    starts_s = (99.0, 0.5)
    assert list(spool.between(starts_s, 3.495, 3.515)) == [(bytes([44]) * (300 % 7), 3.5), (bytes([45]) * (301 % 7), 3.51)]
    assert spool.count(starts_s, 8.485, 8.5) == 1 and spool.count(starts_s, 8.5, 100.0) == 0
    assert list(tmp_path.iterdir()) == []
    spool.close()


def recorded(tmp_path, frames):
    """(the report's warnings, pts and pictures) of (frame, ssrc) written as they come."""
    recorder = Recorder(tmp_path / "a.mp4", None, False)
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
    monkeypatch.setattr("mcode.receive.recorder.time", SimpleNamespace(monotonic=lambda: float(next(now_s))))
    frames = [replace(grey(100, i, 64, 48), pts=5_000_000_000 + i * TICKS + by * (i in wild)) for i in range(25)]
    warnings, written = recorded(tmp_path, [(frame, 7) for frame in frames])
    assert [frame.pts for frame in written] == [i * TICKS for i in range(25)]
    assert len(warnings) == 1 and f"leapt {leaps} times" in warnings[0]


def test_a_sender_faster_than_time_and_a_long_silence_are_no_leaps(tmp_path, monkeypatch):
    now_s = iter([0.0, 0.01, 0.02, 0.03, 7200.03, 7200.04])
    monkeypatch.setattr("mcode.receive.recorder.time", SimpleNamespace(monotonic=lambda: next(now_s)))
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
    monkeypatch.setattr("mcode.receive.recorder.time", SimpleNamespace(monotonic=lambda: now_s))
    recorder = Recorder(tmp_path / "a.mp4", None, False)
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


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_sound_keeps_its_place_where_reports_move_the_senders_clock_amid_a_recording(tmp_path, ahead_s):
    recorder = Recorder(tmp_path / "a.mkv", None, False)
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
    recorder = Recorder(tmp_path / "a.mkv", None, False)
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
    recorder = Recorder(path, None, False)
    picture, sound = (SimpleNamespace(base_unix_s=1000.0, base_ssrc=7, clock_hz=hz) for hz in (90_000, 48_000))
    for index in range(count):
        recorder.push(Frame(test_picture(index, 64, 48), index * TICKS), SimpleNamespace(ssrc=7), picture)
        recorder.hear(sound, opus.OpusPacket(b"\xfc\xff\xfe", 1920 * index, 0, 7))
    recorder.close()
    recorder.release()
    assert [frame.pts for frame in FrameReader(path)] == [index * TICKS for index in range(count)]
    assert probe(path).audio_codec in ("opus", "libopus")


def test_sound_of_a_wild_time_makes_no_long_recording(tmp_path):
    recorder = Recorder(tmp_path / "a.mkv", None, False)
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
    monkeypatch.setattr("mcode.receive.recording.Network", lambda *arguments, **options: pytest.fail("it listens"))
    with pytest.raises(InputError, match=said):
        receive_to_file("rtp://127.0.0.1:5004", tmp_path / name, manifold=MODEL, wait_s=0.3)


def test_nothing_coming_is_said(tmp_path, port):
    with pytest.raises(InputError, match="nothing came"):
        receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL, wait_s=0.3)
    assert list(tmp_path.iterdir()) == []
