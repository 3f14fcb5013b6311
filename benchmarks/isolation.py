"""Whatever a crowd of timers does, all others are called on time: how late are they with and without it?

Every scenario has a steady rate of timers to quick hosts, first alone and then beside its crowd, in one run of the
service as shipped. None of them goes to a host of the crowd.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks import report, rig
from benchmarks.firing import Fired, Plan, lateness, summary
from benchmarks.report import Result, bar, median, table
from benchmarks.resolver import HANGING, QUICK, Resolver, ResolverError

# The hosts of the others; those of the crowd follow them.
HOSTS = 20
# Where names are looked up, the others have so many: each is called so rarely that its connection is not kept.
NAMES = 200
WARM_SECONDS = 10.0
WITHOUT_SECONDS = 20.0
# Deliveries are claimed before their due time, so those due this shortly before the crowd already compete with it.
AHEAD_SECONDS = 2.0
# After the last moment. Whatever was not called by then counts as later than all the rest.
PATIENCE_SECONDS = 10.0
# How long storing takes depends on the machine. So all timers are stored for moments about this much later, and are
# moved when they are there; moving takes no longer than so many seconds, and one for so many rows.
STORED_AHEAD_SECONDS = 3600.0
MOVING_SECONDS = 4.0
MOVED_PER_SECOND = 5000.0
MOVE = """
UPDATE scheduler_delivery SET due_at = due_at + %(by)s, next_attempt_at = next_attempt_at + %(by)s;
UPDATE scheduler_timer SET starts_at = starts_at + %(by)s WHERE starts_at IS NOT NULL;
UPDATE django_celery_beat_clockedschedule SET clocked_time = clocked_time + %(by)s
"""
CONNECTIONS = 2
# As many as the API takes at once.
BATCH = 1000

P99_TIMES = 8.0
MAX_MS = 1000.0
# Where one host has very many due: so often may the queue's indexes be read for each of them. A claim that walked over
# all of them at each poll would read thousands.
READS = 20.0
READS_NAME = "queue index entries"
COUNTING = {
    READS_NAME: "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
    " WHERE indexrelname IN ('delivery_lane_idx', 'delivery_flow_idx')",
    "deliveries updated": "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'scheduler_delivery'",
    "transactions": "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
}
ATTEMPTS = """
SELECT web_url, sum(attempts) FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = timer_id
 GROUP BY web_url HAVING sum(attempts) > 0
"""
BULK: Sequence[Mapping[str, Any]] = [
    {"action": "pause"},
    {"action": "cancel", "dry_run": True},
    {"action": "resume"},
    {"action": "cancel", "dry_run": True},
] * 2
BULK_DONE = """
SELECT count(*) FILTER (WHERE finished_at IS NOT NULL), sum(matched), sum(changed) FROM scheduler_bulkoperation
"""
LABEL = {"crowd": "yes"}


def once(moment: datetime) -> dict[str, Any]:
    return {"due_at": moment.isoformat()}


def every_second(moment: datetime) -> dict[str, Any]:
    return {"every": "PT1S", "starts_at": moment.isoformat()}


def hours_later(moment: datetime) -> dict[str, Any]:
    return {"due_at": (moment + timedelta(hours=2)).isoformat(), "labels": LABEL}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of crowd."""

    name: str
    what: str
    count: int
    # How the receiver treats its calls.
    kind: str = ""
    when: Callable[[datetime], Mapping[str, Any]] = once
    more: Mapping[str, Any] = field(default_factory=dict)
    # Whether each of its timers has a host of its own.
    apart: bool = False
    # Whether those hosts are names.
    named: bool = False
    # The bulk operations requested when the crowd is due, without the filter that finds the crowd.
    bulk: Sequence[Mapping[str, Any]] = ()
    # Whether the reads of the queue have a bar.
    reads: bool = False

    @property
    def title(self) -> str:
        return self.what.format(self.count)


SCENARIOS = (
    Scenario("slow800", "{:,} due at one instant to one host that answers in 0.8 s", 3000, kind="/wait/800"),
    Scenario("slow300", "{:,} due at one instant to one host that answers in 0.3 s", 3000, kind="/wait/300"),
    Scenario("hang", "{:,} due at one instant to one host that never answers", 100_000, kind="/hang", reads=True),
    Scenario("quick", "{:,} due at one instant to one quick host", 100_000),
    Scenario(
        "manyhang",
        "{:,} due at one instant to as many hosts that never answer, each with 300 s",
        1000,
        kind="/hang",
        more={"timeout_seconds": 300},
        apart=True,
    ),
    Scenario("names", "{:,} due at one instant to as many names that nobody resolves", 200, apart=True, named=True),
    Scenario("recurring", "{:,} of one host that recur every second", 5000, when=every_second),
    Scenario("bulk", "eight bulk operations over {:,} that wait", 100_000, when=hours_later, bulk=BULK),
)
NAMES_OF_SCENARIOS = tuple(scenario.name for scenario in SCENARIOS)


def measure(sites: rig.Sites, *, only: Sequence[str], scale: float, rate: float, seconds: float, runs: int) -> Result:
    chosen = {one.name: replace(one, count=max(1, round(one.count * scale))) for one in SCENARIOS if one.name in only}
    site = sites.bare("isolation").migrate()
    record = report.result(
        "isolation",
        question=f"{rate:g} timers a second to {HOSTS} quick hosts: how late are they beside a crowd?",
        settings=site.settings(),
        processes=rig.Service(site).commands(),
    )
    record["size"] = {"rate": rate, "seconds without": WITHOUT_SECONDS, "seconds with": seconds, "runs": runs}
    found: dict[str, list[dict[str, Any]]] = {}
    hosts = HOSTS + max((one.count for one in chosen.values() if one.apart and not one.named), default=1)
    with rig.Receiver(hosts) as receiver:
        for number, name in rig.rounds(runs, list(chosen)):
            try:
                one = Run(site, receiver, chosen[name], rate=rate, seconds=seconds).measure()
            except ResolverError as error:
                record["notes"].append(f"{name} is not measured: it takes a name server of its own ({error}).")
                rig.say(f"  {record['notes'][-1]}")
                continue
            found.setdefault(name, []).append(one)
            say(one)
            record["runs"].append({"subject": name, "run": number, **one, "machine": one["with"]["machine"]})
    show(record, chosen, found)
    for name, each in found.items():
        add_bars(record, chosen[name], each)
    return record


class Run:
    """One scenario once: a service of its own on emptied tables."""

    def __init__(
        self, site: rig.Site, receiver: rig.Receiver, scenario: Scenario, *, rate: float, seconds: float
    ) -> None:
        self._site = site
        self._receiver = receiver
        self._scenario = scenario
        self._rate = rate
        self._seconds = seconds
        self._crowd_after = WITHOUT_SECONDS + AHEAD_SECONDS
        # (seconds after the beginning, path): before the first moment the warm-up, which is not counted.
        self._plan: Plan = [
            (number / rate, f"/t/{number}")
            for number in range(-round(WARM_SECONDS * rate), round((self._crowd_after + seconds) * rate))
        ]

    def measure(self) -> dict[str, Any]:
        """Run the scenario and return its figures. Raises BenchmarkError, ResolverError."""
        self._site.empty()
        with ExitStack() as stack:
            resolver = None
            if self._scenario.named:
                resolver = stack.enter_context(Resolver(self._site.directory, hosts=HOSTS))
            fired, costs = self._fire(resolver.prefix if resolver else ())
            bulk = self._site.query(BULK_DONE)[0] if self._scenario.bulk else ()
            asked = resolver.asked if resolver else set()
        crowd_at = fired.begin + self._crowd_after
        calls = [at for at, path in fired.arrivals if "/c/" in path and crowd_at <= at < crowd_at + self._seconds]
        windows = {
            "without": [item for item in self._plan if 0 <= item[0] < WITHOUT_SECONDS],
            "with": [item for item in self._plan if item[0] >= WITHOUT_SECONDS],
        }
        found: dict[str, Any] = {}
        for (name, plan), cost in zip(windows.items(), costs, strict=True):
            one = lateness(plan, fired)
            found[name] = one | {"late_ms": summary(one)} | cost
        return found | {
            "crowd": self._scenario.count,
            "calls": len(calls),
            "calls a second": len(calls) / self._seconds,
            "burnt": self._burnt(fired, asked),
            "bulk": f"{bulk[0]} of {len(BULK)} ended, {bulk[1]:,} matched, {bulk[2]:,} changed" if bulk else "",
        }

    def _fire(self, worker_prefix: Sequence[str]) -> tuple[Fired, list[dict[str, Any]]]:
        """Have everything called; return the calls, and what it cost without and with the crowd."""
        with rig.Service(self._site, worker_prefix=worker_prefix) as service:
            self._receiver.take()
            begin = self._store(service)
            crowd_at = begin + self._crowd_after
            bulk = self._bulk(service, crowd_at) if self._scenario.bulk else None
            sleep_until(begin)
            costs = Costs(service)
            sleep_until(begin + WITHOUT_SECONDS)
            without, costs = costs.read(), Costs(service)
            sleep_until(crowd_at + self._seconds)
            beside = costs.read()
            if bulk and any(status != 202 for _, _, status, _ in rig.finish_client(bulk, 10.0)):
                raise rig.BenchmarkError("A bulk operation was refused.")
            arrivals = self._arrivals(until=crowd_at + self._seconds + PATIENCE_SECONDS)
        # The service has ended: what was started was called, or interrupted in its call.
        arrivals += self._receiver.take()
        return Fired(begin, arrivals, beside["machine"]), [without, beside]

    def _url(self, path: str) -> str:
        number = int(path.rpartition("/")[2]) % NAMES
        if self._scenario.named:
            return f"http://{QUICK.format(number)}:{self._receiver.port}{path}"
        return self._receiver.url(path, number % HOSTS)

    def _store(self, service: rig.Service) -> float:
        """Store the crowd over HTTP, as it would come, and the others; return the moment at which the others begin."""
        stored_for = time.time() + STORED_AHEAD_SECONDS
        self._site.schedule([(stored_for + offset, self._url(path)) for offset, path in self._plan])
        self._store_crowd(service, datetime.fromtimestamp(stored_for + self._crowd_after, UTC))
        first = time.time() + MOVING_SECONDS + (self._scenario.count + len(self._plan)) / MOVED_PER_SECOND
        begin = first + WARM_SECONDS
        self._site.query(MOVE, by=timedelta(seconds=begin - stored_for))
        # Otherwise it would be done sooner or later in the measurement.
        self._site.query("VACUUM ANALYZE")
        rig.say(f"  stored {first - time.time():.1f} s before the first is due")
        if time.time() > first - 0.5:
            raise rig.BenchmarkError("Moving the timers took longer than thought.")
        return begin

    def _store_crowd(self, service: rig.Service, moment: datetime) -> None:
        scenario = self._scenario
        timers = []
        for number in range(scenario.count):
            path = f"{scenario.kind}/c/{number}"
            url = self._receiver.url(path, HOSTS + number if scenario.apart else HOSTS)
            if scenario.named:
                url = f"http://{HANGING.format(number)}:{self._receiver.port}{path}"
            timers.append({"web_url": url, **scenario.when(moment), **scenario.more})
        bodies = [json.dumps({"timers": timers[start : start + BATCH]}) for start in range(0, len(timers), BATCH)]
        order = {"path": "/timer/batch", "connections": CONNECTIONS, "bodies": bodies, "at": [0.0] * len(bodies)}
        answered = rig.finish_client(service.create(order), STORED_AHEAD_SECONDS / 2)
        refused = [status for _, _, status, _ in answered if status != 201]
        if refused:
            raise rig.BenchmarkError(f"{len(refused)} of {len(bodies)} batches were refused, with {refused[0]}.")

    def _bulk(self, service: rig.Service, crowd_at: float) -> Any:
        """Start the client that asks for the bulk operations when the time has come."""
        label = "=".join(next(iter(LABEL.items())))
        bodies = [json.dumps({**action, "filter": {"label": label}}) for action in self._scenario.bulk]
        return service.create(
            {"path": "/timer/bulk", "connections": 1, "at": [crowd_at] * len(bodies), "bodies": bodies}
        )

    def _arrivals(self, *, until: float) -> list[tuple[float, str]]:
        """Wait until all the others were called, and return the calls so far."""
        arrivals = self._receiver.take()
        waiting = {path for _, path in self._plan}
        while waiting := waiting.difference(path for _, path in arrivals):
            if time.time() > until:
                break
            time.sleep(0.2)
            arrivals += self._receiver.take()
        return arrivals

    def _burnt(self, fired: Fired, asked: set[str]) -> int:
        """Return how many attempts were counted without a call at the receiver.

        A call to a name that hangs arrives nowhere: there, without a query for that name.
        """
        calls = Counter(path for _, path in fired.arrivals)
        burnt = 0
        for url, attempts in self._site.query(ATTEMPTS):
            host, _, path = url.removeprefix("http://").partition("/")
            if "/c/" in url and self._scenario.named:
                burnt += int(attempts) if host.partition(":")[0] not in asked else 0
            else:
                burnt += max(0, int(attempts) - calls[f"/{path}"])
        return burnt


class Costs:
    """What the machine and the processes spend from here on, and what PostgreSQL counts."""

    def __init__(self, service: rig.Service) -> None:
        self._service = service
        self._meter, self._spent, self._counted = rig.Meter(), service.cpu_seconds(), self._count()

    def read(self) -> dict[str, Any]:
        cpu = {name: spent - self._spent[name] for name, spent in self._service.cpu_seconds().items()}
        counted = {name: number - self._counted[name] for name, number in self._count().items()}
        return {"machine": self._meter.read(), "cpu": cpu, "counted": counted}

    def _count(self) -> dict[str, int]:
        return {name: int(self._service.site.query(sql)[0][0]) for name, sql in COUNTING.items()}


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def say(one: Mapping[str, Any]) -> None:
    for name in ("without", "with"):
        values = one[name]["late_ms"]
        rig.say(
            f"  {name}: p50 {report.text(values['p50'])} ms, p99 {report.text(values['p99'])} ms,"
            f" max {report.text(values['max'])} ms, early {one[name]['early']}, not called {one[name]['lost']};"
            f" {rig.disturbance(one[name]['machine'])}"
        )
    crowd = f"{one['calls a second']:.1f} calls a second, {one['burnt']} attempts counted without a call"
    rig.say(f"  crowd: {', '.join(filter(None, [crowd, one['bulk']]))}")


def show(record: Result, chosen: Mapping[str, Scenario], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    table(record, "The crowds", ["scenario", "crowd"], [[name, scenario.title] for name, scenario in chosen.items()])
    late: list[list[Any]] = []
    cost: list[list[Any]] = []
    crowds: list[list[Any]] = []
    processes: list[str] = []
    every = [(f"{name}, {number}", one) for name, runs in found.items() for number, one in enumerate(runs, 1)]
    for name, one in every:
        for window in ("without", "with"):
            about = one[window]
            processes = list(about["cpu"])
            values = [about["late_ms"][key] for key in ("p50", "p90", "p99", "max")]
            counts = [about[key] for key in ("timers", "early", "lost", "duplicates")]
            late.append([f"{name}, {window}", *values, *counts])
            machine = [about["machine"][key] for key in ("seconds", "steal_percent", "others_percent")]
            cost.append([f"{name}, {window}", *machine, *about["cpu"].values(), *about["counted"].values()])
        crowds.append([name, *(one[key] for key in ("calls", "calls a second", "burnt", "bulk"))])
    table(
        record,
        "Milliseconds from the promised moment to the call, of the others, without and with the crowd",
        ["scenario, run", "p50", "p90", "p99", "max", "timers", "early", "not called", "twice"],
        late,
    )
    table(
        record,
        "What it cost, without and with the crowd: seconds of the clock, percent of the machine that its host withheld"
        " and that others used, seconds of processor time, and what PostgreSQL counted",
        ["scenario, run", "seconds", "stolen %", "others %", *processes, *COUNTING],
        cost,
    )
    table(
        record,
        "What the crowd got while the others were watched",
        ["scenario, run", "calls", "a second", "attempts counted without a call", "bulk operations"],
        crowds,
    )
    record["notes"].append("That a burst to one quick host still drains at full speed, `./scripts/bench burst` shows.")


def add_bars(record: Result, scenario: Scenario, runs: Sequence[Mapping[str, Any]]) -> None:
    name = scenario.name
    without, value = (median([run[window]["late_ms"]["p99"] for run in runs]) for window in ("without", "with"))
    bar(
        record,
        f"{name}: the others' p99",
        limit=f"{P99_TIMES:g} x the same without = {P99_TIMES * without:.1f} ms",
        value="too many not called" if math.isnan(value) else f"{value:.1f} ms (x {value / without:.1f})",
        met=value <= P99_TIMES * without,
    )
    each = [run["with"]["late_ms"]["max"] for run in runs]
    # A maximum of what was not called at all is not a number.
    worst = math.nan if any(map(math.isnan, each)) else max(each)
    bar(
        record,
        f"{name}: the others' max",
        limit=f"{MAX_MS:g} ms",
        value="some not called" if math.isnan(worst) else f"{worst:.1f} ms",
        met=worst <= MAX_MS,
    )
    early, lost = (sum(run[w][key] for run in runs for w in ("without", "with")) for key in ("early", "lost"))
    burnt = sum(run["burnt"] for run in runs)
    bar(
        record,
        f"{name}: early, not called, attempts counted without a call",
        limit="0",
        value=f"{early}, {lost}, {burnt}",
        met=not (early or lost or burnt),
    )
    if scenario.reads:
        reads = median([run["with"]["counted"][READS_NAME] / run["crowd"] for run in runs])
        bar(
            record,
            f"{name}: reads of the queue's indexes for each of the crowd",
            limit=f"{READS:g}",
            value=f"{reads:.1f}",
            met=reads <= READS,
        )
