"""Translates schedules between a timer and the PeriodicTask that shows it, and nothing else."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler.models import (
    Timer,
)
from webtask_scheduler.scheduler.rules.recurrence import (
    ScheduleError,
    celery_fields,
    cron_of,
)

# True if a stock scheduler has run the row "task" for the time in "clocked" and disabled it, as it does with one-off
# rows. That is book-keeping, not a person's edit. The stock clock may run a little ahead of the database's.
RUN_BY_STOCK = """coalesce(task.one_off AND NOT task.enabled
                           AND task.last_run_at >= clocked.clocked_time - interval '5 s', false)"""

PERIODS = {
    IntervalSchedule.DAYS: 86_400.0,
    IntervalSchedule.HOURS: 3600.0,
    IntervalSchedule.MINUTES: 60.0,
    IntervalSchedule.SECONDS: 1.0,
    IntervalSchedule.MICROSECONDS: 0.000_001,
}
# The most that the column of an IntervalSchedule holds.
EVERY_MOST = 2_147_483_647


def celery_shape(cron: str, every_seconds: float | None) -> dict[str, Any] | None:
    """Return the fields of the CrontabSchedule or IntervalSchedule that a PeriodicTask shows for a schedule.

    None if Celery cannot express it; then the row shows the next due time as clocked.
    """
    if cron:
        fields = celery_fields(cron)
        return None if fields is None else {"crontab": list(fields)}
    if every_seconds is None:
        return None
    microseconds = _microseconds(every_seconds)
    for period, seconds in PERIODS.items():
        every, rest = divmod(microseconds, _microseconds(seconds))
        if not rest and every <= EVERY_MOST:
            return {"interval": [every, period]}
    return None


def show(timer: Timer, task: PeriodicTask, *, due_at: datetime) -> None:
    """Write a timer's schedule to its PeriodicTask. A schedule's row that already shows it is kept, shared or not."""
    shape = celery_shape(timer.cron, timer.every_seconds)
    rows: dict[str, Any] = {"crontab_id": None, "interval_id": None, "solar_id": None, "clocked_id": None}
    # Written in bulk: a save() would make stock beat reload everything.
    if shape is None:
        rows["clocked_id"] = _own(ClockedSchedule, task.clocked_id, clocked_time=due_at)
    elif not differs(timer.cron, timer.timezone, timer.every_seconds, *read_shown(task)):
        name = "interval_id" if "interval" in shape else "crontab_id"
        rows[name] = getattr(task, name)
    elif "crontab" in shape:
        fields = dict(zip(CRONTAB, shape["crontab"], strict=True))
        rows["crontab_id"] = _own(CrontabSchedule, task.crontab_id, **fields, timezone=timer.timezone)
    else:
        every, period = shape["interval"]
        rows["interval_id"] = _own(IntervalSchedule, task.interval_id, every=every, period=period)
    PeriodicTask.objects.filter(pk=task.pk).update(**rows, one_off=shape is None)
    drop_schedules(schedules_of(task))


# Rows of moments that one PeriodicTask uses.
_MOVE_CLOCKED = """
UPDATE django_celery_beat_clockedschedule clocked SET clocked_time = moved.due_at
  FROM unnest(%(tasks)s::int[], %(due_ats)s::timestamptz[]) AS moved (task_id, due_at)
  JOIN django_celery_beat_periodictask task ON task.id = moved.task_id
 WHERE clocked.id = task.clocked_id AND NOT EXISTS (
   SELECT FROM django_celery_beat_periodictask other WHERE other.clocked_id = clocked.id AND other.id <> task.id)
RETURNING task.id
"""


def show_many(moved: Sequence[tuple[Timer, PeriodicTask, datetime]]) -> None:
    """As `show`, of many timers that are called once: by one statement those whose rows show a moment of their own."""
    tasks, due_ats = [task.pk for _, task, _ in moved], [due_at for *_, due_at in moved]
    with connection.cursor() as cursor:
        cursor.execute(_MOVE_CLOCKED, {"tasks": tasks, "due_ats": due_ats})
        shown = {row[0] for row in cursor.fetchall()}
    for timer, task, due_at in moved:
        if task.pk not in shown:
            show(timer, task, due_at=due_at)


SCHEDULES = {"clocked_id": ClockedSchedule, "crontab_id": CrontabSchedule, "interval_id": IntervalSchedule}


def schedules_of(task: PeriodicTask) -> dict[str, int]:
    """Return the ids of the schedule rows that a PeriodicTask uses, by its columns."""
    return {name: pk for name in SCHEDULES if (pk := getattr(task, name)) is not None}


def drop_schedules(rows: Mapping[str, int]) -> None:
    """Delete schedule rows that a timer's PeriodicTask has just stopped using and no other task uses.

    Other unused schedules stay, because an operator may keep them for later. It is SQL, because the models' delete()
    would also delete a task that is given the schedule at the same time; here the foreign key refuses that.
    """
    with connection.cursor() as cursor:
        for name, pk in rows.items():
            table = SCHEDULES[name]._meta.db_table  # noqa: SLF001 - Django means it so
            cursor.execute(
                f"DELETE FROM {table} WHERE id = %s AND NOT EXISTS"  # noqa: S608 - only constants are put in
                f" (SELECT FROM django_celery_beat_periodictask WHERE {name} = %s)",
                [pk, pk],
            )


def _own(model: Any, pk: int | None, **values: Any) -> int:
    """Write a schedule's row and return its id; make a new row if there is no row or other tasks use it too."""
    if pk is not None:
        stored = model.objects.filter(pk=pk)
        if stored.filter(**values).exists():
            return pk
        # The row is not read, because it may hold no valid crontab.
        if stored.aggregate(users=Count("periodictask"))["users"] == 1:
            stored.update(**values)
            return pk
    (row,) = model.objects.bulk_create([model(**values)])
    return int(row.pk)


SHOWN = """every.every, every.period, crontab.minute, crontab.hour, crontab.day_of_month, crontab.month_of_year,
       crontab.day_of_week, crontab.timezone"""
JOIN_SCHEDULES = """
  LEFT JOIN django_celery_beat_crontabschedule crontab ON crontab.id = task.crontab_id
  LEFT JOIN django_celery_beat_intervalschedule every ON every.id = task.interval_id"""
CRONTAB = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


def read_shown(task: PeriodicTask) -> tuple[Any, ...]:
    """Return the interval and the crontab that a PeriodicTask shows, as `differs` and `_read` take them."""
    with connection.cursor() as cursor:
        # Read from the table as text, because the model raises an error for an invalid time zone.
        query = f"SELECT {SHOWN} FROM django_celery_beat_periodictask task{JOIN_SCHEDULES} WHERE task.id = %s"  # noqa: S608
        cursor.execute(query, [task.pk])
        row: tuple[Any, ...] = cursor.fetchone()
        return row


def differs(cron: str, timezone: str, every_seconds: float | None, *row: Any) -> bool:
    """Return whether a PeriodicTask shows another schedule than its timer has. Of several, Celery uses the interval."""
    every, period, *fields, zone = row
    if period is not None:
        return every_seconds is None or _microseconds(every_seconds) != every * _microseconds(PERIODS.get(period, 0.0))
    if zone is not None:
        if not cron or timezone != zone:
            return True
        meant = celery_fields(cron)
        return meant != tuple(fields) and meant != _meaning(fields)
    # A clocked row stands for one due time, or for a schedule that Celery cannot express.
    return celery_shape(cron, every_seconds) is not None


def _meaning(fields: Sequence[str]) -> tuple[str, ...] | None:
    """Return the fields of a crontab as `celery_fields` would write them."""
    try:
        return celery_fields(cron_of(*fields))
    except ScheduleError:
        return ()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def is_run_by_stock(task: PeriodicTask) -> bool:
    """Return RUN_BY_STOCK for a row that is read already."""
    if task.enabled or not task.one_off or task.last_run_at is None or task.clocked is None:
        return False
    return bool(task.last_run_at >= task.clocked.clocked_time - timedelta(seconds=5))
