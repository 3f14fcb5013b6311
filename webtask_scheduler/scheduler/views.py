"""The API: create a timer, look at it; and whether the service is alive and ready."""

import functools
import json
import uuid
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from rest_framework import exceptions, parsers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils import json as strict_json
from rest_framework.views import APIView

from webtask_scheduler.scheduler import schema, services
from webtask_scheduler.scheduler.models import Attempt, Beat, ClockTimestamp, Delivery
from webtask_scheduler.scheduler.problems import LengthRequired, NotUTF8, TooLarge, invalid
from webtask_scheduler.scheduler.serializers import BATCH_MOST, NewTimerSerializer, read_timer, stored_body, timer_body

# A beat that was not seen for this long is taken for gone.
BEAT_SEEN_SECONDS = 5.0
BROKER_TIMEOUT_SECONDS = 2.0


class JSONParser(parsers.JSONParser):
    """JSON in UTF-8 whose depth Python's own parser bounds."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:  # noqa: ARG002
        try:
            # With or without a byte order mark, as some editors write one.
            return strict_json.loads(stream.read().decode("utf-8-sig"), parse_int=_integer)
        except RecursionError as error:
            raise exceptions.ParseError("JSON parse error - nested too deeply.") from error
        except ValueError as error:
            raise exceptions.ParseError(f"JSON parse error - {error}") from error


def _integer(digits: str) -> int:
    """Return an integer that no field allows for one that Python refuses to read: its field says so, by name."""
    return int(digits[:30])


class JSONOnly(DefaultContentNegotiation):
    """Answers are JSON, whatever `Accept` or a `format` in the query asks for: there is nothing else to give."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:  # noqa: ARG002
        return renderers[0], renderers[0].media_type


class TimersView(APIView):
    """`timer`: create one."""

    parser_classes: tuple[type[parsers.BaseParser], ...] = (
        JSONParser,
        parsers.FormParser,
        parsers.MultiPartParser,
    )
    content_negotiation_class = JSONOnly
    body_limit_bytes = 64 * 1024

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if request.method == "POST":
            _check_body(request, limit=self.body_limit_bytes)
        super().initial(request, *args, **kwargs)

    @schema.create_timer
    def post(self, request: Request) -> Response:
        if isinstance(request.data, QueryDict):
            # A form's numbers are text, which its own serializer allows for.
            form = NewTimerSerializer(data=request.data)
            form.is_valid(raise_exception=True)
            values = form.validated_data
        else:
            values = read_timer(request.data)
        (body,) = _store(request, [values])
        location = f"{request.path.rstrip('/')}/{body['task_id']}"
        return Response(body, status=201, headers={"Location": location})


class BatchView(TimersView):
    """`timer/batch`: create up to a thousand."""

    parser_classes = (JSONParser,)
    body_limit_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    @schema.create_batch
    def post(self, request: Request) -> Response:
        items, partial = _batch(request.data)
        read = [_read_item(item) for item in items]
        if not partial:
            wrong = {f"timers.{index}": detail for index, (_, detail) in enumerate(read) if detail is not None}
            if wrong:
                # As many as a person reads; the rest comes with the next try.
                raise exceptions.ValidationError(dict(list(wrong.items())[:20]))
        made = iter(_store(request, [values for values, _ in read if values is not None]))
        if not partial:
            return Response({"timers": list(made)}, status=201)
        results = [
            {"timer": next(made)} if values is not None else {"problem": invalid(detail)} for values, detail in read
        ]
        return Response({"results": results}, status=200)


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


def _store(request: Request, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Store timers, all or none, and return what the API shows of them."""
    owner_id = request.user.pk if request.user.is_authenticated else None
    stored = services.schedule([services.NewTimer(owner_id=owner_id, **values) for values in wanted])
    return [stored_body(one, web_url=values["web_url"]) for one, values in zip(stored, wanted, strict=True)]


def _read_item(item: Any) -> tuple[dict[str, Any] | None, Any]:
    """Return the values of a timer of a batch, or None and the details of what is wrong with it."""
    try:
        return read_timer(item), None
    except exceptions.ValidationError as error:
        return None, error.detail


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


class TimerView(APIView):
    """`timer/<id>`: look at one."""

    content_negotiation_class = JSONOnly

    @schema.retrieve_timer
    def get(self, request: Request, id: str) -> Response:  # noqa: A002, ARG002 - the name in the path and the schema
        delivery = (
            Delivery.objects.promised()
            .filter(timer=_timer_id(id))
            .select_related("timer")
            .annotate(now=ClockTimestamp())
            .order_by("-occurrence")
            .first()
        )
        if delivery is None:
            raise exceptions.NotFound(NO_TIMER)
        attempts = list(Attempt.objects.filter(delivery=delivery).order_by("number")) if delivery.attempts else []
        timer, now = delivery.timer, delivery.now  # type: ignore[attr-defined]  # the annotation above
        return Response(
            timer_body(delivery, web_url=timer.web_url, created_at=timer.created_at, now=now, attempts=attempts)
        )


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
    """Answer 200 when timers can be created and will be called, else 503; the body says what is missing."""
    checks = {"database": "ok", "migrations": "ok", "beat": "ok", "broker": _broker()}
    try:
        if _migrated():
            checks["beat"] = _beat()
        else:
            checks["migrations"] = "not applied: run manage.py migrate"
            checks["beat"] = "not known before migrations are applied"
    except (DatabaseError, InterfaceError):
        connection.close()
        checks |= dict.fromkeys(("database", "migrations", "beat"), "the database does not answer")
    ready = set(checks.values()) == {"ok"}
    body = {"status": "ok" if ready else "unavailable", "checks": checks}
    return HttpResponse(json.dumps(body), content_type="application/json", status=200 if ready else 503)


_seen_migrated = False


def _migrated() -> bool:
    """Return whether every migration is applied; true once, it stays so for this process's code."""
    global _seen_migrated  # noqa: PLW0603 - looking is slow, and the answer does not change back
    if not _seen_migrated:
        executor = MigrationExecutor(connection)
        _seen_migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _seen_migrated


def _beat() -> str:
    age = Beat.objects.annotate(age=ClockTimestamp()).order_by("-seen_at").values_list("age", "seen_at").first()
    if age is None:
        return "no beat was ever seen"
    seconds = (age[0] - age[1]).total_seconds()
    return "ok" if seconds <= BEAT_SEEN_SECONDS else f"no beat was seen for {seconds:.0f} s"


@functools.cache
def _broker_client() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=BROKER_TIMEOUT_SECONDS, socket_connect_timeout=BROKER_TIMEOUT_SECONDS
    )


def _broker() -> str:
    try:
        _broker_client().ping()
    except redis.RedisError:
        return "the broker does not answer"
    return "ok"
