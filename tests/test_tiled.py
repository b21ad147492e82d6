"""Large pictures in parts: they cover each position once, and fit together as if the picture had been computed whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from mcode import manifold
from mcode.cli import main
from mcode.codec import Decoder, Encoder
from mcode.coders import CodeTables
from mcode.config import to_dict
from mcode.errors import ManifoldError, WireError
from mcode.frame import Frame
from mcode.nets.compact import Compact
from mcode.nets.hific import CompactConfig
from mcode.nets.paper import Hific, MeanHific, PaperConfig
from mcode.nets.tiled import parts, reach
from mcode.packet import Packet, StreamHeader
from mcode.training.paper import save as save_paper

from .range_model import sample


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), st.integers(1, 900))
@example(40, 40, 3, 200)
@settings(max_examples=60)
def test_parts_cover_each_position_once_with_margins_as_wide_as_the_reach(height, width, reach, positions):
    seen = np.zeros((height, width), int)
    for rows, columns in parts(height, width, reach, positions):
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
        for part, length in ((rows, height), (columns, width)):
            assert part.low == max(0, part.start - reach) and part.high == min(length, part.stop + reach)
            assert len(range(length)[part.low : part.high][part.kept]) == part.stop - part.start > 0
        if math.isqrt(positions) >= 3 * reach:  # margins leave room
            assert (rows.high - rows.low) * (columns.high - columns.low) <= positions
    assert (seen == 1).all()


def test_reach_is_the_sum_over_the_convolutions():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 7, padding=3),  # 3 pixels
        nn.Conv2d(1, 1, 2, stride=2),  # nothing beyond its own
        nn.Conv2d(1, 1, 3, stride=2, padding=1),  # 1 of 2 pixels
        nn.Conv2d(1, 1, 3, padding=1),  # 4 pixels
        nn.Conv2d(1, 1, 1),
    )
    assert reach(net, net, torch.zeros(1, 1, 32, 32), 8, inwards=True) == -(-(3 + 2 + 4) // 4) + 1
    up = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1))
    assert reach(up, up, torch.zeros(1, 1, 8, 8), 8, inwards=False) == 2


def save(path, family):
    torch.manual_seed(1)
    if family == "compact":
        config = CompactConfig(6, (8, 8, 8), (1, 0, 1), (8, 8, 8, 8), (1, 1, 0, 1), (0, 2, 6), 1)
        net = Compact(6, config.analysis_widths, config.analysis_blocks, config.synthesis_widths, config.synthesis_blocks)
        described = to_dict(config) | {"family": "compact"}
    else:
        small = PaperConfig(channels=6, width=4, blocks=1, hyper=8)
        net, described = (MeanHific if family == "mean" else Hific)(small), to_dict(small)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    if family == "mean":
        tables = CodeTables.fit([sample(i, 8, 8, net.sent_channels) for i in range(4)])
        save_paper(path, net, net.state_dict(), tables, name=family, card={})
        return path
    ones = np.ones((1, 6), np.float32)
    manifold.save(
        path,
        kind="hific",
        name=family,
        config={"frame_size": None, "stride": 16, "qualities": 1, "network": described},
        tables=[CodeTables.fit([sample(i, 8, 8) for i in range(4)])],
        tensors={k: v.numpy() for k, v in net.state_dict().items()} | {"gain": ones, "inverse": ones},
        card={},
    )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifolds")
    return {family: save(folder / f"{family}.safetensors", family) for family in ("compact", "paper", "mean")}


def picture(width, height):
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("family", ["compact", "paper", "mean"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(317, 213), (1700, 30)])
def test_a_picture_in_parts_is_the_whole_one(files, family, precision, size):
    model = manifold.load(files[family], "cpu", precision=precision)
    rgb = picture(*size)[None]
    latents = whole = model.analyse(rgb)
    shown = model.synthesise(whole, *size)
    model.net.pixels_at_once = 160 * 160
    assert len(list(model._parts(*whole.shape[2:], model._reaches[1]))) > 1
    apart = model.analyse(rgb)
    if family == "mean":  # where z falls on the other side of a half, y - mean does too, but not y
        assert (apart[:, 6:] != whole[:, 6:]).float().mean() < (0.001 if precision == "float32" else 0.05)
        apart, whole = model.net.y_hat(apart), model.net.y_hat(latents)
    near = 1e-4 if precision == "float32" else 0.02  # sums in another order; bfloat16 holds 8 bits
    assert (apart - whole).abs().max() <= near * whole.abs().max()
    assert (apart - whole).abs().mean() <= 0.1 * near * whole.abs().mean()
    again = model.synthesise(latents, *size)
    assert again.shape == shown.shape
    difference = np.abs(again.astype(int) - shown)
    most, mean = (1, 0.01) if precision == "float32" else (24, 0.25)
    assert difference.max() <= most and difference.mean() < mean


@pytest.mark.parametrize("family", ["compact", "paper"])
def test_without_the_reach_there_would_be_seams(files, family):
    """The reach is needed: the test above would see parts that do not look far enough."""
    model = manifold.load(files[family], "cpu", precision="float32")
    rgb = picture(317, 213)[None]
    whole = model.analyse(rgb)
    shown = model.synthesise(whole, 317, 213)
    model.net.pixels_at_once = 160 * 160
    model.__dict__["_reaches"] = (0, 0)
    assert (model.analyse(rgb) - whole).abs().max() > 0.01 * whole.abs().max()
    assert np.abs(model.synthesise(whole, 317, 213).astype(int) - shown).max() > 1


def test_a_batch_of_large_pictures_is_taken_one_by_one(files):
    model = manifold.load(files["compact"], "cpu", precision="float32")
    rgb = np.stack([picture(300, 200), picture(300, 200)[::-1]])
    whole = model.analyse(rgb)
    model.net.pixels_at_once = 128 * 128
    torch.testing.assert_close(model.analyse(rgb), whole, rtol=1e-4, atol=1e-4)


def test_the_codec_takes_large_pictures_in_parts(files):
    model = manifold.load(files["compact"], "cpu", precision="float32")
    model.net.pixels_at_once = 128 * 128
    rgb = picture(300, 200)
    packets = Encoder(model, 300, 200, n=1).push(Frame(rgb, 0))
    (decoded,) = Decoder(model).push(packets[0])
    assert decoded.rgb.shape == rgb.shape


def test_pictures_beyond_all_memory_are_refused_before_anything_is_allocated(files, tmp_path, capsys):
    model = manifold.load(files["compact"], "cpu", precision="float32")
    with pytest.raises(ManifoldError, match="134 million pixels"):
        Encoder(model, 65535, 65535)
    assert model.latent_shape(15360, 8640) == (6, 540, 960)
    header = StreamHeader(bytes.fromhex(model.id), 65535, 65535, 65535, 65535, 1, "huffman", 1, 1)
    with pytest.raises(WireError, match="134 million pixels"):
        Decoder(model).push(Packet(0, 1, None, header, (b"",)))
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), picture(64, 64))
    command = ["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.mcode"), "-m", str(files["compact"])]
    assert main([*command, "--size", "20000x20000"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "20000x20000 is more than 134 million pixels; choose a smaller --size" in said[0]
    assert not (tmp_path / "a.mcode").exists()
