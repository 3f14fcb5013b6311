"""Starts claimed deliveries and records the outcomes of their calls, many in one statement.

The lease token guards both: a process that lost the lease writes nothing.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction

from webtask_scheduler import vault
from webtask_scheduler.scheduler.models import ATTEMPTS_BOUND, MESSAGE_MAX_LENGTH, State
from webtask_scheduler.scheduler.queue.endings import (
    APPLY_ENDINGS,
    APPLY_PLAIN_ENDINGS,
    ITEM_COLUMNS,
    ITEM_TYPES,
    SCHEDULE_JSON,
    Ending,
    EndingDelivery,
    arguments,
    ending_of,
    read,
)
from webtask_scheduler.scheduler.queue.faults import is_away, park, set_fault
from webtask_scheduler.scheduler.queue.leases import ASYNC_COMMIT, MEANT_FOR, RUNNING_LEASE_SECONDS
from webtask_scheduler.scheduler.queue.rollups import process_name, tally
from webtask_scheduler.scheduler.queue.states import LOCK_TIMERS, forget_changes
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.options import NO_OPTIONS, Options
from webtask_scheduler.scheduler.sealing import opened


@dataclass(frozen=True, slots=True)
class Started:
    """A delivery whose attempt was started here, with all that the call needs."""

    delivery_id: uuid.UUID
    token: uuid.UUID
    timer_id: uuid.UUID
    # These three hold secrets, so that no log may show them.
    web_url: str = field(repr=False)
    host: str
    due_at: datetime
    meant_for: datetime
    # Counts all attempts of the delivery; 0 for a missed one.
    attempt: int
    # The database's clock and this process's monotonic clock at the same instant.
    started_at: datetime
    started: float
    # Counts the timer's promised moments.
    occurrence: int = 1
    # The attempts that the retry policy counts: those since the latest replay; `since` is where their age begins.
    tries: int = 1
    since: datetime | None = None
    options: Options = field(default=NO_OPTIONS, repr=False)
    # See endings.SCHEDULE_JSON; None for a timer that is called once.
    terms: Mapping[str, Any] | None = None
    # The call is signed with each of these.
    secrets: Sequence[str] = field(default=(), repr=False)
    # Why its secrets cannot be decrypted, so that the call cannot be made; empty if they can.
    unreadable: str = ""

    @property
    def key(self) -> tuple[uuid.UUID, uuid.UUID]:
        """Return the key of the claim that was started, as Held has it."""
        return self.delivery_id, self.token

    def as_ending(self) -> EndingDelivery:
        return EndingDelivery(
            delivery_id=self.delivery_id,
            timer_id=self.timer_id,
            due_at=self.due_at,
            occurrence=self.occurrence,
            attempts=self.attempt,
            terms=self.terms,
            options=self.options,
        )


class Batch(NamedTuple):
    """The result of starting deliveries. Items that were given and appear in no list are stale."""

    started: list[Started]
    # Claimed by this token but not yet due, with the seconds left.
    early: dict[tuple[uuid.UUID, uuid.UUID], float]
    # Later than their timers allow; the caller passes them to `record_missed`.
    missed: list[Started]
    # Cannot be called at all, and why; the caller parks them.
    refused: list[tuple[tuple[uuid.UUID, uuid.UUID], Exception | str]]


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
    retry_after_seconds: float | None = None
    # Another attempt cannot do better.
    permanent: bool = False
    # As Attempt.stages; empty where none is known.
    stages: Sequence[int | None] = ()
    # As Attempt.headers.
    headers: str | None = None


EXHAUSTED = f"Attempts exhausted: a delivery can have {ATTEMPTS_BOUND:,}, replays and interruptions included."

# Whether a signing secret is for the timer's host: it is for all hosts, for this one, or for those that end like it.
SIGNS_HOST = """(signing.hosts = '{}' OR timer.host = ANY(signing.hosts)
                     OR EXISTS (SELECT FROM unnest(signing.hosts) AS wild (host)
                                 WHERE starts_with(wild.host, '*.')
                                   AND right(timer.host, length(wild.host) - 1) = substr(wild.host, 2)
                                   AND length(timer.host) >= length(wild.host)))"""

# Starts rows that are due by the database's clock and still claimed under the message's token. A row that is not due
# yet is returned with the seconds left, a row that is too late is returned as late, and a stopped one is held.
_START = f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]) AS i (id, token)),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.timer_id, timer.web_url, timer.host, clock_timestamp() AS now,
         extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8 AS left,
         EXISTS (SELECT FROM scheduler_callstop stop WHERE stop.host IN ('', timer.host)) AS stopped,
         timer.max_lateness_seconds IS NOT NULL AND delivery.attempts = 0 AND delivery.replayed_at IS NULL
           AND NOT delivery.extra
           AND clock_timestamp() > delivery.due_at + make_interval(secs => timer.max_lateness_seconds) AS late,
         delivery.attempts >= {ATTEMPTS_BOUND} AS exhausted, delivery.lease_token, delivery.due_at, delivery.occurrence,
         coalesce(delivery.replayed_at, delivery.due_at) AS since,
         delivery.attempts + 1 - delivery.attempts_before AS tries,
         timer.options::text, CASE WHEN NOT delivery.extra THEN {SCHEDULE_JSON} END AS terms,
         ARRAY(SELECT secret FROM scheduler_signingsecret signing
                WHERE coalesce(signing.owner_id, 0) = coalesce(timer.owner_id, 0) AND {SIGNS_HOST}
                ORDER BY signing.id) AS secrets
    FROM quick, scheduler_delivery delivery
    JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
    JOIN scheduler_timer timer ON timer.id = delivery.timer_id
   WHERE delivery.state = 'claimed' ORDER BY delivery.id FOR UPDATE OF delivery
),
stopped AS (
  UPDATE scheduler_delivery delivery SET state = 'held', lease_token = NULL, lease_expires_at = NULL
    FROM held WHERE delivery.id = held.id AND held.stopped
),
begun AS (
  UPDATE scheduler_delivery delivery
     SET state = 'running', attempts = attempts + 1, started_at = held.now,
         lease_expires_at = held.now + make_interval(secs => %(lease)s)
    FROM held WHERE delivery.id = held.id AND held.left <= 0
     AND NOT held.stopped AND NOT held.late AND NOT held.exhausted
  RETURNING delivery.id, delivery.attempts, {MEANT_FOR} AS meant_for
)
SELECT held.left, held.late, held.exhausted, begun.attempts,
       held.id, held.lease_token, held.timer_id, held.web_url, held.host, held.due_at,
       begun.meant_for, held.now, held.occurrence, held.tries, held.since, held.options, held.terms, held.secrets,
       statement_timestamp()
  FROM held LEFT JOIN begun ON begun.id = held.id WHERE NOT held.stopped
"""  # noqa: S608 - only constants are put in


def _record(*, item_types: str, item_columns: str, returned: str, close: str) -> str:
    """Return the statement that records outcomes.

    A delivery that was cancelled during its call ends as cancelled whatever the outcome; its attempt keeps the outcome.
    An item without an attempt's start was missed: its claim ends, and no attempt is written.
    """
    return f"""
WITH {ASYNC_COMMIT},
item AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(states)s::text[], %(waits)s::float8[],
                       %(called_ats)s::timestamptz[], %(durations)s::int[], %(codes)s::int[], %(errors)s::text[],
                       %(messages)s::text[], %(excerpts)s::text[], %(stages)s::text[], %(headers)s::text[]{item_types})
    AS i (id, token, state, wait, called_at, duration_ms, status_code, error, message, excerpt, stages,
          headers{item_columns})
),
held AS MATERIALIZED (
  SELECT delivery.id, delivery.attempts, {MEANT_FOR} AS meant_for,
         CASE WHEN delivery.cancel_requested_at IS NULL THEN item.state ELSE 'cancelled' END AS state
    FROM quick, scheduler_delivery delivery JOIN item ON item.id = delivery.id AND item.token = delivery.lease_token
   WHERE delivery.state = CASE WHEN item.called_at IS NULL THEN 'claimed' ELSE 'running' END
   ORDER BY delivery.id FOR UPDATE OF delivery
),
attempt AS (
  INSERT INTO scheduler_attempt
    (delivery_id, number, meant_for, started_at, duration_ms, status_code, error, message, excerpt, stages, headers,
     worker)
  SELECT held.id, held.attempts, held.meant_for, greatest(item.called_at, held.meant_for),
         item.duration_ms, item.status_code, item.error, item.message, item.excerpt, item.stages::int[],
         item.headers, %(worker)s
    FROM held JOIN item USING (id) WHERE item.called_at IS NOT NULL
),
done AS (
  UPDATE scheduler_delivery delivery
     SET state = held.state, lease_token = NULL, lease_expires_at = NULL,
         finished_at = CASE WHEN held.state <> 'scheduled' THEN clock_timestamp() END,
         -- Not before the promise, though the database's clock was set back.
         next_attempt_at = CASE WHEN held.state = 'scheduled'
                                THEN greatest(clock_timestamp() + make_interval(secs => item.wait), delivery.due_at)
                                ELSE delivery.next_attempt_at END
    FROM held JOIN item USING (id) WHERE delivery.id = held.id
  RETURNING delivery.id, delivery.timer_id, delivery.extra, delivery.state{returned}
),
{close}
-- Almost always all were written, and none was cancelled meanwhile: then no ids are sent.
SELECT count(*), CASE WHEN count(*) <> (SELECT count(*) FROM item) THEN array_agg(id) END,
       array_agg(id) FILTER (WHERE state = 'cancelled') FROM done
"""  # noqa: S608 - only constants are put in


# Most batches have no timer that recurs or calls back, and planning the long form costs as much as a record. It is two
# statements in one transaction, sent together: the second sees what was committed until the timers were locked.
_RECORD_PLAIN = _record(item_types="", item_columns="", returned="", close=APPLY_PLAIN_ENDINGS)
_RECORD = f"{LOCK_TIMERS};" + _record(
    item_types=f", {ITEM_TYPES}",
    item_columns=f", {ITEM_COLUMNS}",
    returned=f", delivery.occurrence, {ITEM_COLUMNS}",
    close=APPLY_ENDINGS,
)


def start_attempts(items: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> Batch:
    """Start those of (delivery id, lease token) pairs that may be started, in one statement. Raises DatabaseError."""
    wanted: dict[str, Any] = {
        "ids": [delivery_id for delivery_id, _ in items],
        "tokens": [token for _, token in items],
        "lease": RUNNING_LEASE_SECONDS,
    }
    begun = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(_START, wanted)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    batch = Batch([], {}, [], [])
    for row in map(_StartRow._make, rows):
        if row.exhausted:
            batch.refused.append((row.key, EXHAUSTED))
        elif row.attempt is None and not row.late:
            batch.early[row.key] = max(0.0, row.left)
        else:
            try:
                call = _started(row, begun=begun)
            except Exception as error:
                # What is stored cannot be read. That affects only this delivery, not those started with it.
                batch.refused.append((row.key, error))
            else:
                (batch.missed if row.late else batch.started).append(call)
    return batch


class _StartRow(NamedTuple):
    """A row that `_START` returns."""

    left: float
    late: bool
    exhausted: bool
    attempt: int | None
    delivery_id: uuid.UUID
    token: uuid.UUID
    timer_id: uuid.UUID
    web_url: str
    host: str
    due_at: datetime
    meant_for: datetime | None
    now: datetime
    occurrence: int
    tries: int
    since: datetime
    options: str | None
    terms: str | None
    secrets: list[str]
    # When the statement arrived, by the clock of `now`.
    arrived: datetime

    @property
    def key(self) -> tuple[uuid.UUID, uuid.UUID]:
        return self.delivery_id, self.token


def _started(row: _StartRow, *, begun: float) -> Started:
    """Return what a call needs, with its secrets decrypted."""
    options = Options.read(row.options)
    web_url, secrets, unreadable = row.web_url, [], ""
    try:
        if options:
            web_url, given = opened(web_url, options.given)
            options = Options(given)
        secrets = [vault.unseal_or_plain(secret) for secret in row.secrets]
    except vault.VaultError as error:
        # The attempt fails and is retried: with the key back, nothing is lost, and a timer that recurs goes on.
        unreadable = str(error)
    return Started(
        delivery_id=row.delivery_id,
        token=row.token,
        timer_id=row.timer_id,
        web_url=web_url,
        host=row.host,
        due_at=row.due_at,
        meant_for=row.meant_for or row.due_at,
        attempt=row.attempt or 0,
        started_at=row.now,
        # This process's clock at `now`: the statement may have waited for rows before it read that.
        started=begun + max(0.0, (row.now - row.arrived).total_seconds()),
        occurrence=row.occurrence,
        tries=row.tries,
        since=row.since,
        options=options,
        terms=read(row.terms),
        secrets=secrets,
        unreadable=unreadable,
    )


def record_outcomes(outcomes: Sequence[Outcome]) -> int:
    """Record outcomes, the policy's decision and what follows in one statement; return how many were written.

    An attempt whose lease was lost is not written: another process records it. Raises DatabaseError.
    """
    endings = [_ending(outcome) for outcome in outcomes]
    written = _write([outcome.call for outcome in outcomes], outcomes, endings)
    _count(outcomes, endings, written)
    # Last, and by a statement of its own: nothing that was recorded depends on it.
    if paused := [outcome.call.timer_id for outcome, ending in zip(outcomes, endings, strict=True) if ending.pause]:
        forget_changes(paused)
    return written.number


def record_refused(outcome: Outcome, error: Exception) -> None:
    """Record an attempt whose `record_outcomes` was refused, and fail its delivery with the error as its reason.

    No next delivery and no callback is made: they may be what was refused. Raises DatabaseError where the database is
    away.
    """
    call = outcome.call
    plain = replace(outcome, excerpt="", headers=None, message=outcome.message[:MESSAGE_MAX_LENGTH])
    bare = replace(plain, call=replace(call, options=NO_OPTIONS, terms=None))
    try:
        with transaction.atomic():
            written = _write([bare.call], [bare], [Ending(state=State.FAILED)])
            set_fault(call.delivery_id, error)
    except Exception as refused:
        if is_away(refused):
            raise
        park(call.delivery_id, error, token=call.token)
    else:
        _count([bare], [Ending(state=State.FAILED)], written)


def record_missed(missed: Sequence[Started]) -> int:
    """End deliveries that are later than their timers allow, and return how many. Raises DatabaseError."""
    result = {"status_code": None, "error": None, "message": "Its moment had passed by more than its allowed lateness."}
    endings = [
        ending_of(None, call.as_ending(), begun_at=call.started_at, now=call.started_at, result=result)
        for call in missed
    ]
    written = _write(missed, [None] * len(missed), endings)
    tally.missed(written.number - len(written.cancelled))
    return written.number


def _ending(outcome: Outcome) -> Ending:
    call = outcome.call
    now = outcome.called_at + timedelta(milliseconds=outcome.duration_ms)
    decision = retry.decide(
        error=outcome.error,
        attempt=call.tries,
        permanent=outcome.permanent,
        policy=call.options.policy,
        status_code=outcome.status_code,
        retry_after_seconds=outcome.retry_after_seconds,
        age_seconds=(now - (call.since or call.due_at)).total_seconds(),
        least_seconds=settings.WEBTASK_LIMIT_GAP_SECONDS,
    )
    result = {
        "status_code": outcome.status_code,
        "error": outcome.error or None,
        "message": outcome.message,
        "excerpt": outcome.excerpt,
    }
    return ending_of(decision, call.as_ending(), begun_at=outcome.called_at, now=now, result=result)


class Written(NamedTuple):
    """How many of the deliveries that were to be written were, and which were cancelled meanwhile.

    `ids` is None if all were written.
    """

    number: int
    ids: Sequence[uuid.UUID] | None
    cancelled: Sequence[uuid.UUID]


def _count(outcomes: Sequence[Outcome], endings: Sequence[Ending], written: Written) -> None:
    for outcome, ending in zip(outcomes, endings, strict=True):
        call = outcome.call
        if written.ids is None or call.delivery_id in written.ids:
            tally.attempt(
                at=outcome.called_at,
                error=outcome.error,
                state=State.CANCELLED if call.delivery_id in written.cancelled else ending.state,
                first=call.attempt == 1,
                late_seconds=max(0.0, (outcome.called_at - call.meant_for).total_seconds()),
                duration_seconds=outcome.duration_ms / 1000,
                host=call.host,
            )


def _write(calls: Sequence[Started], outcomes: Sequence[Outcome | None], endings: Sequence[Ending]) -> Written:
    values: dict[str, Any] = {
        "ids": [call.delivery_id for call in calls],
        "tokens": [call.token for call in calls],
        "states": [ending.state.value for ending in endings],
        "waits": [ending.wait_seconds for ending in endings],
        "called_ats": [outcome and outcome.called_at for outcome in outcomes],
        "durations": [outcome and outcome.duration_ms for outcome in outcomes],
        "codes": [outcome and outcome.status_code for outcome in outcomes],
        "errors": [outcome and outcome.error for outcome in outcomes],
        "messages": [outcome and outcome.message for outcome in outcomes],
        # An answer to a sensitive timer may repeat what it was sent.
        "excerpts": [outcome and ("" if outcome.call.options.sensitive else outcome.excerpt) for outcome in outcomes],
        "headers": [outcome and (None if outcome.call.options.sensitive else outcome.headers) for outcome in outcomes],
        "worker": process_name(),
        # As PostgreSQL writes an array: there is no array of arrays of different lengths.
        "stages": [
            f"{{{str(outcome.stages)[1:-1].replace('None', 'NULL')}}}" if outcome and outcome.stages else None
            for outcome in outcomes
        ],
    }
    plain = all(outcome for outcome in outcomes) and not any(call.terms or call.options.calls_back for call in calls)
    if not plain:
        # Only timers that recur get another delivery.
        values |= arguments(endings) | {"timer_ids": [call.timer_id for call in calls if call.terms]}
    with connection.cursor() as cursor:
        cursor.execute(_RECORD_PLAIN if plain else _RECORD, values)
        count, ids, cancelled = cursor.fetchone()
    return Written(count, ids, cancelled or ())
