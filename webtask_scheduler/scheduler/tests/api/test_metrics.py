"""What `/metrics` answers, to whom, and that the dashboard and the alerts name nothing else."""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from django.db import OperationalError, connection
from prometheus_client.parser import text_string_to_metric_families

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.api import metrics as module
from webtask_scheduler.scheduler.beat import TimerScheduler
from webtask_scheduler.scheduler.models import Attempt, Beat, CallStop, ClockTimestamp, Leader
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.tests.support.acting import begin, claim, put_back, run
from webtask_scheduler.scheduler.tests.support.cases import each

db = pytest.mark.django_db
MONITORING = Path(__file__).resolve().parents[4] / "docs" / "monitoring"
# From programs other than ours.
FOREIGN = {"up", "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "ALERTS"}


@pytest.fixture(autouse=True)
def _counts_of_this_test():
    rollups.tally.forget()
    yield
    rollups.tally.forget()


@pytest.fixture
def scrape(client):
    """Return a function that returns every sample of a scrape, by name and labels."""

    def read(**headers):
        facts.forget()
        answer = client.get("/metrics", headers=headers)
        assert answer.status_code == 200
        samples = {}
        for family in text_string_to_metric_families(answer.content.decode()):
            assert family.documentation
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in samples
                samples[key] = sample.value
        return samples

    return read


def value(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))]


# Who may read


@db
def test_local_settings_leave_it_open(client):
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    assert client.head("/metrics").content == b""
    assert client.post("/metrics").status_code == 405


def test_without_token_or_port_it_is_refused_and_names_the_settings(client, settings):
    settings.METRICS_OPEN = False
    answer = client.get("/metrics")
    assert (answer.status_code, answer["Content-Type"]) == (403, "application/problem+json")
    assert "METRICS_TOKEN" in answer.json()["detail"]
    assert "METRICS_PORT" in answer.json()["detail"]


@db
@pytest.mark.parametrize("is_open", [True, False])
def test_token_is_asked_for_where_it_is_set(client, settings, is_open):
    settings.METRICS_TOKEN, settings.METRICS_OPEN = "s3cret-ü", is_open
    for given in ("", "Bearer", "Bearer s3cret", "Bearer s3cret-ü ", "Basic s3cret-ü", "bearer\xff"):
        answer = client.get("/metrics", headers={"Authorization": given} if given else {})
        assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer"), given
        assert b"s3cret" not in answer.content
    assert client.get("/metrics", headers={"Authorization": "Bearer s3cret-ü"}).status_code == 200


# What it says


@db
def test_lateness_is_that_of_the_attempts(scrape, make_timer):
    for seconds in (0.0, 0.3, 3.0, 400.0):
        make_timer(delay_seconds=-seconds)
    failing = run(status_code=500, error="status")
    for call in failing.started[:2]:
        put_back(call.timer_id, seconds=45.0)
    run()
    rollups.tally.flush()
    samples = scrape()
    wanted = {"first": histogram.empty(), "retry": histogram.empty()}
    for attempt in Attempt.objects.all():
        late = (attempt.started_at - attempt.meant_for).total_seconds()
        wanted["first" if attempt.number == 1 else "retry"][histogram.bucket_of(late)] += 1
    for kind, counts in wanted.items():
        bounds = [*map(repr, histogram.BOUNDS), "+Inf"]
        cumulative = [value(samples, "webtask_lateness_seconds_bucket", attempt=kind, le=bound) for bound in bounds]
        assert cumulative == [sum(counts[: number + 1]) for number in range(len(counts))]
        assert value(samples, "webtask_lateness_seconds_count", attempt=kind) == sum(counts)
    assert value(samples, "webtask_lateness_seconds_sum", attempt="first") == pytest.approx(403.3, abs=2)
    assert value(samples, "webtask_attempts_total", outcome="status") == 4
    assert value(samples, "webtask_attempts_total", outcome="success") == 2
    assert value(samples, "webtask_deliveries_total", state="succeeded") == 2
    assert value(samples, "webtask_retries_total") == 4
    assert value(samples, "webtask_call_duration_seconds_count") == 6


@db
def test_counts_are_those_of_the_table(scrape, make_timer):
    for seconds in (-60, -10, -2, 3600, 3600):
        make_timer(delay_seconds=seconds)
    samples = scrape()
    assert value(samples, "webtask_waiting") == 5
    assert value(samples, "webtask_due") == 3
    assert value(samples, "webtask_backlog") == 2
    assert 60 <= value(samples, "webtask_oldest_due_seconds") < 90
    assert value(samples, "webtask_late") == 3
    claimed = claim(limit=1).held
    samples = scrape()
    assert value(samples, "webtask_claimed") == len(claimed) > 0
    begin()
    samples = scrape()
    assert value(samples, "webtask_running") == 3 - len(claimed)
    assert value(samples, "webtask_waiting") == 2


@db
def test_dead_letters_go_down_when_they_are_replayed_and_the_counter_does_not(scrape, make_timer):
    timer = make_timer(delay_seconds=-1, options={"retry": {"max_attempts": 1}})
    run(status_code=500, error="status")
    rollups.tally.flush()
    assert value(scrape(), "webtask_dead_letters") == 1
    services.replay(timer.pk)
    samples = scrape()
    assert value(samples, "webtask_dead_letters") == 0
    assert value(samples, "webtask_deliveries_total", state="failed") == 1


@db
def test_count_beyond_the_bound_is_an_estimate_and_says_so(scrape, make_timer, monkeypatch, sql):
    for _ in range(30):
        make_timer()
    sql("ANALYZE scheduler_delivery")
    assert value(scrape(), "webtask_count_is_estimate", count="waiting") == 0
    monkeypatch.setattr(facts, "COUNT_MOST", 10)
    samples = scrape()
    assert value(samples, "webtask_count_is_estimate", count="waiting") == 1
    assert value(samples, "webtask_waiting") == pytest.approx(30, rel=0.5)
    assert value(samples, "webtask_count_is_estimate", count="due") == 0


@db
def test_bounded_counts_read_indexes(sql):
    # With many ended rows before those that wait, a walk through the table would take long.
    with connection.cursor() as cursor:
        # The table is empty here; with rows, a sort of them costs more than any of these.
        for choice in ("seqscan", "bitmapscan", "sort"):
            cursor.execute(f"SET LOCAL enable_{choice} = off")
        for name, (where, order) in facts._COUNTED.items():
            statement = f"EXPLAIN SELECT FROM scheduler_delivery WHERE {where} ORDER BY {order} LIMIT 10"
            cursor.execute(statement, {"backlog": 5})
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert re.search(r"Index (Only )?Scan using delivery_(due|lease|held|past_flow)_idx", plan), (name, plan)
            assert "Sort" not in plan, (name, plan)


@db
def test_beats_leader_and_workers(scrape, monkeypatch):
    samples = scrape()
    assert value(samples, "webtask_beats") == value(samples, "webtask_beat_leads") == 0
    assert value(samples, "webtask_workers", kind="calls") == value(samples, "webtask_worker_slots") == 0
    assert ("webtask_beat_seen_seconds", ()) not in samples
    for name, seconds in (("b:1", 0), ("b:2", 1), ("b:3", 60)):
        Beat.objects.create(name=name, seen_at=ClockTimestamp() - timedelta(seconds=seconds))
    Leader.objects.create(name="b:2", expires_at=ClockTimestamp() + timedelta(seconds=3))
    for name in ("w:1", "w:2"):
        monkeypatch.setattr(rollups, "process_name", lambda name=name: name)
        tally = rollups.Tally()
        tally.slots = 32
        # Stored though nothing was counted.
        tally.flush()
        facts.note_worker(name=name, kind="calls", starter_idle_seconds=0.0, held=5, running=3)
    facts.note_worker(name="u:1", kind="upkeep", starter_idle_seconds=0.0, held=0, running=0)
    facts.note_worker(name="w:2", kind="calls", starter_idle_seconds=20.0, held=5, running=3)
    samples = scrape()
    assert value(samples, "webtask_beats") == 2
    assert value(samples, "webtask_beat_leads") == value(samples, "webtask_beat_leader", beat="b:2") == 1
    assert value(samples, "webtask_workers", kind="calls") == 2
    assert value(samples, "webtask_workers", kind="upkeep") == 1
    assert value(samples, "webtask_worker_slots") == 64
    assert value(samples, "webtask_worker_calls") == 6
    assert value(samples, "webtask_worker_held") == 10
    assert value(samples, "webtask_workers_stuck") == 1


@db
def test_stops_and_hosts_that_are_put_off(scrape, make_timer, sql):
    CallStop.objects.create(host="a.example")
    for host in ("b", "b", "c"):
        make_timer(f"http://{host}.example/", delay_seconds=-30)
    sql("UPDATE scheduler_delivery SET next_attempt_at = now() + interval '9 s'")
    samples = scrape()
    assert value(samples, "webtask_put_off_deliveries") == 3
    assert value(samples, "webtask_put_off_hosts") == 2
    assert value(samples, "webtask_call_stops") == 1
    assert value(samples, "webtask_all_calls_stopped") == 0
    CallStop.objects.create(host="")
    assert value(scrape(), "webtask_all_calls_stopped") == 1


@db
def test_database_that_is_away_is_said_and_nothing_is_made_up(client, monkeypatch):
    def away():
        raise OperationalError("gone")

    monkeypatch.setattr(rollups, "ever", away)
    text = client.get("/metrics").content.decode()
    assert "webtask_database_up 0.0" in text
    assert "webtask_broker_up 1.0" in text
    assert "webtask_waiting" not in text


@pytest.mark.django_db(transaction=True)
def test_beat_counts_what_it_publishes_and_that_it_leads(scrape, make_timer, monkeypatch):
    from config.celery_app import app

    beat = TimerScheduler(app=app)
    monkeypatch.setattr("webtask_scheduler.dispatch.publisher.Publisher.deliver", lambda self, chunk: None)
    make_timer(delay_seconds=-2)
    for _ in range(2):
        beat._seen_at = 0.0
        beat.tick()
    assert Beat.objects.count() == 1
    # Stores the rest.
    beat.close()
    samples = scrape()
    assert value(samples, "webtask_publish_delay_seconds_count") == 1
    assert value(samples, "webtask_publish_delay_seconds_bucket", le="5.0") == 1
    assert value(samples, "webtask_publish_delay_seconds_bucket", le="1.0") == 0
    assert value(samples, "webtask_claim_delay_seconds_count") == 1
    assert rollups.ever().led_seconds > 0


# A port of its own


@pytest.fixture
def port(settings):
    with socket.create_server(("127.0.0.1", 0)) as free:
        settings.METRICS_PORT = free.getsockname()[1]
    return settings.METRICS_PORT


def fetch(port, path="/metrics", method="GET"):
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.django_db(transaction=True)
def test_own_port_answers_without_token_and_is_shared_by_processes(port, settings, monkeypatch):
    settings.METRICS_OPEN = False
    servers = []
    real = module._Server
    monkeypatch.setattr(module, "_Server", lambda *given: servers.append(real(*given)) or servers[-1])
    # As two web processes of one machine do.
    module.listen()
    module.listen()
    try:
        assert len(servers) == 2
        for _ in range(10):
            status, text = fetch(port)
            assert (status, "webtask_database_up 1.0" in text) == (200, True)
        assert fetch(port, "/admin/")[0] == 404
        assert fetch(port, method="POST")[0] == 405
        assert fetch(port, method="HEAD") == (200, "")
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_port_that_is_taken_is_told_and_the_service_goes_on(settings, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings.METRICS_PORT = taken.getsockname()[1]
        module.listen()
    assert "metrics_port_refused" in caplog.text


# What is worth watching


def named(expression):
    """Return the metrics that an expression names."""
    return set(re.findall(r"\b(webtask_\w+|node_\w+|up|ALERTS)\b", expression))


def expressions():
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@db
def test_dashboard_and_alerts_name_only_what_a_scrape_has(scrape, make_timer):
    Beat.objects.create(name="b:1", seen_at=ClockTimestamp())
    Leader.objects.create(name="b:1", expires_at=ClockTimestamp() + timedelta(seconds=3))
    names = {name for name, _ in scrape()} | FOREIGN
    used = set()
    for where, expression in expressions():
        found = named(expression)
        assert found, where
        # `job="webtask_scheduler"` is no metric.
        found -= {"webtask_scheduler"}
        assert found <= names, (where, found - names)
        used |= found
    # What nobody looks at is not worth exporting.
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in names - FOREIGN}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} >= families


@db
def test_labels_that_are_selected_exist(scrape):
    known = {}
    for name, labels in scrape():
        for label, chosen in labels:
            known.setdefault((name, label), set()).add(chosen)
    for where, expression in expressions():
        for name, selector in re.findall(r"(webtask_\w+)\{([^}]*)\}", expression):
            for label, chosen in re.findall(r'(\w+)="([^"]*)"', selector):
                assert chosen in known[name, label], (where, name, label, chosen)


def test_every_alert_has_its_section_and_every_section_its_alert():
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    page = (MONITORING / "README.md").read_text()
    sections = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert sorted(rule["alert"] for rule in rules) == sorted(sections)
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/monitoring/README.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
    tests = (MONITORING / "alerts.test.yml").read_text()
    assert [rule["alert"] for rule in rules if rule["alert"] not in tests] == []


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: package prometheus)")
@each("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]])
def test_promtool_finds_the_rules_in_order(arguments):
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@db
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: package prometheus)")
def test_promtool_finds_the_answer_in_order(client):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=client.get("/metrics").content, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
