"""The receiver: a process that does nothing but note when which path was called, and answer at once.

    python -m benchmarks.receiver HOSTS

One thread, one epoll loop, keep-alive, on as many loopback addresses as asked for. It prints its port, then obeys the
lines on its standard input: `count` prints how many calls were answered, `take` prints all that came, oldest first, as
JSON [[seconds since 1970, path], ...] and forgets them. A path that begins with /hang is noted and never answered, one
that begins with /wait/800/ is answered after 800 milliseconds.
"""

import contextlib
import heapq
import itertools
import json
import resource
import select
import socket
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def listen(hosts: int) -> list[socket.socket]:
    """Listen on 127.0.0.1, 127.0.0.2, ... with one port for all."""
    first = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = first.getsockname()[1]
    others = [socket.create_server((address(number), port), backlog=4096) for number in range(1, hosts)]
    for listener in (first, *others):
        listener.setblocking(False)
    return [first, *others]


def address(number: int) -> str:
    return f"127.0.{number // 250}.{number % 250 + 1}"


def split(data: bytes) -> tuple[str, bytes] | None:
    """Return the path of the first complete request and what follows it, None if there is none yet."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    length = 0
    position = head.lower().find(b"\r\ncontent-length:")
    if position >= 0:
        length = int(head[position + 17 :].split(b"\r\n", 1)[0])
    if len(rest) < length:
        return None
    return head.split(b" ", 2)[1].decode(), rest[length:]


class Loop:
    """Accepts, reads, notes and answers, one thing at a time."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connections: dict[int, tuple[socket.socket, bytearray]] = {}
        self._arrivals: list[tuple[float, str]] = []
        self._answered = 0
        # What is answered later: (moment, serial number, connection).
        self._later: list[tuple[float, int, socket.socket]] = []
        self._serial = itertools.count()
        self._poll = select.epoll()
        for number in (0, *self._listeners):
            self._poll.register(number, select.EPOLLIN)

    def run(self) -> None:
        while True:
            for number, _ in self._poll.poll(max(0.0, self._later[0][0] - time.monotonic()) if self._later else None):
                if number in self._connections:
                    self._read(number)
                elif number in self._listeners:
                    self._accept(self._listeners[number])
                elif not self._obey(sys.stdin.readline().strip()):
                    return
            while self._later and self._later[0][0] <= time.monotonic():
                self._answer(heapq.heappop(self._later)[2])

    def _obey(self, command: str) -> bool:
        if command == "count":
            print(self._answered, flush=True)
        elif command == "take":
            print(json.dumps(self._arrivals), flush=True)
            self._arrivals.clear()
            self._answered = 0
        return bool(command)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[connection.fileno()] = (connection, bytearray())
                self._poll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, number: int) -> None:
        connection, data = self._connections[number]
        try:
            received = connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            # Closing it takes it out of the poll.
            connection.close()
            del self._connections[number]
            return
        data += received
        while request := split(bytes(data)):
            self._arrivals.append((time.time(), request[0]))
            data[:] = request[1]
            if request[0].startswith("/wait/"):
                answer_at = time.monotonic() + int(request[0].split("/", 3)[2]) / 1000
                heapq.heappush(self._later, (answer_at, next(self._serial), connection))
            elif not request[0].startswith("/hang"):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        self._answered += 1
        # The caller may have gone.
        with contextlib.suppress(OSError):
            connection.send(ANSWER)


if __name__ == "__main__":
    # A thousand hosts that hang hold more files than the usual limit.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sockets = listen(int(sys.argv[1]))
    print(sockets[0].getsockname()[1], flush=True)
    # The parent ends it by closing its standard input, also on Ctrl-C.
    with contextlib.suppress(KeyboardInterrupt):
        Loop(sockets).run()
