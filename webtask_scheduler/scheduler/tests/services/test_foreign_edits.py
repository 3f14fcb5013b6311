"""What an operator does to a PeriodicTask or its schedule, through the admin or the ORM, takes effect on the timer.

Each edit is made by every door there is; then the rows are looked at, a claim is made, and the receiver is watched.
"""

import threading
import time
from contextlib import suppress
from datetime import timedelta
from unittest import mock

import pytest
from celery import current_app
from django.db import connection, transaction
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from webtask_scheduler.scheduler import receivers, services, tasks
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.models import TASK_NAME, Delivery, State, Timer
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue.attempts import record_outcomes, start_attempts
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import (
    DISABLE,
    ENABLE,
    TASKS,
    act,
    address_of,
    clocked_form,
    form,
    post,
    saved,
    soon,
    sweep,
    through,
)
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS

pytestmark = pytest.mark.django_db

CLOCKED = "/admin/django_celery_beat/clockedschedule/"


# What happens when the clock and a worker come by


@pytest.fixture
def work():
    """Return a function that claims what is due and calls it, as beat and a worker do; returns the claim."""
    client = Client(callers=2, user_agent="test", egress=EGRESS)

    def run():
        claim = claim_due()
        started, *_ = start_attempts([(item.delivery_id, item.token) for item in claim.held])
        record_outcomes([call_url(call, client=client, timeout_seconds=5) for call in started])
        return claim

    return run


def claimed_timers():
    ids = [item.delivery_id for item in claim_due().held]
    return list(Timer.objects.filter(deliveries__in=ids))


def moved_to(timer, moment):
    """Check that the timer promises this moment and no other."""
    *earlier, latest = Delivery.objects.promised().filter(timer=timer).order_by("number")
    assert [delivery.state for delivery in earlier] == [State.CANCELLED] * len(earlier)
    assert (latest.state, latest.due_at, latest.next_attempt_at) == (State.SCHEDULED, moment, moment)


# Doors. Each takes a task, and the admin's test client.


def another_clocked(moment):
    return ClockedSchedule.objects.create(clocked_time=moment)


MOVE = {
    "admin form": lambda task, client, moment: post(
        client, address_of(task), form(task, clocked=another_clocked(moment).pk)
    ),
    "admin page of the schedule": lambda task, client, moment: post(
        client, address_of(task.clocked), clocked_form(moment)
    ),
    "save with another schedule": lambda task, client, moment: saved(task, clocked=another_clocked(moment)),
    "save of the schedule": lambda task, client, moment: saved(task.clocked, clocked_time=moment),
}
BARE_MOVE = {
    "update of the schedule": lambda task, moment: ClockedSchedule.objects.filter(pk=task.clocked_id).update(
        clocked_time=moment
    ),
    "update with another schedule": lambda task, moment: PeriodicTask.objects.filter(pk=task.pk).update(
        clocked=another_clocked(moment)
    ),
}
DELETE = {
    "admin page": lambda task, client: post(client, address_of(task, "delete"), {"post": "yes"}),
    "admin action": lambda task, client: act(client, "delete_selected", task, post="yes"),
    "admin page of the schedule": lambda task, client: post(
        client, address_of(task.clocked, "delete"), {"post": "yes"}
    ),
    "admin action on the schedule": lambda task, client: post(
        client, CLOCKED, {"action": "delete_selected", "_selected_action": [task.clocked_id], "post": "yes"}
    ),
    "delete": lambda task, client: task.delete(),
    "delete of a queryset": lambda task, client: PeriodicTask.objects.filter(pk=task.pk).delete(),
    "delete of the schedule": lambda task, client: task.clocked.delete(),
    "delete of a queryset of schedules": lambda task, client: ClockedSchedule.objects.filter(
        pk=task.clocked_id
    ).delete(),
}


# Disabling


@through(DISABLE)
def test_disabling_pauses(make_timer, admin_client, work, receiver, door):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    door(timer.periodic_task, admin_client)
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.last_run_at) == (False, None)
    assert Delivery.objects.get().state == State.PAUSED
    assert work().held == []
    assert receiver.calls == []


@through(DISABLE)
def test_disabling_stops_what_is_claimed(make_timer, delivery_of, admin_client, door):
    timer = make_timer(delay_seconds=-1)
    pairs = [(item.delivery_id, item.token) for item in claim_due().held]
    door(timer.periodic_task, admin_client)
    assert start_attempts(pairs) == ([], {}, [], [])
    assert delivery_of(timer).state == State.PAUSED


@through(DISABLE)
def test_disabling_holds_the_retry_of_a_call_in_flight_back(make_timer, delivery_of, admin_client, receiver, door):
    timer = make_timer(receiver.url("/status/503"), delay_seconds=-1)
    started, *_ = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    door(timer.periodic_task, admin_client)
    client = Client(callers=1, user_agent="test", egress=EGRESS)
    record_outcomes([call_url(call, client=client, timeout_seconds=5) for call in started])
    Delivery.objects.update(next_attempt_at=timezone.now() - timedelta(milliseconds=1), due_at=soon(seconds=-9))
    ClockedSchedule.objects.update(clocked_time=delivery_of(timer).due_at)
    assert claim_due().held == []
    assert delivery_of(timer).state == State.PAUSED
    assert len(receiver.calls) == 1


def test_bare_disabling_is_seen_by_the_claim(make_timer, delivery_of, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    PeriodicTask.objects.update(enabled=False)
    claim = work()
    assert (claim.held, claim.disputed) == ([], [timer.periodic_task_id])
    tasks.obey(claim.disputed)
    assert delivery_of(timer).state == State.PAUSED
    assert receiver.calls == []


def test_bare_disabling_is_healed_by_the_sweep(make_timer, delivery_of):
    timer = make_timer()
    PeriodicTask.objects.update(enabled=False)
    sweep()
    assert delivery_of(timer).state == State.PAUSED


# Enabling


@through(ENABLE)
def test_enabling_resumes(make_timer, admin_client, work, receiver, door):
    timer = make_timer(receiver.url("/hook"), delay_seconds=-1)
    services.pause(timer.pk)
    door(PeriodicTask.objects.get(timer=timer), admin_client)
    assert Delivery.objects.get().state == State.SCHEDULED
    work()
    assert [call.path for call in receiver.calls] == ["/hook"]
    assert Delivery.objects.get().state == State.SUCCEEDED


@through(ENABLE)
def test_enabling_before_its_time_keeps_the_promise(make_timer, delivery_of, admin_client, door):
    timer = make_timer(delay_seconds=60)
    due_at = delivery_of(timer).due_at
    services.pause(timer.pk)
    door(PeriodicTask.objects.get(timer=timer), admin_client)
    moved_to(timer, due_at)
    assert claimed_timers() == []


def test_bare_enabling_is_healed_by_the_sweep(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    services.pause(timer.pk)
    PeriodicTask.objects.update(enabled=True)
    sweep()
    assert delivery_of(timer).state == State.SCHEDULED
    assert claimed_timers() == [timer]


def test_enabling_twice_changes_nothing(make_timer):
    task = make_timer().periodic_task
    before = list(Delivery.objects.values())
    saved(task, enabled=True)
    assert list(Delivery.objects.values()) == before


# Moving


@through(MOVE)
@each("hours", [1, 3])
def test_moving_promises_the_new_moment(make_timer, admin_client, door, hours):
    timer = make_timer(delay_seconds=7200)
    moment = soon(hours=hours)
    door(timer.periodic_task, admin_client, moment)
    moved_to(timer, moment)
    assert claimed_timers() == []
    assert PeriodicTask.objects.get(timer=timer).clocked.clocked_time == moment


@through(MOVE)
def test_moving_to_the_past_calls_at_once(make_timer, admin_client, work, receiver, door):
    timer = make_timer(receiver.url("/now"), delay_seconds=7200)
    moment = soon(seconds=-5)
    door(timer.periodic_task, admin_client, moment)
    moved_to(timer, moment)
    work()
    assert [call.path for call in receiver.calls] == ["/now"]


@through(MOVE)
def test_moving_what_is_claimed_stops_it(make_timer, admin_client, work, receiver, door):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    pairs = [(item.delivery_id, item.token) for item in claim_due().held]
    door(timer.periodic_task, admin_client, soon(hours=1))
    assert start_attempts(pairs) == ([], {}, [], [])
    assert work().held == []
    assert receiver.calls == []


@through(MOVE)
def test_moving_a_paused_timer_leaves_it_paused(make_timer, delivery_of, admin_client, door):
    timer = make_timer()
    services.pause(timer.pk)
    moment = soon(hours=5)
    door(PeriodicTask.objects.get(timer=timer), admin_client, moment)
    latest = delivery_of(timer)
    assert (latest.state, latest.due_at, latest.number) == (State.PAUSED, moment, 2)


@through(BARE_MOVE)
def test_bare_move_to_later_is_seen_by_the_claim(make_timer, work, receiver, door):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    moment = soon(hours=1)
    door(timer.periodic_task, moment)
    claim = work()
    assert (claim.held, claim.disputed) == ([], [timer.periodic_task_id])
    tasks.obey(claim.disputed)
    moved_to(timer, moment)
    assert receiver.calls == []


@through(BARE_MOVE)
@each("hours", [-1, 1, 3])
def test_bare_move_is_healed_by_the_sweep(make_timer, door, hours):
    timer = make_timer(delay_seconds=7200)
    moment = soon(hours=hours)
    door(timer.periodic_task, moment)
    sweep()
    moved_to(timer, moment)
    assert claimed_timers() == ([timer] if hours < 0 else [])


def test_move_by_hand_and_back_is_one_timer_with_one_promise(make_timer, delivery_of):
    timer = make_timer(delay_seconds=7200)
    clocked = timer.periodic_task.clocked
    due_at = delivery_of(timer).due_at
    saved(clocked, clocked_time=soon(hours=1))
    saved(clocked, clocked_time=due_at)
    moved_to(timer, due_at)
    assert Delivery.objects.open().count() == 1


def test_schedule_that_two_timers_share_moves_both(make_timer):
    timers = [make_timer(), make_timer()]
    shared = another_clocked(soon(hours=1))
    for timer in timers:
        saved(timer.periodic_task, clocked=shared)
    moment = soon(hours=2)
    saved(shared, clocked_time=moment)
    for timer in timers:
        moved_to(timer, moment)


# Deleting


@through(DELETE)
def test_deleting_cancels_and_keeps_the_record(make_timer, admin_client, work, receiver, door):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    door(timer.periodic_task, admin_client)
    assert not PeriodicTask.objects.exists()
    assert Timer.objects.get(pk=timer.pk).periodic_task is None
    assert Delivery.objects.get().state == State.CANCELLED
    assert work().held == []
    assert receiver.calls == []


@through(DELETE)
def test_deleting_lets_a_call_in_flight_end_and_no_retry_follow(make_timer, delivery_of, admin_client, receiver, door):
    timer = make_timer(receiver.url("/status/503"), delay_seconds=-1)
    started, *_ = start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
    door(timer.periodic_task, admin_client)
    assert delivery_of(timer).state == State.RUNNING
    client = Client(callers=1, user_agent="test", egress=EGRESS)
    record_outcomes([call_url(call, client=client, timeout_seconds=5) for call in started])
    assert delivery_of(timer).state == State.CANCELLED
    assert len(receiver.calls) == 1


def test_deleting_an_ended_timers_task_changes_nothing_of_it(make_timer, delivery_of, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    work()
    PeriodicTask.objects.get().delete()
    assert delivery_of(timer).state == State.SUCCEEDED


def test_deleting_many_through_the_admin(make_timer, admin_client):
    stored = [make_timer() for _ in range(20)]
    rows = [timer.periodic_task for timer in stored]
    page = admin_client.post(TASKS, {"action": "delete_selected", "_selected_action": [row.pk for row in rows]})
    assert "Are you sure" in page.content.decode()
    act(admin_client, "delete_selected", *rows, post="yes")
    assert not PeriodicTask.objects.exists()
    assert Timer.objects.count() == 20
    assert not Delivery.objects.open().exists()


# Running


def test_run_selected_calls_now_and_keeps_the_promise(make_timer, delivery_of, admin_client, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=3600)
    act(admin_client, "run_tasks", timer.periodic_task)
    work()
    assert len(receiver.calls) == 1
    assert delivery_of(timer).state == State.SCHEDULED
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count) == (True, 0)


def test_run_selected_calls_a_paused_timer_once_and_leaves_it_paused(
    make_timer, delivery_of, admin_client, work, receiver
):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    services.pause(timer.pk)
    act(admin_client, "run_tasks", timer.periodic_task)
    work()
    work()
    assert len(receiver.calls) == 1
    assert delivery_of(timer).state == State.PAUSED


# Many at once


@each(("action", "state"), [("disable_tasks", State.PAUSED), ("toggle_tasks", State.PAUSED)])
def test_bulk_actions_stop_many(make_timer, admin_client, action, state):
    rows = [make_timer(delay_seconds=-1).periodic_task for _ in range(5)]
    act(admin_client, action, *rows)
    assert {delivery.state for delivery in Delivery.objects.all()} == {state}
    assert claimed_timers() == []


def test_bulk_enable_resumes_many(make_timer, admin_client):
    timers = [make_timer(delay_seconds=-1) for _ in range(5)]
    PeriodicTask.objects.update(enabled=False)
    sweep()
    act(admin_client, "enable_tasks", *PeriodicTask.objects.all())
    assert len(claimed_timers()) == len(timers)


# Timers that have ended


@pytest.fixture
def ended(make_timer):
    def make(how):
        timer = make_timer(delay_seconds=-1)
        if how == "cancelled":
            services.cancel(timer.pk)
        elif how == "cancelled while running":
            start_attempts([(item.delivery_id, item.token) for item in claim_due().held])
            services.cancel(timer.pk)
        else:
            at = timezone.now()
            Delivery.objects.update(state=State.SUCCEEDED, finished_at=at, started_at=at, attempts=1)
            PeriodicTask.objects.update(enabled=False, last_run_at=at, total_run_count=1)
        return timer

    return make


ENDED = ["succeeded", "cancelled", "cancelled while running"]


@each("how", ENDED)
def test_ended_timer_is_not_enabled_by_a_save(ended, how):
    task = ended(how).periodic_task
    before = list(Delivery.objects.values())
    task.refresh_from_db()
    with pytest.raises(services.TimerEndedError), transaction.atomic():
        saved(task, enabled=True)
    assert not PeriodicTask.objects.get().enabled
    assert list(Delivery.objects.values()) == before


@each("how", ENDED)
def test_ended_timer_is_not_enabled_by_the_admin(ended, admin_client, how):
    task = ended(how).periodic_task
    before = list(Delivery.objects.values())
    assert b"has ended" in admin_client.post(address_of(task), form(task, enabled="on")).content
    for action in ("enable_tasks", "toggle_tasks"):
        data = {"action": action, "_selected_action": [task.pk], "confirmed": "yes"}
        answer = admin_client.post(TASKS, data, follow=True)
        assert b"has ended and stays as it is" in answer.content
    assert not PeriodicTask.objects.get().enabled
    assert list(Delivery.objects.values()) == before


@each("how", ENDED)
def test_ended_timer_that_a_bare_update_enabled_is_disabled_again(ended, how):
    ended(how)
    before = list(Delivery.objects.values())
    PeriodicTask.objects.update(enabled=True)
    assert claim_due().held == []
    sweep()
    # A call in flight is told apart once it has ended.
    Delivery.objects.filter(state=State.RUNNING).update(
        state=State.CANCELLED, finished_at=timezone.now(), lease_token=None, lease_expires_at=None
    )
    sweep()
    assert not PeriodicTask.objects.get().enabled
    assert [row["id"] for row in Delivery.objects.values()] == [row["id"] for row in before]


@each("how", ENDED)
@through(MOVE)
def test_ended_timer_is_not_moved(ended, admin_client, door, how):
    task = ended(how).periodic_task
    task.refresh_from_db()
    before = list(Delivery.objects.values()), task.clocked_id, task.clocked.clocked_time
    with pytest.raises((services.TimerEndedError, AssertionError)), transaction.atomic():
        # The admin answers with its form instead of a redirect; see test_admin for the message.
        door(task, admin_client, soon(hours=1))
    task.refresh_from_db()
    assert (list(Delivery.objects.values()), task.clocked_id, task.clocked.clocked_time) == before


@each("how", ENDED)
@through(BARE_MOVE)
def test_ended_timer_that_a_bare_update_moved_stays_ended(ended, door, how):
    task = ended(how).periodic_task
    count = Delivery.objects.count()
    door(task, soon(hours=-1))
    sweep()
    assert Delivery.objects.count() == count
    assert claim_due().held == []


def test_saving_an_ended_timers_row_leaves_it_true(ended):
    ended("succeeded")
    saved(PeriodicTask.objects.get(), description="why", total_run_count=0)
    ClockedSchedule.objects.get().save()
    assert Delivery.objects.get().state == State.SUCCEEDED
    task = PeriodicTask.objects.get()
    assert (task.enabled, task.total_run_count, task.last_run_at) == (False, 1, Delivery.objects.get().finished_at)


# An operator's own tasks and schedules


def test_own_clocked_task_is_none_of_our_business():
    clocked = another_clocked(soon(hours=1))
    task = PeriodicTask.objects.create(name="own", task="own.task", clocked=clocked, one_off=True)
    saved(task, enabled=False)
    saved(clocked, clocked_time=soon(hours=2))
    task.delete()
    clocked.delete()
    assert not Timer.objects.exists()


def test_row_with_our_task_name_and_no_timer_is_left_alone():
    clocked = another_clocked(soon(hours=1))
    task = PeriodicTask.objects.create(name="own", task=TASK_NAME, clocked=clocked, one_off=True)
    saved(task, enabled=False)
    sweep()
    task.delete()
    assert not Delivery.objects.exists()


# A stock scheduler beside ours, or instead


@pytest.fixture
def stock(monkeypatch):
    """Return a stock scheduler in a beat process, with what it sends captured."""
    monkeypatch.setattr(receivers, "_in_beat", True)
    # It closes connections as it likes; here that would end the test's transaction.
    monkeypatch.setattr("django_celery_beat.schedulers.close_old_connections", lambda: None)

    def make():
        scheduler = DatabaseScheduler(app=current_app._get_current_object(), lazy=True)
        # The interpreter would write its entries back when it ends.
        scheduler._finalize.cancel()
        scheduler.sent = []

        def send(entry, producer=None, advance=True, **_):
            advanced = scheduler.reserve(entry) if advance else entry
            scheduler.sent.append((advanced.task, advanced.args, advanced.kwargs))
            return mock.Mock(id="x")

        scheduler.apply_async = send
        scheduler.__dict__["producer"] = None
        return scheduler

    return make


def tick(scheduler):
    """Tick until it has nothing to do, and write its book-keeping back."""
    for _ in range(20):
        if scheduler.tick() != 0:
            break
    scheduler.sync()


def run_sent(scheduler, work_pool):
    for task, args, kwargs in scheduler.sent:
        assert task == TASK_NAME
        with mock.patch.object(tasks, "_pool", work_pool):
            tasks.call_timer(*args, **kwargs)
    scheduler.sent = []


class Pool:
    """Calls at once, in the test's own thread."""

    def __init__(self):
        self.client = Client(callers=1, user_agent="test", egress=EGRESS)

    def hand_over(self, items, at):
        time.sleep(max(0.0, at - time.monotonic()))
        started, *_ = start_attempts([(delivery_id, token) for delivery_id, token, *_ in items])
        record_outcomes([call_url(call, client=self.client, timeout_seconds=5) for call in started])


def check_ran_once(timer, receiver):
    assert len(receiver.calls) == 1
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count) == (False, 1)
    assert task.last_run_at is not None
    delivery = Delivery.objects.get(timer=timer)
    assert delivery.state == State.SUCCEEDED
    sweep()
    assert Delivery.objects.get(timer=timer).state == State.SUCCEEDED


def test_stock_scheduler_instead_of_ours_calls_once_and_the_row_ends_true(make_timer, stock, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    tick(scheduler)
    assert len(scheduler.sent) == 1
    run_sent(scheduler, Pool())
    for _ in range(3):
        scheduler._heap = None
        tick(scheduler)
    run_sent(scheduler, Pool())
    check_ran_once(timer, receiver)


def test_stock_scheduler_that_disables_the_row_before_the_call_does_not_pause_it(
    make_timer, delivery_of, stock, receiver
):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    for _ in range(3):
        scheduler._heap = None
        tick(scheduler)
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.last_run_at is not None) == (False, True)
    sweep()
    assert delivery_of(timer).state == State.SCHEDULED
    run_sent(scheduler, Pool())
    check_ran_once(timer, receiver)


def test_stock_scheduler_beside_ours_neither_doubles_nor_goes_early(make_timer, stock, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    tick(scheduler)
    work()
    run_sent(scheduler, Pool())
    scheduler._heap = None
    tick(scheduler)
    work()
    run_sent(scheduler, Pool())
    check_ran_once(timer, receiver)


def test_stock_scheduler_that_comes_after_ours_does_not_bring_the_timer_back(make_timer, stock, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    # It has read the row while the timer waited.
    assert scheduler.schedule
    work()
    for _ in range(3):
        scheduler._heap = None
        tick(scheduler)
    run_sent(scheduler, Pool())
    work()
    check_ran_once(timer, receiver)


def test_stock_entry_that_is_saved_late_does_not_enable_an_ended_timer(make_timer, stock, work, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    (entry,) = scheduler.all_as_schedule().values()
    assert entry.is_due().is_due
    advanced = next(entry)
    work()
    advanced.save()
    advanced.model.enabled = True
    advanced.is_due()
    check_ran_once(timer, receiver)


def test_stock_scheduler_does_not_wake_a_paused_timer(make_timer, delivery_of, stock, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    scheduler = stock()
    assert scheduler.schedule
    receivers._in_beat = False
    services.pause(timer.pk)
    receivers._in_beat = True
    tick(scheduler)
    run_sent(scheduler, Pool())
    assert receiver.calls == []
    assert delivery_of(timer).state == State.PAUSED


def test_call_timer_before_its_time_does_nothing(make_timer, delivery_of, receiver):
    timer = make_timer(receiver.url(), delay_seconds=60)
    with mock.patch.object(tasks, "_pool", Pool()):
        tasks.call_timer(str(timer.pk))
    assert receiver.calls == []
    assert delivery_of(timer).state == State.SCHEDULED


# Against each other


@pytest.mark.django_db(transaction=True)
def test_saves_of_a_row_and_calls_at_the_same_time_do_not_deadlock(make_timer, receiver, work):
    timers = [make_timer(receiver.url(), delay_seconds=-1) for _ in range(20)]
    failures = []

    def edit(enabled):
        try:
            for timer in timers:
                task = PeriodicTask.objects.get(pk=timer.periodic_task_id)
                with suppress(services.TimerEndedError):
                    saved(task, enabled=enabled)
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=edit, args=[enabled]) for enabled in (False, True, False)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        work()
    for thread in threads:
        thread.join()
    assert failures == []
    sweep()
    work()
    for timer in timers:
        state = Delivery.objects.filter(timer=timer).latest_promised()[0].state
        assert state in (State.SUCCEEDED, State.PAUSED)
        assert PeriodicTask.objects.get(timer=timer).enabled is False
