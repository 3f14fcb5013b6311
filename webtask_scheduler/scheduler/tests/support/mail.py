"""A real SMTP server that keeps what arrives, and refuses what the addresses tell it to."""

import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any, Self

# Writes an answer, or a part of it, and returns whether the conversation goes on.
Answer = Callable[[Any], bool]


def say(text: bytes) -> Answer:
    """Answer with other words, and go on."""
    return lambda out: bool(out.write(text))


def hang_up(_: Any) -> bool:
    return False


def silent(out: Any) -> bool:
    """Say nothing until the other side has left."""
    return drip(out, each=b"")


def drip(out: Any, *, each: bytes = b"2") -> bool:
    """Say a little every now and then, without an end."""
    with suppress(OSError):
        while not out.closed:
            time.sleep(0.02)
            out.write(each)
            out.flush()
    return False


def endless(out: Any) -> bool:
    """Say lines that each announce another."""
    return drip(out, each=b"250-and more\r\n")


@dataclass
class Mailbox:
    """It refuses recipients whose address begins with `gone` for good (550) and with `full` for now (452).

    `answers` are said instead of a greeting, one a connection, before others are let in. `instead` has what becomes of
    a command, by its first four letters; of `HELO`, the greeting; of `DONE`, the end of a mail, which has arrived.
    """

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    instead: dict[bytes, Answer] = field(default_factory=dict)
    connections: int = 0

    def __enter__(self) -> Self:
        box = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                box.connections += 1
                if box.answers:
                    self.wfile.write(box.answers.pop(0))
                    return
                word, usual = b"HELO", b"220 ready"
                while box.instead.get(word, say(usual + b"\r\n"))(self.wfile) and word != b"QUIT":
                    line = self.rfile.readline()
                    if not line:
                        return
                    word = line[:4].strip().upper()
                    usual = box._recipient(line) if word == b"RCPT" else b"250 ok"
                    if word == b"DATA" and word not in box.instead:
                        self.wfile.write(b"354 go on\r\n")
                        parts = iter(self.rfile.readline, b".\r\n")
                        mail = b"".join(part.removeprefix(b".") for part in parts)
                        box.mails.append(message_from_bytes(mail, policy=default))
                        word = b"DONE"

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                pass  # one that hangs up

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def _recipient(self, line: bytes) -> bytes:
        address = line.decode().partition("<")[2].partition(">")[0]
        if address.startswith("gone"):
            return b"550 5.1.1 No such user\x07 here"
        if address.startswith("full"):
            return b"452 4.2.2 Mailbox full"
        self.recipients.append(address)
        return b"250 ok"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])
