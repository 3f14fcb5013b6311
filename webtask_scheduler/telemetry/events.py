"""Says in the log what happened: `event("timer_created", timer=..., host=...)`.

The name of an event and the names of its fields are promised, because alerts and searches hold them; docs/logs.md lists
all of them, and a test compares the two. Which of `telemetry.logs`' formatters writes them is a setting.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

# Values that need no quotes in a line.
_PLAIN = re.compile(r"[A-Za-z0-9_.:*/@+,?\[\]-]+")
_loggers: dict[str, logging.Logger] = {}


class Message:
    """An event's name and fields. As text it is one readable line: `name field=value`."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        text = self.name
        for name, value in self.fields.items():
            text += f" {name}={_shown(value)}"
        return text


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return repr(value)
    return str(value)


def event(
    name: str, /, *, level: int = logging.INFO, exc_info: BaseException | bool | None = None, **fields: Any
) -> None:
    """Log an event of the calling module; with `exc_info`, an exception or True, with its traceback."""
    # A call has one of these in the path of every attempt: no walk up the stack for a line number that nobody prints.
    module = sys._getframe(1).f_globals["__name__"]  # noqa: SLF001 - what `warnings` and `logging` do
    logger = _loggers.get(module)
    if logger is None:
        logger = _loggers.setdefault(module, logging.getLogger(module))
    if not logger.isEnabledFor(level):
        return
    error = sys.exc_info()[1] if exc_info is True else exc_info or None
    cause = (type(error), error, error.__traceback__) if error is not None else None
    logger.handle(logger.makeRecord(module, level, "", 0, Message(name, fields), (), cause))
