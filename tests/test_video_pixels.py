"""Colours, transparency, orientation and size: pictures come out as a viewer shows them."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from PIL import Image, features

from mcode import video
from mcode.errors import InputError
from mcode.video import FrameReader, centre_crop, pixels, probe, resize, streams
from tests.clips import copy_of, make_clip, picture, psnr, rotate_mp4


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
