from typing import Any

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class AccessConfig(AppConfig):
    name = "webtask_scheduler.access"
    verbose_name = _("Access")

    def ready(self) -> None:
        # Late: it needs the models.
        from webtask_scheduler.users.models import user_deleted

        user_deleted.connect(_revoke)


def _revoke(user: Any, **_: Any) -> None:
    from webtask_scheduler.access import calendars, keys
    from webtask_scheduler.access.models import ApiKey

    keys.revoke(ApiKey.objects.filter(owner=user))
    calendars.remove(user.pk)
