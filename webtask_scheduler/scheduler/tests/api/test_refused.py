"""A timer to an address that is not called is refused when it is made, whoever makes it and however."""

import json
import socket

import pytest
from django.core.management import CommandError, call_command

from webtask_scheduler.scheduler.models import Timer
from webtask_scheduler.scheduler.outgoing.egress import Egress
from webtask_scheduler.scheduler.tests.support.api import URL, create, post, send, stored
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

REFUSED = {
    "http://127.0.0.1:8000/": "loopback",
    "http://2130706433/": "loopback",
    "http://0x7f.1/": "loopback",
    "http://[::1]/": "loopback",
    "http://[::ffff:8.8.8.8]/": "IPv4 address inside an IPv6 one",
    "http://me:secret@10.0.0.1/": "private network",
    "http://169.254.169.254/latest/meta-data/": "metadata service",
    "http://redis:6379/": "port 6379",
    "https://mail.example:25/": "port 25",
    "http://a.rival.example/": "operator",
}


@pytest.fixture(autouse=True)
def _as_in_production(settings, monkeypatch):
    settings.WEBTASK_EGRESS = Egress(deny="*.rival.example")

    def resolve(*_, **__):
        raise AssertionError("A name is looked up.")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@each(("url", "rule"), REFUSED.items())
def test_address_that_is_not_called_is_refused_with_its_rule(client, url, rule):
    before = stored()
    answer = post(client, {"seconds": 5, "web_url": url})
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    (error,) = json.loads(answer.content)["errors"]
    assert (error["field"], rule in error["detail"]) == ("web_url", True), error
    assert stored() == before


@each("url", ["http://localhost:8000/", "http://redis/", "http://metadata.google.internal/", URL])
def test_name_is_taken_without_being_looked_up(client, url):
    assert post(client, {"seconds": 5, "web_url": url}).status_code == 201


@each("name", ["callback_url", "failure_callback_url"])
def test_callback_meets_the_same_rule(client, name):
    answer = post(client, {"seconds": 5, "web_url": URL, name: "http://10.0.0.1/"})
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [name]


def test_edit_batch_and_command_meet_the_same_rule(client):
    made = create(client)
    edited = send(client, "PATCH", f"/timer/{made['task_id']}", {"web_url": "http://10.0.0.1/"})
    assert (edited.status_code, Timer.objects.get().web_url) == (400, URL)
    batch = [{"seconds": 5, "web_url": URL}, {"seconds": 5, "web_url": "http://10.0.0.1/"}]
    assert post(client, {"timers": batch}, "/timer/batch").status_code == 400
    with pytest.raises(CommandError, match=r"web_url: .*private network"):
        call_command("timer", "create", "http://10.0.0.1/", "--seconds", "1")
    assert Timer.objects.count() == 1


def test_address_that_is_allowed_is_taken(client, settings):
    settings.WEBTASK_EGRESS = Egress(allow="10.0.0.0/8 :6379")
    for url in ("http://10.0.0.1/", "http://redis:6379/"):
        assert post(client, {"seconds": 5, "web_url": url}).status_code == 201
