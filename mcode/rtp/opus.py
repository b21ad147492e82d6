"""Opus in RTP (RFC 7587): one Opus packet a datagram, a clock of 48 kHz whatever the sound's own rate."""

from __future__ import annotations

from typing import NamedTuple

from mcode.errors import WireError
from mcode.rtp.packets import OPUS, RtpPacket, Timeline, is_rtcp
from mcode.rtp.reception import Arrived, Reception

CLOCK_HZ = 48_000
_LARGEST_PACKET = 1500
"""Bytes: 20 ms of Opus take at most 1275 (RFC 6716, 3.4), and a datagram hardly more."""
LONGEST_PACKET = 5760
"""120 ms (RFC 6716, 3.2.5)."""


def duration(data: bytes) -> int | None:
    """Of an Opus packet, in 1/48,000 s, as its first bytes tell (RFC 6716, 3.1 and 3.2); None where they tell nonsense."""
    if not data:
        return None
    kind, code = data[0] >> 3, data[0] & 3
    if kind < 12:  # SILK
        frame = (480, 960, 1920, 2880)[kind & 3]
    elif kind < 16:  # hybrid
        frame = (480, 960)[kind & 1]
    else:  # CELT
        frame = 120 << (kind & 3)
    count = (1, 2, 2, data[1] & 63 if len(data) > 1 else 0)[code]
    return frame * count if 0 < frame * count <= LONGEST_PACKET else None


class OpusPacketiser:
    """Opus packets to RTP packets."""

    def __init__(self, ssrc: int, *, payload_type: int = OPUS, first_sequence: int = 0, first_timestamp: int = 0) -> None:
        self.ssrc, self.payload_type = ssrc, payload_type
        self.sequence, self.first_timestamp = first_sequence, first_timestamp

    def push(self, data: bytes, pts: int) -> list[RtpPacket]:
        """pts: in 1/48,000 s, from before 0 on where the encoder looks ahead. No packet bears the marker, since silence is
        sent, too (RFC 3551, 4.1)."""
        packet = RtpPacket(
            self.payload_type,
            self.sequence & 0xFFFF,
            (self.first_timestamp + pts) & 0xFFFFFFFF,
            self.ssrc,
            data,
        )
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
        self._timeline = Timeline(CLOCK_HZ)
        self._ssrc: int | None = None

    def push(self, datagram: bytes, now_s: float) -> list[OpusPacket]:
        arrived: list[Arrived] = []
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
        return self._opus(arrived + self.reception.poll(now_s), now_s)

    def poll(self, now_s: float) -> list[OpusPacket]:
        return self._opus(self.reception.poll(now_s), now_s)

    @property
    def deadline_s(self) -> float | None:
        return self.reception.deadline_s

    def _opus(self, arrived: list[Arrived], now_s: float) -> list[OpusPacket]:
        given = []
        for packet, lost in arrived:
            if packet.ssrc != self._ssrc:
                self._ssrc, self._timeline = packet.ssrc, Timeline(CLOCK_HZ)
            pts = self._timeline.push(packet.timestamp, now_s)
            given.append(OpusPacket(packet.payload, pts, lost, packet.ssrc))
        return given
