"""Rounding by chance: near integers, fair, and with a gradient that pushes the right way."""

from __future__ import annotations

import pytest
import torch

from mcode.nets.gumbel import gumbel_rounded


@pytest.mark.parametrize("temperature", [0.05, 0.15, 0.3])
def test_values_stay_between_their_neighbours_and_repeat_with_the_generator(temperature):
    at = torch.linspace(-3, 3, 4001)
    first, again = (gumbel_rounded(at, temperature, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, gumbel_rounded(at, temperature))
    assert (first >= at.floor()).all() and (first <= at.floor() + 1).all()


def test_the_colder_the_nearer_to_integers_and_the_surer_of_the_nearest():
    torch.manual_seed(0)
    at = torch.rand(20_000) * 8 - 4
    apart, wrong = [], []
    for temperature in (0.5, 0.2, 0.05):
        found = gumbel_rounded(at, temperature)
        apart.append((found - found.round()).abs().mean().item())
        wrong.append((found.round() != at.round()).float().mean().item())
    assert apart[0] > apart[1] > apart[2] and apart[2] < 0.01
    assert wrong[0] > wrong[1] > wrong[2] and wrong[2] < 0.03


def test_halves_go_up_as_often_as_down():
    torch.manual_seed(0)
    up = gumbel_rounded(torch.full((20_000,), 2.5), 0.15).round() == 3
    assert up.float().mean() == pytest.approx(0.5, abs=0.02)


def test_the_expected_value_grows_with_the_latent_and_integers_have_a_gradient_that_is_finite():
    torch.manual_seed(0)
    at = torch.tensor([-1.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).repeat(5000, 1).requires_grad_(True)
    found = gumbel_rounded(at, 0.3)
    assert (found.mean(0).diff() > 0).all()
    found.sum().backward()
    assert torch.isfinite(at.grad).all() and (at.grad >= 0).all() and (at.grad.mean(0)[2:6] > 0).all()
