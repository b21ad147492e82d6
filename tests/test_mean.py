"""Latents around the mean that HiFiC's hyperprior predicts: the decoded picture is the one of the authors' quantisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcode import manifold
from mcode.codec import Decoder, Encoder
from mcode.coders import CodeTables
from mcode.config import to_dict
from mcode.errors import ManifoldError
from mcode.frame import Frame
from mcode.latents import quantise
from mcode.nets import paper
from mcode.nets.paper import reflected
from mcode.training.paper import fit_tables

from .small_hific import small_mean_manifold

SIZES = [(64, 128), (100, 70), (65, 40), (150, 33), (17, 9)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path, net = small_mean_manifold(tmp_path_factory.mktemp("mean"))
    return manifold.load(path, "cpu", precision="float32"), net


def picture(width: int, height: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(width: int, height: int, shift: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + shift
    return (128 + 90 * np.sin(np.stack([rows / 9, columns / 7, (rows + columns) / 11], -1))).astype(np.uint8)


def sent_by_the_formula(net, rgb: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """s, not rounded, and z as section 3.3 and the port have them, for one picture."""

    def pad(maps: torch.Tensor, factor: int) -> torch.Tensor:
        below, beside = (-side % factor for side in maps.shape[2:])
        reflected = below < maps.shape[2] and beside < maps.shape[3]
        return F.pad(maps, (0, beside, 0, below), mode="reflect" if reflected else "replicate")

    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = pad(net.encoder(pad(x, 16)), 4)
    z = torch.round(net.hyperprior.analysis(y))
    return y - net.hyperprior.synthesis_mean(z), z


def shown_by_the_formula(net, s: torch.Tensor, z: torch.Tensor, width: int, height: int) -> np.ndarray:
    x_hat = net.generator(s + net.hyperprior.synthesis_mean(z))[0, :, :height, :width]
    return ((x_hat + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    """Up to the rounding of sums."""
    difference = np.abs(a.astype(int) - b)
    assert a.shape == b.shape and difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("coder", ["huffman", "fixed", "range"])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_a_picture_comes_back_rounded_around_the_means(small, coder, size):
    model, net = small
    rgb = picture(*size)
    (packet,) = Encoder(model, *size, n=1, coder=coder).push(Frame(rgb, 0))
    (frame,) = Decoder(model).push(packet)
    s, z = sent_by_the_formula(net, rgb)
    assert_same(frame.rgb, shown_by_the_formula(net, s.round(), z, *size))
    assert z.abs().max() > 2 and (s.round() - (s + net.hyperprior.synthesis_mean(z)).round()).abs().max() > 0
    plain = net.generator((s + net.hyperprior.synthesis_mean(z)).round())[0, :, : size[1], : size[0]]
    error = np.abs(frame.rgb.astype(int) - ((plain + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()).mean()
    assert error > 1  # rounding y itself, as before, gives another picture


@pytest.mark.parametrize("coder", ["huffman", "fixed", "range"])
@torch.inference_mode()
def test_frames_in_between_have_the_latents_and_the_side_information_in_between(small, coder):
    model, net = small
    width, height = 100, 70
    encoder, decoder = Encoder(model, width, height, n=4, coder=coder, dead_zone=0.5, cuts=False), Decoder(model)
    frames = [smooth(width, height, 3 * i) for i in range(9)]
    shown = [frame.rgb for i, rgb in enumerate(frames) for p in encoder.push(Frame(rgb, 3600 * i)) for frame in decoder.push(p)]
    assert len(shown) == 9
    parts = [sent_by_the_formula(net, frames[i]) for i in (0, 4, 8)]
    keyframes = [(s.round(), z) for s, z in parts]
    assert any((a != b).any() for a, b in zip(keyframes[0], keyframes[1], strict=True))
    for i, found in enumerate(shown):
        before, after = keyframes[max(0, (i - 1) // 4)], keyframes[-(-i // 4)]
        s, z = (torch.lerp(a, b, (i - 1) % 4 / 4 + 0.25 if i else 1.0) for a, b in zip(before, after, strict=True))
        assert_same(found, shown_by_the_formula(net, s, z, width, height))


@torch.inference_mode()
def test_the_dead_zone_holds_symbols_and_still_shows_what_is_sent(small):
    model, net = small
    encoder, decoder = Encoder(model, 96, 64, n=1), Decoder(model)
    for i in range(3):
        (packet,) = encoder.push(Frame(smooth(96, 64, i), 3600 * i))
        (frame,) = decoder.push(packet)
    s, z = sent_by_the_formula(net, smooth(96, 64, 2))
    difference = np.abs(frame.rgb.astype(int) - shown_by_the_formula(net, s.round(), z, 96, 64))
    held = torch.from_numpy(encoder._symbols[:6]).float()
    assert ((held - s[0]).abs()[..., :4, :6] < 0.6).all()
    assert difference.mean() < 15


def test_side_information_is_sent_as_integers_and_takes_a_twentieth_of_the_map(small):
    model, net = small
    latents = model.analyse(picture(128, 64)[None])
    assert latents.shape == (1, *model.latent_shape(128, 64)) == (1, 8, 4, 8) and model.latent_shape(129, 1) == (8, 4, 12)
    z = sent_by_the_formula(net, picture(128, 64))[1][0].detach()
    assert torch.equal(latents[0, 6:], latents[0, 6:].round())
    for channel in range(20):
        row, column = divmod(channel % 16, 4)
        assert torch.equal(latents[0, 6 + channel // 16, row::4, column::4], z[channel])
    assert not latents[0, 7, 1:4].any()  # 12 of the last channel's 16 are not there
    full = paper.PaperConfig()
    with torch.device("meta"):
        assert paper.MeanHific(full).sent_channels == 240


@torch.inference_mode()
def test_side_information_is_clipped_before_the_mean_is_taken(tmp_path):
    """`fixed` clips symbols; were z clipped after y - mean was taken, the decoder's mean would be another."""
    path, net = small_mean_manifold(tmp_path, bits=3)
    model = manifold.load(path, "cpu", precision="float32")
    rgb = picture(128, 64)
    latents = model.analyse(rgb[None])
    low, high = model._z_limits
    assert (low == model.tables(1).centres[6:].reshape(-1, 1, 1) - 4).all() and (high - low == 7).all()
    z = sent_by_the_formula(net, rgb)[1]
    assert z.abs().max() > 4 and (latents[:, 6:] >= low).all() and (latents[:, 6:] <= high).all()
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(net.y_hat(latents), net.encoder(x), atol=1e-4, rtol=1e-4)


def test_maps_are_reflected_to_multiples_or_repeated_where_too_small():
    x = torch.from_numpy(picture(100, 70)).permute(2, 0, 1)[None].float()
    wide = reflected(x, 16)
    assert wide.shape == (1, 3, 80, 112) and torch.equal(wide[..., :70, :100], x)
    assert torch.equal(wide[..., 70:, :100], x[..., 59:69, :].flip(2))
    assert torch.equal(wide[..., :70, 100:], x[..., 87:99].flip(3))
    small = reflected(x[:, :, :5], 16)
    assert small.shape == (1, 3, 16, 112) and (small[..., 5:, :100] == x[..., 4:5, :]).all()
    assert reflected(x[..., :64, :64], 16).shape == (1, 3, 64, 64)


def test_bits_are_those_of_what_is_sent():
    net = paper.MeanHific(paper.PaperConfig(channels=2, width=2, blocks=1, hyper=2)).eval()
    for parameter in net.hyperprior.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():  # mean 3, scale 2 everywhere
        net.hyperprior.synthesis_mean[-1].bias.fill_(3.0)
        net.hyperprior.synthesis_scale[-1].bias.fill_(2.0)
    y = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * 2
    symbols = torch.from_numpy(quantise(net.sent(y)[0].detach(), torch.ones(3)))[None].float()
    s = (y - 3).round()
    normal = torch.distributions.Normal(0.0, 2.0)
    expected = -(normal.cdf(s + 0.5) - normal.cdf(s - 0.5)).log2()
    with torch.no_grad():
        of_z = -2 * net.hyperprior.density(torch.zeros(1, 2, 1, 1)).log2().mean()
    assert net.bits(symbols) == pytest.approx(float(expected.sum() + of_z), rel=1e-4)


def test_tables_are_fitted_to_what_is_sent(small, monkeypatch):
    monkeypatch.setattr("mcode.training.paper.CLIP_SIZE", (64, 64))
    monkeypatch.setattr("mcode.training.paper.CLIP_SEEDS", 1)
    model, net = small
    rgb = picture(128, 64)
    fitted = fit_tables(net, [rgb])
    latents = model.analyse(rgb[None])[0]
    symbols = quantise(latents, model.gain(1))
    one = CodeTables.fit([symbols])
    assert (fitted.tables.centres == one.centres).all() and fitted.tables.bits[6:].min() >= 4
    assert (fitted.tables.bits[:6] == one.bits[:6]).all() and (fitted.tables.bits[6:] > one.bits[6:]).all()
    assert fitted.bits_per_pixel > 0


@torch.inference_mode()
def test_a_manifold_without_the_entry_rounds_y_itself_as_it_always_did(small, tmp_path):
    _, net = small
    ones = np.ones((1, 6), np.float32)
    state = {k: v.numpy() for k, v in net.state_dict().items()} | {"gain": ones, "inverse": ones}
    tables = [CodeTables.fit([np.zeros((6, 1, 1), np.int16)])]
    config = {"frame_size": None, "stride": 16, "qualities": 1, "network": to_dict(net.config)}

    def load(config):
        path = tmp_path / "old.safetensors"
        manifold.save(path, kind="hific", name="old", config=config, tables=tables, tensors=state, card={})
        return manifold.load(path, "cpu", precision="float32")

    model = load(config)
    rgb = picture(100, 70)
    assert model.latent_shape(100, 70) == (6, 5, 7)
    (packet,) = Encoder(model, 100, 70, n=1).push(Frame(rgb, 0))
    (frame,) = Decoder(model).push(packet)
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = net.encoder(F.pad(x, (0, 12, 0, 10), mode="replicate"))
    x_hat = ((net.generator(y.round())[0, :, :70, :100] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert_same(frame.rgb, x_hat.astype(np.uint8))
    assert model.net.bits(y.round()) > 0
    for wrong, words in (("mean", r"gains are \(1, 6\), and the networks have 8 channels"), ("median", "no quantiser median")):
        with pytest.raises(ManifoldError, match=words):
            load(config | {"quantiser": wrong})
