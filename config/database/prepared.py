"""Statements that each connection plans once, for the way of every request: planning may take longer than running.

psycopg2 sends a statement as text, and PostgreSQL parses and plans it anew each time. It keeps the plan of a statement
that was given a name by PREPARE for as long as the connection lasts, and makes another one after a migration.
"""

import re
from collections.abc import Mapping
from typing import Any

from django.db.backends.utils import CursorWrapper

_PLACE = re.compile(r"%\((\w+)\)s")


class Prepared:
    """A statement with places like `%(name)s`, for each of which `types` has a type of PostgreSQL.

    Behind a pooler whose clients share sessions, names of statements would belong to others: there it is sent as text.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.sql = sql
        order = list(types)
        text = _PLACE.sub(lambda found: f"${order.index(found[1]) + 1}", sql)
        self._prepare = f"PREPARE {name} ({', '.join(types.values())}) AS {text}"
        self._execute = f"EXECUTE {name} ({', '.join(f'%({place})s::{kind}' for place, kind in types.items())})"

    def run(self, cursor: CursorWrapper, values: Mapping[str, Any]) -> None:
        """Run the statement on a cursor of the database of `config.database`; the cursor has its rows."""
        db: Any = cursor.db
        if db.settings_dict["POOLER"] == "transaction":
            cursor.execute(self.sql, values)
            return
        if self not in db.prepared:
            # On a cursor of its own, below what counts a request's statements: it is once a connection.
            with db.wrap_database_errors, db.connection.cursor() as plain:
                plain.execute(self._prepare)
            db.prepared.add(self)
        cursor.execute(self._execute, values)
