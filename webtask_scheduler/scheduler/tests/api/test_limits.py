"""What an owner may do and have, at the API's doors, with the real Redis and PostgreSQL."""

import json
import re
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from webtask_scheduler.access import limits
from webtask_scheduler.access.models import AuditEntry, Limit
from webtask_scheduler.scheduler import services, tasks
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, Timer
from webtask_scheduler.scheduler.rules import retry
from webtask_scheduler.scheduler.rules.recurrence import moments_a_second
from webtask_scheduler.scheduler.services import quotas
from webtask_scheduler.scheduler.tests.support.acting import put_back, run
from webtask_scheduler.scheduler.tests.support.api import URL, bearer, create, fields_of, path, post, send
from webtask_scheduler.scheduler.tests.support.cases import each

pytestmark = pytest.mark.usefixtures("empty_store")
db = pytest.mark.django_db
threaded = pytest.mark.django_db(transaction=True)
CLIENTS = 12


@pytest.fixture
def owner(client, user):
    client.force_login(user)
    return client


def refused(answer, setting, status=409):
    """Check that a problem says which limit was met, and what to do."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert setting in answer.json()["detail"]
    return answer


def at_once(session, make, *, times):
    """Send requests from twelve clients at once, each with connections of its own; return the answers' statuses."""

    def one(number):
        client = Client()
        client.cookies = session.cookies
        try:
            return make(client, number).status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(CLIENTS) as threads:
        return list(threads.map(one, range(times)))


# Requests a second


@db
def test_without_a_limit_no_answer_speaks_of_one_and_redis_is_not_asked(client, settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    limits.forget()
    answer = post(client, {"seconds": 60, "web_url": URL})
    assert answer.status_code == 201
    assert "RateLimit" not in answer
    assert limits._store()._client is None


@db
def test_answers_say_what_is_left_and_a_request_too_many_is_told_when_to_come_back(owner, settings):
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.5
    for left in range(4, -1, -1):
        answer = owner.get("/timer")
        assert answer.status_code == 200
        assert answer["RateLimit-Policy"] == '"requests";q=5;w=10'
        assert re.fullmatch(rf'"requests";r={left};t=\d+', answer["RateLimit"])
    answer = refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_REQUESTS_PER_SECOND", 429)
    assert answer["Retry-After"] in ("1", "2")
    assert answer["RateLimit"].startswith('"requests";r=0;')
    assert "0.5 requests a second" in answer.json()["detail"]
    assert not Timer.objects.exists()


@db
def test_owners_and_addresses_have_buckets_of_their_own(client, settings, user):
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.1
    other = get_user_model().objects.create_user("other@example.com", "secret")
    assert [client.get("/timer").status_code for _ in range(2)] == [200, 429]
    assert client.get("/timer", REMOTE_ADDR="192.0.2.9").status_code == 200
    for one in (user, other):
        client.force_login(one)
        assert [client.get("/timer").status_code for _ in range(2)] == [200, 429]


@db
def test_probes_metrics_and_pages_have_no_limit(client, settings):
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.1
    for address in ("/healthz", "/metrics", "/api/docs"):
        assert [client.get(address).status_code for _ in range(3)] == [200] * 3


@threaded
def test_twelve_clients_at_once_get_what_the_bucket_holds(owner, settings):
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 1
    begun = time.monotonic()
    statuses = at_once(owner, lambda client, _: client.get("/timer?limit=1"), times=60)
    assert 10 <= statuses.count(200) <= 11 + time.monotonic() - begun
    assert set(statuses) == {200, 429}


@db
def test_without_redis_requests_and_timers_are_let_through(owner, settings, caplog, monkeypatch):
    monkeypatch.setattr(limits, "TIMEOUT_SECONDS", 0.25)
    settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 0.1
    settings.WEBTASK_LIMIT_TIMERS_WAITING = 1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        limits.forget()
        answers = [post(owner, {"seconds": 60, "web_url": URL}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [201] * 5
    assert "RateLimit" not in answers[0]
    assert sum("limits_lifted" in record.message for record in caplog.records) == 1


# Wrong keys

WRONG = {"authorization": f"Bearer wts_live_{'a' * 40}"}


@db
def test_wrong_keys_from_one_address_are_soon_answered_429_and_right_ones_work(client, user, settings, caplog):
    settings.WEBTASK_API_AUTH = "key"
    settings.WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE = 3
    settings.WEBTASK_PROXIES = 1

    def ask(headers, address="192.0.2.7", *, proxy="10.0.0.1"):
        # What a client writes in front is not believed.
        forwarded = f"198.51.100.{len(asked)}, {address}"
        asked.append(client.get("/timer", headers=headers | {"x-forwarded-for": forwarded}, REMOTE_ADDR=proxy))
        return asked[-1].status_code

    asked = []
    begun = time.monotonic()
    # What is no key at all counts too, and a revoked one.
    assert [ask(headers) for headers in (WRONG, {"authorization": "Bearer guess"}, WRONG)] == [401] * 3
    assert ask(WRONG) == 429
    answer = refused(asked[-1], "WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE", 429)
    assert 1 <= int(answer["Retry-After"]) <= 20
    assert [line.message for line in caplog.records if "keys_throttled" in line.message] == [
        "keys_throttled address=192.0.2.7 limit=3"
    ]
    # A right key works from there all the same, no key is told so, and other addresses begin anew.
    assert ask(bearer(user)) == 200
    assert ask({}) == 401
    assert ask(WRONG, "192.0.2.8") == 401
    assert ask(WRONG) == 429
    # One network of IPv6 is one client.
    assert [ask(WRONG, f"2001:db8:1:2::{number}") for number in range(4)] == [401] * 3 + [429]
    assert ask(WRONG, "2001:db8:1:3::1") == 401
    assert time.monotonic() - begun < 20


@db
def test_wrong_keys_have_no_limit_where_none_is_set_nor_without_redis(client, settings, monkeypatch):
    monkeypatch.setattr(limits, "TIMEOUT_SECONDS", 0.25)
    settings.WEBTASK_API_AUTH = "key"
    assert {client.get("/timer", headers=WRONG).status_code for _ in range(5)} == {401}
    settings.WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE = 1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        limits.forget()
        assert {client.get("/timer", headers=WRONG).status_code for _ in range(5)} == {401}


# Timers that wait


@db
def test_timers_beyond_the_limit_are_refused_and_nothing_is_stored(owner, settings):
    settings.WEBTASK_LIMIT_TIMERS_WAITING = 3
    timers = [create(owner) for _ in range(3)]
    refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    batch = {"timers": [{"seconds": 60, "web_url": URL}] * 2}
    refused(post(owner, batch, "/timer/batch"), "WEBTASK_LIMIT_TIMERS_WAITING")
    assert Timer.objects.count() == 3
    # Paused ones take room too: they are stored as long.
    assert post(owner, None, path(timers[0], "/pause")).status_code == 200
    settle()
    refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    assert owner.delete(path(timers[1])).status_code == 200
    settle()
    create(owner)
    assert Timer.objects.count() == 4


def settle():
    """Let all that was reserved be settled, and the next refusal count anew."""
    with redis.Redis.from_url(settings.REDIS_URL) as broker:
        for key in broker.scan_iter("webtask_scheduler:limit:*"):
            if broker.type(key) == b"hash":
                for name in ("at", "base_at", "last_at", "mark_at"):
                    value = broker.hget(key, name)
                    if value is not None:
                        broker.hset(key, name, float(value) - 10)
    limits._spare.cache_clear()


@db
def test_other_owners_and_operators_have_room_of_their_own(owner, client, settings, make_timer):
    settings.WEBTASK_LIMIT_TIMERS_WAITING = 1
    create(owner)
    refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    create(Client())
    # Code of the same project asks no limit.
    make_timer()
    assert Timer.objects.count() == 3


@db
def test_timers_made_before_the_limit_are_counted_by_owner_in_all_lanes(owner, user, make_timer):
    for number in range(70):
        make_timer(f"http://h{number}.example/", owner_id=user.pk)
    make_timer()
    other = get_user_model().objects.create_user("other@example.com", "secret")
    make_timer(owner_id=other.pk)
    services.pause(Timer.objects.filter(owner=user).first().pk)
    assert quotas.count_waiting(user.pk, most=1000) == 70
    assert quotas.count_waiting(user.pk, most=10) == 10
    assert quotas.count_waiting(None, most=1000) == 1
    assert quotas.count_waiting(other.pk, most=1000) == 1


@db
def test_count_of_waiting_timers_reads_indexes(sql):
    users = get_user_model()
    users.objects.bulk_create(users(pk=900 + number, email=f"{number}@example.com") for number in range(50))
    sql(
        "INSERT INTO scheduler_timer (id, owner_id, web_url, host, created_at, name, cron, timezone)"
        " SELECT gen_random_uuid(), 900 + n %% 50, 'http://h/', 'h' || n %% 300, now(), '',"
        " CASE WHEN n %% 4 = 0 THEN '* * * * *' ELSE '' END, CASE WHEN n %% 4 = 0 THEN 'UTC' ELSE '' END"
        " FROM generate_series(1, 20000) n"
    )
    sql(
        "INSERT INTO scheduler_delivery (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state,"
        " attempts, attempts_before) SELECT gen_random_uuid(), id, flow, 1, 1, false, now(), now(), 'scheduled', 0, 0"
        " FROM scheduler_timer"
    )
    sql("ANALYZE scheduler_delivery, scheduler_timer")
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + quotas._WAITING, {"lanes": 64, "owner": 907, "most": 1001})
        plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "delivery_flow_idx" in plan
        assert "Seq Scan" not in plan
        cursor.execute("EXPLAIN " + quotas._RECURRING, [907])
        assert "timer_owner_recurring_idx" in "\n".join(row[0] for row in cursor.fetchall())
        # The list of recurring timers goes on to read them in its own order.
        cursor.execute(
            "EXPLAIN SELECT id FROM scheduler_timer WHERE cron <> '' OR every_seconds IS NOT NULL"
            " ORDER BY id DESC LIMIT 101"
        )
        assert "timer_recurring_idx" in cursor.fetchall()[1][0]
    assert quotas.count_waiting(907, most=1001) == 400


@threaded
def test_twelve_clients_at_once_do_not_pass_the_limit(owner, settings):
    settings.WEBTASK_LIMIT_TIMERS_WAITING = 40

    def make(client, number):
        if number % 4:
            return post(client, {"seconds": 60, "web_url": URL})
        return post(client, {"timers": [{"seconds": 60, "web_url": URL}] * 3}, "/timer/batch")

    statuses = at_once(owner, make, times=60)
    assert set(statuses) == {201, 409}
    # After the last single one, a batch of three may not have fitted any more.
    assert Timer.objects.count() in (38, 39, 40)


@db
def test_creation_under_limits_costs_no_statement_more(owner, settings):
    body = {"seconds": 60, "web_url": URL}
    post(owner, body)

    def statements():
        with CaptureQueriesContext(connection) as queries:
            assert post(owner, body).status_code == 201
        return [query["sql"].split()[0] for query in queries]

    without = statements()
    settings.WEBTASK_LIMIT_TIMERS_WAITING, settings.WEBTASK_LIMIT_REQUESTS_PER_SECOND = 1000, 100
    settings.WEBTASK_LIMIT_RECURRING_PER_SECOND = 10
    # The first is counted.
    assert len(statements()) == len(without) + 1
    assert statements() == without


# The rate of recurring timers


@each(
    ("cron", "a_day"),
    [("* * * * *", 1440), ("*/5 * * * *", 288), ("0 9 * * 1-5", 1), ("0 9-17 1 * *", 9), ("0 0 L * *", 1)],
)
def test_cron_has_a_rate(cron, a_day):
    assert moments_a_second(cron) == pytest.approx(a_day / 86_400)


@db
def test_recurring_timers_of_one_owner_share_a_rate(owner, settings):
    settings.WEBTASK_LIMIT_RECURRING_PER_SECOND = 2.1
    first = create(owner, every="PT1S")
    create(owner, every="PT1S")
    create(owner, cron="* * * * *")
    said = refused(post(owner, {"every": "PT10S", "web_url": URL}), "WEBTASK_LIMIT_RECURRING_PER_SECOND")
    assert "2.1 calls a second" in said.json()["detail"]
    # Called once, it has no rate.
    once = create(owner)
    # An edit to a higher rate is one more; to a lower one, or of something else, it is not.
    refused(send(owner, "PATCH", path(once), {"every": "PT2S"}), "WEBTASK_LIMIT_RECURRING_PER_SECOND")
    assert owner.get(path(once)).json().get("every") is None
    for patch in ({"name": "x"}, {"every": "PT4S"}):
        assert send(owner, "PATCH", path(first), patch).status_code == 200
    settle()
    assert send(owner, "PATCH", path(once), {"every": "PT2S"}).status_code == 200


@db
def test_rate_counts_timers_that_go_on_alone(owner, user, client):
    kept, ended = create(owner, every="PT4S"), create(owner, every="PT1S")
    create(owner, cron="*/2 * * * *")
    create(Client(), every="PT1S")
    owner.delete(path(ended))
    post(owner, None, path(kept, "/pause"))
    assert quotas.recurring_rate(user.pk) == pytest.approx(0.25 + 1 / 120)
    assert quotas.recurring_rate(None) == pytest.approx(1)


# The gap between attempts


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"min_seconds": 0.5}, "retry.min_seconds"),
        ({"min_seconds": 1, "jitter": 0.5}, "retry.min_seconds"),
        ({"min_seconds": 0.5, "backoff": "fixed"}, "retry.min_seconds"),
        ({"delays_seconds": [10, 0, 10], "backoff": "list"}, "retry.delays_seconds"),
    ],
)
@db
def test_retries_that_come_too_soon_are_refused(client, settings, policy, field):
    settings.WEBTASK_LIMIT_GAP_SECONDS = 1
    answer = post(client, {"seconds": 60, "web_url": URL, "retry": policy})
    assert fields_of(answer) == [field]
    assert "WEBTASK_LIMIT_GAP_SECONDS" in answer.json()["detail"]
    batch = {"timers": [{"seconds": 60, "web_url": URL, "retry": policy}]}
    assert fields_of(post(client, batch, "/timer/batch")) == [f"timers.0.{field}"]
    assert not Timer.objects.exists()


@db
def test_gap_leaves_alone_what_waits_long_enough_or_was_made_before(client, settings):
    old = create(client, retry={"min_seconds": 0.1})
    settings.WEBTASK_LIMIT_GAP_SECONDS = 1
    for policy in ({"min_seconds": 1.25}, {"min_seconds": 0.1, "max_attempts": 1}, {"max_attempts": 9}):
        create(client, retry=policy)
    assert send(client, "PATCH", path(old), {"name": "n"}).status_code == 200
    assert send(client, "PATCH", path(old), {"minutes": 5}).status_code == 200
    assert fields_of(send(client, "PATCH", path(old), {"retry": {"jitter": 0}})) == ["retry.min_seconds"]


@db
def test_gap_holds_for_intervals(client, settings):
    settings.WEBTASK_LIMIT_GAP_SECONDS = 10
    answer = post(client, {"every": "PT9S", "web_url": URL})
    assert fields_of(answer) == ["every"]
    assert "PT10S" in answer.json()["detail"]
    create(client, every="PT10S")


@db
def test_gap_holds_for_policies_made_before_it(client, settings):
    timer = create(client, retry={"min_seconds": 0.1, "jitter": 0})
    settings.WEBTASK_LIMIT_GAP_SECONDS = 30
    put_back(timer["task_id"])
    run(status_code=500, error="status")
    delivery = Delivery.objects.get()
    assert 25 < (delivery.next_attempt_at - delivery.started_at).total_seconds() < 31


def test_gap_does_not_hold_up_the_loss_of_a_process():
    assert retry.decide(error="lost", attempt=1, least_seconds=30).wait_seconds == 0
    assert retry.decide(error="timeout", attempt=1, least_seconds=30).wait_seconds >= 30


# Bulk operations


def begin_bulk(client):
    return post(client, {"action": "pause", "filter": {}, "dry_run": True}, "/timer/bulk")


@db
def test_bulk_operations_at_once_are_bounded_by_owner(owner, settings):
    settings.WEBTASK_LIMIT_BULK_OPEN = 2
    assert [begin_bulk(owner).status_code for _ in range(2)] == [202, 202]
    refused(begin_bulk(owner), "WEBTASK_LIMIT_BULK_OPEN")
    assert begin_bulk(Client()).status_code == 202
    tasks.bulk()
    assert begin_bulk(owner).status_code == 202


@threaded
def test_twelve_clients_at_once_begin_no_more_bulk_operations_than_may_be(owner, settings):
    settings.WEBTASK_LIMIT_BULK_OPEN = 3
    statuses = at_once(owner, lambda client, _: begin_bulk(client), times=24)
    assert (statuses.count(202), statuses.count(409)) == (3, 21)
    assert BulkOperation.objects.count() == 3


# The size of an answer


@db
def test_page_ends_where_its_timers_are_large_and_the_next_goes_on(client, settings):
    settings.WEBTASK_LIMIT_ANSWER_BYTES = 64 * 1024
    made = [create(client, body="ü" * 3000, metadata={"n": number}, headers={"X": "y" * 500}) for number in range(20)]
    seen, cursor, pages = [], "", 0
    while cursor is not None:
        answer = client.get(f"/timer?limit=200&cursor={cursor}")
        assert len(answer.content) <= 64 * 1024
        page = answer.json()
        seen += [one["metadata"]["n"] for one in page["timers"]]
        cursor, pages = page["next"], pages + 1
    assert seen == list(range(19, -1, -1))
    assert 5 <= pages <= 8
    assert len(made) == 20


@db
def test_timer_larger_than_a_page_has_one_of_its_own(client, settings):
    settings.WEBTASK_LIMIT_ANSWER_BYTES = 64 * 1024
    for _ in range(2):
        create(client, body="x" * 200_000)
    page = client.get("/timer").json()
    assert len(page["timers"]) == 1
    assert len(client.get(f"/timer?cursor={page['next']}").json()["timers"]) == 1


@db
def test_fields_make_a_page_small_and_are_all_that_is_read(client, settings):
    settings.WEBTASK_LIMIT_ANSWER_BYTES = 64 * 1024
    for _ in range(5):
        create(client, body="x" * 50_000, name="n")
    page = client.get("/timer?fields=task_id,name&fields=status").json()
    assert [set(one) for one in page["timers"]] == [{"task_id", "name", "status"}] * 5
    assert len(client.get("/timer?fields=task_id,body").json()["timers"]) == 1
    wrong = client.get("/timer?fields=task_id,colour")
    assert wrong.status_code == 400
    assert "task_id" in wrong.json()["detail"]


@db
def test_timer_with_very_many_attempts_shows_the_last_ones(client, sql):
    timer = create(client)
    delivery = Delivery.objects.get()
    Delivery.objects.filter(pk=delivery.pk).update(attempts=5000, started_at=delivery.due_at)
    sql(
        "INSERT INTO scheduler_attempt (delivery_id, number, meant_for, started_at, error, message, excerpt)"
        " SELECT %s, n, now(), now(), 'status', %s, '' FROM generate_series(1, 5000) n",
        delivery.pk,
        "m" * 300,
    )
    for body in (client.get(path(timer)).json(), client.get("/timer").json()["timers"][0]):
        assert [one["number"] for one in body["attempts"]] == list(range(4901, 5001))
    assert len(client.get(path(timer, "/attempts?limit=200")).json()["attempts"]) == 200
    assert len(json.dumps(client.get("/timer").json())) < 64 * 1024
    assert uuid.UUID(timer["task_id"])


# An owner's own limits


@db
def test_owner_may_have_limits_of_its_own_and_they_are_audited(owner, user, settings):
    settings.WEBTASK_LIMIT_TIMERS_WAITING, settings.WEBTASK_LIMIT_BULK_OPEN = 1, 1
    limits.change(user.pk, timers_waiting=2, requests_per_second=100)
    for _ in range(2):
        assert create(owner)
    answer = refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    assert "At most 2 timers" in answer.json()["detail"]
    assert "q=1000" in answer["RateLimit-Policy"]
    # What it does not have is the setting's.
    assert [begin_bulk(owner).status_code for _ in range(2)] == [202, 409]
    create(Client())
    refused(post(Client(), {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    # 0 is without limit.
    limits.change(user.pk, timers_waiting=0)
    create(owner)
    assert limits.change(user.pk) is None
    refused(post(owner, {"seconds": 60, "web_url": URL}), "WEBTASK_LIMIT_TIMERS_WAITING")
    limits.change(user.pk)
    entries = AuditEntry.objects.filter(action="limit.changed", object_id=str(user.pk)).order_by("pk")
    assert [entry.after and entry.after["timers_waiting"] for entry in entries] == [2, 0, None]
    assert entries[1].before["requests_per_second"] == 100


@db
def test_limits_are_set_in_the_admin(admin_client, admin_user, user):
    page = "/admin/access/limit/"
    assert admin_client.post(f"{page}add/", {"owner": user.pk}).status_code == 200
    assert admin_client.post(f"{page}add/", {"owner": user.pk, "requests_per_second": "-1"}).status_code == 200
    assert not Limit.objects.exists()
    assert admin_client.post(f"{page}add/", {"owner": user.pk, "bulk_open": "3"}).status_code == 302
    limit = Limit.objects.get()
    assert admin_client.post(f"{page}{limit.pk}/change/", {"bulk_open": "4"}).status_code == 302
    assert limits.allowed(user.pk).bulk_open == 4
    assert "me@example.com" in admin_client.get(page).content.decode()
    assert admin_client.post(f"{page}{limit.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Limit.objects.exists()
    entries = list(AuditEntry.objects.filter(kind="limit").order_by("pk"))
    assert [(one.action, one.through, one.user_id) for one in entries] == [
        ("limit.changed", "admin", admin_user.pk)
    ] * 3


@db
def test_change_by_another_process_is_seen_in_time(user, monkeypatch):
    assert limits.allowed(user.pk).bulk_open == 10
    Limit.objects.create(owner=user, bulk_open=1)
    assert limits.allowed(user.pk).bulk_open == 10
    monkeypatch.setattr(limits, "FRESH_SECONDS", 0.0)
    assert limits.allowed(user.pk).bulk_open == 1
