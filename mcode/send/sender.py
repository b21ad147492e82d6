"""Frames of a source through both encoders into packets, in their time, and what is reported of it."""

from __future__ import annotations

import base64
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from mcode import fec
from mcode.addresses import refuse_all, resolve
from mcode.baseline import coder_named
from mcode.channel import ChannelSettings
from mcode.codec import Encoder, Model
from mcode.errors import InputError
from mcode.fec import FecSettings, Protector
from mcode.frame import TICKS_PER_S, Frame
from mcode.manifold import load
from mcode.packet import Packet, StreamHeader, too_large
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import FEC, HEADER_BYTES, RtpPacket
from mcode.send.baseline import BaselineStream
from mcode.send.config import SendConfig
from mcode.send.descriptions import check_descriptions, write_descriptions
from mcode.send.sources import Notify, open_source
from mcode.send.wire import Lane, LaneReport, Wire, ip_bytes
from mcode.text import shown_name
from mcode.transcode import OVER, SETTLED_S, over_rate

LARGEST_LAG_S = 0.25
"""A sender that falls this far behind real time leaves frames out instead of falling further."""
_SOUND_STEP_S = 0.02
"""As long as a packet of sound."""
Progress = Callable[[int, int | None], None]


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
        refuse_all(str(address[0]), config.to)
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
        self._frames = self._keyframes = self._full_gaps = self._dropped = 0
        self._settled_bytes = 0  # on the link, of the MCode lane
        self._newest_pts = self._gap = 0  # ticks: of the last frame, and to it from the one before
        self._sound_s = 0.0
        self._start_unix_s = time.time()
        self._start_s = time.monotonic()
        self._slices: int | None = None
        self._session_id = secrets.randbits(62)
        self.newest: Frame | None = None
        self._wire = Wire(family)
        try:
            for size in ((self.source.width, self.source.height), self.source.display):
                if size[0] * size[1] > payload.LARGEST_LIVE:
                    raise InputError(
                        f"{too_large(*size, payload.LARGEST_LIVE)}, which no receiver shows; choose a smaller --size"
                    )
            self._new_encoder(config)
            check_descriptions(config)
            self._open_lanes(address)
        except BaseException:
            self.close()
            raise

    def _open_lanes(self, address: tuple) -> None:
        config = self.config
        settings = FecSettings.parse(config.fec) if config.fec else None
        mtu = config.mtu - (HEADER_BYTES + fec.OVERHEAD_BYTES if settings else 0)

        def protected(name: str, offset: int, clock_hz: int) -> Lane:
            protector = Protector(settings) if settings else None
            return self._wire.add(name, _behind(address, offset), clock_hz, config.channel, protector)

        self.mcode = protected("mcode", 0, payload.CLOCK_HZ)
        self._packetiser = payload.Packetiser(**self.mcode.numbers, mtu=mtu, twice=config.fec_header, bundle=config.bundle)
        self.baseline: Lane | None = None
        self._baseline: BaselineStream | None = None
        if config.baseline != "none":
            self.baseline = protected(config.baseline, 2, h264.CLOCK_HZ)
            rate = None if config.baseline_rate == "equal" else float(config.baseline_rate)
            packetiser = h264.H264Packetiser(**self.baseline.numbers, codec=config.baseline, mtu=mtu)
            self._baseline = BaselineStream(config, self.source, packetiser, rate)
        self.audio: Lane | None = None
        self._opus: opus.OpusPacketiser | None = None
        if config.audio and self.source.has_audio:
            self.audio = self._wire.add("opus", _behind(address, 4), opus.CLOCK_HZ, _only_delay(config.channel))
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
                self._transmit_mcode(self._packetiser.flush())
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
            if self.config.sdp is not None:
                write_descriptions(self.config, self.session(self._encoder.header))
        elif changes.keys() & {"n", "coder"}:
            self._send_mcode(self._encoder.flush())
            self._encoder = self._new_encoder(self.config)
            self._settled_bytes = self.mcode.link_bytes
        asked = self.mcode.take_refresh_request() and opening is None  # which is a refresh
        if asked:
            self._encoder.request_refresh()
        self._wire.report(self._media_time)  # first of all: the receiver's clock rests on it
        self._send_audio(frame.pts_s)
        self._gap = frame.pts - self._newest_pts
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
            rate_kbps=None if config.rate_kbps is None else config.rate_kbps / self._repair_share,
            packet_bytes=self._packet_bytes,
            slices=self._slices or 1,
            display=self.source.display,
        )

    @property
    def _packet_bytes(self) -> float:
        """About what a keyframe takes beside its sample, repair apart: all headers, or its share of a bundle's."""
        bundle, copies = self.config.bundle, 1 + self.config.fec_header
        once = ip_bytes(self._wire.family) + HEADER_BYTES
        return once + 9 * copies if bundle == 1 else (once + 7 * copies) / bundle + 6 * copies

    @property
    def _repair_share(self) -> float:
        """How many times as many bytes repair makes of the packets, about."""
        settings = FecSettings.parse(self.config.fec) if self.config.fec else None
        return 1 + settings.parity / settings.data if settings else 1.0

    def _settle(self) -> None:
        """Tells the encoder what its keyframes have taken on the link."""
        if self._encoder is not None and not (self.mcode.protector and self.mcode.protector.owes):
            sent, self._settled_bytes = self.mcode.link_bytes - self._settled_bytes, self.mcode.link_bytes
            self._encoder.settle(sent / self._repair_share)

    def _fitting_slices(self, frame: Frame) -> int:
        """So many that a refresh's slices fit one packet each."""
        trial = Encoder(self.model, frame.width, frame.height, coder=self.config.coder, quality=self.config.quality)
        size = sum(len(part or b"") for part in trial.push(frame)[0].slices)
        _, h, w = trial.shape
        return payload.fitting_slices(size, h * w, self._packetiser.mtu)

    def _send_mcode(self, packets: list[Packet]) -> None:
        for keyframe in packets:
            self._keyframes += 1
            self._full_gaps += keyframe.steps == self.config.n
            self._transmit_mcode(self._packetiser.push(keyframe))

    def _transmit_mcode(self, packets: list[RtpPacket]) -> None:
        for packet in packets:
            self._transmit(self.mcode, packet, payload.protected_bytes(packet), self._newest_pts / TICKS_PER_S)
        if packets:
            self._settle()

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

    def _transmit(self, lane: Lane, packet: RtpPacket, protected: int, media_s: float) -> None:
        self._wire.transmit(lane, bytes(packet), protected, media_s)
        for repair in lane.protector.push(packet) if lane.protector else []:
            self._wire.transmit(lane, bytes(repair), fec.protected_bytes(protected), media_s, is_repair=True)

    def _send_last_repair(self) -> None:
        """The parity packets of the groups that the end of the stream cuts short."""
        for lane in self._wire.lanes:
            for repair in lane.protector.flush() if lane.protector else []:
                spared = fec.protected_bytes(HEADER_BYTES)
                self._wire.transmit(lane, bytes(repair), spared, self._newest_pts / TICKS_PER_S, is_repair=True)

    def _media_time(self, lane: Lane) -> tuple[int, int]:
        """(NTP time, RTP timestamp) of now: a frame is captured, or due, pts after the start."""
        now = time.time()
        media_s = (
            now - self._start_unix_s if self.config.realtime or not self.source.is_paced else self._newest_pts / TICKS_PER_S
        )
        unix = self._start_unix_s + media_s
        return rtcp.ntp(unix), round(lane.first_timestamp + media_s * lane.clock_hz) & 0xFFFFFFFF

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
        shown = min(self._gap, self._newest_pts / max(1, self._frames - 1))  # of the last frame, which nothing tells
        length_s = max((self._newest_pts + shown) / TICKS_PER_S, 1 / 25)
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
        wanted, link_kbps = self.config.rate_kbps, lanes["mcode"].link_kbps
        if wanted is not None and length_s > SETTLED_S and link_kbps > OVER * wanted:
            bound = self.config.n if 2 * self._full_gaps * self.config.n > self._frames else None
            warnings.append(over_rate(wanted, link_kbps, bound))
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


def _behind(address: tuple, offset: int) -> tuple:
    """The socket address so many ports higher."""
    return (address[0], address[1] + offset, *address[2:])


def _only_delay(settings: ChannelSettings) -> ChannelSettings:
    return replace(settings, bit_error_rate=0.0, loss=0.0)
