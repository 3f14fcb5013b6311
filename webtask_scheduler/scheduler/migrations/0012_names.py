"""The API's `occurrence` is called so in the table too; what counts a timer's deliveries is their number.

Names only: no row is touched and no index is built, whatever the table's size.
"""

from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.lookups import Exact

MANY = "delivery_many_idx"


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0011_fault")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    [
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
