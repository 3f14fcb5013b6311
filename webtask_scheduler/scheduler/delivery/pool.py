"""The threads of one worker process that start deliveries, call them, and record the outcomes.

A starter thread starts what `hosts.Line` picks, many in one statement. Caller threads only call. A ledger thread
records outcomes and renews leases, many in one statement. Callers never touch the database, so no transaction spans a
call and two connections serve the process. Handing work over does not wait for it.

A delivery that the database or our own code refuses is parked, and the others go on. A thread that cannot go on ends
the process, and its supervisor starts it again: a worker without one of its threads would look alive and call nothing.
"""

import heapq
import logging
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from django.db import DatabaseError, InterfaceError, connection

from webtask_scheduler.dispatch.queue import Held
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.delivery.hosts import Line
from webtask_scheduler.scheduler.outgoing.client import Client, LocalError
from webtask_scheduler.scheduler.queue.attempts import (
    Batch,
    Outcome,
    Started,
    record_missed,
    record_outcomes,
    record_refused,
    start_attempts,
)
from webtask_scheduler.scheduler.queue.faults import each_alone, is_away, park
from webtask_scheduler.scheduler.queue.leases import (
    CLAIMED_LEASE_SECONDS,
    RUNNING_LEASE_SECONDS,
    put_back,
    renew_leases,
    undo_starts,
)
from webtask_scheduler.scheduler.queue.rollups import FLUSH_SECONDS, tally
from webtask_scheduler.telemetry.events import event

T = TypeVar("T")
# Of a claim: delivery id and lease token. A delivery may be claimed and handed over again while its lost claim is still
# here, queued or called.
Key: TypeAlias = tuple[uuid.UUID, uuid.UUID]

RENEW_SECONDS = 5.0
NOTE_SECONDS = 1.0
# The starter waits for a delivery that is at most this early; an earlier one goes back to the queue.
EARLY_SECONDS = 0.05
# Pause after an error of the database.
PAUSE_SECONDS = 0.25
# Outcomes that one statement records.
RECORD_LIMIT = 200
# How long calls under way may take to end at shutdown.
DRAIN_SECONDS = 8.0
# How often calls under way are checked for hosts that hang, and, while something waits for a slot, for calls that no
# longer need theirs.
WATCH_SECONDS = 0.25
SLOTS_SECONDS = 0.02
# Waiting calls under way, for each slot: threads that only wait.
ROOM_PER_SLOT = 64
ROOM_MOST = 4096
# What such a thread needs; the default of 8 MiB is address space that some machines count.
STACK_BYTES = 512 * 1024
# Pause after this machine had no thread, descriptor or memory for a call.
SHORTAGE_SECONDS = 2.0
# Failures in a row after which a thread gives up: it would fail for ever.
FAILURES_MOST = 20
# Exit code when a thread cannot go on (EX_SOFTWARE of sysexits.h).
EXIT_CODE = 70


def waiting_room(callers: int) -> int:
    """Return how many calls of a worker may wait for their answers, in addition to those that hold a slot."""
    return min(ROOM_MOST, callers * ROOM_PER_SLOT)


class LeaseLostError(LocalError):
    """A call was not made because its lease had run out."""


class CallPool:
    """Calls deliveries: `hand_over` gives it work; `close` ends it in an orderly way.

    It renews the lease of every delivery that it holds, waiting or running. At most `callers` calls hold a slot, and
    at most `waiting_room(callers)` wait for answers.
    """

    def __init__(
        self,
        *,
        callers: int,
        client: Client,
        timeout_seconds: float,
        note: Callable[[float, int, int], None] | None = None,
        flush: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a pool and start its threads.

        `note` is called about once a second with the seconds since the starter last moved, the number of deliveries
        held, and the number of calls under way; `flush` about every FLUSH_SECONDS and at the end, to store what was
        counted. Both may raise an error of the database.
        """
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._note = note
        self._flush = flush
        self._threads_most = waiting_room(callers) + 2 * callers
        self._calls: queue.SimpleQueue[Started | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Outcome | tuple[Started, Exception] | None] = queue.SimpleQueue()
        # Guards everything below.
        self._changed = threading.Condition()
        self._line = Line(slots=callers, room=waiting_room(callers))
        self._held: dict[uuid.UUID, Held] = {}
        # Not due yet, see `hand_over`.
        self._later: list[Held] = []
        self._threads: set[threading.Thread] = set()
        self._spare = callers
        # Until then no new thread is tried.
        self._short_until = 0.0
        self._moved_at = clock()
        self._failing = False
        self._closing = threading.Event()
        self._end_at = math.inf
        self._starter = self._thread(self._start_all, "starter")
        self._ledger = self._thread(self._keep_ledger, "ledger")

    def hand_over(self, items: Iterable[tuple[Any, ...]], *, at: float | None = None) -> None:
        """Take (delivery id, lease token, host, flow) of claimed deliveries, and return at once.

        With `at`, a time of the monotonic clock, they are not started before it. What follows in a tuple is when it was
        claimed and published, see `call.Marks`; a beat of release 0.2 says neither.
        """
        now = self._clock()
        expires = now + CLAIMED_LEASE_SECONDS
        work = [
            Held(at or now, expires, key, token, host=host, flow=flow, marks=(*(marks or (0.0, 0.0)), now))
            for key, token, host, flow, *marks in items
        ]
        if self._closing.is_set() and not self._starter.is_alive():
            put_back(work)
            return
        with self._changed:
            for held in work:
                known = self._held.get(held.delivery_id)
                if known is not None and known.token == held.token:
                    # The broker delivered the message twice.
                    continue
                self._held[held.delivery_id] = held
                if at is None:
                    self._line.add(held)
                else:
                    heapq.heappush(self._later, held)
            self._changed.notify()

    def share_hosts(self, *, per_second: float, in_flight: int, workers: int) -> None:
        """Keep to the share of one of so many workers in what all together may do to one host; 0 is no bound."""
        with self._changed:
            self._line.share_hosts(per_second=per_second, in_flight=in_flight, workers=workers)
            self._changed.notify()

    def stop_taking(self) -> None:
        """Begin to shut down: give back what is not started yet. Safe to call from a signal handler."""
        self._closing.set()

    def close(self) -> None:
        """Give back what is not started, give calls DRAIN_SECONDS to end, and record the rest as interrupted."""
        drained_at = self._clock() + DRAIN_SECONDS
        self._end_at = drained_at + 1.0
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._starter.join(DRAIN_SECONDS / 2)
        while self._line.running and self._clock() < drained_at:
            time.sleep(0.05)
        if self._line.running:
            event("calls_interrupted", level=logging.WARNING, running=len(self._line.running))
            self._client.interrupt()
        with self._changed:
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            thread.join(max(0.0, self._end_at - self._clock()))
        self._ended.put(None)
        self._ledger.join(max(0.5, self._end_at - self._clock()))

    def _thread(self, loop: Callable[[], None], name: str) -> threading.Thread:
        def run() -> None:
            try:
                loop()
            except BaseException:
                event("thread_ended", level=logging.CRITICAL, exc_info=True, thread=name)
                self._give_up()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    @staticmethod
    def _give_up() -> None:
        """End the process at once; its deliveries come back when their leases run out."""
        logging.shutdown()
        os._exit(EXIT_CODE)

    def _turns(self, turn: Callable[[], bool]) -> None:
        """Take turns until one returns False. Log what a turn raises; raise after too many failures in a row."""
        failures = 0
        while True:
            try:
                more = turn()
            except Exception:
                failures += 1
                if failures >= FAILURES_MOST:
                    raise
                if failures == 1:
                    event("turn_failed", level=logging.ERROR, exc_info=True, thread=threading.current_thread().name)
                connection.close()
                time.sleep(PAUSE_SECONDS)
            else:
                failures = 0
                if not more:
                    break
        connection.close()

    # The starter

    def _start_all(self) -> None:
        self._turns(self._start_some)

    def _start_some(self) -> bool:
        """Start what may be started, or wait a while if nothing may; return whether to go on."""
        with self._changed:
            self._moved_at = self._clock()
            start, later = self._pick()
            if not start and not later and not self._closing.is_set():
                # Woken by new work and by each call that ends.
                self._changed.wait(self._patience())
                self._moved_at = self._clock()
                start, later = self._pick()
            last = self._closing.is_set()
            if last:
                later += [(held, 0.0) for held in [*self._line.drain(), *self._later]]
                self._later.clear()
        for held, wait in later:
            if wait:
                tally.put_off(held.host)
        try:
            if start:
                self._start(start)
        finally:
            if later:
                self._give_back([held for held, _ in later], [wait for _, wait in later])
        return not last

    def _patience(self) -> float:
        if self._line.waits_for_slots:
            return SLOTS_SECONDS
        if self._later:
            return max(0.0, min(0.5, self._later[0].at - self._clock()))
        return 0.5

    def _pick(self) -> tuple[list[Held], list[tuple[Held, float]]]:
        """Pick deliveries for which there is a slot and a thread. Called with the lock held."""
        now = self._clock()
        while self._later and self._later[0].at <= now:
            self._line.add(heapq.heappop(self._later))
        most = self._threads_most - len(self._line.running)
        if now < self._short_until:
            most = min(most, len(self._threads) - len(self._line.running))
        return self._line.pick(now, most=max(0, most))

    def _start(self, batch: list[Held]) -> None:
        """Start a batch in which each delivery holds a slot; free the slots of those that do not start."""
        waiting = {held.key: held for held in batch}
        try:
            while waiting and not self._grow():
                # There is no thread for the last of them: it goes back before an attempt is counted.
                held = waiting.popitem()[1]
                self._give_back([held], [SHORTAGE_SECONDS])
            while waiting:
                result = self._started(list(waiting.values()))
                if result is None:
                    break
                early = self._sort(result, waiting)
                if waiting:
                    # Published a little too soon by the database's clock; calls are never early. If it is more than a
                    # little, a clock was set, and the delivery waits better in the queue than in this thread.
                    if min(early.values()) > EARLY_SECONDS or self._closing.is_set():
                        break
                    time.sleep(min(early.values()) + 0.0002)
        finally:
            if waiting:
                self._give_back(list(waiting.values()), [0.0] * len(waiting))

    def _started(self, batch: Sequence[Held]) -> Batch | None:
        """Start a batch while its leases live; return None if the database was away for that long."""
        result = Batch([], {}, [], [])
        tried = False

        def start(some: Sequence[Held]) -> None:
            nonlocal tried
            if tried:
                # The try before may have committed though its answer was lost: its starts, never called, are undone.
                known = {call.key for call in result.started}
                pairs = [held.key for held in some if held.key not in known]
                undo_starts(pairs, wait_seconds=[0.0] * len(pairs))
            tried = True
            more = start_attempts([held.key for held in some])
            result.started.extend(more.started)
            result.early.update(more.early)
            result.missed.extend(more.missed)
            result.refused.extend(more.refused)

        def refuse(held: Held, error: Exception) -> None:
            result.refused.append((held.key, error))

        done = self._persist(partial(each_alone, start, batch, park=refuse), until=max(h.expires for h in batch))
        return result if done or result.started else None

    def _sort(self, result: Batch, waiting: dict[Key, Held]) -> dict[Key, float]:
        """Give what was started to the callers and let go of the rest; what is early stays in `waiting`."""
        with self._changed:
            for call in result.started:
                waiting.pop(call.key).expires = call.started + RUNNING_LEASE_SECONDS
                self._line.begun(call.key, call.started)
        for call in result.started:
            self._calls.put(call)
        if result.missed:
            self._each_alone(
                record_missed, result.missed, refuse=lambda call, error: park(call.delivery_id, error, token=call.token)
            )
        for (delivery_id, token), reason in result.refused:
            until = waiting[delivery_id, token].expires
            self._persist(partial(park, delivery_id, reason, token=token), until=until)
        # A delivery that is neither started nor early has ended or is stale: cancelled, paused, stopped, or reclaimed.
        for key in [key for key in waiting if key not in result.early]:
            self._let_go(waiting.pop(key))
        return result.early

    def _grow(self) -> bool:
        """Start threads until each picked delivery has one; return whether that worked."""
        with self._changed:
            while len(self._threads) < len(self._line.running):
                try:
                    before = threading.stack_size(STACK_BYTES)
                    try:
                        thread = threading.Thread(target=self._call_all, name="caller", daemon=True)
                        thread.start()
                    finally:
                        threading.stack_size(before)
                except (RuntimeError, MemoryError) as error:
                    if self._clock() >= self._short_until:
                        event("threads_short", level=logging.ERROR, threads=len(self._threads), error=str(error))
                    self._short_until = self._clock() + SHORTAGE_SECONDS
                    return False
                self._threads.add(thread)
        return True

    def _give_back(self, batch: Sequence[Held], waits: Sequence[float]) -> None:
        self._persist(lambda: put_back(batch, wait_seconds=waits), until=self._clock() + 1.0)
        for held in batch:
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        """Forget a delivery, and free its slot if it has one."""
        with self._changed:
            self._line.release(held.key)
            # A delivery that was given back may have been claimed and handed over again already.
            if self._held.get(held.delivery_id) is held:
                del self._held[held.delivery_id]
            self._changed.notify()

    # The callers

    def _call_all(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                self._call(call)
                with self._changed:
                    # After a burst this thread is spare: the others were enough before it.
                    if len(self._threads) > len(self._line.running) + self._spare and self._calls.empty():
                        self._threads.discard(threading.current_thread())
                        break
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _call(self, call: Started) -> None:
        with self._changed:
            held = self._held.get(call.delivery_id)
            seconds_most = self._line.seconds_most(call.key)
        answered_at = None
        if held is None or held.token != call.token or held.expires <= self._clock():
            # The lease ran out while it waited. Nothing was called, so the start is undone if the lease is still held.
            self._ended.put((call, LeaseLostError("The lease ran out before the call.")))
        else:
            try:
                outcome = call_url(
                    call,
                    client=self._client,
                    timeout_seconds=self._timeout_seconds,
                    seconds_most=seconds_most,
                    marks=held.marks,  # type: ignore[arg-type]  # three, as `hand_over` makes them
                )
            except Exception as error:
                self._ended.put((call, error))
            else:
                self._ended.put(outcome)
                answered_at = self._clock()
        with self._changed:
            # Only the slot is freed: the lease is held until the outcome is recorded.
            self._line.release(call.key, answered_at=answered_at)
            self._changed.notify()

    # The ledger

    def _keep_ledger(self) -> None:
        self._renew_at = self._clock() + RENEW_SECONDS
        self._watched_at = self._noted_at = self._clock()
        self._flush_at = self._clock()
        self._turns(self._record_some)

    def _record_some(self) -> bool:
        """Record outcomes as they come, many in one statement, and renew leases in time; return whether to go on."""
        outcomes: list[Outcome] = []
        undone: list[tuple[Started, Exception]] = []
        last = False
        try:
            item = self._ended.get(timeout=max(0.0, min(WATCH_SECONDS, self._renew_at - self._clock())))
            while item is not None:
                if isinstance(item, Outcome):
                    outcomes.append(item)
                else:
                    undone.append(item)
                if self._ended.empty() or len(outcomes) >= RECORD_LIMIT:
                    break
                item = self._ended.get()
            last = item is None
        except queue.Empty:
            pass
        if outcomes:
            self._record(outcomes)
        if undone:
            self._undo(undone)
        self._watch()
        if self._clock() >= self._renew_at:
            self._renew_at = self._clock() + RENEW_SECONDS
            self._renew()
        if self._flush is not None and (last or self._clock() >= self._flush_at):
            self._flush_at = self._clock() + FLUSH_SECONDS
            try:
                self._flush()
            except (DatabaseError, InterfaceError):
                # As in `_watch`; the counts are kept for the next time.
                connection.close()
        return not last

    def _watch(self) -> None:
        """Check the calls under way, and note once a second that this process moves."""
        now = self._clock()
        missed = now - self._watched_at
        if missed < WATCH_SECONDS:
            return
        self._watched_at = now
        with self._changed:
            if missed > 4 * WATCH_SECONDS:
                # This process itself was stopped or waited for the database; that time says nothing about its calls.
                self._line.forgive(missed)
            self._line.watch(now)
            idle, held, running = now - self._moved_at, len(self._held), len(self._line.running)
        if self._note is not None and now >= self._noted_at + NOTE_SECONDS:
            self._noted_at = now
            try:
                self._note(idle, held, running)
            except (DatabaseError, InterfaceError):
                # The next second tries again; the threads with work for the database log that it is away.
                connection.close()

    def _record(self, outcomes: list[Outcome]) -> None:
        # Retried until the database is back, so that its absence does not turn a success into a second call. Nothing
        # piles up meanwhile, since starting needs the database too.
        written = self._each_alone(record_outcomes, outcomes, refuse=record_refused)
        if written != len(outcomes):
            event("outcomes_not_recorded", level=logging.WARNING, count=len(outcomes) - written)
        self._forget([outcome.call for outcome in outcomes])

    def _each_alone(
        self, write: Callable[[Sequence[T]], int], items: Sequence[T], *, refuse: Callable[[T, Exception], None]
    ) -> int:
        """Write items, retrying until the database is back; `refuse` those it refuses; return how many were written."""
        written = 0

        def count(some: Sequence[T]) -> None:
            nonlocal written
            written += write(some)

        def alone(item: T, error: Exception) -> None:
            nonlocal written
            refuse(item, error)
            written += 1

        self._persist(partial(each_alone, count, items, park=alone), until=math.inf)
        return written

    def _undo(self, undone: list[tuple[Started, Exception]]) -> None:
        """Give back deliveries that were started and could not be called here; no attempt is counted."""
        short = [(call, error) for call, error in undone if isinstance(error, LocalError)]
        if short:
            event("calls_not_made", level=logging.WARNING, count=len(short), error=str(short[0][1]))
            pairs = [call.key for call, _ in short]
            waits = [0.0 if isinstance(error, LeaseLostError) else SHORTAGE_SECONDS for _, error in short]
            self._persist(lambda: undo_starts(pairs, wait_seconds=waits), until=math.inf)
        for call, error in undone:
            if not isinstance(error, LocalError):
                self._persist(partial(park, call.delivery_id, error, token=call.token), until=math.inf)
        self._forget([call for call, _ in undone])

    def _forget(self, calls: Iterable[Started]) -> None:
        with self._changed:
            for call in calls:
                held = self._held.get(call.delivery_id)
                if held is not None and held.token == call.token:
                    del self._held[call.delivery_id]

    def _renew(self) -> None:
        with self._changed:
            pairs = [held.key for held in self._held.values()]
        if not pairs:
            return
        now = self._clock()
        kept: set[uuid.UUID] = set()
        # Tried once only: the next turn is five seconds away, and a lease outlives three of them.
        if not self._persist(lambda: kept.update(renew_leases(pairs)), until=now):
            return
        with self._changed:
            for delivery_id, token in pairs:
                held = self._held.get(delivery_id)
                if held is not None and held.token == token:
                    lease = RUNNING_LEASE_SECONDS if held.key in self._line.running else CLAIMED_LEASE_SECONDS
                    held.expires = now + lease if delivery_id in kept else 0.0

    def _persist(self, statement: Callable[[], object], *, until: float) -> bool:
        """Run a statement, again after each error of the database until a deadline; return whether it worked."""
        while True:
            try:
                statement()
            except Exception as error:
                if not is_away(error):
                    raise
                connection.close()
                # Logged once for all threads together, until a statement works again.
                if not self._failing:
                    self._failing = True
                    event("database_failing", level=logging.WARNING, error=" ".join(str(error).split()))
                if self._clock() + PAUSE_SECONDS > (self._end_at if self._closing.is_set() else until):
                    return False
                time.sleep(PAUSE_SECONDS)
            else:
                if self._failing:
                    self._failing = False
                    event("database_recovered", level=logging.WARNING)
                return True
