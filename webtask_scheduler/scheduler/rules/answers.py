"""What is kept of an answer's headers: a bounded text without secrets, a header a line. Pure."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

# Stands in place of a secret, here and wherever a timer is shown.
MASK = "***"
NAMES_MOST = 40
BYTES_MOST = 4096
# Of four bytes each, they still fit in BYTES_MOST with a name.
VALUE_MOST = 900
NAME_MOST = 100
# A shorter word of a secret is found in too much that is none.
SECRET_LEAST = 8

# Headers whose values let somebody in. Those of a challenge do not, and explain a 401.
_SECRET = re.compile(
    r"auth|cookie|credential|csrf|jwt|key|passw|pwd|secret|session|signature|token|xsrf", re.IGNORECASE
)
_CHALLENGES = frozenset({"www-authenticate", "proxy-authenticate"})
_OF_A_URL = frozenset({"location", "content-location", "refresh", "link"})
# A URL's user and password, and its query and fragment: links are signed there, and OAuth puts its tokens there.
_USER = re.compile(r"(?<=://)[^/?#@\s]*@")
_AFTER_PATH = re.compile(r"([?#])[^\s\"'<>,;]+")
# Begins the last line where headers are left out; no header's name holds it.
_LEFT_OUT = "…"
_LEFT_OUT_BYTES = 16


class Kept(NamedTuple):
    """Headers by their names in lower case, and how many others the answer had."""

    headers: dict[str, str]
    left_out: int


@lru_cache(maxsize=1024)
def is_secret(name: str) -> bool:
    """Return whether the value of a header of this name is taken for a secret. Names repeat, and looking takes long."""
    return _SECRET.search(name) is not None and name.lower() not in _CHALLENGES


def secrets_of(headers: Mapping[str, str]) -> list[str]:
    """Return the secret words of a request's headers, which an answer may repeat."""
    secret = (value for name, value in headers.items() if is_secret(name))
    return [word for value in secret for word in value.split() if len(word) >= SECRET_LEAST]


def keep(headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> str:
    """Return what is kept of an answer's headers, for `read`: at most NAMES_MOST and BYTES_MOST.

    `headers` has names in lower case and values as Latin-1. Of secrets, also of the words in `secrets`, MASK is kept.
    """
    lines: list[str] = []
    left = BYTES_MOST - _LEFT_OUT_BYTES
    for name, value in islice(headers.items(), NAMES_MOST):
        hidden = len(name) > NAME_MOST or is_secret(name)
        line = f"{name[:NAME_MOST]}: {MASK if hidden else _text(name, value, secrets)}"
        left -= (len(line) if line.isascii() else len(line.encode())) + 1
        if left < 0:
            break
        lines.append(line)
    if len(lines) < len(headers):
        lines.append(f"{_LEFT_OUT}: {len(headers) - len(lines)}")
    return "\n".join(lines)


def read(text: str) -> Kept:
    """Return what `keep` kept."""
    found: dict[str, str] = dict(line.split(": ", 1) for line in text.split("\n") if line)
    return Kept(found, int(found.pop(_LEFT_OUT, 0)))


def _text(name: str, value: str, secrets: Iterable[str]) -> str:
    """Return a header's value as a text of a line, without secrets."""
    if not value.isascii():
        # Headers are read as Latin-1; most that are not ASCII were meant as UTF-8.
        with suppress(UnicodeError):
            value = value.encode("latin-1").decode()
    for secret in secrets:
        value = value.replace(secret, MASK)
    if "://" in value or name in _OF_A_URL:
        value = _AFTER_PATH.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", value))
    if not value.isprintable():
        # Tabs, and what would turn a terminal or the direction of a line.
        value = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in value)
    return value if len(value) <= VALUE_MOST else f"{value[:VALUE_MOST]}…"
