"""Bulk operations: begin one, list them, look at its progress, stop it."""

from typing import Any, cast

from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
)
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.base import (
    TimerAPIView,
    answering_conflicts,
    as_json,
    body_of,
    caller_of,
    do_once,
    newest_first,
    refuse_called,
    timer_id_of,
    validated,
)
from webtask_scheduler.scheduler.api.document import ID, IDEMPOTENCY_KEY, REPLAYED, WRITING, described, problem_answers
from webtask_scheduler.scheduler.api.fields import (
    NothingSerializer,
    OneOfField,
    StrictSerializer,
    TrueOrFalseField,
    WholeNumberField,
)
from webtask_scheduler.scheduler.api.filtering import FilterSerializer, PageSerializer, filter_of
from webtask_scheduler.scheduler.models import (
    BulkOperation,
)

# As far as replays and timers may be spread: a day.
SPREAD_MOST = 86_400


class BulkSerializer(StrictSerializer):
    """Something to do to all timers that fit a filter."""

    action = OneOfField(choices=BulkOperation.Action.choices)
    filter = FilterSerializer(help_text="As the list takes it. Empty, it means all timers.")
    dry_run = TrueOrFalseField(default=False, help_text="Only count.")
    spread_seconds = WholeNumberField(
        min_value=1,
        max_value=SPREAD_MOST,
        required=False,
        help_text="With `replay`: at random moments of the time from now rather than all at once. With `spread`, which"
        " needs it: at random moments of the time from `due_from`.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        spread_seconds = attrs.get("spread_seconds")
        if attrs["action"] == BulkOperation.Action.SPREAD:
            try:
                services.check_spread(attrs["filter"], spread_seconds=spread_seconds, dry_run=attrs["dry_run"])
            except services.SpreadError as error:
                said: Any = {error.field: error.messages}
                raise serializers.ValidationError(
                    said if error.field == "spread_seconds" else {"filter": said}
                ) from error
        elif spread_seconds is not None and attrs["action"] != BulkOperation.Action.REPLAY:
            raise serializers.ValidationError({"spread_seconds": [_("Only with replay or spread.")]})
        return attrs


class BulkStatusSerializer(serializers.ModelSerializer[BulkOperation]):
    """A bulk operation and how far it has come."""

    bulk_id = serializers.UUIDField(source="id")
    status = serializers.ChoiceField(
        choices=("running", "done", "stopped", "failed"),
        help_text="`stopped` by a person; `failed` where it could not go on, as `error` says. What it changed stays.",
    )

    class Meta:
        model = BulkOperation
        fields = (
            "bulk_id",
            "action",
            "filter",
            "dry_run",
            "spread_seconds",
            "status",
            "matched",
            "changed",
            "created_at",
            "finished_at",
            "error",
        )


class BulkListSerializer(serializers.Serializer[Any]):
    """A page of bulk operations."""

    operations = BulkStatusSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


_BULK = {
    "bulk_id": ID,
    "action": "cancel",
    "filter": {"label": "team=billing", "status": ["scheduled"]},
    "dry_run": False,
    "spread_seconds": None,
    "status": "running",
    "matched": 1200,
    "changed": 1200,
    "created_at": "2026-01-05T09:00:00.000000Z",
    "finished_at": None,
    "error": "",
}
_BULK_ID = OpenApiParameter(
    "id", OpenApiTypes.UUID, OpenApiParameter.PATH, description="The `bulk_id` that beginning it answered."
)
begin_bulk = described(
    "timer_bulk_create",
    "Cancel, pause, resume, replay, dismiss or spread many",
    "All timers that fit the filter, which is the list's. It is done in the background, begun within seconds, and goes"
    " on whatever is restarted; look at `Location` for how far it has come. With `dry_run` it only counts. `dismiss`"
    " marks the dead letters of each as seen. `spread` is for very many timers that are due at one moment: each draws a"
    " moment of the time of `spread_seconds` that begins with the filter's `due_from`. Those that draw one before"
    " `due_to` stay as they are, the others are moved there, which is later and never earlier. It moves timers that are"
    " called once and wait for their first call; those that recur stay.",
    request=BulkSerializer,
    parameters=[
        IDEMPOTENCY_KEY,
        REPLAYED,
        OpenApiParameter(
            "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[202], description="Where the progress is."
        ),
    ],
    responses={
        202: OpenApiResponse(
            BulkStatusSerializer, "Begun.", examples=[OpenApiExample("Begun", value=_BULK, response_only=True)]
        ),
        **problem_answers(400, 403, 409, 411, 413, 415, 422, 503, 508),
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
        OpenApiExample(
            "Spread what is due in one second over ten minutes",
            value={
                "action": "spread",
                "filter": {"due_from": "2026-01-05T15:00:00Z", "due_to": "2026-01-05T15:00:01Z"},
                "spread_seconds": 600,
            },
            request_only=True,
        ),
    ],
)
retrieve_bulk = described(
    "timer_bulk_retrieve",
    "Look at a bulk operation",
    "`matched` counts the timers that fitted so far, `changed` those among them that were changed.",
    parameters=[_BULK_ID],
    responses={
        200: OpenApiResponse(
            BulkStatusSerializer, "Its progress.", examples=[OpenApiExample("Running", value=_BULK, response_only=True)]
        ),
        **problem_answers(404, 503),
    },
)
list_bulks = described(
    "timer_bulk_list",
    "List bulk operations",
    "The latest first, those that ended too, until they are pruned.",
    parameters=[PageSerializer],
    responses={
        200: OpenApiResponse(
            BulkListSerializer,
            "A page.",
            examples=[OpenApiExample("One", value={"operations": [_BULK], "next": None}, response_only=True)],
        ),
        **problem_answers(400, 503),
    },
)
stop_bulk = described(
    "timer_bulk_stop",
    "Stop a bulk operation",
    "For good, in the middle of its work. What it has changed stays changed: `changed` says how many timers. One that"
    " has ended stays as it is.",
    request=None,
    parameters=[_BULK_ID],
    responses={
        200: OpenApiResponse(
            BulkStatusSerializer,
            "The operation as it is now; its counts are final.",
            examples=[
                OpenApiExample(
                    "Stopped",
                    value=_BULK | {"status": "stopped", "finished_at": "2026-01-05T09:00:02.120011Z"},
                    response_only=True,
                )
            ],
        ),
        **problem_answers(*WRITING, 409),
    },
)


class BulksView(TimerAPIView):
    """`timer/bulk`: do something to all timers that fit a filter; list what was begun."""

    @list_bulks
    def get(self, request: Request) -> Response:
        values = validated(PageSerializer, request.query_params)
        rows = BulkOperation.objects.filter(**caller_of(request).visible())
        found, following = newest_first(request, rows, by="id", page=values)
        return Response({"operations": BulkStatusSerializer(found, many=True).data, "next": following})

    @begin_bulk
    def post(self, request: Request) -> Response:
        values = validated(BulkSerializer, request.data)
        if values["action"] in (BulkOperation.Action.REPLAY, BulkOperation.Action.SPREAD):
            refuse_called(request)

        # Stored as given, because each page of the operation reads it again; a URL's user-info is secret.
        stored = dict(cast("dict[str, Any]", request.data)["filter"])
        if "status" in stored:
            stored["status"] = values["filter"]["status"]
        if "url_prefix" in stored:
            stored["url_prefix"] = values["filter"]["url_prefix"]
        wanted = filter_of(values["filter"], caller=caller_of(request))
        if "owner" in stored:
            # By the id: an address may be another's before the operation ends.
            stored["owner"] = str(wanted.owner_id)

        def make() -> Response:
            caller = caller_of(request)
            operation = BulkOperation(
                owner_id=caller.owner_id,
                everyone=caller.sees_all,
                action=values["action"],
                filter=stored,
                dry_run=values["dry_run"],
                spread_seconds=values.get("spread_seconds"),
            )
            with answering_conflicts():
                services.begin_bulk(operation)
            location = f"{request.path.rstrip('/')}/{operation.pk}"
            return Response(as_json(BulkStatusSerializer(operation).data), status=202, headers={"Location": location})

        return do_once(request, make)


class BulkView(TimerAPIView):
    """`timer/bulk/<id>`: how far it has come."""

    @retrieve_bulk
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        return Response(BulkStatusSerializer(_of_caller(request, id)).data)


class BulkStopView(TimerAPIView):
    """`timer/bulk/<id>/stop`."""

    @stop_bulk
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        operation = _of_caller(request, id)
        validated(NothingSerializer, body_of(request))
        with answering_conflicts():
            operation = services.stop_bulk(operation.pk)
        return Response(BulkStatusSerializer(operation).data)


def _of_caller(request: Request, text: str) -> BulkOperation:
    """Return the caller's bulk operation with the id in a path. Raises NotFound."""
    try:
        found = BulkOperation.objects.filter(pk=timer_id_of(text), **caller_of(request).visible()).first()
    except exceptions.NotFound:
        found = None
    if found is None:
        raise exceptions.NotFound(_("There is no bulk operation with this id."))
    return found
