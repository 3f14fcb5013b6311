"""What the OpenAPI document says beside the shapes: examples, errors, and the outgoing call."""

from typing import Any

from django.conf import settings
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    OpenApiWebhook,
    extend_schema,
)
from rest_framework import serializers

from webtask_scheduler.scheduler.problems import Unavailable
from webtask_scheduler.scheduler.serializers import (
    BATCH_MOST,
    UNITS,
    WHEN_MISSING,
    BatchSerializer,
    NewTimerSerializer,
    TimerSerializer,
)

_ID = "019a5b0e-93c4-7c5e-8f5e-2f6a1f0f9b11"
_SCHEDULED = {
    "task_id": _ID,
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
_SUCCEEDED = _SCHEDULED | {
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


def versioned_only(endpoints: list[tuple[str, Any, str, Any]]) -> list[tuple[str, Any, str, Any]]:
    """Leave out the short names at the root, and the optional slash that the routes' `/?` reads as."""
    return [
        (path.rstrip("/"), regex, method, view)
        for path, regex, method, view in endpoints
        if path.startswith("/api/v1/")
    ]


class NewTimerShape(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """What the serializer checks beyond its fields."""

    target_class = NewTimerSerializer

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        shape: dict[str, Any] = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 - as they document
        for unit, length in UNITS.items():
            shape["properties"][unit]["maximum"] = settings.WEBTASK_HORIZON_SECONDS // length
        shape["properties"]["web_url"]["pattern"] = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s\\]+$"
        # The URL, and one of the three at least.
        return shape | {"additionalProperties": False, "minProperties": 2}


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


class BatchStoredSerializer(serializers.Serializer[Any]):
    timers = TimerSerializer(many=True)


class BatchResultSerializer(serializers.Serializer[Any]):
    timer = TimerSerializer(required=False)
    problem = ProblemSerializer(required=False)


class BatchResultsSerializer(serializers.Serializer[Any]):
    results = BatchResultSerializer(many=True)


class BatchShape(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """How many timers a batch may have."""

    target_class = BatchSerializer

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        shape: dict[str, Any] = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 - as they document
        shape["properties"]["timers"] |= {"minItems": 1, "maxItems": BATCH_MOST}
        return shape | {"additionalProperties": False}


_REFUSED = {
    "problem": {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": f"The request is not valid: seconds: {WHEN_MISSING}",
        "errors": [{"field": "seconds", "detail": WHEN_MISSING}],
    }
}
_PARTLY = {"results": [{"timer": _SCHEDULED}, _REFUSED]}


def _problem(description: str, status: int, title: str, detail: str, **more: Any) -> OpenApiResponse:
    value = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return OpenApiResponse(
        ProblemSerializer, description, examples=[OpenApiExample(title, value=value, response_only=True)]
    )


def _problems(*codes: int) -> dict[Any, OpenApiResponse]:
    known = {
        400: _problem(
            "Something in the request is wrong; nothing was stored.",
            400,
            "Bad Request",
            f"The request is not valid: seconds: {WHEN_MISSING}",
            errors=[{"field": "seconds", "detail": WHEN_MISSING}],
        ),
        403: _problem(
            "Signed in with a session, and without its CSRF token.",
            403,
            "Forbidden",
            "CSRF Failed: CSRF token missing.",
        ),
        404: _problem("No such timer.", 404, "Not Found", "There is no timer with this id."),
        411: _problem(
            "A chunked body.", 411, "Length Required", "Send the body with a Content-Length; a chunked one is not read."
        ),
        413: _problem(
            "The body is over the limit.",
            413,
            "Request Entity Too Large",
            "The request's body is larger than 65536 bytes.",
        ),
        415: _problem(
            "Neither JSON nor a form, or not in UTF-8.",
            415,
            "Unsupported Media Type",
            'Unsupported media type "text/plain" in request.',
        ),
        503: _problem(
            "The database does not answer; it is not known whether anything was stored.",
            503,
            "Service Unavailable",
            Unavailable.default_detail,
        ),
    }
    return {(code, "application/problem+json"): known[code] for code in codes}


create_timer = extend_schema(
    operation_id="v1_scheduler_timer_create",
    tags=["scheduler"],
    summary="Create a timer",
    description="Give a URL and how long from now it is to be called. Any of hours, minutes and seconds may be left "
    "out if one is given; 0 in all means now. The URL is called with POST, never early, at least once; see the "
    "`timerDue` webhook for what arrives.",
    request=NewTimerSerializer,
    responses={
        201: OpenApiResponse(
            TimerSerializer,
            "The timer is stored; `Location` says where to look at it.",
            examples=[OpenApiExample("In five seconds", value=_SCHEDULED, response_only=True)],
        ),
        **_problems(400, 403, 411, 413, 415, 503),
    },
    parameters=[
        OpenApiParameter(
            "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[201], description="Where the timer is."
        )
    ],
    examples=[
        OpenApiExample(
            "In five seconds",
            value={"hours": 0, "minutes": 0, "seconds": 5, "web_url": "https://example.com/hook"},
            request_only=True,
        ),
        OpenApiExample("In a day", value={"hours": 24, "web_url": "https://example.com/hook"}, request_only=True),
    ],
)

create_batch = extend_schema(
    operation_id="v1_scheduler_timer_batch_create",
    tags=["scheduler"],
    summary="Create up to a thousand timers",
    description="All are stored or none, and a 400 names the items that are wrong as `timers.<index>`. With "
    '`"partial": true` the valid ones are stored, and the answer says of each item, in order, what became of it.',
    request=BatchSerializer,
    responses={
        201: OpenApiResponse(
            BatchStoredSerializer,
            "All are stored; in the order in which they were given.",
            examples=[OpenApiExample("Two timers", value={"timers": [_SCHEDULED, _SCHEDULED]}, response_only=True)],
        ),
        200: OpenApiResponse(
            BatchResultsSerializer,
            "With `partial`: each item has either a `timer` or a `problem`.",
            examples=[
                OpenApiExample("One of two", value={"results": [{"timer": _SCHEDULED}, _REFUSED]}, response_only=True)
            ],
        ),
        **_problems(400, 403, 411, 413, 415, 503),
    },
    examples=[
        OpenApiExample(
            "Two timers",
            value={
                "timers": [
                    {"seconds": 5, "web_url": "https://example.com/first"},
                    {"hours": 1, "web_url": "https://example.com/second"},
                ]
            },
            request_only=True,
        )
    ],
)

retrieve_timer = extend_schema(
    operation_id="v1_scheduler_timer_retrieve",
    tags=["scheduler"],
    summary="Look at a timer",
    description="How long until it is called, what came of it, and why it has not been called if it has not.",
    parameters=[
        OpenApiParameter(
            "id", OpenApiTypes.UUID, OpenApiParameter.PATH, description="The `task_id` that creating it answered."
        )
    ],
    responses={
        200: OpenApiResponse(
            TimerSerializer,
            "The timer.",
            examples=[
                OpenApiExample("Called", value=_SUCCEEDED, response_only=True),
                OpenApiExample("Waiting", value=_SCHEDULED, response_only=True),
            ],
        ),
        **_problems(404, 503),
    },
)

# Written out: the generator leaves the headers and the example of a webhook away.
timer_due = OpenApiWebhook(
    name="timerDue",
    decorator={
        "post": {
            "operationId": "timer_due",
            "summary": "What your URL receives",
            "description": "At the promised moment `web_url` is called with POST. An answer of 2xx within 30 seconds "
            "is a success; anything else, a redirect included, is tried again, five attempts in all. Calls come at "
            "least once: drop a `webhook-id` that you have seen.",
            "tags": ["scheduler"],
            "parameters": [
                {
                    "in": "header",
                    "name": "webhook-id",
                    "required": True,
                    "description": "The same for every attempt at one promised moment.",
                    "schema": {"type": "string", "format": "uuid"},
                },
                {
                    "in": "header",
                    "name": "webhook-timestamp",
                    "required": True,
                    "description": "When this attempt was made, in seconds since 1970.",
                    "schema": {"type": "integer"},
                },
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "task_id": {"type": "string", "format": "uuid", "description": "The timer."},
                                "due_at": {
                                    "type": "string",
                                    "format": "date-time",
                                    "description": "The promised moment.",
                                },
                                "attempt": {
                                    "type": "integer",
                                    "minimum": 1,
                                    "description": "Counts the calls for this moment, from 1.",
                                },
                            },
                            "required": ["task_id", "due_at", "attempt"],
                        },
                        "examples": {
                            "AFirstAttempt": {
                                "summary": "A first attempt",
                                "value": {"task_id": _ID, "due_at": "2026-01-05T09:00:05+00:00", "attempt": 1},
                            }
                        },
                    }
                },
            },
            "responses": {"2XX": {"description": "The call was taken. The body is not needed."}},
        }
    },
)
