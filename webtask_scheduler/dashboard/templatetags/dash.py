"""What templates of the dashboard write again and again: a state, an instant, a part of a URL."""

from collections.abc import Sequence
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from webtask_scheduler.dashboard import charts

register = template.Library()

# The word and the shape of each state. The shape is for those who do not see the colour.
_CLOCK = '<circle cx="8" cy="8" r="6"/><path d="M8 4.6V8l2.4 1.6"/>'
_STATES: dict[str, tuple[Any, str]] = {
    "scheduled": (gettext_lazy("Scheduled"), _CLOCK),
    "claimed": (gettext_lazy("Claimed"), '<circle cx="8" cy="8" r="6"/><path class="full" d="M8 2a6 6 0 0 1 0 12z"/>'),
    "running": (gettext_lazy("Running"), '<circle cx="8" cy="8" r="6"/><circle class="full" cx="8" cy="8" r="3"/>'),
    "paused": (gettext_lazy("Paused"), '<path d="M5.5 3.5v9M10.5 3.5v9"/>'),
    "held": (gettext_lazy("Held"), '<path d="M5.5 2h5L14 5.5v5L10.5 14h-5L2 10.5v-5z"/><path d="M5 8h6"/>'),
    "succeeded": (gettext_lazy("Succeeded"), '<path d="M3 8.5l3.4 3.4L13 4.8"/>'),
    "retrying": (gettext_lazy("Retrying"), '<path d="M13 8a5 5 0 1 1-1.6-3.7"/><path d="M13 2.2v3h-3"/>'),
    "failed": (gettext_lazy("Failed"), '<path d="M4 4l8 8M12 4l-8 8"/>'),
    "cancelled": (gettext_lazy("Cancelled"), '<circle cx="8" cy="8" r="6"/><path d="M4 12l8-8"/>'),
    "missed": (gettext_lazy("Missed"), '<path d="M4 2h8M4 14h8M5 2c0 4 6 4 6 12M11 2c0 4-6 4-6 12"/>'),
    # No state of a delivery: what a schedule will promise.
    "later": (gettext_lazy("By its schedule"), '<circle cx="8" cy="8" r="6" stroke-dasharray="2.6 2.1"/>'),
    # Of an operation.
    "stopped": (gettext_lazy("Stopped"), '<path class="full" d="M4 4h8v8H4z"/>'),
    "late": (gettext_lazy("Late"), '<path d="M8 2.2L14.6 13.5H1.4z"/><path d="M8 6.5v3.2M8 11.6v.2"/>'),
}


def word_of(state: str) -> str:
    """Return the word for a state."""
    return str(_STATES[state][0])


@register.simple_tag
def styles(*names: str) -> SafeString:
    """Return the links to style sheets of the dashboard. A page links those that it uses, within its budget."""
    return format_html_join(
        "", '<link rel="stylesheet" href="{}">', ((static(f"dashboard/{one}.css"),) for one in names)
    )


@register.simple_tag
def state(name: str, *, bare: bool = False, word: Any = "") -> SafeString:
    """Return a state as shape and word, its own or another; with `bare` the shape, and the word for a screen reader."""
    own, shape = _STATES.get(name, (name, _CLOCK))
    word = word or own
    icon = mark_safe(f'<svg viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>')  # noqa: S308 - of the table above
    hidden = mark_safe(' class="unseen"') if bare else ""
    return format_html('<span class="state" data-state="{}">{}<span{}>{}</span></span>', name, icon, hidden, word)


@register.simple_tag
def instant(at: Any, kind: str = "moment") -> SafeString:
    """Return an instant, which the script turns into `in 4 m` or `3 m ago`; without it the moment in UTC stays.

    `at` is a datetime or the API's text. With the kind `due` it counts down to the tenth; with `moment` it stays.
    """
    if not at:
        return mark_safe('<span class="quiet">-</span>')
    text = at if isinstance(at, str) else at.isoformat().removesuffix("+00:00") + "Z"
    plain = f"{text[:10]} {text[11:19]} UTC"
    exact = f"{text[:10]} {text[11:23].rstrip('Z')} UTC"
    title = format_html(' title="{}"', exact) if exact != plain else ""
    return format_html('<time datetime="{}" data-kind="{}"{}>{}</time>', text, kind, title, plain)


@register.filter
def outlines(bars: Sequence[charts.Stack]) -> list[tuple[str, str]]:
    """Return what a chart of bars draws: each state with its outline."""
    return list(charts.outlines(bars).items())


@register.filter
def milliseconds(value: Any) -> str:
    """Return a time in milliseconds with the unit that reads best."""
    if value is None or value == "":
        return "-"
    amount = float(value)
    if amount == float("inf"):
        # Beyond the last bound by which it is counted.
        return "> 1 h"
    if amount < 1000:  # noqa: PLR2004 - a second
        return f"{amount:.1f} ms" if amount < 10 else f"{amount:.0f} ms"  # noqa: PLR2004
    if amount < 60_000:  # noqa: PLR2004 - a minute
        return f"{amount / 1000:.2f} s"
    return _("%(minutes)s min") % {"minutes": f"{amount / 60_000:.1f}"}


@register.filter
def at_most(value: Any) -> str:
    """Return the bound of a percentile in milliseconds as what is known of it."""
    text = milliseconds(value)
    return text if text.startswith((">", "-")) else f"≤ {text}"
