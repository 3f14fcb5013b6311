"""The doors by which an operator edits a PeriodicTask or its schedule: the admin's forms and actions, and the ORM."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.tests.support.cases import each

TASKS = "/admin/django_celery_beat/periodictask/"


def through(doors: Mapping[str, Any]) -> Any:
    """Run a test by each of the doors, as its `door`."""
    return each("door", list(doors.values()), ids=doors.keys())


def soon(**offset: float) -> datetime:
    return (timezone.now() + timedelta(**offset)).replace(microsecond=0)


def sweep() -> None:
    """Do what the task does that looks for bare edits."""
    after: int | None = 0
    while after is not None:
        after = services.reconcile(after=after, limit=100)


def post(client: Any, address: str, data: Mapping[str, Any]) -> None:
    answer = client.post(address, data)
    assert answer.status_code == 302, answer.context and answer.context["errors"]


def form(task: Any, **changes: Any) -> dict[str, Any]:
    data = {"enabled": "on" if task.enabled else "", "description": task.description}
    data |= {"clocked": task.clocked_id, "interval": task.interval_id, "crontab": task.crontab_id}
    return {name: value for name, value in (data | changes).items() if value not in ("", None)}


def address_of(row: Any, page: str = "change") -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{page}", args=[row.pk])


def act(client: Any, action: str, *rows: Any, **fields: Any) -> Any:
    answer = client.post(
        TASKS, {"action": action, "_selected_action": [row.pk for row in rows], "confirmed": "yes"} | fields
    )
    assert answer.status_code == 302
    return answer


def saved(row: Any, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(row, name, value)
    row.save()


def save_one(row: Any, *, enabled: bool) -> None:
    row.enabled = enabled
    row.save(update_fields=["enabled"])


def bare(row: Any, **fields: Any) -> None:
    """Write past all signals, as an update does, and sweep."""
    type(row).objects.filter(pk=row.pk).update(**fields)
    sweep()


def clocked_form(moment: datetime) -> dict[str, str]:
    return {
        "clocked_time_0": f"{moment:%Y-%m-%d}",
        "clocked_time_1": f"{moment:%H:%M:%S}",
        "periodictask_set-TOTAL_FORMS": "0",
        "periodictask_set-INITIAL_FORMS": "0",
    }


# Each takes a task, and the admin's test client.
DISABLE: dict[str, Callable[[Any, Any], Any]] = {
    "admin form": lambda task, client: post(client, address_of(task), form(task, enabled="")),
    "admin action": lambda task, client: act(client, "disable_tasks", task),
    "admin toggle": lambda task, client: act(client, "toggle_tasks", task),
    "save": lambda task, client: saved(task, enabled=False),
    "save of one field": lambda task, client: save_one(task, enabled=False),
    "fresh row": lambda task, client: saved(PeriodicTask.objects.get(pk=task.pk), enabled=False),
}
ENABLE: dict[str, Callable[[Any, Any], Any]] = {
    "admin form": lambda task, client: post(client, address_of(task), form(task, enabled="on")),
    "admin action": lambda task, client: act(client, "enable_tasks", task),
    "admin toggle": lambda task, client: act(client, "toggle_tasks", task),
    "save": lambda task, client: saved(task, enabled=True),
    "save of one field": lambda task, client: save_one(task, enabled=True),
}
