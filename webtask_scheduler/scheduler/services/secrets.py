"""Manages the secrets that an owner's calls are signed with."""

from typing import Any

from django.db import connection, transaction

from webtask_scheduler.access import audit
from webtask_scheduler.scheduler.models import (
    SigningSecret,
)
from webtask_scheduler.scheduler.outgoing import signing

# Each call is signed with all of them.
SECRETS_MOST = 5


def add_secret(secret: str | None, *, owner_id: int | None) -> SigningSecret | None:
    """Add a secret for an owner's calls, a new one if None, and return it; return None if there are too many."""
    with transaction.atomic(), connection.cursor() as cursor:
        # Without the lock two at once would both find room.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"signing secrets of {owner_id}"])
        if SigningSecret.objects.filter(owner=owner_id).count() >= SECRETS_MOST:
            return None
        made = SigningSecret.objects.create(owner_id=owner_id, secret=secret or signing.new_secret())
        audit.record("secret.created", kind="secret", of=made.pk, owner_id=owner_id)
        return made


def delete_secret(secret_id: int, **visible: Any) -> bool:
    """Delete a secret, if it fits the condition `visible`; return whether there was one. Calls bear it no longer."""
    with transaction.atomic():
        found = SigningSecret.objects.select_for_update().filter(pk=secret_id, **visible).first()
        if found is None:
            return False
        audit.record("secret.deleted", kind="secret", of=found.pk, owner_id=found.owner_id)
        found.delete()
        return True
