"""Frames into files: MP4 and Matroska with sound, y4m, PNG."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2
from av.video.reformatter import ColorRange

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.packet import LARGEST_PICTURE, too_large
from mcode.video.output import OutputFile, StandardOutput, move_into_place
from mcode.video.paths import StrPath, check_output, output_error
from mcode.video.pixels import assumed_matrix, to_yuv
from mcode.video.sound import AudioTrack, add_sound, probe_audio
from mcode.video.times import LONGEST_SHOWN, TICK

_FORMATS = {".mp4": "mp4", ".mkv": "matroska"}  # FFmpeg's names


def check_frames_output(path: StrPath, *, force: bool = False) -> None:
    """Raises InputError where FrameWriter would not begin to write to `path`: by its name, or by what is there."""
    name, file = os.fspath(path), Path(path)
    if name == "-":
        return
    if name and (suffix := file.suffix.lower()) not in (*_FORMATS, ".y4m", ".png"):
        raise InputError(f"cannot write {suffix or 'a file without extension'}: use .mp4, .mkv, .y4m or .png ({name})")
    if file.suffix.lower() == ".png" and "%" in file.name:
        if not re.fullmatch(r"[^%]*%(0\d+)?d[^%]*", file.name):
            raise InputError(f"{name}: a pattern holds one %d or %05d, as in frames-%05d.png")
        check_output(file.with_name(file.name % 1), force)
    else:
        check_output(path, force)


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
        if suffix in _FORMATS:
            audio = None if audio_from is None else AudioTrack(audio_from, _FORMATS[suffix], start_s, duration_s)
            self._sink = _Movie(path, width, height, fps, audio, force)
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
                self._gap = min(last_duration_ticks or self._gap, LONGEST_SHOWN)
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
        width: int,
        height: int,
        fps: Fraction | float | None,
        audio: AudioTrack | None,
        force: bool,
    ) -> None:
        self.warnings: list[str] = []
        self._audio = audio
        self._durations: dict[int, int] = {}
        self._format = _FORMATS[Path(path).suffix.lower()]
        self._file = OutputFile(path, force=force, remedy="use .mkv or .y4m" if self._format == "mp4" else None)
        try:
            self._open(width, height, fps)
        except BaseException:
            self.discard()
            raise

    def _open(self, width: int, height: int, fps: Fraction | float | None) -> None:
        self._output = av.open(self._file, "w", format=self._format)
        # No B-frames: every packet's time is its frame's own, and no edit list is needed to start at 0.
        options = {"crf": "14", "preset": "veryfast", "bf": "0"}
        rate = _as_rate(fps or 25)
        self._video = self._output.add_stream("libx264", rate=rate, options=options)
        if fps is None and self._format == "matroska":  # it says a rate, and players believe it: none rather than a wrong one
            self._video.codec_context.framerate = Fraction(0)
            self._video.codec_context.options |= {"x264-params": f"fps={rate}"}  # else x264 claims its highest level
        self._video.width, self._video.height = width, height
        self._pixel_format = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
        self._video.pix_fmt = self._pixel_format
        self._video.time_base = self._video.codec_context.time_base = TICK
        self._video.thread_type = "AUTO"
        matrix = assumed_matrix(width, height)
        self._video.codec_context.colorspace = matrix
        self._video.codec_context.color_primaries = self._video.codec_context.color_trc = matrix
        self._video.codec_context.color_range = int(ColorRange.MPEG)
        self._sound = None
        if self._audio and self._audio.stream is not None:
            self._sound = add_sound(self._output, self._audio.stream)

    def put(self, frame: Frame, duration: int) -> None:
        if duration > LONGEST_SHOWN and self._format == "mp4":
            pause_h = duration / TICKS_PER_S / 3600
            raise InputError(f"{self._file.path}: MP4 cannot hold a pause of {pause_h:.1f} hours: use .mkv")
        picture = to_yuv(frame.rgb, self._pixel_format)
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
        self._file = StandardOutput() if os.fspath(path) == "-" else OutputFile(path, force=force)
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
        self._file.write(b"FRAME\n" + to_yuv(frame.rgb, "yuv444p").to_ndarray().tobytes())
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
            raise output_error(pattern, error) from error
        self._count = 0

    def _path(self, number: int) -> Path:
        return self._folder / (self._name % number if self._many else self._name)

    def put(self, frame: Frame, duration: int) -> None:
        self._count += 1
        if self._count > 1 and not self._many:
            raise InputError(f"{self._name} holds one frame, the video has more: use frames-%05d.png")
        final = self._path(self._count)
        check_output(final, self._force)
        encoded = cv2.imencode(".png", cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))[1]
        try:
            (self._waiting / final.name).write_bytes(encoded.tobytes())
        except OSError as error:
            raise output_error(final, error) from error

    def finish(self) -> None:
        for number in range(1, self._count + 1):
            final = self._path(number)
            try:
                move_into_place(self._waiting / final.name, final, self._force)
            except OSError as error:
                raise output_error(final, error) from error
        self._waiting.rmdir()

    def discard(self) -> None:
        shutil.rmtree(self._waiting, ignore_errors=True)
