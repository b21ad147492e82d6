"""What tests of live streams share: a small sender, keyframes, datagrams, slides with sound, waiting for a thread."""

from __future__ import annotations

import os
import threading
import time
from fractions import Fraction

import av
import numpy as np

from mcode.baseline import live_encoder
from mcode.codec import Encoder
from mcode.fec import FecSettings, Protector
from mcode.rtp import h264
from mcode.send import SendConfig, test_picture

from .block_means import BlockMeans, grey

MODEL = BlockMeans()
PATIENCE_S = 60


class OtherModel(BlockMeans):
    id = "ffffffffffffffff"


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


def keyframes(frames, **options):
    encoder = Encoder(MODEL, 16, 8, **{"n": 1, "cuts": False, **options})
    return [p for frame in frames for p in encoder.push(frame)] + encoder.flush()


def waves(count):
    return [grey(100 + 8 * (i % 4), i) for i in range(count)]


def baseline_datagrams(codec, count, width=64, height=48, ssrc=5):
    """Each picture's RTP packets and the parity packets after it."""
    encoder = live_encoder(codec, width, height, crf=40, fps=25, gop_s=0.4)
    packetiser, protector = h264.H264Packetiser(ssrc, codec=codec), Protector(FecSettings(4, 1))
    made = []
    for index in range(count):
        (unit,) = encoder.push(grey(60 + index, index, width, height))
        made.append([bytes(each) for rtp in packetiser.push(unit.data, unit.pts) for each in (rtp, *protector.push(rtp))])
    return made


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
