"""A kind of error for calls that are refused: `refused`.

The old check is replaced by the new one in one step that reads no row, and then the rows are checked while attempts go
on being written: a minute or so where there are a hundred million. Old code writes none of the new kind and goes on.
"""

from django.contrib.postgres.operations import ValidateConstraint
from django.db import migrations, models

_KINDS = (
    *("status", "timeout", "dns", "connect", "tls", "connection", "protocol", "redirect", "url", "refused"),
    *("interrupted", "lost"),
)
_BEFORE = [kind for kind in _KINDS if kind != "refused"]


def _replaced(kinds):
    known = ", ".join(f"'{kind}'" for kind in ["", *kinds])
    return (
        "ALTER TABLE scheduler_attempt DROP CONSTRAINT IF EXISTS attempt_error_known,"
        f" ADD CONSTRAINT attempt_error_known CHECK (error IN ({known})) NOT VALID"
    )


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("scheduler", "0014_texts")]

    operations = [
        migrations.AlterField(
            model_name="attempt",
            name="error",
            field=models.CharField(
                blank=True,
                choices=[(kind, kind.capitalize()) for kind in _KINDS],
                max_length=11,
                verbose_name="error",
            ),
        ),
        migrations.RunSQL(
            sql=_replaced(_KINDS),
            # Back only where no call was refused yet.
            reverse_sql=_replaced(_BEFORE),
            state_operations=[
                migrations.RemoveConstraint(model_name="attempt", name="attempt_error_known"),
                migrations.AddConstraint(
                    model_name="attempt",
                    constraint=models.CheckConstraint(
                        condition=models.Q(("error__in", ["", *_KINDS])), name="attempt_error_known"
                    ),
                ),
            ],
        ),
        ValidateConstraint(model_name="attempt", name="attempt_error_known"),
    ]
