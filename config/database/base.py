"""Django's PostgreSQL backend with an end to every wait, and a health check that costs no round trip.

A server that is frozen, or a network that swallows packets, answers nothing and closes nothing: no time-out of the
server's own can end such a wait. So psycopg2 is told to wait through `_wait`, which gives up at a deadline. That costs
5 microseconds of processor time a statement. `bound_waits` turns it on for a whole process, a web process or a worker.
Management commands leave it off, since a migration may take as long as it takes; and so does beat, see `celery_app`.
"""

import logging
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from django.db.backends.postgresql import base
from psycopg2 import extensions

from webtask_scheduler.telemetry.events import event

# How long connecting may take. A server may be slow to fork, but not this slow.
CONNECT_SECONDS = 3.0
# The server ends a statement this long before the wait for it ends, so that the wait ends only if nothing answers.
MARGIN_SECONDS = 1.0
# After a wait without an answer, one thread tries to connect, at most this often, and the others fail at once.
# Otherwise every thread of a web process waits for its own deadline, and requests queue behind them.
SILENT_SECONDS = 1.0

_OK, _READ = extensions.POLL_OK, extensions.POLL_READ
# How a parameter stands in the options of a connection.
_PARAMETER = re.compile(r"-c (\w+)=(\S+)")


class _Limits(threading.local):
    """How long a statement of this thread may wait for the server; None means for ever."""

    seconds: float | None = None


_statement_seconds: float | None = None
_own = _Limits()
# The time of the monotonic clock until which the server counts as silent; 0 while it answers.
_silent_until = 0.0
_trying = threading.Lock()
# Whether this process logs that the database is away and back, and whether it is away.
_reports = False
_away = False
# Whether it was logged that the database's role lacks parameters, which behind a pooler only the role can set.
_lack_logged = False


def bound_waits(*, statement_seconds: float, reports: bool = False) -> None:
    """End every wait of this process for the database; call it before the first connection is made.

    A statement that takes longer than `statement_seconds` ends with an OperationalError: the server cancels it, and
    where the server does not answer, the connection is closed a second later. With `reports`, a line in the log says
    that the database cannot be reached, and one that it can again.
    """
    global _statement_seconds, _reports
    _statement_seconds, _reports = statement_seconds, reports
    extensions.set_wait_callback(_wait)


def is_away() -> bool:
    """Return whether the database was logged as away and not yet as back."""
    return _away


@contextmanager
def wait_at_most(seconds: float) -> Iterator[None]:
    """Bound each wait of this thread more tightly than the process does; for probes, which must answer soon."""
    before, _own.seconds = _own.seconds, seconds
    try:
        yield
    finally:
        _own.seconds = before


def _wait(connection: Any) -> None:
    """Wait until a connection has its answer. Raises OperationalError at the deadline; psycopg2 then closes it."""
    ends_at = 0.0
    while (state := connection.poll()) != _OK:
        now = time.monotonic()
        if not ends_at:
            ends_at = now + _patience(connection)
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLIN if state == _READ else select.POLLOUT)
        if not ready.poll(max(0.0, ends_at - now) * 1000):
            global _silent_until  # noqa: PLW0603 - known to all threads of the process
            _silent_until = time.monotonic() + SILENT_SECONDS
            raise psycopg2.OperationalError("the database does not answer")


def _patience(connection: Any) -> float:
    seconds = (_statement_seconds or 0.0) + MARGIN_SECONDS
    if connection.status == extensions.STATUS_SETUP:
        seconds = CONNECT_SECONDS
    return seconds if _own.seconds is None else min(seconds, _own.seconds)


class DatabaseWrapper(base.DatabaseWrapper):
    """Bounds every wait, and asks the socket whether a kept connection is still good; see `is_usable`.

    A connection's parameters are sent as it begins, where a pooler such as PgBouncer refuses them. If it gives each
    client a session of its own (DATABASE_POOLER=session), they are set by a statement. If clients share sessions
    (transaction), that would change the session of another: the role must have them, and a warning names what it lacks.
    """

    _parameters: dict[str, str]
    # What `prepared.Prepared` has prepared on the present connection.
    prepared: set[Any]
    _plain: Any = None

    def get_connection_params(self) -> dict[str, Any]:
        """Return parameters by which the server ends a statement before this process gives up on the server."""
        params = super().get_connection_params()
        if _statement_seconds is not None:
            limit = f"-c statement_timeout={round(_statement_seconds * 1000)}"
            # If an option repeats, the last one counts.
            params["options"] = f"{params.get('options', '')} {limit}".strip()
        self._parameters = {}
        if self.settings_dict.get("POOLER", "none") != "none":
            self._parameters = dict(_PARAMETER.findall(params.pop("options", "")))
        return params

    def init_connection_state(self) -> None:
        """Set, or behind a shared session look for, the parameters that a pooler does not pass on."""
        super().init_connection_state()
        if not self._parameters:
            return
        shared = self.settings_dict["POOLER"] == "transaction"
        wanted = ", ".join(["(%s, %s)"] * len(self._parameters))
        found = "current_setting(name)" if shared else "set_config(name, value, false)"
        with self.cursor() as cursor:
            cursor.execute(
                f"SELECT name, {found} FROM (VALUES {wanted}) AS wanted (name, value)",  # noqa: S608
                [word for parameter in self._parameters.items() for word in parameter],
            )
            values = dict(cursor.fetchall())
        if shared:
            self._report_lack(values)

    def _report_lack(self, values: dict[str, str]) -> None:
        """Log once which time-outs the role does not have. Another length of them is the operator's choice."""
        global _lack_logged  # noqa: PLW0603 - once a process
        lacking = [f"{name} = '{self._parameters[name]}'" for name, value in values.items() if value == "0"]
        if lacking and not _lack_logged:
            _lack_logged = True
            statements = "; ".join(f"ALTER ROLE ... SET {each}" for each in lacking)
            event("pooler_role_lacks", level=logging.WARNING, statements=statements)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connect, and log that the database is away or back."""
        global _away  # noqa: PLW0603 - known to all threads of the process
        self.prepared = set()
        try:
            connection = self._connect(conn_params)
        except psycopg2.OperationalError as error:
            if _reports and not _away:
                _away = True
                event("database_away", level=logging.ERROR, error=" ".join(str(error).split()))
            raise
        if _away:
            _away = False
            event("database_back", level=logging.WARNING)
        return connection

    def _connect(self, conn_params: dict[str, Any]) -> Any:
        """Connect, or fail at once while another thread tries whether a silent server is back."""
        global _silent_until  # noqa: PLW0603 - known to all threads of the process
        if not _silent_until:
            return super().get_new_connection(conn_params)
        if time.monotonic() < _silent_until or not _trying.acquire(blocking=False):
            raise psycopg2.OperationalError("the database does not answer")
        try:
            connection = super().get_new_connection(conn_params)
            _silent_until = 0.0
        finally:
            _trying.release()
        return connection

    def plain_cursor(self) -> Any:
        """Return a cursor of psycopg2, one for each connection, whose statements nobody watches or counts.

        Its errors are psycopg2's: use it in `wrap_database_errors`. Raises as `cursor`.
        """
        self.close_if_health_check_failed()
        self.ensure_connection()
        self.validate_no_broken_transaction()
        if self._plain is None or self._plain.connection is not self.connection:
            self._plain = self.create_cursor()
        return self._plain

    def is_usable(self) -> bool:
        """Return whether the connection can be used again.

        A server that ended it, by a restart or by hand, has sent an end of file, so an idle connection with something
        to read is dead. Keepalives find one whose network vanished. Django's own check sends a query at the beginning
        of each request, which takes a sixth of the time of creating a timer.
        """
        # After a loss that libpq has noticed, there is no socket any more.
        if self.connection is None or self.connection.closed or self.connection.info.status:
            return False
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)
