"""The pages of django-celery-beat: timers among the PeriodicTasks, and their schedules."""

import copy
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from celery.schedules import ParseException
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django_celery_beat.admin import ClockedScheduleAdmin as StockClockedScheduleAdmin
from django_celery_beat.admin import CrontabScheduleAdmin as StockCrontabScheduleAdmin
from django_celery_beat.admin import IntervalScheduleAdmin as StockIntervalScheduleAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as StockPeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm as StockPeriodicTaskForm
from django_celery_beat.admin import PeriodicTaskInline as StockPeriodicTaskInline
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.admin.actions import AskingAdmin
from webtask_scheduler.scheduler.admin.base import BoundedAdmin, FilteredAdmin
from webtask_scheduler.scheduler.admin.lists import (
    LISTED,
    NOT_WAITING,
    WAITING,
    DueFilter,
    EnabledFilter,
    Found,
    HostFilter,
    KindFilter,
    RowFilter,
    StatusFilter,
    ids_in,
    with_latest,
)
from webtask_scheduler.scheduler.admin.showing import (
    INLINE_ROWS,
    NOTHING,
    TimerColumns,
    lazy_number,
    link,
    reason_of,
    shown_bounds,
    shown_lateness,
    shown_name,
    shown_schedule,
    shown_state,
    shown_status,
    shown_time,
)
from webtask_scheduler.scheduler.facts import shown_number
from webtask_scheduler.scheduler.mirror import CRONTAB, EVERY_MOST
from webtask_scheduler.scheduler.models import (
    CRON_MAX_LENGTH,
    TASK_NAME,
    BulkOperation,
    Delivery,
    Timer,
)


def timer_of(task: PeriodicTask | None) -> Timer | None:
    """Return the timer that a PeriodicTask shows; None for every other task."""
    timer: Timer | None = getattr(task, "timer", None)
    return timer


class TaskForm(StockPeriodicTaskForm):  # type: ignore[misc]
    """The stock form; an operator's own row cannot pass for a timer."""

    def clean(self) -> dict[str, Any]:
        # The stock form requires this field.
        self.cleaned_data.setdefault("task", "")
        data: dict[str, Any] = super().clean()
        if str(data.get("task")).strip() == TASK_NAME:
            field = "regtask" if data.get("regtask") else "task"
            text = gettext("This task belongs to timers. Create a timer through the API, or choose another task here.")
            self.add_error(field, text)
        return data


SCHEDULES = ("interval", "crontab", "clocked")
# Another schedule, without a row of its own to choose.
ANOTHER = ("at", "every", "every_unit", "cron", "cron_zone")


class TimerTaskForm(forms.ModelForm):  # type: ignore[type-arg]
    """The fields of a timer's row that an operator may change.

    Another schedule is given in words, and gets a row when the form is saved; or it is another row that is chosen.
    """

    at = forms.SplitDateTimeField(
        label=_("Call at"), required=False, widget=AdminSplitDateTime, help_text=_("In UTC, in the future.")
    )
    every = forms.IntegerField(
        label=_("Or every"), required=False, min_value=1, max_value=EVERY_MOST, help_text=_("From now on.")
    )
    every_unit = forms.ChoiceField(
        label=_("Unit"),
        required=False,
        choices=[
            (IntervalSchedule.SECONDS, _("seconds")),
            (IntervalSchedule.MINUTES, _("minutes")),
            (IntervalSchedule.HOURS, _("hours")),
            (IntervalSchedule.DAYS, _("days")),
        ],
        initial=IntervalSchedule.MINUTES,
    )
    cron = forms.CharField(
        label=_("Or by cron"),
        required=False,
        max_length=CRON_MAX_LENGTH,
        widget=forms.TextInput(attrs={"placeholder": "0 9 * * MON-FRI", "spellcheck": "false", "dir": "ltr"}),
        help_text=_("Minute, hour, day of month, month, weekday."),
    )
    cron_zone = forms.CharField(
        label=_("Time zone"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"placeholder": "UTC", "spellcheck": "false", "dir": "ltr"}),
    )

    class Meta:
        model = PeriodicTask
        fields = ("enabled", *SCHEDULES, "description")
        widgets = {"description": forms.Textarea(attrs={"rows": 3, "cols": 80})}
        help_texts = {
            "enabled": _("Disabled, the timer is paused: it calls nothing until it is enabled again."),
            "interval": _("Every so often, from now on."),
            "crontab": _("By the calendar."),
            "clocked": _("At this moment."),
        }

    # The schedule that is given in words; its row is not stored yet.
    another: services.Schedule | None = None

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        # The stock model requires this of a clocked row, and no form of a timer offers it.
        self.instance.one_off = data.get("clocked") is not None
        self.instance.solar = None
        if not self.errors:
            self.another = self._another(data)
        return data

    def _another(self, data: dict[str, Any]) -> services.Schedule | None:
        """Return the schedule that is given in words, if there is one and nothing is wrong with it."""
        given = [name for name in ("at", "every", "cron") if data.get(name)]
        if len(given) > 1:
            self.add_error(given[1], gettext("Give one of these: a time, an interval or a cron expression."))
            return None
        if given == ["at"]:
            at = data["at"]
            if at <= timezone.now():
                self.add_error("at", gettext("This time has passed."))
            return ClockedSchedule(clocked_time=at)
        if given == ["every"]:
            return IntervalSchedule(every=data["every"], period=data["every_unit"] or IntervalSchedule.MINUTES)
        return self._crontab(data["cron"], data["cron_zone"] or "UTC") if given == ["cron"] else None

    def _crontab(self, cron: str, zone: str) -> CrontabSchedule | None:
        parts = cron.split()
        if len(parts) != len(CRONTAB):
            self.add_error("cron", gettext("Five fields are needed: minute, hour, day of month, month, weekday."))
            return None
        crontab = CrontabSchedule(**dict(zip(CRONTAB, parts, strict=True)), timezone=zone)
        try:
            crontab.full_clean()
        except ValidationError as error:
            for name, texts in error.message_dict.items():
                self.add_error("cron_zone" if name == "timezone" else "cron", texts)
            return None
        return crontab

    def _post_clean(self) -> None:
        # The page is one transaction, so the result of this check still holds when the row is saved.
        timers = services.lock_for_edit([self.instance.pk])
        super()._post_clean()  # type: ignore[misc]
        schedule = self.another or self.instance.interval or self.instance.crontab
        if not self.errors:
            wanted = copy.copy(self.instance)
            if self.another is not None:
                # Whichever row it will be, it is another one.
                wanted.clocked_id = wanted.crontab_id = wanted.interval_id = 0
            try:
                services.check_edit(wanted)
                if self.another is not None or (
                    schedule is not None and not {"interval", "crontab"}.isdisjoint(self.changed_data)
                ):
                    services.check_schedule(timers, schedule)
            except ValidationError as error:
                self.add_error(None, error)

    def store_another(self) -> bool:
        """Store the schedule that is given in words and have the row use it; return whether there is one."""
        if self.another is None:
            return False
        self.another.save(force_insert=True)
        for name, model in (("interval", IntervalSchedule), ("crontab", CrontabSchedule), ("clocked", ClockedSchedule)):
            setattr(self.instance, name, self.another if isinstance(self.another, model) else None)
        self.instance.one_off = self.instance.clocked is not None
        return True


class PeriodicTaskAdmin(TimerColumns, AskingAdmin, FilteredAdmin, StockPeriodicTaskAdmin):  # type: ignore[misc]
    """The stock page, with timers shown as such."""

    form = TaskForm
    date_hierarchy = None
    list_display = ("name_shown", "status", "due", "url", "attempts", "status_code", "lateness")
    list_filter = (StatusFilter, DueFilter, HostFilter, EnabledFilter, KindFilter)
    # Its column has an index.
    sortable_by = ("name_shown",)  # type: ignore[assignment]
    raw_id_fields = ("interval", "crontab", "solar", "clocked")
    search_help_text = format_lazy(
        "{timers} {others}",
        timers=FilteredAdmin.search_help_text,
        others=_("Of other tasks, a part of the name or task."),
    )
    actions = ("enable_tasks", "disable_tasks", "toggle_tasks", "run_tasks", "replay_tasks")
    # The stock template lists every crontab there is.
    change_form_template = None
    timer_editable = ("enabled", "description", *ANOTHER, *SCHEDULES)
    timer_fieldsets = (
        (
            None,
            {
                "fields": (
                    *("name", "timer_name", "url_link", "on_dashboard", "status_line", "why", "enabled", "description"),
                ),
            },
        ),
        (
            _("Schedule"),
            {
                "fields": ("schedule_line", "due", "at", ("every", "every_unit"), ("cron", "cron_zone")),
                "description": _("To call it at another time, fill in one of the three."),
            },
        ),
        (
            _("What Celery finds"),
            {
                "fields": (
                    *SCHEDULES,
                    *("last_run_at", "total_run_count", "date_changed", "task", "args", "kwargs", "one_off"),
                ),
                "classes": ("collapse",),
            },
        ),
    )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        more = {"new_timer_url": reverse("dashboard:new")} | (extra_context or {})
        answer: HttpResponse = super().changelist_view(request, more)
        return answer

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        rows: QuerySet[PeriodicTask] = super().get_queryset(request)
        schedules = ("interval", "crontab", "solar", "clocked")
        return rows.select_related(*schedules, "timer").prefetch_related(with_latest("timer__"))

    def narrow(
        self, rows: QuerySet[PeriodicTask], row_filter: RowFilter
    ) -> tuple[QuerySet[PeriodicTask], Found | None]:
        others = PeriodicTask.objects.exclude(task=TASK_NAME)
        # A filter by something that only timers have leaves the other tasks out.
        only_timers = (
            row_filter.kind == "timers" or bool(row_filter.host) or row_filter.states is not None or row_filter.has_due
        )
        if row_filter.enabled is not None:
            others = others.filter(enabled=row_filter.enabled)
            # No index finds enabled rows; the states of deliveries do, and have one.
            row_filter = row_filter.among(WAITING if row_filter.enabled else NOT_WAITING)
        if row_filter.kind == "timers":
            rows = rows.filter(task=TASK_NAME)
        if row_filter.kind == "other":
            shown = rows.filter(pk__in=self._named(others, row_filter.term).order_by("-pk").values("pk"))
            return rows.none() if only_timers else shown, None
        found = row_filter.found(of_timer="periodic_task", of_delivery="timer__periodic_task")
        if found is not None and not only_timers and ids_in(row_filter.term) is None:
            found += Found.of(self._named(others, row_filter.term).order_by("-pk"), "pk")
        return self._among(rows, found)

    def in_due_order(self, rows: QuerySet[PeriodicTask], *, latest_first: bool) -> QuerySet[PeriodicTask]:
        latest = Delivery.objects.filter(timer=OuterRef("timer")).latest_promised()
        rows = rows.annotate(due_at=Subquery(latest.values("due_at")[:1]))
        return rows.order_by("-due_at" if latest_first else "due_at", "-pk")

    def _named(self, tasks: QuerySet[PeriodicTask], term: str) -> QuerySet[PeriodicTask]:
        return tasks.filter(Q(name__icontains=term) | Q(task__icontains=term)) if term else tasks

    def _timer(self, row: PeriodicTask) -> Timer | None:
        return timer_of(row)

    @admin.display(description=_("name"), ordering="name")
    def name_shown(self, task: PeriodicTask) -> SafeString:
        timer = timer_of(task)
        return format_html('<span class="wt-name">{}</span>', task.name) if timer is None else shown_name(timer)

    @admin.display(description=_("status"))
    def status(self, row: PeriodicTask) -> SafeString | str:
        if timer_of(row) is not None:
            return super().status(row)
        # Of a timer this would say the same again, and of one that has ended the wrong thing.
        return (
            shown_state("succeeded", "✓", gettext("Enabled"))
            if row.enabled
            else shown_state("paused", "‖", gettext("Disabled"))
        )

    @admin.display(description=_("due"))
    def due(self, row: PeriodicTask) -> SafeString | str:
        shown = super().due(row)
        if timer_of(row) is None and row.last_run_at is not None:
            last = f"{timezone.localtime(row.last_run_at):%Y-%m-%d %H:%M:%S %Z}"
            text = gettext("last run %(time)s") % {"time": last}
            shown = format_html('{}<span class="wt-more">{}</span>', shown, text)
        return shown

    @admin.display(description=_("reason"))
    def why(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        return NOTHING if timer is None else reason_of(timer, self._delivery(task), self._attempt(task))

    # The form

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        if timer_of(obj) is not None:
            kwargs["form"] = TimerTaskForm if self.has_change_permission(request, obj) else forms.ModelForm
        return super().get_form(request, obj, change=change, **kwargs)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # Not the stock view, which reads every crontab there is.
        answer: HttpResponse = super(StockPeriodicTaskAdmin, self).changeform_view(
            request, object_id, form_url, extra_context
        )
        return answer

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if timer_of(obj) is None:
            return super().get_fieldsets(request, obj)
        if self.has_change_permission(request, obj):
            return self.timer_fieldsets
        first, schedule, rest = self.timer_fieldsets
        return (first, (schedule[0], {"fields": ("schedule_line", "due")}), rest)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if timer_of(obj) is None:
            return super().get_readonly_fields(request, obj)
        shown = flatten_fieldsets(self.get_fieldsets(request, obj))
        return [field for field in shown if field not in self.timer_editable]

    @admin.display(description=_("timer"))
    def url_link(self, task: PeriodicTask) -> SafeString | str:
        timer = timer_of(task)
        return NOTHING if timer is None else link(timer, sealing.shown_url(timer.web_url))

    @admin.display(description=_("timer's name"))
    def timer_name(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        return (timer.name if timer else "") or NOTHING

    @admin.display(description=_("schedule"))
    def schedule_line(self, task: PeriodicTask) -> str:
        timer = timer_of(task)
        if timer is None:
            return NOTHING
        bounds = shown_bounds(timer) if timer.recurring else ""
        line = shown_schedule(timer)
        if bounds:
            line = gettext("%(schedule)s, %(bounds)s") % {"schedule": line, "bounds": bounds}
        if timer.recurring and task.clocked is not None:
            text = gettext("%(schedule)s. Celery has no words for it: the clocked moment is that of the next call.")
            line = text % {"schedule": line}
        return line

    @admin.display(description=_("status"))
    def status_line(self, task: PeriodicTask) -> SafeString:
        delivery, attempt = self._delivery(task), self._attempt(task)
        line = format_html("{}", shown_status(delivery))
        if delivery is not None and attempt is not None:
            answer = attempt.message
            if attempt.status_code:
                answer = gettext("answered %(status)s") % {"status": attempt.status_code}
            text = gettext("{status} after attempt {number}: {answer}, {late} ms late")
            values = {"number": attempt.number, "answer": answer, "late": shown_lateness(attempt)}
            line = format_html(text, status=line, **values)
        return line

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if timer_of(obj) is None:
            super().save_model(request, obj, form, change)
            return
        fields = set(form.changed_data) - set(ANOTHER)
        if form.store_another():
            fields |= set(SCHEDULES)
        if fields:
            # Only changed fields are saved: a run while the page was open may have written to the same row. The stock
            # model clears the last run of a disabled row.
            fields |= {"date_changed", *(["last_run_at"] if "enabled" in fields else [])}
            if not fields.isdisjoint(SCHEDULES):
                fields |= {"one_off", "solar"}
            obj.save(update_fields=fields)

    # The actions. They get the rows of the list, or the selected ones.

    @admin.action(description=_("Enable selected tasks"), permissions=["change"])
    def enable_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> HttpResponse | None:
        timers, others = self._split(request, queryset)
        if asked := self._ask(request, gettext("Enable?"), timers, others, bulk=BulkOperation.Action.RESUME.value):
            return asked
        if others.exists():
            super().enable_tasks(request, others)
        if timers:
            self._switch(request, [task_id for task_id, _, _ in timers], enabled=True)
        return None

    @admin.action(description=_("Disable selected tasks"), permissions=["change"])
    def disable_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> HttpResponse | None:
        timers, others = self._split(request, queryset)
        if asked := self._ask(request, gettext("Disable?"), timers, others, bulk=BulkOperation.Action.PAUSE.value):
            return asked
        if others.exists():
            super().disable_tasks(request, others)
        if timers:
            self._switch(request, [task_id for task_id, _, _ in timers], enabled=False)
        return None

    @admin.action(description=_("Toggle activity of selected tasks"), permissions=["change"])
    def toggle_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> HttpResponse | None:
        timers, others = self._split(request, queryset)
        if asked := self._ask(request, gettext("Toggle activity?"), timers, others):
            return asked
        if others.exists():
            super().toggle_tasks(request, others)
        for enabled in (True, False):
            ids = [task_id for task_id, _, was_enabled in timers if was_enabled != enabled]
            if ids:
                self._switch(request, ids, enabled=enabled)
        return None

    @admin.action(description=_("Run selected tasks"), permissions=["change"])
    def run_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> HttpResponse | None:
        timers, others = self._split(request, queryset)
        if asked := self._ask(request, gettext("Run now?"), timers, others):
            return asked
        if others.exists():
            super().run_tasks(request, others)
        if timers:
            ran = services.run_many_now([timer_id for _, timer_id, _ in timers])
            if ran.done:
                text = ngettext(
                    "%(count)s timer was called now, besides what is promised.",
                    "%(count)s timers were called now, besides what is promised.",
                    ran.done,
                )
                self.message_user(request, text % {"count": shown_number(ran.done)}, messages.SUCCESS)
            self._warn_ended(request, ran.ended)
            if ran.full:
                text = ngettext(
                    "%(count)s timer was not called: %(most)s runs of it have not ended yet.",
                    "%(count)s timers were not called: %(most)s runs of each have not ended yet.",
                    len(ran.full),
                )
                values = {"count": shown_number(len(ran.full)), "most": services.EXTRA_OPEN_MOST}
                self.message_user(request, text % values, messages.WARNING)
        return None

    @admin.action(description=_("Replay selected timers that failed or were missed"), permissions=["change"])
    def replay_tasks(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> HttpResponse | None:
        timers, others = self._split(request, queryset)
        if others.exists():
            self.message_user(request, gettext("Other tasks are left out: they have no deliveries."), messages.WARNING)
        return self.replay_timers(request, [timer_id for _, timer_id, _ in timers]) if timers else None

    def _ask(
        self,
        request: HttpRequest,
        title: str,
        timers: Sequence[tuple[int, Any, bool]],
        others: QuerySet[PeriodicTask],
        *,
        bulk: str = "",
    ) -> HttpResponse | None:
        """Ask before something is done to timers. Other tasks alone are left to the stock page, which asks nothing."""
        ids = [timer_id for _, timer_id, _ in timers]
        return self.ask(request, title=title, timer_ids=ids, others=others.count(), bulk=bulk) if ids else None

    def _switch(self, request: HttpRequest, ids: Sequence[int], *, enabled: bool) -> None:
        switched = services.switch_many(ids, enabled=enabled)
        if switched.done:
            done = switched.done
            text = ngettext(
                "%(count)s timer was successfully disabled.", "%(count)s timers were successfully disabled.", done
            )
            if enabled:
                text = ngettext(
                    "%(count)s timer was successfully enabled.", "%(count)s timers were successfully enabled.", done
                )
            self.message_user(request, text % {"count": shown_number(done)}, messages.SUCCESS)
        self._warn_ended(request, switched.ended)

    def _warn_ended(self, request: HttpRequest, ended: Sequence[Any]) -> None:
        if ended:
            text = ngettext(
                "%(count)s timer has ended and stays as it is: %(first)s. Make new timers instead.",
                "%(count)s timers have ended and stay as they are. Make new timers instead.",
                len(ended),
            )
            values = {"count": shown_number(len(ended)), "first": ended[0]}
            self.message_user(request, text % values, messages.WARNING)

    def _split(
        self, request: HttpRequest, queryset: QuerySet[PeriodicTask]
    ) -> tuple[list[tuple[int, Any, bool]], QuerySet[PeriodicTask]]:
        """Return the timers' rows, as (id, timer id, enabled) and at most as many as a list shows; and other tasks."""
        bare = queryset.prefetch_related(None).select_related(None)
        rows = list(bare.filter(task=TASK_NAME).values_list("pk", "timer", "enabled")[: LISTED + 1])
        if len(rows) > LISTED and "confirmed" in request.POST:
            text = gettext("More timers were selected than a list shows: this is about the first %(count)s.")
            self.message_user(request, text % {"count": shown_number(LISTED)}, messages.WARNING)
        # By their keys, because an action may change columns that the list's filters use.
        others = [*bare.exclude(task=TASK_NAME).values_list("pk", flat=True)[:LISTED]]
        # A timer's row whose timer is gone counts as another task.
        others += [task_id for task_id, timer_id, _ in rows if timer_id is None]
        timers = [row for row in rows[:LISTED] if row[1] is not None]
        return timers, PeriodicTask.objects.filter(pk__in=others)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
        with transaction.atomic():
            services.lock_for_edit(queryset.order_by().values_list("pk", flat=True))
            super().delete_queryset(request, queryset)


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """The form of a schedule, which refuses a schedule that its timers cannot follow."""

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
        """Return the time with its fraction if the rest is unchanged: saving an unchanged page moves nothing."""
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
    verbose_name_plural = format_lazy(
        _("Tasks using this schedule, the newest {count}"), count=lazy_number(INLINE_ROWS)
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        rows: QuerySet[PeriodicTask] = super().get_queryset(request)
        return rows.select_related("interval", "crontab", "solar", "clocked")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


class ClockedScheduleAdmin(BoundedAdmin, StockClockedScheduleAdmin):  # type: ignore[misc]
    """The stock page for a million clocked schedules."""

    form = ClockedForm
    inlines = [PeriodicTaskInline]
    list_display = ("moment",)

    @admin.display(description=_("clocked time"))
    def moment(self, clocked: ClockedSchedule) -> SafeString | str:
        return shown_time(clocked.clocked_time)


class CrontabScheduleAdmin(BoundedAdmin, StockCrontabScheduleAdmin):  # type: ignore[misc]
    """The stock page for as many crontabs as there are timers."""

    form = ScheduleForm
    inlines = [PeriodicTaskInline]

    @admin.display(description=_("human readable"))
    def human_readable(self, crontab: CrontabSchedule) -> str:
        # Also of what was just refused, which may mean nothing to Celery.
        try:
            return str(crontab.human_readable)
        except ParseException:
            return NOTHING


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
