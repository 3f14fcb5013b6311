"""Moments of recurring schedules: written out by hand, against a minute by minute walk, and against Celery."""

import itertools
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from celery import schedules
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from webtask_scheduler.scheduler.rules.recurrence import (
    Recurrence,
    ScheduleError,
    celery_fields,
    check_cron,
    check_timezone,
    cron_of,
    format_duration,
    parse_duration,
    transition_note,
)
from webtask_scheduler.scheduler.tests.support.cases import each

bounded = settings(max_examples=150, deadline=None)

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)


def at(text):
    """An instant, of UTC unless it says otherwise."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def first(recurrence, after, count):
    return list(itertools.islice(recurrence.moments(after), count))


# Moments, written out by hand

PLAIN = [
    ("*/15 * * * *", "2026-01-01T00:07:30", "2026-01-01T00:15 2026-01-01T00:30 2026-01-01T00:45 2026-01-01T01:00"),
    ("* * * * *", "2026-12-31T23:59:00.000001", "2027-01-01T00:00 2027-01-01T00:01"),
    ("0 9 * * MON-FRI", "2026-01-02T09:00", "2026-01-05T09:00 2026-01-06T09:00"),
    ("0 9 * * mon-fri", "2026-01-02T08:59:59.999999", "2026-01-02T09:00 2026-01-05T09:00"),
    ("0 0 29 2 *", "2026-01-01", "2028-02-29 2032-02-29"),
    ("0 0 29 2 *", "2096-02-29", "2104-02-29"),
    ("0 0 * 2 MON#5", "2026-01-01", "2044-02-29 2072-02-29 2112-02-29"),
    ("0 0 29 2 MON", "2028-02-21", "2028-02-28 2028-02-29 2029-02-05"),
    ("0 0 31 * *", "2026-01-31", "2026-03-31 2026-05-31"),
    ("0 0 L * *", "2026-01-01", "2026-01-31 2026-02-28 2026-03-31"),
    ("0 0 LW * *", "2026-01-01", "2026-01-30 2026-02-27 2026-03-31"),
    ("0 12 * * 5L", "2026-01-01", "2026-01-30T12:00 2026-02-27T12:00"),
    ("0 12 * * MON#2", "2026-01-01", "2026-01-12T12:00 2026-02-09T12:00"),
    # Day of month or weekday where both are restricted; a day that begins with a star does not restrict.
    ("0 0 13 * FRI", "2026-01-01", "2026-01-02 2026-01-09 2026-01-13 2026-01-16"),
    ("0 0 */10 * MON", "2026-01-01", "2026-05-11 2026-06-01"),
    ("0 0 1,15 * *", "2026-01-01", "2026-01-15 2026-02-01"),
    ("0 0 * * 7", "2026-01-01", "2026-01-04 2026-01-11"),
    ("0 0 * * 5-7", "2026-01-01", "2026-01-02 2026-01-03 2026-01-04 2026-01-09"),
    ("5-59/20 3 1 jan,JUL *", "2026-01-01T03:05", "2026-01-01T03:25 2026-01-01T03:45 2026-07-01T03:05"),
    ("5/20 3 * * *", "2026-01-01T03:05", "2026-01-01T03:25 2026-01-01T03:45 2026-01-02T03:05"),
    ("0 22 31 12 *", "9997-01-01", "9997-12-31T22:00 9998-12-31T22:00"),
]


@each(("cron", "after", "moments"), PLAIN)
def test_moments_in_utc(cron, after, moments):
    moments = [at(moment) for moment in moments.split()]
    found = first(Recurrence(cron=check_cron(cron)), at(after), len(moments))
    assert found == moments
    assert all(moment.tzinfo is UTC for moment in found)


ZONED = [
    # An hour forward at 02:00 on 29 March, back at 03:00 on 25 October.
    ("Europe/Berlin", "0 0 1 * *", "2026-03-15", "2026-03-31T22:00 2026-04-30T22:00"),
    ("Europe/Berlin", "30 2 * * *", "2026-03-27T12:00", "2026-03-28T01:30 2026-03-29T01:00 2026-03-30T00:30"),
    ("Europe/Berlin", "0,30 2,3 * * *", "2026-03-29T00:59:59", "2026-03-29T01:00 2026-03-29T01:30 2026-03-30T00:00"),
    ("Europe/Berlin", "0,30 2,3 * * *", "2026-03-29T01:00", "2026-03-29T01:30 2026-03-30T00:00"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", "2026-10-25T00:30 2026-10-26T01:30"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:30", "2026-10-26T01:30 2026-10-27T01:30"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-25T01:10", "2026-10-26T01:30 2026-10-27T01:30"),
    ("Europe/Berlin", "0 * * * *", "2026-03-28T23:30", "2026-03-29T00:00 2026-03-29T01:00 2026-03-29T02:00"),
    ("Europe/Berlin", "0 * * * *", "2026-10-24T23:30", "2026-10-25T00:00 2026-10-25T01:00 2026-10-25T02:00"),
    ("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00", "2026-03-30T00:00 2026-03-30T00:30"),
    (
        "Europe/Berlin",
        "*/30 2 * * *",
        "2026-10-25T00:00",
        "2026-10-25T00:30 2026-10-25T01:00 2026-10-25T01:30 2026-10-26T01:00",
    ),
    (
        "Europe/Berlin",
        "*/30 2 25 10 *",
        "2026-10-24",
        "2026-10-25T00:00 2026-10-25T00:30 2026-10-25T01:00 2026-10-25T01:30 2027-10-25T00:00",
    ),
    # Beyond the years that zone data lists one by one.
    ("Europe/Berlin", "30 2 25 3 *", "2040-01-01", "2040-03-25T01:00 2041-03-25T01:30"),
    # Forward at 02:00 on 8 March, back at 02:00 on 1 November.
    ("America/New_York", "0 9 * * MON-FRI", "2026-03-06T14:00", "2026-03-09T13:00 2026-03-10T13:00"),
    ("America/New_York", "30 2 * * *", "2026-03-07T12:00", "2026-03-08T07:00 2026-03-09T06:30"),
    ("America/New_York", "30 1 * * *", "2026-10-31T12:00", "2026-11-01T05:30 2026-11-02T06:30"),
    # Half an hour: back at 02:00 on 5 April, forward at 02:00 on 4 October.
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04", "2026-04-04T14:45 2026-04-05T15:15"),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03", "2026-10-03T15:30 2026-10-04T15:15"),
    ("Australia/Lord_Howe", "45 * * * *", "2026-04-04T14:00", "2026-04-04T14:45 2026-04-04T15:15 2026-04-04T16:15"),
    ("Australia/Lord_Howe", "45 * * * *", "2026-10-03T15:00", "2026-10-03T15:15 2026-10-03T15:45 2026-10-03T16:45"),
    ("Australia/Lord_Howe", "*/10 5 * * *", "2026-10-03T12:00", "2026-10-03T18:00 2026-10-03T18:10 2026-10-03T18:20"),
    # At midnight: forward on 4 November 2018, back on 18 February 2018.
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00", "2018-11-04T03:00 2018-11-05T02:00"),
    ("America/Sao_Paulo", "0 0 * * *", "2018-02-17T12:00", "2018-02-18T03:00 2018-02-19T03:00"),
    ("America/Sao_Paulo", "30 23 * * *", "2018-02-17T12:00", "2018-02-18T01:30 2018-02-19T02:30"),
    ("America/Sao_Paulo", "*/30 1 4 11 *", "2018-11-01", "2018-11-04T03:00 2018-11-04T03:30 2019-11-04T04:00"),
    # From 00:00 to 01:00 on 8 March, from 01:00 to 00:00 on 1 November.
    ("America/Havana", "15 0 * * *", "2026-03-07T12:00", "2026-03-08T05:00 2026-03-09T04:15"),
    ("America/Havana", "0 0 * * *", "2026-10-31T12:00", "2026-11-01T04:00 2026-11-02T05:00"),
    # From 00:01 back to 23:01 of the day before.
    ("America/St_Johns", "0 0 * * *", "2010-11-06T12:00", "2010-11-07T02:30 2010-11-08T03:30"),
    ("America/St_Johns", "30 23 * * *", "2010-11-06T12:00", "2010-11-07T02:00 2010-11-08T03:00"),
    ("America/St_Johns", "0 * * * *", "2010-11-07T02:00", "2010-11-07T02:30 2010-11-07T03:30 2010-11-07T04:30"),
    ("Asia/Kolkata", "0 9 * * *", "2026-01-01", "2026-01-01T03:30 2026-01-02T03:30"),
    # 30 December 2011 was skipped.
    ("Pacific/Apia", "0 9 * * *", "2011-12-28T20:00", "2011-12-29T19:00 2011-12-30T10:00 2011-12-30T19:00"),
    ("Pacific/Apia", "0 9 30 12 *", "2011-01-01", "2011-12-30T10:00 2012-12-29T19:00"),
    ("Pacific/Apia", "0 * * * *", "2011-12-30T08:30", "2011-12-30T09:00 2011-12-30T10:00 2011-12-30T11:00"),
]


@each(("zone", "cron", "after", "moments"), ZONED)
def test_moments_in_a_zone(zone, cron, after, moments):
    moments = [at(moment) for moment in moments.split()]
    assert first(Recurrence(cron=check_cron(cron), timezone=zone), at(after), len(moments)) == moments


def test_instant_may_be_given_in_any_zone():
    recurrence = Recurrence(cron="0 9 * * *", timezone="America/New_York")
    found = recurrence.next_after(at("2026-01-01T23:30:00+09:00"))
    assert found == at("2026-01-02T14:00")
    assert recurrence.next_after(at("2026-01-01T22:59:00+09:00")) == at("2026-01-01T14:00")


def test_start_and_end_are_themselves_allowed():
    recurrence = Recurrence(cron="0 9 * * *", starts_at=at("2026-02-01T09:00"), ends_at=at("2026-02-03T09:00"))
    assert [moment.day for moment in recurrence.moments(at("2026-01-01"))] == [1, 2, 3]
    assert recurrence.next_after(at("2026-02-03T09:00")) is None


def test_start_and_end_are_limits_to_the_microsecond():
    recurrence = Recurrence(
        cron="0 9 * * *", starts_at=at("2026-02-01T09:00") + TICK, ends_at=at("2026-02-03T09:00") - TICK
    )
    assert list(recurrence.moments(at("2026-01-01"))) == [at("2026-02-02T09:00")]


@each("zone", ["UTC", "America/New_York", "Pacific/Apia"])
@each("cron", ["0 0 31 12 *", "* * * * *", "*/7 5 * * *"])
def test_there_is_nothing_past_the_last_year(zone, cron):
    recurrence = Recurrence(cron=cron, timezone=zone)
    assert recurrence.next_after(at("9999-12-30T20:00")) is None
    assert len(list(itertools.islice(recurrence.moments(at("9999-12-29T00:00")), 3000))) < 3000


def test_date_that_never_comes_has_no_moment():
    # As cronsim would take it from a row that was not checked.
    assert Recurrence(cron="0 0 */29 2 MON#5").next_after(at("2026-01-01")) is None


def test_period_counts_from_its_start():
    start = at("2026-01-01T00:00:00.250000")
    recurrence = Recurrence(every_seconds=90.5, starts_at=start)
    assert first(recurrence, at("2020-01-01"), 3) == [start, start + 90.5 * SECOND, start + 181 * SECOND]
    assert recurrence.next_after(start) == start + 90.5 * SECOND
    assert recurrence.next_after(start - TICK) == start
    assert recurrence.next_after(start + 90.5 * SECOND - TICK) == start + 90.5 * SECOND


def test_period_does_not_drift():
    start = at("2026-01-01")
    recurrence = Recurrence(every_seconds=1.000001, starts_at=start)
    late = start + timedelta(microseconds=1_000_001 * 3_000_000_000)
    assert recurrence.next_after(late - TICK) == late
    assert recurrence.next_after(late) == late + timedelta(microseconds=1_000_001)


def test_period_starts_and_answers_in_utc():
    start = at("2026-03-29T01:30:00").astimezone(ZoneInfo("Europe/Berlin")) - timedelta(days=1)
    found = Recurrence(every_seconds=86_400, starts_at=start).next_after(start)
    assert found == start.astimezone(UTC) + timedelta(days=1)
    assert found.tzinfo is UTC


def test_period_ends():
    start = at("2026-01-01")
    recurrence = Recurrence(every_seconds=60, starts_at=start, ends_at=start + 2 * MINUTE)
    assert list(recurrence.moments(start)) == [start + MINUTE, start + 2 * MINUTE]
    assert Recurrence(every_seconds=1e15, starts_at=start).next_after(start) is None
    assert Recurrence(every_seconds=1e9, starts_at=at("9990-01-01")).next_after(at("9999-01-01")) is None


@each(
    ("fields", "sentence"),
    [
        ({}, "either"),
        ({"cron": "* * * * *", "every_seconds": 5.0, "starts_at": at("2026-01-01")}, "either"),
        ({"every_seconds": 0.5, "starts_at": at("2026-01-01")}, "one second"),
        ({"every_seconds": float("nan"), "starts_at": at("2026-01-01")}, "one second"),
        ({"every_seconds": 5.0}, "first moment"),
    ],
)
def test_rule_must_mean_something(fields, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        Recurrence(**fields)


# What follows a call


HOURLY = Recurrence(cron="0 * * * *", starts_at=at("2026-01-01"), ends_at=at("2026-01-01T20:00"))
EVERY = Recurrence(every_seconds=3600, starts_at=at("2026-01-01"), ends_at=at("2026-01-01T20:00"))


@each(
    ("due", "begun", "now", "next_one", "next_with_skip"),
    [
        # In time, and over before the next.
        ("09:00", "09:00", "09:00:01", "10:00", "10:00"),
        ("09:00", "09:00:00.5", "09:59:59.999999", "10:00", "10:00"),
        # Begun late: what was missed until then is made good by the one call.
        ("09:00", "12:30", "12:31", "13:00", "13:00"),
        ("09:00", "13:00", "13:00", "14:00", "14:00"),
        # It went on over the next, once or often: the latest is next, due at once.
        ("09:00", "09:00", "10:00", "10:00", "11:00"),
        ("09:00", "09:00", "10:30", "10:00", "11:00"),
        ("09:00", "09:00", "12:30", "12:00", "13:00"),
        ("09:00", "11:30", "14:59", "14:00", "15:00"),
        # The end.
        ("19:00", "19:00", "19:01", "20:00", "20:00"),
        ("19:00", "19:00", "20:00", "20:00", None),
        ("18:00", "18:00", "23:00", "20:00", None),
        ("20:00", "20:00", "20:01", None, None),
        ("19:00", "20:00", "20:01", None, None),
        ("19:00", "21:00", "22:00", None, None),
        # A clock behind the one that made the promise.
        ("09:00", "08:59:59.9", "08:59:59.95", "10:00", "10:00"),
    ],
)
def test_what_follows(due, begun, now, next_one, next_with_skip):
    cases = ((False, next_one), (True, next_with_skip))
    for recurrence, (skip, expected) in itertools.product((HOURLY, EVERY), cases):
        found = recurrence.following(
            due_at=at(f"2026-01-01T{due}"),
            begun_at=at(f"2026-01-01T{begun}"),
            now=at(f"2026-01-01T{now}"),
            skip=skip,
        )
        assert found == (at(f"2026-01-01T{expected}") if expected else None)


def test_what_follows_a_long_outage_is_found_soon():
    recurrence = Recurrence(cron="* * 1 * *", timezone="Europe/Berlin")
    begun = time.process_time()
    found = recurrence.following(due_at=at("2001-01-01"), begun_at=at("2001-01-01"), now=at("2026-01-15"), skip=False)
    assert found == at("2026-01-01T22:59")
    assert time.process_time() - begun < 0.5


@bounded
@given(
    st.sampled_from(["* * * * *", "*/7 1-5 * * *", "0 9 * * MON-FRI", "30 2 * * *", "0 0 1 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    st.integers(0, 3 * 86_400),
    st.integers(0, 2 * 86_400),
)
def test_latest_of_those_missed_is_next(cron, zone, start, length):
    recurrence = Recurrence(cron=cron, timezone=zone)
    begun = at("2026-10-24") + start * SECOND
    now = begun + length * SECOND
    missed = list(itertools.takewhile(lambda moment: moment <= now, recurrence.moments(begun)))
    found = recurrence.following(due_at=begun, begun_at=begun, now=now, skip=False)
    assert found == (missed[-1] if missed else recurrence.next_after(now))


# Random schedules around changes of the clock, against a walk minute by minute

CHANGES = [
    ("Europe/Berlin", at("2026-03-29T01:00")),
    ("Europe/Berlin", at("2026-10-25T01:00")),
    ("America/New_York", at("2026-03-08T07:00")),
    ("America/New_York", at("2026-11-01T06:00")),
    ("Australia/Lord_Howe", at("2026-04-04T15:00")),
    ("Australia/Lord_Howe", at("2026-10-03T15:30")),
    ("America/Sao_Paulo", at("2018-11-04T03:00")),
    ("America/Sao_Paulo", at("2018-02-18T02:00")),
    ("America/Havana", at("2026-03-08T05:00")),
    ("America/Havana", at("2026-11-01T05:00")),
    ("America/St_Johns", at("2010-11-07T02:31")),
    ("Pacific/Apia", at("2011-12-30T10:00")),
    ("Asia/Kolkata", at("2026-03-29T01:00")),
    ("UTC", at("2026-03-29T01:00")),
]


@cache
def walk(zone, change):
    """Every minute around a change of the clock, with what the wall clock shows."""
    begin = change - timedelta(hours=5)
    info = ZoneInfo(zone)
    minutes = [begin + number * MINUTE for number in range(10 * 60 + 1)]
    return [(minute, minute.astimezone(info).replace(tzinfo=None)) for minute in minutes]


def brute_force(fields, zone, change):
    """Moments of a schedule, the first minute excluded, by looking at each minute of the wall clock and of the day."""
    (minutes, wild_minute), (hours, wild_hour), (days, star_day), (months, _), (weekdays, star_weekday) = fields

    def matches(wall):
        day, weekday = wall.day in days, wall.isoweekday() % 7 in weekdays
        on = (day and weekday) if star_day or star_weekday else (day or weekday)
        return on and wall.minute in minutes and wall.hour in hours and wall.month in months

    walked = walk(zone, change)
    if wild_minute or wild_hour:
        return [minute for minute, wall in walked[1:] if matches(wall)]
    seen = {}
    for minute, wall in walked:
        seen.setdefault(wall, minute)
    found = set()
    before = walked[0][1]
    for minute, wall in walked[1:]:
        # All that the wall clock passed or jumped over since the minute before; nothing where it went back.
        while before < wall:
            before += MINUTE
            if matches(before) and seen.get(before, minute) == minute:
                found.add(minute)
        before = wall
    return sorted(found)


def texts(low, high):
    """Texts of a field, with the values they stand for and whether they begin with a star."""
    every = range(low, high + 1)
    numbers = st.integers(low, high)
    lists = st.lists(numbers, min_size=1, max_size=4).map(lambda found: (",".join(map(str, found)), set(found), False))
    ranges = st.tuples(numbers, numbers, st.integers(1, 20)).map(
        lambda found: (
            f"{min(found[:2])}-{max(found[:2])}/{found[2]}",
            set(range(min(found[:2]), max(found[:2]) + 1, found[2])),
            False,
        )
    )
    steps = st.integers(1, high + 3).map(lambda step: (f"*/{step}", set(every[::step]), True))
    return st.one_of(lists, ranges, steps, st.just(("*", set(every), True)))


ANY_DAY = st.just(("*", set(range(1, 32)), True))
ANY_MONTH = st.just(("*", set(range(1, 13)), True))
ANY_WEEKDAY = st.just(("*", set(range(7)), True))

near = st.tuples(
    texts(0, 59),
    # Most changes are at night.
    st.one_of(texts(0, 23), st.integers(0, 4).map(lambda hour: (f"{hour},23", {hour, 23}, False))),
    st.one_of(ANY_DAY, texts(1, 31)),
    st.one_of(ANY_MONTH, ANY_MONTH, texts(1, 12)),
    st.one_of(ANY_WEEKDAY, texts(0, 6)),
)


def checked(fields):
    """The expression of drawn fields, unless its date never comes."""
    cron = " ".join(text for text, _, _ in fields)
    try:
        return check_cron(cron)
    except ScheduleError as error:
        assert "never comes" in str(error)
        reject()


@bounded
@given(near, st.sampled_from(CHANGES))
def test_moments_are_those_of_a_walk_minute_by_minute(fields, where):
    zone, change = where
    recurrence = Recurrence(cron=checked(fields), timezone=zone)
    walked = walk(zone, change)
    found = itertools.takewhile(lambda moment: moment <= walked[-1][0], recurrence.moments(walked[0][0]))
    assert list(found) == brute_force([field[1:] for field in fields], zone, change)


@bounded
@given(near, st.sampled_from(CHANGES), st.integers(-6 * 3600, 6 * 3600), st.integers(0, 999_999))
def test_next_is_the_same_from_every_instant_between(fields, where, seconds, micros):
    zone, change = where
    recurrence = Recurrence(cron=checked(fields), timezone=zone)
    start = change + seconds * SECOND + micros * TICK
    moments = first(recurrence, start, 12)
    assert moments
    assert all(moment > start and moment.second == moment.microsecond == 0 for moment in moments)
    for earlier, later in itertools.pairwise(moments):
        assert earlier < later
        for instant in (earlier, earlier + TICK, earlier + (later - earlier) / 2, later - SECOND, later - TICK):
            assert recurrence.next_after(instant) == later
    assert recurrence.next_after(moments[0] - TICK) == moments[0]


@each("cron", ["* * * * *", "*/5 * * * *", "0 9 * * MON-FRI", "30 2 * * *", "15 * * * *", "0 0 1 * *", "0 0 1 1 *"])
@each("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_next_is_found_soon(cron, zone):
    recurrence = Recurrence(cron=cron, timezone=zone)
    recurrence.next_after(at("2026-01-01"))
    begun = time.process_time()
    for day in range(100):
        recurrence.next_after(at("2026-01-01T12:34:56") + timedelta(days=day))
    assert (time.process_time() - begun) / 100 < 0.002


# Cron expressions


@each(
    ("text", "kept"),
    [
        ("0 9 * * 1", "0 9 * * 1"),
        ("  0\t9  * *  Mon-FRI\n", "0 9 * * Mon-FRI"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @Weekly ", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 30 2,4 *", "0 0 30 2,4 *"),
        ("0 0 30 2 MON", "0 0 30 2 MON"),
        ("5-5/10,7-9/2,10-11/2 0 1-11/2 * Mon-MON/2", "5,7-9/2,10-11/2 0 1-11/2 * Mon"),
    ],
)
def test_expression_is_kept(text, kept):
    assert check_cron(text) == kept


@each(
    ("text", "sentence"),
    [
        ("", "required"),
        (" \n ", "required"),
        ("* * * *", "has 4 fields; it takes five"),
        ("*", "has 1 field; it takes five"),
        ("* * * * * *", "has 6 fields.* use every"),
        ("0 * * * * * 2026", "has 7 fields.* use every"),
        ("* * * * * * * *", "has 8 fields; it takes five"),
        ("@reboot", "@reboot is no moment"),
        ("@Reboot", "@reboot is no moment"),
        ("@every 5m", "no '@every 5m'"),
        ("@", "no '@'"),
        ("60 * * * *", "minute field '60'"),
        ("-1 * * * *", "minute field '-1'"),
        ("*/0 * * * *", r"minute field '\*/0'"),
        ("5-1 * * * *", "minute field '5-1'"),
        ("1,,2 * * * *", "minute field"),
        ("1.5 * * * *", "minute field"),
        ("H * * * *", "minute field"),
        ("* 24 * * *", "hour field '24' .* 0 to 23"),
        ("* * 0 * *", "day of month field '0'"),
        ("* * 32 * *", "day of month field"),
        ("* * ? * *", "day of month field"),
        ("* * 15W * *", "day of month field"),
        ("* * * 13 *", "month field '13' .* JAN to DEC"),
        ("* * * foo *", "month field 'foo'"),
        ("* * * * 8", "day of week field '8' .* 0 to 7, SUN to SAT"),
        ("* * * * MON#6", "day of week field"),
        ("* * * * L", "day of week field"),
        ("5-5/0 * * * *", "minute field"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 2,4,6,9,11 *", "never comes"),
        ("0 0 */29 2 MON#5", "never comes"),
        ("0 9 * * \N{FULLWIDTH DIGIT ONE}", "ASCII"),
        ("0\N{NO-BREAK SPACE}9 * * *", "ASCII"),
        ("0 9 * *\0 1", "day of month|month field"),
        ("0," * 100 + "0 * * * *", "longer than 200"),
    ],
)
def test_expression_that_means_nothing_is_refused(text, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        check_cron(text)


@bounded
@given(st.text(st.sampled_from("0123456789*/,-LW#MONFEBSUN@? "), max_size=30))
def test_any_text_is_kept_or_refused(text):
    try:
        kept = check_cron(text)
    except ScheduleError:
        return
    assert check_cron(kept) == kept
    assert Recurrence(cron=kept, timezone="Europe/Berlin").next_after(at("2026-01-01")) is not None
    celery_fields(kept)


@each("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "US/Eastern"])
def test_zone_is_known(name):
    assert check_timezone(name) == name


@each(
    "name",
    [
        "",
        " UTC",
        "Europe/berlin",
        "utc",
        "Mars/Olympus",
        "Europe",
        "Europe/",
        "../etc/passwd",
        "/usr/share/zoneinfo/UTC",
        "Europe/../UTC",
        "posix/UTC",
        "right/UTC",
        "posixrules",
        "localtime",
        "Factory",
        "tzdata.zi",
        "CET-1CEST",
        "UTC\0",
        "x" * 10_000,
    ],
)
def test_other_zones_are_refused(name):
    with pytest.raises(ScheduleError, match="There is no time zone") as refusal:
        check_timezone(name)
    assert len(str(refusal.value)) < 200


# Durations


@each(
    ("text", "seconds"),
    [
        ("P1W", 604_800),
        ("P2D", 172_800),
        ("P1W1D", 691_200),
        ("PT1H30M", 5_400),
        ("PT90M", 5_400),
        ("P1DT0.5S", 86_400.5),
        ("PT0.000001S", 0.000001),
        ("PT0S", 0),
        ("PT05M", 300),
    ],
)
def test_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@each(
    ("text", "sentence"),
    [
        *[(text, "not an ISO 8601") for text in ("", "P", "PT", "P1DT", "1H", "P1H", "PT1D", "PT1", "P1", "PTS")],
        *[
            (text, "not an ISO 8601")
            for text in ("pt1h", "PT1h", "-PT1H", "+PT1H", "PT-1H", "P T1H", "PT1H ", "\nPT1H")
        ],
        *[
            (text, "not an ISO 8601")
            for text in ("PT0.5H", "P0.5D", "PT.5S", "PT1.S", "PT1.0000001S", "PT1M1H", "P1D1W")
        ],
        *[(text, "not an ISO 8601") for text in ("PT\N{ARABIC-INDIC DIGIT ONE}H", "PT1H\n", "90", "PT1H1H")],
        *[(text, "cron for calendar months") for text in ("P1Y", "P1M", "P1Y2M3D", "P1MT1H", "P0Y")],
        ("PT" + "1" * 63 + "S", "longer than 64"),
    ],
)
def test_other_durations_are_refused(text, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        parse_duration(text)


@each(
    ("seconds", "text"),
    [
        (0, "PT0S"),
        (0.5, "PT0.5S"),
        (0.000001, "PT0.000001S"),
        (59, "PT59S"),
        (60, "PT1M"),
        (5_400, "PT1H30M"),
        (86_400, "P1D"),
        (86_400.25, "P1DT0.25S"),
        (604_800, "P1W"),
        (691_200, "P8D"),
        (1_209_600, "P2W"),
        (90_061, "P1DT1H1M1S"),
    ],
)
def test_duration_is_written(seconds, text):
    assert format_duration(seconds) == text


@bounded
@given(st.integers(0, 4_000_000_000_000_000))
def test_durations_come_back(micros):
    seconds = micros / 1_000_000
    assert round(parse_duration(format_duration(seconds)) * 1_000_000) == micros
    assert format_duration(parse_duration(format_duration(seconds))) == format_duration(seconds)


# Celery


LENGTHS = (240, 96, 124, 64, 64)


def celery_values(fields):
    minute, hour, day, month, weekday = fields
    found = schedules.crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    return found.minute, found.hour, found.day_of_month, found.month_of_year, found.day_of_week


@each(
    ("cron", "fields"),
    [
        ("0 9 * * MON-FRI", ("0", "9", "*", "*", "1-5")),
        ("*/15 8-17 * * *", ("*/15", "8-17", "*", "*", "*")),
        ("0 0 1,15 jan,JUL *", ("0", "0", "1,15", "1,7", "*")),
        ("0 0 * * 7", ("0", "0", "*", "*", "0")),
        ("0 0 * * 5-7", ("0", "0", "*", "*", "0,5,6")),
        ("0 0 * * sun,sat", ("0", "0", "*", "*", "0,6")),
        ("0 0 * * 0-7", ("0", "0", "*", "*", "0-6")),
        ("0 0 * * */7", ("0", "0", "*", "*", "*/7")),
        ("5/20 0 * * *", ("5,25,45", "0", "*", "*", "*")),
        ("0-59 0 * * *", ("0-59", "0", "*", "*", "*")),
        ("*/20,5 0 * * *", ("*/20,5", "0", "*", "*", "*")),
        ("*/90 */1 * * *", ("*/60", "*", "*", "*", "*")),
        # Where one of the days begins with a star, cron wants both, as Celery always does.
        ("0 0 */2 * MON", ("0", "0", "*/2", "*", "1")),
        ("0 0 13 * */2", ("0", "0", "13", "*", "*/2")),
    ],
)
def test_fields_for_celery(cron, fields):
    assert celery_fields(check_cron(cron)) == fields
    celery_values(fields)


@each(
    "cron",
    ["0 0 13 * FRI", "0 0 1-31 * 0-6", "0 0 L * *", "0 0 1,LW * *", "0 0 * * 5L", "0 0 * * MON#2", "0 0 * * 1,2#3"],
)
def test_what_celery_cannot_say(cron):
    assert celery_fields(check_cron(cron)) is None


@bounded
@given(st.tuples(texts(0, 59), texts(0, 23), texts(1, 31), texts(1, 12), texts(0, 6)))
def test_celery_reads_the_same_values_and_cron_gets_them_back(fields):
    cron = checked(fields)
    found = celery_fields(cron)
    if not (fields[2][2] or fields[4][2]):
        assert found is None
        return
    assert celery_values(found) == tuple(values for _, values, _ in fields)
    assert all(len(text) <= length for text, length in zip(found, LENGTHS, strict=True))
    back = cron_of(*found)
    assert celery_fields(back) == found
    # Stars and all: it has the same moments whatever clocks do.
    start = at("2026-10-24")
    there, again = (first(Recurrence(cron=text, timezone="Europe/Berlin"), start, 5) for text in (cron, back))
    assert there == again


def test_longest_fields_fit_their_columns():
    cron = "0-57,59 0-21,23 */1,1,2,3,4,5,6,7,8,9 1,2,3,4,5,6,7,8,9,10,12 1,3,5"
    odd = ",".join(str(number) for number in range(1, 60, 2))
    for text in (cron, f"{odd} 1-23/2 1-31/2 1-11/2 *", "*/2,*/2,*/2,*/2,*/2 " * 4 + "*/2,*/2,*/2,*/2,*/2,*/2"):
        found = celery_fields(check_cron(text.strip()))
        assert all(len(field) <= length for field, length in zip(found, LENGTHS, strict=True))


@each(
    ("fields", "cron"),
    [
        (("0", "9", "*", "*", "mon-fri"), "0 9 * * 1-5"),
        (("*/15", "8-17/3", "*", "*", "*"), "*/15 8,11,14,17 * * *"),
        (("0", "0", "1, 15", "january,July", "*"), "0 0 1,15 1,7 *"),
        (("0", "22-2", "*", "*", "*"), "0 0-2,22,23 * * *"),
        (("0", "0", "*", "nov-feb", "*"), "0 0 * 1,2,11,12 *"),
        (("0", "0", "*", "*", "sat-mon"), "0 0 * * 0,1,6"),
        (("0", "0", "*", "*", "Sunday"), "0 0 * * 0"),
        (("0", "0", "*", "*", "7"), "0 0 * * 0"),
        (("0", "0", "*", "*", "5-7"), "0 0 * * 0,5,6"),
        (("0", "0", "*", "*", "7-2"), "0 0 * * 0-2"),
        (("0", "0", "*/2", "*", "1"), "0 0 */2 * 1"),
        ((" 0 ", "0", "*", "*", "*"), "0 0 * * *"),
    ],
)
def test_cron_of_celery_fields(fields, cron):
    assert cron_of(*fields) == cron


@each(
    "fields",
    [
        ("1,13,30-45,50-59/2", "0,8-17/2", "*", "*", "mon-fri"),
        ("*", "22-2", "2-30/2", "*/3", "*"),
        ("*/7", "*", "*", "11-2", "fri-mon"),
        ("58-3/2", "23", "1-7,15-21", "mar", "*/2"),
    ],
)
def test_cron_of_has_the_values_that_celery_has(fields):
    assert celery_values(celery_fields(cron_of(*fields))) == celery_values(fields)


@each(
    ("fields", "sentence"),
    [
        (("", "*", "*", "*", "*"), "minute field ''"),
        (("60", "*", "*", "*", "*"), "minute field '60'"),
        (("*/0", "*", "*", "*", "*"), "minute field"),
        (("5/10", "*", "*", "*", "*"), "minute field"),
        (("mon", "*", "*", "*", "*"), "minute field"),
        (("0", "x", "*", "*", "*"), "hour field 'x'"),
        (("0", "0", "0", "*", "*"), "day of month field"),
        (("0", "0", "L", "*", "*"), "day of month field"),
        (("0", "0", "*", "0", "*"), "month field"),
        (("0", "0", "*", "*", "8"), "day of week field"),
        (("0", "0", "*", "*", "1 2"), "day of week field"),
        (("0", "0", "1", "*", "mon"), "must both match"),
        (("0", "0", "30", "2", "*"), "never comes"),
    ],
)
def test_fields_that_make_no_cron_are_refused(fields, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        cron_of(*fields)


# Notes for a preview


def test_note_where_clocks_go_forward():
    note = transition_note(at("2026-03-29T08:00"), at("2026-03-28T09:00"), "Europe/Berlin")
    assert note == (
        "Clocks in Europe/Berlin go forward between the previous moment and this one: UTC+01:00 becomes UTC+02:00."
    )


def test_note_where_clocks_go_back():
    note = transition_note(at("2026-11-01T14:00"), at("2026-10-31T13:00"), "America/New_York")
    assert note == (
        "Clocks in America/New_York go back between the previous moment and this one: UTC-04:00 becomes UTC-05:00."
    )


def test_note_for_a_skipped_time():
    note = transition_note(at("2026-03-29T01:00"), None, "Europe/Berlin")
    assert note == (
        "Local times from 2026-03-29 02:00 to 2026-03-29 03:00 are skipped;"
        " what was promised for them is at this moment."
    )
    both = transition_note(at("2026-03-29T01:00"), at("2026-03-28T01:30"), "Europe/Berlin")
    assert both.startswith("Clocks in Europe/Berlin go forward")
    assert both.endswith(note)


@each(
    ("moment", "previous", "zone"),
    [
        ("2026-03-28T08:00", "2026-03-27T08:00", "Europe/Berlin"),
        ("2026-03-28T08:00", None, "Europe/Berlin"),
        ("2026-10-25T01:00", None, "Europe/Berlin"),
        ("2026-03-29T01:00", "2026-03-28T01:00", "UTC"),
        ("2026-07-01", "2025-07-01", "Europe/Berlin"),
    ],
)
def test_no_note_where_nothing_changes(moment, previous, zone):
    assert transition_note(at(moment), previous and at(previous), zone) == ""


# Many at once


CRONS = ("* * * * *", "*/15 * * * *", "0 9 * * MON-FRI", "30 2 * * *", "5,20 0-3 * * *", "0 0 29 2 *", "0 12 L * *")
CRONS += ("15 1 * * 7", "0 */6 1-7 * MON", "59 23 * * 5#2")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia")
# Near changes of clocks, and far from them.
NEAR = (
    "2026-03-29T01:00",
    "2026-10-25T01:00",
    "2026-04-04T15:00",
    "2026-11-01T06:00",
    "2026-06-15",
    "2028-02-28T12:00",
)
hours = st.integers(-60 * 3600, 60 * 3600).map(lambda seconds: timedelta(seconds=seconds))


@given(
    st.sampled_from(CRONS) | st.floats(1, 5000),
    st.sampled_from(ZONES),
    st.sampled_from(NEAR),
    st.tuples(hours, hours, st.none() | hours, st.none() | hours),
)
@settings(max_examples=600, deadline=None)
def test_moments_within_a_time_are_those_one_by_one(rule, zone, near, shifts):
    after = at(near) + shifts[0]
    until = after + abs(shifts[1])
    starts_at, ends_at = (None if shift is None else after + shift for shift in shifts[2:])
    if isinstance(rule, str):
        found = Recurrence(cron=rule, timezone=zone, starts_at=starts_at, ends_at=ends_at)
    else:
        found = Recurrence(every_seconds=rule, starts_at=starts_at or after, ends_at=ends_at)
    one_by_one = itertools.takewhile(lambda moment: moment < until, found.moments(after))
    assert found.within(after, until, most=100) == list(itertools.islice(one_by_one, 100))


@given(
    st.floats(1, 5000), st.tuples(hours, hours, st.none() | hours, st.none() | hours), st.none() | st.integers(0, 200)
)
@settings(max_examples=300, deadline=None)
def test_counts_of_an_interval_are_those_of_its_moments(seconds, shifts, most):
    after = at("2026-03-29T00:30")
    begin, part, parts = after + shifts[0], timedelta(minutes=17), 40
    starts_at, ends_at = (None if shift is None else after + shift for shift in shifts[2:])
    found = Recurrence(every_seconds=seconds, starts_at=starts_at or after - shifts[1], ends_at=ends_at)
    until = begin + parts * part
    moments = itertools.takewhile(lambda moment: moment < until, itertools.islice(found.moments(after), most))
    expected = [0] * parts
    for moment in moments:
        if moment >= begin:
            expected[(moment - begin) // part] += 1
    assert found.counts(after, begin, part=part, parts=parts, most=most) == expected
