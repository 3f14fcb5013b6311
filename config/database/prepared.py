"""Statements that each connection plans once, for the way of every request: planning may take longer than running.

psycopg2 sends a statement as text, and PostgreSQL parses and plans it anew each time. It keeps the plan of a statement
that was given a name by PREPARE for as long as the connection lasts, and makes another one after a migration.
"""

import re
from collections.abc import Mapping
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

_PLACE = re.compile(r"%\((\w+)\)s")


class Prepared:
    """A statement with places like `%(name)s`, for each of which `types` has a type of PostgreSQL.

    It runs below Django's cursors, which take longer than a small statement itself. Behind a pooler whose
    clients share sessions, names of statements would belong to others: there it is sent as text.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.sql = sql
        order = list(types)
        text = _PLACE.sub(lambda found: f"${order.index(found[1]) + 1}", sql)
        self._prepare = f"PREPARE {name} ({', '.join(types.values())}) AS {text}"
        self._execute = f"EXECUTE {name} ({', '.join(f'%({place})s::{kind}' for place, kind in types.items())})"

    def rows(self, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run the statement on this thread's connection and return its rows. Raises DatabaseError."""
        db: Any = connections[DEFAULT_DB_ALIAS]
        if db.execute_wrappers or db.queries_logged:
            # Somebody watches or counts.
            with db.cursor() as cursor:
                cursor.execute(self._text(db), values)
                watched: list[tuple[Any, ...]] = cursor.fetchall()
                return watched
        with db.wrap_database_errors:
            cursor = db.plain_cursor()
            cursor.execute(self._text(db), values)
            return list(cursor.fetchall())

    def _text(self, db: Any) -> str:
        """Return what is sent for it on a connection, after it is prepared there."""
        if db.settings_dict["POOLER"] == "transaction":
            return self.sql
        if self not in db.prepared:
            # Below what counts a request's statements: it is once a connection.
            with db.wrap_database_errors:
                db.plain_cursor().execute(self._prepare)
            db.prepared.add(self)
        return self._execute
