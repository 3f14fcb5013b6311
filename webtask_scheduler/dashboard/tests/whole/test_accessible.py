"""Every page by the rules of axe-core, in both themes and right to left, and by its Content-Security-Policy."""

import json
import re
import urllib.error
import urllib.request
from datetime import timedelta

import pytest
from django.utils import timezone

from webtask_scheduler.dashboard import queries
from webtask_scheduler.dashboard.urls import urlpatterns
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import BulkOperation, HostHour, new_id
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.services import channels, notifying
from webtask_scheduler.scheduler.services.channels import NewChannel
from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING, browsing, complaints_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
    pytest.mark.django_db(transaction=True),
]

OTHERS = ("nonsense", "admin/login/")
RULES = {"resultTypes": ["violations"]}
# The colours are all that another theme changes.
COLOURS = RULES | {"runOnly": ["color-contrast"]}
VARIANTS = {
    "light": ({"color_scheme": "light"}, RULES),
    "dark": ({"color_scheme": "dark"}, COLOURS),
    "arabic": ({"locale": "ar"}, RULES),
    "phone": ({"viewport": {"width": 390, "height": 844}}, RULES),
}


def post(server, path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def pages(server):
    """Return the paths of all pages, with something on each."""
    once = post(server, "timer", {"web_url": "http://a.example/hook", "seconds": 3600, "name": "once"})
    post(server, f"timer/{once['task_id']}/run", {})
    again = post(server, "timer", {"web_url": "http://b.example/hook", "cron": "0 9 * * *", "labels": {"team": "a"}})
    bulk = post(server, "timer/bulk", {"action": "pause", "filter": {"host": "b.example"}, "dry_run": True})
    at = timezone.now().replace(microsecond=0) + timedelta(hours=2)
    services.schedule([services.NewTimer(web_url="http://a.example/", due_at=at) for _ in range(queries.HERD_LEAST)])
    second = {"due_from": instant_text(at), "due_to": instant_text(at + timedelta(seconds=1))}
    spread = post(server, "timer/bulk", {"action": "spread", "filter": second, "dry_run": True})
    services.step_bulk(BulkOperation.objects.get(pk=spread["bulk_id"]))
    for host, counts in (("a.example", {"failed": 4}), ("b.example", {"put_off": 4}), ("c.example", {})):
        row = {"calls": 10, "failed": 0, "put_off": 0, "late": [1] * 18, "durations": [1] * 18}
        hour = timezone.now().replace(minute=0, second=0, microsecond=0)
        HostHour.objects.create(hour=hour, host=host, process="a", batch=new_id(), **(row | counts))
    channel = channels.add(NewChannel(kind="webhook", address="http://a.example/hook", on_recovery=True), owner_id=None)
    notifying.test(channel.pk, visible={"owner": None})
    values = {"timer_id": again["task_id"], "operation_id": bulk["bulk_id"], "name": "a.example", "number": "1"}
    values |= {"action": "stop", "secret_id": "1", "key_id": "1", "channel_id": str(channel.pk)}
    found = [re.sub(r"<(?:\w+:)?(\w+)>", lambda name: values[name[1]], str(one.pattern)) for one in urlpatterns]
    return [path for path in found if is_page(server, path)] + [
        f"timers/{once['task_id']}",
        f"operations/{spread['bulk_id']}",
        *OTHERS,
    ]


def is_page(server, path):
    """Return whether a browser gets a page there: no form that does something, no file, no picture."""
    request = urllib.request.Request(f"{server.url}/{path}", headers={"Accept": "text/html"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.headers.get_content_type() == "text/html"
    except urllib.error.HTTPError as error:
        error.close()
        assert error.code in (404, 405), path
        return False


def test_every_page_is_accessible_in_every_theme(live_server):
    sync_api = browsing()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    paths, faults, complaints = pages(live_server), [], []
    assert len(paths) > 18
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for variant, (settings, rules) in VARIANTS.items():
            page = browser.new_context(**settings).new_page()
            complaints_of(page, complaints)
            for path in paths:
                page.goto(f"{live_server.url}/{path}")
                for found in axe.run(page, options=rules).response["violations"]:
                    if found["impact"] in ("serious", "critical"):
                        where = "; ".join(node["html"][:200] for node in found["nodes"][:3])
                        faults.append(f"/{path} ({variant}) {found['id']}: {found['help']}: {where}")
        browser.close()
    assert faults == []
    assert [said for said in complaints if "404 (Not Found)" not in said and "live=1" not in said] == []
