"""Says why a timer has not been called successfully yet: in the API, on pages and in the admin the same sentence."""

import uuid
from collections.abc import Iterable
from datetime import datetime

from django.db import connection
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, host_of
from webtask_scheduler.scheduler.rules.retry import GONE

NOT_YET = gettext_noop("Its moment has not come yet.")
NOT_CLAIMED = gettext_noop("It is due and waits for a beat to claim it.")


def not_started(web_url: str, *, is_due: bool) -> str:
    """Return in a sentence what a timer that was just stored waits for."""
    return facts.gather().cause(host_of(web_url)) or _(NOT_CLAIMED) if is_due else _(NOT_YET)


def reason(  # noqa: PLR0911 - a sentence for each state
    host: str, delivery: Delivery, *, now: datetime, last: Attempt | None, is_gone: bool
) -> str | None:
    """Return in a sentence why a delivery was not called successfully; None if it was.

    `last` is its last attempt, and `is_gone` says whether it is one of `paused_by_gone`.
    """
    if delivery.cancel_requested_at and not delivery.is_final:
        return _("It was cancelled while its call was in flight; that call may still land, no retry follows.")
    if not delivery.is_final and delivery.state != State.PAUSED:
        return _waits(host, delivery, now=now, last=last)
    if delivery.fault:
        return _("This service could not go on with it: %(fault)s") % {"fault": delivery.fault}
    match delivery.state:
        case State.PAUSED:
            if is_gone:
                return _("A call was answered 410 Gone, which paused it; resume it to let it go on.")
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


# The transaction that records an answer of 410 also makes the next delivery, paused (queue.endings). Both rows have its
# number in `xmin` until they are written again: an attempt never is, and a delivery is by whoever resumes or moves it.
# So the two are equal only while nobody did. After a restore from a dump they differ, or they are equal to the timer's,
# which is older than its second delivery; then it is not known, and nothing is said of the answer.
# A delivery that was replayed since is an extra one. With OFFSET 0 no plan can read a whole table instead.
_PAUSED_BY_GONE = f"""
SELECT paused.id
  FROM unnest(%(ids)s::uuid[]) AS one (id)
  JOIN LATERAL (SELECT id, timer_id, number, xmin AS made_by FROM scheduler_delivery
                 WHERE id = one.id AND state = 'paused' OFFSET 0) paused ON true
  JOIN LATERAL (SELECT xmin AS written_by FROM scheduler_timer WHERE id = paused.timer_id OFFSET 0) timer
    ON timer.written_by <> paused.made_by
  JOIN LATERAL (SELECT id FROM scheduler_delivery
                 WHERE timer_id = paused.timer_id AND number < paused.number AND (NOT extra OR replayed_at IS NOT NULL)
                 ORDER BY number DESC LIMIT 1) before ON true
  JOIN LATERAL (SELECT xmin AS made_by FROM scheduler_attempt
                 WHERE delivery_id = before.id AND status_code = {GONE} AND error <> '' OFFSET 0) gone
    ON gone.made_by = paused.made_by
"""  # noqa: S608 - only a constant is put in


def paused_by_gone(deliveries: Iterable[Delivery]) -> frozenset[uuid.UUID]:
    """Return the ids of those that are paused because the call before was answered 410, and that nobody resumed since.

    It is one statement, and none where no delivery is paused before its first call. Raises DatabaseError.
    """
    ids = [one.pk for one in deliveries if one.state == State.PAUSED and one.occurrence > 1 and not one.attempts]
    if not ids:
        return frozenset()
    with connection.cursor() as cursor:
        cursor.execute(_PAUSED_BY_GONE, {"ids": ids})
        return frozenset(row[0] for row in cursor.fetchall())


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
