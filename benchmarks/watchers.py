"""Browsers that watch the dashboard's live pages until this process's input ends; or what asks as they do.

    python -m benchmarks.watchers http://127.0.0.1:PORT COUNT [plainly]

It says "watching" when all pages are there, and at the end how many answers the pages got. The browsers are real ones,
and take what the machine leaves: in use, they run on the machines of those who watch. `plainly` asks for the same pages
and their live parts, at the same pace, and draws nothing: what is left is what the service itself does for them.
"""

import html
import http.client
import os
import re
import select
import sys
import threading
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

LEAST_PRIORITY = 19
PAGES = ("/", "/timers", "/timers?status=scheduled", "/punctuality")


def watch(base: str, count: int) -> None:
    # No other benchmark needs them.
    from playwright.sync_api import sync_playwright

    from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING

    if CHROMIUM is None:
        sys.exit(MISSING)
    answers: list[Any] = []
    with sync_playwright() as playwright:
        browsers = [playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) for _ in range(count)]
        for number, browser in enumerate(browsers):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - it is given an attribute
            page.goto(base + PAGES[number % len(PAGES)])
        before = len(answers)
        print("watching", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            # Events are taken while a page is waited for.
            page.wait_for_timeout(500)
        print(len(answers) - before, flush=True)
        for browser in browsers:
            browser.close()


def ask(base: str, count: int) -> None:
    pages = [Asker(base, PAGES[number % len(PAGES)]) for number in range(count)]
    for page in pages:
        page.start()
    print("watching", flush=True)
    select.select([sys.stdin], [], [])
    # One that stopped asking would make the service look quicker than it is.
    if troubles := [page.trouble for page in pages if page.trouble]:
        sys.exit("\n".join(troubles))
    print(sum(page.answers for page in pages), flush=True)


class Asker(threading.Thread):
    """Asks for a page at once, and when started for its live part, as `dash.js` does."""

    def __init__(self, base: str, path: str) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        # Why it stopped asking.
        self.trouble = ""
        self._connection = http.client.HTTPConnection(urlsplit(base).netloc)
        self._page = self._get(path)[1]

    def run(self) -> None:
        try:
            self._ask()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def _ask(self) -> None:
        live, every = (self._attribute(name) for name in ("live", "every"))
        if not live:
            return
        # A list asks for the rows that it shows.
        is_list = re.search(r"<ul[^>]*\sdata-ids", self._page)
        more = {"ids": ",".join(re.findall(r'<li[^>]*\sdata-key="([^"]+)"', self._page))} if is_list else {}
        while True:
            # The pace that the page asks for.
            time.sleep(int(every) / 1000)
            more["seen"], _ = self._get(f"{live}&{urlencode(more)}")
            self.answers += 1

    def _attribute(self, name: str) -> str:
        found = re.search(r'<\w+[^>]*\sdata-live="[^>]*>', self._page)
        value = re.search(rf'data-{name}="([^"]*)"', found[0]) if found else None
        return html.unescape(value[1]) if value else ""

    def _get(self, path: str) -> tuple[str, str]:
        self._connection.request("GET", path, headers={"Accept": "text/html"})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status not in (200, 204):
            raise ValueError(f"{path} was answered {answer.status}.")
        return answer.headers.get("X-Seen", ""), text


if __name__ == "__main__":
    os.nice(LEAST_PRIORITY)
    (ask if sys.argv[3:] == ["plainly"] else watch)(sys.argv[1], int(sys.argv[2]))
