"""`manage.py timer create|get|list|cancel|replay|preview|import`: timers from the command line.

Input is checked as the API checks it, and options have the names of its fields. It is an operator's tool: it asks for
no key and sees all timers. What it makes is for the user that `--owner` names; without one it has no owner, as what an
open API makes without a key. Where the API asks for keys, only a superuser's sees such timers.
"""

import contextlib
import dataclasses
import json
import sys
import uuid
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils.translation import gettext as _
from rest_framework import exceptions

from webtask_scheduler import terminal
from webtask_scheduler.access import actor
from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.api.filtering import ListSerializer
from webtask_scheduler.scheduler.api.preview import PreviewSerializer, previewed
from webtask_scheduler.scheduler.api.problems import PastDue, invalid
from webtask_scheduler.scheduler.api.reading import ON_MISSED, NewTimerSerializer, read_timer
from webtask_scheduler.scheduler.api.showing import show_timers, stored_bodies
from webtask_scheduler.scheduler.models import State, Timer, TimerLabel
from webtask_scheduler.scheduler.queue.rollups import tally
from webtask_scheduler.scheduler.rules import crontab, recurrence
from webtask_scheduler.scheduler.rules.options import METHODS
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import OPERATOR, Caller
from webtask_scheduler.wording import translated

# Timers of one page of a list.
PAGE_MOST = 200
URL_SHOWN = 60
# The retry policy's fields; the API has them under `retry`.
RETRY = (
    "max_attempts",
    "backoff",
    "min_seconds",
    "max_seconds",
    "multiplier",
    "jitter",
    "delays_seconds",
    "max_age_seconds",
)


class Command(terminal.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Create timers, look at them, cancel and replay them, preview a schedule, take over a crontab."
        )
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help=_("store a timer"))
        create.add_argument("web_url", metavar="URL", help=_("the http or https URL to call"))
        _add_schedule(create)
        _add_call(create)
        get = actions.add_parser("get", help=_("show a timer"))
        get.add_argument("id", type=timer_id)
        find = actions.add_parser("list", help=_("show timers, the latest made first"))
        _add_filter(find)
        cancel = actions.add_parser("cancel", help=_("cancel timers for good"))
        cancel.add_argument("ids", nargs="+", metavar="ID", type=timer_id)
        replay = actions.add_parser("replay", help=_("send a delivery that failed or was missed again, now"))
        replay.add_argument("id", type=timer_id)
        replay.add_argument("--delivery-id", type=timer_id, help=_("default: the timer's latest such one"))
        preview = actions.add_parser("preview", help=_("show the next moments of a schedule; store nothing"))
        _add_schedule(preview)
        preview.add_argument("--count", type=int, help=_("moments to show (default 5)"))
        preview.add_argument("--after", help=_("moments after this instant (default: now)"))
        take = actions.add_parser(
            "import",
            help=_("make timers of a crontab's lines"),
            description=_(
                "Makes timers of lines whose command is a URL (called with GET), or curl or wget of one URL. Each bears"
                " the label %(label)s=<hash of its line and time zone>: a line that was imported before is not made"
                " again, even where its timer was cancelled. What fails is tried again, as with any timer. The exit"
                " code is 0 only if nothing was refused."
            )
            % {"label": crontab.LABEL},
        )
        take.add_argument("file", metavar="FILE", help=_("as `crontab -l` prints it; - for standard input"))
        take.add_argument("--timezone", default="UTC", help=_("until CRON_TZ or TZ in the file (default UTC)"))
        take.add_argument("--dry-run", action="store_true", help=_("say what would be made, make nothing"))
        for made in (create, take):
            made.add_argument("--owner", metavar="EMAIL", help=_("the user whose timer it is (default: nobody)"))
        find.add_argument("--owner", metavar="EMAIL", help=_("only those of this user"))
        for shown in (create, get, find, preview):
            shown.add_argument("--json", dest="as_json", action="store_true", help=_("as the API answers it"))

    @actor.at_shell()
    def handle(self, *__: Any, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(options)
        finally:
            # What it made is counted by this process, which ends here.
            with contextlib.suppress(DatabaseError, InterfaceError):
                tally.flush()

    def _create(self, options: dict[str, Any]) -> None:
        timer = dataclasses.replace(_checked(read_timer, _fields(options)), owner_id=_owner_id(options["owner"]))
        (stored,) = _stored([timer])
        (body,) = stored_bodies([stored], [timer])
        if options["as_json"]:
            self._print_json(body)
        else:
            said = _("%(timer)s is called at %(time)s") % {"timer": stored.timer_id, "time": body["due_at"]}
            self.stdout.write(said)

    def _get(self, options: dict[str, Any]) -> None:
        (body,) = show_timers(_existing([options["id"]]))
        if options["as_json"]:
            self._print_json(body)
            return
        attempts = body.pop("attempts")
        width = max(map(len, body))
        for name, value in body.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.stdout.write(f"{name:{width}}  {terminal.one_line(text)}")
        for attempt in attempts:
            outcome = attempt["status_code"] or attempt["error"]
            which = _("attempt %(number)s") % attempt
            message = terminal.one_line(attempt["message"])
            self.stdout.write(f"{which}  {attempt['started_at']}  {outcome}  {message}")

    def _list(self, options: dict[str, Any]) -> None:
        names = ("status", "host", "label", "due_from", "due_to", "recurring", "name", "url_prefix", "cursor", "limit")
        reader = ListSerializer(data={name: options[name] for name in names if options[name] is not None})
        values = _checked(_validated, reader)
        owner_id = _owner_id(options["owner"])
        wanted = search.filter_of(values, caller=OPERATOR if owner_id is None else Caller(owner_id=owner_id))
        found, cursor = _find(wanted, cursor=values.get("cursor", ""), limit=values["limit"])
        bodies = show_timers(found)
        if options["as_json"]:
            self._print_json({"timers": bodies, "next": cursor})
            return
        rows = [(_("ID"), _("STATUS"), _("DUE AT"), _("SCHEDULE"), _("NAME"), _("URL"))]
        rows += [
            (one["task_id"], one["status"], one["due_at"], _schedule(one), one.get("name", ""), one["web_url"])
            for one in bodies
        ]
        self._print_table([(*row[:-1], row[-1][:URL_SHOWN]) for row in rows])
        if cursor:
            self.stdout.write(_("There may be more: --cursor %(cursor)s") % {"cursor": cursor})

    def _cancel(self, options: dict[str, Any]) -> None:
        # All are looked up first, so that one mistyped id cancels nothing.
        for found in _existing(options["ids"]):
            (before,) = show_timers([found])
            services.cancel(found)
            (after,) = show_timers([found])
            ended = _("had ended before") if before["finished_at"] else after["reason"] or _("It has succeeded.")
            self.stdout.write(f"{found} {after['status']}: {ended}")

    def _replay(self, options: dict[str, Any]) -> None:
        (found,) = _existing([options["id"]])
        try:
            delivery = services.replay(found, delivery_id=options["delivery_id"])
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        self.stdout.write(_("%(delivery)s is sent again") % {"delivery": delivery})

    def _preview(self, options: dict[str, Any]) -> None:
        reader = PreviewSerializer(data=_fields(options))
        _checked(_validated, reader)
        shown = _checked(previewed, reader)
        if options["as_json"]:
            self._print_json(shown)
            return
        self._print_table([(one["at"], one["local"], one["note"]) for one in shown["moments"]])
        self.stdout.write(_("and so on") if shown["more"] else _("and no more"))

    def _import(self, options: dict[str, Any]) -> None:
        try:
            recurrence.check_timezone(options["timezone"])
        except recurrence.ScheduleError as error:
            raise CommandError(f"timezone: {translated(error)}") from error
        owner_id = _owner_id(options["owner"])
        made = refused = 0
        for line in crontab.read(_lines(options["file"]), timezone=options["timezone"]):
            if line.timer:
                is_made, said = _take_over(line, owner_id=owner_id, dry_run=options["dry_run"])
            else:
                is_made, said = bool(line.note), translated(line.note) or _not_made(translated(line.error))
            made += bool(line.timer) and is_made
            refused += not is_made
            self.stdout.write(_("line %(number)s: %(said)s") % {"number": line.number, "said": terminal.one_line(said)})
        if refused:
            text = _("%(refused)s of the lines could not be taken over; %(made)s are there.")
            raise CommandError(text % {"refused": refused, "made": made})
        text = _("All %(count)s can be made.") if options["dry_run"] else _("All %(count)s are there.")
        self.stdout.write(text % {"count": made})

    def _print_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def _print_table(self, rows: Sequence[tuple[str, ...]]) -> None:
        rows = [tuple(map(terminal.one_line, row)) for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            self.stdout.write("  ".join(cells).rstrip())


# Options


def timer_id(text: str) -> uuid.UUID:
    """Read an id. Raises ArgumentTypeError."""
    try:
        return uuid.UUID(text)
    except ValueError as error:
        said = _("%(text)r is not an id, such as 019a5b0e-93c4-7c5e-8f5e-2f6a1f0f9b11") % {"text": text}
        raise ArgumentTypeError(said) from error


def json_value(text: str) -> Any:
    """Read JSON other than null. Raises ArgumentTypeError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentTypeError(_("this is not JSON: %(error)s") % {"error": error}) from error
    if value is None:
        raise ArgumentTypeError(_("null says nothing; leave it out"))
    return value


def number(text: str) -> float:
    """Read a number; a whole number stays an integer."""
    return int(text) if text.isascii() and text.isdigit() else float(text)


def status(text: str) -> int | str:
    """Read a status code, or a class of codes as text, which the serializer checks."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text  # noqa: PLR2004 - any bound


def pair(text: str) -> tuple[str, str]:
    """Read key=value. Raises ArgumentTypeError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError(_("%(text)r is not key=value") % {"text": text})
    return key, value


def header(text: str) -> tuple[str, str]:
    """Read `Name: value`. Raises ArgumentTypeError."""
    name, colon, value = text.partition(":")
    if not colon:
        raise ArgumentTypeError(_("%(text)r is not a header, such as 'Accept: text/plain'") % {"text": text})
    return name.strip(), value.strip()


def _add_schedule(parser: CommandParser) -> None:
    when = parser.add_argument_group(_("when"), _("once, by one of these, or again and again"))
    when.add_argument("--hours", type=int, help=_("from now"))
    when.add_argument("--minutes", type=int, help=_("from now, added to the hours"))
    when.add_argument("--seconds", type=int, help=_("from now, added to both; 0 means now"))
    when.add_argument("--delay", help=_("from now, as an ISO 8601 duration: PT90S, P1DT12H"))
    when.add_argument("--due-at", help=_("an ISO 8601 instant with an offset"))
    when.add_argument("--cron", help=_("five fields, or @daily and the like"))
    when.add_argument("--timezone", help=_("with --cron: an IANA name like Europe/Berlin (default UTC)"))
    when.add_argument("--every", help=_("an ISO 8601 duration of at least one second: PT10M"))
    when.add_argument("--starts-at", help=_("of what recurs: no moment is before it"))
    when.add_argument("--ends-at", help=_("of what recurs: no moment is after it"))
    when.add_argument("--max-occurrences", type=int, help=_("of what recurs: after so many it has ended"))


def _add_call(parser: CommandParser) -> None:
    call = parser.add_argument_group(_("what is called"))
    call.add_argument("--method", choices=METHODS, help=_("default POST"))
    call.add_argument("--header", action="append", type=header, metavar="'NAME: VALUE'", help=_("may be repeated"))
    call.add_argument("--body", help=_("a text, sent as it is"))
    call.add_argument("--json-body", type=json_value, metavar="JSON", help=_("sent as JSON, instead of --body"))
    call.add_argument("--body-base64", help=_("bytes in base64, instead of --body"))
    call.add_argument("--content-type", help=_("of the body"))
    call.add_argument("--sensitive", action="store_true", default=None, help=_("encrypt the body, and keep no answers"))
    call.add_argument("--timeout-seconds", type=number, help=_("for the whole call, 1 to 300"))
    call.add_argument("--follow-redirects", action="store_true", default=None, help=_("up to three"))
    call.add_argument(
        "--success-status", action="append", type=status, help=_("a code, or a class like 3xx; repeatable")
    )
    call.add_argument("--callback-url", help=_("called with the outcome after a success"))
    call.add_argument("--failure-callback-url", help=_("called with the outcome after a failure"))
    retry = parser.add_argument_group(_("when a failed attempt is made again"))
    retry.add_argument("--max-attempts", type=int, help=_("in all, the first included (default 5)"))
    retry.add_argument("--backoff", choices=("exponential", "fixed", "list"))
    for name in ("--min-seconds", "--max-seconds", "--multiplier", "--jitter", "--max-age-seconds"):
        retry.add_argument(name, type=number)
    retry.add_argument("--delays-seconds", type=number, nargs="+", help=_("with --backoff list"))
    retry.add_argument("--on-missed", choices=ON_MISSED, help=_("what to do with a moment that has passed"))
    retry.add_argument("--max-lateness", help=_("with --on-missed skip: an ISO 8601 duration"))
    about = parser.add_argument_group(_("to find it by"))
    about.add_argument("--name")
    about.add_argument("--label", action="append", type=pair, metavar="KEY=VALUE", help=_("may be repeated"))
    about.add_argument("--metadata", type=json_value, metavar="JSON", help=_("given back as it is"))


def _add_filter(parser: CommandParser) -> None:
    parser.add_argument("--status", action="append", choices=[str(state) for state in State], help=_("may be repeated"))
    parser.add_argument("--host", help=_("of the URL, with its port where the URL has one"))
    parser.add_argument("--label", metavar="KEY=VALUE")
    parser.add_argument("--due-from", help=_("due then or later, an ISO 8601 instant with an offset"))
    parser.add_argument("--due-to", help=_("due before"))
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--recurring", dest="recurring", action="store_true", default=None)
    kind.add_argument("--once", dest="recurring", action="store_false", default=None, help=_("those that do not recur"))
    parser.add_argument("--name", help=_("a part of the name, whatever the case"))
    parser.add_argument("--url-prefix", help=_("how the URL begins"))
    said = _("timers to show, 50 if not given, at most %(most)s") % {"most": PAGE_MOST}
    parser.add_argument("--limit", type=int, help=said)
    parser.add_argument("--cursor", help=_("where the list before ended"))


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the given options as the API's fields. Raises CommandError."""
    known = (*NewTimerSerializer().fields, "count", "after")
    data = {name: options[name] for name in known if options.get(name) is not None}
    retry = {name: options[name] for name in RETRY if options.get(name) is not None}
    if retry:
        data["retry"] = retry
    if options.get("json_body") is not None:
        if "body" in data:
            raise CommandError(f"body: {_('Give either --body or --json-body.')}")
        data["body"] = options["json_body"]
    for name, option in (("headers", "header"), ("labels", "label")):
        pairs = options.get(option) or []
        if len(pairs) != len(dict(pairs)):
            raise CommandError(f"{name}: {_('One name is given twice.')}")
        if pairs:
            data[name] = dict(pairs)
    if options.get("success_status"):
        data["success_statuses"] = options["success_status"]
    return data


# Timers


def _owner_id(email: str | None) -> int | None:
    """Return the id of the user with an e-mail address; None without one. Raises CommandError."""
    if email is None:
        return None
    user = get_user_model().objects.filter(email__iexact=email, is_active=True).first()
    if user is None:
        raise CommandError(f"owner: {_('There is no active user with this e-mail address.')}")
    return int(user.pk)


def _checked(check: Any, value: Any) -> Any:
    """Return a value as a check of the API returns it. Raises CommandError, which names the fields."""
    try:
        return check(value)
    except (exceptions.ValidationError, PastDue) as error:
        raise CommandError(_said(error)) from error


def _said(error: exceptions.ValidationError | PastDue) -> str:
    items = invalid(error.detail)["errors"]
    return "; ".join(f"{item['field']}: {item['detail']}" if item["field"] else item["detail"] for item in items)


def _validated(reader: Any) -> Any:
    reader.is_valid(raise_exception=True)
    return reader.validated_data


def _stored(timers: list[services.NewTimer]) -> list[services.Scheduled]:
    try:
        return services.schedule(timers)
    except ValidationError as error:
        raise CommandError(error.messages[0]) from error


def _existing(ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Return the ids, each once. Raises CommandError if one has no timer."""
    known = set(Timer.objects.filter(pk__in=ids).values_list("pk", flat=True))
    unknown = [str(one) for one in ids if one not in known]
    if unknown:
        raise CommandError(f"id: {_('There is no timer %(ids)s.') % {'ids': ', '.join(unknown)}}")
    return list(dict.fromkeys(ids))


def _find(wanted: search.Filter, *, cursor: str, limit: int) -> tuple[list[uuid.UUID], str | None]:
    """Return up to `limit` timers and the next cursor, over as many pages as it takes."""
    found: list[uuid.UUID] = []
    following: str | None = cursor
    while following is not None and len(found) < limit:
        try:
            page = search.page(wanted, cursor=following, limit=limit - len(found))
        except search.CursorError as error:
            raise CommandError(f"cursor: {translated(error)}") from error
        found += page.timer_ids
        following = page.next
    return found, following


def _schedule(body: dict[str, Any]) -> str:
    if "cron" in body:
        return f"{body['cron']} {body['timezone']}"
    return _("every %(period)s") % {"period": body["every"]} if "every" in body else _("once")


# A crontab


def _lines(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(_("%(file)s cannot be read: %(error)s") % {"file": name, "error": error}) from error
    return text.splitlines()


def _take_over(line: crontab.Line, *, owner_id: int | None, dry_run: bool) -> tuple[bool, str]:
    """Make the timer of a line for an owner; return whether it exists, and the line to print."""
    ((key, value),) = line.timer["labels"].items()
    labelled = TimerLabel.objects.filter(label=f"{key}={value}", **Caller(owner_id=owner_id).own("timer__"))
    before = labelled.values_list("timer", flat=True).first()
    if before is not None:
        (body,) = show_timers([before])
        return True, _("was made before: %(timer)s (%(status)s)") % {"timer": before, "status": body["status"]}
    try:
        timer = dataclasses.replace(read_timer(line.timer), owner_id=owner_id)
    except (exceptions.ValidationError, PastDue) as error:
        return False, _not_made(_said(error))
    what = {
        "call": f"{line.timer['method']} {sealing.shown_url(timer.web_url)}",
        "schedule": f"{line.timer['cron']} {line.timer['timezone']}",
    }
    if dry_run:
        return True, _("would be made: %(call)s at %(schedule)s") % what
    (stored,) = services.schedule([timer])
    return True, _("made %(timer)s: %(call)s at %(schedule)s") % {"timer": stored.timer_id, **what}


def _not_made(why: str) -> str:
    return _("not made: %(why)s") % {"why": why}
