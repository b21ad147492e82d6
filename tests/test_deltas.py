"""What tables and hyperpriors are fitted to is what an encoder sends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from mcode import codec
from mcode.codec import Encoder
from mcode.frame import Frame
from mcode.training.deltas import LAGS, RUN, chained, chains, draw_pairs, first_clips, keyframe_deltas

from .block_means import TICKS, BlockMeans

MODEL = BlockMeans()
GAIN = MODEL.gain(1)


@pytest.fixture
def sent(monkeypatch):
    """[(whole, delta or None)] of every keyframe that an encoder codes."""
    found = []
    coded = codec.huffman.encode

    def note(whole, delta, tables):
        found.append((whole.copy(), None if delta is None else delta.copy()))
        return coded(whole, delta, tables)

    monkeypatch.setattr(codec.huffman, "encode", note)
    return found


def drifting(count, seed=0):
    """Frames whose brightness wanders by fractions of a quantiser step, and sometimes jumps."""
    rng = np.random.default_rng(seed)
    level = 100 + np.cumsum(rng.normal(0, 0.4, (count, 2, 4, 3)) + 6 * (rng.random((count, 2, 4, 3)) < 0.05), axis=0)
    noise = rng.random((count, 8, 16, 3)) - 0.5
    pixels = np.clip(level.repeat(4, 1).repeat(4, 2) + noise, 0, 255).round().astype(np.uint8)
    return [Frame(p, i * TICKS) for i, p in enumerate(pixels)]


def test_chains_are_evenly_spaced_keyframes_from_the_first_frame():
    found = chains()
    assert [[RUN[i] for i in places] for places in found] == [
        [0, 1, 2],
        [0, 2, 4],
        [0, 4, 8, 12, 16],
        [0, 8, 16, 24, 32],
        [0, 16, 32],
    ]
    assert len(found) == len(LAGS)
    assert chains((0, 1)) == [[0, 1]], "an interval of which only one keyframe is there gives none"
    assert chains(lags=(3,)) == []


@pytest.mark.parametrize("lag", [1, 4])
def test_a_chain_is_what_the_encoder_sends(sent, lag):
    frames = drifting(33)
    encoder = Encoder(MODEL, 16, 8, n=lag, cuts=False)
    for frame in frames:
        encoder.push(frame)
    run = torch.cat([MODEL.analyse(frames[i].rgb[None]) for i in RUN])
    places = next(p for p in chains() if RUN[p[1]] == lag)
    expected = [symbols.numpy().astype(np.int16) for symbols in chained(run, places, GAIN, None)]
    for (whole, delta), symbols, before in zip(sent, expected, [None, *expected], strict=False):
        assert np.array_equal(whole.reshape(symbols.shape), symbols)
        assert delta is None if before is None else np.array_equal(delta.reshape(symbols.shape), symbols - before)
    plain = [(y * GAIN.view(-1, 1, 1)).round().numpy() for y in run[places]]
    assert any((a != b).any() for a, b in zip(plain, expected, strict=True)), "the dead zone held something"


def test_coordinates_are_held_as_the_encoder_holds_them(sent):
    frames = drifting(9, seed=2)
    encoder = Encoder(MODEL, 16, 8, n=2, cuts=False)
    for frame in frames:
        encoder.push(frame)
    scaled = np.stack([(MODEL.analyse(f.rgb[None])[0] * GAIN.view(-1, 1, 1)).numpy().reshape(-1) for f in frames])
    found = keyframe_deltas(scaled, [9])[LAGS.index(2)][:, :4, 0]
    assert np.array_equal(found.T, np.stack([delta.reshape(-1) for _, delta in sent[1:]]))


def test_pairs_follow_each_other_in_chains():
    runs = torch.cumsum(torch.rand(3, len(RUN), 2, 2, 2) + 0.5, 1) * 40  # rises by far more than the dead zone
    gain = torch.tensor([[1.0, 0.5]]).repeat(60, 1)
    before, after = draw_pairs(runs, gain, torch.zeros(60, 2), np.random.default_rng(0))
    assert before.shape == after.shape == (60, 2, 2, 2)
    for b, a in zip(before, after, strict=True):
        at = [
            (n, i, j)
            for n, run in enumerate(runs)
            for places in chains()
            for i, j in pairwise(places)
            if torch.equal((run[i] * gain[0].view(-1, 1, 1)).round(), b)
            and torch.equal((run[j] * gain[0].view(-1, 1, 1)).round(), a)
        ]
        assert at
    assert len({b.sum().item() for b in before}) > 5, "not always the first of a run"


@pytest.mark.parametrize(
    ("clips", "found"), [((3, 4), [3, 4]), ((6000, 4000, 1), [6000, 4000]), ((6000, 5000, 1), [6000]), ((20_000, 1), [20_000])]
)
def test_tables_are_fitted_to_the_first_clips_and_to_one_at_least(clips, found):
    assert first_clips(clips) == found
