"""The test run: fast hashes and a Redis database of its own, everything else as shipped."""

from urllib.parse import urlsplit, urlunsplit

from config.settings.local import *
from config.settings.local import REDIS_URL as SHIPPED_REDIS_URL

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tests empty it, and their messages must not reach the workers of a service that runs on the same server.
REDIS_URL = urlunsplit(urlsplit(SHIPPED_REDIS_URL)._replace(path="/15"))
CELERY_BROKER_URL = REDIS_URL
