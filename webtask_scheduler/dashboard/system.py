"""`/system`: the processes behind the calls, for those who run the service."""

from datetime import timedelta
from typing import Any

import django
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe
from django_celery_beat.models import PeriodicTask

from webtask_scheduler import __version__
from webtask_scheduler.dashboard import queries
from webtask_scheduler.dashboard.frame import is_live, show
from webtask_scheduler.dashboard.timers import unchanged_or
from webtask_scheduler.dashboard.who import page, sees_service
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import Beat, CallStop

# Tables that are shown, and the task that deletes what ended long ago.
TABLES = 5
PRUNE = "webtask_scheduler prune"


@page
@require_safe
def system(request: HttpRequest) -> HttpResponse:
    """Show which processes are at work, and what waits for them."""
    if not sees_service(request):
        raise PermissionDenied
    numbers, found = facts.count(), facts.gather()
    troubles = [found.beat_trouble, found.worker_trouble, facts.broker_trouble(), found.keys_trouble]
    values: dict[str, Any] = {
        "numbers": numbers,
        "found": found,
        "beats": list(Beat.objects.order_by("-seen_at")[:20]),
        "stops": list(CallStop.objects.order_by("host")[:20]),
        "troubles": [trouble for trouble in troubles if trouble],
        "upkeep_trouble": found.upkeep_trouble,
        "fresh_since": timezone.now() - timedelta(seconds=facts.SEEN_SECONDS),
    }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_system.html", values))
    versions = {"webtask_scheduler": __version__, "Django": django.__version__}
    # What hardly changes is on the page, not in what is asked for every few seconds.
    return show(
        request,
        "system.html",
        title=_("System"),
        at="system",
        versions=versions,
        flower=settings.WEBTASK_FLOWER_URL,
        changed=sorted(settings.CHANGED_SETTINGS.items()),
        tables=queries.largest_tables(most=TABLES),
        kept=_kept(),
        pruned_at=PeriodicTask.objects.filter(name=PRUNE).values_list("last_run_at", flat=True).first(),
        prune_seconds=settings.CELERY_BEAT_SCHEDULE[PRUNE]["schedule"],
        **values,
    )


def _kept() -> list[tuple[Any, int, str]]:
    """Return what is kept for how long or how many of them, each with the setting that says so; 0 is for ever."""
    return [
        (_("Ended timers, days"), settings.WEBTASK_RETENTION_DAYS, "WEBTASK_RETENTION_DAYS"),
        (_("Deliveries of a timer"), settings.WEBTASK_KEEP_DELIVERIES, "WEBTASK_KEEP_DELIVERIES"),
        (_("Entries of the audit log, days"), settings.WEBTASK_AUDIT_DAYS, "WEBTASK_AUDIT_DAYS"),
    ]
