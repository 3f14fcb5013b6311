"""What the audit log says of a timer: which of its values an edit changed, and none that may be secret."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from webtask_scheduler.access import audit
from webtask_scheduler.scheduler import sealing
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.rules.options import NAMES
from webtask_scheduler.scheduler.rules.recurrence import COLUMNS
from webtask_scheduler.scheduler.sealing import SEALED

TIMER = "timer"
# Values that are compared and never told.
_UNTOLD = frozenset({"body", "body_base64", "metadata", SEALED})


def state_of(timer: Timer, delivery: Delivery | None) -> dict[str, Any]:
    """Return the values of a timer that an edit may change; with its promised delivery, its due time too."""
    values: dict[str, Any] = {"web_url": timer.web_url, "name": timer.name}
    values |= {name: getattr(timer, name) for name in (*COLUMNS, "max_occurrences", "max_lateness_seconds")}
    given = timer.options or {}
    # Header names without values, and the sealed text, which changes with any of the secrets in it.
    shown = sealing.shown(given) | {name: given[name] for name in (SEALED,) if name in given}
    values |= {name: shown[name] for name in (*NAMES, SEALED) if name in shown}
    if delivery is not None and not timer.recurring:
        values["due_at"] = delivery.due_at
    return values


def record_edit(timer: Timer, before: Mapping[str, Any], after: Mapping[str, Any], *, action: str) -> bool:
    """Record what differs between two `state_of` of a timer; return whether anything does."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names:
        told = [{name: _told(name, state[name]) for name in names if name in state} for state in (before, after)]
        audit.record(action, kind=TIMER, of=timer.pk, owner_id=timer.owner_id, before=told[0], after=told[1])
    return bool(names)


def _told(name: str, value: Any) -> Any:
    if name in _UNTOLD and value is not None:
        return audit.UNTOLD
    return value.isoformat() if isinstance(value, datetime) else value


def record_deed(action: str, timer: Timer, **told: Any) -> None:
    """Record what was done to one timer, and what else is to be told of it."""
    audit.record(action, kind=TIMER, of=timer.pk, owner_id=timer.owner_id, after=told)


def record_switch(timer: Timer, before: str, after: str, *, enabled: bool) -> None:
    """Record that a timer was resumed, or paused if not `enabled`, with the states of its delivery before and after."""
    audit.record(
        "timer.resumed" if enabled else "timer.paused",
        kind=TIMER,
        of=timer.pk,
        owner_id=timer.owner_id,
        before={"status": str(before)},
        after={"status": str(after)},
    )
