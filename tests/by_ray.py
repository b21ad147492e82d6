"""Batches by Ray. tests/test_batch.py runs this in a process of its own: Ray leaves threads in its process, beside which Qt
crashes later."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from mcode import batch
from mcode.batch import Failure, Here, Part, Segment, SegmentEncoder, encode_files
from mcode.errors import InputError

from .clips import make_clip
from .test_batch import leftovers, settings  # noqa: F401

ROOT = Path(__file__).parent.parent
# ruff: noqa: F811


def mcode_batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcode", "batch", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def by_ray(settings, tmp_path_factory):
    """A folder `lib`, encoded by three processes of a Ray that runs on: the folder with it and `out`, and the report by name.
    The processes die of an input named `always`, and of one named `once` at the first time."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")

    class Mortal(SegmentEncoder):
        def encode(self, segment: Segment) -> Part | Failure:
            mark = segment.input.with_suffix(".died")
            if segment.number == 1 and segment.input.stem in ("always", "once") and not mark.exists():
                if segment.input.stem == "once":
                    mark.touch()
                os._exit(1)
            return super().encode(segment)

    folder = tmp_path_factory.mktemp("ray")
    (folder / "lib").mkdir()
    for number, name in enumerate(("a.mp4", "b.ts", "c.mkv", "always.mp4", "once.mp4")):
        make_clip(folder / "lib" / name, frames=60 + 15 * number, options={"g": "30"}, audio="aac")
    (folder / "lib/bad.mp4").write_text("no video")
    printed = io.StringIO()
    with redirect_stdout(printed), batch.RayWorkers(settings, count=3, encoder=Mortal) as workers:
        report = encode_files([folder / "lib"], folder / "out", settings, workers, segment_s=1)
        assert printed.getvalue() == ""  # which is where Ray tells of deaths
        yield folder, {file.input.stem: file for file in report.files}


def test_three_processes_and_one_and_another_program_write_the_same_bytes(settings, by_ray, tmp_path):
    import ray

    folder, files = by_ray
    sources = [folder / "lib" / name for name in ("a.mp4", "b.ts", "c.mkv", "bad.mp4")]
    assert [files[source.stem].state for source in sources] == ["encoded"] * 3 + ["failed"]
    encode_files(sources, tmp_path / "here", settings, Here(settings), segment_s=1)
    head = ray.get_runtime_context().gcs_address
    options = ["-m", settings.manifold, "--device", "cpu", "--segment", 1, "--workers", 1, "--cluster", head]
    joined = mcode_batch(*sources, "-o", tmp_path / "one", *options)
    errors = [line for line in joined.stderr.splitlines() if not line.startswith("mcode: warning: ")]
    assert (joined.returncode, errors) == (2, [f"mcode: error: {folder}/lib/bad.mp4 is not a video or image"])
    for name in ("a.mcode", "b.mcode", "c.mcode"):
        contents = {(place / name).read_bytes() for place in (folder / "out", tmp_path / "here", tmp_path / "one")}
        assert len(contents) == 1, name


def test_more_workers_than_the_cluster_has_processors_are_as_many_as_it_has(settings, by_ray, tmp_path):
    import ray

    folder, _ = by_ray
    sources = [folder / "lib" / name for name in ("a.mp4", "b.ts", "c.mkv")]
    options = ["-m", settings.manifold, "--device", "cpu", "--segment", 1, "--workers", 8]
    done = mcode_batch(*sources, "-o", tmp_path, *options, "--cluster", ray.get_runtime_context().gcs_address)
    assert done.returncode == 0, done.stderr
    for name in ("a.mcode", "b.mcode", "c.mcode"):
        assert (tmp_path / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_a_worker_that_dies_is_replaced_and_its_segment_tried_once_more(settings, by_ray, tmp_path):
    folder, files = by_ray
    assert (files["always"].state, files["once"].state) == ("failed", "encoded")
    assert files["always"].error == f"{folder}/lib/always.mp4: its worker process died, twice; try fewer --workers"
    encode_files([folder / "lib/once.mp4"], tmp_path, settings, Here(settings), segment_s=1)
    assert (folder / "out/once.mcode").read_bytes() == (tmp_path / "once.mcode").read_bytes()
    assert leftovers(folder / "out") == ["a.mcode", "b.mcode", "c.mcode", "once.mcode"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
def test_a_name_that_is_no_text_is_encoded(settings, clip, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")
    source = shutil.copy(clip, os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    done = mcode_batch(source, "-o", tmp_path / "out", "-m", settings.manifold, "--device", "cpu", "--workers", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff.mcode"]


def test_a_cluster_that_does_not_answer_is_one_line(settings, clip, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for wrong in ("nowhere", "ray://127.0.0.1:10001", address):
        message = f"--cluster {wrong}: no Ray answers there; give HOST:PORT of the head"
        with batch.RayWorkers(settings, cluster=wrong) as workers, pytest.raises(InputError, match=message):
            encode_files([clip], tmp_path, settings, workers)
    assert leftovers(tmp_path) == []


def test_a_cluster_that_lets_nobody_in_without_a_token_is_one_line(settings, clip, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")

    def refused(self: batch.RayWorkers, **options: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {options['address']}")

    monkeypatch.setattr(batch.RayWorkers, "_init", refused)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (f"127.0.0.1:{server.getsockname()[1]}", "auto"):
            message = f"--cluster {address}: Ray does not let MCode in; .*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            with batch.RayWorkers(settings, cluster=address) as workers, pytest.raises(InputError, match=message):
                encode_files([clip], tmp_path, settings, workers)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "status", "last"), [("SIGINT", 130, "mcode: interrupted\n"), ("SIGHUP", 129, "")])
def test_a_terminals_signals_stop_the_workers_and_leave_nothing_behind(settings, tmp_path, name, status, last):
    """The source is so long that its encode is surely running when it is stopped."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")
    number = signal.Signals[name]
    source, out = tmp_path / "endless.y4m", tmp_path / "out"
    source.write_bytes(b"YUV4MPEG2 W32 H24 F25:1 C444\n" + (b"FRAME\n" + bytes(32 * 24 * 3)) * 40_000)
    options = ["-m", settings.manifold, "--device", "cpu", "--n", "1", "--segment", "2", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcode", "batch", source, "-o", out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 90
        while not (out.is_dir() and any(out.iterdir())):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does: to all that it has started, too
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, printed, said) == (status, "", last)
    assert leftovers(out) == []
