"""What the OpenAPI document says beside the shapes: examples, errors, and the outgoing call."""

from collections.abc import Callable
from typing import Any, TypeVar

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

from webtask_scheduler.scheduler.models import KEY_MAX_LENGTH
from webtask_scheduler.scheduler.api.problems import KeyReused, LoopDetected, Unavailable
from webtask_scheduler.scheduler.api.serializers import (
    BATCH_MOST,
    METHODS,
    UNITS,
    WHEN_MISSING,
    WITHOUT_BODY,
    BatchSerializer,
    BulkSerializer,
    BulkStatusSerializer,
    CallSerializer,
    DeliverySerializer,
    EditSerializer,
    ListSerializer,
    MadeSecretSerializer,
    MomentsSerializer,
    NewSecretSerializer,
    NewTimerSerializer,
    PageSerializer,
    PreviewSerializer,
    ReplaySerializer,
    ScheduleSerializer,
    SecretSerializer,
    StrictSerializer,
    TextField,
    TimerSerializer,
    TimersSerializer,
)
from webtask_scheduler.scheduler.services import EXTRA_OPEN_MOST

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


_URL = {"pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s\\]+$"}
_BASE64 = r"([A-Za-z0-9+/]{4})"
# What fields take beyond their lengths, as far as patterns can say it.
_TEXTS: dict[str, dict[str, Any]] = {
    "web_url": _URL,
    "callback_url": _URL,
    "failure_callback_url": _URL,
    "cron": {"format": "cron"},
    "content_type": {"pattern": r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[\x20-\x7e]*[\x21-\x7e])?$"},
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
# Fields of a timer that need, or rule out, others.
_TOGETHER: dict[str, Any] = {
    "body": {"not": {"required": ["body_base64"]}, "properties": {"method": {"enum": WITH_BODY}}},
    "body_base64": {"properties": {"method": {"enum": WITH_BODY}}},
    "content_type": {"anyOf": [{"required": ["body"]}, {"required": ["body_base64"]}]},
    "max_lateness": {"properties": {"on_missed": {"const": "skip"}}, "required": ["on_missed"]},
    "cron": {"properties": {"on_missed": {"enum": ["fire", "skip"]}}},
    "every": {"properties": {"on_missed": {"enum": ["fire", "skip"]}}},
}


def _bounds(name: str, field: serializers.Field[Any, Any, Any, Any]) -> dict[str, Any]:
    """Return what a field refuses beyond what the generator sees."""
    bounds = dict(_TEXTS.get(name, {}))
    if name in UNITS:
        bounds["maximum"] = settings.WEBTASK_HORIZON_SECONDS // UNITS[name]
    if isinstance(field, serializers.CharField) and not field.allow_blank:
        bounds["minLength"] = 1
    return bounds


def bodies_required(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Say that a preview needs a body: the generator knows of fields that are required, not of one out of several."""
    result["paths"]["/api/v1/scheduler/timer/preview"]["post"]["requestBody"]["required"] = True
    return result


class StrictShape(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """What a serializer refuses beyond its fields: every name that it does not know."""

    target_class = StrictSerializer
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        shape: dict[str, Any] = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 - as they document
        properties = shape.get("properties", {})
        for name, field in self.target.fields.items():
            properties[name] |= _bounds(name, field)
        if "timers" in properties:
            properties["timers"] |= {"minItems": 1, "maxItems": BATCH_MOST}
        if isinstance(self.target, ScheduleSerializer) and self.target.when_required:
            # One way to say when; hours, minutes and seconds go together. In allOf, for without it generators of
            # clients take the whole for a union.
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
            for name, value in properties.items():
                shown = value
                if name in ("headers", "labels"):
                    # Null takes an entry away, as it does a field.
                    entry = {"anyOf": [value["additionalProperties"], {"type": "null"}]}
                    shown = value | {"additionalProperties": entry}
                properties[name] = {"anyOf": [shown, {"type": "null"}]} if name != "web_url" else value
        return shape | {"additionalProperties": False}


class TimerFormSerializer(NewTimerSerializer):
    """A timer as a form: everything that is no list or object."""

    labels = headers = success_statuses = retry = None  # type: ignore[assignment]  # as Django REST framework has it
    metadata = TextField(required=False, help_text="Any text, given back as it is.")  # type: ignore[assignment]
    body = TextField(required=False, help_text="Sent as it is.")  # type: ignore[assignment]


class TimerPartsSerializer(TimerFormSerializer):
    """As TimerForm; by a name of its own, for generated clients choose the encoding by it."""


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


class DeliveriesSerializer(serializers.Serializer[Any]):
    deliveries = DeliverySerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


class CallsSerializer(serializers.Serializer[Any]):
    attempts = CallSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


class SecretsSerializer(serializers.Serializer[Any]):
    secrets = SecretSerializer(many=True)


class BatchResultSerializer(serializers.Serializer[Any]):
    timer = TimerSerializer(required=False)
    problem = ProblemSerializer(required=False)


class BatchResultsSerializer(serializers.Serializer[Any]):
    results = BatchResultSerializer(many=True)


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
        404: _problem(
            "There is no such thing, or it is somebody else's.", 404, "Not Found", "There is no timer with this id."
        ),
        409: _problem(
            "It cannot be done as things are; the detail says why.",
            409,
            "Conflict",
            f"Timer {_ID} has ended and stays as it is. Make a new timer instead.",
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
            "Not JSON (or, for creating one timer, a form), or not in UTF-8.",
            415,
            "Unsupported Media Type",
            'Unsupported media type "text/plain" in request.',
        ),
        422: _problem(
            'A due_at that has passed, with "on_missed": "reject"; or an Idempotency-Key that was used for another'
            " request.",
            422,
            "Unprocessable Entity",
            KeyReused.default_detail,
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


_WRITING = (400, 403, 404, 411, 413, 415, 503)
_LOCATION = OpenApiParameter(
    "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[201], description="Where the timer is."
)
_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": KEY_MAX_LENGTH, "pattern": "^[!-~]+$"},
    OpenApiParameter.HEADER,
    description="Any text of your own that is new for each new request, for instance a UUID. For 24 hours the same"
    " request with the same key is answered as the first time, with `Idempotency-Replayed: true`, and does nothing.",
)
_REPLAYED = OpenApiParameter(
    "Idempotency-Replayed",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    response=[200, 201, 202],
    description="`true` where the answer is that of an earlier request with this Idempotency-Key.",
)
_TASK_ID = OpenApiParameter(
    "id", OpenApiTypes.UUID, OpenApiParameter.PATH, description="The `task_id` that creating it answered."
)


View = TypeVar("View", bound=Callable[..., Any])


def _described(name: str, summary: str, description: str, **more: Any) -> Callable[[View], View]:
    return extend_schema(
        operation_id=f"v1_scheduler_{name}",
        tags=["scheduler"],
        summary=summary,
        description=description,
        # Nobody has to sign in; without this, generated clients ask for a token.
        auth=[],
        **more,
    )


def _timer_answer(description: str, title: str, value: Any) -> OpenApiResponse:
    return OpenApiResponse(
        TimerSerializer, description, examples=[OpenApiExample(title, value=value, response_only=True)]
    )


_RECURRING = _SCHEDULED | {
    "due_at": "2026-03-30T07:00:00.000000Z",
    "next_attempt_at": "2026-03-30T07:00:00.000000Z",
    "time_left_in_seconds": 7254000,
    "name": "weekday report",
    "occurrence": 1,
    "cron": "0 9 * * MON-FRI",
    "timezone": "Europe/Berlin",
    "labels": {"team": "billing"},
}

create_timer = _described(
    "timer_create",
    "Create a timer",
    "Say which URL is to be called, and when: once, by hours, minutes and seconds from now, a delay or an instant; or"
    " again and again, by cron or an interval. It is called never early and at least once; see the `timerDue` webhook"
    " for what arrives.",
    request={
        "application/json": NewTimerSerializer,
        "application/x-www-form-urlencoded": TimerFormSerializer,
        "multipart/form-data": TimerPartsSerializer,
    },
    responses={
        201: OpenApiResponse(
            TimerSerializer,
            "The timer is stored; `Location` says where to look at it.",
            examples=[
                OpenApiExample("In five seconds", value=_SCHEDULED, response_only=True),
                OpenApiExample("Recurring", value=_RECURRING, response_only=True),
            ],
        ),
        **_problems(400, 403, 409, 411, 413, 415, 422, 503, 508),
    },
    parameters=[_KEY, _LOCATION, _REPLAYED],
    examples=[
        OpenApiExample(
            "In five seconds",
            value={"hours": 0, "minutes": 0, "seconds": 5, "web_url": "https://example.com/hook"},
            request_only=True,
        ),
        OpenApiExample(
            "At an instant, with a body and a retry policy",
            value={
                "due_at": "2030-01-05T09:00:00+01:00",
                "web_url": "https://example.com/orders/17",
                "method": "PUT",
                "headers": {"X-Shop": "north"},
                "body": {"order": 17, "action": "remind"},
                "retry": {"max_attempts": 8, "min_seconds": 1, "multiplier": 2, "max_seconds": 600},
                "on_missed": "skip",
                "max_lateness": "PT10M",
            },
            request_only=True,
        ),
        OpenApiExample(
            "At nine on weekdays in Berlin",
            value={
                "cron": "0 9 * * MON-FRI",
                "timezone": "Europe/Berlin",
                "web_url": "https://example.com/report",
                "name": "weekday report",
                "labels": {"team": "billing"},
            },
            request_only=True,
        ),
        OpenApiExample(
            "Every ten minutes, a hundred times",
            value={"every": "PT10M", "max_occurrences": 100, "web_url": "https://example.com/poll", "method": "GET"},
            request_only=True,
        ),
    ],
)

create_batch = _described(
    "timer_batch_create",
    "Create up to a thousand timers",
    "Each takes what a single one takes. All are stored or none, and a 400 names the items that are wrong as"
    ' `timers.<index>`. With `"partial": true` the valid ones are stored, and the answer says of each item, in order,'
    " what became of it.",
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
        **_problems(400, 403, 409, 411, 413, 415, 422, 503, 508),
    },
    parameters=[_KEY, _REPLAYED],
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

list_timers = _described(
    "timer_list",
    "List timers",
    "The latest made first; asked for by status or due time, those that wait with the soonest first, then those that"
    " ended with the latest first. A page may hold fewer timers than `limit`, or none, before the last one: go on while"
    " `next` is not null.",
    parameters=[ListSerializer],
    responses={
        200: OpenApiResponse(
            TimersSerializer,
            "A page.",
            examples=[OpenApiExample("One", value={"timers": [_SCHEDULED], "next": None}, response_only=True)],
        ),
        **_problems(400, 503),
    },
)

retrieve_timer = _described(
    "timer_retrieve",
    "Look at a timer",
    "How long until it is called, what came of it, and why it has not been called if it has not.",
    parameters=[_TASK_ID],
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

edit_timer = _described(
    "timer_partial_update",
    "Edit or reschedule a timer",
    "A merge patch (RFC 7396) of what creating takes: fields that are left out stay, null takes one away. Anything that"
    " says when promises another moment in place of the one that waits. A call in flight is not touched. Of a timer"
    " that has ended, name, labels and metadata can still be changed.",
    parameters=[_TASK_ID],
    request=EditSerializer,
    responses={
        200: _timer_answer("The timer as it is now.", "Moved", _SCHEDULED),
        **_problems(*_WRITING, 409, 422, 508),
    },
    examples=[
        OpenApiExample("In an hour instead", value={"hours": 1}, request_only=True),
        OpenApiExample(
            "Another URL, no labels", value={"web_url": "https://example.com/new", "labels": None}, request_only=True
        ),
    ],
)

cancel_timer = _described(
    "timer_destroy",
    "Cancel a timer",
    "For good. Done twice it changes nothing, and a timer that has ended stays as it is. A call in flight may still"
    " land, and the answer's `reason` says so; no retry follows.",
    parameters=[_TASK_ID],
    responses={
        200: _timer_answer(
            "The timer as it is now.",
            "Cancelled",
            _SCHEDULED
            | {
                "status": "cancelled",
                "next_attempt_at": None,
                "time_left_in_seconds": 0,
                "finished_at": "2026-01-05T09:00:02.120011Z",
                "reason": "It was cancelled.",
            },
        ),
        **_problems(403, 404, 503),
    },
)


def _action(name: str, summary: str, description: str, **more: Any) -> Callable[[View], View]:
    more.setdefault("request", None)
    more.setdefault("parameters", [_TASK_ID])
    return _described(name, summary, description, **more)


pause_timer = _action(
    "timer_pause",
    "Pause a timer",
    "It calls nothing until it is resumed. A call in flight may land; its retries wait too.",
    responses={200: OpenApiResponse(TimerSerializer, "The timer, paused."), **_problems(*_WRITING, 409)},
)
resume_timer = _action(
    "timer_resume",
    "Resume a timer",
    "One whose moment has passed meanwhile is due at once, or missed, as its `on_missed` says.",
    responses={200: OpenApiResponse(TimerSerializer, "The timer, going on."), **_problems(*_WRITING, 409)},
)
run_timer = _action(
    "timer_run",
    "Run a timer now",
    f"Makes an extra delivery, due now; what is promised stands. A timer that has ended is not run, nor one of which"
    f" {EXTRA_OPEN_MOST} extra deliveries have not ended yet.",
    parameters=[_TASK_ID, _KEY, _REPLAYED],
    responses={201: OpenApiResponse(DeliverySerializer, "The extra delivery."), **_problems(*_WRITING, 409, 422, 508)},
)
replay_timer = _action(
    "timer_replay",
    "Replay a dead letter",
    "Sends a delivery that failed or was missed again, now, with fresh attempts under the same `webhook-id`; its"
    " history stays.",
    parameters=[_TASK_ID, _KEY, _REPLAYED],
    request=ReplaySerializer,
    responses={
        200: OpenApiResponse(DeliverySerializer, "The delivery, waiting again."),
        **_problems(*_WRITING, 409, 422, 508),
    },
)
list_deliveries = _action(
    "timer_deliveries_list",
    "List a timer's deliveries",
    "Every promised moment that was reached or moved, and every extra one, the latest first.",
    parameters=[_TASK_ID, PageSerializer],
    responses={200: OpenApiResponse(DeliveriesSerializer, "A page."), **_problems(400, 404, 503)},
)
list_attempts = _action(
    "timer_attempts_list",
    "List a timer's attempts",
    "Every HTTP call that was made for it, the latest first, with the beginning of each answer.",
    parameters=[_TASK_ID, PageSerializer],
    responses={200: OpenApiResponse(CallsSerializer, "A page."), **_problems(400, 404, 503)},
)

preview = _described(
    "timer_preview",
    "Preview a schedule",
    "Its next moments, with what the clocks of its time zone do in between. Nothing is stored.",
    request=PreviewSerializer,
    responses={
        200: OpenApiResponse(
            MomentsSerializer,
            "The moments.",
            examples=[
                OpenApiExample(
                    "Across a change of clocks",
                    value={
                        "moments": [
                            {"at": "2026-03-28T08:00:00Z", "local": "2026-03-28T09:00:00+01:00", "note": ""},
                            {
                                "at": "2026-03-29T07:00:00Z",
                                "local": "2026-03-29T09:00:00+02:00",
                                "note": "Clocks in Europe/Berlin go forward between the previous moment and this one:"
                                " UTC+01:00 becomes UTC+02:00.",
                            },
                        ],
                        "more": True,
                    },
                    response_only=True,
                )
            ],
        ),
        **_problems(400, 403, 411, 413, 415, 503),
    },
    examples=[
        OpenApiExample(
            "At nine in Berlin, across a change of clocks",
            value={"cron": "0 9 * * *", "timezone": "Europe/Berlin", "after": "2026-03-27T12:00:00Z", "count": 2},
            request_only=True,
        )
    ],
)

_BULK = {
    "bulk_id": _ID,
    "action": "cancel",
    "filter": {"label": "team=billing", "status": ["scheduled"]},
    "dry_run": False,
    "status": "running",
    "matched": 1200,
    "changed": 1200,
    "created_at": "2026-01-05T09:00:00.000000Z",
    "finished_at": None,
    "error": "",
}
begin_bulk = _described(
    "timer_bulk_create",
    "Cancel, pause, resume or replay many",
    "All timers that fit the filter, which is the list's. It is done in the background, begun within seconds, and goes"
    " on whatever is restarted; look at `Location` for how far it has come. With `dry_run` it only counts.",
    request=BulkSerializer,
    parameters=[
        _KEY,
        _REPLAYED,
        OpenApiParameter(
            "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[202], description="Where the progress is."
        ),
    ],
    responses={
        202: OpenApiResponse(
            BulkStatusSerializer, "Begun.", examples=[OpenApiExample("Begun", value=_BULK, response_only=True)]
        ),
        **_problems(400, 403, 409, 411, 413, 415, 422, 503, 508),
    },
    examples=[
        OpenApiExample(
            "Cancel what a label names",
            value={"action": "cancel", "filter": {"label": "team=billing", "status": ["scheduled"]}},
            request_only=True,
        ),
        OpenApiExample(
            "Count the dead letters of a host",
            value={"action": "replay", "filter": {"host": "example.com", "status": ["failed"]}, "dry_run": True},
            request_only=True,
        ),
    ],
)
retrieve_bulk = _described(
    "timer_bulk_retrieve",
    "Look at a bulk operation",
    "`matched` counts the timers that fitted so far, `changed` those among them that were changed.",
    parameters=[
        OpenApiParameter("id", OpenApiTypes.UUID, OpenApiParameter.PATH, description="The `bulk_id` of the answer.")
    ],
    responses={
        200: OpenApiResponse(
            BulkStatusSerializer, "Its progress.", examples=[OpenApiExample("Running", value=_BULK, response_only=True)]
        ),
        **_problems(404, 503),
    },
)

list_secrets = _described(
    "signing_secret_list",
    "List signing secrets",
    "Every call of your timers is signed with each of them, by Standard Webhooks.",
    responses={200: OpenApiResponse(SecretsSerializer, "Your secrets, without the secret itself."), **_problems(503)},
)
create_secret = _described(
    "signing_secret_create",
    "Add a signing secret",
    "To rotate without a pause: add the new one, have receivers accept it, then delete the old one. The answer is the"
    " only one that shows it. Up to five may be active.",
    request=NewSecretSerializer,
    responses={
        201: OpenApiResponse(MadeSecretSerializer, "The secret."),
        **_problems(400, 403, 409, 411, 413, 415, 503),
    },
)
delete_secret = _described(
    "signing_secret_destroy",
    "Delete a signing secret",
    "Calls are signed with it no longer; without any left they are not signed.",
    parameters=[OpenApiParameter("id", OpenApiTypes.INT64, OpenApiParameter.PATH)],
    responses={204: OpenApiResponse(None, "It is gone."), **_problems(403, 404, 503)},
)

# Written out: the generator leaves the headers and the example of a webhook away.
timer_due = OpenApiWebhook(
    name="timerDue",
    decorator={
        "post": {
            "operationId": "timer_due",
            "summary": "What your URL receives",
            "description": "At the promised moment `web_url` is called, with POST and this body where the timer says "
            "nothing else. An answer of 2xx within the time limit is a success; 410 ends the delivery and pauses a "
            "timer that recurs; anything else, a redirect included, is tried again as the timer's retry policy says. "
            "Calls come at least once: drop a `webhook-id` that you have seen.",
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
                {
                    "in": "header",
                    "name": "webhook-signature",
                    "required": False,
                    "description": "Standard Webhooks: `v1,` and a signature in base64, one for each active signing "
                    "secret, with spaces between them. Absent where there is no secret.",
                    "schema": {"type": "string"},
                },
                *(
                    {
                        "in": "header",
                        "name": name,
                        "required": name != "webtask-depth",
                        "description": description,
                        "schema": {"type": kind} | ({"format": form} if form else {}),
                    }
                    for name, kind, form, description in (
                        ("webtask-timer-id", "string", "uuid", "The timer's `task_id`."),
                        (
                            "webtask-depth",
                            "integer",
                            "",
                            "Of a timer that a call of another one led to: requests that pass this on make no timers.",
                        ),
                        ("webtask-due-at", "string", "date-time", "The promised moment."),
                        ("webtask-occurrence", "integer", "", "Which of the timer's moments, from 1."),
                        ("webtask-attempt", "integer", "", "Counts the calls for this moment, from 1."),
                        ("webtask-lateness-ms", "number", "", "This attempt's start minus its moment."),
                    )
                ),
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
