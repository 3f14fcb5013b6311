"""Decides what may be called: asked between looking a name up and connecting, for every connection that is made.

Ports and hosts are checked before a name is looked up, all its addresses after that, and if any is refused, none is
connected to. What a deployment denies wins over what it allows, and what it allows over TABLE and PORTS.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from webtask_scheduler.scheduler.outgoing.machine import ON_LINK, THIS_MACHINE, Machine, Network, Networks
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.wording import Sentence
from webtask_scheduler.wording import sentence as _

# Of IANA's special-purpose registries for IPv4 and IPv6, which TABLE follows.
REGISTRY_DATE = "2025-10-09"

# Networks that are not called: the word by which a deployment allows or denies them, and why. The most specific counts.
TABLE = (
    ("0.0.0.0/8", "unspecified", "RFC 791, 'this network'; Linux takes 0.0.0.0 for itself"),
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "shared", "RFC 6598, behind the NAT of a carrier, a cloud or an overlay network"),
    ("100.100.100.200/32", "metadata", "Alibaba Cloud"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("168.63.129.16/32", "metadata", "Azure: its machine agent and resolver, at a public address"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("169.254.169.254/32", "metadata", "AWS, Azure, Google Cloud and most others"),
    ("169.254.170.2/32", "metadata", "AWS, the credentials of a container"),
    ("169.254.170.23/32", "metadata", "AWS, the credentials of a pod"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "reserved", "RFC 6890, IETF protocol assignments"),
    ("192.0.0.192/32", "metadata", "Oracle Cloud"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.88.99.0/24", "reserved", "RFC 7526, the relays of 6to4, given up"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("198.18.0.0/15", "benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("240.0.0.0/4", "reserved", "RFC 1112, and the broadcast address"),
    # All that is not 2000::/3, the one block of public unicast addresses.
    ("::/3", "reserved", "RFC 4291"),
    ("4000::/2", "reserved", "RFC 4291"),
    ("8000::/1", "reserved", "RFC 4291"),
    ("::/96", "embedded", "RFC 4291, IPv4-compatible, given up"),
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("::ffff:0:0/96", "embedded", "RFC 4291, IPv4-mapped"),
    ("::ffff:0:0:0/96", "embedded", "RFC 2765, IPv4-translated"),
    ("64:ff9b::/96", "embedded", "RFC 6052, NAT64"),
    ("64:ff9b:1::/48", "embedded", "RFC 8215, NAT64 of a site"),
    ("100::/64", "reserved", "RFC 6666, discard-only"),
    ("100:0:0:1::/64", "reserved", "RFC 9780, dummy prefix"),
    ("2001::/23", "reserved", "RFC 2928, IETF protocol assignments"),
    ("2001::/32", "embedded", "RFC 4380, Teredo"),
    ("2001:2::/48", "benchmarking", "RFC 5180"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "embedded", "RFC 3056, 6to4"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "reserved", "RFC 9602, segment routing"),
    ("fc00::/7", "private", "RFC 4193, unique local"),
    ("fd00:ec2::23/128", "metadata", "AWS, the credentials of a pod"),
    ("fd00:ec2::254/128", "metadata", "AWS"),
    ("fd20:ce::254/128", "metadata", "Google Cloud"),
    ("fe80::/10", "link-local", "RFC 4291"),
    ("fec0::/10", "private", "RFC 3879, site-local, given up"),
    ("ff00::/8", "multicast", "RFC 4291"),
)
# ISATAP (RFC 5214) is known by the lower half of an address: 0:5efe or 200:5efe, then the IPv4 address.
_ISATAP, _ISATAP_MASK = 0x0000_5EFE, 0xFCFF_FFFF
# The upper 96 bits of 64:ff9b::/96.
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::")) >> 32

# Words, and how they are said to a person.
WORDS = {
    "private": _("a private network"),
    "shared": _("a shared network"),
    "loopback": _("loopback"),
    "link-local": _("link-local"),
    "metadata": _("the metadata service of a cloud"),
    "unspecified": _("no particular address"),
    "documentation": _("for documentation"),
    "benchmarking": _("for benchmarks"),
    "multicast": _("multicast"),
    "reserved": _("reserved"),
    "embedded": _("an IPv4 address inside an IPv6 one"),
    THIS_MACHINE: _("this service's own machine"),
    ON_LINK: _("a network of this service's own machine"),
}
# An allowed network that holds these allows them no more than a word for another: only the very address or their word.
_NAMED_ONLY = frozenset({"metadata", THIS_MACHINE})
# A host that is allowed may lead to these. Its owner chooses the address, so it may not lead to others.
_OF_HOSTS = frozenset({"private", "shared", "loopback", ON_LINK})
# Nothing allows these: they are other addresses in disguise.
_NEVER = frozenset({"embedded"})

# Ports that are not called. Their servers read an HTTP request as commands of their own, or obey whoever connects.
_REASONS = {
    "answers whatever it is sent": (7, 19),
    "remote shells and desktops": (22, 23, 512, 513, 514, 3389, 5900, 5985, 5986),
    "file transfer and sharing": (20, 21, 69, 111, 115, 137, 138, 139, 445, 548, 873, 2049),
    "mail and news: a request can be made to be a message": (25, 109, 110, 119, 143, 465, 563, 587, 993, 995, 4190),
    "names, time, routing and network management": (53, 123, 161, 162, 179, 853),
    "directories and logins": (88, 389, 464, 636, 3268, 3269),
    "printers and displays": (515, 631, 6000, 9100),
    "chat and telephony: a request can be made to be a message": (194, 5060, 5061, 6660, *range(6665, 6670), 6697),
    "databases": (1433, 1521, 3306, 5432, 6432, 9042, 27017, 27018, 27019),
    "caches, queues and their coordination": (2181, 4369, 5671, 5672, 6379, 6380, 9092, 11211, 26379, 61613, 61616),
    "search engines, which obey whoever connects": (9200, 9300),
    "management of machines, which may obey whoever connects": (623, 2375, 2376, 2379, 2380, 10250, 10255),
}
PORTS = {port: reason for reason, ports in _REASONS.items() for port in ports}
_PORT_MOST = 65_535

_TABLE = Networks((ipaddress.ip_network(network), word) for network, word, _reason in TABLE)
_VERSIONS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_LABELS = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)*[a-z_](?:[a-z0-9_-]*[a-z0-9_])?")


class RefusedError(ValueError):
    """A call that is not made. The text is for a person, and names the rule but no address that was found."""


class EntryError(ValueError):
    """An entry of a setting is not valid. The text says what it must be."""


class _Place(NamedTuple):
    """An address of a host, at a port."""

    host: str
    port: int
    version: int
    number: int
    # Those of WORDS by which it is refused; none for a public address.
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a deployment allows or denies: one of a word, a network, a host, or any; at some ports or all."""

    word: str = ""
    network: Network | None = None
    # In lower case; `*.example.com` is every name that ends with `.example.com`.
    host: str = ""
    ports: range | None = None

    def covers(self, host: str, port: int) -> bool:
        """Return whether this says something of a host, by its name, at a port."""
        if self.ports is not None and port not in self.ports:
            return False
        if self.host:
            return host.endswith(self.host[1:]) if self.host[0] == "*" else host == self.host
        return self.is_of_any

    def holds(self, place: _Place) -> bool:
        """Return whether this says something of a place, by its address."""
        if self.ports is not None and place.port not in self.ports:
            return False
        if self.network is not None:
            return self.network.version == place.version and (
                int(self.network.network_address) <= place.number <= int(self.network.broadcast_address)
            )
        return self.word in place.words

    def says_of(self, place: _Place) -> bool:
        return self.covers(place.host, place.port) or self.holds(place)

    def allows(self, place: _Place, word: str) -> bool:
        """Return whether, where this is allowed, a place may be called although it has this word."""
        if word in _NEVER:
            return False
        if self.word:
            return self.word == word and self.holds(place)
        if self.network is not None:
            return self.holds(place) and (word not in _NAMED_ONLY or self.network.num_addresses == 1)
        return bool(self.host) and word in _OF_HOSTS and self.covers(place.host, place.port)

    @property
    def is_of_any(self) -> bool:
        """Return whether this is of ports alone."""
        return not (self.word or self.network or self.host)


def read_entries(text: str) -> tuple[Entry, ...]:
    """Return the entries of a setting, which stand between commas or spaces. Raises EntryError.

    An entry is WHAT, WHAT:PORTS or :PORTS. WHAT is one of WORDS, an address or network (IPv6 in brackets where ports
    follow), a host, or `*.` and a host for all names below it. PORTS is a number, or two with a hyphen between them.
    """
    return tuple(_read_entry(entry) for entry in re.split(r"[\s,]+", text.strip()) if entry)


def _read_entry(text: str) -> Entry:
    if text.startswith("["):
        what, closed, rest = text.partition("]")
        what, colon, given = what + closed, rest[:1], rest[1:]
        is_well_formed = bool(closed) and colon in ("", ":")
    elif text.count(":") > 1:
        what, colon, given, is_well_formed = text, "", "", True
    else:
        what, colon, given = text.partition(":")
        is_well_formed = True
    if not is_well_formed or (colon and not re.fullmatch(r"[0-9]{1,5}(?:-[0-9]{1,5})?", given)):
        raise EntryError(f"{text!r} is not WHAT, WHAT:PORT, WHAT:PORT-PORT or :PORT, with IPv6 in [brackets]")
    ports = _read_ports(text, given) if given else None
    if not what:
        return Entry(ports=ports)
    if what in WORDS:
        if what in _NEVER:
            raise EntryError(f"{text!r} cannot be chosen: such addresses are never called")
        return Entry(word=what, ports=ports)
    if ":" in what or what[0] == "[" or re.fullmatch(r"[0-9./]+", what):
        return Entry(network=_read_network(text, what), ports=ports)
    return Entry(host=_read_host(text, what), ports=ports)


def _read_ports(text: str, ports: str) -> range:
    first, _, last = ports.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found or found[0] < 1 or found[-1] > _PORT_MOST:
        raise EntryError(f"{text!r} has bad ports: they are from 1 to {_PORT_MOST}, the lower one first")
    return found


def _read_network(text: str, what: str) -> Network:
    bare = what.strip("[]")
    try:
        # In brackets is IPv6.
        network = ipaddress.IPv6Network(bare) if what[0] == "[" else ipaddress.ip_network(bare)
    except ValueError as error:
        try:
            meant = f" (did you mean {ipaddress.ip_network(bare, strict=False)}?)"
        except ValueError:
            meant = ""
        raise EntryError(f"{text!r} is no address or network, such as 10.1.0.0/16 or [fd00::/8]{meant}") from error
    else:
        return network


def _read_host(text: str, what: str) -> str:
    wildcard, host = ("*.", what[2:]) if what.startswith("*.") else ("", what)
    # That would leave out a user, a path and what else a URL may have.
    found = canonical_host(host) if host and not re.search(r"[/?#@%]", host) else ""
    if not _LABELS.fullmatch(found):
        words = ", ".join(word for word in WORDS if word not in _NEVER)
        raise EntryError(
            f"{text!r} is no host, such as api.example.com or *.example.com, no network, and none of {words}"
        )
    return wildcard + found


# Targets that are known to have passed.
_PASSED_MOST = 4096


class Egress:
    """What may be called. For any number of threads.

    `allow` and `deny` are as `read_entries` takes them. With `nat64`, an address in 64:ff9b::/96 counts as the IPv4
    address in it, for networks whose resolver makes such addresses (DNS64). Raises EntryError.
    """

    def __init__(self, *, allow: str = "", deny: str = "", nat64: bool = False, machine: Machine | None = None) -> None:
        self._allow = read_entries(allow)
        self._deny = read_entries(deny)
        self._nat64 = nat64
        self._machine = machine or Machine()
        # Targets that passed, by what was known of this machine then: many timers share a host.
        self._passed: tuple[object, set[tuple[str, int]]] = (None, set())

    def check_target(self, host: str, port: int) -> None:
        """Check what is known without looking a name up: denied hosts, ports, and an address in any spelling.

        `host` is as it is looked up, without brackets. Raises RefusedError, and OSError for a lack of this machine.
        """
        known = self._machine.networks()
        of, passed = self._passed
        if of is not known or len(passed) >= _PASSED_MOST:
            passed = set()
            self._passed = known, passed
        if (host, port) not in passed:
            self._check_target(host, port)
            passed.add((host, port))

    def _check_target(self, host: str, port: int) -> None:
        host = host.lower().rstrip(".")
        address = _address(host)
        if address is not None:
            self._check(*address, host, port, said=_address_refused)
            return
        if any(entry.covers(host, port) for entry in self._deny):
            raise RefusedError(_DENIED)
        # A name may lead to a network that is allowed with this port.
        if port in PORTS and not any(
            entry.ports is not None and (entry.covers(host, port) or (not entry.host and port in entry.ports))
            for entry in self._allow
        ):
            raise RefusedError(_port_refused(port))

    def check_found(self, host: str, port: int, addresses: Iterable[tuple[int, int, int, tuple[Any, ...]]]) -> None:
        """Check all addresses that a host was found to have, as `names.Names` gives them.

        Raises RefusedError if any of them may not be called, and OSError for a lack of this machine.
        """
        host = host.lower().rstrip(".")
        for family, _kind, _protocol, address in addresses:
            version = _VERSIONS.get(family)
            if version is None:
                raise RefusedError(_name_refused(WORDS["reserved"]))
            number = int.from_bytes(socket.inet_pton(family, address[0].partition("%")[0]))
            self._check(version, number, host, port, said=_name_refused)

    def _check(self, version: int, number: int, host: str, port: int, *, said: Callable[[Sentence], str]) -> None:
        """Check one address of a host at a port. Raises RefusedError; `said` makes its text of a rule's."""
        if self._nat64 and version == 6 and number >> 32 == _NAT64:  # noqa: PLR2004 - of IPv6
            self._refuse_denied(_Place(host, port, version, number, ()))
            version, number = 4, number & 0xFFFF_FFFF
        place = _Place(host, port, version, number, self._words(version, number))
        self._refuse_denied(place)
        for word in place.words:
            if not any(entry.allows(place, word) for entry in self._allow):
                raise RefusedError(said(WORDS[word]))
        # An entry without ports is of addresses only.
        if port in PORTS and not any(entry.ports is not None and entry.says_of(place) for entry in self._allow):
            raise RefusedError(_port_refused(port))

    def _refuse_denied(self, place: _Place) -> None:
        if any(entry.says_of(place) for entry in self._deny):
            raise RefusedError(_DENIED)

    def _words(self, version: int, number: int) -> list[str]:
        """Return the words of the rules by which an address is refused; none for a public one."""
        word = _TABLE.find(version, number)
        if version == 6 and (number >> 32) & _ISATAP_MASK == _ISATAP:  # noqa: PLR2004
            word = "embedded"
        words = [word] if word else []
        # Loopback belongs to each machine; of others it is known only by asking this one.
        if word != "loopback":
            known = self._machine.find(version, number)
            if known == THIS_MACHINE or (known and not word):
                words.append(known)
        return words


def _address(host: str) -> tuple[int, int] | None:
    """Return 4 or 6 and the number of an address in any spelling that the resolver takes; None for a name."""
    try:
        if ":" in host:
            return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        # The resolver does this before it looks a name up: 127.1, 2130706433, 0x7f.1 and 0177.1 are all 127.0.0.1.
        return 4, int.from_bytes(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


_DENIED = _("The operator of this service does not allow calls to this host, address or port.")


def _address_refused(rule: Sentence) -> str:
    return _(
        "This service does not call such addresses (%(rule)s). Give a public one, or ask its operator to allow it.",
        rule=rule,
    )


# Stored and logged only, so it is not translated.
def _name_refused(rule: str) -> str:
    return f"The host's name leads to an address that this service does not call ({rule})."


def _port_refused(port: int) -> Sentence:
    return _(
        "This service does not call port %(port)s, which serves other protocols than HTTP. Give another one, or ask its"
        " operator to allow it.",
        port=port,
    )
