"""However long a busy service runs, every table stays bounded."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from config.celery_app import app
from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.beat import TimerScheduler
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    Attempt,
    BulkOperation,
    Delivery,
    IdempotencyKey,
    State,
    Timer,
)
from webtask_scheduler.scheduler.services import idempotency, retention
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import URL, create, post, send
from webtask_scheduler.scheduler.tests.support.cases import each

db = pytest.mark.django_db

DAYS = timedelta(days=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def history(sql):
    """Return a function that gives a timer past deliveries with an attempt each, which ended some days ago."""

    def make(timer_id, count, *, days=0.0, extra=False):
        sql(
            """
            WITH old AS (SELECT coalesce(max(number), 0) AS last FROM scheduler_delivery WHERE timer_id = %s),
            ago AS (SELECT now() - %s AS at),
            made AS (
              INSERT INTO scheduler_delivery (id, timer_id, number, occurrence, extra, due_at, next_attempt_at, state,
                                              attempts, attempts_before, started_at, finished_at)
              SELECT gen_random_uuid(), %s, last + n, 1, %s, at, at, 'succeeded', 1, 0, at, at
                FROM old, ago, generate_series(1, %s) n RETURNING id, due_at
            )
            INSERT INTO scheduler_attempt (delivery_id, number, meant_for, started_at, error, message, excerpt)
            SELECT id, 1, due_at, due_at, '', '', '' FROM made
            """,
            timer_id,
            days * DAYS,
            timer_id,
            extra,
            count,
        )
        if not extra:
            # What is promised comes last.
            sql(
                """
                UPDATE scheduler_delivery SET number = (SELECT max(number) + 1 FROM scheduler_delivery
                                                             WHERE timer_id = %s)
                 WHERE timer_id = %s AND finished_at IS NULL AND NOT extra
                """,
                timer_id,
                timer_id,
            )

    return make


def schedules():
    return {
        model.__name__: set(model.objects.filter(periodictask=None).values_list("pk", flat=True))
        for model in (ClockedSchedule, CrontabSchedule, IntervalSchedule)
    }


NONE_LEFT = {"ClockedSchedule": set(), "CrontabSchedule": set(), "IntervalSchedule": set()}


# Schedules


@db
def test_edit_of_kind_leaves_no_schedule_behind(client):
    timer = create(client)
    for schedule in ({"cron": "0 9 * * *"}, {"every": "PT5M"}, {"cron": "0 9 L * *"}, {"every": "PT1M"}, {"hours": 1}):
        answer = send(client, "PATCH", f"/timer/{timer['task_id']}", schedule)
        assert answer.status_code == 200, answer.content
        assert schedules() == NONE_LEFT


@db
def test_foreign_edit_of_kind_leaves_no_schedule_behind(make_timer):
    task = make_timer().periodic_task
    task.clocked, task.one_off = None, False
    task.crontab = CrontabSchedule.objects.create(minute="5", hour="4")
    task.save()
    assert schedules() == NONE_LEFT
    task.crontab, task.interval = None, IntervalSchedule.objects.create(every=5, period="minutes")
    task.save()
    assert schedules() == NONE_LEFT
    assert Timer.objects.get().every_seconds == 300


@db
@each("schedule", [{"seconds": 60}, {"cron": "0 9 * * *"}, {"every": "PT5M"}])
@each("how", ["row", "queryset", "schedule"])
def test_deleting_the_row_of_a_timer_leaves_no_schedule_behind(client, schedule, how):
    create(client, **schedule)
    task = PeriodicTask.objects.get(task=TASK_NAME)
    if how == "row":
        task.delete()
    elif how == "queryset":
        PeriodicTask.objects.filter(pk=task.pk).delete()
    else:
        (task.clocked or task.crontab or task.interval).delete()
    assert schedules() == NONE_LEFT
    assert Delivery.objects.get().state == State.CANCELLED


@db
def test_schedule_that_no_timer_used_or_another_task_uses_stays(client):
    kept = CrontabSchedule.objects.create(minute="7", hour="7")
    shared = IntervalSchedule.objects.create(every=7, period="days")
    PeriodicTask.objects.create(name="theirs", task="some.task", interval=shared)
    timer = create(client, every="P7D")
    row = PeriodicTask.objects.get(task=TASK_NAME)
    row.interval = shared
    row.save()
    assert send(client, "PATCH", f"/timer/{timer['task_id']}", {"hours": 1}).status_code == 200
    PeriodicTask.objects.get(task=TASK_NAME).delete()
    assert CrontabSchedule.objects.get() == kept
    assert IntervalSchedule.objects.get() == shared


@db
def test_pruning_deletes_a_schedule_that_several_pruned_timers_shared(client, sql):
    ids = [create(client, cron="0 9 * * *")["task_id"] for _ in range(2)]
    first, second = PeriodicTask.objects.filter(task=TASK_NAME).order_by("pk")
    alone, second.crontab = second.crontab_id, first.crontab
    second.save()
    assert not CrontabSchedule.objects.filter(pk=alone).exists()
    for pk in ids:
        services.cancel(uuid.UUID(pk))
    sql("UPDATE scheduler_delivery SET finished_at = finished_at - %s", 31 * DAYS)
    assert retention.prune(older_than=30 * DAYS) == 2
    assert schedules() == NONE_LEFT


# Deliveries


@db
def test_extra_deliveries_of_a_far_timer_are_pruned_by_age(client, history):
    timer = create(client, hours=24 * 365)["task_id"]
    history(timer, 3, days=31, extra=True)
    history(timer, 2, days=29, extra=True)
    assert retention.prune_past(older_than=30 * DAYS, dry_run=True) == 3
    assert retention.prune_past(older_than=30 * DAYS) == 3
    assert Delivery.objects.filter(timer=timer, extra=True).count() == 2
    assert client.get(f"/timer/{timer}").json()["status"] == "scheduled"


@db
def test_timer_that_recurs_for_ever_keeps_its_last_deliveries(client, history):
    busy, calm = create(client, every="PT1S")["task_id"], create(client, every="PT1S")["task_id"]
    history(busy, 500)
    history(calm, 90)
    while retention.trim(keep=100, limit=50):
        pass
    left = list(Delivery.objects.filter(timer=busy).order_by("-number").values_list("number", flat=True))
    assert left == list(range(left[0], left[0] - len(left), -1))
    assert 100 <= len(left) <= 164
    assert Delivery.objects.filter(timer=calm).count() == 91
    assert Attempt.objects.count() == Delivery.objects.filter(attempts=1).count()


@db
def test_trimming_keeps_what_is_open_and_what_the_timer_shows(client, history):
    far = create(client, hours=24 * 365)["task_id"]
    ended = create(client)["task_id"]
    services.cancel(uuid.UUID(ended))
    for timer in (far, ended):
        history(timer, 300, extra=True)
    waiting = Delivery.objects.filter(timer=far, extra=True).earliest("number")
    Delivery.objects.filter(pk=waiting.pk).update(state=State.PAUSED, finished_at=None)
    while retention.trim(keep=10):
        pass
    for timer, status in ((far, "scheduled"), (ended, "cancelled")):
        assert client.get(f"/timer/{timer}").json()["status"] == status
        assert Delivery.objects.filter(timer=timer).count() <= 10 + 64 + 2
    assert Delivery.objects.get(pk=waiting.pk).state == State.PAUSED


@db
def test_upkeep_trims_by_the_setting_and_not_without(client, history, settings):
    timer = create(client, every="PT1S")["task_id"]
    history(timer, 300)
    settings.WEBTASK_KEEP_DELIVERIES = 0
    tasks.prune()
    assert Delivery.objects.count() == 301
    settings.WEBTASK_KEEP_DELIVERIES = 50
    tasks.prune()
    assert Delivery.objects.count() <= 50 + 64


@db
def test_trimming_reads_the_index_of_timers_that_have_had_many(client, history, sql):
    for _ in range(3):
        history(create(client, every="PT1S")["task_id"], 1000)
    sql("ANALYZE scheduler_delivery")
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("EXPLAIN " + retention._TRIM, {"keep": 900, "limit": 100})
        assert "delivery_many_idx" in "\n".join(row[0] for row in cursor.fetchall())


# Upkeep


@db
def test_idempotency_keys_are_pruned_in_batches(client, sql):
    for number in range(5):
        post(client, {"seconds": 60, "web_url": URL}, **{"Idempotency-Key": f"k-{number}"})
    sql("UPDATE scheduler_idempotencykey SET created_at = created_at - interval '25 hours' WHERE key <> 'k-4'")
    assert [idempotency.prune(limit=3) for _ in range(3)] == [3, 1, 0]
    assert IdempotencyKey.objects.get().key == "k-4"


@db
def test_bulk_operations_and_sessions_are_pruned_in_batches(sql):
    for number in range(5):
        finished_at = LONG_AGO if number else None
        BulkOperation.objects.create(action="pause", filter={}, finished_at=finished_at)
        Session.objects.create(session_key=str(number), expire_date=LONG_AGO)
    assert [retention.prune_bulk(older_than=DAYS, limit=3) for _ in range(3)] == [3, 1, 0]
    assert [retention.prune_sessions(limit=3) for _ in range(3)] == [3, 2, 0]
    assert BulkOperation.objects.get().finished_at is None


@db
@pytest.mark.parametrize("failing", ["idempotency.prune", "retention.prune_bulk", "retention.trim", "retention.prune"])
def test_one_failing_step_of_upkeep_does_not_stop_the_others(client, sql, monkeypatch, caplog, failing):
    timer = create(client)["task_id"]
    services.cancel(uuid.UUID(timer))
    post(client, {"hours": 1, "web_url": URL}, **{"Idempotency-Key": "k"})
    sql("UPDATE scheduler_delivery SET finished_at = finished_at - %s", 31 * DAYS)
    sql("UPDATE scheduler_idempotencykey SET created_at = created_at - interval '25 hours'")
    BulkOperation.objects.create(action="pause", filter={}, finished_at=LONG_AGO)

    def time_out(**_):
        sql("SELECT 1 / 0")

    module, name = failing.split(".")
    monkeypatch.setattr({"idempotency": idempotency, "retention": retention}[module], name, time_out)
    tasks.prune()
    left = {
        "retention.prune": Timer.objects.count() - 1,
        "idempotency.prune": IdempotencyKey.objects.count(),
        "retention.prune_bulk": BulkOperation.objects.count(),
        "retention.trim": 1,
    }
    assert left == {name: int(name in (failing, "retention.trim")) for name in left}
    assert sum("prune_failed" in record.message for record in caplog.records) == 1


@pytest.mark.django_db(transaction=True)
def test_celery_lists_no_task_that_deletes_results():
    assert app.conf.result_expires is None
    TimerScheduler(app=app)
    names = set(PeriodicTask.objects.values_list("name", flat=True))
    assert names == {f"webtask_scheduler {name}" for name in ("reconcile", "prune", "notify")}


# A year

# Steps that are shorter than what is kept, so that a year shows what it leaves behind.
STEP = timedelta(days=28)
STEPS = 13
# After 112 days: what is kept longest, the audit log, is kept for 60.
STEADY_AFTER = 4
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"


def step_of_a_busy_service(client, long_lived, history):
    """Do a little of all that people and programs do."""
    recurring, far = long_lived
    for outcome in ({"status_code": 500, "error": "status"}, {}):
        timer = create(client, seconds=0, retry={"max_attempts": 1}, callback_url=URL, labels={"a": "b"})
        put_back(timer["task_id"])
        run(**outcome)
    run()
    for timer in recurring:
        history(timer, 40)
        send(client, "PATCH", f"/timer/{timer}", {"cron": "*/5 * * * *"})
        put_back(timer)
        run()
        send(client, "PATCH", f"/timer/{timer}", {"every": "PT1H"})
    for _ in range(3):
        assert post(client, None, f"/timer/{far}/run").status_code == 201
    run()
    history(far, 20, extra=True)
    for schedule in ({"seconds": 60}, {"cron": "@daily"}, {"every": "PT9M"}):
        timer = create(client, **schedule)
        PeriodicTask.objects.get(timer=timer["task_id"]).delete()
    for kind in ({"cron": "@hourly"}, {"every": "PT7M"}, {"hours": 5}):
        timer = create(client)
        send(client, "PATCH", f"/timer/{timer['task_id']}", kind)
        client.delete(f"/timer/{timer['task_id']}")
    for _ in range(5):
        body = {"hours": 1, "web_url": URL, "labels": {"a": "b"}}
        post(client, body, **{"Idempotency-Key": str(uuid.uuid4())})
    post(client, {"action": "cancel", "filter": {"label": "a=b", "status": ["scheduled"]}}, "/timer/bulk")
    tasks.bulk()
    assert not Delivery.objects.open().exclude(timer__in=[*recurring, far]).exists()
    Session.objects.create(session_key=str(uuid.uuid4()), expire_date=datetime.now(UTC))


def a_step_passes(sql):
    """Let what happened have happened a step earlier."""
    for statement in (
        "UPDATE scheduler_delivery SET finished_at = finished_at - %s WHERE finished_at IS NOT NULL",
        "UPDATE scheduler_idempotencykey SET created_at = created_at - %s",
        "UPDATE scheduler_bulkoperation SET finished_at = finished_at - %s",
        "UPDATE scheduler_beat SET seen_at = seen_at - %s",
        "UPDATE django_session SET expire_date = expire_date - %s",
        "UPDATE access_auditentry SET at = at - %s",
    ):
        sql(statement, STEP)


# With transactions that end: in a single one of a year no dead row could be removed, and each statement would pass it.
@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(300)
def test_year_of_a_busy_service_keeps_every_table_bounded(client, history, sql, settings, monkeypatch):
    settings.WEBTASK_RETENTION_DAYS, settings.WEBTASK_KEEP_DELIVERIES = 30, 100
    settings.WEBTASK_AUDIT_DAYS = 60
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(tasks, "BULK_PAUSE_SECONDS", 0)
    recurring = [create(client, every="PT1H")["task_id"] for _ in range(2)]
    long_lived = (recurring, create(client, hours=24 * 365 * 5)["task_id"])
    kept = CrontabSchedule.objects.create(minute="7", hour="7")
    counts = []
    for _ in range(STEPS):
        step_of_a_busy_service(client, long_lived, history)
        a_step_passes(sql)
        # Autovacuum does so many times meanwhile.
        sql("VACUUM (ANALYZE) scheduler_delivery, scheduler_attempt, scheduler_timer, django_celery_beat_periodictask")
        tasks.prune()
        counts.append({name: sql(f"SELECT count(*) FROM {name}")[0][0] for (name,) in sql(TABLES)})
    most = {name: max(step[name] for step in counts[:STEADY_AFTER]) for name in counts[0]}
    grown = {
        name: (most[name], counts[-1][name])
        for name in most
        if max(step[name] for step in counts[STEADY_AFTER:]) > most[name]
    }
    assert grown == {}
    # It did have to prune.
    assert counts[-1]["scheduler_delivery"] < STEPS * 50
    assert CrontabSchedule.objects.filter(pk=kept.pk).exists()
    assert {str(pk) for pk in Timer.objects.values_list("pk", flat=True)} >= {*recurring, long_lived[1]}
