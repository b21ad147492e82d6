"""CUDA graphs of a network's calls: at small pictures launching kernels takes longer than running them.

On an H100 `general` took, synthesis in bfloat16, 1.97 ms at 640x360 and 0.40 as a graph, 2.46 and 1.71 at 1920x1080; batches
of four such pictures gain 3 %. So calls up to LARGEST pixels are captured, when their shape comes for the third time; only
where MCODE_CUDA_GRAPHS is set, since no GPU has yet run them inside the codec.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 1920 * 1088
"""Pixels of a call, over its batch."""
_OFTEN, _KEPT, _COUNTED = 3, 4, 64


class Captured(NamedTuple):
    """given: what replay reads; result: what it writes."""

    given: Tensor
    replay: Callable[[], None]
    result: Tensor


def capture(call: Callable[[Tensor], Tensor], x: Tensor) -> Captured:
    """One graph of call(x), on the current CUDA device. Raises RuntimeError where something in it cannot be captured."""
    given = x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are chosen and workspaces made before, as torch.cuda.graph asks
        for _ in range(3):
            call(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = call(given)
    return Captured(given, graph.replay, result)


class Graphs:
    """`call`, through a graph for each of the last few shapes that come often. Threads take turns; all of them must use one
    stream, as they do unless they choose another.

    call must not keep anything that it allocates, such as autocast's cache of weights. Where a capture fails, it is plain from
    then on.
    """

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        capture: Callable[[Callable[[Tensor], Tensor], Tensor], Captured] = capture,
    ) -> None:
        self._call, self._capture = call, capture
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()
        self._seen: dict[tuple, int] = {}
        self._lock = threading.Lock()
        self.failed: str | None = None

    def __call__(self, x: Tensor) -> Tensor:
        key = tuple(x.shape), x.stride(), x.dtype, x.device
        with self._lock:
            found = self._find(key, x)
            if found is not None:
                found.given.copy_(x)
                found.replay()
                return found.result.clone()
        return self._call(x)

    def _find(self, key: tuple, x: Tensor) -> Captured | None:
        found = self._captured.get(key)
        if found is not None:
            self._captured.move_to_end(key)
            return found
        if len(self._seen) >= _COUNTED:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        if self.failed is not None or self._seen[key] < _OFTEN:
            return None
        try:
            found = self._capture(self._call, x)
        except RuntimeError as error:
            self.failed = str(error)
            return None
        self._captured[key] = found
        if len(self._captured) > _KEPT:
            self._captured.popitem(last=False)
        return found
