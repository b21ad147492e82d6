"""The residual family: it starts as the linear part, learns, resumes, and the codec holds what training assumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mcode
from mcode.coders import fixed
from mcode.errors import ConfigError, InputError
from mcode.evaluation.paper.images import to_code
from mcode.latents import dequantise, quantise
from mcode.nets.residual import Residual, ResidualConfig, UNet
from mcode.testclip import write_clip
from mcode.training import loop, residual
from mcode.training.residual import ResidualTraining, Samples, learn_components, pictures, quantise_bits
from mcode.training.squares import Squares, load_squares
from mcode.training.train import read_config, train

CONFIG = """
kind = "ncode"
name = "tiny"
steps = 6
{options}
bfloat16 = false
checkpoint_every = 3
[network]
family = "residual"
frame_size = [48, 32]
m = 6
patch = 2
width = 4
blocks = 1
encoder = {encoder}
[data]
folders = ["clips"]
batch = 4
"""
OPTIONS = {
    "bits": 'quantiser = "bits"\nbits = [3, 5]',
    "code": 'quantiser = "bits"\nbits = [3, 5]\nfolds = 2\nbit_error_rate = 0.05',
    "folds": 'quantiser = "step"\nstep = 20.0\nintervals = [1, 4]\nfolds = 2',
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "clips").mkdir()
    for seed in (1, 2, 3):
        write_clip(folder / "clips" / f"{seed}.mp4", scene="arms", seconds=1, size=(48, 32), seed=seed)
    return folder


def write(tmp_path: Path, options: str, encoder: bool = False) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(options=OPTIONS[options], encoder=str(encoder).lower()))
    return path


def tiny(**changes: object) -> ResidualConfig:
    return replace(ResidualConfig(frame_size=(20, 12), m=5, patch=2, width=4, blocks=1), **changes)


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_network_is_its_linear_part(channels):
    net = Residual(tiny(channels=channels)).eval()
    learn_components(net, noise(40, (12, 20, channels)))
    rgb = pictures(noise(3, (12, 20, 3), seed=1))
    y = net.analysis(rgb)
    assert y.shape == (3, 5, 1, 1)
    expected = net.linear_synthesis(y.flatten(1) - net.offset).expand(-1, 3, -1, -1)
    torch.testing.assert_close(net.synthesis(y), expected)


def test_components_are_those_of_numpy():
    pixels = noise(60, (4, 6, 3))
    net = Residual(tiny(frame_size=(6, 4), m=3))
    learn_components(net, pixels)
    flat = pictures(pixels).flatten(1).numpy()
    centred = flat - flat.mean(0)
    share = (np.linalg.svd(centred, full_matrices=False)[1][:3] ** 2).sum()
    y = net.linear_analysis(pictures(pixels)).numpy()
    assert (y**2).sum() == pytest.approx(share, rel=1e-2)  # the rows are kept in 8 bits
    np.testing.assert_allclose(net.deviation.numpy(), y.std(0, ddof=1), rtol=1e-3)


def test_linear_analysis_finds_what_linear_synthesis_was_given():
    net = Residual(tiny())
    learn_components(net, noise(40, (12, 20, 3)))
    y = torch.randn(4, 5)
    torch.testing.assert_close(net.linear_analysis(net.linear_synthesis(y)), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_bit_errors_in_training_are_those_of_the_coder_fixed(bits):
    """Of every level, and of every pattern of flips drawn for it, the result is one that flips of `fixed` give."""
    half = 1 << bits >> 1
    levels = torch.arange(1 - half, half + 1).float()
    drawn = levels.unsqueeze(0).repeat(4000, 1)
    torch.manual_seed(0)
    found = residual._flipped(drawn, torch.full((4000,), bits), torch.full((4000,), 0.1)).long().numpy()
    before = to_code((levels.long().numpy() - (1 - half)), bits, "folded")
    after = to_code(found - (1 - half), bits, "folded")
    flips = np.bitwise_count(after ^ before)
    assert flips.mean() == pytest.approx(0.1 * bits, rel=0.05)
    assert (flips == 0).mean() == pytest.approx(0.9**bits, rel=0.02)
    same = residual._flipped(drawn, torch.full((4000,), bits), torch.zeros(4000))
    assert torch.equal(same, drawn)


def test_a_code_starts_as_the_first_components():
    net = Residual(tiny(components=9, code=8)).eval()
    learn_components(net, noise(40, (12, 20, 3)))
    x = pictures(noise(3, (12, 20, 3), seed=1))
    y = net.encode(x)
    components = net.linear_analysis(x)
    torch.testing.assert_close(y, (components / net.spread)[:, :5])
    back = net.components(y)
    torch.testing.assert_close(back[:, :5], components[:, :5])
    assert not back[:, 5:].any()


def test_the_code_learns_to_bear_bit_errors(tmp_path, data):
    """Trained on its components alone, with errors in the bits, it loses less to them than it did at the start."""
    path = write(tmp_path, "code")
    path.write_text(path.read_text().replace("encoder = false", "code = 32"))
    config = replace(read_config(path), bit_error_rate=0.03, bits=(5,))
    squares = residual.load(config, data)
    net = Residual(config.network)
    learn_components(net, squares.pixels)
    samples = Samples(config, net, squares, torch.device("cpu"))
    samples.left_out = 0.0  # the code's own error alone
    optimiser = torch.optim.Adam(net.code.parameters(), 2e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(150):
        losses.append(samples.code_loss())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    first, last = (torch.stack(part).mean().item() for part in (losses[:10], losses[-10:]))
    assert last < first - 0.1, (first, last)


def test_no_gradient_reaches_a_coordinate_beyond_the_last_level():
    y = torch.tensor([[0.3, 5.0, -5.0]], requires_grad=True)
    quantise_bits(y, torch.ones(3), torch.tensor([5])).sum().backward()
    assert y.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_a_direct_path_tells_the_network_more_than_the_base_does():
    net = UNet(tiny(direct=True))
    torch.nn.init.normal_(net.last.weight)
    base, y = torch.zeros(2, 3, 12, 20), torch.tensor([[0.0] * 5, [1.0] * 5])
    a, b = net(base, y)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_the_receiver_holds_what_training_assumed(tmp_path, data, bits):
    """quantise_bits in training and the manifold's gain, tables and coder `fixed` give the same coordinates."""
    config = read_config(write(tmp_path, "bits"))
    squares = residual.load(config, data)
    net = Residual(config.network)
    learn_components(net, squares.pixels)
    residual.save(net.eval(), config, squares, tmp_path / "tiny.safetensors")
    model = mcode.load(tmp_path / "tiny.safetensors", "cpu", precision="float32")
    tables = model.tables(bits)
    assert tables.bits.tolist() == [bits] * 6
    rgb = squares.pixels[::7]
    symbols = np.stack([quantise(latent, model.gain(bits)) for latent in model.analyse(rgb)])
    clipped = np.stack([fixed.clip(s, tables) for s in symbols])
    received = torch.stack([dequantise(s, model.inverse(bits)) for s in clipped]).flatten(1) - model.net.offset
    with torch.no_grad():
        y = model.net.encode(pictures(rgb))
    expected = quantise_bits(y, model.net.deviation, torch.full((len(y),), bits))
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(clipped)) <= 2**bits


NETWORKS = {
    "plain": "encoder = false",
    "encoder": "encoder = true",
    "code": "components = 9\ncode = 8\ndirect = true",
    "all": "encoder = true\ncode = 8\ndirect = true",
}


@pytest.mark.parametrize(
    ("options", "network"),
    [("bits", "plain"), ("bits", "encoder"), ("folds", "plain"), ("code", "code"), ("bits", "all")],
)
def test_a_run_resumed_ends_as_if_uninterrupted_and_leaves_a_manifold(tmp_path, data, monkeypatch, options, network):
    path = write(tmp_path, options)
    path.write_text(path.read_text().replace("encoder = false", NETWORKS[network]))
    whole = train(path, data, tmp_path / "whole", device="cpu")
    save, stop = loop.save_checkpoint, RuntimeError("killed")

    def killed(*arguments: object, **more: object) -> None:
        save(*arguments, **more)
        raise stop

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(path, data, tmp_path / "cut", device="cpu")
    monkeypatch.undo()
    train(path, data, tmp_path / "cut", resume=True, device="cpu")
    a, b = (loop.read_checkpoint(tmp_path / run / loop.CHECKPOINT)[2] for run in ("whole", "cut"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    model = mcode.load(whole, "cpu")
    assert model.frame_size == (48, 32)
    assert model.card["scores"]["training_psnr_db"] > 15
    (clip,) = [data / "clips" / "1.mp4"]
    report = mcode.encode_file(clip, tmp_path / "a.mcode", manifold=model, n=4)
    assert report.frames == 25
    assert math.isfinite(report.psnr_db)


def test_the_network_learns_to_add_what_the_components_miss(tmp_path, data):
    """One component is far too few for moving arms: a hundred steps must win something over it."""
    text = CONFIG.format(options=OPTIONS["bits"], encoder="false").replace("steps = 6", "steps = 200\nlearning_rate = 2e-3")
    path = tmp_path / "config.toml"
    path.write_text(text.replace("m = 6", "m = 2").replace("width = 4", "width = 16").replace("every = 3", "every = 60"))
    rows: list[dict[str, float]] = []
    train(path, data, tmp_path / "run", device="cpu", report=rows.append)
    assert rows[-1]["psnr"] > rows[-1]["psnr_linear"] + 0.1


def test_folds_are_seen_through_components_learned_without_them(tmp_path, data):
    config = read_config(write(tmp_path, "folds"))
    squares = residual.load(config, data)
    model = Residual(config.network)
    learn_components(model, squares.pixels)
    samples = Samples(config, model, squares, torch.device("cpu"))
    for f, part in enumerate(samples.parts):
        others = Residual(config.network)
        learn_components(others, squares.pixels[samples.fold != f])
        assert torch.equal(part.basis, others.basis)
    first = squares.clips[0]
    assert samples.fold.tolist() == [0] * first + [1] * squares.clips[1] + [0] * squares.clips[2]


def test_interpolated_coordinates_lie_between_keyframes_of_one_clip(tmp_path, data):
    """With a quantiser too fine to matter, n = 1 gives the frames themselves; other intervals stay inside the clip."""
    config = replace(read_config(write(tmp_path, "folds")), step=1e-3, folds=1, intervals=(1,))
    squares = residual.load(config, data)
    model = Residual(config.network)
    learn_components(model, squares.pixels)
    samples = Samples(config, model, squares, torch.device("cpu"))
    at = np.array([0, 24, 25, 49])
    torch.testing.assert_close(samples._received(at, np.random.default_rng(0), None), samples.y[at], rtol=1e-3, atol=1e-3)
    samples.config = replace(config, intervals=(16,))
    for seed in range(20):
        found = samples._received(at, np.random.default_rng(seed), None)
        low, high = samples.y[:25].amin(0) - 1e-3, samples.y[:25].amax(0) + 1e-3
        assert ((found[:2] >= low) & (found[:2] <= high)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('family = "residual"|family = "dense"', "network.family"),
        ("frame_size = [48, 32]|frame_size = [48]", "width and a height"),
        ("m = 6|m = 0", "m = 0"),
        ("checkpoint_every = 3|learning_rate = -1.0", "learning_rate is -1.0; it is above 0"),
        ('quantiser = "bits"|step = 0.0', "step is 0.0; it is above 0"),
        ('name = "tiny"|name = "a/b"', 'name = "a/b": a manifold'),
        ("bits = [3, 5]|bits = [9]", "bits are some of"),
        ("checkpoint_every = 3|held_out = 1\ncheckpoint_every = 3", "held_out is 1; it is 0, or 2 or more"),
        ("checkpoint_every = 3|folds = 2\ncheckpoint_every = 3", "encoder = true needs folds = 1"),
        ("encoder = true|components = 5", "components are m = 6 or more"),
        ("encoder = true|components = 7", "components = 7 in m = 6 coordinates need a code"),
        ("checkpoint_every = 3\n[network]|crop = 16\n[network]\ndirect = true", "direct = true needs whole pictures"),
        ("checkpoint_every = 3|bit_error_rate = 0.5", "bit_error_rate is from 0"),
        ('quantiser = "bits"|quantiser = "step"\nbit_error_rate = 0.1', "code and bit_error_rate need"),
        ('quantiser = "bits"|quantiser = "bits"\nintervals = [1, 4]', r"intervals = \[1, 4\] need quantiser"),
        ('quantiser = "bits"|quantiser = "step"\nintervals = [2]', r"intervals = \[2\] need .*encoder = false"),
        ('quantiser = "bits"|quantiser = "step"\nintervals = []', "intervals are 1 or more"),
        (
            "frame_size = [48, 32]\nm = 6|frame_size = [4, 4]\nchannels = 1\nm = 20",
            r"m = 20 of frame_size = \[4, 4\]: .* 16 values",
        ),
        ("bits = [3, 5]|bits = [3, 5]\nl1 = -1.0", "l1 is -1.0; it is 0 or more"),
        ('bits = [3, 5]|bits = [3, 5]\nl2 = 1.0\nvgg_layers = ["foo"]', r"vgg_layers = \['foo'\] are some of relu1_1, "),
        ("bits = [3, 5]|bits = [3, 5]\nl2 = 1.0\nvgg_layers = []", r"vgg_layers = \[\] are some of"),
    ],
)
def test_a_wrong_configuration_gives_one_line(tmp_path, change, message):
    path = write(tmp_path, "bits", encoder=True)
    old, new = change.split("|")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message) as error:
        read_config(path)
    assert "\n" not in str(error.value)


def test_footage_is_read_after_a_checkpoint_is_refused_and_components_learned_once(tmp_path, data, monkeypatch):
    path, out = write(tmp_path, "bits"), tmp_path / "out"
    train(path, data, out, device="cpu")
    monkeypatch.setattr(residual, "learn_components", None)
    train(path, data, out, resume=True, device="cpu")
    monkeypatch.setattr(residual, "load", None)
    with pytest.raises(InputError, match="exists; go on from it with --resume"):
        train(path, data, out, device="cpu")


def test_mirrored_pictures_of_interpolated_coordinates_are_refused(tmp_path):
    config = read_config(write(tmp_path, "folds"))
    with pytest.raises(ValueError, match="set mirror_pairs"):
        replace(config, data=replace(config.data, mirror=True))


def test_more_folds_than_clips_are_refused(tmp_path, data):
    path = write(tmp_path, "bits")
    path.write_text(path.read_text().replace("steps = 6", "steps = 6\nfolds = 4"))
    with pytest.raises(InputError, match="folds = 4 needs 4 videos or pictures, not 3; set folds = 1"):
        train(path, data, tmp_path / "out", device="cpu")


def test_more_coordinates_than_pictures_are_refused():
    with pytest.raises(InputError, match="5 pictures are too few for 5 coordinates"):
        learn_components(Residual(tiny()), noise(5, (12, 20, 3)))


def test_a_part_of_a_video_and_files_left_out(tmp_path, data):
    folder = data / "clips"
    whole = load_squares([folder / "1.mp4"], size=(48, 32), channels=3, every=1)
    half = load_squares([folder / "1.mp4@0:0.5"], size=(48, 32), channels=3, every=1)
    rest = load_squares([folder / "1.mp4@0.5:1"], size=(48, 32), channels=3, every=1)
    assert isinstance(whole, Squares)
    np.testing.assert_array_equal(np.concatenate([half.pixels, rest.pixels]), whole.pixels)
    assert len(load_squares([folder], size=32, channels=1, every=1, without=("1.mp4", "3.mp4")).clips) == 1
    for wrong in ("@0.5", "@1:0", "@a:b"):
        with pytest.raises(InputError, match="a part of a video"):
            load_squares([folder / f"1.mp4{wrong}"], size=32, channels=3, every=1)


def test_shipped_configurations_can_be_read():
    for path in sorted((Path(__file__).parent.parent / "configs").rglob("*.toml")):
        config = read_config(path)
        if isinstance(config, ResidualTraining):
            assert config.name == path.stem
