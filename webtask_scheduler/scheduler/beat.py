"""Runs the dispatcher on stock beat's tick.

Tasks that an operator sets up keep stock behaviour; `dispatch` handles the timers.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from webtask_scheduler.dispatch.dispatcher import PAUSE_SECONDS, Dispatcher
from webtask_scheduler.dispatch.publisher import BULK_SECONDS, Publisher
from webtask_scheduler.dispatch.queue import Chunk, PublishError
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import TASK_NAME
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.queue.claims import DeliveryQueue
from webtask_scheduler.telemetry.events import event

SEEN_SECONDS = 1.0

# The lead is renewed every second; another beat takes over after it has run out.
LEAD_SECONDS = 3.0

# Stores that this beat is at work, and takes or keeps the lead if no other beat has it, by the database's clock. The
# leader gets whether a bulk operation waits for a worker, and which beat led before.
_SEEN = """
WITH gone AS (DELETE FROM scheduler_beat WHERE seen_at < clock_timestamp() - interval '1 hour' AND name <> %(name)s),
was AS (SELECT name FROM scheduler_leader),
seen AS (
  INSERT INTO scheduler_beat (name, seen_at) VALUES (%(name)s, clock_timestamp())
  ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at
)
INSERT INTO scheduler_leader AS leader (id, name, expires_at)
VALUES (1, %(name)s, clock_timestamp() + make_interval(secs => %(lead)s))
ON CONFLICT (id) DO UPDATE SET name = excluded.name, expires_at = excluded.expires_at
  WHERE leader.name = excluded.name OR leader.expires_at < clock_timestamp()
RETURNING EXISTS (SELECT FROM scheduler_bulkoperation WHERE finished_at IS NULL), (SELECT name FROM was)
"""
_STEP_DOWN = "UPDATE scheduler_leader SET expires_at = clock_timestamp() WHERE name = %s"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other beats from setting up the schedule meanwhile.

    Where two find the same entry missing, the database refuses it to one of them, and stock goes on without the entries
    that it could not store. The lock has a connection of its own, because stock closes the usual one as it likes.
    """
    guard = connection.copy()
    try:
        guard.set_autocommit(False)
        with guard.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('webtask_scheduler beat', 0))")
        yield
    finally:
        guard.close()


class TimerScheduler(DatabaseScheduler):  # type: ignore[misc]
    """django-celery-beat's scheduler for operators' own tasks, and the dispatcher for timers."""

    # Class attributes: the start banner builds a second, lazy instance that must have no side effects.
    _publisher: Publisher | None = None
    _dispatcher: Dispatcher | None = None
    _stock_at = 0.0
    _seen_at = 0.0
    _leads_until = 0.0
    _led = False
    # Whether its lead ran out and it is not known yet if another beat took it.
    _lapsed = False
    _bulk_at = 0.0
    _key_noted = False
    _flush_at = 0.0
    # When the lead was last taken or kept; 0 while another beat leads.
    _led_at = 0.0

    def setup_schedule(self) -> None:
        """Set up the schedule after waiting for the database, without which the stock constructor ends the process."""
        failing = False
        while True:
            try:
                connection.ensure_connection()
                # A first try that failed half-way cleared this; without it the second would find no schedule at all.
                self._initial_read = True
                with _alone():
                    super().setup_schedule()
            except (DatabaseError, InterfaceError) as error:
                connection.close()
                if not failing:
                    event("database_awaited", level=logging.ERROR, error=str(error).strip())
                failing = True
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def enabled_models_qs(self) -> "QuerySet[PeriodicTask]":
        """Return the rows that are not timers'; the index `periodictask_foreign_idx` finds them."""
        rows: QuerySet[PeriodicTask] = super().enabled_models_qs().exclude(task=TASK_NAME)
        return rows

    def schedule_changed(self) -> bool:
        """Return what stock does, but raise if the database is away: stock logs several tracebacks in a tick."""
        last, self._last_timestamp = self._last_timestamp, self.Changes.last_change()  # type: ignore[has-type]
        changed: bool = bool(last and self._last_timestamp and self._last_timestamp > last)
        return changed

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run the stock tick on the leader when its own time has come, then ours; return the smaller delay."""
        if self._publisher is None or self._dispatcher is None:
            self._publisher = Publisher(self.app)
            self._dispatcher = Dispatcher(
                queue=DeliveryQueue(),
                publish=partial(self._publish, self._publisher),
                dispute=self._dispute,
                backlog_per_second=settings.WEBTASK_BACKLOG_PER_SECOND,
            )
        if time.monotonic() >= self._seen_at:
            self._seen_at = time.monotonic() + SEEN_SECONDS
            self._seen()
        if time.monotonic() >= self._flush_at:
            self._flush_at = time.monotonic() + rollups.FLUSH_SECONDS
            self._flush()
        if time.monotonic() >= self._stock_at:
            self._stock_at = time.monotonic() + self._stock_tick(self._publisher, *args, **kwargs)
        delay = self._dispatcher.turn()
        return max(0.0, min(delay, self._stock_at - time.monotonic()))

    def close(self) -> None:
        """Put back what is claimed, then close as stock does. Called by the signal handler and again by the loop.

        The publisher's connection is left to the end of the process: the signal may have come in the middle of a read
        from it, and closing it there makes that read fail in place of an orderly exit.
        """
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._flush()
        self._leads()
        super().close()
        if self._led:
            self._led = False
            with contextlib.suppress(DatabaseError, InterfaceError), connection.cursor() as cursor:
                cursor.execute(_STEP_DOWN, [self._name])

    @property
    def _name(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"[:100]

    def _stock_tick(self, publisher: Publisher, *args: Any, **kwargs: Any) -> float:
        # The stock tick logs a traceback each time the database is away; a valid lead shows that it answered just now.
        # Its producer retries for many seconds while the broker is away, and gives a one-off up. So check that first.
        if not self._leads():
            return SEEN_SECONDS
        try:
            publisher.check()
            delay: float | None = super().tick(*args, **kwargs)
        except PublishError:
            return PAUSE_SECONDS
        except (DatabaseError, InterfaceError) as error:
            connection.close()
            event("stock_tick_failed", level=logging.WARNING, error=str(error).strip())
            return PAUSE_SECONDS
        # No longer than the lead is certain: a beat that was stopped must check before it goes on.
        return min(delay or 0.0, SEEN_SECONDS)

    def _leads(self) -> bool:
        """Return whether this beat leads now. A beat that lost the lead drops what it wanted to write back."""
        leads = time.monotonic() < self._leads_until
        if self._led and not leads:
            self._dirty.clear()
            self._led = False
            # A database or a broker that is slow to fail outlasts the lease; that alone is not logged.
            self._lapsed = True
        return leads

    def _seen(self) -> None:
        """Store that this beat is at work, and take or keep the lead."""
        before = time.monotonic()
        try:
            with connection.cursor() as cursor:
                cursor.execute(_SEEN, {"name": self._name, "lead": LEAD_SECONDS})
                row = cursor.fetchone()
            if not self._key_noted:
                facts.note_key()
                self._key_noted = True
        except (DatabaseError, InterfaceError):
            # The dispatcher, which comes next, logs it.
            connection.close()
            return
        self._leads()
        leads = row is not None
        if leads and row[0] and self._publisher is not None and before >= self._bulk_at:
            self._bulk_at = before + BULK_SECONDS
            # Without a broker the next second tries again; the dispatcher logs it.
            with contextlib.suppress(PublishError):
                self._publisher.bulk()
        if self._lapsed and not leads:
            event("lead_lost", level=logging.WARNING, beat=self._name)
            self._lapsed = False
        if leads and not self._led:
            if not (self._lapsed and row[1] == self._name):
                event("lead_taken", beat=self._name)
            self._lapsed = False
            # Another beat led meanwhile and wrote to the rows: read them again.
            self._initial_read = True
            self._heap = None
            self._stock_at = 0.0
            self._led = True
        if leads:
            # Only what is certain: a beat that does not see itself for longer than its lease does not lead meanwhile.
            if self._led_at:
                rollups.tally.led(min(before - self._led_at, LEAD_SECONDS))
            self._leads_until = before + LEAD_SECONDS
        self._led_at = before if leads else 0.0

    def _flush(self) -> None:
        """Store what this beat counted."""
        try:
            rollups.tally.flush()
        except (DatabaseError, InterfaceError):
            # Kept for the next time; the dispatcher logs that the database is away.
            connection.close()

    @staticmethod
    def _publish(publisher: Publisher, chunk: Chunk) -> None:
        """Publish a chunk, and count how long after their due times. Raises PublishError."""
        publisher.deliver(chunk)
        now = time.monotonic()
        rollups.tally.published([now - held.at for held in chunk.items])

    def _dispute(self, periodic_task_ids: list[int]) -> None:
        if self._publisher is not None:
            self._publisher.obey(periodic_task_ids)
