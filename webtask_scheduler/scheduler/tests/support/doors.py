"""The doors by which an operator edits a PeriodicTask or its schedule: the admin's forms and actions, and the ORM."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.scheduler import services

TASKS = "/admin/django_celery_beat/periodictask/"


def each(doors):
    """Run a test by each of the doors, as its `door`."""
    return pytest.mark.parametrize("door", doors.values(), ids=doors.keys())


def soon(**offset):
    return (timezone.now() + timedelta(**offset)).replace(microsecond=0)


def sweep():
    """Do what the task does that looks for bare edits."""
    after = 0
    while after is not None:
        after = services.reconcile(after=after, limit=100)


def post(client, address, data):
    answer = client.post(address, data)
    assert answer.status_code == 302, answer.context and answer.context["errors"]


def form(task, **changes):
    data = {"enabled": "on" if task.enabled else "", "description": task.description}
    data |= {"clocked": task.clocked_id, "interval": task.interval_id, "crontab": task.crontab_id}
    return {name: value for name, value in (data | changes).items() if value not in ("", None)}


def address_of(row, page="change"):
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{page}", args=[row.pk])


def act(client, action, *rows, **fields):
    answer = client.post(TASKS, {"action": action, "_selected_action": [row.pk for row in rows], **fields})
    assert answer.status_code == 302
    return answer


def saved(row, **fields):
    for name, value in fields.items():
        setattr(row, name, value)
    row.save()


def bare(row, **fields):
    """Write past all signals, as an update does, and sweep."""
    type(row).objects.filter(pk=row.pk).update(**fields)
    sweep()


def clocked_form(moment):
    return {
        "clocked_time_0": f"{moment:%Y-%m-%d}",
        "clocked_time_1": f"{moment:%H:%M:%S}",
        "periodictask_set-TOTAL_FORMS": "0",
        "periodictask_set-INITIAL_FORMS": "0",
    }


# Each takes a task, and the admin's test client.
DISABLE = {
    "admin form": lambda task, client: post(client, address_of(task), form(task, enabled="")),
    "admin action": lambda task, client: act(client, "disable_tasks", task),
    "admin toggle": lambda task, client: act(client, "toggle_tasks", task),
    "save": lambda task, client: saved(task, enabled=False),
    "save of one field": lambda task, client: (setattr(task, "enabled", False), task.save(update_fields=["enabled"])),
    "fresh row": lambda task, client: saved(PeriodicTask.objects.get(pk=task.pk), enabled=False),
}
ENABLE = {
    "admin form": lambda task, client: post(client, address_of(task), form(task, enabled="on")),
    "admin action": lambda task, client: act(client, "enable_tasks", task),
    "admin toggle": lambda task, client: act(client, "toggle_tasks", task),
    "save": lambda task, client: saved(task, enabled=True),
    "save of one field": lambda task, client: (setattr(task, "enabled", True), task.save(update_fields=["enabled"])),
}
