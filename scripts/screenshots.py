"""Pictures of every page of a service in use: light, dark, on a phone, and in Arabic.

    ./scripts/screenshots [DIRECTORY]     docs/screenshots, if none is named

The service is a real one that has run for a minute. Its receivers are played by a proxy that answers for them, under
names of a hosts file that only this process sees (`unshare`, on Linux). The week before is filled in, because nobody
wants to wait for it.
"""

import argparse
import base64
import contextlib
import http.server
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "screenshots"
# How long timers are called before the pictures are taken.
BUSY_SECONDS = 60
QUALITY = 82
# The same on every run, so that two runs differ by what changed.
DICE = random.Random(7)  # noqa: S311 - no secret

# How each receiver answers: with this status, after so many milliseconds, in so many of 100 calls.
RECEIVERS = {
    "billing.example.com": (200, 20, 100),
    "reports.example.com": (200, 140, 100),
    "shop.example.com": (200, 45, 97),
    "crm.example.com": (503, 15, 100),
    "hooks.example.com": (200, 8, 90),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    "arabic": {"color_scheme": "light", "locale": "ar"},
}


class _Receivers(http.server.BaseHTTPRequestHandler):
    """Answers for all receivers, as the proxy between the service and them."""

    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        # What follows on this connection is meant for the receiver, which is here.
        self.send_response_only(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        status, wait_ms, share = RECEIVERS.get(self.headers["host"], (404, 1, 100))
        time.sleep(wait_ms / 1000)
        if DICE.random() * 100 >= share:
            status = 500
        body = b'{"received": true}' if status == 200 else b'{"error": "try again later"}'  # noqa: PLR2004
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - its words

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def receivers() -> Iterator[str]:
    """Play the receivers; yield the address of their proxy."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receivers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def timers() -> list[dict[str, Any]]:
    """Return timers as people make them: many that are called within the minute, some later, some again and again."""
    once = [
        {
            "web_url": f"http://{host}/{path}",
            "name": f"{name} {number}",
            "seconds": 2 + number * (BUSY_SECONDS - 20) // 60,
            "labels": {"team": team},
            "retry": {"max_attempts": 2, "backoff": "fixed", "min_seconds": 5},
        }
        for number in range(60)
        for host, path, name, team in (
            ("billing.example.com", f"invoices/{4100 + number}/remind", "Invoice reminder", "billing"),
            ("shop.example.com", f"carts/{DICE.randrange(9999)}/expire", "Cart expires", "shop"),
            ("crm.example.com", "leads/sync", "Lead sync", "sales"),
            ("hooks.example.com", "v1/trial-ends", "Trial ends", "growth"),
        )
        if host != "crm.example.com" or number % 5 == 0
    ]
    later: list[dict[str, Any]] = [
        {"web_url": "http://reports.example.com/nightly", "name": "Nightly report", "cron": "30 2 * * *"},
        {"web_url": "http://billing.example.com/month", "name": "Close the month", "cron": "0 6 1 * *"},
        {"web_url": "http://shop.example.com/stock", "name": "Stock check", "every": "PT10S"},
        {"web_url": "http://hooks.example.com/beat", "name": "Heartbeat", "every": "PT5S"},
        {"web_url": "http://crm.example.com/digest", "name": "Weekday digest", "cron": "0 9 * * 1-5"},
    ]
    zone = {"timezone": "Europe/Berlin"}
    later = [one | (zone if "cron" in one else {}) | {"labels": {"kind": "schedule"}} for one in later]
    later += [
        {"web_url": f"http://shop.example.com/sale/{hour}", "name": f"Sale ends {hour}", "seconds": hour * 3600}
        for hour in range(1, 24)
    ]
    return [*later, *once]


def fill_the_week_before() -> None:
    """Write what was counted in each hour of the week before, as upkeep keeps it."""
    from django.db.models import BigIntegerField

    from webtask_scheduler.scheduler.models import Minute
    from webtask_scheduler.scheduler.rules import histogram

    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    nothing: dict[str, Any] = {
        field.name: 0
        for field in Minute._meta.get_fields()  # noqa: SLF001 - documented
        if isinstance(field, BigIntegerField)
    }
    nothing |= {name: histogram.empty() for name in ("retry_late", "claims", "publishes", "outcomes")}
    nothing |= dict.fromkeys(("retry_late_seconds", "claim_seconds", "publish_seconds", "led_seconds"), 0.0)
    nothing |= {"process": "", "batch": uuid.UUID(int=0), "slots": 32}
    hours = [(now - timedelta(hours=number), 3600) for number in range(1, 24 * 7)]
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    minutes = [(minute - timedelta(minutes=number), 60) for number in range(1, 60)]
    for begins_at, seconds in hours + minutes:
        busy = 2 if 7 <= begins_at.hour <= 19 else 1  # noqa: PLR2004 - a day's work
        calls = int(DICE.uniform(300, 500) * busy) if seconds > 60 else int(DICE.uniform(80, 160))  # noqa: PLR2004
        late, durations, failed = histogram.empty(), histogram.empty(), DICE.randrange(6)
        for _ in range(calls):
            late[histogram.bucket_of(DICE.lognormvariate(-4.4, 0.5))] += 1
            durations[histogram.bucket_of(DICE.lognormvariate(-3.5, 0.6))] += 1
        counted = {"succeeded": calls - failed, "failed": failed, "retried": failed * 2, "created": calls}
        times = {"first_late": late, "first_late_seconds": calls * 0.012, "durations": durations}
        times |= {"duration_seconds": calls * 0.03, "begins_at": begins_at, "stored_at": begins_at, "seconds": seconds}
        Minute.objects.create(**nothing | counted | times)


def pages(first: dict[str, str]) -> dict[str, str]:
    """Return the paths of all pages by the names of their pictures. `first` has the id of one timer of each kind."""
    return {
        "overview": "/",
        "timers": "/timers",
        "timer": f"/timers/{first['Heartbeat']}",
        "timer-once": f"/timers/{first['Sale ends 1']}",
        "verify": f"/timers/{first['Heartbeat']}/verify",
        "delivery": f"/timers/{first['Lead sync 0']}/deliveries/1",
        "new": "/timers/new",
        "edit": f"/timers/{first['Nightly report']}/edit",
        "dead": "/dead",
        "operations": "/operations",
        "hosts": "/hosts",
        "host": "/hosts/shop.example.com",
        "upcoming": "/upcoming",
        "upcoming-week": "/upcoming?view=week",
        "import": "/import",
        "settings": "/settings",
        "notifications": "/settings/notifications",
        "status": "/status",
        "punctuality": "/punctuality?window=7d",
        "system": "/system",
        "login": "/login",
        "demo-receiver": "/demo/receiver",
        "not-found": "/nonsense",
        "api-docs": "/api/docs",
    }


def admin_pages() -> dict[str, str]:
    """Return the paths of pages for superusers."""
    return {
        "admin": "/admin/",
        "admin-tasks": "/admin/django_celery_beat/periodictask/",
        "admin-timers": "/admin/scheduler/timer/",
        "admin-deliveries": "/admin/scheduler/delivery/",
    }


def take(browser: Any, url: str, directory: Path, first: dict[str, str], session: str) -> None:
    """Take all pictures. `session` is the cookie of a superuser."""
    for variant, settings in VARIANTS.items():
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | settings))
        for name, path in pages(first).items():
            _picture(context, url + path, directory / f"{name}-{variant}.webp")
        context.add_cookies([{"name": "sessionid", "value": session, "url": url}])
        for name, path in admin_pages().items() if variant != "phone" else ():
            _picture(context, url + path, directory / f"{name}-{variant}.webp")
        context.close()
        print(f"{variant}: {len(list(directory.glob(f'*-{variant}.webp')))} pictures")


def _picture(context: Any, url: str, file: Path) -> None:
    page = context.new_page()
    page.goto(url)
    page.wait_for_load_state("networkidle")
    picture(page, file)
    page.close()


def picture(page: Any, file: Path) -> None:
    """Write what a page shows as WebP, which is a third of a PNG, and which Playwright does not know how to ask for."""
    asked = {"format": "webp", "quality": QUALITY, "captureBeyondViewport": False}
    taken = page.context.new_cdp_session(page).send("Page.captureScreenshot", asked)
    file.write_bytes(base64.b64decode(taken["data"]))


def superuser_session() -> str:
    """Return the session of a superuser who has logged in."""
    from django.contrib.auth import get_user_model
    from django.test import Client

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("ada@example.com", "not to be used"))
    return client.cookies["sessionid"].value


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=PICTURES)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    with receivers() as proxy:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "config.settings.local",
            "WEBTASK_EGRESS_PROXY": proxy,
            "WEBTASK_STATUS": "public",
        }
        import django

        django.setup()
        from django.core.management import call_command
        from playwright.sync_api import sync_playwright

        from webtask_scheduler.scheduler import services
        from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING
        from webtask_scheduler.scheduler.tests.support.service import running

        if CHROMIUM is None:
            sys.exit(MISSING)
        call_command("migrate", verbosity=0)
        fill_the_week_before()
        session = superuser_session()
        services.add_secret(None, owner_id=None, hosts=["hooks.example.com"])
        with running("web", "worker", "beat") as service:
            made = [service.post(timer) for timer in timers()]
            refused = [body for status, body in made if status != 201]  # noqa: PLR2004 - created
            if refused:
                sys.exit(f"{len(refused)} timers were refused: {refused[0]}")
            first = {body["name"]: body["task_id"] for _, body in made}
            print(f"{len(made)} timers are called for {BUSY_SECONDS} seconds …")
            time.sleep(BUSY_SECONDS)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                take(browser, f"http://127.0.0.1:{service.port}", directory, first, session)
                browser.close()
    size = sum(file.stat().st_size for file in directory.glob("*.webp"))
    print(f"{size / 1e6:.1f} MB in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
