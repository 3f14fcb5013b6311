"""Makes the HTTP call of one started attempt from the timer's options, and returns its outcome."""

import json
import logging
import math
import time
from datetime import UTC, datetime, timedelta

from webtask_scheduler.scheduler.models import EXCERPT_MAX_LENGTH, ErrorKind
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.queue.attempts import Outcome, Started
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.options import WITH_BODY

logger = logging.getLogger(__name__)


GIVEN_UP = "All places for calls that wait are taken; a first call to this host is given up early and made again later."
# Hops of a redirect that are followed where a timer asks for it.
REDIRECTS_MOST = 3


def call_url(call: Started, *, client: Client, timeout_seconds: float, seconds_most: float = math.inf) -> Outcome:
    """Make the HTTP call of a started attempt. What goes wrong with it is the outcome; raises LocalError.

    `timeout_seconds` is for a timer that says nothing of it. A call that this process gives up after `seconds_most`,
    though its timer allows more, is interrupted: it is made again, and not counted.
    """
    allowed_seconds = call.options.timeout_seconds(timeout_seconds)
    begun = time.monotonic()
    # When the call itself begins: the start statement's clock, carried on by the monotonic one.
    called_at = call.started_at + timedelta(seconds=begun - call.started)
    status_code, error, message, excerpt, retry_after_seconds = None, "", "", "", None
    try:
        answer = client.call(_request(call, called_at=called_at, timeout_seconds=min(allowed_seconds, seconds_most)))
    except CallError as failure:
        error, message = failure.kind, str(failure)
        if error == ErrorKind.TIMEOUT and seconds_most < allowed_seconds:
            error, message = ErrorKind.INTERRUPTED.value, GIVEN_UP
    except LocalError:
        raise
    except Exception:
        logger.exception("call_crashed delivery=%s", call.delivery_id)
        error, message = "protocol", "The answer could not be understood."
    else:
        status_code = answer.status_code
        # PostgreSQL's text holds every character but NUL.
        excerpt = answer.body.decode("utf-8", "replace").replace("\0", "�")[:EXCERPT_MAX_LENGTH]
        if not call.options.is_success(status_code):
            error, message = "status", f"The receiver answered {status_code}."
            if answer.retry_after:
                retry_after_seconds = retry.retry_after_seconds(answer.retry_after, now=called_at)
    duration_ms = round((time.monotonic() - begun) * 1000)
    logger.log(
        logging.INFO if not error else logging.WARNING,
        "attempt_ended timer=%s delivery=%s attempt=%d host=%s status=%s error=%s late_ms=%.1f took_ms=%d",
        call.timer_id,
        call.delivery_id,
        call.attempt,
        call.host.rpartition("@")[2],
        status_code or "-",
        error or "-",
        (called_at - call.meant_for) / timedelta(milliseconds=1),
        duration_ms,
    )
    return Outcome(call, called_at, duration_ms, status_code, error, message, excerpt, retry_after_seconds)


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
    headers["webtask-lateness-ms"] = f"{(called_at - call.meant_for) / timedelta(milliseconds=1):.1f}"
    return Request(
        url=call.web_url,
        method=method,
        headers=headers,
        body=body,
        timeout_seconds=timeout_seconds,
        redirects=REDIRECTS_MOST if options.follows_redirects else 0,
    )
