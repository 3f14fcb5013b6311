"""The versioned API: `/api/v1/`."""

from django.urls import include, path

app_name = "api"
urlpatterns = [path("scheduler/", include("webtask_scheduler.scheduler.urls"))]
