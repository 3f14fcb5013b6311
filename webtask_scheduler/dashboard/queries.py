"""What pages read beside the services: read only, each along an index and bounded."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from webtask_scheduler.scheduler.rules import histogram

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


def _histogram(rows: Any) -> list[int]:
    """Return a histogram from its positions, which count from 1, and their counts."""
    total = histogram.empty()
    for position, count in rows:
        total[position - 1] += int(count)
    return total


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
