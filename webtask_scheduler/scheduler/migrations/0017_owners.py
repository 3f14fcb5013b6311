"""A bulk operation says whether it is for all owners; a timer never loses its owner.

Quick on tables of any size: a column with a default that is stored once, and a rule of Django's alone, for which nothing
is changed in the database. Old code leaves the column to its default, and so asks for its owner's timers only.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('scheduler', '0016_secrets'),
        ('users', '0002_deleted'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name='bulkoperation',
            name='everyone',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AlterField(
            model_name='timer',
            name='owner',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='timers', to=settings.AUTH_USER_MODEL, verbose_name='owner'),
        ),
    ]
