"""The form that edits a timer, its copy, and the test call, asked as a browser asks them."""

import html
import re
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from webtask_scheduler.dashboard.forms import changes
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.tests.support.acting import begin, put_back
from webtask_scheduler.scheduler.tests.support.api import create
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

YEAR = datetime.now(UTC).year + 1
WHOLE = {
    "web_url": "https://me:secret@a.example/hook",
    "cron": "0 9 * * *",
    "timezone": "Europe/Berlin",
    "ends_at": f"{YEAR}-01-01T00:00:00Z",
    "name": "nightly",
    "method": "PUT",
    "headers": {"Authorization": "Bearer hidden", "X-Kind": "report"},
    "body": {"deep": [1, {"a": None}]},
    "timeout_seconds": 7,
    "retry": {"max_attempts": 3, "min_seconds": 9, "backoff": "fixed"},
    "labels": {"team": "billing", "kind": "report"},
    "metadata": {"not": "in the form"},
    "success_statuses": [200, 404],
    "failure_callback_url": "https://b.example/failed",
}


def fields_of(page):
    """Return what a browser sends of the form as it is shown."""
    form = page[page.index('class="columns form"') :]
    form = form[: form.index("</form>")]
    values = {}
    for tag in re.findall(r"<input[^>]*>", form):
        parts = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if parts.get("type") != "radio" or " checked" in tag:
            values[parts["name"]] = html.unescape(parts.get("value", ""))
    for name, text in re.findall(r'<textarea name="(\w+)"[^>]*>\r?\n?(.*?)</textarea>', form, re.DOTALL):
        values[name] = html.unescape(text)
    for name, inner in re.findall(r'<select name="(\w+)".*?>(.*?)</select>', form, re.DOTALL):
        values[name] = re.search(r'value="([^"]*)" selected', inner)[1]
    return values


def opened(client, path):
    answer = client.get(path, headers={"accept": "text/html"})
    assert answer.status_code == 200
    return fields_of(answer.content.decode())


def stored(timer_id):
    """Return everything that is kept of a timer and its deliveries."""
    deliveries = Delivery.objects.filter(timer=timer_id).order_by("number")
    return Timer.objects.values().get(pk=timer_id), list(deliveries.values())


@each(
    "given",
    [
        WHOLE,
        {"web_url": "http://a.example/", "seconds": 3600},
        {"web_url": "http://a.example/", "every": "PT1H30M", "body": "text"},
        {"web_url": "http://a.example/", "every": "PT1.5S"},
        {"web_url": "http://a.example/", "seconds": 60, "sensitive": True, "body": "hidden", "method": "POST"},
    ],
)
def test_what_is_not_changed_stays_as_it_is(client, given):
    timer = create(client, **given)
    path = f"/timers/{timer['task_id']}/edit"
    before = stored(timer["task_id"])
    answer = client.post(path, opened(client, path), follow=True)
    assert "Nothing was changed." in answer.content.decode()
    assert stored(timer["task_id"]) == before
    # One field is changed: one field is another.
    answer = client.post(path, opened(client, path) | {"name": "renamed"})
    assert answer["Location"] == f"/timers/{timer['task_id']}"
    row, deliveries = stored(timer["task_id"])
    assert row.pop("name") == "renamed"
    assert row == {name: value for name, value in before[0].items() if name != "name"}
    assert deliveries == before[1]


def test_each_part_is_changed_and_taken_away(client):
    timer = create(client, **WHOLE)
    path = f"/timers/{timer['task_id']}/edit"
    fields = opened(client, path)
    assert fields["headers"] == "Authorization: ***\nX-Kind: ***"
    assert fields["web_url"] == "https://***@a.example/hook"
    client.post(
        path,
        fields
        | {"web_url": "https://***@a.example/other", "cron": "30 10 * * *", "headers": "Authorization: ***\nX-New: 1"}
        | {"labels": "team=shop", "max_attempts": "", "body": '{"deep": 2}', "failure_callback_url": ""},
    )
    found = client.get(f"/timer/{timer['task_id']}").json()
    assert (found["web_url"], found["cron"]) == ("https://***@a.example/other", "30 10 * * *")
    assert found["headers"] == {"Authorization": "***", "X-New": "***"}
    assert found["retry"] == {"min_seconds": 9, "backoff": "fixed"}
    assert (found["labels"], found["body"]) == ({"team": "shop"}, {"deep": 2})
    assert "failure_callback_url" not in found
    kept = ("timezone", "ends_at", "metadata", "success_statuses", "timeout_seconds", "name", "method")
    assert {name: found[name] for name in kept} == {name: timer[name] for name in kept}


def test_another_kind_of_schedule_takes_the_place_of_the_first(client):
    timer = create(client, web_url="http://a.example/", every="PT10S")
    path = f"/timers/{timer['task_id']}/edit"
    client.post(path, opened(client, path) | {"when": "at", "at": f"{YEAR}-05-01T10:00:00", "at_zone": "Asia/Tokyo"})
    found = client.get(f"/timer/{timer['task_id']}").json()
    assert found["due_at"].startswith(f"{YEAR}-05-01T01:00:00")
    assert "every" not in found
    client.post(path, opened(client, path) | {"when": "cron", "cron": "0 9 * * *", "timezone": "UTC"})
    assert client.get(f"/timer/{timer['task_id']}").json()["cron"] == "0 9 * * *"
    answer = client.post(path, opened(client, path) | {"when": "in", "seconds": ""})
    assert answer.status_code == 400
    assert "Say when" in answer.content.decode()
    assert client.get(f"/timer/{timer['task_id']}").json()["cron"] == "0 9 * * *"


def test_errors_stand_beside_their_fields_and_nothing_is_stored(client):
    timer = create(client, **WHOLE)
    path = f"/timers/{timer['task_id']}/edit"
    before = stored(timer["task_id"])
    wrong = {"web_url": "ftp://a.example", "cron": "61 * * * *", "timeout_seconds": "soon", "name": "kept in the form"}
    answer = client.post(path, opened(client, path) | wrong)
    page = answer.content.decode()
    assert answer.status_code == 400
    for field in ("web_url", "cron", "timeout_seconds"):
        assert f'id="id_{field}_error"' in page, field
    assert "kept in the form" in page
    assert stored(timer["task_id"]) == before
    # Of what a browser sends back nothing is taken for granted.
    hostile = ('{"name": {"a": 1}, "labels": [1], "headers": "x", "retry": 5}', '{"labels": ' * 900 + "1" + "}" * 900)
    for shown in hostile:
        assert client.post(path, opened(client, path) | {"shown": shown, "cron": "61"}).status_code == 400
    for shown in ("", "nonsense", "[]", "[" * 5000):
        answer = client.post(path, opened(client, path) | {"shown": shown, "name": "x"})
        assert (answer.status_code, stored(timer["task_id"])) == (400, before)


def test_change_of_another_is_not_undone(client):
    timer = create(client, web_url="http://a.example/", seconds=3600, name="old", labels={"a": "1"})
    path = f"/timers/{timer['task_id']}/edit"
    fields = opened(client, path)
    client.patch(f"/timer/{timer['task_id']}", {"name": "theirs"}, content_type="application/json")
    client.post(path, fields | {"labels": "a=2"})
    found = client.get(f"/timer/{timer['task_id']}").json()
    assert (found["name"], found["labels"]) == ("theirs", {"a": "2"})


def test_preview_says_what_saving_changes(client):
    timer = create(client, web_url="http://a.example/", due_at=f"{YEAR}-01-01T00:00:00Z")
    path = f"/timers/{timer['task_id']}/edit"
    fields = opened(client, path) | {"at": f"{YEAR}-02-01T00:00:00", "name": "moved"}
    for said in (client.post(f"{path}/preview", fields), client.post(path, fields | {"preview": "1"})):
        text = said.content.decode()
        assert "The next call moves from" in text
        assert f'datetime="{YEAR}-01-01T00:00:00' in text
        assert f'datetime="{YEAR}-02-01T00:00:00' in text
        assert "curl -X PATCH" in text
    assert client.get(f"/timer/{timer['task_id']}").json()["due_at"].startswith(f"{YEAR}-01-01")
    put_back(timer["task_id"])
    begin()
    assert "The call in flight is not touched." in client.post(f"{path}/preview", fields).content.decode()


def test_timer_that_has_ended_is_not_moved(client):
    timer = create(client, web_url="http://a.example/", seconds=3600)
    path = f"/timers/{timer['task_id']}/edit"
    fields = opened(client, path)
    services.cancel(timer["task_id"])
    answer = client.post(path, fields | {"web_url": "http://b.example/"})
    assert answer.status_code == 409
    assert client.get(f"/timer/{timer['task_id']}").json()["web_url"] == "http://a.example/"
    assert client.post(path, fields | {"name": "a name still"}).status_code == 302


def test_only_who_may_change_a_timer_gets_the_form(client, settings, make_timer, django_user_model):
    settings.WEBTASK_API_AUTH = "key"
    owner, other = (django_user_model.objects.create_user(f"{name}@example.com", "x") for name in ("owner", "other"))
    timer = make_timer(owner_id=owner.pk)
    client.force_login(other)
    for path in (f"/timers/{timer.pk}/edit", f"/timers/new?copy={timer.pk}"):
        assert client.get(path, headers={"accept": "text/html"}).status_code == 404
    assert client.post(f"/timers/{timer.pk}/edit", {"shown": "{}", "name": "x"}).status_code == 404
    assert client.post(f"/timers/{timer.pk}/edit/preview", {"shown": "{}"}).status_code == 404
    client.force_login(owner)
    assert client.get(f"/timers/{timer.pk}/edit", headers={"accept": "text/html"}).status_code == 200


def test_copy_is_a_new_timer_with_the_same_words(client):
    timer = create(
        client, **{name: value for name, value in WHOLE.items() if name != "web_url"}, web_url="http://a.example/"
    )
    fields = opened(client, f"/timers/new?copy={timer['task_id']}")
    # Secrets are not copied, and the error says so.
    answer = client.post("/timers/new", fields)
    assert (answer.status_code, Timer.objects.count()) == (400, 1)
    assert "*** stands for a value" in answer.content.decode()
    answer = client.post("/timers/new", fields | {"headers": "X-Kind: report"})
    copy = client.get(answer["Location"].replace("/timers/", "/timer/")).json()
    same = ("cron", "timezone", "name", "method", "labels", "timeout_seconds", "failure_callback_url")
    assert {name: copy[name] for name in same} == {name: timer[name] for name in same}
    once = create(client, web_url="http://a.example/", seconds=90)
    assert opened(client, f"/timers/new?copy={once['task_id']}")["seconds"] == "90"


def test_test_call_is_a_timer_of_its_own_and_the_form_stays(client):
    fields = opened(client, "/timers/new") | {"web_url": "http://a.example/", "when": "cron", "cron": "0 9 * * *"}
    answer = client.post("/timers/new", fields | {"labels": "team=a", "test": "1"})
    assert answer.status_code == 200
    made = Timer.objects.get()
    assert (made.recurring, made.options["labels"]) == (False, {"team": "a", "test": "1"})
    assert Delivery.objects.get().due_at <= timezone.now()
    page = answer.content.decode()
    assert f"/timers/{made.pk}" in page
    assert fields_of(page)["cron"] == "0 9 * * *"


def test_changes_are_a_merge_patch():
    shown, given = {"name": "a", "labels": {"x": "1", "y": "2"}}, {"name": "a", "labels": {"x": "1", "z": "3"}}
    assert changes(shown, given) == {"labels": {"z": "3", "y": None}}
    assert changes(shown, {"method": "PUT"}) == {"method": "PUT", "name": None, "labels": {"x": None, "y": None}}
    assert changes({"body": {"a": 1}}, {"body": {"b": 2}}) == {"body": {"b": 2}}
    cron = {"cron": "0 9 * * *", "timezone": "UTC"}
    assert changes(cron, dict(cron)) == {}
    assert changes(cron, cron | {"timezone": "Asia/Tokyo"}) == cron | {"timezone": "Asia/Tokyo"}
    assert changes(cron, {"seconds": 5}) == {"seconds": 5}
