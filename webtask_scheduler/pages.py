"""The pages that people see instead of what they asked for. Programs get problem details instead.

The pages need neither the database nor a static file nor a session, because any of these may be what failed. Their one
style sheet is inside them, the same text in each, because the Content-Security-Policy in the settings allows it by its
hash.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.messages.storage import default_storage
from django.core.exceptions import DisallowedHost
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.locale import LocaleMiddleware
from django.template.loader import render_to_string
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.functional import SimpleLazyObject, empty
from django.utils.translation import gettext, gettext_noop

from webtask_scheduler.scheduler.api import problems

# What no page of ours needs, and so no script that got into one may have.
PERMISSIONS_POLICY = ", ".join(
    f"{feature}=()"
    for feature in (
        *("accelerometer", "autoplay", "camera", "display-capture", "fullscreen", "geolocation", "gyroscope", "hid"),
        *("magnetometer", "microphone", "midi", "payment", "picture-in-picture", "screen-wake-lock", "serial", "usb"),
    )
)
# At these and below them nothing is for people, whatever a request accepts.
_FOR_PROGRAMS = ("/timer", "/signing-secret", "/api-key", "/audit", "/api", "/healthz", "/readyz")


class BrowserRules:
    """Adds to each answer what a browser may do with it, as far as Django's own middleware does not say it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._policy = "; ".join(f"{name} {' '.join(sources)}" for name, sources in settings.SECURE_CSP.items())

    def __call__(self, request: HttpRequest) -> HttpResponse:
        answer = self._get_response(request)
        answer["Content-Security-Policy"] = self._policy
        answer["Permissions-Policy"] = PERMISSIONS_POLICY
        # A page of another site may not load it as a script or an image, and so not read what is in it, unless the
        # answer was made for that.
        answer.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        return answer


class Languages(LocaleMiddleware):
    """Django's middleware, without its searches for a client that names no language, as most programs."""

    def process_request(self, request: HttpRequest) -> None:
        if "HTTP_ACCEPT_LANGUAGE" in request.META or "HTTP_COOKIE" in request.META:
            super().process_request(request)
            return
        translation.activate(settings.LANGUAGE_CODE)
        request.LANGUAGE_CODE = settings.LANGUAGE_CODE

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:  # noqa: ARG002
        # No address of ours begins with a language.
        patch_vary_headers(response, ("Accept-Language",))
        response.headers.setdefault("Content-Language", translation.get_language())
        return response


class Messages(MessageMiddleware):
    """Django's middleware, with a store that is made when a page asks for it."""

    def process_request(self, request: HttpRequest) -> None:
        # As the framework names it.
        request._messages = SimpleLazyObject(partial(default_storage, request))  # type: ignore[attr-defined]  # noqa: SLF001

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        store = getattr(request, "_messages", None)
        is_made = store is not None and store._wrapped is not empty  # noqa: SLF001 - nothing else tells
        return super().process_response(request, response) if is_made else response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a request that Django refuses before a view sees it, such as one for an unknown host."""
    if isinstance(exception, DisallowedHost):
        return _answer(
            request,
            400,
            gettext_noop(
                "The service does not answer to the name in the Host header; DJANGO_ALLOWED_HOSTS is the list."
            ),
        )
    return _answer(request, 400, gettext_noop("The request cannot be read."))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer a request for what its sender may not do."""
    return _answer(request, 403, gettext_noop("You do not have permission to perform this action."))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form that was not sent from a page of this service. `reason` is Django's, in English.

    Of one that is too large the token was not read, as nothing of it was.
    """
    if int(request.META.get("CONTENT_LENGTH") or 0) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
        return _answer(request, 413, problems.TooLarge.default_detail)
    return _answer(request, 403, f"CSRF Failed: {reason}", page="403_csrf.html")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer an unknown address."""
    return _answer(request, 404, gettext_noop("There is nothing at this address. The API is described at /api/docs."))


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 500 for a fault of ours, whose traceback is in the log, or 503 for a database that is away."""
    if isinstance(sys.exc_info()[1], OperationalError | InterfaceError):
        answer = _answer(request, 503, problems.Unavailable.default_detail)
        answer["Retry-After"] = str(problems.Unavailable.wait)
        return answer
    return _answer(request, 500, gettext_noop("Something went wrong on our side."))


def _answer(request: HttpRequest, status: int, detail: Any, *, page: str = "") -> HttpResponse:
    # A request may be refused before any middleware has read its language.
    language = translation.get_language_from_request(request)
    with translation.override(language):
        if _is_for_people(request):
            request_id = getattr(request, "request_id", "")
            # A path that was chosen is not told to strangers.
            admin_path = "/admin/" if settings.ADMIN_PATH == "admin/" else ""
            values = {"status": status, "request_id": request_id, "admin_path": admin_path}
            text = render_to_string(page or f"{status}.html", values)
            answer = HttpResponse(text, status=status)
        else:
            answer = problems.problem_answer(status, gettext(str(detail)))
    answer["Content-Language"] = language
    patch_vary_headers(answer, ("Accept", "Accept-Language"))
    return answer


def _is_for_people(request: HttpRequest) -> bool:
    """Return whether a request comes from a browser. One that takes anything gets a page only in the admin."""
    if f"{request.path}/".startswith(tuple(f"{path}/" for path in _FOR_PROGRAMS)):
        return False
    types = ["application/json", "text/html"]
    if request.path.startswith(f"/{settings.ADMIN_PATH}"):
        types.reverse()
    return request.get_preferred_type(types) == "text/html"
