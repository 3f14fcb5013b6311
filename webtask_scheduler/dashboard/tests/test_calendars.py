"""The calendar of what comes: whose timers it has, what it says of them, and where it ends."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone
from icalendar import Calendar

from webtask_scheduler.access import calendars as addresses
from webtask_scheduler.dashboard import calendars
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery
from webtask_scheduler.scheduler.rules.recurrence import Recurrence

pytestmark = pytest.mark.django_db
URL = "http://user:pass@a.example/hook?token=hush"


def at(hours):
    return (timezone.now() + timedelta(hours=hours)).replace(minute=0, second=0, microsecond=0).astimezone(UTC)


def schedule(*timers, **shared):
    return services.schedule([services.NewTimer(**({"web_url": URL} | shared | timer)) for timer in timers])


def ask(client, status=200, **query):
    answer = client.get("/calendar.ics", query)
    assert answer.status_code == status, answer.content
    return answer


def events(answer):
    """Return the events as a calendar program reads them: when, what, and how sure."""
    read = Calendar.from_ical(answer.content)
    assert not read.errors
    return [(one.decoded("dtstart"), str(one["summary"]), str(one["status"])) for one in read.walk("VEVENT")]


def about(answer):
    return str(Calendar.from_ical(answer.content)["x-wr-caldesc"])


def test_open_service_has_a_plain_address(client):
    schedule({"due_at": at(3)}, {"due_at": at(2), "name": "nightly"}, {"due_at": at(24 * 15)})
    answer = ask(client)
    assert answer["Content-Type"] == "text/calendar; charset=utf-8"
    assert (answer["Cache-Control"], answer["X-Robots-Tag"]) == ("private, no-cache", "noindex")
    assert events(answer) == [(at(2), "nightly", "CONFIRMED"), (at(3), "a.example/hook", "CONFIRMED")]
    assert b"hush" not in answer.content
    assert b"user:pass" not in answer.content
    assert about(answer) == "The calls of the next 14 days."
    assert client.post("/calendar.ics").status_code == 405


def test_schedules_are_followed_and_a_call_keeps_its_id(client):
    first = at(2)
    rule = Recurrence(every_seconds=86_400.0, starts_at=first)
    (made,) = schedule({"recurrence": rule, "name": "daily", "max_occurrences": 3})
    answer = ask(client)
    expected = [(first + timedelta(days=day), "daily", "TENTATIVE" if day else "CONFIRMED") for day in range(3)]
    assert events(answer) == expected
    ids = [str(one["uid"]) for one in Calendar.from_ical(answer.content).walk("VEVENT")]
    assert ids == [f"{made.timer_id}-{round((first + timedelta(days=day)).timestamp())}@webtask" for day in range(3)]
    (link,) = {str(one["url"]) for one in Calendar.from_ical(answer.content).walk("VEVENT")}
    assert link == f"http://testserver/timers/{made.timer_id}"


def test_names_are_escaped_and_lines_are_folded(client):
    schedule({"due_at": at(3), "name": "tab\tand\x07bell\u2028end"})
    name = 'a,b;c\\n: \N{PILE OF POO} "é" END:VEVENT ' + "ü" * 120
    schedule({"due_at": at(2), "name": name})
    answer = ask(client)
    assert events(answer) == [(at(2), name, "CONFIRMED"), (at(3), "tab and bell end", "CONFIRMED")]
    lines = answer.content.split(b"\r\n")
    assert max(map(len, lines)) <= 75
    assert b"\n" not in b"".join(lines)


def test_filter_narrows_it_and_a_wrong_one_is_refused(client):
    for label, hours in (("team=a", 1), ("team=b", 2)):
        schedule({"due_at": at(hours), "name": label, "options": {"labels": {"team": label[-1]}}})
    schedule({"web_url": "http://b.example/", "due_at": at(3), "name": "other"})
    names = {"label": "team=b", "host": "b.example", "name": "team"}
    found = {name: [said for __, said, __ in events(ask(client, **{name: value}))] for name, value in names.items()}
    assert found == {"label": ["team=b"], "host": ["other"], "name": ["team=a", "team=b"]}
    for wrong in ({"label": "x"}, {"status": "failed"}, {"due_to": "2030-01-01T00:00:00Z"}, {"nonsense": "1"}):
        answer = client.get("/calendar.ics", wrong)
        assert answer.status_code == 400
        assert next(iter(wrong)) in answer.content.decode()


def test_program_that_has_it_already_is_told_so(client):
    schedule({"due_at": at(2)})
    etag = ask(client)["ETag"]
    again = client.get("/calendar.ics", headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", etag)
    schedule({"due_at": at(3)})
    assert client.get("/calendar.ics", headers={"If-None-Match": etag}).status_code == 200


def test_it_says_where_it_ends(client, monkeypatch):
    monkeypatch.setattr(calendars, "EVENTS_MOST", 5)
    schedule(*[{"due_at": at(hours)} for hours in range(1, 6)])
    assert about(ask(client)) == "The calls of the next 14 days."
    schedule({"due_at": at(7)})
    answer = ask(client)
    assert (len(events(answer)), events(answer)[-1][0]) == (5, at(5))
    assert about(answer).endswith("only the first 5 are here.")
    monkeypatch.setattr(calendars, "EVENTS_MOST", 500)
    monkeypatch.setattr(calendars, "TIMERS_MOST", 3)
    assert about(ask(client)).endswith("only the first 3 are here.")
    Delivery.objects.all().delete()
    schedule({"recurrence": Recurrence(every_seconds=60.0, starts_at=at(1))})
    assert about(ask(client)).endswith("only the first 500 are here.")


def test_secret_address_shows_its_users_timers_alone(client, closed, user):
    other = get_user_model().objects.create_superuser("root@example.com", "x")
    schedule({"due_at": at(1), "name": "nobody's"})
    schedule({"due_at": at(1), "name": "mine", "owner_id": user.pk})
    schedule({"due_at": at(1), "name": "other's", "owner_id": other.pk})
    client.force_login(user)
    page = client.post("/settings/calendar").content.decode()
    address = page.partition('id="made-calendar">')[2].partition("<")[0]
    (key,) = parse_qs(urlsplit(address).query)["key"]
    assert key not in client.get("/settings").content.decode()
    client.logout()
    assert [name for __, name, __ in events(client.get(address))] == ["mine"]
    # A superuser's has the superuser's own.
    assert [name for __, name, __ in events(ask(client, key=addresses.make(other.pk)))] == ["other's"]
    for wrong in ({}, {"key": "x"}, {"key": key[:-1] + ("a" if key[-1] != "a" else "b")}):
        assert ask(client, 404, **wrong)["X-Robots-Tag"] == "noindex"
    client.force_login(user)
    # A session opens it no more than nothing does.
    ask(client, 404)
    assert client.post("/settings/calendar/remove").status_code == 302
    assert client.post("/settings/calendar/remove").status_code == 404
    ask(client, 404, key=key)


def test_it_opens_nothing_but_the_calendar(client, closed, user):
    key = addresses.make(user.pk)
    for path in ("/timer", "/timer/bulk"):
        assert client.get(path, {"key": key}).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert client.get("/upcoming", {"key": key}).status_code == 302


def test_requests_are_limited_as_others_are(client, closed, user, settings):
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.1
    key = addresses.make(user.pk)
    assert ask(client, key=key)
    assert int(ask(client, 429, key=key)["Retry-After"]) >= 1
    # Who has no key is another.
    ask(client, 404)
    ask(client, 429)


def test_visitor_of_an_open_service_makes_no_secret(client):
    assert client.post("/settings/calendar").status_code == 403
    assert "http://testserver/calendar.ics" in client.get("/settings").content.decode()


def test_seconds_of_a_day_are_bounded(client, django_assert_max_num_queries):
    schedule(*[{"due_at": datetime.now(UTC) + timedelta(seconds=60 + n)} for n in range(50)])
    with django_assert_max_num_queries(8):
        assert len(events(ask(client))) == 50
