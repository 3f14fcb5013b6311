"""Who made a timer, and two indexes that limits per owner are counted by.

The column is null and has no default, so that no row is rewritten, and old code need not fill it. The indexes are built
while the tables are in use; neither is touched when a timer is called once.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

import webtask_scheduler.scheduler.models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("scheduler", "0017_owners")]

    operations = [
        migrations.AddField(
            model_name="timer",
            name="made_by",
            field=webtask_scheduler.scheduler.models.GivenField(null=True),
        ),
        AddIndexConcurrently(
            model_name="timer",
            index=models.Index(
                Coalesce("owner", 0),
                condition=models.Q(models.Q(("cron", ""), _negated=True), ("every_seconds__isnull", False), _connector="OR"),
                name="timer_owner_recurring_idx",
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(F("flow"), condition=Q(state="paused"), name="delivery_paused_idx"),
        ),
    ]
