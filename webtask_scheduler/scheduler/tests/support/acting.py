"""What a beat, or a person, does, for tests that want it done at once."""

from datetime import datetime
from typing import Any

from webtask_scheduler.dispatch.queue import Claim, Portion
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import LANES, Timer
from webtask_scheduler.scheduler.queue.claims import claim_due, claim_timer


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
