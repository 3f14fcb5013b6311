"""The admin's pages of API keys: make one, see which are used, revoke them."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import ApiKey, Scope


class KeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """An API key to make."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, f"{scope.value}: {scope.label}") for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.TIMERS_READ, Scope.TIMERS_WRITE],
        label=_("scopes"),
    )

    # Whose key it is where the form does not ask.
    for_owner: int | None = None

    class Meta:
        model = ApiKey
        fields = ("name", "owner", "scopes", "expires_at")

    def clean(self) -> dict[str, Any]:
        owner = self.cleaned_data.get("owner")
        owner_id = owner.pk if owner is not None else self.for_owner
        if owner_id is not None:
            try:
                keys.check_room(owner_id)
            except ValidationError as error:
                raise ValidationError(error.messages) from error
        return self.cleaned_data

    def clean_expires_at(self) -> Any:
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= timezone.now():
            raise ValidationError(_("It has passed: a key expires in the future, or never."))
        return expires_at


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not subscriptable at run time
    """API keys. One is shown once, when it is made, and is revoked rather than deleted.

    Only a superuser sees and makes the keys of others: a key does what its owner may do.
    """

    form = KeyForm
    list_display = ("name", "owner", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "state")
    list_select_related = ("owner",)
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("name", "prefix", "owner__email")
    autocomplete_fields = ("owner",)
    ordering = ("-pk",)
    actions = ("revoke",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        own = Q() if request.user.is_superuser else Q(owner=request.user.pk)
        return super().get_queryset(request).filter(own)

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        if obj is not None:
            return ("name", "owner", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
        return (
            ("name", "owner", "scopes", "expires_at") if request.user.is_superuser else ("name", "scopes", "expires_at")
        )

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **more: Any) -> Any:
        form: Any = super().get_form(request, obj, change=change, **more)
        form.for_owner = None if request.user.is_superuser else request.user.pk
        return form

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:  # noqa: ARG002
        owner_id = obj.owner_id if request.user.is_superuser else request.user.pk
        made = keys.make(name=obj.name, owner_id=int(owner_id or 0), scopes=obj.scopes, expires_at=obj.expires_at)
        obj.pk, obj.owner_id, obj.prefix = made.key.pk, made.key.owner_id, made.key.prefix
        text = gettext("The new key is {}. Copy it now: it is not shown again.")
        text = format_html(text, format_html("<code>{}</code>", made.text))
        self.message_user(request, text, messages.WARNING)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("access.delete_apikey")

    @admin.action(description=_("Revoke selected keys"), permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        count = keys.revoke(queryset)
        text = ngettext("%(count)s key is refused from now on.", "%(count)s keys are refused from now on.", count)
        self.message_user(request, text % {"count": count})

    @admin.display(description=_("state"))
    def state(self, key: ApiKey) -> str:
        if key.revoked_at is not None:
            return gettext("Revoked")
        return (
            gettext("Expired") if key.expires_at is not None and key.expires_at <= timezone.now() else gettext("In use")
        )
