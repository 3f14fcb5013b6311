"""Django's `migrate`, whose statements may take as long as they take: an index of a large table takes minutes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.commands import migrate
from django.db import connections


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate without the limit that ends every other statement of the service after 30 seconds."""
        with _unlimited(connections[options["database"]]):
            super().handle(*args, **options)


@contextmanager
def _unlimited(db: Any) -> Iterator[None]:
    # Behind such a pooler it would stay with a session that others use: docs/deployment.md asks to migrate past it.
    if db.settings_dict.get("POOLER") == "transaction":
        yield
        return
    with db.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
    try:
        yield
    finally:
        with db.cursor() as cursor:
            cursor.execute("RESET statement_timeout")
