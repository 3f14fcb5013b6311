"""Lists, adds, edits, tests and deletes notification channels; lists what was sent to them."""

import re
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.scheduler.api.base import (
    TimerAPIView,
    as_json,
    body_of,
    caller_of,
    do_once,
    newest_first,
    refuse_called,
    validated,
)
from webtask_scheduler.scheduler.api.document import ID, IDEMPOTENCY_KEY, REPLAYED, described, problem_answers
from webtask_scheduler.scheduler.api.fields import (
    NothingSerializer,
    OneOfField,
    StrictSerializer,
    TextField,
    TrueOrFalseField,
    WholeNumberField,
)
from webtask_scheduler.scheduler.api.filtering import PageSerializer
from webtask_scheduler.scheduler.api.problems import Conflict
from webtask_scheduler.scheduler.models import (
    LABEL_MAX_LENGTH,
    NAME_MAX_LENGTH,
    URL_MAX_LENGTH,
    Notification,
    NotificationChannel,
)
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import ChannelError, NewChannel

_KIND = "Mail, a Slack incoming webhook, or a webhook of your own."
_ADDRESS = "A mail address, or a URL. Of a URL no more than the host is ever shown: `https://hooks.slack.com/***`."
_LABEL = "Only timers with this label, as `team=billing`; null for all."
_DEAD = "Tell when a delivery failed for good or was missed."
_ROW = "Tell when a recurring timer failed so many times in a row; null for never."
_WELL = "Tell when a recurring timer succeeded again, if the channel was told of its failure."
_LANGUAGE = "Of what its messages say to people; null for the service's own."
_LATE = "Tell when calls of the whole service are late: only for owners who may see it all."


class NewChannelSerializer(StrictSerializer):
    """A channel to add."""

    kind = OneOfField(choices=NotificationChannel.Kind.choices, help_text=_KIND)
    address = TextField(max_length=URL_MAX_LENGTH, help_text=_ADDRESS)
    name = TextField(max_length=NAME_MAX_LENGTH, required=False, allow_blank=True)
    label = TextField(  # type: ignore[assignment]  # a field by that name
        max_length=LABEL_MAX_LENGTH, required=False, allow_null=True, help_text=_LABEL
    )
    language = OneOfField(choices=settings.LANGUAGES, required=False, allow_null=True, help_text=_LANGUAGE)
    on_dead_letter = TrueOrFalseField(required=False, help_text=_DEAD)
    failures_in_row = WholeNumberField(
        min_value=channels.ROW_LEAST, max_value=channels.ROW_MOST, required=False, allow_null=True, help_text=_ROW
    )
    on_recovery = TrueOrFalseField(required=False, help_text=_WELL)
    on_late = TrueOrFalseField(required=False, help_text=_LATE)


class EditChannelSerializer(NewChannelSerializer):
    """What changes of a channel; the rest stays."""

    address = TextField(max_length=URL_MAX_LENGTH, required=False, help_text=_ADDRESS)
    paused = TrueOrFalseField(required=False, help_text="Nothing is sent while it is, nor later of what happens then.")

    def get_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().get_fields()
        # The kind of a channel stays.
        del fields["kind"]
        return fields


class ChannelSerializer(serializers.ModelSerializer[NotificationChannel]):
    """A channel, without what is secret of its address."""

    id = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=NotificationChannel.Kind.choices, help_text=_KIND)
    address = serializers.CharField(source="shown_address", help_text=_ADDRESS)
    name = serializers.CharField()
    label = serializers.SerializerMethodField(help_text=_LABEL)  # type: ignore[assignment]  # as above
    language = serializers.SerializerMethodField(help_text=_LANGUAGE)
    on_dead_letter = serializers.BooleanField(help_text=_DEAD)
    failures_in_row = serializers.IntegerField(allow_null=True, help_text=_ROW)
    paused = serializers.SerializerMethodField()
    told_at = serializers.DateTimeField(allow_null=True, help_text="When its latest message was made.")

    class Meta:
        model = NotificationChannel
        fields = (
            *("id", "kind", "address", "name", "label", "language", "on_dead_letter", "failures_in_row", "on_recovery"),
            *("on_late", "paused", "created_at", "told_at"),
        )
        extra_kwargs = {"on_recovery": {"help_text": _WELL}, "on_late": {"help_text": _LATE}}

    def get_label(self, channel: NotificationChannel) -> str | None:
        return channel.label or None

    def get_language(self, channel: NotificationChannel) -> str | None:
        return channel.language or None

    def get_paused(self, channel: NotificationChannel) -> bool:
        return channel.paused_at is not None


class ChannelsSerializer(serializers.Serializer[Any]):
    channels = ChannelSerializer(many=True)


class NotificationSerializer(serializers.Serializer[Any]):
    """A message to a channel, and what came of it."""

    id = serializers.IntegerField(source="notification.id")
    channel_id = serializers.IntegerField(
        source="notification.channel_id", allow_null=True, help_text="Null once it is deleted."
    )
    kind = serializers.ChoiceField(source="notification.kind", choices=NotificationChannel.Kind.choices)
    address = serializers.CharField(source="notification.shown_address")
    status = serializers.ChoiceField(
        source="state",
        choices=Notification.State.choices,
        help_text="`gathering`: more may be added until it is sent; `called`: its timer is no longer kept.",
    )
    subject = serializers.CharField(source="notification.subject", help_text="Empty while it gathers.")
    text = serializers.CharField(source="notification.text")
    error = serializers.CharField(help_text="Of the latest attempt that failed; empty for none.")
    created_at = serializers.DateTimeField(source="notification.created_at")
    made_at = serializers.DateTimeField(source="notification.made_at", allow_null=True)
    task_id = serializers.UUIDField(
        source="notification.call_timer", allow_null=True, help_text="The timer that calls; null for mail."
    )


class NotificationsSerializer(serializers.Serializer[Any]):
    notifications = NotificationSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


_CHANNEL_ID = OpenApiParameter("id", OpenApiTypes.INT64, OpenApiParameter.PATH)
_CHANNEL = {
    "id": 7,
    "kind": "slack",
    "address": "https://chat.example.com/***",
    "name": "Billing",
    "label": "team=billing",
    "language": None,
    "on_dead_letter": True,
    "failures_in_row": 3,
    "on_recovery": True,
    "on_late": False,
    "paused": False,
    "created_at": "2026-01-05T09:00:00.000000Z",
    "told_at": None,
}
_NEW = {
    "kind": "slack",
    "address": "https://chat.example.com/hooks/xxxxxxxxxxxxxxxxxxxxxxxxxx",
    "name": "Billing",
    "label": "team=billing",
    "failures_in_row": 3,
    "on_recovery": True,
}
_SENT = {
    "id": 4711,
    "channel_id": 7,
    "kind": "slack",
    "address": "https://chat.example.com/***",
    "status": "sent",
    "subject": "api.example.com: 1,204 dead letters since 14:02 UTC",
    "text": "api.example.com: 1,204 dead letters since 14:02 UTC.\n…",
    "error": "",
    "created_at": "2026-01-05T14:02:30.000000Z",
    "made_at": "2026-01-05T14:03:30.000000Z",
    "task_id": ID,
}


def _answer(serializer: Any, description: str, value: Any, **more: Any) -> OpenApiResponse:
    example = OpenApiExample("One", value=value, response_only=True)
    return OpenApiResponse(serializer, description, examples=[example], **more)


list_channels = described(
    "notification_channel_list",
    "List notification channels",
    "Where you are told of failures. Yours alone, also with a superuser's key.",
    responses={200: _answer(ChannelsSerializer, "All of them.", {"channels": [_CHANNEL]}), **problem_answers(503)},
)
create_channel = described(
    "notification_channel_create",
    "Add a notification channel",
    f"Up to {channels.CHANNELS_MOST}. A channel gets one message a minute at most, with all that happened. Mail goes to"
    " your own address, or to a domain that the operator allows.",
    request=NewChannelSerializer,
    parameters=[IDEMPOTENCY_KEY, REPLAYED],
    examples=[OpenApiExample("Slack", value=_NEW, request_only=True)],
    responses={
        201: _answer(ChannelSerializer, "The channel.", _CHANNEL),
        **problem_answers(400, 403, 409, 411, 413, 415, 422, 503),
    },
)
edit_channel = described(
    "notification_channel_partial_update",
    "Edit, pause or resume a notification channel",
    "What is left out stays. The kind cannot be changed.",
    request=EditChannelSerializer,
    parameters=[_CHANNEL_ID],
    examples=[OpenApiExample("Pause", value={"paused": True}, request_only=True)],
    responses={
        200: _answer(ChannelSerializer, "The channel.", _CHANNEL),
        **problem_answers(400, 403, 404, 411, 413, 415, 503),
    },
)
delete_channel = described(
    "notification_channel_destroy",
    "Delete a notification channel",
    "Nothing more is sent there; what was sent stays listed.",
    parameters=[_CHANNEL_ID],
    responses={204: OpenApiResponse(None, "It is gone."), **problem_answers(403, 404, 503)},
)
test_channel = described(
    "notification_channel_test",
    "Send a test",
    "At once, and at most one in the time between two messages. The list of notifications says what came of it.",
    request=NothingSerializer,
    parameters=[_CHANNEL_ID],
    responses={
        202: _answer(NotificationSerializer, "It is on its way.", _SENT | {"status": "sending"}),
        **problem_answers(400, 403, 404, 409, 411, 413, 415, 503, 508),
    },
)
list_notifications = described(
    "notification_list",
    "List what was sent",
    "The messages to your channels, the latest first, kept as long as ended timers.",
    parameters=[PageSerializer],
    responses={
        200: _answer(NotificationsSerializer, "A page.", {"notifications": [_SENT], "next": None}),
        **problem_answers(400, 503),
    },
)


def _id(text: str) -> int:
    """Return the id in a path. Raises NotFound."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise exceptions.NotFound(_(NO_CHANNEL))
    return int(text)


NO_CHANNEL = gettext_noop("There is no notification channel with this id.")


def _refused(error: ChannelError) -> exceptions.APIException:
    """Return the answer to what a channel may not be."""
    if not error.field:
        return Conflict(error.messages[0])
    return exceptions.ValidationError({error.field: error.messages})


class ChannelsView(TimerAPIView):
    """`notification-channel`: add one, list them."""

    @list_channels
    def get(self, request: Request) -> Response:
        found = NotificationChannel.objects.filter(**caller_of(request).own()).order_by("pk")
        return Response({"channels": ChannelSerializer(found[: channels.CHANNELS_MOST], many=True).data})

    @create_channel
    def post(self, request: Request) -> Response:
        values = validated(NewChannelSerializer, request.data)

        def make() -> Response:
            try:
                made = channels.add(
                    NewChannel(**(values | {name: values.get(name) or "" for name in ("label", "language")})),
                    owner_id=caller_of(request).owner_id,
                )
            except ChannelError as error:
                raise _refused(error) from error
            return Response(as_json(ChannelSerializer(made).data), status=201)

        return do_once(request, make)


class ChannelView(TimerAPIView):
    """`notification-channel/<id>`: edit it, delete it."""

    @edit_channel
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002 - the path's name
        channel_id, visible = _id(id), caller_of(request).own()
        values = validated(EditChannelSerializer, body_of(request))
        paused = values.pop("paused", None)
        try:
            with transaction.atomic():
                if values:
                    channels.edit(channel_id, values, visible=visible)
                if paused is not None:
                    channels.switch(channel_id, paused=paused, visible=visible)
                channel = NotificationChannel.objects.get(pk=channel_id, **visible)
        except NotificationChannel.DoesNotExist as error:
            raise exceptions.NotFound(_(NO_CHANNEL)) from error
        except ChannelError as error:
            raise _refused(error) from error
        return Response(ChannelSerializer(channel).data)

    @delete_channel
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path's name
        try:
            channels.delete(_id(id), visible=caller_of(request).own())
        except NotificationChannel.DoesNotExist as error:
            raise exceptions.NotFound(_(NO_CHANNEL)) from error
        return Response(status=204)


class ChannelTestView(TimerAPIView):
    """`notification-channel/<id>/test`: send a test."""

    @test_channel
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path's name
        channel_id = _id(id)
        validated(NothingSerializer, body_of(request))
        refuse_called(request)
        try:
            made = notifying.test(channel_id, visible=caller_of(request).own())
        except NotificationChannel.DoesNotExist as error:
            raise exceptions.NotFound(_(NO_CHANNEL)) from error
        except ChannelError as error:
            raise _refused(error) from error
        return Response(NotificationSerializer(notifying.listed([made])[0]).data, status=202)


class NotificationsView(TimerAPIView):
    """`notification`: what was sent."""

    @list_notifications
    def get(self, request: Request) -> Response:
        values = validated(PageSerializer, request.query_params)
        rows = Notification.objects.filter(**caller_of(request).own())
        found, following = newest_first(request, rows, by="id", page=values)
        shown = NotificationSerializer(notifying.listed(found), many=True).data
        return Response({"notifications": shown, "next": following})
