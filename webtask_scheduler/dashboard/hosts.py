"""`/hosts` and `/hosts/<host>`: how calls to each host went, what stops them, and the way to stop and resume them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.dashboard import charts, queries
from webtask_scheduler.dashboard.dead import groups_of
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.punctuality import WINDOWS, bound_text
from webtask_scheduler.dashboard.templatetags.dash import word_of
from webtask_scheduler.dashboard.who import caller_of, may_stop_calls, page, sees_service
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import HOST_MAX_LENGTH, CallStop, ErrorKind
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.services import letters

# Hosts are counted by the hour.
HOUR_SECONDS = 3600
HOST_WINDOWS = tuple(
    window._replace(step_seconds=max(HOUR_SECONDS, window.step_seconds))
    for window in WINDOWS
    if window.name in ("24h", "7d")
)
REASON_MAX_LENGTH = 200
STOPS = 20
# The list tells of this time.
TOLD = timedelta(hours=24)


class Word(NamedTuple):
    """How a host is: as one of the states that have a colour and a shape, and in a word of its own."""

    state: str
    text: str


def _word(host: queries.Host, *, is_stopped: bool) -> Word:
    if is_stopped:
        return Word("held", _("Calls stopped"))
    if host.is_failing:
        return Word("failed", _("Failing"))
    return Word("late", _("Slow")) if host.recent_put_off else Word("succeeded", _("OK"))


class Limits(NamedTuple):
    """What the settings allow to each host, of all workers together; 0 is no limit."""

    per_second: float
    in_flight: int

    @property
    def text(self) -> str:
        values = {"rate": f"{self.per_second:g}", "most": facts.shown_number(self.in_flight)}
        if self.per_second and self.in_flight:
            text = _(
                "To each host at most %(rate)s calls a second are begun, and at most %(most)s are under way at once."
            )
        elif self.per_second:
            text = _("To each host at most %(rate)s calls a second are begun.")
        elif self.in_flight:
            text = _("To each host at most %(most)s calls are under way at once.")
        else:
            text = _("The settings limit calls to no host.")
        return text % values


def limits_of_hosts() -> Limits:
    """Return what the settings allow to each host."""
    return Limits(settings.WEBTASK_HOST_MAX_PER_SECOND, settings.WEBTASK_HOST_MAX_IN_FLIGHT)


def recent_since(now: datetime) -> datetime:
    """Return since when failures say that a host is failing: the hour before this one."""
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)


@page
@require_safe
def hosts(request: HttpRequest) -> HttpResponse:
    """Show what became of the calls to each host in the last day, what needs a look first, or by a column."""
    if not sees_service(request):
        raise PermissionDenied
    order = request.GET.get("sort", "")
    order = order if order in queries.HOST_ORDERS else queries.TROUBLE
    now = timezone.now()
    since = (now - TOLD).replace(minute=0, second=0, microsecond=0)
    stopped = set(CallStop.objects.values_list("host", flat=True))
    one_by_one = sorted(stopped - {""})
    found = queries.hosts_since(since, recent=recent_since(now), order=order, stopped=one_by_one)
    # One that was stopped for a day has no counts, and is still stopped.
    seen = {host.name for host in found}
    found += [queries.Host(name, 0, 0, 0, [], []) for name in one_by_one if name not in seen][:STOPS]
    if order == queries.TROUBLE:
        # Beside the other stopped ones; the order of those that are alike stays.
        found.sort(key=lambda host: 1 if host.name in stopped else 0 if host.is_failing else 2)
    running, limits = queries.running_by_host(), limits_of_hosts()
    minutes = (now - since).total_seconds() / 60
    return show(
        request,
        "hosts.html",
        title=_("Hosts"),
        at="hosts",
        order=order,
        timed_most=queries.TIMED_MOST if order in ("duration", "late") else 0,
        failing_percent=round(100 * queries.FAILING_SHARE),
        limits=limits,
        is_cut=sum(running.values()) >= queries.RUNNING_MOST,
        hosts=[
            {
                "host": host,
                "word": _word(host, is_stopped="" in stopped or host.name in stopped),
                "rate": _rate(host.calls / minutes),
                "running": running.get(host.name, 0),
            }
            for host in found
        ],
    )


def _rate(per_minute: float) -> str:
    """Return a number with the digits that matter."""
    if 0 < per_minute < 0.01:  # noqa: PLR2004 - what two digits show
        return "< 0.01"
    return number_format(per_minute, 0 if per_minute >= 10 else 1 if per_minute >= 1 else 2, force_grouping=True)  # noqa: PLR2004


@page
@require_safe
def host(request: HttpRequest, name: str) -> HttpResponse:
    """Show what was counted of the calls to a host, by the hour."""
    if not sees_service(request):
        raise PermissionDenied
    if len(name) > HOST_MAX_LENGTH or "\0" in name:
        raise Http404
    window = next((one for one in HOST_WINDOWS if one.name == request.GET.get("window")), HOST_WINDOWS[0])
    step = window.step_seconds
    last = int(timezone.now().timestamp()) // step
    steps = range(last - int(window.length.total_seconds()) // step + 1, last + 1)
    hours = range(steps[0] * step, (last + 1) * step, HOUR_SECONDS)
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in queries.host_hours(name, [datetime.fromtimestamp(hour, UTC) for hour in hours]):
        by_step.setdefault(int(row["hour"].timestamp()) // step, []).append(row)
    counted = [_added(name, by_step.get(number, ())) for number in steps]
    labels = [f"{datetime.fromtimestamp(number * step, UTC):%F %H:%M} UTC" for number in steps]
    total = _added(name, [row for rows in by_step.values() for row in rows])
    now = timezone.now()
    latest = _added(name, [row for rows in by_step.values() for row in rows if row["hour"] >= recent_since(now)])
    total = replace(total, recent_calls=latest.calls, recent_failed=latest.failed, recent_put_off=latest.put_off)
    stop, all_stopped = CallStop.objects.filter(host=name).first(), facts.gather().all_stopped
    return show(
        request,
        "host.html",
        title=name,
        at="hosts",
        name=name,
        host=total,
        window=window,
        windows=HOST_WINDOWS,
        calls=_calls(labels, counted),
        levels=[
            (_("Lateness, 99 %"), _levels(labels, [one.late for one in counted], 99)),
            (_("Duration, 95 %"), _levels(labels, [one.durations for one in counted], 95)),
        ]
        if total.calls
        else [],
        kinds=_kinds(name),
        dead=groups_of(
            [one for one in letters.groups(caller_of(request)).found if one.host == name], mine="mine" in request.GET
        ),
        stop=stop,
        all_stopped=all_stopped,
        word=_word(total, is_stopped=all_stopped or stop is not None),
        running=queries.running_by_host().get(name, 0),
        limits=limits_of_hosts(),
        stops=AuditEntry.objects.filter(kind="host", object_id=name).order_by("-id")[:STOPS],
        may_stop=may_stop_calls(request),
        attempts_most=queries.LATEST_ATTEMPTS,
    )


def _added(name: str, rows: Sequence[dict[str, Any]]) -> queries.Host:
    """Return what rows of a host count together."""
    late, durations = histogram.empty(), histogram.empty()
    for row in rows:
        for total, counts in ((late, row["late"]), (durations, row["durations"])):
            for place, count in enumerate(counts):
                total[place] += count
    calls, failed, put_off = (sum(row[column] for row in rows) for column in ("calls", "failed", "put_off"))
    return queries.Host(name, calls, failed, put_off, late, durations)


def _calls(labels: Sequence[str], hosts: Sequence[queries.Host]) -> list[charts.Stack]:
    bars = []
    for label, one in zip(labels, hosts, strict=True):
        counts = [("succeeded", one.calls - one.failed), ("failed", one.failed)]
        said = " · ".join(f"{word_of(state)}: {facts.shown_number(count)}" for state, count in counts if count)
        bars.append((f"{label} · {said or 0}", counts))
    return charts.stacks(bars)


def _levels(labels: Sequence[str], histograms: Sequence[Sequence[int]], percent: float) -> list[charts.Stack]:
    """Return a percentile over time as bars; the height counts the buckets, so that it is about logarithmic."""
    bars = []
    for label, counts in zip(labels, histograms, strict=True):
        bucket = histogram.percentile(counts, percent) if sum(counts) else None
        said = bound_text(histogram.bound_of(bucket)) if bucket is not None else "-"
        bars.append((f"{label} · {said}", [("claimed", 0 if bucket is None else bucket + 1)]))
    return charts.stacks(bars, most=histogram.BUCKETS)


def _kinds(name: str) -> list[tuple[str, int]]:
    """Return how the latest attempts at the host ended, the most frequent first."""
    found = []
    for row in queries.attempts_of_host(name):
        said = str(row["status_code"]) if row["status_code"] else ""
        if not said:
            said = str(ErrorKind(row["error"]).label) if row["error"] in ErrorKind.values else _("no answer")
        found.append((said, row["count"]))
    return found


@page
@require_POST
def act(request: HttpRequest, name: str, action: str) -> HttpResponse:
    """Stop or resume calls to a host, and go back to its page."""
    if action not in ("stop", "resume"):
        raise Http404
    if not may_stop_calls(request):
        raise PermissionDenied
    reason = request.POST.get("reason", "").strip()[:REASON_MAX_LENGTH]
    by = str(request.user) if request.user.is_authenticated else "dashboard"
    try:
        if action == "stop":
            services.stop_calls(host=name, reason=reason, by=by)
            messages.success(request, _("Calls to this host are stopped; what comes due is held."))
        elif services.resume_calls(host=name, reason=reason, by=by):
            messages.success(request, _("Calls to this host go on; what was held is called within seconds."))
        else:
            messages.error(request, _("Calls to this host were not stopped."))
    except services.CallStopRefusedError as error:
        messages.error(request, error.messages[0])
    return redirect("dashboard:host", name=name)
