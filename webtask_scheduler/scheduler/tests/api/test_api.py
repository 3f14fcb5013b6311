"""What the API takes, refuses and answers; some of it over real HTTP."""

import http.client
import json
import re
import socket
import threading
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from django.urls import reverse
from django_celery_beat.models import ClockedSchedule, PeriodicTask, PeriodicTasks

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.api.timers import TimerFormSerializer, TimersView
from webtask_scheduler.scheduler.models import TASK_NAME, Attempt, Beat, ClockTimestamp, Delivery, State, Timer
from webtask_scheduler.scheduler.tests.support.acting import move as reschedule
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import Service, database_url

PATHS = ["/timer", "/timer/", "/api/v1/scheduler/timer", "/api/v1/scheduler/timer/"]
URL = "http://a.example/hook?x=1"
GOOD = {"hours": 0, "minutes": 0, "seconds": 5, "web_url": URL}
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
PROBLEM = "application/problem+json"
HORIZON = 10 * 365 * 24 * 3600
LIMIT = 4 * 1024 * 1024

db = pytest.mark.django_db


def post(client, body, *, content_type=JSON, path="/timer", **headers):
    """Post a body: bytes and text as they are, anything else as JSON."""
    raw = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.generic("POST", path, raw, content_type, headers=headers)


def stored():
    """Count the rows in the four tables that a creation writes."""
    ours = PeriodicTask.objects.filter(task=TASK_NAME)
    return [rows.count() for rows in (ClockedSchedule.objects, ours, Timer.objects, Delivery.objects)]


def assert_problem(answer, status, fields=None):
    """Assert problem details that name exactly these fields; None where the request as a whole is wrong."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == PROBLEM
    body = json.loads(answer.content)
    assert body["type"] == "about:blank"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body.keys() <= {"type", "title", "status", "detail", "errors"}
    if fields is None:
        assert "errors" not in body
    else:
        assert sorted(item["field"] for item in body["errors"]) == sorted(fields)
        assert all(item["detail"] in body["detail"] for item in body["errors"])
    return body


# Creating


@db
@each("path", PATHS)
def test_creating_answers_201_with_the_timer_and_its_location(client, path):
    answer = post(client, GOOD, path=path)
    body = answer.json()
    assert answer.status_code == 201
    assert answer["Content-Type"] == JSON
    assert answer["Location"] == f"{path.rstrip('/')}/{body['task_id']}"
    assert body == {
        "task_id": str(Timer.objects.get().pk),
        "status": "scheduled",
        "web_url": URL,
        "created_at": body["created_at"],
        "due_at": body["due_at"],
        "time_left_in_seconds": 5,
        "next_attempt_at": body["due_at"],
        "finished_at": None,
        "reason": "Its moment has not come yet.",
        "attempts": [],
    }
    created_at, due_at = map(datetime.fromisoformat, (body["created_at"], body["due_at"]))
    assert due_at - created_at == timedelta(seconds=5)
    assert due_at.utcoffset() == timedelta(0)
    assert client.get(answer["Location"]).json() == body
    assert client.get(answer["Location"] + "/").json() == body


@db
def test_creating_stores_four_rows_that_say_the_same(client):
    body = post(client, {"hours": 1, "minutes": 2, "seconds": 3, "web_url": "http://Me:pw@A.Example:8080/x"}).json()
    assert stored() == [1, 1, 1, 1]
    timer = Timer.objects.get()
    delivery = Delivery.objects.get()
    task = PeriodicTask.objects.get()
    assert timer.pk == delivery.timer_id == uuid.UUID(body["task_id"])
    assert timer.pk.version == 7
    assert timer.periodic_task == task
    assert timer.web_url == body["web_url"] == "http://***@A.Example:8080/x"
    assert timer.host == "a.example:8080"
    assert timer.owner is None
    assert timer.created_at == datetime.fromisoformat(body["created_at"])
    assert delivery.due_at == delivery.next_attempt_at == timer.created_at + timedelta(seconds=3723)
    assert (delivery.state, delivery.attempts, delivery.number, delivery.extra) == ("scheduled", 0, 1, False)
    assert task.clocked.clocked_time == delivery.due_at
    assert task.name == f"timer {timer.pk}"
    assert task.task == TASK_NAME
    assert (task.args, json.loads(task.kwargs)) == ("[]", {"timer_id": str(timer.pk)})
    assert (task.one_off, task.enabled, task.last_run_at, task.total_run_count) == (True, True, None, 0)
    assert (task.interval, task.crontab, task.solar, task.expires, task.queue) == (None, None, None, None, None)
    task.full_clean()


@db
def test_creating_takes_one_statement(client, django_assert_num_queries):
    post(client, GOOD)
    with django_assert_num_queries(1):
        assert post(client, GOOD).status_code == 201


@db
def test_creating_leaves_stock_beats_marker_row_alone(client):
    PeriodicTasks.update_changed()
    before = list(PeriodicTasks.objects.values())
    post(client, GOOD)
    assert list(PeriodicTasks.objects.values()) == before


@db
@each(
    ("when", "seconds"),
    [
        ({"seconds": 5}, 5),
        ({"minutes": 2}, 120),
        ({"hours": 1}, 3600),
        ({"hours": 1, "seconds": 1}, 3601),
        ({"seconds": 100_000}, 100_000),
        ({"seconds": 0}, 0),
        ({"hours": 0, "minutes": 0, "seconds": 0}, 0),
        ({"seconds": HORIZON}, HORIZON),
        ({"hours": HORIZON // 3600}, HORIZON),
    ],
)
def test_any_of_the_three_says_when(client, when, seconds):
    body = post(client, {"web_url": URL, **when}).json()
    assert body["time_left_in_seconds"] == seconds
    delivery = Delivery.objects.select_related("timer").get()
    assert delivery.due_at - delivery.timer.created_at == timedelta(seconds=seconds)


@pytest.fixture
def at_work(db):
    """Have a beat and a worker be seen at work."""
    Beat.objects.create(name="beat", seen_at=ClockTimestamp())
    facts.note_worker(name="worker", kind="calls", starter_idle_seconds=0.0, held=0, running=0)


@db
@pytest.mark.usefixtures("at_work")
def test_zero_is_due_at_once(client):
    body = post(client, {"seconds": 0, "web_url": URL}).json()
    assert body["due_at"] == body["created_at"]
    assert body["reason"] == "It is due and waits for a beat to claim it."


@db
def test_the_furthest_moment_is_a_setting(client, settings):
    settings.WEBTASK_HORIZON_SECONDS = 60
    assert post(client, {"minutes": 1, "web_url": URL}).status_code == 201
    body = assert_problem(post(client, {"minutes": 1, "seconds": 1, "web_url": URL}), 400, ["minutes", "seconds"])
    assert "60 seconds" in body["detail"]


@db
@each(
    "web_url",
    [
        "http://a",
        "https://a.example/",
        "HTTP://A.EXAMPLE/Path",
        "http://a.example:8080/p?q=1&r=%20#f",
        "http://127.0.0.1:9/",
        "http://[::1]:9/",
        "http://@a.example/",
        "http://a.example/@me?a=b@c#d@e",
        "http://münchen.example/straße?q=ü",
        "http://a.example/%zz%",
        "http://a.example/'\"<>{}|^`",
        "http://a.example/" + "q" * (2048 - len("http://a.example/")),
    ],
)
def test_a_url_is_kept_as_it_was_given(client, web_url):
    answer = post(client, {"seconds": 5, "web_url": web_url})
    assert answer.status_code == 201, answer.content
    assert Timer.objects.get().web_url == answer.json()["web_url"] == web_url
    assert client.get(answer["Location"]).json()["web_url"] == web_url


@pytest.mark.django_db
@pytest.mark.parametrize("content_type", [FORM, MULTIPART_CONTENT])
def test_form_of_too_many_fields_is_refused_with_how_many_it_may_have(client, settings, content_type):
    fields = {f"f{number}": "" for number in range(settings.DATA_UPLOAD_MAX_NUMBER_FIELDS + 1)}
    body = urlencode(fields) if content_type == FORM else encode_multipart(BOUNDARY, fields)
    answer = post(client, body, content_type=content_type)
    assert "more than 1000 fields" in assert_problem(answer, 400)["detail"]


@db
@each("path", PATHS)
def test_a_form_works_as_json_does(client, path):
    answer = post(
        client, b"hours=0&minutes=0&seconds=5&web_url=http%3A%2F%2Fa.example%2F", content_type=FORM, path=path
    )
    assert answer.status_code == 201, answer.content
    assert answer.json()["time_left_in_seconds"] == 5
    answer = client.post(path, {"minutes": "1", "seconds": "", "web_url": URL})
    assert answer.status_code == 201, answer.content
    assert answer.json()["time_left_in_seconds"] == 60
    # As a browser sends a form with all fields.
    empty = dict.fromkeys(TimerFormSerializer().fields, "")
    answer = client.post(path, empty | {"seconds": "5", "web_url": URL})
    assert answer.status_code == 201, answer.content
    assert stored() == [3, 3, 3, 3]


@db
def test_body_that_does_not_say_that_it_is_json_is_told_that_first(client):
    body = json.dumps({"seconds": 5, "web_url": URL})
    for path in ("/timer", "/timer/batch", "/timer/bulk", "/signing-secret"):
        for kind, said in (("", "The body has no Content-Type"), (FORM, "The body is JSON, but its Content-Type")):
            answer = client.generic("POST", path, body, kind)
            assert (answer.status_code, answer["Content-Type"]) == (415, PROBLEM), (path, kind)
            assert answer.json()["detail"].startswith(said)
            assert "`Content-Type: application/json`" in answer.json()["detail"]
            assert "errors" not in answer.json()
    assert not Timer.objects.exists()


@db
@each("accept", ["text/html", "image/png", "application/problem+json", "x", "a*=no''%41", "*/*;q=0"])
def test_answers_are_json_whatever_is_asked_for(client, accept):
    answer = post(client, GOOD, accept=accept)
    assert (answer.status_code, answer["Content-Type"]) == (201, JSON)
    answer = client.get(answer["Location"] + "?format=xml", headers={"accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (200, JSON)
    assert_problem(post(client, {}, accept=accept), 400, ["seconds", "web_url"])


@db
@each(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "APPLICATION/JSON",
        "application/json; =;;; version=1",
        "application/json; charset=us-ascii",
    ],
)
def test_parameters_of_the_content_type_do_no_harm(client, content_type):
    assert post(client, GOOD, content_type=content_type).status_code == 201


@db
def test_a_byte_order_mark_is_passed_over(client):
    assert post(client, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).status_code == 201


@db
def test_of_a_key_given_twice_the_last_counts(client):
    body = post(client, f'{{"seconds": 1, "seconds": 2, "web_url": "{URL}"}}').json()
    assert body["time_left_in_seconds"] == 2
    body = post(client, f"seconds=1&seconds=2&web_url={URL}", content_type=FORM).json()
    assert body["time_left_in_seconds"] == 2


@db
def test_whoever_is_signed_in_owns_the_timer():
    user = get_user_model().objects.create_user("me@example.com", "secret")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert_problem(post(client, GOOD), 403)
    assert stored() == [0, 0, 0, 0]
    # The script of the page for trying out brings a token.
    token = client.get(reverse("docs") + "?script=").cookies["csrftoken"]
    answer = post(client, GOOD, **{"X-CSRFToken": token.value})
    assert answer.status_code == 201, answer.content
    assert Timer.objects.get().owner == user


# Refusing


def bad(name, body, fields, *, status=400, content_type=JSON):
    return pytest.param(body, content_type, status, fields, id=name)


def with_url(url):
    return {"seconds": 5, "web_url": url}


def with_seconds(text):
    return f'{{"seconds": {text}, "web_url": "{URL}"}}'


def multipart(*parts):
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"


def part(name, value, more=b""):
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value


MULTIPART = "multipart/form-data; boundary=B"

BAD = [
    # Shapes
    bad("empty body", b"", ["seconds", "web_url"]),
    bad("empty object", {}, ["seconds", "web_url"]),
    bad("no url", {"seconds": 5}, ["web_url"]),
    bad("no moment", {"web_url": URL}, ["seconds"]),
    bad(
        "all wrong",
        {"hours": -1, "minutes": 1.5, "seconds": "x", "web_url": 1},
        ["hours", "minutes", "seconds", "web_url"],
    ),
    bad("null values", {"hours": None, "web_url": None}, ["hours", "web_url"]),
    bad("unknown field", GOOD | {"second": 5}, ["second"]),
    bad("unknown and bad", {"second": 5, "web_url": "x"}, ["second", "seconds", "web_url"]),
    bad("empty name", GOOD | {"": 1}, [""]),
    bad("gigantic name", GOOD | {"k" * 60_000: 1}, ["k" * 100]),
    bad("thousands of names", GOOD | {f"n{i}": 1 for i in range(5000)}, [f"n{i}" for i in range(10)]),
    bad("surrogate name", '{"\\ud800": 1, ' + json.dumps(GOOD)[1:], ["\\ud800"]),
    bad("NUL name", GOOD | {"\0": 1}, ["\\x00"]),
    bad("array", [], [""]),
    bad("array of objects", [GOOD], [""]),
    bad("string", '"x"', [""]),
    bad("number", "1", [""]),
    bad("null", "null", [""]),
    # Numbers
    bad("true", with_seconds("true"), ["seconds"]),
    bad("false", with_seconds("false"), ["seconds"]),
    bad("fraction", with_seconds("1.5"), ["seconds"]),
    bad("whole fraction", with_seconds("1.0"), ["seconds"]),
    bad("exponent", with_seconds("1e2"), ["seconds"]),
    bad("overflowing exponent", with_seconds("1e999"), ["seconds"]),
    bad("text", with_seconds('"5"'), ["seconds"]),
    bad("empty text", with_seconds('""'), ["seconds"]),
    bad("list", with_seconds("[5]"), ["seconds"]),
    bad("object", with_seconds("{}"), ["seconds"]),
    bad("negative", with_seconds("-1"), ["seconds"]),
    bad("one second too far", with_seconds(str(HORIZON + 1)), ["seconds"]),
    bad("64 bits", with_seconds(str(2**63)), ["seconds"]),
    bad("4,000 digits", with_seconds("9" * 4000), ["seconds"]),
    bad("5,000 digits", with_seconds("9" * 5000), ["seconds"]),
    bad("minus 60,000 digits", with_seconds("-" + "9" * 60_000), ["seconds"]),
    bad("too far in all", {"hours": HORIZON // 3600, "seconds": 1, "web_url": URL}, ["hours", "seconds"]),
    bad("NaN", with_seconds("NaN"), None),
    bad("Infinity", with_seconds("-Infinity"), None),
    bad("leading zero", with_seconds("05"), None),
    # URLs
    bad("number as url", with_url(5), ["web_url"]),
    bad("true as url", with_url(True), ["web_url"]),
    bad("list as url", with_url([URL]), ["web_url"]),
    bad("object as url", with_url({"url": URL}), ["web_url"]),
    *(
        bad(f"url {name}", with_url(url), ["web_url"])
        for name, url in {
            "empty": "",
            "blank": " ",
            "relative": "/hook",
            "no scheme": "a.example",
            "no scheme but slashes": "//a.example/",
            "ftp": "ftp://a.example/",
            "file": "file:///etc/passwd",
            "javascript": "javascript:alert(1)",
            "one slash": "http:/a.example",
            "no host": "http://",
            "no host but path": "http:///x",
            "no host but port": "http://:80/",
            "no host but user": "http://me@/",
            "no host but query": "http://?x",
            "leading space": " http://a.example/",
            "trailing newline": "http://a.example/\n",
            "space": "http://a.example/a b",
            "tab": "http://a.\texample/",
            "header injection": "http://a.example/\r\nX: y",
            "NUL": "http://a.example/\0",
            "delete": "http://a.example/\x7f",
            "no-break space": "http://a.example/\xa0",
            "line separator": "http://a.example/\u2028",
            "zero-width space": "http://a.\u200bexample/",
            "right-to-left override": "http://a.example/\u202e",
            "backslash": "http://a.example\\@b.example/",
            "lone surrogate": "http://a.example/\ud800",
            "lone surrogate in host": "http://\udfff.example/",
            "private use": "http://a.example/\ue000",
            "percent in host": "http://%zz/",
            "escaped NUL in host": "http://a%00b/",
            "open bracket": "http://[::1",
            "empty brackets": "http://[]/",
            "text after brackets": "http://[::1]a/",
            "port too high": "http://a.example:65536/",
            "port zero": "http://a.example:0/",
            "port not a number": "http://a.example:x/",
            "port negative": "http://a.example:-1/",
            "port with zeros": "http://a:" + "0" * 300 + "80/",
            "two ports": "http://a:80:80/",
            "label too long": "http://" + "ä" * 70 + ".example/",
            "host of 1,000": "http://" + "a" * 1000 + "/",
            "host of many labels": "http://" + "a." * 400 + "example/",
            "starred host": "http://*.example/",
            "2,049 characters": "http://a.example/" + "q" * (2049 - len("http://a.example/")),
            "60,000 characters": "http://a.example/" + "q" * 60_000,
        }.items()
    ),
    # JSON
    bad("cut off", b'{"seconds": 5', None),
    bad("single quotes", b"{'seconds': 5}", None),
    bad("two documents", json.dumps(GOOD) * 2, None),
    bad("trailing comma", b'{"seconds": 5,}', None),
    bad("deep arrays", b"[" * 60_000, None),
    bad("deep arrays, closed", b"[" * 30_000 + b"]" * 30_000, None),
    bad("deep objects", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None),
    bad("deep value", b'{"seconds": 5, "web_url": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", None),
    bad("not UTF-8", b'{"seconds": 5, "web_url": "http://a/\xff"}', None),
    bad("UTF-16", json.dumps(GOOD).encode("utf-16"), None),
    bad("control character in a string", b'{"seconds": 5, "web_url": "http://a/\n"}', None),
    bad("form as JSON", b"seconds=5&web_url=http://a/", None),
    # Forms
    bad("form: fraction", b"seconds=1.5&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: negative", b"seconds=-1&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: true", b"seconds=true&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: 30 digits", b"seconds=" + b"9" * 30 + b"&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: other digits", "seconds=%D9%A5&web_url=" + URL, ["seconds"], content_type=FORM),
    bad("form: underscore", b"seconds=1_0&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: all empty", b"hours=&minutes=&seconds=&web_url=", ["seconds", "web_url"], content_type=FORM),
    bad("form: no moment", b"hours=&minutes=&seconds=&web_url=" + URL.encode(), ["seconds"], content_type=FORM),
    bad("form: NUL", b"seconds=5&web_url=http://a/%00", ["web_url"], content_type=FORM),
    bad("form: empty", b"", ["seconds", "web_url"], content_type=FORM),
    bad("form: JSON", json.dumps({"seconds": 5}), None, status=415, content_type=FORM),
    bad("form: thousands of fields", "&".join(f"f{i}=1" for i in range(3000)), None, content_type=FORM),
    bad("form: thousands of the same", "&".join(["seconds=1"] * 3000), None, content_type=FORM),
    bad(
        "multipart: a file as url",
        multipart(part(b"seconds", b"5"), part(b"web_url", URL.encode(), b'; filename="x"')),
        ["web_url"],
        content_type=MULTIPART,
    ),
    bad(
        "multipart: a file beside",
        multipart(
            part(b"seconds", b"5"), part(b"web_url", URL.encode()), part(b"upload", b"x" * 1000, b'; filename="x"')
        ),
        ["upload"],
        content_type=MULTIPART,
    ),
    bad(
        "multipart: hundreds of files",
        multipart(*(part(b"f%d" % i, b"", b'; filename="x"') for i in range(200))),
        None,
        content_type=MULTIPART,
    ),
    bad("multipart: header too long", multipart(b"X" * 2000), None, content_type=MULTIPART),
    bad("multipart: cut off", multipart(part(b"seconds", b"5"))[:-8], ["web_url"], content_type=MULTIPART),
    bad("multipart: no boundary", multipart(part(b"seconds", b"5")), None, content_type="multipart/form-data"),
    bad("multipart: odd boundary", b"x", None, content_type="multipart/form-data; boundary=\x01"),
    bad(
        "multipart: unknown charset of a name",
        multipart(b"Content-Disposition: form-data; name*=no''%41\r\n\r\nx"),
        ["seconds", "web_url"],
        content_type=MULTIPART,
    ),
    # Content types
    *(
        bad(f"type {content_type[:40]!r}", json.dumps(GOOD), None, status=415, content_type=content_type)
        for content_type in (
            "text/plain",
            "json",
            "application/problem+json",
            "application/json-seq",
            "application/xml",
            ";",
            "application/" + "x" * 5000,
            "application/json; charset=utf-16",
            "application/json; charset=latin-1",
            "application/json; charset=nonsense",
            "application/json; charset=" + "x" * 5000,
            # Python's names for codecs that are none, unpack, or take long.
            "application/json; charset=zlib",
            "application/json; charset=bz2",
            "application/json; charset=punycode",
            FORM + "; charset=punycode",
            FORM + "; charset=idna",
            FORM + "; charset=undefined",
            FORM + "; charset=unicode_escape",
            MULTIPART + "; charset=rot13",
        )
    ),
    # Sizes
    bad("over the limit", json.dumps(GOOD) + " " * LIMIT, None, status=413),
    bad("form over the limit", b"seconds=5&x=" + b"x" * LIMIT, None, status=413, content_type=FORM),
    bad("multipart over the limit", b"x" * (LIMIT + 1), None, status=413, content_type=MULTIPART),
]


@db
@each(("body", "content_type", "status", "fields"), BAD)
def test_bad_input_is_refused_by_name_and_nothing_is_written(client, body, content_type, status, fields):
    assert_problem(post(client, body, content_type=content_type), status, fields)
    assert stored() == [0, 0, 0, 0]


@db
def test_a_body_at_the_limit_is_read(client):
    body = json.dumps(GOOD).ljust(TimersView.body_limit_bytes)
    assert post(client, body).status_code == 201
    assert_problem(post(client, body + " "), 413)


@db
@each("length", ["x", "-1", "4", "٣"])
def test_a_body_that_is_not_as_long_as_it_says_is_refused(client, length):
    answer = client.generic("POST", "/timer", json.dumps(GOOD), JSON, CONTENT_LENGTH=length)
    assert_problem(answer, 400)
    assert stored() == [0, 0, 0, 0]


@db
def test_an_uploaded_file_is_no_url(client):
    answer = client.post("/timer", {"seconds": "5", "web_url": SimpleUploadedFile("x", URL.encode())})
    assert_problem(answer, 400, ["web_url"])
    assert stored() == [0, 0, 0, 0]


@db
@each("method", ["PUT", "TRACE", "NONSENSE"])
@each("path", ["/timer", f"/timer/{uuid.UUID(int=7)}", "/api/v1/scheduler/timer/", "/timer/preview", "/signing-secret"])
def test_other_methods_are_refused(client, method, path):
    answer = client.generic(method, path, json.dumps(GOOD), JSON)
    assert_problem(answer, 405)
    assert answer["Allow"]
    assert stored() == [0, 0, 0, 0]


@db
@each("path", ["/nothing", "/nothing/", "/timerz", "/timer/a/b", "/timer//", "/api/v1", "/timer%0A"])
def test_an_address_that_leads_nowhere_is_a_problem_too(client, path):
    for method in ("GET", "POST"):
        assert_problem(client.generic(method, path, json.dumps(GOOD), JSON), 404)
    assert stored() == [0, 0, 0, 0]


# Looking


def move(timer, **fields):
    """Write what dispatch and delivery would have written of the promised delivery."""
    assert Delivery.objects.promised().filter(timer=timer).update(**fields) == 1


def look(client, timer):
    answer = client.get(f"/timer/{timer.pk}")
    assert answer.status_code == 200, answer.content
    assert answer.json() == client.get(f"/api/v1/scheduler/timer/{timer.pk}").json() | {
        "time_left_in_seconds": answer.json()["time_left_in_seconds"]
    }
    return answer.json()


def add_attempt(timer, number, **fields):
    delivery = Delivery.objects.promised().get(timer=timer)
    return Attempt.objects.create(
        delivery=delivery,
        number=number,
        meant_for=delivery.due_at,
        started_at=delivery.due_at + timedelta(milliseconds=7.25),
        duration_ms=52,
        **fields,
    )


def in_flight(state):
    return {"state": state, "lease_token": uuid.uuid4(), "lease_expires_at": ClockTimestamp() + timedelta(seconds=10)}


PAST = datetime(2026, 1, 5, 9, tzinfo=UTC)
BUSY = {"status_code": 503, "error": "status", "message": "The answer was 503 Service Unavailable."}


@pytest.fixture
def due(make_timer):
    """A timer whose moment has come."""
    return make_timer(URL, due_at=PAST)


@db
@each(("left", "shown"), [(4.5, 5), (3.999, 4), (3600, 3600), (0.5, 1), (-0.001, 0), (-86_400, 0)])
def test_time_left_counts_down_rounded_up(client, make_timer, left, shown):
    timer = make_timer(URL)
    moment = ClockTimestamp() + timedelta(seconds=left)
    move(timer, due_at=moment, next_attempt_at=moment + timedelta(seconds=1))
    assert look(client, timer)["time_left_in_seconds"] == shown


@db
def test_waiting(client, make_timer):
    body = look(client, make_timer(URL))
    assert (body["status"], body["time_left_in_seconds"], body["attempts"]) == ("scheduled", 60, [])
    assert body["reason"] == "Its moment has not come yet."


@db
@pytest.mark.usefixtures("at_work")
def test_due_and_not_yet_claimed(client, due):
    body = look(client, due)
    assert (body["status"], body["time_left_in_seconds"]) == ("scheduled", 0)
    assert body["reason"] == "It is due and waits for a beat to claim it."


@db
def test_retrying(client, due):
    moment = datetime.now(UTC) + timedelta(seconds=30)
    move(due, attempts=1, started_at=PAST, next_attempt_at=moment)
    add_attempt(due, 1, **BUSY)
    body = look(client, due)
    assert (body["status"], body["time_left_in_seconds"]) == ("scheduled", 0)
    assert datetime.fromisoformat(body["due_at"]) == PAST
    assert datetime.fromisoformat(body["next_attempt_at"]) == moment
    assert body["reason"] == f"Attempt 1 failed: {BUSY['message']} It is tried again at next_attempt_at."
    assert body["attempts"] == [
        {"number": 1, "started_at": "2026-01-05T09:00:00.007250Z", "lateness_ms": 7.2, "duration_ms": 52} | BUSY
    ]


@db
@pytest.mark.usefixtures("at_work")
def test_claimed(client, make_timer):
    timer = make_timer(URL)
    move(timer, **in_flight(State.CLAIMED))
    body = look(client, timer)
    assert (body["status"], body["time_left_in_seconds"], body["next_attempt_at"]) == ("claimed", 60, None)
    assert body["reason"] == "A beat has claimed it; a worker calls it at its moment."


@db
@pytest.mark.usefixtures("at_work")
def test_running(client, due):
    move(due, attempts=1, started_at=PAST, **in_flight(State.RUNNING))
    body = look(client, due)
    assert (body["status"], body["next_attempt_at"], body["finished_at"]) == ("running", None, None)
    assert body["reason"] == "A worker is calling it now."


@db
def test_cancelled_while_running(client, due):
    move(due, attempts=1, started_at=PAST, **in_flight(State.RUNNING))
    services.cancel(due.pk)
    body = look(client, due)
    assert (body["status"], body["finished_at"]) == ("running", None)
    assert "may still land, no retry follows" in body["reason"]


@db
def test_paused(client, make_timer):
    timer = make_timer(URL)
    services.pause(timer.pk)
    body = look(client, timer)
    assert (body["status"], body["time_left_in_seconds"], body["next_attempt_at"]) == ("paused", 60, None)
    assert "resume it" in body["reason"]


@db
def test_succeeded(client, due):
    add_attempt(due, 1, status_code=200)
    move(due, attempts=1, started_at=PAST, state=State.SUCCEEDED, finished_at=PAST)
    body = look(client, due)
    assert (body["status"], body["reason"], body["next_attempt_at"]) == ("succeeded", None, None)
    assert datetime.fromisoformat(body["finished_at"]) == PAST
    assert body["time_left_in_seconds"] == 0
    (attempt,) = body["attempts"]
    assert (attempt["status_code"], attempt["error"], attempt["message"]) == (200, "", "")


@db
@pytest.mark.parametrize(("attempts", "words"), [(1, "after 1 attempt. "), (5, "after 5 attempts. ")])
def test_failed(client, due, attempts, words):
    for number in range(attempts, 0, -1):
        add_attempt(due, number, **BUSY)
    move(due, attempts=attempts, started_at=PAST, state=State.FAILED, finished_at=PAST)
    body = look(client, due)
    assert body["status"] == "failed"
    assert body["reason"] == f"It was given up {words}{BUSY['message']}"
    assert [attempt["number"] for attempt in body["attempts"]] == list(range(1, attempts + 1))


@db
def test_lost_attempt_has_no_duration_and_no_status(client, due):
    attempt = add_attempt(due, 1, error="lost", message="The process vanished.")
    Attempt.objects.filter(pk=attempt.pk).update(duration_ms=None)
    move(due, attempts=1, started_at=PAST)
    (shown,) = look(client, due)["attempts"]
    assert (shown["duration_ms"], shown["status_code"], shown["error"]) == (None, None, "lost")


@db
def test_cancelled(client, make_timer):
    timer = make_timer(URL)
    services.cancel(timer.pk)
    body = look(client, timer)
    assert (body["status"], body["time_left_in_seconds"]) == ("cancelled", 0)
    assert (body["reason"], body["next_attempt_at"]) == ("It was cancelled.", None)
    assert body["finished_at"]


@db
def test_missed(client, due):
    move(due, state=State.MISSED, finished_at=PAST)
    body = look(client, due)
    assert (body["status"], body["reason"]) == ("missed", "Its moment had passed by more than its allowed lateness.")


@db
def test_rescheduled_shows_the_new_promise(client, make_timer):
    timer = make_timer(URL)
    moment = datetime.now(UTC) + timedelta(hours=1)
    reschedule(timer, due_at=moment)
    body = look(client, timer)
    assert body["status"] == "scheduled"
    assert datetime.fromisoformat(body["due_at"]) == datetime.fromisoformat(body["next_attempt_at"]) == moment
    assert 3590 < body["time_left_in_seconds"] <= 3600


@db
def test_an_extra_delivery_does_not_disturb(client, make_timer):
    timer = make_timer(URL)
    before = look(client, timer)
    extra = services.run_now(timer.pk)
    assert look(client, timer) == before
    Delivery.objects.filter(pk=extra).update(
        state=State.SUCCEEDED, attempts=1, started_at=F("due_at"), finished_at=F("due_at")
    )
    assert look(client, timer) == before


@db
def test_a_deleted_periodic_task_leaves_its_record(client, make_timer):
    timer = make_timer(URL)
    PeriodicTask.objects.all().delete()
    assert look(client, timer)["status"] == "cancelled"


@db
def test_an_id_reads_in_either_case(client, make_timer):
    timer = make_timer(URL)
    assert client.get(f"/timer/{str(timer.pk).upper()}").json()["task_id"] == str(timer.pk)


@db
@each(
    "shape",
    [
        "{0.hex}",
        "%7B{0}%7D",
        "urn:uuid:{0}",
        "{0}%00",
        "{0}%0A",
        "%20{0}",
        "{0}%20",
        "{0}-",
        "-{0}",
        "{0}.json",
        "{0}0",
        "%00",
        "%",
        "%ff",
        "%zz",
        "0",
        "-1",
        "null",
        "..",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "'; DROP TABLE scheduler_timer; --",
        "%F0%9F%95%B0",
        "%D9%A0" * 32,
        "a" * 10_000,
    ],
)
@each("prefix", ["/timer/", "/api/v1/scheduler/timer/"])
def test_an_unknown_or_malformed_id_is_404(client, make_timer, shape, prefix):
    timer = make_timer(URL)
    for slash in ("", "/"):
        body = assert_problem(client.get(prefix + shape.format(timer.pk) + slash), 404)
        assert body["detail"]


@db
def test_looking_takes_two_statements_at_most(client, due, django_assert_num_queries):
    # Asked once a second, for all answers together.
    facts.gather()
    with django_assert_num_queries(1):
        look_once = client.get(f"/timer/{due.pk}")
    assert look_once.status_code == 200
    add_attempt(due, 1, **BUSY)
    move(due, attempts=1, started_at=PAST)
    with django_assert_num_queries(2):
        client.get(f"/timer/{due.pk}")


# Over real HTTP


def exchange(port, request, *, end=False):
    """Send bytes and return the answer's status, headers and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(request)
        if end:
            sock.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(sock, method=request.partition(b" ")[0].decode())
        answer.begin()
        try:
            return answer.status, answer.headers, answer.read()
        finally:
            answer.close()


HEAD = b"POST /timer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps(GOOD).encode()


@pytest.mark.django_db(transaction=True)
def test_over_http_a_timer_is_stored_before_it_is_answered(web):
    status, body = web.post(GOOD)
    assert status == 201
    assert Timer.objects.get().pk == uuid.UUID(body["task_id"])
    status, again = web.get(f"/timer/{body['task_id']}/")
    assert (status, again["due_at"]) == (200, body["due_at"])


# Nothing is written here, so nothing needs to be cleared away.
@db
@pytest.mark.parametrize(
    ("request_", "status", "end"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 411, False),
        (HEAD + b"Content-Length: 9999999\r\n\r\n", 413, False),
        (HEAD + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000, 400, False),
        (HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY) + 400, BODY), 400, True),
        (HEAD + b"Content-Length: 400\r\n\r\n", 400, True),
        (HEAD + b"Content-Length: 2\r\nAccept: text/html\r\n\r\n{}", 400, False),
        (HEAD + b"Idempotency-Key: \xe9\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), 400, False),
        (HEAD + b"X-Forwarded-For: \xe9, 192.0.2.1\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), 400, False),
        (HEAD + b"Cookie: sessionid=nonsense; csrftoken=%00\r\nContent-Length: 2\r\n\r\n{}", 400, False),
        (HEAD.replace(b"json", b"json\xff") + b"Content-Length: 2\r\n\r\n{}", 415, False),
        (
            HEAD.replace(b"Host: localhost", b"Host: a b") + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
            400,
            False,
        ),
    ],
    ids=["chunked", "length", "deep", "cut off", "missing", "html", "key", "address", "cookie", "type", "host"],
)
def test_over_http_bad_requests_are_problems(web, request_, status, end):
    found, headers, body = exchange(web.port, request_, end=end)
    assert (found, headers["Content-Type"]) == (status, PROBLEM), body
    assert json.loads(body)["status"] == status
    assert stored() == [0, 0, 0, 0]


@pytest.mark.django_db(transaction=True)
def test_over_http_a_header_with_an_underscore_is_not_one_of_ours_whatever_its_value(web):
    head = HEAD + b"Content-Length: %d\r\n" % len(BODY)
    for value in (b"key", b"\xff"):
        status, headers, _ = exchange(web.port, head + b"Idempotency_Key: " + value + b"\r\n\r\n" + BODY)
        assert (status, "Idempotency-Replayed" in headers) == (201, False)


@db
@pytest.mark.parametrize("length", [b"x", b"-5", b"+5", b"5\r\nContent-Length: 6"])
def test_over_http_a_senseless_length_is_refused(web, length):
    status, _, _ = exchange(web.port, HEAD + b"Content-Length: " + length + b"\r\n\r\n" + BODY)
    assert status == 400
    assert stored() == [0, 0, 0, 0]


@pytest.mark.django_db(transaction=True)
def test_over_http_a_connection_serves_on_after_errors(web):
    connection_ = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    connection_.connect()
    own = connection_.sock

    def ask(method, path, body=None):
        connection_.request(method, path, body, {"Content-Type": JSON})
        answer = connection_.getresponse()
        return answer.status, answer.read()

    assert ask("POST", "/timer", b"[")[0] == 400
    assert ask("GET", "/timer/nonsense")[0] == 404
    assert ask("PUT", "/timer")[0] == 405
    assert ask("POST", "/timer", BODY)[0] == 201
    assert connection_.sock is own
    connection_.close()


@pytest.mark.django_db(transaction=True)
def test_over_http_a_content_type_that_cannot_be_read_is_refused(web):
    connection_ = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    connection_.request("POST", "/timer", BODY, {"Content-Type": "application/json; a*=bogus''%41"})
    answer = connection_.getresponse()
    assert (answer.status, json.loads(answer.read())["status"]) == (415, 415)
    connection_.close()
    assert stored() == [0, 0, 0, 0]


@pytest.mark.django_db(transaction=True)
def test_over_http_head_and_options(web):
    _, body = web.post(GOOD)
    start = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    path = f"/timer/{body['task_id']}".encode()
    status, headers, content = exchange(web.port, b"HEAD " + path + start)
    assert (status, headers["Content-Type"], content) == (200, JSON, b"")
    assert exchange(web.port, b"HEAD /timer/x" + start)[0] == 404
    status, headers, content = exchange(web.port, b"OPTIONS " + path + start)
    assert status == 200
    assert set(re.split(", *", headers["Allow"])) == {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}
    status, headers, _ = exchange(web.port, b"OPTIONS /timer" + start)
    assert set(re.split(", *", headers["Allow"])) == {"GET", "HEAD", "POST", "OPTIONS"}
    assert exchange(web.port, b"OPTIONS /api/docs" + start)[0] == 405


@db
def test_over_http_what_the_swagger_page_loads_is_here(web):
    start = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, _, page = exchange(web.port, b"GET /api/docs/" + start)
    assert status == 200
    assets = re.findall(rb'(?:src|href)="([^"]+)"', page)
    assert len(assets) >= 4
    for asset in assets:
        status, _, content = exchange(web.port, b"GET " + asset + start)
        assert (status, bool(content)) == (200, True), asset


class Wire:
    """Carries bytes to the test database, and can be cut and mended."""

    def __init__(self):
        parts = urlsplit(database_url())
        folder = parse_qs(parts.query).get("host", [""])[0]
        port = parts.port or connection.settings_dict["PORT"] or 5432
        if folder.startswith("/"):
            self.target = (socket.AF_UNIX, f"{folder}/.s.PGSQL.{port}")
        else:
            self.target = (socket.AF_INET, (parts.hostname, int(port)))
        self.open = []
        self.listener = None
        self.port = 0
        self.threads = []
        self.mend()
        user = parts.netloc.rpartition("@")[0]
        self.url = f"postgresql://{user}@127.0.0.1:{self.port}{parts.path}"

    def mend(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self._run(self._accept, self.listener)

    def cut(self):
        for sock in [self.listener, *self.open]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for sock in [self.listener, *self.open]:
            sock.close()
        self.open, self.threads = [], []

    def _run(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(self.target[0], socket.SOCK_STREAM)
                self.open += [near, far]
                far.connect(self.target[1])
                self._run(self._carry, near, far)
                self._run(self._carry, far, near)

    def _carry(self, source, sink):
        with suppress(OSError):
            while piece := source.recv(65_536):
                sink.sendall(piece)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.django_db(transaction=True)
def test_while_the_database_is_away_answers_are_503_and_then_go_on():
    wire = Wire()
    service = Service()
    service.environment["DATABASE_URL"] = wire.url
    try:
        service.start("web")
        status, body = service.post(GOOD)
        assert status == 201
        path = f"/timer/{body['task_id']}"
        wire.cut()
        for _ in range(3):
            found, headers, content = exchange(service.port, HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
            assert (found, headers["Content-Type"], headers["Retry-After"]) == (503, PROBLEM, "1"), content
            assert "not known whether anything was stored" in json.loads(content)["detail"]
            assert service.get(path)[0] == 503
        assert service.get("/healthz")[0] == 200
        wire.mend()
        assert service.get(path)[0] == 200
        assert service.post(GOOD)[0] == 201
        assert stored() == [2, 2, 2, 2]
    finally:
        if "web" in service.processes:
            service.stop("web")
        service.broker.close()
        wire.cut()


def post_batch(client, **body):
    return client.post("/timer/batch", json.dumps(body), JSON)


@db
def test_a_batch_is_stored_in_order_with_one_statement(client, django_assert_num_queries, monkeypatch):
    # Asked once a second, for all answers together.
    monkeypatch.setattr(facts, "FRESH_SECONDS", 1000)
    facts.gather()
    timers = [{"seconds": n, "web_url": f"http://a.example/{n}"} for n in range(1000)]
    with django_assert_num_queries(1):
        answer = post_batch(client, timers=timers)
    assert answer.status_code == 201
    assert [timer["web_url"] for timer in answer.json()["timers"]] == [timer["web_url"] for timer in timers]
    assert [timer["time_left_in_seconds"] for timer in answer.json()["timers"]] == list(range(1000))
    assert stored() == [1000, 1000, 1000, 1000]
    one = answer.json()["timers"][7]
    assert client.get(f"/timer/{one['task_id']}").json()["web_url"] == "http://a.example/7"


@db
def test_a_batch_with_one_wrong_item_is_refused_by_its_place_and_nothing_is_written(client):
    answer = post_batch(client, timers=[GOOD, {"seconds": -1, "web_url": "nowhere"}, GOOD])
    assert_problem(answer, 400, {"timers.1.seconds", "timers.1.web_url"})
    assert stored() == [0, 0, 0, 0]


@db
def test_a_partial_batch_stores_what_is_valid_and_says_of_each_what_became_of_it(client):
    answer = post_batch(client, timers=[GOOD, {"web_url": "http://a.example/"}, GOOD, 7], partial=True)
    assert answer.status_code == 200
    first, second, third, fourth = answer.json()["results"]
    assert first["timer"]["task_id"] != third["timer"]["task_id"]
    assert [error["field"] for error in second["problem"]["errors"]] == ["seconds"]
    assert fourth["problem"]["status"] == 400
    assert stored() == [2, 2, 2, 2]


@db
@each(
    ("body", "fields"),
    [
        ({"timers": []}, {"timers"}),
        ({"timers": [GOOD] * 1001}, {"timers"}),
        ({"timers": GOOD}, {"timers"}),
        ({"timers": [GOOD], "partial": "yes"}, {"partial"}),
        ({"timers": [GOOD], "more": 1}, {"more"}),
        ({}, {"timers"}),
    ],
)
def test_a_batch_of_the_wrong_shape_is_refused_by_name(client, body, fields):
    assert_problem(post_batch(client, **body), 400, fields)
    assert stored() == [0, 0, 0, 0]


@db
def test_a_batch_that_is_a_bare_list_is_refused(client):
    assert_problem(client.post("/api/v1/scheduler/timer/batch/", json.dumps([GOOD]), JSON), 400, {""})


@db
def test_a_batch_takes_json_only(client):
    assert_problem(client.post("/timer/batch", {"timers": "x"}), 415)
