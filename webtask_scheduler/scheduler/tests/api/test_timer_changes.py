"""Changing timers: edits, cancels, pauses, runs and replays, one or many; and looking at what came of them."""

import threading
import uuid
from datetime import datetime, timedelta

import pytest
import requests
from django.contrib.auth import get_user_model
from django.db import connection, connections, transaction
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.api.reading import NewTimerSerializer
from webtask_scheduler.scheduler.models import Attempt, BulkOperation, Delivery, State, Timer, TimerLabel
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes
from webtask_scheduler.scheduler.sealing import shown as shown_options
from webtask_scheduler.scheduler.services import many
from webtask_scheduler.scheduler.tests.support.acting import begin, put_back, run
from webtask_scheduler.scheduler.tests.support.api import (
    GIVEN,
    SHOWN,
    URL,
    call_all,
    create,
    fields_of,
    moment,
    path,
    post,
    rows_of,
    send,
    stored,
)
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

db = pytest.mark.django_db


def patch(client, timer, body, **more):
    return send(client, "PATCH", path(timer), body, **more)


def edit(client, timer, body):
    """Edit a timer, see that looking at it says the same, and return that."""
    answer = patch(client, timer, body)
    assert answer.status_code == 200, answer.content
    shown = client.get(path(timer)).json()
    assert shown == answer.json() | {"time_left_in_seconds": shown["time_left_in_seconds"]}
    return shown


def ended(client, timer, **outcome):
    put_back(timer["task_id"])
    run(**outcome)
    return client.get(path(timer)).json()


# Editing


@db
@each(("when", "seconds"), [({"minutes": 5}, 300), ({"delay": "PT2M"}, 120), ({"seconds": 0}, 0), ({"hours": 1}, 3600)])
def test_edit_promises_another_moment(client, when, seconds):
    timer = create(client, **GIVEN)
    began = timezone.now()
    shown = edit(client, timer, when)
    assert timedelta(0) <= moment(shown["due_at"]) - began - timedelta(seconds=seconds) < timedelta(seconds=2)
    assert shown | SHOWN == shown
    assert [one.state for one in Delivery.objects.order_by("number")] == ["cancelled", "scheduled"]
    assert PeriodicTask.objects.get().clocked.clocked_time == moment(shown["due_at"])


@db
def test_edit_to_an_instant_and_to_one_that_has_passed(client):
    timer = create(client)
    assert edit(client, timer, {"due_at": "2030-01-05T09:00:00+01:00"})["due_at"] == "2030-01-05T08:00:00Z"
    past = {"due_at": (timezone.now() - timedelta(seconds=5)).isoformat()}
    assert fields_of(patch(client, timer, past | {"on_missed": "reject"}), 422) == ["due_at"]
    assert edit(client, timer, past)["time_left_in_seconds"] == 0
    assert len(run().started) == 1


@db
def test_edit_without_a_moment_leaves_the_promise_alone(client):
    timer = create(client, **GIVEN)
    changed = {"web_url": "http://B.example:81/x", "name": "new", "body": [1], "timeout_seconds": 9}
    shown = edit(client, timer, changed | {"headers": GIVEN["headers"]})
    assert shown == timer | changed | {"time_left_in_seconds": shown["time_left_in_seconds"]}
    assert Delivery.objects.count() == 1
    assert Timer.objects.get().host == "b.example:81"


@db
def test_edit_is_a_merge_patch(client):
    timer = create(client, **GIVEN)
    shown = edit(
        client,
        timer,
        {
            "name": None,
            "labels": {"team": None, "new": "1"},
            "headers": {"X-Shop": "south"},
            "metadata": {"b": None},
            "retry": {"min_seconds": 9, "max_attempts": None},
            "on_missed": None,
            "max_lateness": None,
            "callback_url": None,
            "seconds": None,
        },
    )
    assert not shown.keys() & {"name", "on_missed", "max_lateness", "callback_url"}
    assert shown["labels"] == {name: value for name, value in GIVEN["labels"].items() if name != "team"} | {"new": "1"}
    assert shown["headers"] == SHOWN["headers"]
    assert shown["retry"] == {"backoff": "fixed", "min_seconds": 9}
    # Free JSON is replaced as a whole: it may hold nulls of its own.
    assert shown["metadata"] == {"b": None}
    assert shown["due_at"] == timer["due_at"]
    everything = dict.fromkeys(NewTimerSerializer().fields.keys() - {"web_url"})
    bare = edit(client, timer, everything)
    assert bare.keys() == create(client).keys()
    assert shown_options(Timer.objects.get(pk=timer["task_id"]).options) == {}


@db
def test_empty_edit_changes_nothing(client):
    timer = create(client, **GIVEN)
    shown = edit(client, timer, {})
    assert shown == timer | {"time_left_in_seconds": shown["time_left_in_seconds"]}


@db
@each(
    ("body", "fields"),
    [
        ({"web_url": None}, ["web_url"]),
        ({"web_url": "x"}, ["web_url"]),
        ({"lables": None}, ["lables"]),
        ({"lables": {}}, ["lables"]),
        ({"seconds": 5, "delay": "PT5S"}, ["delay"]),
        ({"method": "GET"}, ["body"]),
        ({"body_base64": "eA=="}, ["body_base64"]),
        ({"body": None}, ["content_type"]),
        ({"on_missed": "fire"}, ["max_lateness"]),
        ({"retry": {"multiplier": 2}}, ["retry.multiplier"]),
        ({"retry": 5}, ["retry"]),
        ({"headers": {"x-shop": "again"}}, ["headers"]),
        ({"labels": {"a b": "c"}}, ["labels"]),
        ({"ends_at": "2030-01-01T00:00:00Z"}, ["ends_at", "seconds"]),
        ({"timezone": "Europe/Berlin"}, ["seconds", "timezone"]),
        ([], None),
        ("null", None),
        ("5", None),
    ],
)
def test_bad_edit_is_refused_by_name_and_changes_nothing(client, body, fields):
    timer = create(client, **GIVEN)
    before = Timer.objects.values().get(), stored()
    answer = patch(client, timer, body)
    assert answer.status_code == 400, answer.content
    if fields is not None:
        assert fields_of(answer) == fields
    assert (Timer.objects.values().get(), stored()) == before


@db
def test_one_that_is_called_once_comes_to_recur_and_back(client):
    timer = create(client, name="n")
    shown = edit(client, timer, {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "max_occurrences": 3})
    assert (shown["cron"], shown["timezone"], shown["max_occurrences"]) == ("0 9 * * *", "Europe/Berlin", 3)
    task = PeriodicTask.objects.get()
    assert (str(task.crontab.timezone), task.clocked, task.one_off) == ("Europe/Berlin", None, False)
    shown = edit(client, timer, {"every": "PT10M"})
    assert (shown["every"], shown["max_occurrences"]) == ("PT10M", 3)
    assert not shown.keys() & {"cron", "timezone"}
    assert moment(shown["starts_at"]) == moment(shown["due_at"])
    shown = edit(client, timer, {"cron": "@daily"})
    # The first moment of an interval is no bound of another schedule.
    assert (shown["cron"], shown["timezone"]) == ("0 0 * * *", "UTC")
    assert not shown.keys() & {"every", "starts_at"}
    shown = edit(client, timer, {"seconds": 30})
    assert not shown.keys() & {"every", "cron", "timezone", "starts_at", "max_occurrences", "occurrence"}
    task = PeriodicTask.objects.get()
    assert (task.crontab, task.interval, task.one_off) == (None, None, True)
    assert task.clocked.clocked_time == moment(shown["due_at"])
    assert shown["name"] == "n"


@db
def test_bounds_of_a_schedule_are_edited_beside_it(client):
    timer = create(client, every="PT10M", max_occurrences=5)
    shown = edit(client, timer, {"ends_at": "2030-01-01T00:00:00Z", "max_occurrences": None})
    assert (shown["every"], shown["ends_at"]) == ("PT10M", "2030-01-01T00:00:00Z")
    assert "max_occurrences" not in shown
    assert (shown["due_at"], shown["starts_at"]) == (timer["due_at"], timer["starts_at"])
    assert fields_of(patch(client, timer, {"ends_at": "2020-01-01T00:00:00Z"})) == ["ends_at"]
    assert fields_of(patch(client, timer, {"every": None})) == ["ends_at", "seconds", "starts_at"]
    timer = create(client, cron="0 9 * * *", timezone="Europe/Berlin", starts_at="2030-06-01T00:00:00Z")
    shown = edit(client, timer, {"timezone": "Asia/Kolkata"})
    assert (shown["due_at"], shown["starts_at"]) == ("2030-06-01T03:30:00Z", "2030-06-01T00:00:00Z")
    assert edit(client, timer, {"cron": "0 10 * * *"})["due_at"] == "2030-06-01T04:30:00Z"


@db
def test_only_what_does_no_harm_is_edited_of_a_timer_that_has_ended(client):
    timer = create(client, labels={"a": "b"})
    ended(client, timer)
    for body in ({"seconds": 5}, {"web_url": "http://b.example/"}, {"body": "x"}, {"name": "n", "method": "GET"}):
        answer = patch(client, timer, body)
        assert answer.status_code == 409, answer.content
        assert "has ended" in answer.json()["detail"]
    shown = edit(client, timer, {"name": "n", "labels": {"a": "c"}, "metadata": 5})
    assert (shown["status"], shown["name"], shown["labels"], shown["metadata"]) == ("succeeded", "n", {"a": "c"}, 5)


@db
def test_list_finds_a_timer_by_its_present_labels_name_and_host(client):
    timer = create(client, labels={"a": "b", "c": "d"}, name="old")
    edit(client, timer, {"labels": {"a": "x"}, "name": "new", "web_url": "http://z.example/"})
    for query, count in [
        ({"label": "a=b"}, 0),
        ({"label": "a=x"}, 1),
        ({"label": "c=d"}, 1),
        ({"name": "old"}, 0),
        ({"name": "new"}, 1),
        ({"host": "a.example"}, 0),
        ({"host": "z.example"}, 1),
    ]:
        assert len(client.get("/timer", query).json()["timers"]) == count, query
    edit(client, timer, {"labels": None})
    assert not TimerLabel.objects.exists()


@db
def test_edit_of_a_paused_timer_leaves_it_paused(client):
    timer = create(client)
    assert post(client, None, path(timer, "/pause")).status_code == 200
    shown = edit(client, timer, {"seconds": 0})
    assert shown["status"] == "paused"
    assert not run().started


@db
def test_later_attempts_see_an_edit(client, receiver):
    timer = create(client, web_url=receiver.url("/status/500"), seconds=0)
    call_all(receiver)
    edit(client, timer, {"web_url": receiver.url("/fine"), "method": "PUT"})
    put_back(timer["task_id"], 0.001)
    (call,) = call_all(receiver)
    assert (call.method, call.path, call.headers["webtask-attempt"]) == ("PUT", "/fine", "2")


@db
@each("when", [{"seconds": 60}, {"every": "PT1M"}])
def test_edit_in_mid_call_promises_another_moment_and_the_call_brings_no_other(client, when):
    timer = create(client, **when)
    put_back(timer["task_id"])
    (call,) = begin().started
    shown = edit(client, timer, {"seconds": 30})
    assert (shown["status"], shown["attempts"]) == ("scheduled", [])
    record_outcomes([Outcome(call, call.started_at, 5, 500, "status", "It did not.", "")])
    assert [one.state for one in Delivery.objects.order_by("number")] == ["cancelled", "scheduled"]
    assert client.get(path(timer)).json()["due_at"] == shown["due_at"]
    assert PeriodicTask.objects.get().enabled


@db
def test_edit_takes_json_only(client):
    timer = create(client)
    assert patch(client, timer, "seconds=5", content_type="application/x-www-form-urlencoded").status_code == 415


@pytest.mark.django_db(transaction=True)
def test_two_edits_at_once_both_hold(client, monkeypatch):
    timer = create(client)
    edit_ = services.edit
    answers = []

    def other():
        answers.append(patch(client, timer, {"metadata": 1}))
        connection.close()

    def slow(*arguments, **more):
        # In the middle of one edit another begins; it has to wait for the first.
        if not threads:
            threads.append(threading.Thread(target=other))
            threads[0].start()
            threads[0].join(0.3)
        return edit_(*arguments, **more)

    threads = []
    monkeypatch.setattr(services, "edit", slow)
    answers.append(patch(client, timer, {"name": "n"}))
    threads[0].join(10)
    assert [answer.status_code for answer in answers] == [200, 200]
    shown = client.get(path(timer)).json()
    assert (shown["name"], shown["metadata"]) == ("n", 1)


# Cancelling, pausing, running, replaying


@db
def test_cancel_is_done_once_and_answers_the_same_again(client):
    timer = create(client, every="PT1M")
    first = client.delete(path(timer))
    assert first.status_code == 200
    body = first.json()
    assert (body["status"], body["reason"], body["time_left_in_seconds"]) == ("cancelled", "It was cancelled.", 0)
    assert client.delete(path(timer) + "/").json() == client.get(path(timer)).json() == body
    put_back(timer["task_id"])
    assert not run().started
    for action in ("pause", "resume"):
        assert post(client, None, path(timer, f"/{action}")).status_code == 409


@db
def test_cancel_of_a_timer_that_has_ended_changes_nothing(client):
    timer = create(client)
    before = ended(client, timer)
    assert client.delete(path(timer)).json() == before


@db
def test_cancel_in_mid_call_says_that_the_call_may_land_and_no_retry_follows(client):
    timer = create(client, every="PT1M")
    put_back(timer["task_id"])
    begin()
    for _ in range(2):
        body = client.delete(path(timer)).json()
        assert body["status"] == "running"
        assert "may still land, no retry follows" in body["reason"]
    assert post(client, None, path(timer, "/pause")).status_code == 409


@db
def test_pause_and_resume(client):
    timer = create(client)
    for _ in range(2):
        answer = post(client, None, path(timer, "/pause"))
        assert (answer.status_code, answer.json()["status"], answer.json()["next_attempt_at"]) == (200, "paused", None)
    put_back(timer["task_id"])
    assert not run().started
    for _ in range(2):
        answer = post(client, {}, path(timer, "/resume"))
        assert (answer.status_code, answer.json()["status"]) == (200, "scheduled")
    assert len(run().started) == 1
    for action in ("pause", "resume"):
        assert post(client, None, path(timer, f"/{action}")).status_code == 409


@db
def test_run_makes_an_extra_delivery_beside_the_promised_one(client):
    timer = create(client)
    answer = post(client, None, path(timer, "/run"))
    assert answer.status_code == 201
    body = answer.json()
    assert (body["extra"], body["status"], body["attempts"]) == (True, "scheduled", 0)
    assert len(run().started) == 1
    shown = client.get(path(timer)).json()
    assert (shown["status"], shown["due_at"]) == ("scheduled", timer["due_at"])
    (extra, promised) = client.get(path(timer, "/deliveries")).json()["deliveries"]
    assert (extra["delivery_id"], extra["status"]) == (body["delivery_id"], "succeeded")
    assert (promised["extra"], promised["status"], promised["occurrence"]) == (False, "scheduled", 1)
    post(client, None, path(timer, "/pause"))
    assert post(client, None, path(timer, "/run")).status_code == 201


def retrying(client, **more):
    """Return a timer whose first attempt failed; the next one is an hour away."""
    timer = create(client, retry={"min_seconds": 3600, "jitter": 0}, **more)
    ended(client, timer, status_code=500, error="status")
    return timer


@db
def test_waiting_retry_is_tried_now(client):
    timer = retrying(client)
    assert not run().started
    answer = post(client, None, path(timer, "/try-now"))
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert (body["status"], body["attempts"], body["extra"]) == ("scheduled", 1, False)
    assert moment(body["next_attempt_at"]) <= timezone.now()
    run()
    shown = client.get(path(timer)).json()
    assert (shown["status"], [one["number"] for one in shown["attempts"]]) == ("succeeded", [1, 2])
    # It was late by what beat took, not by the hour that it did not wait.
    assert shown["attempts"][1]["lateness_ms"] < 5000


def why_not(client, timer, body=None):
    answer = post(client, body, path(timer, "/try-now"))
    assert answer.status_code == 409, answer.content
    return answer.json()["detail"]


@db
def test_try_now_says_what_a_timer_waits_for_instead(client):
    timer = create(client, retry={"min_seconds": 3600})
    assert "its first call" in why_not(client, timer)
    put_back(timer["task_id"])
    (call,) = begin().started
    assert "being called now" in why_not(client, timer)
    record_outcomes([Outcome(call, call.started_at, 5, 500, "status", "It did not.", "")])
    assert post(client, None, path(timer, "/try-now")).status_code == 200
    assert "due already" in why_not(client, timer)
    post(client, None, path(timer, "/pause"))
    assert "is paused" in why_not(client, timer)
    post(client, None, path(timer, "/resume"))
    services.stop_calls(host="a.example", reason="x")
    begin()
    assert "are stopped" in why_not(client, timer)
    client.delete(path(timer))
    before = list(Delivery.objects.values())
    assert "no delivery that waits" in why_not(client, timer)
    assert list(Delivery.objects.values()) == before


@db
def test_try_now_of_one_delivery_of_several(client):
    timer = retrying(client)
    extra = post(client, None, path(timer, "/run")).json()["delivery_id"]
    run(status_code=500, error="status")
    promised = Delivery.objects.exclude(pk=extra).get()
    assert post(client, {"delivery_id": str(promised.pk)}, path(timer, "/try-now")).json()["extra"] is False
    assert "due already" in why_not(client, timer, {"delivery_id": str(promised.pk)})
    # Without a word, the latest that waits.
    assert post(client, None, path(timer, "/try-now")).json()["delivery_id"] == extra
    assert "no delivery that waits" in why_not(client, retrying(client), {"delivery_id": extra})


@db
def test_replay_sends_a_dead_letter_again_with_fresh_attempts(client):
    timer = create(client, retry={"max_attempts": 1})
    assert post(client, None, path(timer, "/replay")).status_code == 409
    assert ended(client, timer, status_code=500, error="status")["status"] == "failed"
    answer = post(client, None, path(timer, "/replay"))
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert (body["status"], body["attempts"], body["extra"]) == ("scheduled", 1, False)
    assert body["replayed_at"]
    run()
    shown = client.get(path(timer)).json()
    assert (shown["status"], [one["number"] for one in shown["attempts"]]) == ("succeeded", [1, 2])
    assert post(client, None, path(timer, "/replay")).status_code == 409


@db
def test_replay_of_one_delivery_of_several(client):
    timer = create(client, every="PT1M", retry={"max_attempts": 1})
    for _ in range(2):
        put_back(timer["task_id"])
        run(status_code=500, error="status")
    deliveries = client.get(path(timer, "/deliveries")).json()["deliveries"]
    assert [(one["occurrence"], one["status"]) for one in deliveries] == [
        (3, "scheduled"), (2, "failed"), (1, "failed"),
    ]  # fmt: skip
    first = deliveries[2]["delivery_id"]
    body = post(client, {"delivery_id": first.upper()}, path(timer, "/replay")).json()
    assert (body["delivery_id"], body["extra"]) == (first, True)
    for wrong in (deliveries[0]["delivery_id"], str(uuid.uuid4())):
        assert post(client, {"delivery_id": wrong}, path(timer, "/replay")).status_code == 409
    other = create(client)
    assert post(client, {"delivery_id": deliveries[1]["delivery_id"]}, path(other, "/replay")).status_code == 409


@db
@each(
    ("action", "body", "fields"),
    [
        ("replay", {"delivery_id": "x"}, ["delivery_id"]),
        ("replay", {"delivery_id": 5}, ["delivery_id"]),
        ("replay", {"delivery_id": True}, ["delivery_id"]),
        ("replay", {"delivery_id": None}, ["delivery_id"]),
        ("replay", {"delivery_id": "urn:uuid:" + str(uuid.uuid4())}, ["delivery_id"]),
        ("replay", {"delivery_id": "\0"}, ["delivery_id"]),
        ("replay", {"id": 5}, ["id"]),
        ("try-now", {"delivery_id": "x"}, ["delivery_id"]),
        ("try-now", {"id": 5}, ["id"]),
        ("dismiss", {"delivery_id": "x"}, ["delivery_id"]),
        ("run", {"at": 5}, ["at"]),
        ("pause", {"x": 1}, ["x"]),
        ("resume", {"x": 1}, ["x"]),
        ("run", [], [""]),
        ("run", "null", [""]),
    ],
)
def test_action_with_a_bad_body_is_refused_by_name(client, action, body, fields):
    timer = create(client)
    before = stored()
    assert fields_of(post(client, body, path(timer, f"/{action}"))) == fields
    assert stored() == before


# What came of it


@db
@each("limit", [1, 2, 3, 7, 200])
def test_deliveries_and_attempts_are_paged_each_once_the_latest_first(client, limit):
    timer = create(client, every="PT1M", retry={"max_attempts": 3, "min_seconds": 0.1})
    other = create(client, every="PT1M")
    for _ in range(6):
        put_back(timer["task_id"])
        put_back(other["task_id"])
        run(status_code=500, error="status")
    for kind in ("deliveries", "attempts"):
        found, cursor = [], ""
        while cursor is not None:
            answer = client.get(path(timer, f"/{kind}"), {"limit": limit, "cursor": cursor})
            assert answer.status_code == 200, answer.content
            page = answer.json()
            assert len(page[kind]) <= limit
            found += page[kind]
            cursor = page["next"]
        if kind == "deliveries":
            assert [one["occurrence"] for one in found] == [3, 2, 1]
        else:
            assert [one["number"] for one in found] == [3, 2, 1] * 2
            assert found[0] | {"status_code": 500, "error": "status", "excerpt": "ok"} == found[0]
            own = Delivery.objects.filter(timer=timer["task_id"], attempts=3).order_by("-number")
            assert [one["delivery_id"] for one in found[::3]] == [str(one.pk) for one in own]


@db
@each("kind", ["deliveries", "attempts"])
@each(
    ("query", "field"),
    [
        ("cursor=x", "cursor"),
        # A place is a number, which only the service may write.
        ("cursor=1", "cursor"),
        ("cursor=-1", "cursor"),
        ("cursor=1e5", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "9" * 19, "cursor"),
        ("cursor=" + "9" * 200, "cursor"),
        ("cursor=%EF%BC%95", "cursor"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("page=2", "page"),
    ],
)
def test_bad_page_is_refused_by_name(client, kind, query, field):
    timer = create(client)
    assert fields_of(client.get(path(timer, f"/{kind}?{query}"))) == [field]


@db
def test_attempts_of_one_timer_are_found_by_index_among_many(client, make_timer, sql, django_assert_max_num_queries):
    timer = create(client)
    delivery = Delivery.objects.get()
    sql(
        """
        INSERT INTO scheduler_timer (id, web_url, host, created_at, name, cron, timezone)
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'http://a/', 'a', now(), '', '', '' FROM generate_series(1, 20000) n
        """
    )
    sql(
        """
        INSERT INTO scheduler_delivery (id, timer_id, number, occurrence, extra, due_at, next_attempt_at, state,
                                        attempts, attempts_before, finished_at, started_at)
        SELECT id, id, 1, 1, false, now(), now(), 'succeeded', 1, 0, now(), now() FROM scheduler_timer WHERE host = 'a'
        """
    )
    sql(
        """
        INSERT INTO scheduler_attempt (delivery_id, number, meant_for, started_at, error, message, excerpt)
        SELECT id, 1, now(), now(), '', '', '' FROM scheduler_delivery WHERE state = 'succeeded'
        """
    )
    Attempt.objects.create(delivery=delivery, number=1, meant_for=timezone.now(), started_at=timezone.now())
    sql("ANALYZE scheduler_timer, scheduler_delivery, scheduler_attempt")
    with django_assert_max_num_queries(3) as captured:
        assert len(client.get(path(timer, "/attempts")).json()["attempts"]) == 1
    statement = captured.captured_queries[-1]["sql"]
    plan = "\n".join(row[0] for row in sql("EXPLAIN " + statement.replace("%", "%%")))
    assert "delivery_timer_number_unique" in plan, plan
    assert "attempt_delivery_number_unique" in plan, plan
    assert "Seq Scan" not in plan
    assert "scheduler_attempt_pkey" not in plan, plan


# Whose


@db
def test_outsider_gets_404_for_everything(client, user):
    mine = create(client)
    put_back(mine["task_id"])
    run(status_code=410, error="status")
    bulk = post(client, {"action": "pause", "filter": {}}, "/timer/bulk")
    before = Timer.objects.values().get(), Delivery.objects.values().get(), stored()

    def everything(status):
        for method, more, body in (
            ("GET", "", None),
            ("PATCH", "", {"name": "n"}),
            ("DELETE", "", None),
            ("POST", "/pause", None),
            ("POST", "/resume", None),
            ("POST", "/run", None),
            ("POST", "/replay", None),
            ("POST", "/try-now", None),
            ("POST", "/dismiss", None),
            ("GET", "/deliveries", None),
            ("GET", "/attempts", None),
        ):
            answer = send(client, method, path(mine, more), body)
            assert (answer.status_code == 404) == (status == 404), (method, more, answer.content)
        assert client.get(bulk["Location"]).status_code == status

    client.force_login(user)
    everything(404)
    assert (Timer.objects.values().get(), Delivery.objects.values().get(), stored()) == before
    client.force_login(get_user_model().objects.create_superuser("root@example.com", "secret"))
    everything(200)
    client.force_login(user)
    mine = create(client)
    bulk = post(client, {"action": "pause", "filter": {}}, "/timer/bulk")
    client.logout()
    everything(404)


# Many


def bulk(client, body, **more):
    answer = post(client, body, "/timer/bulk", **more)
    assert answer.status_code == 202, answer.content
    assert answer["Location"] == f"/timer/bulk/{answer.json()['bulk_id']}"
    return answer["Location"]


def step(location):
    operation = BulkOperation.objects.get(pk=location.rpartition("/")[2])
    return services.step_bulk(operation)


def finish(client, location):
    """Do a bulk operation to its end, and return what it says of itself."""
    for _ in range(100):
        if not step(location):
            return client.get(location).json()
    raise AssertionError("it does not end")


@db
def test_dry_run_counts_and_changes_nothing(client):
    timers = [create(client, labels={"a": "b"}) for _ in range(3)] + [create(client)]
    before = list(Delivery.objects.order_by("pk").values())
    location = bulk(client, {"action": "cancel", "filter": {"label": "a=b"}, "dry_run": True})
    begun = client.get(location).json()
    assert (begun["status"], begun["matched"], begun["finished_at"], begun["dry_run"]) == ("running", 0, None, True)
    done = finish(client, location)
    assert (done["status"], done["matched"], done["changed"]) == ("done", 3, 0)
    assert done["finished_at"]
    assert list(Delivery.objects.order_by("pk").values()) == before
    assert len(timers) == 4


@db
def test_bulk_pauses_resumes_cancels_and_replays_what_fits(client, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    some = [create(client, labels={"a": "b"}, retry={"max_attempts": 1}) for _ in range(5)]
    other = create(client)

    def statuses():
        return [client.get(path(timer)).json()["status"] for timer in [*some, other]]

    everything = {"filter": {"label": "a=b"}}
    done = finish(client, bulk(client, everything | {"action": "pause"}))
    assert (done["matched"], done["changed"]) == (5, 5)
    assert statuses() == ["paused"] * 5 + ["scheduled"]
    done = finish(client, bulk(client, {"action": "resume", "filter": {"label": "a=b", "status": ["paused"]}}))
    assert (done["matched"], done["changed"]) == (5, 5)
    assert statuses() == ["scheduled"] * 6
    for timer in some:
        put_back(timer["task_id"])
    run(status_code=500, error="status")
    assert statuses() == ["failed"] * 5 + ["scheduled"]
    done = finish(client, bulk(client, {"action": "replay", "filter": {"status": ["failed"]}}))
    assert (done["matched"], done["changed"]) == (5, 5)
    assert statuses() == ["scheduled"] * 6
    # What cannot be done to one is passed over.
    client.delete(path(some[0]))
    done = finish(client, bulk(client, everything | {"action": "cancel"}))
    assert (done["matched"], done["changed"]) == (5, 4)
    done = finish(client, bulk(client, everything | {"action": "pause"}))
    assert (done["matched"], done["changed"]) == (5, 0)
    assert statuses() == ["cancelled"] * 5 + ["scheduled"]


@db
@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_bulk_counts_a_timer_once_though_its_status_fits_again(client, monkeypatch, action):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    for _ in range(5):
        create(client)
    wanted = {"status": ["scheduled", "paused", "cancelled"]}
    done = finish(client, bulk(client, {"action": action, "filter": wanted}))
    assert (done["matched"], done["changed"]) == (5, 5)


@db
def test_worker_killed_in_mid_step_leaves_the_page_undone(client, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    for _ in range(5):
        create(client)
    location = bulk(client, {"action": "cancel", "filter": {}})
    assert step(location)
    cancel_many = services.cancel_many

    class KilledError(Exception):
        pass

    def killed(timer_ids):
        cancel_many(timer_ids)
        raise KilledError

    monkeypatch.setattr(many, "cancel_many", killed)
    with pytest.raises(KilledError):
        step(location)
    assert Delivery.objects.filter(state=State.CANCELLED).count() == 2
    assert client.get(location).json()["changed"] == 2
    monkeypatch.setattr(many, "cancel_many", cancel_many)
    done = finish(client, location)
    assert (done["matched"], done["changed"]) == (5, 5)
    # Twice by mistake: it changes nothing more.
    assert not Delivery.objects.exclude(state=State.CANCELLED).exists()


@db
def test_bulk_that_is_stopped_keeps_what_it_changed_and_says_how_much(client, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    for _ in range(5):
        create(client)
    location = bulk(client, {"action": "pause", "filter": {}})
    assert step(location)
    answer = post(client, {}, f"{location}/stop")
    assert answer.status_code == 200
    stopped = answer.json()
    assert (stopped["status"], stopped["matched"], stopped["changed"], stopped["error"]) == ("stopped", 2, 2, "")
    assert stopped["finished_at"]
    # A worker that had it in hand, and a second stop, change nothing.
    assert not step(location)
    assert post(client, {}, f"{location}/stop").json() == stopped == client.get(location).json()
    assert Delivery.objects.filter(state=State.PAUSED).count() == 2
    entry = AuditEntry.objects.get(action="bulk.stopped")
    assert (entry.after["changed"], entry.object_id) == (2, stopped["bulk_id"])
    done = finish(client, bulk(client, {"action": "pause", "filter": {}}))
    assert post(client, {}, f"{location.rpartition('/')[0]}/{done['bulk_id']}/stop").json() == done
    assert post(client, {}, f"/timer/bulk/{uuid.uuid4()}/stop").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_stop_waits_for_the_page_that_is_under_way_and_counts_it(client, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    timers = [create(client) for _ in range(3)]
    location = bulk(client, {"action": "pause", "filter": {}})
    done = {}

    def apart(name, act):
        try:
            done[name] = act()
        finally:
            connections.close_all()

    with transaction.atomic():
        # The page waits for this timer; whoever stops the operation waits for the page.
        Timer.objects.select_for_update().get(pk=timers[2]["task_id"])
        stepping = threading.Thread(target=apart, args=("step", lambda: step(location)))
        stepping.start()
        wait_until(lambda: waiting_for_locks() == 1)
        stopping = threading.Thread(
            target=apart, args=("stop", lambda: services.stop_bulk(uuid.UUID(location.rpartition("/")[2])))
        )
        stopping.start()
        wait_until(lambda: waiting_for_locks() == 2)
    stepping.join()
    stopping.join()
    assert (done["step"], done["stop"].changed) == (True, 2)
    assert Delivery.objects.filter(state=State.PAUSED).count() == 2
    body = client.get(location).json()
    assert (body["status"], body["matched"], body["changed"]) == ("stopped", 2, 2)
    assert not step(location)


def waiting_for_locks():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
        return cursor.fetchone()[0]


@db
def test_bulk_operations_are_listed_to_their_owner_the_latest_first(client, user):
    begun = [bulk(client, {"action": "pause", "filter": {}}).rpartition("/")[2] for _ in range(3)]
    first = client.get("/timer/bulk?limit=2").json()
    assert [one["bulk_id"] for one in first["operations"]] == [begun[2], begun[1]]
    second = client.get("/timer/bulk", {"limit": 2, "cursor": first["next"]}).json()
    assert ([one["bulk_id"] for one in second["operations"]], second["next"]) == ([begun[0]], None)
    client.force_login(user)
    assert client.get("/timer/bulk").json() == {"operations": [], "next": None}
    assert post(client, {}, f"/timer/bulk/{begun[0]}/stop").status_code == 404


@db
def test_status_of_a_bulk_filter_may_be_one_word(client):
    create(client)
    location = bulk(client, {"action": "pause", "filter": {"status": "scheduled"}})
    assert client.get(location).json()["filter"] == {"status": ["scheduled"]}
    assert finish(client, location)["changed"] == 1
    answer = post(client, {"action": "pause", "filter": {"status": "paused,failed"}}, "/timer/bulk")
    assert answer.status_code == 400
    assert [one["field"] for one in answer.json()["errors"]] == ["filter.status.0"]


@db
def test_bulk_finds_the_callers_timers_by_whether_they_call_back(client, user):
    create(client, callback_url="http://a.example/done")
    client.force_login(user)
    create(client, failure_callback_url="http://me:secret@a.example/failed")
    create(client, body={"callback_url": "http://a.example/"})
    for has_callback in (True, False):
        wanted = {"has_callback": has_callback, "status": ["scheduled"]}
        location = bulk(client, {"action": "pause", "filter": wanted, "dry_run": True})
        assert finish(client, location)["matched"] == 1
        assert client.get(location).json()["filter"] == wanted
    assert not Delivery.objects.filter(state=State.PAUSED).exists()


@db
def test_cancelling_for_a_deleted_user_is_not_stopped(client, user):
    user.deleted_at = timezone.now()
    user.save()
    operation = BulkOperation.objects.create(owner=user, action="cancel", filter={})
    client.force_login(get_user_model().objects.create_superuser("root@example.com", "secret"))
    answer = post(client, {}, f"/timer/bulk/{operation.pk}/stop")
    assert (answer.status_code, client.get(f"/timer/bulk/{operation.pk}").json()["status"]) == (409, "running")


@db
def test_bulk_whose_filter_comes_to_mean_another_says_so(client, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 1)
    root = get_user_model().objects.create_superuser("root@example.com", "secret")
    client.force_login(root)
    for _ in range(3):
        create(client)
    location = bulk(client, {"action": "pause", "filter": {}})
    assert step(location)
    type(root).objects.filter(pk=root.pk).update(is_superuser=False)
    assert not step(location)
    body = client.get(location).json()
    assert (body["status"], body["matched"]) == ("failed", 1)
    assert body["error"]


@db
def test_bulk_is_of_the_callers_own(client, user):
    theirs = create(client)
    client.force_login(user)
    mine = create(client)
    done = finish(client, bulk(client, {"action": "cancel", "filter": {}}))
    assert done["matched"] == 1
    assert client.get(path(mine)).json()["status"] == "cancelled"
    client.force_login(get_user_model().objects.create_superuser("root@example.com", "secret"))
    assert client.get(path(theirs)).json()["status"] == "scheduled"
    assert finish(client, bulk(client, {"action": "pause", "filter": {}}))["matched"] == 2


@db
def test_bulk_is_taken_up_by_a_worker(client):
    create(client)
    location = bulk(client, {"action": "pause", "filter": {"recurring": False}})
    tasks.bulk()
    assert client.get(location).json()["status"] == "done"
    assert Delivery.objects.get().state == State.PAUSED


@db
@each(
    ("body", "fields"),
    [
        ({}, ["action", "filter"]),
        ({"action": "cancel"}, ["filter"]),
        ({"action": "cancel", "filter": None}, ["filter"]),
        ({"action": "cancel", "filter": []}, ["filter"]),
        ({"action": "cancel", "filter": "all"}, ["filter"]),
        ({"action": "delete", "filter": {}}, ["action"]),
        ({"action": "cancel", "filter": {"stauts": ["failed"]}}, ["filter.stauts"]),
        ({"action": "cancel", "filter": {"status": 1}}, ["filter.status"]),
        ({"action": "cancel", "filter": {"status": [["failed"]]}}, ["filter.status.0"]),
        ({"action": "cancel", "filter": {"status": [10**400]}}, ["filter.status.0"]),
        ({"action": "cancel", "filter": {"limit": 5}}, ["filter.limit"]),
        ({"action": "cancel", "filter": {"recurring": "true"}}, ["filter.recurring"]),
        ({"action": "cancel", "filter": {"has_callback": None}}, ["filter.has_callback"]),
        ({"action": "cancel", "filter": {"label": "a=\0"}}, ["filter.label"]),
        ({"action": "cancel", "filter": {"host": "\ud800"}}, ["filter.host"]),
        ({"action": "cancel", "filter": {"due_to": "2026-01-05T09:00:00"}}, ["filter.due_to"]),
        ({"action": "cancel", "filter": {"status": []}, "dry_run": "yes"}, ["dry_run"]),
        ([], [""]),
    ],
)
def test_bad_bulk_is_refused_by_name(client, body, fields):
    assert fields_of(post(client, body, "/timer/bulk")) == fields
    assert not any(stored())


@db
@each("id_", ["x", str(uuid.UUID(int=7)), "%00"])
def test_unknown_bulk_is_404(client, id_):
    assert client.get(f"/timer/bulk/{id_}").status_code == 404


# Preview


def previewed(client, **body):
    answer = post(client, body, "/timer/preview")
    assert answer.status_code == 200, answer.content
    assert not any(stored())
    return answer.json()


@db
def test_preview_shows_what_clocks_do(client):
    berlin = {"timezone": "Europe/Berlin", "count": 3}
    body = previewed(client, cron="30 2 * * *", after="2026-03-28T00:00:00Z", **berlin)
    assert [(one["at"], one["local"]) for one in body["moments"]] == [
        ("2026-03-28T01:30:00Z", "2026-03-28T02:30:00+01:00"),
        ("2026-03-29T01:00:00Z", "2026-03-29T03:00:00+02:00"),
        ("2026-03-30T00:30:00Z", "2026-03-30T02:30:00+02:00"),
    ]
    first, second, third = (one["note"] for one in body["moments"])
    assert (first, third) == ("", "")
    assert "go forward" in second
    assert "from 2026-03-29 02:00 to 2026-03-29 03:00 are skipped" in second
    assert body["more"]
    body = previewed(client, cron="30 2 * * *", after="2026-10-24T00:00:00+00:00", **berlin)
    assert [one["at"] for one in body["moments"]] == [
        "2026-10-24T00:30:00Z",
        "2026-10-25T00:30:00Z",
        "2026-10-26T01:30:00Z",
    ]
    assert "go back" in body["moments"][2]["note"]


@db
@each(
    ("body", "moments", "more"),
    [
        ({"every": "PT6H", "starts_at": "2026-01-05T00:00:00Z", "ends_at": "2026-01-05T12:00:00Z"}, 2, False),
        ({"every": "PT6H", "starts_at": "2026-01-05T00:00:00Z", "max_occurrences": 2}, 2, False),
        ({"every": "PT6H", "starts_at": "2026-01-05T00:00:00Z", "max_occurrences": 3, "count": 2}, 2, True),
        ({"every": "PT6H", "count": 100}, 100, True),
        ({"cron": "@daily"}, 5, True),
        ({"cron": "0 0 29 2 *", "count": 100}, 100, True),
        ({"hours": 1}, 1, False),
        ({"delay": "PT1M"}, 1, False),
        ({"due_at": "2030-01-05T09:00:00+01:00"}, 1, False),
    ],
)
def test_preview_shows_so_many_moments_and_whether_there_are_more(client, body, moments, more):
    shown = previewed(client, after="2026-01-05T00:00:00Z", **body)
    assert (len(shown["moments"]), shown["more"]) == (moments, more)
    ats = [moment(one["at"]) for one in shown["moments"]]
    assert ats == sorted(set(ats))
    assert [moment(one["local"]) for one in shown["moments"]] == ats


@db
@each(
    ("body", "fields"),
    [
        ({}, ["seconds"]),
        ({"cron": "x"}, ["cron"]),
        ({"cron": "@daily", "count": 0}, ["count"]),
        ({"cron": "@daily", "count": 101}, ["count"]),
        ({"cron": "@daily", "after": "2026-01-05"}, ["after"]),
        ({"cron": "@daily", "web_url": URL}, ["web_url"]),
        ({"cron": "@daily", "ends_at": "2026-01-01T00:00:00Z", "after": "2026-01-02T00:00:00Z"}, ["ends_at"]),
        ([], [""]),
    ],
)
def test_bad_preview_is_refused_by_name(client, body, fields):
    assert fields_of(post(client, body, "/timer/preview")) == fields


# Anything at all

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *("", "GET", "POST", "skip", "reject", "PT5S", "P1D", "PT0S", "* * * * *", "@daily", "0 0 29 2 MON", "UTC"),
            *("Europe/Berlin", "2030-01-05T09:00:00Z", "2020-01-05T09:00:00+01:00", URL, "application/json", "eA=="),
            *("fixed", "list", "exponential", "a=b", "scheduled", "failed", "cancel", "replay", "\0", "\ud800"),
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-5, 400), st.integers(), st.floats(allow_nan=False), st.sampled_from([10**30, 10**400, 2**31, 1e308])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(TEXTS, st.sampled_from(["max_attempts", "min_seconds", "delays_seconds"])), inner, max_size=4
        ),
    ),
    max_leaves=6,
)
# Values that are likely to be taken, so that what comes after reading is tried too.
LIKELY = {
    "web_url": st.just(URL),
    "seconds": st.integers(0, 10**9),
    "delay": st.sampled_from(["PT5S", "P3649D"]),
    "due_at": st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1)).map(lambda m: m.isoformat() + "Z"),  # noqa: DTZ001
    "cron": st.sampled_from(["* * * * *", "@daily", "0 0 29 2 MON"]),
    "every": st.sampled_from(["PT1S", "P3650D", "PT1.000001S"]),
    "starts_at": st.sampled_from(["2030-01-01T00:00:00Z", "2020-01-01T00:00:00.000001-12:00"]),
    "max_occurrences": st.integers(1, 2**31),
    "labels": st.dictionaries(st.text("ab/._-", max_size=4), st.text(max_size=4), max_size=3),
    "headers": st.dictionaries(st.text("ab-:", max_size=4), st.text(max_size=4), max_size=3),
    "metadata": VALUES,
    "body": VALUES,
    "timeout_seconds": st.one_of(st.floats(0, 400), st.integers(0, 400)),
    "filter": st.dictionaries(st.sampled_from(["status", "label", "host", "due_to", "recurring", "name"]), VALUES),
}
NAMES = sorted(NewTimerSerializer().fields.keys() | {"partial", "timers", "count", "after", "action", "filter", "x"})


def bounded(examples):
    """Bound a property's examples, the same at each run: a test that fails now and then helps nobody."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@st.composite
def bodies(draw):
    """Return a body made of known names: some values likely, others anything."""
    body = {}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True)):
        body[name] = draw(st.one_of(LIKELY[name], VALUES) if name in LIKELY else VALUES)
    if draw(st.booleans()):
        body = {"web_url": URL, "seconds": 5} | body
    return body


@db
@bounded(50)
@given(body=bodies())
def test_no_body_makes_a_fault_and_what_is_refused_writes_nothing(client, body):
    timer = create(client)
    for method, where, sent in (
        ("POST", "/timer", body),
        ("POST", "/timer/batch", {"timers": [body]}),
        ("POST", "/timer/batch", {"timers": [body, {"seconds": 1, "web_url": URL}], "partial": True}),
        ("PATCH", path(timer), body),
        ("POST", "/timer/preview", body),
        ("POST", "/timer/bulk", {"action": "pause", "filter": {}} | body),
        ("POST", path(timer, "/replay"), body),
    ):
        before = stored(), rows_of(Timer, Delivery)
        answer = send(client, method, where, sent)
        assert answer.status_code < 500, (where, sent, answer.content)
        if answer.status_code >= 400:
            assert (stored(), rows_of(Timer, Delivery)) == before, (where, sent)
            assert answer["Content-Type"] == "application/problem+json"
        elif where == "/timer":
            shown = client.get(answer["Location"]).json()
            assert shown == answer.json() | {"time_left_in_seconds": shown["time_left_in_seconds"]}
            # What was taken once is taken again, with what is edited beside it.
            answer = patch(client, shown, {"name": "again", "max_occurrences": None})
            assert answer.status_code == 200, answer.content
    Timer.objects.all().delete()


QUERY = [
    "status",
    "host",
    "label",
    "due_from",
    "due_to",
    "recurring",
    "retrying",
    "late",
    "name",
    "url_prefix",
    "has_callback",
    "limit",
]
QUERY += ["cursor"]


@db
@bounded(100)
@given(query=st.dictionaries(st.sampled_from(QUERY), TEXTS.map(lambda text: text.encode(errors="replace")), max_size=3))
def test_no_query_makes_a_fault(client, query):
    assert client.get("/timer", query).status_code in (200, 400)


# For real


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(180)
def test_service_carries_out_a_bulk_operation_and_obeys_an_edit(receiver):
    with running("web", "worker", "beat") as service:
        for number in range(3):
            service.post({"hours": 1, "web_url": receiver.url(f"/{number}"), "labels": {"a": "b"}})
        status, begun = service.post({"action": "cancel", "filter": {"label": "a=b"}}, "/timer/bulk")
        assert status == 202
        _, timer = service.post({"hours": 1, "web_url": receiver.url("/edited")})
        # The client of these tests speaks no PATCH.
        url = f"http://127.0.0.1:{service.port}/timer/{timer['task_id']}"
        assert requests.patch(url, json={"seconds": 0}, timeout=10).status_code == 200
        receiver.wait_for(1, path="/edited")
        bulk = f"/timer/bulk/{begun['bulk_id']}"
        wait_until(lambda: service.get(bulk)[1]["status"] != "running")
        _, body = service.get(bulk)
        assert (body["status"], body["matched"], body["changed"]) == ("done", 3, 3)
        assert len(receiver.calls) == 1


@pytest.mark.django_db
def test_bulk_operation_that_cannot_be_read_does_not_stand_before_others():
    unknown = BulkOperation.objects.create(action="pause", filter={"gone": 1})
    good = BulkOperation.objects.create(action="pause", filter={})
    tasks.bulk()
    unknown.refresh_from_db()
    good.refresh_from_db()
    assert "not known" in unknown.error
    assert (good.finished_at is not None, good.error) == (True, "")
