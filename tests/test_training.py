"""Training: what falls, what stops it, and that an interrupted run ends as an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mcode
from mcode.cli import main
from mcode.errors import ConfigError, InputError, McodeError
from mcode.training import loop, ncode
from mcode.training.footage import data_entry
from mcode.training.ncode import gradient_penalty, measure_statistics
from mcode.training.squares import Squares, load_squares
from mcode.training.train import export, read_config, train

CONFIGS = Path(__file__).parent.parent / "configs"

NCODE = """
kind = "ncode"
name = "tiny"
checkpoint_every = 3
bfloat16 = false
[network]
size = 32
m = 6
width = 4
[data]
folders = ["pictures"]
batch = 4
mirror = true
[adversarial]
steps = 4
[encoding]
steps = 5
"""
HIFIC = """
kind = "hific"
name = "tiny"
bfloat16 = false
[network]
family = "paper"
channels = 6
width = 2
blocks = 1
hyper = 4
[data]
folders = ["pictures"]
crop = 64
batch = 2
[loss]
perceptual = "none"
easy_steps = 2
[optimiser]
steps = 3
adversarial_steps = 3
checkpoint_every = 2
"""
COMPACT = """
kind = "hific"
name = "tiny"
[network]
family = "compact"
channels = 8
analysis_widths = [8, 8, 8]
analysis_blocks = [1, 1, 1]
synthesis_widths = [8, 8, 8, 8]
synthesis_blocks = [1, 1, 1, 1]
stages = [0, 4, 8]
qualities = 2
[data]
folders = ["pictures"]
crop = 64
batch = 2
[optimiser]
steps = 5
checkpoint_every = 2
"""
RESIDUAL = """
kind = "ncode"
name = "tiny"
steps = 1
l3 = 1.0
class_networks = 1
class_epochs = 0.2
held_out = 3
bits = [3]
[network]
family = "residual"
frame_size = [32, 32]
m = 3
width = 4
blocks = 1
encoder = true
[data]
folders = ["pictures", "others"]
batch = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Eight smooth pictures, and a video of one sliding by."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        picture = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "pictures" / f"{i}.png"), picture)
    return folder


@pytest.fixture
def run(tmp_path, data):
    """Writes the config, trains in tmp_path/NAME and returns (manifold, rows of the log)."""

    def run(config: str, name: str = "out", **options):
        path, rows = tmp_path / "config.toml", []
        path.write_text(config)
        report = options.pop("report", rows.append)
        return train(path, data, tmp_path / name, device="cpu", report=report, **options), rows

    return run


def changed(config: str, **values: object) -> str:
    """The TOML text with top-level or table keys replaced, e.g. learning_rate__adversarial."""
    for key, value in values.items():
        name, _, table = key.partition("__")
        line = f"{name} = {json.dumps(value)}\n"
        config = config.replace(f"[{table}]\n", f"[{table}]\n{line}") if table else line + config
    return config


def content(checkpoint: Path) -> dict[str, torch.Tensor]:
    return loop.read_checkpoint(checkpoint)[2]


def assert_equal(a: Path, b: Path) -> None:
    first, second = content(a), content(b)
    assert first.keys() == second.keys()
    assert not [k for k in first if not torch.equal(first[k], second[k])]


@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT], ids=["ncode", "hific", "compact"])
def test_a_run_resumed_at_any_checkpoint_ends_as_if_uninterrupted(tmp_path, run, config):
    kept = []

    def keep(row: dict[str, float]) -> None:
        folder = tmp_path / f"killed{row['step']}"
        shutil.copytree(tmp_path / "out", folder)
        (folder / loop.CHECKPOINT).with_suffix(".tmp").write_bytes(b"half written")
        kept.append(folder)

    whole, _ = run(config, report=keep)
    assert len(kept) >= 3
    for folder in kept[:-1]:
        with (folder / "log.jsonl").open("a") as log:
            log.write('{"step": 1000}\n{"ste')  # later than the checkpoint, and cut short
        manifold, _ = run(config, folder.name, resume=True)
        assert_equal(tmp_path / "out" / loop.CHECKPOINT, folder / loop.CHECKPOINT)
        assert mcode.load(manifold, device="cpu").id == mcode.load(whole, device="cpu").id
        steps = [json.loads(row)["step"] for row in (folder / "log.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps)) and steps[-1] < 1000


def test_checkpoints_written_before_updates_were_counted_resume_the_same(tmp_path, run):
    def keep(row: dict[str, float]) -> None:
        if row["step"] == 2:
            shutil.copytree(tmp_path / "out", tmp_path / "old")

    run(COMPACT, report=keep)
    path = tmp_path / "old" / loop.CHECKPOINT
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    save_file({k: v for k, v in content(path).items() if not k.startswith("updates.")}, path, metadata)
    run(COMPACT, "old", resume=True)
    assert_equal(tmp_path / "out" / loop.CHECKPOINT, path)


def test_encoder_learns_to_invert_the_frozen_generator(tmp_path):
    config = NCODE.replace("batch = 4", "batch = 16").replace("mirror = true", "mirror = false")
    (tmp_path / "c.toml").write_text(changed(config, learning_rate__encoding=2e-3))
    config = read_config(tmp_path / "c.toml")
    torch.manual_seed(1)
    model, cpu = ncode.Networks(config), torch.device("cpu")
    with torch.no_grad():
        for p in model.g.parameters():
            p.mul_(5 if p.dim() > 1 else 1)  # an untrained g is grey; this one draws
    measure_statistics(model.g, [ncode.draw_prior(config, 64, cpu)])
    drawn = model.g.requires_grad_(False)(ncode.draw_prior(config, 16, cpu))
    squares = Squares(((drawn + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy(), (1,) * 16)
    steps = ncode.Steps(config, model, squares, cpu, 1, 0, None)
    losses = [steps.encoding_step(config.adversarial.steps + i)["loss_f"] for i in range(50)]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])


def test_a_finished_run_leaves_a_manifold_with_a_card_and_samples(tmp_path, run):
    manifold, rows = run(NCODE)
    model = mcode.load(manifold, device="cpu")
    assert (model.name, model.kind, model.frame_size, model.qualities) == ("tiny", "ncode", (32, 32), 8)
    assert model.card["training_config"]["network"]["m"] == 6 and model.card["steps"] == 9
    assert [int(p.stem) for p in sorted((tmp_path / "out" / "samples").iterdir())] == [row["step"] for row in rows]
    assert all(row["pictures_per_s"] > 0 for row in rows)


def test_generator_stays_as_stage_1_left_it(tmp_path, run):
    states = {}

    def keep(row: dict[str, float]) -> None:
        states[row["step"]] = content(tmp_path / "out" / loop.CHECKPOINT)

    run(NCODE, report=keep)
    assert sorted(states) == [3, 4, 6, 9]
    g = {step: [v for k, v in state.items() if k.startswith("model.g.")] for step, state in states.items()}
    assert all(map(torch.equal, g[6], g[9])) and not all(map(torch.equal, g[3], g[4]))
    averages = {k[4:]: v for k, v in states[4].items() if k.startswith("ema.g.")}
    assert all(torch.equal(states[6][f"model.{k}"], v) for k, v in averages.items())


@pytest.mark.parametrize(
    "options",
    [
        {"loss__adversarial": "wgan", "critic_steps__adversarial": 2},
        {"loss__adversarial": "wgan", "gradient_penalty__adversarial": 10.0, "channels__network": 1},
        {"prior__adversarial": "truncated-normal", "aware_bits__encoding": [2, 5]},
    ],
    ids=["wgan", "wgan-gp-grey", "quantisation-aware"],
)
def test_variants_of_ncode_train_and_make_a_manifold(tmp_path, run, options):
    manifold, _ = run(changed(NCODE.replace("bfloat16 = false", "bfloat16 = true"), **options))
    state = content(tmp_path / "out" / loop.CHECKPOINT)
    critic = {k: v for k, v in state.items() if k.startswith("model.d.")}
    assert any("running_mean" in k for k in critic) == ("gradient_penalty__adversarial" not in options)
    if options.get("critic_steps__adversarial"):
        assert max(v.abs().max() for k, v in critic.items() if k.endswith("weight")) <= 0.01
        assert state["updates.d.last.bias"] == 2 * state["updates.g.net.0.weight"]
    model = mcode.load(manifold, device="cpu")
    assert model.synthesise(model.analyse(np.zeros((1, 32, 32, 3), np.uint8)), 32, 32).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT], ids=["ncode", "hific", "compact"])
def test_a_training_does_not_learn_from_samples_that_lie_in_its_data(tmp_path, data, config):
    """Neither its own, where --out lies there, nor another's; pictures of the same names elsewhere count."""
    (tmp_path / "c.toml").write_text(config.replace('["pictures"]', '["."]'))
    shutil.copytree(data, tmp_path / "a")
    shutil.copytree(data / "pictures", tmp_path / "a" / "samples")
    (tmp_path / "a" / "samples" / "0.png").rename(tmp_path / "a" / "samples" / "00000004.png")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    beside = train(tmp_path / "c.toml", tmp_path / "a", tmp_path / "out", device="cpu")
    for name in ("one", "two"):
        within = train(tmp_path / "c.toml", tmp_path / "b", tmp_path / "b" / "runs" / name, device="cpu")
        assert list((within.parent / "samples").glob("*.png"))
        assert mcode.load(within, device="cpu").id == mcode.load(beside, device="cpu").id


def test_a_training_can_be_given_the_folder_it_is_started_in(tmp_path, data, monkeypatch):
    monkeypatch.chdir(data)
    (tmp_path / "c.toml").write_text(NCODE.replace('["pictures"]', '["."]'))
    assert train(tmp_path / "c.toml", ".", tmp_path / "out", device="cpu").is_file()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT, RESIDUAL], ids=["ncode", "hific", "compact", "residual"])
def test_bfloat16_is_used_where_it_is_fast_alone(tmp_path, data, monkeypatch, config, fast):
    for name, supported in (("amx_tile", fast), ("avx512_bf16", False)):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda supported=supported: supported, raising=False)
    for folder in ("pictures", "others"):
        shutil.copytree(data / "pictures", tmp_path / folder)
    (tmp_path / "c.toml").write_text(config.replace("bfloat16 = false", ""))
    seen = set()

    def note(module, given, output):
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and torch.is_grad_enabled():
            seen.add(output.dtype)

    monkeypatch.setattr("mcode.training.train.export", lambda *given, **more: "")
    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        train(tmp_path / "c.toml", tmp_path, tmp_path / "out", device="cpu")
    finally:
        handle.remove()
    assert seen and (torch.bfloat16 in seen) == fast


def test_augmented_pictures_are_shifted_and_keep_their_gradient():
    torch.manual_seed(0)
    x = torch.zeros(64, 3, 32, 32)
    x[:, :, 16, 16] = 1.0
    x.requires_grad_(True)
    out = ncode.augment(x)
    assert out.shape == x.shape
    places = out.detach()[:, 0].flatten(1).argmax(1)
    rows, columns = places // 32, places % 32
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(12, 21))
    out.sum().backward()
    assert x.grad[:, :, 16, 16].abs().min() > 0


def test_tensorboard_gets_scalars_and_sample_grids(run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, rows = run(NCODE)
    events = accumulator.EventAccumulator(str(tmp_path / "out")).Reload()
    assert {"loss_d", "loss_g", "psnr", "pictures_per_s"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("psnr")] == [row["step"] for row in rows if "psnr" in row]
    assert [e.step for e in events.Images("samples")] == [row["step"] for row in rows]


ENDLESS = """
import sys
from mcode.training.train import train
train(sys.argv[1], sys.argv[2], sys.argv[3], device="cpu", resume=True)
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_exactly(tmp_path, run, data):
    """SIGKILL as soon as the first checkpoint is there; then on to the end, as if nothing had happened."""
    config = changed(NCODE, steps__encoding=400).replace("steps = 5\n", "", 1)
    whole, _ = run(config, "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "config.toml"), str(data), str(out)]
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (out / loop.CHECKPOINT).exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    stopped, _, _ = loop.read_checkpoint(out / loop.CHECKPOINT)
    assert 0 < stopped < 404
    resumed, _ = run(config, "killed", resume=True)
    assert_equal(tmp_path / "whole" / loop.CHECKPOINT, out / loop.CHECKPOINT)
    assert mcode.load(resumed, device="cpu").id == mcode.load(whole, device="cpu").id


def test_gradient_penalty_of_a_linear_critic_is_known():
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1, bias=False))
    with torch.no_grad():
        critic[1].weight.fill_(3 / math.sqrt(12))  # a gradient of norm 3 everywhere
    x = torch.rand(4, 3, 2, 2)
    assert gradient_penalty(critic, x, x + 1).item() == pytest.approx(4, rel=1e-5)


def test_measured_statistics_are_those_of_the_batches():
    norm = torch.nn.BatchNorm2d(2)
    batches = [torch.randn(8, 2, 3, 3) * 5 + 2 for _ in range(4)]
    measure_statistics(norm, batches)
    assert torch.allclose(norm.running_mean, torch.stack(batches).mean((0, 1, 3, 4)), atol=1e-5)
    assert not norm.training and norm.momentum == 0.1


def test_hific_distortion_falls(tmp_path):
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "orange.png"), np.full((64, 64, 3), (20, 120, 230), np.uint8))
    config = HIFIC.replace("\nsteps = 3", "\nsteps = 40").replace("adversarial_steps = 3", "learning_rate = 1e-2")
    (tmp_path / "c.toml").write_text(config.replace("checkpoint_every = 2", "checkpoint_every = 5"))
    rows = []
    train(tmp_path / "c.toml", tmp_path, tmp_path / "out", device="cpu", report=rows.append)
    assert rows[-1]["mse"] < 0.5 * rows[0]["mse"]


@pytest.mark.parametrize("config", [NCODE, HIFIC], ids=["ncode", "hific"])
def test_a_loss_that_is_not_finite_stops_with_one_line_and_leaves_the_last_good_checkpoint(tmp_path, run, config):
    run(config)
    shutil.copytree(tmp_path / "out", tmp_path / "diverged")
    longer = config.replace("\nsteps = 5", "\nsteps = 50").replace("adversarial_steps = 3", "adversarial_steps = 30")
    table = "encoding" if "ncode" in config else "optimiser"
    with pytest.raises(McodeError, match=r"stopped at step \d+: the loss is .*learning_rate, or train anew") as stop:
        run(changed(longer, **{f"learning_rate__{table}": 1e36}), "diverged", resume=True)
    assert "\n" not in str(stop.value)
    assert all(v.isfinite().all() for v in content(tmp_path / "diverged" / loop.CHECKPOINT).values())


# What the user can mend: one clear line each


def test_wrong_data_gives_one_line(tmp_path, run):
    for folders in (["nowhere"], ["."]):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for config in (NCODE, HIFIC, COMPACT):
            path = tmp_path / "c.toml"
            path.write_text(config.replace('folders = ["pictures"]', f"folders = {json.dumps(folders)}"))
            with pytest.raises(InputError, match="no (pictures|such folder)") as error:
                train(path, tmp_path / "empty", tmp_path / "out", device="cpu")
            assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="absent: no such folder"):
        train(CONFIGS / "ncode.toml", tmp_path / "absent", tmp_path / "out")


def test_a_checkpoint_is_not_overwritten_and_must_fit(tmp_path, run, data):
    (tmp_path / "out").mkdir()
    save_file({"model.x": torch.zeros(1)}, tmp_path / "out" / loop.CHECKPOINT, {"step": "1", "config": '{"kind": "ncode"}'})
    with pytest.raises(InputError, match="--resume"):
        run(NCODE)
    with pytest.raises(InputError, match="other networks"):
        run(NCODE, resume=True)
    (tmp_path / "out" / loop.CHECKPOINT).write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="no readable checkpoint"):
        run(NCODE, resume=True)
    with pytest.raises(InputError, match="no readable checkpoint"):
        export(tmp_path / "absent", data, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("config", "sizes"), [(NCODE, "data.batch = 4"), (COMPACT, "data.batch = 2 with data.crop = 64")], ids=["ncode", "compact"]
)
def test_a_training_that_runs_out_of_memory_names_what_to_make_smaller(tmp_path, data, monkeypatch, capsys, config, sizes):
    monkeypatch.setattr(loop, "update", lambda *_, **__: torch.empty(1 << 60, dtype=torch.uint8))
    (tmp_path / "c.toml").write_text(config)
    assert (
        main(["train", str(tmp_path / "c.toml"), "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    )
    told = f"mcode: error: out of memory: {sizes} is too much here; make it smaller, or give less footage\n"
    assert capsys.readouterr().err == told


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_a_second_training_into_a_folder_is_refused(tmp_path, run, data, capsys, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "c.toml").write_text(NCODE)
    command = ["train", str(tmp_path / "c.toml"), "--data", str(data), "--out", str(out), "--device", "cpu", "--resume"]
    with loop.alone_in(out):
        assert main(command) == 2
        told = f"mcode: error: {out}: another training writes there; wait until it has ended, or choose another --out\n"
        assert capsys.readouterr().err == told
        monkeypatch.setattr(sys, "platform", "win32")
        with loop.alone_in(out):
            pass
        monkeypatch.undo()
    assert not out.exists()
    assert main(command) == 0


def test_what_killed_trainings_left_half_written_is_removed(tmp_path, run):
    out = tmp_path / "out"
    out.mkdir()
    of_others = [out / ".clip.mcode.partial-7", out / ".tiny-2.safetensors.partial-7"]
    for left in (
        ".checkpoint.safetensors.partial-7",
        ".checkpoint.safetensors.partial-8",
        ".tiny.safetensors.partial-7",
        ".lock",
    ):
        (out / left).write_bytes(b"half")
    for path in of_others:
        path.write_bytes(b"written now")
    run(NCODE)
    assert sorted(path for path in out.iterdir() if path.name.startswith(".")) == of_others


def grown(config: str) -> str:
    """Two steps more, in the last stage; another name, rate and interval of checkpoints."""
    for key, steps in (("\nsteps", 5), ("adversarial_steps", 3)):
        config = config.replace(f"{key} = {steps}\n", f"{key} = {steps + 2}\n")
    return re.sub("checkpoint_every = .", "checkpoint_every = 5", config).replace('"tiny"', '"renamed"')


@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT], ids=["ncode", "hific", "compact"])
def test_a_finished_run_goes_on_and_is_exported_as_its_configuration_says_now(tmp_path, run, config):
    first, rows = run(config)
    kept = first.read_bytes()
    renamed, _ = run(config.replace('"tiny"', '"renamed"'), resume=True)
    card = mcode.load(renamed, device="cpu").card
    assert (renamed.name, mcode.load(renamed, device="cpu").name) == ("renamed.safetensors", "renamed")
    assert (card["training_config"]["name"], card["steps"]) == ("renamed", rows[-1]["step"])
    renamed.unlink()
    longer, more = run(grown(config), resume=True)
    assert more[-1]["step"] == rows[-1]["step"] + 2 == mcode.load(longer, device="cpu").card["steps"]
    assert first.read_bytes() == kept


def test_a_finished_run_is_exported_with_another_margin(tmp_path, run):
    run(COMPACT)
    wider, _ = run(changed(COMPACT.replace('"tiny"', '"wider"'), zero_margin=0.3), resume=True)
    assert mcode.load(wider, device="cpu").zero_margin(1).any()


@pytest.mark.parametrize(
    ("config", "other", "message"),
    [
        (NCODE, changed(NCODE, seed=77), "seed = 1, not 77; set it back"),
        (NCODE, NCODE.replace("batch = 4", "batch = 3"), "data.batch = 4, not 3"),
        (NCODE, changed(NCODE, l1__encoding=2.0), "encoding.l1 = 1.0, not 2.0"),
        (NCODE, NCODE.replace('["pictures"]', '["more", "pictures"]'), r"data.folders = \[\"pictures\"\], not"),
        (NCODE, NCODE.replace("steps = 4", "steps = 20"), "adversarial.steps = 4, not 20"),
        (NCODE, NCODE.replace("steps = 5", "steps = 2"), "encoding.steps = 2, and .* has 5 of them behind it; set 5 or more"),
        (HIFIC, changed(HIFIC, beta__loss=0.3), "loss.beta = 0.15, not 0.3"),
        (HIFIC, HIFIC.replace("\nsteps = 3", "\nsteps = 5"), "optimiser.steps = 3, not 5"),
        (COMPACT, COMPACT.replace("steps = 5", "steps = 4"), "optimiser.steps = 4, and .* has 5"),
        (COMPACT, changed(COMPACT, ema__optimiser=0.9), "optimiser.ema = 0.999, not 0.9"),
    ],
)
def test_a_run_does_not_go_on_with_another_configuration(tmp_path, run, config, other, message):
    run(config)
    before = (tmp_path / "out" / loop.CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=message) as error:
        run(other, resume=True)
    assert "\n" not in str(error.value) and (tmp_path / "out" / loop.CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT, RESIDUAL], ids=["ncode", "hific", "compact", "residual"])
def test_a_run_goes_on_with_the_data_it_began_with_alone(tmp_path, data, config):
    for folder in ("pictures", "others"):
        shutil.copytree(data / "pictures", tmp_path / "data" / folder)
    short, longer = tmp_path / "short.toml", tmp_path / "longer.toml"
    short.write_text(config)
    longer.write_text(grown(config).replace('"renamed"', '"tiny"').replace("\nsteps = 1\n", "\nsteps = 2\n"))

    def go(path: Path) -> Path:
        return train(path, tmp_path / "data", tmp_path / "out", device="cpu", resume=True)

    go(short)
    unread, picture = tmp_path / "data" / "notes.txt", tmp_path / "data" / "pictures" / "0.png"
    unread.touch()
    kept = picture.read_bytes()
    for other in (None, kept + b"longer"):
        picture.unlink() if other is None else picture.write_bytes(other)
        with pytest.raises(InputError, match=r"began with other pictures and videos \(\d+ files\) than .*; put them back, or"):
            go(longer)
        assert go(short).is_file()  # which has all its steps
    picture.write_bytes(kept)
    step, _, tensors = loop.read_checkpoint(tmp_path / "out" / loop.CHECKPOINT)
    metadata = loop.read_metadata(tmp_path / "out" / loop.CHECKPOINT)
    go(longer)
    assert loop.read_checkpoint(tmp_path / "out" / loop.CHECKPOINT)[0] > step
    del metadata["data"]  # as before checkpoints had it
    save_file(tensors, tmp_path / "out" / loop.CHECKPOINT, metadata)
    picture.unlink()
    go(longer)
    assert "data" in loop.read_metadata(tmp_path / "out" / loop.CHECKPOINT)


def test_archives_parts_of_videos_and_files_left_out_are_known_again(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"archive")
    (tmp_path / "clip.avi").write_bytes(b"video")
    (tmp_path / "shown.png").write_bytes(b"picture")

    def entry(*folders: str) -> dict[str, str]:
        return data_entry(tmp_path, folders, None, without=("left-out.png",))

    places = (["a.tar/train"], ["clip.avi@0:0.5"], ["."], ["a.tar", "shown.png"])
    before = [entry(*place) for place in places]
    assert len({made["data"] for made in before}) == len(places)
    for name in ("left-out.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [entry(*place) for place in places] == before
    for name in ("a.tar", "clip.avi"):
        (tmp_path / name).write_bytes(b"another one")
    assert [entry(*place) == old for place, old in zip(places, before, strict=True)] == [False] * 4


def test_a_stage_may_be_lengthened_until_it_is_over(tmp_path, run):
    def keep(row: dict[str, float]) -> None:
        shutil.copytree(tmp_path / "out", tmp_path / f"killed{row['step']}")

    run(NCODE, report=keep)
    shutil.copytree(tmp_path / "killed3", tmp_path / "early")
    longer = NCODE.replace("steps = 4", "steps = 7")
    for step in (3, 4):
        _, rows = run(longer, f"killed{step}", resume=True)
        assert rows[-1]["step"] == 12 and "loss_d" in rows[0]
    with pytest.raises(InputError, match="adversarial.steps = 4, not 7"):
        run(longer, "killed6", resume=True)
    with pytest.raises(InputError, match="adversarial.steps = 2, and .* has 3 of them"):
        run(NCODE.replace("steps = 4", "steps = 2"), "early", resume=True)


def test_a_manifold_that_lies_in_out_is_not_replaced(tmp_path, run):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny.safetensors").write_bytes(b"of another training")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"tiny.safetensors: exists, and is not of a training there; remove it"):
            run(NCODE, resume=resume)
    assert [path.name for path in out.iterdir()] == ["tiny.safetensors"]
    (out / "tiny.safetensors").rename(out / "renamed.safetensors")
    run(NCODE)
    with pytest.raises(InputError, match="renamed.safetensors: exists"):
        run(NCODE.replace('"tiny"', '"renamed"'), resume=True)
    assert (out / "renamed.safetensors").read_bytes() == b"of another training"


@pytest.mark.parametrize("config", [NCODE, HIFIC, COMPACT, RESIDUAL], ids=["ncode", "hific", "compact", "residual"])
def test_weights_beyond_half_precision_are_not_exported(tmp_path, data, config):
    for folder in ("pictures", "others"):
        shutil.copytree(data / "pictures", tmp_path / folder)
    (tmp_path / "c.toml").write_text(config)
    made = train(tmp_path / "c.toml", tmp_path, tmp_path / "out", device="cpu")
    made.unlink()
    path = tmp_path / "out" / loop.CHECKPOINT
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = content(path)
    for name in tensors:
        if name.startswith(("model.", "ema.")) and name.endswith((".conv1.weight", "f.last.weight", "generator.last.weight")):
            tensors[name] = tensors[name] * 0 + 7e4
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=r"weight holds values beyond half precision \(65504\)"):
        export(path, tmp_path, made)
    assert not made.exists()


def test_a_stage_1_checkpoint_is_not_exported(tmp_path, run, data):
    def keep(row: dict[str, float]) -> None:
        if row["step"] == 3:
            shutil.copy(tmp_path / "out" / loop.CHECKPOINT, tmp_path / "early")

    run(NCODE, report=keep)
    with pytest.raises(InputError, match="step 3, before f is trained"):
        export(tmp_path / "early", data, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "linear"', "mcode adapt"),
        ('kind = "gif"', "not one of"),
        ('kind = "hific"\n[network]\nfamily = "papr"', "family"),
        ("kind = ", "TOML"),
        (NCODE.replace("size = 32", "size = 48"), "size"),
        (NCODE.replace("batch = 4", "bach = 4"), 'did you mean "batch"'),
        (changed(NCODE, gradient_penalty__adversarial=10), "wgan"),
        (changed(NCODE, aware_bits__encoding=[9]), "aware_bits"),
        (HIFIC.replace("crop = 64", "crop = 40"), "multiple of 16"),
        (changed(NCODE, learning_rate__adversarial=-1.0), r"\[adversarial\] learning_rate is -1.0; it is above 0"),
        (changed(NCODE, learning_rate__encoding=0.0), r"\[encoding\] learning_rate is 0.0"),
        (changed(NCODE, momentum__encoding=1.0), r"\[encoding\] momentum is 1.0; it is 0 or more, and below 1"),
        (changed(NCODE, clip__adversarial=-0.1), r"clip is -0.1"),
        (changed(NCODE, ema__adversarial=1.5), r"ema is 1.5; it is from 0 to 1"),
        (NCODE.replace('"tiny"', '"sub/x"'), 'name = "sub/x": a manifold\'s name is a file name without folders'),
        (NCODE.replace('"tiny"', f'"{"x" * 300}"'), "file name without folders"),
        (HIFIC.replace('"tiny"', '""'), 'name = ""'),
        (NCODE.replace('"tiny"', '"checkpoint"'), 'name = "checkpoint": the training keeps a file of that name'),
        (COMPACT.replace('"tiny"', '"Checkpoint"'), 'name = "Checkpoint": the training keeps'),
        (RESIDUAL.replace('"tiny"', '"classes"'), 'name = "classes": the training keeps'),
        *((changed(each, seed=-1), "seed is -1; it is 0 to 4294967295") for each in (NCODE, HIFIC, COMPACT, RESIDUAL)),
        (changed(HIFIC, seed=99999999999999999), "seed is 99999999999999999; it is 0 to"),
        (changed(HIFIC, initial="./checkpoint.safetensors"), r'initial = "./checkpoint.safetensors" is its own checkpoint'),
        (HIFIC.replace("width = 2", "width = 1"), "width = 1 is not 2 or more"),
        (HIFIC.replace("channels = 6", "channels = 1"), "channels = 1 is not 2 or more"),
        (changed(HIFIC, beta__loss=-0.1), r"\[loss\] beta is -0.1; it is 0 or more"),
        (changed(HIFIC, k_mse__loss=-0.1), "k_mse is -0.1"),
        (changed(HIFIC, lambda_b__loss=-0.1), "lambda_b is -0.1"),
        (changed(NCODE, l1__encoding=-1.0), "l1 is -1.0"),
        (changed(COMPACT.replace("[optimiser]", "[loss]\n[optimiser]"), perceptual__loss=-1.0), "perceptual is -1.0"),
        (changed(COMPACT, final_rate__optimiser=-0.5), "final_rate is -0.5; it is 0 or more"),
        (changed(HIFIC, learning_rate__optimiser=-1.0), r"\[optimiser\] learning_rate is -1.0"),
        (changed(HIFIC, longest__data=0), "longest is 0; it is 64 or more"),
        (changed(HIFIC, longest__data=32), "longest is 32"),
        (HIFIC.replace("blocks = 1", "blocks = 0"), "blocks"),
        (HIFIC.replace("blocks = 1", "qualities = 8"), r'= 8: .* qualities = 1; for several train family = "compact"'),
    ],
)
def test_a_wrong_configuration_gives_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(path)
    assert "\n" not in str(error.value) and "c.toml" in str(error.value)
    assert main(["train", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


def test_a_perceptual_loss_without_its_weights_stops_before_training(tmp_path, run, monkeypatch):
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    for options in ({"perceptual": "vgg19"}, {"perceptual": "alexnet", "perceptual_file": str(tmp_path / "none.pth")}):
        with pytest.raises(InputError, match="weight"):
            run(changed(NCODE, **{f"{k}__encoding": v for k, v in options.items()}))


def test_perceptual_losses_train(tmp_path, run, data_dir, monkeypatch):
    from mcode.training import alexnet

    monkeypatch.setenv("MCODE_PERCEPTUAL", str(data_dir / "perceptual"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for damaged in (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth", None):
        with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth: not readable as weights"):
            alexnet.AlexNetConv4(damaged)
    monkeypatch.setattr(alexnet, "_weights", lambda path: {})
    with pytest.raises(InputError, match="AlexNet"):
        alexnet.AlexNetConv4()
    shapes = {"0": (64, 3, 11, 11), "3": (192, 64, 5, 5), "6": (384, 192, 3, 3), "8": (256, 384, 3, 3)}
    weights = {f"features.{i}.weight": torch.randn(s) / 50 for i, s in shapes.items()}
    weights |= {f"features.{i}.bias": torch.zeros(s[0]) for i, s in shapes.items()}
    monkeypatch.setattr(alexnet, "_weights", lambda path: weights)
    for network in ("vgg19", "alexnet"):
        _, rows = run(changed(NCODE, perceptual__encoding=network), network)
        assert rows[-1]["feature"] > 0


def test_any_exported_network_serves_as_the_perceptual_loss(tmp_path, data, monkeypatch):
    """--perceptual FILE.pt2: here the mean over 4x4 blocks, so that the distance can be computed by hand."""
    network = tmp_path / "blocks.pt2"
    example, batch = torch.zeros(2, 3, 32, 32), torch.export.Dim("batch", min=1, max=512)
    torch.export.save(torch.export.export(torch.nn.AvgPool2d(4), (example,), dynamic_shapes=({0: batch},)), network)
    distance = ncode._feature_distance(
        ncode.EncodingConfig(1, perceptual="vgg19", perceptual_file=str(network)), torch.device("cpu")
    )
    a, b = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    blocks = (a - b).reshape(3, 3, 8, 4, 8, 4).mean((3, 5))
    torch.testing.assert_close(distance(a, b), blocks.square().sum((1, 2, 3)))
    (tmp_path / "c.toml").write_text(changed(NCODE, perceptual__encoding="vgg19"))
    rows: list[dict[str, float]] = []
    train(tmp_path / "c.toml", data, tmp_path / "run", device="cpu", perceptual=network, report=rows.append)
    assert rows[-1]["feature"] > 0
    (tmp_path / "bad.pt2").write_bytes(b"junk")
    for path, message in ((tmp_path / "bad.pt2", "no network of torch.export"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(InputError, match=message):
            train(tmp_path / "c.toml", data, tmp_path / "other", device="cpu", perceptual=path)


def test_weights_that_a_training_cannot_use_are_refused(tmp_path, data):
    (tmp_path / "a.pt2").write_bytes(b"")
    (tmp_path / "weights").mkdir()
    path = tmp_path / "c.toml"
    for text, given, message in (
        (HIFIC, "weights", "weights: the loss of this configuration has no feature network; leave --perceptual out"),
        (NCODE, "weights", "weights: the loss of this configuration has no feature network; leave --perceptual out"),
        (
            HIFIC.replace('"none"', '"vgg19"'),
            "a.pt2",
            r'a\.pt2: networks of torch.export serve kind = "ncode" of family "dcgan"',
        ),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            train(path, data, tmp_path / "out", device="cpu", perceptual=tmp_path / given)
    assert not (tmp_path / "out").exists()


def test_alexnets_weights_are_found_in_a_folder_and_by_the_variable(tmp_path, monkeypatch):
    from mcode.training import alexnet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "nothing"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloads"))
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    monkeypatch.setenv("MCODE_PERCEPTUAL", str(tmp_path))
    for given in (tmp_path, None):
        with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth: not readable as weights"):
            alexnet.AlexNetConv4(given)


def test_shipped_configurations_are_of_the_papers_size():
    small, hific, general = (read_config(CONFIGS / f"{name}.toml") for name in ("ncode", "hific", "general"))
    assert (small.network.size, small.network.m) == (64, 100)
    assert (small.adversarial.learning_rate, small.adversarial.momentum) == (2e-4, 0.5)
    assert (hific.network.channels, hific.network.blocks, 16 * hific.network.width) == (220, 9, 960)
    assert general.network.channels == 128


# Data


def test_squares_come_from_folders_archives_and_folders_inside_archives(tmp_path, data):
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        for i in range(4):
            archive.add(data / "pictures" / f"{i}.png", f"{'train' if i < 3 else 'test'}/{i}.png")
    folder = load_squares([data / "pictures"], size=32, channels=3, every=1)
    inside = load_squares([tmp_path / "a.tar.xz" / "train"], size=32, channels=3, every=1)
    assert folder.pixels.shape == (8, 32, 32, 3) and folder.clips == (1,) * 8
    assert np.array_equal(inside.pixels, folder.pixels[:3])
    assert len(load_squares([tmp_path / "a.tar.xz"], size=32, channels=1, every=1).pixels) == 4
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty.png"))
        archive.add(data / "pictures" / "0.png", "0.png")
    assert load_squares([tmp_path / "c.tar"], size=32, channels=3, every=1).clips == (1,)
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with pytest.raises(InputError, match=r"b\.tar"):
        load_squares([tmp_path / "b.tar"], size=32, channels=3, every=1)


def test_videos_give_every_so_many_frames_and_stay_one_clip(tmp_path):
    from mcode.frame import Frame
    from mcode.video import FrameWriter

    rng = np.random.default_rng(0)
    writer = FrameWriter(tmp_path / "v.mp4", width=48, height=32)
    for i in range(7):
        writer.push(Frame(rng.integers(0, 256, (32, 48, 3), np.uint8), i * 3600))
    writer.close()
    squares = load_squares([tmp_path], size=32, channels=1, every=3)
    assert squares.pixels.shape == (3, 32, 32, 1) and squares.clips == (3,)


def test_damaged_footage_is_passed_over_and_told_where_it_is_named(tmp_path, data):
    shutil.copy(data / "pictures" / "0.png", tmp_path / "0.png")
    cv2.imwrite(str(tmp_path / "strip.png"), np.full((2, 5000, 3), 90, np.uint8))
    for name in ("empty.mp4", "empty.png"):
        (tmp_path / name).touch()
    for name in ("damaged.avi", "damaged.jpg"):
        (tmp_path / name).write_bytes(b"nothing that can be read" * 99)
    assert load_squares([tmp_path], size=32, channels=3, every=1).clips == (1, 1)
    for place in ("empty.mp4", "damaged.avi@0:0.5"):
        with pytest.raises(InputError, match=f"{place.partition('@')[0]} is (empty|not a video)"):
            load_squares([tmp_path / place], size=32, channels=3, every=1)


def test_batches_depend_on_seed_and_step_alone(data):
    squares = load_squares([data / "pictures"], size=32, channels=3, every=1)
    again = load_squares([data / "pictures"], size=32, channels=3, every=1)
    squares.batch(4, 1, 0, mirror=True)
    assert np.array_equal(squares.batch(4, 1, 5, mirror=True), again.batch(4, 1, 5, mirror=True))
    assert not np.array_equal(squares.batch(4, 1, 5, mirror=True), squares.batch(4, 1, 6, mirror=True))


def test_steps_seeds_and_workers_draw_numbers_of_their_own():
    def drawn(seed: int, step: int, worker: int) -> tuple[float, ...]:
        loop.seed_step(seed, step, worker)
        return tuple(torch.rand(2).tolist())

    assert drawn(2, 0, 0) != drawn(1, 7919, 0) and drawn(1, 0, 64) != drawn(1, 1, 0)
    assert drawn(3, 5, 1) == drawn(3, 5, 1)


# Several processes


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "no RANK in the environment, .* or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE = x in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "no MASTER_ADDR in the environment"),
    ],
)
def test_half_a_group_of_processes_is_one_line(tmp_path, run, monkeypatch, variables, message):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        run(NCODE)


WORKER = """
import sys, torch
from pathlib import Path
from mcode.training import loop
from mcode.training.train import train
torch.set_num_threads(1)
rank = loop.join_workers("cpu")[1]
p = torch.nn.Parameter(torch.zeros(2))
loop.update(torch.optim.SGD([p], lr=1.0), (p * (rank + 1)).sum(), step=0, workers=2)
Path(sys.argv[3], f"rank{rank}").write_text(str(p.tolist()))
train(sys.argv[1], sys.argv[2], sys.argv[3] + "/out", device="cpu")
"""


@pytest.mark.slow
def test_two_processes_average_their_gradients_and_write_one_run(tmp_path, data):
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "c.toml").write_text(NCODE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*torchrun, "worker.py", "c.toml", str(data), str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == "[-1.5, -1.5]"
    rows = [json.loads(row) for row in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4, 6, 9]
    assert mcode.load(tmp_path / "out" / "tiny.safetensors", device="cpu").kind == "ncode"
