"""Reads requests into NewTimers: one timer, many, or an edit of one."""

import base64
import binascii
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from rest_framework import serializers

from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.api.fields import (
    CONTENT_TYPE_MAX_LENGTH,
    LABELS_MOST,
    NO_MEDIA_TYPE,
    DurationField,
    HeadersField,
    JSONValueField,
    LabelsField,
    MetadataField,
    NumberField,
    OneOfField,
    StatusesField,
    StrictSerializer,
    TextField,
    TrueOrFalseField,
    WebUrlField,
    WholeNumberField,
    check_size,
    is_media_type,
)
from webtask_scheduler.scheduler.api.problems import PastDue
from webtask_scheduler.scheduler.api.schedules import (
    ONCE,
    RECURRING,
    UNITS,
    WHEN,
    WHEN_MISSING,
    ScheduleSerializer,
    delay_of,
    schedule_given,
)
from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    NAME_MAX_LENGTH,
    URL_MAX_LENGTH,
    Timer,
    host_of,
)
from webtask_scheduler.scheduler.outgoing import checks
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.options import METHODS, WITHOUT_BODY, Options
from webtask_scheduler.telemetry.origin import STORED
from webtask_scheduler.wording import translated

# Timers of one batch.
BATCH_MOST = 1000
ON_MISSED = ("fire", "skip", "reject")
# With on_missed "skip", unless max_lateness is given.
MAX_LATENESS_SECONDS = 60.0
# The fields of a plain timer. Most requests have no others, and a separate serializer reads them several times as fast.
PLAIN = frozenset((*UNITS, "web_url"))
# An edit of only these is allowed on a timer that has ended.
DESCRIPTIVE = frozenset(("name", "labels", "metadata"))


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
        # A form has no objects: a value here is refused rather than ignored.
        return dictionary.get(self.field_name, serializers.empty)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        backoff = attrs.get("backoff", "exponential")
        errors: dict[str, Any] = {}
        if backoff == "list" and "delays_seconds" not in attrs:
            errors["delays_seconds"] = [_('Required with "backoff": "list".')]
        of_others = {"exponential": ("delays_seconds",), "fixed": ("delays_seconds", "max_seconds", "multiplier")}
        for name in of_others.get(backoff, ("min_seconds", "max_seconds", "multiplier")):
            if name in attrs:
                errors[name] = [_('Does nothing with "backoff": "%(backoff)s"; leave it out.') % {"backoff": backoff}]
        policy = retry.Policy.read(attrs)
        if backoff == "exponential" and policy.min_seconds > policy.max_seconds:
            least = {"seconds": f"{policy.min_seconds:g}"}
            errors["max_seconds"] = [_("Must not be less than min_seconds, %(seconds)s.") % least]
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
        return {} if data.keys() & UNITS.keys() else {"seconds": [_(WHEN_MISSING)]}

    def validate(self, attrs: dict[str, Any]) -> Any:
        _refuse_masks(attrs["web_url"], {})
        return services.NewTimer(web_url=attrs["web_url"], delay_seconds=delay_of(attrs))


class NewTimerSerializer(ScheduleSerializer):
    """`web_url`, and when: `seconds` (with `minutes`, `hours`), `delay`, `due_at`, `cron` or `every`.

    All else is optional. A schedule (`cron`, `every`) may have a time zone, a beginning and an end.
    """

    # It is validated into a services.NewTimer.
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
        help_text="Sent with each call. Host, hop-by-hop headers and our own (`webhook-`, `webtask-`) are refused. The"
        " values are encrypted and never given back: `***` stands for each.",
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
    sensitive = TrueOrFalseField(
        required=False,
        help_text="Encrypt the body and never give it back, and do not keep what receivers answer. Default false.",
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

    # What the OpenAPI document shows as a filled-in form; the other fields are left empty there. None for JSON.
    form_example: Mapping[str, Any] | None = None

    # Whether `***` may stand for a value that the timer has: see `edited`.
    keeps_values = False

    # An edit of something else leaves a policy as it is that was made before the limit.
    checks_gap = True

    def validate_body_base64(self, value: str) -> str:
        if self.keeps_values and value == sealing.MASK:
            return value
        try:
            size = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise serializers.ValidationError(_("This is not base64.")) from error
        check_size(size)
        return value

    def validate_body(self, value: Any) -> Any:
        check_size(len(value.encode() if isinstance(value, str) else json.dumps(value).encode()))
        return value

    def validate_content_type(self, value: str) -> str:
        if not is_media_type(value):
            raise serializers.ValidationError(_(NO_MEDIA_TYPE))
        return value

    def validate(self, attrs: dict[str, Any]) -> Any:
        errors = _conflicts(attrs)
        if "retry" in attrs and self.checks_gap:
            errors |= _too_close(attrs["retry"])
        if errors:
            raise serializers.ValidationError(errors)
        now = timezone.now()
        schedule = self.schedule(attrs, now=now) if any(name in attrs for name in WHEN) or self.when_required else {}
        on_missed = attrs.get("on_missed", "fire")
        if on_missed == "reject":
            if "recurrence" in schedule:
                raise serializers.ValidationError(
                    {"on_missed": [_("reject is for a due_at; a schedule has many moments.")]}
                )
            if schedule.get("due_at") is not None and schedule["due_at"] < now:
                raise PastDue({"due_at": [_('It has passed, and "on_missed" is "reject".')]})
        late = attrs.get("max_lateness", MAX_LATENESS_SECONDS) if on_missed == "skip" else None
        given = Options.of(attrs).given
        if not self.keeps_values:
            _refuse_masks(attrs["web_url"], given)
        return services.NewTimer(
            web_url=attrs["web_url"],
            name=attrs.get("name", ""),
            options=given,
            max_lateness_seconds=late,
            **schedule,
        )


def _too_close(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error of a retry policy whose attempts follow each other sooner than they may."""
    gap, policy = settings.WEBTASK_LIMIT_GAP_SECONDS, retry.Policy.read(given)
    if policy.least_wait >= gap or policy.max_attempts == 1:
        return {}
    name = "delays_seconds" if policy.backoff == "list" else "min_seconds"
    text = _(
        "The shortest wait, jitter included, is %(wait)s s. This service allows no less than %(least)s s; the operator"
        " sets that with WEBTASK_LIMIT_GAP_SECONDS."
    )
    return {"retry": {name: [text % {"wait": f"{policy.least_wait:g}", "least": f"{gap:g}"}]}}


def _conflicts(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return errors of fields that do not go together."""
    errors: dict[str, Any] = {}
    has_body = "body" in attrs or "body_base64" in attrs
    method = attrs.get("method", "POST")
    if "body" in attrs and "body_base64" in attrs:
        errors["body_base64"] = [_("Give either body or body_base64.")]
    if has_body and method in WITHOUT_BODY:
        errors["body" if "body" in attrs else "body_base64"] = [_("%(method)s carries no body.") % {"method": method}]
    in_headers = [value for name, value in attrs.get("headers", {}).items() if name.lower() == "content-type"]
    if "content_type" in attrs and in_headers:
        errors["content_type"] = [_("Give it either here or in headers.")]
    elif ("content_type" in attrs or in_headers) and not has_body:
        errors["headers" if in_headers else "content_type"] = [_("A content type is only for a body or body_base64.")]
    elif in_headers and not is_media_type(in_headers[0]):
        errors["headers"] = [_(NO_MEDIA_TYPE)]
    if "max_lateness" in attrs and attrs.get("on_missed") != "skip":
        errors["max_lateness"] = [_('Only with "on_missed": "skip".')]
    return errors


def _refuse_masks(web_url: str, options: Mapping[str, Any]) -> None:
    """Refuse `***` in a new timer: it was copied from an answer that hides the value. Raises ValidationError."""
    errors = sealing.masks_without_value(web_url, options)
    if errors:
        raise serializers.ValidationError({error.field: [translated(error)] for error in errors})


class EditSerializer(NewTimerSerializer):
    """What to change. Without a time or schedule the present one stays; `***` keeps the value that is not shown."""

    when_required = False
    keeps_values = True


class BatchSerializer(StrictSerializer):
    """Up to a thousand timers, stored all or none, or each that is valid."""

    timers = NewTimerSerializer(many=True, help_text=f"1 to {BATCH_MOST} timers.")
    partial = serializers.BooleanField(  # type: ignore[assignment]  # a field by that name
        default=False, help_text="Store what is valid and say of each what became of it, rather than all or none."
    )


class _Kept(threading.local):
    """The serializers of a thread, by class and language."""

    def __init__(self) -> None:
        self.readers: dict[tuple[type[StrictSerializer], str | None], StrictSerializer] = {}


_kept = _Kept()


def read_timer(data: Any) -> services.NewTimer:
    """Return a timer that is given as JSON. Raises ValidationError.

    Each thread keeps one serializer: making one for each timer costs more than reading it. It keeps one for each
    language, because a field's message stays in the language in which it was first needed. A plain timer needs none as
    long as nothing is wrong with it.
    """
    plain = isinstance(data, dict) and data.keys() <= PLAIN
    if plain:
        found = _plain_timer(data)
        if found is not None:
            return found
    kind = PlainTimerSerializer if plain else NewTimerSerializer
    key = (kind, get_language())
    reader = _kept.readers.get(key)
    if reader is None:
        reader = _kept.readers[key] = kind()
    timer: services.NewTimer = reader.run_validation(data)
    return timer


def _plain_timer(data: Mapping[str, Any]) -> services.NewTimer | None:
    """Return a timer that PlainTimerSerializer reads the same, in a tenth of the time; None leaves it to that one."""
    web_url = data.get("web_url")
    # A user in a URL may be a mask.
    if type(web_url) is not str or "@" in web_url or len(data) == 1:
        return None
    delay = 0
    for unit, seconds in UNITS.items():
        given = data.get(unit, 0)
        if type(given) is not int or given < 0:
            return None
        delay += given * seconds
    if delay > settings.WEBTASK_HORIZON_SECONDS:
        return None
    try:
        checks.check_url(web_url, max_length=URL_MAX_LENGTH, egress=settings.WEBTASK_EGRESS)
    except ValueError:
        return None
    if len(host_of(web_url)) > HOST_MAX_LENGTH:
        return None
    return services.NewTimer(web_url=web_url, delay_seconds=float(delay))


def edited(timer: Timer, patch: Mapping[str, Any]) -> tuple[services.NewTimer, bool]:
    """Return a timer after an edit, and whether the edit changes its due time. Raises ValidationError, VaultError.

    The edit is a JSON merge patch (RFC 7396) of what was given, as it is shown: null removes a field, and `***` keeps
    the value that it stands for.
    """
    schedule = schedule_given(timer)
    stored = timer.options or {}
    given: dict[str, Any] = {"web_url": sealing.shown_url(timer.web_url)} | ({"name": timer.name} if timer.name else {})
    given |= sealing.shown(stored)
    # These are the service's own, and stay.
    given.pop("depth", None)
    own = {name: stored[name] for name in ("depth", sealing.HIDES_PATH, *STORED) if name in stored}
    serializer: NewTimerSerializer = EditSerializer()
    unknown = patch.keys() - serializer.fields.keys()
    # Removing an absent field is no change.
    patch = {name: value for name, value in patch.items() if value is not None or name in given or name in schedule}
    reschedule = any(name in patch for name in WHEN)
    if reschedule:
        kind = next((name for name in (*ONCE, *RECURRING) if patch.get(name) is not None), None)
        if kind in RECURRING and kind not in schedule:
            # Another kind of schedule replaces the present one, including an interval's first moment.
            for name in (*RECURRING, "timezone", "starts_at"):
                schedule.pop(name, None)
        elif kind == "every":
            schedule.pop("starts_at", None)
        if kind not in ONCE:
            given |= schedule
    merged = _merged(given, patch) | dict.fromkeys(unknown)
    if reschedule:
        serializer = NewTimerSerializer()
        serializer.keeps_values = True
    serializer.checks_gap = "retry" in patch
    new: services.NewTimer = serializer.run_validation(merged)
    try:
        web_url, options = sealing.kept(timer.web_url, stored, new.web_url, {**new.options, **own})
    except sealing.MaskError as error:
        raise serializers.ValidationError({error.field: [translated(error)]}) from error
    return replace(new, web_url=web_url, options=options), reschedule


def _merged(given: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(given) if isinstance(given, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            # Free JSON is replaced as a whole: a patch could not put null into it.
            result[name] = value if name in ("metadata", "body") else _merged(result.get(name), value)
    return result
