"""Processes of the release before go on at a migrated database, until they are replaced."""

import importlib
from datetime import timedelta

import pytest
from django.db import connection

from webtask_scheduler.scheduler.models import Beat, ClockTimestamp, Delivery

RENAMES = importlib.import_module("webtask_scheduler.scheduler.migrations.0012_names").Migration.operations[0]

pytestmark = pytest.mark.django_db

# As release 0.1.0 claims, and as it makes the next delivery of a timer.
OLD_CLAIM = """
WITH due AS MATERIALIZED (
  SELECT id FROM scheduler_delivery WHERE state = 'scheduled' ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE scheduler_delivery delivery
   SET state = 'claimed', lease_token = gen_random_uuid(), lease_expires_at = clock_timestamp() + interval '10 s'
  FROM due, scheduler_timer timer WHERE delivery.id = due.id AND timer.id = delivery.timer_id
RETURNING delivery.id, delivery.occurrence, delivery.moment
"""
OLD_NEXT = """
INSERT INTO scheduler_delivery
  (id, timer_id, occurrence, moment, extra, due_at, next_attempt_at, state, attempts, attempts_before)
SELECT gen_random_uuid(), timer_id, 1 + max(occurrence), 8, true, now(), now(), 'scheduled', 0, 0
  FROM scheduler_delivery GROUP BY timer_id
"""


def migrate_again(*, search_path):
    """Take the renames back and make them anew, with or without a beat of the release before at work."""
    renames = RENAMES.database_operations[0]
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"SET LOCAL search_path = {search_path}")
        for statement in (*renames.reverse_sql, *renames.sql):
            cursor.execute(statement)


def as_old(statement):
    """Run a statement in a session that looks where one of the release before does."""
    with connection.cursor() as cursor:
        cursor.execute("""SET LOCAL search_path = "$user", public""")
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        cursor.execute("SET LOCAL search_path = public")
    return rows


def views(sql):
    return sql("SELECT 1 FROM pg_views WHERE viewname = 'scheduler_delivery'")


def see_old_beat(*, seconds_ago=0.0):
    Beat.objects.create(name="old", seen_at=ClockTimestamp() - timedelta(seconds=seconds_ago))


def test_old_process_claims_and_promises_under_the_old_names(make_timer, delivery_of, sql):
    delivery = delivery_of(make_timer())
    Delivery.objects.update(number=3, occurrence=7)
    see_old_beat()
    migrate_again(search_path="public")
    assert as_old(OLD_CLAIM) == [(delivery.id, 3, 7)]
    as_old(OLD_NEXT)
    found = Delivery.objects.order_by("number").values_list("number", "occurrence", "state", "flow")
    assert list(found) == [(3, 7, "claimed", delivery.flow), (4, 8, "scheduled", 0)]


def test_old_names_are_kept_only_for_old_processes_at_work(sql):
    migrate_again(search_path="public")
    assert not views(sql)
    see_old_beat(seconds_ago=90)
    migrate_again(search_path="public")
    assert not views(sql)


def test_old_names_are_not_kept_where_new_processes_would_find_them(sql):
    see_old_beat()
    migrate_again(search_path='"$user", public')
    assert not views(sql)
