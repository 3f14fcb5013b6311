"""Loads the admin's pages: `stock` and `pages` register themselves. They change timers only through `services`, or
through a row's own `save()`, which `receivers` applies to the timer.
"""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler.admin import audit as audit
from webtask_scheduler.scheduler.admin import limits as limits
from webtask_scheduler.scheduler.admin import notices as notices
from webtask_scheduler.scheduler.admin import pages as pages
from webtask_scheduler.scheduler.admin import stock as stock

admin.site.site_header = _("Webtask scheduler")
admin.site.site_title = _("Webtask scheduler")
admin.site.index_title = _("Timers, tasks and users")
