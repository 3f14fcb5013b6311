"""Creates one or many timers, lists them, shows one, edits and cancels it."""

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
)
from rest_framework import exceptions, parsers, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.access.keys import Holder
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api import cursors
from webtask_scheduler.scheduler.api.base import (
    DEPTH_MOST,
    JSONParser,
    TimerAPIView,
    answering_conflicts,
    answering_keys,
    caller_of,
    depth_of,
    kept_of,
    once_of,
    refuse_called,
    replayed,
    shown_timer,
    timer_id_of,
    timer_of_caller,
    validated,
)
from webtask_scheduler.scheduler.api.document import (
    EXAMPLE_SITE,
    IDEMPOTENCY_KEY,
    LOCATION,
    RECURRING_EXAMPLE,
    REPLAYED,
    SCHEDULED_EXAMPLE,
    SUCCEEDED_EXAMPLE,
    TASK_ID,
    WRITING,
    ProblemSerializer,
    described,
    problem_answers,
    timer_answer,
)
from webtask_scheduler.scheduler.api.fields import TextField
from webtask_scheduler.scheduler.api.filtering import ListSerializer, filter_of
from webtask_scheduler.scheduler.api.problems import (
    LoopDetected,
    PastDue,
    invalid,
)
from webtask_scheduler.scheduler.api.reading import (
    BATCH_MOST,
    DESCRIPTIVE,
    BatchSerializer,
    EditSerializer,
    NewTimerSerializer,
    edited,
    read_timer,
)
from webtask_scheduler.scheduler.api.schedules import WHEN_MISSING
from webtask_scheduler.scheduler.api.showing import (
    GIVEN,
    TimerSerializer,
    TimersSerializer,
    fitting,
    searched_body,
    show_timers,
    stored_bodies,
)
from webtask_scheduler.scheduler.models import (
    Timer,
)
from webtask_scheduler.scheduler.queue.states import database_now
from webtask_scheduler.scheduler.services import idempotency, quotas, search
from webtask_scheduler.wording import translated


class TimerFormSerializer(NewTimerSerializer):
    """A timer as a form: `web_url`, and when. Everything is taken that is no list or object."""

    form_example = {"web_url": f"{EXAMPLE_SITE}hook", "seconds": 5}
    labels = headers = success_statuses = retry = None  # type: ignore[assignment]  # as Django REST framework has it
    metadata = TextField(required=False, help_text="Any text, given back as it is.")  # type: ignore[assignment]
    body = TextField(required=False, help_text="Sent as it is.")  # type: ignore[assignment]


class TimerPartsSerializer(TimerFormSerializer):
    """A timer as a form in parts: `web_url`, and when. Everything is taken that is no list or object."""

    # By a name of its own, because generated clients choose the encoding by it.


TOO_LARGE = gettext_noop("The timers are large, and more of them would make the answer too long. Go on with `next`.")


class BatchStoredSerializer(serializers.Serializer[Any]):
    timers = TimerSerializer(many=True)


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
create_timer = described(
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
                OpenApiExample("In five seconds", value=SCHEDULED_EXAMPLE, response_only=True),
                OpenApiExample("Recurring", value=RECURRING_EXAMPLE, response_only=True),
            ],
        ),
        **problem_answers(400, 403, 409, 411, 413, 415, 422, 503, 508),
    },
    parameters=[IDEMPOTENCY_KEY, LOCATION, REPLAYED],
    examples=[
        OpenApiExample(
            "In five seconds",
            value={"web_url": "https://example.com/hook", "seconds": 5},
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
create_batch = described(
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
            examples=[
                OpenApiExample(
                    "Two timers", value={"timers": [SCHEDULED_EXAMPLE, SCHEDULED_EXAMPLE]}, response_only=True
                )
            ],
        ),
        200: OpenApiResponse(
            BatchResultsSerializer,
            "With `partial`: each item has either a `timer` or a `problem`.",
            examples=[
                OpenApiExample(
                    "One of two", value={"results": [{"timer": SCHEDULED_EXAMPLE}, _REFUSED]}, response_only=True
                )
            ],
        ),
        **problem_answers(400, 403, 409, 411, 413, 415, 422, 503, 508),
    },
    parameters=[IDEMPOTENCY_KEY, REPLAYED],
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
list_timers = described(
    "timer_list",
    "List timers",
    "The latest made first; asked for by status or due time, those that wait with the soonest first, then those that"
    " ended with the latest first. Go on with `cursor` while `next` is not null. A page is full, or the last one, or"
    " says in `searched` how far it was looked and why it ends there.",
    parameters=[ListSerializer],
    responses={
        200: OpenApiResponse(
            TimersSerializer,
            "A page.",
            examples=[
                OpenApiExample("One", value={"timers": [SCHEDULED_EXAMPLE], "next": None}, response_only=True),
                OpenApiExample(
                    "None so far, and how many there are",
                    value={
                        "timers": [],
                        "next": "Zx0pRk5V",
                        "searched": {
                            "timers": 341000,
                            "until": "2026-01-04T17:12:09.551283Z",
                            "why": "Few of the timers looked at so far fit. Go on with `next` to look further.",
                        },
                        "count": {"timers": 0, "more": True},
                    },
                    response_only=True,
                ),
            ],
        ),
        **problem_answers(400, 503),
    },
)
retrieve_timer = described(
    "timer_retrieve",
    "Look at a timer",
    "How long until it is called, what came of it, and why it has not been called if it has not.",
    parameters=[TASK_ID],
    responses={
        200: OpenApiResponse(
            TimerSerializer,
            "The timer.",
            examples=[
                OpenApiExample("Called", value=SUCCEEDED_EXAMPLE, response_only=True),
                OpenApiExample("Waiting", value=SCHEDULED_EXAMPLE, response_only=True),
            ],
        ),
        **problem_answers(404, 503),
    },
)
edit_timer = described(
    "timer_partial_update",
    "Edit or reschedule a timer",
    "A merge patch (RFC 7396) of what creating takes: fields that are left out stay, null takes one away, and `***`"
    " keeps the value that it stands for, if the URL goes on leading to the same scheme, host and port. Anything that"
    " says when promises another moment in place of the one that waits. A call in flight is not touched. Of a timer"
    " that has ended, name, labels and metadata can still be changed.",
    parameters=[TASK_ID],
    request=EditSerializer,
    responses={
        200: timer_answer("The timer as it is now.", "Moved", SCHEDULED_EXAMPLE),
        **problem_answers(*WRITING, 409, 422, 508),
    },
    examples=[
        OpenApiExample("In an hour instead", value={"hours": 1}, request_only=True),
        OpenApiExample(
            "Another URL, no labels", value={"web_url": "https://example.com/new", "labels": None}, request_only=True
        ),
    ],
)
cancel_timer = described(
    "timer_destroy",
    "Cancel a timer",
    "For good. Done twice it changes nothing, and a timer that has ended stays as it is. A call in flight may still"
    " land, and the answer's `reason` says so; no retry follows.",
    parameters=[TASK_ID],
    responses={
        200: timer_answer(
            "The timer as it is now.",
            "Cancelled",
            SCHEDULED_EXAMPLE
            | {
                "status": "cancelled",
                "next_attempt_at": None,
                "time_left_in_seconds": 0,
                "finished_at": "2026-01-05T09:00:02.120011Z",
                "reason": "It was cancelled.",
            },
        ),
        **problem_answers(403, 404, 503),
    },
)


class TimersView(TimerAPIView):
    """`timer`: create one, list them."""

    parser_classes: tuple[type[parsers.BaseParser], ...] = (
        JSONParser,
        parsers.FormParser,
        parsers.MultiPartParser,
    )

    @create_timer
    def post(self, request: Request) -> Response:
        data = request.data

        def read() -> list[services.NewTimer]:
            # A form's numbers are text, which its own serializer allows for.
            return [validated(NewTimerSerializer, _filled(data)) if isinstance(data, QueryDict) else read_timer(data)]

        def answer(bodies: list[dict[str, Any]]) -> Response:
            (body,) = bodies
            return Response(body, status=201, headers={"Location": f"{request.path.rstrip('/')}/{body['task_id']}"})

        return _create(request, read, answer)

    @list_timers
    def get(self, request: Request) -> Response:
        values = validated(ListSerializer, request.query_params)
        caller = caller_of(request)
        wanted = filter_of(values, caller=caller)
        place = cursors.unseal(values.get("cursor", ""), request=request, caller=caller)
        fields = values.get("fields", ())
        body: dict[str, Any] = {"timers": [], "next": None}
        try:
            page = search.page(wanted, cursor=place, limit=values["limit"], seconds=search.LOOK_SECONDS)
        except search.CursorError as error:
            raise exceptions.ValidationError({"cursor": [translated(error)]}) from error
        if not fields or not GIVEN.isdisjoint(fields) or "attempts" in fields:
            limit = fitting(page.timer_ids, most_bytes=settings.WEBTASK_LIMIT_ANSWER_BYTES)
            if limit < len(page.timer_ids):
                # A shorter page, with the cursor of its end.
                page = search.page(wanted, cursor=place, limit=limit, seconds=search.LOOK_SECONDS)
                if page.next and page.looked is None:
                    body["searched"] = {"timers": limit, "why": _(TOO_LARGE)}
        if page.looked is not None:
            body["searched"] = searched_body(page.looked)
        if values["count"]:
            body["count"] = search.count(wanted)._asdict()
        body["next"] = cursors.seal(page.next, request=request, caller=caller)
        body["timers"] = show_timers(page.timer_ids, fields)
        return Response(body)


def _filled(form: QueryDict) -> QueryDict:
    """Return a form without the fields that were left empty, which a browser sends too."""
    filled = form.copy()
    for name in map(str, NewTimerSerializer().fields):
        if not any(form.getlist(name)):
            filled.pop(name, None)
    return filled


class BatchView(TimerAPIView):
    """`timer/batch`: create up to a thousand."""

    @create_batch
    def post(self, request: Request) -> Response:
        items, partial = _batch(request.data)

        wrong: dict[int, exceptions.APIException] = {}

        def read() -> list[services.NewTimer]:
            found = [_read_item(item) for item in items]
            wrong.update({index: one for index, one in enumerate(found) if isinstance(one, exceptions.APIException)})
            if wrong and not partial:
                # As many as a person reads; the next try reports the rest.
                details = {f"timers.{index}": error.detail for index, error in list(wrong.items())[:20]}
                if all(isinstance(error, PastDue) for error in wrong.values()):
                    raise PastDue(details)
                raise exceptions.ValidationError(details)
            return [one for one in found if isinstance(one, services.NewTimer)]

        def answer(bodies: list[dict[str, Any]]) -> Response:
            if not partial:
                return Response({"timers": bodies}, status=201)
            made = iter(bodies)
            results = [
                {"problem": invalid(wrong[index].detail, status=wrong[index].status_code)}
                if index in wrong
                else {"timer": next(made)}
                for index in range(len(items))
            ]
            return Response({"results": results}, status=200)

        return _create(request, read, answer)


def _batch(data: Any) -> tuple[list[Any], bool]:
    """Return the items of a batch and whether some may fail. Raises ValidationError."""
    if not isinstance(data, dict):
        raise exceptions.ValidationError(_("A JSON object is required, with a list of timers in `timers`."))
    errors = {ascii(name)[1:101].rstrip("'"): _("Unknown field.") for name in data if name not in ("timers", "partial")}
    items, partial = data.get("timers"), data.get("partial", False)
    if not isinstance(items, list) or not 1 <= len(items) <= BATCH_MOST:
        errors["timers"] = _("A list of 1 to %(most)s timers is required.") % {"most": BATCH_MOST}
    if not isinstance(partial, bool):
        errors["partial"] = _("Must be true or false.")
    if errors:
        raise exceptions.ValidationError(errors)
    return items or [], partial


def _create(
    request: Request,
    read: Callable[[], list[services.NewTimer]],
    answer: Callable[[list[dict[str, Any]]], Response],
) -> Response:
    """Store the timers that `read` returns, all or none, and return `answer` of them in the API's form.

    With an Idempotency-Key that is done once. The answer is stored with the timers, so it is made before them, from the
    database's time that the look-up of the API key returned.
    """
    once = once_of(request)
    if once is None:
        with answering_conflicts():
            timers = _allowed(request, read())
            return answer(stored_bodies(services.schedule(timers), timers))
    with answering_keys():
        try:
            with answering_conflicts():
                timers = _allowed(request, read())
                plan = services.Plan(timers, now=_now(request))
                response = answer(stored_bodies(plan.scheduled(), timers))
                known = services.schedule_once(plan, once=once, answer=kept_of(response))
        except exceptions.APIException:
            # What is refused by now may have been done before.
            known = idempotency.recall(once)
            if known is None:
                raise
    return response if known is None else replayed(known)


def _now(request: Request) -> datetime:
    """Return the database's time, as it was when the request's key was looked up if it has one."""
    return request.auth.found_at if isinstance(request.auth, Holder) else database_now()


def _allowed(request: Request, timers: list[services.NewTimer]) -> list[services.NewTimer]:
    """Return new timers as the caller's own, with room reserved for them. Raises LoopDetected, QuotaError."""
    owner_id, depth = caller_of(request).owner_id, depth_of(request)
    if owner_id is not None:
        timers = [dataclasses.replace(timer, owner_id=owner_id) for timer in timers]
    if depth > DEPTH_MOST:
        raise LoopDetected
    if depth:
        timers = [dataclasses.replace(timer, options={**timer.options, "depth": depth}) for timer in timers]
    quotas.reserve(timers, owner_id=owner_id)
    return timers


def _read_item(item: Any) -> services.NewTimer | exceptions.APIException:
    """Return a timer of a batch, or what is wrong with it."""
    try:
        return read_timer(item)
    except (exceptions.ValidationError, PastDue) as error:
        return error


class TimerView(TimerAPIView):
    """`timer/<id>`: look at one, change it, cancel it."""

    @retrieve_timer
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the name in the path and the schema
        return Response(shown_timer(request, timer_id_of(id)))

    @edit_timer
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        patch = request.data
        if not isinstance(patch, dict):
            raise exceptions.ValidationError(_("A JSON object is required, with the fields to change."))

        def change(locked: Timer) -> tuple[services.NewTimer, bool]:
            new, reschedule = edited(locked, patch)
            if reschedule:
                refuse_called(request)
                quotas.reserve_edit(locked, new)
            return new, reschedule

        with answering_conflicts():
            services.edit(timer.pk, change, descriptive_only=patch.keys() <= DESCRIPTIVE)
        return Response(shown_timer(request, timer.pk))

    @cancel_timer
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        with answering_conflicts():
            services.cancel(timer.pk)
        return Response(shown_timer(request, timer.pk))
