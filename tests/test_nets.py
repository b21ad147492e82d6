"""Networks: shapes, strides, gradients, parameter counts, and manifolds of them. Never with trained weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mcode import manifold
from mcode.coders import CodeTables
from mcode.config import to_dict
from mcode.nets import mean_scale, paper
from mcode.nets.build import build
from mcode.nets.hific import CompactConfig, CompactHific
from mcode.nets.layers import ChannelNorm
from mcode.nets.ncode import BITS, Discriminator, Encoder, Generator, NCode, NCodeConfig, levels, quantise

SMALL = paper.PaperConfig(channels=6, width=2, blocks=2, hyper=4)
TINY = NCodeConfig(size=32, m=5, width=4)
CPU = torch.device("cpu")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pictures(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def assert_every_parameter_gets_a_gradient(module: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    without = [k for k, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not without


# The full-size hific networks


@pytest.fixture
def full_size(monkeypatch) -> paper.Hific:
    """Its weights are whatever memory held: 700 MB that nothing touches."""
    monkeypatch.setattr(nn.modules.conv._ConvNd, "reset_parameters", lambda self: None)
    return paper.Hific(paper.PaperConfig()).eval()


def test_full_size_parameter_counts_are_those_documented(full_size):
    net, d = full_size, paper.Discriminator(220, norm="instance")
    counts = [count(net.encoder), count(net.generator), count(net.hyperprior), count(net)]
    counts.append(count(d) - 2 * (64 + 128 + 256 + 512))  # spectral norm has no parameters of its own
    assert counts == [7_423_420, 156_774_683, 17_277_560, 181_475_663, 2_793_117]
    for number in counts:
        assert f"{number:,}" in paper.__doc__


def test_full_size_shapes_are_the_public_ports_in_its_order(data_dir, full_size):
    layout = json.loads((data_dir / "hific_pytorch" / "state_dict_layout.json").read_text())
    assert [list(v.shape) for v in full_size.state_dict().values()] == list(layout.values())


@pytest.mark.slow
def test_full_size_networks_compute_what_the_public_port_computes(data_dir, full_size):
    folder = data_dir / "hific_pytorch"
    layout = json.loads((folder / "state_dict_layout.json").read_text())
    expected = np.load(folder / "expected.npz")
    net, state = full_size, {}
    for ours, (name, shape) in zip(net.state_dict(), layout.items(), strict=True):
        r = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
        if name.endswith("gamma"):
            weight = 1 + 0.1 * r
        else:
            weight = r / np.sqrt(np.prod(shape[1:]), dtype=np.float32) if r.ndim == 4 else 0.05 * r
        state[ours] = torch.from_numpy(weight.astype(np.float32))
    net.load_state_dict(state, assign=True)
    x = np.random.Generator(np.random.PCG64(7)).uniform(-1, 1, (1, 3, 128, 192)).astype(np.float32)
    with torch.inference_mode():
        y = net.analysis(torch.from_numpy(x))
        z = net.hyperprior.side(y)
        mean, scale = net.hyperprior.synthesis_mean(z.round()), net.hyperprior.synthesis_scale(z.round())
        x_hat = net.synthesis((y - mean).round() + mean)
    for name, tensor in {"y": y, "z": z, "mu": mean, "scale_raw": scale, "x_hat": x_hat}.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 80), (48, 32), (64, 64)])
def test_hific_maps_any_multiple_of_16_to_a_sixteenth_and_back(height, width):
    net = paper.Hific(SMALL)
    x_hat, y_hat, bits = net(pictures(2, height, width))
    assert x_hat.shape == (2, 3, height, width)
    assert y_hat.shape == net.analysis(x_hat).shape == (2, 6, height // 16, width // 16)
    assert all(each.shape == (2,) and (each > 0).all() for each in bits)


def test_every_part_of_hific_learns_from_rate_and_distortion():
    torch.manual_seed(1)
    net, x = paper.Hific(SMALL), pictures(2, 64, 64)
    x_hat, _, bits = net(x)
    assert_every_parameter_gets_a_gradient(net, (x_hat - x).square().mean() + bits.noisy.mean() / 1000)


def test_hific_rounds_around_the_means():
    hyperprior = paper.Hyperprior(6, 4)
    y = torch.randn(1, 6, 3, 5)
    torch.manual_seed(5)
    y_hat, _ = hyperprior(y)
    torch.manual_seed(5)
    z = hyperprior.side(y)
    mean, scale = hyperprior.distribution(z + torch.rand_like(z) - 0.5, 3, 5)
    steps = y_hat - mean
    assert torch.allclose(steps, steps.round(), atol=1e-5) and (y_hat - y).abs().max() <= 0.5001
    assert scale.min() >= paper.SMALLEST_SCALE


def test_rounded_bits_are_those_of_integers_around_the_means_and_have_no_gradient():
    torch.manual_seed(0)
    hyperprior = paper.Hyperprior(6, 4)
    hyperprior.density = paper.FactorisedDensity(4, spread=0.5)  # narrow: noise on z costs
    for part in (hyperprior.synthesis_mean, hyperprior.synthesis_scale):
        torch.nn.init.zeros_(part[-1].weight)
    with torch.no_grad():  # a distribution that no z moves
        hyperprior.synthesis_mean[-1].bias.copy_(torch.linspace(-1, 1, 6))
        hyperprior.synthesis_scale[-1].bias.copy_(torch.linspace(1.5, 3, 6))
    y = torch.randn(2, 6, 8, 12) * 2
    _, bits = hyperprior(y.requires_grad_())
    mean, scale = (torch.linspace(*ends, 6).double().view(1, 6, 1, 1) for ends in ((-1, 1), (1.5, 3)))
    k, normal = (y.detach().double() - mean).round(), torch.distributions.Normal(0, scale)
    of_y = -(normal.cdf(k + 0.5) - normal.cdf(k - 0.5)).clamp_min(1e-9).log2().sum((1, 2, 3))
    with torch.no_grad():
        of_z = -hyperprior.density(hyperprior.side(y).round()).log2().sum((1, 2, 3))
    torch.testing.assert_close(bits.rounded, (of_y + of_z).float(), rtol=1e-5, atol=0)
    assert bits.noisy.requires_grad and not bits.rounded.requires_grad
    assert not torch.allclose(bits.noisy, bits.rounded, rtol=1e-3)


def test_noise_alone_costs_as_much_as_the_low_rate_target_where_nothing_is_sent():
    """220 channels at the smallest scale and y at its means: 0.13 bit/pixel with noise, of a target of 0.14."""
    hyperprior = paper.Hyperprior(220, 1)
    for parameter in (*hyperprior.synthesis_mean.parameters(), *hyperprior.synthesis_scale.parameters()):
        torch.nn.init.zeros_(parameter)
    torch.manual_seed(0)
    _, bits = hyperprior(torch.zeros(1, 220, 16, 16))
    with torch.no_grad():
        of_z = -hyperprior.density(torch.zeros(1, 1, 4, 4)).log2().sum() / 256**2
    assert bits.noisy.item() / 256**2 == pytest.approx(0.13, abs=0.01)
    assert bits.rounded.item() / 256**2 < of_z + 0.001


def test_gdn_is_its_formula_and_its_inverse_multiplies():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float32) * 3
    for inverse in (False, True):
        gdn = mean_scale.Gdn(3, inverse=inverse)
        with torch.no_grad():
            gdn.beta.copy_(torch.tensor([1.0, 0.5, 2.0]))
            gdn.gamma.copy_(torch.linspace(0, 0.8, 9).view(3, 3))
        for b, h, w in np.ndindex(2, 4, 5):
            f = x[b, :, h, w].double().numpy()
            norm = np.sqrt(np.array([1, 0.25, 4]) + np.square(np.linspace(0, 0.8, 9).reshape(3, 3)) @ f**2)
            expected = f * norm if inverse else f / norm
            np.testing.assert_allclose(gdn(x)[b, :, h, w].detach(), expected, rtol=1e-4)
    at_zero = mean_scale.Gdn(3)
    at_zero(x).square().sum().backward()
    assert (at_zero.gamma.grad != 0).all()  # those at 0 can leave it


@pytest.mark.parametrize(("height", "width"), [(16, 80), (48, 32)])
def test_the_mean_scale_autoencoder_maps_as_hific_does_and_learns(height, width):
    torch.manual_seed(1)
    net, x = paper.Hific(replace(SMALL, autoencoder="mean-scale", width=5)), pictures(2, height, width)
    x_hat, y_hat, bits = net(x)
    assert x_hat.shape == x.shape and y_hat.shape == net.analysis(x).shape == (2, 6, height // 16, width // 16)
    assert_every_parameter_gets_a_gradient(net, (x_hat - x).square().mean() + bits.noisy.mean() / 1000)
    assert len(net.generator) == len(net.encoder) == 7
    with pytest.raises(ValueError, match="norm"):
        replace(SMALL, autoencoder="mean-scale", norm="instance")


def test_channel_norm_divides_by_c_less_1_at_every_position():
    norm = ChannelNorm(7)
    with torch.no_grad():
        norm.gamma.copy_(torch.linspace(0.5, 2, 7).view(1, 7, 1, 1))
        norm.beta.copy_(torch.linspace(-1, 1, 7).view(1, 7, 1, 1))
    x = torch.randn(2, 7, 3, 4) * 3 + 1
    out = norm(x).detach().numpy()
    for b, h, w in np.ndindex(2, 3, 4):
        f = x[b, :, h, w].double().numpy()
        sigma = math.sqrt(f.var(ddof=1) + norm.eps)
        expected = (f - f.mean()) / sigma * np.linspace(0.5, 2, 7) + np.linspace(-1, 1, 7)
        np.testing.assert_allclose(out[b, :, h, w], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 7, 60])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_norm_is_the_plain_one_and_has_its_gradients(channels, layout):
    torch.manual_seed(0)
    plain, fused = ChannelNorm(channels), paper.FusedChannelNorm(channels)
    with torch.no_grad():
        plain.gamma.normal_()
        plain.beta.normal_()
    fused.load_state_dict(plain.state_dict())
    x = (torch.randn(2, channels, 5, 6) * 3 + 1).contiguous(memory_format=layout)
    found = []
    for norm in (plain, fused):
        own = x.clone().requires_grad_()
        y = norm(own)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append((y, own.grad, norm.gamma.grad, norm.beta.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_channel_norm_does_not_depend_on_the_pictures_size():
    x = torch.randn(1, 5, 6, 6)
    assert torch.allclose(ChannelNorm(5)(x)[..., :2, :2], ChannelNorm(5)(x[..., :2, :2]), atol=1e-6)


def test_probabilities_of_all_integers_add_up_to_one():
    v = torch.arange(-60, 61).float()
    for scale in (0.11, 1.0, 7.5):
        p = paper.gaussian_probability(v - 0.3, torch.tensor(scale)).double()
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        assert p[60].item() == pytest.approx(
            0.5 * (math.erf(0.8 / scale / math.sqrt(2)) + math.erf(0.2 / scale / math.sqrt(2))), rel=1e-4
        )
    wide = torch.arange(-300, 301).float().view(1, 1, 1, -1).expand(1, 3, 1, -1)
    total = paper.FactorisedDensity(3)(wide).double().sum((0, 2, 3))
    assert torch.allclose(total, torch.ones(3, dtype=torch.float64), atol=1e-4)


def test_bits_and_their_gradients_are_right_in_the_tails():
    v, scale = torch.tensor([[4.06, 1.09, 3.0, 1.05, 0.0, -2.1], [0.656, 0.11, 0.5, 0.11, 1.0, 0.4]])

    def bits_and_gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        at = [t.to(dtype, copy=True).requires_grad_(True) for t in (v, scale)]
        bits = -paper.gaussian_probability(*at).log2()
        return [bits.detach().double(), *(g.double() for g in torch.autograd.grad(bits.sum(), at))]

    exact = bits_and_gradients(torch.float64)
    assert exact[0][0].item() == pytest.approx(25.06, abs=0.01)
    for found, wanted in zip(bits_and_gradients(torch.float32), exact, strict=True):
        assert torch.allclose(found, wanted, rtol=2e-3, atol=1e-4)


def test_a_bounded_value_can_come_back_up_but_not_sink():
    x = torch.tensor([0.5, 0.5, 2.0], requires_grad=True)
    (paper.at_least(x, 1.0) * torch.tensor([-1.0, 1.0, 1.0])).sum().backward()
    assert x.grad.tolist() == [-1, 0, 1]


def test_discriminator_judges_patches_given_the_latent():
    d = paper.Discriminator(6)
    x, y = pictures(2, 64, 96), torch.randn(2, 6, 4, 6)
    assert d(x, y).shape == (2, 1, 4, 6)
    assert not torch.equal(d.eval()(x, y), d(x, y + 1))
    alone = paper.Discriminator(6, conditional=False, norm="instance").eval()
    assert torch.equal(alone(x, y), alone(x, y + 1))
    assert_every_parameter_gets_a_gradient(d, d.train()(x, y).square().sum())


@pytest.mark.parametrize("conditional", [True, False])
def test_spectral_norm_bounds_every_layer_of_the_discriminator(conditional):
    torch.manual_seed(0)
    d = paper.Discriminator(6, conditional=conditional).eval()
    convolutions = [m for m in d.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 5 + conditional
    for conv in convolutions:
        rows = conv.weight.detach().flatten(1)
        assert torch.linalg.matrix_norm(rows, 2).item() == pytest.approx(1, abs=0.1)
        assert not torch.allclose(rows, conv.parametrizations.weight.original.flatten(1), rtol=0.05)
    plain = paper.Discriminator(6, conditional=conditional, norm="instance")
    assert not any("parametrizations" in name for name in plain.state_dict())


# NCode


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_ncode_halves_to_4x4_and_back_at_every_size(size, channels):
    config = NCodeConfig(size=size, channels=channels, m=3, width=2, widest=16)
    z = torch.rand(2, 3, 1, 1) * 2 - 1
    x = Generator(config)(z)
    assert x.shape == (2, channels, size, size) and x.abs().max() <= 1
    d, f = Discriminator(config), Encoder(config)
    assert d.net(x).shape[2:] == (4, 4)
    assert d(x).shape == (2, 1, 1, 1) and f(x).shape == (2, 3, 1, 1)
    assert f(x).abs().max() <= 1


def test_ncode_parameter_counts():
    config = NCodeConfig(size=64, m=100, width=64)
    assert [count(Generator(config)), count(Discriminator(config)), count(Encoder(config))] == [
        3_576_707,
        2_765_633,
        3_576_740,
    ]


def test_encoder_is_the_discriminator_but_for_its_outputs():
    d, f = Discriminator(TINY), Encoder(TINY)
    shapes = {k: v.shape for k, v in d.state_dict().items()}
    assert {k for k, v in f.state_dict().items() if v.shape != shapes[k]} == {"last.weight", "last.bias"}


def test_a_critic_without_norm_judges_each_picture_by_itself():
    x = pictures(4, 32, 32)
    critic = Discriminator(TINY, norm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    assert torch.allclose(critic(x)[:1], critic(x[:1]), atol=1e-6)
    assert not torch.allclose(Discriminator(TINY)(x)[:1], Discriminator(TINY)(x[:1]))


def test_ncode_gradients_reach_g_d_and_f():
    torch.manual_seed(2)
    g, d, f = Generator(TINY), Discriminator(TINY), Encoder(TINY)
    x = pictures(3, 32, 32)
    assert_every_parameter_gets_a_gradient(g, d(g(torch.rand(3, 5, 1, 1))).sum())
    assert_every_parameter_gets_a_gradient(d, d(x).square().sum())
    assert_every_parameter_gets_a_gradient(f, (g(f(x)) - x).square().sum())


def test_b_bits_are_two_to_the_b_even_levels_from_minus_one_to_one():
    z = torch.linspace(-1, 1, 2001).view(1, -1, 1, 1)
    for bits in BITS:
        found = quantise(z, torch.tensor([bits])).unique()
        assert torch.allclose(found, torch.linspace(-1, 1, 2**bits), atol=1e-6)
        assert ((z + 1) * levels()[bits - 1]).round().max() == 2**bits - 1


def saved(path, kind, config, net, **more) -> manifold.Manifold:
    blank = CodeTables.fit([np.zeros((config["channels"], 1, 1), np.int16)])
    tensors = {k: v.numpy() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")} | more
    del config["channels"]
    manifold.save(path, kind=kind, name="x", config=config, tables=[blank] * config["qualities"], tensors=tensors, card={})
    return manifold.load(path, device="cpu", precision="float32")


@pytest.mark.parametrize("channels", [1, 3])
def test_an_ncode_manifold_gives_symbols_of_as_many_bits_as_its_quality(tmp_path, channels):
    from mcode.latents import dequantise, quantise

    config = NCodeConfig(size=32, channels=channels, m=5, width=4)
    described = {"frame_size": [32, 32], "stride": None, "qualities": 8, "network": to_dict(config), "channels": 5}
    model = saved(tmp_path / "n.safetensors", "ncode", described, NCode(config))
    rgb = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    latents = model.analyse(rgb)
    assert latents.shape == (2, *model.latent_shape(32, 32)) == (2, 5, 1, 1)
    for quality in BITS:
        symbols = quantise(latents[0] * 0 + torch.tensor([0, 0.5, 1, 1.5, 2]).view(5, 1, 1), model.gain(quality))
        assert symbols.min() == 0 and symbols.max() == 2**quality - 1
        assert dequantise(symbols, model.inverse(quality)).flatten()[[0, -1]].tolist() == pytest.approx([0, 2])
    out = model.synthesise(latents, 32, 32)
    assert out.shape == (2, 32, 32, 3) and out.dtype == np.uint8
    if channels == 1:
        assert (out == out[..., :1]).all()


@pytest.mark.parametrize("network", [SMALL, replace(SMALL, autoencoder="mean-scale"), replace(SMALL, qualities=8)])
def test_a_paper_manifold_takes_any_size(tmp_path, network):
    ones = np.ones((network.qualities, 6), np.float32)
    described = {"frame_size": None, "stride": 16, "qualities": network.qualities, "network": to_dict(network), "channels": 6}
    model = saved(tmp_path / "p.safetensors", "hific", described, paper.Hific(network), gain=ones, inverse=ones)
    for height, width in ((1, 1), (17, 40)):
        latents = model.analyse(np.zeros((1, height, width, 3), np.uint8))
        assert latents.shape[1:] == model.latent_shape(width, height) and model.qualities == network.qualities
        assert model.synthesise(latents, width, height).shape == (1, height, width, 3)


def test_networks_are_checked_without_pytorchs_compiler():
    """It takes two seconds to import, of every command that loads a manifold."""
    program = """
import sys, torch
from mcode.nets import build, compact, hific, linear, ncode, paper, residual
plain = ncode.NCodeConfig(size=32, m=5, width=4)
coded = residual.ResidualConfig((16, 8), m=3, width=4, blocks=1, components=4, code=4, encoder=True, direct=True)
small = paper.PaperConfig(channels=6, width=2, blocks=2, hyper=4)
for make in (
    lambda: linear.Linear(3, 4, 5, 2),
    lambda: ncode.NCode(plain),
    lambda: residual.Residual(coded),
    lambda: compact.Compact(8, (4, 4, 4), (1, 1, 1), (4, 4, 4, 4), (1, 1, 1, 1)),
    lambda: paper.Hific(small),
):
    state = {k: v for k, v in make().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert not any(v.is_meta for v in build._checked(make, state).state_dict().values())
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_compact_manifolds_build_with_and_without_the_family():
    config = CompactConfig(8, (4, 4, 4), (1, 1, 1), (4, 4, 4, 4), (1, 1, 1, 1), (0, 8), 2)
    net = CompactHific(config).net
    tensors = {k: v.numpy() for k, v in net.state_dict().items()}
    tensors |= {"gain": np.ones((2, 8), np.float32), "inverse": np.ones((2, 8), np.float32)}
    for network in (to_dict(config), to_dict(config) | {"family": "compact"}):
        built, gain, _ = build("hific", {"network": network}, tensors, CPU)
        assert built.analysis(pictures(1, 16, 32)).shape == (1, 8, 1, 2) and gain.shape == (2, 8)
    with pytest.raises(ValueError, match="family other"):
        build("hific", {"network": {"family": "other"}}, tensors, CPU)


@pytest.mark.parametrize("make", [lambda: paper.Hific(SMALL), lambda: paper.Discriminator(6), lambda: NCode(TINY)])
def test_a_seed_gives_the_same_weights(make):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(make().state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
