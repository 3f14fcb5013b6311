"""Alive and ready: what the probes say when each part is missing."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db.migrations.recorder import MigrationRecorder

from webtask_scheduler.scheduler import views
from webtask_scheduler.scheduler.models import Beat, ClockTimestamp
from webtask_scheduler.scheduler.tests.service import Service

READY = {"database": "ok", "migrations": "ok", "beat": "ok", "broker": "ok"}

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
        views._broker_client.cache_clear()

    yield point
    views._broker_client.cache_clear()


@pytest.fixture(autouse=True)
def _looked_anew(monkeypatch):
    monkeypatch.setattr(views, "_seen_migrated", False)


def see_beat(name="beat", *, seconds_ago=0.0):
    Beat.objects.update_or_create(name=name, defaults={"seen_at": ClockTimestamp() - timedelta(seconds=seconds_ago)})


def ready(client):
    answer = client.get("/readyz")
    body = answer.json()
    assert (answer.status_code, body["status"]) in ((200, "ok"), (503, "unavailable"))
    assert (answer.status_code == 200) == (set(body["checks"].values()) == {"ok"})
    assert answer["Content-Type"] == "application/json"
    return body["checks"]


@pytest.mark.parametrize("method", ["get", "head"])
def test_alive_without_asking_anybody(client, method):
    # Without the mark for it, asking the database is an error.
    answer = getattr(client, method)("/healthz")
    assert answer.status_code == 200
    assert answer.content == (b'{"status": "ok"}' if method == "get" else b"")


@db
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["post", "put", "delete", "options"])
def test_probes_are_for_looking(client, path, method):
    client.handler.enforce_csrf_checks = True
    assert getattr(client, method)(path).status_code == 405


@db
def test_ready_when_everything_answers(client):
    see_beat()
    assert ready(client) == READY
    assert client.head("/readyz").status_code == 200


@db
def test_not_ready_before_a_beat_was_ever_seen(client):
    assert ready(client) == READY | {"beat": "no beat was ever seen"}


@db
@pytest.mark.parametrize(("seconds_ago", "fresh"), [(4.0, True), (5.5, False), (3600.0, False)])
def test_a_beat_counts_for_five_seconds(client, seconds_ago, fresh):
    see_beat(seconds_ago=seconds_ago)
    beat = ready(client)["beat"]
    assert beat == "ok" if fresh else re.fullmatch(r"no beat was seen for \d+ s", beat)


@db
def test_one_fresh_beat_of_several_will_do(client):
    see_beat("gone", seconds_ago=3600)
    see_beat("here", seconds_ago=1)
    see_beat("long gone", seconds_ago=7200)
    assert ready(client) == READY


@db
def test_not_ready_while_a_migration_is_not_applied_and_ready_after(client):
    see_beat()
    record = MigrationRecorder.Migration.objects.filter(app="scheduler").latest("id")
    record.delete()
    checks = ready(client)
    assert checks["migrations"] == "not applied: run manage.py migrate"
    assert checks["beat"] == "not known before migrations are applied"
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
def test_not_ready_while_the_broker_is_away(client, broker_at):
    see_beat()
    with closed_port() as port:
        broker_at(f"redis://127.0.0.1:{port}/0")
        assert ready(client) == READY | {"broker": "the broker does not answer"}


@db
def test_a_broker_that_takes_and_says_nothing_is_not_waited_for_long(client, broker_at, monkeypatch):
    monkeypatch.setattr(views, "BROKER_TIMEOUT_SECONDS", 0.2)
    see_beat()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker_at(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert ready(client) == READY | {"broker": "the broker does not answer"}
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            # Asked once: tries on top of each other would make a probe time out.
            silent.accept()


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
                    ("database", "migrations", "beat"), "the database does not answer"
                ) | {"broker": "the broker does not answer"}
                assert service.get("/healthz") == (200, {"status": "ok"})
            status, body = service.post({"seconds": 1, "web_url": "http://a.example/"})
            assert (status, body["title"]) == (503, "Service Unavailable")
        finally:
            if "web" in service.processes:
                service.stop("web")
            service.broker.close()
