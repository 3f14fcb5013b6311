"""Workers note that they are at work, as beats do."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0008_canonical_hosts")]

    operations = [
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100)),
                ("kind", models.CharField(choices=[("calls", "Calls"), ("upkeep", "Upkeep")], max_length=6)),
                ("seen_at", models.DateTimeField()),
                ("starter_at", models.DateTimeField()),
                ("ledger_at", models.DateTimeField()),
                ("held", models.PositiveIntegerField()),
                ("running", models.PositiveIntegerField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=["name", "kind"], name="worker_once_per_kind"),
                    models.CheckConstraint(condition=Q(kind__in=["calls", "upkeep"]), name="worker_kind_known"),
                ],
            },
        ),
        # The words alone: no change to the table.
        migrations.AlterField(
            model_name="callstop",
            name="host",
            field=models.CharField(
                blank=True, help_text="As in the URL, with its port if it has one.", max_length=261, unique=True
            ),
        ),
    ]
