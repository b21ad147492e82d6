"""The loss of the full-size hific networks, term by term, against formulas written out here; and which way D and G learn."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from mcode.nets.paper import PaperConfig
from mcode.training import hific, loop
from mcode.training.hific import HificData, HificLoss, HificOptimiser, HificTraining, coder_loss, discriminator_loss

LOSS = HificLoss(
    rate_target=1.0, lambda_a=30.0, lambda_b=10.0, k_mse=2e-4, k_perceptual=2.0, perceptual="none", beta=0.7, easy_steps=0
)
CONFIG = HificTraining(
    kind="hific",
    name="tiny",
    network=PaperConfig(channels=6, width=2, blocks=1, hyper=4),
    data=HificData(("pictures",), crop=64, batch=2),
    optimiser=HificOptimiser(steps=5, adversarial_steps=5),
    loss=LOSS,
    bfloat16=False,
)
GAN = 5  # the first step with D


@pytest.fixture
def model() -> hific.Networks:
    """In eval mode, in which spectral norm does not move from one look to the next."""
    torch.manual_seed(1)
    return hific.Networks(CONFIG).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def contrast(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A d_P for tests: of pictures in [0, 1], to (B,)."""
    return (a - b).abs().mean((1, 2, 3))


def with_loss(**changes) -> HificTraining:
    return replace(CONFIG, loss=replace(LOSS, **changes))


def probability(model: hific.Networks, x: torch.Tensor, y_hat: torch.Tensor) -> torch.Tensor:
    """D's mean probability that x is real."""
    with torch.no_grad():
        return model.d(x, y_hat).sigmoid().mean()


# The rate's weight


def test_the_rate_weighs_lambda_a_above_the_target_and_lambda_b_up_to_it():
    loss = HificLoss(rate_target=0.14, lambda_a=2.0, lambda_b=0.0625, easy_steps=0)
    assert [loss.rate_weight(bpp, 0) for bpp in (0.0, 0.139, 0.14, 0.141, 9.0)] == [0.0625, 0.0625, 0.0625, 2.0, 2.0]


def test_in_easy_steps_the_weight_is_halved_and_the_target_raised():
    loss = HificLoss(rate_target=0.14, lambda_a=2.0, lambda_b=0.0625, easy_steps=100)
    assert [loss.rate_weight(bpp, 99) for bpp in (0.13, 0.19, 0.21)] == [0.03125, 0.03125, 1.0]
    assert [loss.rate_weight(bpp, 100) for bpp in (0.13, 0.19, 0.21)] == [0.0625, 2.0, 2.0]
    medium = replace(loss, rate_target=0.3)
    assert [medium.rate_weight(bpp, 0) for bpp in (0.428, 0.429)] == [0.03125, 1.0]


# Equation 3


@pytest.mark.parametrize("step", [0, GAN])
@pytest.mark.parametrize("above", [True, False])
def test_the_coders_loss_is_equation_3_written_out(model, x, step, above):
    torch.manual_seed(3)
    with torch.no_grad():
        x_hat, y_hat, bits = model.hific(x)
    rounded = bits.rounded.mean().item() / 64**2
    config = with_loss(rate_target=rounded * (0.9 if above else 1.1))
    torch.manual_seed(3)
    made = coder_loss(model, x, config, contrast, step)

    a, b = (((each.double() + 1) * 127.5) for each in (x, x_hat))
    mse = ((a - b) ** 2).sum() / (2 * 3 * 64 * 64)
    d_p = (a - b).abs().sum() / 255 / (2 * 3 * 64 * 64)
    bpp = bits.noisy.double().sum() / (2 * 64 * 64)
    d = torch.sigmoid(model.d(x_hat, y_hat).double()) if step == GAN else torch.ones(1)
    expected = (30.0 if above else 10.0) * bpp + 2e-4 * mse + 2.0 * d_p - 0.7 * torch.log(d).mean()
    assert made.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert made.error.item() == pytest.approx(mse.item(), rel=1e-4) and mse > 1000
    terms = [term.item() for term in ((30.0 if above else 10.0) * bpp, 2e-4 * mse, 2.0 * d_p, 0.7 * made.disagreement)]
    assert min(terms[: 3 + (step == GAN)]) > 0.05 * expected.item()  # none so small that its absence would not show


def test_rounded_latents_choose_the_weight_and_noise_is_what_it_weighs(model, x):
    """Where noise costs more than the target and what is sent does not, as at the end of a training: lambda_b."""
    for parameter in (*model.hific.encoder[-1].parameters(), *model.hific.hyperprior.synthesis_scale.parameters()):
        torch.nn.init.zeros_(parameter)  # nothing to send, at the smallest scale
    torch.manual_seed(3)
    bits = model.hific(x)[2]
    noisy, rounded = (each.mean().item() / 64**2 for each in bits)
    assert noisy > rounded * 1.02
    weights = []
    for target in (rounded * 0.99, rounded * 1.005, noisy * 1.01):
        torch.manual_seed(3)
        made = coder_loss(model, x, with_loss(rate_target=target, k_mse=0.0, beta=0.0), None, 0)
        weights.append(made.loss.item() / made.bpp.item())
        assert (made.bpp.item(), made.bpp_rounded.item()) == pytest.approx((noisy, rounded))
    assert weights == pytest.approx([30.0, 10.0, 10.0])


def test_the_logged_loss_is_the_sum_of_the_logged_terms(tmp_path):
    (tmp_path / "pictures").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), picture)
    config = replace(CONFIG, optimiser=HificOptimiser(0, 1, checkpoint_every=1))
    for easy_steps, weight in ((0, 30.0), (1, 15.0)):
        rows: list[dict[str, float]] = []
        told = replace(config, loss=replace(LOSS, rate_target=0.001, easy_steps=easy_steps))
        hific.train(told, tmp_path, tmp_path / f"out{easy_steps}", report=rows.append)
        (row,) = rows
        expected = weight * row["bpp"] + 2e-4 * row["mse"] + 0.7 * row["loss_g"]
        assert row["loss"] == pytest.approx(expected, rel=1e-4)
        assert row["bpp_rounded"] > 0 and row["bpp_rounded"] != row["bpp"] and row["loss_d"] > 0


# Which way they learn


def test_a_step_of_d_raises_what_it_gives_pictures_and_lowers_what_it_gives_reconstructions(model, x):
    with torch.no_grad():
        x_hat, y_hat, _ = model.hific(x)
    before = [model.d(each, y_hat).detach().sigmoid() for each in (x, x_hat)]
    loss = discriminator_loss(model.d, x, x_hat, y_hat)
    assert loss.item() == pytest.approx(-(before[0].log().mean() + (1 - before[1]).log().mean()).item(), rel=1e-4)  # equation 4
    optimiser = torch.optim.SGD(model.d.parameters(), 1e-2)
    for step in range(10):
        loop.update(optimiser, discriminator_loss(model.d, x, x_hat, y_hat), step=step, workers=1)
    assert probability(model, x, y_hat) > before[0].mean() and probability(model, x_hat, y_hat) < before[1].mean()
    assert not any(p.grad is not None for p in model.hific.parameters())


def test_the_generators_step_raises_what_d_gives_its_reconstructions(model, x):
    config = with_loss(lambda_a=0.0, lambda_b=0.0, k_mse=0.0)
    judged = []
    optimiser = torch.optim.SGD(model.hific.generator.parameters(), 1.0)  # E's part is rounded: not every step rises
    of_d = [p.detach().clone() for p in model.d.parameters()]
    for step in range(5):
        torch.manual_seed(3)
        made = coder_loss(model, x, config, None, GAN)
        judged.append(probability(model, made.x_hat.detach(), made.y_hat))
        loop.update(optimiser, made.loss, step=step, workers=1)
    assert judged == sorted(judged) and judged[-1] > judged[0]
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.d.parameters(), of_d, strict=True))


def test_d_has_no_say_before_the_gan(model, x):
    made = coder_loss(model, x, CONFIG, None, GAN - 1)
    assert made.disagreement == 0 and coder_loss(model, x, CONFIG, None, GAN).disagreement > 0
