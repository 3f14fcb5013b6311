"""Writes the results: tables for people, JSON for machines, and docs/benchmarks.md with its picture from the JSON."""

import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import rig

Result = dict[str, Any]


def result(name: str, *, question: str, settings: Mapping[str, Any], processes: Mapping[str, str]) -> Result:
    """Begin the record of one benchmark."""
    return {
        "name": name,
        "question": question,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": rig.machine(),
        "settings": dict(settings),
        "processes": dict(processes),
        "size": {},
        "runs": [],
        "tables": [],
        "bars": [],
        "notes": [],
    }


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values and not any(map(math.isnan, values)) else math.nan


def table(record: Result, title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    record["tables"].append(
        {"title": title, "head": list(head), "rows": [[text(cell) for cell in row] for row in rows]}
    )


def bar(record: Result, what: str, *, limit: str, value: str, met: bool) -> None:
    record["bars"].append({"what": what, "limit": limit, "value": value, "met": bool(met)})


def text(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# For the terminal


def show(record: Result) -> None:
    print(f"\n{record['name']}: {record['question']}")
    described(record)
    for item in record["tables"]:
        print(f"\n{item['title']}")
        print(plain_table(item["head"], item["rows"]))
    for note in record["notes"]:
        print(f"\n{note}")
    show_bars([record])


def described(record: Result) -> None:
    print("\nSettings: " + ", ".join(f"{name}={value}" for name, value in record["settings"].items()))
    for name, command in record["processes"].items():
        print(f"  {name}: {command}")
    machine = record["machine"]
    print(
        f"Machine: {machine['processors']} processors, {machine['model']}, {machine['memory_gb']} GB,"
        f" Python {machine['python']}; {disturbances(record)}"
    )
    print("Size: " + ", ".join(f"{name} {text(value)}" for name, value in record["size"].items()))


def disturbances(record: Result) -> str:
    # What only counts processor time does not watch the machine.
    machines = [run["machine"] for run in record["runs"] if "machine" in run]

    def span(key: str) -> str:
        values = [machine[key] for machine in machines]
        return f"{min(values):.1f} to {max(values):.1f} %"

    if not machines:
        return "the machine was not watched"
    return f"stolen by its host in the runs: {span('steal_percent')}; used by others: {span('others_percent')}"


def show_bars(records: Sequence[Result]) -> None:
    rows = [
        [item["what"], item["limit"], item["value"], "met" if item["met"] else "NOT MET"]
        for record in records
        for item in record["bars"]
    ]
    if rows:
        print()
        print(plain_table(["bar", "limit", "measured", ""], rows))


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    written = [
        "  ".join(
            cell.ljust(width) if column == 0 or not cell[:1].isdigit() else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([written[0], "  ".join("-" * width for width in widths), *written[1:]])


# Files


def write(path: Path, records: Sequence[Result], command: Sequence[str]) -> None:
    # The page is for others: where the figures were written on this machine is not theirs to repeat.
    shown = ["FILE" if index and command[index - 1] == "--json" else word for index, word in enumerate(command)]
    kept = {"command": shlex.join(["./scripts/bench", *shown]), "benchmarks": list(records)}
    path.write_text(json.dumps(finite(kept), indent=1, default=str) + "\n")


def finite(value: Any) -> Any:
    """Return a value with null for each NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_page(files: Sequence[Path], docs: Path) -> None:
    """Write docs/benchmarks.md and its picture from what `--json` wrote; the last file that has a benchmark counts."""
    runs = [json.loads(path.read_text()) for path in files]
    last = {record["name"]: number for number, run in enumerate(runs) for record in run["benchmarks"]}
    for number, run in enumerate(runs):
        run["benchmarks"] = [record for record in run["benchmarks"] if last[record["name"]] == number]
    about = [[f"`{name}`", what] for name, what in ABOUT.items()]
    lines = [HEAD, *markdown_table(["name", "what is measured"], about), "", "## The bars", ""]
    bars = [
        [item["what"], item["limit"], item["value"], "met" if item["met"] else "**not met**"]
        for run in runs
        for record in run["benchmarks"]
        for item in record["bars"]
    ]
    lines += markdown_table(["what", "bar", "measured", ""], bars) if bars else ["Not measured yet."]
    lines += [""]
    curves: dict[str, Any] = {}
    for curve in (curve for run in runs for record in run["benchmarks"] for curve in record.get("curves", [])):
        # Some subjects are in several benchmarks.
        curves.setdefault(curve["name"], curve)
    if curves:
        (docs / PICTURE).write_text(picture(list(curves.values())))
        lines += [f"![Share of timers called within a time after their moment]({PICTURE})", ""]
    for run in runs:
        for record in run["benchmarks"]:
            lines += section(record, run["command"])
    (docs / "benchmarks.md").write_text("\n".join(lines).rstrip() + "\n")


def section(record: Result, command: str) -> list[str]:
    machine = record["machine"]
    lines = [f"## {record['name']}", "", record["question"], ""]
    lines += [f"    {command}", ""]
    lines += [
        f"{record['at']}, {machine['processors']} processors ({machine['model']}), {machine['memory_gb']} GB,",
        f"Python {machine['python']}; {disturbances(record)}.",
        "",
        "Size: " + ", ".join(f"{name} {text(value)}" for name, value in record["size"].items()) + ".",
        "",
    ]
    for item in record["tables"]:
        lines += [f"{item['title']}:", "", *markdown_table(item["head"], item["rows"]), ""]
    for note in record["notes"]:
        lines += [note, ""]
    settings = ", ".join(f"`{name}={value}`" for name, value in record["settings"].items())
    lines += ["<details><summary>Settings and processes</summary>", "", settings, ""]
    lines += [f"- {name}: `{line}`" for name, line in record["processes"].items()]
    lines += ["", "</details>", ""]
    return lines


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


ABOUT = {
    "lateness": "how late timers are called at a steady rate: with nothing else waiting, with a million waiting, and"
    " while others are being created over HTTP; beside stock django-celery-beat at its best, with everything preloaded"
    " and nothing changing",
    "peers": "the same rate with stock django-celery-beat, alone and with 10,000 more tasks waiting, and with"
    " procrastinate, as it comes and with its poll tuned; and a small burst",
    "burst": "many timers due at one instant: the last call and the last record, beside bare `requests` calls from as"
    " many processes and threads to the same receiver, to 100 hosts and to one",
    "create": "timers created a second over HTTP, beside a minimal view that saves the two stock rows by the ORM; and"
    " in batches, beside one SQL statement that inserts the same rows",
    "memory": "beat's memory, and the time to claim 500, with nothing and with a million timers waiting",
    "beats": "a burst with two beats and two workers against one of each",
    "slow": "a steady rate to twenty hosts of which two never answer: how late the calls to the others are",
    "isolation": "a steady rate to twenty quick hosts, without and with a crowd of timers that calls other hosts: slow"
    " ones, ones that hang, names that do not resolve, very many due at one instant, very many that recur, bulk"
    " operations",
    "upkeep": "a steady rate while a million timers that ended long ago are being deleted, beside the same without",
    "storage": "bytes on disk for a timer that waits, and for one that was called",
    "pages": "every page of the dashboard and the admin, with each filter, order and search that it offers, over a"
    " million timers that wait and 200,000 that ended: how long it takes, and whether a statement of it reads a whole"
    " table",
}

HEAD = """# Benchmarks

Every figure here was printed by the command beside it; run it to have your own:

<!-- commands: example: measurements, which take minutes to hours -->
```console
$ ./scripts/bench lateness --waiting 1000000 --rate 50
$ ./scripts/bench burst --due 10000
$ ./scripts/bench create
$ ./scripts/bench memory
$ ./scripts/bench beats
$ ./scripts/bench slow
$ ./scripts/bench isolation
$ ./scripts/bench upkeep
$ ./scripts/bench storage
$ ./scripts/bench peers
$ ./scripts/bench pages
$ ./scripts/bench all --json FILE; ./scripts/bench report FILE    # this page
```

What is measured is the service as shipped, started by the commands of `./scripts/run`: events on, Flower connected,
an embedded PostgreSQL that keeps every write from a crash. The receiver is a process of its own that notes when a call
arrives and answers at once. Lateness is that moment less the promised one, so it holds the whole way: the clock, the
broker, the worker, the connection. Comparisons are medians of interleaved runs: one of each, then one of each again.
Nobody's other work should run on the machine meanwhile; what its host withheld from it is given as stolen time.

Each benchmark takes `--quick` for a small size, to try it out. Peers are installed by the first run, in the newest
releases, each into an environment of its own in `.cache/bench`; delete that to have the releases of the day.
"""

# The picture: the share of timers called within a time after their moment, one curve for each subject.

PICTURE = "lateness.svg"
WIDTH, HEIGHT = 900, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 290, 30, 50
LEAST_MS, MOST_MS = 1.0, 100_000.0
# By the first word of a curve's name, in turn.
COLOURS = {
    "ours": ("#0b6e4f", "#2f9e77", "#8fd3b6"),
    "stock": ("#b23a48", "#e08e45"),
    "procrastinate": ("#5b5f97", "#a3a7d6"),
}


def across(milliseconds: float) -> float:
    share = math.log10(max(milliseconds, LEAST_MS) / LEAST_MS) / math.log10(MOST_MS / LEAST_MS)
    return LEFT + min(share, 1.0) * (WIDTH - LEFT - RIGHT)


def up(percent: float) -> float:
    return HEIGHT - BOTTOM - percent / 100 * (HEIGHT - TOP - BOTTOM)


def picture(curves: Sequence[Mapping[str, Any]]) -> str:
    """Draw curves: name, and points of (percent of all timers, milliseconds late)."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="font:12px sans-serif">',
        "<title>Share of timers called within a time after their moment</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for milliseconds, label in (
        (1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10_000, "10 s"), (100_000, "100 s"),
    ):  # fmt: skip
        x = across(milliseconds)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for percent in (0, 25, 50, 75, 90, 100):
        y = up(percent)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">called within, after the moment</text>')
    used: Counter[str] = Counter()
    for number, curve in enumerate(curves):
        kind = curve["name"].partition(",")[0]
        colours = COLOURS[kind]
        colour = colours[used[kind] % len(colours)]
        used[kind] += 1
        points = [(percent, late) for percent, late in curve["points"] if late is not None]
        path = " ".join(f"{across(late):.1f},{up(percent):.1f}" for percent, late in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = TOP + 12 + 20 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 38}" y="{y}">{escaped(curve["name"])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
