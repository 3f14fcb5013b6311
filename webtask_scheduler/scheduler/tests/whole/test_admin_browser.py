"""A person at the admin, with a real browser."""

import os
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery, State
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING, browsing, complaints_of
from webtask_scheduler.users.models import User

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]


@pytest.fixture
def complaints():
    """What the browser complains of: its Content-Security-Policy that blocks something, a file that is not there."""
    return []


@pytest.fixture
def browser_page(monkeypatch, complaints):
    """Return a page of a browser, and fail if there are complaints in the end."""
    playwright = browsing()
    # Playwright runs an event loop in this thread, which makes Django suspect the tests' own queries.
    monkeypatch.setitem(os.environ, "DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    # The server's threads must not hold connections to the test database for longer than their requests.
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        complaints_of(page, complaints)
        yield page
        browser.close()
        # Under that loop Django keeps connections of its own.
        connections.close_all()
    assert complaints == []


def test_person_logs_in_finds_a_timer_and_disables_it(browser_page, live_server, make_timer, delivery_of):
    User.objects.create_superuser("ada@example.com", "correct horse battery")
    timer = make_timer("http://shop.example/hook", delay_seconds=1800)
    other = make_timer("http://other.example/hook", delay_seconds=7200)
    page = browser_page

    page.goto(f"{live_server.url}/admin/django_celery_beat/periodictask/")
    page.get_by_label("E-mail address").fill("Ada@Example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.get_by_title(str(timer.pk), exact=True).wait_for()
    page.get_by_title(str(other.pk), exact=True).wait_for()

    page.get_by_role("link", name="In the next hour").click()
    page.get_by_title(str(timer.pk), exact=True).wait_for()
    assert page.get_by_title(str(other.pk), exact=True).count() == 0

    page.get_by_label("host").fill("shop.example")
    page.get_by_label("host").press("Enter")
    page.get_by_title(str(timer.pk), exact=True).click()
    page.get_by_text("Scheduled").wait_for()
    page.get_by_label("Enabled").uncheck()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("was changed successfully").wait_for()
    assert delivery_of(timer).state == State.PAUSED

    page.locator("td.field-status", has_text="Paused").wait_for()
    page.get_by_role("link", name="http://shop.example/hook").click()
    page.get_by_text("View timer").wait_for()
    assert page.locator(".field-status .readonly", has_text="Paused").count() == 1


def test_person_ticks_rows_and_runs_an_action(browser_page, live_server, make_timer):
    User.objects.create_superuser("ada@example.com", "correct horse battery")
    waiting, ended = make_timer(), make_timer()
    services.cancel(ended.pk)
    page = browser_page

    page.goto(f"{live_server.url}/admin/django_celery_beat/periodictask/")
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.locator("#action-toggle").check()
    page.locator("select[name=action]").first.select_option("disable_tasks")
    page.get_by_role("button", name="Go").first.click()
    page.get_by_text("This is about 2 timers.").wait_for()
    page.get_by_role("button", name="Yes, do it").click()
    page.get_by_text("1 timer was successfully disabled.").wait_for()
    page.get_by_text(f"1 timer has ended and stays as it is: {ended.pk}").wait_for()
    assert Delivery.objects.get(timer=waiting).state == State.PAUSED


def test_person_follows_the_link_to_a_schedule_and_changes_it(browser_page, live_server, make_timer):
    User.objects.create_superuser("ada@example.com", "correct horse battery")
    starts_at = timezone.now() + timedelta(hours=1)
    recurrence = Recurrence(every_seconds=3600, starts_at=starts_at)
    timer = make_timer(recurrence=recurrence, delay_seconds=None, name="hourly report")
    page = browser_page

    page.goto(f"{live_server.url}/admin/django_celery_beat/periodictask/")
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.locator("td.field-due", has_text="every 1 h").wait_for()
    page.get_by_text("hourly report").click()
    page.get_by_text("What Celery finds").click()
    page.get_by_role("link", name="every hour", exact=True).click()
    page.get_by_label("Number of Periods").fill("2")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("was changed successfully").wait_for()
    timer.refresh_from_db()
    assert timer.every_seconds == 7200

    page.goto(f"{live_server.url}/admin/django_celery_beat/periodictask/{timer.periodic_task_id}/change/")
    page.get_by_label("Or every").fill("3")
    page.get_by_label("Unit").select_option("hours")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("was changed successfully").wait_for()
    timer.refresh_from_db()
    assert timer.every_seconds == 10_800

    page.goto(f"{live_server.url}/admin/django_celery_beat/periodictask/{timer.periodic_task_id}/change/")
    page.get_by_text("What Celery finds").click()
    page.get_by_label("Interval Schedule").fill("")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("must be set").wait_for()


# What each kind of page has inside it or loads: lists with filters, forms with pickers, confirmations, read-only pages.
PAGES = [
    "",
    "password_change/",
    "scheduler/timer/",
    "scheduler/timer/{timer}/change/",
    "scheduler/delivery/",
    "scheduler/attempt/",
    "scheduler/callstop/",
    "scheduler/callstop/add/",
    "scheduler/bulkoperation/",
    "scheduler/signingsecret/add/",
    "django_celery_beat/periodictask/{task}/change/",
    "django_celery_beat/periodictask/{task}/delete/",
    "django_celery_beat/periodictask/{task}/history/",
    "django_celery_beat/periodictask/add/",
    "django_celery_beat/crontabschedule/add/",
    "django_celery_beat/clockedschedule/add/",
    "django_celery_beat/solarschedule/add/",
    "users/user/",
    "users/user/add/",
    "users/user/{user}/change/",
    "users/user/{user}/password/",
    "auth/group/add/",
]


def test_every_kind_of_page_loads_without_a_complaint_of_the_browser(browser_page, live_server, make_timer):
    """The fixture fails on a complaint. Styles count as well: an attribute is applied, a script in the page is not."""
    user = User.objects.create_superuser("ada@example.com", "correct horse battery")
    timer = make_timer("http://shop.example/hook")
    page = browser_page
    page.goto(f"{live_server.url}/admin/")
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("Log out").wait_for()
    for path in PAGES:
        address = path.format(timer=timer.pk, task=timer.periodic_task_id, user=user.pk)
        answer = page.goto(f"{live_server.url}/admin/{address}")
        assert answer.status == 200, address
        page.wait_for_load_state("networkidle")
    page.goto(f"{live_server.url}/admin/scheduler/timer/")
    assert page.evaluate("getComputedStyle(document.querySelector('#changelist-filter')).flexBasis") == "200px"


def test_all_columns_of_the_lists_are_there_at_1280_pixels(browser_page, live_server, make_timer):
    """Longer texts than most: a list that is wider than its place hides the last columns."""
    User.objects.create_superuser("ada@example.com", "correct horse battery")
    for _ in range(3):
        make_timer(f"https://a-rather-long-name-of-a-host.example/hooks/{'x' * 60}", name="The nightly report of sales")
    page = browser_page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{live_server.url}/admin/")
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("Log out").wait_for()
    for path in ("django_celery_beat/periodictask/", "scheduler/timer/", "scheduler/delivery/", "scheduler/attempt/"):
        page.goto(f"{live_server.url}/admin/{path}")
        over = "[...document.querySelectorAll('html, .results')].map(one => one.scrollWidth - one.clientWidth)"
        assert max(page.evaluate(over)) <= 0, path


def test_script_that_got_into_a_page_does_not_run(browser_page, live_server, complaints):
    page = browser_page
    page.goto(f"{live_server.url}/admin/login/")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x:y onerror=\"window.ran = true\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert any("violates the following Content Security Policy" in complaint for complaint in complaints)
    complaints.clear()
