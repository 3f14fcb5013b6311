"""Finds the timers that fit a filter, page by page, whatever their number.

A page is read along one index, from the end of the page before, and looks at a bounded number of rows. So it may hold
fewer timers than asked for, or be empty, and still not be the last. Its cursor says where to go on.
"""

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection

from webtask_scheduler.scheduler.models import LEASED, RECURRING, State
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.rules.retry import MAX_AGE_SECONDS
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.wording import sentence as _

# Rows that one page may look at: some hundred milliseconds.
SCANNED_MOST = 20_000
# The first look reads this many times the wanted number of timers; a filter that few fit gets more.
SCAN_FACTOR = 2
SCAN_GROWTH = 5
# No retry waits longer than this after its due time, or after a replay or a resume, which were before now.
RETRIED_SECONDS = MAX_AGE_SECONDS + 3600


class CursorError(ValueError):
    """A cursor that does not come from a page of this filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The conditions that a timer must fit; a part that is empty or None does not narrow.

    It finds timers of one owner, without an owner if `owner_id` is None, or of all with `everyone`. Callbacks are left
    out unless `callbacks` is true.
    """

    owner_id: int | None = None
    everyone: bool = False
    statuses: tuple[State, ...] = ()
    host: str = ""
    # "key=value".
    label: str = ""
    due_from: datetime | None = None
    due_to: datetime | None = None
    recurring: bool | None = None
    # A part of the name; case is ignored.
    name: str = ""
    url_prefix: str = ""
    # Visit each timer once although a bulk operation changes its status meanwhile. This takes more pages.
    steady: bool = False
    callbacks: bool = False
    # Leave out timers without a delivery that failed or was missed and that nobody dismissed.
    dead: bool = False

    @property
    def by_delivery(self) -> bool:
        """Return whether the deliveries' indexes are faster than the timers'."""
        narrow = bool(self.host or self.label or self.recurring or self.steady)
        return not narrow and bool(self.statuses or self.due_from or self.due_to)

    @property
    def fingerprint(self) -> str:
        parts = asdict(self)
        if not self.callbacks:
            # As without the part, so that an operation goes on that began before there was one.
            del parts["callbacks"]
        if not self.dead:
            del parts["dead"]
        text = json.dumps(parts, default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Page(NamedTuple):
    """Ids of timers, the cursor of the next page, None after the last; and how many rows were looked at for it."""

    timer_ids: list[uuid.UUID]
    next: str | None
    scanned: int = 0


class _Place(NamedTuple):
    """Where a page begins: in which of the states, and after which key and id; None at the beginning."""

    state: int = 0
    key: str | None = None
    id: str | None = None


def page(wanted: Filter, *, cursor: str, limit: int, scanned_most: int = SCANNED_MOST) -> Page:
    """Return up to `limit` timers that fit, from `cursor` or from the beginning, newest first. Raises CursorError.

    A filter by status or due time orders by status: waiting timers soonest first, ended timers latest first. It looks
    at `scanned_most` rows at most.
    """
    place = _read(cursor, wanted)
    found: list[uuid.UUID] = []
    scanned, window = 0, limit * SCAN_FACTOR
    states = _states(wanted)
    while len(found) < limit and scanned < scanned_most:
        window = min(window, scanned_most - scanned)
        rows, seen, last = _scan(wanted, states, place, limit=limit - len(found), window=window)
        found += [row[0] for row in rows]
        scanned += seen
        if len(found) >= limit:
            place = place._replace(key=_text(rows[-1][1]), id=str(rows[-1][2]))
        elif seen == window:
            place = place._replace(key=_text(last[0]), id=str(last[1]))
        elif place.state + 1 < len(states):
            place = _Place(state=place.state + 1)
        else:
            return Page(found, None, scanned)
        window *= SCAN_GROWTH
    return Page(found, _written(place, wanted), scanned)


def _text(key: Any) -> str:
    return key.isoformat() if isinstance(key, datetime) else str(key)


def _states(wanted: Filter) -> Sequence[State | None]:
    """Return the states that are read in turn; a single None means the table of timers."""
    if not wanted.by_delivery:
        return (None,)
    return [state for state in State if state in wanted.statuses] if wanted.statuses else list(State)


# Each source is read along one index: (id, key, timer_id), in the order of the key and the id.
_TIMERS = "SELECT id, id AS key, id AS timer_id FROM scheduler_timer"
_LABELLED = "SELECT timer_id AS id, timer_id AS key, timer_id FROM scheduler_timerlabel"
_DELIVERIES = "SELECT id, {key} AS key, timer_id FROM scheduler_delivery"


def _scan(
    wanted: Filter, states: Sequence[State | None], place: _Place, *, limit: int, window: int
) -> tuple[list[Any], int, Any]:
    """Look at the next `window` rows; return those that fit, how many were seen, and the key and id of the last.

    It is one statement, so that the rows passed over and the next beginning come from one snapshot.
    """
    state = states[place.state]
    values: dict[str, Any] = {"window": window, "limit": limit, "key": place.key, "after": place.id}
    source, order, reverse = _by_timer(wanted, place) if state is None else _by_state(wanted, state, place)
    conditions = _conditions(wanted, values)
    if state is not None:
        values["state"] = state.value
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH seen AS MATERIALIZED ({source} ORDER BY {order} LIMIT %(window)s),
            fit AS MATERIALIZED (
              SELECT timer.id AS timer_id, seen.key, seen.id
                FROM seen JOIN scheduler_timer timer ON timer.id = seen.timer_id
                JOIN LATERAL (
                  SELECT id, state, due_at FROM scheduler_delivery
                   WHERE timer_id = timer.id AND NOT extra ORDER BY number DESC LIMIT 1
                ) latest ON {"latest.id = seen.id" if state is not None else "true"}
               WHERE {conditions} ORDER BY {order} LIMIT %(limit)s
            )
            SELECT fit.timer_id, fit.key, fit.id, count.count, last.key AS last_key, last.id AS last_id
              FROM (SELECT count(*) FROM seen) count
              CROSS JOIN (SELECT key, id FROM seen ORDER BY {reverse} LIMIT 1) last
              LEFT JOIN fit ON true ORDER BY {order}
            """,  # noqa: S608 - only constants are put in
            values,
        )
        rows = cursor.fetchall()
    if not rows:
        return [], 0, None
    return [row for row in rows if row[0] is not None], rows[0][3], rows[0][4:6]


# These two return the query, the order of its columns, and that order backwards.


def _by_timer(wanted: Filter, place: _Place) -> tuple[str, str, str]:
    after = "< %(after)s::uuid" if place.id else "IS NOT NULL"
    if wanted.label:
        return f"{_LABELLED} WHERE label = %(label)s AND timer_id {after}", "id DESC", "id"
    where = f"id {after}"
    if wanted.host:
        where += " AND host = %(host)s"
    elif wanted.recurring:
        where += " AND (cron <> '' OR every_seconds IS NOT NULL)"
    if not wanted.everyone:
        # By this condition an owner's few timers are found without reading the many of others.
        where += " AND owner_id IS NULL" if wanted.owner_id is None else " AND owner_id = %(owner)s"
    return f"{_TIMERS} WHERE {where}", "id DESC", "id"


def _by_state(wanted: Filter, state: State, place: _Place) -> tuple[str, str, str]:
    where = "state = %(state)s AND NOT extra"
    if state is State.SCHEDULED:
        if wanted.due_from:
            where += " AND next_attempt_at >= %(due_from)s"
        if wanted.due_to:
            latest = "greatest(%(due_to)s::timestamptz, statement_timestamp())"
            where += f" AND next_attempt_at < {latest} + interval '{RETRIED_SECONDS} s'"
        if place.id:
            where += " AND (next_attempt_at, id) > (%(key)s::timestamptz, %(after)s::uuid)"
        source = f"{_DELIVERIES.format(key='next_attempt_at')} WHERE {where}"
        return source, "key, id", "key DESC, id DESC"
    if state in LEASED or state is State.HELD:
        if place.id:
            where += " AND id > %(after)s::uuid"
        return f"{_DELIVERIES.format(key='id')} WHERE {where}", "id", "id DESC"
    if wanted.due_from:
        where += " AND due_at >= %(due_from)s"
    if wanted.due_to:
        where += " AND due_at < %(due_to)s"
    if place.id:
        where += " AND (due_at, id) < (%(key)s::timestamptz, %(after)s::uuid)"
    source = f"{_DELIVERIES.format(key='due_at')} WHERE {where}"
    return source, "key DESC, id DESC", "key, id"


def _conditions(wanted: Filter, values: dict[str, Any]) -> str:
    """Return the conditions of a row that its index does not cover, filling in the values."""
    conditions = ["true" if wanted.callbacks else "timer.outcome_of IS NULL"]
    values |= {"owner": wanted.owner_id, "host": wanted.host, "label": wanted.label}
    values |= {"due_from": wanted.due_from, "due_to": wanted.due_to}
    if not wanted.everyone:
        conditions.append("timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint")
    if wanted.host:
        conditions.append("timer.host = %(host)s")
    if wanted.recurring is not None:
        conditions.append(f"{RECURRING} = {wanted.recurring}")
    if wanted.statuses:
        values["statuses"] = [state.value for state in wanted.statuses]
        conditions.append("latest.state = ANY(%(statuses)s)")
    if wanted.due_from:
        conditions.append("latest.due_at >= %(due_from)s")
    if wanted.due_to:
        conditions.append("latest.due_at < %(due_to)s")
    if wanted.dead:
        conditions.append(
            "EXISTS (SELECT FROM scheduler_delivery dead WHERE dead.timer_id = timer.id"
            " AND dead.state IN ('failed', 'missed') AND dead.dismissed_at IS NULL)"
        )
    if wanted.name:
        values["name"] = wanted.name.lower()
        conditions.append("strpos(lower(timer.name), %(name)s) > 0")
    if wanted.url_prefix:
        values["prefix"] = wanted.url_prefix
        conditions.append("starts_with(timer.web_url, %(prefix)s)")
    return " AND ".join(conditions)


def _written(place: _Place, wanted: Filter) -> str:
    text = json.dumps([wanted.fingerprint, *place], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str, wanted: Filter) -> _Place:
    if not cursor:
        return _Place()
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        fingerprint, number, key, after = json.loads(text)
        states = _states(wanted)
        if fingerprint != wanted.fingerprint or number not in range(len(states)):
            raise CursorError
        place = _Place(state=int(number))
        if after is None:
            return place
        # Parsed and formatted again, because PostgreSQL takes fewer spellings.
        by_id = states[place.state] is None or states[place.state] in (*LEASED, State.HELD)
        key = str(uuid.UUID(key)) if by_id else datetime.fromisoformat(key).isoformat()
        return place._replace(key=key, id=str(uuid.UUID(after)))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CursorError(_("This cursor was not given by a list with these filters.")) from error


def filter_of(values: Mapping[str, Any], *, caller: Caller) -> Filter:
    """Return a filter from the validated data of a FilterSerializer."""
    return Filter(
        owner_id=caller.owner_id,
        everyone=caller.sees_all,
        statuses=tuple(State(name) for name in values.get("status", ())),
        host=canonical_host(values.get("host", "")),
        label=values.get("label", ""),
        due_from=values.get("due_from"),
        due_to=values.get("due_to"),
        recurring=values.get("recurring"),
        name=values.get("name", ""),
        url_prefix=values.get("url_prefix", ""),
    )


# The names that `stored_filter` knows.
_STORED = frozenset(
    ("status", "host", "label", "due_from", "due_to", "recurring", "name", "url_prefix", "callbacks", "dead")
)


def stored_filter(stored: Mapping[str, Any], *, caller: Caller) -> Filter:
    """Return the filter of a bulk operation from the data that the API checked when it began.

    Raises ValueError if another version of this service stored a name that this one does not know.
    """
    unknown = stored.keys() - _STORED
    if unknown:
        raise ValueError(f"A filter cannot have {', '.join(sorted(unknown))}.")
    instants = {name: read_instant(stored[name]) for name in ("due_from", "due_to") if name in stored}
    wanted = filter_of({**stored, **instants}, caller=caller)
    # The API takes no filter with these: only the end of an owner has `callbacks`, and a dismissal `dead`.
    own = {name: bool(stored.get(name)) for name in ("callbacks", "dead")}
    return replace(wanted, steady=True, **own)
