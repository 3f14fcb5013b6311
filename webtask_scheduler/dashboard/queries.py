"""What pages read beside the services: read only, each along an index and bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection

from webtask_scheduler.scheduler.models import LANES, RECURRING
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.services.caller import Caller

# Along the key of scheduler_minute: a row for each minute, or folded hour, and process.
_LATENESS = """
SELECT position, sum(count)::bigint
  FROM scheduler_minute, unnest(first_late) WITH ORDINALITY AS each (count, position)
 WHERE seconds IN (60, 3600) AND begins_at >= %s AND count > 0
 GROUP BY position
"""


def lateness_since(since: datetime) -> list[int]:
    """Return the histogram of the lateness of first attempts since an instant, to the minute. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_LATENESS, [since])
        return _histogram(cursor.fetchall())


# The same rows, by steps of time. A step is at least as long as the rows that are that old.
_OUTCOMES = """
SELECT floor(extract(epoch FROM begins_at) / %(step)s)::bigint AS step, sum(succeeded)::bigint AS succeeded,
       sum(retried)::bigint AS retrying, sum(failed)::bigint AS failed, sum(missed)::bigint AS missed
  FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
 GROUP BY 1 ORDER BY 1
"""


def outcomes_since(since: datetime, *, step_seconds: int) -> list[dict[str, int]]:
    """Return how many deliveries ended how, and attempts that are followed by another, by steps since the epoch."""
    return _dicts(_OUTCOMES, {"since": since, "step": step_seconds})


# What comes. Deliveries of each part of the strip that are counted one by one; beyond it the planner is asked.
PART_MOST = 300
# A second with at least so many calls is a herd; so many herds are named, and so many calls of each are counted.
HERD_LEAST, HERDS_MOST, HERD_MOST = 100, 10, 5000
# Flows of an owner, one for each host, that are looked at.
FLOWS_MOST = 100
# Rows of the index of recurring timers that are looked at, those that have ended among them.
RECURRING_LOOK = 2000

# The flows of an owner: in each lane they are neighbours in delivery_flow_idx, and each probe skips to the next.
_FLOWS = """
WITH RECURSIVE own AS (
  SELECT lane.number, (SELECT min(flow) FROM scheduler_delivery
                        WHERE state = 'scheduled' AND flow >= (lane.number << 57) + (%(owner)s::bigint << 32)
                          AND flow < (lane.number << 57) + (%(owner)s::bigint << 32) + 4294967296) AS flow
    FROM generate_series(0, %(lanes)s::bigint - 1) AS lane (number)
  UNION ALL
  SELECT own.number, (SELECT min(flow) FROM scheduler_delivery
                       WHERE state = 'scheduled' AND flow > own.flow
                         AND flow < (own.number << 57) + (%(owner)s::bigint << 32) + 4294967296)
    FROM own WHERE own.flow IS NOT NULL
)
SELECT flow FROM own WHERE flow IS NOT NULL LIMIT %(most)s
"""
# What waits between two instants: for all owners along delivery_due_idx, for one along delivery_flow_idx, flow by flow.
# The latter has no condition on `extra`, which would let the planner walk the index of all owners. Without further
# columns nothing but the index is read.
_WAITING_OF_ALL = """
SELECT next_attempt_at AS at{columns} FROM scheduler_delivery
 WHERE state = 'scheduled' AND NOT extra AND next_attempt_at >= {begin} AND next_attempt_at < {end}
 ORDER BY next_attempt_at LIMIT {most}
"""
_WAITING_OF_ONE = """
SELECT each.* FROM unnest(%(flows)s::bigint[]) AS own (flow)
 CROSS JOIN LATERAL (
   SELECT next_attempt_at AS at{columns} FROM scheduler_delivery
    WHERE state = 'scheduled' AND flow = own.flow AND next_attempt_at >= {begin} AND next_attempt_at < {end}
    ORDER BY next_attempt_at LIMIT {most}) each
"""
_PARTS = """
WITH waiting AS MATERIALIZED (
  SELECT part.number, date_trunc('second', each.at) AS second
    FROM generate_series(0, %(parts)s - 1) AS part (number)
   CROSS JOIN LATERAL (
     SELECT %(begin)s::timestamptz + part.number * %(step)s * interval '1 s' AS begins,
            %(begin)s::timestamptz + (part.number + 1) * %(step)s * interval '1 s' AS ends) bounds
   CROSS JOIN LATERAL ({source}) each
),
by_second AS (SELECT number, second, count(*) AS count FROM waiting GROUP BY number, second)
SELECT number, sum(count)::int AS count, array_agg(second) FILTER (WHERE count >= %(herd)s) AS herds
  FROM by_second GROUP BY number
"""
_SECONDS = """
SELECT herd.at, counted.count FROM unnest(%(seconds)s::timestamptz[]) AS herd (at)
 CROSS JOIN LATERAL (SELECT count(*) AS count FROM ({source}) each) counted
 WHERE counted.count >= %(herd)s ORDER BY counted.count DESC, herd.at LIMIT %(herds)s
"""
# Instants for which very many wait, as far as the planner's sample shows it.
_COMMON = """
SELECT common.at FROM pg_stats
 CROSS JOIN LATERAL unnest(most_common_vals::text::timestamptz[]) AS common (at)
 WHERE schemaname = current_schema AND tablename = 'scheduler_delivery' AND attname = 'next_attempt_at'
   AND common.at >= %(begin)s AND common.at < %(end)s
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where the waiting deliveries of a caller are: in the flows of its owner, or anywhere. `is_cut` if flows are."""

    flows: list[int] | None
    is_cut: bool = False

    def source(self, begin: str, end: str, most: str, *, columns: str = "") -> str:
        """Return the query of what waits between two instants, of each flow the `most` soonest."""
        source = _WAITING_OF_ALL if self.flows is None else _WAITING_OF_ONE
        return source.format(begin=begin, end=end, most=most, columns=columns)


def waiting_of(caller: Caller) -> Waiting:
    """Return where a caller's waiting deliveries are. Raises DatabaseError."""
    if caller.sees_all:
        return Waiting(None)
    # As models.Timer.flow has the owner.
    values = {"owner": (caller.owner_id or 0) & 0x1FF_FFFF, "lanes": LANES, "most": FLOWS_MOST + 1}
    with connection.cursor() as cursor:
        cursor.execute(_FLOWS, values)
        flows = [row[0] for row in cursor.fetchall()]
    return Waiting(flows[:FLOWS_MOST], is_cut=len(flows) > FLOWS_MOST)


class Ahead(NamedTuple):
    """How many deliveries wait in each part, which of these counts are estimates, and seconds with very many."""

    counts: list[int]
    estimated: set[int]
    # At most HERDS_MOST instants with their counts, the largest first; a count stops at HERD_MOST.
    herds: list[tuple[datetime, int]]


def ahead(where: Waiting, *, begin: datetime, parts: int, step_seconds: int) -> Ahead:
    """Return what waits in each of the next parts of time. Raises DatabaseError."""
    values: dict[str, Any] = {"begin": begin, "parts": parts, "step": step_seconds, "flows": where.flows}
    values |= {"herd": HERD_LEAST, "herds": HERDS_MOST}
    counts, estimated = [0] * parts, set()
    seconds: list[datetime] = []
    most = PART_MOST + 1
    source = f"SELECT * FROM ({where.source('bounds.begins', 'bounds.ends', str(most))}) each LIMIT {most}"  # noqa: S608 - constants
    for row in _dicts(_PARTS.format(source=source), values):
        counts[row["number"]] = row["count"]
        seconds += row["herds"] or ()
        if row["count"] > PART_MOST:
            estimated.add(row["number"])
    bounds = {
        number: (
            begin + timedelta(seconds=number * step_seconds),
            begin + timedelta(seconds=(number + 1) * step_seconds),
        )
        for number in sorted(estimated)
    }
    for (number, _), rows in zip(bounds.items(), _estimates(where, list(bounds.values())), strict=True):
        counts[number] = max(counts[number], rows)
    if estimated:
        # Not all was looked at.
        end = begin + timedelta(seconds=parts * step_seconds)
        common = _dicts(_COMMON, {"begin": begin, "end": end})
        seconds += [row["at"].replace(microsecond=0) for row in common]
    if not seconds:
        return Ahead(counts, estimated, [])
    source = where.source("herd.at", "herd.at + interval '1 s'", "%(most)s")
    # Of all flows together.
    source = f"SELECT * FROM ({source}) each LIMIT %(most)s"  # noqa: S608 - as above
    found = _dicts(_SECONDS.format(source=source), values | {"seconds": sorted(set(seconds)), "most": 2 * HERD_LEAST})
    full = [row["at"] for row in found]
    counted = _dicts(_SECONDS.format(source=source), values | {"seconds": full, "most": HERD_MOST}) if full else []
    return Ahead(counts, estimated, [(row["at"], row["count"]) for row in counted])


def _estimates(where: Waiting, bounds: Sequence[tuple[datetime, datetime]]) -> list[int]:
    """Return how many deliveries the planner thinks wait in each time; it reads none of them."""
    if not bounds:
        return []
    waits = "SELECT FROM scheduler_delivery WHERE state = 'scheduled'"
    flows = where.flows or []
    # Of an owner, as large a share of each time as of all that waits. That it is flow by flow matters: for a list of
    # them, the planner takes values that exclude each other for independent ones.
    each = [waits, *[f"{waits} AND flow = %s"] * len(flows)]
    each += [f"{waits} AND next_attempt_at >= %s AND next_attempt_at < %s"] * len(bounds)
    values: list[Any] = [*flows, *(instant for pair in bounds for instant in pair)]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {' UNION ALL '.join(each)}", values)
        rows = [plan["Plan Rows"] for plan in cursor.fetchone()[0][0]["Plan"]["Plans"]]
    own = sum(rows[1 : 1 + len(flows)])
    share = 1.0 if where.flows is None else min(1.0, own / max(1, rows[0]))
    return [round(share * count) for count in rows[1 + len(flows) :]]


def waiting_between(where: Waiting, *, begin: datetime, end: datetime, most: int) -> list[dict[str, Any]]:
    """Return the moments and timers of what waits between two instants, the soonest first. Raises DatabaseError."""
    source = where.source("%(begin)s", "%(end)s", "%(most)s", columns=", timer_id")
    found = f"SELECT * FROM ({source}) each ORDER BY at LIMIT %(most)s"  # noqa: S608 - only constants are put in
    return _dicts(found, {"begin": begin, "end": end, "most": most, "flows": where.flows})


# Along timer_recurring_idx, or for an owner timer_owner_recurring_idx; then delivery_one_open_per_timer for each.
_RECURRING = """
WITH recent AS MATERIALIZED (SELECT id FROM scheduler_timer timer WHERE {recurring} {which} LIMIT %(look)s)
SELECT timer.id, timer.cron, timer.timezone, timer.every_seconds, timer.starts_at, timer.ends_at, open.due_at,
       timer.max_occurrences - open.occurrence AS left
  FROM recent JOIN scheduler_timer timer USING (id)
 CROSS JOIN LATERAL (
   SELECT due_at, occurrence FROM scheduler_delivery
    WHERE timer_id = timer.id AND NOT extra AND finished_at IS NULL AND cancel_requested_at IS NULL
      AND state NOT IN ('paused', 'held')) open
 WHERE {own} LIMIT %(most)s
"""


def recurring_of(caller: Caller, *, most: int) -> list[dict[str, Any]]:
    """Return schedules of timers that recur and go on, with the due time of what is promised. Raises DatabaseError."""
    which = "ORDER BY id DESC" if caller.sees_all else "AND coalesce(timer.owner_id, 0) = %(owner_or_0)s"
    own = "true" if caller.sees_all else "timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint"
    values = {"look": RECURRING_LOOK, "most": most, "owner": caller.owner_id, "owner_or_0": caller.owner_id or 0}
    return _dicts(_RECURRING.format(recurring=RECURRING, which=which, own=own), values)


def _histogram(rows: Any) -> list[int]:
    """Return a histogram from its positions, which count from 1, and their counts."""
    total = histogram.empty()
    for position, count in rows:
        total[position - 1] += int(count)
    return total


# Deliveries of each state that are looked at: a hundred milliseconds.
LOST_MOST = 2500

# Along delivery_ended_idx, the latest first; then one probe each for its timer and its last attempt.
_LOST = """
SELECT timer.host, lost.state, coalesce(last.error, '') AS error, last.status_code, lost.id AS delivery_id,
       lost.timer_id, lost.due_at, lost.finished_at, timer.name, coalesce(last.message, '') AS message, lost.attempts
  FROM ((SELECT id, timer_id, state, due_at, finished_at, attempts FROM scheduler_delivery
          WHERE state = 'failed' ORDER BY due_at DESC LIMIT %(most)s)
        UNION ALL
        (SELECT id, timer_id, state, due_at, finished_at, attempts FROM scheduler_delivery
          WHERE state = 'missed' ORDER BY due_at DESC LIMIT %(most)s)) lost
  JOIN scheduler_timer timer ON timer.id = lost.timer_id
  LEFT JOIN LATERAL (SELECT error, status_code, message FROM scheduler_attempt WHERE delivery_id = lost.id
                      ORDER BY number DESC LIMIT 1) last ON true
 WHERE (%(everyone)s OR timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint)
"""
_GROUPS = f"""
SELECT host, state, error, status_code, count(*) AS count, min(finished_at) AS first_at, max(finished_at) AS last_at
  FROM ({_LOST}) lost GROUP BY host, state, error, status_code ORDER BY count(*) DESC, host LIMIT 50
"""  # noqa: S608 - only constants are put in
_OF_GROUP = f"""
SELECT * FROM ({_LOST}) lost
 WHERE host = %(host)s AND state = %(state)s AND error = %(error)s AND status_code IS NOT DISTINCT FROM %(code)s::int
 ORDER BY finished_at DESC LIMIT 50
"""  # noqa: S608 - as above


def dead_groups(caller: Caller) -> list[dict[str, Any]]:
    """Return what failed or was missed lately by host, state and error, the largest first. Raises DatabaseError."""
    return _dicts(_GROUPS, _seen_by(caller))


def dead_of_group(caller: Caller, *, host: str, state: str, error: str, code: int | None) -> list[dict[str, Any]]:
    """Return the latest deliveries of one such group. Raises DatabaseError."""
    return _dicts(_OF_GROUP, _seen_by(caller) | {"host": host, "state": state, "error": error, "code": code})


def _seen_by(caller: Caller) -> dict[str, Any]:
    return {"most": LOST_MOST, "everyone": caller.sees_all, "owner": caller.owner_id}


def _dicts(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


HOSTS_MOST = 50

# Along the key of scheduler_hosthour: a row for each hour, host and process.
_HOSTS = """
SELECT host, sum(calls)::bigint AS calls, sum(failed)::bigint AS failed, sum(put_off)::bigint AS put_off
  FROM scheduler_hosthour WHERE hour >= %(since)s
 GROUP BY host ORDER BY sum(failed) DESC, sum(calls) DESC, host LIMIT %(most)s
"""
_HOST_TIMES = """
SELECT host, kind, position, sum(count)::bigint
  FROM scheduler_hosthour,
       LATERAL (SELECT 'late' AS kind, count, position FROM unnest(late) WITH ORDINALITY AS one (count, position)
                 WHERE count > 0
                UNION ALL
                SELECT 'durations', count, position FROM unnest(durations) WITH ORDINALITY AS one (count, position)
                 WHERE count > 0) each
 WHERE hour >= %(since)s AND host = ANY(%(hosts)s)
 GROUP BY host, kind, position
"""


@dataclass(frozen=True, slots=True)
class Host:
    """What was counted of the calls to one host."""

    name: str
    calls: int
    failed: int
    put_off: int
    late: list[int]
    durations: list[int]

    @property
    def share(self) -> float:
        """Return the share of the calls that succeeded, in per cent."""
        return 100.0 * (self.calls - self.failed) / self.calls if self.calls else 100.0

    @property
    def late_ms(self) -> float | None:
        return _bound_ms(self.late, 99)

    @property
    def duration_ms(self) -> float | None:
        return _bound_ms(self.durations, 95)


def _bound_ms(counts: list[int], percent: float) -> float | None:
    """Return the bound of a percentile in milliseconds; None where nothing was counted."""
    found = histogram.percentile(counts, percent) if sum(counts) else None
    return None if found is None else histogram.bound_of(found) * 1000


def hosts_since(since: datetime) -> list[Host]:
    """Return the hosts with the most trouble, and then the most calls, since an hour. Raises DatabaseError."""
    found = _dicts(_HOSTS, {"since": since, "most": HOSTS_MOST})
    times: dict[tuple[str, str], list[tuple[int, int]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_HOST_TIMES, {"since": since, "hosts": [row["host"] for row in found]})
        for host, kind, position, count in cursor.fetchall():
            times.setdefault((host, kind), []).append((position, count))
    return [
        Host(
            row["host"],
            row["calls"],
            row["failed"],
            row["put_off"],
            _histogram(times.get((row["host"], "late"), ())),
            _histogram(times.get((row["host"], "durations"), ())),
        )
        for row in found
    ]
