"""Buckets and reservations against a real Redis: exact among threads, and out of the way when Redis is."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from webtask_scheduler.access import limits

pytestmark = pytest.mark.usefixtures("empty_store")
CLIENTS = 12


def at_once(function, *, times, clients=CLIENTS):
    """Call a function so many times from several threads at once; return what it returned."""
    with ThreadPoolExecutor(clients) as threads:
        return [future.result() for future in [threads.submit(function) for _ in range(times)]]


# Buckets


def test_bucket_gives_what_it_holds_to_threads_at_once_and_no_more():
    begun = time.monotonic()
    taken = at_once(lambda: limits.take("a", per_second=1), times=60)
    allowed = [one for one in taken if one.allowed]
    # Ten seconds' worth, and one for each second that this took.
    assert 10 <= len(allowed) <= 11 + time.monotonic() - begun
    refused = [one for one in taken if not one.allowed]
    assert all(one.left == 0 and 0 < one.wait_seconds <= 1 and one.most == 10 for one in refused)
    assert limits.take("b", per_second=1).allowed


def test_bucket_fills_with_time_and_says_when_it_is_full():
    begun = time.monotonic()
    for left in range(9, -1, -1):
        taken = limits.take("a", per_second=1)
        passed = time.monotonic() - begun
        assert taken.allowed
        assert left <= taken.left <= left + passed
        assert 10 - left - passed <= taken.full_seconds <= 10 - left
    refused = limits.take("a", per_second=1)
    assert not refused.allowed
    time.sleep(refused.wait_seconds + 0.02)  # It does not refuse for longer than it said.
    assert limits.take("a", per_second=1).allowed


def test_bucket_outlives_a_lower_rate_and_a_clock_that_was_set_back(empty_store):
    empty_store.set("webtask_scheduler:limit:requests:a", "99999999999.000000")
    refused = limits.take("a", per_second=10)
    assert not refused.allowed
    assert refused.wait_seconds <= 0.11


def test_buckets_are_forgotten_by_redis_once_they_are_full(empty_store):
    limits.take("a", per_second=2)
    assert 0 < empty_store.pttl("webtask_scheduler:limit:requests:a") <= 502


def connections_to(store):
    """Return the local ports of this process's connections to the server, which other tests use meanwhile."""
    port = store.connection_pool.connection_kwargs["port"]
    found = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in found if one.raddr and one.raddr.port == port and one.status == "ESTABLISHED"}


def test_threads_that_come_and_go_share_few_connections(empty_store):
    def take():
        assert limits.take("a", per_second=1000).allowed

    before = connections_to(empty_store)
    # More than a client of Redis opens at most.
    for _ in range(120):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(connections_to(empty_store) - before) <= 1


def test_connection_that_redis_closed_is_made_anew(empty_store, caplog):
    before = connections_to(empty_store)
    assert limits.take("a", per_second=0.1).allowed
    (port,) = connections_to(empty_store) - before
    empty_store.client_kill(f"127.0.0.1:{port}")
    assert limits.take("a", per_second=0.1).left == 0
    assert "limits_lifted" not in caplog.text


# Reservations


class Table:
    """What there is, as a database would say it: what was reserved is there once its transaction has ended."""

    def __init__(self, there=0.0):
        self.there, self.counts = there, 0
        self.lock = threading.Lock()

    def count(self):
        with self.lock:
            self.counts += 1
            return self.there

    def make(self, amount=1, *, most, takes=0.0, spare=0):
        if not limits.reserve("waiting:1", amount, most=most, count=self.count, spare=spare):
            return False
        time.sleep(takes)
        with self.lock:
            self.there += amount
        return True


@pytest.mark.parametrize("spare", [0, limits.SPARE])
def test_threads_at_once_reach_the_limit_and_do_not_pass_it(spare):
    table = Table()
    made = at_once(lambda: table.make(most=100, takes=0.01, spare=spare), times=200)
    assert (made.count(True), table.there) == (100, 100)
    # It was counted at the beginning; after that only sums were asked.
    assert table.counts <= CLIENTS


def test_batches_at_once_do_not_pass_the_limit():
    table = Table()
    made = at_once(lambda: table.make(30, most=100, takes=0.05), times=24)
    assert (made.count(True), table.there) == (3, 90)


def test_count_in_the_middle_of_open_transactions_forgets_none_of_them(monkeypatch):
    monkeypatch.setattr(limits, "RECOUNT_SECONDS", 0.0)
    table = Table(there=50)
    # Each refusal counts anew, while what was reserved is not there yet.
    at_once(lambda: table.make(most=60, takes=0.5), times=60)
    assert table.there == 60


def test_slow_first_count_does_not_count_twice_what_others_made_meanwhile():
    table = Table()

    def slowly():
        assert [table.make(most=40) for _ in range(20)] == [True] * 20
        return table.count()

    assert limits.reserve("waiting:1", 1, most=40, count=slowly)
    table.there += 1
    assert [table.make(most=40) for _ in range(20)] == [True] * 19 + [False]


def test_room_that_was_made_is_found_by_the_next_count(monkeypatch):
    monkeypatch.setattr(limits, "SETTLED_SECONDS", 0.5)
    monkeypatch.setattr(limits, "RECOUNT_SECONDS", 0.5)
    table = Table(there=9)
    assert table.make(most=10)
    assert not table.make(most=10)
    table.there = 3
    time.sleep(0.6)  # Until what was reserved is taken for settled.
    assert [table.make(most=10) for _ in range(8)] == [True] * 7 + [False]
    assert table.counts == 2


def test_few_of_many_are_asked_of_redis_and_counted_once(empty_store):
    table = Table(there=1000)
    before = empty_store.info("commandstats")["cmdstat_evalsha"]["calls"] if table.make(most=100_000) else 0
    begun = time.monotonic()
    for _ in range(limits.SPARE):
        assert table.make(most=100_000, spare=limits.SPARE)
    asked = empty_store.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert asked <= 2 + (time.monotonic() - begun) / limits.SPARE_SECONDS
    assert table.counts == 1


def test_fractions_add_up_and_nothing_asks_for_nothing():
    table = Table()
    assert [table.make(0.1, most=0.3) for _ in range(4)] == [True, True, True, False]
    assert limits.reserve("waiting:1", 0, most=0.3, count=table.count)
    assert limits.reserve("waiting:1", -1, most=0.3, count=table.count)


# Without Redis


@pytest.fixture
def silent(settings, monkeypatch):
    """Point the limits at a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings.REDIS_URL = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        monkeypatch.setattr(limits, "TIMEOUT_SECONDS", 0.25)
        monkeypatch.setattr(limits, "AWAY_SECONDS", 30.0)
        limits.forget()
        yield server


def test_without_an_answer_requests_are_let_through_and_only_the_first_waits(silent, caplog):
    begun = time.monotonic()
    assert limits.take("a", per_second=1) is None
    assert limits.TIMEOUT_SECONDS <= time.monotonic() - begun < 20
    begun = time.monotonic()
    for _ in range(1000):
        assert limits.take("a", per_second=0.01) is None
        assert limits.reserve("waiting:1", 5, most=1, count=lambda: 1 / 0)
    # If each waited, it would take eight minutes.
    assert time.monotonic() - begun < 20
    lines = [record.message for record in caplog.records if "limits_" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith("limits_lifted ")


def test_threads_that_meet_a_redis_that_went_away_wait_once(silent, caplog):
    begun = time.monotonic()
    assert at_once(lambda: limits.take("a", per_second=1), times=600) == [None] * 600
    # One after the other they would wait for over two minutes.
    assert time.monotonic() - begun < 30
    assert sum("limits_lifted" in record.message for record in caplog.records) == 1


def test_redis_that_is_back_enforces_limits_again_and_says_how_many_passed(empty_store, caplog, monkeypatch):
    monkeypatch.setattr(limits, "AWAY_SECONDS", 1.5)
    monkeypatch.setattr(limits, "TIMEOUT_SECONDS", 0.25)
    assert limits.take("a", per_second=1).allowed
    # It answers nobody for a while.
    empty_store.client_pause(1000)
    for _ in range(7):
        assert limits.take("a", per_second=1) is None
    time.sleep(1.6)  # Nobody asks sooner.
    assert [limits.take("a", per_second=1).allowed for _ in range(2)] == [True, True]
    said = [record.message for record in caplog.records if "limits_enforced" in record.message]
    assert said == ["limits_enforced let_through=7"]


@pytest.mark.usefixtures("full_redis")
def test_redis_that_refuses_to_write_counts_as_away(caplog):
    assert limits.take("a", per_second=1) is None
    assert sum("limits_lifted" in record.message for record in caplog.records) == 1
