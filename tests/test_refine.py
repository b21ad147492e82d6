"""Refinement while encoding: it lowers the loss it names, any decoder reads the stream, and it refuses what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mcode import manifold, refine
from mcode.cli import app
from mcode.codec import Decoder, Encoder
from mcode.errors import InputError
from mcode.evaluation.features import SQUEEZENET_FILE, VGG_FILE, WEIGHTS_VARIABLE
from mcode.frame import TICKS_PER_S, Frame
from mcode.refine import PRICES, Prices, Refiner
from mcode.testclip import render_frames

from .small_hific import small_manifolds

SIZE = (52, 44)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG19 and SqueezeNet of random weights: distances mean nothing, but are distances."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)

    def layer(name: str, out: int, inside: int, side: int) -> dict[str, np.ndarray]:
        weight = rng.normal(0, (2 / (inside * side * side)) ** 0.5, (out, inside, side, side))
        return {f"{name}.weight": weight.astype(np.float16), f"{name}.bias": np.zeros(out, np.float16)}

    vgg: dict[str, np.ndarray] = {}
    inside = 3
    for name, out in (("1_1", 64), ("1_2", 64), ("2_1", 128), ("2_2", 128), *((f"3_{i}", 256) for i in (1, 2, 3, 4))):
        vgg |= layer(f"conv{name}", out, inside, 3)
        inside = out
    squeeze, inside = layer("conv1", 96, 3, 7), 96
    for i, (narrow, wide) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)), 2
    ):
        squeeze |= layer(f"fire{i}.conv1x1_1", narrow, inside, 1)
        squeeze |= layer(f"fire{i}.conv1x1_2", wide, narrow, 1) | layer(f"fire{i}.conv3x3_2", wide, narrow, 3)
        inside = 2 * wide
    save_file(vgg, folder / VGG_FILE)
    save_file(squeeze, folder / SQUEEZENET_FILE)
    return folder


@pytest.fixture(scope="module")
def general() -> manifold.Manifold:
    return manifold.load("general", "cpu", precision="float32")


@pytest.fixture(scope="module", params=refine.JUDGES)
def refiner(general, weights, request) -> Refiner:
    return Refiner(general, 60, judge=request.param, weights=weights)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [frame for frame, _ in zip(render_frames("arms", seconds=1, size=SIZE, seed=2), range(2), strict=False)]


def first_guess(model: manifold.Manifold, frame: Frame, quality: int) -> tuple[torch.Tensor, np.ndarray]:
    from mcode.latents import quantise

    latent = model.analyse(frame.rgb[None])[0]
    return latent, quantise(latent, model.gain(quality), model.zero_margin(quality))


def loss(refiner: Refiner, frame: Frame, symbols: np.ndarray, quality: int, previous: np.ndarray | None = None) -> float:
    task = refine._Task(refiner, frame.rgb, previous, quality)
    found = torch.from_numpy(symbols.astype(np.float32))[None]
    with torch.no_grad():
        return float(task.predict(found).loss(found))


@pytest.mark.parametrize("quality", [2, 6])
def test_refined_symbols_have_a_lower_loss_and_the_form_of_the_first_guess(general, refiner, frames, quality):
    latent, symbols = first_guess(general, frames[0], quality)
    before = symbols.copy()
    found = refiner(frames[0].rgb, latent, symbols, None, quality)
    assert (found.dtype, found.shape) == (symbols.dtype, symbols.shape)
    assert np.array_equal(symbols, before)
    assert loss(refiner, frames[0], found, quality) < loss(refiner, frames[0], symbols, quality)


def test_what_is_coded_against_a_keyframe_is_refined_at_the_price_of_its_delta(general, refiner, frames):
    _, previous = first_guess(general, frames[0], 5)
    latent, symbols = first_guess(general, frames[1], 5)
    found = refiner(frames[1].rgb, latent, symbols, previous, 5)
    assert loss(refiner, frames[1], found, 5, previous) < loss(refiner, frames[1], symbols, 5, previous)


@pytest.mark.parametrize("with_previous", [False, True])
def test_the_bits_of_the_loss_are_those_of_the_coder(general, refiner, frames, monkeypatch, with_previous):
    _, symbols = first_guess(general, frames[0], 6)
    previous = first_guess(general, frames[1], 6)[1] if with_previous else None
    from mcode.coders import range as ranges

    monkeypatch.setattr(refiner, "prices", Prices((1e-30,) * 8, 0.0, 0.0))
    bits = loss(refiner, frames[0], symbols, 6, previous) * SIZE[0] * SIZE[1]
    coded = 8 * sum(map(len, ranges.encode(symbols, previous, 1, 6, general.hyper)))
    assert bits == pytest.approx(coded, rel=0.2, abs=80)  # z, and tables that were counted afterwards


def test_the_price_is_that_of_the_quality(general, refiner, frames, monkeypatch):
    monkeypatch.setattr(refiner, "prices", Prices(tuple(10.0**q for q in range(1, 9)), 0.0, 0.0))
    prices = [refine._Task(refiner, frames[0].rgb, None, quality).price for quality in (1, 5, 8)]
    assert prices == pytest.approx([prices[0], 1e4 * prices[0], 1e7 * prices[0]])


def test_judges_take_turns_each_for_all_and_predictions_stand_for_four_steps(general, refiner, frames, monkeypatch):
    latent, symbols = first_guess(general, frames[0], 5)
    found, count = torch.from_numpy(symbols.astype(np.float32))[None], len(refiner._judges)
    with torch.no_grad():
        task = refine._Task(refiner, frames[0].rgb, None, 5).predict(found)
        alone = [float(task.loss(found, judge=judge)) for judge in range(count)]
        assert np.mean(alone) == pytest.approx(float(task.loss(found)), rel=1e-4)
    asked, predicted = [], []
    loss_of, predict = refine._Task.loss, refine._Task.predict
    monkeypatch.setattr(refine._Task, "loss", lambda task, x, judge=None: asked.append(judge) or loss_of(task, x, judge))
    monkeypatch.setattr(refine._Task, "predict", lambda task, x: predicted.append(len(asked)) or predict(task, x))
    monkeypatch.setattr(refiner, "steps", 5)
    refiner(frames[0].rgb, latent, symbols, None, 5)
    assert asked == [*(step % count for step in range(5)), None, None]
    assert predicted == [0, 4, 5, 6]


def test_steps_that_lead_astray_are_not_taken(general, refiner, frames, monkeypatch):
    latent, symbols = first_guess(general, frames[0], 5)
    monkeypatch.setattr(refine, "_RATE", 50.0)
    monkeypatch.setattr(refiner, "steps", 1)
    assert np.array_equal(refiner(frames[0].rgb, latent, symbols, None, 5), symbols)


def test_the_same_seed_gives_the_same_symbols(general, frames):
    latent, symbols = first_guess(general, frames[0], 5)
    made = [Refiner(general, 60, seed=s)(frames[0].rgb, latent, symbols, None, 5) for s in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_symbols_that_nothing_improves_stay(general, refiner, frames, monkeypatch):
    latent, symbols = first_guess(general, frames[0], 5)
    monkeypatch.setattr(refine, "gumbel_rounded", lambda at, temperature, noise: at * 0)  # steps lead nowhere
    monkeypatch.setattr(refine, "_RATE", 0.0)
    assert np.array_equal(refiner(frames[0].rgb, latent, symbols, None, 5), symbols)


def test_large_pictures_are_refined_in_parts(general, refiner, frames, monkeypatch):
    monkeypatch.setattr(refine, "MARGIN", 1)
    monkeypatch.setattr(refine, "LARGEST", 16 * 16 * 6)
    sizes = []
    whole = refine._Task.__init__

    def spy(self, refiner, rgb, previous, quality):
        sizes.append(rgb.shape[:2])
        whole(self, refiner, rgb, previous, quality)

    monkeypatch.setattr(refine._Task, "__init__", spy)
    latent, symbols = first_guess(general, frames[0], 5)
    found = refiner(frames[0].rgb, latent, symbols, None, 5)
    assert len(sizes) > 1 and max(h * w for h, w in sizes) < SIZE[0] * SIZE[1]
    monkeypatch.undo()
    assert loss(refiner, frames[0], found, 5) < loss(refiner, frames[0], symbols, 5)


def test_parts_come_back_to_their_places_each_with_noise_of_its_own(general, refiner, monkeypatch):
    monkeypatch.setattr(refine, "MARGIN", 1)
    monkeypatch.setattr(refine, "LARGEST", 16 * 16 * 6)
    symbols = np.arange(3 * 4 * 7, dtype=np.int16).reshape(3, 4, 7)
    rgb = symbols[0].repeat(16, 0).repeat(16, 1)[..., None].repeat(3, 2).astype(np.uint8)
    seeds = []

    def same(self, rgb, scaled, symbols, previous, quality, seed):
        seeds.append(seed)
        assert np.array_equal(rgb[::16, ::16, 0], symbols[0]) and np.array_equal(previous, symbols - 1)
        return symbols

    monkeypatch.setattr(Refiner, "_part", same)
    monkeypatch.setattr(general, "gain", lambda quality: torch.ones(3))
    found = refiner(rgb, torch.zeros(3, 4, 7), symbols, symbols - 1, 5)
    assert np.array_equal(found, symbols) and len(set(seeds)) == len(seeds) > 3


@pytest.mark.parametrize("coder", ["huffman", "fixed", "range"])
def test_the_encoder_sends_what_refinement_gives_and_a_decoder_needs_nothing_new(general, frames, coder):
    given = []

    def one_more(rgb, latent, symbols, previous, quality):
        given.append((rgb, previous, quality))
        return symbols + np.int16(1)

    encoder, decoder = Encoder(general, *SIZE, n=1, coder=coder, refine=one_more), Decoder(general)
    plain = Encoder(general, *SIZE, n=1, coder=coder)
    sent = []
    for i, frame in enumerate(frames):
        (packet,) = encoder.push(Frame(frame.rgb, i * TICKS_PER_S // 25))
        list(decoder.push(packet))
        sent.append(decoder._symbols)
        plain.push(Frame(frame.rgb, i * TICKS_PER_S // 25))
    assert given[0][1] is None and given[0][2] == general.default_quality
    assert np.array_equal(given[1][0], frames[1].rgb)
    if coder == "fixed":  # a code for each symbol alone
        assert given[1][1] is None
    else:
        assert np.array_equal(given[1][1], sent[0])
        _, symbols = first_guess(general, frames[0], general.default_quality)
        assert np.array_equal(sent[0], symbols + 1)


def test_general_says_what_bits_are_worth_in_it(general):
    prices = Prices.of(general)
    assert list(prices.lambdas) == sorted(prices.lambdas) and len(prices.lambdas) == general.qualities
    assert prices.perceptual > 0


@pytest.mark.parametrize(
    "card",
    [{}, {PRICES: None}, {PRICES: {"lambdas": [1e-3], "perceptual": 1, "squeezenet": 0}}, {PRICES: {"lambdas": [1e-3, -1]}}],
    ids=["none", "null", "too few", "negative"],
)
def test_a_manifold_without_sound_prices_is_refused(tmp_path, card):
    _, dense = small_manifolds(tmp_path)
    manifold.rewrite(dense, dense, card=card)
    with pytest.raises(InputError, match="--refine: manifold"):
        Refiner(manifold.load(dense, "cpu"), 1)


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("name", ["perceptual", "squeezenet", "lambdas"])
def test_prices_that_are_no_prices_are_refused(tmp_path, name, value):
    _, dense = small_manifolds(tmp_path)
    good = {"lambdas": [1e-3] * manifold.read_info(dense).qualities, "perceptual": 1, "squeezenet": 0}
    manifold.rewrite(dense, dense, card={PRICES: good})
    assert Prices.of(manifold.load(dense, "cpu")).perceptual == 1
    manifold.rewrite(dense, dense, card={PRICES: good | {name: [value] * len(good["lambdas"]) if name == "lambdas" else value}})
    with pytest.raises(InputError, match="--refine: manifold .* does not say what bits are worth in it"):
        Prices.of(manifold.load(dense, "cpu"))


def test_refining_encodes_a_file_that_decodes(tmp_path, clip, monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    common = ["encode", str(clip), "-n", "4", "--duration", "0.16", "--coder", "range", "--device", "cpu", "--json"]
    plain = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "a.mcode")])
    refined = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "b.mcode"), "--refine", "60"])
    assert plain.exit_code == refined.exit_code == 0, refined.output
    a, b = json.loads(plain.stdout), json.loads(refined.stdout)
    assert a["frames"] == b["frames"]
    assert (tmp_path / "a.mcode").read_bytes() != (tmp_path / "b.mcode").read_bytes()
    shown = CliRunner().invoke(app, ["decode", str(tmp_path / "b.mcode"), "-o", str(tmp_path / "b.mp4"), "--json"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["frames"] == b["frames"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--refine", "-1"], "--refine -1"),
        (["--refine", "many"], "--refine many"),
        (["--refine", "5", "--refine-by", "taste"], "--refine-by taste"),
        (["--refine", "5", "--refine-by", "vgg19"], WEIGHTS_VARIABLE),
        (["--refine", "5", "--refine-by", "vgg19", "--perceptual", "nowhere"], "nowhere"),
        (["--refine", "5", "--manifold", "talking-head"], "--refine: manifold talking-head"),
    ],
)
def test_what_refining_cannot_do_is_one_line_and_leaves_no_file(tmp_path, clip, monkeypatch, options, words):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    result = CliRunner().invoke(app, ["encode", str(clip), "-o", str(tmp_path / "c.mcode"), *options])
    assert result.exit_code == 2 or isinstance(result.exception, InputError)
    assert words in (result.stderr or str(result.exception))
    assert list(tmp_path.iterdir()) == []


def test_the_eyes_see_more_where_more_was_changed():
    from mcode.evaluation.features import unit_distance
    from mcode.nets.eye import load_eyes

    eyes = load_eyes()
    assert len(eyes) > 1
    (frame,) = render_frames("arms", seconds=0.04, size=(96, 64), seed=2)
    x = torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for eye, scale in eyes:
        near, nearer, same = (scale * unit_distance(eye(x), eye(x + share * noise)).item() for share in (0.1, 0.02, 0))
        assert same == 0 < nearer < near < 8
        assert [f.shape[2:] for f in eye(x)] == [(32, 48), (16, 24), (8, 12)]


def test_refining_adds_up_what_both_eyes_see(general, frames):
    """The loss is linear in the distances, so with one eye after the other left out the halves sum to the whole."""
    refiner = Refiner(general, 1)
    _, symbols = first_guess(general, frames[0], 3)
    whole = loss(refiner, frames[0], symbols, 3)
    shares, alone = refiner._shares, []
    for kept in ([0, 0], [shares[0], 0], [0, shares[1]]):
        refiner._shares = kept
        alone.append(loss(refiner, frames[0], symbols, 3))
    none, first, second = alone
    assert none < first < whole and none < second < whole
    assert first + second - none == pytest.approx(whole, rel=1e-5)
    # Steps ask one eye at a time, which stands for both: on average that is the loss.
    refiner._shares = shares
    task = refine._Task(refiner, frames[0].rgb, None, 3)
    found = torch.from_numpy(symbols.astype(np.float32))[None]
    with torch.no_grad():
        by_turns = [float(task.predict(found).loss(found, judge=i)) for i in range(2)]
    assert by_turns[0] != by_turns[1]
    assert sum(by_turns) / 2 == pytest.approx(whole, rel=1e-5)


def test_every_judge_is_asked_in_turn(general, refiner, frames, monkeypatch):
    asked, loss_of = [], refine._Task.loss

    def spy(self, symbols, judge=None):
        asked.append(judge)
        return loss_of(self, symbols, judge)

    monkeypatch.setattr(refine._Task, "loss", spy)
    latent, symbols = first_guess(general, frames[0], 5)
    refiner(frames[0].rgb, latent, symbols, None, 5)
    assert asked == [i % 2 for i in range(60)] + [None, None]


def test_the_fingerprint_changes_with_the_eyes_and_what_steps_do(tmp_path, monkeypatch):
    before = {judge: refine.fingerprint(judge) for judge in refine.JUDGES}
    assert before["eye"] != before["vgg19"]
    monkeypatch.setattr(refine, "EYE_FILE", tmp_path / "eye.safetensors")
    refine.EYE_FILE.write_bytes(b"others")
    assert refine.fingerprint("vgg19") == before["vgg19"]
    assert refine.fingerprint("eye") != before["eye"]
    monkeypatch.setattr(refine, "_SHARE", 0.1)
    assert refine.fingerprint("vgg19") != before["vgg19"]


def test_an_eye_learns_in_which_direction_its_teachers_would_move_symbols(tmp_path, weights):
    import cv2

    from mcode.nets.eye import read
    from mcode.training.eye import EyeTraining, save, train

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, frame in enumerate(render_frames("arms", seconds=0.1, size=(96, 80), seed=3)):
        cv2.imwrite(str(folder / f"{i}.png"), frame.rgb[..., ::-1])
    plain, _ = small_manifolds(tmp_path)
    rows = []
    training = EyeTraining(steps=50, batch=2, crop=64, warmup=5)
    model = manifold.load(plain, "cpu", precision="float32")
    net, scale = train(model, [folder], training, weights=str(weights), report=rows.append)
    assert rows[-1]["cosine"] > rows[0]["cosine"]
    path = tmp_path / "eye.safetensors"
    save([(net, scale)], path, card={"title": "a test"})
    assert path.stat().st_size < 1_500_000
    further, _ = train(model, [folder], replace(training, steps=1), weights=str(weights), start=path)
    save([(net, scale), (further, 2 * scale)], path, card={})
    (first, one), (second, two) = read(path)
    assert (one, two) == (scale, 2 * scale)
    x = torch.rand(1, 3, 16, 16)
    for written, found in ((net, first), (further, second)):
        assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(written(x), found(x), strict=True))
    assert not torch.equal(first(x)[0], second(x)[0])
