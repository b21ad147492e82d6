"""Learning a linear manifold from footage: one pass, bounded memory, the same components as one large decomposition."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mcode import manifold
from mcode.errors import InputError, ManifoldError
from mcode.frame import Frame
from mcode.training import adapt
from mcode.training.adapt import adapt_linear, principal_components
from mcode.transcode import encode_file
from mcode.video import FrameReader, FrameWriter


def test_streamed_components_equal_one_large_decomposition():
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((6, 40)) * np.array([30, 20, 12, 7, 4, 2.0])[:, None]
    data = torch.from_numpy((rng.standard_normal((300, 6)) @ mixing + 50 + 0.1 * rng.standard_normal((300, 40))).astype("f4"))
    mean, rows, frames = principal_components(iter(data.split(64)), 6)
    whole_mean = data.mean(0)
    _, _, right = torch.linalg.svd(data - whole_mean, full_matrices=False)
    assert frames == 300
    assert torch.allclose(mean, whole_mean, atol=1e-3)
    assert torch.allclose((rows @ right[:6].T).abs(), torch.eye(6), atol=2e-2)
    assert all(row[row.abs().argmax()] > 0 for row in rows)


def test_blocks_of_other_lengths_give_the_same_result():
    data = torch.randn(200, 30, generator=torch.Generator().manual_seed(2)) * torch.linspace(9, 0.1, 30)
    a = principal_components(iter(data.split(50)), 4)
    b = principal_components(iter(data.split(200)), 4)
    assert torch.allclose(a[1], b[1], atol=1e-2)


def test_a_learned_manifold_codes_its_footage(clip, tmp_path):
    path = tmp_path / "me.safetensors"
    report = adapt_linear([clip], path, m=12, size=(48, 32))
    assert report.frames == 50 and report.m == 12
    assert report.manifold_id == manifold.verify(path)
    assert abs(report.quantised_loss_db) < 0.3
    coded = encode_file(clip, tmp_path / "c.mcode", manifold=path, n=2)
    assert coded.fit > 0.95
    assert coded.psnr_db > report.psnr_db - 2
    assert coded.rate_kbps < 6


def test_same_footage_same_manifold(clip, tmp_path):
    a = adapt_linear([clip], tmp_path / "a.safetensors", m=6, size=(32, 32))
    b = adapt_linear([clip], tmp_path / "b.safetensors", m=6, size=(32, 32))
    assert a.manifold_id == b.manifold_id


def test_footage_whose_name_is_no_utf_8_leaves_a_manifold_that_loads(clip, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        odd.symlink_to(clip)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    path = tmp_path / os.fsdecode(b"h\xe9ad.safetensors")
    adapt_linear([odd], path, m=4, size=(32, 32))
    loaded = manifold.load(path, "cpu")
    assert loaded.name == "h\N{REPLACEMENT CHARACTER}ad"
    assert loaded.info.title == "linear manifold of caf\N{REPLACEMENT CHARACTER}.mp4"


def test_a_card_that_no_reader_would_take_is_not_written(clip, tmp_path):
    path = tmp_path / "me.safetensors"
    with pytest.raises(ManifoldError, match=r"me\.safetensors: not written.*card holds half a character"):
        adapt_linear([clip], path, m=4, size=(32, 32), card={"note": "\udce9"})
    assert not list(tmp_path.iterdir())


def test_footage_of_another_scene_is_warned_of(clip, tmp_path):
    from mcode.testclip import write_clip

    path = tmp_path / "me.safetensors"
    adapt_linear([clip], path, m=8, size=(48, 32))
    other = tmp_path / "pan.mp4"
    write_clip(other, scene="pan", seconds=0.6, size=(96, 64))
    report = encode_file(other, tmp_path / "o.mcode", manifold=path)
    assert report.fit < 0.9
    (warning,) = [w for w in report.warnings if "does not suit" in w]
    assert "mcode adapt" in warning and "\n" not in warning


def test_unusable_requests_are_refused_before_anything_is_written(clip, tmp_path):
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(b"mine")
    with pytest.raises(InputError, match="--force"):
        adapt_linear([clip], kept)
    with pytest.raises(InputError, match="safetensors"):
        adapt_linear([clip], tmp_path / "me.bin")
    picture = tmp_path.parent / "one.png"
    with FrameWriter(picture, width=96, height=64, force=True) as writer:
        writer.push(next(iter(FrameReader(clip))))
    with pytest.raises(InputError, match="^one frame is too few to learn from; give a video, or more pictures$"):
        adapt_linear([picture], tmp_path / "many.safetensors", m=1, size=(16, 16))
    with pytest.raises(InputError, match="too few for 60"):
        adapt_linear([clip], tmp_path / "many.safetensors", m=60, size=(16, 16))
    assert kept.read_bytes() == b"mine" and [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]


def test_an_output_that_cannot_be_written_is_refused_before_reading(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "FrameReader", None)
    (tmp_path / "file").touch()
    (tmp_path / "me.safetensors").mkdir()
    with pytest.raises(InputError, match="file is a file, not a folder; choose another place$"):
        adapt_linear([clip], tmp_path / "file" / "me.safetensors")
    with pytest.raises(InputError, match="me.safetensors: is a folder; choose another name$"):
        adapt_linear([clip], tmp_path / "me.safetensors", force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="not allowed to write into .*; choose another place$"):
        adapt_linear([clip], tmp_path / "new" / "me.safetensors")
    assert not (tmp_path / "new").exists()


def test_blocks_of_large_frames_are_fewer_frames_and_give_the_same_manifold(clip, tmp_path, monkeypatch):
    whole = adapt_linear([clip], tmp_path / "whole.safetensors", m=6, size=(48, 32))
    lengths = []
    decompose = adapt.principal_components
    monkeypatch.setattr(adapt, "BLOCK_BYTES", 7 * 48 * 32 * 3 * 4, raising=False)
    monkeypatch.setattr(
        adapt, "principal_components", lambda blocks, m: decompose((lengths.append(len(b)) or b for b in blocks), m)
    )
    parts = adapt_linear([clip], tmp_path / "parts.safetensors", m=6, size=(48, 32))
    assert lengths == [7] * 7 + [1]
    assert abs(parts.psnr_db - whole.psnr_db) < 0.01


def test_a_size_whose_components_fill_the_memory_is_refused_before_reading(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "FrameReader", None)
    with pytest.raises(InputError, match=r"^--size 4096x4096: 50 coordinates of .* need 18 GiB .*; use --size 1655x1655 or"):
        adapt_linear([clip], tmp_path / "me.safetensors", m=50, size=(4096, 4096))


def test_too_few_frames_are_told_before_their_components_are_filled_up(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: pytest.fail(f"allocates {size}") if size[0] else torch.empty(0))
    with pytest.raises(InputError, match="^50 frames are too few for 4096 coordinates; use --m 25 or more footage$"):
        adapt_linear([clip], tmp_path / "me.safetensors", m=4096, size=(48, 48))


def test_footage_of_few_distinct_frames_is_coded_as_well_as_reported(tmp_path):
    rng = np.random.default_rng(4)
    slides = np.repeat(np.repeat(rng.integers(0, 2, (3, 6, 8, 3), np.uint8) * 255, 8, 1), 8, 2)
    deck = tmp_path / "deck.mkv"
    with FrameWriter(deck, width=64, height=48) as writer:
        for i in range(36):
            writer.push(Frame(slides[i // 12], i * 3600))
    path = tmp_path / "deck.safetensors"
    report = adapt_linear([deck], path, m=12, size=(64, 48))
    for quality in (1, 5, 8):
        for coder in ("huffman", "fixed"):
            coded = encode_file(deck, tmp_path / "deck.mcode", manifold=path, n=4, quality=quality, coder=coder, force=True)
            assert coded.psnr_db > min(report.psnr_db, 50) - 1, (quality, coder)


def test_no_difference_of_two_frames_wraps():
    coordinates = np.array([[9000.0, 1.0], [-9000.0, 2.0]], np.float32)
    for error in (0.0, 1e9):
        symbols = np.rint(coordinates / adapt._steps(coordinates, error, 3 * 64 * 48)[:, None, None])
        assert np.abs(np.diff(symbols, axis=1)).max() <= 32767


def test_more_coordinates_than_a_picture_has_values_are_refused_before_reading(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "FrameReader", None)
    with pytest.raises(InputError, match="^--m 49: pictures of 4x4 have 48 values; use --m 48 or fewer, or a larger --size$"):
        adapt_linear([clip], tmp_path / "me.safetensors", m=49, size=(4, 4))
