"""The settings that the documentation of Celery and django-celery-beat asks for, and nothing else."""

import os
from urllib.parse import urlsplit

_database = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _database.hostname,
        "PORT": _database.port,
        "USER": _database.username,
        "PASSWORD": _database.password,
        "NAME": _database.path.lstrip("/"),
    }
}
SECRET_KEY = "benchmark"  # noqa: S105 - of a service that is measured and reached by nobody
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "benchmarks.peer_stock"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CELERY_BROKER_URL = os.environ["REDIS_URL"]
CELERY_TIMEZONE = "UTC"
