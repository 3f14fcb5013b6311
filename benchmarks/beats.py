"""Two beats and two workers against one of each: nothing twice, and no slower."""

import math

from benchmarks import report, rig
from benchmarks.firing import Ours, at_once, lateness
from benchmarks.report import Result, bar, median, table

SHARE = 0.9
HOSTS = 100


def measure(sites: rig.Sites, *, due: int, runs: int) -> Result:
    site = sites.ours()
    engines = {
        "one beat, one worker": Ours(site, "one"),
        "two beats, two workers": Ours(site, "two", workers=2, beats=2),
    }
    one_name, two_name = engines
    record = report.result(
        "beats",
        question=f"Are two beats and two workers as fast as one of each with {due:,} timers due at one instant?",
        settings=site.settings(),
        processes=engines[two_name].service().commands(),
    )
    record["size"] = {"due": due, "hosts": HOSTS, "runs": runs}
    plan = at_once(due)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    wrong = 0
    rows = []
    with rig.Receiver(HOSTS) as receiver:
        for number, name in rig.rounds(runs, list(engines)):
            fired = engines[name].fire(receiver, plan, patience=180.0)
            one = lateness(plan, fired)
            last = one["late_ms"][-1] / 1000 if one["late_ms"] else math.nan
            rates[name].append(len(one["late_ms"]) / last)
            rows.append([name, number, last, rates[name][-1], one["early"], one["lost"], one["duplicates"]])
            wrong += one["early"] + one["lost"] + one["duplicates"]
            rig.say(f"  {rates[name][-1]:.0f}/s, twice {one['duplicates']}; {rig.disturbance(fired.machine)}")
            record["runs"].append({"subject": name, "run": number, "seconds": last, "machine": fired.machine})
    table(record, "Bursts", ["", "run", "last call after s", "calls/s", "early", "not called", "twice"], rows)
    ratio = median(rates[two_name]) / median(rates[one_name])
    bar(record, "two beats, two workers: each called once", limit="0", value=str(wrong), met=not wrong)
    bar(
        record,
        "two beats, two workers: throughput",
        limit=f"{SHARE} of one of each, {median(rates[one_name]):.0f}/s",
        value=f"{median(rates[two_name]):.0f}/s ({ratio:.2f})",
        met=ratio >= SHARE,
    )
    return record
