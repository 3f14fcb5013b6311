"""`/operations`: what is done to all timers that fit a filter. It is counted first, and done when that is confirmed."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe
from rest_framework import exceptions

from webtask_scheduler.dashboard.dead import SPREADS
from webtask_scheduler.dashboard.frame import is_live, show
from webtask_scheduler.dashboard.timers import FILTERS, unchanged_or
from webtask_scheduler.dashboard.who import caller_of, changer_of, may_change, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.base import validated
from webtask_scheduler.scheduler.api.filtering import FilterSerializer
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.models import BulkOperation
from webtask_scheduler.scheduler.rules.instants import instant_text

SHOWN = 30
# Of more timers than these, the number is typed before they are cancelled.
TYPED_ABOVE = 1000


@page
@require_safe
def operations(request: HttpRequest) -> HttpResponse:
    """Show the latest operations."""
    found = BulkOperation.objects.filter(**caller_of(request).visible()).select_related("owner").order_by("-pk")[:SHOWN]
    listed = list(found)
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_operations.html", {"operations": listed}))
    return show(request, "operations.html", title=_("Operations"), at="operations", operations=listed)


@page
@require_safe
def operation(request: HttpRequest, operation_id: uuid.UUID) -> HttpResponse:
    """Show how far one has come; of one that has only counted, ask whether to do it."""
    found = _visible(request, operation_id)
    total = request.GET.get("total", "")
    values: dict[str, Any] = {
        "one": found,
        "total": int(total) if total.isascii() and total.isdigit() and len(total) < 10 else 0,  # noqa: PLR2004
        "may_begin": found.owner_id == caller_of(request).owner_id,
        "may_stop": found.finished_at is None and may_change(request, found),
        "asks_number": _asks_number(found),
        "spreads": SPREADS,
        "every_ms": 0 if found.finished_at else 1000,
        "link": f"{reverse('dashboard:timers')}?{_query(found.filter)}",
    }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_operation.html", values))
    return show(request, "operation.html", title=_("Operation"), at="operations", **values)


@page
@require_POST
def count(request: HttpRequest) -> HttpResponse:
    """Begin to count the timers that an action would be done to."""
    action = request.POST.get("action", "")
    wanted = QueryDict(mutable=True)
    for name in FILTERS:
        if request.POST.get(name):
            wanted[name] = request.POST[name]
    if action not in BulkOperation.Action.values:
        raise Http404
    if not wanted:
        messages.error(request, _("Choose a filter first: this would be done to all timers."))
        return redirect("dashboard:timers")
    try:
        stored = _stored(validated(FilterSerializer, wanted))
    except exceptions.ValidationError as error:
        messages.error(request, "; ".join(one["detail"] for one in invalid(error.detail)["errors"]))
        return redirect("dashboard:timers")
    return _begun(request, action=action, stored=stored, dry_run=True, mine="mine" in request.POST)


@page
@require_POST
def begin(request: HttpRequest, operation_id: uuid.UUID) -> HttpResponse:
    """Do what an operation has counted."""
    found = _visible(request, operation_id)
    if not found.dry_run or found.owner_id != caller_of(request).owner_id:
        raise Http404
    typed = "".join(digit for digit in request.POST.get("typed", "") if digit.isdecimal())
    if _asks_number(found) and typed != str(found.matched):
        messages.error(request, _("Type the number of timers to confirm; nothing was done."))
        return redirect("dashboard:operation", operation_id=operation_id)
    spread = request.POST.get("spread", "0")
    return _begun(
        request,
        spread_seconds=int(spread) if found.action == "replay" and spread in dict(SPREADS) else 0,
        action=found.action,
        stored=found.filter,
        dry_run=False,
        mine=not found.everyone,
        query=f"?total={found.matched}",
    )


@page
@require_POST
def stop(request: HttpRequest, operation_id: uuid.UUID) -> HttpResponse:
    """Stop an operation; what it has changed stays."""
    found = _visible(request, operation_id)
    if not may_change(request, found):
        raise PermissionDenied
    if found.finished_at is not None:
        messages.info(request, _("It had ended already."))
    try:
        services.stop_bulk(found.pk)
    except ValidationError as error:
        messages.error(request, error.messages[0])
    return redirect("dashboard:operation", operation_id=operation_id)


def _asks_number(found: BulkOperation) -> bool:
    """Return whether a counted operation is done only where its number is typed: it is for good, and of many."""
    return found.dry_run and found.action == BulkOperation.Action.CANCEL and found.matched > TYPED_ABOVE


def _begun(
    request: HttpRequest,
    *,
    action: str,
    stored: Mapping[str, Any],
    dry_run: bool,
    mine: bool,
    query: str = "",
    spread_seconds: int = 0,
) -> HttpResponse:
    caller = caller_of(request)
    made = BulkOperation(
        owner_id=caller.owner_id,
        everyone=changer_of(request).sees_all and not mine,
        action=action,
        filter=stored,
        dry_run=dry_run,
        spread_seconds=spread_seconds or None,
    )
    try:
        services.begin_bulk(made)
    except ValidationError as error:
        messages.error(request, error.messages[0])
        return redirect("dashboard:operations")
    return redirect(reverse("dashboard:operation", args=[made.pk]) + query)


def _visible(request: HttpRequest, operation_id: uuid.UUID) -> BulkOperation:
    found = BulkOperation.objects.select_related("owner").filter(pk=operation_id, **caller_of(request).visible())
    operation_found = found.first()
    if operation_found is None:
        raise Http404
    return operation_found


def _stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter as bulk operations store it: in the form that the API takes."""
    return {
        name: instant_text(value) if isinstance(value, datetime) else value
        for name, value in values.items()
        if value != ""
    }


def _query(stored: Mapping[str, Any]) -> str:
    """Return a stored filter as the list's address has it."""
    query = QueryDict(mutable=True)
    for name, value in stored.items():
        if name in FILTERS:
            text = ",".join(value) if isinstance(value, list) else str(value)
            query[name] = text.lower() if isinstance(value, bool) else text
    return query.urlencode()
