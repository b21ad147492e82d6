"""Training crops from folders of pictures and videos, held in memory, cut out at random in background threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from .. import video
from ..errors import InputError
from ..nets import STRIDE
from .footage import PICTURES, find_footage
from .graphics import draw_graphic

SMALLEST = 64
"""Pictures with a side of fewer pixels are left out."""
_JPEG = b"\xff\xd8\xff"  # which has no opacity
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
    """All pictures, and evenly spaced frames of all videos, under `folders`: uint8 (H, W, 3) RGB, as the codec sees them.

    Pictures with a side over `longest` pixels are scaled down to it, which also removes most of their JPEG artefacts.
    Sorted by path, so that a seed means the same crops everywhere. Damaged files are passed over, videos from there on.
    Raises InputError for a folder that is missing or has neither.
    """

    def read(path: Path) -> list[np.ndarray]:
        if path.suffix.lower() in PICTURES:
            rgb = read_picture(path)
            return [] if rgb is None else _shrunk(rgb, longest)
        with suppress(InputError):
            return [rgb for frame in _video_frames(path, frames_per_video) for rgb in _shrunk(frame, longest)]
        return []

    paths = [path for folder in folders for path in find_footage(folder)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return [p for found in threads.map(read, paths) for p in found]


def read_picture(file: Path | bytes) -> np.ndarray | None:
    """RGB, uint8 (H, W, 3), as `video.read_picture` shows it; None for what is no picture, or too large a one. bytes: of an
    image file, which is turned as its EXIF says and lies on white, too."""
    if isinstance(file, Path):
        try:
            return video.read_picture(file)
        except InputError:
            return None
    if file[12:16] == b"VP8X" and file[20:21] and file[20] & 2:  # an animated WebP, which FFmpeg does not decode
        return None
    data = np.frombuffer(file, np.uint8)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if bgr is None:
            return None
        clear = None if file.startswith(_JPEG) else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if clear is not None and clear.dtype in (np.uint8, np.uint16) and clear.shape == (*bgr.shape[:2], 4):
            opacity = (clear[..., 3:] // (257 if clear.dtype == np.uint16 else 1)).astype(np.uint16)
            bgr = ((bgr * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise MemoryError(str(error)) from error
        return None
    return np.ascontiguousarray(bgr[..., ::-1])


def _shrunk(rgb: np.ndarray, longest: int) -> list[np.ndarray]:
    """The picture at most `longest` pixels wide and high; none where a side then is below SMALLEST, as of a strip."""
    scale = min(1.0, longest / max(rgb.shape[:2]))
    if round(min(rgb.shape[:2]) * scale) < SMALLEST:
        return []
    return [rgb if scale == 1 else cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)]


def _count_frames(path: Path) -> int:
    """As the file says or its duration tells: Matroska does not count them. Raises InputError."""
    info = video.probe(path)
    return info.frames or int((info.duration_s or 0) * (info.average_fps or 0)) or 250


def _video_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    if count > 0:
        yield from video.frames_at(path, set(np.linspace(0, _count_frames(path) - 1, count).astype(int).tolist()))


def frame_runs(path: Path, places: int, length: int) -> Iterator[list[np.ndarray]]:
    """Runs of `length` consecutive frames of one size at evenly spaced places of a video, as far as it can be decoded."""
    with suppress(InputError):
        total = _count_frames(path)
        starts: list[int] = []
        for start in sorted({max(0, total * (i + 1) // (places + 1) - length) for i in range(places)}):
            if not starts or start >= starts[-1] + length:
                starts.append(start)
        run: list[np.ndarray] = []
        for frame in video.frames_at(path, {start + i for start in starts for i in range(length)}):
            run.append(frame if not run else video.resize(frame, *run[0].shape[1::-1]))
            if len(run) == length:
                yield run
                run = []


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
