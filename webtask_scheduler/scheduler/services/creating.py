"""Creates timers: one statement stores any number of them, with their deliveries and PeriodicTasks."""

import contextlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import uuid_utils
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext_lazy as _

from config.database.prepared import Prepared
from webtask_scheduler.access import actor
from webtask_scheduler.scheduler.mirror import celery_shape
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    host_of,
    new_id,
)
from webtask_scheduler.scheduler.queue.rollups import tally
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.scheduler.rules.recurrence import (
    CALLED_ONCE,
    Recurrence,
)
from webtask_scheduler.scheduler.sealing import sealed
from webtask_scheduler.scheduler.services import idempotency
from webtask_scheduler.scheduler.services.idempotency import Answer, KeyTakenError, Once
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.telemetry.origin import to_store


class NothingPromisedError(ValidationError):
    """The schedule has no due time left."""

    def __init__(self) -> None:
        super().__init__(_("This schedule has no moment that is still to come."), code="no_moment")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTimer:
    """A timer to make: a checked URL, and a delay from the database's present time, an instant, or a recurrence.

    `options` are as models.Timer has them, with secrets as they were given; `schedule` encrypts them. A delivery whose
    first attempt would be later than `max_lateness_seconds` is missed; without a value, it is called however late.
    """

    web_url: str
    delay_seconds: float | None = None
    due_at: datetime | None = None
    recurrence: Recurrence | None = None
    max_occurrences: int | None = None
    max_lateness_seconds: float | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    owner_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A timer just stored; times are the database's."""

    timer_id: uuid.UUID
    due_at: datetime
    created_at: datetime


def _insert(name: str, *, full: bool, once: bool) -> Prepared:
    """Return the statement that creates timers; no other code creates them.

    It makes four rows for each of any number of timers. Ids of the stock tables are drawn first, to connect the rows of
    one timer. It fires no signal and leaves alone the shared marker row that makes stock beat reload. The full form is
    for batches in which a timer has more than a URL, a time and options: planning it takes longer.

    With `once` it creates them, and stores the answer, if nothing is known under an idempotency key, and returns what
    is; the present time is then given. Without, it returns the due time and the present time of each.
    """
    more = "more" if full else "options"
    rows = """
         CASE WHEN more->'crontab' IS NOT NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_crontabschedule', 'id')) END AS crontab_id,
         CASE WHEN more->'interval' IS NOT NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_intervalschedule', 'id')) END AS interval_id,
         CASE WHEN more->'crontab' IS NULL AND more->'interval' IS NULL
              THEN nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) END AS clocked_id,"""
    only_clocked = "nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) AS clocked_id,"
    schedules = """
crontab AS (
  INSERT INTO django_celery_beat_crontabschedule
    (id, minute, hour, day_of_month, month_of_year, day_of_week, timezone)
  SELECT crontab_id, more->'crontab'->>0, more->'crontab'->>1, more->'crontab'->>2, more->'crontab'->>3,
         more->'crontab'->>4, more->>'timezone'
    FROM item WHERE crontab_id IS NOT NULL
),
every AS (
  INSERT INTO django_celery_beat_intervalschedule (id, every, period)
  SELECT interval_id, (more->'interval'->>0)::int, more->'interval'->>1 FROM item WHERE interval_id IS NOT NULL
),
label AS (
  INSERT INTO scheduler_timerlabel (timer_id, label)
  SELECT timer_id, json_array_elements_text(more->'labels') FROM item WHERE more->'labels' IS NOT NULL
),"""
    columns = """, every_seconds, starts_at, ends_at, max_occurrences, max_lateness_seconds"""
    values = """coalesce(more->>'name', ''), coalesce(more->>'cron', ''), coalesce(more->>'timezone', ''),
         more->'options', (more->>'every_seconds')::float8, (more->>'starts_at')::timestamptz,
         (more->>'ends_at')::timestamptz, (more->>'max_occurrences')::int, (more->>'max_lateness_seconds')::float8"""
    if once:
        clock = f"""{idempotency.ONCE},
clock AS MATERIALIZED (SELECT %(now)s::timestamptz AS now FROM first)"""  # noqa: S608 - only constants are put in
        end = f",\nremembered AS ({idempotency.REMEMBER.format(source='first')}\n)\n{idempotency.FOUND}"
    else:
        clock = "clock AS MATERIALIZED (SELECT clock_timestamp() AS now)"
        end = "\nSELECT due, now FROM item ORDER BY position"
    statement = f"""
WITH {clock},
item AS MATERIALIZED (
  SELECT i.*, clock.now, coalesce(i.due_at, clock.now + make_interval(secs => i.delay_seconds)) AS due,
         {rows if full else only_clocked}
         nextval(pg_get_serial_sequence('django_celery_beat_periodictask', 'id')) AS task_id
    FROM clock,
         unnest(%(timer_ids)s::uuid[], %(delivery_ids)s::uuid[], %(web_urls)s::text[], %(hosts)s::text[],
         %(delays)s::float8[], %(due_ats)s::timestamptz[], %(owner_ids)s::bigint[], %(more)s::json[])
      WITH ORDINALITY AS i (timer_id, delivery_id, web_url, host, delay_seconds, due_at, owner_id, {more}, position)
),
clocked AS (
  INSERT INTO django_celery_beat_clockedschedule (id, clocked_time)
  SELECT clocked_id, due FROM item {"WHERE clocked_id IS NOT NULL" if full else ""}
),{schedules if full else ""}
task AS (
  INSERT INTO django_celery_beat_periodictask
    (id, name, task, clocked_id, {"crontab_id, interval_id," if full else ""} args, kwargs, headers, description,
     one_off, enabled, total_run_count, date_changed)
  SELECT task_id, 'timer ' || timer_id, '{TASK_NAME}', clocked_id, {"crontab_id, interval_id," if full else ""}
         '[]', '{{"timer_id": "' || timer_id || '"}}', '{{}}', '', {"clocked_id IS NOT NULL" if full else "true"},
         true, 0, now
    FROM item
),
timer AS (
  INSERT INTO scheduler_timer
    (id, periodic_task_id, owner_id, web_url, host, created_at, made_by, name, cron, timezone,
     options{columns if full else ""})
  SELECT timer_id, task_id, owner_id, web_url, host, now, %(made_by)s::json, {values if full else "'', '', '', options"}
    FROM item
  RETURNING id AS timer_id, flow
),
delivery AS (
  INSERT INTO scheduler_delivery
    (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before)
  SELECT delivery_id, timer_id, flow, 1, 1, false, due, due, 'scheduled', 0, 0 FROM item JOIN timer USING (timer_id)
){end}
"""  # noqa: S608 - only constants are put in
    return Prepared(
        name,
        statement,
        timer_ids="uuid[]",
        delivery_ids="uuid[]",
        web_urls="text[]",
        hosts="text[]",
        delays="float8[]",
        due_ats="timestamptz[]",
        owner_ids="bigint[]",
        more="json[]",
        made_by="json",
        **(idempotency.TYPES | {"now": "timestamptz"} if once else {}),
    )


_INSERT_PLAIN = _insert("webtask_create_plain", full=False, once=False)
_INSERT = _insert("webtask_create", full=True, once=False)
_INSERT_PLAIN_ONCE = _insert("webtask_create_plain_once", full=False, once=True)
_INSERT_ONCE = _insert("webtask_create_once", full=True, once=True)


class Plan:
    """Timers with ids, as the statements of this module take them.

    With `now`, a time of the database's clock, delays count from that, and what is stored is known before it is.
    Raises NothingPromisedError.
    """

    def __init__(self, timers: Sequence[NewTimer], *, now: datetime | None = None) -> None:
        origin = to_store()
        self.ids = [new_id() for _ in timers]
        stored_forms = [sealed(timer.web_url, timer.options) for timer in timers]
        more = [
            _more(timer, {**options, **origin} if options else origin)
            for timer, (_, options) in zip(timers, stored_forms, strict=True)
        ]
        self.is_plain = all(one.keys() <= {"options"} for one in more)
        self.hosts = [host_of(web_url) for web_url, _ in stored_forms]
        self.now = now
        made_by = actor.current().to_store()
        self.values: dict[str, Any] = {
            "timer_ids": _array(self.ids),
            "delivery_ids": _array(uuid_utils.uuid7() for _ in timers),
            "web_urls": [web_url for web_url, _ in stored_forms],
            "hosts": self.hosts,
            "delays": [timer.delay_seconds for timer in timers],
            "due_ats": [_due(timer, now) for timer in timers],
            "owner_ids": [timer.owner_id for timer in timers],
            "more": _texts([one.get("options") for one in more] if self.is_plain else more),
            "made_by": json.dumps(made_by) if made_by else None,
        }

    def scheduled(self) -> list[Scheduled]:
        """Return the timers as they will be stored, in their order. Raises ValueError without `now`."""
        if self.now is None:
            raise ValueError("Only the statement that stores them knows when.")
        return self.scheduled_at((due_at, self.now) for due_at in self.values["due_ats"])

    def scheduled_at(self, times: Iterable[tuple[datetime, datetime]]) -> list[Scheduled]:
        """Return the timers as they are stored, from the due time and the present time of each."""
        return [
            Scheduled(timer_id=timer_id, due_at=due_at, created_at=now)
            for timer_id, (due_at, now) in zip(self.ids, times, strict=True)
        ]


def schedule(timers: Sequence[NewTimer]) -> list[Scheduled]:
    """Store timers, all or none, and return them in the same order.

    Inside `transaction.atomic()`, they exist if and only if the caller's transaction commits. A due time in the past
    is due at once. Raises NothingPromisedError.
    """
    plan = Plan(timers)
    stored = plan.scheduled_at((_INSERT_PLAIN if plan.is_plain else _INSERT).rows(plan.values))
    _report(stored, plan.hosts)
    return stored


def schedule_once(plan: Plan, *, once: Once, answer: Answer) -> Answer | None:
    """Store timers, and the answer under an idempotency key, all or none; return None.

    Where an answer was given before, return that and store nothing. `plan` has `now`. Call it outside of a
    transaction: a key that another request takes meanwhile would end that. Raises as `idempotency.recalled`.
    """
    values = plan.values | idempotency.places(once, answer) | {"now": plan.now}
    found: list[tuple[Any, ...]] = []
    while not found:
        # The second time, the answer of whoever took the key is there.
        with contextlib.suppress(KeyTakenError), idempotency.noticing_taken():
            found = (_INSERT_PLAIN_ONCE if plan.is_plain else _INSERT_ONCE).rows(values)
    known = idempotency.recalled(once, found[0])
    if known is None:
        _report(plan.scheduled(), plan.hosts)
    return known


def _due(timer: NewTimer, now: datetime | None) -> datetime | None:
    """Return when a timer is first due; None for a delay without a present time."""
    if timer.recurrence is not None:
        return first_due(timer.recurrence)
    if timer.delay_seconds is not None and now is not None:
        return now + timedelta(seconds=timer.delay_seconds)
    return timer.due_at


def _array(values: Iterable[Any]) -> str:
    """Return values whose texts need no quotes as an array of PostgreSQL: psycopg2 adapts an id in 4 microseconds."""
    return f"{{{','.join(map(str, values))}}}"


def _texts(values: Sequence[Mapping[str, Any] | None]) -> list[str | None]:
    """Return each value as JSON. All plain timers of a request have the same one."""
    found: list[str | None] = []
    before, text = None, None
    for value in values:
        if value is not before:
            before, text = value, json.dumps(value) if value else None
        found.append(text)
    return found


def _report(stored: Sequence[Scheduled], hosts: Sequence[str]) -> None:
    """Count and log what was created; at once where there is no transaction of the caller's."""

    def report() -> None:
        tally.created(len(stored))
        if len(stored) == 1:
            event("timer_created", timer=stored[0].timer_id, host=hosts[0], due_at=stored[0].due_at.isoformat())
        elif stored:
            # One line, because a batch has up to a thousand; the request's id is stored with each of them.
            event("timers_created", timers=len(stored), first=stored[0].timer_id, last=stored[-1].timer_id)

    # What is rolled back was not created.
    transaction.on_commit(report)


def first_due(recurrence: Recurrence) -> datetime:
    # This process's clock only chooses the first moment of the schedule; the database's clock decides when it is due.
    first = recurrence.next_after(datetime.now(UTC))
    if first is None:
        raise NothingPromisedError
    return first


def _more(timer: NewTimer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a timer beyond a URL and a time, for `_INSERT`; with options at most for a plain timer.

    `options` are those that are stored.
    """
    more: dict[str, Any] = {}
    if timer.name:
        more["name"] = timer.name
    if options:
        more["options"] = options
        if options.get("labels"):
            more["labels"] = Options(options).label_rows
    if timer.max_lateness_seconds is not None:
        more["max_lateness_seconds"] = timer.max_lateness_seconds
    if timer.recurrence is not None:
        columns = {name: value for name, value in schedule_columns(timer).items() if value is not None}
        more |= {name: v.isoformat() if isinstance(v, datetime) else v for name, v in columns.items()}
        shape = celery_shape(timer.recurrence.cron, timer.recurrence.every_seconds)
        if shape is not None:
            more |= shape
    return more


def schedule_columns(timer: NewTimer) -> dict[str, Any]:
    """Return the columns of a timer's schedule; they are empty for a timer that is called once."""
    if timer.recurrence is None:
        return {**CALLED_ONCE, "max_occurrences": None}
    return timer.recurrence.columns() | {"max_occurrences": timer.max_occurrences}
