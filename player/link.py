"""One lane's way from encoder to decoder within this process: packets as RTP datagrams and back. No Qt.

The receiving half is the network's own (mcode.lanes). Both lanes follow one rule: bit errors spare RTP and payload
headers (and H.264's parameter sets), nothing that the coders made; losses take whole datagrams, and rates count them.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from mcode.baseline import EncodedPacket
from mcode.channel import Channel, ChannelSettings
from mcode.errors import McodeError
from mcode.frame import Frame
from mcode.lanes import BaselineLane, FindModel, McodeLane
from mcode.packet import Packet, StreamHeader
from mcode.rtp import h264, payload
from mcode.rtp.h264 import AccessUnit
from mcode.rtp.packets import RtpPacket
from mcode.rtp.payload import Received

from .counters import LaneCounters
from .session import CHANNEL_FIELDS, Settings

Unit = Received | AccessUnit
Sent = TypeVar("Sent", bound=Packet | EncodedPacket)
Got = TypeVar("Got", bound=Unit)

SSRC = 1
GIVE_UP_S = 1.0
"""After so long nothing more is waited for, in files."""
_MOST_IN_FLIGHT = 1024


def channel_settings(settings: Settings) -> ChannelSettings:
    return ChannelSettings(**{name: getattr(settings, name) for name in CHANNEL_FIELDS})


class Receiving(Protocol[Got]):
    """The receiving half of a lane, as in mcode.lanes."""

    error: McodeError | None

    def push(self, datagram: bytes, now_s: float) -> list[Got]: ...
    def poll(self, now_s: float) -> list[Got]: ...


class Link(Generic[Sent, Got]):
    """Datagrams wait in a heap by time of delivery. One thread sends, one receives; seconds are the caller's."""

    lane: Receiving[Got]

    def __init__(self, settings: Settings) -> None:
        self.channel = Channel(channel_settings(settings))
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self.sent_bytes = 0
        self._sent: deque[tuple[int, float]] = deque(maxlen=_MOST_IN_FLIGHT)  # pts, when

    def configure(self, settings: Settings) -> None:
        self.channel.settings = channel_settings(settings)

    def count(self, counters: LaneCounters) -> None:
        counters.packets_sent = self.channel.sent
        counters.packets_lost = self.channel.lost
        counters.packets_damaged = self.channel.damaged

    def send(self, packet: Sent, now_s: float) -> int:
        """Into the channel; returns the bytes on the wire."""
        size = 0
        with self._lock:
            self._sent.append((packet.pts, now_s))
            for rtp, protected in self._datagrams(packet):
                data = bytes(rtp)
                size += len(data)
                for at_s, received in self.channel.transmit(data, protected, now_s):
                    heapq.heappush(self._heap, (at_s, next(self._order), received))
            self.sent_bytes += size
        return size

    def receive(self, now_s: float) -> list[Got]:
        """What is complete, or given up, by now_s: for lane.decode."""
        with self._lock:
            due = []
            while self._heap and self._heap[0][0] <= now_s:
                at_s, _, data = heapq.heappop(self._heap)
                due.append((at_s, data))
        units: list[Got] = []
        for at_s, data in due:
            units += self.lane.push(data, at_s)
        return units + self.lane.poll(now_s)

    def sent_s(self, pts: int) -> float | None:
        """When the packet of that time was sent."""
        return next((at_s for sent, at_s in reversed(self._sent.copy()) if sent == pts), None)

    def _datagrams(self, packet: Sent) -> Iterator[tuple[RtpPacket, int]]:
        """Each with the number of its leading bytes that bit errors spare."""
        raise NotImplementedError


class MCodeLink(Link[Packet, Received]):
    """header: what the receiver knows of the stream beforehand, as from a session description."""

    lane: McodeLane

    def __init__(self, settings: Settings, find_model: FindModel, header: StreamHeader | None = None) -> None:
        super().__init__(settings)
        self._find_model = find_model
        self.restart(header)

    def restart(self, header: StreamHeader | None = None) -> None:
        """Forget what is under way, as after a seek."""
        with self._lock:
            self._heap.clear()
            self._sent.clear()
            self._out = payload.Packetiser(SSRC, largest_slice=None)
            self.lane = McodeLane(self._find_model)
            self.lane.depacketiser = payload.Depacketiser(header=header, header_ssrc=SSRC, most_keyframe_bytes=None)
            self._clock_s = 0.0

    def pass_on(self, packet: Packet) -> list[Received]:
        """At once: for files, where the damage is wanted and not the delay."""
        self._clock_s += GIVE_UP_S
        self.send(packet, self._clock_s)
        self._heap = [(self._clock_s, order, data) for _, order, data in self._heap]
        return self.receive(self._clock_s) + self.receive(self._clock_s + GIVE_UP_S / 2)

    def _datagrams(self, packet: Packet) -> Iterator[tuple[RtpPacket, int]]:
        for rtp in self._out.push(packet):
            yield rtp, payload.protected_bytes(rtp)


class BaselineLink(Link[EncodedPacket, AccessUnit]):
    """codec: "h264" or "h265"."""

    lane: BaselineLane

    def __init__(self, settings: Settings, codec: str) -> None:
        super().__init__(settings)
        self.codec = codec
        self._out = h264.H264Packetiser(SSRC, codec=codec)
        self.lane = BaselineLane()

    def _datagrams(self, packet: EncodedPacket) -> Iterator[tuple[RtpPacket, int]]:
        for rtp in self._out.push(packet.data, packet.pts):
            yield rtp, h264.protected_bytes(rtp, self.codec)


def unit_pts(unit: Unit) -> int:
    """Ticks of a keyframe's or an access unit's picture."""
    return unit.packet.pts if isinstance(unit, Received) else unit.pts


def cut_to(frame: Frame, width: int, height: int) -> Frame:
    """Without the rows and columns that a codec added to make the size even."""
    if (frame.width, frame.height) == (width, height):
        return frame
    return Frame(frame.rgb[:height, :width].copy(), frame.pts)
