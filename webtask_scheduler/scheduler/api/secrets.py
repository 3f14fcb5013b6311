"""Lists, creates and deletes signing secrets."""

import re
from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
)
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.base import TimerAPIView, body_of, caller_of, refuse_idempotency_key, validated
from webtask_scheduler.scheduler.api.document import described, problem_answers
from webtask_scheduler.scheduler.api.fields import StrictSerializer, TextField
from webtask_scheduler.scheduler.api.problems import (
    Conflict,
)
from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    SigningSecret,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.wording import translated


class NewSecretSerializer(StrictSerializer):
    """A signing secret to add."""

    secret = TextField(
        max_length=100, required=False, help_text="`whsec_` and 24 to 64 bytes in base64. Default: a new one is made."
    )

    hosts = serializers.ListField(
        child=TextField(max_length=HOST_MAX_LENGTH),
        max_length=services.SECRET_HOSTS_MOST,
        required=False,
        help_text="Sign only calls to these hosts, each as in the URL, with its port if it has one; `*.example.com`"
        " stands for all below example.com. Default: calls to all hosts.",
    )

    def validate_hosts(self, value: list[str]) -> list[str]:
        try:
            return services.canonical_hosts(value)
        except services.CallStopRefusedError as error:
            raise serializers.ValidationError(error.messages) from error

    def validate_secret(self, value: str) -> str:
        try:
            signing.check_secret(value)
        except ValueError as error:
            raise serializers.ValidationError(translated(error)) from error
        return value


class SecretSerializer(serializers.ModelSerializer[SigningSecret]):
    """A signing secret, of which only the end is shown."""

    id = serializers.IntegerField()
    hint = serializers.CharField(help_text="The last four characters.")
    hosts = serializers.ListField(
        child=serializers.CharField(), help_text="The hosts whose calls are signed with it; empty for all."
    )

    class Meta:
        model = SigningSecret
        fields = ("id", "hint", "hosts", "created_at")


class MadeSecretSerializer(SecretSerializer):
    """A signing secret just added: the one time that it is shown."""

    secret = serializers.CharField(source="value")

    class Meta(SecretSerializer.Meta):
        fields = (*SecretSerializer.Meta.fields, "secret")  # type: ignore[assignment]  # one more


class SecretsSerializer(serializers.Serializer[Any]):
    secrets = SecretSerializer(many=True)


list_secrets = described(
    "signing_secret_list",
    "List signing secrets",
    "Calls of your timers are signed with each that is for their host, by Standard Webhooks.",
    responses={
        200: OpenApiResponse(SecretsSerializer, "Your secrets, without the secret itself."),
        **problem_answers(503),
    },
)
create_secret = described(
    "signing_secret_create",
    "Add a signing secret",
    "To rotate without a pause: add the new one, have receivers accept it, then delete the old one. The answer is the"
    " only one that shows it. Up to five may be active for the same hosts. Give each receiver a secret of its own, with"
    " `hosts`: a receiver could otherwise pass a signed call on to another, which would take it for yours.",
    request=NewSecretSerializer,
    responses={
        201: OpenApiResponse(MadeSecretSerializer, "The secret."),
        **problem_answers(400, 403, 409, 411, 413, 415, 503),
    },
)
delete_secret = described(
    "signing_secret_destroy",
    "Delete a signing secret",
    "Calls are signed with it no longer; without any left they are not signed.",
    parameters=[OpenApiParameter("id", OpenApiTypes.INT64, OpenApiParameter.PATH)],
    responses={204: OpenApiResponse(None, "It is gone."), **problem_answers(403, 404, 503)},
)


class SecretsView(TimerAPIView):
    """`signing-secret`: add one, list them."""

    @list_secrets
    def get(self, request: Request) -> Response:
        secrets = SigningSecret.objects.filter(**caller_of(request).own()).order_by("pk")
        return Response({"secrets": SecretSerializer(secrets, many=True).data})

    @create_secret
    def post(self, request: Request) -> Response:
        refuse_idempotency_key(request)
        values = validated(NewSecretSerializer, body_of(request))
        owner_id = caller_of(request).owner_id
        secret = services.add_secret(values.get("secret"), owner_id=owner_id, hosts=values.get("hosts", ()))
        if secret is None:
            said = _("There are %(most)s signing secrets already. Delete one that is out of use.")
            raise Conflict(said % {"most": services.SECRETS_MOST})
        return Response(MadeSecretSerializer(secret).data, status=201)


class SecretView(TimerAPIView):
    """`signing-secret/<id>`: sign with it no longer."""

    @delete_secret
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002
        own = caller_of(request).own()
        if not re.fullmatch(r"[0-9]{1,18}", id) or not services.delete_secret(int(id), **own):
            raise exceptions.NotFound(_("There is no signing secret with this id."))
        return Response(status=204)
