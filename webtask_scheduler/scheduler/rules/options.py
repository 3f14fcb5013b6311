"""A timer's options beyond a URL and a time: their defaults, and what they mean for a call.

`models.Timer.options` keeps them as they were given, in their own order, without those that have the default. It also
keeps what the service itself has to know: `depth`, and the request that made the timer (telemetry.origin). `sealing`
says how it keeps secrets among them.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.scheduler.rules.retry import Policy
from webtask_scheduler.telemetry.origin import STORED

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
WITHOUT_BODY = ("GET", "HEAD")
# Methods that get a default body if the timer gives no body.
WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
# In the order in which they are kept and shown.
NAMES = (
    "method",
    "headers",
    "body",
    "body_base64",
    "content_type",
    "sensitive",
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
DEFAULTS: Mapping[str, Any] = {
    "method": "POST",
    "headers": {},
    "follow_redirects": False,
    "sensitive": False,
    "labels": {},
    "retry": {},
}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one timer; `given` is what the database keeps."""

    given: Mapping[str, Any]

    @classmethod
    def read(cls, text: str | None) -> "Options":
        """Return the options in a JSON column that is given as text."""
        return cls(json.loads(text)) if text else NO_OPTIONS

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Options":
        """Return the options among checked values of a request."""
        given = {name: values[name] for name in NAMES if name in values}
        given = {name: value for name, value in given.items() if name not in DEFAULTS or value != DEFAULTS[name]}
        # These are applied once, when the timer is made or edited.
        if given.get("on_missed") in ("fire", "reject"):
            del given["on_missed"]
        if "max_lateness" in given:
            given["max_lateness"] = recurrence.format_duration(given["max_lateness"])
        headers = given.get("headers", {})
        for name in [name for name in headers if name.lower() == "content-type"]:
            given["content_type"] = headers[name]
            given["headers"] = {key: value for key, value in headers.items() if key != name}
        return cls(given)

    def __bool__(self) -> bool:
        return bool(self.given)

    @property
    def method(self) -> str:
        return str(self._value("method"))

    @property
    def headers(self) -> dict[str, str]:
        return dict(self._value("headers"))

    @property
    def policy(self) -> Policy:
        return Policy.read(self._value("retry"))

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self._value("labels")
        return labels

    @property
    def label_rows(self) -> list[str]:
        """Return the labels in the form of models.TimerLabel."""
        return [f"{key}={value}" for key, value in self.labels.items()]

    @property
    def follows_redirects(self) -> bool:
        return bool(self._value("follow_redirects"))

    @property
    def sensitive(self) -> bool:
        """Return whether the body is secret and the receiver's answers are not kept."""
        return bool(self._value("sensitive"))

    @property
    def depth(self) -> int | None:
        """Return how many calls of this service led to this timer; None if no call did."""
        return self.given.get("depth")

    @property
    def request_id(self) -> str:
        """Return the id of the request that made this timer, empty if no request did."""
        return str(self.given.get("request_id", ""))

    @property
    def traceparent(self) -> str:
        """Return the trace context of the request that made this timer, empty outside a trace."""
        return str(self.given.get("traceparent", ""))

    @property
    def inherited(self) -> dict[str, Any]:
        """Return what a callback has from its timer: the depth, which bounds a loop of calls, and the origin."""
        return {name: self.given[name] for name in ("depth", *STORED) if name in self.given}

    @property
    def calls_back(self) -> bool:
        return "callback_url" in self.given or "failure_callback_url" in self.given

    def timeout_seconds(self, default: float) -> float:
        return float(self.given.get("timeout_seconds", default))

    def body(self) -> tuple[bytes, str] | None:
        """Return the given body and its content type; None if no body was given."""
        content_type = self.given.get("content_type", "")
        if "body_base64" in self.given:
            return base64.b64decode(self.given["body_base64"]), content_type or "application/octet-stream"
        if "body" not in self.given:
            return None
        body = self.given["body"]
        if isinstance(body, str):
            return body.encode(), content_type or "text/plain; charset=utf-8"
        return json.dumps(body).encode(), content_type or "application/json"

    def is_success(self, status_code: int) -> bool:
        """Return whether a status is a success: 2xx, or what the timer lists, as numbers and classes like "3xx"."""
        statuses = self.given.get("success_statuses")
        if statuses is None:
            return 200 <= status_code < 300  # noqa: PLR2004 - what HTTP calls success
        return status_code in statuses or f"{status_code // 100}xx" in statuses

    def callback_url(self, *, succeeded: bool) -> str | None:
        """Return the URL to call when a delivery has ended, None if there is no such URL."""
        return self.given.get("callback_url" if succeeded else "failure_callback_url")

    def _value(self, name: str) -> Any:
        return self.given.get(name, DEFAULTS[name])


NO_OPTIONS = Options({})
