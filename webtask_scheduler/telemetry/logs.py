"""How a line of the log looks: for a person, or as JSON for a program. Neither holds what may be a secret."""

import json
import logging
import math
import time
from typing import Any

from webtask_scheduler.telemetry import origin
from webtask_scheduler.telemetry.events import Message
from webtask_scheduler.telemetry.redaction import one_line, scrub, traceback_text

# The time between two lines of a library that reports each of its tries.
SELDOM_SECONDS = 60.0


class Seldom(logging.Filter):
    """Passes one line a minute of a library whose receiver is away, without its traceback; and all of the others."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._next = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        record.exc_info = record.exc_text = None
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SELDOM_SECONDS
        return True


class LineFormatter(logging.Formatter):
    """One readable line: time, level, logger, event, fields. A traceback follows in lines of its own."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.formatTime(record)} {record.levelname} {record.name}: {one_line(scrub(record.getMessage()))}"
        request_id = origin.current().request_id
        if request_id:
            text += f" request_id={request_id}"
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + traceback_text(record.exc_info[1])
        return text


class JSONFormatter(logging.Formatter):
    """One JSON object a line. `service`, `env` and `version` are Datadog's; with one, so are a trace's ids."""

    def __init__(self, *, service: str = "", env: str = "", version: str = "") -> None:
        super().__init__()
        given = {"dd.service": service, "dd.env": env, "dd.version": version}
        self._datadog = {name: value for name, value in given.items() if value}

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, Message):
            body["event"] = record.msg.name
            for name, value in record.msg.fields.items():
                body[name] = scrub(value) if isinstance(value, str) else value
        else:
            body["message"] = scrub(record.getMessage())
        now = origin.current()
        if now.request_id:
            body["request_id"] = now.request_id
        if now.traceparent:
            body["trace_id"], body["span_id"] = now.trace_id, now.span_id
        if record.exc_info and record.exc_info[1] is not None:
            body["exception"] = traceback_text(record.exc_info[1])
        if self._datadog:
            body |= self._datadog
            if now.traceparent:
                # Datadog has ids of 64 bits, in decimal digits.
                body["dd.trace_id"] = str(int(now.trace_id[16:], 16))
                body["dd.span_id"] = str(int(now.span_id, 16))
        return json.dumps(body, default=str, ensure_ascii=False)
