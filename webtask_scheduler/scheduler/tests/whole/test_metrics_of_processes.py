"""Metrics of the real processes: any web process answers for all of them, and an orderly end loses no count."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from webtask_scheduler.scheduler.models import Attempt, Delivery, State
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

COUNT = 20


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture
def own_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_metrics_hold_what_every_process_did_and_outlive_them(receiver, own_port):
    with running() as service:
        service.environment |= {"METRICS_PORT": str(own_port)}
        service.start("web", "worker", "beat")
        # Known before anything was called.
        wait_until(lambda: scrape(own_port)["webtask_worker_slots",] == 32)
        for number in range(COUNT):
            assert service.post({"seconds": 1, "web_url": receiver.url(f"/{number}")})[0] == 201
        # Before the next time that it stores by itself.
        service.stop("web")
        assert rollups.ever().created == COUNT
        receiver.wait_for(COUNT)
        wait_until(lambda: Delivery.objects.filter(state=State.SUCCEEDED).count() == COUNT)
        for name in ("beat", "worker"):
            service.stop(name)
        service.start("web")
        for port in (own_port, service.port):
            samples = scrape(port)
            assert samples["webtask_timers_created_total",] == COUNT
            assert samples["webtask_attempts_total", "success"] == COUNT
            assert samples["webtask_deliveries_total", "succeeded"] == COUNT
            assert samples["webtask_claim_delay_seconds_count",] == COUNT
            assert samples["webtask_publish_delay_seconds_count",] == COUNT
            assert samples["webtask_workers", "calls"] == 0
        late = histogram.empty()
        for attempt in Attempt.objects.all():
            late[histogram.bucket_of((attempt.started_at - attempt.meant_for).total_seconds())] += 1
        assert rollups.ever().first_late == late


def test_killed_worker_loses_counts_of_seconds_and_counters_go_on(receiver):
    with running("web", "worker", "beat") as service:
        assert service.post({"seconds": 0, "web_url": receiver.url("/first")})[0] == 201
        # Stored while it runs.
        wait_until(lambda: scrape(service.port)["webtask_deliveries_total", "succeeded"] == 1)
        service.kill("worker")
        service.start("worker")
        assert service.post({"seconds": 0, "web_url": receiver.url("/second")})[0] == 201
        # A worker takes a while to start, and stores what it counted after five seconds.
        wait_until(lambda: scrape(service.port)["webtask_deliveries_total", "succeeded"] == 2)
