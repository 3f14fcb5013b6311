"""Lists, makes and revokes API keys."""

import re
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import NAME_MAX_LENGTH, ApiKey, Scope
from webtask_scheduler.scheduler.api.base import (
    TimerAPIView,
    body_of,
    caller_of,
    newest_first,
    refuse_idempotency_key,
    validated,
)
from webtask_scheduler.scheduler.api.document import described, problem_answers
from webtask_scheduler.scheduler.api.fields import InstantField, OneOfField, StrictSerializer, TextField
from webtask_scheduler.scheduler.api.filtering import PageSerializer

EMAIL_MAX_LENGTH = 254


class NewKeySerializer(StrictSerializer):
    """An API key to make."""

    name = TextField(max_length=NAME_MAX_LENGTH, help_text="What it is for.")
    scopes = serializers.ListField(
        child=OneOfField(choices=Scope.choices),
        min_length=1,
        max_length=len(Scope),
        help_text="What it allows. `admin` manages keys, so whoever has it can make one with every scope.",
    )
    expires_at = InstantField(required=False, help_text="From then on it is refused. Default: it does not expire.")
    owner = TextField(
        max_length=EMAIL_MAX_LENGTH,
        required=False,
        help_text="The e-mail address of the user whose timers it is for. Default: your own. Others: superusers only.",
    )


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    """An API key, of which only the beginning is shown."""

    id = serializers.IntegerField()
    owner = serializers.EmailField(source="owner.email")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    last_used_at = serializers.DateTimeField(allow_null=True, help_text="To the minute; null if it was never used.")
    revoked_at = serializers.DateTimeField(allow_null=True, help_text="Null if it was not revoked.")

    class Meta:
        model = ApiKey
        fields = ("id", "name", "owner", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")


class MadeKeySerializer(KeySerializer):
    """An API key just made: the one time that it is shown."""

    key = serializers.CharField()

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")  # type: ignore[assignment]  # one more


class KeysSerializer(serializers.Serializer[Any]):
    keys = KeySerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


list_keys = described(
    "api_key_list",
    "List API keys",
    "Your own, the latest made first; a superuser's key lists those of all owners. Revoked ones stay in the list.",
    parameters=[PageSerializer],
    responses={
        200: OpenApiResponse(KeysSerializer, "A page, without the keys themselves."),
        **problem_answers(400, 401, 403, 503),
    },
)
create_key = described(
    "api_key_create",
    "Make an API key",
    "The answer is the only one that shows it. Programs send it as `Authorization: Bearer <key>`.",
    request=NewKeySerializer,
    responses={
        201: OpenApiResponse(MadeKeySerializer, "The key."),
        **problem_answers(400, 401, 403, 411, 413, 415, 503),
    },
    examples=[
        OpenApiExample(
            "A key that makes and reads timers",
            value={"name": "shop", "scopes": ["timers:read", "timers:write"], "expires_at": "2030-01-01T00:00:00Z"},
            request_only=True,
        )
    ],
)
revoke_key = described(
    "api_key_destroy",
    "Revoke an API key",
    "From the next request on it is refused, for good. What it made stays.",
    parameters=[OpenApiParameter("id", OpenApiTypes.INT64, OpenApiParameter.PATH)],
    responses={204: OpenApiResponse(None, "It is revoked."), **problem_answers(401, 403, 404, 503)},
)


class KeysView(TimerAPIView):
    """`api-key`: make one, list them."""

    @list_keys
    def get(self, request: Request) -> Response:
        page = validated(PageSerializer, request.query_params)
        visible = ApiKey.objects.filter(**caller_of(request).visible()).select_related("owner")
        found, following = newest_first(request, visible, by="id", page=page)
        return Response({"keys": KeySerializer(found, many=True).data, "next": following})

    @create_key
    def post(self, request: Request) -> Response:
        refuse_idempotency_key(request)
        values = validated(NewKeySerializer, body_of(request))
        try:
            made = keys.make(
                name=values["name"],
                owner_id=_owner_id(request, values.get("owner")),
                scopes=values["scopes"],
                expires_at=values.get("expires_at"),
            )
        except ValidationError as error:
            raise exceptions.ValidationError(error.message_dict) from error
        body = KeySerializer(made.key).data | {"key": made.text}
        return Response(body, status=201, headers={"Cache-Control": "no-store"})


class KeyView(TimerAPIView):
    """`api-key/<id>`: revoke one."""

    @revoke_key
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the name in the path and the schema
        visible = ApiKey.objects.filter(**caller_of(request).visible())
        # As many digits as a key may have.
        found = visible.filter(pk=int(id)) if re.fullmatch(r"[0-9]{1,18}", id) else visible.none()
        if not found.exists():
            raise exceptions.NotFound(_("There is no API key with this id."))
        keys.revoke(found)
        return Response(status=204)


def _owner_id(request: Request, email: str | None) -> int:
    """Return whom a new key is for. Raises ValidationError."""
    caller = caller_of(request)
    if email is None and caller.owner_id is not None:
        return caller.owner_id
    if caller.sees_all:
        user = get_user_model().objects.filter(email__iexact=email or "", is_active=True).first()
        if user is None:
            raise exceptions.ValidationError({"owner": [_("There is no active user with this e-mail address.")]})
        return int(user.pk)
    own = get_user_model().objects.filter(pk=caller.owner_id or 0, email__iexact=email or "").first()
    if own is None:
        raise exceptions.ValidationError({"owner": [_("Only a superuser's key makes keys for others; leave it out.")]})
    return int(own.pk)
