"""Between granian and Django: reads a request's body to its end before one of the few threads of Django sees it.

Granian hands over a request when it has the headers. A thread that reads the body itself waits for as long as its
client takes, and a handful of clients that drip their bodies hold every thread. Here the event loop reads. A client
that is slow costs its bytes and a connection, no thread, and is answered 408 when its time is up.

What bounds it: BODY_SECONDS and a least rate for one body; DATA_UPLOAD_MAX_MEMORY_SIZE for its length; BUFFER_BYTES for
all bodies of this process that are not small, from their arrival until they are answered, also while they wait for a
thread; and granian's own limit of connections, half of its `--backlog` with two processes. Headers have granian's own
deadline.
"""

import asyncio
import collections
import functools
import io
import logging
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings

from webtask_scheduler.telemetry.events import event

# Threads of the application in this process. Each holds a database connection.
THREADS = 4
# How long a body may take, and the rate above which it may take longer.
BODY_SECONDS = 10.0
BODY_BYTES_A_SECOND = 32 * 1024
# A body up to this is always read. Larger ones share a buffer: what no longer fits is answered 503.
SMALL_BYTES = 64 * 1024
BUFFER_BYTES = 64 * 1024 * 1024
# The time between two lines of the log about slow bodies.
SAID_SECONDS = 60.0

# As all answers have them, see pages.BrowserRules.
_HEADERS = [
    ("content-type", "application/problem+json"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("connection", "close"),
    ("retry-after", "5"),
]
_TOO_SLOW = (
    b'{"type":"about:blank","title":"Request Timeout","status":408,"detail":"The body of the request did not arrive'
    b' in time, and nothing was done. Send it again, over a faster connection or in smaller parts."}'
)
_CUT_OFF = (
    b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"The body ended before the length that'
    b' Content-Length names, and nothing was done. Send it again."}'
)
_NO_ADDRESS = (
    b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"The header X-Forwarded-For is not'
    b' ASCII, and nothing was done."}'
)
_TOO_MUCH = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Too many large requests arrive at'
    b' once. Nothing was done; send it again in a moment."}'
)

# In place of the value of a header that granian cannot read; no header of ours may have it.
UNREADABLE = "\xff"

_ENVIRON: dict[str, Any] = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "wsgi.errors": sys.stderr,
    "wsgi.multiprocess": True,
    "wsgi.multithread": True,
    "wsgi.run_once": False,
    "wsgi.version": (1, 0),
}
# As the variables of CGI have them.
_NAMES = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class BodyError(Exception):
    """A request that the application does not see: `status` and `problem` are the answer."""

    def __init__(self, status: int, problem: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.problem = problem


class Front:
    """An RSGI application around a WSGI one."""

    def __init__(self, application: Application, *, threads: int = THREADS) -> None:
        self._application = application
        self._work: queue.SimpleQueue[tuple[Any, Any, bytes, asyncio.Future[None], bool]] = queue.SimpleQueue()
        # Answered, with the length of the body, and not yet reported to the loop: the next request does that, which
        # saves a wake-up for each.
        self._done: collections.deque[tuple[asyncio.Future[None], int]] = collections.deque()
        # Bytes of bodies that are not small, from their arrival until they are answered. The loop alone writes it.
        self._buffered = 0
        self._slow = 0
        self._say_at = -math.inf
        for number in range(1, threads + 1):
            threading.Thread(target=self._serve, name=f"request-{number}", daemon=True).start()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        self._settle()
        # A longer body, and one that does not say its length, is refused by the application without a look at it.
        length = _length(scope.headers)
        body = b""
        if 0 < length <= settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            try:
                body = await self._read(scope, protocol, length)
            except BodyError as error:
                protocol.response_bytes(error.status, _HEADERS, error.problem)
                return
        done = asyncio.get_running_loop().create_future()
        unread = length > len(body) or "transfer-encoding" in scope.headers
        self._work.put((scope, protocol, body, done, unread))
        # This frame may stay until the next request.
        del body
        await done

    def _settle(self) -> None:
        """Report to the loop what was answered, and give back the room of its bodies."""
        while self._done:
            self._finish(*self._done.popleft())

    def _finish(self, done: "asyncio.Future[None]", length: int) -> None:
        self._buffered -= _counted(length)
        if not done.done():
            done.set_result(None)

    async def _read(self, scope: Any, protocol: Any, length: int) -> bytes:
        """Return a request's body, which keeps its room in the buffer until `_finish`.

        Raises BodyError if it does not arrive, or does not fit.
        """
        chunks: list[bytes] = []
        counted = read = 0
        whole = False
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                allowed = deadline.when() or 0.0
                async for chunk in protocol:
                    read += len(chunk)
                    chunks.append(chunk)
                    self._buffered += _counted(read) - counted
                    counted = _counted(read)
                    if self._buffered > BUFFER_BYTES and counted:
                        # What was answered since may have made room.
                        self._settle()
                        if self._buffered > BUFFER_BYTES:
                            raise BodyError(503, _TOO_MUCH)
                    if read >= length:
                        whole = True
                        break
                    if not chunk:
                        raise BodyError(400, _CUT_OFF)
                    deadline.reschedule(allowed + read / BODY_BYTES_A_SECOND)
        except TimeoutError:
            self._note_slow(_client(scope), read, length)
            raise BodyError(408, _TOO_SLOW) from None
        finally:
            if not whole:
                self._buffered -= counted
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _note_slow(self, client: str, read: int, length: int) -> None:
        self._slow += 1
        if time.monotonic() >= self._say_at:
            event("bodies_too_slow", level=logging.WARNING, count=self._slow, latest=client, read=read, length=length)
            self._slow, self._say_at = 0, time.monotonic() + SAID_SECONDS

    def _serve(self) -> None:
        """Answer one request after another, on a thread of its own."""
        while True:
            scope, protocol, body, done, unread = self._work.get()
            length = len(body)
            try:
                self._answer(scope, protocol, body)
            except BaseException:
                event("request_failed", level=logging.ERROR, exc_info=True)
                protocol.response_empty(500, [])
            finally:
                if unread or settings.WEB_ACCESS_LOG:
                    # Granian closes the connection when nobody is left who might read the rest, and logs a request when
                    # it has ended.
                    done.get_loop().call_soon_threadsafe(self._finish, done, length)
                else:
                    self._done.append((done, length))
                del scope, protocol, body, done

    def _answer(self, scope: Any, protocol: Any, body: bytes) -> None:
        begun: list[Any] = [500, []]

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            begun[:] = int(status[:3]), headers

        try:
            environ = _environ(scope, body)
        except BodyError as error:
            protocol.response_bytes(error.status, _HEADERS, error.problem)
            return
        answer = self._application(environ, start_response)
        try:
            content = b"".join(answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        protocol.response_bytes(begun[0], begun[1], content)


def _counted(length: int) -> int:
    """Return how much of the common room a body of this length takes."""
    return length if length > SMALL_BYTES else 0


def _client(scope: Any) -> str:
    """Return the address at the other end of the connection, without its port."""
    return str(scope.client).rpartition(":")[0].strip("[]")


def _length(headers: Any) -> int:
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() else 0


@functools.lru_cache(maxsize=256)
def _variable(name: str) -> str:
    return "HTTP_" + name.replace("-", "_").upper()


def _environ(scope: Any, body: bytes) -> dict[str, Any]:
    """Return WSGI's variables of a request."""
    server, _, port = scope.server.rpartition(":")
    environ = _ENVIRON | {
        "REQUEST_METHOD": scope.method,
        # WSGI has the bytes of a path as text.
        "PATH_INFO": scope.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server.strip("[]"),
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": _client(scope),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
    }
    unread = set(scope.headers.keys())
    for name, value in scope.headers.items():
        unread.discard(name)
        # WSGI spells X_Forwarded_For as X-Forwarded-For, which a proxy overwrites only as the latter.
        if "_" in name:
            continue
        key = _NAMES.get(name) or _variable(name)
        said = environ.get(key)
        environ[key] = value if said is None else f"{said}{'; ' if name == 'cookie' else ','}{value}"
    for name in unread:
        if "_" in name:
            continue
        if name == "x-forwarded-for":
            # Who the client is must not depend on what the client can make unreadable.
            raise BodyError(400, _NO_ADDRESS)
        # Granian leaves out a value that is not ASCII. Whoever reads the header is to see that there was one.
        environ[_NAMES.get(name) or _variable(name)] = UNREADABLE
    if "HTTP_HOST" not in environ:
        environ["HTTP_HOST"] = scope.authority or ""
    return environ
