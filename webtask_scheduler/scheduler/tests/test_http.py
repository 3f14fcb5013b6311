"""One call, against a real server that answers well, badly, slowly or not at all."""

import socket
import threading
import time

import pytest

from webtask_scheduler.scheduler import http
from webtask_scheduler.scheduler.http import CallError, Client, check_url
from webtask_scheduler.scheduler.models import ErrorKind


@pytest.fixture(scope="module")
def client():
    return Client(callers=4, user_agent="test/1")


def call(client, url, *, timeout=5.0, **headers):
    return client.call(url, body=b"{}", headers=headers, timeout_seconds=timeout)


def failure(client, url, *, timeout=5.0):
    with pytest.raises(CallError) as caught:
        call(client, url, timeout=timeout)
    assert caught.value.kind in ErrorKind.values
    return caught.value.kind


def test_posts_body_and_headers(client, receiver):
    answer = call(client, receiver.url("/x?y=1"), **{"webhook-id": "7"})
    assert (answer.status_code, answer.body) == (200, b"ok")
    (seen,) = receiver.calls
    assert (seen.path, seen.body, seen.headers["webhook-id"]) == ("/x?y=1", b"{}", "7")
    assert seen.headers["User-Agent"] == "test/1"


def test_sends_user_and_password_of_the_url_as_basic_auth_and_not_in_the_host(client, receiver):
    call(client, receiver.url("/x").replace("127.0.0.1", "me:secret@127.0.0.1"))
    (seen,) = receiver.calls
    assert seen.headers["Authorization"] == "Basic bWU6c2VjcmV0"
    assert seen.headers["Host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("status", [201, 204, 400, 410, 500, 503])
def test_returns_any_status(client, receiver, status):
    assert call(client, receiver.url(f"/status/{status}")).status_code == status


def test_does_not_follow_a_redirect(client, receiver):
    assert call(client, receiver.url("/redirect")).status_code == 302
    assert [seen.path for seen in receiver.calls] == ["/redirect"]


def test_keeps_no_cookie(client, receiver):
    call(client, receiver.url("/cookie"))
    call(client, receiver.url("/cookie"))
    assert "Cookie" not in receiver.calls[1].headers


def test_reads_no_more_than_the_limit(client, receiver):
    assert len(call(client, receiver.url("/large")).body) == http.BODY_LIMIT_BYTES


def test_keeps_the_connection_for_the_next_call(client, receiver):
    for _ in range(3):
        call(client, receiver.url())
    assert len({seen.connection for seen in receiver.calls}) == 1


def test_does_not_use_a_connection_that_was_idle(client, receiver, monkeypatch):
    monkeypatch.setattr(http, "IDLE_LIMIT_SECONDS", 0.0)
    for _ in range(2):
        call(client, receiver.url())
    assert len({seen.connection for seen in receiver.calls}) == 2


def test_reads_no_proxy_variable(client, receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert call(client, receiver.url()).status_code == 200


@pytest.mark.parametrize("path", ["/sleep/30", "/drip-body", "/drip-head"])
def test_ends_at_its_deadline_whatever_the_other_side_does(client, receiver, path):
    begun = time.monotonic()
    assert failure(client, receiver.url(path), timeout=0.6) == "timeout"
    assert time.monotonic() - begun < 2.0


def test_ends_at_its_deadline_in_a_dawdling_handshake(client, receiver):
    # A listener that takes the connection and says nothing while TLS waits for its hello.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        assert failure(client, f"https://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.6) == "timeout"
        assert time.monotonic() - begun < 2.0


def test_ends_at_its_deadline_with_a_hanging_resolver(client, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(http.socket, "getaddrinfo", lambda *_, **__: released.wait(10))
    begun = time.monotonic()
    assert failure(client, "http://slow.example/", timeout=0.5) == "timeout"
    assert time.monotonic() - begun < 2.0
    released.set()


def test_names_a_refused_connection(client):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert failure(client, f"http://127.0.0.1:{port}/") == "connect"


def test_names_an_unknown_host(client):
    assert failure(client, "http://no-such-host.invalid/") == "dns"


def test_names_a_failed_handshake(client, receiver):
    assert failure(client, receiver.url().replace("http:", "https:")) == "tls"


def test_names_an_answer_that_is_not_http(client, receiver):
    assert failure(client, receiver.url("/garbage")) in ("protocol", "connection")


def test_names_a_connection_that_was_broken_off(client, receiver):
    assert failure(client, receiver.url("/hang-up")) == "connection"


def test_interrupt_ends_calls_under_way(client, receiver):
    kinds = []
    thread = threading.Thread(target=lambda: kinds.append(failure(client, receiver.url("/sleep/30"), timeout=30)))
    thread.start()
    receiver.wait_for(1)
    client.interrupt()
    thread.join(3)
    assert kinds == ["interrupted"]


def test_a_call_after_a_failed_one_works(client, receiver):
    failure(client, receiver.url("/hang-up"))
    assert call(client, receiver.url()).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com:8443/a?b#c",
        "http://[::1]:80/",
        "HTTP://EXAMPLE.com",
        "http://bücher.de/",
    ],
)
def test_check_url_takes(url):
    check_url(url, max_length=2048)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com",
        "ftp://example.com",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://:80/",
        "http://a b/",
        " http://a/",
        "http://a/\n",
        "http://a/\u0000",
        "http://a/\ud800",
        "http://a\\@b/",
        "http://a:99999/",
        "http://a:0/",
        "http://a:x/",
        "http://[::1/",
        "http://*.example.com/",
        "http://" + "a" * 64 + ".\u00fc/",
        "http://a/" + "x" * 2048,
    ],
)
def test_check_url_refuses(url):
    with pytest.raises(ValueError, match="URL"):
        check_url(url, max_length=2048)
