"""Claims due deliveries, publishes each at its due time, and takes back expired leases.

Beat calls `Dispatcher.turn` again and again. The queue's clock decides what is due; between two claims the dispatcher
keeps the coming second's deliveries in memory and measures time by the monotonic clock. Any number of dispatchers may
run: the queue keeps their claims apart.
"""

import heapq
import logging
import math
import time
from collections.abc import Callable, Sequence

from webtask_scheduler.dispatch.queue import Chunk, Claim, Held, Lane, Portion, PublishError, Queue, QueueError
from webtask_scheduler.dispatch.share import CLAIM_LIMIT, FLOW_FLOOR, WINDOW, allot, lane_of
from webtask_scheduler.telemetry.events import event

# The longest time between two claims; a timer that is due when it is made waits half of it on average.
POLL_SECONDS = 0.04
RECLAIM_SECONDS = 1.0
# For this long, a lane in which more was due than a claim could take is claimed from flow by flow.
CROWDED_SECONDS = 2.0
# Pause after an error of the queue or the broker; long enough not to flood the log.
PAUSE_SECONDS = 1.0
# Deliveries that one message may carry: a message costs a worker several round trips to the broker, as much as some
# calls. A few that are due together go in one; more in two or more, for several workers to share.
CHUNK_MOST = 50
CHUNK_LEAST = 8
CHUNKS_AT_ONCE = 2
# Deliveries that come due within this time are gathered: a worker takes between 100 and 150 messages a second, fewer
# when the processors are busy. A delivery that comes due alone does not wait.
GATHER_SECONDS = 0.01
# Deliveries later than this are not spread over messages: workers have enough to do.
LATE_SECONDS = 0.5


class Dispatcher:
    """One beat's share of the work: the coming second in memory, and when to look at the queue again.

    `publish` sends a chunk and raises PublishError; `dispute` is given PeriodicTasks that differ from our rows.
    `backlog_per_second` bounds how fast the backlog is worked off; 0 is as fast as workers start it.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        publish: Callable[[Chunk], None],
        dispute: Callable[[list[int]], None],
        backlog_per_second: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        window: int = WINDOW,
    ) -> None:
        self._queue = queue
        self._publish = publish
        self._dispute = dispute
        self._clock = clock
        self._window = window
        self._backlog_per_second = backlog_per_second
        # How many of the backlog may be claimed now: grows with time, up to a second's worth.
        self._backlog_allowance = 0.0
        self._backlog_at = clock()
        self._held: list[Held] = []
        self._unpublished: list[Held] = []
        # Until when lanes are claimed from flow by flow; and where the next look at a lane with very many flows begins.
        self._crowded: dict[int, float] = {}
        self._after: dict[int, int] = {}
        self._poll_at = 0.0
        # Nothing is published before this time.
        self._publish_at = 0.0
        self._reclaim_at = 0.0
        self._failing: set[str] = set()

    def turn(self) -> float:
        """Do what is due now and return the seconds until the next turn. Handles errors of queue and broker itself."""
        try:
            self._publish_due()
            now = self._clock()
            if now >= self._poll_at:
                self._poll(now)
                self._works("database")
                self._publish_due()
        except PublishError as error:
            self._failed("broker", error)
        except QueueError as error:
            self._failed("database", error)
        now = self._clock()
        return max(0.0, min([self._poll_at, *(max(item.at, self._publish_at) for item in self._held[:1])]) - now)

    def close(self) -> None:
        """Put back everything that is still held, so that another dispatcher takes it at once."""
        self._unpublished += self._held
        self._held = []
        try:
            self._queue.put_back(self._unpublished)
        except QueueError as error:
            event("put_back_failed", level=logging.WARNING, held=len(self._unpublished), error=str(error).strip())
        self._unpublished = []

    def _poll(self, now: float) -> None:
        if self._unpublished:
            self._queue.put_back(self._unpublished)
            self._unpublished = []
        more = False
        if now >= self._reclaim_at:
            more = self._queue.reclaim()
            more = self._queue.release() or more
            self._reclaim_at = now if more else now + RECLAIM_SECONDS
        lanes, claimed = self._queue.look()
        if lanes:
            held = dict(claimed)
            taken = self._claim([lane for lane in lanes if lane.fresh], held, now, backlog=False)
            overdue = [lane for lane in lanes if lane.backlog]
            if overdue and (allowed := self._backlog_allowed(now)):
                count = self._claim(overdue, held, now, backlog=True, most=allowed)
                self._backlog_allowance -= count
                taken = max(taken, count)
            more = more or taken >= CLAIM_LIMIT // 2
        self._poll_at = now if more else now + POLL_SECONDS

    def _claim(
        self, lanes: Sequence[Lane], held: dict[int, int], now: float, *, backlog: bool, most: int = CLAIM_LIMIT
    ) -> int:
        """Claim from lanes, by flow where they are crowded; return how much was taken, and add it to `held`.

        The backlog gets half of the window, so that it does not delay what comes due now.
        """
        if not lanes:
            return 0
        window = self._window // 2 if backlog else self._window
        free = max(0, window - sum(held.values()))
        # In a lane where a flow holds much already, a claim by lane would give it more.
        full = {lane_of(flow) for flow, count in held.items() if count > max(FLOW_FLOOR, free // 4)}
        numbers = [lane.number for lane in lanes]
        scarce = free < window // 8
        crowded = [number for number in numbers if scarce or number in full or self._crowded.get(number, 0.0) > now]
        quiet = [number for number in numbers if number not in set(crowded)]
        taken = 0
        if crowded:
            flows, self._after = self._queue.flows(crowded, self._after)
            limits = allot(flows, held, window=window)
            portions = [Portion(lane_of(flow), min(limit, most), flow) for flow, limit in limits.items()]
            taken += self._take(self._queue.claim(portions, backlog=backlog), held) if portions else 0
        if quiet and most > taken:
            # No flow alone may have more than half of what is free, and the number of flows is not known here.
            each = min(max(FLOW_FLOOR, min(free // 2, most) // len(quiet)), most - taken)
            claim = self._queue.claim([Portion(number, each) for number in quiet], backlog=backlog)
            taken += self._take(claim, held)
            for number, count in claim.taken.items():
                if count >= each:
                    self._crowded[number] = now + CROWDED_SECONDS
        return taken

    def _take(self, claim: Claim, held: dict[int, int]) -> int:
        for item in claim.held:
            heapq.heappush(self._held, item)
            held[item.flow] = held.get(item.flow, 0) + 1
        if claim.disputed:
            self._dispute(list(claim.disputed))
        return sum(claim.taken.values())

    def _backlog_allowed(self, now: float) -> int:
        if not self._backlog_per_second:
            return CLAIM_LIMIT
        more = (now - self._backlog_at) * self._backlog_per_second
        self._backlog_allowance = min(self._backlog_allowance + more, max(1.0, self._backlog_per_second))
        self._backlog_at = now
        return min(CLAIM_LIMIT, int(self._backlog_allowance))

    def _publish_due(self) -> None:
        """Publish the due deliveries in memory, flows with few of them first."""
        now = self._clock()
        if now < self._publish_at:
            return
        due: list[Held] = []
        while self._held and self._held[0].at <= now:
            item = heapq.heappop(self._held)
            # After its lease has run out, a reclaim owns it.
            if item.expires > now:
                due.append(item)
        if not due:
            return
        size = CHUNK_MOST
        if now - due[0].at < LATE_SECONDS:
            size = min(CHUNK_MOST, max(CHUNK_LEAST, math.ceil(len(due) / CHUNKS_AT_ONCE)))
        if len(due) > size:
            counts: dict[int, int] = {}
            for item in due:
                counts[item.flow] = counts.get(item.flow, 0) + 1
            # The sort is stable: deliveries of one class stay in order of time.
            due.sort(key=lambda item: counts[item.flow] > size)
        for start in range(0, len(due), size):
            batch = due[start : start + size]
            try:
                self._publish(Chunk(tuple(batch), _label(batch)))
            except PublishError:
                self._unpublished += due[start:]
                raise
            self._works("broker")
        self._publish_at = self._clock() + GATHER_SECONDS

    def _failed(self, what: str, error: Exception) -> None:
        self._poll_at = self._clock() + PAUSE_SECONDS
        if what not in self._failing:
            # Logged once, not at every turn.
            event("dispatch_failing", level=logging.ERROR, what=what, error=str(error).strip())
        self._failing.add(what)

    def _works(self, what: str) -> None:
        if what in self._failing:
            event("dispatch_recovered", level=logging.WARNING, what=what)
            self._failing.discard(what)


def _label(batch: Sequence[Held]) -> str:
    due_at = f"{batch[0].due_at:%H:%M:%S}" if batch[0].due_at else "?"
    return f"{len(batch)} timers due {due_at}" if len(batch) > 1 else f"timer due {due_at}: {batch[0].timer_id}"
