"""The scripts, given what they cannot use: one line that names it, status 2, and nothing written."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcode.coders.range import HyperConfig
from mcode.nets.hyper import Hyper
from mcode.training.hyper import passes

from .small_hific import small_manifolds

ROOT = Path(__file__).parent.parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with a compact manifold, an empty folder, and a file that is none of those asked for."""
    folder = tmp_path_factory.mktemp("scripts")
    plain, _ = small_manifolds(folder)
    plain.rename(folder / "tiny.safetensors")
    (folder / "empty").mkdir()
    (folder / "other").write_text("no tensors")
    return folder


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("build_manifolds", "general", "general needs --data"),
        ("build_manifolds", "talking-head --data empty", "talking-head needs --checkpoint"),
        ("build_manifolds", "paper", "paper needs --trained"),
        ("build_manifolds", "paper --trained gone", "--trained gone: no such folder"),
        ("build_manifolds", "general --data empty --checkpoint gone --output out", "gone: no readable checkpoint"),
        (
            "drop_dead_blocks",
            "gone.safetensors --data empty --output out.safetensors",
            "gone.safetensors: no such manifold file",
        ),
        ("drop_dead_blocks", "tiny.safetensors --data gone --output out.safetensors", "gone/stills/train: no such folder"),
        ("fit_tables", "gone.safetensors --data empty --output out.safetensors", "gone.safetensors: no such manifold file"),
        ("fit_tables", "tiny.safetensors --data empty --output out.safetensors", "empty/stills/train: no such folder"),
        ("measure_talking_head", "--data gone -o out", "gone/grid_s1/dev: no clips"),
        ("measure_talking_head", "--data empty --codecs vp9 -o out", "invalid choice: 'vp9'"),
        (
            "mix_synthesis",
            "gone.safetensors tiny.safetensors --share 0.5 --data empty --output out.safetensors",
            "gone.safetensors: no such",
        ),
        (
            "mix_synthesis",
            "tiny.safetensors tiny.safetensors --share 2 --data empty --output out.safetensors",
            "--share 2: a share is from 0",
        ),
        (
            "mix_synthesis",
            "tiny.safetensors tiny.safetensors --share 1 --data empty --output out.safetensors",
            "empty/stills/train: no such folder",
        ),
        ("soak", "gone.mp4 -o out", "gone.mp4: no such file"),
        ("soak", "testsrc --manifold gone.safetensors -o out", "gone.safetensors: no such manifold file"),
        (
            "train_eye",
            "--manifold gone.safetensors --data empty --output out.safetensors",
            "gone.safetensors: no such manifold file",
        ),
        (
            "train_eye",
            "--manifold tiny.safetensors --data empty --output out.safetensors",
            "empty/stills/train: no such folder",
        ),
        ("train_eye", "--data empty --beside other --output out.safetensors", "other: cannot be read as networks"),
        ("train_eye", "--data empty --shares a,b --output out.safetensors", "--shares: invalid"),
        ("train_hyper", "gone.safetensors --data empty --output out.safetensors", "gone.safetensors: no such manifold file"),
        (
            "train_hyper",
            "tiny.safetensors --data empty --start other --output out.safetensors",
            "other: no readable checkpoint",
        ),
        (
            "train_hyper",
            "tiny.safetensors --data empty --output out.foo",
            "out.foo: a manifold's file name ends in .safetensors",
        ),
        ("train_hyper", "tiny.safetensors --data empty --output no/out.safetensors", "no: no such folder; make it first"),
        ("train_hyper", "tiny.safetensors --data empty --output tiny.safetensors", "tiny.safetensors exists; name another"),
        ("train_hyper", "tiny.safetensors --data empty --output o.safetensors --levels 0", "--levels 0: the number of kinds"),
        (
            "train_hyper",
            "tiny.safetensors --data empty --output o.safetensors --deltas 13",
            "--deltas 13: the number of deltas",
        ),
        ("train_hyper", "tiny.safetensors --data empty --output o.safetensors --crops 0", "--crops 0: the number of crops"),
        ("train_hyper", "tiny.safetensors --data empty --output o.safetensors --rate nan", "--rate nan: a learning rate is"),
        ("train_eye", "--data empty --output no/out.safetensors", "no: no such folder; make it first"),
        ("train_eye", "--data empty --output o.safetensors --seconds 0", "--seconds 0: the training's length is more than 0"),
        ("drop_dead_blocks", "tiny.safetensors --data empty --output no/o.safetensors", "no: no such folder; make it first"),
        (
            "mix_synthesis",
            "a b --share 1 --data empty --output o.safetensors --pictures 0",
            "--pictures 0: the number of pictures",
        ),
        ("fit_tables", "tiny.safetensors --data empty --output no/o.safetensors", "no: no such folder; make it first"),
        ("measure_ranges", "tiny.safetensors --data empty --output no/o.safetensors", "no: no such folder; make it first"),
        ("train_hyper", "tiny.safetensors --data empty --output out.safetensors", "empty/stills/train: no such folder"),
    ],
)
def test_wrong_input_is_one_line(tiny, monkeypatch, capsys, script, arguments, message):
    monkeypatch.chdir(tiny)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *shlex.split(arguments)])
    before = sorted(tiny.iterdir())
    with pytest.raises(SystemExit) as ended:
        load(script).main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith(f"{script}.py: error: ") and message in line
    assert sorted(tiny.iterdir()) == before


def test_a_hyperpriors_training_goes_on_from_its_own_checkpoint(tmp_path):
    script = load("train_hyper")
    config = HyperConfig(8, 2, passes(8), levels=3)
    net = Hyper(config)
    script.keep(net, tmp_path / "a.checkpoint")
    again = script.joint(tmp_path / "a.checkpoint", HyperConfig(8, 2, passes(8), levels=8))
    assert again.config == config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_missing_is_told_in_the_scripts_own_terms(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_device.py", "cuda"])
    with pytest.raises(SystemExit) as ended:
        load("check_device").main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "cuda: not available on this machine; cpu is" in error and "--device" not in error


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """The shell scripts beside an environment whose Python writes down what it is asked for, and does nothing."""
    folder = tmp_path / "sources"
    (folder / "scripts").mkdir(parents=True)
    for name in ("environment.sh", "reproduce.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    (folder / "configs" / "paper").mkdir(parents=True)
    for name in ("paper/a.toml", "talking-head.toml"):
        (folder / "configs" / name).write_text("steps = 10\n")
    (folder / "pyproject.toml").write_text("[project]\n")
    for python, does in ((".venv/bin/python", f'echo "$*" >>{folder}/asked'), ("bin/python3", "echo Python 3.11.0")):
        path = folder / python
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
    return folder


def asked(sources: Path, *command: str) -> list[str]:
    """What the environment's Python is asked for by this command, beside the sources."""
    log = sources / "asked"
    log.unlink(missing_ok=True)
    subprocess.run(["bash", *command], cwd=sources.parent, check=True, timeout=60, capture_output=True)
    return log.read_text().splitlines() if log.exists() else []


def made(sources: Path, extras: str) -> list[str]:
    plain = "install_libraries() { :; }; install_torch() { :; }"
    return asked(sources, "-euc", f"cd sources; . scripts/environment.sh; {plain}; make_environment {extras}")


def test_an_environment_that_holds_more_is_left_alone(sources):
    assert made(sources, "player,live") == ["-m pip install -q -e .[player,live]"]
    assert made(sources, "player,live") == made(sources, "live") == []
    assert made(sources, "live,evaluate") == ["-m pip install -q -e .[player,live,evaluate]"]
    assert made(sources, "evaluate") == made(sources, "player,live") == []
    (sources / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert made(sources, "player") == ["-m pip install -q -e .[player]"]


def test_reproduce_takes_folders_from_where_it_is_called(sources, tmp_path):
    (tmp_path / "data").mkdir()
    made(sources, "evaluate")
    *trained, measured = asked(sources, "sources/scripts/reproduce.sh", "data", "out")
    assert len(trained) == 2 and all(f"--data {tmp_path}/data --out {tmp_path}/out/manifolds/" in line for line in trained)
    assert f"--data {tmp_path}/data --manifolds {tmp_path}/out/manifolds -o {tmp_path}/out" in measured
    assert asked(sources, "sources/scripts/reproduce.sh", "data")[-1].endswith("-o results")


def test_a_try_of_reproduce_leaves_the_real_run_its_manifolds_to_train(sources, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    made(sources, "evaluate")
    for share, folder in (("0.5", "out/share-0.5"), ("1.0", "out")):
        monkeypatch.setenv("SHARE", share)
        *trained, measured = asked(sources, "sources/scripts/reproduce.sh", "data", "out")
        assert len(trained) == 2 and all(f"--out {tmp_path}/{folder}/manifolds/" in line for line in trained)
        assert f"--manifolds {tmp_path}/{folder}/manifolds -o {tmp_path}/{folder}" in measured
