"""A whole stream for a player: its lanes as `LaneView`s, its sound as pieces, in threads of their own."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any, Self

import av
import numpy as np

from mcode.channel import Channel, ChannelSettings
from mcode.codec import Model
from mcode.errors import FormatError
from mcode.lanes import FindModel, LaneCounters, finder
from mcode.receive.link import Link
from mcode.receive.network import Network
from mcode.receive.playout import AudioChunk, PlayoutClock
from mcode.receive.view import LaneView
from mcode.rtp import opus


class Receiver:
    """A live stream for a player: `lanes["mcode"].frame`, `lanes["baseline"].frame`, sound in `audio`. Never blocks a
    window.

    source: an SDP file or rtp://HOST:PORT, where it listens. find_model: where manifolds come from, if not from
    `manifold` and `device`. bind_to: listen on this address instead. channel: damage done here, live (`set_channel`).
    Raises InputError for a port in use, a wrong SDP; later errors (a manifold that is missing, a newer format) stand in
    `error` and the receiver goes on, as another sender may come.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        manifold: str | os.PathLike[str] | Model | None = None,
        device: str = "auto",
        find_model: FindModel | None = None,
        bind_to: str | None = None,
        lanes: tuple[str, ...] = ("mcode", "baseline", "audio"),
        channel: ChannelSettings | None = None,
        most_audio_s: float = 10.0,
    ) -> None:
        find_model = find_model or finder(manifold, device)
        self._network = Network(source, find_model, bind_to=bind_to, lanes=lanes, channel=channel)
        self.clock = PlayoutClock()
        self.lanes = {link.name: LaneView(link, self.clock) for link in self._network.links if link.name != "audio"}
        self.audio: deque[AudioChunk] = deque(maxlen=round(most_audio_s * 50))
        self._network_error: Exception | None = None
        self._switches = 0
        self._stop = threading.Event()
        self._opus: Any = None
        self._opus_ssrc: int | None = None
        self._thread = threading.Thread(target=self._run_quietly, name="mcode-receive", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What the user must know, in its own words; None while all is well."""
        return self._network_error or next((lane.error for lane in self.lanes.values() if lane.error), None)

    @property
    def is_receiving(self) -> bool:
        """A sender is being followed; False before the first packet and after its goodbye."""
        return any(link.reception.ssrc is not None for link in self._network.links)

    @property
    def silent_s(self) -> float | None:
        """Seconds since anything came from the sender being followed; None while none is."""
        heard = [link.heard_s for link in self._network.links if link.reception.ssrc is not None]
        return time.monotonic() - max(heard) if heard else None

    @property
    def patience_s(self) -> float:
        """For how long that sender may be silent before it is taken to be gone: bundles may come rarely."""
        return max(link.reception.patience_s for link in self._network.links)

    def set_channel(self, settings: ChannelSettings) -> None:
        """Damage done at this end, from the next packet on, alike in both picture lanes; the sound is spared."""
        for link in self._network.links:
            if link.name != "audio":
                link.channel.settings = settings

    def channel_counters(self) -> dict[str, Channel]:
        """Each lane's channel, whose counters tell what was done to it at this end."""
        return {link.name: link.channel for link in self._network.links}

    def audio_counters(self) -> LaneCounters | None:
        return next((k.counters(time.monotonic()) for k in self._network.links if k.name == "audio"), None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for view in self.lanes.values():
            view.close()
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_quietly(self) -> None:
        while not self._stop.is_set():
            try:
                units = self._network.wait(0.1)
                switches = sum(link.reception.switches for link in self._network.links)
                if switches != self._switches:
                    self._switches = switches
                    self.clock.restart()
                self._follow_clocks()
                for link, unit in units:
                    if link.name == "mcode":  # of the format known here: another sender's
                        self._network_error = None
                    if link.name == "audio":
                        self._hear(link, unit)
                    else:
                        self.lanes[link.name].put(unit)
            except FormatError as error:
                self._network_error = error
            except Exception as error:
                self._network_error = error
                return

    def _follow_clocks(self) -> None:
        """Where reports have moved a lane's times, the clock moves along: nothing is due later or earlier for that."""
        for link in self._network.links:
            if abs(link.moved_s) > 0.001:
                self.clock.shift(link.name, link.moved_s)
                link.moved_s = 0.0

    def _hear(self, link: Link, packet: opus.OpusPacket) -> None:
        if self._opus is None or packet.ssrc != self._opus_ssrc:
            self._opus, self._opus_ssrc = _opus_decoder(), packet.ssrc
        sent = link.sent_unix_s(packet.pts)
        samples = _decode_opus(self._opus, packet.data)
        if sent is None or samples is None:
            return
        self.clock.observe("audio", sent, time.monotonic() + 0.02)
        self.audio.append(AudioChunk(samples, sent, self.clock, packet.pts, self.clock.shifts_s.get("audio", 0.0)))


def _opus_decoder() -> Any:
    decoder: Any = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = opus.CLOCK_HZ, "stereo"
    decoder.open()
    return decoder


def _decode_opus(decoder: Any, data: bytes) -> np.ndarray | None:
    """int16 (n, 2) of one Opus packet; None where it is damaged."""
    try:
        frames = decoder.decode(av.Packet(data))
    except av.error.FFmpegError:
        return None
    if not frames:
        return None
    pieces = []
    for frame in frames:
        samples = frame.to_ndarray()
        if samples.dtype != np.int16:
            samples = np.clip(samples * 32768, -32768, 32767).astype(np.int16)
        channels = frame.layout.nb_channels
        pieces.append(samples.T if frame.format.is_planar else samples.reshape(-1, channels))
    return np.concatenate(pieces)
