"""The channel: what damages packets on their way. Bit errors, losses, bursts and delay, all from one seed.

Sans-IO: bytes in, bytes and delivery times out; the caller has the clock. Not here: sockets (mcode.send), repair (fec.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from mcode.errors import InputError

_LIMITS = {
    "bit_error_rate": (0.0, 0.5, "a bit error rate is from 0 to 0.5, as 1e-3"),
    "loss": (0.0, 1.0, "a loss is from 0 to 1, as 0.05"),
    "burst": (1.0, 1e6, "a mean burst is 1 packet or more"),
    "delay_ms": (0.0, 60_000.0, "a delay is from 0 to 60000 ms"),
    "jitter_ms": (0.0, 60_000.0, "a jitter is from 0 to 60000 ms"),
    "seed": (0, 2**63 - 1, "a seed is a whole number, 0 or more"),
}


@dataclass(frozen=True)
class ChannelSettings:
    """What the channel does to the packets that enter it.

    bit_error_rate: probability that an unprotected bit is flipped. loss: probability that a packet is lost; burst: mean
    number of packets lost in a row (Gilbert 1960: a good and a bad state), where losses independent of each other, with
    1 / (1 - loss) in a row, are the least. delay_ms: added to every packet, and jitter_ms: at most that much more,
    evenly distributed, so that packets overtake each other. Raises InputError for what is outside these limits.
    """

    bit_error_rate: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high, remedy = _LIMITS[field.name]
            if not low <= value <= high:  # false for NaN, too
                raise InputError(f"{field.name} {value}: {remedy}")


class Channel:
    """One lane's way through the channel. `settings` may be replaced at any time; a new seed starts the pattern anew.

    Two channels of the same seed damage alike, whatever their packets hold: the i-th packet to enter is lost in both
    or in neither, and the k-th unprotected bit of the packets that are not lost is flipped in both or in neither.
    Losses, bit errors and jitter are drawn from random streams of their own, so that one slider does not move the
    others' pattern. Counters: sent (entered), lost, damaged (delivered with at least one bit flipped), flipped_bits.
    """

    def __init__(self, settings: ChannelSettings | None = None) -> None:
        self._settings = settings or ChannelSettings()
        self.sent = self.lost = self.damaged = self.flipped_bits = 0
        self._restart()

    @property
    def settings(self) -> ChannelSettings:
        return self._settings

    @settings.setter
    def settings(self, settings: ChannelSettings) -> None:
        restart = settings.seed != self._settings.seed
        self._settings = settings
        if restart:
            self._restart()

    def _restart(self) -> None:
        seeds = np.random.SeedSequence(self._settings.seed).spawn(3)
        self._losses, self._errors, self._jitters = (np.random.Generator(np.random.PCG64(s)) for s in seeds)
        self._bad: bool | None = None
        self._to_next_error = float(self._errors.standard_exponential())

    def transmit(self, data: bytes, protected: int = 0, now_s: float = 0.0) -> list[tuple[float, bytes]]:
        """(time of delivery in s, bytes as they arrive) of a packet that enters at now_s; nothing if it is lost.

        protected: so many leading bytes are spared by bit errors. They belong to headers with a CRC of their own, whose
        damage would be another experiment (a packet lost, not damaged); both lanes follow the same rule, see `rtp`.
        """
        settings = self._settings  # once: another thread may replace it
        self.sent += 1
        jitter = float(self._jitters.random())
        if self._is_lost(float(self._losses.random()), settings):
            self.lost += 1
            return []
        received = self._flip(data, protected, settings.bit_error_rate) if settings.bit_error_rate else data
        return [(now_s + (settings.delay_ms + jitter * settings.jitter_ms) / 1000, received)]

    def _is_lost(self, u: float, settings: ChannelSettings) -> bool:
        loss = settings.loss
        if loss in (0.0, 1.0):
            self._bad = None
            return bool(loss)
        run = max(settings.burst, 1 / (1 - loss))
        into_bad = loss if self._bad is None else 1 - 1 / run if self._bad else loss / (run * (1 - loss))
        self._bad = u < into_bad
        return self._bad

    def _flip(self, data: bytes, protected: int, bit_error_rate: float) -> bytes:
        """Bit errors arrive as a Poisson process over bits: the gaps, floor(exponential / hazard), are geometric, and
        what is left of a gap stays valid when the rate changes."""
        bits = 8 * max(0, len(data) - protected)
        hazard = -math.log1p(-bit_error_rate)
        received = bytearray(data)
        at, flips = 0, 0
        while (step := int(self._to_next_error / hazard)) < bits - at:
            at += step
            received[protected + at // 8] ^= 0x80 >> at % 8
            at, flips = at + 1, flips + 1
            self._to_next_error = float(self._errors.standard_exponential())
        self._to_next_error -= hazard * (bits - at)
        self.flipped_bits += flips
        self.damaged += flips > 0
        return bytes(received)
