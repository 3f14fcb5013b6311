"""What test_schemathesis tells schemathesis about our schema: values that fit a format, and rules beyond JSON Schema.

Loaded by the schemathesis command itself, by SCHEMATHESIS_HOOKS; it knows nothing of Django.
"""

import os
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

# Values for formats: without these nearly all that is generated is refused at once, and shows little. They are few, for
# much time goes into drawing until one has a wanted length.
NOW = datetime.now(UTC).replace(microsecond=0)
INSTANTS = [(NOW + timedelta(days=days)).isoformat() for days in (-400, -1, 1, 30, 400, 3000)]
INSTANTS += ["2028-02-29t23:59:59z", "2029-01-01T05:30:00.123456789+05:30", "2029-01-01 00:00-09:00"]
DURATIONS = ["PT1S", "PT90S", "P1W", "P1DT12H", "PT1H30M", "PT2.000001S", "P30D"]
CRONS = ["* * * * *", "*/7 3-9 * * MON-FRI", "0 9 1,15 JAN *", "30 2 29 2 *", "0 0 13 * 5", "@daily", "@Yearly"]
ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe"]
for name, values in {"date-time": INSTANTS, "duration": DURATIONS, "cron": CRONS, "timezone": ZONES}.items():
    schemathesis.openapi.format(name, st.sampled_from(values))

# What a request may be refused for although it fits the schema: rules that JSON Schema cannot express. Each is a part
# of what the answer says of a field; a refusal counts as right only if all that it says is among these.
BEYOND_SCHEMA = (
    # A cursor is what the page before gave.
    "This cursor was not given by",
    # Which hosts and ports there can be, and how names are encoded.
    "The URL's host or port is not valid.",
    "The URL's host is too long",
    "The URL has no host.",
    # Unicode's classes of characters.
    "The URL has a space, a backslash or a control character",
    "or not printable",
    "is no host: write it as in the URL",
    # Within free JSON; a pattern cannot reach there.
    "must not hold the character NUL",
    "that JSON cannot hold",
    # Sizes of JSON and sums of numbers.
    "The metadata is longer than",
    "Too far ahead",
    # What another parameter asks for, and whose a key is.
    "Only with replay or spread.",
    # What a spread asks of its filter, and how long a time is beside another.
    "To spread timers, give the time in which they are due",
    "due_to must be after due_from.",
    "Only timers that are",
    "Say over how many seconds",
    "It must be longer than the time from due_from",
    "Required with id.",
    "Only a superuser's key makes keys for others",
    # Of a channel: what its kind asks of its address, whose mail it may be, and what goes together.
    "This service sends no mail",
    "This is no mail address.",
    "Mail goes to your own address",
    "An address is required.",
    "The URL must begin with http",
    "Choose at least one event.",
    "Only people who may see the whole service",
    # An answer's address, which is masked, given back as it is.
    "*** stands for a value that is not shown",
    # Of whom else's timers are asked for, and which operation is named.
    "Only those who see the timers of all owners",
    "There is no bulk operation with this id that paused or resumed timers.",
    "A name has at most",
    "A label is given as key=value",
    # Distances from now.
    "Too far from now",
    "This schedule has no moment that is still to come.",
    # Names of headers without regard to case: ours, and the same one twice.
    "is not for timers to give",
    "is given twice",
    # What goes with which backoff: an edit is merged into what there is, so its parts need not go together.
    'with "backoff"',
    "Must not be less than min_seconds",
)
# The same, of an edit: it is merged into what there is, and what comes of that has to fit.
BEYOND_SCHEMA_OF_EDITS = (
    "Say when in one way only",
    "Say when: give",
    "Only with cron",
    "Give either body or body_base64.",
    "carries no body.",
    "A content type is only for a body",
    "Give it either here or in headers.",
    'Only with "on_missed": "skip".',
    "reject is for a due_at",
    # A value that is not shown is kept for the server that it was given for.
    "*** stands for a value",
    "The body is not shown.",
)


# To JSON Schema 1.0 is an integer; to us it is another type, and a sign of a mistake.
OF_WHOLE_FRACTIONS = ("A whole number is required.", "Each is a status code from 100 to 599")
# Bodies of forms are tested in a run of their own, see before_load_schema.
FORMS = os.environ.get("SCHEMATHESIS_FORMS") == "1"
FORM_BOOLEANS = {"true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "0", "1", "0.0", "1.0"}

made: list[str] = []


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    # A body as JSON and as a form are tested apart: the tests of each field's bounds take most of the time, and are
    # made once.
    for item in raw_schema["paths"].values():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            if len(content) > 1:
                for name in [name for name in content if (name == "application/json") == FORMS]:
                    del content[name]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    headers = case.headers or {}
    key = headers.get("Idempotency-Key")
    if key and re.fullmatch("[!-~]{1,255}", key):
        # A key of its own for each request: one used twice answers 422 and shows nothing.
        headers["Idempotency-Key"] = uuid.uuid4().hex
    parameters = case.path_parameters or {}
    if made and "/timer/{id}" in case.operation.path and _is_id(parameters.get("id")):
        number = uuid.UUID(parameters["id"]).int
        # Most often a timer that there is.
        if number % 4:
            parameters["id"] = made[-1 - number % min(len(made), 20)]


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    if case.operation.label == "POST /api/v1/scheduler/timer" and response.status_code == 201:
        made.append(response.json()["task_id"])


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Tell whether a failure is one."""
    if isinstance(failure, RejectedPositiveData):
        return not _is_beyond_schema(case, response)
    if isinstance(failure, AcceptedNegativeData):
        return not _is_refused_in_part(case, response) and not _is_as_good_as_none(case)
    if isinstance(failure, UseAfterFree):
        # A timer that was cancelled goes on to be shown: to DELETE one is to say that it shall not be called.
        return "/timer/" not in case.operation.path
    return True


def _is_beyond_schema(case: Any, response: Any) -> bool:
    if response.status_code != 400:
        return False
    # Of forms the schema does not say it, and in the list of a batch schemathesis does not heed it.
    is_loose = case.method == "PATCH" or case.operation.path.endswith("/batch") or _is_form(case)
    known = BEYOND_SCHEMA + (BEYOND_SCHEMA_OF_EDITS if is_loose else ())
    known += OF_WHOLE_FRACTIONS if _has_whole_fraction(case.body) else ()
    errors = response.json().get("errors", [])
    return bool(errors) and all(any(text in error["detail"] for text in known) for error in errors)


def _is_refused_in_part(case: Any, response: Any) -> bool:
    # A batch that may be stored in part is taken, and says of each timer whether that was.
    is_partial = case.operation.path.endswith("/batch") and response.status_code == 200
    return is_partial and any("problem" in result for result in response.json()["results"])


def _is_as_good_as_none(case: Any) -> bool:
    # A browser sends the fields that were left empty too; and it has more words for true.
    if any(value == "" or (isinstance(value, list) and "" in value) for value in (case.query or {}).values()):
        return True
    if not _is_form(case) or not isinstance(case.body, dict):
        return False
    booleans = [str(case.body[name]).lower() for name in ("follow_redirects", "sensitive") if name in case.body]
    return "" in case.body.values() or bool(FORM_BOOLEANS.intersection(booleans))


def _is_form(case: Any) -> bool:
    return "form" in (case.media_type or "")


def _has_whole_fraction(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_whole_fraction, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


def _is_id(text: Any) -> bool:
    try:
        return bool(str(uuid.UUID(text)) == text)
    except (ValueError, TypeError, AttributeError):
        return False
