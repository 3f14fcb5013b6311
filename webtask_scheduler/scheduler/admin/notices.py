"""The pages of notification channels and of what was sent to them: read-only, without what is secret of an address."""

from typing import Any, cast

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler.admin.base import BoundedAdmin, ViewOnlyAdmin
from webtask_scheduler.scheduler.admin.lists import WINDOW, BoundedChangeList, NewestFilter, newest
from webtask_scheduler.scheduler.admin.showing import NOTHING, lazy_number, link, shown_time
from webtask_scheduler.scheduler.models import Notification, NotificationChannel, Timer, masked_mail
from webtask_scheduler.scheduler.services import notifying

KINDS = {str(kind.value): kind.label for kind in NotificationChannel.Kind}
ID_DIGITS = 18


class KindFilter(NewestFilter):
    title = format_lazy(_("kind, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = column = "kind"
    options = KINDS


class PausedFilter(NewestFilter):
    title = format_lazy(_("status, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = "paused"
    column = "paused_at__isnull"
    options = {"0": _("In use"), "1": _("Paused")}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - theirs
        if self.value not in self.options:
            return queryset
        return newest(queryset).filter(paused_at__isnull=self.value == "0")


class StateFilter(NewestFilter):
    title = format_lazy(_("status, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = column = "state"
    # What a call came to is known by its timer alone, and shown in the list.
    options = {
        "gathering": _("Gathering"),
        "sending": _("Mail on its way"),
        "called": _("Handed over"),
        "sent": _("Mail sent"),
        "failed": _("Not sent"),
    }


class _NoticesAdmin(ViewOnlyAdmin, BoundedAdmin):
    """What both lists share: their search, and addresses."""

    # Text that is looked for, beside the id and the owner.
    texts: tuple[str, ...]
    search_fields = ("pk",)
    search_help_text = format_lazy(
        _("An id; or a person, a name, a host or a part of a text, looked for among the newest {count}."),
        count=lazy_number(WINDOW),
    )

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002 - theirs
        queryset: QuerySet[Any],
        search_term: str,
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        if term.isdecimal() and term.isascii() and len(term) <= ID_DIGITS:
            return queryset.filter(pk=int(term)), False
        # Looked for once, rather than joined to each row.
        people = get_user_model().objects.filter(email__icontains=term).values_list("pk", flat=True)
        parts = Q(owner__in=people)
        for column in self.texts:
            parts |= Q(**{f"{column}__icontains": term})
        return newest(queryset).filter(parts), False

    @admin.display(description=_("address"))
    def address_shown(self, row: NotificationChannel | Notification) -> SafeString:
        return format_html('<code dir="ltr">{}</code>', masked_mail(row.shown_address))

    @admin.display(description=_("owner"))
    def owner_shown(self, row: NotificationChannel | Notification) -> SafeString | str:
        if row.owner is None:
            return NOTHING
        return format_html('<span class="wt-clip" dir="ltr" title="{0}">{0}</span>', row.owner)

    @admin.display(description=_("created"))
    def created(self, row: NotificationChannel | Notification) -> SafeString | str:
        return shown_time(row.created_at)


@admin.register(NotificationChannel)
class NotificationChannelAdmin(_NoticesAdmin):
    """Where owners are told of failures."""

    list_display = ("__str__", "kind", "address_shown", "told_when", "status", "owner_shown", "told")
    list_filter = (KindFilter, PausedFilter)
    list_select_related = ("owner",)
    texts = ("name", "label", "shown_address")
    fields = (
        *("id", "owner", "name_shown", "kind", "address_shown", "language_shown", "told_when", "label_shown"),
        *("status", "created", "told"),
    )

    @admin.display(description=_("name"))
    def name_shown(self, channel: NotificationChannel) -> str:
        return channel.name or NOTHING

    @admin.display(description=_("only timers with"))
    def label_shown(self, channel: NotificationChannel) -> str:
        return channel.label or gettext("all")

    @admin.display(description=_("language"))
    def language_shown(self, channel: NotificationChannel) -> str:
        return channel.language or gettext("that of the service")

    @admin.display(description=_("told when"))
    def told_when(self, channel: NotificationChannel) -> SafeString:
        in_row = channel.failures_in_row or 0
        events = [
            gettext("dead letter") if channel.on_dead_letter else "",
            gettext("%(number)s failures in a row") % {"number": in_row} if in_row else "",
            gettext("recovery") if channel.on_recovery else "",
            gettext("late calls") if channel.on_late else "",
        ]
        return format_html_join(", ", "{}", ((event,) for event in events if event))

    @admin.display(description=_("status"))
    def status(self, channel: NotificationChannel) -> SafeString | str:
        if channel.paused_at is None:
            return gettext("In use")
        return format_html("{} {}", gettext("Paused"), shown_time(channel.paused_at))

    @admin.display(description=_("latest message"))
    def told(self, channel: NotificationChannel) -> SafeString | str:
        return shown_time(channel.told_at)


class SentChangeList(BoundedChangeList):
    """A page of messages, each with what came of it."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = cast("list[Notification]", list(self.result_list))
        for row, found in zip(rows, notifying.listed(rows), strict=True):
            row.came_of = found  # type: ignore[attr-defined]
        self.result_list = rows


@admin.register(Notification)
class NotificationAdmin(_NoticesAdmin):
    """What was sent."""

    list_display = ("subject_shown", "kind", "address_shown", "outcome", "owner_shown", "made")
    list_filter = (KindFilter, StateFilter)
    list_select_related = ("owner", "channel")
    texts = ("subject", "shown_address")
    fields = (
        *("id", "owner", "channel_shown", "kind", "address_shown", "outcome", "error_shown", "attempts"),
        *("created", "made", "ended", "call", "subject", "text_shown"),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[BoundedChangeList]:  # noqa: ARG002 - theirs
        return SentChangeList

    def _came_of(self, row: Notification) -> notifying.Listed:
        known = getattr(row, "came_of", None)
        if known is None:
            known = row.came_of = notifying.listed([row])[0]  # type: ignore[attr-defined]
        return known

    @admin.display(description=_("message"))
    def subject_shown(self, row: Notification) -> SafeString:
        return format_html('<span dir="auto">{}</span>', row)

    @admin.display(description=_("channel"))
    def channel_shown(self, row: Notification) -> SafeString | str:
        return gettext("deleted") if row.channel is None else link(row.channel, str(row.channel))

    @admin.display(description=_("outcome"))
    def outcome(self, row: Notification) -> str:
        return {
            "gathering": gettext("Gathering"),
            "sending": gettext("On its way"),
            "called": gettext("Handed over"),
            "sent": gettext("Sent"),
            "failed": gettext("Not sent"),
        }[self._came_of(row).state]

    @admin.display(description=_("error"))
    def error_shown(self, row: Notification) -> str:
        # A mail server's answer names the address.
        return self._came_of(row).error.replace(row.shown_address, masked_mail(row.shown_address)) or NOTHING

    @admin.display(description=_("made"))
    def made(self, row: Notification) -> SafeString | str:
        return shown_time(row.made_at)

    @admin.display(description=_("ended"))
    def ended(self, row: Notification) -> SafeString | str:
        return shown_time(row.ended_at)

    @admin.display(description=_("its call"))
    def call(self, row: Notification) -> SafeString | str:
        if row.call_timer is None:
            return NOTHING
        timer = Timer.objects.filter(pk=row.call_timer).first()
        return gettext("deleted") if timer is None else link(timer, str(timer.pk))

    @admin.display(description=_("text"))
    def text_shown(self, row: Notification) -> SafeString | str:
        return format_html('<pre dir="auto">{}</pre>', row.text) if row.text else NOTHING
