"""Defines who is asking and which rows are theirs, once for the API, the services and the search."""

from dataclasses import dataclass
from typing import Any

from webtask_scheduler.access.models import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A person or a program. `owner_id` None means without a login; with `sees_all` every row is visible.

    `scopes` are what its key, or an open API, allows; `key_id` is None without a key.
    """

    owner_id: int | None = None
    sees_all: bool = False
    scopes: frozenset[str] = frozenset()
    key_id: int | None = None

    def visible(self, path: str = "") -> dict[str, Any]:
        """Return the condition, seen from `path`, that a row is visible to this caller."""
        return {} if self.sees_all else self.own(path)

    def own(self, path: str = "") -> dict[str, Any]:
        """Return the condition that a row is the caller's own."""
        return {f"{path}owner__isnull": True} if self.owner_id is None else {f"{path}owner": self.owner_id}


def may_see_all(user: Any) -> bool:
    """Return whether a person may see the timers of all owners: a superuser, or staff with the admin's right to it."""
    return bool(user.is_active and (user.is_superuser or (user.is_staff and user.has_perm("scheduler.view_timer"))))


def may_change_all(user: Any) -> bool:
    """Return whether a person may change them too, one by one or many at once: with the admin's right to change tasks.

    It goes for the pages and the admin, which ask for the second factor. A key of the API is its owner's alone, unless
    the owner is a superuser: see `api.base`.
    """
    return may_see_all(user) and bool(user.has_perm("django_celery_beat.change_periodictask"))


# An operator at the command line.
OPERATOR = Caller(sees_all=True, scopes=frozenset(Scope.values))
