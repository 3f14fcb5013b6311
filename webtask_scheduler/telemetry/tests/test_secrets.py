"""No log and no event of Sentry holds what a timer keeps secret, however the timer fails.

Real processes log to files and send to a local Sentry; the test looks through all of it for the values that it gave.
"""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from sentry_sdk.envelope import Envelope

from webtask_scheduler import __version__
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

# One for each place, so that a failure says which one leaked. No source line that a traceback shows has them.
PLACES = (
    "user",
    "password",
    "query",
    "fragment",
    "header",
    "body",
    "metadata",
    "callback",
    "answer",
    "location",
    "cookie",
)
SECRETS = {place: f"{place}-{'x' * 3}7Q" for place in PLACES}


def send(service, body, *, path="/timer", headers=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}{path}?token={SECRETS['query']}",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": SECRETS["header"],
            "Cookie": f"a={SECRETS['cookie']}",
            "X-Request-ID": "the-request",
        }
        | (headers or {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def timer_to(host, path, **more):
    return {
        "seconds": 0,
        "web_url": f"http://{SECRETS['user']}:{SECRETS['password']}@{host}{path}?q={SECRETS['query']}#{SECRETS['fragment']}",
        "headers": {"X-Key": SECRETS["header"]},
        "body": {"a": SECRETS["body"]},
        "metadata": {"a": SECRETS["metadata"]},
        "callback_url": f"http://{SECRETS['callback']}@127.0.0.1:1/?a={SECRETS['callback']}",
        "failure_callback_url": f"http://{SECRETS['callback']}@127.0.0.1:1/?a={SECRETS['callback']}",
        "retry": {"max_attempts": 1},
        "timeout_seconds": 1,
    } | more


def events_of(sentry):
    """Return the events that a Sentry got, as its own library reads them."""
    found = []
    for call in list(sentry.calls):
        body = gzip.decompress(call.body) if call.headers.get("Content-Encoding") == "gzip" else call.body
        found += [item.payload.json for item in Envelope.deserialize(body).items if item.type == "event"]
    return found


def fail_in_every_way(service, receiver, sql):
    host = f"127.0.0.1:{receiver.port}"
    location = f"http://a:{SECRETS['location']}@127.0.0.1:1/?b={SECRETS['location']}"
    wanted = [
        timer_to(host, "/status/500"),
        timer_to(host, "/status/200"),
        timer_to(host, "/sleep/3"),
        timer_to(host, "/garbage"),
        timer_to(host, "/hang-up"),
        timer_to(host, "/cookie"),
        timer_to(host, "/retry-after/1", retry={"backoff": "list", "delays_seconds": [0.2], "max_attempts": 2}),
        timer_to(host, f"/to/302/{urllib.parse.quote(location, safe='')}", follow_redirects=True),
        timer_to("127.0.0.1:1", "/refused"),
        timer_to("no-such-name.invalid", "/dns"),
    ]
    for body in wanted:
        status, answer = send(service, body)
        assert status == 201, answer
    # Requests that are refused.
    assert send(service, timer_to(host, "/", seconds=SECRETS["body"]))[0] == 400
    assert send(service, timer_to("a b", "/"))[0] == 400
    assert (
        send(service, {"timers": [timer_to(host, "/", headers={"X": f"\n{SECRETS['header']}"})]}, path="/timer/batch")[
            0
        ]
        == 400
    )
    # Rows that our code and the database refuse.
    held = [send(service, timer_to(host, path, seconds=60))[1]["task_id"] for path in ("/held", "/status/500")]
    sql(
        "UPDATE scheduler_timer SET options = %s WHERE id = %s",
        json.dumps({"headers": SECRETS["header"], "body": SECRETS["body"]}),
        held[0],
    )
    sql(
        "UPDATE scheduler_timer SET options = %s WHERE id = %s",
        json.dumps({"retry": {"max_attempts": SECRETS["metadata"]}, "body": SECRETS["body"]}),
        held[1],
    )
    for task_id in held:
        assert send(service, {}, path=f"/timer/{task_id}/run")[0] == 201
    wait_until(
        lambda: "call_crashed" in service.log("worker") and "delivery_parked" in service.log("worker"), seconds=30
    )
    first = Delivery.objects.filter(timer__outcome_of=None, extra=False).exclude(timer__in=held)
    wait_until(lambda: first.filter(finished_at=None).count() == 0)
    # A fault in the middle of a request.
    sql("ALTER TABLE scheduler_timer RENAME COLUMN web_url TO web_url_away")
    try:
        assert send(service, timer_to(host, "/"))[0] == 500
    finally:
        sql("ALTER TABLE scheduler_timer RENAME COLUMN web_url_away TO web_url")
    # The database itself refuses a row, and says which.
    sql("ALTER TABLE scheduler_timer ADD CONSTRAINT nothing_new CHECK (created_at < '2000-01-01') NOT VALID")
    try:
        assert send(service, timer_to(host, "/"))[0] == 500
    finally:
        sql("ALTER TABLE scheduler_timer DROP CONSTRAINT nothing_new")


@pytest.mark.parametrize(("form", "level"), [("json", "INFO"), ("line", "DEBUG")])
def test_no_secret_is_in_any_log_nor_in_sentry(receiver, sql, form, level):
    with Receiver() as sentry, running() as service:
        service.environment |= {
            "LOG_FORMAT": form,
            "LOG_LEVEL": level,
            "SENTRY_DSN": f"http://key@127.0.0.1:{sentry.port}/7",
            "SENTRY_ENVIRONMENT": "a-test",
            "DD_SERVICE": "timers",
        }
        service.start("web", "worker", "beat")
        fail_in_every_way(service, receiver, sql)
        # What beat says of a table that is away.
        sql("ALTER TABLE scheduler_callstop RENAME TO callstop_away")
        try:
            wait_until(lambda: "dispatch_failing" in service.log("beat"))
        finally:
            sql("ALTER TABLE callstop_away RENAME TO scheduler_callstop")
        wait_until(
            lambda: (
                {"django.request", "webtask_scheduler.dispatch.dispatcher"}
                <= {one["logger"] for one in events_of(sentry)}
            )
        )
        for name in ("beat", "worker", "web"):
            service.stop(name)
        logs = {name: service.log(name) for name in ("web", "worker", "beat")}
        sent = events_of(sentry)
    assert len(receiver.calls) >= 7, "the timers were called"
    assert "attempt_ended" in logs["worker"]
    assert "timer_created" in logs["web"]
    assert "Traceback" in logs["web"]
    leaks = {
        (name, place)
        for place, secret in SECRETS.items()
        for name, text in [*logs.items(), ("sentry", json.dumps(sent))]
        if secret in text
    }
    assert leaks == set()
    # The raw envelopes too, with whatever else they may have.
    for call in sentry.calls:
        body = gzip.decompress(call.body) if call.headers.get("Content-Encoding") == "gzip" else call.body
        assert not [place for place, secret in SECRETS.items() if secret.encode() in body]
    _check_sent(sent)
    if form == "json":
        _check_json(logs)


def _check_sent(sent):
    for one in sent:
        assert (one["environment"], one["release"]) == ("a-test", __version__)
        assert not {"request", "breadcrumbs", "user", "extra", "modules"} & {
            name for name, value in one.items() if value
        }
        for value in one.get("exception", {}).get("values", []):
            assert not any("vars" in frame for frame in value["stacktrace"]["frames"])
    by_logger = {one["logger"]: one for one in sent}
    web = by_logger["django.request"]
    assert web["tags"]["request_id"] == "the-request"
    assert {value["type"] for value in web["exception"]["values"]} & {
        "UndefinedColumn",
        "ProgrammingError",
        "IntegrityError",
    }
    assert any(value["value"].startswith('column "web_url"') for value in by_type(sent, "ProgrammingError"))
    beat = by_logger["webtask_scheduler.dispatch.dispatcher"]
    assert (beat["tags"]["event"], beat["tags"]["what"]) == ("dispatch_failing", "database")
    # A failed attempt is the receiver's fault and no news for Sentry.
    assert "attempt_ended" not in json.dumps(sent)


def by_type(sent, kind):
    return [value for one in sent for value in one.get("exception", {}).get("values", []) if value["type"] == kind]


def _check_json(logs):
    for name in ("web", "worker", "beat"):
        ours = [json.loads(line) for line in logs[name].splitlines() if line.startswith("{")]
        assert ours, name
        assert {one["dd.service"] for one in ours} == {"timers"}
    web = [json.loads(line) for line in logs["web"].splitlines() if line.startswith("{")]
    worker = [json.loads(line) for line in logs["worker"].splitlines() if line.startswith("{")]
    made = {
        one["timer"] for one in web if one.get("event") == "timer_created" and one.get("request_id") == "the-request"
    }
    ended = {
        one["timer"] for one in worker if one.get("event") == "attempt_ended" and one.get("request_id") == "the-request"
    }
    assert len(made) >= 10
    # Callbacks are timers of their own and carry the same id.
    assert {str(pk) for pk in Timer.objects.filter(outcome_of=None, pk__in=ended).values_list("pk", flat=True)} <= made
    assert len(ended & made) >= 9


def python(script, **environment):
    nowhere = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    # It loads the application as another server than ours would.
    nowhere["WEBTASK_PUBLISHED_ON"] = "127.0.0.1"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        env=os.environ | nowhere | {"DJANGO_SETTINGS_MODULE": "config.settings.local"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done, time.monotonic() - begun


LOADED = """
import sys, django
django.setup()
import config.wsgi, webtask_scheduler.scheduler.tasks, webtask_scheduler.scheduler.beat
# The Redis client imports OpenTelemetry's metrics by itself.
ours = {"sentry_sdk", "opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf"}
print(sorted(sys.modules.keys() & ours))
"""


@pytest.mark.parametrize(
    ("environment", "loaded"),
    [
        ({}, "[]"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, "[]"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, "[]"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "['opentelemetry.sdk.trace']"),
        ({"SENTRY_DSN": "http://key@127.0.0.1:1/7"}, "['sentry_sdk']"),
    ],
)
def test_libraries_are_loaded_only_where_they_are_used(environment, loaded):
    assert python(LOADED, **environment)[0].stdout.strip() == loaded


AWAY = """
import logging, time, django
django.setup()
from webtask_scheduler.telemetry.events import event
before = time.monotonic()
for number in range(1000):
    event("it_happened", level=logging.ERROR, number=number)
print(time.monotonic() - before)
"""


@pytest.mark.parametrize("away", ["refuses", "hangs"])
def test_sentry_that_is_away_neither_slows_nor_repeats(away):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if away == "hangs" else 1
        done, seconds = python(AWAY, SENTRY_DSN=f"http://key@127.0.0.1:{port}/7")
    # If each waited, it would take a quarter of an hour.
    assert float(done.stdout) < 20, "a thousand errors"
    assert seconds < 60
    lines = done.stderr.splitlines()
    assert len(lines) == 1000
    assert all("it_happened" in line for line in lines)
