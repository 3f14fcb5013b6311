"""Measures how late timers are called while those that ended long ago are being deleted."""

import sys
from typing import Any

from benchmarks import lateness, report, rig
from benchmarks.firing import PATIENCE_SECONDS, Fired, Ours, Plan
from benchmarks.report import Result, bar, table

P99_TIMES = 3.0
DELETED = "timers deleted"
COUNTING = {
    DELETED: "SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'scheduler_timer'",
    "rows deleted": "SELECT sum(n_tup_del) FROM pg_stat_user_tables",
}
# Upkeep prunes once a minute for up to 50 seconds. Its turn comes as soon as beat is up, some fifteen seconds before
# the first timer is due, and it is at work until the last one of 20 seconds was.
DUE = "UPDATE django_celery_beat_periodictask SET last_run_at = now() - interval '1 hour' WHERE name LIKE '%prune'"


class Beside(Ours):
    """The service on a site whose rows do not depend on what was deleted before: vacuumed, and upkeep's turn."""

    def fire(self, receiver: rig.Receiver, plan: Plan, *, patience: float = PATIENCE_SECONDS) -> Fired:
        self.site.query("VACUUM ANALYZE")
        self.site.query(DUE)
        return super().fire(receiver, plan, patience=patience)


def measure(sites: rig.Sites, *, ended: int, rate: float, seconds: float, runs: int) -> Result:
    site = sites.bare("upkeep").migrate()
    rig.say(f"Storing {ended} timers that ended forty days ago")
    site.run([sys.executable, "-m", "benchmarks.inside", "ended", str(ended)])
    with rig.Service(site):
        # Beat writes down upkeep's tasks when it first runs.
        pass
    idle = Beside(site, "ours, nothing is deleted", counting=COUNTING, WEBTASK_RETENTION_DAYS="0")
    busy = Beside(site, "ours, deleting", counting=COUNTING)
    engines = {engine.name: engine for engine in (idle, busy)}
    record = report.result(
        "upkeep",
        question=f"How late are {rate:g} timers a second called while {ended:,} that ended long ago are being deleted?",
        settings=site.settings(),
        processes=busy.service().commands(),
    )
    record["size"] = {"ended": ended, "timers a run": round(rate * seconds), "rate": rate, "runs": runs}
    with rig.Receiver(1) as receiver:
        found = lateness.run_all(record, engines, receiver, rate=rate, seconds=seconds, runs=runs)
    lateness.show_lateness(record, found)
    # The picture compares with others.
    del record["curves"]
    show_deleted(record, found)
    add_bars(record, found[idle.name], found[busy.name])
    return record


def show_deleted(record: Result, found: dict[str, list[dict[str, Any]]]) -> None:
    rows = [
        [name, number, *run["counted"].values(), run["counted"][DELETED] / run["machine"]["seconds"]]
        for name, runs in found.items()
        for number, run in enumerate(runs, 1)
    ]
    table(record, "Deleted from the first moment to the last call", ["", "run", *COUNTING, "timers a second"], rows)


def add_bars(record: Result, idle: list[dict[str, Any]], busy: list[dict[str, Any]]) -> None:
    least = min(run["counted"][DELETED] for run in busy)
    bar(record, "timers were deleted in each run with deleting", limit="> 0", value=f"{least:,}", met=least > 0)
    early, lost = (sum(run[key] for run in (*idle, *busy)) for key in ("early", "lost"))
    bar(record, "deleting: never early", limit="0", value=str(early), met=early == 0)
    bar(record, "deleting: every one called", limit="0 lost", value=f"{lost} lost", met=lost == 0)
    without, value = lateness.medians(idle)["p99"], lateness.medians(busy)["p99"]
    bar(
        record,
        "deleting: p99",
        limit=f"{P99_TIMES:g} x the same without = {P99_TIMES * without:.1f} ms",
        value=f"{value:.1f} ms (x {value / without:.1f})",
        met=value <= P99_TIMES * without,
    )
