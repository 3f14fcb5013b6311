"""The page of a delivery: where its time went, what was sent and answered, and what may be done."""

from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db.models import Avg, F
from django.utils import timezone

from webtask_scheduler.dashboard.templatetags.dash import milliseconds
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer, new_id
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import call_all

pytestmark = pytest.mark.django_db
ONCE = {"retry": {"max_attempts": 1}}


def path_of(timer, number=1, more=""):
    return f"/timers/{timer.pk}/deliveries/{number}{more}"


def context_of(client, timer, more=""):
    answer = client.get(path_of(timer) + more, headers={"accept": "text/html"})
    assert answer.status_code == 200
    return answer.context


def labels_of(falls):
    return [(fall.span.label, fall.span.note) for fall in falls]


def test_stages_of_an_attempt_are_bars_on_one_axis(client, make_timer, receiver, django_assert_max_num_queries):
    timer = make_timer(receiver.url("/"), delay_seconds=-1)
    call_all(receiver)
    # In microseconds from the start, which was a second after its moment.
    attempt = Attempt.objects.get()
    late = attempt.lateness_ms
    stages = [-late * 1000 - 700_000, -late * 1000 + 1000, -20_000, 5_000, 8_000, None, 30_000]
    Attempt.objects.update(stages=[None if at is None else round(at) for at in stages], duration_ms=40)
    with django_assert_max_num_queries(8):
        shown = context_of(client, timer)
    assert labels_of(shown["stages"]) == [
        ("Waits to be sent", ""),
        ("In the broker", ""),
        ("Waits for a place", ""),
        ("Looks up the name", ""),
        ("Connects", ""),
        ("Waits for the answer", ""),
        ("Reads the answer", ""),
    ]
    assert [round(fall.took_ms) for fall in shown["stages"]][2:] == [20, 5, 3, 22, 10]
    starts = [fall.x for fall in shown["stages"]]
    assert starts == sorted(starts)
    assert round(shown["ahead_ms"]) == 700
    # Late by more than a tenth of a second: that is a line of its own, with what it waited for.
    assert labels_of(shown["falls"]) == [("Late", "it lay in the broker"), ("Attempt 1", "200")]


def test_waits_say_what_they_are_for(client, make_timer, receiver):
    retry = {"min_seconds": 5, "jitter": 0, "max_attempts": 4}
    timer = make_timer(receiver.url("/retry-after/60"), delay_seconds=-1, options={"retry": retry})
    call_all(receiver)
    run(error="interrupted")
    put_back(timer, 0.0)
    run(status_code=500, error="status")
    put_back(timer, 0.0)
    run(status_code=500, error="status")
    first, second, third = Attempt.objects.order_by("number")
    base = Delivery.objects.get().due_at
    for attempt, begun in ((first, 0), (second, 60), (third, 60.1)):
        at = base + timedelta(seconds=begun)
        Attempt.objects.filter(pk=attempt.pk).update(meant_for=at, started_at=at, duration_ms=0)
    Attempt.objects.filter(pk=second.pk).update(error="interrupted", status_code=None)
    waits = labels_of(context_of(client, timer)["falls"])
    assert [note for label, note in waits if label == "Wait"] == [
        "longer than the backoff: the answer asked for it (Retry-After)",
        "made again without a backoff",
    ]
    Attempt.objects.filter(pk=second.pk).update(
        error="status", status_code=500, meant_for=F("meant_for") - timedelta(seconds=55),
        started_at=F("started_at") - timedelta(seconds=55),
    )  # fmt: skip
    assert ("Wait", "backoff of 5 s") in labels_of(context_of(client, timer)["falls"])


def test_stop_of_calls_explains_a_late_attempt(client, make_timer, receiver):
    timer = make_timer(receiver.url("/"), delay_seconds=-30)
    services.stop_calls(host=timer.host, reason="maintenance")
    services.resume_calls(host=timer.host)
    call_all(receiver)
    Attempt.objects.update(started_at=timezone.now() + timedelta(seconds=1))
    assert ("Late", "calls were stopped: maintenance") in labels_of(context_of(client, timer)["falls"])


def test_attempts_without_stages_are_one_bar(client, make_timer):
    timer = make_timer(delay_seconds=-0.01)
    run()
    shown = context_of(client, timer)
    assert labels_of(shown["stages"])[-1] == ("The call", "")
    assert "were not recorded" in client.get(path_of(timer)).content.decode()
    waiting = make_timer()
    assert "No attempt yet." in client.get(path_of(waiting)).content.decode()


def test_request_is_what_the_receiver_got(client, make_timer, receiver):
    options = {"method": "PUT", "headers": {"X-Key": "hush"}, "body": {"a": 1}}
    timer = make_timer(receiver.url("/echo"), delay_seconds=-1, options=options)
    (call,) = call_all(receiver)
    shown = context_of(client, timer)
    sent = shown["sent"]
    ours = {name.lower(): value for name, value in sent["headers"].items()}
    got = {name.lower(): value for name, value in call.headers.items()}
    assert ours.pop("x-key") == "***"
    assert (sent["method"], sent["body"].encode()) == (call.method, call.body)
    assert {name: got[name] for name in ours} == ours
    # What is left are those of HTTP itself.
    assert got.keys() - ours.keys() == {
        *("host", "user-agent", "accept", "accept-encoding", "connection", "content-length", "x-key"),
    }
    page = client.get(path_of(timer)).content.decode()
    assert "X-Key: ***" in page
    assert f"curl -X PUT {timer.web_url}" in page.replace("&#x27;", "'")


def test_of_a_long_request_the_pages_show_the_beginning(client, make_timer, receiver):
    timer = make_timer(receiver.url(), delay_seconds=-1, options={"body": "a" * 200_000, "metadata": {"b": "b" * 9000}})
    call_all(receiver)
    assert len(receiver.calls[0].body) > 190_000
    for path in (f"/timers/{timer.pk}", path_of(timer)):
        page = client.get(path).content.decode()
        assert len(page) < 60_000, path
        assert "a" * 1900 in page
        assert "characters)" in page
    assert f"GET /timer/{timer.pk}" in client.get(f"/timers/{timer.pk}").content.decode()
    assert len(client.get(f"/timer/{timer.pk}").json()["body"]) == 200_000


def test_sensitive_timer_shows_what_the_api_shows(client, make_timer, receiver):
    timer = make_timer(receiver.url("/echo"), delay_seconds=-1, options={"body": "very secret", "sensitive": True})
    call_all(receiver)
    page = client.get(path_of(timer)).content.decode()
    assert "very secret" not in page
    assert "answers to it are not kept" in page
    assert "very secret" not in client.get(path_of(timer, more="?as=json")).content.decode()


def test_delivery_as_json_is_that_of_the_api(client, make_timer, receiver):
    timer = make_timer(receiver.url("/status/500"), delay_seconds=-1, options=ONCE)
    call_all(receiver)
    answer = client.get(path_of(timer, more="?as=json"))
    assert answer["Content-Disposition"].startswith('attachment; filename="delivery-')
    assert answer.json() == {
        "delivery": client.get(f"/timer/{timer.pk}/deliveries").json()["deliveries"][0],
        "attempts": client.get(f"/timer/{timer.pk}/attempts").json()["attempts"],
    }


def test_dead_letter_is_replayed_from_its_page(client, make_timer, receiver):
    timer = make_timer(receiver.url("/status/500"), delay_seconds=-1, options=ONCE)
    call_all(receiver)
    shown = context_of(client, timer)
    assert shown["may_replay"]
    assert "not with a success" in str(shown["advice"])
    assert client.post(path_of(timer, more="/replay"))["Location"] == path_of(timer)
    assert Delivery.objects.get().state == State.SCHEDULED
    call_all(receiver)
    assert ("Wait", "replayed") in labels_of(context_of(client, timer)["falls"])
    assert context_of(client, timer, "?attempt=1")["chosen"].number == 1
    # What waits is not replayed.
    waiting = make_timer()
    assert client.post(path_of(waiting, more="/replay")).status_code == 302
    assert not context_of(client, waiting)["may_replay"]


def test_delivery_says_whether_it_may_have_arrived_twice(client, make_timer):
    timer = make_timer(delay_seconds=-1, options={"retry": {"min_seconds": 0, "jitter": 0}})
    for error, said in (
        ("connect", "None: nothing was sent"),
        ("timeout", "None so far: one attempt was sent"),
        ("status", "Possible: an attempt ended without an answer"),
    ):
        run(error=error, status_code=500 if error == "status" else None)
        put_back(timer, 0.0)
        assert context_of(client, timer)["duplicates"].startswith(said), error


def test_delivery_of_another_owner_is_not_there(client, make_timer, user, settings):
    timer = make_timer(owner_id=user.pk, delay_seconds=-1, options=ONCE)
    run(error="connect", status_code=None)
    settings.WEBTASK_API_AUTH = "key"
    client.force_login(get_user_model().objects.create_user("other@example.com", "x"))
    for more in ("", "?as=json", "?live=1"):
        assert client.get(path_of(timer, more=more)).status_code == 404
    assert client.post(path_of(timer, more="/replay")).status_code == 404
    client.force_login(user)
    assert client.get(path_of(timer)).status_code == 200
    for number in (2, 2**40):
        assert client.get(path_of(timer, number)).status_code == 404
    assert client.get(path_of(timer, more="?attempt=99999999")).status_code == 200


def test_page_of_a_waiting_delivery_asks_for_news(client, make_timer):
    timer = make_timer()
    seen = client.get(path_of(timer, more="?live=1"))["X-Seen"]
    assert client.get(path_of(timer, more=f"?live=1&seen={seen}")).status_code == 204
    put_back(timer)
    run()
    answer = client.get(path_of(timer, more=f"?live=1&seen={seen}"))
    assert (answer.status_code, "Succeeded" in answer.content.decode()) == (200, True)


def test_many_attempts_are_shown_from_both_ends(client, make_timer, django_assert_max_num_queries):
    timer = make_timer(delay_seconds=-1)
    run()
    found = Delivery.objects.get()
    at = Attempt.objects.get().started_at
    Attempt.objects.bulk_create(
        Attempt(delivery=found, number=number, meant_for=at, started_at=at, duration_ms=1, error="interrupted")
        for number in range(2, 101)
    )
    Delivery.objects.update(attempts=100)
    with django_assert_max_num_queries(8):
        shown = context_of(client, timer, "?attempt=50")
    assert [one.number for one in shown["attempts"]] == [*range(1, 6), 50, *range(76, 101)]
    assert shown["chosen"].number == 50
    assert "69 attempts between are not shown." in client.get(path_of(timer, more="?attempt=50")).content.decode()


def test_streak_of_a_timer_links_its_deliveries(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    run()
    for _ in range(2):
        run_again(timer)
    page = client.get(f"/timers/{timer.pk}").content.decode()
    for number in (1, 2, 3):
        assert f'<a href="{path_of(timer, number)}"><rect' in page
    assert "100 % succeeded" in page
    took = Attempt.objects.aggregate(mean=Avg("duration_ms"))["mean"]
    assert f'calls took on average: <span dir="ltr">{milliseconds(took)}</span>' in page


def test_deliveries_of_a_timer_go_on_from_page_to_page(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    run()
    now = timezone.now()
    Delivery.objects.bulk_create(
        Delivery(
            id=new_id(), timer=timer, number=number, occurrence=number, state=State.SUCCEEDED, due_at=now,
            next_attempt_at=now, started_at=now, finished_at=now, attempts=1, replayed_at=now if number == 45 else None,
        )
        for number in range(2, 46)
    )  # fmt: skip
    page = client.get(f"/timers/{timer.pk}")
    assert ">Replayed</span>" in page.content.decode()
    seen, pages = [], 0
    while True:
        seen += [one.delivery.number for one in page.context["deliveries"]]
        pages += 1
        older = page.context["older"]
        if not older:
            break
        assert f'href="?before={older}#deliveries"' in page.content.decode()
        # What is drawn and what may be done stay those of the latest; and the news are of this page.
        page = client.get(f"/timers/{timer.pk}?before={older}")
        assert len(page.context["streak"]) == 45
        assert f"live=1&amp;before={older}" in page.content.decode()
    assert (seen, pages) == (list(range(45, 0, -1)), 3)
    for bad in ("x", "-1", "0", "9" * 10, "9" * 40, "1\0"):
        page = client.get(f"/timers/{timer.pk}", {"before": bad})
        assert page.context["deliveries"][0].delivery.number == 45, bad


def test_page_of_a_timer_leads_to_what_is_around_it(client, make_timer, receiver, django_assert_max_num_queries):
    given = {"callback_url": receiver.url("/told"), "labels": {"team": "billing"}, "request_id": "order-1"}
    timer = make_timer(receiver.url("/"), delay_seconds=-1, options=given)
    call_all(receiver)
    callback = Timer.objects.exclude(pk=timer.pk).get()
    with django_assert_max_num_queries(10):
        text = client.get(f"/timers/{timer.pk}").content.decode()
    for link in (
        f"/timers/{callback.pk}",
        "/timers?label=team=billing",
        f"/admin/django_celery_beat/periodictask/{timer.periodic_task_id}/change/",
    ):
        assert f'href="{link}"' in text, link
    assert ">order-1</code>" in text
    reported = f'href="/timers/{timer.pk}/deliveries/1"'
    assert reported in client.get(f"/timers/{callback.pk}").content.decode()
    # What it reports may be pruned before.
    Attempt.objects.filter(delivery__timer=timer).delete()
    Delivery.objects.filter(timer=timer).delete()
    text = client.get(f"/timers/{callback.pk}").content.decode()
    assert reported not in text
    assert str(callback.outcome_of) in text


def run_again(timer):
    """Add a delivery that is called at once, whatever became of the timer."""
    last = Delivery.objects.filter(timer=timer).order_by("-number").first()
    now = timezone.now() - timedelta(seconds=1)
    made = Delivery.objects.create(
        timer=timer, number=last.number + 1, extra=True, flow=last.flow, due_at=now, next_attempt_at=now
    )
    run()
    assert Delivery.objects.get(pk=made.pk).state == State.SUCCEEDED


def test_headers_of_the_answer_and_the_process_are_shown(client, make_timer, receiver):
    headers = {"X-Why": "<b>full</b>", "Set-Cookie": "a=b"}
    timer = make_timer(receiver.answer(503, headers), delay_seconds=-1, options=ONCE)
    call_all(receiver)
    page = client.get(path_of(timer)).content.decode()
    assert "x-why: &lt;b&gt;full&lt;/b&gt;\nset-cookie: ***\n" in page
    attempt = Attempt.objects.get()
    assert f">{attempt.worker}</code>" in page
    shown = client.get(path_of(timer, more="?as=json")).json()["attempts"][0]
    assert shown["response_headers"]["set-cookie"] == "***"
    for kept, said in ((None, "They were not kept."), ("", "had no headers"), ("…: 3", "3 other headers")):
        Attempt.objects.update(headers=kept)
        assert said in client.get(path_of(timer)).content.decode()
    Attempt.objects.update(headers=None, error="", status_code=200)
    assert "WEBTASK_KEEP_HEADERS" in client.get(path_of(timer)).content.decode()


def test_lost_leases_are_counted(client, make_timer):
    timer = make_timer(delay_seconds=-1)
    assert context_of(client, timer)["losses"] == "None: it was not called yet."
    run(error="lost")
    put_back(timer, 0.0)
    run()
    assert context_of(client, timer)["losses"].startswith("1: the process")
    Attempt.objects.update(error="")
    assert context_of(client, timer)["losses"].startswith("None: each")
    Delivery.objects.update(attempts=99)
    assert context_of(client, timer)["losses"] == "None in the attempts that are shown here."
