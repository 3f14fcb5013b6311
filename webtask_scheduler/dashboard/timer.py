"""`/timers/<id>`: what will happen with one timer, what did happen, and why; and what may be done about it."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import F, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard import charts
from webtask_scheduler.dashboard.frame import is_live, list_before, show
from webtask_scheduler.dashboard.history import CHANGES, LATEST, history_of
from webtask_scheduler.dashboard.punctuality import share_of
from webtask_scheduler.dashboard.rows import LOST, actions_of, shown
from webtask_scheduler.dashboard.snippets import SNIPPET_CHARACTERS, cut, snippets
from webtask_scheduler.dashboard.timers import unchanged_or
from webtask_scheduler.dashboard.who import caller_of, may_change, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.schedules import BOUNDS, RECURRING
from webtask_scheduler.scheduler.api.showing import show_timer
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer
from webtask_scheduler.scheduler.rules import options, recurrence
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.wording import translated

# Deliveries that the list shows, and those of the streak above it.
DELIVERIES = 15
STREAK = 60
# Of each delivery, its first attempt and so many of its last.
ATTEMPTS = 8
MOMENTS = 5
# Callbacks that are named, of as many of the latest deliveries.
CALLBACKS = 5
# The largest number that a delivery can have.
NUMBER_MOST, NUMBER_DIGITS = 2**31 - 1, 10
# How often the page asks for news: often while something is about to happen.
SOON_SECONDS = 60
QUICK_MS, SLOW_MS = 1000, 5000


@page
@require_safe
def timer(request: HttpRequest, timer_id: uuid.UUID) -> HttpResponse:
    """Show a timer. One that the caller may not see is as one that is not there."""
    caller = caller_of(request)
    found = Timer.objects.select_related("owner").filter(pk=timer_id, **caller.visible()).first()
    body = show_timer(timer_id, **caller.visible("timer__")) if found else None
    if found is None or body is None:
        raise Http404
    now = timezone.now()
    deliveries = _deliveries(found, most=STREAK)
    before = _before(request)
    listed = _deliveries(found, most=DELIVERIES + 1, before=before) if before else deliveries
    values: dict[str, Any] = {
        "timer": shown(body, now=now),
        "owner": found.owner,
        "deliveries": listed[:DELIVERIES],
        # Where the list begins, if it is not at the latest, and where it goes on.
        "before": before,
        "older": listed[DELIVERIES - 1].delivery.number if len(listed) > DELIVERIES else 0,
        "streak": _streak(deliveries) if len(deliveries) > 1 else [],
        "streak_width": len(deliveries) * charts.STREAK_STEP,
        "may_act": may_change(request, found),
        "streak_said": _streak_said(deliveries),
        "actions": actions_of(
            body,
            waits_again=any(one.delivery.waits_again(now=now) for one in deliveries),
            is_lost=any(one.delivery.state in LOST for one in deliveries),
        ),
        "every_ms": _pace(body, now=now),
        "history": history_of(found, caller=caller, most=LATEST, changes_most=CHANGES),
        "moments": _moments(found, now=now) if body["finished_at"] is None else [],
    }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_timer.html", values))
    given = as_given(body)
    return show(
        request,
        "timer.html",
        title=body.get("name") or body["web_url"],
        at="timers",
        given={
            name: cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in given.items()
            if name not in ("web_url", "name", "labels")
        },
        around=_around(found, deliveries),
        snippets=snippets(request.build_absolute_uri("/timer"), given, with_key=not is_open())
        if len(json.dumps(given)) <= SNIPPET_CHARACTERS
        else [],
        **values,
    )


class Delivered(NamedTuple):
    """A delivery with its attempts and their drawing."""

    delivery: Delivery
    state: str
    attempts: list[Attempt]
    bars: list[charts.Bar]

    @property
    def first(self) -> Attempt | None:
        return self.attempts[0] if self.attempts and self.attempts[0].number == 1 else None

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None


def _before(request: HttpRequest) -> int:
    """Return below which number the list of deliveries begins; 0 for the latest."""
    text = request.GET.get("before", "")
    return min(int(text), NUMBER_MOST) if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS else 0


def _around(found: Timer, deliveries: Sequence[Delivered]) -> dict[str, Any]:
    """Return what a timer has to do with: its labels, the latest callbacks it led to, and what it is a callback of."""
    options_given = found.options or {}
    around: dict[str, Any] = {
        "labels": [f"{name}={value}" for name, value in sorted(options_given.get("labels", {}).items())],
        "request_id": options_given.get("request_id", ""),
        "task_id": found.periodic_task_id,
    }
    if "callback_url" in options_given or "failure_callback_url" in options_given:
        # Along timer_outcome_idx.
        of = Timer.objects.filter(outcome_of__in=[one.delivery.pk for one in deliveries[:CALLBACKS]])
        around["callbacks"] = sorted(of.values_list("created_at", "pk"), reverse=True)[:CALLBACKS]
    if found.outcome_of is not None:
        around["outcome_of"] = found.outcome_of
        # It may be pruned before its callback.
        of_delivery = Delivery.objects.filter(pk=found.outcome_of, timer__owner=found.owner_id)
        around["reported"] = of_delivery.values_list("timer_id", "number").first()
    return around


def _deliveries(found: Timer, *, most: int, before: int = 0) -> list[Delivered]:
    """Return the latest deliveries, or those before a number, with their attempts, by two statements."""
    wanted_ones = Delivery.objects.filter(timer=found.pk, **({"number__lt": before} if before else {}))
    deliveries = list(wanted_ones.order_by("-number")[:most])
    wanted = Q(number=1) | Q(number__gt=F("delivery__attempts") - ATTEMPTS)
    tried = [one.pk for one in deliveries if one.attempts]
    attempts: dict[uuid.UUID, list[Attempt]] = {}
    found_attempts = Attempt.objects.filter(wanted, delivery__in=tried).defer("stages", "headers", "worker")
    for attempt in found_attempts.order_by("delivery", "number"):
        attempts.setdefault(attempt.delivery_id, []).append(attempt)
    return [_delivered(one, attempts.get(one.pk, [])) for one in deliveries]


def _delivered(delivery: Delivery, attempts: list[Attempt]) -> Delivered:
    calls = [
        charts.Call(
            attempt.started_at,
            attempt.started_at + timedelta(milliseconds=attempt.duration_ms)
            if attempt.duration_ms is not None
            else None,
            not attempt.error,
            f"{attempt.number}: {attempt.status_code or attempt.get_error_display() or ''}".rstrip(": "),
        )
        for attempt in attempts
    ]
    state = delivery.state
    if state == State.SCHEDULED and delivery.attempts > delivery.attempts_before:
        state = "retrying"
    return Delivered(delivery, state, attempts, charts.timeline(delivery.due_at, calls))


def _streak(deliveries: list[Delivered]) -> list[tuple[int, charts.Square]]:
    """Return the latest deliveries as columns with their numbers, the newest last."""
    squares = charts.streak(
        [
            (
                one.state,
                one.first.lateness_ms if one.first else None,
                f"{instant_text(one.delivery.due_at)} · {one.delivery.get_state_display()}"
                + (f" · {one.first.lateness_ms} ms" if one.first else ""),
            )
            for one in reversed(deliveries)
        ]
    )
    return list(zip([one.delivery.number for one in reversed(deliveries)], squares, strict=True))


def _streak_said(deliveries: list[Delivered]) -> dict[str, Any]:
    """Return how many per cent of those that ended succeeded, percentiles of lateness, and the mean of durations."""
    ended = [one.state for one in deliveries if one.state in (State.SUCCEEDED, *LOST)]
    late = sorted(one.first.lateness_ms for one in deliveries if one.first)
    took = [one.last.duration_ms for one in deliveries if one.last and one.last.duration_ms is not None]

    def percentile(percent: int) -> float | None:
        return late[max(0, -(-len(late) * percent // 100) - 1)] if late else None

    return {
        "share": share_of(ended.count(State.SUCCEEDED), len(ended)),
        "p50": percentile(50),
        "p99": percentile(99),
        "mean": sum(took) / len(took) if took else None,
    }


def _pace(body: Mapping[str, Any], *, now: datetime) -> int:
    """Return after how many milliseconds the page asks for news; 0 once the timer has ended."""
    if body["finished_at"] is not None:
        return 0
    if body["next_attempt_at"] is None:
        return SLOW_MS if body["status"] in (State.PAUSED, State.HELD) else QUICK_MS
    left = (datetime.fromisoformat(body["next_attempt_at"]) - now).total_seconds()
    return QUICK_MS if left < SOON_SECONDS else SLOW_MS


def _moments(found: Timer, *, now: datetime) -> list[dict[str, str]]:
    """Return the next moments of a schedule; none for a timer that is called once."""
    if not found.recurring:
        return []
    schedule = found.recurrence
    zone = ZoneInfo(schedule.timezone)
    shown_moments: list[dict[str, str]] = []
    previous: datetime | None = None
    for moment in islice(schedule.moments(now), MOMENTS):
        note = translated(recurrence.transition_note(moment, previous, schedule.timezone)) if schedule.cron else ""
        shown_moments.append({"at": instant_text(moment), "local": f"{moment.astimezone(zone):%F %T %Z}", "note": note})
        previous = moment
    return shown_moments


def as_given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what creates such a timer again; one that is called once waits as long as this one did."""
    given: dict[str, Any] = {"web_url": body["web_url"]}
    names = ("name", *RECURRING, *BOUNDS)
    given |= {name: body[name] for name in names if name in body}
    if not any(name in body for name in RECURRING):
        created, due = (datetime.fromisoformat(body[name]) for name in ("created_at", "due_at"))
        given["seconds"] = max(0, round((due - created).total_seconds()))
    return given | {name: body[name] for name in options.NAMES if name in body}


# What each does, and what is said then.
_DEEDS: dict[str, tuple[Callable[[uuid.UUID], object], Callable[[], str]]] = {
    "run": (services.run_now, lambda: _("It is called once more now.")),
    "try-now": (services.try_now, lambda: _("The next attempt is made now.")),
    "pause": (services.pause, lambda: _("It is paused. Resume lets it go on.")),
    "resume": (services.resume, lambda: _("It goes on.")),
    "replay": (services.replay, lambda: _("The delivery is sent again.")),
    "cancel": (services.cancel, lambda: _("It is cancelled.")),
}
# What the message offers as the way back.
_UNDONE = {"pause": "resume", "resume": "pause"}


@page
@require_POST
def act(request: HttpRequest, timer_id: uuid.UUID, action: str) -> HttpResponse:
    """Do what a button asks, and go back to the timer, or to the list that the button stood in."""
    found = Timer.objects.filter(pk=timer_id, **caller_of(request).visible()).first()
    if found is None or action not in _DEEDS:
        raise Http404
    if not may_change(request, found):
        raise PermissionDenied
    deed, said = _DEEDS[action]
    try:
        deed(timer_id)
    except ValidationError as error:
        messages.error(request, error.messages[0])
    except Timer.DoesNotExist as error:
        raise Http404 from error
    else:
        undo = _UNDONE.get(action)
        address = reverse("dashboard:act", args=[timer_id, undo]) if undo else ""
        messages.success(request, said(), extra_tags=address)
    return redirect(list_before(request) or reverse("dashboard:timer", args=[timer_id]))
