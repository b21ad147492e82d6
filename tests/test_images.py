"""`mcode evaluate images`: means, sets, BD-rates, rates found, an interrupted evaluation going on, and the pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mcode import baseline, manifold
from mcode.cli import main
from mcode.coders import CodeTables
from mcode.config import to_dict
from mcode.errors import InputError
from mcode.evaluation import images, images_report, stills
from mcode.evaluation import judges as judges_module
from mcode.evaluation.frechet import patch_count, patches
from mcode.evaluation.images import Family, at_rate, evaluate_images
from mcode.evaluation.judges import METRICS, Judges
from mcode.evaluation.metrics import psnr, ssim
from mcode.evaluation.stills import StillCodec
from mcode.nets import int8
from mcode.nets.hific import CompactConfig, CompactHific
from mcode.testclip import render_frames

CODED: list[str] = []
"""What the stand-in codecs below were asked to code, one entry a picture."""


def coarse(name: str, factor: float):
    """A stand-in codec: setting s rounds to multiples of s and takes 40000 / s * factor bytes a picture."""

    def make(step: float) -> StillCodec:
        def code(rgb: np.ndarray) -> tuple[int, np.ndarray]:
            CODED.append(f"{name} {step:g}")
            decoded = np.clip(np.rint(rgb / step) * step, 0, 255).astype(np.uint8)
            return round(40_000 / step * factor), decoded

        return StillCodec(name, f"step {step:g}", code)

    return make


@pytest.fixture
def stand_ins(monkeypatch):
    """The anchor, and a codec that takes 30 % more bits for the same pictures."""
    monkeypatch.setitem(images.FAMILIES, "h265", Family(coarse(images.ANCHOR, 1.0), (64, 32, 16, 8), 100, 1, 1))
    monkeypatch.setitem(images.FAMILIES, "jpeg", Family(coarse("JPEG", 1.3), (64, 32, 16, 8), 100, 1, 1))
    CODED.clear()


@pytest.fixture(autouse=True)
def plots(request, monkeypatch):
    """Drawing takes longest: only the test of the pages does it."""
    if "pages" not in request.node.name:
        monkeypatch.setattr(images_report, "_drawn", lambda report, metric, kind: b"<svg></svg>")


@pytest.fixture(scope="module")
def rendered() -> list[Image.Image]:
    return [Image.fromarray(next(iter(render_frames("pan", 0.04, 25, (208, 180), seed))).rgb) for seed in range(2)]


@pytest.fixture
def pictures(tmp_path, rendered) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for image, name in zip(rendered, "ba", strict=True):
        image.save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def tiny(tmp_path) -> Path:
    return tiny_manifold(tmp_path, "tiny", (1.0, 4.0))


def tiny_manifold(folder: Path, name: str, gains: tuple[float, ...]) -> Path:
    """A manifold for pictures of any size, untrained, with a quality for each gain."""
    torch.manual_seed(0)
    config = CompactConfig(8, (4, 4, 4), (1, 1, 1), (4, 4, 4, 4), (1, 1, 1, 1), (0, 8), len(gains))
    tensors = {k: v.numpy() for k, v in CompactHific(config).net.state_dict().items()}
    tensors |= {"gain": np.array([[gain] * 8 for gain in gains], np.float32)}
    tensors |= {"inverse": 1 / tensors["gain"]}
    path = folder / f"{name}.safetensors"
    rng = np.random.default_rng(0)
    manifold.save(
        path,
        kind="hific",
        name=name,
        config={"frame_size": None, "stride": 16, "qualities": len(gains), "network": to_dict(config)},
        tables=[CodeTables.fit([rng.integers(-9, 9, (8, 4, 4)).astype(np.int16)])] * len(gains),
        tensors=tensors,
        card={},
    )
    return path


def test_a_measurement_with_a_damaged_directory_is_whole_or_none(tmp_path):
    class Judge:
        identity = "none"

        def patch_features(self, patches):
            return {"squeezenet": np.zeros((1, 8), np.float32)}

    cache = images._Cache(tmp_path, Judge(), {})
    features = {"squeezenet": np.arange(16, dtype=np.float32).reshape(2, 8)}
    cache.put(None, "p", images._Measured(1.0, {"psnr_db": 30.0}, features))
    path = cache._path(None, "p")
    data = path.read_bytes()
    directory = data.index(b"PK\1\2")
    for i in range(8 * directory, 8 * (directory + 46)):
        path.write_bytes(data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :])
        found = cache.get(None, "p")
        assert found is None or (found.bpp == 1 and np.array_equal(found.features["squeezenet"], features["squeezenet"]))


def test_names_with_dollars_stand_on_the_pages_as_they_are():
    metric = METRICS[0]
    rows = tuple(
        images.ImageRow(name, "1", bpp, {metric.key: 30.0}) for name in ("MCode cost_$_and_$", "b") for bpp in (0.1, 0.2)
    )
    report = images.ImagesReport("p", 1, 0, 0, (metric,), rows, (), {}, {}, 0, 0, (), ())
    assert b"</svg>" in images_report._drawn(report, metric, "svg")


def test_rows_are_means_and_bd_rates_are_against_the_anchor(stand_ins, pictures, tmp_path):
    report = evaluate_images(pictures, tmp_path / "out", codecs=("jpeg", "h265"), crops=0)
    assert [(row.codec, row.setting) for row in report.rows[:2]] == [("JPEG", "step 64"), ("JPEG", "step 32")]
    first = stills.read_images(pictures)
    expected = np.mean([psnr(rgb, coarse("x", 1)(64).code(rgb)[1]) for rgb in first])
    assert report.rows[0].scores["psnr_db"] == pytest.approx(expected)
    assert report.rows[0].bpp == pytest.approx(round(40_000 / 64 * 1.3) * 8 / (208 * 180))
    assert [metric.key for metric in report.metrics] == ["psnr_db", "ssim", "ms_ssim"]  # what needs no weights
    assert report.rows[0].scores["ssim"] == pytest.approx(
        np.mean([ssim(rgb, coarse("x", 1)(64).code(rgb)[1]) for rgb in first])
    )
    found = {row.metric: row.bd for row in report.bd_rates}
    assert {row.codec for row in report.bd_rates} == {"JPEG"}
    assert found["psnr_db"].percent == pytest.approx(30, abs=0.2) and found["psnr_db"].overlap == 1
    assert (report.images, report.measured, report.total) == (2, 16, 16)
    assert report.warnings == ("not measured: all that need weights; give their folder with --perceptual",)


def test_an_interrupted_evaluation_goes_on(stand_ins, pictures, tmp_path, monkeypatch):
    out, told = tmp_path / "out", []

    def interrupt(done: int, total: int | None) -> None:
        told.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0, progress=interrupt)
    assert told[-1] == (5, 16) and not (out / "results.json").exists()
    before = len(CODED)
    report = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0)
    assert before == 5 and len(CODED) == 16 and (report.measured, report.total) == (11, 16)
    with pytest.raises(InputError, match="results.json: exists; add --force"):
        evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0)
    again = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0, force=True)
    assert again.measured == 0 and again.rows == report.rows
    (victim, *_) = (out / "cache" / "jpeg").iterdir()
    victim.write_bytes(victim.read_bytes()[:50])  # damaged: measured again
    assert evaluate_images(pictures, out, codecs=("jpeg",), crops=0, force=True).measured == 1
    Image.fromarray(np.zeros((180, 200, 3), np.uint8)).save(pictures / "b.png")  # another picture under an old name
    assert evaluate_images(pictures, out, codecs=("jpeg",), crops=0, force=True).measured == 4


def test_what_other_options_of_the_encoders_gave_is_measured_anew(stand_ins, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate_images(pictures, out, codecs=("h265",), crops=0)
    monkeypatch.setattr(baseline, "REVISION", baseline.REVISION + 1)
    again = evaluate_images(pictures, out, codecs=("h265",), crops=0, force=True)
    assert again.measured == again.total > 0


def test_what_has_none_of_these_options_is_not_measured_anew(stand_ins, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0)
    monkeypatch.setattr(baseline, "REVISION", baseline.REVISION + 1)
    again = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0, force=True)
    assert again.measured == again.total // 2 == 8
    for family in ("h265", "av1"):
        assert " intra " in stills.intra(family, 30, "medium").name


@pytest.mark.parametrize("stop", ["psnr_db.png", "1-1-a-JPEG.png", "crops.html", "index.html", "results.json"])
def test_an_evaluation_stopped_while_its_report_is_written_goes_on(stop, stand_ins, pictures, tmp_path, monkeypatch):
    out, write = tmp_path / "out", images_report._write

    def interrupted(path, content):
        if path.name == stop:
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images_report, "_write", interrupted)
        evaluate_images(pictures, out, codecs=("jpeg",), crops=1)
    report = evaluate_images(pictures, out, codecs=("jpeg",), crops=1)
    assert report.measured == 0 and (out / "results.json").is_file()
    with pytest.raises(InputError, match="results.json: exists; add --force"):
        evaluate_images(pictures, out, codecs=("jpeg",), crops=1)


def test_what_a_stopped_report_had_no_name_for_is_another_ones(stand_ins, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images_report, "_written_before", Mock(side_effect=KeyboardInterrupt))
        evaluate_images(pictures, tmp_path, codecs=("jpeg",), crops=0)
    (tmp_path / "crops.html").write_bytes(b"mine")
    with pytest.raises(InputError, match="crops.html: exists; add --force"):
        evaluate_images(pictures, tmp_path, codecs=("jpeg",), crops=1)


def test_what_was_measured_before_there_was_ssim_is_kept_without_it(stand_ins, pictures, tmp_path):
    out = tmp_path / "out"
    report = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0)
    assert Judges(None).identity == "psnr_db,ms_ssim"  # a part of the names in the cache
    for path in (out / "cache" / "jpeg").iterdir():
        with np.load(path) as file:
            known = json.loads(str(file["scores"]))
        assert known["scores"].pop("ssim") > 0
        np.savez(path, scores=json.dumps(known))
    again = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=0, force=True)
    assert again.measured == 0 and again.warnings[1].startswith("SSIM is missing")
    for old, new in zip(again.rows, report.rows, strict=True):
        assert old.scores == new.scores | ({"ssim": None} if new.codec == "JPEG" else {})
    assert {row.metric: row.bd is None for row in again.bd_rates} == {"psnr_db": False, "ssim": True, "ms_ssim": False}


def test_another_manifold_under_an_old_name_is_measured_anew(pictures, tiny, tmp_path):
    first = evaluate_images(pictures, tmp_path / "out", codecs=("mcode",), manifolds=(tiny,), qualities=(2,), crops=0)
    assert first.measured == 2 and [row.setting for row in first.rows] == ["quality 2"]
    assert first.bd_rates == ()  # no anchor
    again = evaluate_images(pictures, tmp_path / "out", codecs=("mcode",), manifolds=(tiny,), crops=0, force=True)
    assert again.measured == 2 and [row.setting for row in again.rows] == ["quality 1", "quality 2"]
    tensors = manifold._read_tensors(tiny)
    info = manifold.read_info(tiny)
    tables = [manifold.load(tiny, "cpu").tables(q) for q in (1, 2)]
    tensors["gain"] = tensors["gain"] * 2
    manifold.save(tiny, kind="hific", name="tiny", config=info.config, tables=tables, tensors=tensors, card={})
    assert evaluate_images(pictures, tmp_path / "out", codecs=("mcode",), manifolds=(tiny,), crops=0, force=True).measured == 4


def test_names_that_are_no_utf_8_are_reported(pictures, tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    for number, path in enumerate(sorted(pictures.iterdir())):
        (folder / f"{number}\udce9.png").write_bytes(path.read_bytes())
    report = evaluate_images(folder, tmp_path / "out", codecs=("jpeg",), crops=1, device="cpu")
    assert report.images == 2
    assert "caf\ufffd: 2 pictures" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["folder"].endswith("caf\udce9")


def test_another_precision_device_or_version_is_measured_anew(pictures, tmp_path, monkeypatch):
    general = manifold.load("general", "cpu", precision="float32")
    given = {"codecs": ("mcode",), "qualities": (5,), "crops": 0, "device": "cpu", "force": True}

    def measured(model: manifold.Manifold) -> int:
        return evaluate_images(pictures, tmp_path / "out", manifolds=(model,), **given).measured

    assert [measured(general), measured(general)] == [2, 0]
    other = manifold.load("general", "cpu", precision="bfloat16")
    assert [measured(other), measured(other), measured(general)] == [2, 0, 0]
    monkeypatch.setattr(images, "__version__", "0.0.1")
    assert [measured(general), measured(general)] == [2, 0]
    monkeypatch.setitem(general.card, int8.RANGES, {})
    assert measured(general) == 2, "integers of other ranges give other pictures"
    assert images.computed_by(general, "int8", "cpu") != images.computed_by(general, "int8", "cuda")


def test_judges_are_told_apart_by_their_weights_and_device(tmp_path, monkeypatch):
    monkeypatch.setattr(judges_module, "Niqe", lambda path: None)
    found = set()
    for content, device in ((b"one", "cpu"), (b"two", "cpu"), (b"two", "meta")):
        (tmp_path / judges_module.NIQE_FILE).write_bytes(content)
        found.add(Judges(tmp_path, device).identity)
    assert len(found) == 3


def test_manifolds_of_one_rate_each_make_one_curve(stand_ins, pictures, tiny, tmp_path):
    files = [tiny_manifold(tmp_path, name, (gain,)) for name, gain in (("low", 1.0), ("middle", 4.0), ("high", 16.0))]
    curve = f"hific={'+'.join(map(str, files))}"
    given = {"codecs": ("mcode", "h265"), "manifolds": (curve, tiny), "coder": "fixed"}
    report = evaluate_images(pictures, tmp_path / "out", crops=1, **given)
    ours = [(row.codec, row.setting) for row in report.rows if row.codec.startswith("MCode")]
    points = [("MCode hific", f"{name}, quality 1, fixed") for name in ("low", "middle", "high")]
    assert ours == [*points, ("MCode tiny", "quality 1, fixed"), ("MCode tiny", "quality 2, fixed")]
    assert list(report.manifolds) == ["low", "middle", "high", "tiny"]
    alone = evaluate_images(pictures, tmp_path / "alone", crops=0, **(given | {"manifolds": (files[1],)}))
    assert report.rows[1].scores == alone.rows[0].scores and report.rows[1].bpp == alone.rows[0].bpp
    assert {row.codec for row in report.bd_rates} == {"MCode hific", "MCode tiny"}
    page = (tmp_path / "out" / "crops.html").read_text()
    again = evaluate_images(pictures, tmp_path / "out", crops=0, force=True, **given)
    assert (report.measured, again.measured) == (18, 0)
    assert "middle, quality 1, fixed" in page


@pytest.mark.parametrize(("wanted", "setting"), [(1.0, "step 9"), (0.5, "step 17"), (1e-3, "step 100"), (50.0, "step 1")])
def test_the_setting_nearest_to_a_rate_is_found_by_halving(wanted, setting):
    rgb = np.zeros((180, 208, 3), np.uint8)
    family = Family(coarse("x", 1.0), (), 100, 1, 1)
    CODED.clear()
    codec, size, decoded = at_rate(family, rgb, wanted)
    assert codec.setting == setting and len(CODED) <= 9 and decoded.shape == rgb.shape
    rates = [round(40_000 / step) * 8 / rgb[..., 0].size for step in range(1, 101)]
    best = min(rates, key=lambda rate: abs(np.log(rate / wanted)))
    assert size * 8 / rgb[..., 0].size == pytest.approx(best)


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("href", "src")]


def test_the_pages_hold_curves_tables_and_close_ups_at_about_equal_rate(stand_ins, pictures, tmp_path):
    out = tmp_path / "out"
    report = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=1)
    assert all(Path(path).is_file() for path in report.files)
    names = {Path(path).relative_to(out).as_posix() for path in report.files}
    assert names == {
        "index.html", "crops.html", "results.json", "psnr_db.png", "ssim.png", "ms_ssim.png",
        "crops/1-0-a-original.png", "crops/1-1-a-JPEG.png", "crops/1-2-a-H.265-intra-4-4-4.png",
    }  # fmt: skip
    for page in ("index.html", "crops.html"):
        text = (out / page).read_text(encoding="utf-8")
        for link in Links(text).found:
            assert link.startswith(("data:", "#")) or (out / link).exists(), link
    index = (out / "index.html").read_text(encoding="utf-8")
    assert index.count("<svg") == 3 and "+30." in index and "step 64" in index
    rates = [float(word) for word in re.findall(r"([0-9.]+) bit/pixel", (out / "crops.html").read_text())]
    assert len(rates) == 2 and rates[0] == pytest.approx(rates[1], rel=0.1)
    written = json.loads((out / "results.json").read_text())
    assert written["rows"][0]["codec"] == "JPEG" and written["bd_rates"][0]["percent"] == pytest.approx(30, abs=0.2)
    with Image.open(out / "psnr_db.png") as plot:
        assert plot.size[0] > 500
    assert not list(out.rglob("*.partial-*"))


def test_pictures_behind_the_close_ups_are_each_its_own(stand_ins, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = ("写真.png", "画像.png", "a b.png", "a-b.png", "a.png", "a.webp", f"{'long' * 60}.png")
    for grey, name in enumerate(names):
        Image.new("RGB", (64, 48), (grey, grey, grey)).save(folder / name, lossless=True)
    out = tmp_path / "out"
    evaluate_images(folder, out, codecs=("jpeg", "h265"), crops=len(names))
    text = (out / "crops.html").read_text(encoding="utf-8")
    links = [link for link in Links(text).found if link.startswith("crops/")]
    assert len(set(links)) == len(links) == 3 * len(names) == len(list((out / "crops").iterdir()))
    assert all(name in text for name in names)
    shown = [np.array(Image.open(out / link))[0, 0, 0] for link in links[::3]]
    assert shown == [names.index(path.name) for path in sorted(folder.iterdir())]


def test_a_report_leaves_nothing_of_the_one_before_and_all_else(stand_ins, pictures, tmp_path):
    out = tmp_path / "out"
    for name in ("mine.png", "crops/mine.png", "lpips/ssim.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")

    def left() -> set[str]:
        return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and "cache" not in path.parts}

    first = evaluate_images(pictures, out, codecs=("jpeg", "h265"), crops=2)
    mine = {"mine.png", "crops/mine.png", "lpips/ssim.png"}
    assert left() == mine | {Path(path).relative_to(out).as_posix() for path in first.files} and len(first.files) == 6 + 6
    Image.new("RGB", (208, 100)).save(pictures / "c.png")  # no MS-SSIM
    fewer = evaluate_images(pictures, out, codecs=("jpeg",), crops=1, force=True)
    assert left() == mine | {Path(path).relative_to(out).as_posix() for path in fewer.files}
    assert "ms_ssim.png" not in left() and "crops/2-0-b-original.png" not in left()
    none = evaluate_images(pictures, out, codecs=("jpeg",), crops=0, force=True)
    assert left() == mine | {Path(path).relative_to(out).as_posix() for path in none.files} and "crops.html" not in left()
    (out / "crops" / "mine.png").unlink()
    evaluate_images(pictures, out, codecs=("jpeg",), crops=1, force=True)
    evaluate_images(pictures, out, codecs=("jpeg",), crops=0, force=True)
    assert not (out / "crops").exists()


def test_what_lies_in_a_folder_without_a_report_stays(stand_ins, pictures, tmp_path):
    (tmp_path / "vgg19.png").write_bytes(b"mine")
    evaluate_images(pictures, tmp_path, codecs=("jpeg",), crops=0)
    assert (tmp_path / "vgg19.png").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["results.json", "index.html", "crops.html", "psnr_db.png", "crops/1-0-a-original.png"])
def test_files_of_others_where_the_report_would_stand_are_kept(name, stand_ins, pictures, tmp_path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name}: exists; add --force"):
        evaluate_images(pictures, out, codecs=("jpeg",), crops=1)
    assert (out / name).read_bytes() == b"mine" and not CODED
    evaluate_images(pictures, out, codecs=("jpeg",), crops=1, force=True)
    assert (out / name).read_bytes() != b"mine"


def test_a_folder_where_a_page_would_stand_is_refused_at_once(stand_ins, pictures, tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(InputError, match=r"index.html: is a folder"):
        evaluate_images(pictures, tmp_path, codecs=("jpeg",), crops=0, force=True)
    assert not CODED


def test_a_report_among_its_own_pictures_is_refused(stand_ins, pictures, tmp_path):
    (tmp_path / "link").symlink_to(pictures)
    for out in (pictures, tmp_path / "link"):
        with pytest.raises(InputError, match="is the folder of the pictures"):
            evaluate_images(pictures, out, codecs=("jpeg",), crops=0, force=True)
    assert not CODED and {path.name for path in pictures.iterdir()} == {"a.png", "b.png", "notes.txt"}


def test_what_others_wrote_beside_another_results_json_or_after_the_report_stays(stand_ins, pictures, tmp_path):
    foreign, own, elsewhere = tmp_path / "foreign", tmp_path / "own", tmp_path / "elsewhere"
    for folder in (foreign, elsewhere):
        folder.mkdir()
    (foreign / "results.json").write_text('{"my": 1}')
    (foreign / "crops.html").write_text('<a href="crops/1-0-keep.png">')
    (foreign / "lpips.png").write_bytes(b"mine")
    evaluate_images(pictures, foreign, codecs=("jpeg",), crops=0, force=True)
    assert (foreign / "lpips.png").read_bytes() == b"mine" and "keep" in (foreign / "crops.html").read_text()
    evaluate_images(pictures, own, codecs=("jpeg",), crops=1)
    (own / "lpips.png").write_bytes(b"mine")
    (own / "crops").rename(elsewhere / "crops")
    (own / "crops").symlink_to(elsewhere / "crops")
    evaluate_images(pictures, own, codecs=("jpeg",), crops=0, force=True)
    assert (own / "lpips.png").read_bytes() == b"mine" and list((elsewhere / "crops").iterdir())


def test_small_pictures_have_no_score_where_a_metric_needs_more(stand_ins, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "a.png")
    report = evaluate_images(folder, tmp_path / "out", codecs=("jpeg", "h265"), crops=1)
    assert report.rows[0].scores["ms_ssim"] is None and report.rows[0].scores["psnr_db"] is not None
    assert 0 < report.rows[0].scores["ssim"] < 1
    assert next(row.bd for row in report.bd_rates if row.metric == "ms_ssim") is None
    assert not (tmp_path / "out" / "ms_ssim.png").exists()


def test_a_metric_that_one_small_picture_takes_from_all_is_told(stand_ins, pictures, tmp_path):
    Image.new("RGB", (300, 175)).save(pictures / "c.png")
    report = evaluate_images(pictures, tmp_path / "out", codecs=("jpeg", "h265"), crops=0)
    (warning,) = [text for text in report.warnings if "MS-SSIM" in text]
    assert warning == (
        f"MS-SSIM is left out of all means: {pictures / 'c.png'} is smaller than the 176x176 it needs; "
        "take it out of the folder to have it"
    )
    metrics = [metric for metric in METRICS if metric.key in ("psnr_db", "ms_ssim", "lpips")]
    sizes = {Path("a"): (176, 200), Path("b"): (300, 60), Path("c"): (100, 100)}
    words = list(images.too_small(sizes, metrics))
    assert ["b and 1 more are smaller than the 176x176" in words[0], "b is smaller than the 64x64" in words[1]] == [True, True]
    assert not list(images.too_small({Path("a"): (176, 200)}, metrics))


def test_niqe_needs_two_blocks_and_a_flat_picture_has_none():
    (niqe,) = [metric for metric in METRICS if metric.key == "niqe"]
    for size in ((96, 192), (192, 96), (200, 200)):
        assert not list(images.too_small({Path("a"): size}, [niqe])), size
    for size in ((191, 191), (95, 4000), (96, 191)):
        (words,) = images.too_small({Path("a"): size}, [niqe])
        assert words.startswith("NIQE is left out of all means: a is smaller than the two blocks of 96x96 it needs;")
    rows = [images.ImageRow("JPEG", f"q{q}", 1.0, {"niqe": value}) for q, value in ((5, None), (10, 3.0))]
    (words,) = images.too_flat({Path("a"): (200, 200)}, rows)
    assert words == "NIQE is missing in 1 of 2 rows, JPEG, q5 the first: a picture comes out flat there"
    assert not list(images.too_flat({Path("a"): (90, 90)}, rows))  # told already
    assert not list(images.too_flat({Path("a"): (200, 200)}, rows[1:]))


def test_how_many_patches_of_how_many_pictures_sets_are_over_is_told(stand_ins, tmp_path, monkeypatch):
    of_sets = [metric for metric in METRICS if metric.network == "inception"]
    few = list(images.too_small({Path("a"): (256, 300), Path("b"): (255, 4000)}, of_sets))
    assert few == ["FID/256, KID/256 are left out: they need two patches of 256x256, the pictures have 1"]
    (none,) = images.too_small({Path("b"): (255, 4000)}, of_sets)
    assert none.endswith("the pictures have none")
    some = list(images.too_small({Path("a"): (512, 768), Path("b"): (255, 4000)}, of_sets))
    assert some == ["FID/256, KID/256 are over 8 patches of 256x256 of 1 of 2 pictures; the others are smaller"]
    assert not list(images.too_small({Path("a"): (512, 768)}, of_sets))
    for height, width in ((512, 768), (256, 256), (255, 600), (1000, 256), (900, 1100)):
        assert patch_count(height, width) == len(list(patches(np.zeros((height, width, 3), np.uint8))))


def test_pictures_too_small_for_a_network_have_no_distance_and_are_told(stand_ins, data_dir, tmp_path):
    weights = data_dir / "perceptual"
    if not {"vgg19", "mobilenet"} <= {metric.key for metric in Judges(weights).metrics}:
        pytest.skip(f"no weights in {weights}")
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    judges = Judges(weights)
    for height, width, vgg, mobilenet in ((16, 16, 1, 1), (15, 40, 1, 0), (4, 15, 1, 0), (3, 60, 0, 0), (1, 1, 0, 0)):
        small = np.ascontiguousarray(rgb[:height, :width])
        scores = judges.score(small, 255 - small)
        assert (scores["vgg19"] is not None, scores["mobilenet"] is not None) == (vgg, mobilenet), (height, width)
    folder = tmp_path / "small"
    folder.mkdir()
    Image.fromarray(rgb[:15, :20]).save(folder / "a.png")
    Image.fromarray(rgb).save(folder / "b.png")
    report = evaluate_images(folder, tmp_path / "out", codecs=("jpeg", "h265"), crops=1, perceptual=weights)
    assert report.rows[0].scores["vgg19"] is not None and report.rows[0].scores["mobilenet"] is None
    (words,) = [text for text in report.warnings if text.startswith("MobileNet distance")]
    assert f"{folder / 'a.png'} is smaller than the 16x16 it needs" in words


def test_a_picture_that_a_codec_does_not_take_is_named(tmp_path):
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: AV1 cannot encode 20x40: 32 pixels a side at least; take it out of the fold"):
        evaluate_images(tmp_path, tmp_path / "out", codecs=("av1",), crops=0)


def test_what_cannot_be_evaluated_is_one_line(pictures, tiny, tmp_path):
    def refused(words: str, **options) -> None:
        with pytest.raises(InputError, match=words) as error:
            evaluate_images(options.pop("folder", pictures), options.pop("out", tmp_path / "out"), **options)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()

    refused("unknown codec 'gif'", codecs=("gif",))
    refused("no such file or folder", folder=tmp_path / "absent")
    refused("is a file; give a folder", out=pictures / "notes.txt")
    refused("--qualities 3: manifold tiny has qualities 1 to 2", manifolds=(tiny,), qualities=(1, 3))
    refused("two manifolds are named tiny", manifolds=(tiny, tiny))
    refused("two of its manifolds are named tiny", manifolds=(f"a={tiny}+{tiny}",))
    for spec in ("=general", "a=", f"a={tiny}+"):
        refused("one curve of several manifolds is NAME=FILE[+]FILE", manifolds=(spec,))
    refused("holds 128x128 alone", manifolds=("talking-head",))
    refused("no such folder of weights", codecs=("jpeg",), perceptual=tmp_path / "absent")


def test_the_command_prints_tables_or_json(stand_ins, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    call = ["evaluate", "images", str(pictures), "-o", str(tmp_path / "out"), "--codecs", "jpeg,h265", "--crops", "0"]
    assert main(call) == 0
    out, err = capsys.readouterr()
    assert "bit/pixel" in out and "+30." in out and "index.html" in out
    assert "give their folder with --perceptual" in err
    (tmp_path / "weights").mkdir()
    assert main([*call[:-2], "--crops", "0", "--force", "--perceptual", str(tmp_path / "weights")]) == 0
    assert "FID/256 (no weights-inception-2015-12-05-6726825d.pth)" in capsys.readouterr().err
    assert main(call) == 2
    assert "add --force" in capsys.readouterr().err
    assert main([*call, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"] == 0
    assert main([*call, "--force", "--qualities", "1,x"]) == 2
    assert "--qualities x" in capsys.readouterr().err
    for none in ("", "1,"):
        assert main([*call, "--force", "--qualities", none]) == 2
        assert "a quality is a whole number" in capsys.readouterr().err


def test_qualities_go_as_far_as_manifolds_may(pictures, tmp_path, capsys):
    many = tiny_manifold(tmp_path, "many", tuple(range(1, 16)))
    call = ["evaluate", "images", str(pictures), "-o", str(tmp_path / "out"), "--codecs", "mcode", "-m", str(many), "--json"]
    assert main([*call, "--crops", "0", "--qualities", "9,15"]) == 0
    assert [row["setting"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["quality 9", "quality 15"]
    assert main([*call, "--qualities", "16"]) == 2
    assert "--qualities 16: a quality is a whole number from 1 to 15" in capsys.readouterr().err


def test_standard_weights_are_fetched_once_each_against_its_hash(tmp_path, monkeypatch, pictures, capsys):
    asked = []

    def download(url, target, *, sha256, progress=None):
        asked.append((target.name, url, sha256))
        target.write_bytes(b"")

    monkeypatch.setattr(judges_module, "download", download)
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "alex.pth").write_bytes(b"")
    assert [path.name for path in judges_module.fetch_standard_weights(tmp_path / "w")] == [
        "alexnet-owt-7be5be79.pth",
        "weights-inception-2015-12-05-6726825d.pth",
    ]
    for name, url, sha256 in asked:
        assert url.startswith("https://") and url.endswith(name)
        assert len(sha256) == 64 and sha256.startswith(name.removesuffix(".pth")[-8:])  # as their authors name them
    assert judges_module.fetch_standard_weights(tmp_path / "w") == []
    assert main(["evaluate", "images", str(pictures), "-o", str(tmp_path / "out"), "--fetch-weights"]) == 2
    assert "give the folder for them with --perceptual" in capsys.readouterr().err


def test_judges_tell_little_damage_from_much_and_sets_from_other_sets(data_dir):
    folder = data_dir / "perceptual"
    judges = Judges(folder)
    keys = {metric.key for metric in judges.metrics}
    if not {"vgg19", "mobilenet", "niqe", "squeezenet_fid256", "mobilenet_kid256"} <= keys:
        pytest.skip(f"no weights in {folder}")
    rgb = next(iter(render_frames("pan", 0.04, 25, (512, 256), 1))).rgb
    near, far = (coarse("x", 1)(step).code(rgb)[1] for step in (8, 64))
    small = rgb[:180, :208].copy()
    a, b = (judges.score(small, x[:180, :208]) for x in (near, far))
    assert a["psnr_db"] > b["psnr_db"] and a["ssim"] > b["ssim"] and a["ms_ssim"] > b["ms_ssim"]
    assert 0 < a["vgg19"] < b["vgg19"] and 0 < a["mobilenet"] < b["mobilenet"] and a["niqe"] > 0
    own, one, other = (judges.patch_features(x) for x in (rgb, near, far))
    assert own["squeezenet"].shape == (2, 512) and own["mobilenet"].shape == (2, 1024)
    close, wide = judges.compare_sets(own, one), judges.compare_sets(own, other)
    assert close["squeezenet_fid256"] < wide["squeezenet_fid256"] and close["mobilenet_kid256"] < wide["mobilenet_kid256"]
    assert judges.compare_sets(own, own)["squeezenet_fid256"] == pytest.approx(0, abs=1e-3)


def test_refined_pictures_stand_beside_others_and_are_measured_anew_when_refinement_changes(tmp_path, monkeypatch):
    from mcode import refine

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for frame in render_frames("arms", seconds=0.04, size=(64, 48), seed=4):
        Image.fromarray(frame.rgb).save(pictures / "a.png")
    general = manifold.load("general", "cpu")
    given = {"codecs": ["mcode"], "manifolds": [general], "qualities": [2, 6], "coder": "range", "device": "cpu", "crops": 0}
    plain = evaluate_images(pictures, tmp_path / "plain", **given)
    both = evaluate_images(pictures, tmp_path / "both", refine=10, **given)
    by_name = {name: [row for row in both.rows if row.codec == name] for name in ("MCode general", "MCode general, refined")}
    assert [row.bpp for row in by_name["MCode general"]] == [row.bpp for row in plain.rows]
    refined = by_name["MCode general, refined"]
    assert [row.setting for row in refined] == [f"quality {q}, range, refined 10 by eye" for q in (2, 6)]
    assert refined[1].scores["psnr_db"] != plain.rows[1].scores["psnr_db"]
    again = evaluate_images(pictures, tmp_path / "both", refine=10, force=True, **given)
    assert (both.measured, again.measured) == (4, 0)
    monkeypatch.setattr(refine, "_SHARE", 0.1)
    changed = evaluate_images(pictures, tmp_path / "both", refine=10, force=True, **(given | {"qualities": [6]}))
    assert (changed.measured, changed.total) == (1, 2)  # not the unrefined one
