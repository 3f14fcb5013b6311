"""The pages. Their application's name is what the audit log knows them by."""

from django.urls import path

from webtask_scheduler.dashboard import (
    dead,
    demo,
    edit,
    importing,
    login,
    new,
    operations,
    overview,
    punctuality,
    settings,
    system,
    timer,
    timers,
    upcoming,
)

app_name = "dashboard"

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("timers", timers.timers, name="timers"),
    path("timers/new", new.new, name="new"),
    path("timers/preview", new.preview, name="preview"),
    path("timers/<uuid:timer_id>", timer.timer, name="timer"),
    path("timers/<uuid:timer_id>/edit", edit.edit, name="edit"),
    path("timers/<uuid:timer_id>/edit/preview", edit.preview, name="edit_preview"),
    path("timers/<uuid:timer_id>/<str:action>", timer.act, name="act"),
    path("dead", dead.dead, name="dead"),
    path("operations", operations.operations, name="operations"),
    path("operations/count", operations.count, name="count"),
    path("operations/<uuid:operation_id>", operations.operation, name="operation"),
    path("operations/<uuid:operation_id>/begin", operations.begin, name="begin"),
    path("hosts", system.hosts, name="hosts"),
    path("punctuality", punctuality.punctuality, name="punctuality"),
    path("system", system.system, name="system"),
    path("upcoming", upcoming.upcoming, name="upcoming"),
    path("import", importing.imports, name="import"),
    path("settings", settings.settings, name="settings"),
    path("settings/secrets", settings.add_secret, name="add_secret"),
    path("settings/secrets/<int:secret_id>/delete", settings.delete_secret, name="delete_secret"),
    path("settings/keys", settings.make_key, name="make_key"),
    path("settings/keys/<int:key_id>/revoke", settings.revoke_key, name="revoke_key"),
    path("settings/display", settings.display, name="display"),
    path("login", login.LogIn.as_view(), name="login"),
    path("logout", login.LogOut.as_view(), name="logout"),
    path("demo/receiver", demo.receiver, name="demo"),
    path("favicon.ico", overview.favicon, name="favicon"),
]
