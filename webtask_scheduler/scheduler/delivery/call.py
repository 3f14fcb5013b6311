"""Makes the HTTP call of one started attempt from the timer's options, and returns its outcome."""

import json
import logging
import math
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from django.conf import settings

from webtask_scheduler.scheduler.models import EXCERPT_MAX_LENGTH, ErrorKind
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Progress, Request
from webtask_scheduler.scheduler.queue.attempts import Outcome, Started
from webtask_scheduler.scheduler.rules import answers, retry
from webtask_scheduler.scheduler.rules.options import WITH_BODY
from webtask_scheduler.telemetry import origin as origins
from webtask_scheduler.telemetry import tracing
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.telemetry.origin import Origin

GIVEN_UP = "All places for calls that wait are taken; a first call to this host is given up early and made again later."
# Hops of a redirect that are followed where a timer asks for it.
REDIRECTS_MOST = 3

# When a delivery was claimed and published, by the database's clock in seconds since the epoch, and received, by this
# process's monotonic clock; 0.0 where that is not known, as of a message of a beat of release 0.2.
Marks: TypeAlias = tuple[float, float, float]
NO_MARKS: Marks = (0.0, 0.0, 0.0)


def call_url(
    call: Started,
    *,
    client: Client,
    timeout_seconds: float,
    seconds_most: float = math.inf,
    marks: Marks = NO_MARKS,
) -> Outcome:
    """Make the HTTP call of a started attempt. What goes wrong with it is the outcome; raises LocalError.

    `timeout_seconds` is for a timer that says nothing of it. A call that this process gives up after `seconds_most`,
    though its timer allows more, is interrupted: it is made again, and not counted.
    """
    allowed_seconds = call.options.timeout_seconds(timeout_seconds)
    begun = time.monotonic()
    # When the call itself begins: the start statement's clock, carried on by the monotonic one.
    called_at = call.started_at + timedelta(seconds=begun - call.started)
    traced = _traced(call, called_at=called_at, begun=begun, marks=marks) if tracing.is_on() else None
    origin = Origin(call.options.request_id, traced.traceparent if traced else call.options.traceparent)
    with origins.of(origin):
        try:
            outcome = _outcome(call, client, called_at, begun, marks, seconds=min(allowed_seconds, seconds_most))
        except BaseException:
            if traced:
                traced.end(status_code=None, error="not_made")
            raise
        if outcome.error == ErrorKind.TIMEOUT and seconds_most < allowed_seconds:
            outcome = replace(outcome, error=ErrorKind.INTERRUPTED.value, message=GIVEN_UP)
        if traced:
            traced.end(status_code=outcome.status_code, error=outcome.error)
        event(
            "attempt_ended",
            level=logging.WARNING if outcome.error else logging.INFO,
            timer=call.timer_id,
            delivery=call.delivery_id,
            attempt=call.attempt,
            host=_host(call),
            status=outcome.status_code,
            error=outcome.error or None,
            late_ms=round((called_at - call.meant_for) / timedelta(milliseconds=1), 1),
            took_ms=outcome.duration_ms,
        )
    return outcome


def _outcome(
    call: Started, client: Client, called_at: datetime, begun: float, marks: Marks, *, seconds: float
) -> Outcome:
    """Make the call in at most `seconds` and return its outcome. Raises LocalError."""
    status_code, error, message, excerpt, retry_after_seconds, permanent = None, "", "", "", None, False
    headers: str | None = None
    if call.unreadable:
        event("call_unreadable", level=logging.ERROR, delivery=call.delivery_id, reason=call.unreadable)
        return Outcome(call, called_at, 0, None, ErrorKind.PROTOCOL.value, call.unreadable, "")
    progress = Progress()
    try:
        answer = client.call(_request(call, called_at=called_at, timeout_seconds=seconds), progress)
    except CallError as failure:
        error, message, permanent = failure.kind, str(failure), failure.permanent
    except LocalError:
        raise
    except Exception:
        event("call_crashed", level=logging.ERROR, exc_info=True, delivery=call.delivery_id)
        error, message = "protocol", "The answer could not be understood."
    else:
        status_code = answer.status_code
        # PostgreSQL's text holds every character but NUL.
        excerpt = answer.body.decode("utf-8", "replace").replace("\0", "�")[:EXCERPT_MAX_LENGTH]
        if not call.options.is_success(status_code):
            error, message = "status", f"The receiver answered {status_code}."
            if answer.retry_after:
                retry_after_seconds = retry.retry_after_seconds(answer.retry_after, now=called_at)
        if settings.WEBTASK_KEEP_HEADERS == "all" or (error and settings.WEBTASK_KEEP_HEADERS == "failed"):
            headers = answers.keep(answer.headers, secrets=answers.secrets_of(call.options.headers))
    duration_ms = round((time.monotonic() - begun) * 1000)
    return Outcome(
        call,
        called_at,
        duration_ms,
        status_code,
        error,
        message,
        excerpt,
        retry_after_seconds,
        permanent,
        stages=_stages(called_at, begun, marks, progress),
        headers=headers,
    )


def _stages(called_at: datetime, begun: float, marks: Marks, progress: Progress) -> tuple[int | None, ...]:
    """Return when a call reached each of models.STAGES, in microseconds from its beginning; None where not known."""
    claimed, published, received = marks
    at = called_at.timestamp()
    found = (
        claimed and claimed - at,
        published and published - at,
        received and received - begun,
        progress.resolved and progress.resolved - begun,
        progress.connected and progress.connected - begun,
        progress.secured and progress.secured - begun,
        progress.first_byte and progress.first_byte - begun,
    )
    # The column's numbers end at 35 minutes.
    return tuple([round(each * 1_000_000) if each and -2147 < each < 2147 else None for each in found])  # noqa: PLR2004


def _host(call: Started) -> str:
    """Return the host as a log may have it: one that is not valid is stored as the URL that it came from."""
    return re.split(r"[/?#]", call.host.rpartition("@")[2], maxsplit=1)[0]


def _traced(call: Started, *, called_at: datetime, begun: float, marks: Marks) -> tracing.Attempt:
    claimed, published, received = marks
    instants = (claimed, published, called_at.timestamp() - begun + received) if claimed and published else ()
    return tracing.Attempt(
        call.options.traceparent,
        method=call.options.method,
        host=_host(call),
        number=call.attempt,
        started_at=call.started_at,
        called_at=called_at,
        marks=instants,
        follows=call.occurrence > 1,
        attributes={
            "webtask.timer": str(call.timer_id),
            "webtask.delivery": str(call.delivery_id),
            "webtask.attempt": call.attempt,
            "webtask.due_at": call.due_at.astimezone(UTC).isoformat(),
        },
    )


def _request(call: Started, *, called_at: datetime, timeout_seconds: float) -> Request:
    """Return the request of an attempt: the timer's method, headers and body, and this service's own headers."""
    options = call.options
    method = options.method
    due_at = call.due_at.astimezone(UTC).isoformat()
    headers = options.headers
    given = options.body()
    if given is None and method in WITH_BODY:
        ours = json.dumps({"task_id": str(call.timer_id), "due_at": due_at, "attempt": call.attempt})
        given = ours.encode(), "application/json"
    body: bytes | None = None
    if given is not None:
        body, headers["Content-Type"] = given
    timestamp = int(called_at.timestamp())
    headers["webhook-id"] = str(call.delivery_id)
    headers["webhook-timestamp"] = str(timestamp)
    if call.secrets:
        headers["webhook-signature"] = signing.signature(
            call.secrets, message_id=str(call.delivery_id), timestamp=timestamp, body=body or b""
        )
    headers["webtask-timer-id"] = str(call.timer_id)
    if options.depth is not None:
        headers["webtask-depth"] = str(options.depth)
    headers["webtask-due-at"] = due_at
    headers["webtask-occurrence"] = str(call.occurrence)
    headers["webtask-attempt"] = str(call.attempt)
    origin = origins.current()
    if origin.request_id:
        headers["webtask-request-id"] = origin.request_id
    # One that the timer gives itself is kept.
    if origin.traceparent and "traceparent" not in {name.lower() for name in headers}:
        headers["traceparent"] = origin.traceparent
    headers["webtask-lateness-ms"] = f"{(called_at - call.meant_for) / timedelta(milliseconds=1):.1f}"
    return Request(
        url=call.web_url,
        method=method,
        headers=headers,
        body=body,
        sensitive=options.sensitive,
        timeout_seconds=timeout_seconds,
        redirects=REDIRECTS_MOST if options.follows_redirects else 0,
    )
