"""Makes API keys, finds whose key a request carries, and revokes keys."""

import contextlib
import hashlib
import hmac
import re
import secrets
import string
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from django.core.exceptions import ValidationError
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from config.database.prepared import Prepared
from webtask_scheduler.access import audit
from webtask_scheduler.access.models import NAME_MAX_LENGTH, ApiKey, Scope

# Where a key leaks, people and programs that look for secrets know it by this.
PREFIX = "wts_live_"
# Letters and digits only, so that a double click selects a whole key. 238 bits.
_ALPHABET = string.ascii_letters + string.digits
RANDOM_CHARACTERS = 40
# Random characters that are shown later, to tell keys apart; the rest has 202 bits.
HINT_CHARACTERS = 6
# Keys of one owner that are in use. Each is told apart by a person, so that more are a program's mistake.
KEYS_MOST = 100
_FORM = re.compile(rf"{PREFIX}[A-Za-z0-9]{{{RANDOM_CHARACTERS}}}")


class Made(NamedTuple):
    """A key just made. Its text is stored nowhere."""

    key: ApiKey
    text: str


def make(*, name: str, owner_id: int, scopes: Iterable[str], expires_at: datetime | None = None) -> Made:
    """Store and return a new key. Raises ValidationError, by field; by `owner` if the owner has KEYS_MOST in use."""
    wanted = set(scopes)
    errors: dict[str, object] = {}
    if not 0 < len(name.strip()) <= NAME_MAX_LENGTH:
        errors["name"] = _("A name of 1 to %(most)s characters is required.") % {"most": NAME_MAX_LENGTH}
    if not wanted or not wanted <= set(Scope.values):
        errors["scopes"] = _("One or more of these are required: %(scopes)s.") % {"scopes": ", ".join(Scope.values)}
    if expires_at is not None and expires_at <= timezone.now():
        errors["expires_at"] = _("It has passed: a key expires in the future, or never.")
    if errors:
        raise ValidationError(errors)
    text = PREFIX + "".join(secrets.choice(_ALPHABET) for _character in range(RANDOM_CHARACTERS))
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Without the lock two at once would both find room.
            lock = [f"API keys of {owner_id}"]
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", lock)
        check_room(owner_id)
        key = ApiKey.objects.create(
            name=name.strip(),
            owner_id=owner_id,
            prefix=text[: len(PREFIX) + HINT_CHARACTERS],
            digest=_digest(text),
            # In the order of the enumeration.
            scopes=[scope for scope in Scope.values if scope in wanted],
            expires_at=expires_at,
        )
        told = {"name": key.name, "scopes": key.scopes, "expires_at": key.expires_at}
        audit.record("key.created", kind="key", of=key.pk, owner_id=owner_id, after=told)
    return Made(key, text)


def check_room(owner_id: int) -> None:
    """Check that an owner may have another key. Raises ValidationError."""
    if ApiKey.objects.filter(owner=owner_id, revoked_at=None).exclude(expires_at__lte=Now()).count() >= KEYS_MOST:
        said = _("One owner may have at most %(most)s keys in use. Revoke one first.") % {"most": KEYS_MOST}
        raise ValidationError({"owner": said})


def revoke(keys: QuerySet[ApiKey]) -> int:
    """Revoke keys, from the next request on; return how many were not revoked yet."""
    with transaction.atomic():
        valid = dict(keys.filter(revoked_at=None).select_for_update().values_list("pk", "owner_id"))
        ApiKey.objects.filter(pk__in=valid).update(revoked_at=Now())
        audit.record_each("key.revoked", kind="key", owners=valid)
    return len(valid)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key a request carries, in the place of the user: the table of users is not read a second time."""

    key_id: int
    pk: int
    is_superuser: bool
    scopes: frozenset[str]
    email: str
    # The database's time as it was looked up.
    found_at: datetime

    def get_username(self) -> str:
        return self.email

    @property
    def is_authenticated(self) -> bool:
        return True


# No copy of a row is kept between requests, so a revocation takes effect at once in all processes.
_FIND = Prepared(
    "webtask_find_key",
    """
SELECT key.id, key.digest, key.owner_id, owner.is_superuser, key.scopes, owner.email,
       key.last_used_at IS NULL OR key.last_used_at < statement_timestamp() - interval '1 minute' AS unnoted,
       clock_timestamp()
  FROM access_apikey key JOIN users_user owner ON owner.id = key.owner_id
 WHERE key.digest = %(digest)s AND key.revoked_at IS NULL AND owner.is_active
   AND (key.expires_at IS NULL OR key.expires_at > statement_timestamp())
""",
    digest="bytea",
)


def find(text: str) -> Holder | None:
    """Return whose key a text is; None for no key, or one that was revoked, has expired, or whose owner is gone."""
    if not _FORM.fullmatch(text):
        return None
    digest = _digest(text)
    row = next(iter(_FIND.rows({"digest": digest})), None)
    # The index compares bytes until the first that differs. A guess learns nothing from that, because it cannot choose
    # its digest; the comparison in constant time leaves no need to argue so.
    if row is None or not hmac.compare_digest(bytes(row[1]), digest):
        return None
    key_id, __, owner_id, is_superuser, scopes, email, unnoted, now = row
    if unnoted:
        uses.note(key_id)
    return Holder(key_id, owner_id, is_superuser, frozenset(scopes), email, now)


class Uses:
    """The keys that were used in this process, to be stored by a thread of its own.

    So the time of the last use neither delays a request nor makes one fail.
    """

    PAUSE_SECONDS = 5.0

    def __init__(self) -> None:
        self._noted: set[int] = set()
        self._lock = threading.Lock()

    def note(self, key_id: int) -> None:
        with self._lock:
            self._noted.add(key_id)

    def flush(self) -> None:
        """Store when the noted keys were used, if that was not stored within the last minute. Raises DatabaseError."""
        with self._lock:
            noted, self._noted = self._noted, set()
        if not noted:
            return
        with connection.cursor() as cursor:
            # What another process is just storing is left to it.
            cursor.execute(
                """
                WITH stale AS MATERIALIZED (
                  SELECT id FROM access_apikey
                   WHERE id = ANY(%s) AND coalesce(last_used_at < statement_timestamp() - interval '1 minute', true)
                   ORDER BY id FOR UPDATE SKIP LOCKED)
                UPDATE access_apikey key SET last_used_at = statement_timestamp() FROM stale WHERE key.id = stale.id
                """,
                [list(noted)],
            )

    def keep(self) -> None:
        """Have a thread of this process store what is noted. It keeps no connection meanwhile."""
        threading.Thread(target=self._run, name="key-uses", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self.PAUSE_SECONDS):
            if self._noted:
                # A use that cannot be stored is noted again by the next request.
                with contextlib.suppress(DatabaseError, InterfaceError):
                    self.flush()
                connection.close()


# One for each process.
uses = Uses()


def keep_uses() -> None:
    """Have this process store when keys are used; see `Uses.keep`."""
    uses.keep()
