"""When pictures are due on a file's own clock: its start, its joints, seeking, and the time that counts as 0."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise

import av

from mcode.frame import TICKS_PER_S
from mcode.video.paths import StrPath
from mcode.video.streams import demuxed, discard_others, films, open_container

TICK = Fraction(1, TICKS_PER_S)
LONGEST_SHOWN = (1 << 31) - 1  # ticks, 6.6 hours: the longest of FFmpeg's MP4 writer
JOINABLE = {"mpegts", "mpeg", "matroska,webm", "ogg"}  # formats that are read on where files stand one behind the other
RESTART_S = Fraction(1, 2)  # a clock that falls back by more, to where it began, has been started anew

_LARGEST_SEARCHED = 1 << 28  # bytes of a file that is searched for joints before a seek
_MOST_REORDERED = 16  # pictures that a codec may hold back: H.264's and H.265's largest number


def time_base(source: av.stream.Stream | av.Packet | av.VideoFrame) -> Fraction:
    """Seconds that one unit of its times stands for. source: read from a file or written to one, so FFmpeg has set it."""
    assert source.time_base is not None
    return source.time_base


def due_s(packet: av.Packet) -> Fraction:
    """When a packet that has a time is due, in seconds on the file's own clock."""
    assert packet.pts is not None
    return packet.pts * time_base(packet)


def decoded_s(packet: av.Packet) -> Fraction | None:
    """Its place in the order of decoding, in seconds on the file's own clock, if known."""
    return None if packet.dts is None else packet.dts * time_base(packet)


def start_of(stream: av.stream.Stream) -> Fraction:
    """When it begins, in seconds on the file's own clock; 0 where the file does not say."""
    return stream.start_time * time_base(stream) if stream.start_time is not None else Fraction(0)


def stream_duration(stream: av.VideoStream) -> Fraction | None:
    """Seconds of this stream, where its file tells it for this stream alone (Matroska does so in a tag)."""
    if stream.duration:
        return stream.duration * time_base(stream)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if tag and (seconds := int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])):
        return seconds - start_of(stream)
    return None


def seek(container: av.container.InputContainer, stream: av.stream.Stream, time_s: Fraction) -> bool:
    """To the last keyframe at or before time_s, on the file's own clock, or where the format finds one. Whether it did."""
    try:
        container.seek(int(time_s / time_base(stream)), stream=stream, backward=True)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


class Clock:
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
            if self._latest is not None and decoded_s < self._latest - RESTART_S and decoded_s < self._first + RESTART_S:
                self.shifts.append(self.shifts[-1] + (self._end or 0) - time_s)
                self._first, self._latest, self._end = decoded_s, None, None
            self._latest = decoded_s if self._latest is None else max(self._latest, decoded_s)
        self._end = time_s + shown_s if self._end is None else max(self._end, time_s + shown_s)
        return self.shifts[-1]

    def shift_of(self, packet: av.Packet) -> Fraction:
        """What to add to the time of this packet, which has one."""
        return self.shift(decoded_s(packet), due_s(packet), (packet.duration or 0) * time_base(packet))


def is_joined(path: StrPath) -> bool:
    """Whether a file's clock starts anew, so that a seek may land in any of its parts. Large files are taken for whole ones."""
    found = os.stat(path)
    return found.st_size <= _LARGEST_SEARCHED and _has_joint(os.fspath(path), found.st_size, found.st_mtime_ns)


def seeks_astray(path: StrPath) -> bool:
    """Whether the times behind a seek may be others than in the whole: in joined files, and in MPEG-PS, where FFmpeg counts the
    times of most pictures from those before."""
    with open_container(path) as container:
        return container.format.name == "mpeg" or is_joined(path)


def tries(path: StrPath, start_s: float) -> tuple[bool, ...]:
    """Whether to seek, for each try to read packets from start_s on: the last one reads the whole file."""
    return (True, False) if start_s > 0 and not seeks_astray(path) else (False,)


@lru_cache(maxsize=16)
def _has_joint(path: str, size: int, changed_ns: int) -> bool:
    with open_container(path) as container:
        film = next(iter(films(container)), None)
        if film is None or container.format.name not in JOINABLE:
            return False
        discard_others(container, film)
        clock = Clock()
        with suppress(av.error.FFmpegError):
            for packet in demuxed(container, film):
                clock.shift(decoded_s(packet), Fraction(0), Fraction(0))
                if len(clock.shifts) > 1:
                    return True
    return False


def picture_zero(path: StrPath, start_s: float = 0) -> Fraction:
    """When the first picture at or after start_s is due, in seconds on the file's own clock: the sound's time 0, too.

    Reads packets only, decodes nothing. A file whose pictures cannot be found gives start_s.
    """
    begins = picture_zero(path) if start_s > 0 else Fraction(0)
    for seeking in tries(path, start_s):
        with open_container(path) as container:
            streams = films(container) or container.streams.data  # the data track is that of an .mcode file
            if not streams:
                return Fraction(start_s)
            stream = streams[0]
            start = begins + Fraction(start_s) if start_s > 0 else start_of(stream)
            if seeking and not seek(container, stream, start):
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
    clock, runs_on = Clock(), not after_seek and container.format.name in JOINABLE
    try:
        for packet, following in pairwise(chain(demuxed(container, stream), [None])):
            assert packet is not None
            if packet.pts is None or packet.size == 0 or packet.is_discard or (after_seek and not packet.is_keyframe):
                continue
            time_s, place_s = due_s(packet), decoded_s(packet)
            next_s = None if following is None else decoded_s(following)
            shift_s = Fraction(0)
            if runs_on:
                shift_s = clock.shift_of(packet)
            elif guessed and packet.dts == packet.pts:  # as FFmpeg has it until it knows by how much pictures are reordered
                place_s = None
            elif place_s is not None and next_s is not None and next_s < place_s:  # one wrong time, as FrameReader has it
                shift_s = next_s - place_s - period_s
            time_s, place_s = time_s + shift_s, None if place_s is None else place_s + shift_s
            if after_seek and start is not None and time_s - start > TICK:
                return None
            after_seek = False
            if start is None or time_s >= start - TICK / 2:
                earliest = time_s if earliest is None else min(earliest, time_s)
            undated += earliest is not None and place_s is None
            in_order = place_s is not None and earliest is not None and place_s >= earliest
            if in_order or undated > _MOST_REORDERED:
                break
    except av.error.FFmpegError:
        pass  # what there is has been seen
    return earliest
