import psycopg2
import pytest
from django.db import DataError, IntegrityError, connection, transaction

from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.telemetry.redaction import chain, said, scrub, traceback_text


@each(
    ("text", "shown"),
    [
        ("nothing to see", "nothing to see"),
        ("at https://a.example/b/c now", "at https://a.example/b/c now"),
        ("https://u:p@a.example:8443/b?c=d&e='f'#g end", "https://a.example:8443/b?… end"),
        ("redis://:hunter2@127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("https://a.example#token", "https://a.example?…"),
        ("http://a/?b http://c/?d", "http://a/?… http://c/?…"),
    ],
)
def test_urls_lose_user_and_query(text, shown):
    assert scrub(text) == shown


@each(
    ("error", "shown"),
    [
        (ValueError("Invalid header value b'secret'"), "Invalid header value b'…'"),
        (ValueError("can't read 'it's secret' here"), "can'…' here"),
        (AttributeError("'NoneType' object has no attribute 'x'"), "'NoneType' object has no attribute 'x'"),
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'"),
        (KeyError("secret"), "'…'"),
        (RuntimeError(""), ""),
    ],
)
def test_errors_lose_what_they_quote(error, shown):
    assert said(error) == shown


@pytest.mark.django_db
@each(
    "statement",
    [
        "SELECT 's3cret'::int",
        "SELECT 's3cret'::json",
        "INSERT INTO scheduler_leader (id, name, expires_at) VALUES (7, 's3cret', now())",
        "INSERT INTO scheduler_leader (id, name, expires_at) VALUES (1, NULL, 's3cret')",
        "SELECT 's3cret' FROM nothing_here",
    ],
)
def test_errors_of_the_database_lose_the_statement_and_the_row(statement):
    with pytest.raises(Exception) as caught, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert "s3cret" in str(caught.value)
    text = traceback_text(caught.value)
    # The statement stands in this file, and so in the frame of this test only.
    assert "s3cret" not in text
    assert {type(one).__module__.partition(".")[0] for one in chain(caught.value)} == {"django", "psycopg2"}
    if isinstance(caught.value, DataError | IntegrityError):
        assert isinstance(caught.value.__cause__, psycopg2.Error)


def test_chain_that_goes_in_a_circle_ends():
    first, second = ValueError("1"), ValueError("2")
    first.__context__, second.__context__ = second, first
    assert traceback_text(first).count("Traceback") == 2
