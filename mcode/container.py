"""The .mcode file: MP4 in fragments, with one data track (a sample is a keyframe, a sync sample a refresh) and the sound.

FFmpeg writes the header boxes and reads everything. The fragments are written here, because libavformat marks every sample
of a data track as a sync sample and cannot start a fragment at a refresh. Not here: what is inside a sample (packet.py).
"""

from __future__ import annotations

import io
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import av

from mcode import __version__
from mcode.errors import FormatError, InputError, WireError
from mcode.frame import TICKS_PER_S
from mcode.packet import LARGEST_PICTURE, Packet, StreamHeader, read_header, too_large
from mcode.video import TICK, AudioTrack, OutputFile, StrPath, add_sound, check_input, due_s, time_base

FORMAT_KEY, FORMAT = "mcode", 1
"""The metadata key that makes an MP4 an .mcode file, and its value; samples tell their own format (packet.FORMAT)."""

LEAST_FRAGMENT_S, MOST_FRAGMENT_S = 5, 20
"""A fragment (about 110 bytes, 220 with sound) starts at the first refresh after 5 s, and at any keyframe after 20 s."""

MOST_FRAGMENT_BYTES = 1 << 20

_FREE_SAMPLE_BYTES = 1 << 20
_MOST_BYTES_PER_PIXEL = 4  # no coder comes near: beyond it, and a MiB for times and small pictures, a size is damage
_LATEST = 1 << 62  # ticks: later than any video, and sums of two still fit 64 bits
_LONGEST_GAP = (1 << 32) - 1  # ticks, 13.25 hours: durations of samples have 32 bits
_LONGEST_TOLD_MS = (1 << 32) - 1  # 49.7 days
_REFRESH_BIT = 1  # of a sample's first byte, see packet.py


class McodeWriter:
    """Packets into an .mcode file at `path`.

    audio_from, start_s, duration_s: the sound to copy (see video.audio_packets). metadata: texts to store.
    payload_bytes counts the bytes of the data track's samples. The file is written in whole fragments under a temporary
    name in the same folder, so a killed program leaves a playable file there; close() gives it its name, abort() removes
    it; as a context manager it closes, or aborts on any exception. Raises InputError for an existing file (without force)
    and a full disk. Memory: one fragment.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        audio_from: StrPath | None = None,
        start_s: float = 0,
        duration_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> None:
        self.path = Path(path)
        self.payload_bytes = 0
        self.keyframes = 0
        self.warnings: list[str] = []
        self._metadata = dict(metadata or {})
        self._file = OutputFile(path, force=force, remedy="name a file, as out.mcode")
        self._audio: AudioTrack | None = None
        self._audio_origin = 0  # the sound's first pts where that is negative: fragments count from it
        self._fragments = 0
        self._waiting: list[_Sample] = []
        self._waiting_bytes = 0
        self._last_pts: int | None = None
        self._last_gap = TICKS_PER_S // 25
        try:
            if audio_from is not None:
                self._open_audio(AudioTrack(audio_from, "mp4", start_s, duration_s))
        except BaseException:
            self.abort()
            raise

    def _open_audio(self, audio: AudioTrack) -> None:
        if audio.stream is None:
            self.warnings += audio.warnings(".mcode")
            audio.close()
        else:
            self._audio = audio

    def write(self, packet: Packet, n: int) -> int:
        """Append a keyframe; n as in its stream header. Returns the sample's bytes.

        Raises ValueError where the first packet is no refresh or begins before 0, or pts (ticks) does not increase, InputError
        where time leaps by more than a sample can tell.
        """
        if self._last_pts is not None:
            check_gap(self._file.path, self._last_pts, packet.pts, n)
        sample = packet.to_sample(n)
        if self._last_pts is None:
            if packet.header is None:
                raise ValueError("a file starts with a refresh")
            if packet.pts < 0:
                raise ValueError(f"pts is {packet.pts}; a file's times begin at 0 or later")
            self._write_header(sample)
        else:
            if packet.pts <= self._last_pts:
                raise ValueError(f"pts must increase: {packet.pts} after {self._last_pts}")
            self._last_gap = packet.pts - self._last_pts
            waiting_s = (packet.pts - self._waiting[0].pts) / TICKS_PER_S
            least = LEAST_FRAGMENT_S if packet.header is not None else MOST_FRAGMENT_S
            if waiting_s >= least or self._waiting_bytes >= MOST_FRAGMENT_BYTES:
                self._write_fragments(end=packet.pts)
        self._last_pts = packet.pts
        self._waiting.append(_Sample(packet.pts, 0, sample, packet.header is not None))
        self._waiting_bytes += len(sample)
        self.payload_bytes += len(sample)
        self.keyframes += 1
        return len(sample)

    def close(self, last_duration_ticks: int | None = None) -> None:
        """Finish the file and give it its name. The last keyframe is shown as long as the gap before, unless told.

        Does nothing after close() or abort().
        """
        if self._file.closed:
            return
        try:
            if self._last_pts is None:
                raise InputError(f"nothing to write to {self._file.path}: no frame was encoded")
            end = self._last_pts + min(last_duration_ticks or self._last_gap, _LONGEST_GAP)
            self._write_fragments(end, and_all_sound=True)
            self.warnings += self._audio.warnings(".mcode") if self._audio else ()
            # Until here the duration was 0: that is how a reader knows an unfinished file.
            self._file.seek(self._duration_at)
            self._file.write(struct.pack(">I", min(-(-end * 1000 // TICKS_PER_S), _LONGEST_TOLD_MS)))
            self._file.commit()
        except BaseException:
            self.abort()
            raise
        self._release()

    def abort(self) -> None:
        """Remove everything written. Does nothing after close()."""
        self._file.discard()
        self._release()

    def _release(self) -> None:
        if self._audio is not None:
            self._audio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.abort()

    def _write_header(self, first_sample: bytes) -> None:
        """Write ftyp and moov: FFmpeg makes them from a file of one sample per track, whose fragment is dropped."""
        made = io.BytesIO()
        options = {"movflags": "frag_custom+delay_moov+default_base_moof+use_metadata_tags"}
        with av.open(made, "w", format="mp4", options=options) as output:
            output.metadata.update({**self._metadata, FORMAT_KEY: str(FORMAT)})
            data = output.add_data_stream("bin_data")
            data.time_base = TICK
            data.metadata["handler_name"] = "MCode"
            sound = None
            if self._audio:
                assert self._audio.stream is not None  # see _open_audio
                sound = add_sound(output, self._audio.stream)
            _mux_one(output, data, first_sample, 0, TICK)
            if self._audio and sound is not None:
                first = self._audio.first
                assert first.pts is not None
                # Sound from before the first picture: the header gets an edit list that skips it.
                before = min(0, first.pts)
                _mux_one(output, sound, bytes(first), before, time_base(first))
                self._audio_tick = time_base(sound)
                self._audio_origin = round(before * time_base(first) / self._audio_tick)
        fragment_at = next(box.start for box in _boxes(made) if box.kind == b"moof")
        header = made.getvalue()[:fragment_at]
        self._duration_at = header.index(b"mvhd") + 4 + 4 + 8 + 4
        assert header[self._duration_at : self._duration_at + 4] == bytes(4)
        self._file.write(header)

    def _write_fragments(self, end: int, and_all_sound: bool = False) -> None:
        """Write the waiting keyframes, and the sound up to `end` (ticks), in one fragment or, much sound, several."""
        ends = [sample.pts for sample in self._waiting[1:]] + [end]
        pictures = [sample._replace(duration=e - sample.pts) for sample, e in zip(self._waiting, ends, strict=True)]
        self._waiting, self._waiting_bytes = [], 0
        sound: list[_Sample] = []
        sound_bytes = 0
        for packet in self._audio.until(None if and_all_sound else end * TICK) if self._audio else ():
            pts = round(due_s(packet) / self._audio_tick) - self._audio_origin
            length = round((packet.duration or 0) * time_base(packet) / self._audio_tick)
            if sound:
                sound[-1] = sound[-1]._replace(duration=max(1, pts - sound[-1].pts))
            if sound_bytes >= MOST_FRAGMENT_BYTES:
                self._write_fragment(pictures, sound)
                pictures, sound, sound_bytes = [], [], 0
            sound.append(_Sample(pts, length, bytes(packet), True))
            sound_bytes += packet.size
        self._write_fragment(pictures, sound)

    def _write_fragment(self, pictures: list[_Sample], sound: list[_Sample]) -> None:
        tracks = [(number, samples) for number, samples in ((1, pictures), (2, sound)) if samples]
        if tracks:
            self._fragments += 1
            self._file.write(_fragment(self._fragments, tracks))


def check_gap(path: StrPath, last_pts: int, pts: int, n: int) -> None:
    """Raises InputError where two keyframes that follow each other are further apart than a sample can tell. path: of whose
    times they are; n: frames from one to the next."""
    if pts - last_pts > _LONGEST_GAP:
        raise InputError(
            f"{path}: time leaps by {(pts - last_pts) / TICKS_PER_S / 3600:.1f} hours at second {last_pts / TICKS_PER_S:.0f}, "
            "and 13 fit between two keyframes; encode the parts apart, by --start and --duration"
            + (", or use a smaller --n" if n > 1 else "")
        )


class McodeReader:
    """The packets of an .mcode file, in order. Iterating again starts again, at the refresh chosen by seek() or at 0.

    header: the first stream header. metadata: the stored texts. duration_s: of what is there; end_ticks: the same in ticks.
    keyframes, payload_bytes: of the data track. truncated: how much of a cut-off file there is ("2.0 of 3.0 s"), else None.
    damaged: samples that did not parse in the last iteration, or stand before the first refresh. The sound is reached by
    FrameWriter(audio_from=path).

    Raises InputError for a path that is missing or a folder, FormatError for a file that is no .mcode file, is of a newer
    format or holds no whole keyframe. Memory: 24 bytes a keyframe, and one packet.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        check_input(path, "an .mcode file")
        self.damaged = 0
        self._pts, self._at, self._sizes = array("q"), array("q"), array("I")
        self._refreshes = array("I")  # which keyframes are refreshes
        self._first = 0
        self.end_ticks = 0
        self._read_index()
        if not self._refreshes:
            raise FormatError(f"{path}: nothing whole in it, it is cut off before its first keyframe")
        self.keyframes, self.payload_bytes = len(self._sizes), sum(self._sizes)
        self._first = self._refreshes[0]
        self.header = self._first_header()
        self.truncated = self._shortfall()

    @property
    def duration_s(self) -> float:
        return self.end_ticks / TICKS_PER_S

    def refresh_times(self) -> list[float]:
        """Seconds at which decoding can start."""
        return [self._pts[i] / TICKS_PER_S for i in self._refreshes]

    def seek(self, seconds: float) -> float:
        """Let the next iteration start at the last refresh at or before `seconds`; returns its time in seconds.

        Decode from there with a new Decoder: one that has decoded other packets takes the leap for a gap, and fills it.
        """
        ticks = round(seconds * TICKS_PER_S)
        self._first = max((i for i in self._refreshes if self._pts[i] <= ticks), default=self._refreshes[0])
        return self._pts[self._first] / TICKS_PER_S

    def __len__(self) -> int:
        return self.keyframes

    def __iter__(self) -> Iterator[Packet]:
        self.damaged = self._first if self._first == self._refreshes[0] else 0  # a file begins with a refresh
        header: StreamHeader | None = None
        with open(self.path, "rb") as file:
            for i in range(self._first, self.keyframes):
                try:
                    packet = Packet.parse_sample(self._sample(file, i, header), self._pts[i], header)
                except WireError as error:
                    if header is None and isinstance(error, FormatError):
                        raise FormatError(f"{self.path}: {error}") from error
                    self.damaged += 1  # where the stream is known to be of this format, "newer" is damage
                    continue
                header = packet.header or header
                yield packet

    def _sample(self, file: BinaryIO, index: int, header: StreamHeader | None) -> bytes:
        """Raises WireError for more bytes than its picture can take, before they are read."""
        file.seek(self._at[index])
        size = self._sizes[index]
        start = file.read(min(size, _FREE_SAMPLE_BYTES))
        if size > _FREE_SAMPLE_BYTES:
            header = read_header(start) or header
            pixels = header.width * header.height if header else 0
            if size > _FREE_SAMPLE_BYTES + _MOST_BYTES_PER_PIXEL * pixels:
                raise WireError(f"a keyframe of {size} bytes")
        return start + file.read(size - len(start))

    def _read_index(self) -> None:
        try:
            container = av.open(f"file:{self.path}", metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise self._foreign(unreadable=True) from error
        with container:
            stored = dict(container.metadata)
            if FORMAT_KEY not in stored or not container.streams.data:
                raise self._foreign()
            written = stored.pop(FORMAT_KEY)
            if written != str(FORMAT):
                reads = f"this is mcode {__version__}, which reads file format {FORMAT}; install a newer MCode"
                raise FormatError(f"{self.path}: file format {' '.join(written.split())[:40]}, {reads}")
            for key in ("major_brand", "minor_version", "compatible_brands", "encoder"):
                stored.pop(key, None)
            self.metadata: dict[str, str] = stored
            self._index_samples(container)

    def _foreign(self, unreadable: bool = False) -> FormatError:
        """What a file is that has no header of ours: another file, or one that ends within its header, ftyp and moov.
        unreadable: FFmpeg makes nothing of it."""
        with open(self.path, "rb") as file:
            boxes = [*islice(_boxes(file), 2)]
            end = file.seek(0, 2)
        kinds = [box.kind for box in boxes]
        cut = unreadable or (kinds == [b"ftyp", b"moov"] and boxes[1].start + boxes[1].size > end - 8)
        if kinds == [b"ftyp"] or (kinds[:1] == [b"ftyp"] and cut):
            return FormatError(f"{self.path}: nothing whole in it, it is cut off within its header")
        return FormatError(f"{self.path} is not an .mcode file")

    def _index_samples(self, container: av.container.InputContainer) -> None:
        stream = container.streams.data[0]
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        bytes_in_file = container.size
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.pts is None or packet.pos is None:
                    continue
                if packet.is_corrupt or packet.pos + packet.size > bytes_in_file:
                    break  # the file ends within this sample
                pts = round(due_s(packet) / TICK)
                if abs(pts) >= _LATEST:
                    continue
                if memoryview(packet)[0] & _REFRESH_BIT:
                    self._refreshes.append(len(self._pts))
                self._pts.append(pts)
                self._at.append(packet.pos)
                self._sizes.append(packet.size)
                self.end_ticks = pts + round((packet.duration or 0) * time_base(packet) / TICK)
        except av.error.FFmpegError:
            pass  # broken off: the samples before are whole

    def _first_header(self) -> StreamHeader:
        for packet in self:
            if (header := packet.header) is not None:
                for size in ((header.width, header.height), (header.display_width, header.display_height)):
                    if size[0] * size[1] > LARGEST_PICTURE:
                        raise FormatError(f"{self.path}: {too_large(*size)}, which is damage or no picture for this machine")
                return header
        raise FormatError(f"{self.path}: nothing whole in it, no refresh can be read")

    def _shortfall(self) -> str | None:
        promised_ms, whole = _promise(self.path)
        have = f"{self.duration_s:.1f}"
        if promised_ms == 0:
            return f"{have} s, it was never finished"
        if promised_ms is not None and self.duration_s * 1000 < promised_ms - 1:
            return f"{have} of {promised_ms / 1000:.1f} s"
        return None if whole else f"{have} of {have} s, but not all of the sound"


class _Sample(NamedTuple):
    """pts and duration in units of its track; sync: decoding can start here."""

    pts: int
    duration: int
    data: bytes
    sync: bool


class _Box(NamedTuple):
    kind: bytes
    start: int
    size: int


def _mux_one(output: av.container.OutputContainer, stream: av.stream.Stream, data: bytes, pts: int, tick: Fraction) -> None:
    packet = av.Packet(data)
    packet.stream, packet.pts, packet.dts, packet.duration, packet.time_base = stream, pts, pts, 1, tick
    output.mux(packet)


def _fragment(number: int, tracks: Sequence[tuple[int, Sequence[_Sample]]]) -> bytes:
    """moof + mdat (ISO/IEC 14496-12, 8.8): per track its number and samples; all samples of a track lie together."""

    def moof(data_at: int) -> bytes:
        content = _box(b"mfhd", struct.pack(">II", 0, number))
        for track, samples in tracks:
            content += _track_fragment(track, samples, data_at)
            data_at += sum(len(sample.data) for sample in samples)
        return _box(b"moof", content)

    head = moof(len(moof(0)) + 8)
    return head + _box(b"mdat", b"".join(sample.data for _, samples in tracks for sample in samples))


def _track_fragment(track: int, samples: Sequence[_Sample], data_at: int) -> bytes:
    """traf. What is the same for all samples is said once in tfhd; what differs costs 4 bytes a sample in trun."""
    flags = [0x02000000 if sample.sync else 0x01010000 for sample in samples]
    fields = (
        (0x08, 0x100, [sample.duration for sample in samples]),
        (0x10, 0x200, [len(sample.data) for sample in samples]),
        (0x20, 0x400, flags),
    )
    head_flags, run_flags, head, run_head = 0x020000, 0x001, b"", b""
    columns = []
    for default_bit, column_bit, values in fields:
        first_differs = values is flags and len(set(flags)) > 1 and len(set(flags[1:])) == 1
        if len(set(values)) == 1 or first_differs:
            head_flags |= default_bit
            head += struct.pack(">I", values[-1])
            if first_differs:
                run_flags |= 0x004
                run_head = struct.pack(">I", values[0])
        else:
            run_flags |= column_bit
            columns.append(values)
    rows = b"".join(struct.pack(f">{len(row)}I", *row) for row in zip(*columns, strict=True))
    tfhd = _box(b"tfhd", struct.pack(">II", head_flags, track) + head)
    tfdt = _box(b"tfdt", struct.pack(">IQ", 1 << 24, samples[0].pts))
    trun = _box(b"trun", struct.pack(">III", run_flags, len(samples), data_at) + run_head + rows)
    return _box(b"traf", tfhd + tfdt + trun)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _boxes(file: BinaryIO) -> Iterator[_Box]:
    """The boxes of the outermost level, as their headers tell; the last one may reach beyond the end of the file."""
    start, end = 0, file.seek(0, 2)
    while start < end and len(head := (file.seek(start), file.read(16))[1]) >= 8:
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        elif size == 0:
            size = end - start
        if size < 8:
            return
        yield _Box(kind, start, size)
        start += size


def _promise(path: Path) -> tuple[int | None, bool]:
    """Milliseconds that the header promises (0: the writer never finished), and whether the last fragment is whole. What others
    have appended is none of ours."""
    promised, end, kind = None, 0, b""
    with open(path, "rb") as file:
        for box in _boxes(file):
            end, kind = box.start + box.size, box.kind
            if box.kind == b"moov":
                file.seek(box.start + 8)
                mvhd = file.read(28)  # size, "mvhd", version and flags, two dates, timescale, duration
                if mvhd[4:9] == b"mvhd\0":
                    timescale, duration = struct.unpack(">II", mvhd[20:28])
                    promised = duration * 1000 // timescale if timescale else None
        size = file.seek(0, 2)
        file.seek(min(end, size))
        rest = file.read(8)
    begun = 0 < len(rest) < 8 and rest[0] == 0  # of a box's size
    return promised, not begun and (end <= size or kind not in (b"moof", b"mdat"))
