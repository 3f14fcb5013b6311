"""What a benchmark does inside the service's own code; run as a process with the environment of its site.

python -m benchmarks.inside fill COUNT        timers due in two to ten hours
python -m benchmarks.inside ended COUNT       timers that were called and ended forty days ago
python -m benchmarks.inside schedule < JSON   [[due in seconds since 1970, URL], ...]
python -m benchmarks.inside claims REPEATS    the seconds that claiming 500 takes, as a JSON list
python -m benchmarks.inside crowd N ENDED     N timers that wait and ENDED that ended, see benchmarks.crowd
python -m benchmarks.inside visits            every page and its plans, see benchmarks.visits, and who looked, as JSON
python -m benchmarks.inside settings          the settings that matter here, as JSON
"""

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime

import django

django.setup()

from django.conf import settings  # noqa: E402 - needs the line above
from django.contrib.auth import get_user_model  # noqa: E402
from django.db import connection  # noqa: E402

from benchmarks import crowd, visits  # noqa: E402
from webtask_scheduler import terminal  # noqa: E402
from webtask_scheduler.dispatch.queue import Portion  # noqa: E402
from webtask_scheduler.dispatch.share import CLAIM_LIMIT  # noqa: E402
from webtask_scheduler.scheduler import services  # noqa: E402
from webtask_scheduler.scheduler.models import LANES  # noqa: E402
from webtask_scheduler.scheduler.queue import claims as queue  # noqa: E402

BATCH = 1000
HOUR = 3600.0

# Writes of everything that waits what a call that succeeded would have left.
END = """
WITH done AS (
  UPDATE scheduler_delivery
     SET state = 'succeeded', attempts = 1, started_at = due_at, finished_at = clock_timestamp() - interval '40 days'
   WHERE state = 'scheduled' RETURNING id, timer_id, due_at
),
task AS (
  UPDATE django_celery_beat_periodictask task SET enabled = false, last_run_at = due_at, total_run_count = 1
    FROM done JOIN scheduler_timer timer ON timer.id = done.timer_id WHERE task.id = timer.periodic_task_id
)
INSERT INTO scheduler_attempt
  (delivery_id, number, meant_for, started_at, duration_ms, status_code, error, message, excerpt, stages)
SELECT id, 1, due_at, due_at, 5, 200, '', '', 'ok', '{-985200,-7100,-3200,NULL,NULL,NULL,2600}' FROM done
"""


def fill(count: int, *, ended: bool = False) -> None:
    with terminal.Progress("timers made", total=count) as progress:
        _fill(count, ended=ended, progress=progress)
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("VACUUM ANALYZE")


def _fill(count: int, *, ended: bool, progress: terminal.Progress) -> None:
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        services.schedule(
            [
                # Spread over hours and hosts, not in the order of creation.
                services.NewTimer(
                    web_url=f"http://127.0.0.{number % 250 + 1}/waiting/{number}",
                    delay_seconds=2 * HOUR + (number * 7919 % 28_800_000) / 1000,
                )
                for number in numbers
            ]
        )
        if ended:
            with connection.cursor() as cursor:
                cursor.execute(END)
        progress.add(len(numbers))


def schedule() -> None:
    wanted = json.load(sys.stdin)
    for start in range(0, len(wanted), BATCH):
        services.schedule(
            [
                services.NewTimer(web_url=url, due_at=datetime.fromtimestamp(due, UTC))
                for due, url in wanted[start : start + BATCH]
            ]
        )


def claims(repeats: int) -> None:
    # What creates timers here needs no claim.

    took = []
    for number in range(repeats + 3):
        services.schedule(
            [
                services.NewTimer(web_url=f"http://127.0.0.1/claim/{index}", delay_seconds=0.0)
                for index in range(CLAIM_LIMIT)
            ]
        )
        begun = time.perf_counter()
        claim = queue.claim_due(
            [Portion(lane, CLAIM_LIMIT) for lane in range(LANES)], until_seconds=queue.AHEAD_SECONDS
        )
        if number >= 3:  # the first ones find nothing in memory
            took.append(time.perf_counter() - begun)
        if len(claim.held) != CLAIM_LIMIT:
            sys.exit(f"Claimed {len(claim.held)}, not {CLAIM_LIMIT}.")
        with connection.cursor() as cursor:
            # As if they had been called.
            cursor.execute(
                "UPDATE scheduler_delivery SET state = 'succeeded', lease_token = NULL, lease_expires_at = NULL,"
                " finished_at = now() WHERE state = 'claimed'"
            )
    print(json.dumps(took))


def fill_crowd(waiting: int, ended: int) -> None:
    crowd.fill(waiting=waiting, ended=ended, say=lambda text: print(text, flush=True))
    crowd.settle()


def visit_all() -> None:
    """A superuser looks at everything; a person without a timer at the dashboard, where much is searched for little."""
    persons = get_user_model().objects
    root = visits.Visitor(persons.get(email=crowd.ADMIN))
    person = visits.Visitor(persons.get(email=crowd.WITHOUT))
    found = [*visits.visits(root), *visits.visits(person, of=[visits.DASHBOARD])]
    cookies = {one.name: one.cookie for one in (root, person)}
    print(json.dumps({"visits": [asdict(one) for one in found], "cookies": cookies}))


def tell_settings() -> None:
    names = [name for name in dir(settings) if name.startswith("WEBTASK_")]
    names += ["CELERY_WORKER_SEND_TASK_EVENTS", "CELERY_TASK_SEND_SENT_EVENT", "CELERY_WORKER_PREFETCH_MULTIPLIER"]
    print(json.dumps({name: getattr(settings, name, None) for name in names}, default=str))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fill", number]:
            fill(int(number))
        case ["ended", number]:
            fill(int(number), ended=True)
        case ["schedule"]:
            schedule()
        case ["claims", number]:
            claims(int(number))
        case ["crowd", waiting, ended]:
            fill_crowd(int(waiting), int(ended))
        case ["visits"]:
            visit_all()
        case ["settings"]:
            tell_settings()
        case _:
            sys.exit(__doc__)
