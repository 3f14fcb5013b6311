"""Changes many timers: in transactions of bounded size, or by a bulk operation, page by page."""

import logging
import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.access import actor, audit
from webtask_scheduler.scheduler import mirror
from webtask_scheduler.scheduler.models import (
    FINAL,
    BulkChange,
    BulkOperation,
    Delivery,
    SigningSecret,
    State,
    Timer,
)
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.services import channels, letters, quotas, search
from webtask_scheduler.scheduler.services.auditing import TIMER
from webtask_scheduler.scheduler.services.caller import Caller, may_change_all
from webtask_scheduler.scheduler.services.changing import EXTRA_OPEN_MOST, open_extras, replay_locked
from webtask_scheduler.telemetry.events import event

# Rows of one transaction of many: it holds their locks for some tens of milliseconds.
BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """The result of pausing or resuming many: how many are now in that state, and which have ended and stay so.

    `changed` are those that were not in that state before.
    """

    done: int
    ended: list[uuid.UUID]
    changed: list[uuid.UUID]


def switch_many(periodic_task_ids: Sequence[int], *, enabled: bool) -> Switched:
    """Resume or pause the timers of many PeriodicTasks, in transactions of BATCH_ROWS each."""
    done, ended, changed = 0, [], []
    for start in range(0, len(periodic_task_ids), BATCH_ROWS):
        with transaction.atomic():
            batch, switched = _switch(periodic_task_ids[start : start + BATCH_ROWS], enabled=enabled)
            audit.record_each("timer.resumed" if enabled else "timer.paused", kind=TIMER, owners=switched)
        done += batch.done
        ended += batch.ended
        changed += batch.changed
    event("timers_switched", enabled=enabled, done=done, ended=len(ended))
    return Switched(done=done, ended=ended, changed=changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of running many: how many are called, which have ended, and which have too many open runs."""

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
            crowded = {pk for pk, count in open_extras(ids).items() if count >= EXTRA_OPEN_MOST} - over
            ran = [timer for timer in timers if timer.pk not in over | crowded]
            done += len(states.make_extras(ran))
            audit.record_each("timer.run", kind=TIMER, owners={timer.pk: timer.owner_id for timer in ran})
            ended += [pk for pk in ids if pk in over]
            full += [pk for pk in ids if pk in crowded]
    event("timers_run_now", timers=done, ended=len(ended), full=len(full))
    return Ran(done=done, ended=ended, full=full)


def cancel_many(timer_ids: Sequence[uuid.UUID]) -> int:
    """Cancel timers for good, in one transaction; return how many had not ended yet. See `cancel`."""
    with transaction.atomic():
        return len(_cancel(timer_ids))


def cancel_many_now(timer_ids: Sequence[uuid.UUID]) -> int:
    """As `cancel_many`, as a deed of the present actor, in transactions of BATCH_ROWS each."""
    done = 0
    for start in range(0, len(timer_ids), BATCH_ROWS):
        with transaction.atomic():
            cancelled = _cancel(timer_ids[start : start + BATCH_ROWS])
            audit.record_each("timer.cancelled", kind=TIMER, owners=cancelled)
        done += len(cancelled)
    event("timers_cancelled", timers=done)
    return done


def _cancel(timer_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int | None]:
    """Cancel in a transaction; return the timers that had not ended yet, with their owners."""
    timers, deliveries = states.lock(timer_ids)
    live = {delivery.timer_id for delivery in deliveries if delivery.cancel_requested_at is None}
    states.end(deliveries)
    PeriodicTask.objects.filter(timer__in=list(timer_ids)).update(enabled=False)
    return {timer.pk: timer.owner_id for timer in timers if timer.pk in live}


def replay_many(timer_ids: Sequence[uuid.UUID], *, spread_seconds: float = 0) -> int:
    """Replay the latest promised delivery of each timer whose status is failed or missed; return how many.

    They are due at random moments of the time `spread_seconds` from now.
    """
    with transaction.atomic():
        timers = {timer.pk: timer for timer in states.lock(timer_ids, deliveries=None).timers}
        return replay_locked(timers, _lost(timers), spread_seconds=spread_seconds)


def replay_many_now(timer_ids: Sequence[uuid.UUID]) -> int:
    """As `replay_many`, as a deed of the present actor, in transactions of BATCH_ROWS each."""
    done = 0
    for start in range(0, len(timer_ids), BATCH_ROWS):
        with transaction.atomic():
            timers = {
                timer.pk: timer for timer in states.lock(timer_ids[start : start + BATCH_ROWS], deliveries=None).timers
            }
            lost = _lost(timers)
            done += replay_locked(timers, lost)
            owners = {one.timer_id: timers[one.timer_id].owner_id for one in lost}
            audit.record_each("timer.replayed", kind=TIMER, owners=owners)
    event("timers_replayed", timers=done)
    return done


def _lost(timer_ids: Iterable[uuid.UUID]) -> list[Delivery]:
    """Lock the latest promised deliveries, of locked timers, that failed or were missed."""
    latest = [one.pk for one in states.latest_promised(list(timer_ids))]
    return states.lock_deliveries(Q(pk__in=latest, state__in=states.REPLAYABLE))


class SpreadError(ValidationError):
    """What cannot be spread so; `field` is one of the filter's, or `spread_seconds`."""

    def __init__(self, field: str, said: Any) -> None:
        self.field = field
        super().__init__(said)


def check_spread(wanted: Mapping[str, Any], *, spread_seconds: int | None, dry_run: bool) -> None:
    """Check a filter, with its instants, of timers that are to be spread over a time. Raises SpreadError."""
    begin, end = wanted.get("due_from"), wanted.get("due_to")
    if begin is None or end is None:
        field = "due_from" if begin is None else "due_to"
        raise SpreadError(field, _("To spread timers, give the time in which they are due: due_from and due_to."))
    if begin >= end:
        raise SpreadError("due_to", _("due_to must be after due_from."))
    if set(wanted.get("status") or [State.SCHEDULED]) != {State.SCHEDULED}:
        raise SpreadError("status", _("Only timers that are scheduled can be spread."))
    for name in ("recurring", "retrying", "late"):
        if wanted.get(name):
            said = _("Only timers that are called once and wait for their first call can be spread.")
            raise SpreadError(name, said)
    if spread_seconds is None:
        if not dry_run:
            raise SpreadError("spread_seconds", _("Say over how many seconds from due_from they are spread."))
    elif timedelta(seconds=spread_seconds) <= end - begin:
        raise SpreadError("spread_seconds", _("It must be longer than the time from due_from to due_to."))


def spread_many(timer_ids: Sequence[uuid.UUID], *, begin: datetime, end: datetime, spread_seconds: float) -> int:
    """Spread timers that wait for their only call from `begin` until `end`; return how many were moved.

    Each draws a moment of the time `spread_seconds` from `begin`. One whose moment is before `end` stays as it is, the
    others get it: so none is called earlier than was promised, and none is moved twice. Timers that recur stay, and
    those that began, were moved, paused or claimed meanwhile.
    """
    with transaction.atomic():
        timers = {one.pk: one for one in states.lock(timer_ids, deliveries=None).timers if not one.recurring}
        latest = [one.pk for one in states.latest_promised(list(timers))]
        wanted = Q(pk__in=latest, state=State.SCHEDULED, attempts=0, replayed_at=None, next_attempt_at=F("due_at"))
        waiting = states.lock_deliveries(wanted, due_at__gte=begin, due_at__lt=end)
        task_ids = [timers[one.timer_id].periodic_task_id for one in waiting]
        # One that was disabled by a bare UPDATE is about to be paused.
        rows = PeriodicTask.objects.select_for_update().filter(pk__in=task_ids, enabled=True).order_by("pk")
        tasks = {task.pk: task for task in rows}
        earliest = max(end, states.database_now())
        moved = []
        for delivery in waiting:
            task = tasks.get(timers[delivery.timer_id].periodic_task_id)
            due_at = begin + timedelta(seconds=random.uniform(0, spread_seconds))  # noqa: S311 - no secret depends on it
            if task is not None and due_at >= earliest:
                moved.append((delivery, timers[delivery.timer_id], task, due_at))
        if moved:
            deliveries, of, _tasks, due_ats = zip(*moved, strict=True)
            states.move_many(of, deliveries, due_ats)
            mirror.show_many([(timer, task, due_at) for _, timer, task, due_at in moved])
        return len(moved)


def begin_bulk(operation: BulkOperation) -> None:
    """Store a bulk operation; a worker takes it up within seconds. Raises QuotaError, SpreadError."""
    if operation.action == BulkOperation.Action.SPREAD:
        given = operation.filter
        instants = {name: read_instant(given[name]) for name in ("due_from", "due_to") if name in given}
        check_spread(given | instants, spread_seconds=operation.spread_seconds, dry_run=operation.dry_run)
    with transaction.atomic():
        quotas.check_bulk(operation)
        _begin(operation)


def _begin(operation: BulkOperation) -> None:
    """Store a bulk operation whatever its owner's limit. Call it in a transaction."""
    if operation.action == BulkOperation.Action.DISMISS:
        # Timers with something to dismiss. A worker of the release before this action takes any that it does not know
        # for a pause; a filter that it does not know it refuses.
        operation.filter = {**operation.filter, "dead": True}
    if operation.action == BulkOperation.Action.SPREAD:
        # Timers that can be spread, and refused in the same way.
        operation.filter = {**operation.filter, "spread": True}
    operation.save(force_insert=True)
    # What only counts is no deed.
    if not operation.dry_run:
        told = {"action": operation.action, "filter": operation.filter}
        if operation.spread_seconds:
            told["spread_seconds"] = operation.spread_seconds
        audit.record("bulk.begun", kind="bulk", of=operation.pk, owner_id=operation.owner_id, after=told)
    event("bulk_begun", bulk=operation.pk, action=operation.action, dry_run=operation.dry_run)


def end_owner(owner_id: int) -> None:
    """End what goes on for a user who is being deleted: cancel the timers, in the background, delete secrets, channels.

    The records stay the user's. Call it in the transaction of the deletion.
    """
    going_on = [state.value for state in State if state not in FINAL]
    wanted = {"status": going_on, "callbacks": True}
    # No limit keeps a user from being deleted.
    _begin(BulkOperation(owner_id=owner_id, action=BulkOperation.Action.CANCEL, filter=wanted))
    SigningSecret.objects.filter(owner=owner_id).delete()
    channels.end_owner(owner_id)


class NotStoppedError(ValidationError):
    """A bulk operation that nobody may stop."""


def stop_bulk(operation_id: uuid.UUID) -> BulkOperation:
    """Stop a bulk operation for good, and return it; what it has changed stays. One that has ended stays as it is.

    A step that is under way is waited for, so that the counts are final. Raises BulkOperation.DoesNotExist,
    NotStoppedError.
    """
    with transaction.atomic():
        operation = BulkOperation.objects.select_for_update(of=("self",)).select_related("owner").get(pk=operation_id)
        if operation.finished_at is not None:
            return operation
        if operation.owner is not None and operation.owner.deleted_at is not None:
            raise NotStoppedError(_("It cancels the timers of a deleted user, and is not stopped."))
        operation.stopped_at = operation.finished_at = states.database_now()
        operation.save(update_fields=["stopped_at", "finished_at"])
        if not operation.dry_run:
            told = {"action": operation.action, "filter": operation.filter}
            told |= {"matched": operation.matched, "changed": operation.changed}
            audit.record("bulk.stopped", kind="bulk", of=operation.pk, owner_id=operation.owner_id, after=told)
    event("bulk_stopped", bulk=operation.pk, matched=operation.matched, changed=operation.changed)
    return operation


# How long a deleted user's timers are looked for: longer than a request that began before the deletion.
ENDING_SECONDS = 60.0
# Timers of one step of a bulk operation: its transaction holds their locks for some tens of milliseconds.
BULK_ROWS = 200


def _end_bulk(operation: BulkOperation, *, error: str) -> None:
    """End a bulk operation that cannot go on, and store why."""
    with transaction.atomic():
        BulkOperation.objects.filter(pk=operation.pk, finished_at=None).update(finished_at=Now(), error=error[:300])
        if not operation.dry_run:
            _record_end(operation, error=error[:300])
    event("bulk_failed", level=logging.WARNING, bulk=operation.pk, error=error)


def _record_end(operation: BulkOperation, **more: str) -> None:
    """Record what a bulk operation has done: one entry with its filter and counts, on behalf of its owner."""
    told = {"action": operation.action, "filter": operation.filter, **more}
    told |= {"matched": operation.matched, "changed": operation.changed}
    owner = operation.owner
    by = actor.Actor(user_id=operation.owner_id, name=str(owner)[: actor.NAME_MAX_LENGTH] if owner else "")
    with actor.unless_set(by):
        audit.record("bulk.ended", kind="bulk", of=operation.pk, owner_id=operation.owner_id, after=told)


def step_bulk(operation: BulkOperation) -> bool:
    """Do the next page of a bulk operation, as one transaction; return whether there is more to do.

    If the process is killed in the middle, the page is rolled back and the next step does it.
    """
    owner = operation.owner
    # Asked again for each page: a right may have been taken away meanwhile.
    sees_all = operation.everyone and owner is not None and may_change_all(owner)
    is_deleted = owner is not None and owner.deleted_at is not None
    if is_deleted and operation.action != BulkOperation.Action.CANCEL:
        _end_bulk(operation, error="Its owner was deleted.")
        return False
    caller = Caller(owner_id=operation.owner_id, sees_all=sees_all)
    try:
        wanted = search.stored_filter(operation.filter, caller=caller)
        page = search.page(wanted, cursor=operation.cursor, limit=BULK_ROWS)
    except search.PartError as error:
        # The right to see all was taken away meanwhile, or what the filter names is gone.
        _end_bulk(operation, error=str(error))
        return False
    except ValueError as error:
        # Stored by another version; it must not block the others.
        _end_bulk(operation, error=f"Its filter is not known to this version of the service: {error}")
        return False
    with transaction.atomic():
        # Whoever stops it waits for this page, or is seen here.
        if not BulkOperation.objects.select_for_update().filter(pk=operation.pk, stopped_at=None).exists():
            BulkOperation.objects.filter(pk=operation.pk, finished_at=None).update(finished_at=F("stopped_at"))
            return False
        if page.timer_ids and not operation.dry_run:
            operation.changed += _bulk_page(operation, page.timer_ids, wanted=wanted)
        operation.matched += len(page.timer_ids)
        operation.cursor = page.next or ""
        now = states.database_now()
        # Requests of a deleted user that had begun before may still make timers: look again, from the beginning.
        again = is_deleted and now - operation.created_at < timedelta(seconds=ENDING_SECONDS)
        if page.next is None and not again:
            operation.finished_at = now
        operation.save(update_fields=["matched", "changed", "cursor", "finished_at"])
        if operation.finished_at is not None and not operation.dry_run:
            _record_end(operation)
    if operation.finished_at is not None:
        event("bulk_ended", bulk=operation.pk, matched=operation.matched, changed=operation.changed)
    return operation.finished_at is None


def _bulk_page(operation: BulkOperation, timer_ids: Sequence[uuid.UUID], *, wanted: search.Filter) -> int:
    match operation.action:
        case BulkOperation.Action.CANCEL:
            return cancel_many(timer_ids)
        case BulkOperation.Action.REPLAY:
            return replay_many(timer_ids, spread_seconds=operation.spread_seconds or 0)
        case BulkOperation.Action.DISMISS:
            return letters.dismiss_of(timer_ids)
        case BulkOperation.Action.SPREAD:
            # It was checked that both are there.
            begin, end = wanted.due_from, wanted.due_to
            if begin is None or end is None:
                return 0
            return spread_many(timer_ids, begin=begin, end=end, spread_seconds=operation.spread_seconds or 0)
    tasks = (
        Timer.objects.filter(pk__in=timer_ids).exclude(periodic_task=None).values_list("periodic_task_id", flat=True)
    )
    changed = _switch(list(tasks), enabled=operation.action == BulkOperation.Action.RESUME)[0].changed
    BulkChange.objects.bulk_create(
        # Of a deleted user's timers one may be met again.
        (BulkChange(operation=operation, timer=timer_id) for timer_id in changed),
        ignore_conflicts=True,
    )
    return len(changed)


def _switch(periodic_task_ids: Sequence[int], *, enabled: bool) -> tuple[Switched, dict[uuid.UUID, int | None]]:
    """Resume or pause; return the result, and the timers whose state that changed, with their owners."""
    tasks = dict(Timer.objects.filter(periodic_task__in=periodic_task_ids).values_list("pk", "periodic_task_id"))
    owners = {timer.pk: timer.owner_id for timer in states.lock(list(tasks)).timers}
    latest = states.latest_promised(list(tasks))
    live = [delivery for delivery in latest if not states.has_ended(delivery)]
    before = {delivery.timer_id: delivery.state for delivery in live}
    rows = PeriodicTask.objects.filter(pk__in=[tasks[delivery.timer_id] for delivery in live])
    # One whose call is under way is paused after it.
    other = set(rows.exclude(enabled=enabled).values_list("pk", flat=True))
    if enabled:
        states.resume(live)
        rows.update(enabled=True)
    else:
        states.pause(live)
        # As in `pause`.
        rows.update(enabled=False, last_run_at=None)
    ended = [delivery.timer_id for delivery in latest if states.has_ended(delivery)]
    changed = [
        delivery.timer_id
        for delivery in live
        if delivery.state != before[delivery.timer_id] or tasks[delivery.timer_id] in other
    ]
    states.forget_changes(changed)
    return Switched(done=len(live), ended=ended, changed=changed), {pk: owners[pk] for pk in changed}
