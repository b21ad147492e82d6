"""The process that player.networks starts: analysis and synthesis of manifolds, on pictures and latents in shared memory.

One line of JSON in for each job, one out; the arrays lie in the job's slot, a file that both processes map. It keeps no state
but the manifolds loaded, and ends with its standard input, however the window's process ended.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from mcode.memory import keep_freed_memory

MOST_MANIFOLDS = 3


class Worker:
    """jobs: pictures synthesised at once; others wait their turn. replies: where lines go."""

    def __init__(self, jobs: int, replies: BinaryIO) -> None:
        self._replies, self._lock = replies, threading.Lock()
        # Analysis does not wait for synthesis: nothing can be decoded in time that was encoded late.
        self._pools = {"synthesise": ThreadPoolExecutor(jobs, "synthesis"), "analyse": ThreadPoolExecutor(1, "analysis")}
        self._models: dict[str, Any] = {}
        self._slots: dict[str, mmap.mmap] = {}

    def take(self, line: bytes) -> None:
        """Do what a line asks for, in one of the threads."""
        message = json.loads(line)
        if message["do"] == "open":  # mapped here and now: jobs that use it may follow at once
            self._slots[message["slot"]] = self._map(message["path"], message["bytes"])
            self._reply({"job": message["job"]})
        elif message["do"] == "close":
            self._slots.pop(message["slot"]).close()
            self._reply({"job": message["job"]})
        else:
            self._pools.get(message["do"], self._pools["analyse"]).submit(self._run, message)

    def _run(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"job": message["job"]}
        try:
            reply |= getattr(self, "_" + message["do"])(message) or {}
        except Exception as error:  # the outermost frame of this thread: the window tells it
            reply["error"] = " ".join(str(error).split()) or type(error).__name__
        self._reply(reply)

    def _load(self, message: dict[str, Any]) -> None:
        from mcode.manifold import load

        model = load(message["path"], "cpu", precision=message["precision"]).in_integers()
        self._models = {**dict(list(self._models.items())[1 - MOST_MANIFOLDS :]), message["model"]: model}

    def _analyse(self, message: dict[str, Any]) -> dict[str, Any]:
        slot = self._slots[message["slot"]]
        rgb = np.frombuffer(slot, np.uint8, int(np.prod(message["shape"]))).reshape(message["shape"])
        latents = self._models[message["model"]].analyse(rgb).numpy()
        np.frombuffer(slot, np.float32, latents.size)[:] = latents.ravel()
        return {"shape": latents.shape}

    def _synthesise(self, message: dict[str, Any]) -> dict[str, Any]:
        import torch

        slot = self._slots[message["slot"]]
        latents = np.frombuffer(slot, np.float32, int(np.prod(message["shape"]))).reshape(message["shape"])
        model = self._models[message["model"]]
        rgb = model.synthesise(torch.from_numpy(latents), message["width"], message["height"])
        np.frombuffer(slot, np.uint8, rgb.size)[:] = rgb.ravel()
        return {"shape": rgb.shape}

    def _map(self, path: str, size: int) -> mmap.mmap:
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), size)

    def _reply(self, reply: dict[str, Any]) -> None:
        with self._lock:
            self._replies.write(json.dumps(reply).encode() + b"\n")
            self._replies.flush()


def serve(jobs: int) -> None:
    """Until standard input ends."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the window, which then ends this
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print shall not stand between the replies
    worker = Worker(jobs, replies)
    try:
        for line in sys.stdin.buffer:
            worker.take(line)
    finally:
        os._exit(0)  # nobody waits for the jobs under way
