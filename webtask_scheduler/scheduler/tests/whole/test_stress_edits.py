"""Twelve clients edit timers that recur every second, at random and side by side, and every answer holds.

STRESS_SECONDS=60 STRESS_SEED=7 ./scripts/test -k stress_edits
"""

import contextlib
import os
import random
import threading
import time

import pytest
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.db import IntegrityError, connection, connections
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler.models import Attempt, Delivery
from webtask_scheduler.scheduler.tests.support import editors as account
from webtask_scheduler.scheduler.tests.support.editors import BULK_GROUP, Editors
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

SECONDS = float(os.environ.get("STRESS_SECONDS", "20"))
SEED = int(os.environ.get("STRESS_SEED", "1"))

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(SECONDS + 180),
]


class Operator(threading.Thread):
    """Somebody who writes to the stock rows of one group's timers, as other code would."""

    def __init__(self, editors):
        super().__init__(daemon=True)
        self._editors = editors
        self._chance = random.Random(f"{SEED} operator")
        self._closing = threading.Event()
        self.edits = 0
        self.error = None

    def run(self):
        try:
            while not self._closing.wait(self._chance.uniform(0, 0.1)):
                try:
                    self._edit()
                    self.edits += 1
                except (ValidationError, ObjectDoesNotExist, IntegrityError):
                    pass  # it has ended meanwhile, or the schedule that it showed when it was read is gone
        except Exception as error:
            self.error = error
        finally:
            connections.close_all()

    def end(self):
        self._closing.set()
        self.join()

    def _edit(self):
        timers = self._editors.in_group(BULK_GROUP)
        if not timers:
            return
        task = PeriodicTask.objects.get(timer=self._chance.choice(timers))
        match self._chance.randrange(8):
            case 0:
                task.delete()
            case 1 | 2:
                if task.interval is not None:
                    task.interval.every = self._chance.choice([1, 2])
                    task.interval.save()
            case 3:
                task.interval = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
                task.crontab = task.clocked = None
                task.one_off = False
                task.save()
            case 4:
                PeriodicTask.objects.filter(pk=task.pk).update(enabled=False)
            case _:
                task.enabled = not task.enabled
                task.save()


def deadlocks(sql):
    ((count,),) = sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


def test_edits_at_random_on_timers_that_recur_every_second_hold(receiver, sql):
    before = deadlocks(sql)
    with running("web", "worker", "beat") as service:
        editors = Editors(service.port, receiver.url, seed=SEED)
        editors.make()
        operator = Operator(editors)
        operator.start()
        broken = []
        with editors.editing():
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                # Nothing broken shows at any moment.
                time.sleep(0.2)
                broken += account.broken(sql, editors, groups=BULK_GROUP)
        operator.end()
        print(f"seed {SEED}, {SECONDS:g} s: {len(receiver.calls)} calls, {operator.edits} edits by the operator")
        print(", ".join(f"{count} x {answer}" for answer, count in sorted(editors.answers.items())))
        # Whatever is enabled goes on: everyone is called again, in a second or two and what a claim takes.
        wait_until(lambda: account.bulks_ended(sql))
        marked = len(receiver.calls)
        lively = account.enabled(sql, editors)
        assert len(lively) > 3

        def silent():
            return lively - {call.headers["webtask-timer-id"] for call in receiver.calls[marked:]}

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not silent())
        assert [account.described(sql, timer_id) for timer_id in silent()] == []
        editors.cancel_all(sql)
        wait_until(lambda: not Delivery.objects.filter(finished_at=None).exists())
        judged, wrong = account.called_while_paused(sql, editors)
        print(f"{judged} pauses judged")
        logs = {name: service.log(name) for name in ("web", "worker", "beat")}
        calls = list(receiver.calls)
    assert operator.error is None
    assert editors.failures == []
    assert not [answer for answer in editors.answers if answer.endswith("none")]
    assert (broken, wrong) == ([], [])
    assert account.broken(sql, editors) == []
    assert judged > 20
    connection.ensure_connection()
    assert deadlocks(sql) == before
    for log in logs.values():
        assert "database_failing" not in log
        assert "outcomes_not_recorded" not in log
        assert "Traceback" not in log
    # Each call that was received is written down, and as itself.
    written = {(str(one.delivery_id), one.number): one for one in Attempt.objects.all()}
    unwritten = [
        call for call in calls if (call.headers["webhook-id"], int(call.headers["webtask-attempt"])) not in written
    ]
    assert unwritten == []
    assert {one.error for one in written.values()} <= {"", "status"}
    assert len(written) == len(calls)
