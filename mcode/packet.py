"""Packets: one keyframe as bytes, header and slices. Not the container's or RTP's framing, nor what slices hold.

LAYOUT is the byte layout of formats 1 and 2, the only place where it is written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import SimpleNamespace

from mcode.errors import FormatError, WireError

FORMAT = 2
"""The newest format. 2 is 1 with grey pictures, and is written for those alone."""

CODERS = ("fixed", "huffman", "range")
"""By their numbers in the stream header."""

OFFERED = ("huffman", "fixed", "range")
"""The same as they are offered: for any manifold the better one first."""

MOST_QUALITIES = 15
"""The stream header has four bits for the quality, which counts from 1."""

LARGEST_PICTURE = 1 << 27
"""Pixels. Larger pictures are refused: 15360x8640 passes, and takes about 5 GB; a damaged header of a few bytes asks for 30
times as many."""

LAYOUT = """\
| field | bytes | present | is |
|---|---|---|---|
| flags | 1 | always | bit 0: stream header; bit 1: steps; bit 2: times; bits 3-7: 0 |
| format | 1 | bit 0 | 1; 2: pictures are grey, shown as the mean of the three colours |
| coder, quality | 1 | bit 0 | coder << 4 (0 fixed, 1 huffman, 2 range), quality 0-15 |
| manifold | 8 | bit 0 | the first bytes of the manifold's SHA-256 |
| width, height | 2 varints | bit 0 | the picture as the manifold sees it, 1-65535 |
| display width, height | 2 varints | bit 0 | the picture as it is shown, 1-65535 |
| n | varint | bit 0 | keyframe interval, 1-65535 |
| slices | varint | bit 0 | slices of each keyframe, 1-255 |
| steps | varint | bit 1 | frames that this keyframe advances, 1-65535; without it: n |
| times | steps - 1 varints | bit 2 | ticks, 1 or more, from each frame in between to the next one, the keyframe last |
| length | varint | before each slice but the last | bytes of the slice |
| slice | length | always | the last one takes all bytes that are left |
"""
"""Varints are unsigned numbers below 2^32: 7 bits a byte, the lowest first, bit 7 set in all but the last (LEB128)."""

_REFRESH, _STEPS, _TIMES = 1, 2, 4
_MANIFOLD_BYTES = 8
_MAX_16 = (1 << 16) - 1
_RANGES = SimpleNamespace(size=(1, _MAX_16), n=(1, _MAX_16), steps=(1, _MAX_16), quality=(0, MOST_QUALITIES), slices=(1, 255))


class NewerFormatError(WireError, FormatError):
    """A format this version does not know: the wire's error to a receiver, the file's to a command."""


@dataclass(frozen=True)
class StreamHeader:
    """What a receiver must know to decode, repeated with each refresh so that it can join there.

    manifold_id: the first 8 bytes of the manifold's SHA-256. width, height: the picture as the manifold sees it;
    display_width, display_height: as it is shown. n: keyframe interval. coder: one of CODERS. quality: 0..15;
    manifolds have 1 and up.
    slices: of each keyframe, 1..255. grey: pictures without colour, whatever the networks make of them. Raises ValueError for
    values outside LAYOUT's ranges.
    """

    manifold_id: bytes
    width: int
    height: int
    display_width: int
    display_height: int
    n: int
    coder: str
    quality: int
    slices: int
    grey: bool = False

    def __post_init__(self) -> None:
        if len(self.manifold_id) != _MANIFOLD_BYTES:
            raise ValueError(f"manifold_id has {_MANIFOLD_BYTES} bytes, not {len(self.manifold_id)}")
        if self.coder not in CODERS:
            raise ValueError(f"coder is one of {', '.join(CODERS)}, not {self.coder!r}")
        for name in ("width", "height", "display_width", "display_height"):
            _check(name, getattr(self, name), _RANGES.size)
        for name in ("n", "quality", "slices"):
            _check(name, getattr(self, name), getattr(_RANGES, name))


@dataclass(frozen=True)
class Packet:
    """One keyframe, or what arrived of it.

    pts: ticks; the container or RTP carries it. steps: frames it advances: n in the steady state, 1 for the first,
    fewer at the end. times: ticks before pts of the steps - 1 frames in between, falling, or None where they are evenly
    spaced. header: present exactly on refresh keyframes. slices: each decodes alone; None = missing.
    """

    pts: int
    steps: int
    times: tuple[int, ...] | None
    header: StreamHeader | None
    slices: tuple[bytes | None, ...]

    def __post_init__(self) -> None:
        _check("steps", self.steps, _RANGES.steps)
        _check("the number of slices", len(self.slices), _RANGES.slices)
        if self.times is not None and len(self.times) != self.steps - 1:
            raise ValueError(f"{self.steps} steps have {self.steps - 1} times in between, not {len(self.times)}")

    def to_sample(self, n: int) -> bytes:
        """The packet as LAYOUT has it, but for pts. n: the stream's keyframe interval; steps are left out where equal.

        Raises ValueError for slices that are missing or not as many as the header says, and for times that do not fall
        strictly to above 0.
        """
        if self.header is not None and self.header.slices != len(self.slices):
            raise ValueError(f"the header says {self.header.slices} slices, the packet has {len(self.slices)}")
        explicit = self.steps != n
        flags = _REFRESH * (self.header is not None) | _STEPS * explicit | _TIMES * (self.times is not None)
        parts = [bytes([flags])]
        if (h := self.header) is not None:
            parts += [bytes([1 + h.grey, CODERS.index(h.coder) << 4 | h.quality]), h.manifold_id]
            parts += map(_varint, (h.width, h.height, h.display_width, h.display_height, h.n, h.slices))
        if explicit:
            parts.append(_varint(self.steps))
        if self.times is not None:
            gaps = [a - b for a, b in pairwise((*self.times, 0))]
            if min(gaps, default=1) < 1:
                raise ValueError(f"times in between must fall strictly and stay above 0: {self.times}")
            parts += map(_varint, gaps)
        for index, part in enumerate(self.slices):
            if part is None:
                raise ValueError(f"slice {index} is missing; a sample holds all {len(self.slices)}")
            parts += [_varint(len(part)), part]
        del parts[-2]  # the last slice's length
        return b"".join(parts)

    @classmethod
    def parse_sample(cls, data: bytes, pts: int, header: StreamHeader | None) -> Packet:
        """The packet from a sample. header: the stream's, of the latest refresh; used only where the sample has none.

        Raises WireError where the bytes are no whole packet or header is needed and None, and NewerFormatError (which
        is a FormatError too) where they are of a newer format. Bytes too many belong to the last slice.
        """
        reader = _Reader(data)
        flags = reader.byte()
        if flags >> 3:
            raise _newer(f"above {FORMAT}")
        own = _parse_header(reader) if flags & _REFRESH else None
        stream = own or header
        if stream is None:
            raise WireError("a keyframe before the first refresh")
        steps = reader.varint("steps", _RANGES.steps) if flags & _STEPS else stream.n
        times = None
        if flags & _TIMES:
            gaps = [reader.varint("time", (1, (1 << 32) - 1)) for _ in range(steps - 1)]
            times = tuple(accumulate(reversed(gaps)))[::-1]
        slices = [reader.take(reader.varint("slice length")) for _ in range(stream.slices - 1)]
        return cls(pts, steps, times, own, (*slices, reader.rest()))


def read_header(data: bytes) -> StreamHeader | None:
    """The stream header at the start of a sample, of which `data` may be the first bytes; None where it has none.

    Raises as Packet.parse_sample.
    """
    reader = _Reader(data)
    flags = reader.byte()
    if flags >> 3:
        raise _newer(f"above {FORMAT}")
    return _parse_header(reader) if flags & _REFRESH else None


def too_large(width: int, height: int, most: int = LARGEST_PICTURE) -> str:
    return f"{width}x{height} is more than {most // 1_000_000} million pixels"


def _parse_header(reader: _Reader) -> StreamHeader:
    version = reader.byte()
    if version > FORMAT:
        raise _newer(str(version))
    if version < 1:
        raise WireError(f"there is no stream format {version}")
    coder, quality = divmod(reader.byte(), 16)
    if coder >= len(CODERS):
        raise WireError(f"there is no coder {coder}")
    manifold_id = reader.take(_MANIFOLD_BYTES)
    width, height, shown_width, shown_height = (reader.varint("size", _RANGES.size) for _ in range(4))
    n, slices = reader.varint("n", _RANGES.n), reader.varint("slices", _RANGES.slices)
    size = (width, height, shown_width, shown_height)
    return StreamHeader(manifold_id, *size, n, CODERS[coder], quality, slices, grey=version == 2)


def _newer(version: str) -> NewerFormatError:
    from importlib import metadata  # slow to import, and rarely needed

    try:
        mine = metadata.version("mcode")
    except metadata.PackageNotFoundError:
        mine = "(not installed)"
    reads = f"this is mcode {mine}, which reads stream formats 1 and {FORMAT}; install a newer MCode"
    return NewerFormatError(f"stream format {version}, {reads}")


def _check(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{name} is {bounds[0]} to {bounds[1]}, not {value}")


def _varint(value: int) -> bytes:
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{value} is outside 0 to 2^32 - 1")
    return bytes(_septets(value))


def _septets(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise WireError(f"the sample ends {size - len(self._data) + self._at} bytes early")
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, name: str, bounds: tuple[int, int] = (0, (1 << 32) - 1)) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                if not bounds[0] <= value <= bounds[1]:
                    raise WireError(f"{name} is {bounds[0]} to {bounds[1]}, not {value}")
                return value
        raise WireError(f"{name} is a number of more than 5 bytes")
