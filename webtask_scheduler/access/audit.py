"""Writes the audit log: `record` is called where a deed is done, in the transaction of the deed.

What is written says what changed and never a secret: callers pass names of headers, not values, and no body, password,
secret or key. Whatever they pass, values under such names are left out here, and URLs lose user, password and query.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from webtask_scheduler.access import actor
from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.telemetry import origin
from webtask_scheduler.telemetry.redaction import scrub

# Up to so many things that are changed at once get an entry each; more share one, with their number.
EACH_MOST = 100
# The longest `before` or `after`, as JSON.
SHOWN_MOST_BYTES = 8 * 1024
# Stands for a value that changed and is not told.
UNTOLD = "…"
_SECRET = frozenset(
    {"body", "body_base64", "metadata", "secret", "secrets", "password", "token", "authorization", "hash", "api_key"}
)
# Entries that one DELETE removes.
PRUNE_ROWS = 1000


def record(
    action: str,
    *,
    kind: str,
    of: object = "",
    owner_id: int | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write that the present actor did `action` to the thing of this kind with the id `of`.

    Raises RuntimeError outside a transaction, and DatabaseError.
    """
    _in_transaction()
    _entry(actor.current(), action, (kind, of, owner_id), before, after).save(force_insert=True)


def record_each(
    action: str, *, kind: str, owners: Mapping[Any, int | None], after: Mapping[str, Any] | None = None
) -> None:
    """Write that the present actor did `action` to several things: the keys of `owners`, with the owner of each.

    Up to EACH_MOST get an entry each, more share one that has their number. It is one statement. Raises as `record`.
    """
    if not owners:
        return
    _in_transaction()
    by = actor.current()
    if len(owners) <= EACH_MOST:
        AuditEntry.objects.bulk_create(
            _entry(by, action, (kind, thing, owner_id), None, after) for thing, owner_id in owners.items()
        )
        return
    things, of_all = list(owners), set(owners.values())
    count = {"count": len(things), "first": str(things[0]), "last": str(things[-1])}
    owner_id = of_all.pop() if len(of_all) == 1 else None
    _entry(by, action, (f"{kind}s", "", owner_id), None, count | dict(after or {})).save(force_insert=True)


def _in_transaction() -> None:
    # Alone, an entry could tell of a deed that was rolled back, or a deed have no entry.
    if not connection.in_atomic_block:
        raise RuntimeError("The audit log is written in the transaction of the deed: call it in transaction.atomic().")


def _entry(
    by: actor.Actor,
    action: str,
    thing: tuple[str, object, int | None],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> AuditEntry:
    kind, of, owner_id = thing
    return AuditEntry(
        action=action,
        kind=kind,
        object_id=str(of),
        owner_id=owner_id,
        user_id=by.user_id,
        name=by.name,
        key=by.key,
        address=by.address,
        through=by.through,
        request_id=origin.current().request_id,
        before=_told(before),
        after=_told(after),
    )


def _told(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what may be stored of values: no secrets, and no more than SHOWN_MOST_BYTES."""
    if not values:
        return None
    told: dict[str, Any] = _safe(values)
    if len(json.dumps(told)) <= SHOWN_MOST_BYTES:
        return told
    return dict.fromkeys(told, UNTOLD)


def _safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _under(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        # PostgreSQL's JSON cannot hold it.
        return scrub(value).replace("\x00", "")
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _under(name: str, value: Any) -> Any:
    if name.lower() in _SECRET:
        return UNTOLD
    if name.lower() == "headers" and isinstance(value, Mapping):
        return sorted(str(header) for header in value)
    return _safe(value)


def prune(*, older_than: timedelta, limit: int = PRUNE_ROWS) -> int:
    """Delete one batch of entries older than `older_than`; return how many. Raises DatabaseError."""
    with connection.cursor() as cursor:
        # Along the primary key, so that no index by time is needed: later entries have higher ids, but for those of
        # transactions side by side.
        cursor.execute(
            """
            WITH oldest AS MATERIALIZED (
              SELECT id, at FROM access_auditentry ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
            DELETE FROM access_auditentry entry USING oldest
             WHERE entry.id = oldest.id AND oldest.at < statement_timestamp() - make_interval(secs => %s)
            """,
            [limit, older_than.total_seconds()],
        )
        return int(cursor.rowcount)
