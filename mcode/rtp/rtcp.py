"""RTCP: sender and receiver reports, source descriptions, goodbye (RFC 3550, section 6) and the request for a
refresh, PLI (RFC 4585, 6.3.1). A datagram holds several, one behind the other."""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from mcode.errors import WireError

_SR, _RR, _SDES, _BYE, _PSFB = 200, 201, 202, 203, 206
_NTP_EPOCH_S = 2_208_988_800  # 1900 to 1970
_BLOCK = struct.Struct("!IIIIII")


def ntp(unix_s: float) -> int:
    """64-bit NTP time of a Unix time in seconds."""
    return round((unix_s + _NTP_EPOCH_S) * 2**32) & (2**64 - 1)


def unix_s(ntp_time: int) -> float:
    """Unix time in seconds of a 64-bit NTP time."""
    return ntp_time / 2**32 - _NTP_EPOCH_S


def report_gap_s(sent: int, share: float) -> float:
    """Seconds to the next report after so many (RFC 3550, 6.2 and 6.3.1): the first two come quickly, as clocks rest on them.
    share: from 0 to 1, at random, so that no two ends fall into step."""
    return 1.0 if sent < 2 else 5.0 * (0.5 + share)


def new_cname() -> str:
    """A canonical name for as long as a session lasts (RFC 7022, 4.2 and 5)."""
    return base64.b64encode(secrets.token_bytes(12)).decode()


@dataclass(frozen=True)
class ReportBlock:
    """How one source is received. fraction_lost: 0..1 since the last report. jitter: in the media's clock.
    last_report: the middle 32 bits of the last sender report's NTP time, 0 for none; since_last_report: in 1/65536
    s."""

    ssrc: int
    fraction_lost: float
    lost: int
    highest_sequence: int
    jitter: int
    last_report: int = 0
    since_last_report: int = 0

    def __bytes__(self) -> bytes:
        fraction = min(255, int(self.fraction_lost * 256))
        lost = max(-(1 << 23), min(self.lost, (1 << 23) - 1)) & 0xFFFFFF
        values = (fraction << 24 | lost, self.highest_sequence, self.jitter, self.last_report, self.since_last_report)
        return _BLOCK.pack(self.ssrc, *(value & 0xFFFFFFFF for value in values))

    @classmethod
    def parse(cls, data: bytes) -> ReportBlock:
        ssrc, lost, highest, jitter, last, since = _BLOCK.unpack(data)
        signed = (lost & 0xFFFFFF) - ((lost & 0x800000) << 1)
        return cls(ssrc, (lost >> 24) / 256, signed, highest, jitter, last, since)


@dataclass(frozen=True)
class SenderReport:
    """ntp_time and rtp_timestamp are the same moment on the two clocks: what lip synchronisation rests on."""

    ssrc: int
    ntp_time: int
    rtp_timestamp: int
    packets: int
    octets: int
    blocks: tuple[ReportBlock, ...] = ()

    def __bytes__(self) -> bytes:
        info = struct.pack("!QIII", self.ntp_time, *(v & 0xFFFFFFFF for v in (self.rtp_timestamp, self.packets, self.octets)))
        return _packet(_SR, len(self.blocks), self.ssrc.to_bytes(4) + info + b"".join(map(bytes, self.blocks)))


@dataclass(frozen=True)
class ReceiverReport:
    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()

    def __bytes__(self) -> bytes:
        return _packet(_RR, len(self.blocks), self.ssrc.to_bytes(4) + b"".join(map(bytes, self.blocks)))


@dataclass(frozen=True)
class Description:
    """A source's canonical name: the same for all streams that are to be played in sync."""

    ssrc: int
    cname: str

    def __bytes__(self) -> bytes:
        name = self.cname.encode()[:255]
        chunk = self.ssrc.to_bytes(4) + bytes([1, len(name)]) + name + b"\0"
        return _packet(_SDES, 1, chunk + bytes(-len(chunk) % 4))


@dataclass(frozen=True)
class Bye:
    ssrcs: tuple[int, ...]

    def __bytes__(self) -> bytes:
        return _packet(_BYE, len(self.ssrcs), b"".join(ssrc.to_bytes(4) for ssrc in self.ssrcs))


@dataclass(frozen=True)
class Pli:
    """Picture loss indication: the receiver asks the sender of media_ssrc for a refresh."""

    ssrc: int
    media_ssrc: int

    def __bytes__(self) -> bytes:
        return _packet(_PSFB, 1, self.ssrc.to_bytes(4) + self.media_ssrc.to_bytes(4))


Control = SenderReport | ReceiverReport | Description | Bye | Pli


def compound(parts: Iterable[Control]) -> bytes:
    """One datagram of several control packets; a report comes first (RFC 3550, 6.1)."""
    return b"".join(map(bytes, parts))


def parse_compound(data: bytes) -> list[Control]:
    """The control packets of a datagram; kinds that are not known here are passed over. Raises WireError."""
    found: list[Control] = []
    at = 0
    while at < len(data):
        if len(data) < at + 4:
            raise WireError("an RTCP packet is cut short")
        first, kind, words = struct.unpack_from("!BBH", data, at)
        body = data[at + 4 : at + 4 + 4 * words]
        if first >> 6 != 2 or len(body) < 4 * words:
            raise WireError("an RTCP packet is cut short, or none at all")
        if first & 0x20:
            if not body or not 1 <= body[-1] <= len(body):
                raise WireError("more RTCP padding than packet")
            body = body[: -body[-1]]
        parsed = _parse(kind, first & 31, body)
        if parsed is not None:
            found.append(parsed)
        at += 4 + 4 * words
    return found


def _parse(kind: int, count: int, body: bytes) -> Control | None:
    least = {_SR: 24 + 24 * count, _RR: 4 + 24 * count, _SDES: 8 * (count > 0), _BYE: 4 * count, _PSFB: 8}
    if len(body) < least.get(kind, 0):
        raise WireError(f"an RTCP packet of type {kind} is cut short")
    if kind in (_SR, _RR):
        start = 24 if kind == _SR else 4
        blocks = tuple(ReportBlock.parse(body[at : at + 24]) for at in range(start, start + 24 * count, 24))
        if kind == _RR:
            return ReceiverReport(int.from_bytes(body[:4]), blocks)
        ssrc, ntp_time, timestamp, packets, octets = struct.unpack_from("!IQIII", body)
        return SenderReport(ssrc, ntp_time, timestamp, packets, octets, blocks)
    if kind == _SDES and count and body[4] == 1:
        return Description(int.from_bytes(body[:4]), body[6 : 6 + body[5]].decode("utf-8", "replace"))
    if kind == _BYE:
        return Bye(tuple(int.from_bytes(body[at : at + 4]) for at in range(0, 4 * count, 4)))
    if kind == _PSFB and count == 1:
        return Pli(int.from_bytes(body[:4]), int.from_bytes(body[4:8]))
    return None


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("!BBH", 2 << 6 | count, kind, len(body) // 4) + body
