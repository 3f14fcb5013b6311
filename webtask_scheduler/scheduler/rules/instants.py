"""Instants as text: ISO 8601 with an offset from UTC."""

import re
from datetime import UTC, datetime

from webtask_scheduler.wording import sentence as _

_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)?")


def read_instant(text: str) -> datetime:
    """Return the instant in UTC, to the microsecond. Raises ValueError, which says what is wrong."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(_("An ISO 8601 instant is required, like 2026-01-05T09:00:00+01:00."))
    if not match[3]:
        raise ValueError(
            _("The instant has no offset from UTC: add Z, or an offset like +01:00, so that it means one moment.")
        )
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(_("There is no such day or time.")) from error


def instant_text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()[:-6] + "Z"
