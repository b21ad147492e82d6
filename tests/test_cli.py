"""The command line: what it accepts and refuses, what it prints and where, and with which status it ends."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer

from mcode import cli, manifold
from mcode.errors import FormatError, InputError, ManifoldError

ROOT = Path(cli.__file__).parents[2]
ENCODE_KEYS = {
    *("frames", "keyframes", "duration_s", "payload_bytes", "file_bytes", "rate_kbps", "psnr_db", "encode_fps"),
    *("bits_per_pixel", "manifold", "manifold_id", "coder", "n", "fit"),
}


@dataclass(frozen=True)
class Report:
    """Every field that a command prints, of any report."""

    frames: int = 75
    keyframes: int = 11
    duration_s: float = 3.0
    payload_bytes: int = 232
    file_bytes: int = 12_345
    rate_kbps: float = 0.618
    bits_per_pixel: float = 0.0015
    psnr_db: float = 33.9
    encode_fps: float = 140.04
    decode_fps: float = 200.0
    manifold: str = "talking-head"
    manifold_id: str = "0123456789abcdef"
    coder: str = "huffman"
    n: int = 8
    fit: float = 0.98
    quality: int = 1
    width: int = 128
    height: int = 128
    m: int = 50
    quantised_loss_db: float = 0.05
    kbps_estimate: float = 0.5
    warnings: tuple[str, ...] = ()


class Library:
    """Stands in for a module of the library: its functions note how they were called and return or raise `result`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, *functions: str) -> None:
        self.result: object = Report()
        self.frames, self.row = 0, {}
        stand_in = types.ModuleType(module)
        for name in functions:
            setattr(stand_in, name, self.call)
        monkeypatch.setitem(sys.modules, module, stand_in)

    def call(self, *args: object, progress=None, report=None, **options: object) -> object:
        self.args, self.options = args, options
        if report:
            report(self.row)
        for done in range(1, self.frames + 1):
            progress(done, self.frames) if progress else None
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def transcode(monkeypatch) -> Library:
    return Library(monkeypatch, "mcode.transcode", "encode_file", "decode_file")


# The tree of commands


def walk(command, path: tuple[str, ...] = ()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


TREE = dict(walk(typer.main.get_command(cli.app)))


def test_the_commands_are_those_of_the_readme():
    assert {" ".join(path) for path, command in TREE.items() if path and not hasattr(command, "commands")} == {
        "encode",
        "batch",
        "decode",
        "info",
        "adapt",
        "compare",
        "train",
        "testclip",
        "manifolds list",
        "manifolds show",
        "manifolds verify",
        "manifolds import",
        "manifolds fetch",
        "evaluate stills",
        "evaluate images",
        "evaluate paper",
        "evaluate channel",
        "evaluate ablation",
        "bench",
        "study prepare",
        "study run",
        "study score",
        "send",
        "receive",
        "play",
    }


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_and_option_has_help(path):
    assert TREE[path].help
    for parameter in TREE[path].params:
        assert parameter.help, f"{' '.join(path)} {parameter.opts} has no help"
        # a type's name ("<int>") tells a reader nothing
        assert parameter.metavar or getattr(parameter, "is_flag", False), f"{' '.join(path)} {parameter.opts} has no metavar"


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_help_is_printed_for_every_command(path, mcode):
    status, out, err = mcode(*path, "--help")
    assert status == 0 and "Usage: mcode" in out and not err


def test_every_command_that_reports_has_json():
    for path, command in TREE.items():
        if not hasattr(command, "commands") and path != ("play",):
            assert "--json" in [option for parameter in command.params for option in parameter.opts], path


# Values that are refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("encode a -o b --n 0", "--n 0: the keyframe interval is a whole number from 1 to 65535"),
        ("encode a -o b --n -1", "--n -1: the keyframe interval is a whole number from 1 to 65535"),
        ("encode a -o b --n 65536", "--n 65536: the keyframe interval is a whole number from 1 to 65535"),
        ("encode a -o b --n 2.5", "--n 2.5: the keyframe interval is a whole number from 1 to 65535"),
        ("encode a -o b --quality 16", "--quality 16: the quality is a whole number from 1 to 15"),
        ("encode a -o b --quality 0", "--quality 0: the quality is a whole number from 1 to 15"),
        ("encode a -o b --quality best", "--quality best: the quality is a whole number from 1 to 15"),
        (
            "encode a -o b --size 12x",
            "--size 12x: a size is WIDTHxHEIGHT with both from 1 to 65535, as 640x360, or native",
        ),
        ("encode a -o b --size 0x0", "--size 0x0: a size is"),
        ("encode a -o b --size 640", "--size 640: a size is"),
        ("encode a -o b --size -64x64", "--size -64x64: a size is"),
        ("encode a -o b --size 64x70000", "--size 64x70000: a size is"),
        ("encode a -o b --start -1", "--start -1: the start is 0 or more seconds, as 90 or 1:30"),
        ("encode a -o b --start 1:-30", "--start 1:-30: the start is 0 or more seconds"),
        ("encode a -o b --start nan", "--start nan: the start is 0 or more seconds"),
        ("encode a -o b --start 1:2:3:4", "--start 1:2:3:4: the start is 0 or more seconds"),
        ("encode a -o b --duration 0", "--duration 0: the duration is more than 0 seconds, as 90 or 1:30"),
        ("encode a -o b --duration 1e999", "--duration 1e999: the duration is more than 0 seconds"),
        ("encode a -o b --refresh 0", "--refresh 0: the time between refreshes is more than 0 seconds"),
        ("encode a -o b --refresh -3", "--refresh -3: the time between refreshes is more than 0 seconds"),
        ("encode a -o b --coder hufman", "--coder hufman: choose huffman, fixed or range (did you mean huffman?)"),
        ("encode a -o b --device gpu", "--device gpu: choose auto, cpu, cuda or mps"),
        ("encode a -o b --audio mp3", "--audio mp3: choose copy or none"),
        ("batch a -o b --segment 0.5", "--segment 0.5: the length of a segment is 1 second or more, as 60 or 1:30"),
        ("batch a -o b --segment long", "--segment long: the length of a segment is more than 0 seconds, as 90 or 1:30"),
        ("batch a -o b --workers 0", "--workers 0: the number of processes is a whole number from 1 to 4096"),
        ("batch a -o b --workers many", "--workers many: the number of processes is a whole number from 1 to 4096"),
        ("adapt a -o b.safetensors --m 0", "--m 0: the number of coordinates is a whole number from 1 to 4096"),
        ("adapt a -o b.safetensors --kind ncode", "--kind ncode: choose linear"),
        (
            "compare a -o b.html --against h264,vp9",
            "--against h264,vp9: unknown codec 'vp9'; choose from h264, h265, av1",
        ),
        ("send a --to nowhere", "--to nowhere: "),
        ("send a --n 0", "--n 0: the keyframe interval is a whole number from 1 to 65535"),
        ("send a --bit-error-rate 0.7", "--bit-error-rate 0.7: a bit error rate is from 0 to 0.5, as 1e-3"),
        ("send a --bit-error-rate much", "--bit-error-rate much: a bit error rate is from 0 to 0.5, as 1e-3"),
        ("send a --loss 5%", "--loss 5%: a loss is a share from 0 to 1, as 0.05"),
        ("send a --loss nan", "--loss nan: a loss is a share from 0 to 1, as 0.05"),
        ("send a --burst 0", "--burst 0: a mean burst is 1 packet or more"),
        ("send a --delay-ms -1", "--delay-ms -1: a delay is from 0 to 60000 ms"),
        ("send a --jitter-ms 1e9", "--jitter-ms 1e9: a jitter is from 0 to 60000 ms"),
        ("send a --seed -1", "--seed -1: the seed is a whole number from 0 to 4294967295"),
        ("send a --baseline h266", "--baseline h266: choose h264, h265 or none"),
        ("send a --baseline-rate 0", "--baseline-rate 0: give kbit/s, more than 0 and below 1000000, or equal"),
        ("send a --baseline-rate same", "--baseline-rate same: give kbit/s"),
        ("send a --fec 8", "--fec 8: give packets and parity packets for them, both from 1 to 64, as 8+2"),
        ("send a --fec 8+65", "--fec 8+65: give packets and parity packets"),
        ("send a --audio mp3", "--audio mp3: choose opus or none"),
        ("send a --audio-rate 5", "--audio-rate 5: the sound's rate is from 6 to 256 kbit/s"),
        ("send a --audio-packet 30", "--audio-packet 30: choose 20, 40, 60, 80, 100 or 120"),
        ("send a --rate 0", "--rate 0: a rate is from 0.01 to 100000 kbit/s"),
        ("encode a -o b --rate fast", "--rate fast: a rate is from 0.01 to 100000 kbit/s"),
        ("batch a -o b --rate 0", "--rate 0: a rate is from 0.01 to 100000 kbit/s"),
        ("compare a -o b.html --rate -1", "--rate -1: a rate is from 0.01 to 100000 kbit/s"),
        ("play a --rate 1e6", "--rate 1e6: a rate is from 0.01 to 100000 kbit/s"),
        ("send a --bundle 65", "--bundle 65: the number of keyframes in a packet is a whole number from 1 to 64"),
        ("send testsrc --to rtp://no-such-host.invalid:5004", "rtp://no-such-host.invalid:5004: cannot find the host"),
        (
            "receive nowhere.sdp -o a.mp4",
            "nowhere.sdp: cannot read it (No such file or directory); give an SDP file or",
        ),
        ("receive rtp://127.0.0.1 -o a.mp4", "the address rtp://127.0.0.1: give it as rtp://HOST:PORT"),
        ("receive rtp://127.0.0.1:5004 -o -", "-o -: a live stream is written to a file; name one, as out.mp4"),
        ("receive rtp://127.0.0.1:5004 -o a.mp4 --lane h264", "--lane h264: choose mcode or baseline"),
        ("receive rtp://127.0.0.1:5004 -o a.mp4 --duration 0", "--duration 0: the duration is more than 0 seconds"),
        ("play --n 33", "--n 33: the keyframe interval in the player is a whole number from 1 to 32"),
        ("play --loss 2", "--loss 2: a loss is a share from 0 to 1, as 0.05"),
        (
            "evaluate channel a --lanes fixed,h266",
            "--lanes fixed,h266: unknown lane 'h266'; choose from fixed, huffman, h264",
        ),
        ("evaluate channel a --seeds 0", "--seeds 0: the number of seeds is a whole number from 1 to 1000"),
        ("decode a -o - --json", "-o - and --json both write to standard output: leave one of them out"),
        ("info nowhere.mp4", "nowhere.mp4: no such file"),
        ("info .", ". is a folder, not a file"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(mcode, arguments, message):
    status, out, err = mcode(*arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"mcode: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("encoding", "No such command 'encoding'. Did you mean 'encode'?", "Try 'mcode --help'."),
        ("encode", "Missing argument 'INPUT'.", "Try 'mcode encode --help'."),
        ("encode a", "Missing option '--output' / '-o'.", "Try 'mcode encode --help'."),
        ("encode a -o b --jsn", "No such option: --jsn", "Try 'mcode encode --help'."),
        ("encode a -o b --n", "Option '--n' requires an argument.", "Try 'mcode"),
        ("manifolds lst", "No such command 'lst'. Did you mean 'list'?", "Try 'mcode manifolds --help'."),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(mcode, arguments, message, hint):
    status, out, err = mcode(*arguments.split())
    assert (status, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith(f"mcode: error: {message}") and second.startswith(hint)


@pytest.mark.parametrize("group", [(), ("manifolds",), ("evaluate",)])
def test_a_group_alone_shows_its_commands(mcode, group):
    status, out, err = mcode(*group)
    assert status == 2 and "Commands:" in out + err


# What reaches the library


def test_the_defaults_of_encode(mcode, transcode):
    assert mcode("encode", "in.mp4", "-o", "out.mcode")[0] == 0
    assert transcode.args == ("in.mp4", "out.mcode")
    assert transcode.options == {
        "n": 4,
        "manifold": "general",
        "coder": "huffman",
        "quality": None,
        "refresh_s": 10,
        "adaptive": False,
        "rate_kbps": None,
        "device": "auto",
        "size": None,
        "start_s": 0,
        "duration_s": None,
        "audio": "copy",
        "refine": None,
        "force": False,
    }


def test_every_option_of_encode_arrives(mcode, transcode):
    arguments = "--n 8 --manifold me.safetensors --coder fixed --quality 3 --refresh 2.5 --device cpu --size 640x360"
    more = "--adaptive --rate 2.5 --start 1:30 --duration 0:01:00.5 --audio none --force --json"
    assert mcode("encode", "a", "-o", "b", *arguments.split(), *more.split())[0] == 0
    assert transcode.options == {
        "n": 8,
        "manifold": "me.safetensors",
        "coder": "fixed",
        "quality": 3,
        "refresh_s": 2.5,
        "adaptive": True,
        "rate_kbps": 2.5,
        "device": "cpu",
        "size": (640, 360),
        "start_s": 90,
        "duration_s": 60.5,
        "audio": "none",
        "refine": None,
        "force": True,
    }


def test_every_option_of_decode_arrives(mcode, transcode):
    arguments = "decode a.mcode -o b.mkv --manifold m --device cpu --size native --audio none --force"
    assert mcode(*arguments.split())[0] == 0
    assert transcode.args == ("a.mcode", "b.mkv")
    assert transcode.options == {"manifold": "m", "device": "cpu", "size": None, "audio": False, "force": True}


def test_every_option_of_adapt_arrives(mcode, monkeypatch):
    adapt = Library(monkeypatch, "mcode.training.adapt", "adapt_linear")
    arguments = "adapt a.mp4 b.mp4 -o me.safetensors --kind linear --m 20 --size 64x48 --seconds 5 --force"
    status, out, _ = mcode(*arguments.split())
    assert status == 0 and "mcode encode VIDEO -o OUT.mcode --manifold me.safetensors" in out
    assert adapt.args == (["a.mp4", "b.mp4"], "me.safetensors")
    assert adapt.options == {"m": 20, "size": (64, 48), "seconds": 5, "force": True}
    assert mcode("adapt", "a.mp4", "-o", "me.safetensors")[0] == 0
    assert adapt.options == {"m": 50, "size": (128, 128), "seconds": None, "force": False}
    assert "--manifold 'my face.safetensors'\n" in mcode("adapt", "a.mp4", "-o", "my face.safetensors")[1]


def test_every_option_of_compare_arrives(mcode, monkeypatch):
    compare = Library(monkeypatch, "mcode.evaluation.compare", "compare")
    arguments = (
        "compare a.mp4 -o r.html --against h265,av1,h265 --n 8 --adaptive --manifold m --coder fixed --quality 2 --force"
    )
    more = "--rate 2.5 --device cpu --size 64x64 --start 1 --duration 2 --json"
    assert mcode(*arguments.split(), *more.split())[0] == 0
    assert compare.args == ("a.mp4", "r.html")
    assert compare.options == {
        "against": ("h265", "av1"),
        "n": 8,
        "adaptive": True,
        "rate_kbps": 2.5,
        "manifold": "m",
        "coder": "fixed",
        "quality": 2,
        "device": "cpu",
        "size": (64, 64),
        "start_s": 1,
        "duration_s": 2,
        "force": True,
    }


def test_compare_prints_its_rows_as_a_table(mcode, monkeypatch):
    compare = Library(monkeypatch, "mcode.evaluation.compare", "compare")
    compare.result = types.SimpleNamespace(
        rows=[
            Row("MCode", "mcode", "N = 8", 0.7, 33.9, None, 1.0, False),
            Row("AV1", "equal rate", "CRF 63", 6.6, 30.4, 0.91, 9.43, True),
        ],
        frames=75,
        width=128,
        height=128,
        files={"report": "r.html", "video": "r.mp4"},
        warnings=(),
    )
    assert mcode("compare", "a.mp4", "-o", "r.html")[1] == (
        "codec  at                      setting  kbit/s  PSNR dB    SSIM  bits\n"
        "MCode                          N = 8      0.70    33.90          1.0x\n"
        "AV1    equal rate (its floor)  CRF 63     6.60    30.40  0.9100  9.4x\n"
        "\n"
        "75 frames at 128x128\n"
        "  report   r.html\n"
        "  video    r.mp4\n"
    )


def test_compare_prints_bits_per_pixel_of_a_single_picture(mcode, monkeypatch):
    compare = Library(monkeypatch, "mcode.evaluation.compare", "compare")
    compare.result = types.SimpleNamespace(
        rows=[Row("MCode", "mcode", "quality 5", 151.2, 33.9, None, 1.0, False, 0.41234)],
        frames=1,
        width=128,
        height=128,
        files={},
        warnings=(),
    )
    assert mcode("compare", "a.png", "-o", "r.html")[1] == (
        "codec  at  setting    bit/pixel  PSNR dB  SSIM  bits\n"
        "MCode      quality 5      0.412    33.90        1.0x\n"
        "\n"
        "1 frame at 128x128\n"
    )


class Row(NamedTuple):
    codec: str
    at: str
    setting: str
    rate_kbps: float
    psnr_db: float
    ssim: float | None
    bits: float
    floor: bool
    bits_per_pixel: float | None = None


def test_every_option_of_train_arrives(mcode, monkeypatch, tiny):
    train = Library(monkeypatch, "mcode.training.train", "train")
    train.result, train.row = tiny, {"step": 100, "loss": 0.25}
    more = "--resume --device cpu --perceptual weights"
    status, out, err = mcode("train", "c.toml", "--data", "d", "--out", "o", *more.split())
    assert status == 0 and out.startswith("tiny: Three numbers\n")
    assert err == "step 100  loss 0.25\n"
    assert (train.args, train.options) == (("c.toml", "d", "o"), {"resume": True, "device": "cpu", "perceptual": "weights"})
    monkeypatch.setenv("RANK", "1")
    assert mcode("train", "c.toml", "--data", "d", "--out", "o")[1] == ""


def test_train_warns_once_of_channels_that_have_died(mcode, monkeypatch, tiny):
    def training(*_: object, report: Callable[[dict[str, float]], None], **__: object) -> Path:
        for step, share in ((1, 0.05), (2, 0.31), (3, 0.4)):
            report({"step": step, "dead_share": share})
        return tiny

    monkeypatch.setattr("mcode.training.train.train", training)
    err = mcode("train", "c.toml", "--data", "d", "--out", "o")[2].splitlines()
    assert [line.split()[0] for line in err] == ["step", "step", "mcode:", "step"]
    assert "31% of the hidden channels" in err[2] and "learning_rate" in err[2]


def test_every_option_of_testclip_arrives(mcode, monkeypatch, tmp_path):
    clip = Library(monkeypatch, "mcode.testclip", "write_clip")
    (tmp_path / "t.mp4").write_bytes(bytes(10))  # as if rendered
    more = "--scene face --seconds 3 --size 64x32 --fps 10 --seed 1 --force"
    status, out, _ = mcode("testclip", tmp_path / "t.mp4", *more.split())
    assert (status, out) == (0, f"{tmp_path / 't.mp4'}: 3.00 s of face, 10 bytes\n")
    assert clip.options == {"scene": "face", "seconds": 3, "size": (64, 32), "fps": 10, "seed": 1, "force": True}


@dataclass(frozen=True)
class LaneReport:
    name: str
    at_floor: bool
    remote_loss: float | None
    packets: int = 1200
    rate_kbps: float = 2.5
    link_kbps: float = 5.25
    channel_lost: int = 60
    channel_damaged: int = 7
    fec_bytes: int = 640
    remote_jitter_ms: float | None = None
    round_trip_ms: float | None = 0.42


@pytest.fixture
def sender(monkeypatch) -> Library:
    found = Library(monkeypatch, "mcode.send", "send", "SendConfig")
    sys.modules["mcode.send"].SendConfig = types.SimpleNamespace
    found.result = types.SimpleNamespace(
        frames=75,
        keyframes=19,
        duration_s=3.0,
        manifold_id="0123456789abcdef",
        n=4,
        coder="fixed",
        lanes={"mcode": LaneReport("mcode", False, 0.05), "h264": LaneReport("h264", True, None)},
        warnings=("h264 cannot go down",),
    )
    return found


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_live_programs_share_the_cores(mcode, sender, monkeypatch, given, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", str(given))
    if given is None:
        del os.environ["OMP_WAIT_POLICY"]
    assert mcode("send", "testsrc")[0] == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_every_option_of_send_arrives(mcode, sender):
    arguments = "send camera:1 --to rtp://10.0.0.1:7000 -n 8 -m me --coder fixed --quality 3 --refresh 2 --baseline h265"
    channel = "--baseline-rate 7.5 --bit-error-rate 1e-3 --loss 0.05 --burst 3 --delay-ms 40 --jitter-ms 5 --seed 9"
    more = "--adaptive --rate 3 --no-realtime --sdp o.sdp --size 64x48 --start 1 --duration 2 --loop --audio none --fec 8+2"
    more += " --header-twice --bundle 4 --audio-rate 8 --audio-packet 60 --device cpu"
    assert mcode(*arguments.split(), *channel.split(), *more.split())[0] == 0
    wanted = vars(sender.args[0])
    assert vars(wanted.pop("channel")) == {
        "bit_error_rate": 1e-3,
        "loss": 0.05,
        "burst": 3,
        "delay_ms": 40,
        "jitter_ms": 5,
        "seed": 9,
    }
    assert wanted == {
        "input": "camera:1",
        "to": "rtp://10.0.0.1:7000",
        "n": 8,
        "manifold": "me",
        "coder": "fixed",
        "quality": 3,
        "refresh_s": 2,
        "adaptive": True,
        "rate_kbps": 3,
        "bundle": 4,
        "baseline": "h265",
        "baseline_rate": 7.5,
        "realtime": False,
        "sdp": "o.sdp",
        "size": (64, 48),
        "start_s": 1,
        "duration_s": 2,
        "loop": True,
        "audio": False,
        "audio_kbps": 8,
        "audio_packet_ms": 60,
        "fec": "8+2",
        "fec_header": True,
        "device": "cpu",
    }


def test_the_defaults_of_send_are_those_of_its_configuration(mcode, sender, monkeypatch):
    monkeypatch.undo()
    from mcode import send

    given = []
    monkeypatch.setattr(send, "send", lambda config, **_: given.append(config) or sender.result)
    assert mcode("send", "testsrc")[0] == 0
    assert given == [send.SendConfig("testsrc")]


def test_send_prints_a_row_for_each_lane(mcode, sender):
    status, out, err = mcode("send", "testsrc")
    assert (status, err) == (0, "mcode: warning: h264 cannot go down\n")
    assert out == (
        "rtp://127.0.0.1:5004\n"
        "  frames    75 in 3.00 s: 19 sent, one in 4\n"
        "  manifold  0123456789abcdef\n"
        "  coder     fixed\n"
        "\n"
        "lane   packets            kbit/s  with IP  lost  damaged     repair  receiver's loss  jitter  round trip\n"
        "mcode    1,200              2.50     5.25    60        7  640 bytes             5.0%       -      0.4 ms\n"
        "h264     1,200  2.50 (its floor)     5.25    60        7  640 bytes                -       -      0.4 ms\n"
    )


def test_the_first_ctrl_c_ends_a_stream_in_order_and_the_second_at_once(mcode, sender, monkeypatch, request):
    def send_until(config, *, progress, stop, notify):
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        for _ in range(again):
            signal.raise_signal(signal.SIGINT)
        return sender.result

    monkeypatch.setattr(sys.modules["mcode.send"], "send", send_until)
    before = signal.default_int_handler  # tests started in the background inherit an ignored Ctrl-C
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, before)))
    again = 0
    assert mcode("send", "testsrc")[0] == 0
    assert signal.getsignal(signal.SIGINT) is before
    again = 1
    assert mcode("send", "testsrc")[0] == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_stream_ends_in_order_by_other_signals_too(mcode, sender, monkeypatch, request, name):
    number = signal.Signals[name]

    def send_until(config, *, progress, stop, notify):
        signal.raise_signal(number)
        assert stop.is_set()
        for _ in range(again):
            signal.raise_signal(number)
        return sender.result

    monkeypatch.setattr(sys.modules["mcode.send"], "send", send_until)
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(functools.partial(signal.signal, number, before))
    again = 0
    assert mcode("send", "testsrc")[0] == 0
    again = 1
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as ended:
            mcode("send", "testsrc")
        assert ended.value.code == 128 + number
    else:  # a terminal that is closed tells twice
        assert mcode("send", "testsrc")[0] == 0
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_a_stream_under_nohup_outlives_its_terminal(mcode, sender, monkeypatch, request):
    def send_on(config, *, progress, stop, notify):
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
        return sender.result

    monkeypatch.setattr(sys.modules["mcode.send"], "send", send_on)
    request.addfinalizer(functools.partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN)))
    assert mcode("send", "testsrc")[0] == 0


def test_every_option_of_receive_arrives(mcode, monkeypatch):
    receive = Library(monkeypatch, "mcode.receive", "receive_to_file")
    receive.result = types.SimpleNamespace(frames=0)
    more = "--duration 1:00 --lane baseline -m me --bind 0.0.0.0 --device cpu --force"
    assert mcode("receive", "a.sdp", "-o", "b.mkv", *more.split()) == (130, "", "mcode: interrupted\n")
    assert not receive.options.pop("stop").is_set()
    assert receive.args == ("a.sdp", "b.mkv")
    assert receive.options == {
        "duration_s": 60,
        "lane": "baseline",
        "manifold": "me",
        "bind_to": "0.0.0.0",
        "device": "cpu",
        "force": True,
    }


@pytest.mark.parametrize("words", ["", " -m general"])
def test_play_refuses_a_quality_that_the_manifold_it_takes_has_not(mcode, words):
    status, _, err = mcode(*f"play --quality 15{words}".split())
    assert (status, err) == (2, "mcode: error: --quality 15: manifold general has qualities 1 to 8\n")


def test_every_option_of_play_arrives_as_the_window_reads_it(mcode, monkeypatch):
    from player import app

    given, signature = [], inspect.signature(app.run)
    monkeypatch.setattr(
        app, "run", lambda *given_here, **named: given.append(signature.bind(*given_here, **named).arguments) or 0
    )
    asked = "--demo -m me -n 8 --adaptive --rate 2.5 --coder fixed --quality 2 --bit-error-rate 1e-5 --loss 0.2 --seed 3"
    more = "--device cpu --no-sound --fullscreen"
    assert mcode("play", *asked.split(), *more.split(), "--", "-odd.mcode") == (0, "", "")
    assert mcode("play") == (0, "", "")
    defaults = signature.bind(None)
    defaults.apply_defaults()
    assert given == [
        {
            "source": "-odd.mcode",
            "demo": True,
            "manifold": "me",
            "n": 8,
            "adaptive": True,
            "rate_kbps": 2.5,
            "coder": "fixed",
            "quality": 2,
            "bit_error_rate": 1e-5,
            "loss": 0.2,
            "seed": 3,
            "device": "cpu",
            "sound": False,
            "full_screen": True,
        },
        defaults.arguments,
    ]


def test_every_option_of_evaluate_channel_arrives(mcode, monkeypatch):
    channel = Library(monkeypatch, "mcode.evaluation.channel", "evaluate_channel")
    sys.modules["mcode.evaluation.channel"].LABELS = {}
    sys.modules["mcode.evaluation.channel"].channel_text = str
    arguments = "evaluate channel a.mp4 -o out -m me -n 8 --adaptive --bundle 3 --quality 2 --lanes fixed,h264,fixed --seeds 2"
    more = "--size 64x48 --start 1 --duration 2 --expose-headers --device cpu --force --json"
    assert mcode(*arguments.split(), *more.split())[0] == 0
    assert channel.args == ("a.mp4", "out")
    assert channel.options == {
        "manifold": "me",
        "n": 8,
        "adaptive": True,
        "bundle": 3,
        "quality": 2,
        "lanes": ("fixed", "h264"),
        "seeds": 2,
        "size": (64, 48),
        "start_s": 1,
        "duration_s": 2,
        "expose_headers": True,
        "device": "cpu",
        "force": True,
    }


# What is printed


def test_encode_prints_a_table_for_people(mcode, transcode):
    _, out, err = mcode("encode", "in.mp4", "-o", "out.mcode")
    assert err == ""
    assert out == (
        "out.mcode\n"
        "  frames    75 in 3.00 s: 11 sent, one in 8\n"
        "  rate      0.62 kbit/s (232 bytes of picture)\n"
        "  file      12.3 kB, container and sound included\n"
        "  quality   33.90 dB PSNR\n"
        "  manifold  talking-head 0123456789abcdef, fit 0.98\n"
        "  coder     huffman\n"
        "  speed     140.0 frames/s\n"
    )


def test_the_rate_of_one_picture_is_in_bits_per_pixel(mcode, transcode):
    transcode.result = replace(Report(), frames=1, keyframes=1, n=1, rate_kbps=151.2, bits_per_pixel=0.41234)
    out = mcode("encode", "in.png", "-o", "out.mcode")[1]
    assert "  rate      0.412 bit/pixel (232 bytes of picture)\n" in out and "kbit/s" not in out


def test_json_is_one_object_with_the_promised_keys(mcode, transcode):
    _, out, _ = mcode("encode", "in.mp4", "-o", "out.mcode", "--json")
    assert out.count("\n") == 1
    assert set(json.loads(out)) >= ENCODE_KEYS
    _, out, _ = mcode("decode", "out.mcode", "-o", "back.mp4", "--json")
    assert {"frames", "decode_fps"} <= set(json.loads(out))


def test_what_json_cannot_say_is_null(mcode, transcode):
    transcode.result = replace(Report(), psnr_db=math.inf, rate_kbps=np.float32(0.5), fit=math.nan)
    _, out, _ = mcode("encode", "in.mp4", "-o", "out.mcode", "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["psnr_db"], found["rate_kbps"], found["fit"]) == (None, 0.5, None)


def test_a_warning_goes_to_stderr_and_leaves_the_status_0(mcode, transcode):
    transcode.result = replace(Report(), warnings=("the manifold does not fit:\n use general",))
    status, out, err = mcode("encode", "in.mp4", "-o", "out.mcode", "--json")
    assert status == 0
    assert err == "mcode: warning: the manifold does not fit: use general\n"
    assert json.loads(out)["warnings"] == ["the manifold does not fit:\n use general"]


def test_decode_to_a_pipe_prints_nothing_of_its_own(mcode, transcode):
    assert mcode("decode", "out.mcode", "-o", "-") == (0, "", "")


def test_raw_video_is_not_poured_into_a_terminal(mcode, transcode, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = mcode("decode", "out.mcode", "-o", "-")
    assert (status, out) == (2, "") and "standard output is a terminal" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_only(mcode, transcode, monkeypatch):
    transcode.frames = 20
    assert mcode("encode", "in.mp4", "-o", "out.mcode")[2] == ""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = mcode("encode", "in.mp4", "-o", "out.mcode", "--json")
    drawn = screen.getvalue()
    assert status == 0 and json.loads(out)
    assert "encoding" in drawn and "20/20 frames" in drawn and "frames/s" in drawn and "left" in drawn


def test_version(mcode):
    import mcode as package

    assert mcode("--version") == (0, f"mcode {package.__version__}\n", "")


# How it ends


@pytest.mark.parametrize("kind", [InputError, FormatError, ManifoldError])
def test_what_the_user_can_mend_is_status_2(mcode, transcode, kind):
    transcode.result = kind("in.mp4: no such file")
    assert mcode("encode", "in.mp4", "-o", "out.mcode") == (2, "", "mcode: error: in.mp4: no such file\n")


def test_an_error_is_one_line_whatever_its_text(mcode, transcode):
    transcode.result = InputError("two\nlines")
    assert mcode("encode", "in.mp4", "-o", "out.mcode")[2] == "mcode: error: two lines\n"


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, 1)])
def test_an_error_of_the_system_is_one_line(mcode, transcode, number, status):
    transcode.result = OSError(number, os.strerror(number), "out.mcode")
    assert mcode("encode", "a", "-o", "b") == (status, "", f"mcode: error: out.mcode: {os.strerror(number)}\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_no_memory_is_status_1(mcode, transcode, error):
    transcode.result = error
    status, _, err = mcode("encode", "a", "-o", "b")
    assert status == 1 and err == "mcode: error: out of memory: try a smaller --size\n"


def test_ctrl_c_is_130_and_one_line(mcode, transcode):
    transcode.result = KeyboardInterrupt()
    assert mcode("encode", "a", "-o", "b") == (130, "", "mcode: interrupted\n")


def test_a_fault_of_mcode_is_not_hidden(mcode, transcode):
    transcode.result = RuntimeError("bug")
    with pytest.raises(RuntimeError, match="bug"):
        mcode("encode", "a", "-o", "b")


def test_a_reader_that_leaves_the_pipe_is_no_traceback():
    command = [sys.executable, "-m", "mcode", "encode", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# Start-up: processor time, which a busy machine does not stretch as it does the clock


def takes_less_than(limit_s: float, *arguments: object) -> bool:
    """Whether the best of three runs in a new interpreter stays below so much processor time."""

    def once() -> float:
        command = [sys.executable, "-m", "mcode", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return usage.ru_utime + usage.ru_stime

    return any(once() < limit_s for _ in range(3))


measured = pytest.mark.skipif(not hasattr(os, "wait4"), reason="no processor time of a child on this system")


@measured
def test_help_takes_less_than_half_a_second():
    assert takes_less_than(0.5, "--help")


# Manifolds and info, on a manifold small enough to write by hand


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """An installed manifold called tiny."""
    monkeypatch.setattr(manifold, "folders", lambda: [tmp_path])
    config, tables, tensors = '{"qualities": 1, "frame_size": [8, 4]}', "[]", {"mean": np.zeros(3, np.float32)}
    from safetensors.numpy import save_file

    metadata = {
        "mcode": manifold.FORMAT,
        "id": manifold.content_id("linear", config, tables, tensors),
        "kind": "linear",
        "name": "tiny",
        "config": config,
        "tables": tables,
        "card": json.dumps({"title": "Three numbers", "licence": "none", "scores": {"psnr_db": 1}}),
    }
    save_file(tensors, tmp_path / "tiny.safetensors", metadata)
    return tmp_path / "tiny.safetensors"


def test_manifolds_are_listed_in_columns(mcode, tiny):
    status, out, _ = mcode("manifolds", "list")
    header, row = out.splitlines()
    assert status == 0
    assert header.split() == ["name", "kind", "frame", "parameters", "file", "id", "title"]
    assert row.split()[:4] == ["tiny", "linear", "8x4", "3"] and row.endswith("Three numbers")
    assert json.loads(mcode("manifolds", "list", "--json")[1])["manifolds"][0]["name"] == "tiny"


def test_no_manifold_installed_says_what_to_do(mcode, tmp_path, monkeypatch):
    monkeypatch.setattr(manifold, "folders", lambda: [tmp_path / "none"])
    status, out, _ = mcode("manifolds", "list")
    assert status == 0 and "mcode adapt" in out
    assert json.loads(mcode("manifolds", "list", "--json")[1]) == {"manifolds": []}


@pytest.mark.parametrize("command", [("manifolds", "show"), ("info",)])
def test_a_manifold_is_shown_with_its_card(mcode, tiny, command):
    for name in ("tiny", tiny):
        status, out, _ = mcode(*command, name)
        assert status == 0
        assert out.startswith("tiny: Three numbers\n")
        assert "licence" in out and "psnr_db 1" in out and "8x4" in out
    found = json.loads(mcode(*command, tiny, "--json")[1])
    assert {
        "type": "manifold",
        "name": "tiny",
        "kind": "linear",
        "parameters": 3,
        "frame_size": [8, 4],
    }.items() <= found.items()


def test_an_unknown_manifold_is_refused_with_those_there_are(mcode, tiny):
    status, _, err = mcode("manifolds", "show", "teeny")
    assert status == 2 and "teeny" in err and "tiny" in err


def test_verify_is_1_where_the_content_is_not_what_the_file_says(mcode, tiny):
    assert mcode("manifolds", "verify")[:2] == (0, f"tiny  {manifold.read_info(tiny).id}  ok\n")
    data = bytearray(tiny.read_bytes())
    data[-1] ^= 1
    tiny.write_bytes(data)
    for names in ((), ("tiny",), (tiny,)):
        status, out, _ = mcode("manifolds", "verify", *names)
        assert status == 1 and "BAD" in out
    status, out, _ = mcode("manifolds", "verify", "--json")
    assert status == 1 and json.loads(out)["ok"] is False
    assert mcode("manifolds", "verify", "nothing")[0] == 2


def test_info_of_a_manifold_needs_no_torch(tiny):
    program = "import sys; from mcode.cli import main; s = main(['info', sys.argv[1]]); sys.exit(s or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, tiny], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


# The whole way, for real: learn a manifold, encode, look, decode


def reported(*arguments: object) -> dict:
    """What a command that must succeed prints with --json."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with clip.mkv, a bright disc circling for 50 frames of 64x48, and disc.safetensors, learned from it."""
    from mcode.frame import Frame
    from mcode.video import FrameWriter

    folder = tmp_path_factory.mktemp("workshop")
    y, x = np.mgrid[:48, :64]
    with FrameWriter(folder / "clip.mkv", width=64, height=48) as writer:
        for i in range(50):
            far = np.hypot(x - 32 - 12 * math.cos(i / 8), y - 24 - 12 * math.sin(i / 8))
            grey = (255 / (1 + np.exp(far - 8))).astype(np.uint8)
            writer.push(Frame(np.stack([grey, grey // 2, 255 - grey], -1), i * 3600))
    clip, model = folder / "clip.mkv", folder / "disc.safetensors"
    learned = reported("adapt", clip, "-o", model, "--m", "8", "--size", "32x24")
    assert learned["frames"] == 50
    encoded = reported("encode", clip, "-o", folder / "clip.mcode", "--manifold", model)
    assert encoded["frames"] == 50 and encoded["psnr_db"] > 20
    assert set(encoded) >= ENCODE_KEYS
    return folder


def test_info_tells_what_encode_wrote(mcode, workshop):
    found = json.loads(mcode("info", workshop / "clip.mcode", "--json")[1])
    facts = {
        "type": "mcode",
        "frames": 50,
        "n": 4,
        "coder": "huffman",
        "audio": None,
        "truncated": None,
        "refreshes": 1,
    }
    assert facts.items() <= found.items()
    assert (found["width"], found["height"], found["coded_width"], found["coded_height"]) == (64, 48, 32, 24)
    assert found["manifold_installed"] is False
    assert found["file_bytes"] == (workshop / "clip.mcode").stat().st_size > found["payload_bytes"] > 0
    assert found["bits_per_pixel"] == found["payload_bytes"] * 8 / (32 * 24 * 50)
    _, out, _ = mcode("info", workshop / "clip.mcode")
    assert "64x48, sent as 32x24" in out and found["manifold_id"] in out and "not installed" in out


def test_info_names_an_installed_manifold(mcode, workshop, monkeypatch):
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, str(workshop))
    found = json.loads(mcode("info", workshop / "clip.mcode", "--json")[1])
    assert (found["manifold"], found["manifold_installed"]) == ("disc", True)


def test_info_finds_the_manifold_that_decode_finds(mcode, workshop, tmp_path, monkeypatch):
    """Another of its name is listed in its place."""
    other = tmp_path / "disc.safetensors"
    reported("adapt", workshop / "clip.mkv", "-o", other, "--m", "4", "--size", "32x24")
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, f"{tmp_path}{os.pathsep}{workshop}")
    found = json.loads(mcode("info", workshop / "clip.mcode", "--json")[1])
    assert (found["manifold"], found["manifold_installed"]) == ("disc", True)
    assert "not installed" not in mcode("info", workshop / "clip.mcode")[1]
    assert reported("decode", workshop / "clip.mcode", "-o", tmp_path / "back.mkv")["frames"] == 50


def test_info_of_a_cut_off_file_says_how_much_is_there(mcode, workshop, tmp_path):
    data = (workshop / "clip.mcode").read_bytes()
    (tmp_path / "cut.mcode").write_bytes(data[:-30])
    status, out, _ = mcode("info", tmp_path / "cut.mcode")
    assert status == 0 and "cut off" in out


def test_info_of_an_mcode_file_under_another_name_and_of_a_video(mcode, workshop, tmp_path):
    (tmp_path / "stream.mp4").write_bytes((workshop / "clip.mcode").read_bytes())
    assert json.loads(mcode("info", tmp_path / "stream.mp4", "--json")[1])["type"] == "mcode"
    found = json.loads(mcode("info", workshop / "clip.mkv", "--json")[1])
    assert {"type": "video", "width": 64, "height": 48, "video_codec": "h264"}.items() <= found.items()
    assert "64x48, h264" in mcode("info", workshop / "clip.mkv")[1]


def test_info_of_a_picture_says_image_and_no_length(mcode, workshop, tmp_path):
    model = workshop / "disc.safetensors"
    options = ["-m", model, "--duration", "0.02"]
    assert mcode("encode", workshop / "clip.mkv", "-o", tmp_path / "one.mcode", *options)[0] == 0
    rate = json.loads(mcode("info", tmp_path / "one.mcode", "--json")[1])["bits_per_pixel"]
    out = mcode("info", tmp_path / "one.mcode")[1]
    assert f"{rate:.3f} bit/pixel" in out and "kbit/s" not in out and ", 1 frame\n" in out
    assert mcode("decode", tmp_path / "one.mcode", "-o", tmp_path / "one.png", "-m", model)[0] == 0
    assert json.loads(mcode("info", tmp_path / "one.png", "--json")[1])["type"] == "image"
    lines = mcode("info", tmp_path / "one.png")[1].splitlines()
    assert "image" in lines[0] and [line.split()[0] for line in lines[1:]] == ["picture", "audio"]


def test_refining_by_weights_that_are_not_there_names_both_ways_to_give_them(mcode, workshop, tmp_path, monkeypatch):
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    refine = ["--refine", "1", "--refine-by", "vgg19"]
    status, _, err = mcode("encode", workshop / "clip.mkv", "-o", tmp_path / "a.mcode", *refine)
    assert status == 2 and "give --perceptual DIR, or set MCODE_PERCEPTUAL to the folder" in err


def test_info_of_a_name_with_a_colon_and_of_texts_that_are_not_utf8(mcode, workshop, tmp_path):
    from mcode.container import McodeReader, McodeWriter

    reader = McodeReader(workshop / "clip.mcode")
    with McodeWriter(tmp_path / "a:b.mcode", metadata={"title": "wrong"}) as writer:
        for packet in reader:
            writer.write(packet, reader.header.n)
    assert json.loads(mcode("info", tmp_path / "a:b.mcode", "--json")[1])["keyframes"] == len(reader)
    damaged = (tmp_path / "a:b.mcode").read_bytes().replace(b"wrong", b"w\xff\xfeng")
    (tmp_path / "c.mcode").write_bytes(damaged)
    status, out, _ = mcode("info", tmp_path / "c.mcode", "--json")
    assert status == 0 and json.loads(out)["metadata"]["title"].startswith("w")


@measured
def test_info_takes_less_than_a_second(workshop):
    assert takes_less_than(1, "info", workshop / "clip.mcode")
    assert takes_less_than(1, "info", workshop / "disc.safetensors")


def test_decode_gives_the_frames_back(mcode, workshop, tmp_path):
    source, model = workshop / "clip.mcode", workshop / "disc.safetensors"
    status, out, err = mcode("decode", source, "-o", tmp_path / "back.y4m", "-m", model, "--audio", "none", "--json")
    assert (status, err) == (0, "") and json.loads(out)["frames"] == 50
    piped = subprocess.run(
        [sys.executable, "-m", "mcode", "decode", source, "-o", "-", "-m", model, "--audio", "none"],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    assert piped.stdout == (tmp_path / "back.y4m").read_bytes()
    assert piped.stdout.count(b"FRAME\n") == 50 and not piped.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_standard_streams_may_be_closed_cut_short_or_know_no_umlauts(workshop, tmp_path):
    name = tmp_path / "\u00f6.mcode"
    name.symlink_to(workshop / "clip.mcode")

    def run(rest: str, **environment: str) -> tuple[int, bytes, str]:
        line = f'"$1" -m mcode {rest}'
        call = ["bash", "-o", "pipefail", "-c", line, "bash", sys.executable, name, workshop / "disc.safetensors"]
        done = subprocess.run(call, capture_output=True, cwd=ROOT, env=os.environ | environment)
        return done.returncode, done.stdout, done.stderr.decode()

    assert run('decode "$2" -o - -m "$3" | head -c 100 >/dev/null') == (1, b"", "")
    status, out, err = run('decode "$2" -o - -m "$3" >&-')
    assert (status, out, err.count("\n")) == (2, b"", 1) and "standard output is closed" in err
    status, out, _ = run('info "$2" --json', PYTHONIOENCODING="ascii")
    assert status == 0 and json.loads(out)["path"] == os.fspath(name)
    status, out, err = run('info "$2"', PYTHONIOENCODING="ascii")
    assert (status, err) == (0, "") and rb"\xf6.mcode" in out
    status, out, _ = run('info "$2.absent" --json 2>&-')
    assert (status, out) == (2, b"")


def test_a_stream_whose_manifold_is_missing_is_refused(mcode, workshop, tmp_path):
    status, _, err = mcode("decode", workshop / "clip.mcode", "-o", tmp_path / "back.mp4")
    assert status == 2 and "not installed" in err and "--manifold" in err
    assert not list(tmp_path.iterdir())


def test_bad_inputs_leave_nothing_behind(mcode, workshop, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    model = workshop / "disc.safetensors"
    (tmp_path / "there.mcode").write_text("precious")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.mcode"
    for bad, more in (
        (tmp_path / "text.mp4", ()),
        (tmp_path / "empty.mp4", ()),
        (tmp_path / "nowhere.mp4", ()),
        (tmp_path, ()),
        (workshop / "clip.mkv", ("--start", "1:00")),
        (workshop / "clip.mkv", ("--quality", "8", "-m", "nowhere")),
        (workshop / "clip.mkv", ("-o", tmp_path / "there.mcode")),
        (workshop / "clip.mkv", ("-o", tmp_path / "no" / "folder.mcode")),
        (workshop / "clip.mkv", ("--device", "mps" if sys.platform != "darwin" else "cuda")),
    ):
        status, printed, err = mcode("encode", bad, "-o", out, "-m", model, *more)
        assert (status, printed) == (2, ""), (bad, more)
        assert err.startswith("mcode: error: ") and err.count("\n") == 1, err
        assert sorted(tmp_path.iterdir()) == before, (bad, more)
    assert (tmp_path / "there.mcode").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_pipes_and_devices_are_refused_at_once(workshop, tmp_path):
    """In a process of its own: what opens a pipe that nobody writes to waits for ever."""
    os.mkfifo(pipe := tmp_path / "pipe.mcode")
    out, model = str(tmp_path / "out.mcode"), str(workshop / "disc.safetensors")
    commands = [[command, pipe, "-o", out, "-m", model] for command in ("encode", "decode")]
    commands += [
        ["info", pipe],
        ["compare", pipe, "-o", tmp_path / "out.html"],
        ["adapt", pipe, "-o", tmp_path / "out.safetensors"],
    ]
    commands += [["encode", os.devnull, "-o", out, "-m", model], ["encode", "/dev/stdin", "-o", out, "-m", model]]
    commands = [[str(word) for word in command] for command in commands]
    script = f"from mcode import cli\nprint([cli.main(c) for c in {commands!r}])"
    # an open pipe as standard input, as from another program; nothing is ever written to it
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=reader, capture_output=True, text=True, cwd=ROOT, timeout=120
        )
    finally:
        os.close(reader)
        os.close(writer)
    said = done.stderr.splitlines()
    assert done.stdout == f"{[2] * len(commands)}\n", done.stderr
    assert said[:5] == [f"mcode: error: {pipe} is a pipe; save it to a file first"] * 5
    assert said[5] == f"mcode: error: {os.devnull} is a device, not a video; save what it gives to a file first"
    assert said[6:] == ["mcode: error: /dev/stdin is a pipe; save it to a file first"]
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_encode_that_is_stopped_leaves_nothing_behind(workshop, tmp_path, name, status):
    """The source is so long that the encode is surely running when it is stopped."""
    frame = b"FRAME\n" + bytes(32 * 24 * 3)
    source, out = tmp_path / "endless.y4m", tmp_path / "out"
    out.mkdir()
    source.write_bytes(b"YUV4MPEG2 W32 H24 F25:1 C444\n" + frame * 40_000)
    options = ["-m", workshop / "disc.safetensors", "--n", "1"]
    command = [sys.executable, "-m", "mcode", "encode", source, "-o", out / "out.mcode", *options]
    number = signal.Signals[name]
    # a shell starts its background jobs with Ctrl-C ignored, nohup all with SIGHUP ignored, and children inherit that
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while not any(out.iterdir()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == status
    assert "Traceback" not in err and not list(out.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_inside_a_finaliser_ends_the_command_all_the_same(monkeypatch, request, name):
    from mcode import cli

    number = signal.Signals[name]

    class Finalised:
        def __del__(self):
            signal.raise_signal(number)
            time.sleep(0)  # where Python calls the handler

    def command(**options):
        here = Finalised()
        del here
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)

    monkeypatch.setattr(cli, "app", command)
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL and sys.unraisablehook == hook


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_a_terminal_that_is_closed_may_tell_twice_while_the_command_unwinds(monkeypatch, request):
    from mcode import cli

    unwound = []

    def command(**options):
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)
            unwound.append(True)

    monkeypatch.setattr(cli, "app", command)
    request.addfinalizer(functools.partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)))
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 129 and unwound == [True]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_a_command_under_nohup_outlives_its_terminal(monkeypatch, request):
    from mcode import cli

    monkeypatch.setattr(cli, "app", lambda **options: signal.raise_signal(signal.SIGHUP))
    request.addfinalizer(functools.partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN)))
    assert cli.main([]) == 0


def test_stills_are_measured_beside_other_codecs(mcode, workshop, tmp_path, monkeypatch):
    from PIL import Image

    from mcode.evaluation import stills

    monkeypatch.setattr(stills, "standard_codecs", lambda: [stills.jpeg(20)])
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 24), "orange").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    status, out, _ = mcode("evaluate", "stills", tmp_path, "-m", workshop / "disc.safetensors", "--json")
    found = json.loads(out)
    assert status == 0 and found["manifold"] == "disc"
    assert [row["codec"] for row in found["rows"]] == ["MCode disc"] * 8 + ["JPEG"]
    assert all(row["images"] == 2 and row["bpp"] > 0 for row in found["rows"])
    assert mcode("evaluate", "stills", tmp_path / "none", "-m", workshop / "disc.safetensors")[0] == 2


# Live, for real: datagrams on loopback, and a window that cannot open


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_what_is_sent_is_received_until_ctrl_c(mcode, workshop, tmp_path, port):
    url, clip, model = f"rtp://127.0.0.1:{port}", workshop / "clip.mkv", workshop / "disc.safetensors"
    options = ["--to", url, "-m", model, "--loop", "--baseline-rate", "20", "--loss", "0.02", "--refresh", "1"]
    command = [sys.executable, "-m", "mcode", "send", clip, *options, "--sdp", tmp_path / "live.sdp", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        received = reported("receive", url, "-o", tmp_path / "out.mkv", "-m", model, "--duration", "1.5")
        status, out, _ = mcode(
            "receive", tmp_path / "live.sdp", "-o", tmp_path / "h264.mkv", "--lane", "baseline", "--duration", "1"
        )
        process.send_signal(signal.SIGINT)
        out_sent, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    # a busy machine leaves frames out, but not time
    assert received["duration_s"] >= 1.4 and received["frames"] > 5 and received["lane"] == "mcode"
    assert (received["width"], received["height"], received["counters"]["foreign"]) == (64, 48, 0)
    assert status == 0 and out.startswith(f"{tmp_path / 'h264.mkv'}\n") and "h264" in out
    assert process.returncode == 0 and "Traceback" not in err
    sent = json.loads(out_sent)
    assert sent["frames"] > 10 and set(sent["lanes"]) == {"mcode", "h264"}
    assert sent["manifold_id"] == received["manifold_id"]
    decoded = json.loads(mcode("info", tmp_path / "out.mkv", "--json")[1])
    assert (decoded["width"], decoded["height"]) == (64, 48)


def test_receive_says_when_the_port_is_taken(mcode, tmp_path, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        status, _, err = mcode("receive", f"rtp://127.0.0.1:{port}", "-o", tmp_path / "out.mp4")
    assert status == 2 and "another program is using it" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_channel_is_measured_lane_beside_lane(mcode, workshop, tmp_path, monkeypatch):
    from mcode.evaluation import channel

    monkeypatch.setattr(
        channel.evaluate_channel,
        "__kwdefaults__",
        {**channel.evaluate_channel.__kwdefaults__, "bit_error_rates": (0.0, 1e-2), "losses": (0.2, 0.004)},
    )
    asked = ["evaluate", "channel", workshop / "clip.mkv", "-m", workshop / "disc.safetensors"]
    asked += ["--lanes", "fixed,h264", "--seeds", "1", "--duration", "0.5"]
    status, out, _ = mcode(*asked, "-o", tmp_path / "report")
    lines = out.splitlines()
    assert status == 0 and lines[0].split() == ["PSNR", "dB", "(SSIM)", "MCode", "fixed", "H.264"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        *("kbit/s", "clean", "bit errors 0.01", "20% lost", "0.4% lost"),
    ]
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"channel.json", "channel.png"}
    status, _, err = mcode(*asked, "-o", tmp_path / "report")
    assert status == 2 and "--force" in err


def test_play_without_a_display_is_one_line(mcode, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    status, out, err = mcode("play", "--demo")
    assert (status, out) == (2, "")
    assert "no display" in err and err.count("\n") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays of X")
def test_play_on_a_display_that_does_not_answer_is_one_line(mcode, monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("QT_QPA_PLATFORM", raising=False)
    monkeypatch.setenv("DISPLAY", "no-such-host.invalid:7")
    status, out, err = mcode("play", "--demo")
    assert (status, out) == (2, "")
    assert "no window can be opened" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("play --demo", "PyQt6", "player"),
        ("play --demo", "reedsolo", "player"),
        ("receive rtp://127.0.0.1:5004 -o a.mp4", "reedsolo", "live"),
        ("batch a.mp4 -o b", "ray", "cluster"),
    ],
)
def test_a_missing_extra_is_named_with_how_to_get_it(command, package, extra):
    program = "import sys; sys.modules[sys.argv[1]] = None; from mcode.cli import main; sys.exit(main(sys.argv[2:]))"
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    found = subprocess.run(
        [sys.executable, "-c", program, package, *command.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    message = f'mcode: error: {package} is not installed: pip install "mcode[{extra}]"\n'
    assert (found.returncode, found.stdout, found.stderr) == (2, "", message)
