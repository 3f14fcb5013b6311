"""`manage.py calls stop|resume|status`: the kill switch."""

from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from webtask_scheduler import terminal
from webtask_scheduler.access import actor
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import CallStop


class Command(terminal.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Stop all calls, or those to one host, at once; resume them; show what is stopped and what waits."
        )
        parser.add_argument("action", choices=["stop", "resume", "status"])
        parser.add_argument("--host", default="", help=_("a URL or a host, with its port if the URL has one"))
        parser.add_argument("--all", action="store_true", dest="everything", help=_("every host"))
        parser.add_argument("--reason", default="", help=_("kept with the stop, for other operators"))
        parser.add_argument("--yes", action="store_true", help=_("do not ask back before all calls are stopped"))

    @actor.at_shell()
    def handle(self, *__: Any, action: str, host: str, everything: bool, **options: Any) -> None:
        if action == "status":
            try:
                self._show()
            except (DatabaseError, InterfaceError) as error:
                said = _("The database does not answer: %(error)s") % {"error": " ".join(str(error).split())}
                raise CommandError(said) from error
            return
        if everything == bool(host.strip()):
            raise CommandError(_("Say which calls: --host HOST for those to one host, or --all for every one."))
        try:
            host = "" if everything else services.host_to_stop(host)
        except services.CallStopRefusedError as error:
            raise CommandError(error.messages[0]) from error
        given = {"host": host, "everything": everything, "reason": options["reason"], "by": _operator()}
        if action == "stop":
            self._stop(given, ask=everything and not options["yes"])
        else:
            self._resume(given)

    def _stop(self, given: dict[str, Any], *, ask: bool) -> None:
        if ask:
            matches = services.stop_matches("")
            try:
                # Translations keep y for yes: scripts answer it.
                answer = input(f"{matches} {_('Stop the calls of all of them? [y/N]')} ")
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError(_("Nothing was stopped. Confirm with y, or give --yes."))
        services.stop_calls(**given)
        said = _("Calls to all hosts are stopped.")
        if given["host"]:
            said = _("Calls to %(host)s are stopped.") % given
        held = _("Calls in flight may land; what comes due is held.")
        self.stdout.write(f"{said} {services.stop_matches(given['host'])} {held}")

    def _resume(self, given: dict[str, Any]) -> None:
        refused = _("Calls to all hosts are not stopped; `manage.py calls status` shows what is.")
        said = _("Calls to all hosts go on. What was held is called now, oldest first.")
        if given["host"]:
            refused = _("Calls to %(host)s are not stopped; `manage.py calls status` shows what is.") % given
            said = _("Calls to %(host)s go on. What was held is called now, oldest first.") % given
        if not services.resume_calls(**given):
            raise CommandError(refused)
        self.stdout.write(said)
        stopped = facts.gather(at_once=True).stops
        if "" in stopped:
            self.stdout.write(_("Calls to all hosts are stopped still."))
        elif stopped:
            self.stdout.write(_("Calls to %(hosts)s are stopped still.") % {"hosts": ", ".join(stopped)})

    def _show(self) -> None:
        found = facts.gather(at_once=True)
        for stop in CallStop.objects.order_by("host"):
            reason = f" ({terminal.one_line(stop.reason)})" if stop.reason else ""
            said = _("%(host)s: stopped since %(time)s")
            shown = {"host": stop.host or _("all hosts"), "time": f"{stop.created_at:%Y-%m-%d %H:%M:%S}"}
            self.stdout.write(f"{said % shown}{reason}")
        if not found.stops:
            self.stdout.write(_("No calls are stopped."))
        self.stdout.write(facts.waiting_said(found))
        self.stdout.write(_overdue(found))
        for what, trouble in (
            (_("beat"), found.beat_trouble),
            (_("workers"), found.worker_trouble),
            (_("upkeep"), found.upkeep_trouble),
            (_("broker"), facts.broker_trouble(at_once=True)),
            (_("encryption keys"), found.keys_trouble),
        ):
            self.stdout.write(f"{what}: {trouble or 'ok'}")


def _overdue(found: facts.Facts) -> str:
    """Return in words how many deliveries are overdue, for how long, and where they are."""
    count = {"count": facts.shown_number(found.late)}
    if found.late >= facts.COUNT_MOST:
        said = _("%(count)s deliveries or more overdue") % count
    else:
        said = ngettext("%(count)s delivery overdue", "%(count)s deliveries overdue", found.late) % count
    if not found.late:
        return said
    values = {
        "overdue": said,
        "seconds": f"{found.late_seconds:.0f}",
        "claimed": facts.shown_number(found.unstarted),
        "put_off": facts.shown_number(found.put_off),
    }
    text = _("%(overdue)s, the oldest for %(seconds)s s (%(claimed)s claimed by beats, %(put_off)s put off by workers)")
    return text % values


def _operator() -> str:
    """Return the name of the shell's user, for the log."""
    user = actor.shell_user()
    return f"{user} at a shell" if user else "a shell"
