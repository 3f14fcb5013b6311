"""The flows of an owner: a flow is one owner's deliveries to one host; see models.Timer.flow.

In each lane the flows of an owner are neighbours, so an index that begins with the flow holds an owner's deliveries
together, beside millions of others'.
"""

from typing import NamedTuple

from django.db import connection

from webtask_scheduler.scheduler.models import LANES, OWNER_BITS
from webtask_scheduler.scheduler.services.caller import Caller

# Flows of an owner whose waiting deliveries are read one beside the other.
FLOWS_MOST = 100

# Along delivery_flow_idx: each probe skips to the next flow.
_WAITING = """
WITH RECURSIVE own AS (
  SELECT lane.number, (SELECT min(flow) FROM scheduler_delivery
                        WHERE state = 'scheduled' AND flow >= (lane.number << 57) + (%(owner)s::bigint << 32)
                          AND flow < (lane.number << 57) + (%(owner)s::bigint << 32) + 4294967296) AS flow
    FROM generate_series(0, %(lanes)s::bigint - 1) AS lane (number)
  UNION ALL
  SELECT own.number, (SELECT min(flow) FROM scheduler_delivery
                       WHERE state = 'scheduled' AND flow > own.flow
                         AND flow < (own.number << 57) + (%(owner)s::bigint << 32) + 4294967296)
    FROM own WHERE own.flow IS NOT NULL
)
SELECT flow FROM own WHERE flow IS NOT NULL LIMIT %(most)s
"""
# As models.Timer.flow is made.
_OF_HOST = """
SELECT (((owner # host) & (%(lanes)s - 1)) << 57) + (owner << 32) + host
  FROM (SELECT %(owner)s::bigint AS owner, hashtext(%(host)s)::bigint & 4294967295 AS host) parts
"""


class Waiting(NamedTuple):
    """The flows in which an owner's deliveries wait, at most FLOWS_MOST, and whether there are more."""

    flows: list[int]
    is_cut: bool


def waiting_of(owner_id: int | None) -> Waiting:
    """Return the flows in which an owner's deliveries wait. Raises DatabaseError."""
    values = {"owner": (owner_id or 0) & OWNER_BITS, "lanes": LANES, "most": FLOWS_MOST + 1}
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, values)
        found = [row[0] for row in cursor.fetchall()]
    return Waiting(found[:FLOWS_MOST], is_cut=len(found) > FLOWS_MOST)


def of_host(owner_id: int | None, host: str) -> int:
    """Return the flow of an owner's deliveries to a host. Raises DatabaseError."""
    with connection.cursor() as cursor:
        cursor.execute(_OF_HOST, {"owner": (owner_id or 0) & OWNER_BITS, "host": host, "lanes": LANES})
        return int(cursor.fetchone()[0])


def ranges_of(caller: Caller) -> dict[str, list[int]]:
    """Return the flows of a caller as ranges, each as what it begins after and its last."""
    if caller.sees_all:
        return {"after": [-1], "last": [2**63 - 1]}
    owner = ((caller.owner_id or 0) & OWNER_BITS) << 32
    begins = [(lane << 57) + owner for lane in range(LANES)]
    return {"after": [begin - 1 for begin in begins], "last": [begin + 0xFFFF_FFFF for begin in begins]}
