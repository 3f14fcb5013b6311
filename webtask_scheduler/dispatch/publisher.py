"""Sends messages to workers, by the names of their tasks, over a broker connection of its own."""

import time
from typing import Any

import kombu.exceptions
import redis
from celery.app.base import Celery

from webtask_scheduler.dispatch.queue import Chunk, PublishError

# The names live in queues and dashboards and never change.
TASKS = "webtask_scheduler.scheduler.tasks."
# A broker that does not answer must not hold up the clock.
BROKER_TIMEOUT_SECONDS = 2.0
# The time between two messages to go on with bulk operations: longer than a worker takes to begin.
BULK_SECONDS = 3.0


class Publisher:
    """Sends messages over its own broker connection: no retries, short timeouts, a new connection after an error."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def deliver(self, chunk: Chunk) -> None:
        """Publish a chunk of claimed deliveries. Raises PublishError."""
        now = time.monotonic()
        # Last when it was claimed and sent.
        items: list[list[Any]] = [
            [str(held.delivery_id), str(held.token), held.host, held.flow, *held.marks, held.clock + now]
            for held in chunk.items
        ]
        # `argsrepr` and `shadow` are for people who read Flower and the worker's log.
        self._send("deliver", [items], argsrepr=f"({chunk.label})", shadow="deliver")

    def obey(self, periodic_task_ids: list[int]) -> None:
        """Have a worker look at PeriodicTasks that differ from their timers. Raises PublishError."""
        self._send("obey", [periodic_task_ids], argsrepr=f"({len(periodic_task_ids)} rows)", shadow="obey")

    def bulk(self) -> None:
        """Have a worker go on with bulk operations. Raises PublishError."""
        # The next message is sent by then; without a worker they do not pile up.
        self._send("bulk", [], shadow="bulk", expires=2 * BULK_SECONDS)

    def check(self) -> None:
        """Check that the broker takes messages. Raises PublishError.

        Redis is asked to store something, because a full one still answers; another broker only has to be connected.
        """
        try:
            producer = self._open()
            if self._connection.transport.driver_type == "redis":
                producer.channel.client.set("webtask_scheduler:check", "", px=1000)
            else:
                self._connection.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_SECONDS)
        except self._errors() as error:
            self._lost(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()
        self._connection = self._producer = None

    def _send(self, task: str, args: list[Any], **options: Any) -> None:
        # Sent by name, so that beat does not load the code of the tasks.
        try:
            self._app.send_task(
                TASKS + task, args=args, producer=self._open(), retry=False, ignore_result=True, **options
            )
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
        known = (kombu.exceptions.KombuError, redis.RedisError, OSError)
        if self._connection is None:
            return known
        return (*known, *self._connection.connection_errors, *self._connection.channel_errors)

    def _lost(self, error: BaseException) -> None:
        try:
            self.close()
        except self._errors():
            self._connection = self._producer = None
        raise PublishError(str(error)) from error
