"""A deleted user stays as a row. A column without a value: no row is written."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('users', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='user',
            name='deleted_at',
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
