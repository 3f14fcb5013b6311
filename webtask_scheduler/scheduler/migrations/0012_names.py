"""The API's `occurrence` is called so in the table too; what counts a timer's deliveries is their number.

Names only: no row is touched and no index is built, whatever the table's size.

Processes of release 0.1.0 that are still at work find the names they know in a view. It lies in the schema that carries
the name of the database's user, where their sessions look first and those of `config.settings.production` do not look at
all. Once no such process is left, `DROP SCHEMA webtask_scheduler CASCADE` (the user's name) takes it away.
"""

from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.lookups import Exact

MANY = "delivery_many_idx"

# Before the renames, because a view keeps the names that its columns were given. None is made where no beat of 0.1.0 is
# at work, nor where the new processes would find it too.
OLD_NAMES = """
DO $$
BEGIN
  IF EXISTS (SELECT FROM scheduler_beat WHERE seen_at > clock_timestamp() - interval '1 minute')
     AND current_setting('search_path') NOT LIKE '%$user%'
     AND has_database_privilege(current_database(), 'CREATE')
     AND to_regnamespace(quote_ident(current_user)) IS NULL
  THEN
    EXECUTE format('CREATE SCHEMA %I', current_user);
    EXECUTE format('CREATE VIEW %I.scheduler_delivery AS SELECT * FROM public.scheduler_delivery', current_user);
  END IF;
END
$$
"""


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0011_fault")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    [
                        OLD_NAMES,
                        "ALTER TABLE scheduler_delivery RENAME COLUMN occurrence TO number",
                        "ALTER TABLE scheduler_delivery RENAME COLUMN moment TO occurrence",
                        "ALTER TABLE scheduler_delivery"
                        " RENAME CONSTRAINT delivery_timer_occurrence_unique TO delivery_timer_number_unique",
                    ],
                    [
                        "ALTER TABLE scheduler_delivery"
                        " RENAME CONSTRAINT delivery_timer_number_unique TO delivery_timer_occurrence_unique",
                        "ALTER TABLE scheduler_delivery RENAME COLUMN occurrence TO moment",
                        "ALTER TABLE scheduler_delivery RENAME COLUMN number TO occurrence",
                    ],
                )
            ],
            state_operations=[
                migrations.RemoveConstraint("delivery", "delivery_timer_occurrence_unique"),
                migrations.RemoveIndex("delivery", MANY),
                migrations.RenameField("delivery", "occurrence", "number"),
                migrations.RenameField("delivery", "moment", "occurrence"),
                migrations.AddConstraint(
                    "delivery",
                    models.UniqueConstraint(fields=["timer", "number"], name="delivery_timer_number_unique"),
                ),
                migrations.AddIndex(
                    "delivery",
                    models.Index(
                        F("timer"),
                        F("number"),
                        name=MANY,
                        condition=Q(Exact(F("number").bitand(63), 0)),
                    ),
                ),
            ],
        )
    ]
