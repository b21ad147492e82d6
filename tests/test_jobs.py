"""Jobs beside the work: their order, their threads, their errors; and files coded with them and without."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mcode import manifold, transcode
from mcode.jobs import MOST_THREADS, Jobs
from mcode.training.adapt import adapt_linear
from mcode.transcode import decode_file, encode_file
from mcode.video import FrameReader


def test_results_come_in_the_order_of_the_jobs():
    def job(i: int) -> int:
        time.sleep(0.02 * (i % 3 == 1))  # some are overtaken
        return i

    for threads in (0, 1, 2, 4):
        found = []
        with Jobs[int](threads) as jobs:
            for i in range(20):
                found += jobs.run(lambda i=i: job(i))
                assert len(found) >= i + 1 - threads * (threads > 1)
            found += jobs.rest()
        assert found == list(range(20))


def test_jobs_run_at_the_same_time_but_for_the_first():
    where, meeting = [], threading.Barrier(2, timeout=30)

    def meet() -> int:
        where.append(threading.current_thread())
        return meeting.wait()

    with Jobs[int](2) as jobs:
        jobs.run(lambda: where.append(threading.current_thread()) or 0)
        assert where == [threading.main_thread()]
        due = [*jobs.run(meet), *jobs.run(meet), *jobs.rest()]
    assert sorted(due) == [0, 1] and len(set(where)) == 3


def test_threads_are_shared_among_jobs_and_given_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for threads, each in ((2, 2), (4, 1), (3, 1)):
            with Jobs[int](threads) as jobs:
                assert [*jobs.run(torch.get_num_threads)] == [4]
                assert {*jobs.run(torch.get_num_threads), *jobs.rest()} == {each}
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_other_threads_keep_theirs():
    """Those that use torch for the first time meanwhile, and those of two at once."""

    def seen() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(torch.get_num_threads).result()

    def use(_: int) -> tuple[int, int]:
        torch.get_num_threads()
        with Jobs[int](2) as jobs:
            jobs.run(lambda: 0)
            jobs.run(lambda: meeting.wait())
            jobs.run(lambda: meeting.wait())
            jobs.rest()
        return torch.get_num_threads(), seen()

    before, meeting = torch.get_num_threads(), threading.Barrier(4, timeout=30)
    try:
        torch.set_num_threads(4)
        with Jobs[int](4) as jobs, ThreadPoolExecutor(1) as late:
            found = [*jobs.run(torch.get_num_threads), *jobs.run(torch.get_num_threads), *jobs.rest()]
            assert found == [4, 1] and torch.get_num_threads() == 1
            assert late.submit(torch.get_num_threads).result() == seen() == 4
        with ThreadPoolExecutor(2) as two:
            assert list(two.map(use, range(2))) == [(4, 4)] * 2
        assert torch.get_num_threads() == seen() == 4
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_where_its_result_is_due_and_nothing_is_left_running():
    before = set(threading.enumerate())
    done = []
    with pytest.raises(ZeroDivisionError), Jobs[float](2) as jobs:
        jobs.run(lambda: 0.0)
        jobs.run(lambda: 1 / 0)
        for i in range(10):
            jobs.run(lambda i=i: done.append(i) or float(i))
    assert set(threading.enumerate()) == before
    assert len(done) < 10


def test_a_thread_that_begins_while_the_process_ends_says_nothing():
    """As where a signal comes while a pool's thread starts: nobody waits for it."""
    code = """
import threading
from concurrent.futures import thread
from mcode.jobs import Jobs
import torch
torch.set_num_threads(2)
with Jobs(2) as jobs:
    jobs.run(int)
    pool = jobs._started()
    thread._shutdown = True
    starts = threading.Thread(target=pool._initializer, args=pool._initargs)
    starts.start()
    starts.join()
    thread._shutdown = False
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_other_devices_have_no_threads_and_processors_not_more_than_torch():
    before = torch.get_num_threads()
    try:
        for threads, jobs in ((1, 1), (2, 2), (64, MOST_THREADS)):
            torch.set_num_threads(threads)
            assert Jobs.on(torch.device("cpu"))._threads == jobs
            assert Jobs.on(torch.device("cuda"))._threads == 0
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifold") / "arms.safetensors"
    adapt_linear([clip], path, m=10, size=(48, 32))
    return manifold.load(path, "cpu")


@pytest.mark.parametrize("n", [1, 4, 30])
@pytest.mark.parametrize("ahead", [1 << 30, 20_000, 0])
def test_files_are_the_same_with_jobs_and_without(clip, model, tmp_path, monkeypatch, n, ahead):
    """ahead: nothing is too large for a job, long gaps are, everything is."""
    monkeypatch.setattr(transcode, "MOST_AHEAD", ahead)
    coded, reports, shown = [], [], []
    for threads in (0, 3):
        monkeypatch.setattr(Jobs, "on", classmethod(lambda cls, device, threads=threads: cls(threads)))
        path, out = tmp_path / f"{threads}.mcode", tmp_path / f"{threads}.y4m"  # x264 is not the same twice
        report = encode_file(clip, path, manifold=model, n=n)
        assert decode_file(path, out, manifold=model).frames == report.frames == 50
        coded.append(path.read_bytes())
        reports.append((report.psnr_db, report.fit, report.keyframes))
        shown.append([(f.pts, f.rgb) for f in FrameReader(out)])
    assert coded[0] == coded[1] and reports[0] == reports[1]
    assert all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(*shown, strict=True))


def test_a_failing_network_leaves_no_file_whichever_thread_it_fails_on(clip, model, tmp_path, monkeypatch):
    path = tmp_path / "a.mcode"
    encode_file(clip, path, manifold=model, n=4)
    whole, calls = manifold.Manifold.synthesise, []

    def fail(self, latents, width, height):
        calls.append(threading.current_thread())
        if len(calls) > 4:
            raise MemoryError("no more")
        return whole(self, latents, width, height)

    monkeypatch.setattr(manifold.Manifold, "synthesise", fail)
    monkeypatch.setattr(Jobs, "on", classmethod(lambda cls, device: cls(2)))
    with pytest.raises(MemoryError):
        decode_file(path, tmp_path / "a.mp4", manifold=model)
    assert len(set(calls)) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.mcode"]
