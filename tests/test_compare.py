"""`mcode compare`: rows that agree with each other, a page that fetches nothing, a video with all frames and sound."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mcode.baseline import CrfSearch
from mcode.cli.output import plain
from mcode.errors import InputError
from mcode.evaluation import report as report_module
from mcode.evaluation.compare import CompareReport, Lane, Row, compare
from mcode.evaluation.report import log_rates, rate_text, verdict
from mcode.testclip import write_clip
from mcode.training.adapt import adapt_linear
from mcode.video import FrameReader, probe


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "arms <1>.mp4"
    write_clip(path, scene="arms", seconds=0.8, size=(64, 48), seed=1)
    return path


@pytest.fixture(scope="module")
def manifold(footage, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("manifold") / "me.safetensors"
    adapt_linear([footage], path, m=8, size=(64, 48))
    return path


@pytest.fixture(scope="module")
def report(footage, manifold, tmp_path_factory) -> CompareReport:
    page = tmp_path_factory.mktemp("report") / "new" / "out.html"
    return compare(footage, page, against=("h264",), manifold=manifold, device="cpu")


def test_mcode_stands_first_then_each_codec_at_equal_rate_and_at_equal_psnr(report):
    assert [(row.codec, row.at) for row in report.rows] == [
        ("MCode", "mcode"),
        ("H.264", "equal rate"),
        ("H.264", "equal PSNR"),
    ]
    ours = report.rows[0]
    assert (ours.rate_kbps, ours.psnr_db, ours.bits) == (report.encode.rate_kbps, report.encode.psnr_db, 1)
    assert (report.width, report.height, report.frames) == (64, 48, 20)
    assert report.duration_s == pytest.approx(0.8)


def test_bits_are_the_rate_over_mcodes(report):
    for row in report.rows:
        assert row.bits == pytest.approx(row.rate_kbps / report.rows[0].rate_kbps)


def test_all_rates_are_over_the_time_that_the_last_picture_stands_too(manifold, footage, tmp_path):
    pictures = [Image.fromarray(frame.rgb) for frame in FrameReader(footage)][:10]
    given = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(tmp_path / "slow.gif", duration=[100] * 9 + [5000], **given)
    report = compare(tmp_path / "slow.gif", tmp_path / "out.html", against=("h264",), manifold=manifold, device="cpu")
    assert report.duration_s == pytest.approx(5.9)
    found = report.rows[1]
    encoding = CrfSearch(list(FrameReader(tmp_path / "slow.gif")), "h264").at_crf(float(found.setting.split("CRF ")[1]))
    assert found.rate_kbps == pytest.approx(encoding.payload_bytes * 8 / 1000 / 5.9)


def test_a_size_that_a_codec_does_not_take_is_told_with_the_file_before_anything_is_coded(tmp_path):
    Image.new("RGB", (40, 9000)).save(tmp_path / "tall.png")
    words = r"tall.png: AV1 cannot encode 40x9000: .* 8704 high at most; leave av1 out of --against, or give another --size"
    told = []
    with pytest.raises(InputError, match=words):
        compare(tmp_path / "tall.png", tmp_path / "out.html", device="cpu", progress=lambda *done: told.append(done))
    assert told == []


def test_adaptive_keyframes_are_those_of_the_encoder_and_the_report_says_so(manifold, footage, tmp_path):
    made = {}
    for adaptive in (False, True):
        page = tmp_path / f"{adaptive}.html"
        made[adaptive] = compare(footage, page, against=("h264",), manifold=manifold, n=8, adaptive=adaptive, device="cpu")
    assert made[True].encode.keyframes > made[False].encode.keyframes  # arms do not move on a line
    assert "N = 8 or less, " in made[True].rows[0].setting and "N = 8, " in made[False].rows[0].setting
    assert "N = 8 or less" in (tmp_path / "True.html").read_text(encoding="utf-8")


def test_mcode_keeps_to_a_rate_the_others_have_it_too_and_the_report_says_what_was_asked(manifold, tmp_path):
    write_clip(tmp_path / "long.mp4", scene="arms", seconds=8, size=(64, 48), seed=1)
    options = {"against": ("h264",), "manifold": manifold, "n": 50, "coder": "fixed", "device": "cpu"}
    report = compare(tmp_path / "long.mp4", tmp_path / "out.html", rate_kbps=0.75, **options)
    ours, rate, _ = report.rows
    assert report.wanted_kbps == 0.75 and ours.rate_kbps == pytest.approx(0.75, rel=0.05)
    assert rate.at == "equal rate" and (rate.floor or rate.rate_kbps == pytest.approx(ours.rate_kbps, rel=0.1))
    assert "N = 50 or less for 0.75 kbit/s, " in ours.setting
    assert ours.setting in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert json.loads(json.dumps(plain(report)))["wanted_kbps"] == 0.75


def test_a_single_picture_is_told_in_bits_per_pixel(manifold, footage, tmp_path, monkeypatch):
    Image.fromarray(next(iter(FrameReader(footage))).rgb).save(tmp_path / "a.png")
    drawn: list[str] = []
    save = Figure.savefig

    def note(self, *args, **options):
        drawn.extend(text.get_text() for text in self.findobj(Text))
        return save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    options = {"against": ("h264",), "manifold": manifold, "device": "cpu", "rate_kbps": 5.0}
    report = compare(tmp_path / "a.png", tmp_path / "out.html", **options)
    ours, rate, quality = report.rows
    assert "N = 1, " in ours.setting  # a rate, which is over time, says nothing of it
    assert ours.bits_per_pixel == report.encode.bits_per_pixel
    for row in (rate, quality):
        assert row.bits_per_pixel == pytest.approx(row.rate_kbps * 1000 * report.duration_s / (64 * 48))
        assert row.bits == pytest.approx(row.bits_per_pixel / ours.bits_per_pixel)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "kbit/s" not in page and "One picture;" in page
    assert page.count(f"{ours.bits_per_pixel:.3f} bit/pixel") >= 3 and f"{quality.bits_per_pixel:.3f} bit/pixel" in page
    assert "bit/pixel" in drawn and not any("kbit/s" in text for text in drawn)
    caption = report_module._caption(Lane("MCode", ours), 300)
    assert not np.array_equal(caption, report_module._caption(Lane("MCode", replace(ours, bits_per_pixel=None)), 300))


def test_videos_have_a_rate_over_time(report):
    assert all(row.bits_per_pixel is None for row in report.rows)


def test_equal_means_equal_or_floor_or_ceiling(report):
    ours, rate, quality = report.rows
    assert rate.floor or rate.rate_kbps == pytest.approx(ours.rate_kbps, rel=0.1)
    assert quality.floor or abs(quality.psnr_db - ours.psnr_db) < 0.5 or "CRF 1" in quality.setting.split(", ")
    assert rate.floor == ("CRF 51" in rate.setting)


def test_ssim_is_measured_where_pictures_are_shown(report):
    ours, rate, quality = report.rows
    assert 0 < ours.ssim < 1 and 0 < rate.ssim < 1 and quality.ssim is None


def test_the_page_fetches_nothing(report):
    page = Path(report.files["report"]).read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']([^"']*)""", page)
    links += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    assert links and all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import", page)
    assert page.count("data:image/png;base64,") >= 9  # three moments of original, MCode and H.264


def test_the_page_says_what_the_rows_say(report):
    page = Path(report.files["report"]).read_text(encoding="utf-8")
    assert "arms &lt;1&gt;.mp4" in page and "<1>" not in page
    for row in report.rows:
        assert row.setting in page and f"{row.psnr_db:.2f} dB" in page and rate_text(row.rate_kbps) in page


def test_the_picture_opens(report):
    with Image.open(report.files["picture"]) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_video_has_every_frame_at_its_time_and_the_sound(report, footage):
    video = report.files["video"]
    assert Path(video).name == "out-side-by-side.mp4"
    assert [frame.pts for frame in FrameReader(video)] == [frame.pts for frame in FrameReader(footage)]
    assert probe(video).audio_codec == probe(footage).audio_codec == "aac"
    assert probe(video).width > 2 * 64


def test_only_the_three_files_are_left(report):
    folder = Path(report.files["report"]).parent
    assert {path.name for path in folder.iterdir()} == {"out.html", "out.png", "out-side-by-side.mp4"}


@pytest.mark.parametrize("name", ["out.html", "out.png", "out-side-by-side.mp4"])
def test_an_existing_file_is_refused_and_untouched(name, footage, manifold, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name}: exists; add --force"):
        compare(footage, tmp_path / "out.html", against=("h264",), manifold=manifold)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]


def test_a_report_leaves_alone_what_else_the_folder_holds(footage, manifold, tmp_path):
    mine = ("out.html", "out.png", "out-side-by-side.mp4", "other.part")
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    report = compare(footage, tmp_path / "other.html", against=("h264",), manifold=manifold, device="cpu")
    assert {Path(path).name for path in report.files.values()} == {"other.html", "other.png", "other-side-by-side.mp4"}
    assert all((tmp_path / name).read_bytes() == b"mine" for name in mine)
    assert len(list(tmp_path.iterdir())) == 3 + len(mine)


def test_footage_whose_name_has_two_dollars_gets_a_picture(footage, manifold, tmp_path):
    (tmp_path / "cost_$_and_$.mp4").symlink_to(footage)
    given = {"against": ("h264",), "manifold": manifold, "device": "cpu", "duration_s": 0.2}
    report = compare(tmp_path / "cost_$_and_$.mp4", tmp_path / "out.html", **given)
    assert Path(report.files["picture"]).exists()


def test_footage_whose_name_is_no_utf_8_gets_a_report(footage, manifold, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        odd.symlink_to(footage)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    report = compare(odd, tmp_path / "out.html", against=("h264",), manifold=manifold, device="cpu", duration_s=0.2)
    assert "caf\N{REPLACEMENT CHARACTER}.mp4" in Path(report.files["report"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["out.png", "out-side-by-side.mp4"])
@pytest.mark.parametrize("force", [False, True])
def test_an_input_where_an_output_would_stand_is_kept(name, force, manifold, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name}: input and output are the same file"):
        compare(tmp_path / name, tmp_path / "out.html", against=("h264",), manifold=manifold, force=force)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]


@pytest.mark.parametrize("name", ["out.html", "out.png", "out-side-by-side.mp4"])
def test_a_folder_where_an_output_would_stand_is_refused_at_once(name, footage, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: is a folder; choose another name"):
        compare(footage, tmp_path / "out.html", against=("h264",), manifold="no such manifold", force=True)


@pytest.mark.parametrize("name", ["out.pdf", "out", "out.mp4"])
def test_a_page_of_another_name_is_refused(name, footage, manifold, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.html"):
        compare(footage, tmp_path / name, against=("h264",), manifold=manifold)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_codec_is_refused_and_nothing_written(footage, manifold, tmp_path):
    with pytest.raises(InputError, match="unknown codec 'vp9'"):
        compare(footage, tmp_path / "out.html", against=("vp9",), manifold=manifold)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ((0.015, 0.08), ["0.02", "0.04", "0.06", "0.08"]),  # bit/pixel
        ((0.12, 0.16), ["0.12", "0.135", "0.15"]),
        ((900, 1350), ["900", "1050", "1200", "1350"]),
        ((0.42, 20), ["0.5", "1", "2", "5", "10", "20"]),
        ((100, 30000), ["100", "300", "1000", "3000", "10000", "30000"]),
        ((0.3, 3000), ["1", "10", "100", "1000"]),
    ],
)
def test_the_axis_of_rates_has_plain_numbers_that_do_not_overlap(rates, shown):
    assert set(shown) <= set(numbers_on_the_axis(rates))


@pytest.mark.parametrize("low", [0.01, 0.047, 1000, 3100, 4700])
def test_every_axis_of_rates_has_three_to_ten_numbers(low):
    for ratio in (1.05, 1.3, 3, 4.5, 5.5, 6.5, 10, 30, 100, 300, 700):
        shown = numbers_on_the_axis((low, low * ratio))
        assert 3 <= len(shown) <= 10, (low, ratio, shown)


def numbers_on_the_axis(rates: tuple[float, float]) -> list[str]:
    """From left to right; none overlaps the next."""
    figure = Figure(figsize=(4.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, (30, 31), marker="o")
    log_rates(axes)
    figure.draw_without_rendering()
    place = axes.get_window_extent()
    boxes = [(label.get_window_extent(), label.get_text()) for label in axes.get_xticklabels(which="both")]
    seen = sorted((b.x0, b.x1, text) for b, text in boxes if text and place.x0 - 1 <= (b.x0 + b.x1) / 2 <= place.x1 + 1)
    assert all(left[1] < right[0] for left, right in pairwise(seen)), (rates, seen)
    return [text for *_, text in seen]


def with_h264(report: CompareReport, bits: float, psnr_db: float, floor: bool = False) -> CompareReport:
    ours = replace(report.rows[0], rate_kbps=2.0, psnr_db=30.0)
    other = Row("H.264", "equal PSNR", "x264 medium, CRF 40", 2.0 * bits, psnr_db, None, bits, floor)
    return replace(report, rows=(ours, other), warnings=("a warning",))


def test_the_verdict_says_plainly_who_needs_fewer_bits(report):
    assert verdict(with_h264(report, 4.0, 30.02)) == ["H.264 needs 4 times the bits for the same PSNR.", "a warning"]
    (line, _) = verdict(with_h264(report, 0.4, 30.02))
    assert line == "MCode loses: H.264 reaches the same PSNR with 40% of the bits."
    for floor in (False, True):
        assert verdict(with_h264(report, 0.4, 33, floor))[0].startswith("MCode loses: H.264")


def test_the_verdict_calls_no_psnr_the_same_which_is_not(report):
    (floor, _) = verdict(with_h264(report, 5.0, 33, floor=True))
    assert "cannot go as low" in floor and "33.0 dB against 30.0 dB" in floor
    for bits, psnr_db in ((9.0, 27.0), (0.4, 27.0), (9.0, 33.0)):
        (line, _) = verdict(with_h264(report, bits, psnr_db))
        assert "comes no nearer to MCode's 30.0 dB" in line and f"{psnr_db:.1f} dB" in line and "same" not in line


@pytest.mark.parametrize(
    ("kbps", "text"), [(0.5081, "0.508 kbit/s"), (12.34, "12.3 kbit/s"), (345.6, "346 kbit/s"), (1234.0, "1.23 Mbit/s")]
)
def test_rates_have_three_digits(kbps, text):
    assert rate_text(kbps) == text
