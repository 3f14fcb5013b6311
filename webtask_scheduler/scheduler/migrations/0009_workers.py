"""Workers note that they are at work, as beats do."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0007_flows")]

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
    ]
