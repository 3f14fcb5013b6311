"""Bulk operations can spread timers. It changes no table: which actions there are is known to the code alone."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("scheduler", "0025_channel_language"),
    ]

    operations = [
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
                    ("spread", "Spread"),
                ],
                max_length=7,
            ),
        ),
    ]
