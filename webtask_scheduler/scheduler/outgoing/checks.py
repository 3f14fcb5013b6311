"""Checks that a URL can be called and that headers can be sent, for the API and for redirects."""

import functools
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import requests
from requests import exceptions

from webtask_scheduler.scheduler.outgoing.egress import Egress
from webtask_scheduler.wording import Sentence
from webtask_scheduler.wording import sentence as _

# Bounds of a timer's headers. Receivers commonly refuse more than 8 KiB in one line or 16 KiB in all.
HEADERS_MOST = 50
HEADER_NAME_MAX_LENGTH = 100
HEADER_VALUE_MAX_LENGTH = 4096
HEADERS_MAX_BYTES = 16 * 1024
# These frame the message, belong to one connection, or promise what is not done here.
OWN_HEADERS = frozenset(
    {
        "host",
        "content-length",
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
        "accept-encoding",
    }
)
OWN_PREFIXES = ("webhook-", "webtask-")

PORTS = {"http": 80, "https": 443}

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Visible characters of Latin-1, spaces and tabs between them.
_VALUE = re.compile(r"(?:[!-~\xa1-\xff](?:[\t -~\xa0-\xff]*[!-~\xa1-\xff])?)?")


# A scheme and a host as most URLs have them, where `urlsplit` finds the same in ten times the time.
_USUAL = re.compile(r"(https?)://([A-Za-z0-9._:-]+)(?=[/?#]|\Z)")


def check_url(url: str, *, max_length: int, egress: Egress) -> None:
    """Check that a URL can be called as it stands, as far as that is known without looking its name up.

    Raises ValueError with a sentence for a person; RefusedError, which is one, if `egress` refuses it.
    """
    if not url:
        raise ValueError(_("A URL is required."))
    if len(url) > max_length:
        raise ValueError(_("The URL is longer than %(most)s characters.", most=max_length))
    # The one space that is printable is the plain one.
    if not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(_("The URL has a space, a backslash or a control character; percent-encode it."))
    usual = _USUAL.match(url)
    if usual is not None:
        egress.check_target(*_check_host(usual[1], usual[2]))
        return
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(BAD_HOST) from error
    if parts.scheme not in ("http", "https"):
        raise ValueError(_("The URL must begin with http:// or https://."))
    egress.check_target(*_check_host(parts.scheme, parts.netloc))


PORT_DIGITS = 5
BAD_HOST = _("The URL's host or port is not valid.")


# Cached because many timers share a host and this is the expensive part. A refusal is not cached.
@functools.lru_cache(4096)
def _check_host(scheme: str, netloc: str) -> tuple[str, int]:
    """Return host and port after checking that the name can resolve, and that the port can be connected to."""
    try:
        parts = urlsplit(f"{scheme}://{netloc}/")
        port = parts.port
        if not parts.hostname:
            raise ValueError(_("The URL has no host."))  # noqa: TRY301
        # The call does this first: a name that cannot be encoded is refused here rather than when the timer is due.
        prepared = requests.models.PreparedRequest()
        prepared.prepare_url(f"{scheme}://{netloc}/", None)
        host = (urlsplit(prepared.url or "").hostname or "").removesuffix(".")
    except (exceptions.RequestException, ValueError) as error:
        known = next((said for said in error.args if isinstance(said, Sentence)), BAD_HOST)
        raise ValueError(known) from error
    # A port is a number of at most five digits; zeros before it would make a host of any length.
    if port == 0 or len(parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]) > PORT_DIGITS:
        raise ValueError(BAD_HOST)
    # DNS has no longer names and labels; a resolver would refuse them only at the time of the call.
    if len(host) > 253 or not all(0 < len(label) <= 63 for label in host.split(".")):  # noqa: PLR2004
        raise ValueError(_("The URL's host is too long, or has an empty part."))
    return host, port or PORTS[scheme]


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers after checking that they can be sent as they stand. Raises ValueError with a sentence."""
    if len(headers) > HEADERS_MOST:
        raise ValueError(_("There are more than %(most)s headers.", most=HEADERS_MOST))
    seen: set[str] = set()
    size = 0
    for name, value in headers.items():
        # Shown as a literal, because the fault may be an invisible character.
        shown = {"header": name[:HEADER_NAME_MAX_LENGTH]}
        lowered = name.lower()
        if len(name) > HEADER_NAME_MAX_LENGTH:
            most = HEADER_NAME_MAX_LENGTH
            raise ValueError(
                _("The header %(header)r has a name of more than %(most)s characters.", **shown, most=most)
            )
        if not TOKEN.fullmatch(name):
            raise ValueError(
                _("The header %(header)r has a name that is not valid; letters, digits and hyphens are.", **shown)
            )
        if lowered in OWN_HEADERS or lowered.startswith(OWN_PREFIXES):
            raise ValueError(
                _(
                    "The header %(header)r is not for timers to give: this service sets it itself, or never sends it.",
                    **shown,
                )
            )
        if lowered in seen:
            raise ValueError(_("The header %(header)r is given twice; upper and lower case do not matter.", **shown))
        if len(value) > HEADER_VALUE_MAX_LENGTH:
            most = HEADER_VALUE_MAX_LENGTH
            raise ValueError(_("The header %(header)r is longer than %(most)s characters.", **shown, most=most))
        if not _VALUE.fullmatch(value):
            raise ValueError(
                _(
                    "The header %(header)r has a value that cannot be sent: a space at an end, a line break or another"
                    " control character, or a character beyond Latin-1.",
                    **shown,
                )
            )
        seen.add(lowered)
        size += len(name) + len(value)
        if size > HEADERS_MAX_BYTES:
            most = HEADERS_MAX_BYTES
            raise ValueError(
                _("The header %(header)r makes the headers longer than %(most)s bytes together.", **shown, most=most)
            )
    return dict(headers)
