"""The Celery application; `celery -A config.celery_app worker|beat|flower`."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
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


class OwnSettings(Mapping[str, Any]):
    """Those of Django's settings that are Celery's, under its names; read when they are used.

    Given Django's settings as they are, a worker would tell them all to whoever asks it for its configuration, as
    Flower does, and Celery censors what it knows by its own names only: not REDIS_URL, and not the broker's URL.
    """

    _PREFIX = "CELERY_"

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(settings, self._PREFIX + key.upper())
        except AttributeError as error:
            raise KeyError(key) from error

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._PREFIX).lower() for name in dir(settings) if name.startswith(self._PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


app = Celery("webtask_scheduler", amqp=Broker)
app.config_from_object(OwnSettings())
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
def _censor_stats(**_: Any) -> None:
    """Have a worker that is asked for its state name the broker without the passwords of sentinels, and of others."""
    # Late: workers only.
    from celery.app.utils import filter_hidden_settings
    from celery.worker.control import Panel
    from kombu.utils.url import maybe_sanitize_url

    stock = Panel.data["stats"]

    def stats(state: Any, **arguments: Any) -> Any:
        found = stock(state, **arguments)
        broker = found["broker"] = filter_hidden_settings(found.get("broker") or {})
        broker["alternates"] = [maybe_sanitize_url(url) for url in broker.get("alternates") or ()]
        return found

    Panel.data["stats"] = stats


@signals.worker_init.connect
def _bound_waits(**_: Any) -> None:
    """Bound a worker's waits for the database; a frozen one would hold its threads for ever.

    Beat is left out: its signal handler puts back what is claimed and must not run in the middle of another statement,
    which waiting through Python would allow. Without a database beat has nothing to do; keepalives end a lost one.
    """
    # Late: every process of Django imports this module, before its settings are read.
    from config.database.base import bound_waits

    bound_waits(statement_seconds=STATEMENT_SECONDS)
