"""Names that hang keep no other name from resolving, and no call beyond its time."""

import socket
import threading
import time
from collections import Counter

import pytest

from webtask_scheduler.scheduler.outgoing import names
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
from webtask_scheduler.scheduler.tests.support.waiting import wait_until


class Resolver:
    """What stands for the system's: names that begin with `hang` hang until the end, `slow` ones dawdle."""

    def __init__(self):
        self.asked = Counter()
        self.slow_seconds = 0.3
        self.released = threading.Event()

    def __call__(self, host, port, **_):
        self.asked[host] += 1
        if host.startswith("hang"):
            self.released.wait(30)
        if host.startswith("slow"):
            self.released.wait(self.slow_seconds)
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)


@pytest.fixture
def resolver():
    running = Resolver()
    yield running
    running.released.set()


def make(resolver, *, lookups=64):
    return Client(callers=8, user_agent="test/1", egress=EGRESS, lookups=lookups, getaddrinfo=resolver)


def outcome(client, receiver, host, *, timeout=5.0):
    try:
        url = receiver.url().replace("127.0.0.1", host)
        return client.call(Request(url=url, body=b"{}", timeout_seconds=timeout)).status_code
    except CallError as error:
        return error.kind
    except LocalError:
        return "local"


def start(client, receiver, hosts, **fields):
    """Call each in a thread of its own; return the threads and what becomes of the calls."""
    outcomes = {}

    def work(number, host):
        outcomes[number] = outcome(client, receiver, host, **fields)

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(hosts)]
    for thread in threads:
        thread.start()
    return threads, outcomes


def test_two_hundred_names_that_hang_keep_no_other_from_resolving(resolver, receiver):
    client = make(resolver, lookups=256)
    threads, outcomes = start(client, receiver, [f"hang{number}.example" for number in range(200)], timeout=6)
    wait_until(lambda: client.lookups_under_way == 200)
    for number in range(20):
        assert outcome(client, receiver, f"good{number}.example") == 200
    # None of them waited for one that hangs.
    assert not outcomes
    for thread in threads:
        thread.join()
    assert set(outcomes.values()) == {"timeout"}


def test_names_that_resolved_before_resolve_though_every_other_name_hangs(resolver, receiver, monkeypatch):
    monkeypatch.setattr(names, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(names, "QUEUE_SECONDS", 0.3)
    client = make(resolver, lookups=64)
    assert outcome(client, receiver, "good.example") == 200
    start(client, receiver, [f"hang{number}.example" for number in range(200)])
    wait_until(lambda: client.lookups_under_way >= 56)
    # No more of them start, and those that waited have given up: the eighth that new names leave free.
    time.sleep(0.5)
    assert client.lookups_under_way == 56
    client._connections.close_idle()
    # One that had to wait for a thread would wait for longer than the call may take.
    monkeypatch.setattr(names, "QUEUE_SECONDS", 30.0)
    for _ in range(10):
        client._connections._close_oldest_idle()
        assert outcome(client, receiver, "good.example", timeout=20) == 200
    assert resolver.asked["good.example"] == 11
    # A new name is put off, not failed.
    monkeypatch.setattr(names, "QUEUE_SECONDS", 0.3)
    assert outcome(client, receiver, "new.example") == "local"
    resolver.released.set()
    wait_until(lambda: client.lookups_under_way == 0)
    assert outcome(client, receiver, "new.example") == 200


def test_names_that_hung_before_leave_half_of_the_threads_to_new_ones(resolver, receiver, monkeypatch):
    monkeypatch.setattr(names, "SLOW_SECONDS", 0.1)
    client = make(resolver, lookups=16)
    slow = [f"slow{number}.example" for number in range(12)]
    for thread in start(client, receiver, slow)[0]:
        thread.join()
    monkeypatch.setattr(names, "FRESH_SECONDS", 0.0)
    client._names._fresh.clear()
    # Calls over kept connections would ask for no name.
    wait_until(lambda: client.open_connections == 0)
    # From now on they hang. One that had to wait for a thread would wait for longer than the call may take.
    resolver.slow_seconds = 30
    monkeypatch.setattr(names, "QUEUE_SECONDS", 30.0)
    start(client, receiver, slow)
    wait_until(lambda: client.lookups_under_way == 8)
    assert outcome(client, receiver, "good.example", timeout=20) == 200


def test_calls_to_one_name_share_one_look_up(resolver, receiver):
    client = make(resolver)
    threads, outcomes = start(client, receiver, ["slow.example"] * 30)
    for thread in threads:
        thread.join()
    assert set(outcomes.values()) == {200}
    assert outcome(client, receiver, "slow.example") == 200
    assert resolver.asked["slow.example"] == 1


def test_a_name_is_looked_up_again_after_seconds(resolver, receiver, monkeypatch):
    monkeypatch.setattr(names, "FRESH_SECONDS", 0.2)
    client = make(resolver)
    for _ in range(2):
        assert outcome(client, receiver, "good.example") == 200
        # Nobody looks it up again before it is asked for, though it is fresh no more.
        time.sleep(0.3)
        client._connections._close_oldest_idle()
    assert resolver.asked["good.example"] == 2


def test_a_name_is_looked_up_again_where_its_address_cannot_be_connected_to(resolver):
    client = make(resolver)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(2):
        with pytest.raises(CallError, match="No connection"):
            client.call(Request(url=f"http://good.example:{port}/", timeout_seconds=5))
    assert resolver.asked["good.example"] == 2


def test_a_look_up_is_not_waited_for_longer_than_its_bound(resolver, receiver, monkeypatch):
    monkeypatch.setattr(names, "LOOKUP_SECONDS", 1.5)
    client = make(resolver)
    begun = time.monotonic()
    assert outcome(client, receiver, "hang.example", timeout=30) == "dns"
    assert 1.5 <= time.monotonic() - begun < 20
    # Later calls share it, and what is already known of it: they do not wait for the same again.
    begun = time.monotonic()
    assert outcome(client, receiver, "hang.example", timeout=30) == "dns"
    assert time.monotonic() - begun < 1.5
    assert resolver.asked["hang.example"] == 1


def test_unknown_name_is_the_receivers_failure_each_time(resolver, receiver):
    client = make(resolver)
    assert [outcome(client, receiver, "unknown.example") for _ in range(2)] == ["dns", "dns"]
    assert resolver.asked["unknown.example"] == 2


def test_interrupt_ends_a_call_that_waits_for_a_name(resolver, receiver):
    client = make(resolver)
    threads, outcomes = start(client, receiver, ["hang.example"], timeout=30)
    wait_until(lambda: client.lookups_under_way)
    client.interrupt()
    # Long before the look-up or the call would end.
    threads[0].join(20)
    assert outcomes == {0: "interrupted"}


def test_calls_that_gave_up_leave_nothing_behind(resolver, receiver, monkeypatch):
    client = make(resolver, lookups=8)
    threads, _ = start(client, receiver, [f"hang{number}.example" for number in range(40)], timeout=0.4)
    for thread in threads:
        thread.join()
    assert client.lookups_under_way == 7
    assert len(client._names._lookups) == 7
    resolver.released.set()
    wait_until(lambda: client._names._lookups == {})
    assert client.lookups_under_way == 0
    assert sum(map(len, client._names._queues)) == 0


def test_look_ups_run_on_small_stacks_and_leave_the_size_alone(resolver, receiver):
    before = threading.stack_size()
    assert outcome(make(resolver), receiver, "good.example") == 200
    assert threading.stack_size() == before


def test_look_up_that_never_ends_is_abandoned(resolver, receiver, monkeypatch):
    monkeypatch.setattr(names, "ABANDON_SECONDS", 0.2)
    client = make(resolver)
    assert outcome(client, receiver, "hang.example", timeout=0.3) == "timeout"
    assert outcome(client, receiver, "hang.example", timeout=0.3) == "timeout"
    assert resolver.asked["hang.example"] == 2
    resolver.released.set()
    wait_until(lambda: client.lookups_under_way == 0)
    assert outcome(client, receiver, "hang.example") == 200
    assert client._names._lookups == {}
