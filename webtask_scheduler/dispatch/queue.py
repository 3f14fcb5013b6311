"""The protocol of a queue that a dispatcher can serve, and the values that pass between them.

It depends on no table and no Django model.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol


class QueueError(Exception):
    """The queue cannot be reached or does not answer. The caller holds nothing from this call."""


class PublishError(Exception):
    """The broker did not take the message."""


@dataclass(order=True, slots=True)
class Held:
    """A delivery that this process holds: its due time and the end of its lease, in monotonic seconds."""

    at: float
    expires: float = field(compare=False)
    delivery_id: uuid.UUID = field(compare=False)
    token: uuid.UUID = field(compare=False)
    # For people who read the messages; a worker needs neither.
    timer_id: uuid.UUID | None = field(compare=False, default=None)
    due_at: datetime | None = field(compare=False, default=None)
    # The host of its URL and its flow: a worker decides by them what may be called now.
    host: str = field(compare=False, default="")
    flow: int = field(compare=False, default=0)
    # When it was claimed, published and received. The first two are by the queue's clock, in seconds since the epoch.
    marks: tuple[float, ...] = field(compare=False, default=())
    # What the queue's clock shows when this process's monotonic one shows 0.
    clock: float = field(compare=False, default=0.0)

    @property
    def key(self) -> tuple[uuid.UUID, uuid.UUID]:
        """Return what tells this claim of the delivery from any other claim of it."""
        return self.delivery_id, self.token


@dataclass(frozen=True, slots=True)
class Chunk:
    """The deliveries of one message, and a label for people."""

    items: tuple[Held, ...]
    label: str = ""


class Lane(NamedTuple):
    """A lane in which something is due: whether any of it is on time, and whether any of it is long overdue."""

    number: int
    fresh: bool
    backlog: bool


class Look(NamedTuple):
    """The lanes in which something is due, and how many deliveries of each flow are claimed and not started."""

    lanes: Sequence[Lane]
    claimed: Mapping[int, int]


class Portion(NamedTuple):
    """At most `limit` deliveries of a lane, or of one flow of it."""

    lane: int
    limit: int
    flow: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of one claim: the deliveries taken, and the PeriodicTasks that differ from our rows.

    `taken` counts the rows of each lane, including those that were parked.
    """

    held: Sequence[Held]
    disputed: Sequence[int]
    taken: Mapping[int, int]


class Queue(Protocol):
    """A queue of deliveries. Each method raises QueueError if the queue is away; the queue's own clock counts."""

    def look(self) -> Look:
        """Return what is due within the look-ahead. It must be cheap: it is called again and again."""

    def flows(self, lanes: Sequence[int], after: Mapping[int, int]) -> tuple[Sequence[int], dict[int, int]]:
        """Return the flows in which something is due, and where to go on in lanes with too many flows.

        `after` is the second value of the call before.
        """

    def claim(self, portions: Sequence[Portion], *, backlog: bool) -> Claim:
        """Claim due deliveries, oldest first in each portion: either the backlog or the others."""

    def put_back(self, held: Sequence[Held]) -> None:
        """Return claimed deliveries that were not published to the queue."""

    def reclaim(self) -> bool:
        """Take back a batch of expired leases; return whether there may be more."""

    def release(self) -> bool:
        """Release a batch of deliveries whose stops were lifted; return whether there may be more."""
