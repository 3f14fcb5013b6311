"""`/settings`: signing secrets, API keys, the calendar's address, and how pages are shown, with the API's checks."""

from datetime import UTC, datetime, time
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST, require_safe
from rest_framework import exceptions

from webtask_scheduler.access import calendars, keys
from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.access.models import NAME_MAX_LENGTH, ApiKey, Scope
from webtask_scheduler.dashboard.frame import CLOCKS, keep_in_browser, show
from webtask_scheduler.dashboard.who import caller_of, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.base import validated
from webtask_scheduler.scheduler.api.problems import invalid
from webtask_scheduler.scheduler.api.secrets import NewSecretSerializer
from webtask_scheduler.scheduler.models import SigningSecret
from webtask_scheduler.users.site import second_factor_seen

# Keys that are listed, the latest made first; revoked ones stay in the table.
KEYS_SHOWN = 100


class SecretForm(forms.Form):
    """A signing secret to add."""

    hosts = forms.CharField(
        label=gettext_lazy("Hosts"),
        help_text=gettext_lazy("One a line; *.example.com stands for all below example.com. None: calls to all hosts."),
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "api.example.com", "spellcheck": "false"}),
    )
    secret = forms.CharField(
        label=gettext_lazy("Secret"),
        help_text=gettext_lazy(
            "Only to bring one along: whsec_ and 24 to 64 bytes in base64. None: a new one is made."
        ),
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )

    def as_json(self) -> dict[str, Any]:
        """Return the body of the request that adds it; the API's checks decide."""
        self.full_clean()
        hosts = map(str.strip, self.cleaned_data.get("hosts", "").splitlines())
        given: dict[str, Any] = {"hosts": [host for host in hosts if host]}
        return given | ({"secret": self.cleaned_data["secret"]} if self.cleaned_data.get("secret") else {})


class KeyForm(forms.Form):
    """An API key to make; `access.keys` checks it."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        help_text=gettext_lazy("What it is for."),
        required=False,
        widget=forms.TextInput(attrs={"maxlength": NAME_MAX_LENGTH, "autocomplete": "off"}),
    )
    scopes = forms.MultipleChoiceField(
        label=gettext_lazy("What it allows"),
        choices=Scope.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.TIMERS_READ, Scope.TIMERS_WRITE],
    )
    expires_on = forms.DateField(
        label=gettext_lazy("Expires on"),
        help_text=gettext_lazy("It is refused from the beginning of that day in UTC. None: it does not expire."),
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
    )

    def expires_at(self) -> datetime | None:
        day = self.cleaned_data.get("expires_on")
        return datetime.combine(day, time.min, UTC) if day else None

    def refuse(self, errors: dict[str, list[str]]) -> None:
        # Whose key it is is no field here.
        places = {"expires_at": "expires_on", "owner": None}
        for name, texts in errors.items():
            self.add_error(places.get(name, name), texts)


@page
@require_safe
def settings(request: HttpRequest) -> HttpResponse:
    """Show secrets and keys, without what is secret of them."""
    return _shown(request)


def _shown(request: HttpRequest, *, status: int = 200, **values: Any) -> HttpResponse:
    caller = caller_of(request)
    may_make_keys = _may_make_keys(request)
    found = _keys(request).select_related("owner").order_by("-pk")[: KEYS_SHOWN + 1] if may_make_keys else []
    listed = list(found)
    return show(
        request,
        "settings.html",
        title=_("Settings"),
        at="settings",
        status=status,
        secrets=SigningSecret.objects.filter(**caller.own()).order_by("pk"),
        secrets_most=services.SECRETS_MOST,
        keys=[{"key": key, "state": _state(key)} for key in listed[:KEYS_SHOWN]],
        has_more_keys=len(listed) > KEYS_SHOWN,
        may_make_keys=may_make_keys,
        calendar=calendars.of(request.user.pk) if request.user.is_authenticated else None,
        open_calendar=request.build_absolute_uri(reverse("dashboard:calendar")),
        **({"secret_form": SecretForm(), "key_form": KeyForm()} | values),
    )


# Signing secrets


@page
@require_POST
def add_secret(request: HttpRequest) -> HttpResponse:
    """Add a secret, and show it this once."""
    form = SecretForm(request.POST)
    try:
        values = validated(NewSecretSerializer, form.as_json())
    except exceptions.ValidationError as error:
        for one in invalid(error.detail)["errors"]:
            form.add_error("secret" if one["field"] == "secret" else "hosts", one["detail"])
        return _shown(request, secret_form=form, status=400)
    made = services.add_secret(
        values.get("secret"), owner_id=caller_of(request).owner_id, hosts=values.get("hosts", ())
    )
    if made is None:
        said = _("There are %(most)s signing secrets already. Delete one that is out of use.")
        form.add_error(None, said % {"most": services.SECRETS_MOST})
        return _shown(request, secret_form=form, status=409)
    return _shown(request, made_secret=made)


@page
@require_POST
def delete_secret(request: HttpRequest, secret_id: int) -> HttpResponse:
    """Sign with a secret no longer."""
    if not services.delete_secret(secret_id, **caller_of(request).own()):
        raise Http404
    messages.success(request, _("Calls are signed with it no longer."))
    return redirect("dashboard:settings")


# API keys


def _may_make_keys(request: HttpRequest) -> bool:
    """Return whether a person may list and make keys: their own, and only a superuser where the API is open.

    That is the API's rule: where it asks for no key, all but a superuser lack the scope `admin`.
    """
    user: Any = request.user
    if not (user.is_authenticated and second_factor_seen(user)):
        return False
    return bool(user.is_superuser) or not is_open()


def _keys(request: HttpRequest) -> QuerySet[ApiKey]:
    """Return the keys that a person may see and revoke: their own; a superuser without `mine` those of all."""
    user: Any = request.user
    everyone = user.is_superuser and caller_of(request).sees_all
    return ApiKey.objects.all() if everyone else ApiKey.objects.filter(owner=user.pk)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= timezone.now() else "in use"


@page
@require_POST
def make_key(request: HttpRequest) -> HttpResponse:
    """Make a key for the person who asks, and show it this once."""
    if not _may_make_keys(request):
        raise PermissionDenied
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _shown(request, key_form=form, status=400)
    user: Any = request.user
    given = form.cleaned_data
    try:
        made = keys.make(name=given["name"], owner_id=user.pk, scopes=given["scopes"], expires_at=form.expires_at())
    except ValidationError as error:
        form.refuse(error.message_dict)
        return _shown(request, key_form=form, status=400)
    return _shown(request, made_key=made)


@page
@require_POST
def revoke_key(request: HttpRequest, key_id: int) -> HttpResponse:
    """Refuse a key from the next request on."""
    if not _may_make_keys(request):
        raise PermissionDenied
    found = _keys(request).filter(pk=key_id)
    if not found.exists():
        raise Http404
    keys.revoke(found)
    messages.success(request, _("The key is refused from now on."))
    return redirect("dashboard:settings")


# The calendar


def _user_id(request: HttpRequest) -> int:
    """Return the id of whoever has logged in. Raises PermissionDenied: what nobody owns has a plain address."""
    user: Any = request.user
    if not user.is_authenticated:
        raise PermissionDenied
    return int(user.pk)


@page
@require_POST
def make_calendar(request: HttpRequest) -> HttpResponse:
    """Make a secret address, in place of the one that there may be, and show it this once."""
    made = calendars.make(_user_id(request))
    address = f"{reverse('dashboard:calendar')}?{urlencode({'key': made})}"
    return _shown(request, made_calendar=request.build_absolute_uri(address))


@page
@require_POST
def remove_calendar(request: HttpRequest) -> HttpResponse:
    """Refuse the address from the next request on."""
    if not calendars.remove(_user_id(request)):
        raise Http404
    messages.success(request, _("The address leads nowhere from now on."))
    return redirect("dashboard:settings")


# How pages are shown


@page
@require_POST
def display(request: HttpRequest) -> HttpResponse:
    """Keep in this browser which clock pages show, and whether single keys do something."""
    answer = redirect("dashboard:settings")
    clock = request.POST.get("clock", "")
    for name, value in (("clock", clock if clock in CLOCKS else ""), ("keys", "" if "keys" in request.POST else "off")):
        keep_in_browser(request, answer, name, value)
    messages.success(request, _("Kept in this browser."))
    return answer
