"""Flows and lanes of the queue. Both tables are written anew, under a lock: what is due meanwhile is called after it."""

from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.functions import Cast, Coalesce

OWNER = Coalesce(F("owner_id"), 0, output_field=models.BigIntegerField()).bitand(0x1FF_FFFF)
HOST = Cast(
    models.Func(F("host"), function="hashtext", output_field=models.IntegerField()), models.BigIntegerField()
).bitand(0xFFFF_FFFF)
FLOW = OWNER.bitxor(HOST).bitand(63).bitleftshift(57).bitor(OWNER.bitleftshift(32)).bitor(HOST)
LANE = Cast(F("flow").bitrightshift(57), models.SmallIntegerField())

# Both locks at once, deliveries first as most statements have it, or neither: with one of them it would wait for a
# statement that waits for it, and a deadlock is found after a second only.
LOCK = """
DO $$
BEGIN
  SET LOCAL lock_timeout = '200ms';
  LOOP
    BEGIN
      LOCK TABLE scheduler_delivery, scheduler_timer IN ACCESS EXCLUSIVE MODE;
      EXIT;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      PERFORM pg_sleep(0.1);
    END;
  END LOOP;
  SET LOCAL lock_timeout = 0;
END
$$
"""


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0006_timer_options")]

    operations = [
        migrations.RunSQL(LOCK, migrations.RunSQL.noop),
        migrations.AddField(
            model_name="timer",
            name="flow",
            field=models.GeneratedField(db_persist=True, expression=FLOW, output_field=models.BigIntegerField()),
        ),
        migrations.AddField(
            model_name="delivery", name="flow", field=models.BigIntegerField(default=0, db_default=0)
        ),
        # What has ended is not claimed again; a replay copies the timer's flow.
        migrations.RunSQL(
            """
            UPDATE scheduler_delivery delivery SET flow = timer.flow
              FROM scheduler_timer timer WHERE timer.id = delivery.timer_id AND delivery.finished_at IS NULL
            """,
            migrations.RunSQL.noop,
        ),
        migrations.AddField(
            model_name="delivery",
            name="lane",
            field=models.GeneratedField(db_persist=True, expression=LANE, output_field=models.SmallIntegerField()),
        ),
        migrations.RemoveIndex(model_name="delivery", name="delivery_due_idx"),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                F("next_attempt_at"), name="delivery_due_idx", condition=Q(state="scheduled", extra=False)
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                F("lane"), F("next_attempt_at"), name="delivery_lane_idx", condition=Q(state="scheduled")
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                F("flow"), F("next_attempt_at"), name="delivery_flow_idx", condition=Q(state="scheduled")
            ),
        ),
    ]
