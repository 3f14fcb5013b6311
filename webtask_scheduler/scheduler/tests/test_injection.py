"""Text that would mean something to a program that it passes through: it is text everywhere, or refused."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from webtask_scheduler import terminal
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Attempt, CallStop, Delivery, Timer
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes
from webtask_scheduler.scheduler.tests.support.acting import begin, put_back
from webtask_scheduler.scheduler.tests.support.api import call_all, post, stored
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.telemetry.logs import JSONFormatter, LineFormatter

pytestmark = pytest.mark.django_db

HTML = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
PAYLOADS = {
    "crlf": "x\r\nX-Injected: yes\r\n\r\nGET /injected HTTP/1.1\r\n",
    "html": HTML,
    "template": "{{ 7|add:42 }}{% debug %}{{ settings.SECRET_KEY }}${7*7}%(host)s%s{0.__class__}",
    "sql": "'); DROP TABLE scheduler_timer; --\\' OR '1'='1' %' _%% $$",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eabc\u2028\x7f",
    "nul": "a\x00b",
    "surrogate": "a\ud800b",
}
# What a request may hold, each with a text somewhere in it.
FIELDS = {
    "name": lambda text: {"name": text},
    "key of a label": lambda text: {"labels": {text: "x"}},
    "label": lambda text: {"labels": {"team": text}},
    "metadata": lambda text: {"metadata": {"note": text, text: 1}},
    "body": lambda text: {"body": text},
    "body in JSON": lambda text: {"body": {text: text}},
    "content type": lambda text: {"body": "x", "content_type": f"text/plain; a={text}"},
    "header": lambda text: {"headers": {"X-Shop": text}},
    "name of a header": lambda text: {"headers": {text: "x"}},
    "path": lambda text: {"web_url": f"http://127.0.0.1:9/{text}"},
    "query": lambda text: {"web_url": f"http://127.0.0.1:9/?q={text}"},
    "host": lambda text: {"web_url": f"http://{text}/"},
    "user of a URL": lambda text: {"web_url": f"http://{text}:x@127.0.0.1:9/"},
    "callback": lambda text: {"callback_url": f"http://127.0.0.1:9/?q={text}"},
    "failure callback": lambda text: {"failure_callback_url": f"http://127.0.0.1:9/?q={text}"},
    "cron": lambda text: {"cron": text},
    "time zone": lambda text: {"cron": "0 9 * * *", "timezone": text},
    "interval": lambda text: {"every": text},
    "delay": lambda text: {"delay": text},
    "due": lambda text: {"due_at": text},
    "method": lambda text: {"method": text},
    "what is unknown": lambda text: {text: text},
}
SEARCHES = ("name", "host", "label", "url_prefix", "status", "cursor", "due_from", "recurring", "limit")
payloads = each("text", PAYLOADS.values(), ids=PAYLOADS.keys())


def request_with(field, text):
    fields = {"web_url": "http://127.0.0.1:9/"} | FIELDS[field](text)
    return fields if fields.keys() & {"cron", "every", "delay", "due_at"} else fields | {"seconds": 3600}


def assert_shown_as_text(page, text):
    """A page has none of the text's tags, and none of its templates was filled in."""
    shown = page.content.decode()
    assert page.status_code == 200
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "local-development-only" not in shown
    if "7|add:42" in text and "add:42" in shown:
        assert "{{ 7|add:42 }}" in shown


def printed(*words):
    """Return what a command prints, and that it prints nothing that a terminal obeys."""
    out = io.StringIO()
    try:
        call_command(*words, stdout=out, stderr=out)
    except CommandError as error:
        terminal.Command(stderr=out).stderr.write(str(error))
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", text.replace("\x1b[31;1m", ""))
    return text


@payloads
@each("field", FIELDS)
def test_text_of_a_request_is_text_or_refused(client, field, text):
    before = stored()
    answer = post(client, request_with(field, text))
    if answer.status_code != 201:
        assert answer.status_code == 400, answer.content
        assert answer["Content-Type"] == "application/problem+json"
        assert "X-Injected" not in answer.headers
        assert stored() == before
        return
    timer = Timer.objects.get()
    shown = client.get(f"/timer/{timer.pk}").json()
    for name, value in request_with(field, text).items():
        if name in ("name", "labels", "metadata", "body", "headers", "web_url", "callback_url") and name in shown:
            expected = dict.fromkeys(value, "***") if name == "headers" else value
            assert shown[name] == expected or name in ("web_url", "callback_url")
    lines = printed("timer", "list").splitlines()
    assert len(lines) == 2
    printed("timer", "get", str(timer.pk))
    assert json.loads(printed("timer", "get", str(timer.pk), "--json"))["task_id"] == str(timer.pk)
    assert len(json.loads(printed("timer", "list", "--json"))["timers"]) == 1
    printed("timer", "cancel", str(timer.pk))


@payloads
def test_text_of_timers_is_text_in_the_admin(client, admin_client, text):
    # One timer for each field that takes it.
    for field in FIELDS:
        post(client, request_with(field, text))
    pages = ["/admin/scheduler/timer/", "/admin/django_celery_beat/periodictask/", "/admin/scheduler/delivery/"]
    for timer in Timer.objects.all():
        pages += [
            f"/admin/scheduler/timer/{timer.pk}/change/",
            f"/admin/django_celery_beat/periodictask/{timer.periodic_task_id}/change/",
        ]
    for path in pages:
        assert_shown_as_text(admin_client.get(path), text)


@payloads
@each("field", ["name", "label", "body", "content type", "header", "name of a header", "metadata"])
def test_text_does_not_become_a_header_or_a_request_at_the_receiver(client, receiver, field, text):
    fields = request_with(field, text) | {"web_url": receiver.url("/"), "seconds": 0}
    if post(client, fields).status_code != 201:
        return
    put_back(Timer.objects.get())
    (call,) = call_all(receiver)
    assert call.path == "/" or "injected" not in call.path
    assert not [name for name in call.headers if name.lower() == "x-injected"]


@payloads
@each("name", SEARCHES)
def test_text_of_a_search_finds_nothing_and_breaks_nothing(client, make_timer, name, text):
    make_timer("http://127.0.0.1:9/")
    answer = client.get("/timer", {name: text.encode("utf-8", "surrogatepass")})
    assert answer.status_code in (200, 400), answer.content
    if answer.status_code == 200:
        assert answer.json()["timers"] == []
    assert Timer.objects.count() == 1


@payloads
def test_text_of_a_search_in_the_admin_is_text(admin_client, make_timer, text):
    make_timer("http://127.0.0.1:9/")
    for path in ("/admin/scheduler/timer/", "/admin/django_celery_beat/periodictask/"):
        for field in ("q", "host"):
            page = admin_client.get(path, {field: text.encode("utf-8", "surrogatepass")}, follow=True)
            assert_shown_as_text(page, text)
    assert Timer.objects.count() == 1


@payloads
@each("name", ["X-Request-ID", "Idempotency-Key", "traceparent", "Accept-Language", "Host"])
def test_text_of_a_header_is_text_or_refused(client, caplog, name, text):
    raw = text.encode("utf-8", "surrogatepass").decode("latin-1")
    answer = post(client, {"web_url": "http://127.0.0.1:9/", "seconds": 3600}, headers={name: raw})
    assert answer.status_code in (201, 400), answer.content
    assert "X-Injected" not in answer.headers
    assert not re.search(r"[\r\n\x00]", answer["X-Request-ID"])
    for record in caplog.records:
        for formatter in (LineFormatter(), JSONFormatter()):
            assert not re.search(r"[\x00-\x1f\x7f]", formatter.format(record)), record


@payloads
def test_answer_of_a_receiver_is_text(client, admin_client, make_timer, text):
    timer = make_timer()
    delivery = Delivery.objects.get(timer=timer)
    kept = text.replace("\x00", "").encode("utf-8", "replace").decode()
    put_back(timer)
    (call,) = begin().started
    record_outcomes([Outcome(call, call.started_at, 5, 500, "status", kept, kept)])
    assert Attempt.objects.get().excerpt == kept
    for path in (f"/admin/scheduler/timer/{timer.pk}/change/", f"/admin/scheduler/delivery/{delivery.pk}/change/"):
        assert_shown_as_text(admin_client.get(path), text)
    lines = printed("timer", "get", str(timer.pk)).splitlines()
    assert len([line for line in lines if line.startswith("attempt")]) == 1


@payloads
def test_reason_of_a_stop_is_text(admin_client, make_timer, text):
    make_timer("http://shop.example/")
    kept = text.replace("\x00", "").encode("utf-8", "replace").decode()
    services.stop_calls(host="shop.example", everything=False, reason=kept, by="a test")
    assert CallStop.objects.get().reason == kept
    assert_shown_as_text(admin_client.get("/admin/scheduler/callstop/"), text)
    # A line for the stop, one each for what waits, what is overdue, beat, workers, upkeep, broker and keys.
    assert len(printed("calls", "status").splitlines()) == 8
    printed("calls", "stop", "--host", f"http://{kept}/")


@payloads
def test_error_of_a_command_is_text(text):
    printed("timer", "create", f"http://{text}/", "--seconds", "5")
    printed("timer", "create", "http://a.example/", "--cron", text)
    printed("timer", "list", "--host", text)


def test_tables_are_there():
    """That is: no test above has dropped one in a transaction of its own."""
    assert "scheduler_timer" in connection.introspection.table_names()


@each(
    ("value", "shown"),
    [
        ("plain text, ü, 漢字, العربية", "plain text, ü, 漢字, العربية"),
        ("\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m"),
        ("two\nlines\r\n\ttab", "two\\u000alines\\u000d\\u000a\\u0009tab"),
        ("\x9b31m \u202eevil", "\\u009b31m \\u202eevil"),
        (17, "17"),
    ],
)
def test_value_on_one_line(value, shown):
    assert terminal.one_line(value) == shown


def test_colours_of_errors_are_ours():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    command = terminal.Command(stderr=out, force_color=True)
    command.stderr.write("bad \x1b[2J value\nnext line")
    assert out.getvalue().startswith("\x1b[")
    assert "\\u001b[2J value\nnext line" in out.getvalue()
