"""A real SMTP server that keeps what arrives, and refuses what the addresses tell it to."""

import socketserver
import threading
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any, Self


@dataclass
class Mailbox:
    """It refuses recipients whose address begins with `gone` for good (550) and with `full` for now (452).

    `answers` are said instead of a greeting, one a connection, before others are let in.
    """

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        box = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                box.connections += 1
                if box.answers:
                    self.wfile.write(box.answers.pop(0))
                    return
                self.wfile.write(b"220 ready\r\n")
                while line := self.rfile.readline():
                    word = line[:4].strip().upper()
                    if word == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        parts = iter(self.rfile.readline, b".\r\n")
                        mail = b"".join(part.removeprefix(b".") for part in parts)
                        box.mails.append(message_from_bytes(mail, policy=default))
                    self.wfile.write((box._recipient(line) if word == b"RCPT" else b"250 ok") + b"\r\n")
                    if word == b"QUIT":
                        return

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
