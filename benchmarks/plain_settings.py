"""The service's own settings with one view in its place: what a first version of such a service looks like.

Without the scheduler's app, so without its receivers and its index on the stock table.
"""

from config.settings.local import *  # noqa: F403 - settings build on settings
from config.settings.local import INSTALLED_APPS as _APPS

INSTALLED_APPS = [name for name in _APPS if name != "webtask_scheduler.scheduler"]
ROOT_URLCONF = "benchmarks.plain_urls"
