"""The dashboard in a real browser: the newcomer's path, keys alone, no script, and a list that stands still."""

import json
import re
import urllib.request

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.tests.support.browser import CHROMIUM, FLAGS, MISSING, browsing, complaints_of
from webtask_scheduler.scheduler.tests.support.service import running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def open_page():
    """Return a function that opens a page in a browser of its own; what the page complains of fails the test."""
    sync_api = browsing()
    complaints, foreign = [], []
    # No database here while the browser runs: Playwright's loop makes Django take this thread for an asynchronous one.
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def opened(url, **context):
            page = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context)).new_page()
            complaints_of(page, complaints)
            own = "/".join(url.split("/")[:3]) + "/"
            page.on("request", lambda request: foreign.append(request.url) if own not in request.url else None)
            page.goto(url)
            return page

        opened.expect = sync_api.expect
        yield opened
        browser.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []
    assert [said for said in complaints if not _is_expected(said)] == []


def _is_expected(complaint):
    """Return whether it is a form that was refused, what a test broke, or the end of a page that asked for news."""
    return (
        "400 (Bad Request)" in complaint
        or "net::ERR_FAILED" in complaint
        or "live=1" in complaint
        or complaint.endswith("/timers/preview")
    )


def create(server, **fields):
    """Make a timer over the API, which needs no database in this thread."""
    body = json.dumps({"web_url": "http://a.example/hook", "seconds": 3600} | fields).encode()
    request = urllib.request.Request(f"{server.url}/timer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_keys_alone_do(live_server, open_page):
    create(live_server, name="first")
    create(live_server, name="second")
    page = open_page(f"{live_server.url}/timers")
    keys = page.keyboard
    keys.press("j")
    keys.press("j")
    keys.press("Enter")
    open_page.expect(page.locator("h1")).to_have_text("first")
    open_page.expect(page.locator("html.scripted")).to_be_visible()
    keys.press("n")
    open_page.expect(page.locator("h1")).to_have_text("New timer")
    page.get_by_label("URL to call").focus()
    keys.press("Control+a")
    keys.type("ftp://a.example")
    keys.press("Enter")
    # The first wrong field has the focus.
    open_page.expect(page.get_by_label("URL to call")).to_be_focused()
    open_page.expect(page.locator(".field.wrong .error")).to_contain_text("http")
    keys.press("Control+a")
    keys.type("http://a.example/typed")
    keys.press("Tab")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("Tab")
    keys.type("2")
    open_page.expect(page.locator("#preview .moments li")).to_have_count(5)
    keys.press("Enter")
    open_page.expect(page.locator("h1")).to_contain_text("/typed")
    open_page.expect(page.locator("[data-key=head]")).to_contain_text("PT2M")
    open_page.expect(page.locator("html.scripted")).to_be_visible()
    keys.press("/")
    keys.type("typed")
    keys.press("Enter")
    open_page.expect(page.locator(".chip")).to_contain_text("typed")
    open_page.expect(page.locator("html.scripted")).to_be_visible()
    keys.press("?")
    open_page.expect(page.locator("dialog")).to_be_visible()
    keys.press("Escape")
    keys.press("g")
    keys.press("o")
    open_page.expect(page.locator(".hero")).to_be_visible()


def test_everything_works_without_the_script(live_server, open_page):
    page = open_page(f"{live_server.url}/", java_script_enabled=False)
    page.get_by_role("link", name="New timer", exact=True).click()
    page.get_by_label("URL to call").fill("http://a.example/plain")
    page.get_by_role("radio", name="Cron").check()
    page.get_by_role("combobox", name="Cron").fill("0 9 * * *")
    page.get_by_role("button", name="Preview").click()
    open_page.expect(page.locator("#preview .moments li")).to_have_count(5)
    page.get_by_role("button", name="Create", exact=True).click()
    open_page.expect(page.locator("h1")).to_contain_text("/plain")
    page.get_by_role("button", name="Pause").click()
    open_page.expect(page.locator("[data-key=head]").get_by_role("status")).to_have_text("Paused")
    page.goto(f"{live_server.url}/timers")
    page.get_by_role("link", name="Paused").click()
    page.locator(".rows .c-name").click()
    # The question opens without a script; its button does it.
    page.locator("summary", has_text="Cancel").click()
    page.locator("details.ask[open] button").click()
    open_page.expect(page.locator("[data-key=head]").get_by_role("status")).to_have_text("Cancelled")


def test_list_stands_still_while_timers_are_made(live_server, open_page):
    create(live_server, name="old 1")
    create(live_server, name="old 2")
    page = open_page(f"{live_server.url}/timers")
    names = page.locator(".rows .c-name strong")
    open_page.expect(names).to_have_text(["old 2", "old 1"])
    page.locator(".rows .c-name strong").first.evaluate("(one) => getSelection().selectAllChildren(one)")
    for number in range(12):
        created = create(live_server, name=f"new {number}")
    open_page.expect(page.locator("#live")).to_have_text("Live, waiting while you work")
    assert page.locator("#new-rows").is_hidden()
    page.evaluate("getSelection().removeAllRanges()")
    open_page.expect(page.locator("#new-rows")).to_contain_text("12 new")
    open_page.expect(names).to_have_text(["old 2", "old 1"])
    page.locator("#new-rows a").click()
    open_page.expect(names).to_have_count(14)
    # What is on the page is kept true where it stands.
    request = urllib.request.Request(f"{live_server.url}/timer/{created['task_id']}", method="DELETE")
    urllib.request.urlopen(request).close()
    row = page.locator(f"[data-key='{created['task_id']}']")
    open_page.expect(row).to_contain_text("Cancelled")
    open_page.expect(names.first).to_have_text("new 11")


COUNT_DRAWN = """() => new Promise((done) => {
  let drawn = 0;
  const seen = new MutationObserver((changes) => { drawn += changes.length; });
  const options = { childList: true, characterData: true, subtree: true };
  for (const time of document.querySelectorAll('main time')) seen.observe(time, options);
  setTimeout(() => done(drawn), 2000);
})"""


def test_one_countdown_runs_in_tenths_and_many_in_seconds(live_server, open_page):
    one = create(live_server, seconds=9)
    page = open_page(f"{live_server.url}/timers/{one['task_id']}")
    # Two seconds show what is not drawn as well as what is.
    assert page.evaluate(COUNT_DRAWN) >= 10
    for _ in range(20):
        create(live_server, seconds=9)
    page.goto(f"{live_server.url}/timers")
    # Each row has two times, of which one counts down; the list is asked for anew meanwhile.
    assert 0 < page.evaluate(COUNT_DRAWN) <= 20 * 2 * 3


def test_nothing_moves_while_rows_are_ticked(live_server, open_page):
    for number in range(6):
        create(live_server, name=f"t{number}")
    page = open_page(f"{live_server.url}/timers")
    boxes, names = page.locator("#list .c-tick input"), page.locator(".rows .c-name strong")
    on = page.locator("#list .c-tick :checked")
    open_page.expect(page.locator("#act")).to_be_hidden()
    boxes.nth(4).click()
    boxes.nth(1).click(modifiers=["Shift"])
    open_page.expect(page.locator("#ticked")).to_have_text("4 ticked")
    boxes.nth(2).click(modifiers=["Shift"])
    # Back over the range: that of the last click, and this one, are unticked.
    open_page.expect(page.locator("#ticked")).to_have_text("2 ticked")
    page.locator("#tick-all").click()
    open_page.expect(on).to_have_count(6)
    page.locator("#untick").click()
    open_page.expect(on).to_have_count(0)
    page.keyboard.press("j")
    page.keyboard.press("x")
    open_page.expect(page.locator("#ticked")).to_have_text("1 ticked")
    row = page.locator("#list .row").first
    request = urllib.request.Request(f"{live_server.url}/timer/{row.get_attribute('data-key')}", method="DELETE")
    urllib.request.urlopen(request).close()
    create(live_server, name="new")
    open_page.expect(page.locator("#live")).to_have_text("Live, waiting while rows are ticked")
    # Two turns of the live list.
    page.wait_for_timeout(4500)
    open_page.expect(row.locator(".state")).to_have_text("Scheduled")
    open_page.expect(names).to_have_text([f"t{number}" for number in range(5, -1, -1)])
    open_page.expect(on).to_have_count(1)
    assert page.locator("#new-rows").is_hidden()
    page.keyboard.press("x")
    open_page.expect(row.locator(".state")).to_have_text("Cancelled")
    open_page.expect(page.locator("#new-rows")).to_contain_text("1 new")
    boxes.nth(1).click()
    page.locator("#act").get_by_role("button", name="Pause").click()
    open_page.expect(page.locator(".toast span").first).to_have_text("1 timer is paused.")


def test_ticked_rows_are_changed_without_the_script(live_server, open_page):
    for number in range(3):
        create(live_server, name=f"t{number}")
    page = open_page(f"{live_server.url}/timers", java_script_enabled=False)
    page.locator("#list .c-tick input").nth(0).check()
    page.locator("#list .c-tick input").nth(2).check()
    page.locator("#act").get_by_role("button", name="Pause").click()
    open_page.expect(page.locator(".toast span").first).to_have_text("2 timers are paused.")
    # Taken back, and that too.
    page.get_by_role("button", name="Undo").click()
    open_page.expect(page.locator(".toast span").first).to_have_text("2 timers go on.")
    page.get_by_role("button", name="Undo").click()
    open_page.expect(page.locator(".toast span").first).to_have_text("2 timers are paused.")
    page.locator("#list .c-tick input").nth(1).check()
    # Asked first, and done by the second press.
    page.locator("#act summary", has_text="Cancel").click()
    page.locator("#act details[open] button").click()
    open_page.expect(page.locator(".toast").first).to_have_text("1 timer is cancelled.")


@pytest.mark.parametrize("language", ["en", "ar"])
def test_phone_scrolls_one_way_only_and_colours_are_remembered(live_server, open_page, language):
    timer = create(live_server, name="a name without end " * 8, web_url="https://a.example/" + "x" * 300)
    page = open_page(f"{live_server.url}/", viewport={"width": 390, "height": 800}, locale=language)
    for path in ("/", "/timers", f"/timers/{timer['task_id']}", "/timers/new", "/demo/receiver", "/login"):
        page.goto(f"{live_server.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
    page.locator("header .menu summary").click()
    page.locator("#theme").select_option("dark")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "")


def test_crontab_is_imported_without_a_script(live_server, open_page):
    page = open_page(f"{live_server.url}/import", java_script_enabled=False, viewport={"width": 390, "height": 844})
    page.get_by_label("Crontab, JSON Lines or YAML").fill("@hourly http://a.example/poll\n@daily /usr/bin/backup\n")
    page.get_by_role("button", name="Check").click()
    open_page.expect(page.get_by_role("status")).to_have_text("1 timer will be made. 1 line is not taken over.")
    open_page.expect(page.locator("main")).to_contain_text("is no URL, curl or wget")
    page.get_by_role("button", name="Make them").click()
    open_page.expect(page.get_by_role("status")).to_have_text("1 timer was made. 1 line is not taken over.")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("link", name="GET http://a.example/poll").click()
    open_page.expect(page.locator("h1")).to_contain_text("a.example/poll")
    page.goto(f"{live_server.url}/upcoming")
    open_page.expect(page.locator("main")).to_contain_text("By its schedule")
    page.get_by_role("link", name="Later").click()
    page.wait_for_url("**at=**")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_settings_are_kept_by_the_browser(live_server, open_page):
    create(live_server)
    page = open_page(f"{live_server.url}/settings", timezone_id="Asia/Tokyo")
    page.get_by_text("Add a secret", exact=True).click()
    page.get_by_role("button", name="Add").click()
    open_page.expect(page.locator("#made-secret")).to_contain_text("whsec_")
    moment = page.locator("#secrets time")
    open_page.expect(moment).to_contain_text("UTC")
    page.get_by_label("by the clock of this browser").check()
    page.get_by_label("Single keys do something").uncheck()
    page.get_by_role("button", name="Keep").click()
    open_page.expect(moment).to_contain_text("GMT+9")
    page.keyboard.press("n")
    page.keyboard.press("?")
    page.get_by_role("button", name="Remove").or_(page.locator("summary", has_text="Remove")).first.click()
    page.locator("#secrets form button.harmful").click()
    open_page.expect(page.locator("#secrets")).to_contain_text("None yet")
    assert page.url.endswith("/settings")


def test_menu_of_a_row_is_reached_by_keys_and_closes_by_itself(live_server, open_page):
    for number in range(3):
        create(live_server, name=f"t{number}")
    page = open_page(f"{live_server.url}/timers", permissions=["clipboard-read", "clipboard-write"])
    menus, keys, sheet = page.locator("details.c-menu"), page.keyboard, page.locator(".c-menu[open] > .sheet")
    for _ in range(3):
        keys.press("j")
    keys.press("m")
    open_page.expect(menus.nth(2)).to_have_attribute("open", "")
    # One at a time, and the innermost first.
    menus.nth(1).locator("> summary").click()
    open_page.expect(sheet).to_have_count(1)
    sheet.get_by_text("Cancel", exact=True).first.click()
    open_page.expect(sheet).to_contain_text("Cancel it for good?")
    open_page.expect(page.locator("#live")).to_have_text("Live, waiting while a menu is open")
    keys.press("Escape")
    open_page.expect(sheet.locator("details[open]")).to_have_count(0)
    open_page.expect(sheet).to_have_count(1)
    keys.press("Escape")
    open_page.expect(sheet).to_have_count(0)
    open_page.expect(menus.nth(1).locator("> summary")).to_be_focused()
    keys.press("Enter")
    open_page.expect(sheet).to_have_count(1)
    page.locator("h1").click()
    open_page.expect(sheet).to_have_count(0)
    menus.nth(1).locator("> summary").click()
    timer_id = page.locator("#list .row").nth(1).get_attribute("data-key")
    sheet.get_by_text("Copy the id").click()
    open_page.expect(sheet.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == timer_id
    as_curl = sheet.locator("[data-text-of]")
    as_curl.click()
    open_page.expect(as_curl).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("curl -X POST")
    sheet.get_by_text("Pause", exact=True).click()
    toast = page.locator(".toast")
    open_page.expect(toast).to_contain_text("It is paused.")
    row = page.locator(f"[data-key='{timer_id}']")
    open_page.expect(row.locator(".state")).to_have_text("Paused")
    toast.get_by_role("button", name="Undo").click()
    open_page.expect(toast).to_contain_text("It goes on.")
    open_page.expect(row.locator(".state")).to_have_text("Scheduled")


def test_menu_of_a_row_follows_its_state(live_server, open_page):
    timer_id = create(live_server, name="soon paused")["task_id"]
    page = open_page(f"{live_server.url}/timers")
    opens, sheet = page.locator("#list .c-menu > summary"), page.locator(".c-menu[open] > .sheet")
    opens.click()
    open_page.expect(sheet.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Escape")
    request = urllib.request.Request(f"{live_server.url}/timer/{timer_id}/pause", b"", method="POST")
    urllib.request.urlopen(request).close()
    open_page.expect(page.locator("#list .state")).to_have_text("Paused")
    # The row came anew beneath the focus.
    open_page.expect(opens).to_be_focused()
    page.keyboard.press("Enter")
    sheet.get_by_role("button", name="Resume").click()
    open_page.expect(page.locator(".toast")).to_contain_text("It goes on.")


def test_menu_of_a_row_is_a_link_without_the_script(live_server, open_page):
    create(live_server, name="plain")
    page = open_page(f"{live_server.url}/timers", java_script_enabled=False)

    def go():
        page.goto(f"{live_server.url}/timers")
        page.get_by_role("link", name="Menu of the row plain").click()
        open_page.expect(page.locator("h1")).to_have_text("plain")

    go()
    page.locator("summary", has_text="Run now").click()
    page.locator("details.ask[open] button").click()
    open_page.expect(page.locator(".toast")).to_contain_text("It is called once more now.")
    for deed, said in (("Pause", "It is paused."), ("Resume", "It goes on.")):
        go()
        page.get_by_role("button", name=deed).click()
        open_page.expect(page.locator(".toast")).to_contain_text(said)
    open_page.expect(page.locator("#code-curl")).to_contain_text("curl -X POST")
    for link, title in (("Edit", "/edit"), ("Duplicate", "/timers/new?copy=")):
        go()
        page.get_by_role("link", name=link).click()
        assert title in page.url
    go()
    page.locator("summary", has_text="Cancel").click()
    page.locator("details.ask[open] button").click()
    open_page.expect(page.locator("[data-key=head]").get_by_role("status")).to_have_text("Cancelled")


def test_banner_says_that_news_fail_and_goes_away(live_server, open_page):
    create(live_server)
    page = open_page(f"{live_server.url}/timers")
    banner = page.locator("#lost")
    page.route("**/timers?live=1*", lambda route: route.abort())
    for _ in range(2):
        with page.expect_event("requestfailed"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    open_page.expect(page.locator("#live")).to_have_text("Not connected")
    assert banner.is_hidden()
    open_page.expect(banner).to_be_visible()
    page.unroute("**/timers?live=1*")
    open_page.expect(banner).to_be_hidden()
    open_page.expect(page.locator("#live")).to_have_text("Live")


def test_host_is_found_while_it_is_typed(live_server, open_page):
    for number in range(60):
        create(live_server, web_url=f"http://h{number:02}.example/")
    page = open_page(f"{live_server.url}/timers")
    options = page.locator("#hosts option")
    assert options.count() == 50
    page.locator("summary", has_text="Filter").click()
    page.get_by_label("Host").press_sequentially("h5")
    open_page.expect(options).to_have_count(10)


def test_live_clock_and_keys_are_chosen_in_the_menu(live_server, open_page):
    created = create(live_server, name="one", seconds=86_400)
    page = open_page(f"{live_server.url}/timers", timezone_id="Asia/Tokyo")
    live, menu = page.locator("#live"), page.get_by_label("Menu", exact=True)
    # It asks by itself, and not while it is off.
    open_page.expect(live).to_have_text("Live")
    menu.click()
    page.get_by_label("Live", exact=True).select_option("Off")
    open_page.expect(live).to_have_text("Not live; the key . lets it go on")
    page.reload()
    open_page.expect(live).to_have_text("Not live; the key . lets it go on")
    with page.expect_request(lambda request: "live=1" in request.url):
        menu.click()
        page.get_by_label("Live", exact=True).select_option("every 2 s")
        page.keyboard.press("Escape")
        menu.press("Escape")
    # Moments by the browser's clock and back, without a reload.
    page.goto(f"{live_server.url}/timers/{created['task_id']}/deliveries/1")
    promised = page.locator("[data-key=head] time[data-kind=moment]")
    plain = promised.inner_text()
    assert plain.endswith("UTC")
    menu.click()
    page.get_by_label("Moments", exact=True).select_option("local")
    open_page.expect(promised).to_contain_text("GMT+9")
    page.get_by_label("Moments", exact=True).select_option("")
    open_page.expect(promised).to_have_text(plain)
    page.get_by_role("button", name="Keyboard").click()
    open_page.expect(page.locator("#keys")).to_be_visible()
    assert page.locator("#skew").is_hidden()


def test_clock_that_is_wrong_is_named_and_does_not_mislead(live_server, open_page):
    created = create(live_server, name="one", seconds=3600)
    page = open_page(f"{live_server.url}/login")
    # Playwright's clock moves Date; the time of arrival is left as the browser has it, which is what is moved here.
    page.add_init_script("Object.defineProperty(performance, 'timeOrigin', {value: performance.timeOrigin + 90_000})")
    page.add_init_script("const real = Date.now; Date.now = () => real() + 90_000")
    page.goto(f"{live_server.url}/timers/{created['task_id']}")
    open_page.expect(page.locator("#skew")).to_contain_text("by 1m 30s")
    open_page.expect(page.locator(".clock strong")).to_contain_text("59m")


@pytest.fixture
def people(settings):
    """An owner with a timer, another one, and staff who may look; the pages ask for a log-in."""
    settings.WEBTASK_API_AUTH = "key"
    make = get_user_model().objects.create_user
    owner, other = make("owner@example.com", "of-the-owner"), make("other@example.com", "of-the-other")
    staff = make("staff@example.com", "of-the-staff", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_timer"))
    of = [(owner, "mine"), (other, "theirs")]
    made = services.schedule(
        [
            services.NewTimer(web_url="http://a.example/", delay_seconds=3600, name=name, owner_id=one.pk)
            for one, name in of
        ]
    )
    return [f"/timers/{one.timer_id}" for one in made]


def test_people_see_their_own_and_change_what_they_may(people, live_server, open_page):
    mine, theirs = people
    page = open_page(f"{live_server.url}{mine}")

    def log_in(name):
        page.context.clear_cookies()
        page.goto(f"{live_server.url}{mine}")
        page.locator("[name=username]").fill(f"{name}@example.com")
        page.locator("[name=password]").fill(f"of-the-{name}")
        page.locator("main button").click()

    log_in("owner")
    # Back to what was asked for.
    open_page.expect(page.locator("h1")).to_have_text("mine")
    page.goto(f"{live_server.url}/timers")
    open_page.expect(page.locator(".rows .c-name strong")).to_have_text(["mine"])
    for path, status in ((theirs, 404), ("/system", 403)):
        assert page.request.get(f"{live_server.url}{path}").status == status
    log_in("staff")
    open_page.expect(page.locator("h1")).to_have_text("mine")
    open_page.expect(page.locator("[data-do]")).to_have_count(0)
    page.goto(f"{live_server.url}/timers")
    open_page.expect(page.locator(".rows .c-name strong")).to_have_text(["theirs", "mine"])
    page.locator("details.c-menu > summary").first.click()
    open_page.expect(page.locator(".c-menu[open] .sheet > :visible")).to_have_text(
        ["Open", "Copy the id", "Copy as curl"]
    )


# With the whole service, which the checks below share. It is started by the first of them.


@pytest.fixture(scope="module")
def service(django_db_setup):
    with running("web", "worker", "beat") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


@pytest.mark.processes
def test_newcomer_sees_a_first_timer_turn_green(service, open_page):
    page = open_page(f"{service.url}/")
    # Time enough for a busy machine to show that it waits.
    page.get_by_label("in", exact=True).fill("8")
    page.get_by_role("button", name="Create").click()
    head = page.locator("[data-key=head]")
    open_page.expect(head.locator(".clock")).to_contain_text("until the call")
    # Nothing is done here: the page sees by itself what happens.
    open_page.expect(head.get_by_role("status")).to_have_text("Succeeded")
    open_page.expect(head.locator(".clock")).to_contain_text("after its moment")
    assert " ms" in head.locator(".clock strong").inner_text()
    assert "curl -X POST" in page.content()
    page.goto(f"{service.url}/demo/receiver")
    open_page.expect(page.locator(".delivery")).to_have_count(1)
    open_page.expect(page.locator("pre").first).to_contain_text("webhook-id")


@pytest.mark.processes
def test_failure_is_retried_becomes_a_dead_letter_and_is_replayed(service, receiver, open_page):
    retry = {"max_attempts": 2, "min_seconds": 15, "jitter": 0}
    timer = create(service, web_url=receiver.url("/flaky/2"), seconds=0, retry=retry, name="flaky")
    page = open_page(f"{service.url}/timers/{timer['task_id']}")
    status = page.locator("[data-key=head]").get_by_role("status")
    open_page.expect(status).to_have_text("Retrying")
    page.goto(f"{service.url}/timers?retrying=true")
    open_page.expect(page.locator(".rows .c-name strong")).to_have_text(["flaky"])
    page.goto(f"{service.url}/timers/{timer['task_id']}")
    open_page.expect(status).to_have_text("Failed")
    page.get_by_role("link", name="Dead letters").first.click()
    group = page.locator(".rows.groups .row")
    open_page.expect(group).to_contain_text("503")
    group.get_by_role("button", name="Dismiss all").click()
    open_page.expect(page.locator(".empty")).to_be_visible()
    page.locator(".toast").get_by_role("button", name="Undo").click()
    group.locator("summary", has_text="Replay all").click()
    group.locator("details[open] button").click()
    open_page.expect(page.locator(".toast")).to_contain_text("1 dead letter is sent again.")
    page.goto(f"{service.url}/timers/{timer['task_id']}")
    open_page.expect(status).to_have_text("Succeeded")
    assert len(receiver.calls) == 3


@pytest.mark.processes
def test_list_stands_still_while_a_hundred_timers_fire(service, receiver, open_page):
    kept = create(service, name="kept")
    page = open_page(f"{service.url}/timers")
    page.locator("#list .c-tick input").check()
    page.locator("#find").focus()

    def listed():
        # All but the countdown, which goes on.
        return re.sub(r"<time.*?</time>", "", page.locator("#list").inner_html())

    before = listed()
    for number in range(100):
        create(service, web_url=receiver.url(f"/{number}"), seconds=0, name=f"fires {number}")
    # Four turns of the live list and more.
    page.wait_for_timeout(10_000)
    receiver.wait_for(100)
    assert listed() == before
    open_page.expect(page.locator("#find")).to_be_focused()
    assert page.locator("#new-rows").is_hidden()
    page.locator("#list .c-tick input").uncheck()
    open_page.expect(page.locator("#new-rows")).to_contain_text("30+ new")
    open_page.expect(page.locator("#list .row")).to_have_count(1)
    assert page.locator("#list .row").get_attribute("data-key") == kept["task_id"]


@pytest.fixture
def ten_thousand(service):
    """Timers of one host, stored before the browser runs."""
    for number in range(0, 10_000, 1000):
        services.schedule(
            [
                services.NewTimer(web_url=f"http://many.example/{number + each}", delay_seconds=86_400.0)
                for each in range(1000)
            ]
        )


@pytest.mark.processes
def test_ten_thousand_are_paused_by_filter_with_their_progress(service, ten_thousand, open_page):
    page = open_page(f"{service.url}/timers?host=many.example")
    page.locator("#all-fit summary").click()
    page.locator("#all-fit").get_by_role("button", name="Pause").click()
    pause = page.get_by_role("button", name="Pause (10,000)")
    open_page.expect(pause).to_be_visible()
    open_page.expect(page.locator("dl.facts")).to_contain_text("Such as")
    pause.click()
    progress = page.locator("progress")
    open_page.expect(progress).to_have_attribute("max", "10000")
    seen = [0]
    while seen[-1] < 10_000:
        value = progress.evaluate("(one) => one.value")
        assert value >= seen[-1]
        seen += [value] if value > seen[-1] else []
        page.wait_for_timeout(100)
    # It was seen on its way.
    assert len(seen) > 2
    open_page.expect(page.locator("[data-live]").get_by_role("status")).to_contain_text("Succeeded")
    open_page.expect(page.locator("dl.facts dd", has_text="10,000")).to_have_count(2)
    page.get_by_role("link", name="Show these timers").click()
    page.get_by_role("link", name="Paused").click()
    open_page.expect(page.locator("#list .state").first).to_have_text("Paused")
