"""The timer routes, with and without a trailing slash: an API does not answer a POST with a redirect."""

from django.urls import re_path

from webtask_scheduler.scheduler.api import views

# Any text is an id here, so that a malformed one is answered with problem details too.
_ONE = r"^timer/(?P<id>[^/]+)"

urlpatterns = [
    re_path(r"^timer/?$", views.TimersView.as_view(), name="timers"),
    re_path(r"^timer/batch/?$", views.BatchView.as_view(), name="batch"),
    re_path(r"^timer/preview/?$", views.PreviewView.as_view(), name="preview"),
    re_path(r"^timer/bulk/?$", views.BulksView.as_view(), name="bulks"),
    re_path(r"^timer/bulk/(?P<id>[^/]+)/?$", views.BulkView.as_view(), name="bulk"),
    re_path(rf"{_ONE}/?$", views.TimerView.as_view(), name="timer"),
    re_path(rf"{_ONE}/run/?$", views.RunView.as_view(), name="run"),
    re_path(rf"{_ONE}/pause/?$", views.PauseView.as_view(), name="pause"),
    re_path(rf"{_ONE}/resume/?$", views.ResumeView.as_view(), name="resume"),
    re_path(rf"{_ONE}/replay/?$", views.ReplayView.as_view(), name="replay"),
    re_path(rf"{_ONE}/deliveries/?$", views.DeliveriesView.as_view(), name="deliveries"),
    re_path(rf"{_ONE}/attempts/?$", views.AttemptsView.as_view(), name="attempts"),
    re_path(r"^signing-secret/?$", views.SecretsView.as_view(), name="secrets"),
    re_path(r"^signing-secret/(?P<id>[^/]+)/?$", views.SecretView.as_view(), name="secret"),
]
