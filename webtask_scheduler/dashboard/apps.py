from django.apps import AppConfig


class DashboardConfig(AppConfig):
    name = "webtask_scheduler.dashboard"
