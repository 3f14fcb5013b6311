"""Fetches every page of the dashboard and the admin over HTTP, with a million timers waiting."""

import http.client
import json
import sys
import time
from collections import defaultdict
from typing import Any

from benchmarks import report, rig
from benchmarks.report import Result, bar, median, table

BARS_MS = {"dashboard": 150.0, "admin": 300.0}
HARD_BAR_MS = 1000.0
# With fewer rows, reading a whole table is the quickest way, and says nothing.
ROWS_LEAST = 500_000
# A page that takes longer than this is given up.
PATIENCE_SECONDS = 30.0


class Web(rig.Service):
    """The web server alone: nothing is called meanwhile."""

    def __init__(self, site: rig.Site) -> None:
        super().__init__(site, WEBTASK_STATUS="public")
        self.names = ["web"]


def measure(sites: rig.Sites, *, waiting: int, ended: int, runs: int) -> Result:
    site = sites.bare("pages").migrate()
    web = Web(site)
    record = report.result(
        "pages",
        question=f"How long does each page of the dashboard and the admin take, with {waiting:,} timers waiting and"
        f" {ended:,} ended?",
        settings=site.settings(),
        processes=web.commands(),
    )
    rig.say(f"Storing {waiting} timers that wait and {ended} that ended")
    site.run([sys.executable, "-m", "benchmarks.inside", "crowd", str(waiting), str(ended)])
    rig.say("Asking for the plans of all pages")
    found = json.loads(site.inside("visits"))
    pages: list[dict[str, Any]] = found["visits"]
    record["size"] = {"waiting": waiting, "ended": ended, "pages": len(pages), "runs": runs}
    if waiting + ended < ROWS_LEAST:
        record["notes"].append(f"What plans read is told for {ROWS_LEAST:,} timers and more.")
        for one in pages:
            one["scans"] = []
    meter = rig.Meter()
    with web:
        fetch_all(web, pages, found["cookies"], runs=runs)
    machine = meter.read()
    record["runs"].append({"subject": "ours", "run": 1, "machine": machine, "pages": pages})
    rig.say(f"  {rig.disturbance(machine)}")
    show(record, pages)
    add_bars(record, pages)
    return record


def fetch_all(web: rig.Service, pages: list[dict[str, Any]], cookies: dict[str, str], *, runs: int) -> None:
    """Fetch each page once uncounted and then `runs` times, one after the other, on a kept connection."""
    connection = http.client.HTTPConnection("127.0.0.1", web.web_port, timeout=PATIENCE_SECONDS)
    try:
        for one in pages:
            took = []
            for _ in range(runs + 1):
                begun = time.perf_counter()
                headers = {"Cookie": cookies[one["who"]], "Accept": "text/html"}
                connection.request("GET", one["path"], headers=headers)
                answer = connection.getresponse()
                answer.read()
                took.append((time.perf_counter() - begun) * 1000)
                if answer.status != one["status"]:
                    one["status"] = answer.status
            one["took_ms"] = took[1:]
            one["median_ms"], one["worst_ms"] = median(took[1:]), max(took[1:])
            said = "" if is_met(one) else "  NOT MET"
            said += "  READS A WHOLE TABLE" if one["scans"] else ""
            rig.say(f"  {one['median_ms']:7.1f} {one['worst_ms']:7.1f} ms  {one['path']} ({one['who']}){said}")
    finally:
        connection.close()


def is_met(one: dict[str, Any]) -> bool:
    # A page that looks on and on for what is rare, and says how far it came, may take longer.
    limit = HARD_BAR_MS if one["is_short"] else BARS_MS[one["of"]]
    return bool(one["status"] == 200 and one["median_ms"] <= limit and one["worst_ms"] <= HARD_BAR_MS)


def show(record: Result, pages: list[dict[str, Any]]) -> None:
    by_page: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in pages:
        by_page[one["of"], one["page"]].append(one)
    for of, limit in BARS_MS.items():
        rows: list[list[Any]] = []
        for (kind, page), all_of in by_page.items():
            if kind != of:
                continue
            slowest = max(all_of, key=lambda one: one["median_ms"])
            query = slowest["path"].partition("?")[2]
            rows.append(
                [
                    page,
                    len(all_of),
                    median([one["median_ms"] for one in all_of]),
                    slowest["median_ms"],
                    max(one["worst_ms"] for one in all_of),
                    max(one["statements"] for one in all_of),
                    max(one["size"] for one in all_of) // 1024,
                    # A page of the report is no place for ids.
                    f"`{query}`" if query else "",
                ]
            )
        table(
            record,
            f"Pages of the {of}, each with every filter, order and search that it offers; the bar is {limit:.0f} ms",
            ["page", "fetched", "median ms", "slowest ms", "worst run ms", "statements", "KB", "slowest with"],
            rows,
        )
    scans = sorted({scan for one in pages for scan in one["scans"]})
    if scans:
        table(record, "Statements that read a whole table", ["table: statement"], [[scan] for scan in scans])


def add_bars(record: Result, pages: list[dict[str, Any]]) -> None:
    for of, limit in BARS_MS.items():
        ours = [one for one in pages if one["of"] == of and not one["is_short"]]
        slowest = max(ours, key=lambda one: one["median_ms"])
        bar(
            record,
            f"pages: slowest of {len(ours)} of the {of}",
            limit=f"{limit:.0f} ms",
            value=f"{slowest['median_ms']:.0f} ms, {slowest['path']}",
            met=slowest["median_ms"] <= limit,
        )
    searches = [one for one in pages if one["is_short"]]
    if searches:
        slowest = max(searches, key=lambda one: one["median_ms"])
        bar(
            record,
            f"pages: slowest of {len(searches)} that look on for what is rare, and say how far",
            limit=f"{HARD_BAR_MS:.0f} ms",
            value=f"{slowest['median_ms']:.0f} ms, {slowest['path']}",
            met=slowest["median_ms"] <= HARD_BAR_MS,
        )
    worst = max(pages, key=lambda one: one["worst_ms"])
    bar(
        record,
        "pages: worst run of all",
        limit=f"{HARD_BAR_MS:.0f} ms",
        value=f"{worst['worst_ms']:.0f} ms, {worst['path']}",
        met=worst["worst_ms"] <= HARD_BAR_MS,
    )
    refused = [one for one in pages if one["status"] != 200]
    value = "0" if not refused else f"{len(refused)}, {refused[0]['status']} of {refused[0]['path']}"
    bar(record, "pages: not answered", limit="0", value=value, met=not refused)
    scanning = [one for one in pages if one["scans"]]
    value = "0" if not scanning else f"{len(scanning)}, {scanning[0]['path']}"
    bar(record, "pages: read a whole table of timers, deliveries or attempts", limit="0", value=value, met=not scanning)
