"""MCode and ordinary codecs through the same noisy channel: `mcode evaluate channel`. No sockets, no clock: exact,
repeatable.

Every lane is what `mcode send` sends and `mcode receive` shows: RTP packets, their headers spared by bit errors
alike (unless they are exposed), the session description known to the receiver (MCode's stream header; SPS and PPS).
Quality is that of what a viewer sees at each frame's time, a frozen picture included, against the frames that all
encoders were fed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from mcode.baseline import coder_named, find_crf, live_encoder
from mcode.channel import Channel, ChannelSettings
from mcode.codec import CODERS, Encoder, Model
from mcode.errors import InputError
from mcode.evaluation.compare import LONGEST_S
from mcode.evaluation.metrics import luma, psnr, ssim
from mcode.frame import TICKS_PER_S, Frame
from mcode.lanes import BaselineLane, McodeLane
from mcode.manifold import load
from mcode.rtp import h264, payload, sdp
from mcode.rtp.packets import RtpPacket
from mcode.text import shown_name
from mcode.transcode import geometry
from mcode.video import FrameReader
from mcode.whole import refuse_existing, write_whole

BIT_ERROR_RATES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 5e-2)
LOSSES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
LANES = ("fixed", "huffman", "h264", "h265", "range")
"""MCode by coder, and the ordinary codecs. `range` is for manifolds with a hyperprior."""
LABELS = {
    "fixed": "MCode fixed",
    "huffman": "MCode huffman",
    "range": "MCode range",
    "h264": "H.264",
    "h265": "H.265",
}
RATE_TOLERANCE = 0.02
"""How far from MCode's rate a baseline's may be."""
_SHOWN = ((0.0, 0.0), (1e-4, 0.0), (1e-3, 0.0), (1e-2, 0.0), (0.0, 0.05), (0.0, 0.2), (0.0, 0.5))
_SSRC = 7


@dataclass(frozen=True)
class ChannelRow:
    """One lane under one condition: means over frames and seeds. drop_db: PSNR below the same lane's without damage.

    worst_db: of the seed that fared worst. shown: share of the frames that were new pictures, not a frozen one.
    """

    lane: str
    bit_error_rate: float
    loss: float
    psnr_db: float
    ssim: float
    drop_db: float
    worst_db: float
    shown: float


@dataclass(frozen=True)
class LaneRate:
    """rate_kbps: of RTP packets as sent, IP and UDP headers not counted. at_floor: the codec cannot go lower. crf: a
    baseline's constant rate factor."""

    lane: str
    rate_kbps: float
    payload_kbps: float
    packets: int
    at_floor: bool
    crf: float | None = None


@dataclass(frozen=True)
class ChannelReport:
    input: str
    manifold: str
    manifold_id: str
    n: int
    width: int
    height: int
    frames: int
    duration_s: float
    seeds: int
    burst: float
    refresh_s: float
    rates: tuple[LaneRate, ...]
    rows: tuple[ChannelRow, ...]
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    expose_headers: bool = False
    adaptive: bool = False
    bundle: int = 1

    @property
    def interval(self) -> str:
        """N in words, and how many keyframes share a packet."""
        n = f"{self.n} or less" if self.adaptive else str(self.n)
        return n if self.bundle == 1 else f"{n}, {self.bundle} keyframes to a packet"


def evaluate_channel(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    manifold: str | os.PathLike[str] | Model = "general",
    n: int = 4,
    adaptive: bool = False,
    bundle: int = 1,
    quality: int | None = None,
    lanes: Sequence[str] | None = None,
    bit_error_rates: Sequence[float] = BIT_ERROR_RATES,
    losses: Sequence[float] = LOSSES,
    burst: float = 1.0,
    seeds: int = 5,
    seed: int = 0,
    refresh_s: float = 5.0,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    expose_headers: bool = False,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> ChannelReport:
    """Bit error rates without loss, then losses without bit errors, `seeds` times each.

    lanes: of LANES; all that the manifold can where left out. output: a folder for channel.json, channel.md, channel.png
    (curves) and pictures.png (one frame under each condition). The frames are held in memory: without duration_s the first
    LONGEST_S of them, and a warning says so. There is no way back: a receiver cannot ask for a refresh.
    expose_headers: bit errors hit the RTP and payload headers, too, which they spare otherwise, as in the player; what is
    dropped for it is lost. The baselines get the CRF at which they take the rate of the dearest MCode lane, or their floor.
    Raises InputError, ManifoldError.
    """
    unknown = [lane for lane in lanes or () if lane not in LANES]
    if unknown:
        raise InputError(f"unknown lane {unknown[0]!r}: one of {', '.join(LANES)}")
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least one")
    model: Any = load(manifold, device) if isinstance(manifold, str | os.PathLike) else manifold
    if lanes is None:
        lanes = [lane for lane in LANES if lane != "range" or model.hyper is not None]
    elif "range" in lanes and model.hyper is None:
        name = getattr(model, "name", model.id)
        raise InputError(f"--lanes range: manifold {name} has no hyperprior; its coders are huffman and fixed")
    folder = _prepare(output, force)
    limit_s = LONGEST_S if duration_s is None else duration_s
    frames, length_s, cut = _read(input, model, size, start_s, limit_s)
    options = {"n": n, "adaptive": adaptive, "quality": quality, "refresh_s": refresh_s}
    senders = _senders(frames, length_s, model, lanes, bundle, options)
    conditions = list(dict.fromkeys([(rate, 0.0) for rate in bit_error_rates] + [(0.0, loss) for loss in losses]))
    if (0.0, 0.0) not in conditions:
        conditions.insert(0, (0.0, 0.0))
    total = len(senders) * sum(1 if condition == (0.0, 0.0) else seeds for condition in conditions)
    rows: list[ChannelRow] = []
    pictures: dict[tuple[str, float, float], np.ndarray] = {}
    done = 0
    middle = len(frames) // 2
    for lane, sender in senders.items():
        clean = math.nan
        for rate, loss in sorted(conditions, key=lambda condition: condition != (0.0, 0.0)):
            scores = []
            for which in range(1 if rate == loss == 0 else seeds):
                settings = ChannelSettings(bit_error_rate=rate, loss=loss, burst=burst, seed=seed + which)
                shown = simulate(sender, frames, settings, expose_headers)
                scores.append(_score(frames, shown))
                if which == 0:
                    pictures[lane, rate, loss] = shown[middle][0]
                done += 1
                if progress is not None:
                    progress(done, total)
            means = np.mean(scores, axis=0)
            clean = float(means[0]) if rate == loss == 0 else clean
            worst = float(min(score[0] for score in scores))
            rows.append(
                ChannelRow(lane, rate, loss, float(means[0]), float(means[1]), clean - float(means[0]), worst, float(means[2]))
            )
    report = ChannelReport(
        input=os.fspath(input),
        manifold=getattr(model, "name", model.id),
        manifold_id=model.id,
        n=n,
        width=frames[0].width,
        height=frames[0].height,
        frames=len(frames),
        duration_s=length_s,
        seeds=seeds,
        burst=burst,
        refresh_s=refresh_s,
        rates=tuple(_rate(lane, sender, frames, length_s) for lane, sender in senders.items()),
        rows=tuple(rows),
        warnings=(f"measured the first {LONGEST_S:g} s; give --duration for more",) if cut and duration_s is None else (),
        expose_headers=expose_headers,
        adaptive=adaptive,
        bundle=bundle,
    )
    return report if folder is None else _write(report, pictures, frames[middle].rgb, folder)


# The lanes: frames to RTP packets, and the receiving end of them.


class LaneSender(Protocol):
    """Frames to packets, each with the bytes that bit errors spare. `receiver` makes a new receiving end."""

    def push(self, frame: Frame) -> list[tuple[RtpPacket, int]]: ...
    def flush(self) -> list[tuple[RtpPacket, int]]: ...
    def restart(self) -> None: ...
    def receiver(self) -> McodeLane | BaselineLane: ...


class McodeSender:
    def __init__(self, model: Model, width: int, height: int, slices: int = 1, bundle: int = 1, **options: Any) -> None:
        self.model = _Remembering(model)
        self._size, self._options, self._bundle = (width, height), {**options, "slices": slices}, bundle
        self.restart()

    def restart(self) -> None:
        self._encoder = Encoder(self.model, *self._size, **self._options)
        self._packetiser = payload.Packetiser(_SSRC, bundle=self._bundle)

    def push(self, frame: Frame) -> list[tuple[RtpPacket, int]]:
        return _spared(packet for keyframe in self._encoder.push(frame) for packet in self._packetiser.push(keyframe))

    def flush(self) -> list[tuple[RtpPacket, int]]:
        made = [packet for keyframe in self._encoder.flush() for packet in self._packetiser.push(keyframe)]
        return _spared([*made, *self._packetiser.flush()])

    def receiver(self) -> McodeLane:
        header = base64.b64encode(payload.header_bytes(self._encoder.header)).decode()
        media = sdp.Media("MCODE", 5004, self._packetiser.payload_type, _SSRC, {"header": header})
        return McodeLane(lambda _: self.model, media)


def _spared(packets: Iterable[RtpPacket]) -> list[tuple[RtpPacket, int]]:
    return [(packet, payload.protected_bytes(packet)) for packet in packets]


class _Remembering:
    """A model that analyses each frame once: every seed sends the same frames."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._latents: dict[bytes, Any] = {}  # by the frame's digest: the frame itself would be held as long

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def analyse(self, rgb: np.ndarray) -> Any:
        key = hashlib.sha256(np.ascontiguousarray(rgb).data).digest()
        if key not in self._latents:
            self._latents[key] = self._model.analyse(rgb)
        return self._latents[key]


class BaselineSender:
    def __init__(self, codec: str, width: int, height: int, crf: float, fps: float, refresh_s: float) -> None:
        self.codec, self._size, self.crf = codec, (width, height), crf
        self._options: dict[str, Any] = {"crf": crf, "fps": fps, "gop_s": refresh_s}
        self.at_floor = False
        self.restart()

    def restart(self) -> None:
        self._encoder = live_encoder(self.codec, *self._size, **self._options)
        self._packetiser = h264.H264Packetiser(_SSRC, codec=self.codec)
        self._sets: list[bytes] = []

    def push(self, frame: Frame) -> list[tuple[RtpPacket, int]]:
        made = []
        for unit in self._encoder.push(frame):
            self._sets = self._sets or h264.parameter_sets(unit.data, self.codec)
            made += self._packetiser.push(unit.data, unit.pts)
        return [(packet, h264.protected_bytes(packet, self.codec)) for packet in made]

    def flush(self) -> list[tuple[RtpPacket, int]]:
        return []

    def receiver(self) -> BaselineLane:
        parameters = sdp.sprop(self._sets, self.codec)
        return BaselineLane(sdp.Media(self.codec.upper(), 5006, self._packetiser.payload_type, _SSRC, parameters))


def simulate(
    sender: LaneSender, frames: Sequence[Frame], settings: ChannelSettings, expose_headers: bool = False
) -> list[tuple[np.ndarray, bool]]:
    """(picture that a viewer sees at each frame's time, whether it is a new one): through the channel of these
    settings.

    Grey until the first picture. Time is the frames' own.
    """
    sender.restart()
    channel = Channel(settings)
    lane: Any = None
    arrived: list[tuple[int, Frame]] = []  # (pts, picture)
    first: int | None = None
    base = round(frames[0].pts)
    for frame in [*frames, None]:
        now_s = (frame or frames[-1]).pts / TICKS_PER_S + (0.0 if frame else 1.0)
        packets = sender.flush() if frame is None else sender.push(frame)
        lane = lane or sender.receiver()
        units = []
        for packet, spared in packets:
            first = packet.timestamp if first is None else first
            for at_s, data in channel.transmit(bytes(packet), 0 if expose_headers else spared, now_s):
                units += lane.push(data, at_s)
        # The hold of the reorder buffer is below a frame's time: what is lost is given up before the next one.
        units += lane.poll(now_s + 0.035)
        for unit in units:
            arrived += [(decoded.pts - (first or 0) + base, decoded) for decoded in lane.decode(unit)]
    for unit in lane.poll(frames[-1].pts / TICKS_PER_S + 99):
        arrived += [(decoded.pts - (first or 0) + base, decoded) for decoded in lane.decode(unit)]
    return list(_viewed(frames, arrived))


def _viewed(frames: Sequence[Frame], arrived: Sequence[tuple[int, Frame]]) -> Iterator[tuple[np.ndarray, bool]]:
    """At each frame's time the newest decoded frame that is not of a later time."""
    arrived = sorted(arrived, key=lambda item: item[0])
    shape = frames[0].rgb.shape
    picture, at = np.full(shape, 128, np.uint8), 0
    for frame in frames:
        fresh = False
        while at < len(arrived) and arrived[at][0] <= frame.pts + 900:  # 10 ms: timestamps may be rounded
            picture, fresh = np.ascontiguousarray(arrived[at][1].rgb[: shape[0], : shape[1]]), True
            at += 1
        yield picture, fresh


def _senders(
    frames: list[Frame], length_s: float, model: Model, lanes: Sequence[str], bundle: int, options: dict[str, Any]
) -> dict[str, LaneSender]:
    """options: of the `Encoder`."""
    width, height = frames[0].width, frames[0].height
    made: dict[str, LaneSender] = {}
    rate = 0.0
    for coder in [lane for lane in lanes if lane in CODERS] or ["fixed", "huffman"]:
        trial = Encoder(model, width, height, coder=coder, **options)
        size = sum(len(part or b"") for part in trial.push(frames[0])[0].slices)
        _, h, w = trial.shape
        slices = payload.fitting_slices(size, h * w)
        made[coder] = McodeSender(model, width, height, coder=coder, slices=slices, bundle=bundle, **options)
        rate = max(rate, _sent(made[coder], frames, length_s)[0])
    for codec in ("h264", "h265"):
        if codec in lanes:
            made[codec] = _baseline_at(codec, frames, length_s, rate, options["refresh_s"])
    return {lane: made[lane] for lane in lanes}


def _baseline_at(codec: str, frames: list[Frame], length_s: float, rate_kbps: float, refresh_s: float) -> BaselineSender:
    """The encoder at the CRF whose packets take the wanted rate, or at its floor."""
    width, height = frames[0].width, frames[0].height
    fps = (len(frames) - 1) * TICKS_PER_S / (frames[-1].pts - frames[0].pts)

    def at(crf: float) -> BaselineSender:
        return BaselineSender(codec, width, height, crf, fps, refresh_s)

    def log_rate(crf: float) -> float:
        return math.log(_sent(at(crf), frames, length_s)[0])

    wanted, tolerance = math.log(rate_kbps), math.log1p(RATE_TOLERANCE)
    best = at(find_crf(codec, log_rate, wanted, tolerance))
    best.at_floor = best.crf == coder_named(codec).crf_floor and log_rate(best.crf) > wanted + tolerance
    return best


def _sent(sender: LaneSender, frames: Sequence[Frame], length_s: float) -> tuple[float, float, int]:
    """(kbit/s of packets, kbit/s of what bit errors may hit, packets)."""
    sender.restart()
    packets = [found for frame in frames for found in sender.push(frame)] + sender.flush()
    bits = 8 / 1000 / length_s
    whole = sum(len(bytes(packet)) for packet, _ in packets)
    return whole * bits, (whole - sum(spared for _, spared in packets)) * bits, len(packets)


def _rate(lane: str, sender: LaneSender, frames: Sequence[Frame], length_s: float) -> LaneRate:
    rate, exposed, packets = _sent(sender, frames, length_s)
    return LaneRate(lane, rate, exposed, packets, getattr(sender, "at_floor", False), getattr(sender, "crf", None))


# Frames in, numbers and pictures out.


def _read(
    input: str | os.PathLike[str], model: Any, size: tuple[int, int] | None, start_s: float, duration_s: float
) -> tuple[list[Frame], float, bool]:
    """The frames; for how long they are shown, in seconds, the last one, too, as `encode` counts it; whether more follow."""
    whole = FrameReader(input, start_s=start_s, duration_s=duration_s)
    coded, _, aspect = geometry((whole.width, whole.height), size, getattr(model, "frame_size", None))
    reader = FrameReader(input, start_s=start_s, duration_s=duration_s, size=coded, crop_to=aspect)
    frames = list(reader)
    if len(frames) < 2:
        raise InputError(f"{os.fspath(input)}: a channel needs a video of two frames or more")
    last_ticks = reader.last_duration_ticks or frames[-1].pts - frames[-2].pts
    length_s, promised_s = (frames[-1].pts + last_ticks) / TICKS_PER_S, reader.info.duration_s
    more = length_s > duration_s - 1e-3 if promised_s is None else promised_s - start_s > duration_s + 1e-3
    return frames, length_s, more


def _score(frames: Sequence[Frame], shown: list[tuple[np.ndarray, bool]]) -> tuple[float, float, float]:
    """(PSNR, SSIM of luma, share of new pictures), means over frames."""
    values = [
        (psnr(frame.rgb, seen), ssim(luma(frame.rgb), luma(seen)), float(fresh))
        for frame, (seen, fresh) in zip(frames, shown, strict=True)
    ]
    means = np.mean(values, axis=0)
    return float(means[0]), float(means[1]), float(means[2])


_FILES = ("channel.json", "channel.md", "channel.png", "pictures.png")


def _prepare(output: str | os.PathLike[str] | None, force: bool) -> Path | None:
    if output is None:
        return None
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{output} is a file: name a folder for the report")
    refuse_existing((folder / name for name in _FILES), force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot make this folder ({error.strerror})") from error
    return folder


def _write(
    report: ChannelReport, pictures: dict[tuple[str, float, float], np.ndarray], source: np.ndarray, folder: Path
) -> ChannelReport:
    report = ChannelReport(**{**report.__dict__, "files": tuple(os.fspath(folder / name) for name in _FILES)})
    named = {**asdict(report), "input": shown_name(report.input), "files": _FILES}  # wherever they lie
    sheet = cv2.cvtColor(_contact_sheet(report, pictures, source), cv2.COLOR_RGB2BGR)
    contents = {
        "channel.json": (json.dumps(named, indent=1) + "\n").encode(),
        "channel.md": table(report).encode(),
        "channel.png": _drawn(report),
        "pictures.png": cv2.imencode(".png", sheet)[1].tobytes(),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return report


def table(report: ChannelReport) -> str:
    """The report in Markdown."""
    title = (
        f"{shown_name(report.input)}: {report.width}x{report.height}, {report.duration_s:.1f} s, N = {report.interval}, "
        f"manifold {report.manifold} {report.manifold_id}, refresh every {report.refresh_s:g} s, no way back, "
        f"{report.seeds} seeds, bit errors {'hit' if report.expose_headers else 'spare'} the headers, PSNR in dB (SSIM)."
    )
    lines = [title, ""]
    for sent in report.rates:
        crf = "" if sent.crf is None else f", CRF {sent.crf:g}" + (": its floor" if sent.at_floor else "")
        lines.append(f"- {LABELS[sent.lane]}: {sent.rate_kbps:.2f} kbit/s in RTP packets{crf}")
    lanes = [rate.lane for rate in report.rates]
    lines += ["", "| channel | " + " | ".join(LABELS[lane] for lane in lanes) + " |", "|---" * (len(lanes) + 1) + "|"]
    found = {(row.lane, row.bit_error_rate, row.loss): row for row in report.rows}
    for rate, loss in dict.fromkeys((row.bit_error_rate, row.loss) for row in report.rows):
        cells = [f"{found[lane, rate, loss].psnr_db:.2f} ({found[lane, rate, loss].ssim:.3f})" for lane in lanes]
        lines.append(f"| {channel_text(rate, loss)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def channel_text(rate: float, loss: float) -> str:
    """What a channel does, in words. rate: of bit errors; loss: of packets; 0 to 1, one of them 0."""
    return f"{100 * loss:g}% lost" if loss else f"bit errors {rate:g}" if rate else "clean"


def _drawn(report: ChannelReport) -> bytes:
    """The curves, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharey="row")
    rates = {rate.lane: rate for rate in report.rates}
    for lane, rate in rates.items():
        label = f"{LABELS[lane]}, {rate.rate_kbps:.1f} kbit/s" + (" (its floor)" if rate.at_floor else "")
        rows = [row for row in report.rows if row.lane == lane]
        for row_axes, value in zip(axes, ("psnr_db", "ssim"), strict=True):
            errors = sorted((row.bit_error_rate, getattr(row, value)) for row in rows if row.loss == 0)
            losses = sorted((row.loss, getattr(row, value)) for row in rows if row.bit_error_rate == 0)
            row_axes[0].plot([max(x, 1e-6) for x, _ in errors], [y for _, y in errors], "o-", label=label, markersize=4)
            row_axes[1].plot([100 * x for x, _ in losses], [y for _, y in losses], "o-", label=label, markersize=4)
    for row_axes, name in zip(axes, ("PSNR, dB", "SSIM"), strict=True):
        row_axes[0].set(xscale="log", xlabel="bit error rate (leftmost: none)", ylabel=name)
        row_axes[1].set(xlabel="packets lost, %")
        for each in row_axes:
            each.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    title = f"{shown_name(report.input)}, {report.width}x{report.height}, N = {report.interval}, {report.seeds} seeds"
    figure.suptitle(title, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _contact_sheet(
    report: ChannelReport, pictures: dict[tuple[str, float, float], np.ndarray], source: np.ndarray
) -> np.ndarray:
    """The middle frame: a row for each lane, a column for each condition; the source in front."""
    columns = [condition for condition in _SHOWN if any(key[1:] == condition for key in pictures)]
    tile_w = 200
    tile_h = max(1, round(source.shape[0] * tile_w / source.shape[1]))
    head, edge = 22, 4
    width, height = (tile_w + edge) * (len(columns) + 1) + edge, (tile_h + head + edge) * len(report.rates) + head
    sheet = np.full((height, width, 3), 255, np.uint8)

    def write(text: str, x: int, y: int) -> None:
        cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)

    def place(picture: np.ndarray, x: int, y: int) -> None:
        sheet[y : y + tile_h, x : x + tile_w] = cv2.resize(picture, (tile_w, tile_h), interpolation=cv2.INTER_CUBIC)

    for index, condition in enumerate(columns, 1):
        write(channel_text(*condition), edge + index * (tile_w + edge), 16)
    write("source", edge, 16)
    for number, rate in enumerate(report.rates):
        top = 2 * head + number * (tile_h + head + edge)
        if number == 0:
            place(source, edge, top)
        write(
            f"{LABELS[rate.lane]}, {rate.rate_kbps:.1f} kbit/s" + (" (floor)" if rate.at_floor else ""),
            edge,
            top - 6,
        )
        for index, condition in enumerate(columns, 1):
            if (rate.lane, *condition) in pictures:
                place(pictures[(rate.lane, *condition)], edge + index * (tile_w + edge), top)
    return sheet
