"""The receiving end of each lane, without sockets, clocks or threads: datagrams in, frames out, damage concealed.

datagram -> repair (fec) -> order, loss (rtp.reception) -> keyframes (rtp.payload) -> conceal -> codec -> frames
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mcode.baseline import BaselineDecoder, EncodedPacket
from mcode.codec import Decoder, Model
from mcode.coders import slices as slicing
from mcode.conceal import Repair
from mcode.errors import FormatError, InputError, ManifoldError, McodeError, WireError
from mcode.fec import Recoverer
from mcode.frame import Frame
from mcode.manifold import find_id, load
from mcode.packet import LARGEST_PICTURE, StreamHeader, too_large
from mcode.rtp import h264, payload, sdp
from mcode.rtp.packets import FEC, H264, H265, HEADER_BYTES, MCODE, is_rtcp
from mcode.rtp.payload import Received
from mcode.rtp.reception import Reception

MOST_REPAIR_S = 2.0
"""A viewer would rather see a longer gap than wait longer."""

FindModel = Callable[[bytes], Model]
"""From the first 8 bytes of a manifold's hash to the manifold. Raises ManifoldError, which says how to get it."""


@dataclass(frozen=True)
class LaneCounters:
    """What one lane received, in packets, but for frames and keyframes. broken: keyframes shown from a broken delta
    chain.

    missing_slices: did not come; concealed_slices: came damaged, and the picture before was kept instead (huffman).
    skipped: frames that came too late to show. kbps: over the last seconds. fec_*: repair packets and what they
    rebuilt in time.
    """

    received: int = 0
    received_bytes: int = 0
    lost: int = 0
    late: int = 0
    duplicate: int = 0
    foreign: int = 0
    not_rtp: int = 0
    damaged_headers: int = 0
    damaged: int = 0
    waiting: int = 0
    keyframes: int = 0
    frames: int = 0
    shown: int = 0
    skipped: int = 0
    lost_keyframes: int = 0
    missing_slices: int = 0
    concealed_slices: int = 0
    broken: int = 0
    repaired_symbols: int = 0
    refresh_requests: int = 0
    fec_packets: int = 0
    fec_recovered: int = 0
    jitter_ms: float = 0.0
    kbps: float = 0.0


class McodeLane:
    """Datagrams of an MCode lane to keyframes (`push`, `poll`), keyframes to frames (`decode`). Sans-IO.

    A keyframe lost is a longer gap. With the coder `fixed` damaged slices are repaired (conceal.py) and decoded; with
    `huffman` or `range` the rest of a damaged slice is noise, so the picture before is kept at its positions, and the
    chain of deltas is broken: `wants_refresh` until a refresh came whole. push and poll are for one thread, decode may be for
    another. most_pixels: of a picture; a stream of larger ones is an `error`, one that turns to them is damage.
    most_gap_pixels: as in Decoder. most_repair_s: how long a gap is waited for at most because repair may fill it.
    """

    def __init__(
        self,
        find_model: FindModel,
        media: sdp.Media | None = None,
        *,
        most_pixels: int = LARGEST_PICTURE,
        most_gap_pixels: int | None = None,
        most_repair_s: float = MOST_REPAIR_S,
    ) -> None:
        self._find_model, self._most_pixels, self._most_gap_pixels = find_model, most_pixels, most_gap_pixels
        self.recoverer = _recoverer(media, most_repair_s)
        self.depacketiser = payload.Depacketiser(
            payload_type=media.payload_type if media else MCODE,
            header=_described_header(media),
            header_ssrc=media.ssrc if media else None,
        )
        self.error: McodeError | None = None
        self.keyframes = self.lost_keyframes = self.missing_slices = self.concealed_slices = self.broken = 0
        self._chain_broken = False
        self._model: Model | None = None
        self._refused: bytes | None = None
        self._repairs: tuple[StreamHeader, list[Repair]] | None = None
        self._decoder: Decoder | None = None
        self._ssrc: int | None = None
        self._has_picture = False

    @property
    def reception(self) -> Reception:
        return self.depacketiser.reception

    def push(self, datagram: bytes, now_s: float) -> list[Received]:
        """The keyframes that this datagram completes. Raises FormatError for a stream of a newer format."""
        found: list[Received] = []
        for each in self.recoverer.push(datagram, now_s):
            found += self.depacketiser.push(each, now_s, rebuilt=each is not datagram)
        self.reception.extra_hold_s = self.recoverer.hold_s
        return found

    def poll(self, now_s: float) -> list[Received]:
        return self.depacketiser.poll(now_s)

    @property
    def deadline_s(self) -> float | None:
        return self.depacketiser.deadline_s

    @property
    def wants_refresh(self) -> bool:
        """A packet of a stream came, but its header did not, or its chain of deltas is broken."""
        if self.reception.ssrc is None or self.error is not None:
            return False
        return self.depacketiser.header is None or self.depacketiser.waiting_now or self._chain_broken

    def decode(self, received: Received, wanted: Callable[[int], bool] | None = None) -> Iterator[Frame]:
        """The frames of a keyframe, pts being RTP timestamps, unwrapped. State changes at once; frames are
        synthesised as they are taken, so those too late may be left. wanted: as in Decoder.push. No frames where the
        manifold is missing: `error` says which."""
        self.keyframes += 1
        packet, stream = received.packet, received.stream
        decoder = self._decoder_of(received)
        if decoder is None:
            return iter(())
        self.lost_keyframes += received.lost if self._has_picture else 0
        slices = list(packet.slices)
        self.missing_slices += slices.count(None)
        whole = None not in slices and not any(received.damaged)
        if stream.coder in ("huffman", "range"):
            if self._has_picture:
                for index, damaged in enumerate(received.damaged):
                    if damaged and slices[index] is not None:
                        slices[index], self.concealed_slices = None, self.concealed_slices + 1
            if packet.header is not None and whole:
                self._chain_broken = False
            elif received.after_loss or not whole:
                self._chain_broken = True
            self.broken += self._chain_broken
        try:
            if stream.coder == "fixed":
                self._chain_broken = False
                slices = self._repaired(decoder, received, slices)
            frames = decoder.push(_with_slices(packet, slices), after_loss=received.after_loss, wanted=wanted)
        except (WireError, ManifoldError):
            self._chain_broken = True
            return iter(())
        self._has_picture = True
        return frames

    def _repaired(self, decoder: Decoder, received: Received, slices: list[bytes | None]) -> list[bytes | None]:
        stream = received.stream
        if self._repairs is None or self._repairs[0] != stream:
            _, h, w = decoder.model.latent_shape(stream.width, stream.height)
            tables = decoder.model.tables(stream.quality)
            sizes = [len(slicing.positions(index, stream.slices, h, w)) for index in range(stream.slices)]
            self._repairs = stream, [Repair(tables, size) for size in sizes]
        found: list[bytes | None] = []
        for repair, data, damaged in zip(self._repairs[1], slices, received.damaged, strict=True):
            if data is None:
                repair.lost()
            found.append(None if data is None else repair.slice(data, damaged))
        return found

    def _decoder_of(self, received: Received) -> Decoder | None:
        stream, before = received.stream, self._decoder
        followed = before is not None and received.ssrc == self._ssrc
        sizes = (stream.width, stream.height), (stream.display_width, stream.display_height)
        large = next((size for size in sizes if size[0] * size[1] > self._most_pixels), None)
        if large is not None:
            self._chain_broken = True
            self.depacketiser.damaged_headers += 1
            if not followed:
                self._decoder, self.error = (
                    None,
                    InputError(f"this stream cannot be shown: {too_large(*large, self._most_pixels)}"),
                )
            return None
        if before is not None and followed and before.model.id == stream.manifold_id.hex():
            return before
        if stream.manifold_id == self._refused:
            return None
        try:
            if self._model is None or self._model.id != stream.manifold_id.hex():
                self._model = self._find_model(stream.manifold_id)
            self._decoder = Decoder(self._model, stream, most_gap_pixels=self._most_gap_pixels)
        except ManifoldError as error:
            self._refused, self._decoder, self.error = stream.manifold_id, None, error
            return None
        except WireError as error:  # the next header may be a whole one, of the same manifold
            self._decoder, self.error = None, ManifoldError(str(error))
            return None
        self._refused = self.error = self._repairs = None
        self._ssrc, self._has_picture = received.ssrc, False
        return self._decoder

    def note_gap(self) -> None:
        """A keyframe was thrown away before it was decoded."""
        self._chain_broken = True

    def counters(self) -> dict[str, int]:
        """Its part of LaneCounters."""
        d, r = self.depacketiser, self.recoverer
        return {
            "not_rtp": d.not_rtp + r.malformed,
            "damaged_headers": d.damaged_headers,
            "damaged": d.damaged_packets,
            "waiting": d.waiting,
            "keyframes": self.keyframes,
            "lost_keyframes": self.lost_keyframes,
            "missing_slices": self.missing_slices,
            "concealed_slices": self.concealed_slices,
            "broken": self.broken,
            "repaired_symbols": sum(repair.repaired for repair in self._repairs[1]) if self._repairs else 0,
            "fec_packets": r.parity_packets,
            "fec_recovered": self.reception.rebuilt,
        }


class BaselineLane:
    """Datagrams of an H.264 or H.265 lane to access units, access units to frames; damage is FFmpeg's to conceal.
    Sans-IO. codec: without a description known from the first packet's payload type. most_*: as in McodeLane."""

    def __init__(
        self,
        media: sdp.Media | None = None,
        *,
        most_pixels: int = LARGEST_PICTURE,
        most_repair_s: float = MOST_REPAIR_S,
    ) -> None:
        self.codec: str | None = media.encoding.lower() if media else None
        self.error: McodeError | None = None
        self._most_pixels = most_pixels
        self._media = media
        self.recoverer = _recoverer(media, most_repair_s)
        self.depacketiser = h264.H264Depacketiser(
            codec=self.codec or "h264", payload_type=media.payload_type if media else None
        )
        self.keyframes = self.lost_keyframes = 0
        self._decoder: BaselineDecoder | None = None
        self._ssrc: int | None = None
        self._broken = False
        self._has_picture = False

    @property
    def reception(self) -> Reception:
        return self.depacketiser.reception

    def push(self, datagram: bytes, now_s: float) -> list[h264.AccessUnit]:
        found: list[h264.AccessUnit] = []
        for each in self.recoverer.push(datagram, now_s):
            kind = each[1] & 127 if len(each) > HEADER_BYTES and not is_rtcp(each) else None
            if self.codec is None and kind in (H264, H265):
                self.codec = "h264" if kind == H264 else "h265"
                self.depacketiser = h264.H264Depacketiser(codec=self.codec)
            found += self.depacketiser.push(each, now_s, rebuilt=each is not datagram)
        self.reception.extra_hold_s = self.recoverer.hold_s
        return found

    def poll(self, now_s: float) -> list[h264.AccessUnit]:
        return self.depacketiser.poll(now_s)

    @property
    def deadline_s(self) -> float | None:
        return self.depacketiser.deadline_s

    @property
    def wants_refresh(self) -> bool:
        return self.reception.ssrc is not None and self._broken

    def decode(self, unit: h264.AccessUnit) -> Iterator[Frame]:
        """The frames that this access unit completes, pts being RTP timestamps, unwrapped."""
        if unit.keyframe:
            self.keyframes += 1
            self._broken = unit.partial
        elif unit.after_loss:
            self.lost_keyframes += 1
            self._broken = True
        if self._decoder is None or unit.ssrc != self._ssrc:
            self._ssrc, self._has_picture = unit.ssrc, False
            self._decoder = BaselineDecoder(self.codec or "h264", most_pixels=self._most_pixels)
            for parameter_set in _described_sets(self._media):
                self._decoder.push(EncodedPacket(b"\0\0\0\1" + parameter_set, unit.pts - 1, unit.pts - 1, False))
        packet = EncodedPacket(unit.data, unit.pts, unit.pts, unit.keyframe)
        frames = [frame for frame in self._decoder.push(packet) if frame.pts is not None]
        if frames:
            self.error, self._has_picture = None, True
        elif not self._has_picture and self._decoder.size[0] * self._decoder.size[1] > self._most_pixels:
            self.error = InputError(f"this stream cannot be shown: {too_large(*self._decoder.size, self._most_pixels)}")
        return iter(frames)

    def note_gap(self) -> None:
        """An access unit was thrown away before it was decoded."""
        self._broken = True

    def counters(self) -> dict[str, int]:
        d = self.depacketiser
        return {
            "not_rtp": d.not_rtp + self.recoverer.malformed,
            "damaged_headers": d.malformed,
            "keyframes": self.keyframes,
            "lost_keyframes": self.lost_keyframes,
            "fec_packets": self.recoverer.parity_packets,
            "fec_recovered": self.reception.rebuilt,
        }


def _recoverer(media: sdp.Media | None, most_s: float) -> Recoverer:
    described = media.fec_payload_type if media else None
    return Recoverer(payload_type=described or FEC, is_announced=described is not None, most_hold_s=most_s)


def _with_slices(packet: Any, slices: list[bytes | None]) -> Any:
    return packet if list(packet.slices) == slices else type(packet)(**{**packet.__dict__, "slices": tuple(slices)})


def _described_header(media: sdp.Media | None) -> StreamHeader | None:
    """The stream header that a session description tells; None where it tells none, or nonsense."""
    try:
        raw = base64.b64decode(media.parameters["header"], validate=True) if media else b""
        return payload.parse_header(raw)[0] if raw else None
    except (KeyError, ValueError, WireError, FormatError):  # ValueError: not base64, or not even ASCII
        return None


def _described_sets(media: sdp.Media | None) -> list[bytes]:
    names = ("sprop-vps", "sprop-sps", "sprop-pps", "sprop-parameter-sets")
    texts = [text for name in names for text in (media.parameters.get(name, "") if media else "").split(",") if text]
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except ValueError:
        return []


def finder(manifold: str | os.PathLike[str] | Model | None = None, device: str = "auto") -> FindModel:
    """How a receiver gets the manifold that a stream names: the one given, which must be it, or an installed one."""

    def find(manifold_id: bytes) -> Model:
        if manifold is None:
            return load(find_id(manifold_id), device)
        model = load(manifold, device) if isinstance(manifold, str | os.PathLike) else manifold
        if model.id != manifold_id.hex():
            raise ManifoldError(
                f"this stream needs manifold {manifold_id.hex()}, but {getattr(model, 'name', 'the one given')} is "
                f"{model.id}; name the right one with --manifold, or leave it out to use an installed one"
            )
        return model

    return find
