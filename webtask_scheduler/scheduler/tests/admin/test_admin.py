"""The admin's pages: what they show, ask the database, allow and refuse."""

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.admin import base, showing, stock
from webtask_scheduler.scheduler.admin import lists as admin_lists
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    Attempt,
    BulkOperation,
    CallStop,
    Delivery,
    SigningSecret,
    State,
    Timer,
)
from webtask_scheduler.scheduler.outgoing import signing
from webtask_scheduler.scheduler.queue.claims import release_held
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.services import secrets
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.acting import move
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import clocked_form
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db

TASKS = "/admin/django_celery_beat/periodictask/"
CLOCKED = "/admin/django_celery_beat/clockedschedule/"
TIMERS = "/admin/scheduler/timer/"
DELIVERIES = "/admin/scheduler/delivery/"
ATTEMPTS = "/admin/scheduler/attempt/"
CRONTABS = "/admin/django_celery_beat/crontabschedule/"
INTERVALS = "/admin/django_celery_beat/intervalschedule/"
BULKS = "/admin/scheduler/bulkoperation/"
SECRETS = "/admin/scheduler/signingsecret/"


@pytest.fixture
def page(admin_client):
    """Return a function that fetches a page as a superuser and returns its text."""

    def fetch(address, **parameters):
        answer = admin_client.get(address, parameters)
        assert answer.status_code == 200, answer
        return answer.content.decode()

    return fetch


@pytest.fixture
def listed(admin_client):
    """Return a function that fetches a list and returns its rows in order."""

    def fetch(address=TASKS, **parameters):
        answer = admin_client.get(address, parameters)
        assert answer.status_code == 200, answer
        return list(answer.context["cl"].result_list)

    return fetch


@pytest.fixture
def other_task():
    """Return a function that stores an operator's own task."""

    def make(name="report", **fields):
        interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
        return PeriodicTask.objects.create(name=name, task="reports.nightly", interval=interval, **fields)

    return make


@pytest.fixture
def ended(make_timer):
    """Return a function that stores a timer in a final state, with one attempt, 5 ms late."""

    def make(state=State.SUCCEEDED, *, web_url="http://done.example/", status_code=200, **fields):
        timer = make_timer(web_url, **({"delay_seconds": -30} | fields))
        delivery = Delivery.objects.get(timer=timer)
        at = delivery.due_at + timedelta(milliseconds=5)
        Delivery.objects.filter(pk=delivery.pk).update(state=state, attempts=1, started_at=at, finished_at=at)
        Attempt.objects.create(
            delivery=delivery,
            number=1,
            meant_for=delivery.due_at,
            started_at=at,
            duration_ms=7,
            status_code=status_code,
            error="" if status_code == 200 else "status",
        )
        PeriodicTask.objects.filter(timer=timer).update(enabled=False, last_run_at=at, total_run_count=1)
        return timer

    return make


@pytest.fixture
def recurring(make_timer):
    """Return a function that stores a timer that recurs by a crontab, an interval, or what Celery has no words for."""

    def make(kind="crontab", **fields):
        recurrence = {
            "crontab": Recurrence(cron="0 9 * * MON-FRI", timezone="Europe/Berlin"),
            "interval": Recurrence(every_seconds=1800.5, starts_at=timezone.now() + timedelta(hours=1)),
            "clocked": Recurrence(cron="0 12 13 * FRI"),
        }[kind]
        return make_timer(recurrence=recurrence, delay_seconds=None, **fields)

    return make


@pytest.fixture
def staff(client):
    """Return a function that logs a member of staff in who has these permissions only."""

    def log_in(*codenames):
        user = User.objects.create_user("staff@example.com", "secret", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def change(row):
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def form_of(task, **changes):
    data = {"enabled": "on" if task.enabled else "", "description": task.description}
    data |= {"clocked": task.clocked_id, "interval": task.interval_id, "crontab": task.crontab_id}
    return {name: value for name, value in (data | changes).items() if value not in ("", None)} | {
        "description": changes.get("description", task.description)
    }


def run_action(client, action, rows, **fields):
    data = {"action": action, "_selected_action": [row.pk for row in rows], "confirmed": "yes", **fields}
    answer = client.post(TASKS, data, follow=True)
    assert answer.status_code == 200
    return [str(message) for message in answer.context["messages"]]


def message_texts(answer):
    return [str(message) for message in answer.context["messages"]]


# The list of periodic tasks


def test_list_shows_a_timer(page, ended):
    timer = ended(State.FAILED, web_url="http://shop.example/hook", status_code=503)
    text = page(TASKS)
    assert f'title="{timer.pk}">{str(timer.pk)[:13]}…{str(timer.pk)[-4:]}<' in text
    assert "http://shop.example/hook" in text
    assert change(timer) in text
    for column, shown in [("status_code", "503"), ("lateness", "5.0"), ("attempts", "1")]:
        assert f'<td class="field-{column}">{shown}</td>' in text
    assert "Failed" in re.search(r'<td class="field-status">.*?</td>', text)[0]


def test_list_shows_a_dash_where_a_row_is_no_timer(page, other_task):
    other_task()
    text = page(TASKS)
    for column in ("url", "attempts", "status_code", "lateness"):
        assert f'<td class="field-{column}">-</td>' in text
    assert "every day" in re.search(r'<td class="field-due">.*?</td>', text)[0]
    assert "Enabled" in re.search(r'<td class="field-status">.*?</td>', text)[0]


@each(
    ("kind", "words"),
    [
        ("crontab", "0 9 * * MON-FRI (Europe/Berlin)"),
        ("interval", "every 30 min 0.5 s"),
        ("clocked", "0 12 13 * FRI (UTC)"),
    ],
)
@each("address", [TASKS, TIMERS])
def test_list_shows_the_schedule_and_the_name_of_a_timer(page, recurring, address, kind, words):
    recurring(kind, name="nightly <report>")
    text = page(address)
    assert words in re.search(r'<td class="field-due">.*?</td>', text)[0]
    assert "nightly &lt;report&gt;" in text


@each(("seconds", "words"), [(1, "1 s"), (60, "1 min"), (86_400, "1 d"), (90_061.25, "1 d 1 h 1 min 1.25 s")])
def test_period_in_words(seconds, words):
    assert showing.shown_period(seconds) == words


@each("address", [TASKS, TIMERS])
def test_timer_that_ended_is_not_shown_as_disabled(page, ended, address):
    """A cross for the row that is disabled would say of a success that it is an error."""
    ended(name="paid")
    text = page(address)
    assert "icon-no" not in text
    assert "Succeeded" in re.search(r'<td class="field-status">.*?</td>', text)[0]
    # The name comes first.
    assert text.index(">paid<") < text.index('class="wt-id"')


def test_times_say_their_zone(page, ended):
    timer = ended()
    for address in (TASKS, TIMERS, DELIVERIES, ATTEMPTS, change(timer), change(timer.periodic_task)):
        for shown in re.findall(r'class="wt-time" title="[^"]*">([^<]*)<', page(address)):
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})? UTC", shown), address


def test_every_state_can_be_shown(page, make_timer, sql):
    timer = make_timer()
    for state in State:
        sql(
            """UPDATE scheduler_delivery SET state = %s,
                      lease_token = CASE WHEN %s IN ('claimed', 'running') THEN gen_random_uuid() END,
                      lease_expires_at = CASE WHEN %s IN ('claimed', 'running') THEN now() END,
                      finished_at = CASE WHEN %s IN ('succeeded', 'failed', 'cancelled', 'missed') THEN now() END""",
            *[state.value] * 4,
        )
        for address in (TASKS, TIMERS, DELIVERIES, change(timer), change(timer.periodic_task)):
            assert str(state.label) in page(address)


def test_list_escapes_and_cuts_urls(page, make_timer):
    make_timer('http://h.example/"><script>alert(1)</script>' + "x" * 100)
    text = page(TASKS)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "x…<" in text


def test_list_says_when_a_call_is_about_to_be_cancelled(page, make_timer):
    timer = make_timer()
    Delivery.objects.filter(timer=timer).update(
        state=State.RUNNING,
        attempts=1,
        started_at=timezone.now(),
        lease_token=uuid.uuid4(),
        lease_expires_at=timezone.now(),
        cancel_requested_at=timezone.now(),
    )
    assert "Cancelling" in page(TASKS)


def some_of_all(ended, recurring):
    ended()
    for kind in ("crontab", "interval"):
        recurring(kind)
    BulkOperation.objects.create(action="cancel", filter={}, owner=User.objects.get())
    services.add_secret(None, owner_id=User.objects.get().pk)


def test_page_of_100_rows_asks_as_much_as_a_page_of_one(admin_client, ended, recurring, monkeypatch):
    monkeypatch.setattr(secrets, "SECRETS_MOST", 1000)
    # What the banner says is asked once a second.
    monkeypatch.setattr(facts, "FRESH_SECONDS", 1000)

    def asked(address):
        with CaptureQueriesContext(connection) as queries:
            answer = admin_client.get(address)
        return len(queries), len(answer.context["cl"].result_list)

    some_of_all(ended, recurring)
    lists = [TASKS, TIMERS, DELIVERIES, ATTEMPTS, CLOCKED, CRONTABS, INTERVALS, BULKS, SECRETS]
    for address in lists:
        admin_client.get(address)
    one = {address: asked(address)[0] for address in lists}
    for _ in range(99):
        some_of_all(ended, recurring)
    assert {address: asked(address) for address in lists} == {address: (one[address], 100) for address in lists}
    # One of them asks whether this account has a second factor.
    assert {address: count for address, count in one.items() if count > 9} == {}


def test_change_page_asks_a_bounded_number_of_questions(admin_client, ended, recurring):
    timer = ended()
    crontab, interval = (recurring(kind).periodic_task for kind in ("crontab", "interval"))
    rows = [timer, timer.periodic_task, timer.deliveries.get(), crontab, crontab.crontab, interval, interval.interval]
    for address in map(change, rows):
        admin_client.get(address)
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(address)
        assert len(queries) <= 12, address


@pytest.mark.parametrize("address", [TASKS, TIMERS, DELIVERIES, ATTEMPTS, CLOCKED])
def test_long_list_is_counted_to_its_bound_and_says_so(admin_client, ended, monkeypatch, address):
    monkeypatch.setattr(admin_lists, "LISTED", 2)
    for _ in range(3):
        ended()
    answer = admin_client.get(address)
    assert answer.context["cl"].result_count == 2
    assert "There may be more." in answer.content.decode()


@pytest.mark.parametrize("parameters", [{"status": "succeeded"}, {"due": "past-hour"}, {"host": "a.example"}])
@pytest.mark.parametrize("address", [TASKS, TIMERS, DELIVERIES])
def test_filter_that_shows_less_than_there_is_says_so(page, ended, monkeypatch, address, parameters):
    monkeypatch.setattr(admin_lists, "SHOWN", 2)
    ended(web_url="http://a.example/")
    assert "There may be more." not in page(address, **parameters)
    ended(web_url="http://a.example/")
    ended(web_url="http://a.example/")
    assert "There may be more." in page(address, **parameters)


def test_short_list_does_not_say_that_there_are_more(page, ended):
    ended()
    assert "There may be more." not in page(TASKS)


def test_nothing_is_counted_or_listed_as_a_whole(admin_client, ended):
    ended()
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(TASKS)
    for query in queries.captured_queries:
        sql = query["sql"]
        assert "COUNT(" not in sql or "LIMIT" in sql
        assert 'DISTINCT "django_celery_beat_periodictask"' not in sql


# Filters


@each("address", [TASKS, TIMERS, DELIVERIES])
def test_filter_finds_what_is_held(listed, make_timer, address):
    make_timer("http://other.example/", delay_seconds=-1)
    services.stop_calls(host="held.example")
    make_timer("http://held.example/", delay_seconds=-1)
    claim_due()
    assert len(listed(address, status="held")) == 1
    assert len(listed(address, due="overdue", host="held.example")) == 1
    assert len(listed(enabled="1", host="held.example")) == 1


@each("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.MISSED])
@each("address", [TASKS, TIMERS, DELIVERIES])
def test_filter_by_final_status(listed, ended, make_timer, address, state):
    for final in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.MISSED):
        ended(final)
    make_timer()
    (row,) = listed(address, status=state.value)
    timer = {TASKS: lambda: row.timer, TIMERS: lambda: row, DELIVERIES: lambda: row.timer}[address]()
    assert timer.deliveries.get().state == state


def test_filter_by_scheduled_and_paused(listed, make_timer):
    waiting, paused = make_timer(), make_timer()
    services.pause(paused.pk)
    assert [task.timer for task in listed(status="scheduled")] == [waiting]
    assert [task.timer for task in listed(status="paused")] == [paused]


def test_status_of_a_moved_timer_is_that_of_its_latest_promise(listed, make_timer):
    timer = make_timer()
    move(timer, due_at=timezone.now() + timedelta(hours=3))
    assert listed(status="cancelled") == []
    assert [task.timer for task in listed(status="scheduled")] == [timer]


@each(
    ("due", "delay_seconds"),
    [
        ("overdue", -60),
        ("hour", 1800),
        ("day", 1800),
        ("day", 7200),
        ("later", 2 * 86400),
        ("past-hour", -60),
        ("past-day", -60),
        ("past-day", -7200),
    ],
)
@each("address", [TASKS, TIMERS, DELIVERIES])
def test_filter_by_due_time_includes(listed, make_timer, address, due, delay_seconds):
    make_timer(delay_seconds=delay_seconds)
    assert len(listed(address, due=due)) == 1


@each(
    ("due", "delay_seconds"),
    [("overdue", 60), ("hour", 7200), ("day", 2 * 86400), ("later", 7200), ("past-hour", -7200), ("past-day", 60)],
)
def test_filter_by_due_time_excludes(listed, make_timer, due, delay_seconds):
    make_timer(delay_seconds=delay_seconds)
    assert listed(due=due) == []


def test_overdue_means_that_it_still_waits(listed, ended):
    ended()
    assert listed(due="overdue") == []
    assert len(listed(due="past-hour")) == 1


def test_due_filter_puts_the_soonest_first(listed, make_timer):
    late, soon = make_timer(delay_seconds=900), make_timer(delay_seconds=300)
    middle = make_timer(delay_seconds=600)
    assert [task.timer for task in listed(due="hour")] == [soon, middle, late]


def test_due_filter_puts_the_soonest_first_whatever_the_schedule_is(listed, make_timer, recurring):
    late, soon = make_timer(delay_seconds=3500), make_timer(delay_seconds=300)
    between = recurring("interval")
    Delivery.objects.filter(timer=between).update(due_at=timezone.now() + timedelta(seconds=900))
    assert [task.timer for task in listed(due="hour")] == [soon, between, late]


@each("host", ["shop.example", "SHOP.example", "http://shop.example/path"])
@each("address", [TASKS, TIMERS, DELIVERIES, ATTEMPTS])
def test_filter_by_host(listed, ended, address, host):
    ended(web_url="http://shop.example/1")
    ended(web_url="http://other.example/1")
    (row,) = listed(address, host=host)
    timer = {TASKS: lambda: row.timer, TIMERS: lambda: row, DELIVERIES: lambda: row.timer}.get(
        address, lambda: row.delivery.timer
    )()
    assert timer.host == "shop.example"


def test_host_filter_is_a_field_that_keeps_the_other_filters(page):
    text = page(TASKS, status="failed", host="a.example", q="x")
    form = re.search(r'<form method="get">.*?</form>', text, re.DOTALL)[0]
    assert 'name="host" value="a.example"' in form
    assert 'name="status" value="failed"' in form
    assert 'name="q" value="x"' in form


def test_filters_add_up(listed, ended):
    wanted = ended(State.FAILED, web_url="http://a.example/")
    ended(State.FAILED, web_url="http://b.example/")
    ended(State.SUCCEEDED, web_url="http://a.example/")
    rows = listed(status="failed", host="a.example", due="past-hour", enabled="0", kind="timers", q="a.exam")
    assert [task.timer for task in rows] == [wanted]


def test_filter_by_enabled(listed, make_timer, ended, other_task):
    on, off = make_timer().periodic_task, ended().periodic_task
    other_on, other_off = other_task("on"), other_task("off", enabled=False)
    assert set(listed(enabled="1")) == {on, other_on}
    assert set(listed(enabled="0")) == {off, other_off}


def test_filter_by_kind(listed, make_timer, other_task):
    timer, other = make_timer(), other_task()
    assert listed(kind="timers") == [timer.periodic_task]
    assert listed(kind="other") == [other]
    assert listed(kind="other", host="a.example") == []


@each("parameter", ["status", "due", "enabled", "kind"])
def test_unknown_filter_value_shows_everything(listed, make_timer, parameter):
    make_timer()
    assert len(listed(**{parameter: "nonsense"})) == 1


@each("outcome", ["ok", "error", "status"])
def test_filter_attempts_by_outcome(listed, ended, outcome):
    ended(status_code=200)
    ended(State.FAILED, status_code=500)
    (row,) = listed(ATTEMPTS, outcome=outcome)
    assert row.status_code == (200 if outcome == "ok" else 500)


# Search


@each("address", [TASKS, TIMERS, DELIVERIES, ATTEMPTS])
@each(
    "term", ["{0.pk}", "timer {0.pk}", " {0.pk} ", "{0.pk.hex}", "https://shop.example/ho", "shop.example", "OOK?A=1"]
)
def test_search_finds(listed, ended, address, term):
    timer = ended(web_url="https://shop.example/hook?a=1")
    ended(web_url="https://other.example/")
    assert len(listed(address, q=term.format(timer))) == 1


@each("address", [TASKS, TIMERS, DELIVERIES, ATTEMPTS])
@each("parameters", [{}, {"host": "shop.example"}])
def test_search_finds_by_the_name_of_a_timer(listed, ended, address, parameters):
    ended(web_url="https://shop.example/1", name="Nightly Report")
    ended(web_url="https://shop.example/2", name="another")
    ended(web_url="https://shop.example/3")
    assert len(listed(address, q="nightly rep", **parameters)) == 1


def test_search_finds_the_timer_of_a_delivery(listed, make_timer):
    timer = make_timer()
    make_timer()
    assert [task.timer for task in listed(q=str(timer.deliveries.get().pk))] == [timer]


def test_search_finds_by_the_beginning_of_an_id(listed, make_timer):
    timer = make_timer()
    assert [task.timer for task in listed(q=f"timer {str(timer.pk)[:23]}")] == [timer]


def test_search_finds_other_tasks_by_name_and_task(listed, other_task, make_timer):
    make_timer()
    other = other_task("monthly report")
    assert listed(q="MONTHLY") == [other]
    assert listed(q="reports.nightly") == [other]


@each("term", ["%", "_", "'; DROP TABLE x; --", "http://[", "\\", "timer ", "timer zz", "x" * 300])
def test_search_survives_odd_terms(listed, make_timer, term):
    make_timer("http://plain.example/")
    assert listed(q=term) == []


def test_search_looks_at_the_newest_timers_only(listed, make_timer, monkeypatch):
    monkeypatch.setattr(admin_lists, "WINDOW", 2)
    for path in ("old", "new-1", "new-2"):
        make_timer(f"http://a.example/{path}")
    assert len(listed(q="new-")) == 2
    assert listed(q="example/old") == []


def test_search_says_how_far_it_looked_and_goes_on(admin_client, make_timer, monkeypatch):
    monkeypatch.setattr(admin_lists, "WINDOW", 2)
    timers = [make_timer(f"http://a.example/{path}", name="nightly") for path in ("old", "new-1", "new-2")]
    for address in (TASKS, TIMERS):
        found = admin_client.get(address, {"q": "example/old"})
        assert "The newest 2 timers were searched" in found.content.decode()
        older = found.context["cl"].older
        assert str(timers[1].pk) in older
        found = admin_client.get(f"{address}{older}")
        assert len(found.context["cl"].result_list) == 1
        assert "there are no older ones" in found.content.decode()
        # The form of the search begins with the newest again.
        assert 'name="before"' not in found.content.decode()
    whole = admin_client.get(TASKS, {"q": "example/new-1"}).content.decode()
    monkeypatch.setattr(admin_lists, "WINDOW", 3)
    assert "were searched" in whole
    assert "were searched" not in admin_client.get(TASKS, {"q": "example/new-1"}).content.decode()
    assert admin_client.get(TASKS, {"q": "nightly", "before": "nonsense"}).status_code == 200


@each("address", [TASKS, TIMERS, DELIVERIES, ATTEMPTS])
def test_order_that_no_index_gives_is_not_taken(admin_client, ended, address):
    rows = [ended() for _ in range(3)]
    newest_first = [row.pk for row in admin_client.get(address).context["cl"].result_list]
    for number in range(2, 8):
        listed = admin_client.get(address, {"o": f"-{number}"}).context["cl"].result_list
        assert [row.pk for row in listed] == newest_first
    assert len(rows) == len(newest_first)


def test_pages_of_what_a_filter_finds_hold_each_row_once(admin_client, ended, monkeypatch):
    monkeypatch.setattr(stock.PeriodicTaskAdmin, "list_per_page", 2)
    tasks = [ended(delay_seconds=-30 - number).periodic_task for number in range(5)]
    for query, wanted in (({"status": "succeeded"}, tasks[::-1]), ({"due": "past-hour"}, tasks)):
        pages = [admin_client.get(TASKS, query | {"p": str(page)}).context["cl"].result_list for page in (1, 2, 3)]
        assert [task for page in pages for task in page] == wanted


# The form of a timer's row


def test_form_of_a_timer_offers_what_an_operator_may_change(admin_client, make_timer):
    timer = make_timer("http://shop.example/x", name="a name")
    answer = admin_client.get(change(timer.periodic_task))
    assert set(answer.context["adminform"].form.fields) == {
        *("enabled", "description", "interval", "crontab", "clocked"),
        *("at", "every", "every_unit", "cron", "cron_zone"),
    }
    text = answer.content.decode()
    assert change(timer) in text
    assert "Scheduled" in text
    assert "a name" in text


@each("kind", ["crontab", "interval", "clocked"])
def test_form_of_a_timer_that_recurs_leads_to_its_schedule(page, recurring, kind):
    task = recurring(kind, max_occurrences=7).periodic_task
    text = page(change(task))
    assert f'value="{task.scheduler.pk}"' in re.search(rf'<input[^>]*id="id_{kind}"[^>]*>', text)[0]
    assert change(task.scheduler) in text
    assert "7 times at the most" in text
    assert ("Celery has no words for it" in text) == (kind == "clocked")


def test_other_fields_of_a_timer_cannot_be_changed(admin_client, make_timer):
    task = make_timer().periodic_task
    before = PeriodicTask.objects.values().get(pk=task.pk)
    odd = {"name": "mine", "task": "x", "regtask": "x", "kwargs": "{}", "one_off": "", "queue": "q"}
    admin_client.post(change(task), form_of(task) | odd)
    assert PeriodicTask.objects.values().get(pk=task.pk) == before


@each("final", [False, True])
def test_saving_an_unchanged_row_changes_nothing(admin_client, make_timer, ended, final):
    task = (ended() if final else make_timer()).periodic_task
    before = PeriodicTask.objects.values().get(pk=task.pk), list(Delivery.objects.values())
    assert admin_client.post(change(task), form_of(task)).status_code == 302
    assert (PeriodicTask.objects.values().get(pk=task.pk), list(Delivery.objects.values())) == before


def test_description_of_an_ended_timer_can_be_changed_and_leaves_the_rest(admin_client, ended):
    task = ended().periodic_task
    assert admin_client.post(change(task), form_of(task, description="why")).status_code == 302
    after = PeriodicTask.objects.get(pk=task.pk)
    assert (after.description, after.last_run_at, after.total_run_count) == ("why", task.last_run_at, 1)


def test_enabling_an_ended_timer_is_an_error_of_the_form(admin_client, ended):
    timer = ended()
    answer = admin_client.post(change(timer.periodic_task), form_of(timer.periodic_task, enabled="on"))
    assert answer.status_code == 200
    assert f"Timer {timer.pk} has ended" in answer.content.decode()
    assert not PeriodicTask.objects.get(timer=timer).enabled


def test_rescheduling_an_ended_timer_is_an_error_of_the_form(admin_client, ended):
    timer = ended()
    other = ClockedSchedule.objects.create(clocked_time=timezone.now() + timedelta(days=1))
    answer = admin_client.post(change(timer.periodic_task), form_of(timer.periodic_task, clocked=other.pk))
    assert f"Timer {timer.pk} has ended" in answer.content.decode()
    assert PeriodicTask.objects.get(timer=timer).clocked_id == timer.periodic_task.clocked_id


def another_time(task, **given):
    """Return the form of a timer's row with another schedule in words."""
    at = given.pop("at", None)
    parts = {"at_0": f"{at:%Y-%m-%d}", "at_1": f"{at:%H:%M:%S}"} if at else {}
    return form_of(task) | parts | given


def test_timer_is_moved_without_the_id_of_a_schedule(admin_client, make_timer):
    timer = make_timer("http://a.example/")
    at = (timezone.now() + timedelta(days=2)).replace(microsecond=0)
    assert admin_client.post(change(timer.periodic_task), another_time(timer.periodic_task, at=at)).status_code == 302
    assert Delivery.objects.get(timer=timer, state=State.SCHEDULED).due_at == at
    task = PeriodicTask.objects.get(timer=timer)
    assert task.clocked.clocked_time == at

    assert admin_client.post(change(task), another_time(task, every="2", every_unit="hours")).status_code == 302
    timer.refresh_from_db()
    assert (timer.every_seconds, timer.cron) == (7200, "")

    task = PeriodicTask.objects.get(timer=timer)
    data = another_time(task, cron="0 9 * * mon-fri", cron_zone="Europe/Berlin")
    assert admin_client.post(change(task), data).status_code == 302
    timer.refresh_from_db()
    assert (timer.every_seconds, timer.cron, timer.timezone) == (None, "0 9 * * 1-5", "Europe/Berlin")
    # Nothing is left of the schedules in between.
    task = PeriodicTask.objects.get(timer=timer)
    assert (task.one_off, task.interval, task.clocked) == (False, None, None)
    assert not IntervalSchedule.objects.exists()


def test_time_that_cannot_be_is_an_error_of_the_form(admin_client, make_timer, ended):
    task = make_timer().periodic_task
    past = timezone.now() - timedelta(days=1)
    for given, said in (
        ({"at": past}, "This time has passed."),
        ({"every": "5", "cron": "* * * * *"}, "Give one of these"),
        ({"every": "0"}, "greater than or equal to 1"),
        ({"cron": "* * *"}, "Five fields are needed"),
        ({"cron": "99 * * * *"}, "99"),
        ({"cron": "* * * * *", "cron_zone": "Europe/Nowhere"}, "Nowhere"),
    ):
        answer = admin_client.post(change(task), another_time(task, **given))
        assert answer.status_code == 200, given
        assert said in answer.content.decode(), given
    over = ended().periodic_task
    answer = admin_client.post(change(over), another_time(over, every="5", every_unit="minutes"))
    assert "has ended" in answer.content.decode()
    assert not IntervalSchedule.objects.exists()
    assert not CrontabSchedule.objects.exists()


def test_pages_say_why_a_timer_was_not_called(page, ended, make_timer):
    failed, waiting = ended(State.FAILED, status_code=500), make_timer()
    for timer, said in ((failed, "It was given up after 1 attempt."), (waiting, "Its moment has not come yet.")):
        for address in (change(timer), change(timer.periodic_task)):
            assert said in page(address)


def test_delivery_that_has_ended_has_no_next_attempt(page, ended):
    delivery = Delivery.objects.get(timer=ended(State.FAILED, status_code=500))
    shown = re.search(r'field-next_attempt.*?class="readonly">(.*?)</div>', page(change(delivery)), re.DOTALL)
    assert shown[1].strip() == "-"


def test_adding_a_timer_leads_to_the_form_over_the_checks_of_the_api(admin_client, staff):
    assert admin_client.get(TIMERS + "add/")["Location"] == "/timers/new"
    assert 'href="/timers/new"' in admin_client.get(TASKS).content.decode()
    assert staff("view_timer").get(TIMERS + "add/").status_code == 403


def test_every_page_leads_to_the_dashboard_and_says_what_is_stopped(page, make_timer):
    services.stop_calls(everything=True)
    timer = make_timer()
    for address in ("/admin/", TASKS, change(timer), change(timer.periodic_task), "/admin/users/user/"):
        text = page(address)
        assert 'href="/">Dashboard</a>' in text
        assert "All calls are stopped" in text


def test_taking_the_schedule_away_is_an_error_of_the_form(admin_client, make_timer):
    task = make_timer().periodic_task
    answer = admin_client.post(change(task), form_of(task, clocked=None))
    assert "must be set" in answer.content.decode()


def test_timer_that_ends_while_its_form_is_open_is_not_enabled_again(admin_client, make_timer, ended):
    task = make_timer().periodic_task
    data = form_of(task, description="late")
    services.cancel(task.timer.pk)
    answer = admin_client.post(change(task), data)
    assert "has ended" in answer.content.decode()
    assert not PeriodicTask.objects.get(pk=task.pk).enabled


# An operator's own rows


@pytest.fixture
def own_row():
    interval = IntervalSchedule.objects.create(every=1, period="days")
    return {
        "name": "mine",
        "enabled": "on",
        "interval": interval.pk,
        "args": "[]",
        "kwargs": "{}",
        "headers": "{}",
        "priority": "",
    }


def test_operator_can_add_a_task(admin_client, own_row):
    assert admin_client.post(TASKS + "add/", own_row | {"task": "reports.nightly"}).status_code == 302
    assert PeriodicTask.objects.get().task == "reports.nightly"


@each("field", ["task", "regtask"])
@each("name", [TASK_NAME, f" {TASK_NAME} "])
def test_operator_cannot_take_our_task_name(admin_client, own_row, field, name):
    answer = admin_client.post(TASKS + "add/", own_row | {field: name})
    assert "This task belongs to timers." in answer.content.decode()
    assert not PeriodicTask.objects.exists()


@pytest.mark.parametrize("field", ["task", "regtask"])
def test_operator_cannot_rename_a_task_to_ours(admin_client, own_row, other_task, field):
    task = other_task()
    answer = admin_client.post(change(task), own_row | {"task": "x", field: TASK_NAME})
    assert field in answer.context["adminform"].form.errors
    assert PeriodicTask.objects.get().task == "reports.nightly"


def test_task_name_that_is_too_long_is_an_error_of_the_form(admin_client, own_row):
    answer = admin_client.post(TASKS + "add/", own_row | {"task": "x" * 201})
    assert "task" in answer.context["adminform"].form.errors


def test_form_loads_no_list_of_schedules(page, other_task, make_timer):
    task = other_task()
    clocked = make_timer().periodic_task.clocked
    crontab = CrontabSchedule.objects.create(minute="17", hour="3")
    text = page(change(task))
    assert crontab.human_readable not in page(TASKS + "add/")
    assert crontab.human_readable not in text
    assert str(clocked.clocked_time.year) not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert 'id="id_clocked"' in text


# Clocked schedules


def test_saving_a_clocked_schedule_unchanged_moves_nothing(admin_client, make_timer):
    clocked = make_timer().periodic_task.clocked
    moment = clocked.clocked_time.replace(microsecond=123456)
    move(Timer.objects.get(), due_at=moment)
    before = list(Delivery.objects.order_by("pk").values())
    assert admin_client.post(change(clocked), clocked_form(moment)).status_code == 302
    assert ClockedSchedule.objects.get(pk=clocked.pk).clocked_time == moment
    assert list(Delivery.objects.order_by("pk").values()) == before


def test_moving_the_clocked_schedule_of_an_ended_timer_is_an_error_of_the_form(admin_client, ended):
    timer = ended()
    clocked = timer.periodic_task.clocked
    answer = admin_client.post(change(clocked), clocked_form(timezone.now() + timedelta(days=1)))
    assert f"Timer {timer.pk} has ended" in answer.content.decode()
    assert ClockedSchedule.objects.get(pk=clocked.pk).clocked_time == clocked.clocked_time


def test_clocked_schedule_can_be_added(admin_client):
    moment = timezone.now() + timedelta(days=1)
    assert admin_client.post(CLOCKED + "add/", clocked_form(moment)).status_code == 302
    assert ClockedSchedule.objects.get().clocked_time == moment.replace(microsecond=0)


def test_clocked_schedule_shows_a_bounded_number_of_tasks(admin_client, monkeypatch):
    monkeypatch.setattr(stock, "INLINE_ROWS", 2)
    clocked = ClockedSchedule.objects.create(clocked_time=timezone.now())
    for number in range(3):
        PeriodicTask.objects.create(name=f"own {number}", task="x", clocked=clocked, one_off=True)
    answer = admin_client.get(change(clocked))
    (inline,) = answer.context["inline_admin_formsets"]
    assert [form.instance.name for form in inline.formset.forms] == ["own 2", "own 1"]
    data = clocked_form(clocked.clocked_time) | {
        "periodictask_set-TOTAL_FORMS": "2",
        "periodictask_set-INITIAL_FORMS": "2",
    }
    assert admin_client.post(change(clocked), data).status_code == 302


# Actions


def test_actions_on_a_mixed_selection(admin_client, make_timer, ended, other_task):
    timer, done, other = make_timer(), ended(), other_task()
    rows = [timer.periodic_task, done.periodic_task, other]
    said = run_action(admin_client, "disable_tasks", rows)
    assert said == [
        "1 task was successfully disabled",
        "1 timer was successfully disabled.",
        f"1 timer has ended and stays as it is: {done.pk}. Make new timers instead.",
    ]
    assert Delivery.objects.get(timer=timer).state == State.PAUSED
    said = run_action(admin_client, "enable_tasks", rows)
    assert said[:2] == ["1 task was successfully enabled", "1 timer was successfully enabled."]
    assert Delivery.objects.get(timer=timer).state == State.SCHEDULED
    assert Delivery.objects.get(timer=done).state == State.SUCCEEDED
    assert list(PeriodicTask.objects.order_by("pk").values_list("enabled", flat=True)) == [True, False, True]


def test_disabling_ended_timers_keeps_their_last_run(admin_client, ended):
    task = ended().periodic_task
    run_action(admin_client, "disable_tasks", [task])
    assert PeriodicTask.objects.get(pk=task.pk).last_run_at == task.last_run_at


def test_toggle_turns_each_row(admin_client, make_timer, other_task):
    on, off, other = make_timer(), make_timer(), other_task()
    services.pause(off.pk)
    run_action(admin_client, "toggle_tasks", [on.periodic_task, off.periodic_task, other])
    assert list(PeriodicTask.objects.order_by("pk").values_list("enabled", flat=True)) == [False, True, False]
    assert Delivery.objects.get(timer=on).state == State.PAUSED
    assert Delivery.objects.get(timer=off).state == State.SCHEDULED


def test_run_makes_extra_deliveries_and_keeps_the_promise(admin_client, make_timer, ended):
    timers = [make_timer(), make_timer()]
    said = run_action(admin_client, "run_tasks", [timer.periodic_task for timer in timers])
    assert said == ["2 timers were called now, besides what is promised."]
    assert Delivery.objects.filter(extra=True, state=State.SCHEDULED, due_at__lte=timezone.now()).count() == 2
    assert Delivery.objects.get(timer=timers[0], extra=False).state == State.SCHEDULED


def test_run_says_which_have_ended_and_which_have_too_many_open_runs(admin_client, make_timer, ended):
    plain, done, full = make_timer(), ended(), make_timer()
    for _ in range(services.EXTRA_OPEN_MOST):
        services.run_now(full.pk)
    said = run_action(admin_client, "run_tasks", [timer.periodic_task for timer in (plain, done, full)])
    assert said == [
        "1 timer was called now, besides what is promised.",
        f"1 timer has ended and stays as it is: {done.pk}. Make new timers instead.",
        "1 timer was not called: 10 runs of it have not ended yet.",
    ]
    assert Delivery.objects.filter(extra=True).count() == services.EXTRA_OPEN_MOST + 1


def test_run_of_another_task_stays_as_stock_has_it(admin_client, other_task):
    assert run_action(admin_client, "run_tasks", [other_task()]) == ['task "reports.nightly" not found']


def test_actions_on_timers_do_not_make_stock_beat_reload(admin_client, make_timer):
    task = make_timer().periodic_task
    before = PeriodicTasks.last_change()
    run_action(admin_client, "disable_tasks", [task])
    assert PeriodicTasks.last_change() == before


def test_select_all_acts_on_all_pages_in_bounded_statements(admin_client, make_timer):
    services.schedule([services.NewTimer(web_url="http://a.example/", delay_seconds=60)] * 250)
    (first, *_) = PeriodicTask.objects.all()
    with CaptureQueriesContext(connection) as queries:
        said = run_action(admin_client, "disable_tasks", [first], select_across="1")
    assert said == ["250 timers were successfully disabled."]
    assert len(queries) < 40
    assert Delivery.objects.filter(state=State.PAUSED).count() == 250


def test_select_all_of_more_than_a_list_shows_says_how_many(admin_client, make_timer, monkeypatch):
    monkeypatch.setattr(stock, "LISTED", 2)
    tasks = [make_timer().periodic_task for _ in range(3)]
    said = run_action(admin_client, "disable_tasks", tasks[:1], select_across="1")
    assert said == [
        "More timers were selected than a list shows: this is about the first 2.",
        "2 timers were successfully disabled.",
    ]
    assert PeriodicTask.objects.filter(enabled=True).get() == tasks[0]


def test_select_all_keeps_to_the_filter(admin_client, make_timer):
    inside, outside = make_timer("http://a.example/"), make_timer("http://b.example/")
    data = {"action": "disable_tasks", "_selected_action": [inside.periodic_task.pk], "select_across": "1"}
    admin_client.post(TASKS + "?host=a.example", data | {"confirmed": "yes"})
    assert Delivery.objects.get(timer=inside).state == State.PAUSED
    assert Delivery.objects.get(timer=outside).state == State.SCHEDULED


def test_deleting_too_many_at_once_is_refused_with_a_message(admin_client, make_timer, monkeypatch):
    monkeypatch.setattr(base, "DELETED_AT_ONCE", 1)
    rows = [make_timer().periodic_task for _ in range(2)]
    assert run_action(admin_client, "delete_selected", rows) == ["Delete at most 1 at once."]


def test_actions_need_the_permission_to_change(staff, make_timer):
    task = make_timer().periodic_task
    client = staff("view_periodictask")
    client.post(TASKS, {"action": "disable_tasks", "_selected_action": [task.pk]})
    assert PeriodicTask.objects.get().enabled


# The read-only pages


@each("what", ["timer", "delivery", "attempt"])
def test_our_pages_can_only_be_looked_at(admin_client, ended, what):
    timer = ended()
    row = {"timer": timer, "delivery": Delivery.objects.get(), "attempt": Attempt.objects.get()}[what]
    base = f"/admin/scheduler/{what}/"
    assert admin_client.get(change(row)).status_code == 200
    assert admin_client.post(change(row), {"web_url": "http://x.example/"}).status_code == 403
    assert admin_client.get(base + "add/").status_code == (302 if what == "timer" else 403)
    assert admin_client.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in admin_client.get(base).content.decode()


@pytest.mark.parametrize("what", ["timer", "delivery", "attempt"])
def test_our_pages_need_the_permission_to_view(staff, ended, what):
    ended()
    client = staff("view_timer") if what != "timer" else staff("view_delivery")
    assert client.get(f"/admin/scheduler/{what}/").status_code == 403


def test_staff_who_may_view_timers_sees_them(staff, ended):
    timer = ended()
    client = staff("view_timer")
    assert client.get(TIMERS).status_code == 200
    assert client.get(change(timer)).status_code == 200


def test_staff_who_may_view_tasks_sees_a_form_without_fields(staff, make_timer):
    task = make_timer().periodic_task
    client = staff("view_periodictask")
    answer = client.get(change(task))
    assert answer.status_code == 200
    assert not answer.context["adminform"].form.fields
    assert client.post(change(task), form_of(task, enabled="")).status_code == 403


def test_stranger_is_sent_to_the_login(client):
    for address in (TASKS, TIMERS, DELIVERIES, ATTEMPTS, CLOCKED):
        assert client.get(address).status_code == 302


def test_timer_page_shows_deliveries_and_attempts_newest_first(page, ended):
    timer = ended(State.FAILED, status_code=500)
    extra = Delivery(timer=timer, number=2, extra=True, due_at=timezone.now(), next_attempt_at=timezone.now())
    extra.save(force_insert=True)
    text = page(change(timer))
    promised = Delivery.objects.get(timer=timer, extra=False).pk
    assert text.index(f'title="{extra.pk}"') < text.index(f'title="{promised}"')
    assert ">500<" in text


def test_timer_page_shows_a_bounded_number_of_deliveries(page, make_timer, monkeypatch):
    monkeypatch.setattr(showing, "INLINE_ROWS", 3)
    timer = make_timer()
    for _ in range(5):
        services.run_now(timer.pk)
    assert page(change(timer)).count("run now") == 3


def test_timer_page_escapes_what_the_receiver_answered(page, ended):
    timer = ended()
    Attempt.objects.update(excerpt="<script>alert(1)</script>", message="<b>")
    for address in (change(timer), change(Delivery.objects.get()), change(Attempt.objects.get())):
        text = page(address)
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert" in text


def test_timer_page_shows_its_name_schedule_and_options(page, recurring):
    timer = recurring(name="nightly", options={"method": "PUT", "labels": {"a": "<b>"}}, max_lateness_seconds=60)
    text = page(change(timer))
    for shown in ("nightly", "0 9 * * MON-FRI (Europe/Berlin)", "&quot;PUT&quot;", "&lt;b&gt;", "60"):
        assert shown in text


def test_page_of_a_callback_leads_to_the_delivery_that_it_tells_of(page, ended, make_timer):
    told = Delivery.objects.get(timer=ended())
    timer = make_timer()
    PeriodicTask.objects.filter(timer=timer).delete()
    Timer.objects.filter(pk=timer.pk).update(outcome_of=told.pk)
    text = page(change(timer))
    assert change(told) in text
    assert "deleted" not in text
    Timer.objects.filter(pk=timer.pk).update(outcome_of=uuid.uuid4())
    assert "which was pruned" in page(change(timer))


def test_timer_page_tells_a_replayed_delivery(page, ended):
    timer = ended(State.FAILED)
    services.replay(timer.pk)
    assert "replayed" in page(change(timer))


def test_timer_whose_task_was_deleted_keeps_its_page(page, make_timer):
    timer = make_timer()
    PeriodicTask.objects.get().delete()
    text = page(change(timer))
    assert "deleted" in text
    assert "Cancelled" in text


@each("address", [TIMERS, DELIVERIES])
def test_id_that_is_none_leads_back_to_the_index(admin_client, address):
    assert admin_client.get(f"{address}nonsense/change/").status_code == 302


def test_admin_carries_the_name_of_the_service(page):
    assert "Webtask scheduler" in page("/admin/")


def test_adding_a_call_stop_stops_calls_and_deleting_it_lets_them_go_on(admin_client, make_timer, delivery_of):
    timer = make_timer("http://stopped.example/", delay_seconds=-1)
    url = reverse("admin:scheduler_callstop_add")
    assert admin_client.post(url, {"host": "Stopped.example", "reason": "asked to"}).status_code == 302
    assert claim_due().held == []
    assert delivery_of(timer).state == State.HELD
    page = admin_client.get(reverse("admin:scheduler_callstop_changelist")).content.decode()
    assert "calls to stopped.example are stopped" in page
    admin_client.post(reverse("admin:scheduler_callstop_delete", args=[CallStop.objects.get().pk]), {"post": "yes"})
    assert release_held() == 1
    assert len(claim_due().held) == 1


def test_stop_of_all_calls_is_asked_back_listed_and_lifted_by_the_action(admin_client, make_timer):
    make_timer(delay_seconds=-1)
    add = reverse("admin:scheduler_callstop_add")
    asked = admin_client.post(add, {"everything": "on", "reason": "a <storm>"}).content.decode()
    assert "Stop all calls?" in asked
    assert "1 timer matches." in asked
    assert 'value="a &lt;storm&gt;"' in asked
    assert not CallStop.objects.exists()
    admin_client.post(add, {"everything": "on", "reason": "a <storm>", "confirmed": "yes"})
    assert CallStop.objects.get().reason == "a <storm>"
    url = reverse("admin:scheduler_callstop_changelist")
    assert "calls to all hosts are stopped" in admin_client.get(url).content.decode()
    assert claim_due().held == []
    admin_client.post(
        url, {"action": "delete_selected", "_selected_action": [CallStop.objects.get().pk], "post": "yes"}
    )
    assert len(claim_due().held) == 1


@each(
    ("given", "said"),
    [
        ({"host": ""}, "Name a host, or tick"),
        ({"host": "", "confirmed": "yes"}, "Name a host, or tick"),
        ({"host": " "}, "Name a host, or tick"),
        ({"host": "a.example", "everything": "on"}, "not both"),
        ({"host": "a.example", "everything": "on", "confirmed": "yes"}, "not both"),
        ({"host": "not a host"}, "is no host"),
    ],
)
def test_form_that_names_no_host_stops_nothing(admin_client, given, said):
    answer = admin_client.post(reverse("admin:scheduler_callstop_add"), given)
    assert answer.status_code == 200
    assert said in answer.content.decode()
    assert not CallStop.objects.exists()


def test_stop_takes_a_url_says_how_many_timers_match_and_who_did_it(admin_client, admin_user, make_timer, caplog):
    make_timer("https://a.example:8443/x")
    data = {"host": "https://A.example:8443/x?y", "reason": "asked to"}
    answer = admin_client.post(reverse("admin:scheduler_callstop_add"), data, follow=True)
    assert "1 timer matches." in message_texts(answer)
    assert CallStop.objects.get().host == "a.example:8443"
    logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith("calls_stopped")]
    assert logged == [f"calls_stopped host=a.example:8443 by={admin_user} reason='asked to'"]


@each("model", ["django_celery_beat_periodictask", "scheduler_delivery", "scheduler_callstop"])
def test_lists_say_on_top_what_keeps_timers_from_being_called(page, make_timer, model):
    address = reverse(f"admin:{model}_changelist")
    make_timer(delay_seconds=-1)
    assert "no beat was ever seen; no worker was ever seen" in page(address)
    services.stop_calls(everything=True)
    facts.forget()
    assert "All calls are stopped; 1 delivery waits for calls to be resumed." in page(address)


# Bulk operations and signing secrets


def test_bulk_operations_are_listed_with_their_progress(page, admin_user):
    operation = BulkOperation.objects.create(
        owner=admin_user, action="cancel", filter={"host": "<shop>"}, matched=1200, changed=1100
    )
    dry = BulkOperation.objects.create(action="pause", filter={}, dry_run=True, matched=3, finished_at=timezone.now())
    BulkOperation.objects.create(action="replay", filter={}, error="a sentence", finished_at=timezone.now())
    text = page(BULKS)
    for shown in ("Under way", "1200", "1100", "Pause (dry run)", "Ended", "Stopped: a sentence", str(admin_user)):
        assert shown in text
    assert "&lt;shop&gt;" in page(change(operation))
    assert "dry run" in page(change(dry))


def test_bulk_operations_can_only_be_looked_at(admin_client):
    operation = BulkOperation.objects.create(action="cancel", filter={})
    assert admin_client.post(change(operation), {"action": "pause"}).status_code == 403
    assert admin_client.get(BULKS + "add/").status_code == 403
    assert admin_client.post(f"{BULKS}{operation.pk}/delete/", {"post": "yes"}).status_code == 403


def add_secret(client, **data):
    return client.post(SECRETS + "add/", data, follow=True)


def test_new_secret_is_shown_once(admin_client, admin_user, page):
    said = message_texts(add_secret(admin_client, owner=admin_user.pk))
    stored = SigningSecret.objects.get()
    assert stored.owner == admin_user
    assert any(stored.value in text for text in said)
    for address in (SECRETS, change(stored), f"{SECRETS}{stored.pk}/history/", f"{SECRETS}{stored.pk}/delete/"):
        assert stored.value not in page(address)
    for address in (SECRETS, change(stored)):
        assert f"…{stored.value[-4:]}" in page(address)
        assert admin_user.email in page(address)


def test_given_secret_is_kept_and_not_repeated(admin_client):
    secret = signing.new_secret()
    answer = add_secret(admin_client, secret=secret)
    stored = SigningSecret.objects.get()
    assert (stored.value, stored.owner) == (secret, None)
    assert secret not in answer.content.decode()


def test_secret_that_is_none_is_an_error_of_the_form(admin_client):
    assert "A signing secret begins with whsec_" in add_secret(admin_client, secret="x").content.decode()
    assert not SigningSecret.objects.exists()


def test_too_many_secrets_are_an_error_of_the_form(admin_client, admin_user):
    for _ in range(services.SECRETS_MOST):
        services.add_secret(None, owner_id=admin_user.pk)
    assert "already" in add_secret(admin_client, owner=admin_user.pk).content.decode()
    assert SigningSecret.objects.count() == services.SECRETS_MOST
    add_secret(admin_client)
    assert SigningSecret.objects.filter(owner=None).count() == 1


def test_secrets_are_deleted_and_never_changed(admin_client):
    first, second = (services.add_secret(None, owner_id=None) for _ in range(2))
    assert admin_client.post(change(first), {"secret": signing.new_secret()}).status_code == 403
    admin_client.post(f"{SECRETS}{first.pk}/delete/", {"post": "yes"})
    assert list(SigningSecret.objects.all()) == [second]
    admin_client.post(SECRETS, {"action": "delete_selected", "_selected_action": [second.pk], "post": "yes"})
    assert not SigningSecret.objects.exists()


def test_secrets_need_permissions_of_their_own(staff):
    stored = services.add_secret(None, owner_id=None)
    client = staff("view_timer", "view_signingsecret")
    assert client.get(SECRETS).status_code == 200
    assert client.get(SECRETS + "add/").status_code == 403
    assert client.post(f"{SECRETS}{stored.pk}/delete/", {"post": "yes"}).status_code == 403


def test_idempotency_keys_have_no_page(page):
    assert "dempotency" not in page("/admin/")


def test_what_no_link_and_no_form_sends_is_refused_with_400(admin_client, admin_user, make_timer, subtests):
    make_timer()
    lists = ("django_celery_beat/periodictask", "scheduler/timer", "access/apikey", "users/user", "scheduler/callstop")
    for path in lists:
        for value in ("x", "\0", "9" * 23 if path == "scheduler/timer" else "1.5"):
            with subtests.test(path, value=value):
                sent = {"action": "delete_selected", "_selected_action": value}
                assert admin_client.post(f"/admin/{path}/", sent).status_code == 400
    for path in ("access/apikey", "access/limit", "scheduler/signingsecret"):
        with subtests.test(path):
            sent = {"owner": "x", "name": "a", "scopes": "timers"}
            assert admin_client.post(f"/admin/{path}/add/", sent).status_code == 400
    for path in ("access/apikey/?created_at__year=", "scheduler/timer/?created_at__year="):
        for year in ("9" * 20, "0", "9999"):
            with subtests.test(path, year=year):
                assert admin_client.get(f"/admin/{path}{year}").status_code == 400
    assert admin_client.get("/admin/access/apikey/?created_at__year=2026").status_code == 200


def test_crontab_that_means_nothing_to_celery_is_an_error_of_the_form(admin_client):
    fields = dict.fromkeys(("hour", "day_of_month", "month_of_year", "day_of_week"), "*")
    answer = admin_client.post(
        "/admin/django_celery_beat/crontabschedule/add/", {**fields, "minute": "-1", "timezone": "UTC"}
    )
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors
    assert not CrontabSchedule.objects.filter(minute="-1").exists()
