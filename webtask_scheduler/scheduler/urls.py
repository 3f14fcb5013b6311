"""The timer routes, with and without a trailing slash: an API does not answer a POST with a redirect."""

from django.urls import re_path

from webtask_scheduler.scheduler.views import BatchView, TimersView, TimerView

urlpatterns = [
    re_path(r"^timer/?$", TimersView.as_view(), name="timers"),
    re_path(r"^timer/batch/?$", BatchView.as_view(), name="batch"),
    # Any text is an id here, so that a malformed one is answered with problem details too.
    re_path(r"^timer/(?P<id>[^/]+)/?$", TimerView.as_view(), name="timer"),
]
