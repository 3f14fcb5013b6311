"""Answers errors as RFC 9457 problem details: what was wrong, and with which field."""

import logging
import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation, TooManyFieldsSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpResponse, JsonResponse, UnreadablePostError
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _
from rest_framework import exceptions
from rest_framework.views import exception_handler

from webtask_scheduler.telemetry.events import event
from webtask_scheduler.vault import VaultError

MEDIA_TYPE = "application/problem+json"


class TooLarge(exceptions.APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_detail = _("The request's body is too large.")
    default_code = "too_large"


class LengthRequired(exceptions.APIException):
    status_code = HTTPStatus.LENGTH_REQUIRED
    default_detail = _("Send the body with a Content-Length; a chunked one is not read.")
    default_code = "length_required"


class NotJSON(exceptions.APIException):
    status_code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    default_detail = _(
        "The body has no Content-Type, so it is not read. Send it with the header `Content-Type: application/json`."
    )
    default_code = "not_json"


class NotUTF8(exceptions.APIException):
    status_code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    default_detail = _("Send the body in UTF-8; no other charset is read.")
    default_code = "not_utf8"


class Conflict(exceptions.APIException):
    status_code = HTTPStatus.CONFLICT
    default_detail = _("This cannot be done to the timer as it is now.")
    default_code = "conflict"


class TooManyRequests(exceptions.APIException):
    """The caller's requests come faster than they may. `wait` seconds later there is room for one, in `Retry-After`."""

    status_code = HTTPStatus.TOO_MANY_REQUESTS
    default_code = "too_many_requests"

    def __init__(self, *, per_second: float, burst: int, wait_seconds: float) -> None:
        self.wait = max(1, math.ceil(wait_seconds))
        super().__init__(
            _(
                "More than %(rate)s requests a second, or %(burst)s at once after a pause; nothing was done. Send it"
                " again in %(wait)s s, and many timers as one batch. The operator sets the limit with"
                " WEBTASK_LIMIT_REQUESTS_PER_SECOND."
            )
            % {"rate": f"{per_second:g}", "burst": burst, "wait": self.wait}
        )


class LoopDetected(exceptions.APIException):
    status_code = HTTPStatus.LOOP_DETECTED
    default_detail = _(
        "This request comes from a call of a timer that an earlier call had made: a loop. If that is not so, send it"
        " without the headers `webtask-timer-id` and `webtask-depth`."
    )
    default_code = "loop"


class PastDue(exceptions.APIException):
    """The due time has passed, and the client asked to refuse that; the detail is keyed by field.

    It is not a ValidationError, because a serializer would turn that into its own, with status 400.
    """

    status_code = HTTPStatus.UNPROCESSABLE_ENTITY


class KeyReused(exceptions.APIException):
    status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    default_detail = _("This Idempotency-Key was used for another request. Use a new key for a new request.")
    default_code = "key_reused"


class Unavailable(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    # The database may have gone away after the commit and before its answer.
    default_detail = _(
        "The database does not answer; it is not known whether anything was stored. Try again in a moment."
    )
    default_code = "unavailable"
    wait = 1


class Unreadable(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = _(
        "A value that this needs is encrypted, and the service lacks the key. Nothing was changed. Its operator finds"
        " the key's name in the log and at /readyz."
    )
    default_code = "unreadable"


def problem_response(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """Answer an exception of an API view; None leaves it to Django (a fault of ours: 500).

    It is always JSON, also if the view's own renderer writes YAML or HTML.
    """
    error = _api_error(error)
    response = exception_handler(error, context)
    if response is None or not isinstance(error, exceptions.APIException):
        return response
    if isinstance(error, exceptions.ValidationError | PastDue):
        body = invalid(error.detail, status=error.status_code)
    else:
        body = problem(response.status_code, str(error.detail))
    answer = JsonResponse(body, status=response.status_code, content_type=MEDIA_TYPE)
    for name in ("WWW-Authenticate", "Retry-After"):
        if name in response:
            answer[name] = response[name]
    return answer


def _api_error(error: Exception) -> Exception:  # noqa: PLR0911 - one for each kind
    """Return the error of the API that stands for an error from below; any other as it is."""
    if isinstance(error, RequestDataTooBig):
        return TooLarge()
    if isinstance(error, TooManyFieldsSent):
        most = {"most": settings.DATA_UPLOAD_MAX_NUMBER_FIELDS}
        return exceptions.ParseError(gettext("The form has more than %(most)s fields; send fewer, or JSON.") % most)
    if isinstance(error, SuspiciousOperation | UnreadablePostError):
        return exceptions.ParseError(gettext("The request cannot be read."))
    if isinstance(error, OperationalError | InterfaceError):
        return Unavailable()
    if isinstance(error, VaultError):
        event("value_unreadable", level=logging.ERROR, reason=str(error))
        return Unreadable()
    if isinstance(error, Http404):
        return exceptions.NotFound()
    return exceptions.PermissionDenied() if isinstance(error, PermissionDenied) else error


def invalid(detail: Any, *, status: int = HTTPStatus.BAD_REQUEST) -> dict[str, Any]:
    """Return the problem of a request, or of one item of a batch, from the details of a validation error."""
    errors = list(_fields(detail))
    said = "; ".join(f"{item['field']}: {item['detail']}" if item["field"] else item["detail"] for item in errors)
    return problem(status, gettext("The request is not valid: %(errors)s") % {"errors": said}, errors=errors)


# The titles that this service answers with, for translation. Two have another name in newer versions of Python.
_TITLES = (
    gettext_noop("Bad Request"),
    gettext_noop("Unauthorized"),
    gettext_noop("Forbidden"),
    gettext_noop("Not Found"),
    gettext_noop("Method Not Allowed"),
    gettext_noop("Not Acceptable"),
    gettext_noop("Conflict"),
    gettext_noop("Length Required"),
    gettext_noop("Request Entity Too Large"),
    gettext_noop("Content Too Large"),
    gettext_noop("Unsupported Media Type"),
    gettext_noop("Unprocessable Entity"),
    gettext_noop("Unprocessable Content"),
    gettext_noop("Too Many Requests"),
    gettext_noop("Internal Server Error"),
    gettext_noop("Service Unavailable"),
    gettext_noop("Loop Detected"),
)


def problem(status: int, detail: str, *, errors: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Return the members of a problem details object."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": gettext(HTTPStatus(status).phrase),
        "status": int(status),
        "detail": detail,
    }
    if errors is not None:
        body["errors"] = errors
    return body


def _fields(detail: Any, field: str = "") -> Iterator[dict[str, str]]:
    """Flatten the nested details of a validation error into one entry for each message."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            shown = "" if name == "non_field_errors" else str(name)
            yield from _fields(inner, f"{field}.{shown}".strip("."))
    elif isinstance(detail, list):
        for inner in detail:
            yield from _fields(inner, field)
    else:
        yield {"field": field, "detail": str(detail)}


def problem_answer(status: int, detail: str) -> HttpResponse:
    """Return the answer to a request that no view of the API sees."""
    return JsonResponse(problem(status, detail), status=status, content_type=MEDIA_TYPE)
