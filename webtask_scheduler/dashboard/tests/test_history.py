"""What was done to a timer, as its page and the list of its history say it."""

import pytest
from django.db import connection, transaction
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.access import actor, audit
from webtask_scheduler.access.models import ApiKey, AuditEntry
from webtask_scheduler.dashboard import history
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Timer, new_id
from webtask_scheduler.scheduler.tests.support.api import GIVEN, URL, bearer, create, path, post, send
from webtask_scheduler.scheduler.tests.support.doors import act, saved

pytestmark = pytest.mark.django_db
FAR = "2030-01-01T00:00:00Z"


def listed(client, timer, query=""):
    return client.get(f"/timers/{timer['task_id']}/history{query}").context["history"]


def newest(client, timer):
    """Return the latest deed that the page of a timer shows, and its changes by their names."""
    deed = client.get(f"/timers/{timer['task_id']}").context["history"].deeds[0]
    return deed, {name: (before, after) for name, before, after in deed.changes}


def test_each_deed_says_by_whom_and_through_which_door(client, closed, user, root):
    key = bearer(user)
    timer = post(client, {"web_url": URL, "due_at": FAR}, **key).json()
    send(client, "PATCH", path(timer), {"name": "new", "due_at": "2031-01-01T00:00:00Z"}, **key)
    send(client, "PATCH", path(timer), {"due_at": FAR}, **key)
    client.force_login(user)
    client.post(f"/timers/{timer['task_id']}/pause")
    task = PeriodicTask.objects.get(timer=timer["task_id"])
    client.force_login(root)
    act(client, "enable_tasks", task)
    task.refresh_from_db()
    saved(task, enabled=False)
    with actor.of(actor.Actor(through=actor.COMMAND, name="ann")):
        services.cancel(timer["task_id"])
    client.force_login(user)
    said = [(one.word, one.name, one.door, one.key) for one in listed(client, timer).deeds]
    assert said == [
        ("Cancelled", "ann", "Command", ""),
        ("Paused", "", "Edit of its PeriodicTask", ""),
        ("Resumed", "root@example.com", "Admin", ""),
        ("Paused", "me@example.com", "Dashboard", ""),
        ("Moved", "me@example.com", "API", "of me@example.com"),
        ("Edited", "me@example.com", "API", "of me@example.com"),
        ("Made", "me@example.com", "API", "of me@example.com"),
    ]
    # A key that is gone is named by its id, and the list goes on.
    (pk,) = ApiKey.objects.values_list("pk", flat=True)
    ApiKey.objects.all().delete()
    assert listed(client, timer).deeds[-1].key == str(pk)
    task.delete()
    assert "Made" in client.get(f"/timers/{timer['task_id']}/history").content.decode()


def test_edit_says_what_was_and_what_is_and_no_secret(client):
    timer = create(client, **GIVEN, due_at=FAR)
    change = {
        "web_url": "https://ann:pa55word@b.example/hook?token=n3wsecret",
        "headers": {"X-Shop": "t0psecret", "authorization": None},
        "body": {"password": "hunter2"},
        "metadata": {"a": "hidden"},
        "due_at": "2031-01-01T00:00:00Z",
        "name": None,
        "labels": {"team": "x" * 63},
    }
    assert send(client, "PATCH", path(timer), change).status_code == 200
    deed, changes = newest(client, timer)
    assert (deed.word, len(changes), deed.more > 0) == ("Edited", history.CHANGES, True)
    deed = listed(client, timer).deeds[0]
    changes = {name: (before, after) for name, before, after in deed.changes}
    assert changes["due_at"] == (FAR, "2031-01-01T00:00:00Z")
    assert changes["name"] == ("order 17", "-")
    assert changes["web_url"][1] == "https://b.example/hook?…"
    assert [changes[name] for name in ("body", "metadata")] == [("", "")] * 2
    # Which of them are encrypted is no news.
    assert "sealed" not in changes
    assert deed.more == 0
    for more in ("", "/history"):
        page = (
            client.get(f"/timers/{timer['task_id']}{more}")
            .content.decode()
            .split("History</h2>" if not more else "</h1>")[1]
            .split("</dl>")[0]
        )
        for secret in ("pa55word", "n3wsecret", "t0psecret", "hunter2", "hidden"):
            assert secret not in page, (more, secret)


def test_history_is_the_owners_and_staffs(client, closed, user, root, django_user_model):
    timer = post(client, {"web_url": URL, "seconds": 600}, **bearer(user)).json()
    client.force_login(root)
    client.post(f"/timers/{timer['task_id']}/pause")
    # Of another owner, under the id of this timer: as it cannot be, nobody but staff is shown it.
    AuditEntry.objects.create(action="timer.run", kind="timer", object_id=timer["task_id"], owner_id=root.pk)
    assert [one.word for one in listed(client, timer).deeds] == ["Run once more", "Paused", "Made"]
    client.force_login(user)
    assert [(one.word, one.name) for one in listed(client, timer).deeds] == [
        ("Paused", "root@example.com"),
        ("Made", "me@example.com"),
    ]
    client.force_login(django_user_model.objects.create_user("other@example.com", "x"))
    for more in ("", "?before=5"):
        assert client.get(f"/timers/{timer['task_id']}/history{more}").status_code == 404
    client.logout()
    assert client.get(f"/timers/{timer['task_id']}/history")["Location"].startswith("/login")


def test_long_history_goes_on_from_page_to_page(client, django_assert_max_num_queries):
    timer = create(client)
    with transaction.atomic():
        for number in range(2 * history.PAGE - 10):
            audit.record("timer.paused" if number % 2 else "timer.resumed", kind="timer", of=timer["task_id"])
    audit_ids = list(AuditEntry.objects.order_by("-pk").values_list("pk", flat=True))
    shown = client.get(f"/timers/{timer['task_id']}").context["history"]
    assert (len(shown.deeds), shown.older) == (history.LATEST, audit_ids[history.LATEST - 1])
    with django_assert_max_num_queries(8):
        first = listed(client, timer)
    second = listed(client, timer, f"?before={first.older}")
    assert (len(first.deeds), len(second.deeds), second.older) == (history.PAGE, history.PAGE - 9, 0)
    assert first.deeds[-1].at > second.deeds[0].at
    # Its beginning, by its own row, ends the list, and only once.
    assert [one.word for one in first.deeds + second.deeds].count("Made") == 1
    assert listed(client, timer, f"?before={audit_ids[-1]}").deeds[0].word == "Made"
    for bad in ("x", "-1", "9" * 40, "1\0"):
        assert client.get(f"/timers/{timer['task_id']}/history", {"before": bad}).status_code == 200


def test_callback_and_code_are_named(client, make_timer):
    by_code = make_timer()
    callback = make_timer()
    Timer.objects.filter(pk=callback.pk).update(outcome_of=new_id())
    for timer, door in ((by_code, "Code or the service itself"), (callback, "Callback of another timer")):
        (made,) = listed(client, {"task_id": timer.pk}).deeds
        assert (made.word, made.door) == ("Made", door)


def test_it_is_read_along_its_index(client, make_timer):
    timer = make_timer()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO access_auditentry (action, kind, object_id, owner_id, name, key, address, through, request_id)"
            " SELECT 'timer.paused', 'timer', gen_random_uuid(), NULL, '', '', '', 'api', ''"
            " FROM generate_series(1, 20000)"
        )
        cursor.execute("ANALYZE access_auditentry")
        entries = AuditEntry.objects.filter(kind="timer", object_id=str(timer.pk)).order_by("-pk")[: history.LATEST + 1]
        plan = entries.explain()
    assert "audit_object_idx" in plan
    assert "Sort" not in plan
