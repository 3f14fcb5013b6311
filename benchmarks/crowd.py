"""Fills a database with what a service holds after months of use, a million timers in some minutes.

The rows are those that the service writes, in statements of many timers each: some thousand hosts of which a few have
most of the timers, several owners, names, labels, timers that recur and their past, every state and kind of failure.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import connection, transaction

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import ApiKey, Scope
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import BulkOperation
from webtask_scheduler.scheduler.rules import histogram

# Timers of one statement.
PORTION = 50_000
HOSTS = 1000
OWNERS = 20
# People who log in, and service accounts, most of whom own no timer.
USERS = 1000
ADMIN = "bench@example.com"
# Somebody who owns no timer.
WITHOUT = f"person-{USERS - 1}@example.com"
# Hosts of which hours are counted.
HOSTS_COUNTED = 200
# Past deliveries of each timer that recurs.
PAST = 10

# The number of a timer says all of it, so that every run has the same rows. `ended` spreads the ended ones evenly.
_ITEM = """
CREATE TEMPORARY TABLE item ON COMMIT DROP AS
SELECT number, is_ended, recurs, state, made_at,
       uuidv7(made_at - clock_timestamp()) AS timer_id, uuidv7(made_at - clock_timestamp()) AS delivery_id,
       nextval(pg_get_serial_sequence('django_celery_beat_periodictask', 'id')) AS task_id,
       nextval(pg_get_serial_sequence('django_celery_beat_clockedschedule', 'id')) AS clocked_id,
       nextval(pg_get_serial_sequence('django_celery_beat_crontabschedule', 'id')) AS crontab_id,
       nextval(pg_get_serial_sequence('django_celery_beat_intervalschedule', 'id')) AS interval_id,
       CASE WHEN number %% 3 = 0 THEN 'shop.example'
            ELSE 'host-' || number * 7919 %% %(hosts)s || '.example' END AS host,
       CASE WHEN number %% 5 = 0 THEN NULL ELSE %(owners)s::bigint[] END AS owners,
       CASE WHEN number %% 2 = 0 THEN '' ELSE
            (ARRAY['Invoice', 'Reminder', 'Nightly report', 'Payment retry'])[1 + number / 2 %% 4] || ' ' || number
       END AS name,
       CASE WHEN number %% 4 = 0 THEN 'team=' || (ARRAY['billing', 'growth', 'ops'])[1 + number / 4 %% 3] END AS team,
       CASE WHEN number %% 8 = 0 THEN 'order=' || number END AS of_order,
       CASE WHEN is_ended THEN clock_timestamp() - (number * 6007 %% 2_500_000 + 60) * interval '1 s'
            ELSE clock_timestamp() + (number * 7919 %% 2_592_000 + 7200) * interval '1 s' END AS due_at,
       CASE WHEN state IN ('failed', 'cancelled') THEN 3 WHEN state = 'succeeded' OR number %% 200 = 3 THEN 1 ELSE 0
       END AS attempts
  FROM (SELECT number, is_ended, NOT is_ended AND number %% 50 = 7 AS recurs,
               clock_timestamp() - interval '40 days' * (1 - number::float8 / %(total)s) AS made_at,
               CASE WHEN is_ended THEN
                         (ARRAY['succeeded', 'succeeded', 'succeeded', 'succeeded', 'succeeded', 'succeeded',
                                'succeeded', 'failed', 'cancelled', 'missed'])[1 + number / 6 %% 10]
                    WHEN number %% 100 = 1 THEN 'paused' ELSE 'scheduled' END AS state
          FROM (SELECT number, (number + 1) * %(ended)s / %(total)s > number * %(ended)s / %(total)s AS is_ended
                  FROM generate_series(%(first)s::bigint, %(last)s::bigint) number) one) kind
"""
_SCHEDULES = (
    """
    INSERT INTO django_celery_beat_clockedschedule (id, clocked_time)
    SELECT clocked_id, due_at FROM item WHERE NOT recurs
    """,
    """
    INSERT INTO django_celery_beat_crontabschedule
      (id, minute, hour, day_of_month, month_of_year, day_of_week, timezone)
    SELECT crontab_id, (number % 60)::text, (number % 24)::text, '*', '*', '*', 'Europe/Berlin'
      FROM item WHERE recurs AND number % 100 = 7
    """,
    """
    INSERT INTO django_celery_beat_intervalschedule (id, every, period)
    SELECT interval_id, 1 + number % 90, 'days' FROM item WHERE recurs AND number % 100 <> 7
    """,
)
_TASKS = """
INSERT INTO django_celery_beat_periodictask
  (id, name, task, clocked_id, crontab_id, interval_id, args, kwargs, headers, description, one_off, enabled,
   last_run_at, total_run_count, date_changed)
SELECT task_id, 'timer ' || timer_id, 'webtask_scheduler.scheduler.tasks.call_timer',
       CASE WHEN NOT recurs THEN clocked_id END, CASE WHEN recurs AND number % 100 = 7 THEN crontab_id END,
       CASE WHEN recurs AND number % 100 <> 7 THEN interval_id END, '[]',
       '{"timer_id": "' || timer_id || '"}', '{}', '', NOT recurs, NOT is_ended AND state <> 'paused',
       CASE WHEN is_ended AND attempts > 0 THEN due_at END, CASE WHEN is_ended AND attempts > 0 THEN 1 ELSE 0 END,
       made_at
  FROM item
"""
_TIMERS = """
INSERT INTO scheduler_timer
  (id, periodic_task_id, owner_id, web_url, host, created_at, name, cron, timezone, every_seconds, starts_at, options)
SELECT timer_id, task_id, owners[1 + number % cardinality(owners)], 'https://' || host || '/hooks/' || number, host,
       made_at, name,
       CASE WHEN recurs AND number % 100 = 7 THEN number % 60 || ' ' || number % 24 || ' * * *' ELSE '' END,
       CASE WHEN recurs AND number % 100 = 7 THEN 'Europe/Berlin' ELSE '' END,
       CASE WHEN recurs AND number % 100 <> 7 THEN (1 + number % 90) * 86400 END,
       CASE WHEN recurs AND number % 100 <> 7 THEN due_at END,
       CASE WHEN team IS NOT NULL THEN
            json_build_object('labels', json_strip_nulls(
              json_build_object('team', substr(team, 6), 'order', substr(of_order, 7))))
       END
  FROM item
"""
_LABELS = """
INSERT INTO scheduler_timerlabel (timer_id, label)
SELECT timer_id, label FROM item, LATERAL (VALUES (team), (of_order)) each (label) WHERE label IS NOT NULL
"""
_DELIVERIES = """
INSERT INTO scheduler_delivery
  (id, timer_id, flow, number, occurrence, extra, due_at, next_attempt_at, state, attempts, attempts_before, started_at,
   finished_at)
SELECT delivery_id, timer_id, timer.flow, CASE WHEN recurs THEN %(past)s + 1 ELSE 1 END,
       CASE WHEN recurs THEN %(past)s + 1 ELSE 1 END, false, item.due_at, item.due_at, item.state, item.attempts, 0,
       CASE WHEN item.attempts > 0 THEN CASE WHEN is_ended THEN item.due_at + interval '4 ms' ELSE made_at END END,
       CASE WHEN is_ended THEN item.due_at + item.attempts * interval '5 s' END
  FROM item JOIN scheduler_timer timer ON timer.id = timer_id
UNION ALL
SELECT uuidv7(made_at - clock_timestamp()), timer_id, timer.flow, past, past, false, made_at + past * interval '1 min',
       made_at + past * interval '1 min', 'succeeded', 1, 0, made_at + past * interval '1 min',
       made_at + past * interval '1 min'
  FROM item JOIN scheduler_timer timer ON timer.id = timer_id, generate_series(1, %(past)s) past WHERE recurs
"""
_ATTEMPTS = """
INSERT INTO scheduler_attempt
  (delivery_id, number, meant_for, started_at, duration_ms, status_code, error, message, excerpt)
SELECT delivery.id, attempt, delivery.due_at, delivery.due_at + attempt * interval '4 ms', 12 + item.number % 300,
       CASE WHEN is_good THEN 200 WHEN is_status THEN 503 END,
       CASE WHEN is_good THEN '' WHEN is_status THEN 'status' ELSE 'timeout' END,
       CASE WHEN is_good THEN '' WHEN is_status THEN 'The receiver answered 503.' ELSE 'No answer within 30 s.' END,
       CASE WHEN is_good THEN 'ok' WHEN is_status THEN 'Service unavailable' ELSE '' END
  FROM item JOIN scheduler_delivery delivery USING (timer_id), generate_series(1, delivery.attempts) attempt,
       LATERAL (SELECT delivery.state = 'succeeded' AS is_good, item.number % 7 > 1 AS is_status) how
"""


def fill(*, waiting: int, ended: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Store timers that wait and that ended, with their deliveries and attempts, and the people around them."""
    owners = _people()
    total = waiting + ended
    for first in range(0, total, PORTION):
        last = min(first + PORTION, total) - 1
        values: dict[str, Any] = {"first": first, "last": last, "total": total, "ended": ended}
        values |= {"hosts": HOSTS, "owners": owners}
        with transaction.atomic(), connection.cursor() as cursor:
            # The rows are right: foreign keys need no look at each, and a crash of this database loses nothing.
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute("SET LOCAL statement_timeout = 0")
            cursor.execute(_ITEM, values)
            for statement in (*_SCHEDULES, _TASKS, _TIMERS, _LABELS):
                cursor.execute(statement)
            cursor.execute(_DELIVERIES, {"past": PAST})
            cursor.execute(_ATTEMPTS)
            cursor.execute("DROP TABLE item")
            cursor.execute("SET LOCAL session_replication_role = origin")
        say(f"  {last + 1} of {total} timers")
    _records(timers=total)
    _notices(messages=total // 10)
    _rollups()


def _people() -> list[int]:
    """Store users, keys and signing secrets; return the ids of those who own timers."""
    user = get_user_model()
    unusable = make_password(None)
    user.objects.create_superuser(ADMIN, None)
    made = user.objects.bulk_create(
        user(email=f"person-{number}@example.com", password=unusable, first_name=f"Person {number}")
        for number in range(USERS)
    )
    owners = [one.pk for one in made[:OWNERS]]
    for number, owner in enumerate(owners):
        keys.make(name=f"key {number}", owner_id=owner, scopes=[Scope.TIMERS_READ], expires_at=None)
        services.add_secret(None, owner_id=owner)
    ApiKey.objects.bulk_create(
        ApiKey(
            name=f"old key {number}",
            owner=made[number % len(made)],
            prefix=f"wts_{number:08d}",
            digest=number.to_bytes(32, "big"),
            scopes=[Scope.TIMERS_READ],
        )
        for number in range(2 * USERS)
    )
    return owners


def _records(*, timers: int) -> None:
    """Store bulk operations, what the latest changed, and an entry of the audit log for every fourth timer."""
    BulkOperation.objects.bulk_create(
        BulkOperation(
            action="pause",
            filter={"host": f"host-{number}.example"},
            matched=number,
            changed=number,
            finished_at=datetime.now(UTC),
        )
        for number in range(300)
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduler_bulkchange (operation_id, timer)"
            " SELECT latest.id, timer.id FROM scheduler_timer timer,"
            " (SELECT id FROM scheduler_bulkoperation ORDER BY id DESC LIMIT 1) latest"
            " WHERE timer.outcome_of IS NULL ORDER BY timer.id DESC LIMIT %s",
            [timers // 10],
        )
        cursor.execute(
            "INSERT INTO access_auditentry (at, action, kind, object_id, owner_id, user_id, name, key, address,"
            " through, request_id) SELECT now() - n * interval '1 s', 'timer.paused', 'timer', uuidv7()::text,"
            " 1 + n %% 20,"
            " 1 + n %% 20, 'person-' || n %% 20 || '@example.com', '', '192.0.2.' || n %% 250,"
            " (ARRAY['api', 'admin', 'dashboard'])[1 + n %% 3], 'r-' || n FROM generate_series(1, %s) n",
            [timers // 4],
        )


def _notices(*, messages: int) -> None:
    """Store a channel for each person and some for the administrator, all paused, and what was sent to them."""
    said = "2 dead letters since 14:02 UTC.\n- Invoice failed after 5 attempts: The receiver answered 503.\n" * 5
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduler_notificationchannel (owner_id, name, kind, address, shown_address, label,"
            " on_dead_letter, on_recovery, on_late, is_told_late, created_at, active_since, paused_at)"
            " SELECT CASE n %% 50 WHEN 0 THEN admin.id ELSE person.id END, 'Channel ' || n,"
            " (ARRAY['mail', 'slack', 'webhook'])[1 + n %% 3], 'x', 'https://shop.example/***', '',"
            " true, false, false, false, now(), now(), now()"
            "  FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM users_user) person,"
            " (SELECT id FROM users_user WHERE email = %s) admin",
            [ADMIN],
        )
        cursor.execute(
            "INSERT INTO scheduler_notification (owner_id, channel_id, kind, shown_address, state, gathered, subject,"
            " text, created_at, made_at, attempts, error)"
            " SELECT channel.owner_id, channel.id, channel.kind, channel.shown_address,"
            " (ARRAY['sent', 'failed', 'called'])[1 + n %% 3], '{\"test\": {}}', 'Invoice ' || n || ' failed', %s,"
            " now() - (%s - n) * interval '1 s', now() - (%s - n) * interval '1 s', 1, ''"
            "  FROM (SELECT *, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS all_of_them"
            " FROM scheduler_notificationchannel) channel"
            "  JOIN generate_series(1, %s) n ON channel.place = 1 + n %% channel.all_of_them",
            [said, messages, messages, messages],
        )


def _rollups() -> None:
    """Store what was counted: two days by the minute, a month by the hour, and the hosts of a week."""
    counts = ", ".join(f"'{{{','.join(['9', *['1'] * (histogram.BUCKETS - 1)])}}}'" for _ in range(6))
    with connection.cursor() as cursor:
        for seconds, rows in ((60, 2880), (3600, 700)):
            cursor.execute(
                "INSERT INTO scheduler_minute (seconds, begins_at, process, batch, stored_at, slots, first_late,"  # noqa: S608
                " retry_late, durations, claims, publishes, outcomes, first_late_seconds, retry_late_seconds,"
                " duration_seconds, claim_seconds, publish_seconds, succeeded, failed, cancelled, missed, retried,"
                " created, put_off, reclaimed, led_seconds, window_most)"
                f" SELECT %s, date_trunc('hour', now()) - n * %s * interval '1 s', process, uuidv7(), now(), 32,"
                f" {counts}, 1, 1, 1, 1, 1, 50, 1, 0, 0, 1, 50, 0, 0, 0, 0"
                "  FROM generate_series(1, %s) n, unnest(ARRAY['a', 'b']) process",
                [seconds, seconds, rows],
            )
        two = counts.split(", ")[0]
        cursor.execute(
            "INSERT INTO scheduler_hosthour (hour, host, process, batch, calls, failed, put_off, late, durations)"  # noqa: S608
            " SELECT date_trunc('hour', now()) - hour * interval '1 h', 'host-' || host || '.example', 'a', uuidv7(),"
            f" 40, host %% 3, 0, {two}, {two} FROM generate_series(0, 167) hour, generate_series(1, %s) host",
            [HOSTS_COUNTED],
        )


def settle() -> None:
    """Have the database know what it holds, as its own upkeep does in time."""
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("VACUUM ANALYZE")
