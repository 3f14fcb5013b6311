"""Reads when a timer is called: one of several ways to say it, and its bounds."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from rest_framework import serializers

from webtask_scheduler.scheduler.api.fields import (
    DurationField,
    InstantField,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from webtask_scheduler.scheduler.models import (
    Timer,
)
from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.wording import translated

UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
# The ways to say when, of which one is given.
ONCE = (*UNITS, "delay", "due_at")
RECURRING = ("cron", "every")
# Other fields of a schedule.
BOUNDS = ("timezone", "starts_at", "ends_at", "max_occurrences")
WHEN = (*ONCE, *RECURRING, *BOUNDS)
WHEN_MISSING = gettext_noop(
    "Say when: give at least one of hours, minutes and seconds. 0 means now. Or delay, due_at, cron or every."
)
ONE_WHEN = gettext_noop(
    "Say when in one way only: hours, minutes and seconds together, or one of delay, due_at, cron and every."
)


def delay_of(attrs: Mapping[str, Any]) -> float:
    """Return the sum of hours, minutes and seconds. Raises ValidationError."""
    given = [unit for unit in UNITS if unit in attrs]
    if not given:
        # A form may have these fields, all empty.
        raise serializers.ValidationError({"seconds": [_(WHEN_MISSING)]})
    delay = sum(attrs[unit] * UNITS[unit] for unit in given)
    horizon = settings.WEBTASK_HORIZON_SECONDS
    if delay > horizon:
        most = {"seconds": horizon, "days": timedelta(seconds=horizon).days}
        said = _("Too far ahead: at most %(seconds)s seconds (%(days)s days) in all.") % most
        raise serializers.ValidationError({unit: [said] for unit in given})
    return float(delay)


class ScheduleSerializer(StrictSerializer):
    """When: once, in one of several ways, or again and again."""

    hours = WholeNumberField(min_value=0, required=False, help_text="Hours from now.")
    minutes = WholeNumberField(min_value=0, required=False, help_text="Minutes from now, added to the hours.")
    seconds = WholeNumberField(min_value=0, required=False, help_text="Seconds from now, added to both. 0 means now.")
    delay = DurationField(required=False, help_text="From now, as an ISO 8601 duration: `PT90S`, `P1DT12H`.")
    due_at = InstantField(
        required=False,
        help_text="An ISO 8601 instant with an offset. One that has passed is due at once; see `on_missed`.",
    )
    cron = TextField(
        max_length=200,
        required=False,
        help_text="Five fields (minute, hour, day of month, month, weekday) with names, ranges, lists and steps, or"
        " `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. A restricted day of month and a restricted weekday are"
        " joined by OR.",
    )
    timezone = TextField(
        max_length=64, required=False, help_text="With cron: an IANA name like `Europe/Berlin`. Default UTC."
    )
    every = DurationField(
        required=False, help_text="An ISO 8601 duration of at least one second: `PT10M`. A day is 24 hours."
    )
    starts_at = InstantField(
        required=False,
        help_text="No moment is before it; with `every` it is the first one, by default one interval from now.",
    )
    ends_at = InstantField(required=False, help_text="No moment is after it.")
    max_occurrences = WholeNumberField(
        min_value=1, max_value=2_147_483_647, required=False, help_text="After so many moments the timer has ended."
    )

    # An edit may leave the schedule as it is.
    when_required = True

    def missing(self, data: Mapping[str, Any]) -> dict[str, Any]:
        kinds = [name for name in (*ONCE, *RECURRING) if name in data]
        units = [name for name in kinds if name in UNITS]
        errors: dict[str, Any] = {}
        if not kinds and self.when_required:
            errors["seconds"] = [_(WHEN_MISSING)]
        if len(kinds) - len(units) + bool(units) > 1:
            errors |= {name: [_(ONE_WHEN)] for name in kinds if name not in units}
        if "cron" not in data and "timezone" in data and self.when_required:
            errors["timezone"] = [_("Only with cron: an instant has its own offset, and an interval needs none.")]
        if not any(name in data for name in RECURRING) and self.when_required:
            for name in ("starts_at", "ends_at", "max_occurrences"):
                if name in data:
                    errors[name] = [_("Only with cron or every.")]
        return errors

    def validate_cron(self, value: str) -> str:
        return _checked(recurrence.check_cron, value)

    def validate_timezone(self, value: str) -> str:
        return _checked(recurrence.check_timezone, value)

    def validate_every(self, value: float) -> float:
        if value < 1:
            raise serializers.ValidationError(_("At least one second: PT1S."))
        gap = settings.WEBTASK_LIMIT_GAP_SECONDS
        if value < gap:
            least = {"least": recurrence.format_duration(gap)}
            raise serializers.ValidationError(
                _("At least %(least)s on this service: the operator sets it with WEBTASK_LIMIT_GAP_SECONDS.") % least
            )
        return value

    def schedule(self, attrs: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
        """Return the fields of services.NewTimer that hold a schedule. Raises ValidationError."""
        if "due_at" in attrs:
            return {"due_at": attrs["due_at"]}
        if "delay" in attrs:
            return {"delay_seconds": attrs["delay"]}
        if not any(name in attrs for name in RECURRING):
            return {"delay_seconds": delay_of(attrs)}
        starts_at, every = attrs.get("starts_at"), attrs.get("every")
        if every is not None and starts_at is None:
            starts_at = now + timedelta(seconds=every)
        found = recurrence.Recurrence(
            cron=attrs.get("cron", ""),
            timezone=attrs.get("timezone", "UTC"),
            every_seconds=every,
            starts_at=starts_at,
            ends_at=attrs.get("ends_at"),
        )
        if found.next_after(now) is None:
            field = "ends_at" if "ends_at" in attrs else "cron"
            raise serializers.ValidationError({field: [_("This schedule has no moment that is still to come.")]})
        return {"recurrence": found, "max_occurrences": attrs.get("max_occurrences")}


def _checked(check: Any, value: str) -> str:
    try:
        return str(check(value))
    except recurrence.ScheduleError as error:
        raise serializers.ValidationError(translated(error)) from error


def schedule_given(timer: Timer) -> dict[str, Any]:
    """Return the schedule of a recurring timer in the API's form; empty for a timer that is called once."""
    found: dict[str, Any] = {}
    if timer.cron:
        found |= {"cron": timer.cron, "timezone": timer.timezone}
    elif timer.every_seconds is not None:
        found |= {"every": recurrence.format_duration(timer.every_seconds)}
    if timer.starts_at is not None:
        found["starts_at"] = instant_text(timer.starts_at)
    if timer.ends_at is not None:
        found["ends_at"] = instant_text(timer.ends_at)
    if timer.max_occurrences is not None:
        found["max_occurrences"] = timer.max_occurrences
    return found
