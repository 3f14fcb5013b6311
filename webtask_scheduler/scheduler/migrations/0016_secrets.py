"""Room for encrypted signing secrets, the hosts that they are for, and the keys that were used.

Each change is of the catalogue only: a longer varchar and a column with a constant default rewrite no table. Processes of
the release before fill no new column. What is stored in plain text stays so until `manage.py rotate_encryption`.
"""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("scheduler", "0015_refused")]

    operations = [
        migrations.CreateModel(
            name="EncryptionKey",
            fields=[
                ("id", models.CharField(max_length=8, primary_key=True, serialize=False)),
                ("noted_at", models.DateTimeField()),
            ],
        ),
        migrations.AlterField(
            model_name="signingsecret",
            name="secret",
            field=models.CharField(max_length=400, verbose_name="secret"),
        ),
        migrations.AddField(
            model_name="signingsecret",
            name="hosts",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=261),
                blank=True,
                db_default=[],
                default=list,
                size=None,
                verbose_name="hosts",
            ),
        ),
    ]
