"""Fixtures that many tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.tests.support.receiver import Receiver


@pytest.fixture(autouse=True)
def _facts_of_this_test() -> None:
    """What one test's database said must not be told in the next."""
    facts.forget()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def make_timer() -> Callable[..., Timer]:
    """Return a function that stores a timer the way the API does; `delay_seconds` may be negative."""

    def make(web_url: str = "http://127.0.0.1:9/", **fields: Any) -> Timer:
        if not fields.keys() & {"delay_seconds", "due_at"}:
            fields["delay_seconds"] = 60
        (stored,) = services.schedule([services.NewTimer(web_url=web_url, **fields)])
        return Timer.objects.get(pk=stored.timer_id)

    return make


@pytest.fixture
def delivery_of() -> Callable[[Timer], Delivery]:
    """Return a function that reads a timer's latest promised delivery."""

    def read(timer: Timer) -> Delivery:
        return Delivery.objects.filter(timer=timer).latest_promised()[0]

    return read


@pytest.fixture
def sql() -> Callable[..., list[tuple[Any, ...]]]:
    """Return a function that runs a statement and returns its rows."""

    def run(statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    return run
