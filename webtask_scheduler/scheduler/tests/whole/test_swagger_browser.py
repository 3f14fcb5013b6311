"""The Swagger page in a real browser: it works, and asks nobody but this service."""

import re

import pytest

from webtask_scheduler.access import keys
from webtask_scheduler.scheduler.models import Timer
from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING, complaints_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
    pytest.mark.django_db(transaction=True),
]


def test_a_timer_is_created_from_the_page_without_leaving_this_service(live_server):
    sync_api = pytest.importorskip("playwright.sync_api")
    asked = []
    # No database here while the browser runs: Playwright's loop makes Django take this thread for an asynchronous one.
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.on("request", lambda request: asked.append(request.url))
        complaints = complaints_of(page, [])

        page.goto(f"{live_server.url}/api/docs")
        create = page.locator("#operations-scheduler-v1_scheduler_timer_create")
        retrieve = page.locator("#operations-scheduler-v1_scheduler_timer_retrieve")
        sync_api.expect(create).to_be_visible()
        sync_api.expect(retrieve).to_be_visible()

        create.locator(".opblock-summary").click()
        create.get_by_role("button", name="Try it out").click()
        create.get_by_role("button", name="Execute").click()
        answer = create.locator(".live-responses-table")
        sync_api.expect(answer.locator("tbody .response-col_status").first).to_contain_text("201")
        text = answer.inner_text()
        task_id = re.search(r'"task_id":\s*"([0-9a-f-]{36})"', text).group(1)
        assert '"time_left_in_seconds": 5' in text

        retrieve.locator(".opblock-summary").click()
        retrieve.get_by_role("button", name="Try it out").click()
        retrieve.locator("input").first.fill(task_id)
        retrieve.get_by_role("button", name="Execute").click()
        answer = retrieve.locator(".live-responses-table")
        sync_api.expect(answer.locator("tbody .response-col_status").first).to_contain_text("200")
        assert task_id in answer.inner_text()
        browser.close()

    assert str(Timer.objects.get().pk) == task_id
    assert [url for url in asked if not url.startswith((live_server.url + "/", "data:", "blob:"))] == []
    assert complaints == []


def test_authorize_takes_a_key(live_server, settings, user):
    sync_api = pytest.importorskip("playwright.sync_api")
    settings.WEBTASK_API_AUTH = "key"
    key = keys.make(name="page", owner_id=user.pk, scopes=["timers:read"]).text
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(f"{live_server.url}/api/docs")
        found = page.locator("#operations-scheduler-v1_scheduler_timer_list")
        found.locator(".opblock-summary-control").click()
        found.get_by_role("button", name="Try it out").click()
        status = found.locator(".live-responses-table tbody .response-col_status").first
        found.get_by_role("button", name="Execute").click()
        sync_api.expect(status).to_contain_text("401")
        page.locator(".scheme-container .btn.authorize").click()
        page.locator(".auth-container input").fill(key)
        page.locator(".auth-btn-wrapper button.authorize").click()
        page.locator(".auth-btn-wrapper .btn-done").click()
        found.get_by_role("button", name="Execute").click()
        sync_api.expect(status).to_contain_text("200")
        browser.close()
