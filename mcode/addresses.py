"""Hosts of rtp:// URLs as socket addresses: found by name, and refused where they are of no one machine."""

from __future__ import annotations

import ipaddress
import socket

from mcode.errors import InputError


def resolve(host: str, port: int, url: str) -> tuple[int, tuple]:
    """(address family, socket address). Raises InputError for a host that cannot be found."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"{url}: cannot find the host {host} ({getattr(error, 'strerror', None) or error})") from error
    refuse_multicast(str(address[0]), url)
    return family, address


def refuse_multicast(host: str, url: str) -> None:
    """Raises InputError for a multicast address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return
    if address.is_multicast:
        raise InputError(f"{url}: {address} is a multicast address, which is not supported; give the address of one machine")


def refuse_all(host: str, url: str) -> None:
    """Raises InputError for an address that is of no one machine: to listen on, or of all that hear it."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
        raise InputError(f"{url}: {address} is the address of no one machine; give that of the receiver, as 127.0.0.1 for here")
