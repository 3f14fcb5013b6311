"""The call pool against a real receiver: slots, leases, slow hosts, an orderly end.

The pool works in threads with connections of their own, so these tests commit.
"""

import contextlib
import threading
import time
from datetime import timedelta
from functools import partial

import psycopg2
import pytest
from django.db import DatabaseError, IntegrityError, connection
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from psycopg2 import extensions

from config.database.base import bound_waits
from webtask_scheduler.scheduler import facts, tasks
from webtask_scheduler.scheduler.delivery import hosts
from webtask_scheduler.scheduler.delivery import pool as module
from webtask_scheduler.scheduler.delivery.pool import CallPool
from webtask_scheduler.scheduler.models import ATTEMPTS_BOUND, Attempt, Delivery, HostHour, State, Timer
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.queue.faults import is_away
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS, Receiver
from webtask_scheduler.scheduler.tests.support.service import database_url
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def claim_for_pool(**options):
    return [(item.delivery_id, item.token, item.host, item.flow) for item in claim_due(**options).held]


@pytest.fixture
def pool():
    pools = []

    def make(callers=4, timeout_seconds=10.0, note=None):
        client = Client(callers=callers, user_agent="t", egress=EGRESS)
        pool = CallPool(callers=callers, client=client, timeout_seconds=timeout_seconds, note=note)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def states():
    return sorted(Delivery.objects.values_list("state", flat=True))


def test_pool_calls_each_delivery_once_and_records_it(pool, make_timer, receiver):
    for number in range(20):
        make_timer(receiver.url(f"/{number}"), delay_seconds=-1)
    pool(callers=4).hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SUCCEEDED] * 20)
    assert sorted(seen.path for seen in receiver.calls) == sorted(f"/{number}" for number in range(20))


def test_pool_begins_no_more_calls_a_second_to_one_host_than_may_be(pool, make_timer, receiver):
    with Receiver() as other:
        for _ in range(24):
            make_timer(receiver.url("/"), delay_seconds=-1)
            make_timer(other.url("/"), delay_seconds=-1)
        running = pool(callers=8)
        running.share_hosts(per_second=16, in_flight=0, workers=2)
        # Of this second process nothing is seen but that half is left to it.
        running.hand_over(claim_for_pool())
        wait_until(lambda: len(receiver.calls) >= 8 and len(other.calls) >= 8)
        begun = time.monotonic()
        wait_until(lambda: states() == [State.SUCCEEDED] * 48)
        took = time.monotonic() - begun
    # Eight at once, and then eight a second.
    assert took >= 1.8
    assert took < 10


def test_worker_shares_what_one_host_may_get_with_the_workers_that_live(pool, settings, monkeypatch):
    settings.WEBTASK_HOST_MAX_PER_SECOND, settings.WEBTASK_HOST_MAX_IN_FLIGHT = 30.0, 12
    running = pool()
    monkeypatch.setattr(tasks, "_pool", running)
    for name in ("a", "b"):
        facts.note_worker(name=name, kind=facts.CALLS, starter_idle_seconds=0, held=0, running=0)
    facts.note_worker(name="c", kind=facts.UPKEEP, starter_idle_seconds=0, held=0, running=0)
    tasks._note_calls(Client(callers=1, user_agent="t", egress=EGRESS), 0.0, 0, 0)
    # Itself is the third.
    assert (running._line._per_second, running._line._in_flight) == (10.0, 4)


def test_pool_starts_no_more_than_it_has_slots(pool, make_timer, receiver, monkeypatch):
    # No call that waits gives its slot to another.
    monkeypatch.setattr(hosts, "PATIENCE_SECONDS", 60.0)
    for _ in range(5):
        make_timer(receiver.url("/sleep/0.5"), delay_seconds=-1)
    running = pool(callers=2)
    threading.Thread(target=running.hand_over, args=[claim_for_pool()]).start()
    wait_until(lambda: states() == [State.SUCCEEDED] * 5)
    at = sorted(call.at for call in receiver.calls)
    # Each but the first two begins when the second before it has ended.
    assert [later - earlier for earlier, later in zip(at, at[2:], strict=False) if later - earlier < 0.5] == []


def test_pool_renews_what_it_holds(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(module, "RUNNING_LEASE_SECONDS", 0.5)
    make_timer(receiver.url("/sleep/1.5"), delay_seconds=-1)
    pool().hand_over(claim_for_pool())
    receiver.wait_for(1)

    def expires():
        return Delivery.objects.get().lease_expires_at

    wait_until(lambda: states() == [State.RUNNING])
    leases = [expires()]
    for _ in range(3):
        # Each time it is written anew, and lies later.
        wait_until(lambda: (expires() or leases[-1]) > leases[-1])
        leases.append(expires())
    wait_until(lambda: states() == [State.SUCCEEDED])


def test_pool_records_a_success_though_the_database_was_away(pool, make_timer, receiver):
    make_timer(receiver.url("/sleep/0.5"), delay_seconds=-1)
    pool().hand_over(claim_for_pool())
    receiver.wait_for(1)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    wait_until(lambda: states() == [State.SUCCEEDED])
    assert Attempt.objects.get().status_code == 200


def test_pool_that_closes_gives_back_interrupts_and_ends(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.3)
    for _ in range(3):
        make_timer(receiver.url("/sleep/30"), delay_seconds=-1)
    closing = pool(callers=1, timeout_seconds=60)
    handing = threading.Thread(target=closing.hand_over, args=[claim_for_pool()])
    handing.start()
    receiver.wait_for(1)
    begun = time.monotonic()
    closing.stop_taking()
    handing.join(20)
    closing.close()
    # Long before the calls would end.
    assert time.monotonic() - begun < 20
    assert states() == [State.SCHEDULED] * 3
    assert {attempt.error for attempt in Attempt.objects.all()} == {"interrupted"}
    assert len(claim_for_pool()) == 3


def test_pool_waits_out_a_moment_that_was_rung_too_soon(pool, make_timer, receiver):
    timer = make_timer(receiver.url(), delay_seconds=0.04)
    pool().hand_over(claim_for_pool(ahead_seconds=1.0))
    (seen,) = receiver.wait_for(1)
    assert seen.at >= Delivery.objects.get(timer=timer).due_at.timestamp()


def test_pool_leaves_a_far_moment_to_the_queue(pool, make_timer, receiver, delivery_of):
    timer = make_timer(receiver.url(), delay_seconds=60)
    pool().hand_over(claim_for_pool(ahead_seconds=61.0))
    wait_until(lambda: delivery_of(timer).state == State.SCHEDULED)
    assert receiver.calls == []


def test_handing_over_waits_for_nothing(pool, make_timer, receiver):
    for _ in range(50):
        make_timer(receiver.url("/sleep/30"), delay_seconds=-1)
    items = claim_for_pool()
    pool(callers=1).hand_over(items)
    # It was given all of them, and at most the first one's call has begun: none can have ended.
    assert Attempt.objects.count() == 0


def test_hanging_host_takes_neither_all_slots_nor_the_turn_of_others(pool, make_timer, receiver):
    for _ in range(60):
        make_timer(receiver.url("/sleep/20"), delay_seconds=-2)
    running = pool(callers=8, timeout_seconds=30)
    running.hand_over(claim_for_pool())
    receiver.wait_for(hosts.WAITING_LEAST)
    # Another name for the same receiver is another host.
    for _ in range(20):
        make_timer(receiver.url("/quick").replace("127.0.0.1", "localhost"), delay_seconds=-1)
    running.hand_over(claim_for_pool())
    # Before the first of the others ends.
    receiver.wait_for(20, path="/quick")
    # What the host cannot take waits here, under a lease, and nothing is counted.
    waiting = Delivery.objects.filter(state=State.CLAIMED)
    assert waiting.count() >= 40
    assert set(waiting.values_list("attempts", flat=True)) == {0}


def test_healthy_host_gets_a_whole_burst(pool, make_timer, receiver):
    for _ in range(100):
        make_timer(receiver.url(), delay_seconds=-1)
    pool(callers=4).hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SUCCEEDED] * 100)


def test_slow_calls_leave_their_slots_to_others(pool, make_timer, receiver):
    with contextlib.ExitStack() as stack:
        receivers = [receiver, *(stack.enter_context(Receiver()) for _ in range(5))]
        for host in receivers:
            make_timer(host.url("/sleep/20"), delay_seconds=-1)
        running = pool(callers=2, timeout_seconds=30)
        running.hand_over(claim_for_pool())
        for host in receivers:
            host.wait_for(1)
        wait_until(lambda: running._line._room.used == 6)


def test_hosts_that_hang_and_fill_the_waiting_room_leave_slots_to_quick_ones(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "ROOM_PER_SLOT", 2)
    rollups.tally.forget()
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(Receiver()) for _ in range(12)]
        make_timer(receiver.url("/first"), delay_seconds=-1)
        running = pool(callers=2, timeout_seconds=30)
        running.hand_over(claim_for_pool())
        receiver.wait_for(1)
        for host in hanging:
            make_timer(host.url("/sleep/20"), delay_seconds=-1)
        running.hand_over(claim_for_pool())
        # The room has four places, of which one owner gets half; what finds none is put off, and nothing is counted.
        wait_until(lambda: states().count(State.SCHEDULED) >= 8)
        assert set(Delivery.objects.filter(state=State.SCHEDULED).values_list("attempts", flat=True)) == {0}
        rollups.tally.flush()
        put_off = dict(HostHour.objects.filter(put_off__gt=0).values_list("host", "put_off"))
        assert len(put_off) >= 8
        assert rollups.ever().put_off == sum(put_off.values())
        make_timer(receiver.url("/second"), delay_seconds=-1)
        running.hand_over(claim_for_pool())
        receiver.wait_for(1, path="/second")


def test_first_call_to_a_host_is_given_up_early_where_the_room_is_full_and_not_counted(
    pool, make_timer, receiver, monkeypatch
):
    monkeypatch.setattr(module, "ROOM_PER_SLOT", 2)
    monkeypatch.setattr(hosts, "NEW_SECONDS", 0.3)
    with Receiver() as first, Receiver() as second:
        make_timer(first.url("/sleep/20"), delay_seconds=-1)
        running = pool(callers=1, timeout_seconds=30)
        running.hand_over(claim_for_pool())
        first.wait_for(1)
        # The rest of the room is for first calls.
        timer = make_timer(second.url("/sleep/20"), delay_seconds=-1)
        running.hand_over(claim_for_pool())
        second.wait_for(1)
        wait_until(lambda: Attempt.objects.filter(delivery__timer=timer).exists())
        attempt = Attempt.objects.get(delivery__timer=timer)
        assert (attempt.error, "given up early" in attempt.message) == ("interrupted", True)
        assert Delivery.objects.get(timer=timer).state == State.SCHEDULED
        # Known as slow from then on, it finds no place; another host still does.
        running.hand_over(claim_for_pool())
        wait_until(lambda: Delivery.objects.get(timer=timer).next_attempt_at > timezone.now())
        make_timer(receiver.url("/quick"), delay_seconds=-1)
        running.hand_over(claim_for_pool())
        receiver.wait_for(1, path="/quick")
        assert len(second.calls) == 1


def test_starts_that_a_crash_of_the_database_forgets_cost_a_host_no_slot(pool, make_timer, receiver, delivery_of, sql):
    running = pool(callers=8)
    for number in range(12):
        timer = make_timer(receiver.url("/sleep/0.3"), delay_seconds=-1)
        running.hand_over(claim_for_pool())
        receiver.wait_for(2 * number + 1)
        # As after a crash: the call is under way, and the row knows nothing of it.
        sql(
            "UPDATE scheduler_delivery SET state = 'scheduled', lease_token = NULL, lease_expires_at = NULL,"
            " attempts = 0, started_at = NULL WHERE timer_id = %s",
            timer.pk,
        )
        running.hand_over(claim_for_pool())
        receiver.wait_for(2 * number + 2)
        wait_until(lambda timer=timer: delivery_of(timer).state == State.SUCCEEDED)
    make_timer(receiver.url("/after"), delay_seconds=-1)
    running.hand_over(claim_for_pool())
    receiver.wait_for(1, path="/after")
    wait_until(lambda: not running._line.running)
    host = next(iter(running._line._hosts.values()))
    assert (host.slots, host.waiting, running._line._room.used) == (0, 0, 0)


def refuse(monkeypatch, name, culprit):
    """Have a statement of the pool refuse one delivery, as the database does with an impossible row."""
    real = getattr(module, name)

    def statement(items, **options):
        for item in items:
            call = getattr(item, "call", item)
            if (call.delivery_id if hasattr(call, "delivery_id") else call[0]) == culprit:
                raise IntegrityError("violates a rule")
        return real(items, **options)

    monkeypatch.setattr(module, name, statement)


def test_delivery_that_has_had_all_attempts_is_failed_and_the_others_start(pool, make_timer, receiver, delivery_of):
    spent = make_timer(receiver.url("/spent"), delay_seconds=-1)
    Delivery.objects.filter(timer=spent).update(attempts=ATTEMPTS_BOUND, started_at=Now())
    for number in range(5):
        make_timer(receiver.url(f"/{number}"), delay_seconds=-1)
    pool().hand_over(claim_for_pool())
    receiver.wait_for(5)
    wait_until(lambda: delivery_of(spent).state == State.FAILED)
    assert "Attempts exhausted" in delivery_of(spent).fault
    assert PeriodicTask.objects.get(timer=spent).enabled is False
    assert "/spent" not in {seen.path for seen in receiver.calls}


@pytest.mark.parametrize("name", ["start_attempts", "record_outcomes"])
def test_delivery_that_the_database_refuses_harms_itself_only(  # noqa: PLR0917 - fixtures
    pool, make_timer, receiver, delivery_of, monkeypatch, name
):
    timers = [make_timer(receiver.url(f"/{number}"), delay_seconds=-1) for number in range(10)]
    refuse(monkeypatch, name, delivery_of(timers[4]).pk)
    pool().hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.FAILED] + [State.SUCCEEDED] * 9)
    assert "violates a rule" in delivery_of(timers[4]).fault
    # What was called has its attempt, whatever else could not be written.
    assert Attempt.objects.filter(delivery__timer=timers[4]).count() == (name == "record_outcomes")


def test_timer_whose_time_zone_is_gone_harms_itself_only(pool, make_timer, receiver, delivery_of):
    lost = make_timer(
        receiver.url("/lost"), recurrence=Recurrence(cron="* * * * *", timezone="Europe/Berlin"), delay_seconds=None
    )
    Timer.objects.filter(pk=lost.pk).update(timezone="Mars/Olympus")
    Delivery.objects.filter(timer=lost).update(due_at=Now() - timedelta(seconds=1), next_attempt_at=Now())
    other = make_timer(receiver.url("/other"), delay_seconds=-1)
    pool().hand_over(claim_for_pool())
    wait_until(lambda: delivery_of(other).state == State.SUCCEEDED)
    wait_until(lambda: delivery_of(lost).state == State.FAILED)
    assert "Mars/Olympus" in delivery_of(lost).fault
    assert Attempt.objects.filter(delivery__timer=lost, status_code=200).count() == 1


def test_machine_without_threads_gives_back_and_counts_nothing(pool, make_timer, receiver, monkeypatch, caplog):
    timers = [make_timer(receiver.url(), delay_seconds=-1) for _ in range(3)]
    running = pool()
    start = threading.Thread.start

    def refused(thread):
        if thread.name == "caller":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    running.hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SCHEDULED] * 3)
    assert set(Delivery.objects.values_list("attempts", flat=True)) == {0}
    assert running._starter.is_alive()
    assert "threads_short" in caplog.text
    monkeypatch.undo()
    Delivery.objects.update(next_attempt_at=F("due_at"))
    wait_until(lambda: time.monotonic() > running._short_until)
    running.hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SUCCEEDED] * len(timers))


def test_turn_that_fails_is_said_and_the_next_one_goes_on(pool, make_timer, receiver, monkeypatch, caplog):
    running = pool()
    pick, failed = running._pick, []

    def broken():
        if not failed:
            failed.append(True)
            raise ValueError("unexpected")
        return pick()

    monkeypatch.setattr(running, "_pick", broken)
    make_timer(receiver.url(), delay_seconds=-1)
    running.hand_over(claim_for_pool())
    receiver.wait_for(1)
    assert caplog.text.count("turn_failed thread=starter") == 1


def test_thread_that_cannot_go_on_ends_the_process(pool, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(CallPool, "_give_up", staticmethod(ended.set))
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)
    running = pool()

    def broken():
        raise ValueError("unexpected")

    monkeypatch.setattr(running, "_pick", broken)
    assert ended.wait(5)


def test_clock_of_the_database_that_steps_back_holds_nothing_up(pool, make_timer, receiver, delivery_of, sql):
    """A promise that lies ahead of the database's clock, as after the clock was set back while the call ran."""
    moved = make_timer(receiver.url("/dawdle/0.5/x"), delay_seconds=-1)
    running = pool()
    running.hand_over(claim_for_pool())
    receiver.wait_for(1)
    sql(
        "UPDATE scheduler_delivery"
        " SET due_at = due_at + interval '1 hour', next_attempt_at = due_at + interval '1 hour'"
    )
    wait_until(lambda: delivery_of(moved).state == State.SCHEDULED)
    other = make_timer(receiver.url("/other"), delay_seconds=-1)
    running.hand_over(claim_for_pool())
    wait_until(lambda: delivery_of(other).state == State.SUCCEEDED)


def test_host_that_recovers_is_trusted_again():
    host = hosts.Host("a")
    for _ in range(30):
        host.took(30.0)
    assert host.waiting_limit == hosts.WAITING_LEAST
    assert not host.quick
    for _ in range(30):
        host.took(0.01)
    assert host.quick
    assert host.waiting_limit == hosts.WAITING_MOST


def test_pool_notes_that_it_is_at_work_and_that_its_starter_is_stuck(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(facts, "STUCK_SECONDS", 2.0)
    timer = make_timer(receiver.url(), delay_seconds=-1)
    (item,) = claim_for_pool()
    running = pool(note=partial(tasks._note_calls, Client(callers=1, user_agent="test/1", egress=EGRESS)))
    wait_until(lambda: facts.gather(at_once=True).worker_trouble == "")
    with another_session() as other:
        # The starter waits for this row; nothing else of the process does.
        other.execute("SELECT FROM scheduler_delivery WHERE timer_id = %s FOR UPDATE", [str(timer.pk)])
        running.hand_over([item])
        wait_until(lambda: "its starter has not moved for" in facts.gather(at_once=True).worker_trouble)
    wait_until(lambda: facts.gather(at_once=True).worker_trouble == "")
    wait_until(lambda: states() == [State.SUCCEEDED])


@contextlib.contextmanager
def another_session():
    session = psycopg2.connect(database_url())
    try:
        with session.cursor() as cursor:
            yield cursor
    finally:
        session.close()


def test_connection_that_is_lost_in_a_worker_is_no_fault_of_a_row(make_timer):
    """A worker waits for the server through a callback, and psycopg2 then has another class for a lost connection."""
    bound_waits(statement_seconds=30.0)
    session = connection.copy()
    try:
        with session.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]
            with connection.cursor() as killer:
                killer.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(DatabaseError) as lost:
                cursor.execute("SELECT pg_sleep(1)")
        assert is_away(lost.value), repr(lost.value)
    finally:
        extensions.set_wait_callback(None)
        session.close()
