"""Changes the states of deliveries for people, and defines the order in which locks are taken.

**The order of locks**, for every transaction and every statement that waits for more than one row:

1. timers, by id, `FOR NO KEY UPDATE`;
2. their deliveries, by id, `FOR UPDATE`;
3. their PeriodicTasks, then the schedules of those.

`lock` takes the first two. LOCK_TIMERS takes the first for statements in SQL.

The timer's lock is needed to number, make or replay its deliveries, and to decide by `PeriodicTask.enabled`. Services,
the receivers of foreign edits, pruning, and the record of a recurring timer take it. Claim, start, renewal, putting
back, and the record of a timer that is called once do not: they only move one delivery on from its state. They lock
deliveries alone, by id, and never wait for a timer.

The reclaim of leases finds deliveries by their leases, so it locks them together with their timers. It must not wait:
it skips locked rows and comes back a second later.

PostgreSQL runs a statement against what was committed when it began. A statement that waits for a row reads that row
again afterwards, and no other. So a value that decides (whether a task is enabled, the highest number so far) is read
by a statement that begins after the lock was taken, or is locked by the statement that reads it.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import Max, Q

from webtask_scheduler.scheduler.models import BulkChange, ClockTimestamp, Delivery, State, Timer

# Not called yet, and not held back by its own row.
HOLDABLE = (State.SCHEDULED, State.CLAIMED, State.HELD)
# The dead letters.
REPLAYABLE = (State.FAILED, State.MISSED)

# Run this before a statement that makes deliveries of these timers, in the same transaction.
LOCK_TIMERS = """
SELECT FROM scheduler_timer WHERE id = ANY(%(timer_ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""

OPEN = Q(finished_at__isnull=True)


class Locked(NamedTuple):
    """Rows locked until the transaction ends, each kind in the order of its ids."""

    timers: list[Timer]
    deliveries: list[Delivery]


def lock(timer_ids: Sequence[uuid.UUID], *, deliveries: Q | None = OPEN) -> Locked:
    """Lock timers, then their deliveries that fit a condition: the open ones by default, with None no deliveries.

    Call it inside a transaction. Timers that no longer exist are left out. Raises DatabaseError.
    """
    # Options hold bodies, which few callers read.
    rows = Timer.objects.select_for_update(no_key=True).filter(pk__in=timer_ids).order_by("pk").defer("options")
    timers = list(rows)
    if deliveries is None:
        return Locked(timers, [])
    # A second statement, so that it sees what was made while the first waited for the timers.
    return Locked(timers, lock_deliveries(deliveries, timer__in=[timer.pk for timer in timers]))


def lock_deliveries(condition: Q, **more: Any) -> list[Delivery]:
    """Lock deliveries of timers that are locked already. Raises DatabaseError."""
    return list(Delivery.objects.select_for_update().filter(condition, **more).order_by("pk"))


def latest_promised(timer_ids: Sequence[uuid.UUID]) -> list[Delivery]:
    """Return the latest promised delivery of each timer. Raises DatabaseError."""
    return list(Delivery.objects.filter(timer__in=timer_ids).latest_promised())


def has_ended(latest: Delivery | None) -> bool:
    """Return whether nothing more is promised. A cancelled timer has ended even while its last call is in flight."""
    return latest is not None and (latest.is_final or latest.cancel_requested_at is not None)


def database_now() -> datetime:
    """Return the database's clock. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


# Each change takes locked deliveries; the state in its WHERE guards against a caller that forgot to lock.


def pause(deliveries: Sequence[Delivery]) -> None:
    """Pause deliveries that are not being called; a claim's message then starts nothing. Raises DatabaseError."""
    _write(deliveries, State.PAUSED, of=HOLDABLE, lease_token=None, lease_expires_at=None)


def resume(deliveries: Sequence[Delivery]) -> None:
    """Return paused deliveries to the queue. Raises DatabaseError."""
    _write(deliveries, State.SCHEDULED, of=(State.PAUSED,))


def forget_changes(timer_ids: Iterable[uuid.UUID]) -> None:
    """Forget which bulk operations paused or resumed these timers, since something else did. Raises DatabaseError."""
    BulkChange.objects.filter(timer__in=list(timer_ids)).delete()


def end(deliveries: Sequence[Delivery]) -> None:
    """Cancel deliveries; mark one whose call is in flight, which ends when the call does. Raises DatabaseError."""
    now = database_now()
    running = [delivery.pk for delivery in deliveries if delivery.state == State.RUNNING]
    marked = Delivery.objects.filter(pk__in=running, state=State.RUNNING, cancel_requested_at=None)
    marked.update(cancel_requested_at=now)
    waiting = (*HOLDABLE, State.PAUSED)
    _write(deliveries, State.CANCELLED, of=waiting, finished_at=now, lease_token=None, lease_expires_at=None)


def hurry(delivery: Delivery, *, now: datetime) -> None:
    """Let a locked delivery that waits again be due now. Raises DatabaseError."""
    _write([delivery], State.SCHEDULED, of=(State.SCHEDULED,), next_attempt_at=max(now, delivery.due_at))


def _write(deliveries: Sequence[Delivery], state: State, *, of: Sequence[State], **values: Any) -> None:
    found = [delivery for delivery in deliveries if delivery.state in of]
    if not found:
        return
    Delivery.objects.filter(pk__in=[delivery.pk for delivery in found], state__in=of).update(state=state, **values)
    for delivery in found:
        delivery.state = state
        for name, value in values.items():
            setattr(delivery, name, value)


def promise(timer: Timer, *, due_at: datetime, occurrence: int, enabled: bool = True) -> Delivery:
    """Make a locked timer's next promised delivery; it has no other open one. Raises DatabaseError."""
    delivery = Delivery(
        timer_id=timer.pk,
        flow=timer.flow,
        number=_last_numbers([timer]).get(timer.pk, 0) + 1,
        occurrence=occurrence,
        due_at=due_at,
        next_attempt_at=due_at,
        state=State.SCHEDULED if enabled else State.PAUSED,
    )
    delivery.save(force_insert=True)
    return delivery


def move(timer: Timer, delivery: Delivery, *, due_at: datetime, enabled: bool) -> Delivery:
    """Cancel a locked delivery and promise another due time in its place. Raises DatabaseError."""
    end([delivery])
    # The same promise of the schedule, at another time.
    return promise(timer, due_at=due_at, occurrence=delivery.occurrence, enabled=enabled)


def move_many(timers: Sequence[Timer], deliveries: Sequence[Delivery], due_ats: Sequence[datetime]) -> list[Delivery]:
    """As `move`, of locked deliveries that wait, each with its timer and its other due time. Raises DatabaseError."""
    end(deliveries)
    last = _last_numbers(timers)
    return Delivery.objects.bulk_create(
        Delivery(
            timer_id=timer.pk,
            flow=timer.flow,
            number=last[timer.pk] + 1,
            occurrence=delivery.occurrence,
            due_at=due_at,
            next_attempt_at=due_at,
        )
        for timer, delivery, due_at in zip(timers, deliveries, due_ats, strict=True)
    )


def make_extras(timers: Sequence[Timer]) -> list[Delivery]:
    """Make an extra delivery, due now, of each of these locked timers. Raises DatabaseError."""
    last, now = _last_numbers(timers), database_now()
    return Delivery.objects.bulk_create(
        Delivery(
            timer_id=timer.pk,
            flow=timer.flow,
            number=last.get(timer.pk, 0) + 1,
            extra=True,
            due_at=now,
            next_attempt_at=now,
        )
        for timer in timers
    )


def _last_numbers(timers: Sequence[Timer]) -> dict[uuid.UUID, int]:
    numbers = Delivery.objects.filter(timer__in=[timer.pk for timer in timers]).values_list("timer")
    return dict(numbers.annotate(last=Max("number")))


def dismiss(deliveries: Sequence[Delivery]) -> None:
    """Dismiss locked dead letters: their records stay. Raises DatabaseError."""
    Delivery.objects.filter(pk__in=[one.pk for one in deliveries], state__in=REPLAYABLE, dismissed_at=None).update(
        dismissed_at=ClockTimestamp()
    )


def restore(deliveries: Sequence[Delivery]) -> None:
    """Undo the dismissal of locked dead letters. Raises DatabaseError."""
    Delivery.objects.filter(pk__in=[one.pk for one in deliveries], state__in=REPLAYABLE).update(dismissed_at=None)


def replay(delivery: Delivery, *, flow: int, extra: bool, now: datetime, wait_seconds: float = 0.0) -> None:
    """Send a locked dead letter again, `wait_seconds` from now, with fresh attempts. Raises DatabaseError."""
    values: dict[str, Any] = {
        "extra": extra,
        "flow": flow,
        "finished_at": None,
        "replayed_at": now,
        "attempts_before": delivery.attempts,
        "next_attempt_at": max(now + timedelta(seconds=wait_seconds), delivery.due_at),
        "dismissed_at": None,
        "cancel_requested_at": None,
        "fault": None,
    }
    _write([delivery], State.SCHEDULED, of=REPLAYABLE, **values)
