"""Frames out of files: what a video or image holds, its frames in order of time, and single pictures."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.video.images import refuse_too_large, refuse_unsupported
from mcode.video.paths import StrPath, check_input
from mcode.video.pixels import centre_crop, check_size, cropped_size, resize, to_rgb, turns_sideways
from mcode.video.streams import STILL_BRANDS, Damage, decoded, demuxed, films, open_container, picture_stream, sound_stream
from mcode.video.times import (
    JOINABLE,
    LONGEST_SHOWN,
    TICK,
    Clock,
    due_s,
    is_joined,
    seek,
    seeks_astray,
    start_of,
    stream_duration,
    time_base,
)

_ALPHA_NAMES = (b":auxiliary:alpha", b":hevc:2015:auxid:1")  # of AVIF and of HEIC (ISO/IEC 23008-12)
_STEPS_BACK_S = (0, 10, 30)  # a seek that lands behind the last keyframe before its time (MPEG-TS) is tried further back
_LONGEST_RUN_UP_S = 600  # decoding takes a twentieth of encoding's time


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
    with open_container(path) as container:
        stream = picture_stream(container, path)
        first = next(decoded(container, stream, Damage()), None)
        if first is None:
            refuse_too_large(path, stream)  # beyond 268 million pixels FFmpeg does not even tell the size
            refuse_unsupported(path, stream)
            raise InputError(f"{path}: its {stream.codec_context.name} pictures cannot be decoded")
        turned = turns_sideways(first, path)
        audio = sound_stream(container)
        brand = container.metadata.get("major_brand", "").strip()
        is_image = (
            container.format.name.endswith("_pipe") or container.format.name in ("image2", "ico") or brand in STILL_BRANDS
        )
        duration = stream_duration(stream)
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
        self._crop_to = crop_to
        self.width, self.height = size or cropped_size(self.info.width, self.info.height, crop_to)
        self.truncated: str | None = None
        self.damaged = 0
        self.runs_backwards, self.retimed = False, 0
        self.last_duration_ticks: int | None = None
        self._period_ticks = max(1, round(TICKS_PER_S / (self.info.average_fps or 25)))
        self._period_s = self._period_ticks * TICK
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
        if self.info.is_image or not length_s or self._zero() is None or is_joined(self.path):
            return False
        with open_container(self.path) as container:
            stream = picture_stream(container, self.path)
            counted = container.format.name in ("avi", "mpeg")
            middle = start_of(stream) + Fraction(length_s) / 2
            if counted or not seek(container, stream, middle):
                return False
            with suppress(av.error.FFmpegError):
                landed = next((p for p in demuxed(container, stream) if p.pts is not None), None)
                return landed is not None and middle - due_s(landed) < _LONGEST_RUN_UP_S
        return False

    def _zero(self) -> Fraction | None:
        """When the first picture is due, on the file's own clock; None where it does not say."""
        return next(self._from_start(Damage(), None), (None, None))[1]

    def _read(self, first: int | None) -> Iterator[Frame]:
        """first: leaves out the frames of a lower pts; None: they start at pts 0, with the first one at or after start_s."""
        self.truncated, self.damaged, self.last_duration_ticks = None, 0, None
        self.runs_backwards = False
        damage = Damage()
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
            zero = time_s if zero is None else zero
            pts = self._in_order(_ticks(time_s, zero), last, _ticks(then_s, zero))
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
                yield Frame(self._fitted(to_rgb(picture, self.path, alpha)), pts)
        self.damaged = damage.packets
        if last is None and self.start_s > 0:
            raise InputError(f"{self.path}: nothing to show from {self.start_s:g} s on, the video ends before")
        if not self.info.is_image:
            self.truncated = self._shortfall(damage, end)

    def _in_order(self, pts: int | None, last: int | None, then: int | None) -> int:
        """The time of a frame that is due at pts by the file: behind the last one's and, where it can be, before the next's."""
        if last is None:
            return pts or 0
        if pts is None:
            return last + self._period_ticks
        if last < pts and (then is None or then <= last or pts <= then):
            return pts
        # Where the next picture is behind the last one, this one belongs between them; else the clock runs backwards.
        self.runs_backwards, self.retimed = True, self.retimed + 1
        return last + 1 if then is None or then <= last else min(last + self._period_ticks, (last + then + 1) // 2)

    def _from_start(self, damage: Damage, start: Fraction | None) -> Iterator[tuple[av.VideoFrame, Fraction | None]]:
        """Decoded pictures at or after start (None: all), with their times: all in seconds on the file's own clock."""
        targets: list[Fraction] = []
        if start is not None and not seeks_astray(self.path):
            targets = [start - back_s for back_s in _STEPS_BACK_S if back_s < start - self._began]
        for target in (*targets, None):
            damage.packets, damage.cut_off = 0, False  # of a try before
            with open_container(self.path) as container:
                stream = picture_stream(container, self.path)
                self._began = start_of(stream)
                self._promise_is_of_pictures = stream_duration(stream) is not None or not container.streams.audio
                if target is not None and not seek(container, stream, target):
                    continue
                landed_early = target is None
                counted_s = self._began
                given = False
                pictures = self._timed(container, decoded(container, stream, damage, from_keyframe=target is not None))
                for (picture, time_s), (_, then_s) in pairwise(chain(pictures, [(None, None)])):
                    assert picture is not None
                    moved = False
                    if not given and time_s is not None and then_s is not None and then_s < time_s:
                        time_s = then_s - self._period_s  # one wrong time is no place to begin at
                        moved = self.runs_backwards = True
                    if start is not None:
                        if time_s is None and not landed_early:
                            break  # raw H.264 and H.265 hold no times: count the pictures from the beginning
                        due = counted_s if time_s is None else time_s
                        counted_s = due + self._period_s
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
        clock = Clock()
        for picture in pictures:
            # AVI stores no presentation times: FFmpeg's guesses run backwards at B-frames, the dts do not
            stamp = picture.dts if container.format.name == "avi" else picture.pts
            time_s = None
            if stamp is not None:
                time_s = stamp * time_base(picture)
                shown_s = picture.duration * time_base(picture) or self._period_s
                if container.format.name in JOINABLE:
                    time_s += clock.shift(time_s, time_s, shown_s)
                    self.runs_backwards |= len(clock.shifts) > 1
            yield picture, time_s

    def _fitted(self, rgb: np.ndarray) -> np.ndarray:
        if self._crop_to is not None:
            rgb = centre_crop(rgb, self._crop_to)
        return resize(rgb, self.width, self.height)  # also where the picture changes its size midway

    def _shown_ticks(self, picture: av.VideoFrame, most: int | None) -> int | None:
        if self.info.is_image or not picture.duration:
            return None
        ticks = max(1, round(picture.duration * time_base(picture) * TICKS_PER_S))
        return min(ticks, most or ticks, LONGEST_SHOWN)

    def _end(self, pts: int, zero: Fraction | None, picture: av.VideoFrame) -> Fraction:
        shown = picture.duration * time_base(picture) if picture.duration else self._period_s
        # the file's first time may be a wrong one, later than zero
        skipped = Fraction(self.start_s) if zero is None else max(Fraction(0), zero - self._began)
        return skipped + pts * TICK + shown

    def _shortfall(self, damage: Damage, end: Fraction | None) -> str | None:
        have, promised = float(end or 0), self.info.duration_s
        two_frames_s = 2 * self._period_ticks / TICKS_PER_S
        short = promised is not None and self._promise_is_of_pictures and have < promised - two_frames_s
        if not (short or damage.cut_off):
            return None
        whole = f"{promised or 0:.1f}"
        return f"{have:.1f} of {whole} s" if float(whole) > round(have, 1) else f"{have:.1f} s, then it breaks off"


def _ticks(time_s: Fraction | None, zero: Fraction | None) -> int | None:
    return None if time_s is None or zero is None else round((time_s - zero) * TICKS_PER_S)


def frames_at(path: StrPath, wanted: Collection[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, from 0 on and in their order, with FrameReader's very pixels; the others are not made RGB.
    As far as the file can be decoded: what comes behind damage is left out. Raises InputError as probe does."""
    last, damage = max(wanted, default=-1), Damage()
    with open_container(path) as container:
        pictures = decoded(container, picture_stream(container, path), damage)
        for index, picture in enumerate(pictures):
            if damage.packets or index > last:
                return
            if index in wanted:
                yield to_rgb(picture, path)


def read_picture(path: StrPath) -> np.ndarray:
    """The picture of an image file, or a video's first: uint8 (H, W, 3), the very pixels that FrameReader gives.

    Raises InputError as probe does, for a picture that is cut off, and for one of more than LARGEST_PICTURE pixels, which
    is not decoded.
    """
    with open_container(path) as container:
        stream = picture_stream(container, path)
        refuse_too_large(path, stream)
        stream.thread_type = "NONE"  # starting threads took longer than one picture: 43 ms instead of 25 for one of Kodak's
        if stream.codec_context.name == "mjpeg":  # FFmpeg fills the rest of a cut JPEG with grey; good TIFFs would fail
            stream.codec_context.options = {"err_detect": "explode"}
        first = next(decoded(container, stream, Damage()), None)
        if first is None:
            refuse_unsupported(path, stream)
            raise InputError(f"{path}: its {stream.codec_context.name} picture is cut off or damaged")
        return to_rgb(first, path, _separate_alpha(path))


def _separate_alpha(path: StrPath) -> np.ndarray | None:
    """The opacity of a still AVIF or HEIC, which is a second, grey picture: uint8 (H, W); None where there is none."""
    check_input(path)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    is_still = head[4:8] == b"ftyp" and head[8:12].decode("latin-1") in STILL_BRANDS
    if not is_still or not any(name in head for name in _ALPHA_NAMES):
        return None
    with open_container(path) as container:
        shown = picture_stream(container, path)
        for other in films(container):
            found, size = other.codec_context, (shown.codec_context.width, shown.codec_context.height)
            is_grey = (found.pix_fmt or "").startswith("gray")
            if other.index != shown.index and is_grey and (found.width, found.height) == size:
                alpha = next(decoded(container, other, Damage()), None)
                return None if alpha is None else alpha.to_ndarray(format="gray", dst_color_range=ColorRange.JPEG, threads=1)
    return None
