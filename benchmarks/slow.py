"""Some hosts hang: how late are the calls to the others? And if very many timers go to one of them at one instant?"""

from collections import Counter
from typing import Any

from benchmarks import report, rig
from benchmarks.firing import Ours, Plan, host_of, lateness, steady, summary
from benchmarks.report import Result, bar, median, table

TIMEOUT_SECONDS = 10
P99_MS = 1000.0
HEAD = ["run", "min", "p50", "p90", "p99", "max", "early", "not called", "twice"]

# The flood comes so many seconds after the first timer.
FLOOD_AFTER_SECONDS = 10.0
# So often may the due index be read for each timer of the flood: for its claim, again each time that it was put off,
# and the entries that updates leave dead. A claim that walked over all of them at each poll would read thousands.
READS = 20.0
COUNTING = {
    "due index entries": "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'delivery_due_idx'",
    "deliveries updated": "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'scheduler_delivery'",
    "transactions": "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
}
COUNTED_CALLS = """
SELECT web_url, attempts FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE attempts > 0 AND web_url LIKE '%/hang/f/%' AND finished_at IS NULL
"""


def measure(
    sites: rig.Sites, *, rate: float, seconds: float, hosts: int, hanging: int, flood: int, runs: int
) -> Result:
    site = sites.ours()
    ours = Ours(site, "ours", WEBTASK_CALL_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS))
    record = report.result(
        "slow",
        question=f"{rate:g} timers a second to {hosts} hosts, {hanging} of them never answer: how late are others?",
        settings=site.settings() | {"WEBTASK_CALL_TIMEOUT_SECONDS": TIMEOUT_SECONDS},
        processes=ours.service().commands(),
    )
    record["size"] = {"timers a run": round(rate * seconds), "hosts": hosts, "hanging": hanging, "runs": runs}
    with rig.Receiver(hosts) as receiver:
        plan = hang(steady(rate, seconds), hosts=hosts, hanging=hanging)
        measure_some(record, ours, receiver, plan, hanging=hanging, runs=runs)
        if flood:
            record["size"]["flood"] = flood
            plan = elsewhere(steady(rate, seconds), hosts=hosts)
            measure_flood(record, sites.bare("flood").migrate(), receiver, plan, flood=flood, runs=runs)
    return record


def measure_some(record: Result, ours: Ours, receiver: rig.Receiver, plan: Plan, *, hanging: int, runs: int) -> None:
    """A few of the timers go to hosts that hang."""
    rows: list[list[Any]] = []
    worst, lost = [], 0
    for number, _ in rig.rounds(runs, ["ours"]):
        # A retry waits for seconds; the calls to the hosts that hang are not waited for.
        fired = ours.fire(receiver, plan, patience=TIMEOUT_SECONDS * 3.0)
        one = lateness(plan, fired)
        values = summary(one)
        worst.append(values["p99"])
        lost += one["lost"]
        rows.append([number, *values.values(), one["early"], one["lost"], one["duplicates"]])
        rig.say(f"  p99 {report.text(values['p99'])} ms; {rig.disturbance(fired.machine)}")
        record["runs"].append({"subject": "ours", "run": number, "late_ms": values, "machine": fired.machine})
    table(record, "Milliseconds from the promised moment to the call, of the hosts that answer", HEAD, rows)
    add_bars(record, f"{hanging} of {receiver.hosts} hosts hang", median(worst), lost)


def measure_flood(
    record: Result, site: rig.Site, receiver: rig.Receiver, healthy: Plan, *, flood: int, runs: int
) -> None:
    """The same rate to hosts that answer, without and with very many timers due at one instant to one that hangs."""
    ours = Ours(site, "ours", counting=COUNTING, WEBTASK_CALL_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS))
    flooded = [(FLOOD_AFTER_SECONDS, f"/hang/f/{number * receiver.hosts}") for number in range(flood)]
    name = f"flood of {flood:,}"
    plans: dict[str, Plan] = {"no flood": healthy, name: [*healthy, *flooded]}
    rows: list[list[Any]] = []
    costs: list[list[Any]] = []
    worst: list[float] = []
    reads: list[float] = []
    lost = burnt = 0
    for number, subject in rig.rounds(runs, list(plans)):
        fired = ours.fire(receiver, plans[subject], patience=TIMEOUT_SECONDS * 3.0)
        one = lateness(plans[subject], fired)
        values = summary(one)
        calls = Counter(path for _, path in [*fired.arrivals, *receiver.take()])
        # The service has ended: what was started was called, or interrupted in its call.
        counted = {"/hang" + url.partition("/hang")[2]: attempts for url, attempts in site.query(COUNTED_CALLS)}
        more = sum(max(0, attempts - calls[path]) for path, attempts in counted.items())
        # What is left of a flood would come again in the next run.
        site.empty()
        rows.append([f"{subject}, {number}", *values.values(), one["early"], one["lost"], one["duplicates"]])
        lasted = fired.machine["seconds"]
        spent = [fired.cpu[process] for process in ("beat", "worker", "postgres")]
        flood_calls = sum(count for path, count in calls.items() if path.startswith("/hang"))
        costs.append([f"{subject}, {number}", lasted, *spent, *fired.counted.values(), flood_calls])
        rig.say(
            f"  p99 {report.text(values['p99'])} ms, lost {one['lost']}, attempts counted without a call {more};"
            f" {rig.disturbance(fired.machine)}"
        )
        kept = {"late_ms": values, "counted": fired.counted, "cpu": fired.cpu, "machine": fired.machine}
        record["runs"].append({"subject": subject, "run": number, "burnt": more, **kept})
        lost, burnt = lost + one["lost"], burnt + more
        if subject == name:
            worst.append(values["p99"])
            reads.append(fired.counted["due index entries"] / flood)
    table(
        record,
        f"Milliseconds from the promised moment to the call, of the hosts that answer, {name} to one that hangs",
        HEAD,
        rows,
    )
    table(
        record,
        "What it cost, from the first moment to the last call to a host that answers",
        ["run", "seconds", "beat CPU s", "worker CPU s", "postgres CPU s", *COUNTING, "calls to the host that hangs"],
        costs,
    )
    add_bars(record, name, median(worst), lost)
    bar(record, f"{name}: attempts counted without a call", limit="0", value=str(burnt), met=not burnt)
    value = median(reads)
    bar(
        record,
        f"{name}: reads of the due index for each of its timers",
        limit=f"{READS:g}",
        value=f"{value:.1f}",
        met=value <= READS,
    )


def add_bars(record: Result, what: str, value: float, lost: int) -> None:
    bar(record, f"{what}: the others' p99", limit=f"{P99_MS:g} ms", value=f"{value:.1f} ms", met=value <= P99_MS)
    bar(record, f"{what}: the others lose nothing", limit="0", value=str(lost), met=not lost)


def hang(plan: Plan, *, hosts: int, hanging: int) -> Plan:
    """Turn the timers of the first hosts into ones that are never answered."""
    return [(offset, f"/hang{path}" if host_of(path) % hosts < hanging else path) for offset, path in plan]


def elsewhere(plan: Plan, *, hosts: int) -> Plan:
    """Number the timers of a plan so that none goes to the first host."""

    def move(path: str) -> str:
        number = host_of(path)
        return f"{path.rpartition('/')[0]}/{number + number // (hosts - 1) + 1}"

    return [(offset, move(path)) for offset, path in plan]
