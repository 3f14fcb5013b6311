"""The pages. Their application's name is what the audit log knows them by."""

from django.urls import path

from webtask_scheduler.dashboard import (
    dead,
    demo,
    exporting,
    login,
    new,
    operations,
    overview,
    punctuality,
    system,
    ticked,
    timer,
    timers,
)

app_name = "dashboard"

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("timers", timers.timers, name="timers"),
    path("timers/new", new.new, name="new"),
    path("timers/act", ticked.act, name="ticked"),
    path("timers/export.csv", exporting.as_csv, name="export-csv"),
    path("timers/export.jsonl", exporting.as_json_lines, name="export-jsonl"),
    path("timers/preview", new.preview, name="preview"),
    path("timers/<uuid:timer_id>", timer.timer, name="timer"),
    path("timers/<uuid:timer_id>/<str:action>", timer.act, name="act"),
    path("dead", dead.dead, name="dead"),
    path("dead/<str:action>", dead.act, name="dead-act"),
    path("operations", operations.operations, name="operations"),
    path("operations/count", operations.count, name="count"),
    path("operations/<uuid:operation_id>", operations.operation, name="operation"),
    path("operations/<uuid:operation_id>/begin", operations.begin, name="begin"),
    path("hosts", system.hosts, name="hosts"),
    path("punctuality", punctuality.punctuality, name="punctuality"),
    path("system", system.system, name="system"),
    path("login", login.LogIn.as_view(), name="login"),
    path("logout", login.LogOut.as_view(), name="logout"),
    path("demo/receiver", demo.receiver, name="demo"),
    path("favicon.ico", overview.favicon, name="favicon"),
]
