"""When an attempt reached each stage, from the claim to the first byte, as it is recorded and shown."""

import json
import time
import uuid

import pytest

from webtask_scheduler.dispatch.publisher import Publisher
from webtask_scheduler.dispatch.queue import Chunk
from webtask_scheduler.scheduler.delivery.pool import CallPool
from webtask_scheduler.scheduler.models import STAGES, Attempt, Delivery
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.tests.support.acting import claim, run
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Kept(Publisher):
    """Keeps the messages as the broker would carry them, instead of sending them."""

    def __init__(self):
        super().__init__(app=None)
        self.items = []

    def _send(self, task, args, **options):
        self.items += json.loads(json.dumps(args[0]))


def message(*, wait_seconds=0.0):
    """Return what a beat sends to a worker of all that is due, after a wait."""
    publisher, held = Kept(), tuple(claim().held)
    time.sleep(wait_seconds)
    publisher.deliver(Chunk(held))
    return [(uuid.UUID(delivery), uuid.UUID(token), *more) for delivery, token, *more in publisher.items]


@pytest.fixture
def pool():
    pool = CallPool(callers=1, client=Client(callers=1, user_agent="t", egress=EGRESS), timeout_seconds=5.0)
    yield pool
    pool.close()


def called(pool, items):
    """Have a worker call these, and return their attempts in the order of the calls."""
    known = Attempt.objects.count()
    pool.hand_over(items)
    wait_until(lambda: Attempt.objects.count() == known + len(items))
    return list(Attempt.objects.order_by("pk")[known:])


def test_stages_are_recorded_in_their_order_by_one_clock(pool, make_timer, receiver):
    make_timer(receiver.url("/sleep/0.2"), delay_seconds=-3)
    items = message(wait_seconds=0.3)
    time.sleep(0.2)
    (attempt,) = called(pool, items)
    stages = attempt.stages_ms
    # Not over TLS: nothing is secured.
    assert list(stages) == [name for name in STAGES if name != "secured"]
    assert list(stages.values()) == sorted(stages.values())
    assert stages["received"] <= 0 <= stages["resolved"] <= stages["connected"] < stages["first_byte"]
    # What was waited for is where it was waited for.
    assert 290 <= stages["published"] - stages["claimed"] < 20_000
    assert 190 <= stages["received"] - stages["published"] < 20_000
    assert stages["first_byte"] >= 195
    assert stages["first_byte"] <= attempt.duration_ms + 1


def test_call_on_a_kept_connection_connects_nothing(pool, make_timer, receiver):
    for _ in range(2):
        make_timer(receiver.url("/"), delay_seconds=-1)
    first, second = called(pool, message())
    assert "connected" in first.stages_ms
    assert list(second.stages_ms) == ["claimed", "published", "received", "first_byte"]


def test_attempt_has_the_stages_that_it_reached(pool, make_timer, receiver):
    make_timer("http://127.0.0.1:9/", delay_seconds=-1)
    (refused,) = called(pool, message())
    assert list(refused.stages_ms) == ["claimed", "published", "received", "resolved"]
    # A beat of release 0.2 says neither when it claimed nor when it published.
    make_timer(receiver.url("/"), delay_seconds=-1)
    (old,) = called(pool, [item[:4] for item in message()])
    assert list(old.stages_ms) == ["received", "resolved", "connected", "first_byte"]


def test_stages_are_shown_with_each_call(pool, client, make_timer, receiver):
    timer = make_timer(receiver.url("/"), delay_seconds=-1)
    (attempt,) = called(pool, message())
    (shown,) = client.get(f"/timer/{timer.pk}/attempts").json()["attempts"]
    assert shown["stages"] == attempt.stages_ms
    assert "stages" not in client.get(f"/timer/{timer.pk}").json()["attempts"][0]


def test_attempt_without_stages_shows_none(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    run()
    assert Attempt.objects.get().stages is None
    assert client.get(f"/timer/{timer.pk}/attempts").json()["attempts"][0]["stages"] == {}
    assert Delivery.objects.get().attempts == 1
