"""All routes: the API under its version and its short name, its description, pages, the admin, probes, metrics."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

urlpatterns: list[object] = [
    path("api/v1/", include("config.api_router")),
    re_path("^api/schema/?$", SpectacularAPIView.as_view(), name="schema"),
    # Its script is an answer of its own, because the Content-Security-Policy runs nothing inline. No metadata: the
    # page's renderer has no template for it.
    re_path(
        "^api/docs/?$",
        SpectacularSwaggerSplitView.as_view(url_name="schema", template_name="swagger.html", metadata_class=None),
        name="docs",
    ),
    path("", include("webtask_scheduler.scheduler.urls")),
    path("", include("webtask_scheduler.dashboard.urls")),
    path("", include("webtask_scheduler.scheduler.api.probes")),
    path("", include("webtask_scheduler.scheduler.api.metrics")),
    path(settings.ADMIN_PATH, admin.site.urls),
    # Where the admin's choice of a language is sent.
    path("i18n/", include("django.conf.urls.i18n")),
]

handler400 = "webtask_scheduler.pages.bad_request"
handler403 = "webtask_scheduler.pages.permission_denied"
handler404 = "webtask_scheduler.pages.not_found"
handler500 = "webtask_scheduler.pages.server_error"
