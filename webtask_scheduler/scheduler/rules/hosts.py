"""Returns one canonical host for every spelling of it, which stops, shares, limits and filters compare."""

import ipaddress
import re
import socket
import unicodedata
from functools import lru_cache
from urllib.parse import urlsplit

from requests import PreparedRequest
from requests.exceptions import RequestException

# Left out whatever the scheme, because a host that is typed or stored has no scheme.
_DEFAULT_PORTS = (80, 443)
_LEFT_OUT = dict.fromkeys([*range(0x20), 0x7F])
_NETLOC = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?([^/?#]*)")
# Hosts that are canonical already, as most are: lower-case ASCII, no port, a last label that no address begins with.
_PLAIN = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*")


def canonical_host(url: str) -> str:
    """Return the host of a URL, or of a host alone, in its one canonical form.

    Lower case, IDNA as the HTTP client encodes it, no user, no dot at the end, IPv4 in four decimal parts however it is
    written, IPv6 compressed and in brackets, IPv4-mapped IPv6 as IPv4, and the port unless it is 80 or 443. No name
    is resolved. A text that has no valid host is returned in lower case, so that the result is empty only for an empty
    text: an empty host means every host to a stop and to a filter.
    """
    # URL parsers drop some of these characters, wherever they stand.
    match = _NETLOC.match(url.translate(_LEFT_OUT).strip())
    return _canonical(match[1] if match else "") or url.lower()


# Cached because many timers share a host, and encoding a name takes some 20 microseconds.
@lru_cache(4096)
def _canonical(netloc: str) -> str:
    """Return the canonical host, empty if there is no host."""
    if _PLAIN.fullmatch(netloc):
        return netloc
    for spelling in (netloc, _compatible(netloc)):
        found = _as_called(spelling)
        if found is not None:
            host, port = found
            shown = _address(host) or host
            return shown if port is None or port in _DEFAULT_PORTS else f"{shown}:{port}"
    rest = netloc.rpartition("@")[2].strip().lower()
    return rest if rest == netloc else _canonical(rest)


def _compatible(text: str) -> str:
    """Return a text with full-width letters, digits and dots as plain ones, as browsers read hosts."""
    return unicodedata.normalize("NFKC", text).replace("\N{IDEOGRAPHIC FULL STOP}", ".")


def _as_called(netloc: str) -> tuple[str, int | None] | None:
    """Return the host and port that the HTTP client reads from this, None if it refuses it."""
    prepared = PreparedRequest()
    try:
        prepared.prepare_url(f"http://{netloc}/", None)
        parts = urlsplit(prepared.url or "")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except (RequestException, ValueError):
        return None
    return (host, port) if host else None


def _address(host: str) -> str | None:
    """Return an IP address in its one spelling, None for a name."""
    if ":" in host:
        try:
            # A zone is percent-encoded in a URL.
            address = ipaddress.IPv6Address(host.replace("%25", "%", 1))
        except ValueError:
            return None
        return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"
    try:
        # The resolver does this before it looks a name up: 127.1, 2130706433, 0x7f.1 and 0177.1 are all 127.0.0.1.
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None
