"""Live sending: a file, a camera or a test picture as RTP over UDP, MCode beside an ordinary codec and the sound.

Lanes go to HOST:PORT (MCode), PORT + 2 (the baseline) and PORT + 4 (Opus), each with its RTCP on the same port (RFC
5761). The channel sits here, behind the packetisers: it damages pictures; the sound shares only its delay. Not here:
receive.py.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import heapq
import ipaddress
import itertools
import math
import os
import random
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import av
import cv2
import numpy as np

from mcode import fec
from mcode.baseline import BaselineEncoder, CrfFollower, coder_named, live_encoder
from mcode.channel import Channel, ChannelSettings
from mcode.codec import CODERS, Encoder, Model
from mcode.errors import InputError, WireError
from mcode.fec import FecSettings, Protector
from mcode.frame import TICKS_PER_S, Frame
from mcode.manifold import load
from mcode.packet import Packet, StreamHeader, too_large
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import FEC, HEADER_BYTES, MTU, RtpPacket
from mcode.text import shown_name
from mcode.transcode import geometry
from mcode.video import FrameReader, audio_packets, centre_crop, resize
from mcode.whole import write_whole

BASELINES = ("h264", "h265", "none")
LARGEST_LAG_S = 0.25
"""A sender that falls this far behind real time leaves frames out instead of falling further."""
_LEAST_REFRESH_GAP_S = 0.3
_LEAST_REPORT_GAP_S = 1.0
_RATE_WINDOW_S = 10.0
CAMERA_PATIENCE_S = 1.0
"""A camera without pictures for this long is said to be gone; it is waited for all the same."""
_CAMERA_RETRY_S = 0.2
_SOUND_STEP_S = 0.02
"""As long as a packet of sound."""

Progress = Callable[[int, int | None], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class SendConfig:
    """What `mcode send` is asked for. Raises InputError.

    input: a file, "camera:0" or "testsrc". to: rtp://HOST:PORT. baseline: "h264", "h265" or "none"; baseline_rate: "equal" (to
    what the MCode lane is measured to send) or kbit/s. adaptive: see `Encoder`. sdp: a session description to write. size:
    (width, height) to code. fec: "8+2", parity packets for every so many; fec_header: send payload headers twice. loop: files
    start over.
    """

    input: str
    to: str = "rtp://127.0.0.1:5004"
    n: int = 4
    manifold: str = "general"
    coder: str = "huffman"
    quality: int | None = None
    refresh_s: float = 5.0
    adaptive: bool = False
    baseline: str = "h264"
    baseline_rate: str | float = "equal"
    channel: ChannelSettings = field(default_factory=ChannelSettings)
    realtime: bool = True
    sdp: str | os.PathLike[str] | None = None
    size: tuple[int, int] | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    loop: bool = False
    audio: bool = True
    fec: str | None = None
    fec_header: bool = False
    device: str = "auto"
    mtu: int = MTU

    def __post_init__(self) -> None:
        sdp.parse_url(self.to, "--to")
        if self.coder not in CODERS:
            raise InputError(f"--coder {self.coder}: choose {' or '.join(CODERS)}")
        if not 1 <= self.n <= 65_535:
            raise InputError(f"--n {self.n}: the keyframe interval is a whole number from 1 to 65535")
        if self.baseline not in BASELINES:
            raise InputError(f"--baseline {self.baseline}: choose h264, h265 or none")
        if self.baseline_rate != "equal":
            try:
                good = 0 < float(self.baseline_rate) < 1e6
            except ValueError:
                good = False
            if not good:
                raise InputError(f"--baseline-rate {self.baseline_rate}: give kbit/s, or equal")
        if self.fec is not None:
            FecSettings.parse(self.fec)
        if not 300 <= self.mtu <= 65_000:
            raise InputError(f"packets of {self.mtu} bytes: from 300 to 65000")


@dataclass(frozen=True)
class LaneReport:
    """What one lane sent. rate_kbps: of RTP packets, repair included; not of IP and UDP headers (28 bytes each) nor of RTCP,
    a report of some 60 bytes every five seconds.

    target_kbps, at_floor: of a baseline that follows a rate, and whether it needs more than that. remote_*: as the
    receiver last reported; None where it never did.
    """

    name: str
    packets: int
    payload_bytes: int
    wire_bytes: int
    fec_bytes: int
    rate_kbps: float
    channel_lost: int
    channel_damaged: int
    channel_flipped_bits: int
    refresh_requests: int
    target_kbps: float | None = None
    at_floor: bool = False
    remote_loss: float | None = None
    remote_jitter_ms: float | None = None
    round_trip_ms: float | None = None


@dataclass(frozen=True)
class SendReport:
    """dropped: frames left out because the machine was too slow for real time."""

    frames: int
    keyframes: int
    dropped: int
    duration_s: float
    manifold_id: str
    n: int
    coder: str
    lanes: dict[str, LaneReport]
    warnings: tuple[str, ...] = ()


def send(
    config: SendConfig,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    stop: threading.Event | None = None,
    model: Model | None = None,
) -> SendReport:
    """Sends until the source ends or `stop` is set. Raises McodeError.

    progress(frames_done, frames_total or None). notify(line): what the user should know while it goes on, as a camera that
    was unplugged.
    """
    with Sender(config, model=model, notify=notify) as sender:
        return sender.run(stop or threading.Event(), progress)


class Sender:
    """One stream being sent. `update` changes it while it runs; `start` and `stop` run it in a thread of its own. As a
    context manager it ends with its block, whatever happens in it.

    Everything that can be wrong with the configuration raises in the constructor. `error` is what ended the thread, if
    anything did. The baseline's and the MCode lane's frames are the same: of the size that the manifold sees.
    """

    def __init__(self, config: SendConfig, *, model: Model | None = None, notify: Notify | None = None) -> None:
        self.config = config
        self.host, self.port = sdp.parse_url(config.to, "--to")
        family, address = resolve(self.host, self.port, config.to)
        _refuse_all(str(address[0]), config.to)
        self.model: Any = model if model is not None else load(config.manifold, config.device).in_integers()
        frame_size = getattr(self.model, "frame_size", None)
        self.source = open_source(config, frame_size)
        self.source.notify = notify or self.source.notify
        self.error: Exception | None = None
        self.report: SendReport | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._changes: dict[str, Any] = {}
        self._encoder: Encoder | None = None
        self._frames = self._keyframes = self._dropped = 0
        self._newest_pts = 0
        self._sound_s = 0.0
        self._start_unix_s = time.time()
        self._start_s = time.monotonic()
        self._slices: int | None = None
        self._session_id = secrets.randbits(62)
        self.newest: Frame | None = None
        self._wire = _Wire(family)
        try:
            for size in ((self.source.width, self.source.height), self.source.display):
                if size[0] * size[1] > payload.LARGEST_LIVE:
                    raise InputError(
                        f"{too_large(*size, payload.LARGEST_LIVE)}, which no receiver shows; choose a smaller --size"
                    )
            self._new_encoder(config)
            if config.sdp is not None:
                for described in _descriptions(config):
                    _check_description(described)
            self._open_lanes(address)
        except BaseException:
            self.close()
            raise

    def _open_lanes(self, address: tuple) -> None:
        config = self.config
        settings = FecSettings.parse(config.fec) if config.fec else None
        mtu = config.mtu - (HEADER_BYTES + fec.OVERHEAD_BYTES if settings else 0)

        def lane(name: str, offset: int, clock_hz: int, channel: ChannelSettings, protected: bool) -> _Lane:
            protector = Protector(settings) if settings and protected else None
            return self._wire.add(_Lane(name, (address[0], address[1] + offset, *address[2:]), clock_hz, channel, protector))

        self.mcode = lane("mcode", 0, payload.CLOCK_HZ, config.channel, True)
        numbers = self.mcode.numbers
        self._packetiser = payload.Packetiser(**numbers, mtu=mtu, twice=config.fec_header)
        self.baseline: _Lane | None = None
        self._baseline: _BaselineSource | None = None
        if config.baseline != "none":
            self.baseline = lane(config.baseline, 2, h264.CLOCK_HZ, config.channel, True)
            rate = None if config.baseline_rate == "equal" else float(config.baseline_rate)
            packetiser = h264.H264Packetiser(**self.baseline.numbers, codec=config.baseline, mtu=mtu)
            self._baseline = _BaselineSource(config, self.source, packetiser, rate)
        self.audio: _Lane | None = None
        self._opus: opus.OpusPacketiser | None = None
        if config.audio and self.source.has_audio:
            self.audio = lane("opus", 4, opus.CLOCK_HZ, _only_delay(config.channel), False)
            self._opus = opus.OpusPacketiser(**self.audio.numbers)

    # While it runs.

    def update(self, *, n: int | None = None, coder: str | None = None, channel: ChannelSettings | None = None) -> None:
        """Takes effect at the next frame (n, coder: with a refresh) or at the next packet (channel). Raises
        InputError."""
        changes: dict[str, Any] = {k: v for k, v in {"n": n, "coder": coder, "channel": channel}.items() if v is not None}
        with self._lock:
            config = replace(self.config, **changes)
            self._new_encoder(config)
            self.config = config
            self._changes |= changes
        if channel is not None:
            for lane in self._wire.lanes:
                lane.channel.settings = _only_delay(channel) if lane is self.audio else channel

    def start(self) -> None:
        """Run in a thread."""
        self._thread = threading.Thread(target=self._run_quietly, name="mcode-send", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> SendReport | None:
        """Say goodbye and end the thread; its report. Raises what ended it before."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.close()
        if self.error is not None:
            raise self.error
        return self.report

    def close(self) -> None:
        """End the thread, if there is one, and give sockets and camera back. May be called again."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        self._wire.close()
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run_quietly(self) -> None:
        try:
            self.report = self.run(self._stop, None)
        except Exception as error:
            self.error = error

    def run(self, stop: threading.Event, progress: Progress | None = None) -> SendReport:
        """Send in this thread until the source ends or stop is set."""
        self.source.stop = stop
        self._wire.start()
        self._start_s, self._start_unix_s = time.monotonic(), time.time()
        try:
            for frame in self.source:
                if stop.is_set() or self._too_late(frame, stop):
                    if stop.is_set():
                        break
                    continue
                self._push(frame)
                if progress is not None:
                    progress(self._frames, self.source.expected_frames)
            if self._encoder is not None:
                self._send_mcode(self._encoder.flush())
            self._send_last_repair()
            if not stop.is_set():
                self._send_last_sound(stop)
            self._wire.finish(stop)
            self._wire.goodbye()
        finally:
            self._wire.close()
        if self._frames == 0 and not stop.is_set():
            raise InputError(f"{self.config.input}: it gave no picture")
        return self.status()

    def _too_late(self, frame: Frame, stop: threading.Event) -> bool:
        """Waits until the frame is due; whether it is so late that it must be left out."""
        if not self.source.is_paced or not self.config.realtime:
            return False
        ahead_s = self._start_s + frame.pts_s - time.monotonic()
        if ahead_s < -LARGEST_LAG_S and self._frames:
            self._dropped += 1
            return True
        self._wait_until(frame.pts_s, stop)
        return False

    def _wait_until(self, media_s: float, stop: threading.Event) -> None:
        """Meanwhile sound and reports go out when they are due: pictures may be seconds apart."""
        while (ahead_s := self._start_s + media_s - time.monotonic()) > 0 and not stop.is_set():
            if self._frames:
                self._wire.report(self._media_time)
                self._send_audio(media_s - ahead_s)
            stop.wait(min(ahead_s, _SOUND_STEP_S))

    def _push(self, frame: Frame) -> None:
        with self._lock:
            changes, self._changes = self._changes, {}
        opening: list[Packet] | None = None
        if self._encoder is None:
            self._slices = self._fitting_slices(frame)
            self._encoder = self._new_encoder(self.config)
            opening = self._encoder.push(frame)  # the first header says whether it is grey, which is described
            self._describe()
        elif changes.keys() & {"n", "coder"}:
            self._send_mcode(self._encoder.flush())
            self._encoder = self._new_encoder(self.config)
        asked = self.mcode.take_refresh_request() and opening is None  # which is a refresh
        if asked:
            self._encoder.request_refresh()
        self._wire.report(self._media_time)  # first of all: the receiver's clock rests on it
        self._send_audio(frame.pts_s)
        self._newest_pts, self.newest = frame.pts, frame
        self._send_mcode(self._encoder.push(frame) if opening is None else opening)
        if asked:  # now, rather than up to N frames later
            self._send_mcode(self._encoder.flush())
        if self._baseline is not None and self.baseline is not None:
            if self.baseline.take_refresh_request():
                self._baseline.restart()
            rate = self.mcode.recent_kbps(frame.pts_s) if self._keyframes > 1 else None
            self._baseline.follow(rate, self.baseline.wire_bytes, frame.pts_s)
            for packet in self._baseline.push(frame):
                self._transmit(self.baseline, packet, h264.protected_bytes(packet, self.config.baseline), frame.pts_s)
        self._frames += 1

    def _new_encoder(self, config: SendConfig) -> Encoder:
        """Raises InputError for a coder, ManifoldError for a quality that the manifold has not."""
        return Encoder(
            self.model,
            self.source.width,
            self.source.height,
            n=config.n,
            coder=config.coder,
            quality=config.quality,
            refresh_s=config.refresh_s,
            adaptive=config.adaptive,
            slices=self._slices or 1,
            display=self.source.display,
        )

    def _fitting_slices(self, frame: Frame) -> int:
        """So many that a refresh's slices fit one packet each."""
        trial = Encoder(self.model, frame.width, frame.height, coder=self.config.coder, quality=self.config.quality)
        size = sum(len(part or b"") for part in trial.push(frame)[0].slices)
        _, h, w = trial.shape
        return payload.fitting_slices(size, h * w, self._packetiser.mtu)

    def _send_mcode(self, packets: list[Packet]) -> None:
        for keyframe in packets:
            self._keyframes += 1
            for packet in self._packetiser.push(keyframe):
                self._transmit(self.mcode, packet, payload.protected_bytes(packet), self._newest_pts / TICKS_PER_S)

    def _send_audio(self, media_s: float) -> None:
        """Sound up to media_s, and a packet more."""
        for data, pts in self.source.audio_until(media_s + _SOUND_STEP_S) if self.audio is not None else ():
            self._send_sound(data, pts)

    def _send_last_sound(self, stop: threading.Event) -> None:
        """What sounds on after the last picture, as fast as it is heard; or else no faster than receivers take it."""
        for data, pts in self.source.audio_until(math.inf) if self.audio is not None else ():
            if self.config.realtime:
                self._wait_until(pts / opus.CLOCK_HZ - _SOUND_STEP_S, stop)
            else:
                stop.wait(_SOUND_STEP_S / 20)
            if stop.is_set():
                return
            self._send_sound(data, pts)

    def _send_sound(self, data: bytes, pts: int) -> None:
        assert self.audio is not None and self._opus is not None
        self._sound_s = pts / opus.CLOCK_HZ
        for packet in self._opus.push(data, pts):
            self._transmit(self.audio, packet, HEADER_BYTES, self._sound_s)

    def _transmit(self, lane: _Lane, packet: RtpPacket, protected: int, media_s: float) -> None:
        self._wire.transmit(lane, bytes(packet), protected, media_s)
        for repair in lane.protector.push(packet) if lane.protector else []:
            self._wire.transmit(lane, bytes(repair), fec.protected_bytes(protected), media_s, is_repair=True)

    def _send_last_repair(self) -> None:
        """The parity packets of the groups that the end of the stream cuts short."""
        for lane in self._wire.lanes:
            for repair in lane.protector.flush() if lane.protector else []:
                spared = fec.protected_bytes(HEADER_BYTES)
                self._wire.transmit(lane, bytes(repair), spared, self._newest_pts / TICKS_PER_S, is_repair=True)

    def _media_time(self, lane: _Lane) -> tuple[int, int]:
        """(NTP time, RTP timestamp) of now: a frame is captured, or due, pts after the start."""
        now = time.time()
        media_s = (
            now - self._start_unix_s if self.config.realtime or not self.source.is_paced else self._newest_pts / TICKS_PER_S
        )
        unix = self._start_unix_s + media_s
        return rtcp.ntp(unix), round(lane.first_timestamp + media_s * lane.clock_hz) & 0xFFFFFFFF

    def _describe(self) -> None:
        if self.config.sdp is None or self._encoder is None:
            return
        session = self.session(self._encoder.header)
        alone = replace(session, media=tuple(replace(each, fec_payload_type=None) for each in session.media[1:]))
        try:
            for path, text in zip(_descriptions(self.config), (session, alone), strict=False):
                _write_description(path, str(text))
        except OSError as error:
            raise InputError(f"--sdp {path}: cannot write it ({error.strerror})") from error

    def session(self, header: StreamHeader) -> sdp.Session:
        """The session description of this stream."""
        number = FEC if self.config.fec else None
        described = {"header": base64.b64encode(payload.header_bytes(header)).decode()}
        media = [sdp.Media("MCODE", self.port, self._packetiser.payload_type, self.mcode.ssrc, described, number)]
        if self.baseline is not None and self._baseline is not None:
            sets = h264.parameter_sets(self._baseline.sample(), self.config.baseline)
            parameters = sdp.sprop(sets, self.config.baseline)
            encoding = self.config.baseline.upper()
            kind = self._baseline.packetiser.payload_type
            media.append(sdp.Media(encoding, self.port + 2, kind, self.baseline.ssrc, parameters, number))
        if self.audio is not None and self._opus is not None:
            stereo = {"sprop-stereo": "1"} if self.source.is_stereo else {}
            media.append(sdp.Media("OPUS", self.port + 4, self._opus.payload_type, self.audio.ssrc, stereo))
        name = shown_name(self.config.input)
        return sdp.Session(str(self.mcode.address[0]), tuple(media), f"MCode {name}", self._wire.cname, self._session_id)

    def status(self) -> SendReport:
        """The report so far."""
        length_s = max(self._newest_pts / TICKS_PER_S, 1 / 25)
        lengths_s = {"opus": max(length_s, self._sound_s)}
        lanes = {lane.name: lane.report(lengths_s.get(lane.name, length_s)) for lane in self._wire.lanes}
        warnings = []
        if self.baseline is not None and self._baseline is not None:
            lane, wanted = lanes[self.baseline.name], self._baseline.target_kbps
            over = self._baseline.follower.at_floor
            if self._baseline.fixed_kbps is not None:
                over = length_s > 3 and lane.rate_kbps > 1.25 * self._baseline.fixed_kbps
            lanes[self.baseline.name] = replace(lane, target_kbps=wanted, at_floor=over)
            if over:
                label = coder_named(self.config.baseline).label
                warnings.append(f"{label} cannot go down to {wanted:.1f} kbit/s: it sends {lane.rate_kbps:.1f}, its floor")
        if self._wire.failed:
            trouble = f"{self._wire.failed} packets could not be sent ({self._wire.failure})"
            warnings.append(f"--to {self.config.to}: {trouble}; is it an address that this machine reaches?")
        if self._dropped:
            warnings.append(f"{self._dropped} frames were left out: this machine is too slow for real time at this size")
        return SendReport(
            frames=self._frames,
            keyframes=self._keyframes,
            dropped=self._dropped,
            duration_s=length_s,
            manifold_id=self.model.id,
            n=self.config.n,
            coder=self.config.coder,
            lanes=lanes,
            warnings=tuple(warnings),
        )


def resolve(host: str, port: int, url: str) -> tuple[int, tuple]:
    """(address family, socket address). Raises InputError for a host that cannot be found."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"{url}: cannot find the host {host} ({getattr(error, 'strerror', None) or error})") from error
    refuse_multicast(str(address[0]), url)
    return family, address


def refuse_multicast(host: str, url: str) -> None:
    """Raises InputError for a multicast address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return
    if address.is_multicast:
        raise InputError(f"{url}: {address} is a multicast address, which is not supported; give the address of one machine")


def _refuse_all(host: str, url: str) -> None:
    """Raises InputError for an address that is of no one machine: to listen on, or of all that hear it."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
        raise InputError(f"{url}: {address} is the address of no one machine; give that of the receiver, as 127.0.0.1 for here")


def _descriptions(config: SendConfig) -> list[Path]:
    """Of the whole session, and of the baseline's lane alone, for players that know nothing of MCode."""
    if config.sdp is None:
        return []
    whole = Path(config.sdp)
    return [whole] if config.baseline == "none" else [whole, whole.with_suffix(f".{config.baseline}{whole.suffix}")]


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return True  # not to be read: what else is wrong with it is told apart


def _check_description(path: Path) -> None:
    """Raises InputError where a session description cannot be written, or would take the place of something else."""
    folder = path.absolute().parent
    if path.is_dir():
        reason = "it is a folder"
    elif path.is_file() and not _begins_with(path, b"v=0"):
        reason = "the file there is no description; choose another name"
    elif not folder.is_dir():
        reason = "no such folder"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "not allowed"
    else:
        return
    raise InputError(f"--sdp {path}: cannot write it ({reason})")


def _write_description(path: Path, text: str) -> None:
    """Whole or not at all, where it is a file, no pipe or device, in a folder that may be written to."""
    if path.exists() and (not path.is_file() or not os.access(path.resolve().parent, os.W_OK)):
        path.write_bytes(text.encode())
    else:
        write_whole(path.resolve(), text)


def _only_delay(settings: ChannelSettings) -> ChannelSettings:
    return replace(settings, bit_error_rate=0.0, loss=0.0)


@dataclass
class _Lane:
    """One stream on its way out: its numbers, its channel, its counters and what the receiver says of it."""

    name: str
    address: tuple
    clock_hz: int
    settings: ChannelSettings
    protector: Protector | None

    def __post_init__(self) -> None:
        self.ssrc = secrets.randbits(32)
        self.first_timestamp = secrets.randbits(32)
        self.numbers = {
            "ssrc": self.ssrc,
            "first_sequence": secrets.randbits(16),
            "first_timestamp": self.first_timestamp,
        }
        self.channel = Channel(self.settings)
        self.socket: socket.socket | None = None
        self.packets = self.octets = self.payload_bytes = self.wire_bytes = self.fec_bytes = self.refresh_requests = 0
        self.remote: rtcp.ReportBlock | None = None
        self._reported: deque[tuple[int, float]] = deque(maxlen=8)  # sender reports: the middle of their NTP time; when
        self.round_trip_s: float | None = None
        self.has_newcomer = False  # a receiver that has not been heard before
        self._receiver: int | None = None
        self._refresh_wanted = False
        self._last_refresh_s = -math.inf
        self._recent: deque[tuple[float, int]] = deque()

    def count(self, size: int, protected: int, media_s: float, is_repair: bool) -> None:
        self.packets += 1
        self.wire_bytes += size
        self.octets += size - HEADER_BYTES  # of reports (RFC 3550, 6.4.1)
        if is_repair:
            self.fec_bytes += size
        else:
            self.payload_bytes += size - min(size, protected)
        self._recent.append((media_s, size))
        while self._recent[0][0] < media_s - _RATE_WINDOW_S:
            self._recent.popleft()

    def recent_kbps(self, media_s: float) -> float | None:
        """Of the last ten seconds; None in the first half second."""
        if not self._recent:
            return None
        span = media_s - self._recent[0][0]
        return sum(size for _, size in self._recent) * 8 / 1000 / span if span >= 0.5 else None

    def hear(self, control: rtcp.Control) -> None:
        if isinstance(control, rtcp.Pli) and control.media_ssrc == self.ssrc:
            self.refresh_requests += 1
            self._refresh_wanted = True
        elif isinstance(control, rtcp.ReceiverReport | rtcp.SenderReport):
            if control.ssrc != self._receiver:
                self._receiver, self.has_newcomer = control.ssrc, True
            for block in control.blocks:
                if block.ssrc == self.ssrc:
                    self.remote = block
                    self._measure_round_trip(block, time.monotonic())

    def note_report(self, ntp_time: int, now_s: float) -> None:
        self._reported.append((ntp_time >> 16 & 0xFFFFFFFF, now_s))

    def _measure_round_trip(self, block: rtcp.ReportBlock, now_s: float) -> None:
        """Where the block answers a report of ours (RFC 3550, 6.4.1), whose NTP time need not be the time it was sent."""
        # tuple() is of one moment: another thread sends reports.
        sent_s = next((at_s for middle, at_s in reversed(tuple(self._reported)) if middle == block.last_report), None)
        if sent_s is not None:
            self.round_trip_s = max(0.0, now_s - sent_s - block.since_last_report / 65536)

    def take_refresh_request(self) -> bool:
        """Whether a refresh is asked for; no more than three a second, whatever comes."""
        if not self._refresh_wanted or time.monotonic() - self._last_refresh_s < _LEAST_REFRESH_GAP_S:
            return False
        self._refresh_wanted, self._last_refresh_s = False, time.monotonic()
        return True

    def report(self, length_s: float) -> LaneReport:
        remote = self.remote
        return LaneReport(
            name=self.name,
            packets=self.packets,
            payload_bytes=self.payload_bytes,
            wire_bytes=self.wire_bytes,
            fec_bytes=self.fec_bytes,
            rate_kbps=self.wire_bytes * 8 / 1000 / length_s,
            channel_lost=self.channel.lost,
            channel_damaged=self.channel.damaged,
            channel_flipped_bits=self.channel.flipped_bits,
            refresh_requests=self.refresh_requests,
            remote_loss=remote.fraction_lost if remote else None,
            remote_jitter_ms=remote.jitter * 1000 / self.clock_hz if remote else None,
            round_trip_ms=self.round_trip_s * 1000 if self.round_trip_s is not None else None,
        )


class _Wire:
    """The sockets of all lanes, and a thread that delivers what the channel delays and hears what receivers say."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.lanes: list[_Lane] = []
        self._due: list[tuple[float, int, _Lane, bytes]] = []
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self.failed, self.failure = 0, ""  # packets that the system did not take, and what it said last
        self.cname = rtcp.new_cname()
        self._reports = 0
        self._last_report_s = self._next_report_s = -math.inf
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    def add(self, lane: _Lane) -> _Lane:
        lane.socket = socket.socket(self.family, socket.SOCK_DGRAM)
        lane.socket.setblocking(False)
        # A port of its own to hear RTCP on; bound to the loopback where that is the destination.
        loopback = lane.address[0].startswith("127.") or lane.address[0] == "::1"
        any_address = "" if self.family == socket.AF_INET else "::"
        lane.socket.bind((lane.address[0] if loopback else any_address, 0))
        self.lanes.append(lane)
        return lane

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mcode-send-wire", daemon=True)
        self._thread.start()

    def transmit(self, lane: _Lane, data: bytes, protected: int, media_s: float, is_repair: bool = False) -> None:
        lane.count(len(data), protected, media_s, is_repair)
        now = time.monotonic()
        for at_s, damaged in lane.channel.transmit(data, protected, now):
            if at_s <= now:
                self._send(lane, damaged)
                continue
            with self._lock:
                heapq.heappush(self._due, (at_s, next(self._count), lane, damaged))
            self._wake()

    def _send(self, lane: _Lane, data: bytes) -> None:
        assert lane.socket is not None
        try:
            lane.socket.sendto(data, lane.address)
        except ConnectionRefusedError:
            pass  # nobody listens: the next may arrive
        except OSError as error:  # no route, not allowed, no room: as good as lost, too
            self.failed, self.failure = self.failed + 1, error.strerror or str(error)

    def report(self, media_time: Callable[[_Lane], tuple[int, int]]) -> None:
        """Sender reports, when they are due; a receiver that is new need not wait for the next ones."""
        now = time.monotonic()
        newcomer = any(lane.has_newcomer for lane in self.lanes) and now - self._last_report_s >= _LEAST_REPORT_GAP_S
        if now < self._next_report_s and not newcomer:
            return
        self._reports += 1
        self._last_report_s, self._next_report_s = now, now + rtcp.report_gap_s(self._reports, random.random())
        for lane in self.lanes:
            lane.has_newcomer = False
            ntp_time, timestamp = media_time(lane)
            lane.note_report(ntp_time, now)
            report = rtcp.SenderReport(lane.ssrc, ntp_time, timestamp, lane.packets, lane.octets)
            self._send(lane, rtcp.compound([report, rtcp.Description(lane.ssrc, self.cname)]))

    def goodbye(self) -> None:
        for lane in self.lanes:
            parts: list[rtcp.Control] = [
                rtcp.ReceiverReport(lane.ssrc),
                rtcp.Description(lane.ssrc, self.cname),
                rtcp.Bye((lane.ssrc,)),
            ]
            self._send(lane, rtcp.compound(parts))

    def finish(self, stop: threading.Event) -> None:
        """Wait until what the channel still holds is delivered."""
        while self._due and not stop.wait(0.01):
            pass

    def close(self) -> None:
        self._closing = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)
        for lane in self.lanes:
            if lane.socket is not None:
                lane.socket.close()
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # awake already, or closed
            self._wake_write.send(b"x")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for lane in self.lanes:
                assert lane.socket is not None
                selector.register(lane.socket, selectors.EVENT_READ, lane)
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            while not self._closing:
                with self._lock:
                    wait_s = self._due[0][0] - time.monotonic() if self._due else 0.5
                for key, _ in selector.select(max(0.0, wait_s)):
                    if key.data is None:
                        self._wake_read.recv(4096)
                    else:
                        self._hear(key.data)
                while (ready := self._next_due()) is not None:
                    self._send(*ready)

    def _next_due(self) -> tuple[_Lane, bytes] | None:
        with self._lock:
            if not self._due or self._due[0][0] > time.monotonic():
                return None
            _, _, lane, data = heapq.heappop(self._due)
            return lane, data

    def _hear(self, lane: _Lane) -> None:
        assert lane.socket is not None
        with contextlib.suppress(OSError, WireError):
            data, peer = lane.socket.recvfrom(2048)
            if peer[0] == lane.address[0]:  # only the receiver may ask for refreshes
                for control in rtcp.parse_compound(data):
                    lane.hear(control)


class _BaselineSource:
    """Frames to H.264 or H.265 packets without delay, at a rate that follows the MCode lane's, or at rate_kbps.

    It follows by CRF; a rate asked for in kbit/s is kept by the encoder's own rate control. A new CRF, and a refresh asked
    for, open the encoder anew (with an IDR).
    """

    def __init__(self, config: SendConfig, source: Source, packetiser: h264.H264Packetiser, rate_kbps: float | None) -> None:
        self.config, self.source, self.packetiser = config, source, packetiser
        self.fixed_kbps = rate_kbps
        self.target_kbps = rate_kbps
        self.follower = CrfFollower(config.baseline, config.refresh_s)
        self._encoder: BaselineEncoder | None = self._open()  # now: a size that it cannot encode is refused at once

    def sample(self) -> bytes:
        """One access unit with the stream's parameter sets."""
        grey = Frame(np.full((self.source.height, self.source.width, 3), 128, np.uint8), 0)
        return self._open().push(grey)[0].data

    def restart(self) -> None:
        """The next picture is an IDR."""
        self._encoder = None

    def follow(self, mcode_kbps: float | None, sent_bytes: int, at_s: float) -> None:
        """mcode_kbps: of the other lane; sent_bytes: on this one's wire so far."""
        if self.fixed_kbps is not None:
            return
        self.target_kbps = mcode_kbps or self.target_kbps
        before = self.follower.crf
        if self.follower.look(at_s, sent_bytes, mcode_kbps) != before:
            self._encoder = None

    def push(self, frame: Frame) -> list[RtpPacket]:
        if self._encoder is None:
            self._encoder = self._open()
        units = self._encoder.push(frame)
        return [packet for unit in units for packet in self.packetiser.push(unit.data, unit.pts)]

    def _open(self) -> BaselineEncoder:
        options: dict[str, Any] = {"crf": self.follower.crf}
        if self.fixed_kbps is not None:
            headers_kbps = self.source.fps * (HEADER_BYTES + 2) * 8 / 1000
            options = {"rate_kbps": max(self.fixed_kbps - headers_kbps, 0.25 * self.fixed_kbps)}
        return live_encoder(
            self.config.baseline,
            self.source.width,
            self.source.height,
            **options,
            fps=self.source.fps,
            gop_s=self.config.refresh_s,
            slice_bytes=self.packetiser.mtu - HEADER_BYTES - 20,
        )


# Sources: frames of the coded size, and sound.


class Source:
    """Frames to send, all of one size. is_paced: they wait for their time (a file); a camera sets the pace itself.

    stop: set when no more frames are wanted. notify: hears, in one line, what the user should know while it goes on.
    """

    width: int
    height: int
    display: tuple[int, int]
    fps: float = 25.0
    is_paced: bool = True
    has_audio: bool = False
    is_stereo: bool = False
    expected_frames: int | None = None
    stop: threading.Event = threading.Event()
    notify: Notify = staticmethod(lambda line: None)

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def audio_until(self, time_s: float) -> Iterator[tuple[bytes, int]]:
        """(Opus packet, pts in 1/48,000 s) that start before time_s."""
        return iter(())

    def close(self) -> None:
        pass


def open_source(config: SendConfig, frame_size: tuple[int, int] | None) -> Source:
    """The source that config.input names, scaled and cropped to suit the manifold. Raises InputError."""
    if config.input == "testsrc":
        return TestSource(config, frame_size)
    if config.input.startswith("camera:"):
        return CameraSource(config, frame_size)
    return FileSource(config, frame_size)


class FileSource(Source):
    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        options: dict[str, Any] = {"start_s": config.start_s, "duration_s": config.duration_s}
        whole = FrameReader(config.input, **options)
        coded, self.display, aspect = geometry((whole.width, whole.height), config.size, frame_size)
        self.width, self.height = coded
        self._reader = FrameReader(config.input, **options, size=coded, crop_to=aspect)
        info = self._reader.info
        self.fps = info.average_fps or 25.0
        self.has_audio = info.audio_codec is not None
        first = next(audio_packets(config.input, config.start_s), None) if self.has_audio and config.sdp is not None else None
        self.is_stereo = first is not None and first.stream.codec_context.channels > 1
        self._config = config
        self._sound: Iterator[tuple[bytes, int]] = iter(())
        self._next: tuple[bytes, int] | None = None
        if info.duration_s is not None and not config.loop:
            length_s = min(info.duration_s - config.start_s, config.duration_s or math.inf)
            self.expected_frames = max(1, round(length_s * self.fps))

    def __iter__(self) -> Iterator[Frame]:
        start = 0
        while True:
            end = start
            if self.has_audio and self._config.audio:
                self._sound = _followed(self._next, self._sound, opus_packets(self._config, start / TICKS_PER_S))
                self._next = next(self._sound, None)
            for frame in self._reader:
                frame = replace(frame, pts=frame.pts + start)
                gap, end = frame.pts - end, frame.pts
                yield frame
            if not self._config.loop or end == start:
                return
            start = end + max(1, gap)
            release_decoders()

    def audio_until(self, time_s: float) -> Iterator[tuple[bytes, int]]:
        while self._next is not None and self._next[1] < time_s * opus.CLOCK_HZ:
            packet, self._next = self._next, next(self._sound, None)
            yield packet


def _followed(
    packet: tuple[bytes, int] | None, rest: Iterator[tuple[bytes, int]], others: Iterator[tuple[bytes, int]]
) -> Iterator[tuple[bytes, int]]:
    """A packet and the rest of its round, until the next round's begin; then those."""
    first = next(others, None)
    while packet is not None and (first is None or packet[1] < first[1]):
        yield packet
        packet = next(rest, None)
    rest = iter(())  # and its decoder
    if first is not None:
        yield first
    yield from others


def release_decoders() -> None:
    """Free what going through a file once left behind: PyAV's containers and streams refer to each other, so that they
    and their decoders, a megabyte or more, stay until Python looks for such circles, which it does rarely. What was loaded
    before the first call is passed over from then on (gc.freeze): looking through the networks would take 0.1 s."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    gc.collect()


def opus_packets(config: SendConfig, offset_s: float) -> Iterator[tuple[bytes, int]]:
    """The source's sound as Opus packets of 20 ms, 32 kbit/s, with times in 1/48,000 s from the first picture."""
    encoder: Any = None
    resampler: Any = None
    for packet in audio_packets(config.input, config.start_s, config.duration_s):
        try:
            decoded: list[Any] = packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet is a short silence
        for frame in decoded:
            if encoder is None or resampler is None:
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                encoder = av.CodecContext.create("libopus", "w")
                encoder.sample_rate, encoder.layout, encoder.format = opus.CLOCK_HZ, layout, "s16"
                encoder.bit_rate = 32_000
                resampler = av.AudioResampler("s16", layout, opus.CLOCK_HZ, frame_size=960)
            for piece in resampler.resample(frame):
                yield from _timed(encoder.encode(piece), offset_s)
    if encoder is not None and resampler is not None:
        for piece in resampler.resample(None):
            yield from _timed(encoder.encode(piece), offset_s)
        yield from _timed(encoder.encode(None), offset_s)


def _timed(packets: list[av.Packet], offset_s: float) -> Iterator[tuple[bytes, int]]:
    for packet in packets:
        if packet.pts is not None:
            yield bytes(packet), round(packet.pts * packet.time_base * opus.CLOCK_HZ + offset_s * opus.CLOCK_HZ)


class CameraSource(Source):
    """camera:0. Frames bear the time of their arrival. A camera that stops giving pictures is waited for, and said to be."""

    is_paced = False

    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        number = config.input.removeprefix("camera:")
        if not number.isdecimal():
            raise InputError(f"{config.input}: a camera is camera:0, camera:1 ...")
        self._number, self._config = int(number), config
        self._camera = cv2.VideoCapture(self._number)
        if not self._camera.isOpened():
            raise InputError(f"{config.input}: there is no such camera, or it may not be used")
        good, picture = self._camera.read()
        if not good:
            self._camera.release()
            raise InputError(f"{config.input}: the camera gives no picture; is another program using it?")
        h, w = picture.shape[:2]
        coded, self.display, self._aspect = geometry((w, h), config.size, frame_size)
        self.width, self.height = coded
        self.fps = self._camera.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[Frame]:
        start = last_good = time.monotonic()
        last_pts = -1
        gone = False
        while not self.stop.is_set():
            good, picture = self._camera.read()
            now = time.monotonic()
            pts = max(last_pts + 1, round((now - start) * TICKS_PER_S))
            if self._config.duration_s is not None and pts >= self._config.duration_s * TICKS_PER_S:
                return
            if not good:
                if not gone and now - last_good >= CAMERA_PATIENCE_S:
                    gone = True
                    self.notify(f"{self._config.input} gives no more pictures: is it unplugged? It is waited for; Ctrl-C ends")
                self.stop.wait(_CAMERA_RETRY_S)
                self._camera.release()
                self._camera.open(self._number)
                continue
            if gone:
                gone = False
                self.notify(f"{self._config.input} is back")
            last_good, last_pts = now, pts
            yield Frame(_fitted(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), self._aspect, self.width, self.height), pts)

    def close(self) -> None:
        self._camera.release()


def _fitted(rgb: np.ndarray, aspect: tuple[int, int] | None, width: int, height: int) -> np.ndarray:
    return np.ascontiguousarray(resize(rgb if aspect is None else centre_crop(rgb, aspect), width, height))


class TestSource(Source):
    """testsrc: a moving picture, 25 frames/s, with the frame's number as black and white blocks along the top."""

    __test__ = False  # not a test case

    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        coded, self.display, _ = geometry(config.size or (640, 360), config.size, frame_size)
        self.width, self.height = coded
        self._limit = None if config.duration_s is None else round(config.duration_s * self.fps)
        self.expected_frames = self._limit

    def __iter__(self) -> Iterator[Frame]:
        for index in itertools.count() if self._limit is None else range(self._limit):
            yield Frame(test_picture(index, self.width, self.height), round(index * TICKS_PER_S / self.fps))


STAMP_BITS = 16


def test_picture(index: int, width: int, height: int, stamp: int | None = None) -> np.ndarray:
    """uint8 (height, width, 3): waves of colour, a disc that circles once in four seconds, and a stamp: `index`, or another
    number below 65536."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    phase = index / 25
    waves = [np.sin(6 * x + k + phase) + np.cos(5 * y - 2 * k + 0.7 * phase) for k in range(3)]
    rgb = np.clip(128 + 45 * np.stack(waves, axis=2), 0, 255).astype(np.uint8)
    centre = (
        int(width * (0.5 + 0.3 * math.cos(phase * math.pi / 2))),
        int(height * (0.6 + 0.2 * math.sin(phase * math.pi / 2))),
    )
    cv2.circle(rgb, centre, max(2, min(width, height) // 8), (250, 220, 60), -1, cv2.LINE_AA)
    rows = _stamp_rows(height)
    number = index if stamp is None else stamp
    gray = number ^ number >> 1
    for bit in range(STAMP_BITS):
        left, right = bit * width // STAMP_BITS, (bit + 1) * width // STAMP_BITS
        rgb[:rows, left:right] = 255 * (gray >> (STAMP_BITS - 1 - bit) & 1)
    return rgb


test_picture.__test__ = False  # type: ignore[attr-defined]


def read_stamp(rgb: np.ndarray) -> int | None:
    """The stamp, modulo 65536, in a decoded test picture; None where it is not clear (between two keyframes)."""
    height, width = rgb.shape[:2]
    rows = _stamp_rows(height)
    gray = 0
    for bit in range(STAMP_BITS):
        left, right = bit * width // STAMP_BITS, (bit + 1) * width // STAMP_BITS
        margin = (right - left) // 4
        level = float(rgb[rows // 4 : max(1, rows * 3 // 4), left + margin : max(left + margin + 1, right - margin)].mean())
        if 64 < level < 192:
            return None
        gray = gray << 1 | (level >= 192)
    index = 0
    while gray:
        index ^= gray
        gray >>= 1
    return index


def _stamp_rows(height: int) -> int:
    return max(4, height // 12)
