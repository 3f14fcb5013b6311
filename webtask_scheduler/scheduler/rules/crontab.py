"""Turns lines of a crontab into timers, or says why a line cannot become one. Pure: no clock, no database.

A command can be taken over only if it calls one URL: the URL by itself, or curl or wget with options that mean the same
here. An option that needs a shell or would act differently here is refused by name.
"""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.wording import Sentence
from webtask_scheduler.wording import sentence as _

# curl waits for ever by default; this is the longest that a timer may.
TIMEOUT_SECONDS = 300
# Characters of a line. cron itself takes a command of 1,000, or with some programs 128 Ki.
LINE_MOST = 128 * 1024
LABEL = "crontab"

_ASSIGNMENT = re.compile(r"""(["']?)([A-Za-z_][A-Za-z0-9_]*)\1\s*=\s*(.*)""")
_OUTPUT = re.compile(r"(?:[12]?>>?\s*/dev/null|2>&1|1>&2)(?=[\s;&|]|$)")


class RefusedError(ValueError):
    """A line that cannot be taken over; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line that is no comment: a timer in the API's form, or a note that it makes no timer, or what is wrong."""

    number: int
    timer: dict[str, Any] = field(default_factory=dict)
    note: Sentence | str = ""
    error: Sentence | str = ""


def read(lines: Iterable[str], *, timezone: str = "UTC") -> Iterator[Line]:
    """Yield each line as read. Schedules are in `timezone` until the file sets CRON_TZ or TZ."""
    zones: dict[str, str] = {}
    wrong_zone: Sentence | str = ""
    seen: Counter[str] = Counter()
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if not text or text.startswith("#"):
            continue
        if len(text) > LINE_MOST:
            yield Line(number=number, error=_("it is longer than %(most)s characters", most=f"{LINE_MOST:,}"))
            continue
        assignment = _ASSIGNMENT.fullmatch(text)
        if assignment:
            name, value = assignment[2], assignment[3].strip()
            if value[:1] in ("'", '"') and value[-1:] == value[:1]:
                value = value[1:-1]
            if name not in ("CRON_TZ", "TZ"):
                yield Line(number=number, note=_("ignored: the variable %(name)s means nothing here", name=name))
                continue
            try:
                zones[name] = recurrence.check_timezone(value)
                wrong_zone = ""
                note = _("%(name)s: from here on in %(zone)s", name=name, zone=_zone(zones, timezone))
                yield Line(number=number, note=note)
            except recurrence.ScheduleError as error:
                # In another zone, all timers that follow would be called at wrong times.
                wrong_zone = _("its time zone is not known, see line %(number)s", number=number)
                yield Line(number=number, error=_("%(name)s: %(error)s", name=name, error=error.args[0]))
            continue
        if wrong_zone:
            yield Line(number=number, error=wrong_zone)
            continue
        try:
            timer = _timer(text)
        except RefusedError as error:
            yield Line(number=number, error=error.args[0])
            continue
        timer["timezone"] = _zone(zones, timezone)
        # cron runs a repeated line twice.
        key = f"{timer['timezone']} {' '.join(text.split())}"
        seen[key] += 1
        digest = hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest()[:16]
        yield Line(number=number, timer=timer | {"labels": {LABEL: digest}})


def _zone(zones: dict[str, str], timezone: str) -> str:
    return zones.get("CRON_TZ") or zones.get("TZ") or timezone


def _timer(text: str) -> dict[str, Any]:
    """Return the timer of a line with a schedule and a command, without its time zone. Raises RefusedError."""
    fields = 1 if text.startswith("@") else 5
    words = text.split(None, fields)
    schedule = " ".join(words[:fields])
    if schedule.lower() == "@reboot":
        raise RefusedError(_("@reboot is no moment in time"))
    if len(words) <= fields:
        raise RefusedError(_("a schedule of five fields, or @daily and the like, and a command are required"))
    try:
        cron = recurrence.check_cron(schedule)
    except recurrence.ScheduleError as error:
        raise RefusedError(error.args[0]) from error
    if re.search(r"(?<!\\)%", words[fields]):
        raise RefusedError(
            _(
                "%(sign)s begins the command's standard input, which a call has not; a plain one is written \\%(sign)s",
                sign="%",
            )
        )
    return {"cron": cron} | command(words[fields].replace("\\%", "%"))


def command(text: str) -> dict[str, Any]:
    """Return what a command calls, as fields of the API. Raises RefusedError."""
    words = split(text)
    if not words:
        raise RefusedError(_("there is no command"))
    if re.match(r"(?i)https?://", words[0]):
        if len(words) > 1:
            raise RefusedError(_("after the URL there is %(word)r", word=words[1]))
        return {"web_url": words[0], "method": "GET"}
    program = words[0].rpartition("/")[2]
    if program == "curl":
        return _curl(words[1:])
    if program == "wget":
        return _wget(words[1:])
    raise RefusedError(_("%(word)r is no URL, curl or wget", word=words[0]))


# The shell.

_SHELL = {
    "|": _("a pipe"),
    "||": "||",
    "&": _("& (in the background)"),
    "&&": "&&",
    ";": _("; (several commands)"),
    "<": _("a redirection of input"),
    ">": _("a redirection other than to /dev/null"),
    "(": _("a subshell"),
    ")": _("a subshell"),
    "$": _("a variable or substitution ($)"),
    "`": _("a substitution (backquotes)"),
    "*": _("a pattern (*), which the shell expands: put it in quotes"),
}


def _refuse(character: str, text: str) -> NoReturn:
    operator = character * 2 if text.startswith(character * 2) and character in "|&" else character
    raise RefusedError(_("%(what)s is for a shell, and there is none here", what=_SHELL[operator]))


def split(text: str) -> list[str]:
    """Split a command into words as sh does, leaving out output to /dev/null. Raises RefusedError."""
    words: list[str] = []
    # The parts of the word that is read: one text would be copied with each character.
    word: list[str] | None = None
    at = 0
    while at < len(text):
        # A redirection is recognised only where a word may begin; elsewhere its number is a part of the word.
        output = _OUTPUT.match(text, at) if word is None or text[at] == ">" else None
        if output:
            at = output.end()
        elif word is None and text[at] == "#":
            break
        elif text[at].isspace():
            words += [] if word is None else ["".join(word)]
            word = None
            at += 1
        else:
            piece, at = _piece(text, at, is_first=word is None)
            word = [] if word is None else word
            word.append(piece)
    return words if word is None else [*words, "".join(word)]


def _piece(text: str, at: int, *, is_first: bool) -> tuple[str, int]:
    """Return the next part of a word, a character or a quoted text, and where it has ended."""
    if text[at] in ("'", '"'):
        return _quoted(text, at)
    if text[at] == "\\":
        if at + 1 == len(text):
            raise RefusedError(_("it ends with a backslash"))
        return text[at + 1], at + 2
    if text[at] in _SHELL:
        _refuse(text[at], text[at:])
    if text[at] == "~" and is_first:
        raise RefusedError(_("~ is a home directory, and there is none here"))
    return text[at], at + 1


def _quoted(text: str, start: int) -> tuple[str, int]:
    """Return the text in the quotes that begin at `start`, and where they have ended."""
    quote, at, found = text[start], start + 1, ""
    while at < len(text) and text[at] != quote:
        if quote == '"' and text[at] in "$`":
            _refuse(text[at], text[at:])
        if quote == '"' and text[at] == "\\" and text[at + 1 : at + 2] in ("$", "`", '"', "\\"):
            at += 1
        found += text[at : at + 1]
        at += 1
    if at >= len(text):
        raise RefusedError(_("a quote (%(quote)s) is not closed", quote=quote))
    return found, at + 1


# curl and wget.


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of a program that have the same meaning here: their long names, by the short ones or alone."""

    program: str
    flags: dict[str, str]
    with_value: dict[str, str]
    long_only: tuple[str, ...] = ()

    def parse(self, words: list[str]) -> tuple[list[tuple[str, str]], str]:
        """Return the options, each with its value, and the one URL. Raises RefusedError."""
        found: list[tuple[str, str]] = []
        urls: list[str] = []
        rest = iter(words)
        for word in rest:
            if word.startswith("--"):
                found.append(self._long(word, rest))
            elif word.startswith("-") and word != "-":
                found += self._short(word, rest)
            else:
                urls.append(word)
        if len(urls) != 1:
            if not urls:
                raise RefusedError(_("%(program)s is given no URL", program=self.program))
            given = {"program": self.program, "count": len(urls), "urls": ", ".join(urls[:3])}
            raise RefusedError(_("%(program)s is given %(count)s URLs: %(urls)s", **given))
        if re.search(r"[\[\]{}]", re.sub(r"^[^:/]*://[^/]*", "", urls[0])) and self.program == "curl":
            raise RefusedError(_("curl expands the brackets in its URL to several"))
        return found, urls[0]

    def _long(self, word: str, rest: Iterator[str]) -> tuple[str, str]:
        name, equals, value = word[2:].partition("=")
        # curl does not support --name=value.
        if name in self.flags.values() and not equals:
            return name, ""
        if name in (*self.with_value.values(), *self.long_only) and (self.program == "wget" or not equals):
            return name, value if equals else self._value(word, rest)
        raise self._unknown(word)

    def _short(self, word: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in self.flags:
                yield self.flags[letter], ""
            elif letter in self.with_value:
                yield self.with_value[letter], letters or self._value(f"-{letter}", rest)
                return
            else:
                raise self._unknown(f"-{letter}")

    def _value(self, option: str, rest: Iterator[str]) -> str:
        value = next(rest, None)
        if value is None:
            raise RefusedError(_("%(program)s %(option)s has no value", program=self.program, option=option))
        return value

    def _unknown(self, option: str) -> RefusedError:
        return RefusedError(_("%(program)s %(option)s cannot be taken over", program=self.program, option=option))


_CURL = _Options(
    "curl",
    {"s": "silent", "S": "show-error", "f": "fail", "L": "location"},
    {"X": "request", "H": "header", "d": "data", "o": "output", "m": "max-time", "u": "user"},
    ("data-raw", "json"),
)
_WGET = _Options("wget", {"q": "quiet"}, {"O": "output-document"})


def _curl(words: list[str]) -> dict[str, Any]:
    options, url = _CURL.parse(words)
    given: dict[str, list[str]] = {}
    for name, value in options:
        _check_value(name, value)
        given.setdefault(name.removesuffix("-raw"), []).append(value)
    if given.keys() >= {"json", "data"}:
        raise RefusedError(_("curl takes either --json or --data"))
    method = given.get("request", ["POST" if given.keys() & {"json", "data"} else "GET"])[-1]
    timer: dict[str, Any] = {"web_url": url, "method": method, "headers": _curl_headers(given)}
    if "json" in given:
        timer["body"] = "".join(given["json"])
    elif "data" in given:
        timer["body"] = "&".join(given["data"])
    elif method not in ("GET", "HEAD", "DELETE"):
        # curl then sends no body, but a timer without a body would send a default one.
        timer["body"] = ""
    timer["timeout_seconds"] = _seconds(given["max-time"][-1]) if "max-time" in given else TIMEOUT_SECONDS
    if "location" in given:
        timer["follow_redirects"] = True
    else:
        # curl accepts a redirect that it does not follow as an answer.
        timer["success_statuses"] = ["2xx", "3xx"]
    return timer


def _check_value(name: str, value: str) -> None:
    if name in ("data", "json", "header") and value.startswith("@"):
        raise RefusedError(_("curl --%(name)s %(value)s reads a file", name=name, value=value))
    if name == "output" and value != "/dev/null":
        raise RefusedError(_("curl -o %(value)s writes a file", value=value))
    if name == "user" and ":" not in value:
        raise RefusedError(_("curl -u without a password asks for it"))


def _curl_headers(given: dict[str, list[str]]) -> dict[str, str]:
    """Return the headers that are given by name, and those that options imply."""
    headers: dict[str, str] = {}
    for text in given.get("header", ()):
        name, __, value = text.partition(":")
        if not value.strip():
            raise RefusedError(_("curl -H %(text)r names no header with a value", text=text))
        if name.lower() in map(str.lower, headers):
            raise RefusedError(_("the header %(name)s is given twice", name=name))
        headers[name] = value.strip()
    implied: dict[str, str] = {}
    if "json" in given:
        implied = {"Content-Type": "application/json", "Accept": "application/json"}
    elif "data" in given:
        implied = {"Content-Type": "application/x-www-form-urlencoded"}
    if "user" in given:
        implied["Authorization"] = "Basic " + base64.b64encode(given["user"][-1].encode()).decode()
    named = set(map(str.lower, headers))
    return headers | {name: value for name, value in implied.items() if name.lower() not in named}


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise RefusedError(_("curl -m %(text)s is no number of seconds", text=text))
    return float(text) if "." in text else int(text)


def _wget(words: list[str]) -> dict[str, Any]:
    options, url = _WGET.parse(words)
    outputs = [value for name, value in options if name == "output-document"]
    if not outputs:
        raise RefusedError(_("wget without -O /dev/null or -O - writes a file"))
    for output in outputs:
        if output not in ("/dev/null", "-"):
            raise RefusedError(_("wget -O %(output)s writes a file", output=output))
    return {"web_url": url, "method": "GET", "timeout_seconds": TIMEOUT_SECONDS, "follow_redirects": True}
