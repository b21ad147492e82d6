"""Video in and out: what a viewer of the source and of the written file would see and hear is the same."""

from __future__ import annotations

import io
import math
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from mcode import video
from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.video import FrameReader, FrameWriter, OutputFile, audio_packets, centre_crop, pixels, probe, resize, sound, streams
from mcode.whole import whole

FPS = 25
RATE = 48_000


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth colours that move with the index: survives 4:2:0 and crf 14."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        60 + 120 * x / max(1, width - 1),
        60 + 120 * y / max(1, height - 1),
        np.full(x.shape, 50 + 3 * index % 150),
    ]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def tone(seconds: float) -> np.ndarray:
    """A rising tone: every moment sounds different, so a shift of one sample shows."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * (300 + 150 * t) * t)).astype(np.float32)


def make_clip(
    path: Path,
    *,
    frames: int = 25,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: list[int] | None = None,
    audio: str | None = None,
    layout: str = "mono",
    tracks: int = 1,
    video: bool = True,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A clip of picture(0), picture(1), ... at 25 frames/s, or at `ticks`; with a tone of the same length."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        if video:
            quality = {"crf": "5"} if codec == "libx264" else {}
            stream = out.add_stream(codec, rate=FPS, options=quality | (options or {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            if ticks:
                stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS_PER_S)
        if audio:
            sounds = [out.add_stream(audio, rate=RATE, layout=layout) for _ in range(tracks)]
            channels = len(av.AudioLayout(layout).channels)
            samples, position, size = tone(frames / FPS), 0, 960
        for i in range(frames):
            if video:
                source = "rgba" if pixel_format.startswith(("yuva", "rgba")) else "rgb24"
                rgb = picture(i, width, height)
                if source == "rgba":
                    rgb = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
                frame = av.VideoFrame.from_ndarray(rgb, source)
                frame.pts = ticks[i] if ticks else i
                frame.time_base = Fraction(1, TICKS_PER_S) if ticks else Fraction(1, FPS)
                out.mux(stream.encode(frame))
            while audio and position < (i + 1) * RATE // FPS:
                data = np.repeat(samples[None, position : position + size], channels, 0)
                chunk = av.AudioFrame.from_ndarray(data, "fltp", layout)
                chunk.sample_rate, chunk.pts, chunk.time_base = RATE, position, Fraction(1, RATE)
                if "pcm" in audio:
                    form = sounds[0].codec_context.format.name
                    chunk = av.AudioResampler(form, layout, RATE).resample(chunk)[0]
                for sound in sounds:
                    out.mux(sound.encode(chunk))
                position += size
        if video:
            out.mux(stream.encode(None))
        for sound in sounds if audio else ():
            out.mux(sound.encode(None))
    return path


def rotate_mp4(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a, b, c, d into the picture track's display matrix (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (v << 16 for v in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def heard(path: Path, since_s: Fraction | None = None) -> np.ndarray:
    """The decoded sound from since_s (the file's own clock; default: the first picture) on: float (samples,)."""
    zero = video.picture_zero(path) if since_s is None else since_s
    line = np.zeros(RATE * 30, np.float32)
    end = 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray().reshape(-1, frame.samples)[0]
            samples = samples / 32768 if samples.dtype == np.int16 else samples
            start = round((frame.pts * frame.time_base - zero) * RATE)
            start = end if end and abs(start - end) <= 2 * RATE // 1000 else start  # Matroska's milliseconds
            samples, start = samples[max(0, -start) :], max(0, start)
            line[start : start + len(samples)] = samples
            end = max(end, start + len(samples))
    return line[:end]


def copy_of(source: Path, output: Path, **options: object) -> Path:
    """Every frame of `source` through a FrameWriter."""
    reader = FrameReader(source)
    with FrameWriter(output, width=reader.width, height=reader.height, **options) as writer:
        for frame in reader:
            writer.push(frame)
    return output


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        probe(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.PSNR(a, b))


# Reading


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


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv444p", ".mp4"),
        ("libx264", "yuv422p10le", ".mkv"),
        ("ffv1", "yuv444p12le", ".mkv"),
        ("libx264rgb", "rgb24", ".mkv"),
        ("ffv1", "bgr0", ".mkv"),
        ("mpeg4", "yuv420p", ".avi"),
        ("mpeg2video", "yuv420p", ".mpg"),
        ("libx265", "yuv420p", ".mp4"),
    ],
)
def test_any_pixel_format_becomes_the_same_colours(tmp_path: Path, codec: str, pixel_format: str, suffix: str) -> None:
    options = {"b": "2000000"} if codec.startswith("mpeg") else {"log-level": "none"} if codec == "libx265" else {}
    path = make_clip(tmp_path / f"a{suffix}", frames=5, codec=codec, pixel_format=pixel_format, options=options)
    frames = list(FrameReader(path))
    assert len(frames) == 5
    assert min(psnr(f.rgb, picture(i)) for i, f in enumerate(frames)) > 33


def test_grey_stays_grey(tmp_path: Path) -> None:
    frame = next(iter(FrameReader(make_clip(tmp_path / "a.mkv", frames=2, codec="ffv1", pixel_format="gray"))))
    assert np.ptp(frame.rgb.astype(int), axis=2).max() == 0
    assert psnr(frame.rgb[:, :, 0], cv2.cvtColor(picture(0), cv2.COLOR_RGB2GRAY)) > 40


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    half = (picture(0).astype(int) * 128 + 255 * 127 + 127) // 255
    frame = next(iter(FrameReader(make_clip(tmp_path / "a.mkv", frames=1, codec="ffv1", pixel_format="yuva444p"))))
    assert psnr(frame.rgb, half.astype(np.uint8)) > 40
    clear = np.zeros((4, 5, 4), np.uint8)
    clear[0, 0] = (30, 20, 10, 255)  # BGRA
    cv2.imwrite(str(tmp_path / "a.png"), clear)
    rgb = next(iter(FrameReader(tmp_path / "a.png"))).rgb
    assert rgb[0, 0].tolist() == [10, 20, 30] and (rgb.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("code", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114)])
def test_matrix_and_range_of_the_file_are_followed(code: int, red: float, blue: float, full: bool) -> None:
    rng = np.random.default_rng(0)
    yuv = np.stack([rng.integers(lo, hi, (32, 48)) for lo, hi in ((60, 190), (100, 150), (100, 150))]).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(yuv, "yuv444p")
    frame.colorspace, frame.color_range = code, 2 if full else 1
    y, u, v = yuv.astype(float)
    y, u, v = (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    expected = np.clip(np.stack([r, g, b], -1) * 255, 0, 255)
    assert np.abs(pixels.to_rgb(frame, "a.mkv") - expected).max() < 1.6


@pytest.mark.parametrize(("code", "name"), [(8, "YCgCo"), (14, "ICtCp"), (40, "number 40")])
def test_colours_that_cannot_be_read_are_one_line(code: int, name: str) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 99, np.uint8), "rgb24").reformat(format="yuv444p")
    frame.colorspace = code
    with pytest.raises(InputError, match=rf"^a.mkv: its colours \(yuv444p, matrix {name}\) cannot be read: convert it to BT"):
        pixels.to_rgb(frame, "a.mkv")


def test_files_that_name_no_matrix_are_read_as_players_do() -> None:
    assert [pixels.assumed_matrix(*size) for size in ((640, 360), (720, 576), (1280, 720), (720, 1280))] == [6, 6, 1, 1]


ROTATIONS = {
    (1, 0, 0, 1): lambda a: a,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),  # as phones write an upright video: 90 degrees clockwise
    (-1, 0, 0, -1): lambda a: np.rot90(a, 2),
    (0, -1, 1, 0): lambda a: np.rot90(a, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda a: a.swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", ROTATIONS)
def test_rotation_in_the_metadata_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = rotate_mp4(make_clip(tmp_path / "a.mp4", frames=2), matrix)
    expected = ROTATIONS[matrix](picture(0))
    reader = FrameReader(path)
    frame = next(iter(reader))
    assert (reader.info.height, reader.info.width) == (reader.height, reader.width) == expected.shape[:2]
    assert frame.rgb.flags.c_contiguous
    assert psnr(frame.rgb, np.ascontiguousarray(expected)) > 35


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 23), (8, 4096)])
def test_odd_sizes_go_in_and_out(tmp_path: Path, width: int, height: int) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=3, width=width, height=height, codec="ffv1", pixel_format="yuv444p")
    for name in ("b.mp4", "b.mkv", "b.y4m", "b-%d.png"):
        copy_of(source, tmp_path / name)
    for name in ("b.mp4", "b.mkv", "b.y4m", "b-1.png"):
        frames = list(FrameReader(tmp_path / name))
        assert len(frames) == (1 if name.endswith("png") else 3)
        assert frames[0].rgb.shape == (height, width, 3)
        assert psnr(frames[0].rgb, picture(0, width, height)) > 30


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        cv2.imwrite(str(tmp_path / name), picture(0)[:, :, ::-1])
        reader = FrameReader(tmp_path / name)
        (frame,) = reader
        assert reader.info.is_image and reader.info.duration_s is None and reader.truncated is None
        assert frame.pts == 0 and psnr(frame.rgb, picture(0)) > 30


EXIF = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", EXIF)
def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture(0)).save(path, exif=exif, quality=95)
    expected = np.ascontiguousarray(EXIF[orientation](picture(0)))
    reader = FrameReader(path)
    (frame,) = reader
    assert frame.rgb.shape == expected.shape == (reader.height, reader.width, 3) and psnr(frame.rgb, expected) > 30
    assert np.array_equal(frame.rgb, video.read_picture(path))


def test_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x112, 3, 1, 77, 0, 0)
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (frame,) = FrameReader(tmp_path / "a.jpg")
    assert psnr(frame.rgb, picture(0)) > 30


@pytest.mark.parametrize("orientation", [0, 1])
def test_a_good_tiff_is_not_called_cut_off(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x112] = orientation
    rgba = np.dstack([picture(0), np.full((48, 64), 255, np.uint8)])
    Image.fromarray(picture(0) if orientation else rgba).save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(video.read_picture(tmp_path / "a.tif"), picture(0))


def test_pictures_that_ffmpeg_cannot_read_get_a_remedy(tmp_path: Path) -> None:
    photograph = Image.fromarray(picture(0))
    photograph.convert("LAB").save(tmp_path / "lab.tif")
    Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "float.tif")
    photograph.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    photograph.save(tmp_path / "jpeg.tif", compression="jpeg")
    photograph.save(tmp_path / "a.webp", save_all=True, append_images=[Image.fromarray(picture(20))], duration=100)
    for name, words in {
        "lab.tif": r"\(TIFF of CIELAB colours is not supported: convert it to PNG\)$",
        "float.tif": r"\(TIFF of floating-point colours is not supported: convert it to PNG\)$",
        "ycbcr.tif": "a TIFF of YCbCr colours is not supported: convert it to PNG$",
        "jpeg.tif": "a TIFF compressed as JPEG is not supported: convert it to PNG$",
        "a.webp": r"\(animated WebP is not supported: convert it to GIF or MP4\)$",
    }.items():
        for read in (probe, video.read_picture):
            with pytest.raises(InputError, match=words):
                read(tmp_path / name)


def test_an_icon_and_a_heic_of_10_bits_are_pictures(tmp_path: Path) -> None:
    Image.fromarray(picture(0, 64, 64)).save(tmp_path / "a.ico", sizes=[(64, 64)])
    data = bytearray(make_clip(tmp_path / "a.mp4", frames=1).read_bytes())
    data[8:12] = b"heix"  # the brand alone: FFmpeg here writes no HEIC
    (tmp_path / "a.heic").write_bytes(data)
    for name in ("a.ico", "a.heic"):
        info = probe(tmp_path / name)
        assert info.is_image and info.frames == 1 and info.duration_s is None


def tracks(*dispositions: int, frames: int = 1) -> SimpleNamespace:
    """Stands in for an opened HEIC, which FFmpeg here cannot write."""
    made = [
        SimpleNamespace(index=i, disposition=d, frames=frames, codec_context=SimpleNamespace(name="hevc"))
        for i, d in enumerate(dispositions)
    ]
    return SimpleNamespace(
        metadata={"major_brand": "heic"}, format=SimpleNamespace(name="mov"), streams=SimpleNamespace(video=made)
    )


def test_a_picture_in_tiles_is_refused_and_not_shown_by_its_first() -> None:
    tile, default, cover = (av.stream.Disposition[name] for name in ("dependent", "default", "attached_pic"))
    for dispositions in ([tile] * 6, [0, *[tile] * 6]):  # 0: a thumbnail
        with pytest.raises(InputError, match=r"^a\.heic is a picture in tiles .*: convert it to JPEG or PNG first$"):
            streams.picture_stream(tracks(*dispositions), "a.heic")
    assert streams.picture_stream(tracks(tile, tile, default, cover), "a.heic").index == 2  # tiles of another picture


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


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_a_transparent_avif_lies_on_white(tmp_path: Path) -> None:
    alpha = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (48, 64))
    Image.fromarray(np.dstack([picture(0), alpha])).save(tmp_path / "a.avif", quality=95, speed=10)
    opacity = alpha[:, :, None] / 255
    expected = np.rint(picture(0) * opacity + 255 * (1 - opacity)).astype(np.uint8)
    (frame,) = FrameReader(tmp_path / "a.avif")
    assert psnr(frame.rgb, expected) > 35
    assert np.array_equal(frame.rgb, video.read_picture(tmp_path / "a.avif"))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_an_animated_avif_is_not_only_its_still(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(picture(20 * i)) for i in range(4))
    first.save(tmp_path / "a.avif", save_all=True, append_images=rest, duration=100, speed=10)
    assert [frame.pts for frame in FrameReader(tmp_path / "a.avif")] == [0, 9000, 18_000, 27_000]


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


def test_crop_comes_before_size(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=1, width=96, height=48)
    reader = FrameReader(path, crop_to=(1, 1), size=(24, 24))
    (frame,) = reader
    assert (reader.width, reader.height) == (24, 24)
    expected = cv2.resize(picture(0, 96, 48)[:, 24:72], (24, 24), interpolation=cv2.INTER_AREA)
    assert psnr(frame.rgb, expected) > 35


def test_resize_averages_areas_when_shrinking_and_keeps_flat_pictures_flat() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.abs(resize(rgb, 4, 4) - rgb.reshape(4, 2, 4, 2, 3).mean((1, 3))).max() <= 0.75
    assert resize(rgb, 8, 8) is rgb
    for width, height in ((3, 20), (20, 3), (31, 31), (1, 1)):
        flat = resize(np.full((8, 8, 3), 77, np.uint8), width, height)
        assert flat.shape == (height, width, 3) and (flat == 77).all()


def test_centre_crop_is_the_largest_centred_cut() -> None:
    rgb = np.zeros((288, 360, 3), np.uint8)
    assert centre_crop(rgb, (1, 1)).shape == (288, 288, 3)
    assert centre_crop(rgb, (16, 9)).shape == (202, 360, 3)
    assert centre_crop(np.arange(5)[None, :, None].repeat(3, 2), (3, 1))[0, :, 0].tolist() == [1, 2, 3]
    assert centre_crop(rgb[:1, :1], (1, 9)).shape == (1, 1, 3)


# Bad input


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


def read_all(path: Path) -> tuple[int, str | None]:
    reader = FrameReader(path)
    return sum(1 for _ in reader), reader.truncated


# Sound


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("aac", ".mp4"), ("libmp3lame", ".mp4"), ("libopus", ".mkv"), ("flac", ".mkv"), ("aac", ".ts")],
)
@pytest.mark.parametrize("output", [".mp4", ".mkv"])
def test_copied_sound_decodes_to_the_same_samples_at_the_same_time(
    tmp_path: Path, codec: str, suffix: str, output: str
) -> None:
    source = make_clip(tmp_path / f"a{suffix}", frames=50, audio=codec)
    copy = copy_of(source, tmp_path / f"b{output}", audio_from=tmp_path / f"a{suffix}")
    assert probe(copy).audio_codec == probe(source).audio_codec
    if ".mkv" in (suffix, output):
        assert_same_sound(heard(source), heard(copy), shift=RATE // 1000, start=1024)
    else:
        assert_same_sound(heard(source), heard(copy))


def assert_same_sound(a: np.ndarray, b: np.ndarray, shift: int = 0, start: int = 0) -> None:
    """b is a, from sample `start` on, moved by at most `shift` samples (Matroska rounds a track's start to 1 ms)."""
    length = min(len(a), len(b))
    assert length > 10_000 and abs(len(a) - len(b)) <= 2048
    part = slice(start + shift, length - shift)
    assert min(np.abs(a[part] - np.roll(b, s)[part]).max() for s in range(-shift, shift + 1)) < 1e-4


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


def test_sound_that_the_container_cannot_hold_becomes_aac(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.avi", frames=50, codec="mpeg4", audio="pcm_mulaw")
    reader = FrameReader(source)
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=source) as writer:
        for frame in reader:
            writer.push(frame)
    assert probe(tmp_path / "b.mp4").audio_codec == "aac"
    assert any("pcm_mulaw" in warning for warning in writer.warnings)
    a, b = heard(source), heard(tmp_path / "b.mp4")
    lags = [np.corrcoef(a[4000:90000], b[4000 + s : 90000 + s])[0, 1] for s in range(-20, 21)]
    assert int(np.argmax(lags)) == 20 and max(lags) > 0.99


@pytest.mark.parametrize("audio", ["ac3", "adpcm_ms"])
def test_avi_of_one_packet_of_sound_a_tick_keeps_all_of_them(tmp_path: Path, audio: str) -> None:
    path = make_clip(tmp_path / "a.avi", frames=50, codec="mpeg4", audio=audio)
    found = [p.pts * p.time_base for p in audio_packets(path)]
    assert len(found) == len(sound_of(path)) > 30
    steps = {float(b - a) for a, b in pairwise(found)}
    assert min(steps) == pytest.approx(max(steps))


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("output", [".mp4", ".mkv"])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".nut"])
def test_pcm_of_any_number_of_channels_is_copied(tmp_path: Path, suffix: str, layout: str, output: str) -> None:
    source = make_clip(tmp_path / f"a{suffix}", frames=10, codec="mpeg4", audio="pcm_s16le", layout=layout)
    copy = copy_of(source, tmp_path / f"b{output}", audio_from=source)
    assert b"".join(sound_of(copy)) == b"".join(sound_of(source)) != b""
    assert channels_of(copy) == channels_of(source)


def channels_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.audio[0].codec_context.channels


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_sound_that_becomes_aac_keeps_its_channels(tmp_path: Path, layout: str) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=10, audio="pcm_u8", layout=layout)
    copy = copy_of(source, tmp_path / "b.mp4", audio_from=source)
    assert probe(copy).audio_codec == "aac" and channels_of(copy) == channels_of(source)


def test_which_of_several_sound_tracks_is_kept_is_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=5, audio="aac", tracks=3)
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=source) as writer:
        for frame in FrameReader(source):
            writer.push(frame)
    assert writer.warnings == (f"{source}: 1 of 3 sound tracks is kept, number 1",)


def move_flv(path: Path, kind: int, leaps_s: dict[int, float]) -> Path:
    """Adds seconds to the times of some packets, by their number, of an FLV file's sound (kind 8) or pictures (9)."""
    data, at, number = bytearray(path.read_bytes()), 13, 0
    while at < len(data):
        if data[at] == kind:
            time_ms = data[at + 7] << 24 | int.from_bytes(data[at + 4 : at + 7])
            moved = time_ms + round(leaps_s.get(number, 0) * 1000) & 0xFFFFFFFF
            data[at + 4 : at + 8] = (moved & 0xFFFFFF).to_bytes(3) + bytes([moved >> 24])
            number += 1
        at += 11 + int.from_bytes(data[at + 1 : at + 4]) + 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("suffix", "codec"), [(".flv", "flv"), (".avi", "libx264")])
def test_a_start_within_the_first_second_keeps_the_sound_from_there_on(tmp_path: Path, suffix: str, codec: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", frames=100, codec=codec, audio="libmp3lame", options={"g": "50", "bf": "0"})
    everything = [bytes(p) for p in audio_packets(path)]
    found = list(audio_packets(path, 0.5))
    assert [bytes(p) for p in found] == everything[-len(found) :]
    assert -0.06 < found[0].pts * found[0].time_base <= 0


def test_sound_starts_with_matroskas_pictures_where_these_begin_late(tmp_path: Path) -> None:
    pictures = make_clip(tmp_path / "a.mp4", frames=75, options={"g": "24", "bf": "3", "b_strategy": "0"})
    sound, path = make_clip(tmp_path / "b.mp4", frames=325, video=False, audio="aac"), tmp_path / "a.mkv"
    with av.open(str(pictures)) as films, av.open(str(sound)) as sounds, av.open(str(path), "w") as out:
        tracks = {s: out.add_stream_from_template(s) for s in (*films.streams, *sounds.streams)}
        packets = [p for p in (*films.demux(), *sounds.demux()) if p.size]
        for packet in packets[:75]:
            packet.pts, packet.dts = (time + int(10 / packet.time_base) for time in (packet.pts, packet.dts))
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            packet.stream = tracks[packet.stream]
            out.mux(packet)
    begins = float(video.picture_zero(path))
    assert 10 <= begins < 10.1
    for index in range(1, 60):
        assert float(video.picture_zero(path, index / FPS - 0.02)) == pytest.approx(begins + index / FPS)


@pytest.mark.parametrize(("number", "leap_s"), [(0, 2), (20, 2), (20, 3600), (20, -3600)])
def test_one_wrong_time_loses_no_sound(tmp_path: Path, number: int, leap_s: int) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    times = [float(p.pts * p.time_base) for p in audio_packets(path)]
    move_flv(path, 8, {number: leap_s})
    found = [float(p.pts * p.time_base) for p in audio_packets(path)]
    assert found == pytest.approx(times, abs=0.003)


def test_sound_that_claims_to_last_for_ever_is_left_out_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, demuxed = make_clip(tmp_path / "a.mp4", audio="aac"), sound.demuxed

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        later = 0
        for packet in demuxed(*arguments):
            if packet.stream.type == "audio" and packet.size:
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                if 20 * 1024 <= packet.pts < 21 * 1024:
                    packet.duration = later = 1 << 32
            yield packet

    monkeypatch.setattr(sound, "demuxed", damaged)
    count = len(sound_of(path))
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    kept = len(sound_of(tmp_path / "b.mp4"))
    assert 20 <= kept < count
    assert writer.warnings == (f"the sound of {path} is damaged: {count - kept} of its packets left out",)


def test_one_wrong_duration_loses_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mkv", frames=50, audio="ac3")
    times = [float(p.pts * p.time_base) for p in audio_packets(path)]
    demuxed = sound.demuxed

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        for packet in demuxed(*arguments):
            if packet.stream.type == "audio" and packet.size and 1000 <= packet.pts < 1032:
                packet.duration = 60_000
            yield packet

    monkeypatch.setattr(sound, "demuxed", damaged)
    found = list(audio_packets(path))
    assert [float(p.pts * p.time_base) for p in found] == pytest.approx(times, abs=0.003)
    assert max(p.duration for p in found) < 2 * 1536


def test_sound_behind_a_pause_that_no_container_holds_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    move_flv(path, 8, dict.fromkeys(range(20, 1000), 1e5))
    count = len(sound_of(path))
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} is damaged: {count - 20} of its packets left out",)
    assert len(sound_of(tmp_path / "b.mp4")) == 20


def test_sound_is_cut_with_the_pictures(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=100, audio="aac")
    reader = FrameReader(source, start_s=1.0, duration_s=2.0)
    output = tmp_path / "b.mp4"
    with FrameWriter(output, width=64, height=48, audio_from=source, start_s=1.0, duration_s=2.0) as writer:
        for frame in reader:
            writer.push(frame)
    expected, got = heard(source, Fraction(1)), heard(output)
    assert 2 * RATE <= len(got) <= 2 * RATE + 1024
    assert np.abs(expected[1024 : len(got)] - got[1024:]).max() < 1e-4


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_sound_and_pictures_start_at_the_same_moment(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", frames=100, options={"g": "50", "bf": "3", "x264-params": "b-adapt=0"})
    zero, frames = video.picture_zero(path), list(FrameReader(path))
    for start_s in (0.01, 0.1, 0.33, 1.0, 1.99, 2.0, 2.5, 3.3, 3.93):
        shown = Fraction(-int(-start_s * FPS // 1), FPS)  # the first picture at or after it
        assert video.picture_zero(path, start_s) - zero == shown, start_s
        first = next(iter(FrameReader(path, start_s=start_s)))
        assert np.array_equal(first.rgb, frames[int(shown * FPS)].rgb)


def test_audio_packets_start_at_most_one_packet_early(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=100, audio="aac")
    times = [float(p.pts * p.time_base) for p in audio_packets(source, 1.0, 2.0)]
    assert -2 * 1024 / RATE < times[0] <= 0 and times[-1] < 2.0
    assert np.allclose(np.diff(times), 1024 / RATE)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / "a.mp4", audio="aac")
    path.write_bytes(path.read_bytes().replace(b"esds", b"free"))  # what the decoder must know of the sound
    reader = FrameReader(path)
    with FrameWriter(tmp_path / f"b{suffix}", width=64, height=48, audio_from=path) as writer:
        for frame in reader:
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} cannot be read: it is left out",)
    assert read_all(tmp_path / f"b{suffix}") == (25, None) and probe(tmp_path / f"b{suffix}").audio_codec is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_packet_of_sound_that_does_not_fit_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    cut = sound._cut

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        for number, packet in enumerate(cut(*arguments)):
            if number == 5:
                packet.pts = packet.dts = packet.dts - 10_000  # before the one before
            yield packet

    monkeypatch.setattr(sound, "_cut", damaged)
    path = make_clip(tmp_path / "a.mp4", audio="aac")
    with FrameWriter(tmp_path / f"b{suffix}", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} is damaged: 1 of its packets left out",)
    assert probe(tmp_path / f"b{suffix}").audio_codec == "aac"


def test_a_silent_source_gives_a_silent_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=3)
    assert list(audio_packets(source)) == []
    assert probe(copy_of(source, tmp_path / "b.mp4", audio_from=source)).audio_codec is None


# Writing


def frames_of(count: int, width: int = 64, height: int = 48) -> list[Frame]:
    return [Frame(picture(i, width, height), i * 3600) for i in range(count)]


def write(path: Path | str, frames: list[Frame], **options: object) -> FrameWriter:
    with FrameWriter(path, width=frames[0].width, height=frames[0].height, **options) as writer:
        for frame in frames:
            writer.push(frame)
    return writer


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
