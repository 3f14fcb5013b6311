"""Our own pages: timers, deliveries and attempts to look at, stops of calls, bulk operations, signing secrets."""

from contextlib import suppress
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.postgres.forms import SimpleArrayField
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.admin.actions import AskingAdmin
from webtask_scheduler.scheduler.admin.base import BoundedAdmin, ReadOnlyAdmin, ViewOnlyAdmin
from webtask_scheduler.scheduler.admin.lists import (
    LISTED,
    WINDOW,
    ChoiceFilter,
    DueFilter,
    Found,
    HostFilter,
    RowFilter,
    StatusFilter,
    with_latest,
)
from webtask_scheduler.scheduler.admin.showing import (
    INLINE_ROWS,
    NOTHING,
    TimerColumns,
    attempts_table,
    deliveries_table,
    lazy_number,
    link,
    next_attempt,
    reason_of,
    shown_bounds,
    shown_json,
    shown_kind,
    shown_lateness,
    shown_name,
    shown_status,
    shown_time,
    shown_url,
)
from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    Attempt,
    BulkOperation,
    CallStop,
    Delivery,
    ErrorKind,
    SigningSecret,
    Timer,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.sealing import shown as shown_options
from webtask_scheduler.scheduler.sealing import shown_url as shown_web_url
from webtask_scheduler.wording import translated

# Each is a transaction of its own.
DELIVERIES_AT_ONCE = 100
NEWEST = format_lazy(_("newest {count}"), count=lazy_number(INLINE_ROWS))


@admin.register(Timer)
class TimerAdmin(TimerColumns, AskingAdmin, ReadOnlyAdmin):
    list_display = ("name_shown", "status", "due", "url", "attempts", "status_code", "lateness", "owner_shown")
    list_filter = (StatusFilter, DueFilter, HostFilter)
    list_select_related = ("owner",)
    actions = ("replay",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    *("id", "name", "whole_url", "host", "status", "why", "owner", "created", "made_by_shown"),
                    *("task", "on_dashboard"),
                ),
            },
        ),
        (_("Schedule"), {"fields": ("due", "schedule_shown", "bounds", "max_lateness_seconds")}),
        (_("Options"), {"fields": ("options_shown",)}),
        (_("Deliveries"), {"fields": ("deliveries",)}),
        (_("Attempts"), {"fields": ("attempts_made",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Timer]:
        rows: QuerySet[Timer] = super().get_queryset(request)
        return rows.prefetch_related(with_latest(""))

    def narrow(self, rows: QuerySet[Timer], row_filter: RowFilter) -> tuple[QuerySet[Timer], Found | None]:
        return self._among(rows, row_filter.found(of_timer="pk", of_delivery="timer"))

    def _timer(self, row: Timer) -> Timer:
        return row

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return bool(request.user.has_perm("scheduler.add_timer"))

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:  # noqa: ARG002
        """Lead to the one form of a new timer, which is over the API's own checks and shows what it would do."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        return redirect("dashboard:new")

    @admin.action(description=_("Replay selected timers that failed or were missed"), permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Timer]) -> HttpResponse | None:
        ids = queryset.prefetch_related(None).select_related(None).values_list("pk", flat=True)
        return self.replay_timers(request, list(ids[:LISTED]))

    @admin.display(description=_("name"))
    def name_shown(self, row: Timer) -> SafeString:
        return shown_name(row)

    @admin.display(description=_("reason"))
    def why(self, timer: Timer) -> str:
        return reason_of(timer, self._delivery(timer), self._attempt(timer))

    @admin.display(description=_("owner"))
    def owner_shown(self, timer: Timer) -> SafeString | str:
        if timer.owner is None:
            return NOTHING
        return format_html('<span class="wt-clip" dir="ltr" title="{0}">{0}</span>', timer.owner)

    @admin.display(description=_("web URL"))
    def whole_url(self, timer: Timer) -> str:
        return shown_web_url(timer.web_url)

    @admin.display(description=_("bounds"))
    def bounds(self, timer: Timer) -> str:
        return shown_bounds(timer) or NOTHING

    @admin.display(description=_("as given"))
    def options_shown(self, timer: Timer) -> SafeString | str:
        given = shown_options(timer.options)
        return shown_json(given) if given else gettext("a plain POST, with the default retries")

    @admin.display(description=_("created"))
    def created(self, timer: Timer) -> SafeString | str:
        return shown_time(timer.created_at)

    @admin.display(description=_("created by"))
    def made_by_shown(self, timer: Timer) -> SafeString | str:
        return shown_json(timer.made_by) if timer.made_by else NOTHING

    @admin.display(description=_("periodic task"))
    def task(self, timer: Timer) -> SafeString | str:
        task = timer.periodic_task
        if task is not None:
            text = gettext("%(task)s (enabled)") if task.enabled else gettext("%(task)s (disabled)")
            return link(task, text % {"task": task.name})
        if timer.outcome_of is None:
            return gettext("deleted")
        reported = Delivery.objects.filter(pk=timer.outcome_of).first()
        if reported is None:
            text = gettext("none: this is the callback of delivery %(id)s, which was pruned")
            return text % {"id": timer.outcome_of}
        return format_html(gettext("none: this is the callback of delivery {}"), link(reported, str(reported.pk)))

    @admin.display(description=NEWEST)
    def deliveries(self, timer: Timer) -> SafeString | str:
        return deliveries_table(timer)

    @admin.display(description=NEWEST)
    def attempts_made(self, timer: Timer) -> SafeString | str:
        return attempts_table(Attempt.objects.filter(delivery__timer=timer))


@admin.register(Delivery)
class DeliveryAdmin(AskingAdmin, ReadOnlyAdmin):
    list_display = ("id_shown", "status", "due", "timer_url", "kind", "attempts", "finished")
    actions = ("replay",)
    list_filter = (StatusFilter, DueFilter, HostFilter)
    list_select_related = ("timer",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "id",
                    "timer_url",
                    "number",
                    "kind",
                    "status",
                    "due",
                    "next_attempt",
                    "finished",
                    "fault",
                )
            },
        ),
        (_("Lease"), {"fields": ("lease_token", "lease_expires_at", "cancel_requested_at"), "classes": ("collapse",)}),
        (_("Attempts"), {"fields": ("attempts", "attempts_made")}),
    )

    def narrow(self, rows: QuerySet[Delivery], row_filter: RowFilter) -> tuple[QuerySet[Delivery], Found | None]:
        found = row_filter.found(of_timer="pk", of_delivery="pk")
        if found is not None and row_filter.states is None and not row_filter.has_due:
            # Those keys are timers: show all their deliveries, including extra and replaced ones.
            found = Found.of(Delivery.objects.filter(timer__in=found.keys).order_by("-pk"), "pk")
        return self._among(rows, found)

    @admin.display(description=_("timer"))
    def timer_url(self, delivery: Delivery) -> SafeString:
        return link(
            delivery.timer, shown_url(delivery.timer.web_url), title=gettext("Timer %(id)s") % {"id": delivery.timer_id}
        )

    @admin.action(description=_("Replay selected deliveries"), permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        rows = list(queryset.select_related(None).values_list("pk", "timer_id")[: DELIVERIES_AT_ONCE + 1])
        if len(rows) > DELIVERIES_AT_ONCE:
            text = gettext("Replay at most %(most)s deliveries at once; the list of timers replays more.")
            self.message_user(request, text % {"most": DELIVERIES_AT_ONCE}, messages.ERROR)
            return None
        asked = self.ask(request, title=gettext("Replay?"), timer_ids=[timer_id for _, timer_id in rows])
        if asked is not None:
            return asked
        done = 0
        for delivery_id, timer_id in rows:
            with suppress(services.NothingToReplayError, services.TooManyRunsError, Timer.DoesNotExist):
                services.replay(timer_id, delivery_id=delivery_id)
                done += 1
        self.said_replayed(request, done, len(rows) - done)
        return None

    @admin.display(description=_("kind"))
    def kind(self, delivery: Delivery) -> str:
        return shown_kind(delivery)

    @admin.display(description=_("due"))
    def due(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.due_at, brief=True)

    @admin.display(description=_("status"))
    def status(self, delivery: Delivery) -> SafeString | str:
        return shown_status(delivery)

    @admin.display(description=_("next attempt"))
    def next_attempt(self, delivery: Delivery) -> SafeString | str:
        return next_attempt(delivery)

    @admin.display(description=_("ended"))
    def finished(self, delivery: Delivery) -> SafeString | str:
        return shown_time(delivery.finished_at, brief=True)

    @admin.display(description=NEWEST)
    def attempts_made(self, delivery: Delivery) -> SafeString | str:
        return attempts_table(Attempt.objects.filter(delivery=delivery))


class OutcomeFilter(ChoiceFilter):
    """Filters the newest attempts by outcome: most succeed, and no index finds the others."""

    title = format_lazy(_("outcome, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = "outcome"
    options = {"ok": _("Succeeded"), "error": _("Any error"), **{str(kind.value): kind.label for kind in ErrorKind}}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Attempt]) -> QuerySet[Attempt]:  # noqa: ARG002
        if self.value not in self.options:
            return queryset
        newest: int = Attempt.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        rows = queryset.filter(pk__gt=newest - WINDOW)
        if self.value == "error":
            return rows.exclude(error="")
        return rows.filter(error="" if self.value == "ok" else self.value)

    def narrow(self, row_filter: RowFilter) -> RowFilter:
        return row_filter


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
        "headers_shown",
        "worker",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        rows: QuerySet[Attempt] = super().get_queryset(request)
        return rows.select_related("delivery__timer")

    def narrow(self, rows: QuerySet[Attempt], row_filter: RowFilter) -> tuple[QuerySet[Attempt], Found | None]:
        found = row_filter.found(of_timer="pk", of_delivery="timer")
        if found is not None:
            # Of the rows, which another filter has narrowed.
            found = Found.of(rows.filter(delivery__timer__in=found.keys).order_by("-pk"), "pk")
        return self._among(rows, found)

    @admin.display(description=_("timer"))
    def timer_url(self, attempt: Attempt) -> SafeString:
        timer = attempt.delivery.timer
        return link(timer, shown_url(timer.web_url), title=gettext("Timer %(id)s") % {"id": timer.pk})

    @admin.display(description=_("delivery"))
    def delivery_link(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery, str(attempt.delivery_id))

    @admin.display(description=_("headers of the answer"))
    def headers_shown(self, attempt: Attempt) -> SafeString | str:
        kept = attempt.answered
        return NOTHING if kept is None else shown_json(kept.headers | ({"…": kept.left_out} if kept.left_out else {}))

    @admin.display(description=_("meant for"))
    def meant(self, attempt: Attempt) -> SafeString | str:
        return shown_time(attempt.meant_for)

    @admin.display(description=_("started"))
    def started(self, attempt: Attempt) -> SafeString | str:
        return shown_time(attempt.started_at, brief=True)

    @admin.display(description=_("lateness (ms)"))
    def lateness(self, attempt: Attempt) -> str:
        return shown_lateness(attempt)


class CallStopForm(forms.ModelForm):  # type: ignore[type-arg]
    """The calls to stop: those to one host, or all, which has to be chosen explicitly."""

    everything = forms.BooleanField(
        required=False, label=_("All hosts"), help_text=_("Stop every call. You are asked to confirm it.")
    )

    class Meta:
        model = CallStop
        fields = ("host", "reason")

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        host, everything = given.get("host", "").strip(), given.get("everything", False)
        if everything and host:
            self.add_error("everything", gettext("Name one host, or tick this for all; not both."))
        elif not everything and not host and "host" not in self.errors:
            self.add_error("host", gettext("Name a host, or tick “All hosts”."))
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
    list_display = ("__str__", "reason", "created")
    fields = ("host", "everything", "reason")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fields(request, obj) if obj is None else ("host", "reason", "created")

    @admin.display(description=_("created at"))
    def created(self, stop: CallStop) -> SafeString | str:
        return shown_time(stop.created_at, brief=True)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Add a stop; ask for confirmation before all calls are stopped."""
        if request.method == "POST" and self.has_add_permission(request) and "confirmed" not in request.POST:
            form = CallStopForm(request.POST)
            if form.is_valid() and form.cleaned_data["everything"]:
                context = self.admin_site.each_context(request) | {
                    "title": gettext("Stop all calls?"),
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
class BulkOperationAdmin(ViewOnlyAdmin, BoundedAdmin):
    """Bulk operations and their progress."""

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

    @admin.display(description=_("action"))
    def asked(self, operation: BulkOperation) -> str:
        action = operation.get_action_display()
        return gettext("%(action)s (dry run)") % {"action": action} if operation.dry_run else action

    @admin.display(description=_("status"))
    def status(self, operation: BulkOperation) -> str:
        if operation.stopped_at is not None:
            return gettext("Stopped")
        if operation.error:
            return gettext("Stopped: %(error)s") % {"error": operation.error}
        return gettext("Under way") if operation.finished_at is None else gettext("Ended")

    @admin.display(description=_("filter"))
    def filter_shown(self, operation: BulkOperation) -> SafeString:
        return shown_json(operation.filter)

    @admin.display(description=_("begun"))
    def created(self, operation: BulkOperation) -> SafeString | str:
        return shown_time(operation.created_at)

    @admin.display(description=_("ended"))
    def finished(self, operation: BulkOperation) -> SafeString | str:
        return shown_time(operation.finished_at)


class SecretForm(forms.ModelForm):  # type: ignore[type-arg]
    """A signing secret to add."""

    secret = forms.CharField(
        required=False,
        max_length=100,
        widget=forms.TextInput(attrs={"size": 60, "autocomplete": "off"}),
        help_text=_("Leave it empty to have one made; it is shown once. Or whsec_ and 24 to 64 bytes in base64."),
    )

    hosts = SimpleArrayField(
        forms.CharField(max_length=HOST_MAX_LENGTH),
        label=_("Hosts"),
        required=False,
        max_length=services.SECRET_HOSTS_MOST,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text=_(
            "Sign only calls to these hosts: as in the URL, with commas between them, *.example.com for all below one."
            " Empty: calls to all hosts."
        ),
    )

    class Meta:
        model = SigningSecret
        fields = ("owner", "secret", "hosts")

    def clean_hosts(self) -> list[str]:
        return services.canonical_hosts(self.cleaned_data["hosts"] or [])

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"]
        if secret:
            try:
                signing.check_secret(secret)
            except ValueError as error:
                raise ValidationError(translated(error)) from error
        return secret

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        owner = data.get("owner")
        if not services.room_for_secret(owner_id=owner and owner.pk, hosts=data.get("hosts", ())):
            text = gettext("There are %(most)s signing secrets already. Delete one that is out of use.")
            self.add_error("owner", text % {"most": services.SECRETS_MOST})
        return data


@admin.register(SigningSecret)
class SigningSecretAdmin(BoundedAdmin):
    """The owners whose calls are signed. A secret is shown once, when it is made."""

    form = SecretForm
    list_display = ("__str__", "owner", "hint", "hosts_shown", "created")
    list_select_related = ("owner",)
    autocomplete_fields = ("owner",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # A form never shows a stored secret.
        return super().get_form(request, obj, change, **({"form": forms.ModelForm} if obj else {}) | kwargs)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        text = gettext("Whose timers' calls are signed with it. Empty: those of timers without an owner.")
        return super().formfield_for_foreignkey(db_field, request, required=False, help_text=text, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002
        return ("owner", "secret", "hosts") if obj is None else ("owner", "hint", "hosts_shown", "created")

    def save_model(self, request: HttpRequest, obj: SigningSecret, form: Any, change: bool) -> None:  # noqa: ARG002
        made = services.add_secret(obj.secret or None, owner_id=obj.owner_id, hosts=obj.hosts)
        if made is None:
            raise RuntimeError("Somebody else has just added the last signing secret that fits.")
        obj.pk = made.pk
        if not form.cleaned_data["secret"]:
            text = gettext("The new secret is {}. Copy it now: it is not shown again.")
            text = format_html(text, format_html("<code>{}</code>", made.value))
            self.message_user(request, text, messages.WARNING)

    def delete_model(self, request: HttpRequest, obj: SigningSecret) -> None:  # noqa: ARG002
        services.delete_secret(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[SigningSecret]) -> None:
        for secret in queryset:
            self.delete_model(request, secret)

    @admin.display(description=_("hint"))
    def hint(self, secret: SigningSecret) -> str:
        return secret.hint

    @admin.display(description=_("hosts"))
    def hosts_shown(self, secret: SigningSecret) -> str:
        return ", ".join(secret.hosts) or gettext("all")

    @admin.display(description=_("created"))
    def created(self, secret: SigningSecret) -> SafeString | str:
        return shown_time(secret.created_at)
