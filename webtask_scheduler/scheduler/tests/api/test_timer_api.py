"""What a timer may say beyond a URL and a time: schedules, requests, retries, signatures."""

import base64
import contextlib
import json
import time
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone
from standardwebhooks.webhooks import Webhook

from webtask_scheduler.scheduler.models import (
    Attempt,
    Delivery,
    SigningSecret,
    State,
    Timer,
)
from webtask_scheduler.scheduler.sealing import shown as shown_options
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import (
    GIVEN,
    JSON,
    SHOWN,
    URL,
    call_all,
    create,
    fields_of,
    moment,
    post,
    send,
    stored,
)
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import running

HORIZON = 10 * 365 * 24 * 3600
LIMIT = 256 * 1024

db = pytest.mark.django_db


# When


@db
@each(
    ("when", "seconds"),
    [
        ({"delay": "PT90S"}, 90),
        ({"delay": "PT0S"}, 0),
        ({"delay": "PT0.25S"}, 0.25),
        ({"delay": "P1DT12H"}, 129_600),
        ({"delay": "P2W"}, 1_209_600),
        ({"delay": f"PT{HORIZON}S"}, HORIZON),
        ({"hours": 1, "minutes": 1, "seconds": 1}, 3661),
    ],
)
def test_delay_is_counted_from_the_databases_clock(client, when, seconds):
    body = create(client, **when)
    assert moment(body["due_at"]) - moment(body["created_at"]) == timedelta(seconds=seconds)
    assert client.get(f"/timer/{body['task_id']}").json()["due_at"] == body["due_at"]
    # One that is called once shows its moment, not how that was said.
    assert not body.keys() & {"delay", "hours", "occurrence", "timezone"}


@db
@each(
    ("due_at", "shown"),
    [
        ("2030-01-05T09:00:00+01:00", "2030-01-05T08:00:00Z"),
        ("2030-01-05T09:00:00Z", "2030-01-05T09:00:00Z"),
        ("2030-01-05t09:00:00z", "2030-01-05T09:00:00Z"),
        ("2030-01-05 09:00-0530", "2030-01-05T14:30:00Z"),
        ("2030-01-05T09:00:00.123456789Z", "2030-01-05T09:00:00.123456Z"),
        ("2030-01-05T00:00:00.5+14:00", "2030-01-04T10:00:00.500000Z"),
    ],
)
def test_due_at_is_an_instant_with_an_offset(client, due_at, shown):
    assert create(client, due_at=due_at)["due_at"] == shown


@db
@each("on_missed", [None, "fire", "skip"])
def test_due_at_that_has_passed_is_due_at_once(client, on_missed):
    due_at = (timezone.now() - timedelta(seconds=30)).isoformat()
    body = create(client, due_at=due_at, **({"on_missed": on_missed} if on_missed else {}))
    assert moment(body["due_at"]) == moment(due_at)
    assert body["time_left_in_seconds"] == 0
    assert len(run().started) == 1


@db
def test_due_at_that_has_passed_is_refused_where_that_is_asked_for(client):
    past = {
        "due_at": (timezone.now() - timedelta(seconds=5)).isoformat(), "on_missed": "reject", "web_url": URL,
    }  # fmt: skip
    assert fields_of(post(client, past), 422) == ["due_at"]
    assert fields_of(post(client, {"timers": [past]}, "/timer/batch"), 422) == ["timers.0.due_at"]
    mixed = {"timers": [past, {"seconds": "x", "web_url": URL}]}
    assert fields_of(post(client, mixed, "/timer/batch")) == ["timers.0.due_at", "timers.1.seconds"]
    assert not any(stored())
    body = post(client, mixed | {"partial": True}, "/timer/batch").json()
    assert [result["problem"]["status"] for result in body["results"]] == [422, 400]
    future = past | {"due_at": (timezone.now() + timedelta(seconds=60)).isoformat()}
    body = post(client, {"timers": [past, future], "partial": True}, "/timer/batch").json()
    assert body["results"][0]["problem"]["errors"][0]["field"] == "due_at"
    assert body["results"][1]["timer"]["status"] == "scheduled"
    # It has been looked at, and is no part of the timer.
    assert "on_missed" not in body["results"][1]["timer"]


@db
def test_cron_comes_back_with_its_zone_and_its_bounds(client):
    given_ = {
        "cron": "  0   9 * *  MON-FRI ",
        "timezone": "Europe/Berlin",
        "starts_at": "2027-01-01T00:00:00+01:00",
        "ends_at": "2031-01-01T00:00:00Z",
        "max_occurrences": 7,
    }
    body = create(client, **given_)
    shown = {
        "cron": "0 9 * * MON-FRI",
        "timezone": "Europe/Berlin",
        "starts_at": "2026-12-31T23:00:00Z",
        "ends_at": "2031-01-01T00:00:00Z",
        "max_occurrences": 7,
        "occurrence": 1,
    }
    assert body | shown == body
    assert moment(body["due_at"]) >= moment(shown["starts_at"])
    again = client.get(f"/timer/{body['task_id']}").json()
    assert again == body | {"time_left_in_seconds": again["time_left_in_seconds"]}
    put_back(body["task_id"])
    run()
    assert client.get(f"/timer/{body['task_id']}").json()["occurrence"] == 2


@db
@each(("cron", "shown"), [("@daily", "0 0 * * *"), ("@HOURLY", "0 * * * *"), ("*/5 9-17 1,15 JAN *", None)])
def test_cron_without_a_zone_is_in_utc(client, cron, shown):
    body = create(client, cron=cron)
    assert (body["cron"], body["timezone"]) == (shown or cron, "UTC")


@db
@each(("every", "shown"), [("PT10M", "PT10M"), ("PT90S", "PT1M30S"), ("PT1S", "PT1S"), ("P1W", "P1W")])
def test_every_begins_one_interval_from_now(client, every, shown):
    body = create(client, every=every)
    assert (body["every"], body["occurrence"]) == (shown, 1)
    assert moment(body["starts_at"]) == moment(body["due_at"])
    assert abs((moment(body["due_at"]) - moment(body["created_at"])).total_seconds() - every_seconds(body)) < 1
    assert not body.keys() & {"timezone", "cron", "max_occurrences"}
    again = client.get(f"/timer/{body['task_id']}").json()
    assert again == body | {"time_left_in_seconds": again["time_left_in_seconds"]}


def every_seconds(body):
    return Timer.objects.get(pk=body["task_id"]).every_seconds


@db
def test_every_may_begin_at_a_moment_also_a_past_one(client):
    start = timezone.now().replace(microsecond=0) - timedelta(seconds=95)
    assert moment(create(client, every="PT10S", starts_at=start.isoformat())["due_at"]) == start + timedelta(
        seconds=100
    )
    start = timezone.now().replace(microsecond=0) + timedelta(hours=3)
    assert moment(create(client, every="PT10S", starts_at=start.isoformat())["due_at"]) == start


PAST, FUTURE = "2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"
BAD_WHEN = {
    "nothing": ({}, ["seconds"]),
    "two ways": ({"seconds": 5, "delay": "PT5S"}, ["delay"]),
    "two other ways": ({"delay": "PT5S", "due_at": FUTURE}, ["delay", "due_at"]),
    "all ways": (
        {"hours": 1, "delay": "PT5S", "due_at": FUTURE, "cron": "* * * * *", "every": "PT5S"},
        ["cron", "delay", "due_at", "every"],
    ),
    "cron and every": ({"cron": "* * * * *", "every": "PT5S"}, ["cron", "every"]),
    "naive": ({"due_at": "2030-01-05T09:00:00"}, ["due_at"]),
    "date": ({"due_at": "2030-01-05"}, ["due_at"]),
    "no such day": ({"due_at": "2030-02-30T09:00:00Z"}, ["due_at"]),
    "no such hour": ({"due_at": "2030-01-05T25:00:00Z"}, ["due_at"]),
    "leap second": ({"due_at": "2030-01-05T23:59:60Z"}, ["due_at"]),
    "other digits": ({"due_at": "\uff12\uff10\uff13\uff10-01-05T09:00:00Z"}, ["due_at"]),
    "epoch": ({"due_at": 1_900_000_000}, ["due_at"]),
    "year 1": ({"due_at": "0001-01-01T00:00:00+14:00"}, ["due_at"]),
    "year 9999": ({"due_at": "9999-12-31T23:59:59-14:00"}, ["due_at"]),
    "offset of two days": ({"due_at": "2030-01-05T09:00:00+48:00"}, ["due_at"]),
    "beyond the horizon": ({"due_at": "2047-01-05T09:00:00Z"}, ["due_at"]),
    "empty due_at": ({"due_at": ""}, ["due_at"]),
    "null": ({"hours": None}, ["hours"]),
    "delay in words": ({"delay": "5 minutes"}, ["delay"]),
    "delay in months": ({"delay": "P1M"}, ["delay"]),
    "delay beyond the horizon": ({"delay": f"PT{HORIZON + 1}S"}, ["delay"]),
    "negative delay": ({"delay": "-PT5S"}, ["delay"]),
    "gigantic delay": ({"delay": "P" + "9" * 62 + "W"}, ["delay"]),
    "long delay": ({"delay": "P" + "9" * 5000 + "D"}, ["delay"]),
    "delay as number": ({"delay": 5}, ["delay"]),
    "cron of four": ({"cron": "* * * *"}, ["cron"]),
    "cron of six": ({"cron": "* * * * * *"}, ["cron"]),
    "cron with a bad minute": ({"cron": "60 * * * *"}, ["cron"]),
    "30 February": ({"cron": "0 0 30 2 *"}, ["cron"]),
    "reboot": ({"cron": "@reboot"}, ["cron"]),
    "empty cron": ({"cron": ""}, ["cron"]),
    "long cron": ({"cron": "* " * 500}, ["cron"]),
    "NUL in cron": ({"cron": "* * * * *\0"}, ["cron"]),
    "cron as list": ({"cron": ["*"] * 5}, ["cron"]),
    "no such zone": ({"cron": "* * * * *", "timezone": "Europe/Bonn"}, ["timezone"]),
    "path as zone": ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, ["timezone"]),
    "zone as number": ({"cron": "* * * * *", "timezone": 1}, ["timezone"]),
    "zone with seconds": ({"seconds": 5, "timezone": "UTC"}, ["timezone"]),
    "zone with every": ({"every": "PT5S", "timezone": "UTC"}, ["timezone"]),
    "every too short": ({"every": "PT0.999S"}, ["every"]),
    "every zero": ({"every": "PT0S"}, ["every"]),
    "every beyond the horizon": ({"every": "P3651D"}, ["every"]),
    "bounds without a schedule": (
        {"seconds": 5, "starts_at": FUTURE, "ends_at": FUTURE, "max_occurrences": 1},
        ["ends_at", "max_occurrences", "starts_at"],
    ),
    "ended before now": ({"cron": "* * * * *", "ends_at": PAST}, ["ends_at"]),
    "ends before it starts": ({"every": "PT5S", "starts_at": FUTURE, "ends_at": "2029-01-01T00:00:00Z"}, ["ends_at"]),
    "naive bounds": (
        {"every": "PT5S", "starts_at": "2030-01-01T00:00:00", "ends_at": "2031-01-01T00:00:00"},
        ["ends_at", "starts_at"],
    ),
    "never": ({"every": "PT5S", "max_occurrences": 0}, ["max_occurrences"]),
    "too often": ({"every": "PT5S", "max_occurrences": 2**31}, ["max_occurrences"]),
    "half": ({"every": "PT5S", "max_occurrences": 1.5}, ["max_occurrences"]),
    "text as occurrences": ({"every": "PT5S", "max_occurrences": "5"}, ["max_occurrences"]),
    "reject with cron": ({"cron": "* * * * *", "on_missed": "reject"}, ["on_missed"]),
    "on_missed in other words": ({"seconds": 5, "on_missed": "ignore"}, ["on_missed"]),
    "max_lateness alone": ({"seconds": 5, "max_lateness": "PT5S"}, ["max_lateness"]),
    "max_lateness in words": ({"seconds": 5, "on_missed": "skip", "max_lateness": "long"}, ["max_lateness"]),
}


@db
@each(("when", "fields"), BAD_WHEN.values(), ids=BAD_WHEN.keys())
def test_bad_schedule_is_refused_by_name_and_nothing_is_written(client, when, fields):
    assert fields_of(post(client, when | {"web_url": URL})) == fields
    assert fields_of(post(client, {"timers": [when | {"web_url": URL}]}, "/timer/batch")) == [
        f"timers.0.{field}" for field in fields
    ]
    body = create(client)
    before = stored()
    if when and None not in when.values():
        assert fields_of(send(client, "PATCH", f"/timer/{body['task_id']}", when)) == fields
    assert stored() == before


@db
def test_skip_ends_a_delivery_that_is_later_than_allowed(client):
    strict = create(client, on_missed="skip", max_lateness="PT5S")
    lax = create(client, on_missed="skip")
    assert (strict["on_missed"], strict["max_lateness"]) == ("skip", "PT5S")
    assert "max_lateness" not in lax
    put_back(strict["task_id"], 10)
    put_back(lax["task_id"], 10)
    assert len(run().missed) == 1
    body = client.get(f"/timer/{strict['task_id']}").json()
    assert (body["status"], body["reason"]) == ("missed", "Its moment had passed by more than its allowed lateness.")
    assert client.get(f"/timer/{lax['task_id']}").json()["status"] == "succeeded"


# What


@db
def test_everything_comes_back_as_it_was_given(client):
    body = create(client, **GIVEN)
    assert body | SHOWN == body
    answer = client.get(f"/timer/{body['task_id']}")
    assert answer.json() | SHOWN == answer.json()
    # In the order of the members, and with whole numbers whole.
    for name in ("metadata", "body", "headers", "labels", "retry"):
        assert json.dumps(answer.json()[name]) == json.dumps(body[name]) == json.dumps(SHOWN[name])
    listed = client.get("/timer").json()["timers"][0]
    assert listed | SHOWN == listed


@db
def test_batch_takes_everything_that_a_single_one_takes(client, django_assert_num_queries):
    items = [GIVEN | {"seconds": 5}, {"cron": "@daily"}, {"every": "PT1M"}, {"due_at": FUTURE}, {"delay": "PT1M"}]
    with django_assert_num_queries(1):
        answer = post(client, {"timers": [item | {"web_url": URL} for item in items]}, "/timer/batch")
    assert answer.status_code == 201, answer.content
    for body in answer.json()["timers"]:
        shown = client.get(f"/timer/{body['task_id']}").json()
        assert shown == body | {"time_left_in_seconds": shown["time_left_in_seconds"]}
    assert answer.json()["timers"][0] | SHOWN == answer.json()["timers"][0]


@db
def test_what_is_the_default_anyway_is_not_kept(client):
    create(
        client,
        method="POST",
        headers={},
        labels={},
        follow_redirects=False,
        retry={},
        on_missed="fire",
        name="",
    )
    assert shown_options(Timer.objects.get().options) == {}


@db
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
def test_receiver_gets_the_method_the_headers_and_a_body_only_where_there_is_one(client, receiver, method):
    create(client, web_url=receiver.url("/x"), method=method, seconds=0, headers={"X-One": "1 ü", "User-Agent": "me"})
    (call,) = call_all(receiver)
    headers = {name.lower(): value for name, value in call.headers.items()}
    assert call.method == method
    assert (headers["x-one"], headers["user-agent"]) == ("1 ü", "me")
    if method in ("POST", "PUT", "PATCH"):
        assert (headers["content-type"], call.json["attempt"]) == (JSON, 1)
    else:
        assert call.body == b""
        assert "content-type" not in headers


@db
@pytest.mark.parametrize(
    ("given_", "body", "content_type"),
    [
        ({"body": "grüße\r\n"}, "grüße\r\n".encode(), "text/plain; charset=utf-8"),
        ({"body": ""}, b"", "text/plain; charset=utf-8"),
        ({"body": '{"b": 1,"a":2}'}, b'{"b": 1,"a":2}', "text/plain; charset=utf-8"),
        ({"body": '{"b":1}', "content_type": JSON}, b'{"b":1}', JSON),
        ({"body": {"b": 1, "a": [None, 1.5, "ü"]}}, rb'{"b": 1, "a": [null, 1.5, "\u00fc"]}', JSON),
        ({"body": 0}, b"0", JSON),
        ({"body": False}, b"false", JSON),
        ({"body": []}, b"[]", JSON),
        ({"body": 10**40}, b"1" + b"0" * 40, JSON),
        ({"body": [1], "headers": {"content-TYPE": "a/b; c=d"}}, b"[1]", "a/b; c=d"),
        ({"body_base64": "AP8QgA=="}, b"\x00\xff\x10\x80", "application/octet-stream"),
        ({"body_base64": "AP8=", "content_type": "image/png"}, b"\x00\xff", "image/png"),
        ({"body": "x", "method": "DELETE"}, b"x", "text/plain; charset=utf-8"),
    ],
    ids=str,
)
def test_receiver_gets_the_body_as_it_was_given(client, receiver, given_, body, content_type):
    create(client, web_url=receiver.url("/x"), seconds=0, **given_)
    (call,) = call_all(receiver)
    assert (call.body, call.headers["Content-Type"]) == (body, content_type)
    assert len([name for name in call.headers if name.lower() == "content-type"]) == 1


@db
def test_receiver_gets_our_headers(client, receiver):
    timer = create(client, web_url=receiver.url("/x"), seconds=0)
    before = int(time.time())
    (call,) = call_all(receiver)
    delivery = Delivery.objects.get()
    assert call.headers["webhook-id"] == str(delivery.pk)
    assert before <= int(call.headers["webhook-timestamp"]) <= time.time()
    assert call.headers["webtask-timer-id"] == timer["task_id"]
    assert moment(call.headers["webtask-due-at"]) == delivery.due_at
    assert (call.headers["webtask-occurrence"], call.headers["webtask-attempt"]) == ("1", "1")
    assert float(call.headers["webtask-lateness-ms"]) >= 0
    assert "webhook-signature" not in call.headers


@db
def test_body_is_taken_up_to_exactly_256_kib(client):
    for given_ in (
        {"body": "x" * LIMIT},
        {"body": "ü" * (LIMIT // 2)},
        {"body": ["x" * (LIMIT - 4)]},
        {"body_base64": base64.b64encode(b"x" * LIMIT).decode()},
    ):
        create(client, **given_)
    before = stored()
    for given_ in (
        {"body": "x" * (LIMIT + 1)},
        {"body": "ü" * (LIMIT // 2) + "x"},
        {"body": ["x" * (LIMIT - 3)]},
        {"body_base64": base64.b64encode(b"x" * (LIMIT + 1)).decode()},
    ):
        assert fields_of(post(client, given_ | {"seconds": 5, "web_url": URL})) == [*given_]
    assert stored() == before


BAD_WHAT = {
    "lower-case method": ({"method": "post"}, ["method"]),
    "other method": ({"method": "CONNECT"}, ["method"]),
    "long method": ({"method": "X" * 100_000}, ["method"]),
    "list as method": ({"method": ["GET"]}, ["method"]),
    "null method": ({"method": None}, ["method"]),
    "headers as list": ({"headers": ["X: y"]}, ["headers"]),
    "number in headers": ({"headers": {"X": 1}}, ["headers"]),
    "host": ({"headers": {"host": "b.example"}}, ["headers"]),
    "length": ({"headers": {"Content-Length": "5"}}, ["headers"]),
    "transfer encoding": ({"headers": {"Transfer-Encoding": "chunked"}}, ["headers"]),
    "connection": ({"headers": {"Connection": "close"}}, ["headers"]),
    "our own": ({"headers": {"webhook-id": "1"}}, ["headers"]),
    "our own too": ({"headers": {"Webtask-Attempt": "1"}}, ["headers"]),
    "injection": ({"headers": {"X": "a\r\nY: b"}}, ["headers"]),
    "NUL in a header": ({"headers": {"X": "\0"}}, ["headers"]),
    "surrogate in a header": ({"headers": {"X": "\ud800"}}, ["headers"]),
    "beyond Latin-1": ({"headers": {"X": "€"}}, ["headers"]),
    "bad name": ({"headers": {"X Y": "1"}}, ["headers"]),
    "empty name": ({"headers": {"": "1"}}, ["headers"]),
    "surrogate in a name": ({"headers": {"\ud800": "1"}}, ["headers"]),
    "twice": ({"headers": {"X-A": "1", "x-a": "2"}}, ["headers"]),
    "too many": ({"headers": {f"X-{i}": "1" for i in range(51)}}, ["headers"]),
    "too long": ({"headers": {"X": "x" * 4097}}, ["headers"]),
    "two bodies": ({"body": "x", "body_base64": "eA=="}, ["body_base64"]),
    "body of a GET": ({"body": "x", "method": "GET"}, ["body"]),
    "bytes of a HEAD": ({"body_base64": "eA==", "method": "HEAD"}, ["body_base64"]),
    "null body": ({"body": None}, ["body"]),
    "not base64": ({"body_base64": "***"}, ["body_base64"]),
    "base64 cut off": ({"body_base64": "AP8"}, ["body_base64"]),
    "base64 not ASCII": ({"body_base64": "ü==="}, ["body_base64"]),
    "number as base64": ({"body_base64": 5}, ["body_base64"]),
    "content type without a body": ({"content_type": JSON}, ["content_type"]),
    "content type in headers without a body": ({"headers": {"Content-Type": JSON}}, ["headers"]),
    "content type twice": (
        {"body": "x", "content_type": JSON, "headers": {"Content-Type": JSON}},
        ["content_type"],
    ),
    "no content type in headers": ({"body": "x", "headers": {"content-type": "json"}}, ["headers"]),
    "long content type in headers": ({"body": "x", "headers": {"content-type": "a/" + "b" * 199}}, ["headers"]),
    "no content type": ({"body": "x", "content_type": "json"}, ["content_type"]),
    "content type with a line break": ({"body": "x", "content_type": "a/b\r\n; x"}, ["content_type"]),
    "content type that injects": ({"body": "x", "content_type": "a/b; c\r\nX: y"}, ["content_type"]),
    "content type with a space at its end": ({"body": "x", "content_type": "a/b; c "}, ["content_type"]),
    "content type beyond ASCII": ({"body": "x", "content_type": "a/b; c=ü"}, ["content_type"]),
    "content type of 201 characters": ({"body": "x", "content_type": "a/" + "b" * 199}, ["content_type"]),
    "half a second": ({"timeout_seconds": 0.5}, ["timeout_seconds"]),
    "five minutes and one second": ({"timeout_seconds": 301}, ["timeout_seconds"]),
    "gigantic timeout": ({"timeout_seconds": 10**3000}, ["timeout_seconds"]),
    "text as timeout": ({"timeout_seconds": "5"}, ["timeout_seconds"]),
    "true as timeout": ({"timeout_seconds": True}, ["timeout_seconds"]),
    "1 as true": ({"follow_redirects": 1}, ["follow_redirects"]),
    "text as true": ({"follow_redirects": "true"}, ["follow_redirects"]),
    "no statuses": ({"success_statuses": []}, ["success_statuses"]),
    "status 99": ({"success_statuses": [99]}, ["success_statuses"]),
    "status 600": ({"success_statuses": [200, 600]}, ["success_statuses"]),
    "text status": ({"success_statuses": ["200"]}, ["success_statuses"]),
    "class 6": ({"success_statuses": ["6xx"]}, ["success_statuses"]),
    "true as status": ({"success_statuses": [True]}, ["success_statuses"]),
    "list in statuses": ({"success_statuses": [[200]]}, ["success_statuses"]),
    "many statuses": ({"success_statuses": [*range(200, 221)]}, ["success_statuses"]),
    "labels as list": ({"labels": ["a=b"]}, ["labels"]),
    "number in labels": ({"labels": {"a": 1}}, ["labels"]),
    "equals sign in a key": ({"labels": {"a=b": "c"}}, ["labels"]),
    "empty key": ({"labels": {"": "c"}}, ["labels"]),
    "long key": ({"labels": {"k" * 64: "c"}}, ["labels"]),
    "long value": ({"labels": {"k": "v" * 64}}, ["labels"]),
    "line break in a label": ({"labels": {"k": "a\nb"}}, ["labels"]),
    "surrogate in a label": ({"labels": {"k": "\ud800"}}, ["labels"]),
    "many labels": ({"labels": {f"k{i}": "v" for i in range(21)}}, ["labels"]),
    "large metadata": ({"metadata": "x" * 16 * 1024}, ["metadata"]),
    "NUL in metadata": ({"metadata": {"a": ["\0"]}}, ["metadata"]),
    "NUL in a key of metadata": ({"metadata": {"\0": 1}}, ["metadata"]),
    "surrogate in metadata": ({"metadata": {"a": "\udfff"}}, ["metadata"]),
    "surrogate in a body": ({"body": ["\ud800"]}, ["body"]),
    "NUL in a text": ({"body": "a\0b"}, ["body"]),
    "NUL after a backslash": ({"body": "a\\\0b"}, ["body"]),
    "long name": ({"name": "n" * 201}, ["name"]),
    "NUL in a name": ({"name": "\0"}, ["name"]),
    "surrogate in a name of a timer": ({"name": "\ud800"}, ["name"]),
    "number as name": ({"name": 5}, ["name"]),
    "callback by ftp": ({"callback_url": "ftp://a.example/"}, ["callback_url"]),
    "callback in words": ({"failure_callback_url": "later"}, ["failure_callback_url"]),
    "unknown": ({"retries": 5}, ["retries"]),
    "retry as number": ({"retry": 5}, ["retry"]),
    "no attempts": ({"retry": {"max_attempts": 0}}, ["retry.max_attempts"]),
    "101 attempts": ({"retry": {"max_attempts": 101}}, ["retry.max_attempts"]),
    "gigantic attempts": ({"retry": {"max_attempts": 10**3000}}, ["retry.max_attempts"]),
    "unknown in retry": ({"retry": {"attempts": 5}}, ["retry.attempts"]),
    "other backoff": ({"retry": {"backoff": "linear"}}, ["retry.backoff"]),
    "list without delays": ({"retry": {"backoff": "list"}}, ["retry.delays_seconds"]),
    "delays without list": ({"retry": {"delays_seconds": [1]}}, ["retry.delays_seconds"]),
    "no delays": ({"retry": {"backoff": "list", "delays_seconds": []}}, ["retry.delays_seconds"]),
    "negative delay": ({"retry": {"backoff": "list", "delays_seconds": [1, -1]}}, ["retry.delays_seconds.1"]),
    "multiplier of fixed": ({"retry": {"backoff": "fixed", "multiplier": 2}}, ["retry.multiplier"]),
    "max below min": ({"retry": {"min_seconds": 10, "max_seconds": 5}}, ["retry.max_seconds"]),
    "default min above max": ({"retry": {"max_seconds": 1}}, ["retry.max_seconds"]),
    "multiplier below 1": ({"retry": {"multiplier": 0.5}}, ["retry.multiplier"]),
    "jitter of 2": ({"retry": {"jitter": 2}}, ["retry.jitter"]),
    "age of 8 days": ({"retry": {"max_age_seconds": 8 * 86_400}}, ["retry.max_age_seconds"]),
}


@db
@each(("given_", "fields"), BAD_WHAT.values(), ids=BAD_WHAT.keys())
def test_bad_field_is_refused_by_name_and_nothing_is_written(client, given_, fields):
    answer = post(client, given_ | {"seconds": 5, "web_url": URL})
    assert fields_of(answer) == fields
    assert len(answer.content) < 4000
    assert not any(stored())


@db
@each("name", ["body", "metadata", "labels", "headers", "retry", "timeout_seconds", "method", "cron"])
@each(
    "text",
    ["1e999", "-1e999", "[" * 90 + "]" * 90, "[" * 150 + "]" * 150, "[" * 920 + "]" * 920, "9" * 4301, "[" * 50_000],
    ids=["infinite", "minus infinite", "90 deep", "150 deep", "920 deep", "4301 digits", "open"],
)
def test_json_that_cannot_be_kept_is_a_400(client, name, text):
    answer = post(client, f'{{"seconds": 5, "web_url": "{URL}", "{name}": {text}}}')
    if name in ("body", "metadata") and len(text) == 180:
        assert answer.status_code == 201
        shown = client.get(answer["Location"])
        assert json.dumps(shown.json()[name]) == text
    else:
        assert answer.status_code == 400, answer.content
        assert not any(stored())


@db
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timeout_seconds", "nan"),
        ("timeout_seconds", "inf"),
        ("timeout_seconds", "1e999"),
        ("timeout_seconds", "x"),
        ("follow_redirects", "maybe"),
        ("max_occurrences", "1.5"),
        ("retry", "5"),
        ("retry.max_attempts", "1"),
        ("labels", "{}"),
    ],
)
def test_form_is_as_strict(client, name, text):
    form = {"web_url": URL, "every" if name == "max_occurrences" else "delay": "PT5S", name: text}
    assert fields_of(client.post("/timer", form)) == [name]
    assert not any(stored())


@db
def test_form_takes_what_text_can_say(client):
    form = {
        "web_url": URL, "every": "PT5S", "max_occurrences": "3", "timeout_seconds": "2.5", "follow_redirects": "true",
        "method": "PUT", "body": "text", "name": "a form",
    }  # fmt: skip
    body = client.post("/timer", form).json()
    expected = {"max_occurrences": 3, "timeout_seconds": 2.5, "follow_redirects": True, "body": "text", "method": "PUT"}
    assert body | expected == body


@db
@pytest.mark.parametrize(
    "name", ["body", "metadata", "labels", "headers", "method", "cron", "retry", "timeout_seconds"]
)
def test_file_in_a_form_is_refused(client, name):
    part = f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="GET"\r\n\r\nx\r\n'
    fields = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in (("seconds", "5"), ("web_url", URL))
    )
    answer = post(client, (part + fields + "--B--\r\n").encode(), content_type="multipart/form-data; boundary=B")
    assert name in fields_of(answer)
    assert not any(stored())


# Retries


@db
@each(
    ("policy", "waits"),
    [
        ({"backoff": "fixed", "min_seconds": 7, "jitter": 0, "max_attempts": 3}, [7, 7]),
        ({"backoff": "list", "delays_seconds": [1, 60, 5], "jitter": 0}, [1, 60, 5]),
        ({"backoff": "list", "delays_seconds": [1, 60], "jitter": 0, "max_attempts": 4}, [1, 60, 60]),
        ({"min_seconds": 2, "multiplier": 10, "max_seconds": 50, "jitter": 0, "max_attempts": 4}, [2, 20, 50]),
        ({"max_attempts": 1}, []),
    ],
)
def test_policy_says_how_long_a_retry_waits_and_when_it_is_given_up(client, policy, waits):
    timer = create(client, retry=policy)
    seen = []
    for _ in range(len(waits) + 1):
        put_back(timer["task_id"], 0.001)
        assert len(run(status_code=500, error="status").started) == 1
        delivery = Delivery.objects.get()
        attempt = delivery.history.order_by("-number")[0]
        if delivery.state == State.SCHEDULED:
            seen.append(round((delivery.next_attempt_at - attempt.started_at).total_seconds()))
    assert seen == waits
    body = client.get(f"/timer/{timer['task_id']}").json()
    assert (body["status"], len(body["attempts"])) == ("failed", len(waits) + 1)
    count = len(waits) + 1
    assert body["reason"].startswith(f"It was given up after {count} attempt{'s' * (count > 1)}.")


@db
def test_no_attempt_is_begun_after_the_maximal_age(client):
    timer = create(client, retry={"max_age_seconds": 60, "min_seconds": 30, "jitter": 0})
    put_back(timer["task_id"], 20)
    run(status_code=500, error="status")
    assert Delivery.objects.get().state == State.SCHEDULED
    put_back(timer["task_id"], 40)
    run(status_code=500, error="status")
    assert Delivery.objects.get().state == State.FAILED


@db
def test_receiver_that_is_gone_ends_the_delivery_and_pauses_a_timer_that_recurs(client):
    once, recurring = create(client), create(client, every="PT1M")
    put_back(once["task_id"])
    put_back(recurring["task_id"])
    run(status_code=410, error="status")
    assert client.get(f"/timer/{once['task_id']}").json()["status"] == "failed"
    body = client.get(f"/timer/{recurring['task_id']}").json()
    assert (body["status"], body["occurrence"]) == ("paused", 2)


@db
def test_own_success_statuses_count(client, receiver):
    create(client, web_url=receiver.url("/status/404"), seconds=0, success_statuses=[404])
    create(client, web_url=receiver.url("/status/302"), seconds=0, success_statuses=["3xx"])
    create(client, web_url=receiver.url("/x"), seconds=0, success_statuses=[201])
    call_all(receiver)
    assert sorted(Delivery.objects.values_list("state", flat=True)) == ["scheduled", "succeeded", "succeeded"]


@db
def test_redirects_are_followed_only_where_that_is_asked_for(client, receiver):
    create(client, web_url=receiver.redirect(307, receiver.url("/there")), seconds=0, body="x", follow_redirects=True)
    _, second = call_all(receiver)
    assert (second.path, second.body, second.method) == ("/there", b"x", "POST")
    create(client, web_url=receiver.redirect(307, receiver.url("/there")), seconds=0)
    assert len(call_all(receiver)) == 1


@db
def test_own_time_limit_counts(client, receiver):
    create(client, web_url=receiver.url("/sleep/30"), seconds=0, timeout_seconds=1)
    began = time.monotonic()
    call_all(receiver)
    assert 1 <= time.monotonic() - began < 20
    assert Attempt.objects.get().error == "timeout"


# Signing

OWN_SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
SECRETS = "/signing-secret"


@db
def test_secret_is_shown_once_and_then_only_its_end(client):
    answer = post(client, None, SECRETS)
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert made["secret"].startswith("whsec_")
    assert made["hint"] == "…" + made["secret"][-4:]
    answer = client.get(SECRETS)
    assert answer.json() == {"secrets": [{name: made[name] for name in ("id", "hint", "hosts", "created_at")}]}
    assert made["secret"] not in answer.content.decode()
    assert post(client, {"secret": OWN_SECRET}, SECRETS).json()["secret"] == OWN_SECRET
    assert [secret["hint"] for secret in client.get(SECRETS).json()["secrets"]] == [made["hint"], "…" + OWN_SECRET[-4:]]


@db
def test_five_secrets_at_most(client, user):
    for _ in range(5):
        assert post(client, {}, SECRETS).status_code == 201
    answer = post(client, {}, SECRETS)
    assert answer.status_code == 409
    assert "5" in answer.json()["detail"]
    client.force_login(user)
    assert post(client, {}, SECRETS).status_code == 201


@db
@each(
    "body",
    [
        {"secret": "x"},
        {"secret": "whsec_"},
        {"secret": "whsec_***"},
        {"secret": "whsec_" + base64.b64encode(b"x" * 23).decode()},
        {"secret": "whsec_" + base64.b64encode(b"x" * 65).decode()},
        {"secret": OWN_SECRET + "\0"},
        {"secret": "whsec_ü"},
        {"secret": 5},
        {"secret": None},
        {"secrets": OWN_SECRET},
    ],
)
def test_bad_secret_is_refused_and_not_repeated(client, body):
    answer = post(client, body, SECRETS)
    assert fields_of(answer) == [*body]
    assert "whsec_***" not in answer.content.decode()
    assert not any(stored())


@db
def test_secret_is_deleted_by_its_owner_only(client, user):
    made = post(client, None, SECRETS).json()
    client.force_login(user)
    assert client.get(SECRETS).json() == {"secrets": []}
    assert client.delete(f"{SECRETS}/{made['id']}").status_code == 404
    client.force_login(get_user_model().objects.create_superuser("root@example.com", "secret"))
    # Not even by who sees all timers: it signs nothing of theirs.
    assert client.delete(f"{SECRETS}/{made['id']}").status_code == 404
    client.logout()
    for _ in range(2):
        assert SigningSecret.objects.count() in (0, 1)
        answer = client.delete(f"{SECRETS}/{made['id']}")
    assert answer.status_code == 404
    assert not SigningSecret.objects.exists()
    for id_ in ("x", "-1", "9" * 30, "1.0", "%00"):
        assert client.delete(f"{SECRETS}/{id_}").status_code == 404


@db
def test_calls_are_signed_with_every_secret_of_their_owner(client, receiver, user):
    anonymous = post(client, {"secret": OWN_SECRET}, SECRETS).json()["secret"]
    create(client, web_url=receiver.url("/nobodys"), seconds=0, body="ü")
    client.force_login(user)
    old, new = (post(client, None, SECRETS).json() for _ in range(2))
    create(client, web_url=receiver.url("/mine"), seconds=0, method="GET")
    calls = {call.path: call for call in call_all(receiver)}
    verify(calls["/nobodys"], anonymous)
    for secret in (old["secret"], new["secret"]):
        verify(calls["/mine"], secret)
    assert len(calls["/mine"].headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(Exception, match="No matching signature"):
        verify(calls["/mine"], anonymous)
    # Rotation: the old one is taken away, and what follows is signed with the new one alone.
    assert client.delete(f"{SECRETS}/{old['id']}").status_code == 204
    create(client, web_url=receiver.url("/later"), seconds=0)
    (call,) = call_all(receiver)
    verify(call, new["secret"])
    with pytest.raises(Exception, match="No matching signature"):
        verify(call, old["secret"])


def verify(call, secret):
    """Verify a call as a receiver does, with the library of Standard Webhooks."""
    checker = Webhook(secret)
    # It goes on to read JSON, which a body need not be.
    headers = {name.lower(): value for name, value in call.headers.items()}
    with contextlib.suppress(json.JSONDecodeError):
        checker.verify(call.body, headers)


# For real


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(180)
def test_service_calls_as_the_timer_says_again_and_again_and_signed(receiver):
    with running("web", "worker", "beat") as service:
        old, new = (service.post({}, "/signing-secret")[1]["secret"] for _ in range(2))
        status, recurring = service.post({
            "every": "PT1S", "max_occurrences": 3, "web_url": receiver.url("/again"), "method": "PUT",
            "headers": {"X-One": "1"}, "body": {"z": 1, "a": [1.5, "ü"]}, "callback_url": receiver.url("/done"),
        })  # fmt: skip
        assert status == 201
        _, failing = service.post({
            "delay": "PT0.5S", "web_url": receiver.url("/status/500"), "method": "HEAD",
            "retry": {"backoff": "list", "delays_seconds": [0.5], "jitter": 0},
            "failure_callback_url": receiver.url("/lost"),
        })  # fmt: skip
        again = receiver.wait_for(3, path="/again")
        receiver.wait_for(3, path="/done")
        (lost,) = receiver.wait_for(1, path="/lost")
        for call in receiver.calls:
            verify(call, old)
            verify(call, new)
        assert [call.headers["webtask-occurrence"] for call in again] == ["1", "2", "3"]
        assert len({call.headers["webhook-id"] for call in again}) == 3
        for call in again:
            assert (call.method, call.headers["X-One"], call.body) == ("PUT", "1", rb'{"z": 1, "a": [1.5, "\u00fc"]}')
            assert call.at >= moment(call.headers["webtask-due-at"]).timestamp()
        assert (lost.json["task_id"], lost.json["status"], lost.json["attempts"]) == (failing["task_id"], "failed", 2)
        _, page = service.get(f"/timer/{recurring['task_id']}/deliveries")
        assert [(one["occurrence"], one["status"]) for one in page["deliveries"]] == [
            (3, "succeeded"),
            (2, "succeeded"),
            (1, "succeeded"),
        ]
        _, page = service.get(f"/timer/{failing['task_id']}/attempts")
        assert [(one["number"], one["status_code"]) for one in page["attempts"]] == [(2, 500), (1, 500)]
        _, page = service.get("/timer?status=succeeded&recurring=true")
        assert [one["task_id"] for one in page["timers"]] == [recurring["task_id"]]
