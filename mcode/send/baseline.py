"""The ordinary codec beside MCode: frames to its RTP packets, at a rate that follows the MCode lane's."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcode.baseline import BaselineEncoder, CrfFollower, live_encoder
from mcode.frame import Frame
from mcode.rtp import h264
from mcode.rtp.packets import HEADER_BYTES, RtpPacket
from mcode.send.config import SendConfig
from mcode.send.sources import Source


class BaselineStream:
    """Frames to H.264 or H.265 packets without delay, at a rate that follows the MCode lane's, or at rate_kbps.

    It follows by CRF; a rate asked for in kbit/s is kept by the encoder's own rate control. A new CRF, and a refresh asked
    for, open the encoder anew (with an IDR).
    """

    def __init__(self, config: SendConfig, source: Source, packetiser: h264.H264Packetiser, rate_kbps: float | None) -> None:
        self.config, self.source, self.packetiser = config, source, packetiser
        self.fixed_kbps = rate_kbps
        self.target_kbps = rate_kbps
        self.follower = CrfFollower(config.baseline, config.refresh_s)
        self._encoder: BaselineEncoder | None = self._open()  # now: a size that it cannot encode is refused at once

    def sample(self) -> bytes:
        """One access unit with the stream's parameter sets."""
        grey = Frame(np.full((self.source.height, self.source.width, 3), 128, np.uint8), 0)
        return self._open().push(grey)[0].data

    def restart(self) -> None:
        """The next picture is an IDR."""
        self._encoder = None

    def follow(self, mcode_kbps: float | None, sent_bytes: int, at_s: float) -> None:
        """mcode_kbps: of the other lane; sent_bytes: on this one's wire so far."""
        if self.fixed_kbps is not None:
            return
        self.target_kbps = mcode_kbps or self.target_kbps
        before = self.follower.crf
        if self.follower.look(at_s, sent_bytes, mcode_kbps) != before:
            self._encoder = None

    def push(self, frame: Frame) -> list[RtpPacket]:
        if self._encoder is None:
            self._encoder = self._open()
        units = self._encoder.push(frame)
        return [packet for unit in units for packet in self.packetiser.push(unit.data, unit.pts)]

    def _open(self) -> BaselineEncoder:
        options: dict[str, Any] = {"crf": self.follower.crf}
        if self.fixed_kbps is not None:
            headers_kbps = self.source.fps * (HEADER_BYTES + 2) * 8 / 1000
            options = {"rate_kbps": max(self.fixed_kbps - headers_kbps, 0.25 * self.fixed_kbps)}
        return live_encoder(
            self.config.baseline,
            self.source.width,
            self.source.height,
            **options,
            fps=self.source.fps,
            gop_s=self.config.refresh_s,
            slice_bytes=self.packetiser.mtu - HEADER_BYTES - 20,
        )
