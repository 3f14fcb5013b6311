"""Claims due deliveries from the table and puts back those that were not called: the queue that beats dispatch.

The database's clock decides what is due. Row locks keep the claims of any number of beats apart.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from django.db import DatabaseError, InterfaceError, connection

from webtask_scheduler.dispatch.queue import Claim, Held, Lane, Look, Portion, QueueError
from webtask_scheduler.dispatch.share import lane_of
from webtask_scheduler.scheduler.mirror import RUN_BY_STOCK
from webtask_scheduler.scheduler.models import LANES, State
from webtask_scheduler.scheduler.queue.leases import ASYNC_COMMIT, CLAIMED_LEASE_SECONDS, put_back
from webtask_scheduler.scheduler.queue.reclaim import RECLAIM_LIMIT, Reclaims, reclaim_expired
from webtask_scheduler.scheduler.queue.rollups import tally

P = ParamSpec("P")
T = TypeVar("T")

# How far ahead of their due time deliveries are claimed. The claim takes time; this keeps it out of the lateness.
AHEAD_SECONDS = 1.0
# Overdue by more than this is backlog: due while nothing ran, or while more was due than workers could start.
FRESH_SECONDS = 5.0
# Flows of one lane that one look goes through; the next look goes on with the rest. A thousand take some five
# milliseconds.
FLOWS_MOST = 500
# Held deliveries that one statement releases, and how often they are checked though no stop was lifted.
RELEASE_LIMIT = 2000
RELEASE_SECONDS = 60.0

# One index probe a lane; if the oldest is long overdue, another for those that are not.
_LANES = """
SELECT lane.number, fresh.exists, oldest.next_attempt_at <= statement_timestamp() - make_interval(secs => %(fresh)s)
  FROM generate_series(0, %(lanes)s - 1) AS lane (number)
 CROSS JOIN LATERAL (
   SELECT next_attempt_at FROM scheduler_delivery
    WHERE state = 'scheduled' AND lane = lane.number::smallint
      AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(ahead)s)
    ORDER BY next_attempt_at LIMIT 1) oldest
 CROSS JOIN LATERAL (
   SELECT oldest.next_attempt_at > statement_timestamp() - make_interval(secs => %(fresh)s) OR EXISTS (
     SELECT FROM scheduler_delivery
      WHERE state = 'scheduled' AND lane = lane.number::smallint
        AND next_attempt_at > statement_timestamp() - make_interval(secs => %(fresh)s)
        AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(ahead)s))) AS fresh (exists)
 WHERE NOT EXISTS (SELECT FROM scheduler_callstop WHERE host = '')
"""

_CLAIMED = "SELECT flow, count(*) FROM scheduler_delivery WHERE state = 'claimed' GROUP BY flow"

# Finds the flows of a lane, due or not, along the index: one probe for each flow.
_FLOWS = """
WITH RECURSIVE step AS (
  SELECT begin.last, first.flow, 1 AS number
    FROM unnest(%(after)s::bigint[], %(last)s::bigint[]) AS begin (after, last)
   CROSS JOIN LATERAL (
     SELECT flow FROM scheduler_delivery
      WHERE state = 'scheduled' AND flow > begin.after AND flow <= begin.last ORDER BY flow LIMIT 1) first
  UNION ALL
  SELECT step.last, next.flow, step.number + 1
    FROM step
   CROSS JOIN LATERAL (
     SELECT flow FROM scheduler_delivery
      WHERE state = 'scheduled' AND flow > step.flow AND flow <= step.last ORDER BY flow LIMIT 1) next
   WHERE step.number < %(most)s
)
SELECT step.flow, step.number, EXISTS (
         SELECT FROM scheduler_delivery
          WHERE state = 'scheduled' AND flow = step.flow
            AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(ahead)s)) AS due
  FROM step
"""

# Nothing is claimed while all calls are stopped: a claim would only be held.
_RANGE = """NOT EXISTS (SELECT FROM scheduler_callstop WHERE host = '')
        AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(until)s)
        AND next_attempt_at > coalesce(statement_timestamp() - make_interval(secs => %(since)s), '-infinity')"""

# Lock due rows in index order, up to each portion's limit. The bounds use statement_timestamp(), because
# clock_timestamp() may change from row to row: the planner would compare it with every entry of the index.
_DUE_OF_LANES = f"""
  SELECT due.* FROM quick, unnest(%(lanes)s::smallint[], %(limits)s::int[]) AS portion (lane, most)
   CROSS JOIN LATERAL (
     SELECT id, timer_id, extra, due_at FROM scheduler_delivery
      WHERE state = 'scheduled' AND lane = portion.lane AND {_RANGE}
      ORDER BY next_attempt_at LIMIT portion.most FOR UPDATE SKIP LOCKED) due
"""  # noqa: S608 - only constants are put in
_DUE_OF_FLOWS = f"""
  SELECT due.* FROM quick,
         unnest(%(flows)s::bigint[], %(limits)s::int[]) AS portion (flow, most)
   CROSS JOIN LATERAL (
     SELECT id, timer_id, extra, due_at FROM scheduler_delivery
      WHERE state = 'scheduled' AND flow = portion.flow AND {_RANGE}
      ORDER BY next_attempt_at LIMIT portion.most FOR UPDATE SKIP LOCKED) due
"""  # noqa: S608 - only constants are put in
_DUE_OF_TIMER = f"""
  SELECT id, timer_id, extra, due_at FROM quick, scheduler_delivery
   WHERE state = 'scheduled' AND timer_id = %(timer)s AND {_RANGE}
   ORDER BY next_attempt_at LIMIT 100 FOR UPDATE OF scheduler_delivery SKIP LOCKED
"""  # noqa: S608 - only constants are put in


# A row is claimed only if its PeriodicTask agrees: it shows the same due time, and is enabled or was disabled by a
# stock scheduler that has run it (see services.note_run_by_stock). Other rows are paused, out of the way of the queue,
# until services.obey looks at them. Rows whose calls are stopped are held until `release_held`.
def _claiming(due: str) -> str:
    return f"""
WITH {ASYNC_COMMIT},
due AS MATERIALIZED ({due}),
wanted AS MATERIALIZED (
  SELECT due.id, task.id AS task_id, timer.host,
         EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host = timer.host) AS stopped,
         due.extra OR timer.outcome_of IS NOT NULL
           OR (task.enabled OR {RUN_BY_STOCK}) AND coalesce(clocked.clocked_time = due.due_at, true) AS agreed
    FROM due
    LEFT JOIN scheduler_timer timer ON timer.id = due.timer_id
    LEFT JOIN django_celery_beat_periodictask task ON task.id = timer.periodic_task_id
    LEFT JOIN django_celery_beat_clockedschedule clocked ON clocked.id = task.clocked_id
)
UPDATE scheduler_delivery delivery
   SET state = CASE WHEN NOT agreed THEN 'paused' WHEN stopped THEN 'held' ELSE 'claimed' END,
       lease_token = CASE WHEN agreed AND NOT stopped THEN %(token)s::uuid END,
       lease_expires_at = CASE WHEN agreed AND NOT stopped
                               THEN clock_timestamp() + make_interval(secs => %(lease)s) END
  FROM wanted WHERE delivery.id = wanted.id
RETURNING delivery.id, delivery.state, wanted.task_id, delivery.timer_id, delivery.due_at, wanted.host, delivery.flow,
          delivery.lane, extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8,
          extract(epoch FROM clock_timestamp())::float8
"""  # noqa: S608 - only constants are put in


_CLAIM_LANES, _CLAIM_FLOWS, _CLAIM_TIMER = _claiming(_DUE_OF_LANES), _claiming(_DUE_OF_FLOWS), _claiming(_DUE_OF_TIMER)

_RELEASE = """
WITH free AS MATERIALIZED (
  SELECT delivery.id FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
   WHERE delivery.state = 'held'
     AND NOT EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host IN ('', timer.host))
   ORDER BY delivery.id LIMIT %(limit)s FOR UPDATE OF delivery SKIP LOCKED
)
UPDATE scheduler_delivery delivery SET state = 'scheduled' FROM free WHERE delivery.id = free.id
"""


def look(*, ahead_seconds: float = AHEAD_SECONDS) -> Look:
    """Return which lanes have due deliveries and what each flow has claimed. Raises DatabaseError.

    Mostly nothing is due; then this is one statement, cheaper than planning a claim. Nothing is due while all calls are
    stopped.
    """
    with connection.cursor() as cursor:
        cursor.execute(_LANES, {"lanes": LANES, "ahead": ahead_seconds, "fresh": FRESH_SECONDS})
        lanes = [Lane(*row) for row in cursor.fetchall()]
        if not lanes:
            return Look((), {})
        cursor.execute(_CLAIMED)
        return Look(lanes, dict(cursor.fetchall()))


def due_flows(
    lanes: Sequence[int], *, after: Mapping[int, int], ahead_seconds: float = AHEAD_SECONDS
) -> tuple[list[int], dict[int, int]]:
    """Return the flows of lanes in which something is due. See Queue.flows. Raises DatabaseError."""
    first = [after.get(lane, (lane << 57) - 1) for lane in lanes]
    last = [(lane + 1 << 57) - 1 for lane in lanes]
    with connection.cursor() as cursor:
        cursor.execute(_FLOWS, {"after": first, "last": last, "most": FLOWS_MOST, "ahead": ahead_seconds})
        rows: list[tuple[int, int, bool]] = cursor.fetchall()
    # A lane that came to its end is left out, and begins again.
    return [flow for flow, _, due in rows if due], {
        lane_of(flow): flow for flow, number, _ in rows if number == FLOWS_MOST
    }


def claim_due(portions: Sequence[Portion], *, until_seconds: float = 0.0, since_seconds: float | None = None) -> Claim:
    """Claim due deliveries, oldest first in each portion. Either all portions name a flow, or no portion does.

    They are due up to `until_seconds` from now, which may be negative, and, if `since_seconds` is given, overdue by
    less than that. Raises DatabaseError.
    """
    limits = [portion.limit for portion in portions]
    if all(portion.flow is None for portion in portions):
        lanes = {"lanes": [portion.lane for portion in portions], "limits": limits}
        return _claim(_CLAIM_LANES, lanes, until_seconds, since_seconds)
    flows = {"flows": [portion.flow for portion in portions], "limits": limits}
    return _claim(_CLAIM_FLOWS, flows, until_seconds, since_seconds)


def claim_timer(timer_id: uuid.UUID, *, until_seconds: float = 0.0) -> Claim:
    """Claim the due deliveries of a timer: the promised one and the extra ones. See `claim_due`."""
    return _claim(_CLAIM_TIMER, {"timer": timer_id}, until_seconds, None)


def _claim(statement: str, values: Mapping[str, Any], until_seconds: float, since_seconds: float | None) -> Claim:
    token = uuid.uuid4()
    bounds = {"until": until_seconds, "since": since_seconds}
    with connection.cursor() as cursor:
        cursor.execute(statement, {**values, **bounds, "token": token, "lease": CLAIMED_LEASE_SECONDS})
        rows = list(map(_ClaimedRow._make, cursor.fetchall()))
    # Read after the answer came, so a due time in memory is never before the database's; one in the past is overdue.
    now = time.monotonic()
    expires = now + CLAIMED_LEASE_SECONDS
    held = [
        Held(
            now + row.left,
            expires,
            row.delivery_id,
            token,
            row.timer_id,
            row.due_at,
            row.host,
            row.flow,
            marks=(row.clock,),
            clock=row.clock - now,
        )
        for row in rows
        if row.state == State.CLAIMED
    ]
    disputed = [row.task_id for row in rows if row.state == State.PAUSED and row.task_id is not None]
    return Claim(held, disputed, Counter(row.lane for row in rows))


class _ClaimedRow(NamedTuple):
    """A row that a claim returns."""

    delivery_id: uuid.UUID
    state: str
    task_id: int | None
    timer_id: uuid.UUID
    due_at: datetime
    host: str
    flow: int
    lane: int
    left: float
    # The database's, in seconds since the epoch.
    clock: float


def call_stops() -> set[str]:
    """Return the hosts to which calls are stopped; an empty host means all. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT host FROM scheduler_callstop")
        return {row[0] for row in cursor.fetchall()}


def release_held(*, limit: int = RELEASE_LIMIT) -> int:
    """Put deliveries whose stop was lifted back in the queue and return how many. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE, {"limit": limit})
        return int(cursor.rowcount)


def _reaching(function: Callable[P, T]) -> Callable[P, T]:
    """Turn an error of the database into a QueueError; the next call opens another connection."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (DatabaseError, InterfaceError) as error:
            # The connection may be half dead.
            connection.close()
            raise QueueError(str(error).strip()) from error

    return call


class DeliveryQueue:
    """The table of deliveries as a dispatcher's queue; see dispatch.queue.Queue. It counts what is claimed."""

    def __init__(self) -> None:
        # How many were claimed and not started at the latest look, and since then.
        self._window = 0
        self._reclaims = Reclaims()
        self._stops: set[str] = set()
        self._release_at = 0.0

    @_reaching
    def look(self) -> Look:
        found = look()
        self._window = sum(found.claimed.values())
        return found

    @_reaching
    def flows(self, lanes: Sequence[int], after: Mapping[int, int]) -> tuple[list[int], dict[int, int]]:
        return due_flows(lanes, after=after)

    @_reaching
    def claim(self, portions: Sequence[Portion], *, backlog: bool) -> Claim:
        if backlog:
            claim = claim_due(portions, until_seconds=-FRESH_SECONDS)
        else:
            claim = claim_due(portions, until_seconds=AHEAD_SECONDS, since_seconds=FRESH_SECONDS)
        self._window += len(claim.held)
        now = time.monotonic()
        tally.claimed([now - held.at for held in claim.held], window=self._window)
        return claim

    @_reaching
    def put_back(self, held: Sequence[Held]) -> None:
        put_back(held)

    @_reaching
    def reclaim(self) -> bool:
        taken = reclaim_expired()
        self._reclaims.note(taken)
        return sum(taken) == RECLAIM_LIMIT

    @_reaching
    def release(self) -> bool:
        """Release held deliveries after a stop was lifted; return whether there may be more."""
        stops = call_stops()
        now = time.monotonic()
        full = False
        if not self._stops <= stops or now >= self._release_at:
            full = release_held() == RELEASE_LIMIT
            self._release_at = now if full else now + RELEASE_SECONDS
        if not full:
            self._stops = stops
        return full
