"""Makes a repeated request take effect once: stores the answer under the client's idempotency key.

The answer is stored with what the request does: by the same statement, which begins with ONCE and has REMEMBER, or
in the same transaction, between `recall` and `remember`. So the key exists if and only if the request took effect.

The answer is encrypted, and the request is known by a keyed hash, because both hold what timers do. Rows of releases
up to 0.2 hold the answer in plain text and a plain hash.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, connection

from config.database.prepared import Prepared
from webtask_scheduler import vault

# How long a creating request may be repeated under its key.
KEY_HOURS = 24


class KeyInFlightError(Exception):
    """Another request with this key is in progress."""


class KeyReusedError(Exception):
    """The key was used for another request."""


class KeyTakenError(Exception):
    """Another request with this key has just ended, and nothing was done: ask again, and its answer is known."""


@dataclass(frozen=True, slots=True)
class Once:
    """What is to be done once: an owner's key, and all that makes a request the same as another."""

    key: str
    owner_id: int | None
    request: bytes

    @property
    def lock(self) -> str:
        return f"idempotency key {self.owner_id} {self.key}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request with an idempotency key."""

    status_code: int
    headers: dict[str, str]
    body: str


# The lock shows at once that another request is in flight. The unique constraint decides, because the lock may be taken
# after the statement's snapshot.
_HELD_AND_KNOWN = """
held AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtextextended(%(lock)s, 0)) AS free),
known AS MATERIALIZED (
  SELECT fingerprint, status_code, headers::text, body
    FROM (
      -- Two, because an index does not serve IS NOT DISTINCT FROM.
      SELECT * FROM scheduler_idempotencykey WHERE owner_id = %(owner)s::bigint AND key = %(key)s
       UNION ALL
      SELECT * FROM scheduler_idempotencykey WHERE owner_id IS NULL AND %(owner)s::bigint IS NULL AND key = %(key)s
    ) kept
   WHERE created_at > clock_timestamp() - make_interval(hours => %(hours)s)
)"""
# What a statement finds, for `recalled`.
FOUND = "SELECT held.free, known.* FROM held LEFT JOIN known ON true"
# A statement that does something once begins with these, takes what it does from `first`, and ends with FOUND. `first`
# has a row if the key is new.
ONCE = f"""{_HELD_AND_KNOWN},
first AS MATERIALIZED (SELECT true FROM held WHERE free AND NOT EXISTS (SELECT FROM known))"""  # noqa: S608 - constants
# Stores the answer, with `{source}` of one row or none. A key that was taken since the statement's snapshot makes the
# whole statement fail: null breaks the constraint of the column.
REMEMBER = """
  INSERT INTO scheduler_idempotencykey AS kept (owner_id, key, fingerprint, status_code, headers, body, created_at)
  SELECT %(owner)s::bigint, %(key)s, %(fingerprint)s, %(status)s::smallint, %(headers)s::jsonb, %(answer)s,
         clock_timestamp()
    FROM {source}
      ON CONFLICT (owner_id, key) DO UPDATE
     SET fingerprint = excluded.fingerprint, status_code = excluded.status_code, headers = excluded.headers,
         body = excluded.body,
         created_at = CASE WHEN kept.created_at <= clock_timestamp() - make_interval(hours => %(hours)s)
                           THEN excluded.created_at END"""
_KEY_TYPES = {"key": "text", "owner": "bigint", "hours": "int"}
_ANSWER_TYPES = {"fingerprint": "bytea", "status": "smallint", "headers": "jsonb", "answer": "text"}
# The types of the places in a statement with ONCE and REMEMBER, whose values `places` returns.
TYPES = {"lock": "text", **_KEY_TYPES, **_ANSWER_TYPES}

_RECALL = Prepared("webtask_recall", f"WITH {_HELD_AND_KNOWN} {FOUND}", lock="text", **_KEY_TYPES)
_REMEMBER = Prepared(
    "webtask_remember",
    REMEMBER.format(source="(VALUES (1)) one") + " RETURNING true",
    **_KEY_TYPES,
    **_ANSWER_TYPES,
)


def places(once: Once, answer: Answer) -> dict[str, Any]:
    """Return the values of a statement with ONCE and REMEMBER, under the names of TYPES."""
    fingerprint, *_ = vault.fingerprints(once.request)
    return {
        **_key_places(once),
        "fingerprint": fingerprint,
        "status": answer.status_code,
        "headers": json.dumps(answer.headers),
        "answer": vault.seal(answer.body),
    }


def _key_places(once: Once) -> dict[str, Any]:
    return {"lock": once.lock, "key": once.key, "owner": once.owner_id, "hours": KEY_HOURS}


def recalled(once: Once, found: Sequence[Any]) -> Answer | None:
    """Return the answer that was given under a key, from a row of FOUND; None if the key is new and is held.

    Raises KeyInFlightError, KeyReusedError, VaultError.
    """
    free, known, status_code, headers, body = found
    if known is not None:
        if bytes(known) not in [hashlib.sha256(once.request).digest(), *vault.fingerprints(once.request)]:
            raise KeyReusedError
        return Answer(status_code, json.loads(headers), vault.unseal(body) if vault.is_sealed(body) else body)
    if not free:
        raise KeyInFlightError
    return None


@contextmanager
def noticing_taken() -> Iterator[None]:
    """Raise KeyTakenError where REMEMBER finds that its key was taken."""
    try:
        yield
    except IntegrityError as error:
        said = getattr(error.__cause__, "diag", None)
        if said is None or (said.table_name, said.column_name) != ("scheduler_idempotencykey", "created_at"):
            raise
        raise KeyTakenError from error


def recall(once: Once) -> Answer | None:
    """Return the answer that was given under a key, None for a new key; hold the key until the transaction ends.

    Raises as `recalled`.
    """
    (found,) = _RECALL.rows(_key_places(once))
    return recalled(once, found)


def remember(once: Once, answer: Answer) -> None:
    """Store the answer to a request under its key, in the request's own transaction. Raises KeyTakenError."""
    with noticing_taken():
        _REMEMBER.rows(places(once, answer))


# Rows that one DELETE removes.
PRUNE_ROWS = 1000


def prune(*, limit: int = PRUNE_ROWS) -> int:
    """Delete one batch of keys older than KEY_HOURS; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH past AS MATERIALIZED (
              SELECT id FROM scheduler_idempotencykey
               WHERE created_at < statement_timestamp() - make_interval(hours => %s)
               ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)
            DELETE FROM scheduler_idempotencykey key USING past WHERE key.id = past.id
            """,
            [KEY_HOURS, limit],
        )
        return int(cursor.rowcount)
