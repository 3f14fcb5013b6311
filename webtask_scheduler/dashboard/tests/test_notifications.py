"""The page of channels and of what was sent: each owner's own, without what is secret."""

import pytest
from django.contrib.auth import get_user_model

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler.models import Notification, NotificationChannel, Timer
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import NewChannel
from webtask_scheduler.scheduler.tests.support.api import call_all

pytestmark = pytest.mark.django_db
PAGE = "/settings/notifications"
SLACK = "https://hooks.slack.com/services/T0/B0/s3cret"
GIVEN = {"kind": "slack", "address": SLACK, "name": "Ops", "on_dead_letter": "on", "failures_in_row": ""}


def text_of(answer):
    assert "no-store" in answer["Cache-Control"]
    return answer.content.decode()


def deeds():
    return list(AuditEntry.objects.filter(kind="channel").order_by("pk").values_list("action", "before", "after"))


def test_channel_is_added_edited_paused_and_deleted_without_showing_its_secret(client):
    assert "nobody is told" in text_of(client.get(PAGE))
    assert client.post(f"{PAGE}/add", GIVEN).status_code == 302
    (channel,) = NotificationChannel.objects.all()
    assert channel.value == SLACK
    for path in (PAGE, f"{PAGE}/{channel.pk}", "/settings"):
        shown = text_of(client.get(path))
        assert "s3cret" not in shown
        assert "hooks.slack.com/***" in shown or path == "/settings"
    assert channel.language == ""
    edited = {"address": "", "language": "ar", "name": "Billing", "label": "team=billing", "failures_in_row": "3"}
    assert client.post(f"{PAGE}/{channel.pk}", edited).status_code == 302
    channel.refresh_from_db()
    assert (channel.value, channel.name, channel.label) == (SLACK, "Billing", "team=billing")
    assert (channel.on_dead_letter, channel.failures_in_row, channel.language) == (False, 3, "ar")
    moved = edited | {"address": f"{SLACK}2"}
    assert client.post(f"{PAGE}/{channel.pk}", moved).status_code == 302
    channel.refresh_from_db()
    assert channel.value == f"{SLACK}2"
    for action, is_paused in (("pause", True), ("pause", True), ("resume", False)):
        assert client.post(f"{PAGE}/{channel.pk}/{action}").status_code == 302
        channel.refresh_from_db()
        assert (channel.paused_at is not None) == is_paused
    assert client.post(f"{PAGE}/{channel.pk}/nonsense").status_code == 404
    assert client.post(f"{PAGE}/{channel.pk}/delete").status_code == 302
    assert client.post(f"{PAGE}/{channel.pk}/delete").status_code == 404
    assert [action for action, _, _ in deeds()] == [
        *("channel.created", "channel.changed", "channel.changed", "channel.paused", "channel.resumed"),
        "channel.deleted",
    ]
    assert deeds()[1][1:] == (
        {"name": "Ops", "label": "", "language": "", "on_dead_letter": True, "failures_in_row": None},
        {"name": "Billing", "label": "team=billing", "language": "ar", "on_dead_letter": False, "failures_in_row": 3},
    )
    assert deeds()[2][2] == {"address": "…"}
    assert "s3cret" not in str(deeds())


def test_what_cannot_be_is_refused_beside_its_field_and_nothing_is_written(client, settings):
    settings.WEBTASK_EGRESS = type(settings.WEBTASK_EGRESS)(allow="", deny="", nat64=False)
    for wrong, said in (
        ({"address": ""}, "required"),
        ({"address": "http://169.254.169.254/"}, "not"),
        ({"kind": "pigeon"}, "pigeon"),
        ({"kind": "mail", "address": "a@b.example\r\nBcc: c@d.example"}, "no mail address"),
        ({"label": "team"}, "key=value"),
        ({"label": "a\n=b"}, "key=value"),
        ({"failures_in_row": "1"}, "from 2 to 100"),
        ({"failures_in_row": "9" * 30}, "from 2 to 100"),
        ({"failures_in_row": "x"}, "whole number"),
        ({"on_dead_letter": "", "on_recovery": "on"}, "at least one event"),
        ({"name": "x" * 201}, "200"),
        ({"language": "tlh"}, "tlh"),
        ({"name": "a\x00b"}, "Null characters"),
    ):
        answer = client.post(f"{PAGE}/add", GIVEN | wrong)
        assert answer.status_code == 400, wrong
        assert said in "".join(text_of(answer).split('class="error"')[1:]), wrong
    assert not NotificationChannel.objects.exists()
    assert not AuditEntry.objects.exists()


def test_channels_are_each_owners_own(client, closed, user):
    other = get_user_model().objects.create_superuser("root@example.com", "x")
    channel = channels.add(NewChannel(kind="slack", address=SLACK, name="Mine alone"), owner_id=user.pk)
    sent = notifying.test(channel.pk, visible={"owner": user.pk})
    assert client.get(PAGE).status_code == 302
    client.force_login(other)
    shown = text_of(client.get(PAGE))
    assert "Mine alone" not in shown
    assert sent.subject not in shown
    assert client.get(f"{PAGE}/{channel.pk}").status_code == 404
    for path in ("", "/test", "/pause", "/resume", "/delete"):
        assert client.post(f"{PAGE}/{channel.pk}{path}", GIVEN).status_code == 404, path
    client.force_login(user)
    shown = text_of(client.get(PAGE))
    assert "Mine alone" in shown
    assert sent.subject in shown
    # Only for people who may see the whole service.
    assert 'name="on_late"' not in shown
    assert client.post(f"{PAGE}/add", GIVEN | {"on_late": "on"}).status_code == 400
    client.force_login(other)
    assert 'name="on_late"' in text_of(client.get(PAGE))


def test_test_is_sent_once_a_minute_and_its_outcome_listed(client, receiver):
    channel = channels.add(NewChannel(kind="webhook", address=receiver.url("/status/500")), owner_id=None)
    for said in ("A test is on its way", "Look whether it arrived"):
        assert said in text_of(client.post(f"{PAGE}/{channel.pk}/test", follow=True))
    (sent,) = Notification.objects.all()
    assert "On its way" in text_of(client.get(PAGE))
    (call,) = call_all(receiver)
    assert call.json["events"] == ["test"]
    shown = text_of(client.get(f"{PAGE}?live=1"))
    assert "Tried again" in shown
    assert "The receiver answered 500." in shown
    assert f"/timers/{sent.call_timer}" in shown
    # What goes to a paused channel is a contradiction.
    client.post(f"{PAGE}/{channel.pk}/pause")
    assert "/test" not in text_of(client.get(PAGE))
    Notification.objects.all().delete()
    assert "The channel is paused" in text_of(client.post(f"{PAGE}/{channel.pk}/test", follow=True))
    assert not Notification.objects.exists()


def test_older_messages_are_a_page_away(client):
    channel = channels.add(NewChannel(kind="slack", address=SLACK), owner_id=None)
    for number in range(30):
        Notification.objects.create(
            channel=channel, kind="slack", shown_address=channel.shown_address, state="sent", gathered={"test": {}},
            subject=f"Message {number:02}", text="It is.", created_at=channel.created_at, made_at=channel.created_at,
        )  # fmt: skip
    first = text_of(client.get(PAGE))
    assert ("Message 29" in first, "Message 05" in first, "Message 04" in first) == (True, True, False)
    (before,) = [part.partition("#")[0] for part in first.split("?before=")[1:]]
    second = text_of(client.get(f"{PAGE}?before={before}"))
    assert ("Message 05" in second, "Message 04" in second, "Message 00" in second) == (False, True, True)
    for nonsense in ("x", "-1", "9" * 40, "²", "9" * 5000):
        assert client.get(PAGE, {"before": nonsense}).status_code == 200


def test_name_of_a_timer_cannot_write_html(client, make_timer):
    channel = channels.add(NewChannel(kind="slack", address=SLACK, name="<b>Ops"), owner_id=None)
    Notification.objects.create(
        channel=channel, kind="slack", shown_address="x", state="sent", gathered={"test": {}},
        subject="<script>a", text="<script>b", created_at=channel.created_at, made_at=channel.created_at,
    )  # fmt: skip
    shown = text_of(client.get(PAGE))
    assert "<script>a" not in shown
    assert "<script>b" not in shown
    assert "<b>Ops" not in shown
    assert not Timer.objects.exists()


def test_new_channel_speaks_the_language_in_which_it_is_made(client):
    shown = text_of(client.get(PAGE, headers={"accept-language": "de"}))
    assert '<option value="de" selected>' in shown
    assert '<option value="">' in shown
