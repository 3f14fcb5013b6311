"""Adds what is kept of an answer's headers, and which process made the call, to each attempt.

Columns that may be null and have no default: no row is written, and the table is locked for an instant. Attempts that
were made before, and those of a worker of the release before, have neither.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0021_lists")]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="headers",
            field=models.TextField(null=True, verbose_name="headers of the answer"),
        ),
        migrations.AddField(
            model_name="attempt",
            name="worker",
            field=models.CharField(max_length=100, null=True, verbose_name="worker"),
        ),
    ]
