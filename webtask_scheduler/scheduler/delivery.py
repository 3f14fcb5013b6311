"""What a worker does: start claimed deliveries, call their URLs, record the outcomes.

A worker process has one `CallPool`: a starter thread that starts what was handed over (many in one statement), caller
threads that only call, and a ledger thread that records outcomes and renews leases (many in one statement). Callers
never touch the database, so no transaction spans a call and two connections serve the whole process.

Start and record are guarded by the lease token: who lost the lease writes nothing.
"""

import json
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, connection

from webtask_scheduler.scheduler import retry
from webtask_scheduler.scheduler.http import CallError, Client
from webtask_scheduler.scheduler.leases import (
    ASYNC_COMMIT,
    CLAIMED_LEASE_SECONDS,
    CLOSE_TASKS,
    RUNNING_LEASE_SECONDS,
    Held,
    put_back,
    renew_leases,
)
from webtask_scheduler.scheduler.models import EXCERPT_MAX_LENGTH

logger = logging.getLogger(__name__)
T = TypeVar("T")

RENEW_SECONDS = 5.0
# A delivery rung for this much too soon is waited for; a longer wait is left to the queue.
EARLY_SECONDS = 0.05
# After an error of the database.
PAUSE_SECONDS = 0.25
# Outcomes that one statement records.
RECORD_LIMIT = 200
# At shutdown: how long calls under way may take to end by themselves.
DRAIN_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Started:
    """A delivery whose attempt was started here: all that the call needs."""

    delivery_id: uuid.UUID
    token: uuid.UUID
    timer_id: uuid.UUID
    web_url: str
    host: str
    due_at: datetime
    meant_for: datetime
    attempt: int
    # The database's clock and this process's monotonic clock at the same moment.
    started_at: datetime
    started: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    call: Started
    called_at: datetime
    duration_ms: int
    status_code: int | None
    error: str
    message: str
    excerpt: str


# Due by the database's clock, claimed by whoever sent the message, not cancelled since. A row that is claimed but not
# yet due is answered with the seconds left.
_START = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) AS i (id, token)),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.timer_id, clock_timestamp() AS now,
         extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8 AS left
    FROM quick, scheduler_delivery delivery JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = 'claimed' ORDER BY delivery.id FOR UPDATE OF delivery
),
begun AS (
  UPDATE scheduler_delivery delivery
     SET state = 'running', attempts = attempts + 1, started_at = held.now,
         lease_expires_at = held.now + make_interval(secs => %(lease)s)
    FROM held WHERE delivery.id = held.id AND held.left <= 0
  RETURNING delivery.id, delivery.lease_token, delivery.due_at, delivery.next_attempt_at, delivery.attempts
)
SELECT held.id, held.left, held.now, begun.lease_token, begun.due_at, begun.next_attempt_at, begun.attempts,
       held.timer_id, timer.web_url, timer.host
  FROM held JOIN scheduler_timer timer ON timer.id = held.timer_id LEFT JOIN begun ON begun.id = held.id
"""  # noqa: S608 - only constants are put in

# A call that was told to end by a cancel ends as cancelled whatever it brought; its attempt says what that was.
_RECORD = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(states)s::text[], %(waits)s::float8[],
                       %(called_ats)s::timestamptz[], %(durations)s::int[], %(codes)s::int[], %(errors)s::text[],
                       %(messages)s::text[], %(excerpts)s::text[])
    AS i (id, token, state, wait, called_at, duration_ms, status_code, error, message, excerpt)
),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.attempts, delivery.next_attempt_at,
         CASE WHEN delivery.cancel_requested_at IS NULL THEN item.state ELSE 'cancelled' END AS state
    FROM quick, scheduler_delivery delivery JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = 'running' ORDER BY delivery.id FOR UPDATE OF delivery
),
attempt AS (
  INSERT INTO scheduler_attempt
    (delivery_id, number, meant_for, started_at, duration_ms, status_code, error, message, excerpt)
  SELECT held.id, held.attempts, held.next_attempt_at, greatest(item.called_at, held.next_attempt_at),
         item.duration_ms, item.status_code, item.error, item.message, item.excerpt
    FROM held JOIN item USING (id)
),
done AS (
  UPDATE scheduler_delivery delivery
     SET state = held.state, lease_token = NULL, lease_expires_at = NULL,
         finished_at = CASE WHEN held.state <> 'scheduled' THEN clock_timestamp() END,
         next_attempt_at = CASE WHEN held.state = 'scheduled'
                                THEN clock_timestamp() + make_interval(secs => item.wait)
                                ELSE delivery.next_attempt_at END
    FROM held JOIN item USING (id) WHERE delivery.id = held.id
  RETURNING delivery.timer_id, delivery.extra, delivery.state
),
{CLOSE_TASKS}
SELECT count(*) FROM done
"""  # noqa: S608


def start_attempts(items: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> tuple[list[Started], dict[uuid.UUID, float]]:
    """Start what may be started of (delivery id, lease token) pairs, as one statement.

    Returns the started, and for each that is claimed by this token but not yet due, the seconds left. Whatever else
    was given is stale: nothing is written. Raises DatabaseError.
    """
    arguments: dict[str, Any] = {
        "ids": [delivery_id for delivery_id, _ in items],
        "tokens": [token for _, token in items],
        "lease": RUNNING_LEASE_SECONDS,
    }
    begun = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(_START, arguments)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    started, early = [], {}
    for delivery_id, left, now, token, due_at, meant_for, attempt, timer_id, web_url, host in rows:
        if token is None:
            early[delivery_id] = max(0.0, left)
        else:
            started.append(Started(delivery_id, token, timer_id, web_url, host, due_at, meant_for, attempt, now, begun))
    return started, early


def record_outcomes(outcomes: Sequence[Outcome]) -> int:
    """Record how attempts ended, with what the policy makes of it, as one statement.

    Returns how many were written: an attempt whose lease was lost is somebody else's to tell. Raises DatabaseError.
    """
    decisions = [retry.decide(error=outcome.error, attempt=outcome.call.attempt) for outcome in outcomes]
    arguments: dict[str, Any] = {
        "ids": [outcome.call.delivery_id for outcome in outcomes],
        "tokens": [outcome.call.token for outcome in outcomes],
        "states": [decision.verdict.value for decision in decisions],
        "waits": [decision.wait_seconds for decision in decisions],
        "called_ats": [outcome.called_at for outcome in outcomes],
        "durations": [outcome.duration_ms for outcome in outcomes],
        "codes": [outcome.status_code for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
        "messages": [outcome.message for outcome in outcomes],
        "excerpts": [outcome.excerpt for outcome in outcomes],
    }
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, arguments)
        written: int = cursor.fetchone()[0]
    return written


def call_url(call: Started, *, client: Client, timeout_seconds: float) -> Outcome:
    """Make the HTTP call of a started attempt. Raises nothing: what goes wrong is the outcome."""
    body = json.dumps(
        {"task_id": str(call.timer_id), "due_at": call.due_at.astimezone(UTC).isoformat(), "attempt": call.attempt}
    ).encode()
    begun = time.monotonic()
    # The start statement's clock, carried on by the monotonic one: the moment the call itself begins.
    called_at = call.started_at + timedelta(seconds=begun - call.started)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": str(call.delivery_id),
        "webhook-timestamp": str(int(called_at.timestamp())),
    }
    status_code, error, message, excerpt = None, "", "", ""
    try:
        answer = client.call(call.web_url, body=body, headers=headers, timeout_seconds=timeout_seconds)
    except CallError as failure:
        error, message = failure.kind, str(failure)
    except Exception:
        logger.exception("call_crashed delivery=%s", call.delivery_id)
        error, message = "protocol", "The answer could not be understood."
    else:
        status_code = answer.status_code
        # PostgreSQL's text holds every character but NUL.
        excerpt = answer.body.decode("utf-8", "replace").replace("\0", "�")[:EXCERPT_MAX_LENGTH]
        if not 200 <= status_code < 300:  # noqa: PLR2004 - what HTTP calls success
            error, message = "status", f"The receiver answered {status_code}."
    duration_ms = round((time.monotonic() - begun) * 1000)
    logger.log(
        logging.INFO if not error else logging.WARNING,
        "attempt_ended timer=%s delivery=%s attempt=%d host=%s status=%s error=%s late_ms=%.1f took_ms=%d",
        call.timer_id,
        call.delivery_id,
        call.attempt,
        call.host.rpartition("@")[2],
        status_code or "-",
        error or "-",
        (called_at - call.meant_for) / timedelta(milliseconds=1),
        duration_ms,
    )
    return Outcome(call, called_at, duration_ms, status_code, error, message, excerpt)


class CallPool:
    """The callers of one worker process. `hand_over` gives it work; `close` ends it in an orderly way.

    Every delivery that it holds, waiting or running, has its lease renewed; a slot is taken before a delivery is
    started and given back when its call ends, so at most `callers` calls are under way.
    """

    def __init__(self, *, callers: int, client: Client, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._slots = threading.Semaphore(callers)
        self._work: queue.SimpleQueue[tuple[Held, threading.Event] | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[Started | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        # Guards the two below: what this process holds, and until when by the monotonic clock.
        self._lock = threading.Lock()
        self._held: dict[uuid.UUID, Held] = {}
        self._running: set[uuid.UUID] = set()
        self._closing = threading.Event()
        self._end_at = math.inf
        self._starter = threading.Thread(target=self._start_all, name="starter", daemon=True)
        self._ledger = threading.Thread(target=self._keep_ledger, name="ledger", daemon=True)
        self._callers = [
            threading.Thread(target=self._call_all, name=f"caller-{number}", daemon=True) for number in range(callers)
        ]
        for thread in (self._starter, self._ledger, *self._callers):
            thread.start()

    def hand_over(self, items: Iterable[tuple[uuid.UUID, uuid.UUID]]) -> None:
        """Take (delivery id, lease token) pairs; return when each has a slot, is stale, or was given back."""
        now = time.monotonic()
        waiting = []
        for delivery_id, token in items:
            held = Held(now, now + CLAIMED_LEASE_SECONDS, delivery_id, token)
            with self._lock:
                self._held[delivery_id] = held
            taken = threading.Event()
            waiting.append(taken)
            self._work.put((held, taken))
        for taken in waiting:
            while not taken.wait(1.0) and self._starter.is_alive():
                pass

    def stop_taking(self) -> None:
        """Begin the end: what is not started yet is given back. Safe to call from a signal handler."""
        self._closing.set()

    def close(self) -> None:
        """Give back what is not started, let calls end for a while, record the rest as interrupted."""
        drained_at = time.monotonic() + DRAIN_SECONDS
        self._end_at = drained_at + 1.0
        self._closing.set()
        self._work.put(None)
        while self._running and time.monotonic() < drained_at:
            time.sleep(0.05)
        if self._running:
            logger.warning("calls_interrupted running=%d", len(self._running))
            self._client.interrupt()
        for _ in self._callers:
            self._calls.put(None)
        for thread in self._callers:
            thread.join(max(0.0, self._end_at - time.monotonic()))
        self._ended.put(None)
        self._ledger.join(max(0.5, self._end_at - time.monotonic()))

    # The starter

    def _start_all(self) -> None:
        """Start what was handed over: at least one, and with it whatever else waits and finds a slot."""
        last = False
        while not last:
            item = self._work.get()
            batch: list[tuple[Held, threading.Event]] = []
            while item is not None:
                if not self._closing.is_set():
                    self._wait_for_slot()
                batch.append(item)
                if self._work.empty() or not self._slots_left():
                    break
                item = self._work.get()
            last = item is None
            self._start([held for held, _ in batch])
            for _, taken in batch:
                taken.set()
        connection.close()

    def _wait_for_slot(self) -> None:
        while not self._slots.acquire(timeout=0.5):
            if self._closing.is_set():
                return

    def _slots_left(self) -> bool:
        free = self._slots.acquire(blocking=False)
        if free:
            self._slots.release()
        return free or self._closing.is_set()

    def _start(self, batch: list[Held]) -> None:
        """Start a batch that holds a slot each. Slots of what does not start are given back."""
        if not batch:
            return
        if self._closing.is_set():
            self._give_back(batch)
            return
        waiting = {held.delivery_id: held for held in batch}
        while waiting and not self._closing.is_set():
            pairs = [(held.delivery_id, held.token) for held in waiting.values()]
            # While the lease lives, a database that is away is worth waiting for.
            result = self._persist(partial(start_attempts, pairs), until=max(h.expires for h in waiting.values()))
            if result is None:
                break
            started, early = result
            for call in started:
                held = waiting.pop(call.delivery_id)
                with self._lock:
                    self._held[call.delivery_id] = Held(
                        held.at, call.started + RUNNING_LEASE_SECONDS, call.delivery_id, call.token
                    )
                    self._running.add(call.delivery_id)
                self._calls.put(call)
            # What is neither started nor early is stale: cancelled, paused, or taken by somebody else.
            for delivery_id in [delivery_id for delivery_id in waiting if delivery_id not in early]:
                self._forget(waiting.pop(delivery_id))
            if waiting:
                # Rung a moment too soon by this database's clock, and never early is the promise. More than a moment
                # means that a clock was set: the queue keeps it better than this thread.
                if min(early.values()) > EARLY_SECONDS:
                    break
                time.sleep(min(early.values()) + 0.0002)
        if waiting:
            self._give_back(list(waiting.values()))

    def _forget(self, held: Held) -> None:
        with self._lock:
            self._held.pop(held.delivery_id, None)
        self._slots.release()

    def _give_back(self, batch: list[Held]) -> None:
        for held in batch:
            self._forget(held)
        self._persist(lambda: put_back(batch), until=time.monotonic() + 1.0)

    # The callers

    def _call_all(self) -> None:
        while (call := self._calls.get()) is not None:
            with self._lock:
                held = self._held.get(call.delivery_id)
            if held is None or held.token != call.token or held.expires <= time.monotonic():
                # The lease ran out while it waited: whoever reclaims it writes it down and calls.
                logger.warning("lease_lost delivery=%s", call.delivery_id)
                with self._lock:
                    self._held.pop(call.delivery_id, None)
                    self._running.discard(call.delivery_id)
            else:
                self._ended.put(call_url(call, client=self._client, timeout_seconds=self._timeout_seconds))
            self._slots.release()

    # The ledger

    def _keep_ledger(self) -> None:
        """Record outcomes as they come, many in one statement, and renew every lease in time."""
        renew_at = time.monotonic() + RENEW_SECONDS
        last = False
        while not last:
            outcomes: list[Outcome] = []
            try:
                item = self._ended.get(timeout=max(0.0, renew_at - time.monotonic()))
                while item is not None and len(outcomes) < RECORD_LIMIT:
                    outcomes.append(item)
                    if self._ended.empty():
                        break
                    item = self._ended.get()
                last = item is None
            except queue.Empty:
                pass
            if outcomes:
                self._record(outcomes)
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + RENEW_SECONDS
                self._renew()
        connection.close()

    def _record(self, outcomes: list[Outcome]) -> None:
        # A success must not become a second call because the database was away: tried until it is back. Nothing piles
        # up meanwhile, since starting needs the database too.
        written = self._persist(lambda: record_outcomes(outcomes), until=math.inf)
        if written != len(outcomes):
            logger.warning("outcomes_not_recorded count=%d", len(outcomes) - (written or 0))
        with self._lock:
            for outcome in outcomes:
                self._held.pop(outcome.call.delivery_id, None)
                self._running.discard(outcome.call.delivery_id)

    def _renew(self) -> None:
        with self._lock:
            pairs = [(held.delivery_id, held.token) for held in self._held.values()]
        if not pairs:
            return
        now = time.monotonic()
        # Once only: the next turn is five seconds away, and a lease outlives three of them.
        kept = self._persist(lambda: renew_leases(pairs), until=now)
        if kept is None:
            return
        with self._lock:
            for delivery_id, token in pairs:
                held = self._held.get(delivery_id)
                if held is None or held.token != token:
                    continue
                lease = RUNNING_LEASE_SECONDS if delivery_id in self._running else CLAIMED_LEASE_SECONDS
                expires = now + lease if delivery_id in kept else 0.0
                self._held[delivery_id] = Held(held.at, expires, delivery_id, token)

    def _persist(self, statement: Callable[[], T], *, until: float) -> T | None:
        """Run a statement, again after each error of the database until a moment; None where it never worked."""
        failed = False
        while True:
            try:
                result = statement()
            except (DatabaseError, InterfaceError) as error:
                connection.close()
                if not failed:
                    logger.warning("database_failing error=%r", str(error).strip())
                failed = True
                if time.monotonic() + PAUSE_SECONDS > (self._end_at if self._closing.is_set() else until):
                    return None
                time.sleep(PAUSE_SECONDS)
            else:
                return result
