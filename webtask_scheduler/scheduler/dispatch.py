"""What the clock does: claim due deliveries, ring for a worker at their moment, and take back expired leases.

Beat calls `Dispatcher.turn` again and again. The database's clock decides what is due; between two claims the
dispatcher keeps the coming second's deliveries in memory and measures time by the monotonic clock. Any number of
dispatchers may run: row locks keep their claims apart. Nothing here knows Celery: publishing is given as a callable.
"""

import heapq
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import DatabaseError, InterfaceError, connection, transaction

from webtask_scheduler.scheduler import retry
from webtask_scheduler.scheduler.endings import (
    CLOSE,
    HANDED_OVER,
    ITEM_COLUMNS,
    ITEM_TYPES,
    TERMS,
    Ending,
    Told,
    ending_of,
    read,
)
from webtask_scheduler.scheduler.endings import arguments as endings_arguments
from webtask_scheduler.scheduler.leases import ASYNC_COMMIT, CLAIMED_LEASE_SECONDS, MEANT_FOR, Held, put_back
from webtask_scheduler.scheduler.models import State

logger = logging.getLogger(__name__)

# How far ahead of their moment deliveries are claimed. The claim takes time; this keeps it out of the lateness.
AHEAD_SECONDS = 1.0
# The longest time between two claims: a timer made due at once waits half of it, on average.
POLL_SECONDS = 0.05
# Large enough to carry a burst in few statements, small enough that one statement stays in the tens of milliseconds.
CLAIM_LIMIT = 500
RECLAIM_SECONDS = 1.0
# Held deliveries that one statement releases, and how often they are looked at though no stop was lifted.
RELEASE_LIMIT = 2000
RELEASE_SECONDS = 60.0
# What is due now has a share of its own, of each claim and of the window, beside what is late: 100,000 that were due
# together to a host that hangs must not stand before all that comes due while they are put off, claim after claim.
NOW_SECONDS = 0.25
NOW_SHARE = 4
# Overdue by more than this is backlog: it was due while nothing ran, or while more was due than workers could start.
FRESH_SECONDS = 5.0
# How much may be claimed and not started, by all beats together: what the workers start in this time, within bounds.
# Half a claim's lease, so that leases do not run out in the broker's queue; the backlog gets the smaller share, so that
# what comes due now does not stand behind it.
WINDOW_SECONDS = CLAIMED_LEASE_SECONDS / 2
BACKLOG_WINDOW_SECONDS = 1.0
WINDOW_LEAST = 64
WINDOW_MOST = 2000
# After an error of the database or the broker; long enough not to flood the log.
PAUSE_SECONDS = 1.0
# Deliveries that one message may carry: a message costs a worker several round trips to the broker, as much as some
# calls. A few that are due together get a message each; more go in few messages, for several workers to share.
CHUNK_MOST = 50
SINGLE_MOST = 4
CHUNKS_AT_ONCE = 4
# What is later than this is not spread: workers have enough to do.
LATE_SECONDS = 0.5
# Where the window leaves room for less, wait for more: a claim of what was just started would be chunks of one.
ROOM_LEAST = 32


class PublishError(Exception):
    """The broker did not take the message."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one message carries: (delivery id, lease token, host) triples, and a label for people."""

    items: tuple[tuple[uuid.UUID, uuid.UUID, str], ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of one claim: what was taken, and the PeriodicTasks that say something else than our rows."""

    held: list[Held]
    disputed: list[int]
    full: bool


# Locks rows in index order and updates those ids. The bound is the statement's own time: clock_timestamp() may change
# from row to row, so the planner would compare it with every entry of the index.
# Each row must still be wanted by its PeriodicTask: enabled (or disabled by a stock scheduler that has run it, see
# services.handed_over) and due when it says. Others are parked as paused, out of the way of the queue, for
# services.obey to look at; and those whose calls somebody has stopped as held, until release_held.
_CLAIM = f"""
WITH {ASYNC_COMMIT},
due AS MATERIALIZED (
  SELECT id, timer_id, extra, due_at FROM scheduler_delivery, quick
   WHERE state = 'scheduled' AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(ahead)s)
     AND next_attempt_at > coalesce(statement_timestamp() - make_interval(secs => %(overdue)s), '-infinity')
     AND (%(timer)s::uuid IS NULL OR timer_id = %(timer)s::uuid)
     AND NOT EXISTS (SELECT FROM scheduler_callstop WHERE host = '')
   ORDER BY next_attempt_at
   LIMIT %(limit)s
     FOR UPDATE OF scheduler_delivery SKIP LOCKED
),
wanted AS MATERIALIZED (
  SELECT due.id, task.id AS task_id, timer.host,
         EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host = timer.host) AS stopped,
         due.extra OR timer.outcome_of IS NOT NULL
           OR (task.enabled OR {HANDED_OVER}) AND coalesce(clocked.clocked_time = due.due_at, true) AS agreed
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
RETURNING delivery.id, delivery.state, task_id, delivery.timer_id, delivery.due_at, host,
          extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8
"""  # noqa: S608 - only constants are put in

_LOOK = """
SELECT (SELECT count(*) FROM scheduler_delivery WHERE state = 'claimed'),
       EXISTS (SELECT FROM scheduler_delivery WHERE state = 'scheduled'
                  AND next_attempt_at <= statement_timestamp() + make_interval(secs => %(ahead)s)
                  AND next_attempt_at > statement_timestamp() - make_interval(secs => %(now)s)),
       EXISTS (SELECT FROM scheduler_delivery WHERE state = 'scheduled'
                  AND next_attempt_at <= statement_timestamp() - make_interval(secs => %(now)s)
                  AND next_attempt_at > statement_timestamp() - make_interval(secs => %(fresh)s)),
       EXISTS (SELECT FROM scheduler_delivery WHERE state = 'scheduled'
                  AND next_attempt_at <= statement_timestamp() - make_interval(secs => %(fresh)s))
"""

_RELEASE = """
WITH free AS MATERIALIZED (
  SELECT delivery.id FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
   WHERE delivery.state = 'held'
     AND NOT EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host IN ('', timer.host))
   ORDER BY delivery.id LIMIT %(limit)s FOR UPDATE OF delivery SKIP LOCKED
)
UPDATE scheduler_delivery delivery SET state = 'scheduled' FROM free WHERE delivery.id = free.id
"""

_EXPIRED = f"""
SELECT delivery.id, delivery.state, delivery.attempts, delivery.attempts_before, delivery.cancel_requested_at,
       delivery.timer_id, delivery.due_at, delivery.moment, delivery.started_at,
       coalesce(delivery.replayed_at, delivery.due_at) AS since, clock_timestamp() AS now,
       CASE WHEN NOT delivery.extra THEN {TERMS} END AS terms, timer.options::text
  FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE delivery.state IN ('claimed', 'running') AND delivery.lease_expires_at < statement_timestamp()
 ORDER BY delivery.lease_expires_at LIMIT %(limit)s FOR UPDATE OF delivery SKIP LOCKED
"""  # noqa: S608 - only constants are put in

# An expired claim goes back free of charge: no call was made. An expired call is written down as lost.
_TAKE_BACK = f"""
WITH item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(states)s::text[], %(waits)s::float8[], {ITEM_TYPES})
    AS i (id, state, wait, {ITEM_COLUMNS})
),
lost AS (
  INSERT INTO scheduler_attempt (delivery_id, number, meant_for, started_at, error, message, excerpt)
  SELECT delivery.id, delivery.attempts, {MEANT_FOR}, delivery.started_at, 'lost', %(message)s, ''
    FROM scheduler_delivery delivery JOIN item USING (id) WHERE delivery.state = 'running'
),
done AS (
  UPDATE scheduler_delivery delivery
     SET state = item.state, lease_token = NULL, lease_expires_at = NULL,
         next_attempt_at = CASE WHEN delivery.state = 'running'
                                THEN clock_timestamp() + make_interval(secs => item.wait)
                                ELSE delivery.next_attempt_at END,
         finished_at = CASE WHEN item.state <> 'scheduled' THEN clock_timestamp() END
    FROM item WHERE delivery.id = item.id
  RETURNING delivery.id, delivery.timer_id, delivery.extra, delivery.state, delivery.moment, {ITEM_COLUMNS}
),
{CLOSE}
SELECT count(*) FROM done
"""  # noqa: S608 - only constants are put in

_LOST = "The process that made this call vanished; its outcome is unknown."


def claim_due(
    *,
    limit: int = CLAIM_LIMIT,
    ahead_seconds: float = 0.0,
    overdue_seconds: float | None = None,
    timer_id: uuid.UUID | None = None,
) -> Claim:
    """Take due deliveries, oldest first, at most `limit`.

    They are due up to `ahead_seconds` from now, and, if given, overdue by less than `overdue_seconds`; both may be
    negative. With `timer_id`, only those of that timer. Raises DatabaseError.
    """
    token = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM,
            {
                "ahead": ahead_seconds,
                "timer": timer_id,
                "overdue": overdue_seconds,
                "limit": limit,
                "token": token,
                "lease": CLAIMED_LEASE_SECONDS,
            },
        )
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    # Measured after the answer came, so a moment in memory is never before the database's; one in the past is overdue.
    now = time.monotonic()
    held = [
        Held(now + left, now + CLAIMED_LEASE_SECONDS, delivery_id, token, timer_id, due_at, host)
        for delivery_id, state, _, timer_id, due_at, host, left in rows
        if state == State.CLAIMED
    ]
    disputed = [task_id for _, state, task_id, *_ in rows if state == State.PAUSED and task_id is not None]
    return Claim(held, disputed, full=len(rows) == limit)


def reclaim_expired(*, limit: int = CLAIM_LIMIT) -> int:
    """Take back deliveries whose lease has run out, and return how many. Raises DatabaseError."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_EXPIRED, {"limit": limit})
        names = [column.name for column in cursor.description]
        expired = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
        if not expired:
            return 0
        endings = [_taken_back(row) for row in expired]
        arguments: dict[str, Any] = {
            "ids": [row.id for row in expired],
            "states": [ending.state.value for ending in endings],
            "waits": [ending.wait_seconds for ending in endings],
            "message": _LOST,
        }
        cursor.execute(_TAKE_BACK, arguments | endings_arguments(endings))
    running = sum(row.state == State.RUNNING for row in expired)
    logger.warning("leases_reclaimed claimed=%d running=%d", len(expired) - running, running)
    return len(expired)


def _taken_back(row: Any) -> Ending:
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
    result = {"status_code": None, "error": "lost", "message": _LOST}
    return ending_of(decision, told, begun_at=row.started_at, now=row.now, result=result)


def call_stops() -> set[str]:
    """Return the hosts to which calls are stopped; the empty one is all of them. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT host FROM scheduler_callstop")
        return {row[0] for row in cursor.fetchall()}


def release_held(*, limit: int = RELEASE_LIMIT) -> int:
    """Return deliveries to the queue that were held by a stop that is over; return how many. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE, {"limit": limit})
        return int(cursor.rowcount)


class Look(NamedTuple):
    """How many deliveries are claimed and not started, and whether any is due now or soon, late, and long overdue."""

    claimed: int
    due: bool
    late: bool
    backlog: bool


def look() -> Look:
    """Look at the queue before claiming from it. Raises DatabaseError.

    Planning the claim costs more than this whole statement, and most of the time there is nothing to claim.
    """
    with connection.cursor() as cursor:
        cursor.execute(_LOOK, {"ahead": AHEAD_SECONDS, "now": NOW_SECONDS, "fresh": FRESH_SECONDS})
        return Look(*cursor.fetchone())


def _room(window: int, claimed: int) -> int:
    """Return how many more may be claimed: none where there is room for few only and there is much to do."""
    room = window - claimed
    return min(room, CLAIM_LIMIT) if room >= min(ROOM_LEAST, max(1, window // 2)) else 0


def _label(batch: list[Held]) -> str:
    due_at = f"{batch[0].due_at:%H:%M:%S}" if batch[0].due_at else "?"
    return f"{len(batch)} timers due {due_at}" if len(batch) > 1 else f"timer due {due_at}: {batch[0].timer_id}"


class Window:
    """How much may be claimed and not started, from how fast workers start what was published."""

    def __init__(self) -> None:
        self.size = WINDOW_MOST
        # Deliveries a second that workers were last seen to start; unknown before they were seen to lag.
        self.rate = math.inf
        self._published = 0
        self._outstanding = 0
        self._at = time.monotonic()

    def published(self, count: int) -> None:
        self._published += count

    def adjust(self, outstanding: int) -> None:
        """Take the number that is claimed and not started now, about once a second."""
        now = time.monotonic()
        started = self._published + self._outstanding - outstanding
        rate = max(0.0, started / max(now - self._at, 0.001))
        if outstanding > self.size // 2:
            # They lag: what they did in this second is what they can do.
            self.rate = rate if self.rate == math.inf else (self.rate + rate) / 2
            self.size = round(max(WINDOW_LEAST, min(WINDOW_MOST, self.rate * WINDOW_SECONDS)))
        else:
            self.size = min(WINDOW_MOST, self.size * 2)
            # They keep up: what they did while they could not is no measure any more.
            self.rate *= 2
        self._published, self._outstanding, self._at = 0, outstanding, now

    @property
    def backlog_size(self) -> int:
        """The share of what is long overdue."""
        rate = min(self.rate, WINDOW_MOST)
        return round(max(WINDOW_LEAST / 2, min(self.size / 2, rate * BACKLOG_WINDOW_SECONDS)))


class Dispatcher:
    """One beat's share of the work: the coming second in memory, and when to look at the database again.

    `publish` sends a chunk and raises PublishError; `dispute` is told of PeriodicTasks that differ from our rows.
    `backlog_per_second` bounds how fast what is long overdue is worked off; 0 is as fast as workers start it.
    """

    def __init__(
        self,
        *,
        publish: Callable[[Chunk], None],
        dispute: Callable[[list[int]], None],
        backlog_per_second: float = 0.0,
    ) -> None:
        self._publish = publish
        self._backlog_per_second = backlog_per_second
        # What the backlog may still take: filled by time, up to a second's worth.
        self._backlog_allowance = 0.0
        self._backlog_at = time.monotonic()
        self._window = Window()
        self._dispute = dispute
        self._held: list[Held] = []
        self._unpublished: list[Held] = []
        self._poll_at = 0.0
        self._reclaim_at = 0.0
        self._failing: set[str] = set()
        self._stops: set[str] = set()
        self._release_at = 0.0

    def turn(self) -> float:
        """Do what is due now and return how many seconds may pass until the next turn. Raises nothing expected."""
        try:
            self._ring()
            now = time.monotonic()
            if now >= self._poll_at:
                self._poll(now)
                self._works("database")
                self._ring()
        except PublishError as error:
            self._failed("broker", error)
        except (DatabaseError, InterfaceError) as error:
            # The connection may be half dead: the next turn opens another.
            connection.close()
            self._failed("database", error)
        now = time.monotonic()
        return max(0.0, min([self._poll_at, *(item.at for item in self._held[:1])]) - now)

    def close(self) -> None:
        """Put everything back that is still held; another dispatcher takes it at once."""
        self._unpublished += self._held
        self._held = []
        try:
            put_back(self._unpublished)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("put_back_failed held=%d error=%r", len(self._unpublished), str(error).strip())
        self._unpublished = []

    def _poll(self, now: float) -> None:
        if self._unpublished:
            put_back(self._unpublished)
            self._unpublished = []
        full = False
        if now >= self._reclaim_at:
            full = reclaim_expired() == CLAIM_LIMIT
            self._window.adjust(look().claimed - len(self._held))
            full = self._release(now) or full
            self._reclaim_at = now if full else now + RECLAIM_SECONDS
        seen = look()
        claimed = seen.claimed
        room = _room(self._window.size, claimed)
        if seen.due and room:
            share = max(ROOM_LEAST, room // NOW_SHARE) if seen.late or seen.backlog else room
            claim = claim_due(limit=min(room, share), ahead_seconds=AHEAD_SECONDS, overdue_seconds=NOW_SECONDS)
            self._take(claim)
            claimed += len(claim.held)
            full = full or claim.full
        room = _room(self._window.size - self._window.size // NOW_SHARE, claimed)
        if seen.late and room:
            claim = claim_due(limit=room, ahead_seconds=-NOW_SECONDS, overdue_seconds=FRESH_SECONDS)
            self._take(claim)
            claimed += len(claim.held)
            full = full or claim.full
        room = min(_room(self._window.backlog_size, claimed), self._backlog_allowed(now))
        if seen.backlog and room:
            claim = claim_due(limit=room, ahead_seconds=-FRESH_SECONDS)
            self._take(claim)
            self._backlog_allowance -= len(claim.held)
            full = full or claim.full
        self._poll_at = now if full else now + POLL_SECONDS

    def _release(self, now: float) -> bool:
        """Release what is held when a stop was lifted; return whether there may be more."""
        stops = call_stops()
        full = False
        if not self._stops <= stops or now >= self._release_at:
            full = release_held() == RELEASE_LIMIT
            self._release_at = now if full else now + RELEASE_SECONDS
        if not full:
            self._stops = stops
        return full

    def _take(self, claim: Claim) -> None:
        for item in claim.held:
            heapq.heappush(self._held, item)
        if claim.disputed:
            self._dispute(claim.disputed)

    def _backlog_allowed(self, now: float) -> int:
        if not self._backlog_per_second:
            return CLAIM_LIMIT
        more = (now - self._backlog_at) * self._backlog_per_second
        self._backlog_allowance = min(self._backlog_allowance + more, max(1.0, self._backlog_per_second))
        self._backlog_at = now
        return int(self._backlog_allowance)

    def _ring(self) -> None:
        """Publish what is due in memory: a message each for a few, chunks for many."""
        now = time.monotonic()
        due: list[Held] = []
        while self._held and self._held[0].at <= now:
            item = heapq.heappop(self._held)
            # Past its lease it belongs to whoever reclaims it.
            if item.expires > now:
                due.append(item)
        size = CHUNK_MOST
        if due and now - due[0].at < LATE_SECONDS:
            size = 1 if len(due) <= SINGLE_MOST else min(CHUNK_MOST, math.ceil(len(due) / CHUNKS_AT_ONCE))
        for start in range(0, len(due), size):
            batch = due[start : start + size]
            try:
                self._publish(Chunk(tuple((item.delivery_id, item.token, item.host) for item in batch), _label(batch)))
            except PublishError:
                self._unpublished += due[start:]
                raise
            self._window.published(len(batch))
            self._works("broker")

    def _failed(self, what: str, error: Exception) -> None:
        self._poll_at = time.monotonic() + PAUSE_SECONDS
        if what not in self._failing:
            # Said once, not at every turn.
            logger.error("dispatch_failing what=%s error=%r", what, str(error).strip())
        self._failing.add(what)

    def _works(self, what: str) -> None:
        if what in self._failing:
            logger.warning("dispatch_recovered what=%s", what)
            self._failing.discard(what)
