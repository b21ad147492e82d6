"""The sound of a file: its packets, cut with the pictures, copied or turned into AAC for another container."""

from __future__ import annotations

import io
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, pairwise
from typing import BinaryIO

import av

from mcode.video.paths import StrPath
from mcode.video.streams import demuxed, discard_others, ends_with, films, open_container, sound_stream
from mcode.video.times import JOINABLE, LONGEST_SHOWN, RESTART_S, Clock, due_s, picture_zero, seek, time_base, tries

_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")  # of so many channels, where none is named
_MOST_AAC_CHANNELS = 6
_MOST_WAITING = 1000  # packets of sound


def audio_packets(path: StrPath, start_s: float = 0, duration_s: float | None = None) -> Iterator[av.Packet[av.AudioStream]]:
    """The packets of one sound track (the default one, else the best), undecoded; pts 0 is when the first picture at or after
    start_s is shown.

    Cuts fall between packets (some 20 ms); one packet before the cut is kept, with a negative pts, because transform coders
    need it to decode the next. A file that breaks off ends the packets. None at all where there is no sound.
    """
    zero = picture_zero(path, start_s)
    for seeking in tries(path, start_s):
        with open_container(path) as container:
            stream = sound_stream(container)
            if stream is None:
                return
            if seeking and not seek(container, stream, zero - 1):
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
    film = next(iter(films(container)), None) if container.format.name in JOINABLE else None
    discard_others(container, *([stream] if film is None else [stream, film]))
    tick, rate, frame_size = time_base(stream), stream.codec_context.sample_rate or 1, stream.codec_context.frame_size
    # Matroska's milliseconds are too coarse for sound: packets that follow each other are counted in samples.
    fine = min(tick, Fraction(1, rate))
    slack = round(2 * tick / fine) if fine < tick else 0
    longest = int(LONGEST_SHOWN / (rate * fine))

    def at(packet: av.Packet) -> int | None:
        return None if packet.pts is None else round((packet.pts * tick - zero) / fine)

    due: int | None = None  # where the next packet belongs if the track has no gap
    packets = demuxed(container, stream) if film is None else _running_on(container, stream, film)
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
                if not ends_with(packet, size):
                    lose()
            elif packet.size:
                yield packet


def _running_on(
    container: av.container.InputContainer, stream: av.AudioStream, film: av.VideoStream
) -> Iterator[av.Packet[av.AudioStream]]:
    """The packets of the sound, shifted as the pictures are where files were joined (see Clock)."""
    clock, part, before = Clock(), 0, None
    waiting: deque[tuple[int, av.Packet]] = deque()  # of a part whose pictures have not begun
    for packet in demuxed(container, stream, film):
        is_sound = packet.stream_index != film.index
        if packet.size == 0 or packet.pts is None:
            if packet.size and is_sound:
                waiting.append((part, packet))
            continue
        if is_sound:
            time_s = due_s(packet)
            part += before is not None and time_s < before - RESTART_S
            before = time_s
            waiting.append((part, packet))
        else:
            clock.shift_of(packet)
        while waiting and (waiting[0][0] < len(clock.shifts) or len(waiting) > _MOST_WAITING):
            yield _shifted(*waiting.popleft(), clock)
    while waiting:
        yield _shifted(*waiting.popleft(), clock)


def _shifted(part: int, packet: av.Packet, clock: Clock) -> av.Packet:
    if packet.pts is not None:
        packet.pts += round(clock.shifts[min(part, len(clock.shifts) - 1)] / time_base(packet))
    return packet


def probe_audio(path: StrPath) -> bool:
    """Whether a file holds sound that can be read."""
    with open_container(path) as container:
        stream = sound_stream(container)
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
        self._container = open_container(path)
        self._buffers: list[BinaryIO] = []
        self._choice = _choice_of_sound(self._container)
        stream = sound_stream(self._container)
        self.stream = stream if stream is not None and stream.codec_context is not None else None
        self._packets: Iterator[av.Packet[av.AudioStream]] = iter(())
        self._next: av.Packet[av.AudioStream] | None = None
        if stream is not None and self.stream is None:
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


def _choice_of_sound(container: av.container.InputContainer) -> str | None:
    """Which of several sound tracks is kept; None where there is one at most."""
    tracks = container.streams.audio
    chosen = sound_stream(container)
    if chosen is None or len(tracks) < 2:
        return None
    place = [track.index for track in tracks].index(chosen.index) + 1
    return f"1 of {len(tracks)} sound tracks is kept, number {place}" + (f" ({chosen.language})" if chosen.language else "")


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
