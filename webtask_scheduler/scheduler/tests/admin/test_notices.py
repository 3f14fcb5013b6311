"""The admin's pages of channels and of what was sent to them."""

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.utils import timezone

from webtask_scheduler.scheduler.models import Notification, NotificationChannel
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import NewChannel

pytestmark = pytest.mark.django_db
CHANNELS, SENT = "/admin/scheduler/notificationchannel/", "/admin/scheduler/notification/"
SLACK = "https://hooks.slack.com/services/T0/B0/s3cret"


def text_of(answer):
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.fixture
def filled(user, settings):
    """A channel of each kind, with a message."""
    settings.EMAIL_BACKEND = "webtask_scheduler.mail.EmailBackend"
    slack = channels.add(NewChannel(kind="slack", address=SLACK, name="<b>Ops", failures_in_row=3), owner_id=user.pk)
    mail = channels.add(NewChannel(kind="mail", address="someone@example.com", language="de"), owner_id=None)
    notifying.test(slack.pk, visible={})
    sent = notifying.test(mail.pk, visible={})
    Notification.objects.filter(pk=sent.pk).update(
        state="failed", error="550 <someone@example.com> is unknown", next_attempt_at=None, subject="<i>Invoice"
    )
    return slack, mail


def test_lists_show_filter_and_find_without_an_address(admin_client, filled):
    slack, mail = filled
    for path in (CHANNELS, SENT):
        shown = text_of(admin_client.get(path))
        assert "https://hooks.slack.com/***" in shown
        assert "s***@example.com" in shown
        assert "me@example.com" in shown
        for hidden in ("s3cret", "someone@", "<b>Ops", "<i>Invoice"):
            assert hidden not in shown, path
        for query, found in (
            ("kind=slack", (True, False)),
            ("kind=mail", (False, True)),
            ("kind=pigeon", (True, True)),
            ("q=hooks.slack", (True, False)),
            ("q=me@example.com", (True, path == CHANNELS)),
            ("q=nothing-like-this", (False, False)),
            ("q=" + "9" * 30, (False, False)),
        ):
            rows = text_of(admin_client.get(f"{path}?{query}")).partition("result_list")[2]
            assert ("hooks.slack.com" in rows, "s***@" in rows)[0] == found[0], (path, query)
    assert "s***@" in text_of(admin_client.get(f"{CHANNELS}?q={mail.pk}"))
    assert "hooks.slack" not in text_of(admin_client.get(f"{CHANNELS}?q={mail.pk}")).partition("result_list")[2]
    channels.switch(slack.pk, paused=True, visible={})
    assert "hooks.slack" in text_of(admin_client.get(f"{CHANNELS}?paused=1")).partition("result_list")[2]
    assert "hooks.slack" not in text_of(admin_client.get(f"{CHANNELS}?paused=0")).partition("result_list")[2]
    assert "Not sent" in text_of(admin_client.get(f"{SENT}?state=failed")).partition("result_list")[2]


def test_one_is_looked_at_and_not_changed(admin_client, filled):
    for row in (*NotificationChannel.objects.all(), *Notification.objects.all()):
        path = f"{SENT if isinstance(row, Notification) else CHANNELS}{row.pk}/"
        shown = text_of(admin_client.get(f"{path}change/"))
        for hidden in ("s3cret", "someone@", "<b>Ops", "<i>Invoice"):
            assert hidden not in shown, path
        assert "***" in shown
        assert admin_client.post(f"{path}change/", {"name": "x"}).status_code == 403
        assert admin_client.post(f"{path}delete/", {"post": "yes"}).status_code == 403
    assert "550 &lt;s***@example.com&gt; is unknown" in text_of(
        admin_client.get(f"{SENT}{Notification.objects.get(kind='mail').pk}/change/")
    )
    assert admin_client.get(f"{CHANNELS}add/").status_code == 403
    assert NotificationChannel.objects.count() == 2


def test_who_may_not_view_them_does_not(client, filled):
    one = get_user_model().objects.create_user("staff@example.com", "x", is_staff=True)
    one.user_permissions.set(Permission.objects.filter(codename="view_notificationchannel"))
    client.force_login(one)
    assert client.get(CHANNELS).status_code == 200
    assert client.get(SENT).status_code == 403
    # The page of the dashboard leads where one may go.
    shown = text_of(client.get("/settings/notifications"))
    assert CHANNELS in shown


def test_statements_of_a_list_do_not_grow_with_it(admin_client, filled, django_assert_max_num_queries):
    channel = filled[0]
    Notification.objects.bulk_create(
        Notification(
            channel=channel, owner=channel.owner, kind="slack", shown_address=channel.shown_address, state="called",
            call_timer=Notification.objects.get(kind="slack").call_timer, gathered={"test": {}}, subject=f"No {number}",
            created_at=timezone.now(),
        )
        for number in range(60)
    )  # fmt: skip
    for path in (SENT, f"{SENT}?q=No", f"{SENT}?state=called"):
        with django_assert_max_num_queries(16):
            admin_client.get(path)
