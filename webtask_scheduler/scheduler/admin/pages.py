"""The admin: timers among the tasks of django-celery-beat, and pages to look at timers, deliveries and attempts.

It reads through the models and changes through `services`, or through a row's own `save()`, which `receivers` carries
to the timer. Lists are made for a million rows: see `admin_lists`.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.templatetags.admin_urls import admin_urlname
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django_celery_beat.admin import ClockedScheduleAdmin as StockClockedScheduleAdmin
from django_celery_beat.admin import CrontabScheduleAdmin as StockCrontabScheduleAdmin
from django_celery_beat.admin import IntervalScheduleAdmin as StockIntervalScheduleAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as StockPeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm as StockPeriodicTaskForm
from django_celery_beat.admin import PeriodicTaskInline as StockPeriodicTaskInline
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.admin.lists import (
    LISTED,
    NOT_WAITING,
    SHOWN,
    WAITING,
    WINDOW,
    BoundedPaginator,
    ChoiceFilter,
    DueFilter,
    EnabledFilter,
    Found,
    HostFilter,
    KindFilter,
    StatusFilter,
    Wish,
    WishChangeList,
    ids_in,
    with_latest,
)
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    Attempt,
    BulkOperation,
    CallStop,
    Delivery,
    ErrorKind,
    SigningSecret,
    State,
    Timer,
)
from webtask_scheduler.scheduler.outgoing import signing

admin.site.site_header = "Webtask scheduler"
admin.site.site_title = "Webtask scheduler"
admin.site.index_title = "Timers, tasks and users"

NOTHING = "-"
URL_SHOWN = 48
# The confirmation page names every row and sends every id back, and Django takes a thousand fields.
DELETED_AT_ONCE = 500
# Rows of a table inside a page.
INLINE_ROWS = 50

COLOURS = {
    State.SCHEDULED: "#1f78c1",
    State.CLAIMED: "#7b5cc4",
    State.RUNNING: "#7b5cc4",
    State.PAUSED: "#c98a00",
    State.HELD: "#c98a00",
    State.SUCCEEDED: "#2e8540",
    State.FAILED: "#c9302c",
    State.CANCELLED: "#808080",
    State.MISSED: "#c9302c",
}


def timer_of(task: PeriodicTask | None) -> Timer | None:
    """Return the timer that a PeriodicTask shows; None for every other task."""
    timer: Timer | None = getattr(task, "timer", None)
    return timer


def shown_schedule(timer: Timer) -> str:
    """Return the schedule of a timer in words."""
    if timer.cron:
        return f"{timer.cron} ({timer.timezone})"
    return "once" if timer.every_seconds is None else f"every {shown_period(timer.every_seconds)}"


def shown_period(seconds: float) -> str:
    """Return a period as people say it: 1 h 30 min."""
    minutes, second = divmod(round(seconds, 6), 60)
    hours, minute = divmod(int(minutes), 60)
    days, hour = divmod(hours, 24)
    parts = [(days, "d"), (hour, "h"), (minute, "min"), (round(second, 6), "s")]
    return " ".join(f"{number:.15g} {unit}" for number, unit in parts if number)


def shown_bounds(timer: Timer) -> str:
    """Return between which moments, and how often at the most, a timer recurs; empty where nothing bounds it."""
    parts = [
        f"from {timezone.localtime(timer.starts_at):%Y-%m-%d %H:%M:%S}" if timer.starts_at else "",
        f"until {timezone.localtime(timer.ends_at):%Y-%m-%d %H:%M:%S}" if timer.ends_at else "",
        f"{timer.max_occurrences:,} times at the most" if timer.max_occurrences else "",
    ]
    return ", ".join(filter(None, parts))


def shown_status(delivery: Delivery | None) -> SafeString | str:
    if delivery is None:
        return NOTHING
    state = State(delivery.state)
    label = "Cancelling" if state == State.RUNNING and delivery.cancel_requested_at else state.label
    dot = format_html('<span style="color: {}" aria-hidden="true">&#9679;</span>', COLOURS[state])
    return format_html('<span style="white-space: nowrap">{} {}</span>', dot, label)


def shown_time(moment: datetime | None) -> SafeString | str:
    """A moment to the millisecond, in the server's time zone."""
    if moment is None:
        return NOTHING
    local = timezone.localtime(moment)
    text = f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d}"
    return format_html('<span style="white-space: nowrap" title="{}">{}</span>', moment.isoformat(), text)


def shown_id(text: object, *, width: str = "auto") -> SafeString:
    """An id in two lines, not four."""
    style = f"display: inline-block; min-width: 13.5em; width: {width}; white-space: normal"
    return format_html('<span style="{}">{}</span>', style, text)


def shown_name(shown: SafeString, timer: Timer | None) -> SafeString:
    """What a row is called, with the timer's name in a line of its own."""
    return format_html("{}<br>{}", shown, timer.name) if timer and timer.name else shown


def shown_lateness(attempt: Attempt | None) -> str:
    return NOTHING if attempt is None else formats.number_format(attempt.lateness_ms, 1)


def shown_url(web_url: str) -> SafeString:
    """The beginning of a URL, broken where the column ends."""
    text = web_url if len(web_url) <= URL_SHOWN else web_url[: URL_SHOWN - 1] + "…"
    return format_html('<span style="display: inline-block; min-width: 14em; overflow-wrap: anywhere">{}</span>', text)


def shown_json(data: Any) -> SafeString:
    text = json.dumps(data, indent=2, ensure_ascii=False)[:20_000]
    return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)


Linked: TypeAlias = Timer | Delivery | PeriodicTask | ClockedSchedule | CrontabSchedule | IntervalSchedule


def link(to: Linked, text: str, *, title: str = "") -> SafeString:
    address = reverse(admin_urlname(to._meta, "change"), args=[to.pk])  # type: ignore[arg-type]  # noqa: SLF001 - Django means it so
    return format_html('<a href="{}" title="{}">{}</a>', address, title, text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> SafeString | str:
    if not rows:
        return empty
    cells = [
        [format_html_join("", '<td style="white-space: nowrap">{}</td>', [(cell,) for cell in row[:-1]]), row[-1]]
        for row in rows
    ]
    return format_html(
        '<div style="overflow-x: auto"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        format_html_join("", "<th>{}</th>", [(name,) for name in head]),
        format_html_join("", "<tr>{}<td>{}</td></tr>", cells),
    )


def deliveries_table(timer: Timer) -> SafeString | str:
    deliveries = Delivery.objects.filter(timer=timer).order_by("-occurrence")[:INLINE_ROWS]
    return table(
        ["Delivery", "Kind", "Due", "Status", "Attempts", "Next attempt", "Ended"],
        [
            [
                link(delivery, shown_id(delivery.pk, width="12em")),
                "replayed" if delivery.replayed_at else "run now" if delivery.extra else "promised",
                shown_time(delivery.due_at),
                shown_status(delivery),
                delivery.attempts,
                NOTHING if delivery.is_final else shown_time(delivery.next_attempt_at),
                shown_time(delivery.finished_at),
            ]
            for delivery in deliveries
        ],
        empty="None.",
    )


def attempts_table(attempts: "QuerySet[Attempt]") -> SafeString | str:
    """The newest of these attempts, with what the receiver answered."""
    return table(
        ["Started", "No.", "Lateness (ms)", "Took (ms)", "Status code", "Error", "Message and answer"],
        [
            [
                shown_time(attempt.started_at),
                link(attempt.delivery, str(attempt.number), title=f"Delivery {attempt.delivery_id}"),
                shown_lateness(attempt),
                NOTHING if attempt.duration_ms is None else attempt.duration_ms,
                attempt.status_code or NOTHING,
                attempt.get_error_display() if attempt.error else NOTHING,
                " ".join(part for part in (attempt.message, attempt.excerpt[:200]) if part) or NOTHING,
            ]
            for attempt in attempts.select_related("delivery").order_by("-pk")[:INLINE_ROWS]
        ],
        empty="None yet.",
    )


class BoundedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A list that is never counted or loaded as a whole."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    change_list_template = "scheduler/bounded_change_list.html"
    list_per_page = 100
    list_max_show_all = 500
    ordering = ("-pk",)
    # A table of a million rows is in order of its key, and in no other without being read as a whole.
    sortable_by = ()

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show above the list what an operator should know of now."""
        answer: HttpResponse = super().changelist_view(request, {"banner": facts.warnings()} | (extra_context or {}))
        return answer

    def get_actions(self, request: HttpRequest) -> Any:
        actions: Any = super().get_actions(request)
        if "delete_selected" in actions:
            stock, name, description = actions["delete_selected"]
            actions["delete_selected"] = (_few(stock), name, description)
        return actions


class WishAdmin(BoundedAdmin):
    """A list whose filters and search are a `Wish`."""

    search_fields = ("pk",)
    search_help_text = (
        "The beginning of an id, a host, or a part of a URL or of a timer's name; text is looked for among the newest"
        f" {WINDOW:,} timers."
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[WishChangeList]:  # noqa: ARG002 - theirs
        return WishChangeList

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002 - theirs
        queryset: QuerySet[Any],
        search_term: str,  # noqa: ARG002 - the change list has put it into the wish
    ) -> tuple[QuerySet[Any], bool]:
        return queryset, False

    def narrow(self, rows: QuerySet[Any], wish: Wish) -> tuple[QuerySet[Any], bool]:
        """Return the rows that were asked for, and whether there may be more."""
        raise NotImplementedError

    def _among(self, rows: QuerySet[Any], found: Found | None) -> tuple[QuerySet[Any], bool]:
        return (rows, False) if found is None else (rows.filter(pk__in=found.keys), found.more)

    def in_due_order(self, rows: QuerySet[Any], *, latest_first: bool) -> QuerySet[Any]:  # noqa: ARG002
        return rows


class ToLookAt(admin.ModelAdmin):  # type: ignore[type-arg]
    """Pages for staff who may view; nobody writes there."""

    actions = None

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    @admin.display(description="id")
    def id_shown(self, row: Any) -> SafeString:
        return shown_id(row.pk)


class ReadOnlyAdmin(ToLookAt, WishAdmin):
    pass


class TimerColumns:
    """Columns that a list of timers and a list of their PeriodicTasks share; rows come `with_latest`."""

    def _timer(self, row: Any) -> Timer | None:
        raise NotImplementedError

    def _delivery(self, row: Any) -> Delivery | None:
        timer = self._timer(row)
        return next(iter(getattr(timer, "promised", [])), None)

    def _attempt(self, row: Any) -> Attempt | None:
        return next(iter(getattr(self._delivery(row), "latest", [])), None)

    @admin.display(description="schedule")
    def schedule_shown(self, row: Any) -> SafeString:
        timer = self._timer(row)
        text = str(row.scheduler) if timer is None else shown_schedule(timer)
        return format_html('<span style="display: inline-block; min-width: 9em">{}</span>', text)

    @admin.display(description="URL")
    def url(self, row: Any) -> SafeString | str:
        timer = self._timer(row)
        return NOTHING if timer is None else link(timer, shown_url(timer.web_url), title=timer.web_url)

    @admin.display(description="due")
    def due(self, row: Any) -> SafeString | str:
        delivery = self._delivery(row)
        return NOTHING if delivery is None else shown_time(delivery.due_at)

    @admin.display(description="status")
    def status(self, row: Any) -> SafeString | str:
        return shown_status(self._delivery(row))

    @admin.display(description="attempts")
    def attempts(self, row: Any) -> int | str:
        delivery = self._delivery(row)
        return NOTHING if delivery is None else delivery.attempts

    @admin.display(description="status code")
    def status_code(self, row: Any) -> int | str:
        attempt = self._attempt(row)
        if attempt is None:
            return NOTHING
        return attempt.status_code or attempt.get_error_display()

    @admin.display(description="lateness (ms)")
    def lateness(self, row: Any) -> str:
        return shown_lateness(self._attempt(row))


# django-celery-beat's pages


class TaskForm(StockPeriodicTaskForm):  # type: ignore[misc]
    """The stock form; an operator's own row cannot pass for a timer."""

    def clean(self) -> dict[str, Any]:
        # The stock form takes the field for granted.
        self.cleaned_data.setdefault("task", "")
        data: dict[str, Any] = super().clean()
        if str(data.get("task")).strip() == TASK_NAME:
            field = "regtask" if data.get("regtask") else "task"
            self.add_error(
                field, "This task belongs to timers. Create a timer through the API, or choose another task here."
            )
        return data


SCHEDULES = ("interval", "crontab", "clocked")


class TimerTaskForm(forms.ModelForm):  # type: ignore[type-arg]
    """What an operator may change of a timer's row."""

    class Meta:
        model = PeriodicTask
        fields = ("enabled", *SCHEDULES, "description")
        widgets = {"description": forms.Textarea(attrs={"rows": 3, "cols": 80})}
        help_texts = {
            "enabled": "Disabled, the timer is paused: it calls nothing until it is enabled again.",
            "interval": "Every so often, from now on.",
            "crontab": "By the calendar.",
            "clocked": "At this moment.",
        }

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        # What the stock model wants of a clocked row, and what no form of a timer offers.
        self.instance.one_off = data.get("clocked") is not None
        self.instance.solar = None
        return data

    def _post_clean(self) -> None:
        # The page is one transaction: what is checked here still holds when the row is saved.
        timers = services.lock_for_edit([self.instance.pk])
        super()._post_clean()  # type: ignore[misc]
        schedule = self.instance.interval or self.instance.crontab
        if not self.errors:
            try:
                services.check_edit(self.instance)
                if schedule is not None and not {"interval", "crontab"}.isdisjoint(self.changed_data):
                    services.check_schedule(timers, schedule)
            except ValidationError as error:
                self.add_error(None, error)


class PeriodicTaskAdmin(TimerColumns, WishAdmin, StockPeriodicTaskAdmin):  # type: ignore[misc]
    """The stock page, with timers shown as such."""

    form = TaskForm
    date_hierarchy = None
    list_display = (
        "name_shown",
        "enabled",
        "status",
        "due",
        "schedule_shown",
        "url",
        "attempts",
        "status_code",
        "lateness",
        "start_time",
        "last_run_at",
        "one_off",
    )
    list_filter = (StatusFilter, DueFilter, HostFilter, EnabledFilter, KindFilter)
    # Its column has an index.
    sortable_by = ("name_shown",)  # type: ignore[assignment]
    raw_id_fields = ("interval", "crontab", "solar", "clocked")
    search_help_text = f"{WishAdmin.search_help_text} Of other tasks, a part of the name or task."
    actions = ("enable_tasks", "disable_tasks", "toggle_tasks", "run_tasks")
    # The stock page's own names every crontab there is.
    change_form_template = None
    timer_editable = ("enabled", "description", *SCHEDULES)
    timer_fieldsets = (
        (None, {"fields": ("name", "timer_name", "url_link", "status_line", "enabled", "description")}),
        (
            "Schedule",
            {
                "fields": ("schedule_line", "due", *SCHEDULES, "last_run_at", "total_run_count", "date_changed"),
                "description": "One of interval, crontab and clocked. Choose another one, or follow the link beside it"
                " to change it.",
            },
        ),
        ("What Celery finds", {"fields": ("task", "args", "kwargs", "one_off"), "classes": ("collapse",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        rows: QuerySet[PeriodicTask] = super().get_queryset(request)
        schedules = ("interval", "crontab", "solar", "clocked")
        return rows.select_related(*schedules, "timer").prefetch_related(with_latest("timer__"))

    def narrow(self, rows: QuerySet[PeriodicTask], wish: Wish) -> tuple[QuerySet[PeriodicTask], bool]:
        others = PeriodicTask.objects.exclude(task=TASK_NAME)
        # What only a timer has leaves the other tasks out.
        only_timers = wish.kind == "timers" or bool(wish.host) or wish.states is not None or wish.has_due
        if wish.enabled is not None:
            rows = rows.filter(enabled=wish.enabled)
            # No index says which rows are enabled; the states of deliveries do, and have one.
            wish = wish.among(WAITING if wish.enabled else NOT_WAITING)
        if wish.kind == "timers":
            rows = rows.filter(task=TASK_NAME)
        if wish.kind == "other":
            return rows.none() if only_timers else self._named(rows.exclude(task=TASK_NAME), wish.term), False
        found = wish.found(of_timer="periodic_task", of_delivery="timer__periodic_task")
        if found is not None and not only_timers and ids_in(wish.term) is None:
            found += Found.of(self._named(others, wish.term)[:SHOWN], "pk")
        return self._among(rows, found)

    def in_due_order(self, rows: QuerySet[PeriodicTask], *, latest_first: bool) -> QuerySet[PeriodicTask]:
        latest = Delivery.objects.promised().filter(timer=OuterRef("timer")).order_by("-occurrence")
        rows = rows.annotate(due_at=Subquery(latest.values("due_at")[:1]))
        return rows.order_by("-due_at" if latest_first else "due_at", "-pk")

    def _named(self, tasks: QuerySet[PeriodicTask], term: str) -> QuerySet[PeriodicTask]:
        return tasks.filter(Q(name__icontains=term) | Q(task__icontains=term)) if term else tasks

    def _timer(self, row: PeriodicTask) -> Timer | None:
        return timer_of(row)

    @admin.display(description="name", ordering="name")
    def name_shown(self, task: PeriodicTask) -> SafeString:
        return shown_name(shown_id(task.name), timer_of(task))

    # The form

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        if timer_of(obj) is not None:
            kwargs["form"] = TimerTaskForm
        return super().get_form(request, obj, change=change, **kwargs)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # Not the stock page's: it reads every crontab there is.
        answer: HttpResponse = super(StockPeriodicTaskAdmin, self).changeform_view(
            request, object_id, form_url, extra_context
        )
        return answer

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fieldsets(request, obj) if timer_of(obj) is None else self.timer_fieldsets

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if timer_of(obj) is None:
            return super().get_readonly_fields(request, obj)
        shown = [field for _, options in self.get_fieldsets(request, obj) for field in options["fields"]]
        return [field for field in shown if field not in self.timer_editable]

    @admin.display(description="timer")
    def url_link(self, task: PeriodicTask) -> SafeString | str:
        timer = timer_of(task)
        return NOTHING if timer is None else link(timer, timer.web_url)

    @admin.display(description="timer's name")
    def timer_name(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        return (timer.name if timer else "") or NOTHING

    @admin.display(description="schedule")
    def schedule_line(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        if timer is None:
            return NOTHING
        bounds = shown_bounds(timer) if timer.recurring else ""
        line = f"{shown_schedule(timer)}, {bounds}" if bounds else shown_schedule(timer)
        if timer.recurring and task.clocked is not None:
            line += ". Celery has no words for it: the clocked moment is that of the next call."
        return line

    @admin.display(description="status")
    def status_line(self, task: PeriodicTask) -> SafeString:
        delivery, attempt = self._delivery(task), self._attempt(task)
        line = format_html("{}", shown_status(delivery))
        if delivery is not None and attempt is not None:
            answer = f"answered {attempt.status_code}" if attempt.status_code else attempt.message
            late = f"{shown_lateness(attempt)} ms late"
            line = format_html("{} after attempt {}: {}, {}", line, attempt.number, answer, late)
        return line

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if timer_of(obj) is None:
            super().save_model(request, obj, form, change)
        elif form.changed_data:
            # Only what was changed: while the page was open the timer may have run, which is written to the same row.
            # A disabled row has no last run, says the stock model.
            fields = {*form.changed_data, "date_changed", *(["last_run_at"] if "enabled" in form.changed_data else [])}
            if not fields.isdisjoint(SCHEDULES):
                fields |= {"one_off", "solar"}
            obj.save(update_fields=fields)

    # The actions. They are given the rows of the list, or those that were ticked.

    @admin.action(description="Enable selected tasks", permissions=["change"])
    def enable_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        timers, others = self._split(request, queryset)
        if others.exists():
            super().enable_tasks(request, others)
        if timers:
            self._switch(request, [task_id for task_id, _, _ in timers], enabled=True)

    @admin.action(description="Disable selected tasks", permissions=["change"])
    def disable_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        timers, others = self._split(request, queryset)
        if others.exists():
            super().disable_tasks(request, others)
        if timers:
            self._switch(request, [task_id for task_id, _, _ in timers], enabled=False)

    @admin.action(description="Toggle activity of selected tasks", permissions=["change"])
    def toggle_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        timers, others = self._split(request, queryset)
        if others.exists():
            super().toggle_tasks(request, others)
        for enabled in (True, False):
            ids = [task_id for task_id, _, was_enabled in timers if was_enabled != enabled]
            if ids:
                self._switch(request, ids, enabled=enabled)

    @admin.action(description="Run selected tasks", permissions=["change"])
    def run_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        timers, others = self._split(request, queryset)
        if others.exists():
            super().run_tasks(request, others)
        if timers:
            ran = services.run_many_now([timer_id for _, timer_id, _ in timers])
            if ran.done:
                text = f"{_timers(ran.done)} called now, besides what is promised."
                self.message_user(request, text, messages.SUCCESS)
            self._warn_ended(request, ran.ended)
            if ran.full:
                whose = "it" if len(ran.full) == 1 else "each"
                text = f"not called: {services.EXTRA_OPEN_MOST} runs of {whose} have not ended yet."
                self.message_user(request, f"{_timers(len(ran.full))} {text}", messages.WARNING)

    def _switch(self, request: HttpRequest, ids: Sequence[int], *, enabled: bool) -> None:
        switched = services.switch_many(ids, enabled=enabled)
        if switched.done:
            word = "enabled" if enabled else "disabled"
            self.message_user(request, f"{_timers(switched.done)} successfully {word}.", messages.SUCCESS)
        self._warn_ended(request, switched.ended)

    def _warn_ended(self, request: HttpRequest, ended: Sequence[Any]) -> None:
        if ended:
            count, which = len(ended), f": {ended[0]}" if len(ended) == 1 else ""
            has, stay = ("has", "stays as it is") if count == 1 else ("have", "stay as they are")
            subject = f"{count:,} timer{'s' if count != 1 else ''}"
            self.message_user(
                request, f"{subject} {has} ended and {stay}{which}. Make new timers instead.", messages.WARNING
            )

    def _split(
        self, request: HttpRequest, queryset: QuerySet[PeriodicTask]
    ) -> tuple[list[tuple[int, Any, bool]], QuerySet[PeriodicTask]]:
        """Return the timers' rows, as (id, timer id, enabled) and no more than a list shows, and the other tasks."""
        bare = queryset.prefetch_related(None).select_related(None)
        rows = list(bare.filter(task=TASK_NAME).values_list("pk", "timer", "enabled")[: LISTED + 1])
        if len(rows) > LISTED:
            text = f"More timers were selected than a list shows: this is about the first {LISTED:,}."
            self.message_user(request, text, messages.WARNING)
        # By their keys: an action may change what the filters of the list look at.
        others = [*bare.exclude(task=TASK_NAME).values_list("pk", flat=True)[:LISTED]]
        # A row of ours whose timer is gone is like any other.
        others += [task_id for task_id, timer_id, _ in rows if timer_id is None]
        timers = [row for row in rows[:LISTED] if row[1] is not None]
        return timers, PeriodicTask.objects.filter(pk__in=others)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        with transaction.atomic():
            services.lock_for_edit(queryset.order_by().values_list("pk", flat=True))
            super().delete_queryset(request, queryset)


def _timers(count: int) -> str:
    return "1 timer was" if count == 1 else f"{count:,} timers were"


def _few(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to delete more rows than the stock page can carry."""

    def delete_selected(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        if queryset.order_by()[: DELETED_AT_ONCE + 1].count() > DELETED_AT_ONCE:
            modeladmin.message_user(request, f"Delete at most {DELETED_AT_ONCE} at once.", messages.ERROR)
            return None
        return stock(modeladmin, request, queryset)

    return delete_selected


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """The form of a schedule; what timers could not go by is refused."""

    def _post_clean(self) -> None:
        timers = []
        if self.instance.pk is not None:
            # In the page's transaction, as for a PeriodicTask.
            tasks = self.instance.periodictask_set.filter(task=TASK_NAME)
            timers = services.lock_for_edit(tasks.values_list("pk", flat=True))
        super()._post_clean()  # type: ignore[misc]
        if timers and not self.errors and self.changed_data:
            try:
                services.check_schedule_edit(self.instance)
                services.check_schedule(timers, self.instance)
            except ValidationError as error:
                self.add_error(None, error)


class ClockedForm(ScheduleForm):
    """The stock page's form, which asks for no fractions of a second."""

    class Meta:
        model = ClockedSchedule
        fields = ("clocked_time",)

    def clean_clocked_time(self) -> datetime:
        """Keep the fraction where the rest was left alone: saving an unchanged page moves nothing."""
        moment: datetime = self.cleaned_data["clocked_time"]
        stored: datetime | None = self.instance.clocked_time
        return stored if stored is not None and stored.replace(microsecond=0) == moment else moment


class FewRows(BaseInlineFormSet):  # type: ignore[type-arg]
    def get_queryset(self) -> QuerySet[Any]:
        rows = super().get_queryset()
        if not rows.query.is_sliced:
            rows = self._queryset = rows[:INLINE_ROWS]
        return rows


class PeriodicTaskInline(StockPeriodicTaskInline):  # type: ignore[misc]
    formset = FewRows
    ordering = ("-pk",)
    verbose_name_plural = f"Tasks using this schedule, the newest {INLINE_ROWS}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        rows: QuerySet[PeriodicTask] = super().get_queryset(request)
        return rows.select_related("interval", "crontab", "solar", "clocked")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


class ClockedScheduleAdmin(BoundedAdmin, StockClockedScheduleAdmin):  # type: ignore[misc]
    """The stock page for a million moments."""

    form = ClockedForm
    inlines = [PeriodicTaskInline]
    list_display = ("moment",)

    @admin.display(description="clocked time")
    def moment(self, clocked: ClockedSchedule) -> SafeString | str:
        return shown_time(clocked.clocked_time)


class CrontabScheduleAdmin(BoundedAdmin, StockCrontabScheduleAdmin):  # type: ignore[misc]
    """The stock page for as many crontabs as there are timers."""

    form = ScheduleForm
    inlines = [PeriodicTaskInline]


class IntervalScheduleAdmin(BoundedAdmin, StockIntervalScheduleAdmin):  # type: ignore[misc]
    """The stock page for as many intervals as there are timers."""

    form = ScheduleForm
    inlines = [PeriodicTaskInline]


for model, page in (
    (PeriodicTask, PeriodicTaskAdmin),
    (ClockedSchedule, ClockedScheduleAdmin),
    (CrontabSchedule, CrontabScheduleAdmin),
    (IntervalSchedule, IntervalScheduleAdmin),
):
    admin.site.unregister(model)
    admin.site.register(model, page)


# Our own pages


@admin.register(Timer)
class TimerAdmin(TimerColumns, ReadOnlyAdmin):
    list_display = (
        "id_shown",
        "status",
        "due",
        "schedule_shown",
        "url",
        "attempts",
        "status_code",
        "lateness",
        "owner",
        "created",
    )
    list_filter = (StatusFilter, DueFilter, HostFilter)
    list_select_related = ("owner",)
    fieldsets = (
        (None, {"fields": ("id", "name", "web_url", "host", "status", "owner", "created", "task")}),
        ("Schedule", {"fields": ("due", "schedule_shown", "bounds", "max_lateness_seconds")}),
        ("Options", {"fields": ("options_shown",)}),
        ("Deliveries", {"fields": ("deliveries",)}),
        ("Attempts", {"fields": ("attempts_made",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Timer]:
        rows: QuerySet[Timer] = super().get_queryset(request)
        return rows.prefetch_related(with_latest(""))

    def narrow(self, rows: QuerySet[Timer], wish: Wish) -> tuple[QuerySet[Timer], bool]:
        return self._among(rows, wish.found(of_timer="pk", of_delivery="timer"))

    def _timer(self, row: Timer) -> Timer:
        return row

    @admin.display(description="id")
    def id_shown(self, row: Timer) -> SafeString:
        return shown_name(super().id_shown(row), row)

    @admin.display(description="bounds")
    def bounds(self, timer: Timer) -> str:
        return shown_bounds(timer) or NOTHING

    @admin.display(description="as given")
    def options_shown(self, timer: Timer) -> SafeString | str:
        if not timer.options:
            return "a plain POST, with the default retries"
        return shown_json(timer.options)

    @admin.display(description="created")
    def created(self, timer: Timer) -> SafeString | str:
        return shown_time(timer.created_at)

    @admin.display(description="periodic task")
    def task(self, timer: Timer) -> SafeString | str:
        task = timer.periodic_task
        if task is not None:
            return link(task, f"{task.name} ({'enabled' if task.enabled else 'disabled'})")
        if timer.outcome_of is None:
            return "deleted"
        told = Delivery.objects.filter(pk=timer.outcome_of).first()
        which = link(told, str(told.pk)) if told else f"{timer.outcome_of}, which was pruned"
        return format_html("none: this is the callback of delivery {}", which)

    @admin.display(description=f"newest {INLINE_ROWS}")
    def deliveries(self, timer: Timer) -> SafeString | str:
        return deliveries_table(timer)

    @admin.display(description=f"newest {INLINE_ROWS}")
    def attempts_made(self, timer: Timer) -> SafeString | str:
        return attempts_table(Attempt.objects.filter(delivery__timer=timer))


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = ("id_shown", "status", "due", "timer_url", "extra", "attempts", "started", "finished")
    list_filter = (StatusFilter, DueFilter, HostFilter)
    list_select_related = ("timer",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "id",
                    "timer_url",
                    "occurrence",
                    "extra",
                    "status",
                    "due",
                    "next_attempt",
                    "finished",
                    "fault",
                )
            },
        ),
        ("Lease", {"fields": ("lease_token", "lease_expires_at", "cancel_requested_at"), "classes": ("collapse",)}),
        ("Attempts", {"fields": ("attempts", "attempts_made")}),
    )

    def narrow(self, rows: QuerySet[Delivery], wish: Wish) -> tuple[QuerySet[Delivery], bool]:
        found = wish.found(of_timer="pk", of_delivery="pk")
        if found is not None and wish.states is None and not wish.has_due:
            # Those are timers: all their deliveries, the extra and the replaced ones too.
            found = Found.of(Delivery.objects.filter(timer__in=found.keys).order_by("-pk")[:SHOWN], "pk")
        return self._among(rows, found)

    @admin.display(description="timer")
    def timer_url(self, delivery: Delivery) -> SafeString:
        return link(delivery.timer, shown_url(delivery.timer.web_url), title=f"Timer {delivery.timer_id}")

    @admin.display(description="due")
    def due(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.due_at)

    @admin.display(description="status")
    def status(self, delivery: Delivery) -> SafeString | str:
        return shown_status(delivery)

    @admin.display(description="next attempt")
    def next_attempt(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.next_attempt_at)

    @admin.display(description="started")
    def started(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.started_at)

    @admin.display(description="ended")
    def finished(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.finished_at)

    @admin.display(description=f"newest {INLINE_ROWS}")
    def attempts_made(self, delivery: Delivery) -> SafeString | str:
        return attempts_table(Attempt.objects.filter(delivery=delivery))


class OutcomeFilter(ChoiceFilter):
    """Among the newest attempts: most succeed, and no index tells the others."""

    title = f"outcome, newest {WINDOW:,}"
    parameter_name = "outcome"
    options = {"ok": "Succeeded", "error": "Any error", **{str(kind.value): str(kind.label) for kind in ErrorKind}}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Attempt]) -> QuerySet[Attempt]:  # noqa: ARG002
        if self.value not in self.options:
            return queryset
        newest: int = Attempt.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        rows = queryset.filter(pk__gt=newest - WINDOW)
        if self.value == "error":
            return rows.exclude(error="")
        return rows.filter(error="" if self.value == "ok" else self.value)

    def narrow(self, wish: Wish) -> Wish:
        return wish


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    list_display = ("started", "timer_url", "number", "lateness", "duration_ms", "status_code", "error", "message")
    list_filter = (OutcomeFilter, HostFilter)
    list_select_related = ("delivery__timer",)
    fields = (
        "timer_url",
        "delivery_link",
        "number",
        "meant",
        "started",
        "lateness",
        "duration_ms",
        "status_code",
        "error",
        "message",
        "excerpt",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        rows: QuerySet[Attempt] = super().get_queryset(request)
        return rows.select_related("delivery__timer")

    def narrow(self, rows: QuerySet[Attempt], wish: Wish) -> tuple[QuerySet[Attempt], bool]:
        found = wish.found(of_timer="pk", of_delivery="timer")
        if found is not None:
            found = Found.of(Attempt.objects.filter(delivery__timer__in=found.keys).order_by("-pk")[:SHOWN], "pk")
        return self._among(rows, found)

    @admin.display(description="timer")
    def timer_url(self, attempt: Attempt) -> SafeString:
        timer = attempt.delivery.timer
        return link(timer, shown_url(timer.web_url), title=f"Timer {timer.pk}")

    @admin.display(description="delivery")
    def delivery_link(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery, str(attempt.delivery_id))

    @admin.display(description="meant for")
    def meant(self, attempt: Attempt) -> SafeString | str:
        return shown_time(attempt.meant_for)

    @admin.display(description="started")
    def started(self, attempt: Attempt) -> SafeString | str:
        return shown_time(attempt.started_at)

    @admin.display(description="lateness (ms)")
    def lateness(self, attempt: Attempt) -> str:
        return shown_lateness(attempt)


class CallStopForm(forms.ModelForm):  # type: ignore[type-arg]
    """Which calls to stop: those to one host, or all, which has to be said."""

    everything = forms.BooleanField(
        required=False, label="All hosts", help_text="Stop every call. You are asked to confirm it."
    )

    class Meta:
        model = CallStop
        fields = ("host", "reason")

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        host, everything = given.get("host", "").strip(), given.get("everything", False)
        if everything and host:
            self.add_error("everything", "Name one host, or tick this for all; not both.")
        elif not everything and not host and "host" not in self.errors:
            self.add_error("host", "Name a host, or tick “All hosts”.")
        elif host:
            try:
                given["host"] = services.host_to_stop(host)
            except services.CallStopRefusedError as error:
                self.add_error("host", error)
        return given


@admin.register(CallStop)
class CallStopAdmin(BoundedAdmin):
    """The kill switch: adding a row stops calls at once, deleting it lets them go on."""

    form = CallStopForm
    list_display = ("__str__", "reason", "created_at")
    fields = ("host", "everything", "reason")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fields(request, obj) if obj is None else ("host", "reason")

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Ask back before all calls are stopped."""
        if request.method == "POST" and self.has_add_permission(request) and "confirmed" not in request.POST:
            form = CallStopForm(request.POST)
            if form.is_valid() and form.cleaned_data["everything"]:
                context = self.admin_site.each_context(request) | {
                    "title": "Stop all calls?",
                    "opts": self.opts,
                    "matches": services.stop_matches(""),
                    "reason": form.cleaned_data["reason"],
                }
                return TemplateResponse(request, "scheduler/confirm_stop.html", context)
        return super().add_view(request, form_url, extra_context)

    def save_model(self, request: HttpRequest, obj: CallStop, form: Any, change: bool) -> None:  # noqa: ARG002
        stop = services.stop_calls(
            host=obj.host, everything=form.cleaned_data["everything"], reason=obj.reason, by=str(request.user)
        )
        obj.pk = stop.pk
        self.message_user(request, services.stop_matches(stop.host), messages.INFO)

    def delete_model(self, request: HttpRequest, obj: CallStop) -> None:
        services.resume_calls(host=obj.host, everything=not obj.host, by=str(request.user))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[CallStop]) -> None:
        for stop in queryset:
            self.delete_model(request, stop)


@admin.register(BulkOperation)
class BulkOperationAdmin(ToLookAt, BoundedAdmin):
    """What is done to many timers at once, and how far it is."""

    list_display = ("id_shown", "asked", "status", "matched", "changed", "owner", "created", "finished")
    list_select_related = ("owner",)
    fields = (
        "id",
        "asked",
        "filter_shown",
        "status",
        "matched",
        "changed",
        "owner",
        "created",
        "finished",
    )

    @admin.display(description="action")
    def asked(self, operation: BulkOperation) -> str:
        return f"{operation.get_action_display()}{' (dry run)' if operation.dry_run else ''}"

    @admin.display(description="status")
    def status(self, operation: BulkOperation) -> str:
        if operation.error:
            return f"Stopped: {operation.error}"
        return "Under way" if operation.finished_at is None else "Ended"

    @admin.display(description="filter")
    def filter_shown(self, operation: BulkOperation) -> SafeString:
        return shown_json(operation.filter)

    @admin.display(description="begun")
    def created(self, operation: BulkOperation) -> SafeString | str:
        return shown_time(operation.created_at)

    @admin.display(description="ended")
    def finished(self, operation: BulkOperation) -> SafeString | str:
        return shown_time(operation.finished_at)


class SecretForm(forms.ModelForm):  # type: ignore[type-arg]
    """A signing secret to add."""

    secret = forms.CharField(
        required=False,
        max_length=100,
        widget=forms.TextInput(attrs={"size": 60, "autocomplete": "off"}),
        help_text="Leave it empty to have one made; it is shown once. Or whsec_ and 24 to 64 bytes in base64.",
    )

    class Meta:
        model = SigningSecret
        fields = ("owner", "secret")

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"]
        if secret:
            try:
                signing.check_secret(secret)
            except ValueError as error:
                raise ValidationError(str(error)) from error
        return secret

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if SigningSecret.objects.filter(owner=data.get("owner")).count() >= services.SECRETS_MOST:
            text = f"There are {services.SECRETS_MOST} signing secrets already. Delete one that is out of use."
            self.add_error("owner", text)
        return data


@admin.register(SigningSecret)
class SigningSecretAdmin(BoundedAdmin):
    """Which owners' calls are signed. A secret is shown once, when it is made."""

    form = SecretForm
    list_display = ("__str__", "owner", "hint", "created")
    list_select_related = ("owner",)
    autocomplete_fields = ("owner",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # A stored secret stands in no form.
        return super().get_form(request, obj, change, **({"form": forms.ModelForm} if obj else {}) | kwargs)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        text = "Whose timers' calls are signed with it. Empty: those of timers without an owner."
        return super().formfield_for_foreignkey(db_field, request, required=False, help_text=text, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002
        return ("owner", "secret") if obj is None else ("owner", "hint", "created")

    def save_model(self, request: HttpRequest, obj: SigningSecret, form: Any, change: bool) -> None:  # noqa: ARG002
        made = services.add_secret(obj.secret or None, owner_id=obj.owner_id)
        if made is None:
            raise RuntimeError("Somebody else has just added the last signing secret that fits.")
        obj.pk = made.pk
        if not form.cleaned_data["secret"]:
            text = format_html("The new secret is <code>{}</code>. Copy it now: it is not shown again.", made.secret)
            self.message_user(request, text, messages.WARNING)

    @admin.display(description="hint")
    def hint(self, secret: SigningSecret) -> str:
        return f"…{secret.secret[-4:]}"

    @admin.display(description="created")
    def created(self, secret: SigningSecret) -> SafeString | str:
        return shown_time(secret.created_at)
