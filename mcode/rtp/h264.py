"""H.264 in RTP (RFC 6184, packetization-mode 1) and H.265 (RFC 7798), and back: access units in Annex B to packets.

Single NAL unit packets, one aggregate of the small ones (STAP-A, AP), fragments of the large ones (FU-A, FU). No
interleaving (mode 2), no decoding order numbers.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mcode.errors import WireError
from mcode.rtp.packets import H264, H265, HEADER_BYTES, MTU, RtpPacket, Timeline, is_rtcp
from mcode.rtp.reception import Arrived, Reception

CLOCK_HZ = 90_000
_START_CODE = re.compile(b"\0\0\1")
_MOST_UNIT_BYTES = 4 << 20
_MOST_ACCESS_UNIT_BYTES = 8 << 20
_UNIT_COST = 64  # bytes of memory that a unit takes beside its own: units of one byte must not fill it either


@dataclass(frozen=True)
class _Layout:
    """What differs between the two codecs. header: bytes of a NAL unit's header."""

    payload_type: int
    header: int
    aggregate: int
    fragment: int
    delimiter: int
    parameter_sets: frozenset[int]
    pictures: range
    intra: range

    def kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self.header == 1 else unit[0] >> 1 & 63

    def opens(self, payload: bytes) -> bool:
        """Whether a packet holds what stands first in a picture that decoding can begin with."""
        unit = payload[self.header + 2 :] if payload and self.kind(payload) == self.aggregate else payload
        return bool(unit) and self.kind(unit) in (self.delimiter, min(self.parameter_sets))


LAYOUTS = {
    "h264": _Layout(H264, 1, 24, 28, 9, frozenset({7, 8}), range(1, 6), range(5, 6)),
    "h265": _Layout(H265, 2, 48, 49, 35, frozenset({32, 33, 34}), range(32), range(16, 24)),
}


def nal_units(data: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes and trailing zeros (H.264 B.1)."""
    starts = [match.end() for match in _START_CODE.finditer(data)]
    ends = [start - 3 for start in starts[1:]] + [len(data)]
    units = (data[start:end].rstrip(b"\0") for start, end in zip(starts, ends, strict=True))
    return [unit for unit in units if unit]


def parameter_sets(data: bytes, codec: str) -> list[bytes]:
    """The parameter sets (SPS, PPS; VPS) in an access unit, in their order."""
    layout = LAYOUTS[codec]
    return [unit for unit in nal_units(data) if layout.kind(unit) in layout.parameter_sets]


class H264Packetiser:
    """Access units to RTP packets of at most `mtu` bytes, the last of each with the marker. codec: "h264" or "h265"."""

    def __init__(
        self,
        ssrc: int,
        *,
        codec: str = "h264",
        payload_type: int | None = None,
        first_sequence: int = 0,
        first_timestamp: int = 0,
        mtu: int = MTU,
    ) -> None:
        self.ssrc, self.mtu, self.codec = ssrc, mtu, codec
        self.layout = LAYOUTS[codec]
        self.payload_type = self.layout.payload_type if payload_type is None else payload_type
        self.sequence, self.first_timestamp = first_sequence, first_timestamp

    def push(self, access_unit: bytes, pts: int) -> list[RtpPacket]:
        """access_unit: Annex B. pts: ticks of 1/90,000 s."""
        payloads = list(self._payloads(nal_units(access_unit)))
        made = []
        for number, payload in enumerate(payloads):
            made.append(
                RtpPacket(
                    self.payload_type,
                    self.sequence & 0xFFFF,
                    (self.first_timestamp + pts) & 0xFFFFFFFF,
                    self.ssrc,
                    payload,
                    marker=number == len(payloads) - 1,
                )
            )
            self.sequence += 1
        return made

    def _payloads(self, units: list[bytes]) -> Iterator[bytes]:
        room = self.mtu - HEADER_BYTES
        held: list[bytes] = []
        for unit in units:
            size = self.layout.header + sum(2 + len(other) for other in held)
            # Parameter sets travel with each other, pictures alone: so the channel can spare the one and not the other.
            mixed = held and self._is_parameter_set(held[-1]) != self._is_parameter_set(unit)
            if held and (mixed or size + 2 + len(unit) > room):
                yield self._aggregate(held)
                held = []
            if len(unit) > room:
                yield from self._fragments(unit, room)
            else:
                held.append(unit)
        if held:
            yield self._aggregate(held)

    def _is_parameter_set(self, unit: bytes) -> bool:
        return self.layout.kind(unit) in self.layout.parameter_sets

    def _aggregate(self, units: list[bytes]) -> bytes:
        if len(units) == 1:
            return units[0]
        if self.layout.header == 1:  # the greatest nal_ref_idc (RFC 6184, 5.7)
            head = bytes([max(unit[0] & 0x60 for unit in units) | self.layout.aggregate])
        else:
            head = bytes([self.layout.aggregate << 1, 1])
        return head + b"".join(len(unit).to_bytes(2) + unit for unit in units)

    def _fragments(self, unit: bytes, room: int) -> Iterator[bytes]:
        size = self.layout.header
        if size == 1:
            head, kind = bytes([unit[0] & 0xE0 | self.layout.fragment]), unit[0] & 31
        else:
            head, kind = bytes([unit[0] & 0x81 | self.layout.fragment << 1, unit[1]]), unit[0] >> 1 & 63
        step = room - len(head) - 1
        for at in range(size, len(unit), step):
            start, end = at == size, at + step >= len(unit)
            yield head + bytes([start << 7 | end << 6 | kind]) + unit[at : at + step]


def protected_bytes(packet: RtpPacket, codec: str = "h264") -> int:
    """How many leading bytes of the datagram the channel's bit errors spare: the RTP header, the NAL unit's and
    fragment's header, and parameter sets whole, as MCode's stream header is spared whole."""
    layout, payload = LAYOUTS[codec], packet.payload
    if len(payload) <= layout.header:
        return HEADER_BYTES
    kind = layout.kind(payload)
    first = layout.kind(payload[layout.header + 2 :] or b"\0") if kind == layout.aggregate else kind
    if first in layout.parameter_sets:
        return HEADER_BYTES + len(payload)
    return HEADER_BYTES + layout.header + (kind == layout.fragment)


class AccessUnit(NamedTuple):
    """data: Annex B. pts: the RTP timestamp, unwrapped. after_loss: packets of it or before it are missing, or it is the first.
    arrival_s: when it was complete. partial: packets are missing that were of it, or may have been."""

    data: bytes
    pts: int
    keyframe: bool
    after_loss: bool
    ssrc: int
    arrival_s: float
    partial: bool = False


class H264Depacketiser:
    """Datagrams to access units, in order. What does not parse is counted (`malformed`) and dropped; nothing is
    raised."""

    def __init__(self, *, codec: str = "h264", payload_type: int | None = None) -> None:
        self.codec, self.layout = codec, LAYOUTS[codec]
        self.payload_type = self.layout.payload_type if payload_type is None else payload_type
        self.reception = Reception(CLOCK_HZ)
        self.not_rtp = self.malformed = 0
        self._done: deque[AccessUnit] = deque()
        self._units: list[bytes] = []
        self._room = _MOST_ACCESS_UNIT_BYTES  # for further units of this access unit; below 0 it is given up
        self._fragment: bytearray | None = None
        self._timestamp: int | None = None
        self._timeline = Timeline(CLOCK_HZ)
        self._ssrc: int | None = None
        self._loss = False  # before this access unit, or in it
        self._gap_before = self._gap_within = False

    def push(self, datagram: bytes, now_s: float, *, rebuilt: bool = False) -> list[AccessUnit]:
        """The access units that this datagram completes. rebuilt: it did not come, but was repaired."""
        if not is_rtcp(datagram):
            try:
                packet = RtpPacket.parse(datagram)
            except WireError:
                self.not_rtp += 1
                return self.poll(now_s)
            if packet.payload_type == self.payload_type:
                opens = self.layout.opens(packet.payload)
                self._take(self.reception.push(packet, now_s, opens=opens, rebuilt=rebuilt), now_s)
            else:
                self.reception.counters.foreign += 1
        return self.poll(now_s)

    def poll(self, now_s: float) -> list[AccessUnit]:
        self._take(self.reception.poll(now_s), now_s)
        given, self._done = list(self._done), deque()
        return given

    @property
    def deadline_s(self) -> float | None:
        return self.reception.deadline_s

    def _take(self, arrived: Iterable[Arrived], now_s: float) -> None:
        for packet, lost_before in arrived:
            if packet.ssrc != self._ssrc:
                self._close(now_s)
                self._ssrc, self._timeline, self._loss = packet.ssrc, Timeline(CLOCK_HZ), True
            if lost_before:
                self._loss, self._fragment = True, None
                self._gap_within = True
            if packet.timestamp != self._timestamp:
                self._close(now_s)
                self._timestamp = packet.timestamp
                self._timeline.push(packet.timestamp, now_s)
                if lost_before:  # the gap may reach into this one
                    self._loss = self._gap_before = True
            try:
                self._add(packet.payload)
            except WireError:
                self.malformed += 1
                self._fragment = None
            if packet.marker:
                self._close(now_s)

    def _add(self, payload: bytes) -> None:
        layout = self.layout
        if len(payload) <= layout.header:
            raise WireError("a NAL unit is cut short")
        kind = layout.kind(payload)
        if kind == layout.aggregate:
            at = layout.header
            while at < len(payload):
                size = int.from_bytes(payload[at : at + 2])
                if not size or at + 2 + size > len(payload):
                    raise WireError("an aggregate is cut short")
                self._keep(payload[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == layout.fragment:
            self._add_fragment(payload)
        elif kind < layout.aggregate:
            self._keep(payload)
        else:
            raise WireError(f"packets of type {kind} are not of this mode")

    def _add_fragment(self, payload: bytes) -> None:
        size = self.layout.header
        if len(payload) < size + 2:
            raise WireError("a fragment is cut short")
        state = payload[size]
        if state & 0x80:
            if size == 1:
                head = bytes([payload[0] & 0xE0 | state & 31])
            else:
                head = bytes([payload[0] & 0x81 | (state & 63) << 1, payload[1]])
            self._fragment = bytearray(head)
        if self._fragment is None:
            return  # its start was lost: what is left cannot be decoded
        self._fragment += payload[size + 1 :]
        if len(self._fragment) > _MOST_UNIT_BYTES:
            self._fragment = None
            raise WireError("a fragmented unit without end")
        if state & 0x40:
            unit, self._fragment = bytes(self._fragment), None
            self._keep(unit)

    def _keep(self, unit: bytes) -> None:
        self._room -= len(unit) + _UNIT_COST
        if self._room < 0:
            self._units, self._loss, self._gap_within = [], True, True
            raise WireError("an access unit without end")
        self._units.append(unit)

    def _close(self, now_s: float) -> None:
        units, self._units, self._fragment = self._units, [], None
        within, before = self._gap_within, self._gap_before
        self._gap_within = self._gap_before = False
        self._room = _MOST_ACCESS_UNIT_BYTES
        pts = self._timeline.pts
        if not units or pts is None or self._ssrc is None:
            return
        keyframe = any(self.layout.kind(unit) in self.layout.intra for unit in units)
        data = b"".join(b"\0\0\0\1" + unit for unit in units)
        # A delimiter or parameter sets stand at the beginning: one that has them lost nothing to a gap before it.
        first = self.layout.parameter_sets | {self.layout.delimiter}
        partial = within or (before and self.layout.kind(units[0]) not in first)
        self._done.append(AccessUnit(data, pts, keyframe, self._loss, self._ssrc, now_s, partial))
        self._loss = False
