"""Whole files: a video into .mcode, and back. The command line's `encode` and `decode`, as functions."""

from __future__ import annotations

import math
import os
import random
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .codec import Decoder, Encoder, Refine
from .container import McodeReader, McodeWriter, check_gap
from .errors import FormatError, InputError, ManifoldError, WireError
from .frame import TICKS_PER_S, Frame
from .jobs import MOST_AHEAD, Jobs
from .manifold import Manifold, find_id, load
from .packet import Packet
from .video import FrameReader, FrameWriter, VideoInfo, check_size, read_picture, resize

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int | None], None]
"""Called with the frames done and the frames in all, where known."""

FIT_THRESHOLD = 0.9
"""Below this `fit` a warning says that the manifold does not suit the footage. Measured on the project's data: footage of a
manifold's own scene reaches 0.97 and more, footage of another 0.2 to 0.85."""

MEDIA = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".ogv", ".wmv", ".y4m", ".h264", ".ivf"),
    *(".mts", ".m2ts", ".vob", ".flv", ".3gp", ".mxf", ".h265", ".hevc", ".obu", ".mjpeg"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif"),
}
"""Suffixes of videos and pictures."""
_MOST_HELD = 32
_EVEN_TICKS = TICKS_PER_S // 1000 + 1


@dataclass(frozen=True)
class EncodeReport:
    """What an encode did.

    payload_bytes: of all samples in the data track; file_bytes: of the file, sound included; rate_kbps: payload over
    duration; bits_per_pixel: payload over the pixels of all frames at the coded size; psnr_db: mean over the frames of the
    decoded picture's PSNR against what the encoder was fed, at the coded size; fit: 1 - error / variance of the picture,
    0 to 1. Of long videos both are over a sample of the frames, see Meter.
    """

    frames: int
    keyframes: int
    duration_s: float
    payload_bytes: int
    file_bytes: int
    rate_kbps: float
    bits_per_pixel: float
    psnr_db: float
    encode_fps: float
    manifold: str
    manifold_id: str
    coder: str
    n: int
    fit: float
    quality: int
    width: int
    height: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecodeReport:
    """frames: written; decode_fps: frames over the whole run's time, reading and writing included."""

    frames: int
    decode_fps: float
    width: int
    height: int
    warnings: tuple[str, ...] = ()


def encode_file(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    n: int = 4,
    manifold: str | os.PathLike[str] | Manifold = "general",
    coder: str = "huffman",
    quality: int | None = None,
    refresh_s: float = 10.0,
    device: str | torch.device = "auto",
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    audio: str | bool = "copy",
    refine: Refine | None = None,
    adaptive: bool = False,
    rate_kbps: float | None = None,
    every_frame: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encodes a video (or an image, then n is 1) into an .mcode file.

    manifold: a name, an id, a file, or one that is loaded. n, coder, quality, refresh_s, adaptive, rate_kbps, refine: see
    `Encoder`; what refines is of the same manifold, loaded. device: see `load`; of a manifold that is loaded here. size:
    (width, height) to encode and show; None keeps the source's. A manifold of one fixed size gets the centred part of its
    aspect, scaled to it, and the decoder scales back. start_s, duration_s: the part to encode, in seconds; None: to the end.
    audio: "copy" or True keeps the sound, "none" or False leaves it out. every_frame: PSNR and fit are over every frame of
    long videos, too, see `Meter`. force: overwrite the output. progress: called with the frames done and the frames in all,
    None where the source does not tell; what it raises ends the encode, without an output.

    Raises InputError for a source, an output, an option or a number that cannot be used, ManifoldError for a manifold that is
    missing or damaged, or has not that size or quality.
    """
    with_sound = keeps_sound(audio)
    refuse_same(input, output)
    _refuse_foreign_name(output)
    model = manifold if isinstance(manifold, Manifold) else load(manifold, device)
    run = Encoding(
        input,
        model,
        n=n,
        coder=coder,
        quality=quality,
        refresh_s=refresh_s,
        size=size,
        refine=refine,
        adaptive=adaptive,
        rate_kbps=rate_kbps,
        every_frame=every_frame,
        start_s=start_s,
        duration_s=duration_s,
    )
    total = expected_frames(run.reader.info, duration_s, start_s)
    started = time.perf_counter()
    sound = input if with_sound and run.reader.info.audio_codec else None
    tell = None if progress is None else lambda done: progress(done, total)
    with run.jobs, McodeWriter(output, audio_from=sound, start_s=start_s, duration_s=duration_s, force=force) as writer:
        for packet in run.packets(run.reader, tell):
            writer.write(packet, run.n)
        if run.frames == 0:
            raise InputError(f"{input}: no frames from {start_s:g} s on; choose an earlier --start")
        encoded = run.result()
        writer.close(encoded.last_ticks)
    return report_of(encoded, input, model, writer, time.perf_counter() - started, rate_kbps)


OVER = 1.1
"""Above this much of the rate asked for, one is told."""
SETTLED_S = 5.0
"""Before, a stream's whole first keyframe weighs too much."""


def over_rate(wanted_kbps: float, kbps: float, n: int | None) -> str:
    """That it took more than the rate that was asked for. n: where every n-th frame alone does, else None."""
    larger = "" if n is None or n == 65_535 else f"a larger --n than {n}, "
    return f"--rate {wanted_kbps:g}: it took {kbps:.3g} kbit/s; use {larger}a lower --quality or a smaller --size"


@dataclass(frozen=True)
class Encoded:
    """What became of frames in a row, but for their packets. The sum of two: of frames that follow each other.

    last_pts: of the last frame; gap: between the last two, None for one alone; shown: how long the source says that the last
    one is shown, None where it does not: all in ticks. truncated, damaged, retimed: see FrameReader. width, height: as coded.
    full_gaps: keyframes n frames after the one before.
    """

    frames: int
    last_pts: int
    gap: int | None
    shown: int | None
    measures: Measures
    truncated: str | None
    damaged: int
    retimed: int
    is_image: bool
    n: int
    coder: str
    quality: int
    width: int
    height: int
    full_gaps: int = 0

    @property
    def n_binds(self) -> bool:
        """Whether it is n that brought most keyframes, by the frames before them."""
        return 2 * self.full_gaps * self.n > self.frames

    @property
    def last_ticks(self) -> int:
        """How long the last frame is shown: as the source says, else as long as the one before."""
        return self.shown or self.gap or TICKS_PER_S // 25

    def __add__(self, later: Encoded) -> Encoded:
        if not (self.frames and later.frames):
            return self if self.frames else later
        return replace(
            later,
            frames=self.frames + later.frames,
            gap=later.last_pts - self.last_pts if later.gap is None else later.gap,
            measures=self.measures + later.measures,
            damaged=self.damaged + later.damaged,
            retimed=self.retimed + later.retimed,
            full_gaps=self.full_gaps + later.full_gaps,
        )


class Encoding:
    """A video, or a part of it, on its way into packets: read at the size at which the manifold sees it, encoded and measured.

    reader: of the frames; frames: how many have been encoded; n: 1 for pictures. jobs: a context around all.
    """

    def __init__(
        self,
        input: str | os.PathLike[str],
        model: Manifold,
        *,
        n: int,
        coder: str,
        quality: int | None,
        refresh_s: float,
        size: tuple[int, int] | None,
        refine: Refine | None,
        adaptive: bool,
        rate_kbps: float | None = None,
        every_frame: bool = False,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> None:
        check_size(size)
        source = FrameReader(input, start_s=start_s, duration_s=duration_s)
        is_image = source.info.is_image
        self.n = 1 if is_image else n
        coded, display, aspect = geometry((source.width, source.height), size, model.frame_size)
        self.reader = FrameReader(input, start_s=start_s, duration_s=duration_s, size=coded, crop_to=aspect)
        self._encoder = Encoder(
            model,
            *coded,
            n=self.n,
            coder=coder,
            quality=quality,
            refresh_s=refresh_s,
            display=display,
            adaptive=adaptive,
            rate_kbps=rate_kbps,
            refine=refine,
        )
        alone = is_image or refine is not None  # refining needs all threads itself
        self.jobs: Jobs[Measures] = Jobs(0) if alone else Jobs.on(model.device)
        self._meter = Meter(model, self.jobs, every_frame=every_frame)
        self.frames = self._full_gaps = self._last_pts = 0
        self._gap: int | None = None
        self._sent_pts: int | None = None

    def packets(self, frames: Iterable[Frame], progress: Callable[[int], None] | None = None) -> Iterator[Packet]:
        """frames: of the reader, once. progress is called with the frames done."""
        for frame in frames:
            self._meter.hold(frame)
            for packet in self._encoder.push(frame):
                yield from self._measured(packet)
            self._gap = frame.pts - self._last_pts if self.frames else None
            self._last_pts = frame.pts
            self.frames += 1
            if progress:
                progress(self.frames)
        for packet in self._encoder.flush():
            yield from self._measured(packet)
        self._meter.finish()

    def _measured(self, packet: Packet) -> Iterator[Packet]:
        check_gap(self.reader.path, packet.pts if self._sent_pts is None else self._sent_pts, packet.pts, self.n)
        self._sent_pts = packet.pts
        self._full_gaps += packet.steps == self.n
        yield packet
        self._meter.measure(packet)

    def result(self, *, to_the_end: bool = True) -> Encoded:
        """After the last packet. to_the_end: the frames were taken until the reader had no more."""
        header = self._encoder.header
        return Encoded(
            frames=self.frames,
            last_pts=self._last_pts,
            gap=self._gap,
            shown=self.reader.last_duration_ticks if to_the_end else None,
            measures=self._meter.measures,
            truncated=self.reader.truncated if to_the_end else None,
            damaged=self.reader.damaged,
            retimed=self.reader.retimed,
            is_image=self.reader.info.is_image,
            n=self.n,
            coder=header.coder,
            quality=header.quality,
            width=header.width,
            height=header.height,
            full_gaps=self._full_gaps,
        )


def report_of(
    encoded: Encoded,
    input: str | os.PathLike[str],
    model: Manifold,
    writer: McodeWriter,
    seconds: float,
    wanted_kbps: float | None,
) -> EncodeReport:
    """The report and its warnings. writer: closed, it has written all packets of `encoded`. seconds: that it took.
    wanted_kbps: the rate that was asked for, None for none."""
    output, measures = writer.path, encoded.measures
    length_s = (encoded.last_pts + encoded.last_ticks) / TICKS_PER_S
    rate_kbps = writer.payload_bytes * 8 / 1000 / length_s
    warnings = list(writer.warnings)
    if output.suffix.lower() != ".mcode" and output.is_file():
        warnings.append(f"{output} is an .mcode file, whatever its name")
    if encoded.truncated:
        warnings.append(f"{input} is cut off: encoded {encoded.truncated}")
    elif encoded.frames == 1 and not _whole(input):
        warnings.append(f"{input} is cut off or damaged: a part of its picture is only filled in")
    damaged = encoded.damaged - (encoded.truncated is not None)  # the packet in which a file breaks off counts, too
    if damaged > 0 and not encoded.is_image:
        packets = "1 packet of its pictures" if damaged == 1 else f"{damaged:,} packets of its pictures"
        warnings.append(f"{input} is damaged: {packets} could not be decoded, what they show is left out")
    if encoded.retimed:
        times = "time of 1 of its pictures is" if encoded.retimed == 1 else f"times of {encoded.retimed:,} of its pictures are"
        warnings.append(f"{input}: the {times} out of order, and replaced by one in between")
    if measures.fit < FIT_THRESHOLD:
        warnings.append(_misfit(model, encoded, input))
    if wanted_kbps is not None and rate_kbps > OVER * wanted_kbps and length_s > SETTLED_S:
        warnings.append(over_rate(wanted_kbps, rate_kbps, encoded.n if encoded.n_binds else None))
    return EncodeReport(
        frames=encoded.frames,
        keyframes=writer.keyframes,
        duration_s=round(length_s, 6),
        payload_bytes=writer.payload_bytes,
        file_bytes=output.stat().st_size,
        rate_kbps=rate_kbps,
        bits_per_pixel=writer.payload_bytes * 8 / (encoded.width * encoded.height * encoded.frames),
        psnr_db=measures.psnr_db,
        encode_fps=encoded.frames / seconds,
        manifold=model.name,
        manifold_id=model.id,
        coder=encoded.coder,
        n=encoded.n,
        fit=measures.fit,
        quality=encoded.quality,
        width=encoded.width,
        height=encoded.height,
        warnings=tuple(warnings),
    )


def _whole(picture: str | os.PathLike[str]) -> bool:
    """Whether a picture decodes without a fault: FFmpeg fills what a cut JPEG lacks with grey, and does not tell."""
    try:
        read_picture(picture)
    except InputError:
        return False
    return True


def decode_file(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    manifold: str | os.PathLike[str] | Manifold | None = None,
    device: str | torch.device = "auto",
    force: bool = False,
    audio: str | bool = True,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> DecodeReport:
    """Decodes an .mcode file into a video or pictures, by the output's name (see FrameWriter).

    manifold: None takes the installed one that the stream names. size: (width, height), else the source's. device, audio,
    force, progress: as in `encode_file`; how many frames there are in all is not told. A cut-off or damaged file gives what is
    whole, and a warning. Raises FormatError for what is no .mcode file or has no keyframe that can be decoded, ManifoldError
    for a manifold that is missing or another, InputError for an output, a size or a word that cannot be used.
    """
    with_sound = keeps_sound(audio)
    check_size(size)
    if os.fspath(output) != "-":
        refuse_same(input, output)
    reader = McodeReader(input)
    if manifold is None:
        model = load(find_id(reader.header.manifold_id), device)
    else:
        model = manifold if isinstance(manifold, Manifold) else load(manifold, device)
    width, height = size or (reader.header.display_width, reader.header.display_height)
    decoder = Decoder(model)
    warnings: list[str] = []
    frames = dropped = 0
    waiting = unseen = bridged = seen = 0  # bad keyframes: since the last good one, before the first, between, of the reader's
    first_pts: int | None = None
    wrong: Exception | None = None
    last_pts: float = -math.inf
    started = time.perf_counter()
    sound = input if with_sound else None
    jobs: Jobs[list[Frame]] = Jobs.on(model.device)
    fps = even_rate(reader)
    with jobs, FrameWriter(output, width=width, height=height, fps=fps, audio_from=sound, force=force) as writer:

        def write(shown: Iterable[Frame]) -> None:
            nonlocal frames, dropped, last_pts
            for frame in shown:
                if frame.pts <= last_pts:
                    dropped += 1
                    continue
                writer.push(frame)
                last_pts = frame.pts
                frames += 1
                if progress:
                    progress(frames, None)

        for packet in reader:
            waiting, seen = waiting + reader.damaged - seen, reader.damaged
            try:
                shown = _resized(decoder.push(packet, after_loss=waiting > 0), width, height)
            except (WireError, ManifoldError) as error:
                if isinstance(error, ManifoldError) and decoder.header is None:
                    raise  # another manifold; later on it is a damaged id
                waiting, wrong = waiting + 1, error
                continue
            if decoder.header is None:  # a delta, behind a refresh that could not be used
                waiting += 1
                continue
            if first_pts is None:
                first_pts, unseen = packet.pts, waiting
            else:
                bridged += waiting
            waiting = 0
            if packet.steps * 3 * width * height > MOST_AHEAD:
                for gap in jobs.rest():
                    write(gap)
                write(shown)
            else:
                for gap in jobs.run(partial(list, shown)):
                    write(gap)
        for gap in jobs.rest():
            write(gap)
        waiting += reader.damaged - seen
        if first_pts is None:
            raise FormatError(f"{input}: no keyframe can be decoded ({wrong})")
        if not (unseen or bridged or waiting or reader.truncated) and reader.end_ticks > last_pts:
            writer.close(round(reader.end_ticks - last_pts))
    if reader.truncated:
        warnings.append(f"{input} is cut off: decoded {reader.truncated}")
    if unseen:
        missing = "the first keyframe" if unseen == 1 else f"the first {unseen} keyframes"
        warnings.append(
            f"{input} is damaged: {missing} cannot be decoded, the picture begins at {first_pts / TICKS_PER_S:.2f} s"
        )
    if bridged:
        missing = "1 keyframe could not be read and is" if bridged == 1 else f"{bridged} keyframes could not be read and are"
        warnings.append(f"{input} is damaged: {missing} bridged")
    if waiting:
        missing = "the last keyframe" if waiting == 1 else f"the last {waiting} keyframes"
        warnings.append(f"{input} is damaged: {missing} cannot be decoded, the picture ends at {last_pts / TICKS_PER_S:.2f} s")
    if dropped:
        late = "1 frame is left out, whose time is" if dropped == 1 else f"{dropped} frames are left out, whose times are"
        warnings.append(f"{input} is damaged: {late} not after the one before")
    return DecodeReport(
        frames=frames,
        decode_fps=frames / (time.perf_counter() - started),
        width=width,
        height=height,
        warnings=tuple(warnings) + tuple(writer.warnings),
    )


def keeps_sound(audio: str | bool) -> bool:
    """Of "copy", "none", True and False. Raises InputError for anything else."""
    if isinstance(audio, bool):
        return audio
    if audio not in ("copy", "none"):
        raise InputError(f'audio is {audio!r}; it is "copy" or "none"')
    return audio == "copy"


def geometry(
    source: tuple[int, int], size: tuple[int, int] | None, frame_size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None]:
    """(coded size, display size, aspect to crop to or None), each (width, height).

    Any-size manifolds code `size`, else the source's. Fixed ones code frame_size and show `size`, else the part of the
    source that they cover.
    """
    if frame_size is None:
        return (size, size, size) if size else (source, source, None)
    w, h = frame_size
    covered = min(source[0], round(source[1] * w / h)), min(source[1], round(source[0] * h / w))
    return frame_size, size or (max(1, covered[0]), max(1, covered[1])), frame_size


def even_rate(packets: Iterable[Packet]) -> Fraction | None:
    """Frames a second, where the frames lie within a millisecond of even spacing, as they do in most videos; else None.

    A whole rate or one of NTSC's (30000/1001) is preferred to the measured one: sources may count in milliseconds.
    """
    times: list[tuple[int, int]] = []  # of each keyframe: its number among the frames, its pts
    for packet in packets:
        if packet.times is not None:  # frames at uneven times
            return None
        times.append((times[-1][0] + packet.steps, packet.pts) if times else (0, packet.pts))
    if len(times) < 2 or times[-1][1] <= times[0][1]:
        return None
    first, (count, end) = times[0][1], times[-1]
    measured = Fraction(count * TICKS_PER_S, end - first)
    whole, ntsc = Fraction(round(measured)), Fraction(round(measured * 1001 / 1000) * 1000, 1001)
    off = {
        fps: max(abs(first + number * TICKS_PER_S / fps - pts) for number, pts in times)
        for fps in (whole, ntsc, measured)
        if fps > 0
    }
    best = min((fps for fps in (whole, ntsc) if fps in off), key=off.__getitem__, default=measured)
    best = best if off[best] <= _EVEN_TICKS else measured
    return best if off[best] <= _EVEN_TICKS else None


def _resized(frames: Iterator[Frame], width: int, height: int) -> Iterator[Frame]:
    return (Frame(resize(frame.rgb, width, height), frame.pts) for frame in frames)


@dataclass(frozen=True)
class Measures:
    """Sums over frames; those of parts add up. A frame that stands for others (see Meter) counts as often as they are.

    error: mean squared error of pixels 0..255; variance: mean of the picture's channels; frames: how many.
    """

    psnr_sum: float = 0.0
    error: float = 0.0
    variance: float = 0.0
    frames: float = 0

    def __add__(self, other: Measures) -> Measures:
        return Measures(
            self.psnr_sum + other.psnr_sum,
            self.error + other.error,
            self.variance + other.variance,
            self.frames + other.frames,
        )

    @property
    def psnr_db(self) -> float:
        """Mean of the frames' PSNR; an exact frame counts as 100 dB."""
        return self.psnr_sum / max(1, self.frames)

    @property
    def fit(self) -> float:
        """1 - error / variance, 0 to 1. Pictures without contrast count as if they had a deviation of 16 grey levels."""
        return max(0.0, 1 - self.error / max(self.variance, 256.0 * max(1, self.frames)))


class Meter:
    """Decodes what was encoded and compares it with what was fed: PSNR and fit. `finish` before `measures` is read.

    Of the first ALL_GAPS gaps between keyframes every frame is measured, of later ones the keyframe and one in between, another
    each time, which stands for all in between: decoding them all would take two thirds of an encoder's time. Holds the frames
    of a gap, at most 32: of longer gaps it measures the keyframe and every second, fourth ... other, which stand for the rest.
    every_frame: later gaps like the first.
    """

    ALL_GAPS = 64

    def __init__(self, model: Manifold, jobs: Jobs[Measures], *, every_frame: bool = False) -> None:
        self._decoder, self._jobs, self._every_frame = Decoder(model), jobs, every_frame
        self._held: dict[int, np.ndarray] = {}
        self._newest: dict[int, np.ndarray] = {}  # the last two, one of which becomes the keyframe
        self._count, self._stride, self._gaps = 0, 1, 0
        self.measures = Measures()

    def hold(self, frame: Frame) -> None:
        self._newest = {i: rgb for i, rgb in self._newest.items() if i == self._count - 1} | {self._count: frame.rgb}
        if self._count % self._stride == 0:
            self._held[self._count] = frame.rgb
            if len(self._held) > _MOST_HELD:
                self._stride *= 2
                self._held = {i: rgb for i, rgb in self._held.items() if i % self._stride == 0}
        self._count += 1

    def measure(self, packet: Packet) -> None:
        last = packet.steps - 1
        fed = {i: rgb for i, rgb in (self._held | self._newest).items() if i <= last}
        between = [i for i in self._held if i < last]
        weights = dict.fromkeys(between, last / max(1, len(between))) | ({last: 1.0} if last in fed else {})
        if self._gaps >= self.ALL_GAPS and len(between) > 1 and not self._every_frame:
            turn, place = divmod(self._gaps, len(between))
            chosen = random.Random(turn).sample(between, len(between))[place]  # in another order each time: motion may repeat
            weights = {chosen: float(last), last: 1.0}
        self._gaps += 1
        asked = count()  # the decoder asks for each frame but the last, in order
        decoded = self._decoder.push(packet, wanted=lambda _: next(asked) in weights)
        shown = sorted({*weights, last})
        job = partial(_compare, [(fed.get(i), weights.get(i, 0.0)) for i in shown], decoded)
        if sum(rgb.nbytes for rgb in fed.values()) > MOST_AHEAD:
            self._add([*self._jobs.rest(), job()])
        else:
            self._add(self._jobs.run(job))
        # At a cut one more frame is waiting already: it belongs to the next packet.
        self._held, self._newest = (
            {i - packet.steps: rgb for i, rgb in kept.items() if i >= packet.steps} for kept in (self._held, self._newest)
        )
        self._count -= packet.steps
        self._stride = 1

    def finish(self) -> None:
        """Waits for what is still being measured."""
        self._add(self._jobs.rest())

    def _add(self, measured: list[Measures]) -> None:
        self.measures = sum(measured, self.measures)


def _compare(fed: Sequence[tuple[np.ndarray | None, float]], decoded: Iterator[Frame]) -> Measures:
    """fed: for each decoded frame what it should be, where that was kept, and how many it stands for."""
    found = Measures()
    for (rgb, weight), frame in zip(fed, decoded, strict=True):
        if rgb is not None:
            error = cv2.norm(rgb, frame.rgb, cv2.NORM_L2SQR) / rgb.size
            psnr_db = 10 * math.log10(255**2 / error) if error > 0 else 100.0
            _, deviation = cv2.meanStdDev(rgb)
            found += Measures(weight * psnr_db, weight * error, weight * float((deviation**2).mean()), weight)
    return found


def _misfit(model: Manifold, encoded: Encoded, source: str | os.PathLike[str]) -> str:
    shown, quality = "picture" if encoded.is_image else "footage", encoded.quality
    fit = f"fit {encoded.measures.fit:.2f} ({encoded.measures.psnr_db:.1f} dB)"
    words = f"{fit}: manifold {model.name} does not suit this {shown}"
    if model.frame_size is None:
        better = f"use --quality {min(model.qualities, quality + 2)}" if quality < model.qualities else "use another codec"
        return f"{words}; {better}{', a smaller --n where much moves,' if encoded.n > 1 else ''} or a smaller --size"
    learn = (
        "" if encoded.is_image else f", or learn one from it: mcode adapt {shlex.quote(os.fspath(source))} -o my.safetensors"
    )
    return f"{words}; use --manifold general{learn}"


def expected_frames(info: VideoInfo, duration_s: float | None = None, start_s: float = 0.0) -> int | None:
    """How many frames a video, or a part of it, will have, about; None where it does not say."""
    if info.average_fps and (info.duration_s or duration_s):
        length_s = min(x for x in (duration_s, (info.duration_s or math.inf) - start_s) if x is not None)
        return max(1, round(length_s * info.average_fps)) if math.isfinite(length_s) else None
    return info.frames


def _refuse_foreign_name(output: str | os.PathLike[str]) -> None:
    """Names of videos and pictures: whoever gives one expects such a file, and no player would open this one."""
    name, suffix = os.fspath(output), Path(output).suffix.lower()
    if name == "-":
        raise InputError("-o -: an .mcode file cannot be written to a pipe; name one, as out.mcode")
    if suffix in MEDIA:
        raise InputError(f"{name}: encode writes .mcode files, no {suffix}; name it {Path(name).with_suffix('.mcode')}")


def refuse_same(input: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    if os.path.exists(output) and os.path.exists(input) and os.path.samefile(input, output):
        raise InputError(f"{os.fspath(output)}: input and output are the same file; choose another output")
