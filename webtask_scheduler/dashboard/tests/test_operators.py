"""The pages for those who look after many timers: dead letters, operations, hosts, the system."""

import html
import re
import time
import uuid
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from benchmarks.visits import scans_of
from config.settings import base
from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.dashboard import dead, overview, queries
from webtask_scheduler.scheduler import facts, services, tasks
from webtask_scheduler.scheduler.models import (
    Attempt,
    Beat,
    BulkChange,
    BulkOperation,
    CallStop,
    Delivery,
    HostHour,
    Minute,
    State,
    new_id,
)
from webtask_scheduler.scheduler.queue.attempts import record_missed
from webtask_scheduler.scheduler.services import many
from webtask_scheduler.scheduler.services.caller import Caller
from webtask_scheduler.scheduler.tests.support.acting import begin, every, put_back, run
from webtask_scheduler.scheduler.tests.support.api import bearer, call_all
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db
ONCE = {"retry": {"max_attempts": 1}}


def text_of(client, path):
    answer = client.get(path, headers={"accept": "text/html"})
    assert answer.status_code == 200, path
    return answer.content.decode()


def finish(operation):
    """Do what a worker does until the operation has ended."""
    while services.step_bulk(operation):
        pass
    operation.refresh_from_db()
    return operation


def test_pages_of_operators_are_theirs(client, user, root, settings):
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    for path in ("/system", "/hosts", "/punctuality"):
        assert client.get(path).status_code == 403
    assert "/system" not in text_of(client, "/")
    client.force_login(root)
    for path in ("/system", "/hosts"):
        assert path in text_of(client, path)


def test_system_says_what_is_missing(client):
    shown = text_of(client, "/system")
    assert "no beat was ever seen" in shown
    assert "no worker was ever seen" in shown
    seen = client.get("/system?live=1")["X-Seen"]
    assert client.get(f"/system?live=1&seen={seen}").status_code == 204


def test_system_shows_settings_tables_and_what_is_kept(client, settings, make_timer):
    make_timer()
    settings.CHANGED_SETTINGS = {"WEBTASK_CALLERS": "7"}
    settings.WEBTASK_AUDIT_DAYS = 0
    page = client.get("/system")
    text = page.content.decode()
    assert re.search(r"WEBTASK_CALLERS</code>.*?>7</code>", text)
    assert re.search(r'WEBTASK_AUDIT_DAYS">.*?</dt><dd>for ever</dd>', text)
    sizes = [table["bytes"] for table in page.context["tables"]]
    assert (len(sizes), sizes) == (5, sorted(sizes, reverse=True))
    assert min(sizes) > 0
    assert "Flower" not in text
    settings.WEBTASK_FLOWER_URL = "http://127.0.0.1:5555"
    link = '<a href="http://127.0.0.1:5555">Flower</a>'
    # On the page, and in the menu of each.
    assert text_of(client, "/system").count(link) == 2
    assert text_of(client, "/timers").count(link) == 1
    # None of it is asked for again and again.
    assert "tables" not in client.get("/system?live=1").context
    settings.WEBTASK_API_AUTH = "key"
    assert link not in client.get("/login").content.decode()


def test_settings_that_differ_are_noted_and_secrets_are_not(monkeypatch):
    noted = base.CHANGED_SETTINGS
    monkeypatch.setattr(base, "CHANGED_SETTINGS", {})
    for name, value in (("ONE", "7"), ("TWO", "0.5"), ("THREE", "on"), ("FOUR", "1")):
        monkeypatch.setenv(name, value)
    base.whole_number("ONE", default=1, least=0, most=9)
    base.number("TWO", default=0.0, least=0, most=9)
    base.one_of("THREE", "off", "on")
    base.whole_number("FOUR", default=1, least=0, most=9)
    assert base.CHANGED_SETTINGS == {"ONE": "7", "TWO": "0.5", "THREE": "on"}
    # Another default, which it does not differ from.
    base.whole_number("ONE", default=7, least=0, most=9)
    assert "ONE" not in base.CHANGED_SETTINGS
    assert not [name for name in noted if re.search("_KEYS?$|SECRET|PASSWORD|TOKEN|URL|DSN", name)]


def all_at_work():
    """Store what a beat and the workers store of themselves."""
    Beat.objects.create(name="beat", seen_at=Now())
    for kind in (facts.CALLS, facts.UPKEEP):
        facts.note_worker(name=kind, kind=kind, starter_idle_seconds=0, held=0, running=0)
    facts.forget()


def test_nothing_is_said_to_be_ready_while_something_is_missing(client):
    shown = text_of(client, "/")
    assert "no worker was ever seen" in shown
    assert "All is ready." not in shown
    all_at_work()
    assert "All is ready." in text_of(client, "/")


def banners(client, path="/timers"):
    """Return what the banners of a page say and where they lead."""
    facts.forget()
    banner = r'<p class="banner" role="alert">.*?</svg>.*?</span><span>(.*?)</span>(?: <a href="([^"]+)">Show</a>)?</p>'
    return re.findall(banner, text_of(client, path))


def test_banners_lead_to_the_cure(client, make_timer, monkeypatch):
    all_at_work()
    assert banners(client) == []
    make_timer()
    for seconds, text in ((50, []), (90, [("Late: 1 due timer waits, for 90 s.", "/timers?late=true")])):
        past = timezone.now() - timedelta(seconds=seconds)
        Delivery.objects.update(due_at=past, next_attempt_at=past)
        assert banners(client) == text
    # What waits because all calls are stopped is said once.
    CallStop.objects.create(host="", reason="x")
    assert [link for text, link in banners(client)] == ["/system"]
    assert [link for text, link in banners(client, "/system")] == [""]
    CallStop.objects.update(host="a.example")
    assert [link for text, link in banners(client)] == ["/hosts/a.example", "/timers?late=true"]
    CallStop.objects.all().delete()
    monkeypatch.setattr(facts, "_migrations", (time.monotonic(), False))
    assert banners(client)[0] == ("The database lacks migrations of this version: run manage.py migrate.", "")


def test_hosts_are_those_of_the_day_with_failures_first(client):
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    times = [0, 0, 0, 9, 1] + [0] * 13
    for host, failed, age in (("good.example", 0, 0), ("bad.example", 4, 1), ("old.example", 9, 48)):
        for process in ("a", "b"):
            HostHour.objects.create(
                hour=hour - timedelta(hours=age), host=host, process=process, batch=new_id(), calls=10, failed=failed,
                put_off=0, late=times, durations=times,
            )  # fmt: skip
    shown = [one["host"] for one in client.get("/hosts").context["hosts"]]
    assert [(host.name, host.calls, host.failed, host.share) for host in shown] == [
        ("bad.example", 20, 8, 60.0),
        ("good.example", 20, 0, 100.0),
    ]
    assert (shown[0].late_ms, shown[0].duration_ms) == (20.0, 20.0)


def of_host(host, age=0, *, process="a", **counts):
    """Store what a process counted of a host in an hour."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=age)
    row = {"calls": 0, "failed": 0, "put_off": 0, "late": [0] * 18, "durations": [0] * 18}
    HostHour.objects.create(hour=hour, host=host, process=process, batch=new_id(), **(row | counts))


def test_hosts_are_in_the_order_that_is_asked_for_and_say_how_they_are(client, settings, make_timer, receiver):
    """Each order by the link in its column's head, which a browser without scripts follows."""

    def at(place):
        return [0] * place + [20] + [0] * (17 - place)

    of_host("well.example", calls=2000, late=at(2), durations=at(3))
    of_host("slow.example", calls=20, put_off=3, late=at(9), durations=at(9))
    of_host("failing.example", calls=100, failed=10, late=at(3), durations=at(2))
    # It failed, and no longer does; and fewer than a tenth is no failing host.
    of_host("past.example", 5, calls=50, failed=40, late=at(4), durations=at(4))
    of_host("past.example", calls=100, failed=9)
    services.stop_calls(host="stopped.example", reason="x")
    of_host("stopped.example", calls=10, failed=10, late=at(5), durations=at(5))
    services.stop_calls(host="long.example", reason="y")
    page = text_of(client, "/hosts")
    words = re.findall(r'<code dir="ltr">([a-z]+)\.example</code>.*?<span>([A-Z][A-Za-z ]+)</span>', page)
    assert words == [
        *(("failing", "Failing"), ("stopped", "Calls stopped"), ("long", "Calls stopped"), ("slow", "Slow")),
        *(("past", "OK"), ("well", "OK")),
    ]
    links = re.findall(r'<th class="end"><a href="(\?sort=\w+)">', page)
    orders = {
        "?sort=calls": ["well", "past", "failing", "slow", "stopped", "long"],
        "?sort=share": ["stopped", "past", "failing", "well", "slow", "long"],
        "?sort=duration": ["slow", "stopped", "past", "well", "failing", "long"],
        "?sort=late": ["slow", "stopped", "past", "failing", "well", "long"],
    }
    assert links == list(orders)
    for link, names in orders.items():
        answer = client.get(f"/hosts{link}")
        assert [one["host"].name.partition(".")[0] for one in answer.context["hosts"]] == names, link
        assert answer.content.decode().count("aria-sort=") == 1
    # A sort that means nothing is that by trouble.
    assert client.get("/hosts?sort=x").context["order"] == "trouble"
    assert [(client.get(f"/hosts/{name}.example").context["word"].text) for name, _ in words] == [
        word for _, word in words
    ]
    services.stop_calls(everything=True)
    assert {one["word"].text for one in client.get("/hosts").context["hosts"]} == {"Calls stopped"}


def test_hosts_show_what_is_under_way_and_what_the_settings_allow(client, settings, make_timer):
    for number in range(3):
        make_timer(f"http://a.example/{number}", delay_seconds=-1)
    make_timer("http://a.example/later", delay_seconds=60)
    of_host("a.example", calls=24 * 60)
    assert "The settings limit calls to no host." in text_of(client, "/hosts")
    begin()
    (one,) = client.get("/hosts").context["hosts"]
    assert one["running"] == 3
    # A call a minute over a day, and as far as the hour has come.
    assert one["rate"] in ("0.96", "0.97", "0.98", "0.99", "1.0")
    for rate, most, said in (
        (2.5, 0, "To each host at most 2.5 calls a second are begun."),
        (0.0, 12, "To each host at most 12 calls are under way at once."),
        (2.5, 12, "To each host at most 2.5 calls a second are begun, and at most 12 are under way at once."),
    ):
        settings.WEBTASK_HOST_MAX_PER_SECOND, settings.WEBTASK_HOST_MAX_IN_FLIGHT = rate, most
        for path in ("/hosts", "/hosts/a.example"):
            shown = text_of(client, path)
            assert said in shown
            assert (f">{3} / 12</" in shown) == bool(most)


def test_host_is_shown_over_time(client, make_timer, receiver, django_assert_max_num_queries):
    times = [0, 0, 0, 9, 1] + [0] * 13
    for process in ("a", "b"):
        of_host("a.example", process=process, calls=10, failed=1, late=times, durations=times)
    of_host("a.example", 30, calls=5)
    of_host("b.example", calls=100)
    with django_assert_max_num_queries(12):
        shown = client.get("/hosts/a.example").context
    assert (shown["host"].calls, shown["host"].failed, shown["host"].late_ms) == (20, 2, 20.0)
    assert len(shown["calls"]) == 24
    assert [(part.state, part.height) for part in shown["calls"][-1].parts] == [("succeeded", 90.0), ("failed", 10.0)]
    assert shown["levels"][0][1][-1].label.endswith("≤ 20 ms")
    assert client.get("/hosts/a.example?window=7d").context["host"].calls == 25
    timer = make_timer(receiver.url("/status/503"), delay_seconds=-1, options=ONCE)
    call_all(receiver)
    shown = client.get(f"/hosts/{timer.host}").context
    assert shown["kinds"] == [("503", 1)]
    assert [group["count"] for group in shown["dead"]] == [1]
    assert f'href="/hosts/{timer.host}"' not in text_of(client, "/hosts")
    of_host(timer.host, calls=1)
    assert f'href="/hosts/{timer.host}"' in text_of(client, "/hosts")
    assert client.get("/hosts/never.example").status_code == 200
    assert client.get(f"/hosts/{'x' * 300}").status_code == 404


def test_calls_to_a_host_are_stopped_and_resumed_with_a_reason(client, root, user, settings):
    settings.WEBTASK_API_AUTH = "key"
    path = "/hosts/a.example:8443"
    client.force_login(user)
    assert client.get(path).status_code == 403
    assert client.post(f"{path}/stop", {"reason": "x"}).status_code == 403
    staff = get_user_model().objects.create_user("staff@example.com", "x", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_timer"))
    client.force_login(staff)
    assert "Stop calls" not in text_of(client, path)
    assert client.post(f"{path}/stop", {"reason": "x"}).status_code == 403
    assert not CallStop.objects.exists()
    client.force_login(root)
    assert "Stop calls" in text_of(client, path)
    assert client.post(f"{path}/stop", {"reason": "it is down"})["Location"] == path
    assert CallStop.objects.get().reason == "it is down"
    shown = text_of(client, path)
    assert "Calls to this host are stopped." in shown
    assert "Resume calls" in shown
    assert client.post(f"{path}/resume", {"reason": "it is back"}).status_code == 302
    assert not CallStop.objects.exists()
    assert [
        (entry.action, entry.name, entry.after) for entry in AuditEntry.objects.filter(kind="host").order_by("id")
    ] == [
        ("calls.stopped", "root@example.com", {"reason": "it is down"}),
        ("calls.resumed", "root@example.com", {"reason": "it is back"}),
    ]
    assert "it is back" in text_of(client, path)
    # Neither all hosts nor nonsense can be meant here.
    assert client.post("/hosts/%20/stop").status_code == 302
    assert client.post("/hosts/not a host/stop").status_code == 302
    assert client.post(f"{path}/explode").status_code == 404
    assert not CallStop.objects.exists()


def groups_of(client, query=""):
    groups = client.get(f"/dead{query}").context["groups"]
    return sorted((group["cause"].word, group["count"]) for group in groups)


def fail(receiver, make_timer, *paths, **more):
    for path in paths:
        make_timer(receiver.url(path), delay_seconds=-1, options=ONCE, name=path, **more)
    call_all(receiver)


def cause_of(client, word):
    (found,) = [group for group in client.get("/dead").context["groups"] if group["cause"].word == word]
    return found["cause"]._asdict(), found["link"]


def test_dead_letters_are_grouped_by_cause(client, make_timer, receiver, django_assert_max_num_queries):
    fail(receiver, make_timer, "/status/503", "/status/503", "/status/404")
    make_timer(receiver.url("/late"), delay_seconds=-5, max_lateness_seconds=1)
    record_missed(begin().missed)
    assert groups_of(client) == [("404", 1), ("503", 2), ("Missed", 1)]
    _, link = cause_of(client, "503")
    with django_assert_max_num_queries(5):
        shown = text_of(client, link)
    assert shown.count("<strong>/status/503") == 2
    assert text_of(client, "/dead?host=x&state=failed&code=9x")
    # The badge counts them on every page.
    assert client.get("/timers").context["dead_count"] == 4


def test_many_groups_of_dead_letters_are_shown_page_by_page(client, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(dead, "GROUPS_SHOWN", 2)
    fail(receiver, make_timer, *["/status/503"] * 3, *["/status/404"] * 2, "/status/400")
    assert groups_of(client) == [("404", 2), ("503", 3)]
    page = text_of(client, "/dead")
    assert "Groups 1 to 2 of 3, the largest first" in page
    following = html.unescape(re.search(r'rel="next" href="([^"]+)"', page)[1])
    assert groups_of(client, following) == [("400", 1)]
    assert "Groups 3 to 3 of 3" in text_of(client, f"/dead{following}")
    for odd in ("99", "x", "-1", "9" * 9, "²"):
        assert groups_of(client, f"?from={odd}") == [("404", 2), ("503", 3)], odd


def test_group_is_dismissed_and_counted_no_more(client, make_timer, receiver):
    fail(receiver, make_timer, "/status/503", "/status/503", "/status/404")
    cause, _ = cause_of(client, "503")
    assert "2 dead letters are dismissed." in text_after(client, "/dead/dismiss", cause)
    assert groups_of(client) == [("404", 1)]
    assert client.get("/timers").context["dead_count"] == 1
    assert Delivery.objects.filter(state=State.FAILED).count() == 3
    assert client.post("/dead/explode", cause).status_code == 404
    assert client.post("/dead/dismiss", {"host": "x"}).status_code == 404


def test_no_dead_letters_say_when_the_last_one_was(client, user, make_timer, receiver, settings):
    assert "No dead letters: nothing has failed" in text_of(client, "/dead")
    fail(receiver, make_timer, "/status/503")
    fail(receiver, make_timer, "/status/404", owner_id=user.pk)
    assert client.get("/dead").context["groups"]
    services.dismiss_many(list(Delivery.objects.values_list("pk", flat=True)))
    Delivery.objects.filter(timer__owner=None).update(finished_at=timezone.now() - timedelta(days=3))
    of_owner, of_nobody = (Delivery.objects.get(timer__owner=one).finished_at for one in (user, None))
    shown = client.get("/dead")
    assert shown.context["last_lost"] == of_nobody
    assert f'datetime="{of_nobody:%FT%T}' in shown.content.decode()
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    assert client.get("/dead").context["last_lost"] == of_owner
    client.force_login(get_user_model().objects.create_user("other@example.com", "x"))
    assert client.get("/dead").context["last_lost"] is None
    # What is sent again is lost no more.
    client.force_login(user)
    services.replay(Delivery.objects.get(timer__owner=user).timer_id)
    assert client.get("/dead").context["last_lost"] is None


def test_last_dead_letter_is_looked_for_along_its_index_and_not_for_ever(user, make_timer, receiver, sql):
    fail(receiver, make_timer, "/status/503", owner_id=user.pk)
    fail(receiver, make_timer, "/status/503")
    services.dismiss_many(list(Delivery.objects.values_list("pk", flat=True)))
    asked = []
    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(noting(asked)):
        assert queries.last_lost(Caller(owner_id=user.pk)) is not None
        patch.setattr(queries, "OWN_LOOK", 1)
        assert queries.last_lost(Caller(owner_id=user.pk)) is None
        assert queries.last_lost(Caller(sees_all=True)) is not None
    # So few rows are quickest read as a whole.
    sql("SET LOCAL enable_seqscan = off")
    assert [scan for statement, values in asked for scan in scans_of(statement, values)] == []


def noting(asked):
    """Return a wrapper that notes each statement with its values."""

    def note(execute, sql, params, many, context):
        asked.append((sql, params))
        return execute(sql, params, many, context)

    return note


def test_dismissal_is_undone_by_what_its_message_offers(client, user, make_timer, receiver, settings):
    fail(receiver, make_timer, "/status/503", "/status/503", "/status/404", owner_id=user.pk)
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    client.post("/dead/dismiss", cause_of(client, "404")[0])
    client.get("/dead")
    said = text_after(client, "/dead/dismiss", cause_of(client, "503")[0])
    undo = html.unescape(re.search(r'<form method="post" action="(/dead/restore[^"]+)"', said)[1])
    assert groups_of(client) == []
    # Another's page finds nothing by the same address.
    other = Client()
    other.force_login(get_user_model().objects.create_user("other@example.com", "x"))
    assert "0 dead letters are to be looked at again." in text_after(other, undo, {})
    assert "2 dead letters are to be looked at again." in text_after(client, undo, {})
    assert groups_of(client) == [("503", 2)]
    for bad in ("/dead/restore", f"{undo}x", "/dead/restore?since=1&until=2&due_from=3&due_to=4"):
        assert client.post(bad).status_code == 404, bad
    assert client.get(undo).status_code == 405


def test_calls_to_the_host_of_a_group_are_stopped_by_whoever_may(client, user, make_timer, receiver, settings):
    fail(receiver, make_timer, "/status/503", owner_id=None)
    host = cause_of(client, "503")[0]["host"]
    stop = f'action="/hosts/{host}/stop"'
    assert stop in text_of(client, "/dead")
    client.post(f"/hosts/{host}/stop", {"reason": "down"})
    shown = text_of(client, "/dead")
    assert "Calls are stopped" in shown
    assert stop not in shown
    fail(receiver, make_timer, "/status/500", owner_id=user.pk)
    CallStop.objects.all().delete()
    call_all(receiver)
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    assert "/stop" not in text_of(client, "/dead")


def text_after(client, path, fields):
    answer = client.post(path, fields, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_group_is_replayed_at_once_or_over_time_all_of_it_or_what_is_ticked(client, make_timer, receiver):
    fail(receiver, make_timer, *["/status/503"] * 4)
    cause, _ = cause_of(client, "503")
    one = Delivery.objects.first()
    assert "1 dead letter is sent again." in text_after(client, "/dead/replay", cause | {"id": str(one.pk)})
    assert groups_of(client) == [("503", 3)]
    assert "3 dead letters are sent again." in text_after(client, "/dead/replay", cause | {"spread": "3600"})
    waits = Delivery.objects.exclude(pk=one.pk).values_list("next_attempt_at", flat=True)
    assert max(waits) - timezone.now() > timedelta(minutes=1)
    assert groups_of(client) == []
    assert len(call_all(receiver)) < 4


def test_dead_letters_of_others_are_not_there(client, user, make_timer, receiver, settings):
    fail(receiver, make_timer, "/status/500", owner_id=user.pk)
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    cause, link = cause_of(client, "500")
    client.force_login(get_user_model().objects.create_user("other@example.com", "x"))
    assert groups_of(client) == []
    assert client.get(link).context["deliveries"] == []
    assert client.get("/timers").context["dead_count"] == 0
    for action in ("replay", "dismiss"):
        client.post(f"/dead/{action}", cause)
    assert (Delivery.objects.get().state, Delivery.objects.get().dismissed_at) == (State.FAILED, None)


def test_staff_who_may_only_look_change_what_is_theirs(client, user, make_timer, receiver, settings):
    staff = get_user_model().objects.create_user("staff@example.com", "x", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_timer"))
    fail(receiver, make_timer, "/status/500", owner_id=user.pk)
    fail(receiver, make_timer, "/status/500", owner_id=staff.pk)
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(staff)
    assert groups_of(client) == [("500", 2)]
    assert groups_of(client, "?mine=1") == [("500", 1)]
    assert "your own timers only" in text_of(client, "/dead")
    client.post("/dead/dismiss", cause_of(client, "500")[0])
    assert Delivery.objects.get(dismissed_at__isnull=False).timer.owner == staff


def test_examples_are_named_before_many_are_changed(client, make_timer):
    for number in range(5):
        make_timer("http://a.example/x", name=f"report {number}")
    make_timer("http://b.example/x", name="other")
    where = client.post("/operations/count", {"action": "pause", "host": "a.example"})["Location"]
    assert "Such as" not in text_of(client, where)
    finish(BulkOperation.objects.get())
    shown = text_of(client, where)
    assert [name for name in ("report 4", "report 3", "report 2", "report 1", "other") if f">{name}</a>" in shown] == [
        "report 4",
        "report 3",
        "report 2",
    ]


def test_many_are_counted_first_and_changed_when_that_is_confirmed(client, make_timer):
    timers = [make_timer("http://a.example/x", name=f"report {number}") for number in range(3)]
    make_timer("http://b.example/x")
    answer = client.post("/operations/count", {"action": "pause", "host": "a.example"})
    counted = BulkOperation.objects.get()
    assert (counted.dry_run, counted.filter, counted.owner) == (True, {"host": "a.example"}, None)
    assert answer["Location"] == f"/operations/{counted.pk}"
    assert "Counting." in text_of(client, answer["Location"])
    assert client.post(f"{answer['Location']}/begin").status_code == 302
    BulkOperation.objects.exclude(pk=counted.pk).delete()
    finish(counted)
    assert "Pause (3)" in text_of(client, answer["Location"])
    assert Delivery.objects.filter(state=State.PAUSED).count() == 0
    answer = client.post(f"{answer['Location']}/begin")
    done = finish(BulkOperation.objects.get(dry_run=False))
    assert answer["Location"] == f"/operations/{done.pk}?total=3"
    assert set(Delivery.objects.filter(state=State.PAUSED).values_list("timer_id", flat=True)) == {
        timer.pk for timer in timers
    }
    assert 'max="3" value="3"' in text_of(client, answer["Location"])
    assert text_of(client, "/operations").count("host=a.example") == 2


def test_what_is_paused_by_a_filter_is_undone_on_the_page_that_follows(client, make_timer):
    for number in range(3):
        make_timer("http://a.example/x", name=f"report {number}")

    def pause():
        page = client.post("/operations/count", {"action": "pause", "host": "a.example"})["Location"]
        finish(BulkOperation.objects.latest("created_at"))
        begun = client.post(f"{page}/begin")["Location"]
        operation = BulkOperation.objects.latest("created_at")
        assert f'action="/operations/{operation.pk}/undo"' in text_of(client, begun)
        return operation

    # Before it has changed anything, it is stopped, and that is all.
    early = pause()
    answer = client.post(f"/operations/{early.pk}/undo")
    assert "there is nothing to undo" in text_of(client, answer["Location"])
    assert finish(early).status == "stopped"
    # Whoever pressed it at the same time is told the same.
    answer = client.post(f"/operations/{early.pk}/undo")
    assert "there is nothing to undo" in text_of(client, answer["Location"])
    assert not Delivery.objects.filter(state=State.PAUSED).exists()
    # When it has, the opposite is counted, and done when that is confirmed.
    done = finish(pause())
    assert Delivery.objects.filter(state=State.PAUSED).count() == done.changed == 3
    page = client.post(f"/operations/{done.pk}/undo")["Location"]
    counted = finish(BulkOperation.objects.latest("created_at"))
    assert (counted.action, counted.matched, counted.dry_run) == ("resume", 3, True)
    client.post(f"{page}/begin")
    finish(BulkOperation.objects.latest("created_at"))
    assert not Delivery.objects.filter(state=State.PAUSED).exists()


def test_filter_of_an_operation_is_that_of_the_list(client, make_timer):
    make_timer(name="Nightly")
    fields = {"status": "scheduled,paused", "name": "night", "recurring": "false", "due_from": "2020-01-01T00:00:00Z"}
    client.post("/operations/count", {"action": "cancel", **fields})
    operation = BulkOperation.objects.get()
    assert operation.filter == {
        "status": ["scheduled", "paused"],
        "name": "night",
        "recurring": False,
        "due_from": "2020-01-01T00:00:00Z",
    }
    assert finish(operation).matched == 1
    assert not operation.error
    link = client.get(f"/operations/{operation.pk}").context["link"]
    assert parse_qs(urlsplit(link).query) == {name: [value] for name, value in fields.items()}


def test_many_are_cancelled_only_where_their_number_is_typed(client, make_timer, monkeypatch):
    from webtask_scheduler.dashboard import operations

    monkeypatch.setattr(operations, "TYPED_ABOVE", 1)
    for _ in range(2):
        make_timer("http://a.example/x")
    path = client.post("/operations/count", {"action": "cancel", "host": "a.example"})["Location"]
    finish(BulkOperation.objects.get())
    assert "Type 2 to confirm" in text_of(client, path)
    for typed in ("", "3", "two"):
        assert "nothing was done" in text_after(client, f"{path}/begin", {"typed": typed})
    assert BulkOperation.objects.count() == 1
    client.post(f"{path}/begin", {"typed": " 2 "})
    assert BulkOperation.objects.count() == 2


def test_replay_of_all_that_fit_may_be_spread(client, make_timer, receiver):
    fail(receiver, make_timer, "/status/500")
    path = client.post("/operations/count", {"action": "replay", "status": "failed"})["Location"]
    finish(BulkOperation.objects.get())
    client.post(f"{path}/begin", {"spread": "600"})
    assert BulkOperation.objects.get(dry_run=False).spread_seconds == 600


@each(
    ("fields", "status"),
    [
        ({"action": "pause"}, 302),
        ({"action": "pause", "status": "nonsense"}, 302),
        ({"action": "explode", "host": "a.example"}, 404),
    ],
)
def test_operation_that_means_nothing_is_not_begun(client, fields, status):
    assert client.post("/operations/count", fields).status_code == status
    assert not BulkOperation.objects.exists()


def test_operations_of_others_are_not_there(client, user, root, settings):
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(user)
    path = client.post("/operations/count", {"action": "pause", "host": "a.example"})["Location"]
    operation = BulkOperation.objects.get()
    assert (operation.owner, operation.everyone) == (user, False)
    client.force_login(get_user_model().objects.create_user("other@example.com", "x"))
    assert client.get(path).status_code == 404
    assert client.post(f"{path}/begin").status_code == 404
    assert "a.example" not in text_of(client, "/operations")
    # A superuser looks, and begins none in another's name.
    client.force_login(root)
    assert "a.example" in text_of(client, path)
    assert client.post(f"{path}/begin").status_code == 404
    client.post("/operations/count", {"action": "pause", "host": "a.example"})
    client.post("/operations/count", {"action": "pause", "host": "a.example", "mine": "1"})
    assert list(BulkOperation.objects.filter(owner=root).order_by("pk").values_list("everyone", flat=True)) == [
        True,
        False,
    ]


def test_operation_is_stopped_in_the_middle_and_says_what_it_had_changed(client, make_timer, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 2)
    for _ in range(3):
        make_timer("http://a.example/x")
    operation = BulkOperation.objects.create(action="pause", filter={"host": "a.example"})
    path = f"/operations/{operation.pk}"
    assert services.step_bulk(operation)
    assert "What it has changed so far stays." in text_of(client, path)
    assert client.post(f"{path}/stop")["Location"] == path
    shown = text_of(client, path)
    assert "It was stopped; 2 timers had been changed by then, and stay so." in shown
    assert "What it has changed so far stays." not in shown
    assert "Stopped" in text_of(client, "/operations")
    assert "It had ended already." in text_of(client, client.post(f"{path}/stop")["Location"])
    counting = BulkOperation.objects.create(action="pause", filter={"host": "a.example"}, dry_run=True)
    client.post(f"/operations/{counting.pk}/stop")
    assert "It was stopped while it counted; nothing was changed." in text_of(client, f"/operations/{counting.pk}")


def test_operation_is_counted_again_and_undone_once_confirmed(client, make_timer):
    timers = [make_timer("http://a.example/"), make_timer("http://a.example/"), make_timer("http://b.example/")]
    paused = lambda: set(Delivery.objects.filter(state=State.PAUSED).values_list("timer", flat=True))  # noqa: E731
    operation = BulkOperation.objects.create(action="pause", filter={"host": "a.example", "status": ["scheduled"]})
    path = f"/operations/{operation.pk}"
    # While it runs there is nothing to repeat.
    assert "The same again" not in text_of(client, path)
    assert client.post(f"{path}/again").status_code == 404
    finish(operation)
    assert paused() == {timers[0].pk, timers[1].pk}
    assert "Undoing reaches the timers that it changed, and no others." in text_of(client, path)
    assert f'href="/timers?changed_by={operation.pk}">2</a>' in text_of(client, path)

    def counted(answer):
        found = finish(BulkOperation.objects.latest("created_at"))
        assert answer["Location"] == f"/operations/{found.pk}"
        assert found.dry_run
        return found

    again = counted(client.post(f"{path}/again"))
    assert (again.action, again.filter, again.matched) == ("pause", operation.filter, 0)
    undo = counted(client.post(f"{path}/undo"))
    assert (undo.action, undo.filter) == ("resume", {"changed_by": str(operation.pk)})
    assert undo.matched == 2
    assert paused()
    client.post(f"/operations/{undo.pk}/begin")
    resumed = finish(BulkOperation.objects.latest("created_at"))
    assert not paused()
    # And that is taken back the same way.
    back = counted(client.post(f"/operations/{resumed.pk}/undo"))
    assert (back.action, back.filter, back.matched) == ("pause", {"changed_by": str(resumed.pk)}, 2)


def test_undo_leaves_what_was_paused_before(client, make_timer):
    before, *others, running = [make_timer("http://a.example/", delay_seconds=60) for _ in range(4)]
    services.pause(before.pk)
    leased = {"lease_token": uuid.uuid4(), "lease_expires_at": timezone.now()}
    started = {"state": State.RUNNING, "attempts": 1, "started_at": timezone.now()}
    Delivery.objects.filter(timer=running).update(**started, **leased)
    operation = finish(BulkOperation.objects.create(action="pause", filter={"host": "a.example"}))
    # One whose call is under way is paused after it.
    assert (operation.matched, operation.changed) == (4, 3)
    assert not PeriodicTask.objects.filter(enabled=True).exists()
    listed = text_of(client, f"/timers?changed_by={operation.pk}")
    assert [str(one.pk) in listed for one in (before, *others, running)] == [False, True, True, True]
    page = client.post(f"/operations/{operation.pk}/undo")["Location"]
    finish(BulkOperation.objects.latest("created_at"))
    client.post(f"{page}/begin")
    undone = finish(BulkOperation.objects.latest("created_at"))
    assert (undone.action, undone.matched, undone.changed) == ("resume", 3, 3)
    assert PeriodicTask.objects.get(enabled=False).timer == before
    assert list(Delivery.objects.filter(state=State.PAUSED).values_list("timer", flat=True)) == [before.pk]


def test_undo_leaves_what_something_else_paused_since(client, make_timer):
    by_hand, by_filter, edited, rest = (make_timer("http://a.example/", name=name) for name in "hfer")
    gone = make_timer("http://a.example/", delay_seconds=None, recurrence=every(60.0), options=ONCE)
    operation = finish(BulkOperation.objects.create(action="pause", filter={"host": "a.example"}))
    for timer in (by_hand, by_filter, gone):
        services.resume(timer.pk)
    services.pause(by_hand.pk)
    fail_again(gone, status_code=410)
    other = finish(BulkOperation.objects.create(action="pause", filter={"name": "f"}))
    for enabled in (True, False):
        task = PeriodicTask.objects.get(timer=edited)
        task.enabled = enabled
        task.save()
    assert Delivery.objects.filter(state=State.PAUSED).count() == 5
    kept = BulkChange.objects.values_list("operation", "timer")
    assert set(kept) == {(operation.pk, rest.pk), (other.pk, by_filter.pk)}
    page = client.post(f"/operations/{operation.pk}/undo")["Location"]
    finish(BulkOperation.objects.latest("created_at"))
    client.post(f"{page}/begin")
    assert finish(BulkOperation.objects.latest("created_at")).changed == 1
    # Once it is undone, there is nothing more to undo.
    assert client.post(f"/operations/{operation.pk}/undo").status_code == 404
    assert list(Delivery.objects.filter(state=State.SCHEDULED).values_list("timer", flat=True)) == [rest.pk]


def test_undo_is_offered_only_where_there_is_an_opposite(client, user, make_timer, settings):
    make_timer("http://a.example/")
    for fields, repeated in (
        ({"action": "cancel", "filter": {"host": "a.example"}, "changed": 1}, True),
        ({"action": "pause", "filter": {"host": "a.example"}, "dry_run": True}, True),
        # Which it changed is not known, as of one that a release before began.
        ({"action": "resume", "filter": {"status": ["paused"]}, "changed": 1}, True),
        ({"action": "cancel", "filter": {"status": ["paused"], "callbacks": True}, "changed": 1}, False),
        ({"action": "pause", "filter": {"host": "a.example"}, "changed": 1, "owner": user}, False),
    ):
        operation = BulkOperation.objects.create(finished_at=timezone.now(), **fields)
        assert client.post(f"/operations/{operation.pk}/undo").status_code == 404, fields
        assert client.post(f"/operations/{operation.pk}/again").status_code == (302 if repeated else 404), fields
    # Dismissing is stored with more than was asked for.
    operation = BulkOperation.objects.create(
        action="dismiss", filter={"host": "a.example", "dead": True}, finished_at=timezone.now()
    )
    client.post(f"/operations/{operation.pk}/again")
    assert not finish(BulkOperation.objects.latest("created_at")).error


def test_operation_of_staff_reaches_as_far_as_their_rights_at_each_step(client, user, make_timer, settings):
    settings.WEBTASK_API_AUTH = "key"
    staff = get_user_model().objects.create_user("staff@example.com", "x", is_staff=True)
    timers = [make_timer("http://a.example/x", owner_id=owner.pk) for owner in (user, staff, user)]

    def begin(*codenames):
        staff.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(get_user_model().objects.get(pk=staff.pk))
        page = client.post("/operations/count", {"action": "pause", "host": "a.example"})["Location"]
        tasks.bulk()
        assert client.post(f"{page.partition('?')[0]}/begin").status_code == 302
        return BulkOperation.objects.get(pk=page.partition("?")[0].split("/")[-1]).matched

    def paused():
        found = Delivery.objects.filter(state=State.PAUSED)
        return set(found.values_list("timer__owner__email", flat=True)), found.count()

    # Of what may be looked at, only what is one's own is changed, as on the timer's page and with ticks.
    assert begin("view_timer") == 1
    tasks.bulk()
    assert paused() == ({staff.email}, 1)
    # A right that is taken away before it is done.
    assert begin("view_timer", "change_periodictask") == 3
    staff.user_permissions.clear()
    tasks.bulk()
    assert paused() == ({staff.email}, 1)
    assert begin("view_timer", "change_periodictask") == 3
    tasks.bulk()
    assert paused() == ({staff.email, user.email}, len(timers))
    # A key of theirs is a program's: it sees what is its owner's.
    listed = client.get("/timer", headers=bearer(staff, "timers:read", "admin")).json()["timers"]
    assert [timer["task_id"] for timer in listed] == [str(timers[1].pk)]


def test_operation_of_another_is_stopped_by_no_one_but_a_superuser(client, user, root, settings):
    settings.WEBTASK_API_AUTH = "key"
    operation = BulkOperation.objects.create(owner=user, action="pause", filter={"host": "a.example"})
    path = f"/operations/{operation.pk}/stop"
    other = get_user_model().objects.create_user("other@example.com", "x", is_staff=True)
    client.force_login(other)
    assert client.post(path).status_code == 404
    # Staff that may look at all, and change none.
    other.user_permissions.add(Permission.objects.get(codename="view_timer"))
    client.force_login(get_user_model().objects.get(pk=other.pk))
    assert "Stop</button>" not in client.get(path.removesuffix("/stop")).content.decode()
    assert client.post(path).status_code == 403
    operation.refresh_from_db()
    assert operation.status == "running"
    client.force_login(root)
    client.post(path)
    operation.refresh_from_db()
    assert operation.status == "stopped"


def minute(ago, **counts):
    """Store what a process counted in a minute."""
    histograms = ("first_late", "retry_late", "durations", "claims", "publishes")
    floats = ("first_late_seconds", "retry_late_seconds", "duration_seconds", "claim_seconds", "publish_seconds")
    numbers = ("succeeded", "failed", "cancelled", "missed", "retried", "created", "put_off", "reclaimed")
    empty = {name: [0] * 18 for name in histograms} | {"outcomes": [0] * 13}
    empty |= dict.fromkeys((*floats, *numbers, "led_seconds", "window_most"), 0)
    now = timezone.now().replace(second=0, microsecond=0)
    row = {"seconds": 60, "process": "w", "batch": new_id(), "stored_at": now, "slots": 1, "begins_at": now - ago}
    Minute.objects.create(**row | empty | counts)


def test_overview_shows_how_deliveries_ended_over_a_window(client):
    overview.forget()
    minute(timedelta(minutes=5), succeeded=98, failed=2)
    minute(timedelta(hours=30), succeeded=100)
    for query, name, bars, ended in (("", "1h", 60, 1), ("?window=24h", "24h", 48, 1), ("?window=7d", "7d", 42, 2)):
        page = client.get(f"/{query}")
        shown = page.context["outcomes"]
        assert (page.context["window"].name, len(shown), len([bar for bar in shown if bar.parts])) == (
            name,
            bars,
            ended,
        )
        text = page.content.decode()
        # The live part keeps it, and the others are a link away.
        assert f'data-live="/?live=1&amp;window={name}"' in text
        live = client.get(f"/?live=1&window={name}").content.decode()
        links = [f'href="?window={one}"' for one in ("1h", "24h", "7d")]
        assert [link in text for link in links] == [link in live for link in links]
        assert [one for one, link in zip(("1h", "24h", "7d"), links, strict=True) if link not in text] == [name]
    assert client.get("/?window=30d").context["window"].name == "1h"
    assert 'href="?window=7d&amp;mine=1"' in client.get("/?live=1&mine=1").content.decode()


def test_punctuality_is_what_was_counted_in_the_window(client):
    minute(timedelta(minutes=5), first_late=[0, 90, 0, 0, 0, 0, 0, 0, 0, 10] + [0] * 8, succeeded=98, failed=2)
    minute(timedelta(hours=30), first_late=[0] * 17 + [100], succeeded=100)
    shown = client.get("/punctuality?window=1h").context
    assert (shown["total"], shown["share"]) == (100, "90")
    assert shown["percentiles"] == [("50 %", 2.0), ("90 %", 2.0), ("99 %", 1000.0), ("99.9 %", 1000.0)]
    (bar,) = [bar for bar in shown["outcomes"] if bar.parts]
    assert [(part.state, part.height) for part in bar.parts] == [("succeeded", 98.0), ("failed", 2.0)]
    assert client.get("/punctuality?window=7d").context["total"] == 200
    for window in ("1h", "24h", "7d", "30d"):
        assert client.get(f"/punctuality?window={window}").status_code == 200
    all_at_work()
    assert "90 % of 100 calls" in text_of(client, "/")
    assert "Not always on time." in text_of(client, "/")


def test_percentiles_are_drawn_over_time_with_gaps_and_said_as_bounds(client):
    overview.forget()
    for path in ("/punctuality?window=1h", "/"):
        assert client.get(path).context["levels"] is None
    # Two processes of one minute count as one; the minute between has no call.
    minute(timedelta(minutes=5), first_late=[0, 0, 0, 40, 0, 0, 4] + [0] * 11)
    minute(timedelta(minutes=5), process="v", first_late=[0, 0, 0, 50, 0, 0, 0, 0, 0, 6] + [0] * 8)
    minute(timedelta(minutes=3), first_late=[0] * 17 + [1])
    # The overview says in the same columns how deliveries ended.
    for path, calls in (("/punctuality?window=1h", " · Calls: 100"), ("/", "")):
        page = client.get(path)
        levels = page.context["levels"]
        assert [percent for percent, _area in levels.areas] == [99, 95, 50]
        assert [(calls, said) for _at, calls, said in levels.steps if calls] == [
            (100, ["≤ 10 ms", "≤ 1 s", "≤ 1 s"]),
            (1, ["> 1 h", "> 1 h", "> 1 h"]),
        ], path
        assert [area.count("M") for _percent, area in levels.areas] == [2, 2, 2]
        text = page.content.decode()
        assert f"50 % ≤ 10 ms · 95 % ≤ 1 s · 99 % ≤ 1 s{calls}</title>" in text
        assert f"UTC{calls.replace('100', '0') or ' · 0'}</title>" in text
    table = text_of(client, "/punctuality?window=1h").split('id="by-time"')[1].split("</table>")[0]
    assert table.count("<tr>") == 61
    assert '<td class="end" dir="ltr">≤ 10 ms</td>' in table
    # The overview leads to the same window.
    assert 'href="/punctuality?window=24h#by-time"' in text_of(client, "/?window=24h")
    # What was folded into hours is in it too.
    Minute.objects.all().delete()
    minute(timedelta(days=4), seconds=3600, process="", first_late=[0] * 4 + [101] + [0] * 13)
    for window, steps in (("7d", 42), ("30d", 30)):
        levels = client.get(f"/punctuality?window={window}").context["levels"]
        assert (len(levels.steps), sum(calls for _at, calls, _said in levels.steps)) == (steps, 101)


def test_punctuality_says_what_is_left_of_what_may_be_late(client, settings):
    minute(timedelta(minutes=5), first_late=[0, 996, 0, 0, 0, 0, 0, 0, 0, 4] + [0] * 8, led_seconds=60)
    shown = client.get("/punctuality?window=1h").context
    assert (shown["budget"]["is_kept"], shown["budget"]["late"], shown["budget"]["allowed"]) == (True, 4, 10)
    assert shown["budget"]["left"] == "60"
    (burnt,) = [bar for bar in shown["burnt"] if bar.parts]
    assert burnt.label.endswith("4 · 40 %")
    (worst,) = shown["worst"]
    assert (worst["late"], worst["total"]) == (4, 1000)
    assert worst["causes"] == ["claimed and sent in time: workers began it late"]
    settings.WEBTASK_SLO_PERCENT = 99.9
    budget = client.get("/punctuality?window=1h").context["budget"]
    assert (budget["is_kept"], budget["left"], budget["over"]) == (False, "0", "4.0")
    assert "The aim is missed." in text_of(client, "/punctuality?window=1h")


def test_what_is_later_than_any_bound_is_said_so(client):
    minute(timedelta(minutes=5), first_late=[0] * 17 + [5])
    of_host("a.example", calls=5, late=[0] * 17 + [5], durations=[0] * 17 + [5])
    for path in ("/punctuality?window=1h", "/hosts/a.example", "/hosts"):
        shown = text_of(client, path)
        assert "&gt; 1 h" in shown
        assert "inf" not in shown.replace("info", "")


def test_worst_times_say_what_was_counted_beside(client):
    late = [0] * 9 + [5] + [0] * 8
    minute(timedelta(minutes=5), first_late=late, claims=late, publishes=late, put_off=3, reclaimed=2, led_seconds=20)
    minute(timedelta(minutes=6), first_late=[0, 9] + [0] * 16, led_seconds=60)
    (worst,) = client.get("/punctuality?window=1h").context["worst"]
    assert worst["causes"] == [
        "claimed late: 5",
        "sent to a worker late: 5",
        "put off for want of a place: 3",
        "claims that ran out: 2",
        "no beat led for 40 s",
    ]


def test_punctuality_says_where_the_time_goes(client):
    minute(
        timedelta(minutes=5),
        **{name: [4] + [0] * 17 for name in ("first_late", "claims", "publishes", "durations")},
        claim_seconds=0.0, publish_seconds=0.002, first_late_seconds=0.004, duration_seconds=0.04,
    )  # fmt: skip
    assert client.get("/punctuality?window=1h").context["stages"] == [
        ("from its moment to the claim", 0.0),
        ("from its moment to the message", 0.5),
        ("from its moment to the call", 1.0),
        ("the call itself", 10.0),
    ]


def test_overview_says_what_is_due_what_needs_a_person_and_what_ended(client, make_timer, receiver, monkeypatch):
    monkeypatch.setattr(overview, "HERD_LEAST", 3)
    at = timezone.now().replace(microsecond=0) + timedelta(minutes=10)
    for number in range(4):
        make_timer(due_at=at if number else at + timedelta(minutes=20))
    make_timer(delay_seconds=7200)
    failed = make_timer(receiver.url("/status/500"), delay_seconds=-1, options=ONCE, name="nightly")
    call_all(receiver)
    of_host("bad.example", calls=10, failed=4)
    of_host("fine.example", calls=10)
    services.stop_calls(host="stopped.example")
    minute(timedelta(minutes=5), failed=3)
    minute(timedelta(hours=30), failed=1)
    shown = client.get("/").context
    assert len(shown["next_hour"]) == 60
    assert [bar.parts[0].height for bar in shown["next_hour"] if bar.parts] == [100.0, 33.33]
    assert [(second, count) for second, count, _ in shown["herds"]] == [(at, 3)]
    tiles = {tile["label"]: tile for tile in shown["tiles"]}
    assert tiles["Due in the next hour"]["number"] == "4"
    assert (tiles["Lost in 24 hours"]["number"], tiles["Lost in 24 hours"]["more"]) == ("3", "+2")
    assert [(one["what"], one["state"]) for one in shown["attention"]] == [
        ("bad.example", "failed"),
        ("stopped.example", "held"),
    ]
    (ended,) = shown["ended"]
    assert (ended["name"], ended["state"], ended["answer"]) == ("nightly", "failed", "500")
    page = text_of(client, "/")
    assert f'href="/timers/{failed.pk}/deliveries/1"' in page
    # Each number leads to what it counts.
    (herd,) = shown["herds"]
    assert len(client.get(herd[2]).context["rows"]) == 3
    assert len(client.get(tiles["Due in the next hour"]["link"]).context["rows"]) == 4
    assert all(bar.link in page.replace("&amp;", "&") for bar in shown["next_hour"] if bar.parts)


def test_overview_shows_each_their_own_deliveries(client, root, make_timer, receiver, settings):
    settings.WEBTASK_API_AUTH = "key"
    user = get_user_model().objects.create_user("me@example.com", "x")
    make_timer(receiver.url("/"), delay_seconds=-1, owner_id=user.pk)
    make_timer(receiver.url("/"), delay_seconds=-1, owner_id=root.pk)
    call_all(receiver)
    client.force_login(user)
    shown = client.get("/").context
    assert len(shown["ended"]) == 1
    assert "tiles" not in shown
    client.force_login(root)
    assert len(client.get("/").context["ended"]) == 2
    assert len(client.get("/?mine=1").context["ended"]) == 1


def fail_again(*timers, times=1, status_code=500):
    """Let the next deliveries of timers that recur fail, one after the other."""
    for _ in range(times):
        for timer in timers:
            put_back(timer)
        run(status_code=status_code, error="status")


def attention(client, path="/"):
    return [(one["what"], one["state"], one["said"]) for one in client.get(path).context["attention"]]


# What an answer of 410 paused is known by the transaction.
@pytest.mark.django_db(transaction=True)
def test_overview_names_timers_that_a_410_paused_and_those_that_fail_in_a_row(client, make_timer):
    def recurring(name, **more):
        return make_timer(delay_seconds=None, recurrence=every(60.0), name=name, options=ONCE, **more)

    gone, thrice, twice, mended = (recurring(name) for name in ("gone", "thrice", "twice", "mended"))
    fail_again(twice, times=2)
    fail_again(mended, times=3)
    put_back(mended)
    run()
    by_hand, cancelled, once = recurring("by hand"), recurring("cancelled"), make_timer(name="once", options=ONCE)
    fail_again(by_hand, cancelled, thrice, times=3)
    services.pause(by_hand.pk)
    services.cancel(cancelled.pk)
    fail_again(once)
    assert attention(client) == [("thrice", "failed", "failed 3 times in a row")]
    fail_again(gone, status_code=410)
    paused = ("gone", "paused", "paused: its receiver answered that it is gone (410)")
    assert attention(client) == [paused, ("thrice", "failed", "failed 3 times in a row")]
    page = text_of(client, "/")
    assert f'<a href="/timers/{gone.pk}">gone</a>' in page
    # Resumed and paused by hand, it is not paused by its answer any more.
    services.resume(gone.pk)
    services.pause(gone.pk)
    assert attention(client) == [("thrice", "failed", "failed 3 times in a row")]
    services.resume(gone.pk)
    fail_again(gone, status_code=410)
    assert attention(client) == [paused, ("thrice", "failed", "failed 3 times in a row")]
    # One more, and one that was dismissed as it came; a success ends it.
    fail_again(thrice)
    services.dismiss(gone.pk)
    assert attention(client) == [("thrice", "failed", "failed 4 times in a row")]
    put_back(thrice)
    run()
    assert attention(client) == []
    # Paused again by hand, it was not paused by its answer.
    services.resume(gone.pk)
    put_back(gone)
    run()
    services.pause(gone.pk)
    assert attention(client) == []


def test_overview_shows_each_the_troubled_timers_that_are_theirs(client, user, root, make_timer, settings):
    settings.WEBTASK_API_AUTH = "key"
    for owner, name in ((user, "mine"), (root, "theirs")):
        timer = make_timer(delay_seconds=None, recurrence=every(60.0), name=name, options=ONCE, owner_id=owner.pk)
        fail_again(timer, times=3)
    of_host("bad.example", calls=10, failed=4)
    client.force_login(user)
    assert [what for what, *_ in attention(client)] == ["mine"]
    client.force_login(root)
    assert [what for what, *_ in attention(client)] == ["bad.example", "theirs", "mine"]
    assert [what for what, *_ in attention(client, "/?mine=1")] == ["bad.example", "theirs"]


def test_many_dead_letters_of_a_host_do_not_hide_what_else_needs_attention(user, make_timer, monkeypatch):
    failing = make_timer(
        web_url="http://quiet.example/", delay_seconds=None, recurrence=every(60.0), name="quiet", options=ONCE
    )
    fail_again(failing, times=3)
    for _ in range(5):
        services.cancel(make_timer(web_url="http://loud.example/").pk)
    loud = Delivery.objects.filter(timer__host="loud.example")
    loud.update(state=State.FAILED, finished_at=timezone.now())
    monkeypatch.setattr(queries, "TROUBLED_LOOK", 3)
    monkeypatch.setattr(queries, "TROUBLED_OF_FLOW", 1)
    assert [row["name"] for row in queries.troubled_timers(Caller(sees_all=True), most=10)] == ["quiet"]


def test_owner_has_own_latest_deliveries_beside_many_of_others(user, make_timer):
    mine = make_timer(owner_id=user.pk)
    for timer in (mine, *(make_timer() for _ in range(12))):
        services.cancel(timer.pk)
    found = queries.latest_ended(Caller(owner_id=user.pk), limit=10)
    assert [row["timer_id"] for row in found] == [mine.pk]
    assert len(queries.latest_ended(Caller(sees_all=True), limit=10)) == 10
    assert queries.latest_ended(Caller(owner_id=user.pk + 1), limit=10) == []


def test_no_kind_of_trouble_hides_the_others():
    def lines(kind, count):
        return [{"what": f"{kind}{number}"} for number in range(count)]

    for counts, expected in (
        ((50, 0, 0), (10, 0, 0)),
        ((50, 50, 50), (6, 2, 2)),
        ((1, 50, 1), (1, 8, 1)),
        ((3, 3, 3), (3, 3, 3)),
        ((0, 0, 0), (0, 0, 0)),
    ):
        found = overview._attention(*(lines(kind, count) for kind, count in zip("abc", counts, strict=True)))
        assert [one["what"] for one in found] == [
            f"{kind}{number}" for kind, count in zip("abc", expected, strict=True) for number in range(count)
        ]


@each("everyone", [True, False])
def test_what_needs_attention_is_found_along_indexes_whatever_there_is(make_timer, user, everyone):
    """With a few thousand rows of everything, so that the planner has a choice."""
    now = timezone.now()
    new = [
        services.NewTimer(web_url=f"http://{n % 9}.example/", delay_seconds=60, owner_id=user.pk) for n in range(3000)
    ]
    made = services.schedule(new)
    dead = Delivery.objects.filter(timer__in=[one.timer_id for one in made[:2000]])
    Attempt.objects.bulk_create(
        Attempt(delivery=one, number=1, meant_for=now, started_at=now, status_code=503, error="status")
        for one in dead.order_by("pk")
    )
    dead.update(state=State.FAILED, attempts=1, started_at=now, finished_at=now)
    failing = make_timer(delay_seconds=None, recurrence=every(60.0), name="x", options=ONCE, owner_id=user.pk)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    fail_again(failing, times=3)
    with CaptureQueriesContext(connection) as caught:
        (row,) = queries.troubled_timers(Caller(owner_id=user.pk, sees_all=everyone), most=10)
        assert row["name"] == "x"
        assert queries.running_by_host() == {}
        caller = Caller(owner_id=user.pk, sees_all=everyone)
        assert len(queries.latest_ended(caller, limit=10)) == 10
        assert queries.last_lost(caller) is not None
    for one in caught:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {one['sql']}")
            plan = "\n".join(row[0] for row in cursor.fetchall())
        for table in ("scheduler_timer", "scheduler_delivery", "scheduler_attempt"):
            assert f"Seq Scan on {table} " not in plan, plan
