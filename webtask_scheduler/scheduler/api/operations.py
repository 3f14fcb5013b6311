"""Operations on one timer and their results: pause, resume, run, try now, replay, deliveries, attempts."""

from typing import Any

from drf_spectacular.utils import (
    OpenApiResponse,
)
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.base import (
    TimerAPIView,
    answering_conflicts,
    as_json,
    body_of,
    do_once,
    newest_first,
    refuse_called,
    shown_timer,
    timer_of_caller,
    validated,
)
from webtask_scheduler.scheduler.api.document import (
    IDEMPOTENCY_KEY,
    REPLAYED,
    TASK_ID,
    WRITING,
    action_document,
    problem_answers,
)
from webtask_scheduler.scheduler.api.fields import IdField, NothingSerializer, StrictSerializer
from webtask_scheduler.scheduler.api.filtering import AttemptsPageSerializer, PageSerializer
from webtask_scheduler.scheduler.api.showing import (
    CallSerializer,
    DeliverySerializer,
    ListedCallSerializer,
    TimerSerializer,
    shown_calls,
)
from webtask_scheduler.scheduler.models import (
    Attempt,
    Delivery,
)
from webtask_scheduler.scheduler.services import EXTRA_OPEN_MOST


class ReplaySerializer(StrictSerializer):
    """Which delivery to replay."""

    delivery_id = IdField(
        required=False, help_text="A delivery that failed or was missed. Default: the timer's latest such one."
    )


class DismissSerializer(StrictSerializer):
    """Which delivery to dismiss."""

    delivery_id = IdField(
        required=False, help_text="A delivery that failed or was missed. Default: all such ones of the timer."
    )


class DismissedSerializer(serializers.Serializer[Any]):
    """How many dead letters were dismissed."""

    dismissed = serializers.IntegerField(min_value=0, help_text="Without those that were dismissed before.")


class TryNowSerializer(StrictSerializer):
    """Which delivery to try now."""

    delivery_id = IdField(
        required=False, help_text="A delivery that waits for a retry. Default: the timer's latest such one."
    )


class DeliveriesSerializer(serializers.Serializer[Any]):
    deliveries = DeliverySerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


class CallsSerializer(serializers.Serializer[Any]):
    attempts = ListedCallSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


pause_timer = action_document(
    "timer_pause",
    "Pause a timer",
    "It calls nothing until it is resumed. A call in flight may land; its retries wait too.",
    responses={200: OpenApiResponse(TimerSerializer, "The timer, paused."), **problem_answers(*WRITING, 409)},
)
resume_timer = action_document(
    "timer_resume",
    "Resume a timer",
    "One whose moment has passed meanwhile is due at once, or missed, as its `on_missed` says.",
    responses={200: OpenApiResponse(TimerSerializer, "The timer, going on."), **problem_answers(*WRITING, 409)},
)
run_timer = action_document(
    "timer_run",
    "Run a timer now",
    f"Makes an extra delivery, due now; what is promised stands. A timer that has ended is not run, nor one of which"
    f" {EXTRA_OPEN_MOST} extra deliveries have not ended yet.",
    parameters=[TASK_ID, IDEMPOTENCY_KEY, REPLAYED],
    responses={
        201: OpenApiResponse(DeliverySerializer, "The extra delivery."),
        **problem_answers(*WRITING, 409, 422, 508),
    },
)
try_timer = action_document(
    "timer_try_now",
    "Try a waiting retry now",
    "Makes the attempt that waits for its retry now instead of later: the same delivery, the same `webhook-id`, the"
    " next attempt of its policy. 409 where nothing waits for a retry; the answer says what the timer waits for.",
    request=TryNowSerializer,
    responses={
        200: OpenApiResponse(DeliverySerializer, "The delivery, due now."),
        **problem_answers(*WRITING, 409, 508),
    },
)
replay_timer = action_document(
    "timer_replay",
    "Replay a dead letter",
    "Sends a delivery that failed or was missed again, now, with fresh attempts under the same `webhook-id`; its"
    " history stays.",
    parameters=[TASK_ID, IDEMPOTENCY_KEY, REPLAYED],
    request=ReplaySerializer,
    responses={
        200: OpenApiResponse(DeliverySerializer, "The delivery, waiting again."),
        **problem_answers(*WRITING, 409, 422, 508),
    },
)
dismiss_timer = action_document(
    "timer_dismiss",
    "Dismiss dead letters",
    "Marks what failed or was missed as seen: it no longer counts as a dead letter to look at. The records stay, and"
    " can still be replayed. Done twice it changes nothing.",
    request=DismissSerializer,
    responses={
        200: OpenApiResponse(DismissedSerializer, "How many there were."),
        **problem_answers(*WRITING, 409),
    },
)
list_deliveries = action_document(
    "timer_deliveries_list",
    "List a timer's deliveries",
    "Every promised moment that was reached or moved, and every extra one, the latest first.",
    parameters=[TASK_ID, PageSerializer],
    responses={200: OpenApiResponse(DeliveriesSerializer, "A page."), **problem_answers(400, 404, 503)},
)
list_attempts = action_document(
    "timer_attempts_list",
    "List a timer's attempts",
    "Every HTTP call that was made for it, the latest first, with the beginning of each answer and what is kept of its"
    " headers.",
    parameters=[TASK_ID, AttemptsPageSerializer],
    responses={200: OpenApiResponse(CallsSerializer, "A page."), **problem_answers(400, 404, 503)},
)


class PauseView(TimerAPIView):
    """`timer/<id>/pause`."""

    @pause_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        validated(NothingSerializer, body_of(request))
        with answering_conflicts():
            services.pause(timer.pk)
        return Response(shown_timer(request, timer.pk))


class ResumeView(TimerAPIView):
    """`timer/<id>/resume`."""

    @resume_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        validated(NothingSerializer, body_of(request))
        with answering_conflicts():
            services.resume(timer.pk)
        return Response(shown_timer(request, timer.pk))


class RunView(TimerAPIView):
    """`timer/<id>/run`."""

    @run_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        validated(NothingSerializer, body_of(request))

        refuse_called(request)

        def make() -> Response:
            with answering_conflicts():
                delivery_id = services.run_now(timer.pk)
            return Response(as_json(DeliverySerializer(Delivery.objects.get(pk=delivery_id)).data), status=201)

        return do_once(request, make)


class TryNowView(TimerAPIView):
    """`timer/<id>/try-now`."""

    @try_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        values = validated(TryNowSerializer, body_of(request))
        refuse_called(request)
        with answering_conflicts():
            delivery_id = services.try_now(timer.pk, delivery_id=values.get("delivery_id"))
        return Response(DeliverySerializer(Delivery.objects.get(pk=delivery_id)).data)


class ReplayView(TimerAPIView):
    """`timer/<id>/replay`."""

    @replay_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        values = validated(ReplaySerializer, body_of(request))
        refuse_called(request)

        def make() -> Response:
            with answering_conflicts():
                delivery_id = services.replay(timer.pk, delivery_id=values.get("delivery_id"))
            return Response(as_json(DeliverySerializer(Delivery.objects.get(pk=delivery_id)).data), status=200)

        return do_once(request, make)


class DismissView(TimerAPIView):
    """`timer/<id>/dismiss`."""

    @dismiss_timer
    def post(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        values = validated(DismissSerializer, body_of(request))
        with answering_conflicts():
            count = services.dismiss(timer.pk, delivery_id=values.get("delivery_id"))
        return Response({"dismissed": count})


class DeliveriesView(TimerAPIView):
    """`timer/<id>/deliveries`: all of them, the latest first."""

    @list_deliveries
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        values = validated(PageSerializer, request.query_params)
        found, following = newest_first(request, Delivery.objects.filter(timer=timer.pk), by="number", page=values)
        return Response({"deliveries": DeliverySerializer(found, many=True).data, "next": following})


class AttemptsView(TimerAPIView):
    """`timer/<id>/attempts`: every call made for a timer, the latest first."""

    @list_attempts
    def get(self, request: Request, id: str) -> Response:  # noqa: A002
        timer = timer_of_caller(request, id)
        values = validated(AttemptsPageSerializer, request.query_params)
        only = values.get("fields", ())
        attempts = shown_calls(Attempt.objects.filter(delivery__timer=timer.pk), only)
        found, following = newest_first(request, attempts, by="id", page=values)
        shown = CallSerializer(found, many=True, context={"only": only})
        return Response({"attempts": shown.data, "next": following})
