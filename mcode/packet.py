"""The byte layout of a keyframe in a file: one table, one class, both directions. The wire's headers are in rtp.py."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import FormatError, WireError

FORMAT = 1

LAYOUT = """\
| part | bytes | is there | holds |
|---|---|---|---|
| flags | 1 | always | bit 0 refresh, bit 1 steps, bit 2 times; bits 3 to 7 are 0 in format 1 |
| format | 1 | refresh | 1 |
| coder, quality | 1 | refresh | coder in bits 4 to 7 (0 fixed, 1 huffman, 2 range), quality in bits 0 to 3 |
| manifold | 8 | refresh | first bytes of the manifold's SHA-256 |
| width, height, display width, display height, n, slices | varints | refresh | see StreamHeader |
| steps | varint | flag | frames since the previous keyframe, where not n |
| times | steps - 1 varints | flag | ticks from each in-between frame to the next, the last to this keyframe |
| slice lengths | slices - 1 varints | more than one slice | bytes of each slice but the last |
| slices | the rest | always | coded symbols |
"""
"""A sample of the data track, in order. A varint has 7 bits a byte, low bits first, bit 7 set while more follow."""

CODERS = ("fixed", "huffman", "range")
_REFRESH, _STEPS, _TIMES = 1, 2, 4
_LARGEST = 65_535
_LARGEST_TIME = 1 << 40


@dataclass(frozen=True)
class StreamHeader:
    """What a receiver must know to join: repeated with each refresh.

    manifold_id: 8 bytes. width, height: of the coded picture; display_*: of the picture shown, which the decoder scales
    to. n: keyframe interval in frames. quality: 1..15. slices: in each keyframe, 1..255.
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

    def __post_init__(self) -> None:
        sizes = (self.width, self.height, self.display_width, self.display_height, self.n)
        if len(self.manifold_id) != 8 or self.coder not in CODERS or not 0 <= self.quality <= 15:
            raise ValueError(f"no such stream: {self}")
        if not all(1 <= size <= _LARGEST for size in sizes) or not 1 <= self.slices <= 255:
            raise ValueError(f"out of range: {self}")

    def __bytes__(self) -> bytes:
        fixed = bytes([FORMAT, CODERS.index(self.coder) << 4 | self.quality]) + self.manifold_id
        sizes = (self.width, self.height, self.display_width, self.display_height, self.n, self.slices)
        return fixed + b"".join(varint(size) for size in sizes)

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> tuple[StreamHeader, int]:
        """The header at `at` and where it ends. Raises WireError, or FormatError for a newer format."""
        if len(data) < at + 10:
            raise WireError("the stream header is cut short")
        if data[at] != FORMAT:
            raise _other_format(data[at])
        coder, quality = data[at + 1] >> 4, data[at + 1] & 15
        manifold_id = bytes(data[at + 2 : at + 10])
        at += 10
        sizes = []
        for _ in range(6):
            size, at = parse_varint(data, at, _LARGEST)
            sizes.append(size)
        if coder >= len(CODERS):
            raise WireError(f"coder {coder} is not known")
        width, height, display_width, display_height, n, slices = sizes
        try:
            header = cls(manifold_id, width, height, display_width, display_height, n, CODERS[coder], quality, slices)
        except ValueError as error:
            raise WireError(str(error)) from None
        return header, at


@dataclass(frozen=True)
class Packet:
    """One keyframe, or what arrived of it.

    pts: ticks; the container or RTP carries it. steps: frames from the previous keyframe (excluded) to this one
    (included); n in steady state, 1 for the first. times: ticks from each of the steps - 1 in-between frames to pts,
    falling, or None where they are evenly spaced. header: on refreshes. slices: None where one did not arrive.
    """

    pts: int
    steps: int
    times: tuple[int, ...] | None
    header: StreamHeader | None
    slices: tuple[bytes | None, ...]

    def to_sample(self, n: int) -> bytes:
        """The sample's bytes, as in LAYOUT. n: of the stream. Raises ValueError where a slice is missing."""
        if any(part is None for part in self.slices):
            raise ValueError("a keyframe with missing slices has no sample")
        flags = (self.header is not None) * _REFRESH | (self.steps != n) * _STEPS | (self.times is not None) * _TIMES
        parts = [bytes([flags])]
        if self.header is not None:
            parts.append(bytes(self.header))
        if self.steps != n:
            parts.append(varint(self.steps))
        if self.times is not None:
            following = (*self.times[1:], 0)
            parts += [varint(a - b) for a, b in zip(self.times, following, strict=True)]
        parts += [varint(len(part)) for part in self.slices[:-1] if part is not None]
        return b"".join([*parts, *(part for part in self.slices if part is not None)])

    @classmethod
    def parse_sample(cls, data: bytes, pts: int, header: StreamHeader | None) -> Packet:
        """The packet of a sample. header: the stream's so far, None before the first refresh.

        Raises WireError for bytes that are no sample, FormatError for a newer format. Whatever follows belongs to the
        last slice.
        """
        if not data:
            raise WireError("the sample is empty")
        flags, at = data[0], 1
        if flags & ~(_REFRESH | _STEPS | _TIMES):
            raise WireError(f"flags {flags:#04x} are not of format {FORMAT}")
        own = None
        if flags & _REFRESH:
            own, at = StreamHeader.parse(data, at)
        header = own or header
        if header is None:
            raise WireError("the stream does not begin with a refresh")
        steps = header.n
        if flags & _STEPS:
            steps, at = parse_varint(data, at, _LARGEST)
            if steps == 0:
                raise WireError("a keyframe of 0 steps")
        times = None
        if flags & _TIMES:
            if steps - 1 > len(data) - at:
                raise WireError("the times are cut short")
            gaps = []
            for _ in range(steps - 1):
                gap, at = parse_varint(data, at, _LARGEST_TIME)
                if gap == 0:
                    raise WireError("two frames at one time")
                gaps.append(gap)
            total, reversed_times = 0, []
            for gap in reversed(gaps):
                total += gap
                reversed_times.append(total)
            times = tuple(reversed(reversed_times))
        lengths = []
        for _ in range(header.slices - 1):
            length, at = parse_varint(data, at, len(data))
            lengths.append(length)
        if at + sum(lengths) > len(data):
            raise WireError("the slices are cut short")
        slices = []
        for length in lengths:
            slices.append(bytes(data[at : at + length]))
            at += length
        slices.append(bytes(data[at:]))
        return cls(pts, steps, times, own, tuple(slices))


def varint(value: int) -> bytes:
    """A whole number from 0, 7 bits a byte, low bits first (LEB128)."""
    if value < 0:
        raise ValueError(f"{value} is negative")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_varint(data: bytes, at: int, largest: int) -> tuple[int, int]:
    """The number at `at` and where it ends. Raises WireError where it is cut short, over `largest`, or longer than needed."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise WireError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if value > largest:
            raise WireError(f"a number is over {largest}")
        if byte < 128:
            if byte == 0 and shift:
                raise WireError("a number has a needless byte")
            return value, at
        shift += 7


def _other_format(found: int) -> FormatError | WireError:
    if found > FORMAT:
        from . import __version__

        return FormatError(f"stream is format {found}, this is mcode {__version__}, which reads {FORMAT}")
    return WireError("format 0 does not exist")
