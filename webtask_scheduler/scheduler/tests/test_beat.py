"""The scheduler on stock beat's loop, with a real broker."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from celery import Celery
from django.conf import settings
from django.db import IntegrityError, connection
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from config.celery_app import app
from webtask_scheduler import vault
from webtask_scheduler.dispatch import dispatcher, publisher
from webtask_scheduler.dispatch.publisher import Publisher
from webtask_scheduler.dispatch.queue import Chunk, Held, PublishError
from webtask_scheduler.scheduler import beat, services
from webtask_scheduler.scheduler.beat import TimerScheduler
from webtask_scheduler.scheduler.models import Beat, Delivery, EncryptionKey, Leader, State, new_id

# Stock beat commits and closes connections as it likes.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def broker():
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def celery_app(broker):
    """The project's app, with an empty broker behind it."""
    return app


@pytest.fixture
def scheduler(celery_app):
    scheduler = TimerScheduler(celery_app, lazy=False)
    yield scheduler
    scheduler.close()


def messages(broker, task):
    """Return the headers of the messages that wait for a worker."""
    waiting = [json.loads(raw) for queue in ("celery", "upkeep") for raw in broker.lrange(queue, 0, -1)]
    return [message["headers"] for message in waiting if message["headers"]["task"].endswith(task)]


def rung(broker):
    """Return what people read of the deliveries rung for."""
    return " ".join(headers["argsrepr"] for headers in messages(broker, "tasks.deliver"))


def test_tick_rings_for_due_timers_and_returns_the_poll_interval(scheduler, broker, make_timer):
    timer = make_timer(delay_seconds=-1)
    delays = [scheduler.tick() for _ in range(3)]
    (headers,) = messages(broker, "tasks.deliver")
    assert headers["argsrepr"].startswith("(timer due ")
    assert str(timer.pk) in headers["argsrepr"]
    assert 0 < delays[-1] <= dispatcher.POLL_SECONDS


def test_tick_leaves_the_rows_of_timers_to_dispatch(scheduler, make_timer):
    make_timer(delay_seconds=60)
    assert not [name for name in scheduler.schedule if name.startswith("timer ")]


def test_tick_fires_an_operators_clocked_task(celery_app, broker):
    soon = ClockedSchedule.objects.create(clocked_time="2020-01-01T00:00:00Z")
    PeriodicTask.objects.create(name="once", task="some.task", clocked=soon, one_off=True)
    scheduler = TimerScheduler(celery_app, lazy=False)
    deadline = time.monotonic() + 5
    while not messages(broker, "some.task") and time.monotonic() < deadline:
        scheduler.tick()
    assert len(messages(broker, "some.task")) == 1
    scheduler.close()


def test_tick_notes_that_a_beat_is_at_work(scheduler):
    scheduler.tick()
    assert Beat.objects.count() == 1


def test_tick_notes_with_which_key_values_are_encrypted(scheduler, settings):
    scheduler.tick()
    scheduler.tick()
    assert [key.pk for key in EncryptionKey.objects.all()] == [vault.newest_key()]
    settings.WEBTASK_ENCRYPTION_KEYS = ["A" * 43 + "="]
    assert vault.missing_keys([key.pk for key in EncryptionKey.objects.all()])


def test_close_puts_back_what_is_claimed_and_may_be_called_twice(scheduler, make_timer):
    timer = make_timer(delay_seconds=0.9)
    scheduler.tick()
    assert Delivery.objects.get(timer=timer).state == State.CLAIMED
    scheduler.close()
    scheduler.close()
    assert Delivery.objects.get(timer=timer).state == State.SCHEDULED


def test_banner_builds_a_lazy_instance_without_side_effects(celery_app, django_assert_num_queries):
    with django_assert_num_queries(0):
        TimerScheduler(celery_app, lazy=True)


def test_claim_that_meets_a_disabled_row_sends_it_to_a_worker(scheduler, broker, make_timer):
    timer = make_timer(delay_seconds=-1)
    PeriodicTask.objects.filter(timer=timer).update(enabled=False)
    scheduler.tick()
    assert len(messages(broker, "tasks.obey")) == 1
    assert messages(broker, "tasks.deliver") == []


def _refusing_app():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    other = Celery("other", broker=f"redis://127.0.0.1:{port}/0", set_as_current=False)
    other.conf.broker_transport_options = {}
    return other


def test_tick_survives_a_dead_broker_and_loses_nothing(scheduler, broker, make_timer, celery_app):
    timer = make_timer(delay_seconds=-1)
    scheduler.tick()
    scheduler._publisher._app = _refusing_app()
    scheduler._publisher.close()
    late = make_timer(delay_seconds=-1)
    begun = time.monotonic()
    for _ in range(3):
        scheduler._dispatcher._poll_at = 0.0
        scheduler._stock_at = 0.0
        assert scheduler.tick() <= dispatcher.PAUSE_SECONDS
    assert time.monotonic() - begun < 20
    scheduler._publisher._app = celery_app
    scheduler._dispatcher._poll_at = 0.0
    scheduler.tick()
    assert str(timer.pk) in rung(broker)
    assert str(late.pk) in rung(broker)


def test_publisher_gives_up_on_a_broker_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = Celery("silent", broker=f"redis://127.0.0.1:{listener.getsockname()[1]}/0", set_as_current=False)
        publisher = Publisher(silent)
        begun = time.monotonic()
        with pytest.raises(PublishError):
            publisher.deliver(Chunk((Held(0.0, 10.0, new_id(), new_id(), host="127.0.0.1"),)))
        assert time.monotonic() - begun < 30


def test_publisher_asks_a_broker_that_is_no_redis_whether_it_is_connected():
    publisher = Publisher(Celery("other", broker="memory://", set_as_current=False))
    publisher.check()
    publisher.close()


def test_publisher_works_again_after_its_connection_was_cut(celery_app, broker):
    publisher = Publisher(celery_app)
    chunk = Chunk((Held(0.0, 10.0, new_id(), new_id(), host="127.0.0.1"),))
    publisher.deliver(chunk)
    for client in broker.client_list():
        if client["cmd"] != "client|list":
            broker.client_kill_filter(_id=client["id"])
    try:
        publisher.deliver(chunk)
    except PublishError:
        publisher.deliver(chunk)
    assert len(messages(broker, "tasks.deliver")) == 2
    publisher.close()


def test_constructor_waits_for_a_database(celery_app, monkeypatch, caplog):
    """The first connections fail, as those to a server that is still starting do."""
    monkeypatch.setattr("webtask_scheduler.scheduler.beat.PAUSE_SECONDS", 0.01)
    from django.db import OperationalError

    real, failures = connection.ensure_connection, iter([OperationalError("starting up")] * 3)

    def ensure():
        for failure in failures:
            raise failure
        real()

    monkeypatch.setattr(connection, "ensure_connection", ensure)
    monkeypatch.setattr(connection, "close", lambda: None)
    TimerScheduler(celery_app, lazy=False)
    assert [record.getMessage().split()[0] for record in caplog.records].count("database_awaited") == 1


def test_run_now_is_claimed_beside_the_promise(scheduler, broker, make_timer):
    timer = make_timer(delay_seconds=60)
    extra = services.run_now(timer.pk)
    scheduler.tick()
    assert Delivery.objects.get(pk=extra).state == State.CLAIMED
    assert str(timer.pk) in rung(broker)
    assert Delivery.objects.promised().get(timer=timer).state == State.SCHEDULED


def test_only_the_leader_runs_stock_tasks_and_another_takes_over(celery_app, broker, monkeypatch):
    every = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name="every second", task="some.task", interval=every)
    first, second = TimerScheduler(celery_app, lazy=False), TimerScheduler(celery_app, lazy=False)
    monkeypatch.setattr(TimerScheduler, "_name", property(lambda self: f"beat-{id(self)}"))
    first.tick()
    begun = time.monotonic()
    while (fired := len(messages(broker, "some.task"))) < 3:
        time.sleep(min(first.tick(), second.tick()))
        assert time.monotonic() - begun < 30
    # The second fires nothing of its own: it would be two a second.
    assert fired <= time.monotonic() - begun + 1
    assert first._leads()
    assert not second._leads()
    # Killed, stopped or cut off from the database: it no longer renews its lease.
    begun = time.monotonic()
    while not second._leads():
        time.sleep(second.tick())
        assert time.monotonic() - begun < 30
    assert not first._leads()
    while len(messages(broker, "some.task")) == fired:
        time.sleep(second.tick())
        assert time.monotonic() - begun < 60
    second.close()
    assert Leader.objects.get().expires_at <= timezone.now()
    first.close()


def test_leader_that_closes_hands_the_lead_over_at_once(celery_app, monkeypatch):
    first, second = TimerScheduler(celery_app, lazy=False), TimerScheduler(celery_app, lazy=False)
    monkeypatch.setattr(TimerScheduler, "_name", property(lambda self: f"beat-{id(self)}"))
    first.tick()
    first.close()
    second.tick()
    assert second._leads()
    second.close()


def lead_lines(caplog):
    return [text.split()[0] for record in caplog.records if (text := record.getMessage()).startswith("lead_")]


def test_lead_that_lapses_while_the_broker_is_silent_is_not_told_again_and_again(
    scheduler, make_timer, caplog, monkeypatch
):
    caplog.set_level("INFO")
    # As shipped: each turn outlasts the lease of the lead.
    assert beat.LEAD_SECONDS < 2 * publisher.BROKER_TIMEOUT_SECONDS
    monkeypatch.setattr(beat, "LEAD_SECONDS", 0.3)
    monkeypatch.setattr(publisher, "BROKER_TIMEOUT_SECONDS", 0.2)
    scheduler.tick()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        silent = Celery("silent", broker=f"redis://127.0.0.1:{listener.getsockname()[1]}/0", set_as_current=False)
        scheduler._publisher.close()
        scheduler._publisher._app = silent
        make_timer(delay_seconds=-1)
        begun = time.monotonic()
        lapses = 0
        while lapses < 4:
            time.sleep(min(scheduler.tick(), 0.1))
            lapses += not scheduler._leads()
            assert time.monotonic() - begun < 60
    assert lead_lines(caplog) == ["lead_taken"]
    said = [record.getMessage() for record in caplog.records if "dispatch_failing" in record.getMessage()]
    assert len(said) == 1


def test_lead_that_another_took_is_told_once(celery_app, monkeypatch, caplog):
    caplog.set_level("INFO")
    first, second = TimerScheduler(celery_app, lazy=False), TimerScheduler(celery_app, lazy=False)
    monkeypatch.setattr(TimerScheduler, "_name", property(lambda self: f"beat-{id(self)}"))
    first.tick()
    begun = time.monotonic()
    while not second._leads():
        time.sleep(second.tick())
        assert time.monotonic() - begun < 30
    for _ in range(3):
        first._seen_at = 0.0
        first.tick()
    assert lead_lines(caplog) == ["lead_taken", "lead_taken", "lead_lost"]
    first.close()
    second.close()


def test_beats_that_start_at_once_on_an_empty_database_store_each_entry_once(celery_app):
    """A row that both find missing would be refused to one, or, where nothing forbids it, be there twice."""
    PeriodicTask.objects.all().delete()
    IntervalSchedule.objects.all().delete()
    CrontabSchedule.objects.all().delete()
    PeriodicTasks.objects.all().delete()
    together, refused = threading.Barrier(4), []

    def note(execute, sql, params, many, context):
        try:
            return execute(sql, params, many, context)
        except IntegrityError as error:
            refused.append(error)
            raise

    def begin(_):
        beat = TimerScheduler(celery_app, lazy=True)
        try:
            with connection.execute_wrapper(note):
                together.wait(10)
                beat.setup_schedule()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, range(4)))
    assert refused == []
    assert PeriodicTask.objects.count() == len(celery_app.conf.beat_schedule)
    intervals = IntervalSchedule.objects.values_list("every", "period")
    assert len(intervals) == len(set(intervals)) > 0
