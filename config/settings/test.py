"""The test run: fast hashes and a Redis database of its own, everything else as shipped."""

import os
from urllib.parse import urlsplit, urlunsplit

from config.settings.local import *
from config.settings.local import REDIS_URL as SHIPPED_REDIS_URL

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tests empty it, and their messages must not reach the workers of a service that runs on the same server, nor those of
# tests side by side, whose processes pytest-xdist numbers gw0, gw1, ...
_NUMBER = 15 - int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1")[2:]) - 1
REDIS_URL = urlunsplit(urlsplit(SHIPPED_REDIS_URL)._replace(path=f"/{_NUMBER}"))
CELERY_BROKER_URL = REDIS_URL
