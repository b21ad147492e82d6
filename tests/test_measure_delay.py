"""The arithmetic of scripts/measure_delay.py on pictures whose delay is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "measure_delay.py"
DAY_S = 1_763_800_000.0


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_delay", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def pictures(delay_ms, *, count=400, wrong=()):
    """A picture each 40 ms, shown delay_ms(index) later; every fourth bears a clock that can be read."""
    seen = []
    for index in range(count):
        captured_s = DAY_S + 0.04 * index
        clock = round(captured_s * 1000) % 65_536 if index % 4 == 0 else None
        clock = 777 if index in wrong else clock
        seen.append((captured_s + delay_ms(index) / 1000, 123_456 + 3600 * index, clock))
    return seen


def test_a_constant_delay_is_found_in_every_picture(script):
    read, every = script.delays(pictures(lambda index: 190.0))
    assert len(read) == 100 and len(every) == 400
    assert all(delay == pytest.approx(190, abs=1.5) for delay in read + every)


def test_late_pictures_make_the_upper_percentiles(script):
    _, every = script.delays(pictures(lambda index: 300.0 if index % 10 == 0 else 150.0))
    found = script.figures(every)
    assert found["median_ms"] == pytest.approx(150, abs=1.5) and found["p95_ms"] == pytest.approx(300, abs=1.5)


def test_clocks_read_wrongly_are_left_out(script):
    read, every = script.delays(pictures(lambda index: 200.0, wrong={1, 2, 3, 50, 51}))
    assert len(read) == 100 and max(every) == pytest.approx(200, abs=1.5)


def test_without_clocks_there_is_no_figure(script):
    with pytest.raises(SystemExit, match="clock"):
        script.delays([(DAY_S + i, 3600 * i, None) for i in range(50)])


@pytest.mark.parametrize("given", [(), ("-o", "made/delay.json")])
def test_a_result_is_printed_or_goes_into_the_file_that_was_named(script, tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["measure_delay.py", "--manifold", "any", *given])
    monkeypatch.setattr(script, "measure", lambda *_: {"median_ms": 140})
    assert script.main() == 0
    text = (tmp_path / given[1]).read_text() if given else capsys.readouterr().out
    assert json.loads(text) == {"median_ms": 140} and len(list(tmp_path.iterdir())) == len(given) // 2
