"""Manifold files: named by the hash of their content, refused in one line when damaged, foreign or missing."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from mcode import manifold
from mcode.coders import CodeTables
from mcode.errors import ManifoldError

M, WIDTH, HEIGHT = 3, 8, 4
TABLES = [CodeTables.fit([np.arange(-6, 6, dtype=np.int16).reshape(M, 2, 2)])] * 2


def tensors():
    rng = np.random.default_rng(5)
    return {
        "basis": rng.integers(-127, 128, (M, 3 * WIDTH * HEIGHT)).astype(np.int8),
        "basis_scale": np.full(M, 0.001, np.float32),
        "mean": np.full(3 * WIDTH * HEIGHT, 100, np.float16),
        "step": np.array([4, 2], np.float32),
    }


def save(path, **changes):
    options = {
        "kind": "linear",
        "name": path.stem,
        "config": {"m": M, "frame_size": [WIDTH, HEIGHT], "stride": None, "qualities": 2, "default_quality": 1},
        "tables": TABLES,
        "tensors": tensors(),
        "card": {"title": "a test"},
    }
    return manifold.save(path, **(options | changes))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save(path)
    return path


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError(f"Error preparing tensor: No space left on device (os error {errno.ENOSPC})")

    kept = tmp_path / "a.safetensors.part"
    kept.write_bytes(b"somebody's")
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path / "a.safetensors")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, os.fspath(tmp_path / "a.safetensors"))
    assert list(tmp_path.iterdir()) == [kept]


def test_info_comes_from_the_header_alone(file):
    info = manifold.read_info(file)
    assert (info.name, info.kind, info.frame_size, info.qualities) == ("tiny", "linear", (WIDTH, HEIGHT), 2)
    assert info.parameters == M * 96 + M + 96 + 2 and info.card["title"] == "a test"
    assert len(info.id) == 16 and info.file_bytes == file.stat().st_size


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_finite_number_is_not_written(tmp_path, value):
    with pytest.raises(ManifoldError, match=r"a.safetensors: not written, since step holds what is no finite number"):
        save(tmp_path / "a.safetensors", tensors=tensors() | {"step": np.array([4, value], np.float32)})
    assert not list(tmp_path.iterdir())


def test_same_content_same_id_and_the_card_does_not_count(tmp_path):
    a = save(tmp_path / "a.safetensors")
    b = save(tmp_path / "b.safetensors", card={"title": "corrected"})
    c = save(tmp_path / "c.safetensors", tensors=tensors() | {"step": np.array([4, 3], np.float32)})
    assert a == b != c


def test_verify_and_load_refuse_changed_weights(file):
    assert manifold.verify(file) == manifold.read_info(file).id
    data = bytearray(file.read_bytes())
    data[-3] ^= 64
    file.write_bytes(data)
    for check in (manifold.verify, manifold.load):
        with pytest.raises(ManifoldError, match=r"content is [0-9a-f]{16}, but the file says") as error:
            check(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 4, 8, 30, 500])
def test_a_file_cut_short_is_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ManifoldError):
        manifold.load(file)


def test_files_of_others_are_told_apart(tmp_path, file):
    text = tmp_path / "text.safetensors"
    text.write_text("hello, this is not a manifold")
    with pytest.raises(ManifoldError, match="not a manifold"):
        manifold.read_info(text)
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ManifoldError, match="not a manifold of MCode"):
        manifold.read_info(foreign)
    newer = tmp_path / "newer.safetensors"
    newer.write_bytes(file.read_bytes().replace(b'"mcode":"1"', b'"mcode":"2"'))
    with pytest.raises(ManifoldError, match=r"format 2; this version reads format 1"):
        manifold.read_info(newer)


def test_manifolds_are_found_by_name_path_and_id(file, monkeypatch):
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, str(file.parent))
    info = manifold.read_info("tiny")
    assert manifold.find(info.id) == manifold.find(file) == manifold.find_id(bytes.fromhex(info.id)) == file
    assert "tiny" in [m.name for m in manifold.list_manifolds()]


def test_a_missing_manifold_is_named_with_what_there_is(file, monkeypatch):
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, str(file.parent))
    with pytest.raises(ManifoldError, match=r"'huge'.*tiny"):
        manifold.find("huge")
    with pytest.raises(ManifoldError, match=r"needs manifold ffffffffffffffff.*--manifold"):
        manifold.find_id(b"\xff" * 8)


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    save(path, tensors=tensors() | {"mean": np.zeros(7, np.float16)})
    with pytest.raises(ManifoldError, match="do not fit"):
        manifold.load(path)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        save(tmp_path / "never.safetensors")
    assert not list(tmp_path.iterdir())


def test_fixed_sizes_are_checked(file):
    model = manifold.load(file, "cpu")
    assert model.latent_shape(WIDTH, HEIGHT) == (M, 1, 1)
    with pytest.raises(ManifoldError, match="8x4, not 16x16"):
        model.latent_shape(16, 16)
    with pytest.raises(ManifoldError, match=r"quality 3 is outside 1\.\.2"):
        model.gain(3)


def test_linear_analysis_gives_the_coordinates_that_synthesis_needs(file):
    import torch

    model = manifold.load(file, "cpu", precision="float32")
    y = torch.tensor([900.0, -400.0, 250.0]).view(1, M, 1, 1)
    x = model.net.synthesis(y)
    assert torch.allclose(model.net.analysis(x), y, atol=0.5)
