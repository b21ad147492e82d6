"""CUDA graphs: which calls are captured, that replayed results are new ones each, and that a failed capture costs nothing."""

from __future__ import annotations

import threading

import pytest
import torch

from mcode import manifold
from mcode.manifold import GRAPHS_VARIABLE
from mcode.nets.graphs import LARGEST, Captured, Graphs, capture

from .small_hific import small_manifolds


class Recorder:
    """A capture by hand: replaying computes what the call would, into the tensor that was its result."""

    def __init__(self) -> None:
        self.captured, self.replayed = [], 0

    def __call__(self, call, x):
        given = x.clone()
        result = call(given)
        self.captured.append(tuple(x.shape))

        def replay():
            self.replayed += 1
            result.copy_(call(given))

        return Captured(given, replay, result)


def test_a_shape_is_captured_when_it_comes_for_the_third_time_and_results_stay():
    calls, recorder = [], Recorder()
    graphs = Graphs(lambda x: (calls.append(1), 2 * x)[1], recorder)
    results = [graphs(torch.full((2, 3), float(i))) for i in range(5)]
    assert recorder.captured == [(2, 3)] and recorder.replayed == 3
    for i, result in enumerate(results):
        assert torch.equal(result, torch.full((2, 3), 2.0 * i))  # not overwritten by the next replay


def test_other_shapes_and_layouts_are_other_graphs_and_only_the_last_few_are_kept():
    recorder = Recorder()
    graphs = Graphs(lambda x: x + 1, recorder)
    for size in range(1, 7):
        for _ in range(3):
            graphs(torch.zeros(size))
    assert recorder.captured == [(size,) for size in range(1, 7)]
    assert len(graphs._captured) == 4
    graphs(torch.zeros(6))
    assert len(recorder.captured) == 6  # kept
    square = torch.zeros(1, 4, 4, 4)
    for x in (square, square.contiguous(memory_format=torch.channels_last)):
        for _ in range(3):
            assert torch.equal(graphs(x), x + 1)
    assert len(recorder.captured) == 8


def test_where_a_capture_fails_calls_are_plain_from_then_on():
    tried = []

    def broken(call, x):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(lambda x: x + 1, broken)
    for i in range(6):
        assert graphs(torch.tensor([float(i)])).item() == i + 1
    assert len(tried) == 1 and graphs.failed is not None and "not permitted" in graphs.failed


def test_threads_take_turns():
    graphs, wrong = Graphs(lambda x: 3 * x, Recorder()), []

    def work(base):
        for i in range(50):
            if graphs(torch.full((64,), float(base + i)))[0].item() != 3 * (base + i):
                wrong.append(base + i)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return manifold.load(small_manifolds(tmp_path_factory.mktemp("m"))[0], "cpu", precision="bfloat16")


def test_the_manifold_runs_small_calls_as_graphs_on_cuda_and_nothing_else(model, monkeypatch):
    """With a device that only says that it is CUDA: which calls would go through graphs, and that they are the same."""
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode(), model._autocast():
        plain = model.net.analysis(x)
        recorder = Recorder()
        monkeypatch.setattr(
            model, "_graphed", {half: Graphs(model._uncached(half), recorder) for half in ("analysis", "synthesis")}
        )
        assert torch.equal(model._half("analysis", x, 64 * 64), plain) and not recorder.captured
        monkeypatch.setattr(model, "_on_cuda", True)
        monkeypatch.delenv(GRAPHS_VARIABLE, raising=False)
        for _ in range(4):
            assert torch.equal(model._half("analysis", x, 64 * 64), plain)
        assert not recorder.captured, "graphs are only taken where they are asked for"
        monkeypatch.setenv(GRAPHS_VARIABLE, "1")
        for _ in range(4):
            assert torch.equal(model._half("analysis", x, 64 * 64), plain)
        assert recorder.captured == [(1, 3, 64, 64)]
        for _ in range(4):
            assert torch.equal(model._half("analysis", x, LARGEST + 1), plain)
        assert len(recorder.captured) == 1 and recorder.replayed == 2


def test_a_captured_call_leaves_nothing_in_autocasts_cache(model):
    """Graphs would read weights from memory that the cache has given back."""
    convolution = next(m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d))
    call, x = model._uncached("analysis"), torch.rand(1, 3, 32, 32)
    before = convolution.weight.detach().clone()
    with torch.inference_mode(), model._autocast():
        first = call(x)
        convolution.weight.data.mul_(2)
        second = call(x)
        convolution.weight.data.copy_(before)
    assert not torch.equal(first, second)  # a cache would have kept the first weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_on_cuda_gives_what_the_call_gives():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3)).cuda()
    with torch.inference_mode():
        captured = capture(net, torch.zeros(1, 3, 16, 16, device="cuda"))
        for _ in range(3):
            x = torch.rand(1, 3, 16, 16, device="cuda")
            captured.given.copy_(x)
            captured.replay()
            torch.testing.assert_close(captured.result, net(x))
