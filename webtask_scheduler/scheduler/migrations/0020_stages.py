"""Adds when each attempt reached its stages: claimed, published, connected, first byte.

A column that may be null and has no default: no row is written, and the table is locked for an instant. Attempts that
were made before, and those of a worker of the release before, have none.
"""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0019_dead_letters")]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="stages",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.IntegerField(null=True), null=True, size=None
            ),
        ),
    ]
