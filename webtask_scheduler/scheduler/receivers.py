"""Applies to timers what the admin or other code does to PeriodicTask, its schedules and users.

This is the one exception to "no signals": `save()` and `delete()` of stock rows are not ours to replace, and users know
nothing of timers. A bare `.update()` sends no signal; the claim and `services.reconcile` notice it.
"""

from typing import Any

from celery import signals
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler import mirror, services
from webtask_scheduler.scheduler.models import TASK_NAME
from webtask_scheduler.users.models import user_deleted

# In a beat process only the scheduler writes to these rows, and its writes are book-keeping, not a person's edits.
_in_beat = False


def connect() -> None:
    """Connect the receivers; called once, when the apps are ready."""
    pre_save.connect(_before_task, sender=PeriodicTask)
    post_save.connect(_after_task, sender=PeriodicTask)
    pre_delete.connect(_deleting_task, sender=PeriodicTask)
    post_delete.connect(_deleted_task, sender=PeriodicTask)
    for schedule in (ClockedSchedule, CrontabSchedule, IntervalSchedule):
        pre_save.connect(_before_schedule, sender=schedule)
        post_save.connect(_after_schedule, sender=schedule)
    user_deleted.connect(_deleting_user)
    signals.beat_init.connect(_beat_begins)
    signals.beat_embedded_init.connect(_beat_begins)


def _beat_begins(**_: Any) -> None:
    global _in_beat  # noqa: PLW0603 - a fact about this process
    _in_beat = True


def _before_task(instance: PeriodicTask, **_: Any) -> None:
    if instance.pk is not None and instance.task == TASK_NAME and not _in_beat:
        services.lock_for_edit([instance.pk])
        services.check_edit(instance)
        stored = PeriodicTask.objects.filter(pk=instance.pk).first()
        instance._schedules_before = mirror.schedules_of(stored) if stored else {}  # noqa: SLF001 - for _after_task


def _after_task(instance: PeriodicTask, created: bool, **_: Any) -> None:
    if created or instance.task != TASK_NAME:
        return
    if _in_beat:
        services.note_run_by_stock(instance.pk)
    else:
        services.obey([instance.pk])
        mirror.drop_schedules(getattr(instance, "_schedules_before", {}))


def _deleting_task(instance: PeriodicTask, **_: Any) -> None:
    if instance.task == TASK_NAME:
        services.obey_deleted([instance.pk])


def _deleted_task(instance: PeriodicTask, **_: Any) -> None:
    if instance.task == TASK_NAME:
        mirror.drop_schedules(mirror.schedules_of(instance))


def _deleting_user(user: Any, **_: Any) -> None:
    services.end_owner(user.pk)


def _tasks_of(schedule: services.Schedule) -> list[int]:
    column = {ClockedSchedule: "clocked", CrontabSchedule: "crontab", IntervalSchedule: "interval"}[type(schedule)]
    return list(PeriodicTask.objects.filter(**{column: schedule.pk}, task=TASK_NAME).values_list("pk", flat=True))


def _before_schedule(instance: services.Schedule, **_: Any) -> None:
    if instance.pk is not None:
        services.lock_for_edit(_tasks_of(instance))
        services.check_schedule_edit(instance)


def _after_schedule(instance: services.Schedule, created: bool, **_: Any) -> None:
    if not created:
        services.obey(_tasks_of(instance))
