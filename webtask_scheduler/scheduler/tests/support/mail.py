"""A real SMTP server that keeps what arrives, and refuses what the addresses tell it to."""

import socketserver
import threading
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from typing import Any, Self


@dataclass
class Mailbox:
    """It refuses recipients whose address begins with `gone` for good (550) and with `full` for now (452).

    `answers` are said instead of a greeting, one a connection, before others are let in.
    """

    mails: list[Message] = field(default_factory=list)
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
                self._say(b"220 ready")
                while line := self.rfile.readline():
                    word = line[:4].strip().upper()
                    if word == b"RCPT":
                        address = line.decode().partition("<")[2].partition(">")[0]
                        if address.startswith("gone"):
                            self._say(b"550 5.1.1 No such user\x07 here")
                        elif address.startswith("full"):
                            self._say(b"452 4.2.2 Mailbox full")
                        else:
                            box.recipients.append(address)
                            self._say(b"250 ok")
                    elif word == b"DATA":
                        self._say(b"354 go on")
                        lines = []
                        while (part := self.rfile.readline()) != b".\r\n":
                            lines.append(part.removeprefix(b"."))
                        box.mails.append(message_from_bytes(b"".join(lines), policy=default))
                        self._say(b"250 taken")
                    elif word == b"QUIT":
                        self._say(b"221 bye")
                        return
                    else:
                        self._say(b"250 ok")

            def _say(self, text: bytes) -> None:
                self.wfile.write(text + b"\r\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])
