"""Sends what is logged as an error to Sentry; only with SENTRY_DSN, without which the library is not even imported.

A log handler does it, so that Sentry gets what the log says, at the same places and with the same filters. A thread of
the library sends it from a bounded queue: a Sentry that is slow or away costs the service nothing and gets no retry.
"""

import logging
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.excepthook import ExcepthookIntegration
from sentry_sdk.integrations.threading import ThreadingIntegration
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import event_from_exception

from webtask_scheduler.telemetry import origin
from webtask_scheduler.telemetry.events import Message
from webtask_scheduler.telemetry.redaction import chain, said, scrub

# At the end of a process, what is under way may take so long.
FLUSH_SECONDS = 2.0
# The parts of an event that are sent. Requests, breadcrumbs, users and extras are not among them: they would hold URLs,
# headers and bodies.
_SENT = frozenset(
    {
        *("event_id", "timestamp", "platform", "level", "logger", "logentry", "exception", "tags", "fingerprint"),
        *("release", "environment", "server_name", "sdk", "debug_meta"),
    }
)


class _Transport(HttpTransport):
    TIMEOUT = 5


class SentryHandler(logging.Handler):
    """Sends each record of its level to Sentry."""

    def __init__(self, *, dsn: str, release: str, environment: str, level: int = logging.ERROR) -> None:
        super().__init__(level)
        sentry_sdk.init(
            dsn=dsn,
            release=release,
            environment=environment,
            transport=_Transport,
            before_send=_scrubbed,
            shutdown_timeout=FLUSH_SECONDS,
            send_default_pii=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            auto_session_tracking=False,
            send_client_reports=False,
            # Its integrations would read requests, tasks and statements. The log says what went wrong with them.
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[
                AtexitIntegration(callback=lambda *_: None),
                DedupeIntegration(),
                ExcepthookIntegration(),
                ThreadingIntegration(propagate_scope=False),
            ],
        )

    def emit(self, record: logging.LogRecord) -> None:
        # The library's own errors, and those of its HTTP client, would lead to more of them.
        if record.name.startswith(("sentry_sdk", "urllib3")):
            return
        try:
            event: Event = {}
            hint: Hint = {}
            if record.exc_info and record.exc_info[1] is not None:
                event, hint = event_from_exception(record.exc_info, client_options=sentry_sdk.get_client().options)
            event["level"] = "fatal" if record.levelno >= logging.CRITICAL else "error"
            event["logger"] = record.name
            event["logentry"] = {"message": scrub(record.getMessage())}
            event["tags"] = _tags(record)
            if isinstance(record.msg, Message) and not record.exc_info:
                # One issue for each event, whatever its fields.
                event["fingerprint"] = [record.name, record.msg.name]
            sentry_sdk.capture_event(event, hint)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is sent; the end of a process calls it."""
        sentry_sdk.flush(FLUSH_SECONDS)


def _tags(record: logging.LogRecord) -> dict[str, str]:
    tags: dict[str, str] = {}
    if isinstance(record.msg, Message):
        tags["event"] = record.msg.name
        tags |= {name: scrub(str(value)) for name, value in record.msg.fields.items() if name not in ("error", "fault")}
    request_id = origin.current().request_id
    return tags | {"request_id": request_id} if request_id else tags


def _scrubbed(event: Event, hint: Hint) -> Event:
    """Return an event with nothing in it that may be a secret, whoever made it."""
    kept: Any = {name: value for name, value in event.items() if name in _SENT}
    values = kept.get("exception", {}).get("values", [])
    error = (hint.get("exc_info") or (None, None))[1]
    # By type and text, because the library's order of a chain is its own.
    texts = {(type(one).__name__, str(one)): said(one) for one in chain(error)} if error is not None else {}
    for value in values:
        value["value"] = texts.get((value.get("type"), value.get("value")), "")
        for frame in (value.get("stacktrace") or {}).get("frames", []):
            frame.pop("vars", None)
    result: Event = kept
    return result
