"""`services.schedule` as other apps of the same Django project call it; docs/api.md shows it."""

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask
from rest_framework.exceptions import ValidationError

from webtask_scheduler.scheduler.api.reading import read_timer
from webtask_scheduler.scheduler.models import Delivery, Timer, TimerLabel
from webtask_scheduler.scheduler.services import schedule

WANTED = [
    {"web_url": "http://a.example/remind", "delay": "PT1H", "labels": {"order": "17"}},
    {"web_url": "http://a.example/report", "cron": "0 9 * * MON-FRI", "timezone": "Europe/Berlin"},
]


def rows():
    models = (Timer, Delivery, TimerLabel, ClockedSchedule, CrontabSchedule)
    return [model.objects.count() for model in models] + [PeriodicTask.objects.filter(timer__isnull=False).count()]


def seen_by_another_connection(timer_id):
    """Whether the timer is committed."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM scheduler_delivery WHERE timer_id = %s", [timer_id])
            return cursor.fetchone()[0] == 1
    finally:
        other.close()


@pytest.mark.django_db(transaction=True)
def test_timers_exist_once_the_callers_transaction_has_committed_and_not_before():
    with transaction.atomic():
        user = get_user_model().objects.create_user("me@example.com", "secret")
        stored = schedule([read_timer(wanted) for wanted in WANTED])
        assert not seen_by_another_connection(stored[0].timer_id)
    assert user.pk
    assert all(seen_by_another_connection(one.timer_id) for one in stored)
    assert rows() == [2, 2, 1, 1, 1, 2]


@pytest.mark.django_db(transaction=True)
def test_timers_go_with_the_callers_transaction_when_it_is_rolled_back():
    class RegretError(Exception):
        pass

    with pytest.raises(RegretError), transaction.atomic():
        get_user_model().objects.create_user("me@example.com", "secret")
        schedule([read_timer(wanted) for wanted in WANTED])
        raise RegretError
    assert rows() == [0, 0, 0, 0, 0, 0]
    assert not get_user_model().objects.exists()


@pytest.mark.django_db
def test_what_the_api_refuses_is_refused_here_too():
    with pytest.raises(ValidationError) as refused:
        read_timer({"web_url": "ftp://a.example/", "delay": "an hour"})
    assert refused.value.detail.keys() == {"web_url", "delay"}
