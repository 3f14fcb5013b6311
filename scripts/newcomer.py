"""The first minutes of a newcomer, as pictures: from a clone to a timer that turned green in the browser.

    .venv/bin/python -m scripts.newcomer [DIRECTORY]     docs/screenshots, if none is named

It clones the last commit to a folder of its own, starts it by the command of the README, and presses "Create". Beside
each picture it prints the seconds since the clone began.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from scripts.screenshots import PICTURES, ROOT, picture

START_SECONDS = 300.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
        return bool(answer.status == 200)  # noqa: PLR2004
    return False


def main() -> int:
    from playwright.sync_api import expect, sync_playwright

    from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING

    parser = argparse.ArgumentParser(prog="scripts.newcomer", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=PICTURES)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    if CHROMIUM is None:
        sys.exit(MISSING)
    port, flower = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    own = ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PORT": str(port), "FLOWER_PORT": str(flower)}
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        began = time.monotonic()

        def shot(number: int, said: str) -> None:
            picture(page, directory / f"newcomer-{number}.webp")
            print(f"{time.monotonic() - began:5.0f} s  {said}")

        subprocess.run(["git", "clone", "--quiet", str(ROOT), f"{scratch}/clone"], check=True)
        service = subprocess.Popen(
            ["./scripts/run"],
            cwd=f"{scratch}/clone",
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not is_up(url):
                if service.poll() is not None or time.monotonic() - began > START_SECONDS:
                    sys.exit("./scripts/run did not come up.")
                time.sleep(0.2)
            page.goto(url)
            shot(1, "the overview, with one line that makes a first timer")
            page.get_by_role("button", name="Create").click()
            head = page.locator("[data-key=head]")
            expect(head.locator(".clock")).to_contain_text("until the call")
            shot(2, "the countdown runs")
            expect(head.get_by_role("status")).to_have_text("Succeeded", timeout=20_000)
            shot(3, "it turned green")
            page.goto(f"{url}/demo/receiver")
            shot(4, "what the receiver got")
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(30)
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
