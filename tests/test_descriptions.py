"""Session descriptions: what a sender writes, what a receiver and other players make of it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from dataclasses import replace

import av
import numpy as np
import pytest

from mcode.errors import InputError
from mcode.frame import Frame
from mcode.lanes import finder
from mcode.receive import Receiver, read_session, receive_to_file
from mcode.receive.network import Network
from mcode.rtp import payload, sdp
from mcode.rtp.packets import RtpPacket
from mcode.send import SendConfig, Sender, read_stamp, test_picture
from mcode.video import FrameWriter

from .loopback import MODEL, PATIENCE_S, config, in_thread, wait_for

pytestmark = pytest.mark.usefixtures("nothing_is_left_running")


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


def test_lanes_are_listened_to_where_each_goes(tmp_path, port):
    media = (
        sdp.Media("MCODE", port, 96, address="127.0.0.2"),
        sdp.Media("H264", port + 2, 97),
    )
    (tmp_path / "a.sdp").write_text(str(sdp.Session("127.0.0.1", media)))
    for bind_to, expected in ((None, ["127.0.0.2", "127.0.0.1"]), ("127.0.0.1", ["127.0.0.1"] * 2)):
        network = Network(tmp_path / "a.sdp", finder(MODEL), bind_to=bind_to)
        assert [link.socket.getsockname()[0] for link in network.links] == expected
        network.close()
    media = (replace(media[0], address="239.1.1.1"), media[1])
    (tmp_path / "a.sdp").write_text(str(sdp.Session("127.0.0.1", media)))
    with pytest.raises(InputError, match="multicast"):
        Network(tmp_path / "a.sdp", finder(MODEL))


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
