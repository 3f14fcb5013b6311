from django.apps import AppConfig


class UsersConfig(AppConfig):
    name = "webtask_scheduler.users"
    verbose_name = "Users"
