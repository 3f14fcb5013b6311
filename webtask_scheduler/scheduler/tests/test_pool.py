"""The call pool against a real receiver: slots, leases, slow hosts, an orderly end.

The pool works in threads with connections of their own, so these tests commit.
"""

import contextlib
import threading
import time

import pytest
from django.db import connection

from webtask_scheduler.scheduler import pool as module
from webtask_scheduler.scheduler.dispatch import claim_due
from webtask_scheduler.scheduler.http import Client
from webtask_scheduler.scheduler.models import Attempt, Delivery, State
from webtask_scheduler.scheduler.pool import CallPool
from webtask_scheduler.scheduler.tests.receiver import Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def claim_for_pool(**options):
    return [(item.delivery_id, item.token, item.host) for item in claim_due(**options).held]


@pytest.fixture
def pool():
    pools = []

    def make(callers=4, timeout_seconds=10.0):
        pool = CallPool(
            callers=callers, client=Client(callers=callers, user_agent="t"), timeout_seconds=timeout_seconds
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def wait_until(condition, *, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def states():
    return sorted(Delivery.objects.values_list("state", flat=True))


def test_pool_calls_each_delivery_once_and_records_it(pool, make_timer, receiver):
    for number in range(20):
        make_timer(receiver.url(f"/{number}"), delay_seconds=-1)
    pool(callers=4).hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SUCCEEDED] * 20)
    assert sorted(seen.path for seen in receiver.calls) == sorted(f"/{number}" for number in range(20))


def test_pool_starts_no_more_than_it_has_slots(pool, make_timer, receiver):
    for _ in range(5):
        make_timer(receiver.url("/sleep/0.5"), delay_seconds=-1)
    running = pool(callers=2)
    threading.Thread(target=running.hand_over, args=[claim_for_pool()]).start()
    receiver.wait_for(2)
    assert states().count(State.RUNNING) == 2
    assert states().count(State.CLAIMED) == 3
    wait_until(lambda: states() == [State.SUCCEEDED] * 5)


def test_pool_renews_what_it_holds(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(module, "RUNNING_LEASE_SECONDS", 0.5)
    make_timer(receiver.url("/sleep/1.5"), delay_seconds=-1)
    pool().hand_over(claim_for_pool())
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
    handing.join(3)
    closing.close()
    assert time.monotonic() - begun < 3
    assert states() == [State.SCHEDULED] * 3
    assert [attempt.error for attempt in Attempt.objects.all()] == ["interrupted"]
    assert len(claim_for_pool()) == 3


def test_pool_waits_out_a_moment_that_was_rung_too_soon(pool, make_timer, receiver):
    timer = make_timer(receiver.url(), delay_seconds=0.04)
    pool().hand_over(claim_for_pool(ahead_seconds=1.0))
    (seen,) = receiver.wait_for(1)
    assert seen.at >= Delivery.objects.get(timer=timer).due_at.timestamp()


def test_pool_leaves_a_far_moment_to_the_queue(pool, make_timer, receiver, delivery_of):
    timer = make_timer(receiver.url(), delay_seconds=0.9)
    pool().hand_over(claim_for_pool(ahead_seconds=1.0))
    assert delivery_of(timer).state == State.SCHEDULED
    assert receiver.calls == []


def test_hanging_host_takes_neither_all_slots_nor_the_turn_of_others(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.3)
    for _ in range(60):
        make_timer(receiver.url("/sleep/20"), delay_seconds=-2)
    running = pool(callers=8, timeout_seconds=30)
    handing = threading.Thread(target=running.hand_over, args=[claim_for_pool()])
    handing.start()
    receiver.wait_for(6)
    # Another name for the same receiver is another host.
    for _ in range(20):
        make_timer(receiver.url("/quick").replace("127.0.0.1", "localhost"), delay_seconds=-1)
    begun = time.monotonic()
    running.hand_over(claim_for_pool())
    receiver.wait_for(20, path="/quick", seconds=3)
    assert time.monotonic() - begun < 3
    # What the host could not take went back, each for a while of its own, and nothing was counted.
    handing.join(10)
    waiting = Delivery.objects.filter(state=State.SCHEDULED)
    assert waiting.count() >= 20
    assert set(waiting.values_list("attempts", flat=True)) == {0}
    assert waiting.order_by("next_attempt_at")[0].next_attempt_at > waiting[0].due_at
    assert waiting.values("next_attempt_at").distinct().count() > 10


def test_healthy_host_gets_a_whole_burst_without_being_put_off(pool, make_timer, receiver):
    for _ in range(100):
        make_timer(receiver.url(), delay_seconds=-1)
    pool(callers=4).hand_over(claim_for_pool())
    wait_until(lambda: states() == [State.SUCCEEDED] * 100)


def test_slow_calls_leave_their_slots_to_others(pool, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.2)
    with contextlib.ExitStack() as stack:
        hosts = [receiver, *(stack.enter_context(Receiver()) for _ in range(5))]
        for host in hosts:
            make_timer(host.url("/sleep/20"), delay_seconds=-1)
        running = pool(callers=2, timeout_seconds=30)
        running.hand_over(claim_for_pool())
        for host in hosts:
            host.wait_for(1, seconds=8)
        assert running._slow >= 4


def test_host_that_recovers_is_trusted_again():
    host = module._Host()
    for _ in range(30):
        host.judge(slow=True, now=100.0)
    assert host.slow_limit == module.HOST_SLOW_LEAST
    waits = [host.put_off(100.0) for _ in range(1000)]
    assert max(waits) <= module.PUT_OFF_MOST_SECONDS
    assert waits[0] < waits[500]
    for _ in range(30):
        host.judge(slow=False, now=130.0)
    assert host.slow_limit > module.HOST_SLOW_MOST / 2
    assert host.put_off_until == 0.0
