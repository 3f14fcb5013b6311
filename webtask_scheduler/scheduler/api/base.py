"""What all views share: the caller, the body, `Idempotency-Key`, and refusals."""

import contextlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from django.conf import settings
from django.db import transaction
from django.db.models import Model, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from rest_framework import exceptions, parsers
from rest_framework.authentication import BaseAuthentication
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils import json as strict_json
from rest_framework.views import APIView

from webtask_scheduler.access import actor, keys, limits
from webtask_scheduler.access.authentication import NeedsScope, authenticators, is_open, refuse_foreign, scopes_of
from webtask_scheduler.access.models import Scope
from webtask_scheduler.addresses import address_of
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api import cursors
from webtask_scheduler.scheduler.api.problems import (
    Conflict,
    KeyReused,
    LengthRequired,
    LoopDetected,
    NotJSON,
    NotUTF8,
    TooLarge,
    TooManyRequests,
)
from webtask_scheduler.scheduler.api.showing import show_timer
from webtask_scheduler.scheduler.models import (
    KEY_MAX_LENGTH,
    Timer,
)
from webtask_scheduler.scheduler.services import idempotency
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.scheduler.services.idempotency import Answer, Once

Row = TypeVar("Row", bound=Model)


class JSONParser(parsers.JSONParser):
    """Parses JSON in UTF-8 of bounded depth."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:  # noqa: ARG002
        try:
            # The byte order mark is optional; some editors write one.
            data = strict_json.loads(stream.read().decode("utf-8-sig"), parse_int=_integer)
        except RecursionError as error:
            raise exceptions.ParseError(_("JSON parse error - nested too deeply.")) from error
        except ValueError as error:
            raise exceptions.ParseError(_("JSON parse error - %(error)s") % {"error": error}) from error
        if _is_deep(data):
            # Bounded, because it is serialised again, here or in the worker, from a deeper stack than the parser's.
            raise exceptions.ParseError(_("JSON parse error - nested too deeply."))
        return data


# Nesting of lists and objects; real documents have ten or twenty levels.
JSON_DEPTH_MOST = 100
# Digits that Python can turn into a number and back.
INTEGER_DIGITS_MOST = 4000


def _integer(digits: str) -> float:
    """Return an integer; infinity for one that Python refuses to read, which its field then refuses by name."""
    return int(digits) if len(digits) <= INTEGER_DIGITS_MOST else math.inf


def _is_deep(data: Any) -> bool:
    level = [data]
    for __ in range(JSON_DEPTH_MOST):
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
    """Answers in JSON, the only format, whatever `Accept` or a `format` in the query asks for."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:  # noqa: ARG002
        return renderers[0], renderers[0].media_type


class TimerAPIView(APIView):
    """What all views of timers have in common: JSON, bounded bodies, who may call, and whose timers these are."""

    # The scope that each method asks for; `urls` gives it.
    scopes: Mapping[str, str] = {}
    permission_classes = (NeedsScope,)
    parser_classes: tuple[type[parsers.BaseParser], ...] = (JSONParser,)
    content_negotiation_class = JSONOnly
    body_limit_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    def get_authenticators(self) -> list[BaseAuthentication]:
        return authenticators(getattr(self, "request", None))

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's
        refuse_foreign(request)
        # Django REST framework's own steps but for versions and throttles, which are not used here.
        self.format_kwarg = None
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(request)
        # Where a key is needed, before the body, so that a stranger's is not read.
        is_first = not is_open()
        if is_first:
            self.perform_authentication(request)
            self.check_permissions(request)
        if request.method in ("POST", "PATCH"):
            _check_body(request, limit=self.body_limit_bytes)
        if not is_first:
            self.perform_authentication(request)
            self.check_permissions(request)
        request.caller = caller = _caller(request)  # type: ignore[attr-defined]  # kept for `caller_of`
        actor.by_key(caller.key_id)
        self._take_turn(request, caller)

    def _take_turn(self, request: Request, caller: Caller) -> None:
        """Count the request against its owner's limit, and say in the answer what is left. Raises TooManyRequests."""
        per_second = limits.allowed(caller.owner_id).requests_per_second
        if not per_second:
            return
        # Who has no owner has an address.
        who = f"address:{address_of(request)}" if caller.owner_id is None else f"owner:{caller.owner_id}"
        taken = limits.take(who, per_second=per_second)
        if taken is None:
            return
        # As draft-ietf-httpapi-ratelimit-headers has it: a quota of q, made good in w seconds; r are left, and all are
        # again in t seconds.
        self.headers["RateLimit-Policy"] = f'"requests";q={taken.most};w={math.ceil(taken.most / per_second)}'
        self.headers["RateLimit"] = f'"requests";r={taken.left};t={math.ceil(taken.full_seconds)}'
        if not taken.allowed:
            raise TooManyRequests(per_second=per_second, burst=taken.most, wait_seconds=taken.wait_seconds)


def caller_of(request: Request) -> Caller:
    """Return the caller of a request that a view has let in. A superuser sees all, by key only with `admin`."""
    caller: Caller = request.caller  # type: ignore[attr-defined]  # `initial` sets it
    return caller


def _caller(request: Request) -> Caller:
    user, scopes = request.user, scopes_of(request)
    if not user.is_authenticated:
        return Caller(scopes=scopes)
    return Caller(
        owner_id=user.pk,
        sees_all=bool(getattr(user, "is_superuser", False)) and Scope.ADMIN in scopes,
        scopes=scopes,
        key_id=request.auth.key_id if isinstance(request.auth, keys.Holder) else None,
    )


def validated(serializer: type[Any], data: Any) -> Any:
    """Return a body or a query as a serializer validates it. Raises ValidationError."""
    reader = serializer(data=data)
    reader.is_valid(raise_exception=True)
    return reader.validated_data


# A body is empty or an object; a form without fields counts as an empty body.
def body_of(request: Request) -> Any:
    return request.data if request.body else {}


# How deep timers may make timers. One: a call of this service may lead to new timers, but their calls may not.
DEPTH_MOST = 1


def depth_of(request: Request) -> int:
    """Return the length of the chain of this service's calls that led to this request.

    As CDN-Loop (RFC 8586): each call carries a header that no timer may set, and a receiver that calls this service in
    return is expected to pass it on. A timer that was made so has a depth, which its calls carry too.
    """
    meta = request.META
    if "HTTP_WEBTASK_TIMER_ID" not in meta and "HTTP_WEBTASK_DEPTH" not in meta:
        return 0
    depth = meta.get("HTTP_WEBTASK_DEPTH", "0")
    return 1 + int(depth) if re.fullmatch(r"[0-9]{1,4}", depth) else 1 + DEPTH_MOST


def refuse_called(request: Request) -> None:
    """Refuse a run or a replay in a request that a call led to. Raises LoopDetected.

    A run or a replay has no timer of its own that could carry its depth, so no depth is allowed.
    """
    if depth_of(request):
        raise LoopDetected(_("This request comes from a call of this service, and would make another call: a loop."))


_KEY_PATTERN = re.compile(rf"[\x21-\x7e]{{1,{KEY_MAX_LENGTH}}}")


def refuse_idempotency_key(request: Request) -> None:
    """Refuse a key where an answer is not kept, because it holds a secret. Raises ValidationError."""
    if "Idempotency-Key" in request.headers:
        message = _("This answer holds a secret and is not kept, so that it cannot be repeated. Leave the header out.")
        raise exceptions.ValidationError({"Idempotency-Key": [message]})


def once_of(request: Request) -> Once | None:
    """Return what a creating request asks to be done once; None without an Idempotency-Key. Raises ValidationError."""
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not _KEY_PATTERN.fullmatch(key):
        message = _("1 to %(most)s visible ASCII characters are required.") % {"most": KEY_MAX_LENGTH}
        raise exceptions.ValidationError({"Idempotency-Key": [message]})
    # The short name and the versioned one are the same address.
    path = request.path.rstrip("/").removeprefix("/api/v1/scheduler")
    kind = (request.content_type or "").partition(";")[0]
    same = "\n".join([request.method or "", path, kind, ""]).encode() + request.body
    return Once(key, caller_of(request).owner_id, same)


def do_once(request: Request, make: Callable[[], Response]) -> Response:
    """Do what a creating request asks, in a transaction, or repeat the answer if that was done under its key."""
    once = once_of(request)
    if once is None:
        return make()
    with answering_keys():
        while True:
            try:
                with transaction.atomic():
                    known = idempotency.recall(once)
                    if known is not None:
                        return replayed(known)
                    response = make()
                    idempotency.remember(once, kept_of(response))
                    return response
            except idempotency.KeyTakenError:
                # This one was rolled back: the first request has ended meanwhile, and its answer is stored.
                continue


@contextlib.contextmanager
def answering_keys() -> Iterator[None]:
    """Refuse a request whose Idempotency-Key is in use, or was used for another."""
    try:
        yield
    except idempotency.KeyInFlightError as error:
        message = _("A request with this Idempotency-Key is being worked on. Try again in a moment.")
        raise Conflict(message) from error
    except idempotency.KeyReusedError as error:
        raise KeyReused from error


def replayed(known: Answer) -> Response:
    """Return an answer that was given before."""
    headers = known.headers | {"Idempotency-Replayed": "true"}
    return Response(json.loads(known.body), status=known.status_code, headers=headers)


def kept_of(response: Response) -> Answer:
    """Return an answer as it is kept under a key, and have it sent as it is kept: it is written as JSON once."""
    response.content = text = JSONRenderer().render(response.data)
    response["Content-Type"] = JSONRenderer.media_type
    kept = {name: response.headers[name] for name in ("Location",) if name in response.headers}
    return Answer(response.status_code, kept, text.decode())


def _check_body(request: Request, *, limit: int) -> None:
    """Check that the body is of known and bounded length, whole, and UTF-8, before any parser sees it."""
    length = request.META.get("CONTENT_LENGTH")
    if not length and "HTTP_TRANSFER_ENCODING" in request.META:
        raise LengthRequired
    try:
        promised = int(length or 0)
    except ValueError as error:
        raise exceptions.ParseError(_("The Content-Length is not a number.")) from error
    if promised > limit:
        raise TooLarge(_("The request's body is larger than %(limit)s bytes.") % {"limit": limit})
    # A client that died while sending may leave half a number or half a URL behind.
    if len(request.body) != promised:
        raise exceptions.ParseError(_("The body is shorter or longer than its Content-Length."))
    if promised:
        _check_kind(request)
    # Python has charsets that decompress, or that take minutes to decode a body within the limit.
    charset = (request.content_params or {}).get("charset", "utf-8").strip("\"' ").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise NotUTF8


def _check_kind(request: Request) -> None:
    """Check that the body says what it is, before its fields are read as something else. Raises NotJSON."""
    kind = (request.content_type or "").partition(";")[0].strip().lower()
    if not kind:
        raise NotJSON
    if kind == "application/x-www-form-urlencoded" and request.body.lstrip()[:1] in (b"{", b"["):
        raise NotJSON(
            _(
                "The body is JSON, but its Content-Type says that it is a form, as curl's does by itself. Send it with"
                " the header `Content-Type: application/json`."
            )
        )


def timer_of_caller(request: Request, text: str) -> Timer:
    """Return the caller's timer with the id in a path. Raises NotFound."""
    timer = Timer.objects.filter(pk=timer_id_of(text), **caller_of(request).visible()).first()
    if timer is None:
        raise exceptions.NotFound(_(NO_TIMER))
    return timer


@contextlib.contextmanager
def answering_conflicts() -> Iterator[None]:
    """Answer 409 if the timer's state, or a limit of its owner, does not allow the operation."""
    try:
        yield
    except (
        services.NotStoppedError,
        services.NoRetryError,
        services.QuotaError,
        services.TimerEndedError,
        services.NothingToReplayError,
        services.TooManyRunsError,
    ) as error:
        raise Conflict(error.messages[0]) from error
    except services.NothingPromisedError as error:
        raise exceptions.ValidationError(error.messages) from error
    except Timer.DoesNotExist as error:
        # Pruned since it was looked up.
        raise exceptions.NotFound(_(NO_TIMER)) from error


def as_json(data: Any) -> Any:
    """Return a serializer's result as plain JSON, as it is stored for an idempotency key."""
    return json.loads(JSONRenderer().render(data))


def newest_first(
    request: Request, rows: QuerySet[Row], *, by: str, page: Mapping[str, Any]
) -> tuple[list[Row], str | None]:
    """Return a page of rows, by falling values of the column `by`, and the cursor of the next one.

    `page` is the validated data of PageSerializer. Raises ValidationError.
    """
    caller, limit = caller_of(request), page["limit"]
    place = cursors.unseal(page.get("cursor", ""), request=request, caller=caller)
    if place:
        rows = rows.filter(**{f"{by}__lt": place})
    found = list(rows.order_by(f"-{by}")[: limit + 1])
    following = str(getattr(found[limit - 1], by)) if len(found) > limit else None
    return found[:limit], cursors.seal(following, request=request, caller=caller)


NO_TIMER = gettext_noop("There is no timer with this id. The id is the `task_id` that creating it answered.")


def timer_id_of(text: str) -> uuid.UUID:
    """Return the id in a path. Raises NotFound: a malformed one names no timer either."""
    try:
        found = uuid.UUID(text)
    except ValueError as error:
        raise exceptions.NotFound(_(NO_TIMER)) from error
    if str(found) != text.lower():
        # Python also takes braces, a prefix, and no or misplaced hyphens; an address has one spelling.
        raise exceptions.NotFound(_(NO_TIMER))
    return found


def shown_timer(request: Request, timer_id: uuid.UUID) -> dict[str, Any]:
    """Return a timer of the caller as the API shows it. Raises NotFound."""
    body = show_timer(timer_id, **caller_of(request).visible("timer__"))
    if body is None:
        raise exceptions.NotFound(_(NO_TIMER))
    return body
