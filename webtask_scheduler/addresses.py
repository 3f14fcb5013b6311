"""Which network address a request comes from, for logs, limits and the audit log."""

import functools
import ipaddress
from typing import Any

from django.conf import settings


def address_of(request: Any) -> str:
    """Return the network address of a request's client, empty if it is not known.

    Each of the WEBTASK_PROXIES proxies before this service adds the address that it saw to X-Forwarded-For. What stands
    before those was written by the client and is not believed.
    """
    proxies = settings.WEBTASK_PROXIES
    hops = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    text = hops[-proxies] if proxies and len(hops) >= proxies else ""
    return _address(text) or _address(request.META.get("REMOTE_ADDR", ""))


def network_of(request: Any) -> str:
    """Return what one client is given of addresses: its address of IPv4, of IPv6 its /64. Empty if it is not known."""
    text = address_of(request)
    if ":" not in text:
        return text
    found = ipaddress.IPv6Address(text)
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


# A client sends many requests.
@functools.lru_cache(1024)
def _address(text: str) -> str:
    """Return an address in its usual form, without a zone; empty if it is none."""
    try:
        return str(ipaddress.ip_address(text.strip().partition("%")[0]))
    except ValueError:
        return ""
