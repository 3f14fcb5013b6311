"""Two at once: what was answered to one of them holds, whatever the other does.

Each interleaving is forced: one transaction is kept open, the other is begun in a thread and seen to wait for a lock.
"""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.delivery import pool as pool_module
from webtask_scheduler.scheduler.delivery.pool import CallPool
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue.attempts import Batch, Outcome, record_outcomes, start_attempts
from webtask_scheduler.scheduler.queue.reclaim import reclaim_expired
from webtask_scheduler.scheduler.services import retention
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.acting import every
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

WAIT_SECONDS = 10.0


@contextmanager
def beside():
    """Give a function that begins another in a thread, with a connection of its own, and returns its future."""

    def work(function, arguments, more):
        try:
            return function(*arguments, **more)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        yield lambda function, *arguments, **more: threads.submit(work, function, arguments, more)


def waiting():
    """Return how many other sessions wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
        return cursor.fetchone()[0]


def until_waiting(*futures, count=None):
    """Wait until that many wait for a lock; whoever has ended instead tells why."""
    wanted = count or len(futures)
    wait_until(lambda: waiting() >= wanted or any(future.done() for future in futures))
    for future in futures:
        assert not future.done(), future.result()


@pytest.fixture
def secondly(make_timer):
    """Return a function that makes a timer that recurs every second and is due."""

    def make(**fields):
        timer = make_timer(recurrence=every(1.0), delay_seconds=None, **fields)
        due = timezone.now() - timedelta(seconds=1)
        Delivery.objects.filter(timer=timer).update(due_at=due, next_attempt_at=due)
        return timer

    return make


def begin(timer):
    """Start the call of a timer."""
    (started,) = start_attempts([(i.delivery_id, i.token) for i in claim_due(timer_id=timer.pk).held]).started
    return started


def succeed(call):
    return record_outcomes([Outcome(call, call.started_at, 5, 200, "", "", "ok")])


def fail(call):
    return record_outcomes([Outcome(call, call.started_at, 5, 500, "status", "The receiver answered 500.", "")])


def states(timer):
    return list(Delivery.objects.filter(timer=timer).order_by("number").values_list("number", "state"))


def dead_letters(timer, count):
    """Let so many deliveries of a timer fail that is called once each."""
    for _ in range(count):
        fail(begin(timer))
        due = timezone.now() - timedelta(seconds=1)
        Delivery.objects.filter(timer=timer, finished_at=None).update(due_at=due, next_attempt_at=due)


# Pause


PAUSES = {
    "one": lambda timer: services.pause(timer.pk),
    "many": lambda timer: services.switch_many([timer.periodic_task_id], enabled=False),
    "bare update": lambda timer: PeriodicTask.objects.filter(timer=timer).update(enabled=False),
}


@pytest.mark.parametrize("pause", PAUSES.values(), ids=PAUSES)
def test_pause_answered_during_a_record_holds(secondly, pause):
    timer = secondly()
    call = begin(timer)
    with beside() as start:
        with transaction.atomic():
            pause(timer)
            record = start(succeed, call)
            until_waiting(record)
        assert record.result(WAIT_SECONDS) == 1
    assert states(timer) == [(1, "succeeded"), (2, "paused")]
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.last_run_at) == (False, None)


@pytest.mark.parametrize("pause", [PAUSES["one"], PAUSES["many"]], ids=["one", "many"])
def test_pause_that_waited_for_a_record_holds_what_it_made(secondly, pause):
    timer = secondly()
    call = begin(timer)
    with beside() as start:
        with transaction.atomic():
            succeed(call)
            pausing = start(pause, timer)
            until_waiting(pausing)
        pausing.result(WAIT_SECONDS)
    assert states(timer) == [(1, "succeeded"), (2, "paused")]
    assert not PeriodicTask.objects.get(timer=timer).enabled


def test_resume_answered_during_a_record_holds(secondly):
    timer = secondly()
    call = begin(timer)
    services.pause(timer.pk)
    with beside() as start:
        with transaction.atomic():
            services.resume(timer.pk)
            record = start(succeed, call)
            until_waiting(record)
        assert record.result(WAIT_SECONDS) == 1
    assert states(timer) == [(1, "succeeded"), (2, "scheduled")]
    assert PeriodicTask.objects.get(timer=timer).enabled


def test_edit_to_another_moment_during_a_record_holds(secondly):
    timer = secondly()
    call = begin(timer)
    new = services.NewTimer(web_url=timer.web_url, recurrence=every(3600.0))
    with beside() as start:
        with transaction.atomic():
            services.edit(timer.pk, lambda _: (new, True))
            record = start(succeed, call)
            until_waiting(record)
        assert record.result(WAIT_SECONDS) == 1
    assert states(timer) == [(1, "cancelled"), (2, "scheduled")]
    assert Delivery.objects.get(timer=timer, number=2).due_at > timezone.now() + timedelta(minutes=50)


# Run, and the numbers of deliveries


RUNS = {
    "one": lambda timer: services.run_now(timer.pk),
    "many": lambda timer: services.run_many_now([timer.pk]),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_run_during_a_record_numbers_each_delivery_once(secondly, run):
    timer = secondly()
    call = begin(timer)
    with beside() as start:
        with transaction.atomic():
            run(timer)
            record = start(succeed, call)
            until_waiting(record)
        assert record.result(WAIT_SECONDS) == 1
    assert states(timer) == [(1, "succeeded"), (2, "scheduled"), (3, "scheduled")]
    assert list(Delivery.objects.order_by("number").values_list("extra", flat=True)) == [False, True, False]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_run_that_waited_for_a_record_numbers_each_delivery_once(secondly, run):
    timer = secondly()
    call = begin(timer)
    with beside() as start:
        with transaction.atomic():
            succeed(call)
            running = start(run, timer)
            until_waiting(running)
        running.result(WAIT_SECONDS)
    assert states(timer) == [(1, "succeeded"), (2, "scheduled"), (3, "scheduled")]


def test_records_and_edits_of_the_same_timers_in_opposite_order_do_not_deadlock(secondly):
    timers = sorted((secondly() for _ in range(2)), key=lambda timer: timer.pk)
    calls = [begin(timer) for timer in reversed(timers)]
    outcomes = [Outcome(call, call.started_at, 5, 200, "", "", "ok") for call in calls]
    with beside() as start:
        with transaction.atomic():
            services.run_now(timers[0].pk)
            record = start(record_outcomes, outcomes)
            until_waiting(record)
            # Whatever the record holds, it is not this one.
            services.run_now(timers[1].pk)
        assert record.result(WAIT_SECONDS) == 2
    for timer in timers:
        assert states(timer) == [(1, "succeeded"), (2, "scheduled"), (3, "scheduled")]


def test_record_of_a_timer_called_once_does_not_wait_for_its_row(make_timer):
    timer = make_timer(delay_seconds=-1)
    call = begin(timer)
    with beside() as start, transaction.atomic():
        Timer.objects.select_for_update(no_key=True).get(pk=timer.pk)
        assert start(succeed, call).result(WAIT_SECONDS) == 1


def test_reclaim_of_leases_leaves_a_timer_alone_that_is_being_edited(secondly):
    timer, other = secondly(), secondly()
    for each in (timer, other):
        begin(each)
    Delivery.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    with beside() as start, transaction.atomic():
        services.run_now(timer.pk)
        assert sum(start(reclaim_expired).result(WAIT_SECONDS)) == 1
        assert states(other)[0] == (1, "scheduled")
    assert sum(reclaim_expired()) == 1


# Replay


def age(days=31):
    for delivery in Delivery.objects.exclude(finished_at=None):
        Delivery.objects.filter(pk=delivery.pk).update(finished_at=delivery.finished_at - timedelta(days=days))


REPLAYS = {
    "one": lambda timer: services.replay(timer.pk),
    "many": lambda timer: services.replay_many([timer.pk]),
}
ONCE = {"retry": {"max_attempts": 1}}


@pytest.mark.parametrize("replay", REPLAYS.values(), ids=REPLAYS)
def test_replay_answered_during_pruning_stands(make_timer, replay):
    timer = make_timer(delay_seconds=-1, options=ONCE)
    fail(begin(timer))
    age()
    with beside() as start:
        with transaction.atomic():
            replay(timer)
            pruning = start(retention.prune, older_than=timedelta(days=30))
            # It waits for the replay, or lets the timer alone.
            wait_until(lambda: waiting() or pruning.done())
        assert pruning.result(WAIT_SECONDS) == 0
    assert states(timer) == [(1, "scheduled")]


def test_replay_committed_while_pruning_waited_stands(make_timer, monkeypatch):
    timer = make_timer(delay_seconds=-1, options=ONCE)
    fail(begin(timer))
    age()
    with beside() as start:
        # Between the choice of what to delete and its deletion.
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE scheduler_timer IN ACCESS EXCLUSIVE MODE")
            replay = start(services.replay, timer.pk)
            until_waiting(replay)
            pruning = start(retention.prune, older_than=timedelta(days=30))
            until_waiting(replay, pruning)
        outcome = replay.exception(WAIT_SECONDS)
        pruned = pruning.result(WAIT_SECONDS)
    # One of them was first; what was answered is so.
    if pruned:
        assert isinstance(outcome, Timer.DoesNotExist)
    else:
        assert (outcome, states(timer)) == (None, [(1, "scheduled")])


def test_replay_of_a_timer_that_was_pruned_meanwhile_finds_none(client, make_timer):
    timer = make_timer(delay_seconds=-1, options=ONCE)
    fail(begin(timer))
    age()
    with beside() as start:
        with transaction.atomic():
            assert retention.prune(older_than=timedelta(days=30)) == 1
            replay = start(client.post, f"/timer/{timer.pk}/replay", {}, "application/json")
            until_waiting(replay)
        assert replay.result(WAIT_SECONDS).status_code == 404


def test_replay_of_a_past_delivery_during_its_pruning_stands(secondly):
    timer = secondly(options=ONCE)
    dead_letters(timer, 1)
    age()
    with beside() as start, transaction.atomic():
        services.replay(timer.pk)
        assert start(retention.prune_past, older_than=timedelta(days=30)).result(WAIT_SECONDS) == 0
    assert states(timer) == [(1, "scheduled"), (2, "scheduled")]


def test_two_replays_at_once_send_one_dead_letter(client, secondly):
    timer = secondly(options=ONCE)
    dead_letters(timer, 3)
    path = f"/timer/{timer.pk}/replay"
    with beside() as start:
        with transaction.atomic():
            assert client.post(path, {}, "application/json").status_code == 200
            second = start(client.post, path, {}, "application/json")
            until_waiting(second)
        assert second.result(WAIT_SECONDS).status_code == 409
    assert states(timer) == [(1, "failed"), (2, "failed"), (3, "scheduled"), (4, "scheduled")]
    # When it has ended, an older one may follow.
    succeed(begin_extra(timer))
    assert client.post(path, {}, "application/json").status_code == 200
    assert states(timer)[1] == (2, "scheduled")


def begin_extra(timer):
    claim = claim_due(timer_id=timer.pk)
    started = start_attempts([(item.delivery_id, item.token) for item in claim.held]).started
    (extra,) = [call for call in started if call.terms is None]
    return extra


# Edits


@pytest.mark.parametrize("deleted", [False, True], ids=["waits", "its row was deleted"])
def test_two_edits_at_once_both_hold_also_of_a_timer_whose_row_is_gone(client, make_timer, deleted):
    timer = make_timer()
    if deleted:
        timer.periodic_task.delete()

    def patch(body):
        return client.patch(f"/timer/{timer.pk}", body, "application/json")

    with beside() as start:
        with transaction.atomic():
            Timer.objects.select_for_update().get(pk=timer.pk)
            edits = [start(patch, {"name": "n"}), start(patch, {"metadata": 1})]
            until_waiting(*edits)
        assert [edit.result(WAIT_SECONDS).status_code for edit in edits] == [200, 200]
    timer.refresh_from_db()
    assert (timer.name, timer.options) == ("n", {"metadata": 1})


# Calls that were not made


@contextmanager
def worker():
    pool = CallPool(callers=2, client=Client(callers=2, user_agent="t", egress=EGRESS), timeout_seconds=5)
    try:
        yield pool
    finally:
        pool.close()


def hand_over(pool, timer):
    claim = claim_due(timer_id=timer.pk)
    pool.hand_over([(item.delivery_id, item.token, item.host, item.flow) for item in claim.held])


def test_call_that_was_given_up_is_not_recorded_as_lost(receiver, make_timer, delivery_of, monkeypatch):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    # A worker whose lease has run out, as far as it knows, by the time that a thread takes the call.
    monkeypatch.setattr(pool_module, "RUNNING_LEASE_SECONDS", 0.0)
    with worker() as pool:
        hand_over(pool, timer)
        wait_until(lambda: delivery_of(timer).state == State.SCHEDULED)
        assert delivery_of(timer).attempts == 0
        monkeypatch.undo()
        hand_over(pool, timer)
        receiver.wait_for(1)
        wait_until(lambda: delivery_of(timer).state == State.SUCCEEDED)
    assert list(Attempt.objects.values_list("number", "error")) == [(1, "")]
    assert [call.json["attempt"] for call in receiver.calls] == [1]


def test_call_that_was_given_up_of_a_cancelled_timer_ends_it(receiver, make_timer, delivery_of, monkeypatch):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    monkeypatch.setattr(pool_module, "RUNNING_LEASE_SECONDS", 0.0)

    def start_and_cancel(items):
        batch = start_attempts(items)
        services.cancel(timer.pk)
        return batch

    monkeypatch.setattr(pool_module, "start_attempts", start_and_cancel)
    with worker() as pool:
        hand_over(pool, timer)
        wait_until(lambda: delivery_of(timer).state == State.CANCELLED)
    assert not receiver.calls
    assert not Attempt.objects.exists()


def test_start_whose_answer_was_lost_is_not_recorded_as_lost(receiver, make_timer, delivery_of, monkeypatch):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    failed = []

    def start_and_hear_nothing(items):
        batch = start_attempts(items)
        if not failed:
            failed.append(batch)
            raise OperationalError("server closed the connection unexpectedly")
        return batch

    monkeypatch.setattr(pool_module, "start_attempts", start_and_hear_nothing)
    with worker() as pool:
        hand_over(pool, timer)
        wait_until(lambda: delivery_of(timer).state == State.SCHEDULED)
        hand_over(pool, timer)
        receiver.wait_for(1)
        wait_until(lambda: delivery_of(timer).state == State.SUCCEEDED)
    assert list(Attempt.objects.values_list("number", "error")) == [(1, "")]


def test_delivery_that_is_handed_over_again_while_it_is_given_back_is_called(
    receiver, make_timer, delivery_of, monkeypatch
):
    timer = make_timer(receiver.url(), delay_seconds=-1)
    put_back = pool_module.put_back

    def put_back_and_hand_over(*arguments, **more):
        put_back(*arguments, **more)
        monkeypatch.undo()
        hand_over(pool, timer)

    monkeypatch.setattr(pool_module, "put_back", put_back_and_hand_over)
    # Not due yet, by more than a thread waits for: given back.
    monkeypatch.setattr(pool_module, "start_attempts", lambda items: Batch([], {items[0]: 1.0}, [], []))
    with worker() as pool:
        hand_over(pool, timer)
        receiver.wait_for(1)
        wait_until(lambda: delivery_of(timer).state == State.SUCCEEDED)
    assert list(Attempt.objects.values_list("number", "error")) == [(1, "")]


def test_message_that_comes_twice_leaves_the_call_in_flight_alone(receiver, make_timer, delivery_of, monkeypatch):
    timer = make_timer(receiver.url("/sleep/3"), delay_seconds=-1)
    monkeypatch.setattr(pool_module, "RENEW_SECONDS", 0.2)
    claim = claim_due(timer_id=timer.pk)
    message = [(item.delivery_id, item.token, item.host, item.flow) for item in claim.held]
    with worker() as pool:
        pool.hand_over(message)
        receiver.wait_for(1)
        before = delivery_of(timer).lease_expires_at
        pool.hand_over(message)
        # Its lease is renewed as before.
        wait_until(lambda: (delivery_of(timer).lease_expires_at or before) > before, seconds=2.9)
        wait_until(lambda: delivery_of(timer).state == State.SUCCEEDED)
    assert len(receiver.calls) == 1


# The database's clock is set back: the same as a promise that moves into the future under the running call.


@pytest.mark.parametrize("kind", ["once", "recurring", "lost"])
def test_record_of_a_promise_that_has_moved_into_the_future_is_written(make_timer, secondly, kind, delivery_of):
    timer = secondly() if kind == "recurring" else make_timer(delay_seconds=-1)
    call = begin(timer)
    future = timezone.now() + timedelta(hours=1)
    Delivery.objects.filter(timer=timer).update(due_at=future, next_attempt_at=future)
    if kind == "lost":
        Delivery.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
        assert sum(reclaim_expired()) == 1
    else:
        assert fail(call) == 1
    delivery = delivery_of(timer)
    assert (delivery.state, delivery.next_attempt_at) == (State.SCHEDULED, future)
    attempt = Attempt.objects.get()
    assert (attempt.meant_for, attempt.started_at) == (future, future)


def test_success_of_a_promise_that_has_moved_into_the_future_is_written_with_what_follows(secondly):
    timer = secondly()
    call = begin(timer)
    future = timezone.now() + timedelta(hours=1)
    Delivery.objects.filter(timer=timer).update(due_at=future, next_attempt_at=future)
    assert succeed(call) == 1
    assert states(timer) == [(1, "succeeded"), (2, "scheduled")]


def test_start_that_waits_for_a_row_knows_when_it_began(make_timer):
    """What the database's clock says of the start is carried on by this process's clock, from the same instant."""
    timer = make_timer(delay_seconds=-1)
    held = claim_due(timer_id=timer.pk).held
    other = connection.copy()
    other.inc_thread_sharing()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT id FROM scheduler_delivery WHERE timer_id = %s FOR UPDATE", [timer.pk])
            release = threading.Timer(0.5, other.rollback)
            release.start()
            (call,) = start_attempts([(item.delivery_id, item.token) for item in held]).started
            release.join()
    finally:
        other.close()
    with connection.cursor() as cursor:
        began = time.monotonic()
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
        ended = time.monotonic()
    passed = (now - call.started_at).total_seconds()
    # Half the lock's wait is far more than a round trip takes.
    assert began - call.started - 0.25 < passed < ended - call.started + 0.25


# Spread


def test_spread_leaves_alone_what_is_claimed_while_it_waits(make_timer):
    at = timezone.now() + timedelta(seconds=30)
    timers = [make_timer(due_at=at) for _ in range(2)]
    claimed, waits = timers
    with beside() as start:
        with transaction.atomic():
            # As a claim does, which takes no timer's lock.
            Delivery.objects.filter(timer=claimed).update(
                state=State.CLAIMED, lease_token=uuid.uuid4(), lease_expires_at=at + timedelta(seconds=60)
            )
            ids = [timer.pk for timer in timers]
            end = at + timedelta(microseconds=1)
            spread = start(services.spread_many, ids, begin=at, end=end, spread_seconds=600)
            until_waiting(spread)
        assert spread.result(WAIT_SECONDS) == 1
    assert states(claimed) == [(1, "claimed")]
    assert states(waits) == [(1, "cancelled"), (2, "scheduled")]
