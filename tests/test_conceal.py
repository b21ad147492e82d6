"""Damaged coordinates, put right by what stood there before (mcode.conceal)."""

from __future__ import annotations

import numpy as np

from mcode.coders import CodeTables, fixed
from mcode.conceal import Repair

from .loopback import MODEL


def test_repair_undoes_the_flip_of_a_high_bit_and_leaves_what_came_whole():
    rng = np.random.default_rng(1)
    tables = MODEL.tables(1)
    repair = Repair(tables, 8)
    symbols = rng.integers(-40, 40, (3, 8)).astype(np.int16)
    wrong_before = wrong_after = 0
    for _ in range(60):
        symbols = (symbols + rng.integers(-1, 2, symbols.shape)).clip(-50, 50).astype(np.int16)
        data = fixed.encode(symbols, tables)
        damaged = bytearray(data)
        for bit in np.flatnonzero(rng.random(8 * len(data)) < 0.01):
            damaged[bit // 8] ^= 0x80 >> bit % 8
        got = repair.slice(bytes(damaged), bytes(damaged) != data)
        if bytes(damaged) == data:
            assert got == data
        wrong_before += int(np.abs(fixed.decode(bytes(damaged), 8, tables) - symbols).sum())
        wrong_after += int(np.abs(fixed.decode(got, 8, tables) - symbols).sum())
    assert repair.repaired > 5 and wrong_after < 0.4 * wrong_before


def test_repair_believes_a_real_jump():
    tables = MODEL.tables(1)
    repair = Repair(tables, 1)
    for _ in range(20):
        repair.slice(fixed.encode(np.full((3, 1), 2, np.int16), tables), False)
    jump = fixed.encode(np.full((3, 1), 50, np.int16), tables)
    shown = [int(fixed.decode(repair.slice(jump, True), 1, tables)[0, 0]) for _ in range(12)]
    assert shown[0] != 50 and shown[-1] == 50


def test_repair_believes_a_jump_at_once_after_slices_that_did_not_come():
    tables = MODEL.tables(1)
    jump = fixed.encode(np.full((3, 1), 50, np.int16), tables)
    for lost in (0, 40):
        repair = Repair(tables, 1)
        for _ in range(20):
            repair.slice(fixed.encode(np.full((3, 1), 2, np.int16), tables), False)
        for _ in range(lost):
            repair.lost()
        assert (repair.slice(jump, True) == jump) == (lost > 0)


def test_the_bit_error_rate_is_told_by_the_share_of_damaged_slices():
    rng, tables = np.random.default_rng(2), MODEL.tables(1)
    repair = Repair(tables, 8)
    data = fixed.encode(np.zeros((3, 8), np.int16), tables)
    for _ in range(400):
        repair.slice(data, bool((rng.random(8 * len(data)) < 1e-3).any()))
    assert 0.5e-3 < repair.bit_error_rate < 2e-3


def test_repair_knows_each_channels_width():
    fitted = MODEL.tables(1)
    tables = CodeTables(np.array([0, 5, 9], np.int16), np.array([8, 3, 0], np.uint8), fitted.whole, fitted.delta)
    repair = Repair(tables, 2)
    symbols = np.array([[20, -20], [6, 3], [9, 9]], np.int16)
    whole = fixed.encode(symbols, tables)
    for _ in range(20):
        assert repair.slice(whole, False) == whole
    for bit in (0, 8, 16, 19):  # the highest of each symbol of 8 and of 3 bits
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        assert np.array_equal(fixed.decode(repair.slice(bytes(damaged), True), 2, tables), symbols), bit
