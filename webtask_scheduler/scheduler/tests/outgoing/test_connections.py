"""Connections are kept for a while, closed when idle, bounded in number, and a lack of this machine is no attempt."""

import errno
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.models import PreparedRequest

from webtask_scheduler.scheduler.outgoing import client as client_module
from webtask_scheduler.scheduler.outgoing import prepared, reading
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.tests.support.apart import run_apart
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS, Receiver
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

CERTIFICATE = Path(__file__).parents[1] / "support" / "localhost.pem"


def call(client, url, *, timeout=5.0, **fields):
    return client.call(Request(url=url, body=b"{}", timeout_seconds=timeout, **fields))


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def client():
    return Client(callers=8, user_agent="test/1", egress=EGRESS)


@pytest.fixture
def secure_receiver():
    with Receiver() as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        # The handshake in the thread that serves, or a client that dawdles would hold up the others.
        running._server.socket = context.wrap_socket(
            running._server.socket, server_side=True, do_handshake_on_connect=False
        )
        yield running


def trust(client):
    client._connections.tls.load_verify_locations(CERTIFICATE)


def test_idle_connections_are_closed_without_another_call(client, receiver):
    before = descriptors()
    for _ in range(3):
        call(client, receiver.url())
    assert client.open_connections == 1
    begun = time.monotonic()
    wait_until(lambda: client.open_connections == 0)
    assert time.monotonic() - begun > 1.0
    # Theirs are closed as well once they see the end.
    wait_until(lambda: descriptors() <= before)


def test_connection_takes_one_descriptor(client):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        before = descriptors()

        def work():
            with pytest.raises(CallError):
                call(client, url, timeout=0.5)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: client.open_connections == 1)
        # No second one is taken while the call waits.
        time.sleep(0.1)
        assert descriptors() == before + 1
        thread.join()
    assert client.open_connections == 0


def test_secure_connection_takes_one_descriptor_and_is_kept(client, secure_receiver):
    trust(client)
    url = f"https://localhost:{secure_receiver.port}/"
    before = descriptors()
    for _ in range(3):
        assert call(client, url).status_code == 200
    assert len({seen.connection for seen in secure_receiver.calls}) == 1
    # Ours and the receiver's.
    assert descriptors() == before + 2


@pytest.mark.parametrize("path", ["/sleep/30", "/drip-head", "/drip-body"])
def test_secure_call_ends_at_its_deadline(client, secure_receiver, path):
    trust(client)
    begun = time.monotonic()
    with pytest.raises(CallError) as caught:
        call(client, f"https://127.0.0.1:{secure_receiver.port}{path}", timeout=0.6)
    assert caught.value.kind == "timeout"
    assert 0.6 <= time.monotonic() - begun < 20


def test_certificate_is_always_checked(client, secure_receiver):
    with pytest.raises(CallError) as caught:
        call(client, f"https://localhost:{secure_receiver.port}/")
    assert caught.value.kind == "tls"
    trust(client)
    # It is not for this name.
    with pytest.raises(CallError) as caught:
        call(client, f"https://127.0.0.2:{secure_receiver.port}/")
    assert caught.value.kind in ("tls", "connect")
    assert secure_receiver.calls == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
def test_host_of_the_url_is_named_to_the_receiver_and_its_certificate_though_an_address_is_connected_to(
    secure_receiver, host
):
    named = []
    secure_receiver._server.socket.context.sni_callback = lambda _socket, name, _context: named.append(name)
    asked = []

    def resolve(name, port, **fields):
        asked.append(name)
        return socket.getaddrinfo("127.0.0.1", port, **fields)

    client = Client(callers=8, user_agent="test/1", egress=EGRESS, getaddrinfo=resolve)
    trust(client)
    assert call(client, f"https://{host}:{secure_receiver.port}/").status_code == 200
    assert (len(asked), named) == (1, ["localhost"])
    assert secure_receiver.calls[0].headers["Host"] == f"localhost:{secure_receiver.port}"
    # The same address under a name that the certificate is not for.
    with pytest.raises(CallError) as caught:
        call(client, f"https://other.example:{secure_receiver.port}/")
    assert (caught.value.kind, len(secure_receiver.calls)) == ("tls", 1)


def test_redirect_from_https_to_http_is_not_followed(client, receiver, secure_receiver):
    trust(client)
    secure = f"https://localhost:{secure_receiver.port}/"
    with pytest.raises(CallError, match="from https to http") as caught:
        call(client, secure + receiver.redirect(307, receiver.url()).removeprefix(receiver.url()), redirects=3)
    assert (caught.value.kind, receiver.calls, len(secure_receiver.calls)) == ("redirect", [], 1)
    # The other way is what most sites do.
    assert call(client, receiver.redirect(307, secure), redirects=3).status_code == 200


# The standard library warns of the versions that are refused here.
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
@pytest.mark.parametrize(("version", "kind"), [("TLSv1_1", "tls"), ("TLSv1_2", None), ("TLSv1_3", None)])
def test_receiver_must_speak_tls_1_2_or_newer(client, secure_receiver, version, kind):
    context = secure_receiver._server.socket.context
    # What is old is off by default in the library too.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion[version]
    trust(client)
    client._connections.tls.set_ciphers("ALL:@SECLEVEL=0")
    try:
        found = call(client, f"https://localhost:{secure_receiver.port}/").status_code
    except CallError as error:
        found = error.kind
    assert found == (kind or 200)


def test_authorities_of_a_file_are_trusted_instead_of_the_usual_ones(secure_receiver):
    client = Client(callers=8, user_agent="test/1", egress=EGRESS, ca_bundle=str(CERTIFICATE))
    assert call(client, f"https://localhost:{secure_receiver.port}/").status_code == 200
    assert len(client._connections.tls.get_ca_certs()) <= 1


def test_no_more_connections_than_the_bound_and_idle_ones_make_room(receiver):
    client = Client(callers=8, user_agent="test/1", egress=EGRESS, connections=2)
    with Receiver() as second, Receiver() as third:
        for running in (receiver, second, third, receiver):
            assert call(client, running.url()).status_code == 200
            assert client.open_connections <= 2
        threads = [threading.Thread(target=call, args=(client, running.url("/sleep/1"))) for running in (second, third)]
        for thread in threads:
            thread.start()
        second.wait_for(1, path="/sleep")
        third.wait_for(1, path="/sleep")
        with pytest.raises(LocalError, match="2 connections"):
            call(client, receiver.url())
        for thread in threads:
            thread.join()
        assert call(client, receiver.url()).status_code == 200


# Calls many hosts side by side, each of which takes a while to answer, and counts what became of the calls.
STARVED = """
import collections, json, os, resource, sys, threading
limit, connections, port, names = (json.loads(word) for word in sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
client = Client(callers=8, user_agent="test/1", egress=EGRESS, connections=connections, lookups=32)
counts = collections.Counter()
def work(first):
    for number in range(first, first + 5):
        host = "localhost" if names and number % 2 else f"127.0.{number // 250}.{number % 250 + 1}"
        try:
            answer = client.call(Request(url=f"http://{host}:{port}/", timeout_seconds=20))
            counts[answer.status_code] += 1
        except LocalError:
            counts["local"] += 1
        except CallError as error:
            counts[f"{error.kind}: {error}"] += 1
threads = [threading.Thread(target=work, args=(first * 5,)) for first in range(120)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(counts), flush=True)
# Without an orderly end, which would load a library for its threads: descriptors are scarce.
os._exit(0)
"""


@pytest.fixture
def slow_hosts():
    """A port on every loopback address, answered after a while by few threads that hold no call up."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=1024)

    def answer(connection):
        with connection:
            while connection.recv(65536):
                time.sleep(0.3)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("connections", [None, 10_000])
def test_lack_of_descriptors_is_not_the_receivers_failure(slow_hosts, connections, names):
    words = [json.dumps(word) for word in (100, connections, slow_hosts, names)]
    done = subprocess.run([sys.executable, "-c", STARVED, *words], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts.keys() == {"200", "local"}
    assert sum(counts.values()) == 600
    assert counts["200"] > 20


# With no memory for another thread's stack.
WITHOUT_THREADS = """
import resource
from webtask_scheduler.scheduler.outgoing.client import Client, LocalError, Request
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
client = Client(callers=8, user_agent="test/1", egress=EGRESS)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 300_000, size + 300_000))
try:
    client.call(Request(url="http://localhost:9/", timeout_seconds=5))
except LocalError as error:
    print("local")
"""


def test_lack_of_threads_is_not_the_receivers_failure():
    done = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (b"local\n", 0), done.stderr


# In a network of its own, with eleven local ports.
WITHOUT_PORTS = """
import collections, pathlib, socket, threading, time
pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50010")
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, LocalError, Request
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
listener = socket.create_server(("127.0.0.1", 9))
client = Client(callers=8, user_agent="test/1", egress=EGRESS)
counts = collections.Counter()
def work():
    try:
        client.call(Request(url="http://127.0.0.1:9/", timeout_seconds=1))
    except (CallError, LocalError) as error:
        counts[getattr(error, "kind", "local")] += 1
threads = [threading.Thread(target=work) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(counts.items()))
"""


def test_lack_of_local_ports_is_not_the_receivers_failure():
    # Eleven ports; where two calls reach for one at the same instant, one of them may find none.
    assert run_apart(WITHOUT_PORTS) in (b"[('local', 9), ('timeout', 11)]\n", b"[('local', 10), ('timeout', 10)]\n")


# In a network of its own, which has IPv6 but no route, and then no IPv6 either. What the system says of the latter has
# the number of a lack of local ports.
WITHOUT_ROUTE = """
import errno, pathlib, socket
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, Request
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
client = Client(callers=8, user_agent="test/1", egress=EGRESS)
for disabled in "01":
    pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text(disabled)
    number = socket.socket(socket.AF_INET6).connect_ex(("2001:db8::1", 9))
    try:
        client.call(Request(url="http://[2001:db8::1]:9/", timeout_seconds=1))
    except CallError as error:
        print(errno.errorcode[number], error.kind)
"""


def test_address_without_a_route_is_the_receivers_failure():
    assert run_apart(WITHOUT_ROUTE) == b"ENETUNREACH connect\nEADDRNOTAVAIL connect\n"


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.ENETUNREACH])
def test_address_that_the_system_refuses_is_the_receivers_failure(client, monkeypatch, number):
    """The same wherever no network of its own is to be had."""

    def connect(*_):
        raise OSError(number, "no route")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(CallError) as caught:
        call(client, "http://[2001:db8::1]:9/", timeout=1)
    assert caught.value.kind == "connect"


@each("host", ["192.0.2.1", "2001:db8::1"])
def test_tests_connect_to_no_other_machine(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as sock:
            for connect in (sock.connect, sock.connect_ex):
                with pytest.raises(RuntimeError, match=re.escape(host)):
                    connect((host, 9))


def test_limit_of_open_files_is_raised_to_the_hard_one():
    script = (
        "import resource\n"
        "from webtask_scheduler.scheduler.outgoing.client import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 900))\n"
        "print(raise_descriptor_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["900", "900"]


def test_receiver_that_answers_before_it_has_read_all_is_heard(client):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            # Read on for a while, or the answer would be lost with the connection.
            while connection.recv(65536):
                pass
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        answer = client.call(Request(url=url, body=b"x" * 1_000_000, timeout_seconds=5))
        assert answer.status_code == 413


def test_header_that_would_break_out_of_its_line_is_not_sent(client, receiver):
    for headers in ({"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X\r\nY": "b"}, {"X": "a\0b"}):
        with pytest.raises(CallError):
            call(client, receiver.url(), headers=headers)
    for method in ("GET /x HTTP/1.1\r\n", "G T", ""):
        with pytest.raises(CallError):
            call(client, receiver.url(), method=method)
    assert receiver.calls == []


@given(
    st.sampled_from(
        ["a.example", "A.example", "127.0.0.1:80", "a.example:8080", "a_b.example", "localhost.", "[::1]:8"]
    ),
    st.text("abc/.%2f?&=#-_~!$'()*+,;:@[]|\"^`{} é", max_size=30),
)
def test_what_is_asked_for_is_what_requests_would_ask_for(netloc, rest):
    url = f"http://{netloc}/{rest}"
    whole = PreparedRequest()
    whole.prepare_url(url, None)
    origin, target = prepared.aim(url)
    assert target == whole.path_url
    assert origin.host == netloc.rpartition(":")[0].strip("[]").lower() or ":" not in netloc


@given(st.binary(max_size=400))
def test_any_bytes_are_an_answer_or_an_error_with_a_sentence(data):
    for begin in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        pieces = [begin + data, b""]
        try:
            reading.read_answer(lambda _, left=pieces: left.pop(0), method="GET", body_limit=100)
        except CallError as error:
            assert error.kind in ("protocol", "connection")
            assert str(error).isprintable()


@given(st.integers(1, 60))
def test_answer_is_the_same_in_whatever_pieces_it_comes(size):
    data = (
        b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\nX: z\r\n\r\n"
        b"5;a\r\nhello\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n"
    )
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    answer = reading.read_answer(lambda _: pieces.pop(0), method="GET", body_limit=100)
    assert answer == (200, {"transfer-encoding": "chunked", "x": "y, z"}, b"hello!", True, False)


def test_client_offers_what_others_import():
    assert all(hasattr(client_module, name) for name in client_module.__all__)
