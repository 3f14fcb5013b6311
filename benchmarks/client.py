"""A client that creates timers over HTTP from a process of its own, over kept connections.

    python -m benchmarks.client < JSON

The JSON names the port and path, the number of connections, and either `seconds` (each connection sends its next
request when the last is answered) or `at` (one request at each of these moments). `bodies` are sent in turn, with
`headers`, and where `keyed` is true each with an Idempotency-Key of its own. Prints a
JSON list of [sent, answered, status, number of the request] when it is done; the status is 0 where no answer came.
"""

import json
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EOL = "\r\n"
# A connection that was idle for longer is made anew: the server closes one that says nothing for 15 seconds.
IDLE_SECONDS = 5.0
Answered = tuple[float, float, int, int]


def request(order: dict[str, Any], body: str) -> bytes:
    data = body.encode()
    return (
        f"POST {order['path']} HTTP/1.1\r\nHost: 127.0.0.1:{order['port']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n"
        f"{''.join(f'{name}: {value}{EOL}' for name, value in order.get('headers', {}).items())}\r\n"
    ).encode() + data


def exchange(connection: socket.socket, data: bytes) -> int:
    """Send one request and return the status of its answer, read to its end."""
    connection.sendall(data)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += receive(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0])
    left = length - len(body)
    while left > 0:
        left -= len(receive(connection))
    return int(head.split(b" ", 2)[1])


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("The server closed the connection.")
    return data


class Client:
    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._requests = [request(order, body) for body in order["bodies"]]
        self._end = time.monotonic() + order.get("seconds", 1e9)
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.answered: list[Answered] = []

    def run(self) -> None:
        count = self._order["connections"]
        threads = [threading.Thread(target=self._work, args=(first,), daemon=True) for first in range(count)]
        for thread in threads:
            thread.start()
        for number, moment in enumerate(self._order.get("at", [])):
            time.sleep(max(0.0, moment - time.time()))
            self._wanted.put(number)
        for _ in threads:
            self._wanted.put(None)
        for thread in threads:
            thread.join()

    def _work(self, first: int) -> None:
        connection, used = self._connect(), time.monotonic()
        for number in iter(self._wanted.get, None) if "at" in self._order else self._numbers(first):
            data = self._requests[number % len(self._requests)]
            if self._order.get("keyed"):
                key = f"Idempotency-Key: {secrets.token_hex(16)}\r\n\r\n"
                data = data.replace(b"\r\n\r\n", b"\r\n" + key.encode(), 1)
            if time.monotonic() - used > IDLE_SECONDS:
                connection.close()
                connection = self._connect()
            sent = time.time()
            try:
                status = exchange(connection, data)
            except OSError:
                status = 0
            self.answered.append((sent, time.time(), status, number))
            used = time.monotonic()
            if not status:
                connection.close()
                connection = self._connect()
        connection.close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._order["port"]), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _numbers(self, first: int) -> Iterator[int]:
        number = first
        while time.monotonic() < self._end:
            yield number
            number += self._order["connections"]


if __name__ == "__main__":
    client = Client(json.load(sys.stdin))
    client.run()
    print(json.dumps(client.answered))
