"""A timer that calls this service, itself or through others, comes to an end."""

import time

import pytest

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery, State, Timer
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import URL, call_all, create, path, post, send, stored
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

db = pytest.mark.django_db

OURS = {"webtask-timer-id": "01a208fa-e8fb-7670-94ef-a8fa0c17a138"}
DEEP = OURS | {"webtask-depth": "1"}
ONE = {"seconds": 60, "web_url": URL}


def failed(client):
    timer = create(client, retry={"max_attempts": 1})
    put_back(timer["task_id"])
    run(status_code=500, error="status")
    return timer


def refused(answer, status, words):
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"]


# Runs


@db
@each("how", ["cancelled", "succeeded", "failed"])
def test_run_of_a_timer_that_has_ended_is_refused_with_what_to_do(client, how):
    timer = failed(client) if how == "failed" else create(client)
    if how == "cancelled":
        client.delete(path(timer))
    elif how == "succeeded":
        put_back(timer["task_id"])
        run()
    assert client.get(path(timer)).json()["status"] == how
    refused(post(client, None, path(timer, "/run")), 409, "Make a new timer instead, or replay a delivery that failed.")
    assert Delivery.objects.count() == 1


@db
def test_open_runs_of_a_timer_are_bounded(client):
    timer = create(client)
    for _ in range(services.EXTRA_OPEN_MOST):
        assert post(client, None, path(timer, "/run")).status_code == 201
    refused(post(client, None, path(timer, "/run")), 409, "10 extra deliveries that have not ended")
    run()
    assert post(client, None, path(timer, "/run")).status_code == 201


@db
def test_cancel_ends_open_runs_too(client):
    timer = create(client)
    post(client, None, path(timer, "/run"))
    client.delete(path(timer))
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.CANCELLED}


@db
def test_replays_beside_the_promise_are_bounded_as_runs_are(client):
    timer = create(client, every="PT1M", retry={"max_attempts": 1})
    put_back(timer["task_id"])
    run(status_code=500, error="status")
    for _ in range(services.EXTRA_OPEN_MOST):
        services.run_now(timer["task_id"])
    refused(post(client, None, path(timer, "/replay")), 409, "have not ended")


@db
def test_running_many_says_which_have_ended_and_which_have_too_many_open_runs(client):
    plain, ended, full = create(client), failed(client), create(client)
    for _ in range(services.EXTRA_OPEN_MOST):
        services.run_now(full["task_id"])
    ids = [Timer.objects.get(pk=one["task_id"]).pk for one in (plain, ended, full)]
    assert services.run_many_now(ids) == services.Ran(done=1, ended=[ids[1]], full=[ids[2]])
    counts = [Delivery.objects.filter(timer=pk, extra=True).count() for pk in ids]
    assert counts == [1, 0, services.EXTRA_OPEN_MOST]


# Requests that a call led to


@db
def test_call_may_make_timers_that_make_none(client):
    for body, where in ((ONE, "/timer"), ({"timers": [ONE, ONE]}, "/timer/batch")):
        answer = post(client, body, where, **OURS)
        assert answer.status_code == 201, answer.content
        made = answer.json().get("timers", [answer.json()])
        assert {one["depth"] for one in made} == {1}
    before = stored()
    for headers in (DEEP, OURS | {"webtask-depth": "x"}, OURS | {"webtask-depth": "1, 1"}, {"webtask-depth": "1"}):
        for body, where in ((ONE, "/timer"), ({"timers": [ONE]}, "/timer/batch")):
            refused(post(client, body, where, **headers), 508, "a loop")
    assert stored() == before
    assert "depth" not in create(client)


@db
def test_call_may_not_run_replay_or_move_and_may_look_pause_and_cancel(client):
    timer, lost = create(client), failed(client)
    before = stored()
    refused(post(client, None, path(timer, "/run"), **OURS), 508, "a loop")
    refused(post(client, None, path(lost, "/replay"), **OURS), 508, "a loop")
    refused(post(client, None, path(timer, "/try-now"), **OURS), 508, "a loop")
    refused(post(client, {"action": "replay", "filter": {}}, "/timer/bulk", **OURS), 508, "a loop")
    second = {"due_from": "2026-01-05T15:00:00Z", "due_to": "2026-01-05T15:00:01Z"}
    spread = {"action": "spread", "filter": second, "spread_seconds": 60}
    refused(post(client, spread, "/timer/bulk", **OURS), 508, "a loop")
    refused(send(client, "PATCH", path(timer), {"seconds": 0}, **OURS), 508, "a loop")
    assert stored() == before
    assert send(client, "PATCH", path(timer), {"name": "x"}, **OURS).status_code == 200
    for action in ("/pause", "/resume"):
        assert post(client, None, path(timer, action), **OURS).status_code == 200
    assert post(client, {"action": "pause", "filter": {}}, "/timer/bulk", **OURS).status_code == 202
    assert client.get(path(timer), headers=OURS).status_code == 200
    assert client.delete(path(timer), headers=OURS).status_code == 200


@db
def test_depth_is_sent_with_each_call_and_callback_and_survives_an_edit(client, receiver):
    made = post(
        client, {"seconds": 0, "web_url": receiver.url("/one"), "callback_url": receiver.url("/back")}, **OURS
    ).json()
    edited = send(client, "PATCH", path(made), {"name": "x", "labels": {"a": "b"}}).json()
    assert (edited["depth"], edited["name"]) == (1, "x")
    (call,) = call_all(receiver)
    (back,) = call_all(receiver)
    assert (call.path, call.headers["webtask-depth"]) == ("/one", "1")
    assert (back.path, back.headers["webtask-depth"]) == ("/back", "1")
    create(client, seconds=0, web_url=receiver.url("/plain"))
    (plain,) = call_all(receiver)
    assert "webtask-depth" not in plain.headers


@db
def test_chain_of_receivers_that_pass_our_headers_on_ends(client, receiver):
    create(client, seconds=0, web_url=receiver.url("/chain"), callback_url=receiver.url("/chain"))
    arrived = 0
    for _ in range(20):
        calls = call_all(receiver)
        arrived += len(calls)
        for call in calls:
            ours = {name: value for name, value in call.headers.items() if name.startswith("webtask-")}
            post(
                client,
                {"seconds": 0, "web_url": receiver.url("/chain"), "callback_url": receiver.url("/chain")},
                **ours,
            )
    # The first and its callback; what these two made, with callbacks.
    assert arrived == 6


@db
@each("name", ["webtask-timer-id", "Webtask-Depth"])
def test_no_timer_may_set_or_hide_the_mark(client, name):
    assert post(client, ONE | {"headers": {name: "0"}}).status_code == 400
    assert post(client, ONE | {"depth": 0}).status_code == 400


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(120)
def test_timer_that_runs_itself_breeds_nothing_and_ends_when_cancelled():
    with running("web", "worker", "beat") as service:
        address = f"http://127.0.0.1:{service.port}/timer"
        again = {"success_statuses": [418], "retry": {"max_attempts": 100, "backoff": "fixed", "min_seconds": 0.1}}
        _, timer = service.post({"hours": 1, "web_url": address, **again})
        pk = Timer.objects.get(pk=timer["task_id"]).pk
        Timer.objects.filter(pk=pk).update(web_url=f"{address}/{pk}/run")
        # What a client of its own asks for is done, and does not multiply.
        for _ in range(3):
            assert service.post({}, f"/timer/{pk}/run")[0] == 201
        # No delivery comes of the calls to itself.
        time.sleep(5)
        assert Delivery.objects.filter(timer=pk).count() == 4
        attempts = sum(Delivery.objects.filter(timer=pk).values_list("attempts", flat=True))
        assert attempts >= 6
        services.cancel(pk)
        wait_until(lambda: not Delivery.objects.open().filter(timer=pk).exists())
        attempts = sum(Delivery.objects.filter(timer=pk).values_list("attempts", flat=True))
        # No attempt follows.
        time.sleep(2)
        assert sum(Delivery.objects.filter(timer=pk).values_list("attempts", flat=True)) == attempts
        assert service.post({}, f"/timer/{pk}/run")[0] == 409
