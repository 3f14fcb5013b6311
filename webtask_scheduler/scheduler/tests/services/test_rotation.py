"""`manage.py rotate_encryption`: rows of older keys and of older releases, beside a running service."""

import threading

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.db import connection

from webtask_scheduler import vault
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import EncryptionKey, IdempotencyKey, SigningSecret, Timer
from webtask_scheduler.scheduler.services import rotation
from webtask_scheduler.scheduler.tests.support.api import URL, call_all, create, path, post
from webtask_scheduler.scheduler.tests.support.leaks import tables_with
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.service import running

db = pytest.mark.django_db
OWN_SECRET = "whsec_bTRyay1vZi1hLXNpZ25pbmctc2VjcmV0"
FIRST = Fernet.generate_key().decode()
SECOND = Fernet.generate_key().decode()


def rotate(capsys):
    call_command("rotate_encryption", pause=0)
    return capsys.readouterr().out


def as_release_0_2(sql):
    """Put all that is stored into the form of release 0.2: in plain text."""
    for timer in Timer.objects.all():
        web_url, options = rotation.sealing.opened(timer.web_url, timer.options or {})
        Timer.objects.filter(pk=timer.pk).update(web_url=web_url, options=dict(options) or None)
    for secret in SigningSecret.objects.all():
        SigningSecret.objects.filter(pk=secret.pk).update(secret=secret.value)
    for row in IdempotencyKey.objects.all():
        IdempotencyKey.objects.filter(pk=row.pk).update(body=vault.unseal(row.body))


def fill(client, receiver, number=3):
    """Make timers with and without secrets, a signing secret and a kept answer; return those with secrets."""
    assert post(client, {"secret": OWN_SECRET}, "/signing-secret").status_code == 201
    made = []
    for index in range(number):
        create(client, web_url=receiver.url("/plain"), seconds=0)
        web_url = receiver.url(f"/{index}").replace("http://", "http://me:m4rk@")
        body = {"web_url": web_url, "seconds": 0, "headers": {"X-A": f"m4rk-{index}"}}
        made.append(post(client, body, **{"Idempotency-Key": f"k{index}"}).json())
    callback = receiver.url("/done").replace("http://", "http://m4rk@")
    made.append(create(client, web_url=receiver.url("/called"), seconds=0, callback_url=callback))
    made.append(create(client, web_url=receiver.url("/hush"), seconds=0, sensitive=True, body="m4rk"))
    return made


def arrived(receiver):
    calls = sorted(call_all(receiver), key=lambda call: call.path)
    return [(call.path, call.headers.get("X-A"), call.headers.get("Authorization"), "webhook-signature" in call.headers,
             call.body if call.path == "/hush" else None) for call in calls]  # fmt: skip


@db
def test_plain_rows_of_releases_before_are_called_shown_masked_and_encrypted(client, receiver, capsys, sql):
    made = fill(client, receiver)
    as_release_0_2(sql)
    assert len({table for table, *_ in tables_with("m4rk")}) == 1
    assert tables_with(OWN_SECRET) == [("scheduler_signingsecret", "secret", OWN_SECRET)]
    # Still shown without secrets.
    for timer in made:
        assert client.get(path(timer)).json() == timer | {"reason": client.get(path(timer)).json()["reason"]}
    said = rotate(capsys)
    assert "9 rows encrypted with the key" in said
    assert "timers: 5/5, signing secrets: 1/1, idempotency keys: 3/3" in said
    assert "No other key is needed any more." in said
    assert tables_with("m4rk", OWN_SECRET) == []
    assert "0 rows encrypted" in rotate(capsys)
    found = arrived(receiver)
    assert [one[:2] for one in found if one[0][1:].isdigit()] == [(f"/{index}", f"m4rk-{index}") for index in range(3)]
    assert all(one[3] for one in found)
    assert [one[4] for one in found if one[0] == "/hush"] == [b"m4rk"]
    assert [one[0] for one in arrived(receiver)] == ["/done"]


@db
def test_plain_rows_are_called_before_they_are_encrypted(client, receiver, sql):
    fill(client, receiver)
    as_release_0_2(sql)
    found = arrived(receiver)
    assert ("/1", "m4rk-1") in [one[:2] for one in found]
    assert len(found) == 8
    assert all(one[3] for one in found)


@db
def test_old_key_can_be_removed_after_a_rotation(client, receiver, settings, capsys):
    settings.WEBTASK_ENCRYPTION_KEYS = [FIRST]
    facts.note_key()
    fill(client, receiver)
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND]
    assert vault.missing_keys([EncryptionKey.objects.get().pk])
    with pytest.raises(
        CommandError, match=r"9 rows could not be read and stay as they are\. A value is encrypted with"
    ):
        rotate(capsys)
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND, FIRST]
    facts.note_key()
    assert "9 rows encrypted" in rotate(capsys)
    assert EncryptionKey.objects.get().pk == vault.newest_key()
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND]
    assert len(arrived(receiver)) == 8
    body = {"web_url": receiver.url("/0").replace("http://", "http://me:m4rk@"), "seconds": 0}
    again = post(client, body | {"headers": {"X-A": "m4rk-0"}}, **{"Idempotency-Key": "k0"})
    # The request is known by a hash of the removed key only, so that it counts as another one: for a day at most.
    assert again.status_code == 422


@db
def test_damaged_row_is_counted_and_does_not_hold_the_others_up(client, receiver, settings, capsys):
    settings.WEBTASK_ENCRYPTION_KEYS = [FIRST]
    made = fill(client, receiver)
    timer = Timer.objects.get(pk=made[0]["task_id"])
    timer.options["sealed"] = timer.options["sealed"][:-9] + "AAAAAAAA="
    timer.save()
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND, FIRST]
    with pytest.raises(CommandError, match=r"1 row could not be read and stays as it is\. .* is damaged"):
        rotate(capsys)
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND]
    assert len(arrived(receiver)) == 7


@db
def test_interrupted_rotation_goes_on_where_it_was(client, receiver, settings, capsys, monkeypatch):
    monkeypatch.setattr(rotation, "WRITE_ROWS", 2)
    monkeypatch.setattr(rotation, "READ_ROWS", 3)
    settings.WEBTASK_ENCRYPTION_KEYS = [FIRST]
    fill(client, receiver)
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND, FIRST]
    steps = rotation.rotate(rotation.Unreadable())
    assert next(steps) == rotation.Progress("timers", written=2)
    steps.close()
    assert "7 rows encrypted" in rotate(capsys)


@pytest.mark.django_db(transaction=True)
def test_edit_during_a_rotation_is_kept(client, receiver, settings, monkeypatch):
    settings.WEBTASK_ENCRYPTION_KEYS = [FIRST]
    made = create(client, web_url=receiver.url("/x"), headers={"X-A": "old"}, seconds=0)
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND, FIRST]
    edited = threading.Event()

    def edit():
        def change(_):
            return services.NewTimer(web_url=receiver.url("/y"), options={"headers": {"X-A": "new"}}), False

        services.edit(made["task_id"], change)
        connection.close()
        edited.set()

    real = rotation.sealing.is_current
    threads = []

    def slow(*arguments):
        if not threads:
            # Between the look at the row and its lock.
            threads.append(threading.Thread(target=edit))
            threads[0].start()
            assert edited.wait(10)
        return real(*arguments)

    monkeypatch.setattr(rotation.sealing, "is_current", slow)
    list(rotation.rotate(rotation.Unreadable()))
    threads[0].join()
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND]
    (call,) = call_all(receiver)
    assert (call.path, call.headers["X-A"]) == ("/y", "new")


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_rotation_beside_a_running_service_loses_no_call(settings, capsys):
    """Timers are made and called while all is encrypted anew, and then without the old key."""
    settings.WEBTASK_ENCRYPTION_KEYS = [SECOND, FIRST]
    with Receiver() as receiver, running() as service:
        service.environment["WEBTASK_ENCRYPTION_KEYS"] = FIRST
        service.start("web", "worker", "beat")
        made = [service.post(timer_of(receiver, number, seconds=60 if number % 2 else 3))[1] for number in range(100)]
        # A key is added: first to all processes, then the rows.
        for name in ("worker", "beat", "web"):
            service.stop(name)
            service.environment["WEBTASK_ENCRYPTION_KEYS"] = f"{SECOND},{FIRST}"
            service.start(name)
        stop = threading.Event()

        def make():
            number = 100
            while not stop.is_set():
                made.append(service.post(timer_of(receiver, number, seconds=0))[1])
                number += 1

        thread = threading.Thread(target=make)
        thread.start()
        try:
            receiver.wait_for(70)
            rotate(capsys)
        finally:
            stop.set()
            thread.join()
        # And the old one taken away.
        for name in ("worker", "beat", "web"):
            service.stop(name)
            service.environment["WEBTASK_ENCRYPTION_KEYS"] = SECOND
            service.start(name)
        for timer in made[1:100:2]:
            services.edit(timer["task_id"], due_now)
        calls = receiver.wait_for(len(made))
        assert service.get("/readyz")[1]["checks"]["keys"] == "ok"
        assert sorted(int(call.path[1:]) for call in calls) == list(range(len(made)))
        assert all(call.headers["X-A"] == f"m4rk-{call.path[1:]}" for call in calls)
        logs = [service.log(name) for name in ("web", "worker", "beat")]
    assert not any("unreadable" in log or "m4rk" in log for log in logs)
    assert tables_with("m4rk", FIRST, SECOND) == []


def timer_of(receiver, number, *, seconds):
    return {"web_url": receiver.url(f"/{number}"), "seconds": seconds, "headers": {"X-A": f"m4rk-{number}"}}


def due_now(row):
    """Return an edit that keeps the secrets as they are stored."""
    return services.NewTimer(web_url=row.web_url, options=row.options, delay_seconds=0), True


@db
def test_rotation_reads_no_plain_timer(client, capsys):
    for _ in range(3):
        create(client, web_url=URL, body={"a": "@"}, labels={"a": "b"})
    assert "0 rows encrypted" in rotate(capsys)
    assert sum(step.read for step in rotation.rotate(rotation.Unreadable()) if step.table == "timers") == 0
