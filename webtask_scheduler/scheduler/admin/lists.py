"""Lists a million timers in the admin without counting or reading them all.

A `RowFilter` is answered through the indexes in bounded steps: a bounded number of rows of each state and of one host,
and text only among the newest. A list that does not show everything says so.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar, cast

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db import connection
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler.models import FINAL, LEASED, Attempt, Delivery, State, Timer, host_of
from webtask_scheduler.scheduler.rules.retry import MAX_AGE_SECONDS

# The longest list: few people page further, and "select all" stays a few seconds of work.
LISTED = 10_000
# Rows of one state: the soonest due or the latest ended. Where several states are listed they share it, and each has
# SHOWN_LEAST.
SHOWN = 2_000
SHOWN_LEAST = 500
# Scheduled deliveries that are looked at for their due time, along the time of their next attempt.
SCANNED = 20_000
# Timers that are searched for a text or together with another filter: a tenth of a second.
WINDOW = 50_000
# No retry waits longer than this after its due time; see retry.
RETRIED = timedelta(seconds=MAX_AGE_SECONDS + 3600)

WAITING = (State.SCHEDULED, State.HELD, *LEASED)
NOT_WAITING = (State.PAUSED, *FINAL)

_HEX = re.compile(r"[0-9a-f]{8,32}")

# The end of the ids, and so before all timers.
NEWEST_ID = uuid.UUID(int=2**128 - 1)

# The timers whose host is the text itself come first, however old they are.
_TEXT = """
SELECT id FROM (
  (SELECT id, web_url, name FROM scheduler_timer WHERE host = %(host)s AND id < %(before)s ORDER BY id DESC
    LIMIT %(window)s)
  UNION
  (SELECT id, web_url, name FROM scheduler_timer WHERE id < %(before)s ORDER BY id DESC LIMIT %(window)s)
) newest WHERE strpos(lower(web_url), %(term)s) > 0 OR strpos(lower(name), %(term)s) > 0 LIMIT %(limit)s
"""
_TEXT_OF_HOST = """
SELECT id FROM (
  SELECT id, web_url, name FROM scheduler_timer WHERE host = %(host)s AND id < %(before)s ORDER BY id DESC
   LIMIT %(window)s
) newest WHERE strpos(lower(web_url), %(term)s) > 0 OR strpos(lower(name), %(term)s) > 0 LIMIT %(limit)s
"""
# How far a search came, and one timer further. These read the index alone.
_LAST = """
SELECT id, count(*) OVER ()
  FROM (SELECT id FROM scheduler_timer WHERE id < %(before)s ORDER BY id DESC LIMIT %(window)s + 1) newest
 ORDER BY id LIMIT 2
"""
_LAST_OF_HOST = """
SELECT id, count(*) OVER () FROM (
  SELECT id FROM scheduler_timer WHERE host = %(host)s AND id < %(before)s ORDER BY id DESC LIMIT %(window)s + 1
) newest ORDER BY id LIMIT 2
"""
# The rows of one state are read along delivery_due_idx, and no further than SCANNED: a retry may wait for days, so that
# deliveries of any due time before may be anywhere.
_SCHEDULED = """
SELECT scanned.id, scanned.timer_id, scanned.due_at, timer.periodic_task_id
  FROM (SELECT id, timer_id, due_at, next_attempt_at FROM scheduler_delivery
         WHERE state = 'scheduled' AND NOT extra AND next_attempt_at >= %(from)s AND next_attempt_at < %(until)s
         ORDER BY next_attempt_at LIMIT %(scanned)s) scanned
  JOIN scheduler_timer timer ON timer.id = scanned.timer_id
 WHERE scanned.due_at >= %(from)s AND scanned.due_at < %(to)s ORDER BY scanned.next_attempt_at LIMIT %(limit)s
"""
_EVER = (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Searched:
    """How far a search for a text came: the id that was looked at last, and whether there are older timers."""

    last: uuid.UUID
    older: bool

    @property
    def since(self) -> datetime:
        """Return when that timer was made, as its id says."""
        return datetime.fromtimestamp((self.last.int >> 80) / 1000, UTC)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that fit, as keys with their due times if these are known, and whether there may be more."""

    rows: list[tuple[Any, datetime | None]] = field(default_factory=list)
    more: bool = False

    @classmethod
    def of(cls, rows: QuerySet[Any], column: str, *, limit: int = 0) -> "Found":
        """Fetch a column of a query, up to `limit` rows, or SHOWN."""
        limit = limit or SHOWN
        found = list(rows.values_list(column, flat=True)[:limit])
        return cls([(key, None) for key in found if key is not None], more=len(found) >= limit)

    @classmethod
    def of_deliveries(cls, deliveries: QuerySet[Delivery], column: str, *, limit: int = 0) -> "Found":
        """As `of`, with the due times."""
        limit = limit or SHOWN
        found = list(deliveries.values_list(column, "due_at")[:limit])
        return cls([(key, due_at) for key, due_at in found if key is not None], more=len(found) >= limit)

    @property
    def keys(self) -> list[Any]:
        return [key for key, _ in self.rows]

    def in_order(self, *, by_due: bool, latest_first: bool) -> list[Any]:
        """Return the keys with the soonest or the latest due first, or with the newest row first."""
        rows = sorted(self.rows, key=lambda row: row[0], reverse=True)
        if by_due:
            rows.sort(key=lambda row: row[1] or _EVER[0], reverse=latest_first)
        return [key for key, _ in rows]

    def __add__(self, other: "Found") -> "Found":
        return Found(self.rows + other.rows, more=self.more or other.more)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """The filter and search of a list. Every part narrows it, unless it is empty or None."""

    term: str = ""
    host: str = ""
    states: tuple[State, ...] | None = None
    due_from: datetime | None = None
    due_to: datetime | None = None
    # A text is looked for among timers whose ids are lower.
    before: uuid.UUID = NEWEST_ID
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
            if timers is None:
                return None
            return Found.of(Timer.objects.filter(pk__in=timers).order_by("-pk"), of_timer)  # type: ignore[misc]
        states = self.states if self.states is not None else tuple(State)
        if timers is not None:
            deliveries = _latest(self._due(Delivery.objects.promised().filter(timer__in=timers, state__in=states)))
            return Found.of_deliveries(deliveries.order_by("-pk"), of_delivery)
        # Each state is read along its own index, no further than needed.
        found, limit = Found(), max(SHOWN // max(1, len(states)), min(SHOWN, SHOWN_LEAST))
        for state in states:
            if state == State.SCHEDULED and self.has_due:
                found += self._scheduled(of_delivery, limit)
            else:
                found += Found.of_deliveries(self._in_state(state), of_delivery, limit=limit)
        return found

    @property
    def searched(self) -> Searched | None:
        """Return how far a search for a text came; None for one by id, which looks everywhere, and for none."""
        if not self.term or ids_in(self.term) is not None:
            return None
        values: dict[str, Any] = {"host": self.host, "before": self.before, "window": WINDOW}
        with connection.cursor() as cursor:
            cursor.execute(_LAST_OF_HOST if self.host else _LAST, values)
            rows = cursor.fetchall()
        if not rows:
            return Searched(self.before, older=False)
        older = rows[0][1] > WINDOW
        return Searched(rows[-1 if older else 0][0], older=older)

    def _due(self, deliveries: QuerySet[Delivery]) -> QuerySet[Delivery]:
        if self.due_from is not None:
            deliveries = deliveries.filter(due_at__gte=self.due_from)
        if self.due_to is not None:
            deliveries = deliveries.filter(due_at__lt=self.due_to)
        return deliveries

    def _scheduled(self, of_delivery: str, limit: int) -> Found:
        """Return scheduled deliveries by their due time."""
        first, last = self.due_from or _EVER[0], self.due_to or _EVER[1]
        values = {"from": first, "to": last, "until": min(last, _EVER[1] - RETRIED) + RETRIED}
        with connection.cursor() as cursor:
            cursor.execute(_SCHEDULED, values | {"scanned": SCANNED, "limit": limit})
            rows = cursor.fetchall()
        column = {"pk": 0, "timer": 1, "timer__periodic_task": 3}[of_delivery]
        found = [(row[column], row[2]) for row in rows if row[column] is not None]
        return Found(found, more=len(rows) >= limit)

    def _in_state(self, state: State) -> QuerySet[Delivery]:
        deliveries = self._due(Delivery.objects.promised().filter(state=state))
        if state == State.SCHEDULED:
            return deliveries.order_by("next_attempt_at")
        if state in LEASED:
            return _latest(deliveries).order_by("lease_expires_at")
        if state == State.HELD:
            return _latest(deliveries).order_by("pk")
        return _latest(deliveries).order_by("-due_at")

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
        term = self.term.lower()
        values = {"before": self.before, "window": WINDOW, "term": term, "limit": min(limit, LISTED)}
        statement = _TEXT_OF_HOST if self.host else _TEXT
        names = re.findall(r"%\((\w+)\)s", statement)
        values["host"] = self.host or host_in(term)
        # RawSQL takes no values by name.
        return RawSQL(re.sub(r"%\(\w+\)s", "%s", statement), [values[name] for name in names])  # noqa: S611


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
    attempts = Attempt.objects.defer(*Attempt.DETAILS).order_by("delivery", "-number").distinct("delivery")
    deliveries = Delivery.objects.latest_promised()
    latest = Prefetch("history", attempts, to_attr="latest")
    return Prefetch(f"{path}deliveries", deliveries.prefetch_related(latest), to_attr="promised")


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than the longest list."""

    more = False

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        if (keys := _keys_of(rows)) is not None:
            return len(keys)
        # In the order of the key: without an order, the planner reads the whole table from its beginning.
        found = rows.order_by("pk").values("pk")[: LISTED + 1].count()
        self.more = found > LISTED
        return min(found, LISTED)

    def page(self, number: int | str) -> Page[Any]:
        """Return a page. Of rows that were found by their keys it asks for these alone, not for those of all pages."""
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        keys = _keys_of(rows)
        if keys is None:
            return super().page(number)
        number = self.validate_number(number)
        wanted = keys[(number - 1) * self.per_page : number * self.per_page]
        found = {row.pk: row for row in rows.all().order_by().filter(pk__in=wanted)} if wanted else {}
        return Page([found[key] for key in wanted if key in found], number, self)


_KEYS = "_keys_in_order"


def _keys_of(rows: QuerySet[Any]) -> list[Any] | None:
    """Return the keys in order that a change list has found for these rows; None if it lists what the query gives."""
    keys: list[Any] | None = getattr(rows, _KEYS, None)
    return keys


class BoundedChangeList(ChangeList):
    """A change list that is ordered by what has an index, whatever its address asks for."""

    def get_ordering_field(self, field_name: Any) -> Any:
        return super().get_ordering_field(field_name) if field_name in (self.sortable_by or ()) else None


class FilteredChangeList(BoundedChangeList):
    """A change list whose filters and search make one `RowFilter`."""

    more = False
    searched: Searched | None = None
    narrowed = RowFilter()
    _before = ""

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = super().get_filters_params(params)
        found.pop(BEFORE, None)
        return found

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        # The form of the search sends what is in `params` again: another search begins with the newest timers.
        self._before = self.params.pop(BEFORE, self._before)
        row_filter = RowFilter(term=self.query.strip(), before=_id_in(self._before))
        for spec in self.filter_specs:
            if isinstance(spec, SidebarFilter):
                row_filter = spec.narrow(row_filter)
        self.narrowed = row_filter
        rows, found = self.model_admin.narrow(rows, row_filter)  # type: ignore[attr-defined]
        # Shown beside the list.
        self.more, self.searched = bool(found and found.more), row_filter.searched
        by_due = row_filter.has_due and not self.params.get("o")
        past = row_filter.due_from is not None and row_filter.due_to is not None and row_filter.due_to <= _now()
        if by_due:
            rows = self.model_admin.in_due_order(rows, latest_first=past)  # type: ignore[attr-defined]
        if found is not None and (by_due or rows.query.order_by == ("-pk",)):
            setattr(rows, _KEYS, found.in_order(by_due=by_due, latest_first=past))
        return cast("QuerySet[Any]", rows)

    @property
    def how_far(self) -> str:
        """Return in a sentence what was searched, if it was not everything."""
        if self.searched is None or not (self.searched.older or self._before):
            return ""
        text = gettext("The newest %(count)s timers were searched, back to those made at %(time)s.")
        if self._before:
            text = gettext("%(count)s older timers were searched, back to those made at %(time)s.")
        if not self.searched.older:
            text = gettext("The oldest timers were searched: there are no older ones.")
        since = timezone.localtime(self.searched.since)
        return text % {"count": number_format(WINDOW, force_grouping=True), "time": f"{since:%Y-%m-%d %H:%M:%S %Z}"}

    @property
    def older(self) -> str:
        """Return the address of the same search among older timers."""
        return str(self.get_query_string({BEFORE: self.searched.last}, ["p"])) if self.searched else ""


# Where a search goes on.
BEFORE = "before"


def _id_in(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        return NEWEST_ID


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


class NewestFilter(ChoiceFilter):
    """Filters the newest rows by a column that has no index."""

    column: ClassVar[str]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - theirs
        if self.value not in self.options:
            return queryset
        return newest(queryset).filter(**{self.column: self.value})

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return row_filter


def newest(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return those of rows that are among the newest WINDOW of a table whose keys are numbers."""
    last: int = cast("Any", rows.model).objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    return rows.filter(pk__gt=last - WINDOW)


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
