"""A real HTTP server that writes down every call and answers as its path says."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, unquote

from webtask_scheduler.scheduler.outgoing.egress import Egress
from webtask_scheduler.scheduler.tests.support.waiting import PATIENCE_SECONDS

# What a test's client calls: receivers, and addresses that lead nowhere.
EGRESS = Egress(allow="loopback documentation")


@dataclass
class Call:
    at: float
    path: str
    headers: dict[str, str]
    body: bytes
    # The port of the other side: one for each connection.
    connection: int
    method: str = "POST"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Paths: `/status/503`, `/redirect`, `/sleep/2`, `/drip-body`, `/drip-head`, `/large`, `/cookie`, `/garbage`,
    `/hang-up`, `/flaky/2` (503 for the first two calls), `/retry-after/120` (503, with that header), `/echo` (answers
    what arrived), `/dawdle/2/x` (redirects to `/x` after two seconds), `/edited/1/fails` (500, see `editors`), and
    those that `redirect` and `answer` give; anything else answers 200.
    """

    calls: list[Call] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                at = time.time()
                body = self.rfile.read(int(self.headers["content-length"] or 0))
                receiver._note(Call(at, self.path, dict(self.headers), body, self.client_address[1], self.command))
                receiver._answer(self)

            do_GET = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815 - its words

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

            def handle_error(self, *_: Any) -> None:
                pass  # a caller that was killed hangs up; that is no news here

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A connection ends the wait for one. `serve_forever` would look every so often whether it is to end, which
        # costs each test the half of that time.
        with socket.create_connection(("127.0.0.1", self.port)):
            self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._server.handle_request()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def redirect(self, status: int, location: str) -> str:
        """Return the URL of a redirect, whose Location is sent as it stands."""
        return self.url(f"/to/{status}/{quote(location, safe='')}")

    def answer(self, status: int, headers: Mapping[str, str]) -> str:
        """Return the URL of an answer with these headers, whose values are sent as Latin-1."""
        return self.url(f"/answer/{status}/{quote(json.dumps(headers), safe='')}")

    def wait_for(self, count: int, *, seconds: float = PATIENCE_SECONDS, path: str = "") -> list[Call]:
        """Return the calls to paths beginning so, once there are that many; fails after a while."""
        deadline = time.monotonic() + seconds
        with self._arrived:
            while len(found := [call for call in self.calls if call.path.startswith(path)]) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"{len(found)} of {count} calls to {path or 'any path'} within {seconds} s"
                self._arrived.wait(left)
            return found

    def _note(self, call: Call) -> None:
        with self._arrived:
            self.calls.append(call)
            self._arrived.notify_all()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        kind, _, argument = handler.path.strip("/").partition("/")
        answers: dict[str, Callable[[], None]] = {
            "status": lambda: self._plain(handler, int(argument)),
            "redirect": lambda: self._plain(handler, 302, {"Location": self.url("/elsewhere")}),
            "to": lambda: self._moved(handler, *argument.split("/")),
            "dawdle": lambda: self._dawdle(handler, *argument.split("/", 1)),
            "retry-after": lambda: self._plain(handler, 503, {"Retry-After": unquote(argument)}),
            "edited": lambda: self._plain(handler, 500 if argument.endswith("fails") else 200),
            "echo": lambda: self._plain(handler, 200, body=self._said(handler)),
            "answer": lambda: self._plain(handler, int(argument[:3]), json.loads(unquote(argument[4:]))),
            "cookie": lambda: self._plain(handler, 200, {"Set-Cookie": "a=b; Path=/"}),
            "large": lambda: self._plain(handler, 200, body=b"x" * 1_000_000),
            "sleep": lambda: self._sleep(handler, argument),
            "flaky": lambda: self._plain(
                handler, 503 if len([c for c in self.calls if c.path == handler.path]) <= int(argument) else 200
            ),
            "drip-body": lambda: self._drip(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"."),
            "drip-head": lambda: self._drip(handler, b"HTTP/1.1 200 OK\r\nX-Long: ", b"."),
            "garbage": lambda: self._raw(handler, b"this is not HTTP\r\n\r\n"),
            "hang-up": lambda: self._raw(handler, b""),
        }
        try:
            answers.get(kind, lambda: self._plain(handler, 200))()
        except OSError:
            handler.close_connection = True

    def _said(self, handler: http.server.BaseHTTPRequestHandler) -> bytes:
        last = [call for call in self.calls if call.path == handler.path][-1]
        return json.dumps([last.path, last.headers, last.body.decode()]).encode()

    def _plain(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: Mapping[str, str] | None = None,
        *,
        body: bytes = b"ok",
    ) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def _moved(self, handler: http.server.BaseHTTPRequestHandler, status: str, location: str) -> None:
        # Its bytes as they are: http.server writes headers as Latin-1.
        self._plain(handler, int(status), {"Location": unquote(location, "latin-1")})

    def _sleep(self, handler: http.server.BaseHTTPRequestHandler, seconds: str) -> None:
        self._stop.wait(float(seconds))
        self._plain(handler, 200)

    def _dawdle(self, handler: http.server.BaseHTTPRequestHandler, seconds: str, path: str) -> None:
        self._stop.wait(float(seconds))
        self._plain(handler, 307, {"Location": f"/{path}"})

    def _raw(self, handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    def _drip(self, handler: http.server.BaseHTTPRequestHandler, head: bytes, drop: bytes) -> None:
        self._raw(handler, head)
        while not self._stop.wait(0.05):
            handler.wfile.write(drop)
