"""Formats timers, deliveries and attempts for the admin: one function for each kind of value.

Times, ids and addresses run from left to right also on a page that runs from right to left, so they are in a `bdi`.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias

from django.contrib import admin
from django.contrib.admin.templatetags.admin_urls import admin_urlname
from django.db.models import QuerySet
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.functional import lazy
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext, pgettext
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from webtask_scheduler.scheduler import sealing
from webtask_scheduler.scheduler.facts import shown_number
from webtask_scheduler.scheduler.models import (
    Attempt,
    Delivery,
    State,
    Timer,
)
from webtask_scheduler.scheduler.services import reasons

NOTHING = "-"
# A number in a text that is made before a language is known.
lazy_number = lazy(shown_number, str)
# Rows of a table inside a page.
INLINE_ROWS = 50
URL_SHOWN = 60
# The longest id that is shown whole.
ID_SHOWN = 24
# The shape of each state; the word beside it and a colour of the style sheet say the same.
SHAPES = {
    State.SCHEDULED: "○",
    State.CLAIMED: "◔",
    State.RUNNING: "●",
    State.PAUSED: "‖",
    State.HELD: "■",
    State.SUCCEEDED: "✓",
    State.FAILED: "✕",
    State.CANCELLED: "⊘",
    State.MISSED: "◌",
}


def shown_schedule(timer: Timer) -> str:
    """Return the schedule of a timer in words."""
    if timer.cron:
        return f"{timer.cron} ({timer.timezone})"
    if timer.every_seconds is None:
        return gettext("once")
    return gettext("every %(period)s") % {"period": shown_period(timer.every_seconds)}


def shown_period(seconds: float) -> str:
    """Return a period as people say it: 1 h 30 min."""
    minutes, second = divmod(round(seconds, 6), 60)
    hours, minute = divmod(int(minutes), 60)
    days, hour = divmod(hours, 24)
    parts = [
        (days, pgettext("days", "%(number)s d")),
        (hour, pgettext("hours", "%(number)s h")),
        (minute, pgettext("minutes", "%(number)s min")),
        (round(second, 6), pgettext("seconds", "%(number)s s")),
    ]
    return " ".join(text % {"number": f"{number:.15g}"} for number, text in parts if number)


def shown_bounds(timer: Timer) -> str:
    """Return a recurring timer's first and last time and number of occurrences; empty if it has no bounds."""
    parts = []
    if timer.starts_at:
        parts.append(gettext("from %(time)s") % {"time": f"{timezone.localtime(timer.starts_at):%Y-%m-%d %H:%M:%S}"})
    if timer.ends_at:
        parts.append(gettext("until %(time)s") % {"time": f"{timezone.localtime(timer.ends_at):%Y-%m-%d %H:%M:%S}"})
    if timer.max_occurrences:
        times = ngettext("%(count)s time at the most", "%(count)s times at the most", timer.max_occurrences)
        parts.append(times % {"count": shown_number(timer.max_occurrences)})
    return pgettext("between the parts of a list", ", ").join(parts)


def shown_status(delivery: Delivery | None) -> SafeString | str:
    if delivery is None:
        return NOTHING
    state = State(delivery.state)
    if state == State.RUNNING and delivery.cancel_requested_at:
        return shown_state(state.value, SHAPES[state], gettext("Cancelling"))
    if state == State.SCHEDULED and delivery.attempts > delivery.attempts_before:
        return shown_state("retrying", "↻", gettext("Retrying"))
    return shown_state(state.value, SHAPES[state], state.label)


def shown_state(name: str, shape: str, word: object) -> SafeString:
    text = '<span class="wt-state" data-state="{}"><i aria-hidden="true">{}</i> {}</span>'
    return format_html(text, name, shape, word)


def shown_time(moment: datetime | None, *, brief: bool = False) -> SafeString | str:
    """Return a time to the millisecond, or to the second if it is to be brief, with the zone that it is in."""
    if moment is None:
        return NOTHING
    local = timezone.localtime(moment)
    fraction = "" if brief else f".{local.microsecond // 1000:03d}"
    text = f"{local:%Y-%m-%d %H:%M:%S}{fraction} {local:%Z}"
    return format_html('<bdi dir="ltr" class="wt-time" title="{}">{}</bdi>', moment.isoformat(), text)


def shown_id(pk: object) -> SafeString:
    """Return the beginning of an id, by which it can be searched for, and its end."""
    text = str(pk)
    short = f"{text[:13]}…{text[-4:]}" if len(text) > ID_SHOWN else text
    return format_html('<bdi dir="ltr"><span class="wt-id" title="{}">{}</span></bdi>', text, short)


def shown_name(timer: Timer) -> SafeString:
    """Return a timer's name, if it has one, above its short id."""
    short = shown_id(timer.pk)
    return format_html('<span class="wt-name">{}</span>{}', timer.name, short) if timer.name else short


def next_attempt(delivery: Delivery) -> SafeString | str:
    """Return when a delivery is called next, as the API says it: of one that waits only."""
    return shown_time(delivery.next_attempt_at) if delivery.state == State.SCHEDULED else NOTHING


def reason_of(timer: Timer, delivery: Delivery | None, attempt: Attempt | None) -> str:
    """Return why a timer has not been called successfully, in the sentence of the API."""
    if delivery is None:
        return NOTHING
    is_gone = delivery.pk in reasons.paused_by_gone([delivery])
    return reasons.reason(timer.host, delivery, now=timezone.now(), last=attempt, is_gone=is_gone) or NOTHING


def shown_lateness(attempt: Attempt | None) -> str:
    return NOTHING if attempt is None else formats.number_format(attempt.lateness_ms, 1)


def shown_url(web_url: str) -> SafeString:
    """Return the beginning of a URL without its user-info, broken where the column ends."""
    text = sealing.shown_url(web_url)
    text = text if len(text) <= URL_SHOWN else text[: URL_SHOWN - 1] + "…"
    return format_html('<bdi dir="ltr" class="wt-url">{}</bdi>', text)


def shown_json(data: Any) -> SafeString:
    text = json.dumps(data, indent=2, ensure_ascii=False)[:20_000]
    return format_html('<pre dir="ltr" class="wt-json">{}</pre>', text)


Linked: TypeAlias = Timer | Delivery | PeriodicTask | ClockedSchedule | CrontabSchedule | IntervalSchedule


def link(to: Linked, text: str, *, title: str = "") -> SafeString:
    address = reverse(admin_urlname(to._meta, "change"), args=[to.pk])  # type: ignore[arg-type]  # noqa: SLF001 - Django means it so
    return format_html('<a href="{}" title="{}">{}</a>', address, title, text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> SafeString | str:
    if not rows:
        return empty
    cells = [[format_html_join("", "<td>{}</td>", [(cell,) for cell in row])] for row in rows]
    return format_html(
        '<div class="wt-wide"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        format_html_join("", "<th>{}</th>", [(name,) for name in head]),
        format_html_join("", "<tr>{}</tr>", cells),
    )


def deliveries_table(timer: Timer) -> SafeString | str:
    deliveries = Delivery.objects.filter(timer=timer).order_by("-number")[:INLINE_ROWS]
    return table(
        [
            gettext("Delivery"),
            gettext("Kind"),
            gettext("Due"),
            gettext("Status"),
            gettext("Attempts"),
            gettext("Next attempt"),
            gettext("Ended"),
        ],
        [
            [
                link(delivery, shown_id(delivery.pk)),
                shown_kind(delivery),
                shown_time(delivery.due_at),
                shown_status(delivery),
                delivery.attempts,
                next_attempt(delivery),
                shown_time(delivery.finished_at),
            ]
            for delivery in deliveries
        ],
        empty=gettext("None."),
    )


def shown_kind(delivery: Delivery) -> str:
    if delivery.replayed_at:
        return gettext("replayed")
    return gettext("run now") if delivery.extra else gettext("promised")


def attempts_table(attempts: "QuerySet[Attempt]") -> SafeString | str:
    """Return a table of the newest of these attempts, with the receiver's answers."""
    return table(
        [
            gettext("Started"),
            gettext("No."),
            gettext("Lateness (ms)"),
            gettext("Took (ms)"),
            gettext("Status code"),
            gettext("Error"),
            gettext("Message and answer"),
        ],
        [
            [
                shown_time(attempt.started_at),
                link(
                    attempt.delivery,
                    str(attempt.number),
                    title=gettext("Delivery %(id)s") % {"id": attempt.delivery_id},
                ),
                shown_lateness(attempt),
                NOTHING if attempt.duration_ms is None else attempt.duration_ms,
                attempt.status_code or NOTHING,
                attempt.get_error_display() if attempt.error else NOTHING,
                " ".join(part for part in (attempt.message, attempt.excerpt[:200]) if part) or NOTHING,
            ]
            for attempt in attempts.select_related("delivery").order_by("-pk")[:INLINE_ROWS]
        ],
        empty=gettext("None yet."),
    )


class TimerColumns:
    """Columns that a list of timers and a list of their PeriodicTasks share; rows come `with_latest`."""

    def _timer(self, row: Any) -> Timer | None:
        raise NotImplementedError

    def _delivery(self, row: Any) -> Delivery | None:
        timer = self._timer(row)
        return next(iter(getattr(timer, "promised", [])), None)

    def _attempt(self, row: Any) -> Attempt | None:
        return next(iter(getattr(self._delivery(row), "latest", [])), None)

    @admin.display(description=_("schedule"))
    def schedule_shown(self, row: Any) -> str:
        timer = self._timer(row)
        return str(row.scheduler) if timer is None else shown_schedule(timer)

    @admin.display(description=_("URL"))
    def url(self, row: Any) -> SafeString | str:
        timer = self._timer(row)
        return (
            NOTHING if timer is None else link(timer, shown_url(timer.web_url), title=sealing.shown_url(timer.web_url))
        )

    @admin.display(description=_("due"))
    def due(self, row: Any) -> SafeString | str:
        timer, delivery = self._timer(row), self._delivery(row)
        shown = NOTHING if delivery is None else shown_time(delivery.due_at, brief=True)
        if timer is not None and not timer.recurring:
            return shown
        more = format_html('<span class="wt-more">{}</span>', self.schedule_shown(row))
        return more if timer is None else format_html("{}{}", shown, more)

    @admin.display(description=_("status"))
    def status(self, row: Any) -> SafeString | str:
        return shown_status(self._delivery(row))

    @admin.display(description=_("attempts"))
    def attempts(self, row: Any) -> int | str:
        delivery = self._delivery(row)
        return NOTHING if delivery is None else delivery.attempts

    @admin.display(description=_("status code"))
    def status_code(self, row: Any) -> int | str:
        attempt = self._attempt(row)
        if attempt is None:
            return NOTHING
        return attempt.status_code or attempt.get_error_display()

    @admin.display(description=_("dashboard"))
    def on_dashboard(self, row: Any) -> SafeString | str:
        timer = self._timer(row)
        if timer is None:
            return NOTHING
        address = reverse("dashboard:timer", args=[timer.pk])
        return format_html('<a href="{}">{}</a>', address, gettext("Its page on the dashboard"))

    @admin.display(description=_("lateness (ms)"))
    def lateness(self, row: Any) -> str:
        return shown_lateness(self._attempt(row))
