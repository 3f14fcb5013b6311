"""Divides the claim's room fairly among flows, and among their owners.

A flow is one owner's deliveries to one host. What a flow may not claim now stays in the table, in order, and costs
nothing until there is room for it.

The rule is that of shared buffers in switches ("dynamic thresholds"): a flow may hold as much as is still free, an
owner twice as much. One flow alone gets half of the room, two get a third each, and a new flow always finds some room.
Every flow and owner gets a small minimum.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

# How many deliveries all beats together may have claimed and not started: what one worker starts in about two seconds.
# Workers keep what they cannot start yet in memory, under leases that they renew.
WINDOW = 2000
# Minimum claimed of a flow whatever the others hold, and of an owner even if the window is full.
FLOW_FLOOR = 4
OWNER_FLOOR = 64
# One claim's size: large enough to carry a burst in few statements, small enough that one statement stays in the tens
# of milliseconds.
CLAIM_LIMIT = 500
# A flow that may take few more waits until it may take this many; otherwise each start would cause a chunk of one.
ROOM_LEAST = 32


def owner_of(flow: int) -> int:
    """Return the owner's part of a flow."""
    return flow >> 32 & 0x1FF_FFFF


def lane_of(flow: int) -> int:
    """Return the lane of a flow; a lane is a range of flows."""
    return flow >> 57


def allot(flows: Iterable[int], claimed: Mapping[int, int], *, window: int = WINDOW) -> dict[int, int]:
    """Return how much each of these flows may claim now, at most CLAIM_LIMIT together; flows with no room are left out.

    `claimed` holds how much each of all flows holds.
    """
    by_owner: dict[int, int] = defaultdict(int)
    for flow, count in claimed.items():
        by_owner[owner_of(flow)] += count
    total = sum(claimed.values())
    free = max(0, window - total)
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    floors = 0
    for flow in flows:
        owner, has = owner_of(flow), claimed.get(flow, 0)
        floor = FLOW_FLOOR - has if total < window or by_owner[owner] < OWNER_FLOOR else 0
        more = min(free - has, 2 * free - by_owner[owner])
        if more < min(ROOM_LEAST, window // 2) and has:
            more = 0
        if (limit := max(floor, more)) > 0:
            wanted[owner].append((limit, flow))
            floors += max(0, floor)
    allotted: dict[int, int] = {}
    # Take half of what is free at a time, because each of these flows may want all that is free.
    left = min(CLAIM_LIMIT, max(floors, free // 2))
    # Each gets an equal share of what is left. Those that want little come first, and leave the rest to the others.
    for owners_left, (_, asked) in zip(range(len(wanted), 0, -1), sorted(wanted.items(), key=_asked), strict=True):
        share = max(1, left // owners_left)
        for flows_left, (limit, flow) in zip(range(len(asked), 0, -1), sorted(asked), strict=True):
            if left <= 0 or share <= 0:
                break
            allotted[flow] = min(limit, max(1, share // flows_left))
            share -= allotted[flow]
            left -= allotted[flow]
    return allotted


def _asked(item: tuple[int, list[tuple[int, int]]]) -> int:
    return sum(limit for limit, _ in item[1])
