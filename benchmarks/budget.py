"""What a timer costs: processor time for each delivery and each creation, as a ratio to what it cannot do without.

A delivery is held against one bare `requests` call, a creation against its share of one SQL statement that stores the
same rows. Both are taken in the same run, so that the ratio holds on a machine whose speed changes.
"""

import json
import resource
from collections.abc import Mapping
from typing import Any

import psycopg2  # type: ignore[import-untyped]

from benchmarks import create, report, rig
from benchmarks.burst import bare
from benchmarks.firing import Ours, at_once
from benchmarks.report import Result, median, table

COUNT = 3000
BATCH = 500
CONNECTIONS = 8
PATIENCE_SECONDS = 60.0
PROCESSES = ("web", "worker", "beat", "postgres")


def measure(sites: rig.Sites, *, runs: int, count: int = COUNT) -> Result:
    site = sites.ours()
    ours = Ours(site, "ours")
    settings = site.settings()
    threads = int(settings["WEBTASK_CALLERS"])
    record = report.result(
        "budget",
        question=f"What do {count:,} deliveries and {count:,} creations cost, beside as many bare `requests` calls and"
        " one SQL statement for every 500?",
        settings=settings,
        processes=ours.service().commands(),
    )
    record["size"] = {"timers": count, "runs": runs}
    spent: dict[str, list[Mapping[str, float]]] = {"delivery": [], "creation": []}
    with rig.Receiver(100) as receiver:
        for number, subject in rig.rounds(runs, ["delivery", "creation"]):
            if subject == "delivery":
                floor = _bare(receiver, threads=threads, count=count)
                cost = ours.fire(receiver, at_once(count), patience=PATIENCE_SECONDS).cpu
            else:
                floor, cost = _creations(site, count=count)
            milliseconds = {name: 1000 * cost.get(name, 0.0) / count for name in PROCESSES}
            spent[subject].append(milliseconds | {"floor": 1000 * floor / count})
            record["runs"].append({"subject": subject, "run": number, **spent[subject][-1]})
            rig.say("  " + ", ".join(f"{name} {value:.3f} ms" for name, value in spent[subject][-1].items()))
    for subject, floor_name in (("delivery", "a bare call"), ("creation", "the statement")):
        rows: list[list[Any]] = []
        for name in (*PROCESSES, "together"):
            each = [sum(one[key] for key in PROCESSES) if name == "together" else one[name] for one in spent[subject]]
            ratios = [value / one["floor"] for value, one in zip(each, spent[subject], strict=True)]
            rows.append([name, median(each), median(ratios)])
        floors = [one["floor"] for one in spent[subject]]
        title = f"A {subject}: processor time, in milliseconds and times that of {floor_name} ({median(floors):.3f} ms)"
        table(record, title, ["process", "ms", "ratio"], rows)
    return record


def _bare(receiver: rig.Receiver, *, threads: int, count: int) -> float:
    """Return the processor time of bare calls, without that of starting the process that makes them."""

    def spent(due: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        bare(receiver, due=due, processes=1, threads=threads)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return spent(count + 1) - spent(1)


def _creations(site: rig.Site, *, count: int) -> tuple[float, dict[str, float]]:
    """Return PostgreSQL's time for the bare statement, and every process's for creating over HTTP one by one."""
    with rig.Service(site) as service:
        idle = service.cpu_seconds()
        _insert(site, count=count)
        floor = service.cpu_seconds()["postgres"] - idle["postgres"]
        bodies = [json.dumps(create.body(number)) for number in range(count)]
        before = service.cpu_seconds()
        client = service.create(
            {"path": "/timer", "connections": CONNECTIONS, "bodies": bodies, "at": [0.0] * len(bodies)}
        )
        answered = rig.finish_client(client, PATIENCE_SECONDS)
        if any(status != 201 for _, _, status, _ in answered):
            raise rig.BenchmarkError("A timer was not created.")
        cost = {name: seconds - before[name] for name, seconds in service.cpu_seconds().items()}
    return floor, cost


def _insert(site: rig.Site, *, count: int) -> None:
    items = [create.body(number) for number in range(BATCH)]
    arguments = [
        [item["web_url"] for item in items],
        ["127.0.0.1:9"] * BATCH,
        [7200.0 + item["seconds"] for item in items],
    ]
    connection = psycopg2.connect(site.database.url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for _ in range(count // BATCH):
                cursor.execute(create.INSERT, arguments)
    finally:
        connection.close()
