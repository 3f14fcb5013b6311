"""Dead letters: found by owner, dismissed, and replayed now or spread over time."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, State
from webtask_scheduler.scheduler.queue.attempts import record_missed
from webtask_scheduler.scheduler.services import flows, letters
from webtask_scheduler.scheduler.services.caller import OPERATOR, Caller
from webtask_scheduler.scheduler.tests.support.acting import begin, every, put_back, run
from webtask_scheduler.scheduler.tests.support.api import create, path, post
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.django_db

ONCE = {"retry": {"max_attempts": 1}}
NOBODY = Caller()


@pytest.fixture
def make_dead(make_timer):
    """Return a function that makes timers whose only call failed."""

    def make(count=1, **fields):
        timers = [make_timer(delay_seconds=-1, options=ONCE, **fields) for _ in range(count)]
        run(status_code=503, error="status")
        return timers

    return make


def ids_of(found):
    return {letter.timer_id for letter in found.found}


def test_owner_sees_own_dead_letters_beside_any_number_of_others(make_dead, user):
    (mine,) = make_dead(owner_id=user.pk)
    others = make_dead(3)
    nobodys = {timer.pk for timer in others}
    assert ids_of(letters.find(Caller(owner_id=user.pk))) == {mine.pk}
    assert ids_of(letters.find(NOBODY)) == nobodys
    assert ids_of(letters.find(OPERATOR)) == nobodys | {mine.pk}
    assert [letters.count(caller, most=100) for caller in (Caller(owner_id=user.pk), NOBODY, OPERATOR)] == [1, 3, 4]
    assert letters.count(OPERATOR, most=2) == 2
    (letter,) = letters.find(Caller(owner_id=user.pk)).found
    assert (letter.host, letter.state, letter.error, letter.status_code, letter.attempts) == (
        *("127.0.0.1:9", "failed", "status", 503, 1),
    )


def test_missed_and_extra_ones_are_dead_letters_too(make_timer):
    late = make_timer(delay_seconds=-100, max_lateness_seconds=1)
    record_missed(begin().missed)
    timer = make_timer(options=ONCE)
    services.run_now(timer.pk)
    run(status_code=500, error="status")
    assert ids_of(letters.find(NOBODY)) == {late.pk, timer.pk}


def test_look_is_bounded_and_a_host_with_many_does_not_hide_the_others(make_dead, monkeypatch):
    monkeypatch.setattr(letters, "FLOW_MOST", 3)
    make_dead(5, web_url="http://many.example/")
    make_dead(1, web_url="http://few.example/")
    found = letters.find(NOBODY)
    assert sorted(letter.host for letter in found.found) == ["few.example"] + ["many.example"] * 3
    assert found.is_cut
    groups = letters.groups(NOBODY)
    assert sorted((group.host, len(group.ended)) for group in groups.found) == [("few.example", 1), ("many.example", 3)]
    assert groups.is_cut
    monkeypatch.setattr(letters, "FLOW_MOST", 100)
    assert not letters.find(NOBODY).is_cut
    assert not letters.groups(NOBODY).is_cut
    monkeypatch.setattr(letters, "LETTERS_MOST", 4)
    assert letters.find(NOBODY).is_cut
    assert letters.groups(NOBODY).is_cut
    assert len(letters.find(NOBODY).found) == 4


def test_looks_are_along_the_index(make_dead):
    make_dead(30)
    values = {"flow": 10, "flows": 10, "most": 10, "everyone": False, "owner": None}
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduler_delivery, scheduler_timer, scheduler_attempt")
        cursor.execute("SET LOCAL enable_seqscan = off")
        for caller in (NOBODY, OPERATOR):
            for statement in (letters._LETTERS, letters._GROUPS, letters._COUNT):
                cursor.execute(f"EXPLAIN {statement}", flows.ranges_of(caller) | values)
                plan = "\n".join(row[0] for row in cursor.fetchall())
                assert "delivery_dead_idx" in plan
                assert "Seq Scan" not in plan


def test_dismissed_ones_are_counted_no_more_and_their_records_stay(make_dead):
    first, second = make_dead(2)
    assert services.dismiss(first.pk) == 1
    assert services.dismiss(first.pk) == 0
    assert ids_of(letters.find(NOBODY)) == {second.pk}
    delivery = Delivery.objects.get(timer=first)
    assert (delivery.state, delivery.dismissed_at is not None) == (State.FAILED, True)
    assert [entry.action for entry in AuditEntry.objects.filter(object_id=str(first.pk))] == ["timer.dismissed"]
    # Sent again it is one to look at again, should it fail.
    services.replay(first.pk)
    run(status_code=503, error="status")
    assert ids_of(letters.find(NOBODY)) == {first.pk, second.pk}


def test_what_did_not_fail_is_not_dismissed(make_timer, make_dead):
    timer = make_timer()
    with pytest.raises(services.NothingToReplayError):
        services.dismiss(timer.pk)
    (other,) = make_dead()
    with pytest.raises(services.NothingToReplayError):
        services.dismiss(timer.pk, delivery_id=Delivery.objects.get(timer=other).pk)
    ids = list(Delivery.objects.values_list("pk", flat=True))
    assert services.dismiss_many(ids).number == 1
    assert services.dismiss_many(ids).number == 0


def test_dismissal_is_undone_alone(make_dead, user):
    first, second, third = make_dead(3)
    services.dismiss(first.pk)
    of = Delivery.objects.filter(timer__in=[second.pk, third.pk])
    dismissal = services.dismiss_many(list(of.values_list("pk", flat=True)))
    assert services.restore(dismissal, caller=Caller(owner_id=user.pk)) == 0
    # Sent again it is to be looked at only if it fails again.
    services.replay(third.pk)
    assert services.restore(dismissal, caller=NOBODY) == 1
    assert ids_of(letters.find(NOBODY)) == {second.pk}
    assert services.restore(dismissal, caller=NOBODY) == 0
    entries = AuditEntry.objects.filter(object_id=str(second.pk)).order_by("id")
    assert [entry.action for entry in entries] == ["timer.dismissed", "timer.undismissed"]


def test_api_dismisses_one_or_all_of_a_timer(client):
    timer = create(client, every="PT1M", retry={"max_attempts": 1})
    assert post(client, None, path(timer, "/dismiss")).status_code == 409
    for _ in range(3):
        put_back(timer["task_id"])
        run(status_code=500, error="status")
    shown = client.get(path(timer, "/deliveries")).json()["deliveries"]
    one = {"delivery_id": shown[1]["delivery_id"]}
    assert post(client, one, path(timer, "/dismiss")).json() == {"dismissed": 1}
    assert post(client, one, path(timer, "/dismiss")).json() == {"dismissed": 0}
    assert post(client, {"delivery_id": shown[0]["delivery_id"]}, path(timer, "/dismiss")).status_code == 409
    assert post(client, None, path(timer, "/dismiss")).json() == {"dismissed": 2}
    shown = client.get(path(timer, "/deliveries")).json()["deliveries"]
    assert [bool(delivery["dismissed_at"]) for delivery in shown] == [False, True, True, True]


def finish(answer):
    assert answer.status_code == 202, answer.content
    operation = BulkOperation.objects.get(pk=answer.json()["bulk_id"])
    while services.step_bulk(operation):
        pass
    return operation


def test_bulk_operation_dismisses_what_fits(client, make_timer, make_dead):
    make_dead(2, web_url="http://a.example/")
    make_dead(1, web_url="http://b.example/")
    # It waits again; what failed before is dismissed all the same.
    recurring = make_timer("http://a.example/", recurrence=every(60.0), delay_seconds=None, options=ONCE)
    make_timer("http://a.example/")
    put_back(recurring.pk)
    run(status_code=500, error="status")
    body = {"action": "dismiss", "filter": {"host": "a.example"}}
    counted = finish(post(client, body | {"dry_run": True}, "/timer/bulk"))
    assert (counted.matched, counted.changed) == (3, 0)
    done = finish(post(client, body, "/timer/bulk"))
    assert (done.matched, done.changed, done.error) == (3, 3, "")
    assert [letter.host for letter in letters.find(NOBODY).found] == ["b.example"]


def test_worker_of_an_older_release_refuses_a_dismissal_rather_than_pause(client):
    answer = post(client, {"action": "dismiss", "filter": {}}, "/timer/bulk")
    # It pauses for an action that it does not know, and ends an operation with a filter that it does not know.
    assert "dead" in answer.json()["filter"]


def test_replays_are_spread_over_the_time_that_was_asked_for(client, make_dead):
    make_dead(40)
    answer = post(client, {"action": "replay", "filter": {}, "spread_seconds": 600}, "/timer/bulk")
    assert answer.json()["spread_seconds"] == 600
    began = timezone.now()
    assert finish(answer).changed == 40
    waits = sorted((at - began).total_seconds() for at in Delivery.objects.values_list("next_attempt_at", flat=True))
    assert waits[0] >= -1
    assert waits[-1] <= 601
    # Evenly but for chance: of forty, some in each third.
    assert waits[10] < 400
    assert waits[30] > 200
    facts.forget()
    # It is not said of them that a host keeps them waiting.
    Delivery.objects.update(next_attempt_at=timezone.now() + timedelta(seconds=5))
    assert facts.gather().put_off == 0
    timer = Delivery.objects.first().timer_id
    assert "tried again at next_attempt_at" in client.get(f"/timer/{timer}").json()["reason"]
    Delivery.objects.filter(timer=timer).update(attempts=0, attempts_before=0)
    assert client.get(f"/timer/{timer}").json()["reason"] == "It was replayed, and is called at next_attempt_at."
    Delivery.objects.filter(timer=timer).update(attempts=1, attempts_before=1)
    # One of them may be pulled forward.
    assert post(client, None, f"/timer/{timer}/try-now").status_code == 200
    assert len(run().started) == 1


@each(
    "body",
    [
        {"action": "pause", "spread_seconds": 60},
        {"action": "replay", "spread_seconds": 0},
        {"action": "replay", "spread_seconds": 86_401},
        {"action": "replay", "spread_seconds": None},
    ],
)
def test_spread_that_means_nothing_is_refused(client, body):
    answer = post(client, body | {"filter": {}}, "/timer/bulk")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["spread_seconds"]
    assert not BulkOperation.objects.exists()


def test_chosen_ones_are_replayed_and_what_cannot_be_is_counted(make_timer, make_dead):
    make_dead(3)
    timer = make_timer(recurrence=every(60.0), delay_seconds=None, options=ONCE)
    for _ in range(12):
        put_back(timer.pk)
        run(status_code=500, error="status")
    ids = [letter.delivery_id for letter in letters.find(NOBODY).found]
    assert len(ids) == 15
    # Of the recurring one as many as it may have beside its promise.
    assert services.replay_letters(ids) == (13, 2)
    assert Delivery.objects.filter(state=State.SCHEDULED, extra=True).count() == 10
    assert services.replay_letters(ids) == (0, 15)
    assert len(run().started) == 13


def test_replay_of_chosen_ones_is_bounded_by_its_transactions(make_dead, monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr(letters, "BATCH_ROWS", 20)
    make_dead(40)
    ids = [letter.delivery_id for letter in letters.find(NOBODY).found]
    # Two for each, its row and its moment in the stock tables, and a dozen for each transaction.
    with django_assert_max_num_queries(40 * 2 + 2 * 14):
        assert services.replay_letters(ids, spread_seconds=60).done == 40
