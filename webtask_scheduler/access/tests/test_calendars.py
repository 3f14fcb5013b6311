"""The secret address of a calendar: one for each user, renewed, removed, and gone with its user."""

import pytest

from webtask_scheduler.access import calendars
from webtask_scheduler.access.models import AuditEntry, CalendarAddress

pytestmark = pytest.mark.django_db


def test_secret_is_found_until_it_is_renewed_or_removed(user):
    first = calendars.make(user.pk)
    assert calendars.find(first) == user.pk
    assert first.encode() not in bytes(CalendarAddress.objects.get().digest)
    second = calendars.make(user.pk)
    assert [calendars.find(text) for text in (first, second)] == [None, user.pk]
    assert calendars.remove(user.pk)
    assert not calendars.remove(user.pk)
    assert calendars.find(second) is None
    actions = list(
        AuditEntry.objects.filter(kind="calendar").order_by("pk").values_list("action", "kind", "object_id", "owner_id")
    )
    shared = ("calendar", str(user.pk), user.pk)
    assert actions == [(f"calendar.{word}", *shared) for word in ("made", "made", "removed")]
    assert second not in str(list(AuditEntry.objects.values()))


def test_what_is_no_secret_costs_no_statement(user, django_assert_num_queries):
    text = calendars.make(user.pk)
    with django_assert_num_queries(0):
        for wrong in (
            "",
            text[:-1],
            f"{text}x",
            text.upper(),
            "wts_live_" + "a" * 40,
            "\0" * 51,
            "wts_cal_" + "é" * 43,
        ):
            assert calendars.find(wrong) is None


def test_secret_ends_with_its_user(user):
    text = calendars.make(user.pk)
    type(user).objects.filter(pk=user.pk).update(is_active=False)
    assert calendars.find(text) is None
    type(user).objects.filter(pk=user.pk).update(is_active=True)
    user.delete()
    assert not CalendarAddress.objects.exists()
