"""The callers of one worker process: what is called now, what waits, and what may not hold up the rest.

A starter thread starts what was handed over, many in one statement; caller threads only call; a ledger thread records
outcomes and renews leases, many in one statement. Callers never touch the database, so no transaction spans a call and
two connections serve the process.

A call that takes long costs no processor time, only patience. So the slots count quick calls: after SLOW_SECONDS a call
gives its slot up and is counted as slow, of which there may be many more, but few to one host. What a slow host cannot
take now goes back to the queue with a later time, spread by how fast that host gets on; nothing is counted against it.
"""

import logging
import math
import queue
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, connection

from webtask_scheduler.scheduler.delivery import (
    Outcome,
    Started,
    call_url,
    record_missed,
    record_outcomes,
    start_attempts,
)
from webtask_scheduler.scheduler.http import Client
from webtask_scheduler.scheduler.leases import (
    CLAIMED_LEASE_SECONDS,
    RUNNING_LEASE_SECONDS,
    Held,
    put_back,
    renew_leases,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

RENEW_SECONDS = 5.0
# A delivery rung for this much too soon is waited for; a longer wait is left to the queue.
EARLY_SECONDS = 0.05
# After an error of the database.
PAUSE_SECONDS = 0.25
# Outcomes that one statement records.
RECORD_LIMIT = 200
# At shutdown: how long calls under way may take to end by themselves.
DRAIN_SECONDS = 8.0

# A call under way for longer no longer holds a slot.
SLOW_SECONDS = 1.0
WATCH_SECONDS = 0.25
# Slow calls under way, for each slot: threads that only wait.
SLOW_PER_SLOT = 6
# Of the slots, one host may take this share: the rest stays free for others until its calls have shown to be slow.
HOST_SHARE = 0.75
# Slow calls to one host: a host whose calls are all slow gets few, one with a slow call now and then many more.
HOST_SLOW_LEAST = 4
HOST_SLOW_MOST = 48
# Weight of the latest call in what is known of a host.
SLOWNESS_WEIGHT = 0.1
# What is known of a host counts half after this time, and so many quick calls are assumed of one not known yet.
SLOWNESS_HALF_SECONDS = 10.0
SLOWNESS_DOUBT = 2.0
# How far a delivery to a slow host may be put off at once, and the least that is worth a statement.
PUT_OFF_LEAST_SECONDS = 1.0
PUT_OFF_MOST_SECONDS = 300.0
# Hosts remembered though nothing is under way to them.
HOSTS_KEPT = 10_000


@dataclass(slots=True)
class _Host:
    """What this process knows of one receiver."""

    running: int = 0
    slow: int = 0
    # 0: its calls are quick, 1: they are slow.
    slowness: float = 0.0
    # How long a slow call took lately.
    slow_seconds: float = 10.0
    # The moment at which the last delivery put off is due.
    put_off_until: float = 0.0
    _quick_calls: float = 0.0
    _slow_calls: float = 0.0
    _judged_at: float = 0.0

    @property
    def slow_limit(self) -> int:
        return HOST_SLOW_LEAST + round((HOST_SLOW_MOST - HOST_SLOW_LEAST) * (1.0 - self.slowness) ** 2)

    def judge(self, *, slow: bool, now: float) -> None:
        # Counted over a time, not call by call: of calls begun together the slow ones are known last, all in a row.
        fade = 0.5 ** ((now - self._judged_at) / SLOWNESS_HALF_SECONDS)
        self._judged_at = now
        self._quick_calls = self._quick_calls * fade + (not slow)
        self._slow_calls = self._slow_calls * fade + slow
        self.slowness = self._slow_calls / (self._slow_calls + self._quick_calls + SLOWNESS_DOUBT)
        if self.slowness < 0.5:  # noqa: PLR2004 - the better half
            self.put_off_until = 0.0

    def put_off(self, now: float) -> float:
        """Return how long one more delivery waits: it gets in line behind those already put off."""
        # Only so many of them will be slow.
        each = self.slowness * self.slow_seconds / self.slow_limit
        self.put_off_until = max(self.put_off_until, now + PUT_OFF_LEAST_SECONDS) + each
        wait = min(self.put_off_until - now, PUT_OFF_MOST_SECONDS)
        return max(PUT_OFF_LEAST_SECONDS, wait * random.uniform(0.8, 1.0))


@dataclass(slots=True)
class _Running:
    host: _Host
    since: float
    slow: bool = False


@dataclass(slots=True)
class _HandedOver:
    """One call of `hand_over`: how many of its deliveries still wait to be taken."""

    left: int
    taken: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Waiting:
    held: Held
    batch: _HandedOver


class CallPool:
    """`hand_over` gives it work; `close` ends it in an orderly way.

    Every delivery that it holds, waiting or running, has its lease renewed. At most `callers` quick calls are under
    way, and SLOW_PER_SLOT times as many slow ones.
    """

    def __init__(self, *, callers: int, client: Client, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._callers = callers
        self._host_most = max(1, round(callers * HOST_SHARE))
        self._slow_most = callers * SLOW_PER_SLOT
        self._calls: queue.SimpleQueue[Started | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Guards everything below.
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._held: dict[uuid.UUID, Held] = {}
        self._running: dict[uuid.UUID, _Running] = {}
        self._hosts: dict[str, _Host] = {}
        self._quick = 0
        self._slow = 0
        self._watched_at = time.monotonic()
        self._closing = threading.Event()
        self._end_at = math.inf
        self._starter = threading.Thread(target=self._start_all, name="starter", daemon=True)
        self._ledger = threading.Thread(target=self._keep_ledger, name="ledger", daemon=True)
        self._starter.start()
        self._ledger.start()

    def hand_over(self, items: Iterable[tuple[uuid.UUID, uuid.UUID, str]]) -> None:
        """Take (delivery id, lease token, host) triples; return when each was started, put off or given back."""
        now = time.monotonic()
        work = [Held(now, now + CLAIMED_LEASE_SECONDS, key, token, host=host) for key, token, host in items]
        batch = _HandedOver(len(work))
        with self._changed:
            for held in work:
                self._held[held.delivery_id] = held
                self._waiting.setdefault(held.host, deque()).append(_Waiting(held, batch))
            self._changed.notify()
        while work and not batch.taken.wait(1.0) and self._starter.is_alive():
            pass

    def stop_taking(self) -> None:
        """Begin the end: what is not started yet is given back. Safe to call from a signal handler."""
        self._closing.set()

    def close(self) -> None:
        """Give back what is not started, let calls end for a while, record the rest as interrupted."""
        drained_at = time.monotonic() + DRAIN_SECONDS
        self._end_at = drained_at + 1.0
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._starter.join(DRAIN_SECONDS / 2)
        while self._running and time.monotonic() < drained_at:
            time.sleep(0.05)
        if self._running:
            logger.warning("calls_interrupted running=%d", len(self._running))
            self._client.interrupt()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(max(0.0, self._end_at - time.monotonic()))
        self._ended.put(None)
        self._ledger.join(max(0.5, self._end_at - time.monotonic()))

    # The starter

    def _start_all(self) -> None:
        while True:
            with self._changed:
                start, later = self._pick()
                while not start and not later and not self._closing.is_set():
                    # Woken by new work and by each call that ends or turns slow.
                    self._changed.wait(0.5)
                    start, later = self._pick()
                last = self._closing.is_set()
                if last:
                    later += [(item, 0.0) for waiting in self._waiting.values() for item in waiting]
                    self._waiting.clear()
            if start:
                self._start([item.held for item in start])
            if later:
                self._give_back([item.held for item, _ in later], [wait for _, wait in later])
            for item in [*start, *(item for item, _ in later)]:
                item.batch.left -= 1
                if not item.batch.left:
                    item.batch.taken.set()
            if last:
                break
        connection.close()

    def _pick(self) -> tuple[list[_Waiting], list[tuple[_Waiting, float]]]:
        """Take from the waiting, one host after the other, what has a slot, and what must wait for a slow host.

        Those with a slot have it from here on. Called with the lock held.
        """
        start: list[_Waiting] = []
        later: list[tuple[_Waiting, float]] = []
        now = time.monotonic()
        full: set[str] = set()
        while len(full) < len(self._waiting) and self._quick < self._callers:
            for name in [name for name in self._waiting if name not in full]:
                waiting = self._waiting[name]
                host = self._hosts.setdefault(name, _Host())
                if host.slow >= host.slow_limit or (self._slow >= self._slow_most and host.slowness > 0.5):  # noqa: PLR2004
                    later += [(item, host.put_off(now)) for item in waiting]
                    del self._waiting[name]
                elif host.running - host.slow >= self._host_most or self._quick >= self._callers:
                    full.add(name)
                else:
                    item = waiting.popleft()
                    start.append(item)
                    self._quick += 1
                    host.running += 1
                    # Its time runs from its start, not from the wait for a database that is away.
                    self._running[item.held.delivery_id] = _Running(host, math.inf)
                    if not waiting:
                        del self._waiting[name]
        return start, later

    def _start(self, batch: list[Held]) -> None:
        """Start a batch that holds a slot each. Slots of what does not start are given back."""
        waiting = {held.delivery_id: held for held in batch}
        while waiting:
            pairs = [(held.delivery_id, held.token) for held in waiting.values()]
            # While the lease lives, a database that is away is worth waiting for.
            result = self._persist(partial(start_attempts, pairs), until=max(h.expires for h in waiting.values()))
            if result is None:
                break
            started, early, missed = result
            self._miss(missed, waiting)
            with self._changed:
                for call in started:
                    held = waiting.pop(call.delivery_id)
                    held.expires = call.started + RUNNING_LEASE_SECONDS
                    self._running[call.delivery_id].since = call.started
                while len(self._threads) < len(self._running):
                    self._threads.append(threading.Thread(target=self._call_all, name="caller", daemon=True))
                    self._threads[-1].start()
            for call in started:
                self._calls.put(call)
            # What is neither started nor early is stale: cancelled, paused, stopped, or taken by somebody else.
            for delivery_id in [delivery_id for delivery_id in waiting if delivery_id not in early]:
                self._end(delivery_id)
                del waiting[delivery_id]
            if waiting:
                # Rung a moment too soon by this database's clock, and never early is the promise. More than a moment
                # means that a clock was set: the queue keeps it better than this thread.
                if min(early.values()) > EARLY_SECONDS or self._closing.is_set():
                    break
                time.sleep(min(early.values()) + 0.0002)
        if waiting:
            self._give_back(list(waiting.values()), [0.0] * len(waiting))

    def _miss(self, missed: list[Started], waiting: dict[uuid.UUID, Held]) -> None:
        """End what is later than its timer allows, and wait for it no longer."""
        if missed:
            self._persist(partial(record_missed, missed), until=max(held.expires for held in waiting.values()))
        for call in missed:
            del waiting[call.delivery_id]
            self._end(call.delivery_id)

    def _give_back(self, batch: list[Held], waits: list[float]) -> None:
        self._persist(lambda: put_back(batch, wait_seconds=waits), until=time.monotonic() + 1.0)
        for held in batch:
            self._end(held.delivery_id)

    def _end(self, delivery_id: uuid.UUID, *, answered: bool = False) -> None:
        """Let go of a delivery, and of its slot if it has one."""
        with self._changed:
            self._release(delivery_id, answered=answered)
            self._held.pop(delivery_id, None)
            self._changed.notify()

    def _release(self, delivery_id: uuid.UUID, *, answered: bool) -> None:
        running = self._running.pop(delivery_id, None)
        if running is None:
            return
        host = running.host
        host.running -= 1
        if running.slow:
            host.slow -= 1
            self._slow -= 1
            host.slow_seconds += SLOWNESS_WEIGHT * (time.monotonic() - running.since - host.slow_seconds)
        else:
            self._quick -= 1
            if answered:
                host.judge(slow=False, now=time.monotonic())
        if len(self._hosts) > HOSTS_KEPT:
            self._hosts = {name: host for name, host in self._hosts.items() if host.running or host.slowness > 0.5}  # noqa: PLR2004

    # The callers

    def _call_all(self) -> None:
        while (call := self._calls.get()) is not None:
            with self._changed:
                held = self._held.get(call.delivery_id)
            if held is None or held.token != call.token or held.expires <= time.monotonic():
                # The lease ran out while it waited: whoever reclaims it writes it down and calls.
                logger.warning("lease_lost delivery=%s", call.delivery_id)
                self._end(call.delivery_id)
                continue
            outcome = call_url(call, client=self._client, timeout_seconds=self._timeout_seconds)
            self._ended.put(outcome)
            with self._changed:
                # The slot is free, the lease is held until the outcome is recorded.
                self._release(call.delivery_id, answered=True)
                self._changed.notify()

    # The ledger

    def _keep_ledger(self) -> None:
        """Record outcomes as they come, many in one statement, and renew every lease in time."""
        renew_at = time.monotonic() + RENEW_SECONDS
        last = False
        while not last:
            outcomes: list[Outcome] = []
            try:
                item = self._ended.get(timeout=max(0.0, min(WATCH_SECONDS, renew_at - time.monotonic())))
                while item is not None:
                    outcomes.append(item)
                    if self._ended.empty() or len(outcomes) >= RECORD_LIMIT:
                        break
                    item = self._ended.get()
                last = item is None
            except queue.Empty:
                pass
            if outcomes:
                self._record(outcomes)
            self._watch()
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + RENEW_SECONDS
                self._renew()
        connection.close()

    def _watch(self) -> None:
        """Take the slots from calls that turned out slow."""
        now = time.monotonic()
        # This process itself was stopped, or waited for the database: that says nothing about its calls.
        missed = now - self._watched_at
        self._watched_at = now
        with self._changed:
            for running in self._running.values():
                if missed > 4 * WATCH_SECONDS:
                    running.since += missed
                if not running.slow and running.since <= now - SLOW_SECONDS and self._slow < self._slow_most:
                    running.slow = True
                    running.host.slow += 1
                    running.host.judge(slow=True, now=now)
                    self._quick -= 1
                    self._slow += 1
                    self._changed.notify()

    def _record(self, outcomes: list[Outcome]) -> None:
        # A success must not become a second call because the database was away: tried until it is back. Nothing piles
        # up meanwhile, since starting needs the database too.
        written = self._persist(lambda: record_outcomes(outcomes), until=math.inf)
        if written != len(outcomes):
            logger.warning("outcomes_not_recorded count=%d", len(outcomes) - (written or 0))
        with self._changed:
            for outcome in outcomes:
                held = self._held.get(outcome.call.delivery_id)
                if held is not None and held.token == outcome.call.token:
                    del self._held[outcome.call.delivery_id]

    def _renew(self) -> None:
        with self._changed:
            pairs = [(held.delivery_id, held.token) for held in self._held.values()]
        if not pairs:
            return
        now = time.monotonic()
        # Once only: the next turn is five seconds away, and a lease outlives three of them.
        kept = self._persist(lambda: renew_leases(pairs), until=now)
        if kept is None:
            return
        with self._changed:
            for delivery_id, token in pairs:
                held = self._held.get(delivery_id)
                if held is not None and held.token == token:
                    lease = RUNNING_LEASE_SECONDS if delivery_id in self._running else CLAIMED_LEASE_SECONDS
                    held.expires = now + lease if delivery_id in kept else 0.0

    def _persist(self, statement: Callable[[], T], *, until: float) -> T | None:
        """Run a statement, again after each error of the database until a moment; None where it never worked."""
        failed = False
        while True:
            try:
                result = statement()
            except (DatabaseError, InterfaceError) as error:
                connection.close()
                if not failed:
                    logger.warning("database_failing error=%r", str(error).strip())
                failed = True
                if time.monotonic() + PAUSE_SECONDS > (self._end_at if self._closing.is_set() else until):
                    return None
                time.sleep(PAUSE_SECONDS)
            else:
                return result
