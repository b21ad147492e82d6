"""A file's tracks: opened, chosen, read as packets and as decoded pictures; damage is passed over and counted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av

from mcode.errors import InputError
from mcode.video.images import refuse_wrong_tiff
from mcode.video.paths import StrPath, check_input

STILL_BRANDS = {"avif", "heic", "heix", "mif1"}  # heix: HEIC of more than 8 bits, or grey

_TEXT_AS_VIDEO = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg draws any .txt file as a terminal: not a video to us
_ANIMATION_BRANDS = {"avis", "hevc", "msf1"}
_EBML_HEADER = re.compile(rb"\x1a\x45\xdf\xa3.{1,64}?(?:matroska|webm)", re.DOTALL)  # RFC 8794, section 11.2.2
_LONGEST_INDEX = 1 << 24  # bytes behind the last picture: twenty hours with a keyframe every second have 1.4 million
_LONGEST_PLAYLIST = 1 << 24  # bytes, a hundred times those of a long film
_LONGEST_Y4M_HEADER = 80  # bytes before a picture, as FFmpeg reads them


@dataclass
class Damage:
    """What went wrong while decoding one file."""

    packets: int = 0
    cut_off: bool = False


def open_container(path: StrPath) -> av.container.InputContainer:
    """Raises InputError, in one line, for what is no file, empty, a playlist that still grows, or unreadable."""
    file = Path(path)
    check_input(path)
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        if _still_grows(file):
            raise InputError(f"{path} is a playlist that still grows (without #EXT-X-ENDLIST): name the video itself")
        # "file:" keeps FFmpeg from reading the name as a URL, pattern_type one with %d as that of many pictures
        options = {"pattern_type": "none"} if "%" in os.fspath(file) else {}
        container = av.open(f"file:{file}", options=options, metadata_errors="replace")
    except MemoryError:  # FFmpeg's is an FFmpegError, too
        raise
    except PermissionError as error:
        raise InputError(f"{path}: not allowed to read it") from error
    except (av.error.FFmpegError, OSError) as error:
        with open(file, "rb") as raw:
            is_mp4 = raw.read(8)[4:] == b"ftyp"
        reason = "is cut off before its index (moov), so nothing of it can be read" if is_mp4 else "is not a video or image"
        raise InputError(f"{path} {reason}") from error
    return container


def _still_grows(file: Path, *, variants: bool = True) -> bool:
    """Whether an HLS playlist, or with `variants` one that it names, has no end (RFC 8216, section 4.3.3.4): FFmpeg waits for
    the rest of it, and no signal ends that."""
    with open(file, "rb") as raw:
        if raw.read(7) != b"#EXTM3U":
            return False
        text = raw.read(_LONGEST_PLAYLIST)
    if not re.search(rb"^#EXT-X-STREAM-INF:", text, re.MULTILINE):
        return not re.search(rb"^#EXT-X-ENDLIST", text, re.MULTILINE)
    named = re.findall(rb'(?:^|URI=")([^#\s"][^\r\n"]*)', text, re.MULTILINE)
    found = [file.parent / os.fsdecode(name) for name in named if variants]
    return any(_still_grows(one, variants=False) for one in found if one.is_file() and os.access(one, os.R_OK))


def picture_stream(container: av.container.InputContainer, path: StrPath) -> av.VideoStream:
    """The track to show, decoded by several threads. Raises InputError where there is none, or it would be shown wrongly."""
    streams = films(container)
    if streams and streams[0].disposition & av.stream.Disposition.dependent:
        raise InputError(f"{path} is a picture in tiles (a HEIC or AVIF grid): convert it to JPEG or PNG first")
    if streams and streams[0].codec_context.name == "tiff":
        refuse_wrong_tiff(path)
    if streams and streams[0].codec_context.name not in _TEXT_AS_VIDEO:
        streams[0].thread_type = "AUTO"
        return streams[0]
    if "mcode" in container.metadata:
        raise InputError(f"{path} is an .mcode file already: decode it first (mcode decode)")
    has = "only sound" if container.streams.audio else "no pictures"
    raise InputError(f"{path} is not a video: {has} in it" if not streams else f"{path} is a text file, not a video")


def sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The default one, else the best; it may be one that cannot be read (codec_context is None)."""
    stream = container.streams.best("audio")
    assert stream is None or isinstance(stream, av.AudioStream)
    return stream


def films(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video tracks that are no cover pictures of a song and that FFmpeg has a decoder for, the one to show first: the
    default one, and of an animated AVIF the animation. Where none is the default, a tile comes before a thumbnail."""
    kind = av.stream.Disposition
    moves = container.metadata.get("major_brand", "").strip() in _ANIMATION_BRANDS

    def rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
        at, size = stream.disposition, stream.codec_context.width if container.format.name == "ico" else 0
        return not at & kind.default, not at & kind.dependent, moves and stream.frames <= 1, -size

    found = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & kind.attached_pic]
    return sorted(found, key=rank)


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream, damage: Damage, *, from_keyframe: bool = False
) -> Iterator[av.VideoFrame]:
    """Every picture that decodes. Damaged packets are skipped and counted; a broken file ends the pictures.

    from_keyframe: where a seek lands between keyframes, as in MPEG-TS, decoders make grey pictures of what comes first.
    """
    size = container.size
    end, seen = size, 0
    try:
        for packet in demuxed(container, stream):
            if container.format.name == "yuv4mpegpipe" and packet.pos is not None:
                end = packet.pos + packet.size + _LONGEST_Y4M_HEADER
            elif packet.pos is not None:
                seen = max(seen, packet.pos + packet.size)
            if from_keyframe and not packet.is_keyframe and packet.size:
                continue
            from_keyframe = False
            if packet.is_corrupt and ends_with(packet, size):
                damage.packets, damage.cut_off = damage.packets + 1, True
                continue
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                damage.packets += 1
    except av.error.FFmpegError:
        damage.cut_off = True
    damage.cut_off |= end < size  # FFmpeg passes over a last picture that is not whole
    if container.format.name == "matroska,webm":
        damage.cut_off |= _has_another_matroska(container.name.removeprefix("file:"), seen)


def _has_another_matroska(path: str, begin: int) -> bool:
    """Whether a file of its own begins behind this byte: FFmpeg reads on in the second of joined ones, in no third."""
    with suppress(OSError), open(path, "rb") as file:  # it may be gone by now
        file.seek(begin)
        return _EBML_HEADER.search(file.read(_LONGEST_INDEX)) is not None
    return False


def demuxed(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of these streams. Damaged bytes of MPEG-TS and FLV look as if another stream began, at which PyAV 18 raises
    IndexError; nothing of `streams` is lost by it."""
    while True:
        with suppress(IndexError):
            yield from container.demux(*streams)
            return


def discard_others(container: av.container.InputContainer, *streams: av.stream.Stream) -> None:
    """FFmpeg passes over all others from here on."""
    for other in container.streams:
        if other not in streams:
            other.discard = av.stream.Discard.all


def ends_with(packet: av.Packet, size: int) -> bool:
    """Whether a file of so many bytes ends inside this packet, or just behind it."""
    return packet.pos is not None and packet.pos + packet.size >= size
