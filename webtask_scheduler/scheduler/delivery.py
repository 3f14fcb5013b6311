"""What a worker does: start claimed deliveries, call their URLs, record the outcomes.

Start and record are guarded by the lease token: who lost the lease writes nothing. `pool` decides which deliveries are
started when, and makes their calls side by side.
"""

import json
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection

from webtask_scheduler.scheduler import retry
from webtask_scheduler.scheduler.http import CallError, Client
from webtask_scheduler.scheduler.leases import ASYNC_COMMIT, CLOSE_TASKS, RUNNING_LEASE_SECONDS
from webtask_scheduler.scheduler.models import EXCERPT_MAX_LENGTH

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """A delivery whose attempt was started here: all that the call needs."""

    delivery_id: uuid.UUID
    token: uuid.UUID
    timer_id: uuid.UUID
    web_url: str
    host: str
    due_at: datetime
    meant_for: datetime
    attempt: int
    # The database's clock and this process's monotonic clock at the same moment.
    started_at: datetime
    started: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    call: Started
    called_at: datetime
    duration_ms: int
    status_code: int | None
    error: str
    message: str
    excerpt: str


# Due by the database's clock, claimed by whoever sent the message, not cancelled since. A row that is claimed but not
# yet due is answered with the seconds left; one whose calls are stopped is held. A first attempt is meant for the
# promised moment, however often it was put off.
_START = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) AS i (id, token)),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.timer_id, timer.web_url, timer.host, clock_timestamp() AS now,
         extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8 AS left,
         EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host IN ('', timer.host)) AS stopped
    FROM quick, scheduler_delivery delivery
    JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
    JOIN scheduler_timer timer ON timer.id = delivery.timer_id
   WHERE delivery.state = 'claimed' ORDER BY delivery.id FOR UPDATE OF delivery
),
stopped AS (
  UPDATE scheduler_delivery delivery SET state = 'held', lease_token = NULL, lease_expires_at = NULL
    FROM held WHERE delivery.id = held.id AND held.stopped
),
begun AS (
  UPDATE scheduler_delivery delivery
     SET state = 'running', attempts = attempts + 1, started_at = held.now,
         lease_expires_at = held.now + make_interval(secs => %(lease)s)
    FROM held WHERE delivery.id = held.id AND held.left <= 0 AND NOT held.stopped
  RETURNING delivery.id, delivery.lease_token, delivery.due_at, delivery.attempts,
            CASE delivery.attempts WHEN 1 THEN delivery.due_at ELSE delivery.next_attempt_at END AS meant_for
)
SELECT held.id, held.left, held.now, begun.lease_token, begun.due_at, begun.meant_for, begun.attempts,
       held.timer_id, held.web_url, held.host
  FROM held LEFT JOIN begun ON begun.id = held.id WHERE NOT held.stopped
"""  # noqa: S608 - only constants are put in

# A call that was told to end by a cancel ends as cancelled whatever it brought; its attempt says what that was.
_RECORD = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(states)s::text[], %(waits)s::float8[],
                       %(called_ats)s::timestamptz[], %(durations)s::int[], %(codes)s::int[], %(errors)s::text[],
                       %(messages)s::text[], %(excerpts)s::text[])
    AS i (id, token, state, wait, called_at, duration_ms, status_code, error, message, excerpt)
),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.attempts,
         CASE delivery.attempts WHEN 1 THEN delivery.due_at ELSE delivery.next_attempt_at END AS meant_for,
         CASE WHEN delivery.cancel_requested_at IS NULL THEN item.state ELSE 'cancelled' END AS state
    FROM quick, scheduler_delivery delivery JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = 'running' ORDER BY delivery.id FOR UPDATE OF delivery
),
attempt AS (
  INSERT INTO scheduler_attempt
    (delivery_id, number, meant_for, started_at, duration_ms, status_code, error, message, excerpt)
  SELECT held.id, held.attempts, held.meant_for, greatest(item.called_at, held.meant_for),
         item.duration_ms, item.status_code, item.error, item.message, item.excerpt
    FROM held JOIN item USING (id)
),
done AS (
  UPDATE scheduler_delivery delivery
     SET state = held.state, lease_token = NULL, lease_expires_at = NULL,
         finished_at = CASE WHEN held.state <> 'scheduled' THEN clock_timestamp() END,
         next_attempt_at = CASE WHEN held.state = 'scheduled'
                                THEN clock_timestamp() + make_interval(secs => item.wait)
                                ELSE delivery.next_attempt_at END
    FROM held JOIN item USING (id) WHERE delivery.id = held.id
  RETURNING delivery.timer_id, delivery.extra, delivery.state
),
{CLOSE_TASKS}
SELECT count(*) FROM done
"""  # noqa: S608


def start_attempts(items: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> tuple[list[Started], dict[uuid.UUID, float]]:
    """Start what may be started of (delivery id, lease token) pairs, as one statement.

    Returns the started, and for each that is claimed by this token but not yet due, the seconds left. Whatever else
    was given is stale: nothing is written. Raises DatabaseError.
    """
    arguments: dict[str, Any] = {
        "ids": [delivery_id for delivery_id, _ in items],
        "tokens": [token for _, token in items],
        "lease": RUNNING_LEASE_SECONDS,
    }
    begun = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(_START, arguments)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    started, early = [], {}
    for delivery_id, left, now, token, due_at, meant_for, attempt, timer_id, web_url, host in rows:
        if token is None:
            early[delivery_id] = max(0.0, left)
        else:
            started.append(Started(delivery_id, token, timer_id, web_url, host, due_at, meant_for, attempt, now, begun))
    return started, early


def record_outcomes(outcomes: Sequence[Outcome]) -> int:
    """Record how attempts ended, with what the policy makes of it, as one statement.

    Returns how many were written: an attempt whose lease was lost is somebody else's to tell. Raises DatabaseError.
    """
    decisions = [retry.decide(error=outcome.error, attempt=outcome.call.attempt) for outcome in outcomes]
    arguments: dict[str, Any] = {
        "ids": [outcome.call.delivery_id for outcome in outcomes],
        "tokens": [outcome.call.token for outcome in outcomes],
        "states": [decision.verdict.value for decision in decisions],
        "waits": [decision.wait_seconds for decision in decisions],
        "called_ats": [outcome.called_at for outcome in outcomes],
        "durations": [outcome.duration_ms for outcome in outcomes],
        "codes": [outcome.status_code for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
        "messages": [outcome.message for outcome in outcomes],
        "excerpts": [outcome.excerpt for outcome in outcomes],
    }
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, arguments)
        written: int = cursor.fetchone()[0]
    return written


def call_url(call: Started, *, client: Client, timeout_seconds: float) -> Outcome:
    """Make the HTTP call of a started attempt. Raises nothing: what goes wrong is the outcome."""
    body = json.dumps(
        {"task_id": str(call.timer_id), "due_at": call.due_at.astimezone(UTC).isoformat(), "attempt": call.attempt}
    ).encode()
    begun = time.monotonic()
    # The start statement's clock, carried on by the monotonic one: the moment the call itself begins.
    called_at = call.started_at + timedelta(seconds=begun - call.started)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": str(call.delivery_id),
        "webhook-timestamp": str(int(called_at.timestamp())),
    }
    status_code, error, message, excerpt = None, "", "", ""
    try:
        answer = client.call(call.web_url, body=body, headers=headers, timeout_seconds=timeout_seconds)
    except CallError as failure:
        error, message = failure.kind, str(failure)
    except Exception:
        logger.exception("call_crashed delivery=%s", call.delivery_id)
        error, message = "protocol", "The answer could not be understood."
    else:
        status_code = answer.status_code
        # PostgreSQL's text holds every character but NUL.
        excerpt = answer.body.decode("utf-8", "replace").replace("\0", "�")[:EXCERPT_MAX_LENGTH]
        if not 200 <= status_code < 300:  # noqa: PLR2004 - what HTTP calls success
            error, message = "status", f"The receiver answered {status_code}."
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
    return Outcome(call, called_at, duration_ms, status_code, error, message, excerpt)
