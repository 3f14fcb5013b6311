"""Ticked rows of the list of timers, and the export of what the list shows."""

import base64
import html
import json
import re
import uuid
from urllib.parse import urlencode

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


def undo_on(page):
    """Return where the form of a page's message leads to that takes back what was just done; None if it has none."""
    found = re.search(r'<form method="post" action="([^"]+)">(?:(?!</form>).)*>Undo</button>', page.content.decode())
    return html.unescape(found[1]) if found else None


def test_pausing_ticked_timers_is_undone_on_the_page_that_follows(client, make_timer):
    was_paused, *others = [make_timer(name=f"t{number}") for number in range(TICKED_MOST)]
    act(client, "pause", [was_paused.pk])
    client.get("/timers")
    form = {"action": "pause", "id": [str(one.pk) for one in (was_paused, *others)], "here": "/timers?host=127.0.0.1:9"}
    page = client.get(client.post("/timers/act", form)["Location"])
    assert set(states()) == {State.PAUSED}
    # By a plain form; what was paused before stays so.
    back = client.post(undo_on(page), {"here": "/timers?host=127.0.0.1:9"})
    assert back["Location"] == "/timers?host=127.0.0.1:9"
    assert states() == [State.PAUSED] + [State.SCHEDULED] * len(others)
    # And that is undone in turn.
    page = client.get(back["Location"])
    client.post(undo_on(page), {"here": "/timers"})
    assert set(states()) == {State.PAUSED}
    # Where nothing was changed, and of what cannot be taken back, there is nothing to undo.
    client.get("/timers")
    for action in ("pause", "cancel"):
        page = client.get(client.post("/timers/act", {"action": action, "id": str(was_paused.pk)})["Location"])
        assert undo_on(page) is None, action


def test_undo_reaches_only_what_may_be_changed(client, make_timer, user):
    timer = make_timer(owner_id=user.pk)
    packed = base64.urlsafe_b64encode(timer.pk.bytes).decode().rstrip("=")
    for of in (packed, "x", "é", packed[:-3], "A" * 5000):
        answer = client.post(f"/timers/act?{urlencode({'action': 'pause', 'of': of})}")
        assert answer.status_code == 302, of
    assert states() == [State.SCHEDULED]
    assert client.get(f"/timers/act?action=pause&of={packed}").status_code == 405
