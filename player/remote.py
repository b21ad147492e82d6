"""A live stream from the network: mcode.receive's lanes in the window. No Qt."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from mcode.baseline import coder_named
from mcode.codec import Model
from mcode.lanes import finder
from mcode.manifold import load
from mcode.receive import LaneView, Receiver

from .clock import Clock
from .lanes import WAITING, Lane
from .link import channel_settings
from .session import CHANNEL_FIELDS, Rows, Session, Settings, every

SILENT_S = 6.0
"""A sender that sends nothing for this long is said to have fallen silent. (Its reports come every five.)"""
ALONE_S = 2.0
"""MCode's pictures for this long without a byte of the baseline: the sender sends none, and its place is given up."""


class Remote(Session):
    """source: an SDP file or rtp://HOST:PORT. Frames are shown as the receiver gives them; pause holds the picture.

    Raises InputError for a port in use or a wrong SDP. Nothing from the sender yet, a missing manifold and a sender
    that fell silent are told in `busy` and `notices`; the session goes on.
    """

    live = True
    adjustable = frozenset({"bit_error_rate", "loss", "delay_ms"})
    channel_note = "Damage done at this end, beyond the network's own, alike in both lanes. Headers are protected."

    def __init__(
        self,
        source: str | os.PathLike[str],
        settings: Settings | None = None,
        *,
        manifold: str | os.PathLike[str] | Model | None = None,
        device: str = "auto",
        clock: Clock | None = None,
    ) -> None:
        settings = settings or Settings()
        super().__init__(os.path.basename(os.fspath(source)), [], settings, clock)

        def find(manifold_id: bytes) -> Model:
            model = load(self._find(manifold_id), device) if manifold is None else finder(manifold, device)(manifold_id)
            return self.networks.wrap(model)

        self.receiver = Receiver(source, find_model=find, channel=channel_settings(settings))
        self.sound = self.receiver.audio
        views = self.receiver.lanes
        lanes = [Lane("mcode", "MCode")] if "mcode" in views else []
        if "baseline" in views:
            lanes.append(Lane("baseline", "H.264"))
        for lane in lanes:
            lane.has_original = False
        self.lanes = self._every_lane = lanes
        self._alone_s: float | None = None  # when MCode's first picture came
        self.source = os.fspath(source)
        self.busy = self._waiting = f"Waiting for a sender at {self.source}"
        self._bytes = {lane.name: 0 for lane in lanes}
        self._seen = {lane.name: 0 for lane in lanes}
        self._problem: str | None = None
        self._heard = self._silent = False

    def start(self) -> None:
        self.clock.paused = False

    def close(self, wait_s: float = 5.0) -> None:
        self.networks.close()  # nobody waits for it any more
        self.receiver.close()
        super().close(wait_s)

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        if any(getattr(settings, f) != getattr(self._settings, f) for f in CHANNEL_FIELDS):
            self.receiver.set_channel(channel_settings(settings))
        self._settings = settings

    def tick(self) -> bool:
        self._tell()
        changed = False
        for lane in self._every_lane:
            view = self.receiver.lanes[lane.name]
            changed |= self._refresh(lane, view)
        self._leave_out()
        if any(lane.newest is not None for lane in self.lanes):
            self.busy = None
        else:
            self.busy = self._problem or self._waiting
        stream = self.receiver.lanes["mcode"].stream if "mcode" in self.receiver.lanes else None
        if stream is not None:  # for the controls to show
            self._settings = replace(self._settings, n=stream.n, coder=stream.coder, quality=stream.quality)
        return changed

    def _leave_out(self) -> None:
        """From `lanes` the baseline of a sender that sends none, until it does."""
        alone = [lane for lane in self._every_lane if lane.name == "mcode" and lane.newest is not None]
        if not alone or self._bytes.get("baseline", 0):
            self._alone_s = None
            self.lanes = self._every_lane
            return
        now_s = time.monotonic()
        self._alone_s = now_s if self._alone_s is None else self._alone_s
        if now_s - self._alone_s > ALONE_S:
            self.lanes = alone

    def _refresh(self, lane: Lane, view: LaneView) -> bool:
        lane.waiting = _line(view.error) or WAITING
        c, counted = lane.counters, view.counters()
        c.bits.add(8 * (counted.received_bytes - self._bytes[lane.name]))
        self._bytes[lane.name] = counted.received_bytes
        here = self.receiver.channel_counters()[lane.name]
        c.packets_sent = counted.received + counted.lost
        c.packets_lost = counted.lost
        c.packets_damaged = max(here.damaged, counted.damaged + counted.damaged_headers)
        c.decode_ms, c.network_ms, c.wait_ms = view.delay.decode_ms, view.delay.network_ms, view.delay.wait_ms
        c.dropped = counted.skipped
        newest = view.newest
        if newest is None:
            return False
        if newest[2] > self._seen[lane.name]:  # while paused, too: it goes on
            c.decoded.add(newest[2] - self._seen[lane.name])
            self._seen[lane.name] = newest[2]
        if self.clock.paused or newest[0] is lane.newest:
            return False
        lane.present(newest[0])
        if lane.name == "baseline":
            lane.title = coder_named(view.codec).label
        return True

    def _tell(self) -> None:
        problem = _line(self.receiver.error)
        if problem != self._problem:
            self._problem = problem
            if problem:
                self.notices.append(problem)
        receiving = self.receiver.is_receiving
        if self._heard and not receiving:
            self.notices.append("The sender said goodbye; waiting for the next one")
        self._heard = receiving
        silent_s = self.receiver.silent_s
        silent = silent_s is not None and silent_s > max(SILENT_S, self.receiver.patience_s)
        if silent and not self._silent:
            self.notices.append("The sender fell silent; waiting for it to come back")
        self._silent = silent

    def stats(self) -> Rows:
        rows: Rows = []
        view = self.receiver.lanes.get("mcode")
        if view is not None and view.stream is not None:
            stream = view.stream
            rows += [
                ("Picture", f"{stream.width} × {stream.height}"),
                ("Manifold", stream.manifold_id.hex()[:8]),
                ("Keyframes", f"{every(stream.n)}, {stream.coder}, quality {stream.quality}"),
            ]
        for lane in self.lanes:
            c = lane.counters
            rows.append((lane.title, f"{c.decoded.per_s:.1f} decoded, {c.shown.per_s:.1f} shown frames/s"))
        rows.append(("PSNR", "unknown: the original is with the sender"))
        for lane in self.lanes:
            counted = self.receiver.lanes[lane.name].counters()
            rows.append((f"  {lane.title}", f"{counted.lost:,} lost, {counted.damaged:,} damaged, {counted.late:,} late"))
            rows.append((f"  {lane.title} jitter", f"{counted.jitter_ms:.1f} ms"))
        if view is not None:
            delay = view.delay
            rows += [
                ("Delay", f"{delay.wait_ms + delay.network_ms + delay.decode_ms:.0f} ms"),
                ("  waiting for N", f"{delay.wait_ms:.0f} ms"),
                ("  network", f"{delay.network_ms:.0f} ms"),
                ("  decoding", f"{delay.decode_ms:.1f} ms"),
            ]
        return rows

    @property
    def position_s(self) -> float:
        return self.clock.time_s if not self.busy else 0.0


def _line(error: Exception | None) -> str | None:
    return None if error is None else " ".join(str(error).split())
