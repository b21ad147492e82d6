"""Families of HiFiC trainings: every configuration of the paper, stage 2 from stage 1, the table and the sweep over beta."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mcode
from mcode import manifold
from mcode.cli import main
from mcode.config import from_dict, to_dict
from mcode.errors import InputError, McodeError
from mcode.evaluation import lpips
from mcode.evaluation.ablation import AblationReport, AblationRow, Settings, evaluate_ablation, settings_of, sweep_points, table
from mcode.evaluation.features import VGG_FILE, VGG_LAYERS, VggFeatures
from mcode.evaluation.judges import METRICS
from mcode.nets.paper import Discriminator, Hific, PaperConfig
from mcode.training import hific, loop
from mcode.training.train import read_config, train

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "hific"
TINY = [
    "network.channels=4", "network.width=2", "network.hyper=4", "network.blocks=1", "data.crop=64", "data.batch=2",
    "data.folders=['pictures']", "loss.perceptual='none'", "bfloat16=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        rgb = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (112, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "pictures" / f"{i}.png"), rgb)
    return folder


def script(data, out, *more, only="no-gan,low,beta-1.5,unconditional"):
    command = [sys.executable, str(ROOT / "scripts" / "ablation.py"), str(CONFIGS), "--data", str(data), "--out", str(out)]
    command += ["--only", only, "--steps", "2", "--device", "cpu", "--pictures", str(data / "pictures"), *more]
    command += [part for text in TINY for part in ("--set", text)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A family trained for two steps a stage, and what the script said."""
    out = tmp_path_factory.mktemp("runs")
    done = script(data, out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def ablation_script():
    spec = importlib.util.spec_from_file_location("ablation_script", ROOT / "scripts" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Configurations


def test_the_configurations_hold_what_the_paper_varies():
    configs = {path.stem: read_config(path) for path in CONFIGS.glob("*.toml")}
    assert all(isinstance(config, hific.HificTraining) for config in configs.values())
    assert len({config.name for config in configs.values()}) == len(configs)
    for name, target, lambda_a in (("low", 0.14, 2.0), ("medium", 0.3, 1.0), ("high", 0.45, 0.5)):
        rate = "" if name == "low" else f"-{name}"
        stage1, baseline = configs["stage1" + rate], configs["no-gan" + rate]
        for config in (configs[name], stage1):
            assert (config.loss.rate_target, config.loss.lambda_a, config.loss.lambda_b) == (target, lambda_a, 2**-4)
        assert stage1.optimiser.adversarial_steps == 0 and stage1.initial is None
        assert configs[name].initial == f"../stage1{rate}/checkpoint.safetensors"
        assert configs[name].optimiser.steps == 0 < configs[name].optimiser.adversarial_steps
        assert configs[name].loss.k_mse == 0.075 / 32
        same = {"name": configs[name].name, "optimiser": configs[name].optimiser}  # section 4: the GAN alone differs
        assert replace(baseline, **same) == configs[name] and baseline.optimiser.adversarial_steps == 0
        plain = configs.pop("hyperprior" + rate)
        assert plain.network == PaperConfig(autoencoder="mean-scale", width=192) and plain.optimiser.adversarial_steps == 0
        assert plain.loss == replace(stage1.loss, perceptual="none")
        for beta in (0.015, 1.5):  # figure 5, from the same stage 1
            swept = configs[f"beta-{beta}{rate}"]
            assert swept == replace(configs[name], name=swept.name, loss=replace(configs[name].loss, beta=beta))
    assert configs["low"].loss.beta == 0.15
    assert not configs["unconditional"].loss.conditional and configs["instance-d"].loss.norm == "instance"
    both = configs["instance-d-unconditional"].loss
    assert (both.norm, both.conditional) == ("instance", False)
    assert [configs[n].network.blocks for n in ("blocks-1", "blocks-5", "low")] == [1, 5, 9]
    of_figure_8 = [configs[n].loss.perceptual for n in ("no-perceptual", "vgg-l1", "lpips", "low")]
    assert of_figure_8 == ["none", "vgg19-l1", "lpips", "vgg19"]
    assert configs["instance-eg"].network.norm == "instance" and configs["gan-alone"].loss.k_mse == 0
    alone, fixed = configs["gan-alone"], configs["gan-alone-fixed"]
    assert fixed == replace(alone, name="hific-gan-alone-fixed", freeze="encoder") and alone.freeze is None
    shallow = configs.pop("hyperprior-gan")
    assert shallow.network == PaperConfig(autoencoder="mean-scale", width=192) and shallow.loss == configs["blocks-1"].loss
    assert shallow.optimiser == configs["blocks-1"].optimiser
    assert all((config.network.channels, config.network.width) == (220, 60) for config in configs.values())
    assert all(config.network.autoencoder == "hific" for config in configs.values())


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (b"kind = ", (), "a.toml: not valid TOML"),
        (b"# caf\xe9", (), "a.toml: not a TOML file"),
        (b"initial = 5\n" + (CONFIGS / "mse.toml").read_bytes(), (), "initial"),
        (b'kind = "hific"\nname = "a"\n', ("--steps", "2"), "a.toml: missing key"),
        ((CONFIGS / "mse.toml").read_bytes().replace(b"steps = ", b'steps = "3" #'), ("--steps", "2"), "steps"),
        ((CONFIGS / "mse.toml").read_bytes(), ("--set", "initial=5", "--seeds", "2"), "initial"),
    ],
)
def test_a_damaged_configuration_is_one_line(tmp_path, monkeypatch, capsys, content, more, words):
    (tmp_path / "a.toml").write_bytes(content)
    given = ["ablation.py", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out"), *more]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as end:
        ablation_script().main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "error: " in said and "a.toml" in said and words in said
    assert not (tmp_path / "out").exists()


def test_models_and_baselines_have_two_million_steps_in_all():
    """Section 4. What others start from has a million of them."""
    configs = {path.stem: read_config(path) for path in CONFIGS.glob("*.toml")}

    def steps(config):
        own = config.optimiser.steps + config.optimiser.adversarial_steps
        return own + (steps(configs[Path(config.initial).parent.name]) if config.initial else 0)

    started = {Path(config.initial).parent.name for config in configs.values() if config.initial}
    assert started == {"stage1", "stage1-medium", "stage1-high", "mse"}
    assert {name: steps(config) for name, config in configs.items()} == {
        name: 1_000_000 if name in started else 2_000_000 for name in configs
    }
    module = ablation_script()
    for name in ("hyperprior", "no-gan", "low", "blocks-1"):  # --steps leaves them as many as each other
        made = [module.override(values, False, 5, [])["optimiser"] for values in module.read_family(CONFIGS, [name]).values()]
        assert sum(each["steps"] + each["adversarial_steps"] for each in made) == 10


def test_the_script_names_every_configuration():
    named = re.split(r"[\s,();:]+", ablation_script().__doc__)
    missing = [path.stem for path in CONFIGS.glob("*.toml") if not any(fnmatch(path.stem, pattern) for pattern in named)]
    assert not missing


def write_vgg(folder):
    """Random weights of a VGG19 with 4 channels, in the file's layout."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name in ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "3_4"):
        channels = 3 if name == "1_1" else 4
        tensors[f"conv{name}.weight"] = torch.randn(4, channels, 3, 3, generator=generator) / (9 * channels / 2) ** 0.5
        tensors[f"conv{name}.bias"] = torch.zeros(4)
    save_file(tensors, folder / VGG_FILE)


SWEPT = [f"beta-{beta}-{rate}" for beta in (0.015, 1.5) for rate in ("medium", "high")]


@pytest.mark.parametrize("name", [*SWEPT, "gan-alone-fixed", "vgg-l1", "hyperprior-gan"])
def test_the_configurations_train_on_small_networks(tmp_path, data, monkeypatch, name):
    """Whole, with the stage that they start from; a training without d_P's weights would stop."""
    module = ablation_script()
    write_vgg(tmp_path)
    monkeypatch.setenv("MCODE_PERCEPTUAL", str(tmp_path))
    given = [text for text in TINY if "perceptual" not in text]
    rows: list[dict[str, float]] = []
    for each, values in module.read_family(CONFIGS, [name]).items():
        config = from_dict(module.override(values, False, 1, given), hific.HificTraining)
        checkpoint = hific.train(config, data, tmp_path / each, report=rows.append)
    assert each == name and config.loss.beta * rows[-1]["loss_g"] > 0
    assert (rows[-1]["feature"] > 0) is (name != "gan-alone-fixed")
    model = mcode.load(hific_manifold(checkpoint, data, tmp_path / "m.safetensors"), device="cpu")
    assert model.synthesise(model.analyse(np.zeros((1, 40, 33, 3), np.uint8)), 33, 40).shape == (1, 40, 33, 3)
    if name == "gan-alone-fixed":
        before, after = (loop.read_checkpoint(tmp_path / n / loop.CHECKPOINT)[2] for n in ("stage1", name))
        moved = {
            key.split(".")[2] for key in before if key.startswith("model.hific.") and not torch.equal(before[key], after[key])
        }
        assert moved == {"generator"}


def hific_manifold(checkpoint, data, path):
    hific.export(checkpoint, data, path)
    return path


def test_what_the_gan_leaves_alone_learns_in_the_stage_before():
    config = hific.HificTraining(
        "hific",
        "x",
        PaperConfig(channels=4, width=2, blocks=1, hyper=4),
        hific.HificData(("p",), crop=64),
        hific.HificOptimiser(1, 1),
        freeze="encoder",
        loss=hific.HificLoss(easy_steps=0),
        bfloat16=False,
    )
    torch.manual_seed(0)
    model, x = hific.Networks(config), torch.rand(1, 3, 64, 64)
    for learning, step in ((True, 0), (False, 1), (True, 0)):
        model.zero_grad(set_to_none=True)
        hific.coder_loss(model, x, config, None, step).loss.backward()
        for part, expected in (
            (model.hific.encoder, learning),
            (model.hific.hyperprior, learning),
            (model.hific.generator, True),
        ):
            assert all((p.grad is not None) is expected for p in part.parameters())
    with pytest.raises(ValueError, match="adversarial_steps"):
        replace(config, optimiser=hific.HificOptimiser(1, 0))


def test_vgg_l1_is_the_absolute_difference_of_features_and_has_a_gradient(tmp_path, monkeypatch):
    write_vgg(tmp_path)
    monkeypatch.setenv("MCODE_PERCEPTUAL", str(tmp_path))
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48, requires_grad=True)
    found = hific.perceptual_distance(hific.HificLoss(perceptual="vgg19-l1"), "cpu")(a, b)
    with torch.no_grad():
        maps = [VggFeatures(layers=VGG_LAYERS)(each) for each in (a, b)]
    for i in range(2):
        layers = [float(np.abs(u[i].numpy() - v[i].numpy()).mean()) for u, v in zip(*maps, strict=True)]
        assert found[i].item() == pytest.approx(sum(layers) / 3 / 255, rel=1e-4)
    found.sum().backward()
    assert b.grad is not None and b.grad.abs().sum() > 0
    assert hific.perceptual_distance(hific.HificLoss(perceptual="vgg19"), "cpu")(a, b).sum() != found.sum()


def test_small_networks_keep_their_proportions():
    module = ablation_script()
    widths = {}
    for name in ("low", "hyperprior-gan"):
        values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
        widths[name] = module.override(values, True, 1, [])["network"]["width"]
    assert widths["hyperprior-gan"] / widths["low"] == pytest.approx(192 / 60, rel=0.05)


def test_stages_are_as_long_as_told():
    module = ablation_script()
    whole, later = {"optimiser": {"steps": 9, "adversarial_steps": 9}}, {"optimiser": {"steps": 0, "adversarial_steps": 9}}
    lengths = []
    for values in (whole, later):
        for more in ((None, None), (20, None), (20, 5), (None, 5)):
            made = module.override(values, False, more[0], [], more[1])["optimiser"]
            lengths.append((made["steps"], made["adversarial_steps"]))
    assert lengths == [(9, 9), (20, 20), (20, 5), (9, 5), (0, 9), (0, 20), (0, 5), (0, 5)]
    assert whole["optimiser"]["steps"] == 9
    alone = module.override({"optimiser": {"steps": 9, "adversarial_steps": 0}}, False, None, [], 5)
    assert alone["optimiser"]["adversarial_steps"] == 0


def test_seeds_are_trainings_of_their_own_from_the_start_on():
    module = ablation_script()
    family = module.read_family(CONFIGS, ["low"])
    made = module.with_seeds(family, [1, 3])
    assert list(made) == ["stage1", "low", "stage1-s3", "low-s3"] and {name: made[name] for name in family} == family
    configs = {name: from_dict(values, hific.HificTraining) for name, values in made.items()}
    expected = replace(configs["low"], name="hific-low-s3", seed=3, initial="../stage1-s3/checkpoint.safetensors")
    assert configs["low-s3"] == expected and configs["stage1-s3"] == replace(configs["stage1"], name="hific-stage1-s3", seed=3)
    assert module.whole_numbers("3,1,3") == [1, 3]
    with pytest.raises(ValueError, match="0,2"):
        module.whole_numbers("0,2")


def test_rows_that_differ_in_seed_alone_are_one_of_the_table_over_seeds(tmp_path):
    """Table 1. Everything else that a configuration says tells them apart, and so do their steps."""
    from mcode.evaluation import ablation

    module = ablation_script()
    made = module.with_seeds(module.read_family(CONFIGS, ["low"]), [1, 2, 12])
    configs = {name: to_dict(from_dict(values, hific.HificTraining)) for name, values in made.items()}
    other = configs["low-s2"] | {"optimiser": configs["low"]["optimiser"] | {"learning_rate": 2e-4}}

    def row(name, training, psnr, steps=9):
        card = {"training_config": training, "steps": steps, "start_steps": 4}
        settings = settings_of(card, {"network": training["network"]})
        scores = {"psnr_db": psnr, "lpips": None if name == "low-s12" else 0.5}
        return AblationRow(name, "00", settings, 0.1 * psnr, None, 1.0, 2.0, scores)

    of_others = [row("other", other, 1.0), row("early", configs["low-s2"], 1.0, 8), row("stage1", configs["stage1"], 1.0)]
    alike = [row(name, configs[name], psnr) for name, psnr in (("low-s12", 4.0), ("low", 1.0), ("low-s2", 2.5))]
    report = replace(report_of(*of_others, *alike), folder=str(tmp_path))
    columns, lines = ablation.seeds_table(report)
    assert columns == ["model", "seeds", "bit/pixel", "d", "PSNR, dB", "LPIPS (AlexNet)"]
    assert lines == [["low", "1, 2, 12", "0.250 (Δ 0.300)", "2.000 (Δ 0.000)", "2.50 (Δ 3.00)", "–"]]
    ablation._write_all(tmp_path, report)
    assert "| low | 1, 2, 12 | 0.250 (Δ 0.300) |" in (tmp_path / "ablation.md").read_text()
    assert ablation.seeds_table(report_of(*of_others))[1] == []
    judged = [replace(each, scores={"niqe": each.scores["psnr_db"]}) for each in alike]
    assert sweep_points(report_of(*judged))[1] == {0.14: [(0.15, 2.0, 1.0)]}  # of the first seed


def test_a_family_is_trained_with_several_seeds_and_its_spread_written(tmp_path, data):
    done = script(data, tmp_path, "--seeds", "1,2", only="stage1")
    assert done.returncode == 0, done.stderr
    ids = {manifold.verify(tmp_path / f"stage1{end}" / f"hific-stage1{end}.safetensors") for end in ("", "-s2")}
    assert len(ids) == 2 and "hific-stage1\t1, 2\t" in done.stdout
    assert "| hific-stage1 | 1, 2 |" in (tmp_path / "report" / "ablation.md").read_text()


def test_instance_norm_depends_on_the_whole_picture_and_channel_norm_does_not():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 160) * 2 - 1
    other = x.clone()
    other[..., 128:] *= -1
    for norm, same in (("channel", True), ("instance", False)):
        net = Hific(PaperConfig(channels=4, width=2, blocks=1, hyper=4, norm=norm)).eval()
        with torch.no_grad():
            y, z = net.analysis(x), net.analysis(other)
        assert torch.allclose(y[..., 0], z[..., 0], atol=1e-6) is same
        assert (net.pixels_at_once > 1 << 30) is not same  # such a picture cannot be taken in parts


def test_bits_are_those_of_the_distribution():
    net = Hific(PaperConfig(channels=2, width=2, blocks=1, hyper=2)).eval()
    for parameter in net.hyperprior.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():  # mean 0, scale 2 everywhere
        net.hyperprior.synthesis_scale[-1].bias.fill_(2.0)
    y = torch.tensor([0.0, 1.0, -3.0, 0.0, 2.0, 0.0, 0.0, 5.0]).view(1, 2, 2, 2)
    normal = torch.distributions.Normal(0.0, 2.0)
    expected = -(normal.cdf(y + 0.5) - normal.cdf(y - 0.5)).log2().sum()
    with torch.no_grad():
        of_z = -2 * net.hyperprior.density(torch.zeros(1, 2, 1, 1)).log2().mean()
    assert net.bits(y) == pytest.approx(float(expected + of_z), rel=1e-4)


def test_the_models_say_how_they_are_trained_with_the_papers_distance():
    module = ablation_script()
    for name in ("low", "medium", "high"):
        header = (CONFIGS / f"{name}.toml").read_text().split("kind =")[0]
        given = shlex.split(header.splitlines()[-1].removeprefix("#"))
        assert "LPIPS" in header and given[:3] == ["--only", name, "--set"]
        for values in module.read_family(CONFIGS, [name]).values():
            changed = module.override(values, False, None, given[3:])
            assert from_dict(changed, hific.HificTraining).loss.perceptual == "lpips"


# Training


def test_a_checkpoint_from_before_d_was_normalised_whole_starts_others_but_is_not_resumed(trained, data, tmp_path):
    """Its E, G and P are as they were; its D is another network."""
    out, _ = trained
    config = read_config(out / "low.toml")
    step, _, tensors = loop.read_checkpoint(out / "low" / loop.CHECKPOINT)
    for name in ("condition", "net.8"):
        for part in ("0.0._u", "0.0._v", "0._u", "0._v"):
            tensors.pop(f"model.d.{name}.parametrizations.weight.{part}", None)
        for kind in ("model", "exp_avg", "exp_avg_sq", "updates"):
            tensors[f"{kind}.d.{name}.weight"] = tensors.pop(f"{kind}.d.{name}.parametrizations.weight.original")
    (tmp_path / "low").mkdir()
    metadata = {"step": str(step), "config": json.dumps(to_dict(config))}
    save_file(tensors, tmp_path / "low" / loop.CHECKPOINT, metadata)
    with pytest.raises(InputError, match="other networks"):
        hific.train(config, data, tmp_path / "low", resume=True)
    hific._start_from(hific.Networks(config).hific, tmp_path / "low" / loop.CHECKPOINT)
    hific.export(tmp_path / "low" / loop.CHECKPOINT, data, tmp_path / "m.safetensors")
    assert manifold.verify(tmp_path / "m.safetensors") == manifold.verify(out / "low" / "hific-low.safetensors")


def test_stage_2_starts_from_stage_1_and_its_d_afresh(trained):
    out, _ = trained
    stage1 = loop.read_checkpoint(out / "stage1" / loop.CHECKPOINT)[2]
    config = read_config(out / "low.toml")
    assert config.initial == "../stage1/checkpoint.safetensors"
    model = hific.Networks(config)
    hific._start_from(model.hific, out / "low" / config.initial)
    for name, value in model.hific.state_dict().items():
        assert torch.equal(value, stage1[f"model.hific.{name}"]), name
    # After two steps with a learning rate of 1e-4 its weights are still near, D's are its own.
    stage2 = loop.read_checkpoint(out / "low" / loop.CHECKPOINT)[2]
    near = [(stage2[k] - v).abs().max() for k, v in stage1.items() if k.startswith("model.hific.") and k.endswith("weight")]
    assert 0 < max(near) < 1e-3
    assert any(k.startswith("exp_avg.d.") for k in stage2) and not any(k.startswith("exp_avg.d.") for k in stage1)


def test_a_start_that_is_not_there_or_of_other_networks_is_named(tmp_path, data, trained):
    out, _ = trained
    text = (out / "low.toml").read_text()
    (tmp_path / "low.toml").write_text(text)
    with pytest.raises(InputError, match=r"initial: .*stage1/checkpoint.safetensors is not there"):
        train(tmp_path / "low.toml", data, tmp_path / "low", device="cpu")
    (tmp_path / "low.toml").write_text(text.replace("width = 2", "width = 3"))
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / loop.CHECKPOINT).write_bytes((out / "stage1" / loop.CHECKPOINT).read_bytes())
    with pytest.raises(InputError, match="of other networks"):
        train(tmp_path / "low.toml", data, tmp_path / "low", device="cpu")


@pytest.mark.parametrize("norm", ["spectral", "instance"])
@pytest.mark.parametrize("conditional", [True, False])
def test_every_d_judges_each_patch(norm, conditional):
    d = Discriminator(4, norm=norm, conditional=conditional)
    x, y = torch.rand(2, 3, 64, 96), torch.rand(2, 4, 4, 6)
    assert d(x, y).shape == (2, 1, 4, 6)
    moved = torch.equal(d.eval()(x, y), d(x, y + 1))
    assert moved is not conditional


def write_lpips(folder):
    """Random weights in the layout of torchvision's AlexNet and of LPIPS."""
    generator = torch.Generator().manual_seed(0)
    state, linear = {}, {}
    for number, (place, (a, b, size, _, _)) in enumerate(zip(lpips._IN_STATE_DICT, lpips._LAYERS, strict=True)):
        state[f"features.{place}.weight"] = torch.randn(b, a, size, size, generator=generator) / (a * size**2) ** 0.5
        state[f"features.{place}.bias"] = torch.zeros(b)
        linear[f"lin{number}.model.1.weight"] = torch.rand(1, b, 1, 1, generator=generator)
    torch.save(state, folder / lpips.ALEXNET_FILE)
    torch.save(linear, folder / lpips.LINEAR_FILE)


def test_lpips_as_a_loss_is_the_metric_and_has_a_gradient(tmp_path, monkeypatch):
    write_lpips(tmp_path)
    monkeypatch.setenv("MCODE_PERCEPTUAL", str(tmp_path))
    distance = hific.perceptual_distance(hific.HificLoss(perceptual="lpips"), "cpu")
    assert distance is not None
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 64, 80, 3), np.uint8)
    x, y = (torch.from_numpy(v).permute(2, 0, 1)[None].float() / 255 for v in (a, b))
    y.requires_grad_()
    found = distance(x, y)
    metric = lpips.Lpips(tmp_path / lpips.ALEXNET_FILE, tmp_path / lpips.LINEAR_FILE)
    assert found.shape == (1,) and found.item() == pytest.approx(metric(a, b), rel=1e-5) and metric(a, a) == 0
    found.sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    assert hific.perceptual_distance(hific.HificLoss(perceptual="none"), "cpu") is None
    assert hific.perceptual_distance(hific.HificLoss(perceptual="lpips", k_perceptual=0.0), "cpu") is None


def test_a_loss_without_its_weights_is_left_out_and_the_others_go_on(tmp_path, data, monkeypatch):
    monkeypatch.delenv("MCODE_PERCEPTUAL", raising=False)
    wanted = [text for text in TINY if "perceptual" not in text]
    command = [sys.executable, str(ROOT / "scripts" / "ablation.py"), str(CONFIGS), "--data", str(data)]
    command += ["--out", str(tmp_path / "two"), "--only", "lpips,mse", "--steps", "1", "--device", "cpu"]
    command += ["--pictures", str(data / "pictures"), *(part for text in wanted for part in ("--set", text))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert said[0]["configuration"] == "lpips" and "alexnet" in said[0]["left_out"]
    assert "mcode evaluate images PICTURES -o OUT --perceptual DIR --fetch-weights" in said[0]["left_out"]
    assert said[1]["configuration"] == "mse" and Path(said[1]["manifold"]).is_file()
    assert (tmp_path / "two" / "report" / "ablation.json").is_file()


# The script and the report


def test_the_family_is_trained_in_order_and_measured(trained, data):
    out, said = trained
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["configuration"] for line in lines] == ["stage1", "no-gan", "low", "beta-1.5", "unconditional"]
    report = json.loads((out / "report" / "ablation.json").read_text())
    assert report["images"] == 3
    rows = {row["name"]: row for row in report["rows"]}
    assert [rows[f"hific-{n}"]["settings"]["beta"] for n in ("no-gan", "low", "beta-1.5")] == [0.0, 0.15, 1.5]
    assert rows["hific-unconditional"]["settings"]["conditional"] is False
    assert rows["hific-no-gan"]["settings"]["norm_d"] is None
    for row in rows.values():
        assert row["bpp"] > 0 and row["estimate"] > 0
        assert row["settings"]["steps"] == (2 if row["name"] == "hific-stage1" else 4)
        assert row["distortion"] == pytest.approx(0.075 / 32 * row["mse"])  # d_P = none here
        assert row["scores"]["psnr_db"] > 0 and 0 < row["scores"]["ssim"] < 1
    markdown = (out / "report" / "ablation.md").read_text().splitlines()
    assert markdown[2].startswith("| model | beta | norm in D | D sees y | steps | bit/pixel | under P | d | PSNR, dB | SSIM |")
    assert len(markdown) == 4 + 5 and markdown[-1].startswith("| hific-unconditional | 0.15 | spectral | no | 4 |")


def test_steps_of_a_start_that_is_gone_are_not_known(trained, data, tmp_path):
    out, _ = trained
    (tmp_path / loop.CHECKPOINT).write_bytes((out / "low" / loop.CHECKPOINT).read_bytes())
    for checkpoint, steps, shown in ((out / "low" / loop.CHECKPOINT, 4, 4), (tmp_path / loop.CHECKPOINT, 2, None)):
        info = manifold.read_info(hific_manifold(checkpoint, data, tmp_path / "m.safetensors"))
        assert (info.card["steps"], settings_of(info.card, info.config).steps) == (steps, shown)
    (tmp_path / "stage1").mkdir()  # it starts from ../stage1, now from itself
    circle = (tmp_path / loop.CHECKPOINT).rename(tmp_path / "stage1" / loop.CHECKPOINT)
    assert "start_steps" not in manifold.read_info(hific_manifold(circle, data, tmp_path / "m.safetensors")).card


def test_started_again_it_trains_and_measures_nothing(trained, data):
    out, _ = trained
    before = (out / "low" / loop.CHECKPOINT).stat().st_mtime_ns
    done = script(data, out)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["finished"] for line in said] == ["before"] * 5
    assert (out / "low" / loop.CHECKPOINT).stat().st_mtime_ns == before
    changed = script(data, out, "--set", "seed=2")
    assert changed.returncode == 1 and "trained with another configuration" in changed.stdout
    assert changed.stdout.count("starts from stage1, which was left out") == 4


def test_an_interrupted_family_goes_on(trained, data, tmp_path):
    """The checkpoint of a training stands, its manifold does not: it is resumed, and ends as the other did."""
    out, _ = trained
    for name in ("stage1", "low"):
        (tmp_path / name).mkdir()
        (tmp_path / name / loop.CHECKPOINT).write_bytes((out / name / loop.CHECKPOINT).read_bytes())
    done = script(data, tmp_path, only="low")
    assert done.returncode == 0, done.stderr
    ids = [manifold.verify(folder / "low" / "hific-low.safetensors") for folder in (out, tmp_path)]
    assert ids[0] == ids[1]


def test_an_interrupted_training_does_not_go_on_with_another_configuration(trained, data, tmp_path):
    out, _ = trained
    module = ablation_script()
    (tmp_path / "stage1").mkdir()
    for name in ("stage1.toml", f"stage1/{loop.CHECKPOINT}"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    given = argparse.Namespace(out=tmp_path, data=data, device="cpu", perceptual=None)
    values = tomllib.loads((tmp_path / "stage1.toml").read_text())
    for changed in (values | {"seed": 7}, values | {"loss": values["loss"] | {"k_mse": 9.0}}):
        with pytest.raises(McodeError, match=r"stage1.toml: trained with another configuration; .* remove .*stage1$"):
            module.train_one("stage1", changed, given)
    assert tomllib.loads((tmp_path / "stage1.toml").read_text()) == values
    (tmp_path / "stage1.toml").write_bytes(b"\xff = ")
    with pytest.raises(McodeError, match=r"stage1.toml: trained with another configuration"):
        module.train_one("stage1", values, given)
    (tmp_path / "stage1.toml").write_bytes((out / "stage1.toml").read_bytes())
    goes_on = values | {"optimiser": values["optimiser"] | {"steps": 3}}
    assert manifold.read_info(module.train_one("stage1", goes_on, given)).card["steps"] == 3


def test_the_command_reads_the_cache_and_says_what_is_wrong_in_one_line(trained, data, tmp_path, capsys):
    out, _ = trained
    (tmp_path / "empty").mkdir()
    files = ",".join(str(out / n / f"hific-{n}.safetensors") for n in ("no-gan", "low"))
    command = [
        "evaluate",
        "ablation",
        str(data / "pictures"),
        "--manifolds",
        files,
        "-o",
        str(tmp_path / "r"),
        "--device",
        "cpu",
    ]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"] == 6 and [row["name"] for row in report["rows"]] == ["hific-no-gan", "hific-low"]
    assert main(command) == 2
    assert "ablation.json: exists; add --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert "0 pictures measured now" in capsys.readouterr().out
    for wrong, message in (
        ([*command[:4], files + "," + files.split(",")[0], *command[5:], "--force"], "two have the same name"),
        ([*command[:4], "nothing-so-named", *command[5:], "--force"], "no manifold named 'nothing-so-named'"),
        ([*command[:4], ",", *command[5:], "--force"], "name at least one"),
        (["evaluate", "ablation", str(tmp_path / "empty"), *command[3:], "--force"], "no pictures in it"),
    ):
        assert main(wrong) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and message in said[0], said


def test_a_model_trained_with_vgg_l1_has_a_distortion_also_where_it_was_measured_without(tmp_path, data, monkeypatch):
    from mcode.evaluation import ablation

    write_vgg(tmp_path)
    monkeypatch.setenv("MCODE_PERCEPTUAL", str(tmp_path))
    given = [text for text in TINY if "perceptual" not in text]
    values = ablation_script().read_family(CONFIGS, ["vgg-l1"])["vgg-l1"]
    config = from_dict(ablation_script().override(values, False, 1, given), hific.HificTraining)
    path = hific_manifold(hific.train(config, data, tmp_path / "run"), data, tmp_path / "m.safetensors")
    measure = ablation._measure
    with monkeypatch.context() as before:
        before.setattr(ablation, "_measure", lambda model, rgb, judges, vgg: measure(model, rgb, judges))
        (old,) = evaluate_ablation(data / "pictures", [path], tmp_path / "r", perceptual=tmp_path, device="cpu").rows
    assert old.distortion is None
    report = evaluate_ablation(data / "pictures", [path], tmp_path / "r", perceptual=tmp_path, device="cpu", force=True)
    (row,) = report.rows
    model, distance = mcode.load(path, device="cpu"), hific.perceptual_distance(config.loss, "cpu")
    found = []
    for picture in sorted((data / "pictures").iterdir()):
        rgb = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
        decoded = model.synthesise(model.analyse(rgb[None]).round(), rgb.shape[1], rgb.shape[0])[0]
        x, y = (torch.from_numpy(v).permute(2, 0, 1)[None].float() / 255 for v in (rgb, decoded))
        found.append(distance(x, y).item())
    assert report.measured == 3 and row.scores["vgg19-l1"] == pytest.approx(sum(found) / 3, rel=0.01)
    assert row.distortion == pytest.approx(config.loss.k_mse * row.mse + row.scores["vgg19-l1"])
    assert "vgg19-l1" not in table(report)[0]


def test_another_precision_is_measured_anew(trained, data, tmp_path, monkeypatch):
    from mcode.evaluation import ablation

    path = trained[0] / "low" / "hific-low.safetensors"
    for dtype, measured in ((torch.float32, 3), (torch.float32, 0), (torch.bfloat16, 3)):
        for module in ("evaluation.ablation", "latents"):
            monkeypatch.setattr(f"mcode.{module}.fast_dtype", lambda device, dtype=dtype: dtype)
        report = evaluate_ablation(data / "pictures", [path], tmp_path / "r", device="cpu", force=True)
        assert report.measured == measured
        assert ablation._precision(manifold.read_info(path), "cpu") == manifold.load(path, "cpu").precision


def test_the_precision_foretold_is_that_which_is_chosen():
    from mcode.evaluation.ablation import _precision

    assert _precision(manifold.read_info("general"), "cpu") == manifold.load("general", "cpu").precision


def report_of(*rows):
    keys = {key for row in rows for key in row.scores}
    return AblationReport("d", 1, tuple(m for m in METRICS if m.key in keys), rows, 0, (), ())


def row_of(name, target, beta, d, *, fid=None, perceptual="vgg19", conditional=True, blocks=9, norm_d="spectral"):
    settings = Settings(
        target, beta, 0.002, 1.0, perceptual, norm_d if beta else None, conditional if beta else None, "channel", blocks, 9
    )
    return AblationRow(name, "00", settings, target, target, 100.0, d, {"mobilenet": 0.2, "squeezenet_fid256": fid})


def test_the_sweep_takes_models_that_differ_in_beta_and_rate_alone():
    report = report_of(
        row_of("low", 0.14, 0.15, 2.0, fid=5.0),
        row_of("strong", 0.14, 1.5, 3.0, fid=4.0),
        row_of("no GAN", 0.14, 0.0, 1.0, fid=9.0),
        row_of("high", 0.45, 0.15, 0.5, fid=3.0),
        row_of("blocks-1", 0.14, 0.15, 2.5, fid=20.0, blocks=1),
        row_of("blind", 0.14, 0.15, 2.5, fid=21.0, conditional=False),
        row_of("instance", 0.14, 0.15, 2.5, fid=22.0, norm_d="instance"),
        row_of("M&S", 0.14, 0.0, 0.8, fid=23.0, perceptual="none"),
    )
    metric, sweeps = sweep_points(report)
    assert metric is not None and metric.key == "squeezenet_fid256"
    assert sweeps == {0.14: [(0.0, 1.0, 9.0), (0.15, 2.0, 5.0), (1.5, 3.0, 4.0)], 0.45: [(0.15, 0.5, 3.0)]}
    columns, lines = table(report)
    assert columns[:5] == ["model", "r_t", "beta", "d_P", "norm in D"] and "blocks" in columns
    assert lines[2][:6] == ["no GAN", "0.14", "0", "vgg19", "–", "–"]


def test_a_sweep_is_drawn_and_models_without_a_training_are_none(tmp_path, monkeypatch):
    from mcode.evaluation import ablation

    drawn = ablation._drawn(report_of(row_of("low", 0.14, 0.15, 2.0, fid=5.0), row_of("no GAN", 0.14, 0.0, 1.0, fid=9.0)))
    assert drawn is not None
    picture = cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 400 and picture.min() < 100
    unknown = settings_of({"steps": 5}, {"network": {"family": "compact"}})
    assert unknown == Settings(*[None] * 9, 5)
    row = AblationRow("general", "00", unknown, 0.1, None, 10.0, None, {"mobilenet": 0.1})
    assert ablation._drawn(report_of(row)) is None
    assert table(report_of(row))[1] == [["general", "5", "0.100", "–", "–", "0.100"]]


@pytest.mark.parametrize("name", ["ablation.json", "ablation.md", "sweep.png"])
def test_files_of_others_where_the_report_would_stand_are_kept(tmp_path, data, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name}: exists; add --force"):
        evaluate_ablation(data / "pictures", ["general"], tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: is a folder"):
        evaluate_ablation(data / "pictures", ["general"], tmp_path, force=True)
    with pytest.raises(InputError, match="is the folder of the pictures"):
        evaluate_ablation(data / "pictures", ["general"], data / "pictures", force=True)


def test_an_evaluation_stopped_while_its_report_is_written_goes_on(tmp_path, data, trained, monkeypatch):
    from mcode.evaluation import ablation

    write, models = ablation._write, [trained[0] / "low" / "hific-low.safetensors"]

    def interrupted(path, content):
        if path.name == "ablation.json":
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation, "_write", interrupted)
        evaluate_ablation(data / "pictures", models, tmp_path, device="cpu")
    assert (tmp_path / "ablation.md").is_file()
    assert evaluate_ablation(data / "pictures", models, tmp_path, device="cpu").measured == 0
    with pytest.raises(InputError, match="ablation.json: exists; add --force"):
        evaluate_ablation(data / "pictures", models, tmp_path, device="cpu")


def test_a_manifold_of_one_size_is_refused(tmp_path, data):
    from mcode.coders import CodeTables

    config = {"frame_size": [32, 32], "m": 2, "qualities": 1}
    tensors = {"basis": np.zeros((2, 3072), np.int8)}
    path = tmp_path / "one.safetensors"
    tables = [CodeTables.fit([np.zeros((2, 1, 1), np.int16)])]
    manifold.save(path, kind="linear", name="one", config=config, tables=tables, tensors=tensors, card={})
    with pytest.raises(InputError, match="holds one size alone"):
        evaluate_ablation(data / "pictures", [path], tmp_path / "out", device="cpu")
