"""Measures what a million waiting timers cost beat: its memory, and the time to claim 500."""

import json
import time

import psutil  # type: ignore[import-untyped]

from benchmarks import report, rig
from benchmarks.report import Result, bar, median, table

SHARE = 1.25
# Beat's memory is read once a second for so long after its start.
WATCH_SECONDS = 15


def measure(sites: rig.Sites, *, waiting: int, repeats: int, watch_seconds: int, runs: int) -> Result:
    few, many = sites.ours(), sites.ours(waiting=waiting)
    service = rig.Service(few)
    record = report.result(
        "memory",
        question=f"What do {waiting:,} waiting timers cost beat, in memory and in the time to claim 500?",
        settings=few.settings(),
        processes=service.commands(),
    )
    record["size"] = {"waiting": waiting, "claims a run": repeats, "runs": runs}
    subjects = {"0 waiting": few, f"{waiting:,} waiting": many}
    memory: dict[str, list[float]] = {name: [] for name in subjects}
    claims: dict[str, list[float]] = {name: [] for name in subjects}
    rows = []
    for number, name in rig.rounds(runs, list(subjects)):
        meter = rig.Meter()
        memory[name].append(beat_megabytes(subjects[name], watch_seconds))
        took = [seconds * 1000 for seconds in json.loads(subjects[name].inside("claims", str(repeats)))]
        claims[name].append(rig.percentile(took, 50))
        rows.append([name, number, memory[name][-1], claims[name][-1], rig.percentile(took, 90)])
        machine = meter.read()
        rig.say(f"  {memory[name][-1]:.1f} MB, {claims[name][-1]:.1f} ms; {rig.disturbance(machine)}")
        record["runs"].append({"subject": name, "run": number, "megabytes": memory[name][-1], "machine": machine})
    table(record, "Beat", ["", "run", "resident MB", "claim 500: p50 ms", "p90 ms"], rows)
    for what, found, unit in (("beat's memory", memory, "MB"), ("time to claim 500", claims, "ms")):
        least, most = (median(found[name]) for name in subjects)
        bar(
            record,
            f"{what} with {waiting:,} waiting",
            limit=f"{least:.1f} {unit} with none, + 25 %",
            value=f"{most:.1f} {unit} ({100 * (most / least - 1):+.0f} %)",
            met=most <= least * SHARE,
        )
    return record


def beat_megabytes(site: rig.Site, seconds: int) -> float:
    """Start the service and return beat's resident memory, the median of a reading a second."""
    readings = []
    with rig.Service(site) as service:
        beat = psutil.Process(service.processes["beat"].pid)
        for _ in range(seconds):
            time.sleep(1)
            readings.append(beat.memory_info().rss / 2**20)
    return median(readings)
