"""Where the pictures of a live comparison come from: a file or a camera. No Qt."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import av

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.send import release_decoders
from mcode.video import FrameReader, centre_crop, probe, resize, time_base

_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""FFmpeg's input format and the name of camera number {}, by system."""


class Feed(Protocol):
    """title; fps: nominal frames/s; size: (width, height); duration_s: None where it is unknown (then no seeking); live: what
    comes from now, and has no end."""

    title: str
    fps: float
    size: tuple[int, int]
    duration_s: float | None
    live: bool
    audio_path: str | None

    def frames(self, start_s: float, size: tuple[int, int], crop_to: tuple[int, int] | None) -> Iterator[Frame]:
        """Frames from start_s on, cut and scaled; the first has pts 0."""
        ...


class VideoFeed:
    """A video file. Raises InputError as mcode.video.probe."""

    live = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.title = os.fspath(path), Path(path).name
        info = probe(path)
        self.fps = min(120.0, max(1.0, info.average_fps or 25.0))
        self.size = info.width, info.height
        self.duration_s = info.duration_s
        self.audio_path = self.path if info.audio_codec else None
        if info.is_image:
            raise InputError(f"{path} is an image; mcode encode {path} -o OUT.mcode compresses it")

    def frames(self, start_s: float, size: tuple[int, int], crop_to: tuple[int, int] | None) -> Iterator[Frame]:
        yield from FrameReader(self.path, start_s=start_s, size=size, crop_to=crop_to)
        release_decoders()  # a clip in a loop


class CameraFeed:
    """A camera of this machine, by number. Raises InputError when there is none."""

    duration_s: float | None = None
    live = True
    audio_path: str | None = None

    def __init__(self, number: int = 0) -> None:
        self.number, self.title = number, f"Camera {number}"
        self.format, name = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
        self.name = name.format(number)
        with self._open() as container:
            stream = container.streams.video[0]
            self.size = stream.width, stream.height
            self.fps = min(60.0, max(5.0, float(stream.average_rate or 25)))

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(self.name, format=self.format)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise InputError(f"no camera {self.number} ({self.name}: {getattr(error, 'strerror', error)})") from error

    def frames(self, start_s: float, size: tuple[int, int], crop_to: tuple[int, int] | None) -> Iterator[Frame]:
        with self._open() as container:
            first = last = None
            try:
                for picture in container.decode(video=0):
                    time_s = float(picture.pts * time_base(picture)) if picture.pts is not None else 0.0
                    first = time_s if first is None else first
                    pts = round((time_s - first) * TICKS_PER_S)
                    pts = pts if last is None or pts > last else last + 1
                    rgb = picture.to_ndarray(format="rgb24")
                    last = pts
                    yield Frame(resize(centre_crop(rgb, crop_to) if crop_to else rgb, *size), pts)
            except av.FFmpegError as error:
                raise InputError(f"camera {self.number} stopped ({error.strerror}); is it still plugged in?") from error
            raise InputError(f"camera {self.number} stopped; is it still plugged in?")
