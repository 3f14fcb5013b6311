"""Deleting what ended long ago, in batches: running timers come first."""

from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models.functions import Now

from webtask_scheduler.scheduler.models import BulkOperation

# Timers of one transaction, and the pause after it: some tens of milliseconds of one core, then several times as long
# for running timers, who come first.
BATCH_ROWS = 200
PAUSE_SECONDS = 0.1


def prune(*, older_than: timedelta, limit: int = BATCH_ROWS, dry_run: bool = False) -> int:
    """Delete timers that ended longer ago than that, with all that belongs to them; return how many.

    One batch of at most `limit`, in a transaction of its own; a timer of which anything is still open stays. A dry run
    counts them all instead, and deletes nothing. Deleted are the rows of ours and the PeriodicTask and ClockedSchedule
    made for them; a ClockedSchedule that other tasks use stays.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        values: dict[str, Any] = {"seconds": older_than.total_seconds(), "limit": limit}
        if dry_run:
            cursor.execute(_COUNT_ENDED, values)
        else:
            cursor.execute(_LOCK_ENDED, values)
            cursor.execute(_PRUNE, values | {"timers": [row[0] for row in cursor.fetchall()]})
        return int(cursor.fetchone()[0])


# Ended long ago, by the index of what has ended, oldest first; nothing of the timer may be open or younger.
_ENDED = """
  SELECT timer_id FROM scheduler_delivery old
   WHERE finished_at < statement_timestamp() - make_interval(secs => %(seconds)s) {timers}
     AND NOT EXISTS (
       SELECT FROM scheduler_delivery other WHERE other.timer_id = old.timer_id
          AND (other.finished_at IS NULL OR (other.finished_at, other.id) > (old.finished_at, old.id)))
   ORDER BY finished_at {limit}
"""
_COUNT_ENDED = f"SELECT count(*) FROM ({_ENDED.format(timers='', limit='')}) ended"  # noqa: S608 - only constants are put in
# Who replays or runs a timer holds its row: one that is locked is not ended, or will not be for long.
_LOCK_ENDED = f"""
SELECT id FROM scheduler_timer WHERE id IN ({_ENDED.format(timers="", limit="LIMIT %(limit)s")})
 ORDER BY id FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - only constants are put in
# One statement, so that no reader sees a timer without its deliveries. Deletes run against one snapshot, where foreign
# keys are checked at the end. It looks again at what has ended: somebody may have replayed it before it was locked.
_PRUNE = f"""
WITH ended AS MATERIALIZED ({_ENDED.format(timers="AND timer_id = ANY(%(timers)s::uuid[])", limit="")}),
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
                      WHERE other.clocked_id = clocked.id AND other.id <> tasks.id)
),
crontabs AS (
  DELETE FROM django_celery_beat_crontabschedule crontab USING tasks
   WHERE crontab.id = tasks.crontab_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.crontab_id = crontab.id AND other.id <> tasks.id)
),
intervals AS (
  DELETE FROM django_celery_beat_intervalschedule every USING tasks
   WHERE every.id = tasks.interval_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.interval_id = every.id AND other.id <> tasks.id)
)
SELECT count(*) FROM timers
"""  # noqa: S608


def prune_past(*, older_than: timedelta, limit: int = BATCH_ROWS, dry_run: bool = False) -> int:
    """Delete deliveries that ended longer ago than that, of timers that go on; return how many. As `prune`."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_PAST if dry_run else _PRUNE_PAST, {"seconds": older_than.total_seconds(), "limit": limit})
        return int(cursor.fetchone()[0])


# A later delivery is there: this one is neither what the timer shows nor what it waits for.
_PAST = """
  SELECT id FROM scheduler_delivery old
   WHERE finished_at < statement_timestamp() - make_interval(secs => %(seconds)s)
     AND EXISTS (SELECT FROM scheduler_delivery later
                  WHERE later.timer_id = old.timer_id AND later.occurrence > old.occurrence AND NOT later.extra)
   ORDER BY finished_at {limit}
"""
_COUNT_PAST = f"SELECT count(*) FROM ({_PAST.format(limit='')}) past"  # noqa: S608 - only constants are put in
_PRUNE_PAST = f"""
WITH past AS MATERIALIZED ({_PAST.format(limit="LIMIT %(limit)s FOR UPDATE SKIP LOCKED")}),
attempts AS (DELETE FROM scheduler_attempt USING past WHERE delivery_id = past.id),
deliveries AS (DELETE FROM scheduler_delivery USING past WHERE scheduler_delivery.id = past.id RETURNING true)
SELECT count(*) FROM deliveries
"""  # noqa: S608


def prune_bulk(*, older_than: timedelta) -> int:
    """Forget bulk operations that ended longer ago than that; return how many."""
    gone, _ = BulkOperation.objects.filter(finished_at__lt=Now() - older_than).delete()
    return gone
