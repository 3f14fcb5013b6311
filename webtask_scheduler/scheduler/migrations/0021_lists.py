"""Lists by due time find what is tried again by an index; a bulk operation says when it was stopped.

The index is built beside the traffic. It holds what waits for another attempt, and so is small, whatever the table has.
Old code neither needs the index nor fills the column. If building it is broken off, drop it
(`DROP INDEX delivery_again_idx`) and migrate again.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ("scheduler", "0020_stages"),
    ]

    operations = [
        # First, so that nothing is half done if it is broken off.
        AddIndexConcurrently(
            model_name='delivery',
            index=models.Index(models.F('next_attempt_at'), models.F('due_at'), condition=models.Q(('extra', False), ('next_attempt_at__gt', models.F('due_at')), ('state', 'scheduled')), name='delivery_again_idx'),
        ),
        migrations.AddField(
            model_name='bulkoperation',
            name='stopped_at',
            field=models.DateTimeField(null=True),
        ),
    ]
