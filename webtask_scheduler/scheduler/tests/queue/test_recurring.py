"""Timers that recur, that allow only so much lateness, and that call back: what follows when a delivery ends."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer
from webtask_scheduler.scheduler.queue import reclaim
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes, start_attempts
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.services import retention
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import bare, saved

pytestmark = pytest.mark.django_db

DAILY = Recurrence(cron="0 9 * * *", timezone="Europe/Berlin")


def every(seconds, *, since=0.0, **more):
    """An interval whose first moment was so many seconds ago."""
    return Recurrence(every_seconds=seconds, starts_at=timezone.now() - timedelta(seconds=since), **more)


@pytest.fixture
def recurring(make_timer):
    """Return a function that makes a timer that recurs, with its latest delivery due so many seconds ago."""

    def make(recurrence, *, due_ago=None, **fields):
        timer = make_timer(recurrence=recurrence, delay_seconds=None, **fields)
        if due_ago is not None:
            put_back(timer, due_ago)
        return timer

    return make


def deliveries(timer):
    return list(Delivery.objects.filter(timer=timer).order_by("number"))


def states(timer):
    return [(one.occurrence, one.state) for one in deliveries(timer)]


# What the PeriodicTask shows


def test_interval_is_shown_as_an_interval_of_the_timers_own(recurring, delivery_of):
    timer = recurring(every(90.0, since=-90))
    task = timer.periodic_task
    assert (task.interval.every, task.interval.period, task.one_off, task.enabled) == (90, "seconds", False, True)
    assert (task.crontab, task.clocked) == (None, None)
    assert delivery_of(timer).due_at == timer.starts_at


def test_cron_is_shown_as_a_crontab_in_its_zone(recurring):
    task = recurring(Recurrence(cron="*/5 9-17 * JAN-MAR MON-FRI", timezone="Europe/Berlin")).periodic_task
    crontab = task.crontab
    assert (crontab.minute, crontab.hour, crontab.day_of_month) == ("*/5", "9-17", "*")
    assert (crontab.month_of_year, crontab.day_of_week) == ("1-3", "1-5")
    assert str(crontab.timezone) == "Europe/Berlin"
    assert not task.one_off


def test_cron_that_celery_means_otherwise_is_shown_by_its_next_moment(recurring, delivery_of):
    timer = recurring(Recurrence(cron="0 12 13 * FRI"))
    task = timer.periodic_task
    assert (task.crontab, task.interval, task.one_off) == (None, None, True)
    assert task.clocked.clocked_time == delivery_of(timer).due_at


def test_creating_one_that_recurs_takes_one_statement_and_no_signal(make_timer, django_assert_num_queries):
    before = PeriodicTasks.objects.count()
    with django_assert_num_queries(1):
        services.schedule(
            [
                services.NewTimer(web_url="http://127.0.0.1:9/", recurrence=DAILY, options={"labels": {"a": "b"}}),
                services.NewTimer(web_url="http://127.0.0.1:9/", recurrence=every(60.0)),
                services.NewTimer(web_url="http://127.0.0.1:9/", delay_seconds=5),
            ]
        )
    assert PeriodicTasks.objects.count() == before
    assert Timer.objects.count() == PeriodicTask.objects.filter(timer__isnull=False).count() == 3


def test_schedule_without_a_moment_is_refused_and_writes_nothing(make_timer):
    with pytest.raises(services.NothingPromisedError):
        make_timer(
            recurrence=Recurrence(cron="0 0 * * *", ends_at=timezone.now() - timedelta(days=1)), delay_seconds=None
        )
    assert not Timer.objects.exists()


# What follows


@each(("outcome", "state"), [({}, "succeeded"), ({"status_code": 410, "error": "status"}, "failed")])
def test_next_moment_is_promised_when_one_has_ended(recurring, outcome, state):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    run(**outcome)
    first, second = deliveries(timer)
    assert (first.state, second.occurrence, second.attempts) == (state, 2, 0)
    assert second.due_at == timer.starts_at + timedelta(hours=1)
    assert second.next_attempt_at == second.due_at


def test_periodic_task_counts_the_runs_and_stays_enabled(recurring):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    run()
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count, task.last_run_at is not None) == (True, 1, True)


def test_clocked_row_shows_the_next_moment(recurring, delivery_of):
    timer = recurring(Recurrence(cron="0 12 13 * FRI"), due_ago=5)
    run()
    task = PeriodicTask.objects.get(timer=timer)
    assert task.enabled
    assert task.clocked.clocked_time == delivery_of(timer).due_at > timezone.now()
    # The row is still obeyed: its last run is of an earlier moment, so disabling it is a person's wish.
    PeriodicTask.objects.filter(pk=task.pk).update(enabled=False)
    services.reconcile(after=0, limit=100)
    assert delivery_of(timer).state == State.PAUSED


def test_retry_promises_nothing_more_until_the_delivery_ends(recurring):
    timer = recurring(every(60.0, since=10))
    put_back(timer, 10)
    run(status_code=503, error="status")
    assert states(timer) == [(1, "scheduled")]


def test_many_missed_moments_are_made_good_by_one_call(recurring):
    timer = recurring(every(10.0, since=95))
    put_back(timer, 95)
    run()
    first, second = deliveries(timer)
    assert first.state == "succeeded"
    # The moments 10 to 90 s after the first passed before the call began.
    assert second.due_at == timer.starts_at + timedelta(seconds=100)


def test_moments_that_pass_during_a_call_are_called_once_and_at_once(recurring):
    timer = recurring(every(10.0, since=0))
    (call,) = start_attempts(
        [(item.delivery_id, item.token) for item in claim_due().held] or first_claim(timer)
    ).started
    record_outcomes([Outcome(call, call.started_at, 35_000, 200, "", "", "")])
    second = deliveries(timer)[1]
    assert second.due_at == timer.starts_at + timedelta(seconds=30)


def first_claim(timer):
    put_back(timer, 0.01)
    return [(item.delivery_id, item.token) for item in claim_due().held]


def test_last_of_max_occurrences_ends_the_timer(recurring):
    timer = recurring(every(60.0, since=5), max_occurrences=2)
    put_back(timer, 5)
    run()
    put_back(timer, 1)
    run()
    assert states(timer) == [(1, "succeeded"), (2, "succeeded")]
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count) == (False, 2)
    with pytest.raises(services.TimerEndedError):
        services.pause(timer.pk)


def test_ends_at_ends_the_timer(recurring):
    timer = recurring(every(60.0, since=-5, ends_at=timezone.now() + timedelta(seconds=30)))
    Timer.objects.filter(pk=timer.pk).update(starts_at=put_back(timer, 5))
    run()
    assert states(timer) == [(1, "succeeded")]
    assert not PeriodicTask.objects.get(timer=timer).enabled


def test_extra_delivery_neither_counts_nor_promises(recurring):
    timer = recurring(every(3600.0, since=-3600), max_occurrences=1)
    services.run_now(timer.pk)
    run()
    assert [(one.extra, one.state) for one in deliveries(timer)] == [(False, "scheduled"), (True, "succeeded")]
    assert PeriodicTask.objects.get(timer=timer).total_run_count == 0


def test_gone_pauses_a_timer_that_recurs_until_it_is_resumed(recurring, delivery_of):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    run(status_code=410, error="status")
    assert states(timer) == [(1, "failed"), (2, "paused")]
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.last_run_at) == (False, None)
    assert sweep_changes_nothing(timer)
    services.resume(timer.pk)
    assert delivery_of(timer).state == State.SCHEDULED


def sweep_changes_nothing(timer):
    before = states(timer)
    services.reconcile(after=0, limit=100)
    return states(timer) == before


def test_timer_paused_during_its_call_stays_paused(recurring):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    batch = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    services.pause(timer.pk)
    record_outcomes([Outcome(call, call.started_at, 5, 200, "", "", "") for call in batch.started])
    assert states(timer) == [(1, "succeeded"), (2, "paused")]
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.last_run_at) == (False, None)
    assert sweep_changes_nothing(timer)


def test_timer_cancelled_during_its_call_promises_nothing(recurring):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    batch = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    services.cancel(timer.pk)
    record_outcomes([Outcome(call, call.started_at, 5, 200, "", "", "") for call in batch.started])
    assert states(timer) == [(1, "cancelled")]
    assert sweep_changes_nothing(timer)


def test_lost_call_of_a_timer_that_recurs_is_followed_by_its_next(recurring, sql):
    timer = recurring(every(3600.0, since=10), options={"retry": {"max_attempts": 1}})
    put_back(timer, 10)
    start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    sql("UPDATE scheduler_delivery SET lease_expires_at = now() - interval '1 s'")
    assert sum(reclaim.reclaim_expired()) == 1
    assert states(timer) == [(1, "failed"), (2, "scheduled")]
    assert Attempt.objects.get().error == "lost"


def test_missing_next_delivery_is_restored_by_the_sweep(recurring, delivery_of):
    timer = recurring(every(3600.0, since=10))
    put_back(timer, 10)
    run()
    Delivery.objects.filter(timer=timer, occurrence=2).delete()
    services.reconcile(after=0, limit=100)
    assert states(timer) == [(1, "succeeded"), (2, "scheduled")]
    assert delivery_of(timer).due_at > timezone.now()


def test_occurrences_never_overlap(recurring):
    timer = recurring(every(1.0, since=60))
    put_back(timer, 60)
    batch = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    assert len(batch.started) == 1
    assert claim_due().held == []


# Allowed lateness


def test_later_than_allowed_is_missed_and_not_called(recurring):
    timer = recurring(every(3600.0, since=100), max_lateness_seconds=60.0)
    put_back(timer, 100)
    batch = run()
    assert (batch.started, len(batch.missed)) == ([], 1)
    assert states(timer) == [(1, "missed"), (2, "scheduled")]
    assert not Attempt.objects.exists()
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count, task.last_run_at) == (True, 0, None)


def test_not_later_than_allowed_is_called(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-30, max_lateness_seconds=60.0)
    assert len(run().started) == 1
    assert delivery_of(timer).state == State.SUCCEEDED


def test_missed_one_shot_has_ended_and_can_be_replayed(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-100, max_lateness_seconds=60.0)
    run()
    assert delivery_of(timer).state == State.MISSED
    assert not PeriodicTask.objects.get(timer=timer).enabled
    services.replay(timer.pk)
    run()
    assert delivery_of(timer).state == State.SUCCEEDED


def test_retry_is_not_missed_however_late(make_timer, delivery_of, sql):
    timer = make_timer(delay_seconds=-5, max_lateness_seconds=60.0)
    run(status_code=500, error="status")
    sql("UPDATE scheduler_delivery SET due_at = now() - interval '1 h', next_attempt_at = now() - interval '1 s'")
    sql("UPDATE django_celery_beat_clockedschedule SET clocked_time = (SELECT due_at FROM scheduler_delivery)")
    assert len(run().started) == 1
    assert delivery_of(timer).state == State.SUCCEEDED


# Retries by the timer's own policy


def test_timer_without_retries_fails_at_once(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1, options={"retry": {"max_attempts": 1}})
    run(status_code=500, error="status")
    assert delivery_of(timer).state == State.FAILED


def test_receiver_that_asks_to_wait_is_left_alone_for_so_long(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    run(status_code=503, error="status", retry_after_seconds=600.0)
    wait = delivery_of(timer).next_attempt_at - timezone.now()
    assert timedelta(seconds=595) < wait <= timedelta(seconds=601)


# Replay


def test_replay_begins_afresh_and_keeps_the_history(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1, options={"retry": {"max_attempts": 2, "backoff": "fixed", "min_seconds": 0.1}})
    for _ in range(2):
        Delivery.objects.update(next_attempt_at=timezone.now())
        run(status_code=500, error="status")
    failed = delivery_of(timer)
    assert (failed.state, failed.attempts) == (State.FAILED, 2)
    assert services.replay(timer.pk) == failed.pk
    run(status_code=500, error="status")
    again = delivery_of(timer)
    assert (again.state, again.attempts, again.attempts_before) == (State.SCHEDULED, 3, 2)
    Delivery.objects.update(next_attempt_at=timezone.now())
    run(status_code=500, error="status")
    assert delivery_of(timer).state == State.FAILED
    assert list(Attempt.objects.order_by("number").values_list("number", flat=True)) == [1, 2, 3, 4]
    # Meant for the moment of the replay: what a person decided is not the service's lateness.
    third = Attempt.objects.get(number=3)
    assert third.lateness_ms < 5000


def test_replayed_delivery_of_a_timer_that_goes_on_runs_beside_it(recurring):
    timer = recurring(every(3600.0, since=10), options={"retry": {"max_attempts": 1}})
    put_back(timer, 10)
    run(status_code=500, error="status")
    services.replay(timer.pk)
    assert [(one.occurrence, one.extra, one.state) for one in deliveries(timer)] == [
        (1, True, "scheduled"),
        (2, False, "scheduled"),
    ]
    run()
    assert states(timer) == [(1, "succeeded"), (2, "scheduled")]


def test_nothing_to_replay_is_said(make_timer):
    with pytest.raises(services.NothingToReplayError):
        services.replay(make_timer().pk)


# Callbacks


def callback_of(timer):
    return Timer.objects.get(outcome_of__in=Delivery.objects.filter(timer=timer).values("pk"))


@each(
    ("outcome", "url", "kind"),
    [
        ({}, "http://127.0.0.1:9/ok", "timer.succeeded"),
        ({"status_code": 410, "error": "status"}, "http://127.0.0.1:9/bad", "timer.failed"),
    ],
)
def test_outcome_is_called_back_by_a_delivery_of_its_own(make_timer, outcome, url, kind):
    options = {
        "callback_url": "http://127.0.0.1:9/ok",
        "failure_callback_url": "http://127.0.0.1:9/bad",
        "labels": {"team": "billing"},
    }
    timer = make_timer(delay_seconds=-1, options=options)
    run(**outcome)
    callback = callback_of(timer)
    assert (callback.web_url, callback.host, callback.periodic_task) == (url, "127.0.0.1:9", None)
    said = json.loads(callback.options["body"])
    assert (said["type"], said["task_id"], said["labels"]) == (kind, str(timer.pk), {"team": "billing"})
    assert said["status_code"] == outcome.get("status_code", 200)
    (call,) = start_attempts([(item.delivery_id, item.token) for item in claim_due().held]).started
    assert (call.web_url, call.options.given["content_type"]) == (url, "application/json")


def test_callback_is_retried_and_calls_nobody_back(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1, options={"callback_url": "http://127.0.0.1:9/ok"})
    run()
    callback = callback_of(timer)
    run(status_code=503, error="status")
    assert delivery_of(callback).state == State.SCHEDULED
    Delivery.objects.filter(timer=callback).update(next_attempt_at=timezone.now())
    run()
    assert delivery_of(callback).state == State.SUCCEEDED
    assert Timer.objects.count() == 2


def test_no_callback_for_an_outcome_that_none_is_asked_of_or_a_cancel(make_timer):
    make_timer(delay_seconds=-1, options={"failure_callback_url": "http://127.0.0.1:9/bad"})
    cancelled = make_timer(delay_seconds=-1, options={"callback_url": "http://127.0.0.1:9/ok"})
    batch = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    services.cancel(cancelled.pk)
    record_outcomes([Outcome(call, call.started_at, 5, 200, "", "", "") for call in batch.started])
    assert Timer.objects.filter(outcome_of__isnull=False).count() == 0


def test_missed_delivery_calls_back_as_a_failure(make_timer):
    timer = make_timer(
        delay_seconds=-100, max_lateness_seconds=60.0, options={"failure_callback_url": "http://127.0.0.1:9/bad"}
    )
    run()
    assert json.loads(callback_of(timer).options["body"])["type"] == "timer.missed"


# What an operator does to the row of one that recurs


WRITES = [saved, bare]


@each("write", WRITES)
def test_another_interval_is_taken_over(recurring, delivery_of, write):
    timer = recurring(every(3600.0, since=-3600))
    write(timer.periodic_task.interval, every=2, period=IntervalSchedule.HOURS)
    timer.refresh_from_db()
    assert timer.every_seconds == 7200
    assert abs(delivery_of(timer).due_at - timezone.now() - timedelta(hours=2)) < timedelta(seconds=5)
    assert sweep_changes_nothing(timer)


@each("write", WRITES)
def test_another_crontab_is_taken_over(recurring, delivery_of, write):
    timer = recurring(DAILY)
    write(timer.periodic_task.crontab, hour="11", minute="30")
    timer.refresh_from_db()
    assert timer.cron == "30 11 * * *"
    local = delivery_of(timer).due_at.astimezone(timer.periodic_task.crontab.timezone)
    assert (local.hour, local.minute) == (11, 30)
    assert sweep_changes_nothing(timer)


@each("write", WRITES)
def test_one_shot_that_is_given_an_interval_recurs(make_timer, delivery_of, write):
    timer = make_timer(delay_seconds=600)
    interval = IntervalSchedule.objects.create(every=5, period=IntervalSchedule.MINUTES)
    write(timer.periodic_task, interval=interval, clocked=None, one_off=False)
    timer.refresh_from_db()
    assert timer.every_seconds == 300
    assert delivery_of(timer).state == State.SCHEDULED
    assert [one.state for one in deliveries(timer)] == ["cancelled", "scheduled"]


@each("write", WRITES)
def test_disabled_recurring_row_is_paused_and_enabled_goes_on(recurring, delivery_of, write):
    timer = recurring(DAILY)
    write(timer.periodic_task, enabled=False)
    assert delivery_of(timer).state == State.PAUSED
    write(PeriodicTask.objects.get(timer=timer), enabled=True)
    assert delivery_of(timer).state == State.SCHEDULED


def test_shared_schedule_is_left_to_the_others(recurring):
    timer = recurring(DAILY)
    other = PeriodicTask.objects.create(name="an operator's", task="their.task", crontab=timer.periodic_task.crontab)
    new = services.NewTimer(web_url=timer.web_url, recurrence=Recurrence(cron="0 7 * * *"))
    services.edit(timer.pk, lambda _: (new, True))
    other.refresh_from_db()
    assert other.crontab.hour == "9"
    assert PeriodicTask.objects.get(timer=timer).crontab.hour == "7"


def test_deleting_the_schedule_cancels_the_timer(recurring, delivery_of):
    timer = recurring(DAILY)
    CrontabSchedule.objects.get(pk=timer.periodic_task.crontab_id).delete()
    assert delivery_of(timer).state == State.CANCELLED


# Pruning


def test_past_deliveries_of_a_timer_that_goes_on_are_pruned(recurring, sql):
    timer = recurring(every(60.0, since=10))
    put_back(timer, 10)
    run()
    sql("UPDATE scheduler_delivery SET finished_at = finished_at - interval '31 days' WHERE state = 'succeeded'")
    assert retention.prune(older_than=timedelta(days=30)) == 0
    assert retention.prune_past(older_than=timedelta(days=30)) == 1
    assert states(timer) == [(2, "scheduled")]
    assert not Attempt.objects.exists()


def test_pruned_recurring_timer_takes_its_schedule_and_labels_along(recurring, sql):
    timer = recurring(DAILY, options={"labels": {"a": "b"}})
    services.cancel(timer.pk)
    sql("UPDATE scheduler_delivery SET finished_at = finished_at - interval '31 days'")
    assert retention.prune(older_than=timedelta(days=30)) == 1
    assert not CrontabSchedule.objects.exists()


def test_stock_scheduler_finds_nothing_to_do_for_a_row_that_is_not_due(recurring, settings):
    timer = recurring(DAILY)
    tasks.call_timer(str(timer.pk))
    assert states(timer) == [(1, "scheduled")]


def test_every_and_cron_cannot_both_be_stored(recurring):
    timer = recurring(DAILY)
    with (
        pytest.raises(Exception, match="timer_one_kind_of_schedule"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE scheduler_timer SET every_seconds = 5, starts_at = now() WHERE id = %s", [timer.pk])


def test_due_moments_are_utc(recurring, delivery_of):
    due_at = delivery_of(recurring(DAILY)).due_at
    assert due_at.tzinfo is not None
    assert due_at == datetime.fromisoformat(due_at.isoformat()).astimezone(UTC)
