"""`manage.py calls stop|resume|status`: the kill switch."""

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import CallStop


class Command(BaseCommand):
    help = "Stop all calls, or those to one host, at once; resume them; show what is stopped and what waits."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["stop", "resume", "status"])
        parser.add_argument("--host", default="", help="a URL or a host, with its port if the URL has one")
        parser.add_argument("--all", action="store_true", dest="everything", help="every host")
        parser.add_argument("--reason", default="", help="kept with the stop, for other operators")
        parser.add_argument("--yes", action="store_true", help="do not ask back before all calls are stopped")

    def handle(self, *_: Any, action: str, host: str, everything: bool, **options: Any) -> None:
        if action == "status":
            try:
                self._show()
            except (DatabaseError, InterfaceError) as error:
                raise CommandError(f"The database does not answer: {' '.join(str(error).split())}") from error
            return
        if everything == bool(host.strip()):
            raise CommandError(f"Say what to {action}: --host HOST for one host, or --all for every one.")
        try:
            host = "" if everything else services.host_to_stop(host)
        except services.CallStopRefusedError as error:
            raise CommandError(error.message) from error
        given = {"host": host, "everything": everything, "reason": options["reason"], "by": _operator()}
        if action == "stop":
            self._stop(given, ask=everything and not options["yes"])
        else:
            self._resume(given)

    def _stop(self, given: dict[str, Any], *, ask: bool) -> None:
        if ask:
            matches = services.stop_matches("")
            try:
                answer = input(f"{matches} Stop the calls of all of them? [y/N] ")
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError("Nothing was stopped. Confirm with y, or give --yes.")
        services.stop_calls(**given)
        said = f"Calls to {given['host'] or 'all hosts'} are stopped. {services.stop_matches(given['host'])}"
        self.stdout.write(f"{said} Calls in flight may land; what comes due is held.")

    def _resume(self, given: dict[str, Any]) -> None:
        where = f"to {given['host'] or 'all hosts'}"
        if not services.resume_calls(**given):
            raise CommandError(f"Calls {where} are not stopped; `manage.py calls status` shows what is.")
        self.stdout.write(f"Calls {where} go on. What was held is called now, oldest first.")
        stopped = facts.gather(at_once=True).stops
        if stopped:
            still = "to all hosts" if "" in stopped else f"to {', '.join(stopped)}"
            self.stdout.write(f"Calls {still} are stopped still.")

    def _show(self) -> None:
        found = facts.gather(at_once=True)
        for stop in CallStop.objects.order_by("host"):
            reason = f" ({stop.reason})" if stop.reason else ""
            since = f"{stop.created_at:%Y-%m-%d %H:%M:%S}"
            self.stdout.write(f"{stop.host or 'all hosts'}: stopped since {since}{reason}")
        if not found.stops:
            self.stdout.write("No calls are stopped.")
        waiting = facts.waiting_for_stops(found)
        self.stdout.write(f"{facts.counted(waiting)} {'waits' if waiting == 1 else 'wait'} for calls to be resumed")
        oldest = f", the oldest for {found.late_seconds:.0f} s" if found.late else ""
        where = f" ({found.unstarted:,} claimed by beats, {found.put_off:,} put off by workers)" if found.late else ""
        self.stdout.write(f"{facts.counted(found.late)} overdue{oldest}{where}")
        for what, trouble in (
            ("beat", found.beat_trouble),
            ("workers", found.worker_trouble),
            ("upkeep", found.upkeep_trouble),
            ("broker", facts.broker_trouble(at_once=True)),
        ):
            self.stdout.write(f"{what}: {trouble or 'ok'}")


def _operator() -> str:
    """Return the name of the shell's user, for the log."""
    try:
        return f"{getpass.getuser()} at a shell"
    except (KeyError, OSError):
        return "a shell"
