"""Forward error correction: Reed-Solomon over groups of packets, so that a receiver rebuilds lost ones without asking.

A group is up to `data` packets, followed by `parity` packets; any `data` of them give back the group (erasures only:
what arrives damaged stays damaged). Byte column by byte column they are codewords of reedsolo's RS code over GF(256).
The code is linear: reedsolo gives the parity of each unit vector, once; numpy multiplies. Not here: the header sent
twice (rtp/payload.py).
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import reedsolo

from mcode.errors import InputError, WireError
from mcode.rtp.packets import FEC, HEADER_BYTES, RtpPacket, is_rtcp
from mcode.rtp.payload import crc16

_HEADER = struct.Struct("!HBBBH")  # first sequence number, data, parity, index of this parity packet, CRC-16
OVERHEAD_BYTES = _HEADER.size + 2
"""By how much a parity packet is longer than the longest packet of its group, at most: leave it room below the MTU."""
_LARGEST_GROUP = 64
_MOST_PACKETS = 1024
_MOST_GROUPS = 1024
_MOST_PARITY_BYTES = 4 << 20
_FORGETS = 0.96  # how long groups take, with each one

LAYOUT = """\
| part | bytes | holds |
|---|---|---|
| RTP header | 12 | the SSRC, sequence number and timestamp of the group's last packet, a payload type of its own |
| first | 2 | sequence number of the group's first packet |
| data, parity, index | 3 | packets protected, parity packets, which of them this is |
| CRC | 2 | CRC-16 of the RTP header and these five bytes |
| parity | the rest | Reed-Solomon parity of (length in two bytes, datagram), each filled up with zeros to the longest |
"""


@dataclass(frozen=True)
class FecSettings:
    """data packets a group and parity packets for it: the rate grows by parity / data, the delay of a repair to a
    group."""

    data: int
    parity: int

    def __post_init__(self) -> None:
        if not _fit(self.data, self.parity):
            raise InputError(f"forward error correction {self.data}+{self.parity}: both are from 1 to 64 packets, as 8+2")

    @classmethod
    def parse(cls, text: str) -> FecSettings:
        """ "8+2". Raises InputError."""
        data, _, parity = text.partition("+")
        if not (data.isdecimal() and parity.isdecimal()):
            raise InputError(f"forward error correction {text!r}: give data+parity packets, as 8+2")
        return cls(int(data), int(parity))


def _fit(data: int, parity: int) -> bool:
    return 1 <= data <= _LARGEST_GROUP and 1 <= parity <= _LARGEST_GROUP


class Protector:
    """RTP packets of one source to the parity packets due after them."""

    def __init__(self, settings: FecSettings, *, payload_type: int = FEC) -> None:
        self.settings, self.payload_type = settings, payload_type
        self._group: list[RtpPacket] = []

    @property
    def owes(self) -> bool:
        """Whether parity packets of what was pushed are yet to come."""
        return bool(self._group)

    def push(self, packet: RtpPacket) -> list[RtpPacket]:
        """The parity packets of the group that this packet completes."""
        if self._group and (packet.sequence - self._group[0].sequence) & 0xFFFF != len(self._group):
            self._group = []
        self._group.append(packet)
        return self.flush() if len(self._group) == self.settings.data else []

    def flush(self) -> list[RtpPacket]:
        """The parity packets of a group that will not be completed."""
        group, self._group = self._group, []
        if not group:
            return []
        count, parity = len(group), self.settings.parity
        rows = _rows([bytes(packet) for packet in group])
        made = []
        for index, row in enumerate(_multiply(_parity_matrix(count, parity), rows)):
            # No sequence numbers of their own: to a player that knows nothing of repair (FFmpeg) those are losses.
            rtp = RtpPacket(self.payload_type, group[-1].sequence, group[-1].timestamp, group[-1].ssrc, b"")
            numbers = struct.pack("!HBBB", group[0].sequence, count, parity, index)
            header = numbers + crc16(rtp.header + numbers).to_bytes(2)
            made.append(RtpPacket(rtp.payload_type, rtp.sequence, rtp.timestamp, rtp.ssrc, header + row.tobytes()))
        return made


def protected_bytes(headers: int) -> int:
    """Leading bytes of a parity packet that bit errors spare: its own headers and the parity of the group's headers, so
    many bytes at the head of each datagram. The same rule as for the packets themselves."""
    return HEADER_BYTES + OVERHEAD_BYTES + headers


@dataclass
class _Group:
    data: int
    parity: int
    rows: dict[int, bytes] = field(default_factory=dict)


class Recoverer:
    """Datagrams to datagrams: those that came, and rebuilt ones where parity allows. Hostile ones are counted
    (`malformed`).

    Counters: recovered, parity_packets. span_s: how long a group takes to arrive: a repair comes so late. is_announced: that
    parity will come. most_hold_s: bounds hold_s.
    """

    def __init__(self, *, payload_type: int = FEC, is_announced: bool = False, most_hold_s: float = math.inf) -> None:
        self.payload_type, self.is_announced, self.most_hold_s = payload_type, is_announced, most_hold_s
        self.recovered = self.parity_packets = self.malformed = 0
        self.span_s = 0.0
        self._recent: OrderedDict[tuple[int, int], tuple[bytes, float]] = OrderedDict()  # by (ssrc, sequence)
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()  # not whole yet
        self._parity_bytes = 0

    @property
    def hold_s(self) -> float:
        """How long after the packet behind it a gap may still be filled. Before the first parity tells how long groups take:
        as long as may be where it is announced, else 0."""
        span_s = self.span_s or (math.inf if self.is_announced else 0.0)
        return min(self.most_hold_s, 1.2 * span_s)

    def push(self, datagram: bytes, now_s: float) -> list[bytes]:
        if is_rtcp(datagram):
            return [datagram]
        try:
            packet = RtpPacket.parse(datagram)
            if packet.payload_type != self.payload_type:
                return [datagram, *self._note(packet, datagram, now_s)]
            return self._add_parity(packet, now_s)
        except WireError:
            self.malformed += 1
            return [datagram]

    def _note(self, packet: RtpPacket, datagram: bytes, now_s: float) -> list[bytes]:
        self._remember(packet, datagram, now_s)
        for back in range(_LARGEST_GROUP if self._groups else 0):
            first = (packet.sequence - back) & 0xFFFF
            group = self._groups.get((packet.ssrc, first))
            if group is not None and back < group.data:
                return self._rebuild(packet.ssrc, first, group, now_s)
        return []

    def _remember(self, packet: RtpPacket, datagram: bytes, now_s: float) -> None:
        self._recent[packet.ssrc, packet.sequence] = (datagram, now_s)
        while len(self._recent) > _MOST_PACKETS:
            self._recent.popitem(last=False)

    def _add_parity(self, packet: RtpPacket, now_s: float) -> list[bytes]:
        if len(packet.payload) < _HEADER.size + 2:
            raise WireError("a parity packet is cut short")
        first, data, parity, index, crc = _HEADER.unpack_from(packet.payload)
        if crc16(packet.header + packet.payload[:5]) != crc or not _fit(data, parity) or index >= parity:
            raise WireError("a parity packet's header is damaged")
        self.parity_packets += 1
        for other in [each for each in self._groups if each[0] == packet.ssrc and _is_far(each[1], packet.sequence)]:
            self._drop(other)  # before the numbers come round: old parity makes false packets of new ones
        key = (packet.ssrc, first)
        group = self._groups.setdefault(key, _Group(data, parity))
        if (group.data, group.parity) != (data, parity):
            raise WireError("parity packets of one group disagree")
        row = packet.payload[_HEADER.size :]
        self._parity_bytes += len(row) - len(group.rows.get(index, b""))
        group.rows[index] = row
        while len(self._groups) > _MOST_GROUPS or self._parity_bytes > _MOST_PARITY_BYTES:
            self._drop(next(iter(self._groups)))
        came = [self._recent[k][1] for i in range(data) if (k := (packet.ssrc, (first + i) & 0xFFFF)) in self._recent]
        if came:
            self.span_s = max(self.span_s * (1 if index else _FORGETS), now_s - min(came))
        return self._rebuild(packet.ssrc, first, group, now_s)

    def _drop(self, key: tuple[int, int]) -> None:
        group = self._groups.pop(key, None)
        self._parity_bytes -= sum(map(len, group.rows.values())) if group else 0

    def _rebuild(self, ssrc: int, first: int, group: _Group, now_s: float) -> list[bytes]:
        have = {i: self._recent[k][0] for i in range(group.data) if (k := (ssrc, (first + i) & 0xFFFF)) in self._recent}
        missing = [i for i in range(group.data) if i not in have]
        if len(missing) > len(group.rows):
            return []
        self._drop((ssrc, first))  # done with, whatever comes of it: nothing of this group is rebuilt twice
        if not missing:
            return []
        width = max(len(row) for row in group.rows.values())
        if any(len(datagram) + 2 > width for datagram in have.values()) or any(len(r) != width for r in group.rows.values()):
            self.malformed += 1
            return []
        chosen = sorted(group.rows)[: len(missing)]
        matrix = _parity_matrix(group.data, group.parity)[chosen]
        known = sorted(have)
        right = np.stack([np.frombuffer(group.rows[i], np.uint8) for i in chosen])
        if known:
            right = right ^ _multiply(matrix[:, known], _rows([have[i] for i in known], width))
        rebuilt = []
        for row in _multiply(_inverse(matrix[:, missing]), right):
            length = int.from_bytes(row[:2].tobytes())
            datagram = row[2 : 2 + length].tobytes()
            if HEADER_BYTES <= length <= width - 2:
                self._remember(RtpPacket.parse(datagram), datagram, now_s)
                rebuilt.append(datagram)
        self.recovered += len(rebuilt)
        return rebuilt


def _is_far(first: int, newest: int) -> bool:
    return _MOST_PACKETS < (newest - first) & 0xFFFF < 0x10000 - _MOST_PACKETS


def _rows(datagrams: Iterable[bytes], width: int | None = None) -> np.ndarray:
    """uint8 (packets, width): lengths and datagrams, zeros behind."""
    framed = [len(datagram).to_bytes(2) + datagram for datagram in datagrams]
    width = width or max(map(len, framed))
    return np.stack([np.frombuffer(row.ljust(width, b"\0"), np.uint8) for row in framed])


@lru_cache(maxsize=1)
def _products() -> np.ndarray:
    """uint8 (256, 256): the multiplication table of reedsolo's field."""
    reedsolo.init_tables(0x11D)
    log, exp = np.array(reedsolo.gf_log, np.int64), np.array(reedsolo.gf_exp, np.int64)
    table = exp[log[:, None] + log[None, :]].astype(np.uint8)
    table[0, :] = table[:, 0] = 0
    return table


def _multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product over GF(256): (m, k) x (k, n)."""
    table = _products()
    out = np.zeros((len(a), b.shape[1]), np.uint8)
    for i, row in enumerate(a):
        for factor, other in zip(row, b, strict=True):
            out[i] ^= table[factor][other]
    return out


@lru_cache(maxsize=64)
def _parity_matrix(data: int, parity: int) -> np.ndarray:
    """uint8 (parity, data): parity = matrix x data. Every square part of it can be inverted: the code is MDS."""
    codec = reedsolo.RSCodec(parity)
    columns = []
    for i in range(data):
        unit = bytearray(data)
        unit[i] = 1
        columns.append(np.frombuffer(bytes(codec.encode(unit)[data:]), np.uint8))
    return np.stack(columns, axis=1)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a square matrix over GF(256), by Gauss and Jordan."""
    table = _products()
    size = len(matrix)
    work = np.concatenate([matrix, np.eye(size, dtype=np.uint8)], axis=1)
    for column in range(size):
        pivot = column + int(np.flatnonzero(work[column:, column])[0])
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = table[int(np.flatnonzero(table[work[column, column]] == 1)[0])][work[column]]
        for row in range(size):
            if row != column and work[row, column]:
                work[row] ^= table[work[row, column]][work[column]]
    return work[:, size:]
