"""Takes out of a text what may be a secret: a URL's query and user-info, and values that an error quotes.

A URL, a header or a body of a timer may hold a password or a token. They belong in the table of timers and in the call,
never in a log or in Sentry.
"""

import re
import traceback
from collections.abc import Iterator

# To the next blank, because a query may hold quotes and brackets.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S*)")
_QUOTES = re.compile(r"""["'`].*["'`]""", re.DOTALL)
# Errors that quote names of code, tables and servers, not values.
_NAMES_ONLY = frozenset(
    {
        *("AttributeError", "ImportError", "NameError", "TypeError", "SyntaxError", "OSError"),
        *("OperationalError", "InterfaceError", "ProgrammingError"),
    }
)
# Errors that follow from each other and are shown.
CHAIN_MOST = 10


def scrub(text: str) -> str:
    """Return a text in which each URL has lost its user, password, query and fragment."""
    return _URL.sub(_bare, text) if "://" in text else text


def _bare(found: re.Match[str]) -> str:
    rest, mark, _ = found[2].partition("?")
    rest, hash_, _ = rest.partition("#")
    authority, slash, path = rest.partition("/")
    return found[1] + authority.rpartition("@")[2] + slash + path + ("?…" if mark or hash_ else "")


def said(error: BaseException) -> str:
    """Return what an error says, without values that it quotes.

    PostgreSQL's errors end with the statement and the row: only their first line is kept.
    """
    text = str(error).strip()
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if type(error).__module__.startswith(("psycopg2", "django.db")):
        text = text.partition("\n")[0]
    if not kinds & _NAMES_ONLY:
        text = _QUOTES.sub("'…'", text)
    return one_line(scrub(text))


def one_line(text: str) -> str:
    """Return a text in which what does not print, as ends of lines, is written as an escape.

    So nothing that somebody sent can look like a line of its own, or change how a terminal shows the others.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the latest first."""
    shown: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in shown and len(shown) < CHAIN_MOST:
        shown.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def traceback_text(error: BaseException) -> str:
    """Return the traceback of an error and of those that led to it, as Python prints them, with `said` in each."""
    parts: list[str] = []
    for one in chain(error):
        kind = type(one)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        frames = "".join(traceback.format_tb(one.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{name}: {said(one)}".rstrip(": "))
    return "\n\nThe error above led to this one:\n\n".join(reversed(parts))
