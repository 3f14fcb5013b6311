"""Dead letters: finds deliveries that failed or were missed and that nobody dismissed, and dismisses or replays them.

They are read along delivery_dead_idx, flow by flow: a flow is one owner's deliveries to one host. So an owner's few are
found beside millions of others', and a host with very many does not hide the rest. What is read is bounded.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Q

from webtask_scheduler.access import audit
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.services import auditing, flows
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.scheduler.services.changing import NothingToReplayError, replay_locked
from webtask_scheduler.telemetry.events import event

# What one look reads: so many of each flow, the latest first; so many flows; and so many in all, which takes a tenth of
# a second.
FLOW_MOST = 1000
FLOWS_MOST = 500
LETTERS_MOST = 4000
# Rows of one transaction: it holds their locks for a few hundred milliseconds.
BATCH_ROWS = 500
# Deliveries that were due in the time of a dismissal, among which it is looked for to be undone.
RESTORE_LOOK = 50_000

_DEAD = "state IN ('failed', 'missed') AND dismissed_at IS NULL"
# One probe for each flow, one for each delivery's timer, and one for its last attempt. With OFFSET 0 no plan can read
# the whole table of timers instead; neighbours are looked up one after the other, from pages that are at hand.
_LOST = f"""
WITH RECURSIVE step AS (
  SELECT begin.last, first.flow, 1 AS number
    FROM unnest(%(after)s::bigint[], %(last)s::bigint[]) AS begin (after, last)
   CROSS JOIN LATERAL (SELECT flow FROM scheduler_delivery WHERE {_DEAD} AND flow > begin.after AND flow <= begin.last
                        ORDER BY flow LIMIT 1) first
  UNION ALL
  SELECT step.last, next.flow, step.number + 1
    FROM step
   CROSS JOIN LATERAL (SELECT flow FROM scheduler_delivery WHERE {_DEAD} AND flow > step.flow AND flow <= step.last
                        ORDER BY flow LIMIT 1) next
   WHERE step.number < %(flows)s
),
lost AS MATERIALIZED (
  SELECT each_lost.*
    FROM (SELECT flow FROM step LIMIT %(flows)s) each
   CROSS JOIN LATERAL (SELECT id, timer_id, flow, state, finished_at, attempts FROM scheduler_delivery
                        WHERE {_DEAD} AND flow = each.flow ORDER BY finished_at DESC LIMIT %(flow)s) each_lost
   LIMIT %(most)s
),
cut AS (
  SELECT sum(letters) >= %(most)s OR count(*) >= %(flows)s OR max(letters) >= %(flow)s AS is_cut
    FROM (SELECT count(*) AS letters FROM lost GROUP BY flow) each
)
SELECT {{columns}}, (SELECT is_cut FROM cut) AS is_cut
  FROM (SELECT * FROM lost ORDER BY timer_id OFFSET 0) lost
  JOIN LATERAL (SELECT host, name, owner_id FROM scheduler_timer WHERE id = lost.timer_id OFFSET 0) timer ON true
  LEFT JOIN LATERAL (SELECT error, status_code, message FROM scheduler_attempt WHERE delivery_id = lost.id
                      ORDER BY number DESC LIMIT 1) last ON true
 WHERE %(everyone)s OR timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint
"""  # noqa: S608 - only constants are put in
_CAUSE = "timer.host, lost.state, coalesce(last.error, ''), last.status_code"
_LETTERS = (
    _LOST.format(
        columns=f"lost.flow, lost.id, lost.timer_id, {_CAUSE}, lost.finished_at, lost.attempts, timer.name,"
        " coalesce(last.message, '')"
    )
    + " ORDER BY lost.flow, lost.finished_at DESC"
)
_GROUPS = (
    _LOST.format(columns=f"{_CAUSE}, array_agg(extract(epoch FROM lost.finished_at)::float8)") + f" GROUP BY {_CAUSE}"
)
_COUNT = f"""
SELECT count(*) FROM (
  SELECT FROM unnest(%(after)s::bigint[], %(last)s::bigint[]) AS begin (after, last)
   CROSS JOIN LATERAL (SELECT FROM scheduler_delivery WHERE {_DEAD} AND flow > begin.after AND flow <= begin.last
                        ORDER BY flow LIMIT %(most)s) dead
   LIMIT %(most)s) counted
"""  # noqa: S608 - as above


class Letter(NamedTuple):
    """A dead letter, with its timer and what its last attempt said."""

    flow: int
    delivery_id: uuid.UUID
    timer_id: uuid.UUID
    host: str
    state: str
    error: str
    status_code: int | None
    finished_at: datetime
    attempts: int
    name: str
    message: str


class Letters(NamedTuple):
    """Dead letters, and whether there may be more than these."""

    found: list[Letter]
    is_cut: bool


class Group(NamedTuple):
    """Dead letters of one host and one cause: when they ended, in seconds of Unix time."""

    host: str
    state: str
    error: str
    status_code: int | None
    ended: list[float]


class Groups(NamedTuple):
    """Dead letters by host and cause, and whether there may be more than these."""

    found: list[Group]
    is_cut: bool


def find(caller: Caller) -> Letters:
    """Return the dead letters that a caller may see, by flow, the latest of each first. Raises DatabaseError."""
    rows = _look(_LETTERS, caller)
    return Letters([Letter(*row[:-1]) for row in rows], any(row[-1] for row in rows[:1]))


def groups(caller: Caller) -> Groups:
    """Return the dead letters that a caller may see, by host and cause. Raises DatabaseError."""
    rows = _look(_GROUPS, caller)
    return Groups([Group(*row[:-1]) for row in rows], any(row[-1] for row in rows[:1]))


def _look(statement: str, caller: Caller) -> list[tuple[Any, ...]]:
    values: dict[str, Any] = {"flow": FLOW_MOST, "flows": FLOWS_MOST, "most": LETTERS_MOST}
    values |= {"everyone": caller.sees_all, "owner": caller.owner_id} | flows.ranges_of(caller)
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def count(caller: Caller, *, most: int) -> int:
    """Return how many dead letters a caller may see, at most `most`. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, flows.ranges_of(caller) | {"most": most})
        return int(cursor.fetchone()[0])


def dismiss(timer_id: uuid.UUID, *, delivery_id: uuid.UUID | None = None) -> int:
    """Dismiss a timer's dead letters, or one of them; return how many were not dismissed before. The records stay.

    Raises NothingToReplayError where there is no such delivery that failed or was missed.
    """
    wanted = Q(timer=timer_id, state__in=states.REPLAYABLE) & (Q(pk=delivery_id) if delivery_id else Q())
    with transaction.atomic():
        if not Delivery.objects.filter(wanted).exists():
            raise NothingToReplayError(timer_id)
        return len(_dismiss(wanted))


class Dismissal(NamedTuple):
    """How many dead letters were dismissed; and when that was and they were due, by which they are found again."""

    number: int
    since: datetime
    until: datetime
    due_from: datetime
    due_to: datetime


def dismiss_many(delivery_ids: Sequence[uuid.UUID]) -> Dismissal:
    """Dismiss dead letters, in transactions of BATCH_ROWS."""
    dues: list[datetime] = []
    since = states.database_now()
    for start in range(0, len(delivery_ids), BATCH_ROWS):
        with transaction.atomic():
            lost = _dismiss(Q(pk__in=delivery_ids[start : start + BATCH_ROWS], state__in=states.REPLAYABLE))
            dues += [one.due_at for one in lost]
    return Dismissal(len(dues), since, states.database_now(), min(dues, default=since), max(dues, default=since))


def restore(dismissal: Dismissal, *, caller: Caller) -> int:
    """Undo a dismissal of dead letters that the caller may change; return how many are to be looked at again.

    They are looked for among RESTORE_LOOK of either state that were due in its time. Those that were replayed meanwhile
    stay so.
    """
    then = {"dismissed_at__range": (dismissal.since, dismissal.until)}
    ids: list[uuid.UUID] = []
    for state in states.REPLAYABLE:
        # Along delivery_past_flow_idx, and then by their ids.
        near = Delivery.objects.filter(state=state, due_at__range=(dismissal.due_from, dismissal.due_to))
        near_ids = near.order_by("due_at").values("pk")[:RESTORE_LOOK]
        ids += Delivery.objects.filter(pk__in=near_ids, **then, **caller.visible("timer__")).values_list(
            "pk", flat=True
        )
    done = 0
    for start in range(0, len(ids), BATCH_ROWS):
        wanted = Q(pk__in=ids[start : start + BATCH_ROWS], state__in=states.REPLAYABLE)
        with transaction.atomic():
            lost = states.lock_deliveries(wanted, **then)
            states.restore(lost)
            owners = Timer.objects.filter(pk__in={one.timer_id for one in lost}).values_list("pk", "owner_id")
            audit.record_each("timer.undismissed", kind=auditing.TIMER, owners=dict(owners))
            done += len(lost)
    event("dead_letters_restored", deliveries=done)
    return done


def dismiss_of(timer_ids: Sequence[uuid.UUID]) -> int:
    """Dismiss all dead letters of timers; return of how many timers there were any. Call it in a transaction."""
    return len({one.timer_id for one in _dismiss(Q(timer__in=timer_ids, state__in=states.REPLAYABLE), is_bulk=True)})


def _dismiss(wanted: Q, *, is_bulk: bool = False) -> list[Delivery]:
    lost = states.lock_deliveries(wanted, dismissed_at=None)
    states.dismiss(lost)
    if lost and not is_bulk:
        owners = Timer.objects.filter(pk__in={one.timer_id for one in lost}).values_list("pk", "owner_id")
        audit.record_each("timer.dismissed", kind=auditing.TIMER, owners=dict(owners))
    if lost:
        event("dead_letters_dismissed", deliveries=len(lost), first=lost[0].pk)
    return lost


class Replayed(NamedTuple):
    """How many dead letters are sent again, and how many of the given ones are not."""

    done: int
    left: int


def replay_letters(delivery_ids: Sequence[uuid.UUID], *, spread_seconds: float = 0) -> Replayed:
    """Replay dead letters, at random moments of the time from now, in transactions of BATCH_ROWS. See `replay_locked`.

    Left are those that are dead letters no more, and those whose timers have too many open extra deliveries.
    """
    done = 0
    for start in range(0, len(delivery_ids), BATCH_ROWS):
        batch = delivery_ids[start : start + BATCH_ROWS]
        with transaction.atomic():
            of = Delivery.objects.filter(pk__in=batch).values_list("timer", flat=True)
            timers = {timer.pk: timer for timer in states.lock(list(of), deliveries=None).timers}
            lost = states.lock_deliveries(Q(pk__in=batch, timer__in=list(timers), state__in=states.REPLAYABLE))
            count_done = replay_locked(timers, lost, spread_seconds=spread_seconds)
            if count_done:
                owners = {one.timer_id: timers[one.timer_id].owner_id for one in lost}
                audit.record_each("timer.replayed", kind=auditing.TIMER, owners=owners)
            done += count_done
    event("dead_letters_replayed", deliveries=done, spread_seconds=spread_seconds)
    return Replayed(done, len(delivery_ids) - done)
