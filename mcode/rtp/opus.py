"""Opus in RTP (RFC 7587): one Opus packet a datagram, a clock of 48 kHz whatever the sound's own rate."""

from __future__ import annotations

from typing import NamedTuple

from mcode.errors import WireError
from mcode.rtp.packets import OPUS, RtpPacket, is_rtcp, unwrap
from mcode.rtp.reception import Reception

CLOCK_HZ = 48_000
_LARGEST_PACKET = 1500
"""Bytes: 20 ms of Opus take at most 1275 (RFC 6716, 3.4), and a datagram hardly more."""


class OpusPacketiser:
    """Opus packets to RTP packets."""

    def __init__(self, ssrc: int, *, payload_type: int = OPUS, first_sequence: int = 0, first_timestamp: int = 0) -> None:
        self.ssrc, self.payload_type = ssrc, payload_type
        self.sequence, self.first_timestamp = first_sequence, first_timestamp
        self._is_first = True

    def push(self, data: bytes, pts: int) -> list[RtpPacket]:
        """pts: in 1/48,000 s, from before 0 on where the encoder looks ahead. The marker stands on the first packet, the
        start of a talkspurt (RFC 7587, 4.1)."""
        packet = RtpPacket(
            self.payload_type,
            self.sequence & 0xFFFF,
            (self.first_timestamp + pts) & 0xFFFFFFFF,
            self.ssrc,
            data,
            marker=self._is_first,
        )
        self._is_first = False
        self.sequence += 1
        return [packet]


class OpusPacket(NamedTuple):
    """pts: the RTP timestamp in 1/48,000 s, unwrapped."""

    data: bytes
    pts: int
    lost_before: int
    ssrc: int


class OpusDepacketiser:
    """Datagrams to Opus packets, in order."""

    def __init__(self, *, payload_type: int = OPUS) -> None:
        self.payload_type = payload_type
        self.reception = Reception(CLOCK_HZ)
        self.not_rtp = 0
        self._pts: int | None = None
        self._ssrc: int | None = None

    def push(self, datagram: bytes, now_s: float) -> list[OpusPacket]:
        arrived = []
        if not is_rtcp(datagram):
            try:
                packet = RtpPacket.parse(datagram)
            except WireError:
                self.not_rtp += 1
                return []
            if packet.payload_type != self.payload_type or not 0 < len(packet.payload) <= _LARGEST_PACKET:
                self.reception.counters.foreign += 1
            else:
                arrived = self.reception.push(packet, now_s)
        return self._opus(arrived + self.reception.poll(now_s))

    def poll(self, now_s: float) -> list[OpusPacket]:
        return self._opus(self.reception.poll(now_s))

    @property
    def deadline_s(self) -> float | None:
        return self.reception.deadline_s

    def _opus(self, arrived: list) -> list[OpusPacket]:
        given = []
        for packet, lost in arrived:
            if packet.ssrc != self._ssrc:
                self._ssrc, self._pts = packet.ssrc, None
            self._pts = packet.timestamp if self._pts is None else unwrap(packet.timestamp, self._pts, 32)
            given.append(OpusPacket(packet.payload, self._pts, lost, packet.ssrc))
        return given
