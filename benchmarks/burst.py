"""Many timers due at one instant: time until the last call and the last record, compared with bare `requests` calls."""

import json
import math
import subprocess
import sys
import time
from typing import Any

from benchmarks import report, rig
from benchmarks.firing import DUPLICATE_SECONDS, Ours, at_once, lateness
from benchmarks.report import Result, bar, median, table

# The bar, as a share of the rate of bare calls from as many processes. Workers share two processors with the rest.
SHARE = 0.7
SHARE_OF_MORE = 0.55
PATIENCE_SECONDS = 180.0

RECORDS = """
SELECT extract(epoch FROM max(finished_at))::float8, count(*) FILTER (WHERE state = 'succeeded')
  FROM scheduler_delivery WHERE due_at BETWEEN to_timestamp(%s) - interval '1 ms' AND to_timestamp(%s) + interval '1 ms'
"""


def measure(sites: rig.Sites, *, due: int, hosts: list[int], workers: int, runs: int) -> Result:
    site = sites.ours()
    ours = Ours(site, "ours", workers=workers)
    settings = site.settings()
    threads = int(settings["WEBTASK_CALLERS"])
    record = report.result(
        "burst",
        question=f"{due:,} timers due at one instant: how long until all are called and recorded, and how long do bare"
        f" `requests` calls take from {workers} process{'es' if workers > 1 else ''} of {threads} threads?",
        settings=settings,
        processes=ours.service().commands() | {"bare": f"python -m benchmarks.bare {threads}"},
    )
    record["size"] = {"due": due, "workers": workers, "runs": runs}
    for count in hosts:
        with rig.Receiver(count) as receiver:
            measure_hosts(record, ours, receiver, due=due, workers=workers, threads=threads, runs=runs)
    return record


def measure_hosts(
    record: Result, ours: Ours, receiver: rig.Receiver, *, due: int, workers: int, threads: int, runs: int
) -> None:
    plan = at_once(due)
    rows: list[list[Any]] = []
    found: dict[str, list[float]] = {"bare": [], "last call": [], "last record": []}
    extra = {"lost": 0, "duplicates": 0, "early": 0}
    cpu: dict[str, list[float]] = {}
    name = f"{receiver.hosts} host{'s' if receiver.hosts > 1 else ''}"
    for number, subject in rig.rounds(runs, [f"bare, {name}", f"ours, {name}"]):
        if subject.startswith("bare"):
            seconds, machine = bare(receiver, due=due, processes=workers, threads=threads)
            found["bare"].append(seconds)
            rows.append([subject, number, seconds, "", due / seconds])
            rig.say(f"  {seconds:.2f} s, {due / seconds:.0f}/s; {rig.disturbance(machine)}")
            record["runs"].append({"subject": subject, "run": number, "seconds": seconds, "machine": machine})
            continue
        fired = ours.fire(receiver, plan, patience=PATIENCE_SECONDS)
        one = lateness(plan, fired)
        finished, succeeded = ours.site.query(RECORDS, fired.begin, fired.begin)[0]
        ended = succeeded == due and not one["lost"]
        last_call = one["late_ms"][-1] / 1000 if ended else math.inf
        last_record = finished - fired.begin if ended else math.inf
        found["last call"].append(last_call)
        found["last record"].append(last_record)
        for key in extra:
            extra[key] += one[key]
        for process, spent in fired.cpu.items():
            cpu.setdefault(process, []).append(spent / due * 1000)
        rows.append([subject, number, last_call, last_record, due / max(last_call, last_record)])
        rig.say(
            f"  last call {last_call:.2f} s, last record {last_record:.2f} s, {succeeded} recorded as succeeded,"
            f" early {one['early']}, lost {one['lost']}, twice {one['duplicates']};"
            f" {rig.disturbance(fired.machine)}"
        )
        record["runs"].append(
            {"subject": subject, "run": number, "seconds": last_call, "last_record": last_record, **extra}
            | {"machine": fired.machine, "cpu": fired.cpu}
        )
    table(record, f"Seconds, {name}", ["", "run", "last call", "last record", "a second"], rows)
    table(
        record,
        f"Milliseconds of processor time for each timer, {name}",
        ["process", "ms"],
        [[process, median(values)] for process, values in cpu.items()],
    )
    bare_seconds = median(found["bare"])
    share = SHARE if workers == 1 else SHARE_OF_MORE
    for what in ("last call", "last record"):
        seconds = median(found[what])
        bar(
            record,
            f"burst to {name}: {what}",
            limit=f"bare {bare_seconds:.2f} s / {share} = {bare_seconds / share:.2f} s",
            value=f"{seconds:.2f} s (ratio {bare_seconds / seconds:.2f})",
            met=bare_seconds / seconds >= share,
        )
    wrong = ", ".join(f"{count} {key}" for key, count in extra.items())
    bar(record, f"burst to {name}: each called once", limit="0", value=wrong, met=not any(extra.values()))


def bare(receiver: rig.Receiver, *, due: int, processes: int, threads: int) -> tuple[float, dict[str, float]]:
    """Have bare processes call and return the seconds to the last call."""
    receiver.take()
    begin = time.time() + 2.0
    started = []
    try:
        for number in range(processes):
            process = rig.spawn([sys.executable, "-m", "benchmarks.bare", str(threads)], stdin=subprocess.PIPE)
            started.append(process)
            urls = [receiver.url(f"/t/{index}", index) for index in range(number, due, processes)]
            assert process.stdin
            process.stdin.write(json.dumps({"at": begin, "urls": urls}).encode())
            process.stdin.close()
        time.sleep(max(0.0, begin - time.time()))
        meter = rig.Meter()
        if not receiver.wait_for(due, until=begin + PATIENCE_SECONDS):
            raise rig.BenchmarkError("The bare calls did not end.")
        machine = meter.read()
        time.sleep(DUPLICATE_SECONDS / 3)
    finally:
        rig.end(started, 2.0)
    return receiver.take()[-1][0] - begin, machine
