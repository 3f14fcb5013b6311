"""The admin's site: who may enter it, and how one logs in, there and on the other pages."""

import functools
import logging
import math
from collections.abc import Callable, Iterable
from datetime import MAXYEAR, MINYEAR
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import BadRequest, ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.telemetry.events import event
from webtask_scheduler.users import second_factor, throttle
from webtask_scheduler.vault import VaultError


class LogInForm(AdminAuthenticationForm):
    """Asks for the password, and for the code of a second factor if the account has one or must have one."""

    otp_token = forms.CharField(
        label=_("Code of the second factor"),
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "spellcheck": "false"}),
    )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean()
        user = self.get_user()
        if user is not None and settings.ADMIN_SECOND_FACTOR != "off":
            if second_factor.has_one(user):
                self._check_code(user, "".join(cleaned.get("otp_token", "").split()))
            elif settings.ADMIN_SECOND_FACTOR == "required":
                said = _("This account needs a second factor. An operator makes it: manage.py second_factor add EMAIL")
                raise forms.ValidationError(said, code="no_second_factor")
        return cleaned

    def _check_code(self, user: Any, code: str) -> None:
        """Note the device whose code it is, which the session then keeps. Raises ValidationError."""
        if not code:
            said = _("This account has a second factor: give its code as well.")
            raise forms.ValidationError(said, code="code_missing")
        try:
            user.otp_device = second_factor.verify(user, code)
        except VaultError as error:
            event("value_unreadable", level=logging.ERROR, reason=str(error))
            said = _("The second factor of this account cannot be read. Its operator finds the reason in the log.")
            raise forms.ValidationError(said, code="code_unreadable") from error
        # A device that had a wrong code takes none for a second or more, and says no to a right one.
        if user.otp_device is None:
            said = _("This code is not right, or was used already. Wait for the next one.")
            raise forms.ValidationError(said, code="code_wrong")

    def get_invalid_login_error(self) -> forms.ValidationError:
        wait = getattr(self.request, "login_wait", 0)
        if not wait:
            return super().get_invalid_login_error()
        return forms.ValidationError(_too_often(wait), code="too_often")


class MemberLogInForm(LogInForm):
    """As LogInForm, for accounts that are no staff too."""

    error_messages = AuthenticationForm.error_messages

    def confirm_login_allowed(self, user: Any) -> None:
        # Past the admin's own, which asks for staff.
        AuthenticationForm.confirm_login_allowed(self, user)


def second_factor_seen(user: Any) -> bool:
    """Return whether this session has shown all that the account has to show: its second factor, if there is one."""
    if settings.ADMIN_SECOND_FACTOR == "off" or user.is_verified():
        return True
    if settings.ADMIN_SECOND_FACTOR == "required":
        return False
    # Asked for several times in a request.
    if not hasattr(user, "has_second_factor"):
        user.has_second_factor = second_factor.has_one(user)
    return not user.has_second_factor


def log_in_answered(request: HttpRequest, response: HttpResponse, *, path: str) -> HttpResponse:
    """Note in the throttle how a try to log in ended, and say in its answer if the next one has to wait.

    `path` is where its browser will be known.
    """
    name = request.POST.get("username", "")
    wait = getattr(request, "login_wait", 0)
    if wait:
        response.status_code = 429
        response["Retry-After"] = str(math.ceil(wait))
    elif request.method == "POST" and response.status_code == 302:  # noqa: PLR2004 - it sends on who is logged in
        throttle.give_back(request, name)
        throttle.remember_browser(request, response, name, path=path)
    return response


class Site(AdminSite):
    login_form = LogInForm
    # The lists need the width; the index and the crumbs lead everywhere.
    enable_nav_sidebar = False

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether a request comes from staff whose second factor, if there is one, was seen in this session."""
        return super().has_permission(request) and second_factor_seen(request.user)

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Wrap a view as Django does; refuse with 400 what no link or form of the admin sends."""
        return super().admin_view(_sensible(view), cacheable)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        shown = {"second_factor": settings.ADMIN_SECOND_FACTOR != "off"}
        response = super().login(request, shown | (extra_context or {}))
        return log_in_answered(request, response, path=f"/{settings.ADMIN_PATH}")


def _sensible(view: Callable[..., Any]) -> Callable[..., Any]:
    """Check what Django's admin takes as it comes, and would end with an error of the server."""
    model_admin = getattr(view, "__self__", None)
    if not isinstance(model_admin, ModelAdmin):
        return view

    @functools.wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        for name in request.GET:
            year = request.GET.get(name, "")
            if name.endswith("year") and year.isdecimal() and not MINYEAR <= int(year[:5]) < MAXYEAR:
                raise BadRequest(f"{name} is no year.")
        if request.method == "POST":
            _check_ids(model_admin.opts.pk, request.POST.getlist(ACTION_CHECKBOX_NAME))
            for name in model_admin.get_autocomplete_fields(request):
                _check_ids(model_admin.opts.get_field(name), filter(None, request.POST.getlist(name)))
        return view(request, *args, **kwargs)

    return checked


def _check_ids(field: Any, values: Iterable[str]) -> None:
    """Raise BadRequest for what cannot be a value of a field."""
    for value in values:
        try:
            field.to_python(value)
        except ValidationError:
            raise BadRequest(f"{field.name} has an id that cannot be one.") from None


def _too_often(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if seconds <= 90:  # noqa: PLR2004 - a minute and a half
        count = math.ceil(seconds)
        when = ngettext("Try again in %(count)s second.", "Try again in %(count)s seconds.", count) % {"count": count}
    else:
        when = ngettext("Try again in %(count)s minute.", "Try again in %(count)s minutes.", minutes)
        when = when % {"count": minutes}
    return f"{gettext('There were too many attempts to log in.')} {when}"
