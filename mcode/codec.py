"""The codec: Encoder turns frames into packets, Decoder turns packets into frames. All stream state lives here.

Sans-IO: it opens no file and no socket, asks no clock and prints nothing. It sees a model through `Model` alone, so that a
test can put one in its place which a reader computes by hand.

    frame -(every n-th)-> analyse -> quantise -> symbols -> delta -> coder -> slices -> Packet
    Packet -> slices -> coder -> undelta -> symbols -> dequantise -> interpolate -> synthesise -> frames
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import torch

from .coders import CodeTables, fixed, huffman, slices
from .coders import range as ranges
from .errors import ArgumentError, InputError, ManifoldError, WireError
from .frame import TICKS_PER_S, Frame
from .latents import dequantise, hold, interpolate, quantise
from .packet import LARGEST_PICTURE, MOST_QUALITIES, Packet, StreamHeader, too_large
from .packet import OFFERED as CODERS

if TYPE_CHECKING:
    from torch import Tensor

BATCH_PIXELS = 2_000_000
"""Frames between keyframes are synthesised in batches of at most about this many pixels, see `frames_at_once`."""
DEAD_ZONE = 0.6
"""Quantiser steps by which a latent must leave the last keyframe's symbol before another is sent; 0.5 is plain rounding. 0.6
saves 9 % of the bits of feature maps at equal PSNR (docs/log.md), and still pictures stay still."""
CUT_THRESHOLD = 30.0
"""Grey levels: two frames whose 16x16 thumbnails differ more on average have a cut between them."""
BEND = 1.0
"""Adaptive keyframes: so much of the squared error of a keyframe may the frames of a gap together be off the line between its
ends, in luma. The error is measured at refreshes, at cuts and once a second, by a synthesis each."""
LONGEST_FILLER_S = 10
"""A gap after a loss is filled with frames up to this length; across a longer one the stream starts anew."""
_EVEN_TOLERANCE = TICKS_PER_S // 1000
_LEAST_TICKS = TICKS_PER_S // 1000
_MOST_AT_ONCE = 64
_GREY_TOLERANCE = 1
_LUMA_PIXELS = 160 * 90
_ROUNDING = 1 / 12  # squared error of whole grey levels
_NEVER_S = 1e9  # as good as infinity, and a number of ticks


class Model(Protocol):
    """What the codec needs of a manifold; `mcode.manifold.Manifold` is one.

    Messages call it by its `name`, and files and live sources are cropped to its `frame_size`, (width, height), where it
    has these, too.
    """

    @property
    def id(self) -> str:
        """16 hex digits, 0-9 and a-f, that stand in every stream: another model, another id."""
        ...

    @property
    def default_quality(self) -> int:
        """Taken where none is asked for: 1 to 15."""
        ...

    @property
    def hyper(self) -> ranges.RangeModel | None:
        """What the coder `range` needs; None: it cannot be used."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent. Raises ManifoldError for a size it cannot take."""
        ...

    def analyse(self, rgb: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) to latents, float32 (B, C, h, w)."""
        ...

    def synthesise(self, latents: Tensor, width: int, height: int) -> Iterable[np.ndarray]:
        """Latents (B, C, h, w) to pictures, uint8 (height, width, 3) each, in that order."""
        ...

    def gain(self, quality: int) -> Tensor:
        """Quantiser steps per unit of latent, (C,), above 0: a symbol is latent * gain, rounded. Raises ManifoldError for
        a quality it has not."""
        ...

    def inverse(self, quality: int) -> Tensor:
        """Latent per quantiser step, (C,), on the device of the latents that `synthesise` takes: 1 / gain, or a little less,
        as most latents lie nearer to zero."""
        ...

    def zero_margin(self, quality: int) -> Tensor | None:
        """How far beyond half a step from zero the encoder still takes a latent for zero, in steps (C,); None: no farther."""
        ...

    def tables(self, quality: int) -> CodeTables:
        """The code tables for symbols of this quality, the same at both ends: made once, by `mcode.coders.CodeTables.fit` of
        symbols and deltas as the model gives them, and kept as bytes. Raises ManifoldError for a quality it has not."""
        ...


Refine = Callable[[np.ndarray, "Tensor", np.ndarray, "np.ndarray | None", int], np.ndarray]
"""(rgb, latent, symbols, the symbols they are coded against or None, quality) to symbols."""


class Encoder:
    """Frames of one size to packets, one for each keyframe.

    Every n-th frame is a keyframe, and the last one. At a cut the frame before it and the one after it are keyframes too,
    since nothing lies between two scenes. n = 1 is the image codec. Frames whose three colours are alike from a refresh or a
    cut on are sent as grey ones; the first with colour is sent whole. With rate_kbps a cut that comes while that of before is
    not paid for is none.

    width, height: of the frames pushed. n: keyframe interval, 1..65535. coder: "huffman"; "fixed", which bears bit errors;
    "range", which takes the fewest bits, of models with a hyperprior. quality: 1 to as many as the model has, at most 15; None
    for its own default. refresh_s: the first keyframe after this time is sent whole, so that decoding can start there; 0:
    every one, infinity: the first alone. slices: parts of a keyframe that decode alone, 1..255. display: (width, height) that
    a decoder shows, when another. cuts: look for cuts. adaptive: n is the most, keyframes come sooner where what lies between
    them is not on the line between their latents (see BEND). rate_kbps: n is the most, keyframes come as soon as this rate has
    paid for them (with adaptive: where it has, those that are wanted); packet_bytes: what each of them costs beside its sample,
    about, where `settle` tells what it was. dead_zone: see DEAD_ZONE; of deltas. refine: gives better symbols for a keyframe,
    at leisure (`mcode.refine.Refiner`).

    Raises ArgumentError (a ValueError) for values outside these, TypeError for a model that is none, ManifoldError for a size
    or quality that the model has not, InputError for `range` without a hyperprior.
    """

    def __init__(
        self,
        model: Model,
        width: int,
        height: int,
        *,
        n: int = 4,
        coder: str = "huffman",
        quality: int | None = None,
        refresh_s: float = 10.0,
        slices: int = 1,
        display: tuple[int, int] | None = None,
        cuts: bool = True,
        adaptive: bool = False,
        rate_kbps: float | None = None,
        packet_bytes: float = 0.0,
        dead_zone: float = DEAD_ZONE,
        refine: Refine | None = None,
    ) -> None:
        manifold_id = _checked_id(model)
        n, slices = _integer("n", n, 65_535), _integer("slices", slices, 255)
        width, height = _integer("width", width, 65_535), _integer("height", height, 65_535)
        shown = _pair("display", (width, height) if display is None else display)
        rate_kbps = None if rate_kbps is None else _rate(rate_kbps)
        if not 0 <= packet_bytes < math.inf:
            raise ArgumentError(f"packet_bytes is {packet_bytes}; it is 0 bytes or more, and finite")
        if not dead_zone >= 0:
            raise ArgumentError(f"dead_zone is {dead_zone}; it is 0 steps or more")
        if not refresh_s >= 0:
            raise ArgumentError(f"refresh_s is {refresh_s}; the time between refreshes is 0 s or more")
        if coder not in CODERS:
            raise ArgumentError(f"coder {coder!r} is not one of {', '.join(CODERS)}")
        if coder == "range" and model.hyper is None:
            name = getattr(model, "name", model.id)
            raise InputError(f"--coder range: manifold {name} has no hyperprior; its coders are huffman and fixed")
        quality = model.default_quality if quality is None else _integer("quality", quality, MOST_QUALITIES)
        self.model, self.width, self.height = model, width, height
        self.tables = model.tables(quality)
        self.cuts, self.adaptive, self.dead_zone, self.refine = cuts, adaptive and n > 1, dead_zone, refine
        self._budget = _Budget(rate_kbps, packet_bytes) if rate_kbps is not None and n > 1 else None
        self.refresh_ticks = round(min(refresh_s, _NEVER_S) * TICKS_PER_S)
        self.header = StreamHeader(
            manifold_id=manifold_id,
            width=width,
            height=height,
            display_width=shown[0],
            display_height=shown[1],
            n=n,
            coder=coder,
            quality=quality,
            slices=slices,
        )
        self.shape = model.latent_shape(width, height)
        self._symbols: np.ndarray | None = None
        self._waiting: list[int] = []  # pts of the frames since the last keyframe
        self._newest: Frame | None = None  # the last of them
        self._last_pts = self._last_refresh = 0
        self._thumbnail: np.ndarray | None = None
        self._line: _Line | None = None  # from the last keyframe
        self._lost, self._lost_at = 0.0, 0  # mean squared error of a keyframe at most a second old, and its pts
        self._want_refresh = False
        self._all_grey = True  # the frames since the last keyframe

    def request_refresh(self) -> None:
        """The next keyframe will be sent whole (a receiver asked for it, or joins)."""
        self._want_refresh = True

    def settle(self, sent_bytes: float) -> None:
        """The keyframes since the last call took so many bytes, all told: what is more than rate_kbps has counted, or less, is
        made up for."""
        if self._budget is not None:
            self._budget.settle(sent_bytes)

    def change_rate(self, rate_kbps: float) -> None:
        """Another rate from now on, for an encoder with one: what is saved and what is owed stay. Raises ArgumentError."""
        if self._budget is not None:
            self._budget.change(_rate(rate_kbps))

    def push(self, frame: Frame) -> list[Packet]:
        """The packets this frame completes: none, one, or two at a cut. Raises ValueError for a frame of another size, and for
        one whose time is not after the last one's."""
        if (frame.width, frame.height) != (self.width, self.height):
            raise ValueError(f"{frame} pushed to an encoder of {self.width}x{self.height}")
        before = self._waiting[-1] if self._waiting else self._last_pts
        if self._symbols is not None and frame.pts <= before:
            raise ValueError(f"pts is {frame.pts}; times rise, and the frame before is at {before}")
        cut = self._is_cut(frame) and (self._budget is None or self._budget.bears_cut(frame.pts))
        luma = _small_luma(frame.rgb) if self.adaptive else None
        bends = luma is not None and self._line is not None and self._line.error(frame.pts, luma) > BEND * self._lost
        if bends and self._budget is not None:
            bends = self._budget.pays(before)
        packets = self.flush() if cut or bends else []
        self._waiting.append(frame.pts)
        self._all_grey = self._all_grey and _is_grey(frame.rgb)
        paid = self._budget is not None and not self.adaptive and self._budget.pays(frame.pts)
        if cut or self._symbols is None or len(self._waiting) == self.header.n or paid:
            packets.append(self._keyframe(frame, cut))
            if cut and self._budget is not None:
                self._budget.note_cut(frame.pts, sum(len(packet.to_sample(self.header.n)) for packet in packets), len(packets))
        else:
            self._newest = Frame(frame.rgb.copy(), frame.pts)  # its buffer may be used again before it is encoded
            if luma is not None and self._line is not None:
                self._line.add(frame.pts, luma)
        return packets

    def flush(self) -> list[Packet]:
        """The last frame becomes a keyframe, so that every frame pushed comes back."""
        if self._newest is None:
            return []
        return [self._keyframe(self._newest)]

    def _is_cut(self, frame: Frame) -> bool:
        """Whether a cut lies between the frame before and this one."""
        if self.header.n == 1 or not self.cuts:
            return False
        thumbnail = cv2.resize(frame.rgb, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumbnail = self._thumbnail, thumbnail
        return before is not None and float(np.abs(thumbnail - before).mean()) > CUT_THRESHOLD

    def _keyframe(self, frame: Frame, cut: bool = False) -> Packet:
        """Encodes `frame`, the last of those waiting, and starts a new gap."""
        times, self._waiting, self._newest = self._waiting, [], None
        latent = self.model.analyse(frame.rgb[None])[0]
        quality = self.header.quality
        symbols = quantise(latent, self.model.gain(quality), self.model.zero_margin(quality))
        grey, self._all_grey = self._all_grey, True
        refresh = self._symbols is None or self._want_refresh or frame.pts - self._last_refresh >= self.refresh_ticks
        if grey != self.header.grey and (refresh or cut or not grey):
            refresh, self.header = True, replace(self.header, grey=grey)
        if not refresh and self.header.coder != "fixed":
            symbols = self._held(latent, symbols)
        if self.refine is not None:
            base = None if refresh or self.header.coder == "fixed" else self._symbols
            symbols = self.refine(frame.rgb, latent, symbols, base, quality)
        if self.header.coder == "fixed":
            symbols = fixed.clip(symbols, self.tables)
            parts = [fixed.encode(part, self.tables) for part in slices.split(symbols, self.header.slices)]
        elif self.header.coder == "range":
            assert self.model.hyper is not None
            previous = None if refresh else self._symbols
            parts = ranges.encode(symbols, previous, self.header.slices, self.header.quality, self.model.hyper)
        else:
            delta = None if refresh or self._symbols is None else symbols - self._symbols
            parts = self._huffman(symbols, delta)
        packet = Packet(
            pts=frame.pts,
            steps=len(times),
            times=None if _even(self._last_pts, times) else tuple(frame.pts - t for t in times[:-1]),
            header=self.header if refresh else None,
            slices=tuple(parts),
        )
        if refresh:
            self._last_refresh, self._want_refresh = frame.pts, False
        if self.adaptive:
            self._line = _Line(frame.pts, _small_luma(frame.rgb))
            if refresh or cut or frame.pts - self._lost_at >= TICKS_PER_S:
                self._lost, self._lost_at = self._error(frame.rgb, symbols), frame.pts
        if self._budget is not None:
            self._budget.spend(frame.pts, len(packet.to_sample(self.header.n)), refresh)
        self._symbols, self._last_pts = symbols, frame.pts
        return packet

    def _held(self, latent: Tensor, symbols: np.ndarray) -> np.ndarray:
        """The symbols, but the last keyframe's where the latent lies within the dead zone around them."""
        assert self._symbols is not None
        scaled = (latent.float() * self.model.gain(self.header.quality).view(-1, 1, 1)).cpu()
        before, fresh = (torch.from_numpy(part) for part in (self._symbols, symbols))
        return hold(scaled, before, fresh, self.dead_zone).numpy()

    def _error(self, rgb: np.ndarray, symbols: np.ndarray) -> float:
        """Mean squared error of what a decoder shows of the symbols."""
        latent = dequantise(symbols, self.model.inverse(self.header.quality))
        (shown,) = self.model.synthesise(latent[None], self.width, self.height)
        return max(_ROUNDING, float(np.square(shown.astype(np.float32) - rgb).mean()))

    def _huffman(self, symbols: np.ndarray, delta: np.ndarray | None) -> list[bytes]:
        whole = slices.split(symbols, self.header.slices)
        deltas = slices.split(delta, self.header.slices) if delta is not None else [None] * len(whole)
        return [huffman.encode(w, d, self.tables) for w, d in zip(whole, deltas, strict=True)]


class Decoder:
    """Packets to frames. What is damaged or missing costs picture quality, never the stream.

    model: the manifold the stream names (`ManifoldError` otherwise; TypeError for what is none). header: of the stream, where
    it is known beforehand. Counters: damaged_slices (known only of `range`),
    missing_slices and broken_deltas (deltas that came without the keyframe they refer to). most_gap_pixels: one packet makes
    no more frames than these (and those lost before it as many again); None: as many as it says.
    """

    def __init__(self, model: Model, header: StreamHeader | None = None, *, most_gap_pixels: int | None = None) -> None:
        _checked_id(model)
        self.model, self._most_gap_pixels = model, most_gap_pixels
        self.header: StreamHeader | None = None
        self.damaged_slices = self.missing_slices = self.broken_deltas = 0
        self._symbols: np.ndarray | None = None
        self._latent: Tensor | None = None
        self._strange: set[int] = set()  # slices of `range` whose symbols are not those the encoder had
        self._pts = self._frame_ticks = 0
        if header is not None:
            self._start(header)

    def push(self, packet: Packet, *, after_loss: bool = False, wanted: Callable[[int], bool] | None = None) -> Iterator[Frame]:
        """The frames after the previous keyframe up to this one, times rising; none before the first refresh.

        after_loss: keyframes before this one were lost, so that `steps` does not reach back to the last one received; the
        gap is then filled at the pace of time alone. State changes at once; frames are synthesised as they are taken, later or
        on another thread if need be.
        wanted: asked of each frame's time when its batch is due; those not wanted are not synthesised, but for the last.
        Raises WireError for a packet whose slices do not fit the header.
        """
        if packet.header is not None:
            self._start(packet.header)
        if self.header is None:
            return iter(())
        symbols = self._decode(packet, after_loss)
        latent = dequantise(symbols, self.model.inverse(self.header.quality))
        before, since = self._latent, self._pts
        self._symbols, self._latent, self._pts = symbols, latent, packet.pts
        if before is None or before.shape != latent.shape:
            return self._synthesise(self.header, latent, latent, [packet.pts], torch.ones(1), wanted)
        times = self._times(packet, since, after_loss)
        span = max(1, packet.pts - since)
        positions = torch.tensor([(t - since) / span for t in times], dtype=torch.float32).clamp_(0, 1)
        positions[-1] = 1  # the keyframe itself, also where the clock jumped back
        return self._synthesise(self.header, before, latent, times, positions, wanted)

    def _start(self, header: StreamHeader) -> None:
        if self.header == header:
            return
        if header.manifold_id.hex() != self.model.id:
            raise ManifoldError(f"this stream needs manifold {header.manifold_id.hex()}, not {self.model.id}")
        if header.display_width * header.display_height > LARGEST_PICTURE:
            raise WireError(too_large(header.display_width, header.display_height))
        if header.coder not in CODERS:
            raise WireError(f"coder {header.coder} is not known")
        if header.coder == "range" and self.model.hyper is None:
            raise WireError(f"the stream is coded by range, for which manifold {self.model.id} has no hyperprior")
        try:
            shape = self.model.latent_shape(header.width, header.height)
            self.model.tables(header.quality)
        except ManifoldError as error:
            raise WireError(str(error)) from error
        if self._symbols is not None and self._symbols.shape != shape:
            self._symbols = self._latent = None
        if self.header is not None and self.header.slices != header.slices:
            self._strange = set()
        self.header, self._shape = header, shape

    def _decode(self, packet: Packet, after_loss: bool) -> np.ndarray:
        """Symbols (C, h, w) of a packet. A missing slice keeps the previous keyframe's symbols at its positions."""
        assert self.header is not None
        _, h, w = self._shape
        count = self.header.slices
        if len(packet.slices) != count:
            raise WireError(f"{len(packet.slices)} slices where the header says {count}")
        tables = self.model.tables(self.header.quality)
        previous = [None] * count if self._symbols is None else slices.split(self._symbols, count)
        parts = []
        for index, data in enumerate(packet.slices):
            positions = len(slices.positions(index, count, h, w))
            if data is None:
                self.missing_slices += 1
                self._strange.add(index)
                kept = previous[index]
                parts.append(kept if kept is not None else fixed.decode(b"", positions, tables))
            elif self.header.coder == "fixed":
                parts.append(fixed.decode(data, positions, tables))
            elif self.header.coder == "range":
                parts.append(self._range(data, index, previous[index], after_loss))
            else:
                decoded = huffman.decode(data, previous[index], positions, tables)
                self.broken_deltas += decoded.needs_previous
                parts.append(decoded.symbols)
        return slices.join(parts, h, w)

    def _range(self, data: bytes, index: int, previous: np.ndarray | None, after_loss: bool) -> np.ndarray:
        """Symbols of a slice of `range`. Damage makes noise of it, and so does a delta around other symbols than the
        encoder's: then what was there stays, until the slice comes whole again."""
        assert self.header is not None and self.model.hyper is not None
        if after_loss:
            self._strange.add(index)
        known = None if index in self._strange else previous
        _, h, w = self._shape
        found = ranges.decode(data, known, index, self.header.slices, (h, w), self.header.quality, self.model.hyper)
        self.broken_deltas += found.needs_previous
        self.damaged_slices += found.damaged
        if not found.needs_previous and not found.damaged:
            self._strange.discard(index)
            return found.symbols
        self._strange.add(index)
        return found.symbols if previous is None else previous

    def _times(self, packet: Packet, since: int, after_loss: bool) -> list[int]:
        """Times of the frames from the previous keyframe (excluded) to this one (included), rising.

        A packet tells the last `steps` of them. After a loss those of the lost keyframes stand before, at the pace of the
        latest gap that was whole. Steps that no encoder makes of this gap are cut, times that do not fit it are left out:
        both are damage. A time that does not rise, or a loss beyond LONGEST_FILLER_S, is a start without a gap.
        """
        gap = packet.pts - since
        steps = self._plausible_steps(packet.steps, gap)
        filled = gap - steps * self._frame_ticks if after_loss and self._frame_ticks else 0
        if gap < 1 or filled > LONGEST_FILLER_S * TICKS_PER_S:
            return [packet.pts]
        middle, before = since, []
        if filled > 0:
            # In the middle there is room for the steps, and before it for what is lost.
            lost = min(round(gap / self._frame_ticks) - steps, self._most_frames(filled), gap - steps)
            middle = since + gap * lost // (lost + steps)
            before = _spread(since, middle, lost)
        elif not (after_loss and self._frame_ticks):
            self._frame_ticks = gap // steps
        times = packet.times if steps == packet.steps else None
        if times and times[0] < gap:
            shown = [packet.pts - t for t in times]
            return [t for t in before if t < shown[0]] + shown + [packet.pts]
        return before + _spread(middle, packet.pts, steps)

    def _plausible_steps(self, steps: int, gap: int) -> int:
        """At most n, each a tick later than the one before; of a live stream, where others wait, no more than _most_frames."""
        assert self.header is not None
        most = gap if self._most_gap_pixels is None else self._most_frames(gap)
        return max(1, min(steps, self.header.n, gap, most))

    def _most_frames(self, ticks: int) -> int:
        """As filler, or in a live stream: many frames are no less than a millisecond apart."""
        assert self.header is not None
        most = max(_MOST_AT_ONCE, ticks // _LEAST_TICKS)
        if self._most_gap_pixels is None:
            return most
        return min(most, max(1, self._most_gap_pixels // (self.header.width * self.header.height)))

    def _synthesise(
        self,
        header: StreamHeader,
        a: Tensor,
        b: Tensor,
        times: list[int],
        positions: Tensor,
        wanted: Callable[[int], bool] | None,
    ) -> Iterator[Frame]:
        width, height = header.width, header.height
        batch = frames_at_once(width, height)
        for start in range(0, len(times), batch):
            chosen = list(range(start, min(start + batch, len(times))))
            if wanted is not None:
                chosen = [i for i in chosen if i == len(times) - 1 or wanted(times[i])]
            if not chosen:
                continue
            latents = interpolate(a, b, positions[chosen])
            for rgb, i in zip(self.model.synthesise(latents, width, height), chosen, strict=True):
                yield Frame(_without_colour(rgb) if header.grey else rgb, times[i])


def _checked_id(model: Model) -> bytes:
    """The model's id. Raises TypeError for what is no model, ValueError for an id that streams cannot bear."""
    found = getattr(model, "id", None)
    if found is None:
        raise TypeError(f"{model!r} is no model; load a manifold by its name or file first, as mcode.load('general')")
    if not re.fullmatch("[0-9a-f]{16}", str(found)):
        raise ValueError(f"a model's id is 16 hex digits (0-9, a-f), not {found!r}")
    return bytes.fromhex(found)


def _integer(name: str, value: int, most: int) -> int:
    """Raises ArgumentError for what is no whole number from 1 to most."""
    try:
        if 1 <= (found := operator.index(value)) <= most:
            return found
    except TypeError:
        pass
    raise ArgumentError(f"{name} is {value!r}; it is a whole number from 1 to {most}")


def _pair(name: str, value: tuple[int, int]) -> tuple[int, int]:
    """Raises ArgumentError for what is no (width, height)."""
    try:
        width, height = value
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} is {value!r}; it is (width, height)") from None
    return _integer(name, width, 65_535), _integer(name, height, 65_535)


def frames_at_once(width: int, height: int) -> int:
    """How many frames between keyframes are synthesised in one batch: memory stays bounded. 64 at most, as tiny ones cost the
    networks more than their pixels."""
    return max(1, min(_MOST_AT_ONCE, BATCH_PIXELS // (width * height)))


class _Line:
    """How far frames are off the line from a keyframe to any later frame: sums over them, of as little memory as three."""

    def __init__(self, pts: int, luma: np.ndarray) -> None:
        self._pts, self._first = pts, luma
        self._squares = self._ages = 0.0  # sums of the squares of what has changed, and of the ages in seconds
        self._changes = np.zeros(luma.shape)  # sum of the changes, each times its age

    def add(self, pts: int, luma: np.ndarray) -> None:
        """A frame in between. luma: float32 (h, w)."""
        age, change = (pts - self._pts) / TICKS_PER_S, luma - self._first
        self._squares += float(np.vdot(change, change))
        self._ages += age * age
        self._changes += age * change

    def error(self, pts: int, luma: np.ndarray) -> float:
        """Sum of the mean squared errors of the frames in between, were they on the line to this one."""
        age, change = (pts - self._pts) / TICKS_PER_S, (luma - self._first).astype(np.float64)
        crossed, end = float(np.vdot(self._changes, change)) / age, float(np.vdot(change, change)) / age**2
        return (self._squares - 2 * crossed + self._ages * end) / luma.size


class _Budget:
    """Bytes that a rate brings with time and keyframes take. What is not spent is saved for two seconds. What a whole keyframe
    takes beyond a usual one, and what all took beyond what was counted, is paid back over the next two; a keyframe that came at
    n, unpaid, before all others."""

    _SPREAD_TICKS = 2 * TICKS_PER_S

    def __init__(self, rate_kbps: float, packet_bytes: float) -> None:
        self.change(rate_kbps)
        self._packet_bytes = packet_bytes
        self._left = self._loan = 0.0  # bytes; the loan is paid back from what comes in
        self._counted = 0.0  # of keyframes since it was settled
        self._price = 0.0  # of one more keyframe, as the latest were
        self._has_price = False  # else it is a guess
        self._pts: int | None = None
        self._cuts, self._cut_pts = 0.0, 0  # bytes that cuts took, but for what the rate has brought since

    def pays(self, pts: int) -> bool:
        """Whether a keyframe at pts is paid for."""
        return self._pts is not None and self._at(pts)[0] >= self._price

    def bears_cut(self, pts: int) -> bool:
        """Whether the rate has paid for the cuts before, but for a keyframe: the two of this one are then lent."""
        return self._cuts_at(pts) <= self._price

    def note_cut(self, pts: int, sample_bytes: int, packets: int) -> None:
        """The keyframes of a cut, which were spent."""
        self._cuts, self._cut_pts = max(0.0, self._cuts_at(pts)) + sample_bytes + packets * self._packet_bytes, pts

    def _cuts_at(self, pts: int) -> float:
        return self._cuts - (pts - self._cut_pts) * self._bytes_per_tick

    def spend(self, pts: int, sample_bytes: int, refresh: bool) -> None:
        if self._pts is not None:
            self._left, self._loan = self._at(pts)
        self._pts, spent = pts, sample_bytes + self._packet_bytes
        self._counted += spent
        if refresh and not self._has_price:
            self._price = self._packet_bytes + sample_bytes / 3
        elif not refresh:
            self._price += (spent - self._price) / (4 if self._has_price else 1)
            self._has_price = True
        now = min(spent, self._price) if refresh else spent
        self._left, self._loan = self._left - now, self._loan + spent - now

    def change(self, rate_kbps: float) -> None:
        self._bytes_per_tick = rate_kbps * 125 / TICKS_PER_S

    def settle(self, sent_bytes: float) -> None:
        self._loan, self._counted = self._loan + sent_bytes - self._counted, 0.0

    def _at(self, pts: int) -> tuple[float, float]:
        """What is left at pts, and the loan."""
        assert self._pts is not None
        ticks = pts - self._pts
        back = self._loan * min(1.0, ticks / self._SPREAD_TICKS)
        saved = max(self._SPREAD_TICKS * self._bytes_per_tick, self._price)
        return min(self._left + ticks * self._bytes_per_tick - back, saved), self._loan - back


def _rate(kbps: float) -> float:
    if not 0 < kbps < math.inf:
        raise ArgumentError(f"rate_kbps is {kbps}; a rate is above 0 and finite")
    return kbps


def _small_luma(rgb: np.ndarray) -> np.ndarray:
    """Grey levels, float32, of at most about _LUMA_PIXELS."""
    height, width, _ = rgb.shape
    scale = min(1.0, math.sqrt(_LUMA_PIXELS / (width * height)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA).astype(np.float32)


def _is_grey(rgb: np.ndarray) -> bool:
    """Whether the three colours of every pixel are alike. Looks at a few rows first: pictures with colour show it there."""
    for part in (rgb[:: max(1, len(rgb) // 8)], rgb):
        red, green, blue = cv2.split(part)
        if max(cv2.norm(red, green, cv2.NORM_INF), cv2.norm(green, blue, cv2.NORM_INF)) > _GREY_TOLERANCE:
            return False
    return True


def _without_colour(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.transform(rgb, np.full((1, 3), 1 / 3)), cv2.COLOR_GRAY2RGB)


def _even(since: int, times: list[int]) -> bool:
    """Whether times lie within a millisecond of even spacing between `since` and the last of them."""
    return all(abs(a - b) <= _EVEN_TOLERANCE for a, b in zip(_spread(since, times[-1], len(times)), times, strict=True))


def _spread(since: int, until: int, steps: int) -> list[int]:
    """Times of `steps` evenly spaced frames, since excluded, until included."""
    return [since + (until - since) * (i + 1) // steps for i in range(steps)]
