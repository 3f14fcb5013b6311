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


# An operator at the command line.
OPERATOR = Caller(sees_all=True, scopes=frozenset(Scope.values))
