"""Who does what is done now, and through which door. The audit log and the rows that are made keep it.

Each door sets it once: the middleware for requests, `at_shell` for commands, `unless_set` for edits of stock rows. Work
that no door began, such as a worker's, has no actor.
"""

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from webtask_scheduler.addresses import address_of

API, ADMIN, DASHBOARD, COMMAND, STOCK_ROW = "api", "admin", "dashboard", "command", "stock row"
# No door: what made a timer that sends a notification, which by this is known from all others.
NOTIFICATION = "notification"
# The applications whose pages are not the API; a view's `app_name` says which it is.
_PAGES = {"admin": ADMIN, "dashboard": DASHBOARD}
KEY_MAX_LENGTH = 64
NAME_MAX_LENGTH = 254


@dataclass(frozen=True, slots=True)
class Actor:
    """A person or a program; every part may be empty. `key` is the id of an API key, never the key itself."""

    through: str = ""
    user_id: int | None = None
    # For people: a user's e-mail address, or the account at a shell. It outlives the user.
    name: str = ""
    key: str = ""
    address: str = ""

    def to_store(self) -> dict[str, str]:
        """Return what a timer that is made now keeps of who made it, besides its owner; empty without an actor."""
        kept = {"through": self.through, "name": self.name, "key": self.key, "address": self.address}
        return {name: value for name, value in kept.items() if value}


NOBODY = Actor()


class _OfRequest:
    """The actor of a request. It is put together when it is asked for: most requests do nothing that is kept."""

    __slots__ = ("key", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.key = ""

    def actor(self) -> Actor:
        match = self.request.resolver_match
        through = _PAGES.get(match.app_names[0], API) if match and match.app_names else API
        # Django REST framework puts the user whom it found here too.
        user: Any = getattr(self.request, "user", None)
        known = user is not None and user.is_authenticated
        return Actor(
            through=through,
            user_id=user.pk if known else None,
            # Whoever comes with a key may be known by the owner's id alone.
            name=str(user.get_username())[:NAME_MAX_LENGTH] if known and hasattr(user, "get_username") else "",
            key=self.key,
            address=address_of(self.request),
        )


_current: ContextVar[Actor | _OfRequest] = ContextVar("actor", default=NOBODY)


def current() -> Actor:
    """Return who does what is done now; NOBODY where no door was passed."""
    found = _current.get()
    return found if isinstance(found, Actor) else found.actor()


def by_key(key_id: object) -> None:
    """Note the API key of the present request, by its id; None leaves it without one."""
    found = _current.get()
    if key_id is not None and isinstance(found, _OfRequest):
        found.key = str(key_id)[:KEY_MAX_LENGTH]


@contextmanager
def of(actor: Actor) -> Iterator[None]:
    """Do the work inside on behalf of an actor."""
    token = _current.set(actor)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def unless_set(actor: Actor) -> Iterator[None]:
    """Do the work inside on behalf of an actor, or of the present one if there is one."""
    if _current.get() is not NOBODY:
        yield
        return
    with of(actor):
        yield


def shell_user() -> str:
    """Return the account that runs a command, empty if the machine does not know it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


@contextmanager
def at_shell() -> Iterator[None]:
    """Do the work of a management command on behalf of the account that runs it."""
    with of(Actor(through=COMMAND, name=shell_user())):
        yield


class Middleware:
    """Makes a request's client the actor of what the request does."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        token = _current.set(_OfRequest(request))
        try:
            return self._get_response(request)
        finally:
            _current.reset(token)
