"""OpenTelemetry: one trace from the request that makes a timer to each call of it.

It is on if OpenTelemetry's usual variables name an exporter (see settings.TRACES_EXPORTERS). Off, its library is not
imported, and `is_on` is all that it costs.

    POST timer                     web, a child of the client's span if it sends `traceparent`
      deliver                      worker, from the claim to the end of the call; its events are claim, message, start
        POST                       the outgoing call; its id goes out as `traceparent`

The timer's row keeps the context of the first, so that the messages between need none. The first occurrence of a timer
goes on with the trace; later ones begin their own, linked to it, because a timer may recur for years.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

# Probes are asked every few seconds and make nothing.
_NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
# The instants of a delivery before its start, in the order in which beat and worker note them.
MARKS = ("claimed", "published", "received")

_tracer: Any = None


def is_on() -> bool:
    """Return whether this process traces."""
    return _tracer is not None


def start(*, exporters: Sequence[str], version: str) -> None:
    """Begin to trace in this process; the library reads its own variables, such as the endpoint and the sampler."""
    global _tracer  # noqa: PLW0603 - one tracer a process is the point
    # Late: nothing of it is loaded where it is off.
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    resource = Resource.create()
    ours = {SERVICE_VERSION: version}
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = "webtask_scheduler"
    provider = TracerProvider(resource=resource.merge(Resource(ours)))
    for name in exporters:
        exporter: SpanExporter
        if name == "console":
            exporter = ConsoleSpanExporter()
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _tracer = provider.get_tracer("webtask_scheduler", version)


class Serving:
    """The span of a request; without a span for one that is not traced."""

    def __init__(self, span: Any, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def answered(self, status_code: int, *, route: str) -> None:
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", status_code)
        if route:
            self._span.set_attribute("http.route", route)
        if status_code >= 500:  # noqa: PLR2004 - a fault of this side
            _fail(self._span, f"status {status_code}")


@contextmanager
def serving(method: str, path: str, traceparent: str) -> Iterator[Serving]:
    """Trace a request while it is answered. Only where tracing is on."""
    from opentelemetry.trace import SpanKind

    if path in _NOT_TRACED:
        yield Serving(None, traceparent)
        return
    # The path alone: a query may hold what is not for others.
    attributes = {"http.request.method": method, "url.path": path}
    span = _tracer.start_span(f"{method} {path}", _context(traceparent), SpanKind.SERVER, attributes)
    try:
        yield Serving(span, _traceparent(span))
    finally:
        span.end()


class Attempt:
    """The spans of one attempt: the delivery from its claim on, and in it the outgoing call."""

    def __init__(
        self,
        traceparent: str,
        *,
        method: str,
        host: str,
        number: int,
        started_at: datetime,
        called_at: datetime,
        marks: Sequence[float],
        follows: bool,
        attributes: Mapping[str, Any],
    ) -> None:
        """Begin both. With `follows`, the delivery's trace is its own and only linked to the given one."""
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind

        marked = dict(zip(MARKS, marks, strict=False))
        begun = min([started_at.timestamp(), *marked.values()])
        context, links = _context(traceparent), None
        # A trace that its client does not want kept is not begun anew.
        if follows and traceparent.endswith("1"):
            links, context = [trace.Link(trace.get_current_span(context).get_span_context())], _empty()
        self._delivery = _tracer.start_span(
            "deliver", context, SpanKind.CONSUMER, attributes, links, start_time=_nanoseconds(begun)
        )
        for name, at in [*marked.items(), ("started", started_at.timestamp())]:
            self._delivery.add_event(name, timestamp=_nanoseconds(at))
        called = {"http.request.method": method, "server.address": host}
        if number > 1:
            called["http.request.resend_count"] = str(number - 1)
        self._call = _tracer.start_span(
            method,
            trace.set_span_in_context(self._delivery, _empty()),
            SpanKind.CLIENT,
            called,
            start_time=_nanoseconds(called_at.timestamp()),
        )
        self._called = _nanoseconds(called_at.timestamp()), time.monotonic_ns()
        self.traceparent = _traceparent(self._call)

    def end(self, *, status_code: int | None, error: str) -> None:
        # By the clock of the start, so that no span ends before it begins.
        called, then = self._called
        ended = called + time.monotonic_ns() - then
        if status_code is not None:
            self._call.set_attribute("http.response.status_code", status_code)
        if error:
            self._call.set_attribute("error.type", error)
            _fail(self._call, error)
            _fail(self._delivery, error)
        self._call.end(ended)
        self._delivery.end(ended)


def _empty() -> Any:
    from opentelemetry.context import Context

    return Context()


def _context(traceparent: str) -> Any:
    """Return the context that a traceparent stands for; an empty one, in which a trace begins, without it."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, _empty()) if traceparent else _empty()


def _traceparent(span: Any) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)


def _fail(span: Any, description: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR, description)
