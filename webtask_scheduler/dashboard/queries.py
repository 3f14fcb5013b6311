"""What pages read beside the services: read only, each along an index and bounded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import OperationalError, connection, transaction

from webtask_scheduler.scheduler.models import FINAL, LANES, OWNER_BITS, RECURRING, Delivery, State
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.rules.retry import GONE
from webtask_scheduler.scheduler.services import flows, reasons, search
from webtask_scheduler.scheduler.services.caller import Caller


# Adding up the places of an array, which count from 1, is several times quicker than unnesting it.
def _places(column: str, first: int, last: int) -> str:
    return " + ".join(f"{column}[{place}]" for place in range(first, last + 1)) or "0"


# Along the key of scheduler_minute: a row for each minute, or folded hour, and process.
_LATENESS = (
    "SELECT "  # noqa: S608 - constants
    + ", ".join(f"coalesce(sum(first_late[{place}]), 0)::bigint" for place in range(1, histogram.BUCKETS + 1))
    + " FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %s"
)


def lateness_since(since: datetime) -> list[int]:
    """Return the histogram of the lateness of first attempts since an instant, to the minute. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_LATENESS, [since])
        return list(cursor.fetchone())


# The same rows, by steps of time. A step is at least as long as the rows that are that old.
_STEPS = """
SELECT floor(extract(epoch FROM begins_at) / %(step)s)::bigint AS step, sum(succeeded)::bigint AS succeeded,
       sum(retried)::bigint AS retrying, sum(failed)::bigint AS failed, sum(missed)::bigint AS missed,
       ARRAY[{places}]::bigint[] AS first_late
  FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
 GROUP BY 1 ORDER BY 1
""".format(places=", ".join(f"coalesce(sum(first_late[{place}]), 0)" for place in range(1, histogram.BUCKETS + 1)))


def steps_since(since: datetime, *, step_seconds: int, within_seconds: float) -> list[dict[str, Any]]:
    """Return what was counted by steps since the epoch.

    That is how many deliveries ended how, attempts that are followed by another, the histogram of the lateness of first
    attempts (`first_late`), how many these are (`total`), and those of them that began later than `within_seconds`,
    which is one of histogram.BOUNDS (`late`). Raises DatabaseError.
    """
    rows = _dicts(_STEPS, {"since": since, "step": step_seconds})
    in_time = histogram.bucket_of(within_seconds) + 1
    for row in rows:
        row["total"], row["late"] = sum(row["first_late"]), sum(row["first_late"][in_time:])
    return rows


_TABLES = """
SELECT stat.relname AS name, pg_total_relation_size(stat.relid) AS bytes,
       greatest(stat.n_live_tup, class.reltuples)::bigint AS rows, stat.n_dead_tup AS dead
  FROM pg_stat_user_tables stat JOIN pg_class class ON class.oid = stat.relid
 WHERE stat.schemaname = current_schema()
 ORDER BY bytes DESC LIMIT %(most)s
"""


def largest_tables(*, most: int) -> list[dict[str, Any]]:
    """Return the largest tables with their indexes, in bytes; rows, and rows that are dead, are estimates.

    It waits for no lock: while a migration holds a table, there is no answer, which is an empty list.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '200ms'")
            cursor.execute(_TABLES, {"most": most})
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    except OperationalError:
        return []


def _late_places(within_seconds: float) -> dict[str, str]:
    """Return the sums of the places of a histogram of first attempts: all of them, and those that are later."""
    # Places count from 1.
    first_late = histogram.bucket_of(within_seconds) + 2
    return {
        "all": _places("first_late", 1, histogram.BUCKETS),
        "late": _places("first_late", first_late, histogram.BUCKETS),
        "claimed_late": _places("claims", first_late, histogram.BUCKETS),
        "published_late": _places("publishes", first_late, histogram.BUCKETS),
    }


# The same rows, the worst times first; the rest is added up for these alone.
_WORST = """
WITH worst AS MATERIALIZED (
  SELECT begins_at, seconds, sum({late})::bigint AS late
    FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
   GROUP BY begins_at, seconds HAVING sum({late}) > 0
   ORDER BY late DESC, begins_at DESC LIMIT %(most)s
)
SELECT worst.*, beside.*
  FROM worst CROSS JOIN LATERAL (
    SELECT sum({all})::bigint AS total, sum({claimed_late})::bigint AS claimed_late,
           sum({published_late})::bigint AS published_late, sum(put_off)::bigint AS put_off,
           sum(reclaimed)::bigint AS reclaimed, sum(led_seconds)::float8 AS led_seconds
      FROM scheduler_minute WHERE seconds = worst.seconds AND begins_at = worst.begins_at) beside
 ORDER BY worst.late DESC, worst.begins_at DESC
"""


def worst_since(since: datetime, *, within_seconds: float, most: int) -> list[dict[str, Any]]:
    """Return the minutes, or folded hours, with the most late first attempts, and what else was counted in them.

    Raises DatabaseError.
    """
    return _dicts(_WORST.format(**_late_places(within_seconds)), {"since": since, "most": most})


# Of each attempt that is counted, both the lateness and the duration are.
_STAGES = """
SELECT sum(claim_seconds)::float8 AS claim_seconds, sum({claims})::bigint AS claims,
       sum(publish_seconds)::float8 AS publish_seconds, sum({publishes})::bigint AS publishes,
       sum(first_late_seconds + retry_late_seconds)::float8 AS late_seconds,
       sum(duration_seconds)::float8 AS duration_seconds, sum({durations})::bigint AS calls
  FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
""".format(**{name: _places(name, 1, histogram.BUCKETS) for name in ("claims", "publishes", "durations")})


def stages_since(since: datetime) -> dict[str, Any]:
    """Return the sums and counts of each stage of deliveries since an instant. Raises DatabaseError."""
    return _dicts(_STAGES, {"since": since})[0]


# What comes. Deliveries of each part of the strip that are counted one by one; beyond it the planner is asked.
PART_MOST = 300
# A second with at least so many calls is a herd; so many herds are named, and so many calls of each are counted.
HERD_LEAST, HERDS_MOST, HERD_MOST = 100, 10, 5000
# Rows of the index of recurring timers that are looked at, those that have ended among them.
RECURRING_LOOK = 2000

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
    return Waiting(*flows.waiting_of(caller.owner_id))


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
    own_flows = where.flows or []
    # Of an owner, as large a share of each time as of all that waits. That it is flow by flow matters: for a list of
    # them, the planner takes values that exclude each other for independent ones.
    each = [waits, *[f"{waits} AND flow = %s"] * len(own_flows)]
    each += [f"{waits} AND next_attempt_at >= %s AND next_attempt_at < %s"] * len(bounds)
    values: list[Any] = [*own_flows, *(instant for pair in bounds for instant in pair)]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {' UNION ALL '.join(each)}", values)
        rows = [plan["Plan Rows"] for plan in cursor.fetchone()[0][0]["Plan"]["Plans"]]
    own = sum(rows[1 : 1 + len(own_flows)])
    share = 1.0 if where.flows is None else min(1.0, own / max(1, rows[0]))
    return [round(share * count) for count in rows[1 + len(own_flows) :]]


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


# Of each minute of the next hour, so many are counted.
DUE_MOST = 2000
# Along delivery_due_idx, a probe for each minute; and the second of it in which most are due.
_NEXT_HOUR = """
SELECT minute.begin, counted.count, counted.herd, counted.second
  FROM generate_series(date_trunc('minute', statement_timestamp()),
                       date_trunc('minute', statement_timestamp()) + interval '59 minutes',
                       interval '1 minute') AS minute (begin)
 CROSS JOIN LATERAL (
   SELECT coalesce(sum(count), 0)::bigint AS count, max(count) AS herd,
          (array_agg(second ORDER BY count DESC, second))[1] AS second
     FROM (SELECT second, count(*) AS count
             FROM (SELECT date_trunc('second', next_attempt_at) AS second FROM scheduler_delivery
                    WHERE state = 'scheduled' AND NOT extra AND next_attempt_at >= minute.begin
                      AND next_attempt_at < minute.begin + interval '1 minute'
                    ORDER BY next_attempt_at LIMIT %(most)s) due
            GROUP BY second) by_second) counted
 ORDER BY minute.begin
"""


def next_hour() -> list[dict[str, Any]]:
    """Return how many timers are due in each of the next sixty minutes, at most DUE_MOST of each; and the herd in it.

    Raises DatabaseError.
    """
    return _dicts(_NEXT_HOUR, {"most": DUE_MOST})


_LOST_COUNTS = """
SELECT coalesce(sum(failed + missed) FILTER (WHERE begins_at >= %(day)s), 0)::bigint AS day,
       coalesce(sum(failed + missed) FILTER (WHERE begins_at < %(day)s), 0)::bigint AS before
  FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
"""


def lost_since(now: datetime) -> tuple[int, int]:
    """Return how many deliveries failed or were missed in the last 24 hours, and in those before.

    Raises DatabaseError.
    """
    row = _dicts(_LOST_COUNTS, {"day": now - timedelta(days=1), "since": now - timedelta(days=2)})[0]
    return row["day"], row["before"]


# Deliveries of each state that are looked at for an owner's latest, and those of the owner that are taken.
OWN_LOOK, OWN_MOST = 20_000, 50
# Along delivery_past_flow_idx, which says whose each is, by due time; so one of a longer retry policy may end later.
_OWN_LATEST = """
(SELECT id FROM (SELECT id, flow, due_at FROM scheduler_delivery WHERE state = '{state}'
                  ORDER BY due_at DESC, id DESC LIMIT %(look)s) seen
  WHERE {near} ORDER BY due_at DESC LIMIT %(own)s)
"""


def _own_latest(states: Iterable[State]) -> str:
    """Return the query of the ids of an owner's latest deliveries in each of these final states."""
    return " UNION ALL ".join(_OWN_LATEST.format(state=state.value, near=search.NEAR_OWNER) for state in states)


def _own_values(caller: Caller) -> dict[str, Any]:
    owner = {"owner": caller.owner_id, "owner_bits": (caller.owner_id or 0) & OWNER_BITS}
    return owner | {"look": OWN_LOOK, "own": OWN_MOST}


# The latest first, of all along delivery_finished_idx; then one probe each for its timer and its last attempt.
_ENDED = """
SELECT ended.*, timer.name, timer.web_url, timer.host, last.started_at - last.meant_for AS late, last.duration_ms,
       last.status_code, coalesce(last.error, '') AS error
  FROM ({source}) ended
  JOIN LATERAL (SELECT name, web_url, host, owner_id FROM scheduler_timer WHERE id = ended.timer_id OFFSET 0) timer
    ON %(everyone)s OR timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint
  LEFT JOIN LATERAL (SELECT started_at, meant_for, duration_ms, status_code, error FROM scheduler_attempt
                      WHERE delivery_id = ended.delivery_id ORDER BY number DESC LIMIT 1) last ON true
 ORDER BY ended.finished_at DESC LIMIT %(limit)s
"""
_ENDED_COLUMNS = "SELECT id AS delivery_id, timer_id, number, state, finished_at"
_ENDED_OF_ALL = f"""
{_ENDED_COLUMNS} FROM scheduler_delivery WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT %(limit)s
"""
_ENDED_OF_ONE = f"""
{_ENDED_COLUMNS} FROM ({_own_latest(FINAL)}) own
  JOIN LATERAL (SELECT timer_id, number, state, finished_at FROM scheduler_delivery WHERE id = own.id OFFSET 0) one
    ON finished_at IS NOT NULL
"""  # noqa: S608 - only constants are put in


def latest_ended(caller: Caller, *, limit: int) -> list[dict[str, Any]]:
    """Return the deliveries of a caller that ended last: of an owner among the latest OWN_LOOK of each state.

    Raises DatabaseError.
    """
    source = _ENDED_OF_ALL if caller.sees_all else _ENDED_OF_ONE
    return _dicts(_ENDED.format(source=source), _own_values(caller) | {"everyone": caller.sees_all, "limit": limit})


# Latest dead letters among whose timers those that need attention are looked for; flows that are looked at, and dead
# letters of each.
TROUBLED_LOOK, TROUBLED_FLOWS, TROUBLED_OF_FLOW = 1000, 100, 50
# So many failures in a row are worth a word; up to so many are counted.
ROW_LEAST, ROW_MOST = 3, 50
_DEAD = "state IN ('failed', 'missed') AND dismissed_at IS NULL"
# Of all the latest, along delivery_lost_idx, and flow by flow too, along delivery_dead_idx as in services.letters: so a
# host with very many does not hide the rest.
_DEAD_LATEST = """
SELECT timer_id, finished_at
  FROM (SELECT timer_id, finished_at, dismissed_at FROM scheduler_delivery WHERE state IN ('failed', 'missed')
         ORDER BY finished_at DESC, id DESC LIMIT %(look)s) latest
 WHERE dismissed_at IS NULL
"""
_DEAD_BY_FLOW = f"""
SELECT dead.timer_id, dead.finished_at FROM (
  WITH RECURSIVE step AS (
    SELECT begin.last, first.flow
      FROM unnest(%(after)s::bigint[], %(last)s::bigint[]) AS begin (after, last)
     CROSS JOIN LATERAL (SELECT flow FROM scheduler_delivery WHERE {_DEAD} AND flow > begin.after AND flow <= begin.last
                          ORDER BY flow LIMIT 1) first
    UNION ALL
    SELECT step.last, next.flow
      FROM step
     CROSS JOIN LATERAL (SELECT flow FROM scheduler_delivery WHERE {_DEAD} AND flow > step.flow AND flow <= step.last
                          ORDER BY flow LIMIT 1) next
  )
  SELECT flow FROM step LIMIT %(flows)s) each
 CROSS JOIN LATERAL (SELECT timer_id, finished_at FROM scheduler_delivery WHERE {_DEAD} AND flow = each.flow
                      ORDER BY finished_at DESC LIMIT %(of_flow)s) dead
 ORDER BY dead.finished_at DESC LIMIT %(look)s
"""  # noqa: S608 - as above
# Then for each timer a probe of itself, of its latest promised delivery, and of those of its deliveries that ended, by
# delivery_timer_number_unique. With OFFSET 0 no plan can read a whole table instead.
_TROUBLED = f"""
WITH lost AS MATERIALIZED (
  SELECT timer_id, max(finished_at) AS at FROM ({{source}}) dead GROUP BY timer_id
),
troubled AS MATERIALIZED (
  SELECT timer.*, lost.at, latest.state = 'paused' AS is_paused, ended.ids
    FROM lost
    JOIN LATERAL (SELECT id, name, web_url FROM scheduler_timer timer
                   WHERE id = lost.timer_id AND {RECURRING}
                     AND (%(everyone)s OR owner_id IS NOT DISTINCT FROM %(owner)s::bigint) OFFSET 0) timer ON true
    JOIN LATERAL (SELECT state, cancel_requested_at, finished_at FROM scheduler_delivery
                   WHERE timer_id = timer.id AND NOT extra ORDER BY number DESC LIMIT 1) latest
      ON latest.finished_at IS NULL AND latest.cancel_requested_at IS NULL
    JOIN LATERAL (SELECT array_agg(one.state) AS states, array_agg(one.id) AS ids
                    FROM (SELECT id, state FROM scheduler_delivery
                           WHERE timer_id = timer.id AND NOT extra AND state IN ('succeeded', 'failed', 'missed')
                           ORDER BY number DESC LIMIT {ROW_LEAST}) one) ended
      ON CASE WHEN latest.state = 'paused' THEN ended.states[1] = 'failed'
              ELSE cardinality(ended.states) = {ROW_LEAST} AND 'succeeded' <> ALL(ended.states) END
),
found AS (
  (SELECT troubled.*, true AS is_gone
     FROM troubled
     JOIN LATERAL (SELECT status_code FROM scheduler_attempt WHERE delivery_id = troubled.ids[1]
                    ORDER BY number DESC LIMIT 1) last ON last.status_code = {GONE}
    WHERE is_paused ORDER BY at DESC LIMIT %(most)s)
  UNION ALL
  (SELECT troubled.*, false FROM troubled WHERE NOT is_paused ORDER BY at DESC LIMIT %(most)s)
)
SELECT found.id, found.name, found.web_url, found.at, found.is_gone, streak.count AS in_row
  FROM found
 CROSS JOIN LATERAL (
   SELECT coalesce(min(place) FILTER (WHERE state = 'succeeded') - 1, count(*)) AS count
     FROM (SELECT state, row_number() OVER (ORDER BY number DESC) AS place FROM scheduler_delivery
            WHERE timer_id = found.id AND NOT extra AND state IN ('succeeded', 'failed', 'missed')
            ORDER BY number DESC LIMIT {ROW_MOST}) one) streak
 ORDER BY NOT found.is_gone, found.at DESC
"""  # noqa: S608 - as above


def troubled_timers(caller: Caller, *, most: int) -> list[dict[str, Any]]:
    """Return recurring timers of a caller that an answer of 410 paused, and that failed ROW_LEAST times in a row.

    At most `most` of each, the latest first; `in_row` counts up to ROW_MOST. They are looked for among the timers of
    the latest dead letters of TROUBLED_FLOWS flows, and of all; those that were dismissed need none.

    Raises DatabaseError.
    """
    values: dict[str, Any] = {"everyone": caller.sees_all, "owner": caller.owner_id, "most": most}
    values |= {"look": TROUBLED_LOOK, "flows": TROUBLED_FLOWS, "of_flow": TROUBLED_OF_FLOW}
    source = f"({_DEAD_BY_FLOW}) UNION ALL ({_DEAD_LATEST})" if caller.sees_all else _DEAD_BY_FLOW
    found = _dicts(_TROUBLED.format(source=source), values | flows.ranges_of(caller))
    if not (gone := [row["id"] for row in found if row["is_gone"]]):
        return found
    # Not those that somebody resumed, and then paused.
    paused = list(Delivery.objects.promised().filter(timer__in=gone, state=State.PAUSED))
    by_gone = reasons.paused_by_gone(paused)
    still = {one.timer_id for one in paused if one.pk in by_gone}
    return [row for row in found if not row["is_gone"] or row["id"] in still]


# Of all along delivery_lost_idx.
_LOST_OF_ALL = """
SELECT finished_at FROM scheduler_delivery WHERE state IN ('failed', 'missed')
 ORDER BY finished_at DESC, id DESC LIMIT 1
"""
_LOST_OF_ONE = f"""
SELECT lost.finished_at
  FROM ({_own_latest((State.FAILED, State.MISSED))}) own
  JOIN LATERAL (SELECT timer_id, state, finished_at FROM scheduler_delivery WHERE id = own.id OFFSET 0) lost
    ON lost.state IN ('failed', 'missed')
  JOIN LATERAL (SELECT owner_id FROM scheduler_timer WHERE id = lost.timer_id OFFSET 0) timer
    ON timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint
 ORDER BY lost.finished_at DESC LIMIT 1
"""  # noqa: S608 - as above


def last_lost(caller: Caller) -> datetime | None:
    """Return when the caller's latest delivery ended that failed or was missed, dismissed or not; None for none.

    Of an owner it is looked for among the latest OWN_LOOK that failed, and as many that were missed. Raises
    DatabaseError.
    """
    found = _dicts(_LOST_OF_ALL if caller.sees_all else _LOST_OF_ONE, _own_values(caller))
    return found[0]["finished_at"] if found else None


def _dicts(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# Hosts that a field offers, and those that are looked at for them; of each, its newest timers that are looked at.
OPTIONS_MOST, OPTIONS_LOOK, OPTION_TIMERS = 50, 200, 20
# Along timer_host_idx, which each step skips to the next host. Whether one is the caller's own is asked of its newest
# timers; and, where others' are newer, of what waits in the flow that the owner's timers would have: see models._flow.
# That a text begins so is asked of each host rather than of a range, because a collation may sort them apart.
_HOST_OPTIONS = """
WITH RECURSIVE step AS (
  (SELECT host, flow, 1 AS number FROM scheduler_timer WHERE host >= %(begins)s ORDER BY host LIMIT 1)
  UNION ALL
  SELECT next.host, next.flow, step.number + 1
    FROM step CROSS JOIN LATERAL (
      SELECT host, flow FROM scheduler_timer WHERE host > step.host ORDER BY host LIMIT 1) next
   WHERE step.number < %(look)s
)
SELECT host FROM step WHERE host <> '' AND starts_with(host, %(begins)s) AND {own} ORDER BY number LIMIT %(most)s
"""
_OWN_HOST = """
(EXISTS (SELECT FROM (SELECT owner_id FROM scheduler_timer WHERE host = step.host ORDER BY id DESC LIMIT %(timers)s) new
          WHERE owner_id IS NOT DISTINCT FROM %(owner)s::bigint)
 OR EXISTS (
   SELECT FROM (SELECT step.flow & 4294967295 AS host, %(owner_bits)s::bigint AS owner) bits
    CROSS JOIN LATERAL (
      SELECT timer_id FROM scheduler_delivery
       WHERE state = 'scheduled'
         AND flow = (((bits.owner # bits.host) & %(lanes)s - 1) << 57) | (bits.owner << 32) | bits.host
       ORDER BY next_attempt_at LIMIT 1) waiting
    CROSS JOIN LATERAL (SELECT host, owner_id FROM scheduler_timer WHERE id = waiting.timer_id OFFSET 0) timer
    WHERE timer.host = step.host AND timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint))
"""


def hosts_of(caller: Caller, *, begins: str) -> list[str]:
    """Return up to OPTIONS_MOST hosts of a caller's timers that begin so, among OPTIONS_LOOK. Raises DatabaseError."""
    values = {"begins": begins, "look": OPTIONS_LOOK, "most": OPTIONS_MOST, "timers": OPTION_TIMERS, "lanes": LANES}
    values |= {"owner": caller.owner_id, "owner_bits": (caller.owner_id or 0) & OWNER_BITS}
    found = _dicts(_HOST_OPTIONS.format(own="true" if caller.sees_all else _OWN_HOST), values)
    return [row["host"] for row in found]


# Along the key of scheduler_hosthour, a probe for each hour.
_HOST_HOURS = """
SELECT hour, calls, failed, put_off, late, durations FROM scheduler_hosthour
 WHERE hour = ANY(%(hours)s) AND host = %(host)s
"""


def host_hours(host: str, hours: Sequence[datetime]) -> list[dict[str, Any]]:
    """Return what each process counted of a host in each of these hours. Raises DatabaseError."""
    return _dicts(_HOST_HOURS, {"hours": list(hours), "host": host})


# The latest attempts of all hosts that are looked at: a probe of two keys for each.
LATEST_ATTEMPTS = 1000
_ATTEMPTS_OF_HOST = """
SELECT latest.error, latest.status_code, count(*) AS count
  FROM (SELECT delivery_id, error, status_code FROM scheduler_attempt ORDER BY id DESC LIMIT %(most)s) latest
  JOIN scheduler_delivery delivery ON delivery.id = latest.delivery_id
  JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE timer.host = %(host)s
 GROUP BY latest.error, latest.status_code ORDER BY count(*) DESC LIMIT 20
"""


def attempts_of_host(host: str) -> list[dict[str, Any]]:
    """Return how the attempts at a host among the latest ones ended. Raises DatabaseError."""
    return _dicts(_ATTEMPTS_OF_HOST, {"host": host, "most": LATEST_ATTEMPTS})


HOSTS_MOST = 50
# A host fails of whose latest calls this share or more did.
FAILING_SHARE = 0.1
# Where hosts are ordered by how long calls took, so many with the most calls are looked at.
TIMED_MOST = 100
# What is worth a look first: it fails, a person stopped it, workers put its deliveries off; each by its failures.
TROUBLE = "trouble"
_HOSTS_BY = {
    TROUBLE: f"""CASE WHEN host = ANY(%(stopped)s) THEN 1
                      WHEN recent_failed > 0 AND recent_failed >= {FAILING_SHARE} * recent_calls THEN 0
                      WHEN recent_put_off > 0 THEN 2 ELSE 3 END, failed DESC, calls DESC, host""",
    "calls": "calls DESC, host",
    "share": "failed::float8 / greatest(calls, 1) DESC, failed DESC, calls DESC, host",
    "duration": "calls DESC, host",
    "late": "calls DESC, host",
}
HOST_ORDERS = tuple(_HOSTS_BY)

# Along the key of scheduler_hosthour: a row for each hour, host and process.
_HOSTS = """
SELECT * FROM (
  SELECT host, sum(calls)::bigint AS calls, sum(failed)::bigint AS failed, sum(put_off)::bigint AS put_off,
         coalesce(sum(calls) FILTER (WHERE hour >= %(recent)s), 0)::bigint AS recent_calls,
         coalesce(sum(failed) FILTER (WHERE hour >= %(recent)s), 0)::bigint AS recent_failed,
         coalesce(sum(put_off) FILTER (WHERE hour >= %(recent)s), 0)::bigint AS recent_put_off
    FROM scheduler_hosthour WHERE hour >= %(since)s
   GROUP BY host) each
 ORDER BY {order} LIMIT %(most)s
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
    # The same of the latest hours alone.
    recent_calls: int = 0
    recent_failed: int = 0
    recent_put_off: int = 0

    @property
    def is_failing(self) -> bool:
        return self.recent_failed > 0 and self.recent_failed >= FAILING_SHARE * self.recent_calls

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


def hosts_since(since: datetime, *, recent: datetime, order: str = TROUBLE, stopped: Sequence[str] = ()) -> list[Host]:
    """Return HOSTS_MOST hosts at most, counted since an hour and apart since a later one, in one of HOST_ORDERS.

    By duration and lateness they are ordered among the TIMED_MOST with the most calls. Raises DatabaseError.
    """
    is_timed = order in ("duration", "late")
    values: dict[str, Any] = {"since": since, "recent": recent, "stopped": list(stopped)}
    found = _dicts(_HOSTS.format(order=_HOSTS_BY[order]), values | {"most": TIMED_MOST if is_timed else HOSTS_MOST})
    times: dict[tuple[str, str], list[tuple[int, int]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_HOST_TIMES, {"since": since, "hosts": [row["host"] for row in found]})
        for host, kind, position, count in cursor.fetchall():
            times.setdefault((host, kind), []).append((position, count))
    hosts = [
        Host(
            row["host"],
            row["calls"],
            row["failed"],
            row["put_off"],
            _histogram(times.get((row["host"], "late"), ())),
            _histogram(times.get((row["host"], "durations"), ())),
            row["recent_calls"],
            row["recent_failed"],
            row["recent_put_off"],
        )
        for row in found
    ]
    if is_timed:
        # The order of those that are alike stays.
        hosts.sort(key=lambda host: -((host.late_ms if order == "late" else host.duration_ms) or 0.0))
    return hosts[:HOSTS_MOST]


# Calls under way that are looked at.
RUNNING_MOST = 5000
# Along delivery_lease_idx, and then one probe for each timer.
_RUNNING = """
SELECT timer.host, count(*) AS count
  FROM (SELECT timer_id FROM scheduler_delivery WHERE state = 'running' ORDER BY lease_expires_at LIMIT %(most)s) one
  JOIN LATERAL (SELECT host FROM scheduler_timer WHERE id = one.timer_id OFFSET 0) timer ON true
 GROUP BY timer.host
"""


def running_by_host() -> dict[str, int]:
    """Return how many calls are under way to each host that has any, of RUNNING_MOST in all. Raises DatabaseError."""
    return {row["host"]: row["count"] for row in _dicts(_RUNNING, {"most": RUNNING_MOST})}
