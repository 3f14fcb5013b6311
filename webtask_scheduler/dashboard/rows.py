"""Timers as lists show them: a few statements for any number of rows, and none that counts."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.utils import timezone
from django.utils.translation import gettext as _

from webtask_scheduler.dashboard import crons
from webtask_scheduler.scheduler.api.showing import show_timers
from webtask_scheduler.scheduler.models import FINAL, State, Timer, TimerLabel
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller

PAGE_ROWS = 30
# A page that few timers fit is looked for on and on for this long, and then says how far it came.
LOOK_SECONDS = 0.7
# A count beside a tab stops at the first, and looks at so many rows: some milliseconds.
COUNT_MOST, COUNT_SCANNED = 99, 400
# Of an owner's timers that have ended an index alone is read, so that an owner's are found among many of others.
COUNT_OWN_SCANNED = 10_000
# An owner with no more timers has them counted as a whole, in some tens of milliseconds.
TALLY_MOST = 2000
# What a row shows; none of them reads a timer's options, which may be large.
FIELDS = (
    *("task_id", "status", "web_url", "name", "due_at", "next_attempt_at", "finished_at", "created_at", "reason"),
    *("attempts", "cron", "timezone", "every"),
)
# What can be sent again.
LOST = (State.FAILED, State.MISSED)
# What no longer waits, or for a person.
PAST = frozenset((*FINAL, State.PAUSED))


def look(wanted: search.Filter, *, cursor: str, limit: int = PAGE_ROWS) -> search.Page:
    """Return up to `limit` timers that fit. Fewer, with a cursor, mean that the time was up. Raises CursorError."""
    return search.page(wanted, cursor=cursor, limit=limit, seconds=LOOK_SECONDS)


class Count(NamedTuple):
    """How many timers fit, as far as they were counted: `more` where there may be more."""

    number: int
    more: bool

    def __str__(self) -> str:
        return f"{self.number}+" if self.more and self.number else "" if self.more else str(self.number)


def count(wanted: search.Filter) -> Count:
    """Return how many timers fit, by one quick look: up to COUNT_MOST, among COUNT_SCANNED rows."""
    is_past = bool(wanted.statuses) and PAST.issuperset(wanted.statuses)
    most = COUNT_OWN_SCANNED if is_past and not wanted.everyone else COUNT_SCANNED
    found = search.page(wanted, cursor="", limit=COUNT_MOST, scanned_most=most)
    return Count(len(found.timer_ids), found.next is not None)


def counts(wanted: Sequence[search.Filter]) -> list[Count]:
    """Return how many timers fit each of these filters, which differ in statuses, `retrying` and `late` alone."""
    found = search.tally(wanted[0], most=TALLY_MOST) if wanted else None
    if found is None:
        each = {one: count(one) for one in dict.fromkeys(wanted)}
        return [each[one] for one in wanted]
    return [Count(sum(of.timers for of in found if _fits(of, one)), more=False) for one in wanted]


def _fits(of: search.Tally, wanted: search.Filter) -> bool:
    is_status = not wanted.statuses or of.state in wanted.statuses
    return is_status and wanted.retrying in (None, of.retrying) and wanted.late in (None, of.late)


def rows(timer_ids: Sequence[uuid.UUID], *, caller: Caller, changer: Caller | None = None) -> list[dict[str, Any]]:
    """Return timers that the caller may see as rows, in the order of the ids, by six statements at most.

    With a `changer`, each row has what that caller may do with its timer as it is now.
    """
    timers = Timer.objects.filter(pk__in=timer_ids, **caller.visible())
    seen = {pk: (owner_id, email) for pk, owner_id, email in timers.values_list("pk", "owner", "owner__email")}
    ids = [pk for pk in timer_ids if pk in seen]
    if not ids:
        return []
    labels: dict[uuid.UUID, list[str]] = {}
    for pk, label in TimerLabel.objects.filter(timer__in=ids).order_by("label").values_list("timer_id", "label"):
        labels.setdefault(pk, []).append(label)
    now = timezone.now()
    found = []
    for body in show_timers(ids, FIELDS):
        pk = uuid.UUID(body["task_id"])
        owner_id, email = seen[pk]
        row = shown(body, now=now) | {"owner": email, "labels": labels.get(pk, ())}
        if changer is not None:
            row["may_act"] = changer.sees_all or owner_id == changer.owner_id
            # What names the row: its box and its menu refer to it, for a long name three times is much of a page.
            row["said"] = f"n{pk.hex[-8:]}"
            row["menu"] = _menu_of(body, now=now) if row["may_act"] else LOOK
        found.append(row)
    return found


class Action(NamedTuple):
    """What may be done with a timer; its name is that of its address."""

    name: str
    label: str
    # What is asked before it is done; empty for what is undone as easily.
    question: str
    is_harmful: bool = False


# The kinds of menus that rows have, each with a timer of which it is true: its status, whether it ended, and whether it
# waits for a later attempt. A page has one menu of each kind, for rows change their kind while it is open.
_MENUS = {
    "waiting": (State.SCHEDULED, False, False),
    "again": (State.SCHEDULED, False, True),
    "paused": (State.PAUSED, False, False),
    "lost": (State.FAILED, True, False),
    "ended": (State.SUCCEEDED, True, False),
}
# The menu of whoever may do nothing with the timer.
LOOK = "look"


def _menu_of(body: Mapping[str, Any], *, now: datetime) -> str:
    """Return the kind of a row's menu, by the timer's promised delivery alone."""
    if body["finished_at"] is not None:
        return "lost" if body["status"] in LOST else "ended"
    if body["status"] == State.PAUSED:
        return "paused"
    waits = body["status"] == State.SCHEDULED and bool(body["attempts"])
    return "again" if waits and datetime.fromisoformat(body["next_attempt_at"]) > now else "waiting"


def menus(listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the menus that rows have, or may have while the page is open: of each its kind and what it offers."""
    found: list[dict[str, Any]] = []
    if any(row["may_act"] for row in listed):
        for kind, (status, ended, waits_again) in _MENUS.items():
            body = {"status": status, "finished_at": "" if ended else None}
            actions = actions_of(body, waits_again=waits_again, is_lost=status in LOST)
            found.append({"kind": kind, "actions": actions, "is_open": not ended, "may_act": True})
    if not all(row["may_act"] for row in listed):
        found.append({"kind": LOOK, "actions": [], "is_open": False, "may_act": False})
    return found


def actions_of(body: Mapping[str, Any], *, waits_again: bool, is_lost: bool) -> list[Action]:
    """Return what may be done with a timer as it is now.

    `waits_again` says that one of its deliveries waits for a later attempt, `is_lost` that one failed or was missed.
    """
    found = []
    ended = body["finished_at"] is not None
    if not ended:
        found.append(Action("run", _("Run now"), _("Call the URL once more now? What is promised stands.")))
        if body["status"] == State.PAUSED:
            found.append(Action("resume", _("Resume"), ""))
        else:
            found.append(Action("pause", _("Pause"), ""))
    if waits_again:
        question = _("Make the next attempt now instead of waiting for it?")
        found.append(Action("try-now", _("Try now"), question))
    if is_lost:
        question = _("Send the latest delivery that failed or was missed again, with fresh attempts?")
        found.append(Action("replay", _("Replay"), question))
    if not ended:
        question = _("Cancel it for good? It cannot be resumed, and its record stays.")
        found.append(Action("cancel", _("Cancel"), question, is_harmful=True))
    return found


def shown(body: dict[str, Any], *, now: datetime) -> dict[str, Any]:
    """Return a timer of the API with what a page says beside: the state in a finer word, its last call, its place."""
    attempts = body.get("attempts") or []
    place = urlsplit(body["web_url"])
    return body | {
        "state": state_of(body, now=now),
        "last": attempts[-1] if attempts else None,
        "tries": attempts[-1]["number"] if attempts else 0,
        "host": place.netloc.rpartition("@")[2],
        "path": place.path + (f"?{place.query}" if place.query else ""),
        "is_open": body["finished_at"] is None,
        "recurs": "cron" in body or "every" in body,
        "words": crons.in_words(body["cron"]) if "cron" in body else "",
    }


def state_of(body: dict[str, Any], *, now: datetime) -> str:
    """Return a timer's status in a finer word: of `scheduled` some are tried again, and some are late."""
    if body["status"] != State.SCHEDULED:
        return str(body["status"])
    due_at = datetime.fromisoformat(body["next_attempt_at"])
    if (now - due_at).total_seconds() > search.LATE_SECONDS:
        return "late"
    return "retrying" if body["attempts"] else "scheduled"
