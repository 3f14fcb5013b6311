"""The service's own settings with one view in its place: what a first version of such a service looks like.

Without the scheduler's app, so without its receivers and its index on the stock table, and with the middleware of a new
Django project.
"""

from config.settings.local import *  # noqa: F403 - settings build on settings
from config.settings.local import INSTALLED_APPS as _APPS

INSTALLED_APPS = [name for name in _APPS if name not in ("webtask_scheduler.scheduler", "webtask_scheduler.dashboard")]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
REST_FRAMEWORK = {}
ROOT_URLCONF = "benchmarks.plain_urls"
