"""`manage.py rotate_encryption`: encrypt what is stored with the newest key."""

import time
from collections import Counter
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from webtask_scheduler import terminal, vault
from webtask_scheduler.scheduler.services import rotation


class Command(terminal.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Encrypt all secrets that are stored with the first key of WEBTASK_ENCRYPTION_KEYS: those that another key"
            " encrypted, and those that a release up to 0.2 stored in plain text. The service may run meanwhile. After"
            " an interruption, start it again."
        )
        parser.add_argument(
            "--pause",
            type=float,
            default=0.02,
            metavar="SECONDS",
            help=_("between batches of 200 rows, so that calls come first (default 0.02)"),
        )
        parser.add_argument(
            "--forget-missing",
            action="store_true",
            help=_("for lost keys: /readyz no longer asks for them; what they encrypted stays unreadable"),
        )

    def handle(self, *__: Any, pause: float, forget_missing: bool, verbosity: int, **___: Any) -> None:
        unreadable = rotation.Unreadable()
        read: Counter[str] = Counter()
        written: Counter[str] = Counter()
        with terminal.Progress(_("Rows looked at"), quiet=verbosity == 0) as progress:
            for done in rotation.rotate(unreadable):
                read[done.table] += done.read
                written[done.table] += done.written
                progress.add(done.read)
                if done.written:
                    time.sleep(pause)
        text = ngettext(
            "%(count)s row encrypted with the key %(key)s (%(tables)s).",
            "%(count)s rows encrypted with the key %(key)s (%(tables)s).",
            written.total(),
        )
        tables = ", ".join(f"{table}: {written[table]}/{count}" for table, count in read.items()) or "-"
        self.stdout.write(text % {"count": written.total(), "key": vault.newest_key(), "tables": tables})
        if forget_missing:
            forgotten = ", ".join(rotation.forget_missing_keys()) or "-"
            self.stdout.write(_("Keys forgotten: %(keys)s") % {"keys": forgotten})
        if unreadable.count:
            text = ngettext(
                "%(count)s row could not be read and stays as it is. %(reasons)s",
                "%(count)s rows could not be read and stay as they are. %(reasons)s",
                unreadable.count,
            )
            reasons = " ".join(sorted(unreadable.reasons)[:3])
            raise CommandError(text % {"count": unreadable.count, "reasons": reasons})
        self.stdout.write(_("No other key is needed any more."))
