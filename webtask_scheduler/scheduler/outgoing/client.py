"""The only door to the outside: one bounded HTTP call, and one family of errors.

`Client.call` follows no redirect unless it is told to, keeps no cookie, reads no proxy variable or netrc file, reads a
bounded part of the answer, and ends at its deadline whatever the other side does. Timeouts of single reads do not bound
a body that drips, a handshake that dawdles or a resolver that hangs: a watchdog shuts the socket down, and names are
resolved in threads of their own that a call waits for no longer than it may.
"""

import base64
import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import requests
import urllib3
from requests import adapters, exceptions
from urllib3 import connection, connectionpool
from urllib3.exceptions import LocationParseError, NameResolutionError, NewConnectionError

from webtask_scheduler.scheduler.outgoing.checks import BAD_HOST, check_url

# Connecting is refused sooner than the whole call: a host that does not answer at all is not worth thirty seconds.
CONNECT_TIMEOUT_SECONDS = 10.0
# Read at the most; what comes after is not waited for.
BODY_LIMIT_BYTES = 64 * 1024
# A kept connection idle for longer is not used again: common servers close theirs after two to five seconds, and a
# call written to a connection that is just being closed is a failed attempt.
IDLE_LIMIT_SECONDS = 1.5
WATCH_INTERVAL_SECONDS = 0.1
RESOLVER_THREADS = 16
# Of a Retry-After: a date has 29 characters.
RETRY_AFTER_LENGTH = 100
# Of the URL that a redirect leads to. Longer ones than a timer's are usual: they carry signatures.
LOCATION_MAX_LENGTH = 8192

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
# Not told to another host.
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
# They describe a body, and go with it.
_OF_A_BODY = frozenset({"content-type", "content-encoding", "content-language", "content-location"})


class CallError(Exception):
    """A call that brought no complete answer. `kind` is one of models.ErrorKind, the text is for a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, all of it: what is sent and what bounds it."""

    url: str
    method: str = "POST"
    # Where names repeat in another case, the last one counts.
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    # For all hops together.
    timeout_seconds: float
    # Hops that are followed. Where there are none, a redirect is an answer like any other.
    redirects: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code, the beginning of the body, and when to come again."""

    status_code: int
    body: bytes
    # Retry-After as received, or its beginning; empty without one.
    retry_after: str = ""


class _Call:
    """One call under way: its deadline, and a handle on its socket to end it from another thread."""

    __slots__ = ("_handle", "_lock", "deadline", "ended_by")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        # Empty, or the kind of error that the watchdog ended it with.
        self.ended_by = ""
        self._handle: socket.socket | None = None
        self._lock = threading.Lock()

    def attach(self, handle: socket.socket | None) -> None:
        """Take the socket that this call uses from now on; None lets go of it."""
        with self._lock:
            self._handle = handle
            if handle is not None and self.ended_by:
                raise TimeoutError

    def end(self, kind: str) -> None:
        with self._lock:
            self.ended_by = self.ended_by or kind
            if self._handle is not None:
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)

    def remaining(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0 or self.ended_by:
            self.ended_by = self.ended_by or "timeout"
            raise TimeoutError
        return left


# The call that this thread makes; urllib3's connections are made deep inside `requests` and find it here.
_current = threading.local()


class _Connection(connection.HTTPConnection):
    """A connection whose socket the watchdog can shut down, resolved and connected within the call's deadline."""

    _handle: socket.socket | None = None
    _used_at = 0.0

    def _new_conn(self) -> socket.socket:
        call: _Call = _current.call
        try:
            found = _resolve(self._dns_host, self.port, call.remaining())
        except OSError as error:
            if isinstance(error, socket.gaierror):
                raise NameResolutionError(self.host, self, error) from error
            raise
        failure: OSError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(min(CONNECT_TIMEOUT_SECONDS, call.remaining()))
                sock.connect(address)
                sock.settimeout(call.remaining())
            except OSError as error:
                sock.close()
                failure = error
                continue
            # A duplicate: wrapping a socket in TLS takes the original away, and the handshake must be bounded too.
            self._handle = sock.dup()
            call.attach(self._handle)
            return sock
        if isinstance(failure, TimeoutError):
            raise failure
        raise NewConnectionError(self, str(failure)) from failure

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._handle is not None:
            _current.call.attach(self._handle)
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._used_at = time.monotonic()
        return response

    @property
    def is_connected(self) -> bool:
        return time.monotonic() - self._used_at < IDLE_LIMIT_SECONDS and super().is_connected

    def close(self) -> None:
        super().close()
        if self._handle is not None:
            self._handle.close()
            self._handle = None


class _TLSConnection(_Connection, connection.HTTPSConnection):
    pass


class _Pool(connectionpool.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(connectionpool.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class Client:
    """Makes calls from any number of threads, keeping connections to hosts that are called again soon."""

    def __init__(self, *, callers: int, user_agent: str) -> None:
        # The transport of `requests` without its Session, which for every call merges settings, reads the environment,
        # looks for cookies and prepares to follow redirects, even by reading their whole bodies: all that is not wanted
        # here, and it takes as long as the call itself.
        self._adapter = _Adapter(pool_connections=256, pool_maxsize=callers, max_retries=0)
        # By their names in lower case: those that a call may replace, and those that it may not.
        self._defaults = {"user-agent": ("User-Agent", user_agent), "accept": ("Accept", "*/*")}
        self._fixed = {
            "accept-encoding": ("Accept-Encoding", "identity"),
            "connection": ("Connection", "keep-alive"),
        }
        self._calls: set[_Call] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, name="call-watchdog", daemon=True).start()

    def call(self, request: Request) -> Answer:
        """Make a call and return its answer, of whatever status. Raises CallError."""
        call = _Call(time.monotonic() + request.timeout_seconds)
        _current.call = call
        with self._changed:
            self._calls.add(call)
            if len(self._calls) == 1:
                self._changed.notify()
        try:
            answer = self._exchange(request, call)
            # A head or body that was cut off may read like a whole one.
            call.remaining()
        except CallError:
            raise
        except Exception as error:
            if call.ended_by == "interrupted":
                raise CallError("interrupted", "This service was shut down during the call.") from error
            if call.ended_by or _is(error, TimeoutError, exceptions.Timeout):
                raise CallError("timeout", f"No complete answer within {request.timeout_seconds:g} s.") from error
            raise _explained(error) from error
        else:
            return answer
        finally:
            call.attach(None)
            with self._changed:
                self._calls.discard(call)

    def interrupt(self) -> None:
        """End every call under way; each raises CallError of kind `interrupted`."""
        with self._changed:
            calls = list(self._calls)
        for call in calls:
            call.end("interrupted")

    def _exchange(self, request: Request, call: _Call) -> Answer:
        answer, headers = self._send(self._prepared(request), request.timeout_seconds)
        followed = 0
        while request.redirects and answer.status_code in _REDIRECTS and headers.get("Location"):
            # The connection of this hop may serve another call by now: it must not be ended with this one.
            call.attach(None)
            followed += 1
            if followed > request.redirects:
                allowed = "1 redirect" if request.redirects == 1 else f"{request.redirects} redirects"
                raise CallError("redirect", f"More than {allowed}.")
            try:
                request = _redirected(request, answer.status_code, headers["Location"])
                prepared = self._prepared(request)
            except ValueError as error:
                reason = str(error) if str(error).startswith("The URL") else BAD_HOST
                raise CallError("redirect", f"The redirect cannot be followed. {reason}") from error
            answer, headers = self._send(prepared, call.remaining())
        return answer

    def _prepared(self, request: Request) -> requests.models.PreparedRequest:
        prepared = requests.models.PreparedRequest()
        prepared.prepare_method(request.method)
        prepared.prepare_url(request.url, None)
        prepared.body = request.body
        named = self._defaults | {name.lower(): (name, value) for name, value in request.headers.items()} | self._fixed
        # Whatever a call says: the host is that of the URL, and where the body ends is not for it to tell.
        for name in ("host", "content-length", "transfer-encoding"):
            named.pop(name, None)
        if request.body is not None:
            named["content-length"] = ("Content-Length", str(len(request.body)))
        if "@" in request.url and "authorization" not in named:
            user, _, password = urlsplit(request.url).netloc.rpartition("@")[0].partition(":")
            if user or password:
                pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
                named["authorization"] = ("Authorization", "Basic " + base64.b64encode(pair).decode())
        # Not the dict of `requests` that ignores case: names are unique already, and it takes three times as long.
        headers: Any = dict(named.values())
        prepared.headers = headers
        return prepared

    def _send(
        self, prepared: requests.models.PreparedRequest, timeout_seconds: float
    ) -> tuple[Answer, Mapping[str, str]]:
        response = self._adapter.send(
            prepared,
            stream=True,
            timeout=(min(CONNECT_TIMEOUT_SECONDS, timeout_seconds), timeout_seconds),
            verify=True,
            proxies={},
        )
        try:
            read = b""
            for piece in response.raw.stream(8192, decode_content=False):
                read += piece
                if len(read) >= BODY_LIMIT_BYTES:
                    break
            else:
                # Read to its end: the connection may serve another call. Closing it instead is what close() does.
                response.raw.release_conn()
            headers = response.headers
            retry_after = headers.get("Retry-After", "")[:RETRY_AFTER_LENGTH]
            return Answer(response.status_code, read[:BODY_LIMIT_BYTES], retry_after), headers
        finally:
            response.close()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._changed.wait()
                now = time.monotonic()
                late = [call for call in self._calls if call.deadline <= now]
            for call in late:
                call.end("timeout")
            time.sleep(WATCH_INTERVAL_SECONDS)


def _redirected(request: Request, status_code: int, location: str) -> Request:
    """Return the call that a redirect leads to. Raises ValueError where it cannot be made."""
    # Headers are read as Latin-1; a Location that is not ASCII was meant as UTF-8.
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    url = urljoin(request.url, location)
    check_url(url, max_length=LOCATION_MAX_LENGTH)
    method, body, dropped = request.method, request.body, frozenset[str]()
    # As browsers do it: a form that was posted leads to a page that is read.
    if (status_code == HTTPStatus.SEE_OTHER and method != "HEAD") or (
        status_code in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND) and method == "POST"
    ):
        method, body, dropped = "GET", None, _OF_A_BODY
    if _origin(url) != _origin(request.url):
        dropped |= _CREDENTIALS
    else:
        # A user and password are meant for the host, and a Location rarely repeats them.
        user, at, _ = urlsplit(request.url).netloc.rpartition("@")
        parts = urlsplit(url)
        if at and "@" not in parts.netloc:
            url = parts._replace(netloc=user + at + parts.netloc).geturl()
    headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
    return replace(request, url=url, method=method, body=body, headers=headers)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


@functools.cache
def _resolvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")


def _resolve(host: str, port: int | None, timeout_seconds: float) -> list[Any]:
    """Return getaddrinfo's list. Raises socket.gaierror, TimeoutError."""
    bare = host.strip("[]")
    with suppress(ValueError):
        ipaddress.ip_address(bare)
        return socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    try:
        future = _resolvers().submit(socket.getaddrinfo, bare, port, type=socket.SOCK_STREAM)
        return future.result(timeout_seconds)
    except FutureTimeoutError as error:
        future.cancel()
        raise TimeoutError from error
    except UnicodeError as error:
        # The idna codec's word for a label that is too long or empty.
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all it was raised from; `requests` and urllib3 keep the cause in several places."""
    seen: list[BaseException] = []
    queue: list[Any] = [error]
    while queue:
        item = queue.pop()
        if isinstance(item, BaseException) and item not in seen:
            seen.append(item)
            queue += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return seen


def _is(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(item, kinds) for item in _chain(error))


def _explained(error: Exception) -> CallError:
    """Name the kind of an error of `requests`, urllib3 or the socket, in a sentence without addresses of ours."""
    if _is(error, exceptions.SSLError, urllib3.exceptions.SSLError):
        reason = next((item for item in _chain(error) if type(item).__module__ == "ssl"), error)
        return CallError("tls", f"No secure connection: {reason}"[:300])
    if _is(error, NameResolutionError, socket.gaierror):
        return CallError("dns", "The host's name does not resolve.")
    if _is(error, NewConnectionError):
        texts = [item.strerror for item in _chain(error) if isinstance(item, OSError) and item.strerror]
        return CallError("connect", f"No connection: {texts[0] if texts else 'refused'}.")
    if _is(error, exceptions.InvalidURL, exceptions.InvalidSchema, exceptions.MissingSchema, LocationParseError):
        return CallError("url", "This URL cannot be called.")
    if _is(error, OSError, urllib3.exceptions.ProtocolError) and _is(
        error, ConnectionError, urllib3.exceptions.ProtocolError
    ):
        return CallError("connection", "The connection was broken off before a complete answer.")
    return CallError("protocol", f"Not a valid HTTP answer ({type(error).__name__}).")
