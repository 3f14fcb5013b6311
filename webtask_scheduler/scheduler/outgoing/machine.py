"""Tells which addresses are this machine's own, and which networks it is on: what no public list can have.

Linux answers by netlink, with its whole routing tables: local routes are own addresses, and routes without a gateway
are networks that are reached directly. Elsewhere only the addresses that this machine sends from are known, and the log
says so once.
"""

import ipaddress
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from webtask_scheduler.scheduler.outgoing.errors import is_local
from webtask_scheduler.telemetry.events import event

# An address that was added is known after this long.
REFRESH_SECONDS = 30.0

THIS_MACHINE, ON_LINK = "this-machine", "on-link"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Value = TypeVar("Value")

# A route to more than this without a gateway is a tunnel that takes everything, not a network that the machine is on.
_SHORTEST = {4: 8, 6: 16}
_BITS = {4: 32, 6: 128}
_VERSIONS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}

# Of linux/netlink.h and linux/rtnetlink.h.
_HEADER, _ROUTE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=HH")
_GET_ROUTES, _REQUEST_DUMP, _DUMP_INTERRUPTED = 26, 0x301, 0x10
_ERROR, _DONE, _NEW_ROUTE = 2, 3, 24
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST = 1, 2, 3, 4
_DESTINATION = 1
# RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_NH_ID: the way leads over others.
_OVER_OTHERS = frozenset({5, 9, 18, 30})
_READ_BYTES = 256 * 1024
_SYSTEM_SECONDS = 2.0
_TRIES = 3


class Networks(Generic[Value]):
    """Networks and a value for each; finds the value of the most specific one that holds an address."""

    def __init__(self, rows: Iterable[tuple[Network, Value]]) -> None:
        lengths: dict[int, dict[int, dict[int, Value]]] = {4: {}, 6: {}}
        for network, value in rows:
            shift = _BITS[network.version] - network.prefixlen
            lengths[network.version].setdefault(shift, {})[int(network.network_address) >> shift] = value
        self._lengths = {version: sorted(found.items()) for version, found in lengths.items()}

    def find(self, version: int, number: int) -> Value | None:
        """Return the value for an address, given as 4 or 6 and its number."""
        for shift, values in self._lengths[version]:
            value = values.get(number >> shift)
            if value is not None:
                return value
        return None


class Machine:
    """The addresses and networks of this machine, read anew now and then. For any number of threads."""

    def __init__(self, read: Callable[[], Iterable[tuple[Network, str]]] | None = None) -> None:
        self._read = read or read_system
        self._known: Networks[str] | None = None
        self._next = 0.0
        self._lock = threading.Lock()

    def find(self, version: int, number: int) -> str:
        """Return THIS_MACHINE, ON_LINK, or an empty text for an address. Raises OSError for a lack of descriptors."""
        return self.networks().find(version, number) or ""

    def networks(self) -> Networks[str]:
        """Return what is known now, the same object until it is read anew. Raises as `find`."""
        known = self._known
        if known is None or time.monotonic() >= self._next:
            known = self._refresh()
        return known

    def _refresh(self) -> Networks[str]:
        # Only the first call of a process waits; later ones go on with what is known while one of them reads.
        if not self._lock.acquire(blocking=self._known is None) and self._known is not None:
            return self._known
        try:
            if self._known is None or time.monotonic() >= self._next:
                try:
                    self._known = Networks(self._read())
                except OSError as error:
                    if self._known is None or not is_local(error):
                        raise
                self._next = time.monotonic() + REFRESH_SECONDS
            return self._known
        finally:
            self._lock.release()


_incomplete = threading.Event()


def read_system() -> list[tuple[Network, str]]:
    """Return own addresses and networks with what they are. Raises OSError for a lack of this machine."""
    try:
        return _read_netlink()
    except (AttributeError, OSError, struct.error) as error:
        if is_local(error):
            raise
        if not _incomplete.is_set():
            _incomplete.set()
            event("own_addresses_incomplete", level=logging.WARNING, error=" ".join(str(error).split()))
        return list(_sent_from())


def _read_netlink() -> list[tuple[Network, str]]:
    """Return what the system's routing tables say. Raises OSError, and AttributeError where there is no netlink."""
    for attempt in range(1, _TRIES + 1):
        data, whole = _dump()
        # Routes that changed meanwhile make a dump that may lack some.
        if whole or attempt == _TRIES:
            break
    own, on_link = [], []
    for kind, version, length, destination, direct in _routes(data):
        if kind in (_LOCAL, _ANYCAST):
            own.append((ipaddress.ip_network((destination, length)), THIS_MACHINE))
        elif kind in (_UNICAST, _BROADCAST) and direct and length >= _SHORTEST[version]:
            on_link.append((ipaddress.ip_network((destination, length)), ON_LINK))
    # The last of two rows for one network counts.
    return [*on_link, *own]


def _dump() -> tuple[bytes, bool]:
    """Return the system's answer to a request for all routes, and whether it is whole."""
    parts, whole = [], True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(_SYSTEM_SECONDS)
        length = _HEADER.size + _ROUTE.size
        sock.send(_HEADER.pack(length, _GET_ROUTES, _REQUEST_DUMP, 1, 0) + _ROUTE.pack(*[0] * 9))
        while True:
            data = sock.recv(_READ_BYTES)
            parts.append(data)
            for kind, flags, start, _ in _messages(data):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", data, start)[0]
                    raise OSError(number, "netlink refused")
                if kind == _DONE:
                    return b"".join(parts), whole


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the kind, flags, start and end of each message."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, offset + _HEADER.size, offset + length
        offset += (length + 3) & ~3


def _routes(data: bytes) -> Iterator[tuple[int, int, int, bytes, bool]]:
    """Yield each route's kind, 4 or 6, the length and bytes of its destination, and whether it has no gateway."""
    for message, _, start, end in _messages(data):
        if message != _NEW_ROUTE:
            continue
        family, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(data, start)
        version = _VERSIONS.get(family)
        if version is None:
            continue
        destination, direct = bytes(_BITS[version] // 8), True
        offset = start + _ROUTE.size
        while offset + _ATTRIBUTE.size <= end:
            size, name = _ATTRIBUTE.unpack_from(data, offset)
            if size < _ATTRIBUTE.size:
                break
            if name == _DESTINATION:
                destination = data[offset + _ATTRIBUTE.size : offset + size]
            direct = direct and name not in _OVER_OTHERS
            offset += (size + 3) & ~3
        yield kind, version, length, destination, direct


def _sent_from() -> Iterator[tuple[Network, str]]:
    """Yield the addresses that this machine sends from; connecting a datagram socket sends nothing."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((far, 9))
                yield ipaddress.ip_network(sock.getsockname()[0].partition("%")[0]), THIS_MACHINE
        except OSError as error:
            if is_local(error):
                raise
