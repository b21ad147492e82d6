"""The training's stand-in for the coders' cost: a Laplace distribution's bits, and a context that the decoder has."""

from __future__ import annotations

import math

import pytest
import torch

from mcode.nets.rate import TableRate

FIRST = torch.zeros(1, dtype=torch.long)


def laplace_bits(v: float, scale: float) -> float:
    """-log2 of the probability that a symbol rounds to v."""

    def cdf(x):
        return 0.5 * math.exp(x / scale) if x < 0 else 1 - 0.5 * math.exp(-x / scale)

    return -math.log2(cdf(v + 0.5) - cdf(v - 0.5))


@pytest.mark.parametrize("v", [0.0, 0.3, 0.5, 0.7, 5.0, -0.3, -5.0])
@pytest.mark.parametrize("scale", [0.6, 2.0])
def test_bits_are_those_of_a_laplace_distribution(v, scale):
    rate = TableRate(1, (0, 1), parts=1)
    with torch.no_grad():
        rate.log_scale.fill_(math.log(scale))
    found = rate(torch.full((1, 1, 2, 3), v), torch.zeros(1, 1, 2, 3), FIRST)
    assert found.tolist() == pytest.approx([6 * laplace_bits(v, scale)], rel=1e-4)


def test_probabilities_of_all_integers_add_up_to_one():
    rate = TableRate(1, (0, 1))
    with torch.no_grad():
        rate.logits[0, :, 0] = torch.tensor([1.0, -2.0, 0.5])
    integers = torch.arange(-400.0, 401).view(-1, 1, 1, 1)
    bits = rate(integers, integers, FIRST.expand(len(integers)))
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-4)


def test_the_context_is_what_earlier_stages_hold_there_but_for_brightness():
    symbols = torch.tensor([7.0, -3, 0, 4, 9, 9]).view(1, 6, 1, 1) * torch.tensor([1.0, 0.0])
    context = TableRate(1, (0, 2, 4, 6)).context(symbols)
    assert context[..., 0].flatten().tolist() == pytest.approx([0, 0, 2, 2, 3, 3])  # log2(1 + 3), log2(1 + 3 + 4)
    assert not context[..., 1].any()


def test_weights_move_with_the_context():
    rate = TableRate(2, (0, 2, 3), parts=2)
    with torch.no_grad():
        rate.log_scale[:, :, 2] = torch.tensor([math.log(0.6), math.log(2.0)])
        rate.slope[1, :, 2] = torch.tensor([-9.0, 9.0])
    symbols = torch.tensor([0.0, 3, 5]).view(1, 3, 1, 1)

    def of_last(symbols):
        noisy, none = symbols.clone(), symbols.clone()
        noisy[:, 2], none[:, 2] = 5, 0
        quality = torch.ones(1, dtype=torch.long)
        return (rate(noisy, symbols, quality) - rate(none, symbols, quality)).item()

    wide = laplace_bits(5, 2.0) - laplace_bits(0, 2.0)
    assert of_last(symbols) == pytest.approx(wide, rel=1e-3)  # something in the stage before: the wider one alone
    assert of_last(torch.zeros(1, 3, 1, 1)) > wide + 1
