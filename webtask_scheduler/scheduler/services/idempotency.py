"""Makes a repeated request take effect once: stores the answer under the client's idempotency key.

The answer is stored in the transaction of the request itself, so the key exists if and only if the request took effect.
It is encrypted, and the request is known by a keyed hash, because both hold what timers do. Rows of releases up to
0.2 hold the answer in plain text and a plain hash.
"""

import hashlib
import json
from dataclasses import dataclass

from django.db import connection

from config.database.prepared import Prepared
from webtask_scheduler import vault

# How long a creating request may be repeated under its key.
KEY_HOURS = 24


class KeyInFlightError(Exception):
    """Another request with this key is in progress."""


class KeyReusedError(Exception):
    """The key was used for another request."""


class KeyTakenError(Exception):
    """Another request with this key has just ended: `recall` now returns its answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request with an idempotency key."""

    status_code: int
    headers: dict[str, str]
    body: str


# The lock shows at once that another request is in flight. The unique constraint decides, because the lock may be taken
# after the statement's snapshot.
_RECALL = Prepared(
    "webtask_recall",
    """
SELECT pg_try_advisory_xact_lock(hashtextextended(%(lock)s, 0)), found.*
  FROM (VALUES (1)) one (row) LEFT JOIN LATERAL (
    SELECT fingerprint, status_code, headers::text, body
      FROM (
        -- Two, because an index does not serve IS NOT DISTINCT FROM.
        SELECT * FROM scheduler_idempotencykey WHERE owner_id = %(owner)s::bigint AND key = %(key)s
         UNION ALL
        SELECT * FROM scheduler_idempotencykey WHERE owner_id IS NULL AND %(owner)s::bigint IS NULL AND key = %(key)s
      ) known
     WHERE created_at > clock_timestamp() - make_interval(hours => %(hours)s)
  ) found ON true
""",
    lock="text",
    key="text",
    owner="bigint",
    hours="int",
)
_REMEMBER = Prepared(
    "webtask_remember",
    """
INSERT INTO scheduler_idempotencykey AS known (owner_id, key, fingerprint, status_code, headers, body, created_at)
VALUES (%(owner)s, %(key)s, %(fingerprint)s, %(status)s, %(headers)s, %(body)s, clock_timestamp())
ON CONFLICT (owner_id, key) DO UPDATE
   SET fingerprint = excluded.fingerprint, status_code = excluded.status_code, headers = excluded.headers,
       body = excluded.body, created_at = excluded.created_at
 WHERE known.created_at <= clock_timestamp() - make_interval(hours => %(hours)s)
RETURNING true
""",
    owner="bigint",
    key="text",
    fingerprint="bytea",
    status="smallint",
    headers="jsonb",
    body="text",
    hours="int",
)


def recall(key: str, *, owner_id: int | None, request: bytes) -> Answer | None:
    """Return the answer that was given under a key, None for a new key; hold the key until the transaction ends.

    `request` is all that makes a request the same as another. Call it inside a transaction. Raises KeyInFlightError,
    KeyReusedError, VaultError.
    """
    known_as = [hashlib.sha256(request).digest(), *vault.fingerprints(request)]
    with connection.cursor() as cursor:
        lock = f"idempotency key {owner_id} {key}"
        _RECALL.run(cursor, {"lock": lock, "key": key, "owner": owner_id, "hours": KEY_HOURS})
        free, known, status_code, headers, body = cursor.fetchone()
    if known is not None:
        if bytes(known) not in known_as:
            raise KeyReusedError
        return Answer(status_code, json.loads(headers), vault.unseal(body) if vault.is_sealed(body) else body)
    if not free:
        raise KeyInFlightError
    return None


def remember(key: str, answer: Answer, *, owner_id: int | None, request: bytes) -> None:
    """Store the answer to a request under its key, in the request's own transaction. Raises KeyTakenError."""
    fingerprint, *_ = vault.fingerprints(request)
    with connection.cursor() as cursor:
        _REMEMBER.run(
            cursor,
            {
                "owner": owner_id,
                "key": key,
                "fingerprint": fingerprint,
                "status": answer.status_code,
                "headers": json.dumps(answer.headers),
                "body": vault.seal(answer.body),
                "hours": KEY_HOURS,
            },
        )
        if cursor.fetchone() is None:
            raise KeyTakenError


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
