"""`/calendar.ics`: the calls to come, for calendar programs, and the secret address at which they ask for them.

A calendar program sends neither a header nor a cookie: the query holds a secret of the user whose timers are shown, and
beside it the API's filter. Where the API is open, timers that nobody owns need none.
"""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import get_conditional_response
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe
from rest_framework import exceptions

from webtask_scheduler.access import calendars
from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard import upcoming
from webtask_scheduler.dashboard.who import refused_turn
from webtask_scheduler.scheduler.api.base import validated
from webtask_scheduler.scheduler.api.filtering import FilterSerializer, filter_of
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.models import Delivery, State, Timer
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller

# The secret's name in the query. Nothing of a query is logged.
KEY = "key"
DAYS = 14
# Timers that are looked for, and for how long; and events of one calendar, the soonest.
TIMERS_MOST, LOOK_SECONDS, EVENTS_MOST = 500, 0.5, 500
# How often programs are asked to look again. Most have an interval of their own.
AGAIN = "PT15M"
# Octets of a line.
LINE_MOST = 75
_ESCAPES = str.maketrans({"\\": "\\\\", ";": "\\;", ",": "\\,", "\n": "\\n"})
# What the calendar's own window says takes the place of these.
_NOT_TAKEN = ("status", "due_from", "due_to")


@require_safe
def calendar(request: HttpRequest) -> HttpResponseBase:
    """Return the calls of the next DAYS days, soonest first; 304 where the program has them already."""
    caller = _caller(request)
    refused = refused_turn(request, owner_id=caller.owner_id if caller else None)
    if refused is not None:
        return refused
    if caller is None:
        text = _("There is no such calendar: its address is mistyped, or was renewed or removed under Settings.")
        return _said(text, 404)
    now = timezone.now()
    try:
        wanted = _filter(request, caller, now=now)
    except exceptions.ValidationError as error:
        return _said("; ".join(f"{one['field']}: {one['detail']}" for one in invalid(error.detail)["errors"]), 400)
    found = search.page(wanted, cursor="", limit=TIMERS_MOST, seconds=LOOK_SECONDS)
    body = _written(request, found.timer_ids, now=now, is_cut=found.next is not None)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    answer = HttpResponse(body, content_type="text/calendar; charset=utf-8")
    answer["ETag"] = etag
    # Nobody else's cache may keep it, and a program's own asks whether it is still so.
    answer["Cache-Control"] = "private, no-cache"
    answer["X-Robots-Tag"] = "noindex"
    answer["Content-Disposition"] = 'inline; filename="timers.ics"'
    return get_conditional_response(request, etag=etag, response=answer) or answer


def _said(text: str, status: int) -> HttpResponse:
    answer = HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")
    answer["Cache-Control"] = "no-store"
    answer["X-Robots-Tag"] = "noindex"
    return answer


def _caller(request: HttpRequest) -> Caller | None:
    """Return whose timers are shown; None where the secret is none, or is missing where one is needed."""
    text = request.GET.get(KEY, "")
    if not text:
        return Caller() if is_open() else None
    owner_id = calendars.find(text)
    return None if owner_id is None else Caller(owner_id=owner_id)


def _filter(request: HttpRequest, caller: Caller, *, now: datetime) -> search.Filter:
    """Return the filter of the query: what waits for the next days. Raises ValidationError."""
    given = QueryDict(mutable=True)
    for name, values in request.GET.lists():
        if name in _NOT_TAKEN:
            raise exceptions.ValidationError({name: _("A calendar has what waits for the next days; leave it out.")})
        if name != KEY:
            given.setlist(name, values)
    values = validated(FilterSerializer, given)
    values |= {"status": [State.SCHEDULED], "due_from": now, "due_to": now + timedelta(days=DAYS)}
    return filter_of(values, caller=caller)


def _written(request: HttpRequest, timer_ids: Sequence[uuid.UUID], *, now: datetime, is_cut: bool) -> bytes:
    """Return the calendar: what is promised of these timers, and what their schedules add."""
    promised = {
        one.timer_id: one
        for one in Delivery.objects.filter(timer__in=timer_ids, state=State.SCHEDULED, extra=False)
        .select_related("timer")
        .defer("timer__options", "timer__made_by")
    }
    until = now + timedelta(days=DAYS)
    followed = upcoming.Followed(
        [_schedule(one) for one in promised.values() if one.timer.recurring],
        begin=now,
        until=until,
        most=EVENTS_MOST,
    )
    calls = [upcoming.Coming(one.next_attempt_at, one.timer_id, True) for one in promised.values()]
    calls += [upcoming.Coming(at, timer_id, False) for timer_id, moments in followed for at in moments]
    calls.sort(key=lambda one: (one.at, str(one.timer_id)))
    lines = [
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//webtask_scheduler//calendar//EN",
        f"X-WR-CALNAME:{_text(_('Timers'))}",
        f"X-WR-CALDESC:{_text(_about(calls, is_cut=is_cut or followed.are_more or bool(followed.are_long)))}",
        f"REFRESH-INTERVAL;VALUE=DURATION:{AGAIN}",
        f"X-PUBLISHED-TTL:{AGAIN}",
    ]
    for one in calls[:EVENTS_MOST]:
        timer = promised[one.timer_id].timer
        lines += [
            "BEGIN:VEVENT",
            # The same call has the same id, before it is promised and after.
            f"UID:{timer.pk}-{round(one.at.timestamp())}@webtask",
            # When the timer was made: the present instant would make another text each time.
            f"DTSTAMP:{_instant(timer.created_at)}",
            f"DTSTART:{_instant(one.at)}",
            f"SUMMARY:{_text(_name(timer))}",
            f"URL:{request.build_absolute_uri(reverse('dashboard:timer', args=[timer.pk]))}",
            f"STATUS:{'CONFIRMED' if one.is_promised else 'TENTATIVE'}",
            # It keeps nobody busy.
            "TRANSP:TRANSPARENT",
            "END:VEVENT",
        ]
    return b"".join(map(_folded, [*lines, "END:VCALENDAR"]))


# As RFC 5545 has it. Libraries for it take half a millisecond for an event.


def _instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _text(text: str) -> str:
    """Return a text as the value of a property, without the characters that none may have."""
    if not text.isprintable():
        text = "".join(one if one.isprintable() or one == "\n" else " " for one in text)
    return text.translate(_ESCAPES)


def _folded(line: str) -> bytes:
    """Return a line in pieces of up to 75 octets, none of which splits a character."""
    left, pieces, most = line.encode(), [], LINE_MOST
    while len(left) > most:
        cut = most
        while left[cut] & 0xC0 == 0x80:  # noqa: PLR2004 - an octet of UTF-8 that begins no character
            cut -= 1
        pieces.append(left[:cut])
        # Each further line begins with a space.
        left, most = left[cut:], LINE_MOST - 1
    return b"\r\n ".join([*pieces, left]) + b"\r\n"


def _schedule(one: Delivery) -> dict[str, Any]:
    """Return a timer's schedule as `upcoming.Followed` takes it."""
    timer = one.timer
    left = None if timer.max_occurrences is None else timer.max_occurrences - one.occurrence
    names = ("id", "cron", "timezone", "every_seconds", "starts_at", "ends_at")
    return {name: getattr(timer, name) for name in names} | {"due_at": one.due_at, "left": left}


def _about(calls: Sequence[upcoming.Coming], *, is_cut: bool) -> str:
    """Return in a sentence what the calendar holds, and whether that is all."""
    text = _("The calls of the next %(days)s days.") % {"days": DAYS}
    if is_cut or len(calls) > EVENTS_MOST:
        count = min(len(calls), EVENTS_MOST)
        more = ngettext(
            "There are more: only %(count)s is here.", "There are more: only the first %(count)s are here.", count
        )
        text += " " + more % {"count": count}
    return text


def _name(timer: Timer) -> str:
    """Return what a timer is called: its name, else what of its URL holds no secret."""
    if timer.name:
        return timer.name
    parts = urlsplit(timer.web_url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"
