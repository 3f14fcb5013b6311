"""`/punctuality`: how late calls began, whether that keeps the promise, and how they ended, over an hour to a month."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
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

# Percentiles that are drawn over time, in per cent; and times that are marked beside them, in seconds.
DRAWN = (50, 95, 99)
MARKS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 3600.0)
# Minutes, or folded hours, that are named as the worst.
WORST = 10
# A beat that led for less than this share of a minute was away for the rest.
LED_SHARE = 0.75
# By then every process has stored what it counted.
_TOLD_AFTER_SECONDS = 10.0


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
    since = timezone.now() - window.length
    late = queries.lateness_since(since)
    total = sum(late)
    within = within_of(late)
    counted = counts_of(window)
    return show(
        request,
        "punctuality.html",
        title=_("Punctuality"),
        at="punctuality",
        window=window,
        windows=WINDOWS,
        total=total,
        share=share_of(within, total),
        bound=promise_text(),
        budget=_budget(within, total),
        burnt=_burnt(window, counted, total=total),
        stages=_stages(since),
        worst=_worst(since),
        percentiles=_percentiles(late),
        lateness=_lateness(late),
        levels=levels(window, counted),
        bounds=[bound_text(histogram.bound_of(bucket)).removeprefix("≤ ") for bucket in range(histogram.BUCKETS)],
        outcomes=outcomes(window, counted),
    )


def within_of(late: Sequence[int]) -> int:
    """Return how many of a histogram of first attempts began within the promised time."""
    return sum(late[: histogram.bucket_of(settings.WEBTASK_SLO_SECONDS) + 1])


def is_kept(late: Sequence[int]) -> bool:
    """Return whether a histogram of first attempts keeps the promise; an empty one does."""
    return within_of(late) >= sum(late) * settings.WEBTASK_SLO_PERCENT / 100


def promise_text() -> str:
    """Return the promised time in few characters."""
    return bound_text(settings.WEBTASK_SLO_SECONDS).removeprefix("≤ ")


def _budget(within: int, total: int) -> dict[str, Any]:
    """Return how much of what may be late was late: the error budget."""
    allowed = total * (100 - settings.WEBTASK_SLO_PERCENT) / 100
    late = total - within
    left = 100 * (allowed - late) / allowed if allowed else 100.0
    return {
        "percent": f"{settings.WEBTASK_SLO_PERCENT:g}",
        "is_kept": late <= allowed,
        "late": late,
        "allowed": int(allowed),
        "left": f"{max(0.0, left):.0f}",
        # More than all of it.
        "over": f"{late / allowed:.1f}" if allowed and late > allowed else "",
    }


def _burnt(window: Window, counted: Mapping[int, Mapping[str, int]], *, total: int) -> list[charts.Stack]:
    """Return bars of how much of the window's budget each step of it took."""
    allowed = total * (100 - settings.WEBTASK_SLO_PERCENT) / 100
    bars = []
    for number in _steps(window)[1]:
        late = counted.get(number, {}).get("late", 0)
        share = f" · {100 * late / allowed:.0f} %" if allowed and late else ""
        bars.append((f"{_step_text(number, window)} · {facts.shown_number(late)}{share}", [("late", late)]))
    return charts.stacks(bars)


def _stages(since: datetime) -> list[tuple[str, float]]:
    """Return the mean times of a delivery's way, in milliseconds; of what was not counted there is none."""
    found = queries.stages_since(since)
    means = []
    for label, seconds, count in (
        (_("from its moment to the claim"), "claim_seconds", "claims"),
        (_("from its moment to the message"), "publish_seconds", "publishes"),
        (_("from its moment to the call"), "late_seconds", "calls"),
        (_("the call itself"), "duration_seconds", "calls"),
    ):
        if found[count]:
            means.append((label, 1000 * found[seconds] / found[count]))
    return means


def _worst(since: datetime) -> list[dict[str, Any]]:
    """Return the times with the most late calls, with what was counted beside them."""
    rows = queries.worst_since(since, within_seconds=settings.WEBTASK_SLO_SECONDS, most=WORST)
    for row in rows:
        said = [
            text % {"count": facts.shown_number(count)}
            for text, count in (
                (_("claimed late: %(count)s"), row["claimed_late"]),
                (_("sent to a worker late: %(count)s"), row["published_late"]),
                (_("put off for want of a place: %(count)s"), row["put_off"]),
                (_("claims that ran out: %(count)s"), row["reclaimed"]),
            )
            if count
        ]
        is_over = (timezone.now() - row["begins_at"]).total_seconds() > row["seconds"] + _TOLD_AFTER_SECONDS
        if is_over and row["led_seconds"] < LED_SHARE * row["seconds"]:
            away = row["seconds"] - row["led_seconds"]
            said.append(_("no beat led for %(seconds)s s") % {"seconds": f"{away:.0f}"})
        row["causes"] = said or [_("claimed and sent in time: workers began it late")]
        row["is_hour"] = row["seconds"] > 60  # noqa: PLR2004 - a minute
    return rows


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
        state = "succeeded" if bound <= settings.WEBTASK_SLO_SECONDS else "late"
        bars.append((f"{bound_text(bound)}: {facts.shown_number(count)}", [(state, count)]))
    return charts.stacks(bars)


class Levels(NamedTuple):
    """Percentiles of lateness over time: a drawing, and the same as a table."""

    drawn: charts.Levels
    # The percentiles with their areas, in the order in which they are drawn.
    areas: list[tuple[int, str]]
    # When a step began, its first attempts, and the bound of each percentile of DRAWN; no bounds where there was none.
    steps: list[tuple[str, int, list[str]]]


def levels(window: Window, counted: Mapping[int, Mapping[str, Any]]) -> Levels | None:
    """Return the percentiles of first attempts in each step of a window; None where there was none in all of it."""
    columns: list[tuple[str, list[float]]] = []
    steps: list[tuple[str, int, list[str]]] = []
    for number in _steps(window)[1]:
        late: Sequence[int] = counted.get(number, {}).get("first_late", ())
        bounds = _bounds(late)
        said = [bound_text(bound) for bound in bounds]
        at = _step_text(number, window)
        steps.append((at, sum(late), said))
        calls = f"{_('Calls')}: {facts.shown_number(sum(late))}"
        columns.append((" · ".join([at, *_late_said(bounds), calls]), bounds))
    if not any(bounds for _label, bounds in columns):
        return None
    marks = [(mark, bound_text(mark).removeprefix("≤ ")) for mark in MARKS]
    bound = settings.WEBTASK_SLO_SECONDS, promise_text()
    drawn = charts.levels(columns, marks=marks, bound=bound)
    return Levels(drawn, list(zip(reversed(DRAWN), drawn.areas, strict=True)), steps)


def _bounds(late: Sequence[int]) -> list[float]:
    """Return the bounds of the percentiles of DRAWN, in seconds; nothing for an empty histogram."""
    buckets = [histogram.percentile(late, percent) for percent in DRAWN]
    return [histogram.bound_of(bucket) for bucket in buckets if bucket is not None]


def _late_said(bounds: Sequence[float]) -> list[str]:
    """Return what is said of the percentiles of DRAWN, by their bounds."""
    return [f"{percent} % {bound_text(bound)}" for percent, bound in zip(DRAWN, bounds, strict=False)]


def bound_text(seconds: float) -> str:
    """Return the bound of a bucket in few characters."""
    if seconds == float("inf"):
        return "> 1 h"
    for length, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= length:
            return f"≤ {seconds / length:g} {unit}"
    return f"≤ {seconds * 1000:g} ms"


def counts_of(window: Window) -> dict[int, dict[str, Any]]:
    """Return what was counted in each step of a window by the step's number."""
    rows = queries.steps_since(
        _steps(window)[0], step_seconds=window.step_seconds, within_seconds=settings.WEBTASK_SLO_SECONDS
    )
    return {row["step"]: row for row in rows}


def outcomes(
    window: Window, counted: Mapping[int, Mapping[str, Any]], *, with_lateness: bool = False
) -> list[charts.Stack]:
    """Return bars of how deliveries ended, one for each step of a window; the last is the present one.

    With `with_lateness` each says the percentiles of first attempts too.
    """
    numbers = _steps(window)[1]
    bars = []
    for number in numbers:
        row = counted.get(number, {})
        counts = [(state, row.get(state, 0)) for state in ("succeeded", "retrying", "failed", "missed")]
        said = " · ".join(f"{word_of(state)}: {facts.shown_number(count)}" for state, count in counts if count)
        late = _late_said(_bounds(row.get("first_late", ()))) if with_lateness else []
        bars.append((" · ".join([_step_text(number, window), said or "0", *late]), counts))
    return [
        bar._replace(link=due_link(number * window.step_seconds, window.step_seconds)) if bar.parts else bar
        for number, bar in zip(numbers, charts.stacks(bars), strict=True)
    ]


def due_link(begin: int, seconds: int, **more: str) -> str:
    """Return the address of the list of timers that are due from a second since the epoch on, for so many seconds."""
    due = (datetime.fromtimestamp(at, UTC) for at in (begin, begin + seconds))
    names = zip(("due_from", "due_to"), (f"{at:%FT%TZ}" for at in due), strict=True)
    return f"{reverse('dashboard:timers')}?{urlencode(dict(names) | more, safe=':')}"


def _steps(window: Window) -> tuple[datetime, range]:
    """Return when the first step of a window begins, and the numbers of its steps since the epoch."""
    step = window.step_seconds
    last = int(timezone.now().timestamp()) // step
    first = last - int(window.length.total_seconds()) // step + 1
    return datetime.fromtimestamp(first * step, UTC), range(first, last + 1)


def _step_text(number: int, window: Window) -> str:
    """Return when a step began; of the last hour without the day, which is said sixty times."""
    shape = "%H:%M UTC" if window is HOUR else "%F %H:%M UTC"
    return f"{datetime.fromtimestamp(number * window.step_seconds, UTC):{shape}}"
