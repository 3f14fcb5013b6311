"""A hostile receiver: it answers in every way that an HTTP client must not trust, over bare sockets."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

OK = b"HTTP/1.1 200 OK\r\n"
# What another timer's call would take for its own answer.
STOLEN = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Server:
    """Speaks bytes: `/case` is answered with what `case` gives, `/case/7/...` as CASES has it, any other path with
    the path itself.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.case: Callable[[], Iterator[bytes | float]] = lambda: iter(())
        self.sent = 0
        # Of each request: its path, and the number of its connection.
        self.seen: list[tuple[str, int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while path := self._path(connection, number):
                    if not path.startswith("/case"):
                        body = path.encode()
                        connection.sendall(OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                        continue
                    for piece in self._pieces(path):
                        if isinstance(piece, float):
                            time.sleep(piece)
                        elif not piece:
                            return
                        else:
                            connection.sendall(piece)
                            self.sent += len(piece)
            except OSError:
                pass

    def _pieces(self, path: str) -> "Iterator[bytes | float]":
        number = path.split("/")[2:3]
        return CASES[int(number[0])].pieces() if number else self.case()

    def _path(self, connection: socket.socket, number: int) -> str:
        data = b""
        while not _whole(data):
            piece = connection.recv(65536)
            if not piece:
                return ""
            data += piece
        path = data.split(b" ", 2)[1].decode()
        self.seen.append((path, number))
        return path


def _whole(data: bytes) -> bool:
    head, found, rest = data.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"\r\ncontent-length:")
    return bool(found) and len(rest) >= int(length.split(b"\r\n")[0] or 0)


@dataclass(frozen=True)
class Case:
    """What is sent, and what the call must come to: a status with a body, or a kind of error.

    `b""` among what is sent closes the connection; a float is a pause. It stays open otherwise.
    """

    name: str
    sends: tuple[bytes | float, ...]
    outcome: int | str
    body: bytes = b""
    method: str = "GET"
    # What is sent after that, again and again.
    forever: bytes = b""
    pause: float = 0.0
    # Whether the connection may serve the next call.
    kept: bool = False
    words: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return self.name

    def pieces(self) -> Iterator[bytes | float]:
        yield from self.sends
        while self.forever:
            yield self.forever
            if self.pause:
                yield self.pause


def bad(name: str, *sends: bytes | float, words: str = "", **fields: Any) -> Case:
    return Case(name, sends, "protocol", words=words, **fields)


def broken(name: str, *sends: bytes | float, **fields: Any) -> Case:
    return Case(name, (*sends, b""), "connection", **fields)


def good(name: str, *sends: bytes | float, body: bytes = b"ok", status: int = 200, **fields: Any) -> Case:
    return Case(name, sends, status, body, **fields)


LENGTH = b"Content-Length: 2\r\n\r\nok"

CASES = [
    # The head.
    bad("garbage", b"this is not HTTP\r\n\r\n", words="does not begin"),
    bad("HTTP/0.9", b"<html>hello</html>", words="does not begin"),
    bad("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", words="does not begin"),
    bad("HTTP/2 settings frame", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18),
    bad("TLS alert", b"\x15\x03\x01\x00\x02\x02\x46"),
    bad("HTTP/2 status line", b"HTTP/2 200\r\n" + LENGTH),
    bad("HTTP/1.2", b"HTTP/1.2 200 OK\r\n" + LENGTH, words="status line"),
    bad("a line before the status line", b"\r\n" + OK + LENGTH),
    bad("no status code", b"HTTP/1.1 OK\r\n" + LENGTH, words="status line"),
    bad("status of two digits", b"HTTP/1.1 20 OK\r\n" + LENGTH),
    bad("status of four digits", b"HTTP/1.1 2000 OK\r\n" + LENGTH),
    bad("negative status", b"HTTP/1.1 -20 OK\r\n" + LENGTH),
    bad("two spaces before the status", b"HTTP/1.1  200 OK\r\n" + LENGTH),
    bad("NUL in the reason", b"HTTP/1.1 200 O\0K\r\n" + LENGTH, words="status line"),
    bad("NUL in a header", OK + b"X: a\0b\r\n" + LENGTH, words="a header is malformed"),
    bad("NUL in a header's name", OK + b"X\0: a\r\n" + LENGTH),
    bad("carriage return in a header", OK + b"X: a\rb\r\n" + LENGTH),
    bad("lines end without carriage returns", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", words="carriage return"),
    bad("one line ends without a carriage return", OK + b"X: a\nY: b\r\n" + LENGTH),
    bad("folded header", OK + b"X: a\r\n b\r\n" + LENGTH, words="a header is malformed"),
    bad("folded first header", OK + b" X: a\r\n" + LENGTH),
    bad("space before the colon", OK + b"Content-Length : 2\r\n\r\nok"),
    bad("header without a colon", OK + b"Content-Length\r\n" + LENGTH),
    bad("header without a name", OK + b": a\r\n" + LENGTH),
    bad("endless status line", b"HTTP/1.1 200 ", forever=b"x" * 4096, words="longer than 64 KiB"),
    bad("endless header", OK + b"X: ", forever=b"x" * 4096, words="longer than 64 KiB"),
    bad("endless headers", OK, forever=b"X-Header: 1234567890\r\n" * 200, words="head"),
    bad("very many headers", OK + b"X: 1\r\n" * 5000 + LENGTH, words="more than 200 headers"),
    # Interim answers.
    good("interim 103", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + LENGTH, kept=True),
    good("interim 100, later the answer", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1, OK + LENGTH, kept=True),
    good("interim 100 and 102", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + OK + LENGTH, kept=True),
    good("interim that announces a body", b"HTTP/1.1 103 E\r\nContent-Length: 9\r\n\r\n" + OK + LENGTH, kept=True),
    bad("101 that nobody asked for", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", words="switches"),
    bad("endless 100", forever=b"HTTP/1.1 100 Continue\r\n\r\n" * 200, words="interim"),
    bad("endless large 103", forever=b"HTTP/1.1 103 E\r\nX: " + b"x" * 8000 + b"\r\n\r\n", words="64 KiB"),
    Case("dripping 100", (), "protocol", forever=b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
    broken("an interim answer and no other", b"HTTP/1.1 100 Continue\r\n\r\n"),
    # Where the body ends.
    bad("two lengths", OK + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\nok", words="Content-Length"),
    bad("two lengths in one", OK + b"Content-Length: 2, 40\r\n\r\nok", words="Content-Length"),
    good("the same length twice", OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nok", kept=True),
    bad("both framings", CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", words="both"),
    bad("negative length", OK + b"Content-Length: -1\r\n\r\nok", words="Content-Length"),
    bad("signed length", OK + b"Content-Length: +2\r\n\r\nok"),
    bad("hexadecimal length", OK + b"Content-Length: 0x2\r\n\r\nok"),
    bad("no number as length", OK + b"Content-Length: two\r\n\r\nok"),
    bad("empty length", OK + b"Content-Length:\r\n\r\nok"),
    bad("length beyond all numbers", OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nok"),
    bad("unknown coding", OK + b"Transfer-Encoding: gzip\r\n\r\nok", words="not chunked"),
    bad("two codings", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    bad("chunked twice", OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    bad("coding with a trick", OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    bad("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    good("no framing", OK + b"\r\nok", b""),
    good("HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + LENGTH),
    good("says close and keeps open", OK + b"Connection: close\r\n" + LENGTH),
    # Chunks.
    good("chunks", CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n000\r\nX-Sum: 1\r\n\r\n", kept=True),
    bad("negative chunk", CHUNKED + b"-1\r\n", forever=b"x" * 65536, words="chunk"),
    bad("signed chunk", CHUNKED + b"+2\r\nok\r\n0\r\n\r\n", words="chunk"),
    bad("chunk with a prefix", CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n"),
    bad("chunk with an underscore", CHUNKED + b"0_2\r\nok\r\n0\r\n\r\n"),
    bad("space before a chunk's size", CHUNKED + b" 2\r\nok\r\n0\r\n\r\n"),
    bad("space after a chunk's size", CHUNKED + b"2 \r\nok\r\n0\r\n\r\n"),
    bad("chunk without a size", CHUNKED + b"\r\nok\r\n0\r\n\r\n"),
    bad("chunk longer than its size", CHUNKED + b"2\r\nokay\r\n0\r\n\r\n", words="longer than its size"),
    bad("chunk line without a carriage return", CHUNKED + b"2\nok\n0\n\n"),
    bad("very long chunk size", CHUNKED + b"0" * 300 + b"2\r\nok\r\n0\r\n\r\n"),
    bad("endless chunk size", CHUNKED, forever=b"0" * 4096),
    bad("endless chunk extension", CHUNKED + b"2;", forever=b"x" * 4096, words="too long"),
    bad("NUL in a chunk extension", CHUNKED + b"2;\0\r\nok\r\n0\r\n\r\n"),
    Case("endless small chunks", (CHUNKED,), 200, b"x" * 4096, forever=b"1\r\nx\r\n" * 1000),
    bad(
        "endless small chunks with extensions", CHUNKED, forever=(b"1;" + b"e" * 250 + b"\r\nx\r\n") * 50, words="1024"
    ),
    bad("endless trailers", CHUNKED + b"0\r\n", forever=b"X: 1\r\n" * 500, words="trailers"),
    bad("endless trailer", CHUNKED + b"0\r\nX: ", forever=b"x" * 4096, words="trailers"),
    bad("malformed trailer", CHUNKED + b"2\r\nok\r\n0\r\nno trailer\r\n\r\n", words="trailer"),
    Case("huge chunk", (CHUNKED + b"FFFFFFFFFFFFFFFF\r\n",), 200, b"x" * 65536, forever=b"x" * 65536),
    Case("endless body", (OK + b"\r\n",), 200, b"x" * 65536, forever=b"x" * 65536),
    Case(
        "endless body of a length",
        (OK + b"Content-Length: 99999999999\r\n\r\n",),
        200,
        b"x" * 65536,
        forever=b"x" * 65536,
    ),
    # An early end.
    broken("nothing at all"),
    broken("end in the status line", b"HTTP/1.1 2"),
    broken("end in the head", OK + b"X: a\r\n"),
    broken("end in the body", OK + b"Content-Length: 10\r\n\r\nok"),
    broken("end in a chunk", CHUNKED + b"5\r\nok"),
    broken("end before the last chunk", CHUNKED + b"2\r\nok\r\n"),
    broken("end in the trailers", CHUNKED + b"2\r\nok\r\n0\r\nX: 1\r\n"),
    # More than the answer.
    good("another answer behind a body", OK + LENGTH + STOLEN),
    good("another answer behind chunks", CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + STOLEN),
    good("another answer a little later", OK + LENGTH, 0.05, STOLEN),
    good("a line end behind a body", OK + LENGTH + b"\r\n"),
    good("204 with a body", b"HTTP/1.1 204 No Content\r\n\r\n" + STOLEN, status=204, body=b""),
    good(
        "204 that announces a body", b"HTTP/1.1 204 N\r\nContent-Length: 51\r\n\r\n", 0.05, STOLEN, status=204, body=b""
    ),
    good("304 with a body", b"HTTP/1.1 304 Not Modified\r\n\r\n" + STOLEN, status=304, body=b""),
    good("HEAD with a body", OK + b"Content-Length: 51\r\n\r\n" + STOLEN, method="HEAD", body=b""),
    good("HEAD with chunks", CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + STOLEN, method="HEAD", body=b""),
    good("bytes after close was said", OK + b"Connection: close\r\n" + LENGTH + STOLEN),
    good("answer and end", OK + LENGTH, b""),
    # Slow ones.
    Case("silence", (), "timeout", forever=b"", words="within 2 s"),
    Case("dripping head", (OK + b"X: ",), "timeout", forever=b".", pause=0.02),
    Case("dripping body", (OK + b"Content-Length: 9999\r\n\r\n",), "timeout", forever=b".", pause=0.02),
    Case("dripping chunks", (CHUNKED,), "timeout", forever=b"1\r\n.\r\n", pause=0.02),
    Case("dripping body without framing", (OK + b"\r\n",), "timeout", forever=b".", pause=0.02),
]
