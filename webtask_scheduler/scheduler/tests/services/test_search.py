"""The list of timers: every page of every filter, its cursors, and that a full table does not make it slow."""

import base64
import itertools
import json
import random
import re
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import FINAL, LEASED, Attempt, BulkChange, BulkOperation, Delivery, State, Timer
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.services import flows, search
from webtask_scheduler.scheduler.services.search import CursorError, Filter
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

CALLBACKS = ("callback_url", "failure_callback_url")
HOSTS = ("a.example", "b.example:8080", "c.example")
NOW = timezone.now()


def pages(wanted, *, limit=7):
    """Return the ids on all pages of a filter."""
    found, cursor = [], ""
    for _ in range(10_000):
        page = search.page(wanted, cursor=cursor, limit=limit)
        assert len(page.timer_ids) <= limit
        found += page.timer_ids
        if page.next is None:
            return found
        cursor = page.next
    raise AssertionError("the pages do not end")


@pytest.fixture
def mixed(user):
    """Some hundred timers of all kinds, in all states, with deliveries before and beside the latest promised one."""
    chance = random.Random(4)
    new = []
    for number in range(300):
        kind = chance.choice(("once", "once", "cron", "every"))
        recurrence = {
            "cron": Recurrence(cron="0 9 * * *", timezone="Europe/Berlin"),
            "every": Recurrence(every_seconds=60.0, starts_at=NOW),
        }.get(kind)
        options = {"labels": {"team": chance.choice("xyz")}} if chance.random() < 0.6 else {}
        # A body may name what the options do not have.
        options |= {"body": {"callback_url": "http://a.example/"}} if number % 3 == 0 else {}
        options |= {CALLBACKS[number % 2]: "http://a.example/"} if number % 7 < 2 else {}
        new.append(
            services.NewTimer(
                web_url=f"http://{chance.choice(HOSTS)}/{chance.choice(('in', 'out'))}/{number}",
                delay_seconds=None if recurrence else 60.0,
                recurrence=recurrence,
                name=chance.choice(("", "Report", "weekly report", "other")),
                options=options,
                owner_id=chance.choice((None, None, user.pk)),
            )
        )
    timer_ids = [stored.timer_id for stored in services.schedule(new)]
    deliveries = {delivery.timer_id: delivery for delivery in Delivery.objects.all()}
    others = []
    for number, timer_id in enumerate(timer_ids):
        # Whole minutes, so that many are due at one moment; and none that passes while tests run.
        minutes = chance.randint(-30, 30)
        due_at = NOW.replace(second=0, microsecond=0) + timedelta(minutes=minutes + 6 if minutes > -2 else minutes)
        latest = deliveries[timer_id]
        latest.due_at = latest.next_attempt_at = due_at
        latest.state = chance.choice(State.values)
        if latest.state == State.SCHEDULED and chance.random() < 0.5:
            # Retried, resumed or replayed.
            latest.next_attempt_at = max(due_at, NOW + timedelta(minutes=6)) + timedelta(days=chance.choice((0, 1, 7)))
            latest.attempts, latest.started_at = number % 3, NOW
        if latest.state in LEASED:
            latest.lease_token, latest.lease_expires_at = uuid.uuid4(), NOW
        if latest.state in FINAL:
            latest.finished_at = NOW
        both = {"timer_id": timer_id, "due_at": due_at, "next_attempt_at": due_at}
        if chance.random() < 0.3:
            # Moved once: what was promised before is cancelled.
            latest.number = 2
            others.append(Delivery(number=1, state=State.CANCELLED, finished_at=NOW, **both))
        if chance.random() < 0.3:
            others.append(Delivery(number=3, extra=True, **both))
    changed = ("number", "due_at", "next_attempt_at", "state", "attempts", "started_at", "finished_at")
    Delivery.objects.bulk_update(deliveries.values(), [*changed, "lease_token", "lease_expires_at"])
    Delivery.objects.bulk_create(others)
    callback = Timer.objects.create(
        web_url="http://a.example/", host="a.example", created_at=NOW, outcome_of=uuid.uuid4()
    )
    Delivery.objects.create(timer=callback, number=1, due_at=NOW, next_attempt_at=NOW)


def facts_of_all():
    return {
        timer.pk: (
            timer,
            Delivery.objects.filter(timer=timer, extra=False).order_by("-number")[0],
            [row.label for row in timer.label_rows.all()],
        )
        for timer in Timer.objects.prefetch_related("label_rows")
    }


def fits(wanted, fact):
    timer, latest, labels = fact
    return (
        timer.outcome_of is None
        and (wanted.everyone or timer.owner_id == wanted.owner_id)
        and (not wanted.statuses or latest.state in wanted.statuses)
        and (not wanted.host or timer.host == wanted.host)
        and (not wanted.label or wanted.label in labels)
        and (wanted.due_from is None or latest.due_at >= wanted.due_from)
        and (wanted.due_to is None or latest.due_at < wanted.due_to)
        and (wanted.recurring is None or timer.recurring == wanted.recurring)
        and (wanted.retrying is None or wanted.retrying == is_retrying(latest))
        and (wanted.late is None or wanted.late == is_late(latest))
        and wanted.name.lower() in timer.name.lower()
        and timer.web_url.startswith(wanted.url_prefix)
        and (wanted.changed_by is None or timer.pk.int % 3 == 0)
        and wanted.has_callback in (None, not (timer.options or {}).keys().isdisjoint(CALLBACKS))
    )


def is_retrying(latest):
    return latest.state == State.SCHEDULED and latest.attempts > 0 and latest.next_attempt_at > latest.due_at


def is_late(latest):
    return latest.state == State.SCHEDULED and latest.next_attempt_at < NOW


CHOICES = {
    "statuses": ((), (State.SCHEDULED,), (State.FAILED, State.PAUSED, State.CLAIMED), tuple(State)),
    "host": ("", "b.example:8080"),
    "label": ("", "team=x"),
    "due_from": (None, NOW - timedelta(minutes=10)),
    "due_to": (None, NOW + timedelta(minutes=10)),
    "recurring": (None, True, False),
    "name": ("", "REPORT"),
    "url_prefix": ("", "http://b.example:8080/in"),
    "steady": (False, True),
}


def test_pages_of_every_combination_of_filters_hold_each_timer_that_fits_once(mixed, user, monkeypatch):
    # So that pages end for having looked at enough, too; and that a host's timers are few, and a label's are not.
    for name, value in (("SCANNED_MOST", 150), ("OWNED_MOST", 100), ("PATIENCE", 20), ("FEW", 110)):
        monkeypatch.setattr(search, name, value)
    facts = facts_of_all()
    assert len(facts) == 301
    for index, values in enumerate(itertools.product(*CHOICES.values())):
        everyone, owner_id = index % 3 == 0, (None, user.pk)[index % 2]
        wanted = Filter(**dict(zip(CHOICES, values, strict=True)), everyone=everyone, owner_id=owner_id)
        expected = {pk for pk, fact in facts.items() if fits(wanted, fact)}
        found = pages(wanted, limit=max(3, len(expected) // 2))
        assert len(found) == len(set(found)), wanted
        assert set(found) == expected, wanted


def test_pages_of_an_owner_that_are_read_flow_by_flow_hold_the_same(mixed, user, sql, monkeypatch):
    sql("UPDATE scheduler_delivery SET flow = timer.flow FROM scheduler_timer timer WHERE timer.id = timer_id")
    asked, read = [], flows.waiting_of
    monkeypatch.setattr(flows, "waiting_of", lambda owner_id: asked.append(owner_id) or read(owner_id))
    facts = facts_of_all()
    # A fifth of them: no filter has five values, so that all values meet.
    for values in list(itertools.product(*CHOICES.values()))[::5]:
        wanted = Filter(**dict(zip(CHOICES, values, strict=True)), owner_id=user.pk)
        expected = {pk for pk, fact in facts.items() if fits(wanted, fact)}
        # Many timers at one moment are parted by pages, too.
        limit = max(3, len(expected) // 2)
        order = pages(wanted, limit=limit)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("SCANNED_MOST", 40), ("OWNED_MOST", 30), ("PATIENCE", 4), ("FEW", 1)):
                patch.setattr(search, name, value)
            found = pages(wanted, limit=limit)
        assert set(found) == expected, wanted
        assert found == order, wanted
    assert len(asked) > 20


def test_flow_of_an_owner_and_a_host_is_that_of_their_timers(mixed, user):
    for timer in Timer.objects.all()[:40]:
        assert flows.of_host(timer.owner_id, timer.host) == timer.flow
    assert flows.of_host(user.pk, "a.example") != flows.of_host(user.pk, "b.example")


def test_retrying_and_late_go_with_every_other_filter(mixed, user, monkeypatch):
    for name, value in (("SCANNED_MOST", 150), ("OWNED_MOST", 100), ("PATIENCE", 20), ("FEW", 110)):
        monkeypatch.setattr(search, name, value)
    facts, counts = facts_of_all(), set()
    others = [{}, *({name: value} for name in CHOICES for value in CHOICES[name][1:])]
    for retrying, late, other in itertools.product((None, True, False), (None, True, False), others):
        for whose in ({"everyone": True}, {"owner_id": user.pk}):
            wanted = Filter(retrying=retrying, late=late, **other, **whose)
            expected = {pk for pk, fact in facts.items() if fits(wanted, fact)}
            found = pages(wanted, limit=max(3, len(expected) // 3))
            assert len(found) == len(set(found)), wanted
            assert set(found) == expected, wanted
            counts.add((retrying, late, bool(expected)))
    assert {(True, None, True), (None, True, True), (False, True, True)} <= counts


def test_having_a_callback_goes_with_every_other_filter(mixed, user, monkeypatch):
    small = (("SCANNED_MOST", 150), ("OWNED_MOST", 100), ("OPTIONS_MOST", 80), ("PATIENCE", 20), ("FEW", 110))
    for name, value in small:
        monkeypatch.setattr(search, name, value)
    facts, found_any = facts_of_all(), 0
    others = [{}, {"late": True}, *({name: value} for name in CHOICES for value in CHOICES[name][1:])]
    for has_callback, other in itertools.product((True, False), others):
        for whose in ({"everyone": True}, {"owner_id": user.pk}):
            wanted = Filter(has_callback=has_callback, **other, **whose)
            expected = {pk for pk, fact in facts.items() if fits(wanted, fact)}
            found = pages(wanted, limit=max(3, len(expected) // 3))
            assert len(found) == len(set(found)), wanted
            assert set(found) == expected, wanted
            found_any += bool(expected)
    assert found_any > 40


def test_options_are_read_only_for_a_filter_that_asks_for_them(mixed, django_assert_max_num_queries):
    for has_callback in (None, True, False):
        wanted = Filter(everyone=True, has_callback=has_callback, statuses=(State.FAILED,), label="team=x")
        _, asked = statements(django_assert_max_num_queries, wanted)
        assert ("options" in "".join(asked)) == (has_callback is not None)


def test_cursor_from_before_there_was_a_part_of_the_filter_still_goes_on():
    # As the release before has it, of a bulk operation that goes on during an upgrade.
    assert Filter(host="a.example").fingerprint == "ab75eb66beea"
    assert len({Filter(host="a.example", has_callback=one).fingerprint for one in (None, True, False)}) == 3


def test_pages_of_every_length_hold_the_same_in_the_same_order(mixed, user):
    for wanted in (Filter(everyone=True), Filter(statuses=tuple(State)), Filter(label="team=x", owner_id=user.pk)):
        expected = pages(wanted, limit=50)
        for limit in (1, 2, 7, 199, 200):
            assert pages(wanted, limit=limit) == expected, (wanted, limit)


def test_order_is_the_latest_made_first(mixed):
    found = pages(Filter(everyone=True))
    assert found == sorted(found, reverse=True)


def test_order_by_status_is_the_soonest_of_what_waits_and_the_latest_of_what_ended(mixed):
    for state, backwards in ((State.SCHEDULED, False), (State.FAILED, True)):
        found = pages(Filter(everyone=True, statuses=(state,)))
        latest = {one.timer_id: one for one in Delivery.objects.promised().filter(state=state)}
        due = [latest[pk].next_attempt_at if state is State.SCHEDULED else latest[pk].due_at for pk in found]
        assert len(due) > 10
        assert due == sorted(due, reverse=backwards)


def test_timer_replayed_long_after_its_moment_is_found_by_that_moment(make_timer):
    timer = make_timer()
    moment = NOW - timedelta(days=25)
    Delivery.objects.filter(timer=timer).update(
        due_at=moment, next_attempt_at=moment, state=State.FAILED, finished_at=moment
    )
    services.replay(timer.pk)
    assert pages(Filter(due_from=moment, due_to=moment + timedelta(hours=1))) == [timer.pk]


def test_statuses_that_change_behind_a_page_do_not_show_a_timer_twice_to_who_changes_them(make_timer):
    timers = {make_timer().pk for _ in range(5)}
    wanted = Filter(statuses=(State.SCHEDULED, State.PAUSED, State.CANCELLED), steady=True)
    first = search.page(wanted, cursor="", limit=3)
    for timer_id in first.timer_ids:
        services.cancel(timer_id)
    second = search.page(wanted, cursor=first.next, limit=3)
    assert set(first.timer_ids) | set(second.timer_ids) == timers
    assert len(second.timer_ids) == 2


# Cursors


def forged(cursor, *place):
    """Return a cursor with the fingerprint of a real one."""
    fingerprint = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))[0]
    return written([fingerprint, *place])


def written(value):
    return base64.urlsafe_b64encode((value if isinstance(value, str) else json.dumps(value)).encode()).decode()


UUID = str(uuid.uuid4())
FORGED = {
    "too few": (0, None),
    "too many": (0, None, None, None),
    "state beyond": (9, None, None),
    "negative state": (-1, None, None),
    "text state": ("0", None, None),
    "infinite state": (float("inf"), None, None),
    "NaN state": (float("nan"), None, None),
    "list state": ([0], None, None),
    "null state": (None, None, None),
    "number as id": (0, "2026-01-05T00:00:00+00:00", 5),
    "text as id": (0, "2026-01-05T00:00:00+00:00", "x"),
    "list as id": (0, "2026-01-05T00:00:00+00:00", [UUID]),
    "text as moment": (0, "x", UUID),
    "null as moment": (0, None, UUID),
    "number as moment": (0, 5, UUID),
    "injection as moment": (0, "2026-01-05'; SELECT 1 --", UUID),
    "id as moment": (0, UUID, UUID),
    "moment as id": (1, "2026-01-05T00:00:00+00:00", UUID),
}


@each("place", FORGED.values(), ids=FORGED.keys())
def test_cursor_that_was_forged_is_refused(make_timer, place):
    make_timer()
    make_timer()
    wanted = Filter(statuses=(State.SCHEDULED, State.CLAIMED))
    cursor = search.page(wanted, cursor="", limit=1).next
    with pytest.raises(CursorError):
        search.page(wanted, cursor=forged(cursor, *place), limit=1)


@each("moment", ["2026-W02-1", "20260105T000000Z", "0001-01-01", "9999-12-31T23:59:59-12:00"])
def test_cursor_with_a_moment_in_another_spelling_does_no_harm(make_timer, moment):
    make_timer()
    make_timer()
    wanted = Filter(statuses=(State.SCHEDULED,))
    cursor = search.page(wanted, cursor="", limit=1).next
    search.page(wanted, cursor=forged(cursor, 0, moment, UUID), limit=1)


GARBAGE = {
    "text": "x",
    "not base64": "!!!!",
    "not ASCII": "é",
    "not JSON": written("x"),
    "no list": written("1"),
    "null": written("null"),
    "object": written({"a": 1, "b": 2, "c": 3, "d": 4}),
    "text of four": written("wxyz"),
    "other fingerprint": written(["0" * 12, 0, None, None]),
    "deep": written("[" * 740),
    "infinity": written("[Infinity, Infinity, Infinity, Infinity]"),
    "bytes": base64.urlsafe_b64encode(b"\xff\xfe\x00").decode(),
}


@each("cursor", GARBAGE.values(), ids=GARBAGE.keys())
def test_cursor_that_no_list_gave_is_a_400(client, cursor):
    answer = client.get("/timer", {"cursor": cursor})
    assert answer.status_code == 400, answer.content
    assert [error["field"] for error in answer.json()["errors"]] == ["cursor"]


def test_cursor_is_bound_to_its_filter_and_its_owner(client, make_timer, user):
    for _ in range(3):
        make_timer(options={"labels": {"a": "b"}})
    cursor = client.get("/timer", {"label": "a=b", "limit": 2}).json()["next"]
    assert len(client.get("/timer", {"label": "a=b", "cursor": cursor}).json()["timers"]) == 1
    for other in ({}, {"label": "a=c"}, {"label": "a=b", "recurring": "false"}):
        assert client.get("/timer", other | {"cursor": cursor}).status_code == 400
    client.force_login(user)
    assert client.get("/timer", {"label": "a=b", "cursor": cursor}).status_code == 400


# Over the API


def listed(client, **query):
    """Return the ids on all pages of a list."""
    found, cursor = [], ""
    while cursor is not None:
        answer = client.get("/timer", query | {"cursor": cursor})
        assert answer.status_code == 200, answer.content
        body = answer.json()
        found += [timer["task_id"] for timer in body["timers"]]
        cursor = body["next"]
    return found


def test_list_shows_each_timer_as_looking_at_it_does(client, mixed):
    body = client.get("/timer", {"limit": 200}).json()
    assert len(body["timers"]) > 100
    for timer in body["timers"][:20]:
        alone = client.get(f"/timer/{timer['task_id']}").json()
        assert timer | {"time_left_in_seconds": 0} == alone | {"time_left_in_seconds": 0}


def test_list_shows_the_attempts_of_the_promised_moment(client, make_timer, delivery_of):
    timers = [make_timer() for _ in range(3)]
    for index, timer in enumerate(timers):
        delivery = delivery_of(timer)
        Delivery.objects.filter(pk=delivery.pk).update(attempts=index, started_at=NOW)
        for number in range(1, index + 1):
            Attempt.objects.create(delivery=delivery, number=number, meant_for=NOW, started_at=NOW, excerpt="secret")
    body = client.get("/timer").json()
    assert [[attempt["number"] for attempt in timer["attempts"]] for timer in body["timers"]] == [[1, 2], [1], []]
    assert "excerpt" not in json.dumps(body)


def test_filters_of_the_query_are_those_of_the_search(client, mixed):
    facts = facts_of_all()
    moment = NOW - timedelta(minutes=10)
    table = [
        ({"status": "failed"}, Filter(statuses=(State.FAILED,))),
        ({"status": "failed,paused"}, Filter(statuses=(State.FAILED, State.PAUSED))),
        ({"status": ["failed", "paused"]}, Filter(statuses=(State.FAILED, State.PAUSED))),
        ({"host": "B.Example:8080"}, Filter(host="b.example:8080")),
        ({"label": "team=y"}, Filter(label="team=y")),
        ({"due_from": moment.isoformat()}, Filter(due_from=moment)),
        ({"due_to": moment.isoformat()}, Filter(due_to=moment)),
        ({"recurring": "true"}, Filter(recurring=True)),
        ({"recurring": "false"}, Filter(recurring=False)),
        ({"retrying": "true"}, Filter(retrying=True)),
        ({"late": "true"}, Filter(late=True)),
        ({"late": "false", "status": "scheduled"}, Filter(late=False, statuses=(State.SCHEDULED,))),
        ({"name": "report"}, Filter(name="report")),
        ({"url_prefix": "http://a.example/in"}, Filter(url_prefix="http://a.example/in")),
        ({"has_callback": "true"}, Filter(has_callback=True)),
        ({"has_callback": "false", "status": "failed"}, Filter(has_callback=False, statuses=(State.FAILED,))),
    ]
    for query, wanted in table:
        expected = {str(pk) for pk, fact in facts.items() if fits(wanted, fact)}
        assert 0 < len(expected) < 250
        found = listed(client, **query)
        assert len(found) == len(expected)
        assert set(found) == expected, query


def test_plus_sign_of_an_offset_may_come_as_a_space(client, make_timer):
    timer = make_timer()
    assert client.get("/timer?due_from=2020-01-01T00:00:00+01:00").json()["timers"][0]["task_id"] == str(timer.pk)


def test_filter_by_host_knows_no_user_and_no_case(client, make_timer):
    timer = make_timer("http://Me:pw@A.Example:8080/x")
    assert listed(client, host="a.EXAMPLE:8080") == [str(timer.pk)]
    assert listed(client, host="a.example") == []


def test_name_with_signs_of_a_pattern_is_taken_as_it_is(client, make_timer):
    timer = make_timer(name="100%_done")
    make_timer(name="100 done")
    assert listed(client, name="0%_d") == [str(timer.pk)]


BAD_QUERIES = [
    ("limit=0", "limit"),
    ("limit=201", "limit"),
    ("limit=x", "limit"),
    ("limit=1e1", "limit"),
    ("limit=-1", "limit"),
    ("limit=" + "9" * 5000, "limit"),
    ("status=done", "status.0"),
    ("status=" + "x" * 5000, "status.0"),
    ("status=" + ",".join(["failed"] * 10), "status"),
    ("label=team", "label"),
    ("label=%00=", "label"),
    ("host=%00", "host"),
    ("name=%00", "name"),
    ("url_prefix=" + "x" * 3000, "url_prefix"),
    ("due_from=2026-01-05T00:00:00", "due_from"),
    ("due_from=2026-02-30T00:00:00Z", "due_from"),
    ("due_to=yesterday", "due_to"),
    ("due_to=9999-01-01T00:00:00Z", "due_to"),
    ("recurring=perhaps", "recurring"),
    ("retrying=perhaps", "retrying"),
    ("late=soon", "late"),
    ("has_callback=http://a.example/", "has_callback"),
    ("stauts=failed", "stauts"),
    ("cursor=" + "x" * 1001, "cursor"),
]


@each(("query", "field"), BAD_QUERIES, ids=[query[:30] for query, _ in BAD_QUERIES])
def test_bad_query_is_refused_by_name(client, query, field):
    answer = client.get(f"/timer?{query}")
    assert answer.status_code == 400, answer.content
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert len(answer.content) < 3000


def test_empty_list_is_one_page(client):
    assert client.get("/timer").json() == {"timers": [], "next": None}


def test_list_is_the_callers_own(client, mixed, user):
    facts = facts_of_all()
    own = {str(pk) for pk, (timer, _, _) in facts.items() if timer.owner_id == user.pk}
    nobodys = {str(pk) for pk, (timer, _, _) in facts.items() if timer.owner_id is None and timer.outcome_of is None}
    assert set(listed(client)) == nobodys
    client.force_login(user)
    assert set(listed(client)) == own
    assert set(listed(client, status=State.values)) == own
    client.force_login(get_user_model().objects.create_superuser("root@example.com", "secret"))
    assert set(listed(client, limit=200)) == own | nobodys
    client.force_login(get_user_model().objects.create_user("stranger@example.com", "secret"))
    assert listed(client) == []


def test_pages_of_what_an_operation_changed_hold_each_timer_that_fits_once(mixed, user, monkeypatch):
    for name, value in (("SCANNED_MOST", 60), ("OWNED_MOST", 40), ("PATIENCE", 20), ("FEW", 80)):
        monkeypatch.setattr(search, name, value)
    facts = facts_of_all()
    operation, other = [BulkOperation.objects.create(action="pause", filter={"host": "a.example"}) for _ in range(2)]
    for timer_id in facts:
        BulkChange.objects.create(operation=operation if timer_id.int % 3 == 0 else other, timer=timer_id)
    names = ("statuses", "host", "label", "recurring", "steady")
    for index, values in enumerate(itertools.product(*(CHOICES[name] for name in names))):
        everyone, owner_id = index % 3 == 0, (None, user.pk)[index % 2]
        narrow = dict(zip(names, values, strict=True))
        wanted = Filter(**narrow, changed_by=operation.pk, everyone=everyone, owner_id=owner_id)
        expected = {pk for pk, fact in facts.items() if fits(wanted, fact)}
        found = pages(wanted, limit=max(3, len(expected) // 2))
        assert len(found) == len(set(found)), wanted
        assert set(found) == expected, wanted


def test_owner_has_what_ended_before_deliveries_knew_their_owner(make_timer, user):
    old, new, others = make_timer(owner_id=user.pk), make_timer(owner_id=user.pk), make_timer(owner_id=None)
    Delivery.objects.update(state=State.SUCCEEDED, finished_at=timezone.now())
    # As migration 0007 left those that had ended.
    Delivery.objects.filter(timer__in=[old, others]).update(flow=0)
    assert set(pages(Filter(owner_id=user.pk, statuses=(State.SUCCEEDED,)))) == {old.pk, new.pk}
    assert pages(Filter(owner_id=None, statuses=(State.SUCCEEDED,))) == [others.pk]


# Many


@pytest.fixture
def many(sql, user):
    """50,000 timers: most wait, over a day; of every thousand some have failed, run, recur, or are somebody's."""
    sql(
        """
        INSERT INTO scheduler_timer (id, web_url, host, created_at, name, cron, timezone, owner_id)
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'http://h' || n %% 500 || '.example/', 'h' || n %% 500 || '.example',
               now(), '', CASE WHEN n %% 1000 = 1 THEN '* * * * *' ELSE '' END,
               CASE WHEN n %% 1000 = 1 THEN 'UTC' ELSE '' END, CASE WHEN n < 4 THEN %s END
          FROM generate_series(1, 50000) n
        """,
        user.pk,
    )
    sql(
        """
        INSERT INTO scheduler_delivery
          (id, timer_id, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before,
           finished_at, lease_token, lease_expires_at, flow)
        SELECT timer.id, timer.id, 1, 1, false, due_at, due_at, state, 0, 0,
               CASE WHEN state IN ('failed', 'succeeded') THEN now() END,
               CASE WHEN state = 'running' THEN gen_random_uuid() END, CASE WHEN state = 'running' THEN now() END, flow
          FROM (SELECT n, now() + n * interval '2 s' AS due_at,
                       CASE WHEN n %% 1000 = 7 THEN 'failed' WHEN n %% 1000 = 9 THEN 'running'
                            WHEN n %% 10 = 3 THEN 'succeeded' ELSE 'scheduled' END AS state
                  FROM generate_series(1, 50000) n) made
          JOIN scheduler_timer timer ON timer.id = lpad(to_hex(n), 32, '0')::uuid
        """
    )
    sql(
        """
        INSERT INTO scheduler_timerlabel (timer_id, label)
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'group=' || n %% 300 FROM generate_series(1, 50000) n
        """
    )
    sql("ANALYZE scheduler_timer, scheduler_delivery, scheduler_timerlabel")


def statements(django_assert_max_num_queries, wanted, limit=50):
    with django_assert_max_num_queries(1000) as captured:
        page = search.page(wanted, cursor="", limit=limit)
    return page, [query["sql"] for query in captured.captured_queries]


def test_pages_of_a_full_table(many, subtests, client, sql, django_assert_max_num_queries):
    with subtests.test("a page is read along an index in few statements"):
        _check_plans(sql, django_assert_max_num_queries)
    with subtests.test("a page of a filter that nothing fits looks at a bounded number of rows"):
        _check_nothing_fits(django_assert_max_num_queries)
    with subtests.test("a page of what few fit is full, or the end, or says how far it was looked"):
        _check_few_fit(client, sql)
    with subtests.test("what waits for an owner of many is read flow by flow"):
        _check_flows(sql, django_assert_max_num_queries)


def _check_plans(sql, django_assert_max_num_queries):
    user = get_user_model().objects.get()
    soon, later = timezone.now() + timedelta(hours=5), timezone.now() + timedelta(hours=6)
    table = [
        # Filter, timers on the first page, statements for it, the index that leads.
        (Filter(), 50, 1, "scheduler_timer_pkey"),
        (Filter(statuses=(State.SCHEDULED,)), 50, 1, "delivery_due_idx"),
        # Where so few failed, one index of them is as good as the other.
        (Filter(statuses=(State.FAILED,)), 50, 1, "delivery_(past_flow|lost)_idx"),
        (Filter(statuses=(State.RUNNING,)), 50, 1, "delivery_lease_idx"),
        (Filter(statuses=(State.SCHEDULED,), due_from=soon, due_to=later), 50, 1, "delivery_due_idx"),
        (Filter(due_from=soon, due_to=later), 50, 1, "delivery_due_idx"),
        (Filter(statuses=(State.SUCCEEDED,), due_from=soon, due_to=later), 50, 1, "delivery_past_flow_idx"),
        (Filter(host="h7.example"), 50, 2, "timer_host_idx"),
        (Filter(host="h7.example", statuses=(State.FAILED,)), 50, 1, "delivery_(past_flow|lost)_idx"),
        (Filter(label="group=7"), 50, 2, "label_timer_idx"),
        (Filter(label="group=7", host="h7.example"), 34, 2, "label_timer_idx"),
        (Filter(due_to=later, statuses=(State.SCHEDULED,)), 50, 1, "delivery_again_idx"),
        # Few are found at once, whatever the order: a few steps, which are of another plan.
        (Filter(label="group=7", statuses=(State.FAILED,)), 17, 3, ""),
        (Filter(label="group=8", statuses=(State.SCHEDULED,)), 50, 4, ""),
        (Filter(host="h11.example", statuses=(State.RUNNING, State.FAILED)), 0, 4, ""),
        (Filter(owner_id=user.pk, statuses=(State.SCHEDULED,)), 2, 4, ""),
        (Filter(owner_id=user.pk, due_to=later), 3, 5, ""),
        # Whose a delivery is that has ended stands in the index.
        (
            Filter(owner_id=user.pk, statuses=(State.SUCCEEDED,)),
            1,
            4,
            "Only Scan.*past_flow_idx|owner_id",
        ),
        # Where so few recur, one index of them is as good as the other.
        (Filter(recurring=True), 49, 2, "timer_(owner_)?recurring_idx"),
        (Filter(owner_id=user.pk), 3, 1, "scheduler_timer_owner_id"),
    ]
    for wanted, count, most, index in table:
        page, asked = statements(django_assert_max_num_queries, wanted)
        assert len(page.timer_ids) == count, wanted
        assert len(asked) <= most, wanted
        for statement in asked:
            plan = "\n".join(row[0] for row in sql("EXPLAIN " + statement.replace("%", "%%")))
            assert re.search(index, plan), (wanted, plan)
            assert not re.search(r"Seq Scan on scheduler_(timer|delivery|timerlabel)", plan), (wanted, plan)


def _check_nothing_fits(django_assert_max_num_queries):
    page, asked = statements(django_assert_max_num_queries, Filter(name="nothing"))
    assert (page.timer_ids, page.next is None) == ([], False)
    assert search.SCANNED_MOST <= page.looked.timers < 2 * search.SCANNED_MOST
    assert len(asked) <= 6
    assert pages(Filter(name="nothing"), limit=200) == []
    page, asked = statements(django_assert_max_num_queries, Filter(name="nothing", statuses=tuple(State)))
    assert len(asked) <= 15


def _check_flows(sql, django_assert_max_num_queries):
    user = get_user_model().objects.get()
    day = {"due_from": timezone.now(), "due_to": timezone.now() + timedelta(days=1)}
    for more in ({}, day):
        wanted = Filter(owner_id=user.pk, statuses=(State.SCHEDULED,), **more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "FEW", 0)
            page, asked = statements(django_assert_max_num_queries, wanted)
        assert len(page.timer_ids) == 2
        for statement in asked[-2:]:
            plan = "\n".join(row[0] for row in sql("EXPLAIN " + statement.replace("%", "%%")))
            assert "delivery_flow_idx" in plan
            assert not re.search(r"Seq Scan on scheduler_(timer|delivery)", plan), (wanted, plan)


def _check_few_fit(client, sql):
    sql(
        "UPDATE scheduler_timer SET name = 'needle'"
        " WHERE id IN (SELECT id FROM scheduler_timer WHERE owner_id IS NULL ORDER BY id LIMIT 2)"
    )
    for query in ({"name": "needle"}, {"name": "needle", "due_from": "2020-01-01T00:00:00Z"}):
        found, cursor, answers = [], "", 0
        while cursor is not None:
            body = client.get("/timer", query | {"cursor": cursor, "limit": 50}).json()
            found += body["timers"]
            cursor, answers = body["next"], answers + 1
            assert (cursor is None) == ("searched" not in body)
        assert (len(found), answers <= 3) == (2, True)


def test_page_takes_as_many_statements_for_fifty_timers_as_for_one(client, make_timer, django_assert_num_queries):
    for _ in range(50):
        make_timer()
    for limit in (1, 50):
        # Which timers, how large they are, and what they hold.
        with django_assert_num_queries(3):
            assert len(client.get("/timer", {"limit": limit}).json()["timers"]) == limit


def test_short_page_says_how_far_it_was_looked_and_why(client, make_timer, monkeypatch):
    for name, value in (("SCANNED_MOST", 3), ("LOOK_SECONDS", 0.0)):
        monkeypatch.setattr(search, name, value)
    timers = [make_timer(name=str(number)) for number in range(8)]
    # Two rows are looked at, and then three.
    body = client.get("/timer", {"name": "0", "limit": 1}).json()
    seen = body["searched"]
    assert (body["timers"], seen["timers"], "status" in seen) == ([], 5, False)
    assert read_instant(seen["until"]) == timers[3].created_at
    assert "`next`" in seen["why"]
    last = client.get("/timer", {"name": "0", "limit": 1, "cursor": body["next"]}).json()
    assert [timer["name"] for timer in last["timers"]] == ["0"]
    assert "searched" not in last
    body = client.get("/timer", {"name": "7", "limit": 1, "status": "scheduled"}).json()
    assert (body["searched"]["status"], body["searched"]["timers"]) == ("scheduled", 5)
    due = Delivery.objects.get(timer=timers[4]).due_at
    assert read_instant(body["searched"]["until"]) == due
    assert client.get("/timer", {"name": "0", "limit": 1, "status": "scheduled"}).json().keys() == {"timers", "next"}


def test_others_are_neither_counted_nor_dated_in_what_was_searched(client, user, make_timer, monkeypatch):
    for name, value in (("SCANNED_MOST", 3), ("LOOK_SECONDS", 0.0), ("FEW", 1)):
        monkeypatch.setattr(search, name, value)
    make_timer(owner_id=user.pk, name="soon")
    others = [make_timer(delay_seconds=90) for _ in range(3)]
    mine = [make_timer(owner_id=user.pk, delay_seconds=120) for _ in range(2)]
    for timer in (*others, *mine, make_timer(owner_id=user.pk, name="late", delay_seconds=180)):
        services.pause(timer.pk)
    client.force_login(user)
    # The latest first: one of the others is the last that was looked at.
    monkeypatch.setattr(search, "SCANNED_MOST", 4)
    seen = client.get("/timer", {"status": "paused", "name": "soon", "limit": 2}).json()["searched"]
    assert seen["timers"] == 3
    assert read_instant(seen["until"]) == Delivery.objects.get(timer=mine[0]).due_at


def test_what_waits_for_an_owner_is_found_without_looking_at_that_of_others(user, make_timer, monkeypatch):
    for name, value in (("SCANNED_MOST", 10), ("PATIENCE", 4), ("FEW", 1)):
        monkeypatch.setattr(search, name, value)
    for number in range(20):
        make_timer(delay_seconds=30 + number)
    mine = [make_timer(f"http://{number}.example/", owner_id=user.pk, delay_seconds=90 + number) for number in range(3)]
    # One that was sent once more waits too, and is no other timer.
    run_now = make_timer("http://0.example/", owner_id=user.pk, delay_seconds=99)
    services.run_now(run_now.pk)
    wanted = Filter(owner_id=user.pk, statuses=(State.SCHEDULED,))
    all_mine = [timer.pk for timer in (*mine, run_now)]
    assert pages(wanted, limit=2) == all_mine
    assert search.page(wanted, cursor="", limit=4).timer_ids == all_mine
    assert search.page(wanted, cursor="", limit=4, scanned_most=13).timer_ids == all_mine
    between = replace(wanted, due_from=timezone.now(), due_to=Delivery.objects.get(timer=mine[2]).due_at)
    assert search.page(between, cursor="", limit=4).timer_ids == all_mine[:2]
    of_one = replace(wanted, host="0.example")
    assert search.page(of_one, cursor="", limit=4, scanned_most=13).timer_ids == [mine[0].pk, run_now.pk]
    # For very many hosts, all owners' are looked through.
    monkeypatch.setattr(flows, "FLOWS_MOST", 2)
    page = search.page(wanted, cursor="", limit=4)
    assert page.timer_ids == []
    assert page.looked.timers == 0
    assert pages(wanted, limit=2) == all_mine


def test_page_that_ends_because_its_timers_are_large_says_so(client, make_timer, settings):
    settings.WEBTASK_LIMIT_ANSWER_BYTES = 5000
    for _ in range(3):
        make_timer(options={"body": "x" * 3000})
    body = client.get("/timer").json()
    assert (len(body["timers"]), body["searched"]["timers"]) == (1, 1)
    assert "large" in body["searched"]["why"]


def test_count_stops_at_a_bound_and_says_so(client, make_timer, monkeypatch):
    for number in range(5):
        make_timer(name="even" if number % 2 == 0 else "odd")
    assert "count" not in client.get("/timer").json()
    for query, most, expected in (
        ({}, 10, (5, False)),
        ({"name": "even"}, 10, (3, False)),
        ({"status": "failed"}, 10, (0, False)),
        ({}, 5, (5, False)),
        ({}, 4, (4, True)),
    ):
        monkeypatch.setattr(search, "COUNT_MOST", most)
        body = client.get("/timer", query | {"count": "true", "limit": 1}).json()
        assert tuple(body["count"].values()) == expected, query


def test_retries_are_found_by_the_time_they_were_due(make_timer):
    now = timezone.now()
    again, waiting = make_timer(), make_timer()
    Delivery.objects.filter(timer=again).update(
        due_at=now - timedelta(hours=1), next_attempt_at=now + timedelta(days=40), attempts=1, started_at=now
    )
    assert pages(Filter(due_to=now)) == [again.pk]
    assert pages(Filter(due_to=now, due_from=now - timedelta(minutes=90), statuses=(State.SCHEDULED,))) == [again.pk]
    assert pages(Filter(due_to=now - timedelta(hours=2))) == []
    assert pages(Filter(due_from=now - timedelta(hours=2)), limit=1) == [waiting.pk, again.pk]
