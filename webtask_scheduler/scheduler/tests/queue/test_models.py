"""The database refuses impossible rows, and reads the queue by the indexes made for it."""

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.beat import TimerScheduler
from webtask_scheduler.scheduler.models import LANES, Attempt, Delivery, State
from webtask_scheduler.scheduler.queue import claims, leases, reclaim
from webtask_scheduler.scheduler.tests.support.cases import each

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = {"lease_token": uuid.uuid4(), "lease_expires_at": NOW}

pytestmark = pytest.mark.django_db


@each(
    ("constraint", "fields"),
    [
        ("delivery_state_known", {"state": "waiting"}),
        ("delivery_leased_iff_claimed_or_running", {"state": State.CLAIMED}),
        ("delivery_leased_iff_claimed_or_running", {"state": State.RUNNING, "lease_token": uuid.uuid4()}),
        ("delivery_leased_iff_claimed_or_running", {"state": State.SCHEDULED, **LEASE}),
        ("delivery_finished_iff_final", {"state": State.SUCCEEDED}),
        ("delivery_finished_iff_final", {"state": State.SCHEDULED, "finished_at": NOW}),
        ("delivery_never_early", {"next_attempt_at": datetime(2000, 1, 1, tzinfo=UTC)}),
        ("delivery_attempts_bounded", {"attempts": 30_001, "started_at": NOW}),
        ("delivery_attempts_bounded", {"attempts": 1}),
        ("delivery_cancel_requested_while_running", {"cancel_requested_at": NOW}),
    ],
)
def test_delivery_refuses(make_timer, constraint, fields):
    timer = make_timer()
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Delivery.objects.filter(timer=timer).update(**fields)


def test_delivery_refuses_the_same_occurrence_twice(make_timer):
    timer = make_timer()
    with pytest.raises(IntegrityError, match="delivery_timer_number_unique"), transaction.atomic():
        Delivery.objects.create(timer=timer, number=1, extra=True, due_at=NOW, next_attempt_at=NOW)


def test_delivery_refuses_a_second_open_promise(make_timer):
    timer = make_timer()
    with pytest.raises(IntegrityError, match="delivery_one_open_per_timer"), transaction.atomic():
        Delivery.objects.create(timer=timer, number=2, due_at=NOW, next_attempt_at=NOW)
    Delivery.objects.create(timer=timer, number=2, extra=True, due_at=NOW, next_attempt_at=NOW)


@each(
    ("constraint", "fields"),
    [
        ("attempt_numbered_from_one", {"number": 0}),
        ("attempt_never_early", {"started_at": NOW - timedelta(microseconds=1)}),
        ("attempt_error_known", {"error": "bad luck"}),
    ],
)
def test_attempt_refuses(make_timer, constraint, fields):
    delivery = make_timer().deliveries.get()
    values = {"delivery": delivery, "number": 1, "meant_for": NOW, "started_at": NOW} | fields
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Attempt.objects.create(**values)


def test_attempt_refuses_the_same_number_twice(make_timer):
    delivery = make_timer().deliveries.get()
    Attempt.objects.create(delivery=delivery, number=1, meant_for=NOW, started_at=NOW)
    with pytest.raises(IntegrityError, match="attempt_delivery_number_unique"), transaction.atomic():
        Attempt.objects.create(delivery=delivery, number=1, meant_for=NOW, started_at=NOW)


def _fill(count: int) -> None:
    for start in range(0, count, 1000):
        services.schedule(
            [
                services.NewTimer(web_url=f"http://127.0.0.{n % 100}:9/", delay_seconds=3600 + start + n)
                for n in range(1000)
            ]
        )
    with connection.cursor() as cursor:
        for table in ("scheduler_delivery", "scheduler_timer", "django_celery_beat_periodictask"):
            cursor.execute(f"ANALYZE {table}")


def _indexes(statement: str, arguments: object) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (FORMAT JSON) " + statement, arguments)
        plan = cursor.fetchone()[0]
    found = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.add(node.get("Index Name"))
            found.update({f"seq:{node['Relation Name']}"} if node.get("Node Type") == "Seq Scan" else ())
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(plan if isinstance(plan, list) else json.loads(plan))
    return found


def _bounds(statement: str, arguments: object, index: str) -> str:
    """Return the condition by which a plan's scan of an index is bounded; empty where it reads all of it."""
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + statement, arguments)
        lines = [row[0].strip() for row in cursor.fetchall()]
    at = next(number for number, line in enumerate(lines) if f"using {index} " in line)
    return lines[at + 1] if lines[at + 1].startswith("Index Cond:") else ""


CLAIM = {"until": 1.0, "since": 5.0, "token": uuid.uuid4(), "lease": 10.0}


def test_statements_of_the_queue_read_their_indexes_and_no_whole_table(subtests):
    """All on one full table, because filling it takes longer than all of them."""
    _fill(20_000)
    for check in (
        _claim_of_lanes,
        _claim_of_flows,
        _look,
        _flows,
        _claim_of_one_timer,
        _reclaim,
        _renewal,
        _stock_reload,
    ):
        with subtests.test(check.__name__), transaction.atomic():
            check()


def _lanes_and_flows():
    """Return the first lanes of the table and the flows in them."""
    pairs = sorted(set(Delivery.objects.values_list("lane", "flow")))[:5]
    return {"lanes": [lane for lane, _ in pairs], "flows": [flow for _, flow in pairs], "limits": [4] * len(pairs)}


def _whole_tables(used):
    """Return the tables that a plan reads whole, but for that of the stopped calls, which is empty."""
    return {name for name in used if name and name.startswith("seq:")} - {"seq:scheduler_callstop"}


def _claim_of_lanes():
    arguments = CLAIM | _lanes_and_flows()
    used = _indexes(claims._CLAIM_LANES, arguments)
    assert "delivery_lane_idx" in used
    bounds = _bounds(claims._CLAIM_LANES, arguments, "delivery_lane_idx")
    assert "lane = " in bounds
    assert "next_attempt_at <=" in bounds
    assert not _whole_tables(used)


def _claim_of_flows():
    arguments = CLAIM | _lanes_and_flows()
    bounds = _bounds(claims._CLAIM_FLOWS, arguments, "delivery_flow_idx")
    assert "flow = " in bounds
    assert "next_attempt_at <=" in bounds
    assert not _whole_tables(_indexes(claims._CLAIM_FLOWS, arguments))


def _look():
    used = _indexes(claims._LANES, {"lanes": LANES, "ahead": 1.0, "fresh": 5.0})
    assert "delivery_lane_idx" in used
    assert "seq:scheduler_delivery" not in used


def _flows():
    lanes = _lanes_and_flows()["lanes"]
    arguments = {"after": [lane << 57 for lane in lanes], "last": [lane + 1 << 57 for lane in lanes]}
    used = _indexes(claims._FLOWS, arguments | {"most": 500, "ahead": 1.0})
    assert "delivery_flow_idx" in used
    assert "seq:scheduler_delivery" not in used


def _claim_of_one_timer():
    arguments = CLAIM | {"since": None, "timer": Delivery.objects.first().timer_id}
    assert not _whole_tables(_indexes(claims._CLAIM_TIMER, arguments))


def _reclaim():
    assert "lease_expires_at <" in _bounds(reclaim._EXPIRED, {"limit": 500}, "delivery_lease_idx")


def _renewal():
    ids = list(Delivery.objects.values_list("pk", flat=True)[:32])
    arguments = {"ids": ids, "tokens": ids, "running": 20.0, "claimed": 10.0}
    assert "seq:scheduler_delivery" not in _indexes(leases._RENEW, arguments)


def _stock_reload():
    clocked = ClockedSchedule.objects.create(clocked_time=NOW)
    PeriodicTask.objects.create(name="operator's", task="some.task", clocked=clocked, one_off=True)
    rows = TimerScheduler.enabled_models_qs(TimerScheduler.__new__(TimerScheduler))
    statement, arguments = rows.query.sql_with_params()
    used = _indexes(statement, arguments)
    assert "periodictask_foreign_idx" in used
    assert "seq:django_celery_beat_periodictask" not in used
