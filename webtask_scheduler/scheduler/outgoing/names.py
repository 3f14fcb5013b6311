"""Looks names up, in threads of their own, so that names that hang do not keep others from resolving.

`getaddrinfo` cannot be stopped and may take minutes. A look-up that hangs therefore keeps its thread and nothing else:

- All calls to one name share one look-up.
- Threads are many and cheap; a name has at most one.
- Names that resolved before may use every thread. New names leave an eighth free, and names that hung the last time
  leave half.
- If no thread is free for a name within a second, this machine is to blame and not the receiver: LocalError.
"""

import ipaddress
import os
import resource
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from webtask_scheduler.scheduler.outgoing.deadline import Deadline
from webtask_scheduler.scheduler.outgoing.errors import CallError, LocalError, is_local

# How long a call waits for a look-up. The resolver itself asks each of its servers twice, for five seconds each.
LOOKUP_SECONDS = 10.0
# How long a call waits for a free thread.
QUEUE_SECONDS = 1.0
# How long a result is used. A burst to one host looks its name up once, and yet every fail-over by DNS is noticed: no
# published TTL in common use is shorter.
FRESH_SECONDS = 3.0
# A look-up that took longer counts as one that hung. Healthy ones take milliseconds.
SLOW_SECONDS = 2.0
# A look-up that has not ended by then may never end; the next call starts another one.
ABANDON_SECONDS = 120.0
# Names that are remembered: the oldest are dropped first.
NAMES_MOST = 10_000
# getaddrinfo needs little; most of it is never touched.
STACK_BYTES = 512 * 1024

# Of getaddrinfo, without the port: family, type, protocol, address.
Address = tuple[int, int, int, tuple[Any, ...]]
Addresses = list[Address]

Value = TypeVar("Value")

_KNOWN, _NEW, _SLOW = range(3)
# The stack size is a setting of the whole process, so it is put back at once.
_stack_size_lock = threading.Lock()


class _Waiter:
    """A call that waits for a look-up."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)


class _Lookup:
    """One look-up of a name, waiting or under way."""

    __slots__ = ("done", "error", "found", "name", "queued_at", "standing", "started_at", "waiters")

    def __init__(self, name: str, standing: int) -> None:
        self.name = name
        self.standing = standing
        self.queued_at = time.monotonic()
        self.started_at: float | None = None
        self.waiters: list[_Waiter] = []
        self.done = False
        self.found: Addresses = []
        self.error: BaseException | None = None

    def has_run_for(self, seconds: float) -> bool:
        return self.started_at is not None and time.monotonic() - self.started_at > seconds


class Names:
    """A resolver for any number of threads."""

    def __init__(self, *, threads: int, getaddrinfo: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._getaddrinfo = getaddrinfo
        self._lock = threading.Lock()
        self._fresh: dict[str, tuple[float, Addresses]] = {}
        self._standings: dict[str, int] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._queues: tuple[deque[_Lookup], ...] = (deque(), deque(), deque())
        # Bounds of look-ups under way: in all, of names that are new or slow, and of slow ones; and their present
        # numbers.
        self._bounds = (threads, max(1, threads * 7 // 8), max(1, threads // 2))
        self._under_way = [0, 0, 0]

    @property
    def under_way(self) -> int:
        """Return how many look-ups are under way."""
        return self._under_way[_KNOWN]

    def resolve(self, host: str, deadline: Deadline) -> Addresses:
        """Return the addresses of a host. Raises CallError, LocalError, TimeoutError at the deadline."""
        if _is_address(host):
            try:
                return _plain(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
            except OSError as error:
                # A zone that this machine does not have, for one.
                raise _explained(error) from error
        fresh = self._fresh.get(host)
        if fresh is not None and fresh[0] > time.monotonic():
            return fresh[1]
        waiter = _Waiter()
        with self._lock:
            lookup = self._lookups.get(host)
            if lookup is None or lookup.has_run_for(ABANDON_SECONDS):
                lookup = self._lookups[host] = _Lookup(host, self._standings.get(host, _NEW))
                self._queues[lookup.standing].append(lookup)
            lookup.waiters.append(waiter)
            self._start_next()
        try:
            deadline.attach(waiter)
            self._wait(lookup, waiter, deadline)
        finally:
            deadline.detach()
            with self._lock:
                lookup.waiters.remove(waiter)
                if not lookup.waiters and lookup.started_at is None and not lookup.done:
                    self._queues[lookup.standing].remove(lookup)
                    del self._lookups[host]
        if lookup.error is not None:
            raise _explained(lookup.error) from lookup.error
        return lookup.found

    def forget(self, host: str) -> None:
        """Drop a name's addresses, which could not be connected to, so that it is looked up again."""
        self._fresh.pop(host, None)

    def _wait(self, lookup: _Lookup, waiter: _Waiter, deadline: Deadline) -> None:
        while not lookup.done:
            started_at = lookup.started_at
            end = lookup.queued_at + QUEUE_SECONDS if started_at is None else started_at + LOOKUP_SECONDS
            left = end - time.monotonic()
            if left <= 0 and started_at is None:
                raise LocalError("Too many names are being looked up; no thread is free for another.")
            if left <= 0:
                raise CallError("dns", f"The host's name did not resolve within {LOOKUP_SECONDS:g} s.")
            waiter.wait(min(left, deadline.remaining()))
        # A call that was ended while it waited must not go on.
        deadline.remaining()

    def _start_next(self) -> None:
        """Start threads for what waits and may start. Called with the lock held."""
        while (lookup := self._take_next()) is not None:
            try:
                _start(self._run, lookup)
            except (RuntimeError, MemoryError) as error:
                self._finish(lookup, error=error)

    def _take_next(self) -> _Lookup | None:
        """Return a look-up that may start now, marked as started. Called with the lock held."""
        for standing, queue in enumerate(self._queues):
            # A slow name counts as a new one too, and both count in all.
            if any(self._under_way[level] >= self._bounds[level] for level in range(standing + 1)):
                return None
            if queue:
                lookup = queue.popleft()
                lookup.started_at = time.monotonic()
                for level in range(standing + 1):
                    self._under_way[level] += 1
                return lookup
        return None

    def _finish(self, lookup: _Lookup, *, found: Addresses | None = None, error: BaseException | None = None) -> None:
        """Give the outcome to all calls that wait for it. Called with the lock held."""
        for level in range(lookup.standing + 1):
            self._under_way[level] -= 1
        now = time.monotonic()
        lookup.found, lookup.error, lookup.done = found or [], error, True
        if self._lookups.get(lookup.name) is lookup:
            del self._lookups[lookup.name]
        self._standings.pop(lookup.name, None)
        if now - (lookup.started_at or now) > SLOW_SECONDS:
            _remember(self._standings, lookup.name, _SLOW)
        elif error is None:
            _remember(self._standings, lookup.name, _KNOWN)
        if error is None:
            self._fresh.pop(lookup.name, None)
            _remember(self._fresh, lookup.name, (now + FRESH_SECONDS, lookup.found))
        for waiter in lookup.waiters:
            waiter.stop()

    def _run(self, first: _Lookup) -> None:
        lookup: _Lookup | None = first
        while lookup is not None:
            found, error = None, None
            try:
                found = _plain(self._getaddrinfo(lookup.name, None, type=socket.SOCK_STREAM))
            except Exception as failure:
                error = failure
            with self._lock:
                self._finish(lookup, found=found, error=error)
                lookup = self._take_next()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _start(target: Callable[[_Lookup], None], lookup: _Lookup) -> None:
    with _stack_size_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=target, args=(lookup,), name="resolver", daemon=True).start()
        finally:
            threading.stack_size(before)


def _plain(found: Any) -> Addresses:
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]


def _remember(memory: dict[str, Value], name: str, value: Value) -> None:
    memory[name] = value
    if len(memory) > NAMES_MOST:
        del memory[next(iter(memory))]


def _explained(error: BaseException) -> CallError | LocalError:
    if is_local(error) or (isinstance(error, socket.gaierror) and error.errno == socket.EAI_MEMORY):
        return LocalError(f"No name can be looked up: {error}.")
    if _descriptors_are_scarce():
        return LocalError("No name can be looked up: too many open files.")
    return CallError("dns", "The host's name does not resolve.")


def _descriptors_are_scarce() -> bool:
    """Return whether a look-up may have failed for lack of a descriptor; the resolver then reports an unknown name."""
    try:
        lowest_free = os.dup(0)
    except OSError as lack:
        return is_local(lack)
    os.close(lowest_free)
    # Other threads may have closed some since, so a margin counts as scarce.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and lowest_free >= limit - limit // 8
