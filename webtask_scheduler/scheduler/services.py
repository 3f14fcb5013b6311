"""What a person may ask of timers: schedule, cancel, pause, resume, reschedule, run now.

Each function is one short transaction, checks the rules, and writes both halves: our rows and the PeriodicTask that
shows them. Locks are taken in one order: Delivery, Timer, PeriodicTask.
"""

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import F, Max
from django.db.models.functions import Now
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.scheduler.models import TASK_NAME, CallStop, Delivery, State, Timer, new_id

logger = logging.getLogger(__name__)


# Not called yet, and not held back by its own row.
HOLDABLE = (State.SCHEDULED, State.CLAIMED, State.HELD)


class TimerEndedError(ValidationError):
    """The timer has ended. Make a new one instead."""

    def __init__(self, timer_id: uuid.UUID) -> None:
        super().__init__(f"Timer {timer_id} has ended and stays as it is. Make a new timer instead.", code="final")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTimer:
    """What to schedule: a checked URL, and either a delay from the database's present moment or an instant."""

    web_url: str
    delay_seconds: float | None = None
    due_at: datetime | None = None
    owner_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A timer just stored; times are the database's."""

    timer_id: uuid.UUID
    due_at: datetime
    created_at: datetime


# The one place that creates timers: four rows each, one statement for any number of them. Ids of the stock tables are
# drawn first, so that the rows of one timer find each other. It does not touch the shared marker row that makes stock
# beat reload, and fires no signal.
_INSERT = f"""
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
item AS MATERIALIZED (
  SELECT i.*, clock.now, coalesce(i.due_at, clock.now + make_interval(secs => i.delay_seconds)) AS due,
         nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) AS clocked_id,
         nextval(pg_get_serial_sequence('django_celery_beat_periodictask', 'id')) AS task_id
    FROM clock, unnest(%s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::float8[], %s::timestamptz[], %s::bigint[])
      WITH ORDINALITY AS i (timer_id, delivery_id, web_url, host, delay_seconds, due_at, owner_id, position)
),
clocked AS (
  INSERT INTO django_celery_beat_clockedschedule (id, clocked_time) SELECT clocked_id, due FROM item
),
task AS (
  INSERT INTO django_celery_beat_periodictask
    (id, name, task, clocked_id, args, kwargs, headers, description, one_off, enabled, total_run_count, date_changed)
  SELECT task_id, 'timer ' || timer_id, '{TASK_NAME}', clocked_id, '[]', '{{"timer_id": "' || timer_id || '"}}', '{{}}',
         '', true, true, 0, now
    FROM item
),
timer AS (
  INSERT INTO scheduler_timer (id, periodic_task_id, owner_id, web_url, host, created_at)
  SELECT timer_id, task_id, owner_id, web_url, host, now FROM item
),
delivery AS (
  INSERT INTO scheduler_delivery (id, timer_id, occurrence, extra, due_at, next_attempt_at, state, attempts)
  SELECT delivery_id, timer_id, 1, false, due, due, 'scheduled', 0 FROM item
)
SELECT timer_id, due, now FROM item ORDER BY position
"""  # noqa: S608 - the only thing put in is a constant


def schedule(timers: Sequence[NewTimer]) -> list[Scheduled]:
    """Store timers, all or none, and return them in the same order.

    Called inside `transaction.atomic()` they exist if and only if the caller's transaction commits. A due moment in
    the past is due at once.
    """
    arguments: list[Any] = [
        [new_id() for _ in timers],
        [new_id() for _ in timers],
        [timer.web_url for timer in timers],
        [host_of(timer.web_url) for timer in timers],
        [timer.delay_seconds for timer in timers],
        [timer.due_at for timer in timers],
        [timer.owner_id for timer in timers],
    ]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, arguments)
        return [Scheduled(timer_id=row[0], due_at=row[1], created_at=row[2]) for row in cursor.fetchall()]


def host_of(web_url: str) -> str:
    """Return the host of a checked URL in lower case, with its port where one is given."""
    parts = urlsplit(web_url)
    return parts.netloc.rpartition("@")[2].lower()


def cancel(timer_id: uuid.UUID) -> None:
    """Cancel a timer for good; nothing happens where it has ended. A call in flight may land, no retry follows."""
    with transaction.atomic():
        _end(_lock_open([timer_id]))
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=False)
    logger.info("timer_cancelled timer=%s", timer_id)


def pause(timer_id: uuid.UUID) -> None:
    """Hold a timer back until it is resumed. A call in flight may land; its retries wait too.

    Raises TimerEndedError.
    """
    with transaction.atomic():
        _pause(_promised(timer_id))
        # Pausing leaves no last run, as the stock admin does: see dispatch, "handed over".
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=False, last_run_at=None)
    logger.info("timer_paused timer=%s", timer_id)


def resume(timer_id: uuid.UUID) -> None:
    """Let a paused timer go on; one whose moment has passed is due at once. Raises TimerEndedError."""
    with transaction.atomic():
        _resume(_promised(timer_id))
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=True)
    logger.info("timer_resumed timer=%s", timer_id)


def reschedule(timer_id: uuid.UUID, *, due_at: datetime) -> None:
    """Promise another moment instead: the waiting delivery is cancelled and a new one made. Raises TimerEndedError."""
    with transaction.atomic():
        delivery = _promised(timer_id)
        task = PeriodicTask.objects.select_for_update().filter(timer=timer_id).first()
        _move(delivery, due_at=due_at, enabled=task is None or task.enabled)
        if task is not None and task.clocked_id is not None:
            ClockedSchedule.objects.filter(pk=task.clocked_id).update(clocked_time=due_at)
    logger.info("timer_rescheduled timer=%s due_at=%s", timer_id, due_at.isoformat())


def run_now(timer_id: uuid.UUID) -> uuid.UUID:
    """Make an extra delivery, due now, and return its id. The promised one stands, whatever its state."""
    with transaction.atomic():
        # The timer's row serialises the numbering.
        Timer.objects.select_for_update().get(pk=timer_id)
        delivery = Delivery(timer_id=timer_id, occurrence=_next_occurrence(timer_id), extra=True)
        now = _now()
        delivery.due_at = delivery.next_attempt_at = now
        delivery.save(force_insert=True)
    logger.info("timer_run_now timer=%s delivery=%s", timer_id, delivery.pk)
    return delivery.pk


# Rows of one transaction where many are asked for: it holds their locks for some tens of milliseconds.
BATCH_ROWS = 1000
# Between two batches of deleting: running timers come first.
PRUNE_PAUSE_SECONDS = 0.2


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


def run_many_now(timer_ids: Sequence[uuid.UUID]) -> int:
    """Make an extra delivery, due now, for each of many timers; return how many. See `run_now`."""
    for start in range(0, len(timer_ids), BATCH_ROWS):
        batch = timer_ids[start : start + BATCH_ROWS]
        with transaction.atomic():
            # The timers' rows serialise the numbering.
            locked = list(Timer.objects.select_for_update().filter(pk__in=batch).order_by("pk").values_list("pk"))
            numbers = Delivery.objects.filter(timer__in=batch).values_list("timer").annotate(last=Max("occurrence"))
            last = dict(numbers)
            now = _now()
            Delivery.objects.bulk_create(
                Delivery(timer_id=pk, occurrence=last.get(pk, 0) + 1, extra=True, due_at=now, next_attempt_at=now)
                for (pk,) in locked
            )
    logger.info("timers_run_now timers=%d", len(timer_ids))
    return len(timer_ids)


def stop_calls(*, host: str = "", reason: str = "") -> CallStop:
    """Start no more calls to a host, or to any; those in flight may land. What comes due is held meanwhile."""
    stop, _ = CallStop.objects.update_or_create(host=host.lower(), defaults={"reason": reason})
    logger.warning("calls_stopped host=%s reason=%s", stop.host or "*", reason)
    return stop


def resume_calls(*, host: str = "") -> bool:
    """Lift a stop; the beats release what was held within a second, oldest first. Returns whether there was one."""
    lifted, _ = CallStop.objects.filter(host=host.lower()).delete()
    logger.warning("calls_resumed host=%s", host.lower() or "*")
    return bool(lifted)


def prune(*, older_than: timedelta, limit: int = BATCH_ROWS, dry_run: bool = False) -> int:
    """Delete timers that ended longer ago than that, with all that belongs to them; return how many.

    One batch of at most `limit`, in a transaction of its own; a timer of which anything is still open stays. A dry run
    counts them all instead, and deletes nothing. Deleted are the rows of ours and the PeriodicTask and ClockedSchedule
    made for them; a ClockedSchedule that other tasks use stays.
    """
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_ENDED if dry_run else _PRUNE, {"seconds": older_than.total_seconds(), "limit": limit})
        return int(cursor.fetchone()[0])


# Ended long ago, by the index of what has ended, oldest first; nothing of the timer may be open or younger.
_ENDED = """
  SELECT timer_id FROM scheduler_delivery old
   WHERE finished_at < statement_timestamp() - make_interval(secs => %(seconds)s)
     AND NOT EXISTS (
       SELECT FROM scheduler_delivery other WHERE other.timer_id = old.timer_id
          AND (other.finished_at IS NULL OR (other.finished_at, other.id) > (old.finished_at, old.id)))
   ORDER BY finished_at {limit}
"""
_COUNT_ENDED = f"SELECT count(*) FROM ({_ENDED.format(limit='')}) ended"  # noqa: S608 - only constants are put in
# One statement, so that no reader sees a timer without its deliveries. Deletes run against one snapshot, where foreign
# keys are checked at the end.
_PRUNE = f"""
WITH ended AS MATERIALIZED ({_ENDED.format(limit="LIMIT %(limit)s")}),
locked AS MATERIALIZED (
  SELECT delivery.id FROM scheduler_delivery delivery JOIN ended USING (timer_id)
   ORDER BY delivery.id FOR UPDATE OF delivery
),
attempts AS (DELETE FROM scheduler_attempt USING locked WHERE delivery_id = locked.id),
deliveries AS (DELETE FROM scheduler_delivery USING locked WHERE scheduler_delivery.id = locked.id),
timers AS (
  DELETE FROM scheduler_timer USING ended WHERE scheduler_timer.id = ended.timer_id RETURNING periodic_task_id
),
tasks AS (
  DELETE FROM django_celery_beat_periodictask task USING timers WHERE task.id = timers.periodic_task_id
  RETURNING task.id, task.clocked_id
),
clocked AS (
  DELETE FROM django_celery_beat_clockedschedule clocked USING tasks
   WHERE clocked.id = tasks.clocked_id
     AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                      WHERE other.clocked_id = clocked.id AND other.id <> tasks.id)
)
SELECT count(*) FROM timers
"""  # noqa: S608


def lock_for_edit(periodic_task_ids: Iterable[int]) -> list[Timer]:
    """Lock the open deliveries, then the timers, of PeriodicTasks that somebody else is about to write.

    Inside the writer's transaction this keeps the one order of locks; outside of any it does nothing that lasts.
    Returns the timers.
    """
    with transaction.atomic():
        timers = list(Timer.objects.filter(periodic_task__in=list(periodic_task_ids)))
        _lock_open([timer.pk for timer in timers])
        return list(Timer.objects.select_for_update().filter(pk__in=[t.pk for t in timers]).order_by("pk"))


def check_edit(task: PeriodicTask) -> None:
    """Refuse what an edited PeriodicTask must not say of a timer that has ended. Raises TimerEndedError."""
    timer = Timer.objects.filter(periodic_task=task.pk).first()
    if timer is None:
        return
    if not _has_ended(_latest(timer.pk)):
        return
    stored = PeriodicTask.objects.filter(pk=task.pk).values("clocked_id", "enabled").first()
    if stored and (task.enabled or stored["clocked_id"] != task.clocked_id):
        raise TimerEndedError(timer.pk)


def check_clocked_edit(clocked: ClockedSchedule) -> None:
    """Refuse to move the schedule of a timer that has ended. Raises TimerEndedError."""
    stored = ClockedSchedule.objects.filter(pk=clocked.pk).values_list("clocked_time", flat=True).first()
    if stored is None or stored == clocked.clocked_time:
        return
    for timer_id in Timer.objects.filter(periodic_task__clocked=clocked.pk).values_list("pk", flat=True):
        if _has_ended(_latest(timer_id)):
            raise TimerEndedError(timer_id)


def obey(periodic_task_ids: Iterable[int]) -> int:
    """Make timers do what their PeriodicTasks say now; return how many had to change.

    Somebody wrote to the stock rows without asking us: the admin, other code, a bare UPDATE. Rows of a timer that has
    ended are put back to the truth instead.
    """
    changed = 0
    for timer in Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).order_by("pk"):
        with transaction.atomic():
            _lock_open([timer.pk])
            delivery = _latest(timer.pk)
            task = (
                PeriodicTask.objects.select_for_update(of=("self",))
                .select_related("clocked")
                .filter(timer=timer.pk)
                .first()
            )
            if delivery is not None and task is not None:
                changed += _obey(delivery, task)
    return changed


def obey_deleted(periodic_task_ids: Iterable[int]) -> None:
    """Cancel the timers of PeriodicTasks that are being deleted. Their records stay."""
    timers = Timer.objects.filter(periodic_task__in=list(periodic_task_ids)).values_list("pk", flat=True)
    with transaction.atomic():
        _end(_lock_open(list(timers)))


def handed_over(periodic_task_id: int) -> None:
    """Note that a stock scheduler has run a timer's row and disabled it, as it does with one-off rows.

    That is book-keeping, not a person's wish: the delivery goes on. The mark is a last run on a disabled row.
    """
    task = PeriodicTask.objects.filter(pk=periodic_task_id, timer__isnull=False).first()
    if task is None or task.enabled:
        return
    final = Delivery.objects.promised().filter(timer__periodic_task=periodic_task_id).exclude(finished_at=None)
    last = final.order_by("-occurrence").values_list("finished_at", flat=True).first()
    PeriodicTask.objects.filter(pk=periodic_task_id).update(
        last_run_at=last or Now(), total_run_count=1 if last else F("total_run_count")
    )


def reconcile(*, after: int, limit: int) -> int | None:
    """Go through the next `limit` PeriodicTasks of ours and obey those that a bare `.update()` changed.

    Returns the id to go on after, None at the end: a million rows are gone through in steps, none of them long.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DISPUTED, [TASK_NAME, after, limit])
        rows, last, disputed = cursor.fetchone()
    if disputed:
        logger.info("foreign_edits_obeyed timers=%d", obey(disputed))
    return last if rows == limit else None


# A row and the latest promised delivery of its timer disagree: enabled or not, the moment, or a timer that has ended.
_DISPUTED = """
WITH page AS MATERIALIZED (
  SELECT id, enabled, last_run_at, clocked_id FROM django_celery_beat_periodictask
   WHERE task = %s AND id > %s ORDER BY id LIMIT %s
)
SELECT count(*), max(page.id), array_agg(page.id) FILTER (
         WHERE page.enabled AND latest.finished_at IS NOT NULL
            OR page.enabled AND latest.state = 'paused'
            OR NOT page.enabled AND page.last_run_at IS NULL AND latest.state IN ('scheduled', 'claimed', 'held')
            OR clocked.clocked_time <> latest.due_at AND latest.finished_at IS NULL)
  FROM page
  LEFT JOIN scheduler_timer timer ON timer.periodic_task_id = page.id
  LEFT JOIN django_celery_beat_clockedschedule clocked ON clocked.id = page.clocked_id
  LEFT JOIN LATERAL (SELECT state, due_at, finished_at FROM scheduler_delivery
                      WHERE timer_id = timer.id AND NOT extra ORDER BY occurrence DESC LIMIT 1) latest ON true
"""


def _obey(delivery: Delivery, task: PeriodicTask) -> bool:
    if _has_ended(delivery):
        # A disabled row has no last run, says the stock model's save(); of a timer that ran, it has.
        ran = delivery.state in (State.SUCCEEDED, State.FAILED)
        if not task.enabled and not (ran and task.last_run_at is None):
            return False
        truth = {"last_run_at": delivery.finished_at, "total_run_count": max(1, task.total_run_count)} if ran else {}
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=False, **truth)
        return True
    before = (delivery.state, delivery.pk)
    if task.clocked is not None and task.clocked.clocked_time != delivery.due_at:
        delivery = _move(delivery, due_at=task.clocked.clocked_time, enabled=task.enabled)
    elif task.enabled:
        _resume(delivery)
    elif task.last_run_at is None:
        _pause(delivery)
    return before != (delivery.state, delivery.pk)


def _lock_open(timer_ids: Sequence[uuid.UUID]) -> list[Delivery]:
    return list(Delivery.objects.select_for_update().open().filter(timer__in=timer_ids).order_by("pk"))


def _latest(timer_id: uuid.UUID) -> Delivery | None:
    return Delivery.objects.promised().filter(timer=timer_id).order_by("-occurrence").first()


def _promised(timer_id: uuid.UUID) -> Delivery:
    """Lock and return the promised delivery of a timer that has not ended."""
    _lock_open([timer_id])
    delivery = _latest(timer_id)
    if delivery is None or _has_ended(delivery):
        raise TimerEndedError(timer_id)
    return delivery


def _has_ended(latest: Delivery | None) -> bool:
    """Whether nothing more is promised: a call in flight whose timer was cancelled does not come back either."""
    return latest is not None and (latest.is_final or latest.cancel_requested_at is not None)


def _switch(periodic_task_ids: Sequence[int], *, enabled: bool) -> Switched:
    tasks = dict(Timer.objects.filter(periodic_task__in=periodic_task_ids).values_list("pk", "periodic_task_id"))
    _lock_open(list(tasks))
    promised = Delivery.objects.promised().filter(timer__in=list(tasks))
    latest = list(promised.order_by("timer", "-occurrence").distinct("timer"))
    live = [delivery for delivery in latest if not _has_ended(delivery)]
    deliveries = Delivery.objects.filter(pk__in=[delivery.pk for delivery in live])
    rows = PeriodicTask.objects.filter(pk__in=[tasks[delivery.timer_id] for delivery in live])
    if enabled:
        deliveries.filter(state=State.PAUSED).update(state=State.SCHEDULED)
        rows.update(enabled=True)
    else:
        deliveries.filter(state__in=HOLDABLE).update(state=State.PAUSED, lease_token=None, lease_expires_at=None)
        # As in `pause`.
        rows.update(enabled=False, last_run_at=None)
    return Switched(done=len(live), ended=[delivery.timer_id for delivery in latest if _has_ended(delivery)])


def _next_occurrence(timer_id: uuid.UUID) -> int:
    last: int = Delivery.objects.filter(timer=timer_id).aggregate(last=Max("occurrence"))["last"] or 0
    return last + 1


def _now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
        return moment


def _write(delivery: Delivery, state: State) -> None:
    """Write a waiting state, giving up the lease that a claim may hold: its message will start nothing."""
    delivery.state = state
    delivery.lease_token = delivery.lease_expires_at = None
    delivery.save(update_fields=["state", "lease_token", "lease_expires_at"])


def _pause(delivery: Delivery) -> None:
    if delivery.state in HOLDABLE:
        _write(delivery, State.PAUSED)


def _resume(delivery: Delivery) -> None:
    if delivery.state == State.PAUSED:
        _write(delivery, State.SCHEDULED)


def _end(deliveries: Iterable[Delivery]) -> None:
    """Cancel locked deliveries; one whose call is in flight is marked, and ends when the call does."""
    for delivery in deliveries:
        if delivery.state == State.RUNNING:
            Delivery.objects.filter(pk=delivery.pk, cancel_requested_at=None).update(cancel_requested_at=_now())
        else:
            delivery.finished_at = _now()
            delivery.state = State.CANCELLED
            delivery.lease_token = delivery.lease_expires_at = None
            delivery.save(update_fields=["state", "finished_at", "lease_token", "lease_expires_at"])


def _move(delivery: Delivery, *, due_at: datetime, enabled: bool) -> Delivery:
    """Cancel a locked delivery and promise another moment in its place."""
    Timer.objects.select_for_update().get(pk=delivery.timer_id)
    _end([delivery])
    moved = Delivery(
        timer_id=delivery.timer_id,
        occurrence=_next_occurrence(delivery.timer_id),
        due_at=due_at,
        next_attempt_at=due_at,
        state=State.SCHEDULED if enabled else State.PAUSED,
    )
    moved.save(force_insert=True)
    return moved
