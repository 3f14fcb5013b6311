"""The shapes that go in and out of the API. Shape only: rules and transactions are in services."""

import base64
import binascii
import json
import math
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.http import QueryDict
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.models import (
    NAME_MAX_LENGTH,
    URL_MAX_LENGTH,
    Attempt,
    BulkOperation,
    Delivery,
    ErrorKind,
    SigningSecret,
    State,
    Timer,
    host_of,
)
from webtask_scheduler.scheduler.outgoing import checks, signing
from webtask_scheduler.scheduler.api.problems import PastDue

UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
# The ways to say when, of which one is given.
ONCE = (*UNITS, "delay", "due_at")
RECURRING = ("cron", "every")
# What belongs to a schedule beside them.
BOUNDS = ("timezone", "starts_at", "ends_at", "max_occurrences")
WHEN = (*ONCE, *RECURRING, *BOUNDS)
WHEN_MISSING = (
    "Say when: give at least one of hours, minutes and seconds. 0 means now. Or delay, due_at, cron or every."
)
ONE_WHEN = "Say when in one way only: hours, minutes and seconds together, or one of delay, due_at, cron and every."
# Looking a member up costs more than all else of an answer that is made for speed.
SCHEDULED = State.SCHEDULED.value
NOT_YET = "Its moment has not come yet."
NOT_CLAIMED = "It is due and waits for a beat to claim it."
# Timers of one batch.
BATCH_MOST = 1000
# What the column holds: more than the longest name that can resolve, with a port.
HOST_MAX_LENGTH = 261
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
WITHOUT_BODY = ("GET", "HEAD")
ON_MISSED = ("fire", "skip", "reject")
# With on_missed "skip", where max_lateness does not say more or less.
MAX_LATENESS_SECONDS = 60.0
LABELS_MOST = 20
METADATA_MOST_BYTES = 16 * 1024
STATUSES_MOST = 20
CONTENT_TYPE_MAX_LENGTH = 200
NO_MEDIA_TYPE = "A media type is required, like text/plain or application/json."
# A plain timer: what most requests have, and what a serializer of its own reads several times as fast.
PLAIN = frozenset((*UNITS, "web_url"))
# Kept on the timer as given, under these names.
OPTIONS = (
    "method",
    "headers",
    "body",
    "body_base64",
    "content_type",
    "timeout_seconds",
    "follow_redirects",
    "success_statuses",
    "retry",
    "on_missed",
    "max_lateness",
    "labels",
    "metadata",
    "callback_url",
    "failure_callback_url",
)
# An edit of these alone is taken of a timer that has ended too.
HARMLESS = frozenset(("name", "labels", "metadata"))

_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[\x20-\x7e]*[\x21-\x7e])?")
# In JSON, where a backslash before it would be one of the text's own.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _in_form(field: serializers.Field[Any, Any, Any, Any]) -> bool:
    """Whether a field is read from a form, which has only text."""
    return isinstance(getattr(field.root, "initial_data", None), QueryDict)


def _storable(value: Any, *, name: str) -> None:
    """Make sure that JSON can be stored and sent as it is. Raises ValidationError."""
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise serializers.ValidationError(f"{name} has a number or a character that JSON cannot hold.") from error
    except TypeError as error:
        # A file in a form.
        raise serializers.ValidationError(f"{name} is no JSON.") from error
    if _NUL.search(text):
        raise serializers.ValidationError(f"{name} must not hold the character NUL.")


class WholeNumberField(serializers.IntegerField):
    """A JSON integer. Booleans, fractions and quoted numbers are other types; a form has only text, so there digits."""

    default_error_messages = {"invalid": "A whole number is required.", "min_value": "Must be {min_value} or more."}

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, str) and _in_form(self):
            if not re.fullmatch(r"-?[0-9]{1,20}", data.strip()):
                self.fail("invalid")
            return int(data)
        if type(data) is not int:
            self.fail("invalid")
        return data


class NumberField(serializers.FloatField):
    """A JSON number within bounds."""

    default_error_messages = {"invalid": "A number is required."}

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, str) and _in_form(self):
            data = super().to_internal_value(data)
        # A whole number stays one, as it was given.
        if type(data) is not int and not (type(data) is float and math.isfinite(data)):
            self.fail("invalid")
        found: float = data
        return found


class TrueOrFalseField(serializers.BooleanField):
    """A JSON boolean; in a form or a query the words for it, and none where it is left out."""

    default_empty_html = serializers.empty

    def to_internal_value(self, data: Any) -> bool:
        if _in_form(self):
            return bool(super().to_internal_value(data))
        if not isinstance(data, bool):
            raise serializers.ValidationError("Must be true or false.")
        return data


class TextField(serializers.CharField):
    """A JSON string as it is: not trimmed, and no number made into one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        _storable(data, name="The text")
        return str(super().to_internal_value(data))


class OneOfField(serializers.ChoiceField):
    """One of several words. What was given instead is not repeated: it may be long."""

    default_error_messages = {"invalid_choice": "Must be one of: {words}."}

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str) or data not in self.choices:
            self.fail("invalid_choice", words=", ".join(self.choices))
        return data


class IdField(serializers.UUIDField):
    """An id in its one spelling. Numbers are other types."""

    def to_internal_value(self, data: Any) -> uuid.UUID:
        if not isinstance(data, str):
            self.fail("invalid", value=data)
        found: uuid.UUID = super().to_internal_value(data)
        if str(found) != data.lower():
            self.fail("invalid", value=data)
        return found


class WebUrlField(serializers.CharField):
    """An http or https URL that can be called as it stands."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=URL_MAX_LENGTH, trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        try:
            checks.check_url(data, max_length=URL_MAX_LENGTH)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error
        if len(host_of(data)) > HOST_MAX_LENGTH:
            raise serializers.ValidationError("The URL's host or port is not valid.")
        return data


@extend_schema_field({"type": "string", "format": "duration", "maxLength": 64})
class DurationField(TextField):
    """An ISO 8601 duration, read as seconds."""

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        try:
            seconds = recurrence.parse_duration(text)
        except recurrence.ScheduleError as error:
            raise serializers.ValidationError(str(error)) from error
        if seconds > settings.WEBTASK_HORIZON_SECONDS:
            raise serializers.ValidationError(_too_far())
        return seconds


@extend_schema_field({"type": "string", "format": "date-time", "maxLength": 40})
class InstantField(TextField):
    """An ISO 8601 instant with an offset from UTC."""

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        match = _INSTANT.fullmatch(text)
        if match is None:
            raise serializers.ValidationError("An ISO 8601 instant is required, like 2026-01-05T09:00:00+01:00.")
        if not match[3]:
            raise serializers.ValidationError(
                "The instant has no offset from UTC: add Z, or an offset like +01:00, so that it means one moment."
            )
        try:
            # More digits than microseconds have are cut off.
            moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper()).astimezone(UTC)
            far = abs((moment - timezone.now()).total_seconds()) > settings.WEBTASK_HORIZON_SECONDS
        except (ValueError, OverflowError) as error:
            raise serializers.ValidationError("There is no such day or time.") from error
        if far:
            raise serializers.ValidationError(_too_far())
        return moment


def _too_far() -> str:
    horizon = settings.WEBTASK_HORIZON_SECONDS
    return f"Too far from now: at most {horizon} seconds ({timedelta(seconds=horizon).days} days)."


@extend_schema_field(
    {
        "type": "object",
        "additionalProperties": {
            "type": "string",
            "maxLength": checks.HEADER_VALUE_MAX_LENGTH,
            # Visible characters of Latin-1, spaces and tabs between them.
            "pattern": r"^([!-~\u00a1-\u00ff]([\t -~\u00a0-\u00ff]*[!-~\u00a1-\u00ff])?)?$",
        },
        "propertyNames": {"pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", "maxLength": checks.HEADER_NAME_MAX_LENGTH},
        "maxProperties": checks.HEADERS_MOST,
    }
)
class HeadersField(serializers.Field[Any, Any, Any, Any]):
    """Header names and values."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise serializers.ValidationError("An object of header names and texts is required.")
        try:
            return checks.check_headers(data)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(
    {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 63},
        "propertyNames": {"pattern": f"^{_LABEL_KEY.pattern}$"},
        "maxProperties": LABELS_MOST,
    }
)
class LabelsField(serializers.Field[Any, Any, Any, Any]):
    """Short keys and values to find timers by."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise serializers.ValidationError("An object of keys and texts is required.")
        if len(data) > LABELS_MOST:
            raise serializers.ValidationError(f"At most {LABELS_MOST} labels are taken.")
        for key, value in data.items():
            if not _LABEL_KEY.fullmatch(key):
                raise serializers.ValidationError(
                    f"{ascii(key)[:80]} is no label's key: up to 63 letters, digits and . _ / - after a first letter or"
                    " digit."
                )
            if len(value) > 63 or not value.isprintable():  # noqa: PLR2004 - as the key
                raise serializers.ValidationError(f"The value of {key} is longer than 63 characters or not printable.")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field({"not": {"type": "null"}})
class JSONValueField(serializers.Field[Any, Any, Any, Any]):
    """Any JSON but null, with which an edit takes a field away."""

    def to_internal_value(self, data: Any) -> Any:
        _storable(data, name="The value")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class MetadataField(JSONValueField):
    """Any JSON of a bounded size."""

    def to_internal_value(self, data: Any) -> Any:
        if len(json.dumps(super().to_internal_value(data))) > METADATA_MOST_BYTES:
            raise serializers.ValidationError(f"The metadata is longer than {METADATA_MOST_BYTES} bytes of JSON.")
        return data


@extend_schema_field(
    {
        "type": "array",
        "items": {
            "oneOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "enum": [f"{number}xx" for number in range(1, 6)]},
            ]
        },
        "minItems": 1,
        "maxItems": STATUSES_MOST,
    }
)
class StatusesField(serializers.Field[Any, Any, Any, Any]):
    """Status codes and classes of them that count as a success."""

    def to_internal_value(self, data: Any) -> list[int | str]:
        classes = [f"{number}xx" for number in range(1, 6)]
        if not isinstance(data, list) or not 1 <= len(data) <= STATUSES_MOST:
            raise serializers.ValidationError(f"A list of 1 to {STATUSES_MOST} status codes is required.")
        for item in data:
            if item not in classes and not (type(item) is int and 100 <= item <= 599):  # noqa: PLR2004 - HTTP's
                raise serializers.ValidationError('Each is a status code from 100 to 599, or a class like "2xx".')
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a name with a slip in it would otherwise be an option not taken."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        errors: dict[str, Any] = {}
        if isinstance(data, Mapping):
            known = ", ".join(self.fields)
            unknown = [name for name in data if name not in self.fields]
            # Names come from outside: shown in ASCII, and not all of a long list.
            errors = {ascii(name)[1:101].rstrip("'"): [f"Unknown field. Known are: {known}."] for name in unknown[:10]}
            errors |= self.missing(data)
        values: dict[str, Any] = {}
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            # Everything that is wrong in one answer.
            errors |= error.detail  # type: ignore[arg-type]  # of fields, so a dict
        if errors:
            raise serializers.ValidationError(errors)
        return values

    def missing(self, data: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - for those who need it
        """Return errors of what should be there."""
        return {}


class RetrySerializer(StrictSerializer):
    """When a failed attempt is made again. Times in seconds."""

    max_attempts = WholeNumberField(
        min_value=1, max_value=100, required=False, help_text="Attempts in all, the first included. Default 5."
    )
    backoff = OneOfField(
        choices=("exponential", "fixed", "list"),
        required=False,
        help_text="`exponential` (default): min_seconds, then times multiplier each time, up to max_seconds. `fixed`:"
        " min_seconds each time. `list`: delays_seconds in turn, the last one again and again.",
    )
    min_seconds = NumberField(min_value=0.1, max_value=86_400, required=False, help_text="The first wait. Default 5.")
    max_seconds = NumberField(min_value=0.1, max_value=86_400, required=False, help_text="Default 3600.")
    multiplier = NumberField(min_value=1, max_value=10, required=False, help_text="Default 3.")
    jitter = NumberField(
        min_value=0, max_value=1, required=False, help_text="Share of a wait that is left to chance. Default 0.2."
    )
    delays_seconds = serializers.ListField(
        child=NumberField(min_value=0, max_value=86_400),
        min_length=1,
        max_length=100,
        required=False,
        help_text="With `list`. Without max_attempts there is one attempt more than delays.",
    )
    max_age_seconds = NumberField(
        min_value=1,
        max_value=retry.MAX_AGE_SECONDS,
        required=False,
        help_text="No attempt is begun later than this after the promised moment. Default and most: 7 days.",
    )

    def get_value(self, dictionary: Any) -> Any:
        # A form has no objects: what it says here is refused rather than passed over.
        return dictionary.get(self.field_name, serializers.empty)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        backoff = attrs.get("backoff", "exponential")
        errors: dict[str, Any] = {}
        if backoff == "list" and "delays_seconds" not in attrs:
            errors["delays_seconds"] = ['Required with "backoff": "list".']
        of_others = {"exponential": ("delays_seconds",), "fixed": ("delays_seconds", "max_seconds", "multiplier")}
        for name in of_others.get(backoff, ("min_seconds", "max_seconds", "multiplier")):
            if name in attrs:
                errors[name] = [f'Does nothing with "backoff": "{backoff}"; leave it out.']
        policy = retry.Policy.read(attrs)
        if backoff == "exponential" and policy.min_seconds > policy.max_seconds:
            errors["max_seconds"] = [f"Must not be less than min_seconds, {policy.min_seconds:g}."]
        if errors:
            raise serializers.ValidationError(errors)
        if backoff == "list" and "max_attempts" not in attrs:
            attrs["max_attempts"] = min(100, len(attrs["delays_seconds"]) + 1)
        return attrs


class PlainTimerSerializer(StrictSerializer):
    """A URL, and how long from now it is called."""

    hours = WholeNumberField(min_value=0, required=False, help_text="Hours from now.")
    minutes = WholeNumberField(min_value=0, required=False, help_text="Minutes from now, added to the hours.")
    seconds = WholeNumberField(min_value=0, required=False, help_text="Seconds from now, added to both. 0 means now.")
    web_url = WebUrlField(help_text="The http or https URL to call.")

    def missing(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {} if data.keys() & UNITS.keys() else {"seconds": [WHEN_MISSING]}

    def validate(self, attrs: dict[str, Any]) -> Any:
        return services.NewTimer(web_url=attrs["web_url"], delay_seconds=_delay(attrs))


def _delay(attrs: Mapping[str, Any]) -> float:
    """Return the sum of hours, minutes and seconds. Raises ValidationError."""
    given = [unit for unit in UNITS if unit in attrs]
    if not given:
        # A form whose fields are there, and empty.
        raise serializers.ValidationError({"seconds": [WHEN_MISSING]})
    delay = sum(attrs[unit] * UNITS[unit] for unit in given)
    horizon = settings.WEBTASK_HORIZON_SECONDS
    if delay > horizon:
        days = timedelta(seconds=horizon).days
        raise serializers.ValidationError(
            {unit: [f"Too far ahead: at most {horizon} seconds ({days} days) in all."] for unit in given}
        )
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
            errors["seconds"] = [WHEN_MISSING]
        if len(kinds) - len(units) + bool(units) > 1:
            errors |= {name: [ONE_WHEN] for name in kinds if name not in units}
        if "cron" not in data and "timezone" in data and self.when_required:
            errors["timezone"] = ["Only with cron: an instant has its own offset, and an interval needs none."]
        if not any(name in data for name in RECURRING) and self.when_required:
            for name in ("starts_at", "ends_at", "max_occurrences"):
                if name in data:
                    errors[name] = ["Only with cron or every."]
        return errors

    def validate_cron(self, value: str) -> str:
        return _checked(recurrence.check_cron, value)

    def validate_timezone(self, value: str) -> str:
        return _checked(recurrence.check_timezone, value)

    def validate_every(self, value: float) -> float:
        if value < 1:
            raise serializers.ValidationError("At least one second: PT1S.")
        return value

    def schedule(self, attrs: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
        """Return what services.NewTimer has of a schedule. Raises ValidationError."""
        if "due_at" in attrs:
            return {"due_at": attrs["due_at"]}
        if "delay" in attrs:
            return {"delay_seconds": attrs["delay"]}
        if not any(name in attrs for name in RECURRING):
            return {"delay_seconds": _delay(attrs)}
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
            raise serializers.ValidationError({field: ["This schedule has no moment that is still to come."]})
        return {"recurrence": found, "max_occurrences": attrs.get("max_occurrences")}


def _checked(check: Any, value: str) -> str:
    try:
        return str(check(value))
    except recurrence.ScheduleError as error:
        raise serializers.ValidationError(str(error)) from error


class NewTimerSerializer(ScheduleSerializer):
    """What is called, when, and what is made of it. Read into services.NewTimer."""

    web_url = WebUrlField(help_text="The http or https URL to call.")
    name = TextField(
        max_length=NAME_MAX_LENGTH,
        required=False,
        allow_blank=True,
        help_text="For people; the list can be searched by it.",
    )
    labels = LabelsField(
        required=False, help_text=f"Up to {LABELS_MOST} keys and values of up to 63 characters, to find timers by."
    )
    metadata = MetadataField(required=False, help_text="Any JSON up to 16 KiB, given back as it is.")
    method = OneOfField(choices=METHODS, required=False, help_text="Default POST.")
    headers = HeadersField(
        required=False,
        help_text="Sent with each call. Host, hop-by-hop headers and our own (`webhook-`, `webtask-`) are refused.",
    )
    body = JSONValueField(
        required=False,
        help_text="A text is sent as it is, any other JSON as JSON. Without a body, POST, PUT and PATCH carry a small"
        " JSON of ours: see the `timerDue` webhook.",
    )
    body_base64 = TextField(required=False, help_text="Bytes to send, in base64, instead of `body`.")
    content_type = TextField(
        max_length=CONTENT_TYPE_MAX_LENGTH,
        required=False,
        help_text="Of the body. Default: `text/plain; charset=utf-8` for a text, `application/json` for JSON,"
        " `application/octet-stream` for bytes.",
    )
    timeout_seconds = NumberField(
        min_value=1, max_value=300, required=False, help_text="For the whole call. Default 30 (a setting)."
    )
    follow_redirects = TrueOrFalseField(
        required=False, help_text="Follow up to three redirects, each under the same rules. Default false."
    )
    success_statuses = StatusesField(
        required=False, help_text='Status codes, or classes like "3xx", that count as a success. Default ["2xx"].'
    )
    retry = RetrySerializer(required=False, help_text="When a failed attempt is made again.")
    on_missed = OneOfField(
        choices=ON_MISSED,
        required=False,
        help_text="`fire` (default): called however late, and one call stands for all moments that passed meanwhile."
        " `skip`: later than max_lateness it is recorded as missed and not called. `reject`: a due_at that has passed"
        " is refused with 422.",
    )
    max_lateness = DurationField(required=False, help_text='With "on_missed": "skip". Default PT1M.')
    callback_url = WebUrlField(required=False, help_text="Called with the outcome after each delivery that succeeded.")
    failure_callback_url = WebUrlField(
        required=False, help_text="Called with the outcome after each delivery that failed or was missed."
    )

    def validate_body_base64(self, value: str) -> str:
        try:
            size = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise serializers.ValidationError("This is not base64.") from error
        _check_size(size)
        return value

    def validate_body(self, value: Any) -> Any:
        _check_size(len(value.encode() if isinstance(value, str) else json.dumps(value).encode()))
        return value

    def validate_content_type(self, value: str) -> str:
        if not _is_media_type(value):
            raise serializers.ValidationError(NO_MEDIA_TYPE)
        return value

    def validate(self, attrs: dict[str, Any]) -> Any:
        errors = _conflicts(attrs)
        if errors:
            raise serializers.ValidationError(errors)
        now = timezone.now()
        schedule = self.schedule(attrs, now=now) if any(name in attrs for name in WHEN) or self.when_required else {}
        on_missed = attrs.get("on_missed", "fire")
        if on_missed == "reject":
            if "recurrence" in schedule:
                raise serializers.ValidationError(
                    {"on_missed": ["reject is for a due_at; a schedule has many moments."]}
                )
            if schedule.get("due_at") is not None and schedule["due_at"] < now:
                raise PastDue({"due_at": ['It has passed, and "on_missed" is "reject".']})
        late = attrs.get("max_lateness", MAX_LATENESS_SECONDS) if on_missed == "skip" else None
        return services.NewTimer(
            web_url=attrs["web_url"],
            name=attrs.get("name", ""),
            options=_options(attrs),
            max_lateness_seconds=late,
            **schedule,
        )


def _is_media_type(text: str) -> bool:
    return len(text) <= CONTENT_TYPE_MAX_LENGTH and _CONTENT_TYPE.fullmatch(text) is not None


def _check_size(size: int) -> None:
    if size > settings.WEBTASK_BODY_LIMIT_BYTES:
        raise serializers.ValidationError(f"The body is longer than {settings.WEBTASK_BODY_LIMIT_BYTES} bytes.")


def _conflicts(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return errors of fields that do not go together."""
    errors: dict[str, Any] = {}
    has_body = "body" in attrs or "body_base64" in attrs
    method = attrs.get("method", "POST")
    if "body" in attrs and "body_base64" in attrs:
        errors["body_base64"] = ["Give either body or body_base64."]
    if has_body and method in WITHOUT_BODY:
        errors["body" if "body" in attrs else "body_base64"] = [f"{method} carries no body."]
    in_headers = [value for name, value in attrs.get("headers", {}).items() if name.lower() == "content-type"]
    if "content_type" in attrs and in_headers:
        errors["content_type"] = ["Give it either here or in headers."]
    elif ("content_type" in attrs or in_headers) and not has_body:
        errors["headers" if in_headers else "content_type"] = ["A content type is only for a body or body_base64."]
    elif in_headers and not _is_media_type(in_headers[0]):
        errors["headers"] = [NO_MEDIA_TYPE]
    if "max_lateness" in attrs and attrs.get("on_missed") != "skip":
        errors["max_lateness"] = ['Only with "on_missed": "skip".']
    return errors


def _options(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what models.Timer keeps of a request, as given, without what is the default anyway."""
    options = {name: attrs[name] for name in OPTIONS if name in attrs}
    defaults = {"method": "POST", "headers": {}, "follow_redirects": False, "labels": {}, "retry": {}}
    options = {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}
    # A past moment is looked at once, when it is given.
    if options.get("on_missed") in ("fire", "reject"):
        del options["on_missed"]
    if "max_lateness" in options:
        options["max_lateness"] = recurrence.format_duration(options["max_lateness"])
    headers = options.get("headers", {})
    for name in [name for name in headers if name.lower() == "content-type"]:
        options["content_type"] = headers[name]
        options["headers"] = {key: value for key, value in headers.items() if key != name}
    return options


class EditSerializer(NewTimerSerializer):
    """As NewTimerSerializer; without a schedule the present one stays."""

    when_required = False


class BatchSerializer(StrictSerializer):
    """Up to a thousand timers, stored all or none, or each that is valid."""

    timers = NewTimerSerializer(many=True, help_text=f"1 to {BATCH_MOST} timers.")
    partial = serializers.BooleanField(  # type: ignore[assignment]  # a field by that name
        default=False, help_text="Store what is valid and say of each what became of it, rather than all or none."
    )


_kept = threading.local()


def read_timer(data: Any) -> services.NewTimer:
    """Return a timer as JSON has it. Raises ValidationError.

    With one serializer for each thread: making one for each timer costs more than reading it.
    """
    if not hasattr(_kept, "plain"):
        _kept.plain, _kept.full = PlainTimerSerializer(), NewTimerSerializer()
    plain = isinstance(data, dict) and data.keys() <= PLAIN
    timer: services.NewTimer = (_kept.plain if plain else _kept.full).run_validation(data)
    return timer


def edited(timer: Timer, patch: Mapping[str, Any]) -> tuple[services.NewTimer, bool]:
    """Return what a timer is to be after an edit, and whether it is given another moment. Raises ValidationError.

    The edit is a JSON merge patch (RFC 7396) of what was given: null takes a field away.
    """
    schedule = _schedule_given(timer)
    given: dict[str, Any] = {"web_url": timer.web_url} | ({"name": timer.name} if timer.name else {})
    given |= timer.options or {}
    depth = given.pop("depth", None)
    serializer: NewTimerSerializer = EditSerializer()
    unknown = patch.keys() - serializer.fields.keys()
    # To take away what is not there is no change.
    patch = {name: value for name, value in patch.items() if value is not None or name in given or name in schedule}
    reschedule = any(name in patch for name in WHEN)
    if reschedule:
        kind = next((name for name in (*ONCE, *RECURRING) if patch.get(name) is not None), None)
        if kind in RECURRING and kind not in schedule:
            # Another kind of schedule in place of the present one. The first moment of an interval is a part of it.
            for name in (*RECURRING, "timezone", "starts_at"):
                schedule.pop(name, None)
        elif kind == "every":
            schedule.pop("starts_at", None)
        if kind not in ONCE:
            given |= schedule
    merged = _merged(given, patch) | dict.fromkeys(unknown)
    if reschedule:
        serializer = NewTimerSerializer()
    new: services.NewTimer = serializer.run_validation(merged)
    if depth is not None:
        new = replace(new, options={**new.options, "depth": depth})
    return new, reschedule


def _merged(given: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(given) if isinstance(given, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            # Free JSON is taken as it is: a patch could not put null into it.
            result[name] = value if name in ("metadata", "body") else _merged(result.get(name), value)
    return result


def _schedule_given(timer: Timer) -> dict[str, Any]:
    """Return the schedule of a timer that recurs, as the API has it; empty for one that is called once."""
    found: dict[str, Any] = {}
    if timer.cron:
        found |= {"cron": timer.cron, "timezone": timer.timezone}
    elif timer.every_seconds is not None:
        found |= {"every": recurrence.format_duration(timer.every_seconds)}
    if timer.starts_at is not None:
        found["starts_at"] = _shown(timer.starts_at)
    if timer.ends_at is not None:
        found["ends_at"] = _shown(timer.ends_at)
    if timer.max_occurrences is not None:
        found["max_occurrences"] = timer.max_occurrences
    return found


class AttemptSerializer(serializers.ModelSerializer[Attempt]):
    """One HTTP call."""

    lateness_ms = serializers.FloatField(help_text="Start minus the moment it was meant to start, in milliseconds.")
    duration_ms = serializers.IntegerField(allow_null=True, help_text="Null where the outcome is unknown.")
    status_code = serializers.IntegerField(allow_null=True, help_text="Null where no answer came.")
    error = serializers.ChoiceField(
        choices=[("", "none"), *ErrorKind.choices], help_text="The kind of error; empty for a success."
    )
    message = serializers.CharField(help_text="What went wrong, in a sentence; empty for a success.")

    class Meta:
        model = Attempt
        fields = ("number", "started_at", "lateness_ms", "duration_ms", "status_code", "error", "message")


class TimerSerializer(serializers.Serializer[Any]):
    """A timer: what it calls, when, and what came of it. What was given beyond a URL and a time comes back as given."""

    task_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=State.choices)
    # Not a URLField: what is accepted may hold letters outside ASCII, which no `uri` does.
    web_url = serializers.CharField(max_length=URL_MAX_LENGTH)
    created_at = serializers.DateTimeField()
    due_at = serializers.DateTimeField(help_text="The promised moment. Retries do not change it.")
    time_left_in_seconds = serializers.IntegerField(
        min_value=0, help_text="To the promised moment, rounded up; 0 once it is due and ever after."
    )
    next_attempt_at = serializers.DateTimeField(
        allow_null=True, help_text="When it is called next; null while paused, in flight, and once it has ended."
    )
    finished_at = serializers.DateTimeField(allow_null=True, help_text="When it ended; null before.")
    reason = serializers.CharField(
        allow_null=True, help_text="Why it has not been called successfully yet; null once it has."
    )
    attempts = AttemptSerializer(many=True, help_text="The calls made for the promised moment, oldest first.")
    occurrence = serializers.IntegerField(
        min_value=1, required=False, help_text="Of a timer that recurs: which of its moments this is, from 1."
    )
    callback_for = serializers.UUIDField(
        required=False, help_text="Of a callback: the `delivery_id` whose outcome it carries."
    )

    depth = serializers.IntegerField(
        min_value=1,
        required=False,
        help_text="Of a timer that a call of another timer led to: its own calls may make no timers.",
    )

    def get_fields(self) -> dict[str, Any]:
        given = NewTimerSerializer().get_fields()
        names = ("name", *RECURRING, *BOUNDS, *OPTIONS)
        return super().get_fields() | {name: given[name] for name in names}


def stored_body(stored: services.Scheduled, timer: services.NewTimer) -> dict[str, Any]:
    """Return a timer just stored as TimerSerializer describes it; what creating answers, so made for speed."""
    due_at = _shown(stored.due_at)
    left = math.ceil((stored.due_at - stored.created_at) / timedelta(seconds=1))
    body = {
        "task_id": str(stored.timer_id),
        "status": SCHEDULED,
        "web_url": timer.web_url,
        "created_at": _shown(stored.created_at),
        "due_at": due_at,
        "time_left_in_seconds": max(0, left),
        "next_attempt_at": due_at,
        "finished_at": None,
        "reason": NOT_YET if left > 0 else facts.gather().cause(host_of(timer.web_url)) or NOT_CLAIMED,
        "attempts": [],
    }
    if timer.name:
        body["name"] = timer.name
    if timer.recurrence is not None:
        shown = Timer(max_occurrences=timer.max_occurrences)
        for name in ("cron", "timezone", "every_seconds", "starts_at", "ends_at"):
            setattr(shown, name, getattr(timer.recurrence, name))
        body |= {"occurrence": 1} | _schedule_given(shown)
    return body | dict(timer.options) if timer.options else body


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def timer_body(timer: Timer, delivery: Delivery, *, now: datetime, attempts: list[Attempt]) -> dict[str, Any]:
    """Return a timer, with its latest promised delivery, as TimerSerializer describes it."""
    body = {
        "task_id": str(timer.pk),
        "status": delivery.state,
        "web_url": timer.web_url,
        "created_at": _shown(timer.created_at),
        "due_at": _shown(delivery.due_at),
        "time_left_in_seconds": delivery.time_left_seconds(now=now),
        "next_attempt_at": _shown(delivery.next_attempt_at) if delivery.state == State.SCHEDULED else None,
        "finished_at": delivery.finished_at and _shown(delivery.finished_at),
        "reason": _reason(timer.host, delivery, now=now, attempts=attempts),
        "attempts": AttemptSerializer(attempts, many=True).data if attempts else [],
    }
    if timer.name:
        body["name"] = timer.name
    if timer.recurring:
        body |= {"occurrence": delivery.moment} | _schedule_given(timer)
    if timer.outcome_of is not None:
        body["callback_for"] = str(timer.outcome_of)
    return body | (timer.options or {})


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """The whole effort for one promised moment, over all attempts."""

    delivery_id = serializers.UUIDField(source="id", help_text="Sent as `webhook-id` with every attempt.")
    occurrence = serializers.IntegerField(source="moment", help_text="Which of the timer's moments, from 1.")
    extra = serializers.BooleanField(help_text="Made by run, or replayed beside a later one.")
    status = serializers.ChoiceField(source="state", choices=State.choices)
    next_attempt_at = serializers.SerializerMethodField(help_text="Null unless it waits.")
    attempts = serializers.IntegerField(help_text="Attempts begun so far.")
    replayed_at = serializers.DateTimeField(allow_null=True, help_text="When it was last replayed; null if never.")
    finished_at = serializers.DateTimeField(allow_null=True)

    class Meta:
        model = Delivery
        fields = (
            "delivery_id",
            "occurrence",
            "extra",
            "status",
            "due_at",
            "next_attempt_at",
            "attempts",
            "replayed_at",
            "finished_at",
        )

    @extend_schema_field({"type": ["string", "null"], "format": "date-time"})
    def get_next_attempt_at(self, delivery: Delivery) -> str | None:
        return _shown(delivery.next_attempt_at) if delivery.state == State.SCHEDULED else None


class CallSerializer(AttemptSerializer):
    """One HTTP call, with what the receiver answered."""

    delivery_id = serializers.UUIDField()
    excerpt = serializers.CharField(help_text="The beginning of the answer's body, up to 2,048 characters.")

    class Meta(AttemptSerializer.Meta):
        fields = ("delivery_id", *AttemptSerializer.Meta.fields, "excerpt")  # type: ignore[assignment]  # more of them


class QueryListField(serializers.ListField):
    """A list in a query: given several times, or in one text with commas."""

    def get_value(self, dictionary: Any) -> Any:
        if isinstance(dictionary, QueryDict):
            values = [part for text in dictionary.getlist(str(self.field_name)) for part in text.split(",") if part]
            return values or serializers.empty
        return super().get_value(dictionary)


class QueryInstantField(InstantField):
    """An instant in a query, where a plus sign that was not encoded arrives as a space."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str):
            data = re.sub(r" (\d\d:?\d\d)$", r"+\1", data)
        return super().to_internal_value(data)


class FilterSerializer(StrictSerializer):
    """Which timers: every field narrows it."""

    status = QueryListField(
        child=OneOfField(choices=State.choices),
        required=False,
        max_length=len(State),
        help_text="One status or several, with commas.",
    )
    host = TextField(
        max_length=HOST_MAX_LENGTH, required=False, help_text="Of the URL, with its port where the URL has one."
    )
    label = TextField(  # type: ignore[assignment]  # a field by that name
        max_length=127, required=False, help_text="`key=value`"
    )
    due_from = QueryInstantField(required=False, help_text="Due then or later.")
    due_to = QueryInstantField(required=False, help_text="Due before.")
    recurring = TrueOrFalseField(required=False, help_text="Whether it recurs.")
    name = TextField(max_length=NAME_MAX_LENGTH, required=False, help_text="A part of the name, whatever the case.")
    url_prefix = TextField(max_length=URL_MAX_LENGTH, required=False, help_text="How the URL begins.")

    def validate_label(self, value: str) -> str:
        if "=" not in value:
            raise serializers.ValidationError("A label is asked for as key=value.")
        return value


class ListSerializer(FilterSerializer):
    """A page of a list."""

    limit = WholeNumberField(min_value=1, max_value=200, default=50, help_text="Timers of one page, 50 if not given.")
    cursor = TextField(max_length=1000, required=False, allow_blank=True, help_text="The `next` of the page before.")

    def get_fields(self) -> dict[str, Any]:
        # Left empty in a query, a text narrows nothing or its field refuses it.
        fields = super().get_fields()
        for field in fields.values():
            if isinstance(field, TextField):
                field.allow_blank = True
        return fields


class PageSerializer(StrictSerializer):
    """Where a list of something else goes on."""

    limit = WholeNumberField(min_value=1, max_value=200, default=50)
    cursor = TextField(max_length=100, required=False, allow_blank=True)


class TimersSerializer(serializers.Serializer[Any]):
    """A page of timers."""

    timers = TimerSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")


class BulkSerializer(StrictSerializer):
    """Something to do to all timers that fit a filter."""

    action = OneOfField(choices=BulkOperation.Action.choices)
    filter = FilterSerializer(help_text="As the list takes it. Empty, it means all timers.")
    dry_run = TrueOrFalseField(default=False, help_text="Only count.")


class BulkStatusSerializer(serializers.ModelSerializer[BulkOperation]):
    """A bulk operation and how far it has come."""

    bulk_id = serializers.UUIDField(source="id")
    status = serializers.SerializerMethodField()

    class Meta:
        model = BulkOperation
        fields = (
            "bulk_id",
            "action",
            "filter",
            "dry_run",
            "status",
            "matched",
            "changed",
            "created_at",
            "finished_at",
            "error",
        )

    @extend_schema_field({"type": "string", "enum": ["running", "done", "failed"]})
    def get_status(self, operation: BulkOperation) -> str:
        if operation.finished_at is None:
            return "running"
        return "failed" if operation.error else "done"


def bulk_filter(operation: BulkOperation) -> search.Filter:
    """Return the filter of a stored bulk operation. Raises ValidationError where this version does not know it."""
    serializer = FilterSerializer(data=operation.filter)
    serializer.is_valid(raise_exception=True)
    everyone = operation.owner is not None and operation.owner.is_superuser
    found = search.filter_of(serializer.validated_data, owner_id=operation.owner_id, everyone=everyone)
    return replace(found, steady=True)


class PreviewSerializer(ScheduleSerializer):
    """A schedule to look at."""

    count = WholeNumberField(min_value=1, max_value=100, default=5, help_text="Moments to show.")
    after = InstantField(required=False, help_text="Moments after this one; default: now.")


def previewed(reader: PreviewSerializer) -> dict[str, Any]:
    """Return the next moments of a schedule as MomentsSerializer describes them."""
    attrs = reader.validated_data
    now = attrs.get("after") or timezone.now()
    schedule = reader.schedule(attrs, now=now)
    found = schedule.get("recurrence")
    if found is None:
        at = schedule.get("due_at") or now + timedelta(seconds=schedule["delay_seconds"])
        return {"moments": [{"at": _shown(at), "local": at.isoformat(), "note": ""}], "more": False}
    zone = ZoneInfo(found.timezone)
    count = min(attrs["count"], schedule["max_occurrences"] or attrs["count"])
    moments: list[dict[str, str]] = []
    previous: datetime | None = None
    more = False
    for moment in found.moments(now):
        if len(moments) == count:
            more = schedule["max_occurrences"] is None or count < schedule["max_occurrences"]
            break
        note = recurrence.transition_note(moment, previous, found.timezone) if found.cron else ""
        moments.append({"at": _shown(moment), "local": moment.astimezone(zone).isoformat(), "note": note})
        previous = moment
    return {"moments": moments, "more": more}


class MomentSerializer(serializers.Serializer[Any]):
    """One moment of a schedule."""

    at = serializers.DateTimeField(help_text="In UTC.")
    local = serializers.CharField(help_text="In the schedule's time zone, with its offset at that moment.")
    note = serializers.CharField(help_text="What the clocks of the zone do just before; empty where they do nothing.")


class MomentsSerializer(serializers.Serializer[Any]):
    """The next moments of a schedule."""

    moments = MomentSerializer(many=True)
    more = serializers.BooleanField(help_text="Whether there are moments after these.")


class NothingSerializer(StrictSerializer):
    """No body, or an empty object."""


class ReplaySerializer(StrictSerializer):
    """Which delivery to replay."""

    delivery_id = IdField(
        required=False, help_text="A delivery that failed or was missed. Default: the timer's latest such one."
    )


class NewSecretSerializer(StrictSerializer):
    """A signing secret to add."""

    secret = TextField(
        max_length=100, required=False, help_text="`whsec_` and 24 to 64 bytes in base64. Default: a new one is made."
    )

    def validate_secret(self, value: str) -> str:
        try:
            signing.check_secret(value)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error
        return value


class SecretSerializer(serializers.ModelSerializer[SigningSecret]):
    """A signing secret, of which only the end is shown."""

    id = serializers.IntegerField()
    hint = serializers.SerializerMethodField(help_text="The last four characters.")

    class Meta:
        model = SigningSecret
        fields = ("id", "hint", "created_at")

    def get_hint(self, secret: SigningSecret) -> str:
        return f"…{secret.secret[-4:]}"


class MadeSecretSerializer(SecretSerializer):
    """A signing secret just added: the one time that it is shown."""

    class Meta(SecretSerializer.Meta):
        fields = (*SecretSerializer.Meta.fields, "secret")  # type: ignore[assignment]  # one more


def _reason(host: str, delivery: Delivery, *, now: datetime, attempts: list[Attempt]) -> str | None:
    """Say in a sentence why a timer has not been called successfully."""
    last = attempts[-1].message if attempts else ""
    if delivery.cancel_requested_at and not delivery.is_final:
        return "It was cancelled while its call was in flight; that call may still land, no retry follows."
    if not delivery.is_final and delivery.state != State.PAUSED:
        return _waits(host, delivery, now=now, attempts=attempts)
    if delivery.fault:
        return f"This service could not go on with it: {delivery.fault}"
    calls = "attempt" if delivery.attempts == 1 else "attempts"
    return {
        State.PAUSED: "It is paused; resume it to let it go on.",
        State.FAILED: f"It was given up after {delivery.attempts} {calls}. {last}".strip(),
        State.CANCELLED: "It was cancelled.",
        State.MISSED: "Its moment had passed by more than its allowed lateness.",
    }.get(State(delivery.state))


def _waits(host: str, delivery: Delivery, *, now: datetime, attempts: list[Attempt]) -> str:
    """Say what an open delivery waits for, and what stands in its way."""
    last = f"Attempt {attempts[-1].number} failed: {attempts[-1].message}" if attempts and attempts[-1].message else ""
    if delivery.state == State.SCHEDULED and delivery.next_attempt_at > now:
        slow = "All places for calls that wait are taken by slow hosts; it is called at next_attempt_at."
        again = f"{last} It is tried again at next_attempt_at." if last else ""
        return again or (NOT_YET if delivery.due_at > now else slow)
    found = facts.gather()
    cause = found.cause(host, claimed=delivery.state != State.SCHEDULED)
    if delivery.state == State.SCHEDULED:
        return f"{last} {cause or 'It is due to be tried again.'}" if last else cause or NOT_CLAIMED
    if delivery.state == State.CLAIMED:
        behind = f"A beat has claimed it; {found.behind}" if found.behind else ""
        return cause or behind or "A beat has claimed it; a worker calls it at its moment."
    if delivery.state == State.HELD:
        return cause or "Calls to its host were stopped and are resumed; it is called within seconds."
    if found.has_live_worker:
        return "A worker is calling it now."
    return "A worker was calling it, and no worker is at work now; what became of the call is not known yet."
