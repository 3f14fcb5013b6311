"""The timer routes, and the scope that each method asks for.

With and without a trailing slash: an API does not answer a POST with a redirect.
"""

from django.urls import URLPattern, re_path
from rest_framework.views import APIView

from webtask_scheduler.access.models import Scope
from webtask_scheduler.scheduler.api.audit import AuditView
from webtask_scheduler.scheduler.api.bulk import BulkStopView, BulksView, BulkView
from webtask_scheduler.scheduler.api.channels import ChannelsView, ChannelTestView, ChannelView, NotificationsView
from webtask_scheduler.scheduler.api.keys import KeysView, KeyView
from webtask_scheduler.scheduler.api.operations import (
    AttemptsView,
    DeliveriesView,
    DismissView,
    PauseView,
    ReplayView,
    ResumeView,
    RunView,
    TryNowView,
)
from webtask_scheduler.scheduler.api.preview import PreviewView
from webtask_scheduler.scheduler.api.secrets import SecretsView, SecretView
from webtask_scheduler.scheduler.api.timers import BatchView, TimersView, TimerView

READ, WRITE, BULK = Scope.TIMERS_READ, Scope.TIMERS_WRITE, Scope.TIMERS_BULK
SECRETS, ADMIN = Scope.SECRETS, Scope.ADMIN


def _route(path: str, view: type[APIView], name: str, **scopes: Scope) -> URLPattern:
    return re_path(rf"^{path}/?$", view.as_view(scopes=scopes), name=name)


# Any text is an id here, so that a malformed one is answered with problem details too.
_ID = r"(?P<id>[^/]+)"

urlpatterns = [
    _route("timer", TimersView, "timers", GET=READ, POST=WRITE),
    _route("timer/batch", BatchView, "batch", POST=WRITE),
    # It stores nothing.
    _route("timer/preview", PreviewView, "preview", POST=READ),
    _route("timer/bulk", BulksView, "bulks", GET=BULK, POST=BULK),
    _route(f"timer/bulk/{_ID}", BulkView, "bulk", GET=BULK),
    _route(f"timer/bulk/{_ID}/stop", BulkStopView, "bulk-stop", POST=BULK),
    _route(f"timer/{_ID}", TimerView, "timer", GET=READ, PATCH=WRITE, DELETE=WRITE),
    _route(f"timer/{_ID}/run", RunView, "run", POST=WRITE),
    _route(f"timer/{_ID}/try-now", TryNowView, "try_now", POST=WRITE),
    _route(f"timer/{_ID}/pause", PauseView, "pause", POST=WRITE),
    _route(f"timer/{_ID}/resume", ResumeView, "resume", POST=WRITE),
    _route(f"timer/{_ID}/replay", ReplayView, "replay", POST=WRITE),
    _route(f"timer/{_ID}/dismiss", DismissView, "dismiss", POST=WRITE),
    _route(f"timer/{_ID}/deliveries", DeliveriesView, "deliveries", GET=READ),
    _route(f"timer/{_ID}/attempts", AttemptsView, "attempts", GET=READ),
    _route("audit", AuditView, "audit", GET=ADMIN),
    _route("signing-secret", SecretsView, "secrets", GET=SECRETS, POST=SECRETS),
    _route(f"signing-secret/{_ID}", SecretView, "secret", DELETE=SECRETS),
    _route("notification-channel", ChannelsView, "channels", GET=SECRETS, POST=SECRETS),
    _route(f"notification-channel/{_ID}", ChannelView, "channel", PATCH=SECRETS, DELETE=SECRETS),
    _route(f"notification-channel/{_ID}/test", ChannelTestView, "channel-test", POST=SECRETS),
    _route("notification", NotificationsView, "notifications", GET=SECRETS),
    _route("api-key", KeysView, "keys", GET=ADMIN, POST=ADMIN),
    _route(f"api-key/{_ID}", KeyView, "key", DELETE=ADMIN),
]
