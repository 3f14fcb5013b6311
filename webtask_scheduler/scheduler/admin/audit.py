"""The audit log's pages: read-only, and as fast with a million entries as with ten."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.access import actor
from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler.admin.base import BoundedAdmin, ViewOnlyAdmin
from webtask_scheduler.scheduler.admin.lists import WINDOW, NewestFilter, newest
from webtask_scheduler.scheduler.admin.showing import NOTHING, lazy_number, shown_json, shown_time


class ThroughFilter(NewestFilter):
    title = format_lazy(_("through, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = column = "through"
    options = {
        actor.API: _("API"),
        actor.ADMIN: _("Admin"),
        actor.DASHBOARD: _("Dashboard"),
        actor.COMMAND: _("Command"),
        actor.STOCK_ROW: _("Stock row"),
    }


class KindFilter(NewestFilter):
    title = format_lazy(_("kind, newest {count}"), count=lazy_number(WINDOW))
    parameter_name = column = "kind"
    options = {
        "timer": _("Timer"),
        "timers": _("Many timers"),
        "bulk": _("Bulk operation"),
        "secret": _("Signing secret"),
        "channel": _("Notification channel"),
        "key": _("API key"),
        "limit": _("Limit"),
        "host": _("Host"),
        "user": _("User"),
        "group": _("Group"),
    }


@admin.register(AuditEntry)
class AuditEntryAdmin(ViewOnlyAdmin, BoundedAdmin):
    """Who did what."""

    list_display = ("time", "action", "kind", "object_id", "name", "key", "address", "through", "request_id")
    list_display_links = ("time",)
    list_filter = (ThroughFilter, KindFilter)
    search_fields = ("object_id",)
    search_help_text = format_lazy(
        _(
            "The id of a timer or of something else; or an action, a person, an address, a key or a request, which are"
            " looked for among the newest {count} entries."
        ),
        count=lazy_number(WINDOW),
    )
    fields = (
        "time",
        "action",
        "kind",
        "object_id",
        "owner_id",
        "user_id",
        "name",
        "key",
        "address",
        "through",
        "request_id",
        "before_shown",
        "after_shown",
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
        # The ids first: in one query the planner walks the whole table to find a few rows.
        kinds = list(KindFilter.options)
        things = AuditEntry.objects.filter(kind__in=kinds, object_id=term.lower())
        found = list(things.order_by("-pk").values_list("pk", flat=True)[:WINDOW])
        if found:
            return queryset.filter(pk__in=found), False
        parts = Q(request_id=term) | Q(address=term) | Q(key=term) | Q(action=term) | Q(name__icontains=term)
        return newest(queryset).filter(parts), False

    @admin.display(description=_("at"))
    def time(self, entry: AuditEntry) -> SafeString | str:
        return shown_time(entry.at)

    @admin.display(description=_("before"))
    def before_shown(self, entry: AuditEntry) -> SafeString | str:
        return shown_json(entry.before) if entry.before else NOTHING

    @admin.display(description=_("after"))
    def after_shown(self, entry: AuditEntry) -> SafeString | str:
        return shown_json(entry.after) if entry.after else NOTHING
