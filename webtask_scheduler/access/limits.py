"""What an owner may have: requests a second, and amounts that are added up between exact counts. Both are in Redis.

**Requests** are a token bucket: one round trip by one script, on Redis' clock, for all web processes.

**Amounts**, such as timers that wait, are too many to be counted for each creation. So an amount is *reserved* before
it is made. Redis keeps the last exact count and the sum of all that was reserved since. Together they are never too
small: what ends meanwhile only lowers the amount. An exact count is made when there is none yet, and when by that sum
the limit is reached, once in RECOUNT_SECONDS for each owner.

Without an answer from Redis, requests and reservations are let through, because a service that promises times must not
end with its rate limiter. It is said once in the log, with how many there were, and nobody waits for Redis meanwhile.
"""

import functools
import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.db import transaction

from webtask_scheduler.access import audit
from webtask_scheduler.access.models import Limit
from webtask_scheduler.broker import redis_client
from webtask_scheduler.telemetry.events import event

# A bucket holds what its rate gives in this time: so much may come at once after a pause.
BURST_SECONDS = 10.0
# A request waits no longer than this for Redis, and after a failure nobody asks it for the next while.
TIMEOUT_SECONDS = 0.25
AWAY_SECONDS = 1.0
RECOUNT_SECONDS = 1.0
# A reservation is in a transaction that has ended, or is undone, after this long. Those that are younger are not taken
# for counted by an exact count, so that near the limit they may be counted twice for as long.
SETTLED_SECONDS = 3.0
# Far from the limit, a process reserves so many more for what comes within a second, and asks Redis less often.
SPARE = 64
SPARE_SECONDS = 1.0
SPARE_OWNERS_MOST = 10_000
# Nine tenths of the limit are far enough from it.
FAR = 0.9
# What is not asked for this long is forgotten, and counted anew.
KEEP_SECONDS = 24 * 3600

# A change of an owner's own limits is seen by every process within this time, by one statement for all owners.
FRESH_SECONDS = 10.0
OWNERS_MOST = 10_000

_PREFIX = "webtask_scheduler:limit:"

# The key holds when the bucket will be full again, which says all of it.
_TAKE = """
local rate, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local full = math.max(now, math.min(tonumber(redis.call('GET', KEYS[1])) or 0, now + most / rate))
local tokens = most - (full - now) * rate
if tokens < 1 then return {0, string.format('%.6f', tokens)} end
full = full + 1 / rate
redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', math.ceil((full - now) * 1000) + 1)
return {1, string.format('%.6f', tokens - 1)}
"""
# `total` is all that was ever reserved; `base` an exact count of `base_at`, `base_total` how much of `total` is surely
# in it, and `at` when a count was last begun or ended.
# `mark` and `before` are totals of at least SETTLED_SECONDS ago, or younger ones at `mark_at`.
_RESERVE = """
local amount, spare, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local recount, settle, far, keep = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local counted, counted_total = tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local names = {'total', 'base', 'base_total', 'base_at', 'at', 'last_at', 'mark', 'mark_at', 'before'}
local read = redis.call('HMGET', KEYS[1], unpack(names))
local kept = {}
for i, name in ipairs(names) do kept[name] = tonumber(read[i]) end
local total = kept.total or 0
local function text(value) return string.format('%.6f', value) end
if counted then
  -- Of counts side by side the one that says less is right: a slow one has counted what others reserved meanwhile.
  local beside = kept.base and kept.base_at and now - kept.base_at < settle
  if not beside or counted - counted_total < kept.base - kept.base_total then
    kept.base, kept.base_total = counted, counted_total
    redis.call('HSET', KEYS[1], 'base', text(counted), 'base_total', text(counted_total), 'base_at', text(now))
  end
  kept.at = now
  redis.call('HSET', KEYS[1], 'at', text(now))
  redis.call('EXPIRE', KEYS[1], keep)
end
local settled = kept.before or 0
if not kept.last_at or now - kept.last_at >= settle then settled = total
elseif kept.mark_at and now - kept.mark_at >= settle then settled = kept.mark end
if not kept.base then return {'count', text(settled), '0'} end
local has = kept.base + total - kept.base_total
if has + amount > most + 0.0000005 then
  if not counted and now - kept.at >= recount then
    -- Others that ask meanwhile go by the sum: one count at a time.
    redis.call('HSET', KEYS[1], 'at', text(now))
    return {'count', text(settled), '0'}
  end
  return {'full', text(has), '0'}
end
if has + amount + spare > far * most then spare = 0 end
if not kept.mark_at or now - kept.mark_at >= settle then
  redis.call('HSET', KEYS[1], 'before', text(kept.mark or 0), 'mark', text(total), 'mark_at', text(now))
end
redis.call('HSET', KEYS[1], 'total', text(total + amount + spare), 'last_at', text(now))
redis.call('EXPIRE', KEYS[1], keep)
return {'ok', text(has + amount), text(spare)}
"""


class Allowed(NamedTuple):
    """What an owner may do and have; 0 is without limit. The fields are those of models.Limit."""

    requests_per_second: float
    timers_waiting: int
    recurring_per_second: float
    bulk_open: int


# When they were read, and those that differ from the settings, by owner.
_own: tuple[float, dict[int, Limit]] | None = None


def allowed(owner_id: int | None) -> Allowed:
    """Return what an owner may do and have: its own limits, or else those of the settings. Raises DatabaseError."""
    global _own  # noqa: PLW0603 - one set a process is the point
    found = None
    if owner_id is not None:
        now, known = time.monotonic(), _own
        if known is None or now - known[0] >= FRESH_SECONDS:
            known = _own = now, {limit.owner_id: limit for limit in Limit.objects.order_by("pk")[:OWNERS_MOST]}
        found = known[1].get(owner_id)
    common = Allowed(
        requests_per_second=settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND,
        timers_waiting=settings.WEBTASK_LIMIT_TIMERS_WAITING,
        recurring_per_second=settings.WEBTASK_LIMIT_RECURRING_PER_SECOND,
        bulk_open=settings.WEBTASK_LIMIT_BULK_OPEN,
    )
    if found is None:
        return common
    own = {name: getattr(found, name) for name in Allowed._fields}
    return common._replace(**{name: value for name, value in own.items() if value is not None})


def change(owner_id: int, **values: float | None) -> Limit | None:
    """Set an owner's own limits, by the fields of Allowed; a field that is None or left out is the setting's again.

    Returns the row, None if all are the settings'. Raises DatabaseError.
    """
    global _own  # noqa: PLW0603 - as above
    new = {name: values.get(name) for name in Allowed._fields}
    with transaction.atomic():
        before = Limit.objects.select_for_update().filter(owner=owner_id).values(*new).first()
        limit = None
        if any(value is not None for value in new.values()):
            limit = Limit.objects.update_or_create(owner_id=owner_id, defaults=new)[0]
        else:
            Limit.objects.filter(owner=owner_id).delete()
        after = new if limit is not None else None
        if before != after:
            audit.record("limit.changed", kind="limit", of=owner_id, owner_id=owner_id, before=before, after=after)
    _own = None
    return limit


class Taken(NamedTuple):
    """The answer of a bucket: whether there was a token, how many are left, and when there is one, or all, again."""

    allowed: bool
    left: int
    most: int
    wait_seconds: float
    full_seconds: float


@functools.cache
def _sha(script: str) -> str:
    # Redis names a script so.
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


class _Store:
    """Runs scripts in Redis, and leaves Redis alone for a while after it failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        # Connections that nobody uses now. Whoever needs one takes one, so there are as many as are needed at once.
        self._idle: list[Any] = []
        # While Redis is away: when it is asked next, and how many were let through without it.
        self._ask_at: float | None = None
        self._let_through = 0

    def run(self, script: str, key: str, arguments: Sequence[Any]) -> Any:
        """Return what a script returns; None if Redis does not answer in time."""
        if self._ask_at is not None and not self._may_ask():
            return None
        try:
            answer = self._evaluate(script, _PREFIX + key, arguments)
        except redis.RedisError as error:
            self._failed(error)
            return None
        if self._ask_at is not None:
            self._answered()
        return answer

    def _evaluate(self, script: str, key: str, arguments: Sequence[Any]) -> Any:
        """Return what a script returns. Raises RedisError.

        The client itself would send the same by four times as many calls of functions, and each request asks.
        """
        connection = self._connection()
        try:
            connection.send_command("EVALSHA", _sha(script), 1, key, *arguments)
            try:
                return connection.read_response()
            except redis.exceptions.NoScriptError:
                # The first time, and after a restart.
                connection.send_command("EVAL", script, 1, key, *arguments)
                return connection.read_response()
        finally:
            # After an error it is closed, and connects again by itself.
            self._idle.append(connection)

    def _connection(self) -> Any:
        """Return a connection that nobody else uses. Raises RedisError."""
        try:
            connection = self._idle.pop()
        except IndexError:
            with self._lock:
                if self._client is None:
                    self._client = redis_client(timeout_seconds=TIMEOUT_SECONDS, retries=False)
            return self._client.connection_pool.get_connection()
        try:
            # Of an idle one, that is the end: the server restarted, or closed what was idle for long.
            is_over = connection.can_read()
        except (redis.RedisError, OSError):
            is_over = True
        if is_over:
            connection.disconnect()
        return connection

    def _may_ask(self) -> bool:
        """Return whether this thread is to find out if Redis is back; if not, it is let through and counted."""
        now = time.monotonic()
        with self._lock:
            if self._ask_at is None:
                return True
            if now >= self._ask_at:
                # One at a time: the others go on without.
                self._ask_at = now + AWAY_SECONDS
                return True
            self._let_through += 1
            return False

    def _failed(self, error: Exception) -> None:
        with self._lock:
            is_first = self._ask_at is None
            self._ask_at = time.monotonic() + AWAY_SECONDS
            self._let_through += 1
        if is_first:
            event("limits_lifted", level=logging.WARNING, error=" ".join(str(error).split()))

    def _answered(self) -> None:
        with self._lock:
            let_through, self._let_through = self._let_through, 0
            was_away, self._ask_at = self._ask_at is not None, None
        if was_away:
            event("limits_enforced", level=logging.WARNING, let_through=let_through)


class _Spare:
    """What this process has reserved and not used, by key; each part may be used for SPARE_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[float, float]] = {}

    def use(self, key: str, amount: float) -> bool:
        with self._lock:
            left, until = self._parts.get(key, (0.0, 0.0))
            if left < amount or time.monotonic() >= until:
                return False
            self._parts[key] = (left - amount, until)
            return True

    def put(self, key: str, amount: float) -> None:
        with self._lock:
            if len(self._parts) >= SPARE_OWNERS_MOST:
                self._parts.clear()
            self._parts[key] = (amount, time.monotonic() + SPARE_SECONDS)


@functools.cache
def _store() -> _Store:
    return _Store()


@functools.cache
def _spare() -> _Spare:
    return _Spare()


def forget() -> None:
    """Drop this process's connection and what it keeps; for tests."""
    global _own  # noqa: PLW0603 - as above
    _own = None
    _store.cache_clear()
    _spare.cache_clear()


def take(key: str, *, per_second: float, most: float | None = None) -> Taken | None:
    """Take one from the bucket `key`; return None if Redis does not answer, which lets the request through.

    A full bucket holds `most`, by default what BURST_SECONDS bring.
    """
    most = max(1.0, per_second * BURST_SECONDS if most is None else most)
    answer = _store().run(_TAKE, f"requests:{key}", [per_second, most])
    if answer is None:
        return None
    tokens = float(answer[1])
    return Taken(
        allowed=bool(answer[0]),
        left=math.floor(max(0.0, tokens)),
        most=math.floor(most),
        wait_seconds=max(0.0, 1 - tokens) / per_second,
        full_seconds=max(0.0, most - tokens) / per_second,
    )


def reserve(key: str, amount: float, *, most: float, count: Callable[[], float], spare: int = 0) -> bool:
    """Reserve an amount; return whether the limit `most` allows it. It does while Redis does not answer.

    `count` returns the exact amount that there is, in the present snapshot of the database; it may stop beyond `most`.
    Up to `spare` more are reserved for this process's next ones.
    """
    if amount <= 0 or _spare().use(key, amount):
        return True
    arguments = [amount, spare, most, RECOUNT_SECONDS, SETTLED_SECONDS, FAR, KEEP_SECONDS]
    answer = _store().run(_RESERVE, key, [*arguments, "", ""])
    if answer is not None and answer[0] == b"count":
        answer = _store().run(_RESERVE, key, [*arguments, count(), float(answer[1])])
    if answer is None:
        return True
    if answer[0] == b"ok" and float(answer[2]):
        _spare().put(key, float(answer[2]))
    return bool(answer[0] == b"ok")
