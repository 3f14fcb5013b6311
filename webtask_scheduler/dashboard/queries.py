"""What pages read beside the services: read only, each along an index."""

from datetime import datetime

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
    total = histogram.empty()
    with connection.cursor() as cursor:
        cursor.execute(_LATENESS, [since])
        for position, count in cursor.fetchall():
            total[position - 1] += int(count)
    return total
