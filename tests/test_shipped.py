"""The manifolds in the package keep what their cards and docs/results.md promise. Figures need the data; the rest does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mcode import manifold
from mcode.coders import range as ranges
from mcode.latents import quantise, symbols
from mcode.testclip import render_frames
from mcode.transcode import decode_file, encode_file

SHIPPED = sorted((Path(manifold.__file__).parent / "manifolds").glob("*.safetensors"))


def test_general_and_talking_head_ship():
    assert {"general", "talking-head"} <= {p.stem for p in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_manifold_is_whole_small_and_has_a_card(path):
    info = manifold.read_info(path)
    assert manifold.verify(path) == info.id
    assert info.file_bytes < 25_000_000
    for key in ("title", "data", "licence", "training_command", "not_for", "scores"):
        assert info.card.get(key), key


def test_the_cards_scores_are_those_of_the_results():
    results = Path(__file__).parent.parent / "docs" / "results"
    head = {
        (row["codec"], row["setting"]): f"{row['kbps']:.2f} kbit/s, {row['psnr_db']:.2f} dB, VGG19 distance {row['vgg']:.4f}"
        for row in json.loads((results / "paper/talking-head.json").read_text())["rows"]
    }
    linear = head["linear, M = 50", "N = 8"].replace("VGG19 distance ", "")
    assert manifold.read_info("talking-head").card["scores"] == {
        "grid_s1_dev_n8": head["NCode residual, M = 100", "N = 8"],
        "linear_50_there": linear,
    }
    found = {}
    for row in json.loads((results / "kodak-images.json").read_text())["rows"]:
        if row["codec"] == "MCode general" and row["setting"].endswith(", range"):
            seen = f"{row['psnr_db']:.2f} dB, VGG19 {row['vgg19']:.3f}, MobileNet {row['mobilenet']:.3f}"
            found[f"kodak_{row['setting'][:9].replace(' ', '_')}"] = f"range {row['bpp']:.3f} bit/pixel, {seen}"
    scores = manifold.read_info("general").card["scores"]
    assert {key: text.partition(", ")[2] for key, text in scores.items()} == found and len(found) == 8


def test_general_is_small():
    assert manifold.read_info("general").parameters <= 12_000_000


@pytest.fixture(scope="module")
def general():
    return manifold.load("general", "cpu")


def pan(shift: int) -> tuple[np.ndarray, np.ndarray]:
    wide = next(iter(render_frames("pan", 0.1, 10, (560, 384), 0))).rgb
    return wide[:, :512], wide[:, shift : 512 + shift]


def fade(before: float, after: float) -> tuple[np.ndarray, np.ndarray]:
    slide = np.full((384, 512, 3), 255.0)
    slide[100:140, 60:400] = 20
    return (slide * before).astype(np.uint8), (slide * after).astype(np.uint8)


@pytest.mark.parametrize("pictures", [pan(0), pan(2), pan(16), fade(0, 0.25), fade(0, 0.5), fade(0.5, 1), fade(1, 0.7)])
@pytest.mark.parametrize("quality", [1, 3, 5])
def test_a_large_keyframe_is_coded_as_the_kind_that_takes_the_fewest_bits(general, pictures, quality, monkeypatch):
    """With a still camera a delta, with a fast one the whole; in a fade of something flat it may be either."""
    before, after = (quantise(general.analyse(rgb[None])[0], general.gain(quality)) for rgb in pictures)

    def size() -> int:
        return sum(map(len, ranges.encode(after, before, 1, quality, general.hyper)))

    chosen, tried = size(), []
    for kind in (ranges.DELTA, ranges.WITH_Z):
        monkeypatch.setattr(ranges, "_kinds", lambda part, base, kind=kind: (kind,))
        tried.append(size())
    assert chosen <= 1.02 * min(tried)


def test_encode_without_a_manifold_uses_general_and_the_video_comes_back(clip, tmp_path):
    report = encode_file(clip, tmp_path / "c.mcode", n=4)
    assert (report.manifold, report.frames) == ("general", 50)
    assert report.psnr_db > 22
    assert decode_file(tmp_path / "c.mcode", tmp_path / "c.mp4").frames == 50


def test_more_quality_is_more_bits_and_more_psnr(general, clip, tmp_path):
    made = [encode_file(clip, tmp_path / f"{q}.mcode", manifold=general, n=8, quality=q) for q in (1, 4, 8)]
    assert made[0].payload_bytes < made[1].payload_bytes < made[2].payload_bytes
    assert made[0].psnr_db < made[1].psnr_db < made[2].psnr_db


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (64, 48), (8, 1024)])
def test_general_takes_any_size(general, size):
    rgb = np.random.default_rng(1).integers(0, 256, (1, size[1], size[0], 3)).astype(np.uint8)
    latent = general.analyse(rgb)
    assert latent.shape[1:] == general.latent_shape(*size)
    assert general.synthesise(latent, *size).shape == rgb.shape


@pytest.mark.parametrize("colour", [(0, 0, 255), (255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 255, 255), (255, 0, 255)])
def test_flat_saturated_colours_come_back_flat(general, colour):
    """A lattice of dots every 4 pixels, spread by 2.7 levels on blue, lay over them before training drew such pictures."""
    rgb = np.broadcast_to(np.array(colour, np.uint8), (1, 192, 256, 3))
    latent = symbols(general.analyse(rgb)[0], general.gain(5), general.zero_margin(5)) * general.inverse(5).view(-1, 1, 1)
    error = general.synthesise(latent[None], 256, 192)[0].astype(float) - rgb[0]
    assert error[48:-48, 48:-48].std(axis=(0, 1)).max() < 1.5
    assert np.abs(error[16:-16, 16:-16]).max() < 13 and np.abs(error).max() < 42


def test_bfloat16_and_float32_differ_by_less_than_a_tenth_of_a_decibel(general):
    from mcode.evaluation.metrics import psnr

    exact = manifold.load("general", "cpu", precision="float32")
    fast = manifold.load("general", "cpu", precision="bfloat16")
    frames = np.stack([f.rgb for f in render_frames("arms", 0.2, 10, (160, 96), 0)])
    scores = []
    for model in (exact, fast):
        gain, inverse = model.gain(5).view(-1, 1, 1), model.inverse(5).view(-1, 1, 1)
        decoded = model.synthesise((model.analyse(frames) * gain).round() * inverse, 160, 96)
        scores.append(np.mean([psnr(a, b) for a, b in zip(frames, decoded, strict=True)]))
    assert abs(scores[0] - scores[1]) < 0.1


def test_talking_head_keeps_its_promise(data_dir, tmp_path):
    model = manifold.load("talking-head", "cpu")
    made = [
        encode_file(c, tmp_path / "c.mcode", manifold=model, n=8, size=(128, 128), audio="none", force=True)
        for c in sorted((data_dir / "grid_s1" / "dev").glob("*.mpg"))
    ]
    assert max(m.rate_kbps for m in made) <= 0.7
    assert np.mean([m.psnr_db for m in made]) >= 33.5


def test_general_beats_jpeg_at_equal_bits_in_psnr_and_far_more_to_the_eye(data_dir, general):
    from mcode.codec import Decoder, Encoder
    from mcode.evaluation.features import FeatureDistances
    from mcode.evaluation.metrics import psnr
    from mcode.evaluation.stills import jpeg, read_images
    from mcode.frame import Frame

    distances = FeatureDistances(data_dir / "perceptual")
    for rgb in read_images(data_dir / "stills" / "kodak")[3:24:10]:
        height, width = rgb.shape[:2]
        jpeg_bytes, jpeg_rgb = jpeg(10).code(rgb)
        for quality in range(8, 0, -1):
            (packet,) = Encoder(general, width, height, n=1, quality=quality).push(Frame(rgb, 0))
            if len(packet.to_sample(1)) <= jpeg_bytes:
                break
        (decoded,) = Decoder(general).push(packet)
        assert len(packet.to_sample(1)) <= jpeg_bytes
        assert psnr(rgb, decoded.rgb) > psnr(rgb, jpeg_rgb) + 0.2
        ours, theirs = distances(rgb, decoded.rgb), distances(rgb, jpeg_rgb)
        assert ours["vgg"] < 0.8 * theirs["vgg"]
        assert ours["mobilenet"] < 0.85 * theirs["mobilenet"]


@pytest.mark.parametrize(("quality", "bpp", "mobilenet"), [(4, 0.175, 0.19), (6, 0.36, 0.125)])
def test_general_keeps_its_promise_on_kodak(data_dir, general, quality, bpp, mobilenet):
    """Every sixth picture; the card and docs/results.md have all."""
    from mcode.evaluation.features import FeatureDistances
    from mcode.evaluation.stills import mcode_still, rd_table, read_images

    images = read_images(data_dir / "stills" / "kodak")[2::6]
    (row,) = rd_table(images, [mcode_still(general, quality)], FeatureDistances(data_dir / "perceptual"))
    assert row.bpp <= bpp and row.mobilenet <= mobilenet
