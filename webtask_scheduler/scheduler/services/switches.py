"""Stops calls to a host, or to all hosts, and resumes them."""

import logging
import re

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.access import audit
from webtask_scheduler.scheduler.facts import COUNT_MOST, shown_number
from webtask_scheduler.scheduler.models import (
    CallStop,
    host_of,
)
from webtask_scheduler.telemetry.events import event


class CallStopRefusedError(ValidationError):
    """The text names no host, or neither a host nor all hosts were given."""


_HOST = re.compile(r"(?:[a-z0-9_][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.%]+\])(?::(?P<port>[0-9]{1,5}))?")
HOST_MOST = 253 + len(":65535")
PORT_MOST = 65535


def host_to_stop(text: str) -> str:
    """Return the canonical host of a host or a whole URL, as Timer.host has it. Raises CallStopRefusedError."""
    host = host_of(text.strip())
    match = _HOST.fullmatch(host)
    port = int(match["port"] or 1) if match else 0
    if not match or len(host) > HOST_MOST or not 0 < port <= PORT_MOST:
        raise CallStopRefusedError(
            _("%(text)r is no host: write it as in the URL, with its port if it has one, as in example.com:8443."),
            params={"text": text.strip()},
        )
    return host


def _stopped_host(host: str, *, everything: bool) -> str:
    if everything == bool(host.strip()):
        raise CallStopRefusedError(_("Name one host, or say that all hosts are meant; not both."))
    return "" if everything else host_to_stop(host)


def stop_calls(*, host: str = "", everything: bool = False, reason: str = "", by: str = "") -> CallStop:
    """Stop calls to a host, or with `everything` to all. Calls in flight may land; what comes due is held.

    `host` may be a whole URL. An empty one never means all. Raises CallStopRefusedError.
    """
    host = _stopped_host(host, everything=everything)
    with transaction.atomic():
        before = CallStop.objects.filter(host=host).values("reason").first()
        stop = CallStop.objects.update_or_create(host=host, defaults={"reason": reason})[0]
        audit.record("calls.stopped", kind="host", of=host or "*", before=before, after={"reason": reason})
    event("calls_stopped", level=logging.WARNING, host=host or "*", by=by or "?", reason=reason)
    return stop


def resume_calls(*, host: str = "", everything: bool = False, reason: str = "", by: str = "") -> bool:
    """Lift the stop of a host, or with `everything` the stop of all; stops of single hosts stay.

    Returns whether there was such a stop. The beats release held deliveries within a second, oldest first. Raises
    CallStopRefusedError.
    """
    host = _stopped_host(host, everything=everything)
    with transaction.atomic():
        before = CallStop.objects.filter(host=host).values("reason").first()
        lifted = CallStop.objects.filter(host=host).delete()[0]
        if lifted:
            audit.record("calls.resumed", kind="host", of=host or "*", before=before, after={"reason": reason})
    if lifted:
        event("calls_resumed", level=logging.WARNING, host=host or "*", by=by or "?", reason=reason)
    return bool(lifted)


# Each part is counted along an index of its own, because few rows of a large table are open.
_OPEN = """
SELECT count(*) FROM (
  (SELECT FROM scheduler_delivery WHERE state = 'scheduled' LIMIT %(most)s) UNION ALL
  (SELECT FROM scheduler_delivery WHERE state IN ('claimed', 'running') LIMIT %(most)s) UNION ALL
  (SELECT FROM scheduler_delivery WHERE state = 'held' LIMIT %(most)s)
  LIMIT %(most)s
) open
"""
_OPEN_TO = """
SELECT count(*) FROM (
  SELECT FROM scheduler_timer timer JOIN scheduler_delivery delivery ON delivery.timer_id = timer.id
   WHERE timer.host = %(host)s AND delivery.state IN ('scheduled', 'claimed', 'running', 'held') LIMIT %(most)s
) open
"""
_SIMILAR = """
SELECT DISTINCT host FROM scheduler_timer WHERE host LIKE %(begin)s AND host <> %(host)s ORDER BY host LIMIT 5
"""


def stop_matches(host: str) -> str:
    """Return a sentence that says how many open deliveries a host has, or all hosts if it is empty.

    If there are no such deliveries, it names hosts that differ only in their port. Raises DatabaseError.
    """
    with connection.cursor() as cursor:
        cursor.execute(_OPEN_TO if host else _OPEN, {"host": host, "most": COUNT_MOST})
        (count,) = cursor.fetchone()
        matches = ngettext("%(count)s timer matches.", "%(count)s timers match.", count) % {
            "count": shown_number(count)
        }
        if count >= COUNT_MOST:
            matches = gettext("%(count)s timers or more match.") % {"count": shown_number(count)}
        if count or not host:
            return matches
        name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
        begin = re.sub(r"([%_\\])", r"\\\1", name) + "%"
        cursor.execute(_SIMILAR, {"host": host, "begin": begin})
        similar = [row[0] for row in cursor.fetchall()]
    if similar:
        return gettext("No timer matches; hosts known that begin so: %(hosts)s.") % {"hosts": ", ".join(similar)}
    return matches
