"""Cron expressions in words, and those that the form offers."""

from collections.abc import Mapping, Sequence

from django.utils.dates import MONTHS, WEEKDAYS
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

# What the form offers beside what is typed.
PRESETS = (
    *("*/5 * * * *", "*/15 * * * *", "0 * * * *", "0 9 * * *", "0 9 * * MON-FRI", "0 9 * * MON", "0 9 1 * *"),
    *("0 9 L * *", "0 0 1 JAN *"),
)
_DAY_NAMES = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))}
_MONTH_NAMES = {
    name: number
    for number, name in enumerate(
        ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"), start=1
    )
}
# More times of a day than these are a pattern rather than a list.
_TIMES_MOST = 6


def in_words(cron: str) -> str:
    """Return a cron expression in the language of the request; empty for one that no short sentence says truly."""
    fields = cron.upper().split()
    if len(fields) != 5:  # noqa: PLR2004 - those of cron
        return ""
    minute, hour, day, month, weekday = fields
    try:
        parts = [_times(minute, hour), _days(day, weekday), _months(month)]
    except ValueError:
        return ""
    return ", ".join(part for part in parts if part)


def presets() -> list[tuple[str, str]]:
    """Return the expressions that the form offers, each with its words."""
    return [(cron, in_words(cron)) for cron in PRESETS]


def _numbers(field: str, names: Mapping[str, int] | None = None) -> list[int]:
    """Return the numbers of a list or of ranges. Raises ValueError for what else a field may say."""
    found: list[int] = []
    for part in field.split(","):
        first, dash, last = part.partition("-")
        begin, end = ((names or {}).get(text, text) for text in (first, last or first))
        if not all(str(text).isdecimal() for text in (begin, end)) or int(end) < int(begin):
            raise ValueError(field)
        found += range(int(begin), int(end) + 1) if dash else [int(begin)]
    return found


def _step(field: str) -> int | None:
    """Return n of a field that is every n-th; 1 of `*`, None of another."""
    if field == "*":
        return 1
    return int(field[2:]) if field.startswith("*/") and field[2:].isdecimal() else None


def _times(minute: str, hour: str) -> str:
    minutes, hours = _step(minute), _step(hour)
    if minutes and hours == 1:
        # Only what divides the hour is evenly apart.
        if 60 % minutes:
            raise ValueError(minute)
        return ngettext("every minute", "every %(count)s minutes", minutes) % {"count": minutes}
    at = _numbers(minute)
    if hours == 1 and len(at) == 1:
        return _("each hour at minute %(minute)s") % {"minute": at[0]}
    times = [f"{hour_:02}:{minute_:02}" for hour_ in _numbers(hour) for minute_ in at]
    if len(times) > _TIMES_MOST:
        raise ValueError(hour)
    return _("at %(times)s") % {"times": ", ".join(times)}


def _days(day: str, weekday: str) -> str:
    parts = []
    if day == "L":
        parts.append(_("on the last day of the month"))
    elif day != "*":
        parts.append(_("on day %(days)s of the month") % {"days": ", ".join(map(str, _numbers(day)))})
    if weekday != "*":
        # Cron counts from Sunday, which is 7 too; Django from Monday.
        days = list(dict.fromkeys((number - 1) % 7 for number in _numbers(weekday, _DAY_NAMES)))
        parts.append(_named(days, [str(WEEKDAYS[number]) for number in days]))
    if not parts:
        return _("every day")
    # With both, cron takes either.
    return _("%(days)s or %(weekdays)s") % {"days": parts[0], "weekdays": parts[1]} if parts[1:] else parts[0]


def _months(month: str) -> str:
    if month == "*":
        return ""
    numbers = _numbers(month, _MONTH_NAMES)
    return _named(numbers, [str(MONTHS[number]) for number in numbers])


def _named(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Return names, those of three or more neighbours as a range."""
    if len(names) > 2 and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):  # noqa: PLR2004
        return _("%(first)s to %(last)s") % {"first": names[0], "last": names[-1]}
    return ", ".join(names)
