"""The clock of the database is set while the service runs: nothing stops, and nothing is called early.

PostgreSQL looks functions up along the search path, so every session of this test finds a clock of the test's own, one
that can be set, before the built-in one. The processes are the real ones.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from django.db import connection

from webtask_scheduler.scheduler.models import Delivery, State
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

CLOCK = """
CREATE SCHEMA set_clock;
CREATE TABLE set_clock.ahead (seconds float8 NOT NULL);
INSERT INTO set_clock.ahead VALUES (0);
CREATE FUNCTION set_clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS
  'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM set_clock.ahead))';
CREATE FUNCTION set_clock.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS
  'SELECT pg_catalog.statement_timestamp() + make_interval(secs => (SELECT seconds FROM set_clock.ahead))';
"""


@contextlib.contextmanager
def clock_to_set(sql: Callable[..., object]) -> Iterator[Callable[[float], None]]:
    """Give all new sessions of this database a clock that can be set: seconds ahead of the real one."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    sql(CLOCK)
    sql(f"ALTER DATABASE {name} SET search_path = set_clock, pg_catalog, public")
    connection.close()
    try:
        yield lambda seconds: sql("UPDATE set_clock.ahead SET seconds = %s", seconds)
    finally:
        sql(f"ALTER DATABASE {name} RESET search_path")
        sql("DROP SCHEMA set_clock CASCADE")
        connection.close()


@pytest.mark.timeout(120)
def test_clock_that_is_set_back_by_an_hour_stops_nothing(receiver, sql):
    with clock_to_set(sql) as set_clock, running("web", "worker", "beat") as service:
        status, _ = service.post({"every": "PT1S", "web_url": receiver.url("/every")})
        assert status == 201
        service.post({"seconds": 0, "web_url": receiver.url("/sleep/2")})
        receiver.wait_for(1, path="/sleep")
        receiver.wait_for(1, path="/every")
        # Its call is under way, and so is what beat holds for the coming second.
        set_clock(-3600)
        status, answer = service.post({"seconds": 1, "web_url": receiver.url("/after")})
        (call,) = receiver.wait_for(1, path="/after")
        assert status == 201
        assert call.json["task_id"] == answer["task_id"]
        wait_until(
            lambda: Delivery.objects.filter(timer__web_url=receiver.url("/sleep/2"), state=State.SUCCEEDED).exists()
        )
        # A call that has failed is tried again not before its promise, and holds nothing up meanwhile.
        service.post({"seconds": 0, "web_url": receiver.url("/status/503")})
        receiver.wait_for(2, path="/status/503")
        wait_until(lambda: service.get("/readyz")[0] == 200)
        before = len(receiver.calls)
        set_clock(0)
        receiver.wait_for(before + 1)
        for name in ("worker", "beat"):
            assert "Traceback" not in service.log(name)
            assert "violates" not in service.log(name)
