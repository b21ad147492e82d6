"""MCode keyframes in RTP packets, and back: a header with a CRC, then slices without one. Layouts in `WIRE` and `BUNDLE`.

The payload's damage is survivable and the point of the whole: a packet is dropped for a damaged header only. The
check byte over the slices drops nothing; it tells a receiver what to count, what to conceal and when to ask for a
refresh.
"""

from __future__ import annotations

import math
from binascii import crc_hqx
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from mcode.errors import FormatError, WireError
from mcode.packet import Packet, StreamHeader
from mcode.rtp.packets import HEADER_BYTES, MCODE, MTU, RtpPacket, Timeline, is_rtcp, unwrap
from mcode.rtp.reception import Arrived, Reception

FORMAT, BUNDLED = 1, 2
MOST_BUNDLED = 64
"""Keyframes in one packet."""
BESIDE_SAMPLE_BYTES = HEADER_BYTES + 7
"""What an RTP packet of one keyframe takes beside its sample, whose flags and steps it holds, too."""
CLOCK_HZ = 90_000
LARGEST_LIVE = 1 << 24
"""Pixels of a live picture, 5120x2880 and a little more: one datagram can ask for it, and others wait while it is made."""
MOST_GAP_PIXELS = 1 << 29
"""Of all frames that one live keyframe brings: 64 of 3840x2160, 2330 of 640x360."""

WIRE = """\
| part | bytes | is there | holds |
|---|---|---|---|
| flags | 1 | always | bit 0 refresh, 1 times, 2 fragment, 3 header sent twice; bits 4, 5 format (1); bits 6, 7 epoch |
| check | 1 | always | low byte of the CRC-16 of the slices that follow: tells damage, drops nothing |
| keyframe | 2 | always | index of the keyframe modulo 65536, high byte first |
| first slice | varint | always | 0-254 |
| slices | varint | always | slices in this packet, 1 where it is a fragment; with the first at most 255 |
| steps | varint | always | frames since the previous keyframe, 1-65535 |
| times | steps - 1 varints | flag | as in a sample of the .mcode file |
| fragment | varint | flag | twice the offset in the slice, plus 1 where more of the slice follows |
| stream header | | refresh | as in a sample of the .mcode file |
| slice lengths | slices - 1 varints | always | bytes of each slice but the last |
| CRC | 2 | always | CRC-16 (polynomial 0x1021, from 0xFFFF) of the RTP header, as below, and all above, high byte first |
| (all again) | | flag | the header a second time, for where one bit error must not cost a packet |
| slices | the rest | always | coded symbols |
"""
"""The payload of an RTP packet, in order. Epochs count changes of the stream header: 0, the one in the session
description, then 1, 2, 3, 1 ...; a receiver that missed the refresh which brought one waits for the next. The CRC takes the
RTP header as its twelve fixed bytes, the first as 0x80, whatever sources, extension and padding came with it."""

BUNDLE = """\
| part | bytes | is there | holds |
|---|---|---|---|
| flags | 1 | always | bit 3 header sent twice; bits 4, 5 format (2); bits 6, 7 epoch of all; the others 0 |
| keyframe | 2 | always | index of the first keyframe modulo 65536, high byte first |
| keyframes | varint | always | 2-64 |
| slices | varint | always | of each keyframe: as many as its stream has, 1-255 |
| check | 1 | for each keyframe | low byte of the CRC-16 of its slices |
| steps | varint | for each keyframe | twice the frames since the previous keyframe (1-65535), plus 1 where times follow |
| time | varint | for each but the first | ticks since the keyframe before, 1 or more |
| times | steps - 1 varints | where it says so | as in a packet of one keyframe |
| slice lengths | slices varints | for each keyframe | bytes of each slice |
| CRC | 2 | always | as above |
| (all again) | | flag | as above |
| slices | the rest | always | coded symbols, keyframe after keyframe |
"""
"""The payload of a packet of several keyframes, each whole and none a refresh; check to lengths once for each of them, in turn.
The RTP timestamp is the first one's, the marker is set."""

_REFRESH, _TIMES, _FRAGMENT, _TWICE = 1, 2, 4, 8
_LARGEST_TIME = (1 << 32) - 1
_MOST_TIMES_BYTES = 300
_LARGEST_OFFSET = 1 << 30
_LARGEST_SLICE = 1 << 20
_MOST_KEYFRAME_BYTES = 4 << 20
_PATIENCE_S = 0.02
_LARGEST_SHIFT = CLOCK_HZ // 25  # slides are half a frame off by seconds
_LEAST_COPY, _LONGEST_COPY, _MOST_COPIES = 9, 512, 100  # of headers sent twice: bytes, and places where the second may begin
_LONGEST_BUNDLED_TWICE = _LEAST_COPY + _MOST_COPIES - 1  # of a longer header the second may begin beyond so many places


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE: 0x29B1 for b"123456789"."""
    return crc_hqx(data, 0xFFFF)


def header_bytes(header: StreamHeader) -> bytes:
    """A stream header as in a sample of the .mcode file; in the session description, too."""
    sample = Packet(0, header.n, None, header, (b"",) * header.slices).to_sample(header.n)
    return sample[1 : len(sample) - (header.slices - 1)]


def parse_header(data: bytes, at: int = 0) -> tuple[StreamHeader, int]:
    """The stream header at `at`, and where it ends. Raises WireError, or FormatError for a newer format."""
    end, slices = at + 10, 0
    for _ in range(6):
        slices, end = _parse_varint(data, end, 65_535)
    sample = b"\1" + data[at:end] + bytes(max(0, slices - 1))
    header = Packet.parse_sample(sample, 0, None).header
    if header is None:
        raise WireError("the stream header is missing")
    return header, end


@dataclass(frozen=True)
class WireHeader:
    """What stands before the slices. count: slices in this packet; fragment: (offset in the slice, more follows) or
    None; lengths: bytes of each slice but the last."""

    epoch: int
    keyframe: int
    first: int
    count: int
    steps: int
    times: tuple[int, ...] | None = None
    fragment: tuple[int, bool] | None = None
    header: StreamHeader | None = None
    lengths: tuple[int, ...] = ()
    twice: bool = False

    def to_bytes(self, rtp_header: bytes, slices: bytes) -> bytes:
        """The header for these slices in a packet with this RTP header."""
        flags = (self.header is not None) * _REFRESH | (self.times is not None) * _TIMES
        flags |= (self.fragment is not None) * _FRAGMENT | self.twice * _TWICE | FORMAT << 4 | self.epoch << 6
        parts = [bytes([flags, crc16(slices) & 0xFF]), self.keyframe.to_bytes(2)]
        parts += [_varint(self.first), _varint(self.count), _varint(self.steps)]
        if self.times is not None:
            parts.append(_times_bytes(self.times))
        if self.fragment is not None:
            parts.append(_varint(2 * self.fragment[0] + self.fragment[1]))
        if self.header is not None:
            parts.append(header_bytes(self.header))
        parts += [_varint(length) for length in self.lengths]
        raw = b"".join(parts)
        raw += crc16(rtp_header + raw).to_bytes(2)
        return raw * 2 if self.twice else raw

    def placed(self, data: bytes, start: int, at: int) -> list[ParsedPayload]:
        """With what it stands before. start: where in `data` it began; at: where the slices begin."""
        return [ParsedPayload(self, data[at:], data[start + 1])]

    @classmethod
    def parse_at(cls, rtp_header: bytes, data: bytes, start: int) -> tuple[WireHeader, int]:
        """The header at `start`, and where it ends. Raises WireError where it is damaged, FormatError for a whole one of a
        newer format."""
        flags, at = data[start], start + 4
        first, at = _parse_varint(data, at, 254)
        count, at = _parse_varint(data, at, 255)
        steps, at = _parse_varint(data, at, 65_535)
        if not count or not steps or first + count > 255:
            raise WireError("no slice or no step")
        times = fragment = header = None
        if flags & _TIMES:
            times, at = _parse_times(data, at, steps)
        if flags & _FRAGMENT:
            value, at = _parse_varint(data, at, 2 * _LARGEST_OFFSET)
            fragment = value >> 1, bool(value & 1)
            if count != 1:
                raise WireError("a fragment of several slices")
        newer: FormatError | None = None
        if flags & _REFRESH:
            try:
                header, at = parse_header(data, at)
            except FormatError as error:
                newer = error
        if newer is not None:  # believed where the rest has a CRC that fits it
            for end in range(at, min(len(data) - 1, at + 64)):
                if crc16(rtp_header + data[start:end]) == int.from_bytes(data[end : end + 2]):
                    raise newer
            raise WireError("the payload header is damaged")
        lengths = []
        for _ in range(count - 1):
            length, at = _parse_varint(data, at, len(data))
            lengths.append(length)
        if len(data) < at + 2 or crc16(rtp_header + data[start:at]) != int.from_bytes(data[at : at + 2]):
            raise WireError("the payload header is damaged")
        at += 2
        keyframe = int.from_bytes(data[start + 2 : start + 4])
        twice = bool(flags & _TWICE)
        if header is not None and first + count > header.slices:
            raise WireError("more slices than the stream header says")
        return cls(flags >> 6, keyframe, first, count, steps, times, fragment, header, tuple(lengths), twice), at


@dataclass(frozen=True)
class BundleHeader:
    """What stands before the slices of several whole keyframes. keyframes: the header of each, with the lengths of all its
    slices; checks and after_ticks as in `ParsedPayload`."""

    keyframes: tuple[WireHeader, ...]
    checks: tuple[int, ...]
    after_ticks: tuple[int, ...]

    @property
    def twice(self) -> bool:
        return self.keyframes[0].twice

    def to_bytes(self, rtp_header: bytes, slices: bytes = b"") -> bytes:
        """The header in a packet with this RTP header."""
        first, count = self.keyframes[0], len(self.keyframes)
        parts = [bytes([self.twice * _TWICE | BUNDLED << 4 | first.epoch << 6]), first.keyframe.to_bytes(2)]
        parts += [_varint(count), _varint(first.count)]
        gaps = [b"", *(_varint(after - before) for before, after in pairwise(self.after_ticks))]
        for each, check, gap in zip(self.keyframes, self.checks, gaps, strict=True):
            parts += [bytes([check]), _varint(2 * each.steps + (each.times is not None)), gap]
            if each.times is not None:
                parts.append(_times_bytes(each.times))
            parts += [_varint(length) for length in each.lengths]
        raw = b"".join(parts)
        raw += crc16(rtp_header + raw).to_bytes(2)
        return raw * 2 if self.twice else raw

    def placed(self, data: bytes, start: int, at: int) -> list[ParsedPayload]:
        """As `WireHeader.placed`."""
        found = []
        for each, check, after in zip(self.keyframes, self.checks, self.after_ticks, strict=True):
            end = at + sum(each.lengths)
            found.append(ParsedPayload(replace(each, lengths=each.lengths[:-1]), data[at:end], check, after))
            at = end
        return found

    @classmethod
    def parse_at(cls, rtp_header: bytes, data: bytes, start: int) -> tuple[BundleHeader, int]:
        """As `WireHeader.parse_at`."""
        flags, at = data[start], start + 3
        index = int.from_bytes(data[start + 1 : at])
        count, at = _parse_varint(data, at, MOST_BUNDLED)
        slices, at = _parse_varint(data, at, 255)
        if flags & (_REFRESH | _TIMES | _FRAGMENT) or count < 2 or not slices:
            raise WireError("a bundle of less than two keyframes, or of parts")
        keyframes, checks, times, after = [], [], [], 0
        for number in range(count):
            if at >= len(data):
                raise WireError("the payload header is cut short")
            checks.append(data[at])
            steps, at = _parse_varint(data, at + 1, 2 * 65_535 + 1)
            if steps < 2:
                raise WireError("no step")
            if number:
                gap, at = _parse_varint(data, at, _LARGEST_TIME)
                if not gap:
                    raise WireError("two keyframes at one time")
                after += gap
            times.append(after)
            between = None
            if steps & 1:
                between, at = _parse_times(data, at, steps >> 1)
            lengths = []
            for _ in range(slices):
                length, at = _parse_varint(data, at, len(data))
                lengths.append(length)
            wire = WireHeader(flags >> 6, index + number & 0xFFFF, 0, slices, steps >> 1, between, lengths=tuple(lengths))
            keyframes.append(replace(wire, twice=bool(flags & _TWICE)))
        if len(data) < at + 2 or crc16(rtp_header + data[start:at]) != int.from_bytes(data[at : at + 2]):
            raise WireError("the payload header is damaged")
        return cls(tuple(keyframes), tuple(checks), tuple(times)), at + 2


class ParsedPayload(NamedTuple):
    """A keyframe, or a part of one: its header; the slices' bytes behind it; check: what their CRC's low byte was when they
    were sent; after_ticks: how long after the RTP packet's its time is."""

    header: WireHeader
    slices: bytes
    check: int
    after_ticks: int = 0

    @property
    def is_damaged(self) -> bool:
        return crc16(self.slices) & 0xFF != self.check

    def parts(self) -> Iterator[bytes]:
        """The slices, one by one; what damage elsewhere cut off is missing at the end."""
        at = 0
        for length in self.header.lengths:
            yield self.slices[at : at + length]
            at += length
        yield self.slices[at:]


def parse(packet: RtpPacket, *, copies: bool = True) -> list[ParsedPayload]:
    """The keyframes of a packet, or its part of one. Raises WireError for a damaged header, FormatError for a whole one of a
    newer format. copies: whether to look for a second header."""
    return _parse(packet, copies)[0]


def protected_bytes(packet: RtpPacket) -> int:
    """How many leading bytes of the datagram the channel's bit errors spare: the RTP and the payload header."""
    try:
        return HEADER_BYTES + _parse(packet, True)[1]
    except (WireError, FormatError):
        return HEADER_BYTES


def _parse(packet: RtpPacket, copies: bool) -> tuple[list[ParsedPayload], int]:
    """What `parse` gives, and where the slices begin."""
    data = packet.payload
    try:
        found, end = _parse_at(packet.header, data, 0)
    except FormatError:
        raise
    except WireError:
        # A second copy starts where the first, damaged one ends: only a copy of that very length, its CRC at the end,
        # fits there. Nothing else is parsed: a hostile datagram must not be 500 headers, nor as many CRCs.
        looked = 0
        for start in range(_LEAST_COPY, min(len(data) // 2, _LONGEST_COPY) + 1) if copies else ():
            if data[start] & 0x38 not in (_TWICE | FORMAT << 4, _TWICE | BUNDLED << 4):
                continue
            looked += 1
            if looked > _MOST_COPIES:
                break
            copy = data[start : 2 * start]
            if crc16(packet.header + copy[:-2]) != int.from_bytes(copy[-2:]):
                continue
            try:
                found, end = _parse_at(packet.header, data[: 2 * start], start)
            except WireError:
                continue
            if found.twice and end == 2 * start:
                return found.placed(data, start, end), end
        raise
    at = 2 * end if found.twice else end
    return found.placed(data, 0, at), at


def _parse_at(rtp_header: bytes, data: bytes, start: int) -> tuple[WireHeader | BundleHeader, int]:
    if len(data) < start + 4:
        raise WireError("the payload header is cut short")
    found_format = data[start] >> 4 & 3
    if found_format == FORMAT:
        return WireHeader.parse_at(rtp_header, data, start)
    if found_format == BUNDLED:
        return BundleHeader.parse_at(rtp_header, data, start)
    # Where the CRC of another format stands is not known: a damaged flag must not pass for one.
    raise WireError(f"payload format {found_format} is neither {FORMAT} nor {BUNDLED}")


def fitting_slices(refresh_bytes: int, positions: int, mtu: int = MTU) -> int:
    """How many slices of a refresh fit one packet each, with a third to spare. positions: of the latent; a slice has one or
    more."""
    return max(1, min(math.ceil(refresh_bytes * 4 / 3 / (mtu - 80)), positions, 64))


class Packetiser:
    """Keyframes to RTP packets of at most `mtu` bytes, the last of each with the marker.

    first_sequence, first_timestamp: random numbers of the caller's (RFC 3550, 5.1). twice: send every payload header
    twice. largest_slice: in bytes; None where the other end takes all, as within a process. bundle: so many keyframes share a
    packet where they fit, and their header where it comes twice into 108 bytes; a refresh goes alone. Frames less than half a
    frame, and 40 ms, off an even pace are then sent as even ones.
    """

    def __init__(
        self,
        ssrc: int,
        *,
        payload_type: int = MCODE,
        first_sequence: int = 0,
        first_timestamp: int = 0,
        mtu: int = MTU,
        twice: bool = False,
        largest_slice: int | None = _LARGEST_SLICE,
        bundle: int = 1,
    ) -> None:
        if not 1 <= bundle <= MOST_BUNDLED:
            raise ValueError(f"{bundle} keyframes in a packet: from 1 to {MOST_BUNDLED}")
        self.bundle = bundle
        self._held: list[tuple[WireHeader, bytes, int]] = []  # keyframes of the bundle begun: header, slices, pts
        self.ssrc, self.payload_type, self.mtu, self.twice = ssrc, payload_type, mtu, twice
        self.sequence, self.first_timestamp = first_sequence, first_timestamp
        self.largest_slice = largest_slice
        self.keyframe = 0
        self._epoch = 0
        self._header: StreamHeader | None = None
        self._last_pts: int | None = None

    def push(self, packet: Packet) -> list[RtpPacket]:
        """What is to be sent now. Raises ValueError where the first packet is no refresh, or a slice is over largest_slice."""
        if packet.header is not None and packet.header != self._header:
            self._epoch = 0 if self._header is None else self._epoch % 3 + 1
            self._header = packet.header
        if self._header is None:
            raise ValueError("a stream begins with a refresh")
        times = packet.times
        if times is not None and len(_times_bytes(times)) > _MOST_TIMES_BYTES:
            times = None  # a gap of hundreds of uneven frames: evenly spaced on the wire
        if times is not None and self.bundle > 1 and self._last_pts is not None and _nearly_even(packet, self._last_pts):
            times = None  # as a camera's are, for which a frame's time would cost as many bytes as a coordinate
        self._last_pts = packet.pts
        plain = WireHeader(
            self._epoch, self.keyframe & 0xFFFF, 0, 1, packet.steps, times, header=packet.header, twice=self.twice
        )
        groups = list(self._groups(plain, packet.slices))
        self.keyframe += 1
        if self.bundle > 1 and packet.header is None and None not in packet.slices and len(groups) == 1:
            lengths = tuple(len(data or b"") for data in packet.slices)
            return self._bundled((replace(groups[0][0], lengths=lengths), groups[0][1], packet.pts))
        made = self.flush()
        for number, (header, data) in enumerate(groups):
            made.append(self._packet(header, data, packet.pts, marker=number == len(groups) - 1))
        return made

    def flush(self) -> list[RtpPacket]:
        """The keyframes that are held for a bundle, as they are."""
        held, self._held = self._held, []
        if len(held) < 2:
            return [self._packet(replace(wire, lengths=wire.lengths[:-1]), data, pts) for wire, data, pts in held]
        return [self._packet(_bundle(held), b"".join(data for _, data, _ in held), held[0][2])]

    def _bundled(self, keyframe: tuple[WireHeader, bytes, int]) -> list[RtpPacket]:
        """Holds it. Packets come of it where the bundle is full, or has no room for it."""
        wider = [*self._held, keyframe]
        header = len(_bundle(wider).to_bytes(b""))
        size = HEADER_BYTES + header + sum(len(data) for _, data, _ in wider)
        made = self.flush() if size > self.mtu or (self.twice and header > 2 * _LONGEST_BUNDLED_TWICE) else []
        self._held.append(keyframe)
        return made + (self.flush() if len(self._held) == self.bundle else [])

    def _packet(self, header: WireHeader | BundleHeader, data: bytes, pts: int, marker: bool = True) -> RtpPacket:
        timestamp = (self.first_timestamp + pts) & 0xFFFFFFFF
        rtp = RtpPacket(self.payload_type, self.sequence & 0xFFFF, timestamp, self.ssrc, b"", marker)
        self.sequence += 1
        return replace(rtp, payload=header.to_bytes(rtp.header, data) + data)

    def _groups(self, plain: WireHeader, slices: tuple[bytes | None, ...]) -> Iterator[tuple[WireHeader, bytes]]:
        """Neighbouring slices, as many as fit together; one that does not fit alone, in pieces."""
        # Room left beside the longest header without lengths: three varints may grow, the fragment takes four bytes.
        room = self.mtu - HEADER_BYTES - (1 + self.twice) * (len(plain.to_bytes(b"", b"")) // (1 + self.twice) + 7)
        if room < 64:
            raise ValueError(f"packets of {self.mtu} bytes are too short for this stream's headers")
        held: list[bytes] = []
        first = 0
        for index, data in enumerate(slices):
            if data is not None and self.largest_slice is not None and len(data) > self.largest_slice:
                raise ValueError(f"a slice of {len(data)} bytes; use more slices")
            # Each slice costs its length, too: one or two bytes, in every copy of the header.
            size = sum(map(len, held)) + 2 * (1 + self.twice) * len(held)
            if held and (data is None or size + len(data) > room):
                yield _grouped(plain, first, held)
                held = []
            if data is None:
                continue
            if len(data) > room:
                for at in range(0, len(data), room):
                    piece = data[at : at + room]
                    yield replace(plain, first=index, fragment=(at, at + room < len(data))), piece
                continue
            if not held:
                first = index
            held.append(data)
        if held:
            yield _grouped(plain, first, held)


def _nearly_even(packet: Packet, since: int) -> bool:
    """Whether each frame is less than half a frame and _LARGEST_SHIFT off even from the keyframe before, at `since`, on."""
    assert packet.times is not None
    period = (packet.pts - since) / packet.steps
    even = (period * left for left in range(packet.steps - 1, 0, -1))
    most = min(period / 2, _LARGEST_SHIFT)
    return all(abs(ticks - wanted) < most for ticks, wanted in zip(packet.times, even, strict=True))


def _bundle(keyframes: list[tuple[WireHeader, bytes, int]]) -> BundleHeader:
    headers, data, pts = zip(*keyframes, strict=True)
    return BundleHeader(headers, tuple(crc16(each) & 0xFF for each in data), tuple(each - pts[0] for each in pts))


def _grouped(plain: WireHeader, first: int, held: list[bytes]) -> tuple[WireHeader, bytes]:
    lengths = tuple(len(data) for data in held[:-1])
    return replace(plain, first=first, count=len(held), lengths=lengths), b"".join(held)


class Received(NamedTuple):
    """A keyframe, or what came of it. packet.pts: the RTP timestamp, unwrapped. after_loss: keyframes before it are
    missing, `lost` so many (1 where its source starts anew). damaged: for each slice, whether bits of it may be wrong.
    stream: the stream header in force. ssrc: whose it is; another means another stream. arrival_s: when the last of it
    came, in its turn. bundle: the sequence number of the packet that it shared with others; None where it shared none."""

    packet: Packet
    after_loss: bool
    damaged: tuple[bool, ...]
    stream: StreamHeader
    ssrc: int
    arrival_s: float
    bundle: int | None = None
    lost: int = 0


@dataclass
class _Assembly:
    """A keyframe as its packets come in."""

    keyframe: int
    pts: int
    steps: int
    times: tuple[int, ...] | None
    header: StreamHeader | None
    touched_s: float
    bundle: int | None = None
    size: int = 0
    slices: dict[int, bytearray] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    unfinished: set[int] = field(default_factory=set)


class Depacketiser:
    """Datagrams to keyframes, in order, each once. Whatever does not belong is counted and dropped; nothing is raised,
    but FormatError, where a whole packet says that the stream is of a newer format before anything of it was given.

    header, header_ssrc: the stream header that the session description tells for this source; without it packets
    before the first refresh are dropped and counted as `waiting`. most_keyframe_bytes: what comes beyond is dropped; None:
    nothing. damaged_headers, damaged_packets and
    `reception.counters` count.
    """

    def __init__(
        self,
        *,
        payload_type: int = MCODE,
        header: StreamHeader | None = None,
        header_ssrc: int | None = None,
        most_keyframe_bytes: int | None = _MOST_KEYFRAME_BYTES,
    ) -> None:
        self.payload_type = payload_type
        self.reception = Reception(CLOCK_HZ)
        self.damaged_headers = self.damaged_packets = self.not_rtp = self.waiting = 0
        self._described = (header, header_ssrc)
        self._most_keyframe_bytes = most_keyframe_bytes
        self.header: StreamHeader | None = None
        self._epoch = 0
        self._ssrc: int | None = None
        self._open: _Assembly | None = None
        self._last: int | None = None  # index of the last keyframe given, unwrapped
        self._timeline = Timeline(CLOCK_HZ)
        self._is_waiting = False
        self._done: deque[Received] = deque()

    def push(self, datagram: bytes, now_s: float, *, rebuilt: bool = False) -> list[Received]:
        """The keyframes that this datagram completes. rebuilt: it did not come, but was repaired."""
        if is_rtcp(datagram):
            return self.poll(now_s)
        try:
            packet = RtpPacket.parse(datagram)
        except WireError:
            self.not_rtp += 1
            return self.poll(now_s)
        if packet.payload_type != self.payload_type:
            self.reception.counters.foreign += 1
            return self.poll(now_s)
        try:
            # Of a stranger, a header that must be searched for is not worth the search.
            parsed = parse(packet, copies=self.reception.ssrc in (None, packet.ssrc))
        except FormatError:
            # Of a stranger, or amid a stream of this format, it is damage: one datagram must not end a stream.
            if self._last is None and self.reception.ssrc in (None, packet.ssrc):
                raise
            self.damaged_headers += 1
            return self.poll(now_s)
        except WireError:
            self.damaged_headers += 1
            return self.poll(now_s)
        switches = self.reception.switches
        wire = parsed[0].header
        opens = wire.header is not None and wire.first == 0 and (wire.fragment is None or wire.fragment[0] == 0)
        newest = parsed[-1].after_ticks  # a bundle leaves with its last keyframe
        arrived = self.reception.push(packet, now_s, opens=opens, rebuilt=rebuilt, after_ticks=newest)
        anew = packet if self.reception.switches != switches and packet.ssrc == self._ssrc else None
        self._take(arrived, now_s, anew)
        return self.poll(now_s)

    def poll(self, now_s: float) -> list[Received]:
        """The keyframes that nothing more is waited for at now_s."""
        self._take(self.reception.poll(now_s), now_s)
        if self._open is not None and now_s >= self._open.touched_s + self._patience_s:
            self._close()
        given, self._done = list(self._done), deque()
        return given

    @property
    def waiting_now(self) -> bool:
        """The latest packet was of a stream header that did not come."""
        return self._is_waiting

    @property
    def deadline_s(self) -> float | None:
        """When `poll` will have something to give even if nothing comes."""
        waits = [self.reception.deadline_s, None if self._open is None else self._open.touched_s + self._patience_s]
        return min((wait for wait in waits if wait is not None), default=None)

    @property
    def _patience_s(self) -> float:
        return self.reception.hold_s + _PATIENCE_S

    def _take(self, arrived: Iterable[Arrived], now_s: float, anew: RtpPacket | None = None) -> None:
        """anew: the packet with which the same source begins anew."""
        for packet, _ in arrived:
            if packet.ssrc != self._ssrc:
                self._restart(packet.ssrc)
            if packet is anew:
                self._close()
                self._last = None
            found = parse(packet)
            bundle = packet.sequence if len(found) > 1 else None
            troubles = {self._take_part(parsed, packet, now_s, bundle) for parsed in found}
            self.reception.counters.late += "late" in troubles  # packets are counted, whatever they hold
            self.waiting += "waiting" in troubles
            self.damaged_packets += "damaged" in troubles

    def _take_part(self, parsed: ParsedPayload, packet: RtpPacket, now_s: float, bundle: int | None) -> str | None:
        """What is wrong with it: "late", "waiting" or "damaged"."""
        wire, timestamp = parsed.header, packet.timestamp + parsed.after_ticks & 0xFFFFFFFF
        keyframe = wire.keyframe if self._last is None else unwrap(wire.keyframe, self._last, 16)
        if self._open is not None and self._open.keyframe != keyframe:
            self._close()
        if self._last is not None and keyframe <= self._last and self._leaps(timestamp, now_s):
            self._last, keyframe = None, wire.keyframe
        if self._last is not None and keyframe <= self._last:
            return "late"
        if wire.header is not None:
            self.header, self._epoch = wire.header, wire.epoch
        if self.header is None or wire.epoch != self._epoch or wire.first + wire.count > self.header.slices:
            self._is_waiting = True
            return "waiting"
        self._is_waiting = False
        if self._open is None:
            pts = self._timeline.push(timestamp, now_s)
            self._open = _Assembly(keyframe, pts, wire.steps, wire.times, wire.header, now_s, bundle)
        damaged = self._add(self._open, parsed, now_s)
        whole = len(self._open.slices) == self.header.slices and not self._open.unfinished
        if packet.marker or whole:
            self._close()
        return "damaged" if damaged else None

    def _leaps(self, timestamp: int, now_s: float) -> bool:
        """Whether a keyframe that seems an old one is of a time yet to come: after an outage in which half of the indices went
        by, or more."""
        pts = self._timeline.pts
        return pts is not None and self._timeline.place(timestamp, now_s) > pts + CLOCK_HZ

    def _restart(self, ssrc: int) -> None:
        self._close()
        header, described = self._described
        self.header = header if described in (None, ssrc) else None
        self._ssrc, self._epoch, self._last, self._timeline = ssrc, 0, None, Timeline(CLOCK_HZ)

    def _add(self, assembly: _Assembly, parsed: ParsedPayload, now_s: float) -> bool:
        """Whether it is taken, and damaged."""
        wire = parsed.header
        assembly.touched_s = now_s
        assembly.size += len(parsed.slices)
        if self._most_keyframe_bytes is not None and assembly.size > self._most_keyframe_bytes:
            return False
        damaged = parsed.is_damaged
        for index, data in enumerate(parsed.parts(), wire.first):
            offset, more = wire.fragment or (0, False)
            if wire.fragment is not None:
                if offset != len(assembly.slices.get(index, b"")):
                    # What lies behind a hole cannot be placed: the slice ends before it, as a damaged one.
                    assembly.damaged.add(index)
                    continue
                (assembly.unfinished.add if more else assembly.unfinished.discard)(index)
            if offset:
                assembly.slices[index] += data
            else:
                assembly.slices[index] = bytearray(data)
            if damaged:
                assembly.damaged.add(index)
        return damaged

    def _close(self) -> None:
        assembly, self._open = self._open, None
        if assembly is None or self.header is None or self._ssrc is None:
            return
        lost = 1 if self._last is None else assembly.keyframe - self._last - 1
        self._last = assembly.keyframe
        damaged = assembly.damaged | assembly.unfinished
        count = self.header.slices
        packet = Packet(
            pts=assembly.pts,
            steps=assembly.steps,
            times=assembly.times,
            header=assembly.header,
            slices=tuple(bytes(assembly.slices[index]) if index in assembly.slices else None for index in range(count)),
        )
        flags = tuple(index in damaged for index in range(count))
        received = Received(packet, lost > 0, flags, self.header, self._ssrc, assembly.touched_s, assembly.bundle, lost)
        self._done.append(received)


def _times_bytes(times: tuple[int, ...]) -> bytes:
    return b"".join(_varint(a - b) for a, b in zip(times, (*times[1:], 0), strict=True))


def _parse_times(data: bytes, at: int, steps: int) -> tuple[tuple[int, ...], int]:
    if steps - 1 > min(len(data) - at, _MOST_TIMES_BYTES):
        raise WireError("the times are cut short, or too many")
    gaps = []
    for _ in range(steps - 1):
        gap, at = _parse_varint(data, at, _LARGEST_TIME)
        if not gap:
            raise WireError("two frames at one time")
        gaps.append(gap)
    total, falling = 0, []
    for gap in reversed(gaps):
        total += gap
        falling.append(total)
    return tuple(reversed(falling)), at


def _varint(value: int) -> bytes:
    """7 bits a byte, the lowest first, bit 7 set in all but the last (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _parse_varint(data: bytes, at: int, largest: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 49:
        value |= (data[at] & 127) << shift
        if data[at] < 128:
            if value > largest:
                break
            return value, at + 1
        at, shift = at + 1, shift + 7
    raise WireError("a number is cut short or too large")
