"""The table of still-picture codecs: bytes as in files, means over pictures, rates between settings, JPEG's anchor."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from mcode.errors import InputError
from mcode.evaluation.metrics import psnr, ssim
from mcode.evaluation.stills import (
    StillCodec,
    StillRow,
    at_bpp,
    intra,
    jpeg,
    jpeg2000,
    rd_table,
    read_images,
    standard_codecs,
    webp,
)
from mcode.testclip import render_frames


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


def test_between_settings_the_curve_is_straight_over_the_logarithm_of_the_rate():
    rows = [StillRow("A", "2", 1, 0.4, 34.0), StillRow("A", "1", 1, 0.1, 30.0), StillRow("B", "1", 1, 0.2, 99.0)]
    assert at_bpp(rows, "A", 0.2, "psnr_db") == pytest.approx(32)
    assert at_bpp(rows, "A", 0.1, "psnr_db") == 30 and at_bpp(rows, "A", 0.4, "psnr_db") == 34
    assert at_bpp(rows, "A", 0.09, "psnr_db") is None and at_bpp(rows, "A", 0.41, "psnr_db") is None
    assert at_bpp(rows, "C", 0.2, "psnr_db") is None
    assert at_bpp(rows, "A", 0.2, "vgg") is None  # not measured


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


def test_jpeg_q10_scores_as_measured_on_kodak(data_dir):
    paths = [data_dir / "stills" / "kodak" / f"kodim0{i}.png" for i in (1, 2, 3)]
    if not all(path.is_file() for path in paths):
        pytest.skip("no Kodak pictures")
    rows = [rd_table(read_images(path), [jpeg(10)])[0] for path in paths]
    # Measured with Pillow 13 (libjpeg-turbo). The tolerance leaves room for another build's DCT, not for another table.
    assert [row.bpp for row in rows] == pytest.approx([0.4398, 0.2281, 0.2395], rel=0.01)
    assert [row.psnr_db for row in rows] == pytest.approx([24.77, 27.85, 28.56], abs=0.1)
