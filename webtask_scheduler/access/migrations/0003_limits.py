"""The table of owners whose limits differ from the settings. No other table is touched."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0002_audit"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Limit",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "owner",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="limit",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="owner",
                    ),
                ),
                ("requests_per_second", models.FloatField(blank=True, null=True, verbose_name="requests a second")),
                ("timers_waiting", models.PositiveIntegerField(blank=True, null=True, verbose_name="timers waiting")),
                (
                    "recurring_per_second",
                    models.FloatField(blank=True, null=True, verbose_name="recurring calls a second"),
                ),
                (
                    "bulk_open",
                    models.PositiveIntegerField(blank=True, null=True, verbose_name="bulk operations at once"),
                ),
            ],
            options={"verbose_name": "limit", "verbose_name_plural": "limits"},
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(models.Q(("requests_per_second__lt", 0), _negated=True), models.Q(("recurring_per_second__lt", 0), _negated=True)),
                name="limit_not_negative",
            ),
        ),
    ]
