"""The audit log: every deed has an entry that says who did it through which door, and no entry tells a secret."""

import json
import os
import subprocess
import sys
import uuid
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.access import actor, audit
from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.models import BulkOperation, CallStop, Delivery, SigningSecret, State, Timer
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import GIVEN, URL, bearer, create, path, post, send
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import act, bare, saved, soon
from webtask_scheduler.scheduler.tests.support.doors import form as form_of
from webtask_scheduler.scheduler.tests.support.doors import post as submit
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, database_url

pytestmark = pytest.mark.django_db

BY_API = {"HTTP_X_REQUEST_ID": "order-1", "REMOTE_ADDR": "192.0.2.7"}


@pytest.fixture
def signed_in(client, user):
    client.force_login(user)
    client.defaults |= BY_API
    return client


def deeds():
    """Return the entries of a test, without those of the users whom its fixtures made."""
    return AuditEntry.objects.exclude(kind="user")


def latest(**wanted):
    entry = AuditEntry.objects.filter(**wanted).order_by("pk").last()
    assert entry is not None, (wanted, list(AuditEntry.objects.values()))
    return entry


DEEDS = {
    "cancel": ("timer.cancelled", lambda client, timer: client.delete(path(timer))),
    "pause": ("timer.paused", lambda client, timer: post(client, None, path(timer, "/pause"))),
    "run": ("timer.run", lambda client, timer: post(client, None, path(timer, "/run"))),
    "edit": ("timer.edited", lambda client, timer: send(client, "PATCH", path(timer), {"name": "new"})),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_deed_by_the_api_says_who_did_it_to_which_timer(signed_in, user, deed):
    timer = create(signed_in)
    action, do = DEEDS[deed]
    assert do(signed_in, timer).status_code in (200, 201)
    entry = latest(object_id=timer["task_id"])
    assert (entry.action, entry.kind, entry.owner_id) == (action, "timer", user.pk)
    assert (entry.user_id, entry.name, entry.through) == (user.pk, user.email, "api")
    assert (entry.address, entry.request_id, entry.key) == ("192.0.2.7", "order-1", "")


def test_each_change_of_a_timers_life_has_one_entry(client):
    timer = create(client, retry={"max_attempts": 1})
    for word in ("pause", "pause", "resume", "resume"):
        assert post(client, None, path(timer, f"/{word}")).status_code == 200
    put_back(timer["task_id"])
    run(status_code=500, error="status")
    assert post(client, None, path(timer, "/replay")).status_code == 200
    Delivery.objects.update(next_attempt_at=timezone.now() + timedelta(hours=1))
    for status in (200, 409):
        assert post(client, None, path(timer, "/try-now")).status_code == status
    for _ in range(2):
        assert client.delete(path(timer)).status_code == 200
    actions = list(AuditEntry.objects.order_by("pk").values_list("action", flat=True))
    assert actions == ["timer.paused", "timer.resumed", "timer.replayed", "timer.tried_now", "timer.cancelled"]


def test_creation_is_told_by_the_timers_own_row_and_costs_no_statement(signed_in, user):
    with CaptureQueriesContext(connection) as queries:
        timer = create(signed_in)
    inserts = [query["sql"] for query in queries if "webtask_create" in query["sql"]]
    assert len(inserts) == 1
    stored = Timer.objects.get(pk=timer["task_id"])
    assert stored.owner == user
    assert stored.made_by == {"through": "api", "name": user.email, "address": "192.0.2.7"}
    assert stored.options["request_id"] == "order-1"
    assert not deeds().exists()
    # It is no field of the API.
    assert "made_by" not in signed_in.get(path(timer)).json()


def test_edit_tells_what_changed_and_no_secret(client):
    web_url = "https://user:pass@a.example/hook?token=s3cret"
    timer = create(client, **GIVEN, web_url=web_url, due_at="2030-01-01T00:00:00Z")
    patch = {
        "headers": {"Authorization": "Bearer t0psecret", "X-Shop": None, "authorization": None},
        "body": {"password": "hunter2"},
        "metadata": {"a": "hidden-metadata"},
        "web_url": "https://user:other@b.example/hook?token=n3wsecret",
        "retry": {"max_attempts": 7},
        "due_at": "2031-01-01T00:00:00Z",
    }
    assert send(client, "PATCH", path(timer), patch).status_code == 200
    entry = latest(action="timer.edited")
    assert entry.before["web_url"] == "https://a.example/hook?…"
    assert entry.after["web_url"] == "https://b.example/hook?…"
    assert (entry.before["headers"], entry.after["headers"]) == (["X-Shop", "authorization"], ["Authorization"])
    assert (entry.before["body"], entry.after["body"]) == ("…", "…")
    assert entry.after["retry"]["max_attempts"] == 7
    assert entry.after["due_at"] == "2031-01-01T00:00:00+00:00"
    # What stayed is not repeated.
    assert "name" not in entry.before | entry.after
    told = json.dumps([entry.before, entry.after])
    for secret in (
        "t0psecret",
        "Bearer",
        "hunter2",
        "hidden-metadata",
        "s3cret",
        "n3wsecret",
        "pass",
        "other@",
        "user:",
    ):
        assert secret not in told


def test_edit_that_changes_nothing_has_no_entry(client):
    timer = create(client, name="a")
    assert send(client, "PATCH", path(timer), {"name": "a"}).status_code == 200
    assert not AuditEntry.objects.exists()


def test_what_is_refused_or_rolled_back_has_no_entry(client):
    timer = create(client)
    assert client.delete(path(timer)).status_code == 200
    assert post(client, None, path(timer, "/run")).status_code == 409
    assert AuditEntry.objects.count() == 1
    other = create(client)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        services.cancel(uuid.UUID(other["task_id"]))
        raise ZeroDivisionError
    assert AuditEntry.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_entry_outside_a_transaction_is_refused():
    with pytest.raises(RuntimeError, match="transaction of the deed"):
        audit.record("timer.cancelled", kind="timer")
    with pytest.raises(RuntimeError, match="transaction of the deed"):
        audit.record_each("timer.cancelled", kind="timer", owners={1: None})
    assert not AuditEntry.objects.exists()


# Secrets and stops


def test_secrets_have_entries_without_the_secret(signed_in, user):
    made = post(signed_in, None, "/signing-secret").json()
    assert signed_in.delete(f"/signing-secret/{made['id']}").status_code == 204
    assert not SigningSecret.objects.exists()
    entries = list(deeds().order_by("pk"))
    assert [(one.action, one.object_id, one.owner_id) for one in entries] == [
        ("secret.created", str(made["id"]), user.pk),
        ("secret.deleted", str(made["id"]), user.pk),
    ]
    assert made["secret"][6:] not in json.dumps(list(AuditEntry.objects.values()), default=str)


def test_secret_of_another_is_not_deleted_and_has_no_entry(client, user):
    made = services.add_secret(None, owner_id=user.pk)
    assert client.delete(f"/signing-secret/{made.pk}").status_code == 404
    assert deeds().count() == 1


def test_stops_by_a_command_name_the_account(monkeypatch):
    monkeypatch.setattr(actor, "shell_user", lambda: "ops")
    call_command("calls", "stop", "--host", "a.example", "--reason", "smoke")
    call_command("calls", "resume", "--host", "a.example")
    stopped, resumed = AuditEntry.objects.order_by("pk")
    assert (stopped.action, stopped.kind, stopped.object_id) == ("calls.stopped", "host", "a.example")
    assert (stopped.through, stopped.name, stopped.user_id) == ("command", "ops", None)
    assert (stopped.before, stopped.after) == (None, {"reason": "smoke"})
    assert (resumed.action, resumed.before) == ("calls.resumed", {"reason": "smoke"})


def test_command_that_makes_and_cancels_timers_is_named(monkeypatch):
    monkeypatch.setattr(actor, "shell_user", lambda: "ops")
    call_command("timer", "create", URL, "--seconds", "60")
    timer = Timer.objects.get()
    assert timer.made_by == {"through": "command", "name": "ops"}
    call_command("timer", "cancel", str(timer.pk))
    assert (latest().action, latest().through, latest().name) == ("timer.cancelled", "command", "ops")
    call_command("prune_timers", "--older-than", "30d")
    assert (latest().action, latest().after) == ("timers.pruned", {"older_than": "30 days, 0:00:00"})


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_commands_of_django_name_the_account_at_the_shell():
    environment = os.environ | {"DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "config.settings.local"}
    command = [sys.executable, "manage.py", "createsuperuser", "--noinput", "--email", "root@example.com"]
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.through, entry.name) == ("user.created", "command", actor.shell_user())


# Many at once


def test_bulk_operation_has_one_entry_with_its_filter_and_one_with_its_counts(signed_in, user):
    for _ in range(3):
        create(signed_in, labels={"team": "billing"})
    wanted = {"label": "team=billing", "status": ["scheduled"]}
    begun = post(signed_in, {"action": "cancel", "filter": wanted}, "/timer/bulk").json()
    tasks.bulk()
    first, last = deeds().order_by("pk")
    assert (first.action, first.object_id, first.after) == (
        "bulk.begun",
        begun["bulk_id"],
        {"action": "cancel", "filter": wanted},
    )
    assert (first.through, first.user_id) == ("api", user.pk)
    assert last.action == "bulk.ended"
    assert last.after == {"action": "cancel", "filter": wanted, "matched": 3, "changed": 3}
    assert (last.through, last.user_id, last.owner_id) == ("", user.pk, user.pk)


def test_bulk_operation_that_only_counts_is_no_deed(client):
    create(client)
    post(client, {"action": "cancel", "filter": {}, "dry_run": True}, "/timer/bulk")
    tasks.bulk()
    assert not AuditEntry.objects.exists()


def test_bulk_operation_that_cannot_go_on_says_so(client):
    operation = BulkOperation.objects.create(action="cancel", filter={"colour": "red"})
    services.step_bulk(operation)
    assert "colour" in latest(action="bulk.ended").after["error"]


def test_few_timers_have_an_entry_each_and_many_share_one(make_timer, monkeypatch):
    monkeypatch.setattr(audit, "EACH_MOST", 2)
    timers = [make_timer() for _ in range(3)]
    ids = [timer.periodic_task_id for timer in timers]
    services.switch_many(ids[:2], enabled=False)
    assert set(AuditEntry.objects.values_list("object_id", flat=True)) == {str(timer.pk) for timer in timers[:2]}
    AuditEntry.objects.all().delete()
    services.switch_many(ids, enabled=True)
    # Only those that were paused changed.
    assert set(AuditEntry.objects.values_list("action", "kind")) == {("timer.resumed", "timer")}
    AuditEntry.objects.all().delete()
    services.run_many_now([timer.pk for timer in timers])
    (entry,) = AuditEntry.objects.all()
    assert (entry.action, entry.kind, entry.object_id, entry.after["count"]) == ("timer.run", "timers", "", 3)


# The admin and the stock rows


def test_form_of_a_stock_row_in_the_admin_names_the_person(admin_client, admin_user, make_timer):
    timer = make_timer()
    task = timer.periodic_task
    address = f"/admin/django_celery_beat/periodictask/{task.pk}/change/"
    submit(admin_client, address, form_of(task, enabled=""))
    entry = latest(object_id=str(timer.pk))
    assert (entry.action, entry.through, entry.user_id) == ("timer.paused", "admin", admin_user.pk)
    assert (entry.before, entry.after) == ({"status": "scheduled"}, {"status": "paused"})
    act(admin_client, "enable_tasks", task)
    assert (latest().action, latest().through, latest().user_id) == ("timer.resumed", "admin", admin_user.pk)
    act(admin_client, "run_tasks", task)
    assert latest().action == "timer.run"


@each("write", [saved, bare], ids=["save", "update"])
def test_edit_of_a_stock_row_elsewhere_has_an_entry_of_nobody(make_timer, write):
    timer = make_timer()
    write(timer.periodic_task, enabled=False)
    (entry,) = AuditEntry.objects.all()
    assert (entry.action, entry.object_id) == ("timer.paused", str(timer.pk))
    assert (entry.through, entry.user_id, entry.name) == ("stock row", None, "")


def test_moved_and_deleted_stock_rows_have_entries(make_timer):
    timer = make_timer()
    due_at = soon(hours=3)
    saved(timer.periodic_task.clocked, clocked_time=due_at)
    entry = latest()
    assert (entry.action, entry.after) == ("timer.edited", {"due_at": due_at.isoformat()})
    PeriodicTask.objects.get(pk=timer.periodic_task_id).delete()
    entry = latest()
    assert (entry.action, entry.through, entry.object_id) == ("timer.cancelled", "stock row", str(timer.pk))
    assert entry.after == {"periodic_task": "deleted"}


def test_row_that_a_stock_scheduler_ran_is_no_deed(make_timer):
    timer = make_timer()
    PeriodicTask.objects.filter(pk=timer.periodic_task_id).update(enabled=False)
    services.note_run_by_stock(timer.periodic_task_id)
    assert not AuditEntry.objects.exists()
    assert timer.deliveries.get().state == State.SCHEDULED


def test_stops_and_secrets_of_the_admin_have_entries(admin_client, admin_user):
    submit(admin_client, "/admin/scheduler/callstop/add/", {"host": "a.example", "reason": "r"})
    stop = CallStop.objects.get()
    submit(admin_client, f"/admin/scheduler/callstop/{stop.pk}/delete/", {"post": "yes"})
    submit(admin_client, "/admin/scheduler/signingsecret/add/", {"owner": "", "secret": ""})
    secret = SigningSecret.objects.get()
    submit(admin_client, f"/admin/scheduler/signingsecret/{secret.pk}/delete/", {"post": "yes"})
    entries = list(deeds().order_by("pk"))
    assert [one.action for one in entries] == ["calls.stopped", "calls.resumed", "secret.created", "secret.deleted"]
    assert {(one.through, one.user_id) for one in entries} == {("admin", admin_user.pk)}


# What is kept


def test_values_under_secret_names_are_left_out_whatever_a_caller_passes():
    told = {
        "password": "p",
        "nested": [{"Authorization": "a", "headers": {"X-A": "v", "Cookie": "c"}}],
        "url": "http://u:p@h/x?k=v",
        "nul": "a\x00b",
        "when": timedelta(seconds=1),
    }
    audit.record("x.y", kind="timer", after=told)
    assert latest().after == {
        "password": "…",
        "nested": [{"Authorization": "…", "headers": ["Cookie", "X-A"]}],
        "url": "http://h/x?…",
        "nul": "ab",
        "when": "0:00:01",
    }


def test_long_values_are_named_only():
    audit.record("x.y", kind="timer", after={"a": "b" * 10_000, "c": 1})
    assert latest().after == {"a": "…", "c": "…"}


def test_entries_are_pruned_by_age_in_batches(sql, settings):
    for number in range(5):
        audit.record(f"n.{number}", kind="timer")
    sql("UPDATE access_auditentry SET at = at - interval '366 days' WHERE action <> 'n.4'")
    assert [audit.prune(older_than=timedelta(days=365), limit=3) for _ in range(3)] == [3, 1, 0]
    sql("UPDATE access_auditentry SET at = at - interval '366 days'")
    settings.WEBTASK_AUDIT_DAYS = 0
    tasks.prune()
    assert AuditEntry.objects.count() == 1
    settings.WEBTASK_AUDIT_DAYS = 365
    tasks.prune()
    assert not AuditEntry.objects.exists()


# Where it is read


def test_api_lists_the_deeds_of_the_callers_owner_alone(client, admin_client, user):
    mine = services.add_secret(None, owner_id=user.pk)
    services.add_secret(None, owner_id=None)
    services.stop_calls(host="a.example")
    everything = admin_client.get("/audit").json()["entries"]
    actions = [one["action"] for one in everything]
    assert actions == ["calls.stopped", "secret.created", "secret.created", "user.created", "user.created"]
    # An open API shows nothing of it to whoever has no name, nor to a login that is no superuser's.
    assert client.get("/audit").status_code == 401
    client.force_login(user)
    assert client.get("/audit").status_code == 403
    client.logout()
    made, own, begun = client.get("/audit", headers=bearer(user)).json()["entries"]
    assert (begun["action"], begun["object_id"]) == ("user.created", str(user.pk))
    assert (made["action"], own["object_id"]) == ("key.created", str(mine.pk))


def test_api_lists_pages_and_one_things_deeds(client, user):
    by_key = bearer(user)
    AuditEntry.objects.all().delete()
    client.defaults["HTTP_AUTHORIZATION"] = by_key["Authorization"]
    timers = [create(client) for _ in range(3)]
    for timer in timers:
        client.delete(path(timer))
    page = client.get("/audit?limit=2").json()
    assert [one["object_id"] for one in page["entries"]] == [timers[2]["task_id"], timers[1]["task_id"]]
    rest = client.get(f"/audit?limit=2&cursor={page['next']}").json()
    assert ([one["object_id"] for one in rest["entries"]], rest["next"]) == ([timers[0]["task_id"]], None)
    (one,) = client.get(f"/audit?kind=timer&id={timers[1]['task_id']}").json()["entries"]
    assert one["action"] == "timer.cancelled"
    assert client.get("/audit?id=1").status_code == 400
    assert client.get("/audit?colour=red").status_code == 400
    assert client.get("/audit?cursor=x").status_code == 400


def test_admin_shows_and_finds_entries_and_changes_none(admin_client, make_timer):
    timer, other = make_timer(), make_timer()
    services.cancel(timer.pk)
    services.cancel(other.pk)
    listed = admin_client.get("/admin/access/auditentry/").content.decode()
    assert str(timer.pk) in listed
    found = admin_client.get(f"/admin/access/auditentry/?q={timer.pk}").content.decode()
    assert str(timer.pk) in found
    assert str(other.pk) not in found
    assert str(timer.pk) in admin_client.get("/admin/access/auditentry/?q=timer.cancelled").content.decode()
    assert str(timer.pk) not in admin_client.get("/admin/access/auditentry/?kind=secret").content.decode()
    entry = latest(object_id=str(timer.pk))
    page = f"/admin/access/auditentry/{entry.pk}"
    assert "deliveries" in admin_client.get(f"{page}/change/").content.decode()
    assert admin_client.post(f"{page}/change/", {"action": "x"}).status_code == 403
    assert admin_client.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get("/admin/access/auditentry/add/").status_code == 403
    assert AuditEntry.objects.get(pk=entry.pk) == entry


def test_lists_of_a_long_log_read_an_index(sql):
    sql(
        "INSERT INTO access_auditentry (action, kind, object_id, owner_id, name, key, address, through, request_id)"
        " SELECT 'timer.cancelled', 'timer', n::text, n %% 50, '', '', '', '', '' FROM generate_series(1, 20000) n"
    )
    sql("ANALYZE access_auditentry")
    for rows, index in (
        (AuditEntry.objects.filter(owner_id=7).order_by("-id")[:51], "audit_owner_idx"),
        (AuditEntry.objects.filter(kind="timer", object_id="9").order_by("-id")[:51], "audit_object_idx"),
        (AuditEntry.objects.order_by("-id")[:101], "access_auditentry_pkey"),
    ):
        assert index in rows.explain()
