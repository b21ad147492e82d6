"""Clips for tests: pictures that move and a tone that rises, written, damaged, seen and heard again."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mcode.frame import TICKS_PER_S, Frame
from mcode.video import FrameReader, FrameWriter, picture_zero

FPS = 25
RATE = 48_000


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth colours that move with the index: survives 4:2:0 and crf 14."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        60 + 120 * x / max(1, width - 1),
        60 + 120 * y / max(1, height - 1),
        np.full(x.shape, 50 + 3 * index % 150),
    ]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def tone(seconds: float) -> np.ndarray:
    """A rising tone: every moment sounds different, so a shift of one sample shows."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * (300 + 150 * t) * t)).astype(np.float32)


def make_clip(
    path: Path,
    *,
    frames: int = 25,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: list[int] | None = None,
    audio: str | None = None,
    layout: str = "mono",
    tracks: int = 1,
    video: bool = True,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A clip of picture(0), picture(1), ... at 25 frames/s, or at `ticks`; with a tone of the same length."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        if video:
            quality = {"crf": "5"} if codec == "libx264" else {}
            stream = out.add_stream(codec, rate=FPS, options=quality | (options or {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            if ticks:
                stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS_PER_S)
        if audio:
            sounds = [out.add_stream(audio, rate=RATE, layout=layout) for _ in range(tracks)]
            channels = len(av.AudioLayout(layout).channels)
            samples, position, size = tone(frames / FPS), 0, 960
        for i in range(frames):
            if video:
                source = "rgba" if pixel_format.startswith(("yuva", "rgba")) else "rgb24"
                rgb = picture(i, width, height)
                if source == "rgba":
                    rgb = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
                frame = av.VideoFrame.from_ndarray(rgb, source)
                frame.pts = ticks[i] if ticks else i
                frame.time_base = Fraction(1, TICKS_PER_S) if ticks else Fraction(1, FPS)
                out.mux(stream.encode(frame))
            while audio and position < (i + 1) * RATE // FPS:
                data = np.repeat(samples[None, position : position + size], channels, 0)
                chunk = av.AudioFrame.from_ndarray(data, "fltp", layout)
                chunk.sample_rate, chunk.pts, chunk.time_base = RATE, position, Fraction(1, RATE)
                if "pcm" in audio:
                    form = sounds[0].codec_context.format.name
                    chunk = av.AudioResampler(form, layout, RATE).resample(chunk)[0]
                for sound in sounds:
                    out.mux(sound.encode(chunk))
                position += size
        if video:
            out.mux(stream.encode(None))
        for sound in sounds if audio else ():
            out.mux(sound.encode(None))
    return path


def rotate_mp4(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a, b, c, d into the picture track's display matrix (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (v << 16 for v in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def move_flv(path: Path, kind: int, leaps_s: dict[int, float]) -> Path:
    """Adds seconds to the times of some packets, by their number, of an FLV file's sound (kind 8) or pictures (9)."""
    data, at, number = bytearray(path.read_bytes()), 13, 0
    while at < len(data):
        if data[at] == kind:
            time_ms = data[at + 7] << 24 | int.from_bytes(data[at + 4 : at + 7])
            moved = time_ms + round(leaps_s.get(number, 0) * 1000) & 0xFFFFFFFF
            data[at + 4 : at + 8] = (moved & 0xFFFFFF).to_bytes(3) + bytes([moved >> 24])
            number += 1
        at += 11 + int.from_bytes(data[at + 1 : at + 4]) + 4
    path.write_bytes(data)
    return path


def frames_of(count: int, width: int = 64, height: int = 48) -> list[Frame]:
    return [Frame(picture(i, width, height), i * 3600) for i in range(count)]


def write(path: Path | str, frames: list[Frame], **options: object) -> FrameWriter:
    with FrameWriter(path, width=frames[0].width, height=frames[0].height, **options) as writer:
        for frame in frames:
            writer.push(frame)
    return writer


def copy_of(source: Path, output: Path, **options: object) -> Path:
    """Every frame of `source` through a FrameWriter."""
    reader = FrameReader(source)
    with FrameWriter(output, width=reader.width, height=reader.height, **options) as writer:
        for frame in reader:
            writer.push(frame)
    return output


def read_all(path: Path) -> tuple[int, str | None]:
    reader = FrameReader(path)
    return sum(1 for _ in reader), reader.truncated


def heard(path: Path, since_s: Fraction | None = None) -> np.ndarray:
    """The decoded sound from since_s (the file's own clock; default: the first picture) on: float (samples,)."""
    zero = picture_zero(path) if since_s is None else since_s
    line = np.zeros(RATE * 30, np.float32)
    end = 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray().reshape(-1, frame.samples)[0]
            samples = samples / 32768 if samples.dtype == np.int16 else samples
            start = round((frame.pts * frame.time_base - zero) * RATE)
            start = end if end and abs(start - end) <= 2 * RATE // 1000 else start  # Matroska's milliseconds
            samples, start = samples[max(0, -start) :], max(0, start)
            line[start : start + len(samples)] = samples
            end = max(end, start + len(samples))
    return line[:end]


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.PSNR(a, b))
