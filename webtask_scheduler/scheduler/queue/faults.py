"""Keeps a row that the database or our own code refuses from harming others.

A batch that is refused is halved until the culprit is alone. That row is parked with its reason, and the others go on.
An absent database is no fault of a row; the caller handles it.
"""

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

from webtask_scheduler.scheduler.models import FAULT_MAX_LENGTH
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.telemetry.redaction import said

T = TypeVar("T")

# Ends a delivery that no other statement can write. The PeriodicTask shows the end, as after any failure.
_PARK = """
WITH parked AS (
  UPDATE scheduler_delivery
     SET state = 'failed', fault = %(fault)s, finished_at = clock_timestamp(), lease_token = NULL,
         lease_expires_at = NULL, cancel_requested_at = NULL, next_attempt_at = greatest(next_attempt_at, due_at)
   WHERE id = %(id)s AND (%(token)s::uuid IS NULL OR lease_token = %(token)s::uuid) AND finished_at IS NULL
  RETURNING timer_id, extra
)
UPDATE django_celery_beat_periodictask task SET enabled = false, last_run_at = clock_timestamp()
  FROM parked JOIN scheduler_timer timer ON timer.id = parked.timer_id
 WHERE task.id = timer.periodic_task_id AND NOT parked.extra
"""


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the database is away or busy, and not that it refuses a row."""
    # Where this process waits for the server by itself (config.database), a lost connection raises DatabaseError.
    return isinstance(error, (OperationalError, InterfaceError)) or type(error) is DatabaseError


def each_alone(
    write: Callable[[Sequence[T]], object], items: Sequence[T], *, park: Callable[[T, Exception], None]
) -> None:
    """Write items together; if that is refused, in halves, down to the one that is parked.

    Raises DatabaseError where the database is away.
    """
    if not items:
        return
    try:
        write(items)
    except Exception as error:
        if is_away(error):
            raise
        if len(items) == 1:
            park(items[0], error)
            return
        middle = len(items) // 2
        each_alone(write, items[:middle], park=park)
        each_alone(write, items[middle:], park=park)


def set_fault(delivery_id: uuid.UUID, error: Exception | str) -> None:
    """Store why a delivery that has ended could not go on. Raises DatabaseError."""
    fault = _said(delivery_id, error)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduler_delivery SET fault = %s WHERE id = %s", [fault, delivery_id])


def _said(delivery_id: uuid.UUID, error: Exception | str) -> str:
    fault = str(error).strip().partition("\n")[0][:FAULT_MAX_LENGTH] or type(error).__name__
    cause = error if isinstance(error, Exception) else None
    event(
        "delivery_parked",
        level=logging.ERROR,
        exc_info=cause,
        delivery=delivery_id,
        # The row keeps what it says; the log must not hold what it quotes.
        fault=said(cause) if cause else fault,
    )
    return fault


def park(delivery_id: uuid.UUID, error: Exception | str, *, token: uuid.UUID | None = None) -> None:
    """Fail a delivery that cannot go on, with the reason; with a token, only while that token holds its lease.

    Raises DatabaseError where the database is away. If even this is refused, the lease runs out.
    """
    fault = _said(delivery_id, error)
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_PARK, {"id": delivery_id, "token": token, "fault": fault})
    except DatabaseError as refused:
        if is_away(refused):
            raise
        event("delivery_not_parked", level=logging.ERROR, exc_info=refused, delivery=delivery_id)
