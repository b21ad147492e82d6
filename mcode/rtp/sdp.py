"""The session description (RFC 8866): which lane comes to which port in which format. Text in, objects out, and
back."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from mcode.errors import InputError

CLOCKS = {"MCODE": 90_000, "H264": 90_000, "H265": 90_000, "OPUS": 48_000, "MCODE-FEC": 90_000}
_TRANSPORTS = ("RTP/AVP", "RTP/AVPF")
LARGEST_DESCRIPTION = 1 << 20
_KINDS = {"MCODE": "application", "OPUS": "audio"}
"""MCode is announced as `application`, so that a player which does not know it opens the other lanes."""


@dataclass(frozen=True)
class Media:
    """One lane. encoding: as in CLOCKS. parameters: of the fmtp line, in order. fec_payload_type: of its repair
    packets. address: where it goes, if elsewhere than the session (RFC 8866, 5.7)."""

    encoding: str
    port: int
    payload_type: int
    ssrc: int | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    fec_payload_type: int | None = None
    address: str | None = None


@dataclass(frozen=True)
class Session:
    """address: where the packets go, so the receiver's own. cname: of all sources in it; session_id: a number of this session
    alone. Neither is parsed."""

    address: str
    media: tuple[Media, ...]
    name: str = "MCode"
    cname: str = field(default="mcode", compare=False)
    session_id: int = field(default=0, compare=False)

    def of(self, *encodings: str) -> Media | None:
        """The first lane of one of these encodings."""
        return next((media for media in self.media if media.encoding in encodings), None)

    def __str__(self) -> str:
        version = 6 if ":" in self.address else 4
        lines = [
            "v=0",
            f"o=- {self.session_id} 0 IN IP{version} {self.address}",
            f"s={' '.join(self.name.split()) or '-'}",
            f"c=IN IP{version} {self.address}",
            "t=0 0",
        ]
        for media in self.media:
            numbers = f"{media.payload_type}" + (f" {media.fec_payload_type}" if media.fec_payload_type else "")
            # AVPF, the profile with PLI, is not known to every player; those that know it take rtcp-fb in AVP as well.
            lines.append(f"m={_KINDS.get(media.encoding, 'video')} {media.port} RTP/AVP {numbers}")
            if media.address is not None:
                lines.append(f"c=IN IP{6 if ':' in media.address else 4} {media.address}")
            channels = "/2" if media.encoding == "OPUS" else ""
            name = "opus" if media.encoding == "OPUS" else media.encoding
            lines.append(f"a=rtpmap:{media.payload_type} {name}/{CLOCKS[media.encoding]}{channels}")
            if media.fec_payload_type:
                lines.append(f"a=rtpmap:{media.fec_payload_type} MCODE-FEC/90000")
            if media.parameters:
                values = "; ".join(f"{key}={value}" for key, value in media.parameters.items())
                lines.append(f"a=fmtp:{media.payload_type} {values}")
            if media.encoding != "OPUS":
                lines.append(f"a=rtcp-fb:{media.payload_type} nack pli")
            if media.ssrc is not None:
                lines.append(f"a=ssrc:{media.ssrc} cname:{self.cname}")
            lines += ["a=rtcp-mux", "a=recvonly"]
        return "\r\n".join(lines) + "\r\n"

    @classmethod
    def parse(cls, text: str, source: str = "the session description") -> Session:
        """Lanes that cannot be received are left out. Raises InputError where nothing usable is in it."""
        text = text.removeprefix("\ufeff")
        if not text.lstrip().startswith("v="):
            raise InputError(f"{source} is not a session description (SDP): it does not begin with v=0")
        address, name = "", "MCode"
        rows: list[dict] = []
        left_out: list[str] = []
        for line in text.splitlines():
            key, _, value = line.strip().partition("=")
            try:
                if key == "c" and not (rows and (rows[-1]["foreign"] or rows[-1]["port"] == 0)):
                    own = _address(value.split()[2].split("/")[0])
                    if rows:
                        rows[-1]["address"] = own
                    address = address or own
                elif key == "s":
                    name = value
                elif key == "m":
                    _, port, transport, *formats = value.split()
                    row: dict[str, Any] = {"foreign": transport.upper() not in _TRANSPORTS}
                    if row["foreign"]:  # encrypted, or no RTP
                        left_out.append(transport)
                    else:
                        row |= {"port": int(port.split("/")[0]), "formats": [int(f) for f in formats if f.isdecimal()]}
                    rows.append(row)
                elif key == "a" and rows and not rows[-1]["foreign"]:
                    _attribute(rows[-1], value)
            except (ValueError, IndexError) as error:
                raise InputError(f"{source}: cannot read the line {line.strip()[:60]!r}") from error
        found = [_media(row, source, left_out, address) for row in rows if not row["foreign"]]
        media = tuple(each for each in found if each is not None)
        if not media:
            why = f"; {left_out[0]} is not supported" if left_out else ""
            raise InputError(f"{source}: no lane in it that can be played (MCODE, H264, H265 or opus){why}")
        if not address:
            raise InputError(f"{source}: it names no address (no line c=)")
        return cls(address, media, name)


def _address(text: str) -> str:
    """An IP address, or a host's name with a dot in it. Raises ValueError."""
    if text == "localhost" or re.fullmatch(
        r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?", text, re.I
    ):
        return text
    return str(ipaddress.ip_address(text))


def _attribute(row: dict, value: str) -> None:
    kind, _, rest = value.partition(":")
    if kind == "rtpmap":
        number, encoding = rest.split()[:2]
        name, _, clock = encoding.upper().partition("/")
        row.setdefault("maps", {})[int(number)] = name
        row.setdefault("clocks", {})[int(number)] = clock.split("/")[0] or str(CLOCKS.get(name, ""))
    elif kind == "fmtp":
        number, _, text = rest.partition(" ")
        pairs = (part.strip().partition("=") for part in text.split(";") if part.strip())
        row.setdefault("parameters", {})[int(number)] = {key: value for key, _, value in pairs}
    elif kind == "ssrc":
        row.setdefault("ssrc", int(rest.split()[0]))


def _media(row: dict, source: str, left_out: list[str], address: str) -> Media | None:
    """None of a lane that was rejected (port 0) or cannot be received; left_out hears which of its kinds. address: the
    session's."""
    maps: dict[int, str] = row.get("maps", {})
    fec = next((n for n, encoding in maps.items() if encoding == "MCODE-FEC"), None)
    if row["port"] == 0:
        return None
    for number in (n for n in row["formats"] if maps.get(n) in CLOCKS and n != fec):
        parameters = row.get("parameters", {}).get(number, {})
        clock, mode = row["clocks"][number], parameters.get("packetization-mode") or "0"
        if clock != str(CLOCKS[maps[number]]):
            left_out.append(f"{maps[number]}/{clock}")
        elif maps[number] == "H264" and mode not in ("0", "1"):
            left_out.append(f"packetization-mode={mode}")
        else:
            break
    else:
        return None
    if not 1 <= row["port"] <= 65_535 or not 0 <= number <= 127:
        raise InputError(f"{source}: port {row['port']} or payload type {number} is out of range")
    own = row.get("address", address)
    return Media(maps[number], row["port"], number, row.get("ssrc"), parameters, fec, own if own != address else None)


def parse_url(url: str, what: str = "the address") -> tuple[str, int]:
    """(host, port) of rtp://HOST:PORT; the host is 127.0.0.1 where it is left out. Raises InputError."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if scheme != "rtp" or not (port.isdecimal() and port.isascii() and len(port) <= 5) or "/" in host or "@" in host:
        raise InputError(f"{what} {url}: give it as rtp://HOST:PORT, as rtp://127.0.0.1:5004")
    if not 1 <= int(port) <= 65_535 - 4:
        raise InputError(f"{what} {url}: the port is from 1 to {65_535 - 4}, since the lanes take it and two behind it")
    return host, int(port)


def sprop(parameter_sets: list[bytes], codec: str) -> dict[str, str]:
    """fmtp parameters that tell H.264's (RFC 6184, 8.1) or H.265's (RFC 7798, 7.1) parameter sets."""
    text = [base64.b64encode(unit).decode() for unit in parameter_sets]
    if codec == "h264":
        found = {"packetization-mode": "1"}
        sps = next((unit for unit in parameter_sets if unit[0] & 31 == 7), None)
        if sps is not None:
            found |= {"profile-level-id": sps[1:4].hex(), "sprop-parameter-sets": ",".join(text)}
        return found
    names = {32: "sprop-vps", 33: "sprop-sps", 34: "sprop-pps"}
    kinds = [unit[0] >> 1 & 63 for unit in parameter_sets]
    return {names[kind]: value for kind, value in zip(kinds, text, strict=True) if kind in names}
