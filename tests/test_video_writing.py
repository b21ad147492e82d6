"""Video out: what a viewer of the written file would see; files are there whole or not at all."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.video import FrameReader, FrameWriter, OutputFile, probe
from mcode.whole import whole
from tests.clips import FPS, frames_of, picture, psnr, read_all, write


def test_mp4_is_widely_playable_and_keeps_the_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames_of(10))
    info = probe(tmp_path / "a.mp4")
    assert (info.video_codec, info.pixel_format, info.duration_s) == ("h264", "yuv420p", pytest.approx(0.4))
    assert min(psnr(f.rgb, picture(i)) for i, f in enumerate(FrameReader(tmp_path / "a.mp4"))) > 38


def test_the_last_frame_is_shown_as_long_as_told(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "a.mp4", width=64, height=48)
    for frame in frames_of(5):
        writer.push(frame)
    writer.close(last_duration_ticks=90_000)
    assert probe(tmp_path / "a.mp4").duration_s == pytest.approx(4 / FPS + 1)


def test_y4m_holds_444_at_the_average_rate(tmp_path: Path) -> None:
    write(tmp_path / "a.y4m", frames_of(4))
    head, body = (tmp_path / "a.y4m").read_bytes().split(b"\n", 1)
    assert head == b"YUV4MPEG2 W64 H48 F0000000025:0000000001 Ip A1:1 C444 XCOLORRANGE=LIMITED"
    assert len(body) == 4 * (6 + 3 * 64 * 48)
    frames = list(FrameReader(tmp_path / "a.y4m"))
    assert [f.pts for f in frames] == [0, 3600, 7200, 10800]
    assert min(psnr(f.rgb, picture(i)) for i, f in enumerate(frames)) > 45


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(29.97002997, Fraction(30000, 1001)), (60, Fraction(60)), (Fraction(1, 3600), Fraction(1, 3600)), (None, None)],
)
def test_matroska_says_the_rate_it_is_told_or_none(tmp_path: Path, fps: float | None, shown: Fraction | None) -> None:
    ticks = [0, 3000, 9000, 13500]
    write(tmp_path / "a.mkv", [Frame(picture(i), t) for i, t in enumerate(ticks)], fps=fps)
    assert [frame.pts for frame in FrameReader(tmp_path / "a.mkv")] == [0, 2970, 9000, 13500]  # in milliseconds
    with av.open(str(tmp_path / "a.mkv")) as container:
        stream = container.streams.video[0]
        average = stream.average_rate
        level = stream.codec_context.extradata[3]
    assert average is None if shown is None else float(average) == pytest.approx(float(shown), rel=1e-4)
    assert level < 30  # of H.264, times 10: what such a small picture needs


@pytest.mark.parametrize(("fps", "fraction"), [(29.97002997, b"F0000030000:0000001001"), (None, b"F0000000020:0000000001")])
def test_y4m_takes_a_rate_or_the_average(tmp_path: Path, fps: float | None, fraction: bytes) -> None:
    ticks = [0, 3000, 9000, 13500]  # average 4 frames in 18,000 ticks
    write(tmp_path / "a.y4m", [Frame(picture(0), t) for t in ticks], fps=fps)
    assert fraction in (tmp_path / "a.y4m").read_bytes()[:80]


def test_dash_is_y4m_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    class Out:
        buffer = io.BytesIO()

    monkeypatch.setattr(sys, "stdout", Out)
    write("-", frames_of(2))
    assert Out.buffer.getvalue().startswith(b"YUV4MPEG2 W64 H48 F0000000025:")
    assert Out.buffer.getvalue().count(b"FRAME\n") == 2


def test_png_is_lossless_and_holds_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "a.png", frames_of(1))
    assert np.array_equal(next(iter(FrameReader(tmp_path / "a.png"))).rgb, picture(0))
    with pytest.raises(InputError, match="one frame"):
        write(tmp_path / "b.png", frames_of(3))
    assert os.listdir(tmp_path) == ["a.png"]


def test_png_pattern_numbers_from_1(tmp_path: Path) -> None:
    write(tmp_path / "f-%03d.png", frames_of(3))
    assert sorted(os.listdir(tmp_path)) == ["f-001.png", "f-002.png", "f-003.png"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.y4m", "a.png"])
def test_frames_too_large_for_any_file_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="20000x20000 is more than 134 million pixels; choose a smaller --size"):
        FrameWriter(tmp_path / name, width=20_000, height=20_000)
    assert os.listdir(tmp_path) == []


def test_bad_names_are_refused(tmp_path: Path) -> None:
    for name in ("a.avi", "a", "a-%s.png", "%d-%d.png"):
        with pytest.raises(InputError):
            FrameWriter(tmp_path / name, width=64, height=48)
    with pytest.raises(InputError, match="no output given: its name is empty"):
        FrameWriter("", width=64, height=48)
    with pytest.raises(InputError, match="no output given: its name is empty"):
        OutputFile("")
    with pytest.raises(InputError, match="no such folder"):
        FrameWriter(tmp_path / "none" / "a.mp4", width=64, height=48)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        FrameWriter(tmp_path / "folder.mp4", width=64, height=48)
    assert os.listdir(tmp_path) == ["folder.mp4"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.y4m", "a.png"])
def test_existing_files_stay_unless_forced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="--force"):
        write(tmp_path / name, frames_of(1))
    assert (tmp_path / name).read_text() == "mine"
    write(tmp_path / name, frames_of(1), force=True)
    assert probe(tmp_path / name).width == 64
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.y4m", "a-%d.png"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with FrameWriter(tmp_path / name, width=64, height=48) as writer:
            for frame in frames_of(4):
                writer.push(frame)
            assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / name).exists()
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_no_frames_are_an_error_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame"):
        FrameWriter(tmp_path / "a.mp4", width=64, height=48).close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (1, 40_000_000)])
def test_sizes_beyond_what_ffmpeg_holds_are_one_line(tmp_path: Path, width: int, height: int) -> None:
    with (
        pytest.raises(InputError, match=f"{width}x{height}") as error,
        FrameWriter(tmp_path / "a.y4m", width=width, height=height) as writer,
    ):
        writer.push(Frame(np.zeros((height, width, 3), np.uint8), 0))
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_misuse_raises_at_once(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "a.mp4", width=64, height=48)
    writer.push(Frame(picture(0), 5))
    with pytest.raises(ValueError, match="increase"):
        writer.push(Frame(picture(0), 5))
    with pytest.raises(ValueError, match="64x48"):
        writer.push(Frame(picture(0, 48, 64), 9))
    writer.abort()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.y4m", "a-%d.png"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    noise = [Frame(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8), i * 3600) for i in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match="no space left on"):
            write(tmp_path / name, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", "ü" * 125 + "a.mp4", "a." + "b" * 253, "\udcff" * 250 + ".mp4"])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) in (254, 255)
    alike = name[:-5] + "c" + name[-4:]
    one, other = OutputFile(tmp_path / name), OutputFile(tmp_path / alike)
    one.write(b"one")
    other.write(b"other")
    with whole(tmp_path / name) as part:
        part.write_bytes(b"whole")
    other.commit()
    one.discard()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"whole", alike: b"other"}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept_without_force(tmp_path, monkeypatch, links):
    path = tmp_path / "a.bin"
    mine = OutputFile(path)
    mine.write(b"mine")
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="a.bin exists: use --force"):
        mine.commit()
    assert path.read_bytes() == b"other" and [each.name for each in tmp_path.iterdir()] == ["a.bin"]
    path.unlink()
    if not links:
        monkeypatch.setattr(os, "link", lambda a, b: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    alone = OutputFile(path)
    alone.write(b"alone")
    alone.commit()
    assert path.read_bytes() == b"alone" and [each.name for each in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_device_is_written_directly_and_never_replaced() -> None:
    out = OutputFile("/dev/full")
    with pytest.raises(InputError, match="no space left on"):
        out.write(b"x")
    out.discard()
    assert Path("/dev/full").is_char_device()


def test_a_picture_is_written_into_a_pipe_and_never_replaces_it(tmp_path: Path) -> None:
    write(tmp_path / "a.png", frames_of(1))
    os.mkfifo(tmp_path / "pipe.png")
    for force in (False, True):
        with subprocess.Popen(["cat", tmp_path / "pipe.png"], stdout=subprocess.PIPE) as cat:
            write(tmp_path / "pipe.png", frames_of(1), force=force)
            assert cat.communicate()[0] == (tmp_path / "a.png").read_bytes()
    assert (tmp_path / "pipe.png").is_fifo() and len(os.listdir(tmp_path)) == 2


def test_mp4_into_a_pipe_is_refused_and_matroska_is_not(tmp_path: Path) -> None:
    for name in ("pipe.mp4", "pipe.mkv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="pipe.mp4 is a pipe, and this cannot be written to one: use .mkv or .y4m"):
        FrameWriter(tmp_path / "pipe.mp4", width=64, height=48)  # at once: nobody reads it
    with subprocess.Popen(["cat", tmp_path / "pipe.mkv"], stdout=subprocess.PIPE) as cat:
        write(tmp_path / "pipe.mkv", frames_of(3))
        (tmp_path / "a.mkv").write_bytes(cat.communicate()[0])
    assert read_all(tmp_path / "a.mkv")[0] == 3
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "pipe.mkv", "pipe.mp4"]


def test_a_pause_beyond_mp4_is_refused_and_a_last_picture_is_shown_as_long_as_mp4_holds(tmp_path: Path) -> None:
    frames = [Frame(picture(0), 0), Frame(picture(1), 7 * 3600 * TICKS_PER_S)]
    with pytest.raises(InputError, match="a.mp4: MP4 cannot hold a pause of 7.0 hours: use .mkv"):
        write(tmp_path / "a.mp4", frames)
    assert os.listdir(tmp_path) == []
    write(tmp_path / "a.mkv", frames)
    assert [frame.pts for frame in FrameReader(tmp_path / "a.mkv")] == [frame.pts for frame in frames]
    writer = FrameWriter(tmp_path / "b.mp4", width=64, height=48)
    writer.push(frames[0])
    writer.close(last_duration_ticks=1 << 31)
    assert len(list(FrameReader(tmp_path / "b.mp4"))) == 1


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write(tmp_path / "link.png", frames_of(1), force=True)
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real.png").stat().st_size > 0
