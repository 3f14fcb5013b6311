"""Sends mail by SMTP, with an end to each step, however the server behaves.

The time-out of a socket bounds one read. A server that sends a byte every few seconds, or a greeting without an end,
would hold the process for ever. So a watchdog ends the connection when the time of a step is over.
"""

import smtplib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.mail.backends import smtp

# To connect, greet and log in; to hand over one mail: servers look into it before they answer; to say goodbye.
OPEN_SECONDS = 60.0
SEND_SECONDS = 90.0
CLOSE_SECONDS = 5.0
# One step of each, one after the other: what sending a mail takes at most, but for looking up the server's name.
MOST_SECONDS = OPEN_SECONDS + SEND_SECONDS + CLOSE_SECONDS


class _Line(smtplib.SMTP):
    """A connection that another thread can end."""

    _other_end: socket.socket | None = None
    _is_ended = False

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        made: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]  # no stub has it
        # A descriptor of its own for the same connection: STARTTLS takes the first one away.
        self._other_end = made.dup()
        if self._is_ended:
            made.close()
            raise TimeoutError("It took too long to connect.")
        return made

    def end(self) -> None:
        """End the connection, or the attempt to make it. Raises nothing."""
        self._is_ended = True
        known = self._other_end
        if known is not None:
            # Another thread may close it at the same time.
            with suppress(OSError):
                known.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        if self._other_end is not None:
            self._other_end.close()
            self._other_end = None


class _SecureLine(smtplib.SMTP_SSL, _Line):
    """The same, encrypted from its beginning."""


class EmailBackend(smtp.EmailBackend):
    """Django's own, whose steps end."""

    _line: _Line | None = None

    @property
    def connection_class(self) -> Any:
        kind = _SecureLine if self.use_ssl else _Line

        def connect(*args: Any, **kwargs: Any) -> _Line:
            # Known before it connects, so that its greeting ends too.
            line = self._line = kind.__new__(kind)
            try:
                line.__init__(*args, **kwargs)  # type: ignore[misc]  # as calling the class does
            except BaseException:
                line.close()
                raise
            return line

        return connect

    def open(self) -> bool | None:
        with self._within(OPEN_SECONDS):
            return super().open()

    def _send(self, email_message: Any) -> Any:
        with self._within(SEND_SECONDS):
            return super()._send(email_message)  # type: ignore[misc]  # no stub has it

    def close(self) -> None:
        with self._within(CLOSE_SECONDS):
            super().close()

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _stop(self) -> None:
        if self._line is not None:
            self._line.end()
