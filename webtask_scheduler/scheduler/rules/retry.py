"""Decides what follows an attempt, by the retry policy. Pure: no clock, no database."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

MAX_ATTEMPTS = 5
# No retry begins later than this after the due time: a receiver that is down for longer needs a person.
MAX_AGE_SECONDS = 7 * 24 * 3600
# The longest Retry-After that is honoured; a longer one is usually a mistake.
RETRY_AFTER_MOST_SECONDS = 24 * 3600

# Kinds of errors, as in models.ErrorKind, that are treated in their own way.
PERMANENT = frozenset({"url"})  # no later attempt can do better
AT_ONCE = frozenset({"lost"})  # our process vanished: nothing is won by waiting
GIVEN_BACK = frozenset({"interrupted"})  # our shutdown cut it off: even the last attempt does not count
# The receiver is gone for good, and says so.
GONE = 410

_DELTA_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When a failed attempt is made again. Times in seconds.

    The default is 5, 15, 45 and 135 seconds, a fifth more or less: a receiver that restarts is called again soon, one
    that is down is not hammered, and many timers that failed together do not come back together.
    """

    max_attempts: int = MAX_ATTEMPTS
    # "exponential": from `min_seconds` on, each time multiplied, to `max_seconds` at the most; "fixed": `min_seconds`
    # each time; "list": `delays_seconds` in turn, the last one again and again.
    backoff: str = "exponential"
    min_seconds: float = 5.0
    max_seconds: float = 3600.0
    multiplier: float = 3.0
    # A wait, also the longest, is longer or shorter by up to this share of it.
    jitter: float = 0.2
    delays_seconds: tuple[float, ...] = ()
    # No attempt begins later than this after the due time; None means MAX_AGE_SECONDS, for retries.
    max_age_seconds: float | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> "Policy":
        """Return the policy that the database stores. Fields that a newer release may have added are ignored."""
        if not stored:
            return DEFAULT
        known = {name: stored[name] for name in _NAMES if name in stored}
        if "delays_seconds" in known:
            known["delays_seconds"] = tuple(known["delays_seconds"])
        return cls(**known)

    @property
    def least_wait(self) -> float:
        """Return the shortest wait before a retry, in seconds."""
        wait = self.min_seconds
        if self.backoff == "list" and self.delays_seconds:
            wait = min(self.delays_seconds)
        elif self.backoff == "exponential":
            wait = min(wait, self.max_seconds)
        return wait * (1 - self.jitter)


_NAMES = tuple(item.name for item in fields(Policy))
DEFAULT = Policy()


class Verdict(Enum):
    SUCCEEDED = "succeeded"
    RETRY = "scheduled"
    GIVE_UP = "failed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows an attempt; only a retry uses `wait_seconds`."""

    verdict: Verdict
    wait_seconds: float = 0.0
    # Pause a timer that recurs, because the receiver is gone for good.
    pause: bool = False


def decide(
    *,
    error: str,
    attempt: int,
    permanent: bool = False,
    policy: Policy = DEFAULT,
    status_code: int | None = None,
    retry_after_seconds: float | None = None,
    age_seconds: float = 0.0,
    least_seconds: float = 0.0,
) -> Decision:
    """Return the decision after attempt number `attempt`, from 1, ended with `error`, empty for a success.

    With `permanent`, the error cannot go away, whatever its kind. `age_seconds` have passed since the due time, and the
    answer asked to wait for `retry_after_seconds`. No wait is shorter than `least_seconds`, whatever the policy says,
    except after the loss of a process.
    """
    if not error:
        return Decision(Verdict.SUCCEEDED)
    if error in GIVEN_BACK:
        # The receiver did not cause this, so the bound of retries does not apply; the timer's own bound does.
        too_old = policy.max_age_seconds is not None and age_seconds > policy.max_age_seconds
        return Decision(Verdict.GIVE_UP if too_old else Verdict.RETRY)
    if status_code == GONE:
        return Decision(Verdict.GIVE_UP, pause=True)
    if permanent or error in PERMANENT or attempt >= policy.max_attempts:
        return Decision(Verdict.GIVE_UP)
    # Never sooner than was asked for. With a status other than 429 or 503 the header is unusual, but just as clear.
    wait = 0.0 if error in AT_ONCE else max(_wait(policy, attempt), least_seconds, retry_after_seconds or 0.0)
    most = MAX_AGE_SECONDS if policy.max_age_seconds is None else min(MAX_AGE_SECONDS, policy.max_age_seconds)
    if age_seconds + wait > most:
        return Decision(Verdict.GIVE_UP)
    return Decision(Verdict.RETRY, wait)


def backoff_seconds(policy: Policy, attempt: int) -> float:
    """Return how long the policy waits after attempt number `attempt`, without the jitter."""
    if policy.backoff == "list" and policy.delays_seconds:
        return policy.delays_seconds[min(attempt, len(policy.delays_seconds)) - 1]
    if policy.backoff == "exponential":
        return min(policy.max_seconds, policy.min_seconds * policy.multiplier ** (attempt - 1))
    return policy.min_seconds


def _wait(policy: Policy, attempt: int) -> float:
    return backoff_seconds(policy, attempt) * random.uniform(1 - policy.jitter, 1 + policy.jitter)  # noqa: S311 - jitter is not cryptography


def retry_after_seconds(header: str, *, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks to wait, as a number or until a date; None if it is not valid."""
    text = header.strip()
    try:
        if _DELTA_SECONDS.fullmatch(text):
            wait = float(text)
        else:
            moment = parsedate_to_datetime(text)
            # An HTTP date is in GMT, even if it does not say so.
            wait = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, IndexError, OverflowError):
        return None
    return min(max(wait, 0.0), float(RETRY_AFTER_MOST_SECONDS))
