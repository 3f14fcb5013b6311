"""What failed is told once, in one message a channel and a minute, whoever is killed meanwhile."""

import json
import re
import threading
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, connections, transaction
from django.utils import timezone, translation

from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.models import (
    Delivery,
    Notification,
    NotificationChannel,
    NotificationCursor,
    State,
    Timer,
    ToldFailure,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import ChannelError, NewChannel
from webtask_scheduler.scheduler.tests.support.acting import every, put_back, run
from webtask_scheduler.scheduler.tests.support.api import call_all, post
from webtask_scheduler.scheduler.tests.support.mail import Mailbox, say

pytestmark = pytest.mark.django_db


# So many deliveries of a timer that just failed.
FAILED = """
INSERT INTO scheduler_delivery (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state,
                                attempts, attempts_before, started_at, finished_at)
SELECT gen_random_uuid(), %s, %s, 9 + n, 1, true, now(), now(), 'failed', 4, 0, now(), clock_timestamp()
  FROM generate_series(1, %s) n
"""


def add(address, *, user=None, kind="webhook", **events):
    """Add a channel that was there an hour ago."""
    channel = channels.add(NewChannel(kind=kind, address=address, **events), owner_id=user and user.pk)
    NotificationChannel.objects.filter(pk=channel.pk).update(active_since=timezone.now() - timedelta(hours=1))
    return channel


@pytest.fixture
def hook(receiver):
    """A channel that calls the receiver."""
    return add(receiver.url("/hook?key=s3cret"))


def turn():
    """Do a turn of upkeep a little later: what ended just now is left to the next."""
    rested = timezone.now() - timedelta(seconds=0.2)
    Delivery.objects.filter(finished_at__gt=rested).update(finished_at=rested)
    return notifying.turn(seconds=20)


def later():
    """Let the time between two messages pass."""
    NotificationChannel.objects.update(told_at=timezone.now() - timedelta(hours=1))


def fail(timer, *, status_code=503):
    put_back(timer)
    # The first attempt is the last.
    options = Timer.objects.get(pk=timer.pk).options or {}
    Timer.objects.filter(pk=timer.pk).update(options=options | {"retry": {"max_attempts": 1}})
    run(status_code=status_code, error="status")


def arrived(receiver):
    return [json.loads(call.body) for call in call_all(receiver) if call.path.startswith("/hook")]


def test_failure_is_told_once_signed_and_without_secrets(make_timer, receiver, hook):
    secret = services.add_secret(None, owner_id=None)
    timer = make_timer("http://user:pass@a.example/report?token=hidden", name="Nightly\r\nreport")
    fail(timer)
    assert turn() == notifying.Turn(noticed=1, made=1, mails=0)
    (call,) = call_all(receiver)
    assert call.path == "/hook?key=s3cret"
    body = json.loads(call.body)
    assert body["events"] == ["delivery.dead_letter"]
    assert body["subject"] == "Nightly report failed after 1 attempt: It did not"
    assert body["lost"]["first"][0]["place"] == "a.example/report"
    assert str(timer.pk) in body["text"]
    assert "Mend what it calls" in body["text"]
    for hidden in ("pass", "hidden", "s3cret", "user:"):
        assert hidden not in call.body.decode()
    made = signing.signature(
        [secret.value],
        message_id=call.headers["webhook-id"],
        timestamp=int(call.headers["webhook-timestamp"]),
        body=call.body,
    )
    assert call.headers["webhook-signature"] == made
    later()
    turn()
    assert call_all(receiver) == []
    (sent,) = notifying.listed(Notification.objects.all())
    assert (sent.state, sent.error) == ("sent", "")
    # The address is in no column that can be read without the key.
    call_timer = Timer.objects.get(pk=sent.notification.call_timer)
    assert call_timer.web_url == receiver.url("/***")
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(t)::text FROM scheduler_timer t")
        assert "s3cret" not in "".join(row[0] for row in cursor.fetchall())


def test_ten_thousand_failures_are_one_message_with_their_number(make_timer, receiver, hook, sql):
    fail(make_timer("http://a.example/"))
    turn()
    assert len(arrived(receiver)) == 1
    timer = make_timer("http://api.x.example/", recurrence=every(60))
    sql(FAILED, timer.pk, timer.flow, 10_000)
    assert turn() == notifying.Turn(noticed=10_000, made=0, mails=0)
    assert arrived(receiver) == []
    fail(make_timer("http://b.example/"))
    later()
    assert turn().made == 1
    (body,) = arrived(receiver)
    assert body["lost"]["count"] == 10_001
    assert body["lost"]["hosts"] == {"api.x.example": 10_000, "b.example": 1}
    assert body["subject"].startswith("10,001 dead letters since ")
    assert len(body["lost"]["first"]) == 3


def test_failed_notification_is_told_to_nobody(make_timer, receiver):
    add(receiver.url("/status/500"))
    fail(make_timer())
    turn()
    (sent,) = Notification.objects.all()
    call_timer = Timer.objects.get(pk=sent.call_timer)
    fail(call_timer)
    assert Delivery.objects.get(timer=call_timer).state == State.FAILED
    later()
    assert turn().made == 0
    assert Notification.objects.count() == 1
    assert [(one.state, one.error) for one in notifying.listed([sent])] == [("failed", "It did not.")]


def test_channel_is_told_of_its_owners_timers_with_its_label_alone(make_timer, receiver, user):
    other = get_user_model().objects.create_user("other@example.com", "x")
    add(receiver.url("/hook/user"), user=user, label="team=billing")
    labels = {"labels": {"team": "billing"}}
    for owner, options in ((user, labels), (user, {}), (other, labels), (None, labels)):
        fail(make_timer(owner_id=owner and owner.pk, options=options))
    turn()
    (body,) = arrived(receiver)
    assert body["lost"]["count"] == 1
    # Nobody is told after the end of an account.
    user.is_active = False
    user.save()
    fail(make_timer(owner_id=user.pk, options=labels))
    later()
    turn()
    assert arrived(receiver) == []


def test_failures_in_a_row_and_the_recovery_are_told_once_each(make_timer, receiver):
    add(receiver.url("/hook"), on_dead_letter=False, failures_in_row=3, on_recovery=True)
    timer = make_timer(recurrence=every(60), name="Report")
    told = []
    for outcome in (503, 503, 503, 503, 200, 503, 200):
        if outcome == 200:
            put_back(timer)
            run()
        else:
            fail(timer)
        later()
        turn()
        told.append([body["subject"] for body in arrived(receiver)])
    assert told == [[], [], ["Report failed 3 times in a row"], [], ["Report is well again"], [], []]
    assert not ToldFailure.objects.exists()


def test_recovery_follows_a_dead_letter_of_a_recurring_timer(make_timer, receiver):
    add(receiver.url("/hook"), on_recovery=True)
    timer, once = make_timer(recurrence=every(60)), make_timer()
    fail(timer)
    fail(once)
    turn()
    assert ToldFailure.objects.count() == 1
    arrived(receiver)
    put_back(timer)
    run()
    later()
    turn()
    (body,) = arrived(receiver)
    assert body["events"] == ["timer.recovered"]


def test_nothing_from_before_a_channel_or_from_its_pause_is_told(make_timer, receiver):
    fail(make_timer())
    turn()
    channel = channels.add(NewChannel(kind="webhook", address=receiver.url("/hook")), owner_id=None)
    notifying.turn(seconds=20)
    own = {"owner": None}
    for what in ({"paused": True}, {"paused": False}):
        fail(make_timer())
        Delivery.objects.filter(state="failed").update(finished_at=timezone.now() - timedelta(seconds=0.2))
        channels.switch(channel.pk, visible=own, **what)
    notifying.turn(seconds=20)
    assert arrived(receiver) == []
    assert not Notification.objects.exists()


def test_what_is_killed_between_noticing_and_sending_is_sent_by_the_next(make_timer, receiver, hook, monkeypatch):
    fail(make_timer())

    def killed(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(notifying, "schedule", killed)
        with pytest.raises(SystemExit):
            turn()
    assert [one.state for one in Notification.objects.all()] == ["gathering"]
    with monkeypatch.context() as patch:
        patch.setattr(notifying, "_gather", killed)
        fail(make_timer())
        with pytest.raises(SystemExit):
            turn()
    notifying.turn(seconds=20)
    (body,) = arrived(receiver)
    assert body["lost"]["count"] == 2


@pytest.mark.django_db(transaction=True)
def test_two_processes_at_once_tell_once(make_timer, receiver, hook):
    for number in range(30):
        fail(make_timer(f"http://host{number}.example/"))
    Delivery.objects.filter(state="failed").update(finished_at=timezone.now() - timedelta(seconds=0.2))
    begun = threading.Barrier(4)

    def upkeep():
        try:
            begun.wait()
            for _ in range(3):
                tasks.notify()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=upkeep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bodies = arrived(receiver)
    assert sum(body["lost"]["count"] for body in bodies) == 30
    assert len(bodies) == 1


@pytest.mark.django_db(transaction=True)
def test_what_commits_late_is_not_missed(make_timer, receiver, hook):
    """A delivery takes its moment before it commits; one that took a later moment may commit first."""
    slow, quick = make_timer("http://slow.example/"), make_timer("http://quick.example/")
    ended, go_on = threading.Event(), threading.Event()

    def fail_slowly():
        try:
            with transaction.atomic():
                Delivery.objects.filter(timer=slow).update(
                    state="failed", finished_at=timezone.now() - timedelta(seconds=1)
                )
                ended.set()
                go_on.wait(4)
        finally:
            connections.close_all()

    thread = threading.Thread(target=fail_slowly)
    thread.start()
    assert ended.wait(4)
    Delivery.objects.filter(timer=quick).update(state="failed", finished_at=timezone.now())
    threading.Event().wait(0.2)
    assert notifying.turn(seconds=20).noticed == 0
    go_on.set()
    thread.join()
    assert notifying.turn(seconds=20).noticed == 2
    (body,) = arrived(receiver)
    assert body["lost"]["count"] == 2


def test_turn_without_channels_is_one_statement(make_timer, receiver, django_assert_num_queries):
    fail(make_timer())
    with django_assert_num_queries(1):
        assert notifying.turn(seconds=20) == notifying.Turn()
    channels.add(NewChannel(kind="webhook", address=receiver.url("/hook")), owner_id=None)
    notifying.turn(seconds=20)
    # The look, and a transaction with the cursor and what is new: a savepoint in a test.
    with django_assert_num_queries(5):
        assert notifying.turn(seconds=20) == notifying.Turn()


def test_new_failures_are_found_by_their_index(make_timer, sql):
    timer = make_timer()
    sql(
        "INSERT INTO scheduler_delivery (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state,"
        " attempts, attempts_before, started_at, finished_at)"
        " SELECT gen_random_uuid(), %s, 0, n, 1, true, now(), now(), CASE WHEN n %% 100 = 0 THEN 'failed' ELSE"
        " 'succeeded' END, 1, 0, now(), now() - make_interval(secs => n) FROM generate_series(2, 20000) n",
        timer.pk,
    )
    sql("ANALYZE scheduler_delivery")
    values = {"after": timezone.now() - timedelta(seconds=500), "last": uuid.UUID(int=0), "wait": 60, "limit": 5000}
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {notifying._LOST}", values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "delivery_lost_idx" in plan
    assert "Seq Scan on scheduler_" not in plan


def test_late_service_is_told_to_staff_and_when_it_is_over(make_timer, receiver, user, settings):
    settings.WEBTASK_API_AUTH = "key"
    late = NewChannel(kind="webhook", address=receiver.url("/hook"), on_dead_letter=False, on_late=True)
    with pytest.raises(ChannelError) as refused:
        channels.add(late, owner_id=user.pk)
    assert refused.value.field == "on_late"
    root = get_user_model().objects.create_superuser("root@example.com", "x")
    channels.add(late, owner_id=root.pk)
    timer = make_timer(owner_id=user.pk)
    notifying.turn(seconds=20)
    put_back(timer, 100)
    for _ in range(2):
        notifying.turn(seconds=20)
        later()
    services.cancel(timer.pk)
    notifying.turn(seconds=20)
    told = [body["events"] for body in map(json.loads, [call.body for call in call_all(receiver)])]
    assert told == [["service.late"], ["service.on_time"]]
    later()
    # Without the right to see it, nobody is told.
    root.is_superuser = False
    root.save()
    put_back(make_timer(owner_id=user.pk), 100)
    notifying.turn(seconds=20)
    assert Notification.objects.count() == 2


def test_slack_takes_a_text_in_which_no_name_calls_everybody(make_timer, receiver):
    add(receiver.url("/services/T0/B0/s3cret"), kind="slack")
    fail(make_timer(name="<!channel> & co"))
    turn()
    (call,) = call_all(receiver)
    assert call.path == "/services/T0/B0/s3cret"
    body = json.loads(call.body)
    assert list(body) == ["text"]
    assert body["text"].startswith("*&lt;!channel&gt; &amp; co failed after 1 attempt")


def test_addresses_that_may_not_be_called_are_refused(settings, user):
    settings.WEBTASK_EGRESS = type(settings.WEBTASK_EGRESS)(allow="", deny="", nat64=False)
    for address in (
        "http://127.0.0.1/hook",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1:8080/",
        "file:///etc/passwd",
        "https://a.example/\r\nHost: b",
        "https://a.example/***",
        "",
        "nonsense",
    ):
        for kind in ("slack", "webhook"):
            with pytest.raises(ChannelError) as refused:
                channels.add(NewChannel(kind=kind, address=address), owner_id=user.pk)
            assert refused.value.field == "address", address
    assert not NotificationChannel.objects.exists()


def test_receiver_that_passes_our_headers_on_makes_no_timer(client, make_timer, receiver, hook):
    fail(make_timer())
    turn()
    (call,) = call_all(receiver)
    ours = {f"HTTP_{k.upper().replace('-', '_')}": v for k, v in call.headers.items() if k.startswith("webtask-")}
    answer = client.post(
        "/timer", {"web_url": "http://a.example/", "seconds": 1}, content_type="application/json", **ours
    )
    assert answer.status_code == 508


@pytest.mark.django_db(transaction=True)
def test_twelve_at_once_do_not_pass_the_limit(receiver, user, monkeypatch):
    monkeypatch.setattr(channels, "CHANNELS_MOST", 3)
    results = []

    def create():
        try:
            channels.add(NewChannel(kind="webhook", address=receiver.url()), owner_id=user.pk)
            results.append("made")
        except channels.TooManyChannelsError:
            results.append("refused")
        finally:
            connections.close_all()

    threads = [threading.Thread(target=create) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["made"] * 3 + ["refused"] * 9
    assert NotificationChannel.objects.count() == 3


def test_edit_of_the_timer_that_sends_keeps_its_address_to_itself(client, make_timer, receiver, hook):
    fail(make_timer())
    turn()
    (sent,) = Notification.objects.all()
    path = f"/timer/{sent.call_timer}"
    shown = client.get(path).json()
    assert shown["web_url"] == receiver.url("/***")
    assert "hides_path" not in json.dumps(shown)
    # Held back, so that it can be edited.
    assert post(client, {}, f"{path}/pause").status_code == 200
    answer = client.patch(path, {"web_url": "http://b.example/***"}, content_type="application/json")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["web_url"]
    assert client.patch(path, {"name": "Mine"}, content_type="application/json").status_code == 200
    assert post(client, {}, f"{path}/resume").status_code == 200
    (call,) = call_all(receiver)
    assert call.path == "/hook?key=s3cret"


def test_rotation_keeps_what_is_encrypted_readable(make_timer, receiver, hook, settings):
    from webtask_scheduler.scheduler.services import rotation

    fail(make_timer())
    turn()
    settings.WEBTASK_ENCRYPTION_KEYS = ["x" * 42 + "w=", *settings.WEBTASK_ENCRYPTION_KEYS]
    list(rotation.rotate(rotation.Unreadable()))
    settings.WEBTASK_ENCRYPTION_KEYS = settings.WEBTASK_ENCRYPTION_KEYS[:1]
    hook.refresh_from_db()
    assert hook.value == receiver.url("/hook?key=s3cret")
    assert [call.path for call in call_all(receiver)] == ["/hook?key=s3cret"]


def test_notifications_are_kept_as_long_as_timers(make_timer, receiver, hook, settings):
    for _ in range(2):
        fail(make_timer())
        turn()
        later()
    first = Notification.objects.order_by("pk").first()
    Notification.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(days=31))
    tasks.prune()
    assert [one.pk for one in Notification.objects.all()] == [first.pk + 1]


def test_deleted_channel_is_told_nothing_more_and_its_list_stays(make_timer, receiver, hook):
    fail(make_timer())
    turn()
    fail(make_timer())
    turn()
    assert [one.state for one in Notification.objects.order_by("pk")] == ["called", "gathering"]
    channels.delete(hook.pk, visible={"owner": None})
    later()
    turn()
    (sent,) = Notification.objects.all()
    assert (sent.channel, sent.shown_address) == (None, receiver.url("/***"))


def test_end_of_an_account_ends_its_channels(user, receiver):
    channels.add(NewChannel(kind="webhook", address=receiver.url()), owner_id=user.pk)
    with transaction.atomic():
        services.end_owner(user.pk)
    assert not NotificationChannel.objects.exists()


# Mail


@pytest.fixture
def mailbox(settings):
    with Mailbox() as box:
        settings.EMAIL_BACKEND = "webtask_scheduler.mail.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", box.port
        settings.DEFAULT_FROM_EMAIL = "Timers <timers@example.com>"
        settings.WEBTASK_PUBLIC_URL = "https://timers.example.com"
        yield box


def wait_over():
    Notification.objects.filter(state="sending").update(next_attempt_at=timezone.now())


def test_mail_says_what_failed_with_a_link(make_timer, mailbox):
    add("me@example.com", kind="mail", name="Me")
    timer = make_timer("http://a.example/x?secret=1", name="Report\r\nBcc: all@example.com ü")
    fail(timer)
    assert turn() == notifying.Turn(noticed=1, made=1, mails=1)
    assert turn().mails == 0
    (mail,) = mailbox.mails
    assert mailbox.recipients == ["me@example.com"]
    assert mail["Subject"].strip() == "Report Bcc: all@example.com ü failed after 1 attempt: It did not"
    assert (mail["From"], mail["To"], mail["Bcc"]) == ("Timers <timers@example.com>", "me@example.com", None)
    assert mail["Auto-Submitted"] == "auto-generated"
    text = mail.get_content()
    assert f"https://timers.example.com/timers/{timer.pk}/deliveries/1" in text
    assert "a.example/x" in text
    assert "secret" not in text
    (sent,) = Notification.objects.all()
    assert mail["Message-ID"] == f"<notification-{sent.pk}@example.com>"
    assert (sent.state, sent.attempts, sent.error) == ("sent", 1, "")


def test_mail_that_is_refused_is_tried_again_or_given_up(make_timer, mailbox):
    add("gone@example.com", kind="mail")
    add("full@example.com", kind="mail")
    fail(make_timer())
    turn()
    gone, full = Notification.objects.order_by("pk")
    assert (gone.state, gone.error) == (
        "failed",
        "The mail server refused the address: 550 5.1.1 No such user here",
    )
    assert (full.state, full.attempts) == ("sending", 1)
    assert "Mailbox full" in full.error
    for _ in range(20):
        wait_over()
        notifying.turn(seconds=20)
    full.refresh_from_db()
    assert (full.state, full.attempts) == ("failed", len(notifying.MAIL_WAITS) + 1)
    assert mailbox.mails == []


def test_server_that_is_away_is_asked_once_a_turn_and_loses_nothing(make_timer, mailbox):
    for number in range(3):
        add(f"me{number}@example.com", kind="mail")
    fail(make_timer())
    mailbox.answers = [b"421 4.3.2 secret words of the operator\r\n", b""]
    assert turn().mails == 0
    assert mailbox.connections == 1
    assert [one.attempts for one in Notification.objects.order_by("pk")] == [1, 0, 0]
    assert "secret words" not in Notification.objects.order_by("pk")[0].error
    assert notifying.turn(seconds=20).mails == 0
    wait_over()
    assert notifying.turn(seconds=20).mails == 3
    # One connection for all three.
    assert mailbox.connections == 3
    assert sorted(mailbox.recipients) == [f"me{number}@example.com" for number in range(3)]


def test_mail_of_a_process_that_was_killed_is_sent_by_the_next(make_timer, mailbox, monkeypatch):
    add("me@example.com", kind="mail")
    fail(make_timer())

    def killed(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(notifying, "_sent_by", killed)
        with pytest.raises(SystemExit):
            turn()
    # While it may still be at it, no other process is.
    assert notifying.turn(seconds=20).mails == 0
    wait_over()
    assert notifying.turn(seconds=20).mails == 1
    assert len(mailbox.mails) == 1


def test_address_that_is_none_or_not_ones_own_is_refused(settings, user, mailbox):
    for address in (
        "a@b.example\r\nBcc: c@d.example",
        "a@b.example\n",
        "a@b.example, c@d.example",
        "Me <a@b.example>",
        "a@" + "b" * 300 + ".example",
        "ü@b.example",
        "nonsense",
        "a@b.example\x00",
    ):
        with pytest.raises(ChannelError) as refused:
            channels.add(NewChannel(kind="mail", address=address), owner_id=None)
        assert refused.value.field == "address", address
    settings.WEBTASK_API_AUTH = "key"
    settings.WEBTASK_MAIL_DOMAINS = ["team.example"]
    channels.add(NewChannel(kind="mail", address="ME@example.com"), owner_id=user.pk)
    channels.add(NewChannel(kind="mail", address="ops@team.example"), owner_id=user.pk)
    for address in ("you@example.com", "x@sub.team.example", "x@team.example.org"):
        with pytest.raises(ChannelError, match="own address"):
            channels.add(NewChannel(kind="mail", address=address), owner_id=user.pk)
    root = get_user_model().objects.create_superuser("root@example.com", "x")
    channels.add(NewChannel(kind="mail", address="you@example.com"), owner_id=root.pk)
    settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
    with pytest.raises(ChannelError, match="EMAIL_URL"):
        channels.add(NewChannel(kind="mail", address="me@example.com"), owner_id=user.pk)


def test_server_that_hangs_up_in_between_is_away_and_the_next_mail_is_spared(make_timer, mailbox):
    for number in range(2):
        add(f"me{number}@example.com", kind="mail")
    fail(make_timer())
    for word, answer in (
        (b"RCPT", b"421 4.3.2 going down\r\n"),
        (b"DATA", b"421 4.3.2 going down\r\n"),
        (b"RCPT", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"DATA", b"2222222\r\n"),
    ):
        mailbox.instead = {word: say(answer)}
        assert turn().mails == 0
        first, second = Notification.objects.order_by("pk")
        assert "cannot be reached" in first.error
        assert (first.state, second.state, second.attempts) == ("sending", "sending", 0)
        Notification.objects.update(attempts=0)
        wait_over()
    mailbox.instead = {}
    assert notifying.turn(seconds=20).mails == 2


def test_mail_that_ends_each_process_is_given_up(make_timer, mailbox):
    add("me@example.com", kind="mail")
    fail(make_timer())
    mailbox.answers = [b""]
    turn()
    for _ in range(len(notifying.MAIL_WAITS)):
        # Taken, and nothing is written of what came of it.
        wait_over()
        assert notifying._take_mail() is not None
    wait_over()
    assert notifying.turn(seconds=20).mails == 0
    (sent,) = Notification.objects.all()
    assert (sent.state, sent.error) == ("failed", "Each process that sent it has ended meanwhile.")
    assert mailbox.mails == []


def test_server_that_hangs_holds_one_thread_of_upkeep(make_timer, mailbox, monkeypatch):
    add("me@example.com", kind="mail")
    fail(make_timer())
    rested = timezone.now() - timedelta(seconds=0.2)
    Delivery.objects.update(finished_at=rested)
    with tasks._alone("mails") as alone:
        assert alone
        # What another process sends is left to it; what is noticed is not.
        tasks.notify()
        assert Notification.objects.get().state == "sending"
        assert mailbox.connections == 0
    tasks.notify()
    assert Notification.objects.get().state == "sent"


def test_who_lost_the_right_or_the_account_is_sent_no_mail(make_timer, mailbox, user, settings):
    settings.WEBTASK_API_AUTH = "key"
    settings.WEBTASK_MAIL_DOMAINS = ["team.example"]
    add("all@team.example", kind="mail", user=user)
    add("me@example.com", kind="mail", user=user)
    fail(make_timer(owner_id=user.pk))
    mailbox.answers = [b""]
    assert turn().made == 2
    user.is_active = False
    user.save()
    wait_over()
    assert notifying.turn(seconds=20).mails == 0
    assert mailbox.connections == 1
    user.is_active = True
    user.save()
    settings.WEBTASK_MAIL_DOMAINS = []
    assert notifying.turn(seconds=20).mails == 1
    assert mailbox.recipients == ["me@example.com"]
    assert Notification.objects.get(shown_address="all@team.example").error == (
        "Mail may no longer be sent to this address."
    )


def test_nothing_is_called_any_more_for_a_channel_that_is_paused_moved_or_deleted(make_timer, receiver):
    whose = {"owner__isnull": True}
    ends = (
        lambda channel: channels.switch(channel.pk, paused=True, visible=whose),
        lambda channel: channels.edit(channel.pk, {"address": receiver.url("/other")}, visible=whose),
        lambda channel: channels.delete(channel.pk, visible=whose),
    )
    for end in ends:
        channel = add(receiver.url("/hook"))
        fail(make_timer())
        turn()
        sent = Notification.objects.get(channel=channel)
        call = Delivery.objects.get(timer=sent.call_timer)
        # It failed once, and would be tried again for an hour.
        run(status_code=500, error="status")
        call.refresh_from_db()
        assert (call.state, call.attempts) == ("scheduled", 1)
        end(channel)
        call.refresh_from_db()
        assert call.state == "cancelled"
        # What ended before stays as it ended.
        NotificationChannel.objects.all().delete()
        Notification.objects.all().delete()


def test_mail_that_waits_goes_to_the_address_that_the_channel_has_by_then(make_timer, mailbox):
    channel = add("full@example.com", kind="mail")
    fail(make_timer())
    turn()
    channels.edit(channel.pk, {"address": "me@example.com"}, visible={"owner__isnull": True})
    wait_over()
    assert notifying.turn(seconds=20).mails == 1
    assert mailbox.recipients == ["me@example.com"]
    assert Notification.objects.get().shown_address == "me@example.com"


def test_clock_that_was_put_back_silences_nobody(make_timer, receiver, hook):
    fail(make_timer())
    turn()
    assert len(arrived(receiver)) == 1
    ahead = timezone.now() + timedelta(days=1)
    NotificationCursor.objects.update(finished_at=ahead)
    NotificationChannel.objects.update(told_at=ahead)
    Notification.objects.update(created_at=ahead)
    Delivery.objects.filter(finished_at__isnull=False).delete()
    fail(make_timer("http://later.example/"))
    assert turn() == notifying.Turn(noticed=1, made=1, mails=0)
    (body,) = arrived(receiver)
    assert body["lost"]["hosts"] == {"later.example": 1}
    assert turn().noticed == 0
    NotificationChannel.objects.update(told_at=None)
    notifying.test(hook.pk, visible={"owner__isnull": True})


def test_channel_is_told_in_its_language_and_programs_in_none(make_timer, receiver, settings, mailbox, sql):
    settings.LANGUAGE_CODE = "fr"
    german = add(receiver.url("/hook-de"), language="de")
    add(receiver.url("/hook-en"), language="en")
    add("me@example.com", kind="mail")
    timer = make_timer("http://a.example/", recurrence=every(60))
    sql(FAILED, timer.pk, timer.flow, 1204)
    # Whoever asks for the turn has no part in it.
    with translation.override("ar"):
        assert turn().made == 3
    said = {call.path: json.loads(call.body) for call in call_all(receiver)}
    # Numbers are written as each language has them.
    assert "1.204" in said["/hook-de"]["subject"]
    assert "1,204" in said["/hook-en"]["subject"]
    assert said["/hook-en"]["subject"].startswith("a.example: 1,204 dead letters since ")
    for name in said["/hook-de"].keys() - {"subject", "text"}:
        assert said["/hook-de"][name] == said["/hook-en"][name], name
    (mail,) = mailbox.mails
    assert mail["Content-Language"] == "fr"
    assert re.search("1[  \u202f]204", mail["Subject"])
    # A language that is no longer offered gives way to the service's own.
    NotificationChannel.objects.filter(pk=german.pk).update(language="xx")
    german.refresh_from_db()
    assert channels.language_of(german) == "fr"
    with pytest.raises(ChannelError, match="en, ar, fr"):
        add(receiver.url("/hook"), language="tlh")
