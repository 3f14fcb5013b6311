"""The audit log: who did what to which timer, secret, key, limit or stop."""

from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiExample, OpenApiResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler.api.base import TimerAPIView, caller_of, newest_first, validated
from webtask_scheduler.scheduler.api.document import ID, described, problem_answers
from webtask_scheduler.scheduler.api.fields import TextField
from webtask_scheduler.scheduler.api.filtering import PageSerializer


class AuditQuerySerializer(PageSerializer):
    """Which entries: every field narrows it."""

    kind = TextField(
        max_length=16,
        required=False,
        allow_blank=True,
        help_text="What was changed: timer, timers, bulk, secret, key, limit, host, user, group.",
    )
    id = TextField(max_length=261, required=False, allow_blank=True, help_text="Its id, with `kind`.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs.get("id") and not attrs.get("kind"):
            raise serializers.ValidationError({"kind": [_("Required with id.")]})
        return attrs


class AuditEntrySerializer(serializers.ModelSerializer[AuditEntry]):
    """One deed."""

    id = serializers.IntegerField()
    action = serializers.CharField(help_text="A stable word, such as `timer.cancelled`; docs/security.md lists them.")
    kind = serializers.CharField(help_text="What it was done to.")
    object_id = serializers.CharField(help_text="Its id; empty where many were changed at once.")
    user_id = serializers.IntegerField(allow_null=True, help_text="Null without a login.")
    name = serializers.CharField(help_text="Of a user, the e-mail address; of a command, the account that ran it.")
    key = serializers.CharField(help_text="The id of the API key; empty without one.")
    through = serializers.CharField(
        help_text="api, admin, dashboard, command, or stock row; empty for what code or a worker did."
    )
    before = serializers.DictField(allow_null=True, help_text="What changed, as it was. Never a secret.")
    after = serializers.DictField(allow_null=True, help_text="What changed, as it is now, or what was asked for.")

    class Meta:
        model = AuditEntry
        fields = (
            "id",
            "at",
            "action",
            "kind",
            "object_id",
            "user_id",
            "name",
            "key",
            "address",
            "through",
            "request_id",
            "before",
            "after",
        )


class AuditEntriesSerializer(serializers.Serializer[Any]):
    entries = AuditEntrySerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


_ENTRY = {
    "id": 4711,
    "at": "2026-01-05T09:00:02.120011Z",
    "action": "timer.cancelled",
    "kind": "timer",
    "object_id": ID,
    "user_id": 7,
    "name": "ann@example.com",
    "key": "12",
    "address": "192.0.2.17",
    "through": "api",
    "request_id": "order-4711",
    "before": None,
    "after": {"deliveries": 1},
}
list_audit = described(
    "audit_list",
    "Look at the audit log",
    "Who did what, the latest first; whoever sees all timers sees all deeds. A timer's creation has no entry: the timer"
    " itself keeps when and by whom it was made.",
    parameters=[AuditQuerySerializer],
    responses={
        200: OpenApiResponse(
            AuditEntriesSerializer,
            "A page.",
            examples=[OpenApiExample("One", value={"entries": [_ENTRY], "next": None}, response_only=True)],
        ),
        **problem_answers(400, 401, 403, 503),
    },
)


class AuditView(TimerAPIView):
    """`audit`: the deeds of the caller's owner; of all, for who sees all."""

    @list_audit
    def get(self, request: Request) -> Response:
        values = validated(AuditQuerySerializer, request.query_params)
        caller = caller_of(request)
        rows = AuditEntry.objects.all()
        if not caller.sees_all:
            # What belongs to the deployment belongs to nobody, and is no anonymous caller's either.
            rows = rows.filter(owner_id=caller.owner_id).exclude(kind="host")
        if values.get("kind"):
            rows = rows.filter(kind=values["kind"])
        if values.get("id"):
            rows = rows.filter(object_id=values["id"])
        found, following = newest_first(request, rows, by="id", page=values)
        return Response({"entries": AuditEntrySerializer(found, many=True).data, "next": following})
