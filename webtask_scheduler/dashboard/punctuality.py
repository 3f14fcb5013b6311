"""`/punctuality`: how late calls began, and how they ended, over an hour, a day, a week or a month."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from webtask_scheduler.dashboard import charts, queries
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.templatetags.dash import word_of
from webtask_scheduler.dashboard.who import page, sees_service
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules import histogram

# A first attempt that begins within this time is on time.
PROMISE_SECONDS = 0.1


class Window(NamedTuple):
    name: str
    label: Any
    length: timedelta
    # Of one bar. Minutes are folded into hours after two days.
    step_seconds: int


WINDOWS = (
    Window("1h", gettext_lazy("1 hour"), timedelta(hours=1), 60),
    Window("24h", gettext_lazy("24 hours"), timedelta(hours=24), 1800),
    Window("7d", gettext_lazy("7 days"), timedelta(days=7), 4 * 3600),
    Window("30d", gettext_lazy("30 days"), timedelta(days=30), 24 * 3600),
)
HOUR = WINDOWS[0]


@page
@require_safe
def punctuality(request: HttpRequest) -> HttpResponse:
    """Show the lateness of first attempts, and the ends of deliveries, over a window."""
    if not sees_service(request):
        raise PermissionDenied
    window = next((one for one in WINDOWS if one.name == request.GET.get("window")), WINDOWS[1])
    late = queries.lateness_since(timezone.now() - window.length)
    total = sum(late)
    within = sum(count for bucket, count in enumerate(late) if histogram.bound_of(bucket) <= PROMISE_SECONDS)
    return show(
        request,
        "punctuality.html",
        title=_("Punctuality"),
        at="punctuality",
        window=window,
        windows=WINDOWS,
        total=total,
        share=share_of(within, total),
        percentiles=_percentiles(late),
        lateness=_lateness(late),
        bounds=[bound_text(histogram.bound_of(bucket)).removeprefix("≤ ") for bucket in range(histogram.BUCKETS)],
        outcomes=outcomes(window),
    )


def share_of(part: int, total: int) -> str:
    """Return a share in per cent that is 100 only if it is; empty for a share of nothing."""
    return f"{int(part * 1000 / total) / 10:g}" if total else ""


def _percentiles(late: Sequence[int]) -> list[tuple[str, float]]:
    """Return the percentiles and the bounds below which they are, in milliseconds."""
    found = []
    for percent in (50, 90, 99, 99.9):
        bucket = histogram.percentile(late, percent) if sum(late) else None
        if bucket is not None:
            found.append((f"{percent:g} %", histogram.bound_of(bucket) * 1000))
    return found


def _lateness(late: Sequence[int]) -> list[charts.Stack]:
    """Return the histogram as bars: on time in one colour, later in another."""
    bars = []
    for bucket, count in enumerate(late):
        bound = histogram.bound_of(bucket)
        state = "succeeded" if bound <= PROMISE_SECONDS else "late"
        bars.append((f"{bound_text(bound)}: {facts.shown_number(count)}", [(state, count)]))
    return charts.stacks(bars)


def bound_text(seconds: float) -> str:
    """Return the bound of a bucket in few characters."""
    if seconds == float("inf"):
        return "> 1 h"
    for length, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= length:
            return f"≤ {seconds / length:g} {unit}"
    return f"≤ {seconds * 1000:g} ms"


def outcomes(window: Window) -> list[charts.Stack]:
    """Return bars of how deliveries ended, one for each step of a window; the last is the present one."""
    step = window.step_seconds
    last = int(timezone.now().timestamp()) // step
    first = last - int(window.length.total_seconds()) // step + 1
    since = datetime.fromtimestamp(first * step, UTC)
    counted = {row["step"]: row for row in queries.outcomes_since(since, step_seconds=step)}
    bars = []
    for number in range(first, last + 1):
        row = counted.get(number, {})
        counts = [(state, row.get(state, 0)) for state in ("succeeded", "retrying", "failed", "missed")]
        said = " · ".join(f"{word_of(state)}: {facts.shown_number(count)}" for state, count in counts if count)
        bars.append((f"{datetime.fromtimestamp(number * step, UTC):%F %H:%M} UTC · {said or 0}", counts))
    return charts.stacks(bars)
