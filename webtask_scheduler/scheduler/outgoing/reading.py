"""Reads one HTTP/1.1 answer, strictly and within bounds (RFC 9112). Pure: it knows bytes and no socket.

It is strict, because an answer that two sides understand differently ends at a different byte for each of them, and the
rest would be taken for the answer to the next call on that connection. It is bounded, because the other side may send
anything.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from webtask_scheduler.scheduler.outgoing.errors import CallError

READ_BYTES = 16 * 1024
# Bound of the final head and all interim ones together; common servers send no more than 8 to 32 KiB.
HEAD_MAX_BYTES = 64 * 1024
FIELDS_MOST = 200
# A server sends one 100 or 103 or a few, and 102 once in many seconds.
INTERIM_MOST = 16
# A size of up to 16 hex digits and its extensions.
CHUNK_LINE_MAX_BYTES = 256
# A body in more chunks is not read to its end: chunks of a byte each would cost far too much time.
CHUNKS_MOST = 4096
TRAILERS_MOST = 32
TRAILERS_MAX_BYTES = 8 * 1024
# Bound of the whole answer, framing included.
RECEIVED_MAX_BYTES = 1024 * 1024

_BEGIN = b"HTTP/1."
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

_SWITCHING_PROTOCOLS = 101
_FIRST_FINAL = 200
_NO_CONTENT = 204
_NOT_MODIFIED = 304

BROKEN_OFF = "The connection was broken off before a complete answer."


class ReadAnswer(NamedTuple):
    """One answer."""

    status_code: int
    # Keyed by names in lower case; values of a name that repeats are joined by ", ".
    headers: dict[str, str]
    body: bytes
    # Whether the answer was read to its exact end and the connection may serve another call.
    reusable: bool
    # Whether bytes came with it that belong to no answer.
    surplus: bool = False


def read_answer(receive: Callable[[int], bytes], *, method: str, body_limit: int) -> ReadAnswer:
    """Read the answer to a request; of a longer body, only the first `body_limit` bytes.

    `receive` returns at most that many bytes, and no bytes at the end. Raises CallError and whatever `receive` raises.
    """
    reader = _Reader(receive)
    interim = 0
    while True:
        minor, status_code, headers = reader.head()
        if status_code >= _FIRST_FINAL:
            break
        if status_code == _SWITCHING_PROTOCOLS:
            _refuse("it switches protocols, which nobody asked for")
        interim += 1
        if interim > INTERIM_MOST:
            _refuse(f"more than {INTERIM_MOST} interim answers")
    length = _body_length(minor, headers)
    if method == "HEAD" or status_code in (_NO_CONTENT, _NOT_MODIFIED):
        # A 204 that announces a body may send it, so the connection is not used again.
        body, complete = b"", status_code != _NO_CONTENT or not length
    elif length == _CHUNKED:
        body, complete = reader.chunks(body_limit)
    elif length is None:
        body, complete = reader.to_the_end(body_limit), False
    elif length <= body_limit:
        body, complete = reader.exactly(length), True
    else:
        body, complete = reader.exactly(body_limit), False
    surplus = complete and reader.has_more()
    reusable = complete and minor == "1" and not surplus and not _says_close(headers)
    return ReadAnswer(status_code, headers, body, reusable, surplus)


_CHUNKED = -1


def _body_length(minor: str, headers: dict[str, str]) -> int | None:
    """Return the body's length: _CHUNKED for chunks, None for a body that ends with the connection."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            _refuse("it has both Content-Length and Transfer-Encoding")
        if minor == "0":
            _refuse("it has a Transfer-Encoding in HTTP/1.0")
        if coding.lower() != "chunked":
            _refuse("its Transfer-Encoding is not chunked")
        return _CHUNKED
    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        # Proxies sometimes repeat the header; the same length twice is no contradiction.
        first, *others = length.split(", ")
        if not _LENGTH.fullmatch(first) or any(other != first for other in others):
            _refuse("its Content-Length is not one number")
        length = first
    return int(length)


def _says_close(headers: dict[str, str]) -> bool:
    said = headers.get("connection")
    return said is not None and "close" in said.lower()


def _refuse(reason: str) -> NoReturn:
    raise CallError("protocol", f"Not a valid HTTP answer: {reason}.")


class _Reader:
    """The bytes received, and how far they are read."""

    __slots__ = ("_at", "_buffer", "_head_bytes", "_receive", "_received")

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._buffer = bytearray()
        self._at = 0
        self._received = 0
        self._head_bytes = 0

    def has_more(self) -> bool:
        return len(self._buffer) > self._at

    def head(self) -> tuple[str, int, dict[str, str]]:
        """Return the minor version, status code and headers."""
        buffer, begin = self._buffer, self._at
        searched = begin
        while (end := buffer.find(b"\r\n\r\n", searched)) < 0:
            if _BARE_LINE_FEED.search(buffer, max(begin, searched)):
                _refuse("a line of its head ends without a carriage return")
            self._check_head_size(len(buffer) - begin)
            searched = max(begin, len(buffer) - 3)
            self._fill()
            if not buffer.startswith(_BEGIN[: len(buffer) - begin], begin):
                _refuse("it does not begin with HTTP/1.0 or HTTP/1.1")
        self._check_head_size(end - begin)
        self._head_bytes += end - begin
        self._at = end + 4
        lines = buffer[begin:end].decode("latin-1").split("\r\n")
        status = _STATUS_LINE.fullmatch(lines[0])
        if status is None:
            _refuse("its status line is malformed")
        if len(lines) > FIELDS_MOST:
            _refuse(f"more than {FIELDS_MOST} headers")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            field = _FIELD.fullmatch(line)
            if field is None:
                _refuse("a header is malformed")
            name, value = field.groups()
            name = name.lower()
            value = value.rstrip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return status[1], int(status[2]), headers

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            self._fill()
        found = bytes(self._buffer[self._at : self._at + size])
        self._at += size
        return found

    def to_the_end(self, limit: int) -> bytes:
        while len(self._buffer) - self._at < limit and self._more():
            pass
        found = bytes(self._buffer[self._at : self._at + limit])
        self._at += len(found)
        return found

    def chunks(self, limit: int) -> tuple[bytes, bool]:
        """Return the beginning of a body in chunks, and whether it and its trailers were read to their end."""
        body = bytearray()
        for _ in range(CHUNKS_MOST):
            line = _CHUNK_LINE.fullmatch(self._line(CHUNK_LINE_MAX_BYTES, "a chunk's size"))
            if line is None:
                _refuse("a chunk's size is malformed")
            size = int(line[1], 16)
            if size == 0:
                self._trailers()
                return bytes(body), True
            if size > limit - len(body):
                return bytes(body + self.exactly(limit - len(body))), False
            body += self.exactly(size)
            if self.exactly(2) != b"\r\n":
                _refuse("a chunk is longer than its size")
            if self._at > HEAD_MAX_BYTES:
                del self._buffer[: self._at]
                self._at = 0
        return bytes(body), False

    def _trailers(self) -> None:
        left = TRAILERS_MAX_BYTES
        for _ in range(TRAILERS_MOST + 1):
            line = self._line(left, "its trailers are")
            if not line:
                return
            left -= len(line)
            if not _FIELD.fullmatch(line.decode("latin-1")):
                _refuse("a trailer is malformed")
        _refuse(f"more than {TRAILERS_MOST} trailers")

    def _line(self, limit: int, what: str) -> bytes:
        """Return a line without its end."""
        searched = self._at
        while (end := self._buffer.find(b"\r\n", searched)) < 0:
            searched = max(self._at, len(self._buffer) - 1)
            if len(self._buffer) - self._at > limit:
                break
            if _BARE_LINE_FEED.search(self._buffer, self._at):
                _refuse("a line ends without a carriage return")
            self._fill()
        if not 0 <= end - self._at <= limit:
            _refuse(f"{what} too long")
        line = bytes(self._buffer[self._at : end])
        self._at = end + 2
        return line

    def _check_head_size(self, size: int) -> None:
        if self._head_bytes + size > HEAD_MAX_BYTES:
            _refuse(f"its head is longer than {HEAD_MAX_BYTES // 1024} KiB")

    def _fill(self) -> None:
        if not self._more():
            raise CallError("connection", BROKEN_OFF)

    def _more(self) -> bool:
        piece = self._receive(READ_BYTES)
        self._buffer += piece
        self._received += len(piece)
        if self._received > RECEIVED_MAX_BYTES:
            _refuse(f"it is longer than {RECEIVED_MAX_BYTES // 1024} KiB")
        return bool(piece)
