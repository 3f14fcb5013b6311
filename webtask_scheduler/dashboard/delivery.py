"""`/timers/<id>/deliveries/<number>`: where the time of one delivery went, attempt by attempt."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import F, Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_POST, require_safe

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.dashboard import charts
from webtask_scheduler.dashboard.frame import is_live, show
from webtask_scheduler.dashboard.snippets import SHOWN_CHARACTERS, curl_of_call, cut
from webtask_scheduler.dashboard.timers import unchanged_or
from webtask_scheduler.dashboard.who import caller_of, may_change, page
from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.api.showing import CallSerializer, DeliverySerializer
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.options import WITH_BODY, Options

# Of its attempts, the first ones and the last ones.
FIRST, LAST = 5, 25
# A first attempt that begins later than this waited for something worth a line.
WAITED_SECONDS = 0.1
# How much longer than its backoff a wait is that was asked for by the receiver, not by the policy.
_BACKOFF_SLACK_SECONDS = 1.0
# Stops of calls that are looked at, the latest first.
STOPS = 50
LOST = (State.FAILED, State.MISSED)
LIVE_MS = 1000

# What each kind of error means for the person who has to do something about it.
_ADVICE: dict[str, Any] = {
    "status": gettext_lazy("The receiver answered, and not with a success. Its own log says why."),
    "timeout": gettext_lazy(
        "No complete answer came in time. The receiver may have done its work all the same: let it answer first and"
        " work later, or raise timeout_seconds."
    ),
    "dns": gettext_lazy("The name was not found. Check the host in the URL, and that name servers know it."),
    "connect": gettext_lazy(
        "Nothing listens there, or no way leads there. Check the port, the firewall and the receiver."
    ),
    "tls": gettext_lazy("No secure connection was made. Check the certificate: its date, its names, its authority."),
    "connection": gettext_lazy(
        "The receiver, or something between, hung up before a whole answer. It may have done its work all the same."
    ),
    "protocol": gettext_lazy("What came back is not valid HTTP. Check what listens at this address."),
    "redirect": gettext_lazy("The answer sends the call elsewhere. Give the timer the last URL, or follow_redirects."),
    "url": gettext_lazy("This URL cannot be called. Edit the timer."),
    "refused": gettext_lazy("This deployment does not call that address, host or port: see WEBTASK_EGRESS_ALLOW."),
    "interrupted": gettext_lazy(
        "This service was stopped in the middle of the call, and makes it again. It does not count as an attempt of the"
        " policy."
    ),
    "lost": gettext_lazy("The process that called vanished. Whether the receiver got the call is not known."),
}
# Kinds of errors where nothing of the request reached the receiver, and where it is not known whether it did.
_NOT_SENT = frozenset({"dns", "connect", "tls", "url", "refused"})
_NOT_KNOWN = frozenset({"timeout", "connection", "protocol", "interrupted", "lost"})


@page
@require_safe
def delivery(request: HttpRequest, timer_id: uuid.UUID, number: int) -> HttpResponse:
    """Show a delivery, and of its attempts the one that the query names, else the last."""
    found = _found(request, timer_id, number)
    attempts = _attempts(found, chosen=_chosen_number(request))
    if request.GET.get("as") == "json":
        body = {
            "delivery": DeliverySerializer(found).data,
            "attempts": CallSerializer(attempts, many=True).data,
        }
        answer = JsonResponse(json.loads(json.dumps(body, default=str)), json_dumps_params={"indent": 2})
        answer["Content-Disposition"] = f'attachment; filename="delivery-{found.pk}.json"'
        return answer
    chosen = next(
        (one for one in attempts if one.number == _chosen_number(request)), attempts[-1] if attempts else None
    )
    timer = found.timer
    state = found.state
    if state == State.SCHEDULED and found.attempts > found.attempts_before:
        state = "retrying"
    sent = _sent(timer, found, chosen)
    is_long = len(sent["body"]) > SHOWN_CHARACTERS
    values: dict[str, Any] = {
        "timer": timer,
        "url": sealing.shown_url(timer.web_url),
        "delivery": found,
        "state": state,
        "attempts": attempts,
        "skipped": found.attempts - len(attempts) if found.finished_at or not found.lease_token else 0,
        "chosen": chosen,
        "advice": _ADVICE.get(chosen.error, "") if chosen else "",
        "falls": charts.waterfall(_way(found, attempts)),
        "stages": charts.waterfall(_stages(chosen)) if chosen else [],
        "ahead_ms": _ahead_ms(chosen),
        "answered": chosen.answered if chosen else None,
        "first": attempts[0] if attempts and attempts[0].number == 1 else None,
        "duplicates": _duplicates(found, attempts),
        "losses": _losses(found, attempts),
        "sent": sent | {"body": cut(sent["body"])},
        "curl": "" if is_long else curl_of_call(sealing.shown_url(timer.web_url), **sent),
        "may_replay": found.state in LOST and may_change(request, timer),
        "every_ms": 0 if found.finished_at else LIVE_MS,
        "sensitive": Options(timer.options or {}).sensitive,
    }
    if is_live(request):
        return unchanged_or(request, render(request, "dashboard/_delivery.html", values))
    title = _("Delivery %(number)s of %(timer)s") % {"number": found.number, "timer": timer.name or timer.host}
    return show(request, "delivery.html", title=title, at="timers", **values)


@page
@require_POST
def replay(request: HttpRequest, timer_id: uuid.UUID, number: int) -> HttpResponse:
    """Send a delivery again, and go back to it."""
    found = _found(request, timer_id, number)
    if not may_change(request, found.timer):
        raise PermissionDenied
    try:
        services.replay(timer_id, delivery_id=found.pk)
    except ValidationError as error:
        messages.error(request, error.messages[0])
    except Timer.DoesNotExist as error:
        raise Http404 from error
    else:
        messages.success(request, _("The delivery is sent again."))
    return redirect("dashboard:delivery", timer_id=timer_id, number=number)


def _found(request: HttpRequest, timer_id: uuid.UUID, number: int) -> Delivery:
    # A larger number is none of the column.
    wanted = Delivery.objects.select_related("timer").filter(
        timer=timer_id, number=min(number, 2**31 - 1), **caller_of(request).visible("timer__")
    )
    found = wanted.first()
    if found is None:
        raise Http404
    return found


def _chosen_number(request: HttpRequest) -> int:
    text = request.GET.get("attempt", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0  # noqa: PLR2004 - of the column


def _attempts(found: Delivery, *, chosen: int) -> list[Attempt]:
    """Return the first, the last and the chosen attempts of a delivery, in their order."""
    wanted = Q(number__lte=FIRST) | Q(number__gt=F("delivery__attempts") - LAST) | Q(number=chosen)
    return list(Attempt.objects.filter(wanted, delivery=found.pk).order_by("number")[: FIRST + LAST + 2])


# Drawing


def _way(found: Delivery, attempts: Sequence[Attempt]) -> list[charts.Span]:
    """Return the waits and the attempts of a delivery, in seconds from the promised moment."""

    def at(moment: datetime) -> float:
        return (moment - found.due_at) / timedelta(seconds=1)

    stops = _stops(found, attempts) if attempts else []
    options = Options(found.timer.options or {})
    spans: list[charts.Span] = []
    before: Attempt | None = None
    link = reverse("dashboard:delivery", kwargs={"timer_id": found.timer_id, "number": found.number})
    for attempt in attempts:
        meant, begun = at(attempt.meant_for), at(attempt.started_at)
        if before is not None:
            ended = at(_ended(before))
            if before.number < attempt.number - 1:
                spans.append(charts.Span(_("Attempts that are not shown"), ended, meant, "wait"))
            elif meant > ended:
                spans.append(charts.Span(_("Wait"), ended, meant, "wait", _planned(found, before, attempt, options)))
        late_from = max(meant, at(_ended(before))) if before else meant
        if begun - late_from >= WAITED_SECONDS:
            spans.append(charts.Span(_("Late"), late_from, begun, "late", _why_late(attempt, stops)))
        label = _("Attempt %(number)s") % {"number": attempt.number}
        said = str(attempt.status_code or "") or (attempt.get_error_display() if attempt.error else "")
        kind = "bad" if attempt.error else "good"
        spans.append(charts.Span(label, begun, at(_ended(attempt)), kind, said, f"{link}?attempt={attempt.number}"))
        before = attempt
    return spans


def _ended(attempt: Attempt) -> datetime:
    return attempt.started_at + timedelta(milliseconds=attempt.duration_ms or 0)


def _planned(found: Delivery, before: Attempt, attempt: Attempt, options: Options) -> str:
    """Return in words why an attempt was meant for later than the end of the one before."""
    wait = (attempt.meant_for - _ended(before)).total_seconds()
    if found.replayed_at and _ended(before) <= found.replayed_at <= attempt.started_at:
        return _("replayed")
    if before.error in ("interrupted", "lost"):
        return _("made again without a backoff")
    # The attempts before a replay began anew are not counted by the policy.
    tries = before.number - found.attempts_before if before.number > found.attempts_before else before.number
    planned, jitter = retry.backoff_seconds(options.policy, tries), options.policy.jitter
    if before.status_code and wait > planned * (1 + jitter) + _BACKOFF_SLACK_SECONDS:
        return _("longer than the backoff: the answer asked for it (Retry-After)")
    if wait < planned * (1 - jitter) - _BACKOFF_SLACK_SECONDS:
        return _("shorter than the backoff")
    if not jitter:
        return _("backoff of %(seconds)s s") % {"seconds": f"{planned:g}"}
    values = {"seconds": f"{planned:g}", "jitter": f"{100 * jitter:g}"}
    return _("backoff of %(seconds)s s, %(jitter)s %% more or less") % values


def _why_late(attempt: Attempt, stops: Sequence[tuple[datetime, datetime | None, str]]) -> str:
    """Return in words what an attempt waited for after its moment, as far as that is known."""
    for begin, end, reason in stops:
        if begin < attempt.started_at and (end is None or end > attempt.meant_for):
            return _("calls were stopped") + (f": {reason}" if reason else "")
    reached = attempt.stages_ms
    if "claimed" not in reached:
        return _("why is not known")
    moment = -attempt.lateness_ms
    late_ms = {
        _("it was not claimed: put off as its host was slow, or no beat was at work"): reached["claimed"] - moment,
        _("the message to a worker was late"): reached["published"] - max(moment, reached["claimed"]),
        _("it lay in the broker"): reached["received"] - reached["published"],
        _("it waited for a place in a worker"): -reached["received"],
    }
    return max(late_ms, key=lambda reason: late_ms[reason])


def _stops(found: Delivery, attempts: Sequence[Attempt]) -> list[tuple[datetime, datetime | None, str]]:
    """Return when calls to the host, or all calls, were stopped and resumed, with the reason."""
    if not any(one.lateness_ms > 1000 * WAITED_SECONDS for one in attempts):
        return []
    stops: list[tuple[datetime, datetime | None, str]] = []
    for host in (found.timer.host, "*"):
        entries = AuditEntry.objects.filter(kind="host", object_id=host).order_by("-id")[:STOPS]
        ended: datetime | None = None
        for entry in entries:
            if entry.action == "calls.resumed":
                ended = entry.at
            elif entry.action == "calls.stopped":
                stops.append((entry.at, ended, str((entry.after or {}).get("reason", ""))))
                ended = entry.at
    return stops


def _stages(attempt: Attempt) -> list[charts.Span]:
    """Return the stages of an attempt as far as they are known, in seconds from its start; at least the call."""
    reached = {name: at / 1000 for name, at in attempt.stages_ms.items()}
    done = (attempt.duration_ms or 0) / 1000
    moment = -attempt.lateness_ms / 1000
    spans: list[charts.Span] = []

    def add(label: str, begin: float, end: float, kind: str) -> float:
        if end > begin:
            spans.append(charts.Span(label, begin, end, kind))
        return max(begin, end)

    at = moment
    if "claimed" in reached:
        at = add(_("Waits for a beat"), at, reached["claimed"], "wait")
        at = add(_("Waits to be sent"), at, reached["published"], "wait")
        at = add(_("In the broker"), at, reached["received"], "wait")
    elif "received" in reached and reached["received"] > at:
        at = add(_("Waits for a worker"), at, reached["received"], "wait")
    add(_("Waits for a place"), at, 0.0, "wait")
    at = 0.0
    kind = "bad" if attempt.error else "good"
    for name, label in (
        ("resolved", _("Looks up the name")),
        ("connected", _("Connects")),
        ("secured", _("Shakes hands (TLS)")),
        ("first_byte", _("Waits for the answer")),
    ):
        if name in reached:
            at = add(label, at, reached[name], kind)
    rest = _("Reads the answer") if "first_byte" in reached else _("The call") if not at else _("Until it failed")
    add(rest, at, max(done, at + 0.0001) if not at else done, kind)
    return spans


def _ahead_ms(attempt: Attempt | None) -> float | None:
    """Return how long before its moment an attempt was claimed; None if it was claimed later, or that is not known."""
    claimed = attempt.stages_ms.get("claimed") if attempt else None
    if attempt is None or claimed is None:
        return None
    ahead = -claimed - attempt.lateness_ms
    return ahead if ahead > 0 else None


# Words


def _duplicates(found: Delivery, attempts: Sequence[Attempt]) -> str:
    """Return in words whether the receiver may have got the delivery more than once."""
    sent = [one for one in attempts if one.error not in _NOT_SENT]
    if found.attempts > len(attempts) and found.finished_at is None and found.attempts - len(attempts) > 1:
        return _("Possible: it had many attempts, all under the same webhook-id.")
    if not sent:
        return _("None: nothing was sent to the receiver.")
    if any(one.error in _NOT_KNOWN for one in sent[:-1]):
        return _("Possible: an attempt ended without an answer, and another followed. All have the same webhook-id.")
    if len(sent) > 1:
        return _("The receiver got it more than once and answered each time. All have the same webhook-id.")
    if sent[0].error in _NOT_KNOWN:
        return _("None so far: one attempt was sent, and whether it arrived is not known.")
    return _("None: one attempt was sent and answered.")


def _losses(found: Delivery, attempts: Sequence[Attempt]) -> str:
    """Return in words how often the process that called vanished, as far as the attempts that are shown say."""
    lost = sum(one.error == "lost" for one in attempts)
    if lost:
        text = ngettext(
            "%(count)s: the process that called vanished, and its lease ran out.",
            "%(count)s: the processes that called vanished, and their leases ran out.",
            lost,
        )
        return text % {"count": lost}
    if not attempts:
        return _("None: it was not called yet.")
    if found.attempts - len(attempts) > 1:
        return _("None in the attempts that are shown here.")
    return _("None: each attempt was recorded by the process that made it.")


def _sent(timer: Timer, found: Delivery, attempt: Attempt | None) -> dict[str, Any]:
    """Return method, headers and body as they are sent, with secrets masked; of the timer as it is now."""
    given = Options(sealing.shown(timer.options) if timer.options else {})
    method, headers, body = given.method, given.headers, ""
    number = attempt.number if attempt else 1
    due_at = found.due_at.astimezone(UTC).isoformat()
    if given.sensitive and ("body" in given.given or "body_base64" in given.given):
        body = sealing.MASK
        headers["Content-Type"] = given.given.get("content_type", "application/json")
    elif (content := given.body()) is not None:
        raw, headers["Content-Type"] = content
        body = raw.decode("utf-8", "replace")
    elif method in WITH_BODY:
        body = json.dumps({"task_id": str(timer.pk), "due_at": due_at, "attempt": number})
        headers["Content-Type"] = "application/json"
    headers["webhook-id"] = str(found.pk)
    if attempt:
        headers["webhook-timestamp"] = str(int(attempt.started_at.timestamp()))
    headers |= {
        "webtask-timer-id": str(timer.pk),
        "webtask-due-at": due_at,
        "webtask-occurrence": str(found.occurrence),
        "webtask-attempt": str(number),
    }
    stored = Options(timer.options or {})
    if stored.depth is not None:
        headers["webtask-depth"] = str(stored.depth)
    if stored.request_id:
        headers["webtask-request-id"] = stored.request_id
    if attempt:
        headers["webtask-lateness-ms"] = f"{attempt.lateness_ms:.1f}"
    return {"method": method, "headers": headers, "body": body}
