"""What an owner may have at once: timers that wait, the rate of recurring ones, bulk operations.

The doors for owners ask here before they call the services; an operator's command and code of the same project do not.
`access.limits` says how large amounts are added up. What is counted exactly, and when, is counted here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.access import limits
from webtask_scheduler.scheduler.models import LANES, OWNER_BITS, RECURRING, BulkOperation, Timer
from webtask_scheduler.scheduler.rules.recurrence import Recurrence, moments_a_second
from webtask_scheduler.scheduler.services.creating import NewTimer


class QuotaError(ValidationError):
    """The owner has as many, or as much, as it may have; the text says of what, and what to do."""


# Along delivery_flow_idx and delivery_paused_idx: in each lane the flows of an owner are neighbours. What is being
# called or held by an operator's stop is not counted: there is little of it, or it is not the owner's doing.
_WAITING = """
SELECT count(*) FROM (
  SELECT FROM generate_series(0, %(lanes)s::bigint - 1) AS part (number)
   CROSS JOIN LATERAL (
     SELECT FROM scheduler_delivery
      WHERE state = 'scheduled' AND flow >= (part.number << 57) + (%(owner)s::bigint << 32)
        AND flow < (part.number << 57) + (%(owner)s::bigint << 32) + 4294967296
     UNION ALL
     SELECT FROM scheduler_delivery
      WHERE state = 'paused' AND flow >= (part.number << 57) + (%(owner)s::bigint << 32)
        AND flow < (part.number << 57) + (%(owner)s::bigint << 32) + 4294967296
   ) waiting
   LIMIT %(most)s
) counted
"""
# Along timer_owner_recurring_idx. One that has ended calls nothing more.
_RECURRING = f"""
SELECT cron, sum(coalesce(1 / every_seconds, 0))::float8 AS rate, count(*) AS count
  FROM scheduler_timer timer
 WHERE coalesce(timer.owner_id, 0) = %s AND {RECURRING}
   AND EXISTS (SELECT FROM scheduler_delivery delivery WHERE delivery.timer_id = timer.id AND NOT delivery.extra
                  AND delivery.finished_at IS NULL AND delivery.cancel_requested_at IS NULL)
 GROUP BY cron
"""  # noqa: S608 - only constants are put in


def count_waiting(owner_id: int | None, *, most: int) -> int:
    """Return how many deliveries of an owner are scheduled or paused, at most `most`. Raises DatabaseError."""
    # As models.Timer.flow has the owner.
    values = {"lanes": LANES, "owner": (owner_id or 0) & OWNER_BITS, "most": most}
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, values)
        return int(cursor.fetchone()[0])


def recurring_rate(owner_id: int | None) -> float:
    """Return how many calls a second an owner's recurring timers promise. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_RECURRING, [owner_id or 0])
        return float(sum(moments_a_second(cron) * count if cron else rate for cron, rate, count in cursor.fetchall()))


def reserve(timers: Sequence[NewTimer], *, owner_id: int | None) -> None:
    """Reserve room for timers that are about to be made. Raises QuotaError, DatabaseError."""
    most = limits.allowed(owner_id).timers_waiting
    if most:
        count = partial(count_waiting, owner_id, most=most + 1)
        if not limits.reserve(f"waiting:{owner_id or 0}", len(timers), most=most, count=count, spare=limits.SPARE):
            raise QuotaError(
                _(
                    "At most %(most)s timers of one owner may wait or be paused, and there is no room for %(count)s"
                    " more. Cancel some, or wait until some have been called. The operator sets the limit with"
                    " WEBTASK_LIMIT_TIMERS_WAITING."
                ),
                code="waiting",
                params={"most": most, "count": len(timers)},
            )
    reserve_rate(sum(rate_of(timer.recurrence) for timer in timers), owner_id=owner_id)


def rate_of(recurrence: Recurrence | None) -> float:
    """Return how many calls a second a schedule promises; 0 for a timer that is called once."""
    return recurrence.per_second if recurrence is not None else 0.0


def reserve_edit(timer: Timer, new: NewTimer) -> None:
    """Reserve what an edit adds to the rate of an owner's recurring timers. Raises QuotaError, DatabaseError."""
    before = timer.recurrence if timer.recurring else None
    reserve_rate(rate_of(new.recurrence) - rate_of(before), owner_id=timer.owner_id)


def reserve_rate(per_second: float, *, owner_id: int | None) -> None:
    most = limits.allowed(owner_id).recurring_per_second if per_second > 0 else 0.0
    if most:
        count = partial(recurring_rate, owner_id)
        if not limits.reserve(f"recurring:{owner_id or 0}", per_second, most=most, count=count):
            raise QuotaError(
                _(
                    "The recurring timers of one owner may promise at most %(most)s calls a second together, and this"
                    " would be more. Let them recur less often, or cancel some. The operator sets the limit with"
                    " WEBTASK_LIMIT_RECURRING_PER_SECOND."
                ),
                code="recurring",
                params={"most": f"{most:g}"},
            )


def check_bulk(operation: BulkOperation) -> None:
    """Check that an owner may begin another bulk operation, until the transaction ends. Raises QuotaError."""
    most = limits.allowed(operation.owner_id).bulk_open
    if not most:
        return
    with connection.cursor() as cursor:
        # Without the lock two at once would both find room.
        lock: list[Any] = [f"bulk operations of {operation.owner_id}"]
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", lock)
    if BulkOperation.objects.filter(owner=operation.owner_id, finished_at=None).count() >= most:
        raise QuotaError(
            _(
                "At most %(most)s bulk operations of one owner may be under way at once. Wait until one has ended. The"
                " operator sets the limit with WEBTASK_LIMIT_BULK_OPEN."
            ),
            code="bulk",
            params={"most": most},
        )
