"""`/timers/<id>/verify` and `/settings/verify`: how a receiver finds out whether a call is genuine."""

import uuid
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.snippets import VERIFYING
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.models import Attempt, Delivery, Timer
from webtask_scheduler.scheduler.rules.options import WITH_BODY, Options
from webtask_scheduler.scheduler.services.caller import Caller

# Of a timer's latest deliveries, as many are looked at for one that was called. It is at most a few: the next one of a
# schedule, and those that were missed.
LOOKED_AT = 10


@page
@require_safe
def verify(request: HttpRequest, timer_id: uuid.UUID | None = None) -> HttpResponse:
    """Show how a signature is verified, with one timer's own headers if one is named. It holds no secret.

    A timer that the caller may not see is as one that is not there.
    """
    caller = caller_of(request)
    values: dict[str, Any] = {}
    if timer_id is not None:
        found = Timer.objects.select_related("owner").filter(pk=timer_id, **caller.visible()).first()
        if found is None:
            raise Http404
        values = _of(found, caller)
    return show(
        request,
        "verify.html",
        title=_("Verify a signature"),
        at="timers" if values else "settings",
        snippets=VERIFYING,
        **values,
    )


def _of(timer: Timer, caller: Caller) -> dict[str, Any]:
    """Return what is said of one timer: whether its calls are signed, and what their headers are."""
    given = Options(sealing.shown(timer.options))
    latest = list(Delivery.objects.filter(timer=timer.pk).order_by("-number")[:LOOKED_AT])
    # One that was called is in the receiver's log.
    delivery = next((one for one in latest if one.attempts), latest[0] if latest else None)
    attempt = (
        Attempt.objects.filter(delivery=delivery.pk).defer("stages", "headers").order_by("-number").first()
        if delivery and delivery.attempts
        else None
    )
    at = attempt.started_at if attempt else delivery.due_at if delivery else None
    signing = services.signing_of(timer.pk)
    return {
        "timer": timer,
        "what": timer.name or str(timer.pk),
        "signing": signing,
        # What stands in place of a signature.
        "signatures": " ".join(["v1,…"] * signing.used),
        "may_add": timer.owner_id == caller.owner_id,
        "delivery": delivery,
        "attempt": attempt,
        # As the call itself makes it, in whole seconds.
        "timestamp": int(at.timestamp()) if at else None,
        "own_headers": list(given.headers),
        "has_body": given.method in WITH_BODY or bool({"body", "body_base64"} & given.given.keys()),
        "follows_redirects": given.follows_redirects,
    }
