"""Applies what follows when a delivery ends: the PeriodicTask shows it, the next delivery and the callback are made.

One statement writes the ending and all that follows. So a recurring timer always has its next delivery, and an outcome
always has its callback.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from webtask_scheduler.scheduler.mirror import RUN_BY_STOCK
from webtask_scheduler.scheduler.models import RECURRING, State, host_of, new_id
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.rules.retry import Decision, Verdict
from webtask_scheduler.scheduler.sealing import opened_options, sealed, shown_url

# The schedule of the row "timer", as `Recurrence.read` reads it. Null for a timer that is called once.
SCHEDULE_JSON = f"""CASE WHEN {RECURRING} THEN jsonb_build_object(
             'cron', timer.cron, 'timezone', timer.timezone, 'every_seconds', timer.every_seconds,
             'starts_at', timer.starts_at, 'ends_at', timer.ends_at, 'max_occurrences', timer.max_occurrences,
             'skip', timer.max_lateness_seconds IS NOT NULL)::text END"""

# Both forms follow a CTE `done` of deliveries that were just written. The PeriodicTask of a timer that has ended shows
# a last run and is disabled. A cancelled delivery leaves the row alone: the timer may have been moved to another time,
# and the code that cancels a timer for good disables its row.
APPLY_PLAIN_ENDINGS = """closed AS (
  UPDATE django_celery_beat_periodictask task
     SET enabled = false, last_run_at = clock_timestamp(), total_run_count = 1
    FROM done JOIN scheduler_timer timer ON timer.id = done.timer_id
   WHERE task.id = timer.periodic_task_id AND NOT done.extra AND done.state IN ('succeeded', 'failed')
)"""

# The long form, for batches in which a timer recurs or calls back. `done` has (id, timer_id, extra, state, occurrence)
# and what `arguments` gives. A paused timer's next delivery is made paused, and its row keeps no last run: that marks a
# row that a person disabled. An earlier statement locks the timers that recur, see queue.states. The PeriodicTask is
# locked here, so that its present values are read: a bare `.update()` does not lock the timer.
APPLY_ENDINGS = f"""shown AS MATERIALIZED (
  SELECT task.id, task.enabled, task.one_off, task.last_run_at, task.clocked_id
    FROM done JOIN scheduler_timer timer ON timer.id = done.timer_id
    JOIN django_celery_beat_periodictask task ON task.id = timer.periodic_task_id
   WHERE done.state IN ('succeeded', 'failed', 'missed') AND NOT done.extra
   ORDER BY task.id FOR NO KEY UPDATE OF task
),
ended AS MATERIALIZED (
  SELECT done.*, timer.owner_id, timer.flow, timer.periodic_task_id AS task_id, task.clocked_id,
         NOT done.extra AS promised,
         {RECURRING} AS recurring,
         done.pause OR coalesce(NOT task.enabled AND NOT {RUN_BY_STOCK}, false) AS paused
    FROM done JOIN scheduler_timer timer ON timer.id = done.timer_id
    LEFT JOIN shown task ON task.id = timer.periodic_task_id
    LEFT JOIN django_celery_beat_clockedschedule clocked ON clocked.id = task.clocked_id
   WHERE done.state IN ('succeeded', 'failed', 'missed')
),
closed AS (
  UPDATE django_celery_beat_periodictask task
     SET enabled = ended.next_due_at IS NOT NULL AND NOT ended.paused,
         last_run_at = CASE WHEN ended.next_due_at IS NOT NULL AND ended.paused THEN NULL
                            WHEN ended.state = 'missed' THEN task.last_run_at ELSE clock_timestamp() END,
         total_run_count = CASE WHEN ended.state = 'missed' THEN task.total_run_count
                                WHEN ended.recurring THEN task.total_run_count + 1 ELSE 1 END
    FROM ended WHERE task.id = ended.task_id AND ended.promised
),
moved AS (
  UPDATE django_celery_beat_clockedschedule clocked SET clocked_time = ended.next_due_at
    FROM ended WHERE clocked.id = ended.clocked_id AND ended.promised AND ended.next_due_at IS NOT NULL
),
next AS (
  INSERT INTO scheduler_delivery
    (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before)
  SELECT next_id, timer_id, flow, 1 + (SELECT max(other.number) FROM scheduler_delivery other
                                  WHERE other.timer_id = ended.timer_id),
         occurrence + 1, false, next_due_at, next_due_at, CASE WHEN paused THEN 'paused' ELSE 'scheduled' END, 0, 0
    FROM ended WHERE promised AND next_due_at IS NOT NULL
),
callback_timer AS (
  INSERT INTO scheduler_timer (id, owner_id, web_url, host, created_at, name, options, cron, timezone, outcome_of)
  SELECT callback_id, owner_id, callback_url, callback_host, clock_timestamp(), '', callback_options, '', '', id
    FROM ended WHERE callback_id IS NOT NULL
  RETURNING id AS callback_id, flow
),
callback AS (
  INSERT INTO scheduler_delivery
    (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before)
  SELECT callback_delivery_id, callback_id, made.flow, 1, 1, false, now, now, 'scheduled', 0, 0
    FROM ended JOIN callback_timer made USING (callback_id), (SELECT clock_timestamp() AS now) clock
)"""  # noqa: S608 - only constants are put in

# The types of the arrays that `arguments` gives, in the order of ITEM_COLUMNS.
ITEM_TYPES = (
    "%(next_ids)s::uuid[], %(next_due_ats)s::timestamptz[], %(pauses)s::bool[], %(callback_ids)s::uuid[],"
    " %(callback_delivery_ids)s::uuid[], %(callback_urls)s::text[], %(callback_hosts)s::text[],"
    " %(callback_options)s::json[]"
)
ITEM_COLUMNS = (
    "next_id, next_due_at, pause, callback_id, callback_delivery_id, callback_url, callback_host, callback_options"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingDelivery:
    """A delivery that ends: its timer's options and schedule, and the values that a callback reports.

    `terms` is SCHEDULE_JSON, parsed; None for a timer that is called once, and for an extra delivery.
    """

    delivery_id: uuid.UUID
    timer_id: uuid.UUID
    due_at: datetime
    occurrence: int
    attempts: int
    terms: Mapping[str, Any] | None
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The state that a delivery gets, and what follows. Only a retry uses `wait_seconds`."""

    state: State
    wait_seconds: float = 0.0
    next_due_at: datetime | None = None
    pause: bool = False
    callback: tuple[str, Mapping[str, Any]] | None = None


def ending_of(
    decision: Decision | None, delivery: EndingDelivery, *, begun_at: datetime, now: datetime, result: Mapping[str, Any]
) -> Ending:
    """Return the ending after an attempt begun at `begun_at`; without a decision, that of a missed delivery.

    `result` holds the fields of the latest attempt that a callback reports.
    """
    state = State(decision.verdict.value) if decision else State.MISSED
    if decision and decision.verdict is Verdict.RETRY:
        return Ending(state=state, wait_seconds=decision.wait_seconds)
    next_due_at = _next(delivery, begun_at=begun_at, now=now) if delivery.terms else None
    return Ending(
        state=state,
        next_due_at=next_due_at,
        pause=bool(decision and decision.pause),
        callback=_callback(state, delivery, now=now, result=result) if delivery.options else None,
    )


def _next(delivery: EndingDelivery, *, begun_at: datetime, now: datetime) -> datetime | None:
    terms = delivery.terms or {}
    if terms["max_occurrences"] is not None and delivery.occurrence >= terms["max_occurrences"]:
        return None
    begun_at = max(begun_at, delivery.due_at)
    return Recurrence.read(terms).following(
        due_at=delivery.due_at, begun_at=begun_at, now=max(now, begun_at), skip=terms["skip"]
    )


def read(text: str | None) -> dict[str, Any] | None:
    """Return the value of a JSON column that is given as text."""
    return json.loads(text) if text else None


def _callback(
    state: State, delivery: EndingDelivery, *, now: datetime, result: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]] | None:
    """Return the URL and the options of a callback's timer in the stored form. Raises VaultError."""
    options = delivery.options
    succeeded = state == State.SUCCEEDED
    url = options.callback_url(succeeded=succeeded)
    if not url:
        return None
    if shown_url(url) == url and "@" in url:
        # Its user-info may be sealed.
        url = opened_options(options).callback_url(succeeded=succeeded) or url
    body = {
        "type": f"timer.{state.value}",
        "task_id": str(delivery.timer_id),
        "delivery_id": str(delivery.delivery_id),
        "status": state.value,
        "due_at": delivery.due_at.astimezone(UTC).isoformat(),
        "occurrence": delivery.occurrence,
        "attempts": delivery.attempts,
        "finished_at": now.astimezone(UTC).isoformat(),
        **result,
        "labels": options.labels,
        "metadata": options.given.get("metadata"),
    }
    made: dict[str, Any] = {"body": json.dumps(body), "content_type": "application/json", **options.inherited}
    # It reports the receiver's answer, which is not kept in plain text either.
    return sealed(url, made | {"sensitive": True} if options.sensitive else made)


def arguments(endings: Sequence[Ending]) -> dict[str, list[Any]]:
    """Return the arrays of ITEM_TYPES."""
    callbacks = [ending.callback or (None, None) for ending in endings]
    return {
        "next_ids": [new_id() if ending.next_due_at else None for ending in endings],
        "next_due_ats": [ending.next_due_at for ending in endings],
        "pauses": [ending.pause for ending in endings],
        "callback_ids": [new_id() if url else None for url, _ in callbacks],
        "callback_delivery_ids": [new_id() if url else None for url, _ in callbacks],
        "callback_urls": [url for url, _ in callbacks],
        "callback_hosts": [host_of(url) if url else None for url, _ in callbacks],
        "callback_options": [json.dumps(options) if options else None for _, options in callbacks],
    }
