"""`/status`, its badge and its JSON: public where that is wanted, of the counts that operators see, and cheap."""

import threading
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.db.models.functions import Now

from webtask_scheduler.dashboard import status
from webtask_scheduler.dashboard.tests.test_operators import all_at_work, minute
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import Beat

pytestmark = pytest.mark.django_db
PATHS = ("/status", "/status.json", "/status/badge.svg")
ALL_WITHIN_2_MS = [0, 100] + [0] * 16
ONE_IN_TEN_LATE = [0, 90, 0, 0, 0, 0, 0, 0, 0, 10] + [0] * 8


@pytest.fixture(autouse=True)
def _nothing_known():
    status.forget()
    yield
    status.forget()


@pytest.fixture
def public(settings):
    settings.WEBTASK_STATUS = True
    settings.WEBTASK_API_AUTH = "key"


def word(client):
    status.forget()
    facts.forget()
    return client.get("/status.json").json()["status"]


def test_status_is_not_there_unless_it_is_made_public(client):
    for path in PATHS:
        assert client.get(path).status_code == 404


def test_status_is_for_anybody_and_for_caches(client, public):
    all_at_work()
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer["Cache-Control"] == "public, max-age=30"
        assert not answer.cookies
        assert "Cookie" not in answer.get("Vary", "")
        assert client.post(path).status_code == 405
    for path in PATHS[1:]:
        answer = client.get(path)
        assert answer["Access-Control-Allow-Origin"] == "*"
        assert answer["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert client.get("/status")["Cross-Origin-Resource-Policy"] == "same-origin"


def test_status_says_on_time_late_or_down(client, public, make_timer):
    assert word(client) == "down"
    all_at_work()
    assert word(client) == "on time"
    minute(timedelta(minutes=5), first_late=ALL_WITHIN_2_MS)
    assert word(client) == "on time"
    minute(timedelta(minutes=7), first_late=ONE_IN_TEN_LATE)
    assert word(client) == "late"
    make_timer(delay_seconds=-60)
    assert word(client) == "late"
    assert "Late." in client.get("/status").content.decode()
    assert ">late</text>" in client.get("/status/badge.svg").content.decode()
    services.stop_calls(host="a.example")
    assert word(client) == "late"
    services.stop_calls(everything=True)
    assert word(client) == "down"


def test_status_recovers_an_hour_after_the_last_late_call(client, public):
    all_at_work()
    minute(timedelta(minutes=70), first_late=ONE_IN_TEN_LATE)
    assert word(client) == "on time"
    body = client.get("/status.json").json()
    assert body["windows"]["24h"] == {"share_percent": 90.0, "p50_ms_at_most": 2.0, "p99_ms_at_most": 1000.0}
    assert body["windows"]["1h"] == {"share_percent": None, "p50_ms_at_most": None, "p99_ms_at_most": None}
    assert body["objective"] == {"percent": 99.0, "seconds": 0.1}
    assert len(body["days"]) == 30


def test_status_agrees_with_what_operators_see(client, public, settings):
    all_at_work()
    minute(timedelta(minutes=5), first_late=ONE_IN_TEN_LATE)
    settings.WEBTASK_API_AUTH = "open"
    shown = client.get("/punctuality?window=24h").context
    assert shown["share"] == "90"
    assert client.get("/status.json").json()["windows"]["24h"]["share_percent"] == 90.0
    # Both by the setting.
    settings.WEBTASK_SLO_SECONDS = 1.0
    status.forget()
    assert client.get("/punctuality?window=24h").context["share"] == "100"
    assert client.get("/status.json").json()["windows"]["24h"]["share_percent"] == 100.0


def test_status_names_no_host_and_no_number_of_calls(client, public):
    Beat.objects.create(name="secret-machine:1", seen_at=Now())
    facts.note_worker(name="secret-machine:2", kind="calls", starter_idle_seconds=0, held=0, running=0)
    services.stop_calls(host="secret.example", reason="secret reason")
    minute(timedelta(minutes=5), first_late=[0, 54_321] + [0] * 16)
    for path in PATHS:
        shown = client.get(path).content.decode()
        assert "secret" not in shown
        assert "54321" not in shown
        assert "54,321" not in shown


def test_flood_costs_one_look_every_half_minute(client, public, django_assert_num_queries, monkeypatch):
    all_at_work()
    client.get("/status")
    with django_assert_num_queries(0):
        for path in PATHS * 20:
            assert client.get(path).status_code == 200
    # Others have what was known while one thread finds out.
    monkeypatch.setattr(status, "KEPT_SECONDS", 0.0)
    with status._lock, django_assert_num_queries(0):
        assert status.current().word == "on time"
    before = status.current()
    assert status.current() is not before


@pytest.mark.django_db(transaction=True)
def test_status_without_the_database_is_down(public, client, monkeypatch):
    all_at_work()

    def away():
        raise OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(facts, "gather", away)
    body = client.get("/status.json").json()
    assert (body["status"], body["windows"], body["days"]) == ("down", {}, [])
    assert "Down." in client.get("/status").content.decode()


def test_page_speaks_the_language_of_the_browser(client, public):
    all_at_work()
    client.cookies["django_language"] = "de"
    english = client.get("/status", headers={"accept-language": "en"})
    assert english["Content-Language"] == "en"
    assert "Accept-Language" in english["Vary"]
    assert 'dir="rtl"' in client.get("/status", headers={"accept-language": "ar"}).content.decode()
    assert 'dir="rtl"' not in client.get("/status", headers={"accept-language": "en"}).content.decode()


def test_one_of_many_threads_finds_out(public, monkeypatch):
    times = []
    begun = threading.Event()

    def slowly():
        times.append(1)
        begun.wait(0.2)
        return status.Status("on time", None)

    monkeypatch.setattr(status, "_find_out", slowly)
    threads = [threading.Thread(target=status.current) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1
