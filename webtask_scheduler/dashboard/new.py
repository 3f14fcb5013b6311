"""`/timers/new`: a form over the API's own reader, with a preview of what it says."""

import dataclasses
import functools
import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import available_timezones

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST
from rest_framework import exceptions

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard import charts, crons, demo
from webtask_scheduler.dashboard.forms import TimerForm, form_of, json_trouble, zone_trouble
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.snippets import snippets
from webtask_scheduler.dashboard.timer import as_given
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.preview import PreviewSerializer, previewed
from webtask_scheduler.scheduler.api.problems import PastDue, invalid
from webtask_scheduler.scheduler.api.reading import RetrySerializer, read_timer
from webtask_scheduler.scheduler.api.schedules import WHEN
from webtask_scheduler.scheduler.api.showing import show_timer
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.answers import is_secret
from webtask_scheduler.scheduler.sealing import MASK, shown_url
from webtask_scheduler.scheduler.services import quotas

# Attempts whose moments are named; a policy may have a hundred.
TRIES_SHOWN = 6
# Fields that a link may fill in.
_FILLED = ("web_url", "name", "when", "hours", "minutes", "seconds", "every", "every_unit", "cron", "timezone")


@page
@require_http_methods(["GET", "HEAD", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """Show the form; store what it says, and go to the new timer."""
    if request.method != "POST":
        filled = {name: request.GET[name] for name in _FILLED if name in request.GET}
        start: dict[str, Any] = {"web_url": demo.address(request), "when": "in", "seconds": "10"}
        return _form(request, TimerForm(initial=start | _copied(request) | filled))
    form = TimerForm(request.POST)
    given = form.as_json()
    if "preview" in request.POST:
        # Without the script, a button of the form asks for it.
        return _form(request, form, **_previewed(request, form))
    if "test" in request.POST:
        given = _test_of(given)
    timer = None
    try:
        check(form)
        if form.is_valid():
            timer = read_timer(given)
    except (exceptions.ValidationError, PastDue) as error:
        form.refuse(invalid(error.detail)["errors"])
    if timer is None:
        return _form(request, form, status=400)
    owner_id = caller_of(request).owner_id
    try:
        made = dataclasses.replace(timer, owner_id=owner_id)
        quotas.reserve([made], owner_id=owner_id)
        (stored,) = services.schedule([made])
    except ValidationError as error:
        form.add_error(None, error.messages[0])
        return _form(request, form, status=409)
    return _made(request, form, timer, stored.timer_id)


def _made(request: HttpRequest, form: TimerForm, timer: services.NewTimer, timer_id: uuid.UUID) -> HttpResponse:
    """Go to the timer that was made; or show the form anew, for more of what its test call tries, or for another."""
    if "test" in request.POST:
        return _form(request, form, test_timer=timer_id, **_previewed(request, form))
    if "another" in request.POST:
        made = Made(timer_id, timer.name or shown_url(timer.web_url))
        return _form(request, TimerForm(initial=_kept(form)), made=made)
    messages.success(request, _("The timer is stored."))
    return redirect("dashboard:timer", timer_id=timer_id)


class Made(NamedTuple):
    """A timer that was made by the form that is shown for another one."""

    timer_id: uuid.UUID
    name: str


def _kept(form: TimerForm) -> dict[str, Any]:
    """Return what the form keeps for another timer: the URL, the method, and headers that are not secret."""
    given = form.cleaned_data
    kept = [line for line in given["headers"].splitlines() if not is_secret(line.partition(":")[0])]
    return {"web_url": given["web_url"], "method": given["method"], "when": given["when"], "headers": "\n".join(kept)}


def _test_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return a timer that makes the same call at once, and only once: a record of its own, by its label."""
    what = {name: value for name, value in given.items() if name not in WHEN and name not in ("timezone", "on_missed")}
    labels = given.get("labels")
    return what | {"seconds": 0, "labels": (labels if isinstance(labels, dict) else {}) | {"test": "1"}}


def _copied(request: HttpRequest) -> dict[str, Any]:
    """Return the fields of the timer that `copy` in the query names; nothing if the caller sees no such timer."""
    try:
        timer_id = uuid.UUID(request.GET["copy"])
    except (KeyError, ValueError):
        return {}
    body = show_timer(timer_id, **caller_of(request).visible("timer__"))
    if body is None:
        raise Http404
    if MASK in json.dumps([body.get("headers"), body["web_url"], body.get("body")]):
        messages.info(request, _("Secret values are not copied: write them where *** stands."))
    return form_of(body | as_given(body))


def check(form: TimerForm) -> None:
    """Put beside the fields what the API's reader could not say of them."""
    for field, trouble in (("at", zone_trouble(form)), ("body", json_trouble(form))):
        if trouble:
            form.add_error(field, trouble)


def _form(request: HttpRequest, form: TimerForm, *, status: int = 200, **values: Any) -> HttpResponse:
    action, preview_url = reverse("dashboard:new"), reverse("dashboard:preview")
    values |= {"action": action, "preview_url": preview_url}
    return form_page(request, form, title=_("New timer"), at="new", status=status, **values)


def form_page(
    request: HttpRequest, form: TimerForm, *, title: str, at: str, status: int, **values: Any
) -> HttpResponse:
    """Return the page of the form."""
    return show(
        request,
        "new.html",
        title=title,
        at=at,
        status=status,
        form=form,
        request_fields=[form[name] for name in TimerForm.REQUEST],
        failure_fields=[form[name] for name in TimerForm.FAILURE],
        is_request_open=any(form[name].errors for name in TimerForm.REQUEST) or "made" in values,
        is_failure_open=any(form[name].errors for name in TimerForm.FAILURE),
        zones=zone_names(),
        crons=crons.presets(),
        **values,
    )


@functools.cache
def zone_names() -> list[str]:
    """Return the names of the time zones; finding them reads a directory tree."""
    return sorted(available_timezones())


@page
@require_POST
def preview(request: HttpRequest) -> HttpResponse:
    """Return the fragment that says what the form would do."""
    form = TimerForm(request.POST)
    return render(request, "dashboard/_preview.html", _previewed(request, form))


def _local(text: str) -> str:
    """Return a local time with its offset, without parts of a second."""
    at = datetime.fromisoformat(text)
    offset = f"{at:%z}"
    return f"{at:%F %T} UTC{offset[:3]}:{offset[3:5]}"


def _previewed(request: HttpRequest, form: TimerForm) -> dict[str, Any]:
    url = request.build_absolute_uri("/timer")
    given = form.as_json()
    return previewed_values(form, url=url, given=given, method="POST", policy=given.get("retry", {}))


def previewed_values(
    form: TimerForm, *, url: str, given: dict[str, Any], method: str, policy: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the next moments, or what is wrong with when, and the request of a program that does the same.

    `policy` is that of retries, as the API takes it.
    """
    found: dict[str, Any] = {
        "moments": [],
        "more": False,
        "trouble": zone_trouble(form),
        "words": crons.in_words(form.cleaned_data["cron"]) if form.cleaned_data.get("when") == "cron" else "",
        # Its moment counts from its creation.
        "floats": form.cleaned_data.get("when") == "in",
    }
    reader = PreviewSerializer(data=form.schedule_json())
    try:
        if not found["trouble"]:
            reader.is_valid(raise_exception=True)
            found |= previewed(reader)
            for moment in found["moments"]:
                moment["local"] = _local(moment["local"])
    except exceptions.ValidationError as error:
        found["trouble"] = " ".join(one["detail"] for one in invalid(error.detail)["errors"])
    code = snippets(url, given, with_key=not is_open(), method=method)
    return {"preview": found, "snippets": code, "tries": _tries(policy)}


def _tries(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the attempts of a policy as a drawing and a sentence; None where the policy is not right."""
    reader = RetrySerializer(data=given)
    if not reader.is_valid():
        return None
    policy = retry.Policy.read(reader.validated_data)
    offsets = [0.0]
    for attempt in range(1, policy.max_attempts):
        after = offsets[-1] + retry.backoff_seconds(policy, attempt)
        if after > (policy.max_age_seconds or retry.MAX_AGE_SECONDS):
            break
        offsets.append(after)
    if len(offsets) == 1:
        return {"said": _("If it fails, it is not called again.")}
    shown = [_offset(seconds) for seconds in offsets[1 : TRIES_SHOWN + 1]]
    if len(offsets) - 1 > TRIES_SHOWN:
        shown += ["…", _offset(offsets[-1])]
    text = _("If it fails, it is called again after %(offsets)s, each wait up to %(jitter)s %% longer or shorter.")
    said = text % {"offsets": " · ".join(shown), "jitter": f"{policy.jitter * 100:g}"}
    return {"bars": charts.tries(offsets), "said": said}


def _offset(seconds: float) -> str:
    if seconds >= 3600:  # noqa: PLR2004 - an hour
        return _("%(hours)s h") % {"hours": f"{seconds / 3600:.1f}"}
    if seconds >= 60:  # noqa: PLR2004 - a minute
        return _("%(minutes)s min") % {"minutes": f"{seconds / 60:.1f}"}
    return f"{seconds:g} s"
