"""Gives each notification channel a language; those that exist have the service's own.

The database has a default, so old code goes on making channels beside this. No row is written anew.
"""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("scheduler", "0024_past")]

    operations = [
        migrations.AddField(
            model_name="notificationchannel",
            name="language",
            field=models.CharField(blank=True, db_default="", default="", max_length=10, verbose_name="language"),
        ),
    ]
