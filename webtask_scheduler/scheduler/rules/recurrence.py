"""Computes the next moment of a recurring schedule. Pure: no clock, no database.

A rule is a cron expression in a time zone, or a period counted from a first moment. `cronsim` reads the expressions
and walks the wall clock; this module maps the wall clock's times to instants. cronsim can do that too, but it is wrong
if a zone shifts by half an hour or at midnight, and looks back from a start inside a doubled hour.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice, pairwise, takewhile
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from webtask_scheduler.wording import Sentence, joined
from webtask_scheduler.wording import sentence as _
from webtask_scheduler.wording import sentences as ngettext


class ScheduleError(ValueError):
    """The schedule is invalid; the text is for a person."""


# Durations.

DURATION_LENGTH = 64
_DURATION = re.compile(
    r"P(?=.)(?:([0-9]+)W)?(?:([0-9]+)D)?"
    r"(?:T(?=.)(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+)(?:\.([0-9]{1,6}))?S)?)?"
)
_CALENDAR_DURATION = re.compile(r"P[^T]*[YM].*")


def parse_duration(text: str) -> float:
    """Return the seconds of an ISO 8601 duration of weeks, days, hours, minutes and seconds. Raises ScheduleError."""
    if len(text) > DURATION_LENGTH:
        raise ScheduleError(_("The duration is longer than %(most)s characters.", most=DURATION_LENGTH))
    if _CALENDAR_DURATION.fullmatch(text):
        raise ScheduleError(_("Years and months have no fixed length; use cron for calendar months."))
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ScheduleError(
            _("%(text)r is not an ISO 8601 duration, such as P1W, P1DT12H, PT1H30M or PT0.5S.", text=text)
        )
    weeks, days, hours, minutes, seconds = (int(number or 0) for number in found.groups()[:5])
    micros = int((found[6] or "").ljust(6, "0"))
    whole = (((weeks * 7 + days) * 24 + hours) * 60 + minutes) * 60 + seconds
    return (whole * 1_000_000 + micros) / 1_000_000


def format_duration(seconds: float) -> str:
    """Return the ISO 8601 duration for seconds: large units first, parts of zero left out."""
    rest, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    rest, second = divmod(rest, 60)
    rest, minute = divmod(rest, 60)
    day, hour = divmod(rest, 24)
    fraction = f".{micros:06}".rstrip("0") if micros else ""
    time = "".join(f"{number}{unit}" for number, unit in ((hour, "H"), (minute, "M")) if number)
    time += f"{second}{fraction}S" if second or micros else ""
    if not time and day:
        return f"P{day}D" if day % 7 else f"P{day // 7}W"
    return "P" + (f"{day}D" if day else "") + f"T{time or '0S'}"


# Cron expressions and zones, as people give them.

CRON_LENGTH = 200
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# cronsim reads 5-5/10 as 5/10, which runs to the field's end; to cron it is 5.
_RANGE_OF_ONE = re.compile(r"\b(\w+)-\1/[0-9]+", re.ASCII | re.IGNORECASE)


class _Field(NamedTuple):
    """One of the five fields: its values from low to high, and the names of the first of them."""

    label: Sentence
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def range(self) -> range:
        return range(self.low, self.high + 1)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAY = _Field(_("day of week"), 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat"))
_FIELDS = (
    _Field(_("minute"), 0, 59),
    _Field(_("hour"), 0, 23),
    _Field(_("day of month"), 1, 31),
    _Field(_("month"), 1, 12, _MONTHS),
    _WEEKDAY,
)

_TICK = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_DAY_SECONDS = 86_400
_DAY = timedelta(seconds=_DAY_SECONDS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Later wall clock times are ignored: in another zone they may be past the last that datetime holds.
_LAST_WALL = datetime(9999, 12, 30, tzinfo=UTC).replace(tzinfo=None)


def check_cron(text: str) -> str:
    """Return a cron expression as it will be kept: macros resolved, spaces folded. Raises ScheduleError."""
    if len(text) > CRON_LENGTH:
        raise ScheduleError(_("The cron expression is longer than %(most)s characters.", most=CRON_LENGTH))
    if not text.isascii():
        raise ScheduleError(_("The cron expression has a character that is not ASCII."))
    cron = " ".join(text.split())
    if not cron:
        raise ScheduleError(_("A cron expression is required."))
    if cron.startswith("@"):
        return _resolve_macro(cron)
    parts = cron.split(" ")
    if len(parts) != len(_FIELDS):
        wrong = ngettext(
            "The cron expression has %(count)s field; it takes five: minute, hour, day of month, month, day of week.",
            "The cron expression has %(count)s fields; it takes five: minute, hour, day of month, month, day of week.",
            len(parts),
            count=len(parts),
        )
        if len(parts) in (6, 7):
            wrong = _("%(wrong)s Seconds and years have no field: for periods of seconds, use every.", wrong=wrong)
        raise ScheduleError(wrong)
    for field, part in zip(_FIELDS, parts, strict=True):
        # Each field is checked by itself: cronsim's own message names a field too, but calls 30 February a bad day.
        if not _comes(" ".join(part if other is field else "*" for other in _FIELDS)):
            raise ScheduleError(
                _(
                    "The %(field)s field %(text)r means nothing to cron; it takes %(takes)s.",
                    field=field.label,
                    text=part,
                    takes=_takes(field),
                )
            )
    cron = _RANGE_OF_ONE.sub(r"\1", cron)
    if not _comes(cron):
        raise ScheduleError(_("The cron expression %(cron)r names a date that never comes.", cron=cron))
    return cron


def _resolve_macro(cron: str) -> str:
    if cron.lower() == "@reboot":
        raise ScheduleError(_("@reboot is no moment in time; give five fields, or @daily and the like."))
    if cron.lower() not in _MACROS:
        raise ScheduleError(_("There is no %(macro)r; known are %(macros)s.", macro=cron, macros=", ".join(_MACROS)))
    return _MACROS[cron.lower()]


def _takes(field: _Field) -> Sentence:
    low, high = field.low, 7 if field is _WEEKDAY else field.high
    if not field.names:
        return _("%(low)s to %(high)s, *, lists, ranges and steps", low=low, high=high)
    return _(
        "%(low)s to %(high)s, %(first)s to %(last)s, *, lists, ranges and steps",
        low=low,
        high=high,
        first=field.names[0].upper(),
        last=field.names[-1].upper(),
    )


def _comes(cron: str) -> bool:
    """Return whether an expression can be read and has any moment."""
    try:
        return next(_matches(cron, _EPOCH.replace(tzinfo=None)), None) is not None
    except CronSimError:
        return False


# Files in a machine's zone data that are not places; elsewhere they mean something else or nothing.
_NO_ZONES = frozenset({"Factory", "localtime", "posixrules"})


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones() - _NO_ZONES)


@cache
def _zone(name: str) -> ZoneInfo:
    # Cached here because ZoneInfo itself keeps only eight.
    return ZoneInfo(name)


def check_timezone(name: str) -> str:
    """Return the name of a time zone, one of the IANA names in this machine's zone data. Raises ScheduleError."""
    if name not in _zone_names():
        raise ScheduleError(
            _("There is no time zone %(name)r; take an IANA name, such as Europe/Berlin or UTC.", name=name[:64])
        )
    return name


# Moments.


# The columns of a timer that hold its schedule, and what they hold for a timer that is called once.
COLUMNS = ("cron", "timezone", "every_seconds", "starts_at", "ends_at")
CALLED_ONCE: Mapping[str, Any] = {"cron": "", "timezone": "", "every_seconds": None, "starts_at": None, "ends_at": None}


def _instant(value: datetime | str | None) -> datetime | None:
    return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A cron expression in a zone, or a period; and the moments between which it holds."""

    cron: str = ""  # as check_cron returned it; empty where there is a period
    timezone: str = "UTC"
    every_seconds: float | None = None  # at least 1
    starts_at: datetime | None = None  # no moment is before it; of a period it is the first moment
    ends_at: datetime | None = None  # no moment is after it

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> "Recurrence":
        """Return the schedule that COLUMNS of a recurring timer hold; instants may be text. Raises ScheduleError."""
        return cls(
            cron=columns["cron"],
            timezone=columns["timezone"] or "UTC",
            every_seconds=columns["every_seconds"],
            starts_at=_instant(columns["starts_at"]),
            ends_at=_instant(columns["ends_at"]),
        )

    def columns(self) -> dict[str, Any]:
        """Return what COLUMNS of a timer hold for this schedule."""
        held = {name: getattr(self, name) for name in COLUMNS}
        return held if self.cron else held | {"timezone": ""}

    def __post_init__(self) -> None:
        if bool(self.cron) == (self.every_seconds is not None):
            raise ScheduleError(_("A schedule is either a cron expression or a period."))
        if self.every_seconds is not None and not self.every_seconds >= 1:
            raise ScheduleError(_("A period is one second at least."))
        if self.every_seconds is not None and self.starts_at is None:
            raise ScheduleError(_("A period needs its first moment."))

    @property
    def per_second(self) -> float:
        """Return how many moments there are a second; of cron, on average over a day that has moments."""
        return moments_a_second(self.cron) if self.cron else 1 / (self.every_seconds or 1.0)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first moment strictly after another, in UTC; None if there is no such moment."""
        if self.starts_at is not None and moment < self.starts_at:
            moment = self.starts_at - _TICK
        moment = moment.astimezone(UTC)
        if self.every_seconds is not None:
            found = self._next_of_period(moment)
        elif _is_wild(self.cron):
            found = _next_by_real_time(self.cron, _zone(self.timezone), moment)
        else:
            found = _next_by_wall_clock(self.cron, _zone(self.timezone), moment)
        if found is None or (self.ends_at is not None and found > self.ends_at):
            return None
        return found

    def following(self, *, due_at: datetime, begun_at: datetime, now: datetime, skip: bool) -> datetime | None:
        """Return the due time after `due_at`, whose first call began at `begun_at` and whose delivery ended `now`.

        That call stands for every moment up to its beginning. The latest of the moments missed during the delivery is
        next and stands for all of those; with `skip` all of those are skipped.
        """
        # Clocks of several machines may differ a little; a moment that was called must not be promised again.
        begun_at = max(begun_at, due_at)
        found = self.next_after(begun_at)
        if found is None or found > now:
            return found
        return self.next_after(now) if skip else self._latest(found, now)

    def moments(self, after: datetime) -> Iterator[datetime]:
        """Iterate over all moments after a given one, in order."""
        moment = self.next_after(after)
        while moment is not None:
            yield moment
            moment = self.next_after(moment)

    def within(self, after: datetime, until: datetime, *, most: int) -> list[datetime]:
        """Return the first `most` moments after one instant and before another, as `moments` has them.

        It is many times as fast where clocks do not change: to draw what hundreds of timers have before them.
        """
        after, until = after.astimezone(UTC), until.astimezone(UTC)
        if self.starts_at is not None:
            after = max(after, self.starts_at.astimezone(UTC) - _TICK)
        if self.ends_at is not None:
            until = min(until, self.ends_at.astimezone(UTC) + _TICK)
        if self.every_seconds is not None:
            return self._by_period(after, until, most=most)
        # A zone whose clocks were put back lately may be in an hour that it has had before.
        if _first_change(_zone(self.timezone), after - _DAY, max(after, until)) is None:
            return list(islice(self._by_day(after, until), most))
        return list(islice(takewhile(lambda moment: moment < until, self.moments(after)), most))

    def counts(self, after: datetime, begin: datetime, *, part: timedelta, parts: int, most: int | None) -> list[int]:
        """Return how many of the first `most` moments after an instant lie in each part of time, of an interval.

        None for `most` is all. However short the interval is, it costs a few divisions for each part.
        """
        first = self._next_of_period(after.astimezone(UTC))
        if first is None:
            return [0] * parts
        if self.starts_at is not None and after < self.starts_at:
            first = self.starts_at.astimezone(UTC)
        step = round((self.every_seconds or 0) * 1_000_000)
        start, length = (begin.astimezone(UTC) - first) // _TICK, part // _TICK
        ends = [most] if most is not None else []
        if self.ends_at is not None:
            ends.append((self.ends_at - first) // _TICK // step + 1)
        # How many moments lie before the beginning of each part, and before the end of the last.
        before = [max(0, -(-(start + number * length) // step)) for number in range(parts + 1)]
        if ends:
            end = max(0, min(ends))
            before = [min(count, end) for count in before]
        return [later - earlier for earlier, later in pairwise(before)]

    def _by_period(self, after: datetime, until: datetime, *, most: int) -> list[datetime]:
        """Return the first `most` moments of an interval between two instants."""
        first = self._next_of_period(after)
        if first is None or first >= until:
            return []
        period = timedelta(microseconds=round((self.every_seconds or 0) * 1_000_000))
        # Rounded up: the last one may be a part of a period before the end.
        count = min(most, -((first - until) // period))
        return [first + number * period for number in range(count)]

    def _by_day(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Iterate over the moments between two instants between which the zone's offset from UTC stays the same."""
        wall = _wall(after, _zone(self.timezone))
        offset = wall - after.replace(tzinfo=None)
        end = until.replace(tzinfo=None) + offset
        days, times = self.cron.split(" ", 2)[2], _times(self.cron)
        day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        while day < end:
            if _is_day(days, day):
                start = (day - offset).replace(tzinfo=UTC)
                yield from (moment for time in times if after < (moment := start + time) < until)
            day += _DAY

    def _next_of_period(self, moment: datetime) -> datetime | None:
        if self.every_seconds is None or self.starts_at is None:
            return None
        try:
            # Whole microseconds, so that the thousandth moment is as exact as the first.
            period = timedelta(microseconds=round(self.every_seconds * 1_000_000))
            start = self.starts_at.astimezone(UTC)
            return start + ((moment - start) // period + 1) * period
        except OverflowError:
            return None

    def _latest(self, moment: datetime, now: datetime) -> datetime:
        """Return the last moment up to `now`, given an earlier one, by halving: there may be very many between."""
        end = now
        while (following := self.next_after(moment)) is not None and following <= now:
            middle = moment + (end - moment) / 2
            found = self.next_after(middle)
            if found is None or found > now:
                moment, end = following, middle
            else:
                moment = found
        return moment


@lru_cache(maxsize=10_000)
def moments_a_second(cron: str) -> float:
    """Return how many moments a second a kept cron expression has, on average over a day that has any."""
    simulated = CronSim(cron, _EPOCH.replace(tzinfo=None))
    return len(simulated.minutes) * len(simulated.hours) / _DAY_SECONDS


@lru_cache(maxsize=10_000)
def _times(cron: str) -> list[timedelta]:
    """Return the times of a day that has moments, in order."""
    simulated = CronSim(cron, _EPOCH.replace(tzinfo=None))
    return [
        timedelta(hours=hour, minutes=minute)
        for hour in sorted(simulated.hours)
        for minute in sorted(simulated.minutes)
    ]


@lru_cache(maxsize=10_000)
def _is_day(days: str, day: datetime) -> bool:
    """Return whether day of month, month and day of week, as cron has them, fit a day; it is given as its midnight."""
    return next(_matches(f"0 0 {days}", day - timedelta(minutes=1)), None) == day


def _is_wild(cron: str) -> bool:
    """Return whether an expression runs by real time when clocks change: minute or hour begins with a star.

    That is Debian's rule. Anything else is a list of fixed local times.
    """
    minute, hour = cron.split(" ")[:2]
    return minute.startswith("*") or hour.startswith("*")


def _matches(cron: str, wall: datetime) -> Iterator[datetime]:
    """Iterate over the matching wall clock times after `wall`. cronsim gives up after 50 years without a match.

    The rarest date, a weekday on 29 February, comes once in 40 years.
    """
    try:
        yield from takewhile(lambda match: match < _LAST_WALL, CronSim(cron, wall))
    except OverflowError:
        return


def _next_by_wall_clock(cron: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """Return the next moment if each matching local time counts once, doubled or skipped; skipped ones merge."""
    for match in _matches(cron, _wall(moment, zone)):
        found = _first_instant(match, zone)
        # In the second pass of a doubled hour the wall clock repeats times.
        if found > moment:
            return found
    return None


def _next_by_real_time(cron: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """Return the next moment if each matching instant counts: skipped times have no moment, doubled ones two."""
    wall = searched = _wall(moment, zone)
    match = next(_matches(cron, searched), None)
    while match is not None:
        found = moment + (match - wall)
        change = _first_change(zone, moment, found)
        if change is None:
            return found
        # Go on from the change, which may be a moment itself.
        moment, wall = change, _wall(change, zone)
        # Searching again for a rare date is slow, and needless if nothing matched since before this wall time.
        if not searched <= wall - _TICK < match:
            searched = wall - _TICK
            match = next(_matches(cron, searched), None)
    return None


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the first instant at which the wall clock shows a time; for a skipped time, the end of the gap."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _wall(moment, zone) == wall:
        return moment
    # A skipped time is an instant before the gap if read with the offset after it, and one after it if read with the
    # offset before.
    return _first_change(zone, wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment) or moment


def _first_change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first instant after `start`, up to `end`, at which the zone's offset from UTC changes."""
    low, last = (start - _EPOCH) // _SECOND, (end - _EPOCH) // _SECOND
    offset = _offset(zone, low)
    while low < last:
        # Steps of a day find every change: no zone changes there and back within a day.
        high = min(low + _DAY_SECONDS, last)
        if _offset(zone, high) != offset:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            return _EPOCH + high * _SECOND
        low = high
    return None


def _offset(zone: ZoneInfo, second: int) -> timedelta | None:
    return datetime.fromtimestamp(second, zone).utcoffset()


# Translation to and from Celery's crontabs, for the rows of django-celery-beat.

_CELERY_TERM = re.compile(
    r"\*(?:/(?P<every>[0-9]+))?|(?P<first>\w+)(?:-(?P<last>\w+)(?:/(?P<step>[0-9]+))?)?", re.ASCII
)


def celery_fields(cron: str) -> tuple[str, str, str, str, str] | None:
    """Return minute, hour, day of month, month and day of week as Celery's crontab takes them, in numbers.

    None if Celery would mean something else. It has no L, W and #. If both days are restricted, Celery requires both
    and cron either. As in cron, a day that begins with a star does not restrict in this sense.
    """
    minute, hour, day, month, weekday = cron.split(" ")
    # Any instant will do: only the fields that cronsim has parsed are needed.
    sim = CronSim(cron, _EPOCH)
    weekdays = {number % 7 for number in sim.weekdays if isinstance(number, int)}
    last_or_nth = min(sim.days) < 1 or not all(isinstance(number, int) for number in sim.weekdays)
    if last_or_nth or not (day.startswith("*") or weekday.startswith("*")):
        return None
    return (
        _numbers(minute, sim.minutes, _FIELDS[0]),
        _numbers(hour, sim.hours, _FIELDS[1]),
        _numbers(day, sim.days, _FIELDS[2]),
        _numbers(month, sim.months, _FIELDS[3]),
        _numbers(weekday, weekdays, _FIELDS[4]),
    )


def cron_of(minute: str, hour: str, day_of_month: str, month_of_year: str, day_of_week: str) -> str:
    """Return the cron expression that means what the fields mean to Celery. Raises ScheduleError."""
    texts = [text.strip() for text in (minute, hour, day_of_month, month_of_year, day_of_week)]
    values = [_celery_values(text, field) for text, field in zip(texts, _FIELDS, strict=True)]
    parts = [_numbers(text, value, field) for text, value, field in zip(texts, values, _FIELDS, strict=True)]
    if not (parts[2].startswith("*") or parts[4].startswith("*")):
        raise ScheduleError(
            _("Cron cannot say that day of month and day of week must both match; leave one of them at *.")
        )
    return check_cron(" ".join(parts))


def _numbers(text: str, values: Collection[int], field: _Field) -> str:
    """Return a field's values in short form: a leading star, because it has a meaning, and the other numbers."""
    terms, rest = [], sorted(values)
    if text.startswith("*"):
        step = int(text.split(",", maxsplit=1)[0][2:] or 1)
        terms.append(f"*/{min(step, len(field.range))}" if step > 1 else "*")
        rest = [number for number in rest if number not in field.range[::step]]
    while rest:
        length = next((index for index, number in enumerate(rest) if number != rest[0] + index), len(rest))
        terms += [f"{rest[0]}-{rest[length - 1]}"] if length > 2 else [str(number) for number in rest[:length]]  # noqa: PLR2004
        rest = rest[length:]
    return ",".join(terms)


def _celery_values(text: str, field: _Field) -> set[int]:
    """Return a field's values as Celery expands them; a range may run over the end. Raises ScheduleError."""
    values: set[int] = set()
    for term in text.split(","):
        found = _CELERY_TERM.fullmatch(term.strip())
        if found is None:
            raise _bad_field(text, field)
        step = int(found["every"] or found["step"] or 1)
        if step == 0:
            raise _bad_field(text, field)
        run = list(field.range)
        if found["first"]:
            first = _celery_number(found["first"], text, field)
            # Sunday may be 7, though Celery itself knows only 0: as a start it opens a range, as an end it closes one.
            first = first % 7 if field is _WEEKDAY else first
            last = _celery_number(found["last"], text, field) if found["last"] else first
            run = [*range(first, last + 1)] or [*range(first, field.high + 1), *range(field.low, last + 1)]
        values.update(number % 7 if field is _WEEKDAY else number for number in run[::step])
    return values


def _celery_number(word: str, text: str, field: _Field) -> int:
    # Celery reads the first three letters of a name.
    short = word[:3].lower()
    number = int(word) if word.isdecimal() else field.low + field.names.index(short) if short in field.names else -1
    if number in field.range or (field is _WEEKDAY and number == 7):  # noqa: PLR2004
        return number
    raise _bad_field(text, field)


def _bad_field(text: str, field: _Field) -> ScheduleError:
    return ScheduleError(
        _(
            "The %(field)s field %(text)r means nothing to Celery; it takes %(takes)s.",
            field=field.label,
            text=text,
            takes=_takes(field),
        )
    )


# Words for a preview.


def transition_note(moment: datetime, previous: datetime | None, timezone: str) -> Sentence:
    """Return a note on a change of the zone's clocks between two moments, and on a skipped time."""
    zone = _zone(timezone)
    notes: list[Sentence] = []
    here = moment.astimezone(zone)
    before = previous.astimezone(zone) if previous is not None else here
    old, new = before.utcoffset(), here.utcoffset()
    if old is not None and new is not None and old != new:
        forward = _(
            "Clocks in %(zone)s go forward between the previous moment and this one: %(old)s becomes %(new)s.",
            zone=timezone,
            old=_offset_text(before),
            new=_offset_text(here),
        )
        back = _(
            "Clocks in %(zone)s go back between the previous moment and this one: %(old)s becomes %(new)s.",
            **forward.values,
        )
        notes.append(forward if new > old else back)
    end = _wall(moment, zone)
    start = _wall(moment.astimezone(UTC) - _SECOND, zone) + _SECOND
    if start < end:
        skipped = _(
            "Local times from %(start)s to %(end)s are skipped; what was promised for them is at this moment.",
            start=f"{start:%Y-%m-%d %H:%M}",
            end=f"{end:%Y-%m-%d %H:%M}",
        )
        notes.append(skipped)
    return joined(notes)


def _offset_text(local: datetime) -> str:
    text = f"{local:%z}"
    return f"UTC{text[:3]}:{text[3:5]}"
