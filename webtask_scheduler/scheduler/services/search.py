"""Finds the timers that fit a filter, page by page, whatever their number.

A page is read along one index, from the end of the page before, by statements that look at a bounded number of rows.
Where few of those fit, the few timers of an owner, host or label are read instead, if they are few. A page is full, or
the last, or says how far it was looked: its cursor says where to go on.
"""

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import connection

from webtask_scheduler.scheduler.models import LEASED, OWNER_BITS, RECURRING, BulkOperation, State
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.services import flows
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.wording import sentence as _

# Rows that one statement may look at: some hundred milliseconds.
SCANNED_MOST = 20_000
# The same, of an owner's timers: no index has them in order, so that many of others may be passed over.
OWNED_MOST = 2_000
# The same, where timers' options are read: each may be as large as a body.
OPTIONS_MOST = 2_000
# The first look reads this many times the wanted number of timers; a filter that few fit gets more.
SCAN_FACTOR = 2
SCAN_GROWTH = 5
# After so many rows in which few fitted, the page asks whether the timers of an owner, host or label are few.
PATIENCE = 300
# Timers of an owner, host or label that are read as a whole, and sorted.
FEW = 20_000
# Due and not begun for longer than this is late.
LATE_SECONDS = 1.0
# How long a list looks for a page, and how long and how far it counts. A statement that has begun still ends.
LOOK_SECONDS = 0.5
COUNT_SECONDS = 0.25
COUNT_MOST = 10_000
# Bulk operations that keep which timers they changed.
KEPT_ACTIONS = (BulkOperation.Action.PAUSE, BulkOperation.Action.RESUME)


class PartError(ValueError):
    """A part of a filter that names what is not there, or what the caller may not ask for; `field` is its name."""

    def __init__(self, field: str, said: str) -> None:
        self.field = field
        super().__init__(said)


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
    # Scheduled after an attempt that failed; and due for longer than LATE_SECONDS without being begun.
    retrying: bool | None = None
    late: bool | None = None
    # A part of the name; case is ignored.
    name: str = ""
    url_prefix: str = ""
    # Whether it has a callback_url or a failure_callback_url.
    has_callback: bool | None = None
    # Paused or resumed by this bulk operation.
    changed_by: uuid.UUID | None = None
    # Visit each timer once although a bulk operation changes its status meanwhile. This takes more pages.
    steady: bool = False
    callbacks: bool = False
    # Leave out timers without a delivery that failed or was missed and that nobody dismissed.
    dead: bool = False

    @property
    def by_delivery(self) -> bool:
        """Return whether the order is by status and time, along the deliveries' indexes."""
        return not self.steady and bool(self.statuses or self.retrying or self.late or self.due_from or self.due_to)

    @property
    def fingerprint(self) -> str:
        parts = asdict(self)
        for name, nothing in _LATER_PARTS:
            # As without the part, so that an operation goes on that began before there was one.
            if parts[name] is nothing:
                del parts[name]
        text = json.dumps(parts, default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# Parts that a filter has got since operations are stored, and what each is where it is not given.
_LATER_PARTS = (
    *(("callbacks", False), ("dead", False)),
    *((name, None) for name in ("retrying", "late", "has_callback", "changed_by")),
)


class Looked(NamedTuple):
    """How far a page was looked for that is neither full nor the last."""

    # Timers that were looked at for this page, of those that the caller may see.
    timers: int
    # All of the statuses before this one were looked at; None where the order is not by status.
    status: State | None
    # Up to where: by status, the time that orders it (None where nothing but an id does); else when a timer was made.
    until: datetime | None


class Page(NamedTuple):
    """Ids of timers, and the cursor of the next page; None after the last. `looked` is None unless a page is short."""

    timer_ids: list[uuid.UUID]
    next: str | None
    looked: Looked | None = None


class Count(NamedTuple):
    """How many timers fit, or at least so many if there may be more."""

    timers: int
    more: bool


class _Place(NamedTuple):
    """Where a page begins: in which of the states, and after which key and id; None at the beginning."""

    state: int = 0
    key: str | None = None
    id: str | None = None


def page(wanted: Filter, *, cursor: str, limit: int, seconds: float = 0.0, scanned_most: int = 0) -> Page:
    """Return up to `limit` timers that fit, from `cursor` or from the beginning, newest first. Raises CursorError.

    A filter by status or due time orders by status: waiting timers soonest first, ended timers latest first. At least
    SCANNED_MOST rows are looked at, or OWNED_MOST of an owner's, or OPTIONS_MOST if options are read, and more until so
    many seconds have passed; or no more than `scanned_most`.
    """
    deadline = time.monotonic() + seconds
    place = _read(cursor, wanted)
    found: list[uuid.UUID] = []
    scanned, own, until, window = 0, 0, None, limit * SCAN_FACTOR
    states = _states(wanted)
    narrow = wanted.by_delivery or wanted.label or wanted.changed_by
    is_owned = not (wanted.everyone or wanted.owner_id is None or narrow)
    most = scanned_most or (OWNED_MOST if is_owned else SCANNED_MOST)
    if wanted.has_callback is not None:
        most = min(most, OPTIONS_MOST)
    leads = [] if wanted.steady or scanned_most else _leads(wanted)
    patience = 1 if scanned_most else PATIENCE
    own_flows = None
    while len(found) < limit and (scanned < most or time.monotonic() < deadline):
        if patience and scanned >= patience:
            patience = 0
            lead = _few(wanted, leads) if leads else None
            if lead:
                return _of_few(wanted, states, place, found, limit=limit, lead=lead)
            if states[place.state] is State.SCHEDULED:
                own_flows = _own_flows(wanted)
            if leads and _near(wanted) and own_flows is None:
                # A row costs little, and each statement sorts anew what is left.
                window = most
        window = min(window, scanned_most - scanned if scanned_most else most)
        rows, seen, last = _scan(wanted, states, place, own_flows, limit=limit - len(found), window=window)
        found += [row[0] for row in rows]
        scanned += seen.rows
        own += seen.own
        until = seen.until or until
        if len(found) >= limit:
            place = place._replace(key=_text(rows[-1][1]), id=str(rows[-1][2]))
        elif seen.rows == window:
            place = place._replace(key=_text(last[0]), id=str(last[1]))
            # Where all of a state was looked at, the next one may hold what fits.
            window *= SCAN_GROWTH
        elif place.state + 1 < len(states):
            place = _Place(state=place.state + 1)
            until = None
        else:
            return Page(found, None)
    looked = Looked(own, states[place.state], until) if len(found) < limit else None
    return Page(found, _written(place, wanted), looked)


def count(wanted: Filter) -> Count:
    """Return how many timers fit, up to COUNT_MOST and for about COUNT_SECONDS."""
    found = page(wanted, cursor="", limit=COUNT_MOST + 1, seconds=COUNT_SECONDS)
    return Count(min(len(found.timer_ids), COUNT_MOST), found.next is not None)


class Tally(NamedTuple):
    """How many timers there are in a state, and whether they are retrying and late."""

    state: State
    retrying: bool
    late: bool
    timers: int


def tally(wanted: Filter, *, most: int) -> list[Tally] | None:
    """Return how an owner's timers that fit are, whatever the filter says of that; None if the owner has over `most`.

    Beside others' many it is exact, where `count` stops before it has seen an owner's few.
    """
    if wanted.everyone:
        return None
    values: dict[str, Any] = {"most": most + 1}
    of_all = replace(wanted, statuses=(), retrying=None, late=None)
    conditions = _conditions(of_all, values)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH few AS MATERIALIZED (
              SELECT id FROM scheduler_timer timer WHERE {conditions.owner} LIMIT %(most)s),
            fit AS (
              SELECT latest.state, latest.state = 'scheduled' AND {_RETRYING} AS retrying,
                     latest.state = 'scheduled' AND latest.{_LATE} AS late
                FROM (SELECT id FROM few WHERE (SELECT count(*) FROM few) < %(most)s) few
                JOIN LATERAL ({_timer(of_all)} WHERE id = few.id OFFSET 0) timer ON true
                JOIN LATERAL ({_LATEST}) latest ON true
               WHERE {conditions.timer} AND {conditions.latest}
            )
            SELECT (SELECT count(*) FROM few), fit.* FROM (SELECT) always
              LEFT JOIN (SELECT state, retrying, late, count(*) AS timers FROM fit GROUP BY 1, 2, 3) fit ON true
            """,  # noqa: S608 - only constants are put in
            values,
        )
        rows = cursor.fetchall()
    if rows[0][0] > most:
        return None
    return [Tally(State(state), *rest) for _few, state, *rest in rows if state is not None]


def _text(key: Any) -> str:
    return key.isoformat() if isinstance(key, datetime) else str(key)


def _states(wanted: Filter) -> Sequence[State | None]:
    """Return the states that are read in turn; a single None means the table of timers."""
    if not wanted.by_delivery:
        return (None,)
    if wanted.retrying or wanted.late:
        # Where another status is asked for too, nothing fits.
        return [State.SCHEDULED]
    return [state for state in State if state in wanted.statuses] if wanted.statuses else list(State)


# Each source is read along one index: (id, key, timer_id), in the order of the key and the id.
_TIMERS = "SELECT id, id AS key, id AS timer_id FROM scheduler_timer"
_LABELLED = "SELECT timer_id AS id, timer_id AS key, timer_id FROM scheduler_timerlabel"
_CHANGED = "SELECT timer AS id, timer AS key, timer AS timer_id FROM scheduler_bulkchange"
_DELIVERIES = "SELECT id, {key} AS key, timer_id, flow, extra FROM scheduler_delivery"
# Each is looked up by its id: with OFFSET 0 no plan can read the whole table instead.
_TIMER = """
  SELECT id, owner_id, host, name, web_url, created_at, cron, every_seconds, outcome_of FROM scheduler_timer
"""
# Options may be large, and are read from a place of their own: only for a filter that asks for them.
_TIMER_WITH_OPTIONS = _TIMER.replace(" FROM ", ", options FROM ")
_LATEST = """
  SELECT id, state, due_at, next_attempt_at, attempts FROM scheduler_delivery
   WHERE timer_id = timer.id AND NOT extra ORDER BY number DESC LIMIT 1
"""
# Whether what was seen may be of an owner, by OWNER_BITS of the owner's id. What had ended before there were flows has
# the flow 0.
NEAR_OWNER = f"(seen.flow = 0 OR (seen.flow >> 32) & {OWNER_BITS} = %(owner_bits)s)"


class _Seen(NamedTuple):
    """How many rows a statement looked at, how many of them are of timers that may be seen, and up to when."""

    rows: int
    own: int
    until: datetime | None


def _scan(
    wanted: Filter,
    states: Sequence[State | None],
    place: _Place,
    own_flows: Sequence[int] | None,
    *,
    limit: int,
    window: int,
) -> tuple[list[Any], _Seen, Any]:
    """Look at the next `window` rows; return those that fit, what was seen, and the key and id of the last.

    It is one statement, so that the rows passed over and the next beginning come from one snapshot.
    """
    state = states[place.state]
    values: dict[str, Any] = {"window": window, "limit": limit, "key": place.key, "after": place.id}
    source, order, reverse = _by_timer(wanted, place) if state is None else _by_state(wanted, state, place, own_flows)
    conditions = _conditions(wanted, values)
    # What another owner's timers are like is nobody's business: only the caller's own are counted and dated.
    looked, near, passed = "own", "true", ""
    until = "NULL" if state in (*LEASED, State.HELD) else "created_at" if state is None else "key"
    if state is not None:
        values["state"] = state.value
        values["owner_bits"] = (wanted.owner_id or 0) & OWNER_BITS
        near = _near(wanted) or "true"
        if wanted.everyone and _near(wanted):
            looked = "seen"
        # Neighbours are looked up one after the other, from pages that are at hand: about twice as quick.
        passed = f"(SELECT * FROM seen WHERE {'true' if wanted.everyone else near} ORDER BY timer_id OFFSET 0)"  # noqa: S608 - as below
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH seen AS MATERIALIZED ({source} ORDER BY {order} LIMIT %(window)s),
            own AS MATERIALIZED (
              SELECT seen.*, timer.created_at, {conditions.timer} AS fits
                FROM {passed} seen JOIN LATERAL ({_timer(wanted)} WHERE id = seen.timer_id OFFSET 0) timer ON true
               WHERE {near} AND {conditions.owner}
            ),
            fit AS MATERIALIZED (
              SELECT timer.timer_id, timer.key, timer.id
                FROM own timer JOIN LATERAL ({_LATEST.replace("timer.id", "timer.timer_id")}) latest
                  ON {"latest.id = timer.id" if state is not None else "true"}
               WHERE timer.fits AND {conditions.latest} ORDER BY {order} LIMIT %(limit)s
            )
            SELECT fit.timer_id, fit.key, fit.id, count.rows, count.own, last_own.until, last.key, last.id
              FROM (SELECT (SELECT count(*) FROM seen) AS rows, (SELECT count(*) FROM {looked}) AS own) count
              CROSS JOIN (SELECT key, id FROM seen ORDER BY {reverse} LIMIT 1) last
              LEFT JOIN (SELECT {until} AS until FROM {looked} ORDER BY {reverse} LIMIT 1) last_own ON true
              LEFT JOIN fit ON true ORDER BY {order.replace("key", "fit.key").replace("id", "fit.id")}
            """,  # noqa: S608 - only constants are put in
            values,
        )
        rows = cursor.fetchall()
    if not rows:
        return [], _Seen(0, 0, None), None
    return [row for row in rows if row[0] is not None], _Seen(*rows[0][3:6]), rows[0][6:8]


def _near(wanted: Filter) -> str:
    """Return what is known of a delivery's timer at a fifth of the price of reading it, or less; "" if nothing is.

    Of an owner's it is whose it is, and no more: how many of the owner's own were passed over is told.
    """
    conditions = []
    if not wanted.everyone:
        return f"{NEAR_OWNER} AND NOT seen.extra" if wanted.by_delivery else ""
    if wanted.host:
        conditions.append("SELECT FROM scheduler_timer WHERE host = %(host)s AND id = seen.timer_id OFFSET 0")
    if wanted.label:
        conditions.append(
            "SELECT FROM scheduler_timerlabel WHERE label = %(label)s AND timer_id = seen.timer_id OFFSET 0"
        )
    if wanted.changed_by:
        conditions.append(f"{_IS_CHANGED} seen.timer_id OFFSET 0")
    return " AND ".join(f"EXISTS ({one})" for one in conditions)


_IS_CHANGED = "SELECT FROM scheduler_bulkchange change WHERE operation_id = %(changed_by)s AND change.timer ="


def _timer(wanted: Filter) -> str:
    return _TIMER if wanted.has_callback is None else _TIMER_WITH_OPTIONS


def _owned_by(wanted: Filter) -> str:
    return "owner_id IS NULL" if wanted.owner_id is None else "owner_id = %(owner)s"


# These two return the query, the order of its columns, and that order backwards.


def _by_timer(wanted: Filter, place: _Place) -> tuple[str, str, str]:
    after = "< %(after)s::uuid" if place.id else "IS NOT NULL"
    if wanted.changed_by:
        return f"{_CHANGED} WHERE operation_id = %(changed_by)s AND timer {after}", "id DESC", "id"
    if wanted.label:
        return f"{_LABELLED} WHERE label = %(label)s AND timer_id {after}", "id DESC", "id"
    where = f"id {after}"
    if wanted.host:
        where += " AND host = %(host)s"
    elif wanted.recurring:
        where += " AND (cron <> '' OR every_seconds IS NOT NULL)"
    if not wanted.everyone:
        # By this condition an owner's few timers are found without reading the many of others.
        where += f" AND {_owned_by(wanted)}"
    return f"{_TIMERS} WHERE {where}", "id DESC", "id"


def _by_state(wanted: Filter, state: State, place: _Place, own_flows: Sequence[int] | None) -> tuple[str, str, str]:
    where = "state = %(state)s AND NOT extra"
    after = f" AND {_AFTER[_order_of(state)]}" if place.id else ""
    if state is State.SCHEDULED:
        return _waiting(wanted, where, after, own_flows), "key, id", "key DESC, id DESC"
    where += after
    if state in LEASED or state is State.HELD:
        return f"{_DELIVERIES.format(key='id')} WHERE {where}", "id", "id DESC"
    if wanted.due_from:
        where += " AND due_at >= %(due_from)s"
    if wanted.due_to:
        where += " AND due_at < %(due_to)s"
    source = f"{_DELIVERIES.format(key='due_at')} WHERE {where}"
    return source, "key DESC, id DESC", "key, id"


def _waiting(wanted: Filter, where: str, after: str, own_flows: Sequence[int] | None) -> str:
    """Return the query of what is scheduled and is `where`, after a place; of an owner flow by flow, if they are known.

    Each part is read along an index in the order of the list, and no further than the window needs.
    """
    if wanted.late:
        after += f" AND {_LATE}"
    if wanted.due_from:
        after += " AND next_attempt_at >= %(due_from)s"
    before = " AND next_attempt_at < %(due_to)s" if wanted.due_to else ""
    if own_flows is None:
        # Along delivery_again_idx; how often it was tried is asked of the rows that are looked at.
        again = " AND next_attempt_at > due_at" if wanted.retrying else ""
        parts = [where + again + after + before]
    else:
        # Along delivery_flow_idx: with a condition on `extra` the planner may walk the index of all owners.
        parts = [f"state = %(state)s AND flow = {flow:d}{after}{before}" for flow in own_flows] or ["false"]
    if wanted.due_to:
        # Those that were due before and are tried again after it.
        again = " AND next_attempt_at > due_at AND due_at < %(due_to)s AND next_attempt_at >= %(due_to)s"
        again += " AND due_at >= %(due_from)s" if wanted.due_from else ""
        parts.append(where + after + again)
    source = _DELIVERIES.format(key="next_attempt_at")
    ordered = [f"({source} WHERE {part} ORDER BY key, id LIMIT %(window)s)" for part in parts]
    return f"SELECT * FROM ({' UNION ALL '.join(ordered)}) waiting"  # noqa: S608 - as above


def _own_flows(wanted: Filter) -> list[int] | None:
    """Return the flows in which an owner's timers wait; None if they are too many, or what waits is found otherwise."""
    # Where nobody owns timers, nearly all are nobody's.
    if wanted.everyone or wanted.owner_id is None or wanted.retrying:
        return None
    if wanted.host:
        return [flows.of_host(wanted.owner_id, wanted.host)]
    waiting = flows.waiting_of(wanted.owner_id)
    return None if waiting.is_cut else waiting.flows


# Of a scheduled delivery.
_RETRYING = "latest.attempts > 0 AND latest.next_attempt_at > latest.due_at"
_LATE = f"next_attempt_at < statement_timestamp() - make_interval(secs => {LATE_SECONDS})"


class _Order(Enum):
    """The order within a state."""

    SOONEST = "next_attempt_at"
    ID = "id"
    LATEST = "due_at"


def _order_of(state: State) -> _Order:
    if state is State.SCHEDULED:
        return _Order.SOONEST
    return _Order.ID if state in LEASED or state is State.HELD else _Order.LATEST


# The rows after a place, by the order.
_AFTER = {
    _Order.SOONEST: "(next_attempt_at, id) > (%(key)s::timestamptz, %(after)s::uuid)",
    _Order.ID: "id > %(after)s::uuid",
    _Order.LATEST: "(due_at, id) < (%(key)s::timestamptz, %(after)s::uuid)",
}


class _Conditions(NamedTuple):
    """The conditions of a row: whose its timer is, what its timer is like, and its latest promised delivery."""

    owner: str
    timer: str
    latest: str


# As Options.calls_back: a name that is there has a value.
_CALLS_BACK = "(timer.options -> 'callback_url' IS NOT NULL OR timer.options -> 'failure_callback_url' IS NOT NULL)"


def _conditions(wanted: Filter, values: dict[str, Any]) -> _Conditions:
    """Return the conditions of a row that its index need not cover, filling in the values."""
    timer = ["true" if wanted.callbacks else "timer.outcome_of IS NULL"]
    values |= {"owner": wanted.owner_id, "host": wanted.host, "label": wanted.label, "changed_by": wanted.changed_by}
    if wanted.host:
        timer.append("timer.host = %(host)s")
    if wanted.recurring is not None:
        timer.append(f"{RECURRING} = {wanted.recurring}")
    if wanted.dead:
        timer.append(
            "EXISTS (SELECT FROM scheduler_delivery dead WHERE dead.timer_id = timer.id"
            " AND dead.state IN ('failed', 'missed') AND dead.dismissed_at IS NULL)"
        )
    if wanted.name:
        values["name"] = wanted.name.lower()
        timer.append("strpos(lower(timer.name), %(name)s) > 0")
    if wanted.url_prefix:
        values["prefix"] = wanted.url_prefix
        timer.append("starts_with(timer.web_url, %(prefix)s)")
    if wanted.label:
        timer.append(
            "EXISTS (SELECT 1 FROM scheduler_timerlabel label WHERE label.timer_id = timer.id"
            " AND label.label = %(label)s)"
        )
    if wanted.changed_by:
        timer.append(f"EXISTS ({_IS_CHANGED} timer.id)")
    if wanted.has_callback is not None:
        # Last, so that the options of timers that do not fit anyway are not read.
        timer.append(_CALLS_BACK if wanted.has_callback else f"NOT {_CALLS_BACK}")
    owner = "true" if wanted.everyone else f"timer.{_owned_by(wanted)}"
    return _Conditions(owner, " AND ".join(timer), _condition_of_latest(wanted, values))


def _condition_of_latest(wanted: Filter, values: dict[str, Any]) -> str:
    """Return the condition of a timer's latest promised delivery, filling in the values."""
    latest = ["true"]
    values |= {"due_from": wanted.due_from, "due_to": wanted.due_to}
    if wanted.statuses:
        values["statuses"] = [state.value for state in wanted.statuses]
        latest.append("latest.state = ANY(%(statuses)s)")
    if wanted.due_from:
        latest.append("latest.due_at >= %(due_from)s")
    if wanted.due_to:
        latest.append("latest.due_at < %(due_to)s")
    for is_wanted, condition in ((wanted.retrying, _RETRYING), (wanted.late, f"latest.{_LATE}")):
        if is_wanted is not None:
            fits = f"(latest.state = 'scheduled' AND {condition})"
            latest.append(fits if is_wanted else f"NOT {fits}")
    return " AND ".join(latest)


# Few timers


def _leads(wanted: Filter) -> list[str]:
    """Return queries of timers' ids that narrow a filter by an index, beyond the one that its pages are read along."""
    leads = {
        "owner": "SELECT id FROM scheduler_timer WHERE owner_id = %(owner)s",
        "label": "SELECT timer_id AS id FROM scheduler_timerlabel WHERE label = %(label)s",
        "host": "SELECT id FROM scheduler_timer WHERE host = %(host)s",
        "recurring": "SELECT id FROM scheduler_timer WHERE cron <> '' OR every_seconds IS NOT NULL",
        "changed_by": "SELECT timer AS id FROM scheduler_bulkchange WHERE operation_id = %(changed_by)s",
    }
    narrow = {
        "owner": not wanted.everyone and wanted.owner_id is not None,
        "label": bool(wanted.label),
        "host": bool(wanted.host),
        "recurring": wanted.recurring is True,
        "changed_by": wanted.changed_by is not None,
    }
    found = [leads[name] for name, is_narrow in narrow.items() if is_narrow]
    # By timer, pages are read along the only one.
    return found if wanted.by_delivery or len(found) > 1 else []


def _few(wanted: Filter, leads: Sequence[str]) -> str | None:
    """Return the query that leads to the fewest timers; None if each leads to more than FEW, or OPTIONS_MOST."""
    few = FEW if wanted.has_callback is None else min(FEW, OPTIONS_MOST)
    counts = ", ".join(f"(SELECT count(*) FROM ({lead} LIMIT %(most)s) lead)" for lead in leads)  # noqa: S608 - as above
    values: dict[str, Any] = {"most": few + 1, "owner": wanted.owner_id, "label": wanted.label, "host": wanted.host}
    values["changed_by"] = wanted.changed_by
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {counts}", values)
        number, lead = min(zip(cursor.fetchone(), leads, strict=True))
    return lead if number <= few else None


def _of_few(
    wanted: Filter,
    states: Sequence[State | None],
    place: _Place,
    found: list[uuid.UUID],
    *,
    limit: int,
    lead: str,
) -> Page:
    """Return the page that begins with what was found, full or the last, by reading all timers of the query `lead`."""
    values: dict[str, Any] = {"more": limit - len(found) + 1, "key": place.key, "after": place.id, "state": place.state}
    conditions = _conditions(wanted, values)
    state = states[place.state]
    if state is None:
        columns, order = "timer.id, timer.id AS key, 0 AS rank", "id DESC"
        where = "id < %(after)s::uuid" if place.id else "true"
    else:
        values["states"] = [str(one) for one in states]
        columns, order = f"latest.id, latest.due_at, latest.next_attempt_at, {_KEY} AS key, {_RANK} AS rank", _BY_RANK
        where = "rank > %(state)s OR rank = %(state)s" + (f" AND {_AFTER[_order_of(state)]}" if place.id else "")
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH few AS MATERIALIZED ({lead}),
            fit AS MATERIALIZED (
              SELECT timer.id AS timer_id, latest.state, {columns}
                FROM few JOIN LATERAL ({_timer(wanted)} WHERE id = few.id OFFSET 0) timer ON true
                JOIN LATERAL ({_LATEST}) latest ON true
               WHERE {conditions.owner} AND {conditions.timer} AND {conditions.latest}
            )
            SELECT timer_id, rank, key, id FROM fit WHERE {where} ORDER BY {order} LIMIT %(more)s
            """,  # noqa: S608 - only constants are put in
            values,
        )
        rows = cursor.fetchall()
    more = limit - len(found)
    ids = found + [row[0] for row in rows[:more]]
    if len(rows) <= more:
        return Page(ids, None)
    _, rank, key, last = rows[more - 1]
    return Page(ids, _written(_Place(state=rank, key=_text(last if key is None else key), id=str(last)), wanted))


_RANK = "array_position(%(states)s::varchar[], latest.state) - 1"
_IS = {
    order: f"state IN ({', '.join(repr(state.value) for state in State if _order_of(state) is order)})"
    for order in _Order
}
_KEY = f"CASE WHEN {_IS[_Order.SOONEST]} THEN next_attempt_at WHEN {_IS[_Order.LATEST]} THEN due_at END"
_BY_RANK = (
    f"rank, CASE WHEN {_IS[_Order.SOONEST]} THEN next_attempt_at END,"
    f" CASE WHEN {_IS[_Order.LATEST]} THEN due_at END DESC,"
    f" CASE WHEN NOT {_IS[_Order.LATEST]} THEN id END, id DESC"
)


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
    """Return a filter from the validated data of a FilterSerializer. Raises PartError."""
    owner, changed_by = values.get("owner", ""), values.get("changed_by")
    return Filter(
        owner_id=_owner_of(owner, caller=caller) if owner else caller.owner_id,
        everyone=caller.sees_all and not owner,
        statuses=tuple(State(name) for name in values.get("status", ())),
        host=canonical_host(values.get("host", "")),
        label=values.get("label", ""),
        due_from=values.get("due_from"),
        due_to=values.get("due_to"),
        recurring=values.get("recurring"),
        retrying=values.get("retrying"),
        late=values.get("late"),
        name=values.get("name", ""),
        url_prefix=values.get("url_prefix", ""),
        has_callback=values.get("has_callback"),
        changed_by=_operation_of(changed_by, caller=caller) if changed_by else None,
    )


def _operation_of(found: uuid.UUID | str, *, caller: Caller) -> uuid.UUID:
    """Return the id of a bulk operation that the caller may see and that keeps what it changed. Raises PartError."""
    kept = BulkOperation.objects.filter(pk=found, action__in=KEPT_ACTIONS, **caller.visible())
    pk = kept.values_list("pk", flat=True).first()
    if pk is None:
        raise PartError("changed_by", _("There is no bulk operation with this id that paused or resumed timers."))
    return pk


def _owner_of(text: str, *, caller: Caller) -> int:
    """Return the id of the user with this e-mail address or id. Raises PartError.

    Whoever does not see the timers of all is told nothing of who there is.
    """
    if not caller.sees_all:
        said = _("Only those who see the timers of all owners can ask for the timers of one. Leave it out.")
        raise PartError("owner", said)
    is_id = text.isascii() and text.isdigit() and len(text) < 19  # noqa: PLR2004 - a bigint
    found = get_user_model().objects.filter(**{"pk": int(text)} if is_id else {"email__iexact": text})
    pk = found.values_list("pk", flat=True).first()
    if pk is None:
        raise PartError("owner", _("There is no user with this e-mail address or id."))
    return int(pk)


# The names that `stored_filter` knows.
_STORED = frozenset(
    (
        *("status", "host", "label", "due_from", "due_to", "recurring", "retrying", "late", "name", "url_prefix"),
        *("has_callback", "owner", "changed_by", "callbacks", "dead", "spread"),
    )
)


def stored_filter(stored: Mapping[str, Any], *, caller: Caller) -> Filter:
    """Return the filter of a bulk operation from the data that the API checked when it began.

    Raises ValueError if another version of this service stored a name that this one does not know, and PartError.
    """
    unknown = stored.keys() - _STORED
    if unknown:
        raise ValueError(f"A filter cannot have {', '.join(sorted(unknown))}.")
    instants = {name: read_instant(stored[name]) for name in ("due_from", "due_to") if name in stored}
    wanted = filter_of({**stored, **instants}, caller=caller)
    if stored.get("spread"):
        # What is moved leaves the time that is looked through, so that it is met once.
        return replace(wanted, statuses=(State.SCHEDULED,), recurring=False, retrying=False)
    # The API takes no filter with these: only the end of an owner has `callbacks`, and a dismissal `dead`.
    return replace(wanted, steady=True, callbacks=bool(stored.get("callbacks")), dead=bool(stored.get("dead")))
