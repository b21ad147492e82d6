"""The live comparison: one feed through MCode and through H.264, the same channel damaging both, at equal rate. No Qt.

    feed -> original lane ------------------------------------------> shown together, one latency later
         -> MCode encoder -> link (channel) -> MCode decoder -> lane
         -> H.264 encoder -> link (channel) -> H.264 decoder -> lane

MCode's networks run in a process of their own (networks.py); coding, the link and H.264 in threads of this one. They
keep one clock: it paces the feed, delays the datagrams and shows the frames, so pause and speed act on all.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Generic

import mcode.manifold
from mcode.baseline import BaselineEncoder, CrfFollower, EncodedPacket, coder_named
from mcode.codec import Encoder, Model
from mcode.errors import InputError, ManifoldError, McodeError
from mcode.evaluation.metrics import luma, psnr, ssim
from mcode.frame import TICKS_PER_S, Frame
from mcode.packet import Packet
from mcode.receive import PLI_GAP_S
from mcode.rtp.h264 import AccessUnit
from mcode.rtp.payload import BESIDE_SAMPLE_BYTES, Received
from mcode.transcode import geometry

from .clock import Clock
from .counters import RateMeter, smoothed
from .feeds import Feed
from .lanes import Lane
from .link import BaselineLink, Got, Link, MCodeLink, Sent, cut_to, unit_pts
from .session import CHANNEL_FIELDS, Rows, Session, Settings, every, qualities, quality_with

REFRESH_S = 5.0
"""Both codecs send a picture whole this often: where the one heals, the other does too."""
MOST_PIXELS = 640 * 368
"""Live pictures are at most about this large: what two cores encode and decode in time."""
MARGIN_S = 0.12
MOST_LATENESS_S = 0.6
INBOX = 8
SPARE_S = 0.03
"""Frames are there at least so long before they are due."""
MEASURE_S, POLL_S = 0.15, 0.008
MEASURE_SHARE = 0.03
"""Of a core's time, at most, goes into PSNR and SSIM."""
RETRY_S = 0.5

Load = Callable[[str | None], Model]


class Compare(Session):
    """Lanes: MCode, the baseline ("h264", "h265", or None for none) and the original. load: a manifold by name."""

    adjustable = frozenset({"n", "adaptive", "rate_kbps", "quality", "coder", "manifold", "bit_error_rate", "loss", "delay_ms"})
    channel_note = "Both lanes meet the same seeded damage. Headers are protected in both."

    def __init__(
        self,
        feed: Feed,
        *,
        manifold: str | None = "general",
        baseline: str | None = "h264",
        device: str = "auto",
        settings: Settings | None = None,
        load: Load | None = None,
        clock: Clock | None = None,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        settings = settings or Settings(manifold=manifold)
        lanes = [Lane("mcode", "MCode")]
        if baseline:
            lanes.append(Lane("baseline", coder_named(baseline).label))
        lanes.append(Lane("original", "Original"))
        super().__init__(feed.title, lanes, settings, clock)
        self.feed, self.duration_s, self.audio_path = feed, feed.duration_s, feed.audio_path
        self.live, self.loop = feed.live, True
        self.baseline, self.busy = baseline, "Loading the manifold"
        self.coded: tuple[int, int] | None = None
        self.loaded = settings.manifold  # the name by which the manifold in use was asked for
        self._load = load or (lambda name: mcode.manifold.load(name or "general", device))
        self._most_pixels = most_pixels
        for lane in lanes[:-1]:
            lane.counters.bits = RateMeter(now=lambda: self.clock.time_s)
        self._target_s: float | None = 0.0
        self._sought: tuple[int, float] | None = None  # where the last seek's stream ticks begin, and what it looked for
        self._anchors: deque[tuple[int, int]] = deque([(0, 0)], maxlen=16)  # stream ticks where source ticks begin
        self._lateness_s = 0.0
        self._one_step = threading.Event()
        self._complaint: str | None = None  # of a camera, told once
        self._sides: list[_Side[Any, Any]] = []

    # What the window does

    def start(self) -> None:
        self.clock.paused = True
        self._spawn("feed", self._feed)

    def close(self, wait_s: float = 5.0) -> None:
        self._closing.set()
        for side in self._sides:
            side.wake()
        super().close(wait_s)

    @property
    def latency_s(self) -> float:
        """From capture to screen, in all lanes alike: the wait for N frames, the channel, the decoder."""
        s = self.settings
        return (s.n + 1) / self.feed.fps + (s.delay_ms + s.jitter_ms) / 1000 + MARGIN_S + self._lateness_s

    @property
    def due_s(self) -> float:
        return self.clock.time_s - self.latency_s

    @property
    def position_s(self) -> float:
        newest = self.lanes[-1].newest
        return self._in_source(newest.pts) if newest is not None else 0.0

    @property
    def place_s(self) -> float:
        target_s, sought, newest = self._target_s, self._sought, self.lanes[-1].newest
        if target_s is not None:
            return target_s
        if sought is not None and (newest is None or newest.pts < sought[0]):
            return sought[1]
        return self.position_s

    @property
    def jump(self) -> int:
        newest = self.lanes[-1].newest
        return self._anchor(newest.pts)[0] if newest is not None else 0

    def _in_source(self, stream_ticks: int) -> float:
        """Seconds in the source of a moment of the stream, which goes on through seeks and loops."""
        stream, source = self._anchor(stream_ticks)
        return max(0.0, (stream_ticks - stream + source) / TICKS_PER_S)

    def _anchor(self, stream_ticks: int) -> tuple[int, int]:
        return next((a for a in reversed(self._anchors.copy()) if a[0] <= stream_ticks), self._anchors[0])

    def seek(self, position_s: float) -> None:
        if self.duration_s is None:
            return
        self._target_s = min(max(0.0, position_s), max(0.0, self.duration_s - 1 / self.feed.fps))
        if self.clock.paused:
            self._one_step.set()

    def step(self, frames: int) -> None:
        self.clock.paused = True
        if frames > 0:
            self.clock.time_s += 1 / self.feed.fps
        else:
            self.seek(self.place_s - 1 / self.feed.fps)

    def follow_sound(self, heard_s: float) -> None:
        shown_s = self._in_source(round(self.due_s * TICKS_PER_S))
        self.clock.follow(self.clock.time_s + heard_s - shown_s)

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        for side in self._sides:
            side.link.configure(settings)

    def stats(self) -> Rows:
        s, c = self.settings, self.lanes[0].counters
        quality = f", quality {quality_with(self.model, s.quality)}" if self.model else ""
        wait_ms = 1000 * s.n / self.feed.fps
        rows = [
            ("Picture", f"{self.coded[0]} × {self.coded[1]}" if self.coded else "–"),
            ("Manifold", f"{getattr(self.model, 'name', '')} {self.model.id[:8]}".strip() if self.model else "–"),
            ("Keyframes", f"{every(s.n, s.adaptive or s.rate_kbps is not None)}, {s.coder}{quality}"),
            ("Source", f"{self.feed.fps:.4g} frames/s"),
        ]
        for lane in self.lanes:
            d = lane.counters
            rows.append((lane.title, f"{d.decoded.per_s:.1f} decoded, {d.shown.per_s:.1f} shown frames/s"))
        rows += [
            ("Dropped", f"{sum(lane.counters.dropped for lane in self.lanes):,} frames"),
            ("Delay", f"{1000 * self.latency_s:.0f} ms"),
            ("  waiting for N", f"{wait_ms:.0f} ms"),
            ("  network", f"{c.network_ms:.0f} ms"),
            ("  decoding", f"{c.decode_ms:.1f} ms"),
        ]
        return rows

    # The threads

    def _feed(self) -> None:
        self.model = self.networks.wrap(self._load(self.settings.manifold))
        most, wanted = qualities(self.model), self.settings.quality
        if wanted is not None and wanted > most:
            name = getattr(self.model, "name", self.model.id)
            self.notices.append(f"{name} has qualities 1 to {most}; {most} is shown instead of {wanted}")
        self._lay_out()
        self._sides = [_MCodeSide(self, self.lanes[0])]
        if self.baseline:
            self._sides.append(_BaselineSide(self, self.lanes[1]))
        for side in self._sides:
            self._spawn(f"{side.lane.name} encoder", side.send_all)
            self._spawn(f"{side.lane.name} decoder", side.receive_all)
            self._spawn(f"{side.lane.name} pictures", side.offer_all)
        self._spawn("meter", self._measure)
        self.busy = None
        self.clock.time_s = 0.0
        self.clock.paused = False
        last_pts, period = -1, round(TICKS_PER_S / self.feed.fps)
        while not self._closing.is_set():
            target_s, self._target_s = self._target_s, None
            start_s = target_s or 0.0
            begin = last_pts + period if last_pts >= 0 else 0
            # A seek or a loop starts at once, whatever time the frames before it were given.
            begin = max(begin, round(self.clock.time_s * TICKS_PER_S))
            self._anchors.append((begin, round(start_s * TICKS_PER_S)))
            self._sought = (begin, start_s) if target_s is not None else self._sought
            came = False
            size, crop = self._size, self._crop
            for frame in self._frames(start_s, size, crop):
                stamped = Frame(frame.rgb, begin + frame.pts)
                if not self._wait_for(stamped.pts):
                    break
                came, last_pts = True, stamped.pts
                self.lanes[-1].offer(stamped)
                for side in self._sides:
                    side.take(stamped)
                if (size, crop) != (self._size, self._crop):  # another manifold, another frame size: go on from here
                    self._target_s = start_s + frame.pts / TICKS_PER_S
                    break
            if self._target_s is None and not self.loop and not self._closing.is_set():
                self._rest(last_pts)
            if not came and self._target_s is None and start_s > 0:
                self._target_s = 0.0
            elif not came and self._target_s is None:
                self._closing.wait(0.2)

    def _frames(self, start_s: float, size: tuple[int, int], crop: tuple[int, int] | None) -> Iterator[Frame]:
        """The feed's; a camera that is unplugged is waited for, and said to be."""
        try:
            for frame in self.feed.frames(start_s, size, crop):
                self._complaint = None
                yield frame
        except InputError as error:
            if not self.live:
                raise
            line = f"{' '.join(str(error).split())} It is waited for."
            if line != self._complaint:
                self.notices.append(line)
            self._complaint = line
            self._closing.wait(RETRY_S)

    def _rest(self, last_pts: int) -> None:
        """The source is at its end and shall not loop: show what is under way, then wait for a seek."""
        while self.due_s < last_pts / TICKS_PER_S and not self._closing.wait(0.02) and self._target_s is None:
            pass
        self.ended = self._target_s is None
        self.clock.paused = self.clock.paused or self.ended
        while self._target_s is None and not self.loop and not self._closing.wait(0.05):
            pass
        self.ended = False

    def _wait_for(self, pts: int) -> bool:
        """Until the clock shows pts; False when the feed shall start elsewhere or end."""
        while self._target_s is None and not self._closing.is_set():
            if self._one_step.is_set():
                # A seek while paused: run on until the new place is on the screen.
                self._one_step.clear()
                self.clock.time_s = max(self.clock.time_s, pts / TICKS_PER_S + self.latency_s)
            left_s = self.clock.wall_until(pts / TICKS_PER_S)
            if left_s <= 0:
                return True
            self._closing.wait(min(left_s, 0.02))
        return False

    def _lay_out(self) -> None:
        """Which part of the source is coded, and how large."""
        width, height = self.feed.size
        scale = min(1.0, math.sqrt(self._most_pixels / (width * height)))
        limit = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)) if scale < 1 else None
        self._size, _, self._crop = geometry((width, height), limit, getattr(self.model, "frame_size", None))
        self.coded = self._size

    def change_manifold(self, name: str | None) -> Model | None:
        """The manifold now wanted, loaded; None, and a notice, where it cannot be."""
        try:
            self.model = self.networks.wrap(self._load(name))
        except McodeError as error:
            self.notices.append(" ".join(str(error).split()))
            return None
        finally:
            self.loaded = name
        self._lay_out()
        return self.model

    def note_ready(self, pts: int, in_s: float = 0.0) -> None:
        """A frame is there to be shown, or would be in_s from now. Keeps the latency as short as the slowest recent frames
        allow."""
        needed_s = self.clock.time_s + in_s - pts / TICKS_PER_S + SPARE_S
        late_s = min(MOST_LATENESS_S, max(0.0, needed_s - (self.latency_s - self._lateness_s)))
        share = 0.5 if late_s > self._lateness_s else 0.02
        if not self.clock.paused:
            self._lateness_s += share * (late_s - self._lateness_s)

    def is_in_time(self, pts: int, in_s: float) -> bool:
        """Whether a frame that is decoded in_s from now can still be shown at its time."""
        return pts / TICKS_PER_S >= self.due_s + in_s * self.clock.speed

    def _measure(self) -> None:
        """PSNR and SSIM of what a viewer sees, a frozen picture included, in a bounded share of the time."""
        seen: tuple[int, ...] = ()
        wait_s = MEASURE_S
        while not self._closing.wait(wait_s):
            serials = tuple(lane.serial for lane in self.lanes)
            shown = [lane.newest for lane in self.lanes]
            reference = shown[-1]
            if serials == seen or reference is None:
                continue
            seen, began_s = serials, time.thread_time()
            grey = luma(reference.rgb)
            for lane, frame in zip(self.lanes[:-1], shown, strict=False):
                if frame is None or frame.rgb.shape != reference.rgb.shape:
                    continue
                lane.counters.psnr_db = psnr(frame.rgb, reference.rgb)
                lane.counters.ssim = ssim(luma(frame.rgb), grey)
            wait_s = max(MEASURE_S, (time.thread_time() - began_s) / MEASURE_SHARE)


class _Side(Generic[Sent, Got]):
    """One codec's two threads: frames into the link, packets out of it onto the lane. cuts: frames may be padded."""

    cuts = False

    def __init__(self, session: Compare, lane: Lane, link: Link[Sent, Got]) -> None:
        self.session, self.lane, self.link = session, lane, link
        self._inbox: deque[Frame] = deque()
        self._came = threading.Condition()
        self._units = threading.Semaphore(2)
        self._under_way: queue.SimpleQueue[tuple[Frame, Iterator[Frame], float]] = queue.SimpleQueue()

    def take(self, frame: Frame) -> None:
        """A frame to encode. A side that is behind loses its oldest one, as a camera would."""
        with self._came:
            if len(self._inbox) >= INBOX:
                self._inbox.popleft()
                self.lane.counters.dropped += 1
            self._inbox.append(frame)
            self._came.notify()

    def wake(self) -> None:
        with self._came:
            self._came.notify_all()

    def send_all(self) -> None:
        closing = self.session._closing
        while not closing.is_set():
            with self._came:
                while not self._inbox and not closing.is_set():
                    self._came.wait(0.2)
                frame = self._inbox.popleft() if self._inbox else None
            if frame is not None:
                self.send(frame)

    def send(self, frame: Frame) -> None:
        for packet in self.encode(frame):
            size = self.link.send(packet, self.session.clock.time_s)
            self.lane.counters.bits.add(8 * size)

    def receive_all(self) -> None:
        closing, clock, counters = self.session._closing, self.session.clock, self.lane.counters
        while not closing.wait(POLL_S):
            units = self.link.receive(clock.time_s)
            for index, unit in enumerate(units):
                started = time.perf_counter()
                sent_s = self.link.sent_s(unit_pts(unit))
                if sent_s is not None:
                    counters.network_ms = smoothed(counters.network_ms, 1000 * (clock.time_s - sent_s))
                frames = self.decode(unit)
                if index < len(units) - 1 and unit_pts(unit) / TICKS_PER_S < self.session.due_s:
                    # Behind: its time is over and the next is at hand. It is decoded, as that needs it, and not synthesised.
                    counters.dropped += unit.packet.steps if isinstance(unit, Received) else 1
                    continue
                self.begin(frames, started)
                if closing.is_set():
                    return
                if self.link.lane.error is not None:
                    self.session.notices.append(" ".join(str(self.link.lane.error).split()))
            self.link.count(counters)

    def begin(self, frames: Iterator[Frame], started: float) -> bool:
        """Whether a unit has frames. They are begun, and offer_all goes on with them: so the next unit's begin before the
        last of these is done, and no core waits between two. Two units are under way at most."""
        while not self._units.acquire(timeout=0.2):
            if self.session._closing.is_set():
                return False
        first = next(frames, None)
        if first is None:
            self._units.release()
            return False
        self._under_way.put((first, frames, started))
        return True

    def offer_all(self) -> None:
        closing, counters = self.session._closing, self.lane.counters
        width, height = 1, 1
        while not closing.is_set():
            try:
                first, frames, started = self._under_way.get(timeout=0.2)
            except queue.Empty:
                continue
            for frame in itertools.chain((first,), frames):
                width, height = self.session.coded or (width, height)
                self.lane.offer(cut_to(frame, width, height) if self.cuts else frame)
                self.session.note_ready(frame.pts)
                self.offered()
                if closing.is_set():
                    return
            self._units.release()
            counters.decode_ms = smoothed(counters.decode_ms, 1000 * (time.perf_counter() - started))

    def offered(self) -> None:
        """A frame is on its lane."""

    def encode(self, frame: Frame) -> list[Sent]:
        raise NotImplementedError

    def decode(self, unit: Got) -> Iterator[Frame]:
        """Frames as they are decoded."""
        raise NotImplementedError


class _MCodeSide(_Side[Packet, Received]):
    link: MCodeLink

    def __init__(self, session: Compare, lane: Lane) -> None:
        super().__init__(session, lane, MCodeLink(session.settings, self._find))
        self._models: dict[str, Model] = {session.model.id: session.model}
        self._encoder: Encoder | None = None
        self._made: Settings | None = None
        self._asked_s = 0.0
        self._pace_s = 0.0  # from one frame synthesised to the next, of late
        self._offered_s = 0.0
        self._pending = 0  # frames begun, and not yet on the lane
        self._counting = threading.Lock()

    def encode(self, frame: Frame) -> list[Packet]:
        spared: dict[str, Any] = dict.fromkeys(CHANNEL_FIELDS, 0)  # which the encoder does not see
        wanted = self._possible(replace(self.session.settings, **spared))
        packets: list[Packet] = []
        encoder = self._encoder
        if encoder is not None and self._made is not None and wanted.rate_kbps and self._made.rate_kbps:
            encoder.change_rate(wanted.rate_kbps)  # as a slider is moved: a new one would begin with a refresh, owing nothing
            self._made = replace(self._made, rate_kbps=wanted.rate_kbps)
        if encoder is None or wanted != self._made or (frame.width, frame.height) != (encoder.width, encoder.height):
            if encoder is not None:
                packets += encoder.flush()
            encoder = self._encoder = self._renewed(wanted, frame)
            self._made = wanted
        if encoder is not None and self.link.lane.wants_refresh and frame.pts_s - self._asked_s > PLI_GAP_S:
            self._asked_s = frame.pts_s  # as by RTCP PLI
            encoder.request_refresh()
            return packets + encoder.push(frame) + encoder.flush()
        return packets + encoder.push(frame) if encoder else packets

    def decode(self, unit: Received) -> Iterator[Frame]:
        """Of frames that come too late those are left out that would make the following late, too: fewer, each at its time."""
        return self.link.lane.decode(unit, self._wanted)

    def begin(self, frames: Iterator[Frame], started: float) -> bool:
        with self._counting:
            if not self._pending:
                self._offered_s = time.perf_counter()
            self._pending += 1  # the keyframe, which is always made
        found = super().begin(frames, started)
        if not found:
            with self._counting:
                self._pending = max(0, self._pending - 1)
        return found

    def offered(self) -> None:
        now_s = time.perf_counter()
        with self._counting:
            alone = self._pending <= 1
            self._pending = max(0, self._pending - 1)
            took_s = now_s - self._offered_s
            self._offered_s = now_s
        if alone:  # there was nothing beside it to use the other cores
            took_s = min(took_s, self._pace_s or took_s)
        self._pace_s = smoothed(self._pace_s, took_s, 0.1)

    def _wanted(self, pts: int) -> bool:
        jobs = self.session.networks.jobs
        in_s = self._pace_s * (self._pending + jobs / 2)
        in_time = self.session.clock.paused or self.session.is_in_time(pts, in_s)
        if in_time:
            with self._counting:
                self._pending += 1
        else:
            self.lane.counters.dropped += 1
            self.session.note_ready(pts, in_s)
        return in_time

    def _renewed(self, wanted: Settings, frame: Frame) -> Encoder | None:
        model = self.session.model
        if self._made is not None and wanted.manifold != self._made.manifold:
            model = self.session.change_manifold(wanted.manifold) or model
            self._models = {**dict(list(self._models.items())[-3:]), model.id: model}
        size = frame.width, frame.height
        try:
            shape = model.latent_shape(*size)
        except ManifoldError:
            return None  # frames of the new size are under way
        slices = 1 if shape[1] * shape[2] < 64 else 4
        coder = "huffman" if wanted.coder == "range" and model.hyper is None else wanted.coder
        return Encoder(
            model,
            *size,
            n=wanted.n,
            adaptive=wanted.adaptive,
            rate_kbps=wanted.rate_kbps,
            packet_bytes=BESIDE_SAMPLE_BYTES,
            coder=coder,
            quality=quality_with(model, wanted.quality),
            refresh_s=REFRESH_S,
            slices=slices,
        )

    def _possible(self, wanted: Settings) -> Settings:
        """The manifold last chosen may lack what the coder needs: then another, which the user is told."""
        session = self.session
        if wanted.coder != "range" or session.model.hyper is not None or wanted.manifold != session.loaded:
            return wanted
        name = getattr(session.model, "name", session.model.id)
        session.notices.append(f"{name} has no hyperprior, which the range coder needs; Huffman codes instead")
        session.settings = replace(session.settings, coder="huffman")
        return replace(wanted, coder="huffman")

    def _find(self, manifold_id: bytes) -> Model:
        model = self._models.get(manifold_id.hex())
        if model is None:
            raise ManifoldError(f"the manifold {manifold_id.hex()} is gone")
        return model


class _BaselineSide(_Side[EncodedPacket, AccessUnit]):
    """Its rate follows MCode's on the wire, by constant rate factor; it may wait for as many frames as MCode does."""

    link: BaselineLink
    cuts = True

    def __init__(self, session: Compare, lane: Lane) -> None:
        super().__init__(session, lane, BaselineLink(session.settings, session.baseline or "h264"))
        self._encoder: BaselineEncoder | None = None
        self._follower = CrfFollower(session.baseline or "h264", REFRESH_S)
        self._crf = self._n = 0.0
        self._followed = RateMeter(REFRESH_S, lambda: session.clock.time_s)  # MCode's bits, over as long as a look
        self._followed_bytes = 0

    def encode(self, frame: Frame) -> list[EncodedPacket]:
        encoder, n, now_s = self._encoder, self.session.settings.n, frame.pts_s
        followed_bytes = self.session._sides[0].link.sent_bytes
        if followed_bytes > self._followed_bytes:
            self._followed.add(8 * (followed_bytes - self._followed_bytes))
            self._followed_bytes = followed_bytes
        crf = self._follower.look(now_s, self.link.sent_bytes, self._followed.per_s / 1000)
        self.lane.note = "its floor" if self._follower.at_floor else ""
        resized = encoder is not None and (frame.width, frame.height) != (encoder.width, encoder.height)
        packets: list[EncodedPacket] = []
        if encoder is None or resized or n != self._n or crf != self._crf:
            if encoder is not None:
                packets += encoder.flush()
            self._crf, self._n = crf, n
            self._encoder = encoder = BaselineEncoder(
                self.session.baseline or "h264",
                frame.width,
                frame.height,
                crf=crf,
                fps=self.session.feed.fps,
                gop_s=REFRESH_S,
                options={
                    "rc-lookahead": str(n - 1),
                    "sync-lookahead": "0",
                    "bf": str(min(3, (n - 1) // 2)),
                    "threads": "1",
                },
            )
        return packets + encoder.push(frame)

    def decode(self, unit: AccessUnit) -> Iterator[Frame]:
        return self.link.lane.decode(unit)
