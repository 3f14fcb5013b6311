"""`manage.py timer create|get|list|cancel|replay|bulk|preview|import|export`: timers from the command line.

Input is checked as the API checks it, and options have the names of its fields. It is an operator's tool: it asks for
no key and sees all timers. What it makes is for the user that `--owner` names; without one it has no owner, as what an
open API makes without a key. Where the API asks for keys, only a superuser's sees such timers.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import uuid
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from rest_framework import exceptions

from webtask_scheduler import terminal
from webtask_scheduler.access import actor
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api import importing
from webtask_scheduler.scheduler.api.bulk import SPREAD_MOST
from webtask_scheduler.scheduler.api.filtering import FilterSerializer, ListSerializer
from webtask_scheduler.scheduler.api.preview import PreviewSerializer, previewed
from webtask_scheduler.scheduler.api.problems import PastDue
from webtask_scheduler.scheduler.api.reading import ON_MISSED, NewTimerSerializer, read_timer
from webtask_scheduler.scheduler.api.showing import show_timers, stored_bodies
from webtask_scheduler.scheduler.models import BulkOperation, State, Timer
from webtask_scheduler.scheduler.queue.rollups import tally
from webtask_scheduler.scheduler.rules import crontab, recurrence, timers_file
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.rules.options import METHODS
from webtask_scheduler.scheduler.services import search
from webtask_scheduler.scheduler.services.caller import OPERATOR, Caller
from webtask_scheduler.wording import translated

# Timers of one page of a list.
PAGE_MOST = 200
URL_SHOWN = 60
# How often a bulk operation is looked at that is waited for.
BULK_SECONDS = 0.5
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
            "Create timers, look at them, cancel and replay them, one or many, preview a schedule, import and export."
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
        bulk = actions.add_parser(
            "bulk",
            help=_("do something to all timers that fit a filter, and wait for its end"),
            description=_(
                "The workers do it, whether this command waits or not. They count first, and nothing is done before"
                " that is confirmed."
            ),
        )
        bulk.add_argument("deed", choices=BulkOperation.Action.values)
        bulk.add_argument("--yes", action="store_true", help=_("do not ask back"))
        bulk.add_argument("--dry-run", action="store_true", help=_("count them, change nothing"))
        bulk.add_argument("--no-wait", action="store_true", help=_("with --yes: begin it, and end at once"))
        bulk.add_argument(
            "--spread-seconds",
            type=int,
            metavar="SECONDS",
            help=_("with replay: over this time from now; with spread: over this time from --due-from"),
        )
        _add_filter(bulk, paged=False)
        preview = actions.add_parser("preview", help=_("show the next moments of a schedule; store nothing"))
        _add_schedule(preview)
        preview.add_argument("--count", type=int, help=_("moments to show (default 5)"))
        preview.add_argument("--after", help=_("moments after this instant (default: now)"))
        take = actions.add_parser(
            "import",
            help=_("make timers of the lines of a crontab, or of timers as JSON Lines or YAML"),
            description=_(
                "Makes timers of a crontab's lines whose command is a URL (called with GET), or curl or wget of one"
                " URL; or of JSON Lines or a list in YAML, of timers as creating takes them or as they are shown. Each"
                " bears the label %(crontab)s or %(json)s with a hash of what it says: what was imported before is not"
                " made again, even where its timer was cancelled. What fails is tried again, as with any timer. The"
                " exit code is 0 only if nothing was refused."
            )
            % {"crontab": crontab.LABEL, "json": importing.LABEL},
        )
        take.add_argument("file", metavar="FILE", help=_("a crontab, JSON Lines or YAML; - for standard input"))
        take.add_argument("--timezone", default="UTC", help=_("until CRON_TZ or TZ in the file (default UTC)"))
        take.add_argument("--dry-run", action="store_true", help=_("say what would be made, make nothing"))
        export = actions.add_parser(
            "export", help=_("print timers as JSON Lines or YAML, which import takes; secrets are shown as ***")
        )
        export.add_argument("--format", choices=("jsonl", "yaml"), default="jsonl", help=_("default jsonl"))
        _add_filter(export, paged=False)
        for made in (create, take):
            made.add_argument("--owner", metavar="EMAIL", help=_("the user whose timer it is (default: nobody)"))
        for filtered in (find, bulk, export):
            filtered.add_argument("--owner", metavar="EMAIL", help=_("only those of this user"))
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
        paging = {name: options[name] for name in ("cursor", "limit") if options[name] is not None}
        given = _filter_given(options) | paging
        values = _checked(_validated, ListSerializer(data=given))
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

    def _bulk(self, options: dict[str, Any]) -> None:
        given = _filter_given(options)
        if not given:
            raise CommandError(_("Give a filter first: this would be done to all timers."))
        values = _checked(_validated, FilterSerializer(data=given))
        owner_id = _owner_id(options["owner"])
        stored = {
            name: instant_text(value) if isinstance(value, datetime) else value
            for name, value in values.items()
            if value != ""
        }
        spread = _spread_of(options, values)
        operation = {"owner_id": owner_id, "everyone": owner_id is None, "action": options["deed"], "filter": stored}
        operation |= {"spread_seconds": spread}
        quiet = options["verbosity"] == 0
        matched = None
        if options["dry_run"] or not options["yes"]:
            matched = _waited(BulkOperation(dry_run=True, **operation), total=None, quiet=quiet).matched
            text = ngettext("%(count)s timer fits.", "%(count)s timers fit.", matched)
            self.stdout.write(text % {"count": matched})
            if options["dry_run"]:
                return
            try:
                # Translations keep y for yes: scripts answer it.
                answer = input(f"{options['deed']}: {_('Do it to all of them? [y/N]')} ")
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError(_("Nothing was done. Confirm with y, or give --yes."))
        begun = BulkOperation(**operation)
        if options["no_wait"]:
            services.begin_bulk(begun)
            self.stdout.write(_("%(operation)s is begun.") % {"operation": begun.pk})
            return
        done = _waited(begun, total=matched, quiet=quiet)
        text = ngettext("%(count)s timer was changed.", "%(count)s timers were changed.", done.changed)
        self.stdout.write(text % {"count": done.changed})

    def _export(self, options: dict[str, Any]) -> None:
        values = _checked(_validated, FilterSerializer(data=_filter_given(options)))
        owner_id = _owner_id(options["owner"])
        wanted = search.filter_of(values, caller=OPERATOR if owner_id is None else Caller(owner_id=owner_id))
        write = timers_file.write if options["format"] == "yaml" else _json_lines
        with terminal.Progress(_("Timers exported"), quiet=options["verbosity"] == 0) as progress:

            def timers() -> Iterator[dict[str, Any]]:
                following: str | None = ""
                while following is not None:
                    page = search.page(wanted, cursor=following, limit=PAGE_MOST)
                    following = page.next
                    bodies = show_timers(page.timer_ids)
                    for body in bodies:
                        # No call that was made: import leaves them out, and a file would be many times as large.
                        yield _plain({name: value for name, value in body.items() if name != "attempts"})
                    progress.add(len(bodies))

            texts = iter(write(timers()))
            while some := list(islice(texts, PAGE_MOST)):
                with progress.aside():
                    self.stdout.write("".join(some), ending="")

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
        lines = importing.lines_of(_text(options["file"]))
        entries = importing.read(lines, zone=options["timezone"], owner_id=owner_id)
        there = refused = 0
        progress = terminal.Progress(_("Lines"), total=len(lines), quiet=options["verbosity"] == 0)
        seen = 0
        with progress:
            # Batch after batch, so that what was made is there and said whatever ends it.
            while batch := _next(entries):
                if not options["dry_run"]:
                    batch = _made(batch, owner_id=owner_id)
                with progress.aside():
                    for entry in batch:
                        there += bool(entry.timer or entry.timer_id)
                        refused += bool(entry.error)
                        said = {"number": entry.number, "said": terminal.one_line(_became(entry))}
                        self.stdout.write(_("line %(number)s: %(said)s") % said)
                progress.add(batch[-1].number - seen)
                seen = batch[-1].number
                if refused >= importing.REFUSED_MOST and not there:
                    text = _("None of the first %(count)s lines could be taken over; the others were not read.")
                    raise CommandError(text % {"count": refused})
        if refused:
            text = _("%(refused)s of the lines could not be taken over; %(made)s could.")
            raise CommandError(text % {"refused": refused, "made": there})
        text = _("All %(count)s can be made.") if options["dry_run"] else _("All %(count)s are there.")
        self.stdout.write(text % {"count": there})

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


def _add_filter(parser: CommandParser, *, paged: bool = True) -> None:
    parser.add_argument("--status", action="append", choices=[str(state) for state in State], help=_("may be repeated"))
    parser.add_argument("--host", help=_("of the URL, with its port where the URL has one"))
    parser.add_argument("--label", metavar="KEY=VALUE")
    parser.add_argument("--due-from", help=_("due then or later, an ISO 8601 instant with an offset"))
    parser.add_argument("--due-to", help=_("due before"))
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--recurring", dest="recurring", action="store_true", default=None)
    kind.add_argument("--once", dest="recurring", action="store_false", default=None, help=_("those that do not recur"))
    parser.add_argument("--retrying", action="store_true", default=None, help=_("those that are tried again"))
    late = _("those that are due for more than a second without being called")
    parser.add_argument("--late", action="store_true", default=None, help=late)
    parser.add_argument("--name", help=_("a part of the name, whatever the case"))
    parser.add_argument("--url-prefix", help=_("how the URL begins"))
    changed = _("those that a bulk operation with this id paused or resumed")
    parser.add_argument("--changed-by", metavar="BULK_ID", help=changed)
    callback = parser.add_mutually_exclusive_group()
    has, has_no = _("those with a callback_url or a failure_callback_url"), _("those with neither")
    callback.add_argument("--has-callback", action="store_true", default=None, help=has)
    callback.add_argument("--no-callback", dest="has_callback", action="store_false", default=None, help=has_no)
    if not paged:
        return
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


def _filter_given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the given options of a filter as the API's fields."""
    names = ("status", "host", "label", "due_from", "due_to", "recurring", "retrying", "late", "name", "url_prefix")
    return {name: options[name] for name in (*names, "has_callback", "changed_by") if options[name] is not None}


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
        raise CommandError(importing.said(error)) from error


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


def _waited(operation: BulkOperation, *, total: int | None, quiet: bool) -> BulkOperation:
    """Begin a bulk operation, show how far workers have come, and return it at its end. Raises CommandError."""
    try:
        services.begin_bulk(operation)
    except ValidationError as error:
        raise CommandError(error.messages[0]) from error
    what = _("Timers counted") if operation.dry_run else _("Timers done")
    try:
        with terminal.Progress(what, total=total, quiet=quiet) as progress:
            while operation.finished_at is None:
                time.sleep(BULK_SECONDS)
                before = operation.matched
                operation.refresh_from_db()
                progress.add(operation.matched - before)
    except KeyboardInterrupt as error:
        said = _("This command waits no longer. The workers go on with %(operation)s; its page shows how far they are.")
        raise CommandError(said % {"operation": operation.pk}) from error
    if operation.error:
        raise CommandError(operation.error)
    return operation


def _spread_of(options: dict[str, Any], wanted: Mapping[str, Any]) -> int | None:
    """Return over how many seconds a bulk operation is spread; None if it is not. Raises CommandError."""
    action = BulkOperation.Action
    seconds: int | None = options["spread_seconds"]
    if seconds is not None and options["deed"] not in (action.REPLAY, action.SPREAD):
        raise CommandError(_("--spread-seconds is for replay and spread."))
    if seconds is not None and not 1 <= seconds <= SPREAD_MOST:
        raise CommandError(_("--spread-seconds must be from 1 to %(most)s.") % {"most": SPREAD_MOST})
    if options["deed"] == action.SPREAD:
        try:
            services.check_spread(wanted, spread_seconds=seconds, dry_run=options["dry_run"])
        except services.SpreadError as error:
            raise CommandError(error.messages[0]) from error
    return seconds


def _schedule(body: dict[str, Any]) -> str:
    if "cron" in body:
        return f"{body['cron']} {body['timezone']}"
    return _("every %(period)s") % {"period": body["every"]} if "every" in body else _("once")


# Exporting


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """Return a timer with nothing but what JSON can say."""
    found: dict[str, Any] = json.loads(json.dumps(body, default=str))
    return found


def _json_lines(timers: Iterable[dict[str, Any]]) -> Iterator[str]:
    for timer in timers:
        yield json.dumps(timer, ensure_ascii=False) + "\n"


# Importing


def _text(name: str) -> str:
    """Return a file's text, which is not read on beyond what is taken. Raises CommandError."""
    most = importing.FILE_BYTES_MOST
    text: str | None
    try:
        if name == "-":
            text = sys.stdin.read(most + 1)
        else:
            with Path(name).open(encoding="utf-8") as file:
                # Of a file the size is known before; a pipe has none.
                text = None if os.fstat(file.fileno()).st_size > most else file.read(most + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(_("%(file)s cannot be read: %(error)s") % {"file": name, "error": error}) from error
    if text is None or len(text) > most:
        said = _("%(file)s is larger than %(most)s MiB; nothing was read. Split it, as split -l 100000 does by lines.")
        raise CommandError(said % {"file": name, "most": most // 1024 // 1024})
    return text


def _next(entries: Iterator[importing.Entry]) -> list[importing.Entry]:
    """Return the next entries of a file, none at its end. Raises CommandError."""
    try:
        return list(islice(entries, importing.BATCH_LINES))
    except timers_file.FileError as error:
        raise CommandError(translated(error)) from error


def _made(entries: list[importing.Entry], *, owner_id: int | None) -> list[importing.Entry]:
    """Return entries after their timers were made. An operator's have no limits. Raises CommandError."""
    try:
        return importing.store(entries, owner_id=owner_id, within_limits=False)
    except ValidationError as error:
        raise CommandError(error.messages[0]) from error


def _became(entry: importing.Entry) -> str:
    """Return in words what becomes of a line, or became of it."""
    if entry.error:
        return _("not made: %(why)s") % {"why": entry.error}
    if entry.note:
        return entry.note
    values = {"timer": entry.timer_id, "status": entry.status, "call": entry.call, "schedule": entry.schedule}
    if entry.timer_id and not entry.is_made:
        return _("was made before: %(timer)s (%(status)s)") % values
    if not entry.schedule:
        values["schedule"] = instant_text(entry.next_at) if entry.next_at else ""
    if entry.is_made:
        return _("made %(timer)s: %(call)s at %(schedule)s") % values
    return _("would be made: %(call)s at %(schedule)s") % values
