"""Adds to the OpenAPI document what the serializers do not say: examples, parameters, errors."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urljoin

from django.conf import settings
from django.utils import translation
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
)
from rest_framework import serializers

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.access.keys import PREFIX
from webtask_scheduler.scheduler.api.fields import CONTENT_TYPE, StrictSerializer
from webtask_scheduler.scheduler.api.problems import KeyReused, LoopDetected, NotJSON, Unavailable
from webtask_scheduler.scheduler.api.reading import BATCH_MOST, EditSerializer, NewTimerSerializer
from webtask_scheduler.scheduler.api.schedules import UNITS, WHEN_MISSING, ScheduleSerializer
from webtask_scheduler.scheduler.api.showing import TimerSerializer
from webtask_scheduler.scheduler.models import (
    KEY_MAX_LENGTH,
)
from webtask_scheduler.scheduler.rules.options import METHODS, WITHOUT_BODY

ID = "019a5b0e-93c4-7c5e-8f5e-2f6a1f0f9b11"
SCHEDULED_EXAMPLE = {
    "task_id": ID,
    "status": "scheduled",
    "web_url": "https://example.com/hook",
    "created_at": "2026-01-05T09:00:00.000000Z",
    "due_at": "2026-01-05T09:00:05.000000Z",
    "time_left_in_seconds": 5,
    "next_attempt_at": "2026-01-05T09:00:05.000000Z",
    "finished_at": None,
    "reason": "Its moment has not come yet.",
    "attempts": [],
}
SUCCEEDED_EXAMPLE = SCHEDULED_EXAMPLE | {
    "status": "succeeded",
    "time_left_in_seconds": 0,
    "next_attempt_at": None,
    "finished_at": "2026-01-05T09:00:05.061204Z",
    "reason": None,
    "attempts": [
        {
            "number": 1,
            "started_at": "2026-01-05T09:00:05.007113Z",
            "lateness_ms": 7.1,
            "duration_ms": 52,
            "status_code": 200,
            "error": "",
            "message": "",
        }
    ],
}


# The operations by what a person wants, and in which order. Swagger UI shows them so; a client that is made from the
# document has a module for each group.
GROUPS = {
    "Timers": (
        "One URL, called at a promised time: create it, look at it, change it.",
        (
            *("timer_create", "timer_retrieve", "timer_list", "timer_partial_update", "timer_pause", "timer_resume"),
            *("timer_run", "timer_try_now", "timer_destroy"),
        ),
    ),
    "Schedules": ("When a cron or an interval fires, before anything is stored.", ("timer_preview",)),
    "Many at once": (
        "Create up to a thousand timers; cancel, pause, resume or replay all that fit a filter.",
        ("timer_batch_create", "timer_bulk_create", "timer_bulk_retrieve", "timer_bulk_stop", "timer_bulk_list"),
    ),
    "History": (
        "What was called, what came of it, and sending it again.",
        ("timer_deliveries_list", "timer_attempts_list", "timer_replay", "timer_dismiss"),
    ),
    "Secrets": (
        "What calls are signed with, so that a receiver knows them.",
        ("signing_secret_list", "signing_secret_create", "signing_secret_destroy"),
    ),
    "Notifications": (
        "Who is told when a call fails, and what was sent.",
        (
            *("notification_channel_list", "notification_channel_create", "notification_channel_partial_update"),
            *("notification_channel_test", "notification_channel_destroy", "notification_list"),
        ),
    ),
    "Operations": (
        "Who may call the API, and who did what.",
        ("api_key_list", "api_key_create", "api_key_destroy", "audit_list"),
    ),
}
_GROUP_OF = {name: group for group, (_, names) in GROUPS.items() for name in names}
_ORDER = {name: place for place, name in enumerate(_GROUP_OF)}
# In examples of requests; where there is a demo receiver, it is put in its place, so that each can be tried out.
EXAMPLE_SITE = "https://example.com/"


class EnglishGenerator(SchemaGenerator):
    """Generates the document in one language: programs are made from it, and compare it."""

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        with translation.override("en"):
            document = super().get_schema(request=request, public=public)  # type: ignore[no-untyped-call]
        receiver = demo_receiver(request) if request is not None else ""
        if receiver:
            _call(receiver, document)
        return document


def demo_receiver(request: Any) -> str:
    """Return the URL of the demo receiver as workers reach it; empty where there is none, as in production.

    It is where it is set up, and no timer has an owner who could mind that all see what is sent there.
    """
    if not (settings.WEBTASK_DEMO_RECEIVER and is_open()):
        return ""
    return str(urljoin(request.build_absolute_uri("/"), settings.WEBTASK_DEMO_RECEIVER))


def _call(receiver: str, document: dict[str, Any]) -> None:
    """Let the timers of all examples of requests call the receiver."""
    for item in document["paths"].values():
        for operation in item.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for example in content.get("examples", {}).values():
                    example["value"] = _called_at(receiver, example["value"])
    for schema in document["components"]["schemas"].values():
        shown = schema.get("properties", {}).get("web_url", {})
        if "example" in shown:
            shown["example"] = receiver


def _called_at(receiver: str, value: Any) -> Any:
    """Return an example of a request whose timers call the receiver."""
    if isinstance(value, list):
        return [_called_at(receiver, one) for one in value]
    if isinstance(value, dict):
        called = {name: _called_at(receiver, inner) for name, inner in value.items()}
        if str(value.get("web_url", "")).startswith(EXAMPLE_SITE):
            called["web_url"] = receiver
        return called
    return value


def grouped(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Order the paths by GROUPS, and say so of each operation, because one path may be of two places."""
    for item in result["paths"].values():
        for operation in item.values():
            operation["x-order"] = _ORDER[operation["operationId"].removeprefix("v1_scheduler_")]
    paths = sorted(result["paths"].items(), key=lambda one: min(operation["x-order"] for operation in one[1].values()))
    result["paths"] = dict(paths)
    result["tags"] = [{"name": group, "description": description} for group, (description, _) in GROUPS.items()]
    return result


def versioned_only(endpoints: list[tuple[str, Any, str, Any]]) -> list[tuple[str, Any, str, Any]]:
    """Return the endpoints without the short names at the root and without the optional slash of the routes' `/?`."""
    return [
        (path.rstrip("/"), regex, method, view)
        for path, regex, method, view in endpoints
        if path.startswith("/api/v1/")
    ]


_URL = {"pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s\\]+$"}
_BASE64 = r"([A-Za-z0-9+/]{4})"
# The texts that fields take, as far as patterns can say it.
_TEXTS: dict[str, dict[str, Any]] = {
    "web_url": _URL,
    "callback_url": _URL,
    "failure_callback_url": _URL,
    "cron": {"format": "cron"},
    "content_type": {"pattern": f"^{CONTENT_TYPE.pattern}$"},
    "timezone": {"format": "timezone"},
    "label": {"pattern": "="},
    "body_base64": {"pattern": rf"^{_BASE64}*([A-Za-z0-9+/]{{2}}==|[A-Za-z0-9+/]{{3}}=)?$"},
    # 24 to 64 bytes.
    "secret": {
        "pattern": rf"^whsec_({_BASE64}{{8,20}}([A-Za-z0-9+/]{{2}}==|[A-Za-z0-9+/]{{3}}=)?"
        rf"|{_BASE64}{{21}}([A-Za-z0-9+/]{{2}}==)?)$"
    },
}
WITH_BODY = [method for method in METHODS if method not in WITHOUT_BODY]
# The fields of a timer that matter first; the others follow in their order.
_FIRST = ("web_url", "seconds", "minutes", "hours", "delay", "due_at", "cron", "timezone", "every")
# Fields of a timer that require or exclude others.
_TOGETHER: dict[str, Any] = {
    "body": {"not": {"required": ["body_base64"]}, "properties": {"method": {"enum": WITH_BODY}}},
    "body_base64": {"properties": {"method": {"enum": WITH_BODY}}},
    "content_type": {"anyOf": [{"required": ["body"]}, {"required": ["body_base64"]}]},
    "max_lateness": {"properties": {"on_missed": {"const": "skip"}}, "required": ["on_missed"]},
    "cron": {"properties": {"on_missed": {"enum": ["fire", "skip"]}}},
    "every": {"properties": {"on_missed": {"enum": ["fire", "skip"]}}},
}


def _bounds(name: str, field: serializers.Field[Any, Any, Any, Any]) -> dict[str, Any]:
    """Return the bounds of a field that the generator does not see."""
    bounds = dict(_TEXTS.get(name, {}))
    if name in UNITS:
        bounds["maximum"] = settings.WEBTASK_HORIZON_SECONDS // UNITS[name]
    if isinstance(field, serializers.CharField) and not field.allow_blank:
        bounds["minLength"] = 1
    return bounds


def _filled_in(name: str, form: Any) -> dict[str, Any]:
    """Return what a form shows in a field: the example, or nothing, which counts as not given."""
    example = getattr(form, "form_example", None)
    return {} if example is None else {"example": example.get(name, "")}


def bodies_required(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Say of bodies what the generator does not know.

    A preview's is required: it has required fields, but one out of several. In a filter, one status is a list of one.
    """
    status = result["components"]["schemas"]["Filter"]["properties"]["status"]
    result["components"]["schemas"]["Filter"]["properties"]["status"] = {"anyOf": [status, status["items"]]}
    result["paths"]["/api/v1/scheduler/timer/preview"]["post"]["requestBody"]["required"] = True
    return result


# What every operation answers where keys are asked for: description, title, example.
_KEY_ANSWERS = {
    401: ("No API key, or one that is mistyped, was revoked or has expired.", "Unauthorized", "An API key is needed."),
    403: ("The key lacks the scope that this needs.", "Forbidden", "This needs a key with the scope `timers:write`."),
}


def secured(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Say that the API takes a key, or where it is open nothing as well; and what it answers where a key is needed."""
    result["components"]["securitySchemes"] = {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": f"An API key, which begins with {PREFIX}. docs/security.md lists the scopes.",
        }
    }
    result["security"] = [{"apiKey": []}, *([{}] if is_open() else [])]
    if is_open():
        return result
    for status, (description, title, detail) in _KEY_ANSWERS.items():
        value = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        schema = {"$ref": "#/components/schemas/Problem"}
        content = {"application/problem+json": {"schema": schema, "examples": {title: {"value": value}}}}
        for item in result["paths"].values():
            for operation in item.values():
                operation["responses"][str(status)] = {"content": content, "description": description}
    return result


class StrictShape(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """What a serializer refuses beyond its fields: every name that it does not know."""

    target_class = StrictSerializer
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        shape: dict[str, Any] = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 - as they document
        properties = shape.get("properties", {})
        if "web_url" in properties:
            first = {name: properties[name] for name in _FIRST}
            shape["properties"] = properties = first | properties
        for name, field in self.target.fields.items():
            properties[name] |= _bounds(name, field) | _filled_in(name, self.target)
        if "hosts" in properties:
            properties["hosts"]["items"]["minLength"] = 1
        if "timers" in properties:
            properties["timers"] |= {"minItems": 1, "maxItems": BATCH_MOST}
        if isinstance(self.target, ScheduleSerializer) and self.target.when_required:
            # One way to say when; hours, minutes and seconds go together. It is in allOf, because client generators
            # take the whole for a union without it.
            units = [{"required": [unit]} for unit in UNITS]
            others = [{"required": [name]} for name in ("delay", "due_at", "cron", "every")]
            shape["allOf"] = [{"oneOf": [{"anyOf": units}, *others]}]
            shape["dependentRequired"] = {"timezone": ["cron"]}
            recurring = {"anyOf": [{"required": ["cron"]}, {"required": ["every"]}]}
            shape["dependentSchemas"] = dict.fromkeys(("starts_at", "ends_at", "max_occurrences"), recurring)
        if type(self.target) is NewTimerSerializer:
            shape["dependentSchemas"] |= _TOGETHER
        if isinstance(self.target, EditSerializer):
            shape.pop("required", None)
            # As it is shown of a timer that is sensitive; it keeps the value.
            properties["body_base64"]["pattern"] += r"|^\*\*\*$"
            for name, value in properties.items():
                shown = value
                if name in ("headers", "labels"):
                    # Null removes an entry, as it removes a field.
                    entry = {"anyOf": [value["additionalProperties"], {"type": "null"}]}
                    shown = value | {"additionalProperties": entry}
                properties[name] = {"anyOf": [shown, {"type": "null"}]} if name != "web_url" else value
        return shape | {"additionalProperties": False}


class FieldErrorSerializer(serializers.Serializer[Any]):
    field = serializers.CharField(help_text="The field's name; empty where the request as a whole is meant.")
    detail = serializers.CharField()


class ProblemSerializer(serializers.Serializer[Any]):
    """Problem details (RFC 9457)."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="What was wrong, for a person.")
    errors = FieldErrorSerializer(many=True, required=False)  # type: ignore[assignment]  # a field by that name


def _problem(description: str, status: int, title: str, detail: Any, **more: Any) -> OpenApiResponse:
    value = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return OpenApiResponse(
        ProblemSerializer, description, examples=[OpenApiExample(title, value=value, response_only=True)]
    )


def problem_answers(*codes: int) -> dict[Any, OpenApiResponse]:
    known = {
        400: _problem(
            "Something in the request is wrong; nothing was stored.",
            400,
            "Bad Request",
            f"The request is not valid: seconds: {WHEN_MISSING}",
            errors=[{"field": "seconds", "detail": WHEN_MISSING}],
        ),
        401: _problem(
            "No API key, or one that is mistyped, was revoked or has expired.",
            401,
            "Unauthorized",
            "This is no API key that is in use: it is mistyped, was revoked, or has expired.",
        ),
        403: _problem(
            "Signed in with a session, and without its CSRF token.",
            403,
            "Forbidden",
            "CSRF Failed: CSRF token missing.",
        ),
        404: _problem(
            "There is no such thing, or it is somebody else's.", 404, "Not Found", "There is no timer with this id."
        ),
        409: _problem(
            "It cannot be done as things are; the detail says why.",
            409,
            "Conflict",
            f"Timer {ID} has ended and stays as it is. Make a new timer instead.",
        ),
        411: _problem(
            "A chunked body.", 411, "Length Required", "Send the body with a Content-Length; a chunked one is not read."
        ),
        413: _problem(
            "The body is over the limit.",
            413,
            "Request Entity Too Large",
            "The request's body is larger than 4194304 bytes.",
        ),
        415: _problem(
            "Not said to be JSON (or, for creating one timer, a form) in UTF-8.",
            415,
            "Unsupported Media Type",
            NotJSON.default_detail,
        ),
        422: _problem(
            'A due_at that has passed, with "on_missed": "reject"; or an Idempotency-Key that was used for another'
            " request.",
            422,
            "Unprocessable Entity",
            KeyReused.default_detail,
        ),
        429: _problem(
            "More requests a second than one owner may send, or many wrong keys from one address; nothing was done."
            " `Retry-After` says when to send it again, and `RateLimit` in each answer how many are left. Only where"
            " the operator has set a limit.",
            429,
            "Too Many Requests",
            "More than 100 requests a second, or 1000 at once after a pause; nothing was done. Send it again in 1 s, …",
        ),
        503: _problem(
            "The database does not answer; it is not known whether anything was stored.",
            503,
            "Service Unavailable",
            Unavailable.default_detail,
        ),
        508: _problem(
            "A call of this service led to this request, too deep to go on; nothing was stored.",
            508,
            "Loop Detected",
            LoopDetected.default_detail,
        ),
    }
    return {(code, "application/problem+json"): known[code] for code in codes}


WRITING = (400, 403, 404, 411, 413, 415, 503)
LOCATION = OpenApiParameter(
    "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[201], description="Where the timer is."
)
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": KEY_MAX_LENGTH, "pattern": "^[!-~]+$"},
    OpenApiParameter.HEADER,
    description="Any text of your own that is new for each new request, for instance a UUID. For 24 hours the same"
    " request with the same key is answered as the first time, with `Idempotency-Replayed: true`, and does nothing.",
)
REPLAYED = OpenApiParameter(
    "Idempotency-Replayed",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    response=[200, 201, 202],
    description="`true` where the answer is that of an earlier request with this Idempotency-Key.",
)
TASK_ID = OpenApiParameter(
    "id", OpenApiTypes.UUID, OpenApiParameter.PATH, description="The `task_id` that creating it answered."
)
View = TypeVar("View", bound=Callable[..., Any])


def described(name: str, summary: str, description: str, **more: Any) -> Callable[[View], View]:
    more["responses"] |= problem_answers(429)
    return extend_schema(
        operation_id=f"v1_scheduler_{name}",
        tags=[_GROUP_OF[name]],
        summary=summary,
        description=description,
        # What `secured` says of the whole document holds; said here, generated clients could not do without a key.
        auth=[],
        **more,
    )


def timer_answer(description: str, title: str, value: Any) -> OpenApiResponse:
    return OpenApiResponse(
        TimerSerializer, description, examples=[OpenApiExample(title, value=value, response_only=True)]
    )


RECURRING_EXAMPLE = SCHEDULED_EXAMPLE | {
    "due_at": "2026-03-30T07:00:00.000000Z",
    "next_attempt_at": "2026-03-30T07:00:00.000000Z",
    "time_left_in_seconds": 7254000,
    "name": "weekday report",
    "occurrence": 1,
    "cron": "0 9 * * MON-FRI",
    "timezone": "Europe/Berlin",
    "labels": {"team": "billing"},
}


def action_document(name: str, summary: str, description: str, **more: Any) -> Callable[[View], View]:
    more.setdefault("request", None)
    more.setdefault("parameters", [TASK_ID])
    return described(name, summary, description, **more)
