"""One call, against a real server that answers well, badly, slowly or not at all."""

import base64
import socket
import threading
import time

import pytest

from webtask_scheduler.scheduler.models import ErrorKind
from webtask_scheduler.scheduler.outgoing import checks, connections
from webtask_scheduler.scheduler.outgoing import client as client_module
from webtask_scheduler.scheduler.outgoing.checks import check_headers, check_url
from webtask_scheduler.scheduler.outgoing.client import CallError, Client, Request
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS, Receiver


@pytest.fixture(scope="module")
def client():
    return Client(callers=4, user_agent="test/1", egress=EGRESS)


@pytest.fixture
def elsewhere():
    """Another origin: the same host, another port."""
    with Receiver() as running:
        yield running


def call(client, url, *, timeout=5.0, body=b"{}", **fields):
    return client.call(Request(url=url, body=body, timeout_seconds=timeout, **fields))


def error(client, url, **fields):
    with pytest.raises(CallError) as caught:
        call(client, url, **fields)
    assert caught.value.kind in ErrorKind.values
    return caught.value


def failure(client, url, **fields):
    return error(client, url, **fields).kind


def test_posts_body_and_headers(client, receiver):
    answer = call(client, receiver.url("/x?y=1"), headers={"webhook-id": "7"})
    assert (answer.status_code, answer.body, answer.retry_after) == (200, b"ok", "")
    (seen,) = receiver.calls
    assert (seen.method, seen.path, seen.body, seen.headers["webhook-id"]) == ("POST", "/x?y=1", b"{}", "7")
    assert seen.headers["User-Agent"] == "test/1"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_sends_any_method_with_a_body(client, receiver, method):
    call(client, receiver.url(), method=method, body=b"given")
    (seen,) = receiver.calls
    assert (seen.method, seen.body, seen.headers["Content-Length"]) == (method, b"given", "5")


@pytest.mark.parametrize("user", ["", "me:secret@"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_says_nothing_of_a_body_that_is_not_there(client, receiver, method, user):
    call(client, receiver.url().replace("127.0.0.1", f"{user}127.0.0.1"), method=method, body=None)
    (seen,) = receiver.calls
    assert not {"content-length", "content-type", "transfer-encoding"} & {name.lower() for name in seen.headers}


def test_says_that_a_post_without_a_body_has_none(client, receiver):
    call(client, receiver.url(), body=None)
    assert receiver.calls[0].headers["Content-Length"] == "0"


def test_answer_to_head_has_no_body_and_the_connection_is_kept(client, receiver):
    for _ in range(2):
        answer = call(client, receiver.url(), method="HEAD", body=None)
        assert (answer.status_code, answer.body) == (200, b"")
    call(client, receiver.url())
    assert len({seen.connection for seen in receiver.calls}) == 1


def test_headers_of_the_call_come_before_ours(client, receiver):
    call(client, receiver.url(), headers={"user-agent": "mine/2", "ACCEPT": "text/plain", "X-Id": "\xfc 1"})
    (seen,) = receiver.calls
    assert {name: seen.headers[name] for name in ("user-agent", "ACCEPT", "X-Id")} == {
        "user-agent": "mine/2",
        "ACCEPT": "text/plain",
        "X-Id": "\xfc 1",
    }
    assert not {"User-Agent", "Accept"} & seen.headers.keys()


def test_headers_that_frame_the_call_are_ours(client, receiver):
    given = {
        "host": "evil.example",
        "content-length": "1",
        "transfer-encoding": "chunked",
        "connection": "close",
        "accept-encoding": "gzip",
    }
    for body in (b"{}", None):
        call(client, receiver.url(), headers=given, method="GET", body=body)
    assert not given.keys() & receiver.calls[0].headers.keys()
    assert receiver.calls[0].body == b"{}"
    for seen in receiver.calls:
        assert seen.headers["Host"] == f"127.0.0.1:{receiver.port}"
        assert (seen.headers["Connection"], seen.headers["Accept-Encoding"]) == ("keep-alive", "identity")
    assert "Content-Length" not in receiver.calls[1].headers


def test_tells_when_to_come_again(client, receiver):
    answer = call(client, receiver.url("/retry-after/120"))
    assert (answer.status_code, answer.retry_after) == (503, "120")
    assert call(client, receiver.url("/retry-after/" + "9" * 500)).retry_after == "9" * 100


def test_sends_user_and_password_of_the_url_as_basic_auth_and_not_in_the_host(client, receiver):
    call(client, receiver.url("/x").replace("127.0.0.1", "me:secret@127.0.0.1"))
    (seen,) = receiver.calls
    assert seen.headers["Authorization"] == "Basic bWU6c2VjcmV0"
    assert seen.headers["Host"] == f"127.0.0.1:{receiver.port}"


def test_authorization_of_the_call_comes_before_that_of_the_url(client, receiver):
    url = receiver.url("/x").replace("127.0.0.1", "me:secret@127.0.0.1")
    call(client, url, headers={"authorization": "Bearer 7"})
    assert receiver.calls[0].headers["authorization"] == "Bearer 7"
    assert "Authorization" not in receiver.calls[0].headers


def test_password_of_the_url_may_have_any_character(client, receiver):
    call(client, receiver.url("/x").replace("127.0.0.1", "me:%E2%82%AC%3A@127.0.0.1"))
    assert base64.b64decode(receiver.calls[0].headers["Authorization"].split()[1]).decode() == "me:\u20ac:"


@pytest.mark.parametrize("status", [201, 204, 300, 304, 400, 410, 500, 503])
def test_returns_any_status(client, receiver, status):
    assert call(client, receiver.url(f"/status/{status}")).status_code == status


def test_does_not_follow_a_redirect(client, receiver):
    assert call(client, receiver.url("/redirect")).status_code == 302
    assert [seen.path for seen in receiver.calls] == ["/redirect"]


SECRET = {"Authorization": "Bearer 7", "cookie": "a=b", "X-Id": "1", "webhook-id": "2", "Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("status", "method", "after"),
    [
        *[(status, "POST", "GET") for status in (301, 302, 303)],
        *[(status, "POST", "POST") for status in (307, 308)],
        *[(status, "PUT", "PUT") for status in (301, 302, 307, 308)],
        *[(303, method, "GET") for method in ("PUT", "PATCH", "DELETE", "GET")],
        *[(status, "HEAD", "HEAD") for status in (301, 302, 303, 307, 308)],
        *[(status, "GET", "GET") for status in (301, 302, 307, 308)],
    ],
)
def test_follows_a_redirect_with_the_method_that_it_asks_for(client, receiver, status, method, after):
    url = receiver.redirect(status, "/there?a=1#here")
    answer = call(client, url, method=method, headers=SECRET, redirects=1)
    assert (answer.status_code, answer.body) == (200, b"" if method == "HEAD" else b"ok")
    assert [seen.method for seen in receiver.calls] == [method, after]
    there = receiver.calls[1]
    assert there.path == "/there?a=1"
    kept = method == after and (status, method) != (303, "GET")
    assert there.body == (b"{}" if kept else b"")
    assert ("Content-Type" in there.headers, "Content-Length" in there.headers) == (kept, kept)
    assert there.headers["Authorization"] == "Bearer 7"
    assert len({seen.connection for seen in receiver.calls}) == 1


def test_redirect_does_not_lead_to_a_host_to_which_calls_are_stopped(client, receiver, elsewhere):
    location = elsewhere.url("/stopped")
    client.stops = frozenset([canonical_host(location)])
    try:
        found = error(client, receiver.redirect(307, location), redirects=3)
        assert (found.kind, "calls are stopped" in str(found)) == ("redirect", True)
        assert elsewhere.calls == []
        client.stops = frozenset(["other.example"])
        assert call(client, receiver.redirect(307, location), redirects=3).status_code == 200
    finally:
        client.stops = frozenset()


OURS = {"webhook-id": "2", "webhook-timestamp": "3", "webtask-attempt": "1"}


def test_redirect_to_another_origin_takes_nothing_along_that_the_timer_gave(client, receiver, elsewhere):
    url = receiver.redirect(307, elsewhere.redirect(307, receiver.url("/back")))
    mine = {"Proxy-authorization": "x", "X-Api-Key": "y", "User-Agent": "me", "Accept": "a/b", "traceparent": "z"}
    call(client, url, headers=SECRET | mine | OURS | {"webhook-signature": "v1,mine"}, redirects=2)
    first, third = receiver.calls
    for seen in (first, elsewhere.calls[0], third):
        ours = {name: seen.headers[name] for name in OURS}
        assert (ours, seen.headers["Content-Type"], seen.body) == (OURS, "text/plain", b"{}")
    assert (first.headers["Authorization"], first.headers["webhook-signature"]) == ("Bearer 7", "v1,mine")
    # What this client always sends, what describes the body, and what we say of the call; also after the way back.
    own = {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type"}
    for seen in (elsewhere.calls[0], third):
        assert seen.headers.keys() == own | OURS.keys()
        assert (seen.headers["User-Agent"], seen.headers["Accept"]) == ("test/1", "*/*")
    assert elsewhere.calls[0].headers["Host"] == f"127.0.0.1:{elsewhere.port}"


def test_redirect_to_another_origin_takes_no_sensitive_body_along(client, receiver, elsewhere):
    url = receiver.redirect(307, elsewhere.url("/there"))
    failed = error(client, url, sensitive=True, redirects=1)
    assert (failed.kind, elsewhere.calls) == ("redirect", [])
    assert "the body is sensitive" in str(failed)
    # One without a body may go.
    url = receiver.redirect(303, elsewhere.url("/there"))
    assert call(client, url, sensitive=True, redirects=1).status_code == 200
    assert [seen.body for seen in elsewhere.calls] == [b""]


def test_redirect_takes_the_password_of_the_url_along_within_its_origin_only(client, receiver, elsewhere):
    with_password = receiver.url().replace("127.0.0.1", "me:secret@127.0.0.1").rstrip("/")
    for location in ("/relative", receiver.url("/absolute"), elsewhere.url("/there")):
        path = receiver.redirect(302, location).removeprefix(receiver.url().rstrip("/"))
        call(client, with_password + path, redirects=1)
    told = [seen.headers.get("Authorization") for seen in (receiver.calls[1], receiver.calls[3], *elsewhere.calls)]
    assert told == ["Basic bWU6c2VjcmV0", "Basic bWU6c2VjcmV0", None]


def test_redirect_may_name_another_password(client, receiver, elsewhere):
    location = elsewhere.url("/there").replace("127.0.0.1", "you:other@127.0.0.1")
    call(client, receiver.redirect(307, location), headers=SECRET, redirects=1)
    assert elsewhere.calls[0].headers["Authorization"] == "Basic eW91Om90aGVy"


@each(
    ("one", "other", "same"),
    [
        ("http://a.example/", "http://A.example:80/x", True),
        ("HTTPS://a.example/", "https://a.example:443", True),
        ("https://u:p@a.example/", "https://a.example/", True),
        ("http://a.example/", "https://a.example/", False),
        ("http://a.example/", "http://a.example:8080/", False),
        ("http://a.example/", "http://b.a.example/", False),
        ("http://a.example:443/", "https://a.example/", False),
    ],
)
def test_origin_is_scheme_host_and_port(one, other, same):
    assert (client_module._origin(one) == client_module._origin(other)) is same


@pytest.mark.parametrize("allowed", [1, 3])
def test_follows_as_many_redirects_as_allowed_and_no_more(client, receiver, allowed):
    url = "/there"
    for _ in range(allowed):
        url = receiver.redirect(307, url)
    assert call(client, url, redirects=allowed).status_code == 200
    failed = error(client, receiver.redirect(307, url), redirects=allowed)
    assert (failed.kind, str(failed)) == ("redirect", f"More than {allowed} redirect{'s' if allowed > 1 else ''}.")
    assert len(receiver.calls) == 2 * (allowed + 1)


def test_redirect_that_leads_nowhere_is_the_answer(client, receiver):
    assert call(client, receiver.url("/status/302"), redirects=3).status_code == 302
    assert call(client, receiver.url("/status/304"), redirects=3).status_code == 304


@pytest.mark.parametrize(
    "location",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "http://a:0/",
        "http://[::1/",
        "//*.example.com/",
        "http://a b/",
        "/a b",
        "/\\evil.example",
        "/\x80",
        "/" + "x" * 9000,
    ],
)
def test_redirect_that_cannot_be_followed_is_an_error_of_its_own(client, receiver, location):
    failed = error(client, receiver.redirect(302, location), redirects=3)
    assert failed.kind == "redirect"
    assert str(failed).startswith("The redirect cannot be followed. The URL")
    assert len(receiver.calls) == 1


def test_redirect_may_be_written_in_utf_8(client, receiver):
    assert call(client, receiver.redirect(302, "/b\u00fccher"), redirects=1).status_code == 200
    assert receiver.calls[1].path == "/b%C3%BCcher"


def test_what_goes_wrong_after_a_redirect_has_its_own_kind(client, receiver, elsewhere):
    assert failure(client, receiver.redirect(302, elsewhere.url("/hang-up")), redirects=1) == "connection"
    assert failure(client, receiver.redirect(302, "http://no-such-host.invalid/"), redirects=1) == "dns"
    assert call(client, receiver.redirect(302, elsewhere.url("/status/500")), redirects=1).status_code == 500


@pytest.mark.parametrize("path", ["/sleep/30", "/drip-body", "/drip-head"])
def test_deadline_is_that_of_all_redirects_together(client, receiver, path):
    begun = time.monotonic()
    url = receiver.redirect(307, receiver.redirect(307, path))
    assert failure(client, url, redirects=3, timeout=0.6) == "timeout"
    assert 0.6 <= time.monotonic() - begun < 20
    assert len(receiver.calls) == 3


def test_redirects_that_dawdle_together_end_at_the_deadline(client, receiver):
    # None of the three alone is too slow.
    begun = time.monotonic()
    url = receiver.url("/dawdle/0.6/dawdle/0.6/dawdle/0.6/there")
    assert failure(client, url, redirects=3, timeout=1.5) == "timeout"
    assert 1.5 <= time.monotonic() - begun < 20
    assert len(receiver.calls) == 3


def test_interrupt_ends_a_call_after_its_redirect(client, receiver):
    kinds = []
    url = receiver.redirect(307, "/sleep/30")
    thread = threading.Thread(target=lambda: kinds.append(failure(client, url, timeout=30, redirects=1)))
    thread.start()
    receiver.wait_for(1, path="/sleep")
    client.interrupt()
    thread.join(20)
    assert kinds == ["interrupted"]


def test_call_that_ends_between_hops_leaves_the_kept_connection_alone(receiver):
    # The connection of the first hop is back in the pool while the second one's name is looked up.
    released = threading.Event()

    def dawdle(*_, **__):
        client.interrupt()
        released.wait(10)
        return []

    client = Client(callers=4, user_agent="test/1", egress=EGRESS, getaddrinfo=dawdle)
    assert failure(client, receiver.redirect(302, "http://slow.example/"), redirects=1) == "interrupted"
    call(client, receiver.url())
    assert len({seen.connection for seen in receiver.calls}) == 1
    released.set()


def test_keeps_no_cookie(client, receiver):
    call(client, receiver.url("/cookie"))
    call(client, receiver.url("/cookie"))
    assert "Cookie" not in receiver.calls[1].headers


def test_reads_no_more_than_the_limit(client, receiver):
    assert len(call(client, receiver.url("/large")).body) == connections.BODY_LIMIT_BYTES


def test_keeps_the_connection_for_the_next_call(client, receiver):
    for _ in range(3):
        call(client, receiver.url())
    assert len({seen.connection for seen in receiver.calls}) == 1


def test_does_not_use_a_connection_that_was_idle(client, receiver, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_LIMIT_SECONDS", 0.0)
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
    assert 0.6 <= time.monotonic() - begun < 20


def test_ends_at_its_deadline_in_a_dawdling_handshake(client, receiver):
    # A listener that takes the connection and says nothing while TLS waits for its hello.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        assert failure(client, f"https://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.6) == "timeout"
        assert 0.6 <= time.monotonic() - begun < 20


def test_ends_at_its_deadline_with_a_hanging_resolver():
    released = threading.Event()
    client = Client(callers=4, user_agent="test/1", egress=EGRESS, getaddrinfo=lambda *_, **__: released.wait(30))
    begun = time.monotonic()
    assert failure(client, "http://slow.example/", timeout=0.5) == "timeout"
    assert 0.5 <= time.monotonic() - begun < 20
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
    thread.join(20)
    assert kinds == ["interrupted"]


def test_a_call_after_a_failed_one_works(client, receiver):
    failure(client, receiver.url("/hang-up"))
    assert call(client, receiver.url()).status_code == 200


@each(
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
    check_url(url, max_length=2048, egress=EGRESS)


@each(
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
        check_url(url, max_length=2048, egress=EGRESS)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Api-Key": "s3cr3t", "Authorization": "Bearer a.b-c_d~e+f/g==", "Cookie": "a=b; c=d"},
        {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "mine", "Accept": "*/*"},
        {"!#$%&'*+-.^_`|~09AZaz": "any"},
        {"X": ""},
        {"X": "a"},
        {"X": "a \t b"},
        {"X": "b\xfccher"},
        {"x" * 100: "y" * 4096},
        {f"X-{number}": "y" for number in range(50)},
        {f"X-{number}": "y" * (4096 - 3) for number in range(4)},
    ],
)
def test_check_headers_takes(headers, client, receiver):
    assert check_headers(headers) == headers
    # What the check takes can be sent.
    call(client, receiver.url(), headers=headers)
    assert headers.items() <= receiver.calls[0].headers.items()


@each(
    "headers",
    [
        {"": "x"},
        {"X Y": "x"},
        {"X:": "x"},
        {"X\r\nY": "x"},
        {"X\n": "x"},
        {"(X)": "x"},
        {"B\u00fccher": "x"},
        {"\u212a-Key": "x"},
        {"x" * 101: "y"},
        {"X": " a"},
        {"X": "a "},
        {"X": "\ta"},
        {"X": "a\n"},
        {"X": "a\r\nHost: evil.example"},
        {"X": "a\r\n folded"},
        {"X": "a\0b"},
        {"X": "a\x7fb"},
        {"X": "a\x85b"},
        {"X": "\xa0"},
        {"X": "\u20ac"},
        {"X": "y" * 4097},
        {"X-One": "1", "x-oNE": "2"},
        {f"X-{number}": "y" * 4094 for number in range(4)},
        *[{name: "x"} for name in sorted(checks.OWN_HEADERS)],
        {"HOST": "x"},
        {"Webhook-Signature": "x"},
        {"WebTask-Timer-Id": "x"},
    ],
)
def test_check_headers_refuses_and_names_the_header(headers):
    with pytest.raises(ValueError, match=r"^The header '") as caught:
        check_headers(headers)
    assert repr(list(headers)[-1][:100]) in str(caught.value)
    assert str(caught.value).isprintable()


def test_check_headers_refuses_too_many():
    with pytest.raises(ValueError, match="more than 50 headers"):
        check_headers({f"X-{number}": "y" for number in range(51)})
