"""Makes bounded HTTP calls, the only way out of the service. Errors are either the receiver's or this machine's.

`Client.call` follows a redirect only if asked to, keeps no cookie, reads no proxy variable or netrc file, reads a
bounded part of the answer, and ends at its deadline whatever the other side does.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

from webtask_scheduler.scheduler.outgoing.checks import BAD_HOST, PORTS, check_url
from webtask_scheduler.scheduler.outgoing.connections import (
    Adapter,
    Connections,
    raise_descriptor_limit,
    shares_of_descriptors,
)
from webtask_scheduler.scheduler.outgoing.deadline import Deadline, Progress, Watchdog
from webtask_scheduler.scheduler.outgoing.egress import Egress, RefusedError
from webtask_scheduler.scheduler.outgoing.errors import CallError, LocalError, is_local
from webtask_scheduler.scheduler.outgoing.names import Names
from webtask_scheduler.scheduler.outgoing.prepared import Preparer, Request
from webtask_scheduler.scheduler.outgoing.proxy import read_proxy
from webtask_scheduler.scheduler.outgoing.reading import BROKEN_OFF
from webtask_scheduler.scheduler.rules.hosts import canonical_host

__all__ = ["Answer", "CallError", "Client", "LocalError", "Progress", "Request", "raise_descriptor_limit"]

# Kept of a Retry-After: a date has 29 characters.
RETRY_AFTER_LENGTH = 100
# Longest URL of a redirect. It is often longer than a timer's, because it carries signatures.
LOCATION_MAX_LENGTH = 8192

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# These describe a body, and are dropped with it.
_OF_A_BODY = frozenset({"content-type", "content-encoding", "content-language", "content-location"})
# Sent to another origin: what describes the body, and what this service says of the call. What a timer gave is meant
# for the origin that it named, and so is a signature, with which another could pass the call on as its own.
_FOR_ANYBODY = frozenset({*_OF_A_BODY, "webhook-id", "webhook-timestamp"})
_FOR_ANYBODY_PREFIX = "webtask-"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code, the beginning of the body, and headers."""

    status_code: int
    body: bytes
    # Retry-After as received, or its beginning; empty without one.
    retry_after: str = ""
    # All of them, by their names in lower case, as Latin-1.
    headers: Mapping[str, str] = field(default_factory=dict)


class Client:
    """Makes calls from any number of threads, keeping connections to hosts that are called again soon.

    `connections` and `lookups` bound how many are open and under way at once; by default they follow the limit of open
    files (see `raise_descriptor_limit`). `egress` decides what is called. `ca_bundle` is the path of a PEM file with
    the authorities to trust, empty for those of `certifi`. `proxy` is as `read_proxy` takes it.
    `getaddrinfo` resolves names.
    """

    def __init__(
        self,
        *,
        callers: int,
        user_agent: str,
        egress: Egress,
        ca_bundle: str = "",
        proxy: str = "",
        connections: int | None = None,
        lookups: int | None = None,
        getaddrinfo: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:
        # Hosts that a redirect may not lead to, empty for all; whoever makes calls keeps it up to date.
        self.stops: frozenset[str] = frozenset()
        default_connections, default_lookups = shares_of_descriptors()
        self._names = Names(threads=lookups or default_lookups, getaddrinfo=getaddrinfo)
        self._egress = egress
        self._connections = Connections(
            most=connections or default_connections,
            kept_for_each=callers,
            names=self._names,
            egress=egress,
            ca_bundle=ca_bundle,
            proxy=read_proxy(proxy) if proxy else None,
        )
        # No Session of `requests`: for every call it merges settings, reads the environment, looks for cookies and
        # prepares to follow redirects, even by reading their whole bodies.
        self._adapter = Adapter(self._connections)
        self._preparer = Preparer(user_agent)
        self._watchdog = Watchdog(self._connections.close_idle)

    @property
    def open_connections(self) -> int:
        """Return how many connections are open: in use, or kept for the next call."""
        return self._connections.open

    @property
    def lookups_under_way(self) -> int:
        """Return how many names are being looked up."""
        return self._names.under_way

    def call(self, request: Request, progress: Progress | None = None) -> Answer:
        """Make a call and return its answer, whatever the status. It notes how far it came in `progress`.

        Raises CallError, or LocalError if this machine could not make the call, which is then no attempt.
        """
        deadline = Deadline(time.monotonic() + request.timeout_seconds, progress)
        self._watchdog.add(deadline)
        try:
            answer = self._exchange(request, deadline)
            # A head or body that the deadline cut off may look like a whole one.
            deadline.remaining()
        except Exception as error:
            explained = _explained(error, deadline, request)
            if explained is error:
                raise
            raise explained from error
        else:
            return answer
        finally:
            self._watchdog.discard(deadline)

    def interrupt(self) -> None:
        """End every call under way; each raises CallError of kind `interrupted`."""
        self._watchdog.end_all("interrupted")

    def _exchange(self, request: Request, deadline: Deadline) -> Answer:
        answer, headers = self._send(request, deadline)
        followed = 0
        while request.redirects and answer.status_code in _REDIRECTS and headers.get("location"):
            followed += 1
            if followed > request.redirects:
                allowed = "1 redirect" if request.redirects == 1 else f"{request.redirects} redirects"
                raise CallError("redirect", f"More than {allowed}.")
            try:
                request = _redirected(request, answer.status_code, headers["location"], self._egress)
            except RefusedError as refused:
                # Not permanent: the receiver may redirect elsewhere the next time.
                raise CallError("refused", f"The redirect is not followed. {refused}") from refused
            except ValueError as error:
                reason = str(error) if str(error).startswith("The URL") else BAD_HOST
                raise CallError("redirect", f"The redirect cannot be followed. {reason}") from error
            if self.stops and self.stops & {"", canonical_host(request.url)}:
                raise CallError("redirect", "The redirect leads to a host to which calls are stopped.")
            deadline.remaining()
            answer, headers = self._send(request, deadline)
        return answer

    def _send(self, request: Request, deadline: Deadline) -> tuple[Answer, Mapping[str, str]]:
        response = self._adapter.send(self._preparer.prepare(request, deadline))
        headers = response.headers
        retry_after = headers.get("retry-after", "")[:RETRY_AFTER_LENGTH]
        return Answer(response.status_code, response.content, retry_after, headers), headers


def _redirected(request: Request, status_code: int, location: str, egress: Egress) -> Request:
    """Return the call that a redirect leads to. Raises CallError, RefusedError, ValueError if it cannot be made."""
    # Headers are read as Latin-1; a Location that is not ASCII was meant as UTF-8.
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    url = urljoin(request.url, location)
    check_url(url, max_length=LOCATION_MAX_LENGTH, egress=egress)
    if urlsplit(request.url).scheme == "https" != urlsplit(url).scheme:
        raise CallError("redirect", "The redirect leads from https to http.")
    method, body, dropped = request.method, request.body, frozenset[str]()
    # As browsers do it: the answer to a posted form is fetched by GET.
    if (status_code == HTTPStatus.SEE_OTHER and method != "HEAD") or (
        status_code in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND) and method == "POST"
    ):
        method, body, dropped = "GET", None, _OF_A_BODY
    headers = request.headers
    if _origin(url) != _origin(request.url):
        if body is not None and request.sensitive:
            raise CallError("redirect", "The redirect leads to another server, and the body is sensitive.")
        headers = {name: value for name, value in headers.items() if _is_for_anybody(name.lower())}
    else:
        # A user and password are meant for the host, and a Location rarely repeats them.
        user, at, _ = urlsplit(request.url).netloc.rpartition("@")
        parts = urlsplit(url)
        if at and "@" not in parts.netloc:
            url = parts._replace(netloc=user + at + parts.netloc).geturl()
    headers = {name: value for name, value in headers.items() if name.lower() not in dropped}
    return replace(request, url=url, method=method, body=body, headers=headers)


def _is_for_anybody(name: str) -> bool:
    return name in _FOR_ANYBODY or name.startswith(_FOR_ANYBODY_PREFIX)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)


def _explained(error: Exception, deadline: Deadline, request: Request) -> Exception:
    """Return what a call raises for an error, in a sentence without addresses of this machine."""
    late = CallError("timeout", f"No complete answer within {request.timeout_seconds:g} s.")
    if deadline.ended_by:
        interrupted = CallError("interrupted", "This service was shut down during the call.")
        return interrupted if deadline.ended_by == "interrupted" else late
    if not isinstance(error, LocalError) and is_local(error):
        return LocalError(f"This machine could not make the call: {error}"[:300])
    if isinstance(error, OSError):
        return late if isinstance(error, TimeoutError) else CallError("connection", BROKEN_OFF)
    if isinstance(error, UnicodeError):
        return CallError("protocol", "The call has a character that cannot be sent.")
    return error
