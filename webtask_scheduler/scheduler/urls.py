"""The timer routes, with and without a trailing slash: an API does not answer a POST with a redirect."""

from django.urls import re_path

from webtask_scheduler.scheduler.api.audit import AuditView
from webtask_scheduler.scheduler.api.bulk import BulksView, BulkView
from webtask_scheduler.scheduler.api.operations import (
    AttemptsView,
    DeliveriesView,
    PauseView,
    ReplayView,
    ResumeView,
    RunView,
)
from webtask_scheduler.scheduler.api.preview import PreviewView
from webtask_scheduler.scheduler.api.secrets import SecretsView, SecretView
from webtask_scheduler.scheduler.api.timers import BatchView, TimersView, TimerView

# Any text is an id here, so that a malformed one is answered with problem details too.
_ONE = r"^timer/(?P<id>[^/]+)"

urlpatterns = [
    re_path(r"^timer/?$", TimersView.as_view(), name="timers"),
    re_path(r"^timer/batch/?$", BatchView.as_view(), name="batch"),
    re_path(r"^timer/preview/?$", PreviewView.as_view(), name="preview"),
    re_path(r"^timer/bulk/?$", BulksView.as_view(), name="bulks"),
    re_path(r"^timer/bulk/(?P<id>[^/]+)/?$", BulkView.as_view(), name="bulk"),
    re_path(rf"{_ONE}/?$", TimerView.as_view(), name="timer"),
    re_path(rf"{_ONE}/run/?$", RunView.as_view(), name="run"),
    re_path(rf"{_ONE}/pause/?$", PauseView.as_view(), name="pause"),
    re_path(rf"{_ONE}/resume/?$", ResumeView.as_view(), name="resume"),
    re_path(rf"{_ONE}/replay/?$", ReplayView.as_view(), name="replay"),
    re_path(rf"{_ONE}/deliveries/?$", DeliveriesView.as_view(), name="deliveries"),
    re_path(rf"{_ONE}/attempts/?$", AttemptsView.as_view(), name="attempts"),
    re_path(r"^audit/?$", AuditView.as_view(), name="audit"),
    re_path(r"^signing-secret/?$", SecretsView.as_view(), name="secrets"),
    re_path(r"^signing-secret/(?P<id>[^/]+)/?$", SecretView.as_view(), name="secret"),
]
