"""How the database answers the admin's pages: along indexes, whatever filter, search or order they have."""

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import connection
from django_celery_beat.models import PeriodicTask

from benchmarks import crowd, visits
from webtask_scheduler.scheduler.models import Attempt, Delivery, Notification, NotificationChannel, Timer

pytestmark = pytest.mark.django_db

LISTS = {
    PeriodicTask: "/admin/django_celery_beat/periodictask/",
    Timer: "/admin/scheduler/timer/",
    Delivery: "/admin/scheduler/delivery/",
    Attempt: "/admin/scheduler/attempt/",
    NotificationChannel: "/admin/scheduler/notificationchannel/",
    Notification: "/admin/scheduler/notification/",
}
QUERIES = ("q=Invoice", "q=nothing-like-this", "q=01a1", "o=-4", "o=3", "p=2", *visits.ADMIN_QUERIES)


def test_lists_of_the_admin_can_be_answered_without_reading_a_table(monkeypatch):
    """For each statement there is a way that reads no whole table; `./scripts/bench pages` shows that it is taken."""
    monkeypatch.setattr(crowd, "USERS", 40)
    monkeypatch.setattr(crowd, "WITHOUT", "person-39@example.com")
    monkeypatch.setattr(crowd, "HOSTS_COUNTED", 2)
    monkeypatch.setattr(crowd, "PAST", 3)
    crowd.fill(waiting=300, ended=60)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        cursor.execute("SET LOCAL enable_seqscan = off")
    visitor = visits.Visitor(get_user_model().objects.get(email=crowd.ADMIN))
    seen = []
    for model, path in LISTS.items():
        monkeypatch.setattr(type(admin.site._registry[model]), "list_per_page", 5)
        seen += visits.with_links(visitor, visits.ADMIN, model.__name__, path, QUERIES)
        seen += visits.with_links(visitor, visits.ADMIN, "change", f"{path}{model.objects.last().pk}/change/", [])
    paths = {one.path for one in seen}
    for path in ("periodictask/?enabled=0", "timer/?status=failed", "attempt/?host=shop.example"):
        assert any(found.endswith(path) for found in paths), path
    assert [(one.path, one.status) for one in seen if one.status != 200] == []
    assert [(one.path, one.scans) for one in seen if one.scans] == []
    assert max(one.statements for one in seen) < 30


def test_plan_that_reads_a_table_is_found_out():
    assert visits.scans_of("SELECT * FROM scheduler_delivery WHERE fault = %s", ["x"])
    assert not visits.scans_of("SET LOCAL enable_seqscan = off", None)
