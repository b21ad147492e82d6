"""Latents to symbols and back, and the margin around zero that only the encoder knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcode import latents
from mcode.codec import Decoder, Encoder
from mcode.errors import InputError
from mcode.latents import choose_device, dequantise, fast_dtype, interpolate, quantise, symbols
from tests.block_means import BlockMeans, grey


def test_symbols_are_the_nearest_integers_and_stay_in_int16():
    latent = torch.tensor([[-1.24, 0.24, 0.26, 70_000.0]]).view(1, 1, 4)
    found = quantise(latent, torch.tensor([2.0]))
    assert found.dtype == np.int16 and found.flatten().tolist() == [-2, 0, 1, 32767]


def test_the_margin_widens_zero_alone():
    latent = torch.tensor([0.59, 0.61, -0.59, -0.61, 1.49, 1.51]).view(1, 1, 6)
    found = quantise(latent, torch.ones(1), torch.tensor([0.1]))
    assert found.flatten().tolist() == [0, 1, 0, -1, 1, 2]


def test_each_channel_has_its_own_margin_and_each_picture_its_own_quality():
    latent = torch.full((2, 2, 1, 1), 0.7)
    margin = torch.tensor([[0.0, 0.3], [0.3, 0.0]])
    assert symbols(latent, torch.ones(2, 2), margin).flatten().tolist() == [1, 0, 0, 1]


def test_dequantised_symbols_are_multiples_of_the_step():
    back = dequantise(np.array([[[3]], [[-2]]], np.int16), torch.tensor([0.5, 2.0]))
    assert back.flatten().tolist() == [1.5, -4.0]


def test_the_middle_of_two_latents_is_their_mean():
    a, b = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 4.0)
    assert interpolate(a, b, torch.tensor([0.25, 0.5, 1.0])).flatten().tolist() == [1.0, 2.0, 4.0]


def test_a_device_that_is_not_there_is_refused_and_told_what_to_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda is not available on this machine; use --device cpu or auto"):
        choose_device("cuda")


@pytest.mark.parametrize(("level", "seen"), [(130, 130), (131, 131)])
def test_a_manifold_without_a_margin_is_coded_as_ever(level, seen):
    assert decoded(BlockMeans(), level) == pytest.approx(seen, abs=1)


def test_the_encoder_asks_the_manifold_for_its_margin_and_the_decoder_does_not():
    class Margin(BlockMeans):
        def zero_margin(self, quality: int) -> torch.Tensor:
            return torch.full((3,), 1.2)

    class Deaf(BlockMeans):
        def zero_margin(self, quality: int) -> torch.Tensor:
            raise AssertionError("a decoder needs no margin")

    assert decoded(Margin(), 131, Deaf()) == 128  # a symbol of 1.5, within 1.7 of zero
    assert decoded(Margin(), 132, Deaf()) == 132


def decoded(model: BlockMeans, level: int, other: BlockMeans | None = None) -> int:
    """The grey level that comes back."""
    decoder = Decoder(other or model)
    (packet,) = Encoder(model, 16, 8, n=1).push(grey(level, 0))
    (frame,) = decoder.push(packet)
    return int(frame.rgb[0, 0, 0])


@pytest.mark.parametrize(
    ("maker", "amx", "avx512", "wanted"),
    [
        ("GenuineIntel", True, True, torch.bfloat16),
        ("GenuineIntel", False, True, torch.float32),  # half as fast as float32 there
        ("AuthenticAMD", False, True, torch.bfloat16),
        ("AuthenticAMD", False, False, torch.float32),
        ("", False, True, torch.float32),
    ],
)
def test_bfloat16_on_processors_that_win_by_it(monkeypatch, maker, amx, avx512, wanted):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(latents, "_maker", lambda: maker)
    assert fast_dtype(torch.device("cpu")) is wanted


def test_who_made_this_processor(monkeypatch, tmp_path):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n")
    monkeypatch.setattr(latents, "Path", lambda _: listed)
    assert latents._maker.__wrapped__() == "AuthenticAMD"
    listed.unlink()
    monkeypatch.setattr(latents.platform, "processor", lambda: "Intel64 Family 6 Model 207 Stepping 2, GenuineIntel")
    assert latents._maker.__wrapped__() == "GenuineIntel"
    monkeypatch.setattr(latents.platform, "processor", lambda: "")
    assert latents._maker.__wrapped__() == ""
