"""What the models cannot say: an index on a table that is not ours, and vacuum settings of the queue."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0002_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]

    operations = [
        # Serves TimerScheduler.enabled_models_qs and the admin's lists of other tasks: without it stock beat's reload
        # reads every timer's row inside a tick.
        migrations.RunSQL(
            """
            CREATE INDEX periodictask_foreign_idx ON django_celery_beat_periodictask (id)
             WHERE task <> 'webtask_scheduler.scheduler.tasks.call_timer'
            """,
            "DROP INDEX periodictask_foreign_idx",
        ),
        # Each change of a delivery's state leaves a dead entry at the front of the due index, just where the claim
        # reads. Vacuum by the absolute number of them: a fifth of a million waiting rows would come far too late.
        migrations.RunSQL(
            """
            ALTER TABLE scheduler_delivery SET (
              autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
              autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 2000,
              autovacuum_vacuum_cost_delay = 1)
            """,
            """
            ALTER TABLE scheduler_delivery RESET (
              autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
              autovacuum_analyze_scale_factor, autovacuum_analyze_threshold, autovacuum_vacuum_cost_delay)
            """,
        ),
    ]
