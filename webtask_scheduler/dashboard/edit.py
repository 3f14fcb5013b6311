"""`/timers/<id>/edit`: the form of a new timer, filled with what one was given. Its changes become a PATCH."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST
from rest_framework import exceptions

from webtask_scheduler.dashboard.forms import TimerForm, body_of, changes, form_of
from webtask_scheduler.dashboard.new import check, form_page, previewed_values
from webtask_scheduler.dashboard.who import caller_of, may_change, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.problems import PastDue, invalid
from webtask_scheduler.scheduler.api.reading import DESCRIPTIVE, edited
from webtask_scheduler.scheduler.api.schedules import WHEN, WHEN_MISSING
from webtask_scheduler.scheduler.api.showing import show_timer
from webtask_scheduler.scheduler.models import State, Timer
from webtask_scheduler.scheduler.services import quotas
from webtask_scheduler.wording import translated


@page
@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, timer_id: uuid.UUID) -> HttpResponse:
    """Show the form; store what was changed in it, and go back to the timer."""
    body = _seen(request, timer_id)
    if request.method != "POST":
        return _form(request, body, TimerForm(initial=form_of(body)))
    form = TimerForm(request.POST)
    patch = _patch(request, form)
    if "preview" in request.POST:
        return _form(request, body, form, **_previewed(request, body, form))
    check(form)
    if form.is_valid() and not patch:
        messages.info(request, _("Nothing was changed."))
        return redirect("dashboard:timer", timer_id=timer_id)

    def change(locked: Timer) -> tuple[services.NewTimer, bool]:
        new, reschedule = edited(locked, patch)
        if reschedule:
            quotas.reserve_edit(locked, new)
        return new, reschedule

    status = 400
    try:
        if form.is_valid():
            services.edit(timer_id, change, descriptive_only=patch.keys() <= DESCRIPTIVE)
            messages.success(request, _("The changes are stored."))
            return redirect("dashboard:timer", timer_id=timer_id)
    except (exceptions.ValidationError, PastDue) as error:
        form.refuse(invalid(error.detail)["errors"])
    except ValidationError as error:
        form.add_error(None, error.messages[0])
        status = 409
    except Timer.DoesNotExist as error:
        raise Http404 from error
    return _form(request, body, form, status=status)


@page
@require_POST
def preview(request: HttpRequest, timer_id: uuid.UUID) -> HttpResponse:
    """Return the fragment that says what saving would change."""
    body = _seen(request, timer_id)
    return render(request, "dashboard/_preview.html", _previewed(request, body, TimerForm(request.POST)))


def _seen(request: HttpRequest, timer_id: uuid.UUID) -> dict[str, Any]:
    """Return a timer that the caller may change, as the API shows it."""
    caller = caller_of(request)
    found = Timer.objects.filter(pk=timer_id, **caller.visible()).first()
    body = show_timer(timer_id, **caller.visible("timer__")) if found else None
    if found is None or body is None:
        raise Http404
    if not may_change(request, found):
        raise PermissionDenied
    return body


def _form(
    request: HttpRequest, body: Mapping[str, Any], form: TimerForm, *, status: int = 200, **values: Any
) -> HttpResponse:
    address = {"timer_id": body["task_id"]}
    return form_page(
        request,
        form,
        title=_("Edit %(timer)s") % {"timer": body.get("name") or body["web_url"]},
        at="timers",
        status=status,
        edited=body,
        action=reverse("dashboard:edit", kwargs=address),
        preview_url=reverse("dashboard:edit_preview", kwargs=address),
        # What was shown: a change that somebody else makes meanwhile is not undone by this form.
        shown=request.POST.get("shown") or json.dumps(TimerForm(form_of(body)).as_json()),
        **values,
    )


def _patch(request: HttpRequest, form: TimerForm) -> dict[str, Any]:
    """Return what the form changes of what it showed, as the API's merge patch."""
    given = form.as_json()
    try:
        shown = json.loads(request.POST.get("shown", ""))
    except (ValueError, RecursionError):
        shown = None
    if not isinstance(shown, dict):
        form.add_error(None, _("The form is not whole. Open it anew."))
        return {}
    if not any(name in given for name in WHEN) and any(name in shown for name in WHEN):
        form.add_error("when", translated(WHEN_MISSING))
    if "body" in given and given["body"] != shown.get("body"):
        given["body"] = body_of(given["body"], shown.get("body"))
    return changes(shown, given)


def _previewed(request: HttpRequest, body: Mapping[str, Any], form: TimerForm) -> dict[str, Any]:
    """Return what saving changes, where it moves the next call, and the request that does the same."""
    patch = _patch(request, form)
    url = request.build_absolute_uri(f"/timer/{body['task_id']}")
    # What the form does not show of it, such as the kind of backoff, stays.
    policy = dict(body.get("retry") or {}) | (patch.get("retry") or {})
    found = previewed_values(form, url=url, given=patch, method="PATCH", policy=policy)
    found["preview"]["floats"] = False
    found["changed"] = sorted(patch)
    moves = any(name in patch for name in WHEN)
    if moves and body["next_attempt_at"]:
        found["moved_from"] = body["next_attempt_at"]
    found["in_flight"] = body["status"] in (State.CLAIMED, State.RUNNING)
    return found
