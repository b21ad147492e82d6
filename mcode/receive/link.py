"""One lane of a stream that is received: what it takes to follow its sender, answer it and know its clock."""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import socket
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from mcode import fec
from mcode.channel import Channel
from mcode.errors import WireError
from mcode.lanes import LaneCounters
from mcode.rtp import h264, payload, rtcp
from mcode.rtp.packets import HEADER_BYTES, RtpPacket, unwrap
from mcode.rtp.reception import Counters, Reception

PLI_GAP_S, _MOST_PLI_GAP_S = 0.4, 5.0
_JOIN_S, _LONGEST_REPORT_GAP_S = 1.0, 10.0
"""A sender that reports for so long, and no packet of it: a receiver that joins need not wait for its next one."""


@dataclass
class Link:
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
    reporter: tuple | None = None  # whose report that is
    reporting_since_s: float = math.inf
    last_pli_s: float = -math.inf
    pli_gap_s: float = PLI_GAP_S
    reports: int = 0
    next_report_s: float = -math.inf
    refresh_requests: int = 0
    heard: int = 0
    elsewhere: int | None = None  # source of packets of another payload type: its reports are not of this lane
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
                if self.reported is None or self.reported[0].ssrc != control.ssrc:
                    self.reporting_since_s = now_s
                self.reported, self.reporter = (control, now_s), peer
                sent_unix_s = rtcp.unix_s(control.ntp_time)
            elif isinstance(control, rtcp.Bye) and self.reception.ssrc in control.ssrcs:
                self.reception.bye(self.reception.ssrc, now_s)
                self.said_goodbye = True
        return sent_unix_s

    @property
    def heard_s(self) -> float:
        """When something last came from the sender that is followed, or may be: a packet or a report. Reports beside packets
        of which none is followed are those of another lane."""
        if self.reported is None:
            return self.reception.last_arrival_s
        report, reported_s = self.reported
        follows = self.reception.ssrc == report.ssrc or (self.reception.ssrc is None and report.ssrc != self.elsewhere)
        return max(self.reception.last_arrival_s, reported_s if follows else 0.0)

    def answer(self, now_s: float) -> None:
        """Receiver reports when they are due, a request for a refresh as soon as one is needed."""
        source, peer = self.reception.ssrc, self.peer
        wants, joins = getattr(self.lane, "wants_refresh", False), self._joins(now_s)
        if joins is not None:
            source, peer, wants = joins, self.reporter, True
        if peer is None or source is None:
            return
        if not wants:
            self.pli_gap_s = PLI_GAP_S
        wants = wants and now_s - self.last_pli_s >= self.pli_gap_s
        is_due = now_s >= self.next_report_s and joins is None
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
            self.pli_gap_s = min(2 * self.pli_gap_s, _MOST_PLI_GAP_S)
        with contextlib.suppress(OSError):  # the sender is gone; it may come back
            self.socket.sendto(rtcp.compound(parts), peer)

    def _joins(self, now_s: float) -> int | None:
        """The source that reports while no packet of it comes, as of a bundle seconds long: it is asked for a refresh."""
        if self.reported is None or self.reception.ssrc is not None or self.said_goodbye or self.name == "audio":
            return None
        report, at_s = self.reported
        if report.ssrc == self.elsewhere:
            return None
        waited = now_s - self.reporting_since_s >= _JOIN_S and now_s - at_s < _LONGEST_REPORT_GAP_S
        return report.ssrc if waited else None

    def protected_bytes(self, datagram: bytes) -> int:
        """Of a datagram, those that the channel here spares: as at the sender."""
        if self.channel.settings.bit_error_rate == 0:
            return 0
        try:
            packet = RtpPacket.parse(datagram)
        except WireError:
            return 0
        if packet.payload_type == self.lane.recoverer.payload_type:
            return fec.protected_bytes(self.spared)
        if self.name == "mcode":
            self.spared = payload.protected_bytes(packet)
        else:
            self.spared = h264.protected_bytes(packet, self.lane.codec or "h264")
        return self.spared

    def note_stranger(self, datagram: bytes) -> None:
        """What came while no source is followed: of another lane, where it says so."""
        if self.name == "audio":
            return
        with contextlib.suppress(WireError):
            packet = RtpPacket.parse(datagram)
            if packet.payload_type not in (self.lane.depacketiser.payload_type, self.lane.recoverer.payload_type):
                self.elsewhere = packet.ssrc

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
