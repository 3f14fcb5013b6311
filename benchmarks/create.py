"""Creates timers over HTTP: one by one against a minimal view on the ORM, and in batches against one SQL statement."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import psycopg2  # type: ignore[import-untyped]

from benchmarks import report, rig
from benchmarks.report import Result, bar, median, table

TIMES = 5.0
# With an API key, an Idempotency-Key and every limit on.
GUARDED_TIMES = 3.5
GUARDED: dict[str, Any] = {
    "WEBTASK_API_AUTH": "key",
    "WEBTASK_LIMIT_REQUESTS_PER_SECOND": "1000000",
    "WEBTASK_LIMIT_TIMERS_WAITING": "1000000000",
    "WEBTASK_LIMIT_RECURRING_PER_SECOND": "1000000",
}
BATCH_SHARE = 0.5
BATCH = 500
WARM_SECONDS = 2.0
PLAIN_SETTINGS = "benchmarks.plain_settings"

# What a batch is measured against: the same rows in the same four tables, with their indexes, as one statement.
INSERT = """
WITH item AS MATERIALIZED (
  SELECT i.*, clock_timestamp() + make_interval(secs => delay) AS due,
         nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) AS clocked_id,
         nextval(pg_get_serial_sequence('django_celery_beat_periodictask', 'id')) AS task_id,
         uuidv7() AS timer_id, uuidv7() AS delivery_id
    FROM unnest(%s::text[], %s::text[], %s::float8[]) AS i (web_url, host, delay)
),
clocked AS (
  INSERT INTO django_celery_beat_clockedschedule (id, clocked_time) SELECT clocked_id, due FROM item
),
task AS (
  INSERT INTO django_celery_beat_periodictask
    (id, name, task, clocked_id, args, kwargs, headers, description, one_off, enabled, total_run_count, date_changed)
  SELECT task_id, 'timer ' || timer_id, 'webtask_scheduler.scheduler.tasks.call_timer', clocked_id, '[]',
         '{"timer_id": "' || timer_id || '"}', '{}', '', true, true, 0, now()
    FROM item
),
timer AS (
  INSERT INTO scheduler_timer (id, periodic_task_id, owner_id, web_url, host, created_at, name, cron, timezone)
  SELECT timer_id, task_id, NULL, web_url, host, now(), '', '', '' FROM item
  RETURNING id AS timer_id, flow
)
INSERT INTO scheduler_delivery
  (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before)
SELECT delivery_id, timer_id, flow, 1, 1, false, due, due, 'scheduled', 0, 0 FROM item JOIN timer USING (timer_id)
"""


def body(number: int) -> dict[str, Any]:
    return {"hours": 2, "minutes": 0, "seconds": number % 3600, "web_url": f"http://127.0.0.1:9/create/{number}"}


def measure(sites: rig.Sites, *, connections: int, seconds: float, runs: int) -> Result:
    ours = sites.ours()
    plain = sites.bare("plain", django_settings=PLAIN_SETTINGS).migrate()
    service = rig.Service(ours)
    record = report.result(
        "create",
        question=f"How many timers a second are created over HTTP on {connections} kept connections, beside a minimal"
        " view of Django REST framework that saves a ClockedSchedule and a PeriodicTask by the ORM?",
        settings=ours.settings(),
        processes=service.commands() | {"minimal view": f"web alone, DJANGO_SETTINGS_MODULE={PLAIN_SETTINGS}"},
    )
    record["size"] = {"connections": connections, "seconds a run": seconds, "runs": runs, "batch": BATCH}
    make = ["manage.py", "api_key", "create", "bench", "--owner", "bench@example.com", "--service-account"]
    key = ours.run([sys.executable, *make], quiet=True).split()[0]
    found: dict[str, list[float]] = {"minimal view": [], "ours": [], "ours, guarded": []}
    rows: list[list[Any]] = []
    for number, subject in rig.rounds(runs, list(found)):
        # The minimal view has the machine to itself; ours shares it with beat, worker and Flower.
        order: dict[str, Any] = {"path": "/timer", "connections": connections}
        order["bodies"] = [json.dumps(body(index)) for index in range(1000)]
        if subject == "minimal view":
            running: rig.Service = PlainService(plain)
            order["path"] = "/plain"
        elif subject == "ours":
            running = rig.Service(ours)
        else:
            running = rig.Service(ours, **GUARDED)
            order |= {"headers": {"Authorization": f"Bearer {key}"}, "keyed": True}
        with running:
            one = load(running, order, seconds=seconds)
        found[subject].append(one["rate"])
        rows.append([subject, number, one["rate"], one["p50"], one["p99"], one["refused"]])
        rig.say(f"  {one['rate']:.0f}/s; {rig.disturbance(one['machine'])}")
        record["runs"].append({"subject": subject, "run": number, **one})
    table(record, "One by one", ["", "run", "created/s", "p50 ms", "p99 ms", "refused"], rows)
    for subject, times in (("ours", TIMES), ("ours, guarded", GUARDED_TIMES)):
        ratio = median(found[subject]) / median(found["minimal view"])
        bar(
            record,
            f"create one by one, {connections} connections{subject.removeprefix('ours')}",
            limit=f"{times:g} x the minimal view's {median(found['minimal view']):.0f}/s",
            value=f"{median(found[subject]):.0f}/s (x {ratio:.1f})",
            met=ratio >= times,
        )
    batches(record, ours, seconds=seconds, runs=runs)
    return record


def load(service: rig.Service, order: Mapping[str, Any], *, seconds: float, each: int = 1) -> dict[str, Any]:
    """Send requests without a pause; return timers created a second, after a warm-up, and the requests' times."""
    begin = time.time() + WARM_SECONDS
    before = service.cpu_seconds()
    client = service.create({**order, "seconds": seconds + WARM_SECONDS})
    time.sleep(max(0.0, begin - time.time()))
    meter = rig.Meter()
    answered = rig.finish_client(client, seconds + 60)
    machine = meter.read()
    cpu = {name: spent - before[name] for name, spent in service.cpu_seconds().items()}
    counted = [(sent, done, status) for sent, done, status, _ in answered if done >= begin]
    good = [(sent, done) for sent, done, status in counted if status == 201]
    took = [(done - sent) * 1000 for sent, done in good]
    last = max((done for _, done in good), default=begin + seconds)
    return {
        "rate": len(good) * each / (last - begin),
        "p50": rig.percentile(took, 50),
        "p99": rig.percentile(took, 99),
        "refused": len(counted) - len(good),
        "statuses": sorted({status for _, _, status in counted}),
        "machine": machine,
        "cpu": cpu,
        "cpu_ms_each": {name: 1000 * spent / max(1, len(answered) * each) for name, spent in cpu.items()},
    }


def batches(record: Result, site: rig.Site, *, seconds: float, runs: int) -> None:
    """One connection sends batches over HTTP; one connection sends the bare statement."""
    bodies = [json.dumps({"timers": [body(BATCH * number + index) for index in range(BATCH)]}) for number in range(20)]
    order = {"path": "/timer/batch", "connections": 1, "bodies": bodies}
    found: dict[str, list[float]] = {"one SQL statement": [], "ours, batches over HTTP": []}
    rows: list[list[Any]] = []
    with rig.Service(site) as service:
        client = service.create({"path": "/timer/batch", "connections": 1, "at": [0.0], "bodies": ["{}"]})
        if rig.finish_client(client, 60)[0][2] in (404, 405):
            record["notes"].append("Batches are not measured: there is no /timer/batch.")
            rig.say(record["notes"][-1])
            return
    for number, subject in rig.rounds(runs, list(found)):
        with rig.Service(site) as service:
            if subject == "one SQL statement":
                one = statements(site, seconds=seconds)
            else:
                one = load(service, order, seconds=seconds, each=BATCH)
        found[subject].append(one["rate"])
        rows.append([subject, number, one["rate"], one["p50"], one["p99"]])
        rig.say(f"  {one['rate']:.0f}/s; {rig.disturbance(one['machine'])}")
        record["runs"].append({"subject": subject, "run": number, **one})
    table(record, f"In batches of {BATCH}, one connection", ["", "run", "timers/s", "p50 ms", "p99 ms"], rows)
    sql, http = (median(values) for values in found.values())
    bar(
        record,
        f"create in batches of {BATCH}",
        limit=f"{BATCH_SHARE:g} of the bare statement's {sql:,.0f}/s",
        value=f"{http:,.0f}/s ({http / sql:.2f})",
        met=http / sql >= BATCH_SHARE,
    )


def statements(site: rig.Site, *, seconds: float) -> dict[str, Any]:
    """Insert batch after batch by one statement each."""
    connection = psycopg2.connect(site.database.url)
    connection.autocommit = True
    took: list[float] = []
    items = [body(number) for number in range(BATCH)]
    arguments = [
        [item["web_url"] for item in items],
        ["127.0.0.1:9"] * BATCH,
        [7200.0 + item["seconds"] for item in items],
    ]
    try:
        with connection.cursor() as cursor:
            cursor.execute(INSERT, arguments)
            meter = rig.Meter()
            begin = time.monotonic()
            while (sent := time.monotonic()) < begin + seconds:
                cursor.execute(INSERT, arguments)
                took.append((time.monotonic() - sent) * 1000)
            rate = len(took) * BATCH / (time.monotonic() - begin)
    finally:
        connection.close()
    return {
        "rate": rate,
        "p50": rig.percentile(took, 50),
        "p99": rig.percentile(took, 99),
        "machine": meter.read(),
    }


class PlainService(rig.Service):
    """The web server alone, with the minimal view."""

    def __init__(self, site: rig.Site) -> None:
        super().__init__(site)
        self.names = ["web"]

    def command(self, name: str) -> list[str]:
        # As the service's, but for the application.
        return [*super().command(name)[:-1], "benchmarks.plain_app:application"]
