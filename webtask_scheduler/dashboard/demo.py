"""A receiver to try the service with, for a laptop: it answers 200 and shows the calls that it got last.

The calls are kept in Redis for a day, because several web processes answer. They are nobody's, so there is no receiver
where timers have owners: the setting WEBTASK_DEMO_RECEIVER is empty but for local settings.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import redis
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt

from webtask_scheduler.broker import redis_client
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.scheduler.api.document import demo_receiver
from webtask_scheduler.scheduler.rules.instants import instant_text

# Calls that are kept, how much of each, and for how long.
KEPT = 20
BODY_MOST = 2000
HEADER_MOST = 200
KEPT_SECONDS = 24 * 3600
_KEY = "webtask_scheduler:demo_receiver"
_TIMEOUT_SECONDS = 1.5


def address(request: HttpRequest) -> str:
    """Return the receiver's URL as workers reach it; empty if there is none."""
    return demo_receiver(request)


@csrf_exempt
def receiver(request: HttpRequest) -> HttpResponse:
    """Take a call, or show a person what came."""
    if not address(request):
        raise Http404
    if _is_for_people(request):
        return show(
            request,
            "receiver.html",
            title=_("Demo receiver"),
            at="demo",
            calls=_calls(),
            path=reverse("dashboard:demo"),
        )
    _keep(request)
    return JsonResponse({"received": True})


def _is_for_people(request: HttpRequest) -> bool:
    accept = request.headers.get("Accept", "")
    return request.method == "GET" and "text/html" in accept and "webhook-id" not in request.headers


def _keep(request: HttpRequest) -> None:
    headers = {
        name.lower(): value[:HEADER_MOST]
        for name, value in request.headers.items()
        if name.lower().startswith(("webhook-", "webtask-")) or name in ("Content-Type", "User-Agent")
    }
    call = {
        "at": instant_text(timezone.now()),
        "method": request.method,
        "headers": headers,
        "body": request.body[:BODY_MOST].decode(errors="replace"),
    }
    try:
        with _client().pipeline() as pipe:
            pipe.lpush(_KEY, json.dumps(call))
            pipe.ltrim(_KEY, 0, KEPT - 1)
            pipe.expire(_KEY, KEPT_SECONDS)
            pipe.execute()
    except redis.RedisError:
        # The call has arrived all the same; only its record is missing.
        return


def _calls() -> list[Mapping[str, Any]]:
    """Return the calls that are kept, the latest first; none while Redis is away."""
    try:
        found: Any = _client().lrange(_KEY, 0, KEPT - 1)
    except redis.RedisError:
        return []
    return [json.loads(text) for text in found]


@functools.cache
def _client() -> redis.Redis:
    return redis_client(timeout_seconds=_TIMEOUT_SECONDS, retries=False)
