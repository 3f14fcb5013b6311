"""Whatever a receiver answers, a call ends in time and in little memory, and the next call gets its own answer."""

import itertools
import threading
import time
from contextlib import suppress

import pytest

from webtask_scheduler.scheduler.outgoing.client import CallError, Client, Request
from webtask_scheduler.scheduler.tests.support.hostile import CASES, Server
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS

TIMEOUT_SECONDS = 2.0
# What the system's buffers of a loopback connection may take while nobody reads them.
SENT_MOST_BYTES = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def client():
    return Client(callers=4, user_agent="test/1", egress=EGRESS)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def test_there_are_enough_cases_and_each_has_its_name():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_answer_ends_in_time_and_the_next_call_gets_its_own(client, server, case):
    server.case = case.pieces
    begun, cpu = time.monotonic(), time.thread_time()
    try:
        answer = client.call(Request(url=server.url("/case"), method=case.method, timeout_seconds=TIMEOUT_SECONDS))
        outcome, body, words = answer.status_code, answer.body, ""
    except CallError as failure:
        outcome, body, words = failure.kind, b"", str(failure)
    took, cpu = time.monotonic() - begun, time.thread_time() - cpu
    # What comes late is there before the next call: one that is written while the connection is being closed fails, and
    # no client can know.
    if case.name in ("another answer a little later", "answer and end"):
        time.sleep(0.2)
    # Another timer's call to the same host.
    own = f"/own/{id(case)}"
    other = client.call(Request(url=server.url(own), timeout_seconds=5))
    assert (other.status_code, other.body) == (200, own.encode())
    assert (outcome, body) == (case.outcome, case.body)
    assert case.words in words
    assert words.isprintable()
    # Whatever else came of it came before.
    assert outcome != "timeout" or TIMEOUT_SECONDS <= took < 20
    # It never spins, and reads a bounded part.
    assert cpu < 0.3
    assert server.sent < SENT_MOST_BYTES
    (_, first), (path, second) = server.seen
    assert path == own
    assert (first == second) is case.kept


def test_receiver_that_was_seen_to_send_too_much_gets_a_connection_for_each_call(client, server):
    late = next(case for case in CASES if case.name == "another answer a little later")
    server.case = late.pieces

    def call(path):
        return client.call(Request(url=server.url(path), timeout_seconds=TIMEOUT_SECONDS)).body

    call("/case")
    # The surplus answer comes, and is seen when the connection is looked at for the next call.
    time.sleep(0.2)
    assert call("/own/1") == b"/own/1"
    for number in range(2, 12):
        call("/case")
        # At once: on the same connection the surplus answer would be taken for this call's own.
        assert call(f"/own/{number}") == b"/own/%d" % number


def test_calls_side_by_side_get_their_own_answers_beside_hostile_ones(client, server):
    turn = itertools.cycle([case for case in CASES if case.outcome != "timeout" and not case.forever])
    server.case = lambda: next(turn).pieces()
    wrong = []
    end = time.monotonic() + 1.5

    def goes_on():
        return time.monotonic() < end or len(server.seen) <= 100

    def attack():
        while goes_on():
            with suppress(CallError):
                client.call(Request(url=server.url("/case"), method="GET", timeout_seconds=TIMEOUT_SECONDS))

    def ask(name):
        for number in itertools.count():
            if not goes_on():
                return
            path = f"/own/{name}/{number}"
            try:
                body = client.call(Request(url=server.url(path), timeout_seconds=5)).body
            except CallError as failure:
                body = str(failure).encode()
            wrong.extend([(path, body)] if body != path.encode() else [])

    threads = [threading.Thread(target=attack) for _ in range(3)]
    threads += [threading.Thread(target=ask, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
