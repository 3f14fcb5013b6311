"""The probes `/healthz` and `/readyz`."""

import json
import logging
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import translation
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from config.database.base import wait_at_most
from config.shared import missing_parts
from webtask_scheduler.scheduler import facts
from webtask_scheduler.telemetry.events import event

# How long a probe waits for the database: with the broker's own limit, less than the 5 s that probes are given.
PROBE_SECONDS = 2.5


@csrf_exempt
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 while this process lives."""
    return JsonResponse({"status": "ok"})


@csrf_exempt
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 when timers can be created and will be called, else 503; the body says what is missing.

    Monitoring, and a start that waits for the service, use it. While all calls are stopped it answers 503, because no
    timer will be called. A load balancer must use `/healthz`, or a stop would take the API and the admin away as well.
    """
    # Monitoring reads this: it is in English whatever language the request asks for.
    with translation.override("en"):
        return _readiness()


def _readiness() -> HttpResponse:
    parts = ("database", "migrations", "beat", "worker", "calls", "keys")
    checks = dict.fromkeys(parts, "ok") | {"broker": facts.broker_trouble(at_once=True) or "ok"}
    body: dict[str, Any] = {}
    try:
        with wait_at_most(PROBE_SECONDS):
            if facts.is_migrated(at_once=True):
                found = facts.gather(at_once=True)
                checks["beat"] = found.beat_trouble or "ok"
                checks["worker"] = found.worker_trouble or "ok"
                checks["calls"] = "calls are stopped" if found.all_stopped else "ok"
                checks["keys"] = found.keys_trouble or "ok"
                body["backlog"] = {"overdue": found.late, "oldest_seconds": round(found.late_seconds, 1)}
            else:
                checks["migrations"] = "not applied: run manage.py migrate"
                checks |= dict.fromkeys(parts[2:], "not known before migrations are applied")
    except (DatabaseError, InterfaceError):
        connection.close()
        checks |= dict.fromkeys(parts, "the database does not answer")
    _report(checks)
    ready = set(checks.values()) == {"ok"}
    body = {"status": "ok" if ready else "unavailable", "checks": checks} | body
    return HttpResponse(json.dumps(body), content_type="application/json", status=200 if ready else 503)


def _report(checks: dict[str, str]) -> None:
    """Log which parts are missing when these change, and once that none is any more: probes come every few seconds."""
    missing = {part: trouble for part, trouble in checks.items() if trouble != "ok"}
    bits = sum(1 << index for index, part in enumerate(checks) if part in missing)
    before, missing_parts[0] = missing_parts[0], bits
    if missing and bits != before:
        event(
            "not_ready",
            level=logging.WARNING,
            parts="; ".join(f"{part}: {trouble}" for part, trouble in missing.items()),
        )
    elif before and not missing:
        event("ready_again")


urlpatterns = [path("healthz", healthz), path("readyz", readyz)]
