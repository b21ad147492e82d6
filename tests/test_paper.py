"""`mcode evaluate paper`: what is counted as bits, how bits are flipped, and that every part leaves its files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mcode
from mcode.cli import main
from mcode.errors import InputError
from mcode.evaluation import paper
from mcode.evaluation.paper import LinearPart, classifier, evaluate_paper, images, page, sets, video
from mcode.evaluation.paper.codecs import (
    Components,
    Coordinates,
    at_least_bits,
    code_all,
    encoded,
    jpeg,
    jpeg2000,
    jpeg2000_bytes,
    jpeg_bytes,
    jpeg_scan,
)
from mcode.evaluation.paper.page import sheet
from mcode.nets.ncode import NCodeConfig
from mcode.nets.residual import Residual, ResidualConfig
from mcode.training import ncode, residual
from mcode.training.ncode import AdversarialConfig, EncodingConfig, NCodeData, NCodeTraining, Networks
from mcode.training.residual import ResidualTraining, learn_components
from mcode.training.squares import Squares
from mcode.video import FrameReader


def pictures(count: int, size: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth colourful pictures, uint8 (count, size, size, channels)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 5, 5, channels), dtype=np.uint8)
    large = [cv2.resize(p, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels) for p in small]
    return np.stack(large)


def residual_manifold(path: Path, size: int, m: int, channels: int, quantiser: str = "bits") -> None:
    network = ResidualConfig(frame_size=(size, size), channels=channels, m=m, width=4, blocks=1)
    config = ResidualTraining("ncode", path.stem, NCodeData(("x",)), network, 1, quantiser=quantiser, step=30.0)
    pixels = pictures(4 * m, size, seed=m, channels=channels)
    net = Residual(network)
    learn_components(net, pixels)
    residual.save(net.eval(), config, Squares(pixels, (len(pixels),)), path)


def ncode_manifold(path: Path, size: int, m: int, channels: int, tmp_path: Path) -> None:
    """An untrained DCGAN, as a finished training leaves it."""
    from mcode.training import loop

    network = NCodeConfig(size=size, channels=channels, m=m, width=4, widest=8)
    data = NCodeData(("pictures.tar",), batch=4)
    config = NCodeTraining("ncode", path.stem, data, AdversarialConfig(1), EncodingConfig(1), network)
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for i, picture in enumerate(pictures(16, size)):
            add(archive, f"{i}.png", picture)
    model = Networks(config)
    ema = {k: v.detach().clone() for k, v in model.named_parameters() if not k.startswith("d.")}
    checkpoint = tmp_path / f"{path.stem}.checkpoint.safetensors"
    loop.save_checkpoint(checkpoint, model, ema, [], 2, config)
    ncode.export(checkpoint, tmp_path, path)


def add(archive: tarfile.TarFile, name: str, rgb: np.ndarray) -> None:
    data = cv2.imencode(Path(name).suffix, np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folders and names as in the sets of the paper's experiments, a few pictures and frames in each."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("small", "kth", "grid_s1/dev", "grid_s1/train"):
        (root / folder).mkdir(parents=True)
    with tarfile.open(root / "small/cifar10_jpeg.tar.xz", "w:xz") as archive:
        for part in ("train", "test"):
            for k, name in enumerate(sets.CLASSES):
                for i, picture in enumerate(pictures(3, 32, seed=k)):
                    add(archive, f"{part}/{name}/{i}.png", picture)
    for name, channels in (("faces64", 3), ("outdoor64_gray", 1)):
        with tarfile.open(root / f"small/{name}_test.tar", "w") as archive:
            for i, picture in enumerate(pictures(4, 64, seed=i_of(name), channels=3)):
                add(archive, f"{i}.png", picture if channels == 3 else picture[..., :1].repeat(3, 2))
    clips = [root / place.partition("@")[0] for place in sets.KTH_TEST]
    for path in (*clips, root / "grid_s1/dev/a.mpg", root / "grid_s1/train/b.mpg"):
        write_moving(path, 60)
    return root


def i_of(name: str) -> int:
    return len(name)


def write_moving(path: Path, frames: int) -> None:
    """A bright square that walks over a gradient, 64x64."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "mpeg2video", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for i in range(frames):
            rgb = np.full((64, 64, 3), np.arange(64)[None, :, None] * 2, np.uint8)
            rgb[20:40, i % 44 : i % 44 + 20] = (250, 200, 60)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def manifolds(tmp_path_factory) -> Path:
    folder, scratch = tmp_path_factory.mktemp("manifolds"), tmp_path_factory.mktemp("scratch")
    residual_manifold(folder / "cifar10-residual-100.safetensors", 32, 100, 3)
    residual_manifold(folder / "cifar10-residual-25.safetensors", 32, 25, 3)
    ncode_manifold(folder / "cifar10-100.safetensors", 32, 100, 3, scratch)
    residual_manifold(folder / "outdoor64-residual-100.safetensors", 64, 100, 1)
    residual_manifold(folder / "kth-residual.safetensors", 64, 6, 1, "step")
    ncode_manifold(folder / "head-dcgan-50.safetensors", 128, 6, 3, scratch)
    return folder


def test_jpegs_bits_are_the_scan_and_its_tables():
    data = encoded(pictures(1, 32)[0], False, "JPEG", quality=50, optimize=True)
    with Image.open(io.BytesIO(data)) as image:
        quantisation = 65 * len(image.quantization)
    start = jpeg_scan(data)
    scan = len(data) - start - 2
    huffman = sum(len(s) for s in segments(data) if s[1] == 0xC4)
    markers = sum(1 for s in segments(data) if s[1] == 0xDB) * 4
    assert jpeg_bytes(data) == scan + huffman + quantisation + markers
    assert 0 < scan < jpeg_bytes(data) < len(data)


def segments(data: bytes) -> list[bytes]:
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at : at + length])
        at += length
    return found


@pytest.mark.parametrize("ratio", [5, 20, 60])
def test_jpeg_2000s_bits_are_those_of_its_tile_parts(ratio):
    options = {"quality_layers": [ratio], "irreversible": True, "num_resolutions": 4, "no_jp2": True}
    data = encoded(pictures(1, 64)[0], False, "JPEG2000", **options)
    assert data.count(b"\xff\x93") == 1
    assert jpeg2000_bytes(data) == len(data) - (data.index(b"\xff\x93") + 2) - 2
    assert jpeg2000_bytes(data) * 8 <= 24 * 64 * 64 / ratio * 1.2 + 8 * 30


@pytest.mark.parametrize(("make", "settings"), [(jpeg, images.JPEG_QUALITIES), (jpeg2000, images.JPEG2000_RATIOS)])
def test_the_best_setting_within_the_bits_is_found(make, settings):
    rgb = pictures(6, 64)
    setting, coded = at_least_bits(lambda s: make(int(s) if make is jpeg else s, False), settings, rgb, 6000)
    assert coded.bits.mean() <= 6000
    better = settings[settings.index(setting) - 1]
    assert code_all(make(int(better) if make is jpeg else better, False), rgb).bits.mean() > 6000


@pytest.mark.parametrize("code", images.CODES)
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_every_code_is_a_permutation_and_is_undone(code, bits):
    levels = np.arange(1 << bits)
    patterns = images.to_code(levels, bits, code)
    assert sorted(patterns.tolist()) == levels.tolist()
    np.testing.assert_array_equal(images.from_code(patterns, bits, code), levels)
    if code == "gray":
        assert all((a ^ b).bit_count() == 1 for a, b in zip(patterns.tolist(), patterns.tolist()[1:], strict=False))


def test_folded_is_the_coder_fixeds_own_code():
    from mcode.coders import CodeTables, fixed

    sample = np.arange(-15, 17, dtype=np.int16).reshape(1, 1, 32)
    tables = CodeTables.fit([sample], centre=1, bits=5)
    data = fixed.encode(sample[0], tables)
    written = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(32, 5) @ (16, 8, 4, 2, 1)
    np.testing.assert_array_equal(written, images.to_code(np.arange(32), 5, "folded"))


def test_flips_are_as_frequent_as_asked():
    patterns = np.zeros((100, 400), np.int64)
    flipped = images.flip(patterns, 5, 0.02, np.random.default_rng(1))
    ones = sum(int((flipped >> bit & 1).sum()) for bit in range(5))
    assert ones == pytest.approx(0.02 * 5 * patterns.size, rel=0.1)
    assert flipped.max() < 32


def test_coordinates_cost_m_times_b_bits(manifolds):
    model = mcode.load(manifolds / "cifar10-residual-25.safetensors", "cpu")
    rgb = pictures(5, 32)
    sizes = []
    for bits in (2, 4, 8):
        codec = Coordinates(model, bits)
        coded = codec(rgb)
        assert coded.bits.tolist() == [25 * bits] * 5
        assert coded.pictures.shape == rgb.shape
        sizes.append(float(np.square(coded.pictures.astype(float) - rgb).mean()))
    assert sizes[0] > sizes[1] > sizes[2]


def test_components_keep_within_their_bits_and_spend_them_where_the_spread_is(manifolds):
    model = mcode.load(manifolds / "cifar10-residual-100.safetensors", "cpu")
    rgb = pictures(8, 32, seed=100)
    errors = []
    for bits in (50, 100, 500):
        codec = Components(model, bits)
        assert bits * 0.8 <= codec.widths.sum() <= bits
        assert (np.diff(codec.widths) <= 0).all() or codec.widths[0] == codec.widths.max()
        errors.append(float(np.square(codec(rgb).pictures.astype(float) - rgb).mean()))
    assert errors[0] > errors[1] > errors[2]


def test_components_go_to_the_networks_device_and_back(manifolds, monkeypatch):
    """`meta` stands for the GPU: what meets it from the processor is an error, and only what has no numbers comes of it."""
    model = mcode.load(manifolds / "cifar10-residual-100.safetensors", "cpu")
    codec, rgb = Components(model, 500), pictures(3, 32)
    model.net.to("meta")
    monkeypatch.setattr(model.net, "_rows", model.net._rows.to("meta"))
    monkeypatch.setattr(model.net, "_solve", model.net._solve.to("meta"))
    back, there = torch.Tensor.cpu, []

    def cpu(x: torch.Tensor) -> torch.Tensor:
        there.append(x.device.type)
        return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else back(x)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    assert codec(rgb).pictures.shape == rgb.shape
    assert there == ["meta"]


def test_the_classifier_learns_colours_and_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1500)
    pixels = np.clip(labels[:, None, None, None] * 25 + rng.normal(0, 4, (1500, 32, 32, 3)), 0, 255).astype(np.uint8)
    net = classifier.train(pixels, labels, epochs=12, width=4)
    found = classifier.accuracy(net, pixels, labels)
    assert found > 0.5
    classifier.save(net, tmp_path / "c.safetensors", {"epochs": 6})
    again, facts = classifier.load(tmp_path / "c.safetensors")
    assert facts == {"epochs": 6}
    assert classifier.accuracy(again, pixels, labels) == found
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="no classifier that can be read"):
        classifier.load(tmp_path / "bad.safetensors")


def test_the_linear_part_has_the_manifolds_bytes(manifolds):
    model = mcode.load(manifolds / "kth-residual.safetensors", "cpu", precision="float32")  # integers keep the old bias
    with torch.no_grad():
        model.net.unet.last.bias.fill_(0.2)  # an untrained network adds nothing
    clip = pictures(9, 64)
    size, back = video.code(model, clip, 4)
    alone, linear = video.code(LinearPart(model), clip, 4)
    assert size == alone
    assert not np.array_equal(back, linear)
    assert back.shape == clip.shape == linear.shape


@pytest.mark.parametrize("n", [1, 4, 8])
def test_bytes_are_those_of_the_files_samples(manifolds, tmp_path, n):
    source = tmp_path / "clip.avi"
    write_moving(source, 21)
    seen = np.stack([frame.rgb for frame in FrameReader(source)])
    model = mcode.load(manifolds / "kth-residual.safetensors", "cpu")
    report = mcode.encode_file(source, tmp_path / "clip.mcode", manifold=model, n=n)
    assert video.code(model, seen, n)[0] == report.payload_bytes


def test_the_legend_lies_beside_the_curves(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(page, "_finish", lambda figure, path: figures.append(figure))
    codecs = [("NCode", "folded"), ("NCode", "gray"), ("JPEG", "q10")]
    rows = [
        {"codec": codec, "code": code, "bit_error_rate": rate, "psnr_db": 20 - 200 * rate}
        for codec, code in codecs
        for rate in (0.0, 0.05)
    ]
    page.plot_noise(tmp_path / "a.png", {"all": rows, "fewer": rows[:2]})
    (figure,) = figures
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["NCode, folded", "NCode, gray", "JPEG, q10"]
    right = legend.get_window_extent()
    assert all(axes.get_legend() is None and axes.get_window_extent().x1 < right.x0 for axes in figure.axes)
    assert right.x1 <= figure.bbox.x1


def test_sheets_hold_every_row():
    out = sheet([("one", pictures(3, 20)), ("two\nlines", pictures(2, 20))], scale=2)
    assert out.shape[0] == 2 * 43
    assert out.dtype == np.uint8


@pytest.mark.timeout(300)
def test_every_part_leaves_json_pictures_and_one_page(tmp_path, data, manifolds, monkeypatch, capsys):
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    monkeypatch.setattr(paper, "SHIPPED", tmp_path / "nothing")
    net = classifier.Classifier(4)
    out = tmp_path / "results"
    out.mkdir()
    classifier.save(net.eval(), out / "classifier.safetensors", {"epochs": 0})
    monkeypatch.setattr(video, "BASELINES", ("h264",))
    arguments = ["evaluate", "paper", "--data", str(data), "-o", str(out), "--manifolds", str(manifolds), "--pictures", "4"]
    assert main([*arguments, "--only", "figure3,figure4a,figure4b,figure5,figure6,figure7", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "faces64-100" in report["missing"]
    assert "configs/paper/faces64-100.toml" in said.err
    found = json.loads((out / "figure3.json").read_text())["sets"]["CIFAR-10"]["rows"]
    assert {(r["codec"], r["setting"]) for r in found} >= {("NCode", "(100, 5)"), ("NCode residual", "(25, 2)")}
    row = next(r for r in found if r["codec"] == "NCode residual" and r["setting"] == "(100, 5)")
    assert row["bpp"] == pytest.approx(500 / 1024)
    assert row["factor"] == pytest.approx(24 * 1024 / 500)
    accuracy = json.loads((out / "figure4a.json").read_text())["rows"]
    assert accuracy[0]["codec"] == "original" and accuracy[0]["kept"] == 1
    video_rows = json.loads((out / "figure5.json").read_text())["rows"]
    assert [r["kbps"] for r in video_rows if r["codec"] == "NCode residual"] == sorted(
        (r["kbps"] for r in video_rows if r["codec"] == "NCode residual"), reverse=True
    )
    page = (out / "index.html").read_text()
    for title in ("Figure 3", "Figure 4a", "Figure 4b", "Figure 5", "Figure 6", "Figure 7", "in the paper"):
        assert title in page
    assert page.count("data:image/png") >= 6
    for name in ("figure3-cifar10", "figure4a", "figure4b", "figure5", "figure6", "figure7"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert not list(out.glob("*.partial-*"))


@pytest.fixture
def one_part(tmp_path, data, monkeypatch) -> list[str]:
    """The command for figure 7 alone, without manifolds, into tmp_path/out."""
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    monkeypatch.setattr(paper, "SHIPPED", tmp_path / "nothing")
    (tmp_path / "out").mkdir()
    return ["evaluate", "paper", "--data", str(data), "-o", str(tmp_path / "out"), "--only", "figure7"]


@pytest.mark.parametrize("name", ["figure7.json", "figure7.png", "index.html"])
def test_files_of_others_where_results_would_stand_are_kept(tmp_path, one_part, capsys, name):
    mine = tmp_path / "out" / name
    mine.write_bytes(b"mine")
    assert main(one_part) == 2
    assert f"{name}: exists; add --force" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in mine.parent.iterdir()} == {mine: b"mine"}
    assert main([*one_part, "--force"]) == 0
    assert mine.read_bytes() != b"mine"
    mine.unlink()
    mine.mkdir()
    assert main([*one_part, "--force"]) == 2
    assert f"{name}: is a folder" in capsys.readouterr().err


def test_a_part_can_be_made_anew_and_another_beside_it(tmp_path, one_part):
    for only in ("figure7", "figure7", "figure6", "figure6,figure7"):
        assert main([*one_part[:-1], only]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Figure 6" in page and "Figure 7" in page


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"part": "figure5"}', b'{"title": "", "clips": 1, "rows": [1]}'])
def test_another_parts_json_that_is_damaged_is_named_before_anything_is_measured(tmp_path, one_part, capsys, content):
    (tmp_path / "out" / "figure5.json").write_bytes(content)
    assert main(one_part) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "figure5.json: damaged, or not of evaluate paper" in err
        and "--only figure7,figure5 --force" in err
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["figure5.json"]


def test_all_parts_whose_json_is_damaged_are_named_and_made_anew_at_once(tmp_path, one_part, capsys):
    for part in ("figure5", "figure6"):
        (tmp_path / "out" / f"{part}.json").write_bytes(b"{")
    assert main([*one_part[:-1], "figure6"]) == 2
    assert "--only figure6,figure5 --force" in capsys.readouterr().err
    assert main(one_part) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "figure5.json, " in err and "figure6.json: damaged" in err
    assert "make them anew with --only figure7,figure5,figure6 --force" in err
    assert main([*one_part[:-1], "figure7,figure5,figure6", "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder of data"),
        (["--only", "figure9"], "unknown part 'figure9'"),
        (["--manifolds", "nowhere"], "nowhere: no such folder of manifolds"),
        (["--pictures", "0"], "--pictures 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, data, capsys, arguments, message):
    given = ["--data", str(data), "-o", str(tmp_path / "out"), *arguments]
    assert main(["evaluate", "paper", *given]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_place_is_named(tmp_path):
    with pytest.raises(InputError, match="no such"):
        evaluate_paper(tmp_path, tmp_path / "out", only=("figure3",))


@pytest.mark.parametrize(
    ("arguments", "share", "message"),
    [((), "1", "usage: scripts/reproduce.sh DATA"), ((".",), "2", "SHARE=2 is not"), ((".",), "none", "SHARE=none is not")],
)
def test_reproduce_refuses_what_it_cannot_use(arguments, share, message):
    script = Path(__file__).parent.parent / "scripts" / "reproduce.sh"
    result = subprocess.run(
        ["bash", str(script), *arguments], env=os.environ | {"SHARE": share}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_picture_among_cifar10s_is_named(tmp_path):
    (tmp_path / "small").mkdir()
    member = tarfile.TarInfo(f"test/{sets.CLASSES[0]}/7.png")
    member.size = 9
    with tarfile.open(tmp_path / "small/cifar10_jpeg.tar.xz", "w:xz") as archive:
        archive.addfile(member, io.BytesIO(b"no PNG 12"))
    with pytest.raises(InputError, match=r"7\.png"):
        sets.load_cifar10(tmp_path, "test")
