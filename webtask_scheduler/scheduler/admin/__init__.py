"""What Django's admin finds: each module registers its pages."""

from webtask_scheduler.scheduler.admin.pages import pages as pages
