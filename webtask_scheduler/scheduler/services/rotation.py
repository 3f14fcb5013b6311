"""Encrypts what is stored with the newest key, batch by batch, beside a running service.

It finds what is plain, from releases up to 0.2, and what another key encrypted. What is done already is skipped, so a
rotation that was interrupted goes on when it is started again. An edit at the same moment is kept: each batch reads its
rows again under a lock.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from django.db import connection, transaction

from webtask_scheduler import vault
from webtask_scheduler.scheduler import sealing
from webtask_scheduler.scheduler.models import EncryptionKey

# Read by one statement, and rewritten in one transaction: some tens of milliseconds each.
READ_ROWS = 10_000
WRITE_ROWS = 200

# The id and what may be secret.
Row: TypeAlias = Sequence[Any]


class Progress(NamedTuple):
    """What a batch did: rows of a table that were looked at or rewritten."""

    table: str
    read: int = 0
    written: int = 0


@dataclass(slots=True)
class Unreadable:
    """Rows that cannot be decrypted, and why."""

    count: int = 0
    reasons: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table with secrets: its statements, and how a row of it is judged and rewritten."""

    name: str
    first_id: Any
    read: str
    lock: str
    # Takes the ids, and the new values of each other column as `column1` and so on.
    write: str
    is_current: Callable[[Row], bool]
    # Raises VaultError.
    rewritten: Callable[[Row], Row]


def rotate(unreadable: Unreadable) -> Iterator[Progress]:
    """Encrypt everything with the newest key; yield after each batch what it did. Raises DatabaseError.

    Rows that cannot be decrypted stay as they are and are counted in `unreadable`. If there are none, no other key is
    in use any more, and `/readyz` no longer asks for one.
    """
    for table in _TABLES:
        yield from _walk(table, unreadable)
    if not unreadable.count:
        EncryptionKey.objects.exclude(pk=vault.newest_key()).delete()


def forget_missing_keys() -> list[str]:
    """Forget the keys that are missing from the settings, and return their ids. Values of theirs stay unreadable."""
    missing = vault.missing_keys(list(EncryptionKey.objects.values_list("pk", flat=True)))
    EncryptionKey.objects.filter(pk__in=missing).delete()
    return missing


def _walk(table: _Table, unreadable: Unreadable) -> Iterator[Progress]:
    after = table.first_id
    with connection.cursor() as cursor:
        while True:
            cursor.execute(table.read, {"after": after, "limit": READ_ROWS})
            rows = cursor.fetchall()
            if not rows:
                return
            after = rows[-1][0]
            ids = [row[0] for row in rows if not table.is_current(row)]
            for start in range(0, len(ids), WRITE_ROWS):
                with transaction.atomic():
                    cursor.execute(table.lock, {"ids": ids[start : start + WRITE_ROWS]})
                    # As they are now: since they were read, an edit may have changed some, or pruning deleted them.
                    changed = list(_rewritten(table, cursor.fetchall(), unreadable))
                    if changed:
                        columns = [list(column) for column in zip(*changed, strict=True)]
                        cursor.execute(table.write, {f"column{place}": values for place, values in enumerate(columns)})
                yield Progress(table.name, written=len(changed))
            yield Progress(table.name, read=len(rows))


def _rewritten(table: _Table, rows: Sequence[Row], unreadable: Unreadable) -> Iterator[Row]:
    for row in rows:
        if not table.is_current(row):
            try:
                yield table.rewritten(row)
            except vault.VaultError as error:
                unreadable.count += 1
                unreadable.reasons.add(str(error))


def _options(row: Row) -> Any:
    return json.loads(row[2]) if row[2] else {}


def _timer(row: Row) -> Row:
    web_url, options = sealing.sealed(*sealing.opened(row[1], _options(row)))
    return row[0], web_url, json.dumps(options)


def _text(row: Row) -> Row:
    return row[0], vault.seal(vault.unseal(row[1]) if vault.is_sealed(row[1]) else row[1])


def _with_text(name: str, table: str, column: str) -> _Table:
    """Return a table in which one text column is encrypted."""
    return _Table(
        name=name,
        first_id=0,
        read=f"SELECT id, {column} FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(limit)s",  # noqa: S608 - constants
        lock=f"SELECT id, {column} FROM {table} WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE",  # noqa: S608
        write=f"UPDATE {table} SET {column} = new.text"  # noqa: S608
        "  FROM unnest(%(column0)s::bigint[], %(column1)s::text[]) AS new (id, text)"
        f" WHERE {table}.id = new.id",
        is_current=lambda row: row[1].startswith(vault.newest_prefix()),
        rewritten=_text,
    )


_TABLES = (
    _Table(
        name="timers",
        first_id="00000000-0000-0000-0000-000000000000",
        # Plain timers, as most are, stay in the database.
        read="""
            SELECT id, web_url, options::text FROM scheduler_timer
             WHERE id > %(after)s
               AND (options->'sealed' IS NOT NULL OR options->'headers' IS NOT NULL OR options->'sensitive' IS NOT NULL
                    OR strpos(web_url, '@') > 0 OR strpos(options->>'callback_url', '@') > 0
                    OR strpos(options->>'failure_callback_url', '@') > 0)
             ORDER BY id LIMIT %(limit)s
            """,
        lock="""
            SELECT id, web_url, options::text FROM scheduler_timer
             WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE
            """,
        write="""
            UPDATE scheduler_timer timer SET web_url = new.web_url, options = new.options
              FROM unnest(%(column0)s::uuid[], %(column1)s::text[], %(column2)s::json[]) AS new (id, web_url, options)
             WHERE timer.id = new.id
            """,
        is_current=lambda row: sealing.is_current(row[1], _options(row)),
        rewritten=_timer,
    ),
    _with_text("signing secrets", "scheduler_signingsecret", "secret"),
    _with_text("notification channels", "scheduler_notificationchannel", "address"),
    _with_text("idempotency keys", "scheduler_idempotencykey", "body"),
    # Tables of django-otp; `users.models` reads what is in them.
    _with_text("second factors", "otp_totp_totpdevice", "key"),
    _with_text("recovery codes", "otp_static_statictoken", "token"),
)
