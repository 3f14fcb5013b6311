"""Some hosts hang: how late are the calls to the others?"""

from typing import Any

from benchmarks import report, rig
from benchmarks.firing import Ours, Plan, host_of, lateness, steady, summary
from benchmarks.report import Result, bar, median, table

TIMEOUT_SECONDS = 10
P99_MS = 1000.0
HEAD = ["run", "min", "p50", "p90", "p99", "max", "early", "not called", "twice"]


def measure(sites: rig.Sites, *, rate: float, seconds: float, hosts: int, hanging: int, runs: int) -> Result:
    site = sites.ours()
    ours = Ours(site, "ours", WEBTASK_CALL_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS))
    record = report.result(
        "slow",
        question=f"{rate:g} timers a second to {hosts} hosts, {hanging} of them never answer: how late are others?",
        settings=site.settings() | {"WEBTASK_CALL_TIMEOUT_SECONDS": TIMEOUT_SECONDS},
        processes=ours.service().commands(),
    )
    record["size"] = {"timers a run": round(rate * seconds), "hosts": hosts, "hanging": hanging, "runs": runs}
    plan = hang(steady(rate, seconds), hosts=hosts, hanging=hanging)
    rows: list[list[Any]] = []
    worst, lost = [], 0
    with rig.Receiver(hosts) as receiver:
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
    what, value = f"{hanging} of {hosts} hosts hang", median(worst)
    bar(record, f"{what}: the others' p99", limit=f"{P99_MS:g} ms", value=f"{value:.1f} ms", met=value <= P99_MS)
    bar(record, f"{what}: the others lose nothing", limit="0", value=str(lost), met=not lost)
    return record


def hang(plan: Plan, *, hosts: int, hanging: int) -> Plan:
    """Turn the timers of the first hosts into ones that are never answered."""
    return [(offset, f"/hang{path}" if host_of(path) % hosts < hanging else path) for offset, path in plan]
