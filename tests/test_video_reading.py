"""Video in: what a viewer of the source would see, and one clear line where it cannot be read or breaks off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mcode import video
from mcode.errors import InputError
from mcode.video import FrameReader, audio_packets, probe
from tests.clips import FPS, frames_of, make_clip, picture, psnr, read_all, write


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        probe(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_probe_tells_size_rate_duration_and_codecs(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "a.mp4", audio="aac"))
    assert (info.width, info.height, info.frames) == (64, 48, 25)
    assert (info.video_codec, info.audio_codec, info.pixel_format) == ("h264", "aac", "yuv420p")
    assert info.average_fps == FPS and info.duration_s == pytest.approx(1.0)
    assert not info.is_image


def test_frames_come_in_order_with_their_times(tmp_path: Path) -> None:
    frames = list(FrameReader(make_clip(tmp_path / "a.mp4")))
    assert [f.pts for f in frames] == [i * 3600 for i in range(25)]
    assert all(psnr(f.rgb, picture(i)) > 35 for i, f in enumerate(frames))


def test_a_reader_reads_again(tmp_path: Path) -> None:
    reader = FrameReader(make_clip(tmp_path / "a.mp4", frames=5))
    assert len(list(reader)) == len(list(reader)) == 5


def test_the_default_track_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        for number, disposition in enumerate((0, av.stream.Disposition.default)):
            stream = out.add_stream("ffv1", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64 * (1 + number), 48, "yuv444p"
            stream.disposition = disposition
        for stream in out.streams:
            frame = av.VideoFrame.from_ndarray(picture(0, stream.width), "rgb24")
            out.mux([*stream.encode(frame), *stream.encode(None)])
    (frame,) = FrameReader(path)
    assert frame.rgb.shape == (48, 128, 3)


def test_unusable_paths_get_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("once upon a time\n" * 50)
    (tmp_path / "text.txt").write_text("once upon a time\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"^no input given: its name is empty, name a video$"):
        probe("")
    assert "no such file" in error_of(tmp_path / "missing.mp4")
    assert "folder" in error_of(tmp_path)
    assert "empty" in error_of(tmp_path / "empty.mp4")
    assert "not a video" in error_of(tmp_path / "text.mp4")
    assert "not a video" in error_of(tmp_path / "text.txt")
    assert "not a video" in error_of(tmp_path / "noise.mp4")
    assert "only sound" in error_of(make_clip(tmp_path / "sound.m4a", video=False, audio="aac"))


def test_a_name_that_looks_like_a_url_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", frames=2).rename(tmp_path / "http:x?y.mp4")
    assert len(list(FrameReader("http:x?y.mp4"))) == 2


def test_a_name_with_a_percent_sign_is_that_file(tmp_path: Path) -> None:
    for name, number in (("w1.png", 0), ("x.png", 40)):
        cv2.imwrite(str(tmp_path / name), picture(number)[:, :, ::-1])
    (tmp_path / "x.png").rename(tmp_path / "w%d.png")
    (frame,) = FrameReader(tmp_path / "w%d.png")
    assert np.array_equal(frame.rgb, picture(40)) and probe(tmp_path / "w%d.png").is_image
    assert np.array_equal(video.read_picture(tmp_path / "w%d.png"), picture(40))
    make_clip(tmp_path / "a.mp4", frames=2).rename(tmp_path / "v%d.mp4")
    assert read_all(tmp_path / "v%d.mp4") == (2, None)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_y4m_that_ends_inside_a_picture_says_so(tmp_path: Path, frames: int) -> None:
    write(path := tmp_path / "a.y4m", frames_of(frames + 1))
    data = path.read_bytes()
    assert read_all(path) == (frames + 1, None)
    path.write_bytes(data[:-200])
    assert read_all(path) == (frames, f"{frames / FPS:.1f} s, then it breaks off")


def test_a_truncated_mp4_yields_what_decodes_and_says_so(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=75, audio="aac", container_options={"movflags": "faststart"})
    whole = path.read_bytes()
    assert read_all(path) == (75, None)
    for part in (0.9, 0.6, 0.4):
        path.write_bytes(whole[: int(len(whole) * part)])
        count, truncated = read_all(path)
        assert 5 < count < 75
        assert truncated == f"{count / FPS:.1f} of 3.0 s"


def test_a_truncated_mp4_whose_index_is_lost_says_so(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-3000])
    assert "index" in error_of(path)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_other_truncated_containers_say_so(tmp_path: Path, suffix: str) -> None:
    codec = "libx264" if suffix == ".mkv" else "mpeg4"
    path = make_clip(tmp_path / f"a{suffix}", frames=75, codec=codec, audio="aac")
    assert read_all(path) == (75, None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    count, truncated = read_all(path)
    assert 5 < count < 75 and truncated is not None


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", frames=30, codec="ffv1", pixel_format="yuv444p")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    reader = FrameReader(path)
    assert 25 <= len(list(reader)) <= 30


@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_damaged_bytes_that_look_like_another_stream_end_nothing(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", frames=100, codec="libx264", audio="aac", options={"g": "10"})
    whole = path.read_bytes()
    for seed in range(20):
        data, rng = bytearray(whole), np.random.default_rng(seed)
        start = len(data) // 4 + int(rng.integers(len(data) // 2))
        for at in range(start, start + 3000, 37):
            data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        assert read_all(path)[0] > 25  # all that is before the damage; FLV goes on where it finds its way again
        assert sum(1 for _ in audio_packets(path)) > 40


def test_a_playlist_that_still_grows_is_refused_and_a_whole_one_is_read(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.ts", frames=10)
    growing = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:0.4,\na.ts\n"
    (tmp_path / "whole.m3u8").write_text(growing + "#EXT-X-ENDLIST\n")
    (tmp_path / "grows.m3u8").write_text(growing)
    for name in ("whole", "grows"):
        (tmp_path / f"of-{name}.m3u8").write_text(f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{name}.m3u8\n")
    for name in ("whole.m3u8", "of-whole.m3u8"):
        assert len(list(FrameReader(tmp_path / name))) == 10
    for name in ("grows.m3u8", "of-grows.m3u8"):
        with pytest.raises(InputError, match="is a playlist that still grows .*: name the video itself"):
            probe(tmp_path / name)


def test_reading_holds_few_frames_in_memory(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=200, width=640, height=360, options={"preset": "ultrafast"})
    code = """
import resource, sys
from mcode.video import FrameReader
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i, frame in enumerate(FrameReader(sys.argv[1])):
    if i == 40:
        early = peak()
print(i, peak() - early)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    last, grown_kib = map(int, done.stdout.split())
    assert last == 199 and grown_kib < 8 * 640 * 360 * 3 / 1024


def test_all_data_clips_read_whole(data_dir: Path) -> None:
    clips = sorted((data_dir / "video" / "dev").glob("*.mp4"))[:2] + sorted((data_dir / "grid_s1" / "dev").iterdir())[:2]
    for clip in clips:
        reader = FrameReader(clip, size=(64, 64))
        assert sum(1 for _ in reader) >= 50
        assert reader.truncated is None and reader.damaged == 0
