"""Manages the secrets that an owner's calls are signed with."""

import re
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connection, transaction

from webtask_scheduler import vault
from webtask_scheduler.access import audit
from webtask_scheduler.scheduler.models import (
    SigningSecret,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.queue.attempts import SIGNS_HOST
from webtask_scheduler.scheduler.services.switches import host_to_stop

# Of the same hosts: a call is signed with each, so that receivers can rotate.
SECRETS_MOST = 5
# Sets of hosts for which an owner may have as many.
HOST_SETS_MOST = 10
SECRET_HOSTS_MOST = 20
WILDCARD = "*."
_ADDRESS = re.compile(r"\[|[0-9.]+(:|$)")


# Along the timer's key and signing_secret_owner_idx.
_SIGNING = f"""
SELECT count(*) FILTER (WHERE {SIGNS_HOST}), count(*)
  FROM scheduler_timer timer
  JOIN scheduler_signingsecret signing ON coalesce(signing.owner_id, 0) = coalesce(timer.owner_id, 0)
 WHERE timer.id = %s
"""  # noqa: S608 - a constant is put in


class Signing(NamedTuple):
    """How many secrets of its owner a timer's calls are signed with, and how many the owner has for any host."""

    used: int
    owned: int


def signing_of(timer_id: uuid.UUID) -> Signing:
    """Return how a timer's calls are signed now, by the condition that calls themselves are made by."""
    with connection.cursor() as cursor:
        cursor.execute(_SIGNING, [timer_id])
        return Signing(*cursor.fetchone())


def canonical_hosts(hosts: Sequence[str]) -> list[str]:
    """Return hosts of a secret in the form of Timer.host, sorted and each once.

    "*.example.com" stands for all hosts below example.com, and not for that one. Raises CallStopRefusedError.
    """
    found = set()
    for text in map(str.strip, hosts):
        wild = WILDCARD if text.startswith(WILDCARD) else ""
        host = host_to_stop(text.removeprefix(wild))
        if wild and _ADDRESS.match(host):
            # Nothing is below an address.
            host_to_stop(text)
        found.add(wild + host)
    return sorted(found)


def add_secret(secret: str | None, *, owner_id: int | None, hosts: Sequence[str] = ()) -> SigningSecret | None:
    """Add a secret for an owner's calls to some hosts, or to all, and return it; a new one is made if it is None.

    `hosts` are canonical. Returns None if there are too many secrets.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Without the lock two at once would both find room.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"signing secrets of {owner_id}"])
        if not room_for_secret(owner_id=owner_id, hosts=hosts):
            return None
        sealed = vault.seal(secret or signing.new_secret())
        made = SigningSecret.objects.create(owner_id=owner_id, secret=sealed, hosts=list(hosts))
        audit.record("secret.created", kind="secret", of=made.pk, owner_id=owner_id)
        return made


def room_for_secret(*, owner_id: int | None, hosts: Sequence[str]) -> bool:
    """Return whether an owner may have one more secret for these hosts."""
    own = SigningSecret.objects.filter(owner=owner_id)
    return own.count() < SECRETS_MOST * HOST_SETS_MOST and own.filter(hosts=list(hosts)).count() < SECRETS_MOST


def delete_secret(secret_id: int, **visible: Any) -> bool:
    """Delete a secret, if it fits the condition `visible`; return whether there was one. Calls bear it no longer."""
    with transaction.atomic():
        found = SigningSecret.objects.select_for_update().filter(pk=secret_id, **visible).first()
        if found is None:
            return False
        audit.record("secret.deleted", kind="secret", of=found.pk, owner_id=found.owner_id)
        found.delete()
        return True
