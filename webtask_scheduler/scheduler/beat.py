"""Stock beat plus our dispatch on its tick.

What an operator sets up by hand keeps stock behaviour; the rows of timers are left to `dispatch`, which does the
thinking.
"""

import logging
import os
import socket
import time
from typing import Any

import kombu.exceptions
from celery.app.base import Celery
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from webtask_scheduler.scheduler import tasks
from webtask_scheduler.scheduler.dispatch import PAUSE_SECONDS, Chunk, Dispatcher, PublishError
from webtask_scheduler.scheduler.models import TASK_NAME

logger = logging.getLogger(__name__)

# A broker that does not answer must not hold up the clock.
BROKER_TIMEOUT_SECONDS = 2.0
SEEN_SECONDS = 1.0

_SEEN = """
WITH gone AS (DELETE FROM scheduler_beat WHERE seen_at < clock_timestamp() - interval '1 hour')
INSERT INTO scheduler_beat (name, seen_at) VALUES (%s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at
"""


class Publisher:
    """Sends messages over a broker connection of its own: no retries, short timeouts, made anew after an error."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def deliver(self, chunk: Chunk) -> None:
        """Ring for a chunk of claimed deliveries. Raises PublishError."""
        items = [[str(delivery_id), str(token)] for delivery_id, token in chunk.items]
        # Both are what a person reads in Flower and in the worker's log.
        self._send(tasks.deliver, [items], argsrepr=f"({chunk.label})", shadow="deliver")

    def obey(self, periodic_task_ids: list[int]) -> None:
        """Have a worker look at rows that somebody else changed. Raises PublishError."""
        self._send(tasks.obey, [periodic_task_ids], argsrepr=f"({len(periodic_task_ids)} rows)", shadow="obey")

    def check(self) -> None:
        """Ask the broker for an answer. Raises PublishError."""
        try:
            self._open().channel.client.ping()
        except self._errors() as error:
            self._lost(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()
        self._connection = self._producer = None

    def _send(self, task: Any, args: list[Any], **options: Any) -> None:
        try:
            task.apply_async(args=args, producer=self._open(), retry=False, **options)
        except self._errors() as error:
            self._lost(error)

    def _open(self) -> Any:
        if self._producer is None:
            timeouts = {
                "socket_timeout": BROKER_TIMEOUT_SECONDS,
                "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
                "max_retries": 0,
            }
            options = self._app.conf.broker_transport_options | timeouts
            self._connection = self._app.connection_for_write(
                connect_timeout=BROKER_TIMEOUT_SECONDS, transport_options=options
            )
            self._producer = self._app.amqp.Producer(self._connection, auto_declare=False)
        return self._producer

    def _errors(self) -> tuple[type[BaseException], ...]:
        known = (kombu.exceptions.KombuError, OSError)
        if self._connection is None:
            return known
        return (*known, *self._connection.connection_errors, *self._connection.channel_errors)

    def _lost(self, error: BaseException) -> None:
        try:
            self.close()
        except self._errors():
            self._connection = self._producer = None
        raise PublishError(str(error)) from error


class TimerScheduler(DatabaseScheduler):  # type: ignore[misc]
    """django-celery-beat's scheduler for what operators set up, and the dispatcher for timers."""

    # Class attributes: the start banner builds a second, lazy instance that must have no side effects.
    _publisher: Publisher | None = None
    _dispatcher: Dispatcher | None = None
    _stock_at = 0.0
    _seen_at = 0.0
    _database_answers = False

    def setup_schedule(self) -> None:
        """Wait for a database that is not up yet: the stock constructor reads it and would end the process."""
        failing = False
        while True:
            try:
                connection.ensure_connection()
                # Set by a first try that failed half-way: without it the second would find no schedule at all.
                self._initial_read = True
                super().setup_schedule()
            except (DatabaseError, InterfaceError) as error:
                connection.close()
                if not failing:
                    logger.error("database_awaited error=%r", str(error).strip())  # noqa: TRY400 - one line is enough
                failing = True
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def enabled_models_qs(self) -> "QuerySet[PeriodicTask]":
        """Leave out the rows of timers; the index `periodictask_foreign_idx` finds the others."""
        rows: QuerySet[PeriodicTask] = super().enabled_models_qs().exclude(task=TASK_NAME)
        return rows

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run the stock tick when its own time has come, then ours; return the smaller of both delays in seconds."""
        if self._publisher is None or self._dispatcher is None:
            self._publisher = Publisher(self.app)
            self._dispatcher = Dispatcher(publish=self._publisher.deliver, dispute=self._dispute)
        if time.monotonic() >= self._seen_at:
            self._seen_at = time.monotonic() + SEEN_SECONDS
            self._database_answers = self._seen()
        if time.monotonic() >= self._stock_at:
            self._stock_at = time.monotonic() + self._stock_tick(self._publisher, *args, **kwargs)
        delay = self._dispatcher.turn()
        return max(0.0, min(delay, self._stock_at - time.monotonic()))

    def close(self) -> None:
        """Put back what is claimed, then close as stock does. Called by the signal handler and again by the loop."""
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self._publisher is not None:
            self._publisher.close()
        super().close()

    def _stock_tick(self, publisher: Publisher, *args: Any, **kwargs: Any) -> float:
        # The stock tick logs a traceback each time the database is away; its producer retries for many seconds while
        # the broker is, and gives a one-off up. Ask both first.
        if not self._database_answers:
            return PAUSE_SECONDS
        try:
            publisher.check()
            delay: float | None = super().tick(*args, **kwargs)
        except PublishError:
            return PAUSE_SECONDS
        except (DatabaseError, InterfaceError) as error:
            connection.close()
            logger.warning("stock_tick_failed error=%r", str(error).strip())
            return PAUSE_SECONDS
        return delay or 0.0

    def _seen(self) -> bool:
        """Note that this beat is at work; return whether the database took it."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(_SEEN, [f"{socket.gethostname()}:{os.getpid()}"[:100]])
        except (DatabaseError, InterfaceError):
            # The dispatcher, which comes next, says so in the log.
            connection.close()
            return False
        return True

    def _dispute(self, periodic_task_ids: list[int]) -> None:
        if self._publisher is not None:
            self._publisher.obey(periodic_task_ids)
