"""Deletes what ended long ago, in batches with pauses, because running timers come first."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from webtask_scheduler.access import audit
from webtask_scheduler.scheduler.models import MARKED_EVERY
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.queue.faults import is_away
from webtask_scheduler.scheduler.services import idempotency, notifying
from webtask_scheduler.telemetry.events import event

# PostgreSQL's code for a statement that took too long; it concerns one step only.
TIMED_OUT = "57014"

# Timers of one transaction, and the pause after it: some tens of milliseconds of one core, then several times as long
# for running timers, which come first.
BATCH_ROWS = 200
PAUSE_SECONDS = 0.1
# Rows of one transaction, for rows that no other rows refer to.
SMALL_ROWS = 1000


def run(*, seconds: float) -> None:
    """Delete what the settings do not keep, for at most `seconds`.

    The steps take turns, a batch each, so that a step that has much to do or fails does not hold up the others.
    """
    steps: dict[str, Callable[[], int]] = {
        "idempotency keys": idempotency.prune,
        "sessions": prune_sessions,
        "minutes": rollups.fold,
    }
    if settings.WEBTASK_AUDIT_DAYS:
        steps["audit entries"] = partial(audit.prune, older_than=timedelta(days=settings.WEBTASK_AUDIT_DAYS))
    if settings.WEBTASK_KEEP_DELIVERIES:
        steps["older deliveries"] = partial(trim, keep=settings.WEBTASK_KEEP_DELIVERIES)
    if settings.WEBTASK_RETENTION_DAYS:
        older_than = timedelta(days=settings.WEBTASK_RETENTION_DAYS)
        steps["hours"] = partial(rollups.prune, older_than=older_than)
        steps["changes of bulk operations"] = partial(prune_bulk_changes, older_than=older_than)
        steps["bulk operations"] = partial(prune_bulk, older_than=older_than)
        steps["notifications"] = partial(notifying.prune, older_than=older_than)
        steps["timers"] = partial(prune, older_than=older_than)
        steps["past deliveries"] = partial(prune_past, older_than=older_than)
    ends_at = time.monotonic() + seconds
    while steps and time.monotonic() < ends_at:
        for name, step in list(steps.items()):
            try:
                with transaction.atomic():
                    more = step() > 0
            except Exception as error:
                if is_away(error) and getattr(error.__cause__, "pgcode", None) != TIMED_OUT:
                    # The other steps would fail too; the task logs it.
                    raise
                event("prune_failed", level=logging.ERROR, exc_info=error, step=name)
                more = False
            if more:
                time.sleep(PAUSE_SECONDS)
            else:
                del steps[name]


def prune(*, older_than: timedelta, limit: int = BATCH_ROWS, dry_run: bool = False) -> int:
    """Delete timers that ended longer ago than `older_than`, with all that belongs to them; return how many.

    It deletes one batch of at most `limit` in a transaction of its own. A timer with an open delivery stays. A dry run
    counts all of them and deletes nothing. The PeriodicTask and ClockedSchedule of a timer are deleted too, but not a
    ClockedSchedule that other tasks use.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        values: dict[str, Any] = {"seconds": older_than.total_seconds(), "limit": limit}
        if dry_run:
            cursor.execute(_COUNT_ENDED, values)
        else:
            for statement in (_FIND_ENDED, _LOCK_ENDED):
                cursor.execute(statement, values)
                values["timers"] = [row[0] for row in cursor.fetchall()]
            cursor.execute(_PRUNE, values)
        return int(cursor.fetchone()[0])


# Finds timers that ended long ago by the index on `finished_at`, oldest first; no delivery may be open or younger.
_ENDED = """
  SELECT timer_id FROM scheduler_delivery old
   WHERE finished_at < statement_timestamp() - make_interval(secs => %(seconds)s)
     AND NOT EXISTS (
       SELECT FROM scheduler_delivery other WHERE other.timer_id = old.timer_id
          AND (other.finished_at IS NULL OR (other.finished_at, other.id) > (old.finished_at, old.id)))
   ORDER BY finished_at
"""
_COUNT_ENDED = f"SELECT count(*) FROM ({_ENDED}) ended"  # noqa: S608 - only constants are put in
_FIND_ENDED = f"{_ENDED} LIMIT %(limit)s"
# A replay or run holds the timer's row. So a locked timer is skipped: it has not ended, or will soon go on.
_LOCK_ENDED = """
SELECT id FROM scheduler_timer WHERE id = ANY(%(timers)s::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
"""
# One statement, so that no reader sees a timer without its deliveries. Its deletes share a snapshot, and foreign keys
# are checked at the end. It checks again what has ended, because a replay may have come before the lock.
_PRUNE = """
WITH ended AS MATERIALIZED (
  SELECT timer_id FROM unnest(%(timers)s::uuid[]) AS locked (timer_id)
   WHERE NOT EXISTS (
     SELECT FROM scheduler_delivery delivery WHERE delivery.timer_id = locked.timer_id
        AND (finished_at IS NULL OR finished_at >= statement_timestamp() - make_interval(secs => %(seconds)s)))
),
locked AS MATERIALIZED (SELECT delivery.id FROM scheduler_delivery delivery JOIN ended USING (timer_id)),
labels AS (DELETE FROM scheduler_timerlabel label USING ended WHERE label.timer_id = ended.timer_id),
attempts AS (DELETE FROM scheduler_attempt USING locked WHERE delivery_id = locked.id),
deliveries AS (DELETE FROM scheduler_delivery USING locked WHERE scheduler_delivery.id = locked.id),
timers AS (
  DELETE FROM scheduler_timer USING ended WHERE scheduler_timer.id = ended.timer_id RETURNING periodic_task_id
),
tasks AS (
  DELETE FROM django_celery_beat_periodictask task USING timers WHERE task.id = timers.periodic_task_id
  RETURNING task.id, task.clocked_id, task.crontab_id, task.interval_id
),
clocked AS (
  DELETE FROM django_celery_beat_clockedschedule clocked USING tasks
   WHERE clocked.id = tasks.clocked_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.clocked_id = clocked.id AND other.id NOT IN (SELECT id FROM tasks))
),
crontabs AS (
  DELETE FROM django_celery_beat_crontabschedule crontab USING tasks
   WHERE crontab.id = tasks.crontab_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.crontab_id = crontab.id AND other.id NOT IN (SELECT id FROM tasks))
),
intervals AS (
  DELETE FROM django_celery_beat_intervalschedule every USING tasks
   WHERE every.id = tasks.interval_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.interval_id = every.id AND other.id NOT IN (SELECT id FROM tasks))
)
SELECT count(*) FROM timers
"""


def prune_past(*, older_than: timedelta, limit: int = BATCH_ROWS, dry_run: bool = False) -> int:
    """Delete deliveries that ended longer ago than `older_than`, of timers that go on; return how many. As `prune`."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_PAST if dry_run else _PRUNE_PAST, {"seconds": older_than.total_seconds(), "limit": limit})
        return int(cursor.fetchone()[0])


# A delivery may go if the timer shows another promised one: a later one, or any if this one is extra.
_PAST = """
  SELECT id FROM scheduler_delivery old
   WHERE finished_at < statement_timestamp() - make_interval(secs => %(seconds)s)
     AND EXISTS (SELECT FROM scheduler_delivery shown
                  WHERE shown.timer_id = old.timer_id AND NOT shown.extra
                    AND (shown.number > old.number OR old.extra))
   ORDER BY finished_at {limit}
"""
_COUNT_PAST = f"SELECT count(*) FROM ({_PAST.format(limit='')}) past"  # noqa: S608 - only constants are put in
_PRUNE_PAST = f"""
WITH past AS MATERIALIZED ({_PAST.format(limit="LIMIT %(limit)s FOR UPDATE SKIP LOCKED")}),
attempts AS (DELETE FROM scheduler_attempt USING past WHERE delivery_id = past.id),
deliveries AS (DELETE FROM scheduler_delivery USING past WHERE scheduler_delivery.id = past.id RETURNING true)
SELECT count(*) FROM deliveries
"""  # noqa: S608


def trim(*, keep: int, limit: int = SMALL_ROWS) -> int:
    """Delete ended deliveries of timers that have more than the last `keep`; return how many. As `prune`.

    A timer keeps up to MARKED_EVERY more: an index of every 64th delivery leads to timers that have had many.
    """
    with connection.cursor() as cursor:
        cursor.execute(_TRIM, {"keep": keep, "limit": limit})
        return int(cursor.fetchone()[0])


_TRIM = f"""
WITH many AS MATERIALIZED (
  SELECT first.timer_id, last.number - %(keep)s AS until, shown.id AS shown_id
    FROM (SELECT timer_id, min(number) AS number FROM scheduler_delivery
           WHERE number & {MARKED_EVERY - 1} = 0 GROUP BY timer_id) first
    CROSS JOIN LATERAL (SELECT number FROM scheduler_delivery other WHERE other.timer_id = first.timer_id
                         ORDER BY number DESC LIMIT 1) last
    LEFT JOIN LATERAL (SELECT id FROM scheduler_delivery other WHERE other.timer_id = first.timer_id AND NOT extra
                        ORDER BY number DESC LIMIT 1) shown ON true
   WHERE first.number <= last.number - %(keep)s
     -- What is marked may be what has to stay.
     AND EXISTS (SELECT FROM scheduler_delivery other
                  WHERE other.timer_id = first.timer_id AND other.number <= last.number - %(keep)s
                    AND other.finished_at IS NOT NULL AND other.id IS DISTINCT FROM shown.id)
   LIMIT %(limit)s
),
past AS MATERIALIZED (
  SELECT delivery.id FROM many JOIN scheduler_delivery delivery
      ON delivery.timer_id = many.timer_id AND delivery.number <= many.until
   WHERE delivery.finished_at IS NOT NULL AND delivery.id IS DISTINCT FROM many.shown_id
   LIMIT %(limit)s FOR UPDATE OF delivery SKIP LOCKED
),
attempts AS (DELETE FROM scheduler_attempt USING past WHERE delivery_id = past.id),
deliveries AS (DELETE FROM scheduler_delivery USING past WHERE scheduler_delivery.id = past.id RETURNING true)
SELECT count(*) FROM deliveries
"""  # noqa: S608


def prune_bulk_changes(*, older_than: timedelta, limit: int = SMALL_ROWS) -> int:
    """Delete one batch of what bulk operations changed that ended longer ago than `older_than`; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH past AS MATERIALIZED (
              SELECT change.operation_id, change.timer
                FROM scheduler_bulkoperation operation
                JOIN scheduler_bulkchange change ON change.operation_id = operation.id
               WHERE operation.finished_at < statement_timestamp() - make_interval(secs => %s)
               LIMIT %s FOR UPDATE OF change SKIP LOCKED)
            DELETE FROM scheduler_bulkchange change USING past
             WHERE change.operation_id = past.operation_id AND change.timer = past.timer
            """,
            [older_than.total_seconds(), limit],
        )
        return int(cursor.rowcount)


def prune_bulk(*, older_than: timedelta, limit: int = SMALL_ROWS) -> int:
    """Delete one batch of bulk operations that ended longer ago than `older_than`; return how many.

    Those whose changes are not deleted yet wait for `prune_bulk_changes`.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH past AS MATERIALIZED (
              SELECT id FROM scheduler_bulkoperation
               WHERE finished_at < statement_timestamp() - make_interval(secs => %s)
                 AND NOT EXISTS (SELECT FROM scheduler_bulkchange WHERE operation_id = scheduler_bulkoperation.id)
               ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED)
            DELETE FROM scheduler_bulkoperation operation USING past WHERE operation.id = past.id
            """,
            [older_than.total_seconds(), limit],
        )
        return int(cursor.rowcount)


def prune_sessions(*, limit: int = SMALL_ROWS) -> int:
    """Delete one batch of expired sessions of the admin; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH past AS MATERIALIZED (
              SELECT session_key FROM django_session WHERE expire_date < statement_timestamp()
               ORDER BY expire_date LIMIT %s FOR UPDATE SKIP LOCKED)
            DELETE FROM django_session session USING past WHERE session.session_key = past.session_key
            """,
            [limit],
        )
        return int(cursor.rowcount)
