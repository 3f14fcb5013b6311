"""The id of a request: taken or made, answered, logged, stored with its timers, and sent with their calls."""

import json
import re

import pytest

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.showing import show_timer
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.models import Timer
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue.attempts import record_outcomes, start_attempts
from webtask_scheduler.scheduler.queue.claims import claim_timer
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS
from webtask_scheduler.telemetry import origin

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@each("given", ["a", "order-4711", "0af7651916cd43dd", "a.b_c:d/e+f=@g", "x" * 128])
def test_a_clients_id_is_kept(given):
    assert origin.read({"HTTP_X_REQUEST_ID": given}) == (given, "")


@each("given", ["", " ", "a b", "a\n", 'a"', "é", "x" * 129, "a;b", "<a>"])
def test_an_id_that_cannot_be_kept_is_replaced(given):
    made = origin.read({"HTTP_X_REQUEST_ID": given}).request_id
    assert re.fullmatch("[0-9a-f]{16}", made)
    assert made != origin.read({"HTTP_X_REQUEST_ID": given}).request_id


@each(
    "given",
    [
        TRACEPARENT.upper(),
        TRACEPARENT[:-1],
        TRACEPARENT + "-00",
        "01" + TRACEPARENT[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
def test_bad_trace_context_is_dropped(given):
    found = origin.read({"HTTP_TRACEPARENT": given})
    assert found.traceparent == ""
    assert re.fullmatch("[0-9a-f]{16}", found.request_id)


def test_trace_id_stands_for_an_id_that_is_missing():
    assert origin.read({"HTTP_TRACEPARENT": TRACEPARENT}) == ("0af7651916cd43dd8448eb211c80319c", TRACEPARENT)
    assert origin.read({"HTTP_TRACEPARENT": TRACEPARENT, "HTTP_X_REQUEST_ID": "a"}) == ("a", TRACEPARENT)


def post(client, body=None, **headers):
    body = {"seconds": 0, "web_url": "http://127.0.0.1:9/"} | (body or {})
    return client.post("/timer", json.dumps(body), content_type="application/json", headers=headers)


@pytest.mark.django_db
@each("path", ["/timer/x", "/nothing", "/healthz", "/admin/login/", "/api/schema"])
def test_each_answer_has_the_id(client, path):
    assert client.get(path, headers={"X-Request-ID": "abc"})["X-Request-ID"] == "abc"
    assert re.fullmatch("[0-9a-f]{16}", client.get(path)["X-Request-ID"])


@pytest.mark.django_db(transaction=True)
def test_created_timer_is_logged_with_host_and_id_once_it_is_committed(client, caplog):
    caplog.set_level("INFO")
    made = post(client, {"web_url": "http://u:p@a.example:81/x?y=z"}, **{"X-Request-ID": "abc"}).json()
    (record,) = [record for record in caplog.records if record.getMessage().startswith("timer_created ")]
    assert str(record.msg.fields["timer"]) == made["task_id"]
    assert record.msg.fields["host"] == "a.example:81"
    assert record.name == "webtask_scheduler.scheduler.services.creating"


@pytest.mark.django_db(transaction=True)
def test_batch_is_one_line(client, caplog):
    caplog.set_level("INFO")
    item = {"seconds": 60, "web_url": "http://a.example/"}
    made = client.post("/timer/batch", {"timers": [item] * 3}, content_type="application/json").json()["timers"]
    said = [record.msg for record in caplog.records if record.getMessage().startswith("timer")]
    assert [str(one) for one in said] == [
        f"timers_created timers=3 first={made[0]['task_id']} last={made[2]['task_id']}"
    ]


@pytest.mark.django_db(transaction=True)
def test_timer_that_is_rolled_back_is_not_logged(caplog):
    from django.db import transaction

    caplog.set_level("INFO")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        services.schedule([services.NewTimer(web_url="http://a.example/", delay_seconds=1)])
        _ = 1 / 0
    assert not caplog.records


def called(receiver, task_id):
    """Start, call and record a due timer as a worker does; return what the receiver got."""
    claim = claim_timer(task_id)
    batch = start_attempts([held.key for held in claim.held])
    client = Client(callers=1, user_agent="t", egress=EGRESS)
    outcomes = [call_url(call, client=client, timeout_seconds=5) for call in batch.started]
    assert record_outcomes(outcomes) == len(outcomes)
    return receiver.calls[-1]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "more", [{}, {"method": "GET", "headers": {"X-A": "b"}}, {"name": "n", "labels": {"a": "b"}, "metadata": 1}]
)
def test_id_and_trace_go_out_with_the_call_and_are_not_shown(client, receiver, caplog, more):
    caplog.set_level("INFO")
    answer = post(client, {"web_url": receiver.url("/x")} | more, **{"X-Request-ID": "abc", "traceparent": TRACEPARENT})
    made = answer.json()
    call = called(receiver, made["task_id"])
    assert call.headers["webtask-request-id"] == "abc"
    assert call.headers["traceparent"] == TRACEPARENT
    for body in (made, client.get(f"/timer/{made['task_id']}").json(), client.get("/timer").json()["timers"][0]):
        assert not {"request_id", "traceparent", "origin"} & body.keys()
        shown = more | {"headers": {"X-A": "***"}} if "headers" in more else more
        assert {name: body[name] for name in more} == shown
    # It is no option either: an edit can neither give nor lose it.
    assert (
        client.patch(f"/timer/{made['task_id']}", {"request_id": "x"}, content_type="application/json").status_code
        == 400
    )
    assert show_timer(made["task_id"])["status"] == "succeeded"


@pytest.mark.django_db(transaction=True)
def test_id_survives_an_edit_and_goes_to_the_callback(client, receiver):
    made = post(
        client,
        {"seconds": 60, "web_url": receiver.url("/x"), "callback_url": receiver.url("/back")},
        **{"X-Request-ID": "abc"},
    ).json()
    edit = client.patch(f"/timer/{made['task_id']}", {"seconds": 0, "name": "n"}, content_type="application/json")
    assert edit.status_code == 200
    assert "request_id" not in edit.json()
    assert called(receiver, made["task_id"]).headers["webtask-request-id"] == "abc"
    back = Timer.objects.get(outcome_of__isnull=False)
    call = called(receiver, back.pk)
    assert (call.path, call.headers["webtask-request-id"]) == ("/back", "abc")


@pytest.mark.django_db(transaction=True)
def test_timers_own_traceparent_is_sent_as_it_is(client, receiver):
    own = TRACEPARENT.replace("01", "00")
    body = {"web_url": receiver.url("/x"), "headers": {"Traceparent": own}}
    made = post(client, body, traceparent=TRACEPARENT).json()
    headers = {name.lower(): value for name, value in called(receiver, made["task_id"]).headers.items()}
    assert headers["traceparent"] == own


@pytest.mark.django_db(transaction=True)
def test_timer_that_no_request_made_has_none(make_timer, receiver):
    timer = make_timer(web_url=receiver.url("/x"), delay_seconds=-1)
    assert timer.options is None
    call = called(receiver, timer.pk)
    assert not {"webtask-request-id", "traceparent"} & {name.lower() for name in call.headers}


@pytest.mark.django_db(transaction=True)
def test_admin_shows_it_not_among_the_options(client, admin_client):
    made = post(client).json()
    page = admin_client.get(f"/admin/scheduler/timer/{made['task_id']}/change/").content.decode()
    assert "a plain POST, with the default retries" in page
