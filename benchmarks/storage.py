"""Measures what a timer takes on disk: while it waits, and after it was called."""

from typing import Any

from benchmarks import report, rig
from benchmarks.firing import Ours, at_once, lateness
from benchmarks.report import Result, bar, table

PATIENCE_SECONDS = 600.0
HOSTS = 100

SIZES = """
SELECT relname, pg_table_size(oid)::bigint, pg_indexes_size(oid)::bigint FROM pg_class
 WHERE relkind = 'r' AND relname IN ('django_celery_beat_clockedschedule', 'django_celery_beat_periodictask',
       'scheduler_timer', 'scheduler_delivery', 'scheduler_attempt')
"""
# Bytes of rows and of indexes, by table.
Sizes = dict[str, tuple[int, int]]


def measure(sites: rig.Sites, *, count: int) -> Result:
    site = sites.bare("storage").migrate()
    ours = Ours(site, "ours")
    record = report.result(
        "storage",
        question=f"How many bytes on disk do {count:,} timers take while they wait, and once they were called?",
        settings=site.settings(),
        processes=ours.service().commands(),
    )
    record["size"] = {"timers": count, "hosts": HOSTS}
    none = sizes(site)
    begun = log(site)
    site.fill(count)
    logged = {"created": log(site) - begun}
    states = {"waiting": sizes(site)}
    site.empty()
    with rig.Receiver(HOSTS) as receiver:
        plan = at_once(count)
        begun = log(site)
        rig.say(f"Calling {count} timers")
        fired = ours.fire(receiver, plan, patience=PATIENCE_SECONDS)
        one = lateness(plan, fired)
    logged["created and called"] = log(site) - begun
    site.query("VACUUM ANALYZE")
    states["called"] = sizes(site)
    site.query("VACUUM FULL")
    states["called, rewritten"] = sizes(site)
    last = one["late_ms"][-1] / 1000 if one["late_ms"] else 0.0
    rig.say(f"  {len(one['late_ms'])} called in {last:.1f} s; {rig.disturbance(fired.machine)}")
    record["runs"].append({"subject": "ours", "run": 1, "machine": fired.machine, "cpu": fired.cpu, "seconds": last})
    show_sizes(record, {name: each(none, now, count) for name, now in states.items()})
    table(
        record,
        "Write-ahead log, whole pages after checkpoints included",
        ["", "bytes for each timer"],
        [[name, round(size / count)] for name, size in logged.items()],
    )
    table(
        record,
        f"Processor time while {count:,} were called in {last:.1f} s",
        ["process", "ms for each timer"],
        [[process, spent / count * 1000] for process, spent in fired.cpu.items()],
    )
    bar(record, "storage: each was called", limit="0 lost", value=f"{one['lost']} lost", met=not one["lost"])
    return record


def sizes(site: rig.Site) -> Sizes:
    return {name: (rows, indexes) for name, rows, indexes in site.query(SIZES)}


def log(site: rig.Site) -> int:
    """Return how much was ever written to the write-ahead log."""
    return int(site.query("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0])


def each(before: Sizes, after: Sizes, count: int) -> Sizes:
    """Return what one timer adds."""
    return {
        name: (round((rows - before[name][0]) / count), round((indexes - before[name][1]) / count))
        for name, (rows, indexes) in after.items()
    }


def show_sizes(record: Result, states: dict[str, Sizes]) -> None:
    names = sorted(states["waiting"])
    rows: list[list[Any]] = [[name, *[size for state in states.values() for size in state[name]]] for name in names]
    sums = ["all", *[sum(row[column] for row in rows) for column in range(1, len(rows[0]))]]
    table(
        record,
        'Bytes for each timer; "called" has the room that updates left, "rewritten" is after VACUUM FULL',
        ["table", *[f"{name}: {what}" for name in states for what in ("rows", "indexes")]],
        [*rows, sums],
    )
    table(
        record,
        "Rows and indexes together",
        ["", "bytes for each timer", "timers in 1 GiB"],
        [
            [name, total := sum(rows + indexes for rows, indexes in state.values()), 2**30 // total]
            for name, state in states.items()
        ],
    )
