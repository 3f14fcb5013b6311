"""Builds the API's answers for timers, deliveries and attempts."""

import math
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import F, QuerySet
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.api.reading import NewTimerSerializer
from webtask_scheduler.scheduler.api.schedules import BOUNDS, RECURRING, schedule_given
from webtask_scheduler.scheduler.models import (
    STAGES,
    URL_MAX_LENGTH,
    Attempt,
    ClockTimestamp,
    Delivery,
    ErrorKind,
    State,
    Timer,
)
from webtask_scheduler.scheduler.rules import answers, options
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.services import reasons, search

# Enum attribute access is slow on this path.
SCHEDULED = State.SCHEDULED.value
# Attempts shown with a timer: as many as a retry policy makes. Replays and interruptions add to them.
ATTEMPTS_SHOWN = 100
# What is in a timer's options; the rest of a timer is small.
GIVEN = frozenset((*options.NAMES, "depth"))
# What the rest of a timer and one of its attempts may take in an answer, in bytes.
TIMER_BYTES = 1024
ATTEMPT_BYTES = 512
# What every attempt of a list has, whatever is asked for.
KNOWN_BY = ("delivery_id", "number")
# What CallSerializer makes of a column, where it is not called so.
_FIELDS_OF = {"headers": frozenset(("response_headers", "response_headers_left_out"))}
_SECOND = timedelta(seconds=1)


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
    """A timer: what it calls, when, and what came of it.

    What was given beyond a URL and a time comes back as given, but for secrets: `***` stands for the value of each
    header, for the user and password of a URL, and for the body of a timer that is `sensitive`.
    """

    task_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=State.choices)
    # Not a URLField: accepted URLs may hold letters outside ASCII, which a `uri` may not.
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
    attempts = AttemptSerializer(
        many=True,
        help_text=f"The calls made for the promised moment, oldest first; the last {ATTEMPTS_SHOWN} if there are more.",
    )
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
        names = ("name", *RECURRING, *BOUNDS, *options.NAMES)
        # No DurationField: it may have a fraction of a second, which JSON Schema's format `duration` does not allow.
        durations = {
            name: serializers.CharField(required=False, help_text=given[name].help_text)
            for name in ("every", "max_lateness")
        }
        return super().get_fields() | {name: given[name] for name in names} | durations


def stored_bodies(stored: Sequence[services.Scheduled], timers: Sequence[services.NewTimer]) -> list[dict[str, Any]]:
    """Return timers that were just stored, in TimerSerializer's form. It is fast, because creating answers with it."""
    not_yet = _(reasons.NOT_YET)
    # Those of one statement have it in common.
    created, created_at = None, ""
    bodies: list[dict[str, Any]] = []
    for one, timer in zip(stored, timers, strict=True):
        if one.created_at is not created:
            created, created_at = one.created_at, instant_text(one.created_at)
        due_at = instant_text(one.due_at)
        left = math.ceil((one.due_at - one.created_at) / _SECOND)
        body = {
            "task_id": str(one.timer_id),
            "status": SCHEDULED,
            "web_url": sealing.shown_url(timer.web_url),
            "created_at": created_at,
            "due_at": due_at,
            "time_left_in_seconds": max(0, left),
            "next_attempt_at": due_at,
            "finished_at": None,
            "reason": not_yet if left > 0 else reasons.not_started(timer.web_url, is_due=True),
            "attempts": [],
        }
        if timer.name:
            body["name"] = timer.name
        if timer.recurrence is not None:
            shown = Timer(max_occurrences=timer.max_occurrences)
            for name in ("cron", "timezone", "every_seconds", "starts_at", "ends_at"):
                setattr(shown, name, getattr(timer.recurrence, name))
            body |= {"occurrence": 1} | schedule_given(shown)
        bodies.append(body | sealing.shown(timer.options) if timer.options else body)
    return bodies


def timer_body(
    timer: Timer,
    delivery: Delivery,
    *,
    now: datetime,
    attempts: list[Attempt],
    is_gone: bool,
    with_options: bool = True,
) -> dict[str, Any]:
    """Return a timer, with its latest promised delivery, in TimerSerializer's form. `is_gone` is as in `reason`."""
    last = attempts[-1] if attempts else None
    body = {
        "task_id": str(timer.pk),
        "status": delivery.state,
        "web_url": sealing.shown_url(timer.web_url),
        "created_at": instant_text(timer.created_at),
        "due_at": instant_text(delivery.due_at),
        "time_left_in_seconds": delivery.time_left_seconds(now=now),
        "next_attempt_at": instant_text(delivery.next_attempt_at) if delivery.state == State.SCHEDULED else None,
        "finished_at": delivery.finished_at and instant_text(delivery.finished_at),
        "reason": reasons.reason(timer.host, delivery, now=now, last=last, is_gone=is_gone),
        "attempts": AttemptSerializer(attempts, many=True).data if attempts else [],
    }
    if timer.name:
        body["name"] = timer.name
    if timer.recurring:
        body |= {"occurrence": delivery.occurrence} | schedule_given(timer)
    if timer.outcome_of is not None:
        body["callback_for"] = str(timer.outcome_of)
    return body | sealing.shown(timer.options) if with_options and timer.options else body


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """The whole effort for one promised moment, over all attempts."""

    delivery_id = serializers.UUIDField(source="id", help_text="Sent as `webhook-id` with every attempt.")
    occurrence = serializers.IntegerField(help_text="Which of the timer's moments, from 1.")
    extra = serializers.BooleanField(help_text="Made by run, or replayed beside a later one.")
    status = serializers.ChoiceField(source="state", choices=State.choices)
    next_attempt_at = serializers.SerializerMethodField(help_text="Null unless it waits.")
    attempts = serializers.IntegerField(help_text="Attempts begun so far.")
    replayed_at = serializers.DateTimeField(allow_null=True, help_text="When it was last replayed; null if never.")
    finished_at = serializers.DateTimeField(allow_null=True)
    dismissed_at = serializers.DateTimeField(
        allow_null=True, help_text="When it was dismissed as a dead letter; null if it was not."
    )

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
            "dismissed_at",
        )

    @extend_schema_field({"type": ["string", "null"], "format": "date-time"})
    def get_next_attempt_at(self, delivery: Delivery) -> str | None:
        return instant_text(delivery.next_attempt_at) if delivery.state == State.SCHEDULED else None


class CallSerializer(AttemptSerializer):
    """One HTTP call, with what the receiver answered."""

    delivery_id = serializers.UUIDField()
    excerpt = serializers.CharField(help_text="The beginning of the answer's body, up to 2,048 characters.")
    stages = serializers.DictField(
        source="stages_ms",
        child=serializers.FloatField(),
        help_text="When the attempt reached each stage, in milliseconds from `started_at`, negative before it:"
        f" {', '.join(f'`{name}`' for name in STAGES)}. A stage is absent where it is not known, and where there was"
        " none: a call on a kept connection looks up and connects nothing.",
    )
    response_headers = serializers.SerializerMethodField(
        help_text=f"Headers of the answer, up to {answers.NAMES_MOST} and {answers.BYTES_MOST // 1024} KiB, by their"
        " names in lower case. `***` stands for values that may be secret, and for the query of a URL. Null where they"
        " are not kept: by default those of a success, and always those of a `sensitive` timer."
    )
    response_headers_left_out = serializers.SerializerMethodField(help_text="How many others the answer had.")
    worker = serializers.CharField(
        allow_null=True,
        help_text="The process that called, as `host:process id`. Null where it vanished, and for attempts made before"
        " it was kept.",
    )

    class Meta(AttemptSerializer.Meta):
        fields = (  # type: ignore[assignment]  # more
            "delivery_id",
            *AttemptSerializer.Meta.fields,
            "excerpt",
            "stages",
            "response_headers",
            "response_headers_left_out",
            "worker",
        )

    def get_fields(self) -> dict[str, Any]:
        """Return the fields; with `only` in the context, those and what an attempt is known by."""
        fields, only = super().get_fields(), self.context.get("only")
        return {name: field for name, field in fields.items() if name in {*KNOWN_BY, *only}} if only else fields

    @extend_schema_field({"type": ["object", "null"], "additionalProperties": {"type": "string"}})
    def get_response_headers(self, attempt: Attempt) -> dict[str, str] | None:
        return attempt.answered and attempt.answered.headers

    @extend_schema_field({"type": "integer", "minimum": 0})
    def get_response_headers_left_out(self, attempt: Attempt) -> int:
        return attempt.answered.left_out if attempt.answered else 0


class ListedCallSerializer(CallSerializer):
    """One HTTP call in a list: whole, or with `fields` those and what it is known by."""

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        for name, field in fields.items():
            field.required = name in KNOWN_BY
        return fields


def shown_calls(attempts: QuerySet[Attempt], only: Collection[str] = ()) -> QuerySet[Attempt]:
    """Return attempts of which no more is read than CallSerializer shows with these in `only`."""
    unread = [name for name in Attempt.DETAILS if not _FIELDS_OF.get(name, frozenset((name,))).intersection(only)]
    return attempts.defer(*unread) if only else attempts


class ListedTimerSerializer(TimerSerializer):
    """A timer in a list: whole, or with `fields` those and its `task_id` alone."""

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        for name, field in fields.items():
            field.required = name == "task_id"
        return fields


class SearchedSerializer(serializers.Serializer[Any]):
    """How far a page was looked for that is neither full nor the last."""

    timers = serializers.IntegerField(help_text="Timers of yours that were looked at for this page.")
    status = serializers.ChoiceField(
        choices=State.choices,
        required=False,
        help_text="In the order by status: where it was looked last. The statuses before it are done.",
    )
    until = serializers.DateTimeField(
        required=False,
        help_text="Up to where: within this status the due time (of those that wait, of the next attempt); without one,"
        " when the timer was made.",
    )
    why = serializers.CharField(help_text="Why the page ends here, in a sentence.")


class CountSerializer(serializers.Serializer[Any]):
    """How many timers fit."""

    timers = serializers.IntegerField(max_value=search.COUNT_MOST)
    more = serializers.BooleanField(
        help_text=f"Whether there may be more: it is counted up to {search.COUNT_MOST:,}, and for a part of a second."
    )


class TimersSerializer(serializers.Serializer[Any]):
    """A page of timers: full, or the last, or with `searched`."""

    timers = ListedTimerSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null after the last.")
    searched = SearchedSerializer(required=False)
    count = CountSerializer(required=False)


def searched_body(looked: search.Looked) -> dict[str, Any]:
    """Return how far a short page was looked for, in SearchedSerializer's form."""
    body: dict[str, Any] = {"timers": looked.timers}
    if looked.status is not None:
        body["status"] = str(looked.status)
    if looked.until is not None:
        body["until"] = instant_text(looked.until)
    return body | {"why": _("Few of the timers looked at so far fit. Go on with `next` to look further.")}


def show_timers(timer_ids: Sequence[uuid.UUID], fields: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return timers in TimerSerializer's form, in the order of the ids, with two queries for any number.

    With `fields`, they have only these and `task_id`, and what is not asked for is not read either. Where timers are
    paused, a third query says why.
    """
    with_options = not fields or not GIVEN.isdisjoint(fields)
    promised = Delivery.objects.filter(timer__in=timer_ids).select_related("timer").annotate(now=ClockTimestamp())
    if not with_options:
        promised = promised.defer("timer__options")
    latest = {one.timer_id: one for one in promised.latest_promised()}
    attempts: dict[uuid.UUID, list[Attempt]] = {}
    if not fields or not {"attempts", "reason"}.isdisjoint(fields):
        tried = [one.pk for one in latest.values() if one.attempts]
        for attempt in _last_attempts(delivery__in=tried).defer(*Attempt.DETAILS).order_by("delivery", "number"):
            attempts.setdefault(attempt.delivery_id, []).append(attempt)
    gone = reasons.paused_by_gone(latest.values()) if not fields or "reason" in fields else frozenset()
    bodies = [
        timer_body(
            one.timer,
            one,
            now=one.now,  # type: ignore[attr-defined]  # the annotation above
            attempts=attempts.get(one.pk, []),
            is_gone=one.pk in gone,
            with_options=with_options,
        )
        # Some may have been pruned in between.
        for one in (latest[pk] for pk in timer_ids if pk in latest)
    ]
    if not fields:
        return bodies
    return [{name: value for name, value in body.items() if name in fields or name == "task_id"} for body in bodies]


def _last_attempts(**wanted: Any) -> QuerySet[Attempt]:
    """Return the last ATTEMPTS_SHOWN attempts of each delivery that fits."""
    return Attempt.objects.filter(**wanted, number__gt=F("delivery__attempts") - ATTEMPTS_SHOWN)


# What each timer may take in an answer. Texts are stored with all but ASCII escaped, and so no shorter.
_SIZES = """
SELECT timer.id, coalesce(octet_length(timer.options::text), 0) + octet_length(timer.web_url) + %(timer)s
       + %(attempt)s * least(latest.attempts, %(attempts)s) AS size
  FROM scheduler_timer timer
  JOIN LATERAL (SELECT attempts FROM scheduler_delivery WHERE timer_id = timer.id AND NOT extra
                 ORDER BY number DESC LIMIT 1) latest ON true
 WHERE timer.id = ANY(%(ids)s::uuid[])
"""


def fitting(timer_ids: Sequence[uuid.UUID], *, most_bytes: int) -> int:
    """Return how many of these timers, from the first, an answer of about this size holds; at least one."""
    values: dict[str, Any] = {
        "timer": TIMER_BYTES,
        "attempt": ATTEMPT_BYTES,
        "attempts": ATTEMPTS_SHOWN,
        "ids": list(timer_ids),
    }
    with connection.cursor() as cursor:
        cursor.execute(_SIZES, values)
        sizes = dict(cursor.fetchall())
    total = 0
    for number, timer_id in enumerate(timer_ids):
        total += sizes.get(timer_id, 0)
        if total > most_bytes:
            return max(1, number)
    return len(timer_ids)


def show_timer(timer_id: uuid.UUID, **visible: Any) -> dict[str, Any] | None:
    """Return a timer in TimerSerializer's form; None if there is no such `visible` timer."""
    promised = Delivery.objects.filter(timer=timer_id, **visible).select_related("timer").annotate(now=ClockTimestamp())
    delivery = promised.latest_promised().first()
    if delivery is None:
        return None
    attempts = []
    if delivery.attempts:
        attempts = list(_last_attempts(delivery=delivery).defer(*Attempt.DETAILS).order_by("number"))
    return timer_body(
        delivery.timer,
        delivery,
        now=delivery.now,  # type: ignore[attr-defined]  # the annotation above
        attempts=attempts,
        is_gone=delivery.pk in reasons.paused_by_gone([delivery]),
    )
