"""The pages of owners whose limits differ from the settings."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.forms import ModelForm, ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.access import limits
from webtask_scheduler.access.models import Limit
from webtask_scheduler.scheduler.admin.base import BoundedAdmin


class LimitForm(ModelForm):  # type: ignore[type-arg]
    """The limits of an owner, of which one at least is given."""

    class Meta:
        model = Limit
        fields = ("owner", *limits.Allowed._fields)
        help_texts = dict.fromkeys(
            limits.Allowed._fields, _("Empty: as the settings have it. 0: without limit. It holds within 10 seconds.")
        )

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and all(data.get(name) is None for name in limits.Allowed._fields):
            raise ValidationError(gettext("Give one limit at least, or delete the row to have those of the settings."))
        for name in ("requests_per_second", "recurring_per_second"):
            if (data.get(name) or 0.0) < 0:
                self.add_error(name, gettext("Must be 0 or more."))
        return data


@admin.register(Limit)
class LimitAdmin(BoundedAdmin):
    """Owners with limits of their own."""

    form = LimitForm
    list_display = ("owner", *limits.Allowed._fields)
    list_select_related = ("owner",)
    autocomplete_fields = ("owner",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002
        return ("owner",) if obj is not None else ()

    def save_model(self, request: HttpRequest, obj: Limit, form: Any, change: bool) -> None:  # noqa: ARG002
        saved = limits.change(obj.owner_id, **{name: getattr(obj, name) for name in limits.Allowed._fields})
        obj.pk = saved.pk if saved is not None else None

    def delete_model(self, request: HttpRequest, obj: Limit) -> None:  # noqa: ARG002
        limits.change(obj.owner_id)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Limit]) -> None:
        for limit in queryset:
            self.delete_model(request, limit)
