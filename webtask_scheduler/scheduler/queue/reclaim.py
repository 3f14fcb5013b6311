"""Takes back what a vanished process held: claims go back to the queue uncounted, calls are recorded as lost."""

import logging
import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import connection, transaction

from webtask_scheduler.scheduler.models import State
from webtask_scheduler.scheduler.queue.endings import (
    APPLY_ENDINGS,
    ITEM_COLUMNS,
    ITEM_TYPES,
    SCHEDULE_JSON,
    Ending,
    EndingDelivery,
    arguments,
    ending_of,
    read,
)
from webtask_scheduler.scheduler.queue.faults import each_alone, park
from webtask_scheduler.scheduler.queue.leases import MEANT_FOR
from webtask_scheduler.scheduler.queue.rollups import tally
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.telemetry.events import event

RECLAIM_LIMIT = 500
# The time between two log lines about leases that ran out.
RECLAIMS_SAID_SECONDS = 60.0
# As facts.SEEN_SECONDS.
WORKER_SEEN_SECONDS = 5.0

_EXPIRED = f"""
SELECT delivery.id, delivery.state, delivery.attempts, delivery.attempts_before, delivery.cancel_requested_at,
       delivery.timer_id, delivery.due_at, delivery.occurrence, delivery.started_at,
       coalesce(delivery.replayed_at, delivery.due_at) AS since, clock_timestamp() AS now,
       CASE WHEN NOT delivery.extra THEN {SCHEDULE_JSON} END AS terms, timer.options::text
  FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE delivery.state IN ('claimed', 'running') AND delivery.lease_expires_at < statement_timestamp()
 ORDER BY delivery.lease_expires_at LIMIT %(limit)s
   FOR UPDATE OF delivery SKIP LOCKED FOR NO KEY UPDATE OF timer SKIP LOCKED
"""  # noqa: S608 - only constants are put in

# An expired claim goes back uncounted: no call was made. An expired call is recorded as lost. The database's clock may
# have been set back, so no time before the due time is written.
_TAKE_BACK = f"""
WITH item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(states)s::text[], %(waits)s::float8[], {ITEM_TYPES})
    AS i (id, state, wait, {ITEM_COLUMNS})
),
lost AS (
  INSERT INTO scheduler_attempt (delivery_id, number, meant_for, started_at, error, message, excerpt)
  SELECT delivery.id, delivery.attempts, {MEANT_FOR}, greatest(delivery.started_at, {MEANT_FOR}), 'lost', %(message)s,
         ''
    FROM scheduler_delivery delivery JOIN item USING (id) WHERE delivery.state = 'running'
),
done AS (
  UPDATE scheduler_delivery delivery
     SET state = item.state, lease_token = NULL, lease_expires_at = NULL,
         next_attempt_at = CASE WHEN delivery.state = 'running'
                                THEN greatest(clock_timestamp() + make_interval(secs => item.wait), delivery.due_at)
                                ELSE delivery.next_attempt_at END,
         finished_at = CASE WHEN item.state <> 'scheduled' THEN clock_timestamp() END
    FROM item WHERE delivery.id = item.id
  RETURNING delivery.id, delivery.timer_id, delivery.extra, delivery.state, delivery.occurrence, {ITEM_COLUMNS}
),
{APPLY_ENDINGS}
SELECT count(*) FROM done
"""  # noqa: S608 - only constants are put in

LOST = "The process that was to make this call vanished: whether it was made, and its outcome, is unknown."


class Reclaimed(NamedTuple):
    """How many deliveries were taken back before their start, and how many with a call whose outcome is unknown."""

    claimed: int
    running: int


def reclaim_expired(*, limit: int = RECLAIM_LIMIT) -> Reclaimed:
    """Take back deliveries whose lease has run out, and return how many.

    A delivery that cannot be taken back is parked as failed with its reason; the others are taken back. Raises
    DatabaseError where the database is away.
    """
    ended: list[State] = []

    def take_back(rows: Sequence[Any]) -> None:
        ended.extend(_take_back(rows))

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_EXPIRED, {"limit": limit})
        names = [column.name for column in cursor.description]
        expired = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
        each_alone(take_back, expired, park=lambda row, error: park(row.id, error))
    running = sum(row.state == State.RUNNING for row in expired)
    taken = Reclaimed(claimed=len(expired) - running, running=running)
    if expired:
        tally.lost(ended)
        tally.reclaimed(taken.claimed)
    return taken


def _take_back(expired: Sequence[Any]) -> list[State]:
    """Take deliveries back; return the states of those that were being called."""
    endings = [_ending(row) for row in expired]
    values: dict[str, Any] = {
        "ids": [row.id for row in expired],
        "states": [ending.state.value for ending in endings],
        "waits": [ending.wait_seconds for ending in endings],
        "message": LOST,
    }
    # A savepoint: a refused batch must not undo those before it.
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_TAKE_BACK, values | arguments(endings))
    return [ending.state for row, ending in zip(expired, endings, strict=True) if row.state == State.RUNNING]


def _ending(row: Any) -> Ending:
    if row.state == State.CLAIMED:
        return Ending(state=State.SCHEDULED)
    if row.cancel_requested_at is not None:
        return Ending(state=State.CANCELLED)
    options = Options.read(row.options)
    decision = retry.decide(
        error="lost",
        attempt=row.attempts - row.attempts_before,
        policy=options.policy,
        age_seconds=(row.now - row.since).total_seconds(),
    )
    delivery = EndingDelivery(
        delivery_id=row.id,
        timer_id=row.timer_id,
        due_at=row.due_at,
        occurrence=row.occurrence,
        attempts=row.attempts,
        terms=read(row.terms),
        options=options,
    )
    result = {"status_code": None, "error": "lost", "message": LOST}
    return ending_of(decision, delivery, begun_at=row.started_at, now=row.now, result=result)


class Reclaims:
    """Logs what was taken back: at most a line a minute, and one line when no worker is live."""

    def __init__(self) -> None:
        self._claimed = 0
        self._running = 0
        self._say_at = -math.inf
        self._deserted = False

    def note(self, taken: Reclaimed) -> None:
        """Count what was just taken back; called about once a second. Raises DatabaseError."""
        self._claimed += taken.claimed
        self._running += taken.running
        if taken.claimed or self._deserted:
            deserted = not _worker_is_live()
            if deserted and not self._deserted:
                event("no_worker_answers", level=logging.ERROR, claimed=self._claimed)
            elif self._deserted and not deserted:
                event("workers_answer_again", level=logging.WARNING)
            self._deserted = deserted
        if self._deserted:
            # The same claims are taken back again and again until a worker is live.
            self._claimed = 0
        now = time.monotonic()
        if (self._claimed or self._running) and now >= self._say_at:
            event("leases_reclaimed", level=logging.WARNING, claimed=self._claimed, running=self._running)
            self._claimed = self._running = 0
            self._say_at = now + RECLAIMS_SAID_SECONDS


_WORKER_IS_LIVE = """
SELECT EXISTS (SELECT FROM scheduler_worker
                WHERE kind = 'calls' AND seen_at > clock_timestamp() - make_interval(secs => %(seen)s))
"""


def _worker_is_live() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_WORKER_IS_LIVE, {"seen": WORKER_SEEN_SECONDS})
        return bool(cursor.fetchone()[0])
