"""Preload clocked tasks; `python -m benchmarks.peer_stock.load < JSON` of [[due in seconds since 1970, URL], ...].

Written in bulk: it changes nothing for beat, which is started afterwards, and 17 queries for each would take minutes.
"""

import json
import os
import sys
from datetime import UTC, datetime

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peer_stock.settings")
django.setup()

from django_celery_beat.models import ClockedSchedule, PeriodicTask, PeriodicTasks  # noqa: E402 - needs the line above


def main() -> None:
    wanted = json.load(sys.stdin)
    schedules = ClockedSchedule.objects.bulk_create(
        [ClockedSchedule(clocked_time=datetime.fromtimestamp(due, UTC)) for due, _ in wanted], batch_size=1000
    )
    PeriodicTask.objects.bulk_create(
        [
            PeriodicTask(name=url, task="call", args=json.dumps([url]), clocked=schedule, one_off=True)
            for (_, url), schedule in zip(wanted, schedules, strict=True)
        ],
        batch_size=1000,
    )
    PeriodicTasks.update_changed()


if __name__ == "__main__":
    main()
