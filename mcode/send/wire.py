"""The lanes on their way out: sockets, the channel that damages what goes through them, and what receivers say of it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mcode.channel import Channel, ChannelSettings
from mcode.errors import WireError
from mcode.fec import Protector
from mcode.rtp import rtcp
from mcode.rtp.packets import HEADER_BYTES

_LEAST_REFRESH_GAP_S = 0.3
_LEAST_REPORT_GAP_S = 1.0
_RATE_WINDOW_S = 10.0


def ip_bytes(family: int) -> int:
    """The headers of IP and UDP of a packet."""
    return 48 if family == socket.AF_INET6 else 28


@dataclass(frozen=True)
class LaneReport:
    """What one lane sent. rate_kbps: of RTP packets, repair included; link_kbps: with the IP and UDP headers of each (28 bytes,
    48 with IPv6). Neither counts RTCP, a report of some 60 bytes every five seconds.

    target_kbps, at_floor: of a baseline that follows a rate, and whether it needs more than that. remote_*: as the
    receiver last reported; None where it never did.
    """

    name: str
    packets: int
    payload_bytes: int
    wire_bytes: int
    fec_bytes: int
    rate_kbps: float
    link_kbps: float
    channel_lost: int
    channel_damaged: int
    channel_flipped_bits: int
    refresh_requests: int
    target_kbps: float | None = None
    at_floor: bool = False
    remote_loss: float | None = None
    remote_jitter_ms: float | None = None
    round_trip_ms: float | None = None


@dataclass
class Lane:
    """One stream on its way out: its numbers, its channel, its counters and what the receiver says of it."""

    name: str
    address: tuple
    clock_hz: int
    settings: ChannelSettings
    protector: Protector | None
    socket: socket.socket

    def __post_init__(self) -> None:
        self.ssrc = secrets.randbits(32)
        self.first_timestamp = secrets.randbits(32)
        self.numbers = {
            "ssrc": self.ssrc,
            "first_sequence": secrets.randbits(16),
            "first_timestamp": self.first_timestamp,
        }
        self.channel = Channel(self.settings)
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

    @property
    def link_bytes(self) -> int:
        """Of all packets so far, with the IP and UDP headers of each."""
        return self.wire_bytes + self.packets * ip_bytes(self.socket.family)

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
            link_kbps=self.link_bytes * 8 / 1000 / length_s,
            channel_lost=self.channel.lost,
            channel_damaged=self.channel.damaged,
            channel_flipped_bits=self.channel.flipped_bits,
            refresh_requests=self.refresh_requests,
            remote_loss=remote.fraction_lost if remote else None,
            remote_jitter_ms=remote.jitter * 1000 / self.clock_hz if remote else None,
            round_trip_ms=self.round_trip_s * 1000 if self.round_trip_s is not None else None,
        )


class Wire:
    """The sockets of all lanes, and a thread that delivers what the channel delays and hears what receivers say."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.lanes: list[Lane] = []
        self._due: list[tuple[float, int, Lane, bytes]] = []
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

    def add(
        self, name: str, address: tuple, clock_hz: int, settings: ChannelSettings, protector: Protector | None = None
    ) -> Lane:
        """A lane with a socket of its own. address: where it goes."""
        made = socket.socket(self.family, socket.SOCK_DGRAM)
        made.setblocking(False)
        # A port of its own to hear RTCP on; bound to the loopback where that is the destination.
        loopback = address[0].startswith("127.") or address[0] == "::1"
        any_address = "" if self.family == socket.AF_INET else "::"
        made.bind((address[0] if loopback else any_address, 0))
        self.lanes.append(Lane(name, address, clock_hz, settings, protector, made))
        return self.lanes[-1]

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mcode-send-wire", daemon=True)
        self._thread.start()

    def transmit(self, lane: Lane, data: bytes, protected: int, media_s: float, is_repair: bool = False) -> None:
        lane.count(len(data), protected, media_s, is_repair)
        now = time.monotonic()
        for at_s, damaged in lane.channel.transmit(data, protected, now):
            if at_s <= now:
                self._send(lane, damaged)
                continue
            with self._lock:
                heapq.heappush(self._due, (at_s, next(self._count), lane, damaged))
            self._wake()

    def _send(self, lane: Lane, data: bytes) -> None:
        try:
            lane.socket.sendto(data, lane.address)
        except ConnectionRefusedError:
            pass  # nobody listens: the next may arrive
        except OSError as error:  # no route, not allowed, no room: as good as lost, too
            self.failed, self.failure = self.failed + 1, error.strerror or str(error)

    def report(self, media_time: Callable[[Lane], tuple[int, int]]) -> None:
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
            lane.socket.close()
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # awake already, or closed
            self._wake_write.send(b"x")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for lane in self.lanes:
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

    def _next_due(self) -> tuple[Lane, bytes] | None:
        with self._lock:
            if not self._due or self._due[0][0] > time.monotonic():
                return None
            _, _, lane, data = heapq.heappop(self._due)
            return lane, data

    def _hear(self, lane: Lane) -> None:
        with contextlib.suppress(OSError, WireError):
            data, peer = lane.socket.recvfrom(2048)
            if peer[0] == lane.address[0]:  # only the receiver may ask for refreshes
                for control in rtcp.parse_compound(data):
                    lane.hear(control)
