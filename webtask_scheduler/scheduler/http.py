"""The only door to the outside: one bounded HTTP call, and one family of errors.

`Client.call` never follows a redirect, keeps no cookie, reads no proxy variable or netrc file, reads a bounded part of
the answer, and ends at its deadline whatever the other side does. Timeouts of single reads do not bound a body that
drips, a handshake that dawdles or a resolver that hangs: a watchdog shuts the socket down, and names are resolved in
threads of their own that a call waits for no longer than it may.
"""

import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests import adapters, exceptions
from urllib3 import connection, connectionpool
from urllib3.exceptions import LocationParseError, NameResolutionError, NewConnectionError

# Connecting is refused sooner than the whole call: a host that does not answer at all is not worth thirty seconds.
CONNECT_TIMEOUT_SECONDS = 10.0
# Read at the most; what comes after is not waited for.
BODY_LIMIT_BYTES = 64 * 1024
# A kept connection idle for longer is not used again: common servers close theirs after two to five seconds, and a
# call written to a connection that is just being closed is a failed attempt.
IDLE_LIMIT_SECONDS = 1.5
WATCH_INTERVAL_SECONDS = 0.1
RESOLVER_THREADS = 16


def check_url(url: str, *, max_length: int) -> None:
    """Make sure that a URL can be called as it stands. Raises ValueError with a sentence for a person."""
    if not url:
        raise ValueError("A URL is required.")
    if len(url) > max_length:
        raise ValueError(f"The URL is longer than {max_length} characters.")
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        raise ValueError("The URL has a space, a backslash or a control character; percent-encode it.")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(_BAD_HOST) from error
    if parts.scheme not in ("http", "https"):
        raise ValueError("The URL must begin with http:// or https://.")
    _check_host(parts.scheme, parts.netloc)


_BAD_HOST = "The URL's host or port is not valid."


# Timers come many to a host, and this is the dear part. A refusal is not kept, and need not be.
@functools.lru_cache(4096)
def _check_host(scheme: str, netloc: str) -> None:
    """Make sure that there is a host, that its name can resolve, and that its port can be connected to."""
    try:
        parts = urlsplit(f"{scheme}://{netloc}/")
        port = parts.port
        if not parts.hostname:
            raise ValueError("The URL has no host.")  # noqa: TRY301
        # What the call itself does first: a name that cannot be encoded is refused here rather than at its moment.
        prepared = requests.models.PreparedRequest()
        prepared.prepare_url(f"{scheme}://{netloc}/", None)
        host = (urlsplit(prepared.url or "").hostname or "").removesuffix(".")
    except (exceptions.RequestException, ValueError) as error:
        raise ValueError(str(error) if str(error).startswith("The URL") else _BAD_HOST) from error
    if port == 0:
        raise ValueError(_BAD_HOST)
    # DNS knows no longer names and labels; a resolver would only say so at the call's moment.
    if len(host) > 253 or not all(0 < len(label) <= 63 for label in host.split(".")):  # noqa: PLR2004
        raise ValueError("The URL's host is too long, or has an empty part.")


class CallError(Exception):
    """A call that brought no complete answer. `kind` is one of models.ErrorKind, the text is for a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code and the beginning of the body."""

    status_code: int
    body: bytes


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
        self._headers = {
            "User-Agent": user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
        }
        self._calls: set[_Call] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, name="call-watchdog", daemon=True).start()

    def call(self, url: str, *, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Answer:
        """POST to a URL and return its answer, of whatever status. Raises CallError."""
        call = _Call(time.monotonic() + timeout_seconds)
        _current.call = call
        with self._changed:
            self._calls.add(call)
            if len(self._calls) == 1:
                self._changed.notify()
        try:
            answer = self._exchange(url, body, headers, timeout_seconds)
            # A head or body that was cut off may read like a whole one.
            call.remaining()
        except Exception as error:
            if call.ended_by == "interrupted":
                raise CallError("interrupted", "This service was shut down during the call.") from error
            if call.ended_by or _is(error, TimeoutError, exceptions.Timeout):
                raise CallError("timeout", f"No complete answer within {timeout_seconds:g} s.") from error
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

    def _exchange(self, url: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Answer:
        request = requests.models.PreparedRequest()
        request.prepare_method("POST")
        request.prepare_url(url, None)
        request.prepare_headers(self._headers | dict(headers) | {"Content-Length": str(len(body))})
        request.body = body
        # A user and password in the URL.
        request.prepare_auth(None, url)
        response = self._adapter.send(
            request,
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
            return Answer(response.status_code, read[:BODY_LIMIT_BYTES])
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
