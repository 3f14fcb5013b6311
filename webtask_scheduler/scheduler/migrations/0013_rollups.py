"""Two tables of counts, for `/metrics` and for charts; see queue.rollups. No table with rows is touched."""

import django.contrib.postgres.fields
from django.db import migrations, models
from django.db.models import Q


def counts():
    return django.contrib.postgres.fields.ArrayField(base_field=models.BigIntegerField(), size=None)


# A row is written again and again for a minute, or an hour; there is room on its page for that.
ROOMY = "ALTER TABLE scheduler_minute SET (fillfactor = 50); ALTER TABLE scheduler_hosthour SET (fillfactor = 70)"


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0012_names")]

    operations = [
        migrations.CreateModel(
            name="Minute",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "seconds",
                        "begins_at",
                        "process",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("seconds", models.PositiveIntegerField()),
                ("begins_at", models.DateTimeField()),
                ("process", models.CharField(max_length=100)),
                ("batch", models.UUIDField()),
                ("stored_at", models.DateTimeField()),
                ("slots", models.PositiveIntegerField()),
                ("first_late", counts()),
                ("first_late_seconds", models.FloatField()),
                ("retry_late", counts()),
                ("retry_late_seconds", models.FloatField()),
                ("durations", counts()),
                ("duration_seconds", models.FloatField()),
                ("claims", counts()),
                ("claim_seconds", models.FloatField()),
                ("publishes", counts()),
                ("publish_seconds", models.FloatField()),
                ("outcomes", counts()),
                *((name, models.BigIntegerField()) for name in ("succeeded", "failed", "cancelled", "missed")),
                *((name, models.BigIntegerField()) for name in ("retried", "created", "put_off", "reclaimed")),
                ("led_seconds", models.FloatField()),
                ("window_most", models.BigIntegerField()),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=Q(seconds__in=[0, 60, 3600]), name="minute_span_known")]
            },
        ),
        migrations.CreateModel(
            name="HostHour",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "hour", "host", "process", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("hour", models.DateTimeField()),
                ("host", models.CharField(max_length=261)),
                ("process", models.CharField(max_length=100)),
                ("batch", models.UUIDField()),
                *((name, models.BigIntegerField()) for name in ("calls", "failed", "put_off")),
                ("late", counts()),
                ("durations", counts()),
            ],
        ),
        migrations.RunSQL(ROOMY, migrations.RunSQL.noop),
    ]
