"""The shapes that go in and out of the API. Shape only: rules and transactions are in services."""

import math
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.http import QueryDict
from rest_framework import serializers

from webtask_scheduler.scheduler import http, services
from webtask_scheduler.scheduler.models import URL_MAX_LENGTH, Attempt, Delivery, ErrorKind, State

UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
WHEN_MISSING = "Say when: give at least one of hours, minutes and seconds. 0 means now."
NOT_YET = "Its moment has not come yet."
NOT_CLAIMED = "It is due and waits for a beat to claim it."
# Timers of one batch.
BATCH_MOST = 1000
# What the column holds: more than the longest name that can resolve, with a port.
HOST_MAX_LENGTH = 261


class WholeNumberField(serializers.IntegerField):
    """A JSON integer. Booleans, fractions and quoted numbers are other types; a form has only text, so there digits."""

    default_error_messages = {"invalid": "A whole number is required.", "min_value": "Must be 0 or more."}

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, str) and isinstance(getattr(self.parent, "initial_data", None), QueryDict):
            if not re.fullmatch(r"-?[0-9]{1,20}", data.strip()):
                self.fail("invalid")
            return int(data)
        if type(data) is not int:
            self.fail("invalid")
        return data


class WebUrlField(serializers.CharField):
    """An http or https URL that can be called as it stands."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        try:
            http.check_url(data, max_length=URL_MAX_LENGTH)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error
        if len(services.host_of(data)) > HOST_MAX_LENGTH:
            raise serializers.ValidationError("The URL's host or port is not valid.")
        return data


class NewTimerSerializer(serializers.Serializer[Any]):
    """A URL, and how long from now it is called."""

    hours = WholeNumberField(min_value=0, required=False, help_text="Hours from now.")
    minutes = WholeNumberField(min_value=0, required=False, help_text="Minutes from now, added to the hours.")
    seconds = WholeNumberField(min_value=0, required=False, help_text="Seconds from now, added to both. 0 means now.")
    web_url = WebUrlField(
        max_length=URL_MAX_LENGTH, trim_whitespace=False, help_text="The http or https URL to call with POST."
    )

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        errors: dict[str, Any] = {}
        if isinstance(data, Mapping):
            known = ", ".join(self.fields)
            unknown = [name for name in data if name not in self.fields]
            # Names come from outside: shown in ASCII, and not all of a long list.
            errors = {ascii(name)[1:101].rstrip("'"): [f"Unknown field. Known are: {known}."] for name in unknown[:10]}
            if not data.keys() & UNITS.keys():
                errors["seconds"] = [WHEN_MISSING]
        values: dict[str, Any] = {}
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            # Everything that is wrong in one answer.
            errors |= error.detail  # type: ignore[arg-type]  # of fields, so a dict
        if errors:
            raise serializers.ValidationError(errors)
        return values

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
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
        return {"web_url": attrs["web_url"], "delay_seconds": delay}


class BatchSerializer(serializers.Serializer[Any]):
    """Up to a thousand timers, stored all or none, or each that is valid."""

    timers = NewTimerSerializer(many=True, help_text=f"1 to {BATCH_MOST} timers.")
    partial = serializers.BooleanField(  # type: ignore[assignment]  # a field by that name
        default=False, help_text="Store what is valid and say of each what became of it, rather than all or none."
    )


_kept = threading.local()


def read_timer(data: Any) -> dict[str, Any]:
    """Return the values of a timer as JSON has it. Raises ValidationError.

    With one serializer for each thread: making one for each timer costs more than reading it.
    """
    if not hasattr(_kept, "serializer"):
        _kept.serializer = NewTimerSerializer()
    values: dict[str, Any] = _kept.serializer.run_validation(data)
    return values


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
    """A timer: what it calls, when, and what came of it."""

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


def stored_body(stored: services.Scheduled, *, web_url: str) -> dict[str, Any]:
    """Return a timer just stored as TimerSerializer describes it; what creating answers, so made for speed."""
    due_at = _shown(stored.due_at)
    left = math.ceil((stored.due_at - stored.created_at) / timedelta(seconds=1))
    return {
        "task_id": str(stored.timer_id),
        "status": State.SCHEDULED.value,
        "web_url": web_url,
        "created_at": _shown(stored.created_at),
        "due_at": due_at,
        "time_left_in_seconds": max(0, left),
        "next_attempt_at": due_at,
        "finished_at": None,
        "reason": NOT_YET if left > 0 else NOT_CLAIMED,
        "attempts": [],
    }


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def timer_body(
    delivery: Delivery, *, web_url: str, created_at: datetime, now: datetime, attempts: list[Attempt]
) -> dict[str, Any]:
    """Return a timer as TimerSerializer describes it."""
    return {
        "task_id": str(delivery.timer_id),
        "status": delivery.state,
        "web_url": web_url,
        "created_at": created_at,
        "due_at": delivery.due_at,
        "time_left_in_seconds": delivery.time_left_seconds(now=now),
        "next_attempt_at": delivery.next_attempt_at if delivery.state == State.SCHEDULED else None,
        "finished_at": delivery.finished_at,
        "reason": _reason(delivery, now=now, attempts=attempts),
        "attempts": AttemptSerializer(attempts, many=True).data if attempts else [],
    }


def _reason(delivery: Delivery, *, now: datetime, attempts: list[Attempt]) -> str | None:
    """Say in a sentence why a timer has not been called successfully."""
    last = attempts[-1].message if attempts else ""
    if delivery.cancel_requested_at and not delivery.is_final:
        return "It was cancelled while its call was in flight; that call may still land, no retry follows."
    if delivery.state == State.SCHEDULED:
        if last:
            return f"Attempt {attempts[-1].number} failed: {last} It is tried again at next_attempt_at."
        if delivery.due_at > now:
            return NOT_YET
        if delivery.next_attempt_at > now:
            return "Its host is slow to answer, so it waits for other calls there; it is called at next_attempt_at."
        return NOT_CLAIMED
    calls = "attempt" if delivery.attempts == 1 else "attempts"
    return {
        State.CLAIMED: "A beat has claimed it; a worker calls it at its moment.",
        State.RUNNING: "A worker is calling it now.",
        State.HELD: "Calls to its host, or all calls, are stopped by an operator.",
        State.PAUSED: "It is paused; enable its periodic task to let it go on.",
        State.FAILED: f"It was given up after {delivery.attempts} {calls}. {last}".strip(),
        State.CANCELLED: "It was cancelled.",
        State.MISSED: "Its moment had passed by more than its allowed lateness.",
    }.get(State(delivery.state))
