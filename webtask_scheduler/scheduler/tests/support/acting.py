"""What a beat, or a person, does, for tests that want it done at once."""

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.dispatch.queue import Claim, Portion
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import LANES, Delivery, Timer
from webtask_scheduler.scheduler.queue.attempts import Batch, Outcome, record_missed, record_outcomes, start_attempts
from webtask_scheduler.scheduler.queue.claims import claim_due, claim_timer
from webtask_scheduler.scheduler.rules.recurrence import Recurrence


def claim(*, limit: int = 1000, ahead_seconds: float = 0.0, timer_id: Any = None) -> Claim:
    """Claim what is due, at most `limit` of each lane."""
    if timer_id is not None:
        return claim_timer(timer_id, until_seconds=ahead_seconds)
    return claim_due([Portion(lane, limit) for lane in range(LANES)], until_seconds=ahead_seconds)


def move(timer: Timer, *, due_at: datetime) -> None:
    """Promise another moment, as an edit over the API does."""

    def change(stored: Timer) -> tuple[services.NewTimer, bool]:
        options = stored.options or {}
        return services.NewTimer(web_url=stored.web_url, name=stored.name, options=options, due_at=due_at), True

    services.edit(timer.pk, change)


def put_back(timer: Any, seconds: float = 1.0) -> datetime:
    """Let what a timer, or the one of an id, waits for be due, everywhere it is written; return the moment."""
    moment = timezone.now() - timedelta(seconds=seconds)
    Delivery.objects.filter(timer=timer, finished_at=None).update(due_at=moment, next_attempt_at=moment)
    # By its key: a join of tables that nothing has analysed yet may look through all pairs of their rows.
    task = PeriodicTask.objects.get(timer=timer)
    ClockedSchedule.objects.filter(pk=task.clocked_id).update(clocked_time=moment)
    return moment


def begin() -> Batch:
    """Do what beat and a worker do for all that is due, up to the call."""
    return start_attempts([(item.delivery_id, item.token) for item in claim().held])


def run(*, status_code: int = 200, error: str = "", **more: Any) -> Batch:
    """Do what beat and a worker do for all that is due, with this outcome; return what was started and missed."""
    batch = begin()
    if batch.started:
        outcomes = [
            Outcome(call, call.started_at, 5, status_code, error, "It did not.", "ok", **more) for call in batch.started
        ]
        record_outcomes(outcomes)
    if batch.missed:
        record_missed(batch.missed)
    return batch


def every(seconds: float, **more: Any) -> Recurrence:
    """Return an interval whose first moment is one of it away."""
    return Recurrence(every_seconds=seconds, starts_at=timezone.now() + timedelta(seconds=seconds), **more)
