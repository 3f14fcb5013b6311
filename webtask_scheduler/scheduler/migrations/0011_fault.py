from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0010_growth")]

    operations = [
        migrations.AddField(
            model_name="delivery", name="fault", field=models.CharField(max_length=300, null=True)
        ),
        migrations.RemoveConstraint(model_name="delivery", name="delivery_attempts_bounded"),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=Q(attempts__lte=30_000) & (Q(attempts=0) | Q(started_at__isnull=False)),
                name="delivery_attempts_bounded",
            ),
        ),
    ]
