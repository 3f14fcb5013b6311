"""`manage.py prune_timers`: delete timers that ended long ago."""

import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from webtask_scheduler.scheduler.services import retention

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def age(text: str) -> timedelta:
    """Read an age such as 30d or 12h. Raises ArgumentTypeError."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:  # noqa: PLR2004
        raise ArgumentTypeError(f"{text!r} is not an age: a whole number and s, m, h or d, as in 30d")
    return timedelta(**{UNITS[unit]: int(number)})


class Command(BaseCommand):
    help = "Delete timers that ended longer ago than an age, with their deliveries, attempts and periodic tasks."

    def add_arguments(self, parser: CommandParser) -> None:
        default = f"{settings.WEBTASK_RETENTION_DAYS}d"
        parser.add_argument("--older-than", type=age, default=default, help=f"such as 30d or 12h (default {default})")
        parser.add_argument("--dry-run", action="store_true", help="count them, delete nothing")

    def handle(self, *_: Any, older_than: timedelta, dry_run: bool, **__: Any) -> None:
        if dry_run:
            timers = retention.prune(older_than=older_than, dry_run=True)
            past = retention.prune_past(older_than=older_than, dry_run=True)
            self.stdout.write(f"{timers} timers ended more than {older_than} ago; none was deleted.")
            self.stdout.write(f"{past} deliveries of timers that go on ended more than {older_than} ago.")
            return
        timers = self._all(retention.prune, older_than)
        self.stdout.write(f"{timers} timers deleted that ended more than {older_than} ago.")
        past = self._all(retention.prune_past, older_than)
        self.stdout.write(f"{past} deliveries of timers that go on deleted.")

    def _all(self, step: Callable[..., int], older_than: timedelta) -> int:
        """Delete batch after batch, printing the progress, and return how many there were."""
        deleted, shown_at = 0, time.monotonic()
        while batch := step(older_than=older_than):
            deleted += batch
            if time.monotonic() - shown_at > 1:
                shown_at = time.monotonic()
                self.stdout.write(f"{deleted} deleted so far")
            time.sleep(retention.PAUSE_SECONDS)
        return deleted
