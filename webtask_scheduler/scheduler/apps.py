from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SchedulerConfig(AppConfig):
    name = "webtask_scheduler.scheduler"
    verbose_name = _("Timers")

    def ready(self) -> None:
        # Late: they need the settings and the models.
        from django.conf import settings

        from webtask_scheduler import __version__
        from webtask_scheduler.scheduler import receivers
        from webtask_scheduler.telemetry import tracing

        receivers.connect()
        if settings.TRACES_EXPORTERS:
            tracing.start(exporters=settings.TRACES_EXPORTERS, version=__version__)
