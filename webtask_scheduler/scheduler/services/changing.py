"""Changes one timer: edit, cancel, pause, resume, run now, try now, replay.

Each function is one short transaction. It begins with the timer's lock; see `queue.states` for the order of locks.
"""

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, Q
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.scheduler.mirror import show
from webtask_scheduler.scheduler.models import (
    Delivery,
    State,
    Timer,
    TimerLabel,
    host_of,
)
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.scheduler.sealing import sealed
from webtask_scheduler.scheduler.services import auditing
from webtask_scheduler.scheduler.services.creating import NewTimer, first_due, schedule_columns
from webtask_scheduler.telemetry.events import event

# Returns the timer as an edit wants it, and whether another due time is promised.
Change: TypeAlias = Callable[[Timer], tuple["NewTimer", bool]]


class TimerEndedError(ValidationError):
    """The timer has ended. Make a new one instead."""

    def __init__(self, timer_id: uuid.UUID, *, replayable: bool = False) -> None:
        text = _("Timer %(timer)s has ended and stays as it is. Make a new timer instead.")
        if replayable:
            text = _(
                "Timer %(timer)s has ended and stays as it is. Make a new timer instead, or replay a delivery that"
                " failed."
            )
        super().__init__(text, code="final", params={"timer": timer_id})


class TooManyRunsError(ValidationError):
    """The timer has as many open extra deliveries as it may have."""

    def __init__(self, timer_id: uuid.UUID) -> None:
        super().__init__(
            _(
                "Timer %(timer)s has %(most)s extra deliveries that have not ended. Wait until one has; cancelling the"
                " timer ends them all."
            ),
            code="runs",
            params={"timer": timer_id, "most": EXTRA_OPEN_MOST},
        )


class NothingToReplayError(ValidationError):
    """There is no failed or missed delivery, or the latest one is being replayed already."""

    def __init__(self, timer_id: uuid.UUID) -> None:
        text = _("Timer %(timer)s has no delivery that failed or was missed.")
        super().__init__(text, code="nothing_to_replay", params={"timer": timer_id})


class NoRetryError(ValidationError):
    """No delivery waits for a retry; the text says what the timer waits for instead."""

    def __init__(self, timer_id: uuid.UUID, reason: str) -> None:
        super().__init__(reason, code="no_retry", params={"timer": timer_id})


def edit(timer_id: uuid.UUID, change: Change, *, descriptive_only: bool = False) -> None:
    """Change a timer to what `change` returns for it; later attempts use it.

    `change` is called with the timer locked, so that a simultaneous second edit sees the first; it may return secrets
    as they were given or as they are stored, see `sealing`. A `descriptive_only`
    edit, of name, labels and metadata, may also change a timer that has ended. Raises Timer.DoesNotExist,
    TimerEndedError, NothingPromisedError, and whatever `change` raises.
    """
    with transaction.atomic():
        timer, deliveries = _lock(timer_id)
        new, reschedule = change(timer)
        delivery = None if descriptive_only else _promised(timer_id)
        before = auditing.state_of(timer, delivery)
        web_url, options = sealed(new.web_url, new.options)
        timer.web_url, timer.host = web_url, host_of(web_url)
        timer.name, timer.options = new.name, dict(options) or None
        timer.max_lateness_seconds = new.max_lateness_seconds
        if reschedule:
            set_schedule(timer, new)
        timer.save()
        timer.refresh_from_db(fields=["flow"])
        moved = [one.pk for one in deliveries if one.flow != timer.flow]
        if moved:
            Delivery.objects.filter(pk__in=moved).update(flow=timer.flow)
        TimerLabel.objects.filter(timer=timer_id).delete()
        labels = Options(new.options).label_rows
        TimerLabel.objects.bulk_create(TimerLabel(timer_id=timer_id, label=label) for label in labels)
        if reschedule and delivery is not None:
            if new.recurrence is not None:
                due_at = first_due(new.recurrence)
            else:
                due_at = new.due_at or states.database_now() + timedelta(seconds=new.delay_seconds or 0.0)
            delivery = promise(timer, delivery, due_at=due_at)
        auditing.record_edit(timer, before, auditing.state_of(timer, delivery), action="timer.edited")
    event("timer_edited", timer=timer_id, rescheduled=reschedule)


def set_schedule(timer: Timer, new: NewTimer) -> None:
    for name, value in schedule_columns(new).items():
        setattr(timer, name, value)


def promise(timer: Timer, delivery: Delivery, *, due_at: datetime) -> Delivery:
    """Promise another due time in place of a locked delivery, and show it in the PeriodicTask."""
    task = PeriodicTask.objects.select_for_update().filter(timer=timer.pk).first()
    moved = states.move(timer, delivery, due_at=due_at, enabled=task is None or task.enabled)
    if task is not None:
        show(timer, task, due_at=due_at)
    return moved


def cancel(timer_id: uuid.UUID) -> None:
    """Cancel a timer for good; do nothing if it has ended. A call in flight may land, no retry follows.

    Raises Timer.DoesNotExist.
    """
    with transaction.atomic():
        timer, deliveries = _lock(timer_id)
        if live := [one for one in deliveries if one.cancel_requested_at is None]:
            auditing.record_deed("timer.cancelled", timer, deliveries=len(live))
        states.end(deliveries)
        PeriodicTask.objects.filter(timer=timer_id).update(enabled=False)
    event("timer_cancelled", timer=timer_id)


def pause(timer_id: uuid.UUID) -> None:
    """Hold a timer back until it is resumed. A call in flight may land; its retries wait too.

    Raises Timer.DoesNotExist, TimerEndedError.
    """
    with transaction.atomic():
        timer = _lock(timer_id)[0]
        delivery = _promised(timer_id)
        before = delivery.state
        states.pause([delivery])
        task = PeriodicTask.objects.filter(timer=timer_id)
        # One whose call is under way is paused after it.
        if delivery.state != before or task.filter(enabled=True).exists():
            auditing.record_switch(timer, before, delivery.state, enabled=False)
            states.forget_changes([timer_id])
        # Pausing clears the last run, as the stock admin does: see `note_run_by_stock`.
        task.update(enabled=False, last_run_at=None)
    event("timer_paused", timer=timer_id)


def resume(timer_id: uuid.UUID) -> None:
    """Resume a paused timer; if its due time has passed, it is due at once.

    Raises Timer.DoesNotExist, TimerEndedError.
    """
    with transaction.atomic():
        timer = _lock(timer_id)[0]
        delivery = _promised(timer_id)
        before = delivery.state
        states.resume([delivery])
        task = PeriodicTask.objects.filter(timer=timer_id)
        if delivery.state != before or task.filter(enabled=False).exists():
            auditing.record_switch(timer, before, delivery.state, enabled=True)
            states.forget_changes([timer_id])
        task.update(enabled=True)
    event("timer_resumed", timer=timer_id)


def replay(timer_id: uuid.UUID, *, delivery_id: uuid.UUID | None = None) -> uuid.UUID:
    """Replay a failed or missed delivery now, with fresh attempts, and return its id; its history stays.

    Without `delivery_id`, it replays the timer's latest one. While that one is being replayed already, no other is
    taken in its place, so two simultaneous requests replay once. Raises Timer.DoesNotExist, NothingToReplayError,
    TooManyRunsError.
    """
    with transaction.atomic():
        timer = _lock(timer_id, deliveries=None)[0]
        wanted = Q(state__in=states.REPLAYABLE)
        if delivery_id is not None:
            wanted &= Q(pk=delivery_id)
        else:
            wanted |= Q(replayed_at__isnull=False) & states.OPEN
        latest = Delivery.objects.filter(wanted, timer=timer_id).order_by("-number").values_list("pk").first()
        # Locked, because upkeep deletes past deliveries without the timer's lock.
        locked = states.lock_deliveries(Q(pk__in=latest or (), state__in=states.REPLAYABLE))
        if not locked:
            raise NothingToReplayError(timer_id)
        (delivery,) = locked
        if open_extras([timer_id]).get(timer_id, 0) >= EXTRA_OPEN_MOST:
            raise TooManyRunsError(timer_id)
        replay_locked({timer_id: timer}, [delivery])
        auditing.record_deed("timer.replayed", timer, delivery=delivery.pk)
    event("timer_replayed", timer=timer_id, delivery=delivery.pk)
    return delivery.pk


def replay_locked(
    timers: Mapping[uuid.UUID, Timer], deliveries: Sequence[Delivery], *, spread_seconds: float = 0
) -> int:
    """Replay locked dead letters of locked timers, spread at random over a time from now; return how many.

    One that is no longer its timer's latest promise goes beside it, as an extra delivery, of which a timer has
    EXTRA_OPEN_MOST at most; others stay as they are.
    """
    ids = list({one.timer_id for one in deliveries})
    latest = {one.timer_id: one.pk for one in states.latest_promised(ids)}
    tasks = PeriodicTask.objects.select_for_update().filter(timer__in=ids).order_by("pk")
    clocked = {task.pk: task.clocked_id for task in tasks}
    extras, now = open_extras(ids), states.database_now()
    promised = []
    done = 0
    for delivery in deliveries:
        timer = timers[delivery.timer_id]
        # The timer's promised delivery again if it is still the latest; otherwise an extra delivery.
        extra = delivery.extra or latest.get(timer.pk) != delivery.pk or timer.periodic_task_id not in clocked
        if extra:
            extras[timer.pk] = extras.get(timer.pk, 0) + 1
            if extras[timer.pk] > EXTRA_OPEN_MOST:
                continue
        wait = random.uniform(0, spread_seconds)  # noqa: S311 - no secret depends on it
        states.replay(delivery, flow=timer.flow, extra=extra, now=now, wait_seconds=wait)
        done += 1
        if not extra:
            promised.append((timer.periodic_task_id, delivery.due_at))
    PeriodicTask.objects.filter(pk__in=[task for task, _due_at in promised]).update(enabled=True, last_run_at=None)
    for task, due_at in promised:
        if clocked[task] is not None:
            ClockedSchedule.objects.filter(pk=clocked[task]).update(clocked_time=due_at)
    return done


# Limit of open extra deliveries of one timer: more than a person needs, and a bound for a timer that runs itself.
EXTRA_OPEN_MOST = 10


def open_extras(timer_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """Return the number of open extra deliveries of each timer that has any."""
    open_ = Delivery.objects.open().filter(timer__in=list(timer_ids), extra=True)
    return dict(open_.values_list("timer").annotate(count=Count("pk")))


def run_now(timer_id: uuid.UUID) -> uuid.UUID:
    """Make an extra delivery, due now, and return its id. The promised one is unchanged.

    Raises Timer.DoesNotExist, TimerEndedError, TooManyRunsError.
    """
    with transaction.atomic():
        timer = _lock(timer_id, deliveries=None)[0]
        if states.has_ended(latest_of(timer_id)):
            # Otherwise a timer that runs itself would go on after it was cancelled.
            raise TimerEndedError(timer_id, replayable=True)
        if open_extras([timer_id]).get(timer_id, 0) >= EXTRA_OPEN_MOST:
            raise TooManyRunsError(timer_id)
        (delivery,) = states.make_extras([timer])
        auditing.record_deed("timer.run", timer, delivery=delivery.pk)
    event("timer_run_now", timer=timer_id, delivery=delivery.pk)
    return delivery.pk


def try_now(timer_id: uuid.UUID, *, delivery_id: uuid.UUID | None = None) -> uuid.UUID:
    """Make the next attempt of a delivery that waits for a retry now, and return its id. It counts as that attempt.

    Without `delivery_id`, it is the timer's latest delivery that waits so. Beats see it within their next look at the
    queue, as with `run_now`. Raises Timer.DoesNotExist, NoRetryError.
    """
    with transaction.atomic():
        timer, deliveries = _lock(timer_id)
        wanted = [one for one in deliveries if delivery_id in (None, one.pk)]
        now = states.database_now()
        waiting = [one for one in wanted if one.waits_again(now=now)]
        if not waiting:
            raise NoRetryError(timer_id, _why_no_retry(wanted))
        delivery = max(waiting, key=lambda one: one.number)
        states.hurry(delivery, now=now)
        auditing.record_deed("timer.tried_now", timer, delivery=delivery.pk)
    event("timer_tried_now", timer=timer_id, delivery=delivery.pk)
    return delivery.pk


def _why_no_retry(deliveries: Sequence[Delivery]) -> Any:
    """Return in a sentence why none of a timer's open deliveries can be tried now."""
    found = {one.state for one in deliveries}
    if not deliveries:
        return _("Timer %(timer)s has no delivery that waits for a retry. One that failed can be replayed.")
    if State.RUNNING in found:
        return _("Timer %(timer)s is being called now. Try again if that call fails.")
    if State.PAUSED in found:
        return _("Timer %(timer)s is paused. Resume it: a retry that is due is made at once.")
    if State.HELD in found:
        return _("Calls to the host of timer %(timer)s are stopped. It is called when they are resumed.")
    if State.CLAIMED in found or any(one.attempts or one.replayed_at for one in deliveries):
        return _("The next attempt of timer %(timer)s is due already and about to be made.")
    return _("Timer %(timer)s waits for its first call, not for a retry. Run it to call it once more now.")


def _lock(timer_id: uuid.UUID, *, deliveries: Q | None = states.OPEN) -> tuple[Timer, list[Delivery]]:
    """Lock one timer and its deliveries that fit, as `states.lock` does. Raises Timer.DoesNotExist."""
    locked = states.lock([timer_id], deliveries=deliveries)
    if not locked.timers:
        raise Timer.DoesNotExist
    return locked.timers[0], locked.deliveries


def latest_of(timer_id: uuid.UUID) -> Delivery | None:
    return Delivery.objects.filter(timer=timer_id).latest_promised().first()


def _promised(timer_id: uuid.UUID) -> Delivery:
    """Return the promised delivery of a locked timer that has not ended. Raises TimerEndedError."""
    delivery = latest_of(timer_id)
    if delivery is None or states.has_ended(delivery):
        raise TimerEndedError(timer_id)
    return delivery
