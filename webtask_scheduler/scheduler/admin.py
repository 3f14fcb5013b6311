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
from django.db import transaction
from django.db.models import Q, QuerySet
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django_celery_beat.admin import ClockedScheduleAdmin as StockClockedScheduleAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as StockPeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm as StockPeriodicTaskForm
from django_celery_beat.admin import PeriodicTaskInline as StockPeriodicTaskInline
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.admin_lists import (
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
from webtask_scheduler.scheduler.models import TASK_NAME, Attempt, CallStop, Delivery, ErrorKind, State, Timer
from webtask_scheduler.scheduler.recurrence import format_duration

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
    """Return the schedule of a timer that recurs in words, empty for one that is called once."""
    if timer.cron:
        return f"{timer.cron} ({timer.timezone})"
    return f"every {format_duration(timer.every_seconds)}" if timer.every_seconds is not None else ""


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


def shown_id(text: object) -> SafeString:
    """An id in two lines, not four."""
    return format_html('<span style="display: inline-block; min-width: 13.5em">{}</span>', text)


def shown_lateness(attempt: Attempt | None) -> str:
    return NOTHING if attempt is None else formats.number_format(attempt.lateness_ms, 1)


def shown_url(web_url: str) -> str:
    return web_url if len(web_url) <= URL_SHOWN else web_url[: URL_SHOWN - 1] + "…"


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
                link(delivery, str(delivery.pk)),
                "run now" if delivery.extra else "promised",
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
        f"The beginning of an id, a host, or a part of a URL; text is looked for among the newest {WINDOW:,} timers."
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


class ReadOnlyAdmin(WishAdmin):
    """Pages to look at, for staff who may view."""

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


class TimerColumns:
    """Columns that a list of timers and a list of their PeriodicTasks share; rows come `with_latest`."""

    def _timer(self, row: Any) -> Timer | None:
        raise NotImplementedError

    def _delivery(self, row: Any) -> Delivery | None:
        timer = self._timer(row)
        return next(iter(getattr(timer, "promised", [])), None)

    def _attempt(self, row: Any) -> Attempt | None:
        return next(iter(getattr(self._delivery(row), "latest", [])), None)

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


class TimerTaskForm(forms.ModelForm):  # type: ignore[type-arg]
    """What an operator may change of a timer's row."""

    class Meta:
        model = PeriodicTask
        fields = ("enabled", "clocked", "description")
        widgets = {"description": forms.Textarea(attrs={"rows": 3, "cols": 80})}
        help_texts = {
            "enabled": "Disabled, the timer is paused: it calls nothing until it is enabled again.",
            "clocked": "Choose another moment, or follow the link beside it and move this one.",
        }

    def _post_clean(self) -> None:
        # The page is one transaction: what is checked here still holds when the row is saved.
        services.lock_for_edit([self.instance.pk])
        super()._post_clean()  # type: ignore[misc]
        if not self.errors:
            try:
                services.check_edit(self.instance)
            except services.TimerEndedError as error:
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
        "attempts",
        "status_code",
        "lateness",
        "url",
        "schedule_shown",
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
    timer_editable = ("enabled", "description", "clocked")
    timer_fieldsets = (
        (None, {"fields": ("name", "url_link", "status_line", "enabled", "description")}),
        ("Schedule", {"fields": ("clocked", "due", "last_run_at", "total_run_count", "date_changed")}),
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
        return rows.order_by("-clocked__clocked_time" if latest_first else "clocked__clocked_time", "-pk")

    def _named(self, tasks: QuerySet[PeriodicTask], term: str) -> QuerySet[PeriodicTask]:
        return tasks.filter(Q(name__icontains=term) | Q(task__icontains=term)) if term else tasks

    def _timer(self, row: PeriodicTask) -> Timer | None:
        return timer_of(row)

    @admin.display(description="name", ordering="name")
    def name_shown(self, task: PeriodicTask) -> SafeString:
        return shown_id(task.name)

    @admin.display(description="schedule")
    def schedule_shown(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        if timer is None:
            return str(task.scheduler)
        return shown_schedule(timer) or NOTHING

    # The form

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        if timer_of(obj) is not None:
            kwargs["form"] = TimerTaskForm
        return super().get_form(request, obj, change=change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        timer = timer_of(obj)
        if timer is None:
            return super().get_fieldsets(request, obj)
        if not timer.recurring:
            return self.timer_fieldsets
        # A moment belongs to one that is called once; the schedule of one that recurs is edited through its link.
        head, (_, schedule), *rest = self.timer_fieldsets
        fields = ("schedule_link", *(name for name in schedule["fields"] if name != "clocked"))
        return (head, ("Schedule", {"fields": fields}), *rest)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if timer_of(obj) is None:
            return super().get_readonly_fields(request, obj)
        shown = [field for _, options in self.get_fieldsets(request, obj) for field in options["fields"]]
        return [field for field in shown if field not in self.timer_editable]

    @admin.display(description="timer")
    def url_link(self, task: PeriodicTask) -> SafeString | str:
        timer = timer_of(task)
        return NOTHING if timer is None else link(timer, timer.web_url)

    @admin.display(description="schedule")
    def schedule_link(self, task: PeriodicTask) -> SafeString | str:
        timer = timer_of(task)
        row = task.crontab or task.interval or task.clocked
        if timer is None or row is None:
            return NOTHING
        return link(row, shown_schedule(timer) or str(row))

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
            done = services.run_many_now([timer_id for _, timer_id, _ in timers])
            self.message_user(request, f"{_timers(done)} called now, besides what is promised.", messages.SUCCESS)

    def _switch(self, request: HttpRequest, ids: Sequence[int], *, enabled: bool) -> None:
        switched = services.switch_many(ids, enabled=enabled)
        if switched.done:
            word = "enabled" if enabled else "disabled"
            self.message_user(request, f"{_timers(switched.done)} successfully {word}.", messages.SUCCESS)
        if switched.ended:
            ended, which = len(switched.ended), f": {switched.ended[0]}" if len(switched.ended) == 1 else ""
            has, stay = ("has", "stays as it is") if ended == 1 else ("have", "stay as they are")
            subject = f"{ended:,} timer{'s' if ended != 1 else ''}"
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


class ClockedForm(forms.ModelForm):  # type: ignore[type-arg]
    """The stock page's form, which asks for no fractions of a second."""

    class Meta:
        model = ClockedSchedule
        fields = ("clocked_time",)

    def clean_clocked_time(self) -> datetime:
        """Keep the fraction where the rest was left alone: saving an unchanged page moves nothing."""
        moment: datetime = self.cleaned_data["clocked_time"]
        stored: datetime | None = self.instance.clocked_time
        return stored if stored is not None and stored.replace(microsecond=0) == moment else moment

    def _post_clean(self) -> None:
        if self.instance.pk is not None:
            # In the page's transaction, as for a PeriodicTask.
            services.lock_for_edit(self.instance.periodictask_set.values_list("pk", flat=True))
        super()._post_clean()  # type: ignore[misc]
        if not self.errors and self.instance.pk is not None:
            try:
                services.check_clocked_edit(self.instance)
            except services.TimerEndedError as error:
                self.add_error(None, error)


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


admin.site.unregister([PeriodicTask, ClockedSchedule])
admin.site.register(PeriodicTask, PeriodicTaskAdmin)
admin.site.register(ClockedSchedule, ClockedScheduleAdmin)


# Our own pages


@admin.register(Timer)
class TimerAdmin(TimerColumns, ReadOnlyAdmin):
    list_display = ("id_shown", "status", "due", "url", "attempts", "status_code", "lateness", "owner", "created")
    list_filter = (StatusFilter, DueFilter, HostFilter)
    list_select_related = ("owner",)
    fieldsets = (
        (None, {"fields": ("id", "name", "web_url", "host", "status", "due", "schedule", "task", "owner", "created")}),
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

    @admin.display(description="schedule")
    def schedule(self, timer: Timer) -> str:
        return shown_schedule(timer) or "once"

    @admin.display(description="as given")
    def options_shown(self, timer: Timer) -> SafeString | str:
        if not timer.options:
            return "a plain POST, with the default retries"
        return format_html("<pre>{}</pre>", json.dumps(timer.options, indent=2, ensure_ascii=False)[:20_000])

    @admin.display(description="created")
    def created(self, timer: Timer) -> SafeString | str:
        return shown_time(timer.created_at)

    @admin.display(description="periodic task")
    def task(self, timer: Timer) -> SafeString | str:
        task = timer.periodic_task
        return "deleted" if task is None else link(task, f"{task.name} ({'enabled' if task.enabled else 'disabled'})")

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
        (None, {"fields": ("id", "timer_url", "occurrence", "extra", "status", "due", "next_attempt", "finished")}),
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


@admin.register(CallStop)
class CallStopAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The kill switch: adding a row stops calls at once, deleting it lets them go on."""

    list_display = ("__str__", "reason", "created_at")
    fields = ("host", "reason")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def save_model(self, request: HttpRequest, obj: CallStop, form: Any, change: bool) -> None:  # noqa: ARG002
        obj.pk = services.stop_calls(host=obj.host, reason=obj.reason).pk

    def delete_model(self, request: HttpRequest, obj: CallStop) -> None:  # noqa: ARG002
        services.resume_calls(host=obj.host)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[CallStop]) -> None:  # noqa: ARG002
        for stop in queryset:
            services.resume_calls(host=stop.host)
