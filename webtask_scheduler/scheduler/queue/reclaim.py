"""Taking back what a vanished process held: claims go back free of charge, calls are written down as lost."""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from django.db import connection, transaction

from webtask_scheduler.scheduler import retry
from webtask_scheduler.scheduler.endings import (
    CLOSE,
    ITEM_COLUMNS,
    ITEM_TYPES,
    TERMS,
    Ending,
    Told,
    arguments,
    ending_of,
    read,
)
from webtask_scheduler.scheduler.models import State
from webtask_scheduler.scheduler.queue.faults import each_alone, park
from webtask_scheduler.scheduler.queue.leases import MEANT_FOR

logger = logging.getLogger(__name__)

RECLAIM_LIMIT = 500

_EXPIRED = f"""
SELECT delivery.id, delivery.state, delivery.attempts, delivery.attempts_before, delivery.cancel_requested_at,
       delivery.timer_id, delivery.due_at, delivery.moment, delivery.started_at,
       coalesce(delivery.replayed_at, delivery.due_at) AS since, clock_timestamp() AS now,
       CASE WHEN NOT delivery.extra THEN {TERMS} END AS terms, timer.options::text
  FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE delivery.state IN ('claimed', 'running') AND delivery.lease_expires_at < statement_timestamp()
 ORDER BY delivery.lease_expires_at LIMIT %(limit)s
   FOR UPDATE OF delivery SKIP LOCKED FOR NO KEY UPDATE OF timer SKIP LOCKED
"""  # noqa: S608 - only constants are put in

# An expired claim goes back free of charge: no call was made. An expired call is written down as lost. The database's
# clock may have been set back: no moment is written that lies before the promise.
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
  RETURNING delivery.id, delivery.timer_id, delivery.extra, delivery.state, delivery.moment, {ITEM_COLUMNS}
),
{CLOSE}
SELECT count(*) FROM done
"""  # noqa: S608 - only constants are put in

LOST = "The process that was to make this call vanished: whether it was made, and its outcome, is unknown."


def reclaim_expired(*, limit: int = RECLAIM_LIMIT) -> int:
    """Take back deliveries whose lease has run out, and return how many.

    One that cannot be taken back is parked as failed with its reason; the others are taken back all the same. Raises
    DatabaseError where the database is away.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_EXPIRED, {"limit": limit})
        names = [column.name for column in cursor.description]
        expired = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
        each_alone(_take_back, expired, park=lambda row, error: park(row.id, error))
    if expired:
        running = sum(row.state == State.RUNNING for row in expired)
        logger.warning("leases_reclaimed claimed=%d running=%d", len(expired) - running, running)
    return len(expired)


def _take_back(expired: Sequence[Any]) -> None:
    endings = [_ending(row) for row in expired]
    values: dict[str, Any] = {
        "ids": [row.id for row in expired],
        "states": [ending.state.value for ending in endings],
        "waits": [ending.wait_seconds for ending in endings],
        "message": LOST,
    }
    # A savepoint: what is refused must not undo what came before it.
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_TAKE_BACK, values | arguments(endings))


def _ending(row: Any) -> Ending:
    if row.state == State.CLAIMED:
        return Ending(state=State.SCHEDULED)
    if row.cancel_requested_at is not None:
        return Ending(state=State.CANCELLED)
    options = read(row.options)
    decision = retry.decide(
        error="lost",
        attempt=row.attempts - row.attempts_before,
        policy=retry.Policy.read((options or {}).get("retry")),
        age_seconds=(row.now - row.since).total_seconds(),
    )
    told = Told(
        delivery_id=row.id,
        timer_id=row.timer_id,
        due_at=row.due_at,
        moment=row.moment,
        attempts=row.attempts,
        terms=read(row.terms),
        options=options,
    )
    result = {"status_code": None, "error": "lost", "message": LOST}
    return ending_of(decision, told, begun_at=row.started_at, now=row.now, result=result)
