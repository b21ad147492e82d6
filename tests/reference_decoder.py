"""docs/format.md in code: a decoder of MCode's streams in plain Python and numpy, which shares nothing with the package.

It is slow, and says what is right: each part is named after the document's. From bytes to symbols and times; not the networks,
which make pictures of them. test_reference_decoder.py holds it against mcode.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Damage(Exception):
    """Bytes that are no keyframe."""


class Newer(Exception):
    """A format which the document does not know."""


# Numbers


def varint(data: bytes, at: int, low: int = 0, high: int = (1 << 32) - 1) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise Damage("cut short")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            if not low <= value <= high:
                raise Damage(f"{value} is outside {low} to {high}")
            return value, at
    raise Damage("a number of more than 5 bytes")


def wrapped(values):
    """To 16 bits, two's complement."""
    return (values + 32_768) % 65_536 - 32_768


def crc16(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc


class Bits:
    """The most significant bit first, zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data + bytes(8), 0

    def take(self, count: int) -> int:
        start, skip = divmod(self.at, 8)
        self.at += count
        word = int.from_bytes(self.data[start : start + 8].ljust(8, b"\0"))
        return word >> (64 - skip - count) & ((1 << count) - 1)


# The .mcode file

DURATION, SIZE, FLAGS = 8, 16, 32  # bits of tfhd's flags; 32 times as much in trun's


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each box's content, one after the other."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start + 8, start + size
        start += size


def box(data: bytes, start: int, end: int, *path: bytes) -> tuple[int, int]:
    for wanted in path:
        start, end = next((a, b) for kind, a, b in boxes(data, start, end) if kind == wanted)
    return start, end


def samples(path: str | Path) -> list[tuple[int, bytes]]:
    """(pts in 1/90,000 s, bytes) of the keyframes, from the fragments that MCode writes."""
    data = Path(path).read_bytes()
    track, found = None, []
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"moov":
            for kind, a, b in boxes(data, start, end):
                if kind == b"trak" and data[box(data, a, b, b"mdia", b"hdlr")[0] + 8 :][:4] == b"meta":
                    track = struct.unpack_from(">I", data, box(data, a, b, b"tkhd")[0] + 12)[0]
        if kind != b"moof":
            continue
        for kind, a, b in boxes(data, start, end):
            if kind != b"traf":
                continue
            at = box(data, a, b, b"tfhd")[0]
            flags, number = struct.unpack_from(">II", data, at)
            if number != track:
                continue
            same = [bit for bit in (DURATION, SIZE, FLAGS) if flags & bit]
            defaults = dict(zip(same, struct.unpack_from(f">{len(same)}I", data, at + 8), strict=True))
            (pts,) = struct.unpack_from(">Q", data, box(data, a, b, b"tfdt")[0] + 4)
            at = box(data, a, b, b"trun")[0]
            flags, count, place = struct.unpack_from(">III", data, at)
            at, place = at + 12 + (flags & 4), place + start - 8
            for _ in range(count):
                row = dict(defaults)
                for bit in (DURATION, SIZE, FLAGS):
                    if flags & bit << 5:
                        (row[bit],) = struct.unpack_from(">I", data, at)
                        at += 4
                found.append((pts, data[place : place + row[SIZE]]))
                pts, place = pts + row[DURATION], place + row[SIZE]
    return found


# A sample: one keyframe


@dataclass(frozen=True)
class Header:
    format: int
    coder: int
    quality: int
    manifold: str
    width: int
    height: int
    display_width: int
    display_height: int
    n: int
    slices: int


@dataclass
class Keyframe:
    header: Header
    refresh: bool
    steps: int
    times: list[int] | None
    slices: list[bytes]


def stream_header(data: bytes, at: int, first: bool = True) -> tuple[Header, int]:
    """first: of a file or stream, where a newer format is one and not damage."""
    if data[at : at + 1] and data[at] > 2:
        raise Newer(f"stream format {data[at]}") if first else Damage("no such format")
    if len(data) < at + 10:
        raise Damage("cut short")
    if data[at] < 1 or data[at + 1] >> 4 > 2:
        raise Damage("no such format, or no such coder")
    values, end = [], at + 10
    for high in (65_535, 65_535, 65_535, 65_535, 65_535, 255):
        value, end = varint(data, end, 1, high)
        values.append(value)
    return Header(data[at], data[at + 1] >> 4, data[at + 1] & 15, data[at + 2 : at + 10].hex(), *values), end


def parse_sample(data: bytes, stream: Header | None) -> Keyframe:
    """stream: the header of the latest refresh; None before the first."""
    if not data:
        raise Damage("cut short")
    flags, at = data[0], 1
    if flags >> 3:
        raise Newer("flags") if stream is None else Damage("flags")
    if flags & 1:
        stream, at = stream_header(data, at, stream is None)
    if stream is None:
        raise Damage("a keyframe before the first refresh")
    steps = stream.n
    if flags & 2:
        steps, at = varint(data, at, 1, 65_535)
    times = [] if flags & 4 else None
    for _ in range(steps - 1 if flags & 4 else 0):
        ticks, at = varint(data, at, 1)
        times.append(ticks)
    slices = []
    for _ in range(stream.slices - 1):
        length, at = varint(data, at)
        if at + length > len(data):
            raise Damage("cut short")
        slices.append(data[at : at + length])
        at += length
    return Keyframe(stream, bool(flags & 1), steps, times, [*slices, data[at:]])


# Frames and their times


def frame_times(since: int | None, pts: int, keyframe: Keyframe) -> list[int]:
    """Of the frames that a keyframe brings; since: the time of the keyframe before, None for the first of a stream."""
    if since is None or pts <= since:
        return [pts]
    steps = min(keyframe.steps, keyframe.header.n, pts - since)
    if keyframe.times and steps == keyframe.steps and sum(keyframe.times) < pts - since:
        return [pts - sum(keyframe.times[i:]) for i in range(steps)]
    return [since + (pts - since) * i // steps for i in range(1, steps + 1)]


# A manifold


class Manifold:
    def __init__(self, path: str | Path) -> None:
        data = Path(path).read_bytes()
        body = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:body])
        metadata = entries.pop("__metadata__")
        kinds = {"F32": "float32", "F16": "float16", "I32": "int32", "U32": "uint32", "U16": "uint16", "I8": "int8"}
        self.tensors = {}
        digest = hashlib.sha256()
        for text in ("1", *(metadata[key] for key in ("kind", "config", "tables"))):
            digest.update(len(text.encode()).to_bytes(4, "little") + text.encode())
        for name, entry in sorted(entries.items()):
            first, last = (body + offset for offset in entry["data_offsets"])
            kind, shape = kinds[entry["dtype"]], tuple(entry["shape"])
            digest.update(f"{name} {kind} {shape}".encode() + data[first:last])
            self.tensors[name] = np.frombuffer(data[first:last], kind).reshape(shape)
        self.id, self.content_id = metadata["id"], digest.hexdigest()[:16]
        config = json.loads(metadata["config"])
        self.qualities, self.stride, self.frame_size = config["qualities"], config.get("stride"), config.get("frame_size")
        self.tables = [Tables(base64.b64decode(one)) for one in json.loads(metadata["tables"])]
        self.channels = self.tables[0].channels
        self.unit = 4 if config.get("quantiser") == "mean" else 1
        self.hyper = Hyperprior(config["hyper"], self.tensors, self.channels) if config.get("hyper") else None


# The map


def map_size(manifold: Manifold, width: int, height: int) -> tuple[int, int]:
    """(h, w)."""
    if manifold.stride is None:
        if [width, height] != manifold.frame_size:
            raise Damage(f"the manifold is for {manifold.frame_size}")
        return 1, 1
    h, w = (manifold.unit * -(-side // (manifold.unit * manifold.stride)) for side in (height, width))
    return h, w


# Slices


def positions(index: int, slices: int, h: int, w: int) -> np.ndarray:
    free = [step for step in range(slices) if not {step - 1, step, step + 1} & {0, slices}] or [slices // 2 or 1]
    step = min(free, key=lambda step: abs(step - 0.382 * slices))
    return np.array([y * w + x for y in range(h) for x in range(w) if (x + step * y) % slices == index], int)


# Code tables


class Tables:
    def __init__(self, packed: bytes) -> None:
        data = zlib.decompress(packed)
        version, self.channels = struct.unpack_from("<BH", data)
        assert version == 1
        at = 3 + 3 * self.channels
        self.centres = np.frombuffer(data, "<i2", self.channels, 3).astype(int)
        self.bits = list(data[3 + 2 * self.channels : at])
        self.modes = []  # for whole symbols and for deltas: (channels, context, floors, codes) of each group
        for _ in range(2):
            (count,) = struct.unpack_from("<H", data, at)
            at, groups, before = at + 2, [], []
            for _ in range(count):
                size, bands = struct.unpack_from("<HB", data, at)
                members = list(struct.unpack_from(f"<{size}H", data, at + 3))
                at, floors, codes = at + 3 + 2 * size, [], []
                for _ in range(bands):
                    floor, *shape = struct.unpack_from("<IBBBB", data, at)
                    tokens = 3 + max(shape[2], 1) * (2 * shape[3] + 1)
                    floors.append(floor)
                    codes.append(Code(*shape, data[at + 8 : at + 8 + tokens]))
                    at += 8 + tokens
                groups.append((members, before[-16:], floors, codes))
                before = before + members
            self.modes.append(groups)
        assert at == len(data)


class Code:
    def __init__(self, shift: int, run_shift: int, max_run: int, max_value: int, lengths: bytes) -> None:
        self.shift, self.run_shift, self.max_run, self.max_value = shift, run_shift, max_run, max_value
        at, left = 0, {}
        for length, token in sorted((length, token) for token, length in enumerate(lengths) if length):
            left[token] = at
            at += 1 << (12 - length)
        assert at == 1 << 12
        self.words = {(lengths[token], (code ^ left[0]) >> (12 - lengths[token])): token for token, code in left.items()}

    def token(self, bits: Bits) -> int:
        word = 0
        for length in range(1, 13):
            word = word << 1 | bits.take(1)
            if (length, word) in self.words:
                return self.words[length, word]
        raise AssertionError("the code is complete")

    def residuals(self, bits: Bits, count: int) -> np.ndarray:
        found, at = np.zeros(count, int), 0
        while at < count:
            token, run = self.token(bits), 0
            if token == 0:  # REST
                at = count if self.max_run else at + 1
                continue
            if token == 2:  # SKIP
                at += bits.take(bits.take(5)) << self.run_shift
                continue
            if token == 1:  # ESCAPE
                number = bits.take(bits.take(5))
                value = number >> 1 ^ -(number & 1)
            else:
                run, value = divmod(token - 3, 2 * self.max_value + 1)
                value -= self.max_value
            at += run << self.run_shift
            if self.max_run and at < count:
                at += bits.take(self.run_shift)
            if at < count:
                found[at] = wrapped(value)
            at += 1
        half = 1 << self.shift >> 1
        for i in range(count if self.shift else 0):
            found[i] = wrapped((found[i] << self.shift) + (bits.take(self.shift) ^ half) - half)
        return found


# The coder fixed


def decode_fixed(data: bytes, count: int, tables: Tables) -> np.ndarray:
    bits, found = Bits(data), np.zeros((tables.channels, count), int)
    for channel, width in enumerate(tables.bits):
        half = 1 << width >> 1
        for i in range(count):
            value = bits.take(width)
            found[channel, i] = -(value - half) - 1 if value & half else value
    return wrapped(found + tables.centres[:, None])


# The coder huffman


def decode_huffman(data: bytes, previous: np.ndarray | None, count: int, tables: Tables) -> np.ndarray:
    bits, found = Bits(data), np.zeros((tables.channels, count), int)
    is_delta = bits.take(1)
    for members, context, floors, codes in tables.modes[is_delta]:
        band = [bisect_right(floors, activity) - 1 for activity in np.abs(found[context]).sum(axis=0)]
        for number, code in enumerate(codes):
            where = [i for i in range(count) if band[i] == number]
            if where:
                part = code.residuals(bits, len(members) * len(where))
                found[np.ix_(members, where)] = part.reshape(len(members), len(where))
    return wrapped(found + (previous if is_delta and previous is not None else tables.centres[:, None]))


# The coder range


class Stack:
    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self.words = [int.from_bytes(padded[at : at + 4]) for at in range(0, len(padded), 4)][::-1]
        if self.words and not self.words[-1]:
            self.words[-1] = 1
        self.state = 0
        while self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def pop(self, ends: list[int]) -> int:
        """ends: where each symbol's share of 2^24 ends."""
        rest = self.state & 0xFFFFFF
        symbol = bisect_right(ends, rest)
        start = ends[symbol - 1] if symbol else 0
        self.state = (self.state >> 24) * (ends[symbol] - start) + rest - start
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    @property
    def is_empty(self) -> bool:
        return self.state == 0 and not self.words


ESCAPED = [256 * (i + 1) for i in range(65_536)]


def ends_of(frequencies: np.ndarray) -> list[int]:
    return np.cumsum(frequencies, dtype=np.int64).tolist()


def features(values: np.ndarray, signed: int) -> np.ndarray:
    sizes = np.rint(16 * np.log2(1 + np.minimum(np.abs(values), 4095))).astype(int)
    return np.concatenate([sizes, sizes[:signed] * np.sign(values[:signed])])


def activation(sums: np.ndarray) -> np.ndarray:
    return np.clip((sums + 32) >> 6, 0, 255)


def convolved(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weights (out, in, 3, 3), x (in, h, w): zeros around it."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    found = 0
    for dy in range(3):
        for dx in range(3):
            found = found + np.tensordot(weights[:, :, dy, dx], padded[:, dy : dy + h, dx : dx + w], 1)
    return found


class Hyperprior:
    def __init__(self, config: dict, tensors: dict[str, np.ndarray], channels: int) -> None:
        self.config, self.channels, self.levels = config, channels, config.get("levels", 1)
        self.t = {name.removeprefix("hyper."): t.astype(np.int64) for name, t in tensors.items() if name.startswith("hyper.")}
        parts = np.split(self.t["tables.symbols"], np.cumsum(self.t["tables.sizes"])[:-1])
        self.tables = [ends_of(part) for part in parts]
        each, left_over = divmod(12 << 20, self.levels)
        kinds = [2 << 20, 2 << 20, each + left_over, *[each] * (self.levels - 1)]
        self.kinds = ends_of(np.array([5 << 20, 5 << 20, 6 << 20] if self.levels == 1 else kinds))

    def decode(self, data, previous, where, slices, size, quality) -> tuple[np.ndarray, bool]:
        """The symbols (C, P) of a slice at `where`, and whether it shows damage."""
        config, t, (h, w) = self.config, self.t, size
        stack, joined = Stack(data), slices == 1
        kind = stack.pop(self.kinds)
        lacking = kind >= 2 and previous is None
        if lacking:  # read as if nothing had been sent
            stack, kind = Stack(b""), 0
        is_delta = kind >= 2
        total = np.repeat(t["start"][(2 + self.levels) * (2 * (quality - 1) + joined) + kind][:, None], len(where), axis=1)
        if kind == 1:
            total = total + self.synthesis(self.latent(stack, h, w, quality))[:, :h, :w].reshape(len(total), -1)[:, where]
        if is_delta:
            total = total + t["before"][:, :, 0, 0] @ features(previous, config["signed"])
        base = previous if is_delta else np.zeros((self.channels, len(where)), int)
        found = np.zeros((self.channels, len(where)), int)
        for i, (start, stop, parity) in enumerate(config["passes"]):
            columns = np.array([c for c, at in enumerate(where) if parity is None or (at % w + at // w) % 2 == parity], int)
            part = self.one_pass(stack, i, total[:, columns], base[start:stop, columns], 2 * (quality - 1) + is_delta)
            found[start:stop, columns] = part
            if f"context.{i}" in t:
                weights, told = t[f"context.{i}"], part - base[start:stop, columns]
                told = features(told, min(stop, config["signed"]) - min(start, config["signed"]))
                if joined:
                    whole = np.zeros((len(told), h * w), int)
                    whole[:, columns] = told
                    total = total + convolved(weights, whole.reshape(-1, h, w)).reshape(len(total), -1)
                else:
                    total[:, columns] += weights[:, :, 1, 1] @ told
        return found, lacking or not stack.is_empty

    def latent(self, stack: Stack, h: int, w: int, quality: int) -> np.ndarray:
        z = np.zeros((self.config["latents"], -(-h // 4), -(-w // 4)), int)
        for channel, frequencies in zip(z, self.t["tables.z"][quality - 1], strict=True):
            likeliest = int(np.argmax(frequencies))
            ends = ends_of(np.roll(frequencies, -likeliest))
            for place in np.ndindex(channel.shape):
                channel[place] = (stack.pop(ends) + likeliest) % 16 - 8
        return z

    def synthesis(self, z: np.ndarray) -> np.ndarray:
        x = activation(convolved(self.t["s1"], 16 * z) + self.t["s1_bias"][0][:, None, None])
        x = np.tensordot(self.t["s2"][:, :, 0, 0], x, 1)
        found = np.zeros((len(x) // 16, 4 * x.shape[1], 4 * x.shape[2]), int)
        for dy in range(4):
            for dx in range(4):
                found[:, dy::4, dx::4] = x[4 * dy + dx :: 16]
        return found

    def one_pass(self, stack: Stack, i: int, total: np.ndarray, base: np.ndarray, row: int) -> np.ndarray:
        t, config = self.t, self.config
        hidden = activation(t[f"inner.{i}"][:, :, 0, 0] @ activation(total) + t[f"inner_bias.{i}"][0][:, None])
        out = (t[f"head.{i}"][:, :, 0, 0] @ hidden + t[f"head_bias.{i}"][row][:, None] + 128) >> 8
        scale = np.clip(out[: len(base)], 0, config["scales"] - 1)
        quarters = np.clip(out[len(base) :], -config["mean_limit"], config["mean_limit"])
        whole = (quarters + 1) >> 2
        fraction = quarters - 4 * whole
        table, mean, fraction = (3 * scale + np.abs(fraction)).ravel(), (whole + base).ravel(), fraction.ravel()
        found, escaped = np.zeros(table.size, int), []
        for place in np.argsort(table, kind="stable"):
            ends = self.tables[table[place]]
            symbol = stack.pop(ends)
            if symbol == len(ends) - 1:
                escaped.append(place)
            difference = symbol >> 1 ^ -(symbol & 1)
            found[place] = wrapped(mean[place] + (-difference if fraction[place] == -1 else difference))
        for place in sorted(escaped):
            found[place] = wrapped(stack.pop(ESCAPED))
        return found.reshape(base.shape)


# From samples to symbols and times


@dataclass
class Decoded:
    """symbols: (C, h, w); times: of the frames that the keyframe brings, its own the last."""

    symbols: np.ndarray
    times: list[int]
    grey: bool


class StreamDecoder:
    """Whole keyframes, none of them lost, to symbols and times."""

    def __init__(self, manifold: Manifold) -> None:
        self.manifold, self.previous, self.since = manifold, None, None

    def push(self, keyframe: Keyframe, pts: int) -> Decoded:
        header, m = keyframe.header, self.manifold
        if header.manifold != m.id or not 1 <= header.quality <= m.qualities:
            raise Damage("another manifold, or a quality that it lacks")
        size = map_size(m, header.width, header.height)
        if self.previous is not None and self.previous.shape[1:] != size:
            self.previous = self.since = None
        tables, found = m.tables[header.quality - 1], np.zeros((m.channels, size[0] * size[1]), int)
        for index, data in enumerate(keyframe.slices):
            where = positions(index, header.slices, *size)
            before = None if self.previous is None else self.previous.reshape(m.channels, -1)[:, where]
            if header.coder == 0:
                found[:, where] = decode_fixed(data, len(where), tables)
            elif header.coder == 1:
                found[:, where] = decode_huffman(data, before, len(where), tables)
            else:
                found[:, where], damaged = m.hyper.decode(data, before, where, header.slices, size, header.quality)
                if damaged:
                    raise Damage(f"slice {index}")
        times = frame_times(self.since, pts, keyframe)
        self.previous, self.since = found.reshape(-1, *size), pts
        return Decoded(self.previous, times, header.format == 2)


def decode_file(path: str | Path, manifold: Manifold) -> list[Decoded]:
    decoder, stream, found = StreamDecoder(manifold), None, []
    for pts, data in samples(path):
        keyframe = parse_sample(data, stream)
        stream = keyframe.header
        found.append(decoder.push(keyframe, pts))
    return found


# On the wire


@dataclass
class WirePacket:
    keyframe: int
    epoch: int
    first: int
    steps: int
    times: list[int] | None
    fragment: tuple[int, bool] | None
    header: Header | None
    slices: list[bytes]
    marker: bool
    timestamp: int
    damaged: bool


def parse_bundle(datagram: bytes) -> list[WirePacket]:
    """The keyframes of an RTP packet, or the part of one that it holds."""
    start = 12 + 4 * (datagram[0] & 15)
    rtp, data = b"\x80" + datagram[1:12], datagram[start:]
    if data[0] >> 4 & 3 != 2:
        return [parse_packet(datagram)]
    flags, keyframe = struct.unpack_from(">BH", data)
    count, at = varint(data, 3, 2, 64)
    slices, at = varint(data, at, 1, 255)
    read, timestamp = [], int.from_bytes(datagram[4:8])
    for number in range(count):
        check = data[at]
        steps, at = varint(data, at + 1, 2, 2 * 65_535 + 1)
        if number:
            ticks, at = varint(data, at, 1)
            timestamp = (timestamp + ticks) % (1 << 32)
        times, lengths = ([] if steps & 1 else None), []
        for _ in range(steps // 2 - 1 if steps & 1 else 0):
            ticks, at = varint(data, at, 1)
            times.append(ticks)
        for _ in range(slices):
            length, at = varint(data, at)
            lengths.append(length)
        read.append((check, steps // 2, times, timestamp, lengths))
    if flags & 7 or crc16(rtp + data[:at]) != int.from_bytes(data[at : at + 2]):
        raise Damage("the header's CRC")
    at = 2 * (at + 2) if flags & 8 else at + 2
    found = []
    for number, (check, steps, times, when, lengths) in enumerate(read):
        parts = [data[at + sum(lengths[:i]) : at + sum(lengths[: i + 1])] for i in range(slices)]
        at += sum(lengths)
        index, damaged = (keyframe + number) % 65_536, crc16(b"".join(parts)) & 0xFF != check
        found.append(WirePacket(index, flags >> 6, 0, steps, times, None, None, parts, True, when, damaged))
    return found


def parse_packet(datagram: bytes) -> WirePacket:
    """An RTP packet of MCode's payload type and format 1, without padding or extension."""
    start = 12 + 4 * (datagram[0] & 15)
    rtp, data = b"\x80" + datagram[1:12], datagram[start:]
    flags, check, keyframe = struct.unpack_from(">BBH", data)
    if flags >> 4 & 3 != 1:
        raise Damage("payload format")
    first, at = varint(data, 4, 0, 254)
    count, at = varint(data, at, 1, 255 - first)
    steps, at = varint(data, at, 1, 65_535)
    times, fragment, header, lengths = ([] if flags & 2 else None), None, None, []
    for _ in range(steps - 1 if flags & 2 else 0):
        ticks, at = varint(data, at, 1)
        times.append(ticks)
    if flags & 4:
        value, at = varint(data, at, 0, 1 << 31)
        fragment = value >> 1, bool(value & 1)
    if flags & 1:
        header, at = stream_header(data, at)
    for _ in range(count - 1):
        length, at = varint(data, at)
        lengths.append(length)
    if crc16(rtp + data[:at]) != int.from_bytes(data[at : at + 2]):
        raise Damage("the header's CRC")
    at += 2
    body = data[2 * at if flags & 8 else at :]
    ends = np.cumsum([0, *lengths]).tolist()
    slices = [body[a:b] for a, b in zip(ends, [*ends[1:], len(body)], strict=True)]
    damaged = crc16(body) & 0xFF != check
    marker, timestamp = bool(datagram[1] >> 7), int.from_bytes(datagram[4:8])
    return WirePacket(keyframe, flags >> 6, first, steps, times, fragment, header, slices, marker, timestamp, damaged)


def decode_wire(datagrams: list[bytes], manifold: Manifold, described: Header | None = None) -> list[Decoded]:
    """Packets in order, none lost. described: the stream header of the session description. Times count from the first."""
    decoder, found, stream, epoch = StreamDecoder(manifold), [], described, 0
    clock: int | None = None
    pts, parts = 0, {}
    for packet in (each for datagram in datagrams for each in parse_bundle(datagram)):
        if packet.header is not None:
            stream, epoch = packet.header, packet.epoch
        if stream is None or packet.epoch != epoch:
            continue  # waits for the refresh that brings this epoch's stream header
        for index, data in enumerate(packet.slices, packet.first):
            offset = packet.fragment[0] if packet.fragment else 0
            assert offset == len(parts.get(index, b""))
            parts[index] = parts.get(index, b"") + data
        if packet.marker:
            pts += (packet.timestamp - (packet.timestamp if clock is None else clock)) % (1 << 32)
            clock = packet.timestamp
            slices = [parts[index] for index in range(stream.slices)]
            keyframe = Keyframe(stream, packet.header is not None, packet.steps, packet.times, slices)
            found.append(decoder.push(keyframe, pts))
            parts = {}
    return found


# Forward error correction


def parity_bytes(column: bytes, count: int) -> bytes:
    """The Reed-Solomon parity of one byte of each datagram: the remainder of its polynomial, times x^count, divided by
    (x - 1)(x - 2)(x - 4) ..., highest power first."""
    power = [1]
    for _ in range(254):
        power.append(power[-1] << 1 ^ (0x11D if power[-1] & 128 else 0))
    logarithm = {value: exponent for exponent, value in enumerate(power)}

    def times(a: int, b: int) -> int:
        return power[(logarithm[a] + logarithm[b]) % 255] if a and b else 0

    divisor = [1]
    for i in range(count):
        divisor = [a ^ b for a, b in zip([*divisor, 0], [0, *(times(power[i], d) for d in divisor)], strict=True)]
    rest = [*column, *bytes(count)]
    for i in range(len(column)):
        rest[i : i + count + 1] = [a ^ times(rest[i], d) for a, d in zip(rest[i : i + count + 1], divisor, strict=True)]
    return bytes(rest[len(column) :])
