"""Says what of a timer is secret, and how it is stored, called and shown.

Secret are the values of its headers, the user-info of its URL and of its callbacks' URLs, the body of a timer that is
`sensitive`, and all that follows the host in the URL of one that sends a notification: whoever knows the rest of a
Slack webhook's URL may write to the channel. A timer is in one of two forms:

- given: `web_url` and `options` as they were given. Rows of releases up to 0.2 have this form too.
- stored: MASK stands in place of each secret, all of them are encrypted together in `options["sealed"]`, and
  `options["headers"]` is a list of lists of a name. A worker of an older release that finds such a list raises an error
  and tries again later, where a dictionary of masks would make it call the receiver with wrong headers.

A timer without secrets has one form, and costs no encryption.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from webtask_scheduler import vault
from webtask_scheduler.scheduler.rules import answers
from webtask_scheduler.scheduler.rules.options import Options
from webtask_scheduler.telemetry.origin import STORED
from webtask_scheduler.wording import sentence as _

MASK = answers.MASK
SEALED = "sealed"
# The option, not one that people give, of a timer whose URL is secret after its host.
HIDES_PATH = "hides_path"
BODIES = ("body", "body_base64")
CALLBACKS = ("callback_url", "failure_callback_url")
_URL = re.compile(r"([A-Za-z]+://)([^/?#]*)@([^/?#]*)")
_PATH = re.compile(r"([A-Za-z]+://[^/?#]*)(.*)", re.DOTALL)
_PATH_FIELD = "path"
_MASKED_PATH = f"/{MASK}"
_PORTS = {"http": 80, "https": 443}


class MaskError(ValueError):
    """A mask in `field` has no value to stand for, or one that may not be used there."""

    def __init__(self, field: str, said: str) -> None:
        self.field = field
        super().__init__(said)


def sealed(web_url: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return a timer's URL and options in the stored form."""
    if SEALED in options:
        return web_url, options
    secrets = _secrets(web_url, options)
    if not secrets and not options.get("sensitive"):
        return web_url, options
    text = vault.seal(json.dumps(secrets, separators=(",", ":")))
    return _stored(web_url, options, secrets, text)


def opened(web_url: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return a timer's URL and options in the given form. Raises VaultError."""
    if SEALED not in options:
        return web_url, options
    secrets = json.loads(vault.unseal(options[SEALED]))
    given = {name: value for name, value in options.items() if name != SEALED}
    if "headers" not in secrets:
        del given["headers"]
    return _filled(web_url, given, secrets)


def opened_options(options: Options) -> Options:
    """Return options in the given form. Raises VaultError."""
    return Options(opened("", options.given)[1]) if SEALED in options.given else options


def shown_url(web_url: str) -> str:
    """Return a URL with MASK in place of its user-info."""
    return _URL.sub(rf"\1{MASK}@\3", web_url, count=1) if "@" in web_url and _user_info(web_url) else web_url


def shown(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is shown of a timer's options, in either form: no secret, and not the request that made the timer."""
    if not options:
        return {}
    found = {name: value for name, value in options.items() if name not in (*STORED, SEALED, HIDES_PATH)}
    masks = _masked(_secrets("", options))
    if not masks.get("headers"):
        found.pop("headers", None)
    return dict(_filled("", found, masks)[1]) if masks else found


def masks_without_value(web_url: str, options: Mapping[str, Any]) -> list[MaskError]:
    """Return an error for each mask in a new timer, which has no earlier value that the mask could stand for."""
    return [MaskError(field, NO_VALUE) for field in _fields_with_masks(_secrets(web_url, options))]


NO_VALUE = _("*** stands for a value that is not shown. Give the value itself.")
MOVED = _(
    "*** stands for a value that was given for another server or scheme, and is not sent to this one. Give the value"
    " again, or take it away."
)
MADE_PUBLIC = _("The body is not shown. Give it again to store it without sensitive.")


def kept(old_url: str, old: Mapping[str, Any], new_url: str, new: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return an edited timer in which each mask of `new` is the value of `old`.

    `old` may be in either form. A value is kept only for the server that it was given for: otherwise an edit of the URL
    would reveal what is never shown. Raises MaskError, VaultError.
    """
    before, after = _secrets(old_url, old), _secrets(new_url, new)
    for name in BODIES:
        if name in before and new.get(name) == MASK and name not in after:
            raise MaskError(name, MADE_PUBLIC)
    masks = _fields_with_masks(after)
    if not masks:
        return new_url, new
    for field in masks:
        shown_field = "web_url" if field == _PATH_FIELD else field
        if not _has(before, after, field):
            raise MaskError(shown_field, NO_VALUE)
        was, now = (old.get(field, ""), new.get(field, "")) if field in CALLBACKS else (old_url, new_url)
        if _origin(was) != _origin(now):
            raise MaskError(shown_field, MOVED)
    if SEALED in old and before == after:
        # All is kept: nothing needs to be decrypted.
        return _stored(new_url, new, after, old[SEALED])
    values = before if SEALED not in old else json.loads(vault.unseal(old[SEALED]))
    merged = {name: values[name] if value == MASK else value for name, value in after.items()}
    if "headers" in after:
        merged["headers"] = {
            name: values["headers"][name] if value == MASK else value for name, value in after["headers"].items()
        }
    return _filled(new_url, dict(new), merged)


def is_current(web_url: str, options: Mapping[str, Any] | None) -> bool:
    """Return whether a row needs no rotation: nothing of it is secret, or the newest key encrypts it."""
    text = (options or {}).get(SEALED)
    if text is not None:
        return str(text).startswith(vault.newest_prefix())
    return not _secrets(web_url, options or {}) and not (options or {}).get("sensitive")


def _secrets(web_url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the secrets of a timer by field; of a timer in the stored form, MASK for each."""
    found: dict[str, Any] = {}
    if "@" in web_url and (user := _user_info(web_url)):
        found["web_url"] = user
    if not options:
        return found
    if options.get(HIDES_PATH):
        path = _path(web_url)
        found[_PATH_FIELD] = MASK if path == _MASKED_PATH else path
    headers = options.get("headers")
    if isinstance(headers, list):
        headers = {name[0]: MASK for name in headers if name}
    if headers:
        found["headers"] = dict(headers)
    if options.get("sensitive"):
        found |= {name: options[name] for name in BODIES if name in options}
    for name in CALLBACKS:
        if user := _user_info(options.get(name, "")):
            found[name] = user
    return found


def _filled(web_url: str, options: dict[str, Any], secrets: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Put secrets, or masks, into a URL and options."""
    for name, value in secrets.items():
        if name == "web_url":
            web_url = _with_user_info(web_url, value)
        elif name == _PATH_FIELD:
            web_url = hidden_path(web_url, _MASKED_PATH if value == MASK else value)
        elif name in CALLBACKS:
            options[name] = _with_user_info(options[name], value)
        else:
            options[name] = value
    return web_url, options


def _masked(secrets: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict.fromkeys(value, MASK) if name == "headers" else MASK for name, value in secrets.items()}


def _stored(
    web_url: str, options: Mapping[str, Any], secrets: Mapping[str, Any], text: str
) -> tuple[str, dict[str, Any]]:
    web_url, stored = _filled(web_url, dict(options), _masked(secrets))
    stored["headers"] = [[name] for name in secrets.get("headers", ())] or [[]]
    stored[SEALED] = text
    return web_url, stored


def _fields_with_masks(secrets: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, value in secrets.items()
        if (MASK in value.values() if name == "headers" else isinstance(value, str) and value == MASK)
    ]


def _has(before: Mapping[str, Any], after: Mapping[str, Any], field: str) -> bool:
    if field != "headers":
        return field in before
    return all(name in before.get(field, ()) for name, value in after[field].items() if value == MASK)


def _user_info(url: str) -> str:
    """Return the user and password of a URL as they stand; empty if there are none."""
    found = _URL.match(url) if "@" in url else None
    return found[2] if found else ""


def hidden_path(url: str, path: str = _MASKED_PATH) -> str:
    """Return a URL with `path` in place of all that follows its host."""
    return _PATH.sub(lambda found: found[1] + path, url, count=1)


def _path(url: str) -> str:
    found = _PATH.match(url)
    return found[2] if found else ""


def _with_user_info(url: str, user_info: str) -> str:
    # A function, because a password may hold what a replacement pattern would read as a reference.
    return _URL.sub(lambda found: f"{found[1]}{user_info}@{found[3]}", url, count=1)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
