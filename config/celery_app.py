"""The Celery application; `celery -A config.celery_app worker|beat|flower`."""

import contextlib
import math
import time
from typing import Any

import kombu
from celery import Celery, signals
from celery.app.amqp import AMQP
from django.conf import settings

from config.settings import choose
from webtask_scheduler.telemetry.events import event

choose()


# As in the settings: upkeep works in large steps.
STATEMENT_SECONDS = 30.0


class Connection(kombu.Connection):
    """Tries a lost broker again every few seconds; kombu's own pauses grow to half a minute."""

    _ensured_at = -math.inf

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        # A broker that answers but takes nothing, such as a full one, is not tried many times a second.
        time.sleep(max(0.0, Connection._ensured_at + 2.0 - time.monotonic()))
        try:
            return super().ensure_connection(
                *args, **{"interval_start": 1, "interval_step": 1, "interval_max": 3} | kwargs
            )
        finally:
            Connection._ensured_at = time.monotonic()

    def maybe_close_channel(self, channel: Any) -> None:
        # If a lost connection is closed before a message is acknowledged, kombu has dropped the transport and still
        # uses it, which would end the worker.
        with contextlib.suppress(AttributeError):
            super().maybe_close_channel(channel)


class Broker(AMQP):
    Connection = Connection


app = Celery("webtask_scheduler", amqp=Broker)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@signals.setup_logging.connect
def _keep_logging(**_: Any) -> None:
    """Leave the logs as settings.LOGGING has them; if nothing took this signal, Celery would set up its own."""


@signals.worker_ready.connect
def _say_worker(sender: Any, **_: Any) -> None:
    """Log in one line what this worker is. Celery's banner names its threads, which only take messages."""
    queues = sorted(app.amqp.queues.consume_from)
    calls = app.conf.task_default_queue in queues
    at_once = settings.WEBTASK_CALLERS if calls else sender.controller.concurrency
    event("worker_started", node=sender.hostname, queues=",".join(queues), at_once=at_once, broker=_broker())


@signals.beat_init.connect
def _say_beat(**_: Any) -> None:
    event("beat_started", broker=_broker())


def _broker() -> str:
    """Return the broker's URL without its password."""
    with app.connection_for_read() as connection:
        return str(connection.as_uri())


@signals.worker_init.connect
def _bound_waits(**_: Any) -> None:
    """Bound a worker's waits for the database; a frozen one would hold its threads for ever.

    Beat is left out: its signal handler puts back what is claimed and must not run in the middle of another statement,
    which waiting through Python would allow. Without a database beat has nothing to do; keepalives end a lost one.
    """
    # Late: every process of Django imports this module, before its settings are read.
    from config.database.base import bound_waits

    bound_waits(statement_seconds=STATEMENT_SECONDS)
