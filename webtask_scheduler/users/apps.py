from django.apps import AppConfig
from django.contrib.admin import apps as admin
from django.utils.translation import gettext_lazy as _


class UsersConfig(AppConfig):
    name = "webtask_scheduler.users"
    verbose_name = _("Users")

    def ready(self) -> None:
        # Late: it needs the models.
        from webtask_scheduler.users import auditing
        from webtask_scheduler.users.models import User

        auditing.connect(User)


class AdminConfig(admin.AdminConfig):
    """The admin, with the site that `site` has."""

    default = False
    default_site = "webtask_scheduler.users.site.Site"
