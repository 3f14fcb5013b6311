"""Manages the secrets that an owner's calls are signed with."""

from django.db import connection, transaction

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
        return SigningSecret.objects.create(owner_id=owner_id, secret=secret or signing.new_secret())
