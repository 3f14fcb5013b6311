"""What is kept of an answer beside its body, and who called: as it is recorded and shown."""

import json
import os

import pytest

from webtask_scheduler.scheduler.models import Attempt
from webtask_scheduler.scheduler.queue.rollups import process_name
from webtask_scheduler.scheduler.tests.support.acting import run
from webtask_scheduler.scheduler.tests.support.api import call_all

pytestmark = pytest.mark.django_db(transaction=True)
HEADERS = {
    "X-Why": "full",
    "Set-Cookie": "a=b",
    "X-Echo": "Bearer topsecret123",
    "Location": "https://u:p@a.example/?t=1",
}
KEPT = {"x-why": "full", "set-cookie": "***", "x-echo": "Bearer ***", "location": "https://***@a.example/?***"}


def shown_of(client, timer, query=""):
    return client.get(f"/timer/{timer.pk}/attempts{query}").json()["attempts"]


def make(make_timer, receiver, status=503, **options):
    options = {"headers": {"Authorization": "Bearer topsecret123"}, "retry": {"max_attempts": 1}} | options
    return make_timer(receiver.answer(status, HEADERS), delay_seconds=-1, options=options)


def test_headers_of_a_failure_are_kept_without_secrets(client, make_timer, receiver):
    timer = make(make_timer, receiver)
    call_all(receiver)
    (shown,) = shown_of(client, timer)
    # Those of the server itself come first.
    assert list(shown["response_headers"])[:2] == ["server", "date"]
    assert shown["response_headers"].items() >= KEPT.items()
    assert shown["response_headers"]["content-length"] == "2"
    assert shown["response_headers_left_out"] == 0
    assert shown["worker"] == process_name()
    assert shown["worker"].endswith(f":{os.getpid()}")
    stored = Attempt.objects.values().get()
    assert "topsecret123" not in str(stored)
    assert "u:p" not in str(stored)


def test_setting_says_of_which_attempts_they_are_kept(client, make_timer, receiver, settings):
    for kept, of in (("failed", [503]), ("all", [503, 200]), ("none", [])):
        settings.WEBTASK_KEEP_HEADERS = kept
        timers = {status: make(make_timer, receiver, status) for status in (503, 200)}
        timers[None] = make_timer("http://127.0.0.1:9/", delay_seconds=-1)
        call_all(receiver)
        attempts = {status: shown_of(client, timer)[0] for status, timer in timers.items()}
        assert [status for status, shown in attempts.items() if shown["response_headers"] is not None] == of
        assert {shown["worker"] for shown in attempts.values()} == {process_name()}


def test_answers_to_a_sensitive_timer_are_not_kept(client, make_timer, receiver):
    timer = make(make_timer, receiver, sensitive=True)
    call_all(receiver)
    (shown,) = shown_of(client, timer)
    assert (shown["status_code"], shown["excerpt"], shown["response_headers"]) == (503, "", None)


def test_attempts_made_before_have_neither(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    run()
    Attempt.objects.update(worker=None)
    (shown,) = shown_of(client, timer)
    assert (shown["response_headers"], shown["response_headers_left_out"], shown["worker"]) == (None, 0, None)


def test_list_of_attempts_reads_and_shows_what_is_asked_for(client, make_timer, receiver, django_assert_num_queries):
    timer = make(make_timer, receiver)
    call_all(receiver)
    (whole,) = shown_of(client, timer)
    for fields in ("status_code,worker", "response_headers", "response_headers_left_out", "excerpt,stages", "number"):
        # The timer and its attempts; nothing is read later, attempt by attempt.
        with django_assert_num_queries(2) as queries:
            (shown,) = shown_of(client, timer, f"?fields={fields}")
        assert shown == {name: whole[name] for name in ("delivery_id", "number", *fields.split(","))}
        assert ('"excerpt"' in queries[-1]["sql"]) == ("excerpt" in fields)
        assert ('"headers"' in queries[-1]["sql"]) == ("headers" in fields)
    assert client.get(f"/timer/{timer.pk}/attempts?fields=body").status_code == 400
    assert "headers" not in json.dumps(client.get(f"/timer/{timer.pk}").json()["attempts"])
