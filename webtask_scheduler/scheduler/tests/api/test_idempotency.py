"""Idempotency-Key: a creating request that is sent twice is done once, and answered the same both times."""

import json
import threading
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.utils import timezone

from config.database.prepared import Prepared
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery, IdempotencyKey, SigningSecret, Timer, new_id
from webtask_scheduler.scheduler.services import creating, idempotency
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import URL, bearer, create, fields_of, post, send, stored
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

db = pytest.mark.django_db

ONE = {"seconds": 60, "web_url": URL}
KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"


def keyed(client, body=ONE, path="/timer", *, key="k-1", **more):
    return post(client, body, path, **{KEY: key}, **more)


@pytest.fixture
def failed(client):
    """A timer that goes on, with a dead letter."""
    timer = create(client, every="PT1H", retry={"max_attempts": 1})
    put_back(timer["task_id"])
    run(status_code=500, error="status")
    return timer


def requests_of(timer):
    """Return a request of each kind that creates."""
    return {
        "/timer": ONE | {"labels": {"a": "b"}},
        "/timer/batch": {"timers": [ONE, {"every": "PT1M", "web_url": URL}]},
        "/timer/bulk": {"action": "pause", "filter": {"label": "a=b"}},
        f"/timer/{timer['task_id']}/run": None,
        f"/timer/{timer['task_id']}/replay": {},
    }


@db
def test_same_request_is_done_once_and_answered_the_same_again(client, failed):
    for number, (path, body) in enumerate(requests_of(failed).items()):
        first = keyed(client, body, path, key=f"k-{number}")
        assert first.status_code in (200, 201, 202), first.content
        assert REPLAYED not in first
        before = stored()
        for again in (path, f"{path}/", f"/api/v1/scheduler{path}"):
            second = keyed(client, body, again, key=f"k-{number}")
            assert second.status_code == first.status_code
            assert second[REPLAYED] == "true"
            assert second.content == first.content
            assert second.get("Location") == first.get("Location")
            assert second["Content-Type"] == first["Content-Type"]
        assert stored() == before


@db
def test_partial_batch_is_answered_the_same_again(client):
    body = {"timers": [ONE, {"seconds": "x", "web_url": URL}], "partial": True}
    first, second = (keyed(client, body, "/timer/batch") for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert Timer.objects.count() == 1


@db
def test_form_is_answered_the_same_again(client):
    form = b"seconds=60&web_url=http%3A%2F%2Fa.example%2F"
    first, second = (keyed(client, form, content_type="application/x-www-form-urlencoded") for _ in range(2))
    assert first.json() == second.json()
    assert (Timer.objects.count(), second[REPLAYED]) == (1, "true")


@db
def test_answer_is_the_first_one_whatever_became_of_the_timer(client):
    first = keyed(client).json()
    client.delete(f"/timer/{first['task_id']}")
    assert keyed(client).json() == first
    Timer.objects.all().delete()
    assert keyed(client).json() == first


@db
def test_request_that_would_be_refused_by_now_is_answered_as_the_first_time(client, monkeypatch):
    now = timezone.now()
    bodies = [
        {"due_at": (now + timedelta(seconds=30)).isoformat(), "on_missed": "reject", "web_url": URL},
        {"every": "PT1S", "ends_at": (now + timedelta(seconds=30)).isoformat(), "web_url": URL},
    ]
    for number, body in enumerate(bodies):
        for path, sent in (("/timer", body), ("/timer/batch", {"timers": [body]})):
            key = f"k-{number}-{path}"
            monkeypatch.undo()
            first = keyed(client, sent, path, key=key)
            assert first.status_code == 201, first.content
            monkeypatch.setattr(timezone, "now", lambda: now + timedelta(seconds=60))
            assert post(client, sent, path).status_code in (400, 422)
            second = keyed(client, sent, path, key=key)
            assert (second.status_code, second.content) == (201, first.content)


@db
def test_other_request_under_a_key_is_refused(client, failed):
    keyed(client)
    before = stored()
    others = [
        ("/timer", ONE | {"seconds": 61}),
        ("/timer", json.dumps(ONE) + " "),
        ("/timer/batch", ONE),
        ("/timer/batch", {"timers": [ONE]}),
        ("/timer/bulk", {"action": "pause", "filter": {}}),
        (f"/timer/{failed['task_id']}/run", None),
        (f"/timer/{failed['task_id']}/replay", None),
    ]
    for path, body in others:
        answer = keyed(client, body, path)
        if path == "/timer/batch" and body == ONE:
            assert answer.status_code == 400
            continue
        assert answer.status_code == 422, (path, answer.content)
        assert answer["Content-Type"] == "application/problem+json"
        assert "used for another request" in answer.json()["detail"]
        assert REPLAYED not in answer
    form = b"seconds=60&web_url=http%3A%2F%2Fa.example%2F"
    assert keyed(client, form, content_type="application/x-www-form-urlencoded").status_code == 422
    assert stored() == before


@db
def test_run_of_another_timer_under_a_key_is_refused(client):
    first, second = create(client), create(client)
    assert keyed(client, None, f"/timer/{first['task_id']}/run").status_code == 201
    assert keyed(client, None, f"/timer/{second['task_id']}/run").status_code == 422


@db
def test_what_fails_leaves_the_key_free(client, failed):
    before = stored()
    past = {"due_at": "2020-01-01T00:00:00Z", "on_missed": "reject", "web_url": URL}
    assert keyed(client, {"web_url": URL}).status_code == 400
    assert keyed(client, past).status_code == 422
    assert keyed(client, "{").status_code == 400
    assert keyed(client, {"timers": []}, "/timer/batch").status_code == 400
    assert keyed(client, {"timers": [ONE, {}]}, "/timer/batch").status_code == 400
    assert keyed(client, {"action": "x", "filter": {}}, "/timer/bulk").status_code == 400
    assert keyed(client, {"x": 1}, f"/timer/{failed['task_id']}/run").status_code == 400
    assert keyed(client, None, "/timer/00000000-0000-0000-0000-000000000000/run").status_code == 404
    other = create(client)
    assert keyed(client, None, f"/timer/{other['task_id']}/replay").status_code == 409
    client.delete(f"/timer/{other['task_id']}")
    assert not IdempotencyKey.objects.exists()
    assert keyed(client).status_code == 201
    assert [after - count for count, after in zip(before, stored(), strict=True)] == [2, 2, 2, 0, 0, 0, 1, 2]


@pytest.mark.django_db(transaction=True)
def test_fault_in_the_middle_leaves_nothing(client, monkeypatch):
    timer = create(client)
    before = stored()
    client.raise_request_exception = False
    with monkeypatch.context() as patched:
        # Its rows are refused by a constraint of another table than the key's.
        patched.setattr(creating, "new_id", lambda: uuid.UUID(timer["task_id"]))
        assert keyed(client).status_code == 500
    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "places", lambda *_: 1 / 0)
        assert keyed(client).status_code == 500
        assert keyed(client, None, f"/timer/{timer['task_id']}/run").status_code == 500
    assert stored() == before
    assert not IdempotencyKey.objects.exists()
    assert keyed(client).status_code == 201


@db
def test_answer_says_what_is_stored(client, user):
    """It is made before the rows, from the database's time."""
    bodies = [
        ONE,
        {"delay": "PT1.5S", "web_url": URL},
        {"due_at": "2030-01-05T09:00:00.000001+01:00", "web_url": URL, "labels": {"a": "b"}, "headers": {"X": "y"}},
        {"due_at": "2020-01-05T09:00:00Z", "web_url": URL},
        {"every": "PT1H", "web_url": URL, "name": "n", "max_occurrences": 3},
        {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "web_url": URL},
    ]
    for headers in ({}, bearer(user)):
        answers = [keyed(client, body, key=f"k-{number}", **headers) for number, body in enumerate(bodies)]
        made = [answer.json() for answer in answers]
        made += keyed(client, {"timers": bodies}, "/timer/batch", key="batch", **headers).json()["timers"]
        for body in made:
            shown = send(client, "GET", f"/timer/{body['task_id']}", **headers).json()
            # How long it is changes, and so may the reason.
            assert shown | {name: body[name] for name in ("time_left_in_seconds", "reason")} == body
            assert body["due_at"] >= body["created_at"] or body["due_at"].startswith("2020")


@db
def test_key_is_of_its_caller(client, user):
    anonymous = keyed(client)
    client.force_login(user)
    mine = keyed(client)
    client.force_login(get_user_model().objects.create_user("other@example.com", "secret"))
    theirs = keyed(client, ONE | {"seconds": 5})
    assert [answer.status_code for answer in (anonymous, mine, theirs)] == [201, 201, 201]
    assert len({answer.json()["task_id"] for answer in (anonymous, mine, theirs)}) == 3
    client.force_login(user)
    assert keyed(client).json() == mine.json()


@db
def test_key_is_forgotten_after_a_day(client):
    first = keyed(client).json()
    almost = timezone.now() - timedelta(hours=23, minutes=59)
    IdempotencyKey.objects.update(created_at=almost)
    assert keyed(client).json() == first
    assert idempotency.prune() == 0
    IdempotencyKey.objects.update(created_at=almost - timedelta(minutes=2))
    # Pruned or not yet.
    second = keyed(client, ONE | {"seconds": 5})
    assert (second.status_code, REPLAYED in second) == (201, False)
    assert IdempotencyKey.objects.count() == 1
    assert keyed(client, ONE | {"seconds": 5}).json() == second.json()
    IdempotencyKey.objects.update(created_at=almost - timedelta(minutes=2))
    assert idempotency.prune() == 1


@db
def test_answer_that_holds_a_secret_is_not_kept_and_the_key_refused(client, user):
    for address, headers in (("/signing-secret", {}), ("/api-key", bearer(user))):
        assert fields_of(keyed(client, {}, address, **headers)) == ["Idempotency-Key"]
    assert SigningSecret.objects.count() == 0


@db
@each("key", ["", " ", "a b", "k" * 256, "é", "a\tb", "\x7f"])
def test_bad_key_is_refused_by_name(client, key):
    assert fields_of(keyed(client, key=key)) == ["Idempotency-Key"]
    assert fields_of(keyed(client, {"timers": [ONE]}, "/timer/batch", key=key)) == ["Idempotency-Key"]
    assert not any(stored())


@db
@each("key", ["k", "k" * 255, "';DROP/**/TABLE--", "%s", "!~", "00000000-0000-0000-0000-000000000000"])
def test_key_is_any_visible_ascii(client, key):
    assert keyed(client, key=key).status_code == 201
    assert keyed(client, key=key)[REPLAYED] == "true"


@db
def test_key_does_nothing_where_nothing_is_created(client):
    timer = create(client)
    for method, path, body in (
        ("GET", f"/timer/{timer['task_id']}", None),
        ("PATCH", f"/timer/{timer['task_id']}", {"name": "n"}),
        ("POST", f"/timer/{timer['task_id']}/pause", None),
        ("DELETE", f"/timer/{timer['task_id']}", None),
    ):
        assert send(client, method, path, body, **{KEY: "k-1"}).status_code == 200
    assert not IdempotencyKey.objects.exists()


@db
def test_keyed_creation_takes_two_statements(client, django_assert_num_queries):
    keyed(client, key="warm")
    # The database's time, which comes with an API key where there is one.
    with django_assert_num_queries(2):
        keyed(client)


# Several at once


def at_once(*actions):
    """Do things in threads of their own, each with its own connection."""
    threads = [threading.Thread(target=_closing, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    return threads


def _closing(action):
    try:
        action()
    finally:
        connection.close()


def waits_for_lock():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return cursor.fetchone()[0] > 0


@pytest.mark.django_db(transaction=True)
def test_second_request_while_the_first_is_stored_is_a_conflict(client, monkeypatch):
    ids = [new_id()]
    monkeypatch.setattr(creating, "new_id", lambda: ids.pop() if ids else new_id())
    answers = []
    blocker = connection.copy()
    with blocker.cursor() as cursor:
        # The first waits for whether this row stays.
        cursor.execute("BEGIN")
        cursor.execute(
            "INSERT INTO django_celery_beat_periodictask (name, task, args, kwargs, headers, description, one_off,"
            " enabled, total_run_count, date_changed) VALUES (%s, '', '[]', '{}', '{}', '', true, false, 0, now())",
            [f"timer {ids[0]}"],
        )
        try:
            (thread,) = at_once(lambda: answers.append(keyed(Client())))
            wait_until(waits_for_lock)
            for body in (ONE, ONE | {"seconds": 5}, {"seconds": "x"}):
                answer = keyed(client, body)
                assert answer.status_code == 409, answer.content
                assert "Try again" in answer.json()["detail"]
            # Another key is not held up.
            assert keyed(client, key="other").status_code == 201
        finally:
            cursor.execute("ROLLBACK")
            thread.join(10)
            blocker.close()
    assert answers[0].status_code == 201
    second = keyed(client)
    assert (second.json(), second[REPLAYED]) == (answers[0].json(), "true")
    assert Timer.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_second_request_while_a_transaction_is_open_is_a_conflict(client, monkeypatch):
    path = f"/timer/{create(client)['task_id']}/run"
    run_now = services.run_now
    working, go_on = threading.Event(), threading.Event()

    def slow(timer_id):
        working.set()
        assert go_on.wait(10)
        return run_now(timer_id)

    monkeypatch.setattr(services, "run_now", slow)
    answers = []
    (thread,) = at_once(lambda: answers.append(keyed(Client(), None, path)))
    assert working.wait(10)
    assert keyed(client, None, path).status_code == 409
    assert keyed(client, ONE).status_code == 409
    assert keyed(client, key="other").status_code == 201
    go_on.set()
    thread.join(10)
    assert answers[0].status_code == 201
    assert keyed(client, None, path).json() == answers[0].json()
    assert keyed(client, ONE).status_code == 422


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("same", [True, False])
def test_unique_constraint_decides_where_the_lock_came_after_the_look(client, monkeypatch, same, expired):
    if expired:
        keyed(client, ONE | {"seconds": 7})
        IdempotencyKey.objects.update(created_at=timezone.now() - timedelta(hours=25))
    before = stored()
    regular = creating._INSERT_PLAIN_ONCE
    # This one's view of the table is taken before it gets its lock.
    late = idempotency.ONCE.replace(
        "pg_try_advisory_xact_lock(hashtextextended(%(lock)s, 0))", "pg_advisory_xact_lock(4711) IS NOT NULL", 1
    )
    assert late != idempotency.ONCE
    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "ONCE", late)
        patched.setattr(idempotency, "TYPES", {k: v for k, v in idempotency.TYPES.items() if k != "lock"})
        gated = creating._insert("gated", full=False, once=True)
    monkeypatch.setattr(creating, "_INSERT_PLAIN_ONCE", gated)
    answers = []
    blocker = connection.copy()
    with blocker.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(4711)")
        try:
            (thread,) = at_once(lambda: answers.append(keyed(Client())))
            wait_until(waits_for_lock)
            monkeypatch.setattr(creating, "_INSERT_PLAIN_ONCE", regular)
            first = keyed(client, ONE if same else ONE | {"seconds": 5})
        finally:
            cursor.execute("SELECT pg_advisory_unlock(4711)")
            thread.join(10)
            blocker.close()
    (second,) = answers
    assert (first.status_code, REPLAYED in first) == (201, False)
    if same:
        assert (second.status_code, second.content, second[REPLAYED]) == (201, first.content, "true")
    else:
        assert second.status_code == 422
    assert [after - count for count, after in zip(before, stored(), strict=True)][:2] == [1, 1]
    assert (Delivery.objects.count(), IdempotencyKey.objects.count()) == (1 + expired, 1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("same", [True, False])
def test_unique_constraint_decides_in_a_transaction(client, monkeypatch, same):
    paths = [f"/timer/{create(client)['task_id']}/run" for _ in range(2)]
    recall = idempotency.recall
    first = []

    def early(once):
        """Look, and let another request with the key come and go before acting on what was seen."""
        known = recall(once)
        if not first:
            monkeypatch.setattr(idempotency, "recall", recall)
            (thread,) = at_once(lambda: first.append(keyed(Client(), None, paths[0 if same else 1])))
            thread.join(10)
        return known

    # The lock would show it: it is left out, as where it is got after the statement's view of the table was taken.
    without = idempotency._RECALL.sql.replace("pg_try_advisory_xact_lock(hashtextextended(%(lock)s, 0))", "true")
    monkeypatch.setattr(
        idempotency, "_RECALL", Prepared("look_without_lock", without, lock="text", **idempotency._KEY_TYPES)
    )
    monkeypatch.setattr(idempotency, "recall", early)
    second = keyed(client, None, paths[0])
    assert first[0].status_code == 201
    if same:
        assert (second.status_code, second.json(), second[REPLAYED]) == (201, first[0].json(), "true")
    else:
        assert second.status_code == 422
    assert (Delivery.objects.count(), IdempotencyKey.objects.count()) == (3, 1)


@pytest.mark.django_db(transaction=True)
def test_many_at_once_make_one(client):
    answers = []
    barrier = threading.Barrier(8)

    def one():
        barrier.wait(10)
        answers.append(keyed(Client()))

    for thread in at_once(*[one] * 8):
        thread.join(20)
    assert {answer.status_code for answer in answers} <= {201, 409}
    made = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.json()["task_id"] for answer in made}) == 1
    assert len([answer for answer in made if REPLAYED not in answer]) == 1
    assert Timer.objects.count() == 1
