"""What pruning needs: an index that leads to timers with many deliveries, and one of bulk operations that ended.

Both are made while the service runs: a minute or so where there are a hundred million deliveries. Celery's task that
deletes old results is taken away; results are off. Where another app turns them on, beat adds it again.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.lookups import Exact


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("scheduler", "0009_workers")]

    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                F("timer"),
                F("occurrence"),
                name="delivery_many_idx",
                condition=Q(Exact(F("occurrence").bitand(63), 0)),
            ),
        ),
        AddIndexConcurrently(
            model_name="bulkoperation",
            index=models.Index(F("finished_at"), name="bulk_finished_idx", condition=Q(finished_at__isnull=False)),
        ),
        migrations.RunSQL(
            """
            WITH gone AS (
              DELETE FROM django_celery_beat_periodictask
               WHERE name = 'celery.backend_cleanup' AND task = 'celery.backend_cleanup' RETURNING id, crontab_id
            )
            DELETE FROM django_celery_beat_crontabschedule crontab USING gone
             WHERE crontab.id = gone.crontab_id
               AND NOT EXISTS (SELECT FROM django_celery_beat_periodictask other
                                WHERE other.crontab_id = crontab.id AND other.id <> gone.id)
            """,
            migrations.RunSQL.noop,
        ),
    ]
