"""The networks of a manifold in a process of their own, so that they and the window never wait for each other. No Qt.

    codec -> Remote.analyse, .synthesise -> slot (shared memory) + one line -> network_worker.py -> line -> codec

The coder's state stays in this process: a job is a function of its arguments, so one that dies with the worker is given to
the next. Each job runs in one thread, and as many at once as there are cores: two threads that share one convolution wait
for each other at every layer, and on busy cores most of their time is that waiting (docs/results.md).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mcode.codec import Model
from mcode.errors import McodeError
from mcode.jobs import cores
from mcode.manifold import Manifold

from .network_worker import MOST_MANIFOLDS

if TYPE_CHECKING:
    from torch import Tensor

MOST_JOBS = 4
JOB_PIXELS = 160_000
"""Pictures smaller than this share a job: what a job costs beside its work is some 0.3 ms."""
STALLED_S = 60.0
"""A job without an answer for so long is given up, and its worker with it."""
MOST_DEATHS, DEATHS_S = 4, 60.0
_PROGRAM = "import sys; sys.path[:] = {path!r}; from player.network_worker import serve; serve({jobs})"


class NetworksError(McodeError):
    """The networks' process cannot be started or kept running, or a network refused its input."""


class _Died(Exception):
    """The worker ended while it had work."""


class Networks:
    """One worker, started when first needed. tell: takes news for the user, one line each. jobs: pictures synthesised at
    once. `wrap` and the models that it gives may be used by several threads; close() ends whatever they wait for."""

    def __init__(self, tell: Callable[[str], None] = lambda line: None, jobs: int | None = None) -> None:
        self.jobs = jobs or min(MOST_JOBS, cores())
        self._tell = tell
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's process, None while there is none."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.ended is None else None

    def wrap(self, model: Model) -> Model:
        """The same manifold, its networks in the worker. As it is where it does not come from a file or is not on the
        processor: another device does not take the window's cores. Raises NetworksError."""
        if not isinstance(model, Manifold) or model.device.type != "cpu":
            return model
        remote = Remote(model, self)
        self.run(lambda worker: worker.load(model))
        return remote

    def run(self, work: Callable[[_Worker], Any]) -> Any:
        """work(worker), begun again with the next worker where one dies in it. Raises NetworksError."""
        while True:
            worker = self._running()
            try:
                return work(worker)
            except _Died as died:
                self._bury(worker, str(died))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _running(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise NetworksError("the source is closed")
            if self._worker is None:
                self._worker = _Worker(self.jobs)
            return self._worker

    def _bury(self, worker: _Worker, reason: str) -> None:
        with self._lock:
            if self._worker is not worker or self._closed:
                return  # another thread saw it first
            self._worker = None
            self._deaths.append(time.monotonic())
            often = len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_S
        worker.close()
        if often:
            raise NetworksError(
                f"the networks' process ended {MOST_DEATHS} times within a minute (last: {reason}); open it again"
            )
        self._tell(f"The networks' process ended ({reason}) and is started again")


class Remote:
    """A manifold whose networks run in a worker; all else is the manifold's own. A codec.Model."""

    def __init__(self, model: Manifold, networks: Networks) -> None:
        self._model, self._networks = model, networks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def analyse(self, rgb: np.ndarray) -> Tensor:
        """As Manifold.analyse."""
        most = 4 * len(rgb) * int(np.prod(self._model.latent_shape(rgb.shape[2], rgb.shape[1])))

        def work(worker: _Worker) -> np.ndarray:
            worker.load(self._model)
            return worker.begin("analyse", self._model.id, rgb, most, np.float32).result()

        return torch.from_numpy(self._networks.run(work))

    def synthesise(self, latents: Tensor, width: int, height: int) -> Iterator[np.ndarray]:
        """As Manifold.synthesise, one picture uint8 (H, W, 3) after the other, each as soon as it and those before are done."""
        pieces = latents.float().cpu().split(max(1, JOB_PIXELS // (width * height)))
        waiting = deque(np.ascontiguousarray(piece.numpy()) for piece in pieces)
        begun: deque[_Job] = deque()
        try:
            while waiting or begun:
                yield from self._networks.run(lambda worker: self._next(worker, waiting, begun, width, height))
        finally:
            for job in begun:
                job.drop()

    def _next(self, worker: _Worker, waiting: deque[np.ndarray], begun: deque[_Job], width: int, height: int) -> np.ndarray:
        """The pictures of the first piece; some of the following are begun meanwhile."""
        if begun and begun[0].worker is not worker:  # they died with the one before
            while begun:
                array = begun.pop().array
                assert array is not None  # as `begin` gave it
                waiting.appendleft(array)
        worker.load(self._model)
        while waiting and len(begun) < 2 * self._networks.jobs:  # one at work and one at hand for each core
            most = 3 * len(waiting[0]) * width * height
            size = {"width": width, "height": height}
            begun.append(worker.begin("synthesise", self._model.id, waiting[0], most, np.uint8, **size))
            waiting.popleft()
        found = begun[0].result()
        begun.popleft()
        return found


class _Slot:
    """Memory that both processes map, through a file that no longer has a name once the worker has opened it."""

    def __init__(self, size: int) -> None:
        self.size = size
        shared = "/dev/shm"
        for folder in (shared, None) if os.path.isdir(shared) else (None,):
            handle, self.path = tempfile.mkstemp(prefix="mcode-", dir=folder)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, size)  # a full disk is told here, not by a signal at the first write
                else:
                    os.ftruncate(handle, size)
                self.memory = mmap.mmap(handle, size)
                return
            except OSError as error:
                os.unlink(self.path)
                problem = error
            finally:
                os.close(handle)
        raise NetworksError(f"no memory to share with the networks' process ({problem.strerror})")

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def unlink(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class _Job:
    """One job under way. array: what it was given; result: what it gave, as an array of this dtype."""

    def __init__(self, worker: _Worker, array: np.ndarray | None = None, slot: _Slot | None = None, dtype: Any = None) -> None:
        self.worker, self.array, self.slot, self.dtype = worker, array, slot, dtype
        self.reply: dict[str, Any] | None = None
        self._answered = threading.Event()
        self._dropped = False

    def answer(self, reply: dict[str, Any] | None) -> None:
        """From the thread that reads; None: the worker ended."""
        self.reply = reply
        self._answered.set()
        if self._dropped:
            self._give_back()

    def wait(self) -> dict[str, Any]:
        if not self._answered.wait(STALLED_S):
            self.worker.process.kill()
            raise _Died(f"it gave no answer for {STALLED_S:.0f} s")
        if self.reply is None:
            raise _Died(self.worker.ended or "it ended")
        if "error" in self.reply:
            self._give_back()
            raise NetworksError(f"the networks cannot do that: {self.reply['error']}")
        return self.reply

    def result(self) -> np.ndarray:
        """A copy. Raises NetworksError, and _Died."""
        shape = self.wait()["shape"]
        assert self.slot is not None
        found = np.frombuffer(self.slot.memory, self.dtype, int(np.prod(shape))).reshape(shape).copy()
        self._give_back()
        return found

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self._dropped = True
        if self._answered.is_set():
            self._give_back()

    def _give_back(self) -> None:
        slot, self.slot = self.slot, None
        if slot is not None:
            self.worker.give_back(slot)


class _Worker:
    """The process, what it was asked for, and the memory shared with it. ended: why it is no more, None while it lives."""

    def __init__(self, jobs: int) -> None:
        threads = str(max(1, cores() // jobs))
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)}
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        program = _PROGRAM.format(path=sys.path, jobs=jobs)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
        except OSError as error:
            raise NetworksError(f"the networks' process cannot be started ({error.strerror})") from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self._asked, self._answers = self.process.stdin, self.process.stdout
        self.ended: str | None = None
        self._numbers = itertools.count()
        self._jobs: dict[int, _Job] = {}
        self._free: list[_Slot] = []
        self._loaded: dict[str, _Job] = {}
        self._slots, self._most_slots = 0, 5 * jobs + 2
        self._lock = threading.Lock()
        self._given_back = threading.Condition(self._lock)
        self._reader = threading.Thread(target=self._read, name="player networks", daemon=True)
        self._reader.start()

    def load(self, model: Manifold) -> None:
        """Wait until the worker has this manifold."""
        with self._lock:
            job = self._loaded.get(model.id)
            if job is None:
                job = self._loaded[model.id] = _Job(self)
                self._loaded = dict(list(self._loaded.items())[-MOST_MANIFOLDS:])
                self._send(job, {"do": "load", "path": str(model.info.path), "precision": model.precision, "model": model.id})
        job.wait()

    def begin(self, what: str, model_id: str, array: np.ndarray, most_bytes: int, dtype: Any, **more: int) -> _Job:
        """Hand a job over. most_bytes: of its result."""
        slot = self._slot(max(array.nbytes, most_bytes))
        np.frombuffer(slot.memory, array.dtype, array.size)[:] = array.ravel()
        job = _Job(self, array, slot, dtype)
        with self._lock:
            self._send(job, {"do": what, "model": model_id, "slot": slot.name, "shape": array.shape, **more})
        return job

    def _slot(self, size: int) -> _Slot:
        """Memory for a job. Where jobs that nobody waits for any more still hold much of it, theirs comes first."""
        with self._given_back:
            if not self._free and self._slots >= self._most_slots and self.ended is None:
                self._given_back.wait(1.0)
            slot = next((slot for slot in self._free if slot.size >= size), None)
            if slot is not None:
                self._free.remove(slot)
                return slot
            small = self._free.pop() if self._free else None
            self._slots += small is None
        slot = _Slot(size)
        try:
            opening = _Job(self)
            with self._lock:
                if small is not None:
                    self._send(_Job(self), {"do": "close", "slot": small.name})
                self._send(opening, {"do": "open", "slot": slot.name, "path": slot.path, "bytes": size})
            opening.wait()
        finally:
            slot.unlink()
        return slot

    def give_back(self, slot: _Slot) -> None:
        with self._given_back:
            self._free.append(slot)
            self._given_back.notify()

    def close(self) -> None:
        """End it; whoever waits is told."""
        with contextlib.suppress(OSError):
            self._asked.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._reader.join()
        self._answers.close()

    def _send(self, job: _Job, message: dict[str, Any]) -> None:
        """Under the lock."""
        number = next(self._numbers)
        self._jobs[number] = job
        try:
            self._asked.write(json.dumps({**message, "job": number}).encode() + b"\n")
            self._asked.flush()
        except (OSError, ValueError):
            self._jobs.pop(number)
            raise _Died(self.ended or "it ended") from None

    def _read(self) -> None:
        for line in self._answers:
            reply = json.loads(line)
            with self._lock:
                job = self._jobs.pop(reply["job"])
            job.answer(reply)
        self.ended = _reason(self.process.wait())
        with self._lock:
            left, self._jobs = list(self._jobs.values()), {}
        for job in left:
            job.answer(None)


def _reason(status: int) -> str:
    with contextlib.suppress(ValueError):
        if status < 0:
            return f"by {signal.Signals(-status).name}"
    return f"with status {status}"
