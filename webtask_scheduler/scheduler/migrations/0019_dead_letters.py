"""Dead letters that were dismissed, an index of those that were not, and replays that are spread over time.

The columns are null and have no default, so that no row is rewritten, and old code need not fill them. `action` is made
longer, which PostgreSQL does without reading the table. The index is built while the table is in use; a delivery that
succeeds never enters it.

The index is read by flow. Deliveries that had ended before 0007 have the flow 0; of the dead letters among them it is
written, in batches of their own transactions: ten seconds for each hundred thousand of them.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models, transaction
from django.db.models import F, Q

# Read at a time along delivery_ended_idx, and written in one transaction: some tens of milliseconds.
READ_ROWS = 5000


def write_flows(apps, schema_editor):  # noqa: ARG001 - Django's signature
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        for state in ("failed", "missed"):
            after, last = "-infinity", "00000000-0000-0000-0000-000000000000"
            while True:
                cursor.execute(
                    "SELECT due_at::text, id, flow FROM scheduler_delivery"
                    " WHERE state = %s AND (due_at, id) > (%s::timestamptz, %s::uuid) ORDER BY due_at, id LIMIT %s",
                    [state, after, last, READ_ROWS],
                )
                rows = cursor.fetchall()
                if not rows:
                    break
                after, last = rows[-1][0], rows[-1][1]
                ids = [pk for _due_at, pk, flow in rows if flow == 0]
                if ids:
                    with transaction.atomic(using=connection.alias):
                        cursor.execute(
                            "SELECT id FROM scheduler_delivery WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE", [ids]
                        )
                        cursor.execute(
                            "UPDATE scheduler_delivery delivery SET flow = timer.flow FROM scheduler_timer timer"
                            " WHERE timer.id = delivery.timer_id AND delivery.id = ANY(%s::uuid[])"
                            " AND delivery.flow = 0",
                            [ids],
                        )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("scheduler", "0018_limits")]

    operations = [
        migrations.AddField(model_name="delivery", name="dismissed_at", field=models.DateTimeField(null=True)),
        migrations.AddField(
            model_name="bulkoperation", name="spread_seconds", field=models.PositiveIntegerField(null=True)
        ),
        migrations.AlterField(
            model_name="bulkoperation",
            name="action",
            field=models.CharField(
                choices=[
                    ("cancel", "Cancel"),
                    ("pause", "Pause"),
                    ("resume", "Resume"),
                    ("replay", "Replay"),
                    ("dismiss", "Dismiss"),
                ],
                max_length=7,
            ),
        ),
        migrations.RunPython(write_flows, migrations.RunPython.noop),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                F("flow"),
                F("finished_at"),
                name="delivery_dead_idx",
                condition=Q(state__in=["failed", "missed"], dismissed_at__isnull=True),
            ),
        ),
    ]
