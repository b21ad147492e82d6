"""mcode bench: every row is there, and the numbers agree with their samples. Never how fast."""

from __future__ import annotations

import json
import math
import re
import statistics

import numpy as np
import pytest

from mcode import cli
from mcode.errors import InputError
from mcode.evaluation import bench as benching
from mcode.evaluation.bench import Job, bench, make_clip, rows_of, take_turns
from tests.block_means import BlockMeans
from tests.test_manifold import TABLES
from tests.test_manifold import save as save_linear
from tests.test_range import WithHyper

SIZE = (64, 48)
STEPS = ["analysis", "synthesis", "fixed encode", "fixed decode", "huffman encode", "huffman decode", "encode", "decode"]
RANGE = ["range encode", "range decode"]
WHOLE_RANGE = ["encode with range", "decode with range"]


class Means(BlockMeans):
    name, frame_size = "means", None


class Dense(WithHyper):
    name, frame_size = "dense", None


@pytest.fixture(scope="module", autouse=True)
def short_samples():
    """The clock's grain matters to figures; here it only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benching, "_SAMPLE_S", 0.001)
        yield


@pytest.fixture(scope="module")
def report():
    ticks = []
    options = {"seconds": 0.01, "frames": 6, "memory": False, "progress": lambda done, _: ticks.append(done)}
    found = bench([Means(), Dense()], sizes=[SIZE], **options)
    assert ticks == list(range(1, len(ticks) + 1))
    return found


def test_every_step_of_every_codec_has_a_row(report):
    rows = [(row.codec, row.step) for row in report.rows]
    others = [(codec, step) for codec in ("x264 medium", "SVT-AV1 6") for step in ("encode", "decode")]
    dense = STEPS[:6] + RANGE + STEPS[6:] + WHOLE_RANGE
    assert rows == [("means", step) for step in STEPS] + [("dense", step) for step in dense] + others
    assert all((row.width, row.height) == SIZE for row in report.rows)


def test_rates_and_times_are_those_of_the_samples(report):
    for row in report.rows:
        assert len(row.samples_s) >= 3 and min(row.samples_s) > 0
        median = statistics.median(row.samples_s)
        assert row.fps == pytest.approx(row.frames / median)
        assert 0 < row.fps_low <= row.fps <= row.fps_high
        assert row.ms == pytest.approx(1000 * median / row.frames)
        assert row.ms_per_megapixel == pytest.approx(row.ms * 1e6 / math.prod(SIZE))


def test_all_rows_of_a_size_have_as_many_samples(report):
    assert len({len(row.samples_s) for row in report.rows}) == 1


def test_encode_and_decode_are_compared_with_the_same_rounds_of_the_others(report):
    rows = {(row.codec, row.step): row for row in report.rows}
    for step in ("encode", "decode"):
        mine, x264 = rows["means", step], rows["x264 medium", step]
        rounds = [b / a for a, b in zip(mine.samples_s, x264.samples_s, strict=True)]
        assert mine.faster.keys() == {"h264", "av1"} and x264.faster.keys() == {"av1"}
        assert mine.faster["h264"] == pytest.approx(statistics.median(rounds))
    assert rows["means", "analysis"].faster == rows["dense", "range encode"].faster == {}


def test_whole_encoding_with_range_is_compared_with_the_same_step_of_the_others(report):
    rows = {(row.codec, row.step): row for row in report.rows}
    for step in ("encode", "decode"):
        mine, av1 = rows["dense", f"{step} with range"], rows["SVT-AV1 6", step]
        rounds = [b / a for a, b in zip(mine.samples_s, av1.samples_s, strict=True)]
        assert mine.faster.keys() == {"h264", "av1"} and mine.faster["av1"] == pytest.approx(statistics.median(rounds))
        assert mine.frames == 6
    whole, huffman = rows["dense", "encode with range"].rate_kbps, rows["dense", "encode"].rate_kbps
    assert 0 < whole != huffman and rows["dense", "decode with range"].rate_kbps is None


def test_a_coders_share_is_that_of_a_keyframe_analysed_and_then_coded(report):
    rows = {(row.codec, row.step): row for row in report.rows}
    coder, analysis = rows["dense", "range encode"], rows["dense", "analysis"]
    assert (coder.frames, analysis.frames) == (3, 1)
    rounds = [a / 3 / (a / 3 + b) for a, b in zip(coder.samples_s, analysis.samples_s, strict=True)]
    assert coder.share == pytest.approx(statistics.median(rounds)) and 0 < coder.share < 1
    with_share = {row.step for row in report.rows if row.share is not None}
    assert with_share == {"fixed encode", "huffman encode", "range encode"}


def test_encode_rows_tell_the_rate_and_keyframes_are_the_coders_frames(report):
    rows = {(row.codec, row.step): row for row in report.rows}
    assert all(rows[codec, "encode"].rate_kbps > 0 for codec in ("means", "x264 medium", "SVT-AV1 6"))
    assert rows["means", "encode"].frames == 6
    assert rows["means", "huffman encode"].frames == rows["means", "fixed decode"].frames == 3  # 0, 4 and the last
    assert rows["means", "synthesis"].frames == 4


def test_scaling_is_a_factor_for_each_doubling_of_the_pixels(report):
    assert [row.step for row in report.scaling] == ["encode image", "decode image"] * 2
    for row in report.scaling:
        assert row.sizes == (SIZE, (128, 128))
        ratios = [b / a for a, b in zip(*row.samples_s, strict=True)]
        doublings = math.log2(128 * 128 / math.prod(SIZE))
        assert row.factor == pytest.approx(statistics.median(ratios) ** (1 / doublings)) == row.factors[0]
        assert row.ms == pytest.approx([1000 * statistics.median(samples) for samples in row.samples_s])


def test_the_machine_is_described(report):
    machine = report.machine
    assert machine.processor and machine.torch and machine.device in ("cpu", "cuda", "mps")
    assert machine.cores >= 1 and machine.threads >= 1 and machine.memory_gb > 0


def test_the_precision_of_every_manifold_is_told(monkeypatch, capsys):
    class Halved(Means):
        name, precision = "halved", "bfloat16"

    options = {"sizes": [SIZE], "seconds": 0.01, "frames": 2, "memory": False}
    found = bench([Means(), Halved()], **options)
    assert found.precisions == {"means": "float32", "halved": "bfloat16"} and found.machine.precision == "float32"
    alike = bench([Halved()], **options)
    for report, there, absent in (
        (found, "\nmeans float32, halved bfloat16\n", f"{found.machine.device} float32"),
        (alike, f"\n{alike.machine.device} bfloat16, ", "halved bfloat16"),
    ):
        monkeypatch.setattr(benching, "bench", lambda *_, report=report, **__: report)
        assert cli.main(["bench"]) == 0
        out = capsys.readouterr().out
        assert there in out and absent not in out


def test_a_manifold_of_pictures_too_small_to_measure_is_named():
    class Thumbs(BlockMeans):
        name, frame_size = "thumbs", (40, 8)

    with pytest.raises(InputError, match="^--manifold thumbs: its pictures are 40x8, and 16x16 is the least"):
        bench([Means(), Thumbs()])


def test_jobs_take_turns_after_a_warm_up():
    calls = []
    jobs = [Job("codec", name, SIZE, 1, lambda name=name: calls.append(name) or 1.0) for name in "ab"]
    samples = take_turns(jobs, 0)
    assert samples == [[1.0] * 3] * 2
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert turns == list("ab") * 4


def test_a_job_that_times_itself_is_believed():
    jobs = [Job("codec", "network", SIZE, 2, lambda: 0.5)]
    row = rows_of(jobs, take_turns(jobs, 0))[0]
    assert row.samples_s == (0.5, 0.5, 0.5) and row.fps == 4


def test_the_median_ratio_is_of_rounds_not_of_medians():
    jobs = [Job("mine", "encode", SIZE, 1, lambda: None), Job("x264 medium", "encode", SIZE, 1, lambda: None)]
    mine, _ = rows_of(jobs, [[1.0, 2.0, 10.0], [3.0, 2.0, 40.0]])
    assert mine.faster == {"h264": 3.0}


@pytest.mark.parametrize("moving", [True, False])
def test_the_clip_moves_and_is_the_same_every_time(moving):
    a, b = (make_clip(SIZE, 3, moving_camera=moving) for _ in range(2))
    assert [(frame.width, frame.height) for frame in a] == [SIZE] * 3
    assert [frame.pts for frame in a] == [0, 3600, 7200]
    assert all(np.array_equal(x.rgb, y.rgb) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0].rgb, a[2].rgb)


def test_nothing_to_measure_is_said():
    with pytest.raises(InputError, match="at least one manifold"):
        bench([])


# The command


def test_two_manifolds_of_one_name_are_refused(linear, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    other.write_bytes(linear.read_bytes())
    status, out, err = run(capsys, "-m", linear, "-m", other, "--device", "cpu")
    assert (status, out) == (2, "") and "--manifold: two manifolds are named tiny; give each once" in err


@pytest.fixture
def linear(tmp_path):
    rng = np.random.default_rng(5)
    tensors = {
        "basis": rng.integers(-127, 128, (3, 3 * 40 * 32)).astype(np.int8),
        "basis_scale": np.full(3, 0.001, np.float32),
        "mean": np.full(3 * 40 * 32, 100, np.float16),
        "step": np.array([4, 2], np.float32),
    }
    config = {"m": 3, "frame_size": [40, 32], "stride": None, "qualities": 2, "default_quality": 1}
    save_linear(tmp_path / "tiny.safetensors", config=config, tensors=tensors, tables=TABLES)
    return tmp_path / "tiny.safetensors"


def run(capsys, *arguments):
    status = cli.main(["bench", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_json_has_rows_samples_memory_and_machine_of_a_fixed_size_manifold(linear, capsys):
    status, out, _ = run(capsys, "-m", linear, "--device", "cpu", "--seconds", "0.01", "--frames", "3", "--json")
    report = json.loads(out)
    assert status == 0 and report["machine"]["device"] == "cpu" and report["scaling"] == []
    assert {(row["width"], row["height"]) for row in report["rows"]} == {(40, 32)}
    assert all(len(row["samples_s"]) >= 3 for row in report["rows"])
    assert [row["codec"] for row in report["memory"]] == ["tiny", "x264 medium", "SVT-AV1 6"]
    assert all(row["peak_mb"] >= row["base_mb"] > 1 for row in report["memory"])


def test_the_table_fits_a_hundred_columns(linear, capsys):
    status, out, _ = run(capsys, "-m", linear, "--seconds", "0.01", "--frames", "3", "--no-memory", "--device", "cpu")
    assert status == 0 and "40x32" in out and "threads" in out
    assert max(map(len, out.splitlines())) <= 120
    table = [line for line in out.splitlines() if line.startswith(("tiny ", "codec"))]
    assert len(table) == 9 and max(map(len, table)) <= 100
    assert re.search(r"\ntiny, of a keyframe's analysis and coding: fixed encode \d+%, huffman encode \d+%\n", out)


def test_a_network_that_cannot_be_compiled_is_left_out_with_a_note(linear, monkeypatch, capsys):
    import torch

    def refuse(*args, **options):
        def call(x):
            raise RuntimeError("no compiler on this machine")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    options = ("-m", linear, "--seconds", "0.01", "--frames", "2", "--no-memory", "--device", "cpu", "--json")
    status, out, err = run(capsys, *options, "--compile")
    steps = {row["step"] for row in json.loads(out)["rows"]}
    assert status == 0 and {"analysis network", "synthesis network"} <= steps and "analysis compiled" not in steps
    assert "tiny, analysis compiled: left out, RuntimeError: no compiler on this machine" in err


def test_codecs_that_refuse_small_pictures_are_left_out():
    assert benching._fits("h264", (16, 16)) and not benching._fits("av1", (16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sizes 4k", "--sizes 4k"),
        ("--sizes 20x20", "--sizes 20x20: 20x20 is too small; 32 pixels a side at least"),
        ("--sizes 360p,65535x65535", "65535x65535 is too large; 8192 pixels a side and 33 million in all at most"),
        ("--sizes 32x8193", "32x8193 is too large"),
        ("--sizes 8192x4097", "8192x4097 is too large"),
        ("--seconds 0", "--seconds 0: the time for each size is more than 0 seconds"),
        ("--frames 1", "--frames 1: the clip's length in frames is a whole number from 2 to 1000"),
        ("--manifold nowhere", "no manifold named 'nowhere' is installed"),
        ("--device tpu", "--device tpu"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    status, out, err = run(capsys, *arguments.split())
    assert status == 2 and out == "" and message in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_graph_is_captured_once_and_replayed(monkeypatch):
    from mcode.nets import graphs

    told: list[str] = []

    def capture(call, x):
        call(x)
        told.append("captured")
        return graphs.Captured(x, lambda: told.append("replayed"), x)

    monkeypatch.setattr(graphs, "capture", capture)
    run = benching._graphed(lambda: told.append("called"), None)
    for _ in range(3):
        run()
    assert told == ["called", "captured", "replayed", "replayed", "replayed"]
