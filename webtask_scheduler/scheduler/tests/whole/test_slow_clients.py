"""Clients that take their time do not take the service from others: a real web process, as it is started."""

import contextlib
import json
import select
import socket
import threading
import time

import pytest
from django.db import connection, transaction

from config import front
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

# More than there are threads, and than the 16 that once were enough.
DRIPPING = 64
HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"
TIMER = {"seconds": 600, "web_url": "http://127.0.0.1:9/"}


@contextlib.contextmanager
def connected(port, count, first=b""):
    """Open connections that have said `first`."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(count)]
        for one in found:
            one.sendall(first)
        yield found


@contextlib.contextmanager
def dripping(sockets, seconds=0.5):
    """Send a byte on each again and again, until it is closed."""
    over = threading.Event()

    def drip():
        while not over.wait(seconds):
            for one in sockets:
                with contextlib.suppress(OSError):
                    one.send(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def said(connection):
    """Return what the other side sends until it closes."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            text += chunk
    return text


def ask(port, request, body=b""):
    with connected(port, 1, request.encode("latin-1") + b"Connection: close\r\n\r\n" + body) as (one,):
        return said(one)


def test_bodies_that_drip_hold_up_nobody_and_are_given_up():
    with running("web") as service:
        head = f"POST /timer HTTP/1.1\r\n{HEADERS}Content-Length: 1000\r\n\r\n".encode()
        begin = time.monotonic()
        with connected(service.port, DRIPPING, head) as sockets, dripping(sockets):
            # While all of them drip, others are answered as if they were alone.
            took = []
            while time.monotonic() < begin + front.BODY_SECONDS - 2:
                before = time.monotonic()
                assert service.post(TIMER)[0] == 201
                assert service.get("/healthz")[0] == 200
                took.append(time.monotonic() - before)
                time.sleep(0.05)
            assert len(took) > 10
            assert sorted(took)[len(took) // 2] < 1
            # And none of them goes on for ever.
            for one in sockets:
                answer = said(one)
                assert answer.startswith(b"HTTP/1.1 408 ")
                assert b"application/problem+json" in answer
                assert b"did not arrive in time" in answer
        assert time.monotonic() - begin < front.BODY_SECONDS + 10
        assert service.log("web").count("bodies_too_slow") == 1
        assert service.post(TIMER)[0] == 201


def test_clients_that_send_no_request_are_closed():
    with running("web") as service:
        begin = time.monotonic()
        with connected(service.port, DRIPPING) as silent, connected(service.port, DRIPPING, b"POST /ti") as begun:
            assert service.post(TIMER)[0] == 201
            with dripping(begun):
                for one in silent + begun:
                    assert b"200 OK" not in said(one)
        assert time.monotonic() - begin < 30


def test_body_that_is_slow_but_comes_is_read(web):
    text = json.dumps(TIMER).encode()
    head = f"POST /timer HTTP/1.1\r\n{HEADERS}Connection: close\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    with connected(web.port, 1, head) as (one,):
        for index in range(len(text)):
            one.send(text[index : index + 1])
            time.sleep(0.01)
        assert said(one).startswith(b"HTTP/1.1 201 ")


def test_large_body_is_read_whole_and_a_larger_one_refused(web):
    batch = {"timers": [TIMER | {"body": "x" * 10_000} for _ in range(200)]}
    status, body = web.post(batch, "/timer/batch")
    assert (status, len(body["timers"])) == (201, 200)
    answer = ask(web.port, f"POST /timer HTTP/1.1\r\n{HEADERS}Content-Length: 9000000\r\n", b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_body_without_a_length_is_refused_at_once(web):
    answer = ask(web.port, f"POST /timer HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")


def test_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(web):
    head = f"POST /timer HTTP/1.1\r\n{HEADERS}Content-Length: 1000\r\n\r\n".encode()
    for _ in range(3):
        with connected(web.port, 20, head + b"{"):
            pass
    assert web.post(TIMER)[0] == 201
    assert "Traceback" not in web.log("web")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /timer/%C3%BC%E2%82%AC HTTP/1.1", b"404"),
        ("GET /timer/%FF%FE HTTP/1.1", b"404"),
        ("GET /timer?name=%C3%BC HTTP/1.1", b"200"),
        ("HEAD /healthz HTTP/1.1", b"200"),
        ("GET /static/scheduler/docs.css HTTP/1.1", b"200"),
        ("PATCH /timer HTTP/1.1", b"405"),
    ],
)
def test_request_reaches_the_application_as_it_was_sent(web, request_line, status):
    assert ask(web.port, f"{request_line}\r\nHost: localhost\r\n").split(b" ")[1] == status


def test_header_that_only_looks_like_a_proxys_is_dropped(web):
    """A proxy overwrites X-Forwarded-Proto; WSGI would have the one with underscores for the same."""
    for name, status in (("X-Request-ID", b"x-request-id: mine"), ("X_Request_ID", None)):
        answer = ask(web.port, f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{name}: mine\r\n")
        assert (b"x-request-id: mine" in answer.lower()) == (status is not None)


# As large as a body may be, and so many that they do not fit.
LARGE = 4 * 1024 * 1024
FLOOD = 2 * front.BUFFER_BYTES // LARGE


def sent_at_once(sockets, first, body):
    """Send a head and a body on each connection, from as many threads."""

    def send(one):
        # Whoever is refused is not read to the end.
        with contextlib.suppress(OSError):
            one.sendall(first + body)

    threads = [threading.Thread(target=send, args=(one,)) for one in sockets]
    for thread in threads:
        thread.start()
    return threads


def test_large_bodies_that_wait_for_a_thread_are_bounded_and_others_are_told_so(web):
    """Bodies that came whole and wait for a slow database are held in memory as well as those that are on their way."""
    head = f"POST /timer/batch HTTP/1.1\r\n{HEADERS}Authorization: Bearer wts_live_{'a' * 40}\r\nConnection: close\r\n"
    first = f"{head}Content-Length: {LARGE}\r\n\r\n".encode()
    body = b'{"timers": []}'.ljust(LARGE)
    with connected(web.port, FLOOD) as sockets:
        with transaction.atomic(), connection.cursor() as cursor:
            # Every thread of the process waits for this table, with a body in its hands.
            cursor.execute("LOCK TABLE access_apikey IN ACCESS EXCLUSIVE MODE")
            threads = sent_at_once(sockets, first, body)
            refused = answered(sockets, until=FLOOD - front.BUFFER_BYTES // LARGE, seconds=4)
        rest = [said(one) for one in sockets if one not in refused]
        for thread in threads:
            thread.join()
    assert len(rest) == front.BUFFER_BYTES // LARGE
    assert {answer.split(b" ")[1] for answer in rest} == {b"401"}
    assert {answer.split(b" ")[1] for answer in refused.values()} == {b"503"}
    for answer in refused.values():
        assert b"application/problem+json" in answer
        assert b"Too many large requests arrive at once." in answer
    # What was answered has made room.
    for _ in range(2):
        with connected(web.port, FLOOD // 2) as sockets:
            for thread in sent_at_once(sockets, first, body):
                thread.join()
            assert {said(one).split(b" ")[1] for one in sockets} == {b"401"}


def answered(sockets, *, until, seconds):
    """Return what is said on those connections that are answered first, so many or within this time."""
    found = {}
    deadline = time.monotonic() + seconds
    while len(found) < until and time.monotonic() < deadline:
        readable, _, _ = select.select([one for one in sockets if one not in found], [], [], 0.2)
        found |= {one: said(one) for one in readable}
    return found


def test_line_of_a_request_is_written_when_it_is_answered():
    with running() as service:
        service.environment["WEB_ACCESS_LOG"] = "on"
        service.start("web")
        assert service.get("/timer/nothing-like-this")[0] == 404
        # Before anybody asks for something else.
        wait_until(lambda: "path='/timer/nothing-like-this' status=404" in service.log("web"))
