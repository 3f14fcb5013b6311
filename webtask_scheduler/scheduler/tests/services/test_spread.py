"""Very many that are due at one moment are spread over a longer time by a bulk operation: later, never earlier."""

from collections import Counter
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, State
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.services import many
from webtask_scheduler.scheduler.tests.support.acting import claim, put_back, run
from webtask_scheduler.scheduler.tests.support.api import bearer, fields_of, post
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import sweep

pytestmark = pytest.mark.django_db
URL = "http://a.example/"
SECOND = timedelta(seconds=1)


@pytest.fixture
def at():
    """Return a whole second in an hour."""
    return timezone.now().replace(microsecond=0) + timedelta(hours=1)


def make(count, due_at, **fields):
    new = [services.NewTimer(**({"web_url": URL, "due_at": due_at} | fields)) for _ in range(count)]
    return [one.timer_id for one in services.schedule(new)]


def body_of(at, *, seconds=600, length=SECOND, **more):
    filter_ = {"due_from": instant_text(at), "due_to": instant_text(at + length)}
    return {"action": "spread", "filter": filter_, "spread_seconds": seconds} | more


def finish(answer):
    assert answer.status_code == 202, answer.content
    operation = BulkOperation.objects.get(pk=answer.json()["bulk_id"])
    while services.step_bulk(operation):
        pass
    assert operation.error == ""
    return operation


def waiting(timer_ids):
    """Return when timers are due, by their ids."""
    return dict(Delivery.objects.filter(timer__in=timer_ids, finished_at=None).values_list("timer", "due_at"))


def test_herd_is_spread_and_what_else_is_due_stays(client, at, user):
    herd = make(80, at) + make(20, at + SECOND / 2)
    once = {"recurrence": None}
    others = [
        *make(1, at - SECOND / 1000, **once),
        *make(1, at + SECOND, **once),
        *make(1, at, owner_id=user.pk),
        *make(1, None, recurrence=Recurrence(every_seconds=3600.0, starts_at=at)),
    ]
    paused, claimed = make(2, at)
    services.pause(paused)
    Delivery.objects.filter(timer=claimed).update(
        state=State.CLAIMED, lease_token="0" * 32, lease_expires_at=timezone.now() + timedelta(hours=2)
    )
    others += [paused, claimed]
    before = waiting(herd + others)
    counted = finish(post(client, body_of(at, dry_run=True), "/timer/bulk"))
    assert (counted.matched, counted.changed) == (100, 0)
    assert waiting(herd + others) == before
    done = finish(post(client, body_of(at), "/timer/bulk"))
    now = waiting(herd)
    moved = {pk for pk in herd if now[pk] != before[pk]}
    assert (done.matched, done.changed) == (100, len(moved))
    # Of a hundred, one in six hundred stays in its second.
    assert len(moved) > 90
    assert all(at + SECOND <= now[pk] < at + timedelta(seconds=600) for pk in moved)
    # Evenly but for chance: of some hundred, more than 15 in each third.
    assert min(Counter((now[pk] - at) // timedelta(seconds=200) for pk in moved).values()) > 15
    assert waiting(others) == {pk: due for pk, due in before.items() if pk in set(others)}
    # What was promised before stays in its history, and the stock row shows what is promised now.
    pk = min(moved)
    history = Delivery.objects.filter(timer=pk).order_by("number")
    assert list(history.values_list("number", "occurrence", "state", "due_at")) == [
        (1, 1, "cancelled", before[pk]),
        (2, 1, "scheduled", now[pk]),
    ]
    shown = dict(PeriodicTask.objects.filter(timer__in=herd).values_list("timer", "clocked__clocked_time"))
    assert shown == now
    # No edit is seen in it.
    sweep()
    assert waiting(herd) == now
    assert client.get(f"/timer/{pk}").json()["due_at"] == instant_text(now[pk])


def test_none_is_moved_twice_however_long_the_time_is_and_however_many_pages(client, at, monkeypatch):
    monkeypatch.setattr(many, "BULK_ROWS", 7)
    made = [make(1, at + number * SECOND)[0] for number in range(60)]
    before = waiting(made)
    done = finish(post(client, body_of(at, seconds=90, length=60 * SECOND), "/timer/bulk"))
    now = waiting(made)
    moved = {pk for pk in made if now[pk] != before[pk]}
    assert (done.matched, done.changed) == (60, len(moved))
    # A third of them, but for chance.
    assert 5 <= len(moved) <= 40
    assert all(at + 60 * SECOND <= now[pk] <= at + 90 * SECOND for pk in moved)
    assert Delivery.objects.count() == 60 + len(moved)


def test_nothing_is_spread_into_the_past(client, make_timer):
    now = timezone.now().replace(microsecond=0)
    due = make(20, now - timedelta(seconds=100))
    done = finish(post(client, body_of(now - timedelta(seconds=101), seconds=50, length=2 * SECOND), "/timer/bulk"))
    assert (done.matched, done.changed) == (20, 0)
    assert set(waiting(due).values()) == {now - timedelta(seconds=100)}


def test_moved_timer_is_called_once_and_at_its_new_moment(at):
    (pk,) = make(1, at)
    assert services.spread_many([pk], begin=at, end=at + SECOND, spread_seconds=10**6) == 1
    # What was promised before is called no more.
    assert not claim(ahead_seconds=(at - timezone.now()).total_seconds() + 1).held
    put_back(pk)
    assert len(run().started) == 1
    assert list(Delivery.objects.order_by("number").values_list("state", flat=True)) == ["cancelled", "succeeded"]


def test_row_of_a_moment_that_several_tasks_share_is_not_moved_for_the_others(at):
    """As an operator may have set it: the one that is moved gets a row of its own."""
    first, second = make(2, at)
    shared = ClockedSchedule.objects.create(clocked_time=at)
    PeriodicTask.objects.filter(timer__in=[first, second]).update(clocked=shared)
    assert services.spread_many([first], begin=at, end=at + SECOND / 1000, spread_seconds=600) == 1
    shown = dict(PeriodicTask.objects.filter(timer__isnull=False).values_list("timer", "clocked__clocked_time"))
    assert shown == {first: waiting([first])[first], second: at}
    assert waiting([second]) == {second: at}


def test_timer_that_a_bare_update_disabled_is_not_moved(at):
    (pk,) = make(1, at)
    PeriodicTask.objects.update(enabled=False)
    assert services.spread_many([pk], begin=at, end=at + SECOND, spread_seconds=600) == 0


def test_statements_of_a_page_do_not_grow_with_its_timers(at):
    def statements(count):
        made = make(count, at)
        with CaptureQueriesContext(connection) as caught:
            assert services.spread_many(made, begin=at, end=at + SECOND / 1000, spread_seconds=600) == count
        return len(caught)

    assert statements(40) == statements(2) < 16


def test_spread_is_of_ones_own_unless_a_superuser_asks(client, user, django_user_model, settings, at):
    settings.WEBTASK_API_AUTH = "key"
    root = django_user_model.objects.create_superuser("root@example.com", "x")
    mine, theirs = make(20, at, owner_id=user.pk), make(20, at, owner_id=root.pk)
    assert finish(post(client, body_of(at), "/timer/bulk", **bearer(user))).matched == 20
    assert set(waiting(theirs).values()) == {at}
    # Those that were moved are due at another time.
    stayed = sum(due == at for due in waiting(mine).values())
    assert finish(post(client, body_of(at), "/timer/bulk", **bearer(root))).matched == 20 + stayed
    entry = AuditEntry.objects.filter(action="bulk.begun").latest("id")
    assert entry.after["spread_seconds"] == 600


def test_worker_of_an_older_release_refuses_a_spread_rather_than_pause(client, at):
    # As it does with a dismissal, and by a name that a release which knows that does not know.
    assert post(client, body_of(at), "/timer/bulk").json()["filter"].keys() == {"due_from", "due_to", "spread"}
    refused = post(client, body_of(at) | {"filter": {**body_of(at)["filter"], "spread": True}}, "/timer/bulk")
    assert fields_of(refused) == ["filter.spread"]


def without(name):
    return lambda body: body["filter"].pop(name)


@each(
    ("change", "field"),
    [
        (lambda body: body.pop("spread_seconds"), "spread_seconds"),
        (without("due_from"), "filter.due_from"),
        (without("due_to"), "filter.due_to"),
        (lambda body: body["filter"].update(due_to=body["filter"]["due_from"]), "filter.due_to"),
        (lambda body: body["filter"].update(status=["scheduled", "paused"]), "filter.status"),
        (lambda body: body["filter"].update(recurring=True), "filter.recurring"),
        (lambda body: body["filter"].update(retrying=True), "filter.retrying"),
        (lambda body: body["filter"].update(late=True), "filter.late"),
        # No longer than the time in which they are due.
        (lambda body: body.update(spread_seconds=1), "spread_seconds"),
        (lambda body: body.update(spread_seconds=86_401), "spread_seconds"),
    ],
)
def test_spread_that_means_nothing_is_refused(client, at, change, field):
    body = body_of(at)
    change(body)
    assert fields_of(post(client, body, "/timer/bulk")) == [field]
    assert not BulkOperation.objects.exists()
    # In other words the same is meant.
    if field == "filter.recurring":
        body["filter"].update(recurring=False, status=["scheduled"])
        assert post(client, body, "/timer/bulk").status_code == 202
