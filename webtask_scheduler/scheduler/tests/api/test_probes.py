"""Alive and ready: what the probes say when each part is missing."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from config.shared import missing_parts
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import Attempt, Beat, CallStop, ClockTimestamp, Delivery, State, Timer, Worker
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes
from webtask_scheduler.scheduler.tests.support.acting import begin, every, put_back, run
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import Service

READY = dict.fromkeys(("database", "migrations", "beat", "worker", "calls", "keys", "broker"), "ok")

db = pytest.mark.django_db


@contextmanager
def closed_port() -> Iterator[int]:
    """Hold a port that nobody listens at: connecting to it is refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def broker_at(settings):
    """Return a function that points the probe at another broker."""

    def point(url):
        settings.REDIS_URL = url
        facts.forget()

    yield point
    facts.forget()


@pytest.fixture(autouse=True)
def _looked_anew(monkeypatch):
    monkeypatch.setattr(facts, "_migrations", None)
    missing_parts[0] = 0


def see_beat(name="beat", *, seconds_ago=0.0):
    Beat.objects.update_or_create(name=name, defaults={"seen_at": ClockTimestamp() - timedelta(seconds=seconds_ago)})


@pytest.fixture
def worker(db):
    see_worker()


def see_worker(name="worker", *, kind="calls", seconds_ago=0.0, **idle):
    facts.note_worker(name=name, kind=kind, **{"starter_idle_seconds": 0.0, "held": 0, "running": 0} | idle)
    Worker.objects.filter(name=name, kind=kind).update(
        **{field: F(field) - timedelta(seconds=seconds_ago) for field in ("seen_at", "starter_at", "ledger_at")}
    )


# What tests wrote as a number of seconds, by what is read of it where the machine took one or two more to ask.
SECONDS = {7: 7, 8: 7, 9: 9, 10: 9, 11: 9} | {23 + more: 23 for more in range(3)} | {40 + more: 40 for more in range(3)}


def in_time(text):
    """Return a text with its seconds as a quick machine would say them."""
    return re.sub(r"\b([0-9]+) s\b", lambda found: f"{SECONDS.get(int(found[1]), found[1])} s", text)


def ready(client):
    answer = client.get("/readyz")
    body = answer.json()
    assert (answer.status_code, body["status"]) in ((200, "ok"), (503, "unavailable"))
    assert (answer.status_code == 200) == (set(body["checks"].values()) == {"ok"})
    assert answer["Content-Type"] == "application/json"
    return {name: in_time(said) for name, said in body["checks"].items()}


@each("method", ["get", "head"])
def test_alive_without_asking_anybody(client, method):
    # Without the mark for it, asking the database is an error.
    answer = getattr(client, method)("/healthz")
    assert answer.status_code == 200
    assert answer.content == (b'{"status": "ok"}' if method == "get" else b"")


@db
@each("path", ["/healthz", "/readyz"])
@each("method", ["post", "put", "delete", "options"])
def test_probes_are_for_looking(client, path, method):
    client.handler.enforce_csrf_checks = True
    assert getattr(client, method)(path).status_code == 405


@db
@pytest.mark.usefixtures("worker")
def test_ready_when_everything_answers(client):
    see_beat()
    assert ready(client) == READY
    assert client.head("/readyz").status_code == 200


@db
@pytest.mark.usefixtures("worker")
def test_not_ready_before_a_beat_was_ever_seen(client):
    assert ready(client) == READY | {"beat": "no beat was ever seen"}


@db
@each(("seconds_ago", "fresh"), [(4.0, True), (5.5, False), (3600.0, False)])
def test_a_beat_counts_for_five_seconds(client, seconds_ago, fresh):
    see_beat(seconds_ago=seconds_ago)
    beat = ready(client)["beat"]
    assert beat == "ok" if fresh else re.fullmatch(r"no beat was seen for \d+ s", beat)


@db
@pytest.mark.usefixtures("worker")
def test_one_fresh_beat_of_several_will_do(client):
    see_beat("gone", seconds_ago=3600)
    see_beat("here", seconds_ago=1)
    see_beat("long gone", seconds_ago=7200)
    assert ready(client) == READY


@db
@pytest.mark.usefixtures("worker")
def test_not_ready_while_a_migration_is_not_applied_and_ready_after(client):
    see_beat()
    record = MigrationRecorder.Migration.objects.filter(app="scheduler").latest("id")
    record.delete()
    checks = ready(client)
    assert checks["migrations"] == "not applied: run manage.py migrate"
    assert checks["beat"] == "not known before migrations are applied"
    assert checks["worker"] == checks["calls"] == "not known before migrations are applied"
    assert (checks["database"], checks["broker"]) == ("ok", "ok")
    record.save(force_insert=True)
    assert ready(client) == READY


@db
def test_migrations_are_looked_up_once(client, django_assert_num_queries):
    see_beat()
    ready(client)
    with django_assert_num_queries(1):
        ready(client)


@db
@pytest.mark.usefixtures("worker")
def test_not_ready_while_the_broker_is_away(client, broker_at):
    see_beat()
    with closed_port() as port:
        broker_at(f"redis://127.0.0.1:{port}/0")
        assert ready(client) == READY | {"broker": "the broker does not answer"}


@db
@pytest.mark.usefixtures("worker")
def test_a_broker_that_takes_and_says_nothing_is_not_waited_for_long(client, broker_at, monkeypatch):
    monkeypatch.setattr(facts, "BROKER_TIMEOUT_SECONDS", 0.2)
    see_beat()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker_at(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert ready(client) == READY | {"broker": "the broker does not answer"}
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            # Asked once: tries on top of each other would make a probe time out.
            silent.accept()


@db
def test_not_ready_before_a_worker_was_ever_seen(client):
    see_beat()
    assert ready(client) == READY | {"worker": "no worker was ever seen"}


@db
def test_not_ready_while_no_worker_is_at_work(client):
    see_beat()
    see_worker(seconds_ago=40)
    see_worker("upkeep", kind="upkeep")
    assert ready(client) == READY | {"worker": "no worker was seen for 40 s"}
    see_worker("another")
    assert ready(client) == READY


@db
@each("part", ["starter", "ledger"])
def test_not_ready_while_a_worker_writes_and_a_thread_of_it_does_not_move(client, part):
    see_beat()
    see_worker("host:1")
    see_worker("host:123", starter_idle_seconds=0.0 if part == "ledger" else 23.0, ledger_idle_seconds=23.0)
    found = ready(client)
    assert found == READY | {"worker": found["worker"]}
    # A slow machine takes half a second until it asks.
    assert re.fullmatch(f"worker host:123: its {part} has not moved for 2[3-5] s", found["worker"])
    see_worker("host:123")
    assert ready(client) == READY


@db
def test_stuck_worker_that_is_gone_as_well_does_not_stand_in_the_way_of_another(client):
    see_beat()
    see_worker("host:1")
    see_worker("host:123", starter_idle_seconds=23.0, seconds_ago=30)
    assert ready(client) == READY


@db
@pytest.mark.usefixtures("worker")
def test_not_ready_while_all_calls_are_stopped_and_ready_while_those_to_one_host_are(client):
    see_beat()
    CallStop.objects.create(host="a.example")
    assert ready(client) == READY
    CallStop.objects.create(host="")
    assert ready(client) == READY | {"calls": "calls are stopped"}


@db
@pytest.mark.usefixtures("worker")
def test_not_ready_while_the_broker_answers_and_takes_nothing(client, full_redis):
    see_beat()
    assert "the broker does not take messages" in ready(client)["broker"]
    full_redis.config_set("maxmemory", 0)
    assert ready(client) == READY


@db
@pytest.mark.usefixtures("worker")
def test_probe_tells_how_much_is_overdue_and_for_how_long(client, make_timer):
    see_beat()
    for seconds in (-30, -10, 60):
        make_timer(delay_seconds=seconds)
    backlog = client.get("/readyz").json()["backlog"]
    assert backlog["overdue"] == 2
    assert 30 <= backlog["oldest_seconds"] < 60


@db
@pytest.mark.usefixtures("worker")
def test_probe_counts_what_is_claimed_or_put_off_past_its_moment_and_no_retries(client, make_timer, sql):
    see_beat()
    claimed, put_off, failed = (make_timer(delay_seconds=-seconds) for seconds in (20, 40, 90))
    set_ = "UPDATE scheduler_delivery SET "
    sql(
        set_ + "state = 'claimed', lease_token = gen_random_uuid(), lease_expires_at = now() + interval '9 s'"
        " WHERE timer_id = %s",
        claimed.pk,
    )
    sql(set_ + "next_attempt_at = now() + interval '9 s' WHERE timer_id = %s", put_off.pk)
    sql(
        set_ + "next_attempt_at = now() + interval '9 s', attempts = 1, started_at = now() WHERE timer_id = %s",
        failed.pk,
    )
    backlog = client.get("/readyz").json()["backlog"]
    assert backlog["overdue"] == 2
    assert 40 <= backlog["oldest_seconds"] < 80


@db
@pytest.mark.usefixtures("worker")
def test_probe_that_fails_is_logged_when_other_parts_are_missing_and_when_none_is(client, caplog):
    def lines():
        said = [(record.levelname, in_time(record.getMessage())) for record in caplog.records]
        caplog.clear()
        return said

    caplog.set_level("INFO")
    see_beat()
    ready(client)
    assert lines() == []
    see_beat(seconds_ago=7)
    ready(client)
    assert lines() == [("WARNING", "not_ready parts='beat: no beat was seen for 7 s'")]
    see_beat(seconds_ago=9)
    for _ in range(3):
        ready(client)
    assert lines() == []
    CallStop.objects.create(host="")
    ready(client)
    assert lines() == [("WARNING", "not_ready parts='beat: no beat was seen for 9 s; calls: calls are stopped'")]
    CallStop.objects.all().delete()
    see_beat()
    for _ in range(3):
        ready(client)
    assert lines() == [("INFO", "ready_again")]


@db
def test_worker_that_slept_for_hours_notes_itself_and_clears_away_others():
    see_worker("here", seconds_ago=7200)
    see_worker("gone", seconds_ago=7200)
    see_worker("here")
    assert list(Worker.objects.values_list("name", flat=True)) == ["here"]


# What a timer says


@pytest.fixture
def reason(client):
    """Return a function that reads a timer's reason by the API."""

    def read(timer):
        facts.forget()
        return in_time(client.get(f"/timer/{timer.pk}").json()["reason"])

    return read


@db
def test_timer_names_what_it_waits_for(reason, make_timer):
    timer = make_timer("http://a.example/", delay_seconds=-1)
    assert reason(timer) == "No beat has been at work yet; it is called when one is."
    see_beat(seconds_ago=40)
    assert reason(timer) == "No beat has been at work for 40 s; it is called when one is back."
    see_beat()
    assert reason(timer) == "No worker has been at work yet; it is called when one is."
    see_worker("host:1", seconds_ago=40)
    assert reason(timer) == "No worker has been at work for 40 s; it is called when one is back."
    see_worker("host:1", starter_idle_seconds=23)
    said = "No worker starts calls (worker host:1: its starter has not moved for 23 s); it is called when one does."
    assert reason(timer) == said
    see_worker("host:1")
    assert reason(timer) == "It is due and waits for a beat to claim it."
    CallStop.objects.create(host="a.example")
    assert reason(timer) == "Calls to a.example are stopped by an operator; it is called when they are resumed."
    CallStop.objects.create(host="")
    assert reason(timer) == "All calls are stopped by an operator; it is called when they are resumed."


GONE = "A call was answered 410 Gone, which paused it; resume it to let it go on."
PAUSED = "It is paused; resume it to let it go on."


# For real: that rows were written by one transaction is what tells why a timer is paused.
@pytest.mark.django_db(transaction=True)
def test_timer_that_a_410_paused_says_so_until_somebody_resumes_it(reason, make_timer, admin_client):
    names = ("gone", "later", "by hand", "in flight", "taken for a success")
    timers = [make_timer(delay_seconds=None, recurrence=every(60.0), name=name) for name in names]
    gone, later, by_hand, in_flight, taken = timers
    for timer in timers:
        put_back(timer)
    services.pause(by_hand.pk)
    calls = begin().started
    for timer in (in_flight, taken):
        services.pause(timer.pk)
    record_outcomes(
        [
            Outcome(call, call.started_at, 5, 410, "" if call.timer_id == taken.pk else "status", "", "")
            for call in calls
        ]
    )
    assert Delivery.objects.filter(state=State.PAUSED).count() == len(timers)
    # Paused by hand during the call, it is paused by the answer too.
    assert [reason(timer) for timer in timers] == [GONE, GONE, PAUSED, GONE, PAUSED]
    listed = admin_client.get("/timer?fields=reason&status=paused").json()["timers"]
    assert sorted(one["reason"] for one in listed) == [GONE] * 3 + [PAUSED] * 2
    for address in (f"/timers/{gone.pk}", f"/admin/scheduler/timer/{gone.pk}/change/"):
        assert GONE in admin_client.get(address).content.decode(), address
    task = f"/admin/django_celery_beat/periodictask/{gone.periodic_task_id}/change/"
    assert GONE in admin_client.get(task).content.decode()
    # Neither a second pause nor a replay of what failed lets it go on.
    services.pause(gone.pk)
    assert reason(gone) == GONE
    services.replay(gone.pk)
    assert reason(gone) == GONE
    run()
    assert reason(gone) == GONE
    # A person who resumes it and pauses it again is who paused it, however its last call was answered.
    services.resume(later.pk)
    assert reason(later) == "Its moment has not come yet."
    services.pause(later.pk)
    assert reason(later) == PAUSED
    # Another name changes nothing of it.
    Timer.objects.filter(pk=in_flight.pk).update(name="renamed")
    assert reason(in_flight) == GONE
    # All rows of one transaction: as after a restore from a dump.
    with transaction.atomic():
        Timer.objects.update(name="restored")
        Delivery.objects.update(fault=None)
        Attempt.objects.update(worker="restored")
    assert [reason(timer) for timer in (gone, later, in_flight)] == [PAUSED] * 3


@db
def test_list_says_why_its_timers_are_paused_by_one_statement(client, make_timer, django_assert_num_queries):
    def listed(statements):
        with django_assert_num_queries(statements):
            return {one["reason"] for one in client.get("/timer").json()["timers"]}

    timers = [make_timer(delay_seconds=None, recurrence=every(60.0)) for _ in range(20)]
    assert listed(3) == {"Its moment has not come yet."}
    for timer in timers:
        put_back(timer)
    run(status_code=410, error="status")
    # As before, the attempts of what is listed are not asked for, because there are none.
    listed(4)


@db
def test_claimed_timer_does_not_count_on_a_worker_that_is_not_there(reason, make_timer):
    timer = make_timer("http://a.example/", delay_seconds=0.5)
    assert claim_due(ahead_seconds=1).held
    assert reason(timer) == "No worker has been at work yet; it is called when one is."
    see_worker(seconds_ago=40)
    assert reason(timer) == "No worker has been at work for 40 s; it is called when one is back."
    see_worker()
    assert reason(timer) == "A beat has claimed it; a worker calls it at its moment."
    CallStop.objects.create(host="a.example")
    assert "are stopped by an operator" in reason(timer)


@db
@pytest.mark.usefixtures("worker")
def test_timer_names_a_broker_that_does_not_answer(reason, make_timer, broker_at):
    see_beat()
    with closed_port() as port:
        broker_at(f"redis://127.0.0.1:{port}/0")
        timer = make_timer(delay_seconds=-1)
        assert reason(timer) == "The broker does not answer; it is called when it does."


@db
@pytest.mark.usefixtures("worker")
def test_claimed_timer_says_that_workers_are_behind(reason, make_timer):
    see_beat()
    timer = make_timer(delay_seconds=-7)
    assert claim_due().held
    said = r"A beat has claimed it; 1 delivery waits for a worker, the oldest for \d+ s\."
    assert re.fullmatch(said, reason(timer))


@db
def test_retry_that_is_due_names_the_failure_and_what_it_waits_for(reason, make_timer, delivery_of):
    timer = make_timer(delay_seconds=-5)
    delivery = delivery_of(timer)
    Delivery.objects.filter(pk=delivery.pk).update(attempts=1, started_at=delivery.due_at)
    Attempt.objects.create(
        delivery=delivery,
        number=1,
        meant_for=delivery.due_at,
        started_at=delivery.due_at,
        error="status",
        message="No.",
    )
    assert reason(timer) == "Attempt 1 failed: No. No beat has been at work yet; it is called when one is."


@db
def test_timer_due_now_says_at_once_that_nobody_is_there(client):
    answer = client.post("/timer", {"seconds": 0, "web_url": "http://a.example/"}, content_type="application/json")
    assert answer.json()["reason"] == "No beat has been at work yet; it is called when one is."


@db
@pytest.mark.usefixtures("worker")
def test_facts_are_read_once_for_many_answers(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    client.get(f"/timer/{timer.pk}")
    with CaptureQueriesContext(connection) as queries:
        for _ in range(5):
            client.get(f"/timer/{timer.pk}")
    assert sum("scheduler_callstop" in query["sql"] for query in queries) <= 1


def test_a_real_process_lives_on_and_says_what_is_missing():
    service = Service()
    with closed_port() as database, closed_port() as broker:
        service.environment |= {
            "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{database}/nothing",
            "REDIS_URL": f"redis://127.0.0.1:{broker}/0",
        }
        try:
            service.start("web")
            for _ in range(2):
                status, body = service.get("/readyz")
                assert status == 503
                assert body["checks"] == dict.fromkeys(
                    ("database", "migrations", "beat", "worker", "calls", "keys"), "the database does not answer"
                ) | {"broker": "the broker does not answer"}
                assert service.get("/healthz") == (200, {"status": "ok"})
            status, body = service.post({"seconds": 1, "web_url": "http://a.example/"})
            assert (status, body["title"]) == (503, "Service Unavailable")
        finally:
            if "web" in service.processes:
                service.stop("web")
            service.broker.close()
