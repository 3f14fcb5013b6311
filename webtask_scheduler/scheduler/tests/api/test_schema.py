"""The OpenAPI document is valid, complete, and true of what the API really answers."""

import json
import re
import uuid
from datetime import timedelta

import pytest
import yaml
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import OperationalError
from django.test import Client, override_settings
from django.utils import timezone
from drf_spectacular.validation import validate_schema
from jsonschema import Draft202012Validator

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Attempt, BulkOperation, Delivery, ErrorKind, State
from webtask_scheduler.scheduler.services import idempotency
from webtask_scheduler.scheduler.tests.support.api import bearer
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

PREFIX = "/api/v1/scheduler"
PATH = f"{PREFIX}/timer"
# What a call carries that another call led to.
LOOP = {"webtask-timer-id": "01a208fa-e8fb-7670-94ef-a8fa0c17a138", "webtask-depth": "1"}
GOOD = {"hours": 0, "minutes": 0, "seconds": 5, "web_url": "http://a.example/"}
JSON = "application/json"
PROBLEM = "application/problem+json"

db = pytest.mark.django_db


@pytest.fixture(scope="module")
def document():
    answer = Client().get("/api/schema", headers={"accept": JSON})
    assert answer.status_code == 200
    return json.loads(answer.content)


@pytest.fixture
def create(document):
    return document["paths"][PATH]["post"]


@pytest.fixture
def retrieve(document):
    return document["paths"][PATH + "/{id}"]["get"]


def assert_valid(document, schema, value):
    Draft202012Validator(
        schema | {"components": document["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
    ).validate(value)


def assert_documented(document, operation, answer):
    """Assert that the operation's description has this status and media type, and a schema that the body meets."""
    content = operation["responses"][str(answer.status_code)]["content"]
    assert answer["Content-Type"] in content
    assert_valid(document, content[answer["Content-Type"]]["schema"], json.loads(answer.content))


def contents(operation):
    """Yield each request and response body that an operation describes."""
    yield from operation["requestBody"]["content"].items() if "requestBody" in operation else ()
    for response in operation["responses"].values():
        yield from response.get("content", {}).items()


def test_the_document_validates_without_a_warning(tmp_path):
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))


OPERATIONS = {
    "/timer": {"get": "timer_list", "post": "timer_create"},
    "/timer/batch": {"post": "timer_batch_create"},
    "/timer/preview": {"post": "timer_preview"},
    "/timer/bulk": {"get": "timer_bulk_list", "post": "timer_bulk_create"},
    "/timer/bulk/{id}": {"get": "timer_bulk_retrieve"},
    "/timer/bulk/{id}/stop": {"post": "timer_bulk_stop"},
    "/timer/{id}": {"get": "timer_retrieve", "patch": "timer_partial_update", "delete": "timer_destroy"},
    "/timer/{id}/run": {"post": "timer_run"},
    "/timer/{id}/try-now": {"post": "timer_try_now"},
    "/timer/{id}/pause": {"post": "timer_pause"},
    "/timer/{id}/resume": {"post": "timer_resume"},
    "/timer/{id}/replay": {"post": "timer_replay"},
    "/timer/{id}/dismiss": {"post": "timer_dismiss"},
    "/timer/{id}/deliveries": {"get": "timer_deliveries_list"},
    "/timer/{id}/attempts": {"get": "timer_attempts_list"},
    "/audit": {"get": "audit_list"},
    "/signing-secret": {"get": "signing_secret_list", "post": "signing_secret_create"},
    "/signing-secret/{id}": {"delete": "signing_secret_destroy"},
    "/notification-channel": {"get": "notification_channel_list", "post": "notification_channel_create"},
    "/notification-channel/{id}": {
        "patch": "notification_channel_partial_update",
        "delete": "notification_channel_destroy",
    },
    "/notification-channel/{id}/test": {"post": "notification_channel_test"},
    "/notification": {"get": "notification_list"},
    "/api-key": {"get": "api_key_list", "post": "api_key_create"},
    "/api-key/{id}": {"delete": "api_key_destroy"},
}


def test_it_is_openapi_3_1_of_all_operations(document, create, retrieve):
    validate_schema(document)
    assert document["openapi"].startswith("3.1")
    assert {
        path.removeprefix("/api/v1/scheduler"): {
            method: operation["operationId"].removeprefix("v1_scheduler_") for method, operation in item.items()
        }
        for path, item in document["paths"].items()
    } == OPERATIONS
    assert create["operationId"] == "v1_scheduler_timer_create"
    assert retrieve["operationId"] == "v1_scheduler_timer_retrieve"
    assert create["tags"] == retrieve["tags"] == ["Timers"]
    assert create["summary"]
    assert retrieve["summary"]


def test_operations_are_grouped_by_what_a_person_wants_the_two_of_every_day_first(document):
    operations = sorted(
        (operation for item in document["paths"].values() for operation in item.values()),
        key=lambda operation: operation["x-order"],
    )
    first = [operation["operationId"].removeprefix("v1_scheduler_") for operation in operations[:3]]
    assert first == ["timer_create", "timer_retrieve", "timer_list"]
    groups = [tag["name"] for tag in document["tags"]]
    assert groups == ["Timers", "Schedules", "Many at once", "History", "Secrets", "Notifications", "Operations"]
    assert [groups.index(*operation["tags"]) for operation in operations] == sorted(
        groups.index(*operation["tags"]) for operation in operations
    )
    new = document["components"]["schemas"]["NewTimer"]
    assert list(new["properties"])[:4] == ["web_url", "seconds", "minutes", "hours"]
    assert "services" not in json.dumps(document)


def test_smallest_example_is_first_and_calls_the_demo_receiver_only_where_there_is_one(client):
    def examples():
        document = json.loads(client.get("/api/schema", headers={"accept": JSON}).content)
        return document["paths"][PATH]["post"]["requestBody"]["content"][JSON]["examples"].values()

    first, *others = [example["value"] for example in examples()]
    assert first == {"web_url": "http://testserver/demo/receiver", "seconds": 5}
    assert {other["web_url"] for other in others} == {first["web_url"]}
    assert all(len(other) > len(first) for other in others)
    for name, value in (("WEBTASK_DEMO_RECEIVER", ""), ("WEBTASK_API_AUTH", "key")):
        with override_settings(**{name: value}):
            assert all(example["value"]["web_url"].startswith("https://example.com/") for example in examples())


def test_it_is_served_with_and_without_a_slash_as_yaml_too(client, document):
    for path in ("/api/schema", "/api/schema/"):
        answer = client.get(path)
        assert answer.status_code == 200
        # By the reader that is written in C, which takes a tenth of the time.
        assert yaml.load(answer.content, yaml.CSafeLoader) == document
    for path in ("/api/docs", "/api/docs/"):
        assert client.get(path).status_code == 200


def test_the_page_names_no_other_origin(client):
    page = client.get("/api/docs").content.decode()
    assert "swagger-ui-bundle.js" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_every_operation_has_examples_and_each_is_valid(document, create, retrieve):
    webhook = document["webhooks"]["timerDue"]["post"]
    for operation in (create, retrieve, webhook):
        found = 0
        for media_type, content in contents(operation):
            if media_type in (JSON, PROBLEM):
                assert content["examples"], (operation["operationId"], media_type)
            for example in content.get("examples", {}).values():
                assert_valid(document, content["schema"], example["value"])
                found += 1
        assert found


def test_examples_of_requests_are_accepted_as_they_stand(create):
    for example in create["requestBody"]["content"][JSON]["examples"].values():
        assert "web_url" in example["value"]


@db
def test_creating_from_each_example_works(client, create):
    for example in create["requestBody"]["content"][JSON]["examples"].values():
        assert client.post(PATH, example["value"], content_type=JSON).status_code == 201


def test_forms_are_described_beside_json(create):
    assert create["requestBody"]["content"].keys() == {
        JSON,
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    }


def test_the_outgoing_call_is_described(document):
    webhook = document["webhooks"]["timerDue"]["post"]
    assert {parameter["name"] for parameter in webhook["parameters"]} == {
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
        *("webtask-timer-id", "webtask-depth", "webtask-due-at", "webtask-occurrence", "webtask-attempt"),
        "webtask-lateness-ms",
    }
    schema = webhook["requestBody"]["content"][JSON]["schema"]
    body = {"task_id": str(uuid.uuid4()), "due_at": "2026-01-05T09:00:05.123456+00:00", "attempt": 1}
    assert_valid(document, schema, body)
    assert set(schema["required"]) == schema["properties"].keys() == body.keys()


@each(
    ("value", "valid"),
    [
        (GOOD, True),
        ({"seconds": 0, "web_url": "HTTPS://a.example"}, True),
        ({"hours": 87_600, "web_url": "http://a"}, True),
        ({"web_url": "http://a"}, False),
        ({"seconds": 1}, False),
        ({"seconds": 1, "minutes": 1}, False),
        ({"seconds": -1, "web_url": "http://a"}, False),
        ({"seconds": 1.5, "web_url": "http://a"}, False),
        ({"seconds": "1", "web_url": "http://a"}, False),
        ({"seconds": True, "web_url": "http://a"}, False),
        ({"seconds": None, "web_url": "http://a"}, False),
        ({"seconds": 315_360_001, "web_url": "http://a"}, False),
        ({"seconds": 1, "web_url": "ftp://a"}, False),
        ({"seconds": 1, "web_url": "http://a b"}, False),
        ({"seconds": 1, "web_url": "http://a/" + "q" * 2048}, False),
        ({"seconds": 1, "web_url": "http://a", "more": 1}, False),
        ([], False),
    ],
)
@db
def test_the_described_request_is_what_is_accepted(client, document, create, value, valid):
    schema = create["requestBody"]["content"][JSON]["schema"] | {"components": document["components"]}
    assert Draft202012Validator(schema).is_valid(value) == valid
    answer = client.post(PATH, json.dumps(value), content_type=JSON)
    assert answer.status_code == (201 if valid else 400)
    assert_documented(document, create, answer)


@db
def test_real_answers_are_as_described(client, document, create, retrieve):
    answer = client.post(PATH, GOOD, content_type=JSON)
    assert_documented(document, create, answer)
    assert set(answer.json()) == set(document["components"]["schemas"]["Timer"]["required"])
    assert create["responses"]["201"]["headers"].keys() == {"Location", "Idempotency-Replayed"}
    where = answer["Location"]
    assert_documented(document, retrieve, client.get(where))

    delivery = Delivery.objects.get()
    for number, kind in enumerate(["", *ErrorKind.values], 1):
        Attempt.objects.create(
            delivery=delivery,
            number=number,
            meant_for=delivery.due_at,
            started_at=delivery.due_at + timedelta(milliseconds=7),
            duration_ms=None if kind == ErrorKind.LOST else 52,
            status_code=None if kind else 200,
            error=kind,
            message="Something." if kind else "",
        )
    Delivery.objects.update(attempts=number, started_at=delivery.due_at)
    for state in (State.SCHEDULED, State.PAUSED):
        Delivery.objects.update(state=state)
        assert_documented(document, retrieve, client.get(where))
    for state in (State.CLAIMED, State.RUNNING):
        Delivery.objects.update(state=state, lease_token=uuid.uuid4(), lease_expires_at=delivery.due_at)
        assert_documented(document, retrieve, client.get(where))
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.MISSED):
        Delivery.objects.update(state=state, lease_token=None, lease_expires_at=None, finished_at=delivery.due_at)
        answer = client.get(where)
        assert_documented(document, retrieve, answer)
        assert len(answer.json()["attempts"]) == number


LATE = {"due_at": "2026-01-01T00:00:00Z", "on_missed": "reject", "web_url": "http://a.example/"}


def in_flight(*_, **__):
    raise idempotency.KeyInFlightError


@db
def test_every_described_error_is_real_and_as_described(document, create, retrieve, monkeypatch, settings):
    client = Client(enforce_csrf_checks=True)
    seen = [
        client.post(PATH, {}, content_type=JSON),
        client.generic("POST", PATH, "[", JSON),
        client.generic("POST", PATH, "", JSON, CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked"),
        client.generic("POST", PATH, "x" * (4 * 1024 * 1024 + 1), JSON),
        client.generic("POST", PATH, "x", "text/plain"),
        client.post(PATH, LATE, content_type=JSON),
        client.post(PATH, GOOD, content_type=JSON, headers=LOOP),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(services, "schedule_once", in_flight)
        seen.append(client.post(PATH, GOOD, content_type=JSON, headers={"Idempotency-Key": "a"}))

    def away(*_, **__):
        raise OperationalError

    looked = [client.get(PATH + "/x"), client.get(f"{PATH}/{uuid.uuid4()}")]
    with monkeypatch.context() as patch:
        patch.setattr(services, "schedule", away)
        patch.setattr(Delivery.objects, "filter", away)
        seen.append(client.post(PATH, GOOD, content_type=JSON))
        looked.append(client.get(f"{PATH}/{uuid.uuid4()}"))
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.1
    client.get(PATH, REMOTE_ADDR="192.0.2.77")
    seen.append(client.post(PATH, GOOD, content_type=JSON, REMOTE_ADDR="192.0.2.77"))
    looked.append(client.get(f"{PATH}/{uuid.uuid4()}", REMOTE_ADDR="192.0.2.77"))
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0
    client.force_login(get_user_model().objects.create_user("me@example.com", "secret"))
    seen.append(client.post(PATH, GOOD, content_type=JSON))
    for operation, answers in ((create, seen), (retrieve, looked)):
        for answer in answers:
            assert_documented(document, operation, answer)
        described = {status for status in operation["responses"] if status >= "4"}
        assert described == {str(answer.status_code) for answer in answers}
        for status in described:
            (example,) = operation["responses"][status]["content"][PROBLEM]["examples"].values()
            assert example["value"]["status"] == int(status)


class Asker:
    """Asks operations, and sees that each answer is as described."""

    # Tried above; of the transport, not of an operation.
    elsewhere = {"403", "411", "413", "415", "429", "503"}

    def __init__(self, client, document):
        self.client, self.document = client, document
        self.seen = {}

    def __call__(self, method, path, body=None, *, where=None, **headers):
        raw = json.dumps(body) if body is not None else ""
        answer = self.client.generic(method, PREFIX + path, raw, JSON, headers=headers)
        operation = self.document["paths"][PREFIX + (where or path).partition("?")[0]][method.lower()]
        response = operation["responses"][str(answer.status_code)]
        if answer.status_code == 204:
            assert "content" not in response
        else:
            assert_documented(self.document, operation, answer)
        given = {name for name in ("Location", "Idempotency-Replayed") if name in answer}
        assert given <= response.get("headers", {}).keys()
        left = operation["responses"].keys() - self.elsewhere
        self.seen.setdefault(operation["operationId"].removeprefix("v1_scheduler_"), left).discard(
            str(answer.status_code)
        )
        return answer

    @property
    def unseen(self):
        """What the operations that were asked are said to answer too."""
        return {name: left for name, left in self.seen.items() if left}


@pytest.fixture
def ask(client, document):
    return Asker(client, document)


URL = GOOD["web_url"]
CRON = {"cron": "@daily", "timezone": "Asia/Tokyo", "ends_at": "2030-01-01T00:00:00Z", "max_occurrences": 9}
EVERYTHING = GOOD | {
    "name": "n",
    "labels": {"a": "b"},
    "metadata": {"a": [None]},
    "method": "PUT",
    "headers": {"X": "y"},
    "body": {"b": 1},
    "content_type": "a/b",
    "timeout_seconds": 2.5,
    "follow_redirects": True,
    "success_statuses": [200, "3xx"],
    "retry": {"backoff": "list", "delays_seconds": [1, 2.5]},
    "on_missed": "skip",
    "max_lateness": "PT1M",
    "callback_url": "http://a.example/ok",
    "failure_callback_url": "http://a.example/no",
}
# It takes two requests at once: see test_idempotency.
TWO = "409"


@db
def test_real_answers_to_creating_and_listing_are_as_described(ask):
    for body in (EVERYTHING, CRON | {"web_url": URL}, {"every": "PT1M", "web_url": URL}, {"seconds": "x"}):
        ask("POST", "/timer", body)
    for body in (GOOD, GOOD, EVERYTHING):
        ask("POST", "/timer", body, **{"Idempotency-Key": "a"})
    ask("POST", "/timer/batch", {"timers": [EVERYTHING, CRON | {"web_url": URL}]})
    ask("POST", "/timer/batch", {"timers": [EVERYTHING, {"seconds": "x"}, LATE], "partial": True})
    ask("POST", "/timer/batch", {"timers": [{}]})
    ask("POST", "/timer/batch", {"timers": [LATE]})
    for where, body in (("/timer", GOOD), ("/timer/batch", {"timers": [GOOD]})):
        ask("POST", where, body, **LOOP)
    ask("POST", "/timer", GOOD, **{"webtask-timer-id": LOOP["webtask-timer-id"]})
    page = ask("GET", "/timer?limit=1").json()
    ask("GET", f"/timer?limit=2&cursor={page['next']}")
    ask("GET", "/timer?limit=x")
    assert ask("GET", "/timer?limit=2&count=true").json()["count"] == {"timers": 8, "more": False}
    ask("POST", "/timer/preview", CRON)
    ask("POST", "/timer/preview", {})
    assert ask.unseen == {"timer_create": {TWO}, "timer_batch_create": {TWO}}


@db
def test_real_answers_about_one_timer_are_as_described(ask):
    id_ = ask("POST", "/timer", GOOD).json()["task_id"]

    def one(method, more="", body=None, *, id_=id_, **headers):
        where = "/timer/{id}" + more.partition("?")[0]
        return ask(method, f"/timer/{id_}{more}", body, where=where, **headers)

    one("GET")
    one("PATCH", "", EVERYTHING | {"labels": {"a": None, "c": "d"}, "name": None})
    one("PATCH", "", {"seconds": -1})
    one("PATCH", "", LATE | {"max_lateness": None})
    one("PATCH", "", {"seconds": 5}, **LOOP)
    one("POST", "/replay")
    one("POST", "/run", **LOOP)
    one("POST", "/replay", **LOOP)
    one("POST", "/try-now")
    one("POST", "/try-now", **LOOP)
    one("POST", "/dismiss")
    for action in ("/pause", "/resume", "/run", "/replay", "/try-now", "/dismiss"):
        one("POST", action, {"x": 1})
    for action in ("/pause", "/resume", "/run"):
        one("POST", action)
    for _ in range(2):
        one("POST", "/run", **{"Idempotency-Key": "a"})
    other = ask("POST", "/timer", GOOD).json()["task_id"]
    for action in ("/run", "/replay"):
        one("POST", action, id_=other, **{"Idempotency-Key": "a"})
    delivery = Delivery.objects.filter(timer=id_).latest("number")
    Delivery.objects.filter(pk=delivery.pk).update(state="failed", finished_at=timezone.now())
    one("POST", "/dismiss", {})
    one("POST", "/replay", {})
    Attempt.objects.create(delivery=delivery, number=1, meant_for=delivery.due_at, started_at=delivery.due_at)
    for kind in ("/deliveries", "/attempts"):
        one("GET", f"{kind}?limit=1")
        one("GET", f"{kind}?cursor=x")
    Delivery.objects.filter(pk=delivery.pk).update(next_attempt_at=timezone.now() + timedelta(hours=1))
    one("POST", "/try-now")
    one("DELETE")
    one("PATCH", "", {"seconds": 5})
    for action in ("/pause", "/resume", "/run"):
        one("POST", action)
    for method, more in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("GET", "/deliveries"), ("GET", "/attempts")):
        one(method, more, {} if method == "PATCH" else None, id_=uuid.uuid4())
    for action in ("/pause", "/resume", "/replay", "/run", "/try-now", "/dismiss"):
        one("POST", action, id_="x")
    left = ask.unseen
    left.pop("timer_create")
    assert left == {}


@db
def test_real_answers_about_bulk_operations_and_secrets_are_as_described(ask):
    body = {"action": "pause", "filter": {"status": ["scheduled"], "label": "a=b"}, "dry_run": True}
    bulk = ask("POST", "/timer/bulk", body).json()
    ask("POST", "/timer/bulk", {"action": "x"})
    ask("POST", "/timer/bulk", {"action": "replay", "filter": {}}, **LOOP)
    for dry_run in (True, True, False):
        ask("POST", "/timer/bulk", body | {"dry_run": dry_run}, **{"Idempotency-Key": "a"})
    ask("GET", f"/timer/bulk/{bulk['bulk_id']}", where="/timer/bulk/{id}")
    ask("GET", "/timer/bulk/x", where="/timer/bulk/{id}")
    ask("POST", "/timer/bulk", body | {"filter": {"status": "failed"}})
    for query in ("", "?limit=1", "?cursor=x"):
        ask("GET", f"/timer/bulk{query}", where="/timer/bulk")
    for body in (None, {}, {"x": 1}):
        ask("POST", f"/timer/bulk/{bulk['bulk_id']}/stop", body, where="/timer/bulk/{id}/stop")
    ask("POST", "/timer/bulk/x/stop", where="/timer/bulk/{id}/stop")
    gone = User.objects.create_user("gone@example.com", deleted_at=timezone.now())
    kept = BulkOperation.objects.create(owner=gone, action="cancel", filter={})
    root = bearer(User.objects.create_superuser("root@example.com"))
    ask("POST", f"/timer/bulk/{kept.pk}/stop", where="/timer/bulk/{id}/stop", **root)
    by_key = bearer(User.objects.create_user("ann@example.com"))
    for query in ("", "?cursor=x"):
        ask("GET", f"/audit{query}", where="/audit", **by_key)
    ask("GET", "/audit")
    for _ in range(6):
        ask("POST", "/signing-secret")
    ask("POST", "/signing-secret", {"secret": "x"})
    secret = ask("GET", "/signing-secret").json()["secrets"][0]
    for _ in range(2):
        ask("DELETE", f"/signing-secret/{secret['id']}", where="/signing-secret/{id}")
    assert ask.unseen == {"timer_bulk_create": {TWO}}


@db
def test_real_answers_about_notifications_are_as_described(ask):
    new = {"kind": "slack", "address": "http://a.example/services/x", "label": "a=b", "failures_in_row": 3}
    channel = ask("POST", "/notification-channel", new, **{"Idempotency-Key": "a"}).json()
    assert channel["address"] == "http://a.example/***"
    for body in (new, new | {"name": "Ops"}):
        ask("POST", "/notification-channel", body, **{"Idempotency-Key": "a"})
    for body in ({}, {"kind": "slack", "address": "x"}, new | {"failures_in_row": 1}, new | {"x": 1}):
        assert ask("POST", "/notification-channel", body).status_code == 400
    for number in range(20):
        ask("POST", "/notification-channel", new | {"name": str(number)})
    assert len(ask("GET", "/notification-channel").json()["channels"]) == 20
    one, where = f"/notification-channel/{channel['id']}", "/notification-channel/{id}"
    changed = ask("PATCH", one, {"name": "Ops", "label": None, "paused": True}, where=where).json()
    assert (changed["name"], changed["label"], changed["paused"]) == ("Ops", None, True)
    assert changed["failures_in_row"] == 3
    for language in ("ar", None):
        assert ask("PATCH", one, {"language": language}, where=where).json()["language"] == language
    ask("PATCH", one, {"language": "tlh"}, where=where)
    # Nothing is sent while it is paused.
    ask("POST", f"{one}/test", where=f"{where}/test")
    assert ask("PATCH", one, {"paused": False}, where=where).json()["paused"] is False
    for path, body in ((one, {"kind": "mail"}), ("/notification-channel/x", {})):
        ask("PATCH", path, body, where=where)
    for path, body in ((one, None), (one, None), (one, {"x": 1}), ("/notification-channel/0", None)):
        ask("POST", f"{path}/test", body, where=f"{where}/test")
    ask("POST", f"{one}/test", where=f"{where}/test", **LOOP)
    for query in ("", "?limit=1", "?cursor=x"):
        ask("GET", f"/notification{query}", where="/notification")
    for _ in range(2):
        ask("DELETE", one, where=where)
    assert ask("GET", "/notification").json()["notifications"][0]["channel_id"] is None
    assert ask.unseen == {}


def test_an_error_of_the_document_itself_is_json_too(client):
    answer = client.get("/api/schema?format=nonsense")
    assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM)
    assert json.loads(answer.content)["status"] == 404


def test_page_of_the_api_sets_each_variable_of_its_examples_before_it_is_used():
    page = (settings.BASE_DIR / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```console$(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    known, used = set(), set()
    for line in "".join(blocks).splitlines():
        for name in re.findall(r"\$([A-Z]+)", line):
            assert name in known, line
            used.add(name)
        known |= set(re.findall(r"^\$ ([A-Z]+)=", line))
    assert used == known
    assert len(used) > 5
