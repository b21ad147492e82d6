"""From what the user names to a session: a file, a camera, the demo, a stream from the network. No Qt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mcode.manifold
from mcode.container import McodeReader
from mcode.errors import FormatError, InputError, ManifoldError
from mcode.frame import Frame
from mcode.receive import read_session

from .compare import Compare
from .demo import prepare
from .feeds import CameraFeed, VideoFeed
from .playback import Playback
from .session import Session, Settings

DEFAULT_MANIFOLD = "general"
STREAM_SCHEME = "rtp://"


def open_source(source: str | os.PathLike[str], settings: Settings | None = None, *, device: str = "auto") -> Session:
    """A session, not yet started. settings.manifold: for what is encoded live, where None takes `general`, else any; a file
    or a stream is decoded with it where it is the one that they name.

    Raises McodeError in one line.
    """
    text, settings = os.fspath(source), settings or Settings()
    check_source(text)
    if text.startswith("demo:"):
        return Demo(settings, device=device)
    if text.startswith(STREAM_SCHEME) or Path(text).suffix.lower() == ".sdp":
        from .remote import Remote

        return Remote(text, settings, device=device)
    if text.startswith("camera:"):
        return _compare(CameraFeed(_camera_number(text)), settings, device)
    try:
        return Playback(text, manifold=None, device=device, settings=settings)
    except FormatError:
        if Path(text).suffix.lower() == ".mcode":
            raise
    return _compare(VideoFeed(text), settings, device)


def check_source(source: str) -> None:
    """Raises InputError for what is neither a path that exists, and no folder, nor one of the other sources."""
    if source.startswith("camera:"):
        _camera_number(source)
    if os.path.isdir(source):
        raise InputError(f"{source} is a folder; open a file in it")
    if source.startswith(("demo:", "camera:", STREAM_SCHEME)) or os.path.exists(source):
        return
    if not source:
        raise InputError("no file has an empty name; name one, or none for an empty window")
    if "://" in source:
        raise InputError(f"{source}: give a stream as {STREAM_SCHEME}HOST:PORT or by its SDP file")
    raise InputError(f"{source}: no such file")


def probe_source(source: str) -> None:
    """As check_source, and McodeError for a file that is no video, stream or session. Only a regular file is read from: a pipe
    gives what it has once."""
    check_source(source)
    if not os.path.isfile(source):
        return
    if Path(source).suffix.lower() == ".sdp":
        read_session(source)
        return
    try:
        McodeReader(source)
    except FormatError:
        if Path(source).suffix.lower() == ".mcode":
            raise
        VideoFeed(source)


def _camera_number(source: str) -> int:
    number = source.removeprefix("camera:") or "0"
    if not number.isdigit():
        raise InputError(f"{source}: a camera is named by its number, as camera:0")
    return int(number)


def _compare(feed: VideoFeed | CameraFeed, settings: Settings, device: str) -> Compare:
    return Compare(feed, settings=replace(settings, manifold=settings.manifold or default_manifold()), device=device)


def default_manifold() -> str:
    """`general` where it is installed, else the first that is. Raises ManifoldError where none is."""
    installed = [info.name for info in mcode.manifold.list_manifolds()]
    if DEFAULT_MANIFOLD in installed:
        return DEFAULT_MANIFOLD
    if not installed:
        raise ManifoldError("no manifold is installed to encode with; name one with --manifold, or learn one: mcode adapt")
    return installed[0]


class Demo(Compare):
    """The comparison on the demo's clip. What is missing of it is made first, in the background."""

    def __init__(self, settings: Settings, *, device: str = "auto") -> None:
        self._device = device
        super().__init__(_Pending(), settings=replace(settings, manifold=None), load=self._load_demo)
        self.title, self.busy = "Demo", "Preparing the demo"

    def _load_demo(self, name: str | None) -> mcode.manifold.Manifold:
        return mcode.manifold.load(name or self._made.manifold, self._device)

    def _feed(self) -> None:
        self._made = prepare(self._say)
        feed = VideoFeed(self._made.clip)
        self.feed, self.duration_s = feed, feed.duration_s
        super()._feed()

    def _say(self, text: str) -> None:
        if self._closing.is_set():
            raise InputError("closed")
        self.busy = text


class _Pending:
    """The demo's feed until its clip is there."""

    title, fps, size = "Demo", 25.0, (1, 1)
    duration_s: float | None = 0.0
    live = False
    audio_path: str | None = None

    def frames(self, start_s: float, size: tuple[int, int], crop_to: tuple[int, int] | None) -> Iterator[Frame]:
        return iter(())
