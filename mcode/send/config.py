"""What a stream is asked to be: the options of `mcode send`, checked as far as they tell by themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mcode.channel import ChannelSettings
from mcode.codec import CODERS
from mcode.errors import InputError
from mcode.fec import FecSettings
from mcode.rtp import sdp
from mcode.rtp.packets import MTU
from mcode.rtp.payload import MOST_BUNDLED

BASELINES = ("h264", "h265", "none")
AUDIO_PACKETS_MS = (20, 40, 60, 80, 100, 120)
SPEECH_BELOW_KBPS = 16
"""Below, Opus is told to keep speech understandable rather than all sound like itself."""
_LARGEST_AUDIO_BITS = 6400  # of a packet on average, so that its largest are no longer than an MTU


@dataclass(frozen=True)
class SendConfig:
    """What `mcode send` is asked for. Raises InputError.

    input: a file, "camera:0" or "testsrc". to: rtp://HOST:PORT. baseline: "h264", "h265" or "none"; baseline_rate: "equal" (to
    what the MCode lane is measured to send) or kbit/s. adaptive: see `Encoder`. rate_kbps: see `Encoder`; with repair,
    IP and UDP headers. bundle: keyframes that share a packet. sdp: a session description to write. size: (width, height) to
    code. fec: "8+2", parity packets for every so many; fec_header: send payload headers twice. loop: files start over.
    audio_kbps: of the sound's Opus, 6 to 256; audio_packet_ms: how much of it a packet holds, one of AUDIO_PACKETS_MS.
    """

    input: str
    to: str = "rtp://127.0.0.1:5004"
    n: int = 4
    manifold: str = "general"
    coder: str = "huffman"
    quality: int | None = None
    refresh_s: float = 5.0
    adaptive: bool = False
    rate_kbps: float | None = None
    bundle: int = 1
    baseline: str = "h264"
    baseline_rate: str | float = "equal"
    channel: ChannelSettings = field(default_factory=ChannelSettings)
    realtime: bool = True
    sdp: str | os.PathLike[str] | None = None
    size: tuple[int, int] | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    loop: bool = False
    audio: bool = True
    audio_kbps: float = 32.0
    audio_packet_ms: int = 20
    fec: str | None = None
    fec_header: bool = False
    device: str = "auto"
    mtu: int = MTU

    def __post_init__(self) -> None:
        sdp.parse_url(self.to, "--to")
        if self.coder not in CODERS:
            raise InputError(f"--coder {self.coder}: choose {' or '.join(CODERS)}")
        if not 1 <= self.n <= 65_535:
            raise InputError(f"--n {self.n}: the keyframe interval is a whole number from 1 to 65535")
        if self.rate_kbps is not None and not 0.01 <= self.rate_kbps <= 100_000:
            raise InputError(f"--rate {self.rate_kbps:g}: from 0.01 to 100000 kbit/s")
        if not 1 <= self.bundle <= MOST_BUNDLED:
            raise InputError(f"--bundle {self.bundle}: from 1 to {MOST_BUNDLED} keyframes in a packet")
        if self.baseline not in BASELINES:
            raise InputError(f"--baseline {self.baseline}: choose h264, h265 or none")
        if self.baseline_rate != "equal":
            try:
                good = 0 < float(self.baseline_rate) < 1e6
            except ValueError:
                good = False
            if not good:
                raise InputError(f"--baseline-rate {self.baseline_rate}: give kbit/s, or equal")
        if not 6 <= self.audio_kbps <= 256:
            raise InputError(f"--audio-rate {self.audio_kbps:g}: from 6 to 256 kbit/s")
        if self.audio_packet_ms not in AUDIO_PACKETS_MS:
            raise InputError(f"--audio-packet {self.audio_packet_ms}: choose one of {', '.join(map(str, AUDIO_PACKETS_MS))} ms")
        if self.audio_kbps * self.audio_packet_ms > _LARGEST_AUDIO_BITS:
            raise InputError(
                f"--audio-rate {self.audio_kbps:g} with --audio-packet {self.audio_packet_ms}: a packet would be too large; "
                f"choose {_LARGEST_AUDIO_BITS // self.audio_packet_ms} kbit/s or less"
            )
        if self.fec is not None:
            FecSettings.parse(self.fec)
        if not 300 <= self.mtu <= 65_000:
            raise InputError(f"packets of {self.mtu} bytes: from 300 to 65000")
