"""The test run: fast hashes and a Redis database of its own, everything else as shipped."""

import os
from urllib.parse import urlsplit, urlunsplit

from config.settings.local import *
from config.settings.local import REDIS_URL as SHIPPED_REDIS_URL

# Each of Django's test clients makes the middleware anew. Without this, each would list every static file, for 20 ms.
WHITENOISE_AUTOREFRESH = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tests empty it, and their messages must not reach the workers of a service that runs on the same server, nor those of
# tests side by side, whose processes pytest-xdist numbers gw0, gw1, ...
# A Redis server has 16 databases.
_SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REDIS_URL = urlunsplit(urlsplit(SHIPPED_REDIS_URL)._replace(path=f"/{15 - _SIDE_BY_SIDE}"))
CELERY_BROKER_URL = REDIS_URL
