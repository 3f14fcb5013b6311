"""How late timers are called: with nothing else waiting, with a million waiting, while others are being created."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import peers, report, rig
from benchmarks.firing import Engine, Fired, Ours, Plan, at_once, lateness, steady, summary
from benchmarks.report import Result, bar, median, table

# The bars are set against stock django-celery-beat at its best, in the same run.
P50_TIMES = 0.8
P99_TIMES = 0.8
P99_TIMES_CREATING = 1.5
ZERO_P99_MS = 60.0
WATCHED_TIMES = 1.1
STOCK = "stock, preloaded, nothing changing"
POINTS = (*range(100), 99.5, 99.9, 100)


def measure(
    sites: rig.Sites,
    *,
    waiting: Sequence[int],
    rate: float,
    seconds: float,
    creating: float,
    runs: int,
    scraping: bool = False,
    watching: int = 0,
) -> Result:
    """Run stock and ours in turn; while creating or watching, ours once more at the largest number waiting.

    With `scraping`, compare what `/metrics` says of each run of ours with what the receiver saw.
    """
    engines: dict[str, Engine] = {STOCK: peers.Stock(sites, STOCK)}
    settings: dict[str, Any] = {}
    processes: dict[str, str] = {}
    for number in waiting:
        site = sites.ours(waiting=number)
        ours = Ours(site, f"ours, {number:,} waiting", scraping=scraping)
        engines[ours.name] = ours
        settings, processes = site.settings(), ours.service().commands()
    if creating:
        name = f"ours, {max(waiting):,} waiting, {creating:g}/s created"
        engines[name] = Ours(sites.ours(waiting=max(waiting)), name, creating=creating)
    if watching:
        # The one of the same site without, in the same rounds, is what they are held against.
        watched = {
            plainly: f"ours, {max(waiting):,} waiting, {watching} {how}"
            for plainly, how in ((False, "browsers watch"), (True, "ask as browsers do"))
        }
        for plainly, name in watched.items():
            site = sites.ours(waiting=max(waiting))
            engines[name] = Ours(site, name, watching=watching, plainly=plainly)
    record = report.result(
        "lateness",
        question=f"How late are {rate:g} timers a second called, beside stock django-celery-beat at its best?",
        settings=settings,
        processes=processes | engines[STOCK].processes,  # type: ignore[attr-defined]  # stock has its own
    )
    record["size"] = {"waiting": max(waiting), "timers a run": round(rate * seconds), "rate": rate, "runs": runs}
    with rig.Receiver(1) as receiver:
        found = run_all(record, engines, receiver, rate=rate, seconds=seconds, runs=runs)
    show_lateness(record, found)
    add_bars(record, found)
    if watching:
        alone = found[f"ours, {max(waiting):,} waiting"]
        add_watched(record, "while browsers watch", alone, found[watched[False]])
        add_watched(record, "while their questions are asked and nothing is drawn", alone, found[watched[True]])
    if scraping:
        add_scrapes(record, found)
    return record


def add_watched(
    record: Result, how: str, alone: Sequence[Mapping[str, Any]], watched: Sequence[Mapping[str, Any]]
) -> None:
    """Hold the lateness beside those who watch against the lateness without, each run against its neighbour."""
    rows = [
        [number, summary(one)["p50"], summary(other)["p50"], summary(one)["p99"], summary(other)["p99"], other["asked"]]
        for number, (one, other) in enumerate(zip(alone, watched, strict=True), 1)
    ]
    head = ["run", "p50 alone", "p50 watched", "p99 alone", "p99 watched", "answers to pages"]
    table(record, f"Milliseconds late, alone and {how}", head, rows)
    for name, alone_at, watched_at in (("p50", 1, 2), ("p99", 3, 4)):
        times = median([row[watched_at] / row[alone_at] for row in rows])
        limit = f"{WATCHED_TIMES:g} x alone"
        bar(record, f"{name} {how}", limit=limit, value=f"{times:.2f} x", met=times <= WATCHED_TIMES)


def add_scrapes(record: Result, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Compare percentiles of `/metrics` and of the receiver by bucket: they may differ by one.

    Ours is counted until the call begins; the receiver's holds the connection and its own turn too.
    """
    rows, worst = [], 0
    for name, runs in found.items():
        for number, run in enumerate(runs, 1):
            if not run["scraped"]:
                continue
            bounds = [float(bound) for bound in run["scraped"]]
            reached = list(run["scraped"].values())
            seen = sorted(run["all_late_ms"])
            for percent in (50, 90, 99, 100):
                counted = next(at for at, count in enumerate(reached) if count >= reached[-1] * percent / 100)
                exact = rig.percentile(seen, percent)
                arrived = next(at for at, bound in enumerate(bounds) if exact <= bound * 1000)
                worst = max(worst, abs(arrived - counted))
                at_most = f"<= {bounds[counted] * 1000:g}"
                rows.append(
                    [name, number, f"p{percent}", at_most, exact, f"{arrived - counted:+d}", reached[-1], len(seen)]
                )
    head = ["", "run", "", "/metrics, ms", "receiver, ms", "buckets apart", "counted", "arrived"]
    table(
        record,
        "Lateness as `/metrics` counts it (due to start) and as the receiver sees it (due to arrival)",
        head,
        rows,
    )
    bar(record, "/metrics and the receiver agree", limit="1 bucket", value=f"{worst} apart", met=worst <= 1)
    same = all(row[-1] == row[-2] for row in rows)
    bar(record, "/metrics counts every call", limit="all", value="all" if same else "not all", met=bool(rows) and same)


def run_all(
    record: Result,
    engines: Mapping[str, Engine],
    receiver: rig.Receiver,
    *,
    rate: float,
    seconds: float,
    runs: int,
    patience: float = 30.0,
) -> dict[str, list[dict[str, Any]]]:
    """Run every engine in turn and return what each run found, by engine."""
    plan = steady(rate, seconds)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for number, name in rig.rounds(runs, list(engines)):
        fired = engines[name].fire(receiver, plan, patience=patience)
        measured = {"machine": fired.machine, "cpu": fired.cpu, "counted": fired.counted}
        one = lateness(plan, fired) | measured | zero_seconds(fired) | {"scraped": fired.scraped, "asked": fired.asked}
        one["all_late_ms"] = all_late(plan, fired) if fired.scraped else []
        found[name].append(one)
        values = summary(one)
        rig.say(
            f"  p50 {report.text(values['p50'])} ms, p99 {report.text(values['p99'])} ms, early {one['early']},"
            f" lost {one['lost']}, twice {one['duplicates']}; {rig.disturbance(fired.machine)}"
        )
        kept = {key: value for key, value in one.items() if key not in ("late_ms", "zero_ms", "all_late_ms")}
        record["runs"].append({"subject": name, "run": number, **kept, "late_ms": values})
    return found


def all_late(plan: Plan, fired: Fired) -> list[float]:
    """Return how late every timer of a plan was called, those of the warm-up included, in milliseconds."""
    due = {path: fired.begin + offset for offset, path in plan}
    first = {path: at for at, path in reversed(fired.arrivals) if path in due}
    return [(at - due[path]) * 1000 for path, at in first.items()]


def zero_seconds(fired: Fired) -> dict[str, Any]:
    """Return how long after its 201 each timer of 0 seconds was called; empty if there were no such timers."""
    answered = {f"/z/{number}": done for _, done, status, number in fired.created if status == 201 and number % 2}
    first = {path: at for at, path in reversed(fired.arrivals) if path in answered}
    return {
        "created": len(fired.created),
        "refused": sum(status != 201 for _, _, status, _ in fired.created),
        "zero_ms": sorted((first[path] - answered[path]) * 1000 for path in first),
        "zero_lost": len(answered) - len(first),
    }


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median over the runs of each figure."""
    each = [summary(run) for run in runs]
    return {key: median([one[key] for one in each]) for key in each[0]}


def show_lateness(record: Result, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    rows: list[list[Any]] = []
    record["curves"] = []
    for name, runs in found.items():
        figures = medians(runs)
        counts = [sum(run[key] for run in runs) for key in ("early", "lost", "duplicates")]
        rows.append([name, *figures.values(), *counts])
        late = sorted(value for run in runs for value in run["late_ms"])
        every = [*late, *[math.nan] * sum(run["lost"] for run in runs)]
        points = [(percent, every[min(len(every) - 1, int(len(every) * percent / 100))]) for percent in POINTS]
        record["curves"].append(
            {"name": name, "points": [[percent, None if math.isnan(late) else late] for percent, late in points]}
        )
    table(
        record,
        "Milliseconds from the promised moment to the call at the receiver; medians of the runs, counts of all",
        ["", "min", "p50", "p90", "p99", "max", "early", "not called", "twice"],
        rows,
    )
    zero = {name: runs for name, runs in found.items() if any(run["zero_ms"] for run in runs)}
    if zero:
        table(
            record,
            "Milliseconds from the 201 to the call, for timers of 0 seconds",
            ["", "p50", "p90", "p99", "max", "not called", "refused"],
            [
                [
                    name,
                    *[median([rig.percentile(run["zero_ms"], at) for run in runs]) for at in (50, 90, 99, 100)],
                    sum(run["zero_lost"] for run in runs),
                    sum(run["refused"] for run in runs),
                ]
                for name, runs in zero.items()
            ],
        )
    cost_table(record, found)


def cost_table(record: Result, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Add a table of what the processes spent, if they were watched."""
    rows = []
    for name, runs in found.items():
        for process in runs[0]["cpu"]:
            spent = median([run["cpu"].get(process, 0.0) / run["timers"] * 1000 for run in runs])
            rows.append([name, process, spent])
    if rows:
        table(record, "Milliseconds of processor time for each timer", ["", "process", "ms"], rows)


def add_bars(record: Result, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    stock = medians(found[STOCK])
    for name, runs in found.items():
        if name == STOCK:
            continue
        figures = medians(runs)
        early = sum(run["early"] for run in runs)
        bar(record, f"{name}: never early", limit="0", value=str(early), met=early == 0)
        lost = sum(run["lost"] for run in runs)
        bar(record, f"{name}: every one called", limit="0 lost", value=f"{lost} lost", met=lost == 0)
        creating = any(run["created"] for run in runs)
        times = P99_TIMES_CREATING if creating else P99_TIMES
        most = stock["p99"] * times
        if not creating:
            limit = stock["p50"] * P50_TIMES
            value = figures["p50"]
            bar(
                record,
                f"{name}: p50",
                limit=f"{P50_TIMES:g} x stock = {limit:.1f} ms",
                value=f"{value:.1f} ms",
                met=value <= limit,
            )
        value = figures["p99"]
        bar(
            record,
            f"{name}: p99",
            limit=f"{times:g} x stock = {most:.1f} ms",
            value=f"{value:.1f} ms",
            met=value <= most,
        )
        if creating:
            zero = median([rig.percentile(run["zero_ms"], 99) for run in runs])
            bar(
                record,
                f"{name}: timers of 0 s, p99 from the 201",
                limit=f"{ZERO_P99_MS:g} ms",
                value=f"{zero:.1f} ms",
                met=zero <= ZERO_P99_MS,
            )


# Peers

TUNED = "procrastinate, 100 ms poll"


def measure_peers(sites: rig.Sites, *, rate: float, seconds: float, crowd: int, burst: int, runs: int) -> Result:
    """Run ours and the peers in turn: a steady rate, then many due at one instant."""
    site = sites.ours()
    ours = Ours(site, "ours, 0 waiting")
    stock = peers.Stock(sites, STOCK)
    crowded = peers.Stock(sites, f"stock, {crowd:,} waiting", waiting=crowd)
    plain = peers.Procrastinate(sites, "procrastinate, as it comes")
    tuned = peers.Procrastinate(sites, TUNED, poll_seconds=0.1)
    engines: dict[str, Engine] = {one.name: one for one in (ours, stock, crowded, plain, tuned)}
    record = report.result(
        "peers",
        question=f"How do stock django-celery-beat and procrastinate do at {rate:g} timers a second, and in a burst?",
        settings=site.settings() | {"stock": stock.versions, "procrastinate": plain.versions},
        processes=ours.service().commands() | stock.processes | plain.processes | tuned.processes,
    )
    record["size"] = {"timers a run": round(rate * seconds), "rate": rate, "runs": runs, "burst": burst}
    with rig.Receiver(1) as receiver:
        # A peer that is behind gets a minute; a timer not called by then counts as later than all the rest.
        found = run_all(record, engines, receiver, rate=rate, seconds=seconds, runs=runs, patience=60.0)
        show_lateness(record, found)
        rows = []
        rates: dict[str, list[float]] = {}
        plan = at_once(burst)
        for number, name in rig.rounds(runs, [ours.name, stock.name, tuned.name]):
            one = lateness(plan, fired := engines[name].fire(receiver, plan, patience=120.0))
            last = one["late_ms"][-1] / 1000 if one["late_ms"] else math.nan
            rates.setdefault(name, []).append(len(one["late_ms"]) / last)
            rows.append([name, number, last, one["lost"], one["duplicates"]])
            record["runs"].append({"subject": f"burst: {name}", "run": number, "last": last, "machine": fired.machine})
    table(record, f"{burst:,} due at one instant", ["", "run", "last call after s", "not called", "twice"], rows)
    each = [[name, median(values)] for name, values in rates.items()]
    table(record, "Calls a second in that burst, median", ["", "calls/s"], each)
    return record
