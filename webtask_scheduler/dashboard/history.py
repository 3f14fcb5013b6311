"""`/timers/<id>/history`: what was done to a timer, by whom and through which door, as the audit log has it."""

import contextlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from webtask_scheduler.access import actor, audit
from webtask_scheduler.access.models import ApiKey, AuditEntry
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler.models import Timer
from webtask_scheduler.scheduler.rules.instants import instant_text, read_instant
from webtask_scheduler.scheduler.rules.recurrence import COLUMNS
from webtask_scheduler.scheduler.services import auditing
from webtask_scheduler.scheduler.services.caller import Caller

# Deeds that the page of a timer shows, and those of one page of the list.
LATEST, PAGE = 10, 25
# Of each deed on the page of a timer, so many changes are shown; and of each value, so many characters.
CHANGES, CHARACTERS = 3, 120
_WORDS = {
    "timer.edited": gettext_lazy("Edited"),
    "timer.moved": gettext_lazy("Moved"),
    "timer.paused": gettext_lazy("Paused"),
    "timer.resumed": gettext_lazy("Resumed"),
    "timer.cancelled": gettext_lazy("Cancelled"),
    "timer.restored": gettext_lazy("Restored"),
    "timer.run": gettext_lazy("Run once more"),
    "timer.tried_now": gettext_lazy("Tried at once"),
    "timer.replayed": gettext_lazy("Replayed"),
    "timer.dismissed": gettext_lazy("Dismissed"),
    "timer.undismissed": gettext_lazy("Dismissal undone"),
}
_DOORS = {
    actor.API: gettext_lazy("API"),
    actor.ADMIN: gettext_lazy("Admin"),
    actor.DASHBOARD: gettext_lazy("Dashboard"),
    actor.COMMAND: gettext_lazy("Command"),
    actor.STOCK_ROW: gettext_lazy("Edit of its PeriodicTask"),
    actor.NOTIFICATION: gettext_lazy("Notification"),
    "": gettext_lazy("Code or the service itself"),
}
# What moves a timer and changes nothing else of it.
_WHEN = frozenset({*COLUMNS, "due_at", "max_occurrences"})
# Values that are told by the word of the deed, and by the other values that changed with them.
_SAID_ALREADY = frozenset({"status", "sealed"})


class Change(NamedTuple):
    """A value before and after; both are empty where only that it changed may be told."""

    name: str
    before: str
    after: str


class Deed(NamedTuple):
    """What was done once: when, in which word, what it changed, and who did it by which door."""

    at: datetime
    word: str
    changes: Sequence[Change]
    # Changes that are not among these.
    more: int
    name: str
    door: str
    # The name of the API key, or its id where there is no such key any more.
    key: str
    address: str


class History(NamedTuple):
    """Deeds, the newest first, and the id below which there are older ones; 0 if these are all."""

    deeds: list[Deed]
    older: int


def history_of(timer: Timer, *, caller: Caller, most: int, before: int = 0, changes_most: int = 0) -> History:
    """Return what was done to a timer that the caller may see; its creation is the last, from the timer's own row."""
    # Along audit_object_idx. Whose a deed is, is asked of the few that are found: by it, another index might be taken.
    entries = AuditEntry.objects.filter(kind=auditing.TIMER, object_id=str(timer.pk)).order_by("-pk")
    found = list((entries.filter(pk__lt=before) if before else entries)[: most + 1])
    shown = [one for one in found[:most] if caller.sees_all or one.owner_id == caller.owner_id]
    made_by = timer.made_by or {}
    keys = _keys({one.key for one in shown} | {made_by.get("key", "")}, caller=caller)
    deeds = [_deed(one, keys, changes_most=changes_most) for one in shown]
    if len(found) <= most:
        through = made_by.get("through", "")
        name, key, address = (made_by.get(part, "") for part in ("name", "key", "address"))
        word, door = _("Made"), _door(through)
        if timer.outcome_of is not None:
            door = _("Callback of another timer")
        deeds.append(Deed(timer.created_at, word, [], 0, name, door, keys.get(key, key), address))
    return History(deeds, found[most - 1].pk if len(found) > most else 0)


def _keys(ids: set[str], *, caller: Caller) -> dict[str, str]:
    """Return the names of API keys that the caller may see, by their ids."""
    wanted = [int(one) for one in ids if one.isascii() and one.isdigit()]
    if not wanted:
        return {}
    found = ApiKey.objects.filter(pk__in=wanted, **caller.visible())
    return {str(pk): name for pk, name in found.values_list("pk", "name")}


def _door(through: str) -> str:
    return str(_DOORS.get(through, through))


def _deed(entry: AuditEntry, keys: Mapping[str, str], *, changes_most: int) -> Deed:
    before, after = entry.before or {}, entry.after or {}
    names = [name for name in {**before, **after} if name not in _SAID_ALREADY]
    is_edit = entry.action in ("timer.edited", "timer.restored")
    changes = [_change(name, before, after) for name in names] if is_edit else []
    action = "timer.moved" if entry.action == "timer.edited" and names and _WHEN.issuperset(names) else entry.action
    word = str(_WORDS.get(action, action))
    if after.get("periodic_task") == "deleted":
        word = _("Cancelled: its PeriodicTask was deleted")
    shown = changes[:changes_most] if changes_most else changes
    key = keys.get(entry.key, entry.key)
    more = len(changes) - len(shown)
    return Deed(entry.at, word, shown, more, entry.name, _door(entry.through), key, entry.address)


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    untold = audit.UNTOLD in (before.get(name), after.get(name))
    return Change(name, *("", "") if untold else (_said(state.get(name)) for state in (before, after)))


def _said(value: Any) -> str:
    """Return a value of the log in few characters; `-` for none."""
    if value in (None, "", [], {}):
        return "-"
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    elif value[4:5] == "-" and "T" in value:
        # Some texts only begin as an instant does.
        with contextlib.suppress(ValueError):
            value = instant_text(read_instant(value))
    return str(Truncator(value).chars(CHARACTERS))


@page
@require_safe
def history(request: HttpRequest, timer_id: uuid.UUID) -> HttpResponse:
    """Show a page of all that was done to a timer. One that the caller may not see is as one that is not there."""
    caller = caller_of(request)
    found = Timer.objects.select_related("owner").filter(pk=timer_id, **caller.visible()).first()
    if found is None:
        raise Http404
    text = request.GET.get("before", "")
    before = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0  # noqa: PLR2004 - a bigint
    listed = history_of(found, caller=caller, most=PAGE, before=before)
    address = reverse("dashboard:timer", args=[timer_id])
    return show(
        request,
        "history.html",
        title=_("History"),
        at="timers",
        history=listed,
        timer_address=address,
        what=found.name or str(timer_id),
        before=before,
        days=settings.WEBTASK_AUDIT_DAYS,
        is_whole=True,
    )
