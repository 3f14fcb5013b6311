"""Ticked rows of the list of timers, and the export of what the list shows."""

import json
import uuid

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from webtask_scheduler.dashboard.ticked import TICKED_MOST
from webtask_scheduler.scheduler.models import Delivery, State
from webtask_scheduler.scheduler.services.changing import EXTRA_OPEN_MOST

pytestmark = pytest.mark.django_db


def act(client, action, ids):
    """Press a button of the bar; return what the list says then."""
    answer = client.post("/timers/act", {"action": action, "id": [str(one) for one in ids], "here": "/timers"})
    assert answer.status_code == 302, answer.content
    return [str(message) for message in client.get(answer["Location"]).context["messages"]]


def states():
    return list(Delivery.objects.filter(extra=False).order_by("pk").values_list("state", flat=True))


def test_each_row_has_a_box_of_the_one_form(client, make_timer):
    timers = [make_timer() for _ in range(3)]
    text = client.get("/timers").content.decode()
    for timer in timers:
        assert f'name="id" value="{timer.pk}" form="act"' in text
    assert text.count('id="act"') == 1
    for action in ("run", "pause", "resume", "replay", "cancel"):
        assert f'name="action" value="{action}"' in text


def test_form_needs_its_token(make_timer):
    client, timer = Client(enforce_csrf_checks=True), make_timer()
    assert client.post("/timers/act", {"action": "cancel", "id": str(timer.pk)}).status_code == 403
    assert states() == [State.SCHEDULED]


def test_each_reason_is_said_by_itself(client, make_timer):
    ended, full, free = make_timer(), make_timer(), make_timer()
    act(client, "cancel", [ended.pk])
    for _ in range(EXTRA_OPEN_MOST):
        assert act(client, "run", [full.pk]) == ["1 timer is called now."]
    assert act(client, "run", [ended.pk, full.pk, free.pk]) == [
        "1 timer is called now.",
        "1 has ended and stays as it is.",
        "1 is not called: too many of its extra calls are open.",
    ]


def test_so_many_are_taken_and_no_more(client, make_timer):
    timer = make_timer()
    others = [uuid.uuid4() for _ in range(TICKED_MOST)]
    assert act(client, "pause", [timer.pk, *others]) == [f"At most {TICKED_MOST} timers at once; nothing was done."]
    assert states() == [State.SCHEDULED]
    assert act(client, "pause", [timer.pk, *others[1:]])[0] == "1 timer is paused."
    assert states() == [State.PAUSED]


def test_timer_of_another_is_told_from_none_by_nothing(client, make_timer, settings):
    settings.WEBTASK_API_AUTH = "key"
    owner, other = (get_user_model().objects.create_user(f"{name}@example.com", "secret") for name in ("a", "b"))
    theirs = make_timer(owner_id=other.pk)
    client.force_login(owner)
    for action in ("run", "pause", "resume", "replay", "cancel"):
        assert act(client, action, [theirs.pk]) == act(client, action, [uuid.uuid4()])
    assert states() == [State.SCHEDULED]


def test_search_by_id_is_exported_as_it_is_shown(client, make_timer, settings):
    settings.WEBTASK_API_AUTH = "key"
    owner, other = (get_user_model().objects.create_user(f"{name}@example.com", "secret") for name in ("a", "b"))
    found, _rest = make_timer(owner_id=owner.pk), make_timer(owner_id=owner.pk)
    theirs = make_timer(owner_id=other.pk)
    client.force_login(owner)
    for timer, ids in ((found, [str(found.pk)]), (theirs, [])):
        page = client.get("/timers", {"id": str(timer.pk)})
        lines = client.get(f"/timers/export.jsonl?{page.context['export']}").content
        assert [json.loads(line)["task_id"] for line in lines.splitlines()] == ids
        table = client.get(f"/timers/export.csv?{page.context['export']}").content
        assert len(table.splitlines()) == 1 + len(ids)
