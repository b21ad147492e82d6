"""Video files in and out: anything FFmpeg opens becomes RGB frames, frames become MP4, Matroska, y4m or PNG, sound is copied.

Not here: the .mcode file (container.py) and the codecs to compare with (baseline.py).
"""

from __future__ import annotations

import errno
import io
import math
import operator
import os
import re
import shutil
import struct
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image, UnidentifiedImageError

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.packet import LARGEST_PICTURE, too_large
from mcode.whole import give_name, partial_name

StrPath = str | os.PathLike[str]

TICK = Fraction(1, TICKS_PER_S)

_BT709, _BT601 = 1, 6  # code points of ISO/IEC 23091-2: colour matrices 1 (BT.709) and 6 (BT.601)
_UNSPECIFIED = 2
_MATRIX_NAMES = {  # of those that swscale does not read
    **{8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 12: "derived from its primaries"},
    **{13: "derived from its primaries", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"},
}
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_TEXT_AS_VIDEO = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg draws any .txt file as a terminal: not a video to us
_STILL_BRANDS = {"avif", "heic", "heix", "mif1"}  # heix: HEIC of more than 8 bits, or grey
_ANIMATION_BRANDS = {"avis", "hevc", "msf1"}
_ALPHA_NAMES = (b":auxiliary:alpha", b":hevc:2015:auxid:1")  # of AVIF and of HEIC (ISO/IEC 23008-12)
_COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 259, 262, 274  # tags of TIFF and EXIF
_MIRRORED = {2: (-1, 0, 0, 1), 4: (1, 0, 0, -1), 5: (0, 1, 1, 0), 7: (0, -1, -1, 0)}  # EXIF: matrix, see _display_matrix
_TURNED = {90: (0, -1, 1, 0), -90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}  # degrees: matrix
_LONGEST_SHOWN = (1 << 31) - 1  # ticks, 6.6 hours: the longest of FFmpeg's MP4 writer
_JOINABLE = {"mpegts", "mpeg", "matroska,webm", "ogg"}  # formats that are read on where files stand one behind the other
_EBML_HEADER = re.compile(rb"\x1a\x45\xdf\xa3.{1,64}?(?:matroska|webm)", re.DOTALL)  # RFC 8794, section 11.2.2
_LONGEST_INDEX = 1 << 24  # bytes behind the last picture: twenty hours with a keyframe every second have 1.4 million
_LARGEST_SEARCHED = 1 << 28  # bytes of a file that is searched for joints before a seek
_LONGEST_PLAYLIST = 1 << 24  # bytes, a hundred times those of a long film
_RESTART_S = Fraction(1, 2)  # a clock that falls back by more, to where it began, has been started anew
_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")  # of so many channels, where none is named
_MOST_AAC_CHANNELS = 6
_LONGEST_Y4M_HEADER = 80  # bytes before a picture, as FFmpeg reads them
_MOST_WAITING = 1000  # packets of sound
_MOST_REORDERED = 16  # pictures that a codec may hold back: H.264's and H.265's largest number
_STEPS_BACK_S = (0, 10, 30)  # a seek that lands behind the last keyframe before its time (MPEG-TS) is tried further back
_LONGEST_RUN_UP_S = 600  # decoding takes a twentieth of encoding's time
_LONGEST_SIDE = 65_535  # as streams and commands have it
_PILLOWS_LIMIT = threading.Lock()


@dataclass(frozen=True)
class VideoInfo:
    """What a video or image file holds. width, height: pixels as displayed, after rotation. None: the file does not say."""

    width: int
    height: int
    duration_s: float | None
    average_fps: float | None
    frames: int | None
    video_codec: str
    pixel_format: str
    audio_codec: str | None
    is_image: bool
    is_vfr: bool | None


def probe(path: StrPath) -> VideoInfo:
    """What `path` holds, from its header and its first picture.

    Raises InputError, in one line, for a path that is missing, a folder, empty, no video, without pictures or unreadable.
    """
    with _open(path) as container:
        stream = _picture_stream(container, path)
        first = next(_decoded(container, stream, _Damage()), None)
        if first is None:
            _refuse_too_large(path, stream)  # beyond 268 million pixels FFmpeg does not even tell the size
            _refuse_unsupported(path, stream)
            raise InputError(f"{path}: its {stream.codec_context.name} pictures cannot be decoded")
        turned = _turns_sideways(first, path)
        audio = _sound_stream(container)
        brand = container.metadata.get("major_brand", "").strip()
        is_image = (
            container.format.name.endswith("_pipe") or container.format.name in ("image2", "ico") or brand in _STILL_BRANDS
        )
        duration = _stream_duration(container, stream)
        if duration is None and container.duration:
            duration = Fraction(container.duration, av.time_base)
        average, nominal = stream.average_rate, stream.guessed_rate
        return VideoInfo(
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            duration_s=None if is_image or duration is None else float(duration),
            average_fps=None if is_image or not average else float(average),
            frames=1 if is_image else stream.frames or None,
            video_codec=stream.codec_context.codec.canonical_name,
            pixel_format=first.format.name,
            audio_codec=audio.codec_context.codec.canonical_name if audio and audio.codec_context else None,
            is_image=is_image,
            is_vfr=False if is_image else True if average and nominal and abs(average / nominal - 1) > 0.01 else None,
        )


def check_size(size: tuple[int, int] | None, name: str = "size") -> None:
    """Raises InputError for what is neither None nor (width, height)."""
    if size is None:
        return
    try:
        width, height = map(operator.index, size)
    except (TypeError, ValueError):
        width = height = 0
    if not (1 <= width <= _LONGEST_SIDE and 1 <= height <= _LONGEST_SIDE):
        raise InputError(f"the {name} must be (width, height), whole numbers from 1 to {_LONGEST_SIDE}, not {size!r}")


class FrameReader:
    """The frames of a video or image file, in order of time, each exactly once. Iterating again reads again.

    Pixels: any pixel format becomes 8-bit RGB. The file's matrix and range are followed; where it names no matrix, BT.709
    is assumed from 1280 pixels of width or above 576 of height, else BT.601. Transparent pictures lie on white. Rotation
    and mirroring in the metadata are applied. The sample aspect ratio is not: pixels are square here. HDR is not
    tone-mapped. Rows may be padded in memory, as FFmpeg leaves them: copying them would take 2 to 14 % of reading's time.

    Times: the first frame has pts 0; ticks of 1/90,000 s, strictly increasing, also where the file's are missing or run
    backwards. start_s, duration_s: the frames with start_s <= time < start of the first such frame + duration_s.
    crop_to: (w, h), the largest centred cut of that aspect; then size: (width, height) in pixels.

    After an iteration `truncated` says how much of a cut-off file there was ("2.0 of 3.0 s"), else None; `damaged` counts
    packets that did not decode; `runs_backwards` says whether the file's times did not rise; `retimed` counts the frames that
    got another time for it; `last_duration_ticks` is how long the last frame is shown, None where the file does not say so, a
    picture for one. Memory: three frames beside those inside FFmpeg's decoder (a few, one per thread).
    """

    def __init__(
        self,
        path: StrPath,
        *,
        start_s: float = 0,
        duration_s: float | None = None,
        size: tuple[int, int] | None = None,
        crop_to: tuple[int, int] | None = None,
    ) -> None:
        if not 0 <= start_s < math.inf:
            raise InputError(f"the start must be 0 s or later, not {start_s:g} s")
        if duration_s is not None and not 0 < duration_s < math.inf:
            raise InputError(f"the duration must be longer than 0 s and finite, not {duration_s:g} s; leave it out for all")
        for name, pair in (("size", size), ("crop", crop_to)):
            check_size(pair, name)
        self.path = Path(path)
        self.info = probe(path)
        self.start_s, self.duration_s = start_s, duration_s
        self._crop_to, self._size = crop_to, size
        self.width, self.height = size or _cropped_size(self.info.width, self.info.height, crop_to)
        self.truncated: str | None = None
        self.damaged = 0
        self.runs_backwards, self.retimed = False, 0
        self.last_duration_ticks: int | None = None
        self._began = Fraction(0)  # on the file's clock
        self._promise_is_of_pictures = False  # else of a sound track that may be longer

    def __iter__(self) -> Iterator[Frame]:
        return self._read(None)

    def since(self, first: int) -> Iterator[Frame]:
        """The frames of the whole video from pts `first` on (ticks), at their times there; none where it ends before.

        Exact where the file's times rise and its seeks land on pictures that decode alone, which most do: who joins parts
        should compare the frames at the seams, and give up where afterwards `runs_backwards` or `damaged` is set: then frames
        may be left out here, or have other times than in the whole. Of a reader without start_s and duration_s.
        """
        if self.start_s or self.duration_s is not None:
            raise ValueError("since() reads parts of the whole video: leave out start_s and duration_s")
        return self._read(first if first > 0 else None)

    def is_seekable(self) -> bool:
        """Whether since() reads parts of this file without decoding much that is before them: at most ten minutes. Never of
        pictures, raw streams without times, files joined end to end, those that do not tell how long they are, AVI and MPEG-PS:
        these two leave the times of some pictures to be counted from those before."""
        length_s = self.info.duration_s
        if self.info.is_image or not length_s or self._zero() is None or _is_joined(self.path):
            return False
        with _open(self.path) as container:
            stream = _picture_stream(container, self.path)
            counted = container.format.name in ("avi", "mpeg")
            middle = _start(stream) + Fraction(length_s) / 2
            if counted or not _seek(container, stream, middle):
                return False
            with suppress(av.error.FFmpegError):
                landed = next((p for p in _demuxed(container, stream) if p.pts is not None), None)
                return landed is not None and middle - due_s(landed) < _LONGEST_RUN_UP_S
        return False

    def _zero(self) -> Fraction | None:
        """When the first picture is due, on the file's own clock; None where it does not say."""
        return next(self._from_start(_Damage(), None), (None, None))[1]

    def _read(self, first: int | None) -> Iterator[Frame]:
        """first: leaves out the frames of a lower pts; None: they start at pts 0, with the first one at or after start_s."""
        self.truncated, self.damaged, self.last_duration_ticks = None, 0, None
        self.runs_backwards = False
        damage = _Damage()
        last: int | None = None  # pts
        end: Fraction | None = None  # of the last frame, from the start of the video
        start: Fraction | None = None
        zero = self._zero() if first is not None or self.start_s > 0 else None
        self.retimed = 0  # _zero() counts the first picture's, too
        if first is not None and zero is not None:
            start = zero + first * TICK
        elif self.start_s > 0:
            start, zero = (self._began if zero is None else zero) + Fraction(self.start_s), None
        least = 1
        alpha = _separate_alpha(self.path) if self.info.is_image else None
        limit = None if self.duration_s is None else round(Fraction(self.duration_s) * TICKS_PER_S)
        for (picture, time_s), (_, then_s) in pairwise(chain(self._from_start(damage, start), [(None, None)])):
            assert picture is not None
            zero = time_s if zero is None and time_s is not None else zero
            pts = None if zero is None or time_s is None else round((time_s - zero) * TICKS_PER_S)
            then = None if zero is None or then_s is None else round((then_s - zero) * TICKS_PER_S)
            if last is None:
                pts = pts or 0
            elif pts is None:
                pts = last + self._period_ticks()
            elif pts <= last or (then is not None and last < then < pts):
                # Where the next picture is behind the last one, this one belongs between them; else the clock runs backwards.
                pts = last + 1 if then is None or then <= last else min(last + self._period_ticks(), (last + then + 1) // 2)
                self.runs_backwards, self.retimed = True, self.retimed + 1
            if limit is not None and pts >= limit:
                if last is not None and not self.info.is_image:
                    self.last_duration_ticks = max(limit - last, least)
                return
            least = 1 if last is None else min(pts - last, TICKS_PER_S // 10)  # where a cut falls just behind a picture
            self.last_duration_ticks = self._shown_ticks(picture, limit and max(limit - pts, least))
            last = pts
            end = self._end(pts, zero, picture)
            self.damaged = damage.packets
            if first is None or pts >= first:
                yield Frame(self._fitted(_to_rgb(picture, self.path, alpha)), pts)
        self.damaged = damage.packets
        if last is None and self.start_s > 0:
            raise InputError(f"{self.path}: nothing to show from {self.start_s:g} s on, the video ends before")
        if not self.info.is_image:
            self.truncated = self._shortfall(damage, end)

    def _from_start(self, damage: _Damage, start: Fraction | None) -> Iterator[tuple[av.VideoFrame, Fraction | None]]:
        """Decoded pictures at or after start (None: all), with their times: all in seconds on the file's own clock."""
        tries: list[int] = []
        if start is not None and not _seeks_astray(self.path):
            tries = [back_s for back_s in _STEPS_BACK_S if back_s < start - self._began]
        for back_s in (*tries, None):
            seeking = back_s is not None
            with _open(self.path) as container:
                stream = _picture_stream(container, self.path)
                self._began = _start(stream)
                self._promise_is_of_pictures = _stream_duration(container, stream) is not None or not container.streams.audio
                if back_s is not None and start is not None and not _seek(container, stream, start - back_s):
                    continue
                landed_early = not seeking
                counted_s = self._began
                given = False
                pictures = self._timed(container, _decoded(container, stream, damage, from_keyframe=seeking))
                for (picture, time_s), (_, then_s) in pairwise(chain(pictures, [(None, None)])):
                    assert picture is not None
                    moved = not given and time_s is not None and then_s is not None and then_s < time_s
                    if moved and then_s is not None:
                        time_s = then_s - self._period_ticks() * TICK  # one wrong time is no place to begin at
                        self.runs_backwards = True
                    if start is not None:
                        if time_s is None and not landed_early:
                            break  # raw H.264 and H.265 hold no times: count the pictures from the beginning
                        due = counted_s if time_s is None else time_s
                        counted_s = due + self._period_ticks() * TICK
                        if due < start - TICK / 2:
                            landed_early = True
                            self.runs_backwards |= given
                            continue
                        if not landed_early and due - start > TICK:
                            break  # the seek overshot: try one from earlier on, at last the beginning
                    landed_early = given = True
                    self.retimed += moved
                    yield picture, time_s
                if landed_early:
                    return

    def _timed(
        self, container: av.container.InputContainer, pictures: Iterator[av.VideoFrame]
    ) -> Iterator[tuple[av.VideoFrame, Fraction | None]]:
        """With the times at which they are due by the file, which run on where files were joined."""
        clock = _Clock()
        for picture in pictures:
            # AVI stores no presentation times: FFmpeg's guesses run backwards at B-frames, the dts do not
            stamp = picture.dts if container.format.name == "avi" else picture.pts
            time_s = None
            if stamp is not None:
                time_s = stamp * time_base(picture)
                shown_s = picture.duration * time_base(picture) or self._period_ticks() * TICK
                if container.format.name in _JOINABLE:
                    time_s += clock.shift(time_s, time_s, shown_s)
                    self.runs_backwards |= len(clock.shifts) > 1
            yield picture, time_s

    def _fitted(self, rgb: np.ndarray) -> np.ndarray:
        if self._crop_to is not None:
            rgb = centre_crop(rgb, self._crop_to)
        return resize(rgb, self.width, self.height)  # also where the picture changes its size midway

    def _period_ticks(self) -> int:
        return max(1, round(TICKS_PER_S / (self.info.average_fps or 25)))

    def _shown_ticks(self, picture: av.VideoFrame, most: int | None) -> int | None:
        if self.info.is_image or not picture.duration:
            return None
        ticks = max(1, round(picture.duration * time_base(picture) * TICKS_PER_S))
        return min(ticks, most or ticks, _LONGEST_SHOWN)

    def _end(self, pts: int, zero: Fraction | None, picture: av.VideoFrame) -> Fraction:
        shown = picture.duration * time_base(picture) if picture.duration else self._period_ticks() * TICK
        # the file's first time may be a wrong one, later than zero
        skipped = Fraction(self.start_s) if zero is None else max(Fraction(0), zero - self._began)
        return skipped + pts * TICK + shown

    def _shortfall(self, damage: _Damage, end: Fraction | None) -> str | None:
        have, promised = float(end or 0), self.info.duration_s
        two_frames_s = 2 * self._period_ticks() / TICKS_PER_S
        short = promised is not None and self._promise_is_of_pictures and have < promised - two_frames_s
        if not (short or damage.cut_off):
            return None
        whole = f"{promised or 0:.1f}"
        return f"{have:.1f} of {whole} s" if float(whole) > round(have, 1) else f"{have:.1f} s, then it breaks off"


def frames_at(path: StrPath, wanted: Collection[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, from 0 on and in their order, with FrameReader's very pixels; the others are not made RGB.
    As far as the file can be decoded: what comes behind damage is left out. Raises InputError as probe does."""
    last, damage = max(wanted, default=-1), _Damage()
    with _open(path) as container:
        pictures = _decoded(container, _picture_stream(container, path), damage)
        for index, picture in enumerate(pictures):
            if damage.packets or index > last:
                return
            if index in wanted:
                yield _to_rgb(picture, path)


def read_picture(path: StrPath) -> np.ndarray:
    """The picture of an image file, or a video's first: uint8 (H, W, 3), the very pixels that FrameReader gives.

    Raises InputError as probe does, for a picture that is cut off, and for one of more than LARGEST_PICTURE pixels, which
    is not decoded.
    """
    with _open(path) as container:
        stream = _picture_stream(container, path)
        _refuse_too_large(path, stream)
        stream.thread_type = "NONE"  # starting threads took longer than one picture: 43 ms instead of 25 for one of Kodak's
        if stream.codec_context.name == "mjpeg":  # FFmpeg fills the rest of a cut JPEG with grey; good TIFFs would fail
            stream.codec_context.options = {"err_detect": "explode"}
        first = next(_decoded(container, stream, _Damage()), None)
        if first is None:
            _refuse_unsupported(path, stream)
            raise InputError(f"{path}: its {stream.codec_context.name} picture is cut off or damaged")
        return _to_rgb(first, path, _separate_alpha(path))


def picture_size(path: StrPath) -> tuple[int, int] | None:
    """(width, height) of an image file by its header, before it is turned; None where Pillow knows no image in it.

    Raises InputError where it cannot be read.
    """
    try:
        with open_image(path) as image:
            return image.size
    except (UnidentifiedImageError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def open_image(file: StrPath | BinaryIO) -> Image.Image:
    """Image.open without Pillow's own limit: it warns of 89 million pixels, which are fewer than LARGEST_PICTURE."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_picture_size(path: StrPath, width: int, height: int) -> None:
    """Raises InputError for more than LARGEST_PICTURE pixels."""
    if width * height > LARGEST_PICTURE:
        raise InputError(f"{path}: {too_large(width, height)}, the most in a picture; scale it down first")


def _refuse_too_large(path: StrPath, stream: av.VideoStream) -> None:
    context = stream.codec_context
    size = (context.width, context.height) if context.width else picture_size(path)
    if size:
        check_picture_size(path, *size)


def _refuse_unsupported(path: StrPath, stream: av.VideoStream) -> None:
    """Raises InputError where FFmpeg decodes no picture of this kind at all."""
    name, kind = stream.codec_context.name, None
    if name == "webp":
        with open(path, "rb") as file:
            head = file.read(21)
        if head[12:16] == b"VP8X" and head[20] & 0x02:
            kind = "animated WebP is not supported: convert it to GIF or MP4"
    elif name == "tiff" and (mode := _pillows_tags(path)[0]) in ("LAB", "F"):
        kind = f"TIFF of {'CIELAB' if mode == 'LAB' else 'floating-point'} colours is not supported: convert it to PNG"
    if kind:
        raise InputError(f"{path}: its {name} pictures cannot be decoded ({kind})")


def _refuse_wrong_tiff(path: StrPath) -> None:
    """Raises InputError where FFmpeg gives wrong pixels, without an error."""
    _, tags = _pillows_tags(path)
    as_jpeg, is_ycbcr = tags.get(_COMPRESSION) in (6, 7), tags.get(_PHOTOMETRIC) == 6
    if as_jpeg or is_ycbcr:
        how = "compressed as JPEG" if as_jpeg else "of YCbCr colours"
        raise InputError(f"{path}: a TIFF {how} is not supported: convert it to PNG")


def exif_orientation(path: StrPath) -> int:
    """How a picture is to be turned, 1 to 8 as EXIF counts; 1, not at all, where Pillow finds nothing."""
    found = _pillows_tags(path)[1].get(_ORIENTATION)
    return found if isinstance(found, int) else 1


def _pillows_tags(path: StrPath) -> tuple[str, dict[int, object]]:
    """The mode of an image by Pillow, and its EXIF tags, of a TIFF all of its tags; nothing where Pillow does not read it."""
    with warnings.catch_warnings(action="ignore"):  # damaged tags: Pillow warns or raises
        try:
            with open_image(path) as image:
                return image.mode, dict(image.getexif())
        except (OSError, ValueError, LookupError, SyntaxError, struct.error):
            return "", {}


def resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3): area means along an axis that shrinks, Lanczos (8 taps) along one that grows."""
    h, w = rgb.shape[:2]
    if width < w or height < h:
        rgb = cv2.resize(rgb, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    if width > w or height > h:
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)
    return rgb


def centre_crop(rgb: np.ndarray, aspect: tuple[int, int]) -> np.ndarray:
    """The largest centred part of (H, W, 3) with the aspect w:h, contiguous."""
    h, w = rgb.shape[:2]
    width, height = _cropped_size(w, h, aspect)
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def _cropped_size(width: int, height: int, aspect: tuple[int, int] | None) -> tuple[int, int]:
    if aspect is None:
        return width, height
    w, h = aspect
    return max(1, min(width, round(height * w / h))), max(1, min(height, round(width * h / w)))


class _Clock:
    """Times that run on where the file's start anew, because files were joined (cat a.ts b.ts): each part begins where the
    pictures before it end. shifts: the seconds to add in each part."""

    def __init__(self) -> None:
        self.shifts = [Fraction(0)]
        self._first: Fraction | None = None  # of this part
        self._latest: Fraction | None = None
        self._end: Fraction | None = None

    def shift(self, decoded_s: Fraction | None, time_s: Fraction, shown_s: Fraction) -> Fraction:
        """What to add to time_s, when a picture is due by the file. decoded_s: its place in the order of decoding, if known;
        shown_s: for how long."""
        if decoded_s is not None:
            if self._first is None:
                self._first = decoded_s
            if self._latest is not None and decoded_s < self._latest - _RESTART_S and decoded_s < self._first + _RESTART_S:
                self.shifts.append(self.shifts[-1] + (self._end or 0) - time_s)
                self._first, self._latest, self._end = decoded_s, None, None
            self._latest = decoded_s if self._latest is None else max(self._latest, decoded_s)
        self._end = time_s + shown_s if self._end is None else max(self._end, time_s + shown_s)
        return self.shifts[-1]


def _is_joined(path: StrPath) -> bool:
    """Whether a file's clock starts anew, so that a seek may land in any of its parts. Large files are taken for whole ones."""
    found = os.stat(path)
    return found.st_size <= _LARGEST_SEARCHED and _has_joint(os.fspath(path), found.st_size, found.st_mtime_ns)


def _seeks_astray(path: StrPath) -> bool:
    """Whether the times behind a seek may be others than in the whole: in joined files, and in MPEG-PS, where FFmpeg counts the
    times of most pictures from those before."""
    with _open(path) as container:
        return container.format.name == "mpeg" or _is_joined(path)


@lru_cache(maxsize=16)
def _has_joint(path: str, size: int, changed_ns: int) -> bool:
    with _open(path) as container:
        film = next(iter(_films(container)), None)
        if film is None or container.format.name not in _JOINABLE:
            return False
        for other in container.streams:
            if other is not film:
                other.discard = av.stream.Discard.all
        clock = _Clock()
        with suppress(av.error.FFmpegError):
            for packet in _demuxed(container, film):
                if packet.dts is not None:
                    clock.shift(packet.dts * time_base(packet), Fraction(0), Fraction(0))
                    if len(clock.shifts) > 1:
                        return True
    return False


@dataclass
class _Damage:
    """What went wrong while decoding one file."""

    packets: int = 0
    cut_off: bool = False


def check_input(path: StrPath, what: str = "a video") -> None:
    """Raises InputError, in one line, for a path that is no file that can be read again and again. Opens nothing."""
    file = Path(path)
    if not os.fspath(path):
        raise InputError(f"no input given: its name is empty, name {what}")
    if file.is_dir():
        raise InputError(f"{path} is a folder, not {what}")
    if not file.exists():
        raise InputError(f"{path}: no such file")
    if file.is_fifo():
        raise InputError(f"{path} is a pipe; save it to a file first")
    if not file.is_file():
        raise InputError(f"{path} is a device, not {what}; save what it gives to a file first")


def _open(path: StrPath) -> av.container.InputContainer:
    file = Path(path)
    check_input(path)
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        if _still_grows(file):
            raise InputError(f"{path} is a playlist that still grows (without #EXT-X-ENDLIST): name the video itself")
        # "file:" keeps FFmpeg from reading the name as a URL, pattern_type one with %d as that of many pictures
        options = {"pattern_type": "none"} if "%" in os.fspath(file) else {}
        container = av.open(f"file:{file}", options=options, metadata_errors="replace")
    except PermissionError as error:
        raise InputError(f"{path}: not allowed to read it") from error
    except (av.error.FFmpegError, OSError) as error:
        with open(file, "rb") as raw:
            is_mp4 = raw.read(8)[4:] == b"ftyp"
        reason = "is cut off before its index (moov), so nothing of it can be read" if is_mp4 else "is not a video or image"
        raise InputError(f"{path} {reason}") from error
    return container


def _still_grows(file: Path, *, variants: bool = True) -> bool:
    """Whether an HLS playlist, or with `variants` one that it names, has no end (RFC 8216, section 4.3.3.4): FFmpeg waits for
    the rest of it, and no signal ends that."""
    with open(file, "rb") as raw:
        if raw.read(7) != b"#EXTM3U":
            return False
        text = raw.read(_LONGEST_PLAYLIST)
    if not re.search(rb"^#EXT-X-STREAM-INF:", text, re.MULTILINE):
        return not re.search(rb"^#EXT-X-ENDLIST", text, re.MULTILINE)
    named = re.findall(rb'(?:^|URI=")([^#\s"][^\r\n"]*)', text, re.MULTILINE)
    found = [file.parent / os.fsdecode(name) for name in named if variants]
    return any(_still_grows(one, variants=False) for one in found if one.is_file() and os.access(one, os.R_OK))


def _picture_stream(container: av.container.InputContainer, path: StrPath) -> av.VideoStream:
    streams = _films(container)
    if streams and streams[0].disposition & av.stream.Disposition.dependent:
        raise InputError(f"{path} is a picture in tiles (a HEIC or AVIF grid): convert it to JPEG or PNG first")
    if streams and streams[0].codec_context.name == "tiff":
        _refuse_wrong_tiff(path)
    if streams and streams[0].codec_context.name not in _TEXT_AS_VIDEO:
        streams[0].thread_type = "AUTO"
        return streams[0]
    if "mcode" in container.metadata:
        raise InputError(f"{path} is an .mcode file already: decode it first (mcode decode)")
    has = "only sound" if container.streams.audio else "no pictures"
    raise InputError(f"{path} is not a video: {has} in it" if not streams else f"{path} is a text file, not a video")


def _sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    stream = container.streams.best("audio")
    assert stream is None or isinstance(stream, av.AudioStream)
    return stream


def _choice_of_sound(container: av.container.InputContainer) -> str | None:
    """Which of several sound tracks is kept; None where there is one at most."""
    tracks = container.streams.audio
    chosen = _sound_stream(container)
    if chosen is None or len(tracks) < 2:
        return None
    place = [track.index for track in tracks].index(chosen.index) + 1
    return f"1 of {len(tracks)} sound tracks is kept, number {place}" + (f" ({chosen.language})" if chosen.language else "")


def _films(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video tracks that are no cover pictures of a song and that FFmpeg has a decoder for, the one to show first: the
    default one, and of an animated AVIF the animation. Where none is the default, a tile comes before a thumbnail."""
    kind = av.stream.Disposition
    moves = container.metadata.get("major_brand", "").strip() in _ANIMATION_BRANDS

    def rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
        at, size = stream.disposition, stream.codec_context.width if container.format.name == "ico" else 0
        return not at & kind.default, not at & kind.dependent, moves and stream.frames <= 1, -size

    films = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & kind.attached_pic]
    return sorted(films, key=rank)


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, damage: _Damage, *, from_keyframe: bool = False
) -> Iterator[av.VideoFrame]:
    """Every picture that decodes. Damaged packets are skipped and counted; a broken file ends the pictures.

    from_keyframe: where a seek lands between keyframes, as in MPEG-TS, decoders make grey pictures of what comes first.
    """
    size = container.size
    end, seen = size, 0
    try:
        for packet in _demuxed(container, stream):
            if container.format.name == "yuv4mpegpipe" and packet.pos is not None:
                end = packet.pos + packet.size + _LONGEST_Y4M_HEADER
            elif packet.pos is not None:
                seen = max(seen, packet.pos + packet.size)
            if from_keyframe and not packet.is_keyframe and packet.size:
                continue
            from_keyframe = False
            if packet.is_corrupt and _ends_with(packet, size):
                damage.packets, damage.cut_off = damage.packets + 1, True
                continue
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                damage.packets += 1
    except av.error.FFmpegError:
        damage.cut_off = True
    damage.cut_off |= end < size  # FFmpeg passes over a last picture that is not whole
    if container.format.name == "matroska,webm":
        damage.cut_off |= _has_another_matroska(container.name.removeprefix("file:"), seen)


def _has_another_matroska(path: str, begin: int) -> bool:
    """Whether a file of its own begins behind this byte: FFmpeg reads on in the second of joined ones, in no third."""
    with suppress(OSError), open(path, "rb") as file:  # it may be gone by now
        file.seek(begin)
        return _EBML_HEADER.search(file.read(_LONGEST_INDEX)) is not None
    return False


def _demuxed(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of these streams. Damaged bytes of MPEG-TS and FLV look as if another stream began, at which PyAV 18 raises
    IndexError; nothing of `streams` is lost by it."""
    while True:
        with suppress(IndexError):
            yield from container.demux(*streams)
            return


def time_base(source: av.stream.Stream | av.Packet | av.VideoFrame) -> Fraction:
    """Seconds that one unit of its times stands for. source: read from a file or written to one, so FFmpeg has set it."""
    assert source.time_base is not None
    return source.time_base


def due_s(packet: av.Packet) -> Fraction:
    """When a packet that has a time is due, in seconds on the file's own clock."""
    assert packet.pts is not None
    return packet.pts * time_base(packet)


def _stream_duration(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """Seconds of this stream, where the container tells it for this stream alone (Matroska does so in a tag)."""
    if stream.duration:
        return stream.duration * time_base(stream)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if tag and (seconds := int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])):
        return seconds - _start(stream)
    return None


def _start(stream: av.stream.Stream) -> Fraction:
    return stream.start_time * time_base(stream) if stream.start_time is not None else Fraction(0)


def _seek(container: av.container.InputContainer, stream: av.stream.Stream, time_s: Fraction) -> bool:
    try:
        container.seek(int(time_s / time_base(stream)), stream=stream, backward=True)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


def _assumed_matrix(width: int, height: int) -> int:
    """The colour matrix of pictures that name none, as players assume it."""
    return _BT709 if width >= 1280 or height > 576 else _BT601


def _to_rgb(picture: av.VideoFrame, path: StrPath, alpha: np.ndarray | None = None) -> np.ndarray:
    """Decoded picture of the file `path` -> uint8 (H, W, 3) as displayed. alpha: its opacity from elsewhere, before turning."""
    layout = picture.format
    if picture.colorspace == _UNSPECIFIED and not layout.is_rgb:
        picture.colorspace = _assumed_matrix(picture.width, picture.height)
    has_alpha = layout.has_palette or any(component.is_alpha for component in layout.components)
    try:
        # threads=1: swscale's own threads were ten times slower at 640x360 than one
        rgb = picture.to_ndarray(
            format="rgba" if has_alpha else "rgb24",
            interpolation=_EXACT,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
    except av.error.FFmpegError as error:
        matrix = _MATRIX_NAMES.get(picture.colorspace, f"number {picture.colorspace}")
        colours = f"{layout.name}, matrix {matrix}"
        raise InputError(f"{path}: its colours ({colours}) cannot be read: convert it to BT.709 first") from error
    if has_alpha:
        rgb, alpha = rgb[:, :, :3], rgb[:, :, 3]
    if alpha is not None and alpha.shape == rgb.shape[:2]:
        opacity = alpha[:, :, None].astype(np.uint16)
        rgb = ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return _upright(rgb, _display_matrix(picture, path))


def _separate_alpha(path: StrPath) -> np.ndarray | None:
    """The opacity of a still AVIF or HEIC, which is a second, grey picture: uint8 (H, W); None where there is none."""
    check_input(path)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    is_still = head[4:8] == b"ftyp" and head[8:12].decode("latin-1") in _STILL_BRANDS
    if not is_still or not any(name in head for name in _ALPHA_NAMES):
        return None
    with _open(path) as container:
        shown = _picture_stream(container, path)
        for other in _films(container):
            found, size = other.codec_context, (shown.codec_context.width, shown.codec_context.height)
            is_grey = (found.pix_fmt or "").startswith("gray")
            if other.index != shown.index and is_grey and (found.width, found.height) == size:
                alpha = next(_decoded(container, other, _Damage()), None)
                return None if alpha is None else alpha.to_ndarray(format="gray", dst_color_range=ColorRange.JPEG, threads=1)
    return None


def _display_matrix(picture: av.VideoFrame, path: StrPath) -> tuple[int, int, int, int]:
    """a, b, c, d of ISO/IEC 14496-12's matrix, as signs: x' = a x + c y, y' = b x + d y."""
    try:
        side = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18.1 does not know FFmpeg 8.1's EXIF side data and refuses to list any; its rotation tells no mirroring
        return _MIRRORED.get(exif_orientation(path)) or _TURNED.get(picture.rotation, (1, 0, 0, 1))
    if side is None:
        return 1, 0, 0, 1
    assert isinstance(side, SideData)
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(side), np.int32)[:5])
    if abs(b) > abs(a):
        return 0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0
    return -1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1


def _turns_sideways(picture: av.VideoFrame, path: StrPath) -> bool:
    return _display_matrix(picture, path)[0] == 0


def _upright(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if a == 0:
        rgb = cv2.transpose(rgb)
        a, d = c, b
    if a < 0 or d < 0:
        rgb = cv2.flip(rgb, -1 if a < 0 and d < 0 else 1 if a < 0 else 0)
    return rgb


def _to_yuv(rgb: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """uint8 (H, W, 3) -> picture of limited range, in the matrix that its size implies and tagged so."""
    matrix = _assumed_matrix(rgb.shape[1], rgb.shape[0])
    try:
        picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
            format=pixel_format,
            dst_colorspace=Colorspace.ITU709 if matrix == _BT709 else Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
            threads=1,
        )
    except av.error.ArgumentError as error:
        raise InputError(f"FFmpeg cannot hold {rgb.shape[1]}x{rgb.shape[0]}: choose a smaller --size") from error
    picture.colorspace = matrix
    return picture


def picture_zero(path: StrPath, start_s: float = 0) -> Fraction:
    """When the first picture at or after start_s is due, in seconds on the file's own clock: the sound's time 0, too.

    Reads packets only, decodes nothing. A file whose pictures cannot be found gives start_s.
    """
    begins = picture_zero(path) if start_s > 0 else Fraction(0)
    for seeking in (True, False) if start_s > 0 and not _seeks_astray(path) else (False,):
        with _open(path) as container:
            streams = _films(container) or container.streams.data  # the data track is that of an .mcode file
            if not streams:
                return Fraction(start_s)
            stream = streams[0]
            start = begins + Fraction(start_s) if start_s > 0 else _start(stream)
            if seeking and not _seek(container, stream, start):
                continue
            earliest = _earliest(container, stream, start if start_s > 0 else None, seeking)
            if earliest is not None:
                return earliest
    return start


def _earliest(
    container: av.container.InputContainer, stream: av.stream.Stream, start: Fraction | None, after_seek: bool
) -> Fraction | None:
    """When the first picture at or after `start` is due, by the packets from here on; None where there is none, or where a
    seek overshot: as FrameReader finds it, by the first picture that decodes."""
    earliest: Fraction | None = None
    undated = 0  # packets since `earliest` of which it is not known when they are decoded: Matroska's first after a seek
    guessed = after_seek and container.format.name == "matroska,webm"
    period_s = 1 / Fraction((isinstance(stream, av.VideoStream) and stream.average_rate) or 25)
    clock, runs_on = _Clock(), not after_seek and container.format.name in _JOINABLE
    try:
        for packet, following in pairwise(chain(_demuxed(container, stream), [None])):
            assert packet is not None
            if packet.pts is None or packet.size == 0 or packet.is_discard or (after_seek and not packet.is_keyframe):
                continue
            time_s, decoded_s = due_s(packet), None if packet.dts is None else packet.dts * time_base(packet)
            if guessed and packet.dts == packet.pts:  # as FFmpeg has it until it knows by how much pictures are reordered
                decoded_s = None
            if not runs_on and following is not None and decoded_s is not None and following.dts is not None:
                leap_s = decoded_s - following.dts * time_base(following)
                if leap_s > 0:  # one wrong time, as FrameReader has it
                    time_s, decoded_s = time_s - leap_s - period_s, decoded_s - leap_s - period_s
            if runs_on:
                shift = clock.shift(decoded_s, time_s, (packet.duration or 0) * time_base(packet))
                time_s, decoded_s = time_s + shift, None if decoded_s is None else decoded_s + shift
            if after_seek and start is not None and time_s - start > TICK:
                return None
            after_seek = False
            if start is None or time_s >= start - TICK / 2:
                earliest = time_s if earliest is None else min(earliest, time_s)
            undated += earliest is not None and decoded_s is None
            in_order = decoded_s is not None and earliest is not None and decoded_s >= earliest
            if in_order or undated > _MOST_REORDERED:
                break
    except av.error.FFmpegError:
        pass  # what there is has been seen
    return earliest


def audio_packets(path: StrPath, start_s: float = 0, duration_s: float | None = None) -> Iterator[av.Packet[av.AudioStream]]:
    """The packets of one sound track (the default one, else the best), undecoded; pts 0 is when the first picture at or after
    start_s is shown.

    Cuts fall between packets (some 20 ms); one packet before the cut is kept, with a negative pts, because transform coders
    need it to decode the next. A file that breaks off ends the packets. None at all where there is no sound.
    """
    zero = picture_zero(path, start_s)
    for seeking in (True, False) if start_s > 0 and not _seeks_astray(path) else (False,):
        with _open(path) as container:
            stream = _sound_stream(container)
            if stream is None:
                return
            if seeking and not _seek(container, stream, zero - 1):
                continue  # a seek to before the file fails, and leaves FLV and AVI at a later keyframe
            yield from _cut(container, stream, zero, start_s, duration_s, lambda: None)
            return


def _cut(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    zero: Fraction,
    start_s: float,
    duration_s: float | None,
    lose: Callable[[], None],
) -> Iterator[av.Packet[av.AudioStream]]:
    """lose: called for every packet that is left out though it belongs to the part."""
    film = next(iter(_films(container)), None) if container.format.name in _JOINABLE else None
    for other in container.streams:
        if other is not stream and other is not film:
            other.discard = av.stream.Discard.all
    tick, rate, frame_size = time_base(stream), stream.codec_context.sample_rate or 1, stream.codec_context.frame_size
    # Matroska's milliseconds are too coarse for sound: packets that follow each other are counted in samples.
    fine = min(tick, Fraction(1, rate))
    slack = round(2 * tick / fine) if fine < tick else 0
    longest = int(_LONGEST_SHOWN / (rate * fine))

    def at(packet: av.Packet) -> int | None:
        return None if packet.pts is None else round((packet.pts * tick - zero) / fine)

    due: int | None = None  # where the next packet belongs if the track has no gap
    packets = _demuxed(container, stream) if film is None else _running_on(container, stream, film)
    for packet, following in pairwise(chain(_whole(packets, container.size, lose), [None])):
        assert packet is not None
        pts = due if packet.pts is None else at(packet)
        if pts is None:
            continue  # of a packet that began before the file
        length = round((packet.duration or 0) * tick / fine)
        if frame_size and fine < tick and abs(frame_size - length) * fine <= tick:
            length = frame_size
        length = length if length <= longest else 0
        then = None if following is None else at(following)
        if due is None:
            pts = then - length if then is not None and pts > then else pts
        else:
            # Where what follows goes on as if this packet were in its place, its own time is wrong.
            has_place = then is not None and then > due + length // 2
            if abs(pts - due) <= slack or (has_place and (pts <= due - length or pts >= max(then or 0, due + length))):
                pts = due
        if then is not None and pts < then < pts + length - slack:
            length = then - pts  # else one wrong duration would take the place of what follows
        if start_s > 0 and pts + 2 * length <= 0:
            continue
        if duration_s is not None and pts * fine >= duration_s:
            return
        if abs(pts - (due or 0)) > longest or (due is not None and pts <= due - length):
            lose()  # no container takes a pause so long, or a time that runs backwards
            continue
        due = pts + length
        packet.pts, packet.dts, packet.duration, packet.time_base = pts, pts, length, fine
        yield packet


def _whole(packets: Iterator[av.Packet], size: int, lose: Callable[[], None]) -> Iterator[av.Packet]:
    """Without those that are damaged or empty, up to where a file of so many bytes breaks off."""
    with suppress(av.error.FFmpegError):
        for packet in packets:
            if packet.is_corrupt:
                if not _ends_with(packet, size):
                    lose()
            elif packet.size:
                yield packet


def _ends_with(packet: av.Packet, size: int) -> bool:
    """Whether a file of so many bytes ends inside this packet, or just behind it."""
    return packet.pos is not None and packet.pos + packet.size >= size


def _running_on(
    container: av.container.InputContainer, stream: av.AudioStream, film: av.VideoStream
) -> Iterator[av.Packet[av.AudioStream]]:
    """The packets of the sound, shifted as the pictures are where files were joined (see _Clock)."""
    clock, part, before = _Clock(), 0, None
    waiting: deque[tuple[int, av.Packet]] = deque()  # of a part whose pictures have not begun
    for packet in _demuxed(container, stream, film):
        is_sound = packet.stream_index != film.index
        if packet.size == 0 or packet.pts is None:
            if packet.size and is_sound:
                waiting.append((part, packet))
            continue
        time_s = due_s(packet)
        if not is_sound:
            decoded_s = None if packet.dts is None else packet.dts * time_base(packet)
            clock.shift(decoded_s, time_s, (packet.duration or 0) * time_base(packet))
        else:
            part += before is not None and time_s < before - _RESTART_S
            before = time_s
            waiting.append((part, packet))
        while waiting and (waiting[0][0] < len(clock.shifts) or len(waiting) > _MOST_WAITING):
            yield _shifted(*waiting.popleft(), clock)
    while waiting:
        yield _shifted(*waiting.popleft(), clock)


def _shifted(part: int, packet: av.Packet, clock: _Clock) -> av.Packet:
    if packet.pts is not None:
        packet.pts += round(clock.shifts[min(part, len(clock.shifts) - 1)] / time_base(packet))
    return packet


def probe_audio(path: StrPath) -> bool:
    """Whether a file holds sound that can be read."""
    with _open(path) as container:
        stream = _sound_stream(container)
        return stream is not None and stream.codec_context is not None


class AudioTrack:
    """The sound of a file on its way into another container: copied where that container takes it, else turned into AAC.

    stream: the template for the output (see add_sound), None where there is no sound or it cannot be read.
    """

    def __init__(self, path: StrPath, container_format: str, start_s: float = 0, duration_s: float | None = None) -> None:
        self._path, self._lost = path, 0
        self._reencoded: str | None = None  # the codec that had to be replaced
        self._unreadable = False
        zero = picture_zero(path, start_s)
        self._container = _open(path)
        self._buffers: list[BinaryIO] = []
        self._choice = _choice_of_sound(self._container)
        stream = _sound_stream(self._container)
        usable = stream is not None and stream.codec_context is not None
        self.stream: av.AudioStream | None = stream if usable else None
        self._packets: Iterator[av.Packet[av.AudioStream]] = iter(())
        self._next: av.Packet[av.AudioStream] | None = None
        if stream is not None and not usable:
            self._give_up()
        if self.stream is not None:
            self._packets = _cut(self._container, self.stream, zero, start_s, duration_s, self.lose)
            try:
                # AAC from MPEG-TS carries ADTS headers; FFmpeg's MP4 muxer takes them off
                if self.stream.codec_context.name == "aac" and not self.stream.codec_context.extradata:
                    self._go_through_mp4(reencode=False)
                self._next = next(self._packets, None)
                if self.stream and self._next and not _takes(container_format, self.stream, self._next):
                    self._packets = chain([self._next], self._packets)
                    self._go_through_mp4(reencode=True)
                    self._next = next(self._packets, None)
            except (av.error.FFmpegError, ValueError):  # PyAV's ValueError: sound that changes its form midway
                self._give_up()
        if self._next is None:
            if self._lost:
                self._give_up()
            self.stream = None

    def _give_up(self) -> None:
        self._unreadable, self._packets, self._next = True, iter(()), None

    def lose(self) -> None:
        """A packet could not be written."""
        self._lost += 1

    def warnings(self, output: str) -> list[str]:
        """What has become of the sound but a copy, and why. output: the name of what it goes into."""
        if self._unreadable:
            return [f"the sound of {self._path} cannot be read: it is left out"]
        told = []
        if self.stream and self._choice:
            told.append(f"{self._path}: {self._choice}")
        if self.stream and self._reencoded:
            told.append(f"{output} cannot hold {self._reencoded} sound: it is AAC now")
        if self._lost:
            told.append(f"the sound of {self._path} is damaged: {self._lost:,} of its packets left out")
        return told

    def _go_through_mp4(self, reencode: bool) -> None:
        assert self.stream is not None
        buffer = tempfile.TemporaryFile()  # noqa: SIM115 - lives until close()
        self._buffers.append(buffer)
        with av.open(buffer, "w", format="mp4") as output:
            if reencode:
                self._reencoded = self.stream.codec_context.name
                _encode_aac(self._packets, self.stream, output)
            else:
                copy = add_sound(output, self.stream)
                for packet in self._packets:
                    packet.stream = copy
                    try:
                        output.mux(packet)
                    except av.error.FFmpegError:
                        self.lose()
        self._container.close()
        self._packets = iter(())
        buffer.seek(0)
        if buffer.read(1) == b"":
            if reencode:
                self._give_up()  # there were packets, and none of them could be decoded
            return
        buffer.seek(0)
        self._container = av.open(buffer, "r")
        self.stream = next(iter(self._container.streams.audio), None)
        if self.stream is None or not self.stream.codec_context.extradata:
            self._give_up()
        else:
            self._packets = (p for p in self._container.demux(self.stream) if p.size)

    def until(self, time_s: Fraction | None) -> Iterator[av.Packet]:
        """The packets not given yet that start before time_s (None: all)."""
        while self._next is not None and (time_s is None or due_s(self._next) < time_s):
            packet, self._next = self._next, next(self._packets, None)
            yield packet

    @property
    def first(self) -> av.Packet:
        """The next packet, which stays the next."""
        assert self._next is not None, "there is sound only where stream is not None"
        return self._next

    def close(self) -> None:
        self._container.close()
        for buffer in self._buffers:
            buffer.close()


def add_sound(output: av.container.OutputContainer, source: av.AudioStream) -> av.AudioStream:
    """A track for the packets of `source`. Raises ValueError where this container takes no such codec."""
    track = output.add_stream_from_template(source)
    channels = track.codec_context.channels
    # AVI and Matroska do not say what each channel of PCM is for, and MP4 wants to know.
    if track.layout.name == f"{channels} channels" and channels <= len(_LAYOUTS):
        track.codec_context.layout = _LAYOUTS[channels - 1]
    return track


def _takes(container_format: str, stream: av.AudioStream, first: av.Packet) -> bool:
    """Whether a container can be begun with this sound: its header is made with the first packet."""
    packet = av.Packet(bytes(first))
    packet.pts, packet.dts, packet.duration, packet.time_base = first.pts, first.dts, first.duration, first.time_base
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as trial:
            packet.stream = add_sound(trial, stream)
            trial.mux(packet)
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _encode_aac(
    packets: Iterator[av.Packet[av.AudioStream]], stream: av.AudioStream, output: av.container.OutputContainer
) -> None:
    rate = stream.codec_context.sample_rate
    rate = rate if rate in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000) else 48000
    channels = max(1, min(stream.codec_context.channels, _MOST_AAC_CHANNELS))
    layout = _LAYOUTS[channels - 1]
    encoder = output.add_stream("aac", rate=rate, layout=layout, bit_rate=64_000 * channels)
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet is a short silence
        for frame in frames:
            for piece in resampler.resample(frame):
                output.mux(encoder.encode(piece))
    for piece in resampler.resample(None):
        output.mux(encoder.encode(piece))
    output.mux(encoder.encode(None))


class OutputFile:
    """A file that gets its name only when it is whole: written beside it as NAME.partial-PID.EXT, renamed by commit().

    A device or pipe that exists (/dev/null) is written directly; but with a remedy what cannot be seeked in is refused. Raises
    InputError where the file exists (without force), cannot be written, or the disk is full; after that discard() leaves
    nothing behind. Unbuffered, so that what was written
    survives a kill. Offers write, seek, tell, seekable and closed, which is what PyAV needs.
    """

    def __init__(self, path: StrPath, *, force: bool = False, remedy: str | None = None) -> None:
        self.path = Path(path)
        final = Path(os.path.realpath(path))
        _check_output(path, force)
        refused = InputError(f"{self.path} is a pipe, and this cannot be written to one: {remedy}")
        if remedy is not None and self.path.is_fifo():  # opening it would wait for its reader
            raise refused
        self._final = final if final.is_file() or not final.exists() else None
        self._force = force
        suffix = final.suffix if len(final.suffix) < 20 else ""
        self._temporary = final.with_name(partial_name(final.stem, suffix)) if self._final else final
        try:
            self._raw = open(self._temporary, "w+b" if self._final else "wb", buffering=0)  # noqa: SIM115 - until commit()
        except OSError as error:
            raise _output_error(self.path, error) from error
        if remedy is not None and not self._raw.seekable():
            self.discard()
            raise refused

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            raise _output_error(self.path, error) from error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return self._raw.seekable()

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def commit(self) -> None:
        """Give the file its name. Nothing may be written after."""
        try:
            self._raw.close()
            if self._final:
                _give_name(self._temporary, self._final, self._force)
        except OSError as error:
            self.discard()
            raise _output_error(self.path, error) from error

    def discard(self) -> None:
        """Remove what was written. Does nothing after commit()."""
        self._raw.close()
        if self._final:
            self._temporary.unlink(missing_ok=True)


def check_frames_output(path: StrPath, *, force: bool = False) -> None:
    """Raises InputError where FrameWriter would not begin to write to `path`: by its name, or by what is there."""
    name, file = os.fspath(path), Path(path)
    if name == "-":
        return
    if name and (suffix := file.suffix.lower()) not in (".mp4", ".mkv", ".y4m", ".png"):
        raise InputError(f"cannot write {suffix or 'a file without extension'}: use .mp4, .mkv, .y4m or .png ({name})")
    if file.suffix.lower() == ".png" and "%" in file.name:
        if not re.fullmatch(r"[^%]*%(0\d+)?d[^%]*", file.name):
            raise InputError(f"{name}: a pattern holds one %d or %05d, as in frames-%05d.png")
        _check_output(file.with_name(file.name % 1), force)
    else:
        _check_output(path, force)


def _check_output(path: StrPath, force: bool) -> None:
    if not os.fspath(path):
        raise InputError("no output given: its name is empty, name a file")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    if path.is_file() and not force:
        raise InputError(f"{path} exists: use --force to replace it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent}: no such folder to write to")


def _give_name(temporary: Path, final: Path, force: bool) -> None:
    """Without force FileExistsError where a file has appeared there meanwhile, on file systems that have hard links."""
    if final.exists() and not final.is_file():  # a device or pipe
        with open(final, "wb") as file:
            file.write(temporary.read_bytes())
        temporary.unlink()
        return
    give_name(temporary, final, replace=force)


def _output_error(path: StrPath, error: OSError) -> InputError:
    if error.errno == errno.EEXIST:
        return InputError(f"{path} exists: use --force to replace it")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"no space left on {Path(path).absolute().parent} for {Path(path).name}")
    return InputError(f"cannot write {path}: {error.strerror}")


class FrameWriter:
    """Frames into a file, chosen by the name of `path`:

    .mp4, .mkv      H.264 (crf 14, yuv420p; yuv444p where a side is odd, because 4:2:0 has no odd sizes), with the sound of
                    audio_from. MP4 keeps every timestamp exactly; Matroska rounds to its milliseconds and tells `fps`, where
                    given, as its rate.
    .y4m, "-"       raw 4:4:4 video ("-": to standard output). It has one frame rate and no timestamps: frames are neither
                    repeated nor dropped, the rate is `fps`, else the average (on standard output: the first gap's).
    .png            one frame. frames-%05d.png: frames numbered from 1.

    width, height: of every frame. The sound is copied; `warnings` says where it had to be turned into AAC or left out.
    start_s, duration_s: the part of audio_from that belongs to the frames (see audio_packets). Everything is written under
    temporary names in the same folder, given its name by close() and removed by abort(); as a context manager it closes,
    or aborts on any exception. Raises InputError for an unusable name, an existing file (without force), a full disk.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        width: int,
        height: int,
        fps: Fraction | float | None = None,
        audio_from: StrPath | None = None,
        start_s: float = 0,
        duration_s: float | None = None,
        force: bool = False,
    ) -> None:
        name = os.fspath(path)
        suffix = Path(name).suffix.lower()
        check_frames_output(path, force=force)
        if width * height > LARGEST_PICTURE:
            raise InputError(f"{name}: {too_large(width, height)}; choose a smaller --size")
        self.width, self.height = width, height
        self.frames = 0
        self._done = False
        self._held: Frame | None = None  # a frame is written when the next one tells how long it is shown
        self._gap = TICKS_PER_S // 25 if fps is None else max(1, round(TICKS_PER_S / fps))
        self._sink: _Sink
        if suffix in (".mp4", ".mkv"):
            self._sink = _Movie(path, suffix, width, height, fps, audio_from, start_s, duration_s, force)
        elif suffix == ".y4m" or name == "-":
            self._sink = _Y4m(path, width, height, fps, force)
        else:
            self._sink = _Pngs(name, force)
        if audio_from is not None and not isinstance(self._sink, _Movie) and probe_audio(audio_from):
            self._sink.warnings.append(f"{name} cannot hold sound: it is left out")

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._sink.warnings)

    def push(self, frame: Frame) -> None:
        """Append a frame. Raises ValueError for another size or a pts that does not increase."""
        if (frame.width, frame.height) != (self.width, self.height):
            raise ValueError(f"frames here are {self.width}x{self.height}, not {frame.width}x{frame.height}")
        if self._held is not None:
            if frame.pts <= self._held.pts:
                raise ValueError(f"pts must increase: {frame.pts} after {self._held.pts}")
            self._gap = frame.pts - self._held.pts
            self._put(self._held)
        self._held = frame

    def _put(self, frame: Frame) -> None:
        self._sink.put(frame, self._gap)
        self.frames += 1

    def close(self, last_duration_ticks: int | None = None) -> None:
        """Write what is held, finish the file and give it its name. The last frame is shown as long as the one before,
        unless told. Does nothing after close() or abort().
        """
        if self._done:
            return
        self._done = True
        try:
            if self._held is None and self.frames == 0:
                raise InputError("no frame to write")
            if self._held is not None:
                self._gap = min(last_duration_ticks or self._gap, _LONGEST_SHOWN)
                self._put(self._held)
                self._held = None
            self._sink.finish()
        except BaseException:
            self._sink.discard()
            raise

    def abort(self) -> None:
        """Remove everything written. Does nothing after close()."""
        if not self._done:
            self._done = True
            self._sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.abort()


class _Sink(Protocol):
    warnings: list[str]

    def put(self, frame: Frame, duration: int) -> None: ...

    def finish(self) -> None: ...

    def discard(self) -> None: ...


class _Movie:
    def __init__(
        self,
        path: StrPath,
        suffix: str,
        width: int,
        height: int,
        fps: Fraction | float | None,
        audio_from: StrPath | None,
        start_s: float,
        duration_s: float | None,
        force: bool,
    ) -> None:
        self.warnings: list[str] = []
        container_format = "mp4" if suffix == ".mp4" else "matroska"
        self._audio = None if audio_from is None else AudioTrack(audio_from, container_format, start_s, duration_s)
        self._durations: dict[int, int] = {}
        self._file = OutputFile(path, force=force, remedy="use .mkv or .y4m" if suffix == ".mp4" else None)
        try:
            self._open(suffix, container_format, width, height, fps)
        except BaseException:
            self.discard()
            raise

    def _open(self, suffix: str, container_format: str, width: int, height: int, fps: Fraction | float | None) -> None:
        self._output = av.open(self._file, "w", format=container_format)
        # No B-frames: every packet's time is its frame's own, and no edit list is needed to start at 0.
        options = {"crf": "14", "preset": "veryfast", "bf": "0"}
        rate = _as_rate(fps or 25)
        self._video = self._output.add_stream("libx264", rate=rate, options=options)
        if fps is None and suffix == ".mkv":  # Matroska says a rate, and players believe it: none rather than a wrong one
            self._video.codec_context.framerate = Fraction(0)
            self._video.codec_context.options |= {"x264-params": f"fps={rate}"}  # else x264 claims its highest level
        self._video.width, self._video.height = width, height
        self._pixel_format = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
        self._video.pix_fmt = self._pixel_format
        self._video.time_base = self._video.codec_context.time_base = TICK
        self._video.thread_type = "AUTO"
        matrix = _assumed_matrix(width, height)
        self._video.codec_context.colorspace = matrix
        self._video.codec_context.color_primaries = self._video.codec_context.color_trc = matrix
        self._video.codec_context.color_range = int(ColorRange.MPEG)
        self._sound = None
        if self._audio and self._audio.stream is not None:
            self._sound = add_sound(self._output, self._audio.stream)

    def put(self, frame: Frame, duration: int) -> None:
        if duration > _LONGEST_SHOWN and self._file.path.suffix.lower() == ".mp4":
            pause_h = duration / TICKS_PER_S / 3600
            raise InputError(f"{self._file.path}: MP4 cannot hold a pause of {pause_h:.1f} hours: use .mkv")
        picture = _to_yuv(frame.rgb, self._pixel_format)
        picture.pts, picture.time_base, picture.duration = frame.pts, TICK, duration
        self._durations[frame.pts] = duration
        self._mux_video(picture)
        self._mux_sound((frame.pts + duration) * TICK)

    def _mux_video(self, picture: av.VideoFrame | None) -> None:
        try:
            packets = self._video.encode(picture)
        except av.error.FFmpegError as error:
            size = f"{self._video.width}x{self._video.height}"
            raise InputError(f"H.264 cannot hold {size} ({error.strerror}): use .y4m or frames-%05d.png") from error
        for packet in packets:
            assert packet.pts is not None
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            try:
                self._output.mux(packet)
            except av.error.FFmpegError as error:
                path = self._file.path
                raise InputError(f"{path}: {path.suffix} cannot hold this, use .y4m or .png ({error.strerror})") from error

    def _mux_sound(self, time_s: Fraction | None) -> None:
        if self._audio is not None and self._sound is not None:
            for packet in self._audio.until(time_s):
                packet.stream = self._sound
                try:
                    self._output.mux(packet)
                except av.error.FFmpegError:
                    self._audio.lose()

    def finish(self) -> None:
        self._mux_video(None)
        self._mux_sound(None)
        self._output.close()
        if self._audio is not None:
            self.warnings += self._audio.warnings(self._file.path.suffix)
        self._file.commit()
        self._release()

    def discard(self) -> None:
        self._file.discard()  # first: PyAV writes no trailer into a closed file
        self._release()

    def _release(self) -> None:
        if self._audio is not None:
            self._audio.close()


class _Y4m:
    """YUV4MPEG2, C444, limited range (the format of mjpegtools; see its yuv4mpeg(5))."""

    def __init__(self, path: StrPath, width: int, height: int, fps: Fraction | float | None, force: bool) -> None:
        self.warnings: list[str] = []
        self._file = _StandardOutput() if os.fspath(path) == "-" else OutputFile(path, force=force)
        self._size, self._fps = (width, height), fps
        self._count = self._end = 0

    def _header(self, rate: Fraction) -> bytes:
        width, height = self._size
        # fixed width, so that the average rate can replace the first guess
        fraction = f"{rate.numerator:010d}:{rate.denominator:010d}"
        return f"YUV4MPEG2 W{width} H{height} F{fraction} Ip A1:1 C444 XCOLORRANGE=LIMITED\n".encode()

    def put(self, frame: Frame, duration: int) -> None:
        if self._count == 0:
            self._file.write(self._header(_as_rate(self._fps or Fraction(TICKS_PER_S, duration))))
        self._file.write(b"FRAME\n" + _to_yuv(frame.rgb, "yuv444p").to_ndarray().tobytes())
        self._count, self._end = self._count + 1, frame.pts + duration

    def finish(self) -> None:
        if self._fps is None and isinstance(self._file, OutputFile) and self._file.seekable():
            self._file.seek(0)
            self._file.write(self._header(_as_rate(Fraction(self._count * TICKS_PER_S, self._end))))
        self._file.commit()

    def discard(self) -> None:
        self._file.discard()


def _as_rate(fps: Fraction | float) -> Fraction:
    """29.97002997 -> 30000/1001, but nothing is rounded by more than a millionth."""
    exact = Fraction(fps)
    neat = exact.limit_denominator(1001)
    return neat if abs(neat / exact - 1) < 1e-6 else exact.limit_denominator(10**6)


class _StandardOutput:
    """Standard output in the place of an OutputFile."""

    def write(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
        except BrokenPipeError:  # its reader has had enough
            raise
        except OSError as error:
            raise _output_error("standard output", error) from error

    def commit(self) -> None:
        try:
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _output_error("standard output", error) from error

    def discard(self) -> None:
        pass


class _Pngs:
    """One PNG, or numbered ones; all of them wait in a temporary folder beside their place until the last is written."""

    def __init__(self, pattern: str, force: bool) -> None:
        self.warnings: list[str] = []
        path = Path(os.path.realpath(pattern))
        self._folder, self._name = path.parent, path.name
        self._force = force
        self._many = "%" in self._name
        try:
            self._waiting = Path(tempfile.mkdtemp(prefix=f".partial-{os.getpid()}-", dir=self._folder))
        except OSError as error:
            raise _output_error(pattern, error) from error
        self._count = 0

    def _path(self, number: int) -> Path:
        return self._folder / (self._name % number if self._many else self._name)

    def put(self, frame: Frame, duration: int) -> None:
        self._count += 1
        if self._count > 1 and not self._many:
            raise InputError(f"{self._name} holds one frame, the video has more: use frames-%05d.png")
        final = self._path(self._count)
        _check_output(final, self._force)
        encoded = cv2.imencode(".png", cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))[1]
        try:
            (self._waiting / final.name).write_bytes(encoded.tobytes())
        except OSError as error:
            raise _output_error(final, error) from error

    def finish(self) -> None:
        for number in range(1, self._count + 1):
            final = self._path(number)
            try:
                _give_name(self._waiting / final.name, final, self._force)
            except OSError as error:
                raise _output_error(final, error) from error
        self._waiting.rmdir()

    def discard(self) -> None:
        shutil.rmtree(self._waiting, ignore_errors=True)
