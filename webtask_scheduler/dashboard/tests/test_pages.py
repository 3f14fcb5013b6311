"""The pages, asked as a browser asks them."""

import csv
import io
import json
import uuid

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.dashboard import exporting
from webtask_scheduler.scheduler.models import FINAL, Delivery, State, Timer
from webtask_scheduler.scheduler.tests.support.api import call_all
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

PAGES = ("/", "/timers", "/timers/new", "/demo/receiver")


def page_of(timer, more=""):
    return f"/timers/{timer.pk}{more}"


def get(client, path, **headers):
    return client.get(path, headers={"accept": "text/html", **headers})


def text_of(answer):
    return answer.content.decode()


@pytest.fixture
def people(db):
    """An owner, another one, staff who may look, and a superuser."""
    make = get_user_model().objects
    return {
        "owner": make.create_user("owner@example.com", "secret"),
        "other": make.create_user("other@example.com", "secret"),
        "staff": make.create_user("staff@example.com", "secret", is_staff=True),
        "root": make.create_superuser("root@example.com", "secret"),
    }


# Who sees what.


@each("path", PAGES)
def test_open_service_shows_its_pages_to_everybody(client, path):
    answer = get(client, path)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.parametrize("path", ["/", "/timers", "/timers/new", "/timers/01a208fa-e8fb-7670-94ef-a8fa0c17a138"])
def test_service_with_keys_asks_for_a_log_in(client, closed, path):
    answer = get(client, path)
    assert (answer.status_code, answer["Location"]) == (302, f"/login?next={path.replace('/', '%2F')}")
    assert client.get(f"{path}?live=1").status_code == 401


def test_service_with_keys_takes_no_form_without_a_log_in(client, closed, make_timer):
    timer = make_timer()
    for path in ("/timers/new", "/timers/preview", page_of(timer, "/cancel")):
        assert client.post(path, {"web_url": "http://a.example/", "seconds": "5"})["Location"] == "/login?next=%2F"
    assert Timer.objects.count() == 1
    assert Delivery.objects.get().state == State.SCHEDULED


def test_timer_of_another_owner_is_not_there(client, closed, people, make_timer):
    mine = make_timer(name="mine", owner_id=people["owner"].pk)
    theirs = make_timer(name="theirs", owner_id=people["other"].pk)
    client.force_login(people["owner"])
    assert get(client, page_of(mine)).status_code == 200
    for path in (page_of(theirs), page_of(theirs, "?live=1"), f"/timers/{uuid.uuid4()}", "/timers/nonsense"):
        assert get(client, path).status_code == 404, path
    for action in ("run", "pause", "resume", "replay", "cancel"):
        assert client.post(page_of(theirs, f"/{action}")).status_code == 404
    listed = text_of(get(client, "/timers"))
    assert "mine" in listed
    assert "theirs" not in listed
    # Nor by asking for it by its id.
    for path in (f"/timers?live=1&ids={theirs.pk}", f"/timers?id={str(theirs.pk)[:18]}", "/"):
        assert "theirs" not in text_of(get(client, path)), path
    assert get(client, f"/timers?q={theirs.pk}")["Location"].startswith("/timers?id=")
    assert Delivery.objects.get(timer=theirs).state == State.SCHEDULED


def test_open_service_shows_the_timers_of_nobody(client, people, make_timer):
    timer = make_timer(owner_id=people["owner"].pk)
    assert get(client, page_of(timer)).status_code == 404
    client.force_login(people["owner"])
    assert get(client, page_of(timer)).status_code == 200


def test_superuser_sees_all_or_only_their_own(client, closed, people, make_timer):
    timer = make_timer(name="of the owner", owner_id=people["owner"].pk)
    client.force_login(people["root"])
    listed = text_of(get(client, "/timers"))
    assert "of the owner" in listed
    assert "owner@example.com" in listed
    assert "of the owner" not in text_of(get(client, "/timers?mine=1"))
    assert client.post(page_of(timer, "/pause"))["Location"] == page_of(timer)
    assert Delivery.objects.get().state == State.PAUSED


def test_staff_see_and_change_what_the_admin_lets_them(client, closed, people, make_timer, permit):
    timer = make_timer(owner_id=people["owner"].pk)
    client.force_login(people["staff"])
    assert get(client, page_of(timer)).status_code == 404
    permit(people["staff"], "scheduler.view_timer")
    assert "/cancel" not in text_of(get(client, page_of(timer)))
    assert client.post(page_of(timer, "/cancel")).status_code == 403
    permit(people["staff"], "django_celery_beat.change_periodictask")
    assert "/cancel" in text_of(get(client, page_of(timer)))
    assert client.post(page_of(timer, "/cancel")).status_code == 302
    assert Delivery.objects.get().state == State.CANCELLED


@pytest.fixture
def permit():
    from django.contrib.auth.models import Permission

    def give(user, name):
        app, _, codename = name.partition(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))

    return give


def test_only_operators_see_the_state_of_the_service(client, closed, people):
    client.force_login(people["owner"])
    assert 'data-key="tiles"' not in text_of(get(client, "/"))
    client.force_login(people["root"])
    assert 'data-key="tiles"' in text_of(get(client, "/"))


# Forms


def test_every_form_needs_its_token(make_timer):
    client, timer = Client(enforce_csrf_checks=True), make_timer()
    fields = {"web_url": "http://a.example/", "when": "in", "seconds": "5"}
    for path in ("/timers/new", "/timers/preview", page_of(timer, "/cancel"), "/login", "/logout"):
        assert client.post(path, fields, headers={"accept": "text/html"}).status_code == 403, path
    get(client, "/timers/new")
    token = client.cookies["csrftoken"].value
    assert client.post("/timers/new", fields | {"csrfmiddlewaretoken": token}).status_code == 302


def test_reading_changes_nothing(client, make_timer):
    timer = make_timer()
    for action in ("run", "pause", "cancel", "replay"):
        assert get(client, page_of(timer, f"/{action}")).status_code == 405
    assert Delivery.objects.get().state == State.SCHEDULED


def test_call_of_this_service_sends_no_form(client, make_timer):
    timer = make_timer()
    for path in ("/timers/new", page_of(timer, "/run")):
        answer = client.post(path, {"web_url": "http://a.example/", "seconds": "0"}, headers={"webtask-timer-id": "x"})
        assert answer.status_code == 403
    assert Delivery.objects.count() == 1


def test_form_makes_the_timer_that_the_api_would(client):
    fields = {
        "web_url": "http://a.example/hook",
        "name": "report",
        "when": "cron",
        "cron": "0 9 * * MON-FRI",
        "timezone": "Europe/Berlin",
        "method": "PUT",
        "headers": "X-Shop: north\nX-Other: a:b",
        "body": '{"a": 1}',
        "content_type": "application/json",
        "timeout_seconds": "2.5",
        "max_attempts": "3",
        "first_wait": "7",
        "on_missed": "skip",
        "labels": "team=billing\nkind=",
        "seconds": "10",
    }
    answer = client.post("/timers/new", fields)
    timer = Timer.objects.get()
    assert answer["Location"] == page_of(timer)
    shown = client.get(f"/timer/{timer.pk}").json()
    assert {name: shown[name] for name in ("name", "cron", "timezone", "method", "body", "labels")} == {
        "name": "report",
        "cron": "0 9 * * MON-FRI",
        "timezone": "Europe/Berlin",
        "method": "PUT",
        "body": '{"a": 1}',
        "labels": {"team": "billing", "kind": ""},
    }
    assert shown["retry"] == {"max_attempts": 3, "min_seconds": 7}
    assert list(shown["headers"]) == ["X-Shop", "X-Other"]
    assert (shown["timeout_seconds"], shown["on_missed"]) == (2.5, "skip")


@each(
    ("fields", "due_at"),
    [
        ({"at": "2030-07-01T09:00", "at_zone": "Europe/Berlin"}, "2030-07-01T07:00:00Z"),
        ({"at": "2030-01-05T09:00:30", "at_zone": ""}, "2030-01-05T09:00:30Z"),
    ],
)
def test_local_time_is_read_in_its_zone(client, fields, due_at):
    client.post("/timers/new", {"web_url": "http://a.example/", "when": "at", **fields})
    assert client.get(f"/timer/{Timer.objects.get().pk}").json()["due_at"] == due_at


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("web_url", {"web_url": "ftp://a.example"}),
        ("web_url", {"web_url": ""}),
        ("seconds", {"seconds": ""}),
        ("seconds", {"seconds": "-1"}),
        ("minutes", {"minutes": "soon"}),
        ("every", {"when": "every", "every": "x"}),
        ("cron", {"when": "cron", "cron": "61 * * * *"}),
        ("cron", {"when": "cron", "cron": ""}),
        ("timezone", {"when": "cron", "cron": "0 9 * * *", "timezone": "Mars/Olympus"}),
        ("at", {"when": "at", "at": "yesterday"}),
        ("at", {"when": "at", "at": "2030-03-31T02:30", "at_zone": "Europe/Berlin"}),
        ("at", {"when": "at", "at": "2030-03-31T02:30", "at_zone": "Nowhere"}),
        ("headers", {"headers": "Host: a"}),
        ("labels", {"labels": "=x"}),
        ("body", {"body": "{", "content_type": "application/json"}),
        ("body", {"body": "a", "method": "GET"}),
        ("max_attempts", {"max_attempts": "0"}),
        ("first_wait", {"first_wait": "0"}),
        ("timeout_seconds", {"timeout_seconds": "fast"}),
        ("callback_url", {"callback_url": "x"}),
        ("when", {"when": "never"}),
    ],
)
def test_error_is_beside_its_field_and_nothing_is_lost(client, field, fields):
    given = {"web_url": "http://a.example/", "when": "in", "seconds": "5", "name": "kept", **fields}
    answer = client.post("/timers/new", given)
    assert answer.status_code == 400
    assert list(answer.context["form"].errors) == [field]
    assert 'value="kept"' in text_of(answer)
    assert not Timer.objects.exists()


def test_owner_of_a_form_owns_the_timer(client, closed, people):
    client.force_login(people["owner"])
    client.post("/timers/new", {"web_url": "http://a.example/", "when": "in", "seconds": "5"})
    timer = Timer.objects.get()
    assert timer.owner == people["owner"]
    assert timer.made_by["through"] == "dashboard"


def test_preview_says_when_and_how(client):
    fields = {"web_url": "http://a.example/", "when": "cron", "cron": "0 9 * * *", "timezone": "Europe/Berlin"}
    shown = text_of(client.post("/timers/preview", fields))
    assert shown.count("<li>") == 5
    assert "curl -X POST" in shown
    assert "cron" in text_of(client.post("/timers/preview", fields | {"cron": "bad"})).lower()
    # Without the script, in the page.
    assert text_of(client.post("/timers/new", fields | {"preview": "1"})).count("<li>") == 5
    assert not Timer.objects.exists()


# Buttons


def test_timer_is_paused_resumed_run_and_cancelled(client, make_timer):
    timer = make_timer()
    for action, state in (("pause", State.PAUSED), ("resume", State.SCHEDULED)):
        assert f"/{action}" in text_of(get(client, page_of(timer)))
        client.post(page_of(timer, f"/{action}"))
        assert Delivery.objects.get().state == state
    client.post(page_of(timer, "/run"))
    assert Delivery.objects.filter(extra=True).count() == 1
    client.post(page_of(timer, "/cancel"))
    assert not Delivery.objects.open().exists()
    shown = text_of(get(client, page_of(timer)))
    assert "It is cancelled." in shown
    assert "/run" not in shown
    assert "has ended" in text_of(client.post(page_of(timer, "/pause"), follow=True))


def test_failed_timer_is_replayed(client, make_timer, receiver):
    timer = make_timer(receiver.url("/status/500"), delay_seconds=-1, options={"retry": {"max_attempts": 1}})
    call_all(receiver)
    shown = text_of(get(client, page_of(timer)))
    assert "given up after 1 attempt" in shown
    assert 'class="code-bad">500<' in shown
    client.post(page_of(timer, "/replay"))
    assert Delivery.objects.get().state == State.SCHEDULED
    assert client.post(page_of(timer, "/nonsense")).status_code == 404


def test_waiting_retry_is_tried_now(client, make_timer, receiver):
    timer = make_timer(receiver.url("/status/500"), delay_seconds=-1, options={"retry": {"min_seconds": 3600}})
    assert "/try-now" not in text_of(get(client, page_of(timer)))
    call_all(receiver)
    assert "/try-now" in text_of(get(client, page_of(timer)))
    client.post(page_of(timer, "/try-now"))
    assert len(call_all(receiver)) == 1
    Delivery.objects.update(state=State.PAUSED)
    assert "is paused" in text_of(client.post(page_of(timer, "/try-now"), follow=True))


def test_what_a_receiver_answers_is_text(client, make_timer, receiver):
    timer = make_timer(receiver.url("/x"), delay_seconds=-1, name="<script>alert(1)</script>")
    call_all(receiver)
    shown = text_of(get(client, page_of(timer)))
    assert "<script>alert" not in shown
    assert "after its moment" in shown


# The list


def test_list_is_filtered_by_its_address(client, make_timer):
    make_timer("http://a.example/x", name="nightly report", options={"labels": {"team": "billing"}})
    make_timer("http://b.example/y", name="other")
    for query in ("name=NIGHT", "host=a.example", "label=team%3Dbilling", "url_prefix=http%3A%2F%2Fa.example"):
        listed = text_of(get(client, f"/timers?{query}"))
        assert "nightly report" in listed, query
        assert ">other<" not in listed, query
    assert "No timer fits." in text_of(get(client, "/timers?status=held"))
    assert get(client, "/timers?status=nonsense").status_code == 400
    assert get(client, "/timers?due_from=x").status_code == 400
    assert get(client, "/timers?cursor=x").status_code == 400


@each(
    ("query", "where"),
    [
        ("https://a.example/x", "url_prefix=https%3A%2F%2Fa.example%2Fx"),
        ("team=billing", "label=team%3Dbilling"),
        ("nightly report", "name=nightly+report"),
        ("01a208fa-e8fb", "id=01a208fa-e8fb"),
    ],
)
def test_one_box_searches_by_what_is_typed(client, query, where):
    assert client.get("/timers", {"q": query})["Location"] == f"/timers?{where}"


def test_id_or_its_beginning_finds_a_timer(client, make_timer):
    timer = make_timer(name="found")
    assert client.get("/timers", {"q": str(timer.pk)})["Location"] == page_of(timer)
    assert "found" in text_of(get(client, f"/timers?id={str(timer.pk)[:13]}"))
    assert "found" not in text_of(get(client, "/timers?id=00000000-0000"))


def test_pages_follow_each_other(client, make_timer):
    names = [make_timer(name=f"timer {number:02}").name for number in range(35)]
    seen, path = [], "/timers"
    while path:
        answer = get(client, path)
        seen += [row["name"] for row in answer.context["rows"]]
        path = answer.context["next"]
    assert seen == names[::-1]


def test_news_are_the_rows_on_the_page_and_a_count(client, make_timer):
    first = make_timer(name="first")
    path = f"/timers?live=1&ids={first.pk}"
    answer = client.get(path)
    assert (answer.status_code, answer["X-New"]) == (200, "0")
    seen = answer["X-Seen"]
    assert client.get(f"{path}&seen={seen}").status_code == 204
    make_timer(name="second")
    answer = client.get(f"{path}&seen={seen}")
    assert (answer.status_code, answer["X-New"]) == (200, "1")
    assert "second" not in text_of(answer)


def test_tabs_say_how_many_fit_as_far_as_was_counted(client, make_timer, monkeypatch):
    from webtask_scheduler.dashboard import rows

    monkeypatch.setattr(rows, "COUNT_MOST", 2)
    monkeypatch.setattr(rows, "TALLY_MOST", 0)
    for number in range(3):
        make_timer(f"http://{'ab'[number % 2]}.example/")
    Delivery.objects.filter(timer=make_timer("http://a.example/")).update(state=State.PAUSED)

    def counts(query):
        return {tab.name: tab.number for tab in get(client, f"/timers{query}").context["tabs"] if tab.number != "0"}

    assert counts("") == {"All": "", "Waiting": "2+", "Paused": "1"}
    assert counts("?host=b.example") == {"All": "", "Waiting": "1"}
    assert str(get(client, "/timers?host=a.example&status=paused").context["fit"]) == "1"


def test_tabs_count_an_owner_s_few_timers_beside_many_of_others(client, make_timer, user, monkeypatch, settings):
    from webtask_scheduler.dashboard import rows

    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    soon = {state: make_timer("http://a.example/", owner_id=user.pk) for state in (State.SCHEDULED, *rows.PAST)}
    for state, timer in soon.items():
        finished_at = timezone.now() if state in FINAL else None
        Delivery.objects.filter(timer=timer).update(state=state, finished_at=finished_at)
    for state in soon:
        for _ in range(3):
            other = Delivery.objects.filter(timer=make_timer("http://a.example/"))
            other.update(state=state, finished_at=timezone.now() if state in FINAL else None)
    make_timer("http://b.example/", owner_id=user.pk)

    def counts(query):
        return {tab.name: tab.number for tab in get(client, f"/timers{query}").context["tabs"] if tab.number != "0"}

    of_each = dict.fromkeys(("Paused", "Succeeded", "Failed", "Missed", "Cancelled"), "1")
    monkeypatch.setattr(rows, "COUNT_SCANNED", 1)
    assert counts("") == {"All": "", "Waiting": "2"} | of_each
    assert counts("?host=a.example&status=failed") == {"All": "", "Waiting": "1"} | of_each
    # Of an owner of many, what has ended is found along its index.
    monkeypatch.setattr(rows, "TALLY_MOST", 2)
    assert counts("") == {"All": "", "Waiting": "1+"} | of_each


def test_status_is_in_the_order_that_is_asked_for(client, make_timer):
    for name, delay in (("first", 300), ("second", 100), ("third", 200)):
        make_timer(name=name, delay_seconds=delay)

    def names(query):
        return [row["name"] for row in get(client, f"/timers{query}").context["rows"]]

    assert names("") == ["third", "second", "first"]
    assert names("?status=scheduled") == ["second", "third", "first"]
    assert names("?status=scheduled&sort=newest") == ["third", "second", "first"]


def tick(client, action, *timers, **more):
    fields = {"action": action, "id": [str(timer.pk) for timer in timers], "here": "/timers?name=x", **more}
    answer = client.post("/timers/act", fields)
    assert answer.status_code == 302, answer.content
    said = [str(message) for message in get(client, answer["Location"]).context["messages"]]
    return answer["Location"], said


def states():
    return sorted(Delivery.objects.filter(extra=False).values_list("state", flat=True))


def test_ticked_timers_are_changed_and_counted(client, make_timer, receiver):
    first, second, other = (make_timer() for _ in range(3))
    assert tick(client, "pause", first, second) == ("/timers?name=x", ["2 timers are paused."])
    assert states() == ["paused", "paused", "scheduled"]
    assert tick(client, "resume", first)[1] == ["1 timer goes on."]
    assert tick(client, "run", first, other)[1] == ["2 timers are called now."]
    assert tick(client, "cancel", first, first)[1] == ["1 timer is cancelled."]
    assert tick(client, "cancel", first, second)[1] == ["1 timer is cancelled.", "1 had ended already."]
    assert tick(client, "pause", first, other)[1] == ["1 timer is paused.", "1 has ended and stays as it is."]
    failed = make_timer(receiver.url("/status/500"), delay_seconds=-1, options={"retry": {"max_attempts": 1}})
    call_all(receiver)
    assert tick(client, "replay", failed, other)[1] == [
        "1 timer is sent again.",
        "1 neither failed nor was missed.",
    ]
    actions = AuditEntry.objects.filter(object_id=str(first.pk)).order_by("pk").values_list("action", flat=True)
    assert list(actions) == ["timer.paused", "timer.resumed", "timer.run", "timer.cancelled"]
    assert AuditEntry.objects.filter(action="timer.replayed", object_id=str(failed.pk)).count() == 1


def test_form_of_ticked_timers_that_means_nothing_does_nothing(client, make_timer):
    timer = make_timer()
    assert tick(client, "cancel")[1] == ["Tick the timers first that it is to be done to."]
    assert tick(client, "cancel", here="https://evil.example/")[0] == "/timers"
    assert tick(client, "cancel", here="/timers/new")[0] == "/timers"
    assert client.post("/timers/act", {"action": "explode", "id": str(timer.pk)}).status_code == 404
    many = [str(uuid.uuid4()) for _ in range(501)]
    assert tick(client, "cancel", timer, id=many)[1][0].endswith("nothing was done.")
    assert tick(client, "cancel", timer, id=["x"])[1] == ["1 is not yours to change."]
    assert states() == ["scheduled"]


def test_timers_of_another_owner_are_not_ticked(client, closed, people, make_timer, permit):
    mine = make_timer(owner_id=people["owner"].pk)
    theirs = make_timer(owner_id=people["other"].pk)
    client.force_login(people["owner"])
    assert tick(client, "cancel", mine, theirs)[1] == ["1 timer is cancelled.", "1 is not yours to change."]
    client.force_login(people["staff"])
    permit(people["staff"], "scheduler.view_timer")
    assert "your own timers only" in text_of(get(client, "/timers"))
    assert tick(client, "cancel", theirs)[1] == ["1 is not yours to change."]
    assert Delivery.objects.get(timer=theirs).state == State.SCHEDULED
    client.force_login(people["root"])
    assert tick(client, "cancel", theirs)[1] == ["1 timer is cancelled."]


def exported(client, query):
    answer = client.get(f"/timers/export.{query}")
    assert answer.status_code == 200
    assert answer["Content-Disposition"].startswith("attachment")
    return answer.content.decode()


def test_filter_is_exported_and_no_cell_is_a_formula(client, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(exporting, "ROWS", 2)
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", 'plain, "quoted"']
    for name in names:
        make_timer("http://a.example/x", name=name, options={"labels": {"a": "=1"}})
    make_timer(receiver.url("/status/500"), delay_seconds=-1, name="other")
    call_all(receiver)
    table = list(csv.DictReader(io.StringIO(exported(client, "csv?host=a.example"))))
    assert [row["name"] for row in table] == [names[-1], *("'" + name for name in names[-2::-1])]
    assert {row["labels"] for row in table} == {"a==1"}
    (last,) = csv.DictReader(io.StringIO(exported(client, "csv?name=other")))
    assert (last["status"], last["attempts"], last["status_code"], last["error"]) == ("scheduled", "1", "500", "status")
    assert len(exported(client, "csv?name=nothing").splitlines()) == 1
    lines = [json.loads(line) for line in exported(client, "jsonl").splitlines()]
    assert [line["name"] for line in lines] == ["other", *names[::-1]]
    assert lines[0] == client.get(f"/timer/{lines[0]['task_id']}").json() | {
        "time_left_in_seconds": lines[0]["time_left_in_seconds"]
    }
    monkeypatch.setattr(exporting, "EXPORT_MOST", 3)
    assert len(exported(client, "jsonl").splitlines()) == 3
    assert client.get("/timers/export.csv?status=nonsense").status_code == 400


@pytest.mark.parametrize(("name", "bound"), [("EXPORT_BYTES", 1000), ("EXPORT_SECONDS", 0.0)])
def test_export_beyond_its_bounds_says_what_to_do_and_sends_nothing(client, make_timer, monkeypatch, name, bound):
    for number in range(5):
        make_timer(name=f"timer {number}")
    monkeypatch.setattr(exporting, name, bound)
    for ending in ("csv", "jsonl"):
        answer = client.get(f"/timers/export.{ending}")
        assert answer.status_code == 400
        assert "Narrow the filter" in text_of(answer)
        assert "timer 4" not in text_of(answer)
    monkeypatch.undo()
    assert len(exported(client, "jsonl").splitlines()) == 5


def test_one_export_is_written_at_a_time(client, make_timer):
    make_timer()
    # As another thread of the process does while it writes one.
    with exporting._under_way:
        answer = client.get("/timers/export.csv")
        assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert len(exported(client, "csv").splitlines()) == 2


def test_export_holds_no_timer_of_another_owner_and_no_secret(client, closed, people, make_timer):
    make_timer("http://u:hidden@a.example/", owner_id=people["owner"].pk, options={"headers": {"X-Key": "hidden"}})
    make_timer(owner_id=people["other"].pk, name="theirs")
    assert client.get("/timers/export.csv").status_code == 302
    client.force_login(people["owner"])
    for query in ("csv", "jsonl"):
        text = exported(client, query)
        assert "a.example" in text
        assert "hidden" not in text
        assert "theirs" not in text


@pytest.mark.parametrize("path", ["/timers", "/", "/timers?live=1&ids={ids}", "/timers?status=scheduled"])
def test_number_of_statements_does_not_grow(client, make_timer, django_assert_max_num_queries, path):
    timers = [make_timer(name=f"timer {number}", options={"labels": {"n": "1"}}) for number in range(20)]
    # The list counts for each of its nine tabs, a status that has two for both.
    with django_assert_max_num_queries(22 if path.startswith("/timers") and "live" not in path else 14) as counted:
        get(client, path.format(ids=",".join(str(timer.pk) for timer in timers)))
    assert not [
        one
        for one in counted.captured_queries
        if "count(*)" in one["sql"].lower() and "limit" not in one["sql"].lower()
    ]


def test_statements_of_one_timer(client, make_timer, receiver, django_assert_max_num_queries):
    timer = make_timer(receiver.url("/x"), delay_seconds=-1)
    for _ in range(3):
        call_all(receiver)
    with django_assert_max_num_queries(8):
        get(client, page_of(timer))


# The rest


def test_demo_receiver_takes_a_call_and_shows_it(client, make_timer):
    assert client.post("/demo/receiver", b'{"a": 1}', content_type="application/json").json() == {"received": True}
    shown = text_of(get(client, "/demo/receiver"))
    assert "{&quot;a&quot;: 1}" in shown
    assert 'value="http://testserver/demo/receiver"' in text_of(get(client, "/"))


def test_demo_receiver_is_not_there_where_timers_have_owners(client, closed, people):
    client.force_login(people["root"])
    assert client.post("/demo/receiver", {}).status_code == 404
    assert "demo/receiver" not in text_of(get(client, "/"))


def test_demo_receiver_is_not_there_in_production(client, settings):
    settings.WEBTASK_DEMO_RECEIVER = ""
    assert client.post("/demo/receiver", {}).status_code == 404
    assert "demo/receiver" not in text_of(get(client, "/"))


def test_log_in_and_out(client, closed, people):
    answer = client.post("/login", {"username": "owner@example.com", "password": "secret", "next": "/timers"})
    assert answer["Location"] == "/timers"
    assert get(client, "/timers").status_code == 200
    assert client.post("/logout")["Location"] == "/"
    assert get(client, "/timers").status_code == 302


def test_log_in_does_not_lead_elsewhere(client, closed, people):
    fields = {"username": "owner@example.com", "password": "secret", "next": "https://evil.example/"}
    assert client.post("/login", fields)["Location"] == "/"


def test_log_in_is_throttled(client, closed, people):
    fields = {"username": "owner@example.com", "password": "wrong"}
    answers = [client.post("/login", fields) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert int(answers[-1]["Retry-After"]) > 0


def test_log_in_wants_the_second_factor(client, closed, people):
    from django_otp.plugins.otp_static.models import StaticDevice

    device = StaticDevice.objects.create(user=people["owner"], name="codes")
    device.token_set.create(token="abcdefgh")
    fields = {"username": "owner@example.com", "password": "secret"}
    assert client.post("/login", fields).status_code == 200
    assert get(client, "/timers").status_code == 302
    assert client.post("/login", fields | {"otp_token": "abcdefgh"}).status_code == 302
    assert get(client, "/timers").status_code == 200


def test_session_without_its_second_factor_sees_nothing(client, closed, people, settings):
    client.force_login(people["owner"])
    settings.ADMIN_SECOND_FACTOR = "required"
    assert get(client, "/timers").status_code == 302


@each("language", ["ar", "de", "es", "fr", "pt-br"])
def test_page_is_in_the_language_of_the_request(client, language):
    shown = text_of(get(client, "/timers", **{"accept-language": language}))
    assert f'<html lang="{language}"' in shown
    assert ('dir="rtl"' in shown) == (language == "ar")


@each("path", [*PAGES, "/login"])
def test_page_has_no_script_and_no_style_inside(client, path):
    import re

    shown = text_of(get(client, path))
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon[a-z]+=|javascript:|<style|\bstyle=", shown)
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//', shown)


def test_preview_draws_when_it_is_tried_again(client, make_timer):
    fields = {"web_url": "http://a.example/", "when": "in", "seconds": "10"}
    for more, said in (
        ({}, "called again after 5 s · 20 s · 1.1 min · 3.3 min, each wait up to 20 % longer"),
        ({"max_attempts": "1"}, "it is not called again"),
        (
            {"max_attempts": "9", "first_wait": "60"},
            "1.0 min · 4.0 min · 13.0 min · 40.0 min · 1.7 h · 2.7 h · … · 4.7 h",
        ),
    ):
        assert said in text_of(client.post("/timers/preview", fields | more)), more
    assert "called again" not in text_of(client.post("/timers/preview", fields | {"max_attempts": "x"}))
    # Of a timer of the API, with what the form does not show of it.
    timer = make_timer(options={"retry": {"backoff": "list", "delays_seconds": [7, 30], "max_attempts": 3}})
    assert "after 7 s · 37 s" in text_of(client.post(page_of(timer, "/edit"), fields | {"preview": "1", "shown": "{}"}))


def test_choices_of_a_browser_are_kept_by_it(client):
    answer = text_of(get(client, "/"))
    assert "data-rate" not in answer
    for value, shown in (("30", True), ("0", True), ("1", False), ('"x', False)):
        client.cookies["rate"] = value
        answer = text_of(get(client, "/"))
        assert (f'data-rate="{value}"' in answer) is shown, value
        assert (f'<option value="{value}" selected' in answer) is shown, value
