"""The synthesis in 8-bit integers: close to what it stands for, used where it can be, and refused in one line elsewhere."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mcode import manifold
from mcode.coders import CodeTables
from mcode.config import to_dict
from mcode.errors import ManifoldError
from mcode.evaluation.metrics import psnr
from mcode.frame import Frame
from mcode.nets import int8
from mcode.nets.compact import Compact, CompactSynthesis
from mcode.nets.hific import CompactConfig
from mcode.nets.int8_synthesis import Int8Synthesis, in_integers
from mcode.nets.layers import ResidualBlock, watched
from mcode.nets.residual import Residual, ResidualConfig
from mcode.send import SendConfig, send
from mcode.testclip import render_frames
from mcode.training.export import ranges_of
from mcode.training.ncode import NCodeData
from mcode.training.residual import ResidualTraining, save
from mcode.training.squares import Squares
from mcode.transcode import encode_file
from mcode.video import FrameWriter

from .range_model import sample

CPU = torch.device("cpu")
needs_integers = pytest.mark.skipif(not int8.supported(CPU), reason="this processor does not multiply 8-bit integers fast")


def block(channels: int = 32, seed: int = 0) -> ResidualBlock:
    torch.manual_seed(seed)
    made = ResidualBlock(channels)
    torch.nn.init.kaiming_normal_(made.conv2.weight)
    torch.nn.init.normal_(made.conv2.bias)
    return made


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=torch.channels_last)


def measured(made: ResidualBlock, x: torch.Tensor) -> list[float]:
    """The largest values: of the input, and between the convolutions."""
    with torch.inference_mode():
        return [x.abs().max().item(), torch.relu(made.conv1(x)).max().item()]


@needs_integers
@pytest.mark.parametrize("shape", [(1, 32, 23, 40), (3, 32, 8, 8), (2, 32, 1, 1), (1, 32, 17, 1)])
def test_what_a_block_adds_is_within_two_per_cent(shape):
    made, x = block(), noise(*shape)
    with torch.inference_mode():
        added = made(x) - x
        found = int8.Int8Block(made, *measured(made, x))(x.clone()) - x
    assert found.shape == added.shape and found.dtype == torch.float32
    assert (found - added).square().mean().sqrt() < 0.02 * added.square().mean().sqrt()


@needs_integers
def test_a_loud_channel_does_not_coarsen_the_others():
    made, x = block(), noise(1, 32, 9, 9)
    with torch.inference_mode():
        made.conv2.weight[0] *= 300
        added = (made(x) - x)[:, 1:]
        found = (int8.Int8Block(made, *measured(made, x))(x.clone()) - x)[:, 1:]
    assert (found - added).square().mean().sqrt() < 0.02 * added.square().mean().sqrt()


@needs_integers
def test_values_beyond_the_range_are_cut_and_the_map_itself_is_not():
    made, x = block(), noise(1, 32, 9, 9)
    small = int8.Int8Block(made, *measured(made, x))
    with torch.inference_mode():
        far = small(100 * x) - 100 * x
        exact = made(100 * x) - 100 * x
    assert far.abs().max() < exact.abs().max() / 5
    assert torch.isfinite(far).all()


@needs_integers
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_as_large_as_they_get_are_right(sign):
    """Without VNNI two products are added in 16 bits, which saturate with weights of 8 bits."""
    made, x = block(), sign * torch.ones(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for conv in (made.conv1, made.conv2):
            conv.weight.fill_(0.01 * sign)
        added = made(x) - x
        found = int8.Int8Block(made, *measured(made, x))(x.clone()) - x
    assert (found - added).abs().max() < 0.02 * added.abs().max()


@needs_integers
def test_coarse_weights_are_only_for_processors_whose_sums_saturate(monkeypatch):
    right = int8._right
    monkeypatch.setattr(int8, "_right", lambda levels: levels == 63)
    assert int8._weight_levels.__wrapped__() == 63
    monkeypatch.setattr(int8, "_right", lambda levels: True)
    assert int8._weight_levels.__wrapped__() == 127
    assert right(63), "weights of 7 bits are right everywhere"


@needs_integers
def test_a_block_of_bfloat16_leaves_its_input_alone():
    made, x = block(), noise(1, 32, 8, 8).bfloat16()
    before = x.clone()
    with torch.inference_mode():
        assert int8.Int8Block(made, 5.0, 5.0)(x).dtype == torch.float32
    assert torch.equal(x, before)


@pytest.mark.parametrize("piece", [int8._PIECE, 7])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.half, torch.double])
def test_other_floats_become_the_bytes_of_their_float32(monkeypatch, piece, kind):
    monkeypatch.setattr(int8, "_PIECE", piece)
    x = (20 * noise(1, 4, 9, 9)).to(kind)
    assert torch.equal(int8.to_bytes(x, 0.37), int8.to_bytes(x.float(), 0.37))


@needs_integers
def test_a_block_takes_maps_of_any_layout():
    made, x = block(), noise(2, 32, 4, 6)
    run = int8.Int8Block(made, *measured(made, x))
    with torch.inference_mode():
        assert torch.equal(run(x.contiguous()), run(x.clone()))


@needs_integers
def test_a_block_in_bytes_gives_its_sum_within_two_per_cent_of_what_it_adds_and_half_a_step():
    made, x = block(), noise(2, 32, 9, 13)
    given, hidden = measured(made, x)
    with torch.inference_mode():
        wanted = made(x)
        left = wanted.abs().max().item()
        x = int8.from_bytes(int8.to_bytes(x, given / 127), given / 127)
        found = int8.ByteBlock(made, given, hidden, left)(int8.to_bytes(x, given / 127))
        wanted = made(x)
    assert found.dtype == torch.uint8 and found.shape == wanted.shape
    off = (int8.from_bytes(found, left / 127) - wanted).square().mean().sqrt()
    assert off < 0.02 * (wanted - x).square().mean().sqrt() + left / 127 / 12**0.5


@needs_integers
def test_bytes_are_rounded_cut_and_laid_out_as_convolutions_want_them(monkeypatch):
    monkeypatch.setattr(int8, "_PIECE", 7)
    x = torch.tensor([-100.0, -1.0, -0.26, -0.24, 0.0, 0.24, 0.26, 1.0, 63.0, 100.0]).view(1, 2, 5, 1)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.bfloat16(), x.half(), x.double()):
        found = int8.to_bytes(given, 0.5)
        assert found.flatten().tolist() == [0, 126, 127, 128, 128, 128, 129, 130, 254, 255]
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert int8.from_bytes(found, 0.5).flatten()[1:9].tolist() == [-1, -0.5, 0, 0, 0, 0.5, 1, 63]


def test_ranges_lose_least_to_rounding_and_cutting():
    made, generator = block(), torch.Generator().manual_seed(5)
    xs = [torch.randn(1, 32, 40, 40, generator=generator) * scale for scale in (1, 0.2, 2)]
    xs[0][0, 0, 0, 0] = 16
    found = int8.measure(torch.nn.Sequential(made), made, xs)
    with torch.inference_mode():
        between = torch.cat([torch.relu(made.conv1(x)).flatten() for x in xs])
        values = torch.cat([x.flatten() for x in xs]), between, torch.cat([made(x).flatten() for x in xs])
    for size, seen, levels in zip(found[0], values, (127, 255, 127), strict=True):

        def lost(size: float, seen: torch.Tensor = seen, levels: int = levels) -> float:
            step = size / levels
            return float(((seen / step).round().clamp(-levels, levels) * step - seen).square().mean())

        least = min(lost(float(size)) for size in seen.abs().max() * torch.linspace(0.02, 1, 200))
        assert lost(size) < 1.02 * least
    assert found[0][0] < 13, "one value alone does not make all steps coarse"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())


def test_a_block_that_saw_nothing_but_zeros_has_ranges_of_zero():
    made = ResidualBlock(4)
    assert int8.measure(torch.nn.Sequential(made), made, [torch.zeros(1, 4, 3, 3)]) == [[0, 0, 0]]
    assert int8.measure(torch.nn.Sequential(made), made, []) == [[0, 0, 0]]


@needs_integers
@pytest.mark.parametrize(
    "ranges", [[], [[1.0, 1.0]] * 2, [[1.0]], [[1.0] * 4], [[-1.0, 2.0]], [[float("nan"), 1.0]], [[1.0, 1.0, float("inf")]]]
)
def test_ranges_that_do_not_fit_are_refused(ranges):
    with pytest.raises(ValueError, match="ranges"):
        int8.quantised(torch.nn.Sequential(block()), ranges)


def test_a_block_with_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalisation"):
        int8.Int8Block(ResidualBlock(8, norm=True), 1.0, 1.0)


STATIC = np.random.default_rng(7).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A compact manifold without ranges."""
    torch.manual_seed(1)
    config = CompactConfig(6, (8, 8, 8), (1, 0, 1), (32, 16, 16, 8), (2, 1, 1, 1), (0, 2, 6), 1)
    net = Compact(6, config.analysis_widths, config.analysis_blocks, config.synthesis_widths, config.synthesis_blocks)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        net.patches.basis.normal_(0, 0.05)
    path = tmp_path_factory.mktemp("int8") / "plain.safetensors"
    ones = np.ones((1, 6), np.float32)
    manifold.save(
        path,
        kind="hific",
        name="plain",
        config={
            "frame_size": None,
            "stride": 16,
            "qualities": 1,
            "network": to_dict(config) | {"family": "compact"},
        },
        tables=[CodeTables.fit([sample(i, 8, 8) for i in range(4)])],
        tensors={k: v.numpy() for k, v in net.state_dict().items()} | {"gain": ones, "inverse": ones},
        card={},
    )
    return path


@pytest.fixture(scope="module")
def ranged(plain):
    """The same with ranges measured on noise, which it is shown here."""
    model = manifold.load(plain, "cpu", precision="float32")
    path = plain.with_name("ranged.safetensors")
    card = {int8.RANGES: ranges_of(model, [noise(1, 6, 4, 5)[0] * 4 for _ in range(3)])}
    with int8.measured(model.net.analysis_net) as card[int8.ANALYSIS_RANGES]:
        model.analyse(STATIC[None])
    assert manifold.rewrite(plain, path, card=card) == model.id, "a card leaves the id as it is"
    return path


def noise_latents(*shape: int) -> torch.Tensor:
    return (noise(*shape) * 4).round()


@needs_integers
def test_a_manifold_with_ranges_uses_integers_unless_told_otherwise(plain, ranged):
    assert manifold.load(ranged, "cpu").precision == manifold.load(ranged, "cpu", precision="int8").precision == "int8"
    assert manifold.load(ranged, "cpu", precision="float32").precision == "float32"
    assert manifold.load(ranged, "cpu", precision="bfloat16").precision == "bfloat16"
    assert manifold.load(plain, "cpu").precision != "int8"


@needs_integers
def test_a_manifold_in_integers_shows_nearly_the_same_and_analyses_the_same(ranged):
    exact, fast = (manifold.load(ranged, "cpu", precision=p) for p in ("float32", "int8"))
    y = noise_latents(2, 6, 5, 7)
    shown = [m.synthesise(y, 109, 75) for m in (exact, fast)]
    assert shown[0].std() > 20
    assert not np.array_equal(*shown)
    assert np.abs(shown[0].astype(int) - shown[1]).mean() < 0.06 * shown[0].std()
    rgb = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    assert torch.equal(fast.analyse(rgb), manifold.load(ranged, "cpu", precision=str(fast.dtype)[6:]).analyse(rgb))


@needs_integers
def test_a_manifold_without_its_integers_is_the_one_that_never_had_any(ranged):
    fast, y = manifold.load(ranged, "cpu", precision="int8"), noise_latents(1, 6, 5, 7)
    plain = fast.in_floats()
    assert (fast.precision, plain.precision) == ("int8", str(fast.dtype)[6:])
    wanted = manifold.load(ranged, "cpu", precision=plain.precision).synthesise(y, 112, 80)
    assert np.array_equal(plain.synthesise(y, 112, 80), wanted)
    assert not np.array_equal(fast.synthesise(y, 112, 80), wanted)


@needs_integers
def test_a_synthesis_whose_ranges_are_known_is_all_bytes_at_its_largest_sizes(plain, ranged, tmp_path):
    exact, whole = manifold.load(ranged, "cpu", precision="float32"), manifold.load(ranged, "cpu")
    manifold.rewrite(plain, tmp_path / "old.safetensors", card={int8.RANGES: [r[:2] for r in whole.card[int8.RANGES]]})
    blocks = manifold.load(tmp_path / "old.safetensors", "cpu")
    y = noise_latents(2, 6, 5, 7)
    wanted, added = (m.synthesise(y, 112, 80).astype(int) for m in (exact, blocks))
    shown = whole.synthesise(y, 112, 80)
    assert isinstance(whole._int8.synthesis_net, Int8Synthesis) and isinstance(blocks._int8.synthesis_net, CompactSynthesis)
    linear = exact.net.patches.inverse(y).add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    what_it_adds = np.abs(wanted - linear).mean()
    assert what_it_adds > 10
    assert 0 < np.abs(added - wanted).mean() < 0.08 * what_it_adds
    assert 0 < np.abs(shown - wanted).mean() < 0.09 * what_it_adds
    with torch.inference_mode():
        pictures = whole._int8.synthesis(y).add(1).mul(127.5).round().permute(0, 2, 3, 1)
    assert np.array_equal(pictures.numpy(), shown)


@needs_integers
def test_a_synthesis_in_bytes_is_as_exact_where_the_rest_is_bfloat16(ranged):
    whole, y = manifold.load(ranged, "cpu"), noise_latents(1, 6, 5, 7)
    wanted = whole.synthesise(y, 112, 80)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(whole._int8.synthesis_net.pictures(y).numpy(), wanted)


@needs_integers
def test_a_size_without_blocks_keeps_to_blocks_in_integers():
    net = Compact(6, (8, 8, 8), (1, 1, 1), (16, 8, 8, 8), (1, 1, 0, 1))
    twin = in_integers(net, "synthesis_net", [[1.0, 1.0, 1.0]] * 3)
    assert isinstance(twin.synthesis_net, CompactSynthesis) and twin.analysis_net is net.analysis_net
    assert isinstance(net.synthesis_net.net[1][0], ResidualBlock), "as it was"
    with pytest.raises(ValueError, match="ranges are for 4 blocks"):
        in_integers(net, "synthesis_net", [[1.0, 1.0, 1.0]] * 4)


@needs_integers
def test_networks_of_one_channel_are_computed_in_integers_too():
    torch.manual_seed(0)
    net = Compact(1, (8, 8, 8), (1, 1, 1), (16, 8, 8, 8), (1, 1, 1, 1)).eval()
    y = noise(2, 1, 4, 6)
    with torch.inference_mode():
        wanted = net.synthesis_net(y, net.patches)
        twin = in_integers(
            net, "synthesis_net", int8.measure(net.synthesis_net, lambda y: net.synthesis_net(y, net.patches), [y])
        )
        found = twin.synthesis_net(y, net.patches)
    assert (found - wanted.clamp(-1, 1)).abs().max() < 0.05


@needs_integers
def test_integers_give_the_same_picture_twice_in_batches_and_in_parts(ranged):
    model = manifold.load(ranged, "cpu", precision="int8")
    y = noise_latents(2, 6, 20, 30)
    whole = model.synthesise(y, 480, 320)
    assert np.array_equal(model.synthesise(y, 480, 320), whole)
    assert np.abs(model.synthesise(y[1:], 480, 320)[0].astype(int) - whole[1]).max() <= 2
    model.net.pixels_at_once = 160 * 160
    assert len(list(model._parts(20, 30, model._reaches[1]))) > 1
    assert np.abs(model.synthesise(y, 480, 320).astype(int) - whole).mean() < 0.1


@needs_integers
def test_a_card_whose_ranges_do_not_fit_is_one_line(ranged, tmp_path):
    for number, bad in enumerate(([[1.0, 1.0]], "wide", [[1.0, None]] * 5, [[1.0, float("inf")]] * 5)):
        path = tmp_path / f"{number}.safetensors"
        manifold.rewrite(ranged, path, card={int8.RANGES: bad})
        with pytest.raises(ManifoldError, match="ranges for integers do not fit"):
            manifold.load(path, "cpu")
        assert manifold.load(path, "cpu", precision="float32").precision == "float32"


@needs_integers
def test_an_analysis_in_integers_is_close_and_for_those_who_ask(plain, ranged):
    fast, exact = manifold.load(ranged, "cpu"), manifold.load(ranged, "cpu", precision="float32")
    quick, wanted = fast.in_integers(), exact.analyse(STATIC[None])
    off = (quick.analyse(STATIC[None]) - wanted).abs().mean() / (wanted - exact.net.patches(as_input(STATIC))).abs().mean()
    assert 0 < off < 0.05, "of what the network adds"
    assert torch.equal(fast.analyse(STATIC[None]), fast.in_floats().analyse(STATIC[None])), "as it was before"
    y = noise_latents(1, 6, 4, 6)
    assert np.array_equal(quick.synthesise(y, 96, 64), fast.synthesise(y, 96, 64))
    assert torch.equal(quick.in_floats().analyse(STATIC[None]), fast.analyse(STATIC[None]))
    for lacking in (exact, manifold.load(plain, "cpu"), fast.in_floats()):
        assert lacking.in_integers() is lacking


def as_input(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb[None]).permute(0, 3, 1, 2).float() / 127.5 - 1


@needs_integers
def test_ranges_of_an_analysis_that_do_not_fit_are_one_line(ranged, tmp_path):
    manifold.rewrite(ranged, tmp_path / "bad.safetensors", card={int8.ANALYSIS_RANGES: [[1.0, 1.0]]})
    with pytest.raises(ManifoldError, match="ranges for integers do not fit"):
        manifold.load(tmp_path / "bad.safetensors", "cpu").in_integers()


@needs_integers
def test_live_video_is_analysed_in_integers_and_files_are_not(ranged, tmp_path, monkeypatch):
    with FrameWriter(tmp_path / "clip.mkv", width=96, height=64, fps=Fraction(25)) as writer:
        for pts in (0, 3600):
            writer.push(Frame(STATIC, pts))
    used = []
    analyse = manifold.Manifold.analyse
    monkeypatch.setattr(manifold.Manifold, "analyse", lambda self, rgb: used.append(self._int8_analysis) or analyse(self, rgb))
    encode_file(tmp_path / "clip.mkv", tmp_path / "out.mcode", manifold=ranged, device="cpu", n=1)
    assert used == [None, None]
    used.clear()
    send(SendConfig(str(tmp_path / "clip.mkv"), manifold=str(ranged), baseline="none", realtime=False, n=1, device="cpu"))
    assert used and None not in used


def test_integers_that_are_not_to_be_had_are_refused_when_asked_for(plain, ranged, monkeypatch):
    with pytest.raises(ManifoldError, match=r'"int8".*no ranges.*"auto"'):
        manifold.load(plain, "cpu", precision="int8")
    monkeypatch.setattr(int8, "_weight_levels", lambda: 0)
    with pytest.raises(ManifoldError, match=r'"int8".*lacks fast integers.*"auto"'):
        manifold.load(ranged, "cpu", precision="int8")
    assert manifold.load(ranged, "cpu").precision != "int8"
    assert not int8.supported(torch.device("meta"))


@needs_integers
@pytest.mark.parametrize("failure", [AttributeError, RuntimeError, TypeError])
def test_a_pytorch_without_these_operators_goes_without(failure, monkeypatch):
    def broken(*_: object) -> None:
        raise failure

    monkeypatch.setattr(int8.Int8Block, "__init__", broken)
    assert int8._weight_levels.__wrapped__() == 0


@needs_integers
@pytest.mark.parametrize("kind", ["Int8Block", "ByteBlock"])
def test_a_pytorch_whose_operators_mean_something_else_goes_without(kind, monkeypatch):
    monkeypatch.setattr(getattr(int8, kind), "forward", lambda self, x: x)
    assert int8._weight_levels.__wrapped__() == 0


@needs_integers
def test_general_analysed_in_integers_sends_nearly_the_same():
    exact = manifold.load("general", "cpu")
    quick = exact.in_integers()
    assert quick is not exact
    frames = np.stack([f.rgb for f in render_frames("arms", 0.2, 10, (160, 96), 0)])
    for quality, most in ((2, 0.03), (5, 0.04), (8, 0.1)):
        gain = exact.gain(quality).view(-1, 1, 1)
        off = ((quick.analyse(frames) - exact.analyse(frames)) * gain).square().mean().sqrt()
        assert 0 < off < most, "quantiser steps"


@needs_integers
def test_general_in_integers_loses_less_than_a_twentieth_of_a_decibel():
    exact, fast = (manifold.load("general", "cpu", precision=p) for p in ("float32", "int8"))
    frames = np.stack([f.rgb for f in render_frames("arms", 0.2, 10, (160, 96), 0)])
    for quality in (2, 5, 8):
        gain, inverse = exact.gain(quality).view(-1, 1, 1), exact.inverse(quality).view(-1, 1, 1)
        y = (exact.analyse(frames) * gain).round() * inverse
        scores = [np.mean([psnr(a, b) for a, b in zip(frames, m.synthesise(y, 160, 96), strict=True)]) for m in (exact, fast)]
        assert scores[0] - scores[1] < 0.05


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A manifold of the residual family whose network is not zero, trained on nothing."""
    config = ResidualConfig(frame_size=(32, 24), m=6, width=8, blocks=1)
    torch.manual_seed(4)
    net = Residual(config)
    generator = torch.Generator().manual_seed(1)
    rows = torch.linalg.qr(torch.randn(config.pixels, 6, generator=generator))[0].T
    net.set_basis(rows, torch.zeros(config.pixels))
    for part in net.unet.modules():
        if isinstance(part, ResidualBlock):
            torch.nn.init.kaiming_normal_(part.conv2.weight)
    torch.nn.init.normal_(net.unet.last.weight, std=0.05)
    for number, after in enumerate(net.unet.after):  # so that no two blocks have ranges alike
        after[0].conv1.weight.data.mul_(1 + 3 * number)
    path = tmp_path_factory.mktemp("residual") / "made.safetensors"
    pixels = np.random.default_rng(2).integers(0, 256, (12, 24, 32, 3), np.uint8)
    training = ResidualTraining(kind="ncode", name="made", network=config, data=NCodeData(folders=("x",)), steps=1)
    save(net, training, Squares(pixels, (12,)), path)
    return path


@needs_integers
def test_a_trained_residual_network_shows_nearly_the_same_in_integers(residual):
    fast, exact = manifold.load(residual, "cpu"), manifold.load(residual, "cpu", precision="float32")
    assert (fast.precision, exact.precision) == ("int8", "float32")
    pixels = np.random.default_rng(2).integers(0, 256, (3, 24, 32, 3), np.uint8)
    y = exact.analyse(pixels)
    shown, wanted = fast.synthesise(y, 32, 24), exact.synthesise(y, 32, 24)
    base = (exact.net.base(y.flatten(1) - exact.net.offset) + 1) * 127.5
    added = np.abs(wanted - base.permute(0, 2, 3, 1).numpy()).mean()
    assert added > 5, "the network adds something"
    assert 0 < np.abs(shown.astype(int) - wanted).mean() < 0.07 * added
    assert np.array_equal(fast.in_floats().analyse(pixels), fast.analyse(pixels))


@needs_integers
def test_ranges_belong_to_the_blocks_they_were_measured_at(residual):
    """The U-Net's last blocks run the other way round than they were made."""
    model = manifold.load(residual, "cpu", precision="float32")
    unet, seen = model.net.unet, {}
    y = model.analyse(np.random.default_rng(2).integers(0, 256, (1, 24, 32, 3), np.uint8))

    def see(name: str, x: torch.Tensor, second: bool) -> None:
        if not second:
            seen[name] = x.clone()

    with watched(unet, see), torch.inference_mode():
        model.net.synthesis(y)
    found = int8.measure(unet, model.net.synthesis, [y])
    names = [name for name, part in unet.named_modules() if isinstance(part, ResidualBlock)]
    assert list(seen) != names
    for name, each in zip(names, found, strict=True):
        part = torch.nn.Sequential(unet.get_submodule(name))
        assert int8.measure(part, part, [seen[name]]) == [each]


def test_networks_without_residual_blocks_have_no_integers():
    with pytest.raises(ValueError, match="Linear has no synthesis in integers"):
        int8.part(torch.nn.Linear(1, 1))
