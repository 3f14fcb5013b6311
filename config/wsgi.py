"""The WSGI application. `config.front` gives it the requests that the web server takes."""

from typing import Any

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.utils.module_loading import import_string

from config import shared
from config.database.base import bound_waits
from config.listening import check
from config.settings import choose

choose()


class Request(WSGIRequest):
    """Treats an unreadable Content-Type as absent: Django's own raises before any view could answer 415."""

    def __init__(self, environ: dict[str, Any]) -> None:
        try:
            super().__init__(environ)
        except ValueError:
            super().__init__(environ | {"CONTENT_TYPE": ""})


class Handler(WSGIHandler):
    request_class = Request


# Clients and load balancers do not wait longer for an answer, and few threads serve this process.
STATEMENT_SECONDS = 6.0

# Another server than ours says nowhere where it listens.
check(shared.listens_on)
django.setup(set_prefix=False)
bound_waits(statement_seconds=STATEMENT_SECONDS, reports=True)
# This process stores what it counts, and may answer for metrics at a port of its own.
import_string("webtask_scheduler.scheduler.queue.rollups.keep")()
import_string("webtask_scheduler.scheduler.api.metrics.listen")()
import_string("webtask_scheduler.access.keys.keep_uses")()
application = Handler()
