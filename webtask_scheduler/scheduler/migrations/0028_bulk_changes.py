"""Adds a table of the timers that a bulk operation paused or resumed, so it can be undone. Old code does not know it.

What an operation of before changed is not known, and no undo is offered for it.
"""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('scheduler', '0027_past_flow'),
    ]

    operations = [
        migrations.CreateModel(
            name='BulkChange',
            fields=[
                ('pk', models.CompositePrimaryKey('operation', 'timer', blank=True, editable=False, primary_key=True, serialize=False)),
                ('timer', models.UUIDField()),
                ('operation', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='changes', to='scheduler.bulkoperation')),
            ],
            options={
                'indexes': [models.Index(models.F('timer'), name='bulkchange_timer_idx')],
            },
        ),
    ]
