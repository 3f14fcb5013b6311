"""The retry policy: how an attempt ended and its number in, what follows out. Pure: no clock, no database."""

import random
from dataclasses import dataclass
from enum import Enum

MAX_ATTEMPTS = 5
# 5, 15, 45 and 135 seconds, a fifth more or less: a receiver that restarts is called again soon, one that is down is
# not hammered, and many timers that failed together do not come back together.
FIRST_WAIT_SECONDS = 5.0
MULTIPLIER = 3.0
JITTER = 0.2

# Kinds of errors, as in models.ErrorKind, that are treated in their own way.
PERMANENT = frozenset({"url"})  # no later attempt can do better
AT_ONCE = frozenset({"lost"})  # our process vanished: nothing is won by waiting
GIVEN_BACK = frozenset({"interrupted"})  # our shutdown cut it off: even the last attempt does not count


class Verdict(Enum):
    SUCCEEDED = "succeeded"
    RETRY = "scheduled"
    GIVE_UP = "failed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows; `wait_seconds` is for a retry."""

    verdict: Verdict
    wait_seconds: float = 0.0


def decide(*, error: str, attempt: int, max_attempts: int = MAX_ATTEMPTS) -> Decision:
    """Decide after attempt number `attempt`, from 1, ended with `error`, empty for a success."""
    if not error:
        return Decision(Verdict.SUCCEEDED)
    if error in GIVEN_BACK:
        return Decision(Verdict.RETRY)
    if error in PERMANENT or attempt >= max_attempts:
        return Decision(Verdict.GIVE_UP)
    if error in AT_ONCE:
        return Decision(Verdict.RETRY)
    wait = FIRST_WAIT_SECONDS * MULTIPLIER ** (attempt - 1)
    return Decision(Verdict.RETRY, wait * random.uniform(1 - JITTER, 1 + JITTER))
