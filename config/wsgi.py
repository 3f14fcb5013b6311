"""The WSGI application that the web server loads."""

import os
from typing import Any

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest

from config.database.base import bound_waits

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.local")


class Request(WSGIRequest):
    """Takes a Content-Type that cannot be read for none: Django's own raises before any view could answer 415."""

    def __init__(self, environ: dict[str, Any]) -> None:
        try:
            super().__init__(environ)
        except ValueError:
            super().__init__(environ | {"CONTENT_TYPE": ""})


class Handler(WSGIHandler):
    request_class = Request


# Nobody waits longer for an answer: a load balancer or a client gives up, and four threads serve this process.
STATEMENT_SECONDS = 6.0

django.setup(set_prefix=False)
bound_waits(statement_seconds=STATEMENT_SECONDS, reports=True)
application = Handler()
