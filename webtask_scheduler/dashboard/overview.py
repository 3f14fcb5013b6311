"""`/`: whether all is well, and the way to a first timer."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard import charts, demo, queries
from webtask_scheduler.dashboard.frame import is_live, show
from webtask_scheduler.dashboard.hosts import recent_since
from webtask_scheduler.dashboard.punctuality import (
    HOUR,
    WINDOWS,
    Window,
    counts_of,
    due_link,
    is_kept,
    levels,
    outcomes,
    promise_text,
    share_of,
    within_of,
)
from webtask_scheduler.dashboard.rows import rows
from webtask_scheduler.dashboard.timers import owners_shown, unchanged_or
from webtask_scheduler.dashboard.who import caller_of, page, sees_service
from webtask_scheduler.scheduler import facts, sealing
from webtask_scheduler.scheduler.models import ErrorKind
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller

LATEST = 10
# Lateness is told of this time.
TOLD = timedelta(hours=24)
# So many late timers, or one so late, are worth saying first.
LATE_SECONDS = 2.0
# How old the slower part of the page may be.
KEPT_SECONDS = 10.0
# So many due in one second are a herd worth naming; so many of them are named.
HERD_LEAST = 200
HERDS = 3
# Times over which it is shown how deliveries ended.
SHOWN_WINDOWS = WINDOWS[:3]
# Lines of what needs a person, and how many of them each kind has room for.
ATTENTION, ATTENTION_LEAST = 10, 2


@page
@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    """Show the state of the service to whoever may see it, and everybody's latest timers."""
    caller = caller_of(request)
    window = next((one for one in SHOWN_WINDOWS if one.name == request.GET.get("window")), HOUR)
    wanted = search.Filter(owner_id=caller.owner_id, everyone=caller.sees_all)
    latest = rows(search.page(wanted, cursor="", limit=LATEST).timer_ids, caller=caller)
    values: dict[str, Any] = {"rows": latest, "ended": _ended(caller)} | owners_shown(request)
    timers = _troubled(caller)
    values["attention"] = _attention([], timers, [])
    if sees_service(request):
        # Where something is wrong, the warnings above say it.
        seen = _seen()
        counted = _counts(window)
        values |= {
            "verdict": None if facts.warnings() else _verdict(),
            "tiles": _tiles() + _more_tiles(seen),
            # One column of a step says both.
            "outcomes": outcomes(window, counted, with_lateness=True),
            "levels": levels(window, counted),
            "windows": SHOWN_WINDOWS,
            "window": window,
            "next_hour": seen.next_hour,
            "herds": seen.herds,
            "attention": _attention(_troubled_hosts(seen), timers, _stops()),
        }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_overview.html", values))
    return show(request, "overview.html", title=_("Overview"), at="overview", demo=demo.address(request), **values)


def _tiles() -> list[dict[str, Any]]:
    """Return what there is of each, with the list that shows it."""
    numbers = facts.count()
    running = numbers.claimed + numbers.running
    counted = (
        ("waiting", _("Waiting"), numbers.waiting, "status=scheduled", "scheduled"),
        ("late", _("Late"), numbers.backlog, "late=true", "late" if numbers.backlog else ""),
        ("running", _("Running"), running, "status=claimed,running", "running"),
        ("paused", _("Paused"), numbers.paused, "status=paused", "paused"),
        ("held", _("Held"), numbers.held, "status=held", "held"),
        ("dead", _("Failed"), numbers.dead, "status=failed", "failed" if numbers.dead else ""),
    )
    names = {"late": "backlog"}
    return [
        {
            "label": label,
            "number": facts.shown_number(number),
            "is_estimate": names.get(name, name) in numbers.estimated,
            "link": f"{reverse('dashboard:timers')}?{query}",
            "state": state,
        }
        for name, label, number, query, state in counted
    ]


class Seen(NamedTuple):
    """What takes too long to be looked at for each viewer every few seconds."""

    # Bars of what is due in each minute of the next hour, how many in all, and whether a minute has more than are
    # counted; and the seconds in which many are due: when, how many, a link.
    next_hour: list[charts.Stack]
    due: int
    is_cut: bool
    herds: list[tuple[datetime, int, str]]
    # Hosts with failures, or with deliveries that were put off, in this hour and the last.
    hosts: list[queries.Host]
    # Deliveries that failed or were missed in the last day, and in the day before.
    lost: tuple[int, int]


_kept: tuple[float, Seen] | None = None
_counts_kept: dict[str, tuple[float, dict[int, dict[str, Any]]]] = {}


def _seen() -> Seen:
    """Return what was looked at, at most KEPT_SECONDS ago. Raises DatabaseError."""
    global _kept  # noqa: PLW0603 - one look a process is the point
    now = time.monotonic()
    if _kept is None or now - _kept[0] >= KEPT_SECONDS:
        _kept = now, _look()
    return _kept[1]


def _counts(window: Window) -> dict[int, dict[str, Any]]:
    """Return what was counted in a window: of the last hour now, of longer ones at most KEPT_SECONDS ago."""
    if window is HOUR:
        return counts_of(window)
    now = time.monotonic()
    kept = _counts_kept.get(window.name)
    if kept is None or now - kept[0] >= KEPT_SECONDS:
        kept = _counts_kept[window.name] = now, counts_of(window)
    return kept[1]


def forget() -> None:
    """Drop what was looked at; for tests."""
    global _kept  # noqa: PLW0603 - as above
    _kept = None
    _counts_kept.clear()


def _look() -> Seen:
    minutes = queries.next_hour()
    bars = charts.stacks(
        [(f"{row['begin']:%H:%M} UTC · {_counted(row['count'])}", [("scheduled", row["count"])]) for row in minutes]
    )
    links = [due_link(int(row["begin"].timestamp()), 60, status="scheduled") for row in minutes]
    herds = [
        (row["second"], row["herd"], due_link(int(row["second"].timestamp()), 1, status="scheduled"))
        for row in sorted(minutes, key=lambda row: -(row["herd"] or 0))[:HERDS]
        if (row["herd"] or 0) >= HERD_LEAST
    ]
    now = timezone.now()
    recent = recent_since(now)
    hosts = queries.hosts_since(recent, recent=recent)
    return Seen(
        [bar._replace(link=link) if bar.parts else bar for bar, link in zip(bars, links, strict=True)],
        sum(row["count"] for row in minutes),
        any(row["count"] >= queries.DUE_MOST for row in minutes),
        sorted(herds),
        [host for host in hosts if host.is_failing or host.put_off],
        queries.lost_since(now),
    )


def _counted(count: int) -> str:
    shown = facts.shown_number(count)
    return _("%(count)s or more") % {"count": shown} if count >= queries.DUE_MOST else shown


def _more_tiles(seen: Seen) -> list[dict[str, Any]]:
    """Return the tiles of what was looked at."""
    now = int(time.time())
    lost, before = seen.lost
    return [
        {
            "label": _("Due in the next hour"),
            "number": facts.shown_number(seen.due),
            "is_least": seen.is_cut,
            "link": due_link(now, 3600, status="scheduled"),
            "state": "scheduled",
        },
        {
            "label": _("Lost in 24 hours"),
            "number": facts.shown_number(lost),
            "link": reverse("dashboard:dead"),
            "state": "failed" if lost else "",
            "more": f"{lost - before:+d}" if lost != before else "",
        },
    ]


Line = dict[str, str]


def _attention(hosts: Sequence[Line], timers: Sequence[Line], stops: Sequence[Line]) -> list[Line]:
    """Return what needs a person, ATTENTION lines at most: a state, what it is, what is known, and where to look.

    They are in this order, and each kind has room for ATTENTION_LEAST, however many there are of the others.
    """
    kinds = (hosts, timers, stops)
    room = ATTENTION - sum(min(len(kind), ATTENTION_LEAST) for kind in kinds)
    found: list[Line] = []
    for kind in kinds:
        more = min(room, max(0, len(kind) - ATTENTION_LEAST))
        found += kind[: ATTENTION_LEAST + more]
        room -= more
    return found


def _troubled_hosts(seen: Seen) -> list[Line]:
    """Return the hosts that fail, and then those whose deliveries were put off."""
    found = []
    for host in seen.hosts:
        parts = []
        if host.failed:
            values = {"failed": facts.shown_number(host.failed), "calls": facts.shown_number(host.calls)}
            parts.append(_("%(failed)s of %(calls)s calls failed") % values)
        if host.put_off:
            parts.append(_("put off, being slow: %(count)s") % {"count": facts.shown_number(host.put_off)})
        # Counts of hosts without a row of their own stand together under a name that is no host.
        is_host = " " not in host.name
        name = {"name": host.name}
        found.append(
            {
                "state": "failed" if host.is_failing else "late",
                "what": host.name,
                "said": " · ".join(parts),
                "link": reverse("dashboard:host", kwargs=name) if is_host else reverse("dashboard:hosts"),
            }
        )
    return found


def _troubled(caller: Caller) -> list[Line]:
    """Return the timers that an answer of 410 paused, and then those that failed several times in a row."""
    return [
        {
            "state": "paused" if row["is_gone"] else "failed",
            "name": row["name"],
            "what": row["name"] or sealing.shown_url(row["web_url"]),
            "said": _("paused: its receiver answered that it is gone (410)")
            if row["is_gone"]
            else _in_row(row["in_row"]),
            "link": reverse("dashboard:timer", kwargs={"timer_id": row["id"]}),
        }
        for row in queries.troubled_timers(caller, most=ATTENTION)
    ]


def _in_row(count: int) -> str:
    if count >= queries.ROW_MOST:
        return _("failed %(count)s times in a row or more") % {"count": count}
    return ngettext("failed %(count)s time in a row", "failed %(count)s times in a row", count) % {"count": count}


def _stops() -> list[Line]:
    return [
        {
            "state": "held",
            "what": host or _("All hosts"),
            "said": _("calls are stopped"),
            "link": reverse("dashboard:host", kwargs={"name": host}) if host else reverse("dashboard:system"),
        }
        for host in facts.gather().stops
    ]


def _ended(caller: Caller) -> list[dict[str, Any]]:
    """Return the deliveries that ended last, with what their lines say."""
    rows_found = queries.latest_ended(caller, limit=LATEST)
    for row in rows_found:
        row["url"] = sealing.shown_url(row["web_url"])
        row["late_ms"] = row["late"] / timedelta(milliseconds=1) if row["late"] is not None else None
        known = row["error"] in ErrorKind.values
        row["answer"] = str(row["status_code"] or "") or (ErrorKind(row["error"]).label if known else "")
    return rows_found


def _verdict() -> dict[str, str]:
    """Return in a sentence whether calls begin on time, and its state."""
    found = facts.gather()
    if found.late and found.late_seconds > LATE_SECONDS:
        return {"state": "late", "text": facts.late_said(found), "more": ""}
    late = queries.lateness_since(timezone.now() - TOLD)
    total = sum(late)
    if not total:
        return {"state": "scheduled", "text": _("All is ready."), "more": _("No call was made in the last 24 hours.")}
    within = within_of(late)
    p99 = histogram.percentile(late, 99)
    bound = histogram.bound_of(p99) if p99 is not None else 0.0
    values = {"share": share_of(within, total), "count": facts.shown_number(total), "bound": _milliseconds(bound)}
    values |= {"promise": promise_text()}
    more = _(
        "%(share)s %% of %(count)s calls in the last 24 hours began within %(promise)s of their moment, 99 %% within"
        " %(bound)s."
    )
    on_time = is_kept(late)
    return {
        "state": "succeeded" if on_time else "retrying",
        "text": _("On time.") if on_time else _("Not always on time."),
        "more": more % values,
    }


def _milliseconds(seconds: float) -> str:
    return _("more than an hour") if seconds == float("inf") else f"{seconds * 1000:g} ms"


def favicon(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Send on to the icon, for pages that name none, such as the API's answers in a browser."""
    return redirect(static("dashboard/favicon.svg"))
