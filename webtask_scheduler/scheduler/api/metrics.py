"""`/metrics`: what the service does, in Prometheus' text format.

All of it is read from the database, so any web process answers the same, and a restart changes nothing: the counters
from the rows of `queue.rollups`, the present state from `facts`. docs/monitoring lists what is worth watching.
"""

import hmac
import logging
import platform
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import django
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.translation import gettext, gettext_lazy
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from config.database.base import wait_at_most
from webtask_scheduler import __version__
from webtask_scheduler.dispatch.share import WINDOW
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.api.problems import problem_answer
from webtask_scheduler.scheduler.queue import rollups
from webtask_scheduler.scheduler.rules import histogram
from webtask_scheduler.telemetry.events import event

# How long one wait for the database may take: a scrape is given ten seconds, and asks four times.
SCRAPE_SECONDS = 2.0

CLOSED = gettext_lazy(
    "Metrics are for operators. Set METRICS_TOKEN and send it as `Authorization: Bearer …`, or set METRICS_PORT: that"
    " port asks for no token."
)


class _Service(Collector):
    """Reads everything at each scrape."""

    def collect(self) -> Iterator[Metric]:
        begun = time.monotonic()
        build = InfoMetricFamily("webtask_build", "The release that answers.")
        versions = {"version": __version__, "python": platform.python_version(), "django": django.__version__}
        build.add_metric([], versions)
        yield build
        broker = not facts.broker_trouble()
        yield _gauge("webtask_broker_up", "Whether the broker takes messages.", broker)
        try:
            with wait_at_most(SCRAPE_SECONDS):
                ever, found, numbers = rollups.ever(), facts.gather(), facts.count()
        except (OperationalError, InterfaceError):
            connection.close()
            # The rest is not known, and not given.
            yield _gauge("webtask_database_up", "Whether the database answers.", False)
            return
        yield _gauge("webtask_database_up", "Whether the database answers.", True)
        yield from _counters(ever)
        yield from _waiting(found, numbers)
        yield from _processes(found, numbers)
        seconds = time.monotonic() - begun
        yield _gauge("webtask_scrape_seconds", "How long gathering this answer took.", seconds)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))


def _counters(ever: rollups.Counts) -> Iterator[Metric]:
    late = HistogramMetricFamily(
        "webtask_lateness_seconds",
        "From the moment an attempt was meant for to its start: the due time of a first attempt, the end of the wait of"
        " another.",
        labels=["attempt"],
    )
    late.add_metric(["first"], _buckets(ever.first_late), ever.first_late_seconds)
    late.add_metric(["retry"], _buckets(ever.retry_late), ever.retry_late_seconds)
    yield late
    for name, about, counts, seconds in (
        ("call_duration", "From the start of a call to its end.", ever.durations, ever.duration_seconds),
        (
            "claim_delay",
            "From the due time to the claim by a beat; 0 if claimed ahead.",
            ever.claims,
            ever.claim_seconds,
        ),
        (
            "publish_delay",
            "From the due time to the message to a worker.",
            ever.publishes,
            ever.publish_seconds,
        ),
    ):
        yield HistogramMetricFamily(f"webtask_{name}_seconds", about, buckets=_buckets(counts), sum_value=seconds)
    attempts = CounterMetricFamily(
        "webtask_attempts", "Attempts by outcome: success or kind of error.", labels=["outcome"]
    )
    # A newer release may have stored more of them.
    for outcome, count in zip(rollups.OUTCOMES, ever.outcomes, strict=False):
        attempts.add_metric([outcome], count)
    yield attempts
    ended = CounterMetricFamily("webtask_deliveries", "Deliveries that ended, by how.", labels=["state"])
    for state in ("succeeded", "failed", "missed", "cancelled"):
        ended.add_metric([state], getattr(ever, state))
    yield ended
    for name, about, value in (
        ("retries", "Attempts that failed and are followed by another.", ever.retried),
        ("timers_created", "Timers made, callbacks not counted.", ever.created),
        ("put_off", "Times that a worker had no place for a delivery and put it off.", ever.put_off),
        ("reclaimed", "Claims that ran out before a worker started the delivery.", ever.reclaimed),
    ):
        yield CounterMetricFamily(f"webtask_{name}", about, value=value)


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    bounds = [*(repr(bound) for bound in histogram.BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True))


def _waiting(found: facts.Facts, numbers: facts.Numbers) -> Iterator[Metric]:
    counts = {
        "waiting": ("webtask_waiting", "Deliveries that wait for their time, with those that are due."),
        "due": ("webtask_due", "Deliveries that are due and not claimed."),
        "backlog": ("webtask_backlog", f"Deliveries due for more than {facts.BACKLOG_SECONDS:g} s and not claimed."),
        "claimed": ("webtask_claimed", "Deliveries claimed and not started."),
        "running": ("webtask_running", "Calls under way."),
        "held": ("webtask_held", "Deliveries held because calls are stopped."),
        "paused": ("webtask_paused", "Deliveries of paused timers."),
        "dead": ("webtask_dead_letters", "Failed deliveries that are kept and not replayed."),
    }
    estimate = GaugeMetricFamily(
        "webtask_count_is_estimate",
        f"1 for a count of {facts.COUNT_MOST} or more, which is the planner's estimate.",
        labels=["count"],
    )
    for name, (metric, about) in counts.items():
        yield _gauge(metric, about, getattr(numbers, name))
        estimate.add_metric([metric.removeprefix("webtask_")], name in numbers.estimated)
    yield estimate
    yield _gauge("webtask_late", "Deliveries past their moment and not being called, wherever they are.", found.late)
    yield _gauge("webtask_oldest_due_seconds", "How long the oldest of them is past its moment.", found.late_seconds)
    yield _gauge("webtask_window_size", "Deliveries that may be claimed and not started.", WINDOW)
    yield _gauge("webtask_put_off_deliveries", "Deliveries put off that are past their moment.", found.put_off)
    yield _gauge("webtask_put_off_hosts", "Hosts to which they go.", numbers.put_off_hosts)
    yield _gauge("webtask_call_stops", "Hosts to which calls are stopped.", len([h for h in found.stops if h]))
    yield _gauge("webtask_all_calls_stopped", "Whether all calls are stopped.", found.all_stopped)


def _processes(found: facts.Facts, numbers: facts.Numbers) -> Iterator[Metric]:
    yield _gauge("webtask_beats", "Beats at work.", numbers.beats)
    yield _gauge(
        "webtask_beat_leads", "Whether a beat leads: runs operators' own tasks and upkeep.", bool(numbers.leader)
    )
    leader = GaugeMetricFamily("webtask_beat_leader", "The beat that leads.", labels=["beat"])
    if numbers.leader:
        leader.add_metric([numbers.leader], 1.0)
    yield leader
    if found.beat_seconds is not None:
        yield _gauge("webtask_beat_seen_seconds", "How long ago a beat was last seen.", found.beat_seconds)
    workers = GaugeMetricFamily("webtask_workers", "Workers at work.", labels=["kind"])
    live = [worker for worker in found.workers if worker.is_live]
    for kind in (facts.CALLS, facts.UPKEEP):
        workers.add_metric([kind], sum(worker.kind == kind for worker in live))
    yield workers
    yield _gauge(
        "webtask_workers_stuck", "Workers of which a thread does not move.", sum(bool(w.trouble) for w in live)
    )
    yield _gauge("webtask_worker_slots", "Calls that workers begin side by side.", numbers.slots)
    yield _gauge("webtask_worker_calls", "Calls under way, as workers report them.", sum(w.running for w in live))
    yield _gauge("webtask_worker_held", "Deliveries that workers hold, waiting or called.", sum(w.held for w in live))


registry = CollectorRegistry(auto_describe=False)
registry.register(_Service())


def _answer(accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


@csrf_exempt
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer an operator's scrape; anybody's where the settings leave it open, as those of a laptop do."""
    if settings.METRICS_TOKEN:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {settings.METRICS_TOKEN}".encode()):
            answer = problem_answer(
                HTTPStatus.UNAUTHORIZED, gettext("Send METRICS_TOKEN as `Authorization: Bearer …`.")
            )
            answer["WWW-Authenticate"] = "Bearer"
            return answer
    elif not settings.METRICS_OPEN:
        return problem_answer(HTTPStatus.FORBIDDEN, str(CLOSED))
    body, content_type = _answer(request.headers.get("Accept", ""))
    return HttpResponse(body, content_type=content_type)


# A port of its own


class _Server(ThreadingMixIn, WSGIServer):
    """Shares its port with the other web processes of this machine; whichever is asked answers the same."""

    daemon_threads = True
    allow_reuse_port = True

    def __init__(self, address: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)
        self.set_app(_application)

    def server_bind(self) -> None:
        """Bind without looking up a name for the address, as the parent class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


class _Handler(WSGIRequestHandler):
    # A client that says nothing must not keep a thread for ever.
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in http.server
        """Log no line for each scrape."""


def _application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    status, content_type = "200 OK", "text/plain; charset=utf-8"
    if environ.get("PATH_INFO") not in ("/metrics", "/metrics/"):
        status, body = "404 Not Found", b"Metrics are at /metrics.\n"
    elif environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
        status, body = "405 Method Not Allowed", b"Metrics are for looking.\n"
    else:
        try:
            body, content_type = _answer(environ.get("HTTP_ACCEPT", ""))
        except Exception:
            event("scrape_failed", level=logging.ERROR, exc_info=True)
            status, body = "500 Internal Server Error", b"The log says why.\n"
        finally:
            # Each request has a thread of its own, which ends.
            connection.close()
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]


def listen() -> None:
    """Answer `/metrics` at METRICS_PORT too, if it is set, in a thread of this web process."""
    if not settings.METRICS_PORT:
        return
    try:
        server = _Server(settings.METRICS_ADDRESS, settings.METRICS_PORT)
    except OSError as error:
        # The service itself goes on; the alert for a scrape that fails tells of it.
        event("metrics_port_refused", level=logging.ERROR, port=settings.METRICS_PORT, error=str(error))
        return
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


urlpatterns = [path("metrics", metrics)]
