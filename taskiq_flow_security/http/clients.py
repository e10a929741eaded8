"""Who is at the other end, behind proxies that are trusted to say so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from taskiq_flow_security.http.asgi import Headers, Scope
from taskiq_flow_security.setting_types import UNIX_SOCKET

_logger = logging.getLogger(__name__)

FORWARDED_FOR = b"x-forwarded-for"
FORWARDED_PROTO = b"x-forwarded-proto"

_SECURE = frozenset({"https", "wss"})
_SECURE_BYTES = frozenset(map(str.encode, _SECURE))

_LONGEST = 64
"""Characters of an address and its port, at most; of what is longer nothing is remembered."""

_LOOPBACK = "127.0.0.1"
"""Whose headers uvicorn believes by default, and rewrites the connection by, before anybody can ask about that."""

UNKNOWN = "unknown"
"""Stands for an address that nobody here can know. All such clients are counted as one."""


@dataclass(frozen=True, slots=True)
class Client:
    """The other end of a connection."""

    address: str
    """An IP address, ``unix``, ``unknown``, or what the server says instead."""
    secure: bool
    """Whether it is connected by HTTPS or WSS."""

    @property
    def network(self) -> str:
        """What to count the client by: one IPv6 client has a whole /64 of addresses to come from (RFC 6177)."""
        return _network(self.address)


@dataclass(frozen=True, slots=True)
class _Peer:
    """Who is connected to this server, be it a client or a proxy."""

    address: str
    trusted: bool
    """Whether it is a proxy whose headers count."""
    clients: tuple[Client, Client]
    """It as a client by itself: without encryption, and with it."""


class TrustedProxies:
    """Reads ``X-Forwarded-For`` and ``X-Forwarded-Proto`` where they come from a proxy that is trusted.

    Each proxy appends the address of who connected to it. So the list is read from the right, for as long as those who
    have written it are trusted; what stands left of the first stranger can be anybody's invention.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        names = list(trusted)
        self._unix = UNIX_SOCKET in names
        self._networks = [ip_network(name) for name in names if name != UNIX_SOCKET]
        self._trusts = lru_cache(maxsize=4096)(self._look_up)
        self._peer = lru_cache(maxsize=4096)(self._look_at)
        self._as_the_server = self._trusts(_LOOPBACK)
        self._has_warned = False

    def client(self, scope: Scope, headers: Headers) -> Client:
        """Who is at the other end of this connection. `headers` are those of the names above, at least."""
        connected = scope.get("client")
        peer = self._peer(connected[0] if connected else UNIX_SOCKET)
        secure = scope.get("scheme") in _SECURE
        forwarded, protocol = headers.get(FORWARDED_FOR), headers.get(FORWARDED_PROTO)
        if forwarded is None and protocol is None:
            return peer.clients[secure]
        if not self._as_the_server:
            rewritten = connected is not None and _rewritten(peer.address, connected[1], _items(forwarded))
            if rewritten or (secure and not peer.trusted):
                self._warn()
                return Client(UNKNOWN if rewritten else peer.address, secure=False)
        if not peer.trusted:
            return peer.clients[secure]
        if protocol is not None:
            secure = protocol[-1].rpartition(b",")[2].strip().lower() in _SECURE_BYTES
        if forwarded is None:
            return peer.clients[secure]
        return _client(self._outermost(peer.address, forwarded), secure)

    def _outermost(self, address: str, forwarded: list[bytes]) -> str:
        """The last address, read from the right, that somebody who is trusted has written."""
        for item in reversed(_items(forwarded)):
            before = _address(item)
            if before is None:
                break  # whoever wrote that is not to be believed; the last address before it is
            address = before
            if not self._trusts(address):
                break
        return address

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "Somebody outside trusted_proxies sends X-Forwarded-* headers. The server may have believed them, so "
                "the connection does not count as secure. Start uvicorn with --no-proxy-headers, and name your "
                "proxies in trusted_proxies."
            )

    def _look_at(self, host: str) -> _Peer:
        address = _normal(host)
        clients = Client(address, secure=False), Client(address, secure=True)
        return _Peer(address, self._trusts(address), clients)

    def _look_up(self, address: str) -> bool:
        if address == UNIX_SOCKET:
            return self._unix
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _items(values: list[bytes] | None) -> list[str]:
    """The items of a header that is a list, and of all its repetitions (RFC 9110 section 5.3)."""
    return [item.strip() for value in values or () for item in value.decode("latin-1").split(",")]


def _rewritten(address: str, port: int, forwarded: list[str]) -> bool:
    """Whether an address may be one that a server has taken from a header: it stands there, or nobody can tell."""
    return port == 0 or any(_address(item) in (None, address) for item in forwarded)


def _address(item: str) -> str | None:
    """The address of an item of ``X-Forwarded-For``, if it is one."""
    return _parse(item) if len(item) <= _LONGEST else None


@lru_cache(maxsize=4096)
def _parse(item: str) -> str | None:
    """An address, which may have a port, and IPv6 brackets."""
    if item.startswith("["):
        item = item[1:].partition("]")[0]
    elif item.count(":") == 1:
        item = item.partition(":")[0]
    if "%" in item:  # a zone (RFC 4007 section 11) means something on that proxy's machine only
        return None
    try:
        return str(_unmapped(ip_address(item)))
    except ValueError:
        return None


def _normal(address: str) -> str:
    try:
        return str(_unmapped(ip_address(address)))
    except ValueError:
        return address


_client = lru_cache(maxsize=4096)(Client)


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    plain = address.partition("%")[0]
    try:
        ip = ip_address(plain)
    except ValueError:
        return address
    return address if ip.version == 4 else str(ip_network(f"{plain}/64", strict=False))


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that came through an IPv6 socket (RFC 4291 section 2.5.5.2) is one all the same."""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip
