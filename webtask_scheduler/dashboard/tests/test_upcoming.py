"""What comes: the strip, herds by second, the list, and where it was cut."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from webtask_scheduler.dashboard import queries, upcoming
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, Timer
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.services import flows
from webtask_scheduler.scheduler.services.caller import Caller

pytestmark = pytest.mark.django_db
URL = "http://a.example/hook"


def ask(client, query=""):
    answer = client.get(f"/upcoming{query}")
    assert answer.status_code == 200
    return answer


def begin():
    """Return the beginning of the present quarter of an hour, as the page has it."""
    return datetime.fromtimestamp(timezone.now().timestamp() // 900 * 900, UTC)


def hour(after):
    """Return a whole hour of the strip."""
    return (begin() + timedelta(hours=after)).replace(minute=0)


def heights(answer, state):
    return {
        number: part.height
        for number, one in enumerate(answer.context["strip"])
        for part in one["bar"].parts
        if part.state == state
    }


def schedule(*timers, **shared):
    return services.schedule([services.NewTimer(**({"web_url": URL} | shared | timer)) for timer in timers])


def test_nothing_comes(client):
    answer = ask(client)
    assert "Nothing comes in this quarter" in answer.content.decode()
    assert len(answer.context["strip"]) == upcoming.PARTS


def test_each_delivery_stands_in_its_quarter_of_an_hour(client):
    at = hour(5)
    schedule({"due_at": at}, {"due_at": at + timedelta(minutes=14, seconds=59)}, {"due_at": at + timedelta(minutes=15)})
    # Before and after the strip.
    schedule({"due_at": begin() - timedelta(hours=1)}, {"due_at": begin() + timedelta(hours=24)})
    answer = ask(client)
    place = (at - begin()) // upcoming.PART
    assert list(heights(answer, "scheduled")) == [place, place + 1]
    assert answer.context["total"] == "3"
    # Without a choice, the first part in which something comes.
    assert [one["at"] for one in answer.context["calls"]] == [at, at + timedelta(minutes=14, seconds=59)]
    answer = ask(client, answer.context["following"].partition("#")[0])
    assert [one["at"] for one in answer.context["calls"]] == [at + timedelta(minutes=15)]
    for nonsense in ("?at=x", "?at=9999-12-31T23:59:59-12:00", "?at=2020-01-01T00:00:00Z", "?at=2030-01-01T00:00"):
        assert len(ask(client, nonsense).context["calls"]) == 2


def test_recurring_timer_is_followed_by_its_schedule(client):
    at = hour(3)
    schedule(
        {"recurrence": Recurrence(every_seconds=3600.0, starts_at=at)},
        {"recurrence": Recurrence(every_seconds=3600.0, starts_at=at), "max_occurrences": 2},
        {"recurrence": Recurrence(every_seconds=60.0, starts_at=at), "name": "often"},
    )
    services.pause(schedule({"recurrence": Recurrence(every_seconds=3600.0, starts_at=at)})[0].timer_id)
    cancelled = schedule({"recurrence": Recurrence(every_seconds=3600.0, starts_at=at)})[0].timer_id
    services.cancel(cancelled)
    answer = ask(client)
    end = begin() + timedelta(hours=24)
    hours = (end - at - timedelta(microseconds=1)) // timedelta(hours=1)
    # The three that are promised, what follows of the first, one of the second, and a hundred of the third.
    assert answer.context["total"] == "3"
    assert answer.context["total_later"] == str(hours + 1 + upcoming.MOMENTS_MOST)
    assert "1 timer recurs so often" in answer.content.decode()
    calls = answer.context["calls"]
    assert [(one["at"], one["is_promised"]) for one in calls[:4]] == [
        (at, True),
        (at, True),
        (at, True),
        (at + timedelta(minutes=1), False),
    ]
    assert calls[3]["timer"]["name"] == "often"


def test_more_recurring_timers_than_are_followed_are_said(client, monkeypatch):
    monkeypatch.setattr(upcoming, "TIMERS_MOST", 3)
    rule = Recurrence(cron="0 * * * *")
    schedule(*[{"recurrence": rule}] * 3)
    assert "recur than can be followed" not in ask(client).content.decode()
    schedule({"recurrence": rule})
    answer = ask(client)
    assert "recur than can be followed" in answer.content.decode()
    # What is promised is drawn all the same.
    assert answer.context["total"] == "4"
    monkeypatch.setattr(upcoming, "EXPAND_SECONDS", -1.0)
    assert ask(client).context["total_later"] == "0"


def test_herd_is_named_and_leads_to_its_timers(client):
    at = hour(4) + timedelta(minutes=7, seconds=3)
    crowd = queries.HERD_LEAST + 20
    schedule(*({"due_at": at + timedelta(milliseconds=7 * number)} for number in range(crowd)))
    # As many, but not in one second.
    schedule(*({"due_at": at + timedelta(hours=2, seconds=number)} for number in range(crowd)))
    (herd,) = ask(client).context["herds"]
    assert (herd["at"], herd["count"]) == (at, str(crowd))
    found = parse_qs(urlsplit(herd["link"]).query)
    assert found == {
        "status": ["scheduled"],
        "due_from": [f"{at:%FT%TZ}"],
        "due_to": [f"{at + timedelta(seconds=1):%FT%TZ}"],
    }
    assert client.get(herd["link"]).context["rows"]


def test_herd_is_spread_over_the_time_that_is_chosen_once_it_was_counted(client):
    at = hour(4)
    crowd = queries.HERD_LEAST + 20
    schedule(*({"due_at": at} for _ in range(crowd)))
    (recurring,) = schedule({"recurrence": Recurrence(every_seconds=7200.0, starts_at=at)})
    page = ask(client).content.decode()
    form = page[page.index('action="/operations/count"') :]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[: form.index("</form>")]))
    fields.pop("csrfmiddlewaretoken", None)
    answer = client.post("/operations/count", fields)
    (counted,) = BulkOperation.objects.all()
    assert answer["Location"] == f"/operations/{counted.pk}"
    assert "Counting. Nothing is changed" in client.get(answer["Location"]).content.decode()
    assert not services.step_bulk(counted)
    asked = client.get(answer["Location"])
    text = asked.content.decode()
    assert f"{crowd} timers that are called once each draw a moment" in text
    assert f"begins at {at:%F %H:%M:%S} UTC" in text
    assert "This cannot be undone" in text
    assert "over 10 minutes (about 12 a minute)" in text
    assert [value for value, _ in asked.context["spreads"]] == ["60", "600", "3600"]
    listed = client.get(asked.context["recurring"]["link"]).context["rows"]
    assert [row["task_id"] for row in listed] == [str(recurring.timer_id)]
    # Without a time that may be chosen, nothing is begun.
    for spread in ("0", "x", "7"):
        client.post(f"/operations/{counted.pk}/begin", {"spread": spread})
    assert BulkOperation.objects.count() == 1
    client.post(f"/operations/{counted.pk}/begin", {"spread": "600"})
    done = BulkOperation.objects.get(dry_run=False)
    while services.step_bulk(done):
        pass
    assert done.error == ""
    assert done.changed > crowd - 10
    assert ask(client).context["herds"] == []
    assert "<dd>600 s</dd>" in client.get(f"/operations/{done.pk}").content.decode()
    # What it did is not taken back, and could be done again.
    assert client.post(f"/operations/{done.pk}/undo").status_code == 404
    again = client.post(f"/operations/{done.pk}/again")
    assert BulkOperation.objects.get(pk=again["Location"].rpartition("/")[2]).dry_run


def test_herd_is_offered_to_whoever_may_move_it(client, user, settings, django_user_model):
    settings.WEBTASK_API_AUTH = "key"
    at = hour(4)
    schedule(*({"due_at": at, "owner_id": user.pk} for _ in range(queries.HERD_LEAST)))
    staff = django_user_model.objects.create_user("staff@example.com", "x", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_timer"))
    for viewer, offered in ((user, True), (staff, False)):
        client.force_login(viewer)
        answer = ask(client)
        assert len(answer.context["herds"]) == 1
        assert ("Spread them" in answer.content.decode()) is offered
    second = {"due_from": f"{at:%FT%TZ}", "due_to": f"{at + timedelta(seconds=1):%FT%TZ}", "action": "spread"}
    # Sent all the same, it is about the sender's own, of which there is none.
    client.post("/operations/count", second)
    operation = BulkOperation.objects.get()
    services.step_bulk(operation)
    assert (operation.owner_id, operation.everyone, operation.matched) == (staff.pk, False, 0)
    for lacks in ("due_from", "due_to"):
        client.post("/operations/count", {name: value for name, value in second.items() if name != lacks})
    assert BulkOperation.objects.count() == 1


def test_crowded_quarter_is_estimated_and_its_herds_at_whole_minutes_are_found(client, monkeypatch):
    monkeypatch.setattr(queries, "PART_MOST", 50)
    monkeypatch.setattr(queries, "HERD_LEAST", 20)
    at = hour(4)
    schedule(*({"due_at": at + timedelta(seconds=number)} for number in range(200)))
    herd = at + timedelta(minutes=10)
    schedule(*({"due_at": herd} for _ in range(40)))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduler_delivery")
    for caller in (Caller(), Caller(sees_all=True)):
        found = queries.ahead(queries.waiting_of(caller), begin=begin(), parts=96, step_seconds=900)
        place = (at - begin()) // upcoming.PART
        assert found.estimated == {place}
        assert 150 < found.counts[place] < 300
        assert found.herds == [(herd, 40)]
    assert "≈" in ask(client).content.decode()


def test_each_sees_what_is_their_own(client, user, settings, django_user_model):
    at = hour(2)
    schedule(
        {"due_at": at, "name": "mine"}, {"recurrence": Recurrence(cron="0 * * * *"), "name": "often"}, owner_id=user.pk
    )
    for host in range(5):
        schedule({"web_url": f"http://{host}.example/", "due_at": at + timedelta(minutes=host)})
    settings.WEBTASK_API_AUTH = "key"
    assert client.get("/upcoming").status_code == 302
    client.force_login(django_user_model.objects.create_user("other@example.com", "x"))
    answer = ask(client)
    assert (answer.context["total"], answer.context["total_later"]) == ("0", "0")
    client.force_login(user)
    answer = ask(client)
    assert answer.context["total"] == "2"
    assert int(answer.context["total_later"]) >= 22
    assert {one["timer"]["name"] for one in answer.context["calls"]} <= {"mine", "often"}
    client.force_login(django_user_model.objects.create_superuser("root@example.com", "x"))
    assert ask(client).context["total"] == "7"
    assert ask(client, "?mine=1").context["total"] == "0"
    settings.WEBTASK_API_AUTH = "open"
    client.logout()
    assert ask(client).context["total"] == "5"


def test_owner_with_timers_for_very_many_hosts_is_told(client, monkeypatch):
    monkeypatch.setattr(flows, "FLOWS_MOST", 3)
    schedule(*({"web_url": f"http://{host}.example/", "due_at": hour(2)} for host in range(3)))
    assert "Only what waits for" not in ask(client).content.decode()
    schedule({"web_url": "http://more.example/", "due_at": hour(2)})
    answer = ask(client)
    assert "Only what waits for 3 hosts" in answer.content.decode()
    assert answer.context["total"] == "3"


@pytest.mark.parametrize("everyone", [False, True])
def test_every_read_goes_along_an_index(client, everyone, django_user_model):
    """With a few thousand rows of everything, so that the planner has a choice."""
    schedule(
        *({"web_url": f"http://{n % 9}.example/", "due_at": hour(2) + timedelta(seconds=13 * n)} for n in range(5000))
    )
    schedule(*({"recurrence": Recurrence(cron=f"{n % 60} * * * *")} for n in range(300)))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduler_delivery, scheduler_timer")
    if everyone:
        client.force_login(django_user_model.objects.create_superuser("root@example.com", "x"))
    with CaptureQueriesContext(
        connection,
    ) as caught:
        assert len(ask(client, f"?at={hour(2):%FT%H:%MZ}").context["calls"]) == upcoming.LISTED
    assert len(caught) < 20
    for one in caught:
        if one["sql"].startswith(("SELECT", "WITH")) and "scheduler_" in one["sql"]:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {one['sql']}")
                plan = "\n".join(row[0] for row in cursor.fetchall())
            for table in ("scheduler_timer", "scheduler_delivery", "scheduler_attempt"):
                assert f"Seq Scan on {table} " not in plan, (one["sql"], plan)
    assert Timer.objects.count() == 5300
    assert Delivery.objects.count() == 5300


# The week


def cells(answer):
    """Return the numbers of the hours to come, by their place after the present hour."""
    return [one for day in answer.context["week"] for one in day["cells"] if one is not None]


def test_week_counts_each_hour_and_leads_to_its_calls(client):
    now = timezone.now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    at = now + timedelta(days=2, hours=3)
    schedule({"due_at": at}, {"due_at": at + timedelta(minutes=59, seconds=59)}, {"due_at": at + timedelta(hours=1)})
    schedule({"recurrence": Recurrence(every_seconds=86_400.0, starts_at=at + timedelta(minutes=5)), "name": "daily"})
    answer = ask(client, "?view=week")
    week = answer.context["week"]
    assert [day["date"] for day in week] == [now.replace(hour=0) + timedelta(days=day) for day in range(7)]
    assert [len(day["cells"]) for day in week] == [24] * 7
    assert week[0]["cells"][: now.hour] == [None] * now.hour
    found = {place: (one["count"], one["shade"]) for place, one in enumerate(cells(answer)) if one["count"]}
    daily = range(51 + 24, len(cells(answer)), 24)
    assert found == {51: ("3", 5), 52: ("1", 3)} | dict.fromkeys(daily, ("1", 3))
    assert (answer.context["total"], answer.context["total_later"]) == ("4", str(len(daily)))
    # The first hour in which something comes is chosen, and its calls are listed.
    assert [one["at"] for one in answer.context["calls"]] == [at + timedelta(minutes=n) for n in (0, 5)] + [
        at + timedelta(minutes=59, seconds=59)
    ]
    day_after = ask(client, cells(answer)[75]["link"].partition("#")[0])
    assert [(one["timer"]["name"], one["is_promised"]) for one in day_after.context["calls"]] == [("daily", False)]
    assert day_after.context["is_week"]
    assert "Nothing comes in this hour" in ask(client, f"?view=week&at={now:%FT%H:%MZ}").content.decode()


def test_week_counts_what_recurs_each_minute_and_says_what_it_cuts(client):
    rule = Recurrence(every_seconds=60.0, starts_at=hour(1))
    schedule({"recurrence": rule}, {"recurrence": Recurrence(cron="* * * * *")})
    answer = ask(client, "?view=week")
    assert {one["count"] for one in cells(answer)[2:]} == {"120"}
    assert "so often" not in answer.content.decode()
    # However often: what recurs by an interval is counted without being followed.
    schedule({"recurrence": Recurrence(every_seconds=1.0, starts_at=hour(1))}, max_occurrences=9000)
    answer = ask(client, "?view=week")
    assert [one["count"] for one in cells(answer)[2:6]] == ["3,720", "1,920", "120", "120"]
    assert "so often" not in answer.content.decode()


def test_moments_that_are_left_are_counted_from_the_promised_one_on(client):
    at = timezone.now().astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=2)
    schedule({"recurrence": Recurrence(every_seconds=1800.0, starts_at=at), "max_occurrences": 4})
    shown = ask(client, f"?view=week&at={at + timedelta(hours=1):%FT%H:%MZ}")
    assert [one["at"] for one in shown.context["calls"]] == [at + timedelta(minutes=60), at + timedelta(minutes=90)]
    assert ask(client, f"?view=week&at={at + timedelta(hours=2):%FT%H:%MZ}").context["calls"] == []


def test_week_takes_no_more_statements_than_the_day(client):
    schedule(*({"due_at": begin() + timedelta(hours=hours)} for hours in range(1, 160, 2)))

    def statements(query):
        with CaptureQueriesContext(connection) as context:
            ask(client, query)
        return len(context.captured_queries)

    # What a process keeps is looked up by the first.
    statements("")
    assert statements("?view=week") <= statements("")
