"""The menu of each row of the list of timers, its tabs and filters, and the form for one timer after another."""

import html
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks.visits import scans_of
from webtask_scheduler.dashboard import queries, rows
from webtask_scheduler.dashboard.timers import ANY_ID
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Attempt, BulkOperation, Delivery, State, Timer
from webtask_scheduler.scheduler.services.caller import Caller

pytestmark = pytest.mark.django_db


def menu_of(client, timer, query=""):
    """Return the menu of a timer's row, as the script makes it of the menu of that kind."""
    text = client.get(f"/timers{query}").content.decode()
    row = text[text.index(f'data-key="{timer.pk}"') :]
    kind, link = re.search(r'<a class="c-menu" data-menu="(\w+)" href="([^"]+)"', row).groups()
    assert link == f"/timers/{timer.pk}"
    menu = re.search(rf'<template id="menu-{kind}">(.*?)</template>', text, re.DOTALL)[1]
    return menu.replace(ANY_ID, str(timer.pk))


def deeds(menu):
    return re.findall(r'formaction="/timers/[0-9a-f-]{36}/([a-z-]+)"', menu)


def become(timer, state, **values):
    now = timezone.now()
    ended = {"finished_at": now} if state in (State.FAILED, State.SUCCEEDED, State.MISSED) else {}
    Delivery.objects.filter(timer=timer).update(state=state, **(ended | values))


def retry(timer, *, seconds):
    """Let a timer have failed once, and be tried again in so many seconds."""
    now = timezone.now()
    due = {"due_at": now - timedelta(hours=1), "next_attempt_at": now + timedelta(seconds=seconds)}
    become(timer, State.SCHEDULED, attempts=1, started_at=now, **due)
    delivery = Delivery.objects.get(timer=timer)
    Attempt.objects.create(delivery=delivery, number=1, meant_for=now, started_at=now, status_code=500, error="status")


@pytest.fixture
def people(db):
    make = get_user_model().objects
    staff = make.create_user("staff@example.com", "secret", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(content_type__app_label="scheduler", codename="view_timer"))
    return {"owner": make.create_user("owner@example.com", "secret"), "staff": staff}


def test_menu_has_what_the_state_allows(client, make_timer):
    waiting, paused, failed, missed, done, again, due = (make_timer() for _ in range(7))
    become(paused, State.PAUSED)
    become(failed, State.FAILED)
    become(missed, State.MISSED)
    become(done, State.SUCCEEDED)
    retry(again, seconds=3600)
    retry(due, seconds=-60)
    assert {timer.pk: deeds(menu_of(client, timer)) for timer in Timer.objects.all()} == {
        waiting.pk: ["run", "pause", "cancel"],
        paused.pk: ["run", "resume", "cancel"],
        failed.pk: ["replay"],
        missed.pk: ["replay"],
        done.pk: [],
        again.pk: ["run", "pause", "try-now", "cancel"],
        due.pk: ["run", "pause", "cancel"],
    }
    for timer, is_open in ((waiting, True), (done, False)):
        menu = menu_of(client, timer)
        assert f'href="/timers/{timer.pk}"' in menu
        assert f'data-text="{timer.pk}"' in menu
        assert f'href="/timers/{timer.pk}#code-curl"' in menu
        assert f'href="/timers/new?copy={timer.pk}"' in menu
        assert (f'href="/timers/{timer.pk}/edit"' in menu) == is_open
        # Where the link leads without the script.
        assert 'id="code-curl"' in client.get(f"/timers/{timer.pk}").content.decode()


def test_menus_ask_the_database_for_nothing(client, make_timer):
    make_timer()
    with CaptureQueriesContext(connection) as one:
        client.get("/timers?live=1")
    for _ in range(10):
        make_timer()
    with CaptureQueriesContext(connection) as many:
        client.get("/timers?live=1")
    assert len(many) == len(one)


def test_buttons_of_the_menu_come_back_to_the_list(client, make_timer):
    timer = make_timer()
    here = "/timers?status=scheduled"
    answer = client.post(f"/timers/{timer.pk}/pause", {"here": here})
    assert answer["Location"] == here
    shown = client.get(here).content.decode()
    assert "It is paused." in shown
    # The message offers the way back.
    assert f'action="/timers/{timer.pk}/resume"' in shown
    for elsewhere in ("https://evil.example/timers", "//evil.example/timers", "/dead", ""):
        answer = client.post(f"/timers/{timer.pk}/resume", {"here": elsewhere})
        assert answer["Location"] == f"/timers/{timer.pk}"


def test_form_of_the_menus_has_the_token(make_timer):
    client, timer = Client(enforce_csrf_checks=True), make_timer()
    form = re.search(r'<form method="post" id="one".*?</form>', client.get("/timers").content.decode(), re.DOTALL)[0]
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)[1]
    assert client.post(f"/timers/{timer.pk}/pause").status_code == 403
    assert client.post(f"/timers/{timer.pk}/pause", {"csrfmiddlewaretoken": token}).status_code == 302


def test_menu_of_whoever_may_only_look_changes_nothing(client, closed, people, make_timer):
    timer, own = make_timer(owner_id=people["owner"].pk), make_timer(owner_id=people["staff"].pk)
    client.force_login(people["staff"])
    menu = menu_of(client, timer)
    assert (deeds(menu), "/edit" in menu, "copy=" in menu) == ([], False, False)
    assert f'href="/timers/{timer.pk}"' in menu
    assert deeds(menu_of(client, own)) == ["run", "pause", "cancel"]


# Tabs


def test_tabs_of_retrying_and_late_are_the_filters_of_the_api(client, make_timer):
    plain, again, late, both = (
        make_timer("http://a.example/", name=name) for name in ("plain", "again", "late", "both")
    )
    retry(again, seconds=600)
    retry(both, seconds=-60)
    past = timezone.now() - timedelta(minutes=1)
    become(late, State.SCHEDULED, due_at=past, next_attempt_at=past)
    page = client.get("/timers?late=true&host=a.example")
    tabs = {tab.name: tab for tab in page.context["tabs"]}
    assert (tabs["Retrying"].number, tabs["Late"].number, tabs["Waiting"].number) == ("2", "2", "4")
    assert [tab.name for tab in tabs.values() if tab.is_on] == ["Late"]
    # One tab takes the place of another; what else narrows the list stays.
    assert tabs["Retrying"].link == "/timers?host=a.example&retrying=true"
    assert tabs["Paused"].link == "/timers?host=a.example&status=paused"
    for query, names in (("retrying=true", {"again", "both"}), ("late=true", {"late", "both"})):
        assert {row["name"] for row in client.get(f"/timers?{query}").context["rows"]} == names
        assert {one["name"] for one in client.get(f"/timer?{query}").json()["timers"]} == names
    assert plain.name not in {row["name"] for row in page.context["rows"]}
    assert client.get("/timers?late=soon").status_code == 400


def test_late_and_retrying_are_done_in_bulk(client, make_timer):
    make_timer()
    retry(make_timer(name="again"), seconds=600)
    body = {"action": "pause", "filter": {"retrying": True}, "dry_run": True}
    assert client.post("/timer/bulk", body, content_type="application/json").status_code == 202
    answer = client.post("/operations/count", {"action": "pause", "retrying": "true"})
    assert "retrying=true" in client.get(answer["Location"]).content.decode()


def test_timers_with_a_callback_are_found_by_the_form_and_done_in_bulk(client, closed, people, make_timer):
    owner = people["owner"]
    url = {"failure_callback_url": "http://a.example/failed"}
    make_timer(name="calls", owner_id=owner.pk, options=url)
    make_timer(name="alone", owner_id=owner.pk)
    make_timer(name="theirs", owner_id=people["staff"].pk, options=url)
    client.force_login(owner)
    for value, name in (("true", "calls"), ("false", "alone")):
        page = client.get(f"/timers?has_callback={value}&status=scheduled")
        assert [row["name"] for row in page.context["rows"]] == [name]
        (chip,) = page.context["chips"]
        assert (chip.name, chip.value, chip.without) == ("has_callback", value, "/timers?status=scheduled")
        text = page.content.decode()
        assert f'<option value="{value}" selected>' in text
        assert f"has_callback={value}" in html.unescape(page.context["curl"])
        assert f'<input type="hidden" name="has_callback" value="{value}">' in text
        assert f"/timers/export.csv?status=scheduled&has_callback={value}" in html.unescape(text)
        assert name in b"".join(client.get(f"/timers/export.csv?has_callback={value}")).decode()
    assert client.get("/timers?has_callback=soon").status_code == 400
    answer = client.post("/operations/count", {"action": "pause", "has_callback": "false"})
    operation = BulkOperation.objects.get()
    assert operation.filter == {"has_callback": False}
    services.step_bulk(operation)
    assert operation.matched == 1
    assert "has_callback=false" in client.get(answer["Location"]).content.decode()


# Hosts and times


def test_hosts_that_are_offered_are_the_callers_own(client, closed, people, make_timer):
    owner, staff = people["owner"], people["staff"]
    for host in ("api.a.example", "api.b.example", "www.a.example"):
        make_timer(f"http://{host}/", owner_id=owner.pk)
    for number in range(queries.OPTION_TIMERS + 1):
        # Newer timers of others at the same host, and a host of theirs alone.
        make_timer("http://api.a.example/", owner_id=staff.pk)
        make_timer(f"http://secret-{number}.example/", owner_id=staff.pk)
    ended = Timer.objects.get(host="api.b.example")
    become(ended, State.SUCCEEDED)
    client.force_login(owner)
    shown = client.get("/timers").content.decode()
    assert "secret" not in shown
    for begins, hosts in (("", 3), ("api", 2), ("API.B", 1), ("secret", 0), ("%", 0), ("\0", 0)):
        options = client.get("/timers/hosts", {"host": begins}).json()["hosts"]
        assert len(options) == hosts, begins
        assert "secret" not in str(options)
    assert queries.hosts_of(Caller(owner_id=None), begins="") == []
    client.force_login(staff)
    assert "secret-1.example" in client.get("/timers/hosts?host=secret").content.decode()
    assert "api.b.example" not in client.get("/timers/hosts?mine=1").content.decode()


def test_hosts_and_tabs_read_no_whole_table(client, closed, people, make_timer, sql):
    for owner in (people["owner"], people["staff"]):
        make_timer("http://a.example/", owner_id=owner.pk)
    sql("ANALYZE scheduler_timer, scheduler_delivery")
    client.force_login(people["owner"])
    with CaptureQueriesContext(connection) as asked:
        client.get("/timers/hosts?host=a")
        client.get("/timers?host=a.example")
        with pytest.MonkeyPatch.context() as patch:
            # As of an owner of many.
            patch.setattr(rows, "TALLY_MOST", 0)
            client.get("/timers?retrying=true")
            client.get("/timers?late=true")
    sql("SET LOCAL enable_seqscan = off")
    statements = [one["sql"] for one in asked if "scheduler_" in one["sql"]]
    assert len(statements) > 20
    # With a handful of rows the planner would rather read all; what it must not is have no other way.
    assert [scan for statement in statements for scan in scans_of(statement, None)] == []


def test_staff_narrow_the_list_to_one_owner(client, closed, people, make_timer):
    owner, staff = people["owner"], people["staff"]
    for name, of in (("of the owner", owner), ("of staff", staff)):
        make_timer(name=name, owner_id=of.pk)
    client.force_login(staff)
    page = client.get("/timers?owner=OWNER@example.com&status=scheduled")
    assert [row["name"] for row in page.context["rows"]] == ["of the owner"]
    text = page.content.decode()
    assert 'name="owner"' in text
    # Each row leads to its owner's, as the news of it do; and the filter stays with tabs, export and the call to copy.
    assert 'href="?owner=owner@example.com"' in client.get("/timers").content.decode()
    ids = ",".join(str(pk) for pk in Timer.objects.values_list("pk", flat=True))
    assert 'href="?owner=owner@example.com"' in client.get(f"/timers?live=1&ids={ids}").content.decode()
    assert 'href="/timers?owner=owner@example.com"' in client.get("/?live=1").content.decode()
    assert "/timers?status=failed&amp;owner=OWNER%40example.com" in text
    address, key = page.context["curl"].split(" \\\n")
    assert address.endswith("/timer?status=scheduled&owner=OWNER%40example.com'")
    assert key == '  -H "Authorization: Bearer $WEBTASK_KEY"'
    exported = client.get(f"/timers/export.csv?{page.context['export']}").content.decode()
    assert "of the owner" in exported
    assert "of staff" not in exported
    # What staff may not change is not begun for it.
    client.post("/operations/count", {"action": "pause", "owner": "owner@example.com"})
    assert not BulkOperation.objects.exists()
    staff.user_permissions.add(Permission.objects.get(codename="change_periodictask"))
    client.post("/operations/count", {"action": "pause", "owner": "owner@example.com"})
    assert BulkOperation.objects.get().filter == {"owner": str(owner.pk)}
    assert client.get("/timers?owner=nobody@example.com").status_code == 400
    client.force_login(owner)
    assert 'name="owner"' not in client.get("/timers").content.decode()
    for name in ("staff@example.com", "nobody@example.com", "owner@example.com"):
        assert client.get(f"/timers?owner={name}").status_code == 400


def test_an_empty_list_says_which_kind_of_empty_it_is(client, make_timer):
    empty = client.get("/timers").content.decode()
    assert "No timer yet." in empty
    curl = html.unescape(re.search(r'<code id="code-first">(.*?)</code>', empty, re.DOTALL)[1])
    # What is there to copy does what it says.
    body = json.loads(re.search(r"-d '(.*)'$", curl)[1])
    assert client.post("/timer", body, "application/json").status_code == 201
    assert "code-first" not in client.get("/timers").content.decode()
    for query in ("status=failed", "status=failed,missed", "late=true", "retrying=true"):
        assert "Nothing is wrong" in client.get(f"/timers?{query}").content.decode(), query
    for query in ("status=paused", "status=failed&host=a.example", "status=failed,paused", "late=false&status=held"):
        shown = client.get(f"/timers?{query}").content.decode()
        assert "No timer fits." in shown, query
        assert "Nothing is wrong" not in shown


def test_times_are_links_that_set_the_filter(client, make_timer):
    now = timezone.now()
    for name, at in (("past", now - timedelta(minutes=5)), ("soon", now + timedelta(minutes=30))):
        timer = make_timer("http://a.example/", name=name)
        become(timer, State.SCHEDULED, due_at=at, next_attempt_at=at)
    found = {name: link for link, name, _ in client.get("/timers?host=a.example").context["dues"]}
    assert list(found) == ["Overdue", "Next hour", "Today (UTC)", "This week (UTC)"]
    for name, names in (("Overdue", ["past"]), ("Next hour", ["soon"])):
        page = client.get(found[name])
        assert [row["name"] for row in page.context["rows"]] == names
        assert "host=a.example" in found[name]
    begins = {
        name: datetime.fromisoformat(re.search("due_from=([^&]+)", link)[1].replace("%3A", ":"))
        for name, link in found.items()
        if "due_from" in link
    }
    assert begins["This week (UTC)"].weekday() == 0
    assert begins["Today (UTC)"] == datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert [name for _, name, is_on in client.get(found["Today (UTC)"]).context["dues"] if is_on] == ["Today (UTC)"]


def test_columns_are_hidden_in_this_browser(client, make_timer):
    make_timer()
    assert "no-how" not in client.get("/timers").content.decode()
    here = "/timers?status=scheduled"
    assert client.post("/timers/columns", {"column": ["when"], "here": here})["Location"] == here
    assert client.get(here).context["hidden"] == ["how", "last"]
    assert 'class="card no-how no-last"' in client.get(here).content.decode()
    client.cookies["hidden"] = "how.<script>"
    shown = client.get(here)
    assert (shown.context["hidden"], "<script>" in shown.content.decode()) == (["how"], False)
    client.post("/timers/columns", {"column": ["how", "when", "last"]})
    assert client.get(here).context["hidden"] == []


# One timer after another


def test_form_stays_for_another_timer(client):
    fields = {
        "web_url": "http://a.example/hook",
        "name": "first <b>",
        "when": "cron",
        "cron": "0 9 13 * FRI",
        "timezone": "UTC",
        "method": "PUT",
        "headers": "X-Shop: north\nAuthorization: Bearer hush-hush\nX-Api-Key: hush-hush\nSet-Cookie: hush-hush",
        "body": "private",
        "another": "1",
    }
    answer = client.post("/timers/new", fields)
    timer = Timer.objects.get()
    assert answer.status_code == 200
    shown = answer.content.decode()
    assert f'<a href="/timers/{timer.pk}">first &lt;b&gt;</a>' in shown
    form = answer.context["form"]
    kept = {name: form[name].value() for name in ("web_url", "method", "headers", "when", "name", "body", "cron")}
    assert kept == {
        "web_url": "http://a.example/hook",
        "method": "PUT",
        "headers": "X-Shop: north",
        "when": "cron",
        "name": None,
        "body": None,
        "cron": None,
    }
    assert "hush-hush" not in shown
    assert client.get(f"/timer/{timer.pk}").json()["cron"] == "0 9 13 * FRI"
    refused = client.post("/timers/new", fields | {"cron": "x"})
    assert refused.status_code == 400
    assert Timer.objects.count() == 1


def test_cron_is_said_in_words(client, make_timer):
    fields = {"web_url": "http://a.example/", "when": "cron", "cron": "0 9 13 * FRI", "timezone": "UTC"}
    words = "at 09:00, on day 13 of the month or Friday"
    assert words[1:] in client.post("/timers/preview", fields).content.decode()
    client.post("/timers/new", fields)
    assert words[1:] in client.get("/timers").content.decode()
    assert words in client.get(f"/timers/{Timer.objects.get().pk}").content.decode()
    offered = '<option value="0 9 * * MON-FRI">at 09:00, Monday to Friday</option>'
    assert offered in client.get("/timers/new").content.decode()
