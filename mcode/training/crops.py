"""Training crops from folders of pictures and videos, held in memory, cut out at random in background threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..nets import STRIDE
from .graphics import draw_graphic

if TYPE_CHECKING:
    from av.container import InputContainer

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mkv", ".avi", ".mpg", ".mov", ".webm"}
SMALLEST = 64
"""Pictures with a side of fewer pixels are left out."""
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 2 * _THREADS
"""Batches that are drawn before they are asked for."""


def check_crops(folders: Sequence[str], batch: int, crop: int, longest: int) -> None:
    """Raises ValueError where no crops for networks of STRIDE can be drawn so."""
    if not folders or batch < 1 or crop < 4 * STRIDE or crop % STRIDE:
        raise ValueError("folders must name one place at least, batch is 1 or more, crop a multiple of 16 from 64 on")
    if longest < SMALLEST:
        raise ValueError(f"longest is {longest}; it is {SMALLEST} or more: smaller pictures are left out")


def load_pictures(folders: list[Path], *, longest: int, frames_per_video: int) -> list[np.ndarray]:
    """All pictures, and evenly spaced frames of all videos, under `folders`: uint8 (H, W, 3) RGB.

    Pictures with a side over `longest` pixels are scaled down to it, which also removes most of their JPEG artefacts.
    Sorted by path, so that a seed means the same crops everywhere. Damaged files are passed over, videos from there on.
    """

    def read(path: Path) -> list[np.ndarray]:
        if path.suffix.lower() in PICTURES:
            rgb = read_picture(path)
            return [] if rgb is None else [_shrink(np.ascontiguousarray(rgb), longest)]
        if path.suffix.lower() in VIDEOS:
            return [_shrink(frame, longest) for frame in _video_frames(path, frames_per_video)]
        return []

    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    with ThreadPoolExecutor(_THREADS) as threads:
        return [p for found in threads.map(read, paths) for p in found if min(p.shape[:2]) >= SMALLEST]


def read_picture(file: Path | bytes) -> np.ndarray | None:
    """RGB, uint8 (H, W, 3); None for what OpenCV does not read as a picture, or takes for too large a one."""
    try:
        if isinstance(file, Path):
            bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)
        else:
            bgr = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if bgr is None else bgr[..., ::-1]


def _shrink(rgb: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def count_frames(container: InputContainer) -> int:
    """Of the first video stream, as the file says or its duration tells: Matroska does not count them."""
    stream = container.streams.video[0]
    seconds = (container.duration or 0) / 1_000_000  # libavformat's own time base
    return stream.frames or int(seconds * float(stream.average_rate or 0)) or 250


def _video_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    import av

    if count <= 0:
        return
    with suppress(av.FFmpegError), av.open(f"file:{path}", metadata_errors="replace") as container:
        if not container.streams.video:
            return
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        total = count_frames(container)
        wanted = set(np.linspace(0, total - 1, count).astype(int).tolist())
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                yield frame.to_ndarray(format="rgb24")


def frame_runs(video: Path, places: int, length: int) -> Iterator[list[np.ndarray]]:
    """Runs of `length` consecutive frames at evenly spaced places of a video, as far as it can be decoded."""
    import av

    with suppress(av.FFmpegError), av.open(f"file:{video}", metadata_errors="replace") as container:
        if not container.streams.video:
            return
        stream = container.streams.video[0]
        total = count_frames(container)
        starts = {max(0, total * (i + 1) // (places + 1) - length) for i in range(places)}
        run: list[np.ndarray] | None = None
        for index, frame in enumerate(container.decode(stream)):
            if index in starts and run is None:
                run = []
            if run is not None:
                run.append(frame.to_ndarray(format="rgb24"))
                if len(run) == length:
                    yield run
                    run = None


def draw_crop(pictures: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """One random crop, uint8 (size, size, 3): random place, mirrored half the time, scaled down by 1 to 2 where it fits."""
    weights_side = 4  # tries before a small picture is scaled up
    for _ in range(weights_side):
        picture = pictures[rng.integers(len(pictures))]
        if min(picture.shape[:2]) >= size:
            break
    short = min(picture.shape[:2])
    scale = rng.uniform(1, min(2.0, short / size)) if short > size else 1.0
    side = min(round(size * scale), short)
    top = rng.integers(picture.shape[0] - side + 1)
    left = rng.integers(picture.shape[1] - side + 1)
    crop = picture[top : top + side, left : left + side]
    if side != size:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop)


class CropStream:
    """Endless batches of crops, uint8 (batch, size, size, 3). Batch number i depends on (seed, i) alone, so that a
    training run which starts again at step i sees what it would have seen. graphics: the share of them that is drawn
    (`draw_graphic`) instead of cut from `pictures`.
    """

    def __init__(
        self, pictures: list[np.ndarray], batch: int, size: int, seed: int, first: int = 0, *, graphics: float = 0.0
    ) -> None:
        self.pictures, self.batch, self.size, self.seed, self.graphics = pictures, batch, size, seed, graphics
        self._next = first
        self._threads = ThreadPoolExecutor(_THREADS)
        self._drawn: deque[Future[np.ndarray]] = deque()

    def _draw(self, index: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, index))
        return np.stack([self._one(rng) for _ in range(self.batch)])

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        if self.graphics and rng.random() < self.graphics:
            return draw_graphic(self.size, rng)
        return draw_crop(self.pictures, self.size, rng)

    def __next__(self) -> np.ndarray:
        while len(self._drawn) <= _AHEAD:
            self._drawn.append(self._threads.submit(self._draw, self._next))
            self._next += 1
        return self._drawn.popleft().result()
