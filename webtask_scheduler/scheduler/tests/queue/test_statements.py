"""How many SQL statements a burst costs, from the claim to the record, and a creation.

They are counted on every connection of every thread by the wrapper that Django offers for it, so nothing that the
scheduler asks of the database goes uncounted.
"""

import contextlib
import queue
import threading
import time
from collections import Counter

import pytest
from django.db import connection
from django.db.backends.signals import connection_created
from psycopg2 import extensions, extras

from webtask_scheduler.dispatch import dispatcher as dispatch
from webtask_scheduler.dispatch.dispatcher import Dispatcher
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.delivery import pool as module
from webtask_scheduler.scheduler.delivery.pool import CallPool
from webtask_scheduler.scheduler.models import Attempt, Delivery, State
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue import attempts, claims, leases, rollups
from webtask_scheduler.scheduler.tests.support.api import URL, bearer, post
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS, Receiver

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = {
    claims._CLAIM_LANES: "claim",
    claims._CLAIM_FLOWS: "claim",
    claims._LANES: "look",
    claims._CLAIMED: "claimed",
    claims._FLOWS: "flows",
    attempts._START: "start",
    attempts._RECORD: "record",
    attempts._RECORD_PLAIN: "record",
    leases._RENEW: "renew",
    leases._PUT_BACK: "put back",
    rollups._FLUSH: "flush",
}


# A start or a record takes at least so long, as it does with a database across a network. What comes meanwhile goes
# into the next one, so that the count depends on this more than on how fast the machine is.
AWAY_SECONDS = 0.004
COUNT = 1000
# Starts, records and whatever was put back, for so many deliveries: one each would be 2,000. At 600 to 1,000 calls a
# second some six share a statement, on a busy machine more; this asks for four.
MOST = 500


class Statements:
    """Counts the statements of all threads by what they do."""

    def __init__(self):
        self.counts = Counter()
        self._lock = threading.Lock()

    def __call__(self, execute, sql, params, many, context):
        kind = KINDS.get(sql, "other")
        with self._lock:
            self.counts[kind] += 1
        if kind in ("start", "record"):
            time.sleep(AWAY_SECONDS)
        return execute(sql, params, many, context)


@pytest.fixture
def statements():
    counter = Statements()

    def watch(connection, **_):
        if counter not in connection.execute_wrappers:
            connection.execute_wrappers.append(counter)

    connection_created.connect(watch)
    watch(connection)
    yield counter
    connection_created.disconnect(watch)
    connection.execute_wrappers.remove(counter)


@contextlib.contextmanager
def messages():
    """Note each message to PostgreSQL: psycopg2 waits for the answer to each."""
    noted = []

    def wait(conn):
        noted.append(conn)
        extras.wait_select(conn)

    extensions.set_wait_callback(wait)
    try:
        yield noted
    finally:
        extensions.set_wait_callback(None)


@contextlib.contextmanager
def worker(*, callers):
    """A worker process in small: as many threads as Celery has there hand to one pool what beat publishes."""
    messages = queue.SimpleQueue()
    client = Client(callers=callers, user_agent="t", egress=EGRESS)
    pool = CallPool(callers=callers, client=client, timeout_seconds=10.0, flush=rollups.tally.flush)

    def take():
        while (chunk := messages.get()) is not None:
            pool.hand_over([(item.delivery_id, item.token, item.host, item.flow) for item in chunk.items])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield messages.put
    finally:
        for _ in threads:
            messages.put(None)
        for thread in threads:
            thread.join(10)
        # Records what has ended.
        pool.close()


@pytest.mark.parametrize("hosts", [1, 5])
def test_statements_for_a_thousand_due_at_once(hosts, statements, settings, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.2)
    rollups.tally.forget()
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(Receiver()) for _ in range(hosts)]
        urls = [receivers[number % hosts].url(f"/{number}") for number in range(COUNT)]
        services.schedule([services.NewTimer(web_url=url, delay_seconds=-1) for url in urls])
        statements.counts.clear()
        begun = time.monotonic()
        with worker(callers=settings.WEBTASK_CALLERS) as publish:
            dispatcher = Dispatcher(queue=claims.DeliveryQueue(), publish=publish, dispute=list)
            while (called := sum(len(receiver.calls) for receiver in receivers)) < COUNT:
                assert time.monotonic() < begun + 60, f"{called} calls"
                time.sleep(min(dispatcher.turn(), 0.01))
        seconds = time.monotonic() - begun
        counts = Counter(statements.counts)
    assert Delivery.objects.filter(state=State.SUCCEEDED, attempts=1).count() == COUNT == Attempt.objects.count()
    assert (rollups.ever().succeeded, sum(rollups.ever().first_late)) == (COUNT, COUNT)
    # For each delivery: two full claims would do; twice as many are forgiven.
    assert 2 <= counts["claim"] <= 2 * COUNT / dispatch.CLAIM_LIMIT
    assert counts["start"] + counts["record"] + counts["put back"] <= MOST, counts
    # By the clock, however much is due: a look at each poll and after each claim, one renewal of all that is held each
    # time, and once a second the look, the expired leases, the stops and what they held.
    assert counts["look"] <= seconds / dispatch.POLL_SECONDS + seconds / dispatch.RECLAIM_SECONDS + counts["claim"] + 2
    assert 1 <= counts["flush"] <= seconds / module.FLUSH_SECONDS + 2
    assert 1 <= counts["renew"] <= seconds / module.RENEW_SECONDS + 2
    assert counts["other"] <= 3 * (seconds / dispatch.RECLAIM_SECONDS + 1), counts


@pytest.mark.usefixtures("empty_store")
def test_statements_and_messages_of_a_creation_with_all_guards(client, user, statements, settings):
    settings.WEBTASK_API_AUTH = "key"
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND, settings.WEBTASK_LIMIT_TIMERS_WAITING = 1000, 1000
    headers, one = bearer(user), {"seconds": 60, "web_url": URL}
    bodies = [("/timer", one), ("/timer", one | {"every": "PT1H"}), ("/timer/batch", {"timers": [one] * 3})]
    del bodies[1][1]["seconds"]

    def make(key):
        for number, (path, body) in enumerate(bodies):
            more = {"Idempotency-Key": f"{key}-{number}"} if key else {}
            answer = post(client, body, path, **headers, **more)
            assert answer.status_code == 201, answer.content

    # What is prepared, the owners' limits, and the first count of what waits.
    make("")
    make("before")
    for key in ("", "counted"):
        # The API key's, and one for all rows.
        statements.counts.clear()
        make(key)
        assert statements.counts.total() == 2 * len(bodies)
        # No more travel where nobody watches: no BEGIN and no COMMIT.
        connection.execute_wrappers.remove(statements)
        try:
            with messages() as sent:
                make(key and "unwatched")
        finally:
            connection.execute_wrappers.append(statements)
        assert len(sent) == 2 * len(bodies)
