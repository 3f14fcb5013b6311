"""Statements that are planned once a connection: config.database.prepared."""

from datetime import UTC, datetime

import pytest
from django.db import DataError, InterfaceError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from config.database.prepared import Prepared

pytestmark = pytest.mark.django_db(transaction=True)

DIVIDE = Prepared(
    "test_divide",
    "SELECT 12 / %(by)s::int, %(at)s::timestamptz, %(word)s::text",
    by="int",
    at="timestamptz",
    word="text",
)
AT = datetime(2030, 1, 5, 9, tzinfo=UTC)


def divided(by):
    return DIVIDE.rows({"by": by, "at": AT, "word": "it's 5 %"})


def names():
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name = 'test_divide'")
        return cursor.fetchall()


def test_rows_are_the_same_prepared_watched_and_behind_a_pooler(monkeypatch):
    assert divided(3) == [(4, AT, "it's 5 %")]
    assert names()
    with CaptureQueriesContext(connection) as captured:
        assert divided(4) == [(3, AT, "it's 5 %")]
    assert [query["sql"].partition(" ")[0] for query in captured] == ["EXECUTE"]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "POOLER", "transaction")
    assert divided(6) == [(2, AT, "it's 5 %")]
    assert not names()
    monkeypatch.undo()
    assert divided(6) == [(2, AT, "it's 5 %")]
    assert names()


def test_errors_are_djangos_and_the_connection_goes_on():
    with pytest.raises(DataError):
        divided(0)
    assert divided(3)
    with pytest.raises(transaction.TransactionManagementError), transaction.atomic():
        try:
            with transaction.atomic(savepoint=False):
                divided(0)
        except DataError:
            divided(3)
    assert divided(3)


def test_lost_connection_is_told_once_and_made_anew():
    divided(3)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    finally:
        other.close()
    with pytest.raises((OperationalError, InterfaceError)):
        divided(3)
    # As at the end of a request.
    connection.close_if_unusable_or_obsolete()
    assert divided(3)
