"""`/upcoming`: what the next 24 hours bring: what is promised, and what the schedules of recurring timers will add."""

import time
from bisect import bisect_left
from collections.abc import Sequence
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
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.rules.recurrence import Recurrence, ScheduleError
from webtask_scheduler.scheduler.services.caller import Caller

PARTS, PART_SECONDS = 96, 900
PART = timedelta(seconds=PART_SECONDS)
# Recurring timers that are followed, and moments of each.
TIMERS_MOST, MOMENTS_MOST = 500, 100
# A page may not take longer for schedules that take long to work out.
EXPAND_SECONDS = 0.08
# Calls of the chosen part that are listed.
LISTED = 30


class Coming(NamedTuple):
    """A call to come: of a delivery that is promised, or of a schedule, which has made none yet."""

    at: datetime
    timer_id: Any
    is_promised: bool


class Followed(NamedTuple):
    """What the schedules of recurring timers add, and where that was cut."""

    coming: list[Coming]
    # Whether there may be more timers than were followed, and how many have more moments than were followed.
    are_more: bool
    are_long: int


@page
@require_safe
def upcoming(request: HttpRequest) -> HttpResponse:
    """Show the strip, the seconds with very many calls, and the calls of one part."""
    caller, now = caller_of(request), timezone.now()
    begin = datetime.fromtimestamp(now.timestamp() // PART_SECONDS * PART_SECONDS, UTC)
    where = queries.waiting_of(caller)
    found = queries.ahead(where, begin=begin, parts=PARTS, step_seconds=PART_SECONDS)
    followed = follow(queries.recurring_of(caller, most=TIMERS_MOST + 1), begin=begin, until=begin + PARTS * PART)
    later = [0] * PARTS
    for one in followed.coming:
        later[(one.at - begin) // PART] += 1
    chosen = _chosen(request, begin, found.counts, later)
    return show(
        request,
        "upcoming.html",
        title=_("Upcoming"),
        at="upcoming",
        strip=_strip(found, later, begin=begin, chosen=chosen, request=request),
        hours=[f"{begin + 4 * hours * PART:%H:%M}" for hours in range(0, 24, 4)],
        total=facts.shown_number(sum(found.counts)),
        total_later=facts.shown_number(sum(later)),
        is_estimate=bool(found.estimated),
        cut=_cut(where, followed, is_estimate=bool(found.estimated)),
        herds=[_herd(at, count) for at, count in found.herds],
        **_listed(
            caller, where, followed.coming, begin + chosen * PART, promised=found.counts[chosen], later=later[chosen]
        ),
        earlier=_link(request, begin + (chosen - 1) * PART) if chosen else "",
        following=_link(request, begin + (chosen + 1) * PART) if chosen + 1 < PARTS else "",
        is_estimate_here=chosen in found.estimated,
    )


def follow(timers: Sequence[dict[str, Any]], *, begin: datetime, until: datetime) -> Followed:
    """Return the moments that recurring timers have after what is promised, in order.

    At most TIMERS_MOST timers and MOMENTS_MOST moments of each are followed, and only for EXPAND_SECONDS.
    """
    moments = cache(Recurrence.within)
    deadline = time.monotonic() + EXPAND_SECONDS
    coming: list[Coming] = []
    long, are_more = 0, len(timers) > TIMERS_MOST
    for one in timers[:TIMERS_MOST]:
        if time.monotonic() > deadline:
            are_more = True
            break
        try:
            schedule = Recurrence.read(one)
        except ScheduleError:
            continue
        most = MOMENTS_MOST if one["left"] is None else min(MOMENTS_MOST, one["left"])
        after = max(one["due_at"], begin)
        # One more than is wanted says whether there are more. Timers often share a schedule.
        found = moments(schedule, after, until, most=most + 1) if most > 0 else []
        long += len(found) > most == MOMENTS_MOST
        coming += [Coming(at, one["id"], False) for at in found[:most]]
    return Followed(sorted(coming, key=lambda each: each.at), are_more, long)


def _chosen(request: HttpRequest, begin: datetime, counts: Sequence[int], later: Sequence[int]) -> int:
    """Return the part that is asked for; else the first in which something comes."""
    try:
        at = datetime.fromisoformat(request.GET.get("at", ""))
        number = (at.astimezone(UTC) - begin) // PART
    except (ValueError, OverflowError):
        number = -1
    if 0 <= number < PARTS:
        return number
    return next((place for place in range(PARTS) if counts[place] or later[place]), 0)


def _link(request: HttpRequest, at: datetime) -> str:
    mine = {"mine": "1"} if "mine" in request.GET else {}
    return f"?{urlencode({'at': f'{at:%Y-%m-%dT%H:%MZ}'} | mine)}#calls"


def _strip(
    found: queries.Ahead, later: Sequence[int], *, begin: datetime, chosen: int, request: HttpRequest
) -> list[dict[str, Any]]:
    """Return the bars of the strip, each with its address."""
    bars = []
    for number, count in enumerate(found.counts):
        at = begin + number * PART
        text = _("%(begin)s to %(end)s UTC: %(count)s promised") % {
            "begin": f"{at:%H:%M}",
            "end": f"{at + PART:%H:%M}",
            "count": ("≈ " if number in found.estimated else "") + facts.shown_number(count),
        }
        if later[number]:
            text += ", " + _("%(count)s by schedules") % {"count": facts.shown_number(later[number])}
        bars.append((text, [("scheduled", count), ("later", later[number])]))
    return [
        {"bar": bar, "link": _link(request, begin + number * PART), "is_chosen": number == chosen}
        for number, bar in enumerate(charts.stacks(bars))
    ]


def _cut(where: queries.Waiting, followed: Followed, *, is_estimate: bool) -> list[str]:
    """Return in sentences what is left out."""
    said = []
    if is_estimate:
        text = _(
            "Where more than %(count)s wait for a quarter of an hour, their number is an estimate of the database, and"
            " of the seconds with very many only the most common are found."
        )
        said.append(text % {"count": queries.PART_MOST})
    if where.is_cut:
        said.append(
            _("Only what waits for %(count)s hosts is drawn: you have timers for more.") % {"count": queries.FLOWS_MOST}
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
        said.append(text % {"count": followed.are_long, "most": MOMENTS_MOST})
    return said


def _herd(at: datetime, count: int) -> dict[str, Any]:
    """Return a second with very many calls, and the list of the timers behind it."""
    return {
        "at": at,
        "count": facts.shown_number(count),
        "is_most": count >= queries.HERD_MOST,
        "link": _timers(at, at + timedelta(seconds=1)),
    }


def _timers(begin: datetime, end: datetime) -> str:
    query = {"status": "scheduled", "due_from": instant_text(begin), "due_to": instant_text(end)}
    return f"{reverse('dashboard:timers')}?{urlencode(query)}"


def _listed(
    caller: Caller, where: queries.Waiting, coming: Sequence[Coming], begin: datetime, *, promised: int, later: int
) -> dict[str, Any]:
    """Return the first calls of a part, with their timers, and how many there are in all."""
    waiting = queries.waiting_between(where, begin=begin, end=begin + PART, most=LISTED) if promised else []
    ahead = _between(coming, begin, begin + PART)
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
        "ends": begin + PART,
        "count": facts.shown_number(promised + later),
        "are_more_calls": promised + later > len(listed),
        "link": _timers(begin, begin + PART) if promised else "",
    }


def _between(coming: Sequence[Coming], begin: datetime, end: datetime) -> Sequence[Coming]:
    def place(at: datetime) -> int:
        return bisect_left(coming, at, key=lambda one: one.at)

    return coming[place(begin) : place(end)]
