"""Timers that ended long ago are deleted with all that belongs to them, and nothing else is."""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.scheduler import tasks
from webtask_scheduler.scheduler.models import TASK_NAME, Attempt, BulkChange, BulkOperation, Delivery, Timer
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes, start_attempts
from webtask_scheduler.scheduler.services import retention
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

DAYS = timedelta(days=1)
NOW = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def ended(make_timer, sql):
    """Return a function that makes a timer that was called and ended some days ago."""

    def make(days):
        timer = make_timer(delay_seconds=-1)
        started, *_ = start_attempts([(i.delivery_id, i.token) for i in claim_due(timer_id=timer.pk).held])
        record_outcomes([Outcome(call, call.started_at, 5, 200, "", "", "ok") for call in started])
        sql("UPDATE scheduler_delivery SET finished_at = finished_at - %s WHERE timer_id = %s", days * DAYS, timer.pk)
        return timer

    return make


def left():
    return set(Timer.objects.values_list("pk", flat=True))


def test_old_timer_goes_with_its_deliveries_attempts_task_and_schedule(ended):
    ended(31)
    assert retention.prune(older_than=30 * DAYS) == 1
    ours = PeriodicTask.objects.filter(task=TASK_NAME)
    for rows in (Timer.objects, Delivery.objects, Attempt.objects, ours, ClockedSchedule.objects):
        assert not rows.exists()


def test_young_and_open_timers_stay(ended, make_timer):
    young, waiting = ended(29), make_timer()
    assert retention.prune(older_than=30 * DAYS) == 0
    assert left() == {young.pk, waiting.pk}


def test_timer_of_which_something_is_open_stays(ended):
    timer = ended(31)
    Delivery.objects.create(timer=timer, number=2, extra=True, due_at=NOW, next_attempt_at=NOW)
    assert retention.prune(older_than=30 * DAYS) == 0
    assert Delivery.objects.filter(timer=timer).count() == 2


def test_schedule_that_another_task_uses_stays(ended):
    timer = ended(31)
    shared = timer.periodic_task.clocked
    PeriodicTask.objects.create(name="other", task="some.task", clocked=shared, one_off=True)
    retention.prune(older_than=30 * DAYS)
    assert ClockedSchedule.objects.filter(pk=shared.pk).exists()
    assert not left()


def test_timer_whose_task_was_deleted_goes_too(ended):
    timer = ended(31)
    PeriodicTask.objects.filter(timer=timer).delete()
    assert retention.prune(older_than=30 * DAYS) == 1


def test_prunes_what_bulk_operations_changed_before_them(make_timer):
    timers = [make_timer() for _ in range(3)]
    ends = (NOW - 31 * DAYS, timezone.now())
    old, new = [BulkOperation.objects.create(action="pause", filter={}, finished_at=at) for at in ends]
    for operation in (old, new):
        for timer in timers:
            BulkChange.objects.create(operation=operation, timer=timer.pk)
    assert retention.prune_bulk(older_than=30 * DAYS) == 0
    assert [retention.prune_bulk_changes(older_than=30 * DAYS, limit=2) for _ in range(3)] == [2, 1, 0]
    assert [retention.prune_bulk(older_than=30 * DAYS) for _ in range(2)] == [1, 0]
    assert (BulkOperation.objects.get(), BulkChange.objects.count()) == (new, 3)


def test_prunes_in_batches_oldest_first(ended):
    old, older, oldest = ended(31), ended(32), ended(33)
    assert retention.prune(older_than=30 * DAYS, limit=1) == 1
    assert left() == {old.pk, older.pk}
    assert oldest.pk not in left()


def test_operators_own_tasks_stay(ended):
    ended(31)
    soon = ClockedSchedule.objects.create(clocked_time="2020-01-01T00:00:00Z")
    PeriodicTask.objects.create(name="theirs", task="some.task", clocked=soon, one_off=True, enabled=False)
    retention.prune(older_than=30 * DAYS)
    assert PeriodicTask.objects.get(task="some.task").clocked == soon


def test_command_counts_in_a_dry_run_and_deletes_without(ended, capsys):
    ended(2)
    ended(2)
    call_command("prune_timers", "--older-than", "36h", "--dry-run")
    assert "2 timers ended more than" in capsys.readouterr().out
    assert len(left()) == 2
    call_command("prune_timers", "--older-than", "36h")
    assert "2 timers deleted" in capsys.readouterr().out
    assert not left()


@each("text", ["30", "d", "-1d", "1.5h", "9999999d", "x"])
def test_command_says_what_an_age_looks_like(text):
    with pytest.raises(CommandError, match="is not an age"):
        call_command("prune_timers", f"--older-than={text}")


def test_upkeep_keeps_everything_when_retention_is_off(ended, settings):
    settings.WEBTASK_RETENTION_DAYS = 0
    timer = ended(3650)
    tasks.prune()
    assert left() == {timer.pk}


def test_upkeep_prunes_by_the_setting(ended, settings):
    settings.WEBTASK_RETENTION_DAYS = 7
    ended(8)
    tasks.prune()
    assert not left()
