"""Live receiving: RTP over UDP to frames and sound. The lanes are sans-IO; `Receiver` gives them sockets, clocks and
threads for a player, `receive_to_file` writes one lane to a file. Not here: send.py, and the window.

    socket -> channel (if damage is done here) -> lane (lanes.py) -> frames, shown when PlayoutClock says
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import random
import secrets
import selectors
import socket
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import av
import numpy as np

from mcode import fec
from mcode.channel import Channel, ChannelSettings
from mcode.codec import Model
from mcode.errors import FormatError, InputError, McodeError, WireError
from mcode.frame import TICKS_PER_S, Frame
from mcode.lanes import MOST_REPAIR_S, BaselineLane, FindModel, LaneCounters, McodeLane, finder
from mcode.packet import StreamHeader
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import HEADER_BYTES, OPUS, RtpPacket, is_rtcp, unwrap
from mcode.rtp.payload import LARGEST_LIVE, MOST_GAP_PIXELS, Received
from mcode.rtp.reception import Counters, Reception
from mcode.send import refuse_multicast, resolve
from mcode.video import FrameWriter, OutputFile, check_frames_output, resize

PLI_GAP_S, MOST_PLI_GAP_S = 0.4, 5.0
WAIT_S = 30.0
"""How long `receive_to_file` waits for the first packet."""
_RECEIVE_BUFFER = 4 << 20
_LARGEST_DATAGRAM = 65_535


# Sockets.


def read_session(source: str | os.PathLike[str]) -> sdp.Session | None:
    """The session of an SDP file; None for an rtp:// URL, whose lanes are the customary ones. Raises InputError."""
    text = os.fspath(source)
    if "://" in text:
        sdp.parse_url(text)
        return None
    try:
        with open(text, "rb") as file:
            described = file.read(sdp.LARGEST_DESCRIPTION + 1)
    except OSError as error:
        raise InputError(f"{text}: cannot read it ({error.strerror}); give an SDP file or rtp://HOST:PORT") from error
    if len(described) > sdp.LARGEST_DESCRIPTION:
        raise InputError(f"{text} is not a session description (SDP): it is larger than 1 MiB")
    return sdp.Session.parse(described.decode("utf-8", errors="replace"), text)


def bind(host: str, port: int, what: str) -> socket.socket:
    """A bound UDP socket. Raises InputError for a port in use, a host unknown or not of this machine."""
    family, address = resolve(host, port, what)
    found = socket.socket(family, socket.SOCK_DGRAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        found.bind(address)
    except OSError as error:
        found.close()
        reason = {
            errno.EADDRINUSE: "another program is using it; end that one, or use another port",
            errno.EADDRNOTAVAIL: "that is not an address of this machine; give one with --bind, as --bind 0.0.0.0",
            errno.EACCES: "not allowed; use a port from 1024 on",
        }.get(error.errno or 0, error.strerror)
        raise InputError(f"{what}: cannot listen on {host} port {port}: {reason}") from error
    found.setblocking(False)
    return found


@dataclass
class _Link:
    """A lane, its socket, and the other end's clock."""

    name: str
    clock_hz: int
    lane: Any  # McodeLane, BaselineLane or opus.OpusDepacketiser
    socket: socket.socket
    channel: Channel
    cname: str
    peer: tuple | None = None
    base_unix_s: float | None = None  # the sender's time of RTP timestamp 0, unwrapped as the lane's
    base_ssrc: int | None = None  # whose it is
    guessed_skew_s: float | None = None  # of the sender's clock, in a base that is a guess; None in one of a report
    moved_s: float = 0.0  # by how much reports have moved the base, in all
    reported: tuple[rtcp.SenderReport, float] | None = None
    last_pli_s: float = -math.inf
    pli_gap_s: float = PLI_GAP_S
    reports: int = 0
    next_report_s: float = -math.inf
    refresh_requests: int = 0
    heard: int = 0
    said_goodbye: bool = False
    spared: int = HEADER_BYTES  # by the channel here, of the latest packet that was not repair

    def __post_init__(self) -> None:
        self.ssrc = secrets.randbits(32)
        self.window: deque[tuple[float, int]] = deque()

    @property
    def reception(self) -> Reception:
        return self.lane.reception

    def sent_unix_s(self, pts: int) -> float | None:
        """The sender's time of an RTP timestamp; None before anything tells."""
        return None if self.base_unix_s is None else self.base_unix_s + pts / self.clock_hz

    def locate(self, pts: int, ssrc: int, now_unix_s: float, skew_s: float) -> None:
        """A first guess, until a sender report: sent just now. skew_s: how far the sender's clock is ahead, as far as known."""
        if ssrc != self.base_ssrc:
            self.base_unix_s, self.base_ssrc = None, ssrc
        report = self.reported[0] if self.reported else None
        if report is not None and report.ssrc == ssrc:
            timestamp = unwrap(report.rtp_timestamp, pts, 32)
            self._rebase(rtcp.unix_s(report.ntp_time) - timestamp / self.clock_hz)
            self.guessed_skew_s = None
        elif self.base_unix_s is None:
            self.base_unix_s, self.guessed_skew_s = now_unix_s + skew_s - pts / self.clock_hz, skew_s

    def _rebase(self, base_unix_s: float) -> None:
        if self.base_unix_s is not None:
            self.moved_s += base_unix_s - self.base_unix_s
        self.base_unix_s = base_unix_s

    def correct(self, skew_s: float) -> None:
        """A base that is still a guess, by what a report on another lane tells of the sender's clock."""
        if self.base_unix_s is not None and self.guessed_skew_s is not None:
            self._rebase(self.base_unix_s + skew_s - self.guessed_skew_s)
            self.guessed_skew_s = skew_s

    def hear(self, data: bytes, peer: tuple, now_s: float) -> float | None:
        """Control packets of the sender, whatever port they leave by; its Unix time, where they tell it. While one is followed
        no other address is heard."""
        sent_unix_s = None
        if self.reception.ssrc is not None and self.peer is not None and self.peer[0] != peer[0]:
            self.reception.counters.foreign += 1
            return None
        try:
            controls = rtcp.parse_compound(data)
        except WireError:
            self.reception.counters.foreign += 1
            return None
        for control in controls:
            if isinstance(control, rtcp.SenderReport) and self.reception.ssrc in (None, control.ssrc):
                self.reported = (control, now_s)
                sent_unix_s = rtcp.unix_s(control.ntp_time)
            elif isinstance(control, rtcp.Bye) and self.reception.ssrc in control.ssrcs:
                self.reception.bye(self.reception.ssrc, now_s)
                self.said_goodbye = True
        return sent_unix_s

    def answer(self, now_s: float) -> None:
        """Receiver reports when they are due, a request for a refresh as soon as one is needed."""
        source = self.reception.ssrc
        if self.peer is None or source is None:
            return
        wants = getattr(self.lane, "wants_refresh", False)
        if not wants:
            self.pli_gap_s = PLI_GAP_S
        wants = wants and now_s - self.last_pli_s >= self.pli_gap_s
        is_due = now_s >= self.next_report_s
        if not wants and not is_due:
            return
        fraction, lost = self.reception.interval() if is_due else (0.0, 0)
        last, since = 0, 0
        if self.reported is not None and self.reported[0].ssrc == source:
            last = self.reported[0].ntp_time >> 16 & 0xFFFFFFFF
            since = round((now_s - self.reported[1]) * 65536)
        block = rtcp.ReportBlock(
            source, fraction, lost, self.reception.highest, round(self.reception.jitter_s * self.clock_hz), last, since
        )
        blocks = (block,) if is_due else ()
        if is_due:
            self.reports += 1
            self.next_report_s = now_s + rtcp.report_gap_s(self.reports, random.random())
        parts: list[rtcp.Control] = [
            rtcp.ReceiverReport(self.ssrc, blocks),
            rtcp.Description(self.ssrc, self.cname),
        ]
        if wants:
            parts.append(rtcp.Pli(self.ssrc, source))
            self.last_pli_s, self.refresh_requests = now_s, self.refresh_requests + 1
            # Where refreshes come damaged, too, asking ever faster only fills the link.
            self.pli_gap_s = min(2 * self.pli_gap_s, MOST_PLI_GAP_S)
        with contextlib.suppress(OSError):  # the sender is gone; it may come back
            self.socket.sendto(rtcp.compound(parts), self.peer)

    def note_size(self, size: int, now_s: float) -> None:
        self.window.append((now_s, size))
        while self.window[0][0] < now_s - 4:
            self.window.popleft()

    def counters(self, now_s: float, **more: int) -> LaneCounters:
        counts: Counters = self.reception.counters
        values: dict[str, Any] = {**asdict(counts), **more, "refresh_requests": self.refresh_requests}
        values |= self.lane.counters() if hasattr(self.lane, "counters") else {"not_rtp": self.lane.not_rtp}
        recent = [size for at, size in list(self.window) if at > now_s - 4]
        values |= {"jitter_ms": self.reception.jitter_s * 1000, "kbps": sum(recent) * 8 / 1000 / 4}
        return LaneCounters(**values)


class _Network:
    """All lanes' sockets: what comes goes through the receiver's own channel to its lane. One thread calls `wait`."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        find_model: FindModel,
        *,
        bind_to: str | None = None,
        lanes: tuple[str, ...] = ("mcode", "baseline", "audio"),
        channel: ChannelSettings | None = None,
        needed: str | None = None,
        most_repair_s: float = MOST_REPAIR_S,
    ) -> None:
        """needed: one of the lanes, without which there is nothing to do. most_repair_s: as in McodeLane."""
        session = read_session(source)
        what = os.fspath(source)
        host, port = ("", 0) if session is not None else sdp.parse_url(what)
        media: dict[str, sdp.Media | None] = dict.fromkeys(("mcode", "baseline", "audio"))
        ports = {"mcode": port, "baseline": port + 2, "audio": port + 4}
        if session is not None:
            host = session.address
            media = {"mcode": session.of("MCODE"), "baseline": session.of("H264", "H265"), "audio": session.of("OPUS")}
            ports = {name: found.port for name, found in media.items() if found is not None}
        hosts = {name: found.address or host if found else host for name, found in media.items()}
        for each in {host, *hosts.values()}:
            refuse_multicast(each, what)  # also where --bind names another address to listen on
        cname = rtcp.new_cname()
        settings = channel or ChannelSettings()
        bounds: dict[str, Any] = {"most_pixels": LARGEST_LIVE, "most_repair_s": most_repair_s}
        self.links: list[_Link] = []
        if needed is not None and needed not in ports:
            other = next((name for name in ("mcode", "baseline") if name in ports), None)
            raise InputError(f"{what}: no lane {needed} in it; " + (f"use --lane {other}" if other else "it has sound alone"))
        try:
            for name in lanes:
                if name not in ports:
                    continue
                kind = media[name].payload_type if media[name] else OPUS  # type: ignore[union-attr]
                lane: Any
                if name == "mcode":
                    lane = McodeLane(find_model, media[name], most_gap_pixels=MOST_GAP_PIXELS, **bounds)
                    clock_hz = payload.CLOCK_HZ
                elif name == "baseline":
                    lane, clock_hz = BaselineLane(media[name], **bounds), h264.CLOCK_HZ
                else:
                    lane, clock_hz = opus.OpusDepacketiser(payload_type=kind), opus.CLOCK_HZ
                own = Channel(settings if name != "audio" else ChannelSettings())
                self.links.append(_Link(name, clock_hz, lane, bind(bind_to or hosts[name], ports[name], what), own, cname))
        except BaseException:
            self.close()
            raise
        if not self.links:
            self.close()
            raise InputError(f"{what}: none of the lanes {', '.join(lanes)} is in it")
        self.selector = selectors.DefaultSelector()
        for link in self.links:
            self.selector.register(link.socket, selectors.EVENT_READ, link)
        self._held: list[tuple[float, int, _Link, bytes]] = []
        self._count = 0
        self._skew_s = 0.0  # of the sender's clock

    def wait(self, timeout_s: float) -> list[tuple[_Link, Any]]:
        """(lane, unit to decode) of all that is there within timeout_s."""
        now = time.monotonic()
        deadlines = [link.lane.deadline_s for link in self.links]
        ends = [at for at in deadlines if at is not None] + [at for at, *_ in self._held] + [now + timeout_s]
        found: list[tuple[_Link, Any]] = []
        for key, _ in self.selector.select(max(0.0, min(ends) - now)):
            link: _Link = key.data
            for _ in range(64):  # a flood on one lane must not starve the others
                try:
                    datagram, peer = link.socket.recvfrom(_LARGEST_DATAGRAM)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    continue  # an ICMP error of an answer that nobody heard
                found += self._take(link, datagram, peer)
        now = time.monotonic()
        self._held.sort()
        while self._held and self._held[0][0] <= now:
            _, _, link, datagram = self._held.pop(0)
            found += self._push(link, datagram, now)
        for link in self.links:
            found += self._located(link, link.lane.poll(now))
            link.answer(now)
        return found

    def flush(self) -> list[tuple[_Link, Any]]:
        """(lane, unit to decode) of what waits behind gaps: nothing more is waited for. The last call before `close`."""
        found: list[tuple[_Link, Any]] = []
        for link in self.links:
            link.reception.give_up()
            found += self._located(link, link.lane.poll(time.monotonic()))
        return found

    def _take(self, link: _Link, datagram: bytes, peer: tuple) -> list[tuple[_Link, Any]]:
        now = time.monotonic()
        link.heard += 1
        if is_rtcp(datagram):
            sent_unix_s = link.hear(datagram, peer, now)
            if sent_unix_s is not None:
                self._skew_s = sent_unix_s - time.time()
                for other in self.links:
                    other.correct(self._skew_s)
            return []
        link.note_size(len(datagram), now)
        found = []
        spared = _protected(link, datagram)
        for at_s, data in link.channel.transmit(datagram, spared, now):
            if at_s > now:
                self._count += 1
                self._held.append((at_s, self._count, link, data))
            else:
                found += self._push(link, data, now)
        if link.reception.ssrc is not None and int.from_bytes(datagram[8:12]) == link.reception.ssrc:
            link.peer = peer
        return found

    def _push(self, link: _Link, datagram: bytes, now: float) -> list[tuple[_Link, Any]]:
        before = link.reception.switches
        units = link.lane.push(datagram, now)
        if link.reception.ssrc is not None:  # another one, or it goes on after all
            link.said_goodbye = False
        if link.reception.switches != before:
            link.base_unix_s = None
            link.reports, link.next_report_s = 0, -math.inf
        return self._located(link, units)

    def _located(self, link: _Link, units: list[Any]) -> list[tuple[_Link, Any]]:
        for unit in units:
            pts = unit.packet.pts if isinstance(unit, Received) else unit.pts
            link.locate(pts, unit.ssrc, time.time(), self._skew_s)
        return [(link, unit) for unit in units]

    def close(self) -> None:
        if hasattr(self, "selector"):
            self.selector.close()
        for link in self.links:
            link.socket.close()


def _protected(link: _Link, datagram: bytes) -> int:
    """The bytes that the receiver's own channel spares: as at the sender."""
    if link.channel.settings.bit_error_rate == 0:
        return 0
    try:
        packet = RtpPacket.parse(datagram)
    except WireError:
        return 0
    if packet.payload_type == link.lane.recoverer.payload_type:
        return fec.protected_bytes(link.spared)
    if link.name == "mcode":
        link.spared = payload.protected_bytes(packet)
    else:
        link.spared = h264.protected_bytes(packet, link.lane.codec or "h264")
    return link.spared


# For a player: threads, and the newest frame only.


class Delay(NamedTuple):
    """From capture to screen, in ms: frames in between waiting for their keyframe, the way here, decoding."""

    wait_ms: float
    network_ms: float
    decode_ms: float


class PlayoutClock:
    """When a moment of the sender's is shown here: the same for all lanes, so that they and the sound run together.

    The delay is what nine tenths of the slowest lane's pictures of the last four seconds needed and a little more; it
    rises at once and falls by a tenth of real time. Sans-IO; the methods may be called from several threads.
    """

    MARGIN_S = 0.008
    WINDOW_S = 4.0
    SHARE = 0.9

    def __init__(self) -> None:
        self._needed: dict[str, deque[tuple[float, float]]] = {}
        self._offset_s: float | None = None
        self._moved_s = 0.0
        self._lock = threading.Lock()
        self.shifts_s: dict[str, float] = {}

    def observe(self, lane: str, sent_unix_s: float, ready_s: float) -> None:
        """A picture or sound of sent_unix_s was ready at ready_s (monotonic)."""
        with self._lock:
            self._needed.setdefault(lane, deque()).append((ready_s, ready_s - sent_unix_s))
            for window in self._needed.values():
                while window and window[0][0] < ready_s - self.WINDOW_S:
                    window.popleft()
            wanted = self._wanted_s()
            before = self._offset_s
            if before is None or wanted >= before or before - wanted > 0.5:
                self._offset_s = wanted
            else:
                self._offset_s = max(wanted, before - 0.1 * max(0.0, ready_s - self._moved_s))
            self._moved_s = ready_s

    def shift(self, lane: str, by_s: float) -> None:
        """The sender's times of a lane turn out to be later by this much than was thought; shifts_s has the sums. What was seen
        of it so far needed so much less."""
        with self._lock:
            self.shifts_s[lane] = self.shifts_s.get(lane, 0.0) + by_s
            if window := self._needed.get(lane):
                self._needed[lane] = deque((at_s, need - by_s) for at_s, need in window)
                self._offset_s = self._wanted_s()

    def _wanted_s(self) -> float:
        return max(self._usual(window) for window in self._needed.values() if window) + self.MARGIN_S

    def _usual(self, window: deque[tuple[float, float]]) -> float:
        ranked = sorted(need for _, need in window)
        return ranked[int(self.SHARE * (len(ranked) - 1))]

    def restart(self) -> None:
        """Another sender: its clock may be another."""
        with self._lock:
            self._needed, self._offset_s = {}, None

    def due_s(self, sent_unix_s: float) -> float | None:
        return None if self._offset_s is None else sent_unix_s + self._offset_s


@dataclass(frozen=True)
class AudioChunk:
    """samples: int16 (n, channels), 48 kHz. sent_unix_s: the sender's time of the first. pts: its RTP timestamp in 1/48,000 s,
    unwrapped."""

    samples: np.ndarray
    sent_unix_s: float
    clock: PlayoutClock
    pts: int = 0
    shift_s: float = 0.0  # of the clock's for sound, when it came

    @property
    def due_s(self) -> float:
        """When the first is to be heard, on time.monotonic's clock. It moves with the clock, as the pictures' times do; long
        past where the sender it came from is gone."""
        due = self.clock.due_s(self.sent_unix_s + self.clock.shifts_s.get("audio", 0.0) - self.shift_s)
        return -math.inf if due is None else due


class LaneView:
    """What a window sees of a lane: the newest frame due, and counters. Held are the frames up to the newest
    keyframe, which are not due yet; nothing waits for a window. One thread decodes, another shows each frame when it is
    due."""

    def __init__(self, link: _Link, clock: PlayoutClock) -> None:
        self.name = link.name
        self._link, self._clock = link, clock
        self._units: queue.Queue[Any] = queue.Queue(maxsize=64)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._ready: deque[tuple[Frame, float]] = deque()  # decoded, not yet due; the latest time to show it
        self._changed = threading.Condition()
        self._sent_unix_s: float | None = None
        self.frames = self.shown = self.skipped = 0
        self.delay = Delay(0.0, 0.0, 0.0)
        self.error: Exception | None = None
        self.stream: StreamHeader | None = None
        self._threads = [
            threading.Thread(target=self._run_quietly, args=(self._decode_all,), name=f"mcode-{link.name}", daemon=True),
            threading.Thread(target=self._run_quietly, args=(self._show_all,), name=f"mcode-{link.name}-show", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def frame(self) -> Frame | None:
        """The newest frame due, None before the first; the last one stays when nothing comes. pts: RTP ticks."""
        return self._frame

    @property
    def newest(self) -> tuple[Frame, float | None, int] | None:
        """(frame, the sender's Unix time of it, count of frames shown), read together."""
        with self._lock:
            return None if self._frame is None else (self._frame, self._sent_unix_s, self.shown)

    @property
    def codec(self) -> str:
        lane = self._link.lane
        return "mcode" if isinstance(lane, McodeLane) else getattr(lane, "codec", None) or "h264"

    def counters(self) -> LaneCounters:
        return self._link.counters(time.monotonic(), frames=self.frames, shown=self.shown, skipped=self.skipped)

    def put(self, unit: Any) -> None:
        if self._units.full():  # far behind: what is oldest gives way, and what refers to it is broken
            with contextlib.suppress(queue.Empty):
                self._units.get_nowait()
            self._link.lane.note_gap()
            self.skipped += 1
        self._units.put_nowait(unit)

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5)

    def _run_quietly(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            self.error = error

    def _decode_all(self) -> None:
        """Decodes what comes as soon as it comes."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._decode(self._units.get(timeout=0.1))

    def _show_all(self) -> None:
        """Shows each frame when it is due; of several the last."""
        while not self._stop.is_set():
            shown = None
            with self._changed:
                wait_s = self._ready_s() - time.monotonic() if self._ready else 0.1
                if wait_s > 0:
                    self._changed.wait(min(wait_s, 0.1))  # no longer: when it is due may change
                while self._ready and self._ready_s() <= time.monotonic():
                    self.skipped += shown is not None
                    shown, _ = self._ready.popleft()
                if shown is not None:
                    self._changed.notify_all()
            if shown is not None:
                with self._lock:
                    self._frame, self._sent_unix_s, self.shown = (
                        shown,
                        self._link.sent_unix_s(shown.pts),
                        self.shown + 1,
                    )

    def _due_s(self, pts: int) -> float:
        sent = self._link.sent_unix_s(pts)
        due = self._clock.due_s(sent) if sent is not None else None
        return time.monotonic() if due is None else due

    def _ready_s(self) -> float:
        """When the next of those that wait is to be shown: one of a wild time holds up none behind it."""
        return min(min(self._due_s(frame.pts), latest_s) for frame, latest_s in self._ready)

    def _wanted(self, pts: int) -> bool:
        """Whether a frame not yet synthesised can still be shown."""
        in_time = self._frame is None or self._due_s(pts) >= time.monotonic() - _LATE_S
        self.skipped += not in_time
        return in_time

    def _hold(self, frame: Frame) -> None:
        """Until it is due. Where many wait already, this one waits, too."""
        with self._changed:
            while len(self._ready) >= _most_ready(frame) and not self._stop.is_set():
                self._changed.wait(0.1)
            self._ready.append((frame, time.monotonic() + _LONGEST_WAIT_S))
            self.frames += 1
            self._changed.notify_all()

    def _decode(self, unit: Any) -> None:
        link, lane = self._link, self._link.lane
        is_mcode = isinstance(unit, Received)
        last, steps = (unit.packet.pts, unit.packet.steps) if is_mcode else (unit.pts, 1)
        self.stream = unit.stream if is_mcode else None
        first, needed_s = last, -math.inf

        def wanted(pts: int) -> bool:
            nonlocal first, needed_s
            first = min(first, pts)
            # Left out or not, it could not have been here before its keyframe: a clock that only saw what was made would
            # settle on keyframes alone.
            needed_s = max(needed_s, unit.arrival_s - pts / link.clock_hz)
            return self._wanted(pts)

        frames = lane.decode(unit, wanted) if is_mcode else lane.decode(unit)
        self.error = lane.error
        if lane.error is not None:
            return
        sent = link.sent_unix_s(last)
        due = self._clock.due_s(sent) if sent is not None else None
        if due is not None and time.monotonic() - due > 0.25 and not self._units.empty() and self._frame is not None:
            self.skipped += steps  # too late to be seen: decoded, as the next one needs it, but not synthesised
            return
        for count, frame in enumerate(frames):
            first = min(first, frame.pts)
            needed_s = max(needed_s, time.monotonic() - frame.pts / link.clock_hz)
            self._hold(frame)
            if count + 1 >= _most_ready(frame) or self._stop.is_set():
                break
        self._note(unit, first, last, needed_s)
        for frame in frames:
            self._hold(frame)
            if self._stop.is_set():
                return

    def _note(self, unit: Any, first: int, last: int, needed_s: float) -> None:
        """What a keyframe's frames needed from the sender's picture until they were here. needed_s: by time.monotonic, from
        0 of their pts."""
        sent = self._link.sent_unix_s(last)
        if unit.after_loss or math.isinf(needed_s) or sent is None:
            return
        hz = self._link.clock_hz
        ready_s = time.monotonic()
        self._clock.observe(self.name, ready_s - needed_s + sent - last / hz, ready_s)
        to_unix = time.time() - ready_s
        self.delay = Delay(
            wait_ms=(last - first) * 1000 / hz,
            network_ms=(unit.arrival_s + to_unix - sent) * 1000,
            decode_ms=(ready_s - unit.arrival_s) * 1000,
        )


_MOST_READY = 64
_MOST_READY_BYTES = 96 << 20
_LATE_S = 0.02
_LONGEST_WAIT_S = 10.0


def _most_ready(frame: Frame) -> int:
    """Frames of that size which may wait until they are due."""
    return min(_MOST_READY, max(4, _MOST_READY_BYTES // frame.rgb.nbytes))


class Receiver:
    """A live stream for a player: `lanes["mcode"].frame`, `lanes["baseline"].frame`, sound in `audio`. Never blocks a
    window.

    source: an SDP file or rtp://HOST:PORT, where it listens. find_model: where manifolds come from, if not from
    `manifold` and `device`. bind_to: listen on this address instead. channel: damage done here, live (`set_channel`).
    Raises InputError for a port in use, a wrong SDP; later errors (a manifold that is missing, a newer format) stand in
    `error` and the receiver goes on, as another sender may come.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        manifold: str | os.PathLike[str] | Model | None = None,
        device: str = "auto",
        find_model: FindModel | None = None,
        bind_to: str | None = None,
        lanes: tuple[str, ...] = ("mcode", "baseline", "audio"),
        channel: ChannelSettings | None = None,
        most_audio_s: float = 3.0,
    ) -> None:
        find_model = find_model or finder(manifold, device)
        self._network = _Network(source, find_model, bind_to=bind_to, lanes=lanes, channel=channel)
        self.clock = PlayoutClock()
        self.lanes = {link.name: LaneView(link, self.clock) for link in self._network.links if link.name != "audio"}
        self.audio: deque[AudioChunk] = deque(maxlen=round(most_audio_s * 50))
        self._network_error: Exception | None = None
        self._switches = 0
        self._stop = threading.Event()
        self._opus: Any = None
        self._opus_ssrc: int | None = None
        self._thread = threading.Thread(target=self._run_quietly, name="mcode-receive", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What the user must know, in its own words; None while all is well."""
        return self._network_error or next((lane.error for lane in self.lanes.values() if lane.error), None)

    @property
    def is_receiving(self) -> bool:
        """A sender is being followed; False before the first packet and after its goodbye."""
        return any(link.reception.ssrc is not None for link in self._network.links)

    @property
    def silent_s(self) -> float | None:
        """Seconds since anything came from the sender being followed; None while none is."""
        heard = [link.reception.last_arrival_s for link in self._network.links if link.reception.ssrc is not None]
        return time.monotonic() - max(heard) if heard else None

    def set_channel(self, settings: ChannelSettings) -> None:
        """Damage done at this end, from the next packet on, alike in both picture lanes; the sound is spared."""
        for link in self._network.links:
            if link.name != "audio":
                link.channel.settings = settings

    def channel_counters(self) -> dict[str, Channel]:
        """Each lane's channel, whose counters tell what was done to it at this end."""
        return {link.name: link.channel for link in self._network.links}

    def audio_counters(self) -> LaneCounters | None:
        return next((k.counters(time.monotonic()) for k in self._network.links if k.name == "audio"), None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for view in self.lanes.values():
            view.close()
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_quietly(self) -> None:
        while not self._stop.is_set():
            try:
                units = self._network.wait(0.1)
                switches = sum(link.reception.switches for link in self._network.links)
                if switches != self._switches:
                    self._switches = switches
                    self.clock.restart()
                self._follow_clocks()
                for link, unit in units:
                    if link.name == "mcode":  # of the format known here: another sender's
                        self._network_error = None
                    if link.name == "audio":
                        self._hear(link, unit)
                    else:
                        self.lanes[link.name].put(unit)
            except FormatError as error:
                self._network_error = error
            except Exception as error:
                self._network_error = error
                return

    def _follow_clocks(self) -> None:
        """Where reports have moved a lane's times, the clock moves along: nothing is due later or earlier for that."""
        for link in self._network.links:
            if abs(link.moved_s) > 0.001:
                self.clock.shift(link.name, link.moved_s)
                link.moved_s = 0.0

    def _hear(self, link: _Link, packet: opus.OpusPacket) -> None:
        if self._opus is None or packet.ssrc != self._opus_ssrc:
            self._opus, self._opus_ssrc = _opus_decoder(), packet.ssrc
        sent = link.sent_unix_s(packet.pts)
        samples = decode_opus(self._opus, packet.data)
        if sent is None or samples is None:
            return
        self.clock.observe("audio", sent, time.monotonic() + 0.02)
        self.audio.append(AudioChunk(samples, sent, self.clock, packet.pts, self.clock.shifts_s.get("audio", 0.0)))


def _opus_decoder() -> Any:
    decoder: Any = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = opus.CLOCK_HZ, "stereo"
    decoder.open()
    return decoder


def decode_opus(decoder: Any, data: bytes) -> np.ndarray | None:
    """int16 (n, 2) of one Opus packet; None where it is damaged."""
    try:
        frames = decoder.decode(av.Packet(data))
    except av.error.FFmpegError:
        return None
    if not frames:
        return None
    pieces = []
    for frame in frames:
        samples = frame.to_ndarray()
        if samples.dtype != np.int16:
            samples = np.clip(samples * 32768, -32768, 32767).astype(np.int16)
        channels = frame.layout.nb_channels
        pieces.append(samples.T if frame.format.is_planar else samples.reshape(-1, channels))
    return np.concatenate(pieces)


# To a file.


@dataclass(frozen=True)
class ReceiveReport:
    """lane: "mcode", "h264" or "h265". duration_s: of the picture written. audio_packets: written beside it."""

    frames: int
    duration_s: float
    lane: str
    width: int
    height: int
    manifold_id: str | None
    n: int | None
    coder: str | None
    audio_packets: int
    counters: LaneCounters
    warnings: tuple[str, ...] = ()


def receive_to_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    duration_s: float | None = None,
    manifold: str | os.PathLike[str] | Model | None = None,
    device: str = "auto",
    lane: str = "mcode",
    audio: bool = True,
    size: tuple[int, int] | None = None,
    bind_to: str | None = None,
    wait_s: float = WAIT_S,
    idle_s: float = 10.0,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    stop: threading.Event | None = None,
) -> ReceiveReport:
    """Writes one lane ("mcode" or "baseline"), every frame of it, and the sound to a file (see FrameWriter for its
    name).

    Ends after duration_s, when the sender says goodbye, when it is silent for idle_s, or when `stop` is set. Raises
    InputError where nothing comes within wait_s, ManifoldError for a stream of a manifold that is not installed; once
    frames are written that ends the file, with a warning.
    """
    if lane not in ("mcode", "baseline"):
        raise InputError(f"--lane {lane}: choose mcode or baseline")
    stop = stop or threading.Event()
    movie = Path(output).suffix.lower() in (".mp4", ".mkv")
    names = (lane, "audio") if audio and movie else (lane,)
    recorder = _Recorder(output, size, force)  # first: a name that cannot be written is refused before anything is listened to
    wanted: dict[str, Any] = {"lanes": names, "needed": lane, "most_repair_s": _MOST_REPAIR_S}
    network = _Network(source, finder(manifold, device), bind_to=bind_to, **wanted)
    try:
        _receive(network, recorder, source, duration_s, wait_s, idle_s, stop, progress)
        recorder.close()
    except BaseException:
        recorder.abort()
        raise
    finally:
        network.close()
        recorder.release()
    link = network.links[0]
    warnings = list(recorder.warnings)
    if link.lane.error is not None:
        warnings.append(str(link.lane.error))
    return ReceiveReport(
        frames=recorder.frames,
        duration_s=recorder.length_s,
        lane=lane if lane == "mcode" else link.lane.codec or "h264",
        width=recorder.width,
        height=recorder.height,
        manifold_id=recorder.stream.manifold_id.hex() if recorder.stream else None,
        n=recorder.stream.n if recorder.stream else None,
        coder=recorder.stream.coder if recorder.stream else None,
        audio_packets=recorder.audio_packets,
        counters=link.counters(time.monotonic(), frames=recorder.frames),
        warnings=tuple(warnings),
    )


def _receive(
    network: _Network,
    recorder: _Recorder,
    source: str | os.PathLike[str],
    duration_s: float | None,
    wait_s: float,
    idle_s: float,
    stop: threading.Event,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    picture = network.links[0]
    started_s = last_s = time.monotonic()
    goodbye_s: float | None = None
    ended = False
    while True:
        ended = ended or stop.is_set()
        try:
            units = network.flush() if ended else network.wait(0.1)
        except McodeError as error:
            if not recorder.frames:
                raise
            recorder.warnings.append(str(error))
            return
        for link, unit in units:  # all of it, before a picture may end the recording
            if link.name == "audio":
                recorder.hear(link, unit)
        for link, unit in units:
            if link.name == "audio":
                continue
            for frame in picture.lane.decode(unit):
                recorder.push(frame, unit, link)
                if duration_s is not None and recorder.length_s >= duration_s:
                    return
            if picture.lane.error is not None:
                if not recorder.frames:
                    raise picture.lane.error
                return  # what came before is kept, and the report warns
            if progress is not None:
                progress(recorder.frames, None)
        if ended:
            break
        now = time.monotonic()
        if units:  # decoded by now, which may take longer than idle_s: a manifold is loaded
            last_s = now
        goodbye_s = (goodbye_s or now) if picture.said_goodbye else None
        tail_s = 0.0 if picture.lane.deadline_s is None else _LONGEST_TAIL_S
        if goodbye_s is not None and now - max(last_s, goodbye_s) > _GOODBYE_S:
            ended = True
        elif recorder.frames and now - last_s > idle_s + tail_s:
            recorder.warnings.append(f"the sender fell silent; what came in {recorder.length_s:.1f} s is written")
            ended = True
        elif not recorder.frames and now - started_s > wait_s:
            ended = True
        if ended:
            recorder.most_sound_s = math.inf if duration_s is None else duration_s
    if not recorder.frames and not stop.is_set():
        what = os.fspath(source)
        if not any(link.heard for link in network.links):
            raise InputError(f"{what}: nothing came in {now - started_s:.0f} s; is the sender running and sending here?")
        raise InputError(f"{what}: packets came, but no picture; is it a stream of mcode send?")


_MOST_REPAIR_S = 20.0
"""A recording has time to wait for repair, of slow streams, too."""
_LONGEST_TAIL_S = _MOST_REPAIR_S + 1.0
"""Silence behind a gap may be waiting for its repair: longer than a reception holds it."""
_GOODBYE_S = 0.5
"""For how long what a goodbye overtook is waited for."""


class _Spool:
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


@dataclass
class _Heard:
    """One sender's sound in a recording, between two leaps of the pictures. base_unix_s: the sender's time of pts 0, as last
    known. leaps: of the pictures before it. pictures: the number of their zero that it belongs to."""

    ssrc: int
    base_unix_s: float
    leaps: int
    pictures: int = 0


_LARGEST_LEAP = 3600 * TICKS_PER_S
"""By how much a picture's time may be ahead of the time that went by: a sender may be faster than real time, its pictures far
apart, and the clock here stands while the machine sleeps."""
_LARGEST_STEP_BACK = TICKS_PER_S


class _Recorder:
    """Frames, and Opus packets in their time, into a file."""

    def __init__(self, output: str | os.PathLike[str], size: tuple[int, int] | None, force: bool) -> None:
        self.output, self.size, self.force = Path(output), size, force
        self.frames = self.audio_packets = self.width = self.height = 0
        self.warnings: list[str] = []
        self.stream: StreamHeader | None = None
        self._writer: FrameWriter | None = None
        self._sound: _Spool | None = None
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

    def push(self, frame: Frame, unit: Any, link: _Link) -> None:
        if isinstance(unit, Received):
            self.stream = unit.stream
            wanted = self.size or (unit.stream.display_width, unit.stream.display_height)
        else:
            wanted = self.size or (frame.width, frame.height)
        now = time.monotonic()
        if unit.ssrc != self._ssrc:  # another sender, or the same anew: its time goes on where ours is
            ahead = 0 if self._base is None else max(self._gap, round((now - self._last_s) * TICKS_PER_S))
            self._base, self._ssrc = frame.pts - (max(0, self._last) + ahead if self.frames else 0), unit.ssrc
            self._base_before = self._base
            self._zeros_unix_s.append(0.0)
        assert self._base is not None
        pts = frame.pts - self._base
        elapsed = round((now - self._last_s) * TICKS_PER_S)
        usual = self._last + elapsed + TICKS_PER_S
        returns = pts > usual and self._last < frame.pts - self._base_before <= usual  # to the time before a leap
        if self.frames and (returns or pts > self._last + elapsed + _LARGEST_LEAP or pts < self._last - _LARGEST_STEP_BACK):
            # A damaged time, or a clock that was set: the pictures go on as they come.
            gap = min(self._gap, self._gap_before)  # the step before may have been the wild one
            leap = pts - self._last - (elapsed if elapsed > gap + TICKS_PER_S else gap)
            self._base, self._base_before = self._base + leap, self._base
            pts -= leap
            self._leaps += 1
            self._zeros_unix_s.append(self._zeros_unix_s[-1] + leap / TICKS_PER_S)  # what was heard so far keeps its own
        if unit.ssrc == link.base_ssrc and link.base_unix_s is not None:  # a report may have moved it
            self._zeros_unix_s[-1] = link.base_unix_s + self._base / link.clock_hz
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

    def hear(self, link: _Link, packet: opus.OpusPacket) -> None:
        if link.base_unix_s is None or link.base_ssrc != packet.ssrc:
            return
        if not self._heard or (self._heard[-1].ssrc, self._heard[-1].leaps) != (packet.ssrc, self._leaps):
            self._heard.append(_Heard(packet.ssrc, link.base_unix_s, self._leaps))
        self._heard[-1].base_unix_s = link.base_unix_s
        self._heard[-1].pictures = max(0, len(self._zeros_unix_s) - 1)
        self._sound = self._sound or _Spool(self.output.parent, time.monotonic())
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
