"""Who may call what: a walk over every route of the schema with two owners' keys, with each scope missing, and without.

The tables below name every operation. One that the schema has and they do not fails the walk.
"""

import base64
import json
import re
import uuid
from datetime import timedelta
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from django.test import Client
from django.utils import timezone

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import ApiKey, Scope
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import (
    BulkOperation,
    Delivery,
    IdempotencyKey,
    Notification,
    NotificationChannel,
    SigningSecret,
    Timer,
)
from webtask_scheduler.scheduler.services import channels
from webtask_scheduler.scheduler.services.caller import OPERATOR
from webtask_scheduler.scheduler.services.channels import NewChannel
from webtask_scheduler.scheduler.services.search import filter_of, page
from webtask_scheduler.scheduler.tests.support.api import URL, call_all, fields_of, key_of, send
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db

ROOT = "/api/v1/scheduler"
READ, WRITE, BULK, SECRETS, ADMIN = Scope.values
# What each operation asks for, and a body that it takes.
OPERATIONS = {
    ("GET", "/timer"): (READ, None),
    ("POST", "/timer"): (WRITE, {"seconds": 60, "web_url": URL}),
    ("POST", "/timer/batch"): (WRITE, {"timers": [{"seconds": 60, "web_url": URL}]}),
    ("POST", "/timer/preview"): (READ, {"cron": "0 9 * * *"}),
    ("POST", "/timer/bulk"): (BULK, {"action": "cancel", "filter": {}, "dry_run": True}),
    ("GET", "/timer/bulk"): (BULK, None),
    ("GET", "/timer/bulk/{id}"): (BULK, None),
    ("POST", "/timer/bulk/{id}/stop"): (BULK, None),
    ("GET", "/timer/{id}"): (READ, None),
    ("PATCH", "/timer/{id}"): (WRITE, {"name": "taken", "hours": 2}),
    ("DELETE", "/timer/{id}"): (WRITE, None),
    ("POST", "/timer/{id}/run"): (WRITE, None),
    ("POST", "/timer/{id}/try-now"): (WRITE, None),
    ("POST", "/timer/{id}/pause"): (WRITE, None),
    ("POST", "/timer/{id}/resume"): (WRITE, None),
    ("POST", "/timer/{id}/replay"): (WRITE, None),
    ("POST", "/timer/{id}/dismiss"): (WRITE, None),
    ("GET", "/timer/{id}/deliveries"): (READ, None),
    ("GET", "/timer/{id}/attempts"): (READ, None),
    ("GET", "/signing-secret"): (SECRETS, None),
    ("POST", "/signing-secret"): (SECRETS, None),
    ("DELETE", "/signing-secret/{id}"): (SECRETS, None),
    ("GET", "/notification-channel"): (SECRETS, None),
    ("POST", "/notification-channel"): (SECRETS, {"kind": "slack", "address": URL}),
    ("PATCH", "/notification-channel/{id}"): (SECRETS, {"name": "taken"}),
    ("DELETE", "/notification-channel/{id}"): (SECRETS, None),
    ("POST", "/notification-channel/{id}/test"): (SECRETS, None),
    ("GET", "/notification"): (SECRETS, None),
    ("GET", "/audit"): (ADMIN, None),
    ("GET", "/api-key"): (ADMIN, None),
    ("POST", "/api-key"): (ADMIN, {"name": "made", "scopes": ["timers:read"]}),
    ("DELETE", "/api-key/{id}"): (ADMIN, None),
}
EACH = each(("method", "path"), OPERATIONS, ids=[f"{method} {path}" for method, path in OPERATIONS])
OF_ONE = [(method, path) for method, path in OPERATIONS if "{id}" in path]
EACH_OF_ONE = each(("method", "path"), OF_ONE, ids=[f"{method} {path}" for method, path in OF_ONE])


OWNED = (Timer, BulkOperation, SigningSecret, ApiKey, NotificationChannel)


@pytest.fixture(autouse=True)
def _asks_for_keys(settings):
    settings.WEBTASK_API_AUTH = "key"


def ask(method, path, key, body=None, **headers):
    """Send a request under the versioned name; without a key if it is None."""
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return send(Client(raise_request_exception=False), method, ROOT + path, body, **headers)


def owner(email, **more):
    """Return a user with a key of all scopes and one thing of each kind."""
    user = User.objects.create_user(email, **more)
    timer = services.NewTimer(web_url=f"http://{email.partition('@')[0]}.example/", delay_seconds=60, owner_id=user.pk)
    (stored,) = services.schedule([timer])
    bulk = BulkOperation(owner=user, action="cancel", filter={"label": email.replace("@", "=")}, dry_run=True)
    services.begin_bulk(bulk)
    secret = services.add_secret(None, owner_id=user.pk)
    channel = channels.add(NewChannel(kind="slack", address=URL, name=f"of {email}"), owner_id=user.pk)
    Notification.objects.create(
        owner=user, channel=channel, kind="slack", gathered={"lost": {}}, subject=email, created_at=channel.created_at
    )
    key = key_of(user)
    spare = keys.make(name=f"spare of {email}", owner_id=user.pk, scopes=[READ]).key
    made = {"bulk": bulk.pk, "secret": secret.pk, "spare": spare.pk, "channel": channel.pk}
    return SimpleNamespace(user=user, key=key, timer=stored.timer_id, **made)


@pytest.fixture
def ann():
    return owner("ann@example.com")


@pytest.fixture
def bob():
    return owner("bob@example.com")


def thing(path, of):
    """Return the path with the id of what it is about."""
    kinds = {"/timer/bulk": of.bulk, "/timer": of.timer, "/signing-secret": of.secret, "/api-key": of.spare}
    kinds["/notification-channel"] = of.channel
    return path.replace("{id}", str(next((found for begin, found in kinds.items() if path.startswith(begin)), "")))


def state():
    """Return all that the API can change."""
    models = (Timer, Delivery, SigningSecret, BulkOperation, ApiKey, IdempotencyKey, NotificationChannel, Notification)
    return [list(model.objects.order_by("pk").values()) for model in models]


def document():
    return Client().get("/api/schema?format=json").json()


def problem(answer, status):
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    return answer.json()["detail"]


# The walk


def test_tables_name_every_operation_of_the_schema():
    found = {(method.upper(), path.removeprefix(ROOT)) for path, item in document()["paths"].items() for method in item}
    assert found == set(OPERATIONS)


@EACH
def test_own_things_are_there(ann, method, path):
    answer = ask(method, thing(path, ann), ann.key, OPERATIONS[method, path][1])
    # Nothing of hers has failed, so that there is nothing to replay, to try now or to dismiss.
    is_lost = path.endswith(("/replay", "/try-now", "/dismiss"))
    assert answer.status_code == 409 if is_lost else answer.status_code < 300, answer.content


@EACH_OF_ONE
def test_things_of_another_owner_are_not_there_and_look_like_no_thing_at_all(ann, bob, method, path):
    before = state()
    body = OPERATIONS[method, path][1]
    said = problem(ask(method, thing(path, ann), bob.key, body), 404)
    nothing = path.replace(
        "{id}", "999999" if path.startswith(("/signing", "/api", "/notification")) else str(uuid.uuid4())
    )
    assert said == problem(ask(method, nothing, bob.key, body), 404)
    assert state() == before


@each("path", [path for method, path in OPERATIONS if method == "GET" and "{id}" not in path])
def test_lists_hold_nothing_of_another_owner(ann, bob, path):
    text = ask("GET", path, bob.key).content.decode()
    assert not re.search(r"\bann\b", text)
    # Ids of another table may be the same numbers.
    secret = f'"id":{ann.secret}' if "secret" in path else "secret of nobody"
    for found in (str(ann.timer), ApiKey.objects.get(pk=ann.spare).prefix, secret):
        assert found not in text
    # A user, a secret, a channel and two keys were made; the bulk operation is a dry run.
    number = {"/api-key": 2, "/audit": 5}.get(path, 1)
    assert len(next(iter(json.loads(text).values()))) == number


@each("query", [{}, {"status": "scheduled"}, {"host": "ann.example"}, {"label": "a=b"}])
def test_no_filter_finds_what_is_another_owners(ann, bob, query):
    found = ask("GET", f"/timer?{'&'.join('='.join(pair) for pair in query.items())}", bob.key).json()["timers"]
    assert str(ann.timer) not in [timer["task_id"] for timer in found]


@EACH
def test_what_is_made_belongs_to_the_key_s_owner(ann, bob, method, path):
    if method != "POST" or "{id}" in path or path == "/timer/preview":
        return
    before = [set(model.objects.values_list("pk", flat=True)) for model in OWNED]
    assert ask(method, path, bob.key, OPERATIONS[method, path][1]).status_code in (201, 202)
    made = [row for model, known in zip(OWNED, before, strict=True) for row in model.objects.exclude(pk__in=known)]
    assert [row.owner for row in made] == [bob.user]


@each("action", BulkOperation.Action.values)
def test_bulk_operations_change_and_count_what_is_the_owners(ann, bob, action):
    BulkOperation.objects.all().delete()
    (failed,) = services.schedule([services.NewTimer(web_url=URL, delay_seconds=60, owner_id=ann.user.pk)])
    Delivery.objects.filter(timer=failed.timer_id).update(state="failed", finished_at="2026-01-01T00:00:00Z")
    of_ann = list(Delivery.objects.filter(timer__owner=ann.user).order_by("pk").values())
    body = {"action": action, "filter": {}}
    if action == "spread":
        # In it are the timers of both.
        now = timezone.now()
        due = {"due_from": now.isoformat(), "due_to": (now + timedelta(hours=12)).isoformat()}
        body |= {"filter": due, "spread_seconds": 86_400}
    begun = ask("POST", "/timer/bulk", bob.key, body).json()
    while services.step_bulk(BulkOperation.objects.get()):
        pass
    # He has nothing to dismiss.
    matched = 0 if action == "dismiss" else 1
    assert ask("GET", f"/timer/bulk/{begun['bulk_id']}", bob.key).json()["matched"] == matched
    assert list(Delivery.objects.filter(timer__owner=ann.user).order_by("pk").values()) == of_ann


def test_what_a_bulk_operation_changed_is_found_by_its_owner(ann, bob):
    def changed_by(of, operation):
        return ask("GET", f"/timer?changed_by={operation}", of.key)

    def done(body):
        made = ask("POST", "/timer/bulk", bob.key, body).json()["bulk_id"]
        while services.step_bulk(BulkOperation.objects.get(pk=made)):
            pass
        return made

    paused = done({"action": "pause", "filter": {}})
    assert [one["task_id"] for one in changed_by(bob, paused).json()["timers"]] == [str(bob.timer)]
    # So it is undone.
    resumed = done({"action": "resume", "filter": {"changed_by": paused}})
    assert ask("GET", f"/timer/bulk/{resumed}", bob.key).json()["changed"] == 1
    assert ask("GET", f"/timer/{bob.timer}", bob.key).json()["status"] == "scheduled"
    # One that keeps nothing, is another's, or is none.
    for of, operation in ((ann, paused), (bob, bob.bulk), (bob, uuid.uuid4()), (bob, "x")):
        answer = changed_by(of, operation)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "changed_by"), operation
    body = {"action": "cancel", "filter": {"changed_by": paused}}
    assert ask("POST", "/timer/bulk", ann.key, body).status_code == 400


def test_idempotency_key_of_another_owner_is_another_key(ann, bob):
    body = {"seconds": 60, "web_url": URL}
    first, second, again = (
        ask("POST", "/timer", key, body, **{"Idempotency-Key": "k"}) for key in (ann.key, bob.key, ann.key)
    )
    assert first.json()["task_id"] != second.json()["task_id"]
    assert "Idempotency-Replayed" not in second
    assert (again.json(), again["Idempotency-Replayed"]) == (first.json(), "true")
    # Another request under the same key is told of one's own only.
    assert ask("POST", "/timer", bob.key, body | {"seconds": 1}, **{"Idempotency-Key": "k"}).status_code == 422


def test_delivery_of_another_owner_is_not_replayed_by_way_of_an_own_timer(ann, bob):
    delivery = Delivery.objects.get(timer=ann.timer)
    Delivery.objects.filter(pk=delivery.pk).update(state="failed", finished_at="2026-01-01T00:00:00Z")
    answer = ask("POST", f"/timer/{bob.timer}/replay", bob.key, {"delivery_id": str(delivery.pk)})
    assert str(bob.timer) in problem(answer, 409)
    assert Delivery.objects.get(pk=delivery.pk).state == "failed"


def test_callback_belongs_to_the_owner_of_its_timer(ann, bob, receiver):
    new = {"seconds": 0, "web_url": receiver.url("/work"), "callback_url": receiver.url("/done")}
    assert ask("POST", "/timer", ann.key, new).status_code == 201
    assert len(call_all(receiver)) == 1
    callback = Timer.objects.get(outcome_of__isnull=False)
    assert callback.owner == ann.user
    assert ask("GET", f"/timer/{callback.pk}", ann.key).status_code == 200
    assert ask("GET", f"/timer/{callback.pk}", bob.key).status_code == 404


# Cursors


def test_cursor_is_unreadable_and_bound_to_its_owner_and_its_list(ann, bob):
    for of in (ann, bob):
        services.schedule([services.NewTimer(web_url=URL, delay_seconds=n, owner_id=of.user.pk) for n in (1, 2, 3)])
    for query in ("", "status=scheduled&"):
        cursor = ask("GET", f"/timer?{query}limit=2", ann.key).json()["next"]
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        assert not [row.pk for row in (*Timer.objects.all(), *Delivery.objects.all()) if str(row.pk).encode() in text]
        assert len(ask("GET", f"/timer?{query}limit=2&cursor={cursor}", ann.key).json()["timers"]) == 2
        assert "cursor" in problem(ask("GET", f"/timer?{query}limit=2&cursor={cursor}", bob.key), 400)
        assert "cursor" in problem(ask("GET", f"/timer/{ann.timer}/attempts?cursor={cursor}", ann.key), 400)
        # What a client forged.
        forged = cursor[:-4] + ("AAAA" if cursor[-4:] != "AAAA" else "BBBB")
        assert "cursor" in problem(ask("GET", f"/timer?{query}cursor={forged}", ann.key), 400)
    place = page(filter_of({}, caller=OPERATOR), cursor="", limit=1).next
    assert "cursor" in problem(ask("GET", f"/timer?cursor={place}", ann.key), 400)


def test_cursor_of_one_timer_is_not_taken_for_another(ann):
    for _ in range(3):
        services.run_now(ann.timer)
    cursor = ask("GET", f"/timer/{ann.timer}/deliveries?limit=1", ann.key).json()["next"]
    (other,) = services.schedule([services.NewTimer(web_url=URL, delay_seconds=1, owner_id=ann.user.pk)])
    assert ask("GET", f"/timer/{ann.timer}/deliveries?cursor={cursor}", ann.key).status_code == 200
    short = Client().get(
        f"/timer/{ann.timer}/deliveries?cursor={cursor}", headers={"Authorization": f"Bearer {ann.key}"}
    )
    assert short.status_code == 200
    assert ask("GET", f"/timer/{other.timer_id}/deliveries?cursor={cursor}", ann.key).status_code == 400


def test_cursor_outlives_a_new_secret_key_that_names_the_old_one(ann, settings):
    services.schedule([services.NewTimer(web_url=URL, delay_seconds=1, owner_id=ann.user.pk)])
    cursor = ask("GET", "/timer?limit=1", ann.key).json()["next"]
    old, settings.SECRET_KEY = settings.SECRET_KEY, "new" * 20
    assert ask("GET", f"/timer?cursor={cursor}", ann.key).status_code == 400
    settings.SECRET_KEY_FALLBACKS = [old]
    assert ask("GET", f"/timer?cursor={cursor}", ann.key).status_code == 200


# Scopes


@EACH
def test_operation_asks_for_its_scope_alone(ann, method, path):
    needed, body = OPERATIONS[method, path]
    without, with_it = key_of(ann.user, *(scope for scope in Scope.values if scope != needed)), key_of(ann.user, needed)
    before = state()
    detail = problem(ask(method, thing(path, ann), without, body), 403)
    assert f"`{needed}`" in detail
    assert state() == before
    assert ask(method, thing(path, ann), with_it, body).status_code not in (401, 403)


@EACH
@each("key", [None, "", "nonsense", "wts_live_" + "a" * 40], ids=["none", "empty", "nonsense", "unknown"])
def test_request_without_a_key_that_is_in_use_is_told_so(ann, method, path, key):
    before = state()
    answer = ask(method, thing(path, ann), key, OPERATIONS[method, path][1])
    assert "API key" in problem(answer, 401)
    assert answer["WWW-Authenticate"] == 'Bearer realm="webtask_scheduler"'
    assert state() == before


def test_body_of_a_stranger_is_not_looked_at(ann):
    for body in (b"{", b"x" * 5_000_000):
        assert ask("POST", "/timer", None, body).status_code == 401


def test_methods_that_are_not_there_are_405_and_options_tell_nobody_s_things(ann):
    assert ask("PUT", "/timer", ann.key).status_code == 405
    assert ask("PUT", "/timer", None).status_code == 401
    assert ask("OPTIONS", "/timer", None).status_code == 401
    assert ask("OPTIONS", "/timer", ann.key).status_code == 200
    assert ask("HEAD", f"/timer/{ann.timer}", key_of(ann.user, WRITE)).status_code == 403
    assert ask("HEAD", f"/timer/{ann.timer}", key_of(ann.user, READ)).status_code == 200


def test_method_that_no_scope_is_named_for_is_closed(ann, monkeypatch):
    from webtask_scheduler.scheduler.urls import urlpatterns

    timers = next(route for route in urlpatterns if route.name == "timers")
    monkeypatch.delitem(timers.callback.view_initkwargs["scopes"], "GET")
    assert ask("GET", "/timer", ann.key).status_code == 403


@each("form", ["Basic {}", "{}", "Bearer", "Token {}"])
def test_key_in_another_form_is_no_key(ann, form):
    assert ask("GET", "/timer", None, Authorization=form.format(ann.key)).status_code == 401


def test_cookie_of_the_admin_is_no_key():
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.com", "x"))
    assert client.get("/timer").status_code == 401


# Superusers


def test_key_of_a_superuser_sees_all_with_the_scope_admin_only(ann):
    root = owner("root@example.com", is_superuser=True, is_staff=True)
    assert ask("GET", f"/timer/{ann.timer}", root.key).status_code == 200
    assert len(ask("GET", "/timer", root.key).json()["timers"]) == 2
    assert ask("GET", f"/timer/bulk/{ann.bulk}", root.key).status_code == 200
    own = key_of(root.user, READ, WRITE, BULK, SECRETS)
    assert ask("GET", f"/timer/{ann.timer}", own).status_code == 404
    assert len(ask("GET", "/timer", own).json()["timers"]) == 1


@each(("scopes", "matched"), [((BULK,), 1), ((BULK, ADMIN), 2)])
def test_bulk_operation_of_a_superuser_reaches_as_far_as_the_key(ann, scopes, matched):
    root = owner("root@example.com", is_superuser=True)
    BulkOperation.objects.all().delete()
    assert ask("POST", "/timer/bulk", key_of(root.user, *scopes), {"action": "pause", "filter": {}}).status_code == 202
    while services.step_bulk(BulkOperation.objects.get()):
        pass
    assert BulkOperation.objects.get().matched == matched


def test_bulk_operation_reaches_no_further_once_its_owner_is_no_superuser(ann):
    root = owner("root@example.com", is_superuser=True)
    BulkOperation.objects.all().delete()
    assert ask("POST", "/timer/bulk", root.key, {"action": "cancel", "filter": {}}).status_code == 202
    User.objects.update(is_superuser=False)
    while services.step_bulk(BulkOperation.objects.get()):
        pass
    assert BulkOperation.objects.get().matched == 1


def owned(key, name, **more):
    answer = ask("GET", f"/timer?{urlencode({'owner': name} | more)}", key)
    assert answer.status_code == 200, answer.content
    return [timer["task_id"] for timer in answer.json()["timers"]]


def test_superuser_lists_the_timers_of_one_owner(ann, bob):
    root = owner("root+1@example.com", is_superuser=True)
    for name in ("bob@example.com", "BOB@example.com", str(bob.user.pk)):
        assert owned(root.key, name) == [str(bob.timer)]
        assert owned(root.key, name, status="scheduled") == [str(bob.timer)]
    assert owned(root.key, "bob@example.com", host="ann.example") == []
    # Nobody encodes a plus sign by hand.
    answer = ask("GET", "/timer?owner=root+1@example.com", root.key)
    assert [timer["task_id"] for timer in answer.json()["timers"]] == [str(root.timer)]
    for name in ("nobody@example.com", "0", "9" * 30, "bob"):
        answer = ask("GET", f"/timer?owner={name}", root.key)
        assert fields_of(answer) == ["owner"]
    # Whoever does not see all learns nothing of who there is, of themselves neither.
    own = key_of(root.user, READ, WRITE, BULK)
    refused = [
        ask("GET", f"/timer?owner={name}", key).json()["errors"]
        for key in (ann.key, own)
        for name in ("bob@example.com", "nobody@example.com", "ann@example.com", "1")
    ]
    assert all(one == refused[0] for one in refused)
    answer = ask("POST", "/timer/bulk", ann.key, {"action": "pause", "filter": {"owner": "bob@example.com"}})
    assert fields_of(answer) == ["owner"]


def test_bulk_operation_of_one_owner_s_timers_stays_with_that_owner(ann, bob):
    root = owner("root@example.com", is_superuser=True)
    BulkOperation.objects.all().delete()
    wanted = {"action": "pause", "filter": {"owner": "bob@example.com"}}
    for _ in range(2):
        answer = ask("POST", "/timer/bulk", root.key, wanted)
        # By the id: the address may be another's before it ends.
        assert answer.json()["filter"] == {"owner": str(bob.user.pk)}
    first, second = BulkOperation.objects.order_by("pk")
    while services.step_bulk(first):
        pass
    assert first.matched == 1
    assert list(Delivery.objects.filter(state="paused").values_list("timer", flat=True)) == [bob.timer]
    # Without the right to see all it is done to nobody's timers, not to one's own instead.
    User.objects.update(is_superuser=False)
    second = BulkOperation.objects.get(pk=second.pk)
    assert services.step_bulk(second) is False
    second.refresh_from_db()
    assert (second.matched, second.status) == (0, "failed")
    assert "of all owners" in second.error


# Keys by the API


def test_key_is_made_listed_and_revoked(ann):
    tomorrow = (timezone.now() + timedelta(days=1)).isoformat()
    answer = ask("POST", "/api-key", ann.key, {"name": "ci", "scopes": [WRITE, READ], "expires_at": tomorrow})
    made = answer.json()
    assert (answer.status_code, answer["Cache-Control"]) == (201, "no-store")
    assert (made["owner"], made["scopes"], made["revoked_at"]) == ("ann@example.com", [READ, WRITE], None)
    assert ask("GET", "/timer", made["key"]).status_code == 200
    assert made["key"] not in ask("GET", "/api-key", ann.key).content.decode()
    for _ in range(2):
        assert ask("DELETE", f"/api-key/{made['id']}", ann.key).status_code == 204
    assert ask("GET", "/timer", made["key"]).status_code == 401
    (shown,) = [one for one in ask("GET", "/api-key", ann.key).json()["keys"] if one["id"] == made["id"]]
    assert shown["revoked_at"] is not None


def test_keys_are_listed_by_the_page(ann):
    found, cursor = [], ""
    while cursor is not None:
        body = ask("GET", f"/api-key?limit=1&cursor={cursor}", ann.key).json()
        found += [one["id"] for one in body["keys"]]
        cursor = body["next"]
    assert found == sorted(found, reverse=True)
    assert len(found) == 2


@each(
    ("fields", "wrong"),
    [
        ({"name": ""}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["all"]}, "scopes.0"),
        ({"scopes": "admin"}, "scopes"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"owner": "bob@example.com"}, "owner"),
        ({"owner": "nobody@example.com"}, "owner"),
        ({"more": 1}, "more"),
    ],
)
def test_key_that_may_not_be_made_is_refused_by_field(ann, bob, fields, wrong):
    before = state()
    answer = ask("POST", "/api-key", ann.key, {"name": "ci", "scopes": [READ]} | fields)
    problem(answer, 400)
    assert [error["field"] for error in answer.json()["errors"]] == [wrong]
    assert state() == before


def test_superuser_makes_keys_for_others_and_revokes_them(ann):
    root = owner("root@example.com", is_superuser=True)
    made = ask("POST", "/api-key", root.key, {"name": "ci", "scopes": [READ], "owner": "ANN@example.com"}).json()
    assert made["owner"] == "ann@example.com"
    assert ask("GET", f"/timer/{ann.timer}", made["key"]).status_code == 200
    assert ask("DELETE", f"/api-key/{made['id']}", root.key).status_code == 204
    answer = ask("POST", "/api-key", root.key, {"name": "ci", "scopes": [READ], "owner": "nobody@example.com"})
    assert "no active user" in problem(answer, 400)


# Deleted users


def test_timers_of_a_deleted_user_are_cancelled_and_stay_that_user_s(ann, bob, settings, receiver):
    new = services.NewTimer(
        web_url=receiver.url("/"),
        delay_seconds=0,
        owner_id=ann.user.pk,
        options={"callback_url": receiver.url("/done")},
    )
    services.schedule([new])
    assert len(call_all(receiver)) == 1
    callback = Timer.objects.get(outcome_of__isnull=False)
    (paused,) = services.schedule([services.NewTimer(web_url=URL, delay_seconds=60, owner_id=ann.user.pk)])
    services.pause(paused.timer_id)
    ann.user.delete()
    operation = BulkOperation.objects.get(action="cancel", dry_run=False)
    services.step_bulk(operation)
    assert [Delivery.objects.get(timer=pk).state for pk in (ann.timer, paused.timer_id, callback.pk)] == [
        "cancelled"
    ] * 3
    assert Delivery.objects.get(timer=bob.timer).state == "scheduled"
    assert set(Timer.objects.exclude(pk=bob.timer).values_list("owner", flat=True)) == {ann.user.pk}
    assert not SigningSecret.objects.filter(owner=ann.user.pk).exists()
    assert ask("GET", f"/timer/{ann.timer}", ann.key).status_code == 401
    settings.WEBTASK_API_AUTH = "open"
    assert ask("GET", f"/timer/{ann.timer}", None).status_code == 404
    assert ask("GET", "/timer", None).json()["timers"] == []


def test_user_with_as_many_bulk_operations_as_allowed_is_deleted_all_the_same(ann, settings):
    settings.WEBTASK_LIMIT_BULK_OPEN = 1
    assert ask("POST", "/timer/bulk", ann.key, {"action": "cancel", "filter": {}}).status_code == 409
    ann.user.delete()
    assert BulkOperation.objects.filter(owner=ann.user.pk, action="cancel", dry_run=False).count() == 1
    assert ask("GET", "/timer", ann.key).status_code == 401


def test_timer_that_was_being_made_while_its_owner_was_deleted_is_cancelled_too(ann):
    ann.user.delete()
    operation = BulkOperation.objects.get(action="cancel", dry_run=False)
    assert services.step_bulk(operation)
    (late,) = services.schedule([services.NewTimer(web_url=URL, delay_seconds=60, owner_id=ann.user.pk)])
    assert services.step_bulk(BulkOperation.objects.get(pk=operation.pk))
    assert Delivery.objects.get(timer=late.timer_id).state == "cancelled"
    # A minute later it has ended.
    BulkOperation.objects.update(created_at="2026-01-01T00:00:00Z")
    assert not services.step_bulk(BulkOperation.objects.get(pk=operation.pk))
    assert BulkOperation.objects.get(pk=operation.pk).error == ""


def test_other_bulk_operation_of_a_deleted_user_does_not_go_on(ann):
    assert ask("POST", "/timer/bulk", ann.key, {"action": "replay", "filter": {}}).status_code == 202
    ann.user.delete()
    operation = BulkOperation.objects.get(action="replay")
    assert not services.step_bulk(operation)
    assert BulkOperation.objects.get(pk=operation.pk).error == "Its owner was deleted."


# Open, for this machine


def test_open_api_takes_a_key_too_and_refuses_a_wrong_one(ann, settings):
    settings.WEBTASK_API_AUTH = "open"
    assert ask("GET", "/timer", None).json()["timers"] == []
    assert len(ask("GET", "/timer", ann.key).json()["timers"]) == 1
    assert ask("POST", "/timer", key_of(ann.user, READ), {"seconds": 1, "web_url": URL}).status_code == 403
    assert ask("GET", "/timer", "wts_live_" + "a" * 40).status_code == 401
    # Keys are made by somebody who has a name.
    assert "`admin`" in problem(ask("GET", "/api-key", None), 401)
    assert ask("GET", f"/timer/{ann.timer}", None).status_code == 404


def test_open_api_lets_a_superuser_s_session_manage_keys_and_not_another_s(settings):
    settings.WEBTASK_API_AUTH = "open"
    client = Client()
    client.force_login(User.objects.create_user("me@example.com", "x", is_staff=True))
    assert client.get("/api-key").status_code == 403
    client.force_login(User.objects.create_superuser("root@example.com", "x"))
    assert client.get("/api-key").status_code == 200


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://testserver:8001"},
    {"Origin": "https://testserver"},
    {"Origin": "http://[nonsense"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
]
OWN = [
    {},
    {"Origin": "http://testserver"},
    {"Origin": "http://testserver:80"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("headers", FOREIGN)
def test_page_of_another_origin_makes_nothing_at_an_open_api(settings, headers):
    settings.WEBTASK_API_AUTH = "open"
    before = state()
    for path in ("/timer", ROOT + "/timer"):
        answer = send(Client(), "POST", path, f"seconds=1&web_url={URL}", content_type=FORM, **headers)
        assert "another origin" in problem(answer, 403)
    assert send(Client(), "DELETE", f"/timer/{uuid.uuid4()}", **headers).status_code == 403
    assert state() == before
    assert Client().get("/timer", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", OWN)
def test_programs_and_own_pages_use_an_open_api(settings, headers):
    settings.WEBTASK_API_AUTH = "open"
    assert send(Client(), "POST", "/timer", f"seconds=1&web_url={URL}", content_type=FORM, **headers).status_code == 201


@pytest.mark.parametrize("mode", ["open", "key"])
def test_document_says_that_a_key_is_taken(settings, mode):
    settings.WEBTASK_API_AUTH = mode
    found = document()
    scheme = found["components"]["securitySchemes"]["apiKey"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert found["security"] == ([{"apiKey": []}, {}] if mode == "open" else [{"apiKey": []}])
    operations = [one for item in found["paths"].values() for one in item.values()]
    assert not [one for one in operations if "security" in one]
    if mode == "key":
        for one in operations:
            assert {"401", "403"} <= one["responses"].keys()
            assert "scope" in one["responses"]["403"]["description"]
