"""What pages read beside the services: read only, each along an index and bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from webtask_scheduler.scheduler.rules import histogram
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
       sum({all})::bigint AS total, sum({late})::bigint AS late
  FROM scheduler_minute WHERE seconds IN (60, 3600) AND begins_at >= %(since)s
 GROUP BY 1 ORDER BY 1
"""


def steps_since(since: datetime, *, step_seconds: int, within_seconds: float) -> list[dict[str, int]]:
    """Return what was counted by steps since the epoch.

    That is how many deliveries ended how, attempts that are followed by another, first attempts (`total`), and those of
    them that began later than `within_seconds`, which is one of histogram.BOUNDS. Raises DatabaseError.
    """
    statement = _STEPS.format(**_late_places(within_seconds))
    return _dicts(statement, {"since": since, "step": step_seconds})


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


def _histogram(rows: Any) -> list[int]:
    """Return a histogram from its positions, which count from 1, and their counts."""
    total = histogram.empty()
    for position, count in rows:
        total[position - 1] += int(count)
    return total


# Deliveries of each state that are looked at: a hundred milliseconds.
LOST_MOST = 2500

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


# Ended deliveries among which those of a caller are looked for.
ENDED_MOST = 200
# Along delivery_finished_idx, the latest first; then one probe each for its timer and its last attempt.
_ENDED = """
SELECT ended.*, timer.name, timer.web_url, timer.host, last.started_at - last.meant_for AS late, last.duration_ms,
       last.status_code, coalesce(last.error, '') AS error
  FROM (SELECT id AS delivery_id, timer_id, number, state, finished_at FROM scheduler_delivery
         WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT %(most)s) ended
  JOIN scheduler_timer timer ON timer.id = ended.timer_id
  LEFT JOIN LATERAL (SELECT started_at, meant_for, duration_ms, status_code, error FROM scheduler_attempt
                      WHERE delivery_id = ended.delivery_id ORDER BY number DESC LIMIT 1) last ON true
 WHERE (%(everyone)s OR timer.owner_id IS NOT DISTINCT FROM %(owner)s::bigint)
 ORDER BY ended.finished_at DESC LIMIT %(limit)s
"""


def latest_ended(caller: Caller, *, limit: int) -> list[dict[str, Any]]:
    """Return the deliveries of a caller that ended last, among the latest ENDED_MOST. Raises DatabaseError."""
    return _dicts(_ENDED, _seen_by(caller) | {"most": ENDED_MOST, "limit": limit})


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
