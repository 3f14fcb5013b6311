"""`/timers/export.csv`, `.jsonl` and `.yaml`: the timers that fit the list's filter.

An answer is whole in memory before it is sent: a web process has few threads, and a client that reads slowly must
not hold one. So an export has a largest size and a longest time, and a process writes one at a time.
"""

import csv
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe
from rest_framework import exceptions

from webtask_scheduler.dashboard.timers import EXPORT_MOST, filter_of, ids_from
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.api.showing import fitting, show_timers
from webtask_scheduler.scheduler.rules import timers_file
from webtask_scheduler.scheduler.services import search

# Timers that are read at a time, and how large the texts of one time may be.
ROWS, MOST_BYTES = 1000, 4_000_000
# How large an export may be, and how long writing it may take: 100,000 small timers are 41 MB and take some 10 s.
EXPORT_BYTES, EXPORT_SECONDS = 64_000_000, 20.0
AGAIN_SECONDS = 5
_under_way = threading.Lock()
COLUMNS = (
    *("task_id", "name", "status", "web_url", "created_at", "due_at", "next_attempt_at", "finished_at"),
    *(
        "cron",
        "timezone",
        "every",
        "attempts",
        "status_code",
        "error",
        "lateness_ms",
        "duration_ms",
        "labels",
        "reason",
    ),
)
# A cell that begins so is a formula to a spreadsheet, which may send the table elsewhere.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@page
@require_safe
def as_csv(request: HttpRequest) -> HttpResponse:
    """Return the timers as a table for spreadsheets, with their last call."""
    return _export(request, "text/csv; charset=utf-8", "csv", _csv)


@page
@require_safe
def as_json_lines(request: HttpRequest) -> HttpResponse:
    """Return the timers as the API shows them, one a line."""
    return _export(request, "application/jsonl; charset=utf-8", "jsonl", _json_lines)


@page
@require_safe
def as_yaml(request: HttpRequest) -> HttpResponse:
    """Return the timers as a file for a repository, which import takes: without the calls that were made."""
    return _export(request, "application/yaml; charset=utf-8", "yaml", _yaml)


def _export(
    request: HttpRequest, media_type: str, ending: str, write: Callable[[Iterator[dict[str, Any]]], Iterator[str]]
) -> HttpResponse:
    caller = caller_of(request)
    try:
        wanted = filter_of(request, caller)
    except exceptions.ValidationError as error:
        return _said("; ".join(f"{one['field']}: {one['detail']}" for one in invalid(error.detail)["errors"]), 400)
    ids = ids_from(request, caller)
    # Steady, so that a timer whose status changes meanwhile is there once.
    timers = _timers(replace(wanted, steady=True)) if ids is None else _shown(ids)
    if not _under_way.acquire(blocking=False):
        answer = _said(_("Another export is being written. Try again in some seconds."), 503)
        answer["Retry-After"] = str(AGAIN_SECONDS)
        return answer
    try:
        parts = _bounded(write(timers))
    finally:
        _under_way.release()
    if parts is None:
        text = _(
            "This export is larger than %(megabytes)s MB or takes longer than %(seconds)s s, and nothing of it is sent."
            " Narrow the filter, or use the command manage.py timer export, which has no such bound."
        )
        return _said(text % {"megabytes": EXPORT_BYTES // 1_000_000, "seconds": f"{EXPORT_SECONDS:g}"}, 400)
    answer = HttpResponse(parts, content_type=media_type)
    answer["Content-Disposition"] = f'attachment; filename="timers-{timezone.now():%Y%m%dT%H%M%SZ}.{ending}"'
    return answer


def _said(text: str, status: int) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")


def _bounded(texts: Iterator[str]) -> list[bytes] | None:
    """Return the texts, or None if they are too large or take too long."""
    parts, size, ends_at = [], 0, time.monotonic() + EXPORT_SECONDS
    for text in texts:
        parts.append(text.encode())
        size += len(parts[-1])
        if size > EXPORT_BYTES or time.monotonic() > ends_at:
            return None
    return parts


def _timers(wanted: search.Filter) -> Iterator[dict[str, Any]]:
    """Yield up to EXPORT_MOST timers as the API shows them, the newest first."""
    left: int = EXPORT_MOST
    cursor: str | None = ""
    while cursor is not None and left:
        found = search.page(wanted, cursor=cursor, limit=min(ROWS, left))
        yield from _shown(found.timer_ids)
        left -= len(found.timer_ids)
        cursor = found.next


def _shown(ids: Sequence[uuid.UUID]) -> Iterator[dict[str, Any]]:
    """Yield timers as the API shows them, with up to MOST_BYTES of texts in memory."""
    ids = list(ids)
    while ids:
        few = fitting(ids, most_bytes=MOST_BYTES)
        yield from show_timers(ids[:few])
        ids = ids[few:]


def _json_lines(timers: Iterator[dict[str, Any]]) -> Iterator[str]:
    for timer in timers:
        yield json.dumps(timer, ensure_ascii=False) + "\n"


def _yaml(timers: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield from timers_file.write(json.loads(json.dumps(timer, default=str)) for timer in timers)


def _csv(timers: Iterator[dict[str, Any]]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for timer in timers:
        writer.writerow([_cell(value) for value in _values(timer)])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    # Of no timer the names of the columns alone.
    yield text.getvalue()


def _values(timer: dict[str, Any]) -> Iterator[Any]:
    attempts = timer["attempts"]
    last = attempts[-1] if attempts else {}
    labels = " ".join(f"{key}={value}" for key, value in timer.get("labels", {}).items())
    own = {"attempts": last.get("number", 0), "labels": labels}
    own |= {name: last.get(name) for name in ("status_code", "error", "lateness_ms", "duration_ms")}
    return (own.get(name, timer.get(name)) for name in COLUMNS)


def _cell(value: Any) -> Any:
    """Return a value as a spreadsheet takes it for a text, whatever a person or a receiver wrote."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
