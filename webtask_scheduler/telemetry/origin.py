"""The request that present work goes back to: its id, and its place in a distributed trace.

The middleware sets it for a request of the API; creating a timer stores it with the timer; a worker sets it again for
the timer's calls. So each log line and each call carries the id of the request that led to it.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from webtask_scheduler.telemetry import tracing

# What is taken from a client: it goes into logs, headers and a column.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Version 00 of W3C Trace Context; ids of zeros are invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Names under which a timer keeps it.
STORED = ("request_id", "traceparent")


class Origin(NamedTuple):
    """A request's id, and its `traceparent`; empty outside a trace."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        return self.traceparent[36:52]


NOTHING = Origin()
_current: ContextVar[Origin] = ContextVar("origin", default=NOTHING)
current = _current.get


def to_store() -> dict[str, str]:
    """Return what a timer that is made now keeps of the present request; empty outside a request."""
    return {name: value for name, value in zip(STORED, current(), strict=True) if value}


@contextmanager
def of(origin: Origin) -> Iterator[None]:
    """Do the work inside on behalf of a request."""
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)


def read(headers: Mapping[str, str]) -> Origin:
    """Return the origin that a client gives, with a new id if it gives none that can be kept."""
    request_id = headers.get("HTTP_X_REQUEST_ID", "")
    traceparent = headers.get("HTTP_TRACEPARENT", "")
    if traceparent and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = ""
    if not _REQUEST_ID.fullmatch(request_id):
        # The id of its trace if there is one: it is what the client's own tools search for.
        request_id = traceparent[3:35] or secrets.token_hex(8)
    return Origin(request_id, traceparent)


class Middleware:
    """Gives each request its id: as `request.request_id`, in the log, in the answer's `X-Request-ID`, in a trace."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        origin = read(request.META)
        request.request_id = origin.request_id
        if not tracing.is_on():
            return self._answer(request, origin)
        with tracing.serving(request.method, request.path, origin.traceparent) as span:
            response = self._answer(request, origin._replace(traceparent=span.traceparent))
            match = request.resolver_match
            span.answered(response.status_code, route=match.route if match else "")
            return response

    def _answer(self, request: Any, origin: Origin) -> Any:
        token = _current.set(origin)
        try:
            response = self._get_response(request)
        finally:
            _current.reset(token)
        response["X-Request-ID"] = origin.request_id
        return response
