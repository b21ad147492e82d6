"""One lane's incoming RTP packets: whose they are, put in order, what is lost; statistics after RFC 3550 A.1, A.3 and
A.8."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from mcode.rtp.packets import RtpPacket, unwrap

SILENCE_S = 2.0
"""A source silent for this long, and for twice its longest pause of late, gives way to any other."""
_PAUSE_S, _PAUSES_FOR_S, _LONGEST_PAUSE_S = 0.5, 60.0, 15.0
"""Pauses that are remembered, for how long, and what longer ones count as. Where packets are lost it is an outage, no pause."""
_CHALLENGE, _CHALLENGED_SILENCE_S = 5, 0.5
_LARGEST_JUMP = 3000  # RFC 3550 A.1, MAX_DROPOUT
_MOST_PENDING = 512
_LEAST_HOLD_S, _MOST_HOLD_S = 0.005, 0.25
_START_HOLD_S = 0.1
"""How long the first packets of a source wait for those that they overtook: nothing tells yet how the network reorders."""
_FORGETS = 0.999  # how late packets came, with each one that comes in order: half of it in 700


class Arrived(NamedTuple):
    """A packet in its turn. lost_before: how many packets between it and the one before never came, or came too
    late."""

    packet: RtpPacket
    lost_before: int


@dataclass
class Counters:
    """What came in, in packets. late: after their turn was given up, or older than all that was
    given; duplicate: seen before; foreign: of another source."""

    received: int = 0
    received_bytes: int = 0
    lost: int = 0
    late: int = 0
    duplicate: int = 0
    foreign: int = 0


class Reception:
    """Packets of one source in sequence order.

    The first source to come is followed. Packets of another are dropped as foreign, unless the followed one said
    goodbye, or is silent for two seconds, or five packets of one other came with none of it between for half a second: a
    sender that died and came back. A gap is waited for as long as the network reorders, at most a quarter of a second: at
    first 5 ms, then twice the jitter (RFC 3550 6.4.1), or by how much the latest packets came too late. extra_hold_s: waited
    beyond that, for repair. last_arrival_s: when the last packet of the followed source came. rebuilt: packets that repair
    brought before their turn was given up; in reports they stay lost (RFC 5725).
    """

    def __init__(self, clock_hz: int) -> None:
        self.clock_hz = clock_hz
        self.counters = Counters()
        self.jitter_s = 0.0
        self.extra_hold_s = 0.0
        self.rebuilt = 0
        self.ssrc: int | None = None
        self.switches = 0  # to another source, or the same anew
        self._last_ssrc: int | None = None  # followed until its goodbye, too
        # of one other, with none of ours between
        self._challenge: deque[tuple[RtpPacket, float, bool]] = deque(maxlen=_MOST_PENDING)
        self._bye_s = 0.0
        self._late_by_s = 0.0
        self._start(None)

    def _start(self, ssrc: int | None) -> None:
        self.ssrc = ssrc
        self._pending: dict[int, tuple[RtpPacket, float]] = {}
        self.last_arrival_s = 0.0
        self._pauses: deque[tuple[float, float]] = deque(maxlen=64)  # between its packets: when they ended, and how long
        self._next: int | None = None  # the sequence number, unwrapped, that is due
        self._begun = False  # whether it stands: until then, packets that were overtaken lower it
        self._first = self._highest = 0
        self._recent: dict[int, float] = {}  # given, or given up: when
        self._transit: float | None = None
        self._expected_before = self._received_before = self._received_here = 0
        self._jumped_to: int | None = None

    def bye(self, ssrc: int, now_s: float) -> None:
        """The source says goodbye: the next one may be another. Packets that its goodbye overtook are its own; where they still
        come half a second later, it goes on."""
        if ssrc == self.ssrc:
            self.ssrc, self._bye_s = None, now_s

    @property
    def hold_s(self) -> float:
        """How long a gap is waited for, from the arrival of the packet behind it."""
        wanted = max(_LEAST_HOLD_S, 2 * self.jitter_s, 1.2 * self._late_by_s)
        return min(wanted, _MOST_HOLD_S) + self.extra_hold_s

    @property
    def deadline_s(self) -> float | None:
        """When `poll` will have something to give even if nothing comes."""
        if not self._pending:
            return None
        return min(at for _, at in self._pending.values()) + (self.hold_s if self._begun else _START_HOLD_S)

    def push(
        self, packet: RtpPacket, now_s: float, *, opens: bool = True, rebuilt: bool = False, after_ticks: int = 0
    ) -> list[Arrived]:
        """Take one in; the packets whose turn it is now. Nothing is given twice.

        opens: a source can begin with it, as nothing before it is needed. rebuilt: it did not come, but was repaired.
        after_ticks: how long after its timestamp it was sent, by design.
        """
        if self.ssrc is None and packet.ssrc == self._last_ssrc and now_s - self._bye_s > _CHALLENGED_SILENCE_S:
            self.ssrc = packet.ssrc
        if packet.ssrc != self.ssrc and (self.ssrc is not None or packet.ssrc != self._last_ssrc):
            return self._challenged(packet, now_s, opens)
        self._challenge.clear()
        number = packet.sequence if self._next is None else unwrap(packet.sequence, self._highest, 16)
        if self._next is None:
            self._next = self._first = self._highest = number
        elif abs(number - self._highest) > _LARGEST_JUMP:
            if self._jumped_to != packet.sequence:  # two in a row: the source started anew
                self._jumped_to = (packet.sequence + 1) & 0xFFFF
                self.counters.foreign += 1
                return []
            before = self._given_up(now_s)
            self.switches += 1
            self._start(self.ssrc)
            self._next = self._first = self._highest = number = packet.sequence
            return before + self._take(number, packet, now_s, opens, rebuilt, after_ticks)
        return self._take(number, packet, now_s, opens, rebuilt, after_ticks)

    def _take(
        self, number: int, packet: RtpPacket, now_s: float, opens: bool, rebuilt: bool, after_ticks: int
    ) -> list[Arrived]:
        assert self._next is not None
        self._jumped_to = None
        if self.last_arrival_s and now_s - self.last_arrival_s > _PAUSE_S and number == self._highest + 1:
            self._pauses.append((now_s, min(now_s - self.last_arrival_s, _LONGEST_PAUSE_S)))
        while self._pauses and self._pauses[0][0] < now_s - _PAUSES_FOR_S:
            self._pauses.popleft()
        self.last_arrival_s = now_s
        if not self._begun:
            self._next = self._first = min(self._next, number)
            self._begun = opens and number == self._next
        if number < self._next:
            given_up_s = self._recent.get(number)
            if rebuilt:
                pass  # too late to be of use
            elif given_up_s is None:
                self.counters.late += 1
            elif given_up_s < 0:
                self._note_duplicate(rebuilt)
            else:
                self.counters.late += 1
                self._received_here += 1  # no loss to a report (RFC 3550, 6.4.1)
                self._late_by_s = max(0.95 * self._late_by_s, now_s - given_up_s + self.hold_s)
                self._recent[number] = -1.0
            return []
        if number in self._pending:
            self._note_duplicate(rebuilt)
            return []
        self.counters.received += 1
        self.counters.received_bytes += len(packet.payload) + 12
        if number == self._highest + 1:
            self._late_by_s *= _FORGETS
        self._highest = max(self._highest, number)
        if rebuilt:
            self.rebuilt += 1
        else:
            self._received_here += 1
            self._measure_jitter(packet.timestamp + after_ticks, now_s)
        self._pending[number] = (packet, now_s)
        return self.poll(now_s)

    @property
    def patience_s(self) -> float:
        """For how long the source may be silent before it is taken to be gone."""
        return max(SILENCE_S, 2 * self._longest_pause_s)

    @property
    def _longest_pause_s(self) -> float:
        return max((pause_s for _, pause_s in tuple(self._pauses)), default=0.0)  # another thread may ask

    def _note_duplicate(self, rebuilt: bool) -> None:
        self.counters.duplicate += 1
        self._received_here += not rebuilt  # as RFC 3550, 6.4.1 has it; what repair was faster to bring did come

    def poll(self, now_s: float) -> list[Arrived]:
        """The packets whose turn it is by now, because what was missing before them is given up."""
        given: list[Arrived] = []
        lost = 0
        while self._pending:
            assert self._next is not None
            if not self._begun or self._next not in self._pending:
                if len(self._pending) < _MOST_PENDING and now_s < (self.deadline_s or 0.0):
                    break
                self._begun = True
                # The oldest gap is given up whole: what lies behind it is at hand.
                behind = min(self._pending)
                for number in range(self._next, behind):
                    self._remember(number, now_s)
                lost += behind - self._next
                self._next = behind
            packet, _ = self._pending.pop(self._next)
            self._remember(self._next, -1.0)
            self._next += 1
            given.append(Arrived(packet, lost))
            self.counters.lost += lost
            lost = 0
        return given

    def give_up(self) -> None:
        """Nothing more comes: `poll` waits for no gap."""
        self._begun, self.extra_hold_s = True, -math.inf

    def _given_up(self, now_s: float) -> list[Arrived]:
        given: list[Arrived] = []
        while self._pending:
            given += self.poll(now_s + 1e9)
        return given

    def _remember(self, number: int, when_s: float) -> None:
        self._recent[number] = when_s
        if len(self._recent) > 2 * _MOST_PENDING:
            for old in list(self._recent)[:_MOST_PENDING]:
                del self._recent[old]

    def _challenged(self, packet: RtpPacket, now_s: float, opens: bool) -> list[Arrived]:
        """A packet of another source than the one followed: dropped, or the first of the one to follow from now on."""
        if self._challenge and self._challenge[0][0].ssrc != packet.ssrc:
            self._challenge.clear()
        self._challenge.append((packet, now_s, opens))
        wanted_s = self.patience_s
        if len(self._challenge) >= _CHALLENGE:
            wanted_s = max(_CHALLENGED_SILENCE_S, 1.25 * self._longest_pause_s)
        if self.ssrc is not None and now_s - self.last_arrival_s <= wanted_s:
            self.counters.foreign += 1
            return []
        given = self._given_up(now_s)
        kept = list(self._challenge)
        self._challenge.clear()
        self.counters.foreign -= len(kept) - 1
        self.switches += self._last_ssrc not in (None, packet.ssrc)
        self._last_ssrc = packet.ssrc
        self._start(packet.ssrc)
        for late, at_s, is_first in kept:
            given += self.push(late, at_s, opens=is_first)
        return given

    def _measure_jitter(self, timestamp: int, now_s: float) -> None:
        transit = now_s - timestamp / self.clock_hz
        if self._transit is not None:
            wrap_s = 2**32 / self.clock_hz
            change = abs(transit - self._transit)
            change = min(change, abs(wrap_s - change))
            self.jitter_s += (change - self.jitter_s) / 16
        self._transit = transit

    @property
    def highest(self) -> int:
        """Extended highest sequence number received."""
        return self._highest

    def interval(self) -> tuple[float, int]:
        """(fraction lost since the last call, packets lost in all): of a receiver report (RFC 3550 A.3)."""
        expected = self._highest - self._first + 1 if self._next is not None else 0
        fresh, got = expected - self._expected_before, self._received_here - self._received_before
        self._expected_before, self._received_before = expected, self._received_here
        return (max(0, fresh - got) / fresh if fresh > 0 else 0.0), max(0, expected - self._received_here)
