"""Guarded start and record, and the call pool against a real receiver."""

import socket
import uuid
from datetime import timedelta

import pytest
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.models import Attempt, Delivery, State
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.outgoing.egress import Egress
from webtask_scheduler.scheduler.queue import leases
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes, start_attempts
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.acting import move
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS

pytestmark = pytest.mark.django_db


def claim(**options):
    return [(item.delivery_id, item.token) for item in claim_due(**options).held]


def start(**options):
    started, early, *_ = start_attempts(claim(**options))
    assert not early
    return started


def outcome(call, *, error="", status_code=200):
    return Outcome(call, call.started_at, 12, status_code, error, "said so" if error else "", "body")


def test_start_counts_the_attempt_and_takes_a_longer_lease(make_timer, delivery_of):
    timer = make_timer("http://127.0.0.1:9/x", delay_seconds=-1)
    (call,) = start()
    row = delivery_of(timer)
    assert (row.state, row.attempts, call.attempt, call.web_url) == (State.RUNNING, 1, 1, "http://127.0.0.1:9/x")
    assert row.lease_expires_at - row.started_at == timedelta(seconds=leases.RUNNING_LEASE_SECONDS)


def test_start_with_a_stale_token_starts_nothing(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    ((delivery_id, _),) = claim()
    assert start_attempts([(delivery_id, uuid.uuid4())]) == ([], {}, [], [])
    assert delivery_of(timer).state == State.CLAIMED


def test_second_message_for_the_same_claim_starts_nothing(make_timer):
    make_timer(delay_seconds=-1)
    pairs = claim()
    assert len(start_attempts(pairs)[0]) == 1
    assert start_attempts(pairs) == ([], {}, [], [])


def test_start_before_its_moment_starts_nothing_and_says_how_long(make_timer, delivery_of):
    timer = make_timer(delay_seconds=0.9)
    (key,) = pairs = claim(ahead_seconds=1.0)
    started, early, *_ = start_attempts(pairs)
    assert started == []
    assert 0.3 < early[key] <= 0.9
    assert delivery_of(timer).state == State.CLAIMED


def test_start_of_a_cancelled_delivery_starts_nothing(make_timer):
    timer = make_timer(delay_seconds=-1)
    pairs = claim()
    services.cancel(timer.pk)
    assert start_attempts(pairs) == ([], {}, [], [])


def test_success_is_recorded_and_shown_by_the_periodic_task(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    (call,) = start()
    assert record_outcomes([outcome(call)]) == 1
    row = delivery_of(timer)
    assert (row.state, row.lease_token, row.finished_at is not None) == (State.SUCCEEDED, None, True)
    attempt = Attempt.objects.get()
    assert (attempt.number, attempt.status_code, attempt.duration_ms, attempt.error) == (1, 200, 12, "")
    assert attempt.lateness_ms >= 1000
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.enabled, task.total_run_count, task.last_run_at is not None) == (False, 1, True)


def test_failure_is_scheduled_again_and_the_periodic_task_stays_enabled(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    (call,) = start()
    record_outcomes([outcome(call, error="status", status_code=503)])
    row = delivery_of(timer)
    assert row.state == State.SCHEDULED
    assert row.next_attempt_at > row.due_at + timedelta(seconds=4)
    assert PeriodicTask.objects.get(timer=timer).enabled


def test_last_failure_becomes_a_dead_letter(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    for _ in range(5):
        Delivery.objects.update(next_attempt_at=delivery_of(timer).due_at)
        (call,) = start()
        record_outcomes([outcome(call, error="timeout", status_code=None)])
    assert delivery_of(timer).state == State.FAILED
    assert list(Attempt.objects.order_by("number").values_list("number", flat=True)) == [1, 2, 3, 4, 5]


def test_interrupted_call_is_due_again_at_once(make_timer):
    make_timer(delay_seconds=-1)
    (call,) = start()
    record_outcomes([outcome(call, error="interrupted", status_code=None)])
    assert len(claim()) == 1


def test_lost_lease_records_nothing(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    (call,) = start()
    Delivery.objects.update(lease_token=uuid.uuid4())
    assert record_outcomes([outcome(call)]) == 0
    assert delivery_of(timer).state == State.RUNNING
    assert not Attempt.objects.exists()


def test_cancel_during_a_call_lets_it_land_and_allows_no_retry(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    (call,) = start()
    services.cancel(timer.pk)
    assert delivery_of(timer).state == State.RUNNING
    record_outcomes([outcome(call, error="status", status_code=500)])
    assert delivery_of(timer).state == State.CANCELLED
    assert Attempt.objects.get().status_code == 500


def test_reschedule_during_a_call_keeps_the_new_promise(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-1)
    (call,) = start()
    later = call.due_at + timedelta(hours=1)
    move(timer, due_at=later)
    record_outcomes([outcome(call)])
    assert (delivery_of(timer).state, delivery_of(timer).due_at) == (State.SCHEDULED, later)
    assert PeriodicTask.objects.get(timer=timer).enabled


def test_renewal_keeps_what_is_held_and_tells_what_is_lost(make_timer):
    first, second = make_timer(delay_seconds=-1), make_timer(delay_seconds=-1)
    pairs = claim()
    lost = Delivery.objects.get(timer=second).pk
    Delivery.objects.filter(pk=lost).update(lease_token=uuid.uuid4())
    assert leases.renew_leases(pairs) == {Delivery.objects.get(timer=first).pk}


def test_many_starts_and_records_are_one_statement_each(make_timer, django_assert_num_queries):
    for _ in range(50):
        make_timer(delay_seconds=-1)
    pairs = claim()
    with django_assert_num_queries(1):
        started, *_ = start_attempts(pairs)
    with django_assert_num_queries(1):
        assert record_outcomes([outcome(call) for call in started]) == 50


def test_call_tells_the_receiver_what_it_needs(make_timer, receiver):
    timer = make_timer(receiver.url("/hook"), delay_seconds=-1)
    (call,) = start()
    result = call_url(call, client=Client(callers=1, user_agent="test/1", egress=EGRESS), timeout_seconds=5)
    (seen,) = receiver.calls
    assert seen.json == {"task_id": str(timer.pk), "due_at": call.due_at.isoformat(), "attempt": 1}
    assert seen.headers["webhook-id"] == str(call.delivery_id)
    assert abs(int(seen.headers["webhook-timestamp"]) - seen.at) <= 1
    assert seen.headers["Content-Type"] == "application/json"
    assert (result.status_code, result.error, result.excerpt) == (200, "", "ok")


def test_redirect_is_a_failure(make_timer, receiver):
    make_timer(receiver.url("/redirect"), delay_seconds=-1)
    (call,) = start()
    result = call_url(call, client=Client(callers=1, user_agent="test/1", egress=EGRESS), timeout_seconds=5)
    assert (result.status_code, result.error) == (302, "status")


@each(
    ("url", "state"),
    [
        ("http://169.254.169.254/latest/meta-data/", State.FAILED),
        ("http://2130706433/", State.FAILED),
        ("http://name.example:6379/", State.FAILED),
        # A name may lead elsewhere the next time.
        ("http://name.example/", State.SCHEDULED),
    ],
)
def test_refused_call_is_recorded_and_tried_again_only_for_a_name(make_timer, delivery_of, url, state):
    timer = make_timer(url, delay_seconds=-1)
    (call,) = start()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.11.12.13", 0))]
    client = Client(callers=1, user_agent="test/1", egress=Egress(), getaddrinfo=lambda *_, **__: found)
    assert record_outcomes([call_url(call, client=client, timeout_seconds=5)]) == 1
    attempt = Attempt.objects.get()
    assert (delivery_of(timer).state, attempt.error, attempt.status_code) == (state, "refused", None)
    assert not any(address in attempt.message for address in ("10.11.12.13", "169.254", "127.0.0.1"))


def test_start_of_a_delivery_whose_calls_are_stopped_holds_it(make_timer, delivery_of):
    timer = make_timer("http://stopped.example/", delay_seconds=-1)
    pairs = claim()
    services.stop_calls(host="stopped.example")
    assert start_attempts(pairs) == ([], {}, [], [])
    assert delivery_of(timer).state == State.HELD


def test_put_off_delivery_is_late_by_its_promise_not_by_its_new_time(make_timer, delivery_of):
    timer = make_timer(delay_seconds=-10)
    leases.put_back(claim_due().held, wait_seconds=[1.0])
    row = delivery_of(timer)
    assert (row.state, row.attempts) == (State.SCHEDULED, 0)
    assert row.next_attempt_at > row.due_at + timedelta(seconds=10)
    Delivery.objects.update(next_attempt_at=row.due_at + timedelta(seconds=9))
    (call,) = start()
    assert call.meant_for == row.due_at
    record_outcomes([outcome(call)])
    assert Attempt.objects.get().lateness_ms >= 10_000
