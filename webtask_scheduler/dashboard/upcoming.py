"""`/upcoming`: what the next 24 hours or seven days bring: what is promised, and what schedules will add to it."""

import math
import operator
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard import charts, queries
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.rows import rows
from webtask_scheduler.dashboard.who import caller_of, changer_of, page
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.rules.recurrence import Recurrence, ScheduleError
from webtask_scheduler.scheduler.services import flows
from webtask_scheduler.scheduler.services.caller import Caller

PARTS, PART_SECONDS = 96, 900
PART = timedelta(seconds=PART_SECONDS)
HOURS, DAYS = 24, 7
HOUR = timedelta(hours=1)
# How many shades an hour of the week may have, beside that of nothing.
SHADES = 5
# Recurring timers that are followed, and moments of each; in the week, where they are only counted, each minute.
TIMERS_MOST, MOMENTS_MOST, WEEK_MOMENTS_MOST = 500, 100, DAYS * HOURS * 60
# A page may not take longer for schedules that take long to work out.
EXPAND_SECONDS = 0.08
# Calls of the chosen part that are listed.
LISTED = 30
WEEK = "week"
_TICK = timedelta(microseconds=1)


class Coming(NamedTuple):
    """A call to come: of a delivery that is promised, or of a schedule, which has made none yet."""

    at: datetime
    timer_id: Any
    is_promised: bool


class Span(NamedTuple):
    """The time that is drawn, in parts of one length."""

    begin: datetime
    parts: int
    part: timedelta

    @property
    def end(self) -> datetime:
        return self.begin + self.parts * self.part

    def at(self, number: int) -> datetime:
        return self.begin + number * self.part

    def number(self, at: datetime) -> int:
        """Return in which part an instant is, below 0 or from `parts` on outside of all."""
        return (at - self.begin) // self.part


class Followed:
    """Follows the schedules of recurring timers from what is promised on, and notes where that was cut.

    At most TIMERS_MOST timers and `most` moments of each are followed, and only for EXPAND_SECONDS.
    """

    def __init__(self, timers: Sequence[dict[str, Any]], *, begin: datetime, until: datetime, most: int) -> None:
        """Take `timers` as queries.recurring_of returns them."""
        self._timers, self._begin, self._until, self._most = timers, begin, until, most
        # Whether there may be more timers than were followed, and how many have more moments than were followed.
        self.are_more, self.are_long = len(timers) > TIMERS_MOST, 0

    def count(self, later: list[int], span: Span) -> None:
        """Count in each part of a time what recurs by an interval, and follow it no more: of it nothing is cut."""
        rest = []
        for one in self._timers[:TIMERS_MOST]:
            try:
                schedule = Recurrence.read(one)
            except ScheduleError:
                continue
            if schedule.every_seconds is None:
                rest.append(one)
                continue
            after = max(one["due_at"], span.begin - _TICK) if one["left"] is None else one["due_at"]
            counts = schedule.counts(after, span.begin, part=span.part, parts=span.parts, most=one["left"])
            later[:] = map(operator.add, later, counts)
        self._timers = rest

    def __iter__(self) -> Iterator[tuple[Any, list[datetime]]]:
        """Yield each timer's id with its moments in order, without the promised one."""
        moments = cache(Recurrence.within)
        deadline = time.monotonic() + EXPAND_SECONDS
        for one in self._timers[:TIMERS_MOST]:
            if time.monotonic() > deadline:
                self.are_more = True
                break
            try:
                schedule = Recurrence.read(one)
            except ScheduleError:
                continue
            left = one["left"]
            most = self._most if left is None else min(self._most, left)
            # Those that are left are counted from the promised one on.
            after = one["due_at"] if left is not None else max(one["due_at"], self._begin - _TICK)
            # One more than is wanted says whether there are more. Timers often share a schedule.
            found = moments(schedule, after, self._until, most=most + 1) if most > 0 else []
            self.are_long += len(found) > most == self._most
            found = found[:most]
            yield one["id"], found if after >= self._begin - _TICK else found[bisect_left(found, self._begin) :]


@page
@require_safe
def upcoming(request: HttpRequest) -> HttpResponse:
    """Show the strip of a day or the hours of a week, the seconds with very many calls, and the calls of one part."""
    caller, now = caller_of(request), timezone.now()
    is_week = request.GET.get("view") == WEEK
    if is_week:
        hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        span = Span(hour, DAYS * HOURS - hour.hour, HOUR)
    else:
        span = Span(datetime.fromtimestamp(now.timestamp() // PART_SECONDS * PART_SECONDS, UTC), PARTS, PART)
    where = queries.waiting_of(caller)
    found = queries.ahead(where, begin=span.begin, parts=span.parts, step_seconds=round(span.part.total_seconds()))
    timers = queries.recurring_of(caller, most=TIMERS_MOST + 1)
    most = WEEK_MOMENTS_MOST if is_week else MOMENTS_MOST
    followed = Followed(timers, begin=span.begin, until=span.end, most=most)
    later, coming = [0] * span.parts, list[Coming]()
    if is_week:
        followed.count(later, span)
    for timer_id, moments in followed:
        for at in moments:
            later[span.number(at)] += 1
        if not is_week:
            coming += [Coming(at, timer_id, False) for at in moments]
    cut = _cut(where, followed, most=most, is_estimate=bool(found.estimated))
    chosen = _chosen(request, span, found.counts, later)
    begin = span.at(chosen)
    if is_week and later[chosen]:
        # Those of one hour are few enough to be named.
        ahead = Followed(timers, begin=begin, until=begin + span.part, most=MOMENTS_MOST)
        coming = [Coming(at, timer_id, False) for timer_id, moments in ahead for at in moments]
    drawn: dict[str, Any] = {"week": _week(found, later, span=span, chosen=chosen, request=request)} if is_week else {}
    return show(
        request,
        "upcoming.html",
        title=_("Upcoming"),
        at="upcoming",
        is_week=is_week,
        views={"day": _address(request), "week": _address(request, view=WEEK)},
        strip=[] if is_week else _strip(found, later, span=span, chosen=chosen, request=request),
        hours=[f"{span.at(4 * hours):%H:%M}" for hours in range(0, 24, 4)],
        total=facts.shown_number(sum(found.counts)),
        total_later=facts.shown_number(sum(later)),
        is_estimate=bool(found.estimated),
        cut=cut,
        herds=[_herd(at, count) for at, count in found.herds],
        # Whoever sees the timers of all and may not change them would spread none of these.
        may_spread=changer_of(request).sees_all == caller.sees_all,
        **drawn,
        **_listed(
            caller,
            where,
            sorted(coming, key=lambda one: one.at),
            (begin, begin + span.part),
            promised=found.counts[chosen],
            later=later[chosen],
        ),
        earlier=_link(request, span.at(chosen - 1)) if chosen else "",
        following=_link(request, span.at(chosen + 1)) if chosen + 1 < span.parts else "",
        is_estimate_here=chosen in found.estimated,
    )


def _chosen(request: HttpRequest, span: Span, counts: Sequence[int], later: Sequence[int]) -> int:
    """Return the part that is asked for; else the first in which something comes."""
    try:
        at = datetime.fromisoformat(request.GET.get("at", ""))
        number = span.number(at.astimezone(UTC))
    except (ValueError, OverflowError):
        number = -1
    if 0 <= number < span.parts:
        return number
    return next((place for place in range(span.parts) if counts[place] or later[place]), 0)


def _address(request: HttpRequest, **more: str) -> str:
    """Return this page's address with this in its query, and for whose timers it is."""
    mine = {"mine": "1"} if "mine" in request.GET else {}
    query = urlencode({name: value for name, value in more.items() if value} | mine)
    return f"?{query}" if query else reverse("dashboard:upcoming")


def _link(request: HttpRequest, at: datetime) -> str:
    return _address(request, view=request.GET.get("view", ""), at=f"{at:%Y-%m-%dT%H:%MZ}") + "#calls"


def _strip(
    found: queries.Ahead, later: Sequence[int], *, span: Span, chosen: int, request: HttpRequest
) -> list[dict[str, Any]]:
    """Return the bars of the strip, each with its address."""
    bars = [
        (_said(found, later, number, span), [("scheduled", count), ("later", later[number])])
        for number, count in enumerate(found.counts)
    ]
    return [
        {"bar": bar, "link": _link(request, span.at(number)), "is_chosen": number == chosen}
        for number, bar in enumerate(charts.stacks(bars))
    ]


def _week(
    found: queries.Ahead, later: Sequence[int], *, span: Span, chosen: int, request: HttpRequest
) -> list[dict[str, Any]]:
    """Return the days, each with its hours: None for one that has passed, else its number, shade and address."""
    midnight = span.begin.replace(hour=0)
    totals = [promised + more for promised, more in zip(found.counts, later, strict=True)]
    most = max(totals)
    cells: list[dict[str, Any] | None] = [None] * span.begin.hour
    cells += [
        {
            "count": _short(total),
            "is_estimate": number in found.estimated,
            # By the logarithm: a night with one call is told from one with none beside an hour with thousands.
            "shade": math.ceil(SHADES * math.log1p(total) / math.log1p(most)) if total else 0,
            "said": _said(found, later, number, span),
            "link": _link(request, span.at(number)),
            "is_chosen": number == chosen,
        }
        for number, total in enumerate(totals)
    ]
    return [
        {"date": midnight + timedelta(days=day), "cells": cells[day * HOURS : (day + 1) * HOURS]} for day in range(DAYS)
    ]


def _short(number: int) -> str:
    """Return a number for a narrow cell; a large one is rounded down, and its title has all of it."""
    return f"{number // 1000}k" if number >= 10_000 else facts.shown_number(number) if number else ""  # noqa: PLR2004


def _said(found: queries.Ahead, later: Sequence[int], number: int, span: Span) -> str:
    """Return in words what comes in a part."""
    at = span.at(number)
    text = _("%(begin)s to %(end)s UTC: %(count)s promised") % {
        "begin": f"{at:%H:%M}",
        "end": f"{at + span.part:%H:%M}",
        "count": ("≈ " if number in found.estimated else "") + facts.shown_number(found.counts[number]),
    }
    if later[number]:
        text += ", " + _("%(count)s by schedules") % {"count": facts.shown_number(later[number])}
    return text


def _cut(where: queries.Waiting, followed: Followed, *, most: int, is_estimate: bool) -> list[str]:
    """Return in sentences what is left out."""
    said = []
    if is_estimate:
        text = _(
            "Where more than %(count)s wait for one part of this drawing, their number is an estimate of the database,"
            " and of the seconds with very many only the most common are found."
        )
        said.append(text % {"count": queries.PART_MOST})
    if where.is_cut:
        said.append(
            _("Only what waits for %(count)s hosts is drawn: you have timers for more.") % {"count": flows.FLOWS_MOST}
        )
    if followed.are_more:
        text = _(
            "More timers recur than can be followed here, %(count)s at most: of the others, what is promised is drawn."
        )
        said.append(text % {"count": TIMERS_MOST})
    if followed.are_long:
        text = ngettext(
            "%(count)s timer recurs so often that only its next %(most)s moments are drawn.",
            "%(count)s timers recur so often that only their next %(most)s moments are drawn.",
            followed.are_long,
        )
        said.append(text % {"count": followed.are_long, "most": facts.shown_number(most)})
    return said


def _herd(at: datetime, count: int) -> dict[str, Any]:
    """Return a second with very many calls, and the list of the timers behind it."""
    return {
        "at": at,
        "count": facts.shown_number(count),
        "is_most": count >= queries.HERD_MOST,
        "link": _timers(at, at + timedelta(seconds=1)),
        "begins": instant_text(at),
        "ends": instant_text(at + timedelta(seconds=1)),
    }


def _timers(begin: datetime, end: datetime) -> str:
    query = {"status": "scheduled", "due_from": instant_text(begin), "due_to": instant_text(end)}
    return f"{reverse('dashboard:timers')}?{urlencode(query)}"


def _listed(
    caller: Caller,
    where: queries.Waiting,
    coming: Sequence[Coming],
    bounds: tuple[datetime, datetime],
    *,
    promised: int,
    later: int,
) -> dict[str, Any]:
    """Return the first calls of a part, with their timers, and how many there are in all."""
    begin, end = bounds
    waiting = queries.waiting_between(where, begin=begin, end=end, most=LISTED) if promised else []
    ahead = _between(coming, begin, end)
    calls = sorted(
        [*(Coming(one["at"], one["timer_id"], True) for one in waiting), *ahead[:LISTED]], key=lambda one: one.at
    )
    shown = calls[:LISTED]
    timers = {row["task_id"]: row for row in rows(list({one.timer_id for one in shown}), caller=caller)}
    listed = [
        {"at": one.at, "is_promised": one.is_promised, "timer": timers[str(one.timer_id)]}
        for one in shown
        # One that was pruned meanwhile is gone.
        if str(one.timer_id) in timers
    ]
    return {
        "calls": listed,
        "begins": begin,
        "ends": end,
        "count": facts.shown_number(promised + later),
        "are_more_calls": promised + later > len(listed),
        "link": _timers(begin, end) if promised else "",
    }


def _between(coming: Sequence[Coming], begin: datetime, end: datetime) -> Sequence[Coming]:
    def place(at: datetime) -> int:
        return bisect_left(coming, at, key=lambda one: one.at)

    return coming[place(begin) : place(end)]
