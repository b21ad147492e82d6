"""Manifold files: named by the hash of their content, refused in one line when damaged, foreign or missing."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from mcode import manifold
from mcode.coders import CodeTables
from mcode.errors import InputError, ManifoldError

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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_finite_number_is_not_loaded(tmp_path, value, monkeypatch):
    with monkeypatch.context() as careless:
        careless.setattr(manifold, "_not_finite", lambda tensors: None)
        save(tmp_path / "a.safetensors", tensors=tensors() | {"mean": np.full(96, value, np.float16)})
    with pytest.raises(ManifoldError, match=r"a.safetensors: 'mean' holds what is no finite number; take another manifold$"):
        manifold.load(tmp_path / "a.safetensors")


def test_a_user_without_a_home_has_the_other_folders(monkeypatch, tmp_path):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv(manifold.SEARCH_VARIABLE, raising=False)
    assert manifold.folders() == [manifold.PACKAGED] and "general" in {info.name for info in manifold.list_manifolds()}
    with pytest.raises(ManifoldError, match="is not installed; put its .safetensors file, from whoever encoded"):
        manifold.find_id(bytes(8))
    with pytest.raises(InputError, match="set XDG_DATA_HOME"):
        manifold.user_folder()


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


def test_a_folder_that_may_not_be_read_leaves_the_others(file, monkeypatch, tmp_path):
    locked = tmp_path / "locked" / "manifolds"

    def lock(name):
        plain = getattr(os, name)

        def refusing(path=".", *arguments, **options):
            if isinstance(path, str | Path) and locked in (Path(path), *Path(path).parents):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return plain(path, *arguments, **options)

        monkeypatch.setattr(os, name, refusing)

    for name in ("stat", "listdir", "scandir"):  # for root there are no such folders
        lock(name)
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, f"{locked}{os.pathsep}{tmp_path / 'none'}{os.pathsep}{file.parent}")
    info = manifold.read_info("tiny")
    assert manifold.find(info.id) == manifold.find_id(bytes.fromhex(info.id)) == file
    skipped = []
    assert {"tiny", "general"} <= {found.name for found in manifold.list_manifolds(skipped)}
    assert skipped == [f"{locked}: cannot be read (Permission denied); its manifolds are left out"]
    assert file in manifold.installed_files()


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
    model = manifold.load(file, "cpu", precision="float32")
    y = torch.tensor([900.0, -400.0, 250.0]).view(1, M, 1, 1)
    x = model.net.synthesis(y)
    assert torch.allclose(model.net.analysis(x), y, atol=0.5)


def test_precisions_and_devices_are_named(file):
    for wrong in ("foo", "bf16", "float64", "float16"):
        with pytest.raises(InputError, match=f"precision '{wrong}' is not known; use one of auto, float32, bfloat16, int8"):
            manifold.load(file, "cpu", precision=wrong)
    assert manifold.load(file, torch.device("cpu")).device == torch.device("cpu")
    with pytest.raises(InputError, match="device 'meta' is not known"):
        manifold.load(file, torch.device("meta"))


@pytest.fixture(scope="module")
def general():
    return manifold.load("general", "cpu")


@pytest.mark.parametrize(
    ("form", "copied"),
    [
        *(("", copy.deepcopy), ("in_floats", copy.deepcopy)),
        ("in_integers", lambda model: pickle.loads(pickle.dumps(model))),
    ],
)
def test_a_manifold_can_be_copied_and_pickled_in_every_form(general, form, copied):
    model = getattr(general, form)() if form else general
    rgb = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3), np.uint8)
    twin = copied(model)
    assert twin is not model and repr(twin) == repr(model)
    assert torch.equal(twin.analyse(rgb), model.analyse(rgb))
    latents = model.analyse(rgb)
    assert np.array_equal(twin.synthesise(latents, 48, 32), model.synthesise(latents, 48, 32))


def test_a_pickled_manifold_keeps_its_precision_and_names_a_file_that_is_gone_or_another(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    model = manifold.load(file.name, "cpu", precision="float32")
    pickled = pickle.dumps(model)
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).precision == "float32" and copy.copy(model).net is model.net
    other = save(file, tensors=tensors() | {"step": np.array([4, 3], np.float32)})
    with pytest.raises(ManifoldError, match=rf"{file}: it is {other} now, .* was {model.id}"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(ManifoldError, match=rf"{file}: no such manifold file"):
        pickle.loads(pickled)


FORKING = """
import os, sys
import numpy as np
import mcode
model = mcode.load("general", "cpu")
rgb = np.full((1, 256, 256, 3), 90, np.uint8)
model.synthesise(model.analyse(rgb), 256, 256)
if (child := os.fork()) == 0:
    for own in (model, mcode.load("general", "cpu")):
        own.synthesise(own.analyse(rgb), 256, 256)
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_computes():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", FORKING], env=environment, start_new_session=True) as program:
        try:
            assert program.wait(60) == 7
        finally:
            if program.returncode is None:
                os.killpg(program.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "rgb",
    [
        *(np.zeros((1, HEIGHT, WIDTH, 3)), np.zeros((1, HEIGHT, WIDTH, 3), int), np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        *(np.zeros((1, HEIGHT, WIDTH, 4), np.uint8), np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)),
        np.zeros((1, 3, HEIGHT, WIDTH), np.uint8),
    ],
    ids=lambda rgb: f"{rgb.dtype} {rgb.shape}",
)
def test_what_is_no_batch_of_pictures_is_refused(file, rgb):
    with pytest.raises(ValueError, match=re.escape(f"pictures are uint8 (B, H, W, 3), not {rgb.dtype} {rgb.shape}")):
        manifold.load(file, "cpu").analyse(rgb)


def test_latents_of_another_size_are_refused(general):
    model = general
    latents = model.analyse(np.zeros((2, 64, 96, 3), np.uint8))
    channels, h, w = model.latent_shape(200, 200)
    for wrong, size in ((latents, (200, 200)), (latents[0], (96, 64)), (latents[:, :-1], (96, 64))):
        with pytest.raises(ValueError, match=re.escape(f"latents are {tuple(wrong.shape)}")):
            model.synthesise(wrong, *size)
    with pytest.raises(ValueError, match=re.escape(f"of 200x200 (B, {channels}, {h}, {w})")):
        model.synthesise(latents, 200, 200)


def test_latents_of_other_precision_and_none_at_all_are_taken(general):
    latents = general.analyse(np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8))
    assert np.array_equal(general.synthesise(latents.double(), 96, 64), general.synthesise(latents, 96, 64))
    assert general.synthesise(latents[:0], 96, 64).shape == (0, 64, 96, 3)


@pytest.mark.filterwarnings("error")
def test_pictures_that_cannot_be_written_and_views_are_taken_without_a_warning(file):
    rgb = np.random.default_rng(0).integers(0, 255, (1, HEIGHT, WIDTH, 3), np.uint8)
    model = manifold.load(file, "cpu")
    fixed = np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape)
    assert torch.equal(model.analyse(fixed), model.analyse(rgb))
    assert torch.equal(model.analyse(rgb[:, :, ::-1][:, :, ::-1]), model.analyse(rgb))
