from django.apps import AppConfig


class SchedulerConfig(AppConfig):
    name = "webtask_scheduler.scheduler"
    verbose_name = "Timers"

    def ready(self) -> None:
        from webtask_scheduler.scheduler import receivers

        receivers.connect()
