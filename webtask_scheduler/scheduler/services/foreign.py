"""Applies foreign edits of PeriodicTasks and their schedules to timers: by the admin, other code, a bare UPDATE."""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.access import actor, audit
from webtask_scheduler.scheduler.mirror import (
    CRONTAB,
    JOIN_SCHEDULES,
    PERIODS,
    RUN_BY_STOCK,
    SHOWN,
    differs,
    is_run_by_stock,
    read_shown,
    show,
)
from webtask_scheduler.scheduler.models import (
    FINAL,
    RECURRING,
    TASK_NAME,
    Delivery,
    State,
    Timer,
)
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.rules.recurrence import (
    Recurrence,
    ScheduleError,
    check_timezone,
    cron_of,
)
from webtask_scheduler.scheduler.services import auditing
from webtask_scheduler.scheduler.services.changing import TimerEndedError, latest_of, promise, set_schedule
from webtask_scheduler.scheduler.services.creating import NewTimer
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.wording import sentence as _
from webtask_scheduler.wording import translated

STOCK_ROW = actor.Actor(through=actor.STOCK_ROW)
Schedule: TypeAlias = ClockedSchedule | CrontabSchedule | IntervalSchedule


def lock_for_edit(periodic_task_ids: Iterable[int]) -> list[Timer]:
    """Lock and return the timers of PeriodicTasks that are about to be written, and lock their open deliveries.

    Inside the writer's transaction this keeps the order of locks; outside of a transaction it has no lasting effect.
    """
    with transaction.atomic():
        timer_ids = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).values_list("pk", flat=True)
        return states.lock(list(timer_ids)).timers


def check_edit(task: PeriodicTask) -> None:
    """Refuse an edit that a PeriodicTask of an ended timer does not allow. Raises TimerEndedError."""
    timer = Timer.objects.filter(periodic_task=task.pk).first()
    if timer is None:
        return
    if not states.has_ended(latest_of(timer.pk)):
        return
    schedules = ("interval_id", "crontab_id", "solar_id", "clocked_id")
    stored = PeriodicTask.objects.filter(pk=task.pk).values(*schedules).first()
    if stored and (task.enabled or any(stored[name] != getattr(task, name) for name in schedules)):
        raise TimerEndedError(timer.pk)


def check_schedule_edit(schedule: Schedule) -> None:
    """Refuse to change a schedule whose timers have all ended. Raises TimerEndedError."""
    names = [column.attname for column in schedule._meta.concrete_fields]  # noqa: SLF001 - Django means it so
    stored = type(schedule).objects.filter(pk=schedule.pk).values(*names).first()
    if stored is None or all(stored[name] == getattr(schedule, name) for name in names):
        return
    timer_id = None
    for timer_id in schedule.periodictask_set.values_list("timer", flat=True):
        if timer_id is None or not states.has_ended(latest_of(timer_id)):
            return
    if timer_id is not None:
        raise TimerEndedError(timer_id)


def check_schedule(timers: Iterable[Timer], schedule: Schedule) -> None:
    """Refuse a schedule that these timers cannot follow, as `obey` would. Raises ValidationError."""
    if isinstance(schedule, ClockedSchedule):
        return
    if isinstance(schedule, CrontabSchedule):
        row = (None, None, *(getattr(schedule, name) for name in CRONTAB), str(schedule.timezone))
    else:
        row = (schedule.every, schedule.period, *[None] * (len(CRONTAB) + 1))
    for timer in timers:
        if not states.has_ended(latest_of(timer.pk)):
            try:
                _read(timer, *row)
            except ScheduleError as error:
                raise ValidationError(translated(error), code="schedule") from error


def obey(periodic_task_ids: Iterable[int]) -> int:
    """Change timers to what their PeriodicTasks show now; return how many had to change.

    The stock rows were written by the admin, other code or a bare UPDATE. The row of a timer that has ended is restored
    instead.
    """
    changed = 0
    timers = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).order_by("pk")
    for timer_id in timers.values_list("pk", flat=True):
        # Who saved the row in the admin is known, who wrote to it elsewhere is not.
        with transaction.atomic(), actor.unless_set(STOCK_ROW):
            # Read after the lock: the row may have been written since.
            for timer in states.lock([timer_id]).timers:
                delivery = latest_of(timer_id)
                rows = PeriodicTask.objects.select_for_update(of=("self",)).select_related("clocked")
                task = rows.filter(timer=timer_id).first()
                if delivery is not None and task is not None:
                    changed += _obey_and_record(timer, delivery, task)
    return changed


def obey_deleted(periodic_task_ids: Iterable[int]) -> None:
    """Cancel the timers of PeriodicTasks that are being deleted. The timers' records stay."""
    timers = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).values_list("pk", flat=True)
    with transaction.atomic(), actor.unless_set(STOCK_ROW):
        locked = states.lock(list(timers))
        live = {one.timer_id for one in locked.deliveries if one.cancel_requested_at is None}
        owners = {timer.pk: timer.owner_id for timer in locked.timers if timer.pk in live}
        audit.record_each("timer.cancelled", kind=auditing.TIMER, owners=owners, after={"periodic_task": "deleted"})
        states.end(locked.deliveries)


def note_run_by_stock(periodic_task_id: int) -> None:
    """Note that a stock scheduler has run a timer's row and disabled it, as it does with one-off rows.

    That is book-keeping and not a person's edit, so the delivery goes on. The mark is a last run of this time on a
    disabled row; see mirror.RUN_BY_STOCK.
    """
    task = PeriodicTask.objects.filter(pk=periodic_task_id, timer__isnull=False).first()
    if task is None or task.enabled:
        return
    latest = Delivery.objects.filter(timer__periodic_task=periodic_task_id).latest_promised().first()
    ended_at = latest.finished_at if latest else None
    PeriodicTask.objects.filter(pk=periodic_task_id).update(
        last_run_at=ended_at or Now(), total_run_count=1 if ended_at else F("total_run_count")
    )


def reconcile(*, after: int, limit: int) -> int | None:
    """Check the next `limit` PeriodicTasks of timers and obey those that a bare `.update()` changed.

    Returns the id to go on after, None at the end. A million rows are checked in short steps.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DISPUTED, [TASK_NAME, after, limit])
        rows, last, disputed = cursor.fetchone()
        cursor.execute(_RECURRING, [TASK_NAME, after, limit])
        recurring = cursor.fetchall()
    disputed = (disputed or []) + [task_id for task_id, *row in recurring if differs(*row)]
    if disputed:
        event("foreign_edits_obeyed", timers=obey(disputed))
    return last if rows == limit else None


# Finds rows that disagree with the latest promised delivery of their timer (enabled or not, the due time, a timer that
# has ended), and rows with no schedule, more than one, or a solar one.
_DISPUTED = f"""
WITH page AS MATERIALIZED (
  SELECT id, enabled, one_off, last_run_at, interval_id, crontab_id, solar_id, clocked_id
    FROM django_celery_beat_periodictask
   WHERE task = %s AND id > %s ORDER BY id LIMIT %s
)
SELECT count(*), max(task.id), array_agg(task.id) FILTER (
         WHERE task.enabled AND latest.finished_at IS NOT NULL
            OR task.enabled AND latest.state = 'paused'
            OR NOT task.enabled AND NOT {RUN_BY_STOCK} AND latest.state IN ('scheduled', 'claimed', 'held')
            OR latest.state IS NOT NULL AND latest.finished_at IS NULL AND (
                 clocked.clocked_time <> latest.due_at OR task.solar_id IS NOT NULL
                 OR num_nonnulls(task.interval_id, task.crontab_id, task.clocked_id) <> 1))
  FROM page task
  LEFT JOIN scheduler_timer timer ON timer.periodic_task_id = task.id
  LEFT JOIN django_celery_beat_clockedschedule clocked ON clocked.id = task.clocked_id
  LEFT JOIN LATERAL (SELECT state, due_at, finished_at FROM scheduler_delivery
                      WHERE timer_id = timer.id AND NOT extra ORDER BY number DESC LIMIT 1) latest ON true
"""  # noqa: S608
# Timers that have ended are left out: their rows have no effect.
_RECURRING = f"""
WITH page AS MATERIALIZED (
  SELECT id, crontab_id, interval_id FROM django_celery_beat_periodictask
   WHERE task = %s AND id > %s ORDER BY id LIMIT %s
)
SELECT task.id, timer.cron, timer.timezone, timer.every_seconds, {SHOWN}
  FROM page task JOIN scheduler_timer timer ON timer.periodic_task_id = task.id{JOIN_SCHEDULES}
 WHERE (task.crontab_id IS NOT NULL OR task.interval_id IS NOT NULL
        OR {RECURRING})
   AND EXISTS (SELECT FROM scheduler_delivery WHERE timer_id = timer.id AND NOT extra AND finished_at IS NULL
                  AND cancel_requested_at IS NULL)
"""  # noqa: S608


def _obey_and_record(timer: Timer, delivery: Delivery, task: PeriodicTask) -> bool:
    before, state = auditing.state_of(timer, delivery), delivery.state
    if not _obey(timer, delivery, task):
        return False
    latest = latest_of(timer.pk) or delivery
    if latest.number != delivery.number and not states.has_ended(latest) and state in FINAL:
        auditing.record_deed("timer.restored", timer, due_at=latest.due_at)
        return True
    auditing.record_edit(timer, before, auditing.state_of(timer, latest), action="timer.edited")
    if (state == State.PAUSED) != (latest.state == State.PAUSED):
        auditing.record_switch(timer, state, latest.state, enabled=latest.state != State.PAUSED)
        states.forget_changes([timer.pk])
    return True


def _obey(timer: Timer, delivery: Delivery, task: PeriodicTask) -> bool:
    if states.has_ended(delivery):
        return _restore(timer, delivery, task)
    before = (delivery.state, delivery.pk)
    adopted, refused = None, False
    try:
        adopted = _adopt(timer, task)
    except ScheduleError as error:
        # Logged once, because the row then shows the timer's own schedule again.
        event("foreign_schedule_refused", level=logging.WARNING, timer=timer.pk, error=str(error))
        show(timer, task, due_at=delivery.due_at)
        refused = True
    if adopted is not None:
        delivery = promise(timer, delivery, due_at=adopted)
    elif not refused and task.clocked is not None and task.clocked.clocked_time != delivery.due_at:
        delivery = states.move(timer, delivery, due_at=task.clocked.clocked_time, enabled=task.enabled)
    elif task.enabled:
        states.resume([delivery])
    elif not is_run_by_stock(task):
        states.pause([delivery])
    return refused or before != (delivery.state, delivery.pk)


def _restore(timer: Timer, delivery: Delivery, task: PeriodicTask) -> bool:
    """Restore the row of a timer that has ended; return whether that changed anything.

    A recurring timer that should have gone on gets its next delivery.
    """
    if timer.recurring and task.enabled and delivery.state != State.CANCELLED and delivery.finished_at is not None:
        due_at = timer.recurrence.next_after(max(states.database_now(), delivery.due_at))
        if due_at is not None and (timer.max_occurrences is None or delivery.occurrence < timer.max_occurrences):
            states.promise(timer, due_at=due_at, occurrence=delivery.occurrence + 1)
            show(timer, task, due_at=due_at)
            return True
    # The stock model's save() clears the last run of a disabled row; the row of a timer that ran must have one.
    ran = delivery.state in (State.SUCCEEDED, State.FAILED)
    if not task.enabled and not (ran and task.last_run_at is None and not timer.recurring):
        return False
    truth = {"last_run_at": delivery.finished_at, "total_run_count": max(1, task.total_run_count)} if ran else {}
    PeriodicTask.objects.filter(pk=task.pk).update(enabled=False, **truth)
    return True


# The error for a row with no schedule, several, or a solar one.
ONE_SCHEDULE = _("A timer has one schedule: an interval, a crontab or a clocked moment.")
NOTHING_PROMISED = _("This schedule has no moment that is still to come.")


def _adopt(timer: Timer, task: PeriodicTask) -> datetime | None:
    """Take over the schedule of an edited PeriodicTask; return the due time to promise, None if it is the same.

    Raises ScheduleError if a timer cannot follow it.
    """
    row = read_shown(task)
    given = [task.interval_id, task.crontab_id, task.solar_id, task.clocked_id]
    if not differs(timer.cron, timer.timezone, timer.every_seconds, *row):
        if len(given) - given.count(None) != 1 or task.solar_id is not None:
            raise ScheduleError(ONE_SCHEDULE)
        return None
    if task.interval_id is not None or task.crontab_id is not None:
        recurrence, due_at = _read(timer, *row)
        # Only the timer has bounds; the row has no columns for them.
        new = NewTimer(web_url=timer.web_url, recurrence=recurrence, max_occurrences=timer.max_occurrences)
    elif task.solar_id is None and task.clocked is not None:
        new, due_at = NewTimer(web_url=timer.web_url), task.clocked.clocked_time
    else:
        raise ScheduleError(ONE_SCHEDULE)
    set_schedule(timer, new)
    timer.save()
    return due_at


def _read(timer: Timer, *row: Any) -> tuple[Recurrence, datetime]:
    """Return the schedule that a timer's row shows, and its next due time. Raises ScheduleError."""
    every, period, *fields, zone = row
    now, starts_at = states.database_now(), timer.starts_at
    # An interval's first moment was set by a person as a bound if it is more than one interval away.
    if starts_at and timer.every_seconds and (starts_at - now).total_seconds() <= timer.every_seconds:
        starts_at = None
    if period is not None:
        seconds = every * PERIODS.get(period, 0.0)
        if starts_at is None or starts_at <= now:
            try:
                starts_at = now + timedelta(seconds=seconds)
            except OverflowError as error:
                raise ScheduleError(NOTHING_PROMISED) from error
        recurrence = Recurrence(every_seconds=seconds, starts_at=starts_at, ends_at=timer.ends_at)
    else:
        zone = check_timezone(zone)
        recurrence = Recurrence(cron=cron_of(*fields), timezone=zone, starts_at=starts_at, ends_at=timer.ends_at)
    due_at = recurrence.next_after(now)
    if due_at is None:
        raise ScheduleError(NOTHING_PROMISED)
    return recurrence, due_at
