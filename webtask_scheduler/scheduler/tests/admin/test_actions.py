"""The actions of the admin's lists: they ask, say how many, and replay."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.utils import timezone

from webtask_scheduler.access.models import AuditEntry
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.admin import actions, pages
from webtask_scheduler.scheduler.admin import lists as admin_lists
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, State
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.users.models import User

pytestmark = pytest.mark.django_db

TASKS = "/admin/django_celery_beat/periodictask/"
TIMERS = "/admin/scheduler/timer/"
DELIVERIES = "/admin/scheduler/delivery/"


@pytest.fixture
def failed(make_timer):
    """Return a function that stores a timer whose delivery failed."""

    def make(web_url="http://a.example/x", **fields):
        timer = make_timer(web_url, delay_seconds=-30, **fields)
        at = timezone.now()
        Delivery.objects.filter(timer=timer).update(state=State.FAILED, attempts=1, started_at=at, finished_at=at)
        return timer

    return make


def send(client, address, action, keys, **fields):
    data = {"action": action, "_selected_action": list(keys), **fields}
    answer = client.post(address, data, follow=True)
    assert answer.status_code == 200
    return answer


def said(answer):
    return [str(message) for message in answer.context["messages"]]


def states(*timers):
    return [Delivery.objects.filter(timer=timer).latest_promised().get().state for timer in timers]


@each("action", ["enable_tasks", "disable_tasks", "toggle_tasks", "run_tasks", "replay_tasks"])
def test_action_asks_with_count_and_names_before_it_is_done(admin_client, make_timer, action):
    timers = [make_timer("http://a.example/x", name=f"report <{number}>") for number in range(7)]
    keys = [timer.periodic_task_id for timer in timers]
    before = list(Delivery.objects.order_by("pk").values())
    answer = send(admin_client, TASKS, action, keys)
    text = answer.content.decode()
    assert "This is about 7 timers." in text
    assert text.count("report &lt;") == actions.EXAMPLES
    # What is confirmed is what was chosen.
    assert {f'name="_selected_action" value="{key}"' in text for key in keys} == {True}
    assert f'name="action" value="{action}"' in text
    assert list(Delivery.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("address", [TASKS, TIMERS, DELIVERIES])
def test_dead_letters_are_replayed_from_each_list(admin_client, admin_user, failed, make_timer, address):
    lost, live = failed(), make_timer()
    column = {TASKS: "periodic_task_id", TIMERS: "pk"}.get(address)
    keys = [getattr(one, column) if column else Delivery.objects.get(timer=one).pk for one in (lost, live)]
    action = "replay_tasks" if address == TASKS else "replay"
    answer = send(admin_client, address, action, keys, confirmed="yes")
    assert said(answer) == [
        "1 delivery is being replayed.",
        "1 was not replayed: it did not fail and was not missed, or is being replayed already.",
    ]
    assert states(lost, live) == [State.SCHEDULED, State.SCHEDULED]
    assert Delivery.objects.get(timer=lost).replayed_at is not None
    entry = AuditEntry.objects.get(action="timer.replayed")
    assert (entry.object_id, entry.user_id) == (str(lost.pk), admin_user.pk)


def test_replay_needs_the_right_to_change_timers(client, failed):
    user = User.objects.create_user("staff@example.com", "secret", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_timer", "view_delivery"]))
    client.force_login(user)
    timer = failed()
    for address, key in ((TIMERS, timer.pk), (DELIVERIES, Delivery.objects.get().pk)):
        assert "Replay selected" not in client.get(address).content.decode()
        send(client, address, "replay", [key], confirmed="yes")
    assert states(timer) == [State.FAILED]


def test_too_many_replays_at_once_are_refused(admin_client, failed, monkeypatch):
    monkeypatch.setattr(actions, "REPLAYED_AT_ONCE", 1)
    monkeypatch.setattr(pages, "DELIVERIES_AT_ONCE", 1)
    timers = [failed(), failed()]
    answer = send(admin_client, TIMERS, "replay", [timer.pk for timer in timers], confirmed="yes")
    assert said(answer) == ["Replay at most 1 at once, or by a bulk operation."]
    keys = Delivery.objects.values_list("pk", flat=True)
    assert "Replay at most 1 deliveries at once" in said(send(admin_client, DELIVERIES, "replay", keys))[0]
    assert states(*timers) == [State.FAILED] * 2


def test_all_of_a_list_that_is_cut_is_said_to_be_a_part_and_offered_as_a_whole(admin_client, failed, monkeypatch):
    monkeypatch.setattr(admin_lists, "SHOWN", 2)
    timers = [failed(f"http://a.example/{number}") for number in range(4)]
    other = failed("http://b.example/")
    address = f"{TASKS}?status=failed&host=a.example"
    keys = [timers[-1].periodic_task_id]
    asked = send(admin_client, address, "replay_tasks", keys, select_across="1")
    text = asked.content.decode()
    assert "This is about 2 timers." in text
    assert "More timers fit than the list shows." in text
    assert 'name="in_bulk"' in text

    begun = send(admin_client, address, "replay_tasks", keys, select_across="1", in_bulk="yes")
    operation = BulkOperation.objects.get()
    assert (operation.action, operation.filter) == ("replay", {"status": ["failed"], "host": "a.example"})
    assert begun.redirect_chain[-1][0] == f"/admin/scheduler/bulkoperation/{operation.pk}/change/"
    while services.step_bulk(operation):
        pass
    assert states(*timers, other) == [State.SCHEDULED] * 4 + [State.FAILED]


def test_part_of_a_list_that_is_cut_says_that_others_stay(admin_client, failed, monkeypatch):
    monkeypatch.setattr(admin_lists, "SHOWN", 2)
    timers = [failed() for _ in range(3)]
    keys = [timers[-1].periodic_task_id]
    answer = send(admin_client, f"{TASKS}?status=failed", "replay_tasks", keys, select_across="1", confirmed="yes")
    assert said(answer)[0].startswith("The list does not show all that fit")
    assert sorted(states(*timers)) == [State.FAILED, State.SCHEDULED, State.SCHEDULED]


def test_bulk_operation_is_not_offered_where_it_has_no_words_for_the_list(client, admin_client, failed, monkeypatch):
    monkeypatch.setattr(admin_lists, "SHOWN", 1)
    monkeypatch.setattr(admin_lists, "LISTED", 1)
    timers = [failed(), failed()]
    keys = [timers[0].periodic_task_id]
    for query in ("?status=failed&q=example", ""):
        text = send(admin_client, TASKS + query, "replay_tasks", keys, select_across="1").content.decode()
        assert "More timers fit" in text
        assert "in_bulk" not in text
    # Only the operation of somebody who may see and change all is for the timers of all owners.
    user = User.objects.create_user("staff@example.com", "secret", is_staff=True)
    codenames = ["view_periodictask", "change_periodictask"]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    text = send(client, f"{TASKS}?status=failed", "replay_tasks", keys, select_across="1", in_bulk="yes")
    assert "in_bulk" not in text.content.decode()
    assert not BulkOperation.objects.exists()
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_timer", "view_bulkoperation"]))
    client.force_login(User.objects.get(pk=user.pk))
    send(client, f"{TASKS}?status=failed", "replay_tasks", keys, select_across="1", in_bulk="yes")
    operation = BulkOperation.objects.get()
    assert (operation.owner, operation.everyone) == (user, True)


def test_bulk_filter_has_the_range_of_due_times(admin_client, failed, monkeypatch):
    monkeypatch.setattr(admin_lists, "SHOWN", 1)
    timers = [failed(), failed()]
    address = f"{TASKS}?status=failed&due=past-hour"
    send(admin_client, address, "replay_tasks", [timers[0].periodic_task_id], select_across="1", in_bulk="yes")
    stored = BulkOperation.objects.get().filter
    assert set(stored) == {"status", "due_from", "due_to"}
    assert stored["due_from"] < stored["due_to"] <= f"{timezone.now() + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}Z"
