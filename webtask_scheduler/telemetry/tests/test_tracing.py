"""One trace from the request to the call, as a collector gets it over OTLP from real processes."""

import json
import urllib.request

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from webtask_scheduler.scheduler.models import Delivery
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER, CLIENT, CONSUMER = 2, 3, 5


@pytest.fixture
def collector():
    with Receiver() as running_:
        yield running_


@pytest.fixture
def service(collector):
    with running() as found:
        found.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=a-test",
            "LOG_FORMAT": "json",
        }
        yield found


def spans_of(collector):
    """Return the spans that a collector got, each with its attributes and those of its process."""
    found = []
    for call in list(collector.calls):
        assert (call.path, call.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for resource in ExportTraceServiceRequest.FromString(call.body).resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                found += [(span, about) for span in scope.spans]
    return found


def attributes(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def post(service, body, **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/timer?token=s3cret",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"} | headers,
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def ended(task_id, count=1):
    return Delivery.objects.filter(timer=task_id, finished_at__isnull=False).count() >= count


def named(collector, *names):
    return {span.name: span for span, _ in spans_of(collector) if span.name in names}


def test_one_trace_goes_from_the_request_to_the_call(service, collector, receiver):
    service.start("web", "worker", "beat")
    body = {"seconds": 1, "web_url": receiver.url("/x?token=s3cret"), "headers": {"X-Key": "s3cret"}}
    made = post(service, body, traceparent=f"00-{TRACE}-{PARENT}-01")
    (call,) = receiver.wait_for(1)
    wait_until(lambda: {"deliver", "POST"} <= named(collector, "deliver", "POST").keys())
    wait_until(lambda: named(collector, "POST /timer"))
    spans = {span.name: (span, about) for span, about in spans_of(collector)}
    assert spans.keys() == {"POST /timer", "deliver", "POST"}
    web, deliver, client = (spans[name][0] for name in ("POST /timer", "deliver", "POST"))
    assert {span.trace_id.hex() for span in (web, deliver, client)} == {TRACE}
    assert [span.parent_span_id.hex() for span in (web, deliver, client)] == [
        PARENT,
        web.span_id.hex(),
        deliver.span_id.hex(),
    ]
    assert [span.kind for span in (web, deliver, client)] == [SERVER, CONSUMER, CLIENT]
    # The receiver goes on with it.
    assert call.headers["traceparent"] == f"00-{TRACE}-{client.span_id.hex()}-01"
    # What happened between, in order.
    assert [event.name for event in deliver.events] == ["claimed", "published", "received", "started"]
    times = [event.time_unix_nano for event in deliver.events]
    assert times == sorted(times)
    assert deliver.start_time_unix_nano == times[0]
    assert times[-1] <= client.start_time_unix_nano < client.end_time_unix_nano <= deliver.end_time_unix_nano
    # Claimed ahead of its due time, published at it.
    assert 0.5 < (times[1] - times[0]) / 1e9 < 1.5
    assert attributes(web)["http.response.status_code"] == 201
    assert attributes(deliver)["webtask.timer"] == made["task_id"]
    assert attributes(client) == {
        "http.request.method": "POST",
        "server.address": f"127.0.0.1:{receiver.port}",
        "http.response.status_code": 200,
    }
    assert {about["service.name"] for _, about in spans.values()} == {"webtask_scheduler"}
    assert {about["deployment.environment.name"] for _, about in spans.values()} == {"a-test"}
    assert not [one for one in collector.calls if b"s3cret" in one.body]
    # The log has the same ids.
    wait_until(lambda: "attempt_ended" in service.log("worker"))
    (line,) = [json.loads(line) for line in service.log("worker").splitlines() if "attempt_ended" in line]
    assert (line["trace_id"], line["span_id"]) == (TRACE, client.span_id.hex())


def test_decision_of_the_client_is_kept(service, collector, receiver):
    service.start("web", "worker", "beat")
    made = post(service, {"seconds": 0, "web_url": receiver.url("/x")}, traceparent=f"00-{TRACE}-{PARENT}-00")
    (call,) = receiver.wait_for(1)
    assert call.headers["traceparent"][:36] == f"00-{TRACE}-"
    assert call.headers["traceparent"].endswith("-00")
    wait_until(lambda: ended(made["task_id"]))
    # Another one that is kept comes after it; the first would have come before.
    post(service, {"seconds": 0, "web_url": receiver.url("/y")})
    wait_until(lambda: "POST" in named(collector, "POST"))
    assert TRACE not in {span.trace_id.hex() for span, _ in spans_of(collector)}


def test_failed_attempts_and_their_retries_are_in_the_trace(service, collector, receiver):
    service.start("web", "worker", "beat")
    body = {
        "seconds": 0,
        "web_url": receiver.url("/flaky/1"),
        "retry": {"backoff": "list", "delays_seconds": [0.2]},
    }
    post(service, body)
    receiver.wait_for(2)
    wait_until(lambda: len([1 for span, _ in spans_of(collector) if span.name == "POST"]) == 2)
    spans = [span for span, _ in spans_of(collector)]
    assert len({span.trace_id for span in spans}) == 1
    first, second = sorted((span for span in spans if span.name == "POST"), key=lambda span: span.start_time_unix_nano)
    assert (first.status.code, attributes(first)["error.type"]) == (2, "status")
    assert (second.status.code, attributes(second)["http.request.resend_count"]) == (0, "1")


def test_later_occurrences_begin_traces_that_are_linked(service, collector, receiver):
    service.start("web", "worker", "beat")
    made = post(service, {"every": "PT1S", "max_occurrences": 2, "web_url": receiver.url("/x")})
    wait_until(lambda: ended(made["task_id"], 2))
    wait_until(lambda: len([1 for span, _ in spans_of(collector) if span.name == "deliver"]) == 2)
    spans = [span for span, _ in spans_of(collector)]
    (web,) = [span for span in spans if span.name == "POST /timer"]
    first, second = sorted(
        (span for span in spans if span.name == "deliver"), key=lambda span: span.start_time_unix_nano
    )
    assert (first.trace_id, first.parent_span_id) == (web.trace_id, web.span_id)
    assert second.trace_id != web.trace_id
    assert not second.parent_span_id
    assert [(link.trace_id, link.span_id) for link in second.links] == [(web.trace_id, web.span_id)]


def test_collector_that_is_away_costs_no_call_and_little_log(service, receiver):
    service.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    service.start("web", "worker", "beat")
    for number in range(20):
        post(service, {"seconds": 0, "web_url": receiver.url(f"/{number}")})
    receiver.wait_for(20)
    # Each batch that is lost would be a line or more.
    wait_until(lambda: service.log("worker").count("attempt_ended") == 20)
    lost = [line for line in service.log("worker").splitlines() if "opentelemetry" in line]
    assert len(lost) <= 3, lost
    assert not [line for line in lost if "Traceback" in line]
    assert service.stop("worker") == 0
