"""The fields of the serializers: strict about types, and clear about what is wrong."""

import json
import math
import re
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import QueryDict
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop
from drf_spectacular.utils import (
    extend_schema_field,
)
from rest_framework import serializers

from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    URL_MAX_LENGTH,
    host_of,
)
from webtask_scheduler.scheduler.outgoing import checks
from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.sealing import shown_url
from webtask_scheduler.wording import translated

LABELS_MOST = 20
METADATA_MOST_BYTES = 16 * 1024
STATUSES_MOST = 20
CONTENT_TYPE_MAX_LENGTH = 200
NO_MEDIA_TYPE = gettext_noop("A media type is required, like text/plain or application/json.")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[\x20-\x7e]*[\x21-\x7e])?")
# NUL in JSON, not after a backslash, which would make it plain text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _in_form(field: serializers.Field[Any, Any, Any, Any]) -> bool:
    """Return whether a field is read from a form, which has only text."""
    return isinstance(getattr(field.root, "initial_data", None), QueryDict)


def _storable(value: Any) -> None:
    """Check that JSON, or a text, can be stored and sent as it is. Raises ValidationError."""
    is_text = isinstance(value, str)
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        if is_text:
            raise serializers.ValidationError(_("The text has a character that JSON cannot hold.")) from error
        raise serializers.ValidationError(_("The value has a number or a character that JSON cannot hold.")) from error
    except TypeError as error:
        # For example a file in a form.
        raise serializers.ValidationError(_("The value is no JSON.")) from error
    if _NUL.search(text):
        raise serializers.ValidationError(
            _("The text must not hold the character NUL.")
            if is_text
            else _("The value must not hold the character NUL.")
        )


class WholeNumberField(serializers.IntegerField):
    """A JSON integer. Booleans, fractions and quoted numbers are other types; a form has only text, so there digits."""

    default_error_messages = {
        "invalid": gettext_lazy("A whole number is required."),
        "min_value": gettext_lazy("Must be {min_value} or more."),
    }

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

    default_error_messages = {"invalid": gettext_lazy("A number is required.")}

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, str) and _in_form(self):
            data = super().to_internal_value(data)
        # A whole number stays an integer, as it was given.
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
            raise serializers.ValidationError(_("Must be true or false."))
        return data


class TextField(serializers.CharField):
    """A JSON string as it is: not trimmed, and no number made into one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        _storable(data)
        return str(super().to_internal_value(data))


class OneOfField(serializers.ChoiceField):
    """One of several words. What was given instead is not repeated: it may be long."""

    default_error_messages = {"invalid_choice": gettext_lazy("Must be one of: {words}.")}

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
            checks.check_url(data, max_length=URL_MAX_LENGTH, egress=settings.WEBTASK_EGRESS)
        except ValueError as error:
            raise serializers.ValidationError(translated(error)) from error
        if "@" in data and len(shown_url(data)) > URL_MAX_LENGTH:
            raise serializers.ValidationError(
                _("The URL is longer than %(most)s characters.") % {"most": URL_MAX_LENGTH}
            )
        if len(host_of(data)) > HOST_MAX_LENGTH:
            raise serializers.ValidationError(translated(checks.BAD_HOST))
        return data


@extend_schema_field({"type": "string", "format": "duration", "maxLength": 64})
class DurationField(TextField):
    """An ISO 8601 duration, read as seconds."""

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        try:
            seconds = recurrence.parse_duration(text)
        except recurrence.ScheduleError as error:
            raise serializers.ValidationError(translated(error)) from error
        if seconds > settings.WEBTASK_HORIZON_SECONDS:
            raise serializers.ValidationError(_too_far())
        return seconds


@extend_schema_field({"type": "string", "format": "date-time", "maxLength": 40})
class InstantField(TextField):
    """An ISO 8601 instant with an offset from UTC."""

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        try:
            instant = read_instant(text)
            far = abs((instant - timezone.now()).total_seconds()) > settings.WEBTASK_HORIZON_SECONDS
        except ValueError as error:
            raise serializers.ValidationError(translated(error)) from error
        if far:
            raise serializers.ValidationError(_too_far())
        return instant


def _too_far() -> str:
    horizon = settings.WEBTASK_HORIZON_SECONDS
    most = {"seconds": horizon, "days": timedelta(seconds=horizon).days}
    return _("Too far from now: at most %(seconds)s seconds (%(days)s days).") % most


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
            raise serializers.ValidationError(_("An object of header names and texts is required."))
        try:
            return checks.check_headers(data)
        except ValueError as error:
            raise serializers.ValidationError(translated(error)) from error

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
            raise serializers.ValidationError(_("An object of keys and texts is required."))
        if len(data) > LABELS_MOST:
            raise serializers.ValidationError(_("At most %(most)s labels are taken.") % {"most": LABELS_MOST})
        for key, value in data.items():
            if not _LABEL_KEY.fullmatch(key):
                raise serializers.ValidationError(
                    _("%(key)s is no label's key: up to 63 letters, digits and . _ / - after a first letter or digit.")
                    % {"key": ascii(key)[:80]}
                )
            if len(value) > 63 or not value.isprintable():  # noqa: PLR2004 - as the key
                raise serializers.ValidationError(
                    _("The value of %(key)s is longer than 63 characters or not printable.") % {"key": key}
                )
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field({"not": {"type": "null"}})
class JSONValueField(serializers.Field[Any, Any, Any, Any]):
    """Any JSON but null, with which an edit takes a field away."""

    def to_internal_value(self, data: Any) -> Any:
        _storable(data)
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class MetadataField(JSONValueField):
    """Any JSON of a bounded size."""

    def to_internal_value(self, data: Any) -> Any:
        if len(json.dumps(super().to_internal_value(data))) > METADATA_MOST_BYTES:
            raise serializers.ValidationError(
                _("The metadata is longer than %(most)s bytes of JSON.") % {"most": METADATA_MOST_BYTES}
            )
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
            raise serializers.ValidationError(
                _("A list of 1 to %(most)s status codes is required.") % {"most": STATUSES_MOST}
            )
        for item in data:
            if item not in classes and not (type(item) is int and 100 <= item <= 599):  # noqa: PLR2004 - HTTP's
                raise serializers.ValidationError(_('Each is a status code from 100 to 599, or a class like "2xx".'))
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
            for name in unknown[:10]:
                said = _("Unknown field. Known are: %(known)s.") % {"known": known}
                errors[ascii(name)[1:101].rstrip("'")] = [said]
            errors |= self.missing(data)
        values: dict[str, Any] = {}
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            # Report all errors in one answer.
            errors |= error.detail  # type: ignore[arg-type]  # of fields, so a dict
        if errors:
            raise serializers.ValidationError(errors)
        return values

    def missing(self, data: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - for those who need it
        """Return errors for fields that are missing."""
        return {}


class NothingSerializer(StrictSerializer):
    """No body, or an empty object."""


def is_media_type(text: str) -> bool:
    return len(text) <= CONTENT_TYPE_MAX_LENGTH and CONTENT_TYPE.fullmatch(text) is not None


def check_size(size: int) -> None:
    if size > settings.WEBTASK_BODY_LIMIT_BYTES:
        raise serializers.ValidationError(
            _("The body is longer than %(most)s bytes.") % {"most": settings.WEBTASK_BODY_LIMIT_BYTES}
        )
