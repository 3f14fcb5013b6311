"""What is counted, how it is stored, and that nothing sets a counter back."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, transaction

from webtask_scheduler.dispatch.queue import Portion
from webtask_scheduler.scheduler import tasks
from webtask_scheduler.scheduler.models import LANES, Attempt, Delivery, ErrorKind, HostHour, Minute, State
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.queue.attempts import Outcome, record_outcomes
from webtask_scheduler.scheduler.queue.claims import DeliveryQueue
from webtask_scheduler.scheduler.queue.reclaim import reclaim_expired
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.services import retention
from webtask_scheduler.scheduler.tests.support.acting import begin, claim, put_back, run
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

db = pytest.mark.django_db
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def tally():
    """The counts of this test alone."""
    rollups.tally.forget()
    yield rollups.tally
    rollups.tally.forget()


def attempt(tally, *, at=NOON, host="a.example", **more):
    values = {"error": "", "state": State.SUCCEEDED, "first": True, "late_seconds": 0.004, "duration_seconds": 0.03}
    tally.attempt(at=at, host=host, **(values | more))


def counted(counts, bound):
    return counts[histogram.BOUNDS.index(bound)]


def test_every_kind_of_error_has_a_place():
    assert set(rollups.OUTCOMES) >= {"success", *ErrorKind.values}


@db
def test_row_of_the_minute_and_of_all_time_hold_what_was_counted(tally):
    attempt(tally)
    attempt(tally, error="timeout", state=State.SCHEDULED, late_seconds=0.5)
    attempt(tally, first=False, state=State.FAILED, error="status", late_seconds=7200.0)
    attempt(tally, at=NOON + timedelta(seconds=60))
    tally.flush()
    rows = {(row.seconds, row.begins_at): row for row in Minute.objects.all()}
    assert set(rows) == {(60, NOON), (60, NOON + timedelta(minutes=1)), (0, datetime(1970, 1, 1, tzinfo=UTC))}
    noon, ever = rows[60, NOON], rows[0, datetime(1970, 1, 1, tzinfo=UTC)]
    assert counted(noon.first_late, 0.005) == counted(noon.first_late, 0.5) == 1
    assert (sum(noon.first_late), noon.first_late_seconds) == (2, pytest.approx(0.504))
    assert (noon.retry_late[-1], sum(noon.retry_late), noon.retry_late_seconds) == (1, 1, 7200.0)
    assert (counted(noon.durations, 0.05), noon.duration_seconds) == (3, pytest.approx(0.09))
    assert (noon.succeeded, noon.failed, noon.retried, noon.missed) == (1, 1, 1, 0)
    assert dict(zip(rollups.OUTCOMES, ever.outcomes, strict=True)) == dict.fromkeys(rollups.OUTCOMES, 0) | {
        "success": 2,
        "timeout": 1,
        "status": 1,
    }
    assert rollups.ever().succeeded == 2
    host = HostHour.objects.get()
    assert (host.hour, host.host, host.calls, host.failed, sum(host.late)) == (NOON, "a.example", 4, 2, 3)


@db
def test_counts_add_up_over_flushes_processes_and_restarts(tally, monkeypatch):
    for name in ("a:1", "b:1", "a:1"):
        # A container that is started again has the name and the number of before.
        monkeypatch.setattr(rollups, "process_name", lambda name=name: name)
        again = rollups.Tally()
        attempt(again)
        again.created(3)
        again.flush()
    assert Minute.objects.filter(seconds=0).count() == 2
    assert (rollups.ever().succeeded, rollups.ever().created, sum(rollups.ever().first_late)) == (3, 9, 3)
    assert Minute.objects.get(seconds=60, process="a:1", begins_at=NOON).succeeded == 2
    assert HostHour.objects.get(process="a:1").calls == 2


@db
def test_nothing_counted_is_no_statement(tally, django_assert_num_queries):
    with django_assert_num_queries(0):
        tally.flush()
    attempt(tally)
    with django_assert_num_queries(1):
        tally.flush()
    with django_assert_num_queries(0):
        tally.flush()


@db
def test_batch_whose_answer_was_lost_counts_once(tally, monkeypatch):
    attempt(tally)
    real = connection.cursor
    lost = []

    class Losing:
        def __enter__(self):
            self.cursor = real()
            return self

        def __exit__(self, *_):
            self.cursor.close()

        def execute(self, sql, values):
            self.cursor.execute(sql, values)
            if not lost:
                lost.append(sql)
                raise OperationalError("the answer was lost")

    monkeypatch.setattr(connection, "cursor", Losing)
    with pytest.raises(OperationalError):
        tally.flush()
    monkeypatch.undo()
    attempt(tally)
    tally.flush()
    assert rollups.ever().succeeded == 1
    tally.flush()
    assert (rollups.ever().succeeded, HostHour.objects.get().calls) == (2, 2)


@pytest.mark.django_db(transaction=True)
def test_refused_batch_is_dropped_and_told_once(tally, caplog):
    attempt(tally, host="x" * 300)
    tally.flush()
    attempt(tally)
    tally.flush()
    assert sum("counts_refused" in record.message for record in caplog.records) == 1
    assert rollups.ever().succeeded == 1


@db
def test_busiest_hosts_have_rows_and_the_rest_one(tally, monkeypatch):
    monkeypatch.setattr(rollups, "HOSTS_A_FLUSH", 3)
    monkeypatch.setattr(rollups, "HOSTS_AN_HOUR", 4)
    for number in range(6):
        for _ in range(number + 1):
            attempt(tally, host=f"{number}.example")
    attempt(tally, host="me:secret@6.example")
    tally.flush()
    assert dict(HostHour.objects.values_list("host", "calls")) == {
        "5.example": 6,
        "4.example": 5,
        "3.example": 4,
        "other hosts": 3 + 2 + 1 + 1,
    }
    for number in (6, 7, 3):
        attempt(tally, host=f"{number}.example")
    tally.flush()
    rows = dict(HostHour.objects.values_list("host", "calls"))
    assert (rows["3.example"], rows["other hosts"], len(rows)) == (5, 8, 5)
    # Another hour has rows of its own.
    attempt(tally, host="7.example", at=NOON + timedelta(hours=1))
    tally.flush()
    assert HostHour.objects.get(host="7.example").calls == 1


@db
def test_record_counts_what_it_wrote_as_the_rows_have_it(tally, make_timer, sql):
    timers = [make_timer(f"http://{host}.example/", delay_seconds=-1) for host in "aabc"]
    stale, cancelled = timers[1], timers[2]
    batch = begin()
    sql("UPDATE scheduler_delivery SET lease_token = %s WHERE timer_id = %s", uuid.uuid4(), stale.pk)
    sql("UPDATE scheduler_delivery SET cancel_requested_at = now() WHERE timer_id = %s", cancelled.pk)
    outcomes = [
        Outcome(call, call.started_at + timedelta(milliseconds=3), 7, 500, "status", "", "") for call in batch.started
    ]
    assert record_outcomes(outcomes) == 3
    tally.flush()
    ever = rollups.ever()
    assert (ever.cancelled, ever.retried, ever.failed) == (1, 2, 0)
    rows = Attempt.objects.all()
    late = histogram.empty()
    for row in rows:
        late[histogram.bucket_of((row.started_at - row.meant_for).total_seconds())] += 1
    assert ever.first_late == late
    assert sum(ever.outcomes) == len(rows) == 3
    # What comes next are retries.
    put_back(timers[0])
    run()
    tally.flush()
    assert (sum(rollups.ever().first_late), sum(rollups.ever().retry_late)) == (3, 1)


@db
def test_missed_is_counted(tally, make_timer):
    make_timer(delay_seconds=-10, max_lateness_seconds=1)
    run()
    tally.flush()
    assert (rollups.ever().missed, sum(rollups.ever().outcomes)) == (1, 0)


@db
def test_what_a_vanished_process_held_is_counted(tally, make_timer, sql):
    make_timer(delay_seconds=-1)
    begin()
    make_timer(delay_seconds=-1)
    assert len(claim().held) == 1
    sql("UPDATE scheduler_delivery SET lease_expires_at = now() - interval '1 s'")
    reclaim_expired()
    tally.flush()
    ever = rollups.ever()
    assert (ever.outcomes[rollups.OUTCOMES.index("lost")], ever.retried, ever.reclaimed) == (1, 1, 1)


@db
def test_claims_are_counted_with_how_long_after_the_due_time(tally, make_timer):
    make_timer(delay_seconds=-3)
    make_timer(delay_seconds=0.5)
    queue = DeliveryQueue()
    queue.look()
    queue.claim([Portion(lane, 10) for lane in range(LANES)], backlog=False)
    tally.flush()
    ever = rollups.ever()
    # One was ahead of its time.
    assert (counted(ever.claims, 5.0), counted(ever.claims, 0.001), sum(ever.claims)) == (1, 1, 2)
    assert 3.0 <= ever.claim_seconds < 5.0
    assert ever.window_most == 2


@pytest.mark.django_db(transaction=True)
def test_created_is_counted_when_it_is_committed(tally, make_timer):
    make_timer()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        make_timer()
        raise ZeroDivisionError
    with transaction.atomic():
        make_timer()
        make_timer()
    tally.flush()
    assert (rollups.ever().created, Delivery.objects.count()) == (3, 3)


@pytest.mark.django_db(transaction=True)
def test_thread_of_a_web_process_stores_what_is_new_and_keeps_no_connection(monkeypatch, sql):
    monkeypatch.setattr(rollups, "FLUSH_SECONDS", 0.05)
    kept = rollups.Tally()
    kept.keep()
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = sql(connections)[0][0]
    for number in range(1, 4):
        kept.created(1)
        wait_until(lambda number=number: rollups.ever().created == number)
    wait_until(lambda: sql(connections)[0][0] == before)


# Folding


def days_ago(sql, days):
    for table, column in (("minute", "begins_at"), ("hosthour", "hour")):
        where = "WHERE seconds <> 0" if table == "minute" else ""
        sql(f"UPDATE scheduler_{table} SET {column} = {column} - %s {where}", timedelta(days=days))


def sums(rows, names):
    total = {}
    for row in rows:
        for name in names:
            value = getattr(row, name)
            if isinstance(value, list):
                kept = total.setdefault(name, [0] * len(value))
                total[name] = [a + b for a, b in zip(kept, value, strict=True)]
            else:
                total[name] = total.get(name, 0) + value
    return total


@db
def test_folding_keeps_every_sum_and_no_counter_goes_back(tally, monkeypatch, sql):
    begun = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for process in ("a:1", "b:1"):
        monkeypatch.setattr(rollups, "process_name", lambda process=process: process)
        for minute in range(120):
            at = begun + timedelta(minutes=minute)
            attempt(tally, at=at, host=f"{minute % 3}.example", late_seconds=minute / 100, first=bool(minute % 2))
        tally.missed(2)
        tally.flush()
    days_ago(sql, 3)
    names = (*rollups.HISTOGRAMS, *rollups.SUMS)
    before = sums(Minute.objects.exclude(seconds=0), names)
    hosts = sums(HostHour.objects.all(), ("calls", "late", "durations"))
    ever = rollups.ever()
    assert rollups.fold() > 0
    while rollups.fold():
        pass
    spans = Minute.objects.exclude(seconds=0)
    assert set(spans.values_list("seconds", "process")) == {(3600, "")}
    assert 2 <= spans.count() <= 3
    after = sums(spans, names)
    assert after == {name: pytest.approx(value) for name, value in before.items()}
    assert sums(HostHour.objects.all(), ("calls", "late", "durations")) == hosts
    assert set(HostHour.objects.values_list("process", flat=True)) == {""}
    assert rollups.ever() == ever
    # A flush that comes late for an hour that is folded is added to it.
    attempt(tally, at=begun - timedelta(days=3))
    tally.flush()
    while rollups.fold():
        pass
    assert sums(spans.all(), ["succeeded"])["succeeded"] == before["succeeded"] + 1
    assert rollups.ever().succeeded == ever.succeeded + 1


@db
def test_young_minutes_stay(tally):
    attempt(tally, at=datetime.now(UTC) - timedelta(hours=40))
    tally.flush()
    assert rollups.fold() == 0
    assert Minute.objects.filter(seconds=60).count() == 1


@db
def test_processes_that_are_gone_are_one_row_and_nothing_is_lost(tally, monkeypatch, sql):
    for number in range(5):
        monkeypatch.setattr(rollups, "process_name", lambda number=number: f"a:{number}")
        attempt(tally)
        tally.flush()
    sql("UPDATE scheduler_minute SET stored_at = now() - interval '2 h' WHERE process <> 'a:4'")
    for _ in range(2):
        rollups.fold()
        assert set(Minute.objects.filter(seconds=0).values_list("process", flat=True)) == {"", "a:4"}
        assert (rollups.ever().succeeded, sum(rollups.ever().first_late)) == (5, 5)
    # One that slept goes on.
    monkeypatch.setattr(rollups, "process_name", lambda: "a:1")
    attempt(tally)
    tally.flush()
    assert rollups.ever().succeeded == 6


@db
def test_upkeep_folds_and_prunes_by_the_setting_and_counters_stay(tally, sql, settings, monkeypatch):
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)
    attempt(tally, at=datetime.now(UTC))
    tally.flush()
    days_ago(sql, 20)
    settings.WEBTASK_RETENTION_DAYS = 30
    tasks.prune()
    assert (Minute.objects.filter(seconds=3600).count(), HostHour.objects.count()) == (1, 1)
    days_ago(sql, 20)
    settings.WEBTASK_RETENTION_DAYS = 0
    tasks.prune()
    assert Minute.objects.filter(seconds=3600).count() == 1
    settings.WEBTASK_RETENTION_DAYS = 30
    tasks.prune()
    assert (Minute.objects.filter(seconds=3600).count(), HostHour.objects.count()) == (0, 0)
    assert rollups.ever().succeeded == 1


@db
def test_folded_hour_keeps_the_busiest_hosts(tally, sql, monkeypatch):
    for number in range(205):
        monkeypatch.setattr(rollups, "process_name", lambda number=number: f"a:{number % 2}")
        for _ in range(2 if number < 200 else 1):
            attempt(tally, at=datetime.now(UTC), host=f"{number}.example")
        tally.flush()
    days_ago(sql, 3)
    while rollups.fold():
        pass
    rows = dict(HostHour.objects.values_list("host", "calls"))
    assert (len(rows), rows["other hosts"], sum(rows.values())) == (201, 5, 405)


@pytest.mark.django_db(transaction=True)
def test_command_stores_what_it_made():
    call_command("timer", "create", "http://a.example/", "--seconds", "60")
    assert rollups.ever().created == 1
