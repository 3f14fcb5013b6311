"""One measured run: timers due at planned moments, fired by some engine, and what came of them at the receiver."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks import rig
from benchmarks.rig import Receiver, Service, Site

# Timers before the measured ones, so that every connection is open and every page in memory.
WARM_SECONDS = 2.0
# For each browser.
OPENING_SECONDS = 3.0
# How long a run waits for calls after the last due time, and for a duplicate after the last call.
PATIENCE_SECONDS = 30.0
DUPLICATE_SECONDS = 1.5
SCRAPE_SECONDS = 6.0

# (seconds after the beginning, path)
Plan = Sequence[tuple[float, str]]


@dataclass
class Fired:
    """The result of one run."""

    begin: float
    arrivals: list[tuple[float, str]]
    machine: dict[str, float]
    cpu: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    created: list[tuple[float, float, int, int]] = field(default_factory=list)
    # What `/metrics` counted in the run: cumulative counts of lateness by upper bound; empty if it was not asked.
    scraped: dict[str, int] = field(default_factory=dict)
    # What pages that were watched asked for meanwhile.
    asked: int = 0


class Engine(Protocol):
    """Ours, or a peer: makes timers of a plan, and has them called."""

    name: str

    def fire(self, receiver: Receiver, plan: Plan, *, patience: float = PATIENCE_SECONDS) -> Fired: ...


def steady(rate: float, seconds: float) -> Plan:
    """Plan so many a second at even distances, after a warm-up that is not counted."""
    warm = [(-WARM_SECONDS + number / rate, f"/w/{number}") for number in range(round(WARM_SECONDS * rate))]
    return warm + [(number / rate, f"/t/{number}") for number in range(round(seconds * rate))]


def host_of(path: str) -> int:
    """Return the number of the host that a path of a plan goes to, before the receiver's number of hosts is taken."""
    return int(path.rpartition("/")[2])


def at_once(count: int) -> Plan:
    return [(0.0, f"/t/{number}") for number in range(count)]


def lateness(plan: Plan, fired: Fired) -> dict[str, Any]:
    """Compare the counted timers of a plan with the calls: how late in ms, early, lost, called twice."""
    due = {path: fired.begin + offset for offset, path in plan if path.startswith("/t/")}
    calls = [(at, path) for at, path in fired.arrivals if path in due]
    first: dict[str, float] = {}
    for at, path in calls:
        first.setdefault(path, at)
    return {
        "timers": len(due),
        "late_ms": sorted(round((at - due[path]) * 1000, 2) for path, at in first.items()),
        "early": sum(at < due[path] for at, path in calls),
        "lost": len(due) - len(first),
        "duplicates": sum(count - 1 for count in Counter(path for _, path in calls).values()),
    }


def summary(found: Mapping[str, Any]) -> dict[str, float]:
    """Return percentiles over all timers of a run; a timer that was not called in time counts as the latest."""
    late = [*found["late_ms"], *[math.nan] * found["lost"]]

    def at(percent: float) -> float:
        return late[max(0, math.ceil(len(late) * percent / 100) - 1)] if late else math.nan

    return {"min": at(0), "p50": at(50), "p90": at(90), "p99": at(99), "max": at(100)}


class Ours:
    """The service as shipped, beside a site; optionally while timers are created, or while browsers watch its pages.

    `counting` names what the run is to count by PostgreSQL's own counters, each by a query for one number. With
    `scraping`, `/metrics` is read before and after.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        *,
        creating: float = 0.0,
        workers: int = 1,
        beats: int = 1,
        counting: Mapping[str, str] | None = None,
        scraping: bool = False,
        watching: int = 0,
        plainly: bool = False,
        **variables: str,
    ) -> None:
        self.site = site
        self.name = name
        self._creating = creating
        self._counting = counting or {}
        self._scraping = scraping
        self._watching = watching
        self._plainly = plainly
        self._workers = workers
        self._beats = beats
        self._variables = variables

    def service(self) -> Service:
        return Service(self.site, workers=self._workers, beats=self._beats, **self._variables)

    def fire(self, receiver: Receiver, plan: Plan, *, patience: float = PATIENCE_SECONDS) -> Fired:
        with self.service() as service:
            receiver.take()
            # Storing them in bulk takes a moment, starting a process for it too.
            begin = time.time() + 8.0 + WARM_SECONDS + len(plan) / 2000 + OPENING_SECONDS * self._watching
            self.site.schedule([(begin + offset, receiver.url(path, host_of(path))) for offset, path in plan])
            if time.time() > begin + plan[0][0] - 0.5:
                raise rig.BenchmarkError("Storing the timers took longer than thought.")
            scraped = service.first_late() if self._scraping else {}
            last = begin + max(offset for offset, _ in plan)
            orders = self._orders(receiver, begin, last)
            client = service.create(orders) if orders else None
            watchers = service.watch(self._watching, plainly=self._plainly) if self._watching else None
            if time.time() > begin:
                raise rig.BenchmarkError("Opening the pages took longer than thought.")
            time.sleep(max(0.0, begin - time.time()))
            meter, spent, counted = rig.Meter(), service.cpu_seconds(), self._count()
            wanted = sum(not path.startswith("/hang") for _, path in plan)
            wanted += sum("/z/" in body for body in orders["bodies"]) if orders else 0
            receiver.wait_for(wanted, until=last + patience)
            machine = meter.read()
            counted = {name: number - counted[name] for name, number in self._count().items()}
            cpu = {name: seconds - spent.get(name, 0.0) for name, seconds in service.cpu_seconds().items()}
            asked = rig.finish_watchers(watchers, patience) if watchers else 0
            created = rig.finish_client(client, patience) if client else []
            time.sleep(DUPLICATE_SECONDS)
            self._wait_for_records(begin, last, until=time.time() + patience)
            if self._scraping:
                # Processes store what they counted every five seconds.
                time.sleep(SCRAPE_SECONDS)
                scraped = {bound: count - scraped[bound] for bound, count in service.first_late().items()}
            return Fired(begin, receiver.take(), machine, cpu, counted, created, scraped, asked)

    def _count(self) -> dict[str, int]:
        return {name: int(self.site.query(sql)[0][0]) for name, sql in self._counting.items()}

    def _orders(self, receiver: Receiver, begin: float, last: float) -> dict[str, Any]:
        """What the client creates meanwhile: by turns a timer for now and one for later."""
        if not self._creating:
            return {}
        moments = [begin + number / self._creating for number in range(int((last - begin) * self._creating))]
        bodies = [
            json.dumps({"seconds": 0, "web_url": receiver.url(f"/z/{number}", number)})
            if number % 2
            else json.dumps({"hours": 2, "web_url": receiver.url(f"/later/{number}", number)})
            for number in range(len(moments))
        ]
        return {"path": "/timer", "connections": 4, "at": moments, "bodies": bodies}

    def _wait_for_records(self, begin: float, last: float, *, until: float) -> None:
        """Wait until every answered call of this run is recorded."""
        while self.site.query(OPEN, begin - WARM_SECONDS - 1, last + 1)[0][0] and time.time() < until:
            time.sleep(0.1)


OPEN = """
SELECT count(*) FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE due_at BETWEEN to_timestamp(%s) AND to_timestamp(%s) AND finished_at IS NULL AND web_url NOT LIKE '%%/hang/%%'
"""
