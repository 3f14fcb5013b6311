"""Gives columns and tables names for people, which are translated. It changes no table."""

import django.db.models.deletion
import webtask_scheduler.scheduler.models
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('scheduler', '0013_rollups'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='attempt',
            options={'verbose_name': 'attempt', 'verbose_name_plural': 'attempts'},
        ),
        migrations.AlterModelOptions(
            name='bulkoperation',
            options={'verbose_name': 'bulk operation', 'verbose_name_plural': 'bulk operations'},
        ),
        migrations.AlterModelOptions(
            name='callstop',
            options={'verbose_name': 'call stop', 'verbose_name_plural': 'call stops'},
        ),
        migrations.AlterModelOptions(
            name='delivery',
            options={'verbose_name': 'delivery', 'verbose_name_plural': 'deliveries'},
        ),
        migrations.AlterModelOptions(
            name='signingsecret',
            options={'verbose_name': 'signing secret', 'verbose_name_plural': 'signing secrets'},
        ),
        migrations.AlterModelOptions(
            name='timer',
            options={'verbose_name': 'timer', 'verbose_name_plural': 'timers'},
        ),
        migrations.AlterField(
            model_name='attempt',
            name='duration_ms',
            field=models.PositiveIntegerField(null=True, verbose_name='duration (ms)'),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='error',
            field=models.CharField(blank=True, choices=[('status', 'Status'), ('timeout', 'Timeout'), ('dns', 'Dns'), ('connect', 'Connect'), ('tls', 'Tls'), ('connection', 'Connection'), ('protocol', 'Protocol'), ('redirect', 'Redirect'), ('url', 'Url'), ('interrupted', 'Interrupted'), ('lost', 'Lost')], max_length=11, verbose_name='error'),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='excerpt',
            field=models.CharField(blank=True, max_length=2048, verbose_name='excerpt'),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='message',
            field=models.CharField(blank=True, max_length=300, verbose_name='message'),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='number',
            field=models.PositiveSmallIntegerField(verbose_name='number'),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='status_code',
            field=models.PositiveSmallIntegerField(null=True, verbose_name='status code'),
        ),
        migrations.AlterField(
            model_name='bulkoperation',
            name='changed',
            field=models.PositiveIntegerField(default=0, verbose_name='changed'),
        ),
        migrations.AlterField(
            model_name='bulkoperation',
            name='id',
            field=models.UUIDField(default=webtask_scheduler.scheduler.models.new_id, editable=False, primary_key=True, serialize=False, verbose_name='id'),
        ),
        migrations.AlterField(
            model_name='bulkoperation',
            name='matched',
            field=models.PositiveIntegerField(default=0, verbose_name='matched'),
        ),
        migrations.AlterField(
            model_name='bulkoperation',
            name='owner',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL, verbose_name='owner'),
        ),
        migrations.AlterField(
            model_name='callstop',
            name='created_at',
            field=models.DateTimeField(auto_now_add=True, verbose_name='created at'),
        ),
        migrations.AlterField(
            model_name='callstop',
            name='host',
            field=models.CharField(blank=True, help_text='As in the URL, with its port if it has one.', max_length=261, unique=True, verbose_name='host'),
        ),
        migrations.AlterField(
            model_name='callstop',
            name='reason',
            field=models.CharField(blank=True, max_length=200, verbose_name='reason'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='attempts',
            field=models.PositiveSmallIntegerField(default=0, verbose_name='attempts'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='cancel_requested_at',
            field=models.DateTimeField(null=True, verbose_name='cancel requested at'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='extra',
            field=models.BooleanField(default=False, verbose_name='extra'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='fault',
            field=models.CharField(max_length=300, null=True, verbose_name='fault'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='id',
            field=models.UUIDField(default=webtask_scheduler.scheduler.models.new_id, editable=False, primary_key=True, serialize=False, verbose_name='id'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='lease_expires_at',
            field=models.DateTimeField(null=True, verbose_name='lease expires at'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='lease_token',
            field=models.UUIDField(null=True, verbose_name='lease token'),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='number',
            field=models.PositiveIntegerField(verbose_name='number'),
        ),
        migrations.AlterField(
            model_name='signingsecret',
            name='owner',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='signing_secrets', to=settings.AUTH_USER_MODEL, verbose_name='owner'),
        ),
        migrations.AlterField(
            model_name='signingsecret',
            name='secret',
            field=models.CharField(max_length=100, verbose_name='secret'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='host',
            field=models.CharField(max_length=261, verbose_name='host'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='id',
            field=models.UUIDField(default=webtask_scheduler.scheduler.models.new_id, editable=False, primary_key=True, serialize=False, verbose_name='id'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='max_lateness_seconds',
            field=models.FloatField(null=True, verbose_name='max lateness seconds'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='name',
            field=models.CharField(blank=True, default='', max_length=200, verbose_name='name'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='owner',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='timers', to=settings.AUTH_USER_MODEL, verbose_name='owner'),
        ),
        migrations.AlterField(
            model_name='timer',
            name='web_url',
            field=models.CharField(max_length=2048, verbose_name='web URL'),
        ),
    ]
