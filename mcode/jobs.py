"""Jobs beside the work that orders them, on a thread each; their results come back in the order in which they were given.

Threads that share one convolution of a small picture wait for each other at its end; pictures on a thread each do not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

MOST_THREADS = 4
"""Jobs at once: each needs the memory of a batch of pictures."""
MOST_AHEAD = 64 << 20
"""Bytes of pictures that a job may hold; what is larger should be done at once, after `rest`."""


_SETTING = threading.Lock()


def _work_with(threads: int) -> None:
    """Lets torch work with so many threads for this thread, and for no other."""
    import torch

    # A thread that uses torch for the first time takes the number that any thread set last, so another sets it back.
    with _SETTING, ThreadPoolExecutor(1) as other:
        torch.get_num_threads()
        before = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(threads)
        other.submit(torch.set_num_threads, before).result()


def _begin(threads: int) -> None:
    """In a thread of a pool, as it begins. One that begins while the process ends can start no other, and needs none."""
    with suppress(RuntimeError):
        _work_with(threads)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Jobs(Generic[T]):
    """Runs jobs with as many threads as torch has, split among them; gives their threads back on leaving the context.

    threads: jobs at once; with fewer than 2 a job runs where it is given. The first one does in any case, with all threads:
    it may be the only one. An error of a job is raised where its result is due.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pending: deque[Future[T]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._before = 0
        self._first = True

    @classmethod
    def on(cls, device: Any) -> Jobs[T]:
        """For a model on that torch.device: processors alone, since other devices work one job after the other."""
        import torch

        with _SETTING:
            return cls(min(MOST_THREADS, torch.get_num_threads()) if device.type == "cpu" else 0)

    def run(self, job: Callable[[], T]) -> list[T]:
        """Takes one more job; the results that are due, in order."""
        if self._threads < 2 or self._first:
            self._first = False
            return [*self.rest(), job()]
        if self._pool is None:
            self._pool = self._started()
        self._pending.append(self._pool.submit(job))
        due = []
        while len(self._pending) > self._threads:
            due.append(self._pending.popleft().result())
        return due

    def rest(self) -> list[T]:
        """Waits for all that is not yet done."""
        due = []
        while self._pending:
            due.append(self._pending.popleft().result())
        return due

    def _started(self) -> ThreadPoolExecutor:
        import torch

        self._before = torch.get_num_threads()
        each = max(1, self._before // self._threads)
        _work_with(each)
        return ThreadPoolExecutor(self._threads, "mcode-job", initializer=_begin, initargs=(each,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            _work_with(self._before)
            self._pool = None
            self._pending.clear()
