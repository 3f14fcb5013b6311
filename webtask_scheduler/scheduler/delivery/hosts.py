"""Chooses which delivery a worker process calls next, by what it knows of the hosts that it calls.

A **slot** is for a call that may be using the processor, at its beginning. A call that lasts longer than PATIENCE only
waits. It gives its slot up and moves to the **waiting room**, which costs a thread and a connection but no time.

Hosts that answer quickly may use every slot; hosts that do not, or of which nothing is known yet, share a part of them.
So a thousand hosts that hang leave room for those known to be quick. Half of the waiting room is kept for first calls
to hosts of which nothing is known: without it, hosts that hang would fill the room, and no other host could show that
it is quick. A call there is given up after NEW_SECONDS and not counted, and its host is known from then on.

Within each of the two classes, owners have turns, and the flows of an owner have turns (a flow is an owner's deliveries
to one host); a flow that had nothing waiting goes first once, so that a host with a call now and then does not stand
behind those with thousands (as fq_codel does it for packets, RFC 8290).

A deployment may bound what all workers together do to one host: calls begun a second, and calls under way. Each worker
keeps to its share, which is the bound divided by the number of live workers. A host at its bound is passed over, as one
that has enough calls under way; what waits for it takes no slot and no place.

This module uses no database and no threads: `Line` is used under its owner's lock.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from webtask_scheduler.dispatch.queue import Held
from webtask_scheduler.dispatch.share import owner_of

# A call that lasts longer gives its slot up.
PATIENCE_SECONDS = 0.05
# A host is quick while its calls take less than this, on average. It is more than PATIENCE, because calls to quick
# hosts take longer when the processors are busy.
QUICK_SECONDS = 0.15
# Weight of the latest call in the average.
WEIGHT = 0.2
# How soon the fastest of recent calls is forgotten, likewise.
FASTEST_WEIGHT = 0.01
# Shares of the slots: for all hosts that are not known to be quick together, and for one host alone.
TRIAL_SHARE = 0.5
HOST_SHARE = 0.75
# While others are called too, a quick host has as many slots as give a worker SLOTS_A_SECOND answers a second from it,
# within bounds. More threads than the processors can serve delay every call and make the host no faster.
BESIDE_SHARE = 0.25
SLOTS_A_SECOND = 1000.0
BESIDE_SECONDS = 1.0
# One host has as many calls in the waiting room as give a worker WAITING_A_SECOND answers a second from it, within
# bounds. A host that hangs for 30 seconds has the fewest.
WAITING_LEAST = 4
WAITING_MOST = 64
WAITING_A_SECOND = 64.0
# Of the waiting room, the part for first calls of hosts of which nothing is known, once the rest is full; and how long
# such a call may take.
NEW_SHARE = 0.5
NEW_SECONDS = 5.0
# How long a delivery waits, in the table, that finds the waiting room full.
PUT_OFF_SECONDS = (5.0, 15.0)
# Where calls a second to a host are bounded: so much may begin at once after a pause.
PACE_SECONDS = 1.0
# Hosts that are remembered while no call to them is under way.
HOSTS_KEPT = 10_000


@dataclass(slots=True)
class Host:
    """One receiver: its calls under way, and how long its calls take."""

    name: str
    # Calls that hold a slot, and calls in the waiting room.
    slots: int = 0
    waiting: int = 0
    # Average over recent calls; None until the first has ended or has lasted longer than a quick one.
    seconds: float | None = None
    # Time of the fastest recent call: the host's own, without the time that calls wait for each other here.
    fastest: float = 0.0
    # Flows that could go on if this host took more.
    blocked: "list[Flow]" = field(default_factory=list)
    # Where calls a second are bounded: how many may begin at `paced_at`; None until the first.
    tokens: float | None = None
    paced_at: float = 0.0

    @property
    def quick(self) -> bool:
        return self.seconds is not None and self.seconds < QUICK_SECONDS

    def wait_for_token(self, now: float, per_second: float) -> float:
        """Return how long until the next call may begin; at most a second's worth begins at once."""
        most = max(1.0, per_second * PACE_SECONDS)
        tokens = most if self.tokens is None else self.tokens + (now - self.paced_at) * per_second
        self.tokens, self.paced_at = min(most, tokens), now
        return max(0.0, 1 - self.tokens) / per_second

    @property
    def waiting_limit(self) -> int:
        if self.seconds is None:
            return WAITING_LEAST
        return max(WAITING_LEAST, min(WAITING_MOST, round(WAITING_A_SECOND * max(self.seconds, 1.0) ** -1)))

    def took(self, seconds: float) -> None:
        """Note how long a call took, or has lasted so far if that is longer than the average."""
        if self.seconds is None:
            self.seconds = self.fastest = seconds
        else:
            self.seconds += WEIGHT * (seconds - self.seconds)
            self.fastest = min(seconds, self.fastest + FASTEST_WEIGHT * (seconds - self.fastest))


@dataclass(slots=True)
class Flow:
    """The deliveries of one owner that wait for one host."""

    owner: int
    host: Host
    items: deque[Held] = field(default_factory=deque)
    # Whether it is in line or blocked by its host; otherwise only its dictionary holds it.
    queued: bool = False


class Turns:
    """The flows of one class in line: owners take turns; an owner's new flows go first, then the others in turn."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[deque[Flow], deque[Flow]]] = {}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def add(self, flow: Flow, *, new: bool) -> None:
        lines = self._owners.setdefault(flow.owner, (deque(), deque()))
        lines[0 if new else 1].append(flow)

    def pop(self) -> Flow | None:
        """Remove and return the flow whose turn it is; the next turn is another owner's."""
        if not self._owners:
            return None
        owner = next(iter(self._owners))
        new, old = lines = self._owners.pop(owner)
        flow = (new or old).popleft()
        if new or old:
            self._owners[owner] = lines
        return flow


@dataclass(slots=True)
class Room:
    """A part of the waiting room: how many places it has, and who holds how many of them."""

    size: int
    used: int = 0
    _by_owner: dict[int, int] = field(default_factory=dict)

    def has_place(self, owner: int) -> bool:
        """Whether an owner may have one more: it may have as many as are free."""
        free = self.size - self.used
        return free > 0 and self._by_owner.get(owner, 0) < max(1, free)

    def enter(self, owner: int) -> None:
        self.used += 1
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1

    def leave(self, owner: int) -> None:
        self.used -= 1
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]


@dataclass(slots=True)
class Running:
    """A picked delivery, and when its call began: infinite until then."""

    flow: Flow
    since: float
    # Where it has a place to wait; None for a quick host's call that holds a slot.
    room: Room | None = None
    waits: bool = False
    # How long it had lasted when its host last took note of it.
    noted: float = QUICK_SECONDS


class Line:
    """The deliveries that wait in this process and those under way: `add`, `pick`, `begun`, `release`."""

    def __init__(self, *, slots: int, room: int) -> None:
        self._slots = slots
        self._new_room = Room(round(room * NEW_SHARE))
        self._room = Room(room - self._new_room.size)
        self._trial_slots = max(1, round(slots * TRIAL_SHARE))
        self._host_slots = max(1, round(slots * HOST_SHARE))
        self._beside_slots = max(1, round(slots * BESIDE_SHARE))
        # The host that was picked last, and until when other hosts count as called too.
        self._latest: Host | None = None
        self._beside_until = 0.0
        self._hosts: dict[str, Host] = {}
        self._hosts_most = HOSTS_KEPT
        self._flows: dict[tuple[int, str], Flow] = {}
        self._quick, self._trial = Turns(), Turns()
        # In slots, with whether their host was known as quick when they were picked. Those of other hosts have a place
        # in the waiting room already, for as far as is known they will have to wait.
        self._in_slots: dict[object, tuple[Running, bool]] = {}
        self._in_trial = 0
        self.running: dict[object, Running] = {}
        self.queued = 0
        # This worker's share of what one host may get; 0 and infinite without a bound.
        self._per_second = 0.0
        self._in_flight: float = math.inf
        # Hosts that wait for the time of their next call: when, and a number that breaks ties.
        self._paced: list[tuple[float, int, Host]] = []
        self._paced_count = 0

    @property
    def waits_for_slots(self) -> bool:
        """Return whether something waits that may begin after some time without another event."""
        return bool(self.queued and (self._in_slots or self._paced))

    def share_hosts(self, *, per_second: float, in_flight: int, workers: int) -> None:
        """Set what one of so many workers may do to one host: calls begun a second, calls under way; 0 is no bound."""
        self._per_second = per_second / max(1, workers)
        self._in_flight = max(1, in_flight // max(1, workers)) if in_flight else math.inf
        if not self._per_second:
            self._unpace(math.inf)

    def add(self, held: Held) -> None:
        """Add a delivery that waits for a slot."""
        key = (owner_of(held.flow), held.host)
        flow = self._flows.get(key)
        if flow is None:
            host = self._hosts.get(held.host)
            if host is None:
                host = self._hosts[held.host] = Host(held.host)
            flow = self._flows[key] = Flow(key[0], host)
        flow.items.append(held)
        self.queued += 1
        if not flow.queued:
            flow.queued = True
            self._stand(flow, new=True)

    def _stand(self, flow: Flow, *, new: bool = False) -> None:
        (self._quick if flow.host.quick else self._trial).add(flow, new=new)

    def pick(self, now: float, *, most: int) -> tuple[list[Held], list[tuple[Held, float]]]:
        """Give slots to at most `most` deliveries; return them, and those to put off with their waits."""
        self._leave_slots(now)
        self._unpace(now)
        start: list[Held] = []
        later: list[tuple[Held, float]] = []
        # Flows on trial whose host has become quick join the quick ones, which are picked once more at the end.
        for turns, quick in ((self._quick, True), (self._trial, False), (self._quick, True)):
            while turns and len(start) < most and len(self._in_slots) < self._slots:
                if not quick and self._in_trial >= self._trial_slots:
                    break
                flow = turns.pop()
                if flow is None or not self._lives(flow):
                    continue
                host = flow.host
                room = None if quick else self._place(flow)
                if host.quick != quick:
                    # The host has become known since the flow joined this line.
                    self._stand(flow)
                elif self._has_enough(host, now, quick=quick, room=room):
                    host.blocked.append(flow)
                elif not quick and room is None:
                    later += self._put_off(flow)
                else:
                    if host is not self._latest:
                        self._beside_until = now + BESIDE_SECONDS if self._latest else 0.0
                        self._latest = host
                    start.append(self._take(flow, room))
                    if flow.items:
                        (self._quick if quick else self._trial).add(flow, new=False)
                    else:
                        self._forget(flow)
        return start, later

    def _lives(self, flow: Flow) -> bool:
        if flow.items:
            return True
        self._forget(flow)
        return False

    def _put_off(self, flow: Flow) -> list[tuple[Held, float]]:
        put_off = [(held, random.uniform(*PUT_OFF_SECONDS)) for held in flow.items]  # noqa: S311 - a fair draw is not cryptography
        self.queued -= len(flow.items)
        flow.items.clear()
        self._forget(flow)
        return put_off

    def _has_enough(self, host: Host, now: float, *, quick: bool, room: Room | None) -> bool:
        """Whether a host must end a call, or some time must pass, before it gets another."""
        if host.slots + host.waiting >= self._in_flight:
            return True
        if self._per_second and (wait := host.wait_for_token(now, self._per_second)):
            if not host.blocked:
                self._paced_count += 1
                heapq.heappush(self._paced, (now + wait, self._paced_count, host))
            return True
        if quick:
            # Hosts that were quick and hang all at once fill the room beyond its size, by what they had under way.
            crowd = host.waiting > 0 and self._room.used >= self._room.size
            slots = self._host_slots
            if now < self._beside_until:
                slots = min(slots, max(self._beside_slots, round(SLOTS_A_SECOND * host.fastest)))
            return crowd or host.slots >= slots or host.waiting >= host.waiting_limit
        under_way = host.waiting + host.slots
        # Where there is no place for more, the first call to a host will tell.
        return under_way >= host.waiting_limit or (room is None and host.seconds is None and under_way > 0)

    def _place(self, flow: Flow) -> Room | None:
        """Return where the next call of a flow would wait; None where there is no place for it."""
        if self._room.has_place(flow.owner):
            return self._room
        host = flow.host
        is_first = host.seconds is None and not host.slots + host.waiting
        return self._new_room if is_first and self._new_room.has_place(flow.owner) else None

    def _unpace(self, now: float) -> None:
        """Let hosts go on whose next call may begin by now."""
        while self._paced and self._paced[0][0] <= now:
            self._unblock(heapq.heappop(self._paced)[2])

    def _take(self, flow: Flow, room: Room | None) -> Held:
        held = flow.items.popleft()
        if self._per_second and flow.host.tokens is not None:
            flow.host.tokens -= 1
        self.queued -= 1
        running = Running(flow, float("inf"), room)
        self.running[held.key] = running
        self._in_slots[held.key] = (running, room is None)
        flow.host.slots += 1
        if room is not None:
            self._in_trial += 1
            room.enter(flow.owner)
        return held

    def seconds_most(self, key: object) -> float:
        """Return how long a picked delivery's call may take at most, infinite but for a first call of a new host."""
        running = self.running.get(key)
        return NEW_SECONDS if running is not None and running.room is self._new_room else float("inf")

    def _forget(self, flow: Flow) -> None:
        flow.queued = False
        self._flows.pop((flow.owner, flow.host.name), None)

    def begun(self, key: object, now: float) -> None:
        """Note that a picked delivery is being called now. PATIENCE counts from here, so a slow database does not."""
        running = self.running.get(key)
        if running is not None:
            running.since = now

    def _leave_slots(self, now: float) -> None:
        """Move calls that only wait to the waiting room."""
        until = now - PATIENCE_SECONDS
        for key in [key for key, (running, _) in self._in_slots.items() if running.since <= until]:
            running, quick = self._in_slots.pop(key)
            running.waits = True
            flow = running.flow
            flow.host.slots -= 1
            flow.host.waiting += 1
            if quick:
                running.room = self._room
                self._room.enter(flow.owner)
            else:
                self._in_trial -= 1
            self._unblock(flow.host)

    def watch(self, now: float) -> None:
        """Note how long calls under way last, so that a host that hangs is known before its call ends."""
        for running in self.running.values():
            host, lasts = running.flow.host, now - running.since
            # Noted once for each doubling, so that one call that hangs does not outweigh many quick ones.
            if running.waits and lasts >= 2 * running.noted and lasts > (host.seconds or 0.0):
                running.noted = lasts
                host.took(lasts)

    def forgive(self, seconds: float) -> None:
        """Subtract a time during which this process itself was stopped from the calls under way."""
        for running in self.running.values():
            running.since += seconds

    def release(self, key: object, *, answered_at: float | None = None) -> None:
        """Forget a picked delivery, whether its call ended or not; ignore an unknown one."""
        running = self.running.pop(key, None)
        if running is None:
            return
        host = running.flow.host
        if running.room is not None:
            running.room.leave(running.flow.owner)
        if running.waits:
            host.waiting -= 1
        else:
            _, quick = self._in_slots.pop(key)
            host.slots -= 1
            if not quick:
                self._in_trial -= 1
        if answered_at is not None:
            host.took(max(0.0, answered_at - running.since))
        if host.blocked:
            self._unblock(host)
        if len(self._hosts) > self._hosts_most:
            self._prune()

    def _unblock(self, host: Host) -> None:
        for flow in host.blocked:
            self._stand(flow)
        host.blocked.clear()

    def _prune(self) -> None:
        """Forget hosts that nothing is under way to: first those that never answered, last those known to be quick.

        A crowd of names must not turn the hosts that everybody calls into unknown ones.
        """
        busy = {flow.host.name for flow in self._flows.values()}
        idle = [host for host in self._hosts.values() if not (host.slots or host.waiting or host.name in busy)]
        # Stable: among equals the oldest goes first.
        idle.sort(key=lambda host: host.quick)
        forgotten = [host for host in idle if host.seconds is None]
        known = [host for host in idle if host.seconds is not None]
        forgotten += known[: max(0, len(known) - HOSTS_KEPT // 2)]
        for host in forgotten:
            del self._hosts[host.name]
        self._hosts_most = max(HOSTS_KEPT, 2 * len(self._hosts))

    def drain(self) -> Iterator[Held]:
        """Remove and yield everything that waits."""
        for flow in self._flows.values():
            yield from flow.items
            flow.items.clear()
        self._flows.clear()
        self._quick, self._trial, self.queued = Turns(), Turns(), 0
