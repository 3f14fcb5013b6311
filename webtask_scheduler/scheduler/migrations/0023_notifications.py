"""Adds channels, to which owners are told of failures, what was sent to them, and an index of what failed, by time.

The index is built beside the traffic. It holds failed and missed deliveries alone: one that succeeds never enters it.
The tables are new, and old code knows none of them. If building the index is broken off, drop it
(`DROP INDEX delivery_lost_idx`) and migrate again.
"""

import django.db.models.deletion
from django.conf import settings
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('scheduler', '0022_answers'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        # First, so that nothing is half done if it is broken off.
        AddIndexConcurrently(
            model_name='delivery',
            index=models.Index(models.F('finished_at'), models.F('id'), condition=models.Q(('state__in', ['failed', 'missed'])), name='delivery_lost_idx'),
        ),
        migrations.CreateModel(
            name='Notification',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('mail', 'Mail'), ('slack', 'Slack'), ('webhook', 'Webhook')], max_length=7)),
                ('shown_address', models.CharField(max_length=281)),
                ('state', models.CharField(choices=[('gathering', 'Gathering'), ('sending', 'Sending'), ('called', 'Called'), ('sent', 'Sent'), ('failed', 'Failed')], default='gathering', max_length=9)),
                ('gathered', models.JSONField()),
                ('subject', models.CharField(blank=True, default='', max_length=300)),
                ('text', models.TextField(blank=True, default='')),
                ('created_at', models.DateTimeField()),
                ('made_at', models.DateTimeField(null=True)),
                ('call_timer', models.UUIDField(null=True)),
                ('attempts', models.PositiveSmallIntegerField(default=0)),
                ('next_attempt_at', models.DateTimeField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('error', models.CharField(blank=True, default='', max_length=300)),
            ],
            options={
                'verbose_name': 'notification',
                'verbose_name_plural': 'notifications',
            },
        ),
        migrations.CreateModel(
            name='NotificationChannel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(blank=True, default='', max_length=200, verbose_name='name')),
                ('kind', models.CharField(choices=[('mail', 'Mail'), ('slack', 'Slack'), ('webhook', 'Webhook')], max_length=7)),
                ('address', models.TextField()),
                ('shown_address', models.CharField(max_length=281)),
                ('label', models.CharField(blank=True, default='', max_length=127)),
                ('on_dead_letter', models.BooleanField(default=True)),
                ('failures_in_row', models.PositiveSmallIntegerField(null=True)),
                ('on_recovery', models.BooleanField(default=False)),
                ('on_late', models.BooleanField(default=False)),
                ('created_at', models.DateTimeField()),
                ('active_since', models.DateTimeField()),
                ('paused_at', models.DateTimeField(null=True)),
                ('told_at', models.DateTimeField(null=True)),
                ('is_told_late', models.BooleanField(default=False)),
            ],
            options={
                'verbose_name': 'notification channel',
                'verbose_name_plural': 'notification channels',
            },
        ),
        migrations.CreateModel(
            name='NotificationCursor',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('finished_at', models.DateTimeField()),
                ('delivery', models.UUIDField()),
                ('told_failure', models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name='ToldFailure',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('timer', models.UUIDField()),
                ('number', models.PositiveIntegerField()),
                ('is_row', models.BooleanField()),
            ],
        ),
        migrations.AddField(
            model_name='notification',
            name='owner',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='notificationchannel',
            name='owner',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL, verbose_name='owner'),
        ),
        migrations.AddField(
            model_name='notification',
            name='channel',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to='scheduler.notificationchannel'),
        ),
        migrations.AddConstraint(
            model_name='notificationcursor',
            constraint=models.CheckConstraint(condition=models.Q(('id', 1)), name='notification_cursor_is_one'),
        ),
        migrations.AddField(
            model_name='toldfailure',
            name='channel',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, to='scheduler.notificationchannel'),
        ),
        migrations.AddIndex(
            model_name='notificationchannel',
            index=models.Index(models.F('owner'), name='channel_owner_idx'),
        ),
        migrations.AddIndex(
            model_name='notificationchannel',
            index=models.Index(models.F('active_since'), condition=models.Q(('paused_at__isnull', True)), name='channel_active_idx'),
        ),
        migrations.AddConstraint(
            model_name='notificationchannel',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['mail', 'slack', 'webhook'])), name='channel_kind_known'),
        ),
        migrations.AddConstraint(
            model_name='notificationchannel',
            constraint=models.CheckConstraint(condition=models.Q(('failures_in_row__isnull', True), ('failures_in_row__gte', 2), _connector='OR'), name='channel_row_is_a_row'),
        ),
        migrations.AddIndex(
            model_name='notification',
            index=models.Index(models.F('owner'), models.OrderBy(models.F('id'), descending=True), name='notification_owner_idx'),
        ),
        migrations.AddIndex(
            model_name='notification',
            index=models.Index(models.F('id'), condition=models.Q(('state__in', ['gathering', 'sending'])), name='notification_open_idx'),
        ),
        migrations.AddConstraint(
            model_name='notification',
            constraint=models.UniqueConstraint(condition=models.Q(('state', 'gathering')), fields=('channel',), name='notification_one_gathers_per_channel'),
        ),
        migrations.AddConstraint(
            model_name='notification',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['gathering', 'sending', 'called', 'sent', 'failed'])), name='notification_state_known'),
        ),
        migrations.AddConstraint(
            model_name='toldfailure',
            constraint=models.UniqueConstraint(fields=('channel', 'timer'), name='told_failure_once'),
        ),
    ]
