"""Recording the comparison as seen into an MP4: pictures come from the window, encoding runs in a thread. No Qt."""

from __future__ import annotations

import os
import queue
import threading
import time

import numpy as np

from mcode.errors import McodeError
from mcode.frame import TICKS_PER_S, Frame
from mcode.video import FrameWriter

FPS = 25
_MOST_WAITING = 8
_END_S = 30.0
"""A file that is not finished after so long (a disk that does not answer) holds the window up no longer."""


class Recorder:
    """push() never waits: a picture that finds the encoder behind is left out. error: why it stopped, one line."""

    def __init__(self, path: str | os.PathLike[str], width: int, height: int) -> None:
        self.path, self.width, self.height = os.fspath(path), width, height
        self.frames = self.dropped = 0
        self.error: str | None = None
        self._last_pts = -1
        self._queue: queue.Queue[Frame | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="player recorder", daemon=True)
        self._thread.start()

    def push(self, rgb: np.ndarray, time_s: float) -> None:
        pts = round(time_s * TICKS_PER_S)
        if pts <= self._last_pts or self.error:
            return
        try:
            self._queue.put_nowait(Frame(rgb, pts))
            self._last_pts = pts
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Finish the file; returns when it has its name, or there is an error."""
        end_s = time.monotonic() + _END_S
        while self._thread.is_alive() and time.monotonic() < end_s:
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue  # it writes, or has ended
        self._thread.join(max(0.0, end_s - time.monotonic()))
        if self._thread.is_alive():
            self.error = f"{self.path} is not written: the disk does not answer"

    def _write(self) -> None:
        writer: FrameWriter | None = None
        ended = False
        try:
            writer = FrameWriter(self.path, width=self.width, height=self.height, force=True)
            while (frame := self._queue.get()) is not None:
                writer.push(frame)
                self.frames += 1
            ended = True
            if self.frames:
                writer.close()
            else:
                writer.abort()
        except Exception as error:  # the thread's outermost frame
            known = isinstance(error, McodeError | OSError)
            self.error = " ".join(f"{'' if known else type(error).__name__ + ': '}{error}".split())
            if writer is not None:
                writer.abort()
            while not ended:
                ended = self._queue.get() is None
