"""Training of compact `hific` manifolds: the discriminator, starting from a manifold, and what a configuration may not say."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mcode
from mcode.config import from_dict
from mcode.errors import ConfigError, InputError, ManifoldError
from mcode.nets.hific import CompactConfig, CompactHific
from mcode.nets.hyper import Hyper
from mcode.nets.paper import Discriminator
from mcode.testclip import write_clip
from mcode.training import loop
from mcode.training.compact import (
    CompactTraining,
    Judge,
    _Features,
    _opened,
    _revive,
    _start_from,
    _windows,
    grid_error,
    lambdas,
    train,
)
from mcode.training.crops import CropStream, frame_runs, load_pictures, read_picture
from mcode.training.export import export_compact
from mcode.training.graphics import draw_graphic
from mcode.video import FrameReader

from .clips import rotate_mp4
from .small_hific import small_manifolds

SMALL = {
    "kind": "hific",
    "name": "small",
    "network": {
        "channels": 8,
        "analysis_widths": [8, 8, 8],
        "analysis_blocks": [1, 1, 1],
        "synthesis_widths": [8, 8, 8, 8],
        "synthesis_blocks": [1, 1, 1, 1],
        "stages": [0, 4, 8],
        "qualities": 2,
    },
    "data": {"folders": ["pictures"], "crop": 64, "batch": 2},
    "loss": {"adversarial": 50.0, "adversarial_from": 2, "ramp": 2},
    "optimiser": {"steps": 5, "checkpoint_every": 2},
}


def config(**tables: dict) -> CompactTraining:
    changed = {k: v | tables.get(k, {}) if isinstance(v, dict) else v for k, v in SMALL.items()}
    return from_dict(changed, CompactTraining, source="test")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        picture = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "pictures" / f"{i}.png"), picture)
    return folder


def test_a_run_with_a_discriminator_resumes_exactly(tmp_path, data):
    def keep(row: dict[str, float]) -> None:
        shutil.copytree(tmp_path / "out", tmp_path / f"killed{row['step']}")

    whole = loop.read_checkpoint(train(config(), data, tmp_path / "out", report=keep))[2]
    assert any(k.startswith("exp_avg.d.") for k in whole), "the discriminator learned nothing"
    assert not any(k.startswith("ema.d.") for k in whole)
    for step in (2, 4):
        again = loop.read_checkpoint(train(config(), data, tmp_path / f"killed{step}", resume=True))[2]
        assert again.keys() == whole.keys()
        assert not [k for k in whole if not torch.equal(whole[k], again[k])]


def test_the_discriminator_leaves_the_weights_alone_before_its_time(tmp_path, data):
    late = config(loss={"adversarial_from": 100})
    none = config(loss={"adversarial": 0.0})
    with_d, without = (loop.read_checkpoint(train(c, data, tmp_path / str(i)))[2] for i, c in enumerate((late, none)))
    assert not [k for k in without if k.startswith("ema.") and not torch.equal(with_d[k], without[k])]


def test_the_judge_learns_to_tell_grey_from_noise_and_its_opinion_says_so():
    torch.manual_seed(0)
    judge = Judge(Discriminator(4), 2e-4)
    y_hat = torch.zeros(2, 4, 4, 4)
    losses = []
    for step in range(25):
        x = torch.rand(2, 3, 64, 64) * 2 - 1
        losses.append(judge.learn(x, torch.zeros(2, 3, 64, 64), y_hat, step=step, workers=1))
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        grey, noise = judge.opinion(torch.zeros(2, 3, 64, 64), y_hat), judge.opinion(torch.rand(2, 3, 64, 64) * 2 - 1, y_hat)
    assert grey.shape == (2,) and (grey > noise).all()


def test_an_opinion_moves_the_picture_and_not_the_judge():
    torch.manual_seed(0)
    judge = Judge(Discriminator(4), 2e-4)
    x_hat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    judge.opinion(x_hat, torch.zeros(1, 4, 4, 4)).sum().backward()
    assert x_hat.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.d.parameters())


def test_training_starts_from_a_manifold_and_added_blocks_start_as_identities(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    checkpoint = train(plain, data, tmp_path / "first")
    export_compact(checkpoint, data, tmp_path / "first.safetensors", card={})
    old = mcode.load(tmp_path / "first.safetensors", device="cpu", precision="float32")
    assert old.card["prices"]["lambdas"] == pytest.approx(lambdas(plain.loss, 2).tolist(), rel=1e-3)
    deeper = replace(plain.network, analysis_blocks=(1, 2, 1), synthesis_blocks=(2, 1, 1, 1))
    model = CompactHific(deeper)
    _start_from(model, str(tmp_path / "first.safetensors"), lambdas(plain.loss, 2))
    picture = cv2.imread(str(data / "pictures" / "0.png"))[None, :64, :64, ::-1]
    latent = old.analyse(np.ascontiguousarray(picture))
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(model.net.analysis(x), latent, atol=1e-4)
        back = model.net.synthesis(latent)
    assert (
        np.abs(back.add(1).mul(127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy() - old.synthesise(latent, 64, 64)).max() < 0.51
    )


def test_emphasis_weighs_each_quality_of_a_batch(tmp_path, data):
    def first_loss(name: str, *emphasis: float) -> float:
        loss = {"adversarial": 0.0, "emphasis": list(emphasis)}
        rows = []
        once = config(loss=loss, data={"batch": 6}, optimiser={"steps": 1, "checkpoint_every": 1})
        train(once, data, tmp_path / name, report=rows.append)
        return rows[0]["loss"]

    plain, first, second = first_loss("plain"), first_loss("first", 3.0, 1.0), first_loss("second", 1.0, 3.0)
    assert min(first, second) > 1.02 * plain, "six pictures of two qualities are of one"
    assert first + second == pytest.approx(4 * plain, rel=1e-3)
    with pytest.raises(ConfigError, match="emphasis are .* 2 numbers above 0"):
        config(loss={"emphasis": [1.0, 1.0, 1.0]})


def test_grid_error_sees_what_alternates_and_little_else(tmp_path, data):
    flat = torch.zeros(6, 3, 32, 32)
    columns = torch.tensor([1.0, -1.0]).repeat(16).expand(3, 32, 32) * 3 / 127.5
    both = columns * columns[0, 0].sign().view(-1, 1)
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 6 / 127.5
    edge = (torch.arange(32) > 11).float().expand(3, 32, 32)
    seen = grid_error(flat, torch.stack([columns, columns.mT, both, 0.2 + flat[0], noise, edge]))
    assert seen[:3].tolist() == pytest.approx([3.0, 3.0, 3.0], rel=1e-4)
    assert seen[3] < 1e-6 and seen[4] < 0.1 and seen[5] < 0.01 * 127.5**2 * edge.var()
    rows = []
    for grid in (0.0, 1e4):
        once = config(loss={"adversarial": 0.0, "grid": grid}, optimiser={"steps": 1, "checkpoint_every": 1})
        train(once, data, tmp_path / str(grid), report=rows.append)
    assert rows[1]["loss"] > 1.01 * rows[0]["loss"]


def test_training_the_synthesis_alone_changes_nothing_of_what_is_sent(tmp_path, data):
    export_compact(train(config(), data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    part = replace(config(), start=str(tmp_path / "a.safetensors"), part="synthesis")
    tensors = loop.read_checkpoint(train(part, data, tmp_path / "b"))[2]
    old = CompactHific(part.network)
    _start_from(old, part.start, lambdas(part.loss, 2))
    moved = {k for k, v in old.net.state_dict().items() if not torch.equal(v, tensors[f"model.net.{k}"])}
    assert moved and all(k.startswith("synthesis_net.") for k in moved)


def test_a_synthesis_trained_alone_is_exported_with_the_codes_of_its_start(tmp_path, data):
    from mcode.codec import Encoder
    from mcode.frame import Frame

    whole = replace(config(loss={"adversarial": 0.0}), zero_margin=0.05)
    export_compact(train(whole, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    wider = replace(whole.network, synthesis_blocks=(2, 1, 1, 1))
    part = replace(whole, start=str(tmp_path / "a.safetensors"), part="synthesis", network=wider, name="b", zero_margin=0.0)
    export_compact(train(part, data, tmp_path / "b"), data, tmp_path / "b.safetensors", card={"title": "of b"})
    a, b = (mcode.load(tmp_path / f"{name}.safetensors", device="cpu", precision="float32") for name in "ab")
    assert (b.info.name, b.card["title"], b.card["training_config"]["part"]) == ("b", "of b", "synthesis")
    for q in (1, 2):
        assert torch.equal(a.gain(q), b.gain(q)) and torch.equal(a.inverse(q), b.inverse(q))
        assert torch.equal(a.zero_margin(q), b.zero_margin(q)) and a.zero_margin(q).any()
    rgb = np.ascontiguousarray(cv2.imread(str(data / "pictures" / "0.png"))[:64, :64, ::-1])
    assert torch.equal(a.analyse(rgb[None]), b.analyse(rgb[None]))
    sent = [Encoder(m, 64, 64, n=1, quality=2).push(Frame(rgb, 0))[0] for m in (a, b)]
    assert sent[0].slices == sent[1].slices and sent[0].slices[0]
    latent = a.analyse(rgb[None])
    assert not np.array_equal(a.synthesise(latent, 64, 64), b.synthesise(latent, 64, 64))


def test_the_synthesis_alone_keeps_the_gains_of_its_start_whatever_it_pays(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    export_compact(train(plain, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    start = mcode.load(tmp_path / "a.safetensors", device="cpu")
    dearer = replace(plain.loss, lambda_low=1e-4, lambda_high=0.05)
    part = replace(plain, start=str(tmp_path / "a.safetensors"), part="synthesis", loss=dearer)
    tensors = loop.read_checkpoint(train(part, data, tmp_path / "b"))[2]
    gain, shrink = (tensors[f"model.gains.log_{name}"] for name in ("gain", "shrink"))
    assert torch.allclose(gain.exp(), torch.stack([start.gain(q) for q in (1, 2)]), rtol=1e-5)
    assert torch.allclose((shrink - gain).exp(), torch.stack([start.inverse(q) for q in (1, 2)]), rtol=1e-5)
    other = replace(part, network=replace(part.network, qualities=3))
    with pytest.raises(InputError, match="network.qualities = 3, and .*a.safetensors has 2; .* set qualities = 2"):
        train(other, data, tmp_path / "c")


def test_a_synthesis_is_joined_with_the_start_that_it_was_trained_for_alone(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    start, out = tmp_path / "a.safetensors", tmp_path / "b"
    export_compact(train(plain, data, tmp_path / "a"), data, start, card={})
    first = mcode.load(start, device="cpu").id
    part = replace(plain, start=str(start), part="synthesis")
    checkpoint = train(part, data, out)
    export_compact(checkpoint, data, tmp_path / "b.safetensors", card={})
    assert mcode.load(tmp_path / "b.safetensors", device="cpu").card["start_id"] == first
    other = replace(plain, seed=2)
    export_compact(train(other, data, tmp_path / "c"), data, start, card={})
    message = f"a.safetensors: is manifold [0-9a-f]+ now, and the training started from {first}"
    with pytest.raises(InputError, match=message):
        export_compact(checkpoint, data, tmp_path / "d.safetensors", card={})
    with pytest.raises(InputError, match=message):
        train(part, data, out, resume=True)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_training_of_all_needs_its_start_no_more_once_it_has_begun(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    start = tmp_path / "a.safetensors"
    export_compact(train(plain, data, tmp_path / "a"), data, start, card={})
    first = mcode.load(start, device="cpu").id
    whole = replace(plain, start=str(start))
    train(whole, data, tmp_path / "b")
    start.unlink()
    longer = replace(whole, optimiser=replace(whole.optimiser, steps=6))
    export_compact(train(longer, data, tmp_path / "b", resume=True), data, tmp_path / "b.safetensors", card={})
    assert mcode.load(tmp_path / "b.safetensors", device="cpu").card["start_id"] == first


def test_the_synthesis_alone_learns_on_the_symbols_that_are_sent():
    from mcode.latents import symbols

    torch.manual_seed(0)
    model = CompactHific(config().network)
    x, quality = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0, 1])
    with torch.no_grad():
        model.net.patches.basis.normal_()
        model.gains.log_gain.fill_(-2.0)
    margin = torch.full((2, config().network.channels), 0.3)
    model.keep_what_is_sent(margin)
    _, bits, y_hat = model(x, quality)
    again = model(x, quality)
    assert torch.equal(y_hat, again[2]) and torch.equal(bits, again[1])
    wanted = symbols(model.net.analysis(x), model.gains.gain()[quality], margin[quality])
    assert wanted.any() and not torch.equal(wanted, symbols(model.net.analysis(x), model.gains.gain()[quality]))
    assert torch.equal(y_hat, wanted * model.gains.inverse()[quality][..., None, None])
    model(x, quality)[0].sum().backward()
    assert {name.split(".")[0] for name, p in model.net.named_parameters() if p.grad is not None} == {"synthesis_net"}


def test_the_gains_of_a_start_follow_its_own_line_over_lambda(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    export_compact(train(plain, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    old = mcode.load(tmp_path / "a.safetensors", device="cpu")
    dearer = replace(plain.loss, lambda_low=3 * plain.loss.lambda_low, lambda_high=3 * plain.loss.lambda_high)
    for same in (plain.loss, dearer):
        gain, shrink = _start_from(CompactHific(plain.network), str(tmp_path / "a.safetensors"), lambdas(same, 2))
        assert torch.allclose(gain.exp(), torch.stack([old.gain(1), old.gain(2)]), rtol=1e-3)
        assert torch.allclose((shrink - gain).exp(), torch.stack([old.inverse(1), old.inverse(2)]), rtol=1e-3)
    narrower = replace(plain.loss, lambda_low=math.sqrt(plain.loss.lambda_low * plain.loss.lambda_high))
    gain, shrink = _start_from(CompactHific(plain.network), str(tmp_path / "a.safetensors"), lambdas(narrower, 2))
    middle = (old.gain(1).log() + old.gain(2).log()) / 2
    assert torch.allclose(gain[1], old.gain(2).log(), atol=1e-3) and torch.allclose(gain[0], middle, atol=1e-3)
    assert not shrink.any()


def test_the_line_of_gains_is_over_the_prices_that_the_start_paid(tmp_path, data):
    listed = config(loss={"lambdas": [1e-5, 0.1], "adversarial": 0.0}, optimiser={"steps": 1})
    export_compact(train(listed, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    old = mcode.load(tmp_path / "a.safetensors", device="cpu")
    gain, _ = _start_from(CompactHific(listed.network), str(tmp_path / "a.safetensors"), torch.tensor([1e-3, 0.1]))
    middle = (old.gain(1).log() + old.gain(2).log()) / 2
    assert torch.allclose(gain[1], old.gain(2).log(), atol=1e-3) and torch.allclose(gain[0], middle, atol=1e-3)


def test_a_start_whose_card_says_nothing_of_use_is_taken_as_a_usual_one(tmp_path):
    cards: list[dict] = [{"training_config": {"loss": {"lambda_low": 0.0006, "lambda_high": 0.0175}}}]
    cards += [{"prices": said} for said in ("x", [1], None, {}, {"lambdas": 5}, {"lambdas": "ab"}, {"lambdas": [0.1]})]
    lists = ([0, 0], [[1], [2, 3]], [1, 1], [math.inf, 1], [-1, 1], [None, 1], [10**400, 1])
    cards += [{"prices": {"lambdas": said}} for said in lists]
    cards += [{"training_config": said} for said in (None, [], {"loss": 3}, {"loss": None})]
    cards += [{"training_config": {"loss": {"lambda_low": low}}} for low in ("x", 0, None, [1, 2], 0.0175)]
    start, gains = small_manifolds(tmp_path)[0], {"gain": np.outer([4, 9], np.ones(6)).astype(np.float32)}
    model, found = CompactHific(CompactConfig(6, (8, 8, 8), (0, 0, 0), (8, 8, 8, 8), (0, 0, 0, 0), (0, 2, 6), 2)), []
    for number, card in enumerate(cards):
        path = tmp_path / f"{number}.safetensors"
        mcode.manifold.rewrite(start, path, card=card, tensors=gains)
        found.append(_start_from(model, str(path), torch.tensor([1e-3, 4e-3])))
        assert all(torch.equal(a, b) for a, b in zip(found[0], found[-1], strict=True)), card
    assert found[0][0].isfinite().all() and found[0][0].diff(dim=0).min() > 0.1


def test_a_start_with_a_margin_around_zero_can_be_trained_on(tmp_path, data):
    plain = replace(config(loss={"adversarial": 0.0}), zero_margin=0.05)
    export_compact(train(plain, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    assert mcode.load(tmp_path / "a.safetensors", device="cpu").zero_margin(1) is not None
    assert train(replace(plain, start=str(tmp_path / "a.safetensors")), data, tmp_path / "b").exists()


def test_listed_lambdas_are_taken_as_they_are(tmp_path, data):
    listed = config(loss={"lambdas": [0.002, 0.03], "adversarial": 0.0})
    assert torch.equal(lambdas(listed.loss, 2), torch.tensor([0.002, 0.03]))
    export_compact(train(listed, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    assert mcode.load(tmp_path / "a.safetensors", device="cpu").card["prices"]["lambdas"] == pytest.approx([0.002, 0.03])


def with_hyper(start: Path, share: float = 0.5, **tables: dict) -> CompactTraining:
    """A training of the networks of `small_hific`, whose hyperprior counts with that share."""
    network = {
        "channels": 6,
        "analysis_blocks": [0, 0, 0],
        "synthesis_blocks": [0, 0, 0, 0],
        "stages": [0, 2, 6],
    }
    loss = {"adversarial": 0.0, "hyper": share} | tables.pop("loss", {})
    values = {k: v | {"network": network, "loss": loss}.get(k, {}) if isinstance(v, dict) else v for k, v in SMALL.items()}
    for name, table in tables.items():
        values[name] |= table
    return from_dict(values | {"start": str(start)}, CompactTraining, source="test")


def test_a_hyperprior_learns_along_and_the_run_resumes_exactly(tmp_path, data):
    def keep(row: dict[str, float]) -> None:
        shutil.copytree(tmp_path / "out", tmp_path / f"killed{row['step']}")

    plain, dense = small_manifolds(tmp_path)
    before = Hyper.thaw(mcode.load(dense, device="cpu").hyper).state_dict()
    whole = loop.read_checkpoint(train(with_hyper(dense), data, tmp_path / "out", report=keep))[2]
    moved = [k for k, v in before.items() if not torch.equal(v, whole[f"model.hyper.{k}"])]
    assert {"z_mean", "a1.weight", "head.0.weight", "start.bias"} <= set(moved)
    again = loop.read_checkpoint(train(with_hyper(dense), data, tmp_path / "killed2", resume=True))[2]
    assert not [k for k in whole if not torch.equal(whole[k], again[k])]
    with pytest.raises(InputError, match="has no hyperprior"):
        train(with_hyper(plain), data, tmp_path / "none")
    with pytest.raises(InputError, match="6 channels and 2 qualities"):
        train(replace(config(), start=str(dense), loss=with_hyper(dense).loss), data, tmp_path / "other")


def test_the_share_of_the_hyperprior_is_its_share_of_the_bits(tmp_path):
    _, dense = small_manifolds(tmp_path)
    model, x, quality = mcode.load(dense, device="cpu"), torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0, 1])
    network = with_hyper(dense).network
    bits = []
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        whole = CompactHific(network, Hyper.thaw(model.hyper), share)
        whole.net.load_state_dict(model.net.float().state_dict())
        torch.manual_seed(1)
        bits.append(whole(x, quality)[1])
    assert torch.allclose(bits[1], (bits[0] + bits[2]) / 2) and not torch.allclose(bits[0], bits[2])


def test_with_a_temperature_rate_and_picture_see_the_same_nearly_whole_symbols(tmp_path, data):
    _, dense = small_manifolds(tmp_path)
    hyper = Hyper.thaw(mcode.load(dense, device="cpu").hyper)
    torch.manual_seed(0)
    model = CompactHific(with_hyper(dense).network, hyper, 1.0, temperature=0.05)
    model.net.patches.basis.normal_(0, 0.1)
    x, quality = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0, 1])
    _, bits, y_hat = model(x, quality)
    apart = (y_hat - y_hat.round()).abs()
    assert 0 < apart.mean() < 0.01 and y_hat.abs().max() > 1
    whole = model.hyper.whole_bits(y_hat.round(), y_hat.round(), quality)
    assert torch.allclose(bits, whole, rtol=0.05)
    bits.sum().backward()
    assert model.net.analysis_net.last.bias.grad.abs().sum() > 0
    assert train(with_hyper(dense, loss={"temperature": 0.2}), data, tmp_path / "out").exists()


def test_a_discriminator_sees_the_same_places_of_pictures_and_latents():
    y = torch.arange(64.0).view(1, 1, 8, 8)
    x = y.repeat_interleave(16, 2).repeat_interleave(16, 3)
    seen = set()
    for step in range(400):
        a, b = _windows(step, 48, x, y)
        assert a.shape == (1, 1, 48, 48) and b.shape == (1, 1, 3, 3) and torch.equal(a[..., ::16, ::16], b)
        seen.add(b[0, 0, 0, 0].item())
    assert len(seen) == 36
    assert _windows(3, 0, x, y)[0] is x


def test_windows_reach_every_place():
    rows = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    places = torch.cat([rows, rows.mT], 1)
    seen = [_windows(step, 64, places)[0][0, :, 0, 0].tolist() for step in range(300)]
    assert {tuple(place) for place in seen} == {(row, column) for row in range(5) for column in range(5)}
    assert seen[:50] == [_windows(step, 64, places)[0][0, :, 0, 0].tolist() for step in range(50)]


def test_windows_of_features_reach_every_place(pixels_as_features):
    distance = _Features(config(loss={"perceptual": 1.0, "perceptual_size": 60}).loss)
    x, noise = torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert len({distance(x, noise, step).item() for step in range(300)}) == 25


def test_training_with_a_window_for_the_discriminator(tmp_path, data):
    windowed = train(config(loss={"adversarial_size": 32}), data, tmp_path / "a")
    assert any(k.startswith("exp_avg.d.") for k in loop.read_checkpoint(windowed)[2])


def test_a_start_of_other_networks_is_refused_by_name(tmp_path, data):
    plain = config(loss={"adversarial": 0.0})
    export_compact(train(plain, data, tmp_path / "b"), data, tmp_path / "b.safetensors", card={})
    wider = CompactHific(CompactConfig(8, (16, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1), (0, 4, 8), 2))
    with pytest.raises(InputError, match=r"b\.safetensors.*does not fit"):
        _start_from(wider, str(tmp_path / "b.safetensors"), lambdas(plain.loss, 2))


@pytest.mark.parametrize(
    "loss",
    [
        {"adversarial": 1.0, "adversarial_from": 1, "ramp": 2},
        {"squeezenet": 1.0, "perceptual": 0.0},
        {"eyes": 1.0, "perceptual": 0.0},
        {"hyper": 1.5},
        {"temperature": -0.1},
        {"adversarial_size": 24},
    ],
)
def test_a_loss_that_contradicts_itself_is_refused(loss):
    with pytest.raises(ConfigError, match="loss"):
        config(loss=loss)


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("loss", {"perceptual": 1.0, "perceptual_size": 128}, "perceptual_size = 128 .* data.crop = 64"),
        ("loss", {"adversarial_size": 80}, "adversarial_size = 80 .* data.crop = 64"),
        ("loss", {"perceptual_crops": 0}, "perceptual_crops is 1 or more"),
        ("loss", {"perceptual_size": 16}, "perceptual_size 32 or more"),
        ("loss", {"lambda_low": 0.0}, "lambda_low = 0.0"),
        ("network", {"qualities": 16}, "qualities = 16 is not from 1 to 15"),
        ("network", {"qualities": 0}, "qualities = 0 is not from 1 to 15"),
        ("network", {"stages": [0, 4]}, r"stages = \[0, 4\]; .* network.channels = 8"),
        ("network", {"stages": [2, 8]}, "rise from 0"),
        ("network", {"stages": [0, 4, 4, 8]}, "rise from 0"),
        ("network", {"stages": []}, "rise from 0"),
        ("data", {"crop": 72}, "crop a multiple of 16"),
        ("data", {"batch": 0}, "batch is 1 or more"),
        ("data", {"folders": []}, "folders must name"),
        ("data", {"longest": 0}, "longest is 0"),
        ("optimiser", {"steps": 0}, "steps and checkpoint_every"),
        ("optimiser", {"checkpoint_every": 0}, "steps and checkpoint_every"),
        ("optimiser", {"learning_rate": 0.0}, "learning_rate is 0.0"),
        ("optimiser", {"discriminator_rate": -1.0}, "discriminator_rate is -1.0"),
        ("network", {"channels": 800, "stages": [0, 4, 800]}, "network.channels = 800; .* 768 components at most"),
        ("loss", {"adversarial_size": 16, "norm": "instance"}, 'adversarial_size = 16: norm = "instance" .* give 32 or more'),
        ("loss", {"adversarial": -1.0}, "adversarial is -1.0; it is 0 or more"),
        ("loss", {"perceptual": 1.0, "perceptual_size": 48, "maps": [["fire6", -0.1]]}, "share of fire6 in maps is negative"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(table, values, message):
    with pytest.raises(ConfigError, match=message) as error:
        config(**{table: values})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["all", "synthesis"])
def test_a_start_that_is_missing_is_told_before_pictures_are_read(tmp_path, data, monkeypatch, part):
    monkeypatch.setattr("mcode.training.compact.load_pictures", None)
    begun = from_dict(SMALL | {"start": str(tmp_path / "gone.safetensors"), "part": part}, CompactTraining, source="test")
    with pytest.raises(ManifoldError, match=r"gone.safetensors: no such manifold file"):
        train(begun, data, tmp_path / "out")


def test_a_part_without_a_start_is_refused():
    with pytest.raises(ConfigError, match="start"):
        from_dict(SMALL | {"part": "synthesis"}, CompactTraining, source="test")


def test_a_hyperprior_without_a_start_and_lambdas_of_another_count_are_refused():
    with pytest.raises(ConfigError, match="hyper needs a start"):
        config(loss={"hyper": 0.5})
    with pytest.raises(ConfigError, match="lambdas are .* 2 numbers above 0"):
        config(loss={"lambdas": [0.1]})


def test_short_videos_alone_are_trained_on_and_exported(tmp_path):
    (tmp_path / "pictures").mkdir()
    write_clip(tmp_path / "pictures" / "a.mp4", scene="arms", seconds=0.2, size=(96, 64), seed=1)
    plain = config(loss={"adversarial": 0.0}, optimiser={"steps": 1})
    export_compact(train(plain, tmp_path, tmp_path / "a"), tmp_path, tmp_path / "a.safetensors", card={})
    assert mcode.load(tmp_path / "a.safetensors", device="cpu").qualities == 2


def test_a_folder_of_nothing_that_can_be_read_is_named_before_training(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="that can be read in pictures"):
        train(config(), tmp_path, tmp_path / "out")


def test_a_damaged_checkpoint_is_not_exported(tmp_path, data):
    (tmp_path / "c.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(InputError, match=r"c\.safetensors: no readable checkpoint"):
        export_compact(tmp_path / "c.safetensors", data, tmp_path / "m.safetensors", card={})


def test_an_exported_margin_is_wider_where_a_channel_seldom_leaves_zero(tmp_path, data):
    plain = replace(config(loss={"adversarial": 0.0}), zero_margin=0.05)
    export_compact(train(plain, data, tmp_path / "m"), data, tmp_path / "m.safetensors", card={})
    model = mcode.load(tmp_path / "m.safetensors", device="cpu")
    pixels = load_pictures([data / "pictures"], longest=96, frames_per_video=0)
    steps = torch.cat([(model.analyse(p[None])[0] * model.gain(1).view(-1, 1, 1)).flatten(1) for p in pixels], 1)
    zeros = (steps.abs() < 0.5).float().mean(1)
    margin = model.zero_margin(1)
    assert margin.shape == (8,) and (margin >= 0).all() and margin.max() <= 0.4
    assert margin[zeros.argmax()] > margin[zeros.argmin()]


def test_damaged_videos_and_pictures_are_passed_over(tmp_path, data):
    shutil.copy(data / "pictures" / "0.png", tmp_path / "0.png")
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(load_pictures([tmp_path], longest=96, frames_per_video=2)) == 1
    assert not [run for name in ("damaged", "sound") for run in frame_runs(tmp_path / f"{name}.mp4", 1, 1)]


def test_strips_are_left_out_however_thin_they_become(tmp_path):
    for name, height, width in (("a", 2, 5000), ("b", 64, 10_000), ("c", 127, 129), ("d", 128, 130)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((height, width, 3), 90, np.uint8))
    assert [rgb.shape for rgb in load_pictures([tmp_path], longest=65, frames_per_video=0)] == [(64, 65, 3), (64, 65, 3)]


def test_training_sees_what_the_codec_sees(tmp_path):
    rgb = np.zeros((720, 1280, 3), np.uint8)
    rgb[:, :640], rgb[:, 640:] = (0, 200, 60), (200, 40, 40)
    with av.open(str(tmp_path / "untagged.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, width=1280, height=720, pix_fmt="yuv420p")
        stream.options = {"crf": "10", "preset": "ultrafast"}
        for frame in [av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p", dst_colorspace="ITU709")] * 3:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    rotate_mp4(tmp_path / "untagged.mp4", (0, 1, -1, 0))
    first = next(iter(FrameReader(tmp_path / "untagged.mp4"))).rgb
    assert np.abs(first.astype(int) - np.rot90(rgb, -1)).mean() < 3
    (still,) = load_pictures([tmp_path], longest=1280, frames_per_video=1)
    ((moving, _),) = frame_runs(tmp_path / "untagged.mp4", 1, 2)
    assert np.array_equal(still, first) and np.array_equal(moving, first)


def test_transparent_pictures_lie_on_white_for_training(tmp_path):
    clear = np.zeros((64, 64, 4), np.uint8)
    clear[0, 0] = (30, 20, 10, 255)  # BGRA
    cv2.imwrite(str(tmp_path / "clear.png"), clear)
    cv2.imwrite(str(tmp_path / "deep.png"), clear.astype(np.uint16) * 257)
    loaded = load_pictures([tmp_path], longest=64, frames_per_video=0)
    stored = [read_picture((tmp_path / name).read_bytes()) for name in ("clear.png", "deep.png")]
    assert len(loaded) == 2
    for rgb in (*loaded, *stored):
        assert rgb[0, 0].tolist() == [10, 20, 30] and (rgb.reshape(-1, 3)[1:] == 255).all()


def test_animated_webp_is_passed_over_in_folders_and_archives(tmp_path):
    path = tmp_path / "moving.webp"
    first, second = (Image.fromarray(np.full((64, 64, 3), grey, np.uint8)) for grey in (60, 180))
    first.save(path, save_all=True, append_images=[second])
    assert read_picture(path) is None and read_picture(path.read_bytes()) is None
    first.save(path, exif=Image.Exif().tobytes(), icc_profile=b"still, with a long header")
    assert read_picture(path) is not None and read_picture(path.read_bytes()) is not None


def test_a_folder_that_is_missing_or_holds_nothing_is_no_silent_omission(tmp_path, data):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="picture: no such folder of pictures or videos$"):
        load_pictures([data / "pictures", data / "picture"], longest=96, frames_per_video=0)
    with pytest.raises(InputError, match="empty: no pictures or videos there$"):
        load_pictures([data / "pictures", tmp_path / "empty"], longest=96, frames_per_video=0)


def test_crops_depend_on_seed_and_number_alone(data):
    pictures = load_pictures([data / "pictures"], longest=90, frames_per_video=1)
    assert len(pictures) == 6 and max(p.shape[1] for p in pictures) == 90
    stream = CropStream(pictures, 3, 64, 5)
    batches = [next(stream) for _ in range(6)]
    assert np.array_equal(next(CropStream(pictures, 3, 64, 5, first=4)), batches[4])
    assert not np.array_equal(batches[0], batches[1])


def test_so_many_crops_are_drawn_as_graphics_says(data):
    pictures = [np.full((80, 80, 3), 77, np.uint8)]

    def cut_out(graphics: float) -> float:
        stream = CropStream(pictures, 100, 64, 5, graphics=graphics)
        return float(np.mean([(crop == 77).all() for crop in next(stream)]))

    assert cut_out(0.0) == 1 and cut_out(1.0) == 0
    assert 0.55 < cut_out(0.3) < 0.85
    with pytest.raises(ConfigError, match=r"graphics is 1\.5"):
        config(data={"graphics": 1.5})


def test_graphics_differ_and_hold_flat_saturated_colours():
    rng = np.random.default_rng(3)
    drawn = [draw_graphic(64, rng) for _ in range(200)]
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in drawn)
    assert len({picture.tobytes() for picture in drawn}) > 190
    flat = [picture for picture in drawn if (picture == picture[0, 0]).all()]
    assert 5 < len(flat) < 60
    spread = [int(np.ptp(picture[0, 0])) for picture in flat]
    assert max(spread) == 255 and min(spread) == 0
    assert np.array_equal(draw_graphic(64, np.random.default_rng(8)), draw_graphic(64, np.random.default_rng(8)))


def test_what_has_died_in_a_block_starts_afresh_and_unheard():
    torch.manual_seed(0)
    model = CompactHific(config().network)
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        model.net.patches.basis.normal_(0, 0.05)
        inner, outer = model.net.analysis_net.net[2][0], model.net.synthesis_net.net[1][0]
        for block in (inner, outer):
            block.conv1.bias[:3] = -1e4
            block.conv2.weight.normal_()
    opened = _opened(model, x, torch.zeros(4, dtype=torch.int64), model.net)
    names = "analysis_net.net.2.0", "synthesis_net.net.1.0"
    assert [int((opened[n][:3] > 0).sum()) for n in names] == [0, 0] and opened[names[0]][3:].max() == 1
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    shown = model.net.analysis(x)
    with torch.no_grad():
        _revive(model, x, model.net.synthesis_net)
        assert torch.equal(inner.conv1.bias, before["analysis_net.net.2.0.conv1.bias"]), "not in the part"
        _revive(model, x, model.net)
    for block in (inner, outer):
        assert (block.conv1.bias[:3] == 0).all() and (block.conv2.weight[:, :3] == 0).all()
    assert torch.equal(inner.conv2.weight[:, 3:], before["analysis_net.net.2.0.conv2.weight"][:, 3:])
    assert torch.equal(inner.conv1.weight[3:], before["analysis_net.net.2.0.conv1.weight"][3:])
    assert torch.allclose(model.net.analysis(x), shown, atol=1e-5)
    assert all((share > 0).all() for share in _opened(model, x, torch.zeros(4, dtype=torch.int64), model.net).values())
    model.net.analysis_net.last.weight.data.normal_()
    model.net.analysis(x).square().sum().backward()
    assert (inner.conv2.weight.grad[:, :3].abs().amax((0, 2, 3)) > 0).all()


@pytest.fixture
def pixels_as_features(monkeypatch):
    """VGG19 and SqueezeNet replaced by networks whose maps are the picture, compared by squared error, which is 1/16 here."""
    from mcode.evaluation import features

    class Pixels(torch.nn.Module):
        def __init__(self, layers: tuple[str, ...] = ()) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, rgb: torch.Tensor) -> list[torch.Tensor]:
            return self.chosen(rgb, self.layers)

        def chosen(self, rgb: torch.Tensor, names: tuple[str, ...]) -> list[torch.Tensor]:
            return [rgb for _ in names]

    def squares(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        each = [(x - y).float().square().mean((1, 2, 3)) for x, y in zip(a, b, strict=True)]
        return torch.stack(each).mean(0)

    monkeypatch.setattr(features, "VggFeatures", Pixels)
    monkeypatch.setattr(features, "SqueezeNetFeatures", Pixels)
    monkeypatch.setattr(features, "unit_distance", squares)
    return torch.zeros(4, 3, 64, 64), torch.full((4, 3, 64, 64), 0.5)


def test_eyes_look_at_every_picture_and_the_large_networks_at_some(pixels_as_features):
    x, x_hat = pixels_as_features
    values = {"perceptual": 1.0, "perceptual_crops": 2, "perceptual_size": 48}
    few = _Features(config(loss=values | {"squeezenet": 0.5}).loss)(x, x_hat, 0)
    assert few[2:].eq(0).all() and few.mean().item() == pytest.approx(1.5 / 16, rel=0.01)
    both = _Features(config(loss=values | {"eyes": 0.5}).loss)(x, x_hat, 0)
    twice = _Features(config(loss=values | {"eyes": 1.0}).loss)(x, x_hat, 0)
    assert both[2:].gt(0).all() and torch.allclose(twice[2:], 2 * both[2:], rtol=0.02)


def test_single_maps_count_beside_the_networks_own(pixels_as_features):
    values = {"perceptual": 1.0, "perceptual_size": 48}
    for given, expected in (
        ({"maps": [["relu1_1", 0.7]]}, 1.7),
        ({"maps": [["fire6", 0.25], ["relu1_1", 0.5]]}, 1.75),
        ({"maps": [["relu3_4", 0.3], ["fire3", 0.3]], "squeezenet": 0.5}, 2.1),
    ):
        found = _Features(config(loss=values | given).loss)(*pixels_as_features, 0)
        assert found.mean().item() == pytest.approx(expected / 16, rel=0.01)
    with pytest.raises(ConfigError, match="no map fire1 in maps; they are relu1_1, "):
        config(loss=values | {"maps": [["fire1", 1.0]]})


def test_blocks_that_have_died_are_dropped_and_what_is_sent_stays(tmp_path, data, monkeypatch):
    from safetensors.numpy import load_file

    deep = config(loss={"adversarial": 0.0}, network={"analysis_blocks": [1, 2, 3]})
    export_compact(train(deep, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    tensors = load_file(tmp_path / "a.safetensors")
    for name in ("4.1", "6.0", "6.1"):
        tensors[f"analysis_net.net.{name}.conv1.bias"] = np.full(8, -1e4, np.float16)
        tensors[f"analysis_net.net.{name}.conv2.bias"] = np.full(8, 0.5, np.float16)
    tensors["analysis_net.last.weight"] = np.ones_like(tensors["analysis_net.last.weight"])
    mcode.manifold.rewrite(tmp_path / "a.safetensors", tmp_path / "dead.safetensors", card={}, tensors=tensors)
    spec = importlib.util.spec_from_file_location("drop", Path(__file__).parent.parent / "scripts" / "drop_dead_blocks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    given = [str(tmp_path / "dead.safetensors"), "--data", str(data), "--folders", "pictures"]
    monkeypatch.setattr("sys.argv", ["drop", *given, "--output", str(tmp_path / "out.safetensors")])
    script.main()
    old, new = (mcode.load(tmp_path / f"{n}.safetensors", device="cpu", precision="float32") for n in ("dead", "out"))
    assert new.config["network"]["analysis_blocks"] == [1, 1, 1]
    picture = cv2.imread(str(data / "pictures" / "0.png"))[None]
    assert torch.allclose(old.analyse(picture), new.analyse(picture), rtol=1e-3, atol=2e-3)
    assert torch.equal(old.gain(1), new.gain(1)) and old.tables(1).to_bytes() == new.tables(1).to_bytes()
    with pytest.raises(SystemExit):
        script.main()  # the output exists


def test_a_synthesis_is_mixed_of_two_and_all_else_stays(tmp_path, data, monkeypatch, capsys):
    from safetensors.numpy import load_file

    plain = config(loss={"adversarial": 0.0})
    export_compact(train(plain, data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={"title": "A"})
    dearer = replace(plain.loss, lambdas=(0.01, 0.2))
    part = replace(plain, start=str(tmp_path / "a.safetensors"), part="synthesis", loss=dearer)
    export_compact(train(part, data, tmp_path / "b"), data, tmp_path / "b.safetensors", card={"made": "today"})
    spec = importlib.util.spec_from_file_location("mix", Path(__file__).parent.parent / "scripts" / "mix_synthesis.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(start: str, trained: str, output: str) -> None:
        pair = [str(tmp_path / f"{name}.safetensors") for name in (start, trained)]
        given = ["--share", "0.25", "--data", str(data), "--folders", "pictures"]
        monkeypatch.setattr("sys.argv", ["mix", *pair, *given, "--output", str(tmp_path / f"{output}.safetensors")])
        script.main()

    run("a", "b", "out")
    a, b, out = (load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b", "out"))
    changed = [name for name in a if not np.array_equal(a[name], b[name])]
    assert changed and all(name.startswith("synthesis_net.") for name in changed)
    for name in a:
        assert np.allclose(out[name], 0.75 * a[name].astype(float) + 0.25 * b[name], atol=1e-3), name
    info = mcode.manifold.read_info(tmp_path / "out.safetensors")
    assert (info.card["title"], info.card["made"], info.card["training_config"]["part"]) == ("A", "today", "synthesis")
    assert info.card["mixed"].startswith("0.25 of the training's weights, 0.75 of ") and info.card["ranges"]
    prices = [mcode.manifold.read_info(tmp_path / f"{name}.safetensors").card["prices"] for name in ("a", "b", "out")]
    assert prices[0] == prices[1] == prices[2] != {}  # what is sent is as it was, and worth as much
    with pytest.raises(SystemExit):
        run("a", "b", "out")  # it exists
    export_compact(train(replace(plain, seed=9), data, tmp_path / "c"), data, tmp_path / "c.safetensors", card={})
    with pytest.raises(SystemExit):
        run("a", "c", "other")
    assert "only the synthesis may" in capsys.readouterr().err and not (tmp_path / "other.safetensors").exists()


def test_channels_that_die_on_the_way_start_afresh_and_runs_resume_exactly(tmp_path, data):
    export_compact(train(config(), data, tmp_path / "a"), data, tmp_path / "a.safetensors", card={})
    part = replace(config(), start=str(tmp_path / "a.safetensors"), part="synthesis")
    block, dead = "net.synthesis_net.net.1.0", slice(0, 3)

    def run(folder: str, steps: int, revive_every: int, report: loop.Report | None = None) -> dict[str, torch.Tensor]:
        optimiser = replace(part.optimiser, steps=steps, revive_every=revive_every)
        return loop.read_checkpoint(
            train(replace(part, optimiser=optimiser), data, tmp_path / folder, resume=True, report=report)
        )[2]

    run("out", 2, 0)
    path = tmp_path / "out" / loop.CHECKPOINT
    step, values, tensors = loop.read_checkpoint(path)
    for kind in ("model", "ema"):
        tensors[f"{kind}.{block}.conv1.bias"][dead] = -1e4
    save_file(tensors, path, {"step": str(step), "config": json.dumps(values)})
    shutil.copytree(tmp_path / "out", tmp_path / "never")
    never = run("never", 6, 0)
    assert (never[f"ema.{block}.conv1.bias"][dead] < -9e3).all()
    revived = run("out", 6, 4, lambda row: shutil.copytree(tmp_path / "out", tmp_path / f"killed{row['step']}"))
    for kind in ("model", "ema"):
        assert (revived[f"{kind}.{block}.conv1.bias"][dead].abs() < 0.1).all()
        assert (revived[f"{kind}.{block}.conv2.weight"][:, dead].abs() < 0.01).all()
        assert torch.allclose(revived[f"{kind}.{block}.conv1.weight"][3:], never[f"{kind}.{block}.conv1.weight"][3:], atol=0.01)
    assert revived[f"model.{block}.conv2.weight"][:, dead].any(), "what was revived learns"
    again = run("killed4", 6, 4)
    assert not [k for k in revived if not torch.equal(revived[k], again[k])]
