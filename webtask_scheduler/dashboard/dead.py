"""`/dead`: what failed or was missed, by host and cause, and what may be sent again."""

from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard import queries
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler.models import ErrorKind, State

LOST = (State.FAILED, State.MISSED)


@page
@require_safe
def dead(request: HttpRequest) -> HttpResponse:
    """Show the groups; of one that the query names, its latest deliveries."""
    caller = caller_of(request)
    wanted = _group(request)
    values: dict[str, Any] = {"most": queries.LOST_MOST, "group": wanted}
    if wanted:
        values["deliveries"] = queries.dead_of_group(caller, **wanted)
        values["cause"] = cause_of(wanted["state"], wanted["error"], wanted["code"])
    else:
        groups = queries.dead_groups(caller)
        for group in groups:
            group["cause"] = cause_of(group["state"], group["error"], group["status_code"])
            parts = {"host": group["host"], "state": group["state"], "error": group["error"]}
            parts |= {"code": group["status_code"]} if group["status_code"] else {}
            parts |= {"mine": "1"} if "mine" in request.GET else {}
            group["link"] = f"{reverse('dashboard:dead')}?{urlencode(parts)}"
        values["groups"] = groups
    return show(request, "dead.html", title=_("Dead letters"), at="dead", **values)


def _group(request: HttpRequest) -> dict[str, Any] | None:
    """Return the group that the query names; None if it names none."""
    host, state, code = (request.GET.get(name, "") for name in ("host", "state", "code"))
    if not host or state not in LOST:
        return None
    return {
        "host": host,
        "state": state,
        "error": request.GET.get("error", ""),
        "code": int(code) if code.isascii() and code.isdigit() and len(code) <= 3 else None,  # noqa: PLR2004
    }


def cause_of(state: str, error: str, code: int | None) -> str:
    """Return in a word or two why the deliveries of a group did not succeed."""
    if code:
        return str(code)
    if error in ErrorKind.values:
        return str(ErrorKind(error).label)
    return _("Missed") if state == State.MISSED else _("Not called")
