"""Holds and gives up deliveries: lease times, and the statements that dispatch and delivery share.

A lease is a claim with an end time. Its token guards every write: a process that lost the lease writes nothing.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from django.db import connection

from webtask_scheduler.dispatch.queue import Held

# Covers the second by which a claim precedes the due time, the broker and the wait for a slot. A lost message delays a
# call by this much.
CLAIMED_LEASE_SECONDS = 10.0
# Short, so that recovery from a dead process takes seconds; renewed while the process lives.
RUNNING_LEASE_SECONDS = 20.0


# The commit does not wait for the disk: a crash of the database may forget a claim, a start or a record, which costs
# one repeated call. It is part of the statement, so that it costs no round trip.
ASYNC_COMMIT = "quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"

# The time for which the attempt under way was meant: `due_at` for a first attempt, however often it was put off, and
# `next_attempt_at` for a retry or a replay.
MEANT_FOR = """CASE WHEN delivery.attempts = 1 AND delivery.replayed_at IS NULL
                        THEN delivery.due_at ELSE delivery.next_attempt_at END"""

_PUT_BACK = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(waits)s::float8[]) AS i (id, token, wait)
),
held AS MATERIALIZED (
  SELECT delivery.id, item.wait FROM quick, scheduler_delivery delivery
    JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = 'claimed' ORDER BY delivery.id FOR UPDATE OF delivery
)
UPDATE scheduler_delivery delivery
   SET state = 'scheduled', lease_token = NULL, lease_expires_at = NULL,
       next_attempt_at = CASE WHEN held.wait > 0
                              THEN greatest(clock_timestamp() + make_interval(secs => held.wait), delivery.due_at)
                              ELSE delivery.next_attempt_at END
  FROM held WHERE delivery.id = held.id
"""  # noqa: S608

# The delivery was started but not called, because this process lacks descriptors, threads or memory. The attempt is
# taken back.
_UNDO = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(waits)s::float8[]) AS i (id, token, wait)
),
held AS MATERIALIZED (
  SELECT delivery.id, item.wait FROM quick, scheduler_delivery delivery
    JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = 'running' ORDER BY delivery.id FOR UPDATE OF delivery
)
UPDATE scheduler_delivery delivery
   SET state = CASE WHEN cancel_requested_at IS NULL THEN 'scheduled' ELSE 'cancelled' END,
       finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN clock_timestamp() END,
       attempts = attempts - 1, lease_token = NULL, lease_expires_at = NULL,
       next_attempt_at = CASE WHEN held.wait > 0
                              THEN greatest(clock_timestamp() + make_interval(secs => held.wait), delivery.due_at)
                              ELSE delivery.next_attempt_at END
  FROM held WHERE delivery.id = held.id
"""  # noqa: S608

_RENEW = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) AS i (id, token)),
held AS MATERIALIZED (
  SELECT delivery.id FROM quick, scheduler_delivery delivery
    JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state IN ('claimed', 'running') ORDER BY delivery.id FOR UPDATE OF delivery
)
UPDATE scheduler_delivery delivery
   SET lease_expires_at = clock_timestamp() + make_interval(secs => CASE state WHEN 'running' THEN %(running)s
                                                                     ELSE %(claimed)s END)
  FROM held WHERE delivery.id = held.id RETURNING delivery.id
"""  # noqa: S608


def put_back(held: Sequence[Held], *, wait_seconds: Sequence[float] = ()) -> None:
    """Return claimed deliveries that were not started to the queue: at once, or each after its wait.

    Nothing is counted. Raises DatabaseError.
    """
    if held:
        arguments: dict[str, Any] = {
            "ids": [item.delivery_id for item in held],
            "tokens": [item.token for item in held],
            "waits": list(wait_seconds) or [0.0] * len(held),
        }
        with connection.cursor() as cursor:
            cursor.execute(_PUT_BACK, arguments)


def undo_starts(items: Sequence[tuple[uuid.UUID, uuid.UUID]], *, wait_seconds: Sequence[float]) -> None:
    """Return started deliveries that were not called to the queue, at once or each after its wait.

    No attempt is counted, and none is recorded as lost. Takes (delivery id, lease token) pairs and skips those whose
    lease was lost. Raises DatabaseError.
    """
    arguments: dict[str, Any] = {
        "ids": [delivery_id for delivery_id, _ in items],
        "tokens": [token for _, token in items],
        "waits": list(wait_seconds),
    }
    with connection.cursor() as cursor:
        cursor.execute(_UNDO, arguments)


def renew_leases(items: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> set[uuid.UUID]:
    """Renew the leases of (delivery id, lease token) pairs and return the ids still held. Raises DatabaseError."""
    arguments: dict[str, Any] = {
        "ids": [delivery_id for delivery_id, _ in items],
        "tokens": [token for _, token in items],
        "running": RUNNING_LEASE_SECONDS,
        "claimed": CLAIMED_LEASE_SECONDS,
    }
    with connection.cursor() as cursor:
        cursor.execute(_RENEW, arguments)
        return {row[0] for row in cursor.fetchall()}
