"""What is given as a secret is stored encrypted, never given back, and arrives."""

import base64
import json
import re

import pytest
import standardwebhooks
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.urls import reverse

from webtask_scheduler import vault
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Attempt, Delivery, EncryptionKey, IdempotencyKey, SigningSecret, Timer
from webtask_scheduler.scheduler.tests.support.acting import put_back
from webtask_scheduler.scheduler.tests.support.api import URL, call_all, create, fields_of, path, post, send, stored
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.leaks import tables_with

db = pytest.mark.django_db
# One for each place, so that a failure says which one leaked.
MARKS = {place: f"{place}-m4rk" for place in ("user", "header", "body", "callback", "key", "edited")}
OWN_SECRET = "whsec_" + base64.b64encode(b"m4rk-of-a-signing-secret").decode()


def given(receiver, **more):
    """Return a timer with all kinds of secrets."""
    with_user = receiver.url("/echo").replace("http://", f"http://{MARKS['user']}:pw@")
    return {
        "web_url": with_user,
        "seconds": 0,
        "method": "PUT",
        "headers": {"Authorization": f"Bearer {MARKS['header']}", "X-Key": MARKS["header"]},
        "body": {"card": MARKS["body"]},
        "sensitive": True,
        "callback_url": receiver.url("/done").replace("http://", f"http://{MARKS['callback']}@"),
    } | more


def patch(client, timer, body):
    return send(client, "PATCH", path(timer), body)


@db
def test_nothing_secret_is_in_plain_text_after_the_life_of_a_timer(client, admin_client, receiver, caplog):
    assert post(client, {"secret": OWN_SECRET}, "/signing-secret").status_code == 201
    answers = [post(client, given(receiver), **{"Idempotency-Key": "once"})]
    # The answer that is kept, and its row.
    answers.append(post(client, given(receiver), **{"Idempotency-Key": "once"}))
    assert answers[1]["Idempotency-Replayed"] == "true"
    timer = answers[0].json()
    (call,) = call_all(receiver)
    assert call.headers["Authorization"] == f"Bearer {MARKS['header']}"
    assert call.headers["X-Key"] == MARKS["header"]
    assert call.json == {"card": MARKS["body"]}
    standardwebhooks.Webhook(OWN_SECRET).verify(call.body, call.headers)
    # The callback reports the answer, which repeats all of it, to whom its owner chose.
    (callback,) = call_all(receiver)
    assert MARKS["body"] in callback.json["excerpt"]
    assert callback.headers["Authorization"] == "Basic " + base64.b64encode(f"{MARKS['callback']}:".encode()).decode()
    assert Delivery.objects.filter(state="succeeded").count() == 2
    # The next one is edited, retried, replayed and looked at.
    again = post(client, given(receiver, web_url=receiver.url("/status/500"), retry={"max_attempts": 1})).json()
    edit = {"headers": {"X-Key": MARKS["edited"]}, "name": "n"}
    answers.append(patch(client, again, edit))
    assert answers[-1].status_code == 200, answers[-1].content
    call_all(receiver)
    answers.append(send(client, "POST", path(again, "/replay")))
    assert call_all(receiver)[0].headers["X-Key"] == MARKS["edited"]

    assert tables_with("m4rk", *(base64.b64encode(mark.encode()).decode()[:-4] for mark in MARKS.values())) == []
    assert set(Attempt.objects.values_list("excerpt", flat=True)) == {""}

    callback_row = Timer.objects.exclude(outcome_of=None).first()
    callback_timer = {"task_id": callback_row.pk}
    for one in (timer, again, callback_timer):
        answers += [client.get(path(one)), client.get(path(one, "/attempts")), client.get(path(one, "/deliveries"))]
    answers += [client.get("/timer"), client.get("/signing-secret"), client.get("/metrics")]
    pages = [
        reverse(f"admin:scheduler_{name}_changelist") for name in ("timer", "delivery", "attempt", "signingsecret")
    ]
    pages += [reverse("admin:scheduler_timer_change", args=[row.pk]) for row in Timer.objects.all()]
    pages += [reverse("admin:scheduler_delivery_change", args=[row.pk]) for row in Delivery.objects.all()]
    pages += [reverse("admin:scheduler_signingsecret_change", args=[SigningSecret.objects.get().pk])]
    pages += [reverse("admin:django_celery_beat_periodictask_changelist")]
    tasks = Timer.objects.exclude(periodic_task=None).values_list("periodic_task", flat=True)
    pages += [reverse("admin:django_celery_beat_periodictask_change", args=[task]) for task in tasks]
    answers += [admin_client.get(page, follow=True) for page in pages]
    for answer in answers:
        assert answer.status_code in (200, 201), (answer.status_code, answer.request["PATH_INFO"])
        assert "m4rk" not in answer.content.decode(), answer.request["PATH_INFO"]
    assert timer["headers"] == {"Authorization": "***", "X-Key": "***"}
    assert timer["body"] == "***"
    assert timer["web_url"] == receiver.url("/echo").replace("http://", "http://***@")
    assert timer["callback_url"] == receiver.url("/done").replace("http://", "http://***@")

    assert len(caplog.records) > 5
    assert "m4rk" not in caplog.text


@db
def test_body_that_is_not_sensitive_is_given_back_and_its_answer_kept(client, receiver):
    timer = create(client, web_url=receiver.url("/echo"), seconds=0, body="hello", headers={"X-A": "b"})
    assert (timer["body"], timer["headers"]) == ("hello", {"X-A": "***"})
    assert "sensitive" not in timer
    call_all(receiver)
    assert "hello" in Attempt.objects.get().excerpt


@db
@pytest.mark.parametrize(
    "body", [{"body": ["x" * 9000]}, {"body_base64": base64.b64encode(bytes(range(256))).decode()}]
)
def test_whole_answer_sent_back_changes_nothing(client, receiver, body):
    fields = given(receiver, seconds=60)
    del fields["body"]
    timer = create(client, **fields | body)
    before = Timer.objects.values_list("web_url", "options").get()
    same = {name: timer[name] for name in ("web_url", "method", "headers", "sensitive", "callback_url", *body)}
    assert same[next(iter(body))] == "***"
    assert patch(client, timer, same).status_code == 200
    # Not even encrypted anew.
    assert Timer.objects.values_list("web_url", "options").get() == before
    # Nor by one that also promises another moment.
    assert patch(client, timer, same | {"seconds": 0}).status_code == 200
    put_back(Timer.objects.get())
    (call,) = call_all(receiver)
    assert call.headers["X-Key"] == MARKS["header"]
    assert call.body == (
        base64.b64decode(body["body_base64"]) if "body_base64" in body else json.dumps(body["body"]).encode()
    )


@db
def test_part_of_the_headers_is_changed_and_the_rest_kept(client, receiver):
    timer = create(client, web_url=receiver.url("/x"), headers={"A": "1", "B": "2", "C": "3"})
    shown = patch(client, timer, {"headers": {"B": "two", "C": None, "D": "4"}, "seconds": 0}).json()
    assert shown["headers"] == {"A": "***", "B": "***", "D": "***"}
    put_back(Timer.objects.get())
    (call,) = call_all(receiver)
    assert {name: call.headers.get(name) for name in "ABCD"} == {"A": "1", "B": "two", "C": None, "D": "4"}


@db
@each(
    ("body", "field"),
    [
        ({"headers": {"X-A": "***"}}, "headers"),
        ({"web_url": "https://***@a.example/"}, "web_url"),
        ({"callback_url": "https://***@a.example/"}, "callback_url"),
        ({"sensitive": True, "body": "***"}, "body"),
    ],
)
def test_mask_in_a_new_timer_is_refused(client, body, field):
    fields = {"seconds": 5, "web_url": URL} | body
    assert fields_of(post(client, fields)) == [field]
    assert fields_of(post(client, {"timers": [fields]}, "/timer/batch")) == [f"timers.0.{field}"]
    assert not any(stored())


@db
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"headers": {"other": "***"}}, "headers"),
        ({"web_url": "http://evil.example/"}, "headers"),
        ({"web_url": "https://***@127.0.0.1/"}, "web_url"),
        ({"sensitive": False}, "body"),
        ({"callback_url": "http://***@evil.example/"}, "callback_url"),
    ],
)
def test_edit_that_would_reveal_a_secret_is_refused(client, receiver, change, field):
    timer = create(client, **given(receiver, seconds=60))
    before = Timer.objects.values().get()
    answer = patch(client, timer, change)
    assert field in fields_of(answer)
    assert "***" in answer.json()["detail"] or "not shown" in answer.json()["detail"]
    assert Timer.objects.values().get() == before


@db
def test_edit_to_another_server_takes_the_secrets_anew(client, receiver):
    timer = create(client, web_url=URL, headers={"X-A": "1"})
    answer = patch(client, timer, {"web_url": receiver.url("/x"), "headers": {"X-A": "2"}, "seconds": 0})
    assert answer.status_code == 200
    put_back(Timer.objects.get())
    assert call_all(receiver)[0].headers["X-A"] == "2"


@db
def test_sensitive_is_given_in_a_form_and_is_a_boolean(client):
    answer = post(
        client,
        f"web_url={URL}&seconds=5&body=hush&sensitive=true",
        content_type="application/x-www-form-urlencoded",
    )
    assert (answer.json()["sensitive"], answer.json()["body"]) == (True, "***")
    assert fields_of(post(client, {"web_url": URL, "seconds": 5, "sensitive": 1})) == ["sensitive"]


@db
def test_user_info_in_a_filter_is_not_stored_and_finds_its_timers(client):
    timer = create(client, web_url="http://me:m4rk@a.example/x")
    found = client.get("/timer", {"url_prefix": "http://me:m4rk@a.example/"}).json()["timers"]
    assert [one["task_id"] for one in found] == [timer["task_id"]]
    body = {"action": "pause", "filter": {"url_prefix": "http://me:m4rk@a.example/"}, "dry_run": True}
    answer = post(client, body, "/timer/bulk")
    assert answer.status_code == 202, answer.content
    assert "m4rk" not in answer.content.decode()
    assert tables_with("m4rk") == []


# What it costs


@db
def test_timer_with_secrets_takes_one_statement_as_a_plain_one(client, receiver, django_assert_num_queries):
    fields = given(receiver, seconds=60)
    post(client, fields)
    with django_assert_num_queries(1):
        assert post(client, fields).status_code == 201


@db
def test_plain_timer_is_neither_encrypted_nor_decrypted(client, receiver, monkeypatch):
    for name in ("seal", "unseal", "unseal_or_plain"):
        monkeypatch.delattr(vault, name)
    timer = create(client, web_url=receiver.url("/x"), body={"a": 1}, labels={"a": "b"}, seconds=0)
    assert len(call_all(receiver)) == 1
    assert client.get(path(timer)).json()["status"] == "succeeded"


@db
def test_timer_with_secrets_is_encrypted_once_and_decrypted_once_a_call(client, receiver, monkeypatch):
    counts = {"encrypt": 0, "decrypt": 0}
    for name, real in (("encrypt", Fernet.encrypt), ("decrypt", Fernet.decrypt)):

        def counted(self, *arguments, name=name, real=real):
            counts[name] += 1
            return real(self, *arguments)

        monkeypatch.setattr(Fernet, name, counted)
    fields = given(receiver)
    del fields["callback_url"]
    timer = create(client, **fields)
    assert counts == {"encrypt": 1, "decrypt": 0}
    call_all(receiver)
    client.get(path(timer))
    client.get("/timer")
    assert counts == {"encrypt": 1, "decrypt": 1}


# Keys


def key():
    return Fernet.generate_key().decode()


@db
def test_missing_key_fails_the_attempt_with_its_name_and_harms_no_other(client, receiver, settings):
    fields = given(receiver, every="PT1H", retry={"max_attempts": 1})
    del fields["seconds"]
    lost = create(client, **fields)
    put_back(Timer.objects.get())
    settings.WEBTASK_ENCRYPTION_KEYS, old = [key()], settings.WEBTASK_ENCRYPTION_KEYS
    create(client, web_url=receiver.url("/other"), headers={"X-A": "1"}, seconds=0)
    create(client, web_url=receiver.url("/plain"), seconds=0)
    assert sorted(call.path for call in call_all(receiver)) == ["/other", "/plain"]
    (attempt,) = Attempt.objects.filter(delivery__timer=lost["task_id"])
    assert (attempt.error, attempt.status_code) == ("protocol", None)
    assert re.fullmatch(
        r"A value is encrypted with the key [0-9a-f]{8}, which is not in WEBTASK_ENCRYPTION_KEYS\. Add that key"
        r" again\.",
        attempt.message,
    )
    # It goes on with its next moment, which finds the key again.
    shown = client.get(path(lost)).json()
    assert (shown["status"], shown["occurrence"]) == ("scheduled", 2)
    # Shown without a key, and an edit that needs it is answered 503.
    assert shown["headers"]["X-Key"] == "***"
    answer = patch(client, lost, {"headers": {"new": "1"}})
    assert (answer.status_code, answer["Content-Type"]) == (503, "application/problem+json")
    assert patch(client, lost, {"name": "still"}).status_code == 200
    settings.WEBTASK_ENCRYPTION_KEYS = [*settings.WEBTASK_ENCRYPTION_KEYS, *old]
    put_back(Timer.objects.get(pk=lost["task_id"]))
    assert [call.path for call in call_all(receiver)] == ["/echo"]


@db
def test_call_is_not_made_unsigned_where_the_key_of_its_signing_secret_is_missing(client, receiver, settings):
    assert post(client, {}, "/signing-secret").status_code == 201
    create(client, web_url=receiver.url("/x"), seconds=0)
    settings.WEBTASK_ENCRYPTION_KEYS = [key()]
    assert call_all(receiver) == []
    assert "which is not in WEBTASK_ENCRYPTION_KEYS" in Attempt.objects.get().message
    assert [secret["hint"] for secret in client.get("/signing-secret").json()["secrets"]] == ["…"]


@db
def test_missing_key_is_named_by_readyz_and_calls_status(client, settings, capsys):
    EncryptionKey.objects.create(id="0a1b2c3d", noted_at="2026-01-05T09:00:00Z")
    trouble = "WEBTASK_ENCRYPTION_KEYS lacks keys with which stored values are encrypted: 0a1b2c3d"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["keys"]) == (503, trouble)
    call_command("calls", "status")
    assert trouble in capsys.readouterr().out
    call_command("rotate_encryption", "--forget-missing")
    assert client.get("/readyz").json()["checks"]["keys"] == "ok"


# Idempotency


@db
def test_kept_answer_is_encrypted_and_outlives_a_new_key(client, settings):
    body = {"seconds": 5, "web_url": URL, "metadata": "m4rk"}
    first = post(client, body, **{"Idempotency-Key": "k"})
    row = IdempotencyKey.objects.get()
    assert vault.is_sealed(row.body)
    assert "m4rk" not in row.body
    settings.WEBTASK_ENCRYPTION_KEYS = [key(), *settings.WEBTASK_ENCRYPTION_KEYS]
    again = post(client, body, **{"Idempotency-Key": "k"})
    assert (again.json(), again["Idempotency-Replayed"]) == (first.json(), "true")
    assert post(client, body | {"seconds": 6}, **{"Idempotency-Key": "k"}).status_code == 422
    settings.WEBTASK_ENCRYPTION_KEYS = [key()]
    assert post(client, body, **{"Idempotency-Key": "k"}).status_code == 422


# Signing secrets for some hosts


def signed_by(call, *secrets):
    """Return which of the secrets a call is signed with."""
    found = []
    for secret in secrets:
        try:
            standardwebhooks.Webhook(secret).verify(call.body, call.headers)
        except standardwebhooks.WebhookVerificationError:
            continue
        found.append(secret)
    return found


@db
def test_call_is_signed_with_the_secrets_for_its_host_only(client, receiver):
    made = {
        name: post(client, {"hosts": hosts}, "/signing-secret").json()
        for name, hosts in {
            "this": ["b.example", "north.shop.example:8443"],
            "all": [],
            "other": ["a.example", "shop.example:8443", "north.shop.example"],
            "below": ["*.example:8443"],
            "others below": ["*.example", "*.hop.example:8443", "*.north.shop.example:8443"],
        }.items()
    }
    create(client, web_url=receiver.url("/x"), seconds=0)
    # No name of this machine has so many parts.
    Timer.objects.update(host="north.shop.example:8443")
    (call,) = call_all(receiver)
    expected = [made[name]["secret"] for name in ("this", "all", "below")]
    assert signed_by(call, *(one["secret"] for one in made.values())) == expected
    assert len(call.headers["webhook-signature"].split()) == 3


@db
@each(
    ("hosts", "stored_as"),
    [
        (["B.Example.", "https://a.example:443/x"], ["a.example", "b.example"]),
        (["*.Example.COM:8443", "*.example.com:8443"], ["*.example.com:8443"]),
        (["MÜNCHEN.example"], ["xn--mnchen-3ya.example"]),
        ([], []),
    ],
)
def test_hosts_are_kept_in_their_canonical_form(client, hosts, stored_as):
    assert post(client, {"hosts": hosts}, "/signing-secret").json()["hosts"] == stored_as
    assert SigningSecret.objects.get().hosts == stored_as


@db
@each(
    "hosts",
    [
        "a.example",
        [""],
        ["*"],
        ["a.*.example"],
        ["*example.com"],
        ["*.0.0.1"],
        ["*.[::1]"],
        ["two words"],
        [5],
        ["a"] * 21,
        ["x" * 300],
    ],
)
def test_hosts_that_are_none_are_refused(client, hosts):
    assert {field.partition(".")[0] for field in fields_of(post(client, {"hosts": hosts}, "/signing-secret"))} == {
        "hosts"
    }
    assert not SigningSecret.objects.exists()


@db
def test_five_secrets_for_the_same_hosts_and_fifty_in_all(client):
    for number in range(10):
        for _ in range(5):
            assert post(client, {"hosts": [f"{number}x.example"]}, "/signing-secret").status_code == 201
        if number < 9:
            assert post(client, {"hosts": [f"{number}x.example"]}, "/signing-secret").status_code == 409
    assert post(client, {"hosts": ["other.example"]}, "/signing-secret").status_code == 409


@db
def test_admin_takes_and_shows_hosts(admin_client):
    address = reverse("admin:scheduler_signingsecret_add")
    answer = admin_client.post(address, {"secret": OWN_SECRET, "hosts": "B.example, *.a.example"}, follow=True)
    assert answer.status_code == 200
    stored_secret = SigningSecret.objects.get()
    assert (stored_secret.value, stored_secret.hosts) == (OWN_SECRET, ["*.a.example", "b.example"])
    assert "*.a.example, b.example" in answer.content.decode()
    wrong = admin_client.post(address, {"hosts": "two words"})
    assert "is no host" in wrong.content.decode()


@db
def test_other_code_of_the_project_has_its_secrets_encrypted_too(receiver, make_timer):
    timer = make_timer(receiver.url("/x"), options={"headers": {"X-A": "m4rk"}}, delay_seconds=-1)
    assert tables_with("m4rk") == []
    services.edit(
        timer.pk,
        lambda stored: (services.NewTimer(web_url=receiver.url("/y"), options={"headers": {"X-B": "m4rk"}}), False),
    )
    assert tables_with("m4rk") == []
    assert call_all(receiver)[0].headers["X-B"] == "m4rk"
