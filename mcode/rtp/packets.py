"""The RTP packet (RFC 3550, section 5.1): fixed header and payload. Not what is in the payload, not control packets."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mcode.errors import WireError

HEADER_BYTES = 12
MTU = 1200
"""The largest datagram that is sent, in bytes: it fits every IPv6 path of 1280."""

MCODE, H264, H265, OPUS, FEC = 96, 97, 98, 99, 100
"""Payload types, in the dynamic range, of streams opened without a session description."""

_HEADER = struct.Struct("!BBHII")


@dataclass(frozen=True)
class RtpPacket:
    """timestamp: 32 bits of the media clock. marker: the last packet of a picture. payload_type: 0..127."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    marker: bool = False

    def __bytes__(self) -> bytes:
        return self.header + self.payload

    @property
    def header(self) -> bytes:
        """The twelve bytes before the payload."""
        second = self.marker << 7 | self.payload_type
        return _HEADER.pack(2 << 6, second, self.sequence & 0xFFFF, self.timestamp & 0xFFFFFFFF, self.ssrc)

    @classmethod
    def parse(cls, data: bytes) -> RtpPacket:
        """Padding, contributing sources and header extensions are taken off. Raises WireError."""
        if len(data) < HEADER_BYTES:
            raise WireError(f"an RTP packet of {len(data)} bytes")
        first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
        if first >> 6 != 2:
            raise WireError(f"RTP version {first >> 6}")
        start, end = HEADER_BYTES + 4 * (first & 15), len(data)
        if first & 0x10:
            if len(data) < start + 4:
                raise WireError("an RTP header extension is cut short")
            start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4])
        if first & 0x20:
            if not 1 <= data[-1] <= end - start:
                raise WireError("more RTP padding than packet")
            end -= data[-1]
        if start > end:
            raise WireError("an RTP header is cut short")
        return cls(second & 127, sequence, timestamp, ssrc, data[start:end], bool(second >> 7))


def is_rtcp(data: bytes) -> bool:
    """Whether a datagram on a port that carries both is a control packet (RFC 5761, section 4)."""
    return len(data) >= 2 and 192 <= data[1] <= 223


def unwrap(value: int, near: int, bits: int) -> int:
    """The whole number that is `value` modulo 2^bits and nearest to `near`: sequence numbers and timestamps,
    unbounded."""
    half = 1 << (bits - 1)
    return near + ((value - near + half) & ((1 << bits) - 1)) - half


class Timeline:
    """A source's RTP timestamps, unwrapped. The time that went by tells which turn of theirs it is after a pause of more than
    half of one (6.6 h at 90 kHz)."""

    def __init__(self, clock_hz: int) -> None:
        self.clock_hz = clock_hz
        self.pts: int | None = None
        self._at_s = 0.0

    def place(self, timestamp: int, now_s: float) -> int:
        """The timestamp of a packet given at now_s, unwrapped."""
        if self.pts is None:
            return timestamp
        return unwrap(timestamp, self.pts + round((now_s - self._at_s) * self.clock_hz), 32)

    def push(self, timestamp: int, now_s: float) -> int:
        """The same, for the ones that follow to go on from."""
        self.pts, self._at_s = self.place(timestamp, now_s), now_s
        return self.pts
