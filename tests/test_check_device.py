"""scripts/check_device.py: it runs without PyAV, its lines are JSON, and a network that differs is found out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcode import manifold
from mcode.nets.hyper import Hyper

from .small_hific import small_manifolds

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_device.py"
BLOCKED = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"av", "PyQt6", "typer", "rich", "scipy", "matplotlib"}:
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return small_manifolds(tmp_path_factory.mktemp("manifolds"))[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_device", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_without_pyav_and_finds_no_wrong_symbol(dense, tmp_path):
    arguments = [str(SCRIPT), "cpu", "--quick", "--manifold", str(dense), "--parts", "symbols,pictures,speed"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, timeout=250, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    tried = [line for line in lines if line["figure"] == "range symbols"]
    assert [line["network"] for line in tried] == ["float64", "float32"]
    for line in tried:
        assert line["latents"] == 60 and line["symbols"] == 60 * 6 * 16
        assert (line["wrong_cpu_to_device"], line["wrong_device_to_cpu"], line["quantised_otherwise"]) == (0, 0, 0)
    assert all(line["wrong"] == 0 for line in lines if line["figure"] == "stream")
    speeds = [line for line in lines if line["figure"] == "speed"]
    networks = {"plain analysis", "plain synthesis", "hific generator", "hific encoder"}
    assert {line["what"] for line in speeds} == networks | {"range encode", "range decode"}
    assert all("fps" in line or "skipped" in line for line in speeds), speeds
    assert lines[-1]["figure"] == "done" and lines[-1]["good"] is True


def test_a_network_that_predicts_otherwise_is_found_out(script, dense, monkeypatch, capsys):
    build = Hyper.from_integers

    def spoilt(config, weights):
        changed = dict(weights)
        changed["head_bias.2"] = weights["head_bias.2"] + np.int32(300)  # one step of the scale
        return build(config, changed)

    model = manifold.load(dense, "cpu", precision="float32")
    assert script.check_symbols(model, model, 20, torch.float32, script.Clock(60))
    monkeypatch.setattr(Hyper, "from_integers", spoilt)
    assert not script.check_symbols(model, model, 20, torch.float32, script.Clock(60))
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0]["wrong_cpu_to_device"] == said[0]["wrong_device_to_cpu"] == 0
    assert said[1]["wrong_cpu_to_device"] > 0 and said[1]["wrong_device_to_cpu"] > 0


def test_a_latent_that_is_rounded_otherwise_is_counted(script, dense, capsys):
    here, there = (manifold.load(dense, "cpu", precision="float32") for _ in range(2))
    there._gain = there._gain * 1.01
    assert not script.check_symbols(here, there, 20, torch.float32, script.Clock(60))
    assert json.loads(capsys.readouterr().out)["quantised_otherwise"] > 0


def test_speeds_that_would_begin_too_late_are_named(script, capsys):
    bench = script.Bench(torch.device("cpu"), torch.float32, script.Clock(0), 0.1)
    bench.add("something", "plain", 1, (64, 64), lambda: pytest.fail("it ran"))
    assert json.loads(capsys.readouterr().out)["skipped"] == "no time left"


def test_a_way_that_fails_leaves_the_others_standing(script, capsys):
    bench = script.Bench(torch.device("cpu"), torch.float32, script.Clock(60), 0.01)

    def broken():
        raise RuntimeError("no compiler\nsecond line")

    bench.add("something", "compile", 1, (64, 64), broken)
    bench.add("something", "plain", 2, (64, 64), lambda: lambda: None)
    failed, plain = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert failed["failed"] == "RuntimeError: no compiler" and plain["fps"] > 0
