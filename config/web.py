"""The web server: granian's command line, its lines in the format of ours.

    python -m config.web --interface rsgi ... config.rsgi:application

Granian writes its own lines without a time, and each of its processes sets up its own logging before it loads the
application. Here it sets up settings.LOGGING instead. A bad setting ends the server before it starts anything.
"""

import os
import sys
from typing import Any

import granian.log
from django.conf import settings
from granian.cli import entrypoint

import config.shared  # before the processes that share it are made
from config.listening import check, granian_host
from config.settings import choose

choose()

# The path comes decoded; as a literal, it cannot look like another line. The query may hold what is not for others.
ACCESS = "request method=%(method)s path=%(path)r status=%(status)d duration_ms=%(dt_ms).1f client=%(addr)s"


def logging_config() -> dict[str, Any]:
    """Return settings.LOGGING with granian's loggers, which have no handler of their own and pass their lines on."""
    shared: dict[str, Any] = settings.LOGGING
    return shared | {"loggers": shared["loggers"] | {"_granian": {}, "granian.access": {"level": "INFO"}}}


# At import, because a process that is spawned rather than forked imports this module again.
config.shared.listens_on = granian_host(sys.argv[1:], os.environ)
granian.log.LOGGING_CONFIG = logging_config()

if __name__ == "__main__":
    # Here too, because a process of the server that ends is only started again.
    check(config.shared.listens_on)
    sys.argv[1:1] = ["--log-level", settings.LOGGING["root"]["level"].lower()]
    if settings.WEB_ACCESS_LOG:
        sys.argv[1:1] = ["--access-log", "--access-log-fmt", ACCESS]
    entrypoint()  # type: ignore[no-untyped-call]
