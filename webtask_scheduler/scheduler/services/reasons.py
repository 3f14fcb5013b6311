"""Says why a timer has not been called successfully yet: in the API, on pages and in the admin the same sentence."""

from datetime import datetime

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, host_of

NOT_YET = gettext_noop("Its moment has not come yet.")
NOT_CLAIMED = gettext_noop("It is due and waits for a beat to claim it.")


def not_started(web_url: str, *, is_due: bool) -> str:
    """Return in a sentence what a timer that was just stored waits for."""
    return facts.gather().cause(host_of(web_url)) or _(NOT_CLAIMED) if is_due else _(NOT_YET)


def reason(  # noqa: PLR0911 - a sentence for each state
    host: str, delivery: Delivery, *, now: datetime, last: Attempt | None
) -> str | None:
    """Return in a sentence why a delivery was not called successfully; None if it was. `last` is its last attempt."""
    if delivery.cancel_requested_at and not delivery.is_final:
        return _("It was cancelled while its call was in flight; that call may still land, no retry follows.")
    if not delivery.is_final and delivery.state != State.PAUSED:
        return _waits(host, delivery, now=now, last=last)
    if delivery.fault:
        return _("This service could not go on with it: %(fault)s") % {"fault": delivery.fault}
    match delivery.state:
        case State.PAUSED:
            return _("It is paused; resume it to let it go on.")
        case State.FAILED:
            given_up = ngettext(
                "It was given up after %(count)s attempt.",
                "It was given up after %(count)s attempts.",
                delivery.attempts,
            )
            return f"{given_up % {'count': delivery.attempts}} {last.message if last else ''}".strip()
        case State.CANCELLED:
            return _("It was cancelled.")
        case State.MISSED:
            return _("Its moment had passed by more than its allowed lateness.")
    return None


def _waits(  # noqa: PLR0911 - as above
    host: str, delivery: Delivery, *, now: datetime, last: Attempt | None
) -> str:
    """Return in a sentence what an open delivery waits for and what prevents it."""
    before = ""
    if last is not None and last.message:
        before = _("Attempt %(number)s failed: %(message)s") % {"number": last.number, "message": last.message}
    if delivery.state == State.SCHEDULED and delivery.next_attempt_at > now:
        if before:
            return f"{before} {_('It is tried again at next_attempt_at.')}"
        if delivery.due_at > now:
            return _(NOT_YET)
        if delivery.replayed_at is not None:
            return _("It was replayed, and is called at next_attempt_at.")
        return _("Calls to slow hosts fill the workers; it is called at next_attempt_at.")
    found = facts.gather()
    cause = found.cause(host, claimed=delivery.state != State.SCHEDULED)
    if delivery.state == State.SCHEDULED:
        return f"{before} {cause or _('It is due to be tried again.')}" if before else cause or _(NOT_CLAIMED)
    if delivery.state == State.CLAIMED:
        behind = _("A beat has claimed it; %(behind)s") % {"behind": found.behind} if found.behind else ""
        return cause or behind or _("A beat has claimed it; a worker calls it at its moment.")
    if delivery.state == State.HELD:
        return cause or _("Calls to its host were stopped and are resumed; it is called within seconds.")
    if found.has_live_worker:
        return _("A worker is calling it now.")
    return _("A worker was calling it, and no worker is at work now; what became of the call is not known yet.")
