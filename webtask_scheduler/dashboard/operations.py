"""`/operations`: what is done to all timers that fit a filter. It is counted first, and done when that is confirmed."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
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
from webtask_scheduler.dashboard.rows import count as count_of
from webtask_scheduler.dashboard.rows import look, rows
from webtask_scheduler.dashboard.timers import FILTERS, unchanged_or
from webtask_scheduler.dashboard.who import caller_of, changer_of, may_change, page
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.api.base import validated
from webtask_scheduler.scheduler.api.filtering import FilterSerializer, filter_of
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.models import BulkOperation
from webtask_scheduler.scheduler.rules.instants import instant_text, read_instant
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller

SHOWN = 30
# What takes an action back.
OPPOSITES = {
    BulkOperation.Action.PAUSE.value: BulkOperation.Action.RESUME,
    BulkOperation.Action.RESUME.value: BulkOperation.Action.PAUSE,
}
# Of more timers than these, the number is typed before they are cancelled.
TYPED_ABOVE = 1000
# Timers that are named before it is done.
EXAMPLES = 3


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
        "may_repeat": _may_repeat(request, found),
        "opposite": _opposite(request, found),
        "keeps": found.action in OPPOSITES and found.changes.exists(),
        "spreads": _spreads(found),
        **_spreading(request, found),
        "every_ms": 0 if found.finished_at else 1000,
        "examples": _examples(request, found),
        "link": f"{reverse('dashboard:timers')}?{_query(_meant(found))}",
    }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_operation.html", values))
    return show(request, "operation.html", title=_("Operation"), at="operations", **values)


def _examples(request: HttpRequest, found: BulkOperation) -> list[dict[str, Any]]:
    """Return a few of the timers that a counted operation would be done to, as far as a quick look finds them."""
    if not (found.dry_run and found.status == "done" and found.matched):
        return []
    of = Caller(owner_id=found.owner_id, sees_all=found.everyone)
    try:
        wanted = replace(search.stored_filter(found.filter, caller=of), steady=False)
    except ValueError:
        # Of another version of this service.
        return []
    return rows(look(wanted, cursor="", limit=EXAMPLES).timer_ids, caller=caller_of(request))


def _spreads(found: BulkOperation) -> list[tuple[str, str]]:
    """Return over which times a counted operation may be spread, and in words; how thick it is where timers move."""
    if found.action != BulkOperation.Action.SPREAD:
        return [(value, str(label)) for value, label in SPREADS]
    begin, end = _time_of(found)
    longer = [one for one in SPREADS if timedelta(seconds=int(one[0])) > end - begin]
    return [(value, f"{label} ({_pace(found.matched, int(value))})") for value, label in longer]


def _time_of(found: BulkOperation) -> tuple[datetime, datetime]:
    """Return from when until when the timers are due that an operation spreads."""
    return read_instant(found.filter["due_from"]), read_instant(found.filter["due_to"])


def _pace(number: int, seconds: int) -> str:
    """Return about how many of a number that is spread over a time come in a second, or a minute where they are few."""
    if number >= seconds:
        return _("about %(count)s a second") % {"count": facts.shown_number(round(number / seconds))}
    per_minute = 60 * number / seconds
    if per_minute < 1:
        return _("less than one a minute")
    return _("about %(count)s a minute") % {"count": facts.shown_number(round(per_minute))}


def _meant(found: BulkOperation) -> dict[str, Any]:
    """Return an operation's filter, with what it means where timers are spread."""
    means = {"status": ["scheduled"], "recurring": False} if found.action == BulkOperation.Action.SPREAD else {}
    return {**found.filter, **means}


def _spreading(request: HttpRequest, found: BulkOperation) -> dict[str, Any]:
    """Return what is said before timers are spread: the time in which they are due, and which of it stay."""
    if not (found.action == BulkOperation.Action.SPREAD and found.dry_run and found.status == "done"):
        return {}
    begin, end = (f"{at:%F %H:%M:%S}{f'.{at:%f}' if at.microsecond else ''} UTC" for at in map(_utc, _time_of(found)))
    return {"begin": begin, "end": end, "recurring": _recurring_with(found, request)}


def _utc(at: datetime) -> datetime:
    return at.astimezone(UTC)


def _recurring_with(found: BulkOperation, request: HttpRequest) -> dict[str, str] | None:
    """Return how many timers that recur are due with those that are spread, and their list; None if there is none."""
    wanted = _asked(found) | {"recurring": True}
    try:
        asked = search.filter_of(validated(FilterSerializer, wanted), caller=caller_of(request))
    except exceptions.ValidationError:
        # It was about a time too far from now.
        return None
    number = count_of(replace(asked, owner_id=found.owner_id, everyone=found.everyone))
    link = f"{reverse('dashboard:timers')}?{_query(wanted)}"
    return {"count": str(number), "link": link} if number.number or number.more else None


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
        values = validated(FilterSerializer, wanted)
        stored, found = _stored(values), filter_of(values, caller=changer_of(request))
        # By the id: an address may be another's before the operation ends.
        stored |= {"owner": str(found.owner_id)} if "owner" in stored else {}
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
    may_spread = found.action in ("replay", "spread")
    return _begun(
        request,
        spread_seconds=int(spread) if may_spread and spread in dict(SPREADS) else 0,
        action=found.action,
        stored=found.filter,
        dry_run=False,
        mine=not found.everyone,
        query=f"?total={found.matched}",
    )


@page
@require_POST
def again(request: HttpRequest, operation_id: uuid.UUID) -> HttpResponse:
    """Count anew for the same action and filter; it is done when that is confirmed."""
    found = _visible(request, operation_id)
    if not _may_repeat(request, found):
        raise Http404
    return _begun(request, action=found.action, stored=_asked(found), dry_run=True, mine=not found.everyone)


@page
@require_POST
def undo(request: HttpRequest, operation_id: uuid.UUID) -> HttpResponse:
    """Count for the opposite action; it is done when that is confirmed. One that has not ended is stopped first."""
    found = _visible(request, operation_id)
    if found.finished_at is None and _is_undone(request, found):
        found = services.stop_bulk(found.pk)
    # Also where somebody else has just stopped it.
    if not found.changed and _is_undone(request, found):
        messages.info(request, _("It has changed no timer; there is nothing to undo."))
        return redirect("dashboard:operation", operation_id=operation_id)
    opposite = _opposite(request, found)
    if opposite is None:
        raise Http404
    stored = {"changed_by": str(found.pk)}
    return _begun(request, action=opposite.value, stored=stored, dry_run=True, mine=not found.everyone)


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


def _asked(found: BulkOperation) -> dict[str, Any]:
    """Return an operation's filter as a person gave it."""
    return {name: value for name, value in found.filter.items() if name in FILTERS}


def _may_repeat(request: HttpRequest, found: BulkOperation) -> bool:
    """Return whether an operation that has ended may be begun again: one's own, with a filter."""
    is_own = found.owner_id == caller_of(request).owner_id
    # The end of a user is nobody's to repeat.
    return is_own and found.finished_at is not None and bool(_asked(found)) and not found.filter.get("callbacks")


def _opposite(request: HttpRequest, found: BulkOperation) -> BulkOperation.Action | None:
    """Return the action that takes an operation back; None where there is none, or nothing to take back."""
    if found.finished_at is None or not _is_undone(request, found) or not found.changes.exists():
        return None
    return OPPOSITES[found.action]


def _is_undone(request: HttpRequest, found: BulkOperation) -> bool:
    """Return whether there is an action that takes an operation back, whatever it has done so far."""
    return found.owner_id == caller_of(request).owner_id and not found.dry_run and found.action in OPPOSITES


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
    if _is_undone(request, made):
        said = _("Timers that fit are being paused.") if action == "pause" else _("Timers that fit are being resumed.")
        messages.success(request, said, extra_tags=reverse("dashboard:undo", args=[made.pk]))
    return redirect(reverse("dashboard:operation", args=[made.pk]) + query)


def _visible(request: HttpRequest, operation_id: uuid.UUID) -> BulkOperation:
    found = BulkOperation.objects.select_related("owner").filter(pk=operation_id, **caller_of(request).visible())
    operation_found = found.first()
    if operation_found is None:
        raise Http404
    return operation_found


def _stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter as bulk operations store it: in the form that the API takes."""
    forms: dict[type, Any] = {datetime: instant_text, uuid.UUID: str}
    return {name: forms.get(type(value), lambda one: one)(value) for name, value in values.items() if value != ""}


def _query(stored: Mapping[str, Any]) -> str:
    """Return a stored filter as the list's address has it."""
    query = QueryDict(mutable=True)
    for name, value in stored.items():
        if name in FILTERS:
            text = ",".join(value) if isinstance(value, list) else str(value)
            query[name] = text.lower() if isinstance(value, bool) else text
    return query.urlencode()
