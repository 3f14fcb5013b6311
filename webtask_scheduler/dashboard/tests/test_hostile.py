"""Pages asked for what no link leads to and sent what no browser would: an answer, and never an error of ours.

And every route asked for what is another owner's: it is not there.
"""

import itertools

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import ApiKey
from webtask_scheduler.dashboard import urls
from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.models import (
    BulkOperation,
    CallStop,
    Delivery,
    Notification,
    NotificationChannel,
    SigningSecret,
    State,
    Timer,
)
from webtask_scheduler.scheduler.services import channels
from webtask_scheduler.scheduler.services.channels import NewChannel

pytestmark = pytest.mark.django_db

NOBODY = "01a208fa-e8fb-7670-94ef-a8fa0c17a138"
IMPORTS = (
    "[" * 100_000,
    '{"a":' * 5000 + "1" + "}" * 5000,
    "\0",
    '{"web_url": "http://a.example/\\u0000", "seconds": 5}',
    "{}",
    '{"web_url": 5}',
    '"x"',
    "null",
    '{"web_url": "http://a.example/", "seconds": 5, "labels": [1]}',
    "9" * 5000,
    '{"web_url": "http://a.example/", "seconds": ' + "9" * 5000 + "}",
)
LISTS = ("/timers", "/timers/export.csv", "/timers/export.jsonl", "/dead", "/upcoming", "/operations")
QUERIES = (
    "q=%00",
    "name=%00",
    f"id={'f' * 40}",
    "cursor=x",
    "due_from=x",
    "sort=x",
    "status=%00",
    f"label={'a' * 5000}",
)
PATHS = (
    "/hosts?sort=%00",
    "/dead?host=%00&state=failed&error=x&code=9999999999",
    "/hosts/%00",
    "/upcoming?part=99999",
    "/upcoming?from=x&at=%00",
    "/punctuality?window=%00",
    f"/timers?live=1&ids={','.join(['x'] * 500)}",
    "/timers/new?copy=x",
    f"/timers/new?copy={NOBODY}",
    f"/timers/{NOBODY}/deliveries/99999999999999999999",
    "/settings?x=%00",
)
FORMS = (
    ("/timers/act", {"action": "run", "id": ["x", "\0", NOBODY]}),
    ("/dead/replay", {"host": "x", "state": "failed", "spread": "x", "id": "\0"}),
    ("/operations/count", {"action": "spread", "due_from": "x", "due_to": "\0"}),
    ("/operations/count", {"action": "spread", "due_from": "9999-12-31T23:59:59-12:00", "host": "x"}),
    ("/settings/keys", {"name": "\0"}),
    ("/settings/secrets", {"hosts": "\0"}),
    ("/settings/display", {"clock": "\0"}),
    ("/timers/new", {"web_url": "http://a.example/\0", "when": "in", "seconds": "1"}),
    ("/timers/new", {"web_url": "x", "test": "1", "labels": "a=" * 100}),
    ("/hosts/a b/stop", {"reason": "\0"}),
)


def test_no_request_is_an_error_of_ours(client):
    answers = [(text[:30], client.post("/import", {"text": text, "zone": "UTC"})) for text in IMPORTS]
    answers += [(path, client.get(path)) for path in (*PATHS, *(f"{at}?{query}" for at in LISTS for query in QUERIES))]
    answers += [(path, client.post(path, given)) for path, given in FORMS]
    assert [(asked, answer.status_code) for asked, answer in answers if answer.status_code >= 500] == []
    assert not Timer.objects.exists()


# Routes that name nothing of anybody, and one that would end the walk.
UNNAMED = ("login", "logout", "demo", "favicon", "status", "status-json", "badge", "display")
ACTIONS = (
    "run",
    "try-now",
    "pause",
    "resume",
    "replay",
    "cancel",
    "dismiss",
    "stop",
    "resume",
    "other",
    "test",
    "delete",
)
MARK = "anns-own"


def things_of(owner, make_timer):
    """Make one of each thing that an owner may have; return what an address may name of them."""
    timer = make_timer(f"http://{MARK}.example/x", owner_id=owner.pk, name=MARK, options={"labels": {"team": MARK}})
    failed = make_timer(f"http://{MARK}.example/y", owner_id=owner.pk, name=MARK)
    Delivery.objects.filter(timer=failed).update(state=State.FAILED, finished_at=failed.created_at)
    counted = BulkOperation.objects.create(
        owner=owner, action="cancel", filter={"name": MARK}, dry_run=True, matched=1, finished_at=timer.created_at
    )
    going = BulkOperation.objects.create(owner=owner, action="pause", filter={"name": MARK})
    slack = NewChannel(kind="slack", address=f"https://{MARK}.example/x", name=MARK)
    made = keys.make(name=MARK, owner_id=owner.pk, scopes=["timers:read"])
    return {
        "timer_id": [timer.pk, failed.pk],
        "number": [1],
        "operation_id": [counted.pk, going.pk],
        "secret_id": [services.add_secret(None, owner_id=owner.pk, hosts=[f"{MARK}.example"]).pk],
        "key_id": [made.key.pk],
        "channel_id": [channels.add(slack, owner_id=owner.pk).pk],
        "name": [f"{MARK}.example"],
        "action": ACTIONS,
    }


def rows_of(owner):
    """Return all that an owner has, as it is stored."""
    tables = (Timer, BulkOperation, SigningSecret, ApiKey, NotificationChannel, Notification)
    kept = [list(table.objects.filter(owner=owner).order_by("pk").values()) for table in tables]
    return [*kept, list(Delivery.objects.filter(timer__owner=owner).order_by("pk").values())]


def test_no_route_gives_shows_or_changes_what_is_another_owners(client, user, make_timer, settings):
    settings.WEBTASK_API_AUTH = "key"
    ann = get_user_model().objects.create_user("ann@example.com", "x")
    named = things_of(ann, make_timer)
    before = rows_of(ann)
    client.force_login(user)
    ids = [str(pk) for pk in (*named["timer_id"], *Delivery.objects.values_list("pk", flat=True))]
    form = {
        "id": ids,
        "host": f"{MARK}.example",
        "label": f"team={MARK}",
        "state": "failed",
        "status": "failed",
        "spread": "0",
        "typed": "1",
        "web_url": "http://bob.example/",
        "when": "in",
        "delay": "1h",
        "copy": ids[0],
        "kind": "slack",
        "address": "https://bob.example/",
        "on_dead_letter": "on",
    }
    query = {"copy": ids[0], "ids": ",".join(ids), "q": ids[0], "id": ids[0], "label": f"team={MARK}"}
    answers = []
    for route in urls.urlpatterns:
        if route.name in UNNAMED:
            continue
        # A parameter that is new has to be given what it may name.
        names = list(route.pattern.converters)
        for values in itertools.product(*(named[name] for name in names)):
            path = reverse(f"dashboard:{route.name}", kwargs=dict(zip(names, values, strict=True)))
            asked = [client.get(path), client.get(path, query), client.get(path, query | {"live": "1"})]
            # What is pressed on a page that names nothing is done to what the form names.
            deeds = ACTIONS if not names else ("cancel",)
            asked += [client.post(path, form | {"action": action}) for action in deeds]
            answers += [(path, names, answer) for answer in asked]
    # Of one thing: it is not there, by whatever method there is.
    of_one = [(path, answer) for path, names, answer in answers if set(names) - {"name", "action"}]
    assert len(of_one) > 100
    assert {(path, answer.status_code) for path, answer in of_one if answer.status_code not in (404, 405)} == set()
    assert {path for path, answer in of_one} == {path for path, answer in of_one if answer.status_code == 404}
    # Of a host, of all: nothing of the other is on it. What was asked for is repeated, and is no news.
    others = [(path, answer) for path, names, answer in answers if not set(names) - {"name", "action"}]
    assert {(path, answer.status_code) for path, answer in others if answer.status_code >= 500} == set()
    for path, answer in others:
        text = answer.content.decode()
        assert "ann@example.com" not in text, path
        assert f"http://{MARK}" not in text, path
    # And nothing was done, now or by a worker later.
    assert rows_of(ann) == before
    assert not CallStop.objects.exists()
    Delivery.objects.filter(timer__owner=user).delete()
    BulkOperation.objects.filter(owner=ann).delete()
    tasks.bulk()
    assert BulkOperation.objects.filter(owner=user).exists()
    assert not BulkOperation.objects.filter(owner=user, matched__gt=0).exists()
    assert rows_of(ann)[0] == before[0]
    assert rows_of(ann)[-1] == before[-1]
