"""`/`: whether all is well, and the way to a first timer."""

from datetime import timedelta
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard import demo, queries
from webtask_scheduler.dashboard.frame import is_live, show
from webtask_scheduler.dashboard.punctuality import HOUR, is_kept, outcomes, promise_text, share_of, within_of
from webtask_scheduler.dashboard.rows import rows
from webtask_scheduler.dashboard.timers import unchanged_or
from webtask_scheduler.dashboard.who import caller_of, page, sees_service
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.services import search

LATEST = 10
# Lateness is told of this time.
TOLD = timedelta(hours=24)
# So many late timers, or one so late, are worth saying first.
LATE_SECONDS = 2.0


@page
@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    """Show the state of the service to whoever may see it, and everybody's latest timers."""
    caller = caller_of(request)
    wanted = search.Filter(owner_id=caller.owner_id, everyone=caller.sees_all)
    latest = rows(search.page(wanted, cursor="", limit=LATEST).timer_ids, caller=caller)
    values: dict[str, Any] = {"rows": latest}
    if sees_service(request):
        # Where something is wrong, the warnings above say it.
        values |= {"verdict": None if facts.warnings() else _verdict(), "tiles": _tiles(), "outcomes": outcomes(HOUR)}
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_overview.html", values))
    return show(request, "overview.html", title=_("Overview"), at="overview", demo=demo.address(request), **values)


def _tiles() -> list[dict[str, Any]]:
    """Return what there is of each, with the list that shows it."""
    numbers = facts.count()
    running = numbers.claimed + numbers.running
    counted = (
        ("waiting", _("Waiting"), numbers.waiting, "scheduled", "scheduled"),
        ("late", _("Late"), numbers.backlog, "scheduled", "late" if numbers.backlog else ""),
        ("running", _("Running"), running, "claimed,running", "running"),
        ("paused", _("Paused"), numbers.paused, "paused", "paused"),
        ("held", _("Held"), numbers.held, "held", "held"),
        ("dead", _("Failed"), numbers.dead, "failed", "failed" if numbers.dead else ""),
    )
    names = {"late": "backlog"}
    return [
        {
            "label": label,
            "number": facts.shown_number(number),
            "is_estimate": names.get(name, name) in numbers.estimated,
            "link": f"{reverse('dashboard:timers')}?status={status}",
            "state": state,
        }
        for name, label, number, status, state in counted
    ]


def _verdict() -> dict[str, str]:
    """Return in a sentence whether calls begin on time, and its state."""
    found = facts.gather()
    if found.late and found.late_seconds > LATE_SECONDS:
        text = ngettext(
            "Late: %(count)s due timer waits, for %(seconds)s s.",
            "Late: %(count)s due timers wait, the oldest for %(seconds)s s.",
            found.late,
        )
        values = {"count": facts.shown_number(found.late), "seconds": f"{found.late_seconds:.0f}"}
        return {"state": "late", "text": text % values, "more": ""}
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
