"""What a dispatcher needs of a queue: the protocol, and the values that pass between them.

Nothing here knows a table or a Django model: a queue that fulfils `Queue` can be dispatched.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol


class QueueError(Exception):
    """The queue cannot be reached or does not answer. Nothing was taken that the caller knows of."""


class PublishError(Exception):
    """The broker did not take the message."""


@dataclass(order=True, slots=True)
class Held:
    """A delivery that this process holds: its moment and the end of its lease, in monotonic seconds."""

    at: float
    expires: float = field(compare=False)
    delivery_id: uuid.UUID = field(compare=False)
    token: uuid.UUID = field(compare=False)
    # For the people who read the messages; a worker needs neither.
    timer_id: uuid.UUID | None = field(compare=False, default=None)
    due_at: datetime | None = field(compare=False, default=None)
    # The host of its URL, and the flow that it belongs to: a worker decides by them what may be called now.
    host: str = field(compare=False, default="")
    flow: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one message carries, and a label for people."""

    items: tuple[Held, ...]
    label: str = ""


class Lane(NamedTuple):
    """A lane in which something is due: whether any of it is on time, and whether any of it is long overdue."""

    number: int
    fresh: bool
    backlog: bool


class Look(NamedTuple):
    """The lanes in which something is due, and how much of each flow is claimed and not started."""

    lanes: Sequence[Lane]
    claimed: Mapping[int, int]


class Portion(NamedTuple):
    """At most `limit` deliveries of a lane, or of one flow of it."""

    lane: int
    limit: int
    flow: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of one claim: what was taken, and the PeriodicTasks that say something else than our rows.

    `taken` counts the rows of each lane, those that were parked included.
    """

    held: Sequence[Held]
    disputed: Sequence[int]
    taken: Mapping[int, int]


class Queue(Protocol):
    """Each method raises QueueError where the queue is away; times are seconds from the queue's own present."""

    def look(self) -> Look:
        """Return what is due within the look-ahead: cheap, for it is asked again and again."""

    def flows(self, lanes: Sequence[int], after: Mapping[int, int]) -> tuple[Sequence[int], dict[int, int]]:
        """Return the flows in which something is due, and for lanes with too many flows where to go on.

        `after` is what the call before gave.
        """

    def claim(self, portions: Sequence[Portion], *, backlog: bool) -> Claim:
        """Take due deliveries, oldest first in each portion: the long overdue ones, or the others."""

    def put_back(self, held: Sequence[Held]) -> None:
        """Return what was claimed and not published."""

    def reclaim(self) -> bool:
        """Take back a batch of what expired; return whether there may be more."""

    def release(self) -> bool:
        """Return to the queue a batch of what was held by stops that are lifted; return whether there may be more."""
