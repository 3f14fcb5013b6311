"""Hosts in their one canonical form: of timers with the flows of their open deliveries, and of call stops.

Every timer is read, only those that change are written, in batches of their own transactions: ten seconds for a million
timers, and half a minute more for each hundred thousand of them that change. Safe while the service runs; what a web
process of the previous release makes meanwhile of an oddly spelled URL keeps the old form until it is edited.
"""

import logging

from django.db import migrations, transaction

from webtask_scheduler import terminal
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.telemetry.events import event


# Read at a time, and written in one transaction: some tens of milliseconds each.
READ_ROWS = 10_000
WRITE_ROWS = 500


def canonicalise(apps, schema_editor):  # noqa: ARG001 - Django's signature
    connection = schema_editor.connection
    # Its name stands in a line that waits for its end.
    progress = terminal.Progress("Hosts of timers", in_a_line=True)
    with connection.cursor() as cursor, progress:
        # First, so that what a stop holds back is held back under both names meanwhile.
        replaced = _widen_stops(cursor)
        after = "00000000-0000-0000-0000-000000000000"
        while True:
            cursor.execute(
                "SELECT id, web_url, host FROM scheduler_timer WHERE id > %s ORDER BY id LIMIT %s", [after, READ_ROWS]
            )
            rows = cursor.fetchall()
            if not rows:
                break
            after = rows[-1][0]
            progress.add(len(rows))
            changed = [(pk, url, host) for pk, url, old in rows if (host := canonical_host(url)) != old]
            for start in range(0, len(changed), WRITE_ROWS):
                with transaction.atomic(using=connection.alias):
                    _write(cursor, changed[start : start + WRITE_ROWS])
        cursor.execute("DELETE FROM scheduler_callstop WHERE host = ANY(%s)", [replaced])


def _widen_stops(cursor):
    """Add the canonical form of each call stop and return those that it replaces."""
    cursor.execute("SELECT host, reason, created_at FROM scheduler_callstop WHERE host <> ''")
    replaced = []
    for host, reason, created_at in cursor.fetchall():
        new = canonical_host(host)
        if new != host:
            event("call_stop_renamed", level=logging.WARNING, host=host, to=new)
            replaced.append(host)
            cursor.execute(
                "INSERT INTO scheduler_callstop (host, reason, created_at) VALUES (%s, %s, %s)"
                " ON CONFLICT (host) DO NOTHING",
                [new, reason, created_at],
            )
    return replaced


def _write(cursor, changed):
    """Write hosts, and the flows that follow from them; locks are taken deliveries first, as everywhere."""
    ids, urls, hosts = (list(column) for column in zip(*changed, strict=True))
    cursor.execute(
        "SELECT id FROM scheduler_delivery WHERE timer_id = ANY(%s::uuid[]) AND finished_at IS NULL"
        " ORDER BY id FOR UPDATE",
        [ids],
    )
    # An edit since it was read has written its own.
    cursor.execute(
        "UPDATE scheduler_timer timer SET host = new.host"
        "  FROM unnest(%s::uuid[], %s::text[], %s::text[]) new (id, web_url, host)"
        " WHERE timer.id = new.id AND timer.web_url = new.web_url",
        [ids, urls, hosts],
    )
    # What has ended is not claimed again; a replay copies the timer's flow.
    cursor.execute(
        "UPDATE scheduler_delivery delivery SET flow = timer.flow FROM scheduler_timer timer"
        " WHERE timer.id = delivery.timer_id AND timer.id = ANY(%s::uuid[])"
        "   AND delivery.finished_at IS NULL AND delivery.flow <> timer.flow",
        [ids],
    )


class Migration(migrations.Migration):
    # Each batch commits by itself.
    atomic = False
    dependencies = [("scheduler", "0007_flows")]

    operations = [migrations.RunPython(canonicalise, migrations.RunPython.noop)]
