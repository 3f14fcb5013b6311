"""The form of a new timer. It reads no value itself: it becomes the JSON that the API takes, and its checks decide."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from webtask_scheduler.scheduler.rules.options import METHODS
from webtask_scheduler.scheduler.rules.recurrence import parse_duration

# The field of the form in which a field of the API is, where the names differ.
_PLACES = {
    "due_at": "at",
    "body_base64": "body",
    "retry.max_attempts": "max_attempts",
    "retry.min_seconds": "first_wait",
    "retry": "max_attempts",
}
_UNITS = {"seconds": "S", "minutes": "M", "hours": "H", "days": "D"}
_LENGTHS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
# Of these the form may show a part.
_GROUPS = frozenset(("headers", "labels", "retry"))
# What the form says of when, in the API's words.
_WHEN = frozenset(("hours", "minutes", "seconds", "due_at", "every", "cron", "timezone"))


def _text(label: Any, help_text: Any = "", *, area: int = 0, **attrs: Any) -> forms.CharField:
    widget = forms.Textarea(attrs={"rows": area, **attrs}) if area else forms.TextInput(attrs=attrs)
    return forms.CharField(label=label, help_text=help_text, required=False, widget=widget)


def _number(label: Any, help_text: Any = "", **attrs: Any) -> forms.CharField:
    return _text(label, help_text, inputmode="decimal", autocomplete="off", **attrs)


def _choice(label: Any, choices: Iterable[tuple[str, Any]], help_text: Any = "", **more: Any) -> forms.ChoiceField:
    return forms.ChoiceField(label=label, choices=list(choices), help_text=help_text, required=False, **more)


class TimerForm(forms.Form):
    """All fields are texts; none is required here, so that each error is the API's."""

    web_url = _text(
        gettext_lazy("URL to call"), placeholder="https://example.com/hook", inputmode="url", autocomplete="url"
    )
    name = _text(gettext_lazy("Name"), gettext_lazy("For people; the list can be searched by it."), autocomplete="off")

    when = _choice(
        gettext_lazy("When"),
        [
            ("in", gettext_lazy("In")),
            ("at", gettext_lazy("At")),
            ("every", gettext_lazy("Every")),
            ("cron", gettext_lazy("Cron")),
        ],
        widget=forms.RadioSelect,
        initial="in",
    )
    hours = _number(gettext_lazy("Hours"), placeholder="0")
    minutes = _number(gettext_lazy("Minutes"), placeholder="0")
    seconds = _number(gettext_lazy("Seconds"), placeholder="0")
    at = forms.CharField(
        label=gettext_lazy("Date and time"),
        required=False,
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )
    at_zone = _text(gettext_lazy("Time zone"), placeholder="UTC", list="zones", data_zone="", autocomplete="off")
    every = _number(gettext_lazy("Every"), placeholder="10")
    every_unit = _choice(
        gettext_lazy("Unit"),
        [
            ("seconds", gettext_lazy("seconds")),
            ("minutes", gettext_lazy("minutes")),
            ("hours", gettext_lazy("hours")),
            ("days", gettext_lazy("days")),
        ],
        initial="minutes",
    )
    cron = _text(
        gettext_lazy("Cron"),
        gettext_lazy("Minute, hour, day of month, month, weekday. A day of month and a weekday are joined by OR."),
        placeholder="0 9 * * MON-FRI",
        list="crons",
        autocomplete="off",
        spellcheck="false",
    )
    timezone = _text(gettext_lazy("Time zone"), placeholder="UTC", list="zones", data_zone="", autocomplete="off")

    method = _choice(gettext_lazy("Method"), [(name, name) for name in METHODS], initial="POST")
    headers = _text(
        gettext_lazy("Headers"),
        gettext_lazy("One a line, as “Name: value”. The values are encrypted and never shown again."),
        area=2,
        placeholder="Authorization: Bearer …",
        spellcheck="false",
    )
    body = _text(
        gettext_lazy("Body"),
        gettext_lazy("Sent as it is. Without one, a small JSON with the id of the timer is sent."),
        area=4,
        spellcheck="false",
    )
    content_type = _text(
        gettext_lazy("Content type"), gettext_lazy("Of the body."), placeholder="application/json", list="types"
    )
    timeout_seconds = _number(gettext_lazy("Timeout in seconds"), placeholder="30")

    max_attempts = _number(gettext_lazy("Attempts in all"), placeholder="5")
    first_wait = _number(
        gettext_lazy("First wait in seconds"), gettext_lazy("Each wait is three times the one before."), placeholder="5"
    )
    on_missed = _choice(
        gettext_lazy("If its moment has passed"),
        [("fire", gettext_lazy("call it all the same")), ("skip", gettext_lazy("leave it out"))],
        initial="fire",
    )
    labels = _text(
        gettext_lazy("Labels"), gettext_lazy("One a line, as “key=value”."), area=2, placeholder="team=billing"
    )
    callback_url = _text(gettext_lazy("URL that is told of each success"), inputmode="url")
    failure_callback_url = _text(gettext_lazy("URL that is told of each failure"), inputmode="url")

    # The fields that are folded away, by group.
    REQUEST = ("method", "headers", "body", "content_type", "timeout_seconds")
    FAILURE = ("max_attempts", "first_wait", "on_missed", "callback_url", "failure_callback_url")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            zone = field.widget.attrs.pop("data_zone", None)
            if zone is not None:
                field.widget.attrs["data-zone"] = zone

    def as_json(self) -> dict[str, Any]:
        """Return the body of the request that creates the timer; what cannot be read stays a text, which it refuses."""
        self.full_clean()
        given: dict[str, Any] = {"web_url": self._given("web_url")}
        given |= self.schedule_json()
        if self._given("method") not in ("", "POST"):
            given["method"] = self._given("method")
        if self._given("headers"):
            given["headers"] = _pairs(self._given("headers"), ":")
        copied = ("name", "body", "content_type", "callback_url", "failure_callback_url")
        given |= {name: self._given(name) for name in copied if self._given(name)}
        if self._given("timeout_seconds"):
            given["timeout_seconds"] = _read(self._given("timeout_seconds"))
        retry = {"max_attempts": self._given("max_attempts"), "min_seconds": self._given("first_wait")}
        if any(retry.values()):
            given["retry"] = {name: _read(value) for name, value in retry.items() if value}
        if self._given("on_missed") == "skip":
            given["on_missed"] = "skip"
        if self._given("labels"):
            given["labels"] = _pairs(self._given("labels"), "=")
        return given

    def schedule_json(self) -> dict[str, Any]:
        """Return the part that says when."""
        self.full_clean()
        match self._given("when"):
            case "at":
                return {"due_at": _instant(self._given("at"), self._given("at_zone") or "UTC")}
            case "every":
                return {"every": _duration(self._given("every"), self._given("every_unit") or "minutes")}
            case "cron":
                return {"cron": self._given("cron"), "timezone": self._given("timezone") or "UTC"}
        return {name: _read(self._given(name)) for name in ("hours", "minutes", "seconds") if self._given(name)}

    def refuse(self, errors: Iterable[Mapping[str, str]]) -> None:
        """Put the errors of a problem beside the fields that they are about."""
        for error in errors:
            self.add_error(self._place(error["field"]), error["detail"])

    def _place(self, field: str) -> str | None:
        first = field.partition(".")[0]
        for name in (_PLACES.get(field), field, _PLACES.get(first), first):
            if name in self.fields:
                return name
        return None

    def _given(self, name: str) -> str:
        return str(self.cleaned_data.get(name) or "")


def form_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of the form that say what a timer of the API was given."""
    copied = (
        *("web_url", "name", "method", "content_type", "timeout_seconds", "on_missed"),
        *("callback_url", "failure_callback_url"),
    )
    found = {name: str(body[name]) for name in copied if name in body}
    for name, mark in (("headers", ": "), ("labels", "=")):
        found[name] = "\n".join(f"{key}{mark}{value}" for key, value in body.get(name, {}).items())
    given = body.get("body", "")
    found["body"] = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, indent=2)
    if not isinstance(given, str):
        found.setdefault("content_type", "application/json")
    retry = body.get("retry", {})
    found |= {"max_attempts": str(retry.get("max_attempts", "")), "first_wait": str(retry.get("min_seconds", ""))}
    return found | _when_of(body)


def _when_of(body: Mapping[str, Any]) -> dict[str, str]:
    if "cron" in body:
        return {"when": "cron", "cron": body["cron"], "timezone": body["timezone"]}
    if "every" in body:
        seconds = parse_duration(body["every"])
        unit = next((unit for unit, length in _LENGTHS.items() if seconds % length == 0), "seconds")
        return {"when": "every", "every": f"{seconds / _LENGTHS[unit]:g}", "every_unit": unit}
    if "seconds" in body:
        return {"when": "in", "seconds": str(body["seconds"])}
    return {"when": "at", "at": body["due_at"][:19], "at_zone": "UTC"}


def changes(shown: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7396) that makes of what was shown what is given.

    Of what says when, either all is in the patch or nothing: together it is one answer.
    """
    patch = _patch({name: value for name, value in shown.items() if name not in _WHEN}, given)
    when = {name: given[name] for name in given if name in _WHEN}
    if when == {name: shown[name] for name in shown if name in _WHEN}:
        return {name: value for name, value in patch.items() if name not in _WHEN}
    return patch | when


def _patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for name in (*new, *(name for name in old if name not in new)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name in _GROUPS and isinstance(before, dict) and isinstance(after, dict | None):
            # What the form does not show of it stays.
            after = after or {}
            patch[name] = {key: after.get(key) for key in {**after, **before} if before.get(key) != after.get(key)}
        else:
            patch[name] = after
    return patch


def body_of(text: str, shown: Any) -> Any:
    """Return a body as the API takes it: JSON where JSON was shown, if it is any; else the text."""
    if isinstance(shown, str) and shown[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _read(text: str) -> Any:
    """Return a number as JSON has it; anything else as it is."""
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    if re.fullmatch(r"-?[0-9]{1,15}[.,][0-9]{1,6}", text):
        return float(text.replace(",", "."))
    return text


def _duration(text: str, unit: str) -> str:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        return text
    return f"P{text}D" if unit == "days" else f"PT{text}{_UNITS.get(unit, 'S')}"


def _instant(text: str, zone: str) -> str:
    """Return a local date and time as an instant; as it is if that cannot be, for its check to refuse."""
    try:
        local = datetime.fromisoformat(text)
        return local.isoformat() if local.tzinfo else local.replace(tzinfo=ZoneInfo(zone)).isoformat()
    except (ValueError, OSError, LookupError):
        return text


def zone_trouble(form: TimerForm) -> str:
    """Return what is wrong with the zone of a date, or with that date in it; empty if nothing is."""
    if form.cleaned_data.get("when") != "at" or not form.cleaned_data.get("at"):
        return ""
    try:
        zone = ZoneInfo(form.cleaned_data.get("at_zone") or "UTC")
    except (ValueError, OSError, LookupError):
        return _("There is no such time zone. It has a name like Europe/Berlin.")
    try:
        local = datetime.fromisoformat(form.cleaned_data["at"]).replace(tzinfo=zone)
    except ValueError:
        return ""
    if local.astimezone(ZoneInfo("UTC")).astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        return _("The clocks of this zone are put forward then, so that this time does not exist.")
    return ""


def _pairs(text: str, mark: str) -> Any:
    """Return lines of names and values; a line without the mark is a name without a value."""
    pairs = (line.partition(mark) for line in text.splitlines() if line.strip())
    return {name.strip(): value.strip() for name, __, value in pairs}


def json_trouble(form: TimerForm) -> str:
    """Return what is wrong with a body that is said to be JSON; empty if nothing is."""
    if "json" not in str(form.cleaned_data.get("content_type", "")):
        return ""
    try:
        json.loads(form.cleaned_data.get("body") or "null")
    except (ValueError, RecursionError) as error:
        return _("This is not JSON: %(error)s") % {"error": error}
    return ""
