"""A connection to the Redis that carries messages, for those who do not go through Celery."""

from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL_PORT = 26379


def redis_client(*, timeout_seconds: float, retries: bool = True) -> redis.Redis:
    """Return a client of the Redis of REDIS_URL, or of the master that its sentinels name; threads may share it.

    Connecting and each answer take `timeout_seconds` at most. Without `retries`, a first failure is the last.
    """
    more: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    if not retries:
        more["retry"] = Retry(NoBackoff(), 0)
    if not settings.REDIS_URL.startswith("sentinel://"):
        client: redis.Redis = redis.Redis.from_url(settings.REDIS_URL, **more)
        return client
    # As kombu reads it: the password and the database are those of the server, and the same in each part.
    parts = [urlsplit(part) for part in settings.REDIS_URL.split(";")]
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [(part.hostname, part.port or SENTINEL_PORT) for part in parts],
        sentinel_kwargs=settings.CELERY_BROKER_TRANSPORT_OPTIONS["sentinel_kwargs"],
        username=unquote(parts[0].username or "") or None,
        password=unquote(parts[0].password or "") or None,
        db=parts[0].path.strip("/") or 0,
        **more,
    )
    master: redis.Redis = sentinels.master_for(settings.REDIS_SENTINEL_MASTER)  # type: ignore[no-untyped-call]
    return master
