"""What a recording writes: frames in their time into a video file, and Opus packets, as they came, beside them."""

from __future__ import annotations

import math
import os
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mcode.frame import TICKS_PER_S, Frame
from mcode.packet import StreamHeader
from mcode.receive.link import Link
from mcode.rtp import opus
from mcode.rtp.payload import Received
from mcode.video import FrameWriter, OutputFile, check_frames_output, resize

_LARGEST_LEAP = 3600 * TICKS_PER_S
"""By how much a picture's time may be ahead of the time that went by: a sender may be faster than real time, its pictures far
apart, and the clock here stands while the machine sleeps."""
_LARGEST_STEP_BACK = TICKS_PER_S


class Recorder:
    """Frames, and Opus packets in their time, into a file."""

    def __init__(self, output: str | os.PathLike[str], size: tuple[int, int] | None, force: bool) -> None:
        self.output, self.size, self.force = Path(output), size, force
        self.frames = self.audio_packets = self.width = self.height = 0
        self.warnings: list[str] = []
        self.stream: StreamHeader | None = None
        self._writer: FrameWriter | None = None
        self._sound: Spool | None = None
        self._heard: list[_Heard] = []
        self._zeros_unix_s: list[float] = []  # of each picture sender, and after each leap: its time of the file's beginning
        self._base: int | None = None
        self._base_before = 0  # the latest leap of this sender's
        self._ssrc: int | None = None
        self._last = -1
        self._last_s = 0.0
        self._gap = self._gap_before = TICKS_PER_S // 25
        self._leaps = 0
        self._padded: tuple[int, int] | None = None
        self.most_sound_s = 0.0  # how long the sound may go on after the last picture, once the stream came to its end
        check_frames_output(output, force=force)

    @property
    def length_s(self) -> float:
        return (self._last + self._gap) / TICKS_PER_S if self.frames else 0.0

    def push(self, frame: Frame, unit: Any, link: Link) -> None:
        if isinstance(unit, Received):
            self.stream = unit.stream
            wanted = self.size or (unit.stream.display_width, unit.stream.display_height)
        else:
            wanted = self.size or (frame.width, frame.height)
        now = time.monotonic()
        pts = self._placed(frame.pts, unit.ssrc, link, now)
        if pts <= self._last:
            return
        if self._writer is None:
            self.width, self.height = wanted
            self._writer = FrameWriter(self.output, width=wanted[0], height=wanted[1], force=self.force)
        self._writer.push(Frame(self._fitted(frame.rgb, *wanted), pts))
        if self._last >= 0:
            self._gap_before, self._gap = self._gap, pts - self._last
        self._last, self._last_s = pts, now
        self.frames += 1

    def _placed(self, sent_pts: int, ssrc: int, link: Link, now: float) -> int:
        """A picture's time in the file, from its sender's: one not after the last picture's is to be left out."""
        if ssrc != self._ssrc:  # another sender, or the same anew: its time goes on where ours is
            ahead = 0 if self._base is None else max(self._gap, round((now - self._last_s) * TICKS_PER_S))
            self._base, self._ssrc = sent_pts - (max(0, self._last) + ahead if self.frames else 0), ssrc
            self._base_before = self._base
            self._zeros_unix_s.append(0.0)
        assert self._base is not None
        pts = sent_pts - self._base
        elapsed = round((now - self._last_s) * TICKS_PER_S)
        usual = self._last + elapsed + TICKS_PER_S
        returns = pts > usual and self._last < sent_pts - self._base_before <= usual  # to the time before a leap
        if self.frames and (returns or pts > self._last + elapsed + _LARGEST_LEAP or pts < self._last - _LARGEST_STEP_BACK):
            # A damaged time, or a clock that was set: the pictures go on as they come.
            gap = min(self._gap, self._gap_before)  # the step before may have been the wild one
            leap = pts - self._last - (elapsed if elapsed > gap + TICKS_PER_S else gap)
            self._base, self._base_before = self._base + leap, self._base
            pts -= leap
            self._leaps += 1
            self._zeros_unix_s.append(self._zeros_unix_s[-1] + leap / TICKS_PER_S)  # what was heard so far keeps its own
        if ssrc == link.base_ssrc and link.base_unix_s is not None:  # a report may have moved it
            self._zeros_unix_s[-1] = link.base_unix_s + self._base / link.clock_hz
        return pts

    def _fitted(self, rgb: np.ndarray, width: int, height: int) -> np.ndarray:
        """A picture to be shown at this size, in the size of the file: within black where its shape is another."""
        scale = min(self.width / width, self.height / height)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        if abs(w - self.width) <= 1 and abs(h - self.height) <= 1:
            return resize(rgb, self.width, self.height)
        self._padded = width, height
        left, top = (self.width - w) // 2, (self.height - h) // 2
        fitted = np.zeros((self.height, self.width, 3), np.uint8)
        fitted[top : top + h, left : left + w] = resize(rgb, w, h)
        return fitted

    def hear(self, link: Link, packet: opus.OpusPacket) -> None:
        if link.base_unix_s is None or link.base_ssrc != packet.ssrc:
            return
        if not self._heard or (self._heard[-1].ssrc, self._heard[-1].leaps) != (packet.ssrc, self._leaps):
            self._heard.append(_Heard(packet.ssrc, link.base_unix_s, self._leaps))
        self._heard[-1].base_unix_s = link.base_unix_s
        self._heard[-1].pictures = max(0, len(self._zeros_unix_s) - 1)
        self._sound = self._sound or Spool(self.output.parent, time.monotonic())
        self._sound.put(packet.data, len(self._heard) - 1, packet.pts, time.monotonic())

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self.warnings += self._writer.warnings
        if self._leaps:
            self.warnings.append(f"the times of the pictures leapt {self._leaps} times; there they are written as they came")
        if self._padded is not None:
            shape, size = "{}x{}".format(*self._padded), f"{self.width}x{self.height}"
            self.warnings.append(f"pictures of {shape} came, too; they stand within black, as the file is of {size}")
        starts_s = [heard.base_unix_s - self._zeros_unix_s[heard.pictures] for heard in self._heard]
        if self._sound is None:
            return
        end_s = self.length_s
        if self.most_sound_s > end_s:  # and no longer than its packets can be: one with a wild time makes no film of hours
            tail_s = self._sound.count(starts_s, end_s, math.inf) * opus.LONGEST_PACKET / opus.CLOCK_HZ
            end_s = min(end_s + tail_s, self.most_sound_s)
        if self._sound.count(starts_s, -0.02, end_s):
            self._add_sound(self._sound.between(starts_s, -0.02, end_s))

    def _add_sound(self, sound: Iterator[tuple[bytes, float]]) -> None:
        """Opus beside the pictures, both copied."""
        target = OutputFile(self.output, force=True)
        kind = "mp4" if self.output.suffix.lower() == ".mp4" else "matroska"
        try:
            with (
                av.open(f"file:{self.output}", metadata_errors="replace") as pictures,
                av.open(target, "w", format=kind) as both,
            ):
                video = both.add_stream_from_template(pictures.streams.video[0])
                opus_stream = both.add_stream("libopus", rate=opus.CLOCK_HZ, layout="stereo")
                opus_stream.codec_context.open()
                timed = self._timed(sound)
                waiting = next(timed, None)
                count = 0
                for packet in pictures.demux(pictures.streams.video[0]):
                    if packet.pts is None:  # the end
                        continue
                    packet.dts = packet.pts  # no B-frames; libavformat tells no dts of 7 pictures in Matroska
                    while waiting and waiting[1] / opus.CLOCK_HZ <= packet.pts * packet.time_base:
                        self._mux_sound(both, opus_stream, *waiting)
                        waiting = next(timed, None)
                    packet.stream = video
                    both.mux(packet)
                    count += 1
                assert count == self.frames, (count, self.frames)
                while waiting:
                    self._mux_sound(both, opus_stream, *waiting)
                    waiting = next(timed, None)
            target.commit()
        except BaseException:
            target.discard()
            raise

    def _timed(self, sound: Iterator[tuple[bytes, float]]) -> Iterator[tuple[bytes, int]]:
        """pts in 1/48,000 s, rising; packets that follow each other as far apart as they are long."""
        due: int | None = None
        for data, at_s in sound:
            pts = round(at_s * opus.CLOCK_HZ)
            length = opus.duration(data) or 960
            if due is not None and abs(pts - due) < min(480, length):
                pts = due
            if due is not None and pts < due:
                continue
            due = pts + length
            yield data, pts

    def _mux_sound(self, container: Any, stream: Any, data: bytes, pts: int) -> None:
        packet = av.Packet(data)
        packet.pts = packet.dts = max(0, pts)
        packet.duration, packet.time_base, packet.stream = opus.duration(data) or 960, Fraction(1, opus.CLOCK_HZ), stream
        container.mux(packet)
        self.audio_packets += 1

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()

    def release(self) -> None:
        if self._sound is not None:
            self._sound.close()


@dataclass
class _Heard:
    """One sender's sound in a recording, between two leaps of the pictures. base_unix_s: the sender's time of pts 0, as last
    known. leaps: of the pictures before it. pictures: the number of their zero that it belongs to."""

    ssrc: int
    base_unix_s: float
    leaps: int
    pictures: int = 0


class Spool:
    """Opus packets with their senders and times, in a file without a name beside the output: an hour of sound is no memory.

    Takes no more packets than the shortest ones, of 2.5 ms, make in the time since started_s, and a second of them at once.
    """

    def __init__(self, folder: Path, started_s: float) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until close()
        self._sources, self._pts, self._sizes = array("L"), array("q"), array("H")
        self._started_s = started_s

    def put(self, data: bytes, source: int, pts: int, now_s: float) -> None:
        """source: the number of its sender. pts: in 1/48,000 s."""
        if len(self._sizes) < 400 * (1 + now_s - self._started_s):
            self._file.write(data)
            self._sources.append(source)
            self._pts.append(pts)
            self._sizes.append(len(data))

    def count(self, starts_s: Sequence[float], after_s: float, before_s: float) -> int:
        """Packets of after_s < time < before_s."""
        return sum(after_s < at_s < before_s for at_s in self._times(starts_s))

    def between(self, starts_s: Sequence[float], after_s: float, before_s: float) -> Iterator[tuple[bytes, float]]:
        """(data, time) as they came, after_s < time < before_s. starts_s: the time of each sender's pts 0."""
        self._file.seek(0)
        for size, at_s in zip(self._sizes, self._times(starts_s), strict=True):
            data = self._file.read(size)
            if after_s < at_s < before_s:
                yield data, at_s

    def _times(self, starts_s: Sequence[float]) -> Iterator[float]:
        return (starts_s[source] + pts / opus.CLOCK_HZ for source, pts in zip(self._sources, self._pts, strict=True))

    def close(self) -> None:
        self._file.close()
