"""Real browsers that watch the dashboard's live pages until this process's input ends.

    python -m benchmarks.watchers http://127.0.0.1:PORT COUNT

It says "watching" when all pages are there, and at the end how many answers the pages got. The browsers take what the
machine leaves: in use, they run on the machines of those who watch.
"""

import os
import select
import sys
from typing import Any

LEAST_PRIORITY = 19
PAGES = ("/", "/timers", "/timers?status=scheduled", "/punctuality")


def watch(base: str, count: int) -> None:
    # No other benchmark needs them.
    from playwright.sync_api import sync_playwright

    from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING

    if CHROMIUM is None:
        sys.exit(MISSING)
    os.nice(LEAST_PRIORITY)
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
            page.wait_for_timeout(200)
        print(len(answers) - before, flush=True)
        for browser in browsers:
            browser.close()


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
