"""The Swagger page in a real browser: it works, and asks nobody but this service."""

import pytest

from webtask_scheduler.access import keys
from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING, browsing, complaints_of
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
    pytest.mark.django_db(transaction=True),
]


def operation_on(page, name, *, group="Timers"):
    """Return the part of the page that is about an operation, unfolded and ready to be tried out."""
    found = page.locator(f"#operations-{group}-v1_scheduler_{name}")
    found.locator(".opblock-summary-control").click()
    found.get_by_role("button", name="Try it out").click()
    return found


def execute(found, status):
    """Send what an operation's part holds; return the answer, which has this status."""
    with found.page.expect_response(lambda answer: "/api/v1/" in answer.url) as sent:
        found.locator(".execute").click()
    assert sent.value.status == status, sent.value.text()
    return sent.value.json()


@pytest.mark.processes
def test_timer_is_created_from_the_page_and_seen_to_succeed_without_leaving_this_service():
    sync_api = browsing()
    asked = []
    # No database here while the browser runs: Playwright's loop makes Django take this thread for an asynchronous one.
    with running("web", "worker", "beat") as service, sync_api.sync_playwright() as playwright:
        own = f"http://127.0.0.1:{service.port}"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.on("request", lambda request: asked.append(request.url))
        complaints = complaints_of(page, [])

        page.goto(f"{own}/api/docs")
        first = page.locator(".opblock-summary-description")
        sync_api.expect(first.first).to_have_text("Create a timer")
        assert first.all_inner_texts()[:3] == ["Create a timer", "Look at a timer", "List timers"]
        groups = page.locator(".opblock-tag").all_inner_texts()
        assert [text.split("\n")[0] for text in groups[:3]] == ["Timers", "Schedules", "Many at once"]

        # With what the page shows, and nothing typed.
        made = execute(operation_on(page, "timer_create"), 201)
        assert (made["web_url"], made["time_left_in_seconds"]) == (f"{own}/demo/receiver", 5)
        retrieve = operation_on(page, "timer_retrieve")
        retrieve.locator("input").first.fill(made["task_id"])
        wait_until(lambda: execute(retrieve, 200)["status"] == "succeeded")
        sync_api.expect(retrieve.locator(".live-responses-table")).to_contain_text('"status": "succeeded"')

        # As a form: what was not filled in is not there.
        create = page.locator("#operations-Timers-v1_scheduler_timer_create")
        create.locator(".opblock-section-request-body select.content-type").select_option(
            "application/x-www-form-urlencoded"
        )
        assert execute(create, 201)["time_left_in_seconds"] == 5
        create.locator(".opblock-section-request-body select.content-type").select_option("application/json")
        create.get_by_role("button", name="Cancel").click()
        create.locator(".tablinks[data-name=model]").first.click()
        head = create.locator(".json-schema-2020-12-head").first.inner_text()
        assert ("NewTimer" in head, "any" in head) == (True, False)
        fields = create.locator(".json-schema-2020-12-property .json-schema-2020-12__title")
        assert fields.all_inner_texts()[:4] == ["web_url", "seconds", "minutes", "hours"]
        browser.close()

    assert [url for url in asked if not url.startswith((f"{own}/", "data:", "blob:"))] == []
    assert complaints == []


def test_authorize_takes_a_key(live_server, settings, user):
    sync_api = browsing()
    settings.WEBTASK_API_AUTH = "key"
    key = keys.make(name="page", owner_id=user.pk, scopes=["timers:read"]).text
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(f"{live_server.url}/api/docs")
        found = page.locator("#operations-Timers-v1_scheduler_timer_list")
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
