"""`/timers`: finds one, or shows many. The filter is the API's, in the URL."""

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, cast
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST, require_safe
from rest_framework import exceptions

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard import demo, queries
from webtask_scheduler.dashboard.frame import is_live, keep_in_browser, list_before, show
from webtask_scheduler.dashboard.rows import PAGE_ROWS, counts, look, menus, rows
from webtask_scheduler.dashboard.snippets import curl_of_list, snippets
from webtask_scheduler.dashboard.who import caller_of, changer_of, page, sees_all
from webtask_scheduler.scheduler.api import cursors
from webtask_scheduler.scheduler.api.base import validated
from webtask_scheduler.scheduler.api.filtering import FilterSerializer
from webtask_scheduler.scheduler.api.filtering import filter_of as filter_from
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.models import HOST_MAX_LENGTH, BulkOperation, State, Timer
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.wording import translated

# Timers that one export holds.
EXPORT_MOST = 100_000
# The names of the filter in the URL, as in the API.
FILTERS = (
    *("status", "host", "label", "due_from", "due_to", "recurring", "retrying", "late", "name", "url_prefix"),
    *("has_callback", "owner", "changed_by"),
)
# What each tab narrows the list by; of the names of all of them, the others are taken out.
TABS: tuple[tuple[dict[str, str], Any], ...] = (
    ({}, gettext_lazy("All")),
    ({"status": "scheduled"}, gettext_lazy("Waiting")),
    ({"retrying": "true"}, gettext_lazy("Retrying")),
    ({"late": "true"}, gettext_lazy("Late")),
    ({"status": "claimed,running"}, gettext_lazy("Running")),
    ({"status": "paused"}, gettext_lazy("Paused")),
    ({"status": "held"}, gettext_lazy("Held")),
    ({"status": "succeeded"}, gettext_lazy("Succeeded")),
    ({"status": "failed"}, gettext_lazy("Failed")),
    ({"status": "missed"}, gettext_lazy("Missed")),
    ({"status": "cancelled"}, gettext_lazy("Cancelled")),
)
NO_TAB = {"status": "", "retrying": "", "late": ""}
# Statuses of which it is good that no timer has them, as is being late or tried again.
TROUBLE = frozenset((State.FAILED, State.MISSED))
# Columns that a browser may hide, and the cookie that keeps which.
COLUMNS = (
    ("how", gettext_lazy("Schedule and labels")),
    ("when", gettext_lazy("Next call, or end")),
    ("last", gettext_lazy("Last call")),
)
HIDDEN = "hidden"
# The order by when a timer was made, where a status would give another.
NEWEST = "newest"
# Stands in the menus for the id of a timer, which the script puts in; addresses are made with another that is one.
ANY_ID, _AN_ID = "{id}", uuid.UUID(int=0)
# The beginning of an id names a minute or less of a service's timers; so many of them are looked at.
ID_LEAST = 8
ID_SCANNED = 2000
_TOKEN = re.compile(rb'name="csrfmiddlewaretoken" value="[^"]*"')


class Chip(NamedTuple):
    """A filter that is on, and the address without it."""

    name: str
    value: str
    without: str


def filter_of(request: HttpRequest, caller: Caller) -> search.Filter:
    """Return the filter that the address says. Raises ValidationError."""
    wanted = filter_from(validated(FilterSerializer, filters(request)), caller=caller)
    # By the time when it was made, whatever its status.
    return replace(wanted, steady=True) if request.GET.get("sort") == NEWEST else wanted


@page
@require_safe
def timers(request: HttpRequest) -> HttpResponse:
    """Show a page of the timers that fit."""
    caller = caller_of(request)
    query = request.GET.get("q", "").strip()
    if query:
        return _searched(request, query, caller)
    error, found, wanted = "", search.Page([], None), None
    try:
        wanted = filter_of(request, caller)
        place = cursors.unseal(request.GET.get("cursor", ""), request=cast("Any", request), caller=caller)
        if is_live(request):
            return _changed(request, wanted, caller)
        ids = ids_from(request, caller)
        found = look(wanted, cursor=place) if ids is None else search.Page(ids, None)
    except exceptions.ValidationError as refused:
        error = "; ".join(f"{one['field']}: {one['detail']}" for one in invalid(refused.detail)["errors"])
    except search.CursorError as refused:
        error = translated(refused)
    listed = rows(found.timer_ids, caller=caller, changer=changer_of(request))
    tabs, fit = _counted(request, wanted)
    return show(
        request,
        "timers.html",
        title=_("Timers"),
        at="timers",
        status=400 if error else 200,
        error=error,
        rows=listed,
        menus=_menus(request, listed),
        tabs=tabs,
        sorts=_sorts(request),
        kinds=_kinds(request),
        chips=_chips(request),
        dues=_dues(request),
        columns=COLUMNS,
        hidden=[name for name, _label in COLUMNS if name in request.COOKIES.get(HIDDEN, "").split(".")],
        hosts=_hosts(request),
        active={name: ",".join(values) for name, values in filters(request).lists()},
        may_act=bool(filters(request)) and not error,
        bulk=[(value, label) for value, label in BulkOperation.Action.choices if value != "cancel"]
        + [("cancel", BulkOperation.Action.CANCEL.label)],
        ticks=True,
        only_own=caller.sees_all and not changer_of(request).sees_all,
        fit=fit,
        deeds=_deeds(),
        here=request.get_full_path(),
        export_most=EXPORT_MOST,
        export=_export(request),
        filtered=bool(filters(request)) or "id" in request.GET,
        is_well=_is_well(request, wanted),
        first_curl=_first_curl(request),
        next=_with(request, cursor=cursors.seal(found.next, request=cast("Any", request), caller=caller) or "")
        if found.next
        else "",
        is_short=bool(found.next) and len(found.timer_ids) < PAGE_ROWS,
        scanned=number_format(found.looked.timers if found.looked else 0, force_grouping=True),
        is_first="cursor" not in request.GET,
        first=_with(request),
        live=_with(request, live="1", cursor=request.GET.get("cursor", ""), id=request.GET.get("id", "")),
        curl=curl_of_list(request.build_absolute_uri("/timer"), filters(request).urlencode(), with_key=not is_open()),
    )


def _is_well(request: HttpRequest, wanted: search.Filter | None) -> bool:
    """Return whether the list asks for nothing but timers in trouble, so that it is good if there is none."""
    if wanted is None or not filters(request) or not NO_TAB.keys() >= filters(request).keys():
        return False
    return TROUBLE.issuperset(wanted.statuses) and False not in (wanted.retrying, wanted.late)


def _first_curl(request: HttpRequest) -> str:
    """Return a call of the API that makes a timer, for who has none yet."""
    given = {"web_url": demo.address(request) or "https://example.com/hook", "seconds": 10}
    return snippets(request.build_absolute_uri("/timer"), given, with_key=not is_open())[0].code


def filters(request: HttpRequest) -> QueryDict:
    """Return what the URL narrows the list by; an empty field of a form does not."""
    found = QueryDict(mutable=True)
    for name in FILTERS:
        values = [value for value in request.GET.getlist(name) if value]
        if values:
            found.setlist(name, values)
    return found


def _export(request: HttpRequest) -> str:
    """Return the query of an export of what the list shows."""
    query = filters(request)
    for name in ("id", "mine"):
        if name in request.GET:
            query[name] = request.GET[name]
    return query.urlencode()


def _with(request: HttpRequest, **changes: str) -> str:
    """Return the address of the list with some parts changed; one that is empty is taken out. It begins anew."""
    kept = {name: ",".join(values) for name, values in filters(request).lists()}
    kept |= {name: request.GET[name] for name in ("mine", "sort") if request.GET.get(name)}
    parts = {name: value for name, value in (kept | changes).items() if value}
    return reverse("dashboard:timers") + (f"?{urlencode(parts)}" if parts else "")


def _menus(request: HttpRequest, listed: Sequence[Mapping[str, Any]]) -> list[tuple[str, SafeString]]:
    """Return the menus of rows by their kinds, with ANY_ID for the id of a timer: it stands there dozens of times."""
    found = []
    for menu in menus(listed):
        text = render_to_string("dashboard/_menu.html", menu | {"timer_id": _AN_ID}, request)
        found.append((menu["kind"], mark_safe(text.replace(str(_AN_ID), ANY_ID))))  # noqa: S308 - a template's
    return found


def _deeds() -> list[tuple[str, str, str]]:
    """Return what may be done to ticked timers: its name, what a button says, and what is asked first."""
    return [
        ("run", _("Run now"), _("Call each of them once more now? What is promised stands.")),
        ("pause", _("Pause"), ""),
        ("resume", _("Resume"), ""),
        ("replay", _("Replay"), _("Send those that failed or were missed again, with fresh attempts?")),
        ("cancel", _("Cancel"), _("Cancel them for good? They cannot be resumed, and their records stay.")),
    ]


class Tab(NamedTuple):
    """A status to show: the address, its name, whether it is shown, and how many timers fit as far as was counted."""

    link: str
    name: str
    is_on: bool
    number: str


def _counted(request: HttpRequest, wanted: search.Filter | None) -> tuple[list[Tab], str]:
    """Return the tabs, and how many timers fit in all, where there is a filter."""
    at = {name: value for name in NO_TAB if (value := request.GET.get(name, ""))}
    # In the order that an index has, whatever the list's.
    of_all = replace(wanted, steady=False) if wanted else None
    of_tabs = [
        replace(
            of_all,
            statuses=tuple(State(value) for value in narrows.get("status", "").split(",") if value),
            retrying="retrying" in narrows or None,
            late="late" in narrows or None,
        )
        for narrows, _name in TABS
        if of_all is not None and narrows
    ]
    numbers = map(str, counts([*of_tabs, of_all] if of_all and filters(request) else of_tabs))
    tabs = [
        Tab(_with(request, **(NO_TAB | narrows)), str(name), narrows == at, next(numbers, "") if narrows else "")
        for narrows, name in TABS
    ]
    return tabs, next(numbers, "")


def _sorts(request: HttpRequest) -> list[tuple[str, str, bool]]:
    """Return the orders that an index gives: of all timers the newest first, of a status also by its time."""
    status, is_newest = request.GET.get("status", ""), request.GET.get("sort") == NEWEST
    waits = status.startswith("scheduled") or "true" in (request.GET.get("retrying"), request.GET.get("late"))
    if not status and not waits:
        return [
            (_with(request, sort=""), _("Newest"), True),
            (_with(request, status="scheduled"), _("Soonest due"), False),
        ]
    by_time = _("Soonest due") if waits else _("Latest due")
    return [
        (_with(request, sort=""), by_time, not is_newest),
        (_with(request, sort=NEWEST), _("Newest"), is_newest),
    ]


def _kinds(request: HttpRequest) -> list[tuple[str, str, bool]]:
    """Return the links that show timers that are called once, or again and again."""
    at = request.GET.get("recurring", "")
    named = (("", _("Once and recurring")), ("false", _("Once")), ("true", _("Recurring")))
    return [(_with(request, recurring=value), name, value == at) for value, name in named]


def _dues(request: HttpRequest) -> list[tuple[str, str, bool]]:
    """Return links that set from when to when timers are due, as the form does for any other time."""
    now = timezone.now().replace(microsecond=0)
    day = now.replace(hour=0, minute=0, second=0)
    week = day - timedelta(days=day.weekday())
    spans = (
        (_("Next hour"), now, now + timedelta(hours=1)),
        (_("Today (UTC)"), day, day + timedelta(days=1)),
        (_("This week (UTC)"), week, week + timedelta(days=7)),
    )
    # What was due before now and still waits; at any other time all that is due then, whatever became of it.
    begun = {"due_from": "", "due_to": f"{now:%FT%TZ}"} | NO_TAB | {"status": "scheduled"}
    found = [(_with(request, **begun), _("Overdue"), False)]
    at = request.GET.get("due_from"), request.GET.get("due_to")
    for name, begins, ends in spans:
        due = f"{begins:%FT%TZ}", f"{ends:%FT%TZ}"
        found.append((_with(request, due_from=due[0], due_to=due[1]), name, due == at))
    return found


@page
@require_POST
def columns(request: HttpRequest) -> HttpResponse:
    """Keep in this browser which columns the list shows, and go back to it."""
    answer = redirect(list_before(request) or reverse("dashboard:timers"))
    shown = request.POST.getlist("column")
    keep_in_browser(request, answer, HIDDEN, ".".join(name for name, _label in COLUMNS if name not in shown))
    return answer


@page
@require_safe
def hosts(request: HttpRequest) -> HttpResponse:
    """Return the hosts of the caller's timers that begin as `host` in the query says, for the script to offer."""
    return JsonResponse({"hosts": _hosts(request)})


def _hosts(request: HttpRequest) -> list[str]:
    begins = request.GET.get("host", "").lower()
    return [] if "\0" in begins else queries.hosts_of(caller_of(request), begins=begins[:HOST_MAX_LENGTH])


def _chips(request: HttpRequest) -> list[Chip]:
    # What a tab or a switch shows.
    hidden = {("status", None), ("recurring", None), ("retrying", "true"), ("late", "true")}
    chips = [
        Chip(name, str(value), _with(request, **{name: ""}))
        for name, value in filters(request).items()
        if not {(name, None), (name, value)} & hidden
    ]
    if request.GET.get("id"):
        chips.append(Chip("id", request.GET["id"], _with(request)))
    return chips


def _searched(request: HttpRequest, query: str, caller: Caller) -> HttpResponse:
    """Send on to what the one search box means: an id or its beginning, a URL's beginning, a label, or a name."""
    kept = {"mine": "1"} if "mine" in request.GET else {}
    short = query.lower().replace("-", "")
    if re.fullmatch(rf"[0-9a-f]{{{ID_LEAST},32}}", short):
        if len(short) == 32 and Timer.objects.filter(pk=uuid.UUID(short), **caller.visible()).exists():  # noqa: PLR2004
            return redirect("dashboard:timer", timer_id=uuid.UUID(short))
        kept["id"] = query.lower()
    elif re.match(r"https?://", query, re.IGNORECASE):
        kept["url_prefix"] = query
    elif re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=\S*", query):
        kept["label"] = query
    else:
        kept["name"] = query
    return redirect(f"{reverse('dashboard:timers')}?{urlencode(kept)}")


def ids_from(request: HttpRequest, caller: Caller) -> list[uuid.UUID] | None:
    """Return the timers whose id begins as `id` in the query says, the newest first; None if it says nothing."""
    short = re.sub(r"[^0-9a-f]", "", request.GET.get("id", "").lower())[:32]
    if "id" not in request.GET or len(short) < ID_LEAST:
        return None
    least, most = uuid.UUID(short.ljust(32, "0")), uuid.UUID(short.ljust(32, "f"))
    near = Timer.objects.filter(pk__range=(least, most)).order_by("-pk").values("pk")[:ID_SCANNED]
    found = Timer.objects.filter(pk__in=near, **caller.visible()).order_by("-pk")
    return list(found.values_list("pk", flat=True)[:PAGE_ROWS])


def _changed(request: HttpRequest, wanted: search.Filter, caller: Caller) -> HttpResponse:
    """Return the rows that are on the page as they are now, and how many more there would be; 204 if all is as seen."""
    ids = []
    for text in request.GET.get("ids", "").split(",")[: PAGE_ROWS * 2]:
        try:
            ids.append(uuid.UUID(text))
        except ValueError:
            continue
    new = 0
    # What few timers fit takes long to look for: not every two seconds.
    is_rare = wanted.name or wanted.url_prefix or wanted.has_callback is not None
    if "cursor" not in request.GET and "id" not in request.GET and not is_rare:
        newest = search.page(wanted, cursor="", limit=PAGE_ROWS)
        new = len(set(newest.timer_ids) - set(ids))
    shown = rows(ids, caller=caller, changer=changer_of(request))
    answer = render(request, "dashboard/_rows.html", {"rows": shown, "ticks": True} | owners_shown(request))
    return unchanged_or(request, answer, new=new)


def owners_shown(request: HttpRequest) -> dict[str, bool]:
    """Return what has rows say whose each timer is, for a fragment that is shown without the frame."""
    return {"sees_all": sees_all(request), "mine": "mine" in request.GET}


def unchanged_or(request: HttpRequest, answer: HttpResponse, *, new: int = 0) -> HttpResponse:
    """Return an answer to the script with its tag, or 204 if that is the tag that it has seen."""
    # Each rendering masks the token of its forms anew, which changes nothing that is seen.
    seen = _TOKEN.sub(b"", answer.content)
    tag = hashlib.sha256(seen + b"%d" % new).hexdigest()[:16]
    if request.GET.get("seen") == tag:
        answer = HttpResponse(status=204)
    answer["X-Seen"] = tag
    answer["X-New"] = str(new)
    return answer
