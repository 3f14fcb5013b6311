"""Claims, leases taken back, and the dispatcher's turns."""

import threading
import time
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.dispatch import dispatcher as module
from webtask_scheduler.dispatch import share
from webtask_scheduler.dispatch.dispatcher import Dispatcher
from webtask_scheduler.dispatch.queue import PublishError
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import Attempt, ClockTimestamp, Delivery, State, Timer
from webtask_scheduler.scheduler.queue import leases
from webtask_scheduler.scheduler.queue.claims import DeliveryQueue
from webtask_scheduler.scheduler.queue.reclaim import reclaim_expired
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db


def make(count, *, delay_seconds=-1.0, host="127.0.0.1:9"):
    stored = services.schedule(
        [services.NewTimer(web_url=f"http://{host}/", delay_seconds=delay_seconds + n / 1000) for n in range(count)]
    )
    return [item.timer_id for item in stored]


def claimed_ids(claim):
    return [item.delivery_id for item in claim.held]


def set_lease(state, *, attempts=0, expires="- interval '1 second'", **fields):
    """Put every delivery under a lease, by default one that has run out."""
    token = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE scheduler_delivery SET state = %s, attempts = %s, lease_token = %s, started_at = next_attempt_at,"
            f" lease_expires_at = clock_timestamp() {expires}",
            [state, attempts, token],
        )
    Delivery.objects.update(**fields)
    return token


def test_claims_what_is_due_oldest_first_up_to_the_limit():
    timers = make(5)
    claim = claim_due(limit=3)
    assert sum(claim.taken.values()) == 3
    claimed = Delivery.objects.filter(pk__in=claimed_ids(claim)).order_by("due_at")
    assert [delivery.timer_id for delivery in claimed] == timers[:3]
    assert {delivery.state for delivery in claimed} == {State.CLAIMED}
    assert Delivery.objects.filter(state=State.SCHEDULED).count() == 2


def test_does_not_claim_what_is_not_due():
    make(1, delay_seconds=60)
    assert claim_due().held == []


def test_claims_ahead_and_says_when():
    make(1, delay_seconds=0.8)
    (item,) = claim_due(ahead_seconds=1.0).held
    assert 0.5 < item.at - time.monotonic() <= 0.8


def test_claims_one_timer_when_asked():
    _, wanted, _ = make(3)
    claim = claim_due(timer_id=wanted)
    assert [Delivery.objects.get(pk=pk).timer_id for pk in claimed_ids(claim)] == [wanted]


@pytest.mark.django_db(transaction=True)
def test_claims_of_two_connections_are_disjoint():
    make(400)
    taken, barrier = [], threading.Barrier(2)

    def claim():
        barrier.wait()
        taken.extend(claimed_ids(claim_due(limit=20)) for _ in range(10))
        connection.close()

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flat = [pk for batch in taken for pk in batch]
    assert len(flat) == len(set(flat)) == 400


def test_parks_what_its_periodic_task_has_disabled():
    make(2)
    PeriodicTask.objects.filter(timer__isnull=False).update(enabled=False)
    claim = claim_due()
    assert claim.held == []
    assert sorted(claim.disputed) == sorted(
        PeriodicTask.objects.filter(timer__isnull=False).values_list("pk", flat=True)
    )
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.PAUSED}


def test_parks_what_its_clocked_schedule_has_moved():
    (timer,) = make(1)
    later = Delivery.objects.get().due_at.replace(year=2040)
    ClockedSchedule.objects.update(clocked_time=later)
    claim = claim_due()
    assert claim.held == []
    services.obey(claim.disputed)
    moved = Delivery.objects.get(timer=timer, finished_at=None)
    assert (moved.state, moved.due_at) == (State.SCHEDULED, later)


def test_claims_an_extra_delivery_of_a_disabled_timer():
    (timer,) = make(1, delay_seconds=60)
    services.pause(timer)
    extra = services.run_now(timer)
    assert claimed_ids(claim_due()) == [extra]


@each(("ago", "claimed"), [(0, 1), (3600, 0)])
def test_claims_what_a_stock_scheduler_ran_for_this_moment_and_disabled(ago, claimed):
    make(1)
    last_run_at = timezone.now() - timedelta(seconds=ago)
    PeriodicTask.objects.filter(timer__isnull=False).update(enabled=False, last_run_at=last_run_at)
    assert len(claim_due().held) == claimed


def test_put_back_returns_only_what_is_still_claimed_by_that_token():
    make(3)
    claim = claim_due()
    Delivery.objects.filter(pk=claim.held[0].delivery_id).update(lease_token=uuid.uuid4())
    leases.put_back(claim.held)
    assert sorted(Delivery.objects.values_list("state", flat=True)) == ["claimed", "scheduled", "scheduled"]


def test_expired_claim_goes_back_and_nothing_is_counted():
    make(1)
    set_lease(State.CLAIMED)
    assert sum(reclaim_expired()) == 1
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.lease_token) == (State.SCHEDULED, 0, None)
    assert not Attempt.objects.exists()


def test_expired_call_is_recorded_as_lost_and_tried_again_at_once():
    make(1)
    set_lease(State.RUNNING, attempts=1)
    reclaim_expired()
    assert [(a.number, a.error, a.status_code, a.duration_ms) for a in Attempt.objects.all()] == [
        (1, "lost", None, None)
    ]
    assert len(claim_due().held) == 1


def test_expired_last_call_becomes_a_dead_letter():
    make(1)
    set_lease(State.RUNNING, attempts=5)
    reclaim_expired()
    assert Delivery.objects.get().state == State.FAILED
    task = PeriodicTask.objects.get(timer__isnull=False)
    assert (task.enabled, task.total_run_count, task.last_run_at is not None) == (False, 1, True)


def test_expired_call_that_was_cancelled_ends_cancelled():
    make(1)
    set_lease(State.RUNNING, attempts=1, cancel_requested_at="2020-01-01T00:00:00Z")
    reclaim_expired()
    assert Delivery.objects.get().state == State.CANCELLED


def test_expired_lease_of_a_row_that_is_refused_harms_itself_only():
    timers = [timer for _ in range(3) for timer in make(1)]
    (lost,) = services.schedule(
        [services.NewTimer(web_url="http://127.0.0.1:9/", recurrence=Recurrence(cron="* * * * *", timezone="UTC"))]
    )
    Timer.objects.filter(pk=lost.timer_id).update(timezone="Mars/Olympus")
    set_lease(State.RUNNING, attempts=5)
    assert sum(reclaim_expired()) == 4
    assert {delivery.timer_id: bool(delivery.fault) for delivery in Delivery.objects.all()} == {
        **dict.fromkeys(timers, False),
        lost.timer_id: True,
    }
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.FAILED}


def test_clock_of_the_database_that_steps_back_blocks_no_reclaim():
    make(2)
    moved = Delivery.objects.first().pk
    set_lease(State.RUNNING, attempts=1)
    # A promise that lies ahead of the database's clock.
    ahead = timezone.now() + timedelta(hours=1)
    Delivery.objects.filter(pk=moved).update(due_at=ahead, next_attempt_at=ahead)
    assert sum(reclaim_expired()) == 2
    assert Delivery.objects.get(pk=moved).next_attempt_at >= ahead
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.SCHEDULED}


def test_live_lease_is_left_alone():
    make(1)
    set_lease(State.RUNNING, attempts=1, expires="+ interval '5 seconds'")
    assert sum(reclaim_expired()) == 0


class Broker:
    """Takes chunks into a list, or refuses them."""

    def __init__(self):
        self.chunks, self.down = [], False

    def publish(self, chunk):
        if self.down:
            raise PublishError("refused")
        self.chunks.append(chunk)

    @property
    def rung(self):
        return [item.delivery_id for chunk in self.chunks for item in chunk.items]


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def dispatcher(broker):
    return Dispatcher(queue=DeliveryQueue(), publish=broker.publish, dispute=services.obey)


def test_turn_rings_for_what_is_due_and_sleeps_until_the_next_poll(dispatcher, broker):
    make(3)
    delay = dispatcher.turn()
    assert len(broker.rung) == 3
    assert 0 < delay <= module.POLL_SECONDS


def test_turn_rings_at_the_moment_not_before(dispatcher, broker):
    make(1, delay_seconds=0.3)
    due_at = time.monotonic() + 0.3
    while not broker.rung:
        time.sleep(dispatcher.turn())
        assert time.monotonic() < due_at + 5
    assert time.monotonic() >= due_at - 0.01


def test_turn_returns_nothing_to_wait_for_after_a_full_batch(dispatcher, monkeypatch):
    monkeypatch.setattr(module, "CLAIM_LIMIT", 8)
    make(20)
    assert dispatcher.turn() == 0.0


def test_failed_publish_loses_nothing(dispatcher, broker, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.05)
    make(3)
    broker.down = True
    assert dispatcher.turn() <= 0.05
    broker.down = False
    deadline = time.monotonic() + 5
    while len(broker.rung) < 3 and time.monotonic() < deadline:
        time.sleep(dispatcher.turn())
    assert sorted(broker.rung) == sorted(Delivery.objects.values_list("pk", flat=True))


@pytest.mark.django_db(transaction=True)
def test_turn_survives_a_database_that_goes_away(dispatcher, broker, monkeypatch, caplog):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.05)
    dispatcher.turn()
    make(1)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    other.close()
    deadline = time.monotonic() + 5
    while not broker.rung and time.monotonic() < deadline:
        time.sleep(dispatcher.turn())
    assert len(broker.rung) == 1
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said.count("dispatch_failing") == said.count("dispatch_recovered") == 1


def test_close_puts_back_what_was_not_rung_for(dispatcher, broker):
    make(2, delay_seconds=0.9)
    dispatcher.turn()
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.CLAIMED}
    dispatcher.close()
    dispatcher.close()
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.SCHEDULED}
    assert broker.rung == []


def test_entry_whose_lease_ran_out_is_not_rung_for(dispatcher, broker):
    make(1, delay_seconds=0.2)
    dispatcher.turn()
    dispatcher._held[0].expires = time.monotonic()
    # Its moment comes, and nothing is rung for.
    time.sleep(0.25)
    dispatcher._publish_due()
    assert broker.rung == []


def test_turn_takes_expired_leases_back(dispatcher, broker):
    make(1)
    set_lease(State.CLAIMED)
    dispatcher.turn()
    assert len(broker.rung) == 1


def test_stop_of_all_calls_claims_nothing_until_it_is_lifted(dispatcher, broker):
    make(3)
    services.stop_calls(everything=True, reason="maintenance")
    dispatcher.turn()
    assert broker.rung == []
    services.resume_calls(everything=True)
    dispatcher._poll_at = 0.0
    dispatcher.turn()
    assert len(broker.rung) == 3


def test_stop_of_one_host_holds_its_deliveries_and_lets_others_pass(dispatcher, broker):
    make(2)
    services.schedule([services.NewTimer(web_url="http://other.example/", delay_seconds=-1)])
    services.stop_calls(host="127.0.0.1:9")
    dispatcher.turn()
    assert len(broker.rung) == 1
    assert Delivery.objects.filter(state=State.HELD).count() == 2
    services.resume_calls(host="127.0.0.1:9")
    dispatcher._poll_at = dispatcher._reclaim_at = dispatcher._publish_at = 0.0
    dispatcher.turn()
    assert len(broker.rung) == 3


def test_held_delivery_is_paused_and_cancelled_like_a_waiting_one():
    first, second = make(2)
    services.stop_calls(host="127.0.0.1:9")
    claim_due()
    services.pause(first)
    services.cancel(second)
    assert Delivery.objects.get(timer=first).state == State.PAUSED
    assert Delivery.objects.get(timer=second).state == State.CANCELLED


def poll(dispatcher, times=1):
    """Have a dispatcher claim and publish, however early it is."""
    dispatcher._reclaim_at = time.monotonic() + 60
    for _ in range(times):
        dispatcher._poll_at = 0.0
        dispatcher.turn()


def small(broker, *, window):
    return Dispatcher(queue=DeliveryQueue(), publish=broker.publish, dispute=services.obey, window=window)


def test_claims_no_more_than_the_window_leaves(broker):
    make(100)
    poll(small(broker, window=20), times=10)
    # One flow alone gets half of it; the rest is free for whoever comes.
    assert len(broker.rung) == 10


def test_flood_to_one_host_leaves_room_to_every_other(broker):
    make(3000, delay_seconds=-4, host="flood.example")
    dispatcher = Dispatcher(queue=DeliveryQueue(), publish=broker.publish, dispute=services.obey)
    poll(dispatcher, times=8)
    assert len(broker.rung) == share.WINDOW / 2
    others = [timer for number in range(200) for timer in make(1, host=f"other-{number}.example")]
    poll(dispatcher, times=2)
    assert set(Delivery.objects.filter(timer__in=others).values_list("state", flat=True)) == {State.CLAIMED}


def test_host_in_the_lane_of_a_flood_is_claimed_in_its_turn(broker):
    make(2000, delay_seconds=-4, host="flood.example")
    lane = Delivery.objects.first().lane
    dispatcher = Dispatcher(queue=DeliveryQueue(), publish=broker.publish, dispute=services.obey)
    poll(dispatcher, times=6)
    for number in range(400):
        (neighbour,) = make(1, host=f"neighbour-{number}.example")
        if Delivery.objects.get(timer=neighbour).lane == lane:
            break
    poll(dispatcher)
    assert Delivery.objects.get(timer=neighbour).state == State.CLAIMED


def test_owner_with_many_floods_leaves_room_to_another_owner(broker, django_user_model):
    one = django_user_model.objects.create_user("one@example.com", "secret")
    for number in range(30):
        make(100, delay_seconds=-4, host=f"flood-{number}.example")
    Timer.objects.update(owner=one)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduler_delivery d SET flow = t.flow FROM scheduler_timer t WHERE t.id = d.timer_id")
    dispatcher = small(broker, window=200)
    poll(dispatcher, times=30)
    assert len(broker.rung) <= 200
    (timer,) = make(1, host="flood-1.example")
    poll(dispatcher)
    assert Delivery.objects.get(timer=timer).state == State.CLAIMED


def test_quiet_turn_is_one_cheap_statement(dispatcher, django_assert_num_queries):
    dispatcher.turn()
    dispatcher._poll_at = 0.0
    with django_assert_num_queries(1):
        dispatcher.turn()


def test_what_is_due_now_is_claimed_before_a_long_backlog(broker):
    make(300, delay_seconds=-3600)
    (fresh,) = make(1)
    poll(small(broker, window=40))
    assert Delivery.objects.get(timer=fresh).pk in broker.rung
    # The backlog has the smaller share, and its oldest go first.
    taken = Delivery.objects.filter(state=State.CLAIMED).exclude(timer=fresh)
    assert 0 < taken.count() < 20
    left = Delivery.objects.filter(state=State.SCHEDULED).order_by("due_at").first()
    assert not taken.filter(due_at__gt=left.due_at).exists()


def test_backlog_is_worked_off_at_the_rate_that_is_set(broker):
    make(300, delay_seconds=-3600)
    slow = Dispatcher(queue=DeliveryQueue(), publish=broker.publish, dispute=services.obey, backlog_per_second=20)
    begun = time.monotonic()
    while time.monotonic() - begun < 2:
        # No more is claimed by two seconds than the rate allows.
        time.sleep(slow.turn())
    assert 20 <= len(broker.rung) <= 60


def test_burst_is_carried_by_few_messages_and_a_few_by_one(dispatcher, broker):
    make(400, delay_seconds=-1)
    dispatcher.turn()
    assert len(broker.rung) == 400
    assert len(broker.chunks) <= 10
    make(3, delay_seconds=0)
    published = len(broker.chunks)
    dispatcher._poll_at, dispatcher._publish_at = 0.0, time.monotonic() + 60
    # What comes due so soon after is gathered: a worker takes only so many messages a second.
    dispatcher.turn()
    assert len(broker.chunks) == published
    dispatcher._publish_at = 0.0
    dispatcher.turn()
    assert [len(chunk.items) for chunk in broker.chunks[published:]] == [3]


def _expire_claims():
    Delivery.objects.filter(state=State.CLAIMED).update(lease_expires_at=ClockTimestamp() - timedelta(seconds=1))


def test_absent_workers_are_told_once_and_once_when_they_are_back(make_timer, caplog):
    make_timer(delay_seconds=-1)
    dispatcher = Dispatcher(queue=DeliveryQueue(), publish=lambda _: None, dispute=lambda _: None)

    def turn():
        dispatcher._poll_at = dispatcher._reclaim_at = 0.0
        dispatcher.turn()
        _expire_claims()
        return [text for record in caplog.records if "worker" in (text := record.getMessage()) or "lease" in text]

    for _ in range(5):
        said = turn()
    assert said == ["no_worker_answers claimed=1"]
    facts.note_worker(name="host:1", kind="calls", starter_idle_seconds=0, held=0, running=0)
    for _ in range(3):
        said = turn()
    assert said[:2] == ["no_worker_answers claimed=1", "workers_answer_again"]
    # With a worker there, a lease that runs out is a loss: told at most once a minute.
    assert said[2:] == ["leases_reclaimed claimed=1 running=0"]
    dispatcher.close()
