"""Who a request of the API comes from, and what that allows. The views of the API use it by `api/base.py`."""

import logging
import math
from http import HTTPMethod, HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.utils.translation import gettext as _
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from webtask_scheduler.access import keys, limits
from webtask_scheduler.access.models import Scope
from webtask_scheduler.addresses import address_of, network_of
from webtask_scheduler.telemetry.events import event

EVERY_SCOPE = frozenset(Scope.values)
# Keys are made by somebody who has a name.
OPEN_SCOPES = EVERY_SCOPE - {Scope.ADMIN}


def is_open() -> bool:
    """Return whether the API answers without a key."""
    return bool(settings.WEBTASK_API_AUTH == "open")


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer wts_live_…`; one statement for each request that has a key, none for others."""

    def authenticate(self, request: Request) -> tuple[keys.Holder, keys.Holder] | None:
        kind, __, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        holder = keys.find(text.strip())
        if holder is None:
            _count_wrong_key(request)
            raise exceptions.AuthenticationFailed(
                _("This is no API key that is in use: it is mistyped, was revoked, or has expired.")
            )
        return holder, holder

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002
        return 'Bearer realm="webtask_scheduler"'


class WrongKeys(exceptions.APIException):
    """Too many wrong keys came from an address. `wait` seconds later the next is looked at, in `Retry-After`."""

    status_code = HTTPStatus.TOO_MANY_REQUESTS
    default_code = "too_many_wrong_keys"

    def __init__(self, *, most: int, wait_seconds: float) -> None:
        self.wait = max(1, math.ceil(wait_seconds))
        super().__init__(
            _(
                "More than %(most)s requests with wrong API keys came from this address within a minute. A right key"
                " works at once; check the one that is sent. The operator sets the limit with"
                " WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE."
            )
            % {"most": most}
        )


def _count_wrong_key(request: Request) -> None:
    """Count a wrong key against its sender's address. Raises WrongKeys.

    It is counted after the look-up, so that right keys work from the same address. A lock of the address would keep out
    those who share it, such as an office with one forgotten program, and would win nothing: nobody finds 238 random
    bits by trying.
    """
    most = settings.WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE
    if not most:
        return
    taken = limits.take(f"wrong-keys:{network_of(request)}", per_second=most / 60, most=most)
    if taken is None:
        return
    if taken.allowed and not taken.left:
        # When the limit is reached, and then as often as one more is let through: not for each that is refused.
        event("keys_throttled", level=logging.WARNING, address=address_of(request), limit=most)
    if not taken.allowed:
        raise WrongKeys(most=most, wait_seconds=taken.wait_seconds)


def authenticators(request: Any = None) -> list[BaseAuthentication]:
    """Return how the API learns who calls, of a request of Django's what it may have.

    The admin's cookie counts only where no key is asked for. Elsewhere it would open the API to whoever has passed the
    first of several steps of the login, and to other pages in the same browser.
    """
    # Most programs send no cookie: there is no session to look for.
    may_log_in = is_open() and (request is None or settings.SESSION_COOKIE_NAME in request.COOKIES)
    return [KeyAuthentication(), SessionAuthentication()] if may_log_in else [KeyAuthentication()]


def scopes_of(request: Request) -> frozenset[str]:
    """Return what a request is allowed: the scopes of its key, or where no key is asked for, all but `admin`.

    In a session a superuser has that one too.
    """
    if isinstance(request.auth, keys.Holder):
        return request.auth.scopes
    if not is_open():
        return frozenset()
    return EVERY_SCOPE if getattr(request.user, "is_superuser", False) else OPEN_SCOPES


class NeedsScope(BasePermission):
    """Lets a request pass that has the scope which `scopes` of its view names for its method.

    A method that the view has and `scopes` does not name is refused, so that a forgotten one is not open.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        granted = scopes_of(request)
        if not granted and not isinstance(request.auth, keys.Holder):
            raise exceptions.NotAuthenticated(
                _("An API key is needed: send it as `Authorization: Bearer %(prefix)s…`.") % {"prefix": keys.PREFIX}
            )
        method = HTTPMethod.GET if request.method == HTTPMethod.HEAD else request.method
        needed = view.scopes.get(method)
        if needed in granted:
            return True
        if needed is None:
            # OPTIONS tells nothing of anybody, and a method that the view does not have is answered 405.
            return method == HTTPMethod.OPTIONS or not hasattr(view, str(method).lower())
        if isinstance(request.auth, keys.Holder):
            raise exceptions.PermissionDenied(
                _("This needs a key with the scope `%(scope)s`, which this one does not have.") % {"scope": needed}
            )
        if request.user.is_authenticated:
            raise exceptions.PermissionDenied(_("This needs the scope `%(scope)s`.") % {"scope": needed})
        raise exceptions.NotAuthenticated(
            _("An API key with the scope `%(scope)s` is needed, also where the API is open.") % {"scope": needed}
        )


def refuse_foreign(request: Request) -> None:
    """Refuse what a web page of another origin sends to an open API. Raises PermissionDenied.

    Such a page can post a form to an address that only its reader's machine reaches; the browser says where the page is
    from. Where a key is needed, the page has none.
    """
    if request.method in SAFE_METHODS or not is_open():
        return
    origin = request.META.get("HTTP_ORIGIN")
    try:
        foreign = origin is not None and _origin(origin) != _origin(f"{request.scheme}://{request.get_host()}")
    except (ValueError, DisallowedHost):
        foreign = True
    if foreign or request.META.get("HTTP_SEC_FETCH_SITE") == "cross-site":
        raise exceptions.PermissionDenied(
            _(
                "A web page of another origin sent this request, and nothing was done. Here the API is open to programs"
                " and to its own pages; with WEBTASK_API_AUTH=key it asks for a key instead."
            )
        )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
