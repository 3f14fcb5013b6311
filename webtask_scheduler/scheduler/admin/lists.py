"""Lists a million timers in the admin without counting or reading them all.

A `RowFilter` is answered through the indexes in bounded steps: a bounded number of rows of each state and of one host,
and text only among the newest. A list that does not show everything says so.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler.models import FINAL, LEASED, Attempt, Delivery, State, Timer, host_of
from webtask_scheduler.scheduler.rules.retry import MAX_AGE_SECONDS

# The longest list: few people page further, and "select all" stays a few seconds of work.
LISTED = 10_000
# Rows of each state: the soonest due or the latest ended.
SHOWN = 2_000
# Timers that are searched for a text or together with another filter: a tenth of a second.
WINDOW = 50_000
# No retry waits longer than this after its due time; see retry.
RETRIED = timedelta(seconds=MAX_AGE_SECONDS + 3600)

WAITING = (State.SCHEDULED, State.HELD, *LEASED)
NOT_WAITING = (State.PAUSED, *FINAL)

_HEX = re.compile(r"[0-9a-f]{8,32}")

_TEXT = """
SELECT id FROM (
  (SELECT id, web_url, name FROM scheduler_timer WHERE host = %s ORDER BY id DESC LIMIT %s)
  UNION ALL
  (SELECT id, web_url, name FROM scheduler_timer ORDER BY id DESC LIMIT %s)
) newest WHERE strpos(lower(web_url), %s) > 0 OR strpos(lower(name), %s) > 0 LIMIT %s
"""
_TEXT_OF_HOST = """
SELECT id FROM (SELECT id, web_url, name FROM scheduler_timer WHERE host = %s ORDER BY id DESC LIMIT %s) newest
 WHERE strpos(lower(web_url), %s) > 0 OR strpos(lower(name), %s) > 0 LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Keys of rows that fit, and whether there may be more."""

    keys: list[Any] = field(default_factory=list)
    more: bool = False

    @classmethod
    def of(cls, rows: QuerySet[Any], column: str) -> "Found":
        """Fetch a column of a query that is bounded to SHOWN rows."""
        found = list(rows.values_list(column, flat=True))
        return cls([key for key in found if key is not None], more=len(found) >= SHOWN)

    def __add__(self, other: "Found") -> "Found":
        return Found(self.keys + other.keys, more=self.more or other.more)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """The filter and search of a list. Every part narrows it, unless it is empty or None."""

    term: str = ""
    host: str = ""
    states: tuple[State, ...] | None = None
    due_from: datetime | None = None
    due_to: datetime | None = None
    # For PeriodicTasks only.
    enabled: bool | None = None
    kind: str = ""

    @property
    def has_due(self) -> bool:
        return self.due_from is not None or self.due_to is not None

    def among(self, states: Iterable[State]) -> "RowFilter":
        """Return this filter restricted to these states."""
        return replace(self, states=tuple(s for s in states if self.states is None or s in self.states))

    def found(self, *, of_timer: str, of_delivery: str) -> "Found | None":
        """Return the keys of the rows that fit, None if all rows do.

        A key is the column `of_timer` as seen from Timer, or `of_delivery` as seen from Delivery. They are fetched
        first, because in one query the planner walks the long table from its end to find a few rows.
        """
        by_delivery = self.states is not None or self.has_due
        timers = self._timers(WINDOW if by_delivery else SHOWN)
        if not by_delivery:
            return None if timers is None else Found.of(Timer.objects.filter(pk__in=timers), of_timer)  # type: ignore[misc]
        states = self.states if self.states is not None else tuple(State)
        if timers is not None:
            deliveries = _latest(self._due(Delivery.objects.promised().filter(timer__in=timers, state__in=states)))
            return Found.of(deliveries.order_by("-pk")[:SHOWN], of_delivery)
        # Each state is read along its own index, no further than needed.
        found = Found()
        for state in states:
            found += Found.of(self._in_state(state), of_delivery)
        return found

    def _due(self, deliveries: QuerySet[Delivery]) -> QuerySet[Delivery]:
        if self.due_from is not None:
            deliveries = deliveries.filter(due_at__gte=self.due_from)
        if self.due_to is not None:
            deliveries = deliveries.filter(due_at__lt=self.due_to)
        return deliveries

    def _in_state(self, state: State) -> QuerySet[Delivery]:
        deliveries = self._due(Delivery.objects.promised().filter(state=state))
        if state == State.SCHEDULED:
            if self.due_from is not None:
                deliveries = deliveries.filter(next_attempt_at__gte=self.due_from)
            if self.due_to is not None:
                deliveries = deliveries.filter(next_attempt_at__lt=self.due_to + RETRIED)
            return deliveries.order_by("next_attempt_at")[:SHOWN]
        if state in LEASED:
            return _latest(deliveries).order_by("lease_expires_at")[:SHOWN]
        if state == State.HELD:
            return _latest(deliveries).order_by("pk")[:SHOWN]
        return _latest(deliveries).order_by("-due_at")[:SHOWN]

    def _timers(self, limit: int) -> QuerySet[Timer] | RawSQL | None:
        """Return a query for timers by host and search term, None if there is neither."""
        timers = Timer.objects.order_by("-pk")
        if not self.term:
            return timers.filter(host=self.host)[:limit] if self.host else None
        if self.host:
            timers = timers.filter(host=self.host)
        named = ids_in(self.term)
        if named is not None:
            first, last = named
            if first != last:
                return timers.filter(pk__range=named)[:limit]
            # Receivers and the logs show the delivery's id.
            of_delivery = Delivery.objects.filter(pk=first).values_list("timer_id", flat=True)
            return timers.filter(pk__in=[first, *of_delivery])
        term, limit = self.term.lower(), min(limit, LISTED)
        if self.host:
            return RawSQL(_TEXT_OF_HOST, [self.host, WINDOW, term, term, limit])  # noqa: S611 - all values are parameters
        return RawSQL(_TEXT, [host_in(term), WINDOW, WINDOW, term, term, limit])  # noqa: S611


def _latest(deliveries: QuerySet[Delivery]) -> QuerySet[Delivery]:
    """Leave out deliveries that a later one of the same timer replaces."""
    later = Delivery.objects.promised().filter(timer=OuterRef("timer"), number__gt=OuterRef("number"))
    return deliveries.filter(~Exists(later))


def ids_in(term: str) -> tuple[uuid.UUID, uuid.UUID] | None:
    """Return the first and last id that begin with the search term, None if no id can begin with it."""
    digits = term.strip().lower().removeprefix("timer ").removeprefix("delivery ").strip().replace("-", "")
    if not _HEX.fullmatch(digits):
        return None
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


def host_in(text: str) -> str:
    """Return the canonical host of a URL or of its beginning, with or without a scheme."""
    return host_of(text)


def with_latest(path: str) -> "Prefetch[Any]":
    """Fetch the latest promised delivery of timers and its latest attempt: two queries for a whole page."""
    attempts = Attempt.objects.defer("excerpt", "stages").order_by("delivery", "-number").distinct("delivery")
    deliveries = Delivery.objects.latest_promised()
    latest = Prefetch("history", attempts, to_attr="latest")
    return Prefetch(f"{path}deliveries", deliveries.prefetch_related(latest), to_attr="promised")


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than the longest list."""

    more = False

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        found = rows.order_by().values("pk")[: LISTED + 1].count()
        self.more = found > LISTED
        return min(found, LISTED)


class FilteredChangeList(ChangeList):
    """A change list whose filters and search make one `RowFilter`."""

    more = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        row_filter = RowFilter(term=self.query.strip())
        for spec in self.filter_specs:
            if isinstance(spec, SidebarFilter):
                row_filter = spec.narrow(row_filter)
        # Shown at the foot of the list.
        rows, self.more = self.model_admin.narrow(rows, row_filter)  # type: ignore[attr-defined]
        if row_filter.has_due and not self.params.get("o"):
            past = row_filter.due_from is not None and row_filter.due_to is not None and row_filter.due_to <= _now()
            rows = self.model_admin.in_due_order(rows, latest_first=past)  # type: ignore[attr-defined]
        return cast("QuerySet[Any]", rows)


def _now() -> datetime:
    return timezone.now()


class SidebarFilter(admin.ListFilter):
    """A filter that adds to the list's `RowFilter` instead of to its query."""

    parameter_name: str

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        values = params.pop(self.parameter_name, [""])
        self.value = values[-1].strip()

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter_name]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - theirs
        return queryset

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        raise NotImplementedError


class ChoiceFilter(SidebarFilter):
    """A list of links; a value that is not among them is ignored."""

    options: Mapping[str, str | Promise]

    def choices(self, changelist: Any) -> Iterator[Any]:
        for value, display in {"": _("All"), **self.options}.items():
            change = {"remove": [self.parameter_name]} if not value else {"new_params": {self.parameter_name: value}}
            selected = value == self.value or (not value and self.value not in self.options)
            yield {"selected": selected, "query_string": changelist.get_query_string(**change), "display": display}


class StatusFilter(ChoiceFilter):
    title = _("status")
    parameter_name = "status"
    options = {str(state.value): state.label for state in State}

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return row_filter.among([State(self.value)]) if self.value in self.options else row_filter


class DueFilter(ChoiceFilter):
    title = _("due time")
    parameter_name = "due"
    options = {
        "overdue": _("Overdue"),
        "hour": _("In the next hour"),
        "day": _("In the next day"),
        "later": _("Later"),
        "past-hour": _("In the past hour"),
        "past-day": _("In the past day"),
    }

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        now, hour, day = _now(), timedelta(hours=1), timedelta(days=1)
        match self.value:
            case "overdue":
                row_filter = replace(row_filter.among(WAITING), due_to=now)
            case "hour":
                row_filter = replace(row_filter, due_from=now, due_to=now + hour)
            case "day":
                row_filter = replace(row_filter, due_from=now, due_to=now + day)
            case "later":
                row_filter = replace(row_filter, due_from=now + day)
            case "past-hour":
                row_filter = replace(row_filter, due_from=now - hour, due_to=now)
            case "past-day":
                row_filter = replace(row_filter, due_from=now - day, due_to=now)
        return row_filter


class HostFilter(SidebarFilter):
    """A field to type a host into: a list of all hosts could be as long as the list of timers."""

    title = _("host")
    parameter_name = "host"
    template = "scheduler/text_filter.html"

    def choices(self, changelist: Any) -> Iterator[Any]:
        yield {
            "name": self.parameter_name,
            "value": self.value,
            "placeholder": "example.com",
            "others": [(name, value) for name, value in changelist.params.items() if name != self.parameter_name],
            "clear": changelist.get_query_string(remove=[self.parameter_name]),
        }

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return replace(row_filter, host=host_in(self.value)) if self.value else row_filter


class EnabledFilter(ChoiceFilter):
    title = _("enabled")
    parameter_name = "enabled"
    options = {"1": _("Yes"), "0": _("No")}

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return replace(row_filter, enabled=self.value == "1") if self.value in self.options else row_filter


class KindFilter(ChoiceFilter):
    title = _("kind")
    parameter_name = "kind"
    options = {"timers": _("Timers"), "other": _("Other tasks")}

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return replace(row_filter, kind=self.value) if self.value in self.options else row_filter
