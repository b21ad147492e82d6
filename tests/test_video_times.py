"""When frames are shown: cuts, seeks, joined files, wrong and missing times."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate, pairwise, takewhile
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode import video
from mcode.errors import InputError
from mcode.frame import Frame
from mcode.video import FrameReader, FrameWriter, audio_packets
from tests.clips import FPS, RATE, copy_of, heard, make_clip, move_flv, picture, psnr, read_all


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    ticks = [int(t) for t in np.cumsum(np.random.default_rng(0).integers(500, 9000, 25))]
    source = make_clip(tmp_path / "a.mp4", ticks=ticks)
    assert [f.pts for f in FrameReader(source)] == [t - ticks[0] for t in ticks]
    assert [f.pts for f in FrameReader(copy_of(source, tmp_path / "b.mp4"))] == [t - ticks[0] for t in ticks]
    rounded = np.array([f.pts for f in FrameReader(copy_of(source, tmp_path / "b.mkv"))])
    assert np.abs(rounded - np.array(ticks) + ticks[0]).max() <= 45  # Matroska: whole milliseconds


def test_missing_and_backward_times_are_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FrameReader(make_clip(tmp_path / "a.mp4", frames=6))
    times = [Fraction(t) if t is not None else None for t in (1, 2, None, 2, 4, 4)]

    def scrambled(self: FrameReader, damage: object, start: Fraction | None) -> object:
        frames = [av.VideoFrame.from_ndarray(picture(0), "rgb24") for _ in times]
        return iter(zip(frames, times, strict=True))

    monkeypatch.setattr(FrameReader, "_from_start", scrambled)
    assert [f.pts for f in reader] == [0, 90_000, 93_600, 97_200, 270_000, 270_001]


def test_b_frames_in_avi_come_at_even_times(tmp_path: Path) -> None:
    reader = FrameReader(make_clip(tmp_path / "a.avi", frames=30, codec="mpeg4", options={"bf": "2", "b": "2000000"}))
    frames = list(reader)
    assert [f.pts for f in frames] == [i * 3600 for i in range(30)]
    assert min(psnr(f.rgb, picture(i)) for i, f in enumerate(frames)) > 33


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mpg", ".ts", ".avi"])
def test_start_and_duration_cut_by_time(tmp_path: Path, suffix: str) -> None:
    codec = "libx264" if suffix in (".mp4", ".mkv", ".ts") else "mpeg2video" if suffix == ".mpg" else "mpeg4"
    path = make_clip(tmp_path / f"a{suffix}", frames=100, codec=codec, options={"g": "12", "b": "2000000"})
    everything = list(FrameReader(path))
    reader = FrameReader(path, start_s=2.0, duration_s=0.4)
    frames = list(reader)
    assert [f.pts for f in frames] == [i * 3600 for i in range(10)]
    assert reader.truncated is None
    for frame, same in zip(frames, everything[50:60], strict=True):
        assert np.array_equal(frame.rgb, same.rgb)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_start_far_from_the_last_keyframe_of_a_transport_stream_shows_no_grey(tmp_path: Path, codec: str) -> None:
    path = make_clip(tmp_path / "a.ts", frames=100, codec=codec, options={"g": "90", "bf": "0", "b": "2000000"})
    everything = list(FrameReader(path))
    frames = list(FrameReader(path, start_s=2.0))
    assert len(frames) == 50
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, everything[50:], strict=True))


SEEKABLE = [
    ("a.mp4", "libx264", {"g": "250"}),
    ("a.mov", "libx264", {"g": "25", "x264-params": "open-gop=1"}),
    ("a.mkv", "libx264", {"g": "40"}),
    ("a.webm", "libvpx", {"g": "40", "b": "2000000"}),
    ("a.ts", "libx264", {"g": "12"}),
    ("b.ts", "libx264", {"g": "90", "bf": "0"}),
    ("c.ts", "mpeg2video", {"g": "15", "bf": "2", "b": "2000000"}),
    ("late.ts", "libx264", {"g": "25"}),
]


@settings(max_examples=12)
@given(source=st.sampled_from(SEEKABLE), even=st.booleans(), data=st.data())
def test_parts_together_are_the_whole(tmp_path_factory: pytest.TempPathFactory, source: tuple, even: bool, data) -> None:
    name, codec, options = source
    path = tmp_path_factory.getbasetemp() / f"parts-{'even' if even else 'uneven'}-{name}"
    if not path.exists():
        gaps = [1500, 3000, 3600, 3600, 7200, 45_000]
        ticks = None if even or codec != "libx264" else list(accumulate(gaps[i * i % 6] for i in range(100)))
        start = {"output_ts_offset": "9000"} if name == "late.ts" else {}
        make_clip(path, frames=100, codec=codec, options=options, ticks=ticks, container_options=start)
    reader = FrameReader(path)
    whole = list(reader)
    ends, last_ticks = reader.truncated, reader.last_duration_ticks
    assert reader.is_seekable()
    cuts = data.draw(st.sets(st.integers(1, whole[-1].pts + 90_000), max_size=4).map(sorted))
    parts = []
    for first, end in pairwise([0, *cuts, math.inf]):
        parts += list(takewhile(lambda frame, end=end: frame.pts < end, reader.since(int(first))))
    assert [f.pts for f in parts] == [f.pts for f in whole]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(parts, whole, strict=True))
    if not cuts or cuts[-1] <= whole[-1].pts:
        assert (reader.truncated, reader.last_duration_ticks) == (ends, last_ticks)


def test_what_has_no_times_or_no_length_is_read_in_one_piece(tmp_path: Path) -> None:
    sources = [("a.h264", "libx264"), ("a.png", "png"), ("a.avi", "mpeg4"), ("a.mpg", "mpeg2video")]
    for name, codec in sources:
        frames, kind = (1, "rgb24") if codec == "png" else (30, "yuv420p")
        path = make_clip(tmp_path / name, frames=frames, codec=codec, pixel_format=kind)
        assert not FrameReader(path).is_seekable(), name
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * make_clip(tmp_path / "a.ts", frames=50).read_bytes())
    assert not FrameReader(joined).is_seekable()
    with pytest.raises(ValueError, match="leave out start_s"):
        FrameReader(joined, start_s=1).since(90_000)


def late_clip(path: Path, codec: str = "libx264") -> Path:
    """Ten seconds of sound, and picture(0), picture(1), ... in the last four."""
    with av.open(str(path), "w") as out:
        film, sound = out.add_stream(codec, rate=FPS, options={"g": "12"}), out.add_stream("mp2", rate=RATE, layout="mono")
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        size = 1152
        for i in range(250):
            for position in range(-(-i * 1920 // size) * size, (i + 1) * 1920, size):
                chunk = av.AudioFrame.from_ndarray(np.zeros((1, size), np.int16), "s16", "mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = RATE, position, Fraction(1, RATE)
                out.mux(sound.encode(chunk))
            if i >= 150:
                frame = av.VideoFrame.from_ndarray(picture(i - 150), "rgb24")
                frame.pts, frame.time_base = i, Fraction(1, FPS)
                out.mux(film.encode(frame))
        out.mux(film.encode(None))
        out.mux(sound.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.mp4", "libx264"), ("a.mpg", "mpeg2video"), ("a.nut", "mpeg4"), ("a.ts", "libx264")],
)
def test_a_start_counts_from_the_first_picture_where_sound_begins_before_it(tmp_path: Path, name: str, codec: str) -> None:
    path = late_clip(tmp_path / name, codec)
    everything, reader = list(FrameReader(path)), FrameReader(path, start_s=2.0)
    frames = list(reader)
    assert len(everything) == 100 and len(frames) == 50 and reader.truncated is None
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, everything[50:], strict=True))
    assert video.picture_zero(path, 2.0) - video.picture_zero(path) == pytest.approx(2, abs=0.002)


def test_sound_that_begins_before_the_pictures_makes_no_file_cut_off(tmp_path: Path) -> None:
    path = late_clip(tmp_path / "a.mkv")
    assert read_all(path) == (100, None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    count, truncated = read_all(path)
    assert 0 < count < 100 and truncated is not None


@pytest.mark.parametrize(("number", "leap_s"), [(0, 2), (20, 2), (20, 3600), (20, -3600)])
def test_one_wrong_time_of_a_picture_moves_no_other(tmp_path: Path, number: int, leap_s: int) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv")
    times = [frame.pts for frame in FrameReader(path)]
    reader = FrameReader(move_flv(path, 9, {number: leap_s}))
    assert [frame.pts for frame in reader] == times
    assert reader.retimed == 1 and reader.runs_backwards and reader.truncated is None


@pytest.mark.parametrize("number", [0, 10, 24, 25])
def test_one_wrong_time_is_no_place_to_start_at(tmp_path: Path, number: int) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    found = []
    for leap_s in (0, 2):
        move_flv(path, 9, {number: leap_s})
        for start_s in (0, 1):
            sound = next(audio_packets(path, start_s))
            found.append(([frame.pts for frame in FrameReader(path, start_s=start_s)], float(sound.pts * sound.time_base)))
    (times, sound_s), (later_times, later_sound_s) = found[:2]
    assert len(times) == 50 and len(later_times) == 25
    assert found[2] == (times, pytest.approx(sound_s, abs=0.002))
    assert found[3] == (later_times, pytest.approx(later_sound_s, abs=0.002))
    reader = FrameReader(path, start_s=1)
    assert len(list(reader)) == 25 and reader.retimed == (number == 25)  # those left out are not told


def test_pictures_whose_clock_falls_back_keep_their_order(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv")
    reader = FrameReader(move_flv(path, 9, dict.fromkeys(range(25, 50), -0.5)))
    times = [frame.pts for frame in reader]
    assert times == sorted(set(times)) and len(times) == 50 and reader.retimed == 12


def test_packets_that_do_not_decode_count_once_where_a_start_takes_two_tries(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", frames=50, codec="ffv1", pixel_format="yuv444p", options={"g": "12"})
    with av.open(str(path)) as container:
        keyframe = [bytes(packet) for packet in container.demux(video=0) if packet.is_keyframe][1]
    path.write_bytes(path.read_bytes().replace(keyframe[:60], b"\xff" * 60))
    for start_s, count in ((0, 38), (0.52, 26)):  # a seek to 0.52 s lands on the keyframe that is damaged
        reader = FrameReader(path, start_s=start_s)
        assert len(list(reader)) == count and reader.damaged == 12


def test_pictures_without_times_are_counted_to_the_start(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.h264", frames=50, options={"g": "12"})
    everything, reader = list(FrameReader(path)), FrameReader(path, start_s=0.4, duration_s=0.8)
    frames = list(reader)
    assert len(everything) == 50 and [f.pts for f in frames] == [i * 3600 for i in range(20)]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, everything[10:30], strict=True))
    with pytest.raises(InputError, match="nothing to show from 2 s on"):
        list(FrameReader(path, start_s=2))


def test_a_start_after_the_end_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends before"):
        list(FrameReader(make_clip(tmp_path / "a.mp4"), start_s=7))
    with pytest.raises(InputError, match="nothing to show from 1e"):
        list(FrameReader(tmp_path / "a.mp4", start_s=1e15))


def test_a_start_within_a_long_pause_is_not_a_file_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "pause.mkv"
    times = [0, 3600, 7200, 900_000, 903_600, 907_200]
    with FrameWriter(path, width=64, height=48) as writer:
        for number, pts in enumerate(times):
            writer.push(Frame(np.full((48, 64, 3), 40 * number, np.uint8), pts))
    reader = FrameReader(path, start_s=5.0)
    assert [frame.pts for frame in reader] == [0, 3600, 7200] and reader.truncated is None


@pytest.mark.parametrize("options", [{"start_s": -1}, {"duration_s": 0}, {"size": (0, 4)}, {"crop_to": (1, 0)}])
def test_impossible_cuts_are_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match="must be"):
        FrameReader(make_clip(tmp_path / "a.mp4", frames=1), **options)


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".mkv"])
def test_files_joined_end_to_end_are_read_whole_with_their_sound(tmp_path: Path, suffix: str) -> None:
    codec, sound = ("mpeg2video", "mp2") if suffix == ".mpg" else ("libx264", "aac")
    one = make_clip(tmp_path / f"a{suffix}", frames=50, codec=codec, audio=sound, options={"g": "12", "b": "2000000"})
    joined = tmp_path / f"b{suffix}"
    joined.write_bytes(2 * one.read_bytes())
    reader = FrameReader(joined)
    frames, alone = list(reader), list(FrameReader(one))
    assert [f.pts for f in frames] == [i * 3600 for i in range(100)] and reader.truncated is None
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, alone * 2, strict=True))
    once, twice = (heard(copy_of(path, path.with_suffix(".mp4"), audio_from=path)) for path in (one, joined))
    later = 2 * RATE
    assert min(np.abs(twice[later + s + 5000 :][:70_000] - once[5000:][:70_000]).max() for s in range(-48, 49)) < 0.01


def test_a_third_matroska_file_joined_to_two_is_told_as_missing(tmp_path: Path) -> None:
    one = make_clip(tmp_path / "a.mkv", frames=50, audio="aac").read_bytes()
    for parts, told in ((1, None), (2, None), (3, "4.0 s, then it breaks off")):
        (tmp_path / "b.mkv").write_bytes(parts * one)
        assert read_all(tmp_path / "b.mkv") == (min(parts, 2) * 50, told)


def test_a_start_in_files_joined_end_to_end_loses_nothing(tmp_path: Path) -> None:
    joined = make_clip(tmp_path / "a.ts", frames=50)
    joined.write_bytes(2 * joined.read_bytes())
    assert [f.pts for f in FrameReader(joined, start_s=0.4)] == [i * 3600 for i in range(90)]


@pytest.mark.parametrize("lengths", [(25, 75), (75, 25)])
def test_a_start_in_joined_files_starts_pictures_and_sound_alike(tmp_path: Path, lengths: tuple[int, int]) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", frames=n, audio="aac", options={"g": "12"}) for n in lengths]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    for start_s in (0.4, 1.4, 2.4, 3.4):
        assert len(list(FrameReader(joined, start_s=start_s))) == 100 - round(25 * start_s)
        packets = list(audio_packets(joined, start_s))
        first, last = (float(p.pts * p.time_base) for p in (packets[0], packets[-1]))
        assert -0.1 < first <= 0 and abs(last - (4 - start_s)) < 0.1 and len(packets) > 45 * (4 - start_s)


def test_one_wrong_time_is_no_file_that_was_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = [p for i in range(75) for p in stream.encode(av.VideoFrame.from_ndarray(picture(i, 64), "rgb24"))]
        for number, packet in enumerate([*packets, *stream.encode(None)]):
            if number == 30:
                packet.pts += 5 * FPS
            out.mux(packet)
    times = [f.pts / 90_000 for f in FrameReader(path)]
    assert len(times) == 75 and times[29] < 1.2 and times[-1] < 7


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_sound_and_pictures_start_at_the_same_moment(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", frames=100, options={"g": "50", "bf": "3", "x264-params": "b-adapt=0"})
    zero, frames = video.picture_zero(path), list(FrameReader(path))
    for start_s in (0.01, 0.1, 0.33, 1.0, 1.99, 2.0, 2.5, 3.3, 3.93):
        shown = Fraction(-int(-start_s * FPS // 1), FPS)  # the first picture at or after it
        assert video.picture_zero(path, start_s) - zero == shown, start_s
        first = next(iter(FrameReader(path, start_s=start_s)))
        assert np.array_equal(first.rgb, frames[int(shown * FPS)].rgb)
