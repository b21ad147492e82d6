"""The table of still-picture codecs: bytes as in files, means over pictures, rates between settings, JPEG's anchor."""

from __future__ import annotations

import io
import math
import struct
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcode.cli import main
from mcode.errors import InputError
from mcode.evaluation import stills
from mcode.evaluation.metrics import psnr, ssim
from mcode.evaluation.stills import (
    StillCodec,
    image_paths,
    intra,
    jpeg,
    jpeg2000,
    rd_table,
    read_images,
    read_picture,
    standard_codecs,
    webp,
)
from mcode.testclip import render_frames
from mcode.video import FrameReader


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return next(iter(render_frames("pan", 0.04, 25, (96, 64), 1))).rgb


def constant(size: int, error: int, name: str = "stub") -> StillCodec:
    """A codec of `size` bytes for every picture, wrong by `error` everywhere."""
    return StillCodec(name, f"{size}", lambda rgb: (size, rgb + np.uint8(error)))


@pytest.mark.parametrize("quality", [5, 35])
def test_jpegs_bytes_are_those_of_the_file(picture, tmp_path, quality):
    size, decoded = jpeg(quality).code(picture)
    path = tmp_path / "picture.jpg"
    Image.fromarray(picture).save(path, quality=quality, subsampling="4:2:0")
    assert size == path.stat().st_size
    assert np.array_equal(decoded, np.array(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (jpeg(5), jpeg(35)),
        (jpeg2000(50), jpeg2000(10)),
        (webp(3), webp(40)),
        (intra("h265", 46, "medium"), intra("h265", 33, "medium")),
        (intra("av1", 60, "4"), intra("av1", 40, "4")),
    ],
    ids=lambda codec: f"{codec.name} {codec.setting}",
)
def test_better_settings_take_more_bytes_and_give_more_psnr(picture, worse, better):
    assert worse.name == better.name and worse.setting != better.setting
    few, coarse = worse.code(picture)
    many, fine = better.code(picture)
    assert coarse.shape == fine.shape == picture.shape
    assert 0 < few < many and psnr(picture, coarse) < psnr(picture, fine)


@pytest.mark.parametrize("codec", standard_codecs(), ids=lambda codec: f"{codec.name} {codec.setting}")
def test_every_codec_of_the_published_table_codes_odd_sizes(picture, codec):
    size, decoded = codec.code(np.ascontiguousarray(picture[:49, :67]))
    assert size > 0 and decoded.shape == (49, 67, 3) and decoded.dtype == np.uint8


def test_a_picture_too_wide_for_a_codec_is_one_line():
    with pytest.raises(InputError, match="^WEBP cannot code a picture of 17000x1: .*16383 pixels$"):
        webp(40).code(np.zeros((1, 17_000, 3), np.uint8))


def test_the_published_table_names_each_row_once():
    names = [(codec.name, codec.setting) for codec in standard_codecs()]
    assert len(set(names)) == len(names)
    assert {"H.265 intra 4:4:4", "AV1 intra 4:2:0", "JPEG", "JPEG 2000", "WebP"} == {name for name, _ in names}


def test_rows_are_means_over_pictures_of_any_size():
    pictures = [np.zeros((10, 10, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)]
    (row,) = rd_table(pictures, [constant(50, 10)])
    assert row.images == 2
    # of the pictures' rates, not of all bytes over all pixels
    assert row.bpp == pytest.approx((400 / 100 + 400 / 400) / 2)
    assert row.psnr_db == pytest.approx(20 * math.log10(25.5))
    assert row.ssim == pytest.approx(ssim(np.zeros((20, 20), np.uint8), np.full((20, 20), 10, np.uint8)))  # of every size
    assert (row.vgg, row.vgg_relu3_4, row.mobilenet) == (None, None, None)


def test_feature_distances_are_averaged_where_given():
    def distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return dict.fromkeys(("vgg", "vgg_relu3_4", "mobilenet"), float(len(a)))

    (row,) = rd_table([np.zeros((h, 4, 3), np.uint8) for h in (2, 6)], [constant(1, 1)], distances)
    assert (row.vgg, row.vgg_relu3_4, row.mobilenet) == (4, 4, 4)
    assert row.to_dict()["mobilenet"] == 4


def test_a_distance_that_one_picture_lacks_is_no_mean_over_the_others():
    def distances(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
        return {"vgg": 1.0, "vgg_relu3_4": 1.0, "mobilenet": 1.0 if len(a) > 15 else None}

    (row,) = rd_table([np.zeros((h, 20, 3), np.uint8) for h in (12, 20)], [constant(1, 1)], distances)
    assert (row.vgg, row.vgg_relu3_4, row.mobilenet) == (1, 1, None)


def test_networks_give_small_pictures_no_distance(data_dir):
    from mcode.evaluation.features import MOBILENET_FILE, VGG_FILE, FeatureDistances

    folder = data_dir / "perceptual"
    if not (folder / VGG_FILE).is_file() or not (folder / MOBILENET_FILE).is_file():
        pytest.skip(f"no network weights in {folder}")
    distances = FeatureDistances(folder)
    for height, width, having in ((16, 16, 3), (15, 40, 2), (3, 60, 0)):
        a, b = (np.full((height, width, 3), grey, np.uint8) for grey in (10, 200))
        assert sum(value is not None for value in distances(a, b).values()) == having


def test_pictures_are_held_one_at_a_time(picture, tmp_path, monkeypatch):
    for number in range(4):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    held: list[weakref.ref] = []

    def read(path: Path) -> np.ndarray:
        rgb = read_picture(path)
        held.append(weakref.ref(rgb))
        return rgb

    monkeypatch.setattr(stills, "read_picture", read)
    images, most = read_images(tmp_path), 0

    def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in held))
        return 1, rgb.copy()

    (row,) = rd_table(images, [StillCodec("stub", "", code)])
    assert row.images == len(images) == 4 and most == 1
    assert list(images.sizes.values()) == [(64, 96)] * 4


@pytest.mark.parametrize(
    ("size", "limit"), [((40, 31), "32 pixels a side at least"), ((40, 9000), "16384 pixels wide and 8704 high at most")]
)
def test_a_picture_of_a_size_not_for_the_table_is_named_before_anything_is_measured(size, limit, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert main(["evaluate", "stills", str(tmp_path), "-m", "no such manifold"]) == 2
    words = f"{tmp_path / 'a.png'}: AV1 cannot encode {size[0]}x{size[1]}: {limit}; take it out of the folder"
    assert capsys.readouterr().err == f"mcode: error: {words}\n"


def test_progress_counts_pictures_times_codecs():
    pictures, told = [np.zeros((4, 4, 3), np.uint8)] * 2, []
    codecs = [constant(1, 1), constant(2, 1)]
    rd_table(pictures, codecs, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told.clear()
    rd_table(iter(pictures), codecs, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, None)


def test_no_pictures_are_no_table():
    with pytest.raises(InputError, match="no images"):
        rd_table([], [constant(1, 1)])


def test_a_folders_pictures_are_read_by_name_and_other_files_passed_over(tmp_path):
    for name, grey in (("b.png", 20), ("a.jpg", 10), ("c.webp", 30)):
        Image.new("L", (16, 8), grey).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder").mkdir()
    images = read_images(tmp_path)
    assert [image.shape for image in images] == [(8, 16, 3)] * 3
    assert [round(image.mean(), -1) for image in images] == [10, 20, 30]
    assert len(read_images(tmp_path / "b.png")) == 1


def test_a_place_without_pictures_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    broken = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(broken, "PNG")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cut.png").write_bytes(broken.getvalue()[:2000])
    for place, words in ((".", "no pictures"), ("absent", "no such file"), ("cut", "cut.png")):
        with pytest.raises(InputError, match=words) as error:
            read_images(tmp_path / place)
        assert "\n" not in str(error.value)


def test_pictures_are_read_as_encode_reads_them(picture, tmp_path):
    deep = picture[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.jpg", quality=95, exif=turned)
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[:32] = 0
    Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "clear.png")
    for name in ("deep.png", "turned.jpg", "clear.png"):
        (frame,) = FrameReader(tmp_path / name)
        assert np.array_equal(read_picture(tmp_path / name), frame.rgb), name
    assert np.abs(read_picture(tmp_path / "deep.png").astype(int) - picture[..., :1]).max() <= 1
    assert psnr(read_picture(tmp_path / "turned.jpg"), np.ascontiguousarray(np.rot90(picture, -1))) > 30
    clear = read_picture(tmp_path / "clear.png")
    assert (clear[:32] == 255).all() and np.array_equal(clear[32:], picture[32:])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_plain_pictures_are_read_exactly(picture, tmp_path, mode):
    image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), np.array(image.convert("RGB")))


def test_a_cut_photograph_is_refused(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match="a.jpg: its mjpeg picture is cut off or damaged"):
        read_picture(tmp_path / "a.jpg")


def claiming(path: Path, width: int, height: int) -> Path:
    """A PNG whose header tells a size, without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("side", [20_000, 12_000])  # FFmpeg tells no size of the first; Pillow warns of the second only
def test_a_picture_too_large_is_one_line_that_tells_its_size_and_the_largest(tmp_path, capsys, side):
    path = claiming(tmp_path / "big.png", side, side)
    words = f"{path}: {side}x{side} is more than 134 million pixels, the most in a picture; scale it down first"
    for read in (read_picture, read_images, image_paths):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == words
    for command in (["evaluate", "images", tmp_path, "-o", tmp_path / "out"], ["encode", path, "-o", tmp_path / "out.mcode"]):
        assert main([str(part) for part in command]) == 2
        assert capsys.readouterr().err == f"mcode: error: {words}\n"


def test_pillow_warns_of_no_picture_that_is_within_the_limit(picture, tmp_path, monkeypatch):
    assert image_paths(claiming(tmp_path / "large.png", 11_000, 12_000)) == [tmp_path / "large.png"]  # warnings are errors here
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for codec in (jpeg(20), webp(20), jpeg2000(50)):
        assert codec.code(picture)[1].shape == picture.shape
    assert Image.MAX_IMAGE_PIXELS == 100


def test_jpeg_q10_scores_as_measured_on_kodak(data_dir):
    paths = [data_dir / "stills" / "kodak" / f"kodim0{i}.png" for i in (1, 2, 3)]
    if not all(path.is_file() for path in paths):
        pytest.skip("no Kodak pictures")
    rows = [rd_table(read_images(path), [jpeg(10)])[0] for path in paths]
    # Measured with Pillow 13 (libjpeg-turbo). The tolerance leaves room for another build's DCT, not for another table.
    assert [row.bpp for row in rows] == pytest.approx([0.4398, 0.2281, 0.2395], rel=0.01)
    assert [row.psnr_db for row in rows] == pytest.approx([24.77, 27.85, 28.56], abs=0.1)
