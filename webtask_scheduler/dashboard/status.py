"""`/status`, `/status.json` and `/status/badge.svg`: for anybody, whether calls begin on time.

They say what `/punctuality` says, of the same counts, without hosts, names and numbers of calls. Where WEBTASK_STATUS
does not make them public, they are not there: how punctual a service is, and when it was down, is its owner's to tell.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from config.database.base import wait_at_most
from webtask_scheduler.dashboard import charts, queries
from webtask_scheduler.dashboard.punctuality import bound_text, is_kept, promise_text, share_of, within_of
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.rules.instants import instant_text

# What is known is so old at most, here and in the caches of others. It bounds what a flood of requests costs.
KEPT_SECONDS = 30.0
# How long the database is waited for.
PATIENCE_SECONDS = 2.5
DAY_SECONDS = 24 * 3600
DAYS = 30
# A timer that is so late is worth the word, as on the overview.
LATE_SECONDS = 2.0

# The words of the badge and of JSON, which programs read; pages say them in the reader's language.
ON_TIME, LATE, DOWN = "on time", "late", "down"
_STATES = {ON_TIME: "succeeded", LATE: "late", DOWN: "failed"}
_COLOURS = {ON_TIME: "#0b7468", LATE: "#9a4a00", DOWN: "#b3261e"}


@dataclass(frozen=True, slots=True)
class Status:
    """What was known at an instant. Without the database, that it is away is all."""

    word: str
    at: datetime
    # Lateness of first attempts, by the name of the window, and its shares by day, the oldest first: a label, how many
    # and how many of them late.
    late: dict[str, list[int]] = field(default_factory=dict)
    days: Sequence[tuple[str, int, int]] = ()


_lock = threading.Lock()
# When it was found out, by the monotonic clock; and the pages that were made of it, by their language.
_known: tuple[float, Status] | None = None
_pages: dict[str, tuple[Status, bytes]] = {}


def current() -> Status:
    """Return what is known, at most KEPT_SECONDS old; one thread finds it out, and the others have the last."""
    global _known  # noqa: PLW0603 - one status a process is the point
    known = _known
    if known is not None and time.monotonic() - known[0] < KEPT_SECONDS:
        return known[1]
    # Without anything to tell, a request waits for the one that finds out.
    if not _lock.acquire(blocking=known is None):
        return known[1]  # type: ignore[index]  # it is not None, or the lock was waited for
    try:
        if _known is known:
            _known = time.monotonic(), _find_out()
        return _known[1]  # type: ignore[index]  # set above, or by another thread
    finally:
        _lock.release()


def forget() -> None:
    """Drop what is known; for tests."""
    global _known  # noqa: PLW0603 - as above
    _known = None


def _find_out() -> Status:
    now = timezone.now()
    today = int(now.timestamp()) // DAY_SECONDS
    since = datetime.fromtimestamp((today - DAYS + 1) * DAY_SECONDS, UTC)
    try:
        with wait_at_most(PATIENCE_SECONDS):
            found = facts.gather()
            late = {
                "1h": queries.lateness_since(now - timedelta(hours=1)),
                "24h": queries.lateness_since(now - timedelta(hours=24)),
            }
            counted = queries.steps_since(since, step_seconds=DAY_SECONDS, within_seconds=settings.WEBTASK_SLO_SECONDS)
    except (DatabaseError, InterfaceError):
        connection.close()
        return Status(DOWN, now)
    by_day = {row["step"]: row for row in counted}
    days = []
    for day in range(today - DAYS + 1, today + 1):
        row = by_day.get(day, {"total": 0, "late": 0})
        days.append((f"{datetime.fromtimestamp(day * DAY_SECONDS, UTC):%F}", row["total"], row["late"]))
    return Status(_word(found, late["1h"]), now, late, days)


def _word(found: facts.Facts, last_hour: Sequence[int]) -> str:
    """Return whether timers are called at all, and if so, whether they are called on time, now and in the last hour."""
    # That of a timer whose host is not stopped.
    if found.cause(""):
        return DOWN
    is_late = found.late and found.late_seconds > LATE_SECONDS
    return LATE if is_late or not is_kept(last_hour) else ON_TIME


def _public(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a view for anybody, which caches keep; of one that is not public there is none."""

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        if not settings.WEBTASK_STATUS:
            raise Http404
        found = view(request)
        found["Cache-Control"] = f"public, max-age={KEPT_SECONDS:.0f}"
        return found

    return require_safe(answer)


def _for_other_sites(answer: HttpResponse) -> HttpResponse:
    """Let pages of other sites show it, and their scripts read it."""
    answer["Cross-Origin-Resource-Policy"] = "cross-origin"
    answer["Access-Control-Allow-Origin"] = "*"
    return answer


@_public
def page(request: HttpRequest) -> HttpResponse:
    """Show it to people, in the language that the browser asks for: a cache does not know cookies."""
    asked = HttpRequest()
    asked.META["HTTP_ACCEPT_LANGUAGE"] = request.headers.get("Accept-Language", "")
    language = translation.get_language_from_request(asked)
    status = current()
    kept = _pages.get(language)
    if kept is None or kept[0] is not status:
        with translation.override(language):
            kept = _pages[language] = status, render_to_string("dashboard/status.html", _shown(status)).encode()
    answer = HttpResponse(kept[1])
    answer["Content-Language"] = language
    return answer


def _shown(status: Status) -> dict[str, Any]:
    words = {ON_TIME: _("On time."), LATE: _("Late."), DOWN: _("Down.")}
    meanings = {
        ON_TIME: _("Timers are called at their moments."),
        LATE: _("Timers are called, and some of them later than they should be."),
        DOWN: _("Timers are not called now. They are kept, and called when the service is back."),
    }
    day = status.late.get("24h", [])
    percentiles = [
        (f"{percent:g} %", bound_text(histogram.bound_of(bucket)))
        for percent in (50, 90, 99)
        if any(day) and (bucket := histogram.percentile(day, percent)) is not None
    ]
    return {
        "status": status,
        "state": _STATES[status.word],
        "word": words[status.word],
        "meaning": meanings[status.word],
        "share": share_of(within_of(day), sum(day)),
        "percentiles": percentiles,
        "slo": {"percent": f"{settings.WEBTASK_SLO_PERCENT:g}", "bound": promise_text()},
        "days": _days(status.days),
        "first_day": status.days[0][0] if status.days else "",
        "last_day": status.days[-1][0] if status.days else "",
    }


def _days(days: Sequence[tuple[str, int, int]]) -> list[charts.Stack]:
    """Return a bar for each day, coloured by whether the promise was kept; none for a day without calls."""
    bars = []
    for day, total, late in days:
        kept = total - late >= total * settings.WEBTASK_SLO_PERCENT / 100
        said = f"{share_of(total - late, total)} %" if total else _("no calls")
        bars.append((f"{day} · {said}", [("succeeded" if kept else "late", 1 if total else 0)]))
    return charts.stacks(bars)


@_public
def as_json(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer it to programs."""
    status = current()
    windows = {}
    for name, late in status.late.items():
        total = sum(late)
        windows[name] = {
            "share_percent": float(share_of(within_of(late), total)) if total else None,
            "p50_ms_at_most": _at_most_ms(late, 50),
            "p99_ms_at_most": _at_most_ms(late, 99),
        }
    body = {
        "status": status.word,
        "at": instant_text(status.at),
        "objective": {"percent": settings.WEBTASK_SLO_PERCENT, "seconds": settings.WEBTASK_SLO_SECONDS},
        "windows": windows,
        "days": [
            {"day": day, "share_percent": float(share_of(total - late, total)) if total else None}
            for day, total, late in status.days
        ],
    }
    return _for_other_sites(JsonResponse(body))


def _at_most_ms(late: Sequence[int], percent: float) -> float | None:
    """Return the bound below which a percentile of lateness is; None without calls, and beyond the last bound."""
    bucket = histogram.percentile(late, percent) if sum(late) else None
    if bucket is None or bucket >= len(histogram.BOUNDS):
        return None
    return histogram.bound_of(bucket) * 1000


@_public
def badge(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer it as a picture of one line."""
    word = current().word
    values = {"word": word, "colour": _COLOURS[word], "width": 14 + 7 * len(word)}
    body = render_to_string("dashboard/badge.svg", values)
    return _for_other_sites(HttpResponse(body, content_type="image/svg+xml"))
