"""The sockets of a stream's lanes: where they are, what comes in and which unit of which lane it completes."""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import time
from typing import Any, NamedTuple

from mcode.addresses import refuse_multicast, resolve
from mcode.channel import Channel, ChannelSettings
from mcode.errors import InputError
from mcode.lanes import MOST_REPAIR_S, BaselineLane, FindModel, McodeLane
from mcode.receive.link import Link
from mcode.rtp import h264, opus, payload, rtcp, sdp
from mcode.rtp.packets import OPUS, is_rtcp
from mcode.rtp.payload import LARGEST_LIVE, MOST_GAP_PIXELS, Received

_RECEIVE_BUFFER = 4 << 20
_LARGEST_DATAGRAM = 65_535


def read_session(source: str | os.PathLike[str]) -> sdp.Session | None:
    """The session of an SDP file; None for an rtp:// URL, whose lanes are the customary ones. Raises InputError."""
    text = os.fspath(source)
    if "://" in text:
        sdp.parse_url(text)
        return None
    try:
        with open(text, "rb") as file:
            described = file.read(sdp.LARGEST_DESCRIPTION + 1)
    except OSError as error:
        raise InputError(f"{text}: cannot read it ({error.strerror}); give an SDP file or rtp://HOST:PORT") from error
    if len(described) > sdp.LARGEST_DESCRIPTION:
        raise InputError(f"{text} is not a session description (SDP): it is larger than 1 MiB")
    return sdp.Session.parse(described.decode("utf-8", errors="replace"), text)


class _Place(NamedTuple):
    """Where a lane comes in, and how it is described, if it is."""

    host: str
    port: int
    media: sdp.Media | None


def _places(source: str | os.PathLike[str]) -> dict[str, _Place]:
    """Of the lanes that the source has, by name. Raises InputError."""
    what = os.fspath(source)
    session = read_session(source)
    if session is None:
        host, first = sdp.parse_url(what)
        places = {name: _Place(host, first + offset, None) for name, offset in (("mcode", 0), ("baseline", 2), ("audio", 4))}
    else:
        host = session.address
        media = {"mcode": session.of("MCODE"), "baseline": session.of("H264", "H265"), "audio": session.of("OPUS")}
        places = {name: _Place(each.address or host, each.port, each) for name, each in media.items() if each is not None}
    for each in {host, *(place.host for place in places.values())}:
        refuse_multicast(each, what)  # also where --bind names another address to listen on
    return places


def _bind(host: str, port: int, what: str) -> socket.socket:
    """A bound UDP socket. Raises InputError for a port in use, a host unknown or not of this machine."""
    family, address = resolve(host, port, what)
    found = socket.socket(family, socket.SOCK_DGRAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        found.bind(address)
    except OSError as error:
        found.close()
        reason = {
            errno.EADDRINUSE: "another program is using it; end that one, or use another port",
            errno.EADDRNOTAVAIL: "that is not an address of this machine; give one with --bind, as --bind 0.0.0.0",
            errno.EACCES: "not allowed; use a port from 1024 on",
        }.get(error.errno or 0, error.strerror)
        raise InputError(f"{what}: cannot listen on {host} port {port}: {reason}") from error
    found.setblocking(False)
    return found


class Network:
    """All lanes' sockets: what comes goes through the receiver's own channel to its lane. One thread calls `wait`."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        find_model: FindModel,
        *,
        bind_to: str | None = None,
        lanes: tuple[str, ...] = ("mcode", "baseline", "audio"),
        channel: ChannelSettings | None = None,
        needed: str | None = None,
        most_repair_s: float = MOST_REPAIR_S,
    ) -> None:
        """needed: one of the lanes, without which there is nothing to do. most_repair_s: as in McodeLane."""
        places, what = _places(source), os.fspath(source)
        cname = rtcp.new_cname()
        settings = channel or ChannelSettings()
        bounds: dict[str, Any] = {"most_pixels": LARGEST_LIVE, "most_repair_s": most_repair_s}
        self.links: list[Link] = []
        if needed is not None and needed not in places:
            other = next((name for name in ("mcode", "baseline") if name in places), None)
            raise InputError(f"{what}: no lane {needed} in it; " + (f"use --lane {other}" if other else "it has sound alone"))
        self._selector = selectors.DefaultSelector()
        try:
            for name in lanes:
                if name not in places:
                    continue
                host, port, media = places[name]
                lane: Any
                if name == "mcode":
                    lane = McodeLane(find_model, media, most_gap_pixels=MOST_GAP_PIXELS, **bounds)
                    clock_hz = payload.CLOCK_HZ
                elif name == "baseline":
                    lane, clock_hz = BaselineLane(media, **bounds), h264.CLOCK_HZ
                else:
                    lane = opus.OpusDepacketiser(payload_type=media.payload_type if media else OPUS)
                    clock_hz = opus.CLOCK_HZ
                own = Channel(settings if name != "audio" else ChannelSettings())
                link = Link(name, clock_hz, lane, _bind(bind_to or host, port, what), own, cname)
                self.links.append(link)
                self._selector.register(link.socket, selectors.EVENT_READ, link)
        except BaseException:
            self.close()
            raise
        if not self.links:
            self.close()
            raise InputError(f"{what}: none of the lanes {', '.join(lanes)} is in it")
        self._held: list[tuple[float, int, Link, bytes]] = []
        self._count = 0
        self._skew_s = 0.0  # of the sender's clock

    def wait(self, timeout_s: float) -> list[tuple[Link, Any]]:
        """(lane, unit to decode) of all that is there within timeout_s."""
        now = time.monotonic()
        deadlines = [link.lane.deadline_s for link in self.links]
        ends = [at for at in deadlines if at is not None] + [at for at, *_ in self._held] + [now + timeout_s]
        found: list[tuple[Link, Any]] = []
        for key, _ in self._selector.select(max(0.0, min(ends) - now)):
            link: Link = key.data
            for _ in range(64):  # a flood on one lane must not starve the others
                try:
                    datagram, peer = link.socket.recvfrom(_LARGEST_DATAGRAM)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    continue  # an ICMP error of an answer that nobody heard
                found += self._take(link, datagram, peer)
        now = time.monotonic()
        self._held.sort()
        while self._held and self._held[0][0] <= now:
            _, _, link, datagram = self._held.pop(0)
            found += self._push(link, datagram, now)
        for link in self.links:
            found += self._located(link, link.lane.poll(now))
            link.answer(now)
        return found

    def flush(self) -> list[tuple[Link, Any]]:
        """(lane, unit to decode) of what waits behind gaps: nothing more is waited for. The last call before `close`."""
        found: list[tuple[Link, Any]] = []
        for link in self.links:
            link.reception.give_up()
            found += self._located(link, link.lane.poll(time.monotonic()))
        return found

    def _take(self, link: Link, datagram: bytes, peer: tuple) -> list[tuple[Link, Any]]:
        now = time.monotonic()
        link.heard += 1
        if is_rtcp(datagram):
            sent_unix_s = link.hear(datagram, peer, now)
            if sent_unix_s is not None:
                self._skew_s = sent_unix_s - time.time()
                for other in self.links:
                    other.correct(self._skew_s)
            return []
        link.note_size(len(datagram), now)
        found = []
        spared = link.protected_bytes(datagram)
        for at_s, data in link.channel.transmit(datagram, spared, now):
            if at_s > now:
                self._count += 1
                self._held.append((at_s, self._count, link, data))
            else:
                found += self._push(link, data, now)
        if link.reception.ssrc is not None and int.from_bytes(datagram[8:12]) == link.reception.ssrc:
            link.peer = peer
        return found

    def _push(self, link: Link, datagram: bytes, now: float) -> list[tuple[Link, Any]]:
        before = link.reception.switches
        units = link.lane.push(datagram, now)
        if link.reception.ssrc is None:
            link.note_stranger(datagram)
        if link.reception.ssrc is not None:  # another one, or it goes on after all
            link.said_goodbye = False
        if link.reception.switches != before:
            link.base_unix_s = None
            link.reports, link.next_report_s = 0, -math.inf
        return self._located(link, units)

    def _located(self, link: Link, units: list[Any]) -> list[tuple[Link, Any]]:
        for unit in units:
            pts = unit.packet.pts if isinstance(unit, Received) else unit.pts
            link.locate(pts, unit.ssrc, time.time(), self._skew_s)
        return [(link, unit) for unit in units]

    def close(self) -> None:
        self._selector.close()
        for link in self.links:
            link.socket.close()
