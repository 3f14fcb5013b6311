"""Reads a crontab, or timers as JSON Lines or YAML, and says of each line what becomes of it.

`manage.py timer import` and the page `/import` show and store the same entries. A line that was imported before is
known by a label with a hash of it, so that an import can be done again, after an interruption or with more lines.
"""

import hashlib
import io
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework import exceptions, serializers

from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.api.base import JSONParser
from webtask_scheduler.scheduler.api.problems import PastDue, invalid
from webtask_scheduler.scheduler.api.reading import NewTimerSerializer, read_timer
from webtask_scheduler.scheduler.api.schedules import RECURRING
from webtask_scheduler.scheduler.api.showing import TimerSerializer, show_timers
from webtask_scheduler.scheduler.models import State, Timer, TimerLabel
from webtask_scheduler.scheduler.rules import crontab, timers_file
from webtask_scheduler.scheduler.rules.recurrence import format_duration
from webtask_scheduler.scheduler.services import quotas
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.scheduler.services.creating import first_due
from webtask_scheduler.wording import translated

# The label of what a line of JSON, or an item of YAML, became.
LABEL = "imported"
# Lines whose former imports are looked up together, and stored in one transaction.
BATCH_LINES = 200
# What one import reads: it is held in memory, and each line takes a fraction of a millisecond.
FILE_BYTES_MOST = 64 * 1024 * 1024
# A file of whose first lines, so many, none can be taken is another kind of file.
REFUSED_MOST = 1000
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line, and what becomes of it: a new timer, one that is there already, nothing, or a refusal that says why.

    Of YAML, it is the line in which a timer begins.
    """

    number: int
    # What is to be made; None for a note and a refusal.
    timer: services.NewTimer | None = None
    method: str = "POST"
    # "key=value", by which the timer is known again.
    label: str = ""
    # When it is called first.
    next_at: datetime | None = None
    is_paused: bool = False
    # The timer that the line shows; where that is one of the owner's, the line makes no other.
    shown_id: uuid.UUID | None = None
    # The timer that was made of it, now or before, and its status then.
    timer_id: uuid.UUID | None = None
    status: str = ""
    is_made: bool = False
    note: str = ""
    error: str = ""

    @property
    def is_new(self) -> bool:
        return self.timer is not None and self.timer_id is None

    @property
    def call(self) -> str:
        """Return the call in words, without secrets."""
        return f"{self.method} {sealing.shown_url(self.timer.web_url)}" if self.timer else ""

    @property
    def schedule(self) -> str:
        """Return the schedule as the API has it; empty for a timer that is called once."""
        found = self.timer.recurrence if self.timer else None
        if found is None:
            return ""
        return f"{found.cron} {found.timezone}" if found.cron else format_duration(found.every_seconds or 0)


def lines_of(text: str) -> list[str]:
    """Return the lines of a file; only line feeds and carriage returns end one."""
    return _LINE_END.split(text.removeprefix("\ufeff"))


def is_json(lines: Iterable[str]) -> bool:
    """Return whether lines are JSON rather than a crontab: the first that says something begins with a brace."""
    return next((line for line in map(str.strip, lines) if line and not line.startswith("#")), "").startswith("{")


def read(lines: Sequence[str], *, zone: str, owner_id: int | None) -> Iterator[Entry]:
    """Yield what becomes of each line that is neither empty nor a comment. Stores nothing.

    `zone` is a crontab's until it sets another; the timers will be of `owner_id`. Raises DatabaseError, and before all
    else timers_file.FileError for YAML that cannot be read.
    """
    if is_json(lines):
        given = _json(lines)
    else:
        given = _yaml(lines) if timers_file.is_file(lines) else _crontab(lines, zone=zone)
    entries = (_entry(one, owner_id=owner_id) for one in given)
    while batch := list(islice(entries, BATCH_LINES)):
        yield from _known(batch, owner_id=owner_id)


def store(entries: Sequence[Entry], *, owner_id: int | None, within_limits: bool = True) -> list[Entry]:
    """Make the timers of those entries that are new, all or none, and return all entries as they are then.

    Two imports of one owner wait for each other, so that neither makes what the other just made. Raises
    ValidationError, such as a QuotaError unless `within_limits` is false.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"imports of {owner_id}"])
        found = _known(entries, owner_id=owner_id)
        timers = [one.timer for one in found if one.is_new and one.timer]
        if timers and within_limits:
            quotas.reserve(timers, owner_id=owner_id)
        stored = iter(services.schedule(timers) if timers else [])
        found = [
            replace(one, timer_id=made.timer_id, next_at=made.due_at, is_made=True)
            if one.is_new and (made := next(stored))
            else one
            for one in found
        ]
        for one in found:
            if one.is_made and one.is_paused and one.timer_id:
                services.pause(one.timer_id)
    return found


# Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A line as read: a timer in the API's form, a note that it makes none, or what is wrong."""

    number: int
    timer: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    # Of a line that shows a timer of this or another service.
    shown_id: uuid.UUID | None = None
    is_paused: bool = False
    note: str = ""
    error: str = ""


def _crontab(lines: Iterable[str], *, zone: str) -> Iterator[_Given]:
    for line in crontab.read(lines, timezone=zone):
        label = "".join(f"{key}={value}" for key, value in line.timer["labels"].items()) if line.timer else ""
        note, error = translated(line.note), translated(line.error)
        yield _Given(number=line.number, timer=line.timer, label=label, note=note, error=error)


# What the API shows of a timer and does not take.
_GIVEN = NewTimerSerializer().get_fields().keys()
_STATE = {name: field for name, field in TimerSerializer().get_fields().items() if name not in _GIVEN}
# These are as a call left them, and nothing follows from them.
_STATE["attempts"] = serializers.ListField()


def _json(lines: Iterable[str]) -> Iterator[_Given]:
    seen: Counter[str] = Counter()
    for number, text in enumerate(lines, 1):
        if text.strip() and not text.lstrip().startswith("#"):
            yield _of_json(number, text, seen)


def _yaml(lines: Iterable[str]) -> Iterator[_Given]:
    seen: Counter[str] = Counter()
    for number, value, error in timers_file.read("\n".join(lines)):
        # As JSON it passes the same checks, and is known again whichever of both it came in.
        yield _Given(number=number, error=translated(error)) if error else _of_json(number, json.dumps(value), seen)


def _of_json(number: int, text: str, seen: Counter[str]) -> _Given:
    try:
        data = JSONParser().parse(io.BytesIO(text.encode("utf-8", "surrogatepass")))
    except exceptions.ParseError as error:
        return _Given(number=number, error=str(error.detail))
    if not isinstance(data, dict):
        said = _("A JSON object is required, with the fields that creating a timer takes.")
        return _Given(number=number, error=said)
    return _shown(number, data, seen)


def _shown(number: int, data: dict[str, Any], seen: Counter[str]) -> _Given:
    """Return a timer as creating takes it, or as the API shows it; the latter is made as it would go on."""
    state = {name: data.pop(name) for name in _STATE.keys() & data.keys()}
    try:
        state = _checked(state)
    except exceptions.ValidationError as error:
        return _Given(number=number, error=said(error))
    if state.get("finished_at") is not None:
        return _Given(number=number, note=_("It has ended, and is not made again."))
    if state.get("callback_for") is not None:
        return _Given(number=number, note=_("A callback of another timer, which makes it again."))
    if state and any(name in data for name in RECURRING):
        data.pop("due_at", None)
        done, most = state.get("occurrence"), data.get("max_occurrences")
        if isinstance(done, int) and isinstance(most, int) and 1 <= done <= most:
            data["max_occurrences"] = most - done + 1
    label, labels = "", data.get("labels", {})
    if isinstance(labels, dict):
        labels = {name: value for name, value in labels.items() if name != LABEL}
        key = json.dumps(data | {"labels": labels}, sort_keys=True)
        seen[key] += 1
        digest = hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest()[:16]
        data["labels"] = labels | {LABEL: digest}
        label = f"{LABEL}={digest}"
    shown_id = state.get("task_id")
    is_paused = state.get("status") == State.PAUSED
    return _Given(number=number, timer=data, label=label, shown_id=shown_id, is_paused=is_paused)


def _checked(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API shows of a timer and does not take, by its types. Raises ValidationError."""
    found, wrong = {}, {}
    for name, value in state.items():
        if value is None:
            continue
        try:
            # A number would be read as an id.
            found[name] = _STATE[name].run_validation([] if name == "task_id" and isinstance(value, int) else value)
        except exceptions.ValidationError as error:
            wrong[name] = error.detail
    if wrong:
        raise exceptions.ValidationError(wrong)
    return found


def _entry(given: _Given, *, owner_id: int | None) -> Entry:
    """Return the entry of a line, checked as the API checks a new timer."""
    if given.note or given.error:
        return Entry(number=given.number, note=given.note, error=given.error)
    try:
        timer = replace(read_timer(given.timer), owner_id=owner_id)
        next_at = first_due(timer.recurrence) if timer.recurrence else timer.due_at
    except (exceptions.ValidationError, PastDue) as error:
        return Entry(number=given.number, error=said(error), shown_id=given.shown_id)
    except ValidationError as error:
        return Entry(number=given.number, error=error.messages[0])
    return Entry(
        number=given.number,
        timer=timer,
        method=str(timer.options.get("method", "POST")),
        label=given.label,
        next_at=next_at or timezone.now() + timedelta(seconds=timer.delay_seconds or 0),
        is_paused=given.is_paused,
        shown_id=given.shown_id,
    )


def _known(entries: Sequence[Entry], *, owner_id: int | None) -> list[Entry]:
    """Return entries, those whose timer the owner has with its id and status, by three statements at most."""
    # One that is there already need not say what its `***` stands for.
    new = [one for one in entries if one.is_new or (one.error and one.shown_id)]
    if not new:
        return list(entries)
    own = Caller(owner_id=owner_id).own
    labelled = TimerLabel.objects.filter(label__in=[one.label for one in new if one.label], **own("timer__"))
    by_label = dict(labelled.values_list("label", "timer_id"))
    shown = [one.shown_id for one in new if one.shown_id]
    there = set(Timer.objects.filter(pk__in=shown, **own()).values_list("pk", flat=True)) if shown else set()
    # By their identity: several timers of YAML may begin in one line.
    before = {
        id(one): found
        for one in new
        if (found := one.shown_id if one.shown_id in there else by_label.get(one.label)) is not None
    }
    bodies = show_timers(list(before.values()), ("status",)) if before else []
    statuses = {uuid.UUID(body["task_id"]): body["status"] for body in bodies}
    return [
        replace(one, error="", timer_id=before[id(one)], status=statuses.get(before[id(one)], ""))
        if id(one) in before
        else one
        for one in entries
    ]


def said(error: exceptions.ValidationError | PastDue) -> str:
    """Return in one line what is wrong with a timer, with the names of the fields."""
    items = invalid(error.detail)["errors"]
    return "; ".join(f"{item['field']}: {item['detail']}" if item["field"] else item["detail"] for item in items)
