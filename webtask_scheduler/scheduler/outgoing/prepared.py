"""Turns a request into the address it is sent to and the bytes that are sent."""

import base64
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from requests import exceptions
from requests.models import PreparedRequest

from webtask_scheduler.scheduler.outgoing.checks import PORTS, TOKEN
from webtask_scheduler.scheduler.outgoing.deadline import Deadline
from webtask_scheduler.scheduler.outgoing.errors import CallError

# URLs that `requests` sends as they stand: no user, no percent sign, nothing to encode. "/." is checked separately.
_PLAIN_URL = re.compile(
    r"(https?)://([A-Za-z0-9._-]+(?::[0-9]{1,5})?)"
    r"((?:/[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?)((?:\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]+)?)"
)
_WITH_LENGTH_ZERO = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call: everything that is sent, and its bounds."""

    url: str
    method: str = "POST"
    # If a name repeats in another case, the last one counts.
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    # A body that is for the server alone that the timer names.
    sensitive: bool = False
    # For all hops together.
    timeout_seconds: float
    # Redirects that are followed. With 0, a redirect is an answer like any other.
    redirects: int = 0


class Origin(NamedTuple):
    """The server to connect to."""

    scheme: str
    # As it is looked up: encoded, without brackets.
    host: str
    port: int
    # As in a URL and in the header Host: without the scheme's default port.
    authority: str


class Prepared(PreparedRequest):
    """A request that is ready to be sent, and the deadline of its call."""

    origin: Origin
    # The path and query.
    target: str
    deadline: Deadline

    def wire(self) -> bytes:
        """Return the whole request as bytes. Raises CallError if it would not be exactly one request."""
        # Adding strings up is quicker here than collecting and joining them.
        head = f"{self.method} {self.target} HTTP/1.1\r\nHost: {self.origin.authority}\r\n"
        for name, value in self.headers.items():
            head += f"{name}: {value}\r\n"
        lines = len(self.headers) + 2
        # Stored values were checked and cannot break out of their lines; this checks all others too.
        if head.count("\r") != lines or head.count("\n") != lines or "\0" in head:
            raise CallError("protocol", "The call has a header or URL that cannot be sent.")
        # The body is always bytes, never text or a file.
        body: bytes | None = self.body  # type: ignore[assignment]
        return (head + "\r\n").encode("latin-1") + (body or b"")


class Preparer:
    """Prepares requests with the headers that every call has."""

    def __init__(self, user_agent: str) -> None:
        # Headers by names in lower case: those that a call may replace, and those that it may not.
        self._defaults = {"user-agent": ("User-Agent", user_agent), "accept": ("Accept", "*/*")}
        self._fixed = {
            "accept-encoding": ("Accept-Encoding", "identity"),
            "connection": ("Connection", "keep-alive"),
        }

    def prepare(self, request: Request, deadline: Deadline) -> Prepared:
        """Return what to send. Raises CallError of kind `url` where the URL cannot be called."""
        if not TOKEN.fullmatch(request.method):
            raise CallError("protocol", "The call's method cannot be sent.")
        prepared = Prepared()
        prepared.method = request.method
        prepared.origin, prepared.target = aim(request.url)
        prepared.url = f"{prepared.origin.scheme}://{prepared.origin.authority}{prepared.target}"
        prepared.body = request.body
        prepared.deadline = deadline
        named = self._defaults.copy()
        for name, value in request.headers.items():
            named[name.lower()] = (name, value)
        named.update(self._fixed)
        # A call's own values are ignored: the URL gives the host, and the body its length.
        for name in ("host", "content-length", "transfer-encoding"):
            named.pop(name, None)
        if request.body is not None:
            named["content-length"] = ("Content-Length", str(len(request.body)))
        elif request.method in _WITH_LENGTH_ZERO:
            named["content-length"] = ("Content-Length", "0")
        if "@" in request.url and "authorization" not in named:
            user, _, password = urlsplit(request.url).netloc.rpartition("@")[0].partition(":")
            if user or password:
                pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
                named["authorization"] = ("Authorization", "Basic " + base64.b64encode(pair).decode())
        # Not the dict of `requests` that ignores case: names are unique already, and it takes three times as long.
        prepared.headers = dict(named.values())  # type: ignore[assignment]
        return prepared


def aim(url: str) -> tuple[Origin, str]:
    """Return the server to connect to, and the path and query to ask for. Raises CallError of kind `url`."""
    plain = _PLAIN_URL.fullmatch(url)
    try:
        if plain is not None and "/." not in url:
            scheme, netloc, path, query = plain.groups()
            return _origin(scheme, netloc), (path or "/") + query
        prepared = PreparedRequest()
        prepared.prepare_url(url, None)
        parts = urlsplit(prepared.url or "")
        return _origin(parts.scheme, parts.netloc.rpartition("@")[2]), prepared.path_url
    except (exceptions.RequestException, ValueError) as error:
        raise CallError("url", "This URL cannot be called.") from error


# Cached because many calls go to one host.
@functools.lru_cache(4096)
def _origin(scheme: str, netloc: str) -> Origin:
    """Return the server that a URL's scheme and authority name. Raises ValueError, requests' RequestException."""
    prepared = PreparedRequest()
    prepared.prepare_url(f"{scheme}://{netloc}/", None)
    parts = urlsplit(prepared.url or "")
    if parts.scheme not in PORTS or not parts.hostname or parts.port == 0:
        raise ValueError(netloc)
    host = parts.hostname
    port = parts.port or PORTS[parts.scheme]
    # The zone of an IPv6 address means something on this machine only.
    shown = f"[{host.partition('%')[0]}]" if ":" in host else host.rstrip(".")
    return Origin(parts.scheme, host, port, shown if port == PORTS[parts.scheme] else f"{shown}:{port}")
