"""The browser of the tests that drive one."""

import shutil
from typing import Any

import pytest

from webtask_scheduler.scheduler.tests.support.waiting import PATIENCE_SECONDS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "No chromium, chromium-browser or google-chrome is installed."
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browsing() -> Any:
    """Return Playwright's module, whose `expect` is as patient as `wait_until`; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
    sync_api.expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    return sync_api


def complaints_of(page: Any, complaints: list[str]) -> list[str]:
    """Add a page's errors and warnings to a list, and what its Content-Security-Policy blocks; return the list."""

    def hear(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def fail(request: Any) -> None:
        # What a page was still loading when it was left is given up by the browser itself.
        if request.failure != "net::ERR_ABORTED":
            complaints.append(request.url)

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", fail)
    return complaints
