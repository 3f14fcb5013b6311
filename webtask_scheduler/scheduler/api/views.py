"""The API: create timers, look at them, change them; and whether the service is alive and ready."""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from rest_framework import exceptions, parsers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils import json as strict_json
from rest_framework.views import APIView

from config.database.base import wait_at_most
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.services import idempotency
from webtask_scheduler.scheduler.api import document as schema
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.models import (
    KEY_MAX_LENGTH,
    Attempt,
    BulkOperation,
    ClockTimestamp,
    Delivery,
    SigningSecret,
    Timer,
)
from webtask_scheduler.scheduler.api.problems import (
    Conflict,
    KeyReused,
    LengthRequired,
    LoopDetected,
    NotUTF8,
    PastDue,
    TooLarge,
    invalid,
)
from webtask_scheduler.scheduler.api.serializers import (
    BATCH_MOST,
    HARMLESS,
    BulkSerializer,
    BulkStatusSerializer,
    CallSerializer,
    DeliverySerializer,
    ListSerializer,
    MadeSecretSerializer,
    NewSecretSerializer,
    NewTimerSerializer,
    NothingSerializer,
    PageSerializer,
    PreviewSerializer,
    ReplaySerializer,
    SecretSerializer,
    edited,
    previewed,
    read_timer,
    stored_body,
    timer_body,
)

# How long a probe waits for the database: with the broker's own limit, less than the 5 s that probes are given.
PROBE_SECONDS = 2.5


class JSONParser(parsers.JSONParser):
    """JSON in UTF-8 whose depth Python's own parser bounds."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:  # noqa: ARG002
        try:
            # With or without a byte order mark, as some editors write one.
            data = strict_json.loads(stream.read().decode("utf-8-sig"), parse_int=_integer)
        except RecursionError as error:
            raise exceptions.ParseError("JSON parse error - nested too deeply.") from error
        except ValueError as error:
            raise exceptions.ParseError(f"JSON parse error - {error}") from error
        if _is_deep(data):
            # Whoever writes it out again, here or in the worker, does so from a deeper stack than the parser's.
            raise exceptions.ParseError("JSON parse error - nested too deeply.")
        return data


# Of lists and objects in each other; what a person or a program writes has ten or twenty.
JSON_DEPTH_MOST = 100
# Digits that Python turns into a number and back.
INTEGER_DIGITS_MOST = 4000


def _integer(digits: str) -> float:
    """Return an integer; infinity for one that Python refuses to read, and so does its field, by name."""
    return int(digits) if len(digits) <= INTEGER_DIGITS_MOST else math.inf


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(JSON_DEPTH_MOST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [one for one in value.values() if isinstance(one, dict | list)]
            elif isinstance(value, list):
                inner += [one for one in value if isinstance(one, dict | list)]
        if not inner:
            return False
        level = inner
    return True


class JSONOnly(DefaultContentNegotiation):
    """Answers are JSON, whatever `Accept` or a `format` in the query asks for: there is nothing else to give."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:  # noqa: ARG002
        return renderers[0], renderers[0].media_type


class TimerAPIView(APIView):
    """What all views of timers have in common: JSON, bounded bodies, and whose timers these are."""

    parser_classes: tuple[type[parsers.BaseParser], ...] = (JSONParser,)
    content_negotiation_class = JSONOnly
    body_limit_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if request.method in ("POST", "PATCH"):
            _check_body(request, limit=self.body_limit_bytes)
        super().initial(request, *args, **kwargs)


def _owner(request: Request) -> int | None:
    return request.user.pk if request.user.is_authenticated else None


def _visible(request: Request, path: str = "") -> dict[str, Any]:
    """Return the condition, as seen over `path`, that a timer is the caller's; a superuser sees all."""
    if getattr(request.user, "is_superuser", False):
        return {}
    owner_id = _owner(request)
    return {f"{path}owner__isnull": True} if owner_id is None else {f"{path}owner": owner_id}


def _read(serializer: type[Any], data: Any) -> Any:
    """Return what a serializer makes of a body or a query. Raises ValidationError."""
    reader = serializer(data=data)
    reader.is_valid(raise_exception=True)
    return reader.validated_data


# A body is empty or an object; a form without fields reads as an empty body.
def _object(request: Request) -> Any:
    return request.data if request.body else {}


class TimersView(TimerAPIView):
    """`timer`: create one, list them."""

    parser_classes: tuple[type[parsers.BaseParser], ...] = (
        JSONParser,
        parsers.FormParser,
        parsers.MultiPartParser,
    )

    @schema.create_timer
    def post(self, request: Request) -> Response:
        data = request.data

        def make() -> Response:
            # A form's numbers are text, which its own serializer allows for.
            timer = _read(NewTimerSerializer, data) if isinstance(data, QueryDict) else read_timer(data)
            (body,) = _store(request, [timer])
            return Response(body, status=201, headers={"Location": f"{request.path.rstrip('/')}/{body['task_id']}"})

        return _once(request, make)

    @schema.list_timers
    def get(self, request: Request) -> Response:
        values = _read(ListSerializer, request.query_params)
        everyone = getattr(request.user, "is_superuser", False)
        wanted = search.filter_of(values, owner_id=_owner(request), everyone=everyone)
        try:
            page = search.page(wanted, cursor=values.get("cursor", ""), limit=values["limit"])
        except search.CursorError as error:
            raise exceptions.ValidationError({"cursor": [str(error)]}) from error
        return Response({"timers": _shown_timers(page.timer_ids), "next": page.next})


class BatchView(TimerAPIView):
    """`timer/batch`: create up to a thousand."""

    @schema.create_batch
    def post(self, request: Request) -> Response:
        items, partial = _batch(request.data)

        def make() -> Response:
            read = [_read_item(item) for item in items]
            wrong = {f"timers.{index}": error for index, (_, error) in enumerate(read) if error is not None}
            if wrong and not partial:
                # As many as a person reads; the rest comes with the next try.
                details = {name: error.detail for name, error in list(wrong.items())[:20]}
                if all(isinstance(error, PastDue) for error in wrong.values()):
                    raise PastDue(details)
                raise exceptions.ValidationError(details)
            made = iter(_store(request, [timer for timer, _ in read if timer is not None]))
            if not partial:
                return Response({"timers": list(made)}, status=201)
            results = [
                {"timer": next(made)} if error is None else {"problem": invalid(error.detail, status=error.status_code)}
                for _, error in read
            ]
            return Response({"results": results}, status=200)

        return _once(request, make)


def _batch(data: Any) -> tuple[list[Any], bool]:
    """Return the items of a batch and whether some may fail. Raises ValidationError."""
    if not isinstance(data, dict):
        raise exceptions.ValidationError("A JSON object is required, with a list of timers in `timers`.")
    errors = {ascii(name)[1:101].rstrip("'"): "Unknown field." for name in data if name not in ("timers", "partial")}
    items, partial = data.get("timers"), data.get("partial", False)
    if not isinstance(items, list) or not 1 <= len(items) <= BATCH_MOST:
        errors["timers"] = f"A list of 1 to {BATCH_MOST} timers is required."
    if not isinstance(partial, bool):
        errors["partial"] = "Must be true or false."
    if errors:
        raise exceptions.ValidationError(errors)
    return items or [], partial


def _store(request: Request, timers: list[services.NewTimer]) -> list[dict[str, Any]]:
    """Store timers, all or none, and return what the API shows of them."""
    owner_id = _owner(request)
    if owner_id is not None:
        timers = [dataclasses.replace(timer, owner_id=owner_id) for timer in timers]
    depth = _depth(request)
    if depth > DEPTH_MOST:
        raise LoopDetected
    if depth:
        timers = [dataclasses.replace(timer, options={**timer.options, "depth": depth}) for timer in timers]
    with _conflicts():
        stored = services.schedule(timers)
    return [stored_body(one, timer) for one, timer in zip(stored, timers, strict=True)]


def _read_item(item: Any) -> tuple[services.NewTimer | None, exceptions.APIException | None]:
    """Return a timer of a batch, or None and what is wrong with it."""
    try:
        return read_timer(item), None
    except (exceptions.ValidationError, PastDue) as error:
        return None, error


# How deep timers may make timers. One: what a call of this service leads to may make timers, and their calls may not.
DEPTH_MOST = 1


def _depth(request: Request) -> int:
    """Return how many calls of this service, one led to by the other, led to this request.

    As CDN-Loop (RFC 8586): each call carries a header that no timer may set, and whoever reacts to a call by asking
    this service again is expected to pass it on. A call of a timer that was made so carries its depth, too.
    """
    if not request.headers.keys() & {"Webtask-Timer-Id", "Webtask-Depth"}:
        return 0
    depth = request.headers.get("Webtask-Depth", "0")
    return 1 + int(depth) if re.fullmatch(r"[0-9]{1,4}", depth) else 1 + DEPTH_MOST


def _refuse_called(request: Request) -> None:
    """Refuse what would call again, in a request that a call led to. Raises LoopDetected.

    A run or a replay has no timer of its own that could carry how deep it is, so none is allowed.
    """
    if _depth(request):
        raise LoopDetected("A call of this service led to this request, and it would lead to another: a loop.")


_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_MAX_LENGTH}}}")


def _once(request: Request, make: Callable[[], Response]) -> Response:
    """Do what a creating request asks, or answer as before where its Idempotency-Key was used for the same request."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return make()
    if not _KEY.fullmatch(key):
        message = f"1 to {KEY_MAX_LENGTH} visible ASCII characters are required."
        raise exceptions.ValidationError({"Idempotency-Key": [message]})
    # The short name and the versioned one are the same address.
    path = request.path.rstrip("/").removeprefix("/api/v1/scheduler")
    kind = (request.content_type or "").partition(";")[0]
    fingerprint = hashlib.sha256("\n".join([request.method or "", path, kind, ""]).encode() + request.body).digest()
    owner_id = _owner(request)
    while True:
        try:
            with transaction.atomic():
                known = idempotency.recall(key, owner_id=owner_id, fingerprint=fingerprint)
                if known is not None:
                    headers = known.headers | {"Idempotency-Replayed": "true"}
                    return Response(json.loads(known.body), status=known.status_code, headers=headers)
                response = make()
                kept = {name: response.headers[name] for name in ("Location",) if name in response.headers}
                answer = idempotency.Answer(response.status_code, kept, json.dumps(response.data))
                idempotency.remember(key, answer, owner_id=owner_id, fingerprint=fingerprint)
                return response
        except idempotency.KeyInFlightError as error:
            raise Conflict("A request with this Idempotency-Key is being worked on. Try again in a moment.") from error
        except idempotency.KeyReusedError as error:
            raise KeyReused from error
        except idempotency.KeyTakenError:
            # Rolled back: the request that was first has ended meanwhile, and its answer is there.
            continue


def _check_body(request: Request, *, limit: int) -> None:
    """Make sure that the body is of known and bounded length, whole, and UTF-8, before any parser sees it."""
    length = request.META.get("CONTENT_LENGTH")
    if not length and "HTTP_TRANSFER_ENCODING" in request.META:
        raise LengthRequired
    try:
        promised = int(length or 0)
    except ValueError as error:
        raise exceptions.ParseError("The Content-Length is not a number.") from error
    if promised > limit:
        raise TooLarge(f"The request's body is larger than {limit} bytes.")
    # A client that died while sending may leave half a number or half a URL behind.
    if len(request.body) != promised:
        raise exceptions.ParseError("The body is shorter or longer than its Content-Length.")
    # Python knows charsets that unpack, or take minutes to decode what fits the limit.
    charset = (request.content_params or {}).get("charset", "utf-8").strip("\"' ").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise NotUTF8


def _shown_timers(timer_ids: Sequence[uuid.UUID]) -> list[dict[str, Any]]:
    """Return timers as the API shows them, in the same order: three queries for any number."""
    timers = Timer.objects.in_bulk(timer_ids)
    promised = Delivery.objects.promised().filter(timer__in=timer_ids).annotate(now=ClockTimestamp())
    latest = {one.timer_id: one for one in promised.order_by("timer", "-occurrence").distinct("timer")}
    attempts: dict[uuid.UUID, list[Attempt]] = {}
    tried = [one.pk for one in latest.values() if one.attempts]
    for attempt in Attempt.objects.filter(delivery__in=tried).defer("excerpt").order_by("delivery", "number"):
        attempts.setdefault(attempt.delivery_id, []).append(attempt)
    return [
        timer_body(timers[pk], latest[pk], now=latest[pk].now, attempts=attempts.get(latest[pk].pk, []))  # type: ignore[attr-defined]  # the annotation above
        for pk in timer_ids
        # Pruned in between.
        if pk in timers and pk in latest
    ]


def _shown_timer(request: Request, timer_id: uuid.UUID) -> dict[str, Any]:
    """Return one timer as the API shows it. Raises NotFound."""
    delivery = (
        Delivery.objects.promised()
        .filter(timer=timer_id, **_visible(request, "timer__"))
        .select_related("timer")
        .annotate(now=ClockTimestamp())
        .order_by("-occurrence")
        .first()
    )
    if delivery is None:
        raise exceptions.NotFound(NO_TIMER)
    attempts = list(Attempt.objects.filter(delivery=delivery).order_by("number")) if delivery.attempts else []
    return timer_body(delivery.timer, delivery, now=delivery.now, attempts=attempts)  # type: ignore[attr-defined]


def _own_timer(request: Request, text: str) -> Timer:
    """Return the caller's timer of an id in a path. Raises NotFound."""
    timer = Timer.objects.filter(pk=_timer_id(text), **_visible(request)).first()
    if timer is None:
        raise exceptions.NotFound(NO_TIMER)
    return timer


class TimerView(TimerAPIView):
    """`timer/<id>`: look at one, change it, cancel it."""

    @schema.retrieve_timer
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the name in the path and the schema
        return Response(_shown_timer(request, _timer_id(id)))

    @schema.edit_timer
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        patch = request.data
        if not isinstance(patch, dict):
            raise exceptions.ValidationError("A JSON object is required, with the fields to change.")

        def change(locked: Timer) -> tuple[services.NewTimer, bool]:
            new, reschedule = edited(locked, patch)
            if reschedule:
                _refuse_called(request)
            return new, reschedule

        with _conflicts():
            services.edit(timer.pk, change, descriptive_only=patch.keys() <= HARMLESS)
        return Response(_shown_timer(request, timer.pk))

    @schema.cancel_timer
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        with _conflicts():
            services.cancel(timer.pk)
        return Response(_shown_timer(request, timer.pk))


@contextlib.contextmanager
def _conflicts() -> Iterator[None]:
    """Answer 409 to what cannot be done to a timer as it is."""
    try:
        yield
    except (services.TimerEndedError, services.NothingToReplayError, services.TooManyRunsError) as error:
        raise Conflict(error.messages[0]) from error
    except services.NothingPromisedError as error:
        raise exceptions.ValidationError(error.messages) from error
    except Timer.DoesNotExist as error:
        # Pruned since it was looked up.
        raise exceptions.NotFound(NO_TIMER) from error


class PauseView(TimerAPIView):
    """`timer/<id>/pause`."""

    @schema.pause_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        _read(NothingSerializer, _object(request))
        with _conflicts():
            services.pause(timer.pk)
        return Response(_shown_timer(request, timer.pk))


class ResumeView(TimerAPIView):
    """`timer/<id>/resume`."""

    @schema.resume_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        _read(NothingSerializer, _object(request))
        with _conflicts():
            services.resume(timer.pk)
        return Response(_shown_timer(request, timer.pk))


class RunView(TimerAPIView):
    """`timer/<id>/run`."""

    @schema.run_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        _read(NothingSerializer, _object(request))

        _refuse_called(request)

        def make() -> Response:
            with _conflicts():
                delivery_id = services.run_now(timer.pk)
            return Response(_json(DeliverySerializer(Delivery.objects.get(pk=delivery_id)).data), status=201)

        return _once(request, make)


class ReplayView(TimerAPIView):
    """`timer/<id>/replay`."""

    @schema.replay_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        values = _read(ReplaySerializer, _object(request))
        _refuse_called(request)

        def make() -> Response:
            with _conflicts():
                delivery_id = services.replay(timer.pk, delivery_id=values.get("delivery_id"))
            return Response(_json(DeliverySerializer(Delivery.objects.get(pk=delivery_id)).data), status=200)

        return _once(request, make)


def _json(data: Any) -> Any:
    """Return what a serializer made as plain JSON, as it is kept for an idempotency key."""
    return json.loads(JSONRenderer().render(data))


class DeliveriesView(TimerAPIView):
    """`timer/<id>/deliveries`: all of them, the latest first."""

    @schema.list_deliveries
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        values = _read(PageSerializer, request.query_params)
        rows = Delivery.objects.filter(timer=timer.pk).order_by("-occurrence")
        before = _number(values.get("cursor", ""))
        if before is not None:
            rows = rows.filter(occurrence__lt=before)
        found = list(rows[: values["limit"] + 1])
        more = len(found) > values["limit"]
        found = found[: values["limit"]]
        body = {"deliveries": DeliverySerializer(found, many=True).data}
        return Response(body | {"next": str(found[-1].occurrence) if more else None})


class AttemptsView(TimerAPIView):
    """`timer/<id>/attempts`: every call made for a timer, the latest first."""

    @schema.list_attempts
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = _own_timer(request, id)
        values = _read(PageSerializer, request.query_params)
        rows = Attempt.objects.filter(delivery__timer=timer.pk).order_by("-id")
        before = _number(values.get("cursor", ""))
        if before is not None:
            rows = rows.filter(id__lt=before)
        found = list(rows[: values["limit"] + 1])
        more = len(found) > values["limit"]
        found = found[: values["limit"]]
        body = {"attempts": CallSerializer(found, many=True).data}
        return Response(body | {"next": str(found[-1].pk) if more else None})


def _number(cursor: str) -> int | None:
    """Return the number in a cursor, None for the beginning. Raises ValidationError."""
    if not cursor:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", cursor):
        raise exceptions.ValidationError({"cursor": ["This cursor was not given by this list."]})
    return int(cursor)


class PreviewView(TimerAPIView):
    """`timer/preview`: the next moments of a schedule."""

    @schema.preview
    def post(self, request: Request) -> Response:
        reader = PreviewSerializer(data=request.data)
        reader.is_valid(raise_exception=True)
        return Response(previewed(reader))


class BulksView(TimerAPIView):
    """`timer/bulk`: do something to all timers that fit a filter."""

    @schema.begin_bulk
    def post(self, request: Request) -> Response:
        values = _read(BulkSerializer, request.data)
        if values["action"] == BulkOperation.Action.REPLAY:
            _refuse_called(request)

        def make() -> Response:
            operation = BulkOperation(
                owner_id=_owner(request),
                action=values["action"],
                # As given: it is read again when it is worked on.
                filter=cast("dict[str, Any]", request.data)["filter"],
                dry_run=values["dry_run"],
            )
            services.begin_bulk(operation)
            location = f"{request.path.rstrip('/')}/{operation.pk}"
            return Response(_json(BulkStatusSerializer(operation).data), status=202, headers={"Location": location})

        return _once(request, make)


class BulkView(TimerAPIView):
    """`timer/bulk/<id>`: how far it has come."""

    @schema.retrieve_bulk
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        operation = BulkOperation.objects.filter(pk=_timer_id(id), **_visible(request)).first()
        if operation is None:
            raise exceptions.NotFound("There is no bulk operation with this id.")
        return Response(BulkStatusSerializer(operation).data)


class SecretsView(TimerAPIView):
    """`signing-secret`: add one, list them."""

    @schema.list_secrets
    def get(self, request: Request) -> Response:
        secrets = SigningSecret.objects.filter(**_own(request)).order_by("pk")
        return Response({"secrets": SecretSerializer(secrets, many=True).data})

    @schema.create_secret
    def post(self, request: Request) -> Response:
        values = _read(NewSecretSerializer, _object(request))
        secret = services.add_secret(values.get("secret"), owner_id=_owner(request))
        if secret is None:
            raise Conflict(f"There are {services.SECRETS_MOST} signing secrets already. Delete one that is out of use.")
        return Response(MadeSecretSerializer(secret).data, status=201)


class SecretView(TimerAPIView):
    """`signing-secret/<id>`: sign with it no longer."""

    @schema.delete_secret
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002
        gone = 0
        if re.fullmatch(r"[0-9]{1,18}", id):
            gone, _ = SigningSecret.objects.filter(pk=int(id), **_own(request)).delete()
        if not gone:
            raise exceptions.NotFound("There is no signing secret with this id.")
        return Response(status=204)


def _own(request: Request) -> dict[str, Any]:
    """Return the condition that a row is the caller's own, superuser or not."""
    owner_id = _owner(request)
    return {"owner__isnull": True} if owner_id is None else {"owner": owner_id}


NO_TIMER = "There is no timer with this id. The id is the `task_id` that creating it answered."


def _timer_id(text: str) -> uuid.UUID:
    """Return the id in a path. Raises NotFound: a malformed one names no timer either."""
    try:
        found = uuid.UUID(text)
    except ValueError as error:
        raise exceptions.NotFound(NO_TIMER) from error
    if str(found) != text.lower():
        # Python reads braces, a prefix, no hyphens or hyphens anywhere; an address has one spelling.
        raise exceptions.NotFound(NO_TIMER)
    return found


@csrf_exempt
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 while this process lives."""
    return JsonResponse({"status": "ok"})


@csrf_exempt
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 when timers can be created and will be called, else 503; the body says what is missing.

    It is for monitoring and for a start that waits for the service. While all calls are stopped it answers 503: no
    timer will be called. A load balancer asks `/healthz`, or a stop would take the API and the admin away as well.
    """
    parts = ("database", "migrations", "beat", "worker", "calls")
    checks = dict.fromkeys(parts, "ok") | {"broker": facts.broker_trouble(at_once=True) or "ok"}
    body: dict[str, Any] = {}
    try:
        with wait_at_most(PROBE_SECONDS):
            if _migrated():
                found = facts.gather(at_once=True)
                checks["beat"] = found.beat_trouble or "ok"
                checks["worker"] = found.worker_trouble or "ok"
                checks["calls"] = "calls are stopped" if found.all_stopped else "ok"
                body["backlog"] = {"overdue": found.overdue, "oldest_seconds": round(found.overdue_seconds, 1)}
            else:
                checks["migrations"] = "not applied: run manage.py migrate"
                checks |= dict.fromkeys(parts[2:], "not known before migrations are applied")
    except (DatabaseError, InterfaceError):
        connection.close()
        checks |= dict.fromkeys(parts, "the database does not answer")
    ready = set(checks.values()) == {"ok"}
    body = {"status": "ok" if ready else "unavailable", "checks": checks} | body
    return HttpResponse(json.dumps(body), content_type="application/json", status=200 if ready else 503)


_seen_migrated = False


def _migrated() -> bool:
    """Return whether every migration is applied; true once, it stays so for this process's code."""
    global _seen_migrated  # noqa: PLW0603 - looking is slow, and the answer does not change back
    if not _seen_migrated:
        executor = MigrationExecutor(connection)
        _seen_migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _seen_migrated
