"""What the admin's pages share: bounded lists, their filters, and read-only pages."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler.admin.lists import (
    WINDOW,
    BoundedChangeList,
    BoundedPaginator,
    FilteredChangeList,
    Found,
    RowFilter,
)
from webtask_scheduler.scheduler.admin.showing import lazy_number, shown_id

# The confirmation page names every row and sends every id back, and Django takes a thousand fields.
DELETED_AT_ONCE = 500


class BoundedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A list that is never counted or loaded as a whole."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    change_list_template = "scheduler/bounded_change_list.html"
    list_per_page = 100
    list_max_show_all = 100
    ordering = ("-pk",)
    # A table of a million rows can be ordered by its key only; any other order reads all of it.
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[BoundedChangeList]:  # noqa: ARG002 - theirs
        return BoundedChangeList

    def get_actions(self, request: HttpRequest) -> Any:
        actions: Any = super().get_actions(request)
        if "delete_selected" in actions:
            stock, name, description = actions["delete_selected"]
            actions["delete_selected"] = (_few(stock), name, description)
        return actions


class FilteredAdmin(BoundedAdmin):
    """A list whose filters and search are a `RowFilter`."""

    search_fields = ("pk",)
    search_help_text = format_lazy(
        _(
            "The beginning of an id, a host, or a part of a URL or of a timer's name; text is looked for among the"
            " newest {count} timers."
        ),
        count=lazy_number(WINDOW),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[FilteredChangeList]:  # noqa: ARG002 - theirs
        return FilteredChangeList

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002 - theirs
        queryset: QuerySet[Any],
        search_term: str,  # noqa: ARG002 - the change list has put it into the row_filter
    ) -> tuple[QuerySet[Any], bool]:
        return queryset, False

    def narrow(self, rows: QuerySet[Any], row_filter: RowFilter) -> tuple[QuerySet[Any], Found | None]:
        """Return the rows that fit the filter, and their keys if they were found by them."""
        raise NotImplementedError

    def _among(self, rows: QuerySet[Any], found: Found | None) -> tuple[QuerySet[Any], Found | None]:
        return (rows, None) if found is None else (rows.filter(pk__in=found.keys), found)

    def in_due_order(self, rows: QuerySet[Any], *, latest_first: bool) -> QuerySet[Any]:  # noqa: ARG002
        return rows


class ViewOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Read-only pages for staff who may view."""

    actions: Any = None

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    @admin.display(description=_("id"))
    def id_shown(self, row: Any) -> SafeString:
        return shown_id(row.pk)


class ReadOnlyAdmin(ViewOnlyAdmin, FilteredAdmin):
    pass


def _few(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to delete more rows than the stock page can carry."""

    def delete_selected(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        if queryset.order_by()[: DELETED_AT_ONCE + 1].count() > DELETED_AT_ONCE:
            modeladmin.message_user(
                request, gettext("Delete at most %(most)s at once.") % {"most": DELETED_AT_ONCE}, messages.ERROR
            )
            return None
        return stock(modeladmin, request, queryset)

    return delete_selected
