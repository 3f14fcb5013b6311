"""What a person may ask of timers: schedule, edit, cancel, pause, resume, run now, replay.

Each function is one short transaction, checks the rules, and writes both halves: our rows and the PeriodicTask that
shows them. It begins with the timer's lock: see `queue.states`, which says in which order locks are taken.
"""

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import Count, F, Q
from django.db.models.functions import Now
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.queue.endings import HANDED_OVER
from webtask_scheduler.scheduler.facts import COUNT_MOST, counted
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    BulkOperation,
    CallStop,
    Delivery,
    SigningSecret,
    State,
    Timer,
    TimerLabel,
    host_of,
    new_id,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.rules.recurrence import (
    Recurrence,
    ScheduleError,
    celery_fields,
    check_timezone,
    cron_of,
)

logger = logging.getLogger(__name__)

Schedule: TypeAlias = ClockedSchedule | CrontabSchedule | IntervalSchedule

# What an edit makes of a timer: what it is to be, and whether another moment is promised.
Change: TypeAlias = Callable[[Timer], tuple["NewTimer", bool]]


class TimerEndedError(ValidationError):
    """The timer has ended. Make a new one instead."""

    def __init__(self, timer_id: uuid.UUID, advice: str = "Make a new timer instead.") -> None:
        super().__init__(f"Timer {timer_id} has ended and stays as it is. {advice}", code="final")


class TooManyRunsError(ValidationError):
    """The timer has as many open extra deliveries as it may have."""

    def __init__(self, timer_id: uuid.UUID) -> None:
        super().__init__(
            f"Timer {timer_id} has {EXTRA_OPEN_MOST} extra deliveries that have not ended. Wait until one has;"
            " cancelling the timer ends them all.",
            code="runs",
        )


class NothingPromisedError(ValidationError):
    """The schedule has no moment left."""

    def __init__(self) -> None:
        super().__init__("This schedule has no moment that is still to come.", code="no_moment")


class NothingToReplayError(ValidationError):
    """There is no failed or missed delivery, or the latest such one is being sent again already."""

    def __init__(self, timer_id: uuid.UUID) -> None:
        super().__init__(f"Timer {timer_id} has no delivery that failed or was missed.", code="nothing_to_replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTimer:
    """What to schedule: a checked URL, and a delay from the database's present moment, an instant, or a recurrence.

    `options` are as models.Timer has them. A delivery whose first attempt would be later than `max_lateness_seconds` is
    missed; without it, it is called however late.
    """

    web_url: str
    delay_seconds: float | None = None
    due_at: datetime | None = None
    recurrence: Recurrence | None = None
    max_occurrences: int | None = None
    max_lateness_seconds: float | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    owner_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A timer just stored; times are the database's."""

    timer_id: uuid.UUID
    due_at: datetime
    created_at: datetime


def _insert(*, full: bool) -> str:
    """Return the statement that creates timers: the one place that does.

    Four rows each, one statement for any number of them. Ids of the stock tables are drawn first, so that the rows of
    one timer find each other. It does not touch the shared marker row that makes stock beat reload; it fires no signal.
    The full form is for batches in which a timer has more than a URL and a time: planning it takes longer.
    """
    types = ", %s::json[]" if full else ""
    more = ", more" if full else ""
    rows = """
         CASE WHEN more->'crontab' IS NOT NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_crontabschedule', 'id')) END AS crontab_id,
         CASE WHEN more->'interval' IS NOT NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_intervalschedule', 'id')) END AS interval_id,
         CASE WHEN more->'crontab' IS NULL AND more->'interval' IS NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) END AS clocked_id,"""
    only_clocked = "nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) AS clocked_id,"
    schedules = """
crontab AS (
  INSERT INTO django_celery_beat_crontabschedule
    (id, minute, hour, day_of_month, month_of_year, day_of_week, timezone)
  SELECT crontab_id, more->'crontab'->>0, more->'crontab'->>1, more->'crontab'->>2, more->'crontab'->>3,
         more->'crontab'->>4, more->>'timezone'
    FROM item WHERE crontab_id IS NOT NULL
),
every AS (
  INSERT INTO django_celery_beat_intervalschedule (id, every, period)
  SELECT interval_id, (more->'interval'->>0)::int, more->'interval'->>1 FROM item WHERE interval_id IS NOT NULL
),
label AS (
  INSERT INTO scheduler_timerlabel (timer_id, label)
  SELECT timer_id, json_array_elements_text(more->'labels') FROM item WHERE more->'labels' IS NOT NULL
),"""
    columns = """, options, every_seconds, starts_at, ends_at, max_occurrences, max_lateness_seconds"""
    values = """coalesce(more->>'name', ''), coalesce(more->>'cron', ''), coalesce(more->>'timezone', ''),
         more->'options', (more->>'every_seconds')::float8, (more->>'starts_at')::timestamptz,
         (more->>'ends_at')::timestamptz, (more->>'max_occurrences')::int, (more->>'max_lateness_seconds')::float8"""
    return f"""
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
item AS MATERIALIZED (
  SELECT i.*, clock.now, coalesce(i.due_at, clock.now + make_interval(secs => i.delay_seconds)) AS due,
         {rows if full else only_clocked}
         nextval(pg_get_serial_sequence('django_celery_beat_periodictask', 'id')) AS task_id
    FROM clock,
         unnest(%s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::float8[], %s::timestamptz[], %s::bigint[]{types})
      WITH ORDINALITY AS i (timer_id, delivery_id, web_url, host, delay_seconds, due_at, owner_id{more}, position)
),
clocked AS (
  INSERT INTO django_celery_beat_clockedschedule (id, clocked_time)
  SELECT clocked_id, due FROM item {"WHERE clocked_id IS NOT NULL" if full else ""}
),{schedules if full else ""}
task AS (
  INSERT INTO django_celery_beat_periodictask
    (id, name, task, clocked_id, {"crontab_id, interval_id," if full else ""} args, kwargs, headers, description,
     one_off, enabled, total_run_count, date_changed)
  SELECT task_id, 'timer ' || timer_id, '{TASK_NAME}', clocked_id, {"crontab_id, interval_id," if full else ""}
         '[]', '{{"timer_id": "' || timer_id || '"}}', '{{}}', '', {"clocked_id IS NOT NULL" if full else "true"},
         true, 0, now
    FROM item
),
timer AS (
  INSERT INTO scheduler_timer
    (id, periodic_task_id, owner_id, web_url, host, created_at, name, cron, timezone{columns if full else ""})
  SELECT timer_id, task_id, owner_id, web_url, host, now, {values if full else "'', '', ''"} FROM item
  RETURNING id AS timer_id, flow
),
delivery AS (
  INSERT INTO scheduler_delivery
    (id, timer_id, flow, occurrence, moment, extra, due_at, next_attempt_at, state, attempts, attempts_before)
  SELECT delivery_id, timer_id, flow, 1, 1, false, due, due, 'scheduled', 0, 0 FROM item JOIN timer USING (timer_id)
)
SELECT timer_id, due, now FROM item ORDER BY position
"""  # noqa: S608 - only constants are put in


_INSERT_PLAIN, _INSERT = _insert(full=False), _insert(full=True)


def schedule(timers: Sequence[NewTimer]) -> list[Scheduled]:
    """Store timers, all or none, and return them in the same order.

    Called inside `transaction.atomic()` they exist if and only if the caller's transaction commits. A due moment in
    the past is due at once. Raises NothingPromisedError.
    """
    due_ats = [_first_due(timer.recurrence) if timer.recurrence else timer.due_at for timer in timers]
    more = [_more(timer) for timer in timers]
    arguments: list[Any] = [
        [new_id() for _ in timers],
        [new_id() for _ in timers],
        [timer.web_url for timer in timers],
        [host_of(timer.web_url) for timer in timers],
        [timer.delay_seconds for timer in timers],
        due_ats,
        [timer.owner_id for timer in timers],
    ]
    plain = not any(more)
    with connection.cursor() as cursor:
        if plain:
            cursor.execute(_INSERT_PLAIN, arguments)
        else:
            cursor.execute(_INSERT, [*arguments, [json.dumps(one) if one else None for one in more]])
        return [Scheduled(timer_id=row[0], due_at=row[1], created_at=row[2]) for row in cursor.fetchall()]


def _first_due(recurrence: Recurrence) -> datetime:
    # This process's clock only chooses among moments; whether one has come, the database's clock decides.
    first = recurrence.next_after(datetime.now(UTC))
    if first is None:
        raise NothingPromisedError
    return first


def _more(timer: NewTimer) -> dict[str, Any]:
    """Return what a timer has beyond a URL and a time, for `_INSERT`; empty for a plain one."""
    more: dict[str, Any] = {}
    if timer.name:
        more["name"] = timer.name
    if timer.options:
        more["options"] = timer.options
        if timer.options.get("labels"):
            more["labels"] = label_rows(timer.options)
    if timer.max_lateness_seconds is not None:
        more["max_lateness_seconds"] = timer.max_lateness_seconds
    if timer.recurrence is not None:
        columns = {name: value for name, value in _columns(timer).items() if value is not None}
        more |= {name: v.isoformat() if isinstance(v, datetime) else v for name, v in columns.items()}
        shape = _shape(timer.recurrence.cron, timer.recurrence.every_seconds)
        if shape is not None:
            more |= shape
    return more


def label_rows(options: Mapping[str, Any]) -> list[str]:
    """Return the labels of a timer as TimerLabel has them."""
    return [f"{key}={value}" for key, value in options.get("labels", {}).items()]


def _columns(timer: NewTimer) -> dict[str, Any]:
    """Return the columns of a timer's schedule; those of one that is called once are empty."""
    recurrence = timer.recurrence
    if recurrence is None:
        return dict.fromkeys(("every_seconds", "starts_at", "ends_at", "max_occurrences")) | {
            "cron": "",
            "timezone": "",
        }
    return {
        "cron": recurrence.cron,
        "timezone": recurrence.timezone if recurrence.cron else "",
        "every_seconds": recurrence.every_seconds,
        "starts_at": recurrence.starts_at,
        "ends_at": recurrence.ends_at,
        "max_occurrences": timer.max_occurrences,
    }


PERIODS = {
    IntervalSchedule.DAYS: 86_400.0,
    IntervalSchedule.HOURS: 3600.0,
    IntervalSchedule.MINUTES: 60.0,
    IntervalSchedule.SECONDS: 1.0,
    IntervalSchedule.MICROSECONDS: 0.000_001,
}
# What the column of an IntervalSchedule holds.
EVERY_MOST = 2_147_483_647


def _shape(cron: str, every_seconds: float | None) -> dict[str, Any] | None:
    """Return the fields of the CrontabSchedule or IntervalSchedule that a PeriodicTask shows for a schedule.

    None where Celery cannot express it: then the row shows the next moment as clocked.
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


def edit(timer_id: uuid.UUID, change: Change, *, descriptive_only: bool = False) -> None:
    """Change a timer to what `change` makes of it; later attempts see it.

    `change` is called with the timer locked, so that of two edits at once the second sees what the first has made. An
    edit that is `descriptive_only`, of name, labels and metadata, is taken of a timer that has ended too. Raises
    Timer.DoesNotExist, TimerEndedError, NothingPromisedError, and whatever `change` raises.
    """
    with transaction.atomic():
        timer, deliveries = _lock(timer_id)
        new, reschedule = change(timer)
        delivery = None if descriptive_only else _promised(timer_id)
        timer.web_url, timer.host = new.web_url, host_of(new.web_url)
        timer.name, timer.options = new.name, dict(new.options) or None
        timer.max_lateness_seconds = new.max_lateness_seconds
        if reschedule:
            _set_schedule(timer, new)
        timer.save()
        timer.refresh_from_db(fields=["flow"])
        moved = [one.pk for one in deliveries if one.flow != timer.flow]
        if moved:
            Delivery.objects.filter(pk__in=moved).update(flow=timer.flow)
        TimerLabel.objects.filter(timer=timer_id).delete()
        TimerLabel.objects.bulk_create(TimerLabel(timer_id=timer_id, label=label) for label in label_rows(new.options))
        if reschedule and delivery is not None:
            if new.recurrence is not None:
                due_at = _first_due(new.recurrence)
            else:
                due_at = new.due_at or states.database_now() + timedelta(seconds=new.delay_seconds or 0.0)
            _promise(timer, delivery, due_at=due_at)
    logger.info("timer_edited timer=%s rescheduled=%s", timer_id, reschedule)


def _set_schedule(timer: Timer, new: NewTimer) -> None:
    for name, value in _columns(new).items():
        setattr(timer, name, value)


def _promise(timer: Timer, delivery: Delivery, *, due_at: datetime) -> Delivery:
    """Promise another moment in place of a locked delivery, and show it in the PeriodicTask."""
    task = PeriodicTask.objects.select_for_update().filter(timer=timer.pk).first()
    moved = states.move(timer, delivery, due_at=due_at, enabled=task is None or task.enabled)
    if task is not None:
        _show(timer, task, due_at=due_at)
    return moved


def _show(timer: Timer, task: PeriodicTask, *, due_at: datetime) -> None:
    """Have a PeriodicTask show a timer's schedule. A schedule's row that says it already is kept, shared or not."""
    shape = _shape(timer.cron, timer.every_seconds)
    rows: dict[str, Any] = {"crontab_id": None, "interval_id": None, "solar_id": None, "clocked_id": None}
    # Written in bulk: a save() would make stock beat reload everything.
    if shape is None:
        rows["clocked_id"] = _own(ClockedSchedule, task.clocked_id, clocked_time=due_at)
    elif not _differs(timer.cron, timer.timezone, timer.every_seconds, *_shown(task)):
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


SCHEDULES = {"clocked_id": ClockedSchedule, "crontab_id": CrontabSchedule, "interval_id": IntervalSchedule}


def schedules_of(task: PeriodicTask) -> dict[str, int]:
    """Return the ids of the schedule's rows that a PeriodicTask uses, by its columns."""
    return {name: pk for name in SCHEDULES if (pk := getattr(task, name)) is not None}


def drop_schedules(rows: Mapping[str, int]) -> None:
    """Delete rows that a timer's PeriodicTask has just stopped using, where no other task uses them.

    Only these: a schedule that no timer used may be kept by an operator for later. In SQL: the models' own delete()
    takes along a task that somebody gives the schedule at the same moment; this way its foreign key refuses it.
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
    """Write a schedule's row, making one where there is none or other tasks use it too, and return its id."""
    if pk is not None:
        stored = model.objects.filter(pk=pk)
        if stored.filter(**values).exists():
            return pk
        # Without reading the row: what stands there may be no crontab at all.
        if stored.aggregate(users=Count("periodictask"))["users"] == 1:
            stored.update(**values)
            return pk
    (row,) = model.objects.bulk_create([model(**values)])
    return int(row.pk)


def _recurrence(timer: Timer) -> Recurrence:
    return Recurrence(
        cron=timer.cron,
        timezone=timer.timezone or "UTC",
        every_seconds=timer.every_seconds,
        starts_at=timer.starts_at,
        ends_at=timer.ends_at,
    )


def cancel(timer_id: uuid.UUID) -> None:
    """Cancel a timer for good; nothing happens where it has ended. A call in flight may land, no retry follows.

    Raises Timer.DoesNotExist.
    """
    with transaction.atomic():
        _, deliveries = _lock(timer_id)
        states.end(deliveries)
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=False)
    logger.info("timer_cancelled timer=%s", timer_id)


def pause(timer_id: uuid.UUID) -> None:
    """Hold a timer back until it is resumed. A call in flight may land; its retries wait too.

    Raises Timer.DoesNotExist, TimerEndedError.
    """
    with transaction.atomic():
        _lock(timer_id)
        states.pause([_promised(timer_id)])
        # Pausing leaves no last run, as the stock admin does: see dispatch, "handed over".
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=False, last_run_at=None)
    logger.info("timer_paused timer=%s", timer_id)


def resume(timer_id: uuid.UUID) -> None:
    """Let a paused timer go on; one whose moment has passed is due at once.

    Raises Timer.DoesNotExist, TimerEndedError.
    """
    with transaction.atomic():
        _lock(timer_id)
        states.resume([_promised(timer_id)])
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=True)
    logger.info("timer_resumed timer=%s", timer_id)


def reschedule(timer_id: uuid.UUID, *, due_at: datetime) -> None:
    """Promise another moment instead: the waiting delivery is cancelled and a new one made.

    A timer that recurs goes on by its schedule after it. Raises Timer.DoesNotExist, TimerEndedError.
    """
    with transaction.atomic():
        timer, _ = _lock(timer_id)
        _promise(timer, _promised(timer_id), due_at=due_at)
    logger.info("timer_rescheduled timer=%s due_at=%s", timer_id, due_at.isoformat())


def replay(timer_id: uuid.UUID, *, delivery_id: uuid.UUID | None = None) -> uuid.UUID:
    """Send a delivery that failed or was missed again, now, with fresh attempts; its history stays.

    Without `delivery_id`, the latest such one of the timer; while that one is being sent again already, no other is
    taken in its place: of two requests at once, one replays. Returns its id. Raises Timer.DoesNotExist,
    NothingToReplayError, TooManyRunsError.
    """
    with transaction.atomic():
        timer, _ = _lock(timer_id, deliveries=None)
        wanted = Q(state__in=states.REPLAYABLE)
        if delivery_id is not None:
            wanted &= Q(pk=delivery_id)
        else:
            wanted |= Q(replayed_at__isnull=False) & states.OPEN
        latest = Delivery.objects.filter(wanted, timer=timer_id).order_by("-occurrence").values_list("pk").first()
        # Upkeep deletes past deliveries without the timer's lock.
        locked = states.lock_deliveries(Q(pk__in=latest or (), state__in=states.REPLAYABLE))
        if not locked:
            raise NothingToReplayError(timer_id)
        (delivery,) = locked
        if _extras([timer_id]).get(timer_id, 0) >= EXTRA_OPEN_MOST:
            raise TooManyRunsError(timer_id)
        _replay(timer, delivery)
    logger.info("timer_replayed timer=%s delivery=%s", timer_id, delivery.pk)
    return delivery.pk


def _replay(timer: Timer, delivery: Delivery) -> None:
    latest = _latest(timer.pk)
    task = PeriodicTask.objects.select_for_update().filter(timer=timer.pk).first()
    # The timer's own promise again if it is still its latest; else it runs beside the promised one.
    extra = delivery.extra or latest is None or latest.pk != delivery.pk or task is None
    states.replay(delivery, flow=timer.flow, extra=extra)
    if not extra and task is not None:
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=True, last_run_at=None)
        if task.clocked_id is not None:
            ClockedSchedule.objects.filter(pk=task.clocked_id).update(clocked_time=delivery.due_at)


# Open extra deliveries of one timer: more than a person asks for, and what a timer that runs itself may breed.
EXTRA_OPEN_MOST = 10


def _extras(timer_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """Return how many open extra deliveries each timer has that has any."""
    open_ = Delivery.objects.open().filter(timer__in=list(timer_ids), extra=True)
    return dict(open_.values_list("timer").annotate(count=Count("pk")))


def run_now(timer_id: uuid.UUID) -> uuid.UUID:
    """Make an extra delivery, due now, and return its id. The promised one stands.

    Raises Timer.DoesNotExist, TimerEndedError, TooManyRunsError.
    """
    with transaction.atomic():
        timer, _ = _lock(timer_id, deliveries=None)
        if states.has_ended(_latest(timer_id)):
            # Else a timer that runs itself would go on after it was cancelled.
            raise TimerEndedError(timer_id, "Make a new timer instead, or replay a delivery that failed.")
        if _extras([timer_id]).get(timer_id, 0) >= EXTRA_OPEN_MOST:
            raise TooManyRunsError(timer_id)
        (delivery,) = states.make_extras([timer])
    logger.info("timer_run_now timer=%s delivery=%s", timer_id, delivery.pk)
    return delivery.pk


# Rows of one transaction where many are asked for: it holds their locks for some tens of milliseconds.
BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """What pausing or resuming many came to: how many do now as told, and which have ended and stay as they are."""

    done: int
    ended: list[uuid.UUID]


def switch_many(periodic_task_ids: Sequence[int], *, enabled: bool) -> Switched:
    """Resume or pause the timers of many PeriodicTasks, in transactions of BATCH_ROWS each."""
    done, ended = 0, []
    for start in range(0, len(periodic_task_ids), BATCH_ROWS):
        with transaction.atomic():
            batch = _switch(periodic_task_ids[start : start + BATCH_ROWS], enabled=enabled)
        done += batch.done
        ended += batch.ended
    logger.info("timers_switched enabled=%s done=%d ended=%d", enabled, done, len(ended))
    return Switched(done=done, ended=ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What running many came to: how many are called, which have ended, and which have too many open runs."""

    done: int
    ended: list[uuid.UUID]
    full: list[uuid.UUID]


def run_many_now(timer_ids: Sequence[uuid.UUID]) -> Ran:
    """Make an extra delivery, due now, for each of many timers that may have one. See `run_now`."""
    done, ended, full = 0, [], []
    for start in range(0, len(timer_ids), BATCH_ROWS):
        with transaction.atomic():
            timers = states.lock(timer_ids[start : start + BATCH_ROWS], deliveries=None).timers
            ids = [timer.pk for timer in timers]
            over = {delivery.timer_id for delivery in states.latest_promised(ids) if states.has_ended(delivery)}
            crowded = {pk for pk, count in _extras(ids).items() if count >= EXTRA_OPEN_MOST} - over
            done += len(states.make_extras([timer for timer in timers if timer.pk not in over | crowded]))
            ended += [pk for pk in ids if pk in over]
            full += [pk for pk in ids if pk in crowded]
    logger.info("timers_run_now timers=%d ended=%d full=%d", done, len(ended), len(full))
    return Ran(done=done, ended=ended, full=full)


def cancel_many(timer_ids: Sequence[uuid.UUID]) -> int:
    """Cancel timers for good, in one transaction; return how many were not ended yet. See `cancel`."""
    with transaction.atomic():
        _, deliveries = states.lock(timer_ids)
        live = {delivery.timer_id for delivery in deliveries if delivery.cancel_requested_at is None}
        states.end(deliveries)
        PeriodicTask.objects.filter(timer__in=list(timer_ids)).update(enabled=False)
    return len(live)


def replay_many(timer_ids: Sequence[uuid.UUID]) -> int:
    """Replay the latest failed or missed promised delivery of each timer whose status that is; return how many."""
    with transaction.atomic():
        timers = {timer.pk: timer for timer in states.lock(timer_ids, deliveries=None).timers}
        latest = [one.pk for one in states.latest_promised(list(timers))]
        lost = states.lock_deliveries(Q(pk__in=latest, state__in=states.REPLAYABLE))
        for delivery in lost:
            _replay(timers[delivery.timer_id], delivery)
    return len(lost)


def begin_bulk(operation: BulkOperation) -> None:
    """Store a bulk operation; a worker takes it up within seconds."""
    operation.save(force_insert=True)
    logger.info("bulk_begun bulk=%s action=%s dry_run=%s", operation.pk, operation.action, operation.dry_run)


# Timers of one step of a bulk operation: its transaction holds their locks for some tens of milliseconds.
BULK_ROWS = 200


def end_bulk(operation: BulkOperation, *, error: str) -> None:
    """End a bulk operation that cannot go on, saying why."""
    BulkOperation.objects.filter(pk=operation.pk).update(finished_at=Now(), error=error[:300])
    logger.warning("bulk_failed bulk=%s error=%s", operation.pk, error)


def step_bulk(operation: BulkOperation, wanted: search.Filter) -> bool:
    """Do the next page of a bulk operation, as one transaction; return whether there is more to do.

    Whoever is killed in the middle leaves the page undone, and the next step does it.
    """
    try:
        page = search.page(wanted, cursor=operation.cursor, limit=BULK_ROWS)
    except search.CursorError as error:
        end_bulk(operation, error=str(error))
        return False
    with transaction.atomic():
        if page.timer_ids and not operation.dry_run:
            operation.changed += _bulk_page(operation.action, page.timer_ids)
        operation.matched += len(page.timer_ids)
        operation.cursor = page.next or ""
        if page.next is None:
            operation.finished_at = states.database_now()
        operation.save(update_fields=["matched", "changed", "cursor", "finished_at"])
    if page.next is None:
        logger.info("bulk_ended bulk=%s matched=%d changed=%d", operation.pk, operation.matched, operation.changed)
    return page.next is not None


def _bulk_page(action: str, timer_ids: Sequence[uuid.UUID]) -> int:
    match action:
        case BulkOperation.Action.CANCEL:
            return cancel_many(timer_ids)
        case BulkOperation.Action.REPLAY:
            return replay_many(timer_ids)
    tasks = (
        Timer.objects.filter(pk__in=timer_ids).exclude(periodic_task=None).values_list("periodic_task_id", flat=True)
    )
    return _switch(list(tasks), enabled=action == BulkOperation.Action.RESUME).done


# Each call is signed with all of them.
SECRETS_MOST = 5


def add_secret(secret: str | None, *, owner_id: int | None) -> SigningSecret | None:
    """Sign the calls of an owner's timers with one more secret, a new one if None; None where there are too many."""
    with transaction.atomic(), connection.cursor() as cursor:
        # Two at once would both find room.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"signing secrets of {owner_id}"])
        if SigningSecret.objects.filter(owner=owner_id).count() >= SECRETS_MOST:
            return None
        return SigningSecret.objects.create(owner_id=owner_id, secret=secret or signing.new_secret())


class CallStopRefusedError(ValidationError):
    """What was given names no host, or neither a host nor all of them."""


_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.%]+\])(?::(?P<port>[0-9]{1,5}))?")
HOST_MOST = 253 + len(":65535")
PORT_MOST = 65535


def host_to_stop(text: str) -> str:
    """Return the host that a person means by a host or a whole URL, as timers have it. Raises CallStopRefusedError."""
    host = host_of(text.strip())
    match = _HOST.fullmatch(host)
    port = int(match["port"] or 1) if match else 0
    if not match or len(host) > HOST_MOST or not 0 < port <= PORT_MOST:
        raise CallStopRefusedError(
            f"{text.strip()!r} is no host: write it as in the URL, with its port if it has one, as in example.com:8443."
        )
    return host


def _stopped_host(host: str, *, everything: bool) -> str:
    if everything == bool(host.strip()):
        raise CallStopRefusedError("Name one host, or say that all hosts are meant; not both.")
    return "" if everything else host_to_stop(host)


def stop_calls(*, host: str = "", everything: bool = False, reason: str = "", by: str = "") -> CallStop:
    """Start no more calls to a host, or with `everything` to any; those in flight may land, what comes due is held.

    `host` may be a whole URL. An empty one never means all. Raises CallStopRefusedError.
    """
    host = _stopped_host(host, everything=everything)
    stop, _ = CallStop.objects.update_or_create(host=host, defaults={"reason": reason})
    logger.warning("calls_stopped host=%s by=%s reason=%r", host or "*", by or "?", reason)
    return stop


def resume_calls(*, host: str = "", everything: bool = False, reason: str = "", by: str = "") -> bool:
    """Lift the stop of a host, or with `everything` the stop of all; stops of single hosts stay.

    The beats release what was held within a second, oldest first. Returns whether there was such a stop. Raises
    CallStopRefusedError.
    """
    host = _stopped_host(host, everything=everything)
    lifted, _ = CallStop.objects.filter(host=host).delete()
    if lifted:
        logger.warning("calls_resumed host=%s by=%s reason=%r", host or "*", by or "?", reason)
    return bool(lifted)


# Each part is counted along an index of its own: few of a large table are open.
_OPEN = """
SELECT count(*) FROM (
  (SELECT FROM scheduler_delivery WHERE state = 'scheduled' LIMIT %(most)s) UNION ALL
  (SELECT FROM scheduler_delivery WHERE state IN ('claimed', 'running') LIMIT %(most)s) UNION ALL
  (SELECT FROM scheduler_delivery WHERE state = 'held' LIMIT %(most)s)
  LIMIT %(most)s
) open
"""
_OPEN_TO = """
SELECT count(*) FROM (
  SELECT FROM scheduler_timer timer JOIN scheduler_delivery delivery ON delivery.timer_id = timer.id
   WHERE timer.host = %(host)s AND delivery.state IN ('scheduled', 'claimed', 'running', 'held') LIMIT %(most)s
) open
"""
_SIMILAR = """
SELECT DISTINCT host FROM scheduler_timer WHERE host LIKE %(begin)s AND host <> %(host)s ORDER BY host LIMIT 5
"""


def stop_matches(host: str) -> str:
    """Say how many deliveries wait or are being made to a host, or to any if it is empty.

    Where none does, it names hosts that differ from this one by their port alone. Raises DatabaseError.
    """
    with connection.cursor() as cursor:
        cursor.execute(_OPEN_TO if host else _OPEN, {"host": host, "most": COUNT_MOST})
        (count,) = cursor.fetchone()
        said = f"{counted(count, 'timer', 'timers')} {'matches' if count == 1 else 'match'}"
        if count or not host:
            return f"{said}."
        name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
        begin = re.sub(r"([%_\\])", r"\\\1", name) + "%"
        cursor.execute(_SIMILAR, {"host": host, "begin": begin})
        similar = [row[0] for row in cursor.fetchall()]
    return f"{said}; hosts known that begin so: {', '.join(similar)}." if similar else f"{said}."


def lock_for_edit(periodic_task_ids: Iterable[int]) -> list[Timer]:
    """Lock the timers, and their open deliveries, of PeriodicTasks that somebody else is about to write.

    Inside the writer's transaction this keeps the one order of locks; outside of any it does nothing that lasts.
    Returns the timers.
    """
    with transaction.atomic():
        timer_ids = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).values_list("pk", flat=True)
        return states.lock(list(timer_ids)).timers


def check_edit(task: PeriodicTask) -> None:
    """Refuse what an edited PeriodicTask must not say of a timer that has ended. Raises TimerEndedError."""
    timer = Timer.objects.filter(periodic_task=task.pk).first()
    if timer is None:
        return
    if not states.has_ended(_latest(timer.pk)):
        return
    schedules = ("interval_id", "crontab_id", "solar_id", "clocked_id")
    stored = PeriodicTask.objects.filter(pk=task.pk).values(*schedules).first()
    if stored and (task.enabled or any(stored[name] != getattr(task, name) for name in schedules)):
        raise TimerEndedError(timer.pk)


def check_schedule_edit(schedule: Schedule) -> None:
    """Refuse to change a schedule that only timers use that have ended. Raises TimerEndedError."""
    names = [column.attname for column in schedule._meta.concrete_fields]  # noqa: SLF001 - Django means it so
    stored = type(schedule).objects.filter(pk=schedule.pk).values(*names).first()
    if stored is None or all(stored[name] == getattr(schedule, name) for name in names):
        return
    timer_id = None
    for timer_id in schedule.periodictask_set.values_list("timer", flat=True):
        if timer_id is None or not states.has_ended(_latest(timer_id)):
            return
    if timer_id is not None:
        raise TimerEndedError(timer_id)


def check_schedule(timers: Iterable[Timer], schedule: Schedule) -> None:
    """Refuse a schedule that these timers could not go by, as `obey` would. Raises ValidationError."""
    if isinstance(schedule, ClockedSchedule):
        return
    if isinstance(schedule, CrontabSchedule):
        row = (None, None, *(getattr(schedule, name) for name in CRONTAB), str(schedule.timezone))
    else:
        row = (schedule.every, schedule.period, *[None] * (len(CRONTAB) + 1))
    for timer in timers:
        if not states.has_ended(_latest(timer.pk)):
            try:
                _read(timer, *row)
            except ScheduleError as error:
                raise ValidationError(str(error), code="schedule") from error


def obey(periodic_task_ids: Iterable[int]) -> int:
    """Make timers do what their PeriodicTasks say now; return how many had to change.

    Somebody wrote to the stock rows without asking us: the admin, other code, a bare UPDATE. Rows of a timer that has
    ended are put back to the truth instead.
    """
    changed = 0
    timers = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).order_by("pk")
    for timer_id in timers.values_list("pk", flat=True):
        with transaction.atomic():
            # Read when it is locked: somebody else may have written it since.
            for timer in states.lock([timer_id]).timers:
                delivery = _latest(timer_id)
                rows = PeriodicTask.objects.select_for_update(of=("self",)).select_related("clocked")
                task = rows.filter(timer=timer_id).first()
                if delivery is not None and task is not None:
                    changed += _obey(timer, delivery, task)
    return changed


def obey_deleted(periodic_task_ids: Iterable[int]) -> None:
    """Cancel the timers of PeriodicTasks that are being deleted. Their records stay."""
    timers = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).values_list("pk", flat=True)
    with transaction.atomic():
        states.end(states.lock(list(timers)).deliveries)


def handed_over(periodic_task_id: int) -> None:
    """Note that a stock scheduler has run a timer's row and disabled it, as it does with one-off rows.

    That is book-keeping, not a person's wish: the delivery goes on. The mark is a last run, of this moment, on a
    disabled row; see endings.HANDED_OVER.
    """
    task = PeriodicTask.objects.filter(pk=periodic_task_id, timer__isnull=False).first()
    if task is None or task.enabled:
        return
    latest = Delivery.objects.promised().filter(timer__periodic_task=periodic_task_id).order_by("-occurrence").first()
    ended_at = latest.finished_at if latest else None
    PeriodicTask.objects.filter(pk=periodic_task_id).update(
        last_run_at=ended_at or Now(), total_run_count=1 if ended_at else F("total_run_count")
    )


def reconcile(*, after: int, limit: int) -> int | None:
    """Go through the next `limit` PeriodicTasks of ours and obey those that a bare `.update()` changed.

    Returns the id to go on after, None at the end: a million rows are gone through in steps, none of them long.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DISPUTED, [TASK_NAME, after, limit])
        rows, last, disputed = cursor.fetchone()
        cursor.execute(_RECURRING, [TASK_NAME, after, limit])
        recurring = cursor.fetchall()
    disputed = (disputed or []) + [task_id for task_id, *row in recurring if _differs(*row)]
    if disputed:
        logger.info("foreign_edits_obeyed timers=%d", obey(disputed))
    return last if rows == limit else None


# A row and the latest promised delivery of its timer disagree: enabled or not, the moment, or a timer that has ended;
# or the row has no schedule, more than one, or one by the sun.
_DISPUTED = f"""
WITH page AS MATERIALIZED (
  SELECT id, enabled, one_off, last_run_at, interval_id, crontab_id, solar_id, clocked_id
    FROM django_celery_beat_periodictask
   WHERE task = %s AND id > %s ORDER BY id LIMIT %s
)
SELECT count(*), max(task.id), array_agg(task.id) FILTER (
         WHERE task.enabled AND latest.finished_at IS NOT NULL
            OR task.enabled AND latest.state = 'paused'
            OR NOT task.enabled AND NOT {HANDED_OVER} AND latest.state IN ('scheduled', 'claimed', 'held')
            OR latest.state IS NOT NULL AND latest.finished_at IS NULL AND (
                 clocked.clocked_time <> latest.due_at OR task.solar_id IS NOT NULL
                 OR num_nonnulls(task.interval_id, task.crontab_id, task.clocked_id) <> 1))
  FROM page task
  LEFT JOIN scheduler_timer timer ON timer.periodic_task_id = task.id
  LEFT JOIN django_celery_beat_clockedschedule clocked ON clocked.id = task.clocked_id
  LEFT JOIN LATERAL (SELECT state, due_at, finished_at FROM scheduler_delivery
                      WHERE timer_id = timer.id AND NOT extra ORDER BY occurrence DESC LIMIT 1) latest ON true
"""  # noqa: S608

_SHOWN = """every.every, every.period, crontab.minute, crontab.hour, crontab.day_of_month, crontab.month_of_year,
       crontab.day_of_week, crontab.timezone"""
_SCHEDULES = """
  LEFT JOIN django_celery_beat_crontabschedule crontab ON crontab.id = task.crontab_id
  LEFT JOIN django_celery_beat_intervalschedule every ON every.id = task.interval_id"""
CRONTAB = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")

# Timers that have ended are left out: nothing comes of what their rows show.
_RECURRING = f"""
WITH page AS MATERIALIZED (
  SELECT id, crontab_id, interval_id FROM django_celery_beat_periodictask
   WHERE task = %s AND id > %s ORDER BY id LIMIT %s
)
SELECT task.id, timer.cron, timer.timezone, timer.every_seconds, {_SHOWN}
  FROM page task JOIN scheduler_timer timer ON timer.periodic_task_id = task.id{_SCHEDULES}
 WHERE (task.crontab_id IS NOT NULL OR task.interval_id IS NOT NULL
        OR timer.cron <> '' OR timer.every_seconds IS NOT NULL)
   AND EXISTS (SELECT FROM scheduler_delivery WHERE timer_id = timer.id AND NOT extra AND finished_at IS NULL
                  AND cancel_requested_at IS NULL)
"""  # noqa: S608


def _shown(task: PeriodicTask) -> tuple[Any, ...]:
    """Return the interval and the crontab that a PeriodicTask shows, as `_differs` and `_read` take them."""
    with connection.cursor() as cursor:
        # As they stand in the table: of what is no time zone, the model makes an error.
        query = f"SELECT {_SHOWN} FROM django_celery_beat_periodictask task{_SCHEDULES} WHERE task.id = %s"  # noqa: S608
        cursor.execute(query, [task.pk])
        row: tuple[Any, ...] = cursor.fetchone()
        return row


def _differs(cron: str, timezone: str, every_seconds: float | None, *row: Any) -> bool:
    """Whether a PeriodicTask shows another schedule than its timer has. Of several, Celery goes by the interval."""
    every, period, *fields, zone = row
    if period is not None:
        return every_seconds is None or _microseconds(every_seconds) != every * _microseconds(PERIODS.get(period, 0.0))
    if zone is not None:
        if not cron or timezone != zone:
            return True
        meant = celery_fields(cron)
        return meant != tuple(fields) and meant != _meaning(fields)
    # A clocked row stands for one moment, or for a schedule that Celery cannot express.
    return _shape(cron, every_seconds) is not None


def _meaning(fields: Sequence[str]) -> tuple[str, ...] | None:
    """Return the fields of a crontab as `celery_fields` would write them."""
    try:
        return celery_fields(cron_of(*fields))
    except ScheduleError:
        return ()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _obey(timer: Timer, delivery: Delivery, task: PeriodicTask) -> bool:
    if states.has_ended(delivery):
        return _restore(timer, delivery, task)
    before = (delivery.state, delivery.pk)
    adopted, refused = None, False
    try:
        adopted = _adopt(timer, task)
    except ScheduleError as error:
        # Said once: the row shows the timer's own schedule again.
        logger.warning("foreign_schedule_refused timer=%s error=%s", timer.pk, error)
        _show(timer, task, due_at=delivery.due_at)
        refused = True
    if adopted is not None:
        delivery = _promise(timer, delivery, due_at=adopted)
    elif not refused and task.clocked is not None and task.clocked.clocked_time != delivery.due_at:
        delivery = states.move(timer, delivery, due_at=task.clocked.clocked_time, enabled=task.enabled)
    elif task.enabled:
        states.resume([delivery])
    elif not _handed_over(task):
        states.pause([delivery])
    return refused or before != (delivery.state, delivery.pk)


def _restore(timer: Timer, delivery: Delivery, task: PeriodicTask) -> bool:
    """Put the row of a timer that has ended back to the truth; return whether that changed anything.

    One that recurs and should have gone on is given its next delivery.
    """
    if timer.recurring and task.enabled and delivery.state != State.CANCELLED and delivery.finished_at is not None:
        due_at = _recurrence(timer).next_after(max(states.database_now(), delivery.due_at))
        if due_at is not None and (timer.max_occurrences is None or delivery.moment < timer.max_occurrences):
            states.promise(timer, due_at=due_at, moment=delivery.moment + 1)
            _show(timer, task, due_at=due_at)
            return True
    # A disabled row has no last run, says the stock model's save(); of a timer that ran, it has.
    ran = delivery.state in (State.SUCCEEDED, State.FAILED)
    if not task.enabled and not (ran and task.last_run_at is None and not timer.recurring):
        return False
    truth = {"last_run_at": delivery.finished_at, "total_run_count": max(1, task.total_run_count)} if ran else {}
    PeriodicTask.objects.filter(pk=task.pk).update(enabled=False, **truth)
    return True


def _handed_over(task: PeriodicTask) -> bool:
    """As endings.HANDED_OVER."""
    if task.enabled or not task.one_off or task.last_run_at is None or task.clocked is None:
        return False
    return bool(task.last_run_at >= task.clocked.clocked_time - timedelta(seconds=5))


# What is said of a row with none of them, several, or one by the sun.
ONE_SCHEDULE = "A timer has one schedule: an interval, a crontab or a clocked moment."


def _adopt(timer: Timer, task: PeriodicTask) -> datetime | None:
    """Take over the schedule that somebody gave a PeriodicTask; return what to promise, None if it is the same.

    Raises ScheduleError where a timer cannot go by it.
    """
    row = _shown(task)
    given = [task.interval_id, task.crontab_id, task.solar_id, task.clocked_id]
    if not _differs(timer.cron, timer.timezone, timer.every_seconds, *row):
        if len(given) - given.count(None) != 1 or task.solar_id is not None:
            raise ScheduleError(ONE_SCHEDULE)
        return None
    if task.interval_id is not None or task.crontab_id is not None:
        recurrence, due_at = _read(timer, *row)
        # Bounds are of the timer's own; the row knows none.
        new = NewTimer(web_url=timer.web_url, recurrence=recurrence, max_occurrences=timer.max_occurrences)
    elif task.solar_id is None and task.clocked is not None:
        new, due_at = NewTimer(web_url=timer.web_url), task.clocked.clocked_time
    else:
        raise ScheduleError(ONE_SCHEDULE)
    _set_schedule(timer, new)
    timer.save()
    return due_at


def _read(timer: Timer, *row: Any) -> tuple[Recurrence, datetime]:
    """Return the schedule that a row shows, for a timer, and its next moment. Raises ScheduleError."""
    every, period, *fields, zone = row
    now, starts_at = states.database_now(), timer.starts_at
    # The first moment of an interval is a bound that somebody set if it is more than the interval away.
    if starts_at and timer.every_seconds and (starts_at - now).total_seconds() <= timer.every_seconds:
        starts_at = None
    if period is not None:
        seconds = every * PERIODS.get(period, 0.0)
        if starts_at is None or starts_at <= now:
            try:
                starts_at = now + timedelta(seconds=seconds)
            except OverflowError as error:
                raise ScheduleError(NothingPromisedError().message) from error
        recurrence = Recurrence(every_seconds=seconds, starts_at=starts_at, ends_at=timer.ends_at)
    else:
        zone = check_timezone(zone)
        recurrence = Recurrence(cron=cron_of(*fields), timezone=zone, starts_at=starts_at, ends_at=timer.ends_at)
    due_at = recurrence.next_after(now)
    if due_at is None:
        raise ScheduleError(NothingPromisedError().message)
    return recurrence, due_at


def _lock(timer_id: uuid.UUID, *, deliveries: Q | None = states.OPEN) -> tuple[Timer, list[Delivery]]:
    """Lock one timer and those of its deliveries that fit, as `states.lock`. Raises Timer.DoesNotExist."""
    locked = states.lock([timer_id], deliveries=deliveries)
    if not locked.timers:
        raise Timer.DoesNotExist
    return locked.timers[0], locked.deliveries


def _latest(timer_id: uuid.UUID) -> Delivery | None:
    return Delivery.objects.promised().filter(timer=timer_id).order_by("-occurrence").first()


def _promised(timer_id: uuid.UUID) -> Delivery:
    """Return the promised delivery of a locked timer that has not ended. Raises TimerEndedError."""
    delivery = _latest(timer_id)
    if delivery is None or states.has_ended(delivery):
        raise TimerEndedError(timer_id)
    return delivery


def _switch(periodic_task_ids: Sequence[int], *, enabled: bool) -> Switched:
    tasks = dict(Timer.objects.filter(periodic_task__in=periodic_task_ids).values_list("pk", "periodic_task_id"))
    states.lock(list(tasks))
    latest = states.latest_promised(list(tasks))
    live = [delivery for delivery in latest if not states.has_ended(delivery)]
    rows = PeriodicTask.objects.filter(pk__in=[tasks[delivery.timer_id] for delivery in live])
    if enabled:
        states.resume(live)
        rows.update(enabled=True)
    else:
        states.pause(live)
        # As in `pause`.
        rows.update(enabled=False, last_run_at=None)
    ended = [delivery.timer_id for delivery in latest if states.has_ended(delivery)]
    return Switched(done=len(live), ended=ended)
