"""Looks for what must not be in the database in plain text."""

from django.db import connection

# Columns of all our tables and of Django's that can hold a text, as text.
_COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns
 WHERE table_schema = 'public'
   AND (data_type IN ('text', 'character varying', 'json', 'jsonb', 'bytea', 'ARRAY') OR data_type LIKE 'char%%')
 ORDER BY table_name, column_name
"""


def tables_with(*markers: str) -> list[tuple[str, str, str]]:
    """Return the table, the column and the marker of each text, JSON, array or bytes of the database that holds one.

    Bytes are looked through as Latin-1.
    """
    found = []
    with connection.cursor() as cursor:
        cursor.execute(_COLUMNS)
        columns = cursor.fetchall()
        assert len(columns) > 50
        for table, column in columns:
            cursor.execute(f'SELECT "{column}"::text, "{column}" FROM "{table}" WHERE "{column}" IS NOT NULL')
            for text, value in cursor.fetchall():
                whole = text + (bytes(value).decode("latin-1") if isinstance(value, memoryview) else "")
                found += [(table, column, marker) for marker in markers if marker in whole]
    return found
