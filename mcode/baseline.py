"""The codecs that MCode is measured against: H.264 (x264), H.265 (x265) and AV1 (SVT-AV1), by PyAV, behind push and flush.

Sans-IO: frames in, packets out, and back. The searches below find the setting with a wanted bit rate or PSNR by constant
rate factor (CRF), the field's usual mode for such comparisons: one pass, no rate-control error, quality even over time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.packet import LARGEST_PICTURE

Frames = Sequence[Frame] | Callable[[], Iterable[Frame]]
"""A clip that can be gone through more than once: a list, or a function that opens it anew."""


@dataclass(frozen=True)
class _Coder:
    encoder: str
    decoder: str
    label: str
    preset: str
    crf_per_halving: float  # roughly: CRF steps which halve the rate; a first guess for the search
    side_min: int = 1  # of either side, where the encoder does not say so itself
    largest: tuple[int, int] | None = None  # width and height, each by itself

    @property
    def crf_floor(self) -> int:
        """The largest CRF: fewest bits."""
        return 51 if self.encoder != "libsvtav1" else 70 if _crf_to_70() else 63

    @property
    def crf_step(self) -> float:
        """The finest step of CRF."""
        return 0.25 if self.encoder != "libsvtav1" or _crf_to_70() else 1


CODERS: dict[str, _Coder] = {
    "h264": _Coder("libx264", "h264", "H.264", "medium", 6, largest=(16384, 16384)),
    "h265": _Coder("libx265", "hevc", "H.265", "medium", 6),
    "av1": _Coder("libsvtav1", "libdav1d", "AV1", "6", 8, side_min=32, largest=(16384, 8704)),
}
REVISION = 3
"""Of what the encoders are asked for at a setting. It rises when that changes: what was measured before is measured anew."""
_CRF_BEST = 1
_THREADS = {"h264": 1, "h265": 4}
"""Whole frames at once, and as many on every machine. PyAV's default is slices, a number that follows the cores: they do not
predict from each other, up to twice the bits in small pictures. x264's result changes by 1 % with the number of threads,
x265's not from 2 on; wavefronts (WPP), its other way to use cores, cost 7 % at 640x360, and with a pool of threads its look
ahead is cut into slices by the number of cores, 1 % there. SVT-AV1's result never changes."""
_CUTREE_WIDTH_MIN = 50  # x265's cutree (SIMD) writes past its buffers in narrower pictures, which aborts the process
_SLOWEST_FPS, _AV1_FASTEST_FPS = 0.001, 240.0  # nominal rates that encoders take
_TEMPORAL_DELIMITER = b"\x12\0"
"""The OBU that opens each of SVT-AV1's packets. Files and RTP leave it out: AV1 in ISO BMFF, 2.4, and in RTP, 5."""
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class EncodedPacket:
    """One access unit (Annex B for H.264 and H.265, for AV1 OBUs without temporal delimiter), in decoding order.

    pts, dts: ticks of 1/90,000 s.
    """

    data: bytes
    pts: int
    dts: int
    keyframe: bool


def coder_named(codec: str) -> _Coder:
    """The coder behind "h264", "h265" or "av1"; InputError for any other name."""
    if codec not in CODERS:
        raise InputError(f"unknown codec {codec!r}: one of {', '.join(CODERS)}")
    return CODERS[codec]


def check_size(codec: str, width: int, height: int) -> None:
    """InputError for pictures of a size that the codec does not take, as far as that is known without opening its encoder."""
    coder = coder_named(codec)
    if min(width, height) < coder.side_min:  # SVT-AV1 4.0 hangs on 16x512
        raise InputError(f"{coder.label} cannot encode {width}x{height}: {coder.side_min} pixels a side at least")
    if coder.largest and (width > coder.largest[0] or height > coder.largest[1]):
        most = f"{coder.largest[0]} pixels wide and {coder.largest[1]} high"
        raise InputError(f"{coder.label} cannot encode {width}x{height}: {most} at most")


class BaselineEncoder:
    """Frames (uint8 RGB, width x height) to packets, at `crf` or at `rate_kbps` (one of the two).

    fps: the nominal rate, for rate control and for the keyframe interval of `gop_s` seconds; timestamps are the frames' own.
    The encoder is told at least one frame in 1000 s, and SVT-AV1 240 frames/s at most.
    preset: the encoder's; by default medium for x264 and x265, 6 for SVT-AV1. pixel_format: yuv420p, or yuv444p (not AV1).
    Frames of odd size are padded to even by repeating the edge. The first packet lacks the text that x264 writes about itself.
    The packets do not depend on the number of cores. options: FFmpeg's; "threads": "0" takes all cores, which x264's bits
    depend on a little, and holds back as many frames.
    """

    def __init__(
        self,
        codec: str,
        width: int,
        height: int,
        *,
        crf: float | None = None,
        rate_kbps: float | None = None,
        fps: float = 25.0,
        preset: str | None = None,
        gop_s: float = 10.0,
        pixel_format: str = "yuv420p",
        options: dict[str, str] | None = None,
    ):
        if (crf is None) == (rate_kbps is None):
            raise ValueError("give either crf or rate_kbps")
        coder = coder_named(codec)
        self.codec, self.width, self.height = codec, width, height
        self.payload_bytes = 0
        check_size(codec, width, height)
        os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 writes its settings and errors to stderr past FFmpeg's logging
        context: Any = av.CodecContext.create(coder.encoder, "w")
        context.width, context.height = width + width % 2, height + height % 2
        context.pix_fmt = pixel_format
        context.time_base = Fraction(1, TICKS_PER_S)
        nominal = max(_SLOWEST_FPS, min(fps, _AV1_FASTEST_FPS) if codec == "av1" else fps)
        context.framerate = Fraction(nominal).limit_denominator(1001)
        context.gop_size = max(1, round(gop_s * fps))
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        context.options = {"preset": preset or coder.preset}
        if codec != "av1":
            context.options |= {"threads": str(_THREADS[codec]), "thread_type": "frame"}
            context.options |= {"crf": str(crf)} if crf is not None else {}
        context.options |= options or {}
        if codec == "h265":
            quirk = "cutree=0:" if context.width < _CUTREE_WIDTH_MIN else ""
            given = context.options.get("x265-params", "")
            context.options |= {"x265-params": f"log-level=none:info=0:no-wpp=1:pools=none:{quirk}{given}"}
        if codec == "av1" and crf is not None:  # past FFmpeg, whose own CRF ends at 63 and is whole; refused, not passed over
            given = context.options.get("svtav1-params", "")
            context.options |= {"svtav1-params": f"crf={crf:g}:{given}".rstrip(":"), "err_detect": "explode"}
        if rate_kbps is not None:
            context.bit_rate = round(rate_kbps * 1000)
            if codec != "av1":
                context.options |= {"maxrate": str(context.bit_rate), "bufsize": str(context.bit_rate)}
        try:
            context.open()
        except av.FFmpegError as error:
            raise InputError(f"{coder.label} cannot encode {width}x{height} ({coder.encoder}: {error.strerror})") from error
        if codec == "av1":
            _leave_real_time()
        self._context, self._pixel_format = context, pixel_format

    def push(self, frame: Frame) -> list[EncodedPacket]:
        """The packets that this frame completes: often none, as encoders look ahead."""
        rgb = frame.rgb
        if (frame.width, frame.height) != (self.width, self.height):
            raise ValueError(f"frame is {frame.width}x{frame.height}, encoder is {self.width}x{self.height}")
        if self.width % 2 or self.height % 2:
            rgb = np.pad(rgb, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format=self._pixel_format, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG, interpolation=_EXACT
        )
        picture.pts, picture.time_base = frame.pts, Fraction(1, TICKS_PER_S)
        return self._packets(picture)

    def flush(self) -> list[EncodedPacket]:
        """What the encoder still holds. Nothing can be pushed after it."""
        return self._packets(None)

    def _packets(self, picture: av.VideoFrame | None) -> list[EncodedPacket]:
        packets = []
        for packet in self._context.encode(picture):
            data = bytes(packet)
            if self.codec == "h264" and not self.payload_bytes:
                data = _without_encoder_text(data)
            if self.codec == "av1":
                data = data.removeprefix(_TEMPORAL_DELIMITER)
            self.payload_bytes += len(data)
            packets.append(EncodedPacket(data, packet.pts, packet.dts, packet.is_keyframe))
        return packets


def live_encoder(
    codec: str,
    width: int,
    height: int,
    *,
    crf: float | None = None,
    rate_kbps: float | None = None,
    fps: float,
    gop_s: float,
    slice_bytes: int = 1150,
) -> BaselineEncoder:
    """H.264 or H.265 as a live stream sends it: no delay, no B-frames, slices that fit a packet each (x264).

    At `crf`, or at `rate_kbps` with a buffer of four seconds: the one where quality is compared, the other for a link that
    takes no more.
    """
    # QP 52 to 69 are for emergencies of the rate control: pictures of plain grey. Rather more bits than that.
    shared = "qpmax=51:scenecut=0"
    if rate_kbps is not None:
        rate_kbps = max(1, round(rate_kbps))  # x264 and x265 know whole kbit/s only, and refuse 0
        shared += f":vbv-maxrate={2 * rate_kbps}:vbv-bufsize={4 * rate_kbps}"
    options = {"tune": "zerolatency"}
    if codec == "h264":
        options["x264-params"] = f"threads=1:sliced-threads=0:slice-max-size={slice_bytes}:{shared}"
    else:
        options["x265-params"] = f"frame-threads=1:pools=none:repeat-headers=1:{shared}"
    return BaselineEncoder(codec, width, height, crf=crf, rate_kbps=rate_kbps, fps=fps, gop_s=gop_s, options=options)


class CrfFollower:
    """The CRF at which a live encoder's rate follows another stream's. Sans-IO: the caller tells time and bytes.

    (x264's own rate control, asked for less than it can do, drops all coefficients: grey. CRF 51 is its floor.)
    `crf` is to be used from the next picture on; it changes by a step of 1 or more, at most every `period_s` seconds: a
    change costs a whole picture. at_floor: the codec's highest CRF still takes more than what it follows.
    """

    FIRST_LOOK_S = 2.0
    LEAST_CHANGE, MOST_CHANGE = 1.0, 9.0
    FLOOR_SHARE = 1.1

    def __init__(self, codec: str, period_s: float = 5.0, first_crf: float = 44.0) -> None:
        self.coder = coder_named(codec)
        self.period_s, self.crf = period_s, first_crf
        self.at_floor = False
        self.sent_kbps: float | None = None
        self._looked_s: float | None = None
        self._looked_bytes = 0
        self._looks = 0

    def look(self, at_s: float, sent_bytes: int, target_kbps: float | None) -> float:
        """The CRF wanted now. sent_bytes: on the wire since the start, headers and repair included. target_kbps: what to
        follow; None where it is not known yet. A look comes when the next whole picture is due anyway."""
        if self._looked_s is None:
            self._looked_s, self._looked_bytes = at_s, sent_bytes
        length_s = at_s - self._looked_s
        if length_s < (self.period_s if self._looks else min(self.FIRST_LOOK_S, self.period_s)) or not target_kbps:
            return self.crf
        spent = sent_bytes - self._looked_bytes
        self._looked_s, self._looked_bytes, self._looks = at_s, sent_bytes, self._looks + 1
        self.sent_kbps = spent * 8 / 1000 / length_s
        if not spent:
            return self.crf
        self.at_floor = self.crf >= self.coder.crf_floor and self.sent_kbps > self.FLOOR_SHARE * target_kbps
        off = math.log2(self.sent_kbps / target_kbps) * self.coder.crf_per_halving
        off = min(self.MOST_CHANGE, max(-self.MOST_CHANGE, off))
        wanted = min(self.coder.crf_floor, max(_CRF_BEST, self.crf + off))
        if abs(wanted - self.crf) >= self.LEAST_CHANGE or (wanted == self.coder.crf_floor > self.crf):
            self.crf = wanted
        return self.crf


class BaselineDecoder:
    """Packets to frames in presentation order. Damaged packets give damaged frames or none, never an exception.

    width, height: of the stream; pictures of another size come from damaged headers, and are dropped and counted. None
    where a receiver cannot know: then every picture is taken as it is. Those of more than most_pixels are damage, too.
    """

    def __init__(self, codec: str, width: int | None = None, height: int | None = None, *, most_pixels: int = LARGEST_PICTURE):
        self.width, self.height = width, height
        self.damaged_packets = 0
        self._sizes = {(width, height), (width + width % 2, height + height % 2)} if width and height else None
        self._context: Any = av.CodecContext.create(coder_named(codec).decoder, "r")
        self._context.options = {"max_pixels": str(most_pixels)}
        if codec == "av1":
            self._context.options |= {"max_frame_delay": "1"}  # dav1d's frame threads wait for ever after some damage

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) that the stream tells; (0, 0) before it does."""
        return self._context.width, self._context.height

    def push(self, packet: EncodedPacket) -> list[Frame]:
        wire = av.Packet(packet.data)
        wire.pts, wire.dts, wire.time_base = packet.pts, packet.dts, Fraction(1, TICKS_PER_S)
        return self._frames(wire)

    def flush(self) -> list[Frame]:
        """The frames still held back for reordering."""
        return self._frames(None)

    def _frames(self, wire: av.Packet | None) -> list[Frame]:
        try:
            pictures = self._context.decode(wire)
        except av.FFmpegError:
            self.damaged_packets += 1
            return []
        frames = []
        for picture in pictures:
            if self._sizes and (picture.width, picture.height) not in self._sizes:  # from a damaged header
                self.damaged_packets += 1
                continue
            # Without its metadata: decoders of H.264 and H.265 tag chroma as sited left, while the frames were made with
            # FFmpeg's default, and half a pixel of shift costs up to 0.6 dB.
            bare = av.VideoFrame.from_ndarray(picture.to_ndarray(), format=picture.format.name)
            rgb = bare.reformat(
                format="rgb24",
                src_colorspace=Colorspace.ITU601,
                src_color_range=ColorRange.MPEG,
                interpolation=_EXACT,
            ).to_ndarray()
            frames.append(Frame(np.ascontiguousarray(rgb[: self.height, : self.width]), picture.pts))
        return frames


@dataclass(frozen=True)
class Encoding:
    """A clip encoded once. rate_kbps counts every packet byte; psnr_db is the mean over frames (uint8 RGB).

    at_floor: the encoder's highest CRF still needs more than the wanted rate, or already gives more than the wanted PSNR.
    """

    codec: str
    crf: float
    packets: tuple[EncodedPacket, ...]
    width: int
    height: int
    frames: int
    duration_s: float
    psnr_db: float
    at_floor: bool = False

    @property
    def payload_bytes(self) -> int:
        return sum(len(packet.data) for packet in self.packets)

    @property
    def rate_kbps(self) -> float:
        return self.payload_bytes * 8 / self.duration_s / 1000

    @property
    def bits_per_pixel(self) -> float:
        return self.payload_bytes * 8 / (self.width * self.height * self.frames)

    def decode(self) -> Iterator[Frame]:
        """The clip as a receiver sees it; can be called again."""
        decoder = BaselineDecoder(self.codec, self.width, self.height)
        for packet in self.packets:
            yield from decoder.push(packet)
        yield from decoder.flush()

    def __repr__(self) -> str:
        floor = ", its floor" if self.at_floor else ""
        return f"Encoding({self.codec} CRF {self.crf:g}{floor}: {self.rate_kbps:.2f} kbit/s, {self.psnr_db:.2f} dB)"


class CrfSearch:
    """One clip, one codec: encodings by CRF, each made once, and the searches over them.

    Only packets are kept, and frames are gone through one at a time, so memory does not grow with the pixels.
    duration_s: how long the clip is shown, which rates are over; None where the last frame lasts as long as the one before.
    progress(frames_done, frames_total) is told of every frame of every encoding; the total is None in the first.
    """

    def __init__(
        self,
        frames: Frames,
        codec: str,
        *,
        preset: str | None = None,
        gop_s: float = 10.0,
        duration_s: float | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ):
        self.coder = coder_named(codec)
        self.codec, self.preset, self.gop_s = codec, preset, gop_s
        self._given_s = duration_s
        self._open = frames if callable(frames) else lambda: frames
        self._progress = progress or (lambda done, total: None)
        self._frames: int | None = None
        self._found: dict[float, Encoding] = {}

    @property
    def encodings(self) -> list[Encoding]:
        """All that were made, by rising rate: a rate-distortion curve."""
        return sorted(self._found.values(), key=lambda encoding: encoding.payload_bytes)

    def at_crf(self, crf: float) -> Encoding:
        if crf not in self._found:
            self._found[crf] = self._encode(crf)
        return self._found[crf]

    def at_rate(self, kbps: float, tolerance: float = 0.02, attempts: int = 8) -> Encoding:
        """The encoding nearest to `kbps` that the CRF can reach: within `tolerance` of it where `attempts` are enough."""
        return self._search(lambda e: math.log(e.rate_kbps), math.log(kbps), math.log1p(tolerance), attempts, math.log(2))

    def at_psnr(self, psnr_db: float, tolerance_db: float = 0.05, attempts: int = 8) -> Encoding:
        """The encoding whose PSNR is nearest to `psnr_db`."""
        return self._search(lambda e: e.psnr_db, psnr_db, tolerance_db, attempts, 3.0)

    def _search(
        self, value: Callable[[Encoding], float], wanted: float, tolerance: float, attempts: int, rise_per_halving: float
    ) -> Encoding:
        crf = find_crf(
            self.codec,
            lambda crf: value(self.at_crf(crf)),
            wanted,
            tolerance,
            attempts=attempts,
            rise_per_halving=rise_per_halving,
            known={crf: value(encoding) for crf, encoding in self._found.items()},
        )
        found = self.at_crf(crf)
        return replace(found, at_floor=crf == self.coder.crf_floor and value(found) > wanted + tolerance)

    def _encode(self, crf: float) -> Encoding:
        self._measure()
        encoder: BaselineEncoder | None = None
        packets: list[EncodedPacket] = []
        for done, frame in enumerate(self._open(), start=1):
            if encoder is None:
                size = frame.width, frame.height
                encoder = BaselineEncoder(self.codec, *size, crf=crf, fps=self._fps, preset=self.preset, gop_s=self.gop_s)
            packets += encoder.push(frame)
            self._progress(done, self._frames)
        assert encoder is not None and self._frames is not None
        packets += encoder.flush()
        made = Encoding(self.codec, crf, tuple(packets), *size, self._frames, self._duration_s, math.nan)
        scores = [_psnr_db(a.rgb, b.rgb) for a, b in zip(self._open(), made.decode(), strict=True)]
        return replace(made, psnr_db=sum(scores) / len(scores))

    def _measure(self) -> None:
        """The clip's length and mean frame rate, once. A single frame lasts 1/25 s where nothing is told."""
        if self._frames is not None:
            return
        times = [frame.pts for frame in self._open()]
        if not times:
            raise InputError("no frames to encode")
        gap = times[-1] - times[-2] if len(times) > 1 else TICKS_PER_S // 25
        even_s = (times[-1] - times[0] + gap) / TICKS_PER_S  # a last picture that stands long is no slower video
        self._fps, self._frames = len(times) / even_s, len(times)
        self._duration_s = even_s if self._given_s is None else self._given_s


def find_crf(
    codec: str,
    value: Callable[[float], float],
    wanted: float,
    tolerance: float,
    *,
    attempts: int = 8,
    rise_per_halving: float = math.log(2),
    known: dict[float, float] | None = None,
) -> float:
    """The CRF at which `value` is nearest to `wanted`, within `tolerance` where so many attempts are enough: bracketed
    interpolation. The codec's floor where even that gives more.

    value: of an encoding at a CRF; it falls as the CRF rises, by about rise_per_halving (of the rate) in
    coder.crf_per_halving steps: log(2) for the log of a rate. known: values already found.
    """
    coder = coder_named(codec)
    found = dict(known or {})
    if coder.crf_floor not in found:
        found[coder.crf_floor] = value(coder.crf_floor)
    if found[coder.crf_floor] >= wanted - tolerance:
        return coder.crf_floor
    slope = -rise_per_halving / coder.crf_per_halving

    def off(crf: float) -> float:
        return abs(found[crf] - wanted)

    for _ in range(attempts):
        if off(min(found, key=off)) <= tolerance:
            break
        # By CRF, not by value, which is not quite monotone: neighbours in value may lie on one side.
        above = max((crf for crf in found if found[crf] >= wanted), default=None)
        below = min(crf for crf in found if found[crf] < wanted and (above is None or crf > above))
        if above is None:
            guess = below + 1.25 * (wanted - found[below]) / slope  # too far rather than too near: it brackets
        else:
            share = (wanted - found[below]) / (found[above] - found[below])
            share = min(max(share, 0.1), 0.9)  # ends in halvings where the curve is too bent for a straight line
            guess = below + share * (above - below)
        lowest, highest = _CRF_BEST if above is None else above + coder.crf_step, below - coder.crf_step
        if lowest > highest:
            break
        guess = min(max(round(guess / coder.crf_step) * coder.crf_step, lowest), highest)
        found[guess] = value(guess)
    return min(found, key=off)


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """As evaluation.metrics.psnr, which lies a floor above."""
    error = cv2.norm(a, b, cv2.NORM_L2SQR) / a.size
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def _leave_real_time() -> None:
    """Back to ordinary scheduling for this process's threads: run by root, SVT-AV1 gives itself and its caller real-time
    priority, which starves the rest of the machine and spoils every measurement beside it."""
    tasks = "/proc/self/task"
    for task in os.listdir(tasks) if os.path.isdir(tasks) and hasattr(os, "sched_setscheduler") else []:
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(int(task)) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(int(task), os.SCHED_OTHER, os.sched_param(0))


@cache
def _crf_to_70() -> bool:
    """Whether the SVT-AV1 here takes CRFs up to 70 and quarters between; older ones end at 63 and take whole ones alone."""
    try:
        BaselineEncoder("av1", 64, 64, crf=69.75)
    except InputError:
        return False
    return True


def _without_encoder_text(data: bytes) -> bytes:
    """An access unit without x264's SEI "user data unregistered": 700 bytes about itself that no decoder needs.

    H.264 Annex B and D.1.6. On a clip of some seconds that text would be a tenth of the stream.
    """
    units, start = [], data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        units.append(data[start + 3 : end if end >= 0 else len(data)])
        start = end
    kept = [unit for unit in units if not (unit[:1] and unit[0] & 31 == 6 and unit[1:2] == b"\x05")]
    return b"".join(b"\0\0\1" + unit.rstrip(b"\0") for unit in kept)
