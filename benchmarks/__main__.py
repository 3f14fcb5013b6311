"""The command line; see docs/benchmarks.md."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import (
    beats,
    budget,
    burst,
    create,
    footprint,
    isolation,
    lateness,
    pages,
    report,
    rig,
    slow,
    storage,
    upkeep,
)
from benchmarks.report import Result
from scripts import servers

ALL = ("lateness", "peers", "burst", "create", "memory", "beats", "slow", "isolation", "upkeep", "storage", "pages")
Measure = Callable[[rig.Sites, argparse.Namespace], Result]


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description="Measure the service as shipped.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    common.add_argument("--runs", type=int, default=3, help="interleaved runs of each subject, default 3")
    common.add_argument("--quick", action="store_true", help="small sizes and one run, to try it out")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        return names.add_parser(name, parents=[common], help=about, description=about)

    one = add("lateness", "how late timers are called, beside stock django-celery-beat at its best")
    one.add_argument("--waiting", type=int, default=0, help="timers that wait for a moment hours away")
    one.add_argument("--rate", type=float, default=50.0, help="timers due a second, default 50")
    one.add_argument("--seconds", type=float, default=20.0, help="for so long, default 20")
    one.add_argument("--creating", type=float, default=0.0, help="timers created a second over HTTP meanwhile")
    one.add_argument("--watching", type=int, default=0, help="browsers that watch the live pages meanwhile")
    one.add_argument("--metrics", action="store_true", help="compare what /metrics says with what the receiver saw")
    one = add("burst", "many timers due at one instant, beside bare `requests` calls")
    one.add_argument("--due", type=int, default=10_000)
    one.add_argument("--hosts", type=int, action="append", help="may be given twice; default 100 and 1")
    one.add_argument("--workers", type=int, default=1, help="worker processes, and bare ones; default 1, as shipped")
    add("budget", "what a delivery and a creation cost, as ratios: before and after a change, under two minutes")
    one = add("create", "creating over HTTP, one by one and in batches")
    one.add_argument("--connections", type=int, default=16)
    one.add_argument("--seconds", type=float, default=10.0, help="of each run, default 10")
    one = add("memory", "beat's memory, and the time to claim 500, with a million waiting")
    one.add_argument("--waiting", type=int, default=1_000_000)
    add("beats", "two beats and two workers against one of each").add_argument("--due", type=int, default=10_000)
    one = add("slow", "some hosts hang: how late are the others")
    one.add_argument("--rate", type=float, default=50.0)
    one.add_argument("--seconds", type=float, default=60.0)
    one = add("isolation", "crowds of many kinds, one after the other: how late are all others beside each")
    scenarios = isolation.NAMES_OF_SCENARIOS
    one.add_argument("--only", type=some_of(scenarios), metavar="NAME[,NAME]", help=f"of {', '.join(scenarios)}")
    one.add_argument("--scale", type=float, default=1.0, help="the share of each crowd's size, default 1")
    one.add_argument("--rate", type=float, default=50.0)
    one.add_argument("--seconds", type=float, default=30.0, help="beside each crowd, default 30")
    one = add("upkeep", "how late timers are called while ended ones are being deleted")
    one.add_argument("--ended", type=int, default=1_000_000, help="timers that ended long ago, default a million")
    one.add_argument("--rate", type=float, default=50.0)
    one.add_argument("--seconds", type=float, default=20.0)
    one = add("storage", "bytes on disk for a timer that waits, and for one that was called")
    one.add_argument("--timers", type=int, default=100_000)
    one = add("pages", "how long each page of the dashboard and the admin takes, with a million timers waiting")
    one.add_argument("--waiting", type=int, default=1_000_000)
    one.add_argument("--ended", type=int, default=200_000)
    one = add("peers", "stock django-celery-beat and procrastinate, newest releases")
    one.add_argument("--rate", type=float, default=50.0)
    one.add_argument("--seconds", type=float, default=20.0)
    one.add_argument("--burst", type=int, default=1000)
    one = add("all", "all of them, with the sizes of docs/benchmarks.md; about three hours")
    one = names.add_parser("report", help="write docs/benchmarks.md from what --json wrote")
    one.add_argument("files", type=Path, nargs="*", metavar="FILE")
    return parser.parse_args(argv)


def some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a reader of names with commas between them."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(names)}")
        return chosen

    return read


def run_lateness(sites: rig.Sites, given: argparse.Namespace) -> Result:
    everything = given.name == "all"
    waiting = [0, 1_000_000] if everything else [given.waiting]
    creating = 20.0 if everything else given.creating
    seconds = 20.0 if everything else given.seconds
    rate = 50.0 if everything else given.rate
    if given.quick:
        waiting, seconds = [min(number, 5000) for number in waiting], min(seconds, 5.0)
    return lateness.measure(
        sites,
        waiting=waiting,
        rate=rate,
        seconds=seconds,
        creating=creating,
        runs=given.runs,
        scraping=not everything and given.metrics,
        watching=0 if everything else given.watching,
    )


def run_peers(sites: rig.Sites, given: argparse.Namespace) -> Result:
    seconds = 5.0 if given.quick else getattr(given, "seconds", 20.0)
    crowd = 2000 if given.quick else 10_000
    size = 200 if given.quick else getattr(given, "burst", 1000)
    rate = getattr(given, "rate", 50.0)
    return lateness.measure_peers(sites, rate=rate, seconds=seconds, crowd=crowd, burst=size, runs=given.runs)


def run_burst(sites: rig.Sites, given: argparse.Namespace) -> Result:
    due = 1000 if given.quick else getattr(given, "due", 10_000)
    hosts = getattr(given, "hosts", None) or [100, 1]
    return burst.measure(sites, due=due, hosts=hosts, workers=getattr(given, "workers", 1), runs=given.runs)


def run_create(sites: rig.Sites, given: argparse.Namespace) -> Result:
    seconds = 3.0 if given.quick else getattr(given, "seconds", 10.0)
    return create.measure(sites, connections=getattr(given, "connections", 16), seconds=seconds, runs=given.runs)


def run_budget(sites: rig.Sites, given: argparse.Namespace) -> Result:
    return budget.measure(sites, runs=given.runs, count=500 if given.quick else budget.COUNT)


def run_memory(sites: rig.Sites, given: argparse.Namespace) -> Result:
    waiting = 20_000 if given.quick else getattr(given, "waiting", 1_000_000)
    repeats, watch = (10, 3) if given.quick else (50, footprint.WATCH_SECONDS)
    return footprint.measure(sites, waiting=waiting, repeats=repeats, watch_seconds=watch, runs=given.runs)


def run_beats(sites: rig.Sites, given: argparse.Namespace) -> Result:
    return beats.measure(sites, due=1000 if given.quick else getattr(given, "due", 10_000), runs=given.runs)


def run_slow(sites: rig.Sites, given: argparse.Namespace) -> Result:
    seconds = 15.0 if given.quick else getattr(given, "seconds", 60.0)
    rate = getattr(given, "rate", 50.0)
    return slow.measure(sites, rate=rate, seconds=seconds, hosts=20, hanging=2, runs=given.runs)


def run_isolation(sites: rig.Sites, given: argparse.Namespace) -> Result:
    return isolation.measure(
        sites,
        only=getattr(given, "only", None) or isolation.NAMES_OF_SCENARIOS,
        scale=0.1 if given.quick else getattr(given, "scale", 1.0),
        rate=getattr(given, "rate", 50.0),
        seconds=10.0 if given.quick else getattr(given, "seconds", 30.0),
        runs=given.runs,
    )


def run_upkeep(sites: rig.Sites, given: argparse.Namespace) -> Result:
    seconds = 5.0 if given.quick else getattr(given, "seconds", 20.0)
    # Fewer would be gone before the first timer is due.
    ended = 100_000 if given.quick else getattr(given, "ended", 1_000_000)
    return upkeep.measure(sites, ended=ended, rate=getattr(given, "rate", 50.0), seconds=seconds, runs=given.runs)


def run_storage(sites: rig.Sites, given: argparse.Namespace) -> Result:
    return storage.measure(sites, count=2000 if given.quick else getattr(given, "timers", 100_000))


def run_pages(sites: rig.Sites, given: argparse.Namespace) -> Result:
    waiting, ended = (
        (5000, 1000) if given.quick else (getattr(given, "waiting", 10**6), getattr(given, "ended", 200_000))
    )
    return pages.measure(sites, waiting=waiting, ended=ended, runs=given.runs)


SUBJECTS: dict[str, Measure] = {
    "lateness": run_lateness,
    "peers": run_peers,
    "burst": run_burst,
    "budget": run_budget,
    "create": run_create,
    "memory": run_memory,
    "beats": run_beats,
    "slow": run_slow,
    "isolation": run_isolation,
    "upkeep": run_upkeep,
    "storage": run_storage,
    "pages": run_pages,
}


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(*_: Any) -> NoReturn:
    """End in order: everything that was started is stopped, everything that was made is removed."""
    for number in SIGNALS:
        # A second one would break off the clean-up.
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    given = arguments(argv)
    if given.name == "report":
        report.make_page(given.files, rig.ROOT / "docs")
        return 0
    if given.quick:
        given.runs = 1
    for number in SIGNALS:
        signal.signal(number, stop)
    records: list[Result] = []
    failed: list[str] = []
    try:
        with rig.Sites() as sites:
            for name in ALL if given.name == "all" else [given.name]:
                rig.say(f"\n== {name}")
                try:
                    record = SUBJECTS[name](sites, given)
                except (rig.BenchmarkError, servers.ServerError) as error:
                    # The others are worth having.
                    failed.append(f"{name}: {error}")
                    print(failed[-1], file=sys.stderr)
                    continue
                records.append(record)
                report.show(record)
                if given.json:
                    # After each, so that a run that is cut off leaves what it has.
                    report.write(given.json, records, argv)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    if len(records) > 1:
        print("\n== All bars")
        report.show_bars(records)
    if failed:
        print("\nNot measured:", *failed, sep="\n", file=sys.stderr)
        return 1
    return 0 if all(item["met"] for record in records for item in record["bars"]) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
