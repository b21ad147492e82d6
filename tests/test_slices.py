"""Slices: every position in exactly one, neighbours in different ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode.coders import slices


def owners(count, h, w):
    owner = np.full(h * w, -1)
    for s in range(count):
        owner[slices.positions(s, count, h, w)] = s
    return owner.reshape(h, w)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
@settings(deadline=None)
def test_join_is_the_inverse_of_split(count, h, w, channels):
    symbols = np.arange(channels * h * w, dtype=np.int16).reshape(channels, h, w)
    parts = slices.split(symbols, count)
    assert len(parts) == count
    assert sum(part.shape[1] for part in parts) == h * w  # each position once
    assert np.array_equal(slices.join(parts, h, w), symbols)


def test_two_slices_are_a_checkerboard():
    assert owners(2, 3, 4).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_one_slice_is_everything_in_order():
    assert slices.positions(0, 1, 2, 3).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", range(2, 33))
def test_neighbours_belong_to_different_slices(count):
    owner = owners(count, 24, 40)
    assert (owner[1:] != owner[:-1]).all() and (owner[:, 1:] != owner[:, :-1]).all()
    if count >= 4:
        assert (owner[1:, 1:] != owner[:-1, :-1]).all() and (owner[1:, :-1] != owner[:-1, 1:]).all()


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_a_lost_slice_leaves_its_positions_surrounded(count):
    lost = owners(count, 23, 40) == 1
    around = ~lost[:-2, 1:-1] & ~lost[2:, 1:-1] & ~lost[1:-1, :-2] & ~lost[1:-1, 2:]
    assert around[lost[1:-1, 1:-1]].all()


def test_positions_ascend_and_sizes_differ_little():
    sizes = []
    for s in range(5):
        found = slices.positions(s, 5, 23, 40)
        assert (np.diff(found) > 0).all()
        sizes.append(len(found))
    assert max(sizes) - min(sizes) <= 23 and sum(sizes) == 920


def test_more_slices_than_positions_leaves_some_empty():
    parts = slices.split(np.ones((3, 1, 1), np.int16), 4)
    assert [part.shape for part in parts] == [(3, 1), (3, 0), (3, 0), (3, 0)]


def test_no_such_slice():
    with pytest.raises(ValueError, match="no slice 2 of 2"):
        slices.positions(2, 2, 4, 4)
