"""Reads the filters and pages of the list of timers from a query."""

import re
from collections.abc import Mapping
from typing import Any

from django.http import QueryDict
from django.utils.translation import gettext as _
from rest_framework import serializers

from webtask_scheduler.scheduler.api.fields import (
    IdField,
    InstantField,
    OneOfField,
    StrictSerializer,
    TextField,
    TrueOrFalseField,
    WholeNumberField,
)
from webtask_scheduler.scheduler.api.showing import CallSerializer, TimerSerializer
from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    NAME_MAX_LENGTH,
    URL_MAX_LENGTH,
    State,
)
from webtask_scheduler.scheduler.sealing import shown_url
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.wording import translated

# Of an e-mail address.
OWNER_MAX_LENGTH = 254
SHOWN_FIELDS = tuple(TimerSerializer().fields)
CALL_FIELDS = tuple(CallSerializer().fields)


class QueryListField(serializers.ListField):
    """A list in a query: given several times, or in one text with commas. In JSON a text is a list of one."""

    def get_value(self, dictionary: Any) -> Any:
        if isinstance(dictionary, QueryDict):
            values = [part for text in dictionary.getlist(str(self.field_name)) for part in text.split(",") if part]
            return values or serializers.empty
        found = super().get_value(dictionary)
        return [found] if isinstance(found, str) else found


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
    retrying = TrueOrFalseField(required=False, help_text="Whether it is scheduled to be tried again.")
    late = TrueOrFalseField(
        required=False, help_text="Whether it is scheduled, and due for more than a second without being called."
    )
    name = TextField(max_length=NAME_MAX_LENGTH, required=False, help_text="A part of the name, whatever the case.")
    url_prefix = TextField(max_length=URL_MAX_LENGTH, required=False, help_text="How the URL begins.")
    has_callback = TrueOrFalseField(
        required=False, help_text="Whether it has a `callback_url` or a `failure_callback_url`."
    )
    owner = TextField(
        max_length=OWNER_MAX_LENGTH,
        required=False,
        help_text="The e-mail address or the id of a user. Only for who sees the timers of all owners.",
    )
    changed_by = IdField(
        required=False,
        help_text="The `bulk_id` of an operation that paused or resumed it, if nothing else has since.",
    )

    def validate_label(self, value: str) -> str:
        if "=" not in value:
            raise serializers.ValidationError(_("A label is asked for as key=value."))
        return value

    def validate_owner(self, value: str) -> str:
        # A plus sign that was not encoded in a query arrives as a space, which no address has.
        return value.replace(" ", "+")

    def validate_url_prefix(self, value: str) -> str:
        # As URLs are stored.
        return shown_url(value)


def filter_of(values: Mapping[str, Any], *, caller: Caller) -> search.Filter:
    """Return a filter from the validated data of a FilterSerializer. Raises ValidationError."""
    try:
        return search.filter_of(values, caller=caller)
    except search.PartError as error:
        raise serializers.ValidationError({error.field: [translated(error)]}) from error


class ListSerializer(FilterSerializer):
    """A page of a list."""

    limit = WholeNumberField(min_value=1, max_value=200, default=50, help_text="Timers of one page, 50 if not given.")
    cursor = TextField(max_length=1000, required=False, allow_blank=True, help_text="The `next` of the page before.")
    fields = QueryListField(  # type: ignore[assignment]  # a field by that name
        child=OneOfField(choices=SHOWN_FIELDS),
        required=False,
        max_length=len(SHOWN_FIELDS),
        help_text="Only these of each timer and its `task_id`, with commas. A page without headers, bodies and metadata"
        " is small and quick, whatever the timers hold.",
    )

    count = TrueOrFalseField(
        default=False, help_text="Say how many timers fit, up to 10,000; each page takes longer by it."
    )

    def get_fields(self) -> dict[str, Any]:
        # An empty text in a query narrows nothing, or its field refuses it.
        fields: dict[str, Any] = super().get_fields()
        for field in fields.values():
            if isinstance(field, TextField):
                field.allow_blank = True
        return fields


class PageSerializer(StrictSerializer):
    """Where a list of something else goes on."""

    limit = WholeNumberField(min_value=1, max_value=200, default=50)
    cursor = TextField(max_length=100, required=False, allow_blank=True)


class AttemptsPageSerializer(PageSerializer):
    """A page of attempts."""

    fields = QueryListField(  # type: ignore[assignment]  # a field by that name
        child=OneOfField(choices=CALL_FIELDS),
        required=False,
        max_length=len(CALL_FIELDS),
        help_text="Only these of each attempt, its `delivery_id` and `number`, with commas. A page without answers is"
        " small and quick.",
    )
