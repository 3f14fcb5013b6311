"""All routes: the API under its version and its short name, its description, the admin, the probes, metrics."""

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

urlpatterns: list[object] = [
    path("api/v1/", include("config.api_router")),
    re_path("^api/schema/?$", SpectacularAPIView.as_view(), name="schema"),
    # No metadata: the page's renderer has no template for it.
    re_path("^api/docs/?$", SpectacularSwaggerView.as_view(url_name="schema", metadata_class=None), name="docs"),
    path("", include("webtask_scheduler.scheduler.urls")),
    path("", RedirectView.as_view(pattern_name="docs")),
    path("", include("webtask_scheduler.scheduler.api.probes")),
    path("", include("webtask_scheduler.scheduler.api.metrics")),
    path("admin/", admin.site.urls),
]

handler400 = "webtask_scheduler.scheduler.api.problems.bad_request"
handler404 = "webtask_scheduler.scheduler.api.problems.not_found"
handler500 = "webtask_scheduler.scheduler.api.problems.server_error"
