"""`manage.py prune_timers`: delete timers that ended long ago."""

import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from webtask_scheduler import terminal
from webtask_scheduler.access import actor, audit
from webtask_scheduler.scheduler.services import retention

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def age(text: str) -> timedelta:
    """Read an age such as 30d or 12h. Raises ArgumentTypeError."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:  # noqa: PLR2004
        raise ArgumentTypeError(
            _("%(text)r is not an age: a whole number and s, m, h or d, as in 30d") % {"text": text}
        )
    return timedelta(**{UNITS[unit]: int(number)})


class Command(terminal.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Delete timers that ended longer ago than an age, with their deliveries, attempts and periodic tasks."
        )
        default = f"{settings.WEBTASK_RETENTION_DAYS}d"
        said = _("such as 30d or 12h (default %(default)s)") % {"default": default}
        parser.add_argument("--older-than", type=age, default=default, help=said)
        parser.add_argument("--dry-run", action="store_true", help=_("count them, delete nothing"))

    @actor.at_shell()
    def handle(self, *___: Any, older_than: timedelta, dry_run: bool, verbosity: int, **__: Any) -> None:
        if dry_run:
            timers = retention.prune(older_than=older_than, dry_run=True)
            past = retention.prune_past(older_than=older_than, dry_run=True)
            text = ngettext(
                "%(count)s timer ended more than %(age)s ago; none was deleted.",
                "%(count)s timers ended more than %(age)s ago; none was deleted.",
                timers,
            )
            self.stdout.write(text % {"count": timers, "age": older_than})
            text = ngettext(
                "%(count)s delivery of timers that go on ended more than %(age)s ago.",
                "%(count)s deliveries of timers that go on ended more than %(age)s ago.",
                past,
            )
            self.stdout.write(text % {"count": past, "age": older_than})
            return
        # Before the first of its many transactions, so that what was begun is told whatever ends it.
        with transaction.atomic():
            audit.record("timers.pruned", kind="timers", after={"older_than": str(older_than)})
        quiet = verbosity == 0
        timers = _all(retention.prune, older_than, what=_("Timers deleted"), quiet=quiet)
        text = ngettext(
            "%(count)s timer deleted that ended more than %(age)s ago.",
            "%(count)s timers deleted that ended more than %(age)s ago.",
            timers,
        )
        self.stdout.write(text % {"count": timers, "age": older_than})
        past = _all(retention.prune_past, older_than, what=_("Deliveries deleted"), quiet=quiet)
        text = ngettext(
            "%(count)s delivery of timers that go on deleted.",
            "%(count)s deliveries of timers that go on deleted.",
            past,
        )
        self.stdout.write(text % {"count": past})


def _all(step: Callable[..., int], older_than: timedelta, *, what: str, quiet: bool) -> int:
    """Delete batch after batch, showing how many so far, and return how many there were."""
    deleted = 0
    with terminal.Progress(what, quiet=quiet) as progress:
        while batch := step(older_than=older_than):
            deleted += batch
            progress.add(batch)
            time.sleep(retention.PAUSE_SECONDS)
    return deleted
