"""The hyperprior in training: an exact double of what codes, derivatives, tables; and a manifold that carries one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mcode import manifold
from mcode.cli import main
from mcode.codec import Decoder, Encoder
from mcode.coders import entropy_bits
from mcode.coders import range as ranges
from mcode.coders.range import DELTA, FRACTIONS, WHOLE, WITH_Z
from mcode.errors import ManifoldError
from mcode.frame import Frame
from mcode.nets.hyper import Hyper, LaplaceBits
from mcode.training.hyper import HyperTraining, attach, fit, passes, train

from .range_model import CONFIG, sample, tiny
from .small_hific import small_manifolds

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def network(seed=0):
    torch.manual_seed(seed)
    net = Hyper(CONFIG)
    net.prepare(torch.rand(2, 2, 6) * 3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter += torch.randn_like(parameter) * 0.2
    return net


def coding_indices(model, symbols, previous, quality, kind, joined):
    """(table, whole mean) of every symbol, as the coder has them."""
    size = symbols.shape[1:]
    flat = symbols.reshape(len(symbols), -1)
    from_z = ranges._synthesis(ranges._analysis(symbols, quality, model), size, model) if kind == WITH_Z else None
    base = previous.reshape(flat.shape) if kind >= DELTA else None
    walk = ranges._Walk(model, quality, size, np.arange(flat.shape[1]), joined, from_z, base, max(0, kind - DELTA))
    table, mean = np.zeros(flat.shape, int), np.zeros(flat.shape, int)
    for i, p in enumerate(model.config.passes):
        plan = walk.plan(i)
        table[p.start : p.stop, plan.columns] = plan.table.reshape(p.stop - p.start, -1)
        mean[p.start : p.stop, plan.columns] = plan.mean.reshape(p.stop - p.start, -1)
        walk.tell(i, flat[p.start : p.stop, plan.columns], plan.columns)
    return table, mean


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [WHOLE, WITH_Z, DELTA])
@pytest.mark.parametrize("joined", [True, False])
def test_training_sees_the_very_indices_that_code_for_ten_thousand_latents_in_any_batch(device, dtype, kind, joined):
    net = network().to(device, dtype)
    maps = np.stack([sample(i, 20, 25) for i in range(20)])  # 20 x 500 latents
    before = np.stack([sample(100 + i, 20, 25) for i in range(20)])
    model = ranges.RangeModel(CONFIG, network().integers(), *(getattr(tiny(), n) for n in ("sizes", "tables", "z_tables")))
    different = 0
    for batch in (20, 3):
        for start in range(0, 20 if batch == 20 else 3, batch):
            part = slice(start, start + batch)
            x, last = (torch.from_numpy(m[part]).to(device, dtype) for m in (maps, before))
            quality = torch.full((len(x),), 1, device=device)
            with torch.no_grad():
                z = net.analysis(x, quality)
                scale, quarters = net.indices(x, last, z, quality, torch.full_like(quality, kind), joined)
            for i, index in enumerate(range(20)[part]):
                table, mean = coding_indices(model, maps[index], before[index], 2, kind, joined)
                q = quarters[i].cpu().numpy().reshape(6, -1).astype(int)
                whole = (q + 1) >> 2
                expected = scale[i].cpu().numpy().reshape(6, -1).astype(int) * FRACTIONS + np.abs(q - 4 * whole)
                whole = whole + (before[index].reshape(6, -1) if kind == DELTA else 0)
                different += np.count_nonzero(expected != table) + np.count_nonzero(whole != mean)
    assert different == 0


def test_levels_of_deltas_are_the_coders_own():
    config = replace(CONFIG, levels=3)
    net = Hyper.thaw(tiny(), levels=3)
    with torch.no_grad():
        net.start.bias += torch.randn(net.start.bias.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    model = ranges.RangeModel(config, net.integers(), *(getattr(tiny(), n) for n in ("sizes", "tables", "z_tables")))
    x, last = torch.from_numpy(sample(1, 9, 7)[None]).float(), torch.from_numpy(sample(2, 9, 7)[None]).float()
    quality, tables = torch.tensor([1]), []
    for kind in (WHOLE, WITH_Z, DELTA, DELTA + 1, DELTA + 2):
        with torch.no_grad():
            scale, quarters = net.indices(x, last, net.analysis(x, quality), quality, torch.tensor([kind]), True)
        symbols, before = sample(1, 9, 7), sample(2, 9, 7)
        table, mean = coding_indices(model, symbols, before, 2, kind, True)
        q = quarters[0].numpy().reshape(6, -1).astype(int)
        whole = (q + 1) >> 2
        assert np.array_equal(scale[0].numpy().reshape(6, -1).astype(int) * FRACTIONS + np.abs(q - 4 * whole), table)
        assert np.array_equal(whole + (before.reshape(6, -1) if kind >= DELTA else 0), mean)
        tables.append(table)
    assert not any(np.array_equal(a, b) for a, b in pairwise(tables[2:]))


def test_levels_begin_as_the_one_delta_there_was():
    model, thawed = tiny(), Hyper.thaw(tiny(), levels=4)
    symbols, last = (torch.from_numpy(sample(i, 8, 8)[None]).float() for i in (1, 2))
    quality = torch.tensor([1])
    with torch.no_grad():
        z = thawed.analysis(symbols, quality)
        one = Hyper.thaw(model).indices(symbols, last, z, quality, torch.tensor([DELTA]), True)
        for level in range(4):
            kind = torch.tensor([DELTA + level])
            for a, b in zip(one, thawed.indices(symbols, last, z, quality, kind, True), strict=True):
                assert torch.equal(a, b)


def test_the_integers_bring_the_network_back():
    net = network()
    back = Hyper.from_integers(CONFIG, net.integers())
    for name, array in back.integers().items():
        assert np.array_equal(array, net.integers()[name]), name
    x, quality = torch.from_numpy(sample(1, 8, 8)[None]).float(), torch.tensor([1])
    with torch.no_grad():
        z = net.analysis(x, quality)
        assert torch.equal(back.analysis(x, quality), z)
        kind = torch.tensor([WITH_Z])
        for a, b in zip(net.indices(x, x, z, quality, kind, True), back.indices(x, x, z, quality, kind, True), strict=True):
            assert torch.equal(a, b)


def test_bits_and_their_derivatives():
    distance = torch.rand(200, dtype=torch.float64) * 4
    scale = torch.rand(200, dtype=torch.float64) * 2 + 0.1
    laplace = torch.distributions.Laplace(torch.zeros(200, dtype=torch.float64), scale)
    expected = -(laplace.cdf(distance + 0.5) - laplace.cdf(distance - 0.5) + LaplaceBits.FLOOR).log2()
    assert torch.allclose(LaplaceBits.apply(distance, scale), expected)
    assert torch.autograd.gradcheck(LaplaceBits.apply, (distance.requires_grad_(), scale.requires_grad_()))


def test_the_order_of_passes_covers_every_channel():
    for channels in (1, 3, 4, 6, 29, 128, 220):
        config = ranges.HyperConfig(channels, 1, passes(channels), signed=1)
        assert ranges.HyperConfig.from_dict(config.to_dict(), channels, 1) == config


@pytest.fixture(scope="module")
def trained():
    """(model, latents, moves): 100 steps on maps with silent and loud places."""
    rng = np.random.default_rng(0)
    loud = np.repeat(np.repeat(rng.choice([0.1, 5.0], (40, 1, 2, 2)), 4, 2), 4, 3)
    latents = (rng.normal(0, 1, (40, 6, 8, 8)) * loud).astype(np.float16)
    moves = np.stack([latents, latents + rng.normal(0, 0.2, latents.shape).astype(np.float16)], axis=1)
    gain = torch.tensor([[1.0] * 6, [2.0] * 6])
    heard = []
    net = train(
        latents, moves, gain, replace(CONFIG, scales=40), HyperTraining(steps=100, batch=8, deltas=3), report=heard.append
    )
    assert heard[-1]["step"] == 100
    return fit(net, latents, moves, gain, limit=40), latents, moves


def test_training_finds_what_neighbours_and_the_previous_keyframe_tell(trained):
    model, _, moves = trained
    before, after = np.rint(moves.astype(np.float32)).astype(np.int16).transpose(1, 0, 2, 3, 4)
    alone = [ranges.estimate(symbols, None, 1, 1, model).bits for symbols in before]
    assert np.mean(alone) < 0.9 * entropy_bits(list(before))
    known = [ranges.estimate(b, a, 1, 1, model).bits for a, b in zip(before, after, strict=True)]
    assert np.mean(known) < 0.7 * np.mean(alone)


def test_bytes_come_within_one_percent_of_the_estimate(trained):
    model, latents, _ = trained
    wide = np.rint(np.concatenate(list(latents[:20].astype(np.float32)), axis=2)).astype(np.int16)
    size = sum(map(len, ranges.encode(wide, None, 1, 1, model)))
    assert size * 8 == pytest.approx(ranges.estimate(wide, None, 1, 1, model).bits, rel=0.01)


def test_flipped_bits_are_known_without_a_checksum(trained):
    model, latents, _ = trained
    wide = np.rint(np.concatenate(list(latents[:20].astype(np.float32)), axis=2)).astype(np.int16)
    (data,) = ranges.encode(wide, None, 1, 1, model)
    rng = np.random.default_rng(0)
    known = 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        found = ranges.decode(bytes(flipped), None, 0, 1, wide.shape[1:], 1, model)
        known += found.damaged or found.needs_previous
    assert known >= 55  # at the end of the stream fewer symbols are left to show it


def test_a_cut_and_another_previous_keyframe_are_known_too(trained):
    model, _, moves = trained
    before, after = np.rint(moves[0].astype(np.float32)).astype(np.int16)
    (data,) = ranges.encode(after, before, 1, 1, model)
    flat = before.reshape(6, -1)
    assert not ranges.decode(data, flat, 0, 1, (8, 8), 1, model).damaged
    for spoilt, previous in ((data[: len(data) // 2], flat), (data + b"1234", flat), (data, flat + np.int16(1))):
        assert ranges.decode(spoilt, previous, 0, 1, (8, 8), 1, model).damaged


# A manifold that carries one.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_manifolds(tmp_path_factory.mktemp("manifolds"))


def test_a_manifold_with_a_hyperprior_is_another_one_with_the_same_pictures(files):
    plain, dense = (manifold.load(path, "cpu", precision="float32") for path in files)
    assert manifold.verify(files[1]) == dense.id != plain.id
    assert plain.hyper is None and dense.hyper is not None
    assert dense.info.coders == ("huffman", "fixed", "range") and plain.info.coders == ("huffman", "fixed")
    assert dense.card["hyperprior"] == "random" and dense.card["title"] == "tiny"
    rgb = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    assert torch.equal(plain.analyse(rgb), dense.analyse(rgb))
    assert plain.tables(1) == dense.tables(1)


def test_attaching_twice_replaces(files, tmp_path):
    again = tmp_path / "again.safetensors"
    assert attach(files[1], tiny(), again, note="random") == manifold.read_info(files[1]).id
    assert manifold.load(again, "cpu").hyper is not None


def test_a_manifold_whose_hyperprior_is_damaged_is_refused(files, tmp_path):
    bad = tmp_path / "bad.safetensors"
    tensors = {k: v for k, v in tiny().to_tensors().items() if k != "hyper.a2"}
    manifold.rewrite(files[0], bad, hyper=CONFIG.to_dict(), tensors=tensors, card={})
    with pytest.raises(ManifoldError, match=r"bad\.safetensors: the hyperprior's a2 is missing"):
        manifold.load(bad, "cpu")


@pytest.mark.parametrize("slices", [1, 4])
def test_what_one_precision_encodes_another_decodes_to_the_same_symbols(files, slices):
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    frames = [Frame(rgb.repeat(12, 0).repeat(12, 1), i * 3600) for i, rgb in enumerate(small)]
    models = [manifold.load(files[1], "cpu", precision=p) for p in ("float32", "bfloat16")]
    if torch.cuda.is_available():
        models.append(manifold.load(files[1], "cuda"))
    for sender in models:
        encoder = Encoder(sender, 96, 96, n=1, coder="range", slices=slices, cuts=False)
        decoders = [Decoder(receiver) for receiver in models]
        for frame in frames:
            (packet,) = encoder.push(frame)
            for decoder in decoders:
                list(decoder.push(packet))
                assert np.array_equal(decoder._symbols, encoder._symbols)


def test_the_command_line_codes_with_it_and_refuses_without(files, tmp_path, capsys):
    import cv2

    picture = tmp_path / "in.png"
    cv2.imwrite(str(picture), np.random.default_rng(2).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    plain, dense = map(str, files)
    out = str(tmp_path / "out.mcode")
    assert main(["encode", str(picture), "-o", out, "-m", plain, "--coder", "range"]) == 2
    error = capsys.readouterr().err
    assert "--coder range: manifold plain has no hyperprior" in error and "huffman and fixed" in error
    assert not list(tmp_path.glob("out*"))
    assert main(["encode", str(picture), "-o", out, "-m", dense, "--coder", "range"]) == 0
    assert main(["info", out]) == 0
    assert "range" in capsys.readouterr().out
    assert main(["decode", out, "-o", str(tmp_path / "back.png"), "-m", dense]) == 0
    assert cv2.imread(str(tmp_path / "back.png")).shape == (48, 64, 3)
    assert main(["info", dense]) == 0
    assert "huffman, fixed, range" in capsys.readouterr().out
